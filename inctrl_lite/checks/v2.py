"""Exercises of notebook 13: InCTRLv2."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator, remark_on_gradient
from inctrl_lite.losses import dice_loss as library_dice_loss
from inctrl_lite.losses import two_channel_focal_loss as library_focal_loss

# --- the semantic map --------------------------------------------------------------------------------


def anomalous_probability(patches: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """Patches [N, D] and prototypes [2, D] (normal, anomalous) -> probabilities [N] of "anomalous"."""
    cosines = F.normalize(patches, dim=-1) @ F.normalize(prototypes, dim=-1).T  # [N, 2]
    return (scale * cosines).softmax(-1)[:, 1]


def _patches(seed: int) -> tuple[Tensor, Tensor, float]:
    g = generator(seed)
    patches, prototypes = torch.randn(5 + seed, 7, generator=g), torch.randn(2, 7, generator=g)
    patches[0] = prototypes[1]  # a cosine of 1
    return patches, prototypes, (1.0, 5.0, 100.0, 3.0)[seed]


def _probability(
    length: Callable[[Tensor], Tensor] = lambda x: F.normalize(x, dim=-1),
    squash: Callable[[Tensor], Tensor] = lambda logits: logits.softmax(-1)[:, 1],
) -> Callable:
    def wrong(patches: Tensor, prototypes: Tensor, scale: float) -> Tensor:
        return squash(scale * (length(patches) @ length(prototypes).T))

    return wrong


check_anomalous_probability = Exercise(
    solution=anomalous_probability,
    cases=_patches,
    explain=lambda case, result, right: (
        f"returns shape {list(result.shape)}: one probability for each patch is [N] = {list(right.shape)}"
        if isinstance(result, Tensor) and result.shape != right.shape
        else None
    ),
    mistakes={
        'This is the probability of "normal". Row 1 of the prototypes is the anomalous one.': _probability(
            squash=lambda logits: logits.softmax(-1)[:, 0]
        ),
        "You use dot products. A cosine needs vectors of length 1.": _probability(length=lambda x: x),
        "The prototypes have length 1, the patches do not.": lambda p, t, s: (
            s * (p @ F.normalize(t, dim=-1).T)
        ).softmax(-1)[:, 1],
        "The patches have length 1, the prototypes do not.": lambda p, t, s: (
            s * (F.normalize(p, dim=-1) @ t.T)
        ).softmax(-1)[:, 1],
        "The softmax is over the two prototypes, for each patch. You take it over the patches.": _probability(
            squash=lambda logits: logits.softmax(0)[:, 1]
        ),
        "scale is not used. It multiplies the cosines.": lambda p, t, s: anomalous_probability(p, t, 1.0),
        "You divide by scale. It multiplies the cosines.": lambda p, t, s: anomalous_probability(p, t, 1 / s),
        "You use 100. Use the given scale.": lambda p, t, s: anomalous_probability(p, t, 100.0),
        "You look at the anomalous prototype alone. Compare it with the normal one.": _probability(
            squash=lambda logits: logits[:, 1].sigmoid()
        ),
        "This is the difference of the cosines. Turn it into a probability.": _probability(
            squash=lambda logits: logits[:, 1] - logits[:, 0]
        ),
        "exp of 100 is too large for a number of 32 bits: the result is nan. Use `softmax`, which is safe.": (
            _probability(squash=lambda logits: logits.exp()[:, 1] / logits.exp().sum(-1))
        ),
        "You average the two probabilities over the patches. Each patch keeps its own.": _probability(
            squash=lambda logits: logits.softmax(-1)[:, 1].mean()
        ),
        "You multiply the probability by scale, so that it can exceed 1. It multiplies the cosines, before "
        "the softmax.": lambda p, t, s: s * anomalous_probability(p, t, 1.0),
        "Each column has length 1, and not each patch and each prototype. D is the last axis.": _probability(
            length=lambda x: F.normalize(x, dim=0)
        ),
    },
)

# --- losses of maps ----------------------------------------------------------------------------------


def _maps(seed: int) -> tuple[Tensor, Tensor]:
    """Maps [B, H, W] and masks; the last mask is empty."""
    g = generator(seed)
    masks = torch.zeros(3, 6, 5 + seed, dtype=torch.bool)
    masks[0, 1:3, 1:4] = masks[1, 2:, :2] = True
    return torch.rand(3, 6, 5 + seed, generator=g) * 0.998 + 0.001, masks


def two_channel_focal_loss(channels: Tensor, masks: Tensor, gamma: float) -> Tensor:
    """Channels [B, 2, H, W] ("normal", "anomalous") and masks [B, H, W] -> the mean focal loss, a number."""
    p = torch.where(masks, channels[:, 1], channels[:, 0])  # of what the mask says, [B, H, W]
    return -((1 - p) ** gamma * p.log()).mean()


def _channels(seed: int) -> tuple[Tensor, Tensor, float]:
    maps, masks = _maps(seed)
    return torch.stack([1 - maps, maps], dim=1), masks, (2.0, 1.0, 3.0, 0.5)[seed]


def _focal(p: Callable[[Tensor, Tensor], Tensor], loss: Callable[[Tensor, float], Tensor]) -> Callable:
    return lambda channels, masks, gamma: loss(p(channels, masks), gamma)


def _truth(channels: Tensor, masks: Tensor) -> Tensor:
    return torch.where(masks, channels[:, 1], channels[:, 0])


def _focal_of_p(p: Tensor, gamma: float) -> Tensor:
    return -((1 - p) ** gamma * p.log()).mean()


check_two_channel_focal_loss = Exercise(
    solution=two_channel_focal_loss,
    library=lambda channels, masks, gamma: library_focal_loss(channels, masks, gamma),
    cases=_channels,
    remark=remark_on_gradient,
    mistakes={
        'The channels are exchanged: where the mask is set, the truth is "anomalous", channel 1.': _focal(
            lambda c, m: torch.where(m, c[:, 0], c[:, 1]), _focal_of_p
        ),
        "The minus is missing: logarithms of probabilities are negative.": _focal(
            _truth, lambda p, g: -_focal_of_p(p, g)
        ),
        "You take the sum over the pixels. Take the mean.": _focal(
            _truth, lambda p, g: -((1 - p) ** g * p.log()).sum()
        ),
        "You take the sum over the pixels of each image. Take the mean.": _focal(
            _truth, lambda p, g: -((1 - p) ** g * p.log()).sum((1, 2)).mean()
        ),
        "You take the mean over both channels. At each pixel only the channel of the truth counts.": (
            _focal(lambda c, m: c, _focal_of_p)
        ),
        "This is cross-entropy: the factor (1 - p) ** gamma is missing.": _focal(
            _truth, lambda p, g: -p.log().mean()
        ),
        "The factor is (1 - p) ** gamma, not p ** gamma: pixels that are right already should count "
        "little.": _focal(_truth, lambda p, g: -(p**g * p.log()).mean()),
        "You use gamma = 2. Use the given gamma.": _focal(_truth, lambda p, g: _focal_of_p(p, 2.0)),
        "You multiply by gamma. It is an exponent.": _focal(
            _truth, lambda p, g: -((1 - p) * g * p.log()).mean()
        ),
        'You look at the anomalous channel everywhere. Outside the mask the truth is "normal".': _focal(
            lambda c, m: c[:, 1], _focal_of_p
        ),
        "You use the pixels of the defects alone. The normal pixels teach as well.": lambda c, m, g: (
            _focal_of_p(c[:, 1][m], g)
        ),
        "You use the normal pixels alone.": lambda c, m, g: _focal_of_p(c[:, 0][~m], g),
        "You add the means of both kinds of pixels. Take one mean over all of them.": lambda c, m, g: (
            _focal_of_p(c[:, 1][m], g) + _focal_of_p(c[:, 0][~m], g)
        ),
        "You add up the losses of both channels. At each pixel one of them is the truth.": lambda c, m, g: (
            _focal_of_p(c[:, 0], g) + _focal_of_p(c[:, 1], g)
        ),
        "You divide by twice the number of pixels, because there are two channels. At each pixel one of them "
        "is the truth.": _focal(_truth, lambda p, g: _focal_of_p(p, g) / 2),
        "You average the means of both kinds of pixels, so that each kind counts the same. Take one mean "
        "over all pixels.": lambda c, m, g: (_focal_of_p(c[:, 1][m], g) + _focal_of_p(c[:, 0][~m], g)) / 2,
        "You add up the images. Take the mean over all of them.": _focal(
            _truth, lambda p, g: len(p) * _focal_of_p(p, g)
        ),
    },
)


def dice_loss(maps: Tensor, masks: Tensor) -> Tensor:
    """Maps [B, H, W] in [0, 1] and masks [B, H, W] -> the mean Dice loss of the images, a number."""
    overlap = (maps * masks).sum((1, 2))  # [B]
    total = maps.sum((1, 2)) + masks.sum((1, 2))  # [B]
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def _dice(
    numerator: Callable[[Tensor], Tensor] = lambda o: 2 * o + 1,
    denominator: Callable[[Tensor], Tensor] = lambda t: t + 1,
    axes: tuple[int, ...] = (1, 2),
    end: Callable[[Tensor], Tensor] = lambda d: (1 - d).mean(),
) -> Callable:
    def wrong(maps: Tensor, masks: Tensor) -> Tensor:
        overlap, total = (maps * masks).sum(axes), maps.sum(axes) + masks.sum(axes)
        return end(numerator(overlap) / denominator(total))

    return wrong


check_dice_loss = Exercise(
    solution=dice_loss,
    library=library_dice_loss,
    cases=_maps,
    remark=remark_on_gradient,
    mistakes={
        "This is the Dice coefficient. The loss is 1 minus it.": _dice(end=lambda d: d.mean()),
        "The factor 2 is missing: the overlap is counted in both sums of the denominator.": _dice(
            numerator=lambda o: o + 1
        ),
        "The 1 is missing in the numerator: an empty map on an empty mask should cost nothing.": _dice(
            numerator=lambda o: 2 * o
        ),
        "The 1 is missing in the denominator.": _dice(denominator=lambda t: t),
        "Both ones are missing.": _dice(numerator=lambda o: 2 * o, denominator=lambda t: t),
        "You sum over one axis only. Sum over height and width.": _dice(axes=(2,)),
        "The 1 is added once, outside of the factor: the numerator is 2 * overlap + 1.": _dice(
            numerator=lambda o: 2 * (o + 1)
        ),
        "You take all images together. Compute it for each image, then take the mean: otherwise a large "
        "defect hides a small one.": _dice(axes=(0, 1, 2)),
        "You add up the images. Take the mean.": _dice(end=lambda d: (1 - d).sum()),
        "You subtract the overlap from the denominator: that is intersection over union.": lambda p, m: (
            1 - ((p * m).sum((1, 2)) + 1) / (p.sum((1, 2)) + m.sum((1, 2)) - (p * m).sum((1, 2)) + 1)
        ).mean(),
        "You cut the map at 0.5 first. Use the probabilities: a cut has no gradient.": lambda p, m: dice_loss(
            (p > 0.5).float(), m
        ),
        "You use squares in the denominator. Here it is the sum of the values.": lambda p, m: (
            1 - (2 * (p * m).sum((1, 2)) + 1) / ((p**2).sum((1, 2)) + m.sum((1, 2)) + 1)
        ).mean(),
        "These are means over the pixels. Take sums: the ones are far too large here.": lambda p, m: (
            1 - (2 * (p * m).mean((1, 2)) + 1) / (p.mean((1, 2)) + m.float().mean((1, 2)) + 1)
        ).mean(),
        "You return one loss for each image. Take the mean.": _dice(end=lambda d: 1 - d),
        "You use the images with a defect alone. A map on an empty mask costs as well.": lambda p, m: (
            dice_loss(p[m.flatten(1).any(1)], m[m.flatten(1).any(1)])
        ),
        "Your loss of an image with an empty mask is 0. It is 0 only if the map is 0 everywhere.": (
            lambda p, m: dice_loss(p * m.flatten(1).any(1)[:, None, None], m)
        ),
        "You sum over one axis only. Sum over width and height.": _dice(axes=(1,)),
    },
)

# --- branches ----------------------------------------------------------------------------------------


def one_class_loss(maps: Tensor, labels: Tensor) -> Tensor:
    """Maps [B, H, W] of the one-class branch and labels [B] -> its Dice loss, 0 without normal images."""
    normal = maps[labels == 0]
    if not len(normal):
        return maps.new_zeros(())
    return dice_loss(normal, torch.zeros_like(normal))


def _of_normal(loss: Callable[[Tensor], Tensor]) -> Callable:
    """A wrong answer: another loss of the normal images' maps; 0 without any, as it should be."""
    return lambda maps, labels: loss(maps[labels == 0]) if (labels == 0).any() else maps.new_zeros(())


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    maps = torch.rand(4 + seed, 5, 6, generator=generator(seed))
    labels = torch.zeros(4 + seed)
    labels[1 : 3 + seed % 2] = 1
    labels[1:] = 1 if seed == 2 else labels[1:]  # a single normal image
    return maps, torch.ones(len(maps)) if seed == 3 else labels  # the last batch has no normal image


