"""From a picture to the model's input, and from a map of the input back to the picture.

A backbone sees a picture of one fixed size. `Preprocessor` knows how a picture gets there and therefore also
where a point of the input lies in the picture: heat maps, masks and pixel metrics all use this one object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Real
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.errors import InctrlError

MODES = ("crop", "squeeze", "letterbox")
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Placement(NamedTuple):
    """How one picture lies in the model's input.

    Attributes:
        resized: rows and columns of the picture after resizing.
        offset: row and column of the resized picture at which the input begins; negative: the input begins
            with a border.
    """

    resized: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True)
class Preprocessor:
    """Resizes, crops or pads a picture and normalises it, and maps positions back.

    Attributes:
        size: rows and columns of the model's input.
        mode: "crop" keeps the aspect ratio, fits the shorter side and cuts off the rest (the paper's code);
            "squeeze" shows the whole picture and changes its aspect ratio; "letterbox" shows the whole
            picture, keeps the aspect ratio and adds a border.
        mean, std: of each colour channel in [0, 1]; the input is (x - mean) / std.
        interpolation: "bicubic" or "bilinear".
        border: grey level of the letterbox's border, 0 to 255.

    Raises:
        InctrlError: unknown mode or interpolation, a size that is no size, or colours that are not three.
    """

    size: tuple[int, int]
    mode: str = "crop"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    border: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InctrlError(f"unknown preprocessing mode {self.mode!r}: choose one of {', '.join(MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise InctrlError(f"unknown interpolation {self.interpolation!r}: choose one of {known}")
        try:
            rows, columns = self.size
            colours = [float(value) for value in (*self.mean, *self.std)]
        except (TypeError, ValueError) as error:
            raise InctrlError(f"{self} is no preprocessing: {error}") from error
        if type(rows) is not int or type(columns) is not int or min(rows, columns) < 1:
            raise InctrlError(f"an input of {rows} x {columns} pixels: give two whole numbers from 1")
        if len(colours) != 6 or not all(map(math.isfinite, colours)) or min(colours[3:]) <= 0:
            raise InctrlError(f"mean {self.mean} and std {self.std}: give three numbers each, std above 0")

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 H W"]:
        """The model's input for an RGB picture."""
        (rows, columns), (top, left) = self.place(picture.size)
        resized = picture.convert("RGB").resize((columns, rows), INTERPOLATIONS[self.interpolation])
        if self.mode == "letterbox":
            canvas = Image.new("RGB", self.size[::-1], (self.border,) * 3)
            canvas.paste(resized, (-left, -top))
        else:
            canvas = resized.crop((left, top, left + self.size[1], top + self.size[0]))
        # [H, W, 3] of bytes -> [3, H, W] in [0, 1]
        pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def place(self, picture_size: tuple[int, int]) -> Placement:
        """How a picture of (width, height) lies in the input: the rounding of torchvision and timm."""
        (width, height), (rows, columns) = picture_size, self.size
        if self.mode == "squeeze":
            return Placement((rows, columns), (0, 0))
        if self.mode == "letterbox":
            ratio = max(height / rows, width / columns)
            resized = max(1, round(height / ratio)), max(1, round(width / ratio))
            return Placement(resized, (-((rows - resized[0]) // 2), -((columns - resized[1]) // 2)))
        if rows == columns:  # the longer side is cut down to whole pixels
            short = min(width, height)
            resized = (
                (rows, int(rows * width / short)) if height == short else (int(rows * height / short), rows)
            )
        else:
            ratio = min(height / rows, width / columns)
            resized = round(height / ratio), round(width / ratio)
        top, left = (round((now - wanted) / 2) for now, wanted in zip(resized, self.size, strict=True))
        return Placement(resized, (top, left))

    def seen_box(self, picture_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """The part of a picture (width, height) that the model sees: left, top, right, bottom in pixels."""
        rows, columns = (_seen_range(self, picture_size, axis) for axis in (0, 1))
        return columns[0], rows[0], columns[1], rows[1]

    def to_picture(
        self,
        values: Real[np.ndarray, "h w"],
        picture_size: tuple[int, int],
        drawn_size: tuple[int, int] | None = None,
    ) -> Float[np.ndarray, "H W"]:
        """A map of the input, of any resolution, laid over its picture.

        Args:
            values: one number for each cell of a grid over the whole input.
            picture_size: (width, height) of the picture.
            drawn_size: (width, height) of the result; None: that of the picture.

        Returns:
            Bilinear interpolation between the cells' centres; NaN where the model saw nothing.
        """
        width, height = drawn_size or picture_size
        rows = _interpolation(self, picture_size, 0, values.shape[0], height)
        columns = _interpolation(self, picture_size, 1, values.shape[1], width)
        # [H, h] [h, w] [w, W] -> [H, W]
        return rows @ np.asarray(values, np.float32) @ columns.T

    def to_model(
        self, mask: Bool[np.ndarray, "H W"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "h w"]:
        """Which share of each cell of the input is covered by a mask of the picture, in [0, 1].

        Args:
            mask: at the size of the picture.
            grid: rows and columns of cells; None: one for each pixel of the input.
        """
        (rows, columns), (top, left) = self.place((mask.shape[1], mask.shape[0]))
        picture = Image.fromarray(mask.astype(np.float32))
        resized = picture.resize((columns, rows), Image.Resampling.BOX)
        seen = torch.from_numpy(np.array(resized.crop((left, top, left + self.size[1], top + self.size[0]))))
        return F.adaptive_avg_pool2d(seen[None], grid or self.size)[0]


def _model_positions(
    preprocessor: Preprocessor, picture_size: tuple[int, int], axis: int, count: int
) -> Float[np.ndarray, " n"]:
    """Where the centres of `count` equal parts of the picture's height (axis 0) or width (axis 1) lie.

    In pixels of the input.
    """
    placement = preprocessor.place(picture_size)
    return (np.arange(count) + 0.5) * placement.resized[axis] / count - placement.offset[axis]


def _seen_range(preprocessor: Preprocessor, picture_size: tuple[int, int], axis: int) -> tuple[int, int]:
    positions = _model_positions(preprocessor, picture_size, axis, picture_size[1 - axis])
    seen = np.flatnonzero((positions >= 0) & (positions <= preprocessor.size[axis]))
    return int(seen[0]), int(seen[-1]) + 1


def _interpolation(
    preprocessor: Preprocessor, picture_size: tuple[int, int], axis: int, cells: int, count: int
) -> Float[np.ndarray, "n cells"]:
    """Weights of the cells for each of `count` positions; NaN for those that the model does not see."""
    positions = _model_positions(preprocessor, picture_size, axis, count)
    size = preprocessor.size[axis]
    weights = linear_weights(positions * cells / size, cells)
    weights[(positions < 0) | (positions > size)] = np.nan
    return weights


def linear_weights(positions: Float[np.ndarray, " n"], cells: int) -> Float[np.ndarray, "n cells"]:
    """Weights of linear interpolation between the centres of cells 1 long, constant beyond the outer centres.

    >>> linear_weights(np.array([0.2, 1.0]), 2).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    at = (positions - 0.5).clip(0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    weights = np.zeros((len(positions), cells), np.float32)
    each = np.arange(len(positions))
    weights[each, low] = 1 - (at - low)
    if cells > 1:
        weights[each, low + 1] = at - low
    return weights
