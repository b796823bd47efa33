"""Exercises of notebook 00: the tour."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator


def effect_of_shots(aurocs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample deviation over seeds for each K: two tensors [n] from AUROCs [n, seeds]."""
    return aurocs.mean(1), aurocs.std(1)


check_effect_of_shots = Exercise(
    solution=effect_of_shots,
    cases=lambda seed: (torch.rand(3 + seed % 2, 5 + seed, generator=generator(seed)),),
    parts=("means", "deviations"),
    mistakes={
        "You average over the values of K. Each row holds the draws of one K, so average along axis "
        "1.": lambda a: (
            a.mean(0),
            a.std(0),
        ),
        "You divide by n, which is right for these draws alone. To speak about all possible draws, divide "
        "by n - 1 (the default of Tensor.std).": lambda a: (a.mean(1), a.std(1, correction=0)),
        "This is the standard error of the mean. The exercise asks how much single draws differ, so do "
        "not divide by the root of n.": lambda a: (a.mean(1), a.std(1) / a.shape[1] ** 0.5),
        "This is the variance: take its square root.": lambda a: (a.mean(1), a.var(1)),
        "Mean and deviation are exchanged: the mean comes first. (torch.std_mean returns the deviation "
        "first.)": (lambda a: (a.std(1), a.mean(1))),
        "You return one row for each K. Two tensors [n] are expected: the means, and the deviations.": (
            lambda a: torch.stack([a.mean(1), a.std(1)], dim=1)
        ),
        "The deviations are missing: return two tensors, `mean, deviation`.": lambda a: a.mean(1),
        "You take the mean and deviation of all numbers together. One of each is expected for every K.": (
            lambda a: (a.mean(), a.std())
        ),
    },
)


# --- a threshold from normal images alone -----------------------------------------------------------


def decide(score: Callable, normals: list, queries: list) -> tuple[float, list[bool]]:
    """A threshold from normal images alone, and whether each query is called anomalous."""
    left_out = [score(normals[:i] + normals[i + 1 :], normals[i]) for i in range(len(normals))]
    threshold = max(left_out)
    return threshold, [score(normals, query) > threshold for query in queries]


def _nearest(normals: Any, image: Any) -> float:
    return float(min(np.abs(image - one).mean() for one in normals))


NEAREST = "the distance to the nearest normal image"
NEGATIVE = "the distance to the nearest normal image minus 50, so that all scores are below 0"
MEAN = "the distance to the mean of the normal images"
SCORES: dict[str, Callable[[Any, Any], float]] = {
    NEAREST: _nearest,
    NEGATIVE: lambda normals, image: _nearest(normals, image) - 50,
    MEAN: lambda normals, image: float(np.abs(image - np.mean(list(normals), axis=0)).mean()),
}


