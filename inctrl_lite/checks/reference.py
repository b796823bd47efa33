"""Exercises of notebook 10: reading the reference."""

from collections.abc import Callable

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, difference, generator, same
from inctrl_lite.residual import stage_residual_map


def slot_source(b: int, block: int, B: int, L: int) -> tuple[int, int]:
    """(image, block) whose features are in slot (b, block) after a reshape of [L, B] to [B, L]."""
    place = b * L + block
    return place % B, place // B


def _all_slots(answer: Callable, B: int, L: int) -> list:
    return [answer(b, block, B, L) for b in range(B) for block in range(L)]


def _destination(b: int, block: int, B: int, L: int) -> tuple[int, int]:
    place = block * B + b
    return place // L, place % L


def _one_further(b: int, block: int, B: int, L: int) -> tuple[int, int]:
    place = (b * L + block + 1) % (B * L)
    return place % B, place // B


check_slot_source = Exercise(
    solution=slot_source,
    cases=lambda seed: ((3, 2), (4, 3), (5, 2), (16, 3))[seed],
    run=_all_slots,
    mistakes={
        "This is the result of a permute, where every slot holds its own features. A reshape keeps the "
        "order in memory.": (lambda b, block, B, L: (b, block)),
        "The two numbers are right, but exchanged: first the image, then the block.": lambda b, block, B, L: (
            slot_source(b, block, B, L)[::-1]
        ),
        "You say where the features of (b, block) go. The exercise asks where the features in slot (b, "
        "block) come from.": (_destination),
        "You are one place too far: slot (0, 0) is place 0.": _one_further,
        "Count from 0, as Python does: slot (0, 0) holds image 0, block 0.": lambda b, block, B, L: tuple(
            i + 1 for i in slot_source(b, block, B, L)
        ),
        "A row of the new table has L slots, so b whole rows are b * L places.": lambda b, block, B, L: (
            (b * B + block) % B,
            (b * B + block) // B,
        ),
        "The image is right, but for the block you divide by the wrong length: a row of the stack has B "
        "entries.": lambda b, block, B, L: (slot_source(b, block, B, L)[0], b),
        "The image is right, but the blocks are mixed up as well.": lambda b, block, B, L: (
            slot_source(b, block, B, L)[0],
            block,
        ),
    },
)


# --- a test of one's own -----------------------------------------------------------------------------


def largest_change(score: Callable, query: Tensor, support: Tensor) -> float:
    """Largest difference, over the images, between a score in the batch and the score alone."""
    together = score(query, support)
    alone = torch.cat([score(query[i : i + 1], support[i : i + 1]) for i in range(len(query))])
    return (together - alone).abs().max().item()


def _right(query: Tensor, support: Tensor) -> Tensor:
    if query.ndim != 4 or support.ndim != 5:
        shapes = f"query {list(query.shape)}, support {list(support.shape)}"
        raise ValueError(f"{shapes}: keep the axis of images, as in query[i : i + 1]")
    maps = [stage_residual_map(query[:, i], support[:, :, i]) for i in range(query.shape[1])]
    return torch.stack(maps).mean(0).amax(1)


def _reshaped(query: Tensor, support: Tensor) -> Tensor:
    return _right(query.transpose(0, 1).reshape(query.shape), support)


def _support_of_the_first(query: Tensor, support: Tensor) -> Tensor:
    return _right(query, support[:1].expand_as(support))


def _relative_to_the_batch(query: Tensor, support: Tensor) -> Tensor:
    scores = _right(query, support)
    return scores - scores.mean()


def _scored(seed: int) -> tuple[Callable, Tensor, Tensor]:
    g, images = generator(seed), 4 + seed
    score = (_right, _reshaped, _support_of_the_first, _relative_to_the_batch)[seed]
    query = torch.randn(images, 3, 5, 4, generator=g)
    return score, query, torch.randn(images, 2, 3, 5, 4, generator=g)


