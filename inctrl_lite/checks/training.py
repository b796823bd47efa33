"""Exercises of notebook 07: training."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.checks.engine import Exercise, generator
from inctrl_lite.losses import focal_loss as library_focal_loss


def _scores(seed: int) -> tuple[Tensor, Tensor, float]:
    g = generator(seed)
    scores = 0.05 + 0.9 * torch.rand(5 + seed, generator=g)
    labels = (torch.arange(5 + seed) % 3 == 0).float()
    return scores, labels, (2.0, 0.0, 1.0, 3.5)[seed]


def _loss_and_gradient(answer, scores: Tensor, labels: Tensor, gamma: float):
    scores = scores.clone().requires_grad_()
    loss = answer(scores, labels, gamma)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None
    return loss, torch.autograd.grad(loss.sum(), scores)[0]


def focal_loss(scores: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean focal loss of scores [B] in (0, 1) against labels [B], 1 = anomalous."""
    p_of_truth = scores * labels + (1 - scores) * (1 - labels)
    return (-((1 - p_of_truth) ** gamma) * p_of_truth.log()).mean()


def _of_each(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return -((1 - p) ** gamma) * p.log()


def _weighted_by_the_right(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return (-(p**gamma) * p.log()).mean()


def _of_the_mean(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy(scores, labels)
    return (1 - (-cross_entropy).exp()) ** gamma * cross_entropy


def _weight_detached(scores: Tensor, labels: Tensor, gamma: float) -> Tensor:
    p = scores * labels + (1 - scores) * (1 - labels)
    return (-((1 - p.detach()) ** gamma) * p.log()).mean()


check_focal_loss = Exercise(
    solution=focal_loss,
    library=partial(library_focal_loss, double_sigmoid=False),
    cases=_scores,
    run=_loss_and_gradient,
    mistakes={
        "the loss is a plain number without a gradient, so nothing can be learned from it: stay with "
        "tensors, without .item(), .detach() or numpy": lambda s, y, gamma: focal_loss(s, y, gamma).item(),
        "the value is right, its gradient is not: the weight (1 - p_t) ** gamma depends on the scores too, "
        "so do not detach it": _weight_detached,
        "one loss for every image is what you return: take their mean": _of_each,
        "you add up the batch: take the mean, or twice the images are twice the step": (
            lambda s, y, gamma: _of_each(s, y, gamma).sum()
        ),
        "normal images are treated like anomalous ones: for label 0 the truth has probability 1 - score": (
            lambda s, y, gamma: focal_loss(s, torch.ones_like(y), gamma)
        ),
        "the labels are the wrong way round: 1 is anomalous, and a score is the probability of that": (
            lambda s, y, gamma: focal_loss(s, 1 - y, gamma)
        ),
        "the weight favours what is right already: it is (1 - p_t) ** gamma": _weighted_by_the_right,
        "a loss is large for mistakes: the minus sign before the logarithm is missing": (
            lambda s, y, gamma: -focal_loss(s, y, gamma)
        ),
        "one weight for the whole batch, made from its mean cross-entropy: each image has a weight of its "
        "own, so take the mean last (reduction='none' keeps the images apart)": _of_the_mean,
        "gamma changes nothing: this is plain cross-entropy, the weight is missing": (
            lambda s, y, gamma: focal_loss(s, y, 0.0)
        ),
        "gamma is always 2: use the argument": lambda s, y, gamma: focal_loss(s, y, 2.0),
        "these scores are probabilities already: no sigmoid here (you have built the double one, which comes "
        "next)": lambda s, y, gamma: focal_loss(s.sigmoid(), y, gamma),
    },
)


def loss_range(label: int, gamma: float) -> tuple[float, float]:
    """Smallest and largest focal loss of one image whose score takes a second sigmoid."""
    p = torch.sigmoid(torch.tensor([0.0, 1.0]))
    p_of_truth = p if label == 1 else 1 - p
    losses = -((1 - p_of_truth) ** gamma) * p_of_truth.log()
    return losses.min().item(), losses.max().item()


def _without_weight(label: int, gamma: float) -> tuple[float, float]:
    return loss_range(label, 0.0)


check_loss_range = Exercise(
    solution=loss_range,
    cases=lambda seed: (seed % 2, (2.0, 2.0, 0.0, 3.5)[seed]),
    mistakes={
        "this is the range without a second sigmoid: send the two ends 0 and 1 through it first": (
            lambda label, gamma: (0.0, math.inf)
        ),
        "smallest first: which end is worse depends on the label": lambda label, gamma: loss_range(
            label, gamma
        )[::-1],
        "both labels have the same range in your answer: for label 0 the probability of the truth is 1 - p": (
            lambda label, gamma: loss_range(1, gamma)
        ),
        "the labels are the wrong way round: 1 is anomalous": lambda label, gamma: loss_range(
            1 - label, gamma
        ),
        "this is cross-entropy: the weight (1 - p_t) ** gamma is missing": _without_weight,
        "smallest first: you return the loss at score 0, then that at score 1, and for label 1 the first is "
        "the larger": lambda label, gamma: loss_range(label, gamma)[:: -1 if label else 1],
        "you take a score of 1 as perfect and one of 0 as worst: for a normal image it is the other way "
        "round": lambda label, gamma: loss_range(label, gamma) if label else loss_range(label, gamma)[::-1],
    },
)
