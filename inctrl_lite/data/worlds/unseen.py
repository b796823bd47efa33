"""Evaluation worlds of other industries: products, solar cells and fabric that training never sees.

Every function draws one specimen: (rng, fault, fault_rng) -> Picture, with an image [120, 120, 3] that lies
roughly in [0, 1]. `fault` names the anomaly, None draws a normal specimen. The same `rng` gives the same
specimen with and without the fault, because the fault draws its random numbers from `fault_rng` alone. The
mask is therefore the set of pixels in which the two drawings differ.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.defects import Picture
from inctrl_lite.data.drawing import (
    blob,
    box,
    canvas,
    cover,
    grid,
    noise,
    paint,
    polyline,
    pose,
    shade,
)
from inctrl_lite.data.worlds.industrial import SIZE, jitter_colour, specimen_grid, surface_picture


def pcb(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A circuit board with tracks and components."""
    x, y = specimen_grid(rng, angle_std=0.02, shift_std=0.02)
    background = canvas(SIZE, (0.1, 0.1, 0.1))
    board = cover(box(x, y, 0.92, 0.78))
    image = paint(background, board, jitter_colour(rng, np.array([0.05, 0.35, 0.2])))
    for i in range(5):
        track = np.abs(y + 0.55 - 0.27 * i + 0.06 * np.sin(3 * x + i)) - 0.015
        image = paint(image, 0.7 * board * cover(track, 0.02), (0.15, 0.55, 0.35))
    components = (
        (-0.55, -0.35, 0.22, 0.16, (0.08, 0.08, 0.09)),
        (0.3, -0.3, 0.28, 0.22, (0.1, 0.1, 0.11)),
        (-0.5, 0.35, 0.1, 0.06, (0.75, 0.6, 0.35)),
        (-0.15, 0.4, 0.1, 0.06, (0.75, 0.6, 0.35)),
        (0.25, 0.4, 0.13, 0.13, (0.7, 0.7, 0.72)),
        (0.65, 0.35, 0.08, 0.14, (0.6, 0.3, 0.15)),
    )
    faulty = int(fault_rng.integers(len(components)))
    turn = fault_rng.uniform(0.5, 1.1)
    bridge = fault_rng.integers(3)
    for i, (cx, cy, width, height, colour) in enumerate(components):
        is_faulty = i == faulty
        u, v = pose(x, y, turn if is_faulty and fault == "rotated component" else 0.0, 1.0, (cx, cy))
        image = paint(image, cover(box(u, v, width + 0.05, 0.6 * height)) * board, (0.8, 0.75, 0.6))
        if not (is_faulty and fault == "missing component"):
            image = paint(image, cover(box(u, v, width, height)), colour)
    if fault == "solder bridge":
        drop = blob(fault_rng, x, y, (fault_rng.uniform(-0.6, 0.6), -0.41 + 0.27 * bridge), 0.11, 0.3)
        image = paint(image, drop * board, (0.78, 0.78, 0.8))
    for cx, cy in ((-0.82, -0.67), (0.82, -0.67), (-0.82, 0.67), (0.82, 0.67)):
        image = paint(image, cover(np.hypot(x - cx, y - cy) - 0.05), (0.9, 0.8, 0.4))
    return Picture(image, board, background)


