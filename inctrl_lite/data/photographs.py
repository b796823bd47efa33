"""Development categories cut from photographs that come with installed packages: nothing is downloaded.

The auxiliary worlds are drawings. Choices that must hold on photographs (which layers, which grid, which
weights) are made on these sets: pictures that scikit-image and scikit-learn carry inside their wheels, with
synthetic defects blended into them. The two halves, "auxiliary" and "development", share no source picture.

A category is a region of one picture. One more specimen of it is the region cut again: a little moved,
turned, scaled and warped, under other light, with sensor noise and JPEG. A surface is cut anywhere, training
images from one half of the picture and test images from the other. A defect falls anywhere, so that its place
tells nothing. Every image depends only on (set, category, split, number, seed).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.drawing import Array, blob, cover, grid, noise, paint, photograph, polyline
from inctrl_lite.data.worlds import stream
from inctrl_lite.errors import InctrlError

SIZE = 256  # pixels a side of a defect picture; the regions have 60 to 1,390 in their sources
INSTALL = "pip install scikit-image"
PACKAGES = {"china": "sklearn.datasets.images", "flower": "sklearn.datasets.images"}
JPEGS = frozenset({"china", "flower", "hubble_deep_field", "retina", "rocket"})


@dataclass(frozen=True)
class Region:
    """Where a category lies in its picture.

    Attributes:
        source: file name of the picture, without its ending.
        centres: (x, y) in pixels of the source; each specimen takes one. None: a surface, cut anywhere.
        side: side of the square that is cut, in pixels of the source.
        turn: largest rotation of a specimen, in degrees.
    """

    source: str
    centres: tuple[tuple[int, int], ...] | None
    side: int
    turn: int = 4


# Six coins a row: every specimen is another coin.
_ROW = (47, 107, 162, 217, 271, 336)

HALVES: dict[str, dict[str, Region]] = {
    "development": {
        "brick": Region("brick", None, 130),
        "brick wall": Region("brick", None, 230),
        "coin": Region("coins", ((47, 51),), 58, 180),
        "old coin": Region("coins", ((271, 124),), 58, 180),
        "coins of the second row": Region("coins", tuple((x, 124) for x in _ROW), 60, 180),
        "coins of the third row": Region("coins", tuple((x, 192) for x in _ROW), 64, 20),
        "cup": Region("coffee", ((295, 118),), 220),
        "spoon": Region("coffee", ((363, 286),), 130),
        "coffee": Region("coffee", ((285, 200),), 370),
        "front wheel": Region("motorcycle_left", ((520, 353),), 200),
        "rear wheel": Region("motorcycle_left", ((120, 345),), 180),
        "engine": Region("motorcycle_left", ((353, 273),), 160),
        "fuel tank": Region("motorcycle_left", ((270, 190),), 150),
        "motorcycle": Region("motorcycle_left", ((353, 260),), 450),
        "left eye": Region("chelsea", ((170, 115),), 100),
        "right eye": Region("chelsea", ((339, 122),), 90),
        "cat": Region("chelsea", ((250, 150),), 280),
        "crater": Region("moon", ((120, 85),), 130, 180),
        "moon": Region("moon", None, 170, 180),
        "stained tissue": Region("ihc", None, 130, 180),
        "gland": Region("ihc", ((317, 380),), 170, 15),
        "optic disc": Region("retina", ((260, 651),), 360, 8),
        "macula": Region("retina", ((707, 700),), 500, 15),
        "retina": Region("retina", ((705, 705),), 1390, 8),
        "title": Region("page", ((90, 62),), 110),
        "page": Region("page", ((250, 85),), 150),
    },
    "auxiliary": {
        "gravel": Region("gravel", None, 120, 180),
        "gravel path": Region("gravel", None, 230, 180),
        "grass": Region("grass", None, 120, 180),
        "lawn": Region("grass", None, 230, 180),
        "cell": Region("cell", ((415, 379),), 200, 180),
        "scan noise": Region("cell", None, 160, 8),
        "stars": Region("hubble_deep_field", None, 200, 180),
        "galaxies": Region("hubble_deep_field", None, 380, 180),
        "face": Region("astronaut", ((215, 110),), 160),
        "helmet": Region("astronaut", ((400, 430),), 150),
        "badge": Region("astronaut", ((174, 382),), 130),
        "flag": Region("astronaut", ((62, 150),), 110),
        "shuttle": Region("astronaut", ((420, 130),), 170),
        "collar": Region("astronaut", ((200, 206),), 150),
        "rocket": Region("rocket", ((318, 200),), 190),
        "launch pad": Region("rocket", ((320, 213),), 400),
        "tower": Region("rocket", ((198, 210),), 160),
        "handwriting": Region("text", ((100, 86),), 140),
        "formula": Region("text", ((320, 86),), 140),
        "pagoda": Region("china", ((215, 165),), 240),
        "roof": Region("china", ((207, 95),), 140),
        "trees": Region("china", ((560, 360),), 120),
        "flower": Region("flower", ((305, 220),), 270, 180),
        "petals": Region("flower", ((305, 220),), 120, 180),
        "leaves": Region("flower", ((110, 130),), 190, 15),
        "horse": Region("horse", ((200, 164),), 320),
        "horse's head": Region("horse", ((345, 70),), 100),
        "photographer": Region("camera", ((214, 125),), 140),
        "tripod": Region("camera", ((297, 377),), 200),
        "field": Region("camera", ((440, 440),), 130),
        "vessels": Region("microaneurysms", ((51, 51),), 84),
    },
}
# One-vs-all sets: another class is the anomaly.
SCENES: dict[str, tuple[str, ...]] = {
    "development": ("coffee", "motorcycle_left", "chelsea", "coins", "brick", "ihc", "moon", "page"),
    "auxiliary": ("gravel", "grass", "astronaut", "rocket", "china", "flower", "camera", "text"),
}
CHARACTERS = 10
SETS: tuple[str, ...] = ("auxiliary", "development", "auxiliary-scenes", "development-scenes", "characters")


def load_photographs(
    name: str,
    *,
    train: int = 16,
    normal: int = 20,
    anomalous: int = 20,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> list[Category]:
    """The categories of a set.

    Args:
        name: "auxiliary" or "development" (regions with synthetic defects and their masks);
            "auxiliary-scenes" or "development-scenes" (small crops of one photograph against crops of the
            others); "characters" (invented handwritten characters, one against the others).
        train: normal images to draw support sets from, a category.
        normal, anomalous: test images, a category.
        seed: another seed gives other images of the same categories.
        only: names of the categories to make; None: all.

    Raises:
        InctrlError: unknown name, or scikit-image is not installed.
    """
    if name not in SETS:
        raise InctrlError(f"no set {name!r}. There are: {', '.join(SETS)}")
    return [
        Category(
            dataset=f"photographs-{name}",
            name=category,
            domain="industrial" if name in HALVES else "semantic",
            train=tuple(make(f"{name}/{category}", "train", i, seed, False) for i in range(train)),
            test=(
                *(make(f"{name}/{category}", "test", i, seed, False) for i in range(normal)),
                *(make(f"{name}/{category}", "test", i, seed, True) for i in range(anomalous)),
            ),
        )
        for category, make in _makers(name).items()
        if only is None or category in only
    ]


@lru_cache(maxsize=32)
def source(name: str) -> Array:
    """A photograph as floats in [0, 1], [H, W, 3].

    Raises:
        InctrlError: scikit-image is not installed, or its wheel does not hold the picture.
    """
    file = f"{name}.{'jpg' if name in JPEGS else 'png'}"
    package = PACKAGES.get(name, "skimage.data")
    try:
        data = (resources.files(package) / file).read_bytes()
    except ModuleNotFoundError as error:
        raise InctrlError(f"the photographs come with scikit-image, which is missing: {INSTALL}") from error
    except FileNotFoundError as error:
        raise InctrlError(f"{package} holds no {file}: install the newest release, {INSTALL}") from error
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64) / 255


# --- one more specimen -------------------------------------------------------------------------------


def specimen(rng: Generator, region: Region, split: str, size: int = SIZE) -> Array:
    """The region cut once more, before the camera: moved, turned, scaled, warped, [size, size, 3]."""
    picture = source(region.source)
    height, width = picture.shape[:2]
    half = region.side / 2
    if region.centres is None:  # a surface: left part for training, right part for testing
        reach = half * (math.sqrt(2) if region.turn > 45 else 1.1)
        low, high = (reach, width / 2) if split == "train" else (width / 2, width - reach)
        low, high = min(low, width / 2), max(high, width / 2)
        centre = rng.uniform(low, high), rng.uniform(min(reach, height / 2), max(height - reach, height / 2))
    else:
        column, row = region.centres[rng.integers(len(region.centres))]
        centre = column + 0.03 * half * rng.standard_normal(), row + 0.03 * half * rng.standard_normal()
    angle = math.radians(region.turn) * rng.uniform(-1, 1)
    scale = half * (1 + 0.03 * rng.standard_normal())
    x, y = grid(size)
    x = x + 0.012 * noise(rng, size, {3: 1.0, 5: 0.5})
    y = y + 0.012 * noise(rng, size, {3: 1.0, 5: 0.5})
    c, s = math.cos(angle), math.sin(angle)
    columns, rows = centre[0] + scale * (c * x - s * y), centre[1] + scale * (s * x + c * y)
    smooth = _smooth(region.source, max(0.0, 0.4 * (region.side / size - 1)))
    image = np.stack(
        [map_coordinates(smooth[..., k], (rows, columns), order=1, mode="mirror") for k in range(3)], -1
    )
    return image * (1 + 0.03 * noise(rng, size, {3: 1.0, 6: 0.5})[..., None])


@lru_cache(maxsize=32)
def _smooth(name: str, sigma: float) -> Array:
    """The photograph without the detail that a smaller picture cannot hold."""
    return gaussian_filter(source(name), (sigma, sigma, 0)) if sigma else source(name)


def camera(rng: Generator, image: Array) -> Array:
    """Light, exposure, sensor noise, soft lens and JPEG -> uint8 [H, W, 3]."""
    shot = Image.fromarray(photograph(rng, image, 0.7))
    file = io.BytesIO()
    shot.save(file, "JPEG", quality=int(rng.integers(70, 96)))
    return np.asarray(Image.open(file).convert("RGB"))


# --- defects: each changes an image [S, S, 3] near a centre ------------------------------------------

Defect = Callable[[Generator, Array, tuple[float, float], float], Array]


def _side(rng: Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _local_tone(image: Array, mask: Array) -> Array:
    """Mean colour under a mask."""
    return (image * mask[..., None]).sum((0, 1)) / (mask.sum() + 1e-6)


def _contrasting(rng: Generator, image: Array, mask: Array, low: float, high: float) -> Array:
    """The local tone made lighter or darker, and a little tinted."""
    tone = _local_tone(image, mask)
    direction = -1.0 if tone.mean() > 0.65 else 1.0 if tone.mean() < 0.3 else _side(rng)
    grey = np.ptp(image, axis=-1).mean() < 0.02
    tint = 0.0 if grey else 0.12 * rng.standard_normal(3)
    return np.clip(tone + direction * rng.uniform(low, high) + tint, 0, 1)


def _stroke(
    rng: Generator, size: int, centre: tuple[float, float], length: float, bend: float, points: int
) -> Array:
    """Distance to a line of a given length through the centre, [size, size]."""
    angle = rng.uniform(0, 2 * math.pi) + np.cumsum(bend * rng.standard_normal(points))
    path = np.cumsum(np.stack([np.cos(angle), np.sin(angle)], 1), 0) * length / points
    return polyline(*grid(size), path - path.mean(0) + np.asarray(centre))


def _scratch(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    distance = _stroke(rng, len(image), centre, 4 * reach, 0.06, 6)
    mask = cover(distance - rng.uniform(0.004, 0.012), 0.012)
    image = paint(image, mask * rng.uniform(0.4, 0.9), _contrasting(rng, image, mask, 0.2, 0.45))
    rim = cover(np.abs(distance - 0.02) - 0.004, 0.012)
    return image * (1 - 0.15 * rim[..., None])


def _crack(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    distance = _stroke(rng, len(image), centre, 4 * reach, 0.7, 9)
    distance = np.minimum(distance, _stroke(rng, len(image), centre, 2 * reach, 0.7, 5) + 0.002)
    width = rng.uniform(0.003, 0.012) * (1 + 0.4 * noise(rng, len(image), {16: 1.0}))
    return image * (1 - rng.uniform(0.4, 0.85) * cover(distance - width, 0.012)[..., None])


def _hair(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    mask = cover(_stroke(rng, len(image), centre, 5 * reach, 0.25, 12) - 0.006, 0.01)
    return paint(image, 0.75 * mask, _contrasting(rng, image, mask, 0.25, 0.6))


def _patch(
    rng: Generator, size: int, centre: tuple[float, float], reach: float, rough: float, soft: float
) -> Array:
    return blob(rng, *grid(size), centre, reach, rough, soft)


def _stain(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    mask = _patch(rng, len(image), centre, 1.2 * reach, 0.4, 0.4 * reach)
    tone = _contrasting(rng, image, mask, 0.15, 0.45)
    return paint(
        image, rng.uniform(0.45, 0.85) * mask, tone * (0.4 + 0.6 * image.mean(-1, keepdims=True) / 0.5)
    )


def _tint(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    mask = _patch(rng, len(image), centre, 1.5 * reach, 0.3, 0.5 * reach)
    grey = np.ptp(image, axis=-1).mean() < 0.02
    gain = (
        1 + _side(rng) * rng.uniform(0.2, 0.4) if grey else 1 + rng.uniform(0.2, 0.4) * rng.standard_normal(3)
    )
    return paint(image, mask, image * gain)


def _dent(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    x, y = grid(len(image))
    u, v = x - centre[0], y - centre[1]
    bump = np.exp(-(u**2 + v**2) / (2 * (0.8 * reach) ** 2))
    angle = rng.uniform(0, 2 * math.pi)
    slope = (u * math.cos(angle) + v * math.sin(angle)) / reach * bump
    return _pushed(image, 0.4 * u * bump, 0.4 * v * bump) * (1 + rng.uniform(0.4, 0.9) * slope[..., None])


def _bent(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    x, y = grid(len(image))
    push = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * (1.4 * reach) ** 2))
    push, angle = rng.uniform(0.9, 1.5) * reach * push, rng.uniform(0, 2 * math.pi)
    return _pushed(image, push * math.cos(angle), push * math.sin(angle))


def _pushed(image: Array, u: Array, v: Array) -> Array:
    """The image read at coordinates moved by (u, v), in units of half a side."""
    size = len(image)
    rows, columns = np.mgrid[:size, :size] + np.stack([v, u]) * size / 2
    return np.stack(
        [map_coordinates(image[..., k], (rows, columns), order=1, mode="mirror") for k in range(3)], -1
    )


def _missing(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    """A part is gone: the hole is filled smoothly from around it, with the grain of the rest."""
    mask = _patch(rng, len(image), centre, 1.1 * reach, 0.2, 0.02)
    outside = (1 - mask)[..., None]
    sigma = 0.5 * reach * len(image) / 2
    fill = gaussian_filter(image * outside, (sigma, sigma, 0)) / (
        gaussian_filter(outside, (sigma, sigma, 0)) + 1e-3
    )
    grain = image - gaussian_filter(image, (1, 1, 0))
    return paint(image, mask, np.clip(fill + np.roll(grain, len(image) // 3, (0, 1)), 0, 1))


def _blended(image: Array, other: Array, mask: Array, sigma: float, share: float) -> Array:
    """Detail of another picture on the tones of this one (`share` of its own tones come with it)."""
    low, other_low = (gaussian_filter(part, (sigma, sigma, 0)) for part in (image, other))
    return paint(image, mask, np.clip(other - other_low + (1 - share) * low + share * other_low, 0, 1))


def _swapped(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    """Texture from elsewhere in the same picture, turned, on the tones of the place."""
    shift = rng.integers(len(image) // 5, len(image) // 2, 2)
    other = np.rot90(np.roll(image, tuple(shift), (0, 1)), int(rng.integers(1, 4)))
    mask = _patch(rng, len(image), centre, 1.3 * reach, 0.2, 0.06)
    return _blended(image, other, mask, 0.5 * reach * len(image), rng.uniform(0.2, 0.8))


def _blurred(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    mask = _patch(rng, len(image), centre, 1.5 * reach, 0.3, 0.3 * reach)
    sigma = rng.uniform(2.5, 5)
    return paint(image, mask, gaussian_filter(image, (sigma, sigma, 0)))


def _pit(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
    """Small holes with a lit rim."""
    for _ in range(int(rng.integers(1, 4))):
        place = (centre[0] + reach * rng.standard_normal(), centre[1] + reach * rng.standard_normal())
        radius = reach * rng.uniform(0.15, 0.45)
        mask = _patch(rng, len(image), place, radius, 0.15, 0.02)
        rim = _patch(rng, len(image), (place[0] + 0.012, place[1] + 0.012), radius + 0.01, 0.1, 0.02)
        image = image * (1 + 0.3 * (rim * (1 - mask))[..., None])
        image = paint(image, rng.uniform(0.5, 0.9) * mask, _local_tone(image, mask) * 0.3)
    return image


def _foreign(half: str) -> Defect:
    """A piece of another photograph of the same half, half taking on the tones of the place."""

    def defect(rng: Generator, image: Array, centre: tuple[float, float], reach: float) -> Array:
        regions = list(HALVES[half].values())
        other = specimen(rng, regions[rng.integers(len(regions))], "test", len(image))
        if np.ptp(image, axis=-1).mean() < 0.02:
            other = np.repeat(other.mean(-1, keepdims=True), 3, -1)
        mask = _patch(rng, len(image), centre, 0.9 * reach, 0.25, 0.03)
        return _blended(image, other, mask, 0.4 * reach * len(image), rng.uniform(0.2, 0.7))

    return defect


def defects(half: str) -> dict[str, Defect]:
    """The kinds of damage by name; foreign parts come from photographs of the same half."""
    return {
        "scratch": _scratch,
        "stain": _stain,
        "missing part": _missing,
        "crack": _crack,
        "bent": _bent,
        "tint": _tint,
        "foreign part": _foreign(half),
        "dent": _dent,
        "swapped texture": _swapped,
        "pit": _pit,
        "blur": _blurred,
        "hair": _hair,
    }


# --- who makes the items of a category ---------------------------------------------------------------

Maker = Callable[[str, str, int, int, bool], Item]


def _makers(name: str) -> Mapping[str, Maker]:
    if name in HALVES:
        return {category: _region_maker(name, region) for category, region in HALVES[name].items()}
    if name == "characters":
        return {f"character {i}": _character_maker(i) for i in range(CHARACTERS)}
    scenes = SCENES[name.removesuffix("-scenes")]
    return {scene: _scene_maker(scene, scenes) for scene in scenes}


def _item(key: str, split: str, number: int, image: Array, defect: str, mask: Array | None = None) -> Item:
    name = f"{key}/{split}/{defect.replace(' ', '-')}/{number:04d}"
    return Item(image, int(defect != "good"), name, defect, mask)


def _region_maker(half: str, region: Region) -> Maker:
    kinds = defects(half)

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        parts = ("photographs", key, split, number, seed, int(anomalous))
        sound = specimen(stream(*parts), region, split)
        if not anomalous:
            return _item(key, split, number, camera(stream(*parts, "camera"), sound), "good")
        kind = list(kinds)[(number + len(key)) % len(kinds)]
        for attempt in range(100):  # a defect that cannot be seen falls elsewhere
            odd = stream(*parts, "odd", attempt)
            centre = tuple(odd.uniform(-0.85, 0.85, 2))  # not more often in the middle
            reach = math.exp(odd.uniform(math.log(0.1), math.log(0.35)))
            faulty = np.clip(kinds[kind](odd, sound, centre, reach), 0, 1)
            difference = np.abs(faulty - np.clip(sound, 0, 1)).max(-1)
            if (difference > 0.08).sum() >= 60:
                break
        image = camera(stream(*parts, "camera"), faulty)
        return _item(key, split, number, image, kind, difference > 0.04)

    return make


def _scene_maker(scene: str, scenes: tuple[str, ...]) -> Maker:
    """Crops of any place and scale, at the size of a small web picture."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        rng = stream("photographs", key, split, number, seed, int(anomalous))
        which = str(rng.choice([s for s in scenes if s != scene])) if anomalous else scene
        picture = source(which)
        height, width = picture.shape[:2]
        side = rng.uniform(0.3, 0.7) * min(height, width)
        centre = (int(rng.uniform(side / 2, width - side / 2)), int(rng.uniform(side / 2, height - side / 2)))
        image = specimen(rng, Region(which, (centre,), int(side), 15), split, 48)
        image = image[:, ::-1] if rng.random() < 0.5 else image
        if rng.random() < 0.5:  # colour alone must not give the class away
            image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
        return _item(key, split, number, camera(rng, image), which if anomalous else "good")

    return make


