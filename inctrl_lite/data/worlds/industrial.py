"""The auxiliary set: one domain, many categories. A dozen families of industrial things, each in variants.

A family is a function (design) -> draw: `design` is a generator that decides what every specimen of the
category shares (colours, proportions); `draw(rng)` gives one specimen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.defects import Picture
from inctrl_lite.data.drawing import Array, box, canvas, cover, disc, grid, noise, paint, polygon, pose, shade

Draw = Callable[[Generator], Picture]
SIZE = 120
METAL = {8: 0.1, 16: 0.4, 32: 0.8, 64: 0.8}


def placed(
    rng: Generator, free: bool = False, sway: float = 0.05, shift: float = 0.03
) -> tuple[Array, Array]:
    """Coordinates of one more specimen under the camera."""
    angle = rng.uniform(0, 2 * math.pi) if free else sway * rng.standard_normal()
    place = shift * rng.standard_normal(2)
    return pose(*grid(SIZE), angle, 1 + 0.03 * rng.standard_normal(), (place[0], place[1]))


def tint(design: Generator, low: float = 0.05, high: float = 0.95) -> Array:
    """A colour of the category."""
    return design.uniform(low, high, 3)


def grey(design: Generator, low: float, high: float) -> Array:
    """A nearly neutral colour of the category."""
    return np.clip(design.uniform(low, high) + 0.03 * design.standard_normal(3), 0, 1)


def close(rng: Generator, colour: Array, spread: float = 0.015) -> Array:
    """A specimen's own shade of a colour."""
    return np.clip(colour + spread * rng.standard_normal(3), 0, 1)


def contrast_to(design: Generator, colour: Array) -> Array:
    """A plain backdrop that the thing stands out from."""
    return np.full(3, 0.12 if colour.mean() > 0.5 else 0.88) + 0.05 * design.standard_normal(3)


def whole(image: Array) -> Picture:
    """A surface that fills the picture."""
    return Picture(image, np.ones(image.shape[:2]), canvas(len(image), image.mean((0, 1)) * 0.2))


def bottle(design: Generator) -> Draw:
    """Bottle seen from above: concentric glass rings around a dark mouth."""
    glass, ring, backdrop = tint(design, 0.1, 0.6), tint(design, 0.3, 0.8), grey(design, 0.85, 0.95)
    outer, mouth = design.uniform(0.8, 0.92), design.uniform(0.45, 0.6)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, free=True)
        radius, background = np.hypot(x, y), canvas(SIZE, backdrop)
        body = cover(radius - outer)
        image = paint(background, body, close(rng, glass))
        image = paint(image, cover(np.abs(radius - (outer + mouth) / 2) - 0.03), ring)
        image = paint(image, cover(radius - mouth), glass * 0.35)
        image = paint(image, cover(np.abs(radius - mouth) - 0.03), close(rng, ring + 0.1))
        gx, gy = grid(SIZE)
        image = paint(
            image, 0.6 * cover(np.hypot(gx + 0.2, gy + 0.2) - 0.12, 0.15), np.clip(ring + 0.3, 0, 1)
        )
        return Picture(image, body, background)

    return draw


def metal_nut(design: Generator) -> Draw:
    """Nut with flat sides and a threaded bore."""
    metal, sides, bore = grey(design, 0.4, 0.75), int(design.choice([4, 6, 8])), design.uniform(0.3, 0.5)
    backdrop = contrast_to(design, metal)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, free=True)
        rim, radius = polygon(x, y, sides, 0.85 * math.cos(math.pi / sides) ** 0.5), np.hypot(x, y)
        body, background = cover(np.maximum(rim, bore - radius)), canvas(SIZE, backdrop)
        image = paint(background, body, close(rng, metal) + 0.05 * noise(rng, SIZE, METAL)[..., None])
        image = paint(image, cover(np.abs(radius - bore - 0.06) - 0.03) * body, np.clip(metal + 0.2, 0, 1))
        image = paint(image, cover(np.abs(rim + 0.1) - 0.03) * body, metal * 0.65)
        return Picture(image, body, background)

    return draw


