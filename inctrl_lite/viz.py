"""Figures. Every function returns an image or a matplotlib Figure, and does not change pyplot's state.

Residual maps are drawn with `MAP_COLOURS`, a colour map that is also clear to readers with colour blindness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Real
from PIL import Image

from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.view import WHOLE, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

MAP_COLOURS = "inferno"
MAP_LABEL = "patch residual (1 - cos) / 2"
ANOMALY_LABEL = "anomaly map"  # of a detector: its residual map, or a map that training has a part in

MAX_DRAWN = 1600  # pixels of the longer side of an overlay: enough for a screen, and memory stays bounded


def colour_range(statistics: Float[Tensor, "N 2"]) -> tuple[float, float]:
    """Limits (low, high) of a category's colour scale: mean normal residual, and 8 standard deviations more.

    The darkest colour is the mean difference between normal images, the brightest one lies far above it.

    Args:
        statistics: mean and standard deviation of normal residuals (`SupportSet.normal_statistics`).
    """
    mean, std = statistics.mean(0).tolist()
    return mean, mean + 8 * max(std, 0.005)


def overlay(
    image: Image.Image,
    patch_map: Real[np.ndarray, "h w"],
    limits: tuple[float, float] = (0.0, 1.0),
    view: View | Preprocessor = WHOLE,
) -> Image.Image:
    """The picture in grey with its anomaly map over it. The larger a value, the more opaque its colour.

    Args:
        image: a picture; if its longer side exceeds `MAX_DRAWN` pixels, it is reduced to that.
        patch_map: values on the patch grid of the model's input, such as residuals.
        limits: values that are drawn in the darkest and in the brightest colour.
        view: which part of the picture the map shows; by default the whole picture.
    """
    import matplotlib

    full = image.size
    image = image.copy()
    image.thumbnail((MAX_DRAWN, MAX_DRAWN))
    low, high = limits
    values = np.clip((view.to_picture(patch_map, full, image.size) - low) / (high - low), 0, 1)
    alpha = np.nan_to_num(0.15 + 0.65 * values)[..., None]
    colours = matplotlib.colormaps[MAP_COLOURS](np.nan_to_num(values), bytes=True)[..., :3]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    blended = grey * (1 - alpha) + colours.astype(np.float32) * alpha
    return Image.fromarray(np.round(blended).astype(np.uint8))


def score_figure(
    image: Image.Image,
    patch_map: Real[np.ndarray, "h w"],
    score: float,
    *,
    title: str = "",
    mask: Bool[np.ndarray, "H W"] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    view: View | Preprocessor = WHOLE,
) -> Figure:
    """Picture, anomaly map and overlay side by side.

    Args:
        image, patch_map, limits, view: as in `overlay`.
        score: anomaly score, written above the overlay.
        title: written above the picture; by default "query".
        mask: true defect, in pixels of the picture; its outline is drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    drawn_over, (width, height) = overlay(image, patch_map, limits, view), image.size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # the overlay may be smaller than the picture
    left.imshow(image)
    left.set_title(title or "query", fontsize=10, parse_math=False)  # a file may be called a$b$.png
    drawn = middle.imshow(patch_map, cmap=MAP_COLOURS, vmin=limits[0], vmax=limits[1])
    middle.set_title(f"map {patch_map.shape[0]} x {patch_map.shape[1]}", fontsize=10)
    right.imshow(drawn_over, extent=extent)
    right.set_title(f"score {score:.3f}", fontsize=10)
    for axes in (left, middle, right):
        axes.set_axis_off()
    if mask is not None and mask.any():
        for axes in (left, right):
            axes.contour(mask, levels=[0.5], colors="cyan", linewidths=1)
    figure.colorbar(drawn, ax=right, shrink=0.85, label=ANOMALY_LABEL)
    return figure


def row(
    pictures: Sequence[Image.Image | np.ndarray | Tensor],
    titles: Sequence[str] = (),
    *,
    masks: Sequence[np.ndarray | None] = (),
    limits: tuple[float, float] | None = None,
    label: str = MAP_LABEL,
    height: float = 2.4,
) -> Figure:
    """Pictures and maps side by side. All maps share one colour scale and one colour bar.

    Args:
        pictures: images (PIL, or arrays [H, W, 3]) and maps (arrays or tensors [h, w]), in any mix.
        titles: one for each picture, or none.
        masks: true defects [H, W] to outline, one for each picture (None if it has none), or none at all.
        limits: of the colour scale; None: from 0 to the largest value.
        label: of the colour bar.
        height: of the figure, in inches.
    """
    from matplotlib.figure import Figure

    shown = [np.asarray(picture) for picture in pictures]
    maps = [values for values in shown if values.ndim == 2]
    low, high = limits or (0.0, max((float(values.max()) for values in maps), default=1.0))
    figure = Figure(figsize=(height * len(shown) + (1.1 if maps else 0), height), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    drawn = None
    for i, (ax, values) in enumerate(zip(axes, shown, strict=True)):
        mask = None if i >= len(masks) or masks[i] is None else np.asarray(masks[i])
        rows, columns = (
            values.shape[:2] if mask is None else mask.shape
        )  # the outline is drawn in the mask's pixels
        extent = {"extent": (-0.5, columns - 0.5, rows - 0.5, -0.5)}
        if values.ndim == 2:
            drawn = ax.imshow(values, cmap=MAP_COLOURS, vmin=low, vmax=high, **extent)
        else:
            ax.imshow(values, **extent)
        if mask is not None and mask.any():
            ax.contour(mask, levels=[0.5], colors="cyan", linewidths=1.2)
        if i < len(titles):
            ax.set_title(titles[i], fontsize=10, parse_math=False)
        ax.set_axis_off()
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, shrink=0.9, label=label)
    return figure
