"""Exercises of notebook 01: anomalies, data, shots."""

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


check_sample_normals = Exercise(
    solution=sample_normals,
    cases=_pool,
    number=6,
    mistakes={
        "the query itself may be drawn: it would find itself among the prompts and look perfectly normal. "
        "Take it out of the pool first": _with_query,
        "the same image may be drawn twice: choose without replacement (replace=False)": _with_repeats,
        "this is always the first images, whatever the seed: draw them": _always_the_first,
        "you draw first and drop the query afterwards: then some episodes have fewer than K prompts": (
            _removed_afterwards
        ),
    },
)


def _splits(seed: int) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    codes = [int(code) for code in rng.choice(1000, 12, replace=False)]
    train = {f"train/{i}": [code, code + 1] for i, code in enumerate(codes[:6])}
    test = {f"test/{i}": [code, code + 1] for i, code in enumerate(codes[6:])}
    if seed:  # the first case is clean
        test["test/2"] = list(train["train/1"])
        test["test/5"] = list(train["train/4"])
        test["test/1"] = [test["test/0"][0], test["test/0"][1]]  # twice in the test split: no leak
        train["train/5"] = [test["test/3"][0], -1]  # begins alike, is another picture
    return train, test


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


def _training_names(train, test):
    return sorted(name for name, pixels in train.items() if pixels in test.values())


check_find_leaks = Exercise(
    solution=find_leaks,
    cases=_splits,
    mistakes={
        "names say nothing here: the same picture may be stored under two. Compare the pixels": _same_names,
        "you also report pictures that are twice in the test split: untidy, but no leak": _doubles_too,
        "two pictures that begin with the same pixel are not the same: compare all pixels": _first_pixel,
        "these are the training images' names: asked are those of the test images": _training_names,
    },
)
