"""What the frozen features of a query say beside a support set, and the scores that a head makes of it.

Nothing in this file is learned. `compare` computes everything that does not depend on a head's weights, so
that heads can be trained and compared on stored evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from jaxtyping import Float
from torch import Tensor

from inctrl_lite.backbones.base import ImageFeatures, Stage
from inctrl_lite.residual import (
    global_distance,
    region_distance,
    stage_residual_maps,
    text_cosines,
)
from inctrl_lite.support import SupportSet
from inctrl_lite.tensors import TensorRecord


@dataclass(frozen=True, eq=False)
class Evidence(TensorRecord):
    """One comparison of B queries with their support sets. What a tower or support set cannot give is None.

    Attributes:
        stage_maps: residual maps of the L stages on the map grid, in [0, 1].
        patch_map: their mean over the stages: the patch residual map, in [0, 1].
        query_embedding: global embeddings of the queries.
        support_embedding: global embeddings of the K normal images of each query.
        global_distance: of the global embedding to the nearest normal image, in [0, 1].
        global_reference: the same among normal images (see `residual.global_distance`).
        region_distance, region_reference: the same by regions (see `residual.region_distance`).
        normal_statistics: mean and standard deviation of the residual of normal images at each patch.
        text: the normal and the anomalous text prototype of each query.
        text_cosines: to the normal and to the anomalous text prototype, in [-1, 1].
        normal_level: of the support set, in a head's own units (`Head.normal_level`).
        query_stages: patch tokens of the queries, for a head with a prior on patches.
        map_grid: rows and columns of the maps.
    """

    stage_maps: Float[Tensor, "B L N"]
    patch_map: Float[Tensor, "B N"]
    query_embedding: Float[Tensor, "B D"]
    support_embedding: Float[Tensor, "B K D"]
    global_distance: Float[Tensor, " B"]
    global_reference: Float[Tensor, " B"]
    region_distance: Float[Tensor, " B"] | None = None
    region_reference: Float[Tensor, " B"] | None = None
    normal_statistics: Float[Tensor, "B N 2"] | None = None
    text: Float[Tensor, "B 2 D"] | None = None
    text_cosines: Float[Tensor, "B 2"] | None = None
    normal_level: Float[Tensor, "B 1"] | None = None
    query_stages: tuple[Stage, ...] = ()
    map_grid: tuple[int, int] = (1, 1)


def compare(
    query: ImageFeatures,
    support: SupportSet,
    text: Float[Tensor, "*b 2 D"] | None = None,
    stage_maps: Float[Tensor, "B L N"] | None = None,
) -> Evidence:
    """Compare queries with a support set; each query by itself, whatever else is in the batch.

    Args:
        query: features of B queries.
        support: one for all queries, or one for each query.
        text: text prototypes [2, D] of the category, or [B, 2, D]; None for a backbone without text encoder.
        stage_maps: `stage_residual_maps` of the two, where they are known already.
    """
    if stage_maps is None:
        stage_maps = stage_residual_maps(query.stages, support.stages, query.map_grid)
    distance, reference = global_distance(query.global_embedding, support.global_embedding)
    by_region: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)
    if query.regions is not None and support.regions is not None:
        by_region = region_distance(query.regions.tokens, support.regions.tokens, support.shots)

    def each(tensor: Tensor, dimensions: int) -> Tensor:
        """One for each query [B, ...], also where the support set is shared."""
        return tensor if tensor.ndim > dimensions else tensor.expand(len(query), *tensor.shape)

    statistics = support.normal_statistics
    return Evidence(
        stage_maps=stage_maps,
        patch_map=stage_maps.mean(1),
        query_embedding=query.global_embedding,
        support_embedding=each(support.global_embedding, 2),
        global_distance=distance,
        global_reference=reference,
        region_distance=by_region[0],
        region_reference=by_region[1],
        normal_statistics=None if statistics is None else each(statistics, 2),
        text=None if text is None else each(text, 2),
        text_cosines=None if text is None else text_cosines(query.global_embedding, text),
        normal_level=None if support.normal_level is None else each(support.normal_level, 1),
        query_stages=query.stages,
        map_grid=query.map_grid,
    )


@dataclass(frozen=True, eq=False)
class Scores(TensorRecord):
    """What a head answers for B queries. Larger means more anomalous. A head leaves out what it does not
    have.

    Attributes:
        final: the anomaly score, in [0, 1].
        patch_map: patch residual map, in [0, 1].
        patch: maximum of the patch residual map, in [0, 1].
        holistic: score of the holistic map, in (0, 1).
        image: score of the image-level residual, in (0, 1).
        text: score of the text prior, in [0, 1].
        whole: score of the whole image, in (0, 1).
        prior: score of the learned prior, which does not use the normal images, in (0, 1).
        holistic_map: what the holistic score is computed from.
        discriminative_map, one_class_map: semantic maps of InCTRLv2's two branches, in [0, 1].
        pixel_map: map of where the anomaly is that training has a part in, in [0, 1].
    """

    final: Float[Tensor, " B"]
    patch_map: Float[Tensor, "B N"]
    patch: Float[Tensor, " B"]
    holistic: Float[Tensor, " B"] | None = None
    image: Float[Tensor, " B"] | None = None
    text: Float[Tensor, " B"] | None = None
    whole: Float[Tensor, " B"] | None = None
    prior: Float[Tensor, " B"] | None = None
    holistic_map: Float[Tensor, "B M"] | None = None
    discriminative_map: Float[Tensor, "B N"] | None = None
    one_class_map: Float[Tensor, "B N"] | None = None
    pixel_map: Float[Tensor, "B N"] | None = None

    @property
    def heat_map(self) -> Float[Tensor, "B N"]:
        """The anomaly map, which is shown: the pixel map, or the residual map of a head without one."""
        return self.patch_map if self.pixel_map is None else self.pixel_map

    @property
    def terms(self) -> dict[str, Tensor]:
        """What the final score is made of: name -> [B]."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in found.items() if v is not None and v.ndim == 1 and k != "final"}
