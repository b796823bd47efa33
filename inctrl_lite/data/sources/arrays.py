"""Data sets whose images lie in arrays: MNIST's idx files and CIFAR-10's pickled batches."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import struct
import zlib
from collections.abc import Iterator, Sequence
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
            head, body = file.read(4 + 4 * dimensions), file.read(MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InctrlError(f"{path} is damaged or cut short ({error}): fetch it again") from error
    if len(head) != 4 + 4 * dimensions or head[:4] != struct.pack(">I", magic):
        raise InctrlError(f"{path} is not the file of MNIST that it is called: fetch it again")
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if len(body) != math.prod(shape):
        raise InctrlError(f"{path} should hold {math.prod(shape)} values and does not: fetch it again")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _mnist(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        source = f"{prefix}-images-idx3-ubyte.gz"
        images = _read_idx(root / source, IMAGES)
        labels = _read_idx(root / f"{prefix}-labels-idx1-ubyte.gz", LABELS).tolist()
        yield from _classes(images, labels, categories, split, [source] * len(images))


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
