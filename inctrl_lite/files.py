"""Files appear whole or not at all, what is read back is checked, and one run at a time writes a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path

from inctrl_lite.errors import InctrlError

# What to do about the errors of a file system that a user can mend.
REMEDIES = {
    errno.ENOSPC: "The disk is full: make space, then run the command again",
    errno.EDQUOT: "Your share of the disk is full: make space, then run the command again",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.EROFS: "Choose a folder that is writable",
    errno.EACCES: "Choose a folder that is writable",
}


def check_writable(folder: str | Path) -> None:
    """Learn before a long computation, not after it, that its results could not be written. Makes nothing.

    Raises:
        InctrlError: `folder` is a file or below one, or the user may not write there.
    """
    folder = Path(folder).absolute()
    # os.path.exists is False where Path.exists raises: below a folder that the user may not enter
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not nearest.is_dir():
        raise InctrlError(f"cannot write to {folder}: {nearest} is a file. Choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InctrlError(f"cannot write to {folder}: {nearest} is read-only. Choose another folder")


# --- whole files -------------------------------------------------------------------------------------


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    A process that is killed leaves its temporary file behind; the next process that writes into the folder
    removes it.

    Raises:
        InctrlError: the folder cannot be made or written, or the disk is full; nothing is left behind, and an
            older file at `path` is as it was.
    """
    with _in_place(Path(path)) as temporary:
        write(temporary)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file, whole. Bytes of a file's name that are no UTF-8 are spelled out."""
    data = text.encode("utf-8", errors="backslashreplace")
    return write_whole(path, lambda temporary: temporary.write_bytes(data))


def fill_folder(path: str | Path, fill: Callable[[Path], object]) -> Path:
    """Let `fill` work in a temporary folder beside `path`, then put it in place in one step.

    Raises:
        InctrlError: the folder cannot be made or written, or the disk is full; nothing is left behind.
    """
    with _in_place(Path(path)) as temporary:
        temporary.mkdir()
        fill(temporary)
    return Path(path)


@contextlib.contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or a folder to; it becomes `path`, or it is removed."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_orphans_once(path.parent.absolute(), os.getpid())
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # does nothing to a file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> InctrlError:
    remedy = REMEDIES.get(error.errno or 0, "Choose a folder that is writable and has space")
    return InctrlError(f"cannot write {path}: {error.strerror or error}. {remedy}")


def remove_orphans(folder: str | Path) -> list[Path]:
    """Remove temporary files and folders whose process has ended, and return where they were.

    Files of running processes and of other machines that share the folder are left alone.
    """
    import psutil

    found = []
    for path in Path(folder).glob(".*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["machine"] == _machine() and not psutil.pid_exists(int(match["process"])):
            with contextlib.suppress(OSError):  # another process may have been faster
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                found.append(path)
    return found


_TEMPORARY = re.compile(r"\..*-(?P<process>\d{1,9})-(?P<machine>[0-9a-f]{4})[0-9a-f]{8}(\..*)?", re.DOTALL)


def _temporary(path: Path) -> Path:
    """A hidden name beside `path` that nobody else uses, never longer than a file system allows."""
    unique = f"{os.getpid()}-{_machine()}{secrets.token_hex(4)}"
    return path.with_name(f".{path.stem[:40]}-{unique}{path.suffix[:20]}")


@cache
def _machine() -> str:
    """Four hexadecimal digits of this machine's name; a process number is known on its own machine only."""
    return blake2b(platform.node().encode(), digest_size=2).hexdigest()


@cache
def _remove_orphans_once(folder: Path, process: int) -> None:
    """Once a folder and process: listing a large folder before every file would be slow."""
    remove_orphans(folder)


# --- files that are read back ------------------------------------------------------------------------

_MARK = b"\n# blake2b "  # a last line with the checksum of all that stands before it
_DIGITS = 32


def write_checked(path: str | Path, data: bytes) -> Path:
    """Write bytes, whole, with a last line that holds their checksum. `read_checked` reads them.

    Raises:
        InctrlError: as `write_whole`.
    """
    entry = data + _MARK + _checksum(data) + b"\n"
    return write_whole(path, lambda temporary: temporary.write_bytes(entry))


def read_checked(path: str | Path) -> bytes | None:
    """What `write_checked` wrote; None where the file is missing or damaged, so that it is made again.

    A damaged file (shortened, changed, or written by something else) is named in a warning.

    Raises:
        InctrlError: the file is there and cannot be read.
    """
    try:
        entry = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InctrlError(f"cannot read {path}: {error.strerror or error}") from error
    size = len(entry) - len(_MARK) - _DIGITS - 1
    if size >= 0 and entry[size:] == _MARK + _checksum(entry[:size]) + b"\n":
        return entry[:size]
    warnings.warn(f"{path} is damaged (its checksum is wrong) and will be made again", stacklevel=2)
    return None


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGITS // 2).hexdigest().encode()


# --- one run at a time -------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: str | Path, wait: float = 0.0, name: str = "") -> Iterator[None]:
    """Hold a folder for this process while the block runs; the folder is made if it is missing.

    The operating system frees the folder when the process ends, however it ends. Two small hidden files,
    `.lock` and `.lock-holder`, may stay behind; they lock nothing.

    Args:
        wait: seconds to wait for another process.
        name: of one file in the folder; only that is held. "": the folder.

    Raises:
        InctrlError: another process holds the folder (the message names it), or it cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    lock, holder = (folder / f".{name}{ending}" for ending in (".lock", ".lock-holder"))
    if not name:
        lock, holder = folder / ".lock", folder / ".lock-holder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=wait)
        held.acquire()
    except Timeout:
        try:
            who = holder.read_text(encoding="utf-8").strip()
        except OSError:
            who = "another process"
        raise InctrlError(
            f"{folder / name} is in use by {who}: wait until it has finished, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        raise InctrlError(f"cannot lock {folder}: {error}. Choose a folder on another disk") from error
    try:
        began = time.strftime("%Y-%m-%d %H:%M:%S")
        write_text(holder, f"process {os.getpid()} on {platform.node()}, which began at {began}\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        held.release()