check_one_class_loss = Exercise(
    solution=one_class_loss,
    library=one_class_loss,
    cases=_batch,
    remark=remark_on_gradient,
    mistakes={
        "Without a normal image the mean of nothing is nan. Return a loss of 0 then.": lambda p, y: dice_loss(
            p[y == 0], torch.zeros_like(p[y == 0])
        ),
        "You use the ANOMALOUS images. This branch may see normal images only.": lambda p, y: dice_loss(
            p[y == 1], torch.zeros_like(p[y == 1])
        ),
        "One normal image is enough to learn from.": lambda p, y: (
            one_class_loss(p, y) if (y == 0).sum() > 1 else p.new_zeros(())
        ),
        "A normal image has an EMPTY mask, and anomalous images are not seen. Your masks are full.": (
            lambda p, y: dice_loss(p, torch.ones_like(p))
        ),
        'You use all images of the batch. An anomalous one would be called "nothing to see".': lambda p, y: (
            dice_loss(p, torch.zeros_like(p))
        ),
        "You set the maps of anomalous images to 0 and keep them in the mean.": lambda p, y: dice_loss(
            p * (y == 0)[:, None, None], torch.zeros_like(p)
        ),
        "A normal image has an EMPTY mask. Yours is full.": _of_normal(
            lambda p: dice_loss(p, torch.ones_like(p))
        ),
        "You call an image anomalous everywhere if its label is 1. This branch does not see such "
        "images.": lambda p, y: dice_loss(p, y[:, None, None].expand_as(p)),
        "This is the mean of the map. Use the Dice loss.": _of_normal(Tensor.mean),
        "You add up the images. Take the mean.": _of_normal(lambda p: len(p) * dice_loss(p, 0 * p)),
        "A batch that also has anomalous images is no reason for a loss of 0: its normal images count.": (
            lambda p, y: dice_loss(p, 0 * p) if not y.any() else p.new_zeros(())
        ),
        "You take the first images of the batch, as many as there are normal ones. The labels say which they "
        "are.": lambda p, y: one_class_loss(p, y.sort().values),
        "You use the first image alone. Take every normal image.": lambda p, y: dice_loss(
            p[:1], torch.zeros_like(p[:1])
        ),
    },
)


