"""Data sets whose images lie in arrays: MNIST's idx files and CIFAR-10's pickled batches."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inctrl_lite.data.catalogue import CATALOGUE
from inctrl_lite.data.sources.sample import Sample, Source, holds
from inctrl_lite.errors import InctrlError

IMAGES, LABELS = 0x0803, 0x0801  # magic numbers of idx files: bytes in three dimensions, in one
MOST = 60_000 * 28 * 28  # bytes of the largest of MNIST's files


def _read_idx(path: Path, magic: int) -> np.ndarray:
    """A gzipped idx file as uint8 [N, 28, 28] (images) or [N] (labels)."""
    dimensions = magic & 0xFF
    try:
        with gzip.open(path) as file:
            head = np.frombuffer(file.read(4 + 4 * dimensions), ">u4").astype(int)
            shape = tuple(head[1:].tolist())
            if len(head) != 1 + dimensions or head[0] != magic or np.prod(shape) > MOST:
                raise InctrlError(f"{path} is not a file of MNIST: fetch it again")
            values = np.frombuffer(file.read(int(np.prod(shape)) + 1), np.uint8)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, InctrlError):
            raise
        raise InctrlError(f"{path} is damaged or cut short ({error}): fetch it again") from error
    if values.size != np.prod(shape):
        raise InctrlError(f"{path} should hold {np.prod(shape)} values and does not: fetch it again")
    return values.reshape(shape)


def _mnist(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = f"{prefix}-images-idx3-ubyte.gz"
        images = _read_idx(root / source, IMAGES)
        labels = _read_idx(root / f"{prefix}-labels-idx1-ubyte.gz", LABELS)
        yield from _classes(images, labels, categories, split, [source] * len(images))


def _classes(images, labels, categories, split: str, sources: list[str]) -> Iterator[Sample]:
    if len(images) != len(labels) or max(labels, default=0) >= len(categories):
        raise InctrlError(f"{sources[0]}: images and labels do not belong together. Fetch the data set again")
    for number, (image, label, source) in enumerate(zip(images, labels, sources, strict=True)):
        yield Sample(image, f"{split}/{number:05}", categories[label], 0, split, source=source)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, strings and numpy arrays, and nothing that runs code."""

    def find_class(self, module: str, name: str):
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
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        batches = [(name, *_read_batch(root / name)) for name in names]
        images = np.concatenate([images for _, images, _ in batches])
        labels = [label for _, _, labels in batches for label in labels]
        sources = [name for name, images, _ in batches for _ in images]
        yield from _classes(images, labels, categories, split, sources)


SOURCES = {
    "mnist": Source(
        holds(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        "the four files {train,t10k}-{images-idx3,labels-idx1}-ubyte.gz",
        _mnist,
    ),
    "cifar10": Source(
        holds(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        "data_batch_1 ... data_batch_5 and test_batch",
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
