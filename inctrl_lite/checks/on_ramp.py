"""Exercises of notebook P0: the on-ramp, from tensors to CLIP's loss."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator, remark_on_gradient

# --- cosines -----------------------------------------------------------------------------------------


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines [n, m] of every row of a [n, C] with every row of b [m, C]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def _rows(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return torch.randn(3 + seed, 5, generator=g) + 1, 4 * torch.randn(9 - seed, 5, generator=g)


def _divided(left: Callable[[Tensor], Tensor | float], right: Callable[[Tensor], Tensor | float]) -> Callable:
    """A wrong answer: other things to divide the rows by."""
    return lambda a, b: (a / left(a)) @ (b / right(b)).T


def _lengths(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1, keepdim=True)


check_cosines = Exercise(
    solution=cosines,
    cases=_rows,
    forbidden=("cosine_similarity", "CosineSimilarity"),
    mistakes={
        "These are dot products. Divide each row by its length first.": _divided(
            lambda a: 1.0, lambda b: 1.0
        ),
        "Only the rows of `a` have the length 1. Divide the rows of `b` by their lengths too.": _divided(
            _lengths, lambda b: 1.0
        ),
        "Only the rows of `b` have the length 1. Divide the rows of `a` by their lengths too.": _divided(
            lambda a: 1.0, _lengths
        ),
        "You divide by the length of the whole matrix. Each row has a length of its own: "
        "`norm(dim=-1, keepdim=True)`.": _divided(Tensor.norm, Tensor.norm),
        "You normalise the columns. A vector is a row here: sum over the last axis (dim=-1).": _divided(
            lambda a: a.norm(dim=0), lambda b: b.norm(dim=0)
        ),
        "You divide by the squared length. The length is the square root of the sum of squares.": _divided(
            lambda a: _lengths(a).square(), lambda b: _lengths(b).square()
        ),
        "You divide by the sum of the absolute values. The length is the square root of the sum of "
        "squares.": _divided(
            lambda a: a.abs().sum(-1, keepdim=True), lambda b: b.abs().sum(-1, keepdim=True)
        ),
        "You divide by the sum of the row. The length is the square root of the sum of squares.": _divided(
            lambda a: a.sum(-1, keepdim=True), lambda b: b.sum(-1, keepdim=True)
        ),
        "The result has the rows of `b` first. Row i must belong to row i of `a`.": lambda a, b: cosines(
            b, a
        ),
        "These are distances of the unit vectors. A cosine is their dot product.": lambda a, b: torch.cdist(
            F.normalize(a, dim=-1), F.normalize(b, dim=-1)
        ),
        "You compare row i of `a` with row i of `b` only. Compare every row of `a` with every row of "
        "`b`.": lambda a, b: cosines(a, b).diagonal(),
        "This is one minus the cosine.": lambda a, b: 1 - cosines(a, b),
        "You take the absolute value. A cosine may be negative.": lambda a, b: cosines(a, b).abs(),
        "An operation that works entry by entry (`*`, `/`) meets n rows of `a` and m rows of `b`. First make "
        "the rows of each of them unit vectors, and then take `@`.": lambda a, b: (
            F.normalize(a, dim=-1) * F.normalize(b, dim=-1)
        ),
        "The shapes do not fit: transpose the second matrix, `a @ b.T`.": lambda a, b: (
            F.normalize(a, dim=-1) @ F.normalize(b, dim=-1)
        ),
        "The lengths have lost their axis. Keep it with `keepdim=True`, so that each row is divided by its "
        "own length.": lambda a, b: (a / a.norm(dim=-1)) @ (b / b.norm(dim=-1)).T,
    },
)


# --- softmax -----------------------------------------------------------------------------------------


def probabilities(scores: Tensor, temperature: float) -> Tensor:
    """Softmax of each row of scores [n, m] at a temperature: [n, m], each row sums to 1."""
    scaled = scores / temperature
    powers = (scaled - scaled.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def _scores(seed: int) -> tuple[Tensor, float]:
    scores = 2 * torch.randn(2 + seed, 7 - seed, generator=generator(seed))
    if seed == 3:  # without the subtraction of each row's largest score, exp is infinite or all zero
        scores = scores + 200 * torch.arange(5.0)[:, None]
    return scores, (0.5, 2.0, 1.5, 0.7)[seed]


def _about_rows(case: tuple, result: object, right: Tensor) -> str | None:
    if not isinstance(result, Tensor) or result.shape != right.shape:
        return None
    if result.isnan().any():  # exp in float64, which is infinite later than in float32
        return "returns nan for scores in the hundreds. Subtract the largest score of EACH ROW before exp"
    sums = result.sum(-1)
    wrong = (sums - 1).abs() > 1e-4
    if not wrong.any():
        return None
    row = int(wrong.int().argmax())
    return f"row {row} of your result sums to {sums[row]:.4g}. Each row should sum to 1"


check_probabilities = Exercise(
    solution=probabilities,
    cases=_scores,
    forbidden=("softmax", "log_softmax", "Softmax"),
    tolerance=1e-4,  # scores in the hundreds lose digits in some right answers
    explain=_about_rows,
    mistakes={
        "The temperature is not used. Divide the scores by it.": lambda s, t: s.softmax(-1),
        "You multiply by the temperature. Divide by it.": lambda s, t: (s * t).softmax(-1),
        "You divide by the temperature AFTER the softmax. Divide the scores before it.": lambda s, t: (
            s.softmax(-1) / t
        ),
        "You multiply by the temperature after the softmax. Divide the scores before it.": lambda s, t: (
            s.softmax(-1) * t
        ),
        "Your columns sum to 1. Each ROW should: sum over the last axis.": lambda s, t: (s / t).softmax(0),
        "You divide by the sum of the whole matrix. Each row has its own sum.": lambda s, t: (
            (s / t).flatten().softmax(0).view_as(s)
        ),
        "exp of a large number is infinite, and infinite / infinite is nan. Divide by the temperature, then "
        "subtract the largest score of the row, then take exp. The result is the same.": lambda s, t: (
            (s / t).exp() / (s / t).exp().sum(-1, keepdim=True)
        ),
        "`max` over an axis returns two things, the values and where they are. Use `amax`.": lambda s, t: (
            (s - s.max(-1, keepdim=True)) / t
        ),
        "The scores themselves are not divided by the temperature. Subtract the largest score of the row and "
        "divide the difference, `(scores - largest) / T`; then take exp.": lambda s, t: (
            s.exp() / s.exp().sum(-1, keepdim=True)
        ),
        "`scores - largest / T` divides only the largest score by the temperature. Put the difference in "
        "brackets.": lambda s, t: (
            (s - s.amax(-1, keepdim=True) / t).exp()
            / (s - s.amax(-1, keepdim=True) / t).exp().sum(-1, keepdim=True)
        ),
        "The exponential is missing: this divides the scores by their sum.": lambda s, t: (
            (s / t) / (s / t).sum(-1, keepdim=True)
        ),
        "The exponential is missing: this divides the scores by their sum, and the temperature "
        "cancels.": lambda s, t: (
            (s - s.amax(-1, keepdim=True)) / (s - s.amax(-1, keepdim=True)).sum(-1, keepdim=True)
        ),
        "The division by the row's sum is missing.": lambda s, t: (s - s.amax(-1, keepdim=True)).div(t).exp(),
        "These are the logarithms of the probabilities.": lambda s, t: (s / t).log_softmax(-1),
        "The sign is wrong: the largest score should get the largest probability.": lambda s, t: (
            -s / t
        ).softmax(-1),
        "The sum or the largest score has lost its axis. Keep it with `keepdim=True`, so that each row has "
        "its own.": lambda s, t: (s / t).exp() / (s / t).exp().sum(-1),
        "You subtract the largest score of the whole matrix. With rows of very different scores a whole row "
        "becomes 0. Subtract the largest of EACH ROW.": lambda s, t: (
            ((s - s.max()) / t).exp() / ((s - s.max()) / t).exp().sum(-1, keepdim=True)
        ),
        "You subtract the largest score of each COLUMN. That changes the differences within a row. Use the "
        "last axis.": lambda s, t: (
            ((s - s.amax(0)) / t).exp() / ((s - s.amax(0)) / t).exp().sum(-1, keepdim=True)
        ),
    },
)


# --- attention ---------------------------------------------------------------------------------------


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What each of n queries [n, d] reads from the values [m, e] of m tokens with the keys [m, d]: [n, e]."""
    scores = queries @ keys.T / queries.shape[-1] ** 0.5  # [n, m]
    return scores.softmax(-1) @ values


