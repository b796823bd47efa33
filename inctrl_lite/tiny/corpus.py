"""The pretraining corpus of the tiny CLIP: pictures with captions.

The pictures are drawn; in the third corpus, some are pieces of ten photographs. One sample is a triplet: an
*anchor* (a normal picture), a *positive* (a second picture of the same object, with another pose, light and
noise) and a *negative* (the odd one out). Most negatives show the object with a painted defect. For *signs*
and *silhouettes* most of them show another object, so that the global embedding learns to tell objects apart.
Sample `i` depends only on (seed, i).

Nothing is drawn here that the auxiliary set or an evaluation world draws (a test compares `FAMILIES` with
theirs), and there are no digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from inctrl_lite.data.defects import DEFECTS, GRAIN, Picture, changed, damage
from inctrl_lite.data.drawing import (
    Array,
    box,
    canvas,
    cover,
    disc,
    grid,
    look_up,
    noise,
    paint,
    photograph,
    polygon,
    polyline,
    pose,
    shade,
)
from inctrl_lite.errors import InctrlError

SIZE = 120  # pixels a side
GRID = 15  # patches a side: 8 pixels each

COLOURS = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.15),
    "orange": (0.95, 0.55, 0.1),
    "purple": (0.55, 0.2, 0.7),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.45, 0.28, 0.13),
    "black": (0.06, 0.06, 0.06),
    "white": (0.95, 0.95, 0.95),
    "gray": (0.5, 0.5, 0.5),
    "cyan": (0.2, 0.8, 0.85),
    "beige": (0.88, 0.8, 0.65),
    "silver": (0.75, 0.75, 0.78),
    "dark": (0.2, 0.2, 0.22),
}


@dataclass(frozen=True, eq=False)
class Thing:
    """An object, or a surface. Each call of `draw` gives another picture of it.

    Attributes:
        family: key of `MAKERS`.
        identity: class name; two things with one identity belong to the same class.
        noun: its name in captions.
        draw: rng -> Picture, with an image [120, 120, 3].
    """

    family: str
    identity: str
    noun: str
    draw: Callable[[Generator], Picture]


@dataclass(frozen=True, eq=False)
class Sample:
    """A triplet (anchor, positive, negative).

    Attributes:
        images: uint8 [3, 120, 120, 3].
        captions: one for each picture.
        coverage: share of each patch that the defect changed [15, 15], in [0, 1]; all zero if the negative
            shows another object.
        family: key of `MAKERS`.
        identities: class of the anchor and the positive, and class of the negative.
    """

    images: np.ndarray
    captions: tuple[str, str, str]
    coverage: np.ndarray
    family: str
    identities: tuple[str, str]

    @property
    def other_thing(self) -> bool:
        """Whether the negative shows an object of another class, not the same object with a defect."""
        return self.identities[0] != self.identities[1]


# --- textures and shapes -----------------------------------------------------------------------------


def wave(t: Array) -> Array:
    """A sine wave with values in [0, 1]."""
    return 0.5 + 0.5 * np.sin(t)


def weave(x: Array, y: Array, f: float) -> Array:
    """A weave: threads that cross over and under each other, in [0, 1]."""
    over_under = np.sign(np.sin(1.5 * f * x) * np.sin(1.5 * f * y))
    return 0.5 + 0.25 * (np.sin(3 * f * x) + over_under * np.sin(3 * f * y))


def brick(x: Array, y: Array, f: float) -> Array:
    """Rows of bricks; every second row is shifted by half a brick. Values in [0, 1]."""
    row = np.floor(y * f * 0.55)
    u, v = np.mod(x * f * 0.28 + 0.5 * (row % 2), 1), np.mod(y * f * 0.55, 1)
    mortar = np.minimum(np.minimum(u, 1 - u) * 2, np.minimum(v, 1 - v)) - 0.1
    return cover(-mortar, 0.05)


def dots(x: Array, y: Array, f: float) -> Array:
    """Discs on a grid, in [0, 1]."""
    u, v = np.mod(x * f * 0.4, 1) - 0.5, np.mod(y * f * 0.4, 1) - 0.5
    return cover(np.hypot(u, v) - 0.25, 0.08)


# octaves of broad, soft noise
CLOUDS = {4: 1.0, 8: 0.8, 16: 0.4, 32: 0.15}

# name -> function (x, y, frequency, rng) -> share of the second colour at each pixel, in [0, 1]
TEXTURES: dict[str, Callable[[Array, Array, float, Generator], Array]] = {
    "plain": lambda x, y, f, rng: np.zeros_like(x),
    "grating": lambda x, y, f, rng: wave(3 * f * x),
    "striped": lambda x, y, f, rng: cover(-np.sin(2.2 * f * x), 0.25),
    "checkered": lambda x, y, f, rng: cover(-np.sin(1.6 * f * x) * np.sin(1.6 * f * y), 0.2),
    "brick": lambda x, y, f, rng: brick(x, y, f),
    "dotted": lambda x, y, f, rng: dots(x, y, f),
    "woven": lambda x, y, f, rng: weave(x, y, f),
    "noisy": lambda x, y, f, rng: cover(-noise(rng, len(x), GRAIN), 1.6),
    "cloudy": lambda x, y, f, rng: cover(-noise(rng, len(x), CLOUDS), 1.3),
    "wooden": lambda x, y, f, rng: wave(1.5 * f * (x + 0.12 * noise(rng, len(x), {4: 1.0, 8: 0.4}))),
    "marbled": lambda x, y, f, rng: wave(0.7 * f * (x + 0.5 * y) + 2.2 * noise(rng, len(x))),
}

# name -> function (x, y, number of corners) -> signed distance of a shape that fills the unit disc
SHAPES: dict[str, Callable[[Array, Array, int], Array]] = {
    "disc": lambda x, y, k: disc(x, y, 0.95),
    "square": lambda x, y, k: box(x, y, 0.8, 0.8),
    "triangle": lambda x, y, k: polygon(x, y, 3, 0.6),
    "pentagon": lambda x, y, k: polygon(x, y, 5, 0.8),
    "hexagon": lambda x, y, k: polygon(x, y, 6, 0.85),
    "star": lambda x, y, k: np.hypot(x, y) - (0.68 + 0.3 * np.cos(k * np.arctan2(y, x))),
    "flower": lambda x, y, k: np.hypot(x, y) - (0.6 + 0.35 * np.abs(np.cos(k * np.arctan2(y, x) / 2))),
    "cog": lambda x, y, k: np.hypot(x, y) - (0.8 + 0.15 * np.tanh(4 * np.cos((k + 3) * np.arctan2(y, x)))),
    "ring": lambda x, y, k: np.abs(np.hypot(x, y) - 0.75) - 0.2,
    "cross": lambda x, y, k: np.minimum(box(x, y, 0.95, 0.28), box(x, y, 0.28, 0.95)),
    "crescent": lambda x, y, k: np.maximum(disc(x, y, 0.95), 0.8 - np.hypot(x - 0.45, y)),
    "ellipse": lambda x, y, k: np.hypot(x, 1.7 * y) - 0.98,
    "bar": lambda x, y, k: box(x, y, 1.0, 0.3),
    "frame": lambda x, y, k: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.7) - 0.16,
    "half disc": lambda x, y, k: np.maximum(disc(x, y, 0.95), y - 0.1),
    "drop": lambda x, y, k: np.hypot(1.3 * x, y) * (1 + 0.45 * y) - 0.75,
}


@dataclass(frozen=True)
class Palette:
    """Four random colours: of the object, of its texture, of the background and of details.

    Attributes:
        names: names of the colours, for the caption.
        values: RGB values, each [3] in [0, 1].
    """

    names: tuple[str, ...]
    values: tuple[Array, ...]

    @classmethod
    def pick(cls, rng: Generator) -> Palette:
        """Draw the colours; one palette in five is grey."""
        names = tuple(rng.choice(list(COLOURS), size=4, replace=False))
        values = [np.clip(np.array(COLOURS[n]) + 0.04 * rng.standard_normal(3), 0, 1) for n in names]
        if rng.random() < 0.2:
            values = [np.full(3, v.mean()) for v in values]
            names = ("gray",) * 4
        return cls(names, tuple(values))


def jittered_pose(
    rng: Generator, x: Array, y: Array, angle: float, scale: float, any_angle: bool
) -> tuple[Array, Array]:
    """Object coordinates (x, y) in another picture of it: position, rotation and scale change a little.

    If `any_angle`, the rotation is drawn from the whole circle.
    """
    rotation = rng.uniform(0, 2 * math.pi) if any_angle else angle + 0.06 * rng.standard_normal()
    return pose(x, y, rotation, scale * rng.uniform(0.95, 1.05), tuple(rng.uniform(-0.08, 0.08, 2)))


def backdrop(rng: Generator, palette: Palette, texture: str, frequency: float) -> Array:
    """A background [120, 120, 3], plain or with a weak texture."""
    x, y = pose(*grid(SIZE), 0.0, 1.0, tuple(rng.uniform(-0.1, 0.1, 2)))
    share = 0.25 * TEXTURES[texture](x, y, frequency, rng)
    return paint(canvas(SIZE, palette.values[2]), share, palette.values[3])


BACKDROPS = ("plain", "plain", "plain", "noisy", "cloudy", "grating")


# --- families of things ------------------------------------------------------------------------------


def shaped(rng: Generator, with_parts: bool = False) -> Thing:
    """A coloured, textured shape. With parts, it carries one to six smaller shapes."""
    palette, corners = Palette.pick(rng), int(rng.integers(4, 9))
    shape, texture = str(rng.choice(list(SHAPES))), str(rng.choice(list(TEXTURES)))
    frequency, background_texture = rng.uniform(4, 13), str(rng.choice(BACKDROPS))
    angle, scale, any_angle = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 0.9), rng.random() < 0.3
    rim, shine = rng.random() < 0.4, rng.random() < 0.3
    part, count = (
        str(rng.choice(["disc", "square", "ring", "bar", "triangle", "cross"])),
        int(rng.integers(1, 7)),
    )
    reach = rng.uniform(0.3, 0.55) if count > 1 else rng.uniform(0, 0.3)

    def draw(rng: Generator) -> Picture:
        background = backdrop(rng, palette, background_texture, frequency)
        u, v = jittered_pose(rng, *grid(SIZE), angle, scale, any_angle)
        distance = SHAPES[shape](u, v, corners)
        inside = cover(distance, 0.035)
        painted = paint(
            canvas(SIZE, palette.values[0]), 0.85 * TEXTURES[texture](u, v, frequency, rng), palette.values[1]
        )
        if rim:
            painted = shade(painted, 1 - 0.5 * cover(np.abs(distance + 0.08) - 0.05, 0.04))
        if shine:
            painted = shade(painted, 0.75 + 0.35 * cover(np.hypot(u + 0.25, v + 0.25) - 0.5, 0.5))
        image = paint(background, inside, painted)
        for i in range(count if with_parts else 0):
            polar_angle = 2 * math.pi * i / count
            position = (reach * math.cos(polar_angle), reach * math.sin(polar_angle))
            local = pose(u, v, 0.0, 0.16 if count > 1 else 0.3, position)
            image = paint(image, cover(SHAPES[part](*local, corners), 0.15) * inside, palette.values[3])
        return Picture(image, inside, background)

    surface = "plain" if texture == "plain" else f"and {palette.names[1]} {texture}"
    noun = f"{palette.names[0]} {surface} {shape}"
    if with_parts:
        numbers = ("one", "two", "three", "four", "five", "six")
        noun += f" with {numbers[count - 1]} {palette.names[3]} {part}{'s' if count > 1 else ''}"
    if rng.random() < 0.6:
        noun += f" on a {palette.names[2]} background"
    return Thing("parts" if with_parts else "shape", f"{shape}/{texture}", noun, draw)


def textured(rng: Generator) -> Thing:
    """A surface that fills the picture."""
    palette, texture = Palette.pick(rng), str(rng.choice([t for t in TEXTURES if t != "plain"]))
    frequency, angle, cloudy = rng.uniform(4, 13), rng.uniform(0, 2 * math.pi), rng.random() < 0.4

    def draw(rng: Generator) -> Picture:
        u, v = pose(*grid(SIZE), angle + 0.06 * rng.standard_normal(), 1.0, tuple(rng.uniform(-0.3, 0.3, 2)))
        share = TEXTURES[texture](u, v, frequency, rng)
        if cloudy:
            share = 0.7 * share + 0.3 * TEXTURES["cloudy"](u, v, frequency, rng)
        image = paint(canvas(SIZE, palette.values[0]), share, palette.values[1])
        return Picture(image, np.ones((SIZE, SIZE)), canvas(SIZE, palette.values[2]))

    kind = str(rng.choice(["texture", "surface", "pattern", "material"]))
    noun = f"{palette.names[0]} and {palette.names[1]} {texture} {kind}"
    return Thing("texture", texture, noun, draw)


def organic(rng: Generator) -> Thing:
    """A grey object like layered tissue: nested irregular outlines, noise, up to four round bodies."""
    layers = int(rng.integers(1, 5))
    levels = rng.permutation(np.linspace(0.15, 0.85, layers + 1)) + 0.03 * rng.standard_normal(layers + 1)
    aspect, angle = rng.uniform(0.7, 1.4), rng.uniform(0, math.pi)
    radii = np.sort(rng.uniform(0.25, 1.0, layers))[::-1]
    fold, grain, bodies = rng.uniform(0, 0.12), rng.uniform(0.01, 0.06), int(rng.integers(0, 5))
    positions = rng.uniform(-0.4, 0.4, (bodies, 2))
    tones, sizes = rng.uniform(0.1, 0.9, bodies), rng.uniform(0.06, 0.18, bodies)
    outside = rng.uniform(0.0, 0.12) if rng.random() < 0.7 else rng.uniform(0.2, 0.8)

    def draw(rng: Generator) -> Picture:
        background = canvas(SIZE, [outside] * 3)
        u, v = jittered_pose(rng, *grid(SIZE), angle, 0.9, False)
        radius = np.hypot(u * aspect, v / aspect)
        image, thing = background, np.zeros((SIZE, SIZE))
        for level, reach in zip(levels, radii, strict=False):
            inside = cover(radius - reach * (1 + fold * noise(rng, SIZE, {4: 0.4, 8: 1.0, 16: 0.4})), 0.05)
            image = paint(
                image, inside, level + grain * noise(rng, SIZE, {8: 0.3, 16: 0.6, 32: 1.0})[..., None]
            )
            thing = np.maximum(thing, inside)
        for position, tone, size in zip(positions, tones, sizes, strict=True):
            moved = position + 0.03 * rng.standard_normal(2)
            image = paint(image, cover(np.hypot(u - moved[0], v - moved[1]) - size, 0.06) * thing, tone)
        return Picture(image, thing, background)

    noun = str(
        rng.choice(["gray organic tissue", "gray cell scan", "gray layered specimen", "grayscale soft body"])
    )
    return Thing("organic", f"organic-{layers}", noun, draw)


def specimen(rng: Generator) -> Thing:
    """A grey object of which every picture shows another specimen: levels, outlines, folds and contrast vary.

    All specimens have the same number of layers, in the same order of brightness, and the same mirrored pairs
    of round bodies.
    """
    layers, pairs = int(rng.integers(2, 5)), int(rng.integers(0, 3))
    levels = rng.permutation(np.linspace(0.12, 0.85, layers))
    radii, aspect = np.sort(rng.uniform(0.35, 1.0, layers))[::-1], rng.uniform(0.75, 1.35)
    fold, grain = rng.uniform(0.02, 0.14, layers), rng.uniform(0.01, 0.06, layers)
    positions, tones = rng.uniform((0.1, -0.45), (0.45, 0.45), (pairs, 2)), rng.uniform(0.1, 0.9, pairs)
    sizes, outside = rng.uniform(0.06, 0.2, (pairs, 2)), rng.uniform(0.0, 0.12)

    def draw(rng: Generator) -> Picture:
        background = canvas(SIZE, [outside] * 3)
        u, v = jittered_pose(rng, *grid(SIZE), 0.0, rng.uniform(0.8, 1.0), False)
        stretch, thing = aspect * rng.uniform(0.9, 1.1), np.zeros((SIZE, SIZE))
        image, radius = background, np.hypot(u * stretch, v / stretch)
        for level, reach, depth, roughness in zip(levels, radii, fold, grain, strict=True):
            outline = (
                reach * rng.uniform(0.93, 1.07) * (1 + depth * noise(rng, SIZE, {4: 0.3, 8: 1.0, 16: 0.8}))
            )
            inside = cover(radius - outline, rng.uniform(0.03, 0.08))
            tissue = (
                level + rng.uniform(-0.07, 0.07) + roughness * noise(rng, SIZE, {8: 0.3, 16: 0.6, 32: 1.0})
            )
            image, thing = paint(image, inside, tissue[..., None]), np.maximum(thing, inside)
        for (px, py), tone, (width, height) in zip(positions, tones, sizes, strict=True):
            swell = rng.uniform(0.75, 1.3)
            for mirror in (-1, 1):
                dx, dy = 0.03 * rng.standard_normal(2)
                body = np.hypot((u - mirror * px - dx) / width, (v - py - dy) / height) - swell
                image = paint(image, cover(0.1 * body, 0.03) * thing, tone + rng.uniform(-0.05, 0.05))
        image = np.clip(image, 0, 1) ** rng.uniform(0.75, 1.35) * rng.uniform(0.85, 1.1)
        return Picture(image, thing, background)

    noun = str(rng.choice(["gray organic tissue", "gray cell scan", "gray layered specimen"]))
    return Thing("specimen", f"specimen-{layers}-{pairs}", noun, draw)


# Photographs that scikit-image ships: name of the file -> noun in the caption. The documentation of
# scikit-image calls them public domain, CC0 or without known restrictions; it does not mention the moon.
PHOTOGRAPHS = {
    "astronaut.png": "person",
    "brick.png": "brick wall",
    "camera.png": "man with a camera",
    "coffee.png": "cup of coffee",
    "grass.png": "grass",
    "hubble_deep_field.jpg": "stars",
    "ihc.png": "tissue under a microscope",
    "moon.png": "moon",
    "retina.jpg": "retina",
    "rocket.jpg": "rocket",
}
# photographs that look the same everywhere
SURFACES = ("brick.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png")


@lru_cache(maxsize=32)
def photograph_file(name: str) -> Image.Image:
    """A photograph of scikit-image by its name, or of another package by its path ("package/folder/name").

    Raises:
        InctrlError: the package is not installed.
    """
    package, _, path = (name if "/" in name else f"skimage/data/{name}").partition("/")
    try:
        with (files(package) / path).open("rb") as file:
            return Image.open(file).convert("RGB")
    except ModuleNotFoundError as error:
        raise InctrlError(
            f"the corpus contains pieces of {path}, which comes with scikit-image: pip install scikit-image"
        ) from error


def photographed(rng: Generator, names: Sequence[str] = tuple(PHOTOGRAPHS)) -> Thing:
    """A crop of a real photograph; position, size, light and contrast vary a little between pictures.

    A few photographs train the early layers of a network nearly as well as many (Asano et al., ICLR 2020). Of
    a surface that looks the same everywhere, the crop of another picture may lie anywhere.

    Args:
        rng: source of the crop.
        names: arguments of `photograph_file` to choose from.

    Raises:
        InctrlError: scikit-image is not installed.
    """
    name = str(rng.choice(names))
    photo = photograph_file(name)
    width, height = photo.size
    side = min(width, height) * math.exp(rng.uniform(math.log(0.25), math.log(0.9)))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    turns, mirrored, grey = int(rng.integers(0, 4)), rng.random() < 0.5, rng.random() < 0.3
    gains = rng.uniform(0.7, 1.3, 3)[rng.permutation(3)] if rng.random() < 0.5 else np.ones(3)
    channels, crop_anywhere = rng.permutation(3), name in SURFACES and rng.random() < 0.6

    def draw(rng: Generator) -> Picture:
        size = side * rng.uniform(0.92, 1.05)
        x, y = np.array([left, top]) + (side - size) / 2 + 0.05 * side * rng.uniform(-1, 1, 2)
        if crop_anywhere:
            x, y = rng.uniform(0, width - size), rng.uniform(0, height - size)
        size = min(size, width, height)
        x, y = np.clip(x, 0, width - size), np.clip(y, 0, height - size)
        piece = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (x, y, x + size, y + size))
        image = np.asarray(piece, np.float64)[..., channels] / 255
        image = np.rot90(image[:, ::-1] if mirrored else image, turns)
        if grey:
            image = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
        image = np.clip(image * (1 if grey else gains), 0, 1) ** rng.uniform(0.8, 1.25)
        return Picture(image, np.ones((SIZE, SIZE)), canvas(SIZE, image.mean((0, 1))))

    zoom = int(3 * math.log2(min(width, height) / side))
    region = f"{name}/{int(8 * left / width)}-{int(8 * top / height)}/{zoom}"
    noun = f"{'gray ' if grey else ''}{PHOTOGRAPHS.get(name, 'photograph')}"
    return Thing("photograph", name if crop_anywhere else region, noun, draw)


LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZabdefghijkmnpqrtuy"
SIGNS = "&@#$%?!+=<>*{}~"


@lru_cache(maxsize=1)
def fonts() -> tuple[Path, ...]:
    """The font files of text fonts that matplotlib ships."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return tuple(
        p
        for p in sorted(folder.glob("*.ttf"))
        if p.stem.startswith(("DejaVu", "STIXGeneral")) and "Display" not in p.stem
    )


