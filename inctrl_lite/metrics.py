"""How well scores tell normal from anomalous: thin over scikit-learn and scipy, with readable errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from inctrl_lite.errors import InctrlError


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores as arrays, after the checks that every metric needs."""
    y, s = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise InctrlError(f"labels {y.shape} and scores {s.shape} do not match: one of each an image")
    if not np.isfinite(s).all():
        raise InctrlError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are NaN or infinite")
    if not np.isin(y, (0, 1)).all():
        raise InctrlError("labels must be 0 (normal) or 1 (anomalous)")
    for label, name in ((0, "normal"), (1, "anomalous")):
        if not (y == label).any():
            raise InctrlError(
                f"none of the {len(y)} images is {name}: this metric needs images of both classes"
            )
    return y.astype(int), s


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Share of (normal, anomalous) pairs in which the anomalous image scores higher; ties count half.

    >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.9])    # 3 pairs right, 1 tie of 4
    0.875
    """
    from scipy.stats import rankdata

    # by ranks (Mann-Whitney): forty times as fast as the area under a curve, which a bootstrap notices
    y, s = _checked(labels, scores)
    normal, anomalous = np.bincount(y, minlength=2)
    above = rankdata(s)[y == 1].sum() - anomalous * (anomalous + 1) / 2
    return float(above / (normal * anomalous))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve, as a sum of steps (called AUPRC in the paper).

    >>> average_precision([0, 1, 1], [0.5, 0.1, 0.9])    # precision 1 at the first, 2/3 at the last
    0.8333333333333333
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(*_checked(labels, scores)))


def f1_by_threshold(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """F1 of calling anomalous whatever scores at least t, for every score t: (thresholds, F1)."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(*_checked(labels, scores))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return thresholds, f1[:-1]  # the last pair, precision 1 and recall 0, belongs to no threshold


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """AUROC, AP and the best F1 over all thresholds ("auroc", "ap", "f1_max"), each in [0, 1].

    Raises:
        InctrlError: only one class, scores that are not finite, or lengths that differ.
    """
    return {
        "auroc": auroc(labels, scores),
        "ap": average_precision(labels, scores),
        "f1_max": float(f1_by_threshold(labels, scores)[1].max()),
    }


# --- pixels ------------------------------------------------------------------------------------------


class PixelCurves(NamedTuple):
    """What lies above each threshold, from above the largest score (all zero) down to the smallest (all one).

    Attributes:
        normal: share of the normal pixels, [T].
        anomalous: share of the pixels of defects, [T].
        overlap: share of every defect, averaged over the defects, [T].
    """

    normal: np.ndarray
    anomalous: np.ndarray
    overlap: np.ndarray


def pixel_metrics(masks: ArrayLike, maps: ArrayLike, limit: float = 0.3) -> dict[str, float]:
    """Pixel AUROC, AUPRO and the best pixel F1 ("pixel_auroc", "aupro", "pixel_f1_max"), each in [0, 1].

    Args:
        masks: [B, H, W], non-zero where there is a defect; all zero for a normal image.
        maps: scores [B, H, W], larger = more anomalous.
        limit: largest false positive rate of the AUPRO, in (0, 1].

    Raises:
        InctrlError: shapes that differ, scores that are not finite, no defect, or no normal pixel.
    """
    from sklearn.metrics import auc

    curves = _pixel_curves(masks, maps)
    defects = np.count_nonzero(masks)
    found, false = curves.anomalous * defects, curves.normal * (np.size(masks) - defects)
    return {
        "pixel_auroc": float(auc(curves.normal, curves.anomalous)),
        "aupro": _area_up_to(curves, limit),
        "pixel_f1_max": float((2 * found / (found + false + defects)).max()),
    }


