"""The generalist benchmark: one model, trained once, against methods that see the same features and prompts.

A *cell* is (data set, category, K, seed). It is computed for all methods at once and written as a file of
its own when it is finished, so that a run which was killed goes on where it was. Settings, versions and
weights make up the name of the run's folder: other settings make another run, never a mixed one. A cell of
images that have changed is computed again.
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
from inctrl_lite.baselines import MISSING, NEED_WORDS, TRAINING_FREE, Answer, Images, Method
from inctrl_lite.baselines.coop import CoOp
from inctrl_lite.baselines.inctrl import ABLATIONS, InCTRLMethod, load_table, train_on_table
from inctrl_lite.benchmark_report import write_tables
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.manifest import load_dataset
from inctrl_lite.data.worlds import AUXILIARY, EVALUATION, load_world
from inctrl_lite.device import Team, join_team
from inctrl_lite.environment import environment
from inctrl_lite.errors import InctrlError
from inctrl_lite.features import FeatureStore
from inctrl_lite.files import check_writable, write_text
from inctrl_lite.metrics import image_metrics, pixel_metrics
from inctrl_lite.model import TERMS, InCTRL
from inctrl_lite.viz import upsample_to_image, visible_box

HEADS = 3  # InCTRL is trained from this many seeds; prompt seed s is scored by head s mod HEADS
FREE = [method.name for method in TRAINING_FREE]
ONE_VIEW = "InCTRL: one view"  # the lite head, against the prompts as they are
PAPER_HEAD = "InCTRL: paper's head"  # beside the lite one, where that is the protocol's
COST = "cost.csv"
CHUNK = 256  # test images in memory at once


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
        trained_on: the auxiliary set, by a name that no other has.
    """

    name: str
    auxiliary: Callable[[], list[Category]]
    tests: dict[str, Callable[[], list[Category]]]
    head: str = "lite"
    steps: int = 200
    batches: int = 100
    trained_on: str = AUXILIARY


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
    tests = {n: lambda f=sets[n]: _one_vs_rest(load_dataset(f)) for n in tested}
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

    Several processes (see `device.join_team`) share the categories; the first one writes the tables.

    Args:
        protocol: `embedded()`, `real(folder)` or `paper(folder)`.
        out: folder; this run gets a sub-folder of its own.
        shots: values of K.
        seeds: prompt draws.
        device: where the backbone runs; each of several processes gets one of its own.
        backbone: what to look with; None: the paper's for the paper's protocol, else the embedded one.
        progress: show a progress bar.

    Returns:
        The run; `failed` names cells that could not be computed, all others are finished.
    """
    check_writable(out)
    team = join_team(device)
    backbone = backbone or Backbone.load(*(PAPER if protocol.name == "paper" else ()), device=team.device)
    store = FeatureStore(backbone)
    free = [method for method in TRAINING_FREE if backbone.has_words or method not in NEED_WORDS]
    settings = {
        "protocol": protocol.name,
        "trained on": protocol.trained_on,
        "head": protocol.head,
        "steps": protocol.steps,
        "batches": protocol.batches,
        "shots": list(shots),
        "seeds": seeds,
        "backbone": backbone.name,
        "features": store.fingerprint,
        "methods": [m.name for m in free] + (trained_methods(protocol) if backbone.has_words else []),
    }
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    folder = Path(out) / f"{protocol.name}-{digest}"
    write_text(
        folder / "run.json",
        json.dumps({"settings": settings, "environment": environment(), "missing": MISSING}, indent=2) + "\n",
    )
    failed = []
    work = [
        (category, [cell for cell in cells if not _is_done(cell[0], held)])
        for category, cells in _work(protocol, shots, seeds, folder, failed)
        for held in [contents(category)]
    ]
    work = [(category, cells) for category, cells in work if cells]
    trained: list[list[Method]] = [[]]
    if work and backbone.has_words:
        trained = train_methods(protocol, backbone, store, min(HEADS, seeds), team, progress)
    if work and team.is_main and not (folder / COST).exists():
        for category, _ in work:  # the first one that can be read
            table = measure_cost([*free, *trained[0]], category, backbone, max(shots))
            if len(table):
                write_text(folder / COST, table.to_csv(index=False))
                break
    mine = work[team.rank :: team.size]
    bar = tqdm(mine, desc=protocol.name, unit="category", disable=not (progress and team.is_main))
    for category, cells in bar:
        bar.set_postfix_str(f"{category.dataset}/{category.name}")
        methods = {seed: [*free, *trained[seed % len(trained)]] for _, _, seed in cells}
        _run_category(category, cells, methods, backbone, store)
    team.wait()
    return summarise(folder, failed, write=team.is_main)


def measure_cost(
    methods: Sequence[Method | type[Method]], category: Category, backbone: Backbone, shots: int
) -> pd.DataFrame:
    """Milliseconds for each of (at most) 32 images, encoding included, when the prompt is known.

    InCTRL's ablations are left out: they cost what it costs.
    """
    prompt, items = draw_support(category, min(shots, len(category.train)), 0), category.test[:32]
    normals, rows = Images(prompt, backbone), []
    for kind in methods:
        if kind.name.startswith("InCTRL: "):
            continue
        method = kind() if isinstance(kind, type) else kind
        _score(
            method, normals, Images(items[:2], backbone), category
        )  # what is computed once is computed now
        found, _ = _score(method, normals, Images(items, backbone), category)
        if "error" not in found:
            milliseconds = round(1000 * found["seconds"] / len(items), 3)
            rows.append({"method": method.name, "milliseconds": milliseconds})
    return pd.DataFrame(rows)


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


def _is_done(path: Path, of: str) -> bool:
    """Whether a cell's file is there and was computed of the same images."""
    return path.exists() and json.loads(path.read_text(encoding="utf-8"))["contents"] == of


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def trained_methods(protocol: Protocol) -> list[str]:
    """Names of what `train_methods` trains."""
    return ["CoOp", *ABLATIONS, *([ONE_VIEW, PAPER_HEAD] if protocol.head != "paper" else [])]


