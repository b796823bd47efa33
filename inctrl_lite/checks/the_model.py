"""Exercises of notebook 06: the model."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator

# --- the forward pass --------------------------------------------------------------------------------


def final_score(query, support, patch_map, text, adapter, eta, phi) -> Tensor:
    """Final scores [B] from embeddings, patch residual maps, text scores and the learned parts."""
    image = eta(adapter(support).mean(0) - adapter(query))
    holistic = phi(patch_map + image[:, None] + text[:, None])
    return (holistic + patch_map.amax(1)) / 2


def _features(seed: int) -> tuple[Tensor, ...]:
    g = generator(seed)
    images, shots, width, patches = 3 + seed, 2 + seed % 3, 6, 10
    query, support = torch.randn(images, width, generator=g), torch.randn(shots, width, generator=g)
    maps, text = torch.rand(images, patches, generator=g) / 2, torch.rand(images, generator=g)
    down, up = torch.randn(4, width, generator=g), torch.randn(width, 4, generator=g)
    return query, support, maps, text, down, up, torch.randn(width, generator=g)


def _parts(down: Tensor, up: Tensor, weights: Tensor) -> tuple[Callable, Callable, Callable]:
    """An adapter and two heads; each head takes one vector an image, as the real ones do."""

    def eta(residual: Tensor) -> Tensor:
        return (residual @ weights / 4).sigmoid()

    def phi(holistic_map: Tensor) -> Tensor:
        slopes = torch.linspace(0.2, 1.5, holistic_map.shape[1])
        return (holistic_map @ slopes / 4 - 2).sigmoid()

    return lambda x: ((x @ down.T).relu() @ up.T).relu(), eta, phi


def _assembled(answer: Callable, query, support, maps, text, down, up, weights) -> Tensor:
    return answer(query, support, maps, text, *_parts(down, up, weights))


def _image(q: Tensor, p: Tensor, psi: Callable, eta: Callable) -> Tensor:
    return eta(psi(p).mean(0) - psi(q))


def _fused(combine: Callable) -> Callable:
    """A forward pass with another holistic map: combine(map, image [B, 1], text [B, 1])."""

    def wrong(q, p, maps, text, psi, eta, phi):
        holistic = phi(combine(maps, _image(q, p, psi, eta)[:, None], text[:, None]))
        return (holistic + maps.amax(1)) / 2

    return wrong


def _ended(combine: Callable) -> Callable:
    """A forward pass with another end: combine(holistic, map, holistic map)."""

    def wrong(q, p, maps, text, psi, eta, phi):
        holistic_map = maps + _image(q, p, psi, eta)[:, None] + text[:, None]
        return combine(phi(holistic_map), maps, holistic_map)

    return wrong


def _begun(residual: Callable) -> Callable:
    """A forward pass with another image residual: residual(psi, query, support)."""

    def wrong(q, p, maps, text, psi, eta, phi):
        holistic = phi(maps + eta(residual(psi, q, p))[:, None] + text[:, None])
        return (holistic + maps.amax(1)) / 2

    return wrong


def _at_the_largest(maps: Tensor, image: Tensor, text: Tensor) -> Tensor:
    return maps + (image + text) * (maps == maps.amax(1, keepdim=True))


def _text_at_the_largest(maps: Tensor, image: Tensor, text: Tensor) -> Tensor:
    return maps + image + text * (maps == maps.amax(1, keepdim=True))


def _without_an_axis(q, p, maps, text, psi, eta, phi):
    return (phi(maps + _image(q, p, psi, eta) + text) + maps.amax(1)) / 2


def _kept_axis(q, p, maps, text, psi, eta, phi):
    holistic = phi(maps + _image(q, p, psi, eta)[:, None] + text[:, None])
    return (holistic + maps.amax(1, keepdim=True)) / 2


def _cut(which: str) -> Callable:
    """A forward pass that expects [B, 1] of a head."""

    def wrong(q, p, maps, text, psi, eta, phi):
        image = _image(q, p, psi, eta)
        image = image[:, 0] if which == "eta" else image
        holistic = phi(maps + image[:, None] + text[:, None])
        return (holistic[:, 0] + maps.amax(1)) / 2

    return wrong


def _given(query, support, maps, text, *_) -> str:
    """What a student's function gets. The rest of a case makes the adapter and the heads."""
    shapes = {"query [B, D]": query, "support [K, D]": support, "patch_map [B, N]": maps, "text [B]": text}
    said = ", ".join(f"{name} = {list(value.shape)}" for name, value in shapes.items())
    return f"{said}; eta turns [B, D] into [B], phi turns [B, N] into [B]"


