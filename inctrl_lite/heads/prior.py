"""InCTRL-lite on a backbone without words: residuals, and a learned prior where InCTRL has its text prior.

A network without a text encoder has no sentences "damaged ..." and "flawless ...". In their place stands a
learned direction: a linear score of a patch, "damaged or not", that was trained once on the auxiliary set and
never sees a normal image of the category. It is linear and strongly regularised on purpose, to take
little from drawings that photographs do not share. Whether that is little enough, the model card of the photo
detector measures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbones.base import ImageFeatures, Stage
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.heads.base import Head, given
from inctrl_lite.residual import resample_map
from inctrl_lite.support import SupportSet

SMALLEST = 5e-7  # residual whose logarithm is taken where a patch occurs in the support set


@dataclass(frozen=True)
class PriorConfig:
    """The constants of `PriorHead`, chosen on development sets (benchmarks/choose_photo.py).

    Attributes:
        prior_weight: of the patch prior, in standard deviations over the auxiliary set's patches, beside the
            logarithm of the patch residual: in the score and in the map.
        whole_weight: of the logarithm of the mean residual of the whole map, beside the peak of the map: for
            anomalies that change the whole image, such as another kind of thing.
        border_penalty: taken from the outermost ring of the map. There the network sees padding, and objects
            that are cut off differ from image to image.
        fall_per_doubling: how much the raw score of normal images falls when K doubles: a larger support set
            has nearer neighbours.
        steepness, middle: the score is sigmoid(steepness * (raw score - level of normal images - middle)),
            1/2 where the residual is exp(1/3) = 1.4 times that of a normal image.
    """

    prior_weight: float = 0.15
    whole_weight: float = 0.5
    border_penalty: float = 0.2
    fall_per_doubling: float = 0.22
    steepness: float = 4.0
    middle: float = 1 / 3


class PriorHead(Head):
    """InCTRL-lite for a backbone without text encoder: log residual + learned patch prior.

    For each patch: the logarithm of its residual in the middle stage, plus the weighted prior, from which the
    image's own mean is subtracted (the prior says where in the image, not which kind of image). The raw score
    of an image is the largest of these, plus the weighted logarithm of the mean residual of the whole map,
    over the middle and the later stages. The final score compares it with the level of normal images, which
    is the mean of their leave-one-out raw scores. The map that is shown is InCTRL's residual map, weighted by
    the prior (`weighted_map`).

    Args:
        stage_widths: C of each stage; peak and prior are read in the middle one.
        terms: "patch" (the peak of the residual), "whole" (its mean) and "prior"; all but for ablations.
            Without "prior" it is the untrained head.
        config: constants.

    Attributes:
        direction: of the prior, on unit tokens of the middle stage.
        offset: of the prior; together they give mean 0 and standard deviation 1 on the auxiliary patches.
        level: raw score to expect of a normal image where K = 1, with the prior and without it.
    """

    needs_statistics = True
    any_grid = True
    all_terms = ("patch", "whole", "prior")
    direction: Tensor
    offset: Tensor
    level: Tensor

    def __init__(
        self,
        stage_widths: Sequence[int],
        terms: Collection[str] = all_terms,
        config: PriorConfig | None = None,
    ):
        super().__init__()
        self.terms, self.config = tuple(terms), config or PriorConfig()
        self.middle_stage = len(stage_widths) // 2
        self.register_buffer("direction", torch.zeros(stage_widths[self.middle_stage]))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("level", torch.zeros(2))

    @classmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> PriorHead:
        return cls(stage_widths, terms)

    def prior_map(self, stages: Sequence[Stage], grid: tuple[int, int]) -> Float[Tensor, "*b N"]:
        """How damaged each patch looks by itself, in standard deviations over the auxiliary patches."""
        stage = stages[self.middle_stage]
        values = F.normalize(stage.tokens, dim=-1) @ self.direction + self.offset
        return resample_map(values, stage.grid, grid)

    def weighted_map(
        self, patch_map: Float[Tensor, "*b N"], prior_map: Float[Tensor, "*b N"]
    ) -> Float[Tensor, "*b N"]:
        """Where the anomaly is: the residual map times exp(prior_weight * prior), in [0, 1].

        A patch that looks damaged by itself stands out more. Chosen by AUPRO on development sets
        (benchmarks/choose_map.py).

        >>> head = PriorHead((4,))
        >>> residuals, prior = torch.tensor([0.1, 0.1, 0.9]), torch.tensor([0.0, 2.0, 2.0])
        >>> [round(value, 3) for value in head.weighted_map(residuals, prior).tolist()]
        [0.1, 0.135, 1.0]
        """
        return (patch_map * (self.config.prior_weight * prior_map).exp()).clamp(max=1)

    def normal_level(self, support: SupportSet) -> Float[Tensor, " 1"]:
        """The raw score to expect of a normal image: the mean of the leave-one-out raw scores."""
        shots = support.shots
        if shots == 1 or support.normal_maps is None:
            return self.level[:1] if "prior" in self.terms else self.level[1:]
        originals = [stage.map(lambda tokens: tokens[:shots]) for stage in support.stages]
        prior = self.prior_map(originals, support.map_grid)
        raw = self.raw_score(support.normal_maps, prior, support.map_grid)  # [K]
        # each was compared with K - 1 images; a query is compared with K
        correction = self.config.fall_per_doubling * math.log2(shots / (shots - 1))
        return raw.mean()[None] - correction

    def raw_score(
        self, stage_maps: Float[Tensor, "B L N"], prior_map: Float[Tensor, "B N"], grid: tuple[int, int]
    ) -> Float[Tensor, " B"]:
        """Peak of (log residual + weighted prior), plus the weighted logarithm of the whole map's mean."""
        values = -self.config.border_penalty * border_ring(grid).to(prior_map)
        if "patch" in self.terms:
            values = values + stage_maps[:, self.middle_stage].clamp_min(SMALLEST).log()
        if "prior" in self.terms:
            values = values + self.config.prior_weight * (prior_map - prior_map.mean(-1, keepdim=True))
        raw = values.expand_as(prior_map).amax(-1)
        if "whole" in self.terms:
            whole = self.whole_residual(stage_maps).clamp_min(SMALLEST)
            raw = raw + self.config.whole_weight * whole.log()
        return raw

    def without_normals(self, query: ImageFeatures, text: Float[Tensor, "2 D"] | None) -> Scores:
        """The prior alone: its mean over the image, and its map, each in (0, 1).

        The mean was better than the peak on the development sets (benchmarks/what_training_adds.py).
        """
        if "prior" not in self.terms:
            raise InctrlError("this head compares queries with normal images: give one or more")
        prior = self.prior_map(query.stages, query.map_grid)
        score, maps = prior.mean(-1).sigmoid(), prior.sigmoid()
        return Scores(score, torch.zeros_like(maps), torch.zeros_like(score), prior=score, pixel_map=maps)

    def whole_residual(self, stage_maps: Float[Tensor, "B L N"]) -> Float[Tensor, " B"]:
        """Mean residual of the whole map over the middle and later stages; early ones see only texture."""
        return stage_maps[:, self.middle_stage :].mean((1, 2))

    def forward(self, evidence: Evidence) -> Scores:
        """Scores with the terms patch, whole and prior."""
        level = given(evidence.normal_level, "the normal level (InCTRL.support computes it)")
        config, prior = self.config, self.prior_map(evidence.query_stages, evidence.map_grid)
        raw = self.raw_score(evidence.stage_maps, prior, evidence.map_grid)
        return Scores(
            final=(config.steepness * (raw - level[:, 0] - config.middle)).sigmoid(),
            patch_map=evidence.patch_map,
            patch=evidence.patch_map.amax(-1),
            whole=self.whole_residual(evidence.stage_maps),
            prior=prior.mean(-1).sigmoid(),
            pixel_map=self.weighted_map(evidence.patch_map, prior) if "prior" in self.terms else None,
        )


def border_ring(grid: tuple[int, int]) -> Float[Tensor, " N"]:
    """1 on the outermost ring of a grid, 0 inside.

    >>> border_ring((3, 4)).view(3, 4).tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    ring = torch.ones(grid)
    ring[1:-1, 1:-1] = 0
    return ring.flatten()
