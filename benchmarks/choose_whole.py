"""What is usual of a patch and of a whole image? python benchmarks/choose_whole.py [TOWER]

Tries values of `residual.OWN`, `USUAL`, `PLACE_USUAL` and `USUAL_VOTES`, and the size at which
`LiteHead` calls a whole image strange, on pictures that no evaluation world holds: defects of the
auxiliary world, of grey specimens, of cloudy panels and of photographs, and things that the tiny CLIP's
corpus leaves out: invented characters and silhouettes, one against five others, and mixtures of them.
Prompts are seen in more views. Nothing is trained: what is measured is the surprise of patches or whole
alone. Prints mean AUROC (in %) by set and writes benchmarks/results/choose_whole.json. TOWER is an
exported folder; without it, the embedded one.
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
from inctrl_lite.backbone import SUPPORT_AUGMENTATIONS, ImageFeatures, augmentation_count
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.defects import DEFECTS, Picture, damage
from inctrl_lite.data.drawing import box, canvas, cover, grid, noise, paint, photograph, pose
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.store import encode_items, encode_views
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc
from inctrl_lite.model import SupportSet
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

POOL, NORMAL, ANOMALOUS = 8, 10, 12  # images a category: prompts' pool, test normals, test anomalies
SHOTS = (2, 4, 8)
USUAL, PLACE_USUAL, VOTES = (0.03, 0.04, 0.06), (0.12, 0.16, 0.2), (2, 4, 8)
SLOPE, TIMES = 4.0, (1.25, 1.5, 2.0)
OWN = (0.0, residual.OWN, 0.75)
CHOSEN = residual.USUAL, residual.PLACE_USUAL, residual.USUAL_VOTES, 1.5  # with which OWN is tried
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


def category(name: str, normal: Callable[[int], np.ndarray], odd: Callable[[int], np.ndarray]) -> Category:
    items = [Item(normal(i), 0, f"{name}/{i}") for i in range(POOL + NORMAL)]
    odd_ones = [Item(odd(i), 1, f"{name}/odd/{i}") for i in range(ANOMALOUS)]
    return Category("development", name, "development", tuple(items[:POOL]), (*items[POOL:], *odd_ones))


def things(make: Callable, name: str, first: int, groups: int = 4, size: int = 6) -> Iterator[Category]:
    """One thing against the five others of its group, for three things of each group."""
    for group in range(groups):
        kin = [make(default_rng(0), f"{name} {first + size * group + i}") for i in range(size)]
        for c in range(3):
            others = kin[:c] + kin[c + 1 :]
            yield category(
                f"{name} {group} {c}",
                lambda i, kin=kin, c=c, group=group: picture(kin[c], group, c, i),
                lambda i, others=others, c=c, group=group: picture(others[i % len(others)], group, c, i, 1),
            )


def mixtures(make: Callable, name: str, first: int, groups: int = 3) -> Iterator[Category]:
    """Three things are normal and three are not, as where a data set's normal class has several kinds."""
    for group in range(groups):
        kin = [make(default_rng(0), f"{name} {first + 6 * group + i}") for i in range(6)]
        yield category(
            f"{name} mixture {group}",
            lambda i, kin=kin, group=group: picture(kin[i % 3], group, 7, i),
            lambda i, kin=kin, group=group: picture(kin[3 + i % 3], group, 7, i, 1),
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


def whole_image(
    query: ImageFeatures, prompt: SupportSet, patches: dict[float, Tensor]
) -> dict[str, Tensor]:
    """Scores of the whole alone, and of patches or whole for every setting."""
    shots, by_class, by_place = len(prompt.global_embedding), {}, {}
    for residual.USUAL_VOTES, residual.USUAL in product(VOTES, USUAL):
        found = residual.class_residual(query.global_embedding, prompt.global_embedding)
        by_class[residual.USUAL_VOTES, residual.USUAL] = (found + 1e-3).log()
    for residual.USUAL_VOTES, residual.PLACE_USUAL in product(VOTES, PLACE_USUAL):
        found = residual.place_residual(query.places, prompt.places, shots)
        by_place[residual.USUAL_VOTES, residual.PLACE_USUAL] = (found + 1e-3).log()
    ranked = {
        "class embedding, nearest prompt": by_class[VOTES[0], USUAL[0]][:, 0],
        "strangest places": by_place[VOTES[0], PLACE_USUAL[0]][:, 0],
    }
    for usual, place_usual, votes in product(USUAL, PLACE_USUAL, VOTES):
        ratios = [
            (far_usual[:, 0] - far_usual[:, 1])
            for far_usual in (by_class[votes, usual], by_place[votes, place_usual])
        ]
        sizes = {"class embedding": ratios[0], "both": sum(ratios) / 2}
        for (of, size), times in product(sizes.items(), TIMES):
            strange = (SLOPE * (size - math.log(times))).sigmoid()
            name = f"{of}, usual {usual} and {place_usual}, {votes} votes, above {times:g}"
            ranked[name] = 1 - (1 - patches[residual.OWN]) * (1 - strange)
            if of == "both" and (usual, place_usual, votes, times) == CHOSEN:
                for own in OWN:
                    ranked[f"both, own {own}"] = 1 - (1 - patches[own]) * (1 - strange)
    return ranked


@torch.no_grad()
def evaluate(backbone: Backbone, categories: list[Category], found: dict[str, list[float]]) -> None:
    """Append the AUROC of every setting, and of patches and whole alone, for every prompt."""
    for one in categories:
        features = encode_items(backbone, [*one.train, *one.test])
        views = encode_views(backbone, one.train)
        query, labels = features[POOL:], [item.label for item in one.test]
        for shots in SHOTS:
            for start in range(0, POOL, shots):
                rows = slice(start, start + shots)
                own_views = views[start * len(SUPPORT_AUGMENTATIONS) : (start + shots) * len(SUPPORT_AUGMENTATIONS)]
                prompt = SupportSet.of(features[rows], own_views)
                maps = residual.patch_residual_map(query.patches, prompt.patches)
                plain = residual.patch_residual_map(query.patches, features[rows].patches).amax(1)
                ranked, surprise = {"patch max": maps.amax(1), "patch max, one view": plain}, {}
                in_views = own_views.patches.unflatten(0, (shots, -1))[:, : augmentation_count(shots)]
                others = residual.leave_one_out_maps(features[rows].patches, in_views)
                for own in OWN:  # as in LiteHead
                    mean, deviation = residual.normal_residual_statistics(others, features.grid, own).unbind(-1)
                    largest = ((maps - mean) / (deviation + 1e-3)).amax(1)
                    ranked[f"patch max, own {own}"] = largest
                    surprise[own] = (largest / 4 - 1).sigmoid()
                ranked |= whole_image(query, prompt, surprise)
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
