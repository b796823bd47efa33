"""InCTRL itself and its ablations, as methods among the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite import __version__
from inctrl_lite.backbone import Backbone
from inctrl_lite.baselines.base import Answer, Images
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import sample_batch
from inctrl_lite.features import FeatureStore
from inctrl_lite.files import write_whole
from inctrl_lite.losses import focal_loss
from inctrl_lite.model import TERMS, InCTRL, whole_residuals
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import (
    OWN,
    PLACE_USUAL,
    STRANGEST,
    USUAL,
    USUAL_VOTES,
    image_residual,
    patch_residual_map,
    text_cosines,
)
from inctrl_lite.training import load_episodes

ABLATIONS: dict[str, tuple[str, ...]] = {
    "InCTRL": TERMS,
    "InCTRL: image + patch": ("image", "patch"),
    "InCTRL: text + patch": ("text", "patch"),
    "InCTRL: text + image": ("text", "image"),
    "InCTRL: patch only": ("patch",),
    "InCTRL: image only": ("image",),
    "InCTRL: text only": ("text",),
}


class InCTRLMethod:
    """A trained InCTRL model."""

    source = "Zhu & Pang, CVPR 2024"
    training_free = False

    def __init__(self, model: InCTRL, name: str = "InCTRL", views: bool | None = None):
        self.model, self.name = model.eval(), name
        self.views = model.head.uses_views if views is None else views

    @torch.no_grad()
    def fit(self, normals: Images, category: str) -> InCTRLMethod:
        self.normals, self.prompt = normals, normals.prompt_in_views if self.views else normals.prompt
        self.text = text_prototypes(normals.backbone, category)
        return self

    @torch.no_grad()
    def score(self, queries: Images) -> Answer:
        query, prompt = queries.features, self.prompt
        residual = image_residual(self.model.adapter(query.cls), self.model.adapter(prompt.cls))
        maps, cosines = queries.residual_maps(self.normals, self.views), text_cosines(query.cls, self.text)
        scores = self.model.head(maps, residual, cosines, prompt.spread, whole_residuals(query, prompt))
        return Answer(scores.final, maps)


class EpisodeTable(NamedTuple):
    """Training episodes after all that is frozen was computed: what heads are trained on, in seconds.

    Attributes:
        maps: patch residual maps [E, N].
        spread: what is usual at each patch of each episode's prompt [E, N, 2].
        cosines: to the text prototypes [E, 2].
        whole: residuals of whole images [E, 2, 2].
        query: class embeddings [E, D].
        prompt: class embeddings of the normal prompts [E, K, D].
        labels: [E]; every batch of `BATCH` is half normal, half anomalous.
    """

    maps: Tensor
    spread: Tensor
    cosines: Tensor
    whole: Tensor
    query: Tensor
    prompt: Tensor
    labels: Tensor


BATCH = 48


@torch.no_grad()
def tabulate_episodes(
    categories: Sequence[Category],
    backbone: Backbone,
    store: FeatureStore,
    *,
    batches: int = 100,
    shots: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> EpisodeTable:
    """Draw `batches` batches of episodes and compute their residuals."""
    texts = {c.name: text_prototypes(backbone, c.name) for c in categories}
    parts = []
    for step in tqdm(range(batches), desc="episodes", unit="batch", disable=not progress):
        episodes = sample_batch(categories, step, batch_size=BATCH, shots=shots, seed=seed)
        query, prompt, text, labels = load_episodes(episodes, store, texts)
        maps = patch_residual_map(query.patches, prompt.patches)
        cosines = text_cosines(query.cls, text)
        whole = whole_residuals(query, prompt)
        parts.append((maps, prompt.spread, cosines, whole, query.cls, prompt.cls, labels))
    return EpisodeTable(*(torch.cat(column) for column in zip(*parts, strict=True)))


def load_table(
    categories: Sequence[Category],
    backbone: Backbone,
    store: FeatureStore,
    batches: int,
    progress: bool = True,
) -> EpisodeTable:
    """`tabulate_episodes`, kept on disk beside the features: it costs minutes."""
    images = [[store.path(item).name for item in (*c.train, *c.test)] for c in categories]
    names = [c.name for c in categories]
    usual = [USUAL, PLACE_USUAL, USUAL_VOTES, STRANGEST, OWN]
    facts = [store.folder.name, store.fingerprint, names, images, batches, BATCH, usual, __version__]
    digest = blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    path = store.root / "episodes" / f"{digest}.safetensors"
    if not path.exists():
        table = tabulate_episodes(categories, backbone, store, batches=batches, progress=progress)
        columns = {name: column.cpu().contiguous() for name, column in table._asdict().items()}
        write_whole(path, lambda temporary: temporary.write_bytes(save(columns)))
    columns = load_file(path, device=str(backbone.device))
    return EpisodeTable(**columns)


def train_on_table(
    model: InCTRL, table: EpisodeTable, *, steps: int = 200, learning_rate: float = 1e-3, seed: int = 0
) -> InCTRL:
    """Train a model as `training.train` does, on batches drawn from a table of episodes."""
    normal, anomalous = (torch.nonzero(table.labels == label)[:, 0] for label in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.train().parameters(), learning_rate, weight_decay=0.01)
    loss_of = partial(focal_loss, double_sigmoid=model.head.focal_on_logits)
    for _ in range(steps):
        rows = torch.cat(
            [
                kind[torch.randint(len(kind), (BATCH // 2,), generator=generator)]
                for kind in (normal, anomalous)
            ]
        )
        maps, spread, cosines, whole, query, prompt, labels = (column[rows] for column in table)
        residual = image_residual(model.adapter(query), model.adapter(prompt))
        scores = model.head(maps, residual, cosines, spread, whole)
        loss = loss_of(scores.final, labels)
        if "image" in model.head.terms:
            loss = loss + loss_of(scores.image, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
