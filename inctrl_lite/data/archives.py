"""Archives from elsewhere, unpacked without trusting them."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from inctrl_lite.data.manifest import is_inside
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import fill_folder

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz")

# Images hardly shrink. What unpacks to many times its own size, or to millions of files, is no image archive
# but an attempt to fill the disk.
MAX_RATIO, FREE_BYTES, MAX_FILES = 50, 200_000_000, 500_000

MAX_HEADER = 1_000_000  # bytes of a name or of other facts about one file in a tar archive

DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,  # numbers and names that are none
    OverflowError,
    MemoryError,
)


class _Member(tarfile.TarInfo):
    """A member of a tar archive. Long names and other facts are read into memory, hence the limit."""

    LONG = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *tarfile.GNU_TYPES)

    def _proc_member(self, tape: tarfile.TarFile) -> tarfile.TarInfo:  # offered for overriding
        if self.type in self.LONG and self.type != tarfile.GNUTYPE_SPARSE and self.size > MAX_HEADER:
            raise InctrlError(
                f"{os.fsdecode(tape.name or '')} is refused: the name or another fact about a file in it has "
                f"{self.size:,} bytes. Fetch it again from its home page"
            )
        return super()._proc_member(tape)  # type: ignore[misc]  # private, meant for overriding


def is_archive(path: Path) -> bool:
    """Whether the name of a file says that it can be unpacked here."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


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
    except InctrlError:  # refused above
        raise
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
            tape = stack.enter_context(tarfile.open(archive, tarinfo=_Member))
            for entry in tape:
                if not (entry.isreg() or entry.isdir()):
                    raise InctrlError(f"{archive} is refused: {entry.name!r} is neither a file nor a folder")
                if entry.isreg() and (content := tape.extractfile(entry)):
                    yield entry.name, entry.size, content
            while tape.fileobj and tape.fileobj.read(
                1 << 20
            ):  # a compressed file's checksum comes at its end
                pass
