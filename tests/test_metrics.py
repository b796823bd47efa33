"""Metrics against numbers counted by hand."""

import numpy as np
import pytest

from inctrl_lite.errors import InctrlError
from inctrl_lite.metrics import (
    CellScores,
    aupro,
    auroc,
    auroc_interval,
    average_precision,
    bootstrap_interval,
    calibrate_threshold,
    conformal_threshold,
    image_metrics,
    pixel_metrics,
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


# --- pixels ------------------------------------------------------------------------------------------


def regions_by_flood_fill(mask: np.ndarray) -> list[np.ndarray]:
    """Defects of a mask, each as a mask of its own; pixels that touch at a corner belong together."""
    left, found = mask.copy(), []
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        region, waiting = np.zeros_like(mask), [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < len(mask) and 0 <= x < mask.shape[1] and left[y, x]:
                left[y, x], region[y, x] = False, True
                waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        found.append(region)
    return found


def aupro_of_every_threshold(masks: np.ndarray, maps: np.ndarray, limit: float = 0.3) -> float:
    """The definition, threshold by threshold, without sorting or running sums."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in regions_by_flood_fill(mask)]
    rates, overlaps = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        above = maps >= threshold
        rates.append(above[~masks].mean())
        overlaps.append(np.mean([above[i][region].mean() for i, region in regions]))
    area = 0.0
    for k in range(1, len(rates)):
        left, right = min(rates[k - 1], limit), min(rates[k], limit)
        if right > left:
            slope = (overlaps[k] - overlaps[k - 1]) / (rates[k] - rates[k - 1])
            ends = [overlaps[k - 1] + slope * (x - rates[k - 1]) for x in (left, right)]
            area += (right - left) * sum(ends) / 2
    return area / limit


def draw_masks(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Four masks of 24 x 24 pixels; the last one is empty."""
    masks = np.zeros((4, 24, 24), bool)
    for mask in masks[:3]:
        if kind == "blobs":
            for y, x in rng.integers(2, 20, (3, 2)):
                mask[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = True
        else:  # a diagonal scratch, one pixel wide: pixels touch at corners only
            length, (y, x) = rng.integers(6, 12), rng.integers(0, 10, 2)
            mask[np.arange(y, y + length), np.arange(x, x + length)] = True
            mask[20:22, 20:23] = True
    return masks


@pytest.mark.parametrize("kind", ["blobs", "scratches"])
@pytest.mark.parametrize("scores", ["distinct", "ties", "constant"])
def test_aupro_is_that_of_every_threshold(kind, scores):
    rng = np.random.default_rng(len(kind + scores))
    for limit in (0.05, 0.3, 1.0):
        masks = draw_masks(kind, rng)
        maps = rng.normal(masks * rng.uniform(0, 2, (4, 1, 1)), 1.0)
        maps = {"distinct": maps, "ties": np.round(maps), "constant": 0 * maps}[scores]
        assert aupro(masks, maps, limit) == pytest.approx(
            aupro_of_every_threshold(masks, maps, limit), abs=1e-9
        )


def test_a_diagonal_scratch_is_one_defect():
    """As in the evaluation of MVTec AD. As six defects of one pixel each it would outweigh the other one."""
    masks = np.zeros((1, 20, 20), bool)
    masks[0, range(6), range(6)] = masks[0, 10:16, 10:16] = True
    maps = masks.astype(float)
    maps[0, range(6), range(6)] = 0  # the scratch is missed
    # the area: half of the defects found at once, the other half along with all normal pixels
    assert aupro(masks, maps) == pytest.approx(0.5 + 0.5 * 0.15)


def test_defects_of_different_images_never_join():
    masks = np.zeros((2, 8, 8), bool)
    masks[:, 2:4, 2:4] = True
    maps = masks * np.array([1.0, 0.0])[:, None, None]
    assert aupro(masks, maps) == pytest.approx(0.5 + 0.5 * 0.15)


def test_aupro_of_a_perfect_and_of_a_blind_map():
    rng = np.random.default_rng(0)
    masks = draw_masks("scratches", rng)
    assert aupro(masks, masks * 2.0 - 1) == pytest.approx(1.0)
    blind = np.mean([aupro(masks, rng.random(masks.shape)) for _ in range(20)])
    assert blind == pytest.approx(0.15, abs=0.03)  # overlap = rate: area 0.3 ** 2 / 2 over 0.3


def test_a_constant_map_is_worth_half_the_limit():
    masks = draw_masks("blobs", np.random.default_rng(0))
    assert aupro(masks, np.full(masks.shape, 0.7)) == pytest.approx(0.15)
    assert aupro(masks, np.full(masks.shape, 0.7), limit=0.1) == pytest.approx(0.05)
    assert pixel_metrics(masks, np.full(masks.shape, 0.7))["pixel_auroc"] == pytest.approx(0.5)


def test_masks_may_be_bytes():
    masks = draw_masks("blobs", np.random.default_rng(0))
    maps = np.random.default_rng(1).normal(masks, 1.0)
    assert pixel_metrics(masks.astype(np.uint8) * 255, maps) == pixel_metrics(masks, maps)


def test_pixel_metrics_are_those_of_single_pixels():
    rng = np.random.default_rng(2)
    masks = draw_masks("blobs", rng)
    maps = np.round(rng.normal(masks, 1.0), 1)
    found = pixel_metrics(masks, maps)
    of_pixels = image_metrics(masks.ravel(), maps.ravel())
    assert found["pixel_auroc"] == pytest.approx(of_pixels["auroc"], abs=1e-12)
    assert found["pixel_f1_max"] == pytest.approx(of_pixels["f1_max"], abs=1e-12)
    assert found["aupro"] == aupro(masks, maps)


def test_maps_that_cannot_be_measured_are_refused():
    masks = draw_masks("blobs", np.random.default_rng(0))
    maps = np.zeros(masks.shape)
    for metric in (aupro, pixel_metrics):
        broken = maps.copy()
        broken[0, 0, :2] = np.nan, np.inf
        with pytest.raises(InctrlError, match="2 of 2304 map scores are NaN or infinite"):
            metric(masks, broken)
        with pytest.raises(InctrlError, match="do not match"):
            metric(masks, maps[:, :12])
        for same in (masks & False, masks | True):
            with pytest.raises(InctrlError, match="need defects and normal pixels"):
                metric(same, maps)


# --- thresholds from normal images alone -------------------------------------------------------------


def test_the_conformal_threshold_by_hand():
    scores = np.arange(1.0, 20.0)  # 1 to 19: with n = 19, one rank is 0.05
    # the second largest: 2 of 20 ranks lie above it
    assert conformal_threshold(scores, 0.1) == (18.0, pytest.approx(0.1), 19, 9)
    assert conformal_threshold(scores, 0.05).threshold == 19.0
    assert conformal_threshold(scores[::-1], 0.149).threshold == 18.0  # 3 of 20 would be more than 0.149


def test_too_few_images_get_the_best_within_reach():
    found = conformal_threshold([0.3, 0.1, 0.2], 0.01)
    assert found.threshold == 0.3 and found.expected_rate == pytest.approx(1 / 4)
    assert (found.images, found.images_needed) == (3, 99)
    assert conformal_threshold(np.arange(99), 0.01).expected_rate == pytest.approx(0.01)
    assert conformal_threshold(np.arange(98), 0.01).expected_rate > 0.01  # one image is missing


def test_rounding_of_the_rate_loses_no_rank():
    assert 0.29 * 100 < 29  # in floating point
    assert conformal_threshold(np.arange(99), 0.29).expected_rate == pytest.approx(0.29)
    for rate in (0.29, 0.07, 1 / 3, 0.01, 0.05):
        needed = conformal_threshold([0.0], rate).images_needed
        assert conformal_threshold(np.arange(needed), rate).expected_rate <= rate + 1e-12
        assert conformal_threshold(np.arange(needed - 1), rate).expected_rate > rate
    assert 1 / (1 / 49) > 49  # in floating point
    assert conformal_threshold([0.0], 1 / 49).images_needed == 48


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (50, 0.1), (5, 0.05)])
def test_the_realised_false_alarm_rate_keeps_its_promise(n, rate):
    rng = np.random.default_rng(n)
    alarms, promised = [], []
    for _ in range(4000):
        found = conformal_threshold(rng.gamma(2.0, size=n), rate)
        alarms.append((rng.gamma(2.0, size=20) > found.threshold).mean())
        promised.append(found.expected_rate)
    error = np.std(alarms) / np.sqrt(len(alarms))
    assert np.mean(alarms) == pytest.approx(promised[0], abs=4 * error)


def test_tied_scores_only_lower_the_false_alarm_rate():
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(2000):
        found = conformal_threshold(rng.integers(0, 4, 30), 0.2)
        alarms.append((rng.integers(0, 4, 30) > found.threshold).mean())
    assert np.mean(alarms) < 0.2


def test_a_conformal_threshold_of_nothing_is_refused():
    for scores in ([], [0.1, np.nan]):
        with pytest.raises(InctrlError, match="finite scores of normal images"):
            conformal_threshold(scores, 0.1)
    for rate in (0.0, 1.0, 5.0, np.nan):
        with pytest.raises(InctrlError, match="between 0 and 1"):
            conformal_threshold([0.1, 0.2], rate)


# --- intervals ---------------------------------------------------------------------------------------


def simulate(rng, categories=2, images=30, draws=3, heads=1, draw_sd=0.0, head_sd=0.0, gap=0.0):
    """Two methods that differ by `gap` in d', as cells: images, draws and heads each have their effect."""
    labels = np.repeat([0, 1], images)
    of_head = rng.normal(0, head_sd, (2, heads))
    methods: list[list[CellScores]] = [[], []]
    for category in range(categories):
        shared = rng.normal(size=2 * images)  # how hard an image is, for both methods
        for method in range(2):
            own = rng.normal(size=2 * images)  # for this method, with every draw and head
            for draw in range(draws):
                of_draw = rng.normal(0, draw_sd)
                for head in range(heads):
                    noise = rng.normal(size=2 * images)  # with this draw and head only
                    distance = 1.0 + method * gap + of_draw + of_head[method, head]
                    scores = 0.6 * shared + 0.6 * own + 0.53 * noise + labels * distance
                    methods[method].append(CellScores("d", str(category), draw, head, labels, scores))
    return methods


def false_exclusions(repetitions: int, **settings) -> float:
    """How often a 95 % interval of a difference of zero leaves zero out."""
    rng = np.random.default_rng(0)
    intervals = [auroc_interval(*simulate(rng, **settings)) for _ in range(repetitions)]
    return float(np.mean([low > 0 or high < 0 for _, low, high in intervals]))


@pytest.mark.parametrize("draw_sd", [0.0, 0.2, 0.4])
def test_a_difference_of_zero_is_left_out_in_about_five_percent(draw_sd):
    """Draw effects of this size made an interval over images alone leave zero out in up to 36 %."""
    assert 0.03 <= false_exclusions(800, draw_sd=draw_sd) <= 0.08


def test_heads_that_differ_are_no_difference_of_methods():
    assert 0.03 <= false_exclusions(400, heads=3, draw_sd=0.2, head_sd=0.3) <= 0.08


def test_noise_of_single_scores_is_not_counted_twice():
    """Draws that differ by noise of single images alone: the images' variance contains it already."""
    rng = np.random.default_rng(0)
    labels, wider = np.repeat([0, 1], 30), []
    for _ in range(40):
        scores = rng.normal(labels, 1.0, (3, 4, 60))  # categories, draws, images
        cells = [CellScores("d", str(c), d, 0, labels, scores[c, d]) for c in range(3) for d in range(4)]
        of_images = auroc_interval([cell._replace(draw=0) for cell in cells])
        wider.append(np.diff(auroc_interval(cells)[1:]) / np.diff(of_images[1:]))
    assert 1 < np.mean(wider) < 1.15


def test_a_difference_that_is_there_is_found():
    rng = np.random.default_rng(0)
    for _ in range(10):
        first, second = simulate(rng, categories=6, images=40, draw_sd=0.1, gap=1.0)
        found = auroc_interval(second, against=first)
        assert found.low > 0 and found.low < found.value < found.high


def test_the_value_is_the_mean_over_categories_and_then_data_sets():
    labels = np.array([0, 0, 1, 1])
    scores = {"a": [0, 1, 2, 3], "b": [0, 2, 1, 3], "c": [3, 2, 1, 0]}  # AUROC 1, 0.75, 0
    place = {"a": "one", "b": "one", "c": "two"}
    cells = [CellScores(place[c], c, draw, 0, labels, s) for c, s in scores.items() for draw in range(2)]
    assert auroc_interval(cells).value == pytest.approx(((1 + 0.75) / 2 + 0) / 2)
    none = [cell._replace(scores=[1, 1, 1, 1]) for cell in cells]
    assert auroc_interval(cells, against=none).value == pytest.approx((0.875 + 0) / 2 - 0.5)


def test_the_standard_error_is_that_of_resampled_images():
    """One draw and one head: the interval is the bootstrap's over images."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], 60)
    scores = rng.normal(labels, 1.0)
    _, low, high = auroc_interval([CellScores("d", "c", 0, 0, labels, scores)])
    resampled = bootstrap_interval(labels, scores)
    assert high - low == pytest.approx(resampled[1] - resampled[0], rel=0.1)


def test_the_standard_error_of_draws_is_that_of_their_mean():
    """Images that all count alike: only draws differ, and Student's t has n - 1 degrees of freedom."""
    labels = np.repeat([0, 1], 200)
    level = np.linspace(0, 1, 200)
    values = []
    cells = []
    for draw, shift in enumerate([0.1, 0.3, 0.5, 0.6]):
        scores = np.concatenate([level, level + shift])
        values.append(auroc(labels, scores))
        cells.append(CellScores("d", "c", draw, 0, labels, scores))
    _, low, high = auroc_interval(cells)
    of_draws = 3.182 * np.std(values, ddof=1) / 2  # Student's t with 3 degrees of freedom
    assert (high - low) / 2 == pytest.approx(of_draws, rel=0.1)


def test_methods_are_compared_on_the_same_images_draws_and_heads():
    rng = np.random.default_rng(0)
    first, _ = simulate(rng, draws=3, heads=2, draw_sd=0.5, head_sd=0.5)
    assert auroc_interval(first, against=first) == (0, 0, 0)
    shuffled = [first[i] for i in rng.permutation(len(first))]
    assert auroc_interval(first, against=shuffled) == (0, 0, 0)
    mixed = [cell._replace(labels=cell.labels[::-1]) for cell in first]
    with pytest.raises(InctrlError, match="different images of d/0"):
        auroc_interval(first, against=mixed)


def test_a_method_without_heads_is_compared_with_each_head():
    first, second = simulate(np.random.default_rng(0), draws=2, heads=3, head_sd=0.5)
    bare = [cell for cell in second if cell.head == 0]
    repeated = [cell._replace(head=head) for cell in bare for head in range(3)]
    assert auroc_interval(first, against=bare) == pytest.approx(auroc_interval(first, against=repeated))


def test_only_what_both_methods_have_is_compared():
    first, second = simulate(np.random.default_rng(0))
    some = [cell for cell in second if cell.category != "1" and cell.draw != 2]
    same = [cell for cell in first if cell.category != "1" and cell.draw != 2]
    assert auroc_interval(first, against=some) == auroc_interval(same, against=some)
    with pytest.raises(InctrlError, match="no cells to compare"):
        auroc_interval(first, against=[])
    with pytest.raises(InctrlError, match="no cells to compare"):
        auroc_interval([])


def test_perfect_scores_have_an_interval_without_width():
    labels = np.array([0, 0, 1])
    assert auroc_interval([CellScores("d", "c", draw, 0, labels, labels) for draw in range(2)]) == (1, 1, 1)


def test_an_interval_of_an_auroc_stays_between_0_and_1():
    cells, _ = simulate(np.random.default_rng(1), categories=1, images=3, draws=2, draw_sd=2.0)
    _, low, high = auroc_interval(cells, level=0.99)
    assert low >= 0 and high == 1
