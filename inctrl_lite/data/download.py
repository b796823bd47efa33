"""Fetching data sets: from a direct address where there is one; elsewhere, what a person has to fetch.

The addresses in the catalogue could not be tried when this was written.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from inctrl_lite.data.archives import is_archive, unpack
from inctrl_lite.data.catalogue import DatasetInfo, find_dataset
from inctrl_lite.data.manifest import file_hash
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import fill_folder

TRIES, PAUSE, TIMEOUT = 5, 2.0, 60.0  # attempts without a new byte; seconds
CHUNK = 1 << 20
TORCHVISION = ("mnist", "cifar10")


def download(name: str, folder: str | Path, progress: bool = False) -> Path:
    """Fetch and unpack a data set, or unpack the archive that somebody put into `folder`.

    Args:
        name: of the catalogue.
        folder: where archives are kept and unpacked.

    Returns:
        `folder`, ready for `prepare`.

    Raises:
        InctrlError: no direct address (the message says what to fetch by hand), no connection, or a file
            that is damaged, cut short or another one. Nothing half-written remains.
    """
    info, folder = find_dataset(name), Path(folder)
    archives = sorted(path for path in folder.glob("*") if is_archive(path))
    fetched = None
    if not archives and name in TORCHVISION:
        if not (folder / name).exists():
            fill_folder(folder / name, lambda temporary: _from_torchvision(info, folder, temporary, progress))
    elif not archives and info.url is not None:
        fetched = _fetch(info, folder, progress)
        archives = [fetched]
    elif not archives:
        raise InctrlError(f"{info.title} has no direct address.\n{instructions(info, folder)}")
    for archive in archives:
        target = folder / archive.name.partition(".")[0]
        if target.exists():
            continue
        if archive.name == info.archive and info.sha256 and file_hash(archive) != info.sha256:
            raise InctrlError(
                f"{archive} is not the file it should be, or not all of it (its SHA-256 is another): remove "
                "it, and fetch it again"
            )
        try:
            unpack(archive, target)
        except InctrlError:
            if archive == fetched:
                archive.unlink()  # without a checksum, only now it turned out to be no use
            raise
    return folder


def instructions(info: DatasetInfo, folder: str | Path) -> str:
    """What to fetch by hand, under which licence, and where to put it."""
    archive = info.archive or "the archive"
    return "\n".join(
        (
            f"1. Open {info.home} and read the licence ({info.licence}).",
            f"2. {info.by_hand}",
            f"3. Put {archive} into {folder} and say 'inctrl-lite data download {info.name}' again: it is "
            "unpacked there. Or unpack it there yourself:",
            f"   {info.layout}",
            f"4. inctrl-lite data prepare {info.name}",
        )
    )


def _fetch(info: DatasetInfo, folder: Path, progress: bool) -> Path:
    """The archive of a data set with a direct address, its checksum compared where one is known."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    known = f"sha256:{info.sha256}" if info.sha256 else None
    try:
        return Path(
            pooch.retrieve(
                info.url, known, info.archive, folder, downloader=_Downloader(info.title, progress)
            )
        )
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _not_fetched(info, str(info.url), error, folder) from error


def _not_fetched(info: DatasetInfo, source: str, error: Exception, folder: Path) -> InctrlError:
    return InctrlError(
        f"{info.title} could not be fetched from {source} ({error}). Try again later, or by hand:\n"
        f"{instructions(info, folder)}"
    )


class _Downloader:
    """Downloads for pooch: a broken connection is taken up again where it broke. Pooch owns the file."""

    def __init__(self, title: str, progress: bool):
        self.title, self.progress = title, progress

    def __call__(self, url: str, output_file: str, _: object) -> None:
        path = Path(output_file)
        with tqdm(desc=self.title, unit="B", unit_scale=True, disable=not self.progress) as bar:
            tries = TRIES
            while True:
                before = path.stat().st_size if path.exists() else 0
                try:
                    return _fetch_rest(url, path, bar)
                except urllib.error.HTTPError:
                    raise  # the server's answer is clear: asking again would not help
                except (OSError, http.client.HTTPException):
                    tries = TRIES if path.exists() and path.stat().st_size > before else tries - 1
                    if tries == 0:
                        raise
                    time.sleep(PAUSE)


def _fetch_rest(url: str, path: Path, bar: tqdm) -> None:
    """Append what is missing of a file; raise OSError if the server ends early."""
    done = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the server sends all of it, asked or not
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        bar.total, bar.n = total, done
        with path.open("ab" if done else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and path.stat().st_size != total:
        raise ConnectionError(f"the connection ended after {path.stat().st_size:,} of {total:,} bytes")


def _from_torchvision(info: DatasetInfo, folder: Path, target: Path, progress: bool) -> None:
    """MNIST or CIFAR-10, with torchvision's addresses and checksums."""
    try:
        from torchvision import datasets
    except Exception as error:  # broken installations fail in many ways
        raise InctrlError(
            f"torchvision is missing or does not fit the installed torch ({error}): install the two "
            f"together, or fetch {info.title} by hand.\n{instructions(info, folder)}"
        ) from error
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[info.name]
    # torchvision always draws its progress bars.
    quiet = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())
    try:
        with quiet:
            kind(str(target), download=True)
    except Exception as error:
        raise _not_fetched(info, "torchvision's addresses", error, folder) from error
