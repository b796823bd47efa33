"""The training loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


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
        p = scores.clamp(1e-6, 1 - 1e-6)
        cross_entropy = F.binary_cross_entropy(p, labels, reduction="none")
    p_of_truth = p * labels + (1 - p) * (1 - labels)
    return (cross_entropy * (1 - p_of_truth) ** gamma).mean()
