"""The training losses: of whole images, and of maps against masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.tensors import TensorRecord

CERTAIN = 1e-6  # probabilities are kept so far from 0 and 1 before their logarithm is taken


@dataclass(frozen=True, eq=False)
class Targets(TensorRecord):
    """What the scores of B queries should be.

    Attributes:
        labels: 0 normal, 1 anomalous.
        masks: where the anomaly is, at the size of the backbone's input; False everywhere for a normal
            image. None where no head asks for masks.
        masked: whose mask is known: all normal images, and the anomalous ones that have a mask.
    """

    labels: Float[Tensor, " B"]
    masks: Bool[Tensor, "B H W"] | None = None
    masked: Bool[Tensor, " B"] | None = None


def focal_loss(
    scores: Float[Tensor, " B"], labels: Float[Tensor, " B"], gamma: float = 2.0, double_sigmoid: bool = True
) -> Float[Tensor, ""]:
    """Binary focal loss (Lin et al., ICCV 2017), mean over the batch: cross-entropy times (1 - p_t) ** gamma.

    Args:
        scores: anomaly scores in [0, 1].
        labels: 0 normal, 1 anomalous.
        gamma: the larger, the less an example counts that is already classified well; 0: cross-entropy.
        double_sigmoid: apply a second sigmoid to the scores, which are probabilities already, as the public
            code does. The probability then stays within [0.5, 0.731], the loss never comes near 0, and
            normal images get larger losses (0.173 to 0.702) than anomalous ones (0.173 to 0.023). False:
            the scores are the probabilities.

    >>> zero, one = torch.tensor([0.0]), torch.tensor([1.0])
    >>> round(focal_loss(zero, zero).item(), 3), round(focal_loss(one, zero).item(), 3)
    (0.173, 0.702)
    >>> round(focal_loss(torch.tensor([0.5]), one, double_sigmoid=False).item(), 4)   # 0.5 ** 2 * ln 2
    0.1733
    """
    if double_sigmoid:
        cross_entropy = F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        p = torch.sigmoid(scores)
    else:
        p = scores.clamp(CERTAIN, 1 - CERTAIN)
        cross_entropy = F.binary_cross_entropy(p, labels, reduction="none")
    p_of_truth = p * labels + (1 - p) * (1 - labels)
    return (cross_entropy * (1 - p_of_truth) ** gamma).mean()


# --- maps ---------------------------------------------------------------------------------------------


def two_channel_focal_loss(
    channels: Float[Tensor, "B 2 H W"], masks: Bool[Tensor, "B H W"], gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Focal loss of a map with one channel for "normal" and one for "anomalous", mean over all pixels.

    At each pixel, p is the channel of what the mask says: -(1 - p) ** gamma * ln p. As the two channels
    add up to 1, this is `focal_loss` of every pixel; that they are named as two follows InCTRLv2 as third
    parties describe it.

    Args:
        channels: probabilities of "normal" and of "anomalous", each in [0, 1].
        masks: True where the anomaly is.

    >>> channels = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
    >>> round(two_channel_focal_loss(channels, torch.tensor([[[True]]])).item(), 4)    # 0.5 ** 2 * ln 2
    0.1733
    """
    p = torch.where(masks, channels[:, 1], channels[:, 0]).clamp(CERTAIN, 1 - CERTAIN)  # [B, H, W]
    return -((1 - p) ** gamma * p.log()).mean()


def dice_loss(probabilities: Float[Tensor, "B H W"], masks: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Dice loss: 1 - (2 sum(p m) + 1) / (sum(p) + sum(m) + 1) of each image, mean over the images.

    Unlike a mean over pixels, it counts a small defect as much as a large one. The two ones (Milletari et
    al., 3DV 2016, with the usual smoothing) keep it finite for an empty mask; there it is 0 only where
    nothing is marked.

    >>> mask = torch.tensor([[[True, False]]])
    >>> dice_loss(torch.tensor([[[1.0, 0.0]]]), mask).item()
    0.0
    >>> round(dice_loss(torch.tensor([[[0.5, 0.5]]]), mask).item(), 4)       # 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
    0.3333
    """
    overlap = (probabilities * masks).sum((1, 2))
    total = probabilities.sum((1, 2)) + masks.sum((1, 2))
    return (1 - (2 * overlap + 1) / (total + 1)).mean()
