"""Exercises of notebook A2: the head of InCTRL-lite."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator


def ranked_z(maps: Tensor, statistics: Tensor, ranks: Tensor) -> Tensor:
    """z-scores [B, R] of maps [B, N] from the largest down, at some ranks [R], counted from 1."""
    mean, deviation = statistics.unbind(-1)
    z = (maps - mean) / (deviation + 0.001)
    return z.sort(dim=1, descending=True).values[:, ranks - 1]


def _maps(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(seed)
    maps = torch.rand(3 + seed, 12, generator=g)
    mean, deviation = torch.rand(12, generator=g), 0.05 + 0.3 * torch.rand(12, generator=g)
    return maps, torch.stack([mean, deviation], dim=-1), torch.tensor([1, 2, 5, 11])


def _z(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """A wrong answer: other z-scores, sorted and read as they should be."""

    def wrong(maps: Tensor, statistics: Tensor, ranks: Tensor) -> Tensor:
        z = change(maps, *statistics.unbind(-1))
        return z.sort(dim=1, descending=True).values[:, ranks - 1]

    return wrong


def _read(read: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A wrong answer: the right z-scores, read in another way."""

    def wrong(maps: Tensor, statistics: Tensor, ranks: Tensor) -> Tensor:
        mean, deviation = statistics.unbind(-1)
        return read((maps - mean) / (deviation + 0.001), ranks)

    return wrong


def _sorted_first(maps: Tensor, statistics: Tensor, ranks: Tensor) -> Tensor:
    mean, deviation = statistics.unbind(-1)
    return ((maps.sort(dim=1, descending=True).values - mean) / (deviation + 0.001))[:, ranks - 1]


check_ranked_z = Exercise(
    solution=ranked_z,
    cases=_maps,
    tolerance=1e-4,
    mistakes={
        "You sort the residuals before the z-scores. The statistics belong to positions, so compute the "
        "z-scores first.": _sorted_first,
        "You sort from the smallest to the largest.": _read(lambda z, r: z.sort(dim=1).values[:, r - 1]),
        "Ranks count from 1, and Python counts from 0.": _read(
            lambda z, r: z.sort(dim=1, descending=True).values[:, r.clamp_max(z.shape[1] - 1)]
        ),
        "You do not sort: these are the z-scores at positions, not at ranks.": _read(
            lambda z, r: z[:, r - 1]
        ),
        "You sort along the batch. Each map is sorted by itself.": _read(
            lambda z, r: z.sort(dim=0, descending=True).values[:, r - 1]
        ),
        "The 0.001 is missing in the denominator.": _z(lambda m, mean, d: (m - mean) / d),
        "You subtract the mean of the map. Subtract the mean of the normal residuals.": _z(
            lambda m, mean, d: (m - m.mean(1, keepdim=True)) / (d + 0.001)
        ),
        "You divide by the variance. Divide by the standard deviation.": _z(
            lambda m, mean, d: (m - mean) / (d.square() + 0.001)
        ),
        "You add 0.001 to the whole fraction, not to the deviation.": _z(
            lambda m, mean, d: (m - mean) / d + 0.001
        ),
        "You take absolute values. A residual below the mean is not anomalous.": _z(
            lambda m, mean, d: ((m - mean) / (d + 0.001)).abs()
        ),
        "These are the first R ranks. Read the given ranks.": _read(
            lambda z, r: z.topk(len(r), dim=1).values
        ),
        "Mean and deviation are exchanged: the mean comes first.": lambda m, s, r: ranked_z(m, s.flip(-1), r),
        "You average the statistics over the positions. Each position has its own.": _z(
            lambda m, mean, d: (m - mean.mean()) / (d.mean() + 0.001)
        ),
        "You do not subtract the mean.": _z(lambda m, mean, d: m / (d + 0.001)),
    },
)


def untrained_score(peak: Tensor, image_ratio: Tensor, region_ratio: Tensor) -> Tensor:
    """The score [B] that needs no training: 1 - (1 - a)(1 - b)."""
    a = (peak / 4 - 1).sigmoid()
    b = (4 * (image_ratio.log() / 2 + region_ratio.log() / 2 - torch.tensor(1.5).log())).sigmoid()
    return 1 - (1 - a) * (1 - b)


