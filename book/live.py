"""The live page of the site, with photographs to try it on: used by build.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.photographs import HALVES, load_photographs
from inctrl_lite.web import Example, write_page

# They come with scikit-image, and a program blends the defects in. Of the defects that lie on the thing, the
# page shows the first two kinds that the detector finds, and the one that it misses most.
THINGS = ("coin", "engine", "badge")
DEFECTS = ("scratch", "crack", "foreign part", "missing part")
NORMAL, FOUND, OTHERS = 4, 2, 3
DRAWN, REACH = 160, 0.36  # defective images to choose from; largest distance from the middle, in sides


def write_live_page(folder: Path, runtime: Path) -> None:
    """Write the page's folder.

    Args:
        runtime: the folder with onnxruntime-web (`vendor.RUNTIME_FILES`).
    """
    detector = AnomalyDetector.from_pretrained("photo", device="cpu")
    write_page(detector, folder, runtime, examples=[_example(thing, detector) for thing in THINGS])


def _example(thing: str, detector: AnomalyDetector) -> Example:
    (half,) = (name for name, things in HALVES.items() if thing in things)
    (category,) = load_photographs(half, train=NORMAL, normal=OTHERS, anomalous=DRAWN, only=(thing,))
    normal = [(f"normal {i + 1}", load_image(item.image)) for i, item in enumerate(category.train)]
    detector.fit([picture for _, picture in normal], thing)
    defective = [item for item in category.test if item.defect in DEFECTS and _reach(_mask(item)) < REACH]
    scores = detector.predict([load_image(item.image) for item in defective], thing).scores
    scored = sorted(zip(scores, defective, strict=True), key=lambda pair: -pair[0])
    best = [next(pair for pair in scored if pair[1].defect == kind) for kind in DEFECTS]
    found = [item for score, item in best if score > detector.categories[thing].threshold]
    _, missed = scored[-1]
    shown = [*found[:FOUND], missed, *(item for item in category.test if not item.label)]
    check = [(item.defect if item.label else "normal", load_image(item.image)) for item in shown]
    return Example(thing, normal, check)


def _mask(item: Item) -> np.ndarray:
    return load_mask(item.mask, load_image(item.image).size)


def _reach(mask: np.ndarray) -> float:
    """Largest distance of a defect from the middle, in sides of the picture."""
    rows, columns = (places / side - 0.5 for places, side in zip(np.nonzero(mask), mask.shape, strict=True))
    return float(np.hypot(rows, columns).max())