check_final_score = Exercise(
    solution=final_score,
    cases=_features,
    run=_assembled,
    inputs=_given,
    mistakes={
        "Scores [B] do not fit to maps [B, N]: PyTorch aligns the last axes, so it would "
        "match images with patches. image[:, None] and text[:, None] have the shape [B, "
        "1].": _without_an_axis,
        "[B] and [B, 1] together give a table [B, B]. Take the largest residual without keepdim, as [B].": (
            _kept_axis
        ),
        "eta and phi return one number for each image, [B] and not [B, 1]: there is no second axis to "
        "remove.": (_cut("eta")),
        "You average over axis 1, the D numbers. The K normal images are axis 0.": _begun(
            lambda psi, q, p: psi(p).mean(1) - psi(q)
        ),
        "You do not average over the normal images: support [K, D] does not fit to query [B, D]. Take the "
        "mean over axis 0.": _begun(lambda psi, q, p: psi(p) - psi(q)),
        "The factor 1/2 is missing: the code averages the holistic score and the largest patch "
        "residual.": _ended(lambda h, m, plus: h + m.amax(1)),
        "Only the patch term is halved. Both terms are, so put brackets around the sum.": _ended(
            lambda h, m, plus: h + m.amax(1) / 2
        ),
        "The largest patch residual is missing at the end: this is the holistic score alone.": _ended(
            lambda h, m, plus: h
        ),
        "The holistic score is missing at the end.": _ended(lambda h, m, plus: m.amax(1) / 2),
        "You apply a second sigmoid. phi ends with a sigmoid already.": _ended(
            lambda h, m, plus: (h.sigmoid() + m.amax(1)) / 2
        ),
        "You apply a second sigmoid to the final score. It lies in [0, 1] already.": _ended(
            lambda h, m, plus: ((h + m.amax(1)) / 2).sigmoid()
        ),
        "The patch term is the mean of the map. It must be the largest residual, because one anomalous "
        "patch is enough.": _ended(lambda h, m, plus: (h + m.mean(1)) / 2),
        "You take the maximum of the holistic map. s_p is the maximum of the patch residual map, before "
        "anything is added.": _ended(lambda h, m, plus: (h + plus.amax(1)) / 2),
        "You use the largest residual of the whole batch for every image. Take the maximum over the "
        "patches, axis 1.": (_ended(lambda h, m, plus: (h + m.max()) / 2)),
        "You multiply the two. They are averaged.": _ended(lambda h, m, plus: h * m.amax(1)),
        "The text score is missing in the holistic map.": _fused(lambda m, i, t: m + i),
        "The image score is missing in the holistic map.": _fused(lambda m, i, t: m + t),
        "phi gets the patch map alone. Add the image score and the text score to every position.": _fused(
            lambda m, i, t: m
        ),
        "You add image score and text score to the largest position only. They are added to all "
        "positions.": _fused(_at_the_largest),
        "You add the text score to the largest position only. It is added to all positions.": _fused(
            _text_at_the_largest
        ),
        "You average image score and text score before you add them. The formula adds both in full.": _fused(
            lambda m, i, t: m + (i + t) / 2
        ),
        "You average the three terms. The formula adds them.": _fused(lambda m, i, t: (m + i + t) / 3),
        "You multiply the terms. They are added.": _fused(lambda m, i, t: m * i * t),
        "You apply a second sigmoid to the image score. eta ends with a sigmoid already.": _fused(
            lambda m, i, t: m + i.sigmoid() + t
        ),
        "You take the mean of the normal images before the adapter. Adapt first, then average.": _begun(
            lambda psi, q, p: psi(p.mean(0)) - psi(q)
        ),
        "The residual has the paper's sign. This eta was trained with prototype minus query.": _begun(
            lambda psi, q, p: psi(q) - psi(p).mean(0)
        ),
        "Nothing is adapted. Query and normal images pass through the adapter.": _begun(
            lambda psi, q, p: p.mean(0) - q
        ),
        "The query is not adapted.": _begun(lambda psi, q, p: psi(p).mean(0) - q),
        "eta gets the adapted query alone. It needs the difference to the prototype.": _begun(
            lambda psi, q, p: psi(q)
        ),
    },
)


