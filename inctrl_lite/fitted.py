"""What normal means for one category: the K normal images, encoded once, and what follows from them.

`fit_category` makes it, `AnomalyDetector` uses it, and a detector file holds it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inctrl_lite.augment import augmentation_count, rotated_copies
from inctrl_lite.backbones.base import Backbone, ImageFeatures
from inctrl_lite.data.images import fingerprint, load_image, picture_size
from inctrl_lite.encoder import Encoder, batched, in_threads
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Scores
from inctrl_lite.model import InCTRL
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import leave_two_out_maps, normal_residual_statistics
from inctrl_lite.support import SupportSet
from inctrl_lite.view import View
from inctrl_lite.viz import colour_range

MANY = 500  # normal images with which scoring takes a second an image or more on two CPU cores


@dataclass(eq=False)
class FittedCategory:
    """What `fit` keeps of a category. Everything in it is frozen.

    Attributes:
        support: the K encoded normal images, one support set for each of T tiles: tensors [T, ...]; None
            where no normal image is known (K = 0).
        text: text prototypes [2, D], or None for a model without text.
        view: what is looked at in a picture.
        limits: values of the map that are drawn darkest and brightest.
        normal_scores: leave-one-out scores of the K normal images; after `calibrate` with normal images,
            the scores of those.
        threshold: score above which an image is called anomalous, or None.
        threshold_source: how the threshold came about, and what it is worth, in words.
        expected_rate: expected share of normal images that are called anomalous; None where it is not known.
        names: the normal images' names.
        fingerprints: digests of their pixels, in the same order.
    """

    support: SupportSet | None
    text: Tensor | None
    view: View
    limits: tuple[float, float]
    normal_scores: tuple[float, ...]
    threshold: float | None
    threshold_source: str
    expected_rate: float | None
    names: tuple[str, ...]
    fingerprints: tuple[bytes, ...] = field(repr=False)

    @property
    def shots(self) -> int:
        """K."""
        return 0 if self.support is None else self.support.shots

    @property
    def known_support(self) -> SupportSet:
        """The support set.

        Raises:
            InctrlError: there are no normal images (K = 0).
        """
        if self.support is None:
            raise InctrlError("no normal images were given (K = 0), and this needs some: fit one or more")
        return self.support

    def support_of(self, tiles: Sequence[int]) -> SupportSet:
        """What some tiles are compared with: one support set for all queries, or one for each tile.

        Tiles are compared with the tiles around them too, so that a picture may be shifted a little.

        Raises:
            InctrlError: there are no normal images (K = 0).
        """
        if self.view.count == 1:
            return self.known_support[0]
        return self.known_support.with_neighbours(tiles, self.view.neighbours())

    @property
    def tiles_at_once(self) -> int:
        """How many tiles are compared in one step, so that memory stays bounded."""
        return max(1, 256 // (9 * self.shots)) if self.view.count > 1 else 1


def read_inputs(source: Any, view: View, rotations: int = 0) -> tuple[bytes, Float[Tensor, "T 3 H W"]]:
    """Digest and inputs of one picture, which is read once. Only these stay in memory, not the picture.

    Args:
        rotations: rotated copies for a support set of so many pictures follow the inputs (`rotated_copies`);
            0: none.

    Raises:
        InctrlError: it cannot be read, or has another aspect ratio than the region.
    """
    picture = load_image(source, view.bits)
    parts = view.cut(picture)
    if rotations:
        parts += rotated_copies(parts[0], rotations)
    return fingerprint(picture), torch.stack([view.preprocessor(part) for part in parts])


def read_all(
    sources: Sequence[tuple[str, Any]],
    view: View,
    skipped: list[tuple[str, str]] | None,
    rotations: int = 0,
) -> list[tuple[str, Any, bytes, Tensor]]:
    """(name, source, digest, inputs [T, 3, H, W]) of all that can be read, in several threads.

    Args:
        skipped: receives (name, reason) of the others; None: they raise.
        rotations: as in `read_inputs`.
    """

    def read(named: tuple[str, Any]) -> tuple[bytes, Tensor] | InctrlError:
        try:
            return read_inputs(named[1], view, rotations)
        except InctrlError as error:
            return error

    found = []
    for (name, source), result in zip(sources, in_threads(read, sources), strict=True):
        if not isinstance(result, InctrlError):
            found.append((name, source, *result))
        elif skipped is None:
            raise result
        else:
            skipped.append((name, str(result)))
    return found


@dataclass(frozen=True)
class Normals:
    """The normal images as a backbone sees them.

    Attributes:
        names, digests: of the K images that could be read.
        features: [K, T, ...] of the T tiles of each.
        augmented: of augmented copies [K, A, ...], or None.
        rotated: of rotated copies [K, R, ...], or None.
    """

    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    features: ImageFeatures
    augmented: ImageFeatures | None
    rotated: ImageFeatures | None

    def of_tile(
        self, tile: int, view: View
    ) -> tuple[ImageFeatures, ImageFeatures | None, ImageFeatures | None]:
        """(features, augmented, more) of one tile, as `SupportSet.of` takes them."""
        if view.count == 1:
            return self.features[:, 0], self.augmented, self.rotated
        around = view.neighbours()[tile][1:]
        return self.features[:, tile], None, self.features[:, around]  # [K, ...], [K, 8, ...]


def fit_category(
    model: InCTRL,
    encoder: Encoder,
    category: str,
    sources: Sequence[tuple[str, Any]],
    *,
    region: Any = None,
    tiles: int | str | None = None,
    any_rotation: bool = False,
    keep_aspect: int | None = None,
    bits: int | None = None,
    skipped: list[tuple[str, str]] | None = None,
) -> FittedCategory:
    """Encode K normal images and compare them with each other; see `AnomalyDetector.fit`.

    Args:
        keep_aspect: sides of the input in multiples of so many pixels; None: the usual input.
        skipped: as in `read_all`.

    Raises:
        InctrlError: no image that can be read, or a view that does not fit.
    """
    size = _first_size(sources, bits, skipped)
    view = View.of(
        encoder.backbone.preprocessor, size, region=region, tiles=tiles, keep_aspect=keep_aspect, bits=bits
    )
    if any_rotation and view.count > 1:
        raise InctrlError(
            "tiles and any rotation exclude each other: a tile of a rotated part shows another place. Leave "
            "one of them out"
        )
    # as many copies as the others have when one normal image is compared with them
    copies = augmentation_count(max(1, len(sources) - 1)) if model.head.augments_support else 0
    normals = encode_normals(encoder, category, sources, view, copies, any_rotation, skipped)
    text = text_prototypes(encoder.backbone, category) if model.head.needs_text else None
    supports, scores, drawn = [], [], []
    for tile in range(view.count):
        features, augmented, more = normals.of_tile(tile, view)
        support = model.support(features, augmented, more)
        if support.normal_statistics is None:  # for the colours of maps
            support = replace(
                SupportSet.of(features, augmented, more=more), normal_level=support.normal_level
            )
        left_out = leave_one_out(model, features, augmented, more, text)
        scores.append([found.final.item() for found in left_out])  # [K]
        if not left_out:  # a single image: what it gets beside itself
            with torch.inference_mode():
                left_out = [model.head(model.compare(features, support, text, support.normal_maps))]
        drawn.append(map_statistics(left_out, support))  # [N, 2]
        if view.count > 1:  # the tiles around it are kept once, as the support sets of those tiles
            support = replace(support, stages=features.stages, regions=features.regions)
        supports.append(replace(support, normal_maps=None))
    support = SupportSet.stack(supports)  # [T, ...]
    return FittedCategory(
        support=support,
        text=text,
        view=view,
        limits=colour_range(torch.cat(drawn)),
        names=normals.names,
        fingerprints=normals.digests,
        **first_threshold([max(of_image) for of_image in zip(*scores, strict=True)]),
    )


def without_normals(model: InCTRL, backbone: Backbone, category: str) -> FittedCategory:
    """A category of which no normal image is known (K = 0); see `AnomalyDetector.fit_without_normals`."""
    return FittedCategory(
        support=None,
        text=text_prototypes(backbone, category) if model.head.needs_text else None,
        view=View.of(backbone.preprocessor, backbone.preprocessor.size[::-1]),
        limits=(0.0, 1.0),
        normal_scores=(),
        threshold=None,
        threshold_source="none: no normal images were given (K = 0)",
        expected_rate=None,
        names=(),
        fingerprints=(),
    )


def first_threshold(normal_scores: Sequence[float]) -> dict[str, Any]:
    """What `FittedCategory` says of the threshold that comes from the normal images themselves.

    Args:
        normal_scores: leave-one-out scores of K >= 2 normal images; none for a single one.

    >>> first_threshold([0.2, 0.4])["threshold"], round(first_threshold([0.2, 0.4])["expected_rate"], 3)
    (0.4, 0.333)
    """
    shots = len(normal_scores)
    if not shots:
        source = "none: thresholds compare normal images with each other, and there is only one"
        return {"normal_scores": (), "threshold": None, "threshold_source": source, "expected_rate": None}
    source = (
        f"largest leave-one-out score of the {shots} normal images: expect about 1 false alarm in "
        f"{shots + 1} normal images"
    )
    return {
        "normal_scores": tuple(normal_scores),
        "threshold": max(normal_scores),
        "threshold_source": source,
        "expected_rate": 1 / (shots + 1),
    }


def encode_normals(
    encoder: Encoder,
    category: str,
    sources: Sequence[tuple[str, Any]],
    view: View,
    copies: int,
    any_rotation: bool,
    skipped: list[tuple[str, str]] | None,
) -> Normals:
    """Read and encode the normal images, a batch at a time.

    Args:
        copies: how many augmented copies of each, where there is one tile.

    Raises:
        InctrlError: none can be read, or, without `skipped`, one cannot (named).
    """
    names: list[str] = []
    digests: list[bytes] = []
    parts, augmented = [], []
    rotations = len(sources) if any_rotation else 0
    for batch in batched(sources, max(1, encoder.batch_size // view.count)):
        read = read_all(batch, view, skipped, rotations)
        if not read:
            continue
        names += [name for name, *_ in read]
        digests += [digest for _, _, digest, _ in read]
        inputs = torch.stack([inputs for *_, inputs in read])  # [b, T + R, 3, H, W]
        inputs = inputs.to(encoder.backbone.device)
        encoded = encoder.encode(inputs.flatten(0, 1))
        each = inputs.shape[1]
        parts.append(encoded.map(partial(torch.unflatten, dim=0, sizes=(-1, each))))  # [b, T + R, ...]
        if copies and view.count == 1:
            augmented.append(encoder.encode_augmented(inputs[:, 0], copies))
    if not names:
        raise InctrlError(f"{category}: none of the {len(sources)} normal images can be read")
    if len(set(digests)) < len(digests):
        warnings.warn(
            f"{category}: some normal images are the same picture, which adds nothing", stacklevel=4
        )
    if len(names) > MANY:
        warnings.warn(
            f"{category}: scoring against {len(names)} normal images is slow; choose fewer", stacklevel=4
        )
    seen = ImageFeatures.cat(parts)  # [K, T + R, ...]
    return Normals(
        tuple(names),
        tuple(digests),
        seen[:, : view.count],
        ImageFeatures.cat(augmented) if augmented else None,
        seen[:, view.count :] if any_rotation else None,
    )


def _first_size(
    sources: Sequence[tuple[str, Any]], bits: int | None, skipped: list[tuple[str, str]] | None
) -> tuple[int, int]:
    """(width, height) of the first picture that can be read."""
    for _, source in sources:
        try:
            return picture_size(source, bits)
        except InctrlError:
            if skipped is None:
                raise
    return 1, 1  # none can be read; `fit_category` says so


@torch.inference_mode()
def leave_one_out(
    model: InCTRL,
    features: ImageFeatures,
    augmented: ImageFeatures | None,
    more: ImageFeatures | None,
    text: Float[Tensor, "2 D"] | None,
) -> list[Scores]:
    """Scores of each of K normal images against the others; [] for a single one.

    Args:
        features, augmented, more: as in `SupportSet.of`.
        text: text prototypes.
    """
    shots = len(features)
    if shots == 1:
        return []
    count = augmentation_count(shots - 1)
    parts = [] if more is None else [more]
    if augmented is not None and count:
        parts = [augmented[:, :count], *parts]
    copies = ImageFeatures.join(parts, lambda tensors: torch.cat(tensors, 1)).stages if parts else None
    maps = leave_two_out_maps(features.stages, features.map_grid, copies) if shots > 2 else None
    scores = []
    for k in range(shots):
        others = torch.arange(shots) != k
        support = model.support(
            features[others],
            None if augmented is None else augmented[others],
            None if more is None else more[others],
            None if maps is None else maps[k][others],
        )
        own = None if maps is None else maps[k][k : k + 1]  # [1, L, N]
        scores.append(model.head(model.compare(features[k : k + 1], support, text, own)))
    return scores


def map_statistics(left_out: Sequence[Scores], support: SupportSet) -> Float[Tensor, "N 2"]:
    """Mean and standard deviation at each patch of the maps that normal images get, for their colours.

    Args:
        left_out: of the normal images (`leave_one_out`).
        support: made of them, with the statistics of their residual maps, which are taken for a head whose
            map is the residual map.
    """
    maps = [scores.pixel_map for scores in left_out if scores.pixel_map is not None]
    if maps:
        return normal_residual_statistics(torch.cat(maps), support.map_grid)
    assert support.normal_statistics is not None
    return support.normal_statistics
