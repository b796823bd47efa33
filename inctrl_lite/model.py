"""InCTRL: one model that fuses text, image-level residuals and patch-level residuals.

A frozen backbone encodes images (`backbones`), `compare` sets a query beside the support set (`evidence`),
and a head makes scores of it (`heads`). Only the head is learned: 0.33 million parameters at the paper's
size. Shapes: B queries, K normal images, L stages, N patches, D width of the global embedding.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from inctrl_lite.backbones.base import ImageFeatures
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Evidence, Scores, compare
from inctrl_lite.files import write_whole
from inctrl_lite.heads import HEADS
from inctrl_lite.support import SupportSet


class InCTRL(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="inctrl-lite",
    repo_url="https://github.com/inctrl-lite/inctrl_lite",
    license="apache-2.0",
    tags=["anomaly-detection"],
):
    """A comparison of frozen features, and a learned head on top of it.

    `save_pretrained(folder)` writes safetensors and a JSON configuration; `push_to_hub` shares them.

    Args:
        embed_dim: D of the global embedding (640 for ViT-B/16+).
        num_patches: N of the residual map (225 = 15 x 15 for ViT-B/16+ at 240 pixels).
        head: "paper" (InCTRL, exact), "lite" (InCTRL-lite) or "prior" (InCTRL-lite for a backbone without
            text encoder), or "v2" (InCTRLv2).
        backbone: arguments of `load_backbone` for the backbone it is trained on, saved along.
        terms: which terms the score is made of; None: all. Fewer are for ablations.
        stage_widths: C of each stage; the heads "prior" and "v2" need it.

    Raises:
        InctrlError: unknown head or term.
    """

    def __init__(
        self,
        embed_dim: int,
        num_patches: int,
        head: str = "paper",
        backbone: dict[str, Any] | None = None,
        terms: Collection[str] | None = None,
        stage_widths: Sequence[int] = (),
    ):
        super().__init__()
        if head not in HEADS:
            raise InctrlError(f"unknown head {head!r}: choose one of {', '.join(HEADS)}")
        self.embed_dim, self.num_patches, self.backbone = embed_dim, num_patches, backbone
        self.stage_widths, self.head_name = tuple(stage_widths), head
        self.head = HEADS[head].build(embed_dim, num_patches, stage_widths, terms)

    def support(
        self,
        features: ImageFeatures,
        augmented: ImageFeatures | None = None,
        more: ImageFeatures | None = None,
        maps: Float[Tensor, "K L N"] | None = None,
    ) -> SupportSet:
        """The support set of K encoded normal images, with what the head wants to know of it.

        Args:
            features, augmented, more, maps: see `SupportSet.of`.
        """
        support = SupportSet.of(features, augmented, self.head.needs_statistics, more, maps)
        return replace(support, normal_level=self.head.normal_level(support))

    def compare(
        self,
        query: ImageFeatures,
        support: SupportSet,
        text: Float[Tensor, "*b 2 D"] | None = None,
        stage_maps: Float[Tensor, "B L N"] | None = None,
    ) -> Evidence:
        """Everything that the frozen features say; see `evidence.compare`."""
        return compare(query, support, text, stage_maps)

    def forward(
        self, query: ImageFeatures, support: SupportSet, text: Float[Tensor, "*b 2 D"] | None = None
    ) -> Scores:
        """Scores of B queries. In eval mode, the other queries of the batch do not matter.

        Args:
            query: features of the queries.
            support: one support set for all queries, or one for each query.
            text: text prototypes [2, D] of the category, or [B, 2, D]; None for a head that needs none.
        """
        return self.head(self.compare(query, support, text))

    def without_normals(self, query: ImageFeatures, text: Float[Tensor, "2 D"] | None = None) -> Scores:
        """Scores where no normal image is known (K = 0); see `Head.without_normals`."""
        return self.head.without_normals(query, text)

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> InCTRL:  # type: ignore[override]  # fewer options
        """A trained model from a folder written by `save_pretrained`, or from the Hugging Face Hub.

        Raises:
            InctrlError: nothing there, damaged or unfit files, weights that are not finite, or no network for
                a Hub id.
        """
        name, folder = str(name), Path(name)
        if folder.is_dir():
            missing = [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]
            if missing:
                raise InctrlError(f"no trained model in {folder}: {' and '.join(missing)} missing")
        elif folder.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise InctrlError(
                f"no trained model {name!r}: neither a folder nor a Hub id (owner/name); `inctrl-lite info` "
                "lists the presets"
            )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints
                model = super().from_pretrained(name, strict=True, **kwargs).eval()
        except InctrlError:
            raise
        except Exception as error:  # the Hub's client, JSON and safetensors raise of many kinds
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            where = "" if folder.is_dir() else ". Without a network, fetch it elsewhere and give its folder"
            raise InctrlError(f"the model {name!r} cannot be loaded ({cause}){where}") from error
        for key, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise InctrlError(f"the model {name!r} is damaged: {key} holds NaN or infinite values")
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        """The mixin's hook: weights appear whole or not at all."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(save_directory / "model.safetensors", lambda path: path.write_bytes(save(tensors)))
