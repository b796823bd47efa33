"""What a method is: fitted to K normal images, then asked for scores. All see the same features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.backbone import VIEWS, Backbone, ImageFeatures, view_count
from inctrl_lite.baselines.windows import WindowStore, window_embeddings, window_residuals
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image
from inctrl_lite.features import FeatureStore, ViewStore, encode_items, encode_views
from inctrl_lite.model import NormalPrompt
from inctrl_lite.residual import layer_residual_maps


@dataclass(eq=False)
class Images:
    """Images with what the methods ask about them, each computed once however many methods ask.

    Comparisons with normal images are made for each normal image by itself and reduced afterwards, so that
    all K and all draws from one pool share them.

    Attributes:
        items: the images.
        backbone: what looks at them.
        store: where features are kept; None: nowhere.
    """

    items: Sequence[Item]
    backbone: Backbone
    store: FeatureStore | None = None
    _compared: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _pool: Images | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Sequence[int]) -> Images:
        """Some of the images, without computing anything again."""
        return _Taken([self.items[i] for i in rows], self.backbone, self.store, self, list(rows))

    @property
    def origin(self) -> tuple[Images, Sequence[int]]:
        """The images that these were taken from, and which of them they are."""
        return self, range(len(self))

    @cached_property
    def features(self) -> ImageFeatures:
        """Class embeddings and patch tokens."""
        return self.store.load(self.items) if self.store else encode_items(self.backbone, self.items)

    @cached_property
    def views(self) -> ImageFeatures:
        """Features of more views of each image (`Backbone.encode_views`)."""
        if self.store:
            return ViewStore(self.store).load(self.items)
        return encode_views(self.backbone, self.items)

    @cached_property
    def prompt(self) -> NormalPrompt:
        """The images as a normal prompt."""
        return NormalPrompt.of(self.features)

    @cached_property
    def prompt_in_views(self) -> NormalPrompt:
        """The images as a normal prompt, seen in more views."""
        return NormalPrompt.of(self.features, self.views)

    def layer_residuals(self, normals: Images, views: bool = False) -> Float[Tensor, "B L N"]:
        """Residual maps of each block against the nearest patch of the normal images, or of their views."""
        count = view_count(len(normals)) if views else 0

        def compare(pool: Images) -> list[Tensor]:
            seen = pool.features.patches.unsqueeze(1)
            if count:
                more = pool.views.patches.unflatten(0, (len(pool), -1))
                seen = torch.cat([seen, more[:, :count]], dim=1)
            return [layer_residual_maps(self.features.patches, one) for one in seen]

        return self._nearest(normals, f"patches and {count} views", compare)

    def residual_maps(self, normals: Images, views: bool = False) -> Float[Tensor, "B N"]:
        """InCTRL's patch residual maps against normal images, or against more views of them too."""
        return self.layer_residuals(normals, views).mean(1)

    def window_residuals(self, normals: Images, side: int) -> Float[Tensor, "B W"]:
        """Residual of each window of side x side patches to the nearest window of the normal images."""
        return self._nearest(
            normals,
            f"windows {side}",
            lambda pool: window_residuals(self.windows[side], pool.windows[side]),
        )

    def _nearest(self, normals: Images, what: str, compare: Callable[[Images], Sequence[Tensor]]) -> Tensor:
        """Smallest residual over the normal images; `compare` gives one for each image of their pool."""
        pool, rows = normals.origin
        if self._pool is not pool:
            self._pool, self._compared = pool, {}
        if what not in self._compared:
            self._compared[what] = torch.stack(list(compare(pool)))  # [P, B, ...]
        return self._compared[what][list(rows)].amin(0)

    @cached_property
    def prepared(self) -> Float[Tensor, "B 3 H W"]:
        """The images as the backbone takes them."""
        return torch.stack([self.backbone.transform(load_image(item.image)) for item in self.items])

    @cached_property
    def windows(self) -> dict[int, Tensor]:
        """WinCLIP's window embeddings (see `windows.window_embeddings`)."""
        if self.store:
            return WindowStore(self.store).load(self.items)
        parts = [
            window_embeddings(self.backbone, batch.to(self.backbone.device))
            for batch in self.prepared.split(16)
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


@dataclass(eq=False)
class _Taken(Images):
    """Images out of others, which hold what was computed."""

    whole: Images | None = None
    rows: Sequence[int] = ()

    @property
    def origin(self) -> tuple[Images, Sequence[int]]:
        return self.whole, self.rows

    @cached_property
    def features(self) -> ImageFeatures:
        return self.whole.features[self.rows]

    @cached_property
    def views(self) -> ImageFeatures:
        return self.whole.views[[row * len(VIEWS) + i for row in self.rows for i in range(len(VIEWS))]]

    @cached_property
    def prepared(self) -> Tensor:
        return self.whole.prepared[self.rows]

    @cached_property
    def windows(self) -> dict[int, Tensor]:
        return {side: values[self.rows] for side, values in self.whole.windows.items()}


class Answer(NamedTuple):
    """What a method says of B images: scores [B] and perhaps maps [B, N]. Larger: more anomalous."""

    scores: Float[Tensor, " B"]
    maps: Float[Tensor, "B N"] | None = None


@runtime_checkable
class Method(Protocol):
    """A way to find anomalies from a few normal images.

    Attributes:
        name: how tables call it.
        source: where it comes from, and how this version differs.
        training_free: whether it uses nothing but the K normal images (and words).
    """

    name: ClassVar[str]
    source: ClassVar[str]
    training_free: ClassVar[bool]

    def fit(self, normals: Images, category: str) -> Method:
        """Take in the K normal images of a category; returns itself."""
        ...

    def score(self, queries: Images) -> Answer:
        """Score images."""
        ...


def top_mean(maps: Float[Tensor, "B N"], share: float = 0.01) -> Float[Tensor, " B"]:
    """Mean of the largest `share` of a map's values, at least one.

    >>> top_mean(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), share=0.5).tolist()
    [2.5]
    """
    return maps.topk(max(1, round(share * maps.shape[1])), dim=1).values.mean(1)
