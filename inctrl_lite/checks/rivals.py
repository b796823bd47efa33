"""Exercises of notebook 08b: the rivals."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator


def coreset(tokens: Tensor, size: int) -> Tensor:
    """Numbers [size] of chosen tokens [n, C]: the first, then each time the one farthest from all chosen."""
    chosen = [0]
    distance = (tokens - tokens[0]).norm(dim=-1)
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (tokens - tokens[chosen[-1]]).norm(dim=-1))
    return torch.tensor(chosen)


def _tokens(seed: int) -> tuple[Tensor, int]:
    g = generator(seed)
    return torch.randn(30 + seed, 3, generator=g) * (1 + torch.arange(3.0)) + 5, 6 + seed


def _greedy(update: Callable[[Tensor, Tensor], Tensor], start: int = 0, choose: str = "argmax") -> Callable:
    """A wrong answer: other rules for the start, the distance to the chosen ones, or the next one."""

    def wrong(tokens: Tensor, size: int) -> Tensor:
        chosen = [start]
        distance = (tokens - tokens[start]).norm(dim=-1)
        while len(chosen) < size:
            chosen.append(int(getattr(distance, choose)()))
            distance = update(distance, (tokens - tokens[chosen[-1]]).norm(dim=-1))
        return torch.tensor(chosen)

    return wrong


def _by_cosine(tokens: Tensor, size: int) -> Tensor:
    return coreset(torch.nn.functional.normalize(tokens, dim=-1), size)


def _by_sum(tokens: Tensor, size: int) -> Tensor:
    chosen, distance = [0], (tokens - tokens[0]).abs().sum(-1)
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (tokens - tokens[chosen[-1]]).abs().sum(-1))
    return torch.tensor(chosen)


check_coreset = Exercise(
    solution=coreset,
    cases=_tokens,
    explain=lambda case, result, right: (
        f"returns the tokens themselves, shape {list(result.shape)}. Return their numbers."
        if isinstance(result, Tensor) and result.ndim == 2
        else None
    ),
    mistakes={
        "You keep the distance to the LAST chosen token. Keep the distance to the nearest of all chosen "
        "tokens.": _greedy(lambda old, new: new),
        "You keep the largest distance to a chosen token. A token is covered if ONE chosen token is near, so "
        "keep the smallest.": _greedy(torch.maximum),
        "You add the distances to all chosen tokens. Keep the smallest of them.": _greedy(torch.add),
        "The next token is the one that is FARTHEST from all chosen tokens.": _greedy(
            torch.minimum, choose="argmin"
        ),
        "You start with another token. Begin with token 0.": _greedy(torch.minimum, start=-1),
        "These are the tokens that are farthest from token 0. Update the distances after each "
        "choice.": lambda tokens, size: torch.cat(
            [torch.tensor([0]), (tokens - tokens[0]).norm(dim=-1).topk(size - 1).indices]
        ),
        "This is the sum of absolute differences. Use Euclidean distances.": _by_sum,
        "These are the first tokens. Choose by distance.": lambda tokens, size: torch.arange(size),
        "Your list has one token too many: the first token counts.": lambda t, size: coreset(t, size + 1),
        "Your list has one token too few.": lambda t, size: coreset(t, size - 1),
        "You compare directions. PatchCore uses Euclidean distances.": _by_cosine,
        "Return the numbers in the order in which they were chosen, not sorted.": lambda t, size: (
            coreset(t, size).sort().values
        ),
    },
)


# --- PatchCore's score -------------------------------------------------------------------------------


def patchcore_score(query: Tensor, bank: Tensor, b: int) -> Tensor:
    """PatchCore's score of one image, a tensor []: patches [N, C] against a memory bank [M, C]."""
    distances = torch.cdist(query, bank)  # [N, M]
    smallest, nearest = distances.min(1)
    worst = smallest.argmax()
    entry = bank[nearest[worst]]  # the bank's token that is nearest to the worst patch
    around = torch.cdist(entry[None], bank)[0].topk(b, largest=False).indices  # its b neighbours, and itself
    to_query = distances[worst, around]
    weight = 1 - torch.exp(smallest[worst]) / torch.exp(to_query).sum()
    return weight * smallest[worst]


def _bank(seed: int) -> tuple[Tensor, Tensor, int]:
    g = generator(seed)
    query, bank = torch.randn(7 + seed, 4, generator=g), torch.randn(40 + seed, 4, generator=g)
    if seed == 3:  # the worst patch lies by a crowd, and a patch that is nearly as bad by a lonely token
        bank[:3] = torch.tensor([5.0, 0, 0, 0]) + 0.1 * torch.randn(3, 4, generator=g)
        bank[3] = torch.tensor([0.0, 0, 0, 7])
        query[2], query[4] = torch.tensor([8.5, 0, 0, 0]), torch.tensor([0.0, 0, 0, 9.9])
    return query, bank, 3 + seed % 3


