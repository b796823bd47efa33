"""The generalist benchmark: one model, trained once, against methods that see the same features and prompts.

A *cell* is (data set, category, K, seed). It is computed for all methods at once and written as a file of
its own when it is finished, so that a run which was killed goes on where it was. Settings, versions and
weights make up the name of the run's folder: other settings make another run, never a mixed one.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from inctrl_lite.backbone import PAPER, Backbone
from inctrl_lite.baselines import MISSING, TRAINING_FREE, Images, Method
from inctrl_lite.baselines.coop import CoOp
from inctrl_lite.baselines.inctrl import ABLATIONS, InCTRLMethod, tabulate_episodes, train_on_table
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_prompts
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.manifest import load_dataset
from inctrl_lite.data.worlds import AUXILIARY, EVALUATION, load_world
from inctrl_lite.environment import environment
from inctrl_lite.errors import InctrlError
from inctrl_lite.features import FeatureStore
from inctrl_lite.files import check_writable, write_text
from inctrl_lite.metrics import image_metrics, pixel_metrics
from inctrl_lite.model import InCTRL
from inctrl_lite.viz import upsample_to_image, visible_box

RESAMPLES, LEVEL = 1000, 0.95
HEADS = 3  # InCTRL is trained from this many seeds; prompt seed s is scored by head s mod HEADS
FREE = [method.name for method in TRAINING_FREE]
TRAINED = ["CoOp", *ABLATIONS]


@dataclass(frozen=True)
class Protocol:
    """What is trained on and tested on what.

    Attributes:
        name: "embedded", "real" or "paper".
        auxiliary: -> categories to train on.
        tests: data set -> its categories.
        head: kind of InCTRL head.
        steps: training steps.
        batches: batches of episodes that are computed for them.
    """

    name: str
    auxiliary: Callable[[], list[Category]]
    tests: dict[str, Callable[[], list[Category]]]
    head: str = "lite"
    steps: int = 200
    batches: int = 100


def embedded() -> Protocol:
    """Procedural industrial things -> nine unseen worlds."""
    return Protocol(
        "embedded",
        lambda: load_world(AUXILIARY),
        {name: lambda name=name: load_world(name) for name in EVALUATION},
    )


def real(data: Path) -> Protocol:
    """Procedural industrial things -> folders of real images in MVTec's layout, one folder a data set."""
    folders = sorted(f for f in data.iterdir() if f.is_dir()) if data.is_dir() else []
    if not folders:
        raise InctrlError(f"no data sets in {data}: expected DATASET/CATEGORY/train/good and /test/DEFECT")
    return Protocol(
        "real",
        lambda: load_world(AUXILIARY),
        {f.name: lambda f=f: _one_vs_rest(load_dataset(f)) for f in folders},
    )


def paper(data: Path, auxiliary: str = "mvtec") -> Protocol:
    """One real data set -> all others, with the paper's backbone and head (10 epochs of 100 steps)."""
    sets = {f.name: f for f in sorted(data.iterdir()) if f.is_dir()} if data.is_dir() else {}
    if auxiliary not in sets or len(sets) < 2:
        raise InctrlError(
            f"the paper's protocol trains on {auxiliary!r} and tests on the other data sets: expected "
            f"{data / auxiliary} and at least one more folder in MVTec's layout"
        )
    tests = {n: lambda f=f: _one_vs_rest(load_dataset(f)) for n, f in sets.items() if n != auxiliary}
    return Protocol("paper", lambda: load_dataset(sets[auxiliary]), tests, "paper", 1000, 1000)


def _one_vs_rest(categories: list[Category]) -> list[Category]:
    """Categories without anomalies of their own (digits) take the other categories' normal images."""
    if any(item.label for c in categories for item in c.test):
        return categories
    return [
        replace(
            c,
            test=c.test
            + tuple(replace(i, label=1, defect=o.name) for o in categories if o is not c for i in o.test),
        )
        for c in categories
    ]


# --- running -----------------------------------------------------------------------------------------