def train_methods(
    protocol: Protocol,
    backbone: Backbone,
    store: FeatureStore,
    heads: int,
    team: Team | None = None,
    progress: bool = True,
) -> list[list[Method]]:
    """CoOp, InCTRL and its ablations, trained on the auxiliary set: one list for each head seed.

    Every process of a team trains all of them (seconds), after they have shared the encoding (minutes).
    """
    categories = protocol.auxiliary()
    items = [item for c in categories for item in (*c.train, *c.test)]
    store.encode(items[team.rank :: team.size] if team else items, progress=progress)
    if team:
        team.wait()
    table = load_table(categories, backbone, store, batches=protocol.batches, progress=progress)
    trained = []
    for seed in range(heads):
        methods: list[Method] = [CoOp.train(categories, backbone, store, seed=seed)]
        kinds = [(name, protocol.head, terms) for name, terms in ABLATIONS.items()]
        if protocol.head != "paper":
            kinds.append((PAPER_HEAD, "paper", TERMS))
        for name, head, terms in kinds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = InCTRL(backbone.embed_dim, backbone.num_patches, head, terms=terms)
            model.to(backbone.device)
            train_on_table(model, table, steps=protocol.steps, seed=seed)
            methods.append(InCTRLMethod(model, name))
            if name == "InCTRL" and protocol.head != "paper":
                methods.append(InCTRLMethod(model, ONE_VIEW, views=False))
        trained.append(methods)
    return trained