def _watched(answer: Callable, score: Callable, query: Tensor, support: Tensor) -> dict:
    """What a test says, and which batches it scored: only these distinguish tests that never fail."""
    sizes = []

    def spied(query: Tensor, support: Tensor) -> Tensor:
        sizes.append(len(query))
        return score(query, support)

    change = answer(spied, query, support)
    return {
        "largest change": change,
        "scores several images together": max(sizes, default=0) > 1,
        "scores images alone": 1 in sizes,
    }


def _alone(score: Callable, query: Tensor, support: Tensor) -> Tensor:
    return torch.cat([score(q[None], p[None]) for q, p in zip(query, support, strict=True)])


def _changes(score: Callable, query: Tensor, support: Tensor) -> Tensor:
    return score(query, support) - _alone(score, query, support)


def _largest(changes: Tensor) -> float:
    return changes.abs().max().item()


def _reversed(score: Callable, query: Tensor, support: Tensor) -> float:
    return _largest(score(query, support) - score(query.flip(0), support.flip(0)).flip(0))


def _halves(score: Callable, query: Tensor, support: Tensor) -> float:
    half = len(query) // 2
    parts = [score(q, p) for q, p in zip(query.split(half), support.split(half), strict=True)]
    return _largest(score(query, support) - torch.cat(parts))


def _support_of_one(score: Callable, query: Tensor, support: Tensor) -> float:
    return _largest(score(query, support) - torch.cat([score(q[None], support[:1]) for q in query]))


def _shuffled(score: Callable, query: Tensor, support: Tensor) -> float:
    order = torch.randperm(len(query), generator=generator(7))
    return _largest(score(query, support)[order] - score(query[order], support[order]))


NEVER_TOGETHER = (
    "Your test scores single images only. The defect needs other images in the batch, so score the whole "
    "batch as well."
)
NEVER_ALONE = (
    "Score each image in a batch of ONE, query[i : i + 1] with support[i : i + 1]. In a shuffled or doubled "
    "batch it still has other images in the batch, and a score that depends on them can pass."
)


class _Test(Exercise):
    """A test as an exercise: it also says what a test did not look at."""

    def _diagnose(self, cases: list[tuple], results: list[dict], expected: list[dict]) -> str:
        message = super()._diagnose(cases, results, expected)
        if any(hint in message for hint in self.mistakes):
            return message
        for seen, hint in (
            ("scores several images together", NEVER_TOGETHER),
            ("scores images alone", NEVER_ALONE),
        ):
            if not all(result[seen] for result in results):
                return f"{self.name}: {hint}"
        changes = [
            (one["largest change"], other["largest change"])
            for one, other in zip(results, expected, strict=True)
        ]
        wrong = next(pair for pair in changes if not same(*pair, self.tolerance))
        return f"{self.name}: {difference(*wrong)}"


