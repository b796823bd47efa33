"""Quality against compute: python benchmarks/pretraining.py runs/tiny

Takes the folder that `python -m inctrl_lite.tiny.pretrain` was given: for each run in it the held-out
accuracies of its log, and for its snapshots (every 1,000th step and the last) and what it exported AUROC on
the unseen worlds at K = 4, of methods without training and of InCTRL-lite trained on top. Rows of
benchmarks/results/pretraining.csv whose snapshot or log is gone stay as they were measured; the others are
written anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from inctrl_lite import load_backbone
from inctrl_lite.benchmark import embedded, run_benchmark
from inctrl_lite.benchmark_report import MEAN, MINE, PHONE, colour
from inctrl_lite.files import write_text
from inctrl_lite.tiny.corpus import SIZE
from inctrl_lite.tiny.pretrain import LARGE_BATCH_PATCHES, PATCH, RECIPES, Recipe

RESULTS = Path(__file__).parent / "results"
EVERY = 1000  # steps between the snapshots that are measured
SHOTS, DRAWS = 4, 3
ACCURACIES = {
    "held-out patch pairs": "the defect has the larger patch residual",
    "held-out referee pairs": "damaged told from normal by the global embedding",
    "held-out damaged pairs": "damaged is farther than normal",
    "held-out odd pairs": "another thing is farther than the same",
}
METHODS = (MINE, "patch max, not augmented", "global embedding")
EXPORTED = "{} run, mean with its start"


def patches_seen(recipe: Recipe) -> np.ndarray:
    """Millions of image patches that went through the tower after each step of a run."""
    a_step = [3 * phase.batch * (phase.size // PATCH) ** 2 for phase in recipe.phases]
    a_step[-1] += (
        2 * recipe.large_batch * int(LARGE_BATCH_PATCHES * (SIZE // PATCH) ** 2)
    )  # in the last phase
    return np.repeat(a_step, [p.steps for p in recipe.phases]).cumsum() / 1e6


def quality(folder: Path) -> dict[str, float]:
    """Mean AUROC over the unseen worlds at K = 4, by method."""
    with TemporaryDirectory() as place:
        backbone = load_backbone(f"local-dir:{folder}")
        run_folder = run_benchmark(embedded(), place, shots=[SHOTS], seeds=DRAWS, backbone=backbone).folder
        summary = pd.read_csv(run_folder / "summary.csv")
    means = summary[summary["dataset"] == MEAN].set_index("method")["auroc"]
    return means[list(METHODS)].to_dict()


def measure(runs: Path, old: pd.DataFrame) -> pd.DataFrame:
    """One row per logged or measured step of each run. What `old` knows is not measured again."""
    rows, before = [], 0.0
    for name, recipe in RECIPES.items():
        seen, log = before + patches_seen(recipe), runs / name / "log.jsonl"
        before = seen[-1]
        found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        logged = {row["step"]: row for row in found if "held-out identity" in row}
        places = {int(folder.name): folder for folder in (runs / name / "snapshots").glob("*")}
        known = {row["step"]: row for row in old[old["run"] == name].to_dict("records")}
        for step in tqdm(sorted({*places, *logged, *known}), desc=name):
            row = known.get(step, {}) | {"run": name, "step": step, "million patches": seen[step - 1]}
            if step in logged:
                row |= {label: logged[step][column] for column, label in ACCURACIES.items()}
            if (
                step in places
                and (step % EVERY == 0 or step == len(seen))
                and np.isnan(row.get(MINE, np.nan))
            ):
                row |= quality(places[step])
            rows.append(row)
        if recipe.soup_weight and (runs / name / "weights").exists():
            row = {"run": EXPORTED.format(name), "step": len(seen), "million patches": before}
            rows.append(row | quality(runs / name / "weights"))
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, width: float = 10) -> Figure:
    """Accuracy on held-out triplets, and AUROC on unseen worlds, against compute; on a phone, stacked."""
    stacked = width <= PHONE
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(width, 8 if stacked else 4), layout="constrained")
        held_out, worlds = figure.subplots(*((2, 1) if stacked else (1, 2)))
    colours = {held_out: sns.color_palette("colorblind"), worlds: [colour(method) for method in METHODS]}
    for ax, columns in ((held_out, ACCURACIES.values()), (worlds, METHODS)):
        for column, shade, marker in zip(columns, colours[ax], "osD^", strict=False):
            for i, (run, part) in enumerate(table.dropna(subset=[column]).groupby("run", sort=False)):
                ax.plot(
                    part["million patches"],
                    part[column],
                    color=shade,
                    marker=marker,
                    markersize=4 if run in RECIPES else 9,
                    label=None if i else column,
                )
        ends = table[table["run"].isin(RECIPES)].groupby("run", sort=False)["million patches"].max()
        for name, end in ends.iloc[:-1].items():
            ax.axvline(end, color="grey", linewidth=0.8, linestyle=":")
            place = {"transform": ax.get_xaxis_transform(), "rotation": 90, "ha": "right", "va": "top"}
            ax.text(end, 0.98, f"end of the {name} run", fontsize=8, color="0.4", **place)
        ax.set_xlabel("image patches seen (millions)")
        ax.margins(y=0.15)
        ax.legend(fontsize=8, loc="lower right")
    held_out.set(title="Held-out triplets of the run's own corpus", ylabel="accuracy of pairs")
    worlds.set(title=f"Nine unseen worlds, K = {SHOTS}", ylabel="mean AUROC")
    return figure


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = RESULTS / "pretraining.csv"
    table = measure(Path(sys.argv[1]), pd.read_csv(path) if path.exists() else pd.DataFrame({"run": []}))
    write_text(path, table.to_csv(index=False, float_format="%.4f"))


if __name__ == "__main__":
    main()
