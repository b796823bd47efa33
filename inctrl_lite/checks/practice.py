"""Exercises of notebook 12: your own images."""

import math

import numpy as np

from inctrl_lite.checks.engine import Exercise


def _scores(seed: int) -> tuple[np.ndarray, float]:
    number, rate = ((20, 0.25), (27, 0.1), (34, 0.05), (48, 0.3))[seed]
    return np.random.default_rng(seed).random(number), rate


def threshold_at_rate(normal_scores: np.ndarray, rate: float) -> float:
    """The smallest of the scores that at most a share `rate` of them exceed."""
    allowed = int(rate * len(normal_scores))
    return float(np.sort(normal_scores)[::-1][allowed])


def _descending(scores: np.ndarray, index: int) -> float:
    return float(np.sort(scores)[::-1][index])


check_threshold_at_rate = Exercise(
    solution=threshold_at_rate,
    cases=_scores,
    mistakes={
        "np.quantile lies between two scores unless told otherwise, and may let one alarm too many through: "
        "take one of the scores": lambda s, rate: float(np.quantile(s, 1 - rate)),
        'for np.quantile n scores are n - 1 steps, so method="higher" can land on a score too large: '
        "count the scores above it": lambda s, rate: float(np.quantile(s, 1 - rate, method="higher")),
        "this cuts at the low end: alarms are the large scores": lambda s, rate: float(np.quantile(s, rate)),
        "this is sorted from small to large: count the alarms from the largest score down": lambda s, rate: (
            float(np.sort(s)[int(rate * len(s))])
        ),
        "only scores above the threshold raise an alarm, one that equals it does not: you allow one alarm "
        "fewer than you may": lambda s, rate: _descending(s, max(int(rate * len(s)) - 1, 0)),
        "you round up the number of alarms, which is then more than the wanted share: round down": (
            lambda s, rate: _descending(s, math.ceil(rate * len(s)))
        ),
        "one alarm too many: Python counts from 0": lambda s, rate: _descending(s, int(rate * len(s)) + 1),
        "no normal image exceeds the largest score: this ignores the wanted rate": lambda s, rate: float(
            s.max()
        ),
    },
)


def normals_needed(rate: float, confidence: float) -> int:
    """Smallest n with chance 1 - confidence or less of n images without a false alarm."""
    return int(np.ceil(np.log(1 - confidence) / np.log(1 - rate)))


check_normals_needed = Exercise(
    solution=normals_needed,
    cases=lambda seed: ((0.05, 0.95), (0.1, 0.9), (0.5, 0.75), (0.01, 0.99))[seed],
    mistakes={
        "round up: with one image fewer the chance is still too large": lambda rate, confidence: int(
            math.log(1 - confidence) / math.log(1 - rate)
        ),
        "where the division comes out whole, that number is enough: round up, do not add 1": (
            lambda rate, confidence: math.floor(math.log(1 - confidence) / math.log(1 - rate)) + 1
        ),
        "after 1 / rate images you expect one alarm, but seeing none is still likely": (
            lambda rate, confidence: math.ceil(round(1 / rate, 6))
        ),
        "the chance of n images without an alarm must fall to 1 - confidence, not to the confidence": (
            lambda rate, confidence: math.ceil(math.log(confidence) / math.log(1 - rate))
        ),
        "the chance that an image raises no alarm is 1 - rate": lambda rate, confidence: math.ceil(
            math.log(1 - confidence) / math.log(rate)
        ),
        "that is the rule of three, a good guess at 95 %; asked is the exact number": (
            lambda rate, confidence: math.ceil(round(3 / rate, 6))
        ),
    },
)
