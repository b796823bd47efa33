"""What a method is: fitted to K normal images, then asked for scores. All see the same features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from inctrl_lite.augment import augmentation_count
from inctrl_lite.backbones.base import Backbone, ImageFeatures
from inctrl_lite.baselines.windows import Windows, encode_windows, window_residuals, window_store
from inctrl_lite.data.category import Category, Item
from inctrl_lite.encoder import Encoder
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Evidence, compare
from inctrl_lite.residual import resample_map, stage_residual_map
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet

M = TypeVar("M", bound="Method")


class Answer(NamedTuple):
    """What a method says of B images: scores [B] and perhaps maps [B, N]. Larger: more anomalous."""

    scores: Float[Tensor, " B"]
    maps: Float[Tensor, "B N"] | None = None


@dataclass(frozen=True)
class Auxiliary:
    """What trained methods learn from.

    Attributes:
        categories: of the auxiliary data set.
        backbone: the shared frozen features come from it.
        store: where the features are.
        steps: training steps.
        batches: batches of training episodes that are computed for them.
        progress: show progress bars.
        remembered: what several methods learn alike, by what and with which seed it was learned.
    """

    categories: Sequence[Category]
    backbone: Backbone
    store: FeatureStore
    steps: int = 200
    batches: int = 100
    progress: bool = False
    remembered: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False)


class Method(ABC):
    """A way to find anomalies from a few normal images.

    Attributes:
        source: where it comes from.
        needs: what the backbone must provide beside image features (`backbones.base.TEXT`, `WINDOWS`).
        is_trained: `train` comes before `fit`.
        learns: it learns on the auxiliary data set.
    """

    source: str
    needs: ClassVar[frozenset[str]] = frozenset()
    is_trained: ClassVar[bool] = False
    _fitted: bool = False
    _ready: bool = False

    @property
    def learns(self) -> bool:
        return self.is_trained

    def train(self: M, auxiliary: Auxiliary, seed: int = 0) -> M:
        """Learn on the auxiliary data set. Does nothing for a method that needs no training."""
        self._train(auxiliary, seed)
        self._ready = True
        return self

    def fit(self: M, normals: Images, category: str) -> M:
        """Take in the K normal images of a category.

        Args:
            normals: one image or more.
            category: what they show, in words.

        Raises:
            InctrlError: the method is not trained, or the backbone does not provide what it needs.
        """
        name = type(self).__name__
        if missing := self.needs - normals.backbone.provides:
            raise InctrlError(
                f"{name} needs a backbone with {' and '.join(sorted(missing))} encoder; "
                f"{normals.backbone.name!r} has none"
            )
        if self.is_trained and not self._ready:
            raise InctrlError(f"{name} is not trained: call train(auxiliary) before fit")
        self._fit(normals, category)
        self._fitted = True
        return self

    def score(self, queries: Images) -> Answer:
        """Score B images: larger is more anomalous.

        Raises:
            InctrlError: no normal images were given (`fit`).
        """
        if not self._fitted:
            raise InctrlError(
                f"{type(self).__name__} is not fitted: call fit(normals, category) before score"
            )
        return self._score(queries)

    def _train(self, auxiliary: Auxiliary, seed: int) -> None:  # noqa: B027 (most methods learn nothing)
        """What `train` does."""

    @abstractmethod
    def _fit(self, normals: Images, category: str) -> None:
        """What `fit` does."""

    @abstractmethod
    def _score(self, queries: Images) -> Answer:
        """What `score` does."""


@dataclass(eq=False)
class Images:
    """Images with what the methods ask about them, each computed once however many methods ask.

    Comparisons with normal images are made for each normal image by itself and reduced afterwards, so that
    all K and all draws from one pool share them.

    Attributes:
        items: the images.
        backbone: what encodes them.
        store: where features are kept; None: nowhere.
    """

    items: Sequence[Item]
    backbone: Backbone
    store: FeatureStore | None = None
    _compared: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, init=False, repr=False)
    _pool: Images | None = field(default=None, init=False, repr=False)
    _evidence: tuple[Images, Tensor | None, bool, Evidence] | None = field(
        default=None, init=False, repr=False
    )
    _tokens: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

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
        """Global embeddings and patch tokens."""
        return self.store.load(self.items) if self.store else self._encoder.encode_items(self.items)

    @cached_property
    def augmented(self) -> ImageFeatures:
        """Features of the augmented copies of each image, tensors [B, A, ...]."""
        if self.store:
            return self.store.load_augmented(self.items)
        return self._encoder.encode_augmented_items(self.items)

    @cached_property
    def support(self) -> SupportSet:
        """The images as a support set."""
        return SupportSet.of(self.features)

    @cached_property
    def augmented_support(self) -> SupportSet:
        """The images and their augmented copies as a support set."""
        return SupportSet.of(self.features, self.augmented)

    def evidence(self, normals: Images, text: Tensor | None = None, augment: bool = False) -> Evidence:
        """`evidence.compare` with normal images, and with their augmented copies if asked.

        The last answer is remembered: heads are trained from several seeds and compared on the same images.
        """
        if last := self._evidence:
            if last[0] is normals and last[1] is text and last[2] == augment:
                return last[3]
        support = normals.augmented_support if augment else normals.support
        found = compare(self.features, support, text, self.stage_maps(normals, augment))
        self._evidence = normals, text, augment, found
        return found

    def tokens(
        self, stages: int | None = None, average: int = 1, unit: bool = False
    ) -> Float[Tensor, "B N C"]:
        """`joined_tokens` of the images, remembered; `unit`: each stage's tokens have unit length."""
        key = (stages, average, unit)
        if key not in self._tokens:
            features = self.features
            if unit:
                parts = tuple(s.map(lambda tokens: F.normalize(tokens, dim=-1)) for s in features.stages)
                features = ImageFeatures(features.global_embedding, parts, features.map_grid)
            self._tokens[key] = joined_tokens(features, stages, average)
        return self._tokens[key]

    def stage_maps(self, normals: Images, augment: bool = False) -> Float[Tensor, "B L N"]:
        """Residual maps of each stage on the map grid (`residual.stage_residual_maps`)."""
        count = augmentation_count(len(normals)) if augment else 0
        maps = []
        for i, stage in enumerate(self.features.stages):
            compare_stage = partial(self._compare, stage=i, count=count)
            nearest = self._nearest(normals, ("stage", i, count), compare_stage)
            maps.append(resample_map(nearest, stage.grid, self.features.map_grid))
        return torch.stack(maps, dim=1)

    def _compare(self, pool: Images, stage: int, count: int) -> list[Float[Tensor, "B N"]]:
        """Residual maps of one stage against each image of a pool, and `count` augmented copies of it."""
        seen = pool.features.stages[stage].tokens.unsqueeze(1)  # [P, 1, N, C]
        if count:
            seen = torch.cat([seen, pool.augmented.stages[stage].tokens[:, :count]], dim=1)
        return [stage_residual_map(self.features.stages[stage].tokens, one) for one in seen]

    def patch_maps(self, normals: Images, augment: bool = False) -> Float[Tensor, "B N"]:
        """InCTRL's patch residual maps against normal images, and their augmented copies if asked."""
        return self.stage_maps(normals, augment).mean(1)

    def window_residuals(self, normals: Images, side: int) -> Float[Tensor, "B W"]:
        """Residual of each window of side x side patches to the nearest window of the normal images."""
        return self._nearest(
            normals,
            ("windows", side, 0),
            lambda pool: window_residuals(self.windows.of(side), pool.windows.of(side)),
        )

    def _nearest(
        self,
        normals: Images,
        what: tuple[str, int, int],
        compare_with: Callable[[Images], Sequence[Tensor]],
    ) -> Tensor:
        """Smallest residual over the normal images; `compare_with` gives one for each image of their pool.

        `what` is the key under which the comparison is remembered: kind, stage or side, number of copies.
        """
        pool, rows = normals.origin
        if self._pool is not pool:
            self._pool, self._compared = pool, {}
        if what not in self._compared:
            self._compared[what] = torch.stack(list(compare_with(pool)))  # [P, B, ...]
        return self._compared[what][list(rows)].amin(0)

    @cached_property
    def prepared(self) -> Float[Tensor, "B 3 H W"]:
        """The images as the backbone takes them."""
        return self._encoder.read(self.items)

    @cached_property
    def windows(self) -> Windows:
        """Embeddings of WinCLIP's windows."""
        if self.store:
            return window_store(self.store).load(self.items)
        return encode_windows(self._encoder, self.items)

    @property
    def _encoder(self) -> Encoder:
        return self.store.encoder if self.store else Encoder(self.backbone)


