"""From two folders to scores, heat maps and a report: what `inctrl-lite score` does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.folders import read_labelled
from inctrl_lite.data.images import find_images, load_image
from inctrl_lite.detector import DEFAULT, AnomalyDetector
from inctrl_lite.environment import environment
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import check_writable, write_text, write_whole
from inctrl_lite.metrics import bootstrap_interval, image_metrics
from inctrl_lite.prediction import Prediction, Predictions
from inctrl_lite.report import MAP_NOTE, Card, Section, Table, prediction_card, write_report

SHOWN = 200  # queries with pictures in the report; the CSV has all


@dataclass(frozen=True, eq=False)
class FolderScores:
    """What scoring a folder gave.

    Attributes:
        predictions: one a query; `.skipped` names what could not be read.
        normals: names of the K normal images.
        settings: model, category, shots, seed, threshold and where it came from.
        metrics: AUROC, AP, F1-max and the AUROC's 95 % interval; None without labels of both classes.
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
        threshold = self.settings["threshold"]
        lines = [f"{len(self.predictions)} images scored against {len(self.normals)} normal ones"]
        if threshold is None:
            lines[0] += "; no threshold (give --threshold, or two normal images or more)"
        else:
            found = sum(bool(prediction.is_anomalous) for prediction in self.predictions)
            lines[0] += f": {found} above {threshold:.3f} ({self.settings['threshold_source']})"
        if self.predictions.skipped:
            lines.append(f"{len(self.predictions.skipped)} skipped, first {self.predictions.skipped[0][1]}")
        if self.metrics:
            low, high = self.metrics["auroc_interval"]
            lines.append(
                f"AUROC {self.metrics['auroc']:.3f} ({low:.3f} to {high:.3f}), AP {self.metrics['ap']:.3f}"
            )
        lines.append(f"report: {self.out / 'report.html'}")
        return "\n".join(lines)