def _score(
    weight: Callable[[Tensor, Tensor], Tensor] = lambda s, d: 1 - s.exp() / d.exp().sum(),
    around_entry: bool = True,
    worst: str = "argmax",
    skip: int = 0,
) -> Callable:
    def wrong(query: Tensor, bank: Tensor, b: int) -> Tensor:
        distances = torch.cdist(query, bank)
        smallest, nearest = distances.min(1)
        one = getattr(smallest, worst)()
        centre = bank[nearest[one]] if around_entry else query[one]
        around = torch.cdist(centre[None], bank)[0].topk(b + skip, largest=False).indices[skip:]
        return weight(smallest[one], distances[one, around]) * smallest[one]

    return wrong


def _from_entry(query: Tensor, bank: Tensor, b: int) -> Tensor:
    smallest, nearest = torch.cdist(query, bank).min(1)
    worst = smallest.argmax()
    found = torch.cdist(bank[nearest[worst]][None], bank)[0].topk(b, largest=False).values
    return (1 - smallest[worst].exp() / found.exp().sum()) * smallest[worst]


check_patchcore_score = Exercise(
    solution=patchcore_score,
    cases=_bank,
    mistakes={
        "The weight is missing: this is the largest distance alone.": _score(lambda s, d: torch.ones(())),
        "The weight is 1 minus the softmax, not the softmax.": _score(lambda s, d: s.exp() / d.exp().sum()),
        "The neighbours are those of the bank's token m*, not those of the query's patch.": _score(
            around_entry=False
        ),
        "m* belongs to its own b neighbours: its distance to itself is 0.": _score(skip=1),
        "The sum runs over the distances from the query's patch to the neighbours, not from m*.": _from_entry,
        "Take the patch with the LARGEST distance to its nearest token.": _score(worst="argmin"),
        "The exponential is missing in the weight.": _score(lambda s, d: 1 - s / d.sum()),
        "The sum over the neighbours is missing: you take their mean.": _score(
            lambda s, d: 1 - s.exp() / d.exp().mean()
        ),
        "Exponentials of distances, not of negative distances.": _score(
            lambda s, d: 1 - (-s).exp() / (-d).exp().sum()
        ),
        "You return the weight alone. Multiply it by the largest distance.": lambda q, m, b: (
            patchcore_score(q, m, b) / torch.cdist(q, m).amin(1).max()
        ),
        "You weight every patch, and take the largest result. First comes the patch with the largest "
        "distance, q*; it alone is weighted.": lambda q, m, b: torch.stack(
            [patchcore_score(one[None], m, b) for one in q]
        ).max(),
        "The sum runs over the whole bank. Take the b tokens that are nearest to m*.": lambda q, m, b: (
            patchcore_score(q, m, len(m))
        ),
        "You compare directions. PatchCore uses Euclidean distances.": lambda q, m, b: patchcore_score(
            torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(m, dim=-1), b
        ),
        "You average over the patches. The image's score is that of its worst patch.": lambda q, m, b: (
            torch.stack([patchcore_score(one[None], m, b) for one in q]).mean()
        ),
    },
)


# --- PaDiM -------------------------------------------------------------------------------------------


def gaussian_maps(query: Tensor, normal: Tensor, epsilon: float) -> Tensor:
    """Mahalanobis distances [B, N] of patches [B, N, d] to the Gaussians of K normal images [K, N, d]."""
    centred = normal - normal.mean(0)
    covariance = torch.einsum("knd,kne->nde", centred, centred) / (len(normal) - 1)  # [N, d, d]
    inverse = torch.linalg.inv(covariance + epsilon * torch.eye(normal.shape[-1]))
    difference = query - normal.mean(0)
    return torch.einsum("bnd,nde,bne->bn", difference, inverse, difference).sqrt()


def _positions(seed: int) -> tuple[Tensor, Tensor, float]:
    g = generator(seed)
    query = torch.randn(3 + seed, 6, 4, generator=g)
    normal = torch.randn(5 + seed, 6, 4, generator=g) * (0.3 + torch.rand(6, 4, generator=g)) + 1
    return query, normal, (0.1, 0.3, 0.05, 0.2)[seed]


def _mahalanobis(
    covariance: Callable[[Tensor], Tensor] | None = None,
    noise: Callable[[float, int], Tensor] = lambda e, d: e * torch.eye(d),
) -> Callable:
    def usual(centred: Tensor) -> Tensor:
        return torch.einsum("knd,kne->nde", centred, centred) / (len(centred) - 1)

    def wrong(query: Tensor, normal: Tensor, epsilon: float) -> Tensor:
        found = (covariance or usual)(normal - normal.mean(0)) + noise(epsilon, normal.shape[-1])
        gap = query - normal.mean(0)
        return torch.einsum("bnd,nde,bne->bn", gap, torch.linalg.inv(found), gap).sqrt()

    return wrong


