"""SubspaceAD: how much of a patch lies outside the subspace that normal patches span."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from inctrl_lite.baselines.base import Answer, Images, top_mean


class SubspaceAD:
    """Squared residual of each patch after projection on the principal components of the normal patches.

    Differences: the mean of the shared backbone's tapped blocks instead of DINOv2's; no rotated copies of
    the normal images.
    """

    name = "SubspaceAD-style"
    source = "SubspaceAD, CVPR 2026: PCA of patch tokens that keeps 99 % of the variance"
    training_free = True
    variance = 0.99

    def fit(self, normals: Images, category: str) -> SubspaceAD:
        tokens = self._tokens(normals).flatten(0, 1)
        self.mean = tokens.mean(0)
        spectrum, axes = torch.linalg.eigh(torch.cov((tokens - self.mean).T, correction=0))
        kept = spectrum.flip(0).clamp_min(0).cumsum(0) / spectrum.clamp_min(0).sum() < self.variance
        self.axes = axes.flip(1)[:, : int(kept.sum()) + 1]
        return self

    def score(self, queries: Images) -> Answer:
        centred = self._tokens(queries) - self.mean
        maps = (centred - centred @ self.axes @ self.axes.T).square().sum(-1)
        return Answer(top_mean(maps), maps)

    @staticmethod
    def _tokens(images: Images):
        return F.normalize(images.features.patches, dim=-1).mean(1)