def pixel_map(residuals: Tensor, discriminative: Tensor, one_class: Tensor, beta: float) -> Tensor:
    """Residual map and the two semantic maps, each [B, N] -> InCTRLv2's pixel map [B, N]."""
    return (1 - beta) * (residuals + discriminative) / 2 + beta * (residuals + one_class) / 2


def _three(seed: int) -> tuple[Tensor, Tensor, Tensor, float]:
    g = generator(seed)
    maps = [torch.rand(2 + seed, 9, generator=g) for _ in range(3)]
    for one in maps:
        one[0, 0] = 1.0
    return maps[0], maps[1], maps[2], (0.75, 0.2, 0.9, 0.4)[seed]


check_pixel_map = Exercise(
    solution=pixel_map,
    cases=_three,
    mistakes={
        "beta is the weight of the ONE-CLASS branch. You exchanged the branches.": lambda r, d, o, b: (
            pixel_map(r, o, d, b)
        ),
        "The residual map is missing: each branch's map is the mean of the residual map and its semantic "
        "map.": lambda r, d, o, b: (1 - b) * d + b * o,
        "Each branch's map is a mean: divide by 2.": lambda r, d, o, b: (1 - b) * (r + d) + b * (r + o),
        "You use beta = 0.75. Use the given beta.": lambda r, d, o, b: pixel_map(r, d, o, 0.75),
        "beta is not used: you average the branches.": lambda r, d, o, b: pixel_map(r, d, o, 0.5),
        "You halve the semantic maps alone. The residual map is halved as well: (M + S) / 2.": (
            lambda r, d, o, b: r + (1 - b) * d / 2 + b * o / 2
        ),
        "You take the larger of the two branches. They are weighted with beta.": lambda r, d, o, b: (
            torch.maximum((r + d) / 2, (r + o) / 2)
        ),
        "You return the largest value. The map keeps every patch.": lambda r, d, o, b: pixel_map(
            r, d, o, b
        ).amax(-1),
        "The discriminative branch is missing, with the weight 1 - beta.": lambda r, d, o, b: b * (r + o) / 2,
        "The one-class branch is missing, with the weight beta.": lambda r, d, o, b: (1 - b) * (r + d) / 2,
        "You take the mean of three maps. The residual map counts half, the two others together half.": (
            lambda r, d, o, b: (r + (1 - b) * d + b * o) / 3
        ),
        "This is the map of the discriminative branch alone.": lambda r, d, o, b: (r + d) / 2,
        "This is the map of the one-class branch alone.": lambda r, d, o, b: (r + o) / 2,
        "The weights add up to 1: 1 - beta and beta.": lambda r, d, o, b: b * (r + d) / 2 + b * (r + o) / 2,
        "A sum is divided and weighted as a whole: put it in parentheses.": lambda r, d, o, b: (
            (1 - b) * r + d / 2 + b * r + o / 2
        ),
        "Only the one-class branch takes the residual map. Both do.": lambda r, d, o, b: (
            (1 - b) * d + b * (r + o) / 2
        ),
    },
)

