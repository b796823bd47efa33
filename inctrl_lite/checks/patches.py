"""Exercises of notebook 04: patch residuals."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbones import Stage
from inctrl_lite.checks.engine import Exercise, generator
from inctrl_lite.residual import patch_residual_map as library_map
from inctrl_lite.residual import stage_residual_map

GRID = (2, 3)


def patch_residual_map(query: list[Stage], support: list[Stage]) -> Tensor:
    """Residual maps [B, N]: the mean over the stages, whose tokens are [B, N, C] and [K, N, C]."""
    maps = []
    for one, other in zip(query, support, strict=True):
        q, s = F.normalize(one.tokens, dim=-1), F.normalize(other.tokens, dim=-1)
        cosines = torch.einsum("bnc,kmc->bnkm", q, s)
        maps.append((1 - cosines.flatten(-2).amax(-1)) / 2)
    return torch.stack(maps).mean(0)


def _stages(seed: int) -> tuple[list[Stage], list[Stage]]:
    """Tokens of very different lengths; the stages have the same grid and the same width."""
    g = generator(seed)

    def stages(images: int) -> list[Stage]:
        tokens = torch.randn(2 + seed % 2, images, 6, 7, generator=g)
        lengths = 0.2 + 3 * torch.rand(*tokens.shape[:-1], 1, generator=g)
        return [Stage(one, GRID) for one in tokens * lengths]

    return stages(4 + seed), stages(seed % 3 + 1)


def _shapes(query: list[Stage], support: list[Stage]) -> str:
    shapes = (list(query[0].tokens.shape), list(support[0].tokens.shape))
    return f"{len(query)} stages with tokens {shapes[0]} of the queries and {shapes[1]} of the normal images"


def _each(residuals: Callable) -> Callable:
    """A wrong answer: the mean over the stages of `residuals(query tokens, support tokens)`."""
    return lambda query, support: torch.stack(
        [residuals(one.tokens, other.tokens) for one, other in zip(query, support, strict=True)]
    ).mean(0)


def _of_cosines(nearest: Callable) -> Callable:
    """A wrong answer with `nearest(cosines [B, N, K, M])` in place of the largest cosine."""

    def residuals(q: Tensor, s: Tensor) -> Tensor:
        q, s = F.normalize(q, dim=-1), F.normalize(s, dim=-1)
        return (1 - nearest(torch.einsum("bnc,kmc->bnkm", q, s))) / 2

    return _each(residuals)


def _maps(query: list[Stage], support: list[Stage]) -> Tensor:
    """The right maps of all stages [L, B, N]."""
    return torch.stack([stage_residual_map(q.tokens, s.tokens) for q, s in zip(query, support, strict=True)])


def _dot_products(q: Tensor, s: Tensor) -> Tensor:
    return (1 - torch.einsum("bnc,kmc->bnkm", q, s).flatten(-2).amax(-1)) / 2


def _joined(join: Callable, unit: bool = False) -> Callable:
    """The stages made one before the comparison, as they are or (`unit`) with unit length in each stage."""

    def together(stages: list[Stage]) -> Tensor:
        return join([F.normalize(one.tokens, dim=-1) if unit else one.tokens for one in stages])

    return lambda query, support: stage_residual_map(together(query), together(support))


def _side_by_side(tokens: list[Tensor]) -> Tensor:
    return torch.cat(tokens, dim=-1)


def _mean_stage(tokens: list[Tensor]) -> Tensor:
    return torch.stack(tokens).mean(0)


def _any_stage(query: list[Stage], support: list[Stage]) -> Tensor:
    everything = torch.cat([one.tokens for one in support])
    return torch.stack([stage_residual_map(one.tokens, everything) for one in query]).mean(0)


def _first_image(query: list[Stage], support: list[Stage]) -> Tensor:
    return patch_residual_map(query, [Stage(one.tokens[:1], one.grid) for one in support])


check_patch_residual_map = Exercise(
    solution=patch_residual_map,
    library=lambda query, support: library_map(query, support, query[0].grid),
    cases=_stages,
    inputs=_shapes,
    mistakes={
        "The range is wrong: a residual is half of 1 - cos, so it lies between 0 and 1.": lambda q, s: (
            2 * patch_residual_map(q, s)
        ),
        "These are dot products, not cosines: normalise the tokens of both sides along their last axis.": (
            _each(_dot_products)
        ),
        "You compare each patch only with the patch at the same position. Search all patches of all K "
        "normal images.": _of_cosines(lambda c: c.diagonal(dim1=1, dim2=3).amax(1)),
        "You average over the normal images. One good match in any of them is enough, so take the largest "
        "cosine.": _of_cosines(lambda c: c.amax(-1).mean(-1)),
        "You take the least similar patch. The residual is the distance to the most similar patch.": (
            _of_cosines(lambda c: c.flatten(-2).amin(-1))
        ),
        "You take the maximum over the stages. The map is their mean.": lambda q, s: _maps(q, s).amax(0),
        "The mean over the stages is missing: you return one map for each stage.": _maps,
        "The mean over the stages is missing: you return one map for each stage, [B, L, N].": lambda q, s: (
            _maps(q, s).transpose(0, 1)
        ),
        "You add the maps of the stages. Take their mean, or the residuals leave the range 0 to 1.": (
            lambda q, s: _maps(q, s).sum(0)
        ),
        "Each patch is compared with the patches of all stages. A stage of the query "
        "may only be compared with the same stage of the normal images: zip(query, "
        "support).": _any_stage,
        "You join the tokens of the stages into one long vector, so that a patch has one "
        "nearest patch for all stages. Search in each stage by itself, then take the mean of "
        "the maps.": _joined(_side_by_side),
        "You average the cosines over the stages before you search the largest. Search in each stage by "
        "itself, then take the mean of the maps.": _joined(_side_by_side, unit=True),
        "You average the tokens over the stages before the comparison. Compare in each stage by itself, "
        "then take the mean of the maps.": _joined(_mean_stage),
        "You average the unit vectors over the stages before the comparison. Compare in each stage by "
        "itself, then take the mean of the maps.": _joined(_mean_stage, unit=True),
        "Only the first stage is used: take the mean over all stages.": lambda q, s: _maps(q, s)[0],
        "Only the last stage is used: take the mean over all stages.": lambda q, s: _maps(q, s)[-1],
        "This is the largest cosine. The residual is half of one minus it.": lambda q, s: (
            1 - 2 * patch_residual_map(q, s)
        ),
        "Only the first normal image is searched: search the patches of all K.": _first_image,
    },
)


def cosine_megabytes(B: int, L: int, N: int, K: int) -> float:
    """Memory of all cosines at once, in MB (10**6 bytes), as float32."""
    return B * L * N * (K * N) * 4 / 1e6


check_cosine_megabytes = Exercise(
    solution=cosine_megabytes,
    cases=lambda seed: (2 + seed, 3, 49 + 8 * seed, 1 + seed),
    mistakes={
        "A float32 number takes 4 bytes.": lambda B, L, N, K: cosine_megabytes(B, L, N, K) / 4,
        "Every patch is compared with the patches of all K normal images: K is missing.": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, 1)
        ),
        "Every query patch is compared with all N patches of a normal image: N occurs twice.": (
            lambda B, L, N, K: B * L * N * K * 4 / 1e6
        ),
        "An MB is 10**6 bytes here; you count in units of 2**20.": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) * 1e6 / 2**20
        ),
        "These are bytes: divide by 10**6.": lambda B, L, N, K: cosine_megabytes(B, L, N, K) * 1e6,
        "These are megabits: a byte has 8 bits, and a float32 number takes 4 bytes.": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) * 8
        ),
        "These are bits, not MB: a float32 number takes 4 bytes, and an MB is 10**6 bytes.": (
            lambda B, L, N, K: cosine_megabytes(B, L, N, K) * 8e6
        ),
        "This counts the numbers: a float32 number takes 4 bytes, and an MB is 10**6 bytes.": (
            lambda B, L, N, K: cosine_megabytes(B, L, N, K) / 4 * 1e6
        ),
        "This is in kB: an MB is 10**6 bytes.": lambda B, L, N, K: cosine_megabytes(B, L, N, K) * 1e3,
        "This is in GB: an MB is 10**6 bytes.": lambda B, L, N, K: cosine_megabytes(B, L, N, K) / 1e3,
        "A float32 number takes 4 bytes; a float64 number takes 8.": lambda B, L, N, K: (
            2 * cosine_megabytes(B, L, N, K)
        ),
        "You add the patches of queries and normal images. But each query patch is compared with each "
        "normal patch: multiply.": lambda B, L, N, K: L * (B * N + K * N) * 4 / 1e6,
        "All B queries are compared at once: B is missing.": lambda B, L, N, K: cosine_megabytes(1, L, N, K),
        "All L stages are compared at once: L is missing.": lambda B, L, N, K: cosine_megabytes(B, 1, N, K),
    },
)
