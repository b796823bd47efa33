"""Evaluation worlds of other industry: products, solar cells and fabric that training never sees.

A renderer is a function (rng, fault, odd) -> Picture. The same `rng` gives the same specimen with and
without the fault, which draws what it needs from `odd`: so the difference of the two is the mask.
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
from inctrl_lite.data.worlds.industrial import SIZE, close, placed, whole


def pcb(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Circuit board with tracks and components."""
    x, y = placed(rng, sway=0.02, shift=0.02)
    background = canvas(SIZE, (0.1, 0.1, 0.1))
    board = cover(box(x, y, 0.92, 0.78))
    image = paint(background, board, close(rng, np.array([0.05, 0.35, 0.2])))
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
    victim = int(odd.integers(len(components)))
    turn = odd.uniform(0.5, 1.1)
    bridge = odd.integers(3)
    for i, (cx, cy, width, height, colour) in enumerate(components):
        hit = i == victim
        u, v = pose(x, y, turn if hit and fault == "rotated component" else 0.0, 1.0, (cx, cy))
        image = paint(image, cover(box(u, v, width + 0.05, 0.6 * height)) * board, (0.8, 0.75, 0.6))
        if not (hit and fault == "missing component"):
            image = paint(image, cover(box(u, v, width, height)), colour)
    if fault == "solder bridge":
        drop = blob(odd, x, y, (odd.uniform(-0.6, 0.6), -0.41 + 0.27 * bridge), 0.11, 0.3)
        image = paint(image, drop * board, (0.78, 0.78, 0.8))
    for cx, cy in ((-0.82, -0.67), (0.82, -0.67), (-0.82, 0.67), (0.82, 0.67)):
        image = paint(image, cover(np.hypot(x - cx, y - cy) - 0.05), (0.9, 0.8, 0.4))
    return Picture(image, board, background)


