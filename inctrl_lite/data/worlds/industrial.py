"""The auxiliary set: one domain, many categories. 13 families of industrial objects, in four materials each.

A family is a function (design, colour) -> renderer, and makes one category. `design` is a random generator
for everything that all specimens of the category share (proportions, further colours); `colour` [3], in
[0, 1], is that of the material. A renderer (rng, fault, fault_rng) -> Picture draws one specimen, with an
image [120, 120, 3] that lies roughly in [0, 1]. `fault` names the anomaly, None draws a normal specimen. The
same `rng` gives the same specimen with and without the fault, because the fault draws its random numbers
from `fault_rng` alone. The mask is therefore the set of pixels in which the two drawings differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from inctrl_lite.data.defects import Picture
from inctrl_lite.data.drawing import Array, box, canvas, cover, disc, grid, noise, paint, polygon, pose, shade

Render = Callable[[Generator, str | None, Generator], Picture]
Family = Callable[[Generator, Array], Render]
SIZE = 120  # pixels a side
METAL = {8: 0.1, 16: 0.4, 32: 0.8, 64: 0.8}  # octaves of the noise on a metal surface


def specimen_grid(
    rng: Generator, any_angle: bool = False, angle_std: float = 0.05, shift_std: float = 0.03
) -> tuple[Array, Array]:
    """Object coordinates (x, y) of the pixels, each [120, 120], for a specimen in a random pose.

    Args:
        rng: source of the pose.
        any_angle: draw the rotation from the whole circle, not from a normal distribution.
        angle_std: standard deviation of the rotation, in radians.
        shift_std: standard deviation of the shift; the picture is 2 units wide.
    """
    angle = rng.uniform(0, 2 * math.pi) if any_angle else angle_std * rng.standard_normal()
    shift = shift_std * rng.standard_normal(2)
    return pose(*grid(SIZE), angle, 1 + 0.03 * rng.standard_normal(), (shift[0], shift[1]))


def random_colour(design: Generator, low: float = 0.05, high: float = 0.95) -> Array:
    """A random colour [3]; each channel lies in [low, high]."""
    return design.uniform(low, high, 3)


def random_grey(design: Generator, low: float, high: float) -> Array:
    """A random colour [3] that is nearly grey, with a brightness in [low, high]."""
    return np.clip(design.uniform(low, high) + 0.03 * design.standard_normal(3), 0, 1)


def jitter_colour(rng: Generator, colour: Array, std: float = 0.015) -> Array:
    """`colour` [3] with a small random change of each channel: specimens of a category differ a little."""
    return np.clip(colour + std * rng.standard_normal(3), 0, 1)


def contrast_to(design: Generator, colour: Array) -> Array:
    """A dark colour [3] for a bright object, a bright one for a dark object: a background with contrast."""
    return np.full(3, 0.12 if colour.mean() > 0.5 else 0.88) + 0.05 * design.standard_normal(3)


def surface_picture(image: Array) -> Picture:
    """The picture of a surface: `image` [S, S, 3] is covered by it completely."""
    return Picture(image, np.ones(image.shape[:2]), canvas(len(image), image.mean((0, 1)) * 0.2))


def bottle(design: Generator, colour: Array) -> Render:
    """A bottle seen from above: concentric glass rings around a dark mouth."""
    ring, backdrop = random_colour(design, 0.3, 0.8), random_grey(design, 0.85, 0.95)
    outer, mouth = design.uniform(0.8, 0.92), design.uniform(0.42, 0.55)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, any_angle=True)
        radius, background = np.hypot(x, y), canvas(SIZE, backdrop)
        body = cover(radius - outer)
        image = paint(background, body, jitter_colour(rng, colour))
        image = paint(image, cover(np.abs(radius - (outer + mouth) / 2) - 0.03), ring)
        lip = np.hypot(x - fault_rng.uniform(0.09, 0.18), y) if fault == "crooked mouth" else radius
        image = paint(image, cover(lip - mouth), colour * 0.35)
        image = paint(image, cover(np.abs(lip - mouth) - 0.03), jitter_colour(rng, ring + 0.1))
        gx, gy = grid(SIZE)
        glint = 0.6 * cover(np.hypot(gx + 0.2, gy + 0.2) - 0.12, 0.15)
        return Picture(paint(image, glint, np.clip(ring + 0.3, 0, 1)), body, background)

    return render


def nut(design: Generator, colour: Array) -> Render:
    """A nut with flat sides and a threaded bore."""
    sides, bore = int(design.choice([4, 6, 8])), design.uniform(0.3, 0.48)
    backdrop = contrast_to(design, colour)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, any_angle=True)
        rim = polygon(x, y, sides, 0.85 * math.cos(math.pi / sides) ** 0.5)
        radius = (
            np.hypot(x - fault_rng.uniform(0.07, 0.14), y) if fault == "off-centre bore" else np.hypot(x, y)
        )
        body, background = cover(np.maximum(rim, bore - radius)), canvas(SIZE, backdrop)
        image = paint(
            background, body, jitter_colour(rng, colour) + 0.05 * noise(rng, SIZE, METAL)[..., None]
        )
        image = paint(image, cover(np.abs(radius - bore - 0.06) - 0.03) * body, np.clip(colour + 0.2, 0, 1))
        image = paint(image, cover(np.abs(rim + 0.1) - 0.03) * body, colour * 0.65)
        return Picture(image, body, background)

    return render


def capsule(design: Generator, colour: Array) -> Render:
    """A two-coloured capsule with printed marks."""
    other, ink = (
        random_colour(design),
        random_grey(design, 0.85, 0.95) if colour.mean() < 0.6 else random_grey(design, 0.1, 0.2),
    )
    length, thickness = design.uniform(0.45, 0.6), design.uniform(0.28, 0.38)
    marks, backdrop = int(design.integers(2, 5)), random_grey(design, 0.88, 0.95)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, angle_std=0.1)
        step = (
            fault_rng.uniform(0.06, 0.14) * fault_rng.choice([-1, 1]) if fault == "misaligned halves" else 0.0
        )
        y = np.where(x < -0.05, y - step, y)
        body = cover(np.hypot(np.maximum(np.abs(x) - length, 0), y) - thickness)
        background = canvas(SIZE, backdrop)
        image = paint(background, body, jitter_colour(rng, other))
        image = paint(image, body * cover(x + 0.05), jitter_colour(rng, colour))
        for i in range(marks):
            slip, tall = (fault_rng.uniform(-0.15, 0.15), 0.05) if fault == "faulty print" else (0.0, 0.12)
            image = paint(image, cover(box(x + 0.55 - 0.13 * i, y - slip, 0.035, tall)), ink)
        image = paint(image, 0.6 * body * cover(box(x - 0.1, y + thickness / 2, 0.5, 0.03), 0.06), 1.0)
        return Picture(image, body, background)

    return render


def cable(design: Generator, colour: Array) -> Render:
    """The cross-section of a cable: coloured wires with copper cores in a sleeve."""
    wires = int(design.integers(2, 5))
    colours, backdrop = [random_colour(design, 0.1, 0.9) for _ in range(wires)], contrast_to(design, colour)
    size = {2: 0.4, 3: 0.36, 4: 0.31}[wires]

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, angle_std=0.15)
        body, background = cover(np.hypot(x, y) - 0.93), canvas(SIZE, backdrop)
        image = paint(background, body, jitter_colour(rng, colour))
        faulty = int(fault_rng.integers(wires))
        for i, wire in enumerate(colours):
            wire, polar_angle = jitter_colour(rng, wire), 2 * math.pi * i / wires - math.pi / 2
            if i == faulty and fault == "missing wire":
                continue
            if i == faulty and fault == "wrong wire":
                wire = np.roll(wire, 1) if np.ptp(wire) > 0.3 else 1 - wire
            radius = np.hypot(x - 0.48 * math.cos(polar_angle), y - 0.48 * math.sin(polar_angle))
            image = paint(image, cover(radius - size), wire)
            strands = 0.75 + 0.35 * np.sin(45 * x) * np.sin(45 * y)
            copper = np.array([0.72, 0.42, 0.22]) * strands[..., None]
            image = paint(image, cover(radius - 0.68 * size), copper)
        return Picture(image, body, background)

    return render


def screw(design: Generator, colour: Array) -> Render:
    """A screw that lies on its side: head, thread and tip."""
    backdrop, pitch = contrast_to(design, colour), design.uniform(30, 50)
    shaft, head = design.uniform(0.1, 0.16), design.uniform(0.18, 0.3)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, any_angle=True)
        end = -fault_rng.uniform(0.6, 0.85) if fault == "short tip" else -0.95
        thread = cover(x - 0.45)
        if fault == "stripped thread":
            thread = thread * (
                1 - cover(np.abs(x - fault_rng.uniform(-0.5, 0.2)) - fault_rng.uniform(0.1, 0.25))
            )
        winding = np.sin(pitch * x) * thread
        rod = np.maximum(np.abs(y) - shaft - 0.03 * winding, np.maximum(end + 0.2 - x, x - 0.6))
        tip = np.maximum(
            np.abs(y) - shaft * np.clip((x - end) / 0.2, 0, 1), np.maximum(end - x, x - end - 0.25)
        )
        cap = np.maximum(
            np.abs(y) - shaft - head * np.clip((x - 0.55) / 0.2, 0, 1), np.maximum(0.55 - x, x - 0.85)
        )
        body, background = cover(np.min([rod, tip, cap], axis=0)), canvas(SIZE, backdrop)
        image = paint(background, body, jitter_colour(rng, colour))
        image = paint(image, 0.4 * body * thread, shade(canvas(SIZE, colour), 1 + np.sin(pitch * x + 2 * y)))
        image = paint(image, 0.5 * body * cover(np.abs(y) - 0.03, 0.06), np.clip(colour + 0.4, 0, 1))
        return Picture(image, body, background)

    return render


def tile(design: Generator, colour: Array) -> Render:
    """A speckled stone tile."""
    dark, amount = colour * design.uniform(0.2, 0.5), design.uniform(-0.8, -0.2)
    grain = {8: design.uniform(0, 0.4), 16: 0.6, 32: 1.0, 64: 0.5}

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        spots = cover(amount - noise(rng, SIZE, grain), 0.5)
        return surface_picture(paint(canvas(SIZE, jitter_colour(rng, colour)), spots, dark))

    return render


def leather(design: Generator, colour: Array) -> Render:
    """Leather with a visible grain."""
    depth, grain = design.uniform(0.3, 0.5), {8: 0.2, 16: design.uniform(0.3, 0.6), 32: 1.0, 64: 0.2}

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        crease = cover(np.abs(noise(rng, SIZE, grain)) - 0.12, 0.25)
        image = shade(canvas(SIZE, jitter_colour(rng, colour)), 1 - depth * crease)
        return surface_picture(image + 0.02 * noise(rng, SIZE)[..., None])

    return render


def mesh(design: Generator, colour: Array) -> Render:
    """Crossed wires over a plain background."""
    ground, pitch = contrast_to(design, colour), design.uniform(3.2, 5)
    angle, thick = design.uniform(0, math.pi / 2), design.uniform(0.1, 0.17)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        shift = rng.uniform(-0.3, 0.3, 2)
        x, y = pose(*grid(SIZE), angle + 0.03 * rng.standard_normal(), 1.0, (shift[0], shift[1]))
        upright = cover(np.abs(np.mod(x * pitch, 1) - 0.5) - thick, 0.08)
        level = cover(np.abs(np.mod(y * pitch, 1) - 0.5) - thick, 0.08)
        if fault == "broken wire":
            gone = np.floor(x * pitch) == fault_rng.integers(-2, 2)
            upright = upright * (
                1 - gone * cover(np.abs(y - fault_rng.uniform(-0.5, 0.5)) - fault_rng.uniform(0.1, 0.5))
            )
        background = canvas(SIZE, ground)
        image = paint(background, np.maximum(upright, level), jitter_colour(rng, colour))
        return Picture(image, np.ones((SIZE, SIZE)), background)

    return render


def gasket(design: Generator, colour: Array) -> Render:
    """A flat seal with bolt holes around a wide opening."""
    holes, inner = int(design.integers(3, 9)), design.uniform(0.35, 0.5)
    backdrop = contrast_to(design, colour)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, any_angle=True)
        radius = np.hypot(x, y)
        distance = np.maximum(radius - 0.88, inner - radius)
        ring = (0.88 + inner) / 2
        faulty = int(fault_rng.integers(holes))
        for i in range(holes):
            if i == faulty and fault == "missing bolt hole":
                continue
            polar_angle = 2 * math.pi * i / holes
            hole = np.hypot(x - ring * math.cos(polar_angle), y - ring * math.sin(polar_angle))
            distance = np.maximum(distance, 0.09 - hole)
        body, background = cover(distance), canvas(SIZE, backdrop)
        skin = jitter_colour(rng, colour) + 0.02 * noise(rng, SIZE, METAL)[..., None]
        return Picture(paint(background, body, skin), body, background)

    return render


def label_plate(design: Generator, colour: Array) -> Render:
    """A rating plate with a border, rivets and lines of print."""
    ink, lines = random_colour(design, 0.0, 0.35), int(design.integers(3, 6))
    tall, backdrop = design.uniform(0.5, 0.75), contrast_to(design, colour)
    reach, start = design.uniform(0.2, 0.55, lines), design.uniform(-0.15, 0.15, lines)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng)
        body, background = cover(box(x, y, 0.9, tall)), canvas(SIZE, backdrop)
        brushed = 0.03 * noise(rng, SIZE, {64: 1.0})
        image = paint(background, body, jitter_colour(rng, colour) + brushed[..., None])
        image = paint(image, cover(np.abs(box(x, y, 0.82, tall - 0.08)) - 0.015) * body, ink)
        faulty, faded = int(fault_rng.integers(lines)), fault_rng.uniform(0.1, 0.4)
        for i in range(lines):
            row = (i + 0.5) / lines * 1.4 * tall - 0.7 * tall
            text = cover(box(x - start[i], y - row, reach[i], 0.045)) * (np.sin(38 * x + 9 * i) > -0.4)
            image = paint(image, text * (faded if i == faulty and fault == "faded print" else 1.0), ink)
        for i, cx in enumerate((-0.76, 0.76)):
            rivet = cover(np.hypot(x - cx, y) - 0.05)
            image = paint(
                image, rivet, backdrop if i == faulty % 2 and fault == "missing rivet" else colour * 0.6
            )
        return Picture(image, body, background)

    return render


def spring(design: Generator, colour: Array) -> Render:
    """A coil spring from the side: bright strands in front, darker ones behind."""
    coils, wide = design.uniform(2.6, 4.6), design.uniform(0.3, 0.5)
    wire, backdrop = design.uniform(0.04, 0.055), contrast_to(design, colour)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, angle_std=0.25)
        along, skin = x, jitter_colour(rng, colour)
        if fault == "stretched coil":
            where, pull = fault_rng.uniform(-0.5, 0.5), fault_rng.uniform(0.08, 0.18)
            along = x - pull * np.exp(-(((x - where) / 0.25) ** 2))
        image = background = canvas(SIZE, backdrop)
        body, slope = np.zeros((SIZE, SIZE)), 0.25 / (coils * wide)
        for lean, light in ((-1, 0.55), (1, 1.0)):  # behind, then in front
            across = (np.mod(coils * along - 0.5 - 0.25 * lean * (y / wide + 1), 1) - 0.5) / coils
            across = across / math.hypot(1, slope)
            strand = cover(np.maximum(np.abs(across) - wire, np.maximum(np.abs(y) - wide, np.abs(x) - 0.88)))
            round_ = light * (1.15 - 0.5 * (across / wire) ** 2)
            image = paint(image, strand, shade(canvas(SIZE, skin), np.clip(round_, 0.3, 1.2)))
            body = np.maximum(body, strand)
        return Picture(image, body, background)

    return render


def bearing(design: Generator, colour: Array) -> Render:
    """A ball bearing: two rings and the balls between them."""
    balls, backdrop, cage = (
        int(design.integers(7, 12)),
        contrast_to(design, colour),
        random_colour(design, 0.1, 0.4),
    )
    steel = random_grey(design, 0.7, 0.85)

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, any_angle=True)
        radius, background = np.hypot(x, y), canvas(SIZE, backdrop)
        body = cover(np.maximum(radius - 0.9, 0.28 - radius))
        image = paint(background, body, jitter_colour(rng, colour))
        image = paint(image, cover(np.abs(radius - 0.6) - 0.15), cage)
        faulty = int(fault_rng.integers(balls))
        for i in range(balls):
            if i == faulty and fault == "missing ball":
                continue
            polar_angle = 2 * math.pi * i / balls
            local = np.hypot(x - 0.6 * math.cos(polar_angle), y - 0.6 * math.sin(polar_angle))
            image = paint(image, cover(local - 0.115), np.clip(steel + 0.15 - 2 * local[..., None], 0, 1))
        return Picture(image, body, background)

    return render


def perforated_sheet(design: Generator, colour: Array) -> Render:
    """A metal sheet with rows of punched holes."""
    dark, pitch = random_grey(design, 0.03, 0.12), design.uniform(2.5, 4.5)
    hole, stagger = design.uniform(0.22, 0.34), design.random() < 0.5

    def render(rng: Generator, fault: str | None, fault_rng: Generator) -> Picture:
        x, y = specimen_grid(rng, angle_std=0.02, shift_std=0.1)
        row = np.floor(y * pitch)
        across = x * pitch + (0.5 * (row % 2) if stagger else 0)
        holes = cover(disc(np.mod(across, 1) - 0.5, np.mod(y * pitch, 1) - 0.5, hole), 0.1)
        if fault == "blocked hole":
            blocked = (row == fault_rng.integers(-2, 2)) & (np.floor(across) == fault_rng.integers(-2, 2))
            holes = holes * (1 - fault_rng.uniform(0.5, 1.0) * blocked)
        skin = jitter_colour(rng, colour) + 0.04 * noise(rng, SIZE, METAL)[..., None]
        return Picture(paint(skin, holes, dark), np.ones((SIZE, SIZE)), canvas(SIZE, dark))

    return render


MATERIALS: dict[str, tuple[float, float, float]] = {
    "beige": (0.8, 0.73, 0.6),
    "black": (0.15, 0.15, 0.17),
    "blue": (0.15, 0.27, 0.62),
    "brass": (0.76, 0.62, 0.3),
    "brown": (0.36, 0.21, 0.11),
    "copper": (0.72, 0.44, 0.3),
    "green": (0.13, 0.42, 0.24),
    "grey": (0.55, 0.55, 0.57),
    "red": (0.62, 0.14, 0.12),
    "steel": (0.6, 0.62, 0.66),
    "tan": (0.66, 0.49, 0.32),
    "white": (0.88, 0.88, 0.86),
    "yellow": (0.85, 0.7, 0.15),
}
METALS = ("steel", "brass", "copper", "black")

# noun -> (family, its materials with one category each, faults that only this family has)
FAMILIES: dict[str, tuple[Family, tuple[str, ...], tuple[str, ...]]] = {
    "bottle": (bottle, ("green", "brown", "blue", "grey"), ("crooked mouth",)),
    "nut": (nut, METALS, ("off-centre bore",)),
    "capsule": (capsule, ("red", "yellow", "blue", "white"), ("faulty print", "misaligned halves")),
    "cable": (cable, ("white", "grey", "black", "beige"), ("missing wire", "wrong wire")),
    "screw": (screw, METALS, ("short tip", "stripped thread")),
    "tile": (tile, ("grey", "beige", "white", "tan"), ()),
    "leather": (leather, ("brown", "tan", "red", "black"), ()),
    "wire mesh": (mesh, METALS, ("broken wire",)),
    "gasket": (gasket, ("black", "red", "green", "blue"), ("missing bolt hole",)),
    "label plate": (label_plate, ("white", "yellow", "steel", "brass"), ("faded print", "missing rivet")),
    "spring": (spring, METALS, ("stretched coil",)),
    "ball bearing": (bearing, ("steel", "brass", "grey", "blue"), ("missing ball",)),
    "perforated sheet": (perforated_sheet, ("steel", "brass", "copper", "white"), ("blocked hole",)),
}
SURFACES = frozenset({"tile", "leather", "wire mesh", "perforated sheet"})
# Generic defects (`defects.DEFECTS`), which are painted over the finished drawing.
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
