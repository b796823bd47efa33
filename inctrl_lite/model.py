"""InCTRL: one model that fuses what words, image residuals and patch residuals say.

Everything below `InCTRL` works on frozen features; only the adapter and the head are learned (0.33 M
parameters at the paper's size). Shapes: B queries, K prompts, L tapped blocks, N patches, C patch width,
D joint width.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from inctrl_lite.backbone import ImageFeatures, view_count
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_whole
from inctrl_lite.residual import (
    class_residual,
    image_residual,
    leave_one_out_maps,
    patch_residual_map,
    place_residual,
    text_cosines,
    text_score,
    usual_residuals,
)


class NormalPrompt(NamedTuple):
    """The K normal images of a category, encoded: one support set [K, ...] or one per query [B, K, ...].

    Attributes:
        cls: class embeddings [..., K, D].
        patches: patch tokens [..., M, L, N, C] of the K images and, after them, of more views of each.
        places: places [..., M, Q, C] of the same.
        spread: mean and deviation [..., N, 2] of the residual that is usual at each patch
            (`usual_residuals`): how much normal images of this category differ from each other, and where.
    """

    cls: Float[Tensor, "... K D"]
    patches: Float[Tensor, "... M L N C"]
    places: Float[Tensor, "... M Q C"]
    spread: Float[Tensor, "... N 2"]

    @classmethod
    def of(cls, features: ImageFeatures, views: ImageFeatures | None = None) -> NormalPrompt:
        """The prompt made of K encoded normal images, and perhaps of more views of each.

        A head says whether it wants views (`uses_views`); those of the first image come first. Of each image
        as many are kept as `view_count` allows.
        """
        shots = len(features)
        count = 0 if views is None else min(view_count(shots), len(views) // shots)
        if not count:
            spread = prompt_spread(features.patches, features.grid)
            return cls(features.cls, features.patches, features.places, spread)
        kept = torch.arange(len(views)).view(shots, -1)[:, :count].flatten()
        views = views[kept]
        seen = ImageFeatures.cat([features, views])
        in_views = views.patches.unflatten(0, (shots, count))
        spread = prompt_spread(features.patches, features.grid, in_views)
        return cls(features.cls, seen.patches, seen.places, spread)

    @classmethod
    def stack(cls, prompts: list[NormalPrompt]) -> NormalPrompt:
        """One prompt per query."""
        return cls(*(torch.stack(parts) for parts in zip(*prompts, strict=True)))


def whole_residuals(query: ImageFeatures, prompt: NormalPrompt) -> Float[Tensor, "B 2 2"]:
    """How far whole images are from the prompts and how far is usual, by class embedding and by place."""
    by_place = place_residual(query.places, prompt.places, shots=prompt.cls.shape[-2])
    return torch.stack([class_residual(query.cls, prompt.cls), by_place], dim=1)


def prompt_spread(
    patches: Float[Tensor, "K L N C"],
    grid: tuple[int, int],
    views: Float[Tensor, "K V L N C"] | None = None,
) -> Float[Tensor, "N 2"]:
    """Mean and deviation of the residual that is usual at each patch, from K prompts against each other."""
    return usual_residuals(leave_one_out_maps(patches, views), grid)


@dataclass(frozen=True)
class Scores:
    """Every term of the score, by name. Larger means more anomalous; all but the maps are [B].

    Attributes:
        final: what the model answers, in [0, 1].
        holistic: score of the holistic map, in (0, 1).
        patch: maximum of the patch residual map, in [0, 1].
        image: score of the image-level residual, in (0, 1).
        text: text prior, in [0, 1].
        patch_map: patch residual map [B, N], in [0, 1].
        holistic_map: what the holistic score is computed from [B, ...].
    """

    final: Float[Tensor, " B"]
    holistic: Float[Tensor, " B"]
    patch: Float[Tensor, " B"]
    image: Float[Tensor, " B"]
    text: Float[Tensor, " B"]
    patch_map: Float[Tensor, "B N"]
    holistic_map: Float[Tensor, "B M"]

    def map(self, function) -> Scores:
        """`function` applied to every tensor: `scores.map(Tensor.cpu)`."""
        return Scores(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    @classmethod
    def cat(cls, parts: list[Scores]) -> Scores:
        """Batches joined into one."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})


