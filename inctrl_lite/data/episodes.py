"""Episodes: a query beside normal prompts of its own category, drawn again for every training step.

Training imitates testing. There, a category comes with K normal images and unlabelled queries; here, every
query gets its own fresh K, so that the model learns to compare instead of to memorise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from inctrl_lite.data.category import Category, Item
from inctrl_lite.errors import InctrlError


@dataclass(frozen=True, eq=False)
class Episode:
    """One training example: is `query` anomalous, given K normal images of its category?"""

    category: Category
    query: Item
    prompt: tuple[Item, ...]


def normals(category: Category) -> list[Item]:
    """Every normal image of a category, from both splits: what training queries and prompts come from."""
    return [*category.train, *(item for item in category.test if item.label == 0)]


def sample_batch(
    categories: Sequence[Category], step: int, *, batch_size: int = 16, shots: int = 4, seed: int = 0
) -> list[Episode]:
    """The episodes of training step number `step`: half with normal queries, then half with anomalous ones.

    As in the public code, queries are pooled over all categories and dealt from a shuffled pack, normal and
    anomalous apart, so that every image has its turn before any comes again. Each gets `shots` normal
    prompts of its category, drawn without replacement and never the query itself: the public code does
    not exclude it, which lets a normal query find all its patches again.

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
    packs = (
        [(category, item) for category, pool in pools.items() for item in pool],
        [(category, item) for category in categories for item in category.test if item.label == 1],
    )
    if not all(packs):
        missing = "anomalous" if packs[0] else "normal"
        raise InctrlError(f"no {missing} image to train on: both kinds are needed")

    rng = np.random.default_rng([seed, step])
    half = batch_size // 2
    dealt = [
        card
        for kind, pack in enumerate(packs)
        for card in _deal(pack, range(step * half, (step + 1) * half), [seed, kind])
    ]
    return [
        Episode(category, query, _draw(rng, [i for i in pools[category] if i.name != query.name], shots))
        for category, query in dealt
    ]


def _deal(pack: list, turns: range, seed: list[int]) -> list:
    """The cards of these turns, when the pack is shuffled anew each time it is used up."""
    orders = {
        round_: np.random.default_rng([*seed, round_, len(pack)]).permutation(len(pack))
        for round_ in {turn // len(pack) for turn in turns}
    }
    return [pack[orders[turn // len(pack)][turn % len(pack)]] for turn in turns]


def _draw(rng: np.random.Generator, pool: list[Item], shots: int) -> tuple[Item, ...]:
    return tuple(pool[i] for i in rng.choice(len(pool), shots, replace=False))


def draw_prompts(category: Category, shots: int, seed: int = 0) -> tuple[Item, ...]:
    """The K normal prompts to test a category with, from its training normals.

    Whoever uses the same seed gets the same images: the draw depends on their names only, not on their
    order, the machine or a library's version. The K of fewer shots are among those of more.

    Raises:
        InctrlError: the category has fewer normal images than `shots`.
    """
    if not 1 <= shots <= len(category.train):
        raise InctrlError(
            f"category {category.name!r} has {len(category.train)} normal images to draw prompts from: "
            f"shots = {shots} is not possible, choose from 1 to {len(category.train)}"
        )

    def lot(item: Item) -> bytes:
        return blake2b(f"{seed} {category.dataset} {item.name}".encode(), digest_size=16).digest()

    return tuple(sorted(category.train, key=lot)[:shots])