@lru_cache(maxsize=4096)
def glyph_mask(character: str, font: int) -> Array:
    """A character of font number `font` in the middle of a mask [64, 64] in [0, 1]."""
    typeface = ImageFont.truetype(str(fonts()[font]), 56)
    left, top, right, bottom = typeface.getbbox(character)
    sheet = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    ImageDraw.Draw(sheet).text((4 - left, 4 - top), character, fill=255, font=typeface)
    side = max(sheet.size)
    square = Image.new("L", (side, side))
    square.paste(sheet, ((side - sheet.width) // 2, (side - sheet.height) // 2))
    return np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC), np.float64) / 255


def warp(rng: Generator, u: Array, v: Array, strength: float) -> tuple[Array, Array]:
    """Coordinates (u, v), each [S, S], displaced by a smooth random field, as in handwriting."""
    bend = {4: 1.0, 8: 0.3}
    return u + strength * noise(rng, len(u), bend), v + strength * noise(rng, len(v), bend)


def invented_strokes(rng: Generator) -> list[Array]:
    """One to three strokes [M, 2] of a character that belongs to no alphabet."""
    strokes = []
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.integers(0, 3)
        centre = rng.uniform(-0.4, 0.4, 2)
        if kind == 0:  # straight
            direction = rng.uniform(0, math.pi)
            half = rng.uniform(0.35, 0.8) * np.array([math.cos(direction), math.sin(direction)])
            strokes.append(np.stack([centre - half, centre + half]))
        elif kind == 1:  # arc or loop
            t = rng.uniform(0, 2 * math.pi) + np.linspace(0, rng.uniform(2.5, 6.3), 10)
            strokes.append(
                centre + rng.uniform(0.25, 0.55) * np.stack([np.cos(t), rng.uniform(0.6, 1.4) * np.sin(t)], 1)
            )
        else:  # corners
            strokes.append(rng.uniform(-0.8, 0.8, (int(rng.integers(3, 5)), 2)))
    return strokes


