"""The paper's head: fuses text score, image residual and patch residuals as the public code does."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.heads.base import TERMS, Adapter, Head, ScoreHead, fuse, given
from inctrl_lite.residual import image_residual, text_score


class PaperHead(Head):
    """InCTRL's learned part, exactly.

    The holistic map adds the image score and the text score to every patch residual (paper, Eq. 7). The final
    score is the mean of the holistic score and of the largest patch residual. The paper's Eq. 8 adds the two
    with a weight alpha instead; the mean is alpha = 1 up to a factor that changes no ranking.

    Args:
        embed_dim: D of the global embedding (640 for ViT-B/16+).
        num_patches: N of the residual map (225 for ViT-B/16+ at 240 pixels).
        terms: which terms the score is made of.
    """

    loss_on_logits = True

    def __init__(self, embed_dim: int, num_patches: int, terms: Collection[str] = TERMS):
        super().__init__()
        self.terms = tuple(terms)
        self.adapter = Adapter(embed_dim)
        self.image = ScoreHead(embed_dim)
        self.holistic = ScoreHead(num_patches)

    @classmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> PaperHead:
        return cls(embed_dim, num_patches, terms)

    def forward(self, evidence: Evidence) -> Scores:
        """Scores with all terms; no gradient flows through the text score."""
        adapted = self.adapter(evidence.query_embedding), self.adapter(evidence.support_embedding)
        image = self.image(image_residual(*adapted))
        text = torch.zeros_like(image)
        if self.needs_text:
            text = text_score(given(evidence.text_cosines, "text prototypes")).detach()
        patch = evidence.patch_map.amax(-1)
        holistic_map = fuse(self.terms, evidence.patch_map, image, text)
        holistic = self.holistic(holistic_map)
        final = (holistic + patch) / 2 if "patch" in self.terms else holistic
        return Scores(final, evidence.patch_map, patch, holistic, image, text, holistic_map=holistic_map)
