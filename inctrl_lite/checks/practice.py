"""Exercises of notebook 12: your own images."""

import math
from collections.abc import Callable

import numpy as np

from inctrl_lite.checks.engine import Exercise, stats
from inctrl_lite.metrics import conformal_threshold


def _scores(seed: int) -> tuple[np.ndarray, float]:
    number, rate = ((19, 0.25), (26, 0.1), (40, 0.05), (46, 0.3), (32, 0.1), (9, 0.05))[seed]  # last: too few
    return np.random.default_rng(seed).random(number), rate


def threshold_at_rate(normal_scores: np.ndarray, rate: float) -> float:
    """The r-th largest of n scores; r: the largest whole number with r / (n + 1) <= rate, at least 1."""
    r = max(1, int(rate * (len(normal_scores) + 1)))
    return float(np.sort(normal_scores)[::-1][r - 1])


def _descending(scores: np.ndarray, index: int) -> float:
    return float(np.sort(scores)[::-1][index])


check_threshold_at_rate = Exercise(
    solution=threshold_at_rate,
    library=lambda normal_scores, rate: conformal_threshold(normal_scores, rate).threshold,
    cases=_scores,
    number=6,
    mistakes={
        "If even r = 1 is too large, return the largest score. Your r is 0 there, and the index r - 1 = -1 "
        "is the smallest one.": lambda s, rate: _descending(s, int(rate * (len(s) + 1)) - 1),
        "If even r = 1 is too large, return the largest score, and not infinity.": lambda s, rate: (
            threshold_at_rate(s, rate) if rate * (len(s) + 1) >= 1 else np.inf
        ),
        "Your r is always below rate * (n + 1). It may be equal to it.": lambda s, rate: _descending(
            s, max(math.ceil(rate * (len(s) + 1)) - 1, 1) - 1
        ),
        "You round r to the nearest whole number. Round down, or r / (n + 1) may exceed the wanted rate.": (
            lambda s, rate: _descending(s, max(round(rate * (len(s) + 1)), 1) - 1)
        ),
        "You do not sort the scores.": lambda s, rate: float(s[max(int(rate * (len(s) + 1)), 1) - 1]),
        "You let the share `rate` of these n scores lie above the threshold. A new image then exceeds it "
        "with the probability (floor(rate * n) + 1) / (n + 1), which can be more than the wanted rate. "
        "Use r = floor(rate * (n + 1)).": lambda s, rate: _descending(s, int(rate * len(s))),
        "Python counts from 0: the r-th largest score is at index r - 1.": lambda s, rate: _descending(
            s, int(rate * (len(s) + 1))
        ),
        "You use rate * n in place of rate * (n + 1): with the new image there are n + 1 ranks.": (
            lambda s, rate: _descending(s, max(int(rate * len(s)), 1) - 1)
        ),
        "You round r up, so that r / (n + 1) exceeds the wanted rate. Round down.": lambda s, rate: (
            _descending(s, math.ceil(rate * (len(s) + 1)) - 1)
        ),
        "np.quantile interpolates between two scores. Take one of the scores.": lambda s, rate: float(
            np.quantile(s, 1 - rate)
        ),
        'np.quantile with method="higher" counts n - 1 steps between n scores, which gives another score. '
        "Count the scores from the largest down.": lambda s, rate: float(
            np.quantile(s, 1 - rate, method="higher")
        ),
        "This is the low end of the scores. Alarms are the large scores.": lambda s, rate: float(
            np.quantile(s, rate)
        ),
        "You sort from small to large. Count from the largest score down.": lambda s, rate: float(
            np.sort(s)[int(rate * (len(s) + 1)) - 1]
        ),
        "This is the largest score, whatever the wanted rate is.": lambda s, rate: float(s.max()),
    },
)


