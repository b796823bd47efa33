"""Reading checkpoints: safetensors, and the `.pyth` files of the public InCTRL code.

No code in a file is ever run: a file that contains objects other than tensors is refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inctrl_lite.errors import InctrlError

if TYPE_CHECKING:
    from inctrl_lite.backbones.base import Backbone
    from inctrl_lite.model import InCTRL

# Our names -> the public code's. Its heads also declare a BatchNorm `bn1` on the input, which is never used.
_HEADS = {"head.holistic": "diff_head", "head.image": "diff_head_ref"}
_LAYERS = {
    "layer1": "projection1",
    "layer2": "projection2",
    "layer3": "projection3",
    "norm1": "bn2",
    "norm2": "bn3",
}
PUBLIC_KEYS: dict[str, str] = {
    "head.adapter.down.weight": "adapter.fc.0.weight",
    "head.adapter.up.weight": "adapter.fc.2.weight",
    **{
        f"{ours}.{layer}.{part}": f"{public}.{public_layer}.{part}"
        for ours, public in _HEADS.items()
        for layer, public_layer in _LAYERS.items()
        for part in (
            ("weight", "bias")
            if layer.startswith("layer")
            else ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        )
    },
}


@dataclass(frozen=True)
class LoadReport:
    """The keys of a public checkpoint, sorted by their use.

    Attributes:
        missing: keys that the model needs and the file does not have (empty if loading succeeded).
        backbone: keys of the CLIP model inside the file.
        dead: keys of layers that the public code declares and never uses.
        unused: all other keys.
    """

    missing: tuple[str, ...]
    backbone: tuple[str, ...]
    dead: tuple[str, ...]
    unused: tuple[str, ...]


_CLIP_PREFIXES = ("visual.", "transformer.", "token_embedding.", "ln_final.")
_CLIP_KEYS = ("positional_embedding", "text_projection", "logit_scale", "attn_mask")


def split_public(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], LoadReport]:
    """Split a public state dict into (learned weights under our names, CLIP weights, report)."""
    ours = {key: state[public] for key, public in PUBLIC_KEYS.items() if public in state}
    clip = {k: v for k, v in state.items() if k.startswith(_CLIP_PREFIXES) or k in _CLIP_KEYS}
    known = set(PUBLIC_KEYS.values()) | set(clip)
    rest = [key for key in state if key not in known]
    dead = tuple(key for key in rest if ".bn1." in key and key.split(".")[0] in _HEADS.values())
    report = LoadReport(
        missing=tuple(public for public in PUBLIC_KEYS.values() if public not in state),
        backbone=tuple(clip),
        dead=dead,
        unused=tuple(key for key in rest if key not in dead),
    )
    return ours, clip, report


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors`, `.pyth`, `.pt` or `.pth` file, read without running any code in it.

    Raises:
        InctrlError: the file is missing or damaged, or contains objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InctrlError(f"no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message advises to run the code
        raise InctrlError(
            f"{path} is refused: it is damaged, or a pickle that would run code when it is read. Only files "
            "that contain nothing but tensors are accepted"
        ) from error
    except Exception as error:  # zip and safetensors errors of many kinds
        cause = str(error).splitlines()[0][:200]
        raise InctrlError(
            f"{path} is not a checkpoint that can be read safely ({type(error).__name__}: {cause}). It is "
            "damaged, or no checkpoint"
        ) from error
    for wrapper in ("model_state", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InctrlError(f"{path} contains no state dict: a dictionary of names and tensors is expected")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_public(path: str | Path) -> tuple[InCTRL, dict[str, Tensor], LoadReport]:
    """A model trained with the public code: (`InCTRL` with the paper's head, CLIP weights, report).

    The file also contains the whole CLIP model. Load those weights with `Backbone.clip.load_state_dict` to
    be sure that the frozen part is the one with which the model was trained.

    Raises:
        InctrlError: the file is no such checkpoint, or keys are missing (the message names the first one).
    """
    from inctrl_lite.model import InCTRL

    learned, clip, report = split_public(read_tensors(path))
    if report.missing:
        raise InctrlError(
            f"{path} is no checkpoint of the public InCTRL code: {len(report.missing)} of {len(PUBLIC_KEYS)} "
            f"keys are missing, first {report.missing[0]}"
        )
    model = InCTRL(
        embed_dim=learned["head.adapter.down.weight"].shape[1],
        num_patches=learned["head.holistic.layer1.weight"].shape[1],
    )
    model.load_state_dict(learned)
    return model.eval(), clip, report


def check_fits(model: InCTRL, backbone: Backbone) -> None:
    """Check that a trained model and a backbone belong together.

    Raises:
        InctrlError: embedding width, map grid, stage widths or text encoder do not fit.
    """
    trained_on = (model.backbone or {}).get("name", "another backbone")
    wrong_grid = not model.head.any_grid and model.num_patches != backbone.num_patches
    wrong_stages = bool(model.stage_widths) and model.stage_widths != backbone.stage_widths
    if model.embed_dim != backbone.embed_dim or wrong_grid or wrong_stages:
        raise InctrlError(
            f"the model was trained on {trained_on}, for embeddings of width {model.embed_dim} and "
            f"{model.num_patches} patches; the backbone {backbone.name} has {backbone.embed_dim} and "
            f"{backbone.num_patches}. Use the one it was trained on"
        )
    if model.head.needs_text and not backbone.has_text_encoder:
        raise InctrlError(
            f"the model needs a text encoder, and the backbone {backbone.name} has none. Use the backbone it "
            f"was trained on, {trained_on}"
        )
