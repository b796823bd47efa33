"""Exercises of notebook 04: patch residuals."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbones import Stage
from inctrl_lite.checks.engine import Exercise, generator, same
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
        "Only the tokens of the query have length 1. Normalise those of the normal images as well.": _each(
            lambda q, s: _dot_products(F.normalize(q, dim=-1), s)
        ),
        "Only the tokens of the normal images have length 1. Normalise those of the query as well.": _each(
            lambda q, s: _dot_products(q, F.normalize(s, dim=-1))
        ),
        "You take the absolute value of the cosines. A patch that points in the opposite direction is not "
        "similar.": _of_cosines(lambda c: c.abs().flatten(-2).amax(-1)),
        "Brackets are missing: half of (1 - cosine), and not 1 - half of the cosine.": lambda q, s: (
            0.5 + patch_residual_map(q, s)
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


# --- the nearest patch within a limit of memory --------------------------------------------------------


def residuals_in_pieces(
    query: Tensor, support: Tensor, compare: Callable[[Tensor, Tensor], Tensor], most: int
) -> tuple[Tensor, Tensor]:
    """Residuals [N] and numbers [N] of the nearest normal patches, with at most `most` cosines at once."""
    rows = min(len(query), most)
    columns = most // rows
    residuals, nearest = [], []
    for patches in query.split(rows):
        best = torch.full((len(patches),), -torch.inf)
        number = torch.zeros(len(patches), dtype=torch.long)
        for start in range(0, len(support), columns):
            largest, where = compare(patches, support[start : start + columns]).max(1)
            better = largest > best
            best = torch.where(better, largest, best)
            number = torch.where(better, where + start, number)
        residuals.append((1 - best) / 2)
        nearest.append(number)
    return torch.cat(residuals), torch.cat(nearest)


def _pieces(seed: int) -> tuple[Tensor, Tensor, int]:
    """`most` is smaller than M alone; larger than N and M; one; smaller than N alone; much larger, twice.

    Numbers of patches have no common factor, so that the last piece is smaller. In the second case all
    cosines are negative.
    """
    g = generator(seed)
    sizes = ((13, 61, 17), (37, 29, 100), (7, 11, 1), (5, 3, 4), (71, 9, 200), (9, 71, 700))
    patches, normal, most = sizes[seed]
    query, support = torch.randn(patches, 6, generator=g), torch.randn(normal, 6, generator=g)
    if seed == 1:
        query, support = query.abs(), -support.abs()
    return query, support, most


@dataclass(frozen=True)
class _Use:
    """The rule of `compare` that an answer broke ("": none), the size of its largest piece, and a message."""

    broken: str
    largest: int = 0  # where it was too large
    message: str = field(default="", compare=False)


def _use(sizes: list[int], pairs: int, most: int) -> _Use:
    """Which rule these calls of `compare` break, each with a number of cosines."""
    largest, made, calls = max(sizes, default=0), sum(sizes), len(sizes)
    if not calls:
        return _Use("unused", message="never calls `compare`. All cosines must come from it.")
    if largest > most:
        said = f"makes {largest} cosines in one call of `compare`; at most {most} are allowed."
        return _Use("size", largest, said)
    if made != pairs:
        said = f"makes {made} cosines in all. There are {pairs} pairs of patches; compare each pair once."
        return _Use("pairs", message=said)
    if calls > 4 + 4 * pairs / most:
        said = f"calls `compare` {calls} times for {pairs} cosines, although {most} may be made at once: "
        return _Use("calls", message=said + "make larger pieces.")
    return _Use("")


def _watched(answer: Callable, query: Tensor, support: Tensor, most: int) -> tuple:
    """What an answer returns, and how it used `compare`."""
    sizes: list[int] = []

    def compare(patches: Tensor, others: Tensor) -> Tensor:
        if patches.ndim != 2 or others.ndim != 2:
            shapes = f"{list(patches.shape)} and {list(others.shape)}"
            raise ValueError(f"compare takes tensors [n, C] and [m, C], not {shapes}")
        sizes.append(len(patches) * len(others))
        return F.normalize(patches, dim=-1) @ F.normalize(others, dim=-1).T

    result = answer(query, support, compare, most)
    parts = list(result) if isinstance(result, list | tuple | Tensor | np.ndarray) else [result]
    return (*parts, _use(sizes, len(query) * len(support), most))


def _said(case: tuple, result: tuple, right: tuple) -> str | None:
    """What is wrong with an answer that no known mistake gives."""
    *parts, use = result
    if use.broken in ("unused", "size"):
        return use.message
    if len(parts) != 2:
        return f"returns {len(parts)} values; two are expected: the residuals [N] and the numbers [N]"
    values = [
        torch.as_tensor(part).double() for part in parts if isinstance(part, Tensor | list | np.ndarray)
    ]
    whole = len(values) == 2 and all(
        one.shape == other.shape and torch.allclose(one, other.double(), rtol=0, atol=1e-5)
        for one, other in zip(values, right[:2], strict=True)
    )
    if whole or use.broken == "calls":
        return use.message or None
    if len(values) == 2 and not use.broken and same(values[0], right[0], 1e-5):
        return (
            "the residuals are right, but the numbers are not. A position inside a piece is not the number "
            "of a patch: add the number at which the piece begins, and keep the old number where the new "
            "piece is no better"
        )
    return None


def _by_pieces(
    residual: Callable = lambda best: (1 - best) / 2,
    start: float = -torch.inf,
    keep: Callable = lambda new, old: new > old,
    offset: bool = True,
    last: bool = True,
    finish: Callable = lambda residuals, numbers: (residuals, numbers),
    rows: Callable = lambda N, M, most: min(N, most),
    columns: Callable = lambda rows, M, most: max(1, most // rows),
    pick: str = "max",
) -> Callable:
    """A wrong answer: the right one, with something else in one place."""

    def wrong(query: Tensor, support: Tensor, compare: Callable, most: int) -> tuple:
        some = rows(len(query), len(support), most)
        step = columns(some, len(support), most)
        stop = len(support) if last else len(support) // step * step
        residuals, nearest = [], []
        for patches in query.split(some):
            best, number = torch.full((len(patches),), start), torch.zeros(len(patches), dtype=torch.long)
            for first in range(0, stop, step):
                found = getattr(compare(patches, support[first : min(first + step, stop)]), pick)(1)
                better = keep(found.values, best)
                best = torch.where(better, found.values, best)
                number = torch.where(better, found.indices + (first if offset else 0), number)
            residuals.append(residual(best))
            nearest.append(number)
        return finish(torch.cat(residuals), torch.cat(nearest))

    return wrong


def _without_last_rows(query: Tensor, support: Tensor, compare: Callable, most: int) -> tuple:
    rows = min(len(query), most)
    return residuals_in_pieces(query[: len(query) // rows * rows], support, compare, most)


def _without_compare(query: Tensor, support: Tensor, compare: Callable, most: int) -> tuple:
    cosines = F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).T
    largest, where = cosines.max(1)
    return (1 - largest) / 2, where


def _mean_of_pieces(query: Tensor, support: Tensor, compare: Callable, most: int) -> tuple:
    rows = min(len(query), most)
    columns = most // rows
    found, numbers = [], residuals_in_pieces(query, support, compare, most)[1]
    for patches in query.split(rows):
        cosines = [
            F.normalize(patches, dim=-1) @ F.normalize(part, dim=-1).T for part in support.split(columns)
        ]
        found.append(torch.stack([one.amax(1) for one in cosines]).mean(0))
    return (1 - torch.cat(found)) / 2, numbers


check_residuals_in_pieces = Exercise(
    solution=residuals_in_pieces,
    cases=_pieces,
    run=_watched,
    inputs=lambda query, support, most: (
        f"{len(query)} query patches, {len(support)} normal patches, at most {most} cosines at once"
    ),
    explain=_said,
    parts=("residuals", "numbers of the nearest patches", "use of compare"),
    number=6,
    mistakes={
        "You compare everything at once. No call of `compare` may make more than `most` cosines.": (
            _by_pieces(rows=lambda N, M, most: N, columns=lambda rows, M, most: M)
        ),
        "Each piece has `most` query patches or `most` normal patches. But a piece of n and m patches has "
        "n x m cosines.": _by_pieces(columns=lambda rows, M, most: most),
        "You divide only the query patches. If `most` is smaller than the number of normal patches, even one "
        "query patch needs several pieces.": _by_pieces(
            rows=lambda N, M, most: max(1, most // M), columns=lambda rows, M, most: M
        ),
        "You divide only the normal patches. If `most` is smaller than the number of query patches, even one "
        "normal patch needs several pieces.": _by_pieces(
            rows=lambda N, M, most: N, columns=lambda rows, M, most: max(1, most // rows)
        ),
        "One cosine for each call is slow. Make the pieces as large as `most` allows.": (
            _by_pieces(rows=lambda N, M, most: 1, columns=lambda rows, M, most: 1)
        ),
        "You take one query patch at a time. If `most` is larger than the number of normal patches, a "
        "piece can have several.": _by_pieces(
            rows=lambda N, M, most: 1, columns=lambda rows, M, most: min(M, most)
        ),
        "You take one normal patch at a time. If `most` is larger than the number of query patches, a "
        "piece can have several.": _by_pieces(
            rows=lambda N, M, most: min(N, most), columns=lambda rows, M, most: 1
        ),
        "The cosines are not from `compare`: call it for every piece.": _without_compare,
        "You keep only the last piece. Compare its largest cosine with the largest so far.": _by_pieces(
            keep=lambda new, old: torch.ones_like(new, dtype=torch.bool)
        ),
        "You keep only the first piece. A later piece may have a larger cosine.": _by_pieces(
            keep=lambda new, old: old == -torch.inf
        ),
        "The number is that inside its piece. Add the number at which the piece begins.": _by_pieces(
            offset=False
        ),
        "The largest cosine so far begins at 0. Cosines may all be negative: begin below -1.": _by_pieces(
            start=0.0
        ),
        "The last piece is missing: it may be smaller than the others.": _by_pieces(last=False),
        "The last query patches are missing: their piece may be smaller than the others.": (
            _without_last_rows
        ),
        "You keep the smallest cosine. The nearest patch has the largest.": _by_pieces(
            start=torch.inf, keep=lambda new, old: new < old, pick="min"
        ),
        "These are the largest cosines. The residual is half of one minus the largest cosine.": _by_pieces(
            residual=lambda best: best
        ),
        "The factor 1/2 is missing: the residual is half of one minus the largest cosine.": _by_pieces(
            residual=lambda best: 1 - best
        ),
        "The two results are exchanged: first the residuals, then the numbers.": _by_pieces(
            finish=lambda residuals, numbers: (numbers, residuals)
        ),
        "The numbers of the nearest patches are missing: return two tensors.": _by_pieces(
            finish=lambda residuals, numbers: (residuals,)
        ),
        "You average over the pieces. The nearest patch lies in one of them: keep the largest cosine.": (
            _mean_of_pieces
        ),
    },
)