def _one_gaussian(query: Tensor, normal: Tensor, epsilon: float) -> Tensor:
    together = normal.flatten(0, 1)
    inverse = torch.linalg.inv(torch.cov(together.T) + epsilon * torch.eye(normal.shape[-1]))
    gap = query - together.mean(0)
    return torch.einsum("bnd,de,bne->bn", gap, inverse, gap).sqrt()


def _without_inverse(query: Tensor, normal: Tensor, epsilon: float) -> Tensor:
    centred, gap = normal - normal.mean(0), query - normal.mean(0)
    found = torch.einsum("knd,kne->nde", centred, centred) / (len(normal) - 1)
    return torch.einsum("bnd,nde,bne->bn", gap, found + epsilon * torch.eye(normal.shape[-1]), gap).sqrt()


def _not_centred(query: Tensor, normal: Tensor, epsilon: float) -> Tensor:
    found = torch.einsum("knd,kne->nde", normal, normal) / (len(normal) - 1)
    inverse, gap = torch.linalg.inv(found + epsilon * torch.eye(normal.shape[-1])), query - normal.mean(0)
    return torch.einsum("bnd,nde,bne->bn", gap, inverse, gap).sqrt()


check_gaussian_maps = Exercise(
    solution=gaussian_maps,
    cases=_positions,
    tolerance=1e-3,
    explain=lambda case, result, right: (
        f"returns shape {list(result.shape)}: one number for each query and position is [B, N] = "
        f"{list(right.shape)}"
        if isinstance(result, Tensor) and result.shape != right.shape
        else None
    ),
    mistakes={
        "The square root is missing: this is the squared distance.": lambda q, n, e: gaussian_maps(
            q, n, e
        ).square(),
        "This is the Euclidean distance to the mean. Use the inverse covariance.": lambda q, n, e: (
            q - n.mean(0)
        ).norm(dim=-1),
        "You multiply by the covariance. The distance uses its INVERSE.": _without_inverse,
        "You divide by K. The sample covariance divides by K - 1.": _mahalanobis(
            lambda c: torch.einsum("knd,kne->nde", c, c) / len(c)
        ),
        "The division by K - 1 is missing in the covariance.": _mahalanobis(
            lambda c: torch.einsum("knd,kne->nde", c, c)
        ),
        "You use the variances alone. PaDiM also uses how the numbers vary together (the whole "
        "matrix).": _mahalanobis(lambda c: torch.diag_embed(c.square().sum(0) / (len(c) - 1))),
        "You use one Gaussian for all positions. Each position has its own.": _one_gaussian,
        "Each position has its own covariance: you average them over the positions.": _mahalanobis(
            lambda c: (
                (torch.einsum("knd,kne->nde", c, c) / (len(c) - 1))
                .mean(0, keepdim=True)
                .expand(c.shape[1], -1, -1)
            )
        ),
        "You subtract the mean over all positions from the query. Each position has its own mean.": (
            lambda q, n, e: gaussian_maps(q - n.mean((0, 1)) + n.mean(0), n, e)
        ),
        "The mean is not subtracted from the query.": lambda q, n, e: gaussian_maps(q + n.mean(0), n, e),
        "The mean is not subtracted from the normal tokens in the covariance.": _not_centred,
        "epsilon is added before the division by K - 1. Add it afterwards.": lambda q, n, e: gaussian_maps(
            q, n, e / (len(n) - 1)
        ),
        "epsilon is added to every number of the matrix. Add it to the diagonal (epsilon times the "
        "identity).": _mahalanobis(noise=lambda e, d: e * torch.ones(d, d)),
        "You add 1 to the diagonal. Use epsilon.": _mahalanobis(noise=lambda e, d: torch.eye(d)),
        "You use 0.01. Use the given epsilon.": _mahalanobis(noise=lambda e, d: 0.01 * torch.eye(d)),
        "epsilon is not used.": _mahalanobis(noise=lambda e, d: 1e-9 * torch.eye(d)),
        "The maximum over the positions comes later: return the map [B, N].": lambda q, n, e: gaussian_maps(
            q, n, e
        ).amax(1),
        "You use the mean of the queries. The Gaussian is that of the normal images.": lambda q, n, e: (
            gaussian_maps(q - q.mean(0) + n.mean(0), n, e)
        ),
    },
)


# --- WinCLIP's windows -------------------------------------------------------------------------------


def to_patches(scores: Tensor, windows: Tensor, patches: int) -> Tensor:
    """Scores of windows [B, W] -> of patches [B, N]: the harmonic mean over the windows that cover each."""
    maps = []
    for patch in range(patches):
        covering = (windows == patch).any(1)  # [W]
        maps.append(covering.sum() / (1 / scores[:, covering]).sum(1))
    return torch.stack(maps, dim=1)


