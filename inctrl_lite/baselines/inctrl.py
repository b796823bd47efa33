"""InCTRL and InCTRL-lite, their ablations and untrained versions, as methods among the others."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load, save
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite import evidence as evidence_module
from inctrl_lite import residual, support, training
from inctrl_lite.backbones.base import Stage
from inctrl_lite.baselines.base import Answer, Auxiliary, Images, Method
from inctrl_lite.data import episodes as episodes_module
from inctrl_lite.data.category import Item
from inctrl_lite.data.episodes import sample_batch
from inctrl_lite.environment import code_version
from inctrl_lite.evidence import Evidence, compare
from inctrl_lite.files import read_checked, write_checked
from inctrl_lite.heads import HEADS, own_head
from inctrl_lite.losses import Targets, focal_loss
from inctrl_lite.model import InCTRL
from inctrl_lite.prior import train_prior
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.training import MaskReader, load_episodes, prototypes_of

BATCH_SIZE = 48
MASK_SIDE = 120
SOURCES = {"paper": "InCTRL (Zhu & Pang, CVPR 2024)", "v2": "InCTRLv2 (2026), as third parties describe it"}


class InCTRLMethod(Method):
    """A model with one of the heads, trained on the auxiliary set by `train`, or left untrained.

    Args:
        head: "paper", "v2", or "own" for InCTRL-lite (`heads.own_head`).
        terms: which terms the score is made of; None: all that the backbone allows. Fewer are for ablations.
        augment: add augmented copies to the support set; None: as the head wants it.
        learn: False leaves a head with its random initial weights, and the prior out.
        model: a model that is trained already.
    """

    is_trained = True

    def __init__(
        self,
        head: str = "own",
        terms: Collection[str] | None = None,
        augment: bool | None = None,
        learn: bool = True,
        model: InCTRL | None = None,
    ):
        self.head, self.terms, self.augment, self.learn = head, terms, augment, learn
        self.source = SOURCES.get(head, "this package")
        self._ready = model is not None
        if model is not None:
            self.model = model.eval()

    @property
    def learns(self) -> bool:
        return self.learn

    def _train(self, auxiliary: Auxiliary, seed: int) -> None:
        backbone = auxiliary.backbone
        head = own_head(backbone) if self.head == "own" else self.head
        terms = HEADS[head].all_terms if self.terms is None else tuple(self.terms)
        unavailable = set() if backbone.has_text_encoder else {"text"}
        if not self.learn:
            unavailable.add("prior")
        terms = tuple(term for term in terms if term not in unavailable)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            self.model = InCTRL(
                backbone.embed_dim,
                backbone.num_patches,
                head,
                terms=terms,
                stage_widths=backbone.stage_widths,
            )
        self.model.to(backbone.device).eval()
        if head == "prior":  # every version of this head has the same prior, or leaves it out
            key = ("prior", seed)
            if key not in auxiliary.remembered:
                train_prior(self.model, auxiliary.categories, auxiliary.store, seed=seed)
                auxiliary.remembered[key] = self.model.state_dict()
            self.model.load_state_dict(auxiliary.remembered[key])
        elif self.learn:
            key = ("table", 0)
            if key not in auxiliary.remembered:
                auxiliary.remembered[key] = load_table(auxiliary)
            pictures = None
            if self.model.head.learns_from_masks:
                key = ("pictures", 0)
                if key not in auxiliary.remembered:
                    auxiliary.remembered[key] = Pictures.of(auxiliary)
                pictures = auxiliary.remembered[key]
            table = auxiliary.remembered["table", 0]
            train_on_table(self.model, table, pictures, steps=auxiliary.steps, seed=seed)

    def _fit(self, normals: Images, category: str) -> None:
        self.normals = normals
        needs_text = self.model.head.needs_text
        self.text = text_prototypes(normals.backbone, category) if needs_text else None

    @torch.no_grad()
    def _score(self, queries: Images) -> Answer:
        augment = self.model.head.augments_support if self.augment is None else self.augment
        support = self.normals.augmented_support if augment else self.normals.support
        evidence = queries.evidence(self.normals, self.text, augment)
        level = self.model.head.normal_level(support)
        if level is not None:
            evidence = replace(evidence, normal_level=level.expand(len(queries), 1))
        scores = self.model.head(evidence)
        return Answer(scores.final, scores.heat_map)


class EpisodeTable(NamedTuple):
    """Training episodes as evidence: what heads are trained on, in seconds.

    Attributes:
        evidence: of E episodes.
        labels: every batch of `BATCH_SIZE` is half normal, half anomalous.
        query: which image of the auxiliary set each query is (`images_of`), for a head that learns from
            masks.
    """

    evidence: Evidence
    labels: Float[Tensor, " E"]
    query: Int[Tensor, " E"] | None = None


@dataclass(frozen=True)
class Pictures:
    """What a head that learns from masks needs beside the table, of every image of the auxiliary set.

    Attributes:
        stages: patch tokens.
        masks, masked: see `Targets`.
    """

    stages: tuple[Stage, ...]
    masks: Bool[Tensor, "I H W"]
    masked: Bool[Tensor, " I"]

    @classmethod
    def of(cls, auxiliary: Auxiliary) -> Pictures:
        """Read them: about 350 KB an image with the tiny CLIP.

        Masks have at most `MASK_SIDE` rows and columns: a map of 15 x 15 patches knows no more.
        """
        items = images_of(auxiliary)
        sides = auxiliary.backbone.preprocessor.size
        factor = math.ceil(max(sides) / MASK_SIDE)
        size = (math.ceil(sides[0] / factor), math.ceil(sides[1] / factor))
        reader = MaskReader(auxiliary.categories, auxiliary.backbone, size)
        return cls(auxiliary.store.load(items).stages, *reader(items))


def images_of(auxiliary: Auxiliary) -> list[Item]:
    """All images of the auxiliary set, in order."""
    return [item for c in auxiliary.categories for item in (*c.train, *c.test)]


@torch.no_grad()
def tabulate_episodes(auxiliary: Auxiliary, shots: int = 4, seed: int = 0) -> EpisodeTable:
    """Draw batches of episodes and compute their evidence."""
    categories, store = auxiliary.categories, auxiliary.store
    texts = prototypes_of(categories, auxiliary.backbone)
    row = {item: i for i, item in enumerate(images_of(auxiliary))}
    parts, labels, queries = [], [], []
    for step in tqdm(range(auxiliary.batches), desc="episodes", unit="batch", disable=not auxiliary.progress):
        episodes = sample_batch(categories, step, batch_size=BATCH_SIZE, shots=shots, seed=seed)
        query, normals, text, label = load_episodes(episodes, store, texts)
        parts.append(replace(compare(query, normals, text), query_stages=()))
        labels.append(label)
        queries += [row[e.query] for e in episodes]
    return EpisodeTable(Evidence.cat(parts), torch.cat(labels), torch.tensor(queries))


def load_table(auxiliary: Auxiliary) -> EpisodeTable:
    """`tabulate_episodes`, kept on disk beside the features: it costs minutes.

    The file is named after everything that its content depends on, and holds a checksum: a damaged one is
    computed again, with a warning.
    """
    store = auxiliary.store
    facts = {
        "features": str(store.folder.relative_to(store.root)),
        "images": [
            [c.name, *((store.path(item).name, item.label) for item in (*c.train, *c.test))]
            for c in auxiliary.categories
        ],
        "batches": [auxiliary.batches, BATCH_SIZE],
        "code": code_version(
            __name__,
            *(module.__name__ for module in (episodes_module, evidence_module, residual, support, training)),
        ),
    }
    digest = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    path = store.root / "episodes" / f"{digest}.safetensors"
    data = read_checked(path)
    if data is None:
        table = tabulate_episodes(auxiliary)
        assert table.query is not None
        tensors = {k: v for k, v in vars(table.evidence).items() if isinstance(v, Tensor)}
        columns = tensors | {"labels": table.labels, "query": table.query}
        data = save({name: column.cpu().contiguous() for name, column in columns.items()})
        write_checked(path, data)
    columns = {name: column.to(auxiliary.backbone.device) for name, column in load(data).items()}
    labels, query = columns.pop("labels"), columns.pop("query")
    fields: dict[str, Any] = columns
    return EpisodeTable(Evidence(**fields, map_grid=auxiliary.backbone.map_grid), labels, query)


def train_on_table(
    model: InCTRL,
    table: EpisodeTable,
    pictures: Pictures | None = None,
    *,
    steps: int = 200,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> InCTRL:
    """Train a model as `training.train` does, on batches drawn from a table of episodes.

    Args:
        pictures: of the same auxiliary set, for a head that learns from masks.
    """
    normal, anomalous = (torch.nonzero(table.labels == label)[:, 0] for label in (0, 1))
    generator = torch.Generator(device="cpu").manual_seed(seed)
    optimiser = torch.optim.AdamW(model.train().parameters(), learning_rate, weight_decay=weight_decay)
    loss_of = partial(focal_loss, double_sigmoid=model.head.loss_on_logits)
    for _ in range(steps):
        rows = torch.cat(
            [
                kind[torch.randint(len(kind), (BATCH_SIZE // 2,), generator=generator, device="cpu")]
                for kind in (normal, anomalous)
            ]
        )
        evidence, targets = table.evidence[rows], Targets(table.labels[rows])
        if pictures is not None and table.query is not None:
            seen = table.query[rows]
            evidence = replace(evidence, query_stages=tuple(stage[seen] for stage in pictures.stages))
            targets = Targets(targets.labels, pictures.masks[seen], pictures.masked[seen])
        losses = model.head.losses(evidence, model.head(evidence), targets, loss_of)
        loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()
