"""Backbones of timm: Vision Transformers and convolutional networks, without words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.backbones.base import (
    Backbone,
    ImageFeatures,
    Stage,
    check_taps,
    region_tokens,
)
from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor


class TimmBackbone(Backbone):
    """What all networks of timm share."""

    model: Any  # timm's classes are told apart by what they have

    @property
    def visual(self) -> nn.Module:
        module: nn.Module = self.model
        return module


class TimmViT(TimmBackbone):
    """A frozen Vision Transformer of timm (DINOv2, DINOv3, ...), at the image size that it was trained at.

    The global embedding is what the network gives its classifier (D = C): the class token after the final
    norm, or the pooled patch tokens of a network without one. Stages are residual-stream outputs.

    Attributes:
        taps: blocks whose patch tokens are the stages, counted from 1.
    """

    def __init__(self, model: Any, name: str, pretrained: str | None, taps: Sequence[int] | None):
        super().__init__()
        self.taps = check_taps(taps, len(model.blocks), name)
        self.model = model.eval().requires_grad_(False)
        self.preprocessor, self.name, self.pretrained = _preprocessor(model), name, pretrained
        self.map_grid = tuple(model.patch_embed.grid_size)
        self.embed_dim = model.embed_dim
        self.stage_widths = (model.embed_dim,) * len(self.taps)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"name": self.name, "pretrained": self.pretrained, "taps": list(self.taps)}

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        tokens, tapped = self.model.forward_intermediates(
            images, indices=[tap - 1 for tap in self.taps], output_fmt="NLC"
        )
        regions = region_tokens(tokens[:, self.model.num_prefix_tokens :], self.map_grid)
        stages = tuple(Stage(one, self.map_grid) for one in tapped)
        embedding = self.model.forward_head(tokens, pre_logits=True)
        return ImageFeatures(embedding, stages, self.map_grid, regions)


class TimmCNN(TimmBackbone):
    """A frozen convolutional network of timm (EfficientNet, ConvNeXt, ResNet, ...); any input size fits.

    The global embedding is the pooled output of the network without its classifier. The last three stages are
    compared, and the residual map has the grid of the middle one. Finer stages are averaged to that grid:
    comparing every position of a stage of 28 x 28 costs 16 times as much as 14 x 14 and finds no more.

    Attributes:
        taps: stages that are compared, counted from 1 as `forward_intermediates` numbers them.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        pretrained: str | None = None,
        taps: Sequence[int] | None = None,
        preprocessor: Preprocessor | None = None,
        image_size: int | None = None,
    ):
        super().__init__()
        # channels_last: twice as fast on a CPU (benchmarks/speed.py)
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.name, self.pretrained, self.image_size = name, pretrained, image_size
        self.input_multiple = 32  # the factor by which the last stage is coarser
        self.preprocessor = preprocessor or _preprocessor(model)
        if image_size is not None:
            self.preprocessor = replace(self.preprocessor, size=(image_size, image_size))
        count = len(model.feature_info)
        self.taps = check_taps(taps if taps is not None else range(max(1, count - 2), count + 1), count, name)
        sizes = self.encode_images(torch.zeros(1, 3, *self.preprocessor.size))
        self.map_grid, self.embed_dim = sizes.map_grid, sizes.global_embedding.shape[-1]
        self.stage_widths = tuple(stage.tokens.shape[-1] for stage in sizes.stages)

    @property
    def arguments(self) -> dict[str, Any]:
        found = {"name": self.name, "pretrained": self.pretrained, "taps": list(self.taps)}
        return found | ({} if self.image_size is None else {"image_size": self.image_size})

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        images = images.contiguous(memory_format=torch.channels_last)
        last, tapped = self.model.forward_intermediates(images, indices=[tap - 1 for tap in self.taps])
        embedding = self.model.forward_head(last, pre_logits=True)
        rows, columns = tapped[len(tapped) // 2].shape[-2:]
        stages = tuple(stage_of(maps, (rows, columns)) for maps in tapped)
        return ImageFeatures(embedding.flatten(1), stages, (rows, columns))


def stage_of(maps: Float[Tensor, "B C h w"], finest: tuple[int, int]) -> Stage:
    """Feature maps as a stage; a finer grid than `finest` is averaged to it."""
    if maps.shape[-2] > finest[0] or maps.shape[-1] > finest[1]:
        maps = F.adaptive_avg_pool2d(maps, finest)
    rows, columns = maps.shape[-2:]
    return Stage(maps.flatten(2).transpose(1, 2), (rows, columns))  # [B, h w, C]


def load_timm(
    name: str,
    pretrained: str | None = None,
    *,
    taps: Sequence[int] | None = None,
    image_size: int | None = None,
    label: str | None = None,
) -> Backbone:
    """An image tower of timm.

    Args:
        name: a model ("vit_small_patch14_dinov2": random weights) or model.tag ("...dinov2.lvd142m": fetched
            once from the Hub).
        pretrained: a weights file, in place of fetching.
        taps: blocks (ViT) or stages (CNN) to compare, counted from 1; None: three in the second half.
        image_size: side of the input, for convolutional networks; None: the one of the weights.
        label: the backbone's name; None: `name`.

    Raises:
        InctrlError: unknown model, missing or unfit file, no network, or a model that is neither a Vision
            Transformer nor a convolutional network with `forward_intermediates`.
    """
    import timm

    label = label or name
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[-1]}*")[:3]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InctrlError(f"timm has no model {name!r}{hint}")
    if pretrained and not Path(pretrained).is_file():
        raise InctrlError(f"no weights file {pretrained}; leave it out to fetch those of a name.tag")
    overlay = {"file": str(pretrained)} if pretrained else None
    try:
        model = timm.create_model(
            name, pretrained=bool(pretrained) or "." in name, pretrained_cfg_overlay=overlay, num_classes=0
        )
    except Exception as error:  # timm and the Hub's client raise of many kinds
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise InctrlError(
            f"{label!r} could not be loaded ({cause}). Without a network, fetch its weights file elsewhere "
            "and give its path (pretrained)"
        ) from error
    if hasattr(model, "blocks") and hasattr(getattr(model, "patch_embed", None), "grid_size"):
        if image_size is not None:
            raise InctrlError(
                f"{label!r} has one image size, {_preprocessor(model).size}: leave image_size out"
            )
        return TimmViT(model, label, pretrained, taps)
    if hasattr(model, "forward_intermediates") and hasattr(model, "feature_info"):
        return TimmCNN(model, label, pretrained, taps, image_size=image_size)
    raise InctrlError(
        f"{label!r} is a {type(model).__name__}: choose a plain Vision Transformer or a convolutional network"
    )


def _preprocessor(model: Any) -> Preprocessor:
    """The weights' own preprocessing, but without cutting borders off: defects lie there too."""
    from timm.data import resolve_data_config

    settings = resolve_data_config(model=model)
    rows, columns = settings["input_size"][1:]
    return Preprocessor(
        size=(rows, columns),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
    )
