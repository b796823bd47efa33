"""Exercises of notebook 01: anomalies, data, shots."""

import random
from collections.abc import Callable

import numpy as np

from inctrl_lite.checks.engine import Exercise, same


def _pool(seed: int) -> tuple[list[str], str, int, int]:
    rng = np.random.default_rng(100 + seed)
    names = [f"nut/{i}" for i in rng.permutation([1, 10, 2, 13, 21, 4, 30, 5][: 6 + seed % 3])]  # not sorted
    return names, "nut/1" if seed % 2 else names[seed], 4, seed  # another name begins with the query's


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
        "You leave out every name that contains the name of the query. Compare whole names.": (
            lambda names, query, shots, seed: sample_normals(
                [name for name in names if query not in name], query, shots, seed
            )
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
    values = iter((1 + rng.choice(254, 72, replace=False)).tolist())  # as in a picture of eight bits
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
        test["test/10"] = [*first[:-1], next(values)]
        train["train/6"] = list(fourth)  # twice in training: its copies in the test split are leaks once
        train["train/7"], test["test/11"] = [1, 12, *first], [11, 2, *first]  # the same digits in a row
        test["test/9"] = list(fourth)  # the same leak under another name
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


def _named_once_for_each_copy(train, test):
    return sorted(name for name, pixels in test.items() for other in train.values() if pixels == other)


def _keys_of_pixels(train, test):
    """A dictionary with pixels as keys keeps one name for each picture."""
    names = {tuple(pixels): name for name, pixels in test.items()}
    return sorted(names[one] for one in {*map(tuple, train.values())} & {*names})


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
        "You name a test image once for each of its copies in training. Name it once.": (
            _named_once_for_each_copy
        ),
        "Two test images can have the same pixels. A dictionary with the pixels as keys keeps the name of "
        "only one of them.": _keys_of_pixels,
        "Digits in a row do not say where a pixel ends: 1, 12 and 11, 2 give the same text. Compare "
        "tuple(pixels).": _alike(lambda pixels: "".join(map(str, pixels))),
        "You leave out the last pixel. Compare all pixels.": _alike(lambda pixels: tuple(pixels[:-1])),
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


# --- harder: protocols without leaks -----------------------------------------------------------------


def semantic_protocols(images: list[tuple[str, str, int]], objects: int) -> tuple[dict, list[str]]:
    """(name, class, object) of each picture -> {class: (pool, labelled queries)}, and classes too small."""
    images = list(dict.fromkeys(images))  # each picture once
    seen: dict[str, dict[int, None]] = {}
    for _, kind, number in images:
        seen.setdefault(kind, {})[number] = None  # in the order in which they occur
    small = sorted(kind for kind, numbers in seen.items() if len(numbers) <= objects)
    pool: list[tuple[str, str]] = []
    queries: list[tuple[str, str]] = []
    for name, kind, number in images:
        shown = kind not in small and number in list(seen[kind])[:objects]
        (pool if shown else queries).append((name, kind))
    normal = {kind: {kind} for kind in seen if kind not in small}
    if normal:
        normal["all classes"] = set(normal)
    return {
        title: ([n for n, k in pool if k in kinds], [(n, int(k not in kinds)) for n, k in queries])
        for title, kinds in normal.items()
    }, small


def _pictures(seed: int) -> tuple[list[tuple[str, str, int]], int]:
    rng, objects = np.random.default_rng(seed), (2, 1, 3, 2)[seed]
    counts = {"cup": objects + 2, "shoe": objects + 1, "fish": objects, "bird": objects + 3, "ant": 1}
    if seed == 3:
        counts = {"cup": 2, "ant": 1}  # no class is large enough
    rows = []
    for kind, number in counts.items():
        for i in rng.permutation(20)[:number].tolist():  # the same numbers occur in several classes
            rows += [(kind, i)] * int(rng.integers(1, 4))
    order, names = rng.permutation(len(rows)), rng.permutation(90)
    images = [(f"{names[i]:02}.png", *rows[i]) for i in order]
    return [*images, images[0], images[-1]], objects


def _protocols(
    once: Callable = lambda images: list(dict.fromkeys(images)),
    key: Callable = lambda name, kind, number: (kind, number),
    chosen: Callable = lambda numbers, objects: numbers[:objects],
    small_if: Callable = lambda count, objects: count <= objects,
    tested: Callable = lambda queries, pool, kinds, small: queries,
    label: Callable = lambda kind, kinds, small: int(kind not in kinds),
    sort: Callable = sorted,
    title: str | None = "all classes",
    together: Callable = lambda large, small: large,
    listed: Callable = list,
) -> Callable:
    """Protocols with one decision that differs."""

    def wrong(images, objects):
        images = once(images)
        seen: dict[str, dict] = {}
        for name, kind, number in images:
            seen.setdefault(kind, {})[key(name, kind, number)] = None
        small = sort([kind for kind, numbers in seen.items() if small_if(len(numbers), objects)])
        large = [kind for kind in seen if kind not in small]
        taken = {one for kind in large for one in chosen(list(seen[kind]), objects)}
        pool = [(n, k) for n, k, i in images if k not in small and key(n, k, i) in taken]
        queries = [(n, k) for n, k, i in images if k in small or key(n, k, i) not in taken]
        normal = {kind: {kind} for kind in large}
        if large and title is not None:
            normal[title] = {*together(large, small)}
        return {
            name: (
                listed(n for n, k in pool if k in kinds),
                listed((n, label(k, kinds, small)) for n, k in tested(queries, pool, kinds, small)),
            )
            for name, kinds in normal.items()
        }, small

    return wrong


def _pool_scored(images, objects):
    found, small = semantic_protocols(images, objects)
    large = set(found) - {"all classes"}
    return {
        title: (
            pool,
            [
                (n, int(k not in (large if title == "all classes" else {title})))
                for n, k, _ in dict.fromkeys(images)
            ],
        )
        for title, (pool, _) in found.items()
    }, small


def _said_of_protocols(case: tuple, result, right: tuple) -> str | None:
    """What is wrong, with the class and the picture."""
    if not isinstance(result, list | tuple) or len(result) != 2 or not isinstance(result[0], dict):
        return "return two things: the dictionary of protocols, and the list of classes that are too small"
    found, small = result
    if not same(small, right[1], 0.0):
        return f"the classes that are too small are {right[1]}, you return {small!r:.80}"
    if set(found) != set(right[0]):
        return f"has protocols for {sorted(map(str, found))}, expected {sorted(right[0])}"
    for title, (pool, queries) in right[0].items():
        pair = found[title]
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return f"{title!r}: a pair (pool, queries) is expected"
        if not same(pair[0], pool, 0.0):
            return f"{title!r}: the pool is {pair[0]!r:.90}, expected {pool!r:.90}"
        if not same(pair[1], queries, 0.0):
            shown = {name for names, _ in right[0].values() for name in names}
            for one in pair[1] if isinstance(pair[1], list | tuple) else ():
                if isinstance(one, list | tuple) and one and one[0] in shown:
                    return (
                        f"{title!r}: {one[0]} is a query, but it is in a pool. No picture of a pool is scored"
                    )
            return f"{title!r}: the queries are {pair[1]!r:.120} ..., expected {queries!r:.120} ..."
    return None


check_semantic_protocols = Exercise(
    solution=semantic_protocols,
    cases=_pictures,
    inputs=lambda images, objects: (
        f"{len(images)} lines of {len({k for _, k, _ in images})} classes, objects = {objects}"
    ),
    explain=_said_of_protocols,
    mistakes={
        "You split pictures. Several pictures show one object: split objects, so that no object is on both "
        "sides.": _protocols(key=lambda name, kind, number: name),
        "Object 3 of one class is not object 3 of another: look at class and number together.": _protocols(
            key=lambda name, kind, number: number
        ),
        "A line that occurs twice counts once.": _protocols(once=list),
        "You take the objects with the smallest numbers. Take those that occur first.": _protocols(
            chosen=lambda numbers, objects: sorted(numbers)[:objects]
        ),
        "You take the last objects. Take those that occur first.": _protocols(
            chosen=lambda numbers, objects: numbers[-objects:]
        ),
        "A class with exactly `objects` objects has no normal query left: it is too small.": _protocols(
            small_if=lambda count, objects: count < objects
        ),
        "The classes that are too small are right, but not in sorted order.": _protocols(sort=list),
        "The pool is scored as well. That is the leak: a normal query finds itself among the normal "
        "images.": _pool_scored,
        "Pictures of the classes that are too small are left out. They have no pool, and are anomalous "
        "queries.": _protocols(
            tested=lambda queries, pool, kinds, small: [one for one in queries if one[1] not in small]
        ),
        "The labels are exchanged: 1 is anomalous.": _protocols(
            label=lambda kind, kinds, small: int(kind in kinds)
        ),
        "The queries of the other classes are missing. They are the anomalous ones.": _protocols(
            tested=lambda queries, pool, kinds, small: [one for one in queries if one[1] in kinds]
        ),
        'The protocol "all classes" is missing.': _protocols(title=None),
        'In "all classes", the classes that are too small count as normal. Nobody has shown them: label 1.': (
            _protocols(together=lambda large, small: [*large, *small])
        ),
        "You sort the lists. Keep the order of `images`.": _protocols(listed=sorted),
        "You return sets, which have no order. Return lists in the order of `images`.": _protocols(
            listed=set
        ),
    },
)