@dataclass
class Run:
    """A finished (or interrupted) run.

    Attributes:
        folder: where everything lies.
        cells: one row per method and cell: dataset, category, shots, seed, method, auroc, ap, f1_max,
            pixel_auroc, aupro, seconds, error.
        failed: what went wrong, in words.
    """

    folder: Path
    cells: pd.DataFrame
    failed: list[str] = field(default_factory=list)


def run_benchmark(
    protocol: Protocol,
    out: str | Path,
    *,
    shots: Sequence[int] = (2, 4, 8),
    seeds: int = 3,
    device: str | torch.device = "cpu",
    backbone: Backbone | None = None,
    progress: bool = True,
) -> Run:
    """Run all methods on all cells that are not there yet, then write the tables.

    Args:
        protocol: `embedded()`, `real(folder)` or `paper(folder)`.
        out: folder; this run gets a sub-folder of its own.
        shots: values of K.
        seeds: prompt draws.
        device: where the backbone runs.
        backbone: what to look with; None: the paper's for the paper's protocol, else the embedded one.
        progress: show a progress bar.

    Returns:
        The run; `failed` names cells that could not be computed, all others are finished.
    """
    check_writable(out)
    backbone = backbone or Backbone.load(*(PAPER if protocol.name == "paper" else ()), device=device)
    store = FeatureStore(backbone)
    settings = {
        "protocol": protocol.name,
        "head": protocol.head,
        "steps": protocol.steps,
        "batches": protocol.batches,
        "shots": list(shots),
        "seeds": seeds,
        "backbone": backbone.name,
        "features": store.fingerprint,
        "methods": [*FREE, *TRAINED],
    }
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = Path(out) / f"{protocol.name}-{digest}"
    write_text(
        folder / "run.json",
        json.dumps({"settings": settings, "environment": environment(), "missing": MISSING}, indent=2) + "\n",
    )
    failed = []
    work = list(_work(protocol, shots, seeds, folder, failed))
    trained: list[list[Method]] = []
    if any(not path.exists() for _, cells in work for path, *_ in cells):
        trained = train_methods(protocol, backbone, store, min(HEADS, seeds), progress)
    bar = tqdm(work, desc=protocol.name, unit="category", disable=not progress)
    for category, cells in bar:
        bar.set_postfix_str(f"{category.dataset}/{category.name}")
        missing = [cell for cell in cells if not cell[0].exists()]
        if missing:
            _run_category(category, missing, trained, backbone, store)
    return summarise(folder, failed)


def _work(
    protocol: Protocol, shots: Sequence[int], seeds: int, folder: Path, failed: list[str]
) -> Iterator[tuple[Category, list[tuple[Path, int, int]]]]:
    """Every category with its cells (file, K, seed). Data sets that cannot be read are named in `failed`."""
    for name, load in protocol.tests.items():
        try:
            categories = [replace(category, dataset=name) for category in load()]
        except InctrlError as error:
            failed.append(f"{name}: {error}")
            continue
        for category in categories:
            labels = {item.label for item in category.test}
            if labels != {0, 1}:
                failed.append(f"{name}/{category.name}: normal and anomalous test images are needed")
                continue
            place = folder / "cells" / _plain(name) / _plain(category.name)
            cells = []
            for k in shots:
                if k > len(category.train):
                    failed.append(
                        f"{name}/{category.name}, K = {k}: only {len(category.train)} normal images"
                    )
                    continue
                cells += [(place / f"K{k}-seed{seed}.json", k, seed) for seed in range(seeds)]
            yield category, cells


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def train_methods(
    protocol: Protocol, backbone: Backbone, store: FeatureStore, heads: int, progress: bool = True
) -> list[list[Method]]:
    """CoOp, InCTRL and its ablations, trained on the auxiliary set: one list for each head seed."""
    categories = protocol.auxiliary()
    store.encode([i for c in categories for i in (*c.train, *c.test)], progress=progress)
    table = tabulate_episodes(categories, backbone, store, batches=protocol.batches, progress=progress)
    trained = []
    for seed in range(heads):
        methods: list[Method] = [CoOp.train(categories, backbone, store, seed=seed)]
        for name, terms in ABLATIONS.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = InCTRL(backbone.embed_dim, backbone.num_patches, protocol.head, terms=terms)
            model.to(backbone.device)
            train_on_table(model, table, steps=protocol.steps, seed=seed)
            methods.append(InCTRLMethod(model, name))
        trained.append(methods)
    return trained


