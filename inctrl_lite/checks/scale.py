"""Exercises of notebook 11: full scale."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, difference, generator, same


def store_gigabytes(images: int, D: int, L: int, N: int, C: int, size: int) -> float:
    """Size of a feature store in GB (10**9 bytes), with numbers of `size` bytes."""
    return images * (D + L * N * C) * size / 1e9


check_store_gigabytes = Exercise(
    solution=store_gigabytes,
    cases=lambda seed: (90_000 + 7000 * seed, 640 - 128 * seed, 2 + seed % 3, 225 + 31 * seed, 896, 2 + seed),
    mistakes={
        "The global embedding is stored as well: D more numbers an image.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, 0, L, N, C, size)
        ),
        "The patch tokens of all L stages are stored.": lambda images, D, L, N, C, size: store_gigabytes(
            images, D, 1, N, C, size
        ),
        "A number takes `size` bytes.": lambda images, D, L, N, C, size: store_gigabytes(
            images, D, L, N, C, 1
        ),
        "A GB is 10**9 bytes here; you count in units of 2**30.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, D, L, N, C, size) * 1e9 / 2**30
        ),
        "There is one global embedding an image, not one a stage.": lambda images, D, L, N, C, size: (
            store_gigabytes(images, L * D, L, N, C, size)
        ),
        "This is in MB: a GB has 10**9 bytes.": lambda images, D, L, N, C, size: (
            1000 * store_gigabytes(images, D, L, N, C, size)
        ),
    },
    tolerance=1e-4,
)


def tower_seconds(images: int, steps: int, batch: int, K: int, rate: float, stored: bool) -> float:
    """Seconds in the image tower at `rate` images a second, with or without a feature store."""
    passes = images if stored else steps * batch * (1 + K)
    return passes / rate


check_tower_seconds = Exercise(
    solution=tower_seconds,
    cases=lambda seed: (
        (90_000, 100, 16, 2, 50.0, True)  # more images than a training without a store would send through
        if seed == 4
        else (5000 + 7 * seed, 1000 - 30 * seed, 16, 2 + seed, 50.0 + 13 * seed, seed % 2 == 1)
    ),
    number=5,
    mistakes={
        "Without a store each query brings K normal images: 1 + K images.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, 0, r, stored)
        ),
        "The query itself passes through the tower as well: 1 + K images.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, k - 1, r, stored)
        ),
        "Each query of the batch has its own K normal images: multiply by 1 + K, do not add K.": (
            lambda i, s, b, k, r, stored: (i if stored else s * (b + k)) / r
        ),
        "Divide by the rate: more images a second take less time.": lambda i, s, b, k, r, stored: (
            tower_seconds(i, s, b, k, 1 / r, stored)
        ),
        "With a store each image passes through the tower once, however many steps "
        "follow.": lambda i, s, b, k, r, stored: tower_seconds(i, s, b, k, r, False),
        "Without a store nothing is kept: every step encodes its whole batch again.": (
            lambda i, s, b, k, r, stored: tower_seconds(i, s, b, k, r, True)
        ),
        "With a store EVERY image is encoded once, also if the steps would need fewer.": (
            lambda i, s, b, k, r, stored: min(tower_seconds(i, s, b, k, r, one) for one in ({False, stored}))
        ),
        "With a store the steps need no image tower any more: nothing is added to the encoding.": (
            lambda i, s, b, k, r, stored: (i * stored + s * b * (1 + k)) / r
        ),
        "You return the number of images. Divide it by the rate.": lambda i, s, b, k, r, stored: (
            r * tower_seconds(i, s, b, k, r, stored)
        ),
        "You have exchanged the two cases.": lambda i, s, b, k, r, stored: tower_seconds(
            i, s, b, k, r, not stored
        ),
    },
)


# --- a large batch in parts --------------------------------------------------------------------------


def accumulated_gradient(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    """Gradient [P] of the mean loss over all queries, computed one part at a time."""
    total, queries = torch.zeros(()), 0
    for part in parts:
        if len(part) > 0:
            gradients = torch.autograd.grad(loss(part), parameters)
            total = total + len(part) * torch.cat([g.flatten() for g in gradients])  # of the SUM of losses
            queries += len(part)
    return total / queries


def _sizes(seed: int) -> tuple[tuple[int, ...], int]:
    return ((5, 1, 3), (2, 6, 0, 3), (0, 4, 1, 2), (7,), (3, 3, 1, 0), (1, 1, 9))[seed], seed


class _Watch:
    """A small network, its loss, and its parts: notes what is in memory at the same time."""

    def __init__(self, sizes: tuple[int, ...], seed: int):
        g = generator(seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        self.parameters = [one.requires_grad_() for one in (drawn(3, 2), drawn(2), drawn())]
        for one in self.parameters:
            one.grad = drawn(*one.shape)  # of an earlier step
        self.rows = [list(drawn(size, 4) + torch.arange(4.0) * size / 8) for size in sizes]
        self.calls = self.done = self.taken = 0
        self.graphs = self.held = 0  # the most at a time

    def loss(self, part: Sequence[Tensor]) -> Tensor:
        rows = torch.stack(list(part)) if len(part) else torch.zeros(0, 4, dtype=torch.float64)
        first, second, shift = self.parameters
        value = ((rows[:, :3] @ first).tanh() @ second + shift - rows[:, 3]).square().mean()
        self.calls += 1
        self.graphs = max(self.graphs, self.calls - self.done)
        if value.requires_grad:
            value.register_hook(self._finished)
        return value

    def _finished(self, gradient: Tensor) -> None:
        self.done += 1

    def parts(self) -> Iterator[list[Tensor]]:
        for rows in self.rows:
            self.held = max(self.held, self.taken - self.done + bool(rows))
            self.taken += bool(rows)
            yield rows


GRADIENT, CALLS, GRAPHS, HELD = "gradient", "calls of loss", "graphs at a time", "parts at a time"
KEPT = "graph in the result"


def _watched(answer: Callable, sizes: tuple[int, ...], seed: int) -> dict:
    watch = _Watch(sizes, seed)
    found = answer(watch.loss, watch.parameters, watch.parts())
    if isinstance(found, list | tuple) and any(isinstance(one, Tensor) and one.ndim for one in found):
        found = f"{len(found)} tensors"
    kept = isinstance(found, Tensor) and found.requires_grad
    return {GRADIENT: found, CALLS: watch.calls, GRAPHS: watch.graphs, HELD: watch.held, KEPT: kept}


def _too_much(case: tuple, result: dict, right: dict) -> str:
    """What is wrong with an answer that no known mistake gives."""
    if isinstance(result[GRADIENT], str):
        return f"returns {result[GRADIENT]}: flatten the gradients and join them to one vector [P]"
    if not same(result[GRADIENT], right[GRADIENT], 1e-5):
        return difference(result[GRADIENT], right[GRADIENT])
    if result[CALLS] != right[CALLS]:
        return (
            f"the gradient is right, but loss was called {result[CALLS]} times for {right[CALLS]} parts with "
            "queries. Call it once for each of them, and not for an empty one"
        )
    if result[GRAPHS] > right[GRAPHS]:
        return (
            f"the gradient is right, but the losses of {result[GRAPHS]} parts wait for their gradient at the "
            "same time. This needs as much memory as the large batch. Compute the gradient of a part before "
            "the loss of the next"
        )
    if result[KEPT]:
        return (
            "the gradient is right, but it can be differentiated again, so the graphs of all parts stay in "
            "memory. Leave out create_graph=True"
        )
    return (
        f"the gradient is right, but you hold {result[HELD]} parts at a time. Take a part from the "
        "iterator when you are done with the one before"
    )


class _InParts(Exercise):
    """A wrong gradient is recognised whatever the answer keeps in memory."""

    def _diagnose(self, cases: list[tuple], results: list[dict], expected: list[dict]) -> str:
        message = super()._diagnose(cases, results, expected)
        if any(hint in message for hint in self.mistakes):
            return message
        gradients = [result[GRADIENT] for result in results]
        if not same(gradients, [right[GRADIENT] for right in expected], self.tolerance):
            for hint, wrong in self.mistakes.items():
                try:
                    produced = [self.run(wrong, *case)[GRADIENT] for case in cases]
                except Exception:  # this mistake fails on some sizes
                    continue
                if same(gradients, produced, self.tolerance):
                    return f"{self.name}: {hint}"
        return message


def _vector(gradients: Iterable[Any]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def _of_each(loss: Callable, parameters: list[Tensor], parts: Iterable) -> list[tuple[int, Tensor]]:
    """Size and gradient of each part that is not empty."""
    return [(len(part), _vector(torch.autograd.grad(loss(part), parameters))) for part in parts if part]


def _weighted(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """A wrong answer: another combination of the sizes [R] and the gradients [R, P] of the parts."""

    def wrong(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
        sizes, gradients = zip(*_of_each(loss, parameters, parts), strict=True)
        return combine(torch.tensor(sizes, dtype=torch.float64), torch.stack(gradients))

    return wrong


def _divided_each_time(sizes: Tensor, gradients: Tensor) -> Tensor:
    total, queries = torch.zeros_like(gradients[0]), 0
    for size, gradient in zip(sizes, gradients, strict=True):
        queries += size
        total = (total + size * gradient) / queries
    return total


def _with_old(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    old = _vector([one.grad for one in parameters])
    found = _of_each(loss, parameters, parts)
    return (old + sum(size * gradient for size, gradient in found)) / sum(size for size, _ in found)


def _added_to_old(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    return _vector([one.grad for one in parameters]) + accumulated_gradient(loss, parameters, parts)


def _empty_counts(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    total, queries = torch.zeros(()), 0
    for part in parts:
        total = total + len(part) * _vector(torch.autograd.grad(loss(part), parameters))
        queries += len(part)
    return total / queries


def _means_with_empty(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    gradients = [_vector(torch.autograd.grad(loss(part), parameters)) for part in parts]
    return torch.stack(gradients).mean(0)


def _until_an_empty_one(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    total, queries = torch.zeros(sum(one.numel() for one in parameters)).double(), 0
    for part in parts:
        if not part:
            break
        total = total + len(part) * _vector(torch.autograd.grad(loss(part), parameters))
        queries += len(part)
    return total / max(queries, 1)


def _count_with_empty(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    gradients, number = [], 0
    for part in parts:
        number += 1
        if part:
            gradients.append(_vector(torch.autograd.grad(loss(part), parameters)))
    return torch.stack(gradients).sum(0) / number


def _went_through_twice(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    queries = sum(len(part) for part in parts)
    found = _of_each(loss, parameters, parts)  # nothing is left
    return sum((size * g for size, g in found), 0 * _vector(parameters).detach()) / queries


def _joined(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    return _vector(torch.autograd.grad(loss([query for part in parts for query in part]), parameters))


def _one_backward(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    total, queries = torch.zeros(()), 0
    for part in parts:
        if part:
            total, queries = total + len(part) * loss(part), queries + len(part)
    return _vector(torch.autograd.grad(total / queries, parameters))


def _one_backward_of_means(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    values = [loss(part) for part in parts if part]
    return _vector(torch.autograd.grad(torch.stack(values).mean(), parameters))


def _one_by_one(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    return accumulated_gradient(loss, parameters, ([query] for part in parts for query in part))


def _as_pieces(loss: Callable, parameters: list[Tensor], parts: Iterator) -> list[Tensor]:
    whole = accumulated_gradient(loss, parameters, parts)
    pieces = whole.split([one.numel() for one in parameters])
    return [piece.view_as(one) for piece, one in zip(pieces, parameters, strict=True)]


def _the_loss(loss: Callable, parameters: list[Tensor], parts: Iterator) -> Tensor:
    values = [(len(part), loss(part).detach()) for part in parts if part]
    return sum(size * value for size, value in values) / sum(size for size, _ in values)


check_accumulated_gradient = _InParts(
    solution=accumulated_gradient,
    cases=_sizes,
    number=6,
    run=_watched,
    inputs=lambda sizes, seed: f"parts of {', '.join(map(str, sizes))} queries",
    explain=_too_much,
    mistakes={
        "This is the mean over the parts. A part of one query then counts as much as a part of nine. Each "
        "QUERY counts the same.": _weighted(lambda n, g: g.mean(0)),
        "You add the gradients of the mean losses. Then a gradient is larger the more parts there "
        "are.": _weighted(lambda n, g: g.sum(0)),
        "This is the gradient of the sum of all losses. Divide by the number of all queries.": _weighted(
            lambda n, g: (n[:, None] * g).sum(0)
        ),
        "You weight by the sizes, but you divide by the number of parts. Divide by the number of all "
        "queries.": _weighted(lambda n, g: (n[:, None] * g).mean(0)),
        "You divide the gradients of the MEAN losses by the number of all queries. They must be multiplied "
        "by the size of their part first.": _weighted(lambda n, g: g.sum(0) / n.sum()),
        "You divide by the size of each part. `loss` is a mean already, so large parts then count less. "
        "Multiply.": _weighted(lambda n, g: (g / n[:, None]).sum(0)),
        "This is the gradient of the last part alone. The gradients of all parts must be added.": _weighted(
            lambda n, g: g[-1]
        ),
        "Only the last part is left in your result. If you set .grad to None (or to 0), do it once, before "
        "the first part.": _weighted(lambda n, g: n[-1] * g[-1] / n.sum()),
        "This is the gradient of the first part alone. The gradients of all parts must be added.": _weighted(
            lambda n, g: g[0]
        ),
        "The last part is missing. A part that is smaller than the others counts as well.": _weighted(
            lambda n, g: (n[:-1, None] * g[:-1]).sum(0) / n[:-1].sum().clamp_min(1)
        ),
        "You weight every part by the size of the first one.": _weighted(
            lambda n, g: g.sum(0) * n[0] / n.sum()
        ),
        "You divide after every part, so the first parts are divided several times. Divide once, after the "
        "last part.": _weighted(_divided_each_time),
        "The gradient of an earlier step is still in .grad, and `backward` adds to it. Set .grad to None (or "
        "to 0) before the first part.": _with_old,
        "The gradient of an earlier step is in your result. Set .grad to None (or to 0) before the first "
        "part.": _added_to_old,
        "The mean loss of an empty part is NaN, and 0 times NaN is NaN. Leave empty parts out.": (
            _empty_counts
        ),
        "This is the mean over the parts, and the loss of an empty part is NaN. Leave empty parts out, and "
        "let each QUERY count the same.": _means_with_empty,
        "You stop at an empty part. Go on with the next one.": _until_an_empty_one,
        "This is a mean over the parts, and empty parts are counted. Each QUERY counts the same.": (
            _count_with_empty
        ),
        "One can go through `parts` only once. After you have counted the queries nothing is left. Count "
        "while you compute the gradients.": _went_through_twice,
        "`parts` is an iterator and has no length. Count while you go through it.": lambda f, p, parts: (
            accumulated_gradient(f, p, parts) / len(parts)
        ),
        "`parts` is an iterator, and has no entries [0], [1], ... Go through it with a loop.": (
            lambda f, p, parts: accumulated_gradient(f, p, parts) * len(parts[0])
        ),
        "The gradient is right, but you put all queries into one large batch, which does not fit into "
        "memory. Call `loss` once for each part.": _joined,
        "The gradient is right, but you add the losses and compute one gradient at the end. The graphs of "
        "all parts are then in memory together. Compute the gradient of a part before you take the "
        "next.": _one_backward,
        "You take the mean of the losses and compute one gradient at the end. Each QUERY counts the same, "
        "and the graphs of all parts must not be in memory together.": _one_backward_of_means,
        "The gradient is right, but you have made a list of all parts first. Then all of them are in memory. "
        "Take the next part when you are done with the one before.": lambda f, p, parts: accumulated_gradient(
            f, p, iter(list(parts))
        ),
        "The gradient is right, but you call `loss` for each query. That is slow, and not what a part is "
        "for. Call it once for each part.": _one_by_one,
        "You return a list with a gradient for each parameter. Flatten them and join them to one vector "
        "[P].": _as_pieces,
        "You return the mean loss. Its gradient is expected.": _the_loss,
    },
)
