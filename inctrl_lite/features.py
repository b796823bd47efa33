"""Frozen features on disk: no image passes through the backbone twice.

Everything below the adapter is frozen and there is no augmentation, so what the backbone says of an image
never changes. With it stored, a training step costs a few milliseconds of reading instead of
B x (1 + K) passes through the image tower.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from inctrl_lite.backbone import PLACE, VIEWS, Backbone, ImageFeatures, places_shape
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_whole

THREADS = min(8, os.cpu_count() or 1)
CHECKSUM = 4  # bytes


def cache_folder() -> Path:
    """Where features are kept: $INCTRL_LITE_CACHE, else inctrl_lite in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("INCTRL_LITE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inctrl_lite"


def uses_bfloat16(device: torch.device) -> bool:
    """Whether images are encoded in bfloat16 there: on CUDA only, where it is fast."""
    return device.type == "cuda"


def encode_items(backbone: Backbone, items: Sequence[Item]) -> ImageFeatures:
    """Read, transform and encode images in one batch: float32 features on the backbone's device.

    Raises:
        InctrlError: an image cannot be read (named).
    """
    return _encode(backbone, backbone.encode_image, items).to(torch.float32)


def encode_views(backbone: Backbone, items: Sequence[Item]) -> ImageFeatures:
    """Like `encode_items`, of more views of each image (`Backbone.encode_views`)."""
    return _encode(backbone, backbone.encode_views, items).to(torch.float32)


@torch.no_grad()  # not inference_mode, under which autocast converts the weights again for every operation
def _encode(
    backbone: Backbone, encode: Callable[[Tensor], ImageFeatures], items: Sequence[Item]
) -> ImageFeatures:
    def prepare(item: Item) -> Tensor:
        return backbone.transform(load_image(item.image))

    with ThreadPoolExecutor(THREADS) as pool:
        images = torch.stack(list(pool.map(prepare, items))).to(backbone.device)
    with torch.autocast(backbone.device.type, torch.bfloat16, enabled=uses_bfloat16(backbone.device)):
        return encode(images)


class FeatureStore:
    """A folder with the features of images, one file each, filled as they are asked for.

    A file is named after the image's content, in a sub-folder named after everything else that the numbers
    depend on (weights, taps, transform, precision): a changed image or backbone finds nothing stale. It
    holds the numbers and a checksum, and appears whole; several processes may use the folder at once.

    Args:
        backbone: what encodes.
        folder: where to keep the files; None: `cache_folder()`.
        dtype: stored precision. float16 halves the size (tiny backbone 0.19 MB an image, ViT-B/16+ at 240
            pixels 1.3 MB) and moves a cosine by less than 0.001.
    """

    def __init__(
        self, backbone: Backbone, folder: str | Path | None = None, dtype: torch.dtype = torch.float16
    ):
        self.backbone = backbone
        self.root = cache_folder() if folder is None else Path(folder)
        self.dtype = dtype
        self.fingerprint = backbone_fingerprint(backbone)
        self._digests: dict[Item, str] = {}
        self._shapes = (
            (backbone.embed_dim,),
            (len(backbone.taps), backbone.num_patches, backbone.width),
            (math.prod(places_shape(backbone.grid)), backbone.width),
        )
        self._numbers = sum(map(math.prod, self._shapes))

    @property
    def folder(self) -> Path:
        """The sub-folder for this backbone and precision."""
        name = re.sub(r"\W+", "-", Path(self.backbone.name).name).strip("-")
        computed = "bfloat16" if uses_bfloat16(self.backbone.device) else "float32"
        stored = str(self.dtype).removeprefix("torch.")
        return self.root / f"{name}-{self.fingerprint}" / f"{computed}-{stored}"

    def path(self, item: Item) -> Path:
        """The file for an image. Its content is read once in the life of the store."""
        if item not in self._digests:
            self._digests[item] = image_digest(item)
        return self.folder / self._digests[item]

    def encode(self, items: Iterable[Item], batch_size: int = 32, progress: bool = True) -> None:
        """Encode and store the images that are not there yet, in constant memory.

        Raises:
            InctrlError: an image cannot be read, or the folder cannot be written (named).
        """
        missing = list({self.path(item): item for item in items if not self.path(item).exists()}.values())
        with tqdm(
            total=len(missing), desc="encoding", unit="image", disable=not (progress and missing)
        ) as bar:
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                self._write(batch, self._compute(batch))
                bar.update(len(batch))

    def load(self, items: Sequence[Item]) -> ImageFeatures:
        """Features of images, as float32 on the backbone's device; what is missing is encoded first.

        A damaged file is noticed by its checksum and made again, with a warning.

        Raises:
            InctrlError: an image cannot be read, or the folder cannot be written (named).
        """
        return self._unpack(self._read(items))

    def _unpack(self, numbers: Tensor) -> ImageFeatures:
        parts = numbers.split([math.prod(shape) for shape in self._shapes], dim=1)
        parts = (part.unflatten(1, s) for part, s in zip(parts, self._shapes, strict=True))
        return ImageFeatures(*parts, self.backbone.grid)

    def _read(self, items: Sequence[Item]) -> Tensor:
        """Rows of numbers, as `_compute` made them."""
        self.encode(items, progress=False)
        size = self._numbers * self.dtype.itemsize
        rows = np.empty((len(items), size + CHECKSUM), np.uint8)
        with ThreadPoolExecutor(THREADS) as pool:
            good = list(pool.map(_read_row, map(self.path, items), rows))
        for item, row in (
            pair for pair, fine in zip(zip(items, rows, strict=True), good, strict=True) if not fine
        ):
            warnings.warn(
                f"damaged features of {item.name} ({self.path(item)}): encoding again", stacklevel=2
            )
            self._write([item], self._compute([item]))
            if not _read_row(self.path(item), row):
                raise InctrlError(
                    f"{self.path(item)} is damaged again as soon as it is written: check the disk"
                )
        stored = torch.from_numpy(rows)[:, :size].to(self.backbone.device)
        return stored.view(self.dtype).to(torch.float32)

    def _compute(self, items: Sequence[Item]) -> Tensor:
        """What is stored of images, one row of numbers each."""
        return _pack(encode_items(self.backbone, items))

    def _write(self, items: Sequence[Item], numbers: Tensor) -> None:
        numbers = numbers.to(self.dtype).cpu()
        finite = numbers.isfinite().all(1).tolist()
        for item, row, good in zip(items, numbers, finite, strict=True):
            if not good:
                raise InctrlError(
                    f"features of {item.name} are not finite in {self.dtype}. If the backbone's weights are "
                    "sound, the numbers are too large for it: choose FeatureStore(..., dtype=torch.float32)"
                )
            data = row.view(torch.uint8).numpy().tobytes()
            checksum = zlib.crc32(data).to_bytes(CHECKSUM, "little")
            write_whole(
                self.path(item), lambda temporary, entry=data + checksum: temporary.write_bytes(entry)
            )


class ViewStore(FeatureStore):
    """Features of more views of normal prompts on disk, one file an image, beside those of a store."""

    def __init__(self, beside: FeatureStore):
        super().__init__(beside.backbone, beside.root, beside.dtype)
        self._numbers *= len(VIEWS)

    @property
    def folder(self) -> Path:
        digest = hashlib.blake2b(repr(VIEWS).encode(), digest_size=4).hexdigest()
        return super().folder.with_name(f"{super().folder.name}-views-{digest}")

    def load(self, items: Sequence[Item]) -> ImageFeatures:
        """Features as `encode_views` gives them; what is missing is computed first."""
        return self._unpack(self._read(items).unflatten(1, (len(VIEWS), -1)).flatten(0, 1))

    def _compute(self, items: Sequence[Item]) -> Tensor:
        return _pack(encode_views(self.backbone, items)).unflatten(0, (len(items), -1)).flatten(1)


def _pack(features: ImageFeatures) -> Tensor:
    """One row of numbers an image."""
    parts = (features.cls, features.patches, features.places)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _read_row(path: Path, row: np.ndarray) -> bool:
    """Read a file into `row`; False if it is missing, of another size, or its checksum is wrong."""
    try:
        with path.open("rb", buffering=0) as file:
            if file.readinto(row) != row.size or file.read(1):
                return False
    except FileNotFoundError:
        return False
    return zlib.crc32(row[:-CHECKSUM]) == int.from_bytes(row[-CHECKSUM:].tobytes(), "little")


def image_digest(item: Item) -> str:
    """Digest of an image file's bytes, or of an array's shape and values.

    Raises:
        InctrlError: the file cannot be read.
    """
    if isinstance(item.image, np.ndarray):
        head, body = (
            repr((item.image.shape, str(item.image.dtype))).encode(),
            np.ascontiguousarray(item.image),
        )
    else:
        try:
            head, body = b"file", Path(item.image).read_bytes()
        except OSError as error:
            raise InctrlError(f"cannot read image {item.image}: {error.strerror or error}") from error
    digest = hashlib.blake2b(head, digest_size=16)
    digest.update(body)
    return digest.hexdigest()


def backbone_fingerprint(backbone: Backbone) -> str:
    """Digest of all that image features depend on: the image tower and its weights, the taps, the transform.

    The transform is known by what it does to a test picture.
    """
    visual = backbone.visual
    settings = [backbone.taps, PLACE, *(f"{type(m).__name__} {_plain_settings(m)}" for m in visual.modules())]
    ramp = np.add.outer(np.arange(97) * 5, np.arange(131) * 3)
    picture = Image.fromarray(np.stack([ramp, ramp * 2, ramp * 7], axis=-1).astype(np.uint8))
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for tensor in (*visual.state_dict().values(), backbone.transform(picture)):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _plain_settings(module: nn.Module) -> dict[str, Any]:
    """What a module does beside its weights: numbers of heads, epsilons, kinds of pooling."""
    plain = bool | int | float | str | tuple
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_")}
