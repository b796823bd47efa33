"""Pretrain the tiny CLIP from nothing: `python -m inctrl_lite.tiny.pretrain --out runs/tiny`.

Three runs, one after the other (`RECIPES`). The first starts from a whitened patch embedding and trains on
small crops, then on whole pictures. The others start from what the one before exported and train on whole
pictures of a new corpus, two families a batch, so that things have rivals that look like them. The third
adds pieces of photographs and a crowd of pairs, seen in part, in which each picture looks for its other; it
exports a mean of the weights that it began and ended with. Each draws its corpus once and exports an
open_clip folder. Killed at any moment, the same command goes on from the last checkpoint, to the same
weights. `--runs third --start FOLDER` makes one run from any exported folder; `--quick` is a run of a few
minutes (`QUICK`) instead.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import PatchDropout
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_text, write_whole
from inctrl_lite.prompts import text_prompts
from inctrl_lite.tiny.corpus import GRID, MAKERS, SHARES, SIZE, draw_sample, photograph_file

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's, which every open_clip transform knows
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, WIDTH, DEPTH, HEAD_WIDTH, JOINT = 8, 128, 6, 32, 128
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS, CONTEXT = 48, 3, 2, 32
TAPS = (3, 4, 5)  # blocks that InCTRL reads: Backbone's default for a depth of 6
VOCABULARY, END_OF_TEXT = 49408, 49407
CROWD_KEEPS = 0.4  # share of the patches that are seen of a crowd's pictures


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run's weights, but for those that it starts from.

    Attributes:
        shares: what the corpus is made of, key of `corpus.SHARES`.
        triplets: size of the corpus; the last `held_out` are for watching only.
        crop_steps, crop_size, crop_batch: first phase, on crops (pixels a side; triplets a step).
        whole_steps, whole_batch: second phase, on whole pictures.
        kin_steps: third phase: whole pictures, each half of a batch from one family, so that a thing has
            rivals that look like it.
        crowd: pairs a step, in the third phase, of which each picture has to find the other among those of
            all the others, from a part of its patches (`CROWD_KEEPS`). 0: no crowd.
        kept: share of the weights that the run started from in those that it exports; 0: none.
        learning_rate: peak of the first phase; the others have half of it.
        seed: of corpus, weights and batches.
    """

    shares: str = "first"
    triplets: int = 16000
    held_out: int = 400
    crop_steps: int = 10000
    crop_size: int = 48
    crop_batch: int = 24
    whole_steps: int = 1600
    whole_batch: int = 8
    kin_steps: int = 0
    crowd: int = 0
    kept: float = 0.0
    learning_rate: float = 1e-3
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In order."""
        half = self.learning_rate / 2
        return (
            Phase("crops", self.crop_steps, self.crop_size, self.crop_batch, self.learning_rate),
            Phase("whole", self.whole_steps, SIZE, self.whole_batch, half),
            Phase("kin", self.kin_steps, SIZE, self.whole_batch, half),
        )


RECIPES = {
    "first": Recipe(),
    "second": Recipe("second", crop_steps=0, whole_steps=0, kin_steps=5500, seed=1),
    "third": Recipe(
        "third",
        triplets=10000,
        crop_steps=0,
        whole_steps=0,
        kin_steps=2200,
        whole_batch=6,
        crowd=20,
        kept=0.5,
        seed=3,
    ),
}
# `--quick`, to see the code learn: 600 steps in 200 s of a busy core (AMD EPYC), after the drawing. Held-out
# contrastive loss 3.90 at the start, 3.54 after 100 steps, 3.08 at the end; chance is ln 40 = 3.69.
QUICK = Recipe(triplets=1200, held_out=200, crop_steps=600, whole_steps=0)


class Phase(NamedTuple):
    """A stretch of a run: `steps` steps on `batch` triplets of `size` pixels a side."""

    name: str
    steps: int
    size: int
    batch: int
    learning_rate: float


# --- the corpus on disk ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Corpus:
    """All triplets, field by field as in `Sample`: images [n, 3, S, S, 3], coverage [n, 15, 15], ..."""

    images: np.ndarray
    coverage: np.ndarray
    captions: list[list[str]]
    families: list[str]
    identities: list[list[str]]


def _draw_part(folder: str, start: int, stop: int, recipe: Recipe) -> list[tuple]:
    """Draw triplets start..stop into the shared arrays; returns what is not an array."""
    images = np.load(f"{folder}/images.npy", mmap_mode="r+")
    coverage = np.load(f"{folder}/coverage.npy", mmap_mode="r+")
    rest = []
    for i in range(start, stop):
        sample = draw_sample(recipe.seed, i, recipe.shares)
        images[i], coverage[i] = sample.images, sample.coverage
        rest.append((sample.captions, sample.family, sample.identities))
    return rest


def load_corpus(folder: Path, recipe: Recipe, part: int = 250) -> Corpus:
    """The corpus of a recipe, drawn on all cores at the first call and read from disk afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    n, texts = recipe.triplets, folder / "texts.json"
    if not texts.exists():
        shapes = {"images": ((n, 3, SIZE, SIZE, 3), np.uint8), "coverage": ((n, GRID, GRID), np.float16)}
        for name, (shape, dtype) in shapes.items():
            np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
        with ProcessPoolExecutor() as pool:
            jobs = [
                pool.submit(_draw_part, str(folder), start, min(n, start + part), recipe)
                for start in range(0, n, part)
            ]
            rest = [row for job in jobs for row in job.result()]
        write_text(texts, json.dumps(rest))
    captions, families, identities = map(list, zip(*json.loads(texts.read_text()), strict=True))
    images = np.load(folder / "images.npy", mmap_mode="r")
    if len(images) != n:
        raise InctrlError(f"{folder} holds a corpus of {len(images)} triplets, not {n}: choose another --out")
    coverage = np.load(folder / "coverage.npy").astype(np.float32)
    return Corpus(images, coverage, captions, families, identities)


