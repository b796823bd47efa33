"""Exercises of notebook 08: evaluation."""

from collections.abc import Callable

import numpy as np

from inctrl_lite.checks.engine import Exercise, stats
from inctrl_lite.metrics import auroc as library_auroc


def _tied(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.zeros(9 + seed, int), np.ones(5 + 2 * seed, int)])
    scores = np.round(np.clip(rng.normal(0.4 + 0.15 * labels, 0.2), 0, 1), 1)  # coarse: many ties
    if seed == 3:
        scores = scores + 1e-6 * rng.integers(0, 2, len(labels))  # nearly equal is no tie
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
    forbidden=(
        "roc_auc_score",
        "roc_curve",
        "auc",
        "mannwhitneyu",
        "rankdata",
        "inctrl_lite.metrics",  # its function has the student's name
        "metrics",
    ),
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
        "You treat scores as equal that are only close. Only equal scores are a tie.": lambda y, s: auroc(
            y, np.asarray(s.round(3))
        ),
        "This is the accuracy at a threshold of 0.5. No threshold is needed here, only the order.": (
            lambda y, s: float(((s > 0.5) == y).mean())
        ),
    },
)


def seed_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Interval of the mean over draws, by Student's t: mean -/+ t * s / sqrt(n)."""
    from scipy import stats

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
            v, float(stats().norm.ppf((1 + c) / 2)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "n values leave n - 1 degrees of freedom.": lambda v, c: _around(
            v, float(stats().t.ppf((1 + c) / 2, len(v))) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "The two tails share what lies outside: for level 0.95 look up 0.975.": lambda v, c: _around(
            v, float(stats().t.ppf(c, len(v) - 1)) * np.std(v, ddof=1) / np.sqrt(len(v))
        ),
        "The ends are exchanged: the lower one comes first.": lambda v, c: seed_interval(v, c)[::-1],
        "You use the level 0.95. Use the given one.": lambda v, c: seed_interval(v, 0.95),
        "You use the variance. Use the standard deviation, its square root.": lambda v, c: _around(
            v, _half(v, c) * float(np.std(v, ddof=1))
        ),
        "You divide by n - 1 twice: in the deviation, and by its square root afterwards. The second one is "
        "the square root of n.": lambda v, c: _around(v, _half(v, c) * np.sqrt(len(v) / (len(v) - 1))),
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


# --- average precision with equal scores ------------------------------------------------------------------


def ap_with_ties(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """AP with equal scores in the worst order, taken together, and in the best order."""

    def listed(order: np.ndarray) -> float:
        ranked = labels[order]
        return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked == 1].mean())

    called = scores >= scores[labels == 1][:, None]  # [A, n]: what a threshold at each score would call
    together = float(((called & (labels == 1)).sum(1) / called.sum(1)).mean())
    return listed(np.lexsort((labels, -scores))), together, listed(np.lexsort((-labels, -scores)))


def _lists(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists with many ties; then one anomalous image, only ties, nearly equal scores, and a tie without
    normal images (for which "together" lies outside of the two orders)."""
    rng = np.random.default_rng(40 + seed)
    labels = rng.permutation(np.repeat([0, 1], [8 + seed, 5 + 2 * (seed % 3)]))
    scores = np.round(rng.normal(0.4 + 0.2 * labels, 0.25), 1)  # coarse: many ties
    if seed == 1:
        scores = scores - 0.5
    if seed == 3:
        labels = np.array([0, 0, 0, 1, 0, 0, 0])
        scores = np.array([0.9, 0.4, 0.4, 0.4, 0.2, 0.4, 0.4])
    if seed == 4:
        scores = np.full(len(labels), 0.7)
    if seed == 5:
        scores = scores + 1e-6 * rng.integers(0, 2, len(labels))  # nearly equal is not equal
    if seed == 6:
        labels, scores = np.array([1, 0, 1, 0, 1]), np.array([0.5, 0.9, 0.5, 0.1, 0.5])
    return labels, scores


def _order(labels: np.ndarray, order: np.ndarray) -> float:
    """AP of the images in one order."""
    ranked = labels[order]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked == 1].mean())


def _by_score(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each different score from the largest down: anomalous and all images that score at least as much,
    and the anomalous ones that have this score."""
    levels = np.unique(scores)[::-1]
    hits = np.array([((scores >= level) & (labels == 1)).sum() for level in levels])
    called = np.array([(scores >= level).sum() for level in levels])
    return hits, called, np.diff(hits, prepend=0)


def _instead(place: int, value: Callable[[np.ndarray, np.ndarray], float]) -> Callable:
    """A wrong answer: another value at one of the three places."""

    def wrong(labels: np.ndarray, scores: np.ndarray) -> tuple[float, ...]:
        values = list(ap_with_ties(labels, scores))
        values[place] = value(labels, scores)
        return tuple(values)

    return wrong


def _as_they_come(labels: np.ndarray, scores: np.ndarray) -> float:
    return _order(labels, np.argsort(-scores, kind="stable"))


def _without_own_level(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, own = _by_score(labels, scores)
    before = np.concatenate([[0.0], hits[:-1] / called[:-1]])
    return float((own * before).sum() / own.sum())


def _own_level_only(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, own = _by_score(labels, scores)
    return float((own * own / np.diff(called, prepend=0)).sum() / own.sum())


def _each_level_once(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, own = _by_score(labels, scores)
    return float((hits / called)[own > 0].mean())


def _all_levels(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, _ = _by_score(labels, scores)
    return float((hits / called).mean())


def _trapezoids(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, own = _by_score(labels, scores)
    precision = np.concatenate([[1.0], hits / called])
    return float((own * (precision[1:] + precision[:-1]) / 2).sum() / own.sum())


def _highest_from_here(labels: np.ndarray, scores: np.ndarray) -> float:
    hits, called, own = _by_score(labels, scores)
    highest = np.maximum.accumulate((hits / called)[::-1])[::-1]
    return float((own * highest).sum() / own.sum())


def _with_gap(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    close = np.round(scores, 3)
    return ap_with_ties(labels, close)


def _all_images(labels: np.ndarray, scores: np.ndarray) -> tuple[float, ...]:
    """Every image's precision counts, not only that of the anomalous ones."""
    hits, called, _ = _by_score(labels, scores)
    counts = np.diff(called, prepend=0)
    each = [np.lexsort((kind, -scores)) for kind in (labels, -labels)]
    worst, best = (float((labels[o].cumsum() / np.arange(1, len(o) + 1)).mean()) for o in each)
    return worst, float((counts * hits / called).sum() / counts.sum()), best


def _share(labels: np.ndarray, scores: np.ndarray) -> float:
    return float((labels == 1).mean())


check_ap_with_ties = Exercise(
    solution=ap_with_ties,
    cases=_lists,
    number=7,
    parts=("worst order", "AP taken together", "best order"),
    forbidden=(
        "average_precision",
        "average_precision_score",
        "precision_recall_curve",
        "image_metrics",
        "roc_curve",
    ),
    mistakes={
        "You leave equal scores in the order in which they come. This order is chance: build the worst and "
        "the best one.": lambda y, s: (_as_they_come(y, s), ap_with_ties(y, s)[1], _as_they_come(y, s)),
        "All three values come from the list as it is sorted. For the worst order put the normal images of "
        "each tie first, for the best order the anomalous ones; together is a threshold that takes the whole "
        "tie.": lambda y, s: (_as_they_come(y, s),) * 3,
        "Taken together is the worst order in your answer. Together, an image of a tie counts with the "
        "precision after the WHOLE tie.": _instead(1, lambda y, s: ap_with_ties(y, s)[0]),
        "Taken together is the best order in your answer. Together, an image of a tie counts with the "
        "precision after the WHOLE tie.": _instead(1, lambda y, s: ap_with_ties(y, s)[2]),
        "Taken together is the order in which the images come. It must not depend on any order.": _instead(
            1, _as_they_come
        ),
        "Taken together is not the mean of the worst and the best order. No order is needed for it: take "
        "the precision after the whole tie.": _instead(
            1, lambda y, s: (ap_with_ties(y, s)[0] + ap_with_ties(y, s)[2]) / 2
        ),
        "The worst and the best order are exchanged. AP is high if anomalous images come early.": (
            lambda y, s: ap_with_ties(y, s)[::-1]
        ),
        "The three values are right, but in another order: worst order, taken together, best order.": (
            lambda y, s: tuple(ap_with_ties(y, s)[i] for i in (0, 2, 1))
        ),
        "The three values are right, but in another order: worst order comes first, and taken together is in "
        "the middle.": (lambda y, s: tuple(ap_with_ties(y, s)[i] for i in (1, 0, 2))),
        "You sort the three values. Each belongs to its rule, and the one taken together need not lie "
        "between the others.": lambda y, s: tuple(sorted(ap_with_ties(y, s))),
        "In the worst and the best order you sort by the label first, so the scores only decide within each "
        "kind. The last key of `np.lexsort` counts first.": lambda y, s: (
            _order(y, np.lexsort((-s, y))),
            ap_with_ties(y, s)[1],
            _order(y, np.lexsort((-s, -y))),
        ),
        "In the worst and the best order you begin with the lowest score. Begin with the highest.": (
            lambda y, s: (
                _order(y, np.lexsort((y, s))),
                ap_with_ties(y, s)[1],
                _order(y, np.lexsort((-y, s))),
            )
        ),
        "You go through the list from the lowest score up. Begin with the highest score.": lambda y, s: (
            ap_with_ties(y, -s)
        ),
        "You count normal images as hits. The anomalous images (label 1) are those to be found.": (
            lambda y, s: ap_with_ties(1 - y, s)
        ),
        "You average the precision at all images. Only the places of the anomalous images count.": (
            _all_images
        ),
        "You divide by the number of all images. Divide by the number of anomalous images, A.": (
            lambda y, s: tuple(value * _share(y, s) for value in ap_with_ties(y, s))
        ),
        "You add the precisions but do not divide by the number of anomalous images, A.": lambda y, s: tuple(
            value * float((y == 1).sum()) for value in ap_with_ties(y, s)
        ),
        "Taken together, you use the precision BEFORE the tie: the scores above it, without those that are "
        "equal. The images of the tie are called anomalous as well.": _instead(1, _without_own_level),
        "Taken together, you use the precision within the tie alone. All images with higher scores are on "
        "the list as well.": _instead(1, _own_level_only),
        "Taken together, each tie counts once in your answer. It counts once for EACH of its anomalous "
        "images.": _instead(1, _each_level_once),
        "Taken together, you average over all thresholds. A tie counts once for each of its anomalous "
        "images, so a tie without any counts nothing.": _instead(1, _all_levels),
        "This is the area under the precision-recall curve with straight lines between its points. AP is a "
        "sum of steps: no line is drawn between two precisions.": _instead(1, _trapezoids),
        "You take the highest precision from here on down (an interpolated AP). Take the precision at this "
        "place.": _instead(1, _highest_from_here),
        "You treat scores as equal that are only close. Compare with ==, without rounding or a "
        "tolerance.": _with_gap,
        "You return only one value, the one of equal scores taken together. Three are expected: worst "
        "order, taken together, best order.": lambda y, s: ap_with_ties(y, s)[1],
    },
)
