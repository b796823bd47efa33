"""Exercises of notebook 06: the model."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from inctrl_lite.checks.engine import Exercise, generator

# --- the forward pass --------------------------------------------------------------------------------


def final_score(query, prompt, patch_map, text, adapter, eta, phi) -> Tensor:
    """Final scores [B] from embeddings, patch residual maps, text scores and the learned parts."""
    image = eta(adapter(prompt).mean(0) - adapter(query))
    holistic = phi(patch_map + image[:, None] + text[:, None])
    return (holistic + patch_map.amax(1)) / 2


def _features(seed: int) -> tuple[Tensor, ...]:
    g = generator(seed)
    images, shots, width, patches = 3 + seed, 2 + seed % 3, 6, 10
    query, prompt = torch.randn(images, width, generator=g), torch.randn(shots, width, generator=g)
    maps, text = torch.rand(images, patches, generator=g) / 2, torch.rand(images, generator=g)
    down, up = torch.randn(4, width, generator=g), torch.randn(width, 4, generator=g)
    return query, prompt, maps, text, down, up, torch.randn(width, generator=g)


def _parts(down: Tensor, up: Tensor, weights: Tensor) -> tuple[Callable, Callable, Callable]:
    """An adapter and two heads; each head takes one vector an image, as the real ones do."""

    def eta(residual: Tensor) -> Tensor:
        return (residual @ weights / 4).sigmoid()

    def phi(holistic_map: Tensor) -> Tensor:
        slopes = torch.linspace(0.2, 1.5, holistic_map.shape[1])
        return (holistic_map @ slopes / 4 - 2).sigmoid()

    return lambda x: ((x @ down.T).relu() @ up.T).relu(), eta, phi


def _assembled(answer: Callable, query, prompt, maps, text, down, up, weights) -> Tensor:
    return answer(query, prompt, maps, text, *_parts(down, up, weights))


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
    """A forward pass with another image residual: residual(psi, query, prompt)."""

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


def _given(query, prompt, maps, text, *_) -> str:
    """What a student's function gets: the rest of a case makes the adapter and the heads."""
    shapes = {"query [B, D]": query, "prompt [K, D]": prompt, "patch_map [B, N]": maps, "text [B]": text}
    said = ", ".join(f"{name} = {list(value.shape)}" for name, value in shapes.items())
    return f"{said}; eta makes [B] of [B, D], phi makes [B] of [B, N]"