def aupro(masks: ArrayLike, maps: ArrayLike, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to a false positive rate of `limit`, over `limit`.

    At each threshold: the share of every defect that lies above it, averaged over the defects, against the
    share of normal pixels above it. Every score is a threshold; between two of them the curve is straight. A
    defect is a connected region of a mask, and pixels that touch at a corner are connected, as in the
    evaluation of MVTec AD. Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, sec. 5.

    Args:
        masks: [B, H, W], non-zero where there is a defect; all zero for a normal image.
        maps: scores [B, H, W], larger = more anomalous.
        limit: largest false positive rate, in (0, 1].

    Raises:
        InctrlError: shapes that differ, scores that are not finite, no defect, or no normal pixel.

    >>> mask = np.eye(4)[None]
    >>> round(aupro(mask, mask), 3), round(aupro(mask, 0 * mask), 3)    # perfect; the same score everywhere
    (1.0, 0.15)
    """
    return _area_up_to(_pixel_curves(masks, maps), limit)


def _pixel_curves(masks: ArrayLike, maps: ArrayLike) -> PixelCurves:
    from scipy.ndimage import label

    defect, scores = np.asarray(masks) != 0, np.asarray(maps)
    if defect.shape != scores.shape or defect.ndim != 3:
        raise InctrlError(f"masks {defect.shape} and maps {scores.shape} do not match: both are [B, H, W]")
    if not np.isfinite(scores).all():
        raise InctrlError(
            f"{int((~np.isfinite(scores)).sum())} of {scores.size} map scores are NaN or infinite"
        )
    if defect.all() or not defect.any():
        raise InctrlError("pixel metrics such as AUPRO need defects and normal pixels")
    # the 3 x 3 neighbourhood within an image, nothing between images: 8-connectivity
    neighbours = np.zeros((3, 3, 3), bool)
    neighbours[1] = True
    regions, count = label(defect, neighbours)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    normal = np.arange(count + 1) == 0  # region 0 are the normal pixels, the others the defects
    # what a pixel of each region adds to the three curves
    weights = (normal, ~normal, np.where(normal, 0, 1 / np.maximum(sizes, 1)))
    order = np.argsort(scores, axis=None)[::-1]  # [B * H * W], the largest score first
    last = np.append(np.flatnonzero(np.diff(scores.ravel()[order])), len(order) - 1)  # of each run of ties
    regions = regions.ravel()[order]
    curves = [np.append(0, np.cumsum(weight[regions], dtype=np.float64)[last]) for weight in weights]
    return PixelCurves(*(curve / curve[-1] for curve in curves))


def _area_up_to(curves: PixelCurves, limit: float) -> float:
    """Mean height of the overlap curve between no false positive and a rate of `limit`."""
    from sklearn.metrics import auc

    inside = curves.normal <= limit
    rates = np.append(curves.normal[inside], limit)
    overlap = np.append(curves.overlap[inside], np.interp(limit, curves.normal, curves.overlap))
    return float(auc(rates, overlap) / limit)


# --- thresholds --------------------------------------------------------------------------------------


def calibrate_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The threshold with the best F1, halfway between the two scores that it separates.

    An image is called anomalous when its score is larger. Of equally good thresholds, the largest.

    >>> calibrate_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.8])
    0.4
    """
    thresholds, f1 = f1_by_threshold(labels, scores)
    best = thresholds[np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]]
    below = np.asarray(scores, dtype=np.float64)
    below = below[below < best]
    return float((best + below.max()) / 2) if len(below) else float(np.nextafter(best, -np.inf))


def threshold_for_recall(labels: ArrayLike, scores: ArrayLike, recall: float) -> float:
    """The largest threshold below which at most a share of 1 - `recall` of the anomalous images lies.

    An image is called anomalous when its score is larger, so this is the number just below the score of the
    last anomalous image that must be found.

    Raises:
        InctrlError: only one class, or a recall that is not above 0 and at most 1.

    >>> round(threshold_for_recall([0, 1, 1, 1, 1], [0.1, 0.4, 0.5, 0.6, 0.7], 0.75), 6)
    0.5
    """
    y, s = _checked(labels, scores)
    if not 0 < recall <= 1:
        raise InctrlError(f"a recall lies above 0 and is at most 1, for example 0.95, not {recall}")
    anomalous = np.sort(s[y == 1])[::-1]
    wanted = int(np.ceil(recall * len(anomalous) - 1e-9))
    return float(np.nextafter(anomalous[wanted - 1], -np.inf))


