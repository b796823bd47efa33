"""What the readers of the official layouts have in common."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inctrl_lite.errors import InctrlError


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a data set as downloaded.

    Attributes:
        image, mask: a file of the data set, or pixels that were cut from one or unpacked.
        name: unique in its data set; the PNG of pixels is called so, and normals are sorted by it.
        category, label, defect: as in `Item`; in one-against-all sets the category is the class.
        split: "train", "test", or "" where the data set does not say.
        source, crop: the file that pixels come from, and the part of it ("left,top,right,bottom").
    """

    image: Path | np.ndarray
    name: str
    category: str
    label: int
    split: str = ""
    defect: str = "good"
    mask: Path | np.ndarray | None = None
    source: str = ""
    crop: str = ""


@dataclass(frozen=True)
class Source:
    """How to read one data set.

    Attributes:
        is_root: whether a folder is the top of the data set.
        expected: what that looks like, in words.
        read: its samples, given the top folder and the categories wanted.
    """

    is_root: Callable[[Path], bool]
    expected: str
    read: Callable[[Path, tuple[str, ...]], Iterator[Sample]]


def holds(*names: str) -> Callable[[Path], bool]:
    """A test whether a folder holds all these files and folders."""
    return lambda folder: all(os.path.exists(folder / name) for name in names)


def warn_of_strangers(root: Path, strangers: Iterable[str]) -> None:
    """Say which folders were left out because the data set has no such thing."""
    if names := sorted(strangers):
        warnings.warn(
            f"{root} holds folders that are no part of the data set and are left out ({len(names)}): "
            f"{', '.join(names[:6])}",
            stacklevel=2,
        )


def folders(root: Path) -> list[str]:
    """Names of the visible folders in a folder, sorted.

    Raises:
        InctrlError: the folder may not be opened.
    """
    try:
        return sorted(f.name for f in root.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))
    except OSError as error:
        raise InctrlError(f"{root} may not be opened: {error.strerror or error}") from error


def require(root: Path, files: Iterable[str], listed_in: str) -> None:
    """Refuse a data set some of whose listed files are missing."""
    if missing := [file for file in files if not os.path.isfile(root / file)]:
        raise InctrlError(
            f"{len(missing)} files that {root / listed_in} lists are not there, first {missing[0]}: the "
            "download is not complete. Fetch it again"
        )
