"""Scores and metrics of a trained model on whole data sets, one process or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from inctrl_lite.backbones.base import Backbone
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image, load_mask
from inctrl_lite.device import process_group
from inctrl_lite.encoder import BATCH_SIZE, Encoder, batched
from inctrl_lite.evidence import Scores
from inctrl_lite.metrics import image_metrics, pixel_metrics
from inctrl_lite.model import InCTRL
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.store import FeatureStore
from inctrl_lite.view import View

PIXELS = 256  # pixel metrics are computed on pictures whose longer side has at most so many pixels


@torch.no_grad()
def score_items(
    model: InCTRL,
    backbone: Backbone,
    category: str,
    items: Sequence[Item],
    normals: Sequence[Item],
    *,
    store: FeatureStore | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = False,
) -> Scores:
    """Scores of images against one support set: in the order of `items`, on the CPU.

    Several processes share the work by whole batches, so that their number changes no score, not even in its
    last bit; all of them get all scores.

    Args:
        model: put into eval mode.
        backbone: on the model's device.
        category: what the images show, in words.
        items: the queries.
        normals: the K normal images.
        store: where to keep features for the next time; None encodes and forgets, in constant memory.
        batch_size: images at a time.
        progress: show a progress bar.

    Raises:
        InctrlError: an image cannot be read (named).
    """
    processes = process_group(backbone.device)
    model.eval()
    source = Encoder(backbone)
    encode = store.load if store else source.encode_items
    encode_augmented = store.load_augmented if store else source.encode_augmented_items
    augmented = encode_augmented(normals) if model.head.augments_support else None
    support = model.support(encode(normals), augmented)
    text = text_prototypes(backbone, category) if model.head.needs_text else None
    batches = list(batched(items, batch_size))
    scored = {
        i: model(encode(batches[i]), support, text).map(Tensor.cpu)
        for i in tqdm(
            range(processes.rank, len(batches), processes.size),
            desc=category,
            unit="batch",
            leave=False,
            disable=not (progress and processes.is_main),
        )
    }
    gathered = {i: part for share in processes.gather(scored) for i, part in share.items()}
    return Scores.cat([gathered[i] for i in range(len(batches))])


def evaluate(
    model: InCTRL,
    backbone: Backbone,
    categories: Sequence[Category],
    *,
    shots: int = 4,
    seed: int = 0,
    store: FeatureStore | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> pd.DataFrame:
    """AUROC and AP of every category's test split, with the K normal images that `seed` draws.

    Several processes share every category, each on its own device; all of them get the whole table.

    Args:
        model: the trained part.
        backbone: the frozen part.
        categories: what to test on.
        shots: K.
        seed: of the draw of normal images (`draw_support`).
        store: see `score_items`.
        batch_size: images at a time.
        progress: show progress bars.

    Returns:
        One row a category: dataset, category, domain, shots, seed, auroc, ap, pixel_auroc and aupro of the
        heat map (`Scores.heat_map`; NaN without masks), n_normal, n_anomalous.

    Raises:
        InctrlError: an image cannot be read, or a category has fewer normal images than `shots` (named).
    """
    processes = process_group(backbone.device)
    model.to(processes.device)
    backbone.to(processes.device)
    rows = []
    for category in tqdm(categories, desc="evaluating", disable=not (progress and processes.is_main)):
        scores = score_items(
            model,
            backbone,
            category.name,
            category.test,
            draw_support(category, shots, seed),
            store=store,
            batch_size=batch_size,
            progress=progress,
        )
        labels = category.labels
        metrics = image_metrics(labels, scores.final.tolist())
        maps = scores.heat_map.unflatten(-1, backbone.map_grid).float().numpy()  # [B, h, w]
        pixels = map_metrics(maps, category.test, backbone.preprocessor)
        rows.append(
            {"dataset": category.dataset, "category": category.name, "domain": category.domain}
            | {"shots": shots, "seed": seed, "auroc": metrics["auroc"], "ap": metrics["ap"]}
            | {name: pixels.get(name, float("nan")) for name in ("pixel_auroc", "aupro")}
            | {"n_normal": labels.count(0), "n_anomalous": labels.count(1)}
        )
    return pd.DataFrame(rows)


# --- maps ---------------------------------------------------------------------------------------------


def map_metrics(
    maps: Sequence[np.ndarray] | np.ndarray,
    items: Sequence[Item],
    view: View | Preprocessor,
    pixels: int = PIXELS,
) -> dict[str, float]:
    """Pixel AUROC and AUPRO of maps against masks; empty where an anomalous image has no mask.

    Args:
        maps: one [h, w] for each image, on a grid over what is looked at.
        items: the images, with their masks.
        view: how the maps lie in the pictures. What the model does not see counts as its lowest score.
        pixels: pictures are compared at this size of the longer side at most; a pixel of a reduced mask
            counts as a defect if any part of it is one.
    """
    anomalous = [item for item in items if item.label == 1]
    if not anomalous or any(item.mask is None for item in anomalous):
        return {}
    sizes = [load_image(item.image).size for item in items]
    width, height = (max(side) for side in zip(*sizes, strict=True))
    factor = max(1.0, max(width, height) / pixels)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    lowest = min(float(values.min()) for values in maps)
    values = [
        np.nan_to_num(view.to_picture(grid, own, size), nan=lowest)
        for grid, own in zip(maps, sizes, strict=True)
    ]
    masks = [
        np.zeros(size[::-1], bool) if item.mask is None else resize_mask(load_mask(item.mask, own), size)
        for item, own in zip(items, sizes, strict=True)
    ]
    return pixel_metrics(np.stack(masks), np.stack(values))


def resize_mask(mask: Bool[np.ndarray, "H W"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A mask at (width, height); a pixel of a smaller one is set if any pixel that it covers is."""
    tensor = torch.from_numpy(mask.astype(np.float32))[None]
    return F.adaptive_max_pool2d(tensor, (size[1], size[0]))[0].numpy() > 0
