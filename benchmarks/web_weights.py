"""What do smaller weights of the live page's network cost? python benchmarks/web_weights.py [--data FOLDER]

AUROC of the photo detector (K = 4, three draws, up to 60 test images a category) with the exported encoder's
weights in float32, float16 and int8, on photographs with blended defects, on which the choice is made; with
--data, also on folders of real images. Writes benchmarks/results/web_weights.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from record import RESULTS

from inctrl_lite import AnomalyDetector
from inctrl_lite.backbones.base import ImageFeatures, Stage
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image
from inctrl_lite.data.manifest import load_dataset
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.export import WEIGHTS, export_encoder
from inctrl_lite.files import write_text
from inctrl_lite.metrics import auroc

SHOTS, DRAWS, TESTS = 4, 3, 60


def features(
    session: onnxruntime.InferenceSession, items: list[Item], size: tuple[int, int]
) -> ImageFeatures:
    """What an exported encoder says of images."""
    found = []
    for item in items:
        picture = load_image(item.image).resize(size[::-1], 3)  # bicubic
        found.append(session.run(None, {"image": np.asarray(picture)}))
    *stages, embedding = (torch.from_numpy(np.stack(values)) for values in zip(*found, strict=True))
    grids = [round(stage.shape[1] ** 0.5) for stage in stages]
    parts = tuple(Stage(stage, (side, side)) for stage, side in zip(stages, grids, strict=True))
    return ImageFeatures(embedding, parts, parts[len(parts) // 2].grid)


@torch.inference_mode()
def mean_auroc(detector: AnomalyDetector, session: onnxruntime.InferenceSession, category: Category) -> float:
    """Of one category, over the draws of normal images."""
    size = detector.backbone.preprocessor.size
    which = np.random.default_rng(0).permutation(len(category.test))[:TESTS]
    items = [category.test[i] for i in which]
    labels, queries = np.array([item.label for item in items]), features(session, items, size)
    found = []
    for seed in range(DRAWS):
        support = detector.model.support(features(session, draw_support(category, SHOTS, seed), size))
        found.append(auroc(labels, detector.model(queries, support, None).final.numpy()))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of data sets in MVTec layout")
    data = parser.parse_args().data
    sets = {"photographs": load_photographs("development")}
    for folder in sorted(path for path in data.iterdir() if path.is_dir()) if data else []:
        sets[folder.name] = load_dataset(str(folder))
    detector = AnomalyDetector.from_pretrained("photo", device="cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    record: dict[str, dict] = {"bytes": {}, "auroc": {name: {} for name in sets}}
    for weights in WEIGHTS:
        with tempfile.TemporaryDirectory() as folder:
            path = export_encoder(detector.backbone, Path(folder) / "encoder.onnx", weights)
            record["bytes"][weights] = path.stat().st_size
            session = onnxruntime.InferenceSession(path, options)
        for name, categories in sets.items():
            values = [mean_auroc(detector, session, category) for category in categories]
            record["auroc"][name][weights] = round(float(np.mean(values)), 4)
            print(weights, name, record["auroc"][name][weights], flush=True)
    write_text(RESULTS / "web_weights.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