class Adapter(nn.Module):
    """Psi: a bottleneck without bias, shared by query and prompts. No skip connection."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def forward(self, cls: Float[Tensor, "*b D"]) -> Float[Tensor, "*b D"]:
        return self.up(self.down(cls).relu()).relu()


class ScoreHead(nn.Module):
    """Eta and phi: three layers from a vector to a score in (0, 1).

    BatchNorm comes after the ReLU, as in the public code; `norm=False` leaves it out.
    """

    def __init__(self, width: int, norm: bool = True):
        super().__init__()
        self.layer1, self.norm1 = nn.Linear(width, 128), nn.BatchNorm1d(128) if norm else nn.Identity()
        self.layer2, self.norm2 = nn.Linear(128, 64), nn.BatchNorm1d(64) if norm else nn.Identity()
        self.layer3 = nn.Linear(64, 1)

    def forward(self, x: Float[Tensor, "B W"]) -> Float[Tensor, " B"]:
        x = self.norm1(self.layer1(x).relu())
        x = self.norm2(self.layer2(x).relu())
        return self.layer3(x).sigmoid().squeeze(-1)


TERMS = ("text", "image", "patch")


def fuse(
    terms: Collection[str],
    patches: Float[Tensor, "B M"],
    image: Float[Tensor, " B"],
    text: Float[Tensor, " B"],
) -> Float[Tensor, "B M"]:
    """The holistic map (paper, Eq. 7): every patch term plus the image and the text score.

    Terms that are not among `terms` count as 0: that is how an ablation is trained.
    """
    parts = {"patch": patches, "image": image[:, None], "text": text[:, None]}
    return sum((parts[term] for term in terms), torch.zeros_like(patches))


class PaperHead(nn.Module):
    """Fuses the terms as the public code does, exactly.

    The holistic map adds the image score and the text score to every patch residual (paper, Eq. 7); its
    score and the largest patch residual are averaged. The paper's Eq. 8 adds them with a weight alpha
    instead; the average is alpha = 1 up to a factor that changes no ranking.
    """

    focal_on_logits = True  # the public code's double sigmoid
    uses_spread = False
    uses_views = False

    def __init__(self, embed_dim: int, num_patches: int, terms: Collection[str] = TERMS):
        super().__init__()
        self.terms = terms
        self.image = ScoreHead(embed_dim)
        self.holistic = ScoreHead(num_patches)

    def forward(self, patch_map, residual, cosines, spread, whole) -> Scores:
        image = self.image(residual)
        text = text_score(cosines).detach()
        patch = patch_map.amax(-1)
        holistic_map = fuse(self.terms, patch_map, image, text)
        holistic = self.holistic(holistic_map)
        final = (holistic + patch) / 2 if "patch" in self.terms else holistic
        return Scores(final, holistic, patch, image, text, patch_map, holistic_map)


class LiteHead(nn.Module):
    """Fuses the same terms for small backbones and few training images.

    What differs from `PaperHead`, and why: (1) patch residuals are measured in units of the prompts' own
    spread (`usual_residuals`), because what counts as large differs between categories, and between an edge
    and plain ground; (2) they are sorted and read at
    `RANKS` ranks from the largest down, because where a defect lies on a training object says nothing
    about other objects; (3) no BatchNorm, whose statistics tie a score to the training mix; (4) the text
    scale is learned, since a small CLIP's cosines are not calibrated for 100; (5) the focal loss is taken
    on the probabilities themselves; (6) the distance of the whole image to the prompts, relative to what is
    usual among them (`whole_residuals`: the class embedding's and the strangest places', in equal parts), is
    a term of its own: what it takes to call a whole image another thing is not learned from defects; (7) the
    prompts' patches and places are seen in more views (`backbone.VIEWS`) where images are scored; the head is
    trained without, as it reads residuals in units of the prompts' spread. In the final score, the
    surprise of the patches or of the whole stands where the paper has the largest residual.
    """

    focal_on_logits = False
    uses_spread = True
    uses_views = True
    RANKS = 32

    def __init__(self, embed_dim: int, num_patches: int, terms: Collection[str] = TERMS):
        super().__init__()
        self.terms = terms
        self.image = ScoreHead(embed_dim, norm=False)
        self.holistic = ScoreHead(self.RANKS, norm=False)
        self.log_text_scale = nn.Parameter(torch.tensor(10.0).log())
        # a whole image 1.5 times as far from the prompts as is usual here: 1/2
        self.whole = nn.Parameter(torch.tensor([4.0, math.log(1.5)]))

    def forward(self, patch_map, residual, cosines, spread, whole) -> Scores:
        image = self.image(residual)
        text = text_score(cosines, self.log_text_scale.exp())
        mean, deviation = spread.unbind(-1)
        ranked = ((patch_map - mean) / (deviation + 1e-3)).sort(dim=-1, descending=True).values
        ranks = torch.logspace(0, 1, self.RANKS, base=patch_map.shape[-1]).round().long() - 1
        relative = ranked[:, ranks]
        # tenths of deviations stand well beside two scores in [0, 1]
        far, usual = (whole + 1e-3).log().unbind(-1)
        strange = (self.whole[0] * ((far - usual).mean(-1) - self.whole[1])).sigmoid()
        holistic_map = fuse(self.terms, relative.clamp(-5, 15) / 10, image + strange, text)
        holistic = self.holistic(holistic_map)
        # the largest of a normal image's residuals is about 4 deviations up: that maps to 1/2
        surprise = (relative[:, 0] / 4 - 1).sigmoid() if "patch" in self.terms else torch.zeros_like(image)
        if "image" in self.terms:
            surprise = 1 - (1 - surprise) * (1 - strange)  # either is enough
        final = (holistic + surprise) / 2 if {"patch", "image"} & set(self.terms) else holistic
        return Scores(final, holistic, patch_map.amax(-1), image, text, patch_map, holistic_map)


HEADS: dict[str, type[nn.Module]] = {"paper": PaperHead, "lite": LiteHead}


class InCTRL(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="inctrl-lite",
    repo_url="https://github.com/inctrl-lite/inctrl_lite",
    license="apache-2.0",
    tags=["anomaly-detection"],
):
    """The learned part: adapter and fusing head, on top of frozen features.

    `save_pretrained(folder)` writes safetensors and a JSON configuration; `push_to_hub` shares them.

    Args:
        embed_dim: width D of the joint space (640 for ViT-B/16+).
        num_patches: patches N of an image (225 = 15 x 15 for ViT-B/16+ at 240 pixels).
        head: "paper" (exact) or "lite" (for small backbones).
        terms: what the holistic score is made of; all but for ablations.
        backbone: arguments of `Backbone.load` for the backbone it is trained on, saved along.
    """

    def __init__(
        self,
        embed_dim: int,
        num_patches: int,
        head: str = "paper",
        backbone: dict[str, Any] | None = None,
        terms: Collection[str] = TERMS,
    ):
        super().__init__()
        if head not in HEADS:
            raise InctrlError(f"unknown head {head!r}: choose one of {', '.join(HEADS)}")
        self.embed_dim, self.num_patches, self.backbone = embed_dim, num_patches, backbone
        self.adapter = Adapter(embed_dim)
        self.head = HEADS[head](embed_dim, num_patches, terms)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> InCTRL:
        """A trained model from a folder written by `save_pretrained`, or from the Hugging Face Hub.

        Raises:
            InctrlError: nothing there, damaged or unfit files, or no network for a Hub id.
        """
        name, folder = str(name), Path(name)
        if folder.is_dir():
            missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]
            if missing:
                raise InctrlError(f"no trained model in {folder}: {' and '.join(missing)} missing")
        elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise InctrlError(f"no trained model {name!r}: neither a folder nor a Hub id (owner/name)")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints
                return super().from_pretrained(name, strict=True, **kwargs).eval()
        except InctrlError:
            raise
        except Exception as error:  # the Hub's client, JSON and safetensors raise of many kinds
            cause = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            where = "" if folder.is_dir() else ". Without a network, fetch it elsewhere and give its folder"
            raise InctrlError(f"the model {name!r} cannot be loaded ({cause}){where}") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        """The mixin's hook: weights appear whole or not at all."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(save_directory / "model.safetensors", lambda path: path.write_bytes(save(tensors)))

    def forward(self, query: ImageFeatures, prompt: NormalPrompt, text: Float[Tensor, "*b 2 D"]) -> Scores:
        """Scores of B queries, each on its own: batch mates do not matter (in eval mode).

        Args:
            query: features of the queries.
            prompt: one for all queries (K images) or one per query.
            text: text prototypes [2, D] of the category, or [B, 2, D].
        """
        return self.head(
            patch_residual_map(query.patches, prompt.patches),
            image_residual(self.adapter(query.cls), self.adapter(prompt.cls)),
            text_cosines(query.cls, text),
            prompt.spread,
            whole_residuals(query, prompt),
        )
