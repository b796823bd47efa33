"""Procedural anomaly worlds: data sets that need no download, with pixel masks.

One auxiliary world to train on ("industrial", many categories of one domain) and nine to be tested on,
whose things, textures and (for most) defects training never sees. Every image depends only on (world,
category, split, number, seed): asking for more images leaves the first ones as they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inctrl_lite.errors import InctrlError

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator

    from inctrl_lite.data.category import Category, Item
    from inctrl_lite.data.defects import Picture

AUXILIARY = "industrial"


@dataclass(frozen=True)
class World:
    """What is known of a world before a picture is drawn."""

    domain: str
    about: str
    textures: frozenset[str] = frozenset()


WORLDS: dict[str, World] = {
    AUXILIARY: World(
        "industrial",
        "the auxiliary set: 13 families of industrial things in 4 variants each",
        frozenset({"tile", "leather", "metal mesh", "perforated sheet"}),
    ),
    "unseen-industrial": World(
        "industrial", "products that the auxiliary set does not hold", frozenset({"carpet", "zipper tape"})
    ),
    "solar": World("surface", "electroluminescence-like images of solar cells", frozenset({"solar cell"})),
    "fabric": World("surface", "grey woven fabric", frozenset({"twill"})),
    "mri-like": World("medical", "slices that look like MRI of a head"),
    "ct-like": World("medical", "slices that look like CT of a head"),
    "digits": World("semantic", "scikit-learn's digits, one against the other nine"),
    "digits-multiclass": World("semantic", "scikit-learn's digits: even ones normal, odd ones anomalous"),
    "drawn": World("semantic", "drawn things, one against the other seven"),
    "drawn-multiclass": World("semantic", "drawn things: vehicles anomalous, all else normal"),
}
EVALUATION: tuple[str, ...] = tuple(name for name in WORLDS if name != AUXILIARY)


def load_world(
    name: str, *, train: int = 16, normal: int = 20, anomalous: int = 20, seed: int = 0
) -> list[Category]:
    """The categories of a world.

    Args:
        name: `AUXILIARY` or one of `EVALUATION`.
        train: normal images to draw prompts from, a category.
        normal, anomalous: test images, a category.
        seed: another seed gives other images of the same categories.

    Raises:
        InctrlError: unknown name.
    """
    if name not in WORLDS:
        raise InctrlError(f"no world {name!r}. There are: {', '.join(WORLDS)}")
    world = WORLDS[name]
    from inctrl_lite.data.category import Category

    return [
        Category(
            dataset=name,
            name=category,
            domain=world.domain,
            train=tuple(maker(key, "train", i, seed, False) for i in range(train)),
            test=(
                *(maker(key, "test", i, seed, False) for i in range(normal)),
                *(maker(key, "test", i, seed, True) for i in range(anomalous)),
            ),
        )
        for category, maker in _makers(name)
        for key in [f"{name}/{category}"]
    ]


def families(name: str) -> dict[str, frozenset[str]]:
    """What a world draws: "objects", "textures" and "defects" by name."""
    if name not in WORLDS:
        raise InctrlError(f"no world {name!r}. There are: {', '.join(WORLDS)}")
    from inctrl_lite.data.worlds import industrial, semantic

    objects, defects = frozenset(category for category, _ in _makers(name)), frozenset()
    if name == AUXILIARY:
        objects = frozenset(industrial.FAMILIES)
        defects = frozenset(industrial.OBJECT_DEFECTS + industrial.SURFACE_DEFECTS)
    elif name in _FAULTY:
        defects = frozenset(fault for _, faults in _FAULTY[name]().values() for fault in faults)
    elif name.startswith("drawn"):
        objects = frozenset(semantic.THINGS)
    else:
        objects = frozenset({"digit"})
    textures = WORLDS[name].textures
    return {"objects": objects - textures, "textures": textures, "defects": defects}


# --- who makes the items of a category ---------------------------------------------------------------

# (category key, split, number, seed, anomalous) -> Item
Maker = Callable[[str, str, int, int, bool], "Item"]


def stream(*parts: str | int) -> Generator:
    """A generator that depends on all parts, the same on every platform."""
    import numpy as np

    return np.random.default_rng([p if isinstance(p, int) else zlib.crc32(p.encode()) for p in parts])


def _item(key: str, split: str, number: int, image: np.ndarray, defect: str, mask: np.ndarray | None) -> Item:
    from inctrl_lite.data.category import Item

    kind = defect.replace(" ", "-")
    return Item(image, int(defect != "good"), f"{key}/{split}/{kind}/{number:04d}", defect, mask)


def _makers(name: str) -> Iterator[tuple[str, Maker]]:
    if name == AUXILIARY:
        yield from _industrial_makers()
    elif name in _FAULTY:
        for category, (render, faults) in _FAULTY[name]().items():
            yield category, _faulty_maker(render, faults)
    elif name == "digits":
        for d in range(10):
            yield f"digit {d}", _digit_maker((d,))
    elif name == "digits-multiclass":
        yield "even digit", _digit_maker((0, 2, 4, 6, 8))
    else:
        from inctrl_lite.data.worlds.semantic import THINGS, VEHICLES

        if name == "drawn":
            for thing in THINGS:
                yield thing, _thing_maker((thing,))
        else:
            yield "everyday thing", _thing_maker(tuple(t for t in THINGS if t not in VEHICLES))


def _industrial_makers() -> Iterator[tuple[str, Maker]]:
    from inctrl_lite.data.worlds.industrial import (
        FAMILIES,
        OBJECT_DEFECTS,
        SURFACE_DEFECTS,
        SURFACES,
        VARIANTS,
    )

    for family, design in FAMILIES.items():
        faults = SURFACE_DEFECTS if family in SURFACES else OBJECT_DEFECTS
        for variant in range(VARIANTS):
            draw = design(stream(AUXILIARY, family, variant))
            yield f"{family} {'ABCD'[variant]}", _painted_maker(draw, faults)


def _painted_maker(draw: Callable[[Generator], Picture], faults: tuple[str, ...]) -> Maker:
    """Specimens with generic painted defects."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        from inctrl_lite.data.defects import changed, damage
        from inctrl_lite.data.drawing import photograph

        rng = stream(key, split, number, seed, int(anomalous))
        picture = draw(rng)
        if not anomalous:
            return _item(key, split, number, photograph(rng, picture.image), "good", None)
        damaged, defect = damage(rng, picture, faults)
        return _item(key, split, number, photograph(rng, damaged), defect, changed(picture.image, damaged))

    return make


