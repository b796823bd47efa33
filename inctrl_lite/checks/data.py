"""Exercises of notebook 01: anomalies, data, shots."""

import random
from collections.abc import Callable

import numpy as np

from inctrl_lite.checks.engine import Exercise


def _pool(seed: int) -> tuple[list[str], str, int, int]:
    order = np.random.default_rng(100 + seed).permutation(6 + seed % 3)  # not sorted: the order matters
    names = [f"nut/{i:02}" for i in order]
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


def _sorted_pool(names, query, shots, seed):
    return sample_normals(sorted(names), query, shots, seed)


def _from_a_set(names, query, shots, seed):
    others = list(set(names) - {query})
    return [others[i] for i in np.random.default_rng(seed).choice(len(others), shots, replace=False)]


def _one_by_one(names, query, shots, seed):
    """Draws until there are enough, each draw a new call."""
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
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
    """What is wrong with a draw. A valid draw that differs from the generator's gets a message of its own."""
    names, query, shots, _ = case
    if not isinstance(result, list | tuple | np.ndarray):
        return f"returns a {type(result).__name__}: a list of names in the order of the draw is expected"
    drawn = [str(name) for name in result]
    if not set(drawn) <= set(names):
        return (
            f"returns {drawn!r:.60}, which are not names of the pool: use the drawn indices to look up names"
        )
    if query in drawn:
        return "draws the query itself: take it out of the pool first"
    if len(drawn) != shots or len(set(drawn)) != shots:
        return f"returns {len(drawn)} names ({len(set(drawn))} different), expected {shots} different ones"
    return (
        f"draws {shots} different names without the query, but not those of the answer key: the first "
        f"different one is {next(a for a, b in zip(drawn, right, strict=True) if a != b)!r}. Everybody must "
        "draw the same names: keep the pool in its order, and call `choice` of np.random.default_rng(seed) "
        "once, with replace=False"
    )


check_sample_normals = Exercise(
    solution=sample_normals,
    cases=_pool,
    number=6,
    explain=_unlike,
    mistakes={
        "You sort the pool before the draw, so that others are drawn. Keep the pool in the order of "
        "`names`.": (_sorted_pool),
        "These are the first names of a permutation. That draw is as good, but it is another one: call "
        "`choice` of the generator, once.": _permuted,
        "A set has no fixed order, so nobody else can draw the same names from it. Keep the pool in the "
        "order of `names`.": _from_a_set,
        "You return a set. A list in the order of the draw is expected.": lambda names, query, shots, seed: (
            set(sample_normals(names, query, shots, seed))
        ),
        "You sort the drawn names. Keep the order of the draw.": lambda names, query, shots, seed: sorted(
            sample_normals(names, query, shots, seed)
        ),
        "Python's `random` draws other names than numpy's generator: use np.random.default_rng(seed).": (
            lambda names, query, shots, seed: random.Random(seed).sample(_others(names, query), shots)
        ),
        "numpy's old generator draws other names than the new one: use "
        "np.random.default_rng(seed).": _old_numpy,
        "You draw one name at a time until there are enough. Take the query out first, then call `choice` "
        "once for all names.": _one_by_one,
        "You draw one name at a time from the rest of the pool. Call `choice` once for all names, with "
        "replace=False.": _shrinking,
        "The query itself can be drawn. It would then find an exact copy of itself in the support set and "
        "look perfectly normal. Take it out of the pool first.": _with_query,
        "The same image can be drawn twice: choose without replacement (replace=False).": _with_repeats,
        "These are always the first images, whatever the seed is. Draw them at random.": _always_the_first,
        "You draw first and remove the query afterwards, so that some episodes have fewer than K normal "
        "images.": (_removed_afterwards),
    },
)


PARTS = ("train", "test")


def _splits(seed: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    values = iter(rng.choice(1000, 72, replace=False).tolist())
    train, test = ({f"{part}/{i}": [next(values) for _ in range(5)] for i in range(6)} for part in PARTS)
    if seed:  # the first case is clean
        first, second, third, fourth = (train[f"train/{i}"] for i in range(4))
        test["test/5"] = list(fourth)  # two leaks, whose names do not come in sorted order
        test["test/2"] = list(second)
        test["test/1"] = list(test["test/0"])  # twice in the test split: no leak
        # looks like a training image unless all pixels are compared in their order
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


def _alike(summary: Callable) -> Callable:
    """Leaks as found by somebody who compares only a summary of the pixels."""

    def wrong(train, test):
        seen = {summary(pixels) for pixels in train.values()}
        return sorted(name for name, pixels in test.items() if summary(pixels) in seen)

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
        return f"returns a {type(result).__name__}: a list of names is expected"
    _, test = case
    for name in test:
        if (name in result) != (name in right):
            if name in right:
                return f"{name} ({test[name]}) has the same pixels as a training image, but is not reported"
            return f"{name} ({test[name]}) is not among the training images, but is reported"
    return f"returns {result!r:.100}, expected {right!r:.100}: each name once, in sorted order"


def _briefly(train: dict, test: dict) -> str:
    return f"{len(train)} training images and {len(test)} test images of about five pixels"


check_find_leaks = Exercise(
    solution=find_leaks,
    cases=_splits,
    inputs=_briefly,
    explain=_misjudged,
    mistakes={
        "Two pictures whose pixels have the same sum can differ. Compare the pixels themselves.": (
            _alike(sum)
        ),
        "A set of pixels forgets their order and how often each value occurs. Compare tuple(pixels).": _alike(
            frozenset
        ),
        "Sorted pixels forget their positions. Compare the pixels in their order.": _alike(
            lambda pixels: tuple(sorted(pixels))
        ),
        "Two pictures with equal first and last pixels can differ in between. Compare all pixels.": _alike(
            lambda pixels: (pixels[0], pixels[-1])
        ),
        "You compare the first pixel, the last pixel and the number of pixels. Compare all pixels.": _alike(
            lambda pixels: (pixels[0], pixels[-1], len(pixels))
        ),
        "Two pictures with the same number of pixels can differ. Compare the pixels.": _alike(len),
        "You compare the largest pixels. Compare all of them.": _alike(max),
        "The names are right, but in the order in which you found them. Sort them.": lambda train, test: [
            name for name in test if name in find_leaks(train, test)
        ],
        "A set of names has no order: return a sorted list.": lambda train, test: set(
            find_leaks(train, test)
        ),
        "You compare each test image with one training image only. Compare it with all of "
        "them.": _by_position,
        "A list cannot be put into a set: make a tuple of the pixels first.": _alike(lambda pixels: pixels),
        "Names do not help, because the same picture can have two names. Compare the pixels.": _same_names,
        "You also report pictures that occur twice in the test split. That is untidy, but no leak from "
        "training.": _doubles_too,
        "Two pictures with the same first pixel can differ. Compare all pixels.": _first_pixel,
        "These are the names of the training images. The names of the test images are "
        "expected.": _training_names,
    },
)
