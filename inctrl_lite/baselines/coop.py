"""CoOp: instead of hand-written sentences, a learned context in front of the category's name."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.backbones.base import TEXT, Backbone
from inctrl_lite.baselines.base import Answer, Auxiliary, Images, Method
from inctrl_lite.errors import InctrlError
from inctrl_lite.residual import text_cosines, text_score

SENTENCES = ("normal {}", "damaged {}")


class CoOp(Method):
    """Text score with context vectors that are learned on the auxiliary set. The normal images are not used.

    Differences: two classes that share their context, "normal" and "damaged" in front of the name, so that it
    transfers to categories that were not trained on. It is trained on the frozen features of the auxiliary
    set, by Adam for 100 steps (CoOp: SGD for 50 to 200 epochs), with 8 context vectors (CoOp: 4 or 16) and a
    learned scale of the cosines (CoOp: CLIP's).

    Args:
        length: number of context vectors.
        steps: training steps.
        categories_per_step: categories in a step.
    """

    source = "Zhou et al., IJCV 2022, as a baseline of the InCTRL paper"
    needs = frozenset({TEXT})
    is_trained = True

    def __init__(self, length: int = 8, steps: int = 100, categories_per_step: int = 8):
        self.length, self.steps, self.categories_per_step = length, steps, categories_per_step

    def _train(self, auxiliary: Auxiliary, seed: int) -> None:
        backbone, categories = auxiliary.backbone, auxiliary.categories
        if backbone.text_encoder is None:
            raise InctrlError(f"CoOp needs a text encoder, and the backbone {backbone.name!r} has none")
        generator = torch.Generator(device="cpu").manual_seed(seed)
        shape = (self.length, backbone.text_encoder.context_width)
        initial = 0.02 * torch.randn(shape, generator=generator, device="cpu")
        context = nn.Parameter(initial.to(backbone.device))
        log_scale = nn.Parameter(torch.tensor(10.0, device=backbone.device).log())
        optimiser = torch.optim.Adam([context, log_scale], lr=2e-3)
        data = [
            (
                auxiliary.store.load(category.test).global_embedding,
                torch.tensor([int(item.label or 0) for item in category.test], device=backbone.device),
            )
            for category in categories
        ]
        for _ in range(self.steps):
            loss = torch.zeros((), device=backbone.device)
            order = torch.randperm(len(categories), generator=generator, device="cpu")
            for i in order[: self.categories_per_step].tolist():
                features, labels = data[i]
                text = prototypes(backbone, categories[i].name, context)
                loss = loss + F.cross_entropy(log_scale.exp() * text_cosines(features, text), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.context, self.scale = context.detach(), log_scale.exp().detach()

    def _fit(self, normals: Images, category: str) -> None:
        with torch.no_grad():
            self.text = prototypes(normals.backbone, category, self.context)

    def _score(self, queries: Images) -> Answer:
        return Answer(text_score(text_cosines(queries.features.global_embedding, self.text), self.scale))


def prototypes(backbone: Backbone, category: str, context: Float[Tensor, "T W"]) -> Float[Tensor, "2 D"]:
    """Text prototypes of "<context> normal NAME" and "<context> damaged NAME", of unit length."""
    sentences = [sentence.format(category.replace("_", " ")) for sentence in SENTENCES]
    encoder = backbone.text_encoder
    assert encoder is not None  # CoOp.needs
    return F.normalize(encoder.encode_with_context(sentences, context), dim=-1)
