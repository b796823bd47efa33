"""The generalist benchmark: one model, trained once, against methods that see the same features.

A *cell* is (data set, category, K, draw of the support set). It is computed for all methods at once and
written as a file of its own when it is finished, so that a run which was killed goes on where it was.
Settings, versions and weights make up the name of the run's folder: other settings make another run, never a
mixed one. A cell of images that have changed is computed again.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from inctrl_lite.backbones import Backbone, load_backbone
from inctrl_lite.baselines import METHODS, MISSING, Answer, Auxiliary, Entry, Images, Method, methods_for
from inctrl_lite.benchmark_report import write_tables
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.manifest import load_dataset
from inctrl_lite.data.worlds import AUXILIARY, EVALUATION, load_world
from inctrl_lite.device import process_group
from inctrl_lite.environment import environment
from inctrl_lite.errors import InctrlError
from inctrl_lite.evaluation import map_metrics
from inctrl_lite.files import check_writable, locked, read_checked, write_checked, write_text
from inctrl_lite.heads import own_head
from inctrl_lite.metrics import image_metrics
from inctrl_lite.store import FeatureStore

HEADS = 3  # trained methods are trained from this many seeds; each scores every draw of the support set
COST = "cost.csv"
CHUNK = 256  # test images in memory at once


@dataclass(frozen=True)
class Protocol:
    """What is trained on and tested on what.

    Attributes:
        name: "embedded", "real" or "paper".
        auxiliary: -> categories to train on.
        tests: data set -> its categories.
        head: the head whose ablations are run: "paper", or "own" for InCTRL-lite.
        steps: training steps.
        batches: batches of episodes that are computed for them.
        trained_on: the auxiliary set, by a name that no other has.
    """

    name: str
    auxiliary: Callable[[], list[Category]]
    tests: Mapping[str, Callable[[], list[Category]]]
    head: str = "own"
    steps: int = 200
    batches: int = 100
    trained_on: str = AUXILIARY


def embedded() -> Protocol:
    """Procedural industrial things -> nine unseen worlds."""
    return Protocol(
        "embedded",
        lambda: load_world(AUXILIARY),
        {name: partial(load_world, name) for name in EVALUATION},
    )


def real(data: Path) -> Protocol:
    """Procedural industrial things -> folders of real images in MVTec's layout, one folder a data set."""
    folders = sorted(f for f in data.iterdir() if f.is_dir()) if data.is_dir() else []
    if not folders:
        raise InctrlError(f"no data sets in {data}: expected DATASET/CATEGORY/train/good and /test/DEFECT")
    return Protocol(
        "real",
        lambda: load_world(AUXILIARY),
        {f.name: partial(_load_real, f) for f in folders},
    )


def paper(data: Path, auxiliary: str = "mvtec") -> Protocol:
    """One real data set -> others, with the paper's backbone and head (10 epochs of 100 steps).

    Trained on MVTec AD, it is tested on all the others; trained on another one, on MVTec AD.
    """
    sets = {f.name: f for f in sorted(data.iterdir()) if f.is_dir()} if data.is_dir() else {}
    tested = [n for n in sets if n != auxiliary and (auxiliary == "mvtec" or n == "mvtec")]
    if auxiliary not in sets or not tested:
        others = "one more folder" if auxiliary == "mvtec" else str(data / "mvtec")
        raise InctrlError(
            f"the paper's protocol trains on {auxiliary!r} and tests on other data sets: expected "
            f"{data / auxiliary} and {others}, in MVTec's layout or prepared with a manifest"
        )
    tests = {n: partial(_load_real, sets[n]) for n in tested}
    categories = load_dataset(sets[auxiliary])
    trained_on = f"{auxiliary} {contents(*categories)}"
    return Protocol("paper", lambda: categories, tests, "paper", 1000, 1000, trained_on)


