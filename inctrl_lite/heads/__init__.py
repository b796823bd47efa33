"""Heads: the learned part, one file each. A new head is its file and one line here."""

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.heads.base import TERMS, Adapter, Head, ScoreHead, fuse
from inctrl_lite.heads.lite import LiteConfig, LiteHead
from inctrl_lite.heads.paper import PaperHead
from inctrl_lite.heads.prior import PriorConfig, PriorHead
from inctrl_lite.heads.v2 import PatchAdapter, V2Config, V2Head

HEADS: dict[str, type[Head]] = {"paper": PaperHead, "lite": LiteHead, "prior": PriorHead, "v2": V2Head}


def own_head(backbone: Backbone) -> str:
    """The InCTRL-lite head for a backbone: "lite" with a text encoder, "prior" without."""
    return "lite" if backbone.has_text_encoder else "prior"


__all__ = [
    "HEADS",
    "TERMS",
    "Adapter",
    "Head",
    "LiteConfig",
    "LiteHead",
    "PaperHead",
    "PatchAdapter",
    "PriorConfig",
    "PriorHead",
    "ScoreHead",
    "V2Config",
    "V2Head",
    "fuse",
    "own_head",
]
