"""Exercises of notebook 01: anomalies, data, shots."""

import random
from collections.abc import Callable

import numpy as np

from inctrl_lite.checks.engine import Exercise


def _pool(seed: int) -> tuple[list[str], str, int, int]:
    names = [f"nut/{i:02}" for i in range(6 + seed % 3)]
    return names, names[seed], 4, seed


def sample_normals(names: list[str], query: str, shots: int, seed: int) -> list[str]:
    """`shots` different names, never the query, as numpy's generator of `seed` draws."""
    others = [name for name in names if name != query]
    rng = np.random.default_rng(seed)
    return [others[i] for i in rng.choice(len(others), shots, replace=False)]


def _with_query(names, query, shots, seed):
    rng = np.random.default_rng(seed)
    return [names[i] for i in rng.choice(len(names), shots, replace=False)]


def _with_repeats(names, query, shots, seed):
    others = [name for name in names if name != query]
    return [others[i] for i in np.random.default_rng(seed).choice(len(others), shots)]


def _always_the_first(names, query, shots, seed):
    return [name for name in names if name != query][:shots]


def _removed_afterwards(names, query, shots, seed):
    return [name for name in _with_query(names, query, shots, seed) if name != query]


def _others(names, query):
    return [name for name in names if name != query]


def _permuted(names, query, shots, seed):
    return [str(name) for name in np.random.default_rng(seed).permutation(_others(names, query))[:shots]]


def _from_a_set(names, query, shots, seed):
    others = list(set(names) - {query})
    return [others[i] for i in np.random.default_rng(seed).choice(len(others), shots, replace=False)]


def _one_by_one(names, query, shots, seed):
    """Draws until there are enough, each draw a new call."""
    rng, chosen = np.random.default_rng(seed), []
    while len(chosen) < shots:
        name = names[rng.choice(len(names))]
        if name != query and name not in chosen:
            chosen.append(name)
    return chosen


def _shrinking(names, query, shots, seed):
    rng, others = np.random.default_rng(seed), _others(names, query)
    return [others.pop(int(rng.choice(len(others)))) for _ in range(shots)]


def _old_numpy(names, query, shots, seed):
    others = _others(names, query)
    return [others[i] for i in np.random.RandomState(seed).choice(len(others), shots, replace=False)]


def _unlike(case: tuple, result, right) -> str | None:
    """What is wrong with a draw; a sound draw that is another one than the generator's is named so, too."""
    names, query, shots, _ = case
    if not isinstance(result, list | tuple | np.ndarray):
        return f"returns a {type(result).__name__}: asked is a list of names, in the order of the draw"
    drawn = [str(name) for name in result]
    if not set(drawn) <= set(names):
        return f"returns {drawn!r:.60}, which are no names of the pool: with the drawn indices, look names up"
    if query in drawn:
        return "draws the query itself: take it out of the pool first"
    if len(drawn) != shots or len(set(drawn)) != shots:
        return f"returns {len(drawn)} names, {len(set(drawn))} of them different: asked are {shots} different"
    return (
        "draws as many names as asked, all different, none the query; but they are others than those asked "
        "for. Anybody should draw the same ones: keep the pool in its order, and call `choice` of "
        "np.random.default_rng(seed) once, with replace=False"
    )


check_sample_normals = Exercise(
    solution=sample_normals,
    cases=_pool,
    number=6,
    explain=_unlike,
    mistakes={
        "these are the first of a permutation, a draw as good, but another one: call `choice` of the "
        "generator, once": _permuted,
        "a set has no order of its own, so nobody else draws the same ones from it: keep the pool in the "
        "order of `names`": _from_a_set,
        "you return a set: asked is a list, in the order of the draw": lambda names, query, shots, seed: set(
            sample_normals(names, query, shots, seed)
        ),
        "you sort what was drawn: keep the order of the draw": lambda names, query, shots, seed: sorted(
            sample_normals(names, query, shots, seed)
        ),
        "Python's `random` draws others than numpy's generator: use np.random.default_rng(seed)": (
            lambda names, query, shots, seed: random.Random(seed).sample(_others(names, query), shots)
        ),
        "numpy's old generator draws others than the new one: use np.random.default_rng(seed)": _old_numpy,
        "you draw one name at a time until there are enough: take the query out first, then call `choice` "
        "once for all of them": _one_by_one,
        "you draw one name at a time from what is left: call `choice` once for all of them, with "
        "replace=False": _shrinking,
        "the query itself may be drawn: it would find itself among the prompts and look perfectly normal. "
        "Take it out of the pool first": _with_query,
        "the same image may be drawn twice: choose without replacement (replace=False)": _with_repeats,
        "this is always the first images, whatever the seed: draw them": _always_the_first,
        "you draw first and drop the query afterwards: then some episodes have fewer than K prompts": (
            _removed_afterwards
        ),
    },
)


