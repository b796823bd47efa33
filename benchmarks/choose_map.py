"""What map does the photo detector show? python benchmarks/choose_map.py [--data FOLDER]

The map is residual * exp(weight * prior): it orders patches as the logarithm of the residual plus the
weighted prior does. Three things are chosen by AUPRO on one half of the development sets of photographs,
with the prior of the shipped detector: the weight; the residual (mean of the stages, their geometric mean,
or the middle stage alone); and whether the prior's mean over the image is taken away first. Then the
shipped map, with three priors from drawings, is compared with the same residual map without a prior: on the
other half and, with --data, once on the real categories that have masks. Writes
benchmarks/results/choose_map.json and a block of the photo detector's card and of
book/what_training_adds.md (--only: the texts alone, from the recorded file).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from inctrl_v2 import DRAWS, HEADS, Measured, pixel_intervals, pixel_metrics, resamples
from record import RESULTS, gains, with_interval
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from what_training_adds import real, thinned
from why_training_falls import filled

from inctrl_lite import AnomalyDetector
from inctrl_lite.baselines import Auxiliary, Images
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.evidence import Evidence
from inctrl_lite.files import write_text
from inctrl_lite.heads.prior import PriorHead
from inctrl_lite.metrics import CellScores
from inctrl_lite.prior import choose_patches, fit_direction, mask_on_grid
from inctrl_lite.store import FeatureStore

SHOTS = (1, 2, 4, 8)
WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
MEAN, GEOMETRIC, MIDDLE = "mean of the stages", "geometric mean", "middle stage"
ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "inctrl_lite" / "photo" / "MODEL_CARD.md", ROOT / "book" / "what_training_adds.md")
ROWS = {
    "residual map": "residual map",
    "the prior adds": "prior",
    "a prior of places alone adds": "places alone",
}
TESTS = {
    "development": "development categories that the choice did not see",
    "real": "categories of real images",
}


def candidates(
    evidence: Evidence, prior: Tensor, middle: int
) -> Iterator[tuple[tuple[str, bool, float], Tensor]]:
    """((residual, is the prior centred, weight), map [B, N]) of everything that is compared."""
    stages = evidence.stage_maps.clamp_min(1e-6)
    residuals = {
        MEAN: evidence.patch_map.clamp_min(1e-6),
        GEOMETRIC: stages.log().mean(1).exp(),
        MIDDLE: stages[:, middle],
    }
    for name, residual in residuals.items():
        for centred in (False, True):
            own = prior - prior.mean(-1, keepdim=True) if centred else prior
            for weight in WEIGHTS:
                yield (name, centred, weight), residual * (weight * own).exp()


@torch.no_grad()
def choose(categories: Sequence[Category], store: FeatureStore, head: PriorHead, draws: int = 3) -> dict:
    """Mean AUPRO of each candidate for each K."""
    found: dict[tuple, list[float]] = defaultdict(list)
    for category in tqdm(categories, "choosing"):
        metrics = pixel_metrics(category, store.backbone, np.ones((1, len(category.test))))
        queries = Images(category.test, store.backbone, store)
        for k in SHOTS:
            for draw in range(draws):
                normals = Images(draw_support(category, k, draw), store.backbone, store)
                evidence = queries.evidence(normals)
                prior = head.prior_map(evidence.query_stages, evidence.map_grid)
                for key, maps in candidates(evidence, prior, head.middle_stage):
                    found[*key, k].append(float(metrics(maps)[0, 1]))
    return {key: float(np.mean(values)) for key, values in found.items()}


@torch.no_grad()
def places_alone(categories: Sequence[Category], store: FeatureStore, seed: int = 0) -> PriorHead:
    """A prior that never sees damage: its "damaged" patches lie where the masks are, in normal images.

    What it adds to a map can be learned from the place of defects alone.
    """
    rng = np.random.default_rng(seed)
    head = PriorHead(store.backbone.stage_widths)
    tokens, labels = [], []
    for category in categories:
        stage = store.load(list(category.test)).stages[head.middle_stage]
        unit, normal = F.normalize(stage.tokens, dim=-1), np.flatnonzero(np.array(category.labels) == 0)
        for row, item in zip(unit, category.test, strict=True):
            covered = mask_on_grid(item, store.backbone.preprocessor, stage.grid)
            damaged, sound = choose_patches(covered, bool(item.label), rng)
            tokens += [unit[rng.choice(normal), damaged], row[sound]]
            labels += [torch.ones(len(damaged)), torch.zeros(len(sound))]
    direction, offset = fit_direction(torch.cat(tokens), torch.cat(labels).bool())
    head.direction.copy_(direction)
    head.offset.fill_(offset)
    return head


@torch.no_grad()
def compare(
    categories: Sequence[Category], store: FeatureStore, heads: Sequence[PriorHead], control: PriorHead
) -> dict[str, dict[str, list]]:
    """Value, low and high of pixel AUROC, AUPRO and F1-max for each K.

    Of the residual map; of what the prior adds to it; of what a prior that never sees damage adds to it; and
    of the difference of the last two.
    """
    found: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    for category in tqdm(categories, "comparing"):
        labels = np.array(category.labels)
        metrics = pixel_metrics(category, store.backbone, resamples(category.labels))
        queries = Images(category.test, store.backbone, store)
        for k in SHOTS:
            for draw in range(DRAWS):
                normals = Images(draw_support(category, k, draw), store.backbone, store)
                evidence = queries.evidence(normals)
                shown = {("residual map", 0): evidence.patch_map}
                for name, number, head in [("map", i, h) for i, h in enumerate(heads)] + [
                    ("control", 0, control)
                ]:
                    prior = head.prior_map(evidence.query_stages, evidence.map_grid)
                    shown[name, number] = head.weighted_map(evidence.patch_map, prior)
                for (name, number), maps in shown.items():
                    cell = CellScores(
                        category.dataset, category.name, draw, number, labels, np.zeros(len(labels))
                    )
                    found[name, k].append(Measured(cell, False, metrics(maps)))
    return {
        f"K = {k}": {
            "residual map": pixel_intervals(found["residual map", k]).tolist(),
            "prior": pixel_intervals(found["map", k], found["residual map", k]).tolist(),
            "places alone": pixel_intervals(found["control", k], found["residual map", k]).tolist(),
            "prior minus places alone": pixel_intervals(found["map", k], found["control", k]).tolist(),
        }
        for k in SHOTS
    }


def measure(data: Path | None) -> dict[str, object]:
    """Choose, then compare the shipped map on what the choice did not see."""
    torch.set_num_threads(1)
    detector = AnomalyDetector.from_pretrained("photo")
    store = FeatureStore(detector.backbone)
    development = load_photographs("development", train=12, normal=16, anomalous=16)
    found = choose(development[1::2], store, detector.model.head)
    keys = dict.fromkeys(key[:3] for key in found)
    means = {key: float(np.mean([found[*key, k] for k in SHOTS])) for key in keys}
    rows = [
        {"residual": name, "centred": centred, "weight": weight, "AUPRO": round(value, 4)}
        for (name, centred, weight), value in means.items()
    ]
    drawn = load_world(AUXILIARY)
    auxiliary = Auxiliary(drawn, store.backbone, store, progress=True)
    heads = [InCTRLMethod("own").train(auxiliary, seed).model.head for seed in range(HEADS)]
    store.encode([item for category in drawn for item in category.test], progress=True)
    control = places_alone(drawn, store)
    tests = {"development": development[::2]}
    if data:
        loaded = [category for load in real(data).tests.values() for category in load()]
        masked = [c for c in loaded if all(item.mask is not None for item in c.test if item.label)]
        tests["real"] = [thinned(c, 60) for c in masked]
    return {
        "environment": environment(),
        "chosen on": [c.name for c in development[1::2]],
        "choice": rows,
        "categories": {name: [c.name for c in categories] for name, categories in tests.items()},
        **{name: compare(categories, store, heads, control) for name, categories in tests.items()},
    }


def blocks() -> dict[Path, dict[str, str]]:
    """Page -> mark -> text, from the recorded file."""
    found = json.loads((RESULTS / "choose_map.json").read_text(encoding="utf-8"))
    lines = ["| images | AUPRO (95 % interval) | " + " | ".join(f"K = {k}" for k in SHOTS) + " |"]
    lines.append("|---" * (2 + len(SHOTS)) + "|")
    said = []
    for name, title in TESTS.items():
        of = [found[name][f"K = {k}"] for k in SHOTS]
        for row, part in ROWS.items():
            sign = "" if part == "residual map" else "+"
            text = " | ".join(with_interval(*one[part][1], sign) for one in of)
            lines.append(f"| {name} | {row} | {text} |")
        said.append(
            f"on {len(found['categories'][name])} {title} by {gains([one['prior'][1] for one in of], SHOTS)}"
        )
    looks = ", and on real images by ".join(
        gains([found[name][f"K = {k}"]["prior minus places alone"][1] for k in SHOTS], SHOTS)
        for name in TESTS
    )
    short = f"The learned prior changes the AUPRO of the map {said[0]}, and {said[1]}."
    text = f"{short}\n\n"
    text += 'The control is a prior of the same kind that never sees damage: its "damaged" patches come from '
    text += "normal images, at the places of the masks. The learned prior differs from it on the development "
    text += f"categories by {looks}.\n\n"
    text += "\n".join(lines)
    return {path: {"map": text} for path in PAGES} | {ROOT / "README.md": {"map": short}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with real images in MVTec's layout")
    parser.add_argument("--only", action="store_true", help="only the texts, from the recorded file")
    options = parser.parse_args()
    if not options.only:
        found = measure(options.data)
        write_text(RESULTS / "choose_map.json", json.dumps(found, indent=2) + "\n")
    for path, marks in blocks().items():
        write_text(path, filled(path, marks))


if __name__ == "__main__":
    main()
