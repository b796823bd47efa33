"""The harder exercises at the end of lessons: right answers in any style pass, other wrong ones do not."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score as hidden

from inctrl_lite.checks import CheckFailed, exercises
from inctrl_lite.metrics import auroc

KEYS = {name: exercise.solution for name, exercise in exercises().items()}


# --- 08: average precision when scores are equal -----------------------------------------------------


def listed(labels, scores):
    ranked = labels[np.argsort(-scores, kind="stable")]
    return (np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked == 1].mean()


def ap_by_loops(labels, scores):
    pairs = list(zip(labels.tolist(), scores.tolist(), strict=True))
    called = [[y for y, other in pairs if other >= score] for label, score in pairs if label]
    orders = []
    for sign in (1, -1):
        ranked = [y for y, _ in sorted(pairs, key=lambda pair: (-pair[1], sign * pair[0]))]
        found = [sum(ranked[: i + 1]) / (i + 1) for i, y in enumerate(ranked) if y]
        orders.append(sum(found) / len(found))
    return [orders[0], sum(sum(c) / len(c) for c in called) / len(called), orders[1]]


def ap_by_nudges(labels, scores):
    levels = np.unique(scores)
    own = [((scores == level) & (labels == 1)).sum() for level in levels]
    precision = [labels[scores >= level].mean() for level in levels]
    together = np.dot(own, precision) / labels.sum()
    return np.array(
        [listed(labels, scores - 1e-9 * labels), together, listed(labels, scores + 1e-9 * labels)]
    )


def ap_by_pandas(labels, scores):
    table = pd.DataFrame({"y": labels, "s": scores})
    ties = table.groupby("s")["y"].agg(["sum", "size"]).sort_index(ascending=False)
    together = (ties["sum"].cumsum() / ties["size"].cumsum() * ties["sum"]).sum() / ties["sum"].sum()
    ends = []
    for ascending in (True, False):
        ranked = table.sort_values(["s", "y"], ascending=[False, ascending])["y"].reset_index(drop=True)
        ends.append((ranked.cumsum() / (ranked.index + 1))[ranked == 1].mean())
    return ends[0], together, ends[1]


def ap_by_the_library(labels, scores):
    from sklearn.metrics import average_precision_score

    worst, _, best = KEYS["ap_with_ties"](labels, scores)
    return worst, average_precision_score(labels, scores), best


# --- 10: one test, six properties --------------------------------------------------------------------


def properties_by_loops(score, query, support):
    scores, found = score(query, support).tolist(), []

    def differ(other):
        return any(not abs(a - b) <= 1e-4 for a, b in zip(other.tolist(), scores, strict=True))

    if differ(score(query, support)):
        return ["again"]
    if differ(torch.cat([score(q[None], s[None]) for q, s in zip(query, support, strict=True)])):
        found.append("alone")
    back = torch.empty(len(query))
    order = torch.arange(len(query)).roll(1)
    back[order] = score(query[order], support[order])
    found += ["order"] if differ(back) else []
    found += ["shots"] if differ(score(query, support.roll(1, 1))) else []
    found += ["copies"] if differ(score(query, support.repeat_interleave(2, dim=1))) else []
    return found + (["scale"] if differ(score(query * 3, support * 3)) else [])


def properties(**instead):
    """All six comparisons, with other scores for some of them."""

    def answer(score, query, support):
        others = {
            "again": lambda f, q, s: f(q, s),
            "alone": lambda f, q, s: torch.stack([f(q[i : i + 1], s[i : i + 1])[0] for i in range(len(q))]),
            "order": lambda f, q, s: f(q.flip(0), s.flip(0)).flip(0),
            "shots": lambda f, q, s: f(q, s.flip(1)),
            "copies": lambda f, q, s: f(q, s.repeat(1, 2, 1, 1, 1)),
            "scale": lambda f, q, s: f(q * 3, s * 3),
        } | instead
        scores = score(query, support)
        same = {
            name: torch.allclose(other(score, query, support), scores, rtol=0, atol=1e-4)
            for name, other in others.items()
        }
        return ("again",) if not same["again"] else tuple(name for name in same if not same[name])

    return answer


def pairs_alone(f, q, s):
    return torch.cat([f(*two) for two in zip(q.split(2), s.split(2), strict=True)])


def filled_alone(f, q, s):
    return torch.cat(
        [f(a.expand_as(q), b.expand_as(s))[:1] for a, b in zip(q[:, None], s[:, None], strict=True)]
    )


# --- 11: a large batch in parts ----------------------------------------------------------------------


def joined(tensors):
    return torch.cat([one.flatten() for one in tensors])


def parts_by_backward(loss, parameters, parts):
    for one in parameters:
        one.grad = None
    queries = 0
    for part in filter(len, parts):
        (loss(part) * len(part)).backward()
        queries += len(part)
    return [g for one in parameters for g in (one.grad / queries).flatten().tolist()]


def parts_by_a_running_mean(loss, parameters, parts):
    mean, queries = np.zeros(sum(one.numel() for one in parameters)), 0
    for part in parts:
        if len(part):
            queries += len(part)
            gradient = joined(torch.autograd.grad(loss(part), parameters)).numpy()
            mean = mean + (gradient - mean) * len(part) / queries
    return mean


def parts_by_next(loss, parameters, parts):
    sums, queries = [torch.zeros(one.shape) for one in parameters], 0
    while (part := next(parts, None)) is not None:
        if part:
            gradients = torch.autograd.grad(len(part) * loss(part), parameters)
            sums = [old + new for old, new in zip(sums, gradients, strict=True)]
            queries += len(part)
    return joined(sums).float() / queries


def in_parts(weight, change, skip=lambda part: not part, extra=lambda loss, part: 0):
    """A wrong answer: other weights, changed gradients, other parts, or more calls of the loss."""

    def wrong(loss, parameters, parts):
        total, weights = 0, 0
        for part in parts:
            if not skip(part):
                extra(loss, part)
                total = total + weight(len(part)) * change(torch.autograd.grad(loss(part), parameters))
                weights += weight(len(part))
        return total / weights

    return wrong


def a_list_by_tee(loss, parameters, parts):
    first, second = itertools.tee(parts)
    queries = sum(map(len, first))
    found = [len(part) * joined(torch.autograd.grad(loss(part), parameters)) for part in second if part]
    return sum(found) / queries


def losses_first(loss, parameters, parts):
    losses = [(len(part), loss(part)) for part in parts if part]
    sums = [size * joined(torch.autograd.grad(value, parameters)) for size, value in losses]
    return sum(sums) / sum(size for size, _ in losses)


# --- A1: the gradient by hand ------------------------------------------------------------------------


def gradient_by_numpy(logits, same_text):
    given = logits.numpy()
    own = np.eye(len(given))
    shown = np.where(same_text.numpy() & (own == 0), -np.inf, given)

    def probability(axis):
        powers = np.exp(shown - shown.max(axis=axis, keepdims=True))
        return powers / powers.sum(axis=axis, keepdims=True)

    gradient = (probability(0) - own + probability(1) - own) / (2 * len(given))
    return gradient, (gradient * given).sum()


def gradient_by_logarithms(logits, same_text):
    keep = ~same_text | torch.eye(len(logits), dtype=torch.bool)
    shown = torch.where(keep, logits, -1e9)
    halves = ((shown - shown.logsumexp(axis, keepdim=True)).exp() for axis in (0, 1))
    gradient = sum(halves) / 2
    gradient.diagonal().sub_(1)
    return [(gradient / len(logits)).tolist(), (gradient * logits).mean(0).sum().item()]


def gradient_by_autograd(logits, same_text):
    variable = logits.clone().requires_grad_()
    own = torch.eye(len(variable), dtype=torch.bool)
    shown = variable.masked_fill(same_text & ~own, -torch.inf)
    loss = -(shown.log_softmax(0).diagonal() + shown.log_softmax(1).diagonal()).mean() / 2
    loss.backward()
    return variable.grad, (variable.grad * logits).sum()


def gradient_filled(value):
    """Excluded logits that are only small."""
    return lambda z, same: KEYS["contrastive_gradient"](
        z.masked_fill(same & ~torch.eye(len(z), dtype=torch.bool), value), torch.zeros_like(same)
    )


# --- 00: a threshold from normal images alone --------------------------------------------------------


def decide_by_pop(score, normals, queries):
    scores = []
    for i, image in enumerate(normals):
        others = list(normals)
        others.pop(i)
        scores.append(score(others, image))
    return [max(scores), [int(score(normals, query) > max(scores)) for query in queries]]


def decide_by_numpy(score, normals, queries):
    images = np.stack(normals)
    threshold = np.max([score(np.delete(images, i, 0), images[i]) for i in range(len(images))])
    return threshold, np.array([score(images, query) for query in queries]) > threshold


def decide_with(threshold):
    def answer(score, normals, queries):
        limit = threshold(score, normals)
        return limit, [score(normals, query) > limit for query in queries]

    return answer


def each_but_one(score, normals):
    return [score(normals[:i] + normals[i + 1 :], normals[i]) for i in range(len(normals))]


def queries_against_fewer(score, normals, queries):
    limit = max(each_but_one(score, normals))
    fewer = [normals[:i] + normals[i + 1 :] for i in range(len(normals))]
    return limit, [min(score(some, query) for some in fewer) > limit for query in queries]


# --- 02: another image size --------------------------------------------------------------------------


def tokens_with(resampled):
    def answer(patches, class_embedding, positions, old, new):
        first = (class_embedding + positions[0]).expand(len(patches), 1, -1)
        return torch.cat([first, patches + resampled(positions[1:], old, new)], 1)

    return answer


def all_positions(positions, old, new):
    maps = positions.unflatten(0, tuple(old)).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(maps, size=tuple(new), mode="bilinear").flatten(2).mT


def channel_by_channel(positions, old, new):
    return torch.cat([all_positions(one[:, None], old, new) for one in positions.T], -1)


def row_by_row(positions, old, new):
    rows = all_positions(positions, old, new)[0].split(new[1])
    return torch.cat([row + 0 for row in rows])


# --- 03: several defects -----------------------------------------------------------------------------


def cosines_of(query, normal, defects):
    kinds = [KEYS["build_prototypes"](normal, one) for one in defects]
    prototypes = torch.stack([kinds[0][0], *(one[1] for one in kinds)])
    return torch.nn.functional.normalize(query, dim=-1) @ prototypes.T


def defects_by_the_largest(query, normal, defects):
    z = 100 * cosines_of(query, normal, defects)
    weights = (z - z.amax(1, keepdim=True)).exp()
    anomalous = weights[:, 1:].mean(1)
    return anomalous / (weights[:, 0] + anomalous), z[:, 1:].argmax(1)


def defects_by_the_largest_of_all(query, normal, defects):
    z = 100 * cosines_of(query, normal, defects)
    weights = (z - z.max()).exp()
    return weights[:, 1:].mean(1) / (weights[:, 0] + weights[:, 1:].mean(1)), z[:, 1:].argmax(1)


def defects_by_numpy(query, normal, defects):
    z = 100 * cosines_of(query.double(), normal.double(), [one.double() for one in defects]).numpy()
    anomalous = np.exp(z[:, 1:]).mean(1)
    return anomalous / (np.exp(z[:, 0]) + anomalous), z[:, 1:].argmax(1)


def defects_by_odds(query, normal, defects):
    z = 100 * cosines_of(query, normal, defects)
    scores = (z[:, 1:] - z[:, :1]).sigmoid()
    odds = (scores / (1 - scores)).mean(1)
    return odds / (1 + odds), z[:, 1:].argmax(1)


# --- 04: piece by piece ------------------------------------------------------------------------------


def pieces_of(rows, columns, position=lambda where, start: where + start):
    """Pieces of `rows` and `columns`, each from (N, M, most)."""

    def answer(query, support, compare, most):
        sizes = len(query), len(support), most
        best, number = torch.full((len(query),), -2.0), torch.zeros(len(query), dtype=torch.long)
        n, m = rows(*sizes), columns(*sizes)
        for i, j in itertools.product(range(0, len(query), n), range(0, len(support), m)):
            found, where = compare(query[i : i + n], support[j : j + m]).max(1)
            better = found > best[i : i + n]
            number[i : i + n] = torch.where(better, position(where, j), number[i : i + n])
            best[i : i + n] = torch.maximum(found, best[i : i + n])
        return (1 - best) / 2, number

    return answer


def columns_first(N, M, most):
    return max(1, most // min(M, most))


# --- 05: the rank of a query -------------------------------------------------------------------------


def shares_of(lengths, at_least=lambda lengths: lengths >= lengths[:, -1:] - 1e-4):
    return lengths, at_least(lengths).double().mean(1)


def members_of(adapter, query, support):
    return adapter(torch.cat([support.expand(len(query), -1, -1), query[:, None]], 1))


def rank_by_einsum(adapter, query, support, **at_least):
    members, count = members_of(adapter, query, support), len(support)
    others = torch.einsum("ij,bjd->bid", (1 - torch.eye(count + 1)) / count, members)
    return shares_of((others - members).norm(dim=-1), **at_least)


def rank_by_member(adapter, query, support):
    members = members_of(adapter, query, support)
    places = range(len(support) + 1)
    others = [members[:, [j for j in places if j != i]].mean(1) for i in places]
    return shares_of((torch.stack(others, 1) - members).norm(dim=-1))


def rank_by_query(adapter, query, support):
    found = [rank_by_einsum(adapter, one[None], support) for one in query]
    return [torch.cat(part) for part in zip(*found, strict=True)]


def with_a_helper(labels, scores):
    return hidden(labels, scores)


# --- a second reader's answers ------------------------------------------------------------------------


def f1_by_a_curve(masks, maps):
    """Precision and recall are both 0 while only false alarms are found: their harmonic mean is 0 / 0."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    with np.errstate(invalid="ignore"):
        return float((2 * precision * recall / (precision + recall)).max())


