"""How fast scoring and training are, as ratios measured in one run: python benchmarks/speed.py

1. Scoring a query with a fitted detector against open_clip's bare `encode_image` on the same batch, and
   against doing what need not be done twice (text prompts and normal images encoded for every query).
2. A training step from stored features against encoding query and prompts in the step.
3. Peak memory of scoring against the number of images.
4. Cost against K, with an augmented support set or without, and against the number of images.

Writes benchmarks/results/speed.json. `--quick` takes the embedded backbone for 1 and 2.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from inctrl_lite import AnomalyDetector, load_backbone
from inctrl_lite.backbones import Backbone
from inctrl_lite.benchmark_report import PHONE
from inctrl_lite.data.category import Category, Item
from inctrl_lite.data.episodes import sample_batch
from inctrl_lite.encoder import Encoder
from inctrl_lite.environment import environment
from inctrl_lite.losses import focal_loss
from inctrl_lite.model import InCTRL
from inctrl_lite.prompts import text_prompts, text_prototypes
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet
from inctrl_lite.training import load_episodes

RESULTS = Path(__file__).parent / "results"


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired(first: Callable, second: Callable, repeats: int) -> dict[str, float]:
    """Median seconds of two functions run in turn, and the median ratio of the pairs."""
    first(), second()  # warm up
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    return {
        "first_s": statistics.median(a for a, _ in pairs),
        "second_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
    }


def backbone_and_model(quick: bool) -> tuple[Backbone, InCTRL]:
    """The paper's architecture with random weights (speed does not depend on them), or the embedded one."""
    torch.manual_seed(0)
    backbone = load_backbone("tiny") if quick else load_backbone("ViT-B-16-plus-240")
    return backbone, InCTRL(backbone.embed_dim, backbone.num_patches).eval()


@torch.inference_mode()
def scoring(backbone: Backbone, model: InCTRL, shots: int = 4, batch: int = 8, repeats: int = 7) -> dict:
    """Part 1."""
    images = torch.randn(batch, 3, *backbone.preprocessor.size)
    normals = torch.randn(shots, 3, *backbone.preprocessor.size)
    support = model.support(backbone.encode_images(normals))
    text = text_prototypes(backbone, "bottle")
    sentences = sum(map(len, text_prompts("bottle")))

    fitted = paired(
        lambda: model(backbone.encode_images(images), support, text),
        lambda: backbone.clip.encode_image(images),
        repeats,
    )
    again = seconds(lambda: text_prototypes(backbone, "bottle")) + seconds(
        lambda: backbone.encode_images(normals)
    )
    per_image = fitted["first_s"] / batch
    return {
        "setting": f"{backbone.name}, K = {shots}, batch {batch}, float32",
        "scoring over bare encode_image": fitted["ratio"],
        "seconds per image, scoring": per_image,
        "seconds per image, bare encode_image": fitted["second_s"] / batch,
        f"re-encoding {sentences} sentences and {shots} normal images per query, over scoring": (
            again + per_image
        )
        / per_image,
    }


