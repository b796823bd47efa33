"""The head of the photo detector: residuals, and a learned prior where InCTRL has its text prior.

A network without words has no sentences "damaged ..." and "flawless ...". In their place stands a learned
direction: a linear score of a patch, "damaged or not", that was trained once on the auxiliary set and sees no
normal image. It is linear and strongly regularised on purpose; everything larger that was trained on drawn or
synthetic defects made photographs worse (book/photo.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.backbones.base import Stage
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.heads.base import Head
from inctrl_lite.residual import unit_tokens
from inctrl_lite.support import SupportSet


@dataclass(frozen=True)
class PriorConfig:
    """The constants of `PriorHead`, chosen on development sets (benchmarks/choose_photo.py).

    Attributes:
        prior_weight: of the patch prior, in standard deviations over the auxiliary set's patches, beside the
            logarithm of the patch residual.
        whole_weight: of the logarithm of the mean residual of the whole map beside that of its peak: for
            anomalies that change the whole image (another kind of thing).
        fall_per_doubling: how much the raw score of normal images falls when K doubles, because a larger
            support set has nearer neighbours.
        middle, slope: the score is 1/2 where the raw score is `middle` above the level of normal images;
            `slope` says how fast it moves to 0 and 1.
    """

    prior_weight: float = 0.1
    whole_weight: float = 0.5
    fall_per_doubling: float = 0.231
    middle: float = 0.24
    slope: float = 0.15


class PriorHead(Head):
    """InCTRL-lite on a network without words: log residual + learned patch prior, against the normal images.

    For each patch: the logarithm of its residual plus the weighted prior. The raw score of an image is the
    largest of these plus the weighted logarithm of the mean residual of the later stages. The final score
    compares it with the level of normal images: their own leave-one-out raw scores and one constant from the
    auxiliary set, in equal parts per image.

    Args:
        stage_widths: C of each stage.
        terms: "patch" (the peak of the residual), "whole" (its mean) and "prior"; all but for ablations.
        config: constants.

    Attributes:
        direction: of the prior, on unit tokens of all stages side by side.
        offset: of the prior; together they give mean 0 and standard deviation 1 on the auxiliary patches.
        level: raw score of normal images at K = 1 on the auxiliary set.
    """

    needs_statistics = True
    any_grid = True
    all_terms = ("patch", "whole", "prior")

    def __init__(
        self,
        stage_widths: Sequence[int],
        terms: Collection[str] = all_terms,
        config: PriorConfig | None = None,
    ):
        super().__init__()
        self.terms, self.config = tuple(terms), config or PriorConfig()
        self.direction: Tensor
        self.offset: Tensor
        self.level: Tensor
        self.register_buffer("direction", torch.zeros(sum(stage_widths)))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("level", torch.zeros(()))

    @classmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> PriorHead:
        return cls(stage_widths, terms)

    def prior_map(self, stages: tuple[Stage, ...], grid: tuple[int, int]) -> Float[Tensor, "*b N"]:
        """How damaged each patch looks by itself, in standard deviations over the auxiliary patches."""
        return unit_tokens(stages, grid) @ self.direction + self.offset

    def normal_level(self, support: SupportSet) -> Float[Tensor, " 1"]:
        """The raw score to expect of a normal image: leave-one-out scores and the constant from training."""
        shots, config = support.shots, self.config
        expected = self.level - config.fall_per_doubling * math.log2(shots)
        if shots == 1 or support.normal_maps is None:
            return expected[None]
        originals = tuple(stage.map(lambda tokens: tokens[:shots]) for stage in support.stages)
        raw = self.raw_score(support.normal_maps, self.prior_map(originals, support.map_grid))  # [K]
        # each was compared with K - 1 images; a query is compared with K
        raw = raw - config.fall_per_doubling * math.log2(shots / (shots - 1))
        return ((raw.sum() + expected) / (shots + 1))[None]

    def raw_score(
        self, stage_maps: Float[Tensor, "B L N"], prior_map: Float[Tensor, "B N"]
    ) -> Float[Tensor, " B"]:
        """Peak of (log residual + weighted prior), plus the weighted log of the whole map's mean."""
        raw = torch.zeros_like(prior_map)
        if "patch" in self.terms:
            raw = raw + log_map(stage_maps)
        if "prior" in self.terms:
            raw = raw + self.config.prior_weight * prior_map
        peak = raw.amax(-1)
        if "whole" in self.terms:
            peak = peak + self.config.whole_weight * stage_maps[:, -2:].mean((1, 2)).clamp_min(1e-6).log()
        return peak

    def forward(self, evidence: Evidence) -> Scores:
        """Scores with the terms patch, whole and prior."""
        assert evidence.normal_level is not None
        config, prior = self.config, self.prior_map(evidence.query_stages, evidence.map_grid)
        raw = self.raw_score(evidence.stage_maps, prior)
        final = ((raw - evidence.normal_level[:, 0] - config.middle) / config.slope).sigmoid()
        return Scores(
            final=final,
            patch_map=evidence.patch_map,
            patch=evidence.patch_map.amax(-1),
            whole=evidence.stage_maps[:, -2:].mean((1, 2)),
            prior=prior.amax(-1).sigmoid(),
        )


def log_map(stage_maps: Float[Tensor, "B L N"]) -> Float[Tensor, "B N"]:
    """Logarithm of the patch residual map."""
    return stage_maps.mean(1).clamp_min(1e-6).log()
