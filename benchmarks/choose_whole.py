"""Constants of InCTRL-lite's training-free terms: python benchmarks/choose_whole.py [TOWER]

Tries values of `residual.LOCAL_WEIGHT`, `GLOBAL_PRIOR`, `REGION_PRIOR` and `PRIOR_WEIGHT`, and the ratio of
distances at which `LiteHead` gives a whole image a score of 1/2, on pictures that no evaluation world
holds: defects of the auxiliary world, of grey specimens, of cloudy panels and of photographs, and things
that the tiny CLIP's corpus leaves out: invented characters and silhouettes, one against five others, and
mixtures of them. Support sets are augmented. Nothing is trained: the scores of the patches and of the whole
image alone are measured. Prints mean AUROC (in %) by set and writes benchmarks/results/choose_whole.json.
TOWER is an exported folder; without it, the embedded one.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite import load_backbone, residual
from inctrl_lite.augment import augmentation_count
from inctrl_lite.backbones import Backbone, ImageFeatures
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.defects import DEFECTS, Picture, damage
from inctrl_lite.data.drawing import box, canvas, cover, grid, noise, paint, photograph, pose
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.encoder import Encoder
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc
from inctrl_lite.support import SupportSet
from inctrl_lite.tiny.corpus import (
    INVENTED_CHARACTERS,
    SILHOUETTES,
    SIZE,
    TISSUE_DEFECTS,
    Thing,
    organic,
    photographed,
    sign,
    silhouette,
    specimen,
)

POOL, NORMAL, ANOMALOUS = 8, 10, 12  # images a category: to draw from, test normals, test anomalies
SHOTS = (2, 4, 8)
GLOBAL, REGION, WEIGHTS = (0.03, 0.04, 0.06), (0.12, 0.16, 0.2), (2, 4, 8)
SLOPE, TIMES = 4.0, (1.25, 1.5, 2.0)
LOCAL = (0.0, residual.LOCAL_WEIGHT, 0.75)
CHOSEN = residual.GLOBAL_PRIOR, residual.REGION_PRIOR, residual.PRIOR_WEIGHT, 1.5  # with which LOCAL is tried
# photographs that the corpus does not hold: three of scikit-image, two of scikit-learn
PHOTOGRAPHS = (
    "chelsea.png",
    "coins.png",
    "gravel.png",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
PANEL_DEFECTS = ("crack", "scratch", "hole", "stain", "discoloration", "missing part", "speckle")


def picture(thing: Thing, *stream: int, faults: tuple[str, ...] = (), grey: bool = True) -> np.ndarray:
    """A photograph of a thing, damaged if `faults` are given."""
    rng = default_rng(stream)
    drawn = thing.draw(rng)
    return photograph(rng, damage(rng, drawn, faults, grey)[0] if faults else drawn.image)


def category(
    name: str, normal: Callable[[int], np.ndarray], anomalous: Callable[[int], np.ndarray]
) -> Category:
    items = [Item(normal(i), 0, f"{name}/{i}") for i in range(POOL + NORMAL)]
    broken = [Item(anomalous(i), 1, f"{name}/anomalous/{i}") for i in range(ANOMALOUS)]
    return Category("development", name, "development", tuple(items[:POOL]), (*items[POOL:], *broken))


def things(make: Callable, name: str, first: int, groups: int = 4, size: int = 6) -> Iterator[Category]:
    """One thing against the five others of its group, for three things of each group."""
    for group in range(groups):
        family = [make(default_rng(0), f"{name} {first + size * group + i}") for i in range(size)]
        for c in range(3):
            others = family[:c] + family[c + 1 :]
            yield category(
                f"{name} {group} {c}",
                lambda i, family=family, c=c, group=group: picture(family[c], group, c, i),
                lambda i, others=others, c=c, group=group: picture(others[i % len(others)], group, c, i, 1),
            )


def mixtures(make: Callable, name: str, first: int, groups: int = 3) -> Iterator[Category]:
    """Three things are normal and three are not, as where a data set's normal class has several kinds."""
    for group in range(groups):
        family = [make(default_rng(0), f"{name} {first + 6 * group + i}") for i in range(6)]
        yield category(
            f"{name} mixture {group}",
            lambda i, family=family, group=group: picture(family[i % 3], group, 7, i),
            lambda i, family=family, group=group: picture(family[3 + i % 3], group, 7, i, 1),
        )


