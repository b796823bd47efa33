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
    """Residual maps [B, N] of queries [B, L, N, C] against K normal prompts [K, L, M, C]."""
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


def _any_block(query: Tensor, prompt: Tensor) -> Tensor:
    cosines = torch.einsum("blnc,komc->blnkom", F.normalize(query, dim=-1), F.normalize(prompt, dim=-1))
    return ((1 - cosines.flatten(-3).amax(-1)) / 2).mean(1)


def _joined(join, before: bool = False):
    """The blocks made one before the comparison, as they are or (`before`) with unit length in each block."""

    def wrong(query: Tensor, prompt: Tensor) -> Tensor:
        if before:
            query, prompt = F.normalize(query, dim=-1), F.normalize(prompt, dim=-1)
        return patch_residual_map(join(query)[:, None], join(prompt)[:, None])

    return wrong


def _side_by_side(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)


def _mean_block(tokens: Tensor) -> Tensor:
    return tokens.mean(1)


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
        "patches meet those of *any* block: a query's block may only meet the same block of the prompts, so "
        "both get the letter l": _any_block,
        "the tokens of the blocks are joined into one long vector, and a patch then has one nearest for all "
        "blocks: search in each block by itself, then take the mean of the maps": _joined(_side_by_side),
        "the cosines are averaged over the blocks before the nearest is searched: search in each block by "
        "itself, then take the mean of the maps": _joined(_side_by_side, before=True),
        "the tokens are averaged over the blocks before they are compared: compare in each block by itself, "
        "then take the mean of the maps": _joined(_mean_block),
        "the unit vectors are averaged over the blocks before they are compared: compare in each block by "
        "itself, then take the mean of the maps": _joined(_mean_block, before=True),
        "only the first block is used: take the mean over all L": lambda q, p: layer_residual_maps(q, p)[
            :, 0
        ],
        "only the last block is used: take the mean over all L": lambda q, p: layer_residual_maps(q, p)[
            :, -1
        ],
        "this is the largest cosine: the residual is half of one minus it": lambda q, p: (
            1 - 2 * patch_residual_map(q, p)
        ),
        "only the first prompt is searched: search the patches of all K": lambda q, p: patch_residual_map(
            q, p[:1]
        ),
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
        "these are bytes: divide by 10**6": lambda B, L, N, K: cosine_megabytes(B, L, N, K) * 1e6,
        "these are bits: a byte has 8 of them, and a float32 takes 4 bytes": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) * 8
        ),
        "these are bits, not MB: a float32 takes 4 bytes, and an MB is 10**6 of them": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) * 8e6
        ),
        "this counts the numbers: a float32 takes 4 bytes, and an MB is 10**6 of them": lambda B, L, N, K: (
            cosine_megabytes(B, L, N, K) / 4 * 1e6
        ),
        "this is in kB: an MB is 10**6 bytes": lambda B, L, N, K: cosine_megabytes(B, L, N, K) * 1e3,
        "this is in GB: an MB is 10**6 bytes": lambda B, L, N, K: cosine_megabytes(B, L, N, K) / 1e3,
        "a float32 takes 4 bytes; 8 are those of a float64": lambda B, L, N, K: (
            2 * cosine_megabytes(B, L, N, K)
        ),
        "this is the prompts' and the queries' patches added: each query patch meets each prompt patch": (
            lambda B, L, N, K: L * (B * N + K * N) * 4 / 1e6
        ),
        "all B queries are there at once: B is missing": lambda B, L, N, K: cosine_megabytes(1, L, N, K),
        "all L blocks are there at once: L is missing": lambda B, L, N, K: cosine_megabytes(B, 1, N, K),
    },
)