class ConformalThreshold(NamedTuple):
    """A threshold from normal images alone, and what it promises.

    Attributes:
        threshold: a new image is called anomalous when its score is larger.
        expected_rate: expected share of new normal images that are called anomalous, at most.
        images: how many normal scores it was made from.
        images_needed: how many are needed before the rate that was asked for can be promised.
    """

    threshold: float
    expected_rate: float
    images: int
    images_needed: int


def conformal_threshold(normal_scores: ArrayLike, false_alarm_rate: float) -> ConformalThreshold:
    """The r-th largest of n normal scores, with r as large as r / (n + 1) <= `false_alarm_rate` allows.

    A new normal image, exchangeable with the n, has each of the n + 1 ranks with the same probability. It
    therefore scores above the r-th largest with probability r / (n + 1), or less where scores are tied. The
    promise holds on average over sets of n images: one set gives a higher rate, another one a lower. With
    n < 1 / `false_alarm_rate` - 1 images no threshold keeps the promise; the largest score is returned then,
    with the rate 1 / (n + 1), the best within reach. (Split conformal prediction: Vovk et al., "Algorithmic
    Learning in a Random World", 2005; Papadopoulos et al., ECML 2002.)

    Args:
        normal_scores: [n], of normal images that neither the support set nor the training has seen.
        false_alarm_rate: wanted share of normal images that are called anomalous, between 0 and 1.

    Raises:
        InctrlError: no score, scores that are not finite, or a rate that is not between 0 and 1.

    >>> conformal_threshold([0.1, 0.4, 0.2, 0.3], 0.4)    # 2 of 5 ranks lie above 0.3
    ConformalThreshold(threshold=0.3, expected_rate=0.4, images=4, images_needed=2)
    """
    scores = np.sort(np.asarray(normal_scores, dtype=np.float64).ravel())[::-1]  # the largest first
    n = len(scores)
    if not n or not np.isfinite(scores).all():
        raise InctrlError(
            f"a threshold needs finite scores of normal images, found {np.isfinite(scores).sum()} of {n}"
        )
    if not 0 < false_alarm_rate < 1:
        raise InctrlError(
            f"a false alarm rate lies between 0 and 1, for example 0.05, not at {false_alarm_rate}"
        )
    slack = 1e-9  # 0.29 * 100 is 28.999999999999996
    r = max(1, int(np.floor(false_alarm_rate * (n + 1) + slack)))
    needed = int(np.ceil(1 / false_alarm_rate - slack)) - 1
    return ConformalThreshold(float(scores[r - 1]), r / (n + 1), n, needed)


# --- intervals ---------------------------------------------------------------------------------------


def bootstrap_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    metric: Callable[[np.ndarray, np.ndarray], float] = auroc,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric over images, resampled within each class."""
    y, s = _checked(labels, scores)
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(y == label) for label in (0, 1)]
    values = []
    for _ in range(resamples):
        picked = np.concatenate([rng.choice(members, len(members)) for members in classes])
        values.append(metric(y[picked], s[picked]))
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


class CellScores(NamedTuple):
    """Scores of one method on the test images of a category, for one support set and one trained head.

    Attributes:
        dataset: name of the data set.
        category: name of the category within it.
        draw: which of the drawn support sets.
        head: which of the trained heads; the same number for all cells of a method that is not trained.
        labels: [N], 0 normal, 1 anomalous; the same images in all cells of a category.
        scores: [N], larger = more anomalous.
    """

    dataset: str
    category: str
    draw: int
    head: int
    labels: ArrayLike
    scores: ArrayLike


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


class _Rows(NamedTuple):
    """One method's cells of a category: M rows, one a cell."""

    labels: np.ndarray  # [N]
    draws: np.ndarray  # [M]
    heads: np.ndarray  # [M]
    placements: np.ndarray  # [M, N], see `_placements`