def scans(count: int = 8) -> Iterator[Category]:
    """Grey specimens, sound and damaged."""
    for n in range(count):
        thing = (organic, specimen)[n % 2](default_rng([9, n]))
        yield category(
            f"scan {n}",
            lambda i, thing=thing, n=n: picture(thing, 9, n, i),
            lambda i, thing=thing, n=n: picture(thing, 9, n, i, 1, faults=TISSUE_DEFECTS),
        )


def panel(rng: np.random.Generator) -> Thing:
    """A grey panel, with seams, rings, specks or nothing on it: its clouds are others in every picture."""
    level, cloud, grain = rng.uniform(0.3, 0.65), rng.uniform(0.05, 0.15), rng.uniform(0.01, 0.05)
    octaves = {2: rng.uniform(0, 1), 4: 1.0, 8: rng.uniform(0.2, 1), 16: rng.uniform(0, 0.6)}
    kind, count = str(rng.choice(["seams", "rings", "specks", "plain"])), int(rng.integers(2, 7))
    ink, width, border = rng.choice([0.05, 0.9]), rng.uniform(0.01, 0.03), rng.uniform(0.85, 1.1)

    def draw(rng: np.random.Generator) -> Picture:
        x, y = pose(*grid(SIZE), 0.02 * rng.standard_normal(), 1.0, tuple(0.02 * rng.standard_normal(2)))
        glow = level * rng.uniform(0.85, 1.15) + cloud * noise(rng, SIZE, octaves)
        glow = glow + grain * noise(rng, SIZE, {32: 0.5, 64: 1.0})
        image = np.repeat(glow[..., None], 3, axis=-1)
        for i in range(count):
            if kind == "seams":
                image = paint(image, 0.7 * cover(np.abs(y + 1 - 2 * (i + 0.5) / count) - width), ink)
            if kind == "rings":
                image = paint(image, 0.5 * cover(np.abs(np.hypot(x, y) - (i + 0.5) / count) - width), ink)
        for a, b in rng.uniform(-1, 1, (12 if kind == "specks" else 0, 2)):
            image = paint(image, 0.5 * cover(np.hypot(x - a, y - b) - rng.uniform(0.02, 0.05)), ink)
        inside, background = cover(box(x, y, border, border)), canvas(SIZE, [0.03] * 3)
        return Picture(paint(background, inside, np.clip(image, 0, 1)), inside, background)

    return Thing("panel", kind, "panel", draw)


def damaged(things: list[Thing], faults: tuple[str, ...], grey: bool) -> Iterator[Category]:
    """Things, sound and damaged."""
    for n, thing in enumerate(things):
        stream = (30, len(things), n)
        yield category(
            f"{thing.family} {n}",
            lambda i, thing=thing, stream=stream: picture(thing, *stream, i),
            lambda i, thing=thing, stream=stream: picture(thing, *stream, i, 1, faults=faults, grey=grey),
        )


def development() -> dict[str, list[Category]]:
    return {
        "defects": load_world(AUXILIARY, train=POOL, normal=NORMAL, anomalous=ANOMALOUS)[::2],
        "scans": list(scans()),
        "panels": list(damaged([panel(default_rng([33, n])) for n in range(10)], PANEL_DEFECTS, True)),
        "photographs": list(
            damaged(
                [photographed(default_rng([31, n]), (PHOTOGRAPHS[n % 5],)) for n in range(15)],
                tuple(DEFECTS),
                False,
            )
        ),
        "characters": list(things(sign, "character", INVENTED_CHARACTERS + 10)),
        "silhouettes": list(things(silhouette, "silhouette", SILHOUETTES + 10)),
        "mixtures": [
            *mixtures(sign, "character", INVENTED_CHARACTERS + 100),
            *mixtures(silhouette, "silhouette", SILHOUETTES + 100),
        ],
    }


