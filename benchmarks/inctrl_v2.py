"""Does InCTRLv2's trained map find more than the residual map? python benchmarks/inctrl_v2.py [--data FOLDER]

InCTRLv2 (as third parties describe it; see `inctrl_lite.heads.v2`) is trained on the tiny CLIP, with its text
prototypes and on drawn things with exact masks; and on the photo tower, with learned prototypes and on
photographs with synthetic defects. It is measured on the unseen drawn worlds (tiny) or the
development photographs (photo) and, with --data, on the real categories that have masks. Beside it: the
residual map and its largest value, for which nothing is learned; InCTRL with the paper's head; and, on the
photo tower, the map of InCTRL-lite, whose linear prior is the simplest form of a discriminative branch. Its
other part, the residuals of the middle stage alone, has a row of its own and shows what is the prior's. The
same prior is added to the residuals of all stages, too, and is learned from drawings, too.

What a trained map can be worth is shown by a small network of ours. For each patch it sees the logarithms of
the residuals, and the *difference* to the nearest normal patch as a vector; or, for comparison, the token
itself. It is trained on single patches with cross-entropy, and its answer is added to the mean logarithm of
the residuals.

Ablations: without either branch (beta 0 or 1), each branch's semantic map alone, and adapters that were
not trained, as they are without the losses of maps. These and sweeps of alpha and beta at K = 4, from two
draws.

K = 1, 2, 4, 8; six draws of the normal images; three trained heads. Intervals of the image AUROC:
`metrics.auroc_interval`. Intervals of the pixel metrics: a bootstrap of images, draws and heads together
(`Curves`). Of InCTRLv2, nothing was chosen: alpha, beta, learning rate and losses are the
notes', the number of steps and the scale of the cosines are those of InCTRL in this package. Size, weight
decay, steps and weight of our network were chosen on left-out families of the drawn set and on the
development photographs. Features are kept in the feature cache,
finished categories in --cache. Real
categories with many images are thinned to 60 of a class. Writes benchmarks/results/inctrl_v2.{csv,json,png}.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from quality import ROOT, fill
from record import RESULTS, gains, narrow, save_figure, with_interval
from scipy.ndimage import label
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from what_training_adds import thinned

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone, Stage
from inctrl_lite.baselines.base import Auxiliary, Images
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.benchmark import real
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, EVALUATION, load_world
from inctrl_lite.environment import environment
from inctrl_lite.evaluation import resize_mask
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.files import write_text
from inctrl_lite.heads.v2 import average, blend
from inctrl_lite.metrics import CellScores, auroc_interval
from inctrl_lite.prior import COVERED, mask_on_grid
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import resample_map
from inctrl_lite.store import FeatureStore

CACHE = Path("runs/inctrl_v2")
SHOTS, DRAWS, HEADS, BATCHES = (1, 2, 4, 8), 6, 3, 60
SWEPT = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
PIXELS, LEVELS, RESAMPLES, LIMIT = 96, 300, 400, 0.3
RESIDUAL, V1, V2 = "residual map (nothing learned)", "InCTRL (paper's head)", "InCTRLv2"
LITE = "InCTRL-lite: middle stage's residual and linear prior"
MIDDLE = "middle stage's residual alone (nothing learned)"
ALL_STAGES = "ours: all stages' residuals and linear prior"
MAPS = {  # of the evidence and InCTRLv2's scores
    V2: lambda e, s: s.pixel_map,
    "without the one-class branch (beta = 0)": lambda e, s: average(e.patch_map, s.discriminative_map),
    "without the discriminative branch (beta = 1)": lambda e, s: average(e.patch_map, s.one_class_map),
    "discriminative semantic map alone": lambda e, s: s.discriminative_map,
    "one-class semantic map alone": lambda e, s: s.one_class_map,
}
UNTRAINED = "adapters not trained (no losses of maps)"
DIFFERENCES = "ours: small network on differences to the nearest normal patch"
TOKENS = "ours: the same network on patch tokens"
HIDDEN, DECAY, NETWORK_STEPS, WEIGHT = 64, 1.0, 800, 0.3  # chosen on left-out families and development sets


# --- pixel metrics with weighted images ---------------------------------------------------------------


class Curves(NamedTuple):
    """What the pixel metrics of some images are made of, image by image, so that images can be resampled.

    The maps are cut at T levels, quantiles of all their values, most of them near the top.

    Attributes:
        false: normal pixels of each image above each level.
        found: anomalous pixels above each level.
        covered: sum over the image's defects of the share above each level.
        normal, anomalous, defects: how many there are.
    """

    false: np.ndarray  # [I, T]
    found: np.ndarray  # [I, T]
    covered: np.ndarray  # [I, T]
    normal: np.ndarray  # [I]
    anomalous: np.ndarray  # [I]
    defects: np.ndarray  # [I]

    @classmethod
    def of(cls, masks: np.ndarray, regions: Sequence[np.ndarray], maps: np.ndarray) -> Curves:
        """Curves of maps [I, H, W] for masks of the same size and their numbered regions."""
        shares = 1 - np.concatenate([[0], np.geomspace(1e-4, 1, LEVELS - 1)])
        levels = np.quantile(maps, shares)  # falling
        above = [np.searchsorted(-levels, -values.ravel()) for values in maps]  # first level that it reaches

        def count(places: np.ndarray) -> np.ndarray:
            return np.bincount(places, minlength=LEVELS + 1)[:LEVELS].cumsum()

        false, found, covered, defects = [], [], [], []
        for mask, numbered, places in zip(masks, regions, above, strict=True):
            inside = mask.ravel()
            false.append(count(places[~inside]))
            found.append(count(places[inside]))
            each = [numbered.ravel() == i for i in range(1, numbered.max() + 1)]
            covered.append(sum((count(places[one]) / one.sum() for one in each), np.zeros(LEVELS)))
            defects.append(len(each))
        anomalous = masks.sum((1, 2))
        return cls(
            *map(np.array, (false, found, covered)),
            masks[0].size - anomalous,
            anomalous,
            np.array(defects),
        )

    def metrics(self, weights: np.ndarray) -> np.ndarray:
        """Pixel AUROC, AUPRO and largest F1 for each row of weights of the images: [R, 3]."""
        false = weights @ self.false / (weights @ self.normal)[:, None]  # [R, T]
        hits, anomalous = weights @ self.found, (weights @ self.anomalous)[:, None]
        overlap = weights @ self.covered / (weights @ self.defects)[:, None]
        precision_and_recall = 2 * hits / (hits + weights @ self.false + anomalous)
        start = np.zeros((len(weights), 1))
        false, recall, overlap = (np.hstack([start, c]) for c in (false, hits / anomalous, overlap))
        area = (np.diff(false) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(1)
        return np.stack([area, _area_up_to(false, overlap), precision_and_recall.max(1)], 1)


def _area_up_to(false: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Area under the overlap curve up to a false positive rate of `LIMIT`, over `LIMIT`: [R]."""
    result = []
    for x, y in zip(false, overlap, strict=True):
        inside = x < LIMIT
        x, y = np.append(x[inside], LIMIT), np.append(y[inside], np.interp(LIMIT, x, y))
        result.append(np.trapezoid(y, x) / LIMIT)
    return np.array(result)


