"""How good is the embedded CLIP? python benchmarks/tiny_quality.py [--data FOLDER]

Three runs of the benchmark, each resumable: the embedded protocol and, with --data (folders of real images in
MVTec's layout), the real one, with several prompt draws and three trained heads, which score them in turn;
and the embedded protocol on an untrained tower with a whitened patch embedding, for what needs no words.
Then InCTRL with either head, every prompt draw with every head seed. Writes
benchmarks/results/{embedded,real,untrained}/, crossed.csv and tiny_quality.md. (Quality against compute:
benchmarks/pretraining.py.)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from crossed import crossed, spread
from record import RESULTS, keep

from inctrl_lite.backbones import load_backbone
from inctrl_lite.benchmark import FREE, Run, embedded, real, run_benchmark
from inctrl_lite.benchmark_report import MEAN, MINE, markdown, resample, verdict
from inctrl_lite.store import FeatureStore
from inctrl_lite.files import write_text
from inctrl_lite.report import Table
from inctrl_lite.tiny.pretrain import Pretraining, Recipe

SHOTS = (2, 4, 8)
PROMPTS, HEADS = 5, 3  # draws and head seeds that are crossed
DEFECTS = ("unseen-industrial", "solar", "fabric", "mri-like", "ct-like")
DIGITS, DRAWN = ("digits",), ("drawn",)
REAL_INDUSTRIAL = ("mvtec", "sdd", "elpv")
AIMS = {  # figure -> (data sets, K, aim of the mean AUROC)
    "five unseen procedural defect domains": (DEFECTS, 4, 0.90),
    "real industrial subsets": (REAL_INDUSTRIAL, 4, 0.85),
    "BrainMRI": (("brainmri",), 4, 0.88),
    "digits one-vs-all": (DIGITS, 8, 0.92),
    "drawn things one-vs-all": (DRAWN, 8, None),
}


def untrained(folder: Path) -> Backbone:
    """The tower before its first step: random, but for the whitened patch embedding."""
    Pretraining(folder, Recipe(triplets=300, held_out=0)).export(folder / "weights")
    backbone = load_backbone(f"local-dir:{folder / 'weights'}")
    backbone.name = "untrained tower"
    backbone.has_words = False  # its text tower has read nothing
    return backbone


def figures_of(summary: pd.DataFrame) -> list[dict]:
    """The figures of `AIMS`, InCTRL beside the best training-free method of the same data sets."""
    rows = []
    for name, (datasets, k, aim) in AIMS.items():
        part = summary[summary["dataset"].isin(datasets) & (summary["shots"] == k)]
        if set(datasets) - set(part["dataset"]):
            continue
        mean = part.groupby("method", sort=False)["auroc"].mean()
        best = mean[[m for m in FREE if m in mean]].idxmax()
        rows.append(
            {"mean AUROC": f"{name}, K = {k}", "InCTRL": mean[MINE], "patch max": mean["patch max"]}
            | {"best training-free": f"{mean[best]:.3f} ({best})", "pixel NN": mean["pixel NN"]}
            | {"aim": "-" if aim is None else f"{aim:.2f}"}
        )
    return rows


def gains(summary: pd.DataFrame) -> list[dict]:
    """InCTRL against the best training-free method: on the mean of the data sets, and how often it wins."""
    rows = []
    for (protocol, k), part in summary[summary["method"] == MINE].groupby(["protocol", "shots"], sort=False):
        mean = part[part["dataset"] == MEAN].iloc[0]
        single = part[part["dataset"] != MEAN]
        words = [verdict(r.gain_low, r.gain_high) for r in single.itertuples()]
        rows.append(
            {
                "protocol": protocol,
                "K": k,
                "rival on the mean": mean["rival"],
                "difference": f"{mean['gain']:+.3f} ({mean['gain_low']:+.3f} to {mean['gain_high']:+.3f})",
                "ahead of each data set's best on": f"{(single['gain'] > 0).sum()} of {len(single)}",
                "beyond the interval": words.count("better"),
                "behind beyond the interval": words.count("worse"),
            }
        )
    return rows


def against_patch_max(runs: dict[str, Run]) -> list[dict]:
    """InCTRL minus its own training-free part, paired, with its interval."""
    rows = []
    for name, run in runs.items():
        if name == "untrained":
            continue
        records = [json.loads(path.read_text()) for path in sorted((run.folder / "cells").rglob("*.json"))]
        for k in SHOTS:
            gaps = []
            for dataset in dict.fromkeys(r["dataset"] for r in records):
                values = resample([r for r in records if (r["dataset"], r["shots"]) == (dataset, k)])
                gaps.append(values[MINE] - values["patch max"])
            gap = np.mean(gaps, axis=0)
            low, high = np.quantile(gap, [0.025, 0.975])
            shown = f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"
            rows.append({"protocol": name, "K": k, "difference": shown})
    return rows


def before(summaries: dict[str, pd.DataFrame]) -> list[dict]:
    """Methods without words on the untrained tower and on the trained one."""
    bare, trained = (
        s[s["dataset"] == MEAN].set_index(["method", "shots"])["auroc"]
        for s in (summaries["untrained"], summaries["embedded"])
    )
    return [
        {"method": method} | {f"K = {k}": f"{bare[method, k]:.3f} -> {trained[method, k]:.3f}" for k in SHOTS}
        for method in bare.index.unique("method")
    ]


def table_of(rows: list[dict]) -> Table:
    """Rows as a table, numbers with three digits."""
    shown = [[f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return Table(list(rows[0]), shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    matplotlib.use("agg")
    settings = {"shots": SHOTS, "seeds": options.seeds}
    photographs = real(options.data) if options.data else None  # what is wrong is found before the rest
    bare = replace(embedded(), name="untrained")
    runs = {
        "embedded": run_benchmark(embedded(), options.out, **settings),
        "untrained": run_benchmark(bare, options.out, backbone=untrained(options.out / "tower"), **settings),
    }
    if photographs:
        runs["real"] = run_benchmark(photographs, options.out, **settings)
    for name, run in runs.items():
        keep(run.folder, RESULTS / name)
    backbone = load_backbone()
    pairs = crossed(backbone, FeatureStore(backbone), SHOTS, PROMPTS, HEADS)
    write_text(RESULTS / "crossed.csv", pairs.to_csv(index=False, float_format="%.4f"))
    summaries = {name: pd.read_csv(run.folder / "summary.csv") for name, run in runs.items()}
    trained = pd.concat([s.assign(protocol=name) for name, s in summaries.items() if name != "untrained"])
    text = [
        markdown("Against the aims", table_of(figures_of(trained[trained["dataset"] != MEAN]))),
        markdown("InCTRL against the best training-free method", table_of(gains(trained))),
        markdown("InCTRL against patch max, mean over the data sets", table_of(against_patch_max(runs))),
        markdown(
            f"{PROMPTS} prompt draws x {HEADS} trained heads, mean over the nine worlds",
            table_of(spread(pairs)),
        ),
        markdown("The tower before training, mean AUROC over the nine worlds", table_of(before(summaries))),
    ]
    write_text(RESULTS / "tiny_quality.md", "\n\n".join(text) + "\n")
    print("\n\n".join(text))


if __name__ == "__main__":
    main()
