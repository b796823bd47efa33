"""Frozen features on disk: no image passes through the backbone twice.

Everything below a head is frozen, so the features of an image never change. With them on disk, a training
step costs a few milliseconds of reading instead of B x (1 + K) passes through the backbone.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite import augment, encoder
from inctrl_lite.augment import SUPPORT_AUGMENTATIONS
from inctrl_lite.backbones.base import Backbone, ImageFeatures
from inctrl_lite.data import images as images_module
from inctrl_lite.data.category import Item
from inctrl_lite.encoder import BATCH_SIZE, Encoder, batched, in_threads, uses_bfloat16
from inctrl_lite.environment import code_version
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_whole
from inctrl_lite.tensors import TensorRecord

CHECKSUM = 4  # bytes at the end of a file

R = TypeVar("R", bound=TensorRecord)


def cache_folder() -> Path:
    """Where features are kept: $INCTRL_LITE_CACHE, else inctrl_lite in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("INCTRL_LITE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inctrl_lite"


class RecordStore(Generic[R]):
    """A folder with one record of tensors for each image, filled as records are asked for.

    A file is named after the image's content; the folder's name must hold everything else that the numbers
    depend on. A file holds the numbers and a checksum, and appears whole or not at all; several processes may
    use the folder at once.

    Args:
        folder: where the files are.
        compute: images -> their records, joined along the first axis.
        template: a record of one image or more, for the shapes.
        device: where loaded tensors are put.
        dtype: stored precision.
        digests: digests of images that are known already; shared between stores.
    """

    def __init__(
        self,
        folder: Path,
        compute: Callable[[Sequence[Item]], R],
        template: R,
        device: torch.device,
        dtype: torch.dtype = torch.float16,
        digests: dict[Item, str] | None = None,
    ):
        self.folder, self.compute, self.template = folder, compute, template[:1]
        self.device, self.dtype = device, dtype
        self._digests = {} if digests is None else digests
        self._size = pack(self.template).shape[1] * dtype.itemsize

    def path(self, item: Item) -> Path:
        """The file of an image. The image's content is read once in the life of the store."""
        if item not in self._digests:
            self._digests[item] = image_digest(item)
        return self.folder / self._digests[item]

    def fill(self, items: Iterable[Item], batch_size: int = BATCH_SIZE, progress: bool = False) -> None:
        """Compute and store the records that are not there yet, in constant memory.

        Raises:
            InctrlError: an image cannot be read, or the folder cannot be written (named).
        """
        missing = list({self.path(item): item for item in items if not self.path(item).exists()}.values())
        with tqdm(
            total=len(missing), desc="encoding", unit="image", disable=not (progress and missing)
        ) as bar:
            for batch in batched(missing, batch_size):
                self._write(batch)
                bar.update(len(batch))

    def load(self, items: Sequence[Item]) -> R:
        """Records as float32; what is missing is computed first.

        A damaged file is noticed by its checksum and made again, with a warning.

        Raises:
            InctrlError: an image cannot be read, or the folder cannot be written (named).
        """
        self.fill(items)
        rows = np.empty((len(items), self._size + CHECKSUM), np.uint8)
        sound = in_threads(lambda i: _read_row(self.path(items[i]), rows[i]), range(len(items)))
        for i, fine in enumerate(sound):
            if fine:
                continue
            path = self.path(items[i])
            warnings.warn(f"damaged features of {items[i].name} ({path}): encoding again", stacklevel=2)
            self._write([items[i]])
            if not _read_row(path, rows[i]):
                raise InctrlError(f"{path} is damaged again as soon as it is written: check the disk")
        stored = torch.from_numpy(rows)[:, : self._size].to(self.device)
        return unpack(stored.view(self.dtype).to(torch.float32), self.template)

    def _write(self, items: Sequence[Item]) -> None:
        numbers = pack(self.compute(items)).to(self.dtype).cpu()
        for item, row, finite in zip(items, numbers, numbers.isfinite().all(1).tolist(), strict=True):
            if not finite:
                raise InctrlError(
                    f"features of {item.name} are not finite in {self.dtype}. If the backbone's weights are "
                    "sound, the numbers are too large for it: choose FeatureStore(..., dtype=torch.float32)"
                )
            data = row.view(torch.uint8).numpy().tobytes()
            entry = data + zlib.crc32(data).to_bytes(CHECKSUM, "little")
            write_whole(self.path(item), partial(Path.write_bytes, data=entry))


class FeatureStore:
    """The features of images on disk, and those of their augmented copies.

    Args:
        backbone: what encodes.
        folder: where to keep the files; None: `cache_folder()`.
        dtype: stored precision. float16 halves the size (tiny backbone 0.2 MB an image, ViT-B/16+ at 240
            pixels 1.3 MB) and moves a cosine by less than 0.001.

    Attributes:
        folder: the sub-folder for this backbone, code and precision.
        fingerprint: digest of the backbone.
    """

    def __init__(
        self, backbone: Backbone, folder: str | Path | None = None, dtype: torch.dtype = torch.float16
    ):
        self.backbone, self.encoder, self.dtype = backbone, Encoder(backbone), dtype
        self.root = cache_folder() if folder is None else Path(folder)
        self.fingerprint = backbone.fingerprint
        code = code_version(encoder.__name__, images_module.__name__, __name__)
        name = re.sub(r"\W+", "-", Path(backbone.name).name).strip("-")
        computed = "bfloat16" if uses_bfloat16(backbone.device) else "float32"
        stored = str(dtype).removeprefix("torch.")
        self.folder = self.root / f"{name}-{self.fingerprint}" / f"{computed}-{stored}-{code}"
        self.digests: dict[Item, str] = {}
        blank = torch.zeros(1, 3, *backbone.preprocessor.size, device=backbone.device)
        template = self.encoder.encode(blank)
        self.features = self.part("features", self.encoder.encode_items, template)
        copies = template.map(
            lambda tensor: tensor[:, None].expand(-1, len(SUPPORT_AUGMENTATIONS), *tensor.shape[1:])
        )
        key = f"augmented-{_digest(SUPPORT_AUGMENTATIONS)}-{code_version(augment.__name__)}"
        self.augmented = self.part(key, self.encoder.encode_augmented_items, copies)

    def part(self, name: str, compute: Callable[[Sequence[Item]], R], template: R) -> RecordStore[R]:
        """A store for something else that is computed of each image with this backbone.

        Args:
            name: of its folder; it must hold all that the numbers depend on beside the backbone.
            compute, template: see `RecordStore`.
        """
        folder = self.folder / name
        return RecordStore(folder, compute, template, self.backbone.device, self.dtype, self.digests)

    def encode(self, items: Iterable[Item], batch_size: int = BATCH_SIZE, progress: bool = True) -> None:
        """Encode and store the images that are not there yet (see `RecordStore.fill`)."""
        self.features.fill(items, batch_size, progress)

    def load(self, items: Sequence[Item]) -> ImageFeatures:
        """Features of images (see `RecordStore.load`)."""
        return self.features.load(items)

    def load_augmented(self, items: Sequence[Item]) -> ImageFeatures:
        """Features of the augmented copies of each image, tensors [B, A, ...] (see `RecordStore.load`)."""
        return self.augmented.load(items)

    def path(self, item: Item) -> Path:
        """The file with an image's features."""
        return self.features.path(item)


def pack(record: TensorRecord) -> Tensor:
    """All tensors of a record as one row of numbers for each element of the batch [B, n]."""
    return torch.cat([tensor.flatten(1) for tensor in record.tensors()], dim=1)


def unpack(rows: Tensor, template: R) -> R:
    """The record of packed rows, with the shapes of `template`."""
    sizes = [tensor[0].numel() for tensor in template.tensors()]
    parts: Iterator[Tensor] = iter(rows.split(sizes, dim=1))
    return template.map(lambda tensor: next(parts).reshape(len(rows), *tensor.shape[1:]))


def _digest(value: object) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=4).hexdigest()


def _read_row(path: Path, row: UInt8[np.ndarray, " n"]) -> bool:
    """Read a file into `row`; False if it is missing, of another size, or its checksum is wrong."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    if len(data) != row.size or zlib.crc32(data[:-CHECKSUM]) != int.from_bytes(data[-CHECKSUM:], "little"):
        return False
    row[:] = np.frombuffer(data, np.uint8)
    return True


def image_digest(item: Item) -> str:
    """Digest of an image file's bytes, or of an array's shape and values.

    Raises:
        InctrlError: the file cannot be read.
    """
    if isinstance(item.image, np.ndarray):
        head = repr((item.image.shape, str(item.image.dtype))).encode()
        body = np.ascontiguousarray(item.image).tobytes()
    else:
        try:
            head, body = b"file", Path(item.image).read_bytes()
        except OSError as error:
            raise InctrlError(f"cannot read image {item.image}: {error.strerror or error}") from error
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(body)
    return digest.hexdigest()