# how many identities the corpus uses
INVENTED_CHARACTERS = 3000
SILHOUETTES = 2000


def sign(rng: Generator, identity: str | None = None) -> Thing:
    """A printed letter or sign, or an invented handwritten character; every picture has another style.

    `identity` is "letter X" or "character NUMBER"; None draws one of `LETTERS`, `SIGNS` and the first
    `INVENTED_CHARACTERS` characters.
    """
    if identity is None:
        if rng.random() < 0.5:
            identity = f"letter {rng.choice(list(LETTERS + SIGNS))}"
        else:
            identity = f"character {rng.integers(INVENTED_CHARACTERS)}"
    name = identity.split()[1]
    strokes = (
        [] if identity.startswith("letter") else invented_strokes(np.random.default_rng([77, int(name)]))
    )

    def draw(rng: Generator) -> Picture:
        ink: Array | float
        paper: Array | float
        ink, paper = (0.95, 0.05) if rng.random() < 0.5 else (0.05, 0.95)
        if rng.random() < 0.3:
            ink, paper = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
        background = canvas(SIZE, np.broadcast_to(paper, 3))
        u, v = pose(
            *grid(SIZE),
            0.12 * rng.standard_normal(),
            rng.uniform(0.6, 0.95),
            tuple(rng.uniform(-0.1, 0.1, 2)),
        )
        u = u * rng.uniform(0.75, 1.35) + rng.uniform(-0.25, 0.25) * v  # width and slant
        u, v = warp(rng, u, v, rng.uniform(0.01, 0.06))
        if strokes:
            width = rng.uniform(0.06, 0.16)
            jitter = [s + 0.08 * rng.standard_normal(s.shape) for s in strokes]
            mask = np.max([cover(polyline(u, v, s) - width, 0.05) for s in jitter], axis=0)
        else:
            mask = look_up(glyph_mask(name, int(rng.integers(len(fonts())))), u, v)
        if rng.random() < 0.35:  # coarse pixels, as in small scans
            cells = int(rng.integers(8, 28))
            small = Image.fromarray(mask.astype(np.float32)).resize((cells, cells), Image.Resampling.BOX)
            mask = np.clip(np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float64), 0, 1)
        return Picture(paint(background, mask, ink), mask, background)

    noun = f"letter {name}" if identity.startswith("letter") else "hand-drawn character"
    return Thing("sign", identity, noun, draw)


