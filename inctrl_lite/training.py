"""The training loop, on frozen features.

Only the head is learned, so a step is cheap: read the stored features of the episodes, score the queries,
take a step down the focal loss. Several processes (`accelerate launch`, `accelerate.notebook_launcher`)
share each batch. Checkpoints and interruptions are in `runs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from inctrl_lite.backbones.base import Backbone, ImageFeatures
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import Episode, sample_batch
from inctrl_lite.data.images import load_mask, picture_size
from inctrl_lite.device import ProcessGroup, process_group
from inctrl_lite.encoder import in_threads
from inctrl_lite.errors import InctrlError
from inctrl_lite.heads import HEADS
from inctrl_lite.losses import Targets, focal_loss
from inctrl_lite.model import InCTRL
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.runs import Record, TrainingRun
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the public code's, but for the shots (2 there).

    Attributes:
        head: "paper" (InCTRL, exact), "lite" (InCTRL-lite) or "v2" (InCTRLv2, which learns from masks).
        shots: K normal images for every query; testing may use another K.
        epochs: how many times `steps_per_epoch` steps are taken. An epoch is no pass over the data.
        steps_per_epoch: steps between two checkpoints.
        batch_size: queries in a step, half normal, half anomalous.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.
        gamma: focusing parameter of the focal loss.
        double_sigmoid: see `focal_loss`; None: as the head wants it.
        seed: of initial weights and episodes.

    Raises:
        InctrlError: a value that makes no sense.
    """

    head: str = "paper"
    shots: int = 4
    epochs: int = 10
    steps_per_epoch: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gamma: float = 2.0
    double_sigmoid: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise InctrlError(f"seed {self.seed}: choose a number from 0 to 2**63 - 1")
        for name in ("shots", "epochs", "steps_per_epoch", "batch_size"):
            if getattr(self, name) < 1:
                raise InctrlError(f"{name} {getattr(self, name)}: choose a positive number")

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def train(
    categories: Sequence[Category],
    backbone: Backbone,
    config: TrainConfig | None = None,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    store: FeatureStore | None = None,
    resume: bool = True,
    progress: bool = True,
) -> tuple[InCTRL, list[Record]]:
    """Train a model on the categories of an auxiliary data set.

    The model is the one after the last step, whatever its loss was. The public code's author chose an epoch
    by its test scores, with normal images drawn from the test set; such a choice flatters the result.

    With `out`, a checkpoint is written after every epoch, and the same call goes on from there: after a kill
    at any moment, the result is what an uninterrupted run gives (on the CPU, bit by bit). Ctrl-C finishes the
    step and writes a checkpoint first. The folder then holds the model (`InCTRL.from_pretrained` reads it),
    `checkpoint.pt` and `history.jsonl`. More `epochs` may be asked of a finished run.

    With several processes, each computes its share of every batch and gradients are averaged, as if by one
    process; only the paper head's BatchNorm then normalises over a share, and rank 0's running statistics are
    kept.

    Args:
        categories: what to learn from; test splits give the anomalous queries.
        backbone: frozen, moved to the device.
        config: how to train; None: `TrainConfig()`.
        out: folder for the results; None keeps nothing.
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        store: where features are kept; None: the cache folder.
        resume: go on with what is in `out`; False starts over.
        progress: show progress bars.

    Returns:
        The model in eval mode, and one record a step: "step" (from 0), "loss" and its parts (`Head.losses`;
        of InCTRL "final" and "image"), "gradient" (norm), "lr", "seconds".

    Raises:
        InctrlError: unfit data or config, another run in `out`, an `out` that cannot be written, or a loss
            that is no number any more.
    """
    config = config or TrainConfig()
    processes = process_group(device)
    check_batch_size(config, processes)
    backbone.to(processes.device)
    store = store or FeatureStore(backbone)
    model = new_model(backbone, config).to(processes.device)
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    double_sigmoid = model.head.loss_on_logits if config.double_sigmoid is None else config.double_sigmoid
    loss_of = partial(focal_loss, gamma=config.gamma, double_sigmoid=double_sigmoid)
    run = TrainingRun(
        model,
        optimiser,
        describe_run(categories, store, config),
        total=config.steps,
        every=config.steps_per_epoch,
        out=None if out is None else Path(out),
        processes=processes,
        resume=resume,
        progress=progress,
    )
    texts = prepare(categories, store, processes, progress) if len(run.history) < config.steps else {}
    masks = MaskReader(categories, backbone) if model.head.learns_from_masks else None
    model.train()
    with run:
        for step in run.steps():
            episodes = sample_batch(
                categories, step, batch_size=config.batch_size, shots=config.shots, seed=config.seed
            )
            mine = episodes[processes.rank :: processes.size]
            query, support, text, labels = load_episodes(mine, store, texts, model.head.needs_statistics)
            targets = Targets(labels, *masks([e.query for e in mine])) if masks else Targets(labels)
            evidence = model.compare(query, support, text)
            losses = model.head.losses(evidence, model.head(evidence), targets, loss_of)

            optimiser.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            processes.average_gradients(model)
            norm = clip_grad_norm_(model.parameters(), math.inf).item()  # measures, clips nothing
            means = processes.mean(torch.stack(list(losses.values())).detach()).tolist()
            run.check(step, sum(means), norm)
            optimiser.step()
            parts = dict(zip(losses, means, strict=True))
            run.record(step, loss=sum(means), **parts, gradient=norm)

    model.eval()
    if out is not None and processes.is_main:
        model.save_pretrained(out)
    processes.wait()
    return model, run.history


# --- before the first step ---------------------------------------------------------------------------


