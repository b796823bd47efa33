"""What does training add? python benchmarks/what_training_adds.py [--data FOLDER]

InCTRL-lite on the photo tower learns one thing: a linear prior, "damaged or not" of a patch. This study
learns it from three auxiliary sets (drawn things; photographs with synthetic defects; real damage, in
miniature: the MVTec categories of --data), from few and from many of their categories, and measures at K = 0,
1, 2, 4 and 8 what it adds to the residuals, which need no training. The paper's head is trained beside it.

Development sets: photographs, scenes and characters (`inctrl_lite.data.photographs`), which no auxiliary set
shares a source picture with. With --data, also real images, as a record: nothing is chosen by them. A prior
learned from MVTec is tested there on the categories that it left out.

Three draws of the normal images, three seeds of each prior (which patches and, where they are fewer, which
categories). Intervals are for images, draws and trained heads together (`metrics.auroc_interval`). Features
are kept in --cache. Writes benchmarks/results/what_training_adds.{csv,json,png}.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.random import default_rng
from quality import ROOT, fill
from record import RESULTS, gains, narrow, save_figure, with_interval
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone
from inctrl_lite.baselines.base import Auxiliary, Images
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.benchmark import real
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.heads import PriorHead
from inctrl_lite.metrics import CellScores, auroc_interval
from inctrl_lite.model import InCTRL
from inctrl_lite.prior import train_prior
from inctrl_lite.store import FeatureStore

CACHE = Path("runs/what_training_adds")
SHOTS, DRAWS, SEEDS, PAPER_SEEDS = (1, 2, 4, 8), 3, 3, 2
SIZES = {"train": 8, "normal": 12, "anomalous": 16}  # images of an auxiliary category
TESTED = {"train": 12, "normal": 16, "anomalous": 16}  # of a development category
COUNTS = {"drawn": (4, 13, 26, 52), "photographs": (4, 13, 31), "real": (4,)}
ALL = {name: counts[-1] for name, counts in COUNTS.items()}
UNTRAINED, TRAINED, PRIOR = "residuals (untrained)", "prior + residuals (trained)", "prior alone, peak"
PRIOR_MEAN = "prior alone, mean"
PATCH_MAX, PAPER = "patch max", "InCTRL (paper's head)"
TERMS = {  # what the raw score is made of
    "patch residual alone": ("patch",),
    "image residual alone": ("whole",),
    UNTRAINED: ("patch", "whole"),
    PRIOR: ("prior",),
    "prior + patch residual": ("patch", "prior"),
    TRAINED: ("patch", "whole", "prior"),
}


@dataclass(frozen=True)
class Learned:
    """A prior, and what it was learned from; `left_out`: the category that was not among them, if any."""

    auxiliary: str
    categories: int
    seed: int
    model: InCTRL
    left_out: str = ""


# --- learning ----------------------------------------------------------------------------------------


def new_prior(backbone: Backbone) -> InCTRL:
    sizes = backbone.embed_dim, backbone.num_patches
    return InCTRL(*sizes, "prior", stage_widths=backbone.stage_widths).eval()


def priors(store: FeatureStore, sets: dict[str, list[Category]]) -> list[Learned]:
    """One for each auxiliary set, number of categories and seed; of "real" one for each left-out category."""
    found = []
    for name, categories in sets.items():
        for count in COUNTS[name]:
            for seed in tqdm(range(SEEDS), f"{name}, {count}", leave=False):
                for out in [c.name for c in categories] + [""] if name == "real" else [""]:
                    rest = [category for category in categories if category.name != out]
                    order = default_rng([seed, count]).permutation(len(rest))
                    some = [rest[i] for i in order[: None if name == "real" else count]]
                    model = train_prior(new_prior(store.backbone), some, store, seed=seed)
                    found.append(Learned(name, count, seed, model, out))
    return found


def paper_heads(store: FeatureStore, sets: dict[str, list[Category]]) -> dict[str, list[InCTRLMethod]]:
    """The paper's head by auxiliary set, trained on all of its categories."""
    found = {}
    for name in ("drawn", "photographs"):
        auxiliary = Auxiliary(sets[name], store.backbone, store, batches=12, progress=True)
        found[name] = [InCTRLMethod("paper").train(auxiliary, seed) for seed in range(PAPER_SEEDS)]
    return found


# --- scoring -----------------------------------------------------------------------------------------