def contents(*categories: Category) -> str:
    """Digest of what categories hold: names, labels and pictures, of files their size."""
    digest = blake2b(digest_size=8)
    for item in (item for c in categories for item in (*c.train, *c.test)):
        size = item.image.stat().st_size if isinstance(item.image, Path) and item.image.exists() else 0
        digest.update(f"{item.name} {item.label} {size}\n".encode())
        if isinstance(item.image, np.ndarray):
            digest.update(item.image.tobytes())
    return digest.hexdigest()


def _load_real(folder: Path) -> list[Category]:
    return _one_vs_rest(load_dataset(folder))


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
        cells: one row per method, cell and trained head: dataset, category, shots, seed (of the draw), head,
            method, auroc, ap, f1_max, pixel_auroc, aupro, seconds.
        failed: what went wrong, in words.
    """

    folder: Path
    cells: pd.DataFrame
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One cell's place: its file, K and the draw of the support set."""

    path: Path
    shots: int
    seed: int


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

    Several processes (see `device.process_group`) share the categories; rank 0 writes the tables.

    Args:
        protocol: `embedded()`, `real(folder)` or `paper(folder)`.
        out: folder; this run gets a sub-folder of its own.
        shots: values of K.
        seeds: draws of the support set.
        device: where the backbone runs; each of several processes gets one of its own.
        backbone: None: the paper's for the paper's protocol, else the embedded tiny one.
        progress: show progress bars.

    Returns:
        The run; `failed` names cells that could not be computed, all others are finished.

    Raises:
        InctrlError: `out` cannot be written, or another process runs the same benchmark there.
    """
    check_writable(out)
    processes = process_group(device)
    backbone = backbone or load_backbone("paper" if protocol.name == "paper" else "tiny")
    backbone.to(processes.device)
    store = FeatureStore(backbone)
    head = own_head(backbone) if protocol.head == "own" else protocol.head
    entries = methods_for(backbone, head)
    settings = {
        "protocol": protocol.name,
        "trained on": protocol.trained_on,
        "head": head,
        "steps": protocol.steps,
        "batches": protocol.batches,
        "shots": list(shots),
        "seeds": seeds,
        "heads": HEADS,
        "backbone": backbone.name,
        "features": store.folder.relative_to(store.root).as_posix(),
        "methods": list(entries),
    }
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = Path(out) / f"{protocol.name}-{digest}"
    with locked(folder) if processes.is_main else contextlib.nullcontext():
        facts = {"settings": settings, "environment": environment(), "missing": MISSING}
        if processes.is_main:
            write_text(folder / "run.json", json.dumps(facts, indent=2) + "\n")
        failed: list[str] = []
        work = []
        for category, cells in list_cells(protocol, shots, seeds, folder, failed):
            of = contents(category)
            if open_cells := [cell for cell in cells if not is_done(cell.path, of)]:
                work.append((category, open_cells))
        methods: dict[str, list[Method]] = {}
        if work:
            auxiliary = Auxiliary(
                protocol.auxiliary(), backbone, store, protocol.steps, protocol.batches, progress
            )
            methods = train_methods(entries, auxiliary, processes.rank, processes.size, processes.wait)
        if work and processes.is_main and not (folder / COST).exists():
            costs = (measure_cost(methods, category, backbone, max(shots)) for category, _ in work)
            table = next((table for table in costs if len(table)), None)  # of the first that can be read
            if table is not None:
                write_text(folder / COST, table.to_csv(index=False))
        mine = work[processes.rank :: processes.size]
        bar = tqdm(mine, desc=protocol.name, unit="category", disable=not (progress and processes.is_main))
        for category, cells in bar:
            bar.set_postfix_str(f"{category.dataset}/{category.name}")
            run_category(category, cells, methods, backbone, store)
        processes.wait()
        return summarise(folder, failed, write=processes.is_main)


def train_methods(
    entries: dict[str, Entry],
    auxiliary: Auxiliary,
    rank: int = 0,
    size: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> dict[str, list[Method]]:
    """Ready instances of every method: one, or one for each of `HEADS` seeds where it is trained.

    Every process trains all of them (seconds), after they have shared the encoding (minutes).
    """
    items = [item for c in auxiliary.categories for item in (*c.train, *c.test)]
    auxiliary.store.encode(items[rank::size], progress=auxiliary.progress)
    wait()
    return {
        name: [_trained(entry, auxiliary, seed) for seed in range(HEADS if entry.kind.is_trained else 1)]
        for name, entry in entries.items()
    }


def _trained(entry: Entry, auxiliary: Auxiliary, seed: int) -> Method:
    """A method after its training, or one that answers every question with the error it met in training."""
    try:
        return entry.make().train(auxiliary, seed)
    except Exception as error:  # a method that fails must not take the others along
        return _Untrainable(error)


class _Untrainable(Method):
    """Stands for a method whose training failed, so that each of its cells names the cause."""

    source = "no source"

    def __init__(self, cause: Exception):
        self.cause = cause

    def _fit(self, normals: Images, category: str) -> None:
        raise self.cause

    def _score(self, queries: Images) -> Answer:
        raise self.cause


def measure_cost(
    methods: dict[str, list[Method]], category: Category, backbone: Backbone, shots: int
) -> pd.DataFrame:
    """Milliseconds for each of (at most) 32 images, encoding included, with a fitted support set.

    Ablations are left out: they cost what the whole model costs.
    """
    normals = Images(draw_support(category, min(shots, len(category.train)), 0), backbone)
    items, rows = category.test[:32], []
    for name, (method, *_) in methods.items():
        if METHODS[name].ablation_of:
            continue
        _score(method, normals, Images(items[:2], backbone), category)  # what is computed once, now
        found, _ = _score(method, normals, Images(items, backbone), category)
        if "error" not in found:
            milliseconds = round(1000 * found["seconds"] / len(items), 3)
            rows.append({"method": name, "milliseconds": milliseconds})
    return pd.DataFrame(rows)


def list_cells(
    protocol: Protocol, shots: Sequence[int], seeds: int, folder: Path, failed: list[str]
) -> Iterator[tuple[Category, list[Cell]]]:
    """Every category with its cells. Data sets that cannot be read are named in `failed`."""
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
            place = folder / "cells" / file_name(name) / file_name(category.name)
            cells = []
            for k in shots:
                if k > len(category.train):
                    failed.append(
                        f"{name}/{category.name}, K = {k}: only {len(category.train)} normal images"
                    )
                    continue
                cells += [Cell(place / f"K{k}-seed{seed}.json", k, seed) for seed in range(seeds)]
            yield category, cells


def is_done(path: Path, of: str) -> bool:
    """Whether a cell's file is there, sound, and was computed of the same images."""
    data = read_checked(path)
    return data is not None and json.loads(data)["contents"] == of


