"""Pretrain the tiny CLIP from random weights: `python -m inctrl_lite.tiny.pretrain --out runs/tiny`.

There are three runs, one after the other (`RECIPES`). The first run trains on small crops, then on whole
pictures; its patch embedding starts from a whitened PCA. Each other run starts from the weights that the run
before exported, and trains on whole pictures of a new corpus with hard negatives: each batch comes from two
families, so that objects are compared with others that look like them. The third run adds pieces of
photographs and an identity loss over a large batch, for which most patches are dropped. It exports the mean
of its first and last weights (a model soup).

Each run draws its corpus once and exports an open_clip folder. An interrupted run continues from its last
checkpoint with the same command, and ends with the same weights. `--runs third --start FOLDER` makes one run
from any exported folder. `--quick` makes a single run of a few minutes (`QUICK`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
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

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP; channel values in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, WIDTH, DEPTH, HEAD_WIDTH, JOINT = 8, 128, 6, 32, 128
TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS, CONTEXT = 48, 3, 2, 32
TAPS = (3, 4, 5)  # blocks whose patch tokens are compared: `default_taps(6)`
VOCABULARY, END_OF_TEXT = 49408, 49407
LARGE_BATCH_PATCHES = 0.4  # share of the patches that remain in the large-batch identity loss


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights of a run, apart from the weights that it starts from.

    The names of the fields are also command-line options and keys in checkpoints.

    Attributes:
        shares: families of the corpus, a key of `corpus.SHARES`.
        triplets: size of the corpus.
        held_out: how many triplets, the last ones, are used for evaluation only.
        crop_steps, crop_size, crop_batch: first phase, on crops: steps, pixels a side, triplets per step.
        whole_steps, whole_batch: second phase, on whole pictures.
        hard_negative_steps: steps of the third phase, on whole pictures with hard negatives: each half of a
            batch comes from one family.
        large_batch: number of pairs per step in the large-batch identity loss, which is part of the third
            phase (`Objective.large_batch_identity_loss`). 0: no such loss.
        soup_weight: of the weights at the start in the mean of both that is exported; the weights at the end
            have 1 - `soup_weight`.
        learning_rate: peak of the first phase; the other phases have half of it.
        seed: of corpus, initial weights and batches.
    """

    shares: str = "first"
    triplets: int = 16000
    held_out: int = 400
    crop_steps: int = 10000
    crop_size: int = 48
    crop_batch: int = 24
    whole_steps: int = 1600
    whole_batch: int = 8
    hard_negative_steps: int = 0
    large_batch: int = 0
    soup_weight: float = 0.0
    learning_rate: float = 1e-3
    seed: int = 0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The three phases in their order; a phase of 0 steps is skipped."""
        half = self.learning_rate / 2
        return (
            Phase("crops", self.crop_steps, self.crop_size, self.crop_batch, self.learning_rate),
            Phase("whole", self.whole_steps, SIZE, self.whole_batch, half),
            Phase("hard negatives", self.hard_negative_steps, SIZE, self.whole_batch, half),
        )


RECIPES = {
    "first": Recipe(),
    "second": Recipe("second", crop_steps=0, whole_steps=0, hard_negative_steps=5500, seed=1),
    "third": Recipe(
        "third",
        triplets=10000,
        crop_steps=0,
        whole_steps=0,
        hard_negative_steps=2200,
        whole_batch=6,
        large_batch=20,
        soup_weight=0.5,
        seed=3,
    ),
}
# `--quick`: a short run that shows that the code learns. The 600 steps took 200 s on a busy core (AMD EPYC).
# Held-out contrastive loss: 3.90 at the start, 3.54 after 100 steps, 3.08 at the end; chance is ln 40 = 3.69.
QUICK = Recipe(triplets=1200, held_out=200, crop_steps=600, whole_steps=0)


class Phase(NamedTuple):
    """A part of a run: `steps` steps, each on `batch` triplets of `size` pixels a side."""

    name: str
    steps: int
    size: int
    batch: int
    learning_rate: float


# --- the corpus on disk ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Corpus:
    """All n triplets, with the fields of `Sample`: images uint8 [n, 3, S, S, 3], coverage [n, 15, 15], ..."""

    images: np.ndarray
    coverage: np.ndarray
    captions: list[list[str]]
    families: list[str]
    identities: list[list[str]]


def _draw_part(
    folder: str, start: int, stop: int, recipe: Recipe
) -> list[tuple[Sequence[str], str, Sequence[str]]]:
    """Draw triplets start..stop into the shared arrays; returns (captions, family, identities) of each."""
    images = np.load(f"{folder}/images.npy", mmap_mode="r+")
    coverage = np.load(f"{folder}/coverage.npy", mmap_mode="r+")
    rest: list[tuple[Sequence[str], str, Sequence[str]]] = []
    for i in range(start, stop):
        sample = draw_sample(recipe.seed, i, recipe.shares)
        images[i], coverage[i] = sample.images, sample.coverage
        rest.append((sample.captions, sample.family, sample.identities))
    return rest


def load_corpus(folder: Path, recipe: Recipe, part: int = 250) -> Corpus:
    """The corpus of a recipe: drawn on all cores in the first call, read from `folder` afterwards.

    `part` is the number of triplets that a process draws at a time.

    Raises:
        InctrlError: the folder contains a corpus of another size.
    """
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
        raise InctrlError(
            f"{folder} contains a corpus of {len(images)} triplets, not {n}: choose another --out"
        )
    coverage = np.load(folder / "coverage.npy").astype(np.float32)
    return Corpus(images, coverage, captions, families, identities)


# --- tokens ------------------------------------------------------------------------------------------


class CompactVocabulary:
    """CLIP's tokenizer, restricted to the tokens that occur in training.

    Token 0 is padding, token 1 stands for every token that does not occur, and the others follow in CLIP's
    order. The end of text therefore keeps the largest number; CLIP reads a sentence's embedding there.

    Args:
        sentences: all sentences of the training.
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
        """Tokens of P sentences, T = 32 each."""
        tokens = self.tokenize(sentences)
        padding = (tokens == END_OF_TEXT).cumsum(1).bool() & (tokens != END_OF_TEXT)
        return self.compact[tokens].masked_fill(padding, 0)

    def select(self, table: Float[Tensor, "49408 W"]) -> Float[Tensor, "V W"]:
        """The rows of a full embedding table that are in use: the inverse of `expand`."""
        unseen = torch.ones(VOCABULARY, dtype=torch.bool).index_fill(0, torch.tensor([0, *self.ids]), False)
        return table[[0, int(unseen.nonzero()[0]), *self.ids]]

    def expand(self, rows: Float[Tensor, "V W"]) -> Float[Tensor, "49408 W"]:
        """The full embedding table. All tokens that do not occur get row 1, which is trained as well."""
        table = rows[1].repeat(VOCABULARY, 1)
        table[self.ids], table[0] = rows[2:], rows[0]
        return table