def resamples(labels: Sequence[int], seed: int = 0) -> np.ndarray:
    """How often each image counts: once in the first row, then `RESAMPLES` bootstraps of each class."""
    rng, kinds = np.random.default_rng(seed), np.array(labels)
    rows = np.ones((RESAMPLES + 1, len(kinds)))
    for kind in (0, 1):
        where = np.flatnonzero(kinds == kind)
        rows[1:, where] = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), RESAMPLES)
    return rows


# --- scoring ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A head, and what it was trained on."""

    name: str
    auxiliary: str
    seed: int
    method: InCTRLMethod


class Measured(NamedTuple):
    """One category, draw and head of one method.

    Attributes:
        cell: scores of the images.
        scored: the method has scores of images; otherwise those of `cell` mean nothing.
        pixels: pixel metrics with each row of weights [1 + R, 3]; None without masks or maps.
    """

    cell: CellScores
    scored: bool
    pixels: np.ndarray | None


Key = tuple[str, str, int]  # method, auxiliary set, K


def heads(store: FeatureStore, sets: Mapping[str, list[Category]]) -> list[Trained]:
    """InCTRL, InCTRLv2 and its untrained adapters, from every seed."""
    found = []
    for name, categories in sets.items():
        auxiliary = Auxiliary(categories, store.backbone, store, batches=BATCHES, progress=True)
        for seed in tqdm(range(HEADS), f"training on {name}"):
            found.append(Trained(V2, name, seed, InCTRLMethod("v2").train(auxiliary, seed)))
            found.append(Trained(V1, name, seed, InCTRLMethod("paper").train(auxiliary, seed)))
        auxiliary.remembered.clear()
        for seed in range(HEADS):
            method = InCTRLMethod("v2", learn=False).train(auxiliary, seed)
            found.append(Trained(UNTRAINED, name, seed, method))
    return found


