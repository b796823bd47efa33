"""How well scores tell normal from anomalous: thin over scikit-learn and scipy, with readable errors."""

from __future__ import annotations

from collections.abc import Callable

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
    return _average_precision(*_curve(labels, scores)[:2])


def f1_by_threshold(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """F1 of calling anomalous whatever scores at least t, for every score t: (thresholds, F1)."""
    precision, recall, thresholds = _curve(labels, scores)
    return thresholds, _f1(precision, recall)


def image_metrics(labels: ArrayLike, scores: ArrayLike) -> dict[str, float]:
    """AUROC, AP and the best F1 over all thresholds ("auroc", "ap", "f1_max"), each in [0, 1].

    Raises:
        InctrlError: only one class, scores that are not finite, or lengths that differ.
    """
    precision, recall, _ = _curve(labels, scores)
    return {
        "auroc": auroc(labels, scores),
        "ap": _average_precision(precision, recall),
        "f1_max": float(_f1(precision, recall).max()),
    }


def _curve(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall (each with one more entry) and thresholds, from the smallest threshold up."""
    from sklearn.metrics import precision_recall_curve

    return precision_recall_curve(*_checked(labels, scores))


def _average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    return float(-np.sum(np.diff(recall) * precision[:-1]))


def _f1(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    return (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]


def pixel_metrics(masks: np.ndarray, maps: np.ndarray) -> dict[str, float]:
    """Pixel AUROC and AUPRO ("pixel_auroc", "aupro") of maps against masks, each in [0, 1].

    Args:
        masks: bool [B, H, W]; all False for a normal image.
        maps: scores [B, H, W].
    """
    return {"pixel_auroc": auroc(masks.ravel(), maps.ravel()), "aupro": aupro(masks, maps)}


def aupro(masks: np.ndarray, maps: np.ndarray, limit: float = 0.3, steps: int = 200) -> float:
    """Area under the per-region overlap curve up to a false positive rate of `limit`, over `limit`.

    At each threshold: the share of every defect (connected region of a mask) that lies above it, averaged
    over the defects, against the share of normal pixels above it (Bergmann et al., IJCV 2021).

    Raises:
        InctrlError: no defect, or no normal pixel.
    """
    from scipy.ndimage import label
    from sklearn.metrics import auc

    regions = [maps[i][labels == j] for i, mask in enumerate(masks) for labels, n in [label(mask)]
               for j in range(1, n + 1)]  # fmt: skip
    normal = np.sort(maps[~masks])
    if not regions or not len(normal):
        raise InctrlError("AUPRO needs defects and normal pixels")
    rates = np.linspace(0, limit, steps)
    # the threshold that a share `rate` of normal pixels exceeds
    index = np.clip(len(normal) - 1 - np.floor(rates * len(normal)).astype(int), 0, len(normal) - 1)
    thresholds = normal[index]
    overlap = np.mean(
        [1 - np.searchsorted(np.sort(region), thresholds, side="right") / len(region) for region in regions],
        axis=0,
    )
    return float(auc(rates, overlap) / limit)


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
