"""Manifests: what a data set consists of, and which normal images were the support sets, as readable text.

A manifest is a CSV table with one line more, the first, that says whose it is::

    # {"version": 1, "dataset": "visa", "domain": "industrial", "root": "raw/VisA_20220922"}
    file,category,label,split,defect,mask,source,crop

`file` and `mask` are relative to `root`, and `root` to the manifest's own folder, so that data and manifest
can move together. `source` and `crop` ("left,top,right,bottom") say what a file was cut from, for the record.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.folders import load_folder
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_text

VERSION = 1
ENCODING = "utf-8-sig"  # UTF-8, with or without the byte order mark that Windows programs write


@dataclass(frozen=True)
class Row:
    """One image of a manifest; see the module's docstring."""

    file: str
    category: str
    label: int
    split: str
    defect: str = "good"
    mask: str = ""
    source: str = ""
    crop: str = ""

    @property
    def name(self) -> str:
        """Unique in its data set: the file, below its category where one file serves several."""
        return self.file if self.file.startswith(f"{self.category}/") else f"{self.category}/{self.file}"


@dataclass(frozen=True)
class Manifest:
    """The table and whose it is. `root` is the folder that files are relative to."""

    dataset: str
    domain: str
    root: Path
    rows: tuple[Row, ...]


COLUMNS = tuple(field.name for field in fields(Row))


# --- data sets ---------------------------------------------------------------------------------------


def write_manifest(path: str | Path, manifest: Manifest) -> Path:
    """Write a manifest, whole or not at all."""
    path = Path(path)
    head = {"version": VERSION, "dataset": manifest.dataset, "domain": manifest.domain}
    text = io.StringIO()
    text.write(f"# {json.dumps(head | {'root': _relative(manifest.root, path.parent)})}\n")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in manifest.rows)
    return write_text(path, text.getvalue())


