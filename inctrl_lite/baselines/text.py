"""What text alone says."""

from __future__ import annotations

from inctrl_lite.backbones.base import TEXT
from inctrl_lite.baselines.base import Answer, Images, Method
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score


class TextOnly(Method):
    """Zero-shot: is the image nearer to "damaged ..." than to "flawless ..."? No normal image is used."""

    source = "WinCLIP's compositional prompt ensemble (Jeong et al., CVPR 2023), InCTRL's text prior"
    needs = frozenset({TEXT})

    def _fit(self, normals: Images, category: str) -> None:
        self.text = text_prototypes(normals.backbone, category)

    def _score(self, queries: Images) -> Answer:
        return Answer(text_score(text_cosines(queries.features.global_embedding, self.text)))
