"""The main job on the embedded default: one trained model, unseen domains, K normal images each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image
from inctrl_lite.data.worlds import EVALUATION, WORLDS, load_world
from inctrl_lite.detector import AnomalyDetector, Prediction
from inctrl_lite.files import check_writable, write_text
from inctrl_lite.metrics import auroc, average_precision
from inctrl_lite.report import MAP_NOTE, Card, Section, Table, prediction_card, write_report

METHODS = {"InCTRL-lite": "score", "patch max": "patch"}  # name -> what ranks the images
BASELINE = (
    "patch max, the training-free baseline, ranks images by their largest patch residual alone: the same "
    "backbone and support set, with nothing learned."
)


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found.

    Attributes:
        table: a row a category: world, domain, category, shots, and AUROC and AP of each method.
        report: the HTML file.
    """

    table: pd.DataFrame
    report: Path

    def by_world(self) -> pd.DataFrame:
        """Unweighted means over the categories of each world, and over the worlds."""
        numbers = [c for c in self.table.columns if c.startswith(("AUROC", "AP"))]
        means = self.table.groupby(["world", "domain"], sort=False)[numbers].mean().reset_index()
        last = {"world": "mean", "domain": ""} | means[numbers].mean().to_dict()
        return pd.concat([means, pd.DataFrame([last])], ignore_index=True)

    def summary(self) -> str:
        """What a person reads on the terminal."""
        shots = self.table["shots"].iloc[0]
        text = self.by_world().to_string(index=False, float_format="{:.3f}".format)
        return (
            f"One model, trained on procedural industrial images only; K = {shots} normal images a category, "
            f"no further training.\n\n{text}\n\n{BASELINE}\nReport with residual maps: {self.report}"
        )


def run_demo(
    out: str | Path = "inctrl-demo",
    *,
    shots: int = 4,
    seed: int = 0,
    device: str = "auto",
    worlds: tuple[str, ...] = EVALUATION,
    images: int = 16,
    progress: bool = False,
) -> Demo:
    """Score the evaluation worlds with the embedded detector and write a report.

    Args:
        out: folder for report.html and demo.csv.
        shots: K normal images a category.
        seed: which K of the category's normal images.
        worlds: which worlds.
        images: normal and as many anomalous test images a category.
    """
    check_writable(out)
    detector = AnomalyDetector.from_pretrained("tiny", device=device)
    categories = [
        c for w in worlds for c in load_world(w, train=max(16, shots), normal=images, anomalous=images)
    ]
    rows, examples = [], {}
    for category in tqdm(categories, unit="category", desc="scoring unseen domains", disable=not progress):
        support = draw_support(category, shots, seed)
        detector.fit([item.image for item in support], category.name)
        predictions = detector.predict([(item.name, item.image) for item in category.test], category.name)
        labels = category.labels
        row = {
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
        if category.dataset not in examples:
            examples[category.dataset] = _examples(category, support, predictions, np.array(labels))
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
        about = WORLDS[world].about
        sections.append(Section(world, f"{about[0].upper()}{about[1:]}.", cards=cards))
    sections.append(Section("By category", table=details))
    shots = result.table["shots"].iloc[0]
    lead = (
        "One InCTRL-lite model, trained once on procedural industrial images, scores worlds it was not "
        f"trained on from K = {shots} normal images of each category. All pictures are drawn by the package; "
        "the backbone is the embedded tiny CLIP."
    )
    write_report(result.report, "One model, many domains", lead, sections)
