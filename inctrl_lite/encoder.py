"""From images to features: reading, preprocessing, batches, threads and precision in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from inctrl_lite.augment import SUPPORT_AUGMENTATIONS, augment_support
from inctrl_lite.backbones.base import Backbone, ImageFeatures
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image

THREADS = min(8, os.cpu_count() or 1)
BATCH_SIZE = 32

T = TypeVar("T")


class Encoder:
    """A backbone with everything around it: pictures in, float32 features on its device out.

    Args:
        backbone: what encodes.
        batch_size: images that pass through it at a time. It changes no feature by more than rounding.
    """

    def __init__(self, backbone: Backbone, batch_size: int = BATCH_SIZE):
        self.backbone, self.batch_size = backbone, batch_size

    def prepare(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "B 3 H W"]:
        """Inputs of the backbone, on its device."""
        return torch.stack(in_threads(self.backbone.preprocessor, pictures)).to(self.backbone.device)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        """Features of prepared images."""
        # no_grad and not inference_mode, under which autocast converts the weights for every operation
        device = self.backbone.device
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device)):
            parts = [self.backbone.encode_images(part) for part in images.split(self.batch_size)]
        return ImageFeatures.cat(parts).to(torch.float32)

    def encode_augmented(
        self, images: Float[Tensor, "B 3 H W"], count: int = len(SUPPORT_AUGMENTATIONS)
    ) -> ImageFeatures:
        """Features of `count` augmented copies of prepared images: tensors [B, A, ...]."""
        copies = augment_support(images, self.backbone.map_grid, count)  # [B, A, 3, H, W]
        features = self.encode(copies.flatten(0, 1))
        return features.map(lambda tensor: tensor.unflatten(0, (len(images), count)))

    def encode_items(self, items: Sequence[Item]) -> ImageFeatures:
        """Read and encode images, `batch_size` in memory at a time.

        Raises:
            InctrlError: an image cannot be read (named).
        """
        batches = batched(items, self.batch_size)
        return ImageFeatures.cat([self.encode(self.read(batch)) for batch in batches])

    def encode_augmented_items(self, items: Sequence[Item]) -> ImageFeatures:
        """Like `encode_items`, of all augmented copies of each image: tensors [B, A, ...]."""
        batches = batched(items, self.batch_size)
        return ImageFeatures.cat([self.encode_augmented(self.read(batch)) for batch in batches])

    def read(self, items: Sequence[Item]) -> Float[Tensor, "B 3 H W"]:
        """Images as the backbone takes them. Decoding and preprocessing run in several threads."""

        def prepare(item: Item) -> Tensor:
            return self.backbone.preprocessor(load_image(item.image))

        return torch.stack(in_threads(prepare, items)).to(self.backbone.device)


def uses_bfloat16(device: torch.device) -> bool:
    """Whether images are encoded in bfloat16 there: on CUDA only, where it is fast."""
    return device.type == "cuda"


def in_threads(function: Callable[[Any], T], values: Sequence[Any]) -> list[T]:
    """`function` of every value, in order, computed in several threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, values))


def batched(values: Sequence[T] | Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` successive values."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch
