"""From folders to scores, maps and a report: what `inctrl-lite fit` and `inctrl-lite score` do."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.folders import normal_images, read_labelled
from inctrl_lite.data.images import find_images, load_image
from inctrl_lite.detector import DEFAULT, AnomalyDetector
from inctrl_lite.engine import with_engine
from inctrl_lite.environment import environment
from inctrl_lite.errors import InctrlError
from inctrl_lite.evaluation import map_metrics
from inctrl_lite.files import check_writable, locked, write_text, write_whole
from inctrl_lite.metrics import bootstrap_interval, image_metrics
from inctrl_lite.prediction import Prediction, Predictions
from inctrl_lite.report import MAP_NOTE, Card, Section, Table, prediction_card, write_report

SHOWN = 200  # queries with pictures in the report; the CSV has all
MAPS = ("npy", "tiff", "png")  # formats of raw maps
WITHOUT_NORMALS = "the score is the model's prior alone, which is weak, and no threshold follows from it"
WITHOUT_NORMALS_MAP = "The coloured picture shows the model's prior, patch by patch, where it has one."
DRAWN = ("heatmaps", "maps")  # folders of results that must not be taken for queries


@dataclass(frozen=True, eq=False)
class FolderScores:
    """What scoring a folder gave.

    Attributes:
        predictions: one a query; `.skipped` names what could not be read.
        normals: names of the K normal images.
        settings: model, category, shots, threshold and where it came from, and more.
        metrics: AUROC, AP, F1-max and the AUROC's 95 % interval; pixel metrics too where every anomalous
            image has a mask; None without labels of both classes.
        out: folder with scores.csv, scores.json, heatmaps/ and report.html.
    """

    predictions: Predictions
    normals: list[str]
    settings: dict[str, Any]
    metrics: dict[str, Any] | None
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "settings": self.settings,
            "metrics": self.metrics,
            "normal_images": self.normals,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.predictions.skipped],
            "scores": [prediction.to_dict() for prediction in self.predictions],
        }

    def summary(self) -> str:
        """What a person reads on the terminal."""
        threshold, normal = self.settings["threshold"], self.settings["normal_scores"]
        lines = [f"{len(self.predictions)} images scored against {len(self.normals)} normal ones"]
        if not self.normals:
            lines = [f"{len(self.predictions)} images scored without normal images: {WITHOUT_NORMALS}"]
        if threshold is None and not self.normals:
            lines[0] += " (give --threshold)"
        elif threshold is None:
            lines[0] += "; no threshold (give --threshold, or two normal images or more)"
        else:
            found = sum(bool(prediction.is_anomalous) for prediction in self.predictions)
            lines[0] += f": {found} above {threshold:.3f}"
            lines.append(f"threshold: {self.settings['threshold_source']}")
        if normal:
            lines.append(f"normal images score {min(normal):.3f} to {max(normal):.3f}")
        if self.predictions.skipped:
            lines.append(f"{len(self.predictions.skipped)} skipped, first {self.predictions.skipped[0][1]}")
        if self.metrics:
            low, high = self.metrics["auroc_interval"]
            lines.append(
                f"AUROC {self.metrics['auroc']:.3f} ({low:.3f} to {high:.3f}), AP {self.metrics['ap']:.3f}"
            )
            if "aupro" in self.metrics:
                pixel, overlap = self.metrics["pixel_auroc"], self.metrics["aupro"]
                lines.append(f"of the map: pixel AUROC {pixel:.3f}, AUPRO {overlap:.3f}")
        lines.append(f"report: {self.out / 'report.html'}")
        return "\n".join(lines)


# --- normal images -----------------------------------------------------------------------------------


def fit_folder(
    detector: AnomalyDetector,
    normals: str | Path,
    category: str = "object",
    *,
    shots: int | None = None,
    seed: int = 0,
    skipped: list[tuple[str, str]] | None = None,
    results: Path | None = None,
    batch_size: int = 32,
    **view: Any,
) -> list[Item]:
    """Fit a category to the normal images of a folder, and return those that were taken.

    Args:
        normals: a folder of normal images; of a labelled folder (MVTec's layout), its normal images.
        shots: K, drawn with `seed`; None: all.
        skipped: a list that receives (name, reason) of unreadable files; None: they raise.
        results: a folder of results, whose heat maps and maps are no normal images.
        view: region, tiles, any_rotation, keep_aspect, bits: see `AnomalyDetector.fit`.

    Raises:
        InctrlError: bad input (named), or fewer images than `shots`.
    """
    pool = [item for item in normal_images(normals) if not _is_result(item.file, results)]
    if shots is not None and len(pool) < shots:
        raise InctrlError(
            f"{normals} holds {len(pool)} normal image{'s' * (len(pool) != 1)}, fewer than the {shots} asked "
            "for: add some, or ask for fewer shots"
        )
    if shots is not None:
        pool = list(draw_support(Category("folder", category, "", tuple(pool), ()), shots, seed))
    named = [(item.name, item.image) for item in pool]
    detector.fit(named, category, batch_size, skipped=skipped, **view)
    kept = set(detector.categories[category].names)
    return [item for item in pool if item.name in kept]


# --- queries -----------------------------------------------------------------------------------------


def score_folder(
    normals: str | Path | None,
    queries: str | Path,
    out: str | Path,
    *,
    shots: int = 4,
    category: str = "object",
    seed: int = 0,
    model: str | AnomalyDetector = DEFAULT,
    image_size: int | None = None,
    threshold: float | None = None,
    skip_unreadable: bool = False,
    batch_size: int = 32,
    device: str = "auto",
    progress: bool = False,
    maps: str | None = None,
    limits: tuple[float, float] | None = None,
    engine: str = "torch",
    **view: Any,
) -> FolderScores:
    """Score the images of a folder against K normal images of another.

    Args:
        normals: folder of normal images; `shots` of them are drawn with `seed`. None with `shots` 0: no
            normal image is known, and the score is the model's prior alone, which is weak.
        model: name for `AnomalyDetector.from_pretrained`, or a detector.
        image_size: see `AnomalyDetector.from_pretrained`.
        threshold: score above which an image is called anomalous; None: from the normal images themselves.
        engine: see `engine.with_engine`.
        view: region, tiles, any_rotation, keep_aspect, bits: see `AnomalyDetector.fit`.
        queries, out, skip_unreadable, batch_size, progress, maps, limits: see `score_queries`.

    Raises:
        InctrlError: bad input (named); nothing half-written remains.
    """
    out = Path(out)
    check_writable(out)
    _check_options(threshold, maps, limits)
    _items(Path(queries), out)  # whether there are any, before anything takes time
    if isinstance(model, AnomalyDetector):
        detector = copy.copy(model)
        detector.categories = {}  # what the caller has fitted stays as it is
    else:
        detector = AnomalyDetector.from_pretrained(model, image_size=image_size, device=device)
    detector = with_engine(detector, engine)
    skipped: list[tuple[str, str]] | None = [] if skip_unreadable else None
    support: list[Item] = []
    if normals is None:
        if shots or any(view.values()):
            raise InctrlError("without normal images there are 0 shots, and no region, tiles or the like")
        detector.fit_without_normals(category)
    else:
        support = fit_folder(
            detector,
            normals,
            category,
            shots=shots,
            seed=seed,
            skipped=skipped,
            results=out,
            batch_size=batch_size,
            **view,
        )
    return score_queries(
        detector,
        queries,
        out,
        category=category,
        threshold=threshold,
        skip_unreadable=skip_unreadable,
        batch_size=batch_size,
        progress=progress,
        maps=maps,
        limits=limits,
        support=support,
        skipped=skipped or [],
        settings={"model": model if isinstance(model, str) else "given detector", "seed": seed},
    )


def score_queries(
    detector: AnomalyDetector,
    queries: str | Path,
    out: str | Path,
    *,
    category: str | None = None,
    threshold: float | None = None,
    skip_unreadable: bool = False,
    batch_size: int = 32,
    progress: bool = False,
    maps: str | None = None,
    limits: tuple[float, float] | None = None,
    support: Sequence[Item] = (),
    skipped: Sequence[tuple[str, str]] = (),
    settings: dict[str, Any] | None = None,
) -> FolderScores:
    """Score a folder with a fitted detector; writes scores.csv, scores.json, heatmaps/ and report.html.

    Args:
        detector: with at least one fitted category.
        queries: an image or a folder; labels are read from MVTec-style sub-folders where there are any.
        out: folder for the results; made if missing.
        category: which fitted category; may be left out when there is one.
        threshold: in place of the category's.
        skip_unreadable: go on past files that cannot be read, and list them.
        batch_size: images at a time.
        progress: show a progress bar.
        maps: also write each anomaly map at the size of its picture, to maps/: "npy" or "tiff" (float32
            values, NaN where nothing was looked at), or "png" (16 bits of grey between the limits).
        limits: values of the map that are drawn darkest and brightest; None: those of the category.
        support: the normal images, to show in the report; empty: only their names are listed.
        skipped: normal images that were left out, with the reason.
        settings: what else the results are to say.

    Raises:
        InctrlError: bad input (named); nothing half-written remains.
    """
    out, category = Path(out), detector.category(category)
    check_writable(out)
    _check_options(threshold, maps, limits)
    items = _items(Path(queries), out)
    fitted = detector.categories[category]
    predictions = detector.predict(
        [(item.name, item.image) for item in items],
        category,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    predictions.skipped = [*skipped, *predictions.skipped]
    if not predictions:
        raise InctrlError(
            f"none of the {len(items)} images in {queries} can be read. {predictions.skipped[-1][1]}"
        )
    source = fitted.threshold_source
    if threshold is not None:
        source = "given"
        predictions[:] = [replace(prediction, threshold=threshold) for prediction in predictions]
    if limits is not None:
        predictions[:] = [replace(prediction, limits=limits) for prediction in predictions]
    view = fitted.view
    result = FolderScores(
        predictions=predictions,
        normals=list(fitted.names),
        settings={
            **(settings or {}),
            "backbone": detector.backbone.name,
            "category": category,
            "shots": fitted.shots,
            "region": None if view.region is None else "given",
            "tiles": list(view.tiles),
            "input_size": list(view.preprocessor.size),
            "threshold": fitted.threshold if threshold is None else threshold,
            "threshold_source": source,
            "expected_false_alarm_rate": fitted.expected_rate if threshold is None else None,
            "normal_scores": list(fitted.normal_scores),
            "map_limits": list(limits or fitted.limits),
            "environment": environment(),
        },
        metrics=_metrics(predictions, items),
        out=out,
    )
    with locked(out, wait=60.0):
        _write(result, items, support, maps)
    return result


def score_categories(
    detector: AnomalyDetector, queries: str | Path, out: str | Path, **options: Any
) -> dict[str, FolderScores]:
    """Score a folder that has a sub-folder for each fitted category.

    Each category gets a folder of results with the same name, and `out`/scores.csv has all rows.

    Args:
        options: those of `score_queries`.

    Raises:
        InctrlError: no sub-folder is called like a fitted category, or bad input (named).
    """
    queries, out = Path(queries), Path(out)
    if not queries.is_dir():
        raise InctrlError(f"no folder {queries}")
    folders = {p.name for p in queries.iterdir() if p.is_dir() and not p.name.startswith(".")}
    known = [name for name in detector.categories if name in folders]
    fitted = ", ".join(map(repr, detector.categories))
    if not known:
        raise InctrlError(
            f"{queries} has no sub-folder called like a fitted category. Fitted: {fitted}. Give "
            "--category to score all images as one of them"
        )
    left_out = sorted(folders - set(known) - {out.name})
    if left_out:
        warnings.warn(f"{queries}: left out {', '.join(left_out)}, not among {fitted}", stacklevel=2)
    found = {
        name: score_queries(detector, queries / name, out / name, category=name, **options) for name in known
    }
    rows = [result.predictions.to_frame() for result in found.values()]
    write_text(out / "scores.csv", pd.concat(rows, ignore_index=True).to_csv(index=False))
    return found


def _check_options(threshold: float | None, maps: str | None, limits: tuple[float, float] | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise InctrlError(f"threshold {threshold}: scores lie in [0, 1], so choose one from there")
    if maps is not None and maps not in MAPS:
        raise InctrlError(f"maps as {maps!r}: choose {', '.join(MAPS)}")
    if limits is not None and not 0 <= limits[0] < limits[1] <= 1:
        raise InctrlError(
            f"limits {limits[0]}, {limits[1]}: maps lie in [0, 1]; give the darkest, then the brightest value"
        )


def _is_result(path: Path, out: Path | None) -> bool:
    """Whether a file was drawn by an earlier run, perhaps inside the folder that is read now."""
    if out is None or not path.resolve().is_relative_to(out.resolve()):
        return False
    return any(part in DRAWN for part in path.resolve().relative_to(out.resolve()).parts[:-1])


def _items(queries: Path, out: Path) -> list[Item]:
    """The queries; label None where nobody said."""
    if queries.is_dir():
        items = read_labelled(queries)
        if items is None:
            paths = find_images(queries)
            items = [Item(path, None, path.relative_to(queries).as_posix()) for path in paths]
        return [item for item in items if not _is_result(item.file, out)]
    if not queries.exists():
        raise InctrlError(f"no image or folder {queries}")
    return [Item(queries, None, queries.name)]


def _metrics(predictions: Predictions, items: Sequence[Item]) -> dict[str, Any] | None:
    """Metrics over the labelled queries that are not in the support set themselves."""
    by_name = {item.name: item for item in items if item.label is not None}
    known = [p for p in predictions if p.name in by_name and not p.in_support]
    labelled = [by_name[p.name] for p in known]
    y = np.array([item.label for item in labelled])
    if len(set(y.tolist())) < 2:
        return None
    scores = np.array([p.score for p in known])
    interval = bootstrap_interval(y, scores)
    counts = {"normal": int((y == 0).sum()), "anomalous": int((y == 1).sum())}
    pixels = map_metrics([p.patch_map for p in known], labelled, known[0].view)
    return image_metrics(y, scores) | {"auroc_interval": list(interval)} | counts | pixels


# --- results -----------------------------------------------------------------------------------------


def _write(result: FolderScores, items: Sequence[Item], support: Sequence[Item], maps: str | None) -> None:
    """CSV, JSON, maps and report."""
    out, predictions = result.out, result.predictions
    labels = {item.name: item.label for item in items if item.label is not None}
    frame = predictions.to_frame()
    if labels:
        frame.insert(2, "label", [labels.get(p.name) for p in predictions])
    _remove_old_maps(out, {prediction.name for prediction in predictions})
    for prediction in predictions:
        path = out / "heatmaps" / f"{prediction.name}.png"  # with its suffix: a.jpg and a.png stay apart
        write_whole(path, prediction.overlay().save)
        if maps is not None:
            _write_map(out / "maps" / f"{prediction.name}.{maps}", prediction)
    write_text(out / "scores.csv", frame.to_csv(index=False))
    write_text(out / "scores.json", json.dumps(result.to_dict(), indent=2, default=str) + "\n")

    ranked = sorted(predictions, key=lambda p: -p.score)
    cut = f" The first {SHOWN} of {len(ranked)} are shown; scores.csv has all." if len(ranked) > SHOWN else ""
    sections = [
        Section("Setting", table=Table((), _setting_rows(result.settings))),
        Section(
            "Images, most anomalous first",
            (MAP_NOTE if result.normals else WITHOUT_NORMALS_MAP) + cut,
            cards=[_query_card(prediction, labels.get(prediction.name)) for prediction in ranked[:SHOWN]],
        ),
    ]
    if result.metrics:
        sections.insert(1, Section("How well labels and scores agree", table=_metrics_table(result.metrics)))
    if predictions.skipped:
        sections.append(Section("Skipped", table=Table(("file", "reason"), predictions.skipped)))
    about = "The support set: what normal meant here."
    if not result.normals:
        about = f"None: {WITHOUT_NORMALS}"
    if support:
        cards = [Card(item.name, load_image(item.file)) for item in support[:SHOWN]]
        sections.append(Section("Normal images", about, cards=cards))
    else:
        rows = [(name,) for name in result.normals[:SHOWN]]
        sections.append(Section("Normal images", about, table=Table(("name",), rows)))
    lead = " ".join(f"{line[0].upper()}{line[1:]}." for line in result.summary().splitlines()[:-1])
    write_report(out / "report.html", f"Anomaly scores: {result.settings['category']}", lead, sections)


def _metrics_table(metrics: dict[str, Any]) -> Table:
    low, high = metrics["auroc_interval"]
    found = {
        "AUROC": metrics["auroc"],
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "AP": metrics["ap"],
        "F1-max": metrics["f1_max"],
        "normal images": metrics["normal"],
        "anomalous images": metrics["anomalous"],
    }
    if "aupro" in metrics:
        found |= {"pixel AUROC": metrics["pixel_auroc"], "AUPRO": metrics["aupro"]}
    return Table(tuple(found), [tuple(found.values())])


def _write_map(path: Path, prediction: Prediction) -> None:
    """The raw map of a prediction, in the format that the path's ending names."""
    values = prediction.upsampled_map()
    if path.suffix == ".npy":
        write_whole(path, lambda temporary: np.save(temporary, values))
    elif path.suffix == ".tiff":
        write_whole(path, Image.fromarray(values).save)
    else:
        low, high = prediction.limits
        grey = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1)) * (2**16 - 1)
        write_whole(path, Image.fromarray(grey.round().astype(np.uint16)).save)