def _run_category(
    category: Category,
    cells: list[tuple[Path, int, int]],
    trained: list[list[Method]],
    backbone: Backbone,
    store: FeatureStore,
) -> None:
    """Compute and write some cells of a category; images are encoded once for all of them."""
    draws = {(k, seed): draw_prompts(category, k, seed) for _, k, seed in cells}
    drawn = list({item: None for prompt in draws.values() for item in prompt})
    row = {item: i for i, item in enumerate(drawn)}
    pool, queries = Images(drawn, backbone, store), Images(category.test, backbone, store)
    for path, k, seed in cells:
        prompt = draws[k, seed]
        normals = pool.take([row[item] for item in prompt])
        found = {}
        for method in [*(make() for make in TRAINING_FREE), *trained[seed % len(trained)]]:
            found[method.name] = _score(method, normals, queries, category)
        record = {
            "dataset": category.dataset,
            "category": category.name,
            "domain": category.domain,
            "shots": k,
            "seed": seed,
            "prompts": [item.name for item in prompt],
            "labels": [item.label for item in category.test],
            "methods": found,
        }
        write_text(path, json.dumps(record) + "\n")


@torch.no_grad()
def _score(method: Method, normals: Images, queries: Images, category: Category) -> dict:
    """A method's scores of a category, or the error it met."""
    began = time.perf_counter()
    try:
        answer = method.fit(normals, category.name).score(queries)
        if not answer.scores.isfinite().all():
            raise InctrlError("scores are not finite")
        found = {"scores": [round(s, 7) for s in answer.scores.double().tolist()]}
        found["seconds"] = round(time.perf_counter() - began, 4)
        if method.name == "InCTRL":
            found |= _pixels(answer.maps, queries)
        return found
    except Exception as error:  # a method that fails must not take the others along
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc(limit=3)}


def _pixels(maps: torch.Tensor, queries: Images) -> dict[str, float]:
    """Pixel AUROC and AUPRO of residual maps against the masks, where every anomalous image has one."""
    if any(item.label == 1 and item.mask is None for item in queries.items):
        return {}
    grid, side = queries.backbone.grid, 60  # pixels a side: enough for patches of 1/15
    large, masks = [], []
    for item, values in zip(queries.items, maps, strict=True):
        large.append(upsample_to_image(values.reshape(grid).cpu().numpy(), (side, side)))
        mask = np.zeros((side, side), bool) if item.mask is None else _central(item, side)
        masks.append(mask)
    return pixel_metrics(np.stack(masks), np.stack(large))


def _central(item: Item, side: int) -> np.ndarray:
    """The part of a mask that the backbone sees, at `side` pixels."""
    size = load_image(item.image).size
    picture = Image.fromarray(load_mask(item.mask, size)).crop(visible_box(size))
    return np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX)) > 127


# --- tables ------------------------------------------------------------------------------------------


def summarise(folder: Path, failed: list[str] | None = None) -> Run:
    """Read the finished cells of a run and write cells.csv, summary.csv and summary.md."""
    records = [json.loads(path.read_text()) for path in sorted((folder / "cells").rglob("*.json"))]
    failed = list(failed or [])
    rows = []
    for record in records:
        place = {key: record[key] for key in ("dataset", "category", "domain", "shots", "seed")}
        for name, found in record["methods"].items():
            if "error" in found:
                failed.append(f"{place['dataset']}/{place['category']}, {name}: {found['error']}")
                continue
            extra = {k: found[k] for k in ("pixel_auroc", "aupro", "seconds") if k in found}
            rows.append(place | {"method": name} | image_metrics(record["labels"], found["scores"]) | extra)
    cells = pd.DataFrame(rows)
    if len(cells):
        summary = _summary(cells, records)
        write_text(folder / "cells.csv", cells.to_csv(index=False, float_format="%.5f"))
        write_text(folder / "summary.csv", summary.to_csv(index=False, float_format="%.4f"))
        write_text(folder / "summary.md", markdown(summary))
    return Run(folder, cells, failed)