# --- words -------------------------------------------------------------------------------------------


class CompactVocabulary:
    """CLIP's tokenizer with only the token rows that training uses.

    0 padding, 1 any other token, then the used ones in CLIP's order, so that the end of text keeps the
    highest number, which is where CLIP reads a sentence's embedding.
    """

    def __init__(self, sentences: list[str]):
        self.tokenize = SimpleTokenizer(context_length=CONTEXT)
        tokens = self.tokenize(sentences)
        self.ids = sorted(set(tokens.unique().tolist()) - {0})
        self.compact = torch.ones(VOCABULARY, dtype=torch.long)
        self.compact[self.ids] = torch.arange(2, len(self.ids) + 2)

    def __len__(self) -> int:
        return len(self.ids) + 2

    def __call__(self, sentences: list[str]) -> Int[Tensor, "P T"]:
        tokens = self.tokenize(sentences)
        padding = (tokens == END_OF_TEXT).cumsum(1).bool() & (tokens != END_OF_TEXT)
        return self.compact[tokens].masked_fill(padding, 0)

    def select(self, table: Float[Tensor, "49408 W"]) -> Float[Tensor, "V W"]:
        """The rows in use of a full table: `expand` backwards."""
        unseen = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, torch.tensor([0, *self.ids]), False)
        return table[[0, int(unseen.nonzero()[0]), *self.ids]]

    def expand(self, rows: Float[Tensor, "V W"]) -> Float[Tensor, "49408 W"]:
        """The full embedding table: tokens never seen share row 1, which training feeds too."""
        table = rows[1].repeat(VOCABULARY, 1)
        table[self.ids], table[0] = rows[2:], rows[0]
        return table


# --- the model ---------------------------------------------------------------------------------------