Key = tuple[str, str, int, int]  # method, auxiliary set, how many of its categories, K


def scores_of(
    category: Category, store: FeatureStore, learned: Sequence[Learned], paper: dict[str, list[InCTRLMethod]]
) -> Iterator[tuple[Key, CellScores]]:
    """The cells of every method, K, draw and head."""
    supports = {(k, d): draw_support(category, k, d) for k in SHOTS for d in range(DRAWS)}
    pool_items = list(dict.fromkeys(item for items in supports.values() for item in items))
    pool = Images(pool_items, store.backbone, store)
    queries = Images(list(category.test), store.backbone, store)
    grid, labels = queries.features.map_grid, np.array(category.labels)
    mine = [one for one in learned if one.auxiliary != "real" or one.left_out == own_name(category)]
    maps = [one.model.head.prior_map(queries.features.stages, grid) for one in mine]

    def cell(draw: int, head: int, scores: Tensor) -> CellScores:
        return CellScores(category.dataset, category.name, draw, head, labels, scores.numpy())

    heads = {name: PriorHead(store.backbone.stage_widths, terms) for name, terms in TERMS.items()}
    blank = torch.zeros(len(labels), 3, grid[0] * grid[1])
    for one, prior in zip(mine, maps, strict=True):
        for draw in range(DRAWS):  # the prior needs no normal image: the same in all draws
            score = heads[PRIOR].raw_score(blank, prior, grid)
            yield (PRIOR, one.auxiliary, one.categories, 0), cell(draw, one.seed, score)
            yield (PRIOR_MEAN, one.auxiliary, one.categories, 0), cell(draw, one.seed, prior.mean(-1))
    for (k, draw), items in supports.items():
        normals = pool.take([pool_items.index(item) for item in items])
        stage_maps = queries.stage_maps(normals)
        patch_max = stage_maps.mean(1).amax(-1)
        yield (PATCH_MAX, "", 0, k), cell(draw, 0, patch_max)
        for name, head in heads.items():
            if "prior" not in head.terms:
                score = head.raw_score(stage_maps, torch.zeros_like(stage_maps[:, 0]), grid)
                yield (name, "", 0, k), cell(draw, 0, score)
            elif name != PRIOR:
                for one, prior in zip(mine, maps, strict=True):
                    if name == TRAINED or one.categories == ALL[one.auxiliary]:
                        score = head.raw_score(stage_maps, prior, grid)
                        yield (name, one.auxiliary, one.categories, k), cell(draw, one.seed, score)
        for name, methods in paper.items():
            for seed, method in enumerate(methods):
                score = method.fit(normals, category.name).score(queries).scores
                yield (PAPER, name, ALL[name], k), cell(draw, seed, score)


def own_name(category: Category) -> str:
    """The category that a prior learned from MVTec must have left out; empty for other data sets."""
    return category.name if category.dataset == "mvtec" else ""


def all_cells(
    tested: dict[str, list[Category]],
    store: FeatureStore,
    learned: Sequence[Learned],
    paper: dict[str, list[InCTRLMethod]],
    cache: Path,
) -> dict[str, dict[Key, list[CellScores]]]:
    """Cells of every group of test sets by method; each category is kept in the cache when it is done."""
    found: dict[str, dict[Key, list[CellScores]]] = {}
    for group, categories in tested.items():
        by_key = found.setdefault(group, defaultdict(list))
        for category in tqdm(categories, f"scoring, {group}"):
            path = cache / "cells" / f"{category.dataset}-{category.name}.pickle".replace(" ", "-")
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                cells = list(scores_of(category, store, learned, paper))
                path.write_bytes(pickle.dumps(cells))
            for key, cell in pickle.loads(path.read_bytes()):
                by_key[key].append(cell)
    return found


