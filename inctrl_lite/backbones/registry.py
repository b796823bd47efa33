"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.errors import InctrlError

TIMM = "timm:"
TINY_FOLDER = Path(__file__).parents[1] / "tiny" / "weights"


@dataclass(frozen=True)
class Preset:
    """A backbone that has a name of its own.

    Attributes:
        about: what it is for, in one line.
        megabytes: size of its weights on disk.
        network: whether weights are fetched when it is first used.
        licence: of the weights.
        load: (taps, image_size) -> the backbone.
        image_sizes: whether another image size can be chosen.
    """

    about: str
    megabytes: int
    network: bool
    licence: str
    load: Callable[[Sequence[int] | None, int | None], Backbone]
    image_sizes: bool = False


def _photo(name: str) -> Callable[[Sequence[int] | None, int | None], Backbone]:
    def load(taps: Sequence[int] | None, image_size: int | None) -> Backbone:
        from inctrl_lite.backbones.photo import load_photo

        return load_photo(name, image_size)

    return load


def _clip(
    label: str, name: str, pretrained: str | None
) -> Callable[[Sequence[int] | None, int | None], Backbone]:
    def load(taps: Sequence[int] | None, image_size: int | None) -> Backbone:
        from inctrl_lite.backbones.clip import load_clip

        return load_clip(name, pretrained, taps=taps, label=label)

    return load


def _timm(label: str, name: str) -> Callable[[Sequence[int] | None, int | None], Backbone]:
    def load(taps: Sequence[int] | None, image_size: int | None) -> Backbone:
        from inctrl_lite.backbones.timm_model import load_timm

        return load_timm(name, taps=taps, label=label)

    return load


PRESETS: dict[str, Preset] = {
    "photo": Preset(
        "photographs: EfficientNet-Lite0, trained on ImageNet", 17, False, "Apache-2.0", _photo("photo"), True
    ),
    "photo-large": Preset(
        "photographs, better and two to three times slower: EfficientNet-Lite2",
        22,
        False,
        "Apache-2.0",
        _photo("photo-large"),
        True,
    ),
    "tiny": Preset(
        "teaching: a CLIP of 8 MB with a text encoder, trained on drawings",
        8,
        False,
        "Apache-2.0",
        _clip("tiny", f"local-dir:{TINY_FOLDER}", None),
    ),
    "paper": Preset(
        "the paper's CLIP: ViT-B/16+ at 240 pixels, trained on LAION-400M",
        834,
        True,
        "MIT (OpenCLIP)",
        _clip("paper", "ViT-B-16-plus-240", "laion400m_e32"),
    ),
    "dinov2-small": Preset(
        "training-free methods on a strong image tower without words",
        88,
        True,
        "Apache-2.0",
        _timm("dinov2-small", "vit_small_patch14_dinov2.lvd142m"),
    ),
    "dinov2-base": Preset(
        "the same, larger",
        346,
        True,
        "Apache-2.0",
        _timm("dinov2-base", "vit_base_patch14_dinov2.lvd142m"),
    ),
    "dinov3-small": Preset(
        "DINOv2's successor",
        86,
        True,
        "DINOv3 License",
        _timm("dinov3-small", "vit_small_patch16_dinov3.lvd1689m"),
    ),
    "dinov3-base": Preset(
        "the same, larger",
        342,
        True,
        "DINOv3 License",
        _timm("dinov3-base", "vit_base_patch16_dinov3.lvd1689m"),
    ),
}


def load_backbone(
    name: str = "tiny",
    pretrained: str | None = None,
    *,
    taps: Sequence[int] | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> Backbone:
    """A frozen backbone.

    Args:
        name: one of `PRESETS` ("photo", "tiny", ...); an open_clip architecture such as "ViT-B-16-plus-240";
            "local-dir:FOLDER", a folder with `open_clip_config.json` and weights; "hf-hub:OWNER/NAME"; or
            "timm:MODEL" and "timm:MODEL.TAG" for an image tower of timm without words.
        pretrained: for an architecture, a weights tag ("laion400m_e32", fetched once from the hub) or the
            path of a weights file. None gives random weights: for trying out, not for scoring.
        taps: blocks or stages to take patch tokens from, counted from 1; None: three in the second half.
        image_size: side of the input in pixels, where the network takes any; None: the one of the weights.
        device: where to put it.

    Raises:
        InctrlError: unknown name or tag, missing or unfit file, no network, an unfit kind of network.
    """
    if name in PRESETS and pretrained is None:
        preset = PRESETS[name]
        if image_size is not None and not preset.image_sizes:
            raise InctrlError(f"the backbone {name!r} has one image size: leave image_size out")
        return preset.load(taps, image_size).to(device)
    if name in PRESETS:
        raise InctrlError(
            f"the backbone {name!r} brings its own weights: leave out pretrained ({pretrained!r})"
        )
    if name.startswith(TIMM):
        from inctrl_lite.backbones.timm_model import load_timm

        model = name.removeprefix(TIMM)
        return load_timm(model, pretrained, taps=taps, image_size=image_size, label=name).to(device)
    from inctrl_lite.backbones.clip import load_clip

    if image_size is not None:
        raise InctrlError(f"the backbone {name!r} has one image size: leave image_size out")
    return load_clip(name, pretrained, taps=taps).to(device)