check_largest_change = _Test(
    solution=largest_change,
    cases=_scored,
    run=_watched,
    mistakes={
        NEVER_TOGETHER: lambda score, q, p: _largest(_alone(score, q, p) - _alone(score, q, p)),
        "Your test compares the batch with itself. That finds randomness, but a defect that is the same "
        "every time passes.": lambda score, q, p: _largest(score(q, p) - score(q, p)),
        "Your test compares shapes. Here every shape is right, and the numbers are wrong.": (
            lambda score, q, p: float(score(q, p).shape != _alone(score, q, p).shape)
        ),
        "You reorder the queries but not their support sets. Then every query is compared with another "
        "query's support set, and even a right score changes.": lambda score, q, p: _largest(
            score(q, p) - score(q.flip(0), p).flip(0)
        ),
        "You reorder the batch, but you do not put its scores back in order before you compare.": (
            lambda score, q, p: _largest(score(q, p) - score(q.flip(0), p.flip(0)))
        ),
        "In another order an image still has the same other images in the batch. A score that depends "
        "on who is in the batch, as with BatchNorm in training mode, passes. Compare with the image "
        "alone.": _reversed,
        NEVER_ALONE: _shuffled,
        "Half a batch can be mixed up like a whole one. Compare with the image alone.": _halves,
        "You compare only the means. Scores that were exchanged have the same mean.": lambda score, q, p: abs(
            _changes(score, q, p).mean().item()
        ),
        "You compare only the sums. Scores that were exchanged have the same sum.": lambda score, q, p: abs(
            _changes(score, q, p).sum().item()
        ),
        "You compare only the first image, which may be the only right one. Compare all images.": (
            lambda score, q, p: _largest(_changes(score, q, p)[:1])
        ),
        "You miss decreases. Take the absolute value before the maximum.": lambda score, q, p: (
            _changes(score, q, p).max().item()
        ),
        "This is the mean change, which is nearly 0 if one image of many is wrong. Take the maximum.": (
            lambda score, q, p: _changes(score, q, p).abs().mean().item()
        ),
        "These are the changes of all images. Return the largest, one number.": lambda score, q, p: _changes(
            score, q, p
        ).abs(),
        "You return yes or no. The size of the change is expected, so that rounding can be distinguished "
        "from a defect.": (lambda score, q, p: float(largest_change(score, q, p) > 1e-4)),
        "You divide by the score. The difference itself is expected.": lambda score, q, p: _largest(
            _changes(score, q, p) / _alone(score, q, p)
        ),
        "Image i alone is compared with the support set of the first image. It needs its own: support[i : "
        "i + 1].": (_support_of_one),
        "You compare every score with every other score. Compare image i with image i.": lambda score, q, p: (
            _largest(score(q, p)[:, None] - _alone(score, q, p)[None, :])
        ),
    },
)


# --- the repair --------------------------------------------------------------------------------------


def support_by_image(tokens: Tensor, B: int) -> Tensor:
    """Stacked support tokens [L, K*B, N, C], shot after shot, as [B, L, K*N, C]."""
    shots = tokens.unflatten(1, (-1, B))  # [L, K, B, N, C]
    return shots.permute(2, 0, 1, 3, 4).flatten(2, 3)


def _tokens(seed: int) -> tuple[Tensor, int]:
    K, B = ((2, 3), (3, 2), (2, 5), (4, 3))[seed]
    return torch.randn(3, K * B, 4, 5, generator=generator(seed)), B


def _sizes(tokens: Tensor, B: int) -> tuple[int, int, int, int]:
    L, images, N, C = tokens.shape
    return B, L, images // B * N, C


check_support_by_image = Exercise(
    solution=support_by_image,
    cases=_tokens,
    mistakes={
        "This is the defect itself: a reshape keeps the order in memory, through blocks, shots and "
        "images.": lambda t, B: t.reshape(_sizes(t, B)),
        "Axis 1 holds shot after shot, and each shot has B images: unflatten it to (K, B), not to (B, K).": (
            lambda t, B: t.unflatten(1, (B, -1)).permute(1, 0, 2, 3, 4).flatten(2, 3)
        ),
        "Blocks and images have changed places, but axis 1 still held shots and images together: split it "
        "first.": (lambda t, B: t.transpose(0, 1).reshape(_sizes(t, B))),
        "Every image has its own normal images now, but blocks and shots are mixed up: L must come before "
        "K when K and N are joined.": lambda t, B: (
            t.unflatten(1, (-1, B)).permute(2, 1, 0, 3, 4).reshape(_sizes(t, B))
        ),
        "The patches belong to the right images, but shots alternate patch by patch. Put K before N when "
        "they are joined. (The score would not change.)": lambda t, B: (
            t.unflatten(1, (-1, B)).permute(2, 0, 3, 1, 4).flatten(2, 3)
        ),
        "Everything is in order, but K and N are not joined yet: flatten(2, 3).": lambda t, B: t.unflatten(
            1, (-1, B)
        ).permute(2, 0, 1, 3, 4),
        "This is [B, K, L, N, C]. The layout of the public code is expected: [B, L, K*N, C].": (
            lambda t, B: t.unflatten(1, (-1, B)).permute(2, 1, 0, 3, 4)
        ),
        "There are K times too few patches: only the first shot is kept.": lambda t, B: t[:, :B].transpose(
            0, 1
        ),
    },
)
