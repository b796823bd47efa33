"""The frozen eye and ear: any open_clip Vision Transformer, seen the way InCTRL needs it."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from inctrl_lite.errors import InctrlError

TINY = "tiny"
TIMM = "timm:"
TINY_FOLDER = Path(__file__).parent / "tiny" / "weights"
PAPER = ("ViT-B-16-plus-240", "laion400m_e32")


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What the backbone says of B images.

    Attributes:
        cls: class embedding in the joint image-text space [B, D], not normalised.
        patches: patch tokens of the tapped blocks [B, L, N, C]: residual-stream outputs, without the
            class token, final norm or projection.
        places: patch tokens of the last block, averaged over windows of 3 x 3 that lie two apart
            [B, Q, C]: what is where (`window_means`).
        grid: rows and columns of patches; if left out, as many rows as columns.
    """

    cls: Float[Tensor, "B D"]
    patches: Float[Tensor, "B L N C"]
    places: Float[Tensor, "B Q C"]
    grid: tuple[int, int] | None = None

    def __post_init__(self):
        patches = self.patches.shape[-2]
        grid = self.grid or (math.isqrt(patches),) * 2
        if math.prod(grid) != patches:
            raise InctrlError(f"{patches} patches are not {grid[0]} x {grid[1]}: say the grid of patches")
        object.__setattr__(self, "grid", grid)

    def __len__(self) -> int:
        return len(self.cls)

    def __getitem__(self, index) -> ImageFeatures:
        """Part of the batch: `features[2:5]`, `features[mask]`."""
        return replace(self, cls=self.cls[index], patches=self.patches[index], places=self.places[index])

    def to(self, *args, **kwargs) -> ImageFeatures:
        """The same on another device or in another type."""
        parts = (part.to(*args, **kwargs) for part in (self.cls, self.patches, self.places))
        return ImageFeatures(*parts, self.grid)

    @classmethod
    def cat(cls, parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Batches joined into one."""
        joined = (torch.cat([getattr(p, name) for p in parts]) for name in ("cls", "patches", "places"))
        return cls(*joined, parts[0].grid)


PLACE = 3  # patches a side of a place; the next one is PLACE - 1 further


def places_shape(grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of places on a grid of patches: 7 x 7 on 15 x 15."""
    return tuple(max(1, (side - 1) // (PLACE - 1)) for side in grid)


def window_means(tokens: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B Q C"]:
    """Means of patch tokens over windows of 3 x 3 patches, two apart: a little shift is forgiven."""
    image = tokens.transpose(1, 2).unflatten(2, grid)
    window = tuple(min(PLACE, side) for side in grid)
    return F.avg_pool2d(image, window, stride=PLACE - 1).flatten(2).transpose(1, 2)


# More views of a normal prompt: turned by degrees, moved by patches to the right and down, scaled. A move by
# half a patch puts other pixels together in a patch. Chosen on the sets of benchmarks/choose_whole.py, as was
# which come first: many prompts need fewer, and a query is compared with no more than MAX_PICTURES.
VIEWS = (
    (0, 0.5, 0.5, 1),
    (0, 0, 0, 1.06),
    (0, 0, 0, 0.94),
    (0, 0.5, 0, 1),
    (0, 0, 0.5, 1),
    (6, 0, 0, 1),
    (-6, 0, 0, 1),
)
MAX_PICTURES = 32


def view_count(shots: int) -> int:
    """How many of `VIEWS` each of K prompts is seen in.

    >>> [view_count(shots) for shots in (1, 4, 8, 16, 32)]
    [7, 7, 3, 1, 0]
    """
    return max(0, min(len(VIEWS), MAX_PICTURES // shots - 1))


def more_views(
    images: Float[Tensor, "B 3 H W"], grid: tuple[int, int], count: int = len(VIEWS)
) -> Float[Tensor, "B V 3 H W"]:
    """Each image turned, moved and scaled a little (the first of `VIEWS`); the border is repeated outside."""
    height, width = images.shape[-2:]
    found = []
    for degrees, right, down, scale in VIEWS[:count]:
        cos, sin = (f(math.radians(degrees)) / scale for f in (math.cos, math.sin))
        matrix = images.new_tensor(  # where a pixel of the view comes from, in halves of the image's sides
            [
                [cos, -sin * height / width, -2 * right / grid[1]],
                [sin * width / height, cos, -2 * down / grid[0]],
            ]
        )
        places = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        found.append(F.grid_sample(images, places, "bicubic", "border", align_corners=False))
    return torch.stack(found, dim=1)


def default_taps(depth: int) -> tuple[int, ...]:
    """Blocks to take patch tokens from, counted from 1: three in the second half, never the last.

    The public code's 7, 9, 11 of 12, stretched to other depths; the last block serves the class token.

    >>> default_taps(12), default_taps(6), default_taps(24)
    ((7, 9, 11), (3, 4, 5), (15, 19, 23))
    """
    step = max(1, round(depth / 6))
    return tuple(sorted({max(1, depth - 1 - step * i) for i in range(3)}))


class Backbone(nn.Module):
    """A frozen open_clip model: images and sentences in, features out. Always in eval mode.

    Use `Backbone.load`. Attributes: `has_words` (whether there is a text tower), `name`, `pretrained`,
    `taps` (blocks counted from 1), `embed_dim` D, `width` C, `grid` (rows, columns of patches),
    `num_patches` N, `transform` (PIL image -> tensor [3, H, W], the one that the weights were trained
    with), `tokenizer`.
    """

    has_words = True

    def __init__(
        self,
        clip: nn.Module,
        transform: Callable[[Image.Image], Tensor],
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
        depth = len(visual.transformer.resblocks)
        self.taps = tuple(taps) if taps is not None else default_taps(depth)
        if (
            not self.taps
            or any(not 1 <= t <= depth for t in self.taps)
            or len(set(self.taps)) < len(self.taps)
        ):
            raise InctrlError(f"taps {self.taps}: choose distinct blocks from 1 to {depth} of {name!r}")
        self.clip, self.depth = clip.eval().requires_grad_(False), depth
        self.transform, self.tokenizer = transform, tokenizer
        self.name, self.pretrained = name, pretrained
        self.grid = tuple(visual.grid_size)
        self.num_patches = self.grid[0] * self.grid[1]
        self.image_size = tuple(visual.image_size)
        self.embed_dim = visual.output_dim
        self.width = visual.transformer.width

    @classmethod
    def load(
        cls,
        name: str = TINY,
        pretrained: str | None = None,
        *,
        taps: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
    ) -> Backbone:
        """Load a backbone.

        Args:
            name: "tiny" (embedded), an open_clip architecture such as "ViT-B-16-plus-240", or a folder
                with `open_clip_config.json` and weights (as "local-dir:FOLDER").
            pretrained: for an architecture, a weights tag ("laion400m_e32", fetched once from the hub) or
                the path of a checkpoint file. None gives random weights: for trying out, not for scoring.
            taps: blocks to take patch tokens from, counted from 1; None: `default_taps`.
            device: where to put it.

        A name "timm:MODEL", such as "timm:vit_small_patch14_dinov2.lvd142m", loads an image tower without
        words (`timm_backbone.TimmBackbone`), for the methods that only compare patches.

        Raises:
            InctrlError: unknown name or tag, missing or unfit file, no network, not a Vision Transformer.
        """
        if name.startswith(TIMM):
            from inctrl_lite.timm_backbone import TimmBackbone

            return TimmBackbone.load(name, pretrained, taps=taps, device=device)
        import open_clip

        location = f"local-dir:{TINY_FOLDER}" if name == TINY else name
        _check_exists(open_clip, location, pretrained)
        try:
            weights = pretrained
            if pretrained and _hub_is_another(config := open_clip.get_pretrained_cfg(location, pretrained)):
                weights = open_clip.pretrained.download_pretrained(config, prefer_hf_hub=False)
            with warnings.catch_warnings(action="ignore"):  # of pickle protocols
                clip, _, transform = open_clip.create_model_and_transforms(
                    location, pretrained=weights, device=device
                )
            tokenizer = open_clip.get_tokenizer(location)
        except Exception as error:  # open_clip raises whatever its loaders raise
            raise InctrlError(_advice(open_clip, name, pretrained, error)) from error
        return cls(clip, transform, tokenizer, name=name, pretrained=pretrained, taps=taps).to(device)

    @property
    def arguments(self) -> dict[str, str | list[int] | None]:
        """What `Backbone.load` needs to load it again; saved with a model that is trained on it."""
        return {"name": self.name, "pretrained": self.pretrained, "taps": list(self.taps)}

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def visual(self) -> nn.Module:
        """The image tower: all that image features depend on."""
        return self.clip.visual

    def train(self, mode: bool = True) -> Backbone:
        """Frozen: stays in eval mode, also when the module around it is set to train."""
        return super().train(False)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        """Features of images that `transform` has prepared, in one pass of the image tower."""
        blocks = sorted({*self.taps, self.depth})
        out = self.clip.visual.forward_intermediates(
            images,
            indices=[block - 1 for block in blocks],
            normalize_intermediates=False,
            output_fmt="NLC",
        )
        tokens = dict(zip(blocks, out["image_intermediates"], strict=True))
        return ImageFeatures(
            out["image_features"],
            torch.stack([tokens[tap] for tap in sorted(self.taps)], dim=1),
            window_means(tokens[self.depth], self.grid),
            self.grid,
        )

    @torch.no_grad()
    def encode_views(self, images: Float[Tensor, "B 3 H W"], count: int = len(VIEWS)) -> ImageFeatures:
        """Features of more views of each image (`more_views`): those of the first image come first."""
        views = more_views(images, self.grid, count).flatten(0, 1)
        return ImageFeatures.cat([self.encode_image(batch) for batch in views.split(len(images))])

    @torch.no_grad()
    def encode_text(self, sentences: list[str], batch: int = 256) -> Float[Tensor, "P D"]:
        """Embeddings of sentences in the joint space, not normalised."""
        tokens = self.tokenizer(sentences).to(self.device)
        return torch.cat([self.clip.encode_text(part) for part in tokens.split(batch)])


def _check_exists(open_clip, location: str, pretrained: str | None) -> None:
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
        if (
            not any(folder.glob("*.safetensors"))
            and not any(folder.glob("*.bin"))
            and not any(folder.glob("*.pt*"))
        ):
            raise InctrlError(f"no weights in {folder}: put open_clip_model.safetensors beside {config.name}")
        return
    if location.startswith("hf-hub:"):
        return
    if location not in open_clip.list_models():
        raise InctrlError(
            f"unknown backbone {location!r}. Choose 'tiny', 'local-dir:FOLDER', or an open_clip architecture"
            f"{_suggest(location, open_clip.list_models())}"
        )
    if pretrained and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(location)
        if pretrained.lower().replace("-", "_") not in {tag.lower() for tag in tags}:
            raise InctrlError(
                f"{pretrained!r} is neither a file nor a weights tag of {location}. Its tags: "
                f"{', '.join(tags) or 'none'}"
            )


def _hub_is_another(config: dict) -> bool:
    """Whether open_clip would take these weights from a hub repository of other weights.

    open_clip (3.3) sends the paper's `laion400m_e32` to the repository of `laion400m_e31`; the release file
    behind its address is the right one, and is taken instead.
    """
    hub, address = config.get("hf_hub", "").strip("/"), config.get("url", "")
    epochs = hub.rpartition("_")[2]
    return bool(hub and address) and bool(re.fullmatch(r"e\d+", epochs)) and f"_{epochs}-" not in address


def _suggest(wrong: str, right: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(wrong, right, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else " (open_clip.list_models() lists them)"


def _advice(open_clip, name: str, pretrained: str | None, error: Exception) -> str:
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
