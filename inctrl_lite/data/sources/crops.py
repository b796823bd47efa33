"""Data sets whose photographs are cut into pieces, each an image of its own: KolektorSDD and AITEX."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from inctrl_lite.data.images import find_images, load_image, load_mask
from inctrl_lite.data.sources.sample import Sample, Source, folders, holds, warn_of_strangers
from inctrl_lite.errors import InctrlError

TILE = 256

# AITEX's codes, the second number of a defect image's name, as the public code spells them out.
DEFECTS = {
    "002": "broken end",
    "006": "broken yarn",
    "010": "broken pick",
    "016": "weft curling",
    "019": "fuzzyball",
    "022": "cut selvage",
    "023": "crease",
    "025": "warp ball",
    "027": "knots",
    "029": "contamination",
    "030": "nep",
    "036": "weft crack",
}


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> tuple[np.ndarray, str]:
    """Pixels of a part of an image, and the part as a manifest writes it."""
    return np.asarray(image.crop(box)), ",".join(map(str, box))


def _sdd(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    """Each photograph in three along its height; a third is anomalous if its mask is not black."""
    parts = [name for name in folders(root) if re.fullmatch(r"kos\d+", name)]
    warn_of_strangers(root, set(folders(root)) - set(parts))
    for part in parts:
        photographs = sorted((root / part).glob("*.jpg"), key=lambda path: path.name)
        masks = {path.name.removesuffix("_label.bmp"): path for path in (root / part).glob("*_label.bmp")}
        for path in photographs:
            source = path.relative_to(root).as_posix()
            if path.stem not in masks:
                raise InctrlError(
                    f"{path} has no mask {path.stem}_label.bmp beside it: fetch the data set again"
                )
            image = load_image(path)
            mask = load_mask(masks.pop(path.stem), image.size)
            cuts = [image.height * i // 3 for i in range(4)]
            for i, (top, bottom) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
                pixels, crop = _crop(image, (0, top, image.width, bottom))
                defect = mask[top:bottom]
                anomalous = bool(defect.any())
                yield Sample(
                    image=pixels,
                    name=f"{part}/{path.stem}_{i}",
                    category=categories[0],
                    label=int(anomalous),
                    split="test" if anomalous else "",
                    defect="defect" if anomalous else "good",
                    mask=defect if anomalous else None,
                    source=source,
                    crop=crop,
                )
        if masks:
            raise InctrlError(f"the mask {min(masks.values())} has no image: fetch the data set again")


def _aitex(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    """Strips in 256-pixel tiles: all of a normal strip; of a defective one those with a part of its mask."""
    warn_of_strangers(root, set(folders(root)) - {"NODefect_images", "Defect_images", "Mask_images"})
    for path in find_images(root / "NODefect_images"):
        strip = load_image(path)
        for i in range(strip.width // TILE):
            pixels, crop = _crop(strip, (i * TILE, 0, (i + 1) * TILE, strip.height))
            name = f"good/{path.parent.name}_{path.stem}_{i:02}"
            yield Sample(pixels, name, categories[0], 0, source=path.relative_to(root).as_posix(), crop=crop)

    masks: dict[str, list[Path]] = {}  # two strips have two masks each, _mask1 and _mask2
    for path in find_images(root / "Mask_images"):
        masks.setdefault(re.sub(r"_mask\d?$", "", path.stem), []).append(path)
    for path in find_images(root / "Defect_images"):
        strip = load_image(path)
        try:
            mask = _strip_mask(masks.pop(path.stem, []), strip.size)
        except InctrlError as error:
            warnings.warn(
                f"{path} is left out, since nobody knows which tiles are anomalous: {error}", stacklevel=2
            )
            continue
        code = path.stem.split("_")[1:2]
        for i, left in enumerate(range(0, strip.width, TILE)):
            defect = mask[:, left : left + TILE]
            if not defect.any():
                continue
            pixels, crop = _crop(strip, (left, 0, min(left + TILE, strip.width), strip.height))
            yield Sample(
                image=pixels,
                name=f"defect/{path.stem}_{i:02}",
                category=categories[0],
                label=1,
                split="test",
                defect=DEFECTS.get("".join(code), "other"),
                mask=defect,
                source=path.relative_to(root).as_posix(),
                crop=crop,
            )
    if masks:
        raise InctrlError(
            f"the mask {min(masks.values())[0]} has no image in Defect_images: fetch the data set again"
        )


def _strip_mask(drawn: list[Path], size: tuple[int, int]) -> np.ndarray:
    """All masks of a strip as one, bool [H, W]."""
    if not drawn:
        raise InctrlError("it has no mask")
    mask = np.any([load_mask(path, size) for path in drawn], axis=0)
    if not mask.any():
        raise InctrlError(f"the mask {drawn[0]} is black")
    return mask


SOURCES = {
    "sdd": Source(holds("kos01"), "the folders kos01 ... kos50", _sdd),
    "aitex": Source(
        holds("NODefect_images", "Defect_images", "Mask_images"),
        "the folders NODefect_images, Defect_images and Mask_images",
        _aitex,
    ),
}
