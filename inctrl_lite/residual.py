"""In-context residuals: how a query differs from the support set. Nothing here is learned.

Shapes: B queries, K normal images, L stages, N patches of a stage, C width of a patch token, D width of the
global embedding. A support set is either one for the whole batch ([K, ...]: testing) or one per query
([B, K, ...]: training).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbones.base import Stage

# Cosines held in memory at once (8 MiB of float32, which a CPU's cache holds). K x N grows with the number of
# normal images and with the square of the image size; a larger matrix is made and reduced piece by piece.
MAX_COSINES = 2**21

# The distances of whole images (`global_distance`, `region_distance`) that we expect between two normal
# images of one category before we have seen any, and how many normal images this expectation counts for.
# Chosen on left-out families of the auxiliary set and on drawn things, scans and photographs that no
# evaluation set holds (benchmarks/choose_whole.py).
GLOBAL_PRIOR, REGION_PRIOR, PRIOR_WEIGHT = 0.04, 0.16, 4
# The three regions with the largest distance are averaged: one region alone is noisy, all of them hide a
# small anomaly.
WORST_REGIONS = 3
# Weight of the local mean against the mean of the whole map in `normal_residual_statistics`; same choice.
LOCAL_WEIGHT = 0.5


# --- patches -----------------------------------------------------------------------------------------


def stage_residual_map(
    query: Float[Tensor, "B N C"], support: Float[Tensor, "*b K M C"]
) -> Float[Tensor, "B N"]:
    """The residual of each patch of one stage (paper, Eq. 1; with the public code's factor 1/2).

    For a query patch: half of one minus its cosine to the most similar of the K x M support patches of the
    same stage. 0: the same direction occurs in the support set; 1: opposite to all of them. The paper
    writes 1 - cos; the public code, followed here, halves it.

    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> query = torch.stack([a, b])[None]                    # one image with two patches
    >>> stage_residual_map(query, torch.stack([a, -a])[None]).tolist()
    [[0.0, 0.5]]
    """
    shared = support.ndim == 3
    count, patches = len(query), query.shape[1]
    query = F.normalize(query, dim=-1)
    bank = support.flatten(-3, -2)  # [K M, C] or [B, K M, C]
    scale = 1 / bank.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if shared:  # with one bank for each query, dividing the cosines is cheaper than dividing the tokens
        bank = bank * scale
    images = max(1, min(count, MAX_COSINES // (patches * min(bank.shape[-2], patches * 8))))
    columns = max(1, MAX_COSINES // (images * patches))
    nearest = torch.empty(query.shape[:2], dtype=query.dtype, device=query.device)
    for start in range(0, count, images):
        rows = slice(start, start + images)
        if shared:
            tokens = query[rows].flatten(0, 1)  # [b N, C]
            best = [(tokens @ part.T).amax(-1) for part in bank.split(columns)]
        else:
            parts = zip(bank[rows].split(columns, 1), scale[rows].split(columns, 1), strict=True)
            best = [((query[rows] @ part.mT) * one.mT).amax(-1) for part, one in parts]
        nearest[rows] = torch.stack(best).amax(0).view(-1, patches)
    return ((1 - nearest) / 2).clamp(0, 1)


def resample_map(
    values: Float[Tensor, "*b N"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Tensor, "*b M"]:
    """A map on one grid, brought to another: averaged to a coarser one, interpolated to a finer one.

    >>> resample_map(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (1, 4), (1, 2)).tolist()
    [[0.5, 2.5]]
    """
    if grid == to:
        return values
    maps = values.reshape(-1, 1, *grid)
    if to[0] <= grid[0] and to[1] <= grid[1]:
        moved = F.adaptive_avg_pool2d(maps, to)
    else:
        moved = F.interpolate(maps, to, mode="bilinear", align_corners=False)
    return moved.reshape(*values.shape[:-1], math.prod(to))


def stage_residual_maps(
    query: Sequence[Stage], support: Sequence[Stage], map_grid: tuple[int, int]
) -> Float[Tensor, "B L N"]:
    """The residual map of each stage, computed on the stage's own grid and brought to `map_grid`."""
    maps = [
        resample_map(stage_residual_map(one.tokens, other.tokens), one.grid, map_grid)
        for one, other in zip(query, support, strict=True)
    ]
    return torch.stack(maps, dim=1)


def patch_residual_map(
    query: Sequence[Stage], support: Sequence[Stage], map_grid: tuple[int, int]
) -> Float[Tensor, "B N"]:
    """The patch-level residual map: the mean of `stage_residual_maps` over the stages, in [0, 1]."""
    return stage_residual_maps(query, support, map_grid).mean(1)


def unit_tokens(stages: Sequence[Stage], map_grid: tuple[int, int]) -> Float[Tensor, "*b N C"]:
    """Patch tokens of all stages side by side, on one grid; those of each stage have unit length."""
    parts = []
    for stage in stages:
        unit = F.normalize(stage.tokens, dim=-1)
        if stage.grid != map_grid:
            channels = resample_map(unit.mT, stage.grid, map_grid)  # [..., C, N]
            unit = F.normalize(channels.mT, dim=-1)
        parts.append(unit)
    return torch.cat(parts, dim=-1)


# --- the support set among itself --------------------------------------------------------------------


def leave_one_out_maps(
    support: Sequence[Stage],
    map_grid: tuple[int, int],
    augmented: Sequence[Stage] | None = None,
) -> Float[Tensor, "K L N"]:
    """The residual maps of each normal image against the others: how much normal images differ.

    Args:
        support: stages of the K normal images, tokens [K, N, C].
        map_grid: rows and columns of the maps.
        augmented: stages of A augmented copies of each image, tokens [K, A, N, C]. Each image is then
            compared with the other images and all of their copies.

    A single normal image has no others. Its patches are then compared with the other patches of the same
    image, which says less.
    """
    maps = []
    for i, stage in enumerate(support):
        copies = None if augmented is None else augmented[i].tokens
        nearest = _nearest_others(stage.tokens, copies)
        maps.append(resample_map(((1 - nearest) / 2).clamp(0, 1), stage.grid, map_grid))
    return torch.stack(maps, dim=1)


def leave_two_out_maps(
    support: Sequence[Stage],
    map_grid: tuple[int, int],
    copies: Sequence[Stage] | None = None,
) -> Float[Tensor, "K K L N"]:
    """Row k: the residual maps that the normal images have if image k is left out of the support set.

    At [k, i] the map of image i against all images but i and k; at [k, k] the map of image k against all
    others, which is what a query sees. Every pair of images is compared once: each patch remembers its
    nearest image and the second nearest, which counts where the nearest one is left out.

    Args:
        support: stages of K >= 3 normal images, tokens [K, N, C].
        map_grid: rows and columns of the maps.
        copies: what else belongs to each image, tokens [K, A, N, C].
    """
    maps = []
    for number, stage in enumerate(support):
        seen = stage.tokens.unsqueeze(1)  # [K, 1, N, C]
        if copies is not None:
            seen = torch.cat([seen, copies[number].tokens], 1)  # [K, 1 + A, N, C]
        nearest, image = _nearest_two(stage.tokens, seen.flatten(1, 2))  # [K, N, 2]
        left_out = torch.arange(len(nearest), device=nearest.device).view(-1, 1, 1)
        cosines = torch.where(image[None, ..., 0] == left_out, nearest[None, ..., 1], nearest[None, ..., 0])
        maps.append(resample_map(((1 - cosines) / 2).clamp(0, 1), stage.grid, map_grid))  # [K, K, N]
    return torch.stack(maps, dim=2)


def _nearest_two(
    tokens: Float[Tensor, "K N C"], seen: Float[Tensor, "K P C"]
) -> tuple[Float[Tensor, "K N 2"], Int[Tensor, "K N 2"]]:
    """For each patch: cosines to the nearest two of the other images (the best of their P patches), and
    which images these are."""
    tokens, seen = F.normalize(tokens, dim=-1), F.normalize(seen, dim=-1)
    images = max(1, MAX_COSINES // (tokens.shape[1] * seen.shape[1]))  # in memory at once
    cosines, which = [], []
    for k, query in enumerate(tokens):
        parts = [query @ part.flatten(0, 1).T for part in seen.split(images)]  # [N, c P]
        best = torch.cat([part.unflatten(1, (-1, seen.shape[1])).amax(-1) for part in parts], 1)  # [N, K]
        best[:, k] = -2.0  # not itself
        top = best.topk(2, dim=-1)
        cosines.append(top.values)
        which.append(top.indices)
    return torch.stack(cosines), torch.stack(which)


def _nearest_others(
    tokens: Float[Tensor, "K N C"], copies: Float[Tensor, "K A N C"] | None
) -> Float[Tensor, "K N"]:
    """Cosine of each patch to the most similar patch of the other images, or of its own if there are none."""
    shots, patches, _ = tokens.shape
    if shots > 1 and copies is not None:
        seen = torch.cat([tokens.unsqueeze(1), copies], dim=1)  # [K, 1 + A, N, C]
        others = [torch.cat([seen[:k], seen[k + 1 :]]).flatten(0, 1) for k in range(shots)]
        maps = [stage_residual_map(tokens[k : k + 1], others[k]) for k in range(shots)]
        return 1 - 2 * torch.cat(maps)
    tokens = F.normalize(tokens, dim=-1)
    if shots == 1:
        cosines = tokens[0] @ tokens[0].T  # [N, N]
        itself = torch.eye(patches, dtype=torch.bool, device=tokens.device)
        return cosines.masked_fill(itself, -1).amax(-1)[None]
    nearest = tokens.new_full((shots, patches), -1.0)
    for i, j in combinations(range(shots), 2):  # one matrix of cosines serves both directions
        cosines = tokens[i] @ tokens[j].T
        nearest[i] = torch.maximum(nearest[i], cosines.amax(1))
        nearest[j] = torch.maximum(nearest[j], cosines.amax(0))
    return nearest


def normal_residual_statistics(
    maps: Float[Tensor, "K N"], grid: tuple[int, int], local_weight: float = LOCAL_WEIGHT
) -> Float[Tensor, "N 2"]:
    """Mean and standard deviation of the residual that normal images have at each patch.

    Edges and printed text differ from one normal image to the next, plain background does not: the same
    residual is stronger evidence on the background. The statistics at a patch are a weighted mean of two
    estimates: one from the patches around it (smoothed twice over 3 x 3), one from the whole maps, because
    few normal images say little about a single patch. Not in the paper; used by the InCTRL-lite head.

    Args:
        maps: patch residual maps of the normal images against each other (`leave_one_out_maps`, mean over
            the stages).
        grid: rows and columns of patches.
        local_weight: weight of the local estimate, in [0, 1].

    >>> maps = torch.tensor([[0.1, 0.2, 0.3]])                   # one map of three patches in a row
    >>> [round(mean, 4) for mean in normal_residual_statistics(maps, (1, 3))[:, 0].tolist()]
    [0.1875, 0.2, 0.2125]
    """

    def smooth(values: Tensor) -> Tensor:
        for _ in range(2):
            values = F.avg_pool2d(values.view(1, 1, *grid), 3, 1, 1, count_include_pad=False)
        return values.flatten()

    local_mean = smooth(maps.mean(0))
    local_std = smooth((maps - local_mean).square().mean(0)).sqrt()
    mean = local_weight * local_mean + (1 - local_weight) * maps.mean()
    std = local_weight * local_std + (1 - local_weight) * maps.std(correction=0)
    return torch.stack([mean, std], dim=-1)


# --- whole images ------------------------------------------------------------------------------------


def image_residual(query: Float[Tensor, "B D"], support: Float[Tensor, "*b K D"]) -> Float[Tensor, "B D"]:
    """The image-level residual: the mean of the adapted normal embeddings minus the adapted query.

    The public code's sign, followed here; the paper writes query minus prototype. The mean is taken
    after the adapter.

    >>> image_residual(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0], [4.0, 0.0]])).tolist()
    [[2.0, 1.0]]
    """
    return support.mean(-2) - query


def global_distance(
    query: Float[Tensor, "B D"], support: Float[Tensor, "*b K D"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Distance of the global embedding to the nearest normal image, and what normal images have, in [0, 1].

    The distance is half of one minus the cosine. The reference is the mean of the same distance for each
    normal image against the others, pulled towards `GLOBAL_PRIOR`: a geometric mean in which the normal
    images have weight K - 1 and the prior has `PRIOR_WEIGHT`. Without the prior, a few normal images that
    happen to look alike would make everything else look anomalous. Not in the paper; used by the
    InCTRL-lite head.

    >>> support = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])   # the third differs from the others
    >>> distance, reference = global_distance(torch.tensor([[-1.0, 0.0]]), support)
    >>> round(distance.item(), 3), round(reference.item(), 3)          # (1/6)^(2/6) 0.04^(4/6)
    (0.5, 0.064)
    """
    query, support = F.normalize(query, dim=-1), F.normalize(support, dim=-1)
    nearest = (query.unsqueeze(-2) @ support.mT).squeeze(-2).amax(-1)
    among = _without_itself(support @ support.mT).amax(-1)
    return ((1 - nearest) / 2).clamp(0, 1), _reference(nearest, (1 - among) / 2, GLOBAL_PRIOR)


def region_distance(
    query: Float[Tensor, "B Q C"], support: Float[Tensor, "*b M Q C"], shots: int | None = None
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Distance to the nearest normal image by regions, and what normal images have, in [0, 1].

    A region (`ImageFeatures.regions`) is compared with the region at the *same position* of a normal image,
    not with all positions as a patch is. The distance to one normal image is half of one minus the cosine,
    averaged over the `WORST_REGIONS` regions with the largest distance; we take the normal image for which
    that average is smallest. So a query must resemble one normal image everywhere, and not a patchwork of
    several. The reference is made as in `global_distance`, with `REGION_PRIOR`. Not in the paper; used by
    the InCTRL-lite head.

    Args:
        query: region tokens of the queries.
        support: of the K normal images, followed by their augmented copies, image by image.
        shots: K; None: there are no copies.

    >>> a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> distance, reference = region_distance(torch.stack([a, b])[None], torch.stack([b, a])[None])
    >>> distance.item(), round(reference.item(), 2)                    # the two regions have changed places
    (0.5, 0.16)
    """
    query, support = F.normalize(query, dim=-1), F.normalize(support, dim=-1)
    pairs = torch.einsum("...kqc,...mqc->...kmq", support[..., :shots, :, :], support)
    among = _without_itself(_worst(pairs)).amax(-1)
    pairs = torch.einsum("bqc,mqc->bmq" if support.ndim == 3 else "bqc,bmqc->bmq", query, support)
    nearest = _worst(pairs).amax(-1)
    return ((1 - nearest) / 2).clamp(0, 1), _reference(nearest, (1 - among) / 2, REGION_PRIOR)


def _worst(cosines: Float[Tensor, "*c Q"]) -> Float[Tensor, "*c"]:
    """Mean cosine of the `WORST_REGIONS` least similar regions of pairs of images."""
    return cosines.topk(min(WORST_REGIONS, cosines.shape[-1]), largest=False).values.mean(-1)


def _without_itself(cosines: Float[Tensor, "... K M"]) -> Float[Tensor, "... K M"]:
    """Cosines of K images to each other and to all copies, without those to itself and its own copies."""
    shots, seen = cosines.shape[-2:]
    itself = torch.eye(shots, dtype=torch.bool, device=cosines.device)
    copies = itself.repeat_interleave(seen // shots - 1, dim=1)
    return cosines.masked_fill(torch.cat([itself, copies], dim=1), -1)


def _reference(like: Float[Tensor, " B"], among: Float[Tensor, "*b K"], prior: float) -> Float[Tensor, " B"]:
    """What the distance is for normal images: geometric mean of the K images' own and the prior."""
    weight = among.shape[-1] - 1
    log_reference = torch.full_like(like, math.log(prior))
    if weight:
        log_among = among.mean(-1).clamp_min(1e-3).log()
        log_reference = (weight * log_among + PRIOR_WEIGHT * log_reference) / (weight + PRIOR_WEIGHT)
    return log_reference.exp()


# --- text --------------------------------------------------------------------------------------------


def text_cosines(query: Float[Tensor, "B D"], text: Float[Tensor, "*b 2 D"]) -> Float[Tensor, "B 2"]:
    """Cosine of each global embedding to the normal and to the anomalous text prototype, in [-1, 1]."""
    query, text = F.normalize(query, dim=-1), F.normalize(text, dim=-1)
    return (query.unsqueeze(-2) @ text.mT).squeeze(-2)


def text_score(cosines: Float[Tensor, "B 2"], scale: float | Tensor = 100.0) -> Float[Tensor, " B"]:
    """Probability in [0, 1] of "anomalous" from the text prototypes alone: softmax(scale * cosines).

    100 is the public code's constant (CLIP's usual logit scale); the paper's formula shows none.

    >>> text_score(torch.tensor([[0.25, 0.25]])).tolist()
    [0.5]
    """
    return (scale * cosines).softmax(-1)[..., 1]