def auroc_interval(
    cells: Iterable[CellScores], against: Iterable[CellScores] | None = None, level: float = 0.95
) -> Interval:
    """Interval of a method's mean AUROC, or of its difference to another method's.

    The mean is over the cells of each category, then over the categories of each data set, then over the data
    sets. What is drawn at random, and would be drawn again if the experiment were repeated:

    - the test images, within each class of each category, the same ones for all draws, heads and methods;
    - the support sets, for each category anew, the same ones for both methods;
    - the trained heads, each of which serves all categories.

    Categories and data sets are fixed: the interval says nothing about others.

    Each of the three has its part of the variance, in closed form; it is what infinitely many resamples would
    give. Images: DeLong's variance (Biometrics 1988). Draws and heads: the variance of their means, divided
    by their number, less what the limited number of images explains of it, which would be counted twice.

    Three to six draws or heads tell little about their own variance, and the quantiles of a bootstrap over so
    few are too narrow. Therefore the interval is the value plus and minus the standard error times a quantile
    of Student's t, with Satterthwaite's degrees of freedom (Biometrics Bulletin 1946). Studies with several
    readers of the same X-ray images do the same (Obuchowski and Rockette, Commun. Stat. 1995). With one
    category, few images and an AUROC near 1 the interval is wider than it need be.

    Args:
        cells: of one method: every draw with every head, or some of these pairs.
        against: cells of another method: the interval is that of `cells` minus `against`, over the categories
            and draws that both have. Where the other method lacks a head, its mean over heads is compared.
        level: probability that the interval covers the value.

    Returns:
        value, low and high; the interval has no width where every image is on its right side.

    Raises:
        InctrlError: no cells, a category with one class, or methods without a common category or draw.
    """
    from scipy.stats import t

    found = _rows_by_category(cells)
    if against is not None:
        found = _differences(found, _rows_by_category(against))
    if not found:
        raise InctrlError("no cells to compare: both methods need scores of the same category and draw")
    sizes = Counter(dataset for dataset, _ in found)
    weights = [1 / (len(sizes) * sizes[dataset]) for dataset, _ in found]
    weighted = list(zip(weights, found.values(), strict=True))
    value = sum(weight * float(_value(rows.placements, rows.labels).mean()) for weight, rows in weighted)
    variance = doubt = 0.0  # doubt: sum of (part of the variance)^2 / degrees of freedom
    for parts, twice in (_of_images(weighted), _of_draws(weighted), _of_heads(weighted)):
        total = sum(part for part, _ in parts)
        if total > twice:
            variance += total - twice
            doubt += sum(part**2 / freedom for part, freedom in parts)
    half = float(t.ppf((1 + level) / 2, variance**2 / doubt) * np.sqrt(variance)) if doubt else 0.0
    lowest = -1.0 if against is not None else 0.0
    return Interval(value, max(value - half, lowest), min(value + half, 1.0))


# Parts of a variance with their degrees of freedom, and how much of their sum is counted with the images.
_Component = tuple[list[tuple[float, int]], float]


def _of_images(weighted: list[tuple[float, _Rows]]) -> _Component:
    """Variance of the mean over samples of images: a part for each class of each category."""
    parts = []
    for weight, rows in weighted:
        for part, freedom in _image_variances(rows.placements.mean(0, keepdims=True), rows.labels):
            parts.append((weight**2 * float(part[0]), freedom))
    return parts, 0.0


def _of_draws(weighted: list[tuple[float, _Rows]]) -> _Component:
    """Variance of the mean over support sets: a part for each category, which has its own support sets."""
    parts, twice = [], 0.0
    for weight, rows in weighted:
        _, of_draw = _means(rows.placements, rows.draws)  # [D, N]
        if len(of_draw) > 1:
            parts.append((weight**2 * _variance_of_mean(_value(of_draw, rows.labels)), len(of_draw) - 1))
            twice += weight**2 * _explained_by_images(of_draw, rows.labels)
    return parts, twice


