"""Evaluation worlds with semantic anomalies, objects of another class: digits and simple drawings."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image

from inctrl_lite.data.drawing import Array, box, canvas, cover, disc, grid, paint, pose
from inctrl_lite.data.worlds.industrial import SIZE


@lru_cache(maxsize=1)
def digit_images() -> tuple[Array, Array]:
    """The handwritten digits that scikit-learn ships: images [1797, 8, 8] in [0, 1], and labels [1797]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images / 16, digits.target


def digit(index: int, size: int = SIZE) -> Array:
    """Digit image number `index` of `digit_images`, enlarged: uint8 [size, size, 3]."""
    small = Image.fromarray(digit_images()[0][index].astype(np.float32))
    large = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))
    return np.repeat(np.round(np.clip(large, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _triangle(x: Array, y: Array, top: float, bottom: float, half: float) -> Array:
    slope = half * np.clip((y - top) / (bottom - top), 0, 1)
    return np.maximum(np.abs(x) - slope, np.maximum(top - y, y - bottom))


def _union(*parts: Array) -> Array:
    return np.min(parts, axis=0)


# class -> function of coordinates (x, y), each [S, S], that gives the signed distance to the outline
THINGS: dict[str, Callable[[Array, Array], Array]] = {
    "house": lambda x, y: np.maximum(
        _union(box(x, y - 0.3, 0.55, 0.45), _triangle(x, y, -0.85, -0.1, 0.8)), -box(x, y - 0.5, 0.13, 0.26)
    ),
    "tree": lambda x, y: _union(
        box(x, y - 0.65, 0.1, 0.3), _triangle(x, y, -0.9, 0.0, 0.5), _triangle(x, y, -0.4, 0.5, 0.7)
    ),
    "car": lambda x, y: _union(
        box(x, y - 0.15, 0.85, 0.22),
        box(x, y + 0.2, 0.45, 0.2),
        disc(x + 0.45, y - 0.42, 0.2),
        disc(x - 0.45, y - 0.42, 0.2),
    ),
    "fish": lambda x, y: _union(
        0.4 * np.hypot((x + 0.15) / 0.6, y / 0.4) - 0.4,
        np.maximum(np.abs(y) - 0.9 * (x - 0.3), np.maximum(0.3 - x, x - 0.85)),
    ),
    "boat": lambda x, y: _union(
        np.maximum(np.abs(x) - 0.8 + 0.9 * np.clip(y - 0.3, 0, 1), np.maximum(0.3 - y, y - 0.7)),
        box(x, y + 0.25, 0.04, 0.55),
        np.maximum(x - 0.65 * np.clip(y + 0.8, 0, 1), np.maximum(0.08 - x, np.maximum(-0.8 - y, y - 0.2))),
    ),
    "mug": lambda x, y: _union(
        box(x + 0.12, y, 0.45, 0.6), np.maximum(np.abs(np.hypot(x - 0.38, y) - 0.32) - 0.09, 0.3 - x)
    ),
    "shirt": lambda x, y: _union(
        box(x, y - 0.2, 0.42, 0.6), np.maximum(box(x, y + 0.28, 0.85, 0.2), 0.3 * np.abs(x) + y - 0.02)
    ),
    "key": lambda x, y: _union(
        np.abs(np.hypot(x + 0.55, y) - 0.28) - 0.1,
        box(x - 0.25, y, 0.55, 0.08),
        box(x - 0.5, y - 0.15, 0.06, 0.15),
        box(x - 0.72, y - 0.15, 0.06, 0.15),
    ),
}
VEHICLES = ("car", "boat")


def draw_thing(rng: Generator, name: str) -> Array:
    """A drawing of class `name` in a random pose and two contrasting colours: [120, 120, 3] in [0, 1]."""
    shift = 0.08 * rng.standard_normal(2)
    x, y = pose(
        *grid(SIZE), 0.15 * rng.standard_normal(), 0.9 + 0.1 * rng.standard_normal(), (shift[0], shift[1])
    )
    dark = rng.uniform(0, 0.5, 3)
    pair = (dark, dark + 0.5) if rng.random() < 0.5 else (dark + 0.5, dark)
    thing = np.clip(pair[0] + 0.1 * rng.standard_normal(3), 0, 1)
    return paint(canvas(SIZE, pair[1]), cover(THINGS[name](x, y)), thing)
