"""Every draw of prompts with every trained head, for benchmarks/tiny_quality.py and pretraining.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pandas as pd
import torch

from inctrl_lite.backbones import load_backbone
from inctrl_lite.baselines import Images
from inctrl_lite.baselines.inctrl import InCTRLMethod, load_table, train_on_table
from inctrl_lite.baselines.nearest import ClassNearest, PatchMax, PatchMaxOneView
from inctrl_lite.benchmark import PAPER_HEAD, embedded
from inctrl_lite.benchmark_report import MINE
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.worlds import EVALUATION, load_world
from inctrl_lite.store import FeatureStore
from inctrl_lite.metrics import auroc
from inctrl_lite.model import InCTRL

KINDS = {MINE: "lite", PAPER_HEAD: "paper"}
FREE = (PatchMax, PatchMaxOneView, ClassNearest)


def crossed(
    backbone: Backbone, store: FeatureStore, shots: Sequence[int], prompts: int, heads: int
) -> pd.DataFrame:
    """AUROC on the unseen worlds: one row per data set, category, K, prompt seed, head seed and method.

    Methods without a head have head seed -1.
    """
    protocol = embedded()
    table = load_table(protocol.auxiliary(), backbone, store, batches=protocol.batches, progress=False)
    trained = [
        (seed, InCTRLMethod(train_head(backbone, table, kind, protocol.steps, seed), name))
        for seed, (name, kind) in product(range(heads), KINDS.items())
    ]
    rows = [row for world in EVALUATION for row in _world(world, trained, backbone, store, shots, prompts)]
    return pd.DataFrame(rows)


def train_head(backbone: Backbone, table, kind: str, steps: int, seed: int) -> InCTRL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InCTRL(backbone.embed_dim, backbone.num_patches, kind)
    return train_on_table(model.to(backbone.device), table, steps=steps, seed=seed)


@torch.no_grad()
def _world(world, trained, backbone, store, shots, prompts) -> Iterator[dict]:
    for category in load_world(world):
        labels = [item.label for item in category.test]
        queries = Images(category.test, backbone, store)
        draws = {(k, p): draw_support(category, k, p) for k, p in product(shots, range(prompts))}
        drawn = list(dict.fromkeys(item for prompt in draws.values() for item in prompt))
        pool = Images(drawn, backbone, store)
        for (k, p), prompt in draws.items():
            normals = pool.take([drawn.index(item) for item in prompt])
            for head, method in [*((-1, free()) for free in FREE), *trained]:
                scores = method.fit(normals, category.name).score(queries).scores
                yield (
                    {"dataset": world, "category": category.name, "shots": k, "prompts": p, "head": head}
                    | {"method": method.name, "auroc": auroc(labels, scores.double().tolist())}
                )


def mean_of_worlds(table: pd.DataFrame) -> pd.DataFrame:
    """Unweighted mean over categories, then over data sets: one value per method, K, prompts and head."""
    one = ["method", "shots", "prompts", "head"]
    worlds = table.groupby([*one, "dataset"], sort=False)["auroc"].mean()
    return worlds.groupby(one, sort=False).mean().reset_index()


def spread(table: pd.DataFrame) -> list[dict]:
    """Per method and K: the mean, and how much prompts and heads move it (standard deviations)."""
    rows = []
    for (method, k), part in mean_of_worlds(table).groupby(["method", "shots"], sort=False):
        grid = part.pivot(index="prompts", columns="head", values="auroc")
        over_heads = f"{grid.mean(0).std():.3f}" if grid.shape[1] > 1 else "-"
        rows.append(
            {"method": method, "K": k, "mean AUROC": grid.to_numpy().mean()}
            | {"SD over prompt draws": grid.mean(1).std(), "SD over heads": over_heads}
            | {"lowest pair": grid.to_numpy().min(), "highest pair": grid.to_numpy().max()}
        )
    return rows
