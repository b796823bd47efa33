"""Exercises of notebook 10: reading the reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

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
        "You add up the changes of all images. Take the largest.": lambda score, q, p: (
            _changes(score, q, p).abs().sum().item()
        ),
        "You return the square of the change. The difference itself is expected.": lambda score, q, p: (
            largest_change(score, q, p) ** 2
        ),
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


# --- a test for several properties -------------------------------------------------------------------


def broken_properties(score: Callable, query: Tensor, support: Tensor) -> set[str]:
    """Names of the properties that a score of patches does not have."""
    scores = score(query, support)
    others = {
        "again": score(query, support),
        "alone": torch.cat([score(query[i : i + 1], support[i : i + 1]) for i in range(len(query))]),
        "order": score(query.flip(0), support.flip(0)).flip(0),
        "shots": score(query, support.flip(1)),
        "copies": score(query, torch.cat([support, support], dim=1)),
        "scale": score(3 * query, 3 * support),
    }
    # NaN is never <= 1e-4
    broken = {name for name, other in others.items() if not (other - scores).abs().max() <= 1e-4}
    return {"again"} if "again" in broken else broken


def _maps_of(
    query: Tensor, support: Tensor, lengths: tuple[bool, bool] = (False, False), rank: int = 1
) -> Tensor:
    """Residual maps [B, L, N]; with the lengths of some tokens, or another rank than the nearest token."""
    query, support = (
        x if keep else F.normalize(x, dim=-1) for x, keep in zip((query, support), lengths, strict=True)
    )
    cosines = torch.einsum("blnc,bklmc->blnkm", query, support).flatten(3)
    return (1 - cosines.topk(rank, dim=3).values[..., -1]) / 2


def _patch_max(query: Tensor, support: Tensor, **other: Any) -> Tensor:
    return _maps_of(query, support, **other).mean(1).amax(1)


def _noisy(g: torch.Generator) -> Callable:
    return lambda q, s: _patch_max(q, s) + 0.02 * torch.rand(len(q), generator=g)


def _counting(g: torch.Generator) -> Callable:
    """A score that drifts from call to call."""
    calls: list[int] = []

    def score(query: Tensor, support: Tensor) -> Tensor:
        calls.append(len(query))
        return _patch_max(query, support) + 0.01 * len(calls)

    return score


def _public(query: Tensor, support: Tensor) -> Tensor:
    B, K, L, N, C = support.shape
    mixed = support.permute(2, 1, 0, 3, 4).reshape(B, L, K, N, C).transpose(1, 2)
    return _patch_max(query.transpose(0, 1).reshape(query.shape), mixed)


def _standardised(query: Tensor, support: Tensor) -> Tensor:
    scores = _patch_max(query, support)
    return (scores - scores.mean()) / scores.std(correction=0)  # 0 / 0 for one image


def _last_is_wrong(query: Tensor, support: Tensor) -> Tensor:
    """The last image of a larger batch is compared with the normal images of the first."""
    return _patch_max(query, torch.cat([support[:-1], support[:1]]))


def _first_of_the_last(query: Tensor, support: Tensor) -> Tensor:
    """The last image of the batch is compared with the first of its normal images alone."""
    return _patch_max(query, torch.cat([support[:-1], support[-1:, :1].expand_as(support[-1:])]))


def _average_of_shots(query: Tensor, support: Tensor) -> Tensor:
    return torch.stack([_patch_max(query, support[:, k, None]) for k in range(support.shape[1])]).mean(0)


def _nudged(query: Tensor, support: Tensor) -> Tensor:
    """Wrong by 0.0002 for one image of a batch: hardly visible in the mean change."""
    last = torch.arange(len(query)) == len(query) - 1
    return _patch_max(query, support) + 2e-4 * last * (len(query) > 1)


def _relative(query: Tensor, support: Tensor) -> Tensor:
    """The largest distance to the nearest token, in units of the length of a normal token: right."""
    tokens = support.transpose(1, 2).flatten(2, 3)  # [B, L, K*N, C]
    nearest = torch.cdist(query, tokens).amin(-1)  # [B, L, N]
    return nearest.mean(1).amax(1) / tokens.norm(dim=-1).mean((1, 2))


# what a score does -> the score, made of a generator
SCORES: dict[str, Callable[[torch.Generator], Callable]] = {
    "is right": lambda g: _patch_max,
    "is right but for rounding": lambda g: lambda q, s: _patch_max(q, s) + 1e-5 * len(q),
    "mixes blocks and images of the queries": lambda g: (
        lambda q, s: _patch_max(q.transpose(0, 1).reshape(q.shape), s)
    ),
    "mixes blocks, shots and images": lambda g: _public,
    "grows with the size of the batch": lambda g: lambda q, s: _patch_max(q, s) + 0.05 * len(q),
    "falls with the size of the batch": lambda g: lambda q, s: _patch_max(q, s) - 0.05 * len(q),
    "is standardised over the batch": lambda g: _standardised,
    "is wrong for the last image of a batch": lambda g: _last_is_wrong,
    "is higher in a batch of several images": lambda g: lambda q, s: _patch_max(q, s) + 0.05 * (len(q) > 1),
    "uses only the first normal image of the last query": lambda g: _first_of_the_last,
    "averages over the normal images": lambda g: _average_of_shots,
    "is sorted within the batch": lambda g: lambda q, s: _patch_max(q, s).sort().values,
    "uses only the first normal image": lambda g: lambda q, s: _patch_max(q, s[:, :1]),
    "takes the second nearest token": lambda g: lambda q, s: _patch_max(q, s, rank=2),
    "uses the lengths of the queries' tokens": lambda g: lambda q, s: _patch_max(q, s, lengths=(True, False)),
    "uses the lengths of the normal images' tokens": lambda g: (
        lambda q, s: _patch_max(q, s, lengths=(False, True))
    ),
    "is noisy": _noisy,
    "drifts from call to call": _counting,
    "uses only the first normal image, and falls with the size of the batch": lambda g: (
        lambda q, s: _patch_max(q, s[:, :1]) - 0.05 * len(q)
    ),
    "uses only the last normal image": lambda g: lambda q, s: _patch_max(q, s[:, -1:]),
    "changes a little for the last image of a batch": lambda g: _nudged,
    "compares distances with the lengths of the normal images' tokens": lambda g: _relative,
}


def _suspect(seed: int) -> tuple[str, Tensor, Tensor]:
    g, images, shots = generator(seed), 4 + seed % 3, 2 + seed % 2
    query = torch.randn(images, 3, 5, 4, generator=g)
    return list(SCORES)[seed], query, torch.randn(images, shots, 3, 5, 4, generator=g)


_KNOWN: dict[tuple[Callable, str], Any] = {}  # what the key and the mistakes say of each score: computed once


def _names_of(answer: Callable, name: str, query: Tensor, support: Tensor) -> Any:
    ours = getattr(answer, "__module__", "") == __name__
    if ours and (answer, name) in _KNOWN:
        return _KNOWN[answer, name]
    score = SCORES[name](generator(11))

    def checked(query: Tensor, support: Tensor) -> Tensor:
        if query.ndim != 4 or support.ndim != 5 or len(query) != len(support):
            shapes = f"query {list(query.shape)}, support {list(support.shape)}"
            raise ValueError(f"{shapes}: as many support sets as queries, and keep the axis of images")
        return score(query, support)

    found = answer(checked, query, support)
    listed = isinstance(found, set | frozenset | list | tuple) and all(isinstance(n, str) for n in found)
    said = sorted(set(found)) if listed else found
    if ours:
        _KNOWN[answer, name] = said
    return said


def _misreported(case: tuple, result: Any, right: list[str]) -> str | None:
    if not isinstance(result, list) or not all(isinstance(name, str) for name in result):
        return f"returns {result!r:.80}: return a set of names"
    if strange := [name for name in result if name not in PROPERTIES]:
        return f"returns {strange[0]!r}, which is no name of the table"
    missing, extra = sorted(set(right) - set(result)), sorted(set(result) - set(right))
    said = [f"does not report {', '.join(missing)}"] if missing else []
    return " and ".join(
        said + ([f"reports {', '.join(extra)}, which this score does not break"] if extra else [])
    )


PROPERTIES = ("again", "alone", "order", "shots", "copies", "scale")


def _compare(
    changed: Callable[[Tensor, Tensor], object] = lambda a, b: not (a - b).abs().max() <= 1e-4,
    only_again: bool = True,
    **instead: Callable[[Callable, Tensor, Tensor], Tensor],
) -> Callable:
    """A wrong answer: another comparison, or other scores in place of those of a property."""
    usual = {
        "again": lambda f, q, s: f(q, s),
        "alone": lambda f, q, s: torch.cat(
            [f(one, own) for one, own in zip(q.split(1), s.split(1), strict=True)]
        ),
        "order": lambda f, q, s: f(q.flip(0), s.flip(0)).flip(0),
        "shots": lambda f, q, s: f(q, s.flip(1)),
        "copies": lambda f, q, s: f(q, torch.cat([s, s], 1)),
        "scale": lambda f, q, s: f(3 * q, 3 * s),
    }

    def wrong(score: Callable, query: Tensor, support: Tensor) -> set[str]:
        scores = score(query, support)
        others = {name: one(score, query, support) for name, one in (usual | instead).items()}
        broken = {name for name, other in others.items() if changed(other, scores)}
        return {"again"} if only_again and "again" in broken else broken

    return wrong


def _exchange(x: Tensor, axis: int) -> Tensor:
    """The first two along an axis exchanged."""
    return x.index_select(axis, torch.tensor([1, 0, *range(2, x.shape[axis])]))


def _less(name: str) -> Callable:
    """A wrong answer that never reports one of the names."""
    return lambda score, query, support: broken_properties(score, query, support) - {name}


def _one_name(score: Callable, query: Tensor, support: Tensor) -> set[str]:
    found = broken_properties(score, query, support)
    return set([name for name in PROPERTIES if name in found][:1])


check_broken_properties = Exercise(
    solution=broken_properties,
    cases=_suspect,
    number=len(SCORES),
    run=_names_of,
    inputs=lambda name, query, support: f"a score that {name}",
    explain=_misreported,
    mistakes={
        "If `again` is broken, the score changes by itself, and the other comparisons mean nothing. Return "
        '{"again"} alone.': _compare(only_again=False),
        "You do not score the same batch a second time. A score that changes by itself then seems to break "
        "everything else.": lambda f, q, s: _compare(only_again=False)(f, q, s) - {"again"},
        "You return the names of the properties that HOLD. Return those that are broken.": lambda f, q, s: (
            set(PROPERTIES) - broken_properties(f, q, s)
        ),
        "You return the first name only. A score can break several properties.": _one_name,
        "Your test for `alone` has other images in the batch. Score each image in a batch of ONE.": _compare(
            alone=lambda f, q, s: f(q.flip(0), s.flip(0)).flip(0)
        ),
        "`alone` is never reported. Score each image in a batch of one, and compare with its score in the "
        "batch.": _less("alone"),
        "For `alone`, each image needs its own normal images, not those of the first: support[i : i + "
        "1].": _compare(
            alone=lambda f, q, s: torch.cat([f(one, s[:1]) for one in q.split(1)]),
        ),
        "Even a right score fails your test for `order`. Reorder the queries together with their normal "
        "images, and put the scores back into the first order before you compare.": _compare(
            order=lambda f, q, s: f(q.flip(0), s.flip(0))
        ),
        "Even a right score fails your test for `order`. Does each query keep its own normal images? And do "
        "the scores come back? With a new order `o`, index them with `o.argsort()`, not with `o`.": _compare(
            order=lambda f, q, s: f(q.roll(1, 0), s.roll(1, 0)).roll(1, 0)
        ),
        "Your new order leaves the last image in its place. Move the first and the last one.": _compare(
            order=lambda f, q, s: _exchange(f(_exchange(q, 0), _exchange(s, 0)), 0)
        ),
        "Your new order of normal images leaves the last one in its place. Move the first and the last "
        "one.": _compare(shots=lambda f, q, s: f(q, _exchange(s, 1))),
        "`order` is never reported. Is your new order really another one?": _less("order"),
        "Even a right score fails your test for `shots`. Reorder the normal images along axis 1 and nothing "
        "else, so that each query keeps its own.": _compare(shots=lambda f, q, s: f(q, s.flip(0))),
        "`shots` is never reported. Is your new order really another one?": _less("shots"),
        "For `copies` you repeat the images of the batch. Repeat the normal images, along axis 1.": _compare(
            copies=lambda f, q, s: f(torch.cat([q, q]), torch.cat([s, s]))[: len(q)]
        ),
        "For `copies` you repeat the patches or the blocks of the normal images. Repeat the normal images, "
        "along axis 1.": _compare(copies=lambda f, q, s: f(q, torch.cat([s, s], 3))),
        "`copies` is never reported. Is every normal image in your support set twice?": _less("copies"),
        "For `scale` you multiply only the queries. A score can use the lengths of the normal images' "
        "tokens, so multiply both.": _compare(scale=lambda f, q, s: f(3 * q, s)),
        "For `scale` you multiply only the normal images. A score can use the lengths of the queries' "
        "tokens, so multiply both.": _compare(scale=lambda f, q, s: f(q, 3 * s)),
        "`scale` is never reported.": _less("scale"),
        "A score that becomes NaN has changed. Every comparison with NaN is false, so `change > 1e-4` misses "
        "it. Ask whether the change is at most 1e-4.": _compare(lambda a, b: (a - b).abs().max() > 1e-4),
        "You take rounding for a change. A change counts if it is larger than 1e-4.": _compare(
            lambda a, b: not torch.equal(a, b)
        ),
        "You use a tolerance that is smaller than 1e-4 (that of torch.allclose is, unless you give another "
        "one). A change counts if it is larger than 1e-4.": _compare(lambda a, b: not torch.allclose(a, b)),
        "Your tolerance is larger than 1e-4, so that real changes pass.": _compare(
            lambda a, b: not (a - b).abs().max() <= 0.1
        ),
        "You miss scores that fall. Take the absolute value of the change.": _compare(
            lambda a, b: not (a - b).max() <= 1e-4
        ),
        "You miss scores that rise. Take the absolute value of the change.": _compare(
            lambda a, b: not (b - a).max() <= 1e-4
        ),
        "You compare means or sums. Scores that were exchanged have the same mean.": _compare(
            lambda a, b: not (a - b).mean().abs() <= 1e-4
        ),
        "You look only at the first image of the batch. Score and compare all of them.": _compare(
            lambda a, b: not (a - b)[0].abs() <= 1e-4
        ),
        "You compare the mean change, which is nearly 0 if one image of many is wrong. Take the largest.": (
            _compare(lambda a, b: not (a - b).abs().mean() <= 1e-4)
        ),
        "You report a property only if ALL scores change. One changed score is enough.": _compare(
            lambda a, b: bool((~((a - b).abs() <= 1e-4)).all())
        ),
    },
)
