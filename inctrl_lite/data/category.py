"""The parts of a data set: categories, each with a pool of normal images and a labelled test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inctrl_lite.errors import InctrlError


@dataclass(frozen=True, eq=False)
class Item:
    """One image with its annotation.

    Attributes:
        image: path of the image file, or the image itself as uint8 [H, W, 3].
        label: 0 normal, 1 anomalous, None if it is not known.
        name: unique within its data set, the same on every machine, with forward slashes
            ("bottle/test/good/007.png").
        defect: kind of anomaly; "good" for a normal image.
        mask: where the anomaly is (path of an image file, or bool [H, W]); None if there is no mask.
    """

    image: Path | np.ndarray
    label: int | None
    name: str
    defect: str = "good"
    mask: Path | np.ndarray | None = None

    @property
    def file(self) -> Path:
        """The image's file.

        Raises:
            InctrlError: the image is an array.
        """
        if not isinstance(self.image, Path):
            raise InctrlError(f"{self.name} is an array in memory, not a file: use its `image`")
        return self.image


@dataclass(frozen=True, eq=False)
class Category:
    """What "normal" means in one case: a bottle, a digit, a brain scan.

    Attributes:
        dataset: name of the data set it belongs to.
        name: the words a text prompt uses for it.
        domain: "industrial", "medical", "surface" or "semantic".
        train: normal images only, the pool from which support sets are drawn.
        test: normal and anomalous images.
    """

    dataset: str
    name: str
    domain: str
    train: tuple[Item, ...]
    test: tuple[Item, ...]

    @property
    def labels(self) -> list[int]:
        """Labels of the test images.

        Raises:
            InctrlError: a test image has no label.
        """
        found = [item.label for item in self.test if item.label is not None]
        if len(found) < len(self.test):
            raise InctrlError(f"{self.dataset}/{self.name}: every test image needs a label, 0 or 1")
        return found