def _character_maker(number_of_character: int) -> Maker:
    """Handwriting: strokes through jittered points, white on black, 28 x 28."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        rng = stream("photographs", key, split, number, seed, int(anomalous))
        others = [c for c in range(CHARACTERS) if c != number_of_character]
        which = int(rng.choice(others)) if anomalous else number_of_character
        return _item(key, split, number, character(rng, which), f"character {which}" if anomalous else "good")

    return make


def character(rng: Generator, which: int) -> Array:
    """One handwritten specimen of an invented character, uint8 [28, 28, 3]."""
    design = stream("character", which)
    strokes = [design.uniform(-0.75, 0.75, (int(design.integers(3, 6)), 2)) for _ in range(2)]
    x, y = grid(56)
    angle, slant = 0.15 * rng.standard_normal(), 0.2 * rng.standard_normal()
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turn = turn @ np.array([[1, slant], [0, 1]]) * rng.uniform(0.75, 1.0, 2)
    width, shift = rng.uniform(0.05, 0.13), 0.08 * rng.standard_normal(2)
    ink = np.zeros_like(x)
    for points in strokes:
        ends = points + 0.13 * rng.standard_normal(points.shape)
        ink = np.maximum(ink, cover(polyline(x, y, _curve(ends) @ turn.T + shift) - width, 0.06))
    small = Image.fromarray(np.round(255 * ink).astype(np.uint8)).resize((28, 28), Image.Resampling.BOX)
    return np.repeat(np.asarray(small)[..., None], 3, -1)


def _curve(points: Array) -> Array:
    """A smooth line through points [M, 2]: [8 (M - 1) + 1, 2]."""
    from scipy.interpolate import CubicSpline

    at = np.arange(len(points))
    return CubicSpline(at, points)(np.linspace(0, len(points) - 1, 8 * (len(points) - 1) + 1))
