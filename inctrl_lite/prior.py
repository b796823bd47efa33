"""Learning the patch prior of `heads.PriorHead`: logistic regression on patches with exact masks.

One direction for "damaged or not", learned once on the auxiliary set, in the place of the text prior.
Everything frozen is encoded once (`store`); the regression itself takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.data.category import Category
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.device import pick_device
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import check_writable
from inctrl_lite.heads.prior import PriorHead
from inctrl_lite.model import InCTRL
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet

if TYPE_CHECKING:
    from inctrl_lite.data.category import Item
    from inctrl_lite.preprocess import Preprocessor

STRENGTH = 0.003  # C of the logistic regression; chosen in benchmarks/choose_photo.py
PATCHES = 8  # damaged and as many sound patches of an image
NEIGHBOURS = 8  # normal images of a category that are compared with each other
COVERED = 0.25  # share of a patch that a mask must cover to make it damaged


def train_prior(
    model: InCTRL,
    categories: Sequence[Category],
    store: FeatureStore,
    *,
    seed: int = 0,
    progress: bool = False,
) -> InCTRL:
    """Fit the prior and the level of normal images of a model with a `PriorHead`. Returns the model.

    Args:
        model: with the head "prior", on the store's backbone.
        categories: an auxiliary set whose anomalous images have masks.
        store: where the features are.
        seed: which patches of an image are taken.
        progress: show a progress bar.

    Raises:
        InctrlError: another head, or no anomalous image with a mask.
    """
    head = model.head
    if not isinstance(head, PriorHead):
        raise InctrlError("this training fits the head 'prior': create the model with head='prior'")
    rng = np.random.default_rng(seed)
    tokens, labels = [], []
    for category in tqdm(categories, desc="patches", unit="category", disable=not progress):
        items = [item for item in category.test if item.label == 0 or item.mask is not None]
        features = store.load(items)
        stage = features.stages[head.middle_stage]
        unit = F.normalize(stage.tokens, dim=-1)  # [B, N, C]
        for row, item in zip(unit, items, strict=True):
            covered = mask_on_grid(item, store.backbone.preprocessor, stage.grid)
            damaged, sound = choose_patches(covered, bool(item.label), rng)
            tokens.append(row[torch.cat([damaged, sound]).to(row.device)])
            labels.append(torch.cat([torch.ones(len(damaged)), torch.zeros(len(sound))]))
    x, y = torch.cat(tokens), torch.cat(labels).bool()
    if not y.any():
        raise InctrlError("the prior learns from masks, and no anomalous image of the auxiliary set has one")
    direction, offset = fit_direction(x, y)
    head.direction.copy_(direction)
    head.offset.fill_(offset)
    head.level.copy_(one_image_level(model, categories, store))
    return model.eval()


def learn_prior(
    categories: Sequence[Category],
    backbone: Backbone,
    out: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> InCTRL:
    """A new model with a learned prior for a backbone, written to a folder if one is given.

    Args:
        categories: an auxiliary set whose anomalous images have masks.
        backbone: frozen, moved to the device.
        out: folder for the model; None keeps nothing.
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.
        seed: which patches of an image are taken.
        progress: show progress bars.

    Raises:
        InctrlError: no masks, or a folder that cannot be written.
    """
    if out is not None:
        check_writable(out)
    store = FeatureStore(backbone.to(pick_device(device)))
    model = InCTRL(
        backbone.embed_dim,
        backbone.num_patches,
        "prior",
        backbone.arguments,
        stage_widths=backbone.stage_widths,
    ).to(backbone.device)
    store.encode([i for c in categories for i in (*c.train[:NEIGHBOURS], *c.test)], progress=progress)
    train_prior(model, categories, store, seed=seed, progress=progress)
    if out is not None:
        model.save_pretrained(out)
    return model


def fit_direction(
    tokens: Float[Tensor, "P C"], damaged: Bool[Tensor, " P"]
) -> tuple[Float[Tensor, " C"], float]:
    """Direction and offset of "damaged or not", with mean 0 and standard deviation 1 on the given patches."""
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=300)
    x = tokens.cpu().numpy()
    direction = regression.fit(x, damaged.numpy()).coef_[0]
    values = x @ direction
    scaled = torch.from_numpy((direction / values.std()).astype(np.float32))
    return scaled.to(tokens.device), float(-values.mean() / values.std())


def mask_on_grid(item: Item, preprocessor: Preprocessor, grid: tuple[int, int]) -> Float[Tensor, " N"]:
    """Which share of each patch the item's mask covers; 0 for a normal image."""
    if item.mask is None:
        return torch.zeros(grid[0] * grid[1])
    mask = load_mask(item.mask, load_image(item.image).size)
    return preprocessor.to_model(mask, grid).flatten()


def choose_patches(
    covered: Float[Tensor, " N"], anomalous: bool, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Numbers of up to `PATCHES` damaged and as many sound patches of an image.

    A defect that covers no patch by `COVERED` is stood for by the patch that it covers most. Patches that a
    mask touches a little are neither.
    """
    found = torch.nonzero(covered > COVERED)[:, 0] if anomalous else torch.zeros(0, dtype=torch.long)
    if anomalous and not len(found):
        found = covered.argmax()[None]
    sound = torch.nonzero(covered == 0)[:, 0]
    chosen = (torch.from_numpy(rng.permutation(kind.numpy()))[:PATCHES] for kind in (found, sound))
    damaged, undamaged = chosen
    return damaged, undamaged


@torch.no_grad()
def one_image_level(
    model: InCTRL, categories: Sequence[Category], store: FeatureStore
) -> Float[Tensor, " 2"]:
    """Mean raw score of normal images against one other normal image, with the prior and without it."""
    head = model.head
    assert isinstance(head, PriorHead)
    untrained = PriorHead(store.backbone.stage_widths, ("patch", "whole"), head.config).to(head.direction)
    raws: list[list[Tensor]] = [[], []]
    for category in categories:
        normal = store.load(category.train[:NEIGHBOURS])
        chosen = torch.arange(1, len(normal))[:, None]  # each image is compared with the next one
        support = SupportSet.per_query(normal[chosen], statistics=False)
        evidence = model.compare(normal[:-1], support)
        prior = head.prior_map(evidence.query_stages, evidence.map_grid)
        for found, one in zip(raws, (head, untrained), strict=True):
            found.append(one.raw_score(evidence.stage_maps, prior, evidence.map_grid))
    return torch.stack([torch.cat(found).mean() for found in raws])
