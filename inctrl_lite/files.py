"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from inctrl_lite.errors import InctrlError


def check_writable(folder: str | Path) -> None:
    """Learn before a long computation, not after it, that its results could not be written. Makes nothing.

    Raises:
        InctrlError: `folder` is a file or below one, or the user may not write there.
    """
    folder = Path(folder).absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise InctrlError(f"cannot write to {folder}: {nearest} is a file. Choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InctrlError(f"cannot write to {folder}: {nearest} is read-only. Choose another folder")


def write_whole(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Raises:
        InctrlError: the folder cannot be made or written, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise InctrlError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that is writable and has space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file, whole. Bytes of a file's name that are no UTF-8 are spelled out."""
    data = text.encode("utf-8", errors="backslashreplace")
    return write_whole(path, lambda temporary: temporary.write_bytes(data))
