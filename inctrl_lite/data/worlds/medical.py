"""Evaluation worlds that look like scans of a head. They are drawings: no patient data had a part in them.

Every function draws one slice: (rng, fault, fault_rng) -> Picture, with a grey image [120, 120, 3] that lies
roughly in [0, 1]. `fault` names the anomaly, None draws a normal slice. The fault draws its random numbers
from `fault_rng` alone, so the same `rng` gives the same head with and without it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.defects import Picture
from inctrl_lite.data.drawing import Array, blob, canvas, cover, grid, noise, pose
from inctrl_lite.data.worlds.industrial import SIZE


def _head(rng: Generator) -> tuple[Array, Array, Array]:
    """Coordinates (x, y) of a head in a random pose, and its elliptic radius (1: skin), each [120, 120]."""
    shift = 0.03 * rng.standard_normal(2)
    x, y = pose(
        *grid(SIZE), 0.08 * rng.standard_normal(), 1 + 0.06 * rng.standard_normal(), (shift[0], shift[1])
    )
    x = x * (1 + 0.04 * rng.standard_normal())
    return x, y, np.hypot(x / 0.76, y / 0.92)


def _ventricles(x: Array, y: Array, size: float) -> Array:
    """Mask in [0, 1] of the two ventricles, which are filled with fluid."""

    def side(sign: int) -> Array:
        return (
            np.hypot((x - sign * 0.13 * size + sign * 0.25 * y) / (0.07 * size), (y + 0.02) / (0.26 * size))
            - 1
        )

    return np.maximum(cover(0.07 * side(1), 0.03), cover(0.07 * side(-1), 0.03))


def _paint_grey(image: Array, mask: Array, level: Array | float) -> Array:
    """`image` [S, S] with grey level `level` where `mask` is 1."""
    return image + (level - image) * mask


def mri(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A slice that looks like T1-weighted MRI: dark fluid, white matter lighter than the cortex."""
    x, y, radius = _head(rng)
    level = np.full((SIZE, SIZE), 0.02)
    level = _paint_grey(level, cover(radius - 1.0), 0.5 + 0.03 * rng.standard_normal())
    level = _paint_grey(level, cover(radius - 0.93), 0.06)
    folds = noise(rng, SIZE, {8: 0.3, 16: 1.0, 32: 0.6, 64: 0.1})
    level = _paint_grey(level, cover(radius - 0.87), rng.uniform(0.36, 0.44) + 0.09 * folds)
    level = _paint_grey(
        level, cover(radius - 0.66 - 0.07 * folds, 0.06), rng.uniform(0.56, 0.66) + 0.02 * folds
    )
    middle = cover(np.abs(x) - 0.012, 0.02) * cover(radius - 0.85) * (1 - cover(np.abs(y) - 0.3, 0.05))
    level = _paint_grey(level, 0.8 * middle, 0.12)
    level = _paint_grey(level, _ventricles(x, y, rng.uniform(0.8, 1.25)), 0.1)
    if fault:
        inside = cover(radius - 0.86)
        side = 1 if fault_rng.random() < 0.5 else -1
        position, size = (
            (side * fault_rng.uniform(0.18, 0.45), fault_rng.uniform(-0.5, 0.5)),
            fault_rng.uniform(0.08, 0.2),
        )
        if fault == "tumor":
            spot = blob(fault_rng, x, y, position, size, 0.25, 0.05) * inside
            level = _paint_grey(level, spot, fault_rng.uniform(0.8, 0.97) + 0.05 * folds)
        if fault == "ring lesion":
            level = _paint_grey(level, blob(fault_rng, x, y, position, size, 0.25, 0.05) * inside, 0.9)
            level = _paint_grey(level, blob(fault_rng, x, y, position, 0.6 * size, 0.1, 0.04) * inside, 0.2)
        if fault == "edema":
            spot = blob(fault_rng, x, y, position, 1.5 * size, 0.3, 0.12) * inside
            level = _paint_grey(
                level,
                0.8 * spot,
                fault_rng.uniform(0.26, 0.36) if fault_rng.random() < 0.5 else fault_rng.uniform(0.78, 0.88),
            )
    return Picture(np.repeat(level[..., None], 3, -1), cover(radius - 0.86), canvas(SIZE, (0.02, 0.02, 0.02)))


def ct(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A slice that looks like CT: bright skull, grey brain, fresh blood brighter than the brain."""
    x, y, radius = _head(rng)
    fluid, grain = rng.uniform(0.7, 1.15), noise(rng, SIZE, {4: 0.3, 8: 0.6, 16: 0.8, 32: 0.8, 64: 0.8})
    level = np.full((SIZE, SIZE), 0.01)
    level = _paint_grey(level, cover(radius - 1.0), 0.35)
    level = _paint_grey(level, cover(radius - 0.98), 0.97)
    brain = cover(radius - 0.86)
    level = _paint_grey(level, brain, rng.uniform(0.4, 0.48) + 0.025 * grain)
    ventricles = _ventricles(x, y, fluid)
    level = _paint_grey(level, ventricles, 0.27)
    falx = cover(np.abs(x) - 0.01, 0.02) * brain * (1 - cover(np.abs(y) - 0.45, 0.04))
    level = _paint_grey(level, 0.5 * falx, 0.55)
    if fault:
        blood = fault_rng.uniform(0.62, 0.8) + 0.03 * grain
        side = 1 if fault_rng.random() < 0.5 else -1
        if fault == "hemorrhage":
            position = (side * fault_rng.uniform(0.15, 0.5), fault_rng.uniform(-0.5, 0.5))
            level = _paint_grey(
                level,
                blob(fault_rng, x, y, position, fault_rng.uniform(0.07, 0.2), 0.35, 0.05) * brain,
                blood,
            )
        if fault == "subdural":
            inner = np.hypot((x + side * fault_rng.uniform(0.06, 0.14)) / 0.72, y / 0.9)
            level = _paint_grey(level, brain * (1 - cover(inner - 0.88, 0.04)), blood)
        if fault == "intraventricular":
            level = _paint_grey(level, ventricles * (1 - cover(y - fault_rng.uniform(-0.1, 0.1), 0.1)), blood)
    return Picture(np.repeat(level[..., None], 3, -1), brain, canvas(SIZE, (0.01, 0.01, 0.01)))
