"""Exercises of notebook 08: evaluation."""

import numpy as np
from scipy import stats

from inctrl_lite.checks.engine import Exercise
from inctrl_lite.metrics import auroc as library_auroc


def _tied(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.zeros(9 + seed, int), np.ones(5 + 2 * seed, int)])
    scores = np.round(np.clip(rng.normal(0.4 + 0.15 * labels, 0.2), 0, 1), 1)  # coarse: many ties
    order = rng.permutation(len(labels))
    return labels[order], scores[order]


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of (normal, anomalous) pairs won by the anomalous image; ties count half."""
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(((difference > 0) + (difference == 0) / 2).mean())


def _difference(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return scores[labels == 1][:, None] - scores[labels == 0][None, :]


def _side_by_side(labels: np.ndarray, scores: np.ndarray) -> float:
    pairs = list(zip(scores[labels == 1], scores[labels == 0], strict=False))
    return float(np.mean([(a > n) + (a == n) / 2 for a, n in pairs]))


def _every_pair(labels: np.ndarray, scores: np.ndarray) -> float:
    difference = _difference(labels, scores)
    return float(((difference > 0) + (difference == 0) / 2).sum() / len(scores) ** 2)


check_auroc = Exercise(
    solution=auroc,
    library=library_auroc,
    cases=_tied,
    mistakes={
        "a tie counts for nothing in your answer: it counts half, as much as guessing": lambda y, s: float(
            (_difference(y, s) > 0).mean()
        ),
        "a tie counts as a win in your answer: it counts half": lambda y, s: float(
            (_difference(y, s) >= 0).mean()
        ),
        "ties are left out of your answer: they count half, and are pairs like any other": lambda y, s: float(
            (_difference(y, s) > 0).sum() / (_difference(y, s) != 0).sum()
        ),
        "upside down: a pair is won if the *anomalous* image scores higher": lambda y, s: 1 - auroc(y, s),
        "you compare the first with the first, the second with the second: every anomalous image meets "
        "*every* normal one": _side_by_side,
        "you divide by the wrong number of pairs: normal images times anomalous images": _every_pair,
        "you count wins but do not divide by the number of pairs": lambda y, s: (
            auroc(y, s) * float((y == 0).sum() * (y == 1).sum())
        ),
        "a lost pair counts -1 in your answer, and a tie 0: count a lost pair 0, a tie 1/2 and a win 1": (
            lambda y, s: float(np.sign(_difference(y, s)).mean())
        ),
        "this is accuracy at a threshold of 0.5: no threshold is needed here, only the order": (
            lambda y, s: float(((s > 0.5) == y).mean())
        ),
    },
)


def seed_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean over draws, by Student's t: mean -/+ t * s / sqrt(n)."""
    n = len(values)
    factor = stats.t.ppf((1 + level) / 2, n - 1)
    half = factor * np.std(values, ddof=1) / np.sqrt(n)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _around(values: np.ndarray, half: float) -> tuple[float, float]:
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _half(values: np.ndarray, level: float) -> float:
    return seed_interval(values, level)[1] - float(np.mean(values))


def _values(seed: int) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(seed)
    return 0.8 + 0.05 * rng.normal(size=4 + 2 * seed), (0.95, 0.9, 0.95, 0.8)[seed]


check_seed_interval = Exercise(
    solution=seed_interval,
    cases=_values,
    mistakes={
        "the deviation divides by n in your answer: from a sample, divide by n - 1 (ddof=1)": lambda v, c: (
            _around(v, _half(v, c) * np.sqrt(1 - 1 / len(v)))
        ),
        "this is the range of single draws: the mean of n draws varies less, by the square root of n": (
            lambda v, c: _around(v, _half(v, c) * np.sqrt(len(v)))
        ),
        "you divide by n: the mean's deviation falls with the square root of n": lambda v, c: _around(
            v, _half(v, c) / np.sqrt(len(v))
        ),
        "with so few draws the deviation itself is uncertain: take Student's t, n - 1 degrees of freedom, "
        "not the normal distribution": lambda v, c: _around(
            v, float(stats.norm.ppf((1 + c) / 2)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "n values leave n - 1 degrees of freedom": lambda v, c: _around(
            v, float(stats.t.ppf((1 + c) / 2, len(v))) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "what lies outside is shared by two tails: for level 0.95 look up 0.975": lambda v, c: _around(
            v, float(stats.t.ppf(c, len(v) - 1)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "this is mean plus and minus one deviation, whatever the level": lambda v, c: _around(
            v, float(np.std(v, ddof=1))
        ),
        "these are quantiles of the single draws: asked is an interval of their *mean*, mean -/+ t * s / "
        "sqrt(n)": lambda v, c: tuple(np.quantile(v, [(1 - c) / 2, (1 + c) / 2]).tolist()),
        "mean and half width is what you return: asked are the two ends": lambda v, c: (
            float(np.mean(v)),
            _half(v, c),
        ),
    },
)
