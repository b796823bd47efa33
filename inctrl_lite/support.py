"""The support set: K normal images of a category, encoded, and how they differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.augment import augmentation_count
from inctrl_lite.backbones.base import ImageFeatures, Stage
from inctrl_lite.residual import leave_one_out_maps, normal_residual_statistics
from inctrl_lite.tensors import TensorRecord


@dataclass(frozen=True, eq=False)
class SupportSet(TensorRecord):
    """K encoded normal images: one support set [K, ...], or one for each query [B, K, ...].

    M counts the K images and, after them, their augmented copies, image by image.

    Attributes:
        global_embedding: of the K images [..., K, D].
        stages: patch tokens [..., M, N, C] of each stage.
        map_grid: rows and columns of residual maps.
        regions: region tokens [..., M, Q, C], or None.
        normal_maps: residual maps of the K images against each other [..., K, L, N] (`leave_one_out_maps`);
            None where no head asks for them.
        normal_statistics: their mean and standard deviation at each patch [..., N, 2]
            (`normal_residual_statistics`), or None.
        normal_level: what a head expects of a normal image, in its own units (`Head.normal_level`), or None.
    """

    global_embedding: Float[Tensor, "... K D"]
    stages: tuple[Stage, ...]
    map_grid: tuple[int, int]
    regions: Stage | None = None
    normal_maps: Float[Tensor, "... K L N"] | None = None
    normal_statistics: Float[Tensor, "... N 2"] | None = None
    normal_level: Float[Tensor, "... 1"] | None = None

    @property
    def shots(self) -> int:
        """K."""
        return self.global_embedding.shape[-2]

    @classmethod
    def of(
        cls,
        features: ImageFeatures,
        augmented: ImageFeatures | None = None,
        statistics: bool = True,
        more: ImageFeatures | None = None,
        maps: Float[Tensor, "K L N"] | None = None,
    ) -> SupportSet:
        """The support set of K encoded normal images.

        Args:
            features: of the K images.
            augmented: of their augmented copies, tensors [K, A, ...] (`Encoder.encode_augmented`). Of each
                image as many are kept as `augmentation_count` allows.
            statistics: compare the images with each other. A head says whether it needs it.
            more: what else belongs to each image, tensors [K, E, ...], all of which is kept: rotated copies,
                or the tiles around a tile.
            maps: `leave_one_out_maps` of all that, where they are known already.
        """
        if augmented is not None:
            count = augmentation_count(len(features))
            augmented = augmented.map(lambda tensor: tensor[:, :count]) if count else None
        found = [copies for copies in (augmented, more) if copies is not None]
        seen, copies = features, None
        if found:
            joined = ImageFeatures.join(found, lambda tensors: torch.cat(tensors, 1))  # [K, A + E, ...]
            copies = joined.stages
            seen = ImageFeatures.cat([features, joined.map(lambda tensor: tensor.flatten(0, 1))])
        if statistics and maps is None:
            maps = leave_one_out_maps(features.stages, features.map_grid, copies)
        return cls(
            features.global_embedding,
            seen.stages,
            features.map_grid,
            seen.regions,
            maps,
            None if maps is None else normal_residual_statistics(maps.mean(1), features.map_grid),
        )

    def with_neighbours(self, which: Sequence[int], neighbours: Sequence[Sequence[int]]) -> SupportSet:
        """Support sets of some tiles, to which the pictures of the tiles around them are added.

        Args:
            which: numbers of the tiles.
            neighbours: of every tile, itself first (`View.neighbours`).

        Returns:
            One support set for each of `which`. `self` holds one for each tile [T, ...], without copies.
        """
        index = torch.tensor([neighbours[tile] for tile in which])  # [t, E + 1]

        def joined(stage: Stage) -> Stage:
            found = stage.tokens[index]  # [t, E + 1, K, N, C]
            around = found[:, 1:].transpose(1, 2).flatten(1, 2)  # [t, K E, N, C], image by image
            return Stage(torch.cat([found[:, 0], around], 1), stage.grid)

        own = self[torch.tensor(which)]
        regions = None if self.regions is None else joined(self.regions)
        return replace(own, stages=tuple(joined(stage) for stage in self.stages), regions=regions)

    @classmethod
    def per_query(cls, features: ImageFeatures, statistics: bool = True) -> SupportSet:
        """One support set for each of B queries, without augmented copies.

        Args:
            features: of the K images of each query, tensors [B, K, ...].
            statistics: as in `of`.
        """
        if statistics:
            return cls.stack([cls.of(features[i]) for i in range(len(features))])
        return cls(features.global_embedding, features.stages, features.map_grid, features.regions)
