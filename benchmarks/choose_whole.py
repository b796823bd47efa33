"""What is usual of a whole image? python benchmarks/choose_whole.py [TOWER]

Tries values of `residual.USUAL` and `USUAL_VOTES`, and the sizes at which `LiteHead` calls a whole image
strange, on pictures that no evaluation world holds: defects of the auxiliary world, defects of grey
specimens, and things that the tiny CLIP's corpus leaves out: invented characters and silhouettes, one against
five others. Nothing is trained: what is measured is the surprise of patches or whole alone. Prints mean AUROC
(in %) by set and writes benchmarks/results/choose_whole.json. TOWER is an exported folder; without it, the
embedded one.
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
from tqdm.auto import tqdm

from inctrl_lite import Backbone, residual
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.defects import damage
from inctrl_lite.data.drawing import photograph
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.features import encode_items
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc
from inctrl_lite.model import NormalPrompt
from inctrl_lite.tiny.corpus import (
    INVENTED_CHARACTERS,
    SILHOUETTES,
    TISSUE_DEFECTS,
    Thing,
    organic,
    sign,
    silhouette,
    specimen,
)

POOL, NORMAL, ANOMALOUS = 8, 10, 12  # images a category: prompts' pool, test normals, test anomalies
SHOTS = (2, 4, 8)
USUAL, VOTES = (0.02, 0.04, 0.06, 0.08), (0, 2, 4, 8)
SLOPE, TIMES = (2.0, 4.0, 6.0), (1.25, 1.5, 2.0)


def picture(thing: Thing, *stream: int, faults: tuple[str, ...] = ()) -> np.ndarray:
    """A photograph of a thing, damaged if `faults` are given."""
    rng = default_rng(stream)
    drawn = thing.draw(rng)
    return photograph(rng, damage(rng, drawn, faults, grey=True)[0] if faults else drawn.image)


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


def development() -> dict[str, list[Category]]:
    return {
        "defects": load_world(AUXILIARY, train=POOL, normal=NORMAL, anomalous=ANOMALOUS)[::2],
        "scans": list(scans()),
        "characters": list(things(sign, "character", INVENTED_CHARACTERS + 10)),
        "silhouettes": list(things(silhouette, "silhouette", SILHOUETTES + 10)),
        "mixtures": [
            *mixtures(sign, "character", INVENTED_CHARACTERS + 100),
            *mixtures(silhouette, "silhouette", SILHOUETTES + 100),
        ],
    }


@torch.no_grad()
def evaluate(backbone: Backbone, categories: list[Category], found: dict[str, list[float]]) -> None:
    """Append the AUROC of every setting, and of patches and whole alone, for every prompt."""
    for one in categories:
        features = encode_items(backbone, [*one.train, *one.test])
        query, labels = features[POOL:], [item.label for item in one.test]
        for shots in SHOTS:
            for start in range(0, POOL, shots):
                prompt = NormalPrompt.of(features[start : start + shots])
                largest = residual.patch_residual_map(query.patches, prompt.patches).amax(1)
                mean, deviation = prompt.spread
                patches = ((largest - mean) / (deviation + 1e-3) / 4 - 1).sigmoid()  # as in LiteHead
                ranked = {"patch max": largest}
                for residual.USUAL, residual.USUAL_VOTES in product(USUAL, VOTES):
                    far, usual = residual.class_residual(query.cls, prompt.cls).unbind(-1)
                    ranked["class embedding, nearest prompt"] = far
                    for slope, times in product(SLOPE, TIMES):
                        size = (far + 1e-3).log() - (usual + 1e-3).log() - math.log(times)
                        name = (
                            f"usual {residual.USUAL}, {residual.USUAL_VOTES} votes, {slope:g} above {times:g}"
                        )
                        ranked[name] = 1 - (1 - patches) * (1 - (slope * size).sigmoid())
                for name, scores in ranked.items():
                    found[name].append(auroc(labels, scores.numpy()))


def main() -> None:
    backbone = Backbone.load(*(f"local-dir:{folder}" for folder in sys.argv[1:2]))
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
