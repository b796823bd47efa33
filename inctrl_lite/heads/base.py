"""What a head is: the learned part, from evidence to scores."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inctrl_lite.backbones.base import ImageFeatures
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Evidence, Scores
from inctrl_lite.losses import Targets
from inctrl_lite.residual import text_cosines, text_score
from inctrl_lite.support import SupportSet

TERMS = ("text", "image", "patch")


class Head(nn.Module, ABC):
    """Evidence in, scores out. All that is learned lies in a head.

    Attributes:
        terms: which terms the score is made of; all but for ablations.
        needs_statistics: it uses the support set's `normal_statistics`.
        augments_support: the support set is to hold augmented copies when images are scored.
        loss_on_logits: the focal loss passes its scores through a second sigmoid, as the public code does.
        all_terms: the terms that this kind of head has.
        any_grid: it works on a residual map of any size.
        learns_from_masks: its losses compare maps with masks.
        terms_without_text: its terms for a backbone without text encoder; None where it needs one.
    """

    needs_statistics: ClassVar[bool] = False
    augments_support: ClassVar[bool] = False
    loss_on_logits: ClassVar[bool] = False
    all_terms: ClassVar[tuple[str, ...]] = TERMS
    any_grid: ClassVar[bool] = False
    learns_from_masks: ClassVar[bool] = False
    terms_without_text: ClassVar[tuple[str, ...] | None] = None
    terms: tuple[str, ...]

    @property
    def needs_text(self) -> bool:
        """Whether it uses the text prototypes."""
        return "text" in self.terms

    @property
    def text_scale(self) -> float | Tensor:
        """Factor of the cosines in the text score; the public code's constant."""
        return 100.0

    @classmethod
    def build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: Collection[str] | None
    ) -> Head:
        """A head with random initial weights for a backbone of these sizes.

        Args:
            embed_dim: D of the global embedding.
            num_patches: N of the residual map.
            stage_widths: C of each stage.
            terms: which terms the score is made of; None: all.

        Raises:
            InctrlError: a term that this head does not have.
        """
        chosen = cls.all_terms if terms is None else tuple(terms)
        if unknown := set(chosen) - set(cls.all_terms):
            raise InctrlError(
                f"{cls.__name__} has no term {', '.join(sorted(unknown))}: choose from "
                f"{', '.join(cls.all_terms)}"
            )
        return cls._build(embed_dim, num_patches, stage_widths, chosen)

    @classmethod
    @abstractmethod
    def _build(
        cls, embed_dim: int, num_patches: int, stage_widths: Sequence[int], terms: tuple[str, ...]
    ) -> Head:
        """What `build` does."""

    def normal_level(self, support: SupportSet) -> Float[Tensor, " 1"] | None:
        """What the head expects of a normal image, from one support set; None where it needs nothing."""
        return None

    def without_normals(self, query: ImageFeatures, text: Float[Tensor, "2 D"] | None) -> Scores:
        """Scores of B queries where no normal image is known (K = 0): the prior alone, which is weak.

        Here the text score; the maps are 0, because there is nothing to be unlike.

        Args:
            query: features of the queries.
            text: text prototypes of the category.

        Raises:
            InctrlError: the head has no prior.
        """
        if "text" not in self.terms:
            raise InctrlError("this head compares queries with normal images: give one or more")
        cosines = text_cosines(query.global_embedding, given(text, "text prototypes"))
        score = text_score(cosines, self.text_scale)
        blank = score.new_zeros(len(score), math.prod(query.map_grid))
        return Scores(score, patch_map=blank, patch=torch.zeros_like(score), text=score)

    @abstractmethod
    def forward(self, evidence: Evidence) -> Scores:
        """Scores of B queries, each in (0, 1); `Scores` says what each term is."""

    def losses(
        self,
        evidence: Evidence,
        scores: Scores,
        targets: Targets,
        focal: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, Tensor]:
        """The parts of the training loss by name; their sum is what training makes small.

        Args:
            evidence, scores: what was compared, and what the head said of it.
            targets: what it should have said.
            focal: the focal loss of scores and labels.
        """
        found = {"final": focal(scores.final, targets.labels)}
        if "image" in self.terms:
            found["image"] = focal(given(scores.image, "an image score"), targets.labels)
        return found


def given(tensor: Tensor | None, what: str) -> Tensor:
    """A part of the evidence that a head cannot do without.

    Raises:
        InctrlError: it is missing.
    """
    if tensor is None:
        raise InctrlError(f"the head needs {what}, which the evidence does not hold")
    return tensor


class Adapter(nn.Module):
    """Psi: two linear layers without bias, ReLU after each; no skip connection (public code).

    Args:
        width: D of the global embedding.
        reduction: the hidden layer has D / reduction units.
    """

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def forward(self, embedding: Float[Tensor, "*b D"]) -> Float[Tensor, "*b D"]:
        """Adapted embeddings, each at least 0."""
        return self.up(self.down(embedding).relu()).relu()


class ScoreHead(nn.Module):
    """Eta and phi: three linear layers from a vector to a score in (0, 1).

    BatchNorm comes after the ReLU, as in the public code.

    Args:
        width: of the input vector.
        norm: use BatchNorm.
    """

    def __init__(self, width: int, norm: bool = True):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = nn.Linear(width, 128), nn.Linear(128, 64), nn.Linear(64, 1)
        self.norm1: nn.Module = nn.BatchNorm1d(128) if norm else nn.Identity()
        self.norm2: nn.Module = nn.BatchNorm1d(64) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, " B"]:
        """Scores in (0, 1)."""
        x = self.norm1(self.layer1(x).relu())
        x = self.norm2(self.layer2(x).relu())
        return self.layer3(x).sigmoid().squeeze(-1)


def fuse(
    terms: Collection[str],
    patches: Float[Tensor, "B M"],
    image: Float[Tensor, " B"],
    text: Float[Tensor, " B"],
) -> Float[Tensor, "B M"]:
    """The holistic map (paper, Eq. 7): the image score and the text score are added to every patch.

    Terms that are not among `terms` count as 0: that is how an ablation is trained.

    >>> patches, half = torch.tensor([[0.0, 1.0]]), torch.tensor([0.5])
    >>> fuse(("patch", "image"), patches, image=half, text=half).tolist()
    [[0.5, 1.5]]
    """
    parts = {"patch": patches, "image": image[:, None], "text": text[:, None]}
    total = torch.zeros_like(patches)
    for term in terms:
        total = total + parts[term]
    return total