class _Taken(Images):
    """Images out of others, which hold what was computed."""

    def __init__(
        self,
        items: Sequence[Item],
        backbone: Backbone,
        store: FeatureStore | None,
        whole: Images,
        rows: list[int],
    ):
        super().__init__(items, backbone, store)
        self.whole, self.rows = whole, rows

    @property
    def origin(self) -> tuple[Images, Sequence[int]]:
        return self.whole, self.rows

    @cached_property
    def features(self) -> ImageFeatures:
        return self.whole.features[self.rows]

    @cached_property
    def augmented(self) -> ImageFeatures:
        return self.whole.augmented[self.rows]

    @cached_property
    def prepared(self) -> Float[Tensor, "B 3 H W"]:
        return self.whole.prepared[self.rows]

    @cached_property
    def windows(self) -> Windows:
        return self.whole.windows[self.rows]


def top_mean(maps: Float[Tensor, "B N"], share: float = 0.01) -> Float[Tensor, " B"]:
    """Mean of the largest `share` of a map's values, at least one.

    >>> top_mean(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), share=0.5).tolist()
    [2.5]
    """
    return maps.topk(max(1, int(share * maps.shape[1])), dim=1).values.mean(1)


def joined_tokens(
    features: ImageFeatures, stages: int | None = None, average: int = 1
) -> Float[Tensor, "B N C"]:
    """Tokens of several stages side by side, on the map grid.

    Args:
        features: of B images.
        stages: the first so many; None: all.
        average: each token becomes the mean over so many x so many positions around it, on its own grid.
    """
    parts = []
    for stage in features.stages[:stages]:
        images = stage.tokens.transpose(1, 2).unflatten(2, stage.grid)  # [B, C, rows, columns]
        if average > 1:
            images = F.avg_pool2d(images, average, 1, average // 2, count_include_pad=False)
        maps = images.flatten(2)  # [B, C, N of the stage]
        parts.append(resample_map(maps, stage.grid, features.map_grid).transpose(1, 2))
    return torch.cat(parts, dim=-1)
