"""The two worked examples of the course's project: python benchmarks/capstone.py

1. "Is this coin damaged?": one photographed coin with synthetic defects. Its photograph helped to choose the
   detector's settings, so its numbers are too good; the page says so.
2. "Is this the digit that I was shown?": scikit-learn's scans of handwritten digits, one class against the
   others. They were used for no choice.

Each is done as a student would do it: separate images for the support set, the threshold and the test; raw
pixels and patch max as rivals; K = 1, 2, 4, 8; an interval over images and draws; a threshold from held-out
normal images, and how often it was wrong on other ones; what was missed. Writes
benchmarks/results/capstone.{json,png} and the numbers in book/capstone.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from quality import ROOT, fill
from record import RESULTS, narrow, save_figure, with_interval
from sklearn.datasets import load_digits
from tqdm.auto import tqdm

from inctrl_lite import AnomalyDetector
from inctrl_lite.baselines import METHODS, Images
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.metrics import CellScores, auroc_interval

SHOTS, DRAWS = (1, 2, 4, 8), 6
OURS, RIVALS = "InCTRL-lite", ("raw pixels", "patch max")
RANK = 2  # the threshold is the second largest of the held-out normal scores
COIN, DIGITS = "coin", "digits"


def coin() -> tuple[list[Category], dict[str, list[Item]]]:
    """The category, and held-out normal images for the threshold."""
    (category,) = load_photographs("development", train=30, normal=40, anomalous=40, only=["coin"])
    (other,) = load_photographs("development", train=40, normal=0, anomalous=0, seed=1, only=["coin"])
    return [category], {category.name: list(other.train)}


def digits() -> tuple[list[Category], dict[str, list[Item]]]:
    """Ten categories, one for each digit; the anomalous images show the nine others, equally often."""
    scans = load_digits()
    rng = np.random.default_rng(0)
    by_class = {k: rng.permutation(np.flatnonzero(scans.target == k)) for k in range(10)}

    def item(row: int, normal: int) -> Item:
        shown = int(scans.target[row])
        picture = np.kron((16 - scans.images[row]) * 15.9, np.ones((8, 8))).astype(
            np.uint8
        )  # 64 x 64, ink dark
        return Item(np.stack([picture] * 3, -1), int(shown != normal), f"{normal}/{row}", f"a {shown}")

    categories, held_out = [], {}
    for normal, rows in by_class.items():
        pool, kept, test = rows[:30], rows[30:70], rows[70:110]
        others = [r for k, found in by_class.items() if k != normal for r in found[110:114]]
        categories.append(
            Category(DIGITS, f"digit {normal}", "semantic",
                     tuple(item(r, normal) for r in pool), tuple(item(r, normal) for r in (*test, *others)))
        )  # fmt: skip
        held_out[f"digit {normal}"] = [item(r, normal) for r in kept]
    return categories, held_out


def study(categories: Sequence[Category], held_out: dict[str, list[Item]]) -> dict[str, object]:
    """All measurements of one example."""
    detector = AnomalyDetector.from_pretrained("photo")
    backbone = detector.backbone
    methods = {name: METHODS[name].make() for name in RIVALS} | {OURS: InCTRLMethod(model=detector.model)}
    cells: dict[tuple[str, int], list[CellScores]] = {}
    alarms, found, strips = [], {}, None
    for category in tqdm(categories, "categories"):
        # each image is encoded once
        pool, queries, known = (
            Images(items, backbone) for items in (category.train, category.test, held_out[category.name])
        )
        labels = np.array(category.labels)
        for k in SHOTS:
            for draw in range(DRAWS):
                rows = [category.train.index(item) for item in draw_support(category, k, draw)]
                for method in methods.values():
                    method.fit(pool.take(rows), category.name)
                scores = {name: method.score(queries).scores.numpy() for name, method in methods.items()}
                for name, values in scores.items():
                    cell = CellScores(category.dataset, category.name, draw, 0, labels, values)
                    cells.setdefault((name, k), []).append(cell)
                if k != 4:
                    continue
                normal = methods[OURS].score(known).scores.numpy()
                threshold = np.sort(normal)[-RANK]
                alarms.append((scores[OURS][labels == 0] > threshold).mean())
                for item, value in zip(category.test, scores[OURS], strict=True):
                    if item.label:
                        found.setdefault(item.defect, []).append(bool(value > threshold))
                if strips is None:
                    strips = {
                        "threshold": float(threshold),
                        "held-out normal": normal.tolist(),
                        "normal": scores[OURS][labels == 0].tolist(),
                        "anomalous": scores[OURS][labels == 1].tolist(),
                    }
    return {
        "categories": len(categories),
        "images": {"normal": int((labels == 0).sum()), "anomalous": int((labels == 1).sum())},
        "held out": len(known),
        "auroc": {f"{name}, K = {k}": list(auroc_interval(one)) for (name, k), one in cells.items()},
        "gain": {
            f"{rival}, K = {k}": list(auroc_interval(cells[OURS, k], cells[rival, k]))
            for rival in RIVALS
            for k in SHOTS
        },
        "false alarms": {
            "mean": float(np.mean(alarms)), "least": float(min(alarms)), "most": float(max(alarms))
        },
        "found": {kind: float(np.mean(values)) for kind, values in sorted(found.items())},
        "one draw": strips,
    }  # fmt: skip


def figure(found: dict[str, dict]) -> Figure:
    """The scores of one draw at K = 4 with the threshold, for both examples."""
    drawn = Figure(figsize=(9, 2.6), layout="constrained")
    groups = ("held-out normal", "normal", "anomalous")
    rng = np.random.default_rng(0)
    for ax, (name, one) in zip(drawn.subplots(1, 2), found.items(), strict=True):
        strips = one["one draw"]
        for row, group in enumerate(groups):
            values = strips[group]
            colour = "#D55E00" if group == "anomalous" else "#0072B2"
            ax.plot(values, row + rng.uniform(-0.2, 0.2, len(values)), "o", color=colour, alpha=0.5, ms=4)
        ax.axvline(strips["threshold"], color="black", ls="--", label="threshold")
        ax.set_yticks(range(3), groups)
        ax.invert_yaxis()
        ax.set(xlabel="score, K = 4, one draw", title={COIN: "a coin", DIGITS: "a digit 0"}[name])
        ax.legend(frameon=False, fontsize=8)
    return drawn


def table(one: dict) -> str:
    """AUROC of each method by K, and what InCTRL-lite gains over each rival."""
    lines = [["AUROC", *(f"K = {k}" for k in SHOTS)], ["---"] * (1 + len(SHOTS))]
    for name in (*RIVALS, OURS):
        lines.append([name, *(with_interval(*one["auroc"][f"{name}, K = {k}"]) for k in SHOTS)])
    for name in RIVALS:
        gains = (with_interval(*one["gain"][f"{name}, K = {k}"], "+") for k in SHOTS)
        lines.append([f"gain of {OURS} over {name}", *gains])
    return narrow("\n".join("| " + " | ".join(line) + " |" for line in lines))


def threshold_text(one: dict) -> str:
    """The threshold in sentences."""
    alarms, n, rate = one["false alarms"], one["held out"], RANK / (one["held out"] + 1)
    normal = one["images"]["normal"]
    return (
        f"The threshold is the second largest of {n} held-out scores, so that a new normal image exceeds it "
        f"with a probability of {RANK}/{n + 1} ({rate:.1%}) on average. Measured on {normal} other normal "
        f"images of each category: {alarms['mean']:.1%} on average, between {alarms['least']:.0%} and "
        f"{alarms['most']:.0%} in single draws."
    )


def found_table(one: dict) -> str:
    """Which anomalies exceed the threshold."""
    lines = [["anomaly", "found"], ["---", "---"]]
    ranked = sorted(one["found"].items(), key=lambda pair: -pair[1])
    lines += [[kind, f"{share:.0%}"] for kind, share in ranked]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    found = json.loads((RESULTS / "capstone.json").read_text(encoding="utf-8"))
    marks = {}
    for name in (COIN, DIGITS):
        one = found[name]
        marks[f"{name}_auroc"] = table(one)
        marks[f"{name}_threshold"] = threshold_text(one)
        marks[f"{name}_found"] = found_table(one)
    return {ROOT / "book" / "capstone.md": marks}


def main() -> None:
    found = {COIN: study(*coin()), DIGITS: study(*digits())}
    facts = {"environment": environment(), "draws": DRAWS, **found}
    write_text(RESULTS / "capstone.json", json.dumps(facts, indent=2) + "\n")
    save_figure(figure(found), RESULTS / "capstone.png")
    for path, marks in blocks().items():
        write_text(path, fill(path.read_text(encoding="utf-8"), marks))


if __name__ == "__main__":
    main()