def _run_category(
    category: Category,
    cells: list[tuple[Path, int, int]],
    methods: dict[int, list[Method | type[Method]]],
    backbone: Backbone,
    store: FeatureStore,
) -> None:
    """Compute and write some cells of a category; `methods` are those of each seed.

    Images are encoded and compared once for all cells, `CHUNK` test images at a time.
    """
    draws = {(k, seed): draw_support(category, k, seed) for _, k, seed in cells}
    drawn = list({item: None for prompt in draws.values() for item in prompt})
    row = {item: i for i, item in enumerate(drawn)}
    pool = Images(drawn, backbone, store)
    held = contents(category)
    found: dict[Path, dict[str, list[dict]]] = {path: {} for path, _, _ in cells}
    maps: dict[Path, list[torch.Tensor]] = {path: [] for path, _, _ in cells}
    for start in range(0, len(category.test), CHUNK):
        queries = Images(category.test[start : start + CHUNK], backbone, store)
        for path, k, seed in cells:
            normals = pool.take([row[item] for item in draws[k, seed]])
            for kind in methods[seed]:
                method = kind() if isinstance(kind, type) else kind
                part, answer = _score(method, normals, queries, category)
                found[path].setdefault(method.name, []).append(part)
                if method.name == "InCTRL" and answer:
                    maps[path].append(answer.maps)
    for path, k, seed in cells:
        joined = {name: _join(parts) for name, parts in found[path].items()}
        if maps[path] and "error" not in joined["InCTRL"]:
            joined["InCTRL"] |= _pixels(torch.cat(maps[path]), category.test, backbone.grid)
        record = {
            "dataset": category.dataset,
            "category": category.name,
            "domain": category.domain,
            "contents": held,
            "shots": k,
            "seed": seed,
            "prompts": [item.name for item in draws[k, seed]],
            "labels": [item.label for item in category.test],
            "methods": joined,
        }
        write_text(path, json.dumps(record) + "\n")


def _join(parts: list[dict]) -> dict:
    """One method's chunks as one; the first error counts."""
    for part in parts:
        if "error" in part:
            return part
    return {
        "scores": [score for part in parts for score in part["scores"]],
        "seconds": round(sum(part["seconds"] for part in parts), 4),
    }


@torch.no_grad()
def _score(
    method: Method, normals: Images, queries: Images, category: Category
) -> tuple[dict, Answer | None]:
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


def _pixels(maps: torch.Tensor, items: Sequence[Item], grid: tuple[int, int]) -> dict[str, float]:
    """Pixel AUROC and AUPRO of residual maps against the masks, where every anomalous image has one."""
    if any(item.label == 1 and item.mask is None for item in items):
        return {}
    side = 60  # pixels a side: enough for patches of 1/15
    large, masks = [], []
    for item, values in zip(items, maps, strict=True):
        large.append(upsample_to_image(values.reshape(grid).cpu().numpy(), (side, side)))
        mask = np.zeros((side, side), bool) if item.mask is None else _central(item, side)
        masks.append(mask)
    return pixel_metrics(np.stack(masks), np.stack(large))


def _central(item: Item, side: int) -> np.ndarray:
    """The part of a mask that the backbone sees, at `side` pixels."""
    size = load_image(item.image).size
    picture = Image.fromarray(load_mask(item.mask, size)).crop(visible_box(size))
    return np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX)) > 127


# --- results -----------------------------------------------------------------------------------------


def summarise(folder: Path, failed: list[str] | None = None, write: bool = True) -> Run:
    """Read the finished cells of a run and write its tables and figures (`benchmark_report`)."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "cells").rglob("*.json"))
    ]
    rows, errors = [], {}
    for record in records:
        place = {key: record[key] for key in ("dataset", "category", "domain", "shots", "seed")}
        for name, found in record["methods"].items():
            if "error" in found:
                where = f"{place['dataset']}/{place['category']}"
                errors.setdefault((where, found["error"]), {})[name] = len(record["methods"])
                continue
            extra = {k: found[k] for k in ("pixel_auroc", "aupro", "seconds") if k in found}
            images = {"images": len(record["labels"])}
            rows.append(
                place | {"method": name} | image_metrics(record["labels"], found["scores"]) | extra | images
            )
    failed = list(failed or [])
    for (where, error), methods in errors.items():  # once for all methods, draws and K
        named = "all methods" if len(methods) == max(methods.values()) else ", ".join(methods)
        failed.append(f"{where}, {named}: {error}")
    cells = pd.DataFrame(rows)
    if len(cells) and write:
        cost = pd.read_csv(folder / COST) if (folder / COST).exists() else None
        write_tables(folder, cells, records, FREE, cost)
    return Run(folder, cells, failed)