def score_folder(
    normals: str | Path,
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
) -> FolderScores:
    """Score the images of a folder against K normal images of another.

    Args:
        normals: folder of normal images; `shots` of them are drawn with `seed`.
        queries: an image or a folder; labels are read from MVTec-style sub-folders where there are any.
        out: folder for scores.csv, scores.json, report.html and a folder of heat maps.
        model: name for `AnomalyDetector.from_pretrained`, or a detector.
        image_size: see `AnomalyDetector.from_pretrained`.
        threshold: score above which an image is called anomalous; None: from the normal images themselves.

    Raises:
        InctrlError: bad input (named); nothing half-written remains.
    """
    out = Path(out)
    check_writable(out)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InctrlError(f"threshold {threshold}: scores lie in [0, 1], so choose one from there")
    drawn = (out / "heatmaps").resolve()  # by an earlier run, perhaps inside the folders that are read now
    items = [item for item in _items(Path(queries)) if drawn not in item.file.resolve().parents]
    pool = [
        Item(path, 0, path.relative_to(normals).as_posix())
        for path in find_images(normals)
        if drawn not in path.resolve().parents
    ]
    if len(pool) < shots:
        raise InctrlError(
            f"{normals} holds {len(pool)} normal images, fewer than the {shots} asked for: add some, or ask "
            "for fewer shots"
        )
    support = draw_support(Category("folder", category, "", tuple(pool), ()), shots, seed)
    detector = (
        AnomalyDetector.from_pretrained(model, image_size=image_size, device=device)
        if isinstance(model, str)
        else model
    )
    detector.fit([item.image for item in support], category)
    fitted = detector.categories[category]
    if threshold is not None:
        fitted.threshold, fitted.threshold_source = threshold, "given"
    predictions = detector.predict(
        [(item.name, item.image) for item in items],
        category,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    if not predictions:
        raise InctrlError(
            f"none of the {len(items)} images in {queries} can be read. {predictions.skipped[0][1]}"
        )
    labels = {item.name: item.label for item in items if item.label is not None}
    result = FolderScores(
        predictions=predictions,
        normals=[item.name for item in support],
        settings={
            "model": model if isinstance(model, str) else "given detector",
            "backbone": detector.backbone.name,
            "category": category,
            "shots": shots,
            "seed": seed,
            "threshold": fitted.threshold,
            "threshold_source": fitted.threshold_source,
            "environment": environment(),
        },
        metrics=_metrics(predictions, labels),
        out=out,
    )
    _write(result, labels, [item.file for item in support])
    return result


def _items(queries: Path) -> list[Item]:
    """The queries; label None where nobody said."""
    if queries.is_dir():
        labelled = read_labelled(queries)
        if labelled is not None:
            return labelled
        return [Item(path, None, path.relative_to(queries).as_posix()) for path in find_images(queries)]
    if not queries.exists():
        raise InctrlError(f"no image or folder {queries}")
    return [Item(queries, None, queries.name)]


def _metrics(predictions: Predictions, labels: dict[str, int]) -> dict[str, Any] | None:
    """Metrics over the labelled queries that are not in the support set themselves."""
    known = [p for p in predictions if p.name in labels and not p.in_support]
    y = np.array([labels[p.name] for p in known])
    if len(set(y.tolist())) < 2:
        return None
    scores = np.array([p.score for p in known])
    interval = bootstrap_interval(y, scores)
    counts = {"normal": int((y == 0).sum()), "anomalous": int((y == 1).sum())}
    return image_metrics(y, scores) | {"auroc_interval": list(interval)} | counts


def _write(result: FolderScores, labels: dict[str, int], normals: list[Path]) -> None:
    """CSV, JSON, heat maps and report."""
    out, predictions = result.out, result.predictions
    frame = predictions.to_frame()
    if labels:
        frame.insert(2, "label", [labels.get(p.name) for p in predictions])
    write_text(out / "scores.csv", frame.to_csv(index=False))
    write_text(out / "scores.json", json.dumps(result.to_dict(), indent=2, default=str) + "\n")
    for prediction in predictions:
        path = out / "heatmaps" / f"{prediction.name}.png"  # with its suffix: a.jpg and a.png stay apart
        write_whole(path, prediction.overlay().save)

    ranked = sorted(predictions, key=lambda p: -p.score)
    cut = f" The first {SHOWN} of {len(ranked)} are shown; scores.csv has all." if len(ranked) > SHOWN else ""
    sections = [
        Section("Setting", table=Table((), _setting_rows(result.settings))),
        Section(
            "Images, most anomalous first",
            MAP_NOTE + cut,
            cards=[_query_card(prediction, labels.get(prediction.name)) for prediction in ranked[:SHOWN]],
        ),
    ]
    if result.metrics:
        low, high = result.metrics["auroc_interval"]
        row = (
            result.metrics["auroc"],
            f"{low:.3f} to {high:.3f}",
            result.metrics["ap"],
            result.metrics["f1_max"],
            result.metrics["normal"],
            result.metrics["anomalous"],
        )
        columns = ("AUROC", "95 % interval", "AP", "F1-max", "normal images", "anomalous images")
        sections.insert(1, Section("How well labels and scores agree", table=Table(columns, [row])))
    if predictions.skipped:
        sections.append(Section("Skipped", table=Table(("file", "reason"), predictions.skipped)))
    sections.append(
        Section(
            "Normal images",
            "The support set: what normal meant here.",
            cards=[Card(n, load_image(p)) for p, n in zip(normals, result.normals, strict=True)],
        )
    )
    lead = result.summary().splitlines()[0] + "."
    write_report(out / "report.html", f"Anomaly scores: {result.settings['category']}", lead, sections)


def _setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings in words."""
    threshold = settings["threshold"]
    shown = "none" if threshold is None else f"{threshold:.3f}"
    rows = {key: str(settings[key]) for key in ("model", "backbone", "category", "shots", "seed")}
    return [*rows.items(), ("threshold", f"{shown} ({settings['threshold_source']})")]


def _query_card(prediction: Prediction, label: int | None) -> Card:
    """A query with its verdict, its label if it has one, and its terms."""
    lines = []
    if prediction.in_support:
        lines.append("is in the support set: the score means nothing")
    if prediction.is_anomalous is not None:
        lines.append("above the threshold" if prediction.is_anomalous else "below the threshold")
    if label is not None:
        lines.append("labelled anomalous" if label else "labelled normal")
    lines.append(", ".join(f"{term}\u00a0{value:.3f}" for term, value in prediction.terms.items()))
    mark = {None: "", True: "bad", False: "good"}[prediction.is_anomalous]
    return prediction_card(prediction, lines, mark)
