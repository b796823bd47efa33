"""Episodes: a query and K normal images of its own category, drawn again for every training step.

Training imitates testing. In a test, a category comes with K normal images and unlabelled queries. In
training, every query gets K normal images of its own, so that the model learns to compare and not to
memorise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

import numpy as np

from inctrl_lite.data.category import Category, Item
from inctrl_lite.errors import InctrlError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Episode:
    """One training example: is `query` anomalous, given K normal images of its category?"""

    category: Category
    query: Item
    support: tuple[Item, ...]


def normals(category: Category) -> list[Item]:
    """Every normal image of a category, from both splits: training queries and support sets come from
    these."""
    return [*category.train, *(item for item in category.test if item.label == 0)]


def sample_batch(
    categories: Sequence[Category], step: int, *, batch_size: int = 16, shots: int = 4, seed: int = 0
) -> list[Episode]:
    """The episodes of training step number `step`: half with normal queries, then half with anomalous ones.

    As in the public code, the queries of all categories are shuffled together, normal and anomalous ones
    apart; every image is used once before any is used again. Each query gets `shots` normal images of its
    category, drawn without replacement and never the query itself. The public code does not exclude the
    query, which lets a normal query find all its patches again.

    A pure function of its arguments: a resumed training sees the stream that an uninterrupted one sees.

    Raises:
        InctrlError: odd batch size, no normal or no anomalous image, or a category with too few normals.
    """
    if batch_size < 2 or batch_size % 2:
        raise InctrlError(f"batch size {batch_size}: choose an even number, half normal and half anomalous")
    pools = {category: normals(category) for category in categories}
    for category, pool in pools.items():
        if len(pool) <= shots:
            raise InctrlError(
                f"category {category.name!r} has {len(pool)} normal images; {shots} shots need at least "
                f"{shots + 1}: a query and {shots} others"
            )
    kinds = (
        [(category, item) for category, pool in pools.items() for item in pool],
        [(category, item) for category in categories for item in category.test if item.label == 1],
    )
    if not all(kinds):
        missing = "anomalous" if kinds[0] else "normal"
        raise InctrlError(f"no {missing} image to train on: both kinds are needed")

    rng = np.random.default_rng([seed, step])
    half = batch_size // 2
    drawn = [
        pair
        for kind, pairs in enumerate(kinds)
        for pair in _shuffled(pairs, range(step * half, (step + 1) * half), [seed, kind])
    ]
    return [
        Episode(category, query, _draw(rng, [i for i in pools[category] if i.name != query.name], shots))
        for category, query in drawn
    ]


def _shuffled(values: list[T], positions: range, seed: list[int]) -> list[T]:
    """The values at these positions of an endless sequence: shuffled, and shuffled anew after each pass."""
    count = len(values)
    orders = {
        number: np.random.default_rng([*seed, number, count]).permutation(count)
        for number in {position // count for position in positions}
    }
    return [values[orders[position // count][position % count]] for position in positions]


def _draw(rng: np.random.Generator, pool: list[Item], shots: int) -> tuple[Item, ...]:
    return tuple(pool[i] for i in rng.choice(len(pool), shots, replace=False))


def draw_support(category: Category, shots: int, seed: int = 0) -> tuple[Item, ...]:
    """The support set to test a category with: K of its normal training images.

    Whoever uses the same seed gets the same images: the draw depends on their names only, not on their
    order, the machine or a library's version. The K of fewer shots are among those of more.

    Raises:
        InctrlError: the category has fewer normal images than `shots`.
    """
    if not 1 <= shots <= len(category.train):
        raise InctrlError(
            f"category {category.name!r} has {len(category.train)} normal images to draw from: "
            f"shots = {shots} is not possible, choose from 1 to {len(category.train)}"
        )

    def order(item: Item) -> bytes:
        return blake2b(f"{seed} {category.dataset} {item.name}".encode(), digest_size=16).digest()

    return tuple(sorted(category.train, key=order)[:shots])
