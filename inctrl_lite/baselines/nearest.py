"""Nearest neighbours: of whole images, of pixels, and of patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.baselines.base import Answer, Images, top_mean


class ClassNearest:
    """Half of one minus the cosine of the class embedding to the most similar normal one."""

    name = "class embedding NN"
    source = "the plainest few-shot baseline"
    training_free = True

    def fit(self, normals: Images, category: str) -> ClassNearest:
        self.normal = F.normalize(normals.features.cls, dim=-1)
        return self

    def score(self, queries: Images) -> Answer:
        cosines = F.normalize(queries.features.cls, dim=-1) @ self.normal.T
        return Answer((1 - cosines.amax(1)) / 2)


class PixelNearest:
    """Euclidean distance to the nearest normal image, as 24 x 24 pixels: what needs no network at all."""

    name = "pixel NN"
    source = "no features: tells what a data set gives away by itself"
    training_free = True

    def fit(self, normals: Images, category: str) -> PixelNearest:
        self.normal = self._small(normals)
        return self

    def score(self, queries: Images) -> Answer:
        return Answer(torch.cdist(self._small(queries), self.normal).amin(1))

    @staticmethod
    def _small(images: Images) -> Tensor:
        return F.adaptive_avg_pool2d(images.prepared, 24).flatten(1)


class PatchMax:
    """The largest patch residual: what is left of InCTRL, the lite head's views too, without learning."""

    name = "patch max"
    source = "InCTRL (Zhu & Pang, CVPR 2024), Eq. 1; the prompts are seen in more views (`backbone.VIEWS`)"
    training_free = True
    views = True

    def fit(self, normals: Images, category: str) -> PatchMax:
        self.normals = normals
        return self

    def score(self, queries: Images) -> Answer:
        maps = queries.residual_maps(self.normals, self.views)
        return Answer(maps.amax(1), maps)


class PatchMaxOneView(PatchMax):
    """The same against the prompts as they are: the paper's residual."""

    name = "patch max, one view"
    source = "InCTRL (Zhu & Pang, CVPR 2024), Eq. 1, without anything that is learned"
    views = False


class AnomalyDINO:
    """Cosine distance of each patch to its nearest normal patch in one block; the mean of the largest 1 %.

    Differences: the shared backbone's last tapped block instead of DINOv2's last one; the views of
    `backbone.VIEWS` instead of the normal images turned by eight angles; no mask of the background.
    """

    name = "AnomalyDINO-style"
    source = "Damm et al., WACV 2025"
    training_free = True

    def fit(self, normals: Images, category: str) -> AnomalyDINO:
        self.normals = normals
        return self

    def score(self, queries: Images) -> Answer:
        maps = 2 * queries.layer_residuals(self.normals, views=True)[:, -1]
        return Answer(top_mean(maps), maps)
