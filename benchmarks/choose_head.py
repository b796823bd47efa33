"""Which head for the embedded detector? Families are left out in turn: python benchmarks/choose_head.py

The families of the auxiliary world are dealt into three folds. Each head is trained on two and tested on the
third with fresh prompts, so nothing is learned from, or chosen by, an evaluation world. Prints mean AUROC
(in %) by K and writes benchmarks/results/choose_head.json.

Residuals of every image to every normal image of its category are computed once; the residual map of any
prompt is then a minimum over K of them, which makes thousands of episodes cheap.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from inctrl_lite import load_backbone, InCTRL
from inctrl_lite.backbone import ImageFeatures
from inctrl_lite.data.category import Category
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.store import encode_items
from inctrl_lite.files import write_text
from inctrl_lite.losses import focal_loss
from inctrl_lite.metrics import auroc
from inctrl_lite.model import HEADS, Scores, whole_residuals
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import image_residual, layer_residual_maps, text_cosines, normal_residual_statistics

TRAIN, NORMAL, ANOMALOUS = 12, 16, 20  # images a category: prompts' pool, test normals, test anomalies
FOLDS, TRAIN_SHOTS, TEST_SHOTS, SEEDS, BATCH = 3, 4, (2, 4, 8), 3, 48
STEPS = (100, 200, 400)


@dataclass(eq=False)
class Table:
    """A category: features without patches; instead, the `residuals` [n, m, L, N] to the m normal images."""

    family: str
    features: ImageFeatures
    residuals: Tensor
    text: Tensor
    labels: Tensor


def tabulate(backbone: Backbone, category: Category) -> Table:
    """Encode a category and compare every image with every normal one."""
    normal = [*category.train, *(item for item in category.test if item.label == 0)]
    items = [*normal, *(item for item in category.test if item.label == 1)]
    features = encode_items(backbone, items)
    columns = [
        layer_residual_maps(features.patches, features.patches[j][None]).half() for j in range(len(normal))
    ]
    return Table(
        family=category.name.rpartition(" ")[2],  # "brass nut" -> "nut"
        features=replace(features, patches=features.patches[:, :0]),  # those are in `residuals`
        residuals=torch.stack(columns, 1),
        text=text_prototypes(backbone, category.name),
        labels=torch.tensor([float(item.label) for item in items]),
    )


def compare(table: Table, queries: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """Patch residual maps [q, N] of queries against a prompt, and what is usual for the prompt [N, 2]."""
    maps = table.residuals[queries][:, prompt].float().amin(1).mean(1)
    among = table.residuals[prompt][:, prompt].float()
    itself = torch.eye(len(prompt), dtype=torch.bool)[:, :, None, None]
    left_out = among.masked_fill(itself, 2.0).amin(1).mean(1)
    return maps, normal_residual_statistics(left_out, table.features.grid)


def score(
    model: InCTRL, maps: Tensor, spread: Tensor, cls: Tensor, prompt_cls: Tensor, whole: Tensor, text: Tensor
) -> Scores:
    """`InCTRL.forward` from residuals that are there already."""
    residual = image_residual(model.adapter(cls), model.adapter(prompt_cls))
    return model.head(maps, residual, text_cosines(cls, text), spread, whole)


def batch(tables: list[Table], seed: int) -> tuple[Tensor, ...]:
    """Half normal, half anomalous queries, each with its own prompt that does not hold it."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for b in range(BATCH):
        table = tables[int(torch.randint(len(tables), (1,), generator=generator))]
        normal = table.residuals.shape[1]
        low, high = (0, normal) if b < BATCH // 2 else (normal, len(table.labels))
        query = torch.randint(low, high, (1,), generator=generator)
        pool = torch.randperm(normal, generator=generator)
        prompt = pool[pool != query][:TRAIN_SHOTS]
        maps, spread = compare(table, query, prompt)
        one, others = table.features[query], table.features[prompt]
        whole = whole_residuals(one, others)[0]
        rows.append((maps[0], spread, one.global_embedding[0], others.global_embedding, whole, table.text, table.labels[query][0]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def train(tables: list[Table], head: str, seed: int) -> Iterator[tuple[int, InCTRL]]:
    """(steps, model) at each of `STEPS`."""
    torch.manual_seed(seed)
    model = InCTRL(tables[0].features.global_embedding.shape[1], tables[0].residuals.shape[-1], head)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(max(STEPS)):
        *inputs, labels = batch(tables, 1_000_003 * seed + step)
        scores = score(model.train(), *inputs)
        double = model.head.loss_on_logits
        loss = focal_loss(scores.final, labels, double_sigmoid=double)
        loss = loss + focal_loss(scores.image, labels, double_sigmoid=double)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step + 1 in STEPS:
            yield step + 1, model.eval()


def test_cases(tables: list[Table], shots: int) -> Iterator[tuple[Table, Tensor, Tensor]]:
    """(category, queries, prompt) for every held-out category and prompt seed; prompts from the pool only."""
    for table in tables:
        for seed in range(SEEDS):
            prompt = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))[:shots]
            yield table, torch.arange(TRAIN, len(table.labels)), prompt


@torch.no_grad()
def evaluate(tables: list[Table], shots: int, model: InCTRL | None = None) -> dict[str, float]:
    """Mean AUROC: of a model, or of the training-free rankings."""
    found = defaultdict(list)
    for table, queries, prompt in test_cases(tables, shots):
        maps, spread = compare(table, queries, prompt)
        query, others = table.features[queries], table.features[prompt]
        if model is not None:
            spreads, whole = spread.expand(len(queries), -1, -1), whole_residuals(query, others)
            ranked = {"final": score(model, maps, spreads, query.global_embedding, others.global_embedding, whole, table.text).final}
        else:
            cosines = F.normalize(query.global_embedding, dim=-1) @ F.normalize(others.global_embedding, dim=-1).T
            text = text_cosines(query.global_embedding, table.text)
            ranked = {
                "patch max": maps.amax(-1),
                "class embedding, nearest prompt": -cosines.amax(-1),
                "text only": text[:, 1] - text[:, 0],
            }
        for name, ranking in ranked.items():
            found[name].append(auroc(table.labels[queries].int().numpy(), ranking.numpy()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    backbone = load_backbone("tiny")
    world = load_world(AUXILIARY, train=TRAIN, normal=NORMAL, anomalous=ANOMALOUS)
    tables = [tabulate(backbone, category) for category in tqdm(world, desc="comparing")]
    families = sorted({table.family for table in tables})
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fold in tqdm(range(FOLDS), desc="folds"):
        out = set(families[fold::FOLDS])
        held_out = [table for table in tables if table.family in out]
        rest = [table for table in tables if table.family not in out]
        for shots in TEST_SHOTS:
            for name, value in evaluate(held_out, shots).items():
                found[name][shots].append(value)
        for head in HEADS:
            for steps, model in train(rest, head, seed=fold):
                for shots in TEST_SHOTS:
                    value = evaluate(held_out, shots, model)["final"]
                    found[f"InCTRL, {head} head, {steps} steps"][shots].append(value)
    means = {
        n: {f"K = {k}": round(100 * np.mean(v), 2) for k, v in by_k.items()} for n, by_k in found.items()
    }
    result = {"environment": environment(), "mean AUROC, % (families left out)": means}
    write_text(Path(__file__).parent / "results" / "choose_head.json", json.dumps(result, indent=2) + "\n")
    for name, values in means.items():
        print(f"{name:36}", *(f"{k}: {v:5.2f}" for k, v in values.items()))


if __name__ == "__main__":
    main()
