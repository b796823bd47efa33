"""Which head for the embedded detector? Families are left out in turn: python benchmarks/choose_head.py

The families of the auxiliary world are split into three folds. Each head is trained on two and tested on the
third with new support sets, so nothing is learned from, or chosen by, an evaluation world. Prints mean AUROC
(in %) by K and writes benchmarks/results/choose_head.json.

The residuals of every image to every normal image of its category are computed once; the residual map for any
support set is then a minimum over K of them, which makes thousands of episodes cheap.
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
from tqdm.auto import tqdm

from inctrl_lite import InCTRL, load_backbone
from inctrl_lite.backbones import Backbone, ImageFeatures
from inctrl_lite.data.category import Category
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.encoder import Encoder
from inctrl_lite.environment import environment
from inctrl_lite.evidence import Evidence, compare
from inctrl_lite.files import write_text
from inctrl_lite.losses import focal_loss
from inctrl_lite.metrics import auroc
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import normal_residual_statistics, stage_residual_map
from inctrl_lite.support import SupportSet

TRAIN, NORMAL, ANOMALOUS = 12, 16, 20  # images a category: to draw from, test normals, test anomalies
FOLDS, TRAIN_SHOTS, TEST_SHOTS, SEEDS, BATCH = 3, 4, (2, 4, 8), 3, 48
STEPS = (100, 200, 400)
HEADS = ("paper", "lite")


@dataclass(eq=False)
class Table:
    """A category: its features, and the `residuals` [n, m, L, N] of n images to the m normal ones."""

    family: str
    features: ImageFeatures
    residuals: Tensor
    text: Tensor
    labels: Tensor

    def evidence(self, queries: Tensor, normals: Tensor) -> Evidence:
        """`evidence.compare` of some images with some normal images, from the residuals."""
        maps = self.residuals[queries][:, normals].float().amin(1)  # [q, L, N]
        among = self.residuals[normals][:, normals].float()
        itself = torch.eye(len(normals), dtype=torch.bool)[:, :, None, None]
        left_out = among.masked_fill(itself, 2.0).amin(1).mean(1)  # [K, N]
        statistics = normal_residual_statistics(left_out, self.features.map_grid)
        support = SupportSet.of(self.features[normals], statistics=False)
        support = replace(support, normal_statistics=statistics)
        return replace(compare(self.features[queries], support, self.text, maps), query_stages=())


def tabulate(backbone: Backbone, category: Category) -> Table:
    """Encode a category and compare every image with every normal one."""
    normal = [*category.train, *(item for item in category.test if item.label == 0)]
    items = [*normal, *(item for item in category.test if item.label == 1)]
    features = Encoder(backbone).encode_items(items)
    columns = [
        torch.stack([stage_residual_map(s.tokens, s.tokens[j][None]) for s in features.stages], 1).half()
        for j in range(len(normal))
    ]
    return Table(
        family=category.name.rpartition(" ")[2],  # "brass nut" -> "nut"
        features=replace(features, stages=()),  # those are in `residuals`
        residuals=torch.stack(columns, 1),
        text=text_prototypes(backbone, category.name),
        labels=torch.tensor([float(item.label) for item in items]),
    )


def batch(tables: list[Table], seed: int) -> tuple[Evidence, Tensor]:
    """Half normal, half anomalous queries, each with a support set of its own that does not hold it."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for b in range(BATCH):
        table = tables[int(torch.randint(len(tables), (1,), generator=generator))]
        normal = table.residuals.shape[1]
        low, high = (0, normal) if b < BATCH // 2 else (normal, len(table.labels))
        query = torch.randint(low, high, (1,), generator=generator)
        others = torch.randperm(normal, generator=generator)
        rows.append(table.evidence(query, others[others != query][:TRAIN_SHOTS]))
        labels.append(table.labels[query])
    return Evidence.cat(rows), torch.cat(labels)


def train(tables: list[Table], head: str, seed: int) -> Iterator[tuple[int, InCTRL]]:
    """(steps, model) at each of `STEPS`."""
    torch.manual_seed(seed)
    model = InCTRL(tables[0].features.global_embedding.shape[1], tables[0].residuals.shape[-1], head)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for step in range(max(STEPS)):
        evidence, labels = batch(tables, 1_000_003 * seed + step)
        scores = model.train().head(evidence)
        double = model.head.loss_on_logits
        loss = focal_loss(scores.final, labels, double_sigmoid=double)
        loss = loss + focal_loss(scores.image, labels, double_sigmoid=double)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step + 1 in STEPS:
            yield step + 1, model.eval()


def test_cases(tables: list[Table], shots: int) -> Iterator[tuple[Table, Evidence, np.ndarray]]:
    """(category, evidence, labels) for every left-out category and draw of the support set."""
    for table in tables:
        queries = torch.arange(TRAIN, len(table.labels))
        for seed in range(SEEDS):
            normals = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(seed))[:shots]
            yield table, table.evidence(queries, normals), table.labels[queries].int().numpy()


@torch.no_grad()
def evaluate(tables: list[Table], shots: int, model: InCTRL | None = None) -> dict[str, float]:
    """Mean AUROC: of a model, or of the training-free rankings."""
    found = defaultdict(list)
    for _, evidence, labels in test_cases(tables, shots):
        if model is not None:
            ranked = {"final": model.head(evidence).final}
        else:
            ranked = {
                "patch max": evidence.patch_map.amax(-1),
                "global embedding": evidence.global_distance,
                "text only": evidence.text_cosines[:, 1] - evidence.text_cosines[:, 0],
            }
        for name, ranking in ranked.items():
            found[name].append(auroc(labels, ranking.numpy()))
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
                    found[f"{head} head, {steps} steps"][shots].append(value)
    means = {
        n: {f"K = {k}": round(100 * np.mean(v), 2) for k, v in by_k.items()} for n, by_k in found.items()
    }
    result = {"environment": environment(), "mean AUROC, % (families left out)": means}
    write_text(Path(__file__).parent / "results" / "choose_head.json", json.dumps(result, indent=2) + "\n")
    for name, values in means.items():
        print(f"{name:36}", *(f"{k}: {v:5.2f}" for k, v in values.items()))


if __name__ == "__main__":
    main()
