"""In-context residuals: how a query differs from the normal prompts. Nothing here is learned.

Shapes: B queries, K prompts, L tapped blocks, N patches, C patch width, D joint width. A prompt is either
one support set for the whole batch ([K, ...]: testing) or one per query ([B, K, ...]: training).
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# Cosines held in memory at once (8 MiB of float32, which a CPU's cache holds). K x N grows with the shots and
# with the square of the image size; beyond this the matrix is made and reduced piece by piece.
MAX_COSINES = 2**21
# How large the two residuals of whole images (`class_residual`, `place_residual`) are if both pictures show
# the same kind of thing, and how many prompts' word that weighs: chosen on left-out families of the auxiliary
# set and on things, scans and photographs that the corpus does not hold (benchmarks/choose_whole.py).
USUAL, PLACE_USUAL, USUAL_VOTES = 0.04, 0.16, 4
STRANGEST = 3  # places that are averaged
# How much of what is usual at a patch its own surroundings say; chosen on the same sets.
OWN = 0.5


def layer_residual_maps(
    query: Float[Tensor, "B L N C"], prompt: Float[Tensor, "*b K L M C"]
) -> Float[Tensor, "B L N"]:
    """How unlike anything normal each patch is, block by block (paper, Eq. 1; public code's scaling).

    For a query patch, half of one minus its cosine to the most similar of the K x M prompt patches of
    the same block. 0: found again in a prompt; 1: opposite to all of them. The paper writes 1 - cos; the
    public code, followed here, halves it.

    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> query = torch.stack([a, b]).reshape(1, 1, 2, 2)     # one image, one block, patches a and b
    >>> layer_residual_maps(query, torch.stack([a, -a]).reshape(1, 1, 2, 2)).tolist()
    [[[0.0, 0.5]]]
    """
    shared = prompt.ndim == 4
    shots, patches = prompt.shape[-4], prompt.shape[-2]
    query = F.normalize(query, dim=-1)
    n = query.shape[2]
    images = max(1, min(len(query), MAX_COSINES // (n * min(shots * patches, n * 8))))
    columns = max(1, MAX_COSINES // (images * n))
    maps = torch.empty(query.shape[:3], dtype=query.dtype, device=query.device)
    for block in range(query.shape[1]):
        # select the block, then flatten shots and patches: a reshape of the whole would mix blocks and
        # shots (the public code's batch defect)
        bank = prompt[..., block, :, :].flatten(-3, -2)  # [K*M, C] or [B, K*M, C]
        scale = 1 / bank.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        if shared:  # if not, dividing cosines is cheaper than dividing tokens
            bank = bank * scale
        for start in range(0, len(query), images):
            rows = slice(start, start + images)
            if shared:
                tokens = query[rows, block].flatten(0, 1)
                nearest = [(tokens @ part.T).amax(-1) for part in bank.split(columns)]
            else:
                parts = zip(bank[rows].split(columns, 1), scale[rows].split(columns, 1), strict=True)
                nearest = [((query[rows, block] @ part.mT) * one.mT).amax(-1) for part, one in parts]
            maps[rows, block] = torch.stack(nearest).amax(0).view(-1, n)
    return ((1 - maps) / 2).clamp(0, 1)


def patch_residual_map(
    query: Float[Tensor, "B L N C"], prompt: Float[Tensor, "*b K L M C"]
) -> Float[Tensor, "B N"]:
    """The patch-level residual map: `layer_residual_maps` averaged over the tapped blocks, in [0, 1]."""
    return layer_residual_maps(query, prompt).mean(1)


def leave_one_out_maps(
    prompt: Float[Tensor, "K L N C"], views: Float[Tensor, "K V L N C"] | None = None
) -> Float[Tensor, "K N"]:
    """The residual map of each normal prompt against the others: how unlike each other normal images are.

    With more `views` of each prompt, the others are seen in all of theirs. A single prompt has no others; its
    patches are then compared with the rest of the same image, which tells less.
    """
    shots, _, patches, _ = prompt.shape
    if shots > 1 and views is not None:
        seen = torch.cat([prompt.unsqueeze(1), views], dim=1)
        others = [torch.cat([seen[:k], seen[k + 1 :]]).flatten(0, 1) for k in range(shots)]
        return torch.cat([patch_residual_map(prompt[k : k + 1], others[k]) for k in range(shots)])
    if shots > 1:
        tokens = F.normalize(prompt, dim=-1)
        nearest = prompt.new_full(prompt.shape[:3], -1.0)
        for i, j in combinations(range(shots), 2):  # one matrix of cosines serves both directions
            cosines = tokens[i] @ tokens[j].transpose(-1, -2)
            nearest[i] = torch.maximum(nearest[i], cosines.amax(-1))
            nearest[j] = torch.maximum(nearest[j], cosines.amax(-2))
        return ((1 - nearest) / 2).clamp(0, 1).mean(1)
    tokens = F.normalize(prompt[0], dim=-1)
    cosines = tokens @ tokens.transpose(-1, -2)
    itself = torch.eye(patches, dtype=torch.bool, device=prompt.device)
    return ((1 - cosines.masked_fill(itself, -1).amax(-1)) / 2).clamp(0, 1).mean(0, keepdim=True)


def usual_residuals(
    maps: Float[Tensor, "K N"], grid: tuple[int, int], own: float = OWN
) -> Float[Tensor, "N 2"]:
    """Mean and deviation of the residual that is usual at each patch of normal images.

    Edges and prints differ from image to image, plain ground does not: the same residual says more there. Of
    K maps (`leave_one_out_maps`) half is told by the surroundings of a patch, smoothed twice over 3 x 3,
    half by the whole of the maps, since few prompts say little of one place. Not in the paper; the lite head
    uses it.

    Args:
        maps: residual maps of normal images against each other.
        grid: rows and columns of patches.
        own: the share of the surroundings, in [0, 1].

    >>> maps = torch.tensor([[0.1, 0.2, 0.3]])                   # one map of three patches in a row
    >>> [round(mean, 4) for mean in usual_residuals(maps, (1, 3))[:, 0].tolist()]
    [0.1875, 0.2, 0.2125]
    """

    def around(values: Tensor) -> Tensor:
        for _ in range(2):
            values = F.avg_pool2d(values.view(1, 1, *grid), 3, 1, 1, count_include_pad=False)
        return values.flatten()

    near = around(maps.mean(0))
    near_deviation = around((maps - near).square().mean(0)).sqrt()
    mean = own * near + (1 - own) * maps.mean()
    deviation = own * near_deviation + (1 - own) * maps.std(correction=0)
    return torch.stack([mean, deviation], dim=-1)


def image_residual(query: Float[Tensor, "B D"], prompt: Float[Tensor, "*b K D"]) -> Float[Tensor, "B D"]:
    """The image-level residual: the mean of the adapted prompts minus the adapted query.

    The public code's sign, followed here; the paper writes query minus prototype. The mean is taken
    after the adapter.

    >>> image_residual(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0], [4.0, 0.0]])).tolist()
    [[2.0, 1.0]]
    """
    return prompt.mean(-2) - query


def class_residual(query: Float[Tensor, "B D"], prompt: Float[Tensor, "*b K D"]) -> Float[Tensor, "B 2"]:
    """How unlike the prompts an image is as a whole, and what is usual here, in [0, 1].

    The first number is half of one minus the cosine of the class embedding to the nearest prompt's. The
    second says how large it usually is: the mean of the same for each prompt against the others, which K
    prompts tell with K - 1 votes, and `USUAL`, with `USUAL_VOTES` (their geometric mean). So few prompts
    that happen to look alike do not make everything else look strange. Not in the paper; the lite head
    uses it.

    >>> prompt = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])    # the third is unlike the others
    >>> far, usual = class_residual(torch.tensor([[-1.0, 0.0]]), prompt)[0].tolist()
    >>> round(far, 3), round(usual, 3)              # (1/6)^(2/6) 0.04^(4/6): two votes, and four
    (0.5, 0.064)
    """
    query, prompt = F.normalize(query, dim=-1), F.normalize(prompt, dim=-1)
    nearest = (query.unsqueeze(-2) @ prompt.transpose(-1, -2)).squeeze(-2).amax(-1)
    among = _others(prompt @ prompt.transpose(-1, -2)).amax(-1)
    return _far_and_usual((1 - nearest) / 2, (1 - among) / 2, USUAL)


def place_residual(
    query: Float[Tensor, "B Q C"], prompt: Float[Tensor, "*b M Q C"], shots: int | None = None
) -> Float[Tensor, "B 2"]:
    """How unlike the prompts an image is where it is strangest, and what is usual here, in [0, 1].

    Places are compared with the same place of a prompt (`ImageFeatures.places`), not with any, as patches
    are: half of one minus the cosine, averaged over the `STRANGEST` places. The prompt that is nearest
    counts: an image must be like *one* of them, not like a patchwork of all. What is usual is told as in
    `class_residual`, around `PLACE_USUAL`. Not in the paper; the lite head uses it. Where the prompts are
    followed by more views of them, as in `NormalPrompt`, `shots` says how many they are themselves.

    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> far, usual = place_residual(torch.stack([a, b])[None], torch.stack([b, a])[None])[0].tolist()
    >>> far, round(usual, 2)                                  # the same two, but they have changed places
    (0.5, 0.16)
    """
    query, prompt = F.normalize(query, dim=-1), F.normalize(prompt, dim=-1)
    among = torch.einsum("...kqc,...mqc->...kmq", prompt[..., :shots, :, :], prompt)
    among = _others(_least_alike(among)).amax(-1)
    pairs = torch.einsum("bqc,mqc->bmq" if prompt.ndim == 3 else "bqc,bmqc->bmq", query, prompt)
    nearest = _least_alike(pairs).amax(-1)
    return _far_and_usual((1 - nearest) / 2, (1 - among) / 2, PLACE_USUAL)


def _least_alike(cosines: Float[Tensor, "*c Q"]) -> Float[Tensor, "*c"]:
    """Mean cosine of the `STRANGEST` places of pairs of images."""
    return cosines.topk(min(STRANGEST, cosines.shape[-1]), largest=False).values.mean(-1)


def _others(cosines: Float[Tensor, "... K M"]) -> Float[Tensor, "... K M"]:
    """Cosines of K prompts to each other and to all their views, those to themselves struck out."""
    shots, seen = cosines.shape[-2:]
    itself = torch.eye(shots, dtype=torch.bool, device=cosines.device)
    views = itself.repeat_interleave(seen // shots - 1, dim=1)
    return cosines.masked_fill(torch.cat([itself, views], dim=1), -1)


def _far_and_usual(
    far: Float[Tensor, " B"], among: Float[Tensor, "*b K"], prior: float
) -> Float[Tensor, "B 2"]:
    """Each query's residual, and what is usual: a geometric mean of K - 1 prompts' votes and the prior's."""
    votes = among.shape[-1] - 1
    log_usual = torch.full_like(far, math.log(prior))
    if votes:
        told = among.mean(-1).clamp_min(1e-3).log()
        log_usual = (votes * told + USUAL_VOTES * log_usual) / (votes + USUAL_VOTES)
    return torch.stack([far.clamp(0, 1), log_usual.exp()], dim=-1)


def text_cosines(query: Float[Tensor, "B D"], text: Float[Tensor, "*b 2 D"]) -> Float[Tensor, "B 2"]:
    """Cosine of each class embedding to the normal and to the anomalous text prototype, in [-1, 1]."""
    query, text = F.normalize(query, dim=-1), F.normalize(text, dim=-1)
    return (query.unsqueeze(-2) @ text.transpose(-1, -2)).squeeze(-2)


def text_score(cosines: Float[Tensor, "B 2"], scale: float | Tensor = 100.0) -> Float[Tensor, " B"]:
    """Probability in [0, 1] that words alone call the image anomalous: softmax(scale * cosines).

    100 is the public code's constant (CLIP's usual logit scale); the paper's formula shows none.

    >>> text_score(torch.tensor([[0.25, 0.25]])).tolist()
    [0.5]
    """
    return (scale * cosines).softmax(-1)[..., 1]
