"""What the photo detector finds, misses and wrongly calls different: python benchmarks/examples.py

A detector is fitted to K = 4 normal images of every category of the "auxiliary" photographs (pictures that
come with scikit-image and scikit-learn, with synthetic defects), which had no part in the photo detector;
people are left out. A rule chooses what is shown: the defects furthest above their category's first
threshold, those furthest below it, and the normal images furthest above it; one image of a category. Writes
benchmarks/results/examples/: small pictures, and examples.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from PIL import Image
from record import RESULTS
from tqdm import tqdm

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.category import Category
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text

FOLDER = RESULTS / "examples"
SHOTS, EACH_KIND = 4, 8  # normal images that are fitted; normal and anomalous test images of a category
PEOPLE = ("face", "photographer")  # the detector is not for them
COUNTS = {"found": 4, "missed": 2, "false alarm": 2}
SIDE, QUALITY = 200, 82  # of a small picture: pixels, JPEG's quality


@dataclass(frozen=True)
class Example:
    """A scored test image; `picture`: it and its residual map, side by side."""

    category: str
    defect: str
    label: int
    score: float
    threshold: float
    picture: Image.Image = field(repr=False)

    @property
    def excess(self) -> float:
        return self.score - self.threshold


def scored(detector: AnomalyDetector, category: Category) -> Iterator[Example]:
    """The test images of a category."""
    detector.fit([item.image for item in category.train], category.name)
    threshold = detector.categories[category.name].threshold
    found = detector.predict([item.image for item in category.test], category=category.name)
    for item, prediction in zip(category.test, found, strict=True):
        picture = side_by_side(prediction.image(), prediction.overlay())
        yield Example(category.name, item.defect, item.label, prediction.score, threshold, picture)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (2 * SIDE, SIDE))
    for place, picture in ((0, left), (SIDE, right)):
        both.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (place, 0))
    return both


def chosen(examples: list[Example]) -> dict[str, list[Example]]:
    """What is shown, by the rule: kind -> examples, the clearest first, one of a category."""
    clearest = sorted(examples, key=lambda example: example.excess)
    of = {
        "found": [e for e in reversed(clearest) if e.label and e.excess > 0],
        "missed": [e for e in clearest if e.label and e.excess <= 0],
        "false alarm": [e for e in reversed(clearest) if not e.label and e.excess > 0],
    }
    return {kind: one_of_a_category(of[kind])[:count] for kind, count in COUNTS.items()}


def one_of_a_category(examples: list[Example]) -> list[Example]:
    """The first of each category."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.category, example)
    return list(first.values())


def counts(examples: list[Example]) -> dict[str, int]:
    """How many of all images are found, missed, ...: what the shown ones are examples of."""
    return {
        "categories": len({e.category for e in examples}),
        "anomalous": sum(e.label for e in examples),
        "found": sum(e.label and e.excess > 0 for e in examples),
        "normal": sum(not e.label for e in examples),
        "false alarm": sum(not e.label and e.excess > 0 for e in examples),
    }


def main() -> None:
    torch.set_num_threads(1)
    detector = AnomalyDetector.from_pretrained("photo", device="cpu")
    sizes = {"train": SHOTS, "normal": EACH_KIND, "anomalous": EACH_KIND}
    categories = [c for c in load_photographs("auxiliary", **sizes) if c.name not in PEOPLE]
    examples = [e for category in tqdm(categories, disable=None) for e in scored(detector, category)]
    FOLDER.mkdir(exist_ok=True)
    shown = []
    for kind, some in chosen(examples).items():
        for number, example in enumerate(some, start=1):
            file = f"{kind.replace(' ', '-')}-{number}.jpg"
            example.picture.save(FOLDER / file, quality=QUALITY, optimize=True)
            facts = {k: v for k, v in vars(example).items() if k != "picture"}
            shown.append({"kind": kind, "file": file} | facts)
    facts = {"shots": SHOTS, "counts": counts(examples), "shown": shown, "environment": environment()}
    write_text(FOLDER / "examples.json", json.dumps(facts, indent=2) + "\n")
    print(facts["counts"])


if __name__ == "__main__":
    main()