def candle(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Four tea lights."""
    x, y = placed(rng, sway=0.3)
    background = canvas(SIZE, (0.2, 0.22, 0.3))
    image, things = background, np.zeros((SIZE, SIZE))
    victim, drop, lump = int(odd.integers(4)), odd.uniform(0, 2 * math.pi), odd.uniform(0.1, 0.18)
    for i, (cx, cy) in enumerate(((-0.45, -0.45), (0.45, -0.45), (-0.45, 0.45), (0.45, 0.45))):
        cx, cy = cx + 0.03 * rng.standard_normal(), cy + 0.03 * rng.standard_normal()
        radius = np.hypot(x - cx, y - cy)
        wax = cover(radius - 0.36)
        if i == victim and fault == "chipped edge":
            wax = wax * (
                1 - cover(np.hypot(x - cx - 0.36 * math.cos(drop), y - cy - 0.36 * math.sin(drop)) - lump)
            )
        things = np.maximum(things, wax)
        image = paint(image, wax, close(rng, np.array([0.93, 0.88, 0.75])))
        image = paint(image, 0.5 * wax * cover(np.abs(radius - 0.3) - 0.03, 0.03), (0.75, 0.68, 0.5))
        if not (i == victim and fault == "missing wick"):
            image = paint(image, cover(radius - 0.08), (0.3, 0.22, 0.15))
        if i == victim and fault == "wax drip":
            u, v = x - cx - 0.22 * math.cos(drop), y - cy - 0.22 * math.sin(drop)
            image = paint(image, cover(np.hypot(u, v) - lump, 0.05), (0.99, 0.96, 0.88))
    return Picture(image, things, background)


def cashew(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """A curved nut on green: an arc that is thick in the middle and round at both ends."""
    x, y = placed(rng, free=True)
    background = canvas(SIZE, (0.1, 0.3, 0.22))
    radius, angle = np.hypot(x, y - 0.35), np.arctan2(0.35 - y, x)
    nearest = np.clip(angle, 0.35, math.pi - 0.35)  # along the arc; the lower half belongs to the nearer end
    nearest = np.where(angle < -math.pi / 2, math.pi - 0.35, nearest)
    distance = np.hypot(x - 0.62 * np.cos(nearest), y - 0.35 + 0.62 * np.sin(nearest))
    distance = distance - 0.2 - 0.1 * np.sin(nearest)
    if fault == "bite":
        around, size = odd.uniform(-2.4, -0.7), odd.uniform(0.12, 0.25)
        place = (0.85 * math.cos(around), 0.35 + 0.85 * math.sin(around))
        distance = np.maximum(distance, size - np.hypot(x - place[0], y - place[1]))
    nut = cover(distance, 0.04)
    skin = shade(
        canvas(SIZE, close(rng, np.array([0.87, 0.74, 0.5]))), 1.05 - 0.45 * np.abs(radius - 0.62) / 0.3
    )
    if fault == "burnt spot":
        around = odd.uniform(-2.4, -0.7)
        spot = blob(
            odd, x, y, (0.62 * math.cos(around), 0.35 + 0.62 * math.sin(around)), odd.uniform(0.1, 0.22)
        )
        skin = paint(skin, odd.uniform(0.5, 0.9) * spot, (0.3, 0.16, 0.07))
    return Picture(paint(background, nut, skin), nut, background)


def wheel_snack(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """A fried wheel with spokes."""
    x, y = placed(rng, free=True)
    background = canvas(SIZE, (0.15, 0.15, 0.5))
    radius = np.hypot(x, y)
    body = np.maximum(cover(np.abs(radius - 0.75) - 0.13), cover(radius - 0.2))
    victim, rest = int(odd.integers(5)), odd.uniform(0.05, 0.35)
    for i in range(5):
        around = 2 * math.pi * i / 5
        u = math.cos(around) * x + math.sin(around) * y
        v = -math.sin(around) * x + math.cos(around) * y
        reach = rest if i == victim and fault == "broken spoke" else 0.75
        body = np.maximum(body, cover(np.maximum(np.abs(v) - 0.09, np.maximum(-u, u - reach))))
    if fault == "open rim":
        around = odd.uniform(0, 2 * math.pi)
        body = body * (1 - cover(np.hypot(x - 0.75 * math.cos(around), y - 0.75 * math.sin(around)) - 0.2))
    crumb = 0.05 * noise(rng, SIZE, {8: 0.2, 16: 0.6, 32: 0.8, 64: 0.4})
    skin = close(rng, np.array([0.9, 0.65, 0.3])) + crumb[..., None]
    return Picture(paint(background, body, skin), body, background)


def zipper(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Two rows of teeth between tapes."""
    x, y = placed(rng, sway=0.02, shift=0.02)
    phase = rng.uniform(0, 2 * math.pi)
    image = shade(canvas(SIZE, (0.12, 0.12, 0.16)), 1 + 0.25 * np.sin(60 * x) * np.sin(60 * y))
    where, gap = odd.uniform(-0.6, 0.6), odd.uniform(0.12, 0.3)
    split = np.where(np.abs(y - where) < 0.22, gap, 0.0) if fault == "split teeth" else 0.0
    teeth = np.sin(26 * y + phase)
    left = cover(np.maximum(np.abs(x + 0.09 + split) - 0.1, -0.1 * teeth), 0.04)
    right = cover(np.maximum(np.abs(x - 0.09 - split) - 0.1, 0.1 * teeth), 0.04)
    both = np.maximum(left, right)
    if fault == "missing teeth":
        both = both * (np.abs(y - where) > 0.14)
    image = paint(image, 0.5 * cover(np.abs(x) - 0.3), (0.3, 0.3, 0.34))
    image = paint(image, both, close(rng, np.array([0.75, 0.72, 0.6])))
    if fault == "frayed tape":
        side = 1 if odd.random() < 0.5 else -1
        rag = blob(
            odd, x, y, (side * odd.uniform(0.5, 0.8), odd.uniform(-0.7, 0.7)), odd.uniform(0.12, 0.25), 0.6
        )
        image = paint(image, 0.7 * rag, (0.45, 0.45, 0.5))
    return whole(image)


def carpet(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Looped pile."""
    x, y = placed(rng, sway=0.03, shift=0.2)
    loops = 0.5 + 0.25 * np.sin(48 * x) + 0.25 * np.sin(48 * y + 3 * np.sin(24 * x))
    if fault == "crushed pile":
        patch = blob(odd, x, y, tuple(odd.uniform(-0.6, 0.6, 2)), odd.uniform(0.2, 0.35), 0.4, 0.08)
        loops = loops * (1 - patch) + 0.35 * patch
    image = shade(canvas(SIZE, close(rng, np.array([0.4, 0.38, 0.36]))), 0.6 + 0.7 * loops)
    image = image + 0.05 * noise(rng, SIZE, {16: 0.2, 32: 0.5, 64: 1.0})[..., None]
    if fault == "pulled loop":
        start, around = (
            odd.uniform(-0.7, 0.7, 2),
            odd.uniform(0, 2 * math.pi) + np.cumsum(odd.normal(0, 0.5, 7)),
        )
        path = start + np.cumsum(0.1 * np.stack([np.cos(around), np.sin(around)], 1), 0)
        image = paint(image, cover(polyline(*grid(SIZE), path) - 0.02, 0.03), (0.62, 0.6, 0.56))
    if fault == "bald spot":
        spot = blob(odd, x, y, tuple(odd.uniform(-0.7, 0.7, 2)), odd.uniform(0.08, 0.16), 0.3)
        image = paint(image, spot, (0.7, 0.65, 0.55))
    return whole(image)


def solar_cell(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Electroluminescence image of a cell: bus bars, fingers, cloudy brightness."""
    x, y = placed(rng, sway=0.01, shift=0.01)
    background = canvas(SIZE, (0.05, 0.05, 0.05))
    cell = cover(np.maximum(box(x, y, 0.93, 0.93), np.abs(x) + np.abs(y) - 1.72))
    glow = 0.55 + 0.07 * noise(rng, SIZE, {4: 1.0, 8: 0.6, 16: 0.3, 32: 0.1}) - 0.06 * (x * x + y * y)
    image = paint(background, cell, np.repeat(glow[..., None], 3, -1))
    image = paint(image, 0.06 * cell * (1 + np.sin(70 * x)), 0.2)
    if fault == "inactive area":
        edge = odd.uniform(-0.5, 0.5) + 0.12 * noise(odd, SIZE, {4: 1.0, 8: 0.3})
        side = x if odd.random() < 0.5 else -x
        strip = cover(np.abs(y - 0.6 * odd.integers(-1, 2)) - 0.3, 0.03)
        image = paint(image, 0.75 * cell * strip * cover(side - edge, 0.05), 0.15)
    if fault == "finger break":
        for _ in range(2):
            spot = box(
                x - odd.uniform(-0.8, 0.8), y - 0.6 * odd.integers(-1, 2), odd.uniform(0.02, 0.05), 0.25
            )
            image = paint(image, 0.7 * cell * cover(spot, 0.02), 0.2)
    if fault == "dark crack":
        around = odd.uniform(0, 2 * math.pi) + 0.45 * odd.standard_normal(7)
        path = np.cumsum(odd.uniform(0.08, 0.22) * np.stack([np.cos(around), np.sin(around)], 1), 0)
        path += odd.uniform(-0.5, 0.5, 2) - path.mean(0)
        image = paint(image, 0.85 * cell * cover(polyline(x, y, path) - 0.012, 0.02), 0.1)
    for row in (-0.3, 0.3):
        image = paint(image, cell * cover(np.abs(y - row) - 0.03), 0.85)
    return Picture(image, cell, background)


def twill(rng: Generator, fault: str | None, odd: Generator) -> Picture:
    """Grey diagonal weave."""
    x, y = placed(rng, sway=0.02, shift=0.3)
    weave = 0.22 * (0.5 * np.sin(52 * (x + y)) + 0.15 * np.sin(90 * (x - y)))
    level = 0.42 + weave + 0.02 * noise(rng, SIZE)
    if fault == "slack area":
        patch = blob(odd, x, y, tuple(odd.uniform(-0.6, 0.6, 2)), odd.uniform(0.2, 0.35), 0.3, 0.1)
        level = level - 0.85 * patch * weave
    image = np.repeat(level[..., None], 3, -1)
    if fault == "broken yarn":
        row, start, reach = odd.uniform(-0.7, 0.7), odd.uniform(-0.5, 0.5), odd.uniform(0.2, 0.9)
        line = cover(np.maximum(np.abs(y - row) - 0.02, np.abs(x - start) - reach), 0.02)
        image = paint(image, 0.8 * line, 0.75 if odd.random() < 0.5 else 0.12)
    if fault == "knot":
        place = odd.uniform(-0.8, 0.8, 2)
        image = paint(image, cover(np.hypot(x - place[0], y - place[1]) - odd.uniform(0.04, 0.09), 0.05), 0.8)
    return whole(image)
