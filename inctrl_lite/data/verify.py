"""Is a prepared data set what it should be? Counts, unreadable files, duplicates, leaks: what they mean."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from inctrl_lite.data.catalogue import CATALOGUE, MULTI_CLASS
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.manifest import (
    Manifest,
    Row,
    file_hash,
    load_manifest,
    missing_files,
    rows_without_mask,
)
from inctrl_lite.errors import InctrlError

SHOWN = 5  # files named in a summary; the JSON has all


@dataclass(frozen=True)
class Finding:
    """Something about a data set that its user should know.

    Attributes:
        level: "error" results would be wrong, "warning" they may be off, "note" worth knowing.
        what: what was found, and what it means.
        files: the files in question.
    """

    level: str
    what: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        dataset: name of the data set.
        counts: by category (training normals, normal, anomalous test images).
        findings: errors first.
    """

    dataset: str
    counts: dict[str, tuple[int, int, int]]
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """No finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"is_sound": self.is_sound}

    def summary(self) -> str:
        """What a person reads on the terminal."""
        train, normal, anomalous = _total(self.counts)
        lines = [
            f"{self.dataset}: {len(self.counts)} categories; {train} training normals, {normal} normal and "
            f"{anomalous} anomalous test images"
        ]
        for finding in self.findings:
            lines.append(f"{finding.level}: {finding.what}")
            lines += [f"  {file}" for file in finding.files[:SHOWN]]
            if len(finding.files) > SHOWN:
                lines.append(f"  and {len(finding.files) - SHOWN} more")
        lines.append("sound: no errors" if self.is_sound else "NOT sound: see the errors above")
        return "\n".join(lines)


def verify(path: str | Path, progress: bool = False) -> Report:
    """Read every file of a manifest and compare the whole with the catalogue.

    Raises:
        InctrlError: `path` is no manifest. All else is a finding.
    """
    manifest = load_manifest(path)
    missing = missing_files(manifest)
    lost = set(missing)
    there = [row for row in manifest.rows if row.file not in lost]
    findings = [
        *_some("error", "files are missing: the data was moved, or the download is not complete", missing),
        *_unreadable(manifest.root, there, lost, progress),
        *_same_content(manifest.root, there),
        *_same_source(there),
        *_some(
            "error" if manifest.dataset in CATALOGUE else "warning",
            "anomalous images have no mask, although others of the data set have one: no pixel metrics can "
            "be computed for their categories",
            sorted(row.file for row in rows_without_mask(manifest.rows)),
        ),
    ]
    counts = _count(manifest.rows)
    findings += _compare(manifest, counts)
    order = ("error", "warning", "note")
    return Report(
        manifest.dataset, counts, tuple(sorted(findings, key=lambda finding: order.index(finding.level)))
    )


def _some(level: str, what: str, files: Iterable[str]) -> Iterator[Finding]:
    """One finding about these files, or none without files."""
    files = tuple(files)
    if files:
        yield Finding(level, f"{len(files)} {what}", files)


def _unreadable(root: Path, rows: list[Row], lost: set[str], progress: bool) -> Iterator[Finding]:
    bad_images, bad_masks, empty_masks = [], [], []
    doubts: dict[str, list[str]] = defaultdict(list)  # what reading warns of -> files
    # Once a file, however many categories it serves.
    masks = {row.file: "" if row.mask in lost else row.mask for row in rows}
    for file, mask in tqdm(sorted(masks.items()), desc="reading", disable=not progress):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                size = load_image(root / file).size
        except InctrlError as error:
            bad_images.append(f"{file}: {error}")
            continue
        for warning in caught:
            doubts[str(warning.message)].append(file)
        try:
            if mask and not load_mask(root / mask, size).any():
                empty_masks.append(mask)
        except InctrlError as error:
            bad_masks.append(f"{mask}: {error}")
    yield from _some("error", "images cannot be read: scoring would stop there. Fetch them again", bad_images)
    yield from _some("error", "masks cannot be read or are of another size than their image", bad_masks)
    yield from _some(
        "warning", "masks of anomalous images are all black: pixel metrics would be off", empty_masks
    )
    for message, files in doubts.items():
        yield from _some("warning", message, files)


def _same_content(root: Path, rows: list[Row]) -> Iterator[Finding]:
    """Files of equal bytes within a category. (One against all, categories share their test images.)"""
    hashes = {file: file_hash(root / file) for file in sorted({row.file for row in rows})}
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.category, hashes[row.file]].append(row)
    several = [group for _, group in sorted(groups.items()) if len(group) > 1]

    def kind(holds: Callable[[list[Row]], bool]) -> list[str]:
        return [" = ".join(sorted(row.file for row in group)) for group in several if holds(group)]

    def contradicts(group: list[Row]) -> bool:
        return len({row.label for row in group}) > 1

    def leaks(group: list[Row]) -> bool:
        return len({row.split for row in group}) > 1

    yield from _some(
        "error",
        "images are labelled normal and anomalous at once: no detector can be right",
        kind(contradicts),
    )
    yield from _some(
        "warning",
        "images are in training and test: a normal image may be the query itself, so that scores of normal "
        "queries are too low and AUROC too high",
        kind(lambda group: leaks(group) and not contradicts(group)),
    )
    yield from _some(
        "note",
        "images occur more than once in one split: they count more than once in every mean",
        kind(lambda group: not leaks(group) and not contradicts(group)),
    )


def _same_source(rows: list[Row]) -> Iterator[Finding]:
    """Pieces of one photograph in both splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.crop:
            splits[row.source].add(row.split)
    yield from _some(
        "note",
        "photographs have pieces in training and in test, as in the public protocol: normal images may be "
        "more like the queries than another photograph would be",
        sorted(source for source, found in splits.items() if len(found) > 1),
    )


