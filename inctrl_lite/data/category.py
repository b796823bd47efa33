"""What a data set is made of: categories, each with a pool of normal images and a labelled test split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inctrl_lite.errors import InctrlError


@dataclass(frozen=True, eq=False)
class Item:
    """One image with what is known about it.

    Attributes:
        image: a file, or the picture itself as uint8 [H, W, 3].
        label: 0 normal, 1 anomalous, None when nobody said.
        name: unique within its data set, stable, with forward slashes ("bottle/test/good/007.png").
        defect: kind of anomaly; "good" for a normal image.
        mask: where the anomaly is (file, or bool [H, W]); None when nobody drew it.
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
            raise InctrlError(f"{self.name} is no file")
        return self.image


@dataclass(frozen=True, eq=False)
class Category:
    """What "normal" means in one case: a bottle, a digit, a brain scan.

    Attributes:
        dataset: name of the data set it belongs to.
        name: the words a text prompt uses for it.
        domain: "industrial", "medical", "surface" or "semantic".
        train: normal images only, the pool that normal prompts are drawn from.
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
            InctrlError: one of them has none.
        """
        found = [item.label for item in self.test if item.label is not None]
        if len(found) < len(self.test):
            raise InctrlError(f"{self.dataset}/{self.name}: every test image needs a label, 0 or 1")
        return found