def priors(store: FeatureStore, sets: Mapping[str, list[Category]]) -> list[Trained]:
    """InCTRL-lite on the photo tower: its linear prior, from every set and seed."""
    found = []
    for name, categories in sets.items():
        auxiliary = Auxiliary(categories, store.backbone, store, batches=BATCHES, progress=True)
        found += [Trained(LITE, name, s, InCTRLMethod("own").train(auxiliary, s)) for s in range(HEADS)]
    return found


# --- a network of ours --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A small network on the patches of a residual map: `DIFFERENCES` or `TOKENS`."""

    kind: str
    auxiliary: str
    seed: int
    module: nn.Module
    mean: Tensor
    std: Tensor

    def map(self, inputs: Tensor, evidence: Evidence) -> Tensor:
        """Mean logarithm of the residuals, plus the weighted answer of the network: [B, N]."""
        answer = self.module((inputs - self.mean) / self.std).squeeze(-1)
        return evidence.stage_maps.clamp_min(1e-6).log().mean(1) + WEIGHT * answer


def patch_inputs(evidence: Evidence, normals: Sequence[Stage], kind: str) -> Tensor:
    """What the network sees of each patch of the map: [B, N, W].

    Args:
        evidence: of the queries.
        normals: patch tokens of their K normal images [K, N, C].
        kind: `DIFFERENCES` or `TOKENS`.
    """
    parts = []
    for stage, known in zip(evidence.query_stages, normals, strict=True):
        tokens, bank = F.normalize(stage.tokens, dim=-1), F.normalize(known.tokens.flatten(0, 1), dim=-1)
        if kind == DIFFERENCES:
            tokens = torch.stack([one - bank[(one @ bank.T).argmax(-1)] for one in tokens])
        moved = resample_map(tokens.transpose(1, 2), stage.grid, evidence.map_grid)  # [B, C, N]
        parts.append(moved.transpose(1, 2))
    return torch.cat([*parts, evidence.stage_maps.clamp_min(1e-6).log().transpose(1, 2)], -1)


