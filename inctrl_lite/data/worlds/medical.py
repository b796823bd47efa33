"""Evaluation worlds that look like scans of a head: nothing here was learned from a patient."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.defects import Picture
from inctrl_lite.data.drawing import Array, blob, canvas, cover, grid, noise, pose
from inctrl_lite.data.worlds.industrial import SIZE


def _head(rng: Generator) -> tuple[Array, Array, Array]:
    """Coordinates of a head and its elliptic radius (1 at the skin)."""
    shift = 0.03 * rng.standard_normal(2)
    x, y = pose(
        *grid(SIZE), 0.08 * rng.standard_normal(), 1 + 0.06 * rng.standard_normal(), (shift[0], shift[1])
    )
    x = x * (1 + 0.04 * rng.standard_normal())
    return x, y, np.hypot(x / 0.76, y / 0.92)


def _ventricles(x: Array, y: Array, size: float) -> Array:
    """Mask of the two fluid-filled spaces."""

    def side(sign: int) -> Array:
        return (
            np.hypot((x - sign * 0.13 * size + sign * 0.25 * y) / (0.07 * size), (y + 0.02) / (0.26 * size))
            - 1
        )

    return np.maximum(cover(0.07 * side(1), 0.03), cover(0.07 * side(-1), 0.03))


def _lay(image: Array, mask: Array, level: Array | float) -> Array:
    return image + (level - image) * mask


def mri(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """T1-like slice: dark fluid, white matter lighter than cortex."""
    x, y, radius = _head(rng)
    level = np.full((SIZE, SIZE), 0.02)
    level = _lay(level, cover(radius - 1.0), 0.5 + 0.03 * rng.standard_normal())
    level = _lay(level, cover(radius - 0.93), 0.06)
    folds = noise(rng, SIZE, {8: 0.3, 16: 1.0, 32: 0.6, 64: 0.1})
    level = _lay(level, cover(radius - 0.87), rng.uniform(0.36, 0.44) + 0.09 * folds)
    level = _lay(level, cover(radius - 0.66 - 0.07 * folds, 0.06), rng.uniform(0.56, 0.66) + 0.02 * folds)
    middle = cover(np.abs(x) - 0.012, 0.02) * cover(radius - 0.85) * (1 - cover(np.abs(y) - 0.3, 0.05))
    level = _lay(level, 0.8 * middle, 0.12)
    level = _lay(level, _ventricles(x, y, rng.uniform(0.8, 1.25)), 0.1)
    if fault:
        inside = cover(radius - 0.86)
        side = 1 if odd.random() < 0.5 else -1
        place, size = (side * odd.uniform(0.18, 0.45), odd.uniform(-0.5, 0.5)), odd.uniform(0.08, 0.2)
        if fault == "tumor":
            spot = blob(odd, x, y, place, size, 0.25, 0.05) * inside
            level = _lay(level, spot, odd.uniform(0.8, 0.97) + 0.05 * folds)
        if fault == "ring lesion":
            level = _lay(level, blob(odd, x, y, place, size, 0.25, 0.05) * inside, 0.9)
            level = _lay(level, blob(odd, x, y, place, 0.6 * size, 0.1, 0.04) * inside, 0.2)
        if fault == "edema":
            spot = blob(odd, x, y, place, 1.5 * size, 0.3, 0.12) * inside
            level = _lay(
                level, 0.8 * spot, odd.uniform(0.26, 0.36) if odd.random() < 0.5 else odd.uniform(0.78, 0.88)
            )
    return Picture(np.repeat(level[..., None], 3, -1), cover(radius - 0.86), canvas(SIZE, (0.02, 0.02, 0.02)))


def ct(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """CT-like slice: bright skull, grey brain, fresh blood brighter than brain."""
    x, y, radius = _head(rng)
    fluid, grain = rng.uniform(0.7, 1.15), noise(rng, SIZE, {4: 0.3, 8: 0.6, 16: 0.8, 32: 0.8, 64: 0.8})
    level = np.full((SIZE, SIZE), 0.01)
    level = _lay(level, cover(radius - 1.0), 0.35)
    level = _lay(level, cover(radius - 0.98), 0.97)
    brain = cover(radius - 0.86)
    level = _lay(level, brain, rng.uniform(0.4, 0.48) + 0.025 * grain)
    ventricles = _ventricles(x, y, fluid)
    level = _lay(level, ventricles, 0.27)
    falx = cover(np.abs(x) - 0.01, 0.02) * brain * (1 - cover(np.abs(y) - 0.45, 0.04))
    level = _lay(level, 0.5 * falx, 0.55)
    if fault:
        blood = odd.uniform(0.62, 0.8) + 0.03 * grain
        side = 1 if odd.random() < 0.5 else -1
        if fault == "hemorrhage":
            place = (side * odd.uniform(0.15, 0.5), odd.uniform(-0.5, 0.5))
            level = _lay(level, blob(odd, x, y, place, odd.uniform(0.07, 0.2), 0.35, 0.05) * brain, blood)
        if fault == "subdural":
            inner = np.hypot((x + side * odd.uniform(0.06, 0.14)) / 0.72, y / 0.9)
            level = _lay(level, brain * (1 - cover(inner - 0.88, 0.04)), blood)
        if fault == "intraventricular":
            level = _lay(level, ventricles * (1 - cover(y - odd.uniform(-0.1, 0.1), 0.1)), blood)
    return Picture(np.repeat(level[..., None], 3, -1), brain, canvas(SIZE, (0.01, 0.01, 0.01)))
