"""Exercises of notebook 08: evaluation."""

from types import ModuleType

import numpy as np

from inctrl_lite.checks.engine import Exercise
from inctrl_lite.metrics import auroc as library_auroc


def _stats() -> ModuleType:
    """scipy.stats, which takes long to import: not before it is needed."""
    from scipy import stats

    return stats


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
    forbidden=("roc_auc_score", "roc_curve", "auc", "mannwhitneyu", "rankdata"),
    mistakes={
        "A tie counts nothing in your answer. It counts 1/2.": lambda y, s: float(
            (_difference(y, s) > 0).mean()
        ),
        "A tie counts as a win in your answer. It counts 1/2.": lambda y, s: float(
            (_difference(y, s) >= 0).mean()
        ),
        "You leave ties out. They count 1/2, and they are pairs like any other.": lambda y, s: float(
            (_difference(y, s) > 0).sum() / (_difference(y, s) != 0).sum()
        ),
        "This is the wrong way round: a pair is won if the anomalous image has the higher "
        "score.": lambda y, s: 1 - auroc(y, s),
        "You compare the first with the first and the second with the second. Compare every anomalous "
        "image with every normal one.": _side_by_side,
        "You divide by the wrong number of pairs. It is the number of normal images times the number of "
        "anomalous images.": _every_pair,
        "You count the wins but do not divide by the number of pairs.": lambda y, s: (
            auroc(y, s) * float((y == 0).sum() * (y == 1).sum())
        ),
        "A lost pair counts -1 in your answer, and a tie 0. Count 0 for a lost pair, 1/2 for a tie and 1 "
        "for a win.": (lambda y, s: float(np.sign(_difference(y, s)).mean())),
        "This is the accuracy at a threshold of 0.5. No threshold is needed here, only the order.": (
            lambda y, s: float(((s > 0.5) == y).mean())
        ),
    },
)


def seed_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean over draws, by Student's t: mean -/+ t * s / sqrt(n)."""
    n = len(values)
    factor = _stats().t.ppf((1 + level) / 2, n - 1)
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
    parts=("lower end", "upper end"),
    mistakes={
        "Your standard deviation divides by n. For a sample, divide by n - 1 (ddof=1).": lambda v, c: _around(
            v, _half(v, c) * np.sqrt(1 - 1 / len(v))
        ),
        "This is the range of single draws. The mean of n draws varies less, by the square root of n.": (
            lambda v, c: _around(v, _half(v, c) * np.sqrt(len(v)))
        ),
        "You divide by n. The deviation of the mean falls with the square root of n.": lambda v, c: _around(
            v, _half(v, c) / np.sqrt(len(v))
        ),
        "With so few draws the deviation itself is uncertain. Use Student's t with n - 1 degrees of "
        "freedom, not the normal distribution.": lambda v, c: _around(
            v, float(_stats().norm.ppf((1 + c) / 2)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "n values leave n - 1 degrees of freedom.": lambda v, c: _around(
            v, float(_stats().t.ppf((1 + c) / 2, len(v))) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "The two tails share what lies outside: for level 0.95 look up 0.975.": lambda v, c: _around(
            v, float(_stats().t.ppf(c, len(v) - 1)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "This is the mean plus and minus one deviation, for every level.": lambda v, c: _around(
            v, float(np.std(v, ddof=1))
        ),
        "These are quantiles of the single draws. The interval of their mean is expected: mean -/+ t * s "
        "/ sqrt(n).": lambda v, c: tuple(np.quantile(v, [(1 - c) / 2, (1 + c) / 2]).tolist()),
        "You return the mean and the half width. The two ends are expected.": lambda v, c: (
            float(np.mean(v)),
            _half(v, c),
        ),
    },
)