def silhouette(rng: Generator, identity: str | None = None) -> Thing:
    """An invented object made of two to four shapes; in every picture with another size, colour and pose.

    `identity` is "silhouette NUMBER"; None draws one of the first `SILHOUETTES`.
    """
    if identity is None:
        identity = f"silhouette {rng.integers(SILHOUETTES)}"
    design = np.random.default_rng([78, int(identity.split()[1])])
    pieces = [
        (
            str(design.choice([s for s in SHAPES if s not in ("ring", "frame")])),
            int(design.integers(4, 9)),
            tuple(design.uniform(-0.45, 0.45, 2)),
            design.uniform(0.2, 0.5),
            design.uniform(0, 2 * math.pi),
        )
        for _ in range(int(design.integers(2, 5)))
    ]

    def draw(rng: Generator) -> Picture:
        palette = Palette.pick(rng)
        background = backdrop(rng, palette, str(rng.choice(BACKDROPS)), rng.uniform(4, 13))
        u, v = pose(
            *grid(SIZE),
            0.15 * rng.standard_normal(),
            rng.uniform(0.75, 1.05),
            tuple(rng.uniform(-0.1, 0.1, 2)),
        )
        u, v = warp(rng, u * rng.uniform(0.9, 1.1), v, 0.02)
        distances = [
            size * SHAPES[shape](*pose(u, v, angle, size, position), corners)
            for shape, corners, position, size, angle in pieces
        ]
        inside = cover(np.min(distances, axis=0), 0.035)
        return Picture(paint(background, inside, palette.values[0]), inside, background)

    return Thing("silhouette", identity, "silhouette of a thing", draw)