# --- harder: the largest F1 of pixels ----------------------------------------------------------------


def largest_pixel_f1(masks: np.ndarray, maps: np.ndarray) -> float:
    """Masks and maps, each [B, H, W] -> the largest F1 that one threshold for all pixels can reach."""
    truth, values = masks.ravel().astype(bool), maps.ravel()
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(truth[order])
    chosen = np.arange(1, len(values) + 1)
    last = np.append(np.diff(values[order]) != 0, True)  # equal values lie on the same side of a threshold
    return float((2 * hits / (chosen + truth.sum()))[last].max())


def _pixels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ties, with defects first and last in an image; nearly all pixels are defects; no ties, fine steps."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((3, 12, 13 + seed), bool)
    masks[0, :5, :6] = masks[1, 9:, 5:] = True
    maps = np.round(rng.random(masks.shape) + 0.4 * masks, 1)
    maps[2] += 0.3  # false alarms in the image without a defect
    if seed == 1:  # within each group of equal values, the defects come last
        masks, maps = masks[::-1].copy(), np.round(2 * maps[::-1]) / 2
        masks[:2, :9] = False
    if seed == 2:  # found in full at the lowest value alone
        masks = rng.random(masks.shape) < 0.97
    if seed == 3:
        maps = 1 + 1e-4 * rng.random(masks.shape) + 4e-5 * masks
        maps[0, 0, 0], maps[2, 0, 0], maps[2, 0, 1] = 90.0, -90.0, 95.0  # the largest is a false alarm
    return masks, maps


