"""From a data set as downloaded to a manifest: categories, splits and masks; what is a file is not copied."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from inctrl_lite.data.catalogue import MULTI_CLASS, find_dataset
from inctrl_lite.data.folders import held_out
from inctrl_lite.data.images import open_image
from inctrl_lite.data.manifest import Manifest, Row, check_classes, rows_without_mask, write_manifest
from inctrl_lite.data.sources import arrays, crops, files
from inctrl_lite.data.sources.sample import Sample, Source, folders
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import check_writable, write_whole

SOURCES: dict[str, Source] = files.SOURCES | crops.SOURCES | arrays.SOURCES
DEPTH = 5  # archives wrap their content in folders: elpv-dataset-411fd72/src/elpv_dataset/data
ORIENTATION = 0x0112  # the EXIF entry; from 5 on, width and height are exchanged


def prepare(
    name: str, raw: str | Path, out: str | Path, *, protocol: str | None = None, only: Sequence[str] = ()
) -> Path:
    """Read a data set of the catalogue in its official layout and write `out`/manifest.csv.

    Files are used where they lie. What is cut from a photograph or comes out of an array is written as PNG
    to `out`/images, with its mask in `out`/masks. Normal images that the data set does not split are
    divided 75/25 with seed 42, as the public code does, but in sorted order: the same on every machine.

    Args:
        name: of the catalogue.
        raw: folder with the unpacked data set in it, at most five folders deep.
        protocol: "one-vs-all" (the default) or "multi-class", for MNIST and CIFAR-10.
        only: categories to prepare; empty: all.

    Returns:
        The manifest's path; it is written last, so that an interrupted run leaves none.

    Raises:
        InctrlError: unknown name, protocol or category; another layout; missing files, categories or
            classes; masks that fit no image. The message names them.
    """
    info = find_dataset(name)
    protocol = info.protocols[0] if protocol is None else protocol
    if protocol not in info.protocols:
        raise InctrlError(
            f"{name} has no protocol {protocol!r}. There are: {', '.join(filter(None, info.protocols))}"
        )
    if strangers := [category for category in only if category not in info.categories]:
        raise InctrlError(f"{name} has no category {strangers[0]!r}. There are: {', '.join(info.categories)}")
    if only and protocol == MULTI_CLASS:
        raise InctrlError(
            "the multi-class protocol makes one category of all classes: leave out the categories"
        )
    out = Path(out)
    check_writable(out)
    root = _find_root(Path(raw), info.title, SOURCES[name])

    # One against all, the other classes are needed too: as anomalies.
    wanted = (
        info.categories
        if info.domain == "semantic"
        else tuple(c for c in info.categories if c in only or not only)
    )
    rows = [_row(sample, root, out) for sample in SOURCES[name].read(root, wanted)]
    categories = sorted(set(only) or info.categories)
    if protocol == MULTI_CLASS:
        category, normal = arrays.SEVERAL[name]
        categories, rows = [category], _multi_class(rows, category, normal)
    elif info.domain == "semantic":
        rows = [row for category in categories for row in _one_vs_all(rows, category)]
    rows = sorted(_split(rows), key=lambda row: (row.category, row.split != "train", row.file))
    for category in categories:
        own = [row for row in rows if row.category == category]
        check_classes(
            category, any(r.split == "train" for r in own), [r.label for r in own if r.split == "test"]
        )
    if without := rows_without_mask(rows):
        warnings.warn(
            f"{len(without)} anomalous images have no mask, first {without[0].file}: no pixel metrics can be "
            f"computed for {', '.join(sorted({row.category for row in without}))}. Fetch the data set again",
            stacklevel=2,
        )
    pixels = any(row.source for row in rows)
    dataset = f"{name}-multiclass" if protocol == MULTI_CLASS else name
    return write_manifest(
        out / "manifest.csv", Manifest(dataset, info.domain, out if pixels else root, tuple(rows))
    )


def _find_root(raw: Path, title: str, source: Source) -> Path:
    """The data set's top folder: `raw`, or what is nearest below it, in sorted order."""
    if not raw.is_dir():
        raise InctrlError(f"{raw} is {'a file: unpack it, and give the' if raw.exists() else 'no'} folder")
    level = [raw]
    for _ in range(DEPTH + 1):
        for folder in level:
            if source.is_root(folder):
                return folder
        level = [folder / name for folder in level for name in folders(folder)]
    inside = ", ".join(sorted(path.name for path in raw.iterdir())[:6]) or "nothing"
    raise InctrlError(
        f"{raw} does not hold {title} as it is downloaded: expected {source.expected}, found {inside}"
    )


def _row(sample: Sample, root: Path, out: Path) -> Row:
    """The manifest's line of a sample, whose pixels are written first if it has any."""
    if isinstance(sample.image, Path):
        assert not isinstance(sample.mask, np.ndarray)
        if sample.mask is not None and _size(sample.mask) != _size(sample.image):
            raise InctrlError(
                f"the mask {sample.mask} is {_size(sample.mask)} pixels large, its image "
                f"{_size(sample.image)}: they must match. Fetch the data set again"
            )
        file = sample.image.relative_to(root).as_posix()
        mask = "" if sample.mask is None else sample.mask.relative_to(root).as_posix()
    else:
        file, mask = f"images/{sample.name}.png", ""
        _write_png(out / file, sample.image)
        if isinstance(sample.mask, np.ndarray):
            mask = f"masks/{sample.name}.png"
            _write_png(out / mask, sample.mask.astype(np.uint8) * 255)
    return Row(
        file, sample.category, sample.label, sample.split, sample.defect, mask, sample.source, sample.crop
    )


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, from its header alone."""
    with open_image(path) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        return image.size[::-1] if turned else image.size


def _write_png(path: Path, pixels: np.ndarray) -> None:
    write_whole(path, lambda temporary: Image.fromarray(pixels).save(temporary))


def _split(rows: Iterable[Row]) -> list[Row]:
    """Rows without a split get what scikit-learn's train_test_split makes of the sorted files."""
    rows = list(rows)
    for category in sorted({row.category for row in rows}):
        tested = held_out(row.file for row in rows if row.category == category and not row.split)
        rows = [
            row
            if row.split or row.category != category
            else replace(row, split="test" if row.file in tested else "train")
            for row in rows
        ]
    return rows


def _one_vs_all(rows: Iterable[Row], category: str) -> list[Row]:
    """One class is normal, its training images are the pool of normal images; every other is anomalous."""
    return _relabelled(rows, category, lambda row: row.category == category)


def _multi_class(rows: Iterable[Row], category: str, normal: frozenset[str]) -> list[Row]:
    """Several classes are normal at once."""
    return _relabelled(rows, category, lambda row: row.category in normal)


def _relabelled(rows: Iterable[Row], category: str, is_normal: Callable[[Row], bool]) -> list[Row]:
    """Classes as one category: training images of the normal ones, and every test image."""
    return [
        replace(
            row,
            category=category,
            label=int(not is_normal(row)),
            defect="good" if is_normal(row) else row.category,
        )
        for row in rows
        if row.split == "test" or is_normal(row)
    ]