PARTS = ("train", "test")


def _splits(seed: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    values = iter(rng.choice(1000, 72, replace=False).tolist())
    train, test = ({f"{part}/{i}": [next(values) for _ in range(5)] for i in range(6)} for part in PARTS)
    if seed:  # the first case is clean
        first, second, third, fourth = (train[f"train/{i}"] for i in range(4))
        test["test/5"] = list(fourth)  # two leaks, and their names are not met in sorted order
        test["test/2"] = list(second)
        test["test/1"] = list(test["test/0"])  # twice in the test split: no leak
        # what looks like a training image if one does not compare all pixels in their order
        test["test/4"] = [first[0], next(values), first[2], next(values), first[4]]
        test["test/3"] = [third[0], third[2], third[1], *third[3:]]
        test["test/6"] = [third[0] + 1, third[1], third[2] - 1, *third[3:]]
        test["test/7"] = [*first, first[-1]]
        test["test/8"] = fourth[:3]
    return train, dict(reversed(test.items()))


def find_leaks(train: dict[str, list[int]], test: dict[str, list[int]]) -> list[str]:
    """Names of test images whose pixels are those of a training image, in sorted order."""
    seen = {tuple(pixels) for pixels in train.values()}
    return sorted(name for name, pixels in test.items() if tuple(pixels) in seen)


def _same_names(train, test):
    return sorted(set(train) & set(test))


def _doubles_too(train, test):
    others = lambda name: [*train.values(), *(p for n, p in test.items() if n != name)]  # noqa: E731
    return sorted(name for name, pixels in test.items() if pixels in others(name))


def _first_pixel(train, test):
    return sorted(n for n, pixels in test.items() if pixels[0] in {q[0] for q in train.values()})


def _alike(view: Callable) -> Callable:
    """Leaks as found by somebody who compares only a view of the pixels."""

    def wrong(train, test):
        seen = {view(pixels) for pixels in train.values()}
        return sorted(name for name, pixels in test.items() if view(pixels) in seen)

    return wrong


def _by_position(train, test):
    return sorted(
        n for (n, pixels), other in zip(test.items(), train.values(), strict=False) if pixels == other
    )


def _training_names(train, test):
    return sorted(name for name, pixels in train.items() if pixels in test.values())


def _misjudged(case: tuple, result, right: list[str]) -> str | None:
    """Which test image is judged wrongly, with its pixels."""
    if not isinstance(result, list | tuple):
        return f"returns a {type(result).__name__}: asked is a list of names"
    _, test = case
    for name in test:
        if (name in result) != (name in right):
            verdict = "is in training, pixel by pixel, and is not" if name in right else "is not in training"
            return f"{name} ({test[name]}) {verdict}{' reported' if name in right else ', and is reported'}"
    return f"returns {result!r:.100}, expected {right!r:.100}: each name once, in sorted order"


def _briefly(train: dict, test: dict) -> str:
    return f"{len(train)} training images and {len(test)} test images of about five pixels"


check_find_leaks = Exercise(
    solution=find_leaks,
    cases=_splits,
    inputs=_briefly,
    explain=_misjudged,
    mistakes={
        "two pictures whose pixels have the same sum need not be the same: compare the pixels themselves": (
            _alike(sum)
        ),
        "a set of pixels forgets their order, and how often each appears: compare tuple(pixels)": _alike(
            frozenset
        ),
        "sorted pixels forget where each of them was: compare them in their order": _alike(
            lambda pixels: tuple(sorted(pixels))
        ),
        "two pictures that begin and end alike may differ in between: compare all pixels": _alike(
            lambda pixels: (pixels[0], pixels[-1])
        ),
        "you compare the first and the last pixel and the number of them: compare all pixels": _alike(
            lambda pixels: (pixels[0], pixels[-1], len(pixels))
        ),
        "two pictures with equally many pixels need not be the same: compare the pixels": _alike(len),
        "you compare the largest pixels: compare all of them": _alike(max),
        "the right names, but in the order in which they were met: sort them": lambda train, test: [
            name for name in test if name in find_leaks(train, test)
        ],
        "a set of names has no order: return a sorted list": lambda train, test: set(find_leaks(train, test)),
        "each test image is compared with one training image only: look among all of them": _by_position,
        "a list cannot be put into a set: make a tuple of the pixels first": _alike(lambda pixels: pixels),
        "names say nothing here: the same picture may be stored under two. Compare the pixels": _same_names,
        "you also report pictures that are twice in the test split: untidy, but no leak": _doubles_too,
        "two pictures that begin with the same pixel are not the same: compare all pixels": _first_pixel,
        "these are the training images' names: asked are those of the test images": _training_names,
    },
)
