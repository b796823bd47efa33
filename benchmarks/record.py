"""Keep a finished benchmark run: python benchmarks/record.py RUN_FOLDER

Copies its tables, settings and environment to benchmarks/results/PROTOCOL/ and draws the mean AUROC over the
data sets against K for every method, and InCTRL's difference to the best training-free one by data set.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from inctrl_lite.benchmark import FREE

RESULTS = Path(__file__).parent / "results"


def curves(summary: pd.DataFrame) -> Figure:
    """Mean AUROC over data sets against K: InCTRL, the training-free methods, CoOp."""
    shown = summary[~summary["method"].str.startswith("InCTRL: ")]
    means = shown.groupby(["method", "shots"], sort=False)["auroc"].mean().unstack("shots")
    means = means.sort_values(means.columns[-1], ascending=False)
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = figure.subplots()
    colours = sns.color_palette("colorblind", len(means))
    for (method, row), colour, marker in zip(means.iterrows(), colours, "osD^v<>PX*hp", strict=False):
        mine = method == "InCTRL"
        ax.plot(
            row.index,
            row.values,
            marker=marker,
            color="black" if mine else colour,
            linewidth=2.5 if mine else 1.2,
            linestyle="-" if mine or method not in FREE else "--",
            label=method,
        )
    ax.set_xscale("log", base=2)
    ax.set_xticks(means.columns, [str(k) for k in means.columns])
    ax.set(xlabel="normal prompts K", ylabel="mean AUROC over the data sets")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def gains(summary: pd.DataFrame) -> Figure:
    """InCTRL minus the best training-free method of each data set, with its interval."""
    mine = summary[summary["method"] == "InCTRL"]
    shots, datasets = sorted(mine["shots"].unique()), list(mine["dataset"].unique())
    figure = Figure(figsize=(7.5, 0.42 * len(datasets) + 1.2), layout="constrained")
    ax = figure.subplots()
    for i, (k, colour) in enumerate(zip(shots, sns.color_palette("colorblind"), strict=False)):
        part = mine[mine["shots"] == k].set_index("dataset").loc[datasets]
        place = [n + 0.22 * (i - (len(shots) - 1) / 2) for n in range(len(datasets))]
        error = [part["gain"] - part["gain_low"], part["gain_high"] - part["gain"]]
        ax.errorbar(part["gain"], place, xerr=error, fmt="o", color=colour, markersize=4, label=f"K = {k}")
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(datasets)), datasets)
    ax.invert_yaxis()
    ax.set_xlabel("AUROC: InCTRL minus the best training-free method (95 % interval)")
    ax.legend(frameon=False, loc="best")
    return figure


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    matplotlib.use("agg")
    sns.set_theme(style="whitegrid")
    protocol = json.loads((run / "run.json").read_text())["settings"]["protocol"]
    out = RESULTS / protocol
    out.mkdir(exist_ok=True)
    for name in ("run.json", "cells.csv", "summary.csv", "summary.md"):
        shutil.copy(run / name, out / name)
    summary = pd.read_csv(run / "summary.csv")
    curves(summary).savefig(out / "curves.png", dpi=110)
    gains(summary).savefig(out / "gains.png", dpi=110)
    print(f"kept in {out}")


if __name__ == "__main__":
    main()