def _f1(masks: np.ndarray, maps: np.ndarray, thresholds: np.ndarray, strict: bool = False) -> list[float]:
    truth = masks.astype(bool)
    found = [(maps > t if strict else maps >= t) for t in thresholds]
    return [2 * (f & truth).sum() / (f.sum() + truth.sum()) for f in found]


def _in_order(order: Callable[[np.ndarray, np.ndarray], np.ndarray], found: int = 1) -> Callable:
    """A wrong answer: F1 read off after every pixel, in an order of (truth, values)."""

    def wrong(masks: np.ndarray, maps: np.ndarray) -> float:
        truth, values = masks.ravel(), maps.ravel()
        hits = np.cumsum(truth[order(truth, values)])
        return float((2 * hits / (np.arange(found, maps.size + found) + truth.sum()))[1 - found :].max())

    return wrong


def _at_the_first(masks: np.ndarray, maps: np.ndarray) -> float:
    truth, values = masks.ravel(), maps.ravel()
    order = np.argsort(-values, kind="stable")
    first = np.append(True, np.diff(values[order]) != 0)
    hits = np.cumsum(truth[order])
    return float((2 * hits / (np.arange(1, maps.size + 1) + truth.sum()))[first].max())


def _at(thresholds: Callable[[np.ndarray], np.ndarray], strict: bool = False) -> Callable:
    """A wrong answer: the largest F1 at some thresholds only."""
    return lambda masks, maps: float(np.nanmax(_f1(masks, maps, thresholds(maps.ravel()), strict)))


