"""Does a prior on the whole image help? python benchmarks/image_prior.py [--data FOLDER]

The prior of the photo detector scores patches, and its mean over the image is taken away: it says where in an
image, and not whether. An earlier study of this network had two priors, learned from the drawn world alone:
one on the pooled embedding of the whole image, with weight 0.1 beside the logarithm of the residual, and one
on patches, with weight 0.05. Here its recipe is measured as it was described, beside patch max, and its image
prior is added to the score of the photo detector. No choice is made here. The weights had been tried on real
sets before, and some images of --data may be among them: what the recipe gains there is a little optimistic.

Six draws, three seeds of each prior (which images of the auxiliary set it learns from). Writes
benchmarks/results/image_prior.json and a block of book/what_training_adds.md (--only: the block alone).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, gains, narrow, with_interval
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from what_training_adds import TESTED, new_prior, thinned
from why_training_falls import filled

from inctrl_lite import load_backbone
from inctrl_lite.baselines.base import Images
from inctrl_lite.benchmark import real
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.heads import PriorHead
from inctrl_lite.heads.prior import SMALLEST
from inctrl_lite.metrics import CellScores, auroc_interval
from inctrl_lite.prior import fit_direction, train_prior
from inctrl_lite.store import FeatureStore

ROOT = Path(__file__).resolve().parents[1]
SHOTS, DRAWS, SEEDS = (1, 2, 4, 8), 6, 3
SIZES = {"train": 8, "normal": 16, "anomalous": 16}
PATCH_WEIGHT, IMAGE_WEIGHT = 0.05, 0.1  # of the earlier study
PATCH_MAX, UNTRAINED, TRAINED = "patch max", "photo, untrained", "photo"
BOTH, ADDED, ADDED_BOTH = "patch max + both priors", "photo, untrained + image prior", "photo + image prior"
RIVAL = {BOTH: PATCH_MAX, TRAINED: UNTRAINED, ADDED: UNTRAINED, ADDED_BOTH: UNTRAINED}
IMAGE = "image prior alone"
KINDS = ("defects", "other things")
ONE_VS_ALL = ("photographs-characters", "photographs-development-scenes", "mnist")
SHOWN = {
    PATCH_MAX: "patch max",
    BOTH: "the two priors add",
    UNTRAINED: "the detector's residuals (untrained)",
    TRAINED: "the detector's own prior adds",
    ADDED: "the image prior adds",
}
Key = tuple[str, int]  # method, K


@dataclass(frozen=True)
class Priors:
    """Of the patch (the head), and of the whole image: a direction of length D and an offset."""

    head: PriorHead
    direction: Tensor
    offset: float

    def of_image(self, embeddings: Tensor) -> Tensor:
        """How damaged each image looks by itself, in standard deviations over the auxiliary images: [B]."""
        return F.normalize(embeddings, dim=-1) @ self.direction + self.offset


def learn(store: FeatureStore, categories: Sequence[Category], seed: int) -> Priors:
    """Both priors from a random half of each category's images."""
    rng = np.random.default_rng(seed)
    halves = [replace(one, test=half(one.test, rng)) for one in categories]
    model = train_prior(new_prior(store.backbone), halves, store, seed=seed)
    items = [item for category in halves for item in category.test]
    embeddings = F.normalize(store.load(items).global_embedding, dim=-1)
    return Priors(model.head, *fit_direction(embeddings, torch.tensor([bool(item.label) for item in items])))