def check_batch_size(config: TrainConfig, processes: ProcessGroup) -> None:
    """Make sure that every process gets as many normal as anomalous queries.

    Raises:
        InctrlError: it does not.
    """
    if config.batch_size % (2 * processes.size):
        raise InctrlError(
            f"batch size {config.batch_size} cannot be shared equally, half normal and half anomalous, by "
            f"{processes.size} process(es): choose a multiple of {2 * processes.size}"
        )


def new_model(backbone: Backbone, config: TrainConfig) -> InCTRL:
    """An untrained model for a backbone, with the initial weights of `config.seed`.

    Raises:
        InctrlError: unknown head, or one that needs a text encoder that the backbone does not have.
    """
    kind, terms = HEADS.get(config.head), None
    if kind and not backbone.has_text_encoder:
        terms = kind.terms_without_text
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(config.seed)
        model = InCTRL(
            backbone.embed_dim,
            backbone.num_patches,
            config.head,
            backbone.arguments,
            terms,
            backbone.stage_widths,
        )
    if model.head.needs_text and not backbone.has_text_encoder:
        raise InctrlError(
            f"the head {config.head!r} needs text prototypes, and the backbone {backbone.name!r} has no text "
            "encoder: choose a CLIP, such as 'tiny' or 'paper'"
        )
    return model


def prepare(
    categories: Sequence[Category], store: FeatureStore, processes: ProcessGroup, progress: bool
) -> dict[str, Tensor]:
    """Encode all images once, each process its share; returns the text prototypes [2, D] by category."""
    items = [item for category in categories for item in (*category.train, *category.test)]
    store.encode(items[processes.rank :: processes.size], progress=progress and processes.is_main)
    processes.wait()
    return prototypes_of(categories, store.backbone)


def prototypes_of(categories: Sequence[Category], backbone: Backbone) -> dict[str, Tensor]:
    """Text prototypes [2, D] by category; empty for a backbone without text encoder."""
    if not backbone.has_text_encoder:
        return {}
    return {name: text_prototypes(backbone, name) for name in {c.name for c in categories}}


def describe_run(categories: Sequence[Category], store: FeatureStore, config: TrainConfig) -> dict[str, Any]:
    """All that the outcome depends on, but for the number of epochs."""
    digest = blake2b(digest_size=8)
    for category in categories:
        digest.update(repr((category.dataset, category.name)).encode())
        for item in (*category.train, *category.test):
            digest.update(repr((item.name, item.label)).encode())
    settings = {key: value for key, value in asdict(config).items() if key != "epochs"}
    return settings | {"images": digest.hexdigest(), "features": "/".join(store.folder.parts[-2:])}


class MaskReader:
    """Masks of anomalies at the size of the backbone's input. Each is read once and kept, a byte a pixel.

    Args:
        categories: whose test images will be asked for.
        backbone: whose input the masks are for; they come to its device.
        size: rows and columns of the masks; None: those of the input.

    Raises:
        InctrlError: no anomalous image has a mask.
    """

    def __init__(
        self, categories: Sequence[Category], backbone: Backbone, size: tuple[int, int] | None = None
    ):
        self.preprocessor, self.device = backbone.preprocessor, backbone.device
        self.size = size or backbone.preprocessor.size
        self._kept: dict[Item, Tensor] = {}
        if not any(item.label and item.mask is not None for c in categories for item in c.test):
            raise InctrlError(
                "this head learns from masks, and no anomalous image of the auxiliary set has one: choose "
                "another data set, or another head"
            )

    def __call__(self, items: Sequence[Item]) -> tuple[Bool[Tensor, "B H W"], Bool[Tensor, " B"]]:
        """Masks, empty for a normal image; and whose mask is known.

        Raises:
            InctrlError: a mask that cannot be read, or of another size than its image (named).
        """
        new = [item for item in items if item.mask is not None and item not in self._kept]
        self._kept |= zip(new, in_threads(self._read, new), strict=True)
        empty = torch.zeros(self.size, dtype=torch.bool)
        masks = torch.stack([self._kept.get(item, empty) for item in items])
        masked = torch.tensor([item.mask is not None or not item.label for item in items])
        return masks.to(self.device), masked.to(self.device)

    def _read(self, item: Item) -> Bool[Tensor, "H W"]:
        mask = load_mask(cast(Path | np.ndarray, item.mask), picture_size(item.image))
        return self.preprocessor.to_model(mask, self.size) >= 0.5


# --- one batch ---------------------------------------------------------------------------------------


def load_episodes(
    episodes: Sequence[Episode], store: FeatureStore, texts: Mapping[str, Tensor], statistics: bool = True
) -> tuple[ImageFeatures, SupportSet, Float[Tensor, "B 2 D"] | None, Float[Tensor, " B"]]:
    """What the model takes, and the labels. Every image of the batch is read once.

    Args:
        episodes: B queries, each with its K normal images.
        store: where the features are.
        texts: category name -> text prototypes [2, D]; empty for a backbone without text encoder.
        statistics: compare the normal images with each other (see `SupportSet.of`).
    """
    items = dict.fromkeys(item for e in episodes for item in (e.query, *e.support))
    row = {item: i for i, item in enumerate(items)}
    features = store.load(list(items))
    query = features[[row[e.query] for e in episodes]]
    chosen = torch.tensor([[row[item] for item in e.support] for e in episodes])  # [B, K]
    support = SupportSet.per_query(features[chosen], statistics)
    text = torch.stack([texts[e.category.name] for e in episodes]) if texts else None
    labels = torch.tensor([float(e.query.label or 0) for e in episodes], device=store.backbone.device)
    return query, support, text, labels
