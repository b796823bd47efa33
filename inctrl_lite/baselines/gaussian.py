"""SPADE and PaDiM: distances to whole images, and a Gaussian for each position."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.baselines.base import Answer, Images, Method


class SPADE(Method):
    """Mean Euclidean distance of the whole image to its nearest normal images.

    Differences: the global embedding instead of pooled ResNet features; all K normal images are neighbours
    while K <= 5 (the paper takes 50 of hundreds); the image score only, without the paper's pixel map.

    Args:
        neighbours: how many nearest normal images are averaged.
    """

    source = "Cohen & Hoshen, 2020"

    def __init__(self, neighbours: int = 5):
        self.neighbours = neighbours

    def _fit(self, normals: Images, category: str) -> None:
        self.normal = normals.features.global_embedding

    def _score(self, queries: Images) -> Answer:
        count = min(self.neighbours, len(self.normal))
        distance = torch.cdist(queries.features.global_embedding, self.normal)  # [B, K]
        return Answer(distance.topk(count, largest=False).values.mean(1))


class PaDiM(Method):
    """Mahalanobis distance of each patch to the Gaussian of its position; the largest is the image's score.

    As published: tokens of all stages side by side, a fixed random choice of channels, the covariance of each
    position over the normal images plus 0.01 times the identity. With K images such a covariance has rank
    K - 1 at most, so that the identity decides most of it. `shrink=True` mixes it with the covariance within
    the positions, pooled over all positions, with weight dimensions / (dimensions + K), on tokens of unit
    length; the identity is then scaled by the mean variance. That is better with few normal images.

    Differences: tokens of the shared backbone's stages instead of a ResNet's; the map is not smoothed.

    Args:
        dimensions: channels that are chosen (the paper: 100 of 448 for ResNet-18).
        shrink: see above.
    """

    source = "Defard et al., ICPR 2021"

    def __init__(self, dimensions: int = 100, shrink: bool = False):
        self.dimensions, self.shrink = dimensions, shrink

    def _fit(self, normals: Images, category: str) -> None:
        tokens = self._chosen(normals)  # [K, N, d]
        self.mean = tokens.mean(0)
        centred = tokens - self.mean
        shots, width = len(tokens), tokens.shape[-1]
        covariance = torch.einsum("knd,kne->nde", centred, centred) / max(1, shots - 1)  # [N, d, d]
        identity = torch.eye(width, dtype=tokens.dtype, device=tokens.device)
        scale = 1.0
        if self.shrink:
            pooled = covariance.mean(0)  # within the positions
            if shots == 1:  # nothing varies within a position: the variation over positions stands in
                pooled = torch.cov(tokens[0].T)
            weight = width / (width + shots)
            covariance = (1 - weight) * covariance + weight * pooled
            scale = float(pooled.diagonal().mean())
        self.factor = torch.linalg.cholesky(covariance + 0.01 * max(scale, 1e-8) * identity)

    def _score(self, queries: Images) -> Answer:
        difference = (self._chosen(queries) - self.mean).movedim(0, -1)  # [N, d, B]
        white = torch.linalg.solve_triangular(self.factor, difference, upper=False)
        maps = torch.linalg.vector_norm(white, dim=1).T  # [B, N]
        return Answer(maps.amax(1), maps)

    def _chosen(self, images: Images) -> Float[Tensor, "B N d"]:
        """A fixed random choice of channels of all stages."""
        tokens = images.tokens(unit=self.shrink)
        generator = torch.Generator(device="cpu").manual_seed(0)
        order = torch.randperm(tokens.shape[-1], generator=generator, device="cpu")
        return tokens[..., order[: self.dimensions].to(tokens.device)]
