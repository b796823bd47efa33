"""Backbones of open_clip: a Vision Transformer and a text tower in one joint space."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inctrl_lite.backbones.base import (
    Backbone,
    ImageFeatures,
    Stage,
    TextEncoder,
    WindowEncoder,
    check_taps,
    region_tokens,
)
from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor

RESIZE_MODES = {"shortest": "crop", "squash": "squeeze", "longest": "letterbox"}  # open_clip's names, ours


class ClipTextEncoder(TextEncoder):
    """open_clip's text tower."""

    def __init__(self, clip: Any, tokenizer: Callable[[list[str]], Tensor]):
        super().__init__()
        self.clip, self.tokenizer = clip, tokenizer
        self.context_width = clip.token_embedding.embedding_dim

    @torch.no_grad()
    def encode(self, sentences: Sequence[str], batch_size: int = 256) -> Float[Tensor, "P D"]:
        """Embeddings of sentences in the joint space, not normalised."""
        tokens = self._tokens(sentences)
        return torch.cat([self.clip.encode_text(part) for part in tokens.split(batch_size)])

    def encode_with_context(
        self, sentences: Sequence[str], context: Float[Tensor, "T W"]
    ) -> Float[Tensor, "P D"]:
        """Embeddings of "<context> sentence". T placeholder words are written first and then replaced."""
        clip, length = self.clip, len(context)
        tokens = self._tokens(["x " * length + sentence for sentence in sentences])
        embedded = clip.token_embedding(tokens)  # [P, T + words, W]
        learned = context.to(embedded)[None].expand(len(tokens), -1, -1)
        hidden = torch.cat([embedded[:, :1], learned, embedded[:, 1 + length :]], 1)  # after the start token
        hidden = clip.transformer(
            hidden + clip.positional_embedding[: hidden.shape[1]], attn_mask=clip.attn_mask
        )
        ends = tokens.argmax(-1)  # the end-of-text token has the highest number
        pooled = clip.ln_final(hidden)[torch.arange(len(tokens), device=ends.device), ends]  # [P, W]
        return pooled @ clip.text_projection

    def _tokens(self, sentences: Sequence[str]) -> Int[Tensor, "P T"]:
        with torch.device("cpu"):  # tokenizers make tensors without a device
            tokens = self.tokenizer(list(sentences))
        return tokens.to(self.clip.positional_embedding.device)


