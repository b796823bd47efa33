"""Are sentences a better prior for the photo tower than learned vectors? python benchmarks/words_for_photo.py

The photo tower has no text encoder. Here a small one (open_clip's text transformer, 2 blocks of width 128)
is trained beside the locked image tower, in the tower's own space of 1280 numbers, from two sources: the
thousand class names of ImageNet with the tower's own classifier vectors; and InCTRL's sentences ("a photo of
a damaged ...", "a photo of a flawless ...") for the categories of an auxiliary set, with the embeddings of
its images and, where masks are known, of its patches. Its rival has the same data, loss and space, but one
free vector for "normal" and one for "anomalous" in the place of sentences.

Measured on the development sets of photographs, whose names and images neither has seen: the prior alone
(K = 0), and added to the raw score of the untrained head at K = 1, 2, 4, 8, with the best weight for each of
the two. Six draws, three seeds. These sets are for choices: nothing of the evaluation sets is used. Writes
benchmarks/results/words_for_photo.json and a block of book/what_training_adds.md (--only: the block alone,
from the recorded file).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip import SimpleTokenizer
from open_clip.transformer import TextTransformer
from record import RESULTS, narrow, with_interval
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from why_training_falls import filled

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone
from inctrl_lite.backbones.photo import VARIANTS, weights_file
from inctrl_lite.baselines import METHODS, Auxiliary, Images
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.data.worlds import AUXILIARY, load_world
from inctrl_lite.environment import environment
from inctrl_lite.files import write_text
from inctrl_lite.metrics import CellScores, auroc_interval
from inctrl_lite.prior import COVERED, mask_on_grid
from inctrl_lite.prompts import TEMPLATES, text_prompts
from inctrl_lite.store import FeatureStore

ROOT = Path(__file__).resolve().parents[1]
SHOTS, DRAWS, SEEDS = (1, 2, 4, 8), 6, 3
STEPS, BATCH, RATE, DECAY, SCALE = 200, 256, 2e-3, 0.1, 30.0
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
WORDS, VECTORS = "sentences", "learned vectors"
READ = ("image", "mean of patches", "largest patch")


@dataclass(frozen=True)
class Encoded:
    """Images in the space of the classifier.

    Attributes:
        images: [I, D]; patches: [I, P, D]; labels: [I]; damaged: share of a patch that is damaged [I, P].
        category: index of each image's category [I].
    """

    images: Tensor
    patches: Tensor
    labels: Tensor
    damaged: Tensor
    category: Tensor
    names: tuple[str, ...]


@torch.inference_mode()
def encode(categories: Sequence[Category], backbone: Backbone) -> Encoded:
    """Pooled embedding and the last map before pooling, 7 x 7 patches, of all test images."""
    images, patches, damaged, labels, numbers = [], [], [], [], []
    for number, category in enumerate(tqdm(categories, "encoding")):
        for batch in batches(category.test, 16):
            x = torch.stack([backbone.preprocessor(load_image(item.image)) for item in batch])
            last = backbone.visual.forward_features(x.contiguous(memory_format=torch.channels_last))
            images.append(last.mean((2, 3)))
            patches.append(last.flatten(2).transpose(1, 2))  # [B, D, 7, 7] -> [B, 49, D]
        for item in category.test:
            covered = mask_on_grid(item, backbone.preprocessor, (7, 7))
            damaged.append(
                covered if item.mask is not None or not item.label else torch.full((49,), torch.nan)
            )
            labels.append(item.label)
            numbers.append(number)
    names = tuple(category.name for category in categories)
    whole, parts = torch.cat(images), torch.cat(patches)
    return Encoded(whole, parts, torch.tensor(labels), torch.stack(damaged), torch.tensor(numbers), names)


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def classifier() -> Tensor:
    """Vectors of ImageNet's thousand classes, as the tower's weights bring them: [1000, D]."""
    state = torch.load(weights_file(VARIANTS["photo"]), weights_only=True)
    return next(value for value in state.values() if value.shape == (1000, 1280))


class Sentences(nn.Module):
    """The small text tower."""

    def __init__(self, dim: int):
        super().__init__()
        self.tokenizer = SimpleTokenizer(context_length=24)
        self.tower = TextTransformer(24, 49408, width=128, heads=4, layers=2, output_dim=dim)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        return F.normalize(self.tower(self.tokenizer(list(sentences))), dim=-1)

    def prototypes(self, names: Sequence[str], rng: np.random.Generator | None) -> Tensor:
        """Normal and anomalous sentence of each category [C, 2, D]: one at random, or the mean of all."""
        found = []
        for name in names:
            both = text_prompts(name)
            if rng is not None:
                both = tuple([one[rng.integers(len(one))]] for one in both)
            found.append(torch.stack([F.normalize(self.encode(one).mean(0), dim=-1) for one in both]))
        return torch.stack(found)


class Vectors(nn.Module):
    """One free vector for "normal" and one for "anomalous", the same for all categories."""

    def __init__(self, dim: int):
        super().__init__()
        self.both = nn.Parameter(torch.randn(2, dim) / dim**0.5)

    def prototypes(self, names: Sequence[str], rng: np.random.Generator | None) -> Tensor:
        return F.normalize(self.both, dim=-1).expand(len(names), 2, -1)


def train(kind: str, data: Encoded, seed: int) -> tuple[nn.Module, Tensor]:
    """A text tower or two vectors, and the mean embedding that is taken from all images first."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    dim = data.images.shape[1]
    centre = data.images.mean(0)
    model = (Sentences if kind == WORDS else Vectors)(dim)
    targets, info = F.normalize(classifier(), dim=-1), ImageNetInfo()
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    images, patches = (F.normalize(x - centre, dim=-1) for x in (data.images, data.patches))
    for _ in tqdm(range(STEPS), f"{kind}, seed {seed}"):
        loss = torch.zeros(())
        if kind == WORDS:  # class names
            rows = rng.integers(1000, size=64)
            names = [rng.choice(info.index_to_description(int(r)).split(", ")) for r in rows]
            texts = [str(rng.choice(TEMPLATES)).format(name) for name in names]
            loss = loss + F.cross_entropy(SCALE * model.encode(texts) @ targets.T, torch.tensor(rows))
        chosen = rng.choice(len(data.names), size=min(12, len(data.names)), replace=False)
        both = model.prototypes([data.names[c] for c in chosen], rng)  # [C, 2, D]
        where = torch.isin(data.category, torch.tensor(chosen))
        rows = torch.from_numpy(rng.permutation(torch.nonzero(where)[:, 0].numpy())[:BATCH])
        place = torch.tensor([list(chosen).index(c) for c in data.category[rows].tolist()])
        mine = both[place]  # [B, 2, D]
        loss = loss + F.cross_entropy(
            SCALE * torch.einsum("bd,bkd->bk", images[rows], mine), data.labels[rows]
        )
        if kind == WORDS:  # which of the batch's categories and states an image shows
            logits = SCALE * images[rows] @ both.flatten(0, 1).T
            loss = loss + F.cross_entropy(logits, 2 * place + data.labels[rows])
        of_patches = SCALE * torch.einsum("bpd,bkd->bpk", patches[rows], mine)
        covered = data.damaged[rows]
        sure = (covered > COVERED) | (covered == 0)
        weights = torch.tensor([1.0, 4.0])  # few patches are damaged
        loss = loss + F.cross_entropy(of_patches[sure], (covered[sure] > COVERED).long(), weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval(), centre


@torch.inference_mode()
def prior(model: nn.Module, centre: Tensor, data: Encoded) -> dict[str, Tensor]:
    """How anomalous each image looks by itself, read in three ways: [I]."""
    both = model.prototypes(data.names, None)[data.category]  # [I, 2, D]
    difference = both[:, 1] - both[:, 0]
    images, patches = (F.normalize(x - centre, dim=-1) for x in (data.images, data.patches))
    by_patch = torch.einsum("ipd,id->ip", patches, difference)
    return {
        "image": (images * difference).sum(-1),
        "mean of patches": by_patch.mean(-1),
        "largest patch": by_patch.amax(-1),
    }


def residual_scores(
    categories: Sequence[Category], backbone: Backbone
) -> dict[tuple[int, int], list[np.ndarray]]:
    """Raw scores of the untrained head for each (K, draw), category by category."""
    method = METHODS["InCTRL-lite, untrained"].make()
    method.train(Auxiliary(categories[:1], backbone, FeatureStore(backbone)), 0)
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for category in tqdm(categories, "residuals"):
        pool, queries = Images(category.train, backbone), Images(category.test, backbone)
        for k in SHOTS:
            for draw in range(DRAWS):
                rows = [category.train.index(item) for item in draw_support(category, k, draw)]
                method.fit(pool.take(rows), category.name)
                scores = method.score(queries).scores.double()
                raw = torch.logit(scores, 1e-9) / method.model.head.config.steepness
                found.setdefault((k, draw), []).append(raw.numpy())
    return found


def cells(
    categories: Sequence[Category], values: Sequence[Sequence[np.ndarray]], draws: int
) -> list[CellScores]:
    """Scores of `values[draw * SEEDS + seed][category]` as cells."""
    return [
        CellScores(c.dataset, c.name, draw, seed, np.array(c.labels), values[draw * SEEDS + seed][i])
        for draw in range(draws)
        for seed in range(SEEDS)
        for i, c in enumerate(categories)
    ]


def study(
    auxiliary: Encoded, tested: Encoded, categories: Sequence[Category], raw: dict
) -> dict[str, object]:
    """Both priors, each read in three ways, alone and beside the residuals."""
    priors: dict[str, list[dict[str, list[np.ndarray]]]] = {}
    for kind in (VECTORS, WORDS):
        for seed in range(SEEDS):
            found = prior(*train(kind, auxiliary, seed), tested)
            ends = torch.bincount(tested.category).cumsum(0)[:-1].tolist()
            split = {read: np.split(values.double().numpy(), ends) for read, values in found.items()}
            priors.setdefault(kind, []).append(split)
    result: dict[str, object] = {}
    alone = {
        (kind, read): cells(categories, [one[read] for one in seeds], 1)
        for kind, seeds in priors.items()
        for read in READ
    }
    best = {kind: max(READ, key=lambda r: auroc_interval(alone[kind, r])[0]) for kind in priors}  # noqa: B023
    for (kind, read), one in alone.items():
        result[f"{kind}, {read}, K = 0"] = list(auroc_interval(one))
    result["sentences minus vectors, K = 0"] = list(
        auroc_interval(alone[WORDS, best[WORDS]], alone[VECTORS, best[VECTORS]])
    )
    for k in SHOTS:
        joined = {}
        for kind, seeds in priors.items():
            for read in READ:
                for weight in WEIGHTS:
                    values = [
                        [
                            raw[k, draw][i] + weight * one[read][i] / np.concatenate(one[read]).std()
                            for i in range(len(categories))
                        ]
                        for draw in range(DRAWS)
                        for one in seeds
                    ]
                    joined[kind, read, weight] = cells(categories, values, DRAWS)
        means = {key: auroc_interval(one)[0] for key, one in joined.items()}
        top = {kind: max((key for key in means if key[0] == kind), key=means.__getitem__) for kind in priors}
        nothing = joined[VECTORS, "image", 0.0]
        result[f"untrained, K = {k}"] = list(auroc_interval(nothing))
        for kind, key in top.items():
            result[f"{kind} added, K = {k}"] = {
                "read": key[1], "weight": key[2], "gain": list(auroc_interval(joined[key], nothing))
            }  # fmt: skip
        result[f"sentences minus vectors, K = {k}"] = list(
            auroc_interval(joined[top[WORDS]], joined[top[VECTORS]])
        )
    return result


def blocks() -> dict[Path, dict[str, str]]:
    """Page -> mark -> text, from the recorded file."""
    found = json.loads((RESULTS / "words_for_photo.json").read_text(encoding="utf-8"))

    shots = [f"K = {k}" for k in SHOTS]
    lines = [
        "| auxiliary set | prior | " + " | ".join(["alone, K = 0", *(f"added, {k}" for k in shots)]) + " |"
    ]
    lines.append("| --- " * (3 + len(shots)) + "|")
    for name in ("photographs", "drawn"):
        of = found[name]
        for kind in (VECTORS, WORDS):
            best = max((of[f"{kind}, {read}, K = 0"] for read in READ), key=lambda values: values[0])
            row = [
                name,
                kind,
                with_interval(*best),
                *(with_interval(*of[f"{kind} added, {k}"]["gain"], "+") for k in shots),
            ]
            lines.append("| " + " | ".join(row) + " |")
        row = [with_interval(*of[f"sentences minus vectors, {k}"], "+") for k in ["K = 0", *shots]]
        lines.append(f"| {name} | sentences minus vectors | " + " | ".join(row) + " |")
    return {ROOT / "book" / "what_training_adds.md": {"words": narrow("\n".join(lines))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="store_true", help="only the page's block, from the recorded file")
    if not parser.parse_args().only:
        measure()
    for path, marks in blocks().items():
        write_text(path, filled(path, marks))


def measure() -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("photo")
    sizes = {"train": 12, "normal": 16, "anomalous": 16}
    categories = load_photographs("development", **sizes)
    tested, raw = encode(categories, backbone), residual_scores(categories, backbone)
    sets = {
        "photographs": load_photographs("auxiliary", train=1),
        "drawn": load_world(AUXILIARY, train=1, normal=12, anomalous=12),
    }
    found: dict[str, object] = {"environment": environment(), "steps": STEPS, "categories": len(categories)}
    for name, trained_on in sets.items():
        found[name] = study(encode(trained_on, backbone), tested, categories, raw)
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_text(Path(RESULTS / "words_for_photo.json"), json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
