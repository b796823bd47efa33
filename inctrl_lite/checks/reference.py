"""Exercises of notebook 10: reading the reference."""

from collections.abc import Callable

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, difference, generator, same
from inctrl_lite.residual import patch_residual_map


def slot_source(b: int, block: int, B: int, L: int) -> tuple[int, int]:
    """(image, block) whose features stand in slot (b, block) once [L, B] was reshaped to [B, L]."""
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
        "this is what a permute gives, every slot its own features: a reshape only counts on": (
            lambda b, block, B, L: (b, block)
        ),
        "the right two numbers, but swapped: first the image, then the block": lambda b, block, B, L: (
            slot_source(b, block, B, L)[::-1]
        ),
        "you say where the features of (b, block) go; asked is where those in slot (b, block) come from": (
            _destination
        ),
        "one place too far: slot (0, 0) is place 0": _one_further,
        "count from 0, as Python does: slot (0, 0) holds image 0, block 0": lambda b, block, B, L: tuple(
            i + 1 for i in slot_source(b, block, B, L)
        ),
        "a row of the new table has L slots, so b whole rows are b * L places": lambda b, block, B, L: (
            (b * B + block) % B,
            (b * B + block) // B,
        ),
        "the image is right, but for the block you divided by the wrong length: a row of the *stack* has B "
        "entries": lambda b, block, B, L: (slot_source(b, block, B, L)[0], b),
        "the image is right, but the blocks get mixed up, too": lambda b, block, B, L: (
            slot_source(b, block, B, L)[0],
            block,
        ),
    },
)


# --- a test of one's own -----------------------------------------------------------------------------


def largest_change(score: Callable, query: Tensor, prompt: Tensor) -> float:
    """Largest difference, over the images, between a score in the batch and the score alone."""
    together = score(query, prompt)
    alone = torch.cat([score(query[i : i + 1], prompt[i : i + 1]) for i in range(len(query))])
    return (together - alone).abs().max().item()


def _right(query: Tensor, prompt: Tensor) -> Tensor:
    if query.ndim != 4 or prompt.ndim != 5:
        shapes = f"query {list(query.shape)}, prompt {list(prompt.shape)}"
        raise ValueError(f"{shapes}: keep the axis of images, as in query[i : i + 1]")
    return patch_residual_map(query, prompt).amax(1)


def _reshaped(query: Tensor, prompt: Tensor) -> Tensor:
    return _right(query.transpose(0, 1).reshape(query.shape), prompt)


def _prompts_of_the_first(query: Tensor, prompt: Tensor) -> Tensor:
    return _right(query, prompt[:1].expand_as(prompt))


def _relative_to_the_batch(query: Tensor, prompt: Tensor) -> Tensor:
    scores = _right(query, prompt)
    return scores - scores.mean()


def _scored(seed: int) -> tuple[Callable, Tensor, Tensor]:
    g, images = generator(seed), 4 + seed
    score = (_right, _reshaped, _prompts_of_the_first, _relative_to_the_batch)[seed]
    query = torch.randn(images, 3, 5, 4, generator=g)
    return score, query, torch.randn(images, 2, 3, 5, 4, generator=g)


def _watched(answer: Callable, score: Callable, query: Tensor, prompt: Tensor) -> dict:
    """What a test says, and what it looked at: tests that never fail can only be told apart by that."""
    sizes = []

    def spied(query: Tensor, prompt: Tensor) -> Tensor:
        sizes.append(len(query))
        return score(query, prompt)

    change = answer(spied, query, prompt)
    return {
        "largest change": change,
        "scores several images together": max(sizes, default=0) > 1,
        "scores images alone": 1 in sizes,
    }