def model_config(image_size: int = SIZE, vocabulary: int = VOCABULARY) -> dict:
    """The architecture, as open_clip writes it down."""
    return {
        "embed_dim": JOINT,
        "vision_cfg": {
            "image_size": image_size,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": DEPTH,
            "head_width": HEAD_WIDTH,
            "mlp_ratio": 4.0,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocabulary,
            "width": TEXT_WIDTH,
            "heads": TEXT_HEADS,
            "layers": TEXT_DEPTH,
        },
    }


def build(image_size: int, vocabulary: int) -> CLIP:
    """A plain open_clip CLIP with random weights."""
    config = model_config(image_size, vocabulary)
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    return CLIP(config["embed_dim"], vision, text)


def resize_positions(
    state: dict[str, Tensor], image_size: int, key: str = "visual.positional_embedding"
) -> dict[str, Tensor]:
    """The state dict with position embeddings interpolated to another image size."""
    old, side = state[key], image_size // PATCH
    patches = old[1:].reshape(1, math.isqrt(len(old) - 1), -1, WIDTH).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, (side, side), mode="bicubic", align_corners=False)
    return state | {key: torch.cat([old[:1], resized[0].flatten(1).T])}


@torch.no_grad()
def whiten_patch_embedding(clip: CLIP, images: Float[Tensor, "B 3 H W"], power: float = 0.3) -> None:
    """Start the patch embedding as a (partly) whitened PCA of image patches instead of noise.

    Principal directions scaled by eigenvalue ** -power, then a random rotation so that no channel is
    special. Half the variance of raw patches is their mean grey; whitening lets fine differences count.
    """
    weight = clip.visual.conv1.weight
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    variance, direction = torch.linalg.eigh(torch.cov(patches.T))
    variance, direction = variance.flip(0)[: len(weight)], direction.flip(1)[:, : len(weight)]
    rotation = torch.linalg.qr(torch.randn(len(weight), len(weight)))[0]
    weight.copy_((rotation @ (direction * (variance + 0.02) ** -power).T).view_as(weight))


# --- views -------------------------------------------------------------------------------------------


def normalise(images: UInt8[Tensor, "*b S S 3"]) -> Float[Tensor, "*b 3 S S"]:
    """Bytes to what the tower sees."""
    return (images.movedim(-1, -3).float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )


def crop_windows(
    coverage: Float[Tensor, "n G G"], whole: Tensor, size: int, generator: torch.Generator
) -> Float[Tensor, "n 2 3"]:
    """One window a triplet, as affine maps: most at native scale around the defect, some of the whole."""
    n = len(coverage)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    native = size / SIZE
    zoom = torch.where(
        (torch.rand(n, generator=generator) < 0.35) | whole, uniform(0.8, 1.0), uniform(0.75, 1.3) * native
    )
    zoom = zoom if size < SIZE else uniform(0.75, 1.0)
    patch = torch.multinomial(coverage.flatten(1) + 1e-4, 1, generator=generator)[:, 0]
    place = torch.stack([patch % GRID, patch // GRID], 1).add(0.5).mul(2 / GRID).sub(1)
    place = place + (torch.rand(n, 2, generator=generator) - 0.5) * zoom[:, None] * 1.2
    place = torch.minimum(torch.maximum(place, zoom[:, None] - 1), 1 - zoom[:, None])
    flip = torch.where(
        (torch.rand(n, generator=generator) < 0.5) & ~whole, -1.0, 1.0
    )  # letters stay as they are
    window = torch.zeros(n, 2, 3)
    window[:, 0, 0], window[:, 1, 1], window[:, :, 2] = zoom * flip, zoom, place
    turn = (torch.rand(n, generator=generator) < 0.5) & ~whole
    window[turn, :, :2] = window[turn][:, :, :2].flip(-1)
    return window


def cut(
    images: Float[Tensor, "n c S S"], window: Float[Tensor, "n 2 3"], size: int
) -> Float[Tensor, "n c s s"]:
    """The windows as images of `size` pixels (sampled twice as fine, then averaged)."""
    grid = F.affine_grid(window, [len(images), 1, 2 * size, 2 * size], align_corners=False)
    return F.avg_pool2d(F.grid_sample(images, grid, align_corners=False, padding_mode="reflection"), 2)


# --- losses ------------------------------------------------------------------------------------------


def contrastive_loss(
    image: Float[Tensor, "m D"], text: Float[Tensor, "m D"], scale: Tensor, same_text: Tensor
) -> Float[Tensor, ""]:
    """CLIP's loss: every picture finds its caption and every caption its picture.

    Pairs with the very same caption do not count as wrong.
    """
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = (scale * image @ text.T).masked_fill(same_text & ~own, -1e4)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def state_loss(
    normal: Float[Tensor, "n D"],
    damaged: Float[Tensor, "n D"],
    says_normal: Float[Tensor, "n D"],
    says_damaged: Float[Tensor, "n D"],
    scale: Tensor,
) -> Float[Tensor, ""]:
    """Of the same thing's two captions, "flawless" fits the normal picture and "damaged" the other."""
    contrast = says_damaged - says_normal
    return (
        F.softplus(scale * (normal * contrast).sum(-1)).mean()
        + F.softplus(-scale * (damaged * contrast).sum(-1)).mean()
    ) / 2


def identity_loss(
    a: Float[Tensor, "n D"],
    b: Float[Tensor, "n D"],
    odd: Float[Tensor, "k D"],
    wrong: Bool[Tensor, "n m"],
    temperature: float = 16.0,
) -> Float[Tensor, ""]:
    """Two pictures of one thing find each other among the batch's others and the odd ones.

    `wrong` [n, n + k] says which of (all b, all odd) are wrong answers for each thing: only those of its own
    family, since telling a letter from a brick wall teaches nothing.
    """
    right = torch.eye(*wrong.shape, dtype=torch.bool, device=a.device)
    target = torch.arange(len(a), device=a.device)
    total = 0.0
    for x, y in ((a, b), (b, a)):
        logits = (temperature * x @ torch.cat([y, odd]).T).masked_fill(~(wrong | right), -1e4)
        total = total + F.cross_entropy(logits, target) / 2
    return total


def patch_residuals(
    query: Float[Tensor, "L n N C"], normal: Float[Tensor, "L n N C"]
) -> Float[Tensor, "n N"]:
    """InCTRL's patch residual map with one prompt, differentiable."""
    cosine = F.normalize(query, dim=-1) @ F.normalize(normal, dim=-1).transpose(-1, -2)
    return ((1 - cosine.amax(-1)) / 2).mean(0)


def residual_loss(
    normal: Float[Tensor, "n N"],
    damaged: Float[Tensor, "n N"],
    coverage: Float[Tensor, "n N"],
    affine: Tensor,
) -> Float[Tensor, ""]:
    """Patches that a defect covers have large residuals, all others small (balanced cross-entropy).

    Patches that are barely touched are left out. `affine` maps residuals to logits.
    """
    logits = affine[0] * torch.cat([damaged, normal]) + affine[1]
    hit = torch.cat([coverage > 0.12, torch.zeros_like(coverage, dtype=torch.bool)])
    clean = torch.cat([coverage < 0.02, torch.ones_like(coverage, dtype=torch.bool)])
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (
        (positive * hit).sum() / hit.sum().clamp_min(1) + (negative * clean).sum() / clean.sum().clamp_min(1)
    ) / 2


class Objective(nn.Module):
    """All losses, with the few parameters that only training needs."""

    def __init__(self):
        super().__init__()
        self.affine = nn.Parameter(torch.tensor([20.0, -3.0]))
        self.referee = nn.Sequential(nn.Linear(JOINT, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(
        self, clip: CLIP, images: Tensor, tokens: Tensor, coverage: Tensor, family: Tensor, identity: Tensor
    ):
        """Total loss and terms: images [3, n, 3, s, s], tokens [2, n, T] of the first and third picture.

        `family` [n] and `identity` [n, 2] are numbers, as the corpus counts them.
        """
        n = images.shape[1]
        out = clip.visual.forward_intermediates(
            images.flatten(0, 1),
            indices=[tap - 1 for tap in TAPS],
            normalize_intermediates=False,
            output_fmt="NLC",
        )
        a, b, odd = F.normalize(out["image_features"].float(), dim=-1).view(3, n, -1)
        text = F.normalize(clip.encode_text(tokens.flatten(0, 1)).float(), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        same_text = (tokens.flatten(0, 1)[:, None] == tokens.flatten(0, 1)[None]).all(-1)
        mine, others = identity.T
        other = mine != others
        visible = ~other & (coverage.sum(-1) > 0.3)  # the defect is still inside the crop
        counts = (visible | other).float()
        own = torch.eye(n, dtype=torch.bool, device=images.device)
        kin = family[:, None] == family[None]
        wrong = torch.cat(
            [
                kin & (mine[:, None] != mine[None]),
                torch.where(own, visible | other, kin & (mine[:, None] != others[None])),
            ],
            1,
        )

        patches = torch.stack(out["image_intermediates"]).float().view(len(TAPS), 3, n, -1, WIDTH)
        normal, damaged = (patch_residuals(patches[:, i], patches[:, 0]) for i in (1, 2))
        margin = self.affine[0] * (damaged.amax(-1) - normal.amax(-1))
        verdict_b, verdict_odd = (self.referee(8 * (x - a))[:, 0] for x in (b, odd))
        terms = {
            "contrastive": contrastive_loss(torch.cat([a, odd]), text, scale, same_text),
            "identity": identity_loss(a, b, odd, wrong),
            "referential": _mean((F.softplus(-verdict_odd) + F.softplus(verdict_b)) / 2, counts),
            "ranking": _mean(F.softplus(-2 * margin), visible.float()),
        }
        if visible.any():
            at = visible.nonzero()[:, 0]
            terms["state"] = 0.5 * state_loss(a[at], odd[at], text[:n][at], text[n:][at], scale)
            terms["residual"] = 1.5 * residual_loss(normal[at], damaged[at], coverage[at], self.affine)
        with torch.no_grad():
            closer = ((a * odd).sum(-1) < (a * b).sum(-1)).float()
            watched = {
                "patch pairs": _mean((damaged.amax(-1) > normal.amax(-1)).float(), visible.float()),
                "odd pairs": _mean(closer, other.float()),
                "damaged pairs": _mean(closer, visible.float()),
                "referee pairs": _mean((verdict_odd > verdict_b).float(), visible.float()),
            }
        return sum(terms.values()), terms | watched

    def crowd(
        self, clip: CLIP, images: Float[Tensor, "n 2 3 s s"], identity: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """Each of n things' two pictures finds the other in the crowd, from a part of its patches."""
        clip.visual.patch_dropout = PatchDropout(1 - CROWD_KEEPS)
        a, b = (
            F.normalize(clip.encode_image(images.flatten(0, 1)).float(), dim=-1).view(-1, 2, JOINT).unbind(1)
        )
        clip.visual.patch_dropout = nn.Identity()
        return identity_loss(a, b, b[:0], identity[:, None] != identity[None])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 when nothing counts."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


# --- training ----------------------------------------------------------------------------------------


class Pretraining:
    """A run in a folder: `step()` until done; `save` and the constructor make it resumable.

    `start`: an exported folder to begin with, instead of random weights with a whitened patch embedding.
    """

    def __init__(self, out: Path, recipe: Recipe, device: str = "cpu", start: Path | None = None):
        self.out, self.recipe, self.device = out, recipe, device
        self.corpus = load_corpus(out / "corpus", recipe)
        self.vocabulary = CompactVocabulary(
            [c for row in self.corpus.captions for c in row] + sum(text_prompts("object"), [])
        )
        self.tokens = torch.stack([self.vocabulary(list(row)) for row in self.corpus.captions])
        self.families, self.identities = (
            torch.from_numpy(np.unique(names, return_inverse=True)[1].reshape(np.shape(names)))
            for names in (self.corpus.families, self.corpus.identities)
        )
        self.step_number = 0
        torch.manual_seed(recipe.seed)
        self.objective = Objective()
        if start is None:
            self._enter_phase(None)
            whiten_patch_embedding(
                self.clip, normalise(torch.from_numpy(np.array(self.corpus.images[:300, 0])))
            )
        else:
            self._enter_phase(read_folder(start, self.vocabulary))
        self.clip.to(device), self.objective.to(device)
        if (out / "checkpoint.pt").exists():
            self._resume()

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.recipe.phases)

    @property
    def place(self) -> tuple[Phase, int]:
        """The phase that the step number lies in, and the steps done of it."""
        done = self.step_number
        for phase in self.recipe.phases:
            if done < phase.steps:
                return phase, done
            done -= phase.steps
        last = [phase for phase in self.recipe.phases if phase.steps][-1]
        return last, last.steps

    def _enter_phase(self, state: dict[str, Tensor] | None) -> None:
        """Model and optimiser of the phase that the step number says."""
        size = self.place[0].size
        self.clip = build(size, len(self.vocabulary))
        if state is not None:
            self.clip.load_state_dict(resize_positions(state, size))
        self.clip.to(self.device).train()
        parameters = [*self.clip.named_parameters(), *self.objective.named_parameters()]
        decayed = [p for name, p in parameters if p.ndim > 1 and "embedding" not in name]
        others = [p for name, p in parameters if not (p.ndim > 1 and "embedding" not in name)]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))

    def learning_rate(self) -> float:
        """Warm-up and cosine, once in each phase."""
        phase, done = self.place
        cosine = (1 + math.cos(math.pi * done / phase.steps)) / 2
        return phase.learning_rate * min(1, (done + 1) / 60) * (0.02 + 0.98 * cosine)

    def draw(self, phase: Phase, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Numbers of a step's triplets: any of them, or in the last phase those of two families."""
        seen = self.recipe.triplets - self.recipe.held_out
        if phase.name != "kin":
            return torch.randint(seen, (phase.batch,), generator=generator)
        half = -(-phase.batch // 2)
        kin = []
        for founder in torch.randint(seen, (2,), generator=generator):
            members = (self.families[:seen] == self.families[founder]).nonzero()[:, 0]
            kin.append(members[torch.randint(len(members), (half,), generator=generator)])
        return torch.cat(kin)[: phase.batch]

    def batch(self, index: Tensor, size: int, generator: torch.Generator):
        """Triplets as the objective takes them; the two normal pictures change places half the time."""
        swap = torch.rand(len(index), generator=generator) < 0.5
        order = torch.where(swap[:, None], torch.tensor([1, 0, 2]), torch.tensor([0, 1, 2]))
        images = normalise(torch.from_numpy(self.corpus.images[index.numpy()]))
        images = images[torch.arange(len(index))[:, None], order]
        tokens = self.tokens[index[:, None], order[:, ::2]]
        dropped = (torch.rand(tokens.shape, generator=generator) < 0.03) & (tokens > 1)
        dropped &= tokens < len(self.vocabulary) - 2  # start and end stay
        tokens = tokens.masked_fill(dropped, 1)  # so that the row of unknown tokens is trained
        coverage = torch.from_numpy(self.corpus.coverage[index.numpy()])
        identity = self.identities[index]
        other = identity[:, 0] != identity[:, 1]
        window = crop_windows(coverage, other, size, generator)
        views = cut(images.flatten(1, 2), window, size).view(len(index), 3, 3, size, size)
        grey = torch.rand(len(index), generator=generator) < 0.2
        views[grey] = views[grey].mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
        seen = cut(F.interpolate(coverage[:, None], (SIZE, SIZE)), window, size)
        seen = F.avg_pool2d(seen, PATCH).flatten(1)
        parts = (views.transpose(0, 1), tokens.transpose(0, 1), seen, self.families[index], identity)
        return tuple(part.to(self.device) for part in parts)

    def draw_crowd(self, generator: torch.Generator):
        """Pairs of pictures [n, 2, 3, S, S] of things of one family, each with a window of its own; and what
        they are [n]. Of families only where things differ more than by a defect: signs and silhouettes."""
        seen, n = self.recipe.triplets - self.recipe.held_out, self.recipe.crowd
        distinct = (self.identities[:seen, 0] != self.identities[:seen, 1]).nonzero()[:, 0]
        founder = distinct[torch.randint(len(distinct), (1,), generator=generator)]
        members = (self.families[:seen] == self.families[founder]).nonzero()[:, 0]
        index = members[torch.randint(len(members), (n,), generator=generator)]
        images = normalise(torch.from_numpy(self.corpus.images[index.numpy()][:, :2])).flatten(0, 1)
        everywhere = torch.zeros(2 * n, GRID, GRID)
        window = crop_windows(everywhere, torch.ones(2 * n, dtype=torch.bool), SIZE, generator)
        views = cut(images, window, SIZE).view(n, 2, 3, SIZE, SIZE)
        return views.to(self.device), self.identities[index, 0].to(self.device)

    def step(self) -> dict[str, float]:
        """One update; what happens depends on seed and step number alone."""
        r = self.recipe
        generator = torch.Generator().manual_seed(r.seed * 1_000_003 + self.step_number)
        phase, _ = self.place
        index = self.draw(phase, generator)
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # the plain attention kernel: twice as fast as the fused one on a CPU for 37 tokens
        kernel = sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" and phase.size < SIZE else nullcontext()
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16), kernel:
            loss, terms = self.objective(self.clip, *self.batch(index, phase.size, generator))
            if phase.name == "kin" and r.crowd:
                with torch.random.fork_rng(devices=[]):  # which patches are seen
                    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                    terms["crowd"] = self.objective.crowd(self.clip, *self.draw_crowd(generator))
                loss = loss + terms["crowd"]
        if not torch.isfinite(loss):
            raise InctrlError(
                f"the loss is {loss.item()} at step {self.step_number}: lower the learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*self.clip.parameters(), *self.objective.parameters()], 1.0)
        self.optimiser.step()
        self.step_number += 1
        if self.place[0] != phase:
            self._enter_phase(self.clip.state_dict())
        return {"loss": loss.item(), "rate": rate} | {name: value.item() for name, value in terms.items()}

    @torch.no_grad()
    def watch(self) -> dict[str, float]:
        """Pair accuracies on the held-out triplets."""
        r = self.recipe
        size = self.place[0].size
        self.clip.eval()
        found = []
        for start in range(r.triplets - r.held_out, r.triplets, 20):
            index = torch.arange(start, min(start + 20, r.triplets))
            generator = torch.Generator().manual_seed(start)
            found.append(self.objective(self.clip, *self.batch(index, size, generator))[1])
        self.clip.train()
        names = ("contrastive", "identity", "patch pairs", "odd pairs", "damaged pairs", "referee pairs")
        return {f"held-out {name}": float(np.mean([f[name].item() for f in found])) for name in names}

    def save(self) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step_number,
            "clip": self.clip.state_dict(),
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        write_whole(self.out / "checkpoint.pt", lambda path: torch.save(state, path))

    def _resume(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", weights_only=True)
        if state["recipe"] != asdict(self.recipe):
            raise InctrlError(f"{self.out} holds a run with another recipe: choose another --out")
        self.step_number = state["step"]
        self._enter_phase(None)
        self.clip.load_state_dict(state["clip"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> None:
        """Write the open_clip folder: configuration and weights (float16) with the full token table."""
        state = resize_positions({name: value.cpu() for name, value in self.clip.state_dict().items()}, SIZE)
        state["token_embedding.weight"] = self.vocabulary.expand(state["token_embedding.weight"])
        write_folder(folder, state)


def write_folder(folder: Path, state: dict[str, Tensor]) -> None:
    """An open_clip `local-dir:` folder."""
    config = {
        "model_cfg": model_config(),
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    tensors = {k: v.detach().half().contiguous() for k, v in state.items() if k != "attn_mask"}
    write_whole(folder / "open_clip_model.safetensors", lambda path: path.write_bytes(save(tensors)))
    write_text(folder / "open_clip_config.json", json.dumps(config, indent=2) + "\n")


def blend(start: Path, end: Path, kept: float, out: Path) -> None:
    """Write the weighted mean of two exported folders: a model soup (Wortsman et al., ICML 2022).

    Only of use where one was trained from the other; weights of separate trainings have nothing in common.
    """
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (start, end))
    write_folder(
        out, {name: kept * before[name].float() + (1 - kept) * after[name].float() for name in after}
    )


def read_folder(folder: Path, vocabulary: CompactVocabulary) -> dict[str, Tensor]:
    """The weights of an exported folder, for a training with that vocabulary."""
    path = folder / "open_clip_model.safetensors"
    if not path.is_file():
        raise InctrlError(f"no {path.name} in {folder}: give a folder that a pretraining exported")
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    return state | {"token_embedding.weight": vocabulary.select(state["token_embedding.weight"])}


def pretrain(
    out: Path,
    recipe: Recipe,
    device: str = "cpu",
    start: Path | None = None,
    log_every: int = 50,
    save_every: int = 500,
) -> Path:
    """Run (or go on with) a pretraining to its end; returns the exported folder.

    Every `save_every` steps a checkpoint is written, and the tower as it is then to `snapshots/STEP`.
    """
    out.mkdir(parents=True, exist_ok=True)
    run, began, recent = Pretraining(out, recipe, device, start), time.time(), []
    with (out / "log.jsonl").open("a") as log:
        while run.step_number < run.total_steps:
            recent.append(run.step())
            ended = run.step_number == run.total_steps
            if run.step_number % log_every == 0 or ended:
                row = {name: float(np.mean([r[name] for r in recent if name in r])) for name in recent[-1]}
                row = {"step": run.step_number, "seconds": round(time.time() - began, 1)} | row
                recent = []
                if run.step_number % (10 * log_every) == 0 or ended:
                    row |= run.watch()
                log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
                log.flush()
            if run.step_number % save_every == 0 or ended:
                run.save()
                run.export(out / "snapshots" / str(run.step_number))
    if recipe.kept and start is not None:
        blend(start, out / "snapshots" / str(run.total_steps), recipe.kept, out / "weights")
    else:
        run.export(out / "weights")
    return out / "weights"


def main() -> None:
    """Runs from the command line; every field of `Recipe` is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--runs", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all")
    parser.add_argument("--start", type=Path, help="an exported folder to begin with, instead of nothing")
    parser.add_argument("--quick", action="store_true", help="a few minutes' run (`QUICK`) instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), help="for every run")
    options = vars(parser.parse_args())
    out, device, weights = options.pop("out"), options.pop("device"), options.pop("start")
    torch.set_num_threads(options.pop("threads"))
    recipes, log_every = {name: RECIPES[name] for name in options.pop("runs")}, 50
    if options.pop("quick"):
        recipes, log_every = {"quick": QUICK}, 20
    changes = {name: value for name, value in options.items() if value is not None}
    recipes = {name: replace(recipe, **changes) for name, recipe in recipes.items()}
    if any(SHARES[recipe.shares][list(MAKERS).index("photograph")] for recipe in recipes.values()):
        photograph_file("moon.png")  # missed now, not after hours
    for name, recipe in recipes.items():
        weights = pretrain(out / name, recipe, device, weights, log_every)
        print(f"exported to {weights}")


if __name__ == "__main__":
    main()
