"""Score real images with the embedded detector: python benchmarks/real_subsets.py FOLDER

FOLDER holds data sets in MVTec's layout (FOLDER/SET/CATEGORY/train/good, test/DEFECT). For each category
of `CATEGORIES`, K = 4 and three prompt seeds: AUROC and AP of InCTRL and of its training-free baseline.
Writes benchmarks/results/real_subsets.{csv,md,json}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_prompts
from inctrl_lite.data.folders import load_folder
from inctrl_lite.demo import METHODS
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc, average_precision

RESULTS = Path(__file__).parent / "results"
CATEGORIES = {  # folder -> words for the text prior
    "mvtec/bottle": "bottle",
    "mvtec/pill": "pill",
    "mvtec/screw": "screw",
    "mvtec/toothbrush": "toothbrush",
    "elpv/elpv": "solar cell",
    "sdd/sdd": "electrical commutator",
    "brainmri/brainmri": "brain",
    "mnist/3": "digit 3",
}
SHOTS, SEEDS = 4, (0, 1, 2)


def load(root: Path, folder: str) -> Category:
    """A category; where it has no anomalies (a digit), the other categories' images are anomalous."""
    category = load_folder(root / folder)[0]
    if all(item.label == 0 for item in category.test):
        others = [c for c in load_folder((root / folder).parent) if c.name != category.name]
        odd = tuple(replace(item, label=1, defect=c.name) for c in others for item in c.test)
        category = replace(category, test=category.test + odd)
    return category


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    detector = AnomalyDetector.from_pretrained("tiny")
    rows = []
    for folder, words in CATEGORIES.items():
        category = load(Path(sys.argv[1]), folder)
        labels = [item.label for item in category.test]
        for seed in SEEDS:
            prompts = draw_prompts(category, SHOTS, seed)
            detector.fit([item.image for item in prompts], words)
            predictions = detector.predict([(item.name, item.image) for item in category.test], words)
            row = {"data": folder, "normal": labels.count(0), "anomalous": labels.count(1), "seed": seed}
            for method, term in METHODS.items():
                ranking = [p.score if term == "score" else p.terms[term] for p in predictions]
                row |= {
                    f"AUROC {method}": auroc(labels, ranking),
                    f"AP {method}": average_precision(labels, ranking),
                }
            rows.append(row)
            print(row)
    table = pd.DataFrame(rows)
    measured = [column for column in table.columns if column.startswith(("AUROC", "AP"))]
    groups = table.groupby(["data", "normal", "anomalous"], sort=False)[measured]
    mean, deviation = groups.mean(), groups.std()
    shown = mean.map("{:.3f}".format) + " ± " + deviation.map("{:.3f}".format)
    shown.loc[("mean", "", ""), :] = mean.mean().map("{:.3f}".format)
    lines = ["| " + " | ".join(shown.reset_index().columns) + " |", "|" + "---|" * (3 + len(measured))]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in shown.reset_index().itertuples(index=False)]
    write_text(RESULTS / "real_subsets.csv", table.to_csv(index=False, float_format="%.4f"))
    write_text(
        RESULTS / "real_subsets.json",
        json.dumps({"shots": SHOTS, "environment": environment()}, indent=2) + "\n",
    )
    write_text(RESULTS / "real_subsets.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
