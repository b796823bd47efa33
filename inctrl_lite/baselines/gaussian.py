"""SPADE and PaDiM: galleries and Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.baselines.base import Answer, Images
from inctrl_lite.baselines.patchcore import local_tokens


class SPADE:
    """Mean Euclidean distance of the whole image to its nearest normal images.

    Differences: the class embedding instead of pooled ResNet features; all K normal images are neighbours
    while K <= 5 (the paper takes 50 of hundreds); the image score only, without the paper's pixel map.
    """

    name = "SPADE"
    source = "Cohen & Hoshen, 2020"
    training_free = True
    neighbours = 5

    def fit(self, normals: Images, category: str) -> SPADE:
        self.cls = normals.features.cls
        return self

    def score(self, queries: Images) -> Answer:
        count = min(self.neighbours, len(self.cls))
        distance = torch.cdist(queries.features.cls, self.cls).topk(count, largest=False).values
        return Answer(distance.mean(1))


class PaDiM:
    """Mahalanobis distance of each patch to the Gaussian of its place; the largest is the image's score.

    Differences: with K images, a covariance of `dimensions` numbers has rank K - 1 at most. Each place
    therefore borrows from the covariance of all places, with weight dimensions / (dimensions + K), and from
    the identity, as in the paper (0.01).
    """

    name = "PaDiM"
    source = "Defard et al., ICPR 2021"
    training_free = True
    dimensions = 64

    def fit(self, normals: Images, category: str) -> PaDiM:
        tokens = self._chosen(normals)  # [K, N, d]
        self.mean = tokens.mean(0)
        centred = tokens - self.mean
        own = torch.einsum("knd,kne->nde", centred, centred) / len(tokens)
        everywhere = tokens.flatten(0, 1)
        shared = torch.cov(everywhere.T, correction=0)
        weight = self.dimensions / (self.dimensions + len(tokens))
        scale = shared.diagonal().mean()
        covariance = (1 - weight) * own + weight * shared
        self.factor = torch.linalg.cholesky(covariance + 0.01 * scale * torch.eye(len(shared)).to(shared))
        return self

    def score(self, queries: Images) -> Answer:
        difference = (self._chosen(queries) - self.mean).movedim(0, -1)  # [N, d, B]
        white = torch.linalg.solve_triangular(self.factor, difference, upper=False)
        maps = torch.linalg.vector_norm(white, dim=1).T
        return Answer(maps.amax(1), maps)

    def _chosen(self, images: Images) -> Tensor:
        """A fixed random choice of channels of all tapped blocks, as in the paper."""
        tokens = local_tokens(F.normalize(images.features.patches, dim=-1), images.backbone.grid)
        generator = torch.Generator().manual_seed(0)
        return tokens[..., torch.randperm(tokens.shape[-1], generator=generator)[: self.dimensions]]
