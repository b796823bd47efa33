"""The live page of the site, with photographs to try it on: used by build.py."""

from __future__ import annotations

from pathlib import Path

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.images import load_image
from inctrl_lite.data.photographs import HALVES, load_photographs
from inctrl_lite.web import Example, write_page

# They come with scikit-image, and a program blends the defects in: here those that a reader can see at once.
THINGS = ("coin", "engine", "badge")
DEFECTS = ("scratch", "crack", "foreign part", "missing part")
NORMAL, DEFECTIVE, OTHERS = 4, 3, 2


def write_live_page(folder: Path, runtime: Path) -> None:
    """Write the page's folder.

    Args:
        runtime: the folder with onnxruntime-web (`vendor.RUNTIME_FILES`).
    """
    detector = AnomalyDetector.from_pretrained("photo", device="cpu")
    write_page(detector, folder, runtime, examples=[_example(thing) for thing in THINGS])


def _example(thing: str) -> Example:
    (half,) = (name for name, things in HALVES.items() if thing in things)
    (category,) = load_photographs(half, train=NORMAL, normal=OTHERS, anomalous=16, only=(thing,))
    clear = [item for item in category.test if item.defect in DEFECTS]
    defective = sorted(clear, key=lambda item: DEFECTS.index(item.defect))[:DEFECTIVE]
    others = [item for item in category.test if not item.label]
    check = [
        (item.defect if item.label else "normal", load_image(item.image)) for item in (*defective, *others)
    ]
    normal = [(f"normal {i + 1}", load_image(item.image)) for i, item in enumerate(category.train)]
    return Example(thing, normal, check)