def _photographs(seed: int) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Normal images and queries, as small arrays: among the queries a copy, and one exactly at the threshold.

    One normal image is in the list twice (seed 1), so that each of the two finds the other. In the last two
    cases the scores are others: all below zero, and the distance to the mean of the normal images.
    """
    rng = np.random.default_rng(seed)
    normals = list(rng.normal(size=(4 + seed, 3)))
    if seed == 1:
        normals[0] = normals[3] = np.full(3, 5.0)
    queries = list(rng.normal(size=(9, 3)) * rng.choice([0.7, 2.5], size=(9, 1)))
    if seed == 3:  # the score of a query is the threshold itself
        normals = [np.full(3, value) for value in (0.0, 1.0, 2.0, 4.0)]
        queries = [np.full(3, value) for value in (-2.0, 0.5, 6.0, 6.5, 3.0, -2.5)]
    if seed == 5:  # the scores of some queries are just above the threshold
        centre, ends = np.mean(normals, axis=0), np.eye(3)
        limit = max(SCORES[MEAN](normals[:i] + normals[i + 1 :], normals[i]) for i in range(len(normals)))
        queries += [centre + 3 * 1.01 * limit * sign * end for end in ends for sign in (-1, 1)]
    return normals, [*queries, normals[-1].copy()], (NEAREST, NEAREST, NEAREST, NEAREST, NEGATIVE, MEAN)[seed]


def _decided(answer: Callable, normals: list, queries: list, name: str) -> Any:
    def score(normals: Any, image: Any) -> float:
        """The score of an image, given a list or an array of normal images."""
        if isinstance(normals, np.ndarray) and normals.ndim < 2:
            raise TypeError("score(normals, image): the first argument is a list of images")
        if not len(normals):
            raise ValueError("score got no normal images")
        return SCORES[name](normals, image)

    return answer(score, normals, queries)


def _left_out(score: Callable, normals: list) -> list[float]:
    return [score(normals[:i] + normals[i + 1 :], normals[i]) for i in range(len(normals))]


def _with(
    threshold: Callable[[Callable, list, list], float] = lambda f, n, q: max(_left_out(f, n)),
    called: Callable[[float, float], object] = lambda score, limit: score > limit,
    known: Callable[[list], list] = lambda normals: normals,
) -> Callable:
    """A wrong answer: another threshold, another comparison, or other normal images for the queries."""

    def wrong(score: Callable, normals: list, queries: list) -> tuple[float, list]:
        limit = threshold(score, normals, queries)
        return limit, [called(score(known(normals), query), limit) for query in queries]

    return wrong


def _without_copies(score: Callable, normals: list, queries: list) -> float:
    return max(score([one for one in normals if (one != image).any()], image) for image in normals)


check_decide = Exercise(
    solution=decide,
    cases=_photographs,
    run=_decided,
    parts=("threshold", "decisions"),
    inputs=lambda normals, queries, name: (
        f"{len(normals)} normal images and {len(queries)} queries; the score is {name}"
    ),
    number=6,
    mistakes={
        "You score a normal image against a list that contains it. It finds itself and looks perfectly "
        "normal. Leave it out.": _with(lambda f, n, q: max(f(n, one) for one in n)),
        "The threshold is the LARGEST of the scores of the normal images. You take the smallest.": _with(
            lambda f, n, q: min(_left_out(f, n))
        ),
        "The threshold is the LARGEST of the scores of the normal images. You take their mean.": _with(
            lambda f, n, q: float(np.mean(_left_out(f, n)))
        ),
        "The threshold is the LARGEST of the scores of the normal images. You take their median.": _with(
            lambda f, n, q: float(np.median(_left_out(f, n)))
        ),
        "Your threshold comes from the queries. Nothing about them is known when the threshold is chosen: "
        "use the normal images alone.": _with(lambda f, n, q: float(np.median([f(n, one) for one in q]))),
        "You leave out only the first normal image. Leave out each of them once.": _with(
            lambda f, n, q: _left_out(f, n)[0]
        ),
        "You leave out only the last normal image. Leave out each of them once.": _with(
            lambda f, n, q: _left_out(f, n)[-1]
        ),
        "The largest score so far begins at 0. Scores may all be below 0: begin with a score, or with minus "
        "infinity.": _with(lambda f, n, q: max([0.0, *_left_out(f, n)])),
        "You compare each normal image with only one other. Compare it with ALL others.": _with(
            lambda f, n, q: max(f([n[i - 1]], n[i]) for i in range(len(n)))
        ),
        "You compare each normal image only with those before it. Compare it with all others.": _with(
            lambda f, n, q: max(f(n[:i], n[i]) for i in range(1, len(n)))
        ),
        "You leave out every image that is EQUAL to the one that is scored. Leave out one place in the "
        "list. A copy at another place stays.": _with(_without_copies),
        "The arguments of score are exchanged: first the normal images, then the image.": _with(
            lambda f, n, q: max(f(n[i], n[:i] + n[i + 1 :]) for i in range(len(n)))
        ),
        "A query whose score equals the threshold is called anomalous in your answer. It must be larger.": (
            _with(called=lambda score, limit: score >= limit)
        ),
        "The decisions are the wrong way round. True means anomalous: the score is larger than the "
        "threshold.": _with(called=lambda score, limit: not score > limit),
        "You return the scores of the queries. Decisions are expected, True or False.": _with(
            called=lambda score, limit: score
        ),
        "You score the queries against all normal images but the last. A query is none of the normal images: "
        "use all K.": _with(known=lambda normals: normals[:-1]),
        "You score the queries against all normal images but the first. A query is none of them, so use "
        "all K.": _with(known=lambda normals: normals[1:]),
        "Two things are expected: the threshold, and the list of decisions. You return the decisions "
        "alone.": lambda f, n, q: decide(f, n, q)[1],
        "You return the threshold alone. The decisions are expected as well.": lambda f, n, q: decide(
            f, n, q
        )[0],
        "The two results are exchanged: the threshold comes first.": lambda f, n, q: decide(f, n, q)[::-1],
        "You return the number of anomalous queries. Return a decision for each query.": lambda f, n, q: (
            decide(f, n, q)[0],
            sum(decide(f, n, q)[1]),
        ),
    },
)
