"""The results page, made from benchmarks/results/: no number on it was typed.

`python book/build.py` writes it to book/results.md.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd

BOOK = Path(__file__).resolve().parent

FIGURES = {  # file name -> caption
    "curves": "Mean AUROC over the data sets against K.",
    "by_dataset": "AUROC against K, data set by data set.",
    "gains": "InCTRL-lite minus the best training-free method of each data set, with 95 % intervals.",
    "heatmap": "AUROC by method and data set.",
    "categories": "AUROC of every category and every draw of the normal images.",
    "draws": "How much the choice of the normal images matters.",
    "ranks": "Mean rank of each method over the categories.",
    "cost": "Quality against time.",
}
SUBSETS = (
    "The images are resized and re-encoded subsets: these are *not* the published benchmarks, and not "
    "comparable "
    "with published numbers. Of MNIST there are ten test images a digit."
)
RUNS = {  # folder -> title, note
    "photo": ("Real images, photo detector", SUBSETS),
    "real": ("Real images, tiny CLIP", SUBSETS),
    "embedded": ("Unseen drawn worlds, tiny CLIP", ""),
    "untrained": (
        "Unseen drawn worlds, the tiny tower before training",
        "Only methods that need no text and no training: the tower is random, but for a whitened patch "
        "embedding.",
    ),
    "paper": ("The paper's protocol", ""),
}


def results_page(results: Path) -> str:
    """The page as MyST Markdown."""
    parts = [
        "# Results",
        "Every number and figure on this page comes from files in `benchmarks/results/`; the page is made "
        "from them by `book/results.py`. What the measures mean, and how far to trust a difference, is the "
        "subject of notebooks [8](notebooks/08_evaluation.ipynb) and "
        "[9](notebooks/09_across_domains.ipynb).",
    ]
    if (results / "quality.md").exists():
        parts += quality(results)
    for name in RUNS:
        if (results / name / "run.json").exists():
            parts += benchmark(results / name)
    if (results / "speed.json").exists():
        parts += speed(results)
    return "\n\n".join(parts) + "\n"


def benchmark(folder: Path) -> list[str]:
    """A finished run of `inctrl-lite benchmark`."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    settings, table = run["settings"], pd.read_csv(folder / "summary.csv")
    table = table[table["dataset"] != "mean"]
    shots, worlds = sorted(table["shots"].unique()), list(table["dataset"].unique())
    title, note = RUNS[folder.name]
    seeds = settings["seeds"] if isinstance(settings["seeds"], int) else len(settings["seeds"])
    parts = [
        f"## {title}",
        f"{len(worlds)} data sets, {seeds} draws of the normal images, backbone `{settings['backbone']}`. "
        "All methods see the same frozen features and the same normal images. InCTRL and InCTRL-lite "
        "were trained "
        f"once, on the auxiliary set alone. {machine(run['environment'])} {note}"
        + (f" This run was {run['note']}." if "note" in run else ""),
    ]
    images = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    ordered = [name for name in FIGURES if name in images] + sorted(set(images) - set(FIGURES))
    parts += [figure(images[name]) for name in ordered[:1]]
    parts += ["### Mean over the data sets", means(table, shots)]
    parts += [figure(images[name]) for name in ordered[1:]]
    tabs = [f":::{{tab-item}} K = {k}\n{by_dataset(table[table['shots'] == k], worlds)}\n:::" for k in shots]
    parts += [
        "### Data set by data set",
        "AUROC, mean over the categories and the draws, ± deviation over the draws.",
        "::::{tab-set}\n" + "\n".join(tabs) + "\n::::",
    ]
    mine = table[(table["method"] == "InCTRL-lite") & table["rival"].notna()]
    if len(mine):
        parts += ["### Against the best other method of each data set", against_best(mine)]
    missing = [f"- **{name}** is not among them: {why}." for name, why in run.get("missing", {}).items()]
    files = ", ".join(
        f"{{download}}`{name} <{relative(folder / name)}>`"
        for name in ("summary.csv", "cells.csv", "run.json")
        if (folder / name).exists()
    )
    return [*parts, *missing, f"The numbers behind this section: {files}."]