# --- the model ---------------------------------------------------------------------------------------


def model_config(image_size: int = SIZE, vocabulary: int = VOCABULARY) -> dict:
    """The architecture, in the format of an open_clip configuration."""
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
    """An open_clip CLIP with random weights, for images of `image_size` pixels a side."""
    config = model_config(image_size, vocabulary)
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    return CLIP(config["embed_dim"], vision, text)


def resize_positions(
    state: dict[str, Tensor], image_size: int, key: str = "visual.positional_embedding"
) -> dict[str, Tensor]:
    """The state dict with its position embeddings interpolated to another image size in pixels."""
    old, side = state[key], image_size // PATCH
    patches = old[1:].reshape(1, math.isqrt(len(old) - 1), -1, WIDTH).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, (side, side), mode="bicubic", align_corners=False)
    return state | {key: torch.cat([old[:1], resized[0].flatten(1).T])}


@torch.no_grad()
def whiten_patch_embedding(clip: CLIP, images: Float[Tensor, "B 3 H W"], power: float = 0.3) -> None:
    """Initialise the patch embedding, in place, with a (partly) whitened PCA of image patches.

    The principal directions are scaled by eigenvalue ** -power and then rotated at random, so that no channel
    is special. Half of the variance of raw patches is their mean brightness; with whitening, small
    differences count as well.
    """
    weight = clip.visual.conv1.weight
    patches = F.unfold(images, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH)
    variance, direction = torch.linalg.eigh(torch.cov(patches.T))
    variance, direction = variance.flip(0)[: len(weight)], direction.flip(1)[:, : len(weight)]
    rotation = torch.linalg.qr(torch.randn(len(weight), len(weight)))[0]
    weight.copy_((rotation @ (direction * (variance + 0.02) ** -power).T).view_as(weight))


