"""InCTRLv2: InCTRL's image score, and a trained map of where the anomaly is.

Zhu, Niu and Pang, "InCTRLv2: Generalist Residual Models for Few-Shot Anomaly Detection and Segmentation",
arXiv 2604.04632. The authors' code is not public. What is built here follows the abstract and the notes of a
re-implementation by third parties; it was not checked against the paper. What the notes leave open is decided
in the docstrings and named there as ours.

Shapes: B queries, L stages, N patches of the residual map, C width of a patch token, D width of the global
embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.backbones.base import ImageFeatures, Stage
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.heads.base import TERMS, Adapter, Head, ScoreHead, given
from inctrl_lite.losses import Targets, dice_loss, two_channel_focal_loss
from inctrl_lite.residual import image_residual, resample_map, text_score


@dataclass(frozen=True)
class V2Config:
    """The constants of `V2Head`.

    Attributes:
        alpha: weight of the largest patch residual in the image score, beside the image and the text score.
        beta: weight of the one-class branch in the pixel map, beside the discriminative branch.
        scale: factor of the cosines between adapted patches and prototypes. Ours: the constant of
            InCTRL's text score.
    """

    alpha: float = 0.5
    beta: float = 0.75
    scale: float = 100.0


class PatchAdapter(nn.Module):
    """Phi: brings patch tokens to the space of the prototypes. Two linear layers, GELU between them.

    One for all stages of the same width, as the notes say. Where the stages differ in width, as those of a
    convolutional network do, each has its own (ours).

    Args:
        stage_widths: C of each stage.
        width: D of the prototypes.
    """

    def __init__(self, stage_widths: Sequence[int], width: int):
        super().__init__()
        widths = stage_widths[:1] if len(set(stage_widths)) == 1 else stage_widths
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(c, max(1, c // 4)), nn.GELU(), nn.Linear(max(1, c // 4), width))
            for c in widths
        )

    def forward(self, stage: int, tokens: Float[Tensor, "*b N C"]) -> Float[Tensor, "*b N D"]:
        """Adapted tokens of one stage, of unit length."""
        layer = self.layers[stage if len(self.layers) > 1 else 0]
        return F.normalize(layer(tokens), dim=-1)


def semantic_map(
    stages: Sequence[Stage],
    adapter: PatchAdapter,
    prototypes: Float[Tensor, "B 2 D"],
    map_grid: tuple[int, int],
    scale: float = 100.0,
) -> Float[Tensor, "B N"]:
    """How anomalous each patch is by what it shows: in [0, 1], mean over the stages.

    In each stage, the probability of "anomalous" is the softmax over the cosines of the adapted patch to the
    normal and to the anomalous prototype. It does not depend on the normal images.

    Args:
        stages: patch tokens of the queries.
        adapter: one of the two branches' phi.
        prototypes: normal and anomalous, for each query.
        map_grid: to which the maps of all stages are brought.
        scale: factor of the cosines.
    """
    prototypes = F.normalize(prototypes, dim=-1)
    maps = []
    for i, stage in enumerate(stages):
        cosines = adapter(i, stage.tokens) @ prototypes.mT  # [B, N, D] [B, D, 2] -> [B, N, 2]
        probability = (scale * cosines).softmax(-1)[..., 1]
        maps.append(resample_map(probability, stage.grid, map_grid))
    return torch.stack(maps).mean(0)


def average(residuals: Float[Tensor, "B N"], semantic: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """The map of a branch: the mean of the residual map and of its semantic map, in [0, 1]."""
    return (residuals + semantic) / 2


def blend(
    discriminative: Float[Tensor, "B N"], one_class: Float[Tensor, "B N"], beta: float
) -> Float[Tensor, "B N"]:
    """The pixel map: (1 - beta) of the discriminative branch's map and beta of the one-class branch's.

    >>> blend(torch.tensor([[1.0]]), torch.tensor([[0.0]]), beta=0.75).tolist()
    [[0.25]]
    """
    return (1 - beta) * discriminative + beta * one_class


def upsample(
    maps: Float[Tensor, "B N"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "B H W"]:
    """Maps at the size of the backbone's input, bilinear.

    >>> upsample(torch.tensor([[0.0, 1.0]]), (1, 2), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]]]
    """
    images = maps.unflatten(-1, grid).unsqueeze(1)  # [B, N] -> [B, 1, h, w]
    return F.interpolate(images, size, mode="bilinear", align_corners=False).squeeze(1)


class V2Head(Head):
    """InCTRLv2's learned part, as third parties describe it.

    Image score: (1 - alpha) times the mean of image and text score, plus alpha times the largest patch
    residual. Pixel map: the blend of two branches, each of which averages InCTRL's residual map with a
    semantic map of its own. The discriminative branch (DASL) learns from normal and anomalous images and
    their masks; the one-class branch (OASL) from normal images alone. The adapter and eta of the image score
    are those of `PaperHead`, with new weights; its holistic score is not part of v2.

    Without the term "text", for a backbone that has no text encoder, the two prototypes are learned by the
    discriminative branch, and the image score has no text score. That is a departure of ours.

    Args:
        embed_dim: D of the global embedding.
        stage_widths: C of each stage.
        terms: which terms the image score is made of.
        config: constants.
    """

    any_grid = True
    learns_from_masks = True
    terms_without_text = ("image", "patch")

    def __init__(
        self,
        embed_dim: int,
        stage_widths: Sequence[int],
        terms: Collection[str] = TERMS,
        config: V2Config | None = None,
    ):
        super().__init__()
        self.terms, self.config = tuple(terms), config or V2Config()
        self.adapter = Adapter(embed_dim)
        self.image = ScoreHead(embed_dim)
        self.discriminative = PatchAdapter(stage_widths, embed_dim)
        self.one_class = PatchAdapter(stage_widths, embed_dim)
        if not self.needs_text:
            self.prototypes = nn.Parameter(torch.randn(2, embed_dim))

    @classmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> V2Head:
        if not stage_widths:
            raise InctrlError("the head 'v2' needs the widths of the stages: give stage_widths")
        return cls(embed_dim, stage_widths, terms)

    def forward(self, evidence: Evidence) -> Scores:
        """Scores and the pixel map; no gradient flows through the text score and the text prototypes."""
        adapted = self.adapter(evidence.query_embedding), self.adapter(evidence.support_embedding)
        image, residuals = self.image(image_residual(*adapted)), evidence.patch_map
        text = None
        if self.needs_text:
            text = text_score(given(evidence.text_cosines, "text prototypes")).detach()
            prototypes = given(evidence.text, "text prototypes").detach()
        else:
            prototypes = self.prototypes.expand(len(evidence), 2, -1)
        grid, scale = evidence.map_grid, self.config.scale
        stages = evidence.query_stages
        discriminative = semantic_map(stages, self.discriminative, prototypes, grid, scale)
        one_class = semantic_map(stages, self.one_class, prototypes.detach(), grid, scale)
        patch, alpha = residuals.amax(-1), self.config.alpha if "patch" in self.terms else 0.0
        priors = [score for score in (image if "image" in self.terms else None, text) if score is not None]
        whole = torch.stack(priors).mean(0) if priors else torch.zeros_like(patch)
        return Scores(
            final=(1 - alpha) * whole + alpha * patch,
            patch_map=residuals,
            patch=patch,
            image=image,
            text=text,
            discriminative_map=discriminative,
            one_class_map=one_class,
            pixel_map=blend(
                average(residuals, discriminative), average(residuals, one_class), self.config.beta
            ),
        )

    def without_normals(self, query: ImageFeatures, text: Float[Tensor, "2 D"] | None) -> Scores:
        """The text score, or without text the map's largest value; and the blend of the semantic maps."""
        prototypes = self.prototypes if text is None or not self.needs_text else text
        prototypes = prototypes.expand(len(query), 2, -1)
        discriminative, one_class = (
            semantic_map(query.stages, adapter, prototypes, query.map_grid, self.config.scale)
            for adapter in (self.discriminative, self.one_class)
        )
        blended = blend(discriminative, one_class, self.config.beta)
        if self.needs_text:
            return replace(super().without_normals(query, text), pixel_map=blended)
        blank = torch.zeros_like(blended)
        return Scores(blended.amax(-1), patch_map=blank, patch=blank.amax(-1), pixel_map=blended)

    def losses(
        self,
        evidence: Evidence,
        scores: Scores,
        targets: Targets,
        focal: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """The focal loss of the image score, and the losses of both branches' maps.

        DASL: two-channel focal loss and Dice loss of its semantic map, and Dice loss of its average with the
        residual map, on all images whose mask is known. OASL: the same for its own map, on the normal images
        of the batch alone, whose masks are empty. A batch without such an image has no such loss.
        """
        found = {"final": focal(scores.final, targets.labels)}
        masks, masked = given(targets.masks, "masks"), given(targets.masked, "masks")
        branches = (
            ("dasl", given(scores.discriminative_map, "a discriminative map"), masked),
            ("oasl", given(scores.one_class_map, "a one-class map"), targets.labels == 0),
        )
        for name, semantic, chosen in branches:
            if not chosen.any():
                continue
            truth = masks[chosen]
            size = (truth.shape[1], truth.shape[2])
            anomalous = upsample(semantic[chosen], evidence.map_grid, size)
            averaged = average(evidence.patch_map[chosen], semantic[chosen])
            channels = torch.stack([1 - anomalous, anomalous], dim=1)  # [B, 2, H, W]
            found[f"{name} focal"] = two_channel_focal_loss(channels, truth)
            found[f"{name} dice"] = dice_loss(anomalous, truth)
            found[f"{name} map dice"] = dice_loss(upsample(averaged, evidence.map_grid, size), truth)
        return found