# family -> function that draws one of its things
MAKERS: dict[str, Callable[..., Thing]] = {
    "shape": shaped,
    "parts": lambda rng: shaped(rng, with_parts=True),
    "texture": textured,
    "organic": organic,
    "sign": sign,
    "silhouette": silhouette,
    "specimen": specimen,
    "photograph": photographed,
}
# share of each family in the corpora of the three pretraining runs, in the order of `MAKERS`
SHARES: dict[str, tuple[float, ...]] = {
    "first": (0.14, 0.16, 0.16, 0.14, 0.24, 0.16, 0.0, 0.0),
    "second": (0.08, 0.14, 0.12, 0.06, 0.26, 0.20, 0.14, 0.0),
    "third": (0.06, 0.12, 0.07, 0.06, 0.22, 0.17, 0.10, 0.20),
}

# share of the triplets whose negative is another object, not the same object with a defect
OTHER_OBJECT_SHARE = {"sign": 0.8, "silhouette": 0.8, "photograph": 0.4}
# what can happen to tissue: the defects of grey scans
TISSUE_DEFECTS = ("stain", "hole", "discoloration", "contamination", "bent", "missing part")

# what the corpus draws: "objects", "textures" and "defects", as `data.worlds.families` has it for a world
FAMILIES: dict[str, frozenset[str]] = {
    "objects": frozenset(
        {
            *SHAPES,
            "letter",
            "sign",
            "invented character",
            "silhouette",
            "organic tissue",
            "layered specimen",
            "photograph",
        }
    ),
    "textures": frozenset(TEXTURES),
    "defects": frozenset(DEFECTS),
}