check_largest_pixel_f1 = Exercise(
    solution=largest_pixel_f1,
    cases=_pixels,
    mistakes={
        "This is F1 at the threshold 0.5. Try every value of the map as a threshold.": lambda m, v: float(
            _f1(m, v, np.array([0.5]))[0]
        ),
        "Each image has a threshold of its own here. One threshold serves all images.": lambda m, v: float(
            np.mean([largest_pixel_f1(m[i], v[i]) if m[i].any() else 0.0 for i in range(len(m))])
        ),
        "Each image with a defect has a threshold of its own here. One threshold serves all images.": (
            lambda m, v: float(
                np.mean([largest_pixel_f1(*one) for one in zip(m, v, strict=True) if one[0].any()])
            )
        ),
        "This is intersection over union. F1 is 2 TP / (found + defect pixels).": lambda m, v: (
            largest_pixel_f1(m, v) / (2 - largest_pixel_f1(m, v))
        ),
        "You leave out the image without a defect. Its false alarms count.": lambda m, v: largest_pixel_f1(
            m[:2], v[:2]
        ),
        "Equal values lie on the same side of a threshold: you separate them.": _in_order(
            lambda truth, values: np.lexsort((~truth, -values))  # defects first among equal values
        ),
        "Equal values lie on the same side of a threshold: you separate them, in the order of the "
        "pixels.": _in_order(lambda truth, values: np.argsort(-values, kind="stable")),
        "Equal values lie on the same side of a threshold: you separate them, in the order that sorting "
        "happens to give.": _in_order(lambda truth, values: np.argsort(-values)),
        "Of equal values you read off F1 at the first pixel. They are all found at the same threshold, so "
        "read it off after the last.": _at_the_first,
        "Equal values lie on the same side of a threshold: you separate them, in the reverse order of the "
        "pixels.": _in_order(lambda truth, values: np.argsort(values, kind="stable")[::-1]),
        "You begin with the lowest value. A threshold that goes down meets the largest values "
        "first.": _in_order(lambda truth, values: np.argsort(values, kind="stable")),
        "With `>` the lowest threshold still leaves its own pixels out. All pixels may be found.": _at(
            np.unique, strict=True
        ),
        "A few thresholds, or rounded values, are not all of them: every different value of the map is "
        "one.": _at(lambda values: np.linspace(values.min(), values.max(), 20)),
        "Quantiles are not all thresholds: every value of the map is one.": _at(
            lambda values: np.quantile(values, np.linspace(0, 1, 200))
        ),
        "This is the smallest F1.": lambda m, v: float(min(_f1(m, v, np.unique(v)))),
        "This is the mean over the thresholds. Take the largest.": lambda m, v: float(
            np.mean(_f1(m, v, np.unique(v)))
        ),
        "This is the F1 of whole images. Count pixels.": lambda m, v: largest_pixel_f1(
            m.any((1, 2))[:, None, None], v.max((1, 2))[:, None, None]
        ),
        "The factor 2 is missing: F1 is 2 TP / (found + defect pixels).": lambda m, v: (
            largest_pixel_f1(m, v) / 2
        ),
    },
)