def half(items: Sequence[Item], rng: np.random.Generator) -> tuple[Item, ...]:
    return tuple(items[i] for i in rng.permutation(len(items))[: len(items) // 2])


def scores_of(
    category: Category, store: FeatureStore, learned: Sequence[Priors]
) -> Iterator[tuple[Key, CellScores]]:
    """The cells of every method, K, draw and seed."""
    supports = {(k, d): draw_support(category, k, d) for k in SHOTS for d in range(DRAWS)}
    pool_items = list(dict.fromkeys(item for items in supports.values() for item in items))
    pool, queries = (Images(items, store.backbone, store) for items in (pool_items, list(category.test)))
    grid, labels = queries.features.map_grid, np.array(category.labels)
    maps = [one.head.prior_map(queries.features.stages, grid) for one in learned]
    whole = [one.of_image(queries.features.global_embedding) for one in learned]

    def cell(draw: int, seed: int, scores: Tensor) -> CellScores:
        return CellScores(category.dataset, category.name, draw, seed, labels, scores.numpy())

    for seed in range(SEEDS):
        for draw in range(DRAWS):  # no normal image: the same in all draws
            yield (IMAGE, 0), cell(draw, seed, whole[seed])
    for (k, draw), items in supports.items():
        stage_maps = queries.stage_maps(pool.take([pool_items.index(item) for item in items]))
        residual = stage_maps.mean(1).clamp_min(SMALLEST).log()  # [B, N]
        yield (PATCH_MAX, k), cell(draw, 0, residual.amax(-1))
        untrained = PriorHead(store.backbone.stage_widths, ("patch", "whole"))
        nothing = untrained.raw_score(stage_maps, torch.zeros_like(residual), grid)
        yield (UNTRAINED, k), cell(draw, 0, nothing)
        for seed, one in enumerate(learned):
            extra = IMAGE_WEIGHT * whole[seed]
            photo = one.head.raw_score(stage_maps, maps[seed], grid)
            yield (BOTH, k), cell(draw, seed, (residual + PATCH_WEIGHT * maps[seed]).amax(-1) + extra)
            yield (TRAINED, k), cell(draw, seed, photo)
            yield (ADDED, k), cell(draw, seed, nothing + extra)
            yield (ADDED_BOTH, k), cell(draw, seed, photo + extra)


def table(tested: Sequence[Category], store: FeatureStore, learned: Sequence[Priors]) -> dict:
    """Kind of anomaly -> method -> K -> AUROC and gain over the rival, with intervals."""
    cells: dict[Key, list[CellScores]] = defaultdict(list)
    for category in tqdm(tested, "scoring"):
        for key, cell in scores_of(category, store, learned):
            cells[key].append(cell)
    found: dict = {kind: defaultdict(dict) for kind in KINDS}
    for kind, rows in found.items():
        own = {
            key: [c for c in some if (c.dataset in ONE_VS_ALL) == (kind == "other things")]
            for key, some in cells.items()
        }
        for (method, k), some in own.items():
            rows[method][f"K = {k}"] = {"auroc": list(auroc_interval(some))}
            if method in RIVAL:
                rows[method][f"K = {k}"]["gain"] = list(auroc_interval(some, own[RIVAL[method], k]))
    return found


def blocks() -> dict[Path, dict[str, str]]:
    """Page -> mark -> text, from the recorded file."""
    found = json.loads((RESULTS / "image_prior.json").read_text(encoding="utf-8"))

    shots = [f"K = {k}" for k in SHOTS]
    lines = ["| images | AUROC (95 % interval) | " + " | ".join(shots) + " |", "| --- " * 6 + "|"]
    for group in ("development", "real"):
        for kind, rows in found[group].items():
            for method, title in SHOWN.items():
                what, sign = ("gain", "+") if method in RIVAL else ("auroc", "")
                values = [with_interval(*rows[method][k][what], sign) for k in shots]
                lines.append("| " + " | ".join([f"{group}, {kind}", title, *values]) + " |")
    said = []
    for kind, title in {"defects": "Real defects", "other things": "Real images of other things"}.items():
        rows = found["real"][kind]
        alone = with_interval(*rows[IMAGE]["K = 0"]["auroc"])
        said.append(
            f"- **{title}.** Alone, without any normal image, the image prior has an AUROC of {alone}."
        )
        for method, text in {
            BOTH: "Together, the two priors change the AUROC of patch max by",
            ADDED: "Beside the detector's untrained residuals, the image prior changes AUROC by",
            TRAINED: "Beside the same residuals, the detector's own prior changes AUROC by",
        }.items():
            said.append(f"  - {text} {gains([rows[method][k]['gain'] for k in shots], SHOTS)}.")
    text = "\n".join(said) + "\n\n" + narrow("\n".join(lines))
    return {ROOT / "book" / "what_training_adds.md": {"image_prior": text}}


def measure(data: Path | None, cache: Path) -> None:
    torch.set_num_threads(1)
    store = FeatureStore(load_backbone("photo"), cache)
    auxiliary = load_world(AUXILIARY, **SIZES)
    learned = [learn(store, auxiliary, seed) for seed in range(SEEDS)]
    names = ("development", "development-scenes", "characters")
    tested = {"development": [c for name in names for c in load_photographs(name, **TESTED)]}
    if data:
        tested["real"] = [thinned(c) for load in real(data).tests.values() for c in load()]
    found: dict = {"environment": environment()}
    for group, categories in tested.items():
        found[group] = table(categories, store, learned)
        write_text(RESULTS / "image_prior.json", json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with real images in MVTec's layout")
    parser.add_argument("--cache", type=Path, default=Path("runs/image_prior"))
    parser.add_argument("--only", action="store_true", help="only the page's block, from the recorded file")
    options = parser.parse_args()
    if not options.only:
        measure(options.data, options.cache)
    for path, marks in blocks().items():
        write_text(path, filled(path, marks))


if __name__ == "__main__":
    main()
