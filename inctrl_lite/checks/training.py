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
    parts=("loss", "gradient of the scores"),
    mistakes={
        "The loss is a plain number without a gradient, so nothing can be learned from it. Use tensors "
        "only, without .item(), .detach() or numpy.": lambda s, y, gamma: focal_loss(s, y, gamma).item(),
        "The value is right, but its gradient is wrong. The weight (1 - p_t) ** gamma depends on the "
        "scores as well, so do not detach it.": _weight_detached,
        "You return one loss for each image: take their mean.": _of_each,
        "You add the losses of the batch. Take the mean; otherwise the step grows with the batch size.": (
            lambda s, y, gamma: _of_each(s, y, gamma).sum()
        ),
        "You treat normal images like anomalous ones. For label 0 the truth has the probability 1 - score.": (
            lambda s, y, gamma: focal_loss(s, torch.ones_like(y), gamma)
        ),
        "The labels are exchanged: 1 is anomalous, and a score is the probability of anomalous.": (
            lambda s, y, gamma: focal_loss(s, 1 - y, gamma)
        ),
        "The weight favours images that are right already. It is (1 - p_t) ** gamma.": _weighted_by_the_right,
        "A loss is large for mistakes: the minus sign before the logarithm is missing.": (
            lambda s, y, gamma: -focal_loss(s, y, gamma)
        ),
        "You compute one weight for the whole batch from its mean cross-entropy. Each image "
        "has its own weight, so take the mean last (reduction='none' keeps the images "
        "apart).": _of_the_mean,
        "gamma changes nothing: this is plain cross-entropy, and the weight is missing.": (
            lambda s, y, gamma: focal_loss(s, y, 0.0)
        ),
        "gamma is always 2: use the argument.": lambda s, y, gamma: focal_loss(s, y, 2.0),
        "These scores are probabilities already, so no sigmoid belongs here. (You have built the double "
        "sigmoid, which comes next.)": lambda s, y, gamma: focal_loss(s.sigmoid(), y, gamma),
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
    parts=("smallest loss", "largest loss"),
    mistakes={
        "This is the range without a second sigmoid. Pass the two ends 0 and 1 through it first.": (
            lambda label, gamma: (0.0, math.inf)
        ),
        "Return the smallest loss first. Which end is worse depends on the label.": lambda label, gamma: (
            loss_range(label, gamma)[::-1]
        ),
        "Both labels have the same range in your answer. For label 0 the probability of the truth is 1 - "
        "p.": (lambda label, gamma: loss_range(1, gamma)),
        "The labels are exchanged: 1 is anomalous.": lambda label, gamma: loss_range(1 - label, gamma),
        "This is cross-entropy: the weight (1 - p_t) ** gamma is missing.": _without_weight,
        "Return the smallest loss first. You return the loss at score 0 and then the loss at score 1, and "
        "for label 1 the first one is larger.": lambda label, gamma: loss_range(label, gamma)[
            :: -1 if label else 1
        ],
        "You treat a score of 1 as perfect and a score of 0 as worst. For a normal image it is the "
        "opposite.": lambda label, gamma: (
            loss_range(label, gamma) if label else loss_range(label, gamma)[::-1]
        ),
    },
)


def _pair_scores(seed: int) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return 2 * torch.randn(4 + seed, generator=g), 1 + 2 * torch.randn(4 + seed, generator=g)


def _loss_and_gradients(answer, normal: Tensor, anomalous: Tensor):
    scores = normal.clone().requires_grad_(), anomalous.clone().requires_grad_()
    loss = answer(*scores)
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        return loss, None, None
    return loss, *torch.autograd.grad(loss.sum(), scores, allow_unused=True)


def pair_loss(normal: Tensor, anomalous: Tensor) -> Tensor:
    """Mean loss of P pairs: -log of the probability that the anomalous image has the larger score."""
    return -(anomalous - normal).sigmoid().log().mean()


check_pair_loss = Exercise(
    solution=pair_loss,
    cases=_pair_scores,
    run=_loss_and_gradients,
    parts=("loss", "gradient of the normal scores", "gradient of the anomalous scores"),
    mistakes={
        "The pairs are the wrong way around: the *anomalous* image is to have the larger score.": (
            lambda n, a: pair_loss(a, n)
        ),
        "You return one loss for each pair: take their mean.": (lambda n, a: F.softplus(n - a)),
        "You add the losses of the pairs: take their mean.": lambda n, a: F.softplus(n - a).sum(),
        "A loss is large for mistakes: the minus sign before the logarithm is missing.": (
            lambda n, a: -pair_loss(n, a)
        ),
        "You compare every normal image with every anomalous one. They are of different categories; compare "
        "each with its partner only.": lambda n, a: F.softplus(n[:, None] - a[None]).mean(),
        "You judge every image by itself, as the focal loss does. Only the difference of the two scores is "
        "to count.": lambda n, a: (F.softplus(n) + F.softplus(-a)).mean(),
        "You count the pairs in the wrong order. That is one minus the AUROC of the pairs, but its gradient "
        "is zero: use the sigmoid of the difference.": lambda n, a: (n >= a).float().mean(),
        "This is the mean probability of the wrong order. Take the logarithm of the right one's, and change "
        "the sign.": lambda n, a: (n - a).sigmoid().mean(),
    },
)