check_final_score = Exercise(
    solution=final_score,
    cases=_features,
    run=_assembled,
    inputs=_given,
    mistakes={
        "scores [B] do not fit beside maps [B, N]: PyTorch matches the *last* axes, images with patches. "
        "image[:, None] and text[:, None] are [B, 1]": _without_an_axis,
        "[B] and [B, 1] make a table [B, B]: take the largest residual without keepdim, as [B]": (_kept_axis),
        "eta and phi give one number an image, [B] and not [B, 1]: there is no second axis to take away": (
            _cut("eta")
        ),
        "the mean of the prompts runs over axis 1, the D numbers: the K prompts are axis 0": _begun(
            lambda psi, q, p: psi(p).mean(1) - psi(q)
        ),
        "the prompts are not averaged: prompt [K, D] does not fit beside query [B, D]. Take the mean over "
        "axis 0": _begun(lambda psi, q, p: psi(p) - psi(q)),
        "the 1/2 is missing: the code averages the holistic score and the largest patch residual": _ended(
            lambda h, m, plus: h + m.amax(1)
        ),
        "only the patch term is halved: both are, so put brackets around the sum": _ended(
            lambda h, m, plus: h + m.amax(1) / 2
        ),
        "the largest patch residual is missing at the end: this is the holistic score alone": _ended(
            lambda h, m, plus: h
        ),
        "the holistic score is missing at the end": _ended(lambda h, m, plus: m.amax(1) / 2),
        "a second sigmoid: phi ends with one already": _ended(
            lambda h, m, plus: (h.sigmoid() + m.amax(1)) / 2
        ),
        "a second sigmoid, over the final score: it is in [0, 1] already": _ended(
            lambda h, m, plus: ((h + m.amax(1)) / 2).sigmoid()
        ),
        "the patch term is the mean of the map: it is the largest residual, one odd patch is enough": _ended(
            lambda h, m, plus: (h + m.mean(1)) / 2
        ),
        "the largest is taken from the holistic map: s_p comes from the patch residual map, before anything "
        "is added": _ended(lambda h, m, plus: (h + plus.amax(1)) / 2),
        "the largest residual of the whole batch is used for every image: take it over the patches, axis 1": (
            _ended(lambda h, m, plus: (h + m.max()) / 2)
        ),
        "the two are multiplied: they are averaged": _ended(lambda h, m, plus: h * m.amax(1)),
        "the text score is missing in the holistic map": _fused(lambda m, i, t: m + i),
        "the image score is missing in the holistic map": _fused(lambda m, i, t: m + t),
        "phi sees the patch map alone: add the image and the text score to every position": _fused(
            lambda m, i, t: m
        ),
        "image and text score are added to the largest position only: they are added to all of them": _fused(
            _at_the_largest
        ),
        "the text score is added to the largest position only: it is added to all of them": _fused(
            _text_at_the_largest
        ),
        "image and text score are averaged before they are added: the formula adds both in full": _fused(
            lambda m, i, t: m + (i + t) / 2
        ),
        "the map is averaged over the terms: the formula adds them": _fused(lambda m, i, t: (m + i + t) / 3),
        "the terms are multiplied into the map: they are added": _fused(lambda m, i, t: m * i * t),
        "the image score takes a second sigmoid: eta ends with one already": _fused(
            lambda m, i, t: m + i.sigmoid() + t
        ),
        "the mean of the prompts is taken before the adapter: adapt first, then average": _begun(
            lambda psi, q, p: psi(p.mean(0)) - psi(q)
        ),
        "the residual's sign is the paper's: this eta was trained with prototype minus query": _begun(
            lambda psi, q, p: psi(q) - psi(p).mean(0)
        ),
        "nothing is adapted: query and prompts pass through the adapter": _begun(
            lambda psi, q, p: p.mean(0) - q
        ),
        "the query is not adapted": _begun(lambda psi, q, p: psi(p).mean(0) - q),
        "eta sees the adapted query alone: it needs the difference to the prototype": _begun(
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
        wrong = torch.arange(len(x)) == which % len(x)
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
    "last": _one_off(-1),
}


def _judged(answer: Callable, images: Tensor) -> dict:
    """The verdicts of a test on good and broken models, and which batches it looked at."""
    sizes = []

    def watched(model: Callable) -> Callable:
        def score(x: Tensor) -> Tensor:
            sizes.append(len(x))
            return model(x)

        return score

    verdicts = {name: answer(watched(model), images) for name, model in MODELS.items()}
    return verdicts | {"scores a batch": max(sizes, default=0) > 1, "scores alone": 1 in sizes}


# what is wrong with each model, in words
TOLD = {
    "good": "is right, and says so only if the batch axis is kept",
    "rounding": "differs by rounding alone",
    "batch mean": "subtracts the mean of the batch",
    "neighbour": "gives every image its neighbour's score",
    "pairs": "exchanges the scores of images two by two",
    "size": "depends on how many images there are",
    "earlier": "adds something of the images before",
    "second": "is wrong for one image, the second",
    "last": "is wrong for one image, the last",
}
ALONE = (
    "score each image alone, in a batch of ONE, images[i : i + 1]: in half a batch, or a shuffled one, it "
    "still has mates, and a score that depends on them can pass"
)
TOGETHER = "score the whole batch, too: without mates no defect shows"


def _misjudged(case: tuple, result: dict, right: dict) -> str | None:
    """What a test did not look at, or which model it judges wrongly."""
    for seen, hint in (("scores a batch", TOGETHER), ("scores alone", ALONE)):
        if not result[seen]:
            return hint
    for name, told in TOLD.items():
        verdict = result[name]
        if not isinstance(verdict, bool | np.bool_ | int) and getattr(verdict, "shape", None) != ():
            return f"returns {verdict!r:.80}: asked is one verdict, True or False"
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


def _halves(score: Callable, images: Tensor) -> bool:
    halves = images.split(len(images) // 2)
    return _small(score(images) - torch.cat([score(half) for half in halves]))


def _only_first(score: Callable, images: Tensor) -> bool:
    return _small(score(images)[:1] - score(images[:1]))


check_is_batch_invariant = Exercise(
    solution=is_batch_invariant,
    cases=lambda seed: (torch.randn((8, 4, 12, 16)[seed], 5, generator=generator(seed)),),
    run=_judged,
    inputs=lambda images: f"images {list(images.shape)}, and {len(MODELS)} models, one after the other",
    explain=_misjudged,
    mistakes={
        "only the first half is compared with the whole batch, and it still has mates: compare with each "
        "image alone": lambda score, x: _small(score(x)[: len(x) // 2] - score(x[: len(x) // 2])),
        "the scores of one half are compared with those of the other: these are other images. Compare image "
        "i in the batch with image i alone": lambda score, x: _small(
            score(x[: len(x) // 2]) - score(x[len(x) // 2 :])
        ),
        "your test compares the batch with itself: a defect that is the same every time passes. Compare with "
        "each image alone": lambda score, x: _small(score(x) - score(x)),
        "your test scores images alone, twice: no batch mates, no defect. Score the whole batch, too": (
            lambda score, x: _small(_alone(score, x) - _alone(score, x))
        ),
        "your test compares shapes: all the broken models have the right shape": lambda score, x: (
            score(x).shape == _alone(score, x).shape
        ),
        "only the first image is compared, and in some broken models just that one is right: take all": (
            _only_first
        ),
        "only the last image is compared: take all": lambda score, x: _small(_changes(score, x)[-1:]),
        "changes downwards pass: take the absolute value before the largest": lambda score, x: bool(
            _changes(score, x).max() <= 1e-4
        ),
        "the mean change is compared: one wrong image among many is nearly nothing. Take the largest": (
            lambda score, x: bool(_changes(score, x).abs().mean() <= 1e-4)
        ),
        "only the mean scores are compared: scores that changed places have the same mean": (
            lambda score, x: bool(_changes(score, x).mean().abs() <= 1e-4)
        ),
        "you compare the scores in sorted order: scores that changed places pass": lambda score, x: _small(
            score(x).sort().values - _alone(score, x).sort().values
        ),
        "shuffled, an image still has the same batch mates: whatever looks at the batch's mean passes. "
        "Compare with each image alone": lambda score, x: _small(score(x) - score(x.flip(0)).flip(0)),
        "half a batch can be mixed up like a whole one: compare with each image alone": _halves,
        "you ask for exact equality: rounding differs with the size of a batch, and even a good model fails. "
        "Allow the tolerance": lambda score, x: torch.equal(score(x), _alone(score, x)),
        "the verdict is the wrong way round: True means that batch mates do not matter": lambda score, x: (
            not is_batch_invariant(score, x)
        ),
        "every score is compared with every other's: compare image i in the batch with image i alone": (
            lambda score, x: _small(score(x)[:, None] - _alone(score, x)[None, :])
        ),
        "this is the size of the change: asked is the verdict, so compare it with the tolerance": (
            lambda score, x: _changes(score, x).abs().max().item()
        ),
        "these are the verdicts of all images: return one, for the largest change": lambda score, x: (
            _changes(score, x).abs() <= 1e-4
        ),
        "the image's neighbours in the batch are left out one at a time, the others stay: compare with each "
        "image alone": lambda score, x: _small(score(x)[1:] - score(x[1:])),
    },
)
