"""The methods that are measured against each other, one file each, all on the same frozen features.

A new method is its own file and one line in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.baselines.base import Answer, Auxiliary, Images, Method
from inctrl_lite.baselines.coop import CoOp
from inctrl_lite.baselines.gaussian import SPADE, PaDiM
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.baselines.nearest import AnomalyDINO, GlobalNearest, PatchMax, PixelNearest
from inctrl_lite.baselines.patchcore import PatchCore
from inctrl_lite.baselines.subspace import SubspaceAD
from inctrl_lite.baselines.text import TextOnly
from inctrl_lite.baselines.winclip import WinCLIP


@dataclass(frozen=True)
class Entry:
    """A method in the registry.

    Attributes:
        make: a new, unfitted instance.
        ablation_of: the head of which this is a version that leaves something out; it is run only where that
            head is the protocol's. None for a method of its own.
    """

    make: Callable[[], Method]
    ablation_of: str | None = None

    @property
    def kind(self) -> type[Method]:
        return type(self.make())


# Which terms of the score the ablations keep.
SUBSETS = (("image", "patch"), ("text", "patch"), ("text", "image"), ("patch",), ("image",), ("text",))

METHODS: dict[str, Entry] = {
    "text only": Entry(TextOnly),
    "raw pixels": Entry(PixelNearest),
    "global embedding": Entry(GlobalNearest),
    "SPADE": Entry(SPADE),
    "PaDiM": Entry(PaDiM),
    "PaDiM, shrunk": Entry(partial(PaDiM, dimensions=64, shrink=True)),
    "PatchCore": Entry(PatchCore),
    "patch max": Entry(PatchMax),
    "patch max, not augmented": Entry(partial(PatchMax, augment=False), "lite"),
    "AnomalyDINO-style": Entry(AnomalyDINO),
    "SubspaceAD-style": Entry(SubspaceAD),
    "WinCLIP": Entry(WinCLIP),
    "CoOp": Entry(CoOp),
    "InCTRL (paper's head)": Entry(partial(InCTRLMethod, "paper")),
    "InCTRLv2": Entry(partial(InCTRLMethod, "v2")),
    "InCTRL-lite": Entry(partial(InCTRLMethod, "own")),
    "InCTRL-lite, untrained": Entry(partial(InCTRLMethod, "own", learn=False)),
    "InCTRL-lite, not augmented": Entry(partial(InCTRLMethod, "own", augment=False), "lite"),
    **{
        f"{name}, only {' + '.join(terms)}": Entry(partial(InCTRLMethod, head, terms), ablation_of)
        for name, head, ablation_of, parts in (
            ("InCTRL-lite", "own", "lite", SUBSETS),
            ("InCTRL (paper's head)", "paper", "paper", SUBSETS),
            ("InCTRL-lite", "own", "prior", (("patch", "prior"), ("prior",))),
        )
        for terms in parts
    },
}

# Named in the paper's tables, and not here.
MISSING = {
    "RegAD": "trains a registration network of its own on ResNet features of the auxiliary set; it does not "
    "stand on the shared frozen features and would need a package of its own size"
}


def methods_for(backbone: Backbone, head: str) -> dict[str, Entry]:
    """The methods that run on a backbone; ablations only of one head."""
    return {
        name: entry
        for name, entry in METHODS.items()
        if entry.kind.needs <= backbone.provides and entry.ablation_of in (None, head)
    }


__all__ = ["METHODS", "MISSING", "Answer", "Auxiliary", "Entry", "Images", "Method", "methods_for"]