def capsule(design: Generator) -> Draw:
    """Two-coloured capsule with printed marks."""
    left, right, print_ = tint(design), tint(design), grey(design, 0.85, 0.95)
    length, thickness, marks = (
        design.uniform(0.45, 0.6),
        design.uniform(0.28, 0.38),
        int(design.integers(2, 5)),
    )
    backdrop = grey(design, 0.88, 0.95)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, sway=0.1)
        body = cover(np.hypot(np.maximum(np.abs(x) - length, 0), y) - thickness)
        background = canvas(SIZE, backdrop)
        image = paint(background, body, close(rng, right))
        image = paint(image, body * cover(x + 0.05), close(rng, left))
        for i in range(marks):
            image = paint(image, cover(box(x + 0.55 - 0.13 * i, y, 0.035, 0.12)), print_)
        image = paint(image, 0.6 * body * cover(box(x - 0.1, y + thickness / 2, 0.5, 0.03), 0.06), 1.0)
        return Picture(image, body, background)

    return draw


def cable(design: Generator) -> Draw:
    """Cross-section of a cable: coloured wires with copper cores in a sleeve."""
    wires = int(design.integers(2, 5))
    colours = [tint(design, 0.1, 0.9) for _ in range(wires)]
    sleeve, backdrop = grey(design, 0.7, 0.85), grey(design, 0.35, 0.6)
    size = {2: 0.4, 3: 0.36, 4: 0.31}[wires]

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, sway=0.15)
        body, background = cover(np.hypot(x, y) - 0.93), canvas(SIZE, backdrop)
        image = paint(background, body, close(rng, sleeve))
        for i, colour in enumerate(colours):
            around = 2 * math.pi * i / wires - math.pi / 2
            radius = np.hypot(x - 0.48 * math.cos(around), y - 0.48 * math.sin(around))
            image = paint(image, cover(radius - size), close(rng, colour))
            strands = 0.75 + 0.35 * np.sin(45 * x) * np.sin(45 * y)
            image = paint(
                image, cover(radius - 0.68 * size), np.array([0.72, 0.42, 0.22]) * strands[..., None]
            )
        return Picture(image, body, background)

    return draw


def screw(design: Generator) -> Draw:
    """Screw lying on its side: head, thread and tip."""
    metal, backdrop = grey(design, 0.3, 0.6), grey(design, 0.8, 0.92)
    pitch, shaft, head = design.uniform(30, 50), design.uniform(0.1, 0.16), design.uniform(0.18, 0.3)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, free=True)
        threaded = x < 0.45
        rod = np.maximum(
            np.abs(y) - shaft - 0.03 * np.sin(pitch * x) * threaded, np.maximum(-x - 0.75, x - 0.6)
        )
        tip = np.maximum(np.abs(y) - shaft * np.clip((x + 0.95) / 0.2, 0, 1), np.maximum(-x - 0.95, x + 0.7))
        cap = np.maximum(
            np.abs(y) - shaft - head * np.clip((x - 0.55) / 0.2, 0, 1), np.maximum(0.55 - x, x - 0.85)
        )
        body, background = cover(np.minimum(np.minimum(rod, tip), cap)), canvas(SIZE, backdrop)
        image = paint(background, body, close(rng, metal))
        image = paint(image, body * threaded * 0.4, shade(canvas(SIZE, metal), 1 + np.sin(pitch * x + 2 * y)))
        image = paint(image, 0.6 * body * cover(np.abs(y) - 0.03, 0.06), 0.95)
        return Picture(image, body, background)

    return draw