def f1_by_counting_levels(masks, maps):
    levels, which = np.unique(maps, return_inverse=True)
    found = np.bincount(which.ravel(), minlength=len(levels))[::-1].cumsum()
    hits = np.bincount(which.ravel(), weights=masks.ravel(), minlength=len(levels))[::-1].cumsum()
    return (2 * hits / (found + masks.sum())).max()


def graphs_kept(loss, parameters, parts):
    total, queries = 0, 0
    for part in parts:
        if part:
            gradients = torch.autograd.grad(loss(part), parameters, create_graph=True)
            total, queries = total + len(part) * joined(gradients), queries + len(part)
    return total / queries


def rank_by_throws(n, rate, confidence):
    counts = np.random.default_rng(0).binomial(n, rate, 20_000)
    return int(np.quantile(counts, 1 - confidence, method="lower"))


def rank_by_sums(n, rate, confidence):
    logarithm, total, rank = n * np.log1p(-rate), 0.0, 0
    while rank < n and 1 - (total := total + np.exp(logarithm)) >= confidence:
        rank += 1
        logarithm += np.log((n - rank + 1) / rank) + np.log(rate) - np.log1p(-rate)
    return rank


def score_in_float64(query, bank, b):
    query, bank = query.double().numpy(), bank.double().numpy()
    distances = np.linalg.norm(query[:, None] - bank, axis=-1)
    i = distances.min(1).argmax()
    j = distances[i].argmin()
    near = np.argsort(np.linalg.norm(bank - bank[j], axis=1))[:b]
    return distances[i, j] * (1 - 1 / np.exp(distances[i][near] - distances[i, j]).sum())


