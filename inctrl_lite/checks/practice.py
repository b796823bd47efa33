"""Exercises of notebook 12: your own images."""

import math

import numpy as np

from inctrl_lite.checks.engine import Exercise
from inctrl_lite.metrics import conformal_threshold


def _scores(seed: int) -> tuple[np.ndarray, float]:
    number, rate = ((19, 0.25), (26, 0.1), (40, 0.05), (46, 0.3))[seed]
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
    mistakes={
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
