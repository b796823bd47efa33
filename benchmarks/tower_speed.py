"""What a score costs beside the network that it stands on: python benchmarks/tower_speed.py

For the tiny CLIP, the photo tower, DINOv2-S and the paper's ViT-B/16+, on two threads. The last two have
random weights, which changes no speed.

1. scoring K = 4 images with InCTRL's comparison and head, and with PatchCore, over the bare network on the
   same batch, at batch 1 and 32: ratios of pairs measured in turn;
2. milliseconds an image against K, against the batch and, for networks that take any size, against the side
   of the image;
3. the photo tower in channels_last, over PyTorch's default memory format.

Writes benchmarks/results/tower_speed.json, which the results page draws. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from record import RESULTS
from speed import paired, seconds
from torch import Tensor

from inctrl_lite import load_backbone
from inctrl_lite.backbones import Backbone, ImageFeatures
from inctrl_lite.baselines.base import joined_tokens
from inctrl_lite.baselines.patchcore import PatchCore, coreset
from inctrl_lite.benchmark_report import PHONE
from inctrl_lite.environment import environment
from inctrl_lite.heads import own_head
from inctrl_lite.model import InCTRL
from inctrl_lite.prompts import text_prototypes

TOWERS = {  # title -> (backbone, batches, repetitions of a measurement)
    "tiny CLIP": ("tiny", (1, 8, 32), 25),
    "photo (EfficientNet-Lite0)": ("photo", (1, 8, 32), 25),
    "DINOv2-S (random weights)": ("timm:vit_small_patch14_dinov2", (1,), 7),
    "ViT-B/16+ (random weights)": ("ViT-B-16-plus-240", (1, 8), 7),
}
SHOTS, SIDES = (1, 2, 4, 8, 16), (128, 224, 320, 448)


def bare(backbone: Backbone) -> Callable[[Tensor], object]:
    """The image tower alone, without the stages in between."""
    if hasattr(backbone, "clip"):
        return backbone.clip.encode_image
    if hasattr(backbone.visual, "forward_features"):
        return backbone.visual.forward_features
    return backbone.visual


def scorer(backbone: Backbone, shots: int) -> Callable[[ImageFeatures], object]:
    """Comparison with K normal images and InCTRL-lite's head (random initial weights)."""
    torch.manual_seed(0)
    head = own_head(backbone)
    sizes = backbone.embed_dim, backbone.num_patches
    model = InCTRL(*sizes, head, stage_widths=backbone.stage_widths).eval()
    support = model.support(backbone.encode_images(noise(backbone, shots)))
    text = text_prototypes(backbone, "bottle") if backbone.has_text_encoder else None
    return lambda features: model(features, support, text)


def patchcore(backbone: Backbone, shots: int) -> Callable[[ImageFeatures], object]:
    """PatchCore's distances to its bank, as `baselines.patchcore` computes them, and the largest."""
    tokens = joined_tokens(backbone.encode_images(noise(backbone, shots)), 2, 3).flatten(0, 1)
    size = PatchCore().bank_size
    bank = tokens[coreset(tokens, size)] if len(tokens) > size else tokens
    half = bank.square().sum(1) / 2

    def score(features: ImageFeatures) -> list[Tensor]:
        return [torch.addmm(half, t, bank.T, alpha=-1).amin(1).amax() for t in joined_tokens(features, 2, 3)]

    return score


def noise(backbone: Backbone, count: int, side: int | None = None) -> Tensor:
    size = backbone.preprocessor.size if side is None else (side, side)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(count))