def training_step(
    backbone: Backbone, model: InCTRL, shots: int = 4, batch: int = 8, repeats: int = 5
) -> dict:
    """Part 2: the same step, from the feature store and with its images encoded in the step."""
    rng = np.random.default_rng(0)
    height, width = backbone.preprocessor.size
    pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(batch * (2 + shots))]
    items = [Item(picture, int(i < batch), f"noise/{i}") for i, picture in enumerate(pictures)]
    category = Category("noise", "noise", "semantic", tuple(items[batch:]), tuple(items[:batch]))
    texts = {"noise": text_prototypes(backbone, "noise")}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    episodes = sample_batch([category], 0, batch_size=batch, shots=shots)
    used = list(dict.fromkeys(item for e in episodes for item in (e.query, *e.support)))
    model.train()

    def step(store) -> None:
        query, support, text, labels = load_episodes(episodes, store, texts, model.head.needs_statistics)
        scores = model(query, support, text)
        loss = focal_loss(scores.final, labels) + focal_loss(scores.image, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    class NoStore:
        """Encodes whatever is asked for, every time."""

        def __init__(self):
            self.backbone, self.load = backbone, Encoder(backbone).encode_items

    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(backbone, folder)
        store.encode(used, batch_size=batch, progress=False)
        result = paired(lambda: step(NoStore()), lambda: step(store), repeats)
    model.eval()
    return {
        "setting": f"{backbone.name}, K = {shots}, batch {batch}, {len(used)} images",
        "encoding in the step over stored features": result["ratio"],
        "seconds a step, stored": result["second_s"],
        "seconds a step, encoding": result["first_s"],
    }


SUPPORTS = {"augmented": True, "as it is": False}

MEMORY_PROBE = """
import re, sys, numpy as np
from inctrl_lite import AnomalyDetector
detector = AnomalyDetector.from_pretrained("tiny")
rng = np.random.default_rng(0)
picture = lambda: rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)
detector.fit([picture() for _ in range(4)], category="noise")
n = sum(1 for _ in detector.stream(picture() for _ in range(int(sys.argv[1]))))
# the process's own high-water mark: ru_maxrss would begin at the parent's
print(n, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def memory(counts: tuple[int, ...] = (100, 1000, 10000)) -> dict[str, float]:
    """Part 3: peak MiB of a fresh process that scores so many images (Linux)."""
    peaks = {}
    for count in counts:
        output = subprocess.check_output([sys.executable, "-c", MEMORY_PROBE, str(count)], text=True)
        scored, peak = map(int, output.split())
        assert scored == count
        peaks[str(count)] = peak / 1024
    return peaks


@torch.inference_mode()
def growth(repeats: int = 9) -> dict[str, dict]:
    """Part 4, with the embedded detector: milliseconds an image by K, seconds by number of images."""
    detector = AnomalyDetector.from_pretrained("tiny", device="cpu")
    backbone, model = detector.backbone, detector.model
    text = text_prototypes(backbone, "bottle")
    images = torch.randn(32, 3, *backbone.preprocessor.size)

    encoder = Encoder(backbone)

    def support_of(shots: int, augment: bool) -> SupportSet:
        normals = torch.randn(shots, 3, *backbone.preprocessor.size)
        augmented = encoder.encode_augmented(normals) if augment else None
        return model.support(encoder.encode(normals), augmented)

    by_shots = {}
    for shots in (1, 2, 4, 8, 16, 32, 64):
        by_shots[str(shots)] = {}
        for name, augment in SUPPORTS.items():
            support = support_of(shots, augment)
            times = [
                seconds(lambda s=support: model(encoder.encode(images), s, text)) for _ in range(repeats + 1)
            ]
            by_shots[str(shots)][name] = 1000 * statistics.median(times[1:]) / len(images)
    support = support_of(4, True)
    by_count = {}
    for count in (32, 128, 512, 2048):
        batches = count // len(images)
        by_count[str(count)] = seconds(
            lambda b=batches: [model(encoder.encode(images), support, text) for _ in range(b)]
        )
    return {"ms per image by K": by_shots, "seconds by images": by_count}


def plot(by_shots: dict[str, dict], by_count: dict[str, float], width: float = 9) -> Figure:
    """Cost by K, with an augmented support set or without, and by images, beside proportional growth."""
    stacked = width <= PHONE
    figure = Figure(figsize=(width, 7 if stacked else 3.6), layout="constrained")
    left, right = figure.subplots(*((2, 1) if stacked else (1, 2)))
    for name, style in zip(SUPPORTS, ("o-C0", "s-C1"), strict=True):
        values = [times[name] for times in by_shots.values()]
        left.plot([int(k) for k in by_shots], values, style, label=f"support set {name}")
    left.set_xscale("log", base=2)
    left.set(xlabel="K, normal images", ylabel="ms per image", ylim=(0, None))
    left.set_xticks([int(k) for k in by_shots], by_shots)
    x, y = np.array([int(k) for k in by_count]), np.array(list(by_count.values()))
    right.loglog(x, y, "o-", label="measured, K = 4, augmented")
    right.loglog(x, y[0] * x / x[0], "--", color="0.5", label="proportional to the first point")
    right.set(xlabel="images", ylabel="seconds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def main() -> None:
    backbone, model = backbone_and_model(quick="--quick" in sys.argv)
    result = {
        "environment": environment(),
        "scoring": scoring(backbone, model),
        "training step": training_step(backbone, model),
        "peak MiB by images scored": memory(),
        **growth(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
