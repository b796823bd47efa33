"""The main job in a minute: two trained detectors on domains that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import EVALUATION, WORLDS, load_world
from inctrl_lite.detector import AnomalyDetector
from inctrl_lite.files import check_writable, write_text
from inctrl_lite.metrics import auroc, average_precision
from inctrl_lite.prediction import Prediction
from inctrl_lite.report import MAP_NOTE, Card, Section, Table, prediction_card, write_report

METHODS = {"InCTRL-lite": "score", "patch max": "patch"}  # name -> what ranks the images
BASELINE = (
    "patch max, the training-free baseline, ranks images by their largest patch residual alone: the same "
    "backbone and support set, with nothing learned."
)
# Photographs of scikit-image and scikit-learn with blended defects. Nothing was trained or chosen on these.
PHOTOGRAPHS = ("gravel", "cell", "badge", "pagoda", "flower", "handwriting")
ABOUT_PHOTOGRAPHS = (
    "photographs of six things, with defects blended in. The photo detector was trained on drawings alone, "
    "on top of a network trained on ImageNet"
)


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found.

    Attributes:
        table: a row a category: detector, world, domain, category, shots, and AUROC and AP of each method.
        report: the HTML file.
    """

    table: pd.DataFrame
    report: Path

    def by_world(self) -> pd.DataFrame:
        """Unweighted means over the categories of each world, and over the drawn worlds."""
        numbers = [c for c in self.table.columns if c.startswith(("AUROC", "AP"))]
        keys = ["detector", "world", "domain"]
        means = self.table.groupby(keys, sort=False)[numbers].mean().reset_index()
        drawn = means[means["detector"] == "tiny"]
        if len(drawn) < 2:
            return means
        last = {"detector": "tiny", "world": "mean of the drawn worlds", "domain": ""}
        return pd.concat([means, pd.DataFrame([last | drawn[numbers].mean().to_dict()])], ignore_index=True)

    def summary(self) -> str:
        """What a person reads on the terminal."""
        shots = self.table["shots"].iloc[0]
        text = self.by_world().to_string(index=False, float_format="{:.3f}".format)
        return (
            f"Two detectors, each trained once on drawn industrial images; K = {shots} normal images "
            f"of each category, no further training.\n\n{text}\n\n{BASELINE}\n"
            f"Report with anomaly maps: {self.report}"
        )


def run_demo(
    out: str | Path = "inctrl-demo",
    *,
    shots: int = 4,
    seed: int = 0,
    device: str = "auto",
    worlds: tuple[str, ...] = EVALUATION,
    photographs: tuple[str, ...] = PHOTOGRAPHS,
    images: int = 16,
    progress: bool = False,
) -> Demo:
    """Score photographs with the photo detector and drawn worlds with the tiny one, and write a report.

    Args:
        out: folder for report.html and demo.csv.
        shots: K normal images a category.
        seed: which K of the category's normal images.
        worlds: which drawn worlds.
        photographs: which categories of `PHOTOGRAPHS`.
        images: normal and as many anomalous test images a category.
    """
    check_writable(out)
    sizes = {"train": max(16, shots), "normal": images, "anomalous": images}
    work = [("photo", c) for c in load_photographs("auxiliary", only=photographs, **sizes)]
    work += [("tiny", c) for world in worlds for c in load_world(world, **sizes)]
    detectors = {name: AnomalyDetector.from_pretrained(name, device=device) for name, _ in work}
    rows: list[dict[str, Any]] = []
    examples: dict[str, list[Card]] = {}
    for name, category in tqdm(work, unit="category", desc="scoring", disable=not progress):
        support, detector = draw_support(category, shots, seed), detectors[name]
        detector.fit([item.image for item in support], category.name)
        predictions = detector.predict([(item.name, item.image) for item in category.test], category.name)
        labels = category.labels
        row = {
            "detector": name,
            "world": category.dataset,
            "domain": category.domain,
            "category": category.name,
            "shots": shots,
        }
        for method, term in METHODS.items():
            ranking = [p.score if term == "score" else p.terms[term] for p in predictions]
            row[f"AUROC {method}"] = auroc(labels, ranking)
            row[f"AP {method}"] = average_precision(labels, ranking)
        rows.append(row)
        if name == "photo" or category.dataset not in examples:
            cards = _examples(category, support, predictions, np.array(labels))
            examples.setdefault(category.dataset, []).extend(cards)
    result = Demo(pd.DataFrame(rows), Path(out) / "report.html")
    write_text(Path(out) / "demo.csv", result.table.to_csv(index=False))
    _write(result, examples)
    return result


def _examples(
    category: Category, support: Sequence[Item], predictions: list[Prediction], labels: np.ndarray
) -> list[Card]:
    """A normal image, the anomalies with the highest and lowest score, and the worst false alarm."""
    scores = np.array([p.score for p in predictions])
    normal, anomalous = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    chosen = {
        "anomalous, scored highest": anomalous[scores[anomalous].argmax()],
        "anomalous, scored lowest": anomalous[scores[anomalous].argmin()],
        "normal, scored highest": normal[scores[normal].argmax()],
    }
    cards = [Card(f"{category.name}: a normal image", load_image(support[0].image), None, ["one of the K"])]
    for said, i in chosen.items():
        defect = category.test[i].defect
        truth = "normal" if defect == "good" else defect
        mark = "bad" if labels[i] else "good"
        cards.append(prediction_card(predictions[i], [said], mark, title=f"{category.name}: {truth}"))
    return cards


def _write(result: Demo, examples: dict[str, list[Card]]) -> None:
    means = result.by_world()
    table = Table(tuple(means.columns), [tuple(row) for row in means.itertuples(index=False)])
    details = Table(tuple(result.table.columns), [tuple(row) for row in result.table.itertuples(index=False)])
    sections = [Section("AUROC and AP by world", f"{BASELINE[0].upper()}{BASELINE[1:]} {MAP_NOTE}", table)]
    for world, cards in examples.items():
        about = WORLDS[world].about if world in WORLDS else ABOUT_PHOTOGRAPHS
        title = world if world in WORLDS else "photographs"
        sections.append(Section(title, f"{about[0].upper()}{about[1:]}.", cards=cards))
    sections.append(Section("By category", table=details))
    shots = result.table["shots"].iloc[0]
    lead = (
        "The photo detector and the tiny one, each trained once on drawn industrial images, score images of "
        f"things that they were not trained on, from K = {shots} normal images of each category."
    )
    write_report(result.report, "One model, many domains", lead, sections)
