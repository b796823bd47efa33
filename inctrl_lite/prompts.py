"""The text prior: what a category looks like, said in words.

Every category name is put into sentences that describe a flawless and a damaged specimen: *states* say
which, *templates* say how the picture was taken (the compositional ensemble of WinCLIP, with the wording
of InCTRL's public code). The mean of their embeddings gives two prototypes, one normal, one anomalous.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from inctrl_lite.errors import InctrlError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from inctrl_lite.backbones.base import Backbone

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")

TEMPLATES = (
    *(
        f"a {quality}photo of {article} {{}}."
        for quality in ("", "cropped ", "close-up ", "bright ", "dark ", "jpeg corrupted ", "blurry ")
        for article in ("a", "the")
    ),
    *(f"a photo of {article} {size} {{}}." for article in ("a", "the") for size in ("small", "large")),
    *(
        f"a photo of {article} {{}} for {purpose}."
        for article in ("a", "the")
        for purpose in ("visual inspection", "anomaly detection")
    ),
)

# Natural categories: "a damaged cat" is not what makes a picture anomalous there, so the public code
# gives them one short sentence each. "animal" is CIFAR-10's multi-class case.
SHORT_PROMPT_CATEGORIES = frozenset(
    "airplane automobile bird cat deer dog frog horse ship truck animal".split()
)


# Names whose first sound is a vowel; "an" stands before them.
_AN = re.compile(r"(?!eu|one|once)[aeio]", re.IGNORECASE)
# Names of the paper's data sets, before which the public code writes "a" all the same.
_PUBLIC_WORDING = frozenset({"AITEX", "elpv"})


def text_prompts(category: str) -> tuple[list[str], list[str]]:
    """The sentences for a category: (normal, anomalous).

    154 and 88 of them (7 and 4 states in 22 templates), or one each for the natural categories in
    `SHORT_PROMPT_CATEGORIES`. Underscores in the name become spaces. Source: public code, which writes "a"
    before every name; here it is "an even digit", but "a AITEX" and "a elpv" as there.

    >>> normal, anomalous = text_prompts("metal_nut")
    >>> len(normal), len(anomalous)
    (154, 88)
    >>> anomalous[0]
    'a photo of a damaged metal nut.'
    >>> text_prompts("cat")
    (['a photo of cat for anomaly detection.'], ['a photo without cat for anomaly detection.'])
    """
    name = category.replace("_", " ").strip()
    if name in SHORT_PROMPT_CATEGORIES:
        return [f"a photo of {name} for anomaly detection."], [
            f"a photo without {name} for anomaly detection."
        ]

    def ensemble(states: tuple[str, ...]) -> list[str]:
        sentences = [template.format(state.format(name)) for state in states for template in TEMPLATES]
        if _AN.match(name) and name not in _PUBLIC_WORDING:
            sentences = [sentence.replace(f" a {name}", f" an {name}") for sentence in sentences]
        return sentences

    return ensemble(NORMAL_STATES), ensemble(ANOMALOUS_STATES)


def text_prototype(embeddings: Float[Tensor, "P D"]) -> Float[Tensor, " D"]:
    """Unit-length mean of the unit-length embeddings of a class's sentences."""
    return F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1)


def text_prototypes(backbone: Backbone, category: str) -> Float[Tensor, "2 D"]:
    """The normal and the anomalous prototype of a category, each of unit length (paper, section 3.4).

    Costs a pass of the text encoder over 242 sentences. The text encoder is frozen and remembers the result.

    Raises:
        InctrlError: the backbone has no text encoder.
    """
    encoder = backbone.text_encoder
    if encoder is None:
        raise InctrlError(
            f"the backbone {backbone.name!r} has no text encoder: choose a CLIP, such as 'tiny'"
        )
    key = (category, str(backbone.device))
    if key not in encoder.remembered:
        prototypes = [text_prototype(encoder.encode(sentences)) for sentences in text_prompts(category)]
        encoder.remembered[key] = torch.stack(prototypes)
    return encoder.remembered[key]