# --- a test that tests -------------------------------------------------------------------------------


def is_batch_invariant(score, images: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether every image of a batch gets the score that it gets alone, up to rounding."""
    together = score(images)
    alone = torch.cat([score(images[i : i + 1]) for i in range(len(images))])
    return bool((together - alone).abs().max() <= tolerance)


def _sound(x: Tensor) -> Tensor:
    if x.ndim != 2:
        raise ValueError(f"images of shape {list(x.shape)}: keep the batch axis, as in images[i : i + 1]")
    return (x * torch.linspace(-1, 1, x.shape[1])).sum(1).sigmoid()


def _pairs_swapped(x: Tensor) -> Tensor:
    scores = _sound(x)
    even = len(scores) // 2 * 2
    return torch.cat([scores[:even].unflatten(0, (-1, 2)).flip(1).flatten(), scores[even:]])


def _one_off(which: int) -> Callable[[Tensor], Tensor]:
    """A model that is a little wrong for one image of a batch."""

    def score(x: Tensor) -> Tensor:
        wrong = torch.arange(len(x)) == (which if which >= 0 else len(x) + which)
        return _sound(x) + 2e-4 * wrong * (len(x) > 1)

    return score


def _earlier_ones_added(x: Tensor) -> Tensor:
    scores = _sound(x)
    return scores + (scores.cumsum(0) - scores) / 10


# what a test has to judge; rounding differs with the batch, and is no defect
MODELS: dict[str, Callable[[Tensor], Tensor]] = {
    "good": _sound,
    "rounding": lambda x: _sound(x) + 1e-7 * len(x),
    "batch mean": lambda x: _sound(x) - _sound(x).mean(),
    "neighbour": lambda x: _sound(x.roll(1, 0)),
    "pairs": _pairs_swapped,
    "size": lambda x: _sound(x) - 0.1 * len(x),
    "earlier": _earlier_ones_added,
    "second": _one_off(1),
    "third": _one_off(2),
    "large": lambda x: 50 + _sound(x) + 1e-3 * (len(x) > 1),
    "all a little": lambda x: _sound(x) + 6e-5 * (len(x) > 1),
    "last": _one_off(-1),
}


# (model, tolerance other than the default, verdict): the change of a model is known
WITH_TOLERANCE = {"loose tolerance": ("second", 1e-2), "strict tolerance": ("rounding", 1e-8)}


def _judged(answer: Callable, images: Tensor) -> dict:
    """The verdicts of a test on good and broken models, and which batches it looked at."""
    sizes = []

    def watched(model: Callable) -> Callable:
        def score(x: Tensor) -> Tensor:
            sizes.append(len(x))
            return model(x)

        return score

    verdicts = {name: answer(watched(model), images) for name, model in MODELS.items()}
    for name, (model, tolerance) in WITH_TOLERANCE.items():
        verdicts[name] = answer(watched(MODELS[model]), images, tolerance)
    return verdicts | {"scores a batch": max(sizes, default=0) > 1, "scores alone": 1 in sizes}


# what is wrong with each model, in words
TOLD = {
    "good": "is right. (It raises an error if the batch axis is lost.)",
    "rounding": "differs only by rounding",
    "batch mean": "subtracts the mean of the batch",
    "neighbour": "gives every image the score of its neighbour",
    "pairs": "exchanges the scores of images in pairs",
    "size": "depends on the number of images",
    "earlier": "adds a part of the scores of the images before",
    "second": "is wrong for one image, the second",
    "third": "is wrong for one image, the third",
    "large": "changes scores of about 50 by 0.001, with a tolerance of 0.0001: the change itself counts, "
    "and not its share of the score",
    "all a little": "changes every score by 0.00006, with a tolerance of 0.0001: no single change is larger",
    "last": "is wrong for one image, the last",
    "loose tolerance": "changes a score by 0.0002, with a tolerance of 0.01: use the argument `tolerance`",
    "strict tolerance": "changes scores by 1e-6, with a tolerance of 1e-8: use the argument `tolerance`",
}
ALONE = (
    "score each image alone, in a batch of ONE, images[i : i + 1]. In half a batch or in a shuffled batch it "
    "still has other images in the batch, and a score that depends on them can pass"
)
TOGETHER = "score the whole batch as well: without other images in the batch, no defect shows"


def _misjudged(case: tuple, result: dict, right: dict) -> str | None:
    """What a test did not look at, or which model it judges wrongly."""
    for seen, hint in (("scores a batch", TOGETHER), ("scores alone", ALONE)):
        if not result[seen]:
            return hint
    for name, told in TOLD.items():
        verdict = result[name]
        if not isinstance(verdict, bool | np.bool_ | int) and getattr(verdict, "shape", None) != ():
            return f"returns {verdict!r:.80}: one verdict, True or False, is expected"
        if bool(verdict) != right[name]:
            says = "True (no score changes)" if verdict else "False (some score changes)"
            return f"your test says {says} of a model that {told}"
    return None


def _alone(score: Callable, images: Tensor) -> Tensor:
    return torch.cat([score(image[None]) for image in images])


def _changes(score: Callable, images: Tensor) -> Tensor:
    return score(images) - _alone(score, images)


def _small(changes: Tensor, tolerance: float = 1e-4) -> bool:
    return bool(changes.abs().max() <= tolerance)


def _by(changes: Callable) -> Callable:
    """A test of `changes(score, images)` in place of the right changes."""
    return lambda score, x, tolerance=1e-4: _small(changes(score, x), tolerance)


def _halves(score: Callable, images: Tensor) -> Tensor:
    halves = images.split(len(images) // 2)
    return score(images) - torch.cat([score(half) for half in halves])


def _half(images: Tensor) -> Tensor:
    return images[: len(images) // 2]


check_is_batch_invariant = Exercise(
    solution=is_batch_invariant,
    cases=lambda seed: (torch.randn((8, 4, 12, 16)[seed], 5, generator=generator(seed)),),
    run=_judged,
    inputs=lambda images: f"images {list(images.shape)}, and {len(MODELS)} models, one after the other",
    explain=_misjudged,
    mistakes={
        "Your test ignores `tolerance`: compare the largest change with this argument.": (
            lambda score, x, tolerance=1e-4: is_batch_invariant(score, x)
        ),
        "You compare the first half with the whole batch, where it still has other images in the batch. "
        "Compare with each image alone.": _by(lambda score, x: _half(score(x)) - score(_half(x))),
        "You compare the scores of one half with those of the other half. These are other images. Compare "
        "the score of image i in the batch with its score alone.": _by(
            lambda score, x: _half(score(x)) - score(x[len(x) // 2 :])
        ),
        "Your test compares the batch with itself, so a defect that is the same every time passes. "
        "Compare with each image alone.": _by(lambda score, x: score(x) - score(x)),
        "Your test scores each image alone, twice. Without other images in the batch no defect shows: "
        "score the whole batch as well.": _by(lambda score, x: _alone(score, x) - _alone(score, x)),
        "Your test compares shapes. All the broken models return the right shape.": (
            lambda score, x, tolerance=1e-4: score(x).shape == _alone(score, x).shape
        ),
        "You compare only the first image, and in some broken models it is right. Compare all images.": _by(
            lambda score, x: score(x)[:1] - score(x[:1])
        ),
        "You compare only the last image. Compare all images.": _by(lambda score, x: _changes(score, x)[-1:]),
        "A decrease passes your test. Take the absolute value before the maximum.": (
            lambda score, x, tolerance=1e-4: bool(_changes(score, x).max() <= tolerance)
        ),
        "You compare the mean change, which is nearly 0 if one image of many is wrong. Take the maximum.": (
            lambda score, x, tolerance=1e-4: bool(_changes(score, x).abs().mean() <= tolerance)
        ),
        "`allclose` also allows 1e-5 of the value itself. Write rtol=0, so that only `tolerance` counts.": (
            lambda score, x, tolerance=1e-4: torch.allclose(score(x), _alone(score, x), atol=tolerance)
        ),
        "You add the changes. No SINGLE score may change by more than the tolerance: take the largest.": (
            lambda score, x, tolerance=1e-4: bool(_changes(score, x).abs().sum() <= tolerance)
        ),
        "You divide the changes by the scores. The tolerance belongs to the change itself.": (
            lambda score, x, tolerance=1e-4: bool(
                (_changes(score, x).abs() <= tolerance * _alone(score, x).abs()).all()
            )
        ),
        "You compare only the mean scores. Scores that changed places have the same mean.": (
            lambda score, x, tolerance=1e-4: bool(_changes(score, x).mean().abs() <= tolerance)
        ),
        "You compare sorted scores, so scores that changed places pass.": _by(
            lambda score, x: score(x).sort().values - _alone(score, x).sort().values
        ),
        "In a shuffled batch, an image still has the same other images in the batch, so a "
        "score that depends on the mean of the batch passes. Compare with each image "
        "alone.": _by(lambda score, x: score(x) - score(x.flip(0)).flip(0)),
        "Half a batch can be mixed up like a whole one. Compare with each image alone.": _by(_halves),
        "You ask for exact equality. Rounding depends on the size of a batch, so even a good model fails. "
        "Allow the tolerance.": lambda score, x, tolerance=1e-4: torch.equal(score(x), _alone(score, x)),
        "The verdict is the wrong way round: True means that other images in the batch do not matter.": (
            lambda score, x, tolerance=1e-4: not is_batch_invariant(score, x, tolerance)
        ),
        "You compare every score with every other score. Compare image i in the batch with image i "
        "alone.": _by(lambda score, x: score(x)[:, None] - _alone(score, x)[None, :]),
        "You return the size of the change. The verdict is expected: compare the change with the "
        "tolerance.": (lambda score, x, tolerance=1e-4: _changes(score, x).abs().max().item()),
        "You return one verdict for each image. Return one verdict, for the largest change.": (
            lambda score, x, tolerance=1e-4: _changes(score, x).abs() <= tolerance
        ),
        "You leave one image out at a time, so the others still have other images in the batch. Compare "
        "with each image alone.": _by(lambda score, x: score(x)[1:] - score(x[1:])),
    },
)


# --- the text term -----------------------------------------------------------------------------------


def text_term(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Text scores [B] of embeddings [B, D] and the two prototypes [2, D], normal and anomalous."""
    normalize = torch.nn.functional.normalize
    cosines = normalize(embeddings, dim=-1) @ normalize(prototypes, dim=-1).T  # [B, 2]
    return (100 * cosines).softmax(-1)[:, 1]


def _sentences(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    shared = torch.randn(9, generator=g)
    prototypes = (shared + 0.15 * torch.randn(2, 9, generator=g)) * torch.tensor([[0.5], [2.0]])
    return torch.randn(4 + seed, 9, generator=g) * 2, prototypes


def _cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    return F.normalize(embeddings, dim=-1) @ F.normalize(prototypes, dim=-1).T


check_text_term = Exercise(
    solution=text_term,
    cases=_sentences,
    tolerance=1e-4,
    mistakes={
        "The factor 100 is missing.": lambda e, p: _cosines(e, p).softmax(-1)[:, 1],
        "This is the probability of NORMAL. The anomalous prototype is the second one.": lambda e, p: (
            100 * _cosines(e, p)
        ).softmax(-1)[:, 0],
        "These are dot products. Normalise both sides.": lambda e, p: (100 * e @ p.T).softmax(-1)[:, 1],
        "The embeddings are not normalised.": lambda e, p: (100 * e @ F.normalize(p, dim=-1).T).softmax(-1)[
            :, 1
        ],
        "The prototypes are not normalised.": lambda e, p: (100 * F.normalize(e, dim=-1) @ p.T).softmax(-1)[
            :, 1
        ],
        "The softmax runs over the images. Compare the two cosines of one image.": lambda e, p: (
            100 * _cosines(e, p)
        ).softmax(0)[:, 1],
        "You return both probabilities [B, 2]. Return that of anomalous.": lambda e, p: (
            100 * _cosines(e, p)
        ).softmax(-1),
        "This is the difference of the cosines. The softmax is missing.": lambda e, p: (
            _cosines(e, p)[:, 1] - _cosines(e, p)[:, 0]
        ),
        "This is the sigmoid of ONE cosine. Both take part.": lambda e, p: (
            100 * _cosines(e, p)[:, 1]
        ).sigmoid(),
        "You divide by 100. Multiply the cosines by it.": lambda e, p: (_cosines(e, p) / 100).softmax(-1)[
            :, 1
        ],
    },
)


# --- harder: a batch of several categories -----------------------------------------------------------


def score_mixed_batch(query, tokens, support, support_tokens, real, prototypes, adapter, eta, phi) -> Tensor:
    """Final scores [B] of queries that have support sets and text prototypes of their own."""
    normalize = torch.nn.functional.normalize
    each = torch.einsum(
        "blnd,bklmd->blnkm", normalize(tokens, dim=-1), normalize(support_tokens, dim=-1)
    )  # cosines of the patches n of a query and the patches m of its normal images
    each = each.masked_fill(~real[:, None, None, :, None], -1)
    patch_map = ((1 - each.amax((-2, -1))) / 2).mean(1)
    adapted = adapter(support).masked_fill(~real[..., None], 0)
    image = eta(adapted.sum(1) / real.sum(1, keepdim=True) - adapter(query))
    cosines = torch.einsum("bd,btd->bt", normalize(query, dim=-1), normalize(prototypes, dim=-1))
    text = (100 * cosines).softmax(-1)[:, 1]
    holistic = phi(patch_map + image[:, None] + text[:, None])
    return (holistic + patch_map.amax(1)) / 2


def _mixed_case(seed: int) -> tuple[Tensor, ...]:
    """Several categories. The rest of a support set holds zeros, large numbers or nan."""
    g = generator(40 + seed)
    B, K, L, N, C, D = ((4, 3, 2, 5, 6, 7), (3, 3, 3, 4, 5, 6), (5, 2, 2, 6, 4, 8), (2, 4, 1, 7, 5, 6))[seed]
    shared = torch.randn(C, generator=g)
    tokens = torch.randn(B, L, N, C, generator=g) * 2 + shared
    support_tokens = torch.randn(B, K, L, N, C, generator=g) * 0.5 + shared
    tokens[0] = 0.3 * tokens[0] - 3 * shared  # no patch like it: all of its cosines are below 0
    support = torch.randn(B, K, D, generator=g)
    query = torch.randn(B, D, generator=g) * 3
    words = (torch.randn(B, 1, D, generator=g) + 0.1 * torch.randn(B, 2, D, generator=g)) * torch.tensor(
        [[0.5], [2.0]]
    )
    real = torch.rand(B, K, generator=g) < 0.5
    real[0] = True
    real[1] = torch.arange(K) == K - 1  # one image, in the last place
    real[torch.arange(B), torch.randint(K, (B,), generator=g)] = True
    filling = (0.0, 50.0, float("nan"), float("nan"))[seed]
    support[~real], support_tokens[~real] = filling, filling
    down, up = torch.randn(4, D, generator=g), torch.randn(D, 4, generator=g)
    return query, tokens, support, support_tokens, real, words, down, up, torch.randn(D, generator=g)


def _mixed_run(answer: Callable, *case: Tensor) -> Tensor:
    *given, down, up, weights = case
    return answer(*given, *_parts(down, up, weights))


def _twice_the_queries(*case: Tensor) -> dict[str, tuple[Tensor, ...]]:
    *given, down, up, weights = case
    return {"queries": (*(torch.cat([one] * 2) for one in given), down, up, weights)}


def _mixed_words(case: tuple, result: Tensor, right: Tensor) -> str | None:
    if isinstance(result, Tensor) and result.shape == right.shape and result.isnan().any():
        return "returns nan: a place that is not real reaches the score. Its numbers may be nan as well"
    return None


def _mixed_given(*case: Tensor) -> str:
    names = ("query", "tokens", "support", "support_tokens", "real", "prototypes")
    said = ", ".join(f"{name} {list(one.shape)}" for name, one in zip(names, case, strict=False))
    return f"{said}; {case[4].sum(1).tolist()} real normal images"


def _mean_of_real(adapted: Tensor, real: Tensor) -> Tensor:
    return adapted.masked_fill(~real[..., None], 0).sum(1) / real.sum(1, keepdim=True)


def _largest_cosine(each: Tensor, real: Tensor) -> Tensor:
    return each.masked_fill(~real[:, None, None, :, None], -1).amax((-2, -1))


def _text_of_pair(cosines: Tensor) -> Tensor:
    return (100 * cosines).softmax(-1)[:, 1]


def _mixed(
    prototype: Callable = lambda adapter, support, real: _mean_of_real(adapter(support), real),
    nearest: Callable = _largest_cosine,
    stages: Callable = lambda maps: maps.mean(1),
    words: Callable = lambda prototypes: prototypes,
    text: Callable = _text_of_pair,
    residual: Callable = lambda prototype, adapted: prototype - adapted,
    end: Callable = lambda holistic, maps: (holistic + maps.amax(1)) / 2,
    length: Callable = lambda x: F.normalize(x, dim=-1),
    swap: Callable = lambda tokens: tokens,
    seen: Callable = lambda real: real,
) -> Callable:
    """A forward pass with one part that differs."""

    def wrong(query, tokens, support, support_tokens, real, prototypes, adapter, eta, phi):
        real = seen(real)
        each = torch.einsum("blnd,bklmd->blnkm", length(tokens), length(swap(support_tokens)))
        maps = stages((1 - nearest(each, real)) / 2)
        image = eta(residual(prototype(adapter, support, real), adapter(query)))
        t = text(
            torch.einsum("bd,btd->bt", F.normalize(query, dim=-1), F.normalize(words(prototypes), dim=-1))
        )
        return end(phi(maps + image[:, None] + t[:, None]), maps)

    return wrong


def _all_supports(query, tokens, support, support_tokens, real, prototypes, adapter, eta, phi):
    """Every query is compared with the normal images of the whole batch."""
    among = torch.einsum(
        "blnd,klmd->blnkm", F.normalize(tokens, dim=-1), F.normalize(support_tokens[real], dim=-1)
    )
    maps = ((1 - among.amax((-2, -1))) / 2).mean(1)
    image = eta(adapter(support[real]).mean(0) - adapter(query))
    cosines = torch.einsum("bd,btd->bt", F.normalize(query, dim=-1), F.normalize(prototypes, dim=-1))
    return (phi(maps + image[:, None] + _text_of_pair(cosines)[:, None]) + maps.amax(1)) / 2


check_score_mixed_batch = Exercise(
    solution=score_mixed_batch,
    cases=_mixed_case,
    run=_mixed_run,
    inputs=_mixed_given,
    explain=_mixed_words,
    larger=_twice_the_queries,
    mistakes={
        "You take the mean over all K places. The places that are not real hold no images.": _mixed(
            prototype=lambda adapter, support, real: adapter(support).mean(1)
        ),
        "You set the other places to 0 and then divide by K. Divide by the number of real images of each "
        "query.": _mixed(
            prototype=lambda adapter, support, real: adapter(support).masked_fill(~real[..., None], 0).mean(1)
        ),
        "You multiply by the mask. The other places may hold nan, and nan times 0 is nan: choose the "
        "values instead.": _mixed(
            prototype=lambda adapter, support, real: (
                (adapter(support) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
            )
        ),
        "The sum over the normal images is not divided: take their mean.": _mixed(
            prototype=lambda adapter, support, real: adapter(support).masked_fill(~real[..., None], 0).sum(1)
        ),
        "You divide by the mean number of real images of the batch. Each query has its own number.": _mixed(
            prototype=lambda adapter, support, real: (
                adapter(support).masked_fill(~real[..., None], 0).sum(1) / real.sum(1).float().mean()
            )
        ),
        "You take the mean before the adapter. Adapt every normal image, then average.": _mixed(
            prototype=lambda adapter, support, real: adapter(_mean_of_real(support, real))
        ),
        "The residual has the paper's sign. This eta was trained with prototype minus query.": _mixed(
            residual=lambda prototype, adapted: adapted - prototype
        ),
        "The image residual is right, but the patches are also compared with places that are not real.": (
            _mixed(nearest=lambda each, real: each.amax((-2, -1)))
        ),
        "A place that is not real gets the cosine 0. A real cosine can be below 0, and then the place wins. "
        "Use a number that no cosine falls below.": _mixed(
            nearest=lambda each, real: each.masked_fill(~real[:, None, None, :, None], 0).amax((-2, -1))
        ),
        "You take the mean over the normal images of the largest cosines. The nearest patch of all the real "
        "images counts.": _mixed(
            nearest=lambda each, real: (
                each.amax(-1).masked_fill(~real[:, None, None], 0).sum(-1) / real.sum(1)[:, None, None]
            )
        ),
        "You compare a patch with the patch at the same position only. Search all positions.": _mixed(
            nearest=lambda each, real: (
                each.diagonal(dim1=2, dim2=4).transpose(-1, -2).masked_fill(~real[:, None, None], -1).amax(-1)
            )
        ),
        "You take the largest residual of the stages. The map is the mean over the stages.": _mixed(
            stages=lambda maps: maps.amax(1)
        ),
        "These are dot products of patch tokens. Bring them to length 1 first.": _mixed(length=lambda x: x),
        "Every query is compared with the normal images of the whole batch. Each has its own.": _all_supports,
        "Every query gets the support set of its neighbour in the batch.": _mixed(
            prototype=lambda adapter, support, real: _mean_of_real(adapter(support), real).roll(1, 0)
        ),
        "All queries get the text prototypes of the first one. Each has its own.": _mixed(
            words=lambda prototypes: prototypes[:1].expand_as(prototypes)
        ),
        "You average the text prototypes over the batch. Each query has its own.": _mixed(
            words=lambda prototypes: prototypes.mean(0, keepdim=True).expand_as(prototypes)
        ),
        "This is the probability of NORMAL. The anomalous prototype is the second one.": _mixed(
            text=lambda cosines: (100 * cosines).softmax(-1)[:, 0]
        ),
        "The softmax runs over the queries. Compare the two cosines of one query.": _mixed(
            text=lambda cosines: (100 * cosines).softmax(0)[:, 1]
        ),
        "The factor 100 of the text score is missing.": _mixed(
            text=lambda cosines: cosines.softmax(-1)[:, 1]
        ),
        "You use the first places. The real images can be in any places: use the mask.": _mixed(
            seen=lambda real: torch.arange(real.shape[1]) < real.sum(1, keepdim=True)
        ),
        "The mask is the wrong way round: True marks a real image.": _mixed(seen=lambda real: ~real),
        "You use the places that are real for every query. Each query has its own row of the mask.": _mixed(
            seen=lambda real: real.all(0).expand_as(real)
        ),
        "The largest patch residual is missing at the end.": _mixed(end=lambda holistic, maps: holistic),
        "The factor 1/2 is missing at the end.": _mixed(end=lambda holistic, maps: holistic + maps.amax(1)),
        "The patch term is the mean of the map. It is the largest residual.": _mixed(
            end=lambda holistic, maps: (holistic + maps.mean(1)) / 2
        ),
    },
)
