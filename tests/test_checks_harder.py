"""The harder exercises at the end of lessons: right answers in any style pass, other wrong ones do not."""

import numpy as np
import pandas as pd
import pytest

from inctrl_lite.checks import CheckFailed, exercises

KEYS = {name: exercise.solution for name, exercise in exercises().items()}


# --- 08: average precision when scores are equal -----------------------------------------------------


def listed(labels, scores):
    ranked = labels[np.argsort(-scores, kind="stable")]
    return (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked == 1].mean()


def ap_by_loops(labels, scores):
    pairs = list(zip(labels.tolist(), scores.tolist(), strict=True))
    called = [[y for y, other in pairs if other >= score] for label, score in pairs if label]
    orders = []
    for sign in (1, -1):
        ranked = [y for y, _ in sorted(pairs, key=lambda pair: (-pair[1], sign * pair[0]))]
        found = [sum(ranked[: i + 1]) / (i + 1) for i, y in enumerate(ranked) if y]
        orders.append(sum(found) / len(found))
    return [orders[0], sum(sum(c) / len(c) for c in called) / len(called), orders[1]]


def ap_by_nudges(labels, scores):
    levels = np.unique(scores)
    own = [((scores == level) & (labels == 1)).sum() for level in levels]
    precision = [labels[scores >= level].mean() for level in levels]
    together = np.dot(own, precision) / labels.sum()
    return np.array(
        [listed(labels, scores - 1e-9 * labels), together, listed(labels, scores + 1e-9 * labels)]
    )


def ap_by_pandas(labels, scores):
    table = pd.DataFrame({"y": labels, "s": scores})
    ties = table.groupby("s")["y"].agg(["sum", "size"]).sort_index(ascending=False)
    together = (ties["sum"].cumsum() / ties["size"].cumsum() * ties["sum"]).sum() / ties["sum"].sum()
    ends = []
    for ascending in (True, False):
        ranked = table.sort_values(["s", "y"], ascending=[False, ascending])["y"].reset_index(drop=True)
        ends.append((ranked.cumsum() / (ranked.index + 1))[ranked == 1].mean())
    return ends[0], together, ends[1]


def ap_by_the_library(labels, scores):
    from sklearn.metrics import average_precision_score

    worst, _, best = KEYS["ap_with_ties"](labels, scores)
    return worst, average_precision_score(labels, scores), best


RIGHT = {"ap_with_ties": [ap_by_loops, ap_by_nudges, ap_by_pandas]}
WRONG = {
    "ap_with_ties": [
        (lambda y, s: KEYS["ap_with_ties"](y, s.clip(0, 1)), "for the worst order, returns"),
        (lambda y, s: KEYS["ap_with_ties"](y, abs(s)), "for the worst order, returns"),
        (lambda y, s: KEYS["ap_with_ties"](y, s.astype(np.float16)), "only close"),
        (lambda y, s: [listed(y, s - 0.1 * y), KEYS["ap_with_ties"](y, s)[1], 1.0], "worst order"),
        (lambda y, s: KEYS["ap_with_ties"](y, s)[::2], r"returns shape \[2\], expected \[3\]"),
        (ap_by_the_library, "calls average_precision_score"),
    ],
}


@pytest.mark.parametrize(("name", "answer"), [(name, one) for name, some in RIGHT.items() for one in some])
def test_a_right_answer_in_any_style_passes(name, answer):
    exercises()[name](answer)


@pytest.mark.parametrize(
    ("name", "answer", "message"), [(n, *one) for n, some in WRONG.items() for one in some]
)
def test_another_wrong_answer_is_told_what_is_wrong(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        exercises()[name](answer)


def test_ap_taken_together_is_the_librarys():
    from inctrl_lite.metrics import average_precision

    exercise = exercises()["ap_with_ties"]
    for seed in range(exercise.number):
        labels, scores = exercise.cases(seed)
        assert exercise.solution(labels, scores)[1] == pytest.approx(average_precision(labels, scores))