# --- crops -------------------------------------------------------------------------------------------


def normalise(images: UInt8[Tensor, "*b S S 3"]) -> Float[Tensor, "*b 3 S S"]:
    """Bytes to the input of the image tower: values in [0, 1], minus `MEAN`, divided by `STD`."""
    return (images.movedim(-1, -3).float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
        3, 1, 1
    )


def crop_windows(
    coverage: Float[Tensor, "n G G"],
    other_object: Bool[Tensor, " n"],
    size: int,
    generator: torch.Generator,
) -> Float[Tensor, "n 2 3"]:
    """One random window for each triplet, as affine maps for `cut`.

    Crops smaller than the picture are mostly cut around the defect at about native scale (0.75 to 1.3 picture
    pixels per pixel); the others show most of the picture. Half of the windows are mirrored, half transposed.

    Args:
        coverage: share of each patch that the defect changed.
        other_object: True for triplets whose negative is another object. Their windows show most of the
            picture, and are neither mirrored nor transposed, because that would change letters.
        size: pixels a side of the crop.
        generator: source of the windows.
    """
    n = len(coverage)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    native = size / SIZE
    zoom = torch.where(
        (torch.rand(n, generator=generator) < 0.35) | other_object,
        uniform(0.8, 1.0),
        uniform(0.75, 1.3) * native,
    )
    zoom = zoom if size < SIZE else uniform(0.75, 1.0)
    patch = torch.multinomial(coverage.flatten(1) + 1e-4, 1, generator=generator)[:, 0]
    centre = torch.stack([patch % GRID, patch // GRID], 1).add(0.5).mul(2 / GRID).sub(1)  # [n, 2]: x, y
    centre = centre + (torch.rand(n, 2, generator=generator) - 0.5) * zoom[:, None] * 1.2
    centre = torch.minimum(torch.maximum(centre, zoom[:, None] - 1), 1 - zoom[:, None])
    flip = torch.where((torch.rand(n, generator=generator) < 0.5) & ~other_object, -1.0, 1.0)
    window = torch.zeros(n, 2, 3)
    window[:, 0, 0], window[:, 1, 1], window[:, :, 2] = zoom * flip, zoom, centre
    transposed = (torch.rand(n, generator=generator) < 0.5) & ~other_object
    window[transposed, :, :2] = window[transposed][:, :, :2].flip(-1)
    return window


def cut(
    images: Float[Tensor, "n c S S"], window: Float[Tensor, "n 2 3"], size: int
) -> Float[Tensor, "n c s s"]:
    """The windows as images of `size` pixels a side: sampled at twice the resolution, then averaged."""
    grid = F.affine_grid(window, [len(images), 1, 2 * size, 2 * size], align_corners=False)
    return F.avg_pool2d(F.grid_sample(images, grid, align_corners=False, padding_mode="reflection"), 2)


# --- losses ------------------------------------------------------------------------------------------


def contrastive_loss(
    image: Float[Tensor, "m D"], text: Float[Tensor, "m D"], scale: Tensor, same_text: Tensor
) -> Float[Tensor, ""]:
    """CLIP's loss (Radford et al., ICML 2021): cross-entropy over captions and over pictures, mean of both.

    Args:
        image, text: unit-length embeddings of m pairs.
        scale: factor of the cosines (the inverse of the temperature).
        same_text: [m, m], True where two captions are equal. Such pairs do not count as wrong answers.
    """
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = (scale * image @ text.T).masked_fill(same_text & ~own, -1e4)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def state_loss(
    normal: Float[Tensor, "n D"],
    damaged: Float[Tensor, "n D"],
    text_normal: Float[Tensor, "n D"],
    text_damaged: Float[Tensor, "n D"],
    scale: Tensor,
) -> Float[Tensor, ""]:
    """Of two captions of one object, the normal one fits the normal picture, the other the damaged picture.

    All embeddings have unit length; `scale` is that of `contrastive_loss`.
    """
    contrast = text_damaged - text_normal
    return (
        F.softplus(scale * (normal * contrast).sum(-1)).mean()
        + F.softplus(-scale * (damaged * contrast).sum(-1)).mean()
    ) / 2


def identity_loss(
    anchor: Float[Tensor, "n D"],
    positive: Float[Tensor, "n D"],
    negative: Float[Tensor, "k D"],
    is_wrong: Bool[Tensor, "n m"],
    scale: float = 16.0,
) -> Float[Tensor, ""]:
    """InfoNCE (van den Oord et al., 2018) in both directions between two pictures of each object.

    Args:
        anchor, positive: unit-length embeddings of two pictures of n objects.
        negative: embeddings of further pictures, which are wrong answers only.
        is_wrong: [n, n + k], True where one of (all positives, all negatives) is a wrong answer for an
            object: those of its own family. To tell a letter from a brick wall would be too easy.
        scale: factor of the cosines (the inverse of the temperature).
    """
    is_right = torch.eye(*is_wrong.shape, dtype=torch.bool, device=anchor.device)
    target = torch.arange(len(anchor), device=anchor.device)

    def one_way(query: Tensor, answer: Tensor) -> Tensor:
        logits = scale * query @ torch.cat([answer, negative]).T  # [n, n + k]
        return F.cross_entropy(logits.masked_fill(~(is_wrong | is_right), -1e4), target)

    return one_way(anchor, positive) / 2 + one_way(positive, anchor) / 2


def patch_residuals(
    query: Float[Tensor, "L n N C"], normal: Float[Tensor, "L n N C"]
) -> Float[Tensor, "n N"]:
    """InCTRL's patch residual map with one normal image, differentiable; values in [0, 1].

    L stages, n images, N patches, C channels. `inctrl_lite.residual.stage_residual_map` is the general form.
    """
    cosine = F.normalize(query, dim=-1) @ F.normalize(normal, dim=-1).transpose(-1, -2)
    return ((1 - cosine.amax(-1)) / 2).mean(0)


def residual_loss(
    normal: Float[Tensor, "n N"],
    damaged: Float[Tensor, "n N"],
    coverage: Float[Tensor, "n N"],
    affine: Tensor,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of patch residuals: large where a defect covers the patch, small elsewhere.

    Both classes have the same weight. Patches with a coverage of 0.02 to 0.12 are left out.

    Args:
        normal, damaged: residuals of the normal and of the damaged picture.
        coverage: share of each patch of the damaged picture that the defect changed, in [0, 1].
        affine: [2], factor and offset from residuals to logits.
    """
    logits = affine[0] * torch.cat([damaged, normal]) + affine[1]
    hit = torch.cat([coverage > 0.12, torch.zeros_like(coverage, dtype=torch.bool)])
    clean = torch.cat([coverage < 0.02, torch.ones_like(coverage, dtype=torch.bool)])
    positive, negative = F.softplus(-logits), F.softplus(logits)
    return (
        (positive * hit).sum() / hit.sum().clamp_min(1) + (negative * clean).sum() / clean.sum().clamp_min(1)
    ) / 2


class Objective(nn.Module):
    """All loss terms, with the parameters that only pretraining needs.

    The terms, by their names in the log:

    - contrastive: pictures and captions (`contrastive_loss`).
    - identity: anchor and positive, among all of their family and the negatives (`identity_loss`).
    - referential: a small network recognises the negative from its difference to the anchor.
    - ranking: the largest patch residual of the negative exceeds that of the positive.
    - state: normal and damaged captions (`state_loss`).
    - residual: patch residuals and the defect's coverage (`residual_loss`).
    - large_batch: the large-batch identity loss, which `Pretraining.step` adds.

    Ranking, state and residual only count triplets whose defect lies inside the crop. The log also
    has accuracies, with a chance level of 0.5: "patch pairs" (ranking), "odd pairs" and "damaged pairs" (the
    negative is farther from the anchor than the positive is: other objects, and defects) and "referee pairs"
    (referential).
    """

    def __init__(self) -> None:
        super().__init__()
        self.affine = nn.Parameter(torch.tensor([20.0, -3.0]))
        # classifies differences of global embeddings; its name is a key in checkpoints
        self.referee = nn.Sequential(nn.Linear(JOINT, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(
        self,
        clip: CLIP,
        images: Float[Tensor, "3 n 3 s s"],
        tokens: Int[Tensor, "2 n T"],
        coverage: Float[Tensor, "n N"],
        family: Int[Tensor, " n"],
        identity: Int[Tensor, "n 2"],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, and all terms and accuracies by name.

        Args:
            clip: the model.
            images: anchors, positives and negatives.
            tokens: captions of the anchors and of the negatives.
            coverage: share of each patch of the negatives that the defect changed.
            family: number of the triplet's family.
            identity: numbers of the two classes in each triplet.
        """
        n = images.shape[1]
        out = clip.visual.forward_intermediates(
            images.flatten(0, 1),
            indices=[tap - 1 for tap in TAPS],
            normalize_intermediates=False,
            output_fmt="NLC",
        )
        # [3 n, D] -> three times [n, D]
        anchor, positive, negative = F.normalize(out["image_features"].float(), dim=-1).view(3, n, -1)
        text = F.normalize(clip.encode_text(tokens.flatten(0, 1)).float(), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        same_text = (tokens.flatten(0, 1)[:, None] == tokens.flatten(0, 1)[None]).all(-1)
        own_identity, negative_identity = identity.T  # [n] each
        other_object = own_identity != negative_identity
        visible = ~other_object & (coverage.sum(-1) > 0.3)  # the defect is still inside the crop
        counts = (visible | other_object).float()
        own = torch.eye(n, dtype=torch.bool, device=images.device)
        same_family = family[:, None] == family[None]
        is_wrong = torch.cat(  # [n, 2 n]: the positives and the negatives of all triplets
            [
                same_family & (own_identity[:, None] != own_identity[None]),
                torch.where(
                    own,
                    visible | other_object,
                    same_family & (own_identity[:, None] != negative_identity[None]),
                ),
            ],
            1,
        )

        # L stages of [3 n, N, C] -> [L, 3, n, N, C]
        patches = torch.stack(out["image_intermediates"]).float().view(len(TAPS), 3, n, -1, WIDTH)
        normal, damaged = (patch_residuals(patches[:, i], patches[:, 0]) for i in (1, 2))
        margin = self.affine[0] * (damaged.amax(-1) - normal.amax(-1))
        positive_logit, negative_logit = (self.referee(8 * (x - anchor))[:, 0] for x in (positive, negative))
        terms = {
            "contrastive": contrastive_loss(torch.cat([anchor, negative]), text, scale, same_text),
            "identity": identity_loss(anchor, positive, negative, is_wrong),
            "referential": _mean((F.softplus(-negative_logit) + F.softplus(positive_logit)) / 2, counts),
            "ranking": _mean(F.softplus(-2 * margin), visible.float()),
        }
        if visible.any():
            at = visible.nonzero()[:, 0]
            terms["state"] = 0.5 * state_loss(anchor[at], negative[at], text[:n][at], text[n:][at], scale)
            terms["residual"] = 1.5 * residual_loss(normal[at], damaged[at], coverage[at], self.affine)
        with torch.no_grad():
            farther = ((anchor * negative).sum(-1) < (anchor * positive).sum(-1)).float()
            accuracies = {
                "patch pairs": _mean((damaged.amax(-1) > normal.amax(-1)).float(), visible.float()),
                "odd pairs": _mean(farther, other_object.float()),
                "damaged pairs": _mean(farther, visible.float()),
                "referee pairs": _mean((negative_logit > positive_logit).float(), visible.float()),
            }
        total = sum(terms.values(), torch.zeros((), device=images.device))
        return total, terms | accuracies

    def large_batch_identity_loss(
        self, clip: CLIP, images: Float[Tensor, "n 2 3 s s"], identity: Int[Tensor, " n"]
    ) -> Float[Tensor, ""]:
        """`identity_loss` of n objects with two pictures each, of which a share of the patches remains.

        Dropping patches makes a large batch cheap (FLIP, Li et al., CVPR 2023).
        """
        clip.visual.patch_dropout = PatchDropout(1 - LARGE_BATCH_PATCHES)
        embedding = F.normalize(clip.encode_image(images.flatten(0, 1)).float(), dim=-1)  # [2 n, D]
        clip.visual.patch_dropout = nn.Identity()
        anchor, positive = embedding.view(-1, 2, JOINT).unbind(1)  # [n, D] each
        return identity_loss(anchor, positive, positive[:0], identity[:, None] != identity[None])


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of `values`; 0 if all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp_min(1e-6)


# --- training ----------------------------------------------------------------------------------------


class Pretraining:
    """A run in a folder. Call `step` until `step_number` equals `total_steps`, then `export`.

    `save` writes a checkpoint, and the constructor continues from it if the folder has one.

    Args:
        out: folder of the run.
        recipe: what to do.
        device: "cpu" or "cuda".
        start: an exported folder with the initial weights; None: random weights with a whitened patch
            embedding.

    Raises:
        InctrlError: the folder contains a run with another recipe, or `start` is no exported folder.
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
        self.clip.to(device)
        self.objective.to(device)
        if (out / "checkpoint.pt").exists():
            self._resume()

    @property
    def total_steps(self) -> int:
        """Steps of all phases."""
        return sum(phase.steps for phase in self.recipe.phases)

    @property
    def current_phase(self) -> tuple[Phase, int]:
        """The phase of the current step number, and how many of its steps are done."""
        done = self.step_number
        for phase in self.recipe.phases:
            if done < phase.steps:
                return phase, done
            done -= phase.steps
        last = [phase for phase in self.recipe.phases if phase.steps][-1]
        return last, last.steps

    def _enter_phase(self, state: dict[str, Tensor] | None) -> None:
        """Make model and optimiser for the current phase, with the weights `state` (None: random weights)."""
        size = self.current_phase[0].size
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
        """The learning rate of the next step: warm-up and cosine decay in each phase."""
        phase, done = self.current_phase
        cosine = (1 + math.cos(math.pi * done / phase.steps)) / 2
        return phase.learning_rate * min(1, (done + 1) / 60) * (0.02 + 0.98 * cosine)

    def sample_triplets(self, phase: Phase, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Numbers of the triplets of one step; in the hard-negative phase they come from two families."""
        seen = self.recipe.triplets - self.recipe.held_out
        if phase.name != "hard negatives":
            return torch.randint(seen, (phase.batch,), generator=generator)
        half = -(-phase.batch // 2)
        halves = []
        for example in torch.randint(seen, (2,), generator=generator):
            same_family = (self.families[:seen] == self.families[example]).nonzero()[:, 0]
            halves.append(same_family[torch.randint(len(same_family), (half,), generator=generator)])
        return torch.cat(halves)[: phase.batch]

    def batch(self, index: Int[Tensor, " n"], size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The arguments of `Objective.forward` after `clip`, for crops of `size` pixels a side.

        Anchor and positive are exchanged in half of the triplets, and one crop in five is grey.
        """
        swap = torch.rand(len(index), generator=generator) < 0.5
        order = torch.where(swap[:, None], torch.tensor([1, 0, 2]), torch.tensor([0, 1, 2]))
        images = normalise(torch.from_numpy(self.corpus.images[index.numpy()]))
        images = images[torch.arange(len(index))[:, None], order]
        tokens = self.tokens[index[:, None], order[:, ::2]]
        dropped = (torch.rand(tokens.shape, generator=generator) < 0.03) & (tokens > 1)
        dropped &= tokens < len(self.vocabulary) - 2  # not the start and the end of the text
        tokens = tokens.masked_fill(dropped, 1)  # so that the row of unknown tokens is trained
        coverage = torch.from_numpy(self.corpus.coverage[index.numpy()])
        identity = self.identities[index]
        window = crop_windows(coverage, identity[:, 0] != identity[:, 1], size, generator)
        # [n, 3, 3, S, S] -> [n, 9, S, S]: the same window for all three pictures
        crops = cut(images.flatten(1, 2), window, size).view(len(index), 3, 3, size, size)
        grey = torch.rand(len(index), generator=generator) < 0.2
        crops[grey] = crops[grey].mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
        cropped_coverage = cut(F.interpolate(coverage[:, None], (SIZE, SIZE)), window, size)
        cropped_coverage = F.avg_pool2d(cropped_coverage, PATCH).flatten(1)  # [n, N]
        parts = (
            crops.transpose(0, 1),
            tokens.transpose(0, 1),
            cropped_coverage,
            self.families[index],
            identity,
        )
        return tuple(part.to(self.device) for part in parts)

    def sample_large_batch(
        self, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n 2 3 S S"], Int[Tensor, " n"]]:
        """Two pictures each of n objects of one family, and the numbers of their classes.

        The family is one of those in which a negative can be another object (signs, silhouettes and
        photographs). Each picture has a window of its own.
        """
        seen, n = self.recipe.triplets - self.recipe.held_out, self.recipe.large_batch
        distinct = (self.identities[:seen, 0] != self.identities[:seen, 1]).nonzero()[:, 0]
        example = distinct[torch.randint(len(distinct), (1,), generator=generator)]
        same_family = (self.families[:seen] == self.families[example]).nonzero()[:, 0]
        index = same_family[torch.randint(len(same_family), (n,), generator=generator)]
        images = normalise(torch.from_numpy(self.corpus.images[index.numpy()][:, :2])).flatten(0, 1)
        coverage = torch.zeros(2 * n, GRID, GRID)
        window = crop_windows(coverage, torch.ones(2 * n, dtype=torch.bool), SIZE, generator)
        crops = cut(images, window, SIZE).view(n, 2, 3, SIZE, SIZE)
        return crops.to(self.device), self.identities[index, 0].to(self.device)

    def step(self) -> dict[str, float]:
        """Make one update and return learning rate, loss and terms.

        The update depends only on the state of the run, the seed and the step number.

        Raises:
            InctrlError: the loss is not finite.
        """
        r = self.recipe
        generator = torch.Generator().manual_seed(r.seed * 1_000_003 + self.step_number)
        phase, _ = self.current_phase
        index = self.sample_triplets(phase, generator)
        rate = self.learning_rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # on a CPU, the plain attention kernel is twice as fast as the fused one for 37 tokens
        kernel = sdpa_kernel(SDPBackend.MATH) if self.device == "cpu" and phase.size < SIZE else nullcontext()
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16), kernel:
            loss, terms = self.objective(self.clip, *self.batch(index, phase.size, generator))
            if phase.name == "hard negatives" and r.large_batch:
                with torch.random.fork_rng(devices=[]):  # chooses the patches that are dropped
                    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                    large_batch = self.sample_large_batch(generator)
                    terms["large_batch"] = self.objective.large_batch_identity_loss(self.clip, *large_batch)
                loss = loss + terms["large_batch"]
        if not torch.isfinite(loss):
            raise InctrlError(
                f"the loss is {loss.item()} at step {self.step_number}: lower the learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*self.clip.parameters(), *self.objective.parameters()], 1.0)
        self.optimiser.step()
        self.step_number += 1
        if self.current_phase[0] != phase:
            self._enter_phase(self.clip.state_dict())
        return {"loss": loss.item(), "rate": rate} | {name: value.item() for name, value in terms.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Contrastive loss, identity loss and accuracies on the held-out triplets, 20 at a time."""
        r = self.recipe
        size = self.current_phase[0].size
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
        """Write the checkpoint, in one step.

        Raises:
            InctrlError: it cannot be written.
        """
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
            raise InctrlError(f"{self.out} contains a run with another recipe: choose another --out")
        self.step_number = state["step"]
        self._enter_phase(None)
        self.clip.load_state_dict(state["clip"])
        self.objective.load_state_dict(state["objective"])
        self.optimiser.load_state_dict(state["optimiser"])

    def export(self, folder: Path) -> None:
        """Write an open_clip folder (`write_folder`), with the full token table."""
        state = resize_positions({name: value.cpu() for name, value in self.clip.state_dict().items()}, SIZE)
        state["token_embedding.weight"] = self.vocabulary.expand(state["token_embedding.weight"])
        write_folder(folder, state)


def write_folder(folder: Path, state: dict[str, Tensor]) -> None:
    """Write an open_clip `local-dir:` folder with the weights `state`, as float16."""
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


def average_weights(start: Path, end: Path, start_weight: float, out: Path) -> None:
    """Write the weighted mean of two exported folders: a model soup (Wortsman et al., ICML 2022).

    `start_weight` in [0, 1] is the weight of `start`. The mean is useful only if one run started from the
    other: weights of separate runs cannot be averaged.
    """
    before, after = (load_file(folder / "open_clip_model.safetensors") for folder in (start, end))
    write_folder(
        out,
        {
            name: start_weight * before[name].float() + (1 - start_weight) * after[name].float()
            for name in after
        },
    )


def read_folder(folder: Path, vocabulary: CompactVocabulary) -> dict[str, Tensor]:
    """The weights of an exported folder, with the token table of `vocabulary`.

    Raises:
        InctrlError: the folder has no weights.
    """
    path = folder / "open_clip_model.safetensors"
    if not path.is_file():
        raise InctrlError(f"{folder} has no {path.name}: give a folder that a pretraining run exported")
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
    """Start or continue a run, and finish it. Returns the exported folder, `out`/weights.

    Args:
        out: folder of the run.
        recipe, device, start: as in `Pretraining`.
        log_every: steps between two lines of `log.jsonl`; every tenth line and the last have the held-out
            results.
        save_every: steps between two checkpoints; the weights of that step are exported to `snapshots/STEP`.

    Raises:
        InctrlError: as in `Pretraining`; the loss is not finite; a file cannot be written.
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
                    row |= run.evaluate()
                log.write(json.dumps({k: round(v, 4) for k, v in row.items()}) + "\n")
                log.flush()
            if run.step_number % save_every == 0 or ended:
                run.save()
                run.export(out / "snapshots" / str(run.step_number))
    if recipe.soup_weight and start is not None:
        average_weights(start, out / "snapshots" / str(run.total_steps), recipe.soup_weight, out / "weights")
    else:
        run.export(out / "weights")
    return out / "weights"


def main() -> None:
    """The command line; every field of `Recipe` is an option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--runs", nargs="+", choices=RECIPES, default=list(RECIPES), help="default: all")
    parser.add_argument(
        "--start", type=Path, help="an exported folder with the initial weights; default: random weights"
    )
    parser.add_argument("--quick", action="store_true", help="a single run of a few minutes (`QUICK`)")
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
        photograph_file("moon.png")  # if it is missing, stop now and not after hours
    for name, recipe in recipes.items():
        weights = pretrain(out / name, recipe, device, weights, log_every)
        print(f"exported to {weights}")


if __name__ == "__main__":
    main()
