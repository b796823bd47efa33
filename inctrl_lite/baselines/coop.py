"""CoOp: instead of hand-written sentences, a learned context in front of the category's name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.backbone import Backbone
from inctrl_lite.baselines.base import Answer, Images
from inctrl_lite.data.category import Category
from inctrl_lite.features import FeatureStore
from inctrl_lite.residual import text_cosines, text_score

WORDS = {"normal": "normal {}", "anomalous": "damaged {}"}


class CoOp:
    """Text score with context vectors that were learned on the auxiliary set. The normal images are not used.

    Differences: two classes that share their context, "normal" and "damaged" in front of the name, so that it
    transfers to categories never seen; trained on the frozen features of the auxiliary set.
    """

    name = "CoOp"
    source = "Zhou et al., IJCV 2022, as a baseline of the InCTRL paper"
    training_free = False

    def __init__(self, context: Tensor, scale: Tensor):
        self.context, self.scale = context, scale

    @classmethod
    def train(
        cls,
        categories: Sequence[Category],
        backbone: Backbone,
        store: FeatureStore,
        *,
        length: int = 8,
        steps: int = 100,
        per_step: int = 8,
        seed: int = 0,
    ) -> CoOp:
        """Learn `length` context vectors on an auxiliary set, `per_step` categories at a time."""
        generator = torch.Generator().manual_seed(seed)
        width = backbone.clip.token_embedding.embedding_dim
        context = nn.Parameter(0.02 * torch.randn(length, width, generator=generator))
        log_scale = nn.Parameter(torch.tensor(10.0).log())
        optimiser = torch.optim.Adam([context, log_scale], lr=2e-3)
        data = [
            (store.load(category.test).cls, torch.tensor([item.label for item in category.test]))
            for category in categories
        ]
        for _ in range(steps):
            loss = torch.zeros(())
            for i in torch.randperm(len(categories), generator=generator)[:per_step].tolist():
                features, labels = data[i]
                text = prototypes(backbone, categories[i].name, context)
                loss = loss + F.cross_entropy(log_scale.exp() * text_cosines(features, text), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return cls(context.detach(), log_scale.exp().detach())

    def fit(self, normals: Images, category: str) -> CoOp:
        with torch.no_grad():
            self.text = prototypes(normals.backbone, category, self.context)
        return self

    def score(self, queries: Images) -> Answer:
        return Answer(text_score(text_cosines(queries.features.cls, self.text), self.scale))


def prototypes(backbone: Backbone, category: str, context: Tensor) -> Tensor:
    """Text prototypes [2, D] of "<context> normal NAME" and "<context> damaged NAME".

    The context takes the places right after the start token: as many words are put there and overwritten.
    """
    clip, length = backbone.clip, len(context)
    sentences = ["x " * length + words.format(category.replace("_", " ")) for words in WORDS.values()]
    tokens = backbone.tokenizer(sentences).to(backbone.device)
    embedded = clip.token_embedding(tokens)
    start = embedded[:, :1]
    learned = context.to(embedded)[None].expand(len(tokens), -1, -1)
    hidden = torch.cat([start, learned, embedded[:, 1 + length :]], 1)
    hidden = clip.transformer(hidden + clip.positional_embedding[: hidden.shape[1]], attn_mask=clip.attn_mask)
    ends = tokens.argmax(-1)  # the end of text has the highest number
    pooled = clip.ln_final(hidden)[torch.arange(len(tokens)), ends]
    return F.normalize(pooled @ clip.text_projection, dim=-1)
