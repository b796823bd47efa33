"""Which part of a picture a detector looks at, and how closely: region, tiles, size of the input.

The simplest view is the whole picture as one input of the backbone. A region cuts away what does not count,
such as a serial number. Tiles cut a large picture into overlapping parts, so that a small defect is not lost
when the picture is reduced to the input's size. A view also knows where its map lies in the picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from inctrl_lite.data.images import load_mask, open_image
from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor, linear_weights

OVERLAP = 0.25  # of neighbouring tiles, as a share of a tile's side
MAX_TILES = 100  # that are chosen automatically; time grows with their number
# Pixels of an automatic tile for each pixel of the input. Below 1 the tile is enlarged. A scratch of 20 x 2
# pixels on a photograph of 1200 x 1200 pixels needs that (benchmarks/tiles.py).
SHARPNESS = 0.75
MAX_REGION = 1024  # pixels of the longer side of a region that is kept
HIDDEN = (128, 128, 128)  # colour of what does not count
MAX_ASPECT_ERROR = 0.02  # by which a region's and a picture's aspect ratio may differ

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
WHOLE = Preprocessor((1, 1), "squeeze")  # of a map that covers all of what it is laid over


@dataclass(frozen=True, eq=False)
class Region:
    """The part of a picture that counts. It has the same place in every picture.

    Attributes:
        mask: True where the picture counts, reduced to at most `MAX_REGION` pixels; pictures may have another
            size but not another aspect ratio.

    Raises:
        InctrlError: nothing counts.
    """

    mask: Bool[np.ndarray, "h w"]

    def __post_init__(self) -> None:
        if not self.mask.any():
            raise InctrlError("the region is empty: nothing would count. White marks what counts")

    @classmethod
    def of(cls, given: Any, picture_size: tuple[int, int]) -> Region:
        """A region from what a user may give.

        Args:
            given: a mask file (what is not black counts), a mask array [H, W], or a box (left, top, right,
                bottom) in pixels of a picture of `picture_size`.
            picture_size: (width, height) of the normal images.

        Raises:
            InctrlError: unreadable, empty, of another aspect ratio, or a box that is not inside the picture.
        """
        if isinstance(given, Region):
            return given
        if isinstance(given, (str, Path)):
            with open_image(given) as image:
                size = image.size
            mask = load_mask(Path(given), size)
        elif isinstance(given, np.ndarray) and given.ndim == 2:
            mask = given.astype(bool)
        else:
            mask = _box_mask(given, picture_size)
        _check_aspect(mask.shape[::-1], picture_size)
        return cls(_reduced(mask))

    def box(self, picture_size: tuple[int, int]) -> Box:
        """The smallest box around what counts."""
        (width, height), (rows, columns) = picture_size, self.mask.shape
        _check_aspect((columns, rows), picture_size)
        down, across = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        left, right = across[0] * width // columns, math.ceil((across[-1] + 1) * width / columns)
        top, bottom = down[0] * height // rows, math.ceil((down[-1] + 1) * height / rows)
        return int(left), int(top), int(right), int(bottom)

    def at(self, picture_size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
        """The mask at the size of a picture."""
        image = Image.fromarray(self.mask.astype(np.uint8))
        return np.asarray(image.resize(picture_size, Image.Resampling.NEAREST)).astype(bool)


@dataclass(frozen=True, eq=False)
class View:
    """How a picture becomes T inputs of the backbone, and how their maps become one map of the picture.

    Attributes:
        preprocessor: from a part of the picture to an input.
        region: what counts; None: all of it.
        tiles: rows and columns of tiles; T = rows x columns.
        bits: how many bits grey values really have (`load_image`); None: guessed for each image.
    """

    preprocessor: Preprocessor
    region: Region | None = None
    tiles: tuple[int, int] = (1, 1)
    bits: int | None = field(default=None)

    @classmethod
    def of(
        cls,
        preprocessor: Preprocessor,
        picture_size: tuple[int, int],
        *,
        region: Any = None,
        tiles: int | str | None = None,
        keep_aspect: int | None = None,
        bits: int | None = None,
    ) -> View:
        """The view for pictures like one of `picture_size`.

        Args:
            preprocessor: the backbone's own.
            picture_size: (width, height).
            region: see `Region.of`.
            tiles: side of a tile in pixels; "auto": so that little is lost, at most `MAX_TILES`; None: one.
            keep_aspect: keep the aspect ratio: the input gets about as many pixels as the preprocessor's, in
                multiples of so many. None: the preprocessor's size.
            bits: see above.

        Raises:
            InctrlError: the region does not fit, or a tile is smaller than the input's cells can show.
        """
        found = Region.of(region, picture_size) if region is not None else None
        left, top, right, bottom = found.box(picture_size) if found else (0, 0, *picture_size)
        size = (right - left, bottom - top)
        grid = (1, 1)
        if tiles is not None:
            side = automatic_tile(size, preprocessor.size) if tiles == "auto" else tiles
            if not isinstance(side, int) or side < 16:
                raise InctrlError(f"tiles of {side} pixels: choose 16 or more, or auto")
            grid = _tile_count(size[1], side), _tile_count(size[0], side)
        if keep_aspect is not None:
            tile = (size[0] / _spans(grid[1]), size[1] / _spans(grid[0]))
            preprocessor = replace(preprocessor, size=input_size(tile, preprocessor.size, keep_aspect))
        return cls(preprocessor, found, grid, bits)

    @property
    def count(self) -> int:
        """T."""
        return math.prod(self.tiles)

    def boxes(self, picture_size: tuple[int, int]) -> list[Box]:
        """Where the T tiles lie in the picture, row by row."""
        left, top, right, bottom = self._box(picture_size)
        down = _tile_ranges(top, bottom, self.tiles[0])
        across = _tile_ranges(left, right, self.tiles[1])
        return [(x0, y0, x1, y1) for y0, y1 in down for x0, x1 in across]

    def cut(self, picture: Image.Image) -> list[Image.Image]:
        """The T parts of a picture; what does not count is grey.

        Raises:
            InctrlError: the picture has another aspect ratio than the region.
        """
        if self.region is not None:
            hidden = Image.new("RGB", picture.size, HIDDEN)
            picture = Image.composite(picture, hidden, Image.fromarray(self.region.at(picture.size)))
        boxes = self.boxes(picture.size)
        return [picture if box == (0, 0, *picture.size) else picture.crop(box) for box in boxes]

    def neighbours(self) -> list[list[int]]:
        """For each tile: itself, then the eight around it. At the border some occur twice.

        Queries are compared with these tiles of the normal images, so that a picture may be shifted a little.
        """
        if self.count == 1:
            return [[0]]
        rows, columns = self.tiles
        steps = [(0, 0), *((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))]
        return [
            [min(max(r + y, 0), rows - 1) * columns + min(max(c + x, 0), columns - 1) for y, x in steps]
            for r in range(rows)
            for c in range(columns)
        ]

    def stitch(self, maps: Float[np.ndarray, "T h w"]) -> Float[np.ndarray, "H W"]:
        """The maps of the tiles as one map; where tiles overlap, a weighted mean that fades out at edges."""
        if self.count == 1:
            return maps[0]
        rows = [_stitching(self.tiles[0], maps.shape[1], i) for i in range(self.tiles[0])]
        columns = [_stitching(self.tiles[1], maps.shape[2], i) for i in range(self.tiles[1])]
        total = np.zeros((len(rows[0]), len(columns[0])), np.float32)
        for t, values in enumerate(maps):
            # [H, h] [h, w] [w, W] -> [H, W]
            total += rows[t // self.tiles[1]] @ values @ columns[t % self.tiles[1]].T
        weight = np.outer(sum(w.sum(1) for w in rows), sum(w.sum(1) for w in columns))
        return total / weight.astype(np.float32)

    def to_picture(
        self,
        values: Float[np.ndarray, "h w"],
        picture_size: tuple[int, int],
        drawn_size: tuple[int, int] | None = None,
    ) -> Float[np.ndarray, "H W"]:
        """A map of `stitch` laid over its picture; NaN where nothing was looked at.

        Args:
            values: the map.
            picture_size: (width, height) of the picture.
            drawn_size: (width, height) of the result; None: that of the picture.
        """
        placed = self.preprocessor if self.count == 1 else WHOLE
        if self.region is None:
            return placed.to_picture(values, picture_size, drawn_size)
        width, height = drawn_size or picture_size
        left, top, right, bottom = self._box(picture_size)
        scale_x, scale_y = width / picture_size[0], height / picture_size[1]
        x0, x1 = math.floor(left * scale_x), max(math.ceil(right * scale_x), math.floor(left * scale_x) + 1)
        y0, y1 = math.floor(top * scale_y), max(math.ceil(bottom * scale_y), math.floor(top * scale_y) + 1)
        found = np.full((height, width), np.nan, np.float32)
        found[y0:y1, x0:x1] = placed.to_picture(values, (right - left, bottom - top), (x1 - x0, y1 - y0))
        found[~self.region.at((width, height))] = np.nan
        return found

    def _box(self, picture_size: tuple[int, int]) -> Box:
        return (0, 0, *picture_size) if self.region is None else self.region.box(picture_size)


def automatic_tile(size: tuple[int, int], input_size: tuple[int, int]) -> int:
    """Side in pixels of the tiles that are chosen for a part of (width, height).

    `SHARPNESS` pixels of the picture for each pixel of the input, unless that makes more than
    `MAX_TILES` tiles.

    >>> automatic_tile((1200, 1200), (224, 224)), automatic_tile((200, 200), (224, 224))
    (168, 168)
    """
    side = int(SHARPNESS * min(input_size))
    while _tile_count(size[0], side) * _tile_count(size[1], side) > MAX_TILES:
        side = math.ceil(side * 1.05)
    return side


def input_size(tile: tuple[float, float], usual: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Rows and columns of an input with a tile's aspect ratio (width, height) and about the usual area.

    >>> input_size((400.0, 100.0), (224, 224), 32)
    (128, 448)
    """
    width, height = tile
    area = usual[0] * usual[1]
    rows, columns = (
        max(1, round(math.sqrt(area * ratio) / multiple)) for ratio in (height / width, width / height)
    )
    return rows * multiple, columns * multiple


