"""Archives from elsewhere, unpacked without trusting them; folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import secrets
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from inctrl_lite.data.manifest import is_inside
from inctrl_lite.errors import InctrlError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")

# Images hardly shrink. What unpacks to many times its own size, or to millions of files, is no image archive
# but an attempt to fill the disk.
MAX_RATIO, FREE_BYTES, MAX_FILES = 50, 200_000_000, 500_000

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError)


def is_archive(path: Path) -> bool:
    """Whether the name of a file says that it can be unpacked here."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def fill_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Let `fill` work in a temporary folder beside `path`, then put it in place in one step."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InctrlError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that is writable and has space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar file into the new `folder`.

    Only plain files are written, each below `folder`, none with rights of its own.

    Raises:
        InctrlError: damaged or cut short; a path that leads out of the folder, a link or a device; far
            larger unpacked than packed. Nothing is left behind.
    """
    return fill_folder(folder, lambda temporary: _unpack(archive, temporary))


def _unpack(archive: Path, folder: Path) -> None:
    budget = max(FREE_BYTES, MAX_RATIO * archive.stat().st_size)
    try:
        for number, (name, size, member) in enumerate(_members(archive), start=1):
            budget -= size
            if budget < 0 or number > MAX_FILES:
                raise InctrlError(
                    f"{archive} is refused: it unpacks to far more than an archive of images does. Fetch it "
                    "again from its home page"
                )
            if not is_inside(name):
                raise InctrlError(f"{archive} is refused: it would write {name!r}, outside its folder")
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
    except DAMAGE as error:
        raise InctrlError(f"{archive} is damaged or cut short ({error}): fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # zip files with a password or a rare method
        raise InctrlError(f"{archive} cannot be unpacked here ({error}): unpack it by hand") from error


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """The plain files of an archive: name, size when unpacked, content."""
    with contextlib.ExitStack() as stack:
        if archive.name.lower().endswith(".zip"):
            pack = stack.enter_context(zipfile.ZipFile(archive))
            for info in pack.infolist():
                kind = info.external_attr >> 28  # the file's type, if the archive is from a Unix system
                if kind not in (0, 0o10, 0o04):
                    raise InctrlError(
                        f"{archive} is refused: {info.filename!r} is neither a file nor a folder"
                    )
                if not info.is_dir():
                    with pack.open(info) as member:
                        yield info.filename, info.file_size, member
        else:
            tape = stack.enter_context(tarfile.open(archive))
            for entry in tape:
                if not (entry.isreg() or entry.isdir()):
                    raise InctrlError(f"{archive} is refused: {entry.name!r} is neither a file nor a folder")
                if entry.isreg():
                    yield entry.name, entry.size, tape.extractfile(entry)
            while tape.fileobj.read(1 << 20):  # the checksum of a compressed file comes at its end
                pass