def file_name(name: str) -> str:
    """A name that every file system takes, and that no other name gets.

    >>> file_name("bottle"), file_name("metal nut") == file_name("metal_nut")
    ('bottle', False)
    """
    plain = re.sub(r"[^\w.-]+", "_", name)
    return plain if plain == name else f"{plain}-{blake2b(name.encode(), digest_size=3).hexdigest()}"


def run_category(
    category: Category,
    cells: list[Cell],
    methods: dict[str, list[Method]],
    backbone: Backbone,
    store: FeatureStore,
) -> None:
    """Compute and write some cells of a category.

    Images are encoded and compared once for all cells, `CHUNK` test images at a time.
    """
    draws = {cell: draw_support(category, cell.shots, cell.seed) for cell in cells}
    drawn = list(dict.fromkeys(item for support in draws.values() for item in support))
    row = {item: i for i, item in enumerate(drawn)}
    pool = Images(drawn, backbone, store)
    found: dict[Cell, dict[str, list[list[dict[str, Any]]]]] = {cell: {} for cell in cells}
    maps: dict[Cell, dict[str, list[torch.Tensor]]] = {cell: {} for cell in cells}
    for start in range(0, len(category.test), CHUNK):
        queries = Images(category.test[start : start + CHUNK], backbone, store)
        for cell in cells:
            normals = pool.take([row[item] for item in draws[cell]])
            for name, heads in methods.items():
                answers = [_score(method, normals, queries, category) for method in heads]
                found[cell].setdefault(name, []).append([part for part, _ in answers])
                if cell.seed == 0 and answers[0][1] and answers[0][1].maps is not None:
                    maps[cell].setdefault(name, []).append(answers[0][1].maps)
    of = contents(category)
    for cell in cells:
        joined = {name: _join(parts) for name, parts in found[cell].items()}
        for name, parts in maps[cell].items():
            if "error" not in joined[name] and not METHODS[name].ablation_of:
                values = torch.cat(parts).unflatten(1, backbone.map_grid).float().cpu().numpy()
                joined[name] |= map_metrics(values, category.test, backbone.preprocessor)
        record = {
            "dataset": category.dataset,
            "category": category.name,
            "domain": category.domain,
            "contents": of,
            "shots": cell.shots,
            "seed": cell.seed,
            "normals": [item.name for item in draws[cell]],
            "labels": [item.label for item in category.test],
            "methods": joined,
        }
        write_checked(cell.path, json.dumps(record).encode())


