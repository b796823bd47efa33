"""What a detector says of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from inctrl_lite.data.images import load_image
from inctrl_lite.view import View
from inctrl_lite.viz import overlay, score_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the detector says of one image.

    Attributes:
        source: the image as it was given: a path, picture, array or tensor.
        name: path relative to the folder it was found in, or its position in the input ("image 3").
        category: what normal meant.
        score: anomaly score in [0, 1], larger is more anomalous. Not a probability: compare it with a
            threshold of the same category.
        terms: what the score was made of, by name, each in [0, 1]: "patch", and what else the model has.
        patch_map: anomaly map in [0, 1] on the map grid [h, w]: 0 looks like a patch of a normal image. It
            is the residual map for InCTRL and the tiny detector; the residual map weighted by the learned
            prior for the photo detector; and the pixel map for InCTRLv2. Read it as a hint: it does not
            outline defects exactly.
        digest: of the picture's pixels.
        view: what was looked at, and how the map lies in the picture.
        limits: values of the map that are drawn darkest and brightest (see `viz.colour_range`).
        normal_scores: leave-one-out scores of the normal images, or of those that calibrated the threshold.
        threshold: of the category, or None.
        in_support: the same pixels are in the support set, so its score means nothing.
    """

    source: Any
    name: str
    category: str
    score: float
    terms: dict[str, float]
    patch_map: Float[np.ndarray, "h w"]
    view: View
    digest: bytes
    limits: tuple[float, float]
    normal_scores: tuple[float, ...] = ()
    threshold: float | None = None
    in_support: bool = False

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one."""
        return None if self.threshold is None else self.score > self.threshold

    def image(self) -> Image:
        """The picture (read again from its file)."""
        return load_image(self.source, self.view.bits)

    def upsampled_map(self) -> Float[np.ndarray, "H W"]:
        """The patch map at the size of the picture; NaN where nothing was looked at."""
        return self.view.to_picture(self.patch_map, self.image().size)

    def overlay(self) -> Image:
        """The picture with the anomaly map over it, at most `viz.MAX_DRAWN` pixels wide or high."""
        return overlay(self.image(), self.patch_map, self.limits, self.view)

    def figure(self) -> Figure:
        """Picture, anomaly map and overlay side by side."""
        return score_figure(
            self.image(),
            self.patch_map,
            self.score,
            title=self.name,
            limits=self.limits,
            view=self.view,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but picture and map, ready for a table row or JSON."""
        return {
            "name": self.name,
            "category": self.category,
            "score": self.score,
            **self.terms,
            "normal_lowest": min(self.normal_scores, default=None),
            "normal_highest": max(self.normal_scores, default=None),
            "threshold": self.threshold,
            "anomalous": self.is_anomalous,
            "in_support": self.in_support,
        }


class Predictions(list[Prediction]):
    """A list of predictions; `skipped` names the files that could not be read, with the reason."""

    def __init__(self, predictions: Iterable[Prediction] = (), skipped: Sequence[tuple[str, str]] = ()):
        super().__init__(predictions)
        self.skipped = list(skipped)

    def to_frame(self) -> pd.DataFrame:
        """One row an image: name, category, score, its terms, threshold, verdict."""
        import pandas as pd

        return pd.DataFrame([prediction.to_dict() for prediction in self])

    @property
    def scores(self) -> Float[np.ndarray, " B"]:
        """The scores, in order."""
        return np.array([prediction.score for prediction in self])