def _relative(root: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of a Windows machine
        return root.resolve().as_posix()


def load_manifest(path: str | Path) -> Manifest:
    """The table of a manifest, checked line by line; whether its files exist is not looked at.

    Raises:
        InctrlError: missing, or no manifest, or a line that makes no sense (named).
    """
    path = Path(path)
    try:
        first, _, table = path.read_text(encoding=ENCODING).partition("\n")
        head = json.loads(first.removeprefix("#"))
        version, dataset, domain, root = (head[key] for key in ("version", "dataset", "domain", "root"))
        if not all(isinstance(text, str) for text in (dataset, domain, root)):
            raise TypeError("dataset, domain and root are texts")
    except FileNotFoundError as error:
        raise InctrlError(
            f"cannot read the manifest {path}: there is none. 'inctrl-lite data prepare NAME' makes one of a "
            "data set's files"
        ) from error
    except OSError as error:
        raise InctrlError(f"cannot read the manifest {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InctrlError(
            f"{path} is not a manifest in UTF-8: save it as UTF-8 (in Excel: 'CSV UTF-8'), or make one with "
            "'inctrl-lite data prepare'"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InctrlError(
            f"{path} is not a manifest: its first line should be a # and a JSON object with version, "
            "dataset, domain and root. Make one with 'inctrl-lite data prepare'"
        ) from error
    if version != VERSION:
        raise InctrlError(
            f"{path} is a manifest of version {version}, this package reads {VERSION}: prepare it again"
        )
    reader = csv.DictReader(io.StringIO(table))
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise InctrlError(
                f"{path}: the columns should be {','.join(COLUMNS)}, they are {reader.fieldnames}"
            )
        rows = tuple(_row(entry, f"{path}, line {number}") for number, entry in enumerate(reader, start=3))
    except csv.Error as error:
        raise InctrlError(f"{path}, line {reader.line_num + 2}: {error}. Prepare it again") from error
    if not rows:
        raise InctrlError(f"{path} lists no images: prepare it again")
    return Manifest(dataset, domain, path.parent / _with_slashes(root), rows)


def _with_slashes(path: str) -> str:
    """A path as it is written on Windows, with forward slashes."""
    return path.replace("\\", "/")


def _row(entry: dict, where: str) -> Row:
    if None in entry or None in entry.values():
        raise InctrlError(f"{where}: {len(COLUMNS)} fields are expected")
    if entry["label"] not in ("0", "1") or entry["split"] not in ("train", "test"):
        raise InctrlError(
            f"{where}: label is {entry['label']!r} (0 or 1), split {entry['split']!r} (train or test)"
        )
    if entry["split"] == "train" and entry["label"] == "1":
        raise InctrlError(
            f"{where}: an anomalous image cannot be in the training split, which holds normals only"
        )
    for key in ("file", "mask"):
        entry[key] = _with_slashes(entry[key])
        if not is_inside(entry[key]):
            raise InctrlError(f"{where}: {entry[key]!r} leads out of the data set's folder")
    if not entry["file"]:
        raise InctrlError(f"{where}: no file is named")
    return Row(**entry | {"label": int(entry["label"])})


def is_inside(path: str) -> bool:
    """Whether a relative path with forward slashes stays below the folder it starts from."""
    return not (
        path.startswith("/") or ".." in path.split("/") or set("\\\0") & set(path) or path[1:2] == ":"
    )


def read_manifest(path: str | Path) -> list[Category]:
    """The categories of a manifest, in sorted order.

    Raises:
        InctrlError: no manifest, files that are not where it says, two images of one name, or a category
            that lacks a class (named).
    """
    manifest = load_manifest(path)
    if missing := missing_files(manifest):
        raise InctrlError(
            f"{path}: {len(missing)} of its files are not there, first {manifest.root / missing[0]}. Was the "
            "data moved? Move it back, or prepare it again where it lies now"
        )
    items: dict[str, dict[str, list[Item]]] = {}
    seen: set[str] = set()
    for row in manifest.rows:
        if row.name in seen:
            raise InctrlError(f"{path}: {row.name} is listed twice. Prepare the data set again")
        seen.add(row.name)
        splits = items.setdefault(row.category, {"train": [], "test": []})
        mask = manifest.root / row.mask if row.mask else None
        splits[row.split].append(Item(manifest.root / row.file, row.label, row.name, row.defect, mask))
    for name, splits in items.items():
        check_classes(name, bool(splits["train"]), [item.label for item in splits["test"]])
    return [
        Category(manifest.dataset, name, manifest.domain, tuple(splits["train"]), tuple(splits["test"]))
        for name, splits in sorted(items.items())
    ]


def load_dataset(path: str | Path) -> list[Category]:
    """The categories of a manifest, of a folder with manifest.csv in it, or of one in MVTec's layout."""
    path = Path(path)
    if path.suffix == ".csv":
        return read_manifest(path)
    if (path / "manifest.csv").is_file():
        return read_manifest(path / "manifest.csv")
    return load_folder(path)


def check_classes(category: str, train: bool, test: Iterable[int | None]) -> None:
    """Refuse a category without training normals, or whose test images are all of one class."""
    there = set(test)
    for exists, what in (
        (train, "training normals"),
        (0 in there, "normal test images"),
        (1 in there, "anomalous test images"),
    ):
        if not exists:
            raise InctrlError(
                f"category {category!r} has no {what}: is the download complete? Fetch it again"
            )


def missing_files(manifest: Manifest) -> list[str]:
    """Images and masks of a manifest that do not exist, sorted."""
    files = {path for row in manifest.rows for path in (row.file, row.mask) if path}
    return sorted(path for path in files if not os.path.isfile(manifest.root / path))


def rows_without_mask(rows: Iterable[Row]) -> list[Row]:
    """Anomalous images without a mask, where others of the data set have one."""
    anomalous = [row for row in rows if row.label == 1]
    return [row for row in anomalous if not row.mask] if any(row.mask for row in anomalous) else []


# --- support sets ------------------------------------------------------------------------------------


def write_prompts(path: str | Path, categories: Sequence[Category], shots: int, seed: int = 0) -> Path:
    """Draw the support set of every category, K normal images, and write down which they are.

    With `read_prompts`, every method, and whoever repeats the measurement, sees the same images.

    Raises:
        InctrlError: a category has fewer normal images than `shots`.
    """
    drawn = {category.name: draw_support(category, shots, seed) for category in categories}
    record = {
        "version": VERSION,
        "dataset": categories[0].dataset,
        "shots": shots,
        "seed": seed,
        "prompts": {
            name: [{"name": item.name, "sha256": content_hash(item)} for item in items]
            for name, items in drawn.items()
        },
    }
    return write_text(path, json.dumps(record, indent=2) + "\n")


def read_prompts(path: str | Path, categories: Sequence[Category]) -> dict[str, tuple[Item, ...]]:
    """The recorded support sets by category.

    Raises:
        InctrlError: not such a record, or an image that is missing, has other content, or is another
            data set's (named).
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding=ENCODING))
        version, dataset, prompts = record["version"], record["dataset"], record["prompts"]
        wanted = {c: [(entry["name"], entry["sha256"]) for entry in prompts[c]] for c in prompts}
    except OSError as error:
        raise InctrlError(f"cannot read the record {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InctrlError(f"{path} is not a record of normal images: write one with write_prompts") from error
    if version != VERSION:
        raise InctrlError(f"{path} is of version {version}, this package reads {VERSION}: write it again")
    found: dict[str, tuple[Item, ...]] = {}
    for category in categories:
        if category.dataset != dataset or category.name not in wanted:
            raise InctrlError(
                f"{path} holds normal images of {dataset} for {', '.join(wanted)}, none for "
                f"{category.name!r} of {category.dataset}"
            )
        pool = {item.name: item for item in category.train}
        for name, digest in wanted[category.name]:
            if name not in pool:
                raise InctrlError(
                    f"{path}: category {category.name!r} has no normal image {name}: prepare it again"
                )
            if content_hash(pool[name]) != digest:
                raise InctrlError(
                    f"{path}: {name} is not the image it was when it was recorded. Fetch the data set "
                    "again, or record anew"
                )
        found[category.name] = tuple(pool[name] for name, _ in wanted[category.name])
    return found


def content_hash(item: Item) -> str:
    """SHA-256 of an image file (what `sha256sum` prints), or of an array's shape and bytes."""
    if isinstance(item.image, Path):
        return file_hash(item.image)
    return hashlib.sha256(repr(item.image.shape).encode() + item.image.tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InctrlError(f"cannot read {path}: {error.strerror or error}") from error
