"""Figures. Every function returns a picture or a matplotlib Figure and leaves pyplot's state alone.

Residual maps are drawn with `MAP_COLOURS`, which also readers who confuse red and green can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP_COLOURS = "inferno"
MAP_LABEL = "patch residual (1 - cos) / 2"


def visible_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The central square of a picture (width, height), which a backbone sees: left, top, right, bottom."""
    width, height = size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def upsample_to_image(patch_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A patch map [h, w] at the size of its picture: [H, W], bilinear; NaN outside the central square.

    Args:
        size: (width, height) of the picture.
    """
    left, top, right, bottom = visible_box(size)
    small = Image.fromarray(np.asarray(patch_map, np.float32))
    large = np.full((size[1], size[0]), np.nan, np.float32)
    large[top:bottom, left:right] = small.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    return large


def colour_range(spread: tuple[float, float]) -> tuple[float, float]:
    """Limits of the colour scale for a category: from what is usual among its normal prompts to far beyond.

    Args:
        spread: mean and deviation of what is usual (`NormalPrompt.spread`), on average over the patches.

    Dark is then as unlike as normal images are to each other, bright is 8 deviations more.
    """
    mean, deviation = spread
    return mean, mean + 8 * max(deviation, 0.005)


def overlay(
    image: Image.Image, patch_map: np.ndarray, limits: tuple[float, float] = (0.0, 1.0)
) -> Image.Image:
    """The picture in grey with its residual map laid over it; strong residuals hide more of the picture."""
    import matplotlib

    low, high = limits
    values = np.clip((upsample_to_image(patch_map, image.size) - low) / (high - low), 0, 1)
    alpha = np.nan_to_num(0.15 + 0.65 * values)[..., None]
    colours = matplotlib.colormaps[MAP_COLOURS](np.nan_to_num(values))[..., :3]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32) / 255
    blended = grey * (1 - alpha) + colours * alpha
    return Image.fromarray(np.round(255 * blended).astype(np.uint8))


def score_figure(
    image: Image.Image,
    patch_map: np.ndarray,
    score: float,
    *,
    title: str = "",
    mask: np.ndarray | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Picture, residual map and overlay side by side; the outline of a known defect, if a mask is given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(image)
    left.set_title(title or "query", fontsize=10, parse_math=False)  # a file may be called a$b$.png
    drawn = middle.imshow(patch_map, cmap=MAP_COLOURS, vmin=limits[0], vmax=limits[1])
    middle.set_title(f"residual map {patch_map.shape[0]} x {patch_map.shape[1]}", fontsize=10)
    right.imshow(overlay(image, patch_map, limits))
    right.set_title(f"score {score:.3f}", fontsize=10)
    for axes in (left, middle, right):
        axes.set_axis_off()
    if mask is not None and mask.any():
        for axes in (left, right):
            axes.contour(mask, levels=[0.5], colors="cyan", linewidths=1)
    figure.colorbar(drawn, ax=right, shrink=0.85, label=MAP_LABEL)
    return figure


def row(
    pictures: Sequence,
    titles: Sequence[str] = (),
    *,
    masks: Sequence[np.ndarray | None] = (),
    limits: tuple[float, float] | None = None,
    label: str = MAP_LABEL,
    height: float = 2.4,
) -> Figure:
    """Pictures and maps side by side; maps share one colour scale and a colour bar.

    Args:
        pictures: images (PIL, or arrays [H, W, 3]) and maps (arrays or tensors [h, w]), in any mix.
        titles: one each, or none.
        masks: true defects [H, W] to outline, one each (None where there is none), or none at all.
        limits: of the maps' colours; None: from 0 to the largest value.
        label: what the maps show, for the colour bar.
        height: inches.
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
        rows, columns = values.shape[:2] if mask is None else mask.shape  # a mask on a map: in its pixels
        place = {"extent": (-0.5, columns - 0.5, rows - 0.5, -0.5)}
        if values.ndim == 2:
            drawn = ax.imshow(values, cmap=MAP_COLOURS, vmin=low, vmax=high, **place)
        else:
            ax.imshow(values, **place)
        if mask is not None and mask.any():
            ax.contour(mask, levels=[0.5], colors="cyan", linewidths=1.2)
        if i < len(titles):
            ax.set_title(titles[i], fontsize=10, parse_math=False)
        ax.set_axis_off()
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, shrink=0.9, label=label)
    return figure
