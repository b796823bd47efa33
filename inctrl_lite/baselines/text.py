"""What words alone say."""

from __future__ import annotations

from inctrl_lite.baselines.base import Answer, Images
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score


class TextOnly:
    """Zero-shot: is the image nearer to "damaged ..." than to "flawless ..."? No normal image is used."""

    name = "text only"
    source = "WinCLIP's compositional prompt ensemble (Jeong et al., CVPR 2023), InCTRL's text prior"
    training_free = True

    def fit(self, normals: Images, category: str) -> TextOnly:
        self.text = text_prototypes(normals.backbone, category)
        return self

    def score(self, queries: Images) -> Answer:
        return Answer(text_score(text_cosines(queries.features.cls, self.text)))
