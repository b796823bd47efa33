"""Exercises of notebook 04: patch residuals."""

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator
from inctrl_lite.residual import layer_residual_maps
from inctrl_lite.residual import patch_residual_map as library_map


def _features(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    shots, blocks, width = seed % 3 + 1, 2 + seed % 2, 7
    return (
        torch.randn(3, blocks, 5, width, generator=g),
        torch.randn(shots, blocks, 5, width, generator=g),
    )


def patch_residual_map(query: Tensor, prompt: Tensor) -> Tensor:
    """Residual maps [B, N] of queries [B, L, N, C] against K normal prompts [K, L, N, C]."""
    query, prompt = F.normalize(query, dim=-1), F.normalize(prompt, dim=-1)
    cosines = torch.einsum("blnc,klmc->blnkm", query, prompt)
    nearest = cosines.flatten(-2).amax(-1)
    return ((1 - nearest) / 2).mean(1)


def _cosines(query: Tensor, prompt: Tensor) -> Tensor:
    query, prompt = F.normalize(query, dim=-1), F.normalize(prompt, dim=-1)
    return torch.einsum("blnc,klmc->blnkm", query, prompt)


def _reshaped(query: Tensor, prompt: Tensor) -> Tensor:
    mixed = prompt.reshape(prompt.shape[1], -1, prompt.shape[-1])  # blocks and shots change places
    cosines = torch.einsum("blnc,lmc->blnm", F.normalize(query, dim=-1), F.normalize(mixed, dim=-1))
    return ((1 - cosines.amax(-1)) / 2).mean(1)


check_patch_residual_map = Exercise(
    solution=patch_residual_map,
    library=library_map,
    cases=_features,
    mistakes={
        "the range is wrong: a residual is half of 1 - cos, from 0 to 1": lambda q, p: (
            2 * patch_residual_map(q, p)
        ),
        "these are dot products, not cosines: normalise both sides along their last axis": lambda q, p: (
            (1 - torch.einsum("blnc,klmc->blnkm", q, p).flatten(-2).amax(-1)) / 2
        ).mean(1),
        "you compare each patch with the one at the same place only: search all M patches of all K prompts": (
            lambda q, p: ((1 - _cosines(q, p).diagonal(dim1=2, dim2=4).amax(2)) / 2).mean(1)
        ),
        "you average over the prompts: one good match in any of them is enough, so take the nearest": (
            lambda q, p: ((1 - _cosines(q, p).amax(-1).mean(-1)) / 2).mean(1)
        ),
        "you take the least similar patch: the residual is to the most similar one": lambda q, p: (
            (1 - _cosines(q, p).flatten(-2).amin(-1)) / 2
        ).mean(1),
        "blocks and shots are mixed up by a reshape: a query's block may only meet the same block of the "
        "prompts": _reshaped,
        "the blocks are fused by their maximum: the map is the mean over the L blocks": lambda q, p: (
            (1 - _cosines(q, p).flatten(-2).amax(-1)) / 2
        ).amax(1),
        "the mean over the L blocks is missing": layer_residual_maps,
    },
)


def cosine_megabytes(B: int, L: int, N: int, K: int) -> float:
    """Memory of all cosines at once, in MB (10**6 bytes), as float32."""
    return B * L * N * (K * N) * 4 / 1e6


check_cosine_megabytes = Exercise(
    solution=cosine_megabytes,
    cases=lambda seed: (2 + seed, 3, 49 + 8 * seed, 1 + seed),
    mistakes={
        "a float32 takes 4 bytes": lambda B, L, N, K: cosine_megabytes(B, L, N, K) / 4,
        "every patch meets the patches of all K prompts: K is missing": lambda B, L, N, K: cosine_megabytes(
            B, L, N, 1
        ),
        "every query patch meets all N patches of a prompt: N appears twice": lambda B, L, N, K: (
            B * L * N * K * 4 / 1e6
        ),
        "MB are 10**6 bytes here; you count in units of 2**20": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) * 1e6 / 2**20
        ),
        "all L blocks are there at once: L is missing": lambda B, L, N, K: cosine_megabytes(B, 1, N, K),
    },
)