def whole_image(query: ImageFeatures, support: SupportSet, patches: dict[float, Tensor]) -> dict[str, Tensor]:
    """Scores of the whole image alone, and of patches or whole image for every setting."""
    by_embedding, by_region = {}, {}
    for residual.PRIOR_WEIGHT, residual.GLOBAL_PRIOR in product(WEIGHTS, GLOBAL):
        found = residual.global_distance(query.global_embedding, support.global_embedding)
        by_embedding[residual.PRIOR_WEIGHT, residual.GLOBAL_PRIOR] = log_pair(*found)
    for residual.PRIOR_WEIGHT, residual.REGION_PRIOR in product(WEIGHTS, REGION):
        found = residual.region_distance(query.regions.tokens, support.regions.tokens, support.shots)
        by_region[residual.PRIOR_WEIGHT, residual.REGION_PRIOR] = log_pair(*found)
    ranked = {
        "global embedding, nearest normal image": by_embedding[WEIGHTS[0], GLOBAL[0]][0],
        "worst regions": by_region[WEIGHTS[0], REGION[0]][0],
    }
    for one, other, weight in product(GLOBAL, REGION, WEIGHTS):
        ratios = [d - r for d, r in (by_embedding[weight, one], by_region[weight, other])]
        sizes = {"global embedding": ratios[0], "both": sum(ratios) / 2}
        for (of, size), times in product(sizes.items(), TIMES):
            score = (SLOPE * (size - math.log(times))).sigmoid()
            name = f"{of}, priors {one} and {other}, weight {weight}, ratio {times:g}"
            ranked[name] = 1 - (1 - patches[residual.LOCAL_WEIGHT]) * (1 - score)
            if of == "both" and (one, other, weight, times) == CHOSEN:
                for local in LOCAL:
                    ranked[f"both, local weight {local}"] = 1 - (1 - patches[local]) * (1 - score)
    return ranked


def log_pair(distance: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    return (distance + 1e-3).log(), (reference + 1e-3).log()


@torch.no_grad()
def evaluate(backbone: Backbone, categories: list[Category], found: dict[str, list[float]]) -> None:
    """Append the AUROC of every setting, and of patches and whole image alone, for every support set."""
    encoder = Encoder(backbone)
    for one in categories:
        features = encoder.encode_items([*one.train, *one.test])
        augmented = encoder.encode_augmented_items(one.train)
        query, labels, grid = features[POOL:], [item.label for item in one.test], features.map_grid
        for shots in SHOTS:
            for start in range(0, POOL, shots):
                rows = slice(start, start + shots)
                support = SupportSet.of(features[rows], augmented[rows])
                maps = residual.patch_residual_map(query.stages, support.stages, grid)
                plain = residual.patch_residual_map(query.stages, features[rows].stages, grid).amax(1)
                ranked, peaks = {"patch max": maps.amax(1), "patch max, not augmented": plain}, {}
                count = augmentation_count(shots)
                copies = augmented[rows].map(lambda tensor, count=count: tensor[:, :count])
                among = residual.leave_one_out_maps(features[rows].stages, grid, copies.stages).mean(1)
                for local in LOCAL:  # as in LiteHead
                    mean, std = residual.normal_residual_statistics(among, grid, local).unbind(-1)
                    largest = ((maps - mean) / (std + 1e-3)).amax(1)
                    ranked[f"patch max, local weight {local}"] = largest
                    peaks[local] = (largest / 4 - 1).sigmoid()
                ranked |= whole_image(query, support, peaks)
                for name, scores in ranked.items():
                    found[name].append(auroc(labels, scores.numpy()))


def main() -> None:
    backbone = load_backbone(*(f"local-dir:{folder}" for folder in sys.argv[1:2]))
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for name, categories in tqdm(development().items()):
        found: dict[str, list[float]] = defaultdict(list)
        evaluate(backbone, categories, found)
        for setting, values in found.items():
            table[setting][name] = round(100 * float(np.mean(values)), 2)
    for values in table.values():
        values["mean"] = round(float(np.mean(list(values.values()))), 2)
    result = {"environment": environment(), "mean AUROC, %": table}
    if not sys.argv[1:]:
        path = Path(__file__).parent / "results" / "choose_whole.json"
        write_text(path, json.dumps(result, indent=2) + "\n")
    for setting, values in sorted(table.items(), key=lambda row: -row[1]["mean"]):
        print(f"{setting:40}", *(f"{name}: {value:5.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
