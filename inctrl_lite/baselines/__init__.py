"""The methods that InCTRL is measured against, one file each, all on the same frozen features."""

from inctrl_lite.baselines.base import Answer, Images, Method
from inctrl_lite.baselines.gaussian import SPADE, PaDiM
from inctrl_lite.baselines.nearest import (
    AnomalyDINO,
    ClassNearest,
    PatchMax,
    PatchMaxOneView,
    PixelNearest,
)
from inctrl_lite.baselines.patchcore import PatchCore
from inctrl_lite.baselines.subspace import SubspaceAD
from inctrl_lite.baselines.text import TextOnly
from inctrl_lite.baselines.winclip import WinCLIP

TRAINING_FREE: tuple[type[Method], ...] = (
    TextOnly,
    PixelNearest,
    ClassNearest,
    SPADE,
    PaDiM,
    PatchCore,
    PatchMax,
    PatchMaxOneView,
    AnomalyDINO,
    SubspaceAD,
    WinCLIP,
)

# What a backbone without a text tower cannot run.
NEED_WORDS: tuple[type[Method], ...] = (TextOnly, WinCLIP)

# Named in the paper's tables, and not here.
MISSING = {
    "RegAD": "trains a registration network of its own on ResNet features of the auxiliary set; it does not "
    "stand on the shared frozen features and would need a package of its own size"
}

__all__ = ["MISSING", "NEED_WORDS", "TRAINING_FREE", "Answer", "Images", "Method"]
