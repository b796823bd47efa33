"""WinCLIP's windows: parts of an image, embedded as if nothing else were there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.data.category import Item
from inctrl_lite.encoder import Encoder, batched
from inctrl_lite.environment import code_version
from inctrl_lite.errors import InctrlError
from inctrl_lite.store import FeatureStore, RecordStore
from inctrl_lite.tensors import TensorRecord

SIDES = (1, 2, 3)  # windows of 1 x 1 (the last block's patch tokens), 2 x 2 and 3 x 3 patches
BATCH_SIZE = 16  # images at a time: each has hundreds of windows


@dataclass(frozen=True, eq=False)
class Windows(TensorRecord):
    """Embeddings of the windows of B images.

    Attributes:
        patches: patch tokens of the last block.
        pairs: global embeddings of windows of 2 x 2 patches.
        triples: of 3 x 3 patches.
    """

    patches: Float[Tensor, "B N C"]
    pairs: Float[Tensor, "B W2 D"]
    triples: Float[Tensor, "B W3 D"]

    def of(self, side: int) -> Tensor:
        """Those of side x side patches."""
        return {1: self.patches, 2: self.pairs, 3: self.triples}[side]


def window_indices(side: int, grid: tuple[int, int]) -> Int[Tensor, "W n"]:
    """Patches of each window of side x side patches, stride 1.

    >>> window_indices(2, (2, 3)).tolist()
    [[0, 1, 3, 4], [1, 2, 4, 5]]
    """
    patches = torch.arange(grid[0] * grid[1], device="cpu").view(grid)
    return patches.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


@torch.no_grad()
def window_embeddings(encoder: Encoder, images: Float[Tensor, "B 3 H W"]) -> Windows:
    """Embeddings of all windows of prepared images.

    Raises:
        InctrlError: the backbone cannot embed windows.
    """
    windows, backbone = encoder.backbone.window_encoder, encoder.backbone
    if windows is None:
        raise InctrlError(
            f"the backbone {backbone.name!r} cannot embed windows: choose a CLIP, such as 'tiny'"
        )
    index = {side: window_indices(side, backbone.map_grid).to(images.device) for side in (2, 3)}
    return Windows(
        windows.encode_last_block(images),
        windows.encode_windows(images, index[2]),
        windows.encode_windows(images, index[3]),
    )


def encode_windows(encoder: Encoder, items: Sequence[Item]) -> Windows:
    """Embeddings of all windows of images, read a few at a time."""
    parts = [window_embeddings(encoder, encoder.read(batch)) for batch in batched(items, BATCH_SIZE)]
    return Windows.cat(parts)


def window_store(store: FeatureStore) -> RecordStore[Windows]:
    """Window embeddings on disk, beside the features of a store: they cost ten times as much."""
    blank = torch.zeros(1, 3, *store.backbone.preprocessor.size, device=store.backbone.device)
    return store.part(
        f"windows-{code_version(__name__)}",
        lambda items: encode_windows(store.encoder, items),
        window_embeddings(store.encoder, blank),
    )


def window_residuals(
    query: Float[Tensor, "B W D"], normal: Float[Tensor, "P W D"]
) -> list[Float[Tensor, "B W"]]:
    """For each normal image: half of one minus the cosine of each window to its most similar window."""
    query, normal = F.normalize(query, dim=-1), F.normalize(normal, dim=-1)
    cosines = [torch.stack([(one @ windows.T).amax(1) for one in query]) for windows in normal]
    return [((1 - c) / 2).clamp(0, 1) for c in cosines]  # rounding may leave a cosine above 1