def _windows(seed: int) -> tuple[Tensor, Tensor, int]:
    rows, columns, side = 4, 5 + seed % 2, 2 + seed % 2
    patches = torch.arange(rows * columns).view(rows, columns)
    windows = patches.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)
    return 0.05 + torch.rand(2 + seed, len(windows), generator=generator(seed)), windows, rows * columns


def _mean_of(mean: Callable[[Tensor], Tensor]) -> Callable:
    """A wrong answer: `mean` of the scores [B, n] of the windows that cover a patch."""

    def wrong(scores: Tensor, windows: Tensor, patches: int) -> Tensor:
        covering = [(windows == patch).any(1) for patch in range(patches)]
        return torch.stack([mean(scores[:, rows]) for rows in covering], dim=1)

    return wrong


check_to_patches = Exercise(
    solution=to_patches,
    library=to_patches,
    cases=_windows,
    mistakes={
        "This is the arithmetic mean. Take the harmonic mean.": _mean_of(lambda s: s.mean(1)),
        "This is the geometric mean. Take the harmonic mean.": _mean_of(lambda s: s.log().mean(1).exp()),
        "You take the largest score of the windows. Take their harmonic mean.": _mean_of(lambda s: s.amax(1)),
        "You take the smallest score of the windows. Take their harmonic mean.": _mean_of(
            lambda s: s.amin(1)
        ),
        "This is the mean of 1 / score. The harmonic mean is 1 over that.": _mean_of(
            lambda s: (1 / s).mean(1)
        ),
        "You divide 1 by the SUM of 1 / score. Use the mean: the number of windows belongs "
        "in the numerator.": _mean_of(lambda s: 1 / (1 / s).sum(1)),
        "You divide by the number of patches in a window. At the border fewer windows cover a "
        "patch.": lambda s, w, n: torch.stack(
            [w.shape[1] / (1 / s[:, (w == p).any(1)]).sum(1) for p in range(n)], 1
        ),
        "You use only the window that BEGINS at a patch.": lambda s, w, n: torch.stack(
            [s[:, min(p, s.shape[1] - 1)] for p in range(n)], 1
        ),
        "The result has the axes patches x images. Images come first.": lambda s, w, n: to_patches(s, w, n).T,
    },
)


# --- localisation ------------------------------------------------------------------------------------


def region_overlap(regions: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """Share of each defect that lies above a threshold, averaged over the defects."""
    found = values > threshold
    return float(np.mean([found[regions == r].mean() for r in range(1, regions.max() + 1)]))


def _regions(seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(seed)
    regions = np.zeros((20, 24), int)
    regions[2 : 5 + seed, 3:6], regions[10:18, 10:20], regions[7, 22] = 1, 2, 3
    values = np.round(rng.random((20, 24)) + 0.3 * (regions > 0), 1)  # rounded: ties with the threshold
    values[7, 22] = 0.9
    return regions, values, 0.6


check_region_overlap = Exercise(
    solution=region_overlap,
    cases=_regions,
    mistakes={
        "This is the share of all defect pixels. Each defect must count the same, whatever its "
        "size.": lambda r, v, t: float((v > t)[r > 0].mean()),
        "Region 0 is the normal part of the image. Leave it out.": lambda r, v, t: float(
            np.mean([(v > t)[r == i].mean() for i in range(r.max() + 1)])
        ),
        "A value that equals the threshold does not lie above it.": lambda r, v, t: region_overlap(
            r, v, t - 1e-9
        ),
        "This is the share of the pixels above the threshold that belong to a defect (precision). Divide by "
        "the size of each defect.": lambda r, v, t: float((r > 0)[v > t].mean()),
        "This is the share of defects that were hit at all. Take the share of the PIXELS of "
        "each.": lambda r, v, t: float(np.mean([(v > t)[r == i].any() for i in range(1, r.max() + 1)])),
        "The mean over the defects is missing: you return their sum.": lambda r, v, t: (
            region_overlap(r, v, t) * r.max()
        ),
        "The last defect is missing. `range` stops before its end.": lambda r, v, t: float(
            np.mean([(v > t)[r == i].mean() for i in range(1, r.max())])
        ),
        "You divide by the size of the image. Divide by the size of the defect.": lambda r, v, t: float(
            np.mean([((v > t) & (r == i)).mean() for i in range(1, r.max() + 1)])
        ),
        "You count what lies below the threshold.": lambda r, v, t: 1 - region_overlap(r, v, t),
        "This is the overlap divided by the union (IoU). Divide by the size of the defect "
        "alone.": lambda r, v, t: float(
            np.mean([((v > t) & (r == i)).sum() / ((v > t) | (r == i)).sum() for i in range(1, r.max() + 1)])
        ),
    },
)
