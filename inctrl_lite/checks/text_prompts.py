"""Exercises of notebook 03: text prompts."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator


def build_prototypes(normal: Tensor, anomalous: Tensor) -> Tensor:
    """Prototypes [2, D], normal first, from the sentences' embeddings [P, D] of either kind."""

    def prototype(embeddings: Tensor) -> Tensor:
        return F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1)

    return torch.stack([prototype(normal), prototype(anomalous)])


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _sentences(seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings of very different lengths, so that a missing normalisation changes the result."""
    g = generator(seed)

    def embeddings(count: int) -> Tensor:
        return (0.1 + 5 * torch.rand(count, 1, generator=g)) * torch.randn(count, 6, generator=g)

    return embeddings(7 + seed), embeddings(4 + seed % 2)


def _all_together(normal: Tensor, anomalous: Tensor) -> Tensor:
    mean = _unit(_unit(torch.cat([normal, anomalous])).mean(0))
    return torch.stack([mean, mean])


def _pairs(normal: Tensor, anomalous: Tensor) -> Tensor:
    """As many normal sentences as anomalous ones; the others are lost."""
    count = min(len(normal), len(anomalous))
    return build_prototypes(normal[:count], anomalous[:count])


def _centred(normal: Tensor, anomalous: Tensor) -> Tensor:
    middle = _unit(torch.cat([normal, anomalous])).mean(0)
    return torch.stack([_unit(_unit(x).mean(0) - middle) for x in (normal, anomalous)])


def _wrong_axis(normal: Tensor, anomalous: Tensor) -> Tensor:
    return torch.stack([_unit(F.normalize(x, dim=0).mean(0)) for x in (normal, anomalous)])


check_build_prototypes = Exercise(
    solution=build_prototypes,
    cases=_sentences,
    mistakes={
        "Long embeddings count more in your mean. Give every sentence unit length before the mean.": (
            lambda n, a: torch.stack([_unit(x.mean(0)) for x in (n, a)])
        ),
        "A mean of unit vectors is shorter than 1. Give it unit length after the mean as well.": (
            lambda n, a: torch.stack([_unit(x).mean(0) for x in (n, a)])
        ),
        "Nothing is normalised. Give each embedding unit length before the mean, and the mean unit length "
        "after it.": lambda n, a: torch.stack([x.mean(0) for x in (n, a)]),
        "Both rows are the mean of all sentences. Each kind of sentence has its own "
        "prototype.": _all_together,
        "The rows are exchanged: the normal prototype comes first.": lambda n, a: build_prototypes(a, n),
        "You normalise along the sentences. Each sentence needs unit length along its last axis.": (
            _wrong_axis
        ),
        "You average the D numbers of each sentence. A prototype is the mean over the sentences (axis 0).": (
            lambda n, a: [_unit(_unit(x).mean(1)) for x in (n, a)]
        ),
        "The prototypes are in the columns: you return [D, 2], but [2, D] is expected.": lambda n, a: (
            build_prototypes(n, a).T
        ),
        "You join the two vectors into one long vector. `torch.stack` makes [2, D] of them.": lambda n, a: (
            build_prototypes(n, a).flatten()
        ),
        "You drop the normal sentences that have no anomalous partner. There may be more sentences of one "
        "kind.": (_pairs),
        "You subtract the mean of all sentences first. That may be a good idea, but it is not this "
        "method.": _centred,
    },
)


def score_by_text(query: Tensor, prototypes: Tensor) -> Tensor:
    """Text scores [B] of global embeddings [B, D], against prototypes [2, D] (normal, anomalous)."""
    cosines = F.normalize(query, dim=-1) @ F.normalize(prototypes, dim=-1).T
    return (100 * cosines).softmax(-1)[:, 1]


def _near_pair(g: torch.Generator, width: int, apart: float) -> Tensor:
    """Two unit vectors that lie as close to each other as real prototypes do."""
    first = torch.randn(width, generator=g)
    return _unit(torch.stack([first, first + apart * torch.randn(width, generator=g)]))


def _queries(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    query = (0.5 + torch.rand(3 + seed, 1, generator=g)) * torch.randn(3 + seed, 8, generator=g)
    return query, _near_pair(g, 8, 0.03)


def _cosines(query: Tensor, prototypes: Tensor) -> Tensor:
    return _unit(query) @ _unit(prototypes).T


check_score_by_text = Exercise(
    solution=score_by_text,
    cases=_queries,
    mistakes={
        "The factor 100 is missing: multiply the cosines by 100 before the softmax.": lambda q, p: _cosines(
            q, p
        ).softmax(-1)[:, 1],
        "You divide by 100. Here it is a factor: 100 times the cosines.": lambda q, p: (
            _cosines(q, p) / 100
        ).softmax(-1)[:, 1],
        "This is the probability of normal. Column 0 is normal, column 1 is anomalous.": lambda q, p: (
            1 - score_by_text(q, p)
        ),
        "You return both columns. The score is column 1 alone.": lambda q, p: (100 * _cosines(q, p)).softmax(
            -1
        ),
        "This is a sigmoid of one cosine. The score needs both: anomalous compared with "
        "normal.": lambda q, p: (100 * _cosines(q, p)[:, 1]).sigmoid(),
        "This is a sigmoid of one cosine, without the factor 100. The score needs both cosines, times "
        "100.": lambda q, p: _cosines(q, p)[:, 1].sigmoid(),
        "These are dot products, not cosines: normalise the global embeddings.": lambda q, p: (
            100 * q @ p.T
        ).softmax(-1)[:, 1],
        "The softmax runs over the images. It belongs to the two columns of each image (dim=-1).": (
            lambda q, p: (100 * _cosines(q, p)).softmax(0)[:, 1]
        ),
        "This is the difference of the cosines. A softmax turns it into a score between 0 and "
        "1.": lambda q, p: _cosines(q, p)[:, 1] - _cosines(q, p)[:, 0],
        "This is the cosine to the anomalous prototype alone, which is high for nearly every image.": (
            lambda q, p: _cosines(q, p)[:, 1]
        ),
        "This is a decision (0 or 1), not a score. Return the probability of the softmax.": lambda q, p: (
            _cosines(q, p).argmax(-1).float()
        ),
        "The factor 100 comes too late: it belongs inside the softmax.": lambda q, p: (
            100 * _cosines(q, p).softmax(-1)[:, 1]
        ),
        "You normalise the batch as a whole. Give the embedding of each image unit length "
        "(dim=-1).": lambda q, p: (100 * (q / q.norm()) @ p.T).softmax(-1)[:, 1],
    },
)


def score_with_states(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    """Text scores [B] if only the states keep = [normal ones, anomalous ones] of [S, T, D] are used."""
    kept = normal[keep[0]].flatten(0, 1), anomalous[keep[1]].flatten(0, 1)
    return score_by_text(query, build_prototypes(*kept))


def _ensembles(seed: int) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    g = generator(seed)
    query, (first, second) = _queries(seed)[0], _near_pair(g, 8, 0.03)
    # sentences of one state lie close together, and have any length
    state = [v + 0.03 * torch.randn(count, 1, 8, generator=g) for v, count in ((first, 7), (second, 4))]
    noisy = [s + 0.03 * torch.randn(len(s), 5, 8, generator=g) for s in state]
    normal, anomalous = ((0.2 + 2 * torch.rand(*n.shape[:2], 1, generator=g)) * n for n in noisy)
    keep = ([[0, 2, 3], [1, 3]], [[1], [0, 2]], [[0, 1, 3], [0]], [[1, 2], [1, 2, 3]])[seed]
    return query, normal, anomalous, keep


def _score(query: Tensor, normal: Tensor, anomalous: Tensor) -> Tensor:
    return score_by_text(query, build_prototypes(normal, anomalous))


def _dropped(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    others = [
        [s for s in range(len(e)) if s not in k] for e, k in zip((normal, anomalous), keep, strict=True)
    ]
    return score_with_states(query, normal, anomalous, others)


def _templates(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    return _score(query, normal[:, keep[0]].flatten(0, 1), anomalous[:, keep[1]].flatten(0, 1))


def _state_by_state(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    means = [_unit(_unit(e[k]).mean(1)) for e, k in zip((normal, anomalous), keep, strict=True)]
    return score_by_text(query, torch.stack([_unit(m.mean(0)) for m in means]))


def _mean_of_scores(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    pairs = [score_with_states(query, normal, anomalous, [[i], [j]]) for i in keep[0] for j in keep[1]]
    return torch.stack(pairs).mean(0)


def _mean_over(axis: int):
    """Raw means over the templates or the states first, then prototypes of the means."""

    def wrong(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
        return _score(query, normal[keep[0]].mean(axis), anomalous[keep[1]].mean(axis))

    return wrong


def _unit_means_over_states(
    query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]
) -> Tensor:
    return _score(query, _unit(normal[keep[0]]).mean(0), _unit(anomalous[keep[1]]).mean(0))


def _first_states(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    return _score(query, normal[: len(keep[0])].flatten(0, 1), anomalous[: len(keep[1])].flatten(0, 1))


def _raw(query: Tensor, normal: Tensor, anomalous: Tensor, keep: list[list[int]]) -> Tensor:
    means = [e[k].flatten(0, 1).mean(0) for e, k in zip((normal, anomalous), keep, strict=True)]
    return score_by_text(query, torch.stack(means))


check_score_with_states = Exercise(
    solution=score_with_states,
    cases=_ensembles,
    mistakes={
        "`keep` changes nothing in your answer: all states are still used.": lambda q, n, a, keep: _score(
            q, n.flatten(0, 1), a.flatten(0, 1)
        ),
        "You drop the states in `keep`. They are the ones to keep.": _dropped,
        "You select templates (axis 1). States are axis 0.": _templates,
        "You never select among the anomalous states. `keep` has one list for each "
        "kind.": lambda q, n, a, keep: _score(q, n[keep[0]].flatten(0, 1), a.flatten(0, 1)),
        "You never select among the normal states. `keep` has one list for each "
        "kind.": lambda q, n, a, keep: _score(q, n.flatten(0, 1), a[keep[1]].flatten(0, 1)),
        "The two lists are exchanged: keep[0] is for the normal states.": lambda q, n, a, keep: (
            score_with_states(q, n, a, keep[::-1])
        ),
        "You average the prototypes of single states. Take the mean over all kept sentences at once.": (
            _state_by_state
        ),
        "You average scores. Average the embeddings of the sentences into prototypes first, then score "
        "once.": (_mean_of_scores),
        "You average the templates of a state before the sentences have unit length, so that long "
        "embeddings count more. Give all kept sentences to build_prototypes: use .flatten(0, 1) and no "
        "mean.": _mean_over(1),
        "You average over the states of each template before the sentences have unit "
        "length. Give all kept sentences to build_prototypes: use .flatten(0, 1) and no "
        "mean.": _mean_over(0),
        "You average over the states, and build_prototypes normalises these means again. Give it all kept "
        "sentences: use .flatten(0, 1).": _unit_means_over_states,
        "You take the first states, as many as `keep` has. Take those that `keep` names.": _first_states,
        "The sentences do not get unit length before the mean: use build_prototypes.": _raw,
        "Normal and anomalous are exchanged: build_prototypes takes the normal sentences first.": (
            lambda q, n, a, keep: 1 - score_with_states(q, n, a, keep)
        ),
        "You use only the first template. Keep all T sentences of a state.": lambda q, n, a, keep: _score(
            q, n[keep[0]][:, 0], a[keep[1]][:, 0]
        ),
    },
)


# --- several defects ----------------------------------------------------------------------------------


def score_by_defects(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores [B] against one normal kind and J defects, and the number [B] of the defect that fits best."""
    pairs = torch.stack([build_prototypes(normal, defect) for defect in defects])  # [J, 2, D]
    logits = 100 * F.normalize(query, dim=-1) @ pairs.transpose(1, 2)  # [J, B, 2]
    anomalous = logits[..., 1].logsumexp(0) - torch.tensor(float(len(defects))).log()
    return (anomalous - logits[0, :, 0]).sigmoid(), logits[..., 1].argmax(0)


def _several(seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Prototypes and images that lie close together, so that e^(100 cos) does not fit into float32.

    The last image is opposite to all of them, so that e^(100 cos - 100) is 0 in float32. In the last case the
    normal sentences are far from all defects, and some images are certain.
    """
    g = generator(seed)
    base = _unit(torch.randn(9, generator=g))

    def near(count: int) -> Tensor:
        centre = base + 0.04 * torch.randn(9, generator=g)
        sentences = centre + 0.03 * torch.randn(count, 9, generator=g)
        return (0.2 + 2 * torch.rand(count, 1, generator=g)) * sentences

    normal, defects = (
        near(6) * (-1 if seed == 3 else 1),
        [near(count) for count in ((4, 2, 7), (5,), (3, 3, 1, 8), (2, 6))[seed]],
    )
    query = base + 0.08 * torch.randn(5 + seed, 9, generator=g)
    query[-1] *= -1
    return (0.3 + torch.rand(len(query), 1, generator=g)) * query, normal, defects


def _parts(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines with the normal prototype [B] and with those of the defects [B, J]."""
    prototypes = torch.stack([build_prototypes(normal, defect)[1] for defect in defects])
    return _unit(query) @ build_prototypes(normal, normal)[0], _unit(query) @ prototypes.T


def _scored(rule: Callable[[Tensor, Tensor], Tensor], named: Callable = lambda cosines: cosines.argmax(1)):
    """A wrong answer: `rule(100 cos with normal [B], 100 cos with the defects [B, J])`."""

    def wrong(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
        one, several = _parts(query, normal, defects)
        return rule(100 * one, 100 * several), named(several)

    return wrong


def _mean_weight(n: Tensor, a: Tensor) -> Tensor:
    """The right score."""
    return (a.logsumexp(1) - torch.tensor(float(a.shape[1])).log() - n).sigmoid()


def _of_weights(n: Tensor, a: Tensor) -> Tensor:
    return a.mean(1) / (n + a.mean(1))


def _one_prototype(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    named = score_by_defects(query, normal, defects)[1]
    return score_by_text(query, build_prototypes(normal, torch.cat(defects))), named


def _mean_prototype(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    prototypes = torch.stack([build_prototypes(normal, defect)[1] for defect in defects])
    named = score_by_defects(query, normal, defects)[1]
    return score_by_text(query, torch.stack([build_prototypes(normal, normal)[0], prototypes.mean(0)])), named


def _raw_sentences(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    prototypes = torch.stack([_unit(defect.mean(0)) for defect in defects])
    n, a = 100 * _unit(query) @ _unit(normal.mean(0)), 100 * _unit(query) @ prototypes.T
    return _mean_weight(n, a), a.argmax(1)


def _raw_query(query: Tensor, normal: Tensor, defects: list[Tensor]) -> tuple[Tensor, Tensor]:
    length = query.norm(dim=-1)
    n, a = _parts(query, normal, defects)
    return _mean_weight(100 * n * length, 100 * a * length[:, None]), a.argmax(1)


check_score_by_defects = Exercise(
    solution=score_by_defects,
    cases=_several,
    parts=("scores", "numbers of the defects"),
    inputs=lambda query, normal, defects: (
        f"{len(query)} images, {len(normal)} normal sentences and {[len(one) for one in defects]} sentences "
        f"of {len(defects)} defects"
    ),
    explain=lambda case, result, right: (
        "returns one value: two are expected, the scores [B] and the numbers of the defects [B]"
        if isinstance(result, Tensor) and result.ndim == 1
        else None
    ),
    mistakes={
        "e^(100 cos) does not fit into float32 when the cosine is near 1, and inf / inf is nan. Work with "
        "differences of the exponents, or with torch.logsumexp.": _scored(
            lambda n, a: a.exp().mean(1) / (n.exp() + a.exp().mean(1))
        ),
        "You subtract the same number for every image: 100, or the largest exponent of the batch. Where all "
        "cosines are small, every weight is then 0 in float32, and 0 / 0 is nan. Subtract the largest "
        "exponent of EACH image.": _scored(lambda n, a: _of_weights((n - 100).exp(), (a - 100).exp())),
        "You add the weights of the defects, so that a longer list of defects makes every image more "
        "anomalous. The defects share one half: average their weights.": _scored(
            lambda n, a: (a.logsumexp(1) - n).sigmoid()
        ),
        "You use only the defect that fits best. All of them count: average the weights e^(100 cos).": (
            _scored(lambda n, a: (a.amax(1) - n).sigmoid())
        ),
        "You average the cosines before the exponential. Average the weights e^(100 cos).": _scored(
            lambda n, a: (a.mean(1) - n).sigmoid()
        ),
        "You average the scores of single defects. Average the weights e^(100 cos) inside the formula.": (
            _scored(lambda n, a: (a - n[:, None]).sigmoid().mean(1))
        ),
        "You combine the scores of single defects as if the defects were independent. Here an anomalous "
        "image has exactly one of them.": _scored(lambda n, a: 1 - (1 - (a - n[:, None]).sigmoid()).prod(1)),
        "You make one prototype of all sentences. Each defect has its own prototype.": _one_prototype,
        "You average the prototypes of the defects. Each defect keeps its own prototype.": _mean_prototype,
        'This is the probability of "normal". Return that of "anomalous".': _scored(
            lambda n, a: 1 - _mean_weight(n, a)
        ),
        "The factor 100 is missing.": _scored(lambda n, a: _mean_weight(n / 100, a / 100)),
        "Give each sentence unit length before the mean: use build_prototypes.": _raw_sentences,
        "These are dot products, not cosines: the images have any length.": _raw_query,
        "The numbers begin at 1. Python counts the defects from 0.": _scored(
            _mean_weight, lambda cosines: cosines.argmax(1) + 1
        ),
        "You name the defect that fits worst.": _scored(_mean_weight, lambda cosines: cosines.argmin(1)),
        "The results are exchanged: first the scores, then the numbers.": lambda q, n, d: score_by_defects(
            q, n, d
        )[::-1],
        "The numbers of the defects are missing: return two tensors.": lambda q, n, d: score_by_defects(
            q, n, d
        )[0],
    },
)