def thinned(category: Category, most: int = 180) -> Category:
    """A category with at most so many test images of a class, at equal distances."""
    kinds = [[item for item in category.test if item.label == label] for label in (0, 1)]
    return replace(category, test=tuple(item for kind in kinds for item in kind[:: -(-len(kind) // most)]))


# --- tables ------------------------------------------------------------------------------------------


def summary(cells: dict[Key, list[CellScores]], group: str) -> pd.DataFrame:
    """AUROC with intervals, and differences to patch max and to the untrained residuals."""
    rows = []
    for (method, auxiliary, count, k), found in tqdm(cells.items(), f"intervals, {group}"):
        row = [group, method, auxiliary, count, k, *auroc_interval(found)]
        for rival in (UNTRAINED, PATCH_MAX):
            other = cells.get((rival, "", 0, k))
            row += auroc_interval(found, other) if other and method != rival else [np.nan] * 3
        rows.append(row)
    columns = ["sets", "method", "auxiliary set", "categories", "K", "auroc", "low", "high"]
    columns += [f"{what}_{end}" for what in ("added", "over_patch_max") for end in ("value", "low", "high")]
    return pd.DataFrame(rows, columns=columns)


def table(found: dict[str, dict[Key, list[CellScores]]]) -> pd.DataFrame:
    """`summary` of each group of test sets and of each data set in it."""
    parts = []
    for group, cells in found.items():
        parts.append(summary(cells, group))
        for dataset in sorted({cell.dataset for some in cells.values() for cell in some}):
            own = {key: [c for c in some if c.dataset == dataset] for key, some in cells.items()}
            parts.append(summary(own, dataset))
    return pd.concat(parts).round(4)


# --- figure and texts --------------------------------------------------------------------------------

COLOURS = {"drawn": "#0072B2", "photographs": "#D55E00", "real": "#009E73"}
GROUPS = {"development": "Development sets", "real": "Real images"}


def read() -> pd.DataFrame:
    found = pd.read_csv(RESULTS / "what_training_adds.csv")
    return found.assign(**{"auxiliary set": found["auxiliary set"].fillna("")})


def rows_of(
    table: pd.DataFrame, group: str, method: str, auxiliary: str = "", count: int = 0
) -> pd.DataFrame:
    """The rows of one method by K; of an auxiliary set all of its categories, where no count is given."""
    found = table[
        (table["sets"] == group) & (table["method"] == method) & (table["auxiliary set"] == auxiliary)
    ]
    return found[found["categories"] == (count or ALL.get(auxiliary, 0))].set_index("K").sort_index()


def figure(table: pd.DataFrame) -> Figure:
    """A row for each group: AUROC against K, what training adds against K and against categories."""
    groups = [group for group in GROUPS if group in set(table["sets"])]
    drawn = Figure(figsize=(12.5, 3.9 * len(groups)), layout="constrained")
    axes = drawn.subplots(len(groups), 3, squeeze=False)
    for (left, middle, right), group in zip(axes, groups, strict=True):
        at, ks = np.arange(5), [0, *SHOTS]
        for method, look in ((PATCH_MAX, ":"), (UNTRAINED, "--")):
            left.plot(at[1:], rows_of(table, group, method)["auroc"], look, color="black", label=method)
        for number, (name, colour) in enumerate(COLOURS.items()):
            for method, marker, look in ((TRAINED, "o", "-"), (PAPER, "x", "-."), (PRIOR_MEAN, "*", "")):
                line = rows_of(table, group, method, name)
                if len(line):
                    places = [ks.index(k) for k in line.index]
                    label = f"{method}, {name}"
                    left.plot(places, line["auroc"], look, color=colour, marker=marker, label=label)
            line = rows_of(table, group, TRAINED, name)
            shift = 0.12 * (number - 1)
            error = [line["added_value"] - line["added_low"], line["added_high"] - line["added_value"]]
            middle.errorbar(
                at[1:] + shift, line["added_value"], yerr=error, color=colour, fmt="o", label=name
            )
            steps = [count for count in COUNTS[name] if len(rows_of(table, group, TRAINED, name, count))]
            for k, look in ((1, "--"), (4, "-")):
                line = [rows_of(table, group, TRAINED, name, count).loc[k] for count in steps]
                label = f"{name}, K = {k}"
                added = [row["added_value"] for row in line]
                right.plot(steps, added, look, color=colour, marker="o", label=label)
        left.set_xticks(at, [str(k) for k in ks])
        middle.set_xticks(at[1:], [str(k) for k in SHOTS])
        left.set(title=f"{GROUPS[group]}: mean AUROC", xlabel="K")
        middle.set(title="what the prior adds to the residuals", xlabel="K")
        right.set(
            title="the same, against categories",
            xlabel="categories of the auxiliary set",
            xticks=sorted({count for counts in COUNTS.values() for count in counts}),
        )
        for ax in (middle, right):
            ax.axhline(0, color="grey", lw=1)
            ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
        left.legend(frameon=False, fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return drawn


def story(table: pd.DataFrame, group: str) -> str:
    """The rows of every comparison by K."""
    lines = [["mean AUROC (95 % interval)", "K = 0", *(f"K = {k}" for k in SHOTS)], ["---"] * 6]
    rows = [(method, "") for method in (PATCH_MAX, "image residual alone", UNTRAINED)]
    rows += [(method, name) for method in (PRIOR, PRIOR_MEAN, TRAINED, PAPER) for name in COLOURS]
    for method, name in rows:
        found = rows_of(table, group, method, name)
        if len(found):
            title = f"{method}, {name}" if name else method
            cells = [
                with_interval(*found.loc[k, ["auroc", "low", "high"]]) if k in found.index else ""
                for k in (0, *SHOTS)
            ]
            lines.append([title, *cells])
    return narrow("\n".join("| " + " | ".join(line) + " |" for line in lines))


def added(table: pd.DataFrame, group: str) -> str:
    """What the trained prior adds to the untrained residuals, by K."""
    lines = [["auxiliary set", "categories", *(f"K = {k}" for k in SHOTS)], ["---"] * 6]
    for name in COLOURS:
        for count in COUNTS[name]:
            found = rows_of(table, group, TRAINED, name, count)
            if len(found):
                columns = ["added_value", "added_low", "added_high"]
                lines.append(
                    [name, str(count), *(with_interval(*found.loc[k, columns], sign="+") for k in SHOTS)]
                )
    return narrow("\n".join("| " + " | ".join(line) + " |" for line in lines))


def verdicts(table: pd.DataFrame) -> str:
    """In sentences: where training adds something."""
    lines = []
    for group, title in GROUPS.items():
        for name in COLOURS:
            found = rows_of(table, group, TRAINED, name)
            if not len(found):
                continue
            columns = ["added_value", "added_low", "added_high"]
            points = gains(found.loc[list(SHOTS), columns].to_numpy(), SHOTS)
            peak, mean = (
                rows_of(table, group, method, name).loc[0, ["auroc", "low", "high"]]
                for method in (PRIOR, PRIOR_MEAN)
            )
            lines.append(
                f"{title}, prior learned from {ALL[name]} categories of the {name} set: it changes AUROC by "
                f"{points}. Alone (K = 0) its peak has an "
                f"AUROC of {with_interval(*peak)}, its mean over the image {with_interval(*mean)}."
            )
    return "\n".join(f"- {line}" for line in lines)


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    table = read()
    marks = {"verdicts": verdicts(table)}
    for group in GROUPS:
        recorded = group in set(table["sets"])
        marks[f"story_{group}"] = story(table, group) if recorded else "Not recorded."
        marks[f"added_{group}"] = added(table, group) if recorded else "Not recorded."
    return {ROOT / "book" / "what_training_adds.md": marks}


def measure(data: Path | None, cache: Path) -> None:
    """Learn, score and write the table."""
    torch.set_num_threads(1)
    store = FeatureStore(load_backbone("photo"), cache / "features")
    auxiliary = {
        "drawn": load_world(AUXILIARY, **SIZES),
        "photographs": load_photographs("auxiliary", **SIZES),
    }
    development = ("development", "development-scenes", "characters")
    tested = {"development": [c for name in development for c in load_photographs(name, **TESTED)]}
    if data:
        loaded = {name: load() for name, load in real(data).tests.items()}
        auxiliary["real"] = loaded["mvtec"]
        tested["real"] = [thinned(category) for found in loaded.values() for category in found]
    learned, paper = priors(store, auxiliary), paper_heads(store, auxiliary)
    cells = all_cells(tested, store, learned, paper, cache)
    write_text(RESULTS / "what_training_adds.csv", table(cells).to_csv(index=False))
    facts = {
        "environment": environment(),
        "test images": {group: len(categories) for group, categories in tested.items()},
    }
    write_text(RESULTS / "what_training_adds.json", json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with real images in MVTec's layout")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--only", action="store_true", help="write figure and texts from the recorded table")
    options = parser.parse_args()
    if not options.only:
        measure(options.data, options.cache)
    save_figure(figure(read()), RESULTS / "what_training_adds.png")
    for path, marks in blocks().items():
        write_text(path, fill(path.read_text(encoding="utf-8"), marks))


if __name__ == "__main__":
    main()
