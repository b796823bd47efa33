"""Procedural worlds: data sets that need no download, with pixel masks.

There is one auxiliary world for training ("industrial", many categories of one domain) and nine for
evaluation. Their objects, their textures and (in most of them) their defects do not occur in training. Every
image depends only on (world, category, split, number, seed): a larger number of images leaves the first ones
unchanged.
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
    """The description of a world.

    Attributes:
        domain: "industrial", "surface", "medical" or "semantic".
        about: what the world shows, in a few words.
        textures: names of its surfaces, as opposed to its objects.
    """

    domain: str
    about: str
    textures: frozenset[str] = frozenset()


WORLDS: dict[str, World] = {
    AUXILIARY: World(
        "industrial",
        "the auxiliary set: 13 families of industrial things in 4 materials or colours each",
        frozenset({"tile", "leather", "wire mesh", "perforated sheet"}),
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
        train: number of normal images in each category from which support sets are drawn.
        normal, anomalous: numbers of test images in each category.
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
    """The names of a world's "objects", "textures" and "defects".

    Raises:
        InctrlError: unknown name.
    """
    if name not in WORLDS:
        raise InctrlError(f"no world {name!r}. There are: {', '.join(WORLDS)}")
    from inctrl_lite.data.worlds import industrial, semantic

    objects: frozenset[str] = frozenset({"digit"})
    defects: frozenset[str] = frozenset()
    if name == AUXILIARY:
        objects = frozenset(industrial.FAMILIES)
    elif name in _PAINTED:
        objects = frozenset(_PAINTED[name]())
    elif name.startswith("drawn"):
        objects = frozenset(semantic.THINGS)
    if name in _PAINTED:
        defects = frozenset(fault for _, faults in _PAINTED[name]().values() for fault in faults)
    textures = WORLDS[name].textures
    return {"objects": objects - textures, "textures": textures, "defects": defects}


# --- the images of a category -------------------------------------------------------------------------

# (category key, split, number, seed, anomalous) -> Item
Maker = Callable[[str, str, int, int, bool], "Item"]
# (rng, fault, fault_rng) -> Picture: the same specimen for the same rng, with the fault if one is named
Render = Callable[["Generator", "str | None", "Generator"], "Picture"]
Painted = dict[str, tuple[Render, tuple[str, ...]]]  # category -> (renderer, faults)


def stream(*parts: str | int) -> Generator:
    """A random generator that depends on all parts, and is the same on every platform.

    Strings enter through their CRC-32, because Python's own string hashes differ between processes.
    """
    import numpy as np

    return np.random.default_rng([p if isinstance(p, int) else zlib.crc32(p.encode()) for p in parts])


def _item(key: str, split: str, number: int, image: np.ndarray, defect: str, mask: np.ndarray | None) -> Item:
    from inctrl_lite.data.category import Item

    kind = defect.replace(" ", "-")
    return Item(image, int(defect != "good"), f"{key}/{split}/{kind}/{number:04d}", defect, mask)


def _makers(name: str) -> Iterator[tuple[str, Maker]]:
    """The categories of a world, each with the function that makes its items."""
    if name in _PAINTED:
        for category, (render, faults) in _PAINTED[name]().items():
            yield category, _painted_maker(render, faults)
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


def _painted_maker(render: Render, faults: tuple[str, ...]) -> Maker:
    """Specimens of a renderer, with its faults in turn.

    Generic defects are painted over the finished drawing, all other faults are drawn by the renderer.
    """

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        import numpy as np

        from inctrl_lite.data.defects import DEFECTS, changed
        from inctrl_lite.data.drawing import photograph

        parts = (key, split, number, seed, int(anomalous))
        normal = render(stream(*parts), None, stream(*parts, "odd"))
        if not anomalous:
            return _item(key, split, number, photograph(stream(*parts, "lens"), normal.image), "good", None)
        fault = faults[number % len(faults)]
        attempt = 0
        while True:  # until the fault lies where it is visible
            fault_rng = stream(*parts, "odd", attempt)
            if fault in DEFECTS:
                faulty = DEFECTS[fault](fault_rng, normal)
            else:
                faulty = render(stream(*parts), fault, fault_rng).image
            before, after = np.clip(normal.image, 0, 1), np.clip(faulty, 0, 1)
            if changed(before, after, 0.06).sum() >= 25:
                image = photograph(stream(*parts, "lens"), faulty)
                return _item(key, split, number, image, fault, _close_gaps(changed(before, after, 0.04)))
            attempt += 1

    return make


def _close_gaps(mask: np.ndarray) -> np.ndarray:
    """Morphological closing with a 7 x 7 window, so that a fault in a texture is one region."""
    import numpy as np
    from PIL import Image, ImageFilter

    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.MaxFilter(7)).filter(ImageFilter.MinFilter(7))) > 0


def _digit_maker(normal_digits: tuple[int, ...]) -> Maker:
    """scikit-learn's digits. The first half of the images is for training, the second half for testing."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        import numpy as np

        from inctrl_lite.data.worlds.semantic import digit, digit_images

        labels = digit_images()[1]
        wanted = ~np.isin(labels, normal_digits) if anomalous else np.isin(labels, normal_digits)
        pool = np.flatnonzero(wanted)
        pool = pool[: len(pool) // 2] if split == "train" else pool[len(pool) // 2 :]
        index = int(stream(key, split, seed, int(anomalous)).permutation(pool)[number % len(pool)])
        return _item(
            key, split, number, digit(index), f"digit {labels[index]}" if anomalous else "good", None
        )

    return make


def _thing_maker(normal_things: tuple[str, ...]) -> Maker:
    """Simple drawings. Anomalous are those of all classes that are not in `normal_things`."""

    def make(key: str, split: str, number: int, seed: int, anomalous: bool) -> Item:
        from inctrl_lite.data.drawing import photograph
        from inctrl_lite.data.worlds.semantic import THINGS, draw_thing

        rng = stream(key, split, number, seed, int(anomalous))
        choice = tuple(t for t in THINGS if t not in normal_things) if anomalous else normal_things
        thing = str(rng.choice(choice))
        image = photograph(rng, draw_thing(rng, thing))
        return _item(key, split, number, image, thing if anomalous else "good", None)

    return make


def _industrial() -> Painted:
    import numpy as np

    from inctrl_lite.data.worlds import industrial as aux

    return {
        f"{material} {noun}": (
            family(stream(AUXILIARY, noun, material), np.array(aux.MATERIALS[material])),
            (aux.SURFACE_DEFECTS if noun in aux.SURFACES else aux.OBJECT_DEFECTS) + faults,
        )
        for noun, (family, materials, faults) in aux.FAMILIES.items()
        for material in materials
    }


def _unseen() -> Painted:
    from inctrl_lite.data.worlds import unseen

    return {
        "pcb": (unseen.pcb, ("missing component", "rotated component", "solder bridge")),
        "candle": (unseen.candle, ("missing wick", "chipped edge", "wax drip")),
        "cashew": (unseen.cashew, ("bite", "burnt spot")),
        "wheel snack": (unseen.wheel_snack, ("broken spoke", "open rim")),
        "zipper": (unseen.zipper, ("split teeth", "missing teeth", "frayed tape")),
        "carpet": (unseen.carpet, ("crushed pile", "pulled loop", "bald spot")),
    }


def _solar() -> Painted:
    from inctrl_lite.data.worlds import unseen

    return {"solar cell": (unseen.solar_cell, ("inactive area", "finger break", "dark crack"))}


def _fabric() -> Painted:
    from inctrl_lite.data.worlds import unseen

    return {"fabric": (unseen.twill, ("broken yarn", "knot", "slack area"))}


def _mri() -> Painted:
    from inctrl_lite.data.worlds import medical

    return {"brain": (medical.mri, ("tumor", "ring lesion", "edema"))}


def _ct() -> Painted:
    from inctrl_lite.data.worlds import medical

    return {"head": (medical.ct, ("hemorrhage", "subdural", "intraventricular"))}


_PAINTED: dict[str, Callable[[], Painted]] = {
    AUXILIARY: _industrial,
    "unseen-industrial": _unseen,
    "solar": _solar,
    "fabric": _fabric,
    "mri-like": _mri,
    "ct-like": _ct,
}
