"""Generic defects that can be painted on any object or surface.

Each function takes a `Picture` and returns its image [S, S, 3] with a defect of random position, size and
colour. Values may leave [0, 1] a little; `damage` clips them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.drawing import Array, blob, cover, disc, grid, look_up, noise, paint, polyline, pose

GRAIN = {16: 0.3, 32: 0.8, 64: 1.0}  # octaves of fine noise


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing, before it is photographed.

    Attributes:
        image: [S, S, 3] in [0, 1].
        thing: mask of the object [S, S] in [0, 1].
        background: the image without the object [S, S, 3].
    """

    image: Array
    thing: Array
    background: Array


def position_on(rng: Generator, thing: Array) -> tuple[float, float]:
    """Random coordinates (x, y) on the object with mask `thing` [S, S]."""
    flat = thing[4::8, 4::8] ** 2 + 1e-4  # every eighth pixel is enough
    row, column = divmod(int(rng.choice(flat.size, p=flat.ravel() / flat.sum())), flat.shape[1])
    return (column + 0.5) / flat.shape[1] * 2 - 1, (row + 0.5) / flat.shape[0] * 2 - 1


def defect_colour(rng: Generator) -> Array:
    """A random colour [3]: in half of the cases any colour, otherwise nearly black or nearly white."""
    return rng.uniform(0, 1, 3) if rng.random() < 0.5 else np.full(3, rng.choice([0.05, 0.1, 0.9, 0.95]))


def _line(
    rng: Generator, picture: Picture, bend: float, points: int, softness: float, colour: Array
) -> Array:
    """The image with a line on it that changes its direction by about `bend` radians at each point."""
    start = np.array(position_on(rng, picture.thing))
    angle = rng.uniform(0, 2 * math.pi) + np.cumsum(bend * rng.standard_normal(points))
    steps = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.3, 1.0) / points
    path = np.cumsum(steps, 0)
    path += start - path.mean(0)
    mask = cover(
        polyline(*grid(len(picture.image)), path) - rng.uniform(0.008, 0.03), softness
    ) * rng.uniform(0.6, 1)
    return paint(picture.image, mask * (0.15 + 0.85 * picture.thing), colour)


def _spot(rng: Generator, picture: Picture, reach: float, irregularity: float, softness: float) -> Array:
    """Mask [S, S] in [0, 1] of a spot on the object; its mean radius is 0.17 times `reach`."""
    centre = position_on(rng, picture.thing)
    return blob(
        rng, *grid(len(picture.image)), centre, reach * rng.uniform(0.08, 0.26), irregularity, softness
    )


def _displaced(rng: Generator, picture: Picture) -> Array:
    """The image, warped around a random position."""
    x, y = grid(len(picture.image))
    cx, cy = position_on(rng, picture.thing)
    reach = rng.uniform(0.1, 0.28)
    push = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * reach**2)) * reach
    angle = rng.uniform(0, 2 * math.pi)
    u, v = x + push * math.cos(angle), y + push * math.sin(angle)
    return np.stack(
        [look_up(picture.image[..., c], np.clip(u, -0.99, 0.99), np.clip(v, -0.99, 0.99)) for c in range(3)],
        -1,
    )


def _dent(rng: Generator, picture: Picture) -> Array:
    """The image, brighter on one side of a position and darker on the other."""
    x, y = grid(len(picture.image))
    cx, cy = position_on(rng, picture.thing)
    reach, angle = rng.uniform(0.08, 0.2), rng.uniform(0, 2 * math.pi)
    bump = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * reach**2)) / reach
    slope = ((x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)) * bump
    return picture.image + rng.uniform(0.3, 0.7) * slope[..., None]


def _misplaced(rng: Generator, picture: Picture) -> Array:
    """The image with a spot of it replaced by another part of it."""
    elsewhere = np.roll(picture.image, tuple(rng.integers(18, 60, 2)), (0, 1))
    elsewhere = elsewhere.transpose(1, 0, 2) if rng.random() < 0.5 else elsewhere[:, ::-1]
    return paint(picture.image, _spot(rng, picture, 1.2, 0.1, 0.02), elsewhere)


def _speckle(rng: Generator, picture: Picture) -> Array:
    """The image with a group of seven small dots."""
    image, colour = picture.image, defect_colour(rng)
    centre = np.array(position_on(rng, picture.thing))
    for _ in range(7):
        position = centre + 0.2 * rng.standard_normal(2)
        x, y = pose(*grid(len(picture.image)), shift=(position[0], position[1]))
        image = paint(image, cover(disc(x, y, rng.uniform(0.015, 0.05)), 0.02), colour)
    return image


def _contamination(rng: Generator, picture: Picture) -> Array:
    """The image with a spot of grainy dirt."""
    dirt = defect_colour(rng) + 0.18 * noise(rng, len(picture.image), GRAIN)[..., None]
    return paint(picture.image, _spot(rng, picture, 1.0, 0.4, 0.03), np.clip(dirt, 0, 1))


def _discoloration(rng: Generator, picture: Picture) -> Array:
    """The image with other colours, or another brightness, in a soft spot."""
    gain = rng.uniform(0.1, 1.7, 3) if rng.random() < 0.5 else rng.choice([0.4, 0.6, 1.4, 1.7])
    mask = 0.8 * _spot(rng, picture, 1.5, 0.4, 0.12)
    return paint(picture.image, mask, picture.image * gain + 0.1 * (np.asarray(gain) - 1))


# kind -> function that paints it
DEFECTS: dict[str, Callable[[Generator, Picture], Array]] = {
    "scratch": lambda rng, p: _line(rng, p, 0.02, 4, 0.02, defect_colour(rng)),
    "crack": lambda rng, p: _line(rng, p, 0.6, 7, 0.02, 0.2 * defect_colour(rng)),
    "thread": lambda rng, p: _line(rng, p, 0.35, 9, 0.02, defect_colour(rng)),
    "stain": lambda rng, p: paint(
        p.image, rng.uniform(0.4, 0.8) * _spot(rng, p, 1.2, 0.5, 0.08), defect_colour(rng)
    ),
    "hole": lambda rng, p: paint(p.image, _spot(rng, p, 0.7, 0.1, 0.02), rng.uniform(0, 0.12)),
    "missing part": lambda rng, p: paint(p.image, _spot(rng, p, 1.3, 0.15, 0.02), p.background),
    "dent": _dent,
    "speckle": _speckle,
    "contamination": _contamination,
    "misplaced part": _misplaced,
    "bent": _displaced,
    "discoloration": _discoloration,
}


def changed(before: Array, after: Array, threshold: float = 0.08) -> Array:
    """Where two images [S, S, 3] differ by more than `threshold` in some channel: bool [S, S]."""
    return np.abs(after - before).max(-1) > threshold


def damage(
    rng: Generator, picture: Picture, kinds: Sequence[str] = tuple(DEFECTS), grey: bool = False
) -> tuple[Array, str]:
    """The picture with one visible defect: its image [S, S, 3] in [0, 1], and the kind of the defect.

    Args:
        rng: source of the defect.
        picture: the normal drawing.
        kinds: keys of `DEFECTS` to choose from. It is drawn again until at least 25 pixels change visibly.
        grey: make the result grey, for scans that have no colour.
    """
    while True:
        kind = str(rng.choice(kinds))
        damaged = np.clip(DEFECTS[kind](rng, picture), 0, 1)
        if grey:
            damaged = np.repeat(damaged.mean(-1, keepdims=True), 3, axis=-1)
        if changed(picture.image, damaged).sum() >= 25:
            return damaged, kind
