"""What a backbone is, and what it says of an image. Towers of any family follow this contract.

Shapes: B images, L stages, N patches of a stage, C width of its patch tokens, D width of the global
embedding.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite import preprocess
from inctrl_lite.environment import code_version
from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.tensors import TensorRecord

TEXT, WINDOWS = "text", "windows"  # what not every backbone provides


@dataclass(frozen=True, eq=False)
class Stage(TensorRecord):
    """Patch tokens of one block of a Vision Transformer, or of one stage of a convolutional network.

    Attributes:
        tokens: [..., N, C], not normalised; N = rows x columns, row by row.
        grid: rows and columns.

    Raises:
        InctrlError: tokens do not fit the grid.
    """

    tokens: Float[Tensor, "... N C"]
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if math.prod(self.grid) != self.tokens.shape[-2]:
            rows, columns = self.grid
            raise InctrlError(f"{self.tokens.shape[-2]} patches are not {rows} x {columns}: give their grid")


@dataclass(frozen=True, eq=False)
class ImageFeatures(TensorRecord):
    """What a backbone says of B images.

    Attributes:
        global_embedding: one vector an image [B, D], not normalised (for a CLIP: in the joint image-text
            space).
        stages: patch tokens for the patch residual map. Stages may differ in grid and width.
        map_grid: rows and columns of the residual map, to which the maps of all stages are brought.
        regions: means of patch tokens over larger windows, compared position by position; None where a
            backbone has none.
    """

    global_embedding: Float[Tensor, "... D"]
    stages: tuple[Stage, ...]
    map_grid: tuple[int, int]
    regions: Stage | None = None


class TextEncoder(ABC):
    """The text tower of a backbone: sentences to vectors in the joint image-text space.

    Attributes:
        context_width: width of a token's embedding.
        remembered: embeddings that somebody wants to compute only once (`prompts.text_prototypes`).
    """

    context_width: int

    def __init__(self) -> None:
        self.remembered: dict[tuple[str, str], Tensor] = {}

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "P D"]:
        """Embeddings of sentences, not normalised."""

    @abstractmethod
    def encode_with_context(
        self, sentences: Sequence[str], context: Float[Tensor, "T W"]
    ) -> Float[Tensor, "P D"]:
        """Embeddings of "<context> sentence", where the context is T vectors in place of T words (CoOp)."""


class WindowEncoder(ABC):
    """Embeds parts of images, each as if the image held nothing else (WinCLIP)."""

    @abstractmethod
    def encode_windows(
        self, images: Float[Tensor, "B 3 H W"], windows: Int[Tensor, "V n"]
    ) -> Float[Tensor, "B V D"]:
        """Global embeddings of windows; each row of `windows` numbers the n patches of one window."""

    @abstractmethod
    def encode_last_block(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N C"]:
        """Patch tokens of the last block."""


class Backbone(nn.Module, ABC):
    """A frozen network: images in, features out. Always in eval mode.

    Use `load_backbone`.

    Attributes:
        name, pretrained: what `load_backbone` was called with.
        preprocessor: picture -> input, and map -> picture.
        map_grid: rows and columns of the residual map at the preprocessor's size.
        embed_dim: width D of the global embedding.
        stage_widths: C of each stage.
        text_encoder: the text tower, or None.
        input_multiple: the input may have any sides that are multiples of so many pixels; None: it has the
            preprocessor's size.
    """

    name: str
    pretrained: str | None
    preprocessor: Preprocessor
    map_grid: tuple[int, int]
    embed_dim: int
    stage_widths: tuple[int, ...]
    text_encoder: TextEncoder | None = None
    input_multiple: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.training = False  # PyTorch's modules start in training mode

    @abstractmethod
    def encode_images(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        """Features of images that `preprocessor` has prepared, in one pass."""

    @property
    @abstractmethod
    def visual(self) -> nn.Module:
        """The image tower: all weights that image features depend on."""

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What `load_backbone` needs to load it again; saved with a model that is trained on it."""

    @property
    def has_text_encoder(self) -> bool:
        return self.text_encoder is not None

    @property
    def window_encoder(self) -> WindowEncoder | None:
        """For WinCLIP, or None."""
        return None

    @property
    def provides(self) -> frozenset[str]:
        """Its capabilities beside image features; a method says which ones it needs."""
        found = {TEXT: self.text_encoder, WINDOWS: self.window_encoder}
        return frozenset(name for name, encoder in found.items() if encoder is not None)

    @property
    def num_patches(self) -> int:
        """Cells of the residual map."""
        return math.prod(self.map_grid)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Backbone:
        """Frozen: stays in eval mode, also when the module around it is set to train."""
        return super().train(False)

    @property
    def fingerprint(self) -> str:
        """Digest of all that image features depend on: weights, layers, stages, preprocessing, code."""
        settings = [
            code_version(__name__, type(self).__module__, preprocess.__name__),
            self.preprocessor,
            {k: v for k, v in self.arguments.items() if k not in ("name", "pretrained")},
            *(f"{type(m).__name__} {_plain_settings(m)}" for m in self.visual.modules()),
        ]
        return self._digest(repr(settings))

    @property
    def weights_digest(self) -> str:
        """Digest of the image tower's weights alone, the same in every version of this package."""
        return self._digest("")

    def _digest(self, settings: str) -> str:
        digest = hashlib.blake2b(settings.encode(), digest_size=8)
        for tensor in self.visual.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _plain_settings(module: nn.Module) -> dict[str, Any]:
    """What a layer does beside its weights: numbers of heads, epsilons, kinds of pooling."""
    plain = bool | int | float | str | tuple
    return {k: v for k, v in vars(module).items() if isinstance(v, plain) and not k.startswith("_")}


def default_taps(depth: int) -> tuple[int, ...]:
    """Blocks to take patch tokens from, counted from 1: three in the second half, never the last.

    The public code's 7, 9, 11 of 12, stretched to other depths; the last block serves the class token.

    >>> default_taps(12), default_taps(6), default_taps(24)
    ((7, 9, 11), (3, 4, 5), (15, 19, 23))
    """
    step = max(1, round(depth / 6))
    return tuple(sorted({max(1, depth - 1 - step * i) for i in range(3)}))


def check_taps(taps: Sequence[int] | None, depth: int, name: str) -> tuple[int, ...]:
    """The blocks to take patch tokens from, in order; None: `default_taps`.

    Raises:
        InctrlError: no block, one that is not there, or one twice.
    """
    chosen = default_taps(depth) if taps is None else tuple(taps)
    if not chosen or len(set(chosen)) < len(chosen) or any(not 1 <= tap <= depth for tap in chosen):
        raise InctrlError(f"taps {chosen}: choose distinct blocks from 1 to {depth} of {name!r}")
    return tuple(sorted(chosen))


REGION_SIZE, REGION_STRIDE = 3, 2  # in patches


def region_grid(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of regions on a grid of patches.

    >>> region_grid((15, 15))
    (7, 7)
    """
    rows, columns = (max(1, (side - REGION_SIZE) // REGION_STRIDE + 1) for side in grid)
    return rows, columns


def region_tokens(tokens: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Stage:
    """Means of patch tokens over windows of 3 x 3 patches, two apart. A small shift changes them little."""
    image = tokens.transpose(1, 2).unflatten(2, grid)  # [B, C, rows, columns]
    window = (min(REGION_SIZE, grid[0]), min(REGION_SIZE, grid[1]))
    means = F.avg_pool2d(image, window, stride=REGION_STRIDE)
    return Stage(means.flatten(2).transpose(1, 2), region_grid(grid))  # [B, Q, C]
