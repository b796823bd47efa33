"""What the first threshold is worth: python benchmarks/false_alarms.py

The detector is fitted to K normal images and takes the largest of their leave-one-out scores as its first
threshold. How many other normal images lie above it, on average over draws and categories? Two detectors are
asked: photo on the development photographs (its constants were chosen there, but by AUROC), and tiny on the
first category of each drawn world. Beside it: the threshold that split conformal prediction makes from 19
other normal images for a rate of 0.1. Writes benchmarks/results/false_alarms.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from quality import ROOT, write_blocks
from record import RESULTS
from tqdm import tqdm

from inctrl_lite import AnomalyDetector
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import normals
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import EVALUATION, load_world
from inctrl_lite.encoder import Encoder
from inctrl_lite.files import write_text
from inctrl_lite.fitted import leave_one_out
from inctrl_lite.metrics import conformal_threshold
from inctrl_lite.prompts import text_prototypes

SHOTS = (2, 3, 4, 8)
CALIBRATION, RATE = 19, 0.1


def rates(detector: AnomalyDetector, category: Category, draws: int) -> list[dict[str, Any]]:
    """Shares of new normal images above both thresholds, for each K and draw of K images."""
    model, encoder = detector.model, Encoder(detector.backbone)
    pool = normals(category)
    features = encoder.encode_items(pool)
    augmented = encoder.encode_augmented_items(pool) if model.head.augments_support else None
    text = text_prototypes(detector.backbone, category.name) if model.head.needs_text else None
    rows = []
    for shots in SHOTS:
        for seed in range(draws):
            order = torch.from_numpy(np.random.default_rng([seed, shots]).permutation(len(pool)))
            own = features[order[:shots]]
            copies = None if augmented is None else augmented[order[:shots]]
            with torch.no_grad():
                first = max(scores.final.item() for scores in leave_one_out(model, own, copies, None, text))
                found = model(features[order[shots:]], model.support(own, copies), text).final.numpy()
            promised = conformal_threshold(found[:CALIBRATION], RATE)
            row = {"category": category.name, "shots": shots, "first": np.mean(found > first)}
            rows.append(row | {"conformal": np.mean(found[CALIBRATION:] > promised.threshold)})
    return rows


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    found = pd.read_csv(RESULTS / "false_alarms.csv")
    lines = [["normal images above it", *(f"K = {k}" for k in SHOTS)], ["---"] * (1 + len(SHOTS))]
    lines.append(["1 in K + 1", *(f"{1 / (k + 1):.0%}" for k in SHOTS)])
    for images, rows in found.groupby("images", sort=False):
        title = f"{images}, mean of {rows['categories'].iloc[0]} categories"
        lines.append([title, *(f"{rate:.0%}" for rate in rows["first"])])
    means = found.groupby("images", sort=False)["conformal"].mean()
    conformal = " and ".join(f"{rate:.0%} on {images}" for images, rate in means.items())
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    end = (
        f"\n\nSingle categories lie far above and below these means. With {CALIBRATION} new normal images, "
        f"`calibrate` promised {RATE:.0%}, and {conformal} were measured."
    )
    return {ROOT / "book" / "faq.md": {"false_alarms": table + end}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=10)
    draws = parser.parse_args().draws
    tested = {
        "photographs": (load_photographs("development", train=40, anomalous=1), "photo"),
        "drawn worlds": ([load_world(name, train=40, anomalous=1)[0] for name in EVALUATION], "tiny"),
    }
    rows = []
    for images, (categories, name) in tested.items():
        detector = AnomalyDetector.from_pretrained(name)
        for category in tqdm(categories, desc=images):
            rows += [{"images": images} | row for row in rates(detector, category, draws)]
    table = pd.DataFrame(rows).groupby(["images", "shots"], sort=False)
    means = table[["first", "conformal"]].mean()
    by_category = pd.DataFrame(rows).groupby(["images", "shots", "category"])["first"].mean()
    means["first_lowest_category"] = by_category.groupby(["images", "shots"]).min()
    means["first_highest_category"] = by_category.groupby(["images", "shots"]).max()
    means["one_in_k_plus_1"] = [1 / (shots + 1) for _, shots in means.index]
    means["categories"] = table["category"].nunique()
    write_text(RESULTS / "false_alarms.csv", means.reset_index().to_csv(index=False, float_format="%.3f"))
    write_blocks(blocks())
    print(means.to_string(float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