def _numbers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = generator(seed)
    peak = 10 * torch.rand(6 + seed, generator=g)
    ratios = 0.5 + 2.5 * torch.rand(2, 6 + seed, generator=g)
    return peak, ratios[0], ratios[1]


def _a(peak: Tensor) -> Tensor:
    return (peak / 4 - 1).sigmoid()


def _b(one: Tensor, other: Tensor) -> Tensor:
    return (4 * (one.log() / 2 + other.log() / 2 - torch.tensor(1.5).log())).sigmoid()


def _joined(join: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    return lambda peak, one, other: join(_a(peak), _b(one, other))


def _other_b(b: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    return lambda peak, one, other: 1 - (1 - _a(peak)) * (1 - b(one, other))


check_untrained_score = Exercise(
    solution=untrained_score,
    cases=_numbers,
    mistakes={
        "You add a and b. The result can exceed 1.": _joined(torch.add),
        "This is the mean of a and b. Take the probability of at least one alarm.": _joined(
            lambda a, b: (a + b) / 2
        ),
        "This is the larger of a and b.": _joined(torch.maximum),
        "This is the probability that BOTH give an alarm. Take at least one.": _joined(torch.mul),
        "This is the probability of no alarm. Subtract it from 1.": _joined(lambda a, b: (1 - a) * (1 - b)),
        "The 1 inside the first sigmoid is missing.": lambda p, g, q: (
            1 - (1 - (p / 4).sigmoid()) * (1 - _b(g, q))
        ),
        "The largest z-score is divided by 4 before 1 is subtracted.": lambda p, g, q: (
            1 - (1 - (p - 4).sigmoid()) * (1 - _b(g, q))
        ),
        "The logarithms are missing.": _other_b(lambda g, q: (4 * (g / 2 + q / 2 - 1.5)).sigmoid()),
        "The logarithms of the two ratios are missing.": _other_b(
            lambda g, q: (4 * (g / 2 + q / 2 - torch.tensor(1.5).log())).sigmoid()
        ),
        "The limit is subtracted, not added.": _other_b(
            lambda g, q: (4 * (g.log() / 2 + q.log() / 2 + torch.tensor(1.5).log())).sigmoid()
        ),
        "Only the global embedding's ratio is used. The regions' ratio counts as much.": _other_b(
            lambda g, q: (4 * (g.log() - torch.tensor(1.5).log())).sigmoid()
        ),
        "1 is subtracted after the division by 4, not before.": lambda p, g, q: (
            1 - (1 - ((p - 1) / 4).sigmoid()) * (1 - _b(g, q))
        ),
        "You multiply the largest z-score by 4. Divide it by 4.": lambda p, g, q: (
            1 - (1 - (4 * p - 1).sigmoid()) * (1 - _b(g, q))
        ),
        "The limit is ln 1.5, not 1.5.": _other_b(
            lambda g, q: (4 * (g.log() / 2 + q.log() / 2 - 1.5)).sigmoid()
        ),
        "The factors 1/2 are missing: take the mean of the two logarithms.": _other_b(
            lambda g, q: (4 * (g.log() + q.log() - torch.tensor(1.5).log())).sigmoid()
        ),
        "The steepness 4 is missing.": _other_b(
            lambda g, q: (g.log() / 2 + q.log() / 2 - torch.tensor(1.5).log()).sigmoid()
        ),
        "You take the logarithm of the mean. Take the mean of the logarithms.": _other_b(
            lambda g, q: (4 * (((g + q) / 2).log() - torch.tensor(1.5).log())).sigmoid()
        ),
        "The steepness multiplies the whole bracket, the limit too.": _other_b(
            lambda g, q: (4 * (g.log() / 2 + q.log() / 2) - torch.tensor(1.5).log()).sigmoid()
        ),
    },
)


def region_gap(query: Tensor, normal: Tensor) -> Tensor:
    """Distances [B] of queries [B, Q, C] to the nearest of K normal images [K, Q, C], by regions."""
    normalize = torch.nn.functional.normalize
    cosines = torch.einsum("bqc,kqc->bkq", normalize(query, dim=-1), normalize(normal, dim=-1))
    worst = cosines.topk(3, dim=-1, largest=False).values.mean(-1)  # [B, K]
    return (1 - worst.amax(1)) / 2


def _regions(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    normal = torch.randn(3 + seed, 7, 5, generator=g)
    query = torch.randn(2 + seed, 7, 5, generator=g) + normal[:1] * 1.5
    if seed == 2:  # image 1 is the nearest on average, and image 0 in the three worst regions
        query[0] = normal[1]
        query[0, :3] = -normal[1, :3]
        normal[0] = query[0] + 0.9 * torch.randn(7, 5, generator=g)
    return query, normal


def _of(judge: Callable[[Tensor], Tensor]) -> Callable:
    """A wrong answer: `judge` turns cosines [B, K, Q] into one cosine for each query."""

    def wrong(query: Tensor, normal: Tensor) -> Tensor:
        cosines = torch.einsum("bqc,kqc->bkq", F.normalize(query, dim=-1), F.normalize(normal, dim=-1))
        return (1 - judge(cosines)) / 2

    return wrong


def _lowest(cosines: Tensor, count: int = 3) -> Tensor:
    return cosines.topk(count, dim=-1, largest=False).values.mean(-1)


def _anywhere(query: Tensor, normal: Tensor) -> Tensor:
    pairs = torch.einsum("bqc,kpc->bkqp", F.normalize(query, dim=-1), F.normalize(normal, dim=-1))
    return (1 - _lowest(pairs.amax(-1)).amax(1)) / 2


check_region_gap = Exercise(
    solution=region_gap,
    cases=_regions,
    mistakes={
        "You compare each region with all positions. Compare it with the SAME position.": _anywhere,
        "You average over the normal images. Take the nearest one.": _of(lambda c: _lowest(c).mean(1)),
        "You take the farthest normal image. Take the nearest one.": _of(lambda c: _lowest(c).amin(1)),
        "You choose the nearest normal image for each region by itself. The query must resemble ONE normal "
        "image everywhere.": _of(lambda c: _lowest(c.amax(1))),
        "You average over all regions. Take the three with the largest distance.": _of(
            lambda c: c.mean(-1).amax(1)
        ),
        "You take the three MOST similar regions. Take the three with the largest distance.": _of(
            lambda c: c.topk(3, dim=-1).values.mean(-1).amax(1)
        ),
        "You take the one worst region. Take the mean of three.": _of(lambda c: _lowest(c, 1).amax(1)),
        "You take the nearest normal image by the mean over all regions, and its three worst regions "
        "afterwards. The distance to EACH image is that of its three worst regions.": _of(
            lambda c: _lowest(c.gather(1, c.mean(-1).argmax(1)[:, None, None].expand(-1, 1, c.shape[2])))[
                :, 0
            ]
        ),
        "You take the third largest distance alone. Take the mean of the three largest.": _of(
            lambda c: c.topk(3, dim=-1, largest=False).values[..., -1].amax(1)
        ),
        "You compare with the mean of the normal images. Compare with each of them.": lambda q, n: region_gap(
            q, F.normalize(n, dim=-1).mean(0, keepdim=True)
        ),
        "You take the two worst regions. Take the mean of three.": _of(lambda c: _lowest(c, 2).amax(1)),
        "The factor 1/2 is missing.": lambda q, n: 2 * region_gap(q, n),
        "This is the cosine. The distance is half of one minus it.": lambda q, n: 1 - 2 * region_gap(q, n),
        "These are dot products. Normalise both sides.": lambda q, n: (
            (1 - _lowest(torch.einsum("bqc,kqc->bkq", q, n)).amax(1)) / 2
        ),
        "You return one distance for each normal image: the minimum over them is missing.": lambda q, n: (
            torch.stack([region_gap(q, one[None]) for one in n], dim=1)
        ),
    },
)