def _projected(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g, m, d = generator(seed), 6 + seed, 3 + seed % 2
    queries, keys = torch.randn(2 + seed, d, generator=g), torch.randn(m, d, generator=g)
    return 2 * queries, keys, torch.randn(m, 5 + seed % 3, generator=g)


def _attended(
    scale: Callable[[Tensor, Tensor], float] = lambda q, k: q.shape[-1] ** 0.5, axis: int = -1
) -> Callable:
    return lambda q, k, v: (q @ k.T / scale(q, k)).softmax(axis) @ v


check_attention = Exercise(
    solution=attention,
    cases=_projected,
    forbidden=("scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward"),
    explain=lambda case, result, right: (
        "returns several things. Return only what the queries read, one tensor [n, e]"
        if isinstance(result, tuple)
        else None
    ),
    mistakes={
        "The division by the square root of d is missing.": _attended(lambda q, k: 1.0),
        "You divide by d. Divide by its square root.": _attended(lambda q, k: q.shape[-1]),
        "You multiply by the square root of d. Divide by it.": _attended(lambda q, k: q.shape[-1] ** -0.5),
        "You divide by the root of the number of keys. d is the number of numbers in one key: "
        "`keys.shape[-1]`.": _attended(lambda q, k: len(k) ** 0.5),
        "You divide by the root of the number of queries. d is the number of numbers in one query: "
        "`queries.shape[-1]`.": _attended(lambda q, k: len(q) ** 0.5),
        "You divide by the root of the width of the VALUES. The width of the queries and keys "
        "counts.": lambda q, k, v: (q @ k.T / v.shape[-1] ** 0.5).softmax(-1) @ v,
        "Your softmax runs over the queries. Each query distributes its attention over the keys: use the "
        "last axis of [n, m].": _attended(axis=0),
        "You apply the softmax twice. Once is enough.": lambda q, k, v: (
            (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).softmax(-1) @ v
        ),
        "The weights of a query do not sum to 1: exp alone is no softmax.": lambda q, k, v: (
            (q @ k.T / q.shape[-1] ** 0.5).exp() @ v
        ),
        "The softmax is missing: the weights of a query must be positive and sum to 1.": lambda q, k, v: (
            q @ k.T / q.shape[-1] ** 0.5 @ v
        ),
        "You return the weights. Multiply them by the values.": lambda q, k, v: (
            q @ k.T / q.shape[-1] ** 0.5
        ).softmax(-1),
        "You return the scores before the softmax.": lambda q, k, v: q @ k.T / q.shape[-1] ** 0.5,
        "You use the keys as values.": lambda q, k, v: (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ k,
        "You compare the keys with each other. Compare the QUERIES with the keys.": lambda q, k, v: (
            (k @ k.T / k.shape[-1] ** 0.5).softmax(-1) @ v
        ),
        "You compare by cosine. Attention uses the dot product divided by the square root of "
        "d.": lambda q, k, v: cosines(q, k).softmax(-1) @ v,
        "The division comes after the softmax. Divide the scores before it.": lambda q, k, v: (
            (q @ k.T).softmax(-1) / q.shape[-1] ** 0.5 @ v
        ),
        "Each query reads only its best token. The softmax gives a weight to every token.": lambda q, k, v: v[
            (q @ k.T).argmax(-1)
        ],
        "The shapes do not fit: the keys must be transposed, `queries @ keys.T`.": lambda q, k, v: (
            (q @ k).softmax(-1) @ v
        ),
        "Your weights have the shape [m, n]. Their rows must be the queries: `queries @ keys.T`, and no "
        "transpose afterwards.": lambda q, k, v: (k @ q.T).softmax(-1) @ v,
        "`weights * values` works entry by entry. Use `@`: it adds up the values, each with its "
        "weight.": lambda q, k, v: (q @ k.T).softmax(-1) * v,
        "`queries * keys` works entry by entry, and needs as many queries as keys. All dot products are "
        "`queries @ keys.T`.": lambda q, k, v: (q * k).sum(-1).softmax(-1) @ v,
        "You use the queries as values.": lambda q, k, v: (q @ k.T).softmax(-1) @ q,
        "The softmax belongs to the scores, not to the values.": lambda q, k, v: (
            q @ k.T / q.shape[-1] ** 0.5 @ v.softmax(-1)
        ),
        "You divide by d squared. Divide by the square ROOT of d.": _attended(lambda q, k: q.shape[-1] ** 2),
    },
)


# --- LayerNorm ---------------------------------------------------------------------------------------


def normalise_tokens(x: Tensor, gain: Tensor, shift: Tensor, epsilon: float = 1e-5) -> Tensor:
    """LayerNorm of tokens [n, C] with a learned gain [C] and shift [C]."""
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + epsilon).sqrt() * gain + shift


def _layer(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    g, width = generator(seed), 4 + seed % 3
    gain, shift = torch.rand(width, generator=g) + 0.5, torch.randn(width, generator=g)
    x = torch.randn(7 - seed, width, generator=g) * (1 + 2 * torch.rand(width, generator=g)) + 3
    return x, gain, shift, (0.1, 0.5, 0.2, 0.3)[seed]  # large, so that its place in the formula matters


def _layered(
    variance: Callable[[Tensor], Tensor] = lambda x: x.var(-1, keepdim=True, unbiased=False),
    mean: Callable[[Tensor], Tensor] = lambda x: x.mean(-1, keepdim=True),
    root: Callable[[Tensor, float], Tensor] = lambda v, e: (v + e).sqrt(),
) -> Callable:
    return lambda x, g, s, e=1e-5: (x - mean(x)) / root(variance(x), e) * g + s


check_normalise_tokens = Exercise(
    solution=normalise_tokens,
    cases=_layer,
    forbidden=("layer_norm", "LayerNorm", "native_layer_norm"),
    mistakes={
        "You normalise over the tokens (BatchNorm). LayerNorm takes mean and variance of the numbers of ONE "
        "token: the last axis.": _layered(lambda x: x.var(0, unbiased=False), lambda x: x.mean(0)),
        "You take one mean and one variance of the whole matrix. Each token has its own.": _layered(
            lambda x: x.var(unbiased=False), Tensor.mean
        ),
        "The mean is of the whole matrix. Each token has its own mean.": _layered(mean=Tensor.mean),
        "You add up the squares. The variance is their MEAN.": _layered(
            lambda x: (x - x.mean(-1, keepdim=True)).square().sum(-1, keepdim=True)
        ),
        "You take the root of the standard deviation, which is a root already. Take the root of the "
        "variance.": _layered(lambda x: x.std(-1, keepdim=True, unbiased=False)),
        "The mean is not subtracted, and the squares in the variance are those of x itself.": _layered(
            lambda x: x.square().mean(-1, keepdim=True), lambda x: torch.zeros(())
        ),
        "You multiply by the root. Divide by it.": _layered(root=lambda v, e: (v + e).rsqrt()),
        "You divide by C - 1 in the variance. LayerNorm divides by C: `unbiased=False`.": _layered(
            lambda x: x.var(-1, keepdim=True)
        ),
        "You divide by the variance. Divide by its square root.": _layered(root=lambda v, e: v + e),
        "epsilon stands under the square root, with the variance.": _layered(root=lambda v, e: v.sqrt() + e),
        "You divide by C - 1 in the standard deviation, and epsilon belongs under the square root. Use "
        "`var(..., unbiased=False)`.": _layered(
            lambda x: x.var(-1, keepdim=True), root=lambda v, e: v.sqrt() + e
        ),
        "epsilon is not used.": _layered(root=lambda v, e: v.sqrt()),
        "You divide by C - 1 in the standard deviation, and epsilon is missing.": _layered(
            lambda x: x.var(-1, keepdim=True), root=lambda v, e: v.sqrt()
        ),
        "epsilon is 1e-5 in your function whatever is given. Use the argument.": _layered(
            root=lambda v, e: (v + 1e-5).sqrt()
        ),
        "The mean is not subtracted.": _layered(mean=lambda x: torch.zeros(())),
        "The division by the standard deviation is missing.": _layered(root=lambda v, e: torch.ones(())),
        "Gain and shift are not used.": lambda x, g, s, e=1e-5: normalise_tokens(
            x, torch.ones_like(g), torch.zeros_like(s), e
        ),
        "The gain is not used.": lambda x, g, s, e=1e-5: normalise_tokens(x, torch.ones_like(g), s, e),
        "The shift is not used.": lambda x, g, s, e=1e-5: normalise_tokens(x, g, torch.zeros_like(s), e),
        "You add the shift before the gain multiplies. Multiply first.": lambda x, g, s, e=1e-5: (
            normalise_tokens(x, torch.ones_like(g), s, e) * g
        ),
        "The means have lost their axis. Keep it with `keepdim=True`.": lambda x, g, s, e=1e-5: (
            (x - x.mean(-1)) / (x.var(-1, unbiased=False) + e).sqrt() * g + s
        ),
        "You normalise over the tokens (BatchNorm), and with n - 1. LayerNorm takes mean and variance of the "
        "numbers of ONE token, and divides by C.": _layered(lambda x: x.var(0), lambda x: x.mean(0)),
        "You take one mean and one variance of the whole matrix, with n - 1. Each token has its own, and the "
        "variance divides by C.": _layered(Tensor.var, Tensor.mean),
        "Gain and shift are exchanged.": lambda x, g, s, e=1e-5: normalise_tokens(x, s, g, e),
        "Parentheses are missing: subtract the mean first, and divide the whole difference.": (
            lambda x, g, s, e=1e-5: (
                x - x.mean(-1, keepdim=True) / (x.var(-1, keepdim=True, unbiased=False) + e).sqrt() * g + s
            )
        ),
        "The variance is the mean square of x MINUS its mean. You take the mean square of x.": _layered(
            lambda x: x.square().mean(-1, keepdim=True)
        ),
        "You add the root of epsilon to the root of the variance. Take one root of their sum.": _layered(
            root=lambda v, e: v.sqrt() + e**0.5
        ),
        "You divide by the length of the vector. The standard deviation is the root of the MEAN "
        "square.": lambda x, g, s, e=1e-5: F.normalize(x - x.mean(-1, keepdim=True), dim=-1) * g + s,
    },
)


# --- BatchNorm ---------------------------------------------------------------------------------------


def batch_norm_step(
    x: Tensor, running_mean: Tensor, running_variance: Tensor, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm of a batch [B, C] without gain and shift.

    Returns the normalised batch [B, C] and the running mean [C] and variance [C] after it. With `training`
    the batch's own statistics normalise it, and a tenth of them goes into the running ones.
    """
    if training:
        mean, variance = x.mean(0), x.var(0, unbiased=False)
        running_mean = 0.9 * running_mean + 0.1 * mean
        running_variance = 0.9 * running_variance + 0.1 * x.var(0)  # B - 1 here
    else:
        mean, variance = running_mean, running_variance
    return (x - mean) / (variance + 1e-5).sqrt(), running_mean, running_variance


def _batch(seed: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    g, width = generator(seed), 3 + seed % 3
    x = 2 * torch.randn(4 + seed, width, generator=g) + torch.arange(float(width))
    scale = torch.tensor([0.05] + [1.0] * (width - 1))  # one small variance, so that epsilon matters
    mean, variance = torch.randn(width, generator=g) * scale, torch.rand(width, generator=g) + 0.5
    return x * scale, mean, variance * scale.square(), seed % 2 == 0


def _batched(
    used: Callable[..., tuple[Tensor, Tensor]] = lambda x, m, v: (x.mean(0), x.var(0, unbiased=False)),
    kept: Callable[..., tuple[Tensor, Tensor]] = lambda x, m, v: (
        0.9 * m + 0.1 * x.mean(0),
        0.9 * v + 0.1 * x.var(0),
    ),
    root: Callable[[Tensor], Tensor] = lambda v: (v + 1e-5).sqrt(),
    in_eval: bool = False,
) -> Callable:
    """A wrong answer: other statistics to normalise with, or to keep, in training (and in eval mode)."""

    def wrong(x: Tensor, m: Tensor, v: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not (training or in_eval):
            return (x - m) / root(v), m, v
        mean, variance = used(x, m, v)
        return (x - mean) / root(variance), *kept(x, m, v)

    return wrong


check_batch_norm_step = Exercise(
    solution=batch_norm_step,
    cases=_batch,
    parts=("normalised batch", "running mean", "running variance"),
    explain=lambda case, result, right: (
        "return three things, separated by commas: the normalised batch, the running mean, the running "
        "variance"
        if not isinstance(result, list | tuple) or len(result) != 3
        else None
    ),
    forbidden=("batch_norm", "BatchNorm1d", "native_batch_norm"),
    mistakes={
        "In eval mode you use the batch's own mean and variance. Use the running ones, and leave them as "
        "they are.": _batched(in_eval=True),
        "In eval mode the running mean and variance must stay as they are.": lambda x, m, v, t: (
            batch_norm_step(x, m, v, t)[0],
            *batch_norm_step(x, m, v, True)[1:],
        ),
        "In eval mode you normalise with the batch's own mean and variance. Use the running "
        "ones.": lambda x, m, v, t: (
            batch_norm_step(x, m, v, True)[0],
            *batch_norm_step(x, m, v, t)[1:],
        ),
        "`training` is the wrong way round: with True use the batch's statistics.": lambda x, m, v, t: (
            batch_norm_step(x, m, v, not t)
        ),
        "In training you normalise with the running statistics. Use those of the batch.": _batched(
            lambda x, m, v: (m, v)
        ),
        "In training you normalise with the NEW running statistics. Use those of the batch.": _batched(
            lambda x, m, v: (0.9 * m + 0.1 * x.mean(0), 0.9 * v + 0.1 * x.var(0))
        ),
        "The running statistics do not change in training. A tenth of the batch's goes into them.": _batched(
            kept=lambda x, m, v: (m, v)
        ),
        "The new running statistics are those of the batch alone. Keep nine tenths of the old "
        "ones.": _batched(kept=lambda x, m, v: (x.mean(0), x.var(0))),
        "You mix the wrong way round: nine tenths of the OLD value, one tenth of the batch's.": _batched(
            kept=lambda x, m, v: (0.1 * m + 0.9 * x.mean(0), 0.1 * v + 0.9 * x.var(0))
        ),
        "The RUNNING variance uses the variance with B - 1, `x.var(0)`. (The batch is normalised with the "
        "other one.)": _batched(
            kept=lambda x, m, v: (0.9 * m + 0.1 * x.mean(0), 0.9 * v + 0.1 * x.var(0, unbiased=False))
        ),
        "The batch is normalised with the variance that divides by B: `x.var(0, unbiased=False)`. (Only the "
        "running variance uses B - 1.)": _batched(lambda x, m, v: (x.mean(0), x.var(0))),
        "The two variances are exchanged: normalise with the one that divides by B, and put the one with "
        "B - 1 into the running variance.": _batched(
            lambda x, m, v: (x.mean(0), x.var(0)),
            lambda x, m, v: (0.9 * m + 0.1 * x.mean(0), 0.9 * v + 0.1 * x.var(0, unbiased=False)),
        ),
        "You normalise each image by its own mean and variance (LayerNorm). BatchNorm normalises each number "
        "over the batch: axis 0.": _batched(
            lambda x, m, v: (x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False))
        ),
        "You take one mean and one variance of the whole matrix. Each of the C numbers has its own: axis "
        "0.": _batched(lambda x, m, v: (x.mean(), x.var(unbiased=False))),
        "The running statistics have the shape [B]: you take those of each image. BatchNorm takes them over "
        "the batch: axis 0.": _batched(
            lambda x, m, v: (x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)),
            lambda x, m, v: (0.9 * m + 0.1 * x.mean(-1), 0.9 * v + 0.1 * x.var(-1)),
        ),
        "In training you use the standard deviation where the variance should be, and it divides by B - "
        "1.": _batched(lambda x, m, v: (x.mean(0), x.std(0))),
        "The running mean does not change in training. A tenth of the batch's mean goes into it.": _batched(
            kept=lambda x, m, v: (m, 0.9 * v + 0.1 * x.var(0))
        ),
        "The running mean and the running variance are exchanged in what you return.": lambda x, m, v, t: (
            batch_norm_step(x, m, v, t)[0],
            *batch_norm_step(x, m, v, t)[:0:-1],
        ),
        "You divide by the variance. Divide by its square root.": _batched(root=lambda v: v + 1e-5),
        "You put the standard deviation into the running variance. Put the variance.": _batched(
            kept=lambda x, m, v: (0.9 * m + 0.1 * x.mean(0), 0.9 * v + 0.1 * x.std(0))
        ),
        "You return the normalised batch alone. Return three things: the batch, the running mean, the "
        "running variance.": lambda x, m, v, t: batch_norm_step(x, m, v, t)[0],
        "One of the running statistics does not change in training: the variance.": _batched(
            kept=lambda x, m, v: (0.9 * m + 0.1 * x.mean(0), v)
        ),
        "You take one mean and one variance of the whole batch. Each of the C numbers has its own.": _batched(
            lambda x, m, v: (x.mean(), x.var(unbiased=False)),
            lambda x, m, v: (0.9 * m + 0.1 * x.mean(), 0.9 * v + 0.1 * x.var()),
        ),
        "epsilon is missing: add 1e-5 to the variance, under the root.": _batched(root=Tensor.sqrt),
        "epsilon is missing, and the batch is normalised with B - 1: use `x.var(0, unbiased=False) + "
        "1e-5`.": _batched(lambda x, m, v: (x.mean(0), x.var(0)), root=Tensor.sqrt),
        "epsilon stands under the square root, with the variance.": _batched(root=lambda v: v.sqrt() + 1e-5),
        "The old running statistics count nine tenths. You add a tenth of the batch's to all of "
        "them.": _batched(kept=lambda x, m, v: (m + 0.1 * x.mean(0), v + 0.1 * x.var(0))),
        "In eval mode you return the batch as it is. Normalise it with the running "
        "statistics.": lambda x, m, v, t: batch_norm_step(x, m, v, t) if t else (x, m, v),
        "The running statistics change in eval mode and stay in training. It is the other way "
        "round.": lambda x, m, v, t: (
            batch_norm_step(x, m, v, t)[0],
            *batch_norm_step(x, m, v, not t)[1:],
        ),
        "The running statistics remember the batch BEFORE it is normalised.": lambda x, m, v, t: (
            (n := batch_norm_step(x, m, v, t)[0]),
            *batch_norm_step(n, m, v, t)[1:],
        ),
    },
)


# --- CLIP's loss -------------------------------------------------------------------------------------


def clip_loss(pairs: Tensor, temperature: float) -> Tensor:
    """CLIP's loss, a tensor [], of the cosines [B, B] of B images (rows) and their B sentences (columns)."""
    logits = pairs / temperature
    right = torch.arange(len(pairs))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def _pairs(seed: int) -> tuple[Tensor, float]:
    noise = 2 * torch.rand(3 + seed, 3 + seed, generator=generator(seed)) - 1
    return (noise + 0.5 * torch.eye(3 + seed)).clamp(-1, 1), (0.5, 0.2, 0.4, 0.3)[seed]


def _entropies(rows: Tensor, columns: Tensor, right: Callable = torch.arange) -> Tensor:
    """The mean cross-entropy of two matrices of scores [B, B], and other right answers."""
    answers = right(len(rows))
    return (F.cross_entropy(rows, answers) + F.cross_entropy(columns, answers)) / 2


def _logs(pairs: Tensor, temperature: float, axis: int) -> Tensor:
    """Log-probabilities of the right pairs: over the sentences (axis 1) or the images (axis 0)."""
    return (pairs / temperature).log_softmax(axis).diagonal()


check_clip_loss = Exercise(
    solution=clip_loss,
    cases=_pairs,
    remark=remark_on_gradient,
    mistakes={
        "This is one direction: each image chooses among the sentences. Add the other one, over the "
        "columns, and take the mean.": lambda p, t: -_logs(p, t, 1).mean(),
        "This is one direction: each sentence chooses among the images. Add the other one, over the rows, "
        "and take the mean.": lambda p, t: -_logs(p, t, 0).mean(),
        "You add the two directions. Take their mean.": lambda p, t: 2 * clip_loss(p, t),
        "You multiply by the temperature. Divide by it.": lambda p, t: clip_loss(p, 1 / t),
        "You return both directions. Return their mean, one number.": lambda p, t: torch.stack(
            [-_logs(p, t, 1).mean(), -_logs(p, t, 0).mean()]
        ),
        "You take the logarithm of a mean of probabilities. Take the mean of the logarithms.": lambda p, t: (
            -((_logs(p, t, 0).exp() + _logs(p, t, 1).exp()) / 2).log().mean()
        ),
        "You take the logarithm of the mean probability. Take the mean of the logarithms.": lambda p, t: (
            -(_logs(p, t, 0).exp().mean().log() + _logs(p, t, 1).exp().mean().log()) / 2
        ),
        "A yes-or-no decision for every pair is another loss. Here the sentences of a row compete in one "
        "softmax.": lambda p, t: F.binary_cross_entropy_with_logits(p / t, torch.eye(len(p))),
        "The softmax is missing: this only rewards large cosines on the diagonal, and the wrong pairs do not "
        "count.": lambda p, t: 1 - p.diagonal().mean(),
        "The softmax and the logarithm are missing: this is minus the mean score of the right "
        "pairs.": lambda p, t: -(p / t).diagonal().mean(),
        "The temperature is not used.": lambda p, t: clip_loss(p, 1.0),
        "The sign is wrong: the loss is MINUS the log-probability.": lambda p, t: -clip_loss(p, t),
        "The mean over the pairs is missing: you return the sum.": lambda p, t: clip_loss(p, t) * len(p),
        "Return one number, the mean over the pairs.": lambda p, t: -(_logs(p, t, 0) + _logs(p, t, 1)) / 2,
        "The softmax is applied twice: `F.cross_entropy` already contains it. Give it the cosines / "
        "temperature.": lambda p, t: _entropies((p / t).softmax(1), (p / t).T.softmax(1)),
        "`F.cross_entropy` already contains the softmax. Give it the cosines / temperature, and their "
        "transpose.": lambda p, t: _entropies((p / t).softmax(1), (p / t).softmax(1).T),
        "The logarithm is missing: this is minus the mean probability of the right pairs.": lambda p, t: (
            -(_logs(p, t, 0).exp() + _logs(p, t, 1).exp()).mean() / 2
        ),
        "The logarithm is missing: this is one minus the mean probability of the right pairs.": lambda p, t: (
            1 - (_logs(p, t, 0).exp() + _logs(p, t, 1).exp()).mean() / 2
        ),
        "You average over the whole matrix. Only the right pairs, on the diagonal, enter the mean; the "
        "others are in the softmax.": lambda p, t: (
            -((p / t).log_softmax(0) + (p / t).log_softmax(1)).mean() / 2
        ),
        "Your softmax runs over the whole matrix. It runs over a row, and then over a column.": lambda p, t: (
            -(p / t).flatten().log_softmax(0).view_as(p).diagonal().mean()
        ),
        "The right answer of every row is column 0 in your loss. Image i belongs to sentence i: "
        "`torch.arange(B)`.": lambda p, t: _entropies(
            p / t, p.T / t, lambda B: torch.zeros(B, dtype=torch.long)
        ),
        "You divide the loss by the temperature. Divide the cosines, before the softmax.": lambda p, t: (
            _entropies(p, p.T) / t
        ),
        "Only one of the two directions uses the temperature: the images' choice.": lambda p, t: _entropies(
            p / t, p.T
        ),
        "Only one of the two directions uses the temperature: the sentences' choice.": lambda p, t: (
            _entropies(p, p.T / t)
        ),
        "For the second direction transpose the matrix. The right answers stay as they are.": lambda p, t: (
            (_entropies(p / t, p / t) + _entropies(p / t, p / t, lambda B: torch.arange(B).flip(0))) / 2
        ),
        "They are cosines already: nothing has to be normalised.": lambda p, t: _entropies(
            F.normalize(p, dim=-1) / t, F.normalize(p, dim=-1).T / t
        ),
        "Columns are counted from 0: the right answers are 0 to B - 1.": lambda p, t: _entropies(
            p / t, p.T / t, lambda B: torch.arange(1, B + 1)
        ),
        "The second argument of `F.cross_entropy` holds the numbers of the right columns, as whole numbers: "
        "`torch.arange(B)`.": lambda p, t: F.cross_entropy(p / t, p.diagonal()),
    },
)
