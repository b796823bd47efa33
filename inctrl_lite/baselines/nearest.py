"""Nearest neighbours: of whole images, of pixels, and of patches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.baselines.base import Answer, Images, Method, top_mean
from inctrl_lite.heads import HEADS, own_head


def augments_support(backbone: Backbone) -> bool:
    """Whether InCTRL-lite adds augmented copies to the support set on this backbone."""
    return HEADS[own_head(backbone)].augments_support


class GlobalNearest(Method):
    """Half of one minus the cosine of the global embedding to the most similar normal image."""

    source = "the plainest few-shot baseline"

    def _fit(self, normals: Images, category: str) -> None:
        self.normal = F.normalize(normals.features.global_embedding, dim=-1)

    def _score(self, queries: Images) -> Answer:
        cosines = F.normalize(queries.features.global_embedding, dim=-1) @ self.normal.T  # [B, K]
        return Answer((1 - cosines.amax(1)) / 2)


class PixelNearest(Method):
    """Euclidean distance to the nearest normal image in raw pixels, averaged down to side x side.

    Args:
        side: pixels a side.
    """

    source = "no features: shows how far a data set can be solved without a network"

    def __init__(self, side: int = 24):
        self.side = side

    def _fit(self, normals: Images, category: str) -> None:
        self.normal = self._pixels(normals)

    def _score(self, queries: Images) -> Answer:
        return Answer(torch.cdist(self._pixels(queries), self.normal).amin(1))

    def _pixels(self, images: Images) -> Float[Tensor, "B P"]:
        return F.adaptive_avg_pool2d(images.prepared, self.side).flatten(1)


class PatchMax(Method):
    """The maximum of InCTRL's patch residual map; nothing is learned.

    Args:
        augment: add augmented copies to the support set (`augment.SUPPORT_AUGMENTATIONS`); None: where
            InCTRL-lite does so on this backbone. Without them it is the paper's residual.
    """

    source = "InCTRL (Zhu & Pang, CVPR 2024), Eq. 1"

    def __init__(self, augment: bool | None = None):
        self.augment = augment

    def _fit(self, normals: Images, category: str) -> None:
        self.normals = normals

    def _score(self, queries: Images) -> Answer:
        augment = augments_support(queries.backbone) if self.augment is None else self.augment
        maps = queries.patch_maps(self.normals, augment)
        return Answer(maps.amax(1), maps)


class AnomalyDINO(Method):
    """Cosine distance of each patch to its nearest normal patch in one stage; the mean of the largest 1 %.

    Differences: the shared backbone's last stage instead of the last block of DINOv2; the augmented copies
    that InCTRL-lite uses on this backbone, if any, instead of the normal images rotated by eight angles; no
    mask of the background.

    Args:
        share: of the patches that are averaged.
    """

    source = "Damm et al., WACV 2025"

    def __init__(self, share: float = 0.01):
        self.share = share

    def _fit(self, normals: Images, category: str) -> None:
        self.normals = normals

    def _score(self, queries: Images) -> Answer:
        maps = 2 * queries.stage_maps(self.normals, augments_support(queries.backbone))[:, -1]  # [B, N]
        return Answer(top_mean(maps, self.share), maps)