def _alone(score: Callable, query: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([score(q[None], p[None]) for q, p in zip(query, prompt, strict=True)])


def _changes(score: Callable, query: Tensor, prompt: Tensor) -> Tensor:
    return score(query, prompt) - _alone(score, query, prompt)


def _largest(changes: Tensor) -> float:
    return changes.abs().max().item()


def _reversed(score: Callable, query: Tensor, prompt: Tensor) -> float:
    return _largest(score(query, prompt) - score(query.flip(0), prompt.flip(0)).flip(0))


def _halves(score: Callable, query: Tensor, prompt: Tensor) -> float:
    half = len(query) // 2
    parts = [score(q, p) for q, p in zip(query.split(half), prompt.split(half), strict=True)]
    return _largest(score(query, prompt) - torch.cat(parts))


def _prompts_of_one(score: Callable, query: Tensor, prompt: Tensor) -> float:
    return _largest(score(query, prompt) - torch.cat([score(q[None], prompt[:1]) for q in query]))


def _shuffled(score: Callable, query: Tensor, prompt: Tensor) -> float:
    order = torch.randperm(len(query), generator=generator(7))
    return _largest(score(query, prompt)[order] - score(query[order], prompt[order]))


NEVER_TOGETHER = (
    "your test scores single images only, and the defect needs batch mates: score the whole batch, too"
)
NEVER_ALONE = (
    "score each image in a batch of ONE, query[i : i + 1] with prompt[i : i + 1]: in a shuffled or doubled "
    "batch it still has mates, and a score that depends on them can pass"
)


class _Test(Exercise):
    """A test as an exercise: also says what a test did not look at."""

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
        "your test compares the batch with itself: that finds randomness, but a defect that is the same "
        "every time passes": lambda score, q, p: _largest(score(q, p) - score(q, p)),
        "your test compares shapes: here every shape is right, and the numbers are not": (
            lambda score, q, p: float(score(q, p).shape != _alone(score, q, p).shape)
        ),
        "you reorder the queries and leave the prompts where they are: then every query meets another's "
        "prompts, and even a right score changes": lambda score, q, p: _largest(
            score(q, p) - score(q.flip(0), p).flip(0)
        ),
        "you reorder the batch, but do not put its scores back in order before you compare": (
            lambda score, q, p: _largest(score(q, p) - score(q.flip(0), p.flip(0)))
        ),
        "in another order an image still has the same batch mates: a score that depends on *who* is there, "
        "as with BatchNorm in training mode, passes. Compare with the image alone": _reversed,
        NEVER_ALONE: _shuffled,
        "half a batch may be mixed up like a whole one: compare with the image alone": _halves,
        "only the means are compared: scores that were swapped have the same mean": lambda score, q, p: abs(
            _changes(score, q, p).mean().item()
        ),
        "only the sums are compared: scores that were swapped have the same sum": lambda score, q, p: abs(
            _changes(score, q, p).sum().item()
        ),
        "only the first image is compared, and just that one may be right: take all": (
            lambda score, q, p: _largest(_changes(score, q, p)[:1])
        ),
        "changes downwards are missed: take the absolute value before the largest": lambda score, q, p: (
            _changes(score, q, p).max().item()
        ),
        "this is the mean change: if one image of many is wrong, it is nearly 0. Take the largest": (
            lambda score, q, p: _changes(score, q, p).abs().mean().item()
        ),
        "these are the changes of all images: return the largest, one number": lambda score, q, p: _changes(
            score, q, p
        ).abs(),
        "yes or no is what you return: asked is how much, so that rounding can be told from a defect": (
            lambda score, q, p: float(largest_change(score, q, p) > 1e-4)
        ),
        "relative to the score is what you return: asked is the difference itself": lambda score, q, p: (
            _largest(_changes(score, q, p) / _alone(score, q, p))
        ),
        "image i alone meets the prompts of the first image: it needs its own, prompt[i : i + 1]": (
            _prompts_of_one
        ),
        "every image's score is compared with every other's: compare i with i": lambda score, q, p: _largest(
            score(q, p)[:, None] - _alone(score, q, p)[None, :]
        ),
    },
)


# --- the repair --------------------------------------------------------------------------------------


def prompts_by_image(tokens: Tensor, B: int) -> Tensor:
    """Stacked prompt tokens [L, K*B, N, C], shot after shot, as [B, L, K*N, C]."""
    shots = tokens.unflatten(1, (-1, B))  # [L, K, B, N, C]
    return shots.permute(2, 0, 1, 3, 4).flatten(2, 3)


def _tokens(seed: int) -> tuple[Tensor, int]:
    K, B = ((2, 3), (3, 2), (2, 5), (4, 3))[seed]
    return torch.randn(3, K * B, 4, 5, generator=generator(seed)), B


def _sizes(tokens: Tensor, B: int) -> tuple[int, int, int, int]:
    L, images, N, C = tokens.shape
    return B, L, images // B * N, C


check_prompts_by_image = Exercise(
    solution=prompts_by_image,
    cases=_tokens,
    mistakes={
        "this is the defect itself: a reshape counts on through blocks, shots and images": lambda t, B: (
            t.reshape(_sizes(t, B))
        ),
        "axis 1 holds shot after shot, each with its B images: unflatten it to (K, B), not to (B, K)": (
            lambda t, B: t.unflatten(1, (B, -1)).permute(1, 0, 2, 3, 4).flatten(2, 3)
        ),
        "blocks and images have changed places, but axis 1 still held shots *and* images: split it first": (
            lambda t, B: t.transpose(0, 1).reshape(_sizes(t, B))
        ),
        "every image has its own prompts now, but blocks and shots are mixed up: L must come before K when "
        "K and N are joined": lambda t, B: (
            t.unflatten(1, (-1, B)).permute(2, 1, 0, 3, 4).reshape(_sizes(t, B))
        ),
        "the right patches of the right images, but shots alternate patch by patch: K before N when they are "
        "joined (the score would not mind)": lambda t, B: (
            t.unflatten(1, (-1, B)).permute(2, 0, 3, 1, 4).flatten(2, 3)
        ),
        "all in order, but K and N are not joined yet: flatten(2, 3)": lambda t, B: t.unflatten(
            1, (-1, B)
        ).permute(2, 0, 1, 3, 4),
        "that is the library's layout [B, K, L, N, C]; asked is the public code's, [B, L, K*N, C]": (
            lambda t, B: t.unflatten(1, (-1, B)).permute(2, 1, 0, 3, 4)
        ),
        "K times too few patches: only the first shot is kept": lambda t, B: t[:, :B].transpose(0, 1),
    },
)