def _remove_old_maps(out: Path, names: set[str]) -> None:
    """Remove maps that an earlier run drew of images that are not among the queries any more.

    Only files that the earlier run's scores.json names are removed, and only inside its own folders.
    """
    try:
        earlier = json.loads((out / "scores.json").read_text(encoding="utf-8"))
        old = {str(score["name"]) for score in earlier["scores"]} - names
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in old:
        for folder, suffix in (("heatmaps", "png"), *(("maps", suffix) for suffix in MAPS)):
            path = out / folder / f"{name}.{suffix}"
            if path.is_file() and path.resolve().is_relative_to((out / folder).resolve()):
                path.unlink()


def _setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings in words."""
    threshold, normal = settings["threshold"], settings["normal_scores"]
    shown = "none" if threshold is None else f"{threshold:.3f}"
    rows: dict[str, str] = {
        key: str(settings[key])
        for key in ("model", "detector", "backbone", "category", "shots", "seed")
        if key in settings
    }
    if settings["region"]:
        rows["region"] = "a part of the picture"
    if settings["tiles"] != [1, 1]:
        rows["tiles"] = "{} x {}".format(*settings["tiles"])
    rows["threshold"] = f"{shown} ({settings['threshold_source']})"
    if normal:
        rows["scores of normal images"] = f"{min(normal):.3f} to {max(normal):.3f}"
    return list(rows.items())


def _query_card(prediction: Prediction, label: int | None) -> Card:
    """A query with its verdict, its label if it has one, and its terms."""
    lines = []
    if prediction.normal_scores:
        low, high = min(prediction.normal_scores), max(prediction.normal_scores)
        lines.append(f"(normal images {low:.3f} to {high:.3f})")
    if prediction.in_support:
        lines.append("is in the support set: the score means nothing")
    if prediction.is_anomalous is not None:
        lines.append("above the threshold" if prediction.is_anomalous else "below the threshold")
    if label is not None:
        lines.append("labelled anomalous" if label else "labelled normal")
    lines.append(", ".join(f"{term}\u00a0{value:.3f}" for term, value in prediction.terms.items()))
    mark = {None: "", True: "bad", False: "good"}[prediction.is_anomalous]
    return prediction_card(prediction, lines, mark)