def normals_needed(rate: float, confidence: float) -> int:
    """Smallest n with chance 1 - confidence or less of n images without a false alarm."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - rate)))


check_normals_needed = Exercise(
    solution=normals_needed,
    cases=lambda seed: ((0.05, 0.95), (0.1, 0.9), (0.5, 0.75), (0.01, 0.99))[seed],
    mistakes={
        "Round up: with one image fewer the probability is still too large.": lambda rate, confidence: int(
            math.log(1 - confidence) / math.log(1 - rate)
        ),
        "If the division gives a whole number, that number is enough. Round up, but do not add 1.": (
            lambda rate, confidence: math.floor(math.log(1 - confidence) / math.log(1 - rate)) + 1
        ),
        "A number of photos is whole: round up.": lambda rate, confidence: (
            math.log(1 - confidence) / math.log(1 - rate)
        ),
        "You round to the nearest whole number. Round up, or the probability may still be too large.": (
            lambda rate, confidence: round(math.log(1 - confidence) / math.log(1 - rate))
        ),
        "The sign is wrong: both logarithms are negative, and their quotient is positive.": (
            lambda rate, confidence: -normals_needed(rate, confidence)
        ),
        "After 1 / rate images you expect one alarm, but no alarm is still likely.": (
            lambda rate, confidence: math.ceil(round(1 / rate, 6))
        ),
        "The probability of n images without an alarm must fall to 1 - confidence, not to the confidence.": (
            lambda rate, confidence: math.ceil(math.log(confidence) / math.log(1 - rate))
        ),
        "The probability that an image raises no alarm is 1 - rate.": lambda rate, confidence: math.ceil(
            math.log(1 - confidence) / math.log(rate)
        ),
        "This is the rule of three, a good estimate at 95 %. The exact number is expected.": (
            lambda rate, confidence: math.ceil(round(3 / rate, 6))
        ),
    },
)


# --- a rank with a guarantee ---------------------------------------------------------------------------


def rank_with_guarantee(n: int, rate: float, confidence: float) -> int:
    """Largest r whose threshold, the r-th largest of n scores, keeps the rate with the confidence; or 0."""
    from scipy.stats import binom

    # The threshold keeps the rate if r or more of the n scores lie among the share `rate` of the highest.
    probability = binom.sf(np.arange(n), n, rate)  # of r or more, for r = 1 to n
    return int((probability >= confidence).sum())


def _largest(probability: Callable, least: int = 0) -> Callable:
    """A wrong answer: the largest r with another probability (given r = 1 to n, n, rate, confidence)."""

    def wrong(n: int, rate: float, confidence: float) -> int:
        ranks = np.arange(1, n + 1)
        kept = ranks[probability(ranks, n, rate, confidence)]
        return int(kept.max()) if len(kept) else least

    return wrong


def _probability(n: int, rate: float, confidence: float) -> float:
    rank = rank_with_guarantee(n, rate, confidence)
    return float(stats().binom.sf(rank - 1, n, rate))


check_rank_with_guarantee = Exercise(
    solution=rank_with_guarantee,
    cases=lambda seed: (
        (40, 0.1, 0.95),
        (200, 0.05, 0.9),
        (58, 0.05, 0.95),
        (20, 0.1, 0.95),
        (3000, 0.02, 0.99),
        (59, 0.05, 0.95),
        (7, 0.3, 0.2),
        (5000, 0.1, 0.95),
        (1177, 0.02, 0.9),  # from here on the probability lies within 0.00003 of the confidence
        (878, 0.1, 0.9),
        (2846, 0.05, 0.9),
        (2151, 0.03, 0.9),
    )[seed],
    number=12,
    explain=lambda case, result, right: (
        "returns no whole number. Return the rank r, or 0."
        if isinstance(result, float | np.floating) and not float(result).is_integer()
        else f"returns rank {result}. It keeps the rate with the probability "
        f"{stats().binom.sf(result - 1, case[0], case[1]):.6f}, and the largest with {case[2]} or more is "
        f"{right}"
        if isinstance(result, int | float | np.integer) and 0 < result <= case[0]
        else None
    ),
    mistakes={
        "This rank keeps the rate only on average, as in exercise 12.1. Here it must be kept with the given "
        "confidence.": lambda n, rate, confidence: int(rate * (n + 1) + 1e-9),
        "You count `rate * n` scores above the threshold. That is what one expects, and says nothing about a "
        "confidence.": lambda n, rate, confidence: int(rate * n + 1e-9),
        "One rank too small: the rate is kept if r OR MORE scores lie among the highest, not only if more "
        "than r do.": _largest(lambda r, n, rate, c: stats().binom.sf(r, n, rate) >= c),
        "One rank too large: P(X >= r) is 1 - P(X <= r - 1), with r - 1.": lambda n, rate, confidence: (
            rank_with_guarantee(n, rate, confidence) + 1
        ),
        "This is the other side: the probability that r or fewer scores lie among the highest.": _largest(
            lambda r, n, rate, c: stats().binom.cdf(r, n, rate) <= c
        ),
        "This is the probability of exactly r scores among the highest. Count r or more.": _largest(
            lambda r, n, rate, c: stats().binom.pmf(r, n, rate) >= c
        ),
        "The probability that the rate is kept must reach the confidence, not 1 - confidence.": (
            _largest(lambda r, n, rate, c: stats().binom.sf(r - 1, n, rate) >= 1 - c)
        ),
        "If even the largest score gives no guarantee, return 0: there are too few images.": (
            lambda n, rate, confidence: max(1, rank_with_guarantee(n, rate, confidence))
        ),
        "You stop at r = 1, as in exercise 12.2. With many images a larger r keeps the rate as well.": (
            lambda n, rate, confidence: min(1, rank_with_guarantee(n, rate, confidence))
        ),
        "Each of the n scores is among the highest with the probability `rate`, not 1 - rate.": _largest(
            lambda r, n, rate, c: stats().binom.sf(r - 1, n, 1 - rate) >= c
        ),
        "Rate and confidence are exchanged.": _largest(
            lambda r, n, rate, c: stats().binom.sf(r - 1, n, c) >= rate
        ),
        "The new image is not one of the n known scores: there are n draws, not n + 1.": _largest(
            lambda r, n, rate, c: stats().binom.sf(r - 1, n + 1, rate) >= c
        ),
        "This is the normal approximation. It is not exact, above all for few images: use the binomial "
        "distribution itself.": lambda n, rate, confidence: max(
            0,
            math.floor(n * rate - _quantile(confidence) * math.sqrt(n * rate * (1 - rate))),
        ),
        "This is the probability that the rate is kept. Return the rank.": _probability,
    },
)


def _quantile(confidence: float) -> float:
    """Of the standard normal distribution."""
    return float(stats().norm.ppf(confidence))