def tile(design: Generator) -> Draw:
    """Speckled stone tile."""
    light, dark, amount = grey(design, 0.6, 0.85), grey(design, 0.1, 0.35), design.uniform(0.0, 0.6)
    grain = {8: design.uniform(0, 0.4), 16: 0.6, 32: 1.0, 64: 0.5}

    def draw(rng: Generator) -> Picture:
        spots = cover(amount - noise(rng, SIZE, grain), 0.5)
        return whole(paint(canvas(SIZE, close(rng, light)), spots, dark))

    return draw


def leather(design: Generator) -> Draw:
    """Grained hide."""
    colour, depth = tint(design, 0.1, 0.55), design.uniform(0.3, 0.5)
    grain = {8: 0.2, 16: design.uniform(0.3, 0.6), 32: 1.0, 64: 0.2}

    def draw(rng: Generator) -> Picture:
        crease = cover(np.abs(noise(rng, SIZE, grain)) - 0.12, 0.25)
        image = shade(canvas(SIZE, close(rng, colour)), 1 - depth * crease)
        return whole(image + 0.02 * noise(rng, SIZE)[..., None])

    return draw


def mesh(design: Generator) -> Draw:
    """Crossed wires over a plain ground."""
    wire, ground = grey(design, 0.15, 0.35), grey(design, 0.7, 0.9)
    pitch, angle, thick = design.uniform(3.2, 5), design.uniform(0, math.pi / 2), design.uniform(0.1, 0.17)

    def draw(rng: Generator) -> Picture:
        shift = rng.uniform(-0.3, 0.3, 2)
        x, y = pose(*grid(SIZE), angle + 0.03 * rng.standard_normal(), 1.0, (shift[0], shift[1]))
        u, v = np.mod(x * pitch, 1) - 0.5, np.mod(y * pitch, 1) - 0.5
        wires = np.maximum(cover(np.abs(u) - thick, 0.08), cover(np.abs(v) - thick, 0.08))
        background = canvas(SIZE, ground)
        return Picture(paint(background, wires, close(rng, wire)), np.ones((SIZE, SIZE)), background)

    return draw


def gasket(design: Generator) -> Draw:
    """Flat seal with bolt holes around a wide opening."""
    rubber, holes = tint(design, 0.05, 0.5), int(design.integers(3, 9))
    inner, backdrop = design.uniform(0.35, 0.5), grey(design, 0.75, 0.92)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, free=True)
        radius = np.hypot(x, y)
        distance = np.maximum(radius - 0.88, inner - radius)
        ring = (0.88 + inner) / 2
        for i in range(holes):
            around = 2 * math.pi * i / holes
            distance = np.maximum(
                distance, 0.09 - np.hypot(x - ring * math.cos(around), y - ring * math.sin(around))
            )
        body, background = cover(distance), canvas(SIZE, backdrop)
        skin = close(rng, rubber) + 0.02 * noise(rng, SIZE, METAL)[..., None]
        return Picture(paint(background, body, skin), body, background)

    return draw


def label_plate(design: Generator) -> Draw:
    """Rating plate: border, rivets and lines of print."""
    plate, ink, lines = grey(design, 0.6, 0.85), tint(design, 0.0, 0.35), int(design.integers(3, 6))
    tall, backdrop = design.uniform(0.5, 0.75), contrast_to(design, plate)
    words = [design.uniform(0.2, 0.75, lines), design.uniform(-0.15, 0.15, lines)]

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng)
        body, background = cover(box(x, y, 0.9, tall)), canvas(SIZE, backdrop)
        brushed = 0.03 * noise(rng, SIZE, {64: 1.0})
        image = paint(background, body, close(rng, plate) + brushed[..., None])
        image = paint(image, cover(np.abs(box(x, y, 0.82, tall - 0.08)) - 0.015) * body, ink)
        for i in range(lines):
            row = (i + 0.5) / lines * 1.4 * tall - 0.7 * tall
            text = cover(box(x - words[1][i], y - row, words[0][i], 0.045)) * (np.sin(38 * x + 9 * i) > -0.4)
            image = paint(image, text, ink)
        for cx in (-0.76, 0.76):
            image = paint(image, cover(np.hypot(x - cx, y) - 0.05), plate * 0.6)
        return Picture(image, body, background)

    return draw


