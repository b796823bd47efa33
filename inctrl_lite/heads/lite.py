"""InCTRL-lite: the package's own head, for small backbones and few training images."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.heads.base import TERMS, Adapter, Head, ScoreHead, fuse, given
from inctrl_lite.residual import image_residual, text_score


@dataclass(frozen=True)
class LiteConfig:
    """The constants of `LiteHead`.

    Attributes:
        ranks: how many of the sorted patch residuals the holistic score reads. They are spaced evenly on a
            logarithmic scale, because the few largest ones matter most.
        smallest_std: added to the standard deviation of normal residuals; normal images that are almost equal
            would otherwise turn noise into large z-scores.
        z_limits: z-scores are clipped to this range, so that one extreme patch cannot dominate the training.
        z_scale: z-scores are divided by it, to match the range of the image and text score that are added.
        normal_peak: the largest z-score of a typical normal image; it gives a patch score of 1/2.
        global_slope: initial steepness of the global score (learned).
        global_ratio: a whole image at this many times the reference distance gets a global score of 1/2
            (initial value). It is hardly learned: the auxiliary set has no images of other things.
        text_scale: initial factor of the text cosines (learned): the cosines of a small CLIP are not
            calibrated for the public code's 100.
    """

    ranks: int = 32
    smallest_std: float = 1e-3
    z_limits: tuple[float, float] = (-5.0, 15.0)
    z_scale: float = 10.0
    normal_peak: float = 4.0
    global_slope: float = 4.0
    global_ratio: float = 1.5
    text_scale: float = 10.0


class LiteHead(Head):
    """Fuses the paper's terms and one more, with fewer assumptions about the training set.

    What differs from `PaperHead`, and why:

    1. Patch residuals become z-scores with the support set's own mean and standard deviation
       (`normal_residual_statistics`): what is large differs between categories, and between an edge and plain
       background.
    2. They are sorted, and read at `ranks` ranks: the position of a defect on a training object says nothing
       about other objects.
    3. There is no BatchNorm: its statistics would tie a score to the mix of the training set.
    4. The text scale is learned.
    5. The focal loss takes the scores as the probabilities they are, without a second sigmoid.
    6. The distance of the whole image to the support set, relative to the distances among normal images, is a
       term of its own: the mean of the logarithms for the global embedding and for the regions.
    7. When images are scored, the support set holds augmented copies (`augment.SUPPORT_AUGMENTATIONS`).
       Training needs none, because z-scores do not depend on their number.

    The final score is the mean of the holistic score and of a score that needs no training: the probability
    that the largest patch z-score or the whole image is anomalous (either is enough).
    """

    needs_statistics = True
    augments_support = True

    def __init__(
        self,
        embed_dim: int,
        num_patches: int,
        terms: Collection[str] = TERMS,
        config: LiteConfig | None = None,
    ):
        super().__init__()
        self.terms, self.config = tuple(terms), config or LiteConfig()
        self.adapter = Adapter(embed_dim)
        self.image = ScoreHead(embed_dim, norm=False)
        self.holistic = ScoreHead(self.config.ranks, norm=False)
        self.log_text_scale = nn.Parameter(torch.tensor(self.config.text_scale).log())
        # steepness of the global score, and logarithm of the ratio at which it is 1/2
        self.whole = nn.Parameter(
            torch.tensor([self.config.global_slope, math.log(self.config.global_ratio)])
        )

    @classmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> LiteHead:
        return cls(embed_dim, num_patches, terms)

    @property
    def text_scale(self) -> Tensor:
        """Factor of the cosines in the text score; learned."""
        return self.log_text_scale.exp()

    def forward(self, evidence: Evidence) -> Scores:
        """Scores with all terms; `holistic_map` has `ranks` entries."""
        config = self.config
        adapted = self.adapter(evidence.query_embedding), self.adapter(evidence.support_embedding)
        image = self.image(image_residual(*adapted))
        text = torch.zeros_like(image)
        if self.needs_text:
            cosines = given(evidence.text_cosines, "text prototypes")
            text = text_score(cosines, self.text_scale)
        statistics = given(evidence.normal_statistics, "normal statistics")
        z = ranked_z_scores(evidence.patch_map, statistics, config)  # [B, ranks]
        global_score = (self.whole[0] * (log_global_ratio(evidence) - self.whole[1])).sigmoid()
        holistic_map = fuse(
            self.terms, z.clamp(*config.z_limits) / config.z_scale, image + global_score, text
        )
        holistic = self.holistic(holistic_map)
        # no training needed: is the largest patch residual, or the whole image, unlike normal images?
        training_free = torch.zeros_like(image)
        if "patch" in self.terms:
            training_free = (z[:, 0] / config.normal_peak - 1).sigmoid()
        if "image" in self.terms:
            training_free = 1 - (1 - training_free) * (1 - global_score)  # either is enough
        final = (holistic + training_free) / 2 if {"patch", "image"} & set(self.terms) else holistic
        patch = evidence.patch_map.amax(-1)
        return Scores(final, evidence.patch_map, patch, holistic, image, text, holistic_map=holistic_map)


def ranked_z_scores(
    patch_map: Float[Tensor, "B N"], statistics: Float[Tensor, "B N 2"], config: LiteConfig
) -> Float[Tensor, "B R"]:
    """Patch residuals in standard deviations of normal ones, from the largest down, at `ranks` ranks."""
    mean, std = statistics.unbind(-1)
    z = ((patch_map - mean) / (std + config.smallest_std)).sort(dim=-1, descending=True).values
    ranks = torch.logspace(0, 1, config.ranks, base=patch_map.shape[-1], device=z.device).round().long() - 1
    return z[:, ranks]


def log_global_ratio(evidence: Evidence) -> Float[Tensor, " B"]:
    """Logarithm of (distance of the whole image / distance among normal images), mean over its two forms."""
    pairs = [(evidence.global_distance, evidence.global_reference)]
    if evidence.region_distance is not None and evidence.region_reference is not None:
        pairs.append((evidence.region_distance, evidence.region_reference))
    logs = [(distance + 1e-3).log() - (reference + 1e-3).log() for distance, reference in pairs]
    return torch.stack(logs).mean(0)