def _join(chunks: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """One method's answers to all chunks, scores [heads][images]; the first error counts."""
    for part in (part for heads in chunks for part in heads):
        if "error" in part:
            return part
    scores = [[score for heads in chunks for score in heads[h]["scores"]] for h in range(len(chunks[0]))]
    return {"scores": scores, "seconds": round(sum(heads[0]["seconds"] for heads in chunks), 4)}


@torch.no_grad()
def _score(
    method: Method, normals: Images, queries: Images, category: Category
) -> tuple[dict[str, Any], Answer | None]:
    """A method's scores of some images, or the error it met."""
    began = time.perf_counter()
    try:
        answer = method.fit(normals, category.name).score(queries)
        if not answer.scores.isfinite().all():
            raise InctrlError("scores are not finite")
        scores = [round(s, 7) for s in answer.scores.double().tolist()]
        return {"scores": scores, "seconds": time.perf_counter() - began}, answer
    except Exception as error:  # a method that fails must not take the others along
        kind = "" if isinstance(error, InctrlError) else f"{type(error).__name__}: "
        return {"error": f"{kind}{error}", "trace": traceback.format_exc(limit=3)}, None


# --- results -----------------------------------------------------------------------------------------


def summarise(folder: Path, failed: list[str] | None = None, write: bool = True) -> Run:
    """Read the finished cells of a run and write its tables and figures (`benchmark_report`)."""
    read = (read_checked(path) for path in sorted((folder / "cells").rglob("*.json")))
    records = [json.loads(data) for data in read if data is not None]
    rows: list[dict[str, Any]] = []
    errors: dict[tuple[str, str], dict[str, int]] = {}
    for record in records:
        place = {key: record[key] for key in ("dataset", "category", "domain", "shots", "seed")}
        for name, found in record["methods"].items():
            if "error" in found:
                where = f"{place['dataset']}/{place['category']}"
                errors.setdefault((where, found["error"]), {})[name] = len(record["methods"])
                continue
            extra = {k: found[k] for k in ("pixel_auroc", "aupro", "seconds") if k in found}
            extra["images"] = len(record["labels"])
            for head, scores in enumerate(found["scores"]):
                measured = image_metrics(record["labels"], scores)
                rows.append(place | {"method": name, "head": head} | measured | (extra if head == 0 else {}))
    failed = list(failed or [])
    for (where, error), methods in errors.items():  # once for all methods, draws and K
        named = "all methods" if len(methods) == max(methods.values()) else ", ".join(methods)
        failed.append(f"{where}, {named}: {error}")
    cells = pd.DataFrame(rows)
    if len(cells) and write:
        cost = pd.read_csv(folder / COST) if (folder / COST).exists() else None
        write_tables(folder, cells, records, cost)
    return Run(folder, cells, failed)
