"""SubspaceAD: how much of a patch lies outside the subspace that normal patches span."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.baselines.base import Answer, Images, Method, top_mean


class SubspaceAD(Method):
    """Squared residual of each patch after projection on the principal components of the normal patches.

    Differences: the mean of the shared backbone's stages instead of DINOv2's (stages of different width: side
    by side); no rotated copies of the normal images.

    Args:
        variance: share of the variance that the components keep.
    """

    source = "SubspaceAD, CVPR 2026: PCA of patch tokens that keeps 99 % of the variance"

    def __init__(self, variance: float = 0.99):
        self.variance = variance

    def _fit(self, normals: Images, category: str) -> None:
        tokens = self._tokens(normals).flatten(0, 1)  # [K N, C]
        self.mean = tokens.mean(0)
        spectrum, axes = torch.linalg.eigh(torch.cov((tokens - self.mean).T, correction=0))
        kept = spectrum.flip(0).clamp_min(0).cumsum(0) / spectrum.clamp_min(0).sum() < self.variance
        self.axes = axes.flip(1)[:, : int(kept.sum()) + 1]

    def _score(self, queries: Images) -> Answer:
        centred = self._tokens(queries) - self.mean
        maps = (centred - centred @ self.axes @ self.axes.T).square().sum(-1)
        return Answer(top_mean(maps), maps)

    @staticmethod
    def _tokens(images: Images) -> Float[Tensor, "B N C"]:
        tokens, widths = images.tokens(unit=True), {s.tokens.shape[-1] for s in images.features.stages}
        if len(widths) > 1:
            return tokens
        return tokens.unflatten(-1, (len(images.features.stages), *widths)).mean(
            -2
        )  # [B, N, L, C] -> [B, N, C]