def _of_heads(weighted: list[tuple[float, _Rows]]) -> _Component:
    """Variance of the mean over trained heads: one part, since a head serves all categories."""
    effects: dict[int, float] = {}  # of each head on the mean over all categories
    twice = 0.0
    for weight, rows in weighted:
        numbers, of_head = _means(rows.placements, rows.heads)  # [H, N]
        if len(of_head) > 1:
            for number, effect in zip(numbers, _value(of_head - of_head.mean(0), rows.labels), strict=True):
                effects[number] = effects.get(number, 0.0) + weight * float(effect)
            twice += weight**2 * _explained_by_images(of_head, rows.labels)
    if not effects:
        return [], 0.0
    return [(_variance_of_mean(np.array([*effects.values()])), len(effects) - 1)], twice


def _rows_by_category(cells: Iterable[CellScores]) -> dict[tuple[str, str], _Rows]:
    groups: dict[tuple[str, str], list[CellScores]] = {}
    for cell in cells:
        groups.setdefault((cell.dataset, cell.category), []).append(cell)
    found = {}
    for key, group in groups.items():
        labels, _ = _checked(group[0].labels, group[0].scores)
        scores = np.array([_checked(labels, cell.scores)[1] for cell in group])  # [M, N]
        draws, heads = np.array([cell.draw for cell in group]), np.array([cell.head for cell in group])
        found[key] = _Rows(labels, draws, heads, _placements(labels, scores))
    return found


def _placements(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each image's own part of the AUROC, [M, N]: the share of the other class that it is ranked rightly to.

    The mean over either class is the AUROC (DeLong et al. 1988).
    """
    from scipy.stats import rankdata

    ranks, placements = rankdata(scores, axis=1), np.empty(scores.shape)
    for label in (0, 1):
        own = labels == label
        below = (ranks[:, own] - rankdata(scores[:, own], axis=1)) / (~own).sum()  # share of the other class
        placements[:, own] = below if label else 1 - below
    return placements


def _differences(
    ours: dict[tuple[str, str], _Rows], theirs: dict[tuple[str, str], _Rows]
) -> dict[tuple[str, str], _Rows]:
    """Rows of one method minus those of another: the same draw, and the same head where the other has it."""
    found = {}
    for key in ours:
        if key not in theirs:
            continue
        mine, other = ours[key], theirs[key]
        if not np.array_equal(mine.labels, other.labels):
            raise InctrlError(f"the two methods were tested on different images of {'/'.join(key)}")
        kept, gaps = [], []
        for i, (draw, head) in enumerate(zip(mine.draws, mine.heads, strict=True)):
            same = other.draws == draw
            if (both := same & (other.heads == head)).any():
                same = both
            if same.any():
                kept.append(i)
                gaps.append(mine.placements[i] - other.placements[same].mean(0))
        if kept:
            found[key] = _Rows(mine.labels, mine.draws[kept], mine.heads[kept], np.array(gaps))
    return found


def _variance_of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values))


def _value(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Placements [K, N] -> AUROCs [K]; differences of placements -> differences of AUROCs."""
    return rows[:, labels == 1].mean(1)


def _image_variances(rows: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Variances [K] of `_value` over samples of images: the part of each class, with its degrees of freedom.

    A single image of a class tells nothing about the variance; it counts as none.
    """
    found = []
    for label in (0, 1):
        members = rows[:, labels == label]
        n = members.shape[1]
        found.append((members.var(1, ddof=min(1, n - 1)) / n, max(1, n - 1)))
    return found


def _means(rows: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys and the mean row of each: [M, N] and [M] -> [K] and [K, N]."""
    distinct = np.unique(keys)
    return distinct, np.array([rows[keys == key].mean(0) for key in distinct])


def _explained_by_images(rows: np.ndarray, labels: np.ndarray) -> float:
    """What differences of images alone would make of the variance of the mean of K rows, [K, N]."""
    k = len(rows)
    variances = sum(part for part, _ in _image_variances(rows - rows.mean(0), labels))  # [K]
    return float(np.sum(variances) / (k * (k - 1)))
