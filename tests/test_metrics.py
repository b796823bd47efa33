"""Metrics against numbers counted by hand."""

import numpy as np
import pytest

from inctrl_lite.errors import InctrlError
from inctrl_lite.metrics import (
    auroc,
    average_precision,
    bootstrap_interval,
    calibrate_threshold,
    image_metrics,
)


def count_pairs(labels, scores) -> float:
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    return np.mean([[(a > n) + 0.5 * (a == n) for n in normal] for a in anomalous])


@pytest.mark.parametrize("seed", range(3))
def test_auroc_counts_pairs_and_ties_half(seed):
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1] * 10)
    scores = rng.integers(0, 6, 20) + labels  # few values, hence ties
    assert auroc(labels, scores) == pytest.approx(count_pairs(labels, scores))


def test_all_scores_equal_is_chance():
    found = image_metrics([0, 0, 0, 1], [0.3] * 4)
    assert found == pytest.approx({"auroc": 0.5, "ap": 0.25, "f1_max": 2 * 0.25 / 1.25})


def test_perfect_and_reversed_order():
    assert image_metrics([0, 0, 1, 1], [1, 2, 3, 4]) == {"auroc": 1.0, "ap": 1.0, "f1_max": 1.0}
    assert auroc([0, 0, 1, 1], [4, 3, 2, 1]) == 0.0


def test_precision_recall_by_hand():
    # From the highest score: anomalous, normal, anomalous. Precision at the two hits: 1/1 and 2/3.
    labels, scores = [0, 1, 1, 0], [0.6, 0.9, 0.4, 0.1]
    found = image_metrics(labels, scores)
    assert found["auroc"] == 0.75  # 3 of 4 pairs
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["f1_max"] == pytest.approx(0.8)  # from 0.4 on: 2 hits, 1 false alarm, 4 / (4 + 1)


def test_only_the_order_matters():
    labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert image_metrics(labels, scores) == image_metrics(labels, np.exp(9 * scores))


def test_precision_and_recall_give_what_scikit_learn_gives():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), np.round(rng.normal(size=60), 1)  # with ties
    found = image_metrics(labels, scores)
    assert found["ap"] == pytest.approx(metrics.average_precision_score(labels, scores), abs=1e-12)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    best = max(metrics.f1_score(labels, scores >= t) for t in scores)
    assert found["f1_max"] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision, image_metrics, calibrate_threshold])
def test_what_cannot_be_measured_is_refused(metric):
    with pytest.raises(InctrlError, match="none of the 2 images is anomalous.*both classes"):
        metric([0, 0], [0.1, 0.2])
    with pytest.raises(InctrlError, match="none of the 2 images is normal"):
        metric([1, 1], [0.1, 0.2])
    with pytest.raises(InctrlError, match="none of the 0 images"):
        metric([], [])
    with pytest.raises(InctrlError, match="2 of 3 scores are NaN or infinite"):
        metric([0, 1, 1], [0.1, np.nan, np.inf])
    with pytest.raises(InctrlError, match=r"labels \(2,\) and scores \(3,\)"):
        metric([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(InctrlError, match="labels must be 0"):
        metric([-1, 1], [0.1, 0.2])


def test_booleans_are_labels_too():
    assert auroc([False, True], [0, 1]) == 1.0


def test_the_threshold_lies_halfway_between_what_it_separates():
    assert calibrate_threshold([0, 0, 1, 1], [0.0, 0.2, 0.8, 0.9]) == pytest.approx(0.5)
    # One normal image among the anomalous: F1 is best with 3 hits and 1 false alarm, between 0.2 and 0.4.
    assert calibrate_threshold([0, 1, 0, 1, 1], [0.2, 0.4, 0.5, 0.6, 0.7]) == pytest.approx(0.3)


def test_the_threshold_reaches_the_best_f1():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 25)
    scores = rng.normal(labels, 1.0)
    called = scores > calibrate_threshold(labels, scores)
    hits = (called & (labels == 1)).sum()
    f1 = 2 * hits / (called.sum() + 25)
    assert f1 == pytest.approx(image_metrics(labels, scores)["f1_max"])


def test_calling_everything_anomalous_can_be_best():
    scores = [0.1, 0.1, 0.1]
    threshold = calibrate_threshold([0, 1, 1], scores)
    assert threshold < 0.1 and threshold == pytest.approx(0.1)


def test_of_equally_good_thresholds_the_largest():
    # {0.9} finds 1 of 2 without false alarm: F1 2/3. {0.9, .., 0.3} finds both with 2 false alarms: 2/3 too.
    labels, scores = [1, 0, 0, 1, 0], [0.9, 0.6, 0.5, 0.3, 0.1]
    assert calibrate_threshold(labels, scores) == pytest.approx(0.75)


def test_the_interval_holds_the_value_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    widths = []
    for n in (15, 150):
        labels = np.repeat([0, 1], n)
        scores = rng.normal(labels, 1.0)
        low, high = bootstrap_interval(labels, scores, resamples=200)
        assert 0 <= low < auroc(labels, scores) < high <= 1
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]  # about 1 / sqrt(10)


def test_the_interval_is_repeatable_and_follows_its_arguments():
    labels = np.repeat([0, 1], 20)
    scores = np.random.default_rng(1).normal(labels, 1.0)
    first = bootstrap_interval(labels, scores, resamples=100)
    assert first == bootstrap_interval(labels, scores, resamples=100)
    assert first != bootstrap_interval(labels, scores, resamples=100, seed=1)
    narrow = bootstrap_interval(labels, scores, resamples=100, level=0.5)
    assert first[0] < narrow[0] < narrow[1] < first[1]
    assert first != bootstrap_interval(labels, scores, average_precision, resamples=100)


def test_resampling_keeps_the_classes_apart():
    """With one image of a class, a resample of all images would often hold none and fail."""
    assert bootstrap_interval([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.9], resamples=50) == (1.0, 1.0)