RIGHT = {
    "tokens_on_grid": [
        tokens_with(all_positions),
        lambda *case: tokens_with(all_positions)(*case).numpy(),
        lambda patches, *others: torch.cat([tokens_with(all_positions)(p[None], *others) for p in patches]),
    ],
    "score_by_defects": [defects_by_the_largest, defects_by_numpy],
    "residuals_in_pieces": [
        pieces_of(columns_first, lambda N, M, most: min(M, most)),
        pieces_of(lambda N, M, most: min(N, most), lambda N, M, most: max(1, most // min(N, most))),
    ],
    "rank_among_normals": [
        rank_by_einsum,
        lambda *case: [part.numpy() for part in rank_by_einsum(*case)],
        lambda *case: rank_by_einsum(
            *case, at_least=lambda x: (x > x[:, -1:]) | torch.isclose(x, x[:, -1:], rtol=0, atol=1e-4)
        ),
    ],
    "largest_pixel_f1": [f1_by_counting_levels],
    "rank_with_guarantee": [rank_by_sums],
    "patchcore_score": [score_in_float64],
    "normals_needed": [lambda rate, confidence: np.ceil(np.log1p(-confidence) / np.log1p(-rate) - 1e-9)],
    "contrastive_gradient": [
        gradient_by_numpy,
        gradient_by_logarithms,
        lambda z, same: KEYS["contrastive_gradient"](z.float(), same),
    ],
    "decide": [decide_by_pop, decide_by_numpy],
    "broken_properties": [properties_by_loops, properties()],
    "ap_with_ties": [ap_by_loops, ap_by_nudges, ap_by_pandas],
    "accumulated_gradient": [parts_by_backward, parts_by_a_running_mean, parts_by_next],
}
WRONG = {
    "tokens_on_grid": [
        (tokens_with(channel_by_channel), "right, but you loop over the channels"),
        (tokens_with(row_by_row), "right, but you loop over the patches"),
    ],
    "score_by_defects": [
        (defects_by_odds, "for the scores, returns nan"),
        (defects_by_the_largest_of_all, "the largest exponent of EACH image"),
    ],
    "residuals_in_pieces": [
        (
            pieces_of(columns_first, lambda N, M, most: min(M, most), position=lambda where, start: where),
            "the residuals are right, but the numbers are not",
        ),
        (
            pieces_of(lambda N, M, most: 1, lambda N, M, most: max(1, min(M, most) - 1)),
            "make larger pieces",
        ),
    ],
    "rank_among_normals": [
        (rank_by_query, "right, but you loop over the queries"),
        (rank_by_member, "right, but you loop over the members"),
        (
            lambda *case: rank_by_einsum(*case, at_least=lambda x: x >= x[:, -1:] - 0.01),
            "for the shares, returns",
        ),
        (
            lambda *case: rank_by_einsum(*case, at_least=lambda x: x >= x[:, -1:] * (1 - 1e-4)),
            "for the shares, returns",
        ),
    ],
    "largest_pixel_f1": [(f1_by_a_curve, "returns nan, expected")],
    "rank_with_guarantee": [
        (rank_by_throws, r"returns rank \d+. It keeps the rate with the probability 0.\d{6}"),
        (lambda n, *rest: min(KEYS["rank_with_guarantee"](n, *rest), 100), "returns rank 100"),
    ],
    "auroc": [
        (lambda y, s: auroc(y, s), "calls inctrl_lite.metrics"),
        (lambda y, s: hidden(y, s), "calls roc_auc_score"),
        (lambda y, s: with_a_helper(y, s), "calls roc_auc_score"),
    ],
    "contrastive_gradient": [
        (gradient_by_autograd, "calls backward"),
        (gradient_filled(-10.0), "returns .* expected"),
        (gradient_filled(-100.0), "returns .* expected"),
        (lambda z, same: KEYS["contrastive_gradient"](z.clamp(max=50), same), "gradient of the logits"),
        (lambda z, same: KEYS["contrastive_gradient"](100 * z, same), "gradient of the logits"),
        (lambda z, same: (KEYS["contrastive_gradient"](z, same)[0].abs(), 0.0), "gradient of the logits"),
        (lambda z, same: (KEYS["contrastive_gradient"](z, same)[0], 0.5), "derivative with respect to tau"),
    ],
    "decide": [
        (queries_against_fewer, "for the decisions, returns"),
        (decide_with(lambda f, n: abs(max(each_but_one(f, n)))), "for the threshold, returns"),
        (decide_with(lambda f, n: sorted(each_but_one(f, n))[-2]), "for the threshold, returns"),
        (decide_with(lambda f, n: float(np.quantile(each_but_one(f, n), 0.95))), "for the threshold"),
        (decide_with(lambda f, n: float(np.mean(each_but_one(f, n)) + 1)), "for the threshold"),
        (decide_with(lambda f, n: max(f(n[:i] + n[i:], n[i]) for i in range(len(n)))), "contains it"),
        (
            decide_with(lambda f, n: max(f([o for o in n if o is not x], x) for x in n)),
            "copy at another place",
        ),
        (decide_with(lambda f, n: max(f(n, n.pop()) for _ in n[1:])), "in place"),
        (lambda f, n, q: (max(each_but_one(f, n)), [0]), r"decisions, returns shape \[1\], expected \[10\]"),
        (
            lambda f, n, q: (max(each_but_one(f, n)), [f(n[:2], one) > max(each_but_one(f, n)) for one in q]),
            "for the decisions, returns",
        ),
    ],
    "broken_properties": [
        (lambda f, q, s: set(), "does not report alone, order\n  with a score that mixes blocks"),
        (properties(alone=pairs_alone), "does not report alone\n  with a score that is higher in a batch of"),
        (properties(alone=filled_alone), "does not report alone\n  with a score that grows with the size"),
        (properties(order=lambda f, q, s: f(q.roll(1, 0), s.roll(1, 0))), "a right score fails .* `order`"),
        (properties(shots=lambda f, q, s: f(q, s.flip(2))), "a right score fails your test for `shots`"),
        (
            properties(shots=lambda f, q, s: f(q, torch.cat([s[:1].flip(1), s[1:]]))),
            "does not report shots\n  with a score that uses only the first normal image of the last",
        ),
        (
            properties(copies=lambda f, q, s: f(q, torch.cat([s[:, :1], s], 1))),
            "reports copies, which this score does not break\n  with a score that averages",
        ),
        (properties(scale=lambda f, q, s: f(q + 3, s + 3)), "reports scale, which"),
        (properties(scale=lambda f, q, s: f(q * 2, s * 3)), "reports scale, which"),
        (properties(scale=lambda f, q, s: f(q.mul_(3), s.mul_(3))), "in place"),
        (
            properties(alone=lambda f, q, s: torch.stack([f(*one) for one in zip(q, s, strict=True)])),
            "keep the axis",
        ),
        (lambda f, q, s: ["Alone"], "'Alone', which is no name of the table"),
        (lambda f, q, s: {"alone": True}, "return a set of names"),
    ],
    "ap_with_ties": [
        (lambda y, s: KEYS["ap_with_ties"](y, s.clip(0, 1)), "for the worst order, returns"),
        (lambda y, s: KEYS["ap_with_ties"](y, abs(s)), "for the worst order, returns"),
        (lambda y, s: KEYS["ap_with_ties"](y, s.astype(np.float16)), "only close"),
        (lambda y, s: [listed(y, s - 0.1 * y), KEYS["ap_with_ties"](y, s)[1], 1.0], "worst order"),
        (lambda y, s: KEYS["ap_with_ties"](y, s)[::2], r"returns shape \[2\], expected \[3\]"),
        (ap_by_the_library, "calls average_precision_score"),
    ],
    "accumulated_gradient": [
        (graphs_kept, "can be differentiated again"),
        (in_parts(lambda n: n**0.5, joined), "returns .* expected .*values differ"),
        (in_parts(lambda n: n, lambda g: joined(g[::-1])), "returns .* expected .*values differ"),
        (in_parts(lambda n: n, lambda g: joined([one.t() if one.ndim else one for one in g])), "expected"),
        (in_parts(lambda n: n, lambda g: joined(g) / joined(g).norm()), "returns .* expected"),
        (in_parts(lambda n: n, joined, lambda part: len(part) < 2), "returns .* expected"),
        (in_parts(lambda n: n, joined, extra=lambda loss, part: loss(part)), "called 6 times for 3 parts"),
        (a_list_by_tee, "a list of all parts"),
        (losses_first, "The graphs of all parts are then in memory"),
        (lambda loss, parameters, parts: None, "is a `return` missing"),
    ],
}


@pytest.mark.parametrize(("name", "answer"), [(name, one) for name, some in RIGHT.items() for one in some])
def test_a_right_answer_in_any_style_passes(name, answer):
    exercises()[name](answer)


@pytest.mark.parametrize(
    ("name", "answer", "message"), [(n, *one) for n, some in WRONG.items() for one in some]
)
def test_another_wrong_answer_is_told_what_is_wrong(name, answer, message):
    with pytest.raises(CheckFailed, match=message):
        exercises()[name](answer)


LOSSES = {
    "two_channel_focal_loss": lambda c, m, g: KEYS["two_channel_focal_loss"](c.detach(), m, g),
    "dice_loss": lambda maps, masks: KEYS["dice_loss"](maps, masks).item(),
    "clip_loss": lambda pairs, temperature: KEYS["clip_loss"](pairs, temperature).item(),
    "one_class_loss": lambda maps, labels: KEYS["one_class_loss"](torch.tensor(maps.numpy()), labels),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_a_gradient_passes_with_a_remark(name, capsys):
    exercises()[name](LOSSES[name])
    assert "no gradient passes" in capsys.readouterr().out
    exercises()[name](KEYS[name])
    assert "no gradient" not in capsys.readouterr().out


def test_ap_taken_together_is_the_librarys():
    from inctrl_lite.metrics import average_precision

    exercise = exercises()["ap_with_ties"]
    for seed in range(exercise.number):
        labels, scores = exercise.cases(seed)
        assert exercise.solution(labels, scores)[1] == pytest.approx(average_precision(labels, scores))