def spring(design: Generator) -> Draw:
    """Coil spring from the side."""
    metal, coils = grey(design, 0.45, 0.75), design.uniform(5, 9)
    wide, backdrop, wire = design.uniform(0.3, 0.5), grey(design, 0.08, 0.25), design.uniform(0.045, 0.07)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, sway=0.25)
        phase = coils * math.pi * (x + 0.9)
        along = np.cos(phase) * coils * math.pi * wide
        distance = np.maximum(
            np.abs(y - wide * np.sin(phase)) / np.sqrt(1 + along**2) - wire, np.abs(x) - 0.88
        )
        body, background = cover(distance), canvas(SIZE, backdrop)
        light = 0.75 + 0.35 * cover(np.abs(y + 0.3 * wide) - 0.12, 0.2)
        return Picture(
            paint(background, body, shade(canvas(SIZE, close(rng, metal)), light)), body, background
        )

    return draw


def bearing(design: Generator) -> Draw:
    """Ball bearing: two rings and the balls between them."""
    steel, balls, backdrop = grey(design, 0.55, 0.8), int(design.integers(7, 12)), tint(design, 0.1, 0.35)
    cage = tint(design, 0.1, 0.4)

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, free=True)
        radius, background = np.hypot(x, y), canvas(SIZE, backdrop)
        body = cover(np.maximum(radius - 0.9, 0.28 - radius))
        image = paint(background, body, close(rng, steel))
        image = paint(image, cover(np.abs(radius - 0.6) - 0.15), cage)
        for i in range(balls):
            around = 2 * math.pi * i / balls
            local = np.hypot(x - 0.6 * math.cos(around), y - 0.6 * math.sin(around))
            image = paint(image, cover(local - 0.115), np.clip(steel + 0.15 - local[..., None], 0, 1))
        return Picture(image, body, background)

    return draw


def perforated_sheet(design: Generator) -> Draw:
    """Sheet metal with rows of punched holes."""
    metal, dark, pitch = grey(design, 0.5, 0.75), grey(design, 0.03, 0.15), design.uniform(2.5, 4.5)
    hole, stagger = design.uniform(0.22, 0.34), design.random() < 0.5

    def draw(rng: Generator) -> Picture:
        x, y = placed(rng, sway=0.02, shift=0.1)
        row = np.floor(y * pitch)
        u = np.mod(x * pitch + (0.5 * (row % 2) if stagger else 0), 1) - 0.5
        holes = cover(disc(u, np.mod(y * pitch, 1) - 0.5, hole), 0.1)
        skin = close(rng, metal) + 0.04 * noise(rng, SIZE, METAL)[..., None]
        background = canvas(SIZE, dark)
        return Picture(paint(skin, holes, dark), np.ones((SIZE, SIZE)), background)

    return draw


FAMILIES: dict[str, Callable[[Generator], Draw]] = {
    "bottle": bottle,
    "metal nut": metal_nut,
    "capsule": capsule,
    "cable": cable,
    "screw": screw,
    "tile": tile,
    "leather": leather,
    "metal mesh": mesh,
    "gasket": gasket,
    "label plate": label_plate,
    "spring": spring,
    "ball bearing": bearing,
    "perforated sheet": perforated_sheet,
}
OBJECT_DEFECTS = (
    "scratch",
    "crack",
    "stain",
    "hole",
    "missing part",
    "contamination",
    "dent",
    "bent",
    "discoloration",
)
SURFACE_DEFECTS = ("scratch", "crack", "stain", "hole", "contamination", "thread", "discoloration", "speckle")
SURFACES = frozenset({"tile", "leather", "metal mesh", "perforated sheet"})
VARIANTS = 4
