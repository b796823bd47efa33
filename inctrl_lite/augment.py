"""Augmentations of the support set: each normal image shifted, rotated and scaled a little.

A small Vision Transformer sees other features when the same thing lies half a patch further. With augmented
copies of the normal images, such a difference is no anomaly. No copy is used in training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# Rotation in degrees, shift in patches to the right and down, scale. A shift by half a patch puts other
# pixels together into a patch. Kinds and order were chosen on the development sets of
# benchmarks/choose_whole.py: the first ones help most.
SUPPORT_AUGMENTATIONS = (
    (0, 0.5, 0.5, 1),
    (0, 0, 0, 1.06),
    (0, 0, 0, 0.94),
    (0, 0.5, 0, 1),
    (0, 0, 0.5, 1),
    (6, 0, 0, 1),
    (-6, 0, 0, 1),
)
# A query is compared with at most so many pictures (normal images and augmented copies), so that scoring
# takes no longer with many normal images than with four.
MAX_SUPPORT_PICTURES = 32

# Rotated copies, for parts that may lie in any direction: 11 of each normal image, and fewer where that makes
# more pictures than this.
MOST_ROTATIONS, MAX_ROTATED_PICTURES = 11, 256


def rotated_copies(picture: Image.Image, shots: int) -> list[Image.Image]:
    """A picture rotated about its centre by equal steps; corners get the mean colour of its border.

    Args:
        picture: RGB.
        shots: K; with many normal images, each has fewer copies, but at least three.
    """
    count = max(3, min(MOST_ROTATIONS, MAX_ROTATED_PICTURES // shots))
    pixels = np.asarray(picture.convert("RGB"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = border.mean(0).round().astype(int).tolist()
    return [
        picture.rotate(360 * i / (count + 1), Image.Resampling.BICUBIC, fillcolor=(red, green, blue))
        for i in range(1, count + 1)
    ]


def augmentation_count(shots: int) -> int:
    """How many augmented copies of each of K normal images are used.

    >>> [augmentation_count(shots) for shots in (1, 4, 8, 16, 32)]
    [7, 7, 3, 1, 0]
    """
    return max(0, min(len(SUPPORT_AUGMENTATIONS), MAX_SUPPORT_PICTURES // shots - 1))


def augment_support(
    images: Float[Tensor, "B 3 H W"], grid: tuple[int, int], count: int = len(SUPPORT_AUGMENTATIONS)
) -> Float[Tensor, "B A 3 H W"]:
    """`count` augmented copies of each image: the first of `SUPPORT_AUGMENTATIONS`.

    Args:
        images: the model's inputs.
        grid: rows and columns of patches, in whose units shifts are given.
        count: A.

    Outside the image, its border is repeated.
    """
    height, width = images.shape[-2:]
    found = []
    for degrees, right, down, scale in SUPPORT_AUGMENTATIONS[:count]:
        cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
        matrix = images.new_tensor(  # where a pixel of the copy comes from, in halves of the image's sides
            [
                [cos, -sin * height / width, -2 * right / grid[1]],
                [sin * width / height, cos, -2 * down / grid[0]],
            ]
        )
        positions = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        found.append(F.grid_sample(images, positions, "bicubic", "border", align_corners=False))
    return torch.stack(found, dim=1)