def candle(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """Four tea lights."""
    x, y = specimen_grid(rng, angle_std=0.3)
    background = canvas(SIZE, (0.2, 0.22, 0.3))
    image, things = background, np.zeros((SIZE, SIZE))
    faulty, drop, lump = (
        int(fault_rng.integers(4)),
        fault_rng.uniform(0, 2 * math.pi),
        fault_rng.uniform(0.1, 0.18),
    )
    for i, (cx, cy) in enumerate(((-0.45, -0.45), (0.45, -0.45), (-0.45, 0.45), (0.45, 0.45))):
        cx, cy = cx + 0.03 * rng.standard_normal(), cy + 0.03 * rng.standard_normal()
        radius = np.hypot(x - cx, y - cy)
        wax = cover(radius - 0.36)
        if i == faulty and fault == "chipped edge":
            wax = wax * (
                1 - cover(np.hypot(x - cx - 0.36 * math.cos(drop), y - cy - 0.36 * math.sin(drop)) - lump)
            )
        things = np.maximum(things, wax)
        image = paint(image, wax, jitter_colour(rng, np.array([0.93, 0.88, 0.75])))
        image = paint(image, 0.5 * wax * cover(np.abs(radius - 0.3) - 0.03, 0.03), (0.75, 0.68, 0.5))
        if not (i == faulty and fault == "missing wick"):
            image = paint(image, cover(radius - 0.08), (0.3, 0.22, 0.15))
        if i == faulty and fault == "wax drip":
            u, v = x - cx - 0.22 * math.cos(drop), y - cy - 0.22 * math.sin(drop)
            image = paint(image, cover(np.hypot(u, v) - lump, 0.05), (0.99, 0.96, 0.88))
    return Picture(image, things, background)


def cashew(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A cashew on a green background: an arc that is thick in the middle and round at both ends."""
    x, y = specimen_grid(rng, any_angle=True)
    background = canvas(SIZE, (0.1, 0.3, 0.22))
    radius, angle = np.hypot(x, y - 0.35), np.arctan2(0.35 - y, x)
    nearest = np.clip(angle, 0.35, math.pi - 0.35)  # along the arc; the lower half belongs to the nearer end
    nearest = np.where(angle < -math.pi / 2, math.pi - 0.35, nearest)
    distance = np.hypot(x - 0.62 * np.cos(nearest), y - 0.35 + 0.62 * np.sin(nearest))
    distance = distance - 0.2 - 0.1 * np.sin(nearest)
    if fault == "bite":
        polar_angle, size = fault_rng.uniform(-2.4, -0.7), fault_rng.uniform(0.12, 0.25)
        position = (0.85 * math.cos(polar_angle), 0.35 + 0.85 * math.sin(polar_angle))
        distance = np.maximum(distance, size - np.hypot(x - position[0], y - position[1]))
    nut = cover(distance, 0.04)
    skin = shade(
        canvas(SIZE, jitter_colour(rng, np.array([0.87, 0.74, 0.5]))),
        1.05 - 0.45 * np.abs(radius - 0.62) / 0.3,
    )
    if fault == "burnt spot":
        polar_angle = fault_rng.uniform(-2.4, -0.7)
        spot = blob(
            fault_rng,
            x,
            y,
            (0.62 * math.cos(polar_angle), 0.35 + 0.62 * math.sin(polar_angle)),
            fault_rng.uniform(0.1, 0.22),
        )
        skin = paint(skin, fault_rng.uniform(0.5, 0.9) * spot, (0.3, 0.16, 0.07))
    return Picture(paint(background, nut, skin), nut, background)


def wheel_snack(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A snack in the form of a wheel with five spokes."""
    x, y = specimen_grid(rng, any_angle=True)
    background = canvas(SIZE, (0.15, 0.15, 0.5))
    radius = np.hypot(x, y)
    body = np.maximum(cover(np.abs(radius - 0.75) - 0.13), cover(radius - 0.2))
    faulty, rest = int(fault_rng.integers(5)), fault_rng.uniform(0.05, 0.35)
    for i in range(5):
        polar_angle = 2 * math.pi * i / 5
        u = math.cos(polar_angle) * x + math.sin(polar_angle) * y
        v = -math.sin(polar_angle) * x + math.cos(polar_angle) * y
        reach = rest if i == faulty and fault == "broken spoke" else 0.75
        body = np.maximum(body, cover(np.maximum(np.abs(v) - 0.09, np.maximum(-u, u - reach))))
    if fault == "open rim":
        polar_angle = fault_rng.uniform(0, 2 * math.pi)
        body = body * (
            1 - cover(np.hypot(x - 0.75 * math.cos(polar_angle), y - 0.75 * math.sin(polar_angle)) - 0.2)
        )
    crumb = 0.05 * noise(rng, SIZE, {8: 0.2, 16: 0.6, 32: 0.8, 64: 0.4})
    skin = jitter_colour(rng, np.array([0.9, 0.65, 0.3])) + crumb[..., None]
    return Picture(paint(background, body, skin), body, background)


def zipper(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A closed zipper: two rows of teeth between two tapes."""
    x, y = specimen_grid(rng, angle_std=0.02, shift_std=0.02)
    phase = rng.uniform(0, 2 * math.pi)
    image = shade(canvas(SIZE, (0.12, 0.12, 0.16)), 1 + 0.25 * np.sin(60 * x) * np.sin(60 * y))
    where, gap = fault_rng.uniform(-0.6, 0.6), fault_rng.uniform(0.12, 0.3)
    split = np.where(np.abs(y - where) < 0.22, gap, 0.0) if fault == "split teeth" else 0.0
    teeth = np.sin(26 * y + phase)
    left = cover(np.maximum(np.abs(x + 0.09 + split) - 0.1, -0.1 * teeth), 0.04)
    right = cover(np.maximum(np.abs(x - 0.09 - split) - 0.1, 0.1 * teeth), 0.04)
    both = np.maximum(left, right)
    if fault == "missing teeth":
        both = both * (np.abs(y - where) > 0.14)
    image = paint(image, 0.5 * cover(np.abs(x) - 0.3), (0.3, 0.3, 0.34))
    image = paint(image, both, jitter_colour(rng, np.array([0.75, 0.72, 0.6])))
    if fault == "frayed tape":
        side = 1 if fault_rng.random() < 0.5 else -1
        rag = blob(
            fault_rng,
            x,
            y,
            (side * fault_rng.uniform(0.5, 0.8), fault_rng.uniform(-0.7, 0.7)),
            fault_rng.uniform(0.12, 0.25),
            0.6,
        )
        image = paint(image, 0.7 * rag, (0.45, 0.45, 0.5))
    return surface_picture(image)


def carpet(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A carpet with looped pile; it fills the picture."""
    x, y = specimen_grid(rng, angle_std=0.03, shift_std=0.2)
    loops = 0.5 + 0.25 * np.sin(48 * x) + 0.25 * np.sin(48 * y + 3 * np.sin(24 * x))
    if fault == "crushed pile":
        patch = blob(
            fault_rng, x, y, tuple(fault_rng.uniform(-0.6, 0.6, 2)), fault_rng.uniform(0.2, 0.35), 0.4, 0.08
        )
        loops = loops * (1 - patch) + 0.35 * patch
    image = shade(canvas(SIZE, jitter_colour(rng, np.array([0.4, 0.38, 0.36]))), 0.6 + 0.7 * loops)
    image = image + 0.05 * noise(rng, SIZE, {16: 0.2, 32: 0.5, 64: 1.0})[..., None]
    if fault == "pulled loop":
        start, headings = (
            fault_rng.uniform(-0.7, 0.7, 2),
            fault_rng.uniform(0, 2 * math.pi) + np.cumsum(fault_rng.normal(0, 0.5, 7)),
        )
        path = start + np.cumsum(0.1 * np.stack([np.cos(headings), np.sin(headings)], 1), 0)
        image = paint(image, cover(polyline(*grid(SIZE), path) - 0.02, 0.03), (0.62, 0.6, 0.56))
    if fault == "bald spot":
        spot = blob(
            fault_rng, x, y, tuple(fault_rng.uniform(-0.7, 0.7, 2)), fault_rng.uniform(0.08, 0.16), 0.3
        )
        image = paint(image, spot, (0.7, 0.65, 0.55))
    return surface_picture(image)


def solar_cell(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """An electroluminescence image of a solar cell: bus bars, fingers, uneven brightness."""
    x, y = specimen_grid(rng, angle_std=0.01, shift_std=0.01)
    background = canvas(SIZE, (0.05, 0.05, 0.05))
    cell = cover(np.maximum(box(x, y, 0.93, 0.93), np.abs(x) + np.abs(y) - 1.72))
    glow = 0.55 + 0.07 * noise(rng, SIZE, {4: 1.0, 8: 0.6, 16: 0.3, 32: 0.1}) - 0.06 * (x * x + y * y)
    image = paint(background, cell, np.repeat(glow[..., None], 3, -1))
    image = paint(image, 0.06 * cell * (1 + np.sin(70 * x)), 0.2)
    if fault == "inactive area":
        edge = fault_rng.uniform(-0.5, 0.5) + 0.12 * noise(fault_rng, SIZE, {4: 1.0, 8: 0.3})
        side = x if fault_rng.random() < 0.5 else -x
        strip = cover(np.abs(y - 0.6 * fault_rng.integers(-1, 2)) - 0.3, 0.03)
        image = paint(image, 0.75 * cell * strip * cover(side - edge, 0.05), 0.15)
    if fault == "finger break":
        for _ in range(2):
            spot = box(
                x - fault_rng.uniform(-0.8, 0.8),
                y - 0.6 * fault_rng.integers(-1, 2),
                fault_rng.uniform(0.02, 0.05),
                0.25,
            )
            image = paint(image, 0.7 * cell * cover(spot, 0.02), 0.2)
    if fault == "dark crack":
        headings = fault_rng.uniform(0, 2 * math.pi) + 0.45 * fault_rng.standard_normal(7)
        path = np.cumsum(fault_rng.uniform(0.08, 0.22) * np.stack([np.cos(headings), np.sin(headings)], 1), 0)
        path += fault_rng.uniform(-0.5, 0.5, 2) - path.mean(0)
        image = paint(image, 0.85 * cell * cover(polyline(x, y, path) - 0.012, 0.02), 0.1)
    for row in (-0.3, 0.3):
        image = paint(image, cell * cover(np.abs(y - row) - 0.03), 0.85)
    return Picture(image, cell, background)


def twill(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
    """A grey fabric with a diagonal weave; it fills the picture."""
    x, y = specimen_grid(rng, angle_std=0.02, shift_std=0.3)
    weave = 0.22 * (0.5 * np.sin(52 * (x + y)) + 0.15 * np.sin(90 * (x - y)))
    level = 0.42 + weave + 0.02 * noise(rng, SIZE)
    if fault == "slack area":
        patch = blob(
            fault_rng, x, y, tuple(fault_rng.uniform(-0.6, 0.6, 2)), fault_rng.uniform(0.2, 0.35), 0.3, 0.1
        )
        level = level - 0.85 * patch * weave
    image = np.repeat(level[..., None], 3, -1)
    if fault == "broken yarn":
        row, start, reach = (
            fault_rng.uniform(-0.7, 0.7),
            fault_rng.uniform(-0.5, 0.5),
            fault_rng.uniform(0.2, 0.9),
        )
        line = cover(np.maximum(np.abs(y - row) - 0.02, np.abs(x - start) - reach), 0.02)
        image = paint(image, 0.8 * line, 0.75 if fault_rng.random() < 0.5 else 0.12)
    if fault == "knot":
        position = fault_rng.uniform(-0.8, 0.8, 2)
        image = paint(
            image,
            cover(np.hypot(x - position[0], y - position[1]) - fault_rng.uniform(0.04, 0.09), 0.05),
            0.8,
        )
    return surface_picture(image)