class ClipBackbone(Backbone, WindowEncoder):
    """A frozen CLIP of open_clip, with a Vision Transformer as image tower.

    Attributes:
        clip: the open_clip model.
        taps: blocks whose patch tokens are the stages, counted from 1: residual-stream outputs, without
            class token, final norm or projection.
        depth: number of blocks.
        width: C, the same for all stages.
        image_size: rows and columns of the input.

    Raises:
        InctrlError: the image tower is no Vision Transformer of open_clip, or taps that it does not have.
    """

    clip: Any  # open_clip's classes are told apart by what they have

    def __init__(
        self,
        clip: Any,
        preprocessor: Preprocessor,
        tokenizer: Callable[[list[str]], Tensor],
        *,
        name: str,
        pretrained: str | None = None,
        taps: Sequence[int] | None = None,
    ):
        super().__init__()
        visual = clip.visual
        if not hasattr(visual, "transformer") or not hasattr(visual, "grid_size"):
            raise InctrlError(
                f"backbone {name!r} has a {type(visual).__name__} as image tower, not open_clip's own Vision "
                "Transformer, whose patch tokens InCTRL needs: choose a ViT, such as ViT-B-16-plus-240"
            )
        self.depth = len(visual.transformer.resblocks)
        self.taps = check_taps(taps, self.depth, name)
        self.clip = clip.eval().requires_grad_(False)
        self.preprocessor, self.name, self.pretrained = preprocessor, name, pretrained
        self.text_encoder = ClipTextEncoder(clip, tokenizer)
        self.map_grid = tuple(visual.grid_size)
        self.image_size = tuple(visual.image_size)
        self.embed_dim = visual.output_dim
        self.width = visual.transformer.width
        self.stage_widths = (self.width,) * len(self.taps)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"name": self.name, "pretrained": self.pretrained, "taps": list(self.taps)}

    @property
    def visual(self) -> nn.Module:
        visual: nn.Module = self.clip.visual
        return visual

    @property
    def window_encoder(self) -> WindowEncoder:
        return self

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        blocks = sorted({*self.taps, self.depth})
        out = self.clip.visual.forward_intermediates(
            images,
            indices=[block - 1 for block in blocks],
            normalize_intermediates=False,
            output_fmt="NLC",
        )
        tokens = dict(zip(blocks, out["image_intermediates"], strict=True))  # block -> [B, N, C]
        return ImageFeatures(
            out["image_features"],
            tuple(Stage(tokens[tap], self.map_grid) for tap in self.taps),
            self.map_grid,
            region_tokens(tokens[self.depth], self.map_grid),
        )

    @torch.no_grad()
    def encode_windows(
        self, images: Float[Tensor, "B 3 H W"], windows: Int[Tensor, "V n"], at_once: int = 1024
    ) -> Float[Tensor, "B V D"]:
        """Global embeddings of parts of the images, each as if the image held nothing else (WinCLIP).

        Class token and the window's patch tokens, with the position embeddings that they have in the whole
        image, go through the transformer alone.

        Args:
            windows: numbers of the patches of each window.
            at_once: windows in memory at a time.
        """
        visual, tokens = self.clip.visual, self._embedded(images)
        cls = tokens[:, None, :1].expand(-1, len(windows), -1, -1)
        parts = torch.cat([cls, tokens[:, 1:][:, windows]], 2).flatten(0, 1)  # [B W, 1 + n, C]
        out = torch.cat([visual.transformer(part)[:, 0] for part in parts.split(at_once)])  # [B W, C]
        return (visual.ln_post(out) @ visual.proj).unflatten(0, (len(images), -1))

    @torch.no_grad()
    def encode_last_block(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Patch tokens of the last block."""
        return self.clip.visual.transformer(self._embedded(images))[:, 1:]

    def _embedded(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T C"]:
        """What the first block takes: class token and patches with their positions (T = 1 + N)."""
        visual = self.clip.visual
        patches = visual.conv1(images).flatten(2).transpose(1, 2)  # [B, N, C]
        cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        return visual.ln_pre(torch.cat([cls, patches], 1) + visual.positional_embedding)


def load_clip(
    name: str, pretrained: str | None = None, *, taps: Sequence[int] | None = None, label: str | None = None
) -> ClipBackbone:
    """A CLIP of open_clip.

    Args:
        name: an architecture such as "ViT-B-16-plus-240", or "local-dir:FOLDER", a folder with
            `open_clip_config.json` and weights, or "hf-hub:OWNER/NAME".
        pretrained: for an architecture, a weights tag ("laion400m_e32", fetched once from the hub) or the
            path of a checkpoint file. None gives random weights: for trying out, not for scoring.
        taps: blocks to take patch tokens from, counted from 1; None: `default_taps`.
        label: the backbone's name; None: `name`.

    Raises:
        InctrlError: unknown name or tag, missing or unfit file, no network, not a Vision Transformer.
    """
    import open_clip

    _check_exists(open_clip, name, pretrained)
    try:
        weights = pretrained
        if pretrained and _hub_is_another(config := open_clip.get_pretrained_cfg(name, pretrained)):
            weights = open_clip.pretrained.download_pretrained(config, prefer_hf_hub=False)
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols
            clip = open_clip.create_model(
                name, pretrained=weights, **_settings_of_file(open_clip, name, pretrained)
            )
        tokenizer = open_clip.get_tokenizer(name)
    except InctrlError:
        raise
    except Exception as error:  # open_clip raises whatever its loaders raise
        raise InctrlError(_advice(open_clip, label or name, pretrained, error)) from error
    preprocessor = _preprocessor(clip.visual.preprocess_cfg)
    return ClipBackbone(clip, preprocessor, tokenizer, name=label or name, pretrained=pretrained, taps=taps)


def _preprocessor(settings: dict[str, Any]) -> Preprocessor:
    """The preprocessing that the weights were trained with."""
    size = settings["size"]
    return Preprocessor(
        size=(size, size) if isinstance(size, int) else tuple(size),
        mode=RESIZE_MODES[settings["resize_mode"]],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        border=settings["fill_color"],
    )


def _settings_of_file(open_clip: Any, name: str, pretrained: str | None) -> dict[str, Any]:
    """Preprocessing and activation for a weights file, as arguments of `open_clip.create_model`.

    open_clip knows them by the weights' tag, which a file does not carry. Where all tags of the architecture
    agree, or where the file's name holds a tag, they are known.

    Raises:
        InctrlError: the tags disagree and the file's name holds none of them.
    """
    if not pretrained or not Path(pretrained).is_file():
        return {}
    found = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        config = open_clip.get_pretrained_cfg(name, tag)
        preprocessing = {key: config[key] for key in _PREPROCESSING if config.get(key) is not None}
        arguments = {
            "force_preprocess_cfg": preprocessing,
            "force_quick_gelu": bool(config.get("quick_gelu")),
        }
        found[tag] = arguments
    same = [arguments for tag, arguments in found.items() if tag in Path(pretrained).name] or [
        *found.values()
    ]
    if any(arguments != same[0] for arguments in same):
        raise InctrlError(
            f"{pretrained} does not say which weights of {name} it holds, and they differ in preprocessing "
            f"or activation: put the tag into the file's name (one of {', '.join(found)})"
        )
    return same[0] if same else {}


_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def _check_exists(open_clip: Any, location: str, pretrained: str | None) -> None:
    """Raise the errors that are better said before open_clip tries."""
    if pretrained and location.startswith(("local-dir:", "hf-hub:")):
        raise InctrlError(f"{location} brings its own weights: leave out pretrained ({pretrained!r})")
    if location.startswith("local-dir:"):
        folder = Path(location.removeprefix("local-dir:"))
        config = folder / "open_clip_config.json"
        if not config.is_file():
            raise InctrlError(
                f"no backbone in {folder}: {config.name} is missing. Expected there: {config.name} and the "
                "weights (open_clip_model.safetensors)"
            )
        try:
            json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
        except (ValueError, KeyError, TypeError) as error:
            raise InctrlError(f"{config} is not an open_clip model configuration: {error}") from error
        if not any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.bin", "*.pt*")):
            raise InctrlError(f"no weights in {folder}: put open_clip_model.safetensors beside {config.name}")
        return
    if location.startswith("hf-hub:"):
        return
    if location not in open_clip.list_models():
        raise InctrlError(
            f"unknown backbone {location!r}. Choose 'photo', 'tiny', 'local-dir:FOLDER', 'timm:MODEL' or an "
            f"open_clip architecture{_suggest(location, open_clip.list_models())}"
        )
    if pretrained and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(location)
        if pretrained.lower().replace("-", "_") not in {tag.lower() for tag in tags}:
            raise InctrlError(
                f"{pretrained!r} is neither a file nor a weights tag of {location}. Its tags: "
                f"{', '.join(tags) or 'none'}"
            )


def _hub_is_another(config: dict[str, Any]) -> bool:
    """Whether open_clip would take these weights from a hub repository of other weights.

    open_clip (3.3) sends the paper's `laion400m_e32` to the repository of `laion400m_e31`; the release file
    behind its address is the right one, and is taken instead.
    """
    hub, address = config.get("hf_hub", "").strip("/"), config.get("url", "")
    epochs = hub.rpartition("_")[2]
    return bool(hub and address) and bool(re.fullmatch(r"e\d+", epochs)) and f"_{epochs}-" not in address


def _suggest(wrong: str, right: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, right, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else " (open_clip.list_models() lists them)"


def _advice(open_clip: Any, name: str, pretrained: str | None, error: Exception) -> str:
    """What went wrong while loading, and what to do about it."""
    cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if isinstance(error, UnpicklingError):  # torch's own message advises to run the code
        cause = "it is damaged, or a pickle that would run code when it is read"
    if pretrained and Path(pretrained).is_file():
        return (
            f"{pretrained} does not load into {name} ({cause}). Give the checkpoint of this very "
            "architecture; files that hold more than tensors are refused"
        )
    if pretrained:
        config = open_clip.get_pretrained_cfg(name, pretrained)
        hub = "" if _hub_is_another(config) else config.get("hf_hub", "").strip("/")
        source = f"open_clip_model.safetensors of {hub} (Hugging Face Hub)" if hub else config.get("url")
        return (
            f"the weights {pretrained!r} of {name} could not be fetched ({cause}). Without a network, fetch "
            f"{source} elsewhere and give the file's path in place of {pretrained!r}"
        )
    return f"backbone {name!r} could not be loaded ({cause})"