def _summary(cells: pd.DataFrame, records: list[dict]) -> pd.DataFrame:
    """One row per data set, K and method: means over categories, deviations over seeds, intervals."""
    by_seed = cells.groupby(["dataset", "shots", "method", "seed"], sort=False)[
        ["auroc", "ap", "f1_max"]
    ].mean()
    groups = by_seed.groupby(["dataset", "shots", "method"], sort=False)
    table = groups.mean().join(groups.std().add_suffix("_std")).reset_index()
    extra = []
    for (dataset, k), part in table.groupby(["dataset", "shots"], sort=False):
        mine = [r for r in records if (r["dataset"], r["shots"]) == (dataset, k)]
        resampled = resample(mine)
        free = part[part["method"].isin(FREE)]
        best = free.loc[free["auroc"].idxmax(), "method"] if len(free) else None
        for method, values in resampled.items():
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            row = {"dataset": dataset, "shots": k, "method": method, "low": low, "high": high}
            if best is not None and method not in FREE:
                gap = values - resampled[best]
                row |= {"rival": best, "gain": gap.mean()}
                row["gain_low"], row["gain_high"] = np.quantile(gap, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            extra.append(row)
    return table.merge(pd.DataFrame(extra), on=["dataset", "shots", "method"])


def resample(records: list[dict], seed: int = 0) -> dict[str, np.ndarray]:
    """Bootstrap of the mean AUROC over the cells of one data set and K: `RESAMPLES` values a method.

    Images are drawn again within each class of each category, the same ones for all methods and prompt
    seeds, so that differences of methods are paired.
    """
    rng = np.random.default_rng(seed)
    weights, total, counts = {}, {}, {}
    for record in records:
        labels = np.array(record["labels"])
        if record["category"] not in weights:
            sizes = [int((labels == label).sum()) for label in (0, 1)]
            weights[record["category"]] = [
                rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in sizes
            ]
        normal, anomalous = weights[record["category"]]
        for name, found in record["methods"].items():
            if "error" in found:
                continue
            s = np.array(found["scores"])
            pairs = np.subtract.outer(s[labels == 0], s[labels == 1])
            right = (pairs < 0) + 0.5 * (pairs == 0)
            values = ((normal @ right) * anomalous).sum(1)
            total[name] = total.get(name, 0) + values
            counts[name] = counts.get(name, 0) + 1
    return {name: values / counts[name] for name, values in total.items()}


def markdown(summary: pd.DataFrame) -> str:
    """The summary as tables, one a K: AUROC (mean ± deviation over prompt seeds) by method and data set."""
    datasets = list(summary["dataset"].unique())
    lines = []
    for k, part in summary.groupby("shots", sort=True):
        lines += [f"K = {k}", "", "| AUROC | " + " | ".join(datasets) + " | mean |"]
        lines.append("|---|" + "---|" * (len(datasets) + 1))
        for method, rows in part.groupby("method", sort=False):
            rows = rows.set_index("dataset")
            cells = [
                f"{rows.auroc[d]:.3f} ± {rows.auroc_std[d]:.3f}" if d in rows.index else "-" for d in datasets
            ]
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {rows.auroc.mean():.3f} |")
        lines += ["", f"InCTRL minus the best training-free method, K = {k} ({LEVEL:.0%} interval):", ""]
        lines += ["| data set | rival | difference | verdict |", "|---|---|---|---|"]
        for row in part[part["method"] == "InCTRL"].itertuples():
            verdict = "better" if row.gain_low > 0 else "worse" if row.gain_high < 0 else "not shown"
            interval = f"{row.gain_low:+.3f} to {row.gain_high:+.3f}"
            lines.append(f"| {row.dataset} | {row.rival} | {row.gain:+.3f} ({interval}) | {verdict} |")
        lines.append("")
    return "\n".join(lines)
