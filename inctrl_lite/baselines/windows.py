"""WinCLIP's windows: parts of an image, embedded as if nothing else were there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.backbone import Backbone
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image
from inctrl_lite.features import FeatureStore

SIDES = (2, 3)  # windows of 2 x 2 and 3 x 3 patches


def window_indices(side: int, grid: tuple[int, int]) -> Int[Tensor, "W n"]:
    """Patches of each window of side x side patches, stride 1.

    >>> window_indices(2, (2, 3)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    patches = torch.arange(grid[0] * grid[1]).view(grid)
    return patches.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


@torch.no_grad()
def window_embeddings(
    backbone: Backbone, images: Float[Tensor, "B 3 H W"], at_once: int = 1024
) -> dict[int, Tensor]:
    """Class embeddings of every window [B, W, D] by its side, and the last block's patch tokens (side 1).

    A window is embedded as if the image held nothing else: class token and the window's patch tokens, with
    the position embeddings they have in the whole image, go through the transformer alone.
    """
    visual = backbone.clip.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
    tokens = visual.ln_pre(torch.cat([cls, patches], 1) + visual.positional_embedding)
    found = {}
    for side in SIDES:
        index = window_indices(side, backbone.grid).to(tokens.device)
        cls = tokens[:, None, :1].expand(-1, len(index), -1, -1)
        windows = torch.cat([cls, tokens[:, 1:][:, index]], 2).flatten(0, 1)
        out = torch.cat([visual.transformer(part)[:, 0] for part in windows.split(at_once)])
        found[side] = (visual.ln_post(out) @ visual.proj).unflatten(0, (len(images), -1))
    found[1] = visual.transformer(tokens)[:, 1:]
    return found


def window_residuals(
    query: Float[Tensor, "B W D"], normal: Float[Tensor, "P W D"]
) -> list[Float[Tensor, "B W"]]:
    """For each normal image: half of one minus the cosine of each window to its most similar window."""
    query, normal = F.normalize(query, dim=-1), F.normalize(normal, dim=-1)
    cosines = [torch.stack([(one @ windows.T).amax(1) for one in query]) for windows in normal]
    return [((1 - c) / 2).clamp(0, 1) for c in cosines]  # rounding may leave a cosine above 1


class WindowStore(FeatureStore):
    """Window embeddings on disk, beside the features of a store: they cost ten times as much."""

    def __init__(self, beside: FeatureStore):
        super().__init__(beside.backbone, beside.root, beside.dtype)
        counts = {side: len(window_indices(side, self.backbone.grid)) for side in SIDES}
        widths = {side: self.backbone.embed_dim for side in SIDES} | {1: self.backbone.width}
        self._shapes = {
            side: (n, widths[side]) for side, n in (counts | {1: self.backbone.num_patches}).items()
        }
        self._numbers = sum(n * width for n, width in self._shapes.values())

    @property
    def folder(self) -> Path:
        return super().folder.with_name(f"{super().folder.name}-windows")

    def load(self, items: Sequence[Item]) -> dict[int, Tensor]:
        """Window embeddings as `window_embeddings` gives them; what is missing is computed first."""
        parts = self._read(items).split([n * width for n, width in self._shapes.values()], dim=1)
        return {
            side: part.unflatten(1, shape)
            for (side, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _compute(self, items: Sequence[Item]) -> Tensor:
        images = torch.stack([self.backbone.transform(load_image(item.image)) for item in items])
        found = window_embeddings(self.backbone, images.to(self.backbone.device))
        return torch.cat([found[side].flatten(1) for side in self._shapes], 1)
