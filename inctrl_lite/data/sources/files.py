"""Data sets whose images are files that can be used as they are: MVTec AD, VisA, ELPV, brain MRI, head CT."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from inctrl_lite.data.catalogue import CATALOGUE
from inctrl_lite.data.folders import load_folder
from inctrl_lite.data.images import find_images
from inctrl_lite.data.manifest import is_inside
from inctrl_lite.data.sources.sample import Sample, Source, folders, holds, require, warn_of_strangers
from inctrl_lite.errors import InctrlError


def _find_categories(root: Path, dataset: str, wanted: tuple[str, ...], besides: set[str]) -> None:
    """Refuse a folder that lacks a category; warn of folders that are none."""
    there = set(folders(root))
    if missing := [name for name in wanted if name not in there]:
        raise InctrlError(
            f"{root} lacks {len(missing)} of the data set's categories: {', '.join(missing)}. Fetch them, or "
            f"prepare only what is there: --only {' --only '.join(n for n in wanted if n in there)}"
        )
    warn_of_strangers(root, there - set(CATALOGUE[dataset].categories) - besides)


def _lines(table: Path) -> list[str]:
    """A text file's lines; bytes that are no UTF-8 are no file's name either, and are found missing later."""
    try:
        return table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise InctrlError(f"cannot read {table}: {error.strerror or error}") from error


def _csv_rows(table: Path) -> list[list[str]]:
    """The rows of a CSV file, the header first; blank lines are left out."""
    try:
        return [row for row in csv.reader(_lines(table)) if row]
    except csv.Error as error:
        raise InctrlError(
            f"{table} is no table that can be read ({error}): fetch the data set again"
        ) from error


def _mvtec(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    _find_categories(root, "mvtec", categories, set())
    for name in categories:
        (category,) = load_folder(root / name)
        for split, items in (("train", category.train), ("test", category.test)):
            for item in items:
                yield Sample(item.image, item.name, name, item.label or 0, split, item.defect, item.mask)


def _visa(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    """The public code's split, split_csv/1cls.csv. Files are called .JPG, which its next script overlooks."""
    _find_categories(root, "visa", categories, {"split_csv"})
    table = root / "split_csv" / "1cls.csv"
    columns = ["object", "split", "label", "image", "mask"]
    header, *lines = _csv_rows(table) or [[]]
    if header != columns:
        raise InctrlError(f"{table}: the columns should be {','.join(columns)}, they are {','.join(header)}")
    entries = [dict(zip_longest(columns, line[:5], fillvalue="")) for line in lines]
    rows = sorted((row for row in entries if row["object"] in categories), key=lambda row: row["image"])
    for row in rows:
        good = (row["split"], row["label"]) in (("train", "normal"), ("test", "normal"), ("test", "anomaly"))
        if not (good and row["image"] and is_inside(row["image"]) and is_inside(row["mask"])):
            raise InctrlError(
                f"{table}: the line of {row['image']!r} makes no sense. Fetch the data set again"
            )
    listed = [path for row in rows for path in (row["image"], row["mask"]) if path]
    require(root, listed, "split_csv/1cls.csv")
    for row in rows:
        anomalous = row["label"] == "anomaly"
        yield Sample(
            root / row["image"],
            row["image"],
            row["object"],
            int(anomalous),
            row["split"],
            "anomaly" if anomalous else "good",
            root / row["mask"] if row["mask"] else None,
        )


def _elpv(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    """Defect probability 0 is normal, 1 anomalous; what the experts were not sure of is left out."""
    table = root / "labels.csv"
    entries: list[tuple[str, float, str]] = []
    for number, line in enumerate(_lines(table), start=1):
        if not line.strip():
            continue
        try:
            file, share, kind = line.split()
            entries.append((file, float(share), kind))
        except ValueError as error:
            raise InctrlError(
                f"{table}, line {number}: a file, a probability and a kind are expected"
            ) from error
        if not is_inside(file):
            raise InctrlError(f"{table}, line {number}: {file!r} leads out of the data set's folder")
    sure = sorted(entry for entry in entries if entry[1] in (0.0, 1.0))
    require(root, (file for file, _, _ in sure), "labels.csv")
    for file, probability, kind in sure:
        defective = probability == 1
        yield Sample(
            root / file,
            file,
            categories[0],
            int(defective),
            "test" if defective else "",
            kind if defective else "good",
        )


def _brainmri(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    # The archive holds everything twice, the second time in brain_tumor_dataset/.
    warn_of_strangers(root, set(folders(root)) - {"no", "yes", "brain_tumor_dataset"})
    for folder, label in (("no", 0), ("yes", 1)):
        for path in find_images(root / folder):
            name = path.relative_to(root).as_posix()
            yield Sample(
                path, name, categories[0], label, "test" if label else "", "tumor" if label else "good"
            )


def _headct(root: Path, categories: tuple[str, ...]) -> Iterator[Sample]:
    table = root / "labels.csv"
    places = ("head_ct/head_ct", "head_ct", ".")  # the inner folder, or both, may have been lost in unpacking
    place = next((p for p in places if any((root / p).glob("*.png"))), places[0])
    labels = {}
    for number, fields in enumerate(_csv_rows(table), start=1):
        if number == 1:  # the header, "id, hemorrhage"
            continue
        try:
            image, label = (int(field) for field in fields)
        except ValueError as error:
            raise InctrlError(f"{table}, line {number}: an id and a label are expected") from error
        if label not in (0, 1):
            raise InctrlError(f"{table}, line {number}: the label is {label}, it should be 0 or 1")
        labels[(Path(place) / f"{image:03}.png").as_posix()] = label
    require(root, labels, "labels.csv")
    for name, label in sorted(labels.items()):
        yield Sample(
            root / name,
            name,
            categories[0],
            label,
            "test" if label else "",
            "hemorrhage" if label else "good",
        )


def _has_category(folder: Path) -> bool:
    return any((folder / name / "train").is_dir() for name in CATALOGUE["mvtec"].categories)


def _has_heads(folder: Path) -> bool:
    return holds("labels.csv", "head_ct")(folder) or holds("labels.csv", "000.png")(folder)


SOURCES = {
    "mvtec": Source(_has_category, "the category folders, bottle ... zipper", _mvtec),
    "visa": Source(holds("split_csv/1cls.csv"), "the category folders and split_csv/1cls.csv", _visa),
    "elpv": Source(holds("labels.csv", "images"), "labels.csv and images/", _elpv),
    "brainmri": Source(holds("no", "yes"), "the folders no/ and yes/", _brainmri),
    "headct": Source(_has_heads, "labels.csv and head_ct/", _headct),
}