def own_networks(store: FeatureStore, sets: Mapping[str, list[Category]]) -> list[Network]:
    """Both networks from every seed, each trained on single patches of an auxiliary set."""
    found = []
    for name, categories in sets.items():
        store.encode([i for c in categories for i in (*c.train, *c.test)], progress=True)
        for kind in (DIFFERENCES, TOKENS):
            for seed in tqdm(range(HEADS), f"{kind}, {name}"):
                x, y = sampled_patches(categories, store, kind, seed)
                mean, std = x.mean(0), x.std(0) + 1e-6
                torch.manual_seed(seed)
                module = nn.Sequential(
                    nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Dropout(0.3), nn.Linear(HIDDEN, 1)
                )
                optimiser = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=DECAY)
                for _ in range(NETWORK_STEPS):
                    rows = torch.randint(len(x), (512,))
                    logits = module((x[rows] - mean) / std).squeeze(-1)
                    loss = F.binary_cross_entropy_with_logits(logits, y[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                found.append(Network(kind, name, seed, module.eval().requires_grad_(False), mean, std))
    return found


@torch.no_grad()
def sampled_patches(
    categories: Sequence[Category], store: FeatureStore, kind: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Inputs [P, W] and labels [P] of up to 12 damaged and 24 sound patches of each image."""
    rng = np.random.default_rng(seed)
    inputs, labels = [], []
    for category in categories:
        normals, queries = (
            Images(items, store.backbone, store) for items in (draw_support(category, 4, seed), category.test)
        )
        evidence = queries.evidence(normals)
        seen = patch_inputs(evidence, normals.features.stages, kind)
        for rows, item in zip(seen, category.test, strict=True):
            covered = mask_on_grid(item, store.backbone.preprocessor, evidence.map_grid)
            for truth, most, where in ((1.0, 12, covered > COVERED), (0.0, 24, covered == 0)):
                chosen = rng.permutation(torch.nonzero(where)[:, 0].numpy())[:most]
                inputs.append(rows[chosen])
                labels.append(torch.full((len(chosen),), truth))
    return torch.cat(inputs), torch.cat(labels)


# --- answers ------------------------------------------------------------------------------------------


def answers(one: Trained, evidence: Evidence, k: int) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
    """(row of the table, scores of images or None, maps or None) of one head."""
    head = one.method.model.head
    if one.name == LITE:
        prior = head.prior_map(evidence.query_stages, evidence.map_grid)
        logs = evidence.stage_maps.clamp_min(1e-6).log()
        scores = head.raw_score(evidence.stage_maps, prior, evidence.map_grid)
        yield LITE, scores, logs[:, head.middle_stage] + head.config.prior_weight * prior
        both = logs.mean(1) + head.config.prior_weight * prior
        yield ALL_STAGES, both.amax(1), both
        return
    scores: Scores = head(evidence)
    if one.name == V1:
        yield V1, scores.final, None
        return
    if one.name == UNTRAINED:
        yield UNTRAINED, None, scores.pixel_map
        return
    for name, of in MAPS.items():
        yield name, scores.final if name == V2 else None, of(evidence, scores)
    if k == 4:
        whole = scores.image if scores.text is None else (scores.image + scores.text) / 2
        branches = (average(evidence.patch_map, m) for m in (scores.discriminative_map, scores.one_class_map))
        dasl, oasl = branches
        for value in SWEPT:
            yield f"alpha = {value:g}", (1 - value) * whole + value * scores.patch, None
            yield f"beta = {value:g}", None, blend(dasl, oasl, value)


def pixel_metrics(
    category: Category, backbone: Backbone, weights: np.ndarray
) -> Callable[[Tensor], np.ndarray]:
    """A function: maps [I, N] of the category's images -> the three pixel metrics for each row of weights."""
    size = (PIXELS, PIXELS)
    sizes = [load_image(item.image).size for item in category.test]
    masks = np.stack(
        [
            np.zeros(size, bool) if item.mask is None else resize_mask(load_mask(item.mask, own), size)
            for item, own in zip(category.test, sizes, strict=True)
        ]
    )
    regions = [label(mask, np.ones((3, 3)))[0] for mask in masks]

    def metrics(maps: Tensor) -> np.ndarray:
        grids = maps.unflatten(1, backbone.map_grid).numpy()
        drawn = [
            backbone.preprocessor.to_picture(grid, own, size) for grid, own in zip(grids, sizes, strict=True)
        ]
        values = np.nan_to_num(np.stack(drawn), nan=float(grids.min()))
        return Curves.of(masks, regions, values).metrics(weights).astype(np.float32)

    return metrics


@torch.no_grad()
def measure_category(
    category: Category, store: FeatureStore, trained: Sequence[Trained], networks: Sequence[Network]
) -> list[tuple[Key, Measured]]:
    """All methods, K, draws and heads on one category."""
    backbone, labels = store.backbone, np.array(category.labels)
    supports = {(k, d): draw_support(category, k, d) for k in SHOTS for d in range(DRAWS)}
    pool_items = list(dict.fromkeys(item for items in supports.values() for item in items))
    pool, queries = Images(pool_items, backbone, store), Images(category.test, backbone, store)
    text = text_prototypes(backbone, category.name) if backbone.has_text_encoder else None
    with_masks = all(item.mask is not None for item in category.test if item.label)
    pixels = pixel_metrics(category, backbone, resamples(category.labels))
    found = []

    def note(key: Key, draw: int, head: int, scores: Tensor | None, maps: Tensor | None) -> None:
        measured = None if maps is None or not with_masks else pixels(maps)
        if scores is None and measured is None:
            return
        values = np.zeros(len(labels)) if scores is None else scores.numpy()
        cell = CellScores(category.dataset, category.name, draw, head, labels, values)
        found.append((key, Measured(cell, scores is not None, measured)))

    for (k, draw), items in supports.items():
        normals = pool.take([pool_items.index(item) for item in items])
        evidence = queries.evidence(normals, text)
        note((RESIDUAL, "", k), draw, 0, evidence.patch_map.amax(1), evidence.patch_map)
        middle = evidence.stage_maps[:, len(evidence.query_stages) // 2]
        note((MIDDLE, "", k), draw, 0, middle.amax(1), middle)
        seen = {
            kind: patch_inputs(evidence, normals.features.stages, kind)
            for kind in (DIFFERENCES, TOKENS)
            if kind == DIFFERENCES or (k == 4 and draw < 2)
        }
        for network in networks:
            if network.kind in seen:
                maps = network.map(seen[network.kind], evidence)
                note((network.kind, network.auxiliary, k), draw, network.seed, maps.amax(1), maps)
        for one in trained:
            for name, scores, maps in answers(one, evidence, k):
                alone = name.endswith("alone")  # does not depend on the normal images
                few = alone or name == UNTRAINED or name.startswith("beta")
                if few and (k != 4 or draw > (0 if alone else 1)):
                    continue
                note((name, one.auxiliary, k), draw, one.seed, scores, maps)
    return found


def measure(
    categories: Sequence[Category],
    store: FeatureStore,
    trained: Sequence[Trained],
    networks: Sequence[Network],
    cache: Path,
) -> dict[Key, list[Measured]]:
    """All categories; each is kept in the cache when it is done."""
    found: dict[Key, list[Measured]] = defaultdict(list)
    for category in tqdm(categories, "measuring"):
        path = cache / f"{category.dataset}-{category.name}.pickle".replace(" ", "-")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(measure_category(category, store, trained, networks)))
        for key, measured in pickle.loads(path.read_bytes()):
            found[key].append(measured)
    return found


# --- tables -------------------------------------------------------------------------------------------


def pixel_intervals(found: Sequence[Measured], other: Sequence[Measured] | None = None) -> np.ndarray:
    """Value, low and high of the three pixel metrics, or of their difference to another method's: [3, 3].

    The mean is over draws and heads, categories, then data sets. The interval resamples images (for all
    methods alike), draws (of each category anew) and heads (for all categories).
    """

    def by_category(measured: Sequence[Measured]) -> dict[tuple[str, str], dict[tuple[int, int], np.ndarray]]:
        result: dict[tuple[str, str], dict[tuple[int, int], np.ndarray]] = defaultdict(dict)
        for cell, _, pixels in measured:
            if pixels is not None:
                result[cell.dataset, cell.category][cell.draw, cell.head] = pixels
        return result

    mine, others = by_category(found), by_category(other or [])
    rng = np.random.default_rng(0)
    count = 1 + max(head for cells in mine.values() for _, head in cells)
    chosen = rng.integers(count, size=(RESAMPLES + 1, count))
    chosen[0] = range(count)
    values = defaultdict(list)
    for place, cells in sorted(mine.items()):
        draws = sorted({draw for draw, _ in cells})
        stack = np.stack([[cells[draw, head] for head in range(count)] for draw in draws])  # [d, h, 1 + R, 3]
        if other is not None:  # the residual map has no heads
            stack = stack - np.stack([others[place][draw, 0] for draw in draws])[:, None]
        taken = rng.integers(len(draws), size=(RESAMPLES + 1, len(draws)))
        taken[0] = range(len(draws))
        rows = [
            stack[np.ix_(taken[r], chosen[r])][:, :, r].mean((0, 1)) for r in range(RESAMPLES + 1)
        ]  # [1 + R, 3]
        values[place[0]].append(rows)
    means = np.mean([np.mean(rows, 0) for rows in values.values()], 0)  # [1 + R, 3]
    return np.stack([means[0], *np.quantile(means[1:], (0.025, 0.975), axis=0)], 1)


def summary(found: dict[Key, list[Measured]], **place: str) -> list[dict[str, object]]:
    """One row a method, auxiliary set and K: each metric with its interval, and the gain over the residual
    map (pixels) or its largest value (images); for InCTRL-lite, the gain over its own residuals, too."""
    rows = []
    for (method, auxiliary, k), measured in found.items():
        row: dict[str, object] = {**place, "method": method, "auxiliary set": auxiliary, "K": k}
        rival = found[RESIDUAL, "", k]
        scored = [m.cell for m in measured if m.scored]
        if scored:
            row |= dict(zip(("auroc", "auroc_low", "auroc_high"), auroc_interval(scored), strict=True))
            if method != RESIDUAL:
                gain = auroc_interval(scored, [m.cell for m in rival])
                row |= dict(zip(("auroc_gain", "auroc_gain_low", "auroc_gain_high"), gain, strict=True))
        if any(m.pixels is not None for m in measured):
            metrics = ("pixel_auroc", "aupro", "pixel_f1_max")
            draws = {m.cell.draw for m in measured}
            same = [m for m in rival if m.cell.draw in draws]
            parts = {"": pixel_intervals(measured)}
            if method != RESIDUAL:
                parts["_gain"] = pixel_intervals(measured, same)
            if method == LITE:
                parts["_prior_gain"] = pixel_intervals(measured, found[MIDDLE, "", k])
            for what, values in parts.items():
                for name, (value, low, high) in zip(metrics, values, strict=True):
                    row |= {f"{name}{what}": value, f"{name}{what}_low": low, f"{name}{what}_high": high}
        rows.append(row)
    return rows


def read() -> pd.DataFrame:
    found = pd.read_csv(RESULTS / "inctrl_v2.csv")
    return found.assign(**{"auxiliary set": found["auxiliary set"].fillna("")})


def rows_of(table: pd.DataFrame, tower: str, sets: str, method: str, auxiliary: str) -> pd.DataFrame:
    """The rows of one method by K."""
    own = "" if method in (RESIDUAL, MIDDLE) else auxiliary
    found = table[(table["tower"] == tower) & (table["sets"] == sets) & (table["method"] == method)]
    return found[found["auxiliary set"] == own].set_index("K").sort_index()


# --- figure and texts ---------------------------------------------------------------------------------

DRAWN, PHOTOGRAPHS = "drawn", "photographs"
PANELS = (  # tower, test sets, auxiliary set, title
    ("tiny", "worlds", DRAWN, "tiny CLIP, unseen drawn worlds"),
    ("tiny", "real", DRAWN, "tiny CLIP, real images"),
    ("photo", "development", PHOTOGRAPHS, "photo tower, development photographs"),
    ("photo", "real", PHOTOGRAPHS, "photo tower, real images"),
)
COLOURS = {
    RESIDUAL: "black",
    V2: "#0072B2",
    "without the one-class branch (beta = 0)": "#D55E00",
    "without the discriminative branch (beta = 1)": "#009E73",
    LITE: "#CC79A7",
    DIFFERENCES: "#E69F00",
}


def figure(table: pd.DataFrame) -> Figure:
    """AUPRO by K, by beta, and image AUROC by alpha, one row for each panel."""
    shown = [p for p in PANELS if len(rows_of(table, *p[:2], V2, p[2]))]
    drawn = Figure(figsize=(11, 2.9 * len(shown) + 0.8), layout="constrained")
    axes = drawn.subplots(len(shown), 3, squeeze=False)
    for (left, middle, right), (tower, sets, auxiliary, title) in zip(axes, shown, strict=True):
        for method, colour in COLOURS.items():
            line = rows_of(table, tower, sets, method, auxiliary)
            if len(line):
                look, above = ("--", 9) if method == RESIDUAL else ("-", 2)
                places = range(len(line))
                left.plot(places, line["aupro"], look, color=colour, marker="o", label=method, zorder=above)
        left.set(title=title, ylabel="AUPRO", xlabel="K")
        left.set_xticks(range(len(SHOTS)), [str(k) for k in SHOTS])
        for ax, name, column, plain in (
            (middle, "beta", "aupro", "residual map"),
            (right, "alpha", "auroc", "largest residual"),
        ):
            swept = [rows_of(table, tower, sets, f"{name} = {value:g}", auxiliary).loc[4] for value in SWEPT]
            values = np.array([[row[f"{column}{end}"] for end in ("", "_low", "_high")] for row in swept])
            ax.plot(SWEPT, values[:, 0], color=COLOURS[V2], marker="o")
            ax.fill_between(SWEPT, values[:, 1], values[:, 2], color=COLOURS[V2], alpha=0.15)
            level = values[-1, 0]  # nothing but the residual map, or its largest value, is left
            ax.axhline(level, color="black", ls="--", label=plain)
            ax.set(xlabel=f"{name}, K = 4", ylabel={"aupro": "AUPRO", "auroc": "image AUROC"}[column])
            ax.legend(frameon=False, fontsize=8)
    handles, labels = axes[-1][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return drawn


def cell(row: pd.Series, name: str, sign: str = "") -> str:
    return with_interval(*(row.get(f"{name}{end}", np.nan) for end in ("", "_low", "_high")), sign)


def panel_table(table: pd.DataFrame, tower: str, sets: str, auxiliary: str) -> str:
    """All methods at K = 4, and the gain of the map over the residual map by K."""
    head = ["K = 4", "image AUROC", "AUPRO", "AUPRO, gain over the residual map", "largest pixel F1"]
    lines = [head, ["---"] * len(head)]
    own = [(method, auxiliary) for method in (RESIDUAL, MIDDLE, V1, *MAPS, UNTRAINED, LITE, ALL_STAGES)]
    own += [(ALL_STAGES, DRAWN)] if auxiliary != DRAWN else []
    for method, learned in [*own, (TOKENS, auxiliary), (DIFFERENCES, auxiliary)]:
        found = rows_of(table, tower, sets, method, learned)
        if len(found):
            row = found.loc[4]
            if learned != auxiliary:
                method = f"{method} (learned from drawings)"
            gain = cell(row, "aupro_gain", "+")
            lines.append([method, cell(row, "auroc"), cell(row, "aupro"), gain, cell(row, "pixel_f1_max")])
    added = [["gain over the residual map", *(f"K = {k}" for k in SHOTS)], ["---"] * (1 + len(SHOTS))]
    found = rows_of(table, tower, sets, V2, auxiliary)
    for title, name in (
        ("AUPRO", "aupro_gain"),
        ("pixel AUROC", "pixel_auroc_gain"),
        ("image AUROC, over the largest residual", "auroc_gain"),
    ):
        added.append([title, *(cell(found.loc[k], name, "+") for k in SHOTS)])
    lite = rows_of(table, tower, sets, LITE, auxiliary)
    if len(lite):
        middle = rows_of(table, tower, sets, MIDDLE, auxiliary)
        for title, rows, name in (
            ("AUPRO of the middle stage's residual alone", middle, "aupro_gain"),
            ("AUPRO of the middle stage with the prior", lite, "aupro_gain"),
            ("of which the linear prior", lite, "aupro_prior_gain"),
        ):
            added.append([title, *(cell(rows.loc[k], name, "+") for k in SHOTS)])
    text = ["\n".join("| " + " | ".join(line) + " |" for line in part) for part in (lines, added)]
    return "\n\n".join(narrow(part) for part in text)


def points(rows: pd.DataFrame, name: str) -> str:
    """A difference by K, in points and in words."""
    return gains(rows.loc[list(SHOTS), [name, f"{name}_low", f"{name}_high"]].to_numpy(), SHOTS)


def verdict(table: pd.DataFrame) -> str:
    """In sentences: is the trained map better than the residual map, and the score than InCTRL's?"""
    lines = []
    for tower, sets, auxiliary, title in PANELS:
        found = rows_of(table, tower, sets, V2, auxiliary)
        if not len(found):
            continue
        first = rows_of(table, tower, sets, V1, auxiliary).loc[4, "auroc"]
        plain = rows_of(table, tower, sets, RESIDUAL, auxiliary).loc[4, "auroc"]
        lines.append(
            f"- {title[0].upper()}{title[1:]}: against the residual map, InCTRLv2's pixel map changes AUPRO "
            f"by {points(found, 'aupro_gain')}. Its image AUROC at K = 4 is "
            f"{found.loc[4, 'auroc']:.3f}; that of InCTRL with the paper's head is {first:.3f}, that of the "
            f"largest residual, for which nothing is learned, {plain:.3f}."
        )
    return "\n".join(lines)


def prior_verdict(table: pd.DataFrame) -> str:
    """In sentences, for the photo tower: what the choice of a stage and what the linear prior adds."""
    lines = []
    for tower, sets, auxiliary, title in PANELS:
        if tower != "photo" or not len(rows_of(table, tower, sets, MIDDLE, auxiliary)):
            continue
        middle = rows_of(table, tower, sets, MIDDLE, auxiliary)
        lite = rows_of(table, tower, sets, LITE, auxiliary)
        said = [
            f"the middle stage alone, without any learning, changes AUPRO by {points(middle, 'aupro_gain')}",
            "the prior, learned from photographs with synthetic defects, adds "
            f"{points(lite, 'aupro_prior_gain')} to that",
        ]
        for learned, words in ((auxiliary, "photographs"), (DRAWN, "drawings")):
            both = rows_of(table, tower, sets, ALL_STAGES, learned)
            said.append(f"all stages with the prior from {words} change it by {points(both, 'aupro_gain')}")
        lines.append(f"- {title[0].upper()}{title[1:]}, against the residual map: {'; '.join(said)}.")
    return "\n".join(lines)


def blocks() -> dict[Path, dict[str, str]]:
    """What stands between marks in texts, as in `quality.blocks`."""
    table = read()
    marks = {"verdict": verdict(table), "prior": prior_verdict(table)}
    for number, (tower, sets, auxiliary, _) in enumerate(PANELS, 1):
        recorded = len(rows_of(table, tower, sets, V2, auxiliary)) > 0
        marks[f"panel_{number}"] = panel_table(table, tower, sets, auxiliary) if recorded else "Not recorded."
    return {ROOT / "book" / "inctrl_v2.md": marks}


def run(data: Path | None, cache: Path, towers: Sequence[str]) -> None:
    """Train, measure and write the table."""
    torch.set_num_threads(1)
    photographs = []
    if data:
        loaded = [category for load in real(data).tests.values() for category in load()]
        photographs = [
            thinned(c, 60) for c in loaded if all(item.mask is not None for item in c.test if item.label)
        ]
    path = RESULTS / "inctrl_v2.csv"
    kept = pd.read_csv(path) if path.exists() else pd.DataFrame({"tower": []})
    tables = [kept[~kept["tower"].isin(towers)]]
    for tower in towers:
        store = FeatureStore(load_backbone(tower))
        auxiliary = {DRAWN: load_world(AUXILIARY)}
        tests = {"worlds": [c for world in EVALUATION for c in load_world(world)]}
        if tower == "photo":
            auxiliary = {PHOTOGRAPHS: load_photographs("auxiliary")}
            some = load_photographs("development", train=12, normal=16, anomalous=16)[::2]
            tests = {"development": some}
        tests["real"] = photographs
        networks = own_networks(store, auxiliary)
        trained = heads(store, auxiliary)
        if tower == "photo":
            trained += priors(store, {**auxiliary, DRAWN: load_world(AUXILIARY)})
        for sets, categories in tests.items():
            if categories:
                found = measure(categories, store, trained, networks, cache / f"{tower}-{sets}")
                tables.append(pd.DataFrame(summary(found, tower=tower, sets=sets)).round(4))
                write_text(path, pd.concat(tables).to_csv(index=False))
    facts = {
        "environment": environment(),
        "steps": 200,
        "batch": 48,
        "real categories": [f"{c.dataset}/{c.name}" for c in photographs],
    }
    write_text(RESULTS / "inctrl_v2.json", json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with real images in MVTec's layout")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--towers", nargs="*", default=["tiny", "photo"], choices=["tiny", "photo"])
    parser.add_argument("--only", action="store_true", help="write figure and texts from the recorded table")
    options = parser.parse_args()
    if not options.only:
        run(options.data, options.cache, options.towers)
    save_figure(figure(read()), RESULTS / "inctrl_v2.png")
    for path, marks in blocks().items():
        write_text(path, fill(path.read_text(encoding="utf-8"), marks))


if __name__ == "__main__":
    main()