def _faulty_maker(
    render: Callable[[Generator, str | None, Generator], Picture], faults: tuple[str, ...]
) -> Maker:
    """Specimens whose faults are drawn by their own renderer, in turn."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        from inctrl_lite.data.defects import changed
        from inctrl_lite.data.drawing import photograph

        def specimen(fault: str | None, attempt: int) -> np.ndarray:
            rng = stream(key, split, number, seed, int(anomalous))
            return render(rng, fault, stream(key, split, number, seed, "odd", attempt)).image

        lens = stream(key, split, number, seed, int(anomalous), "photograph")
        normal = specimen(None, 0)
        if not anomalous:
            return _item(key, split, number, photograph(lens, normal), "good", None)
        fault, attempt = faults[number % len(faults)], 0
        while True:  # a fault may fall where it cannot be seen: then it falls elsewhere
            faulty = specimen(fault, attempt)
            mask = changed(normal, faulty, 0.06)
            if mask.sum() >= 25:
                return _item(key, split, number, photograph(lens, faulty), fault, mask)
            attempt += 1

    return make


def _digit_maker(normal_digits: tuple[int, ...]) -> Maker:
    """scikit-learn's digits: the first half of the images is for training, the second for testing."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        import numpy as np

        from inctrl_lite.data.worlds.semantic import digit, digit_images

        labels = digit_images()[1]
        wanted = ~np.isin(labels, normal_digits) if anomalous else np.isin(labels, normal_digits)
        pool = np.flatnonzero(wanted)
        pool = pool[: len(pool) // 2] if split == "train" else pool[len(pool) // 2 :]
        which = int(stream(key, split, seed, int(anomalous)).permutation(pool)[number % len(pool)])
        return _item(
            key, split, number, digit(which), f"digit {labels[which]}" if anomalous else "good", None
        )

    return make


def _thing_maker(normal_things: tuple[str, ...]) -> Maker:
    """Drawn things."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        from inctrl_lite.data.drawing import photograph
        from inctrl_lite.data.worlds.semantic import THINGS, draw_thing

        rng = stream(key, split, number, seed, int(anomalous))
        choice = tuple(t for t in THINGS if t not in normal_things) if anomalous else normal_things
        thing = str(rng.choice(choice))
        image = photograph(rng, draw_thing(rng, thing))
        return _item(key, split, number, image, thing if anomalous else "good", None)

    return make


def _unseen():
    from inctrl_lite.data.worlds import unseen

    return {
        "pcb": (unseen.pcb, ("missing component", "rotated component", "solder bridge")),
        "candle": (unseen.candle, ("missing wick", "chipped edge", "wax drip")),
        "cashew": (unseen.cashew, ("bite", "burnt spot")),
        "wheel snack": (unseen.wheel_snack, ("broken spoke", "open rim")),
        "zipper": (unseen.zipper, ("split teeth", "missing teeth", "frayed tape")),
        "carpet": (unseen.carpet, ("crushed pile", "pulled loop", "bald spot")),
    }


def _solar():
    from inctrl_lite.data.worlds import unseen

    return {"solar cell": (unseen.solar_cell, ("inactive area", "finger break", "dark crack"))}


def _fabric():
    from inctrl_lite.data.worlds import unseen

    return {"fabric": (unseen.twill, ("broken yarn", "knot", "slack area"))}


def _mri():
    from inctrl_lite.data.worlds import medical

    return {"brain": (medical.mri, ("tumor", "ring lesion", "edema"))}


def _ct():
    from inctrl_lite.data.worlds import medical

    return {"head": (medical.ct, ("hemorrhage", "subdural", "intraventricular"))}


_FAULTY = {
    "unseen-industrial": _unseen,
    "solar": _solar,
    "fabric": _fabric,
    "mri-like": _mri,
    "ct-like": _ct,
}