def milliseconds(functions: dict[int, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each function, measured in turn, so that a slow minute of the machine hits all alike."""
    for function in functions.values():
        function()
    rounds = [{key: seconds(function) for key, function in functions.items()} for _ in range(repeats)]
    return {str(key): round(1000 * statistics.median(one[key] for one in rounds), 2) for key in functions}


def of_tower(name: str, batches: tuple[int, ...], repeats: int) -> dict[str, object]:
    """Parts 1 and 2 for one network."""
    backbone = load_backbone(name)
    network = bare(backbone)
    scorers = {k: scorer(backbone, k) for k in SHOTS}
    rival = patchcore(backbone, 4)
    found: dict[str, dict[str, float]] = {"InCTRL-lite over bare": {}, "PatchCore over bare": {}, "bare": {}}
    for batch in batches:
        images = noise(backbone, batch)
        for title, score in (("InCTRL-lite over bare", scorers[4]), ("PatchCore over bare", rival)):
            pair = paired(
                lambda s=score, x=images: s(backbone.encode_images(x)), lambda x=images: network(x), repeats
            )
            found[title][str(batch)] = round(pair["ratio"], 3)
            found["bare"][str(batch)] = round(1000 * pair["second_s"] / batch, 2)
    images = noise(backbone, 1)
    by_k = milliseconds(
        {k: lambda s=score: s(backbone.encode_images(images)) for k, score in scorers.items()}, repeats
    )
    inputs = {batch: noise(backbone, batch) for batch in batches}
    by_batch = milliseconds(
        {n: lambda x=x: scorers[4](backbone.encode_images(x)) for n, x in inputs.items()}, repeats
    )
    by_batch = {n: round(ms / int(n), 2) for n, ms in by_batch.items()}
    sides = {}
    for side in SIDES if backbone.input_multiple else ():
        large = load_backbone(name, image_size=side)
        score, x = scorer(large, 4), noise(large, 1)
        sides[side] = lambda s=score, b=large, x=x: s(b.encode_images(x))
    by_side = milliseconds(sides, repeats)
    return found | {"ms by K": by_k, "ms by batch": by_batch, "ms by side": by_side}


def channels_last() -> dict[str, float]:
    """Part 3: the default memory format over channels_last, by batch."""
    backbone = load_backbone("photo")
    fast = backbone.visual
    slow = load_backbone("photo").visual.to(memory_format=torch.contiguous_format)
    found = {}
    for batch in (1, 32):
        x = noise(backbone, batch)
        y = x.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(slow(x), fast(y), atol=1e-3)
        found[str(batch)] = round(paired(lambda x=x: slow(x), lambda y=y: fast(y), 7)["ratio"], 3)
    return found


def figure(found: dict[str, dict], width: float = 11) -> Figure:
    """Milliseconds an image against K, batch and side."""
    stacked = width <= PHONE
    drawn = Figure(figsize=(width, 9.5 if stacked else 3.8), layout="constrained")
    axes = drawn.subplots(*((3, 1) if stacked else (1, 3)))
    for ax, (part, label) in zip(
        axes,
        (("ms by K", "K"), ("ms by batch", "batch, K = 4"), ("ms by side", "side of the image, K = 4")),
        strict=True,
    ):
        for number, (name, one) in enumerate(found.items()):
            values = one[part]
            if len(values) > 1:
                ax.plot([int(k) for k in values], list(values.values()), "o-", color=f"C{number}", label=name)
        ticks = {"ms by K": SHOTS, "ms by batch": (1, 8, 32), "ms by side": SIDES}[part]
        scale = {"ylim": (0, None)} if part == "ms by side" else {"yscale": "log"}
        ax.set(xlabel=label, ylabel="ms per image", xscale="log", **scale)
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = 1 if stacked else 4
    drawn.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return drawn


def table(found: dict) -> str:
    """What scoring costs over the bare network, for each network and batch."""
    head = [
        "network",
        "batch",
        "bare network, ms per image",
        "InCTRL-lite, over bare",
        "PatchCore, over bare",
    ]
    lines = [head, ["---"] * len(head)]
    for name, one in found["towers"].items():
        for batch, bare_ms in one["bare"].items():
            ratios = (
                f"{one[title][batch]:.2f}" for title in ("InCTRL-lite over bare", "PatchCore over bare")
            )
            lines.append([name, batch, f"{bare_ms:.1f}", *ratios])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sentences(found: dict) -> str:
    """The main figures of the photo tower in words."""
    one, gain = (
        found["towers"]["photo (EfficientNet-Lite0)"]["InCTRL-lite over bare"],
        found["channels_last gain"],
    )
    return (
        f"With the photo network and K = 4, scoring takes {one['1']:.2f} times what the bare network takes "
        f"on one image, and {one['32']:.2f} times on 32. On this machine the memory format channels_last, "
        f"which the package uses, makes the photo network {gain['1']:.2f} times as fast on one image and "
        f"{gain['32']:.2f} times on 32."
    )


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(2)
    towers = {title: of_tower(*settings) for title, settings in TOWERS.items()}
    result = {"environment": environment(), "towers": towers, "channels_last gain": channels_last()}
    Path(RESULTS / "tower_speed.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
