"""Image towers of timm (DINOv2, DINOv3, ...), for the methods that only compare patches: no words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inctrl_lite.backbone import TIMM, Backbone, ImageFeatures, default_taps, window_means
from inctrl_lite.errors import InctrlError


class TimmBackbone(Backbone):
    """A frozen Vision Transformer of timm, at the image size that it was trained at.

    Use `Backbone.load("timm:MODEL")`. `cls` is the class token after the final norm (D = C).
    """

    has_words = False

    def __init__(self, model: nn.Module, name: str, pretrained: str | None, taps: Sequence[int] | None):
        from timm.data import create_transform, resolve_data_config

        nn.Module.__init__(self)
        depth = len(model.blocks)
        self.taps = tuple(taps) if taps is not None else default_taps(depth)
        if not self.taps or not set(self.taps) <= set(range(1, depth + 1)):
            raise InctrlError(f"taps {self.taps}: choose distinct blocks from 1 to {depth} of {name!r}")
        self.model = model.eval().requires_grad_(False)
        settings = resolve_data_config(model=model) | {"crop_pct": 1.0}  # defects lie at borders too
        self.transform, self.tokenizer = create_transform(**settings), None
        self.name, self.pretrained = name, pretrained
        self.grid = tuple(model.patch_embed.grid_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.image_size = tuple(settings["input_size"][1:])
        self.embed_dim = self.width = model.embed_dim

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: str | None = None,
        *,
        taps: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
    ) -> TimmBackbone:
        """Load a tower.

        Args:
            name: "timm:MODEL" (random weights) or "timm:MODEL.TAG" (fetched once from the Hub).
            pretrained: a weights file, in place of fetching.
            taps, device: as in `Backbone.load`.

        Raises:
            InctrlError: unknown model, missing or unfit file, no network, not a Vision Transformer.
        """
        import timm

        model_name = name.removeprefix(TIMM)
        if not timm.is_model(model_name):
            near = timm.list_models(f"*{model_name.split('.')[0].split('_')[-1]}*")[:3]
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InctrlError(f"timm has no model {model_name!r}{hint}")
        if pretrained and not Path(pretrained).is_file():
            raise InctrlError(f"no weights file {pretrained}; leave it out to fetch those of a name.tag")
        overlay = {"file": str(pretrained)} if pretrained else None
        try:
            model = timm.create_model(
                model_name,
                pretrained=bool(pretrained) or "." in model_name,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
            )
        except Exception as error:  # timm and the Hub's client raise of many kinds
            cause = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise InctrlError(
                f"{name!r} could not be loaded ({cause}). Without a network, fetch its weights file "
                "elsewhere and give its path (pretrained)"
            ) from error
        if not hasattr(model, "blocks") or not hasattr(getattr(model, "patch_embed", None), "grid_size"):
            raise InctrlError(f"{name!r} is a {type(model).__name__}: choose a plain Vision Transformer")
        return cls(model, name, pretrained, taps).to(device)

    @property
    def visual(self) -> nn.Module:
        return self.model

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        """Features of images that `transform` has prepared, in one pass; places after the final norm."""
        tokens, taps = self.model.forward_intermediates(
            images, indices=[tap - 1 for tap in self.taps], output_fmt="NLC"
        )
        places = window_means(tokens[:, self.model.num_prefix_tokens :], self.grid)
        return ImageFeatures(tokens[:, 0], torch.stack(list(taps), dim=1), places, self.grid)

    def encode_text(self, sentences: list[str], batch: int = 256) -> Float[Tensor, "P D"]:
        """There is no text tower."""
        raise InctrlError(f"{self.name!r} knows no words: InCTRL needs a CLIP, such as 'tiny'")
