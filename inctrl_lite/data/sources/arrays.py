"""MNIST and CIFAR-10: arrays as their authors offer them (idx files, pickled batches), or PNG folders."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inctrl_lite.data.catalogue import CATALOGUE
from inctrl_lite.data.images import find_images
from inctrl_lite.data.sources.sample import Sample, Source, holds
from inctrl_lite.errors import InctrlError

BATCHES = holds(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")  # of CIFAR-10
IMAGES, LABELS = 0x0803, 0x0801  # magic numbers of idx files: bytes in three dimensions, in one
MOST = 60_000 * 28 * 28  # bytes of the largest of MNIST's files


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """An idx file, gzipped or not, as uint8 [N, 28, 28] (images) or [N] (labels)."""
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head, body = file.read(4 + 4 * dimensions), file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InctrlError(f"{path} is damaged or cut short ({error}): fetch it again") from error
    if len(head) != 4 + 4 * dimensions or head[:4] != struct.pack(">I", magic):
        raise InctrlError(f"{path} is not the file of MNIST that it is called: fetch it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if len(body) != math.prod(shape):
        raise InctrlError(f"{path} should hold {math.prod(shape)} values and does not: fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _idx_files(root: Path, prefix: str) -> list[Path]:
    """Images and labels of a split, gzipped or not, as MNIST's home page or (with dots) Kaggle has them."""
    found = []
    for kind in ("images{}idx3-ubyte", "labels{}idx1-ubyte"):
        names = [f"{prefix}-{kind.format(mark)}{end}" for mark in "-." for end in (".gz", "")]
        found += [root / name for name in names if (root / name).is_file()][:1]
    return found


def _has_idx(root: Path) -> bool:
    return all(len(_idx_files(root, prefix)) == 2 for prefix in ("train", "t10k"))


def _mnist(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    if not _has_idx(root):
        yield from _class_folders(root, categories)
        return
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_file, labels_file = _idx_files(root, prefix)
        images, labels = _read_idx(images_file, IMAGES), _read_idx(labels_file, LABELS).tolist()
        yield from _classes(images, labels, categories, split, [images_file.name] * len(images))


def _find_splits(root: Path, categories: Sequence[str]) -> dict[str, Path]:
    """Split -> folder that holds a folder for some of the classes (train/airplane, training/0)."""
    found = {}
    for split, names in (("train", ("train", "training")), ("test", ("test", "testing"))):
        for folder in (root / name for name in names):
            if any((folder / category).is_dir() for category in categories):
                found[split] = folder
    return found


def _class_folders(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    """Folders of PNG files, one for each split and class; the files are used where they lie."""
    for split, folder in _find_splits(root, categories).items():
        for category in categories:
            for path in find_images(folder / category):
                yield Sample(path, path.relative_to(root).as_posix(), category, 0, split)


def _classes(
    images: np.ndarray, labels: Sequence[int], categories: tuple[str, ...], split: str, sources: list[str]
) -> Iterator[Sample]:
    """Samples of images [N, ...] with their class labels [N] and the files they come from."""
    if len(images) != len(labels) or max(labels, default=0) >= len(categories):
        raise InctrlError(f"{split} images and labels do not belong together: fetch the data set again")
    for number, (image, label, source) in enumerate(zip(images, labels, sources, strict=True)):
        yield Sample(image, f"{split}/{number:05}", categories[label], 0, split, source=source)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, strings and numpy arrays, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.empty(0).__reduce__()[0]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR-10's files do not need")


def _read_batch(path: Path) -> tuple[np.ndarray, list[int]]:
    """A batch of CIFAR-10, python version: images uint8 [N, 32, 32, 3] and labels."""
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        data, labels = batch["data"], batch["labels"]
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if images.dtype != np.uint8 or not all(type(label) is int and 0 <= label < 10 for label in labels):
            raise ValueError("images should be bytes, labels numbers from 0 to 9")
    except Exception as error:  # a hostile pickle fails in ways of its own
        raise InctrlError(
            f"{path} is refused: it is not a batch of CIFAR-10 ({error}). Fetch it again"
        ) from error
    return images, labels


def _cifar10(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    if not BATCHES(root):
        yield from _class_folders(root, categories)
        return
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        batches = [(name, *_read_batch(root / name)) for name in names]
        images = np.concatenate([images for _, images, _ in batches])
        labels = [label for _, _, labels in batches for label in labels]
        sources = [name for name, images, _ in batches for _ in images]
        yield from _classes(images, labels, categories, split, sources)


def _has_class_folders(name: str) -> Callable[[Path], bool]:
    return lambda root: len(_find_splits(root, CATALOGUE[name].categories)) == 2


SOURCES = {
    "mnist": Source(
        lambda root: _has_idx(root) or _has_class_folders("mnist")(root),
        "the four files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, or training/0 ... testing/9",
        _mnist,
    ),
    "cifar10": Source(
        lambda root: BATCHES(root) or _has_class_folders("cifar10")(root),
        "data_batch_1 ... data_batch_5 and test_batch, or train/airplane ... test/truck",
        _cifar10,
    ),
}
# Which classes are normal when several are normal at once, and what a text prompt calls them.
SEVERAL = {
    "mnist": ("even digit", frozenset("02468")),
    "cifar10": (
        "animal",
        frozenset(CATALOGUE["cifar10"].categories) - {"airplane", "automobile", "ship", "truck"},
    ),
}