def means(table: pd.DataFrame, shots: list[int]) -> str:
    """AUROC and AP of each method, averaged over the data sets; the best of the methods first."""
    mean = table.pivot_table(index="method", columns="shots", values=["auroc", "ap"], sort=False)
    mean = mean.sort_values(("auroc", shots[len(shots) // 2]), ascending=False)
    head = ["method", *(f"AUROC, K = {k}" for k in shots), *(f"AP, K = {k}" for k in shots)]
    cells = [(measure, k) for measure in ("auroc", "ap") for k in shots]
    return markdown(head, [[name, *(f"{row[cell]:.3f}" for cell in cells)] for name, row in mean.iterrows()])


def by_dataset(table: pd.DataFrame, worlds: list[str]) -> str:
    """AUROC of each method on each data set, at one K."""
    found = {(row.method, row.dataset): row for row in table.itertuples()}
    rows = []
    for method in table["method"].unique():
        cells = [found.get((method, world)) for world in worlds]
        rows.append([method, *("" if c is None else f"{c.auroc:.3f} ± {c.auroc_std:.3f}" for c in cells)])
    return narrow(markdown(["method", *worlds], rows))


def against_best(mine: pd.DataFrame) -> str:
    """InCTRL-lite's paired differences. The rival is chosen with hindsight, which favours it."""
    rows = []
    for row in mine.sort_values(["dataset", "shots"]).itertuples():
        said = "better" if row.gain_low > 0 else "worse" if row.gain_high < 0 else "no clear difference"
        interval = f"{row.gain_low:+.3f} to {row.gain_high:+.3f}"
        rows.append([row.dataset, row.shots, row.rival, f"{row.gain:+.3f}", interval, said])
    note = "The rival is chosen with hindsight for each data set, which favours it."
    head = ["data set", "K", "best training-free method", "difference", "95 % interval", "InCTRL-lite is"]
    return f"{note}\n\n{markdown(head, rows)}"


def quality(results: Path) -> list[str]:
    """What `benchmarks/quality.py` wrote: the verdict and the tables; and the pretraining's curve."""
    text = (results / "quality.md").read_text(encoding="utf-8").strip()
    meaning = (
        "*Patch max* is the maximum of InCTRL's patch residual map: nothing is learned. *InCTRL-lite* is "
        "this "
        "package's own head; *untrained*, it has its random initial weights or leaves its prior out. *InCTRL "
        "(paper's head)* is the paper's head, trained here on the same auxiliary set. Intervals are for "
        "images, draws "
        "of the normal images and trained heads together: variances as in studies with several readers "
        "({py:func}`~inctrl_lite.metrics.auroc_interval`)."
    )
    parts = ["## In short", narrow(text.replace("## ", "### ")), meaning]
    if (results / "pretraining.png").exists():
        text = (
            "Quality of the tiny tower against compute, over its pretraining runs. Large marks: the weights "
        )
        text += "that are shipped, a mean of the last two."
        parts.append(figure(results / "pretraining.png", text))
    return parts


def speed(results: Path) -> list[str]:
    """What `benchmarks/speed.py` measured."""
    run = json.loads((results / "speed.json").read_text(encoding="utf-8"))
    scoring, step = run["scoring"], run["training step"]
    times = run["ms per image by K"]
    views = next(iter(times.values()))
    rows = [[k, *(f"{by[name]:.1f}" for name in views)] for k, by in times.items()]
    repeated = scoring["re-encoding 242 sentences and 4 normal images per query, over scoring"]
    stored = step["encoding in the step over stored features"]
    bare = scoring["scoring over bare encode_image"]
    return [
        "## Speed",
        f"{machine(run['environment'])} Scoring ({scoring['setting']}) takes {bare:.2f} times what bare "
        "encoding takes; encoding sentences and normal images again for every query would take "
        f"{repeated:.0f} "
        f"times as long. A training step ({step['setting']}) on stored features is {stored:.0f} times as "
        "fast as one that encodes its images.",
        markdown(["K (tiny detector)", *(f"ms per image, support set {name}" for name in views)], rows),
        figure(results / "speed.png", "Time of an image against K, and time against the number of images."),
    ]


# --- pieces --------------------------------------------------------------------------------------------


def machine(environment: dict[str, str]) -> str:
    """Where it was measured, in a sentence."""
    where = environment.get("processor") or environment["device"]
    return f"Measured with torch {environment['torch']} on {environment['platform']} ({where})."


def figure(path: Path, text: str = "") -> str:
    text = text or FIGURES.get(path.stem, path.stem.replace("_", " "))
    return f"```{{figure}} {relative(path)}\n:alt: {text}\n{text}\n```"


def relative(path: Path) -> str:
    return Path(os.path.relpath(path, BOOK)).as_posix()


def narrow(table: str) -> str:
    """Deviations in small print below their means: wide tables would be cut on a phone."""
    return re.sub(r" (± [\d.]+)", r"<br><small>\1</small>", table)


def markdown(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