def _tile_count(length: int, side: int) -> int:
    """How many tiles of at most `side` pixels cover a length."""
    return 1 if length <= side else 1 + math.ceil((length / side - 1) / (1 - OVERLAP) - 1e-9)


def _spans(count: int) -> float:
    """Length that `count` overlapping tiles cover, in sides of a tile."""
    return 1 + (count - 1) * (1 - OVERLAP)


def _tile_ranges(start: int, end: int, count: int) -> list[tuple[int, int]]:
    """First pixel of each tile, and the one after its last."""
    side = (end - start) / _spans(count)
    starts = [start + i * side * (1 - OVERLAP) for i in range(count)]
    return [(round(at), max(round(at + side), round(at) + 1)) for at in starts]


def _stitching(count: int, cells: int, which: int) -> Float[np.ndarray, "n cells"]:
    """Weights of a tile's cells for each cell of the whole map, along one axis; 0 outside the tile."""
    length = cells * _spans(count)  # of the whole map, in cells of a tile
    n = round(length)
    at = (np.arange(n) + 0.5) * length / n - which * cells * (1 - OVERLAP)  # centres, from the tile's start
    inside = (at >= 0) & (at <= cells)
    fade = np.where(inside, np.minimum(at, cells - at) + 0.5, 0)
    return linear_weights(at, cells) * fade[:, None].astype(np.float32)


def _box_mask(given: Any, picture_size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    try:
        left, top, right, bottom = (int(value) for value in given)
    except (TypeError, ValueError) as error:
        raise InctrlError(
            f"region {given!r}: give a mask, or a box of four numbers (left, top, right, bottom)"
        ) from error
    width, height = picture_size
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InctrlError(
            f"the box {left}, {top}, {right}, {bottom} (left, top, right, bottom) does not lie inside a "
            f"picture of {width} x {height} pixels"
        )
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def _check_aspect(region_size: tuple[int, ...], picture_size: tuple[int, int]) -> None:
    (columns, rows), (width, height) = region_size, picture_size
    if abs(math.log(columns * height / (rows * width))) > MAX_ASPECT_ERROR:
        raise InctrlError(
            f"the region has {columns} x {rows} pixels and a picture has {width} x {height}: their aspect "
            "ratios must be equal"
        )


def _reduced(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "h w"]:
    """A mask of at most `MAX_REGION` pixels on its longer side; what counts a little counts."""
    rows, columns = mask.shape
    scale = MAX_REGION / max(rows, columns)
    if scale >= 1:
        return mask
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BOX)) > 0