def _count(rows: Iterable[Row]) -> dict[str, tuple[int, int, int]]:
    tally = Counter((row.category, row.split, row.label) for row in rows)
    names = sorted({category for category, _, _ in tally})
    return {name: (tally[name, "train", 0], tally[name, "test", 0], tally[name, "test", 1]) for name in names}


def _total(counts: dict[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    train, normal, anomalous = (sum(column) for column in zip(*counts.values(), strict=True))
    return train, normal, anomalous


def _compare(manifest: Manifest, counts: dict[str, tuple[int, int, int]]) -> Iterator[Finding]:
    """Counts against the catalogue's."""
    name = manifest.dataset.removesuffix("-multiclass")
    several = name != manifest.dataset
    info = CATALOGUE.get(name)
    expected = None if info is None else info.counts.get(MULTI_CLASS if several else info.protocols[0])
    if info is None or expected is None:
        what = f"{manifest.dataset} is not in the catalogue: there is nothing to compare its counts with"
        yield Finding("note", what)
        return
    for category, (normal, anomalous) in expected.by_category.items():
        there = counts.get(category, (0, normal, anomalous))[1:]
        if there != (normal, anomalous):
            yield Finding(
                "error" if expected.certain else "warning",
                f"{category} has {there[0]} normal and {there[1]} anomalous test images, {normal} and "
                f"{anomalous} are expected ({expected.source})",
            )
    if not several and len(counts) < len(info.categories):
        yield Finding(
            "note", f"{len(counts)} of {len(info.categories)} categories are prepared: totals not compared"
        )
        return
    wanted, found = (expected.train, expected.normal, expected.anomalous), _total(counts)
    if found == wanted:
        return
    numbers = f"{found} training normals, normal and anomalous test images where {wanted} are expected"
    if expected.certain:
        yield Finding(
            "error", f"{numbers} ({expected.source}): results cannot be compared with published ones"
        )
    else:
        yield Finding("warning", f"{numbers}, but that is not certain ({expected.source})")