# --- captions ----------------------------------------------------------------------------------------

NORMAL_STATES = (
    "{}", "{}", "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect",
    "{} without damage", "normal {}", "intact {}", "clean {}", "good {}",
)  # fmt: skip
DEFECT_STATES = (
    "damaged {}", "damaged {}", "{} with flaw", "{} with defect", "{} with damage", "defective {}",
    "broken {}", "abnormal {}", "{} with a DEFECT", "{} with a DEFECT", "damaged {} with a DEFECT",
)  # fmt: skip
TEMPLATES = (
    "a photo of a {}.", "a photo of the {}.", "a cropped photo of the {}.", "a close-up photo of a {}.",
    "a bright photo of a {}.", "a dark photo of the {}.", "a blurry photo of a {}.",
    "a jpeg corrupted photo of a {}.", "a photo of a small {}.", "a photo of the large {}.",
    "a photo of the {} for visual inspection.", "a photo of a {} for anomaly detection.", "{}", "a {}",
)  # fmt: skip
GENERIC_NOUNS = ("object", "part", "item", "thing", "product", "sample")


def caption(rng: Generator, noun: str, defect: str | None = None) -> str:
    """A caption; in about one of eight, a general word such as "object" replaces the noun.

    `defect` is a key of `DEFECTS`; without it, the caption describes a normal picture.
    """
    noun = str(rng.choice(GENERIC_NOUNS)) if rng.random() < 0.12 else noun
    state = str(rng.choice(DEFECT_STATES if defect else NORMAL_STATES))
    return str(rng.choice(TEMPLATES)).format(state.replace("DEFECT", defect or "").format(noun))


