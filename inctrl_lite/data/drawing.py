"""Drawing with numbers: the primitives from which all procedural images are made.

A shape is a *signed distance*: negative inside, zero on the outline, positive outside. `cover` turns a
distance into a soft mask in [0, 1], and `paint` puts a colour where a mask is 1. Coordinates run from -1
(left, top) to 1 (right, bottom). Images are float arrays [S, S, 3] with values in [0, 1] until `photograph`
turns them into bytes. All randomness comes from the `numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image

Array = np.ndarray


# --- the canvas --------------------------------------------------------------------------------------


def grid(size: int) -> tuple[Array, Array]:
    """Coordinates (x, y) of the pixel centres, each [size, size], in (-1, 1)."""
    ticks = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(ticks, ticks)
    return x, y


def pose(
    x: Array, y: Array, angle: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Array, Array]:
    """Coordinates (x, y) relative to an object that is scaled, rotated by `angle` (radians) and shifted."""
    x, y = x - shift[0], y - shift[1]
    c, s = math.cos(angle), math.sin(angle)
    return (c * x + s * y) / scale, (-s * x + c * y) / scale


# --- signed distances --------------------------------------------------------------------------------


def disc(x: Array, y: Array, radius: float = 1.0) -> Array:
    """Signed distance [S, S] to a disc around the origin."""
    return np.hypot(x, y) - radius


def box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """Signed distance [S, S] to a rectangle around the origin, in the maximum norm."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def polygon(x: Array, y: Array, corners: int, radius: float = 1.0) -> Array:
    """Signed distance [S, S] to a regular polygon around the origin; its corners lie at `radius`."""
    sector = 2 * math.pi / corners
    angle = np.mod(np.arctan2(y, x), sector) - sector / 2
    return np.hypot(x, y) * np.cos(angle) / math.cos(sector / 2) - radius


def polyline(x: Array, y: Array, points: Array) -> Array:
    """Distance [S, S] to the line through `points` [M, 2]; never negative.

    Subtract half the line's width to get a signed distance.
    """
    nearest = np.full_like(x, np.inf)
    for a, b in zip(points[:-1], points[1:], strict=True):
        along = b - a
        t = ((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(float(along @ along), 1e-12)
        t = np.clip(t, 0, 1)
        nearest = np.minimum(nearest, (x - a[0] - t * along[0]) ** 2 + (y - a[1] - t * along[1]) ** 2)
    return np.sqrt(nearest)


# --- noise -------------------------------------------------------------------------------------------

SMOOTH: Mapping[int, float] = {4: 1.0, 8: 0.7, 16: 0.5, 32: 0.35, 64: 0.25}


def noise(rng: Generator, size: int, octaves: Mapping[int, float] = SMOOTH) -> Array:
    """A smooth random field [size, size] with mean 0 and standard deviation 1.

    `octaves` maps a number of cells per side to a weight: few cells give broad clouds, many cells fine grain.
    """
    total = np.zeros((size, size))
    for cells, weight in octaves.items():
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    return (total - total.mean()) / (total.std() + 1e-9)


# --- paint -------------------------------------------------------------------------------------------


def cover(distance: Array, softness: float = 0.025) -> Array:
    """Mask in [0, 1] of the inside of a shape, as large as `distance`; its edge is `softness` wide."""
    return 1 / (1 + np.exp(np.clip(2 * distance / softness, -50, 50)))


def canvas(size: int, colour: Array | Sequence[float]) -> Array:
    """An image [size, size, 3] of one colour."""
    return np.broadcast_to(np.asarray(colour, np.float64), (size, size, 3)).copy()


def paint(image: Array, mask: Array, colour: Array | Sequence[float] | float) -> Array:
    """`image` [S, S, 3] with `colour` (a number, an RGB triple or another image) where `mask` [S, S] is 1."""
    values = np.asarray(colour, np.float64)
    return image + (values - image) * mask[..., None]


def shade(image: Array, gain: Array | float) -> Array:
    """`image` [S, S, 3] with its brightness multiplied by `gain`, a number or [S, S]."""
    return image * (gain[..., None] if isinstance(gain, np.ndarray) else gain)


def blob(
    rng: Generator,
    x: Array,
    y: Array,
    centre: tuple[float, float],
    radius: float,
    irregularity: float = 0.35,
    softness: float = 0.03,
) -> Array:
    """Mask [S, S] in [0, 1] of an irregular, slightly elongated spot around `centre`."""
    u, v = pose(x, y, rng.uniform(0, 2 * math.pi), 1.0, centre)
    stretch = math.sqrt(rng.uniform(0.6, 1.6))
    outline = 1 + irregularity * noise(rng, len(x), {4: 0.4, 8: 1.0, 16: 0.7, 32: 0.2})
    return cover(np.hypot(u * stretch, v / stretch) - radius * outline, softness)


def look_up(mask: Array, u: Array, v: Array) -> Array:
    """`mask` [M, M], which covers [-1, 1], interpolated bilinearly at coordinates (u, v); 0 outside."""
    m = len(mask)
    column, row = np.clip((u + 1) / 2 * m - 0.5, 0, m - 1.001), np.clip((v + 1) / 2 * m - 0.5, 0, m - 1.001)
    i, j = row.astype(int), column.astype(int)
    a, b = row - i, column - j
    value = (
        mask[i, j] * (1 - a) * (1 - b) + mask[i + 1, j] * a * (1 - b) + mask[i, j + 1] * (1 - a) * b
        + mask[i + 1, j + 1] * a * b
    )  # fmt: skip
    return value * (np.maximum(np.abs(u), np.abs(v)) < 1)


# --- the photograph ----------------------------------------------------------------------------------


def photograph(rng: Generator, image: Array, strength: float = 1.0) -> Array:
    """A simulated photograph of `image` [S, S, 3]: uint8 [S, S, 3].

    It adds uneven light, a random exposure, sensor noise and, in a quarter of the images, a slight blur. Such
    differences exist between any two photographs of one object, so they must not count as anomalies.
    `strength` scales all of them but the blur.
    """
    x, y = grid(len(image))
    direction = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0, 0.18) * strength
    image = shade(image, 1 + slope * (x * math.cos(direction) + y * math.sin(direction)))
    image = image * (1 + strength * rng.uniform(-0.15, 0.15)) + strength * rng.uniform(-0.04, 0.04)
    image = image + rng.standard_normal(image.shape) * (strength * rng.uniform(0, 0.035))
    if rng.random() < 0.25:
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
        image = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
    return to_uint8(image)


def to_uint8(image: Array) -> Array:
    """Values in [0, 1] as bytes; values outside are clipped."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