# --- samples -----------------------------------------------------------------------------------------


def draw_sample(seed: int, index: int, shares: str = "first") -> Sample:
    """Triplet number `index` of the corpus with this `seed`; `shares` is a key of `SHARES`.

    Raises:
        InctrlError: the corpus contains photographs, and scikit-image is not installed.
    """
    rng = np.random.default_rng([seed, index])
    parts = np.array(SHARES[shares])
    family = str(rng.choice(list(MAKERS), p=parts / parts.sum()))
    thing = MAKERS[family](rng)
    pictures = [thing.draw(rng).image, thing.draw(rng).image]
    coverage, other = np.zeros((GRID, GRID)), thing
    if family in OTHER_OBJECT_SHARE and rng.random() < OTHER_OBJECT_SHARE[family]:
        while other.identity == thing.identity:
            other = MAKERS[family](rng)
        pictures.append(other.draw(rng).image)
        negative_caption = caption(rng, other.noun)
    else:
        picture, is_scan = thing.draw(rng), thing.family in ("organic", "specimen")  # scans have no colour
        damaged, defect = damage(rng, picture, TISSUE_DEFECTS if is_scan else tuple(DEFECTS), grey=is_scan)
        pictures.append(damaged)
        negative_caption = caption(rng, thing.noun, defect)
        patches = changed(picture.image, damaged).reshape(GRID, SIZE // GRID, GRID, SIZE // GRID)
        coverage = patches.mean((1, 3))
    images = np.stack([photograph(rng, picture) for picture in pictures])
    captions = (caption(rng, thing.noun), caption(rng, thing.noun), negative_caption)
    return Sample(images, captions, coverage, family, (thing.identity, other.identity))
