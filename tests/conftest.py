"""What several tests share: a small random backbone and a few drawn images to look at."""

import json

import numpy as np
import pytest
import torch

from inctrl_lite.data.category import Category, Item

SMALL_CONFIG = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 6, "head_width": 16},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """A `local-dir:` folder with a random CLIP: 32 pixels, 4 x 4 patches of width 32, joint width 24."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = CLIP(**SMALL_CONFIG["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(SMALL_CONFIG))
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_backbone(small_folder):
    """That CLIP as a backbone, on the CPU. Shared: leave it as it is."""
    from inctrl_lite import load_backbone

    return load_backbone(f"local-dir:{small_folder}")


def small_cnn():
    """A small random convolutional network as a backbone: stages of different width, no text encoder."""
    import timm

    from inctrl_lite.backbones.timm_model import TimmCNN
    from inctrl_lite.preprocess import Preprocessor

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_efficientnet", num_classes=0)
    return TimmCNN(network, "small", preprocessor=Preprocessor((64, 64), "squeeze"))


def draw_category(name: str, train: int = 8, normal: int = 6, anomalous: int = 8, seed: int = 0) -> Category:
    """Coloured noise; an anomalous image has a bright square somewhere, and a mask of it."""
    rng = np.random.default_rng([seed, *name.encode()])
    colour = rng.integers(40, 160, 3)

    def item(split: str, number: int, label: int) -> Item:
        image, mask = (colour + rng.normal(0, 8, (32, 32, 3))).clip(0, 255).astype(np.uint8), None
        if label:
            y, x = rng.integers(0, 20, 2)
            image[y : y + 12, x : x + 12] = 250
            mask = np.zeros((32, 32), bool)
            mask[y : y + 12, x : x + 12] = True
        defect = "square" if label else "good"
        return Item(image, label, f"{name}/{split}/{defect}/{number:03}", defect, mask)

    return Category(
        dataset="drawn",
        name=name,
        domain="industrial",
        train=tuple(item("train", i, 0) for i in range(train)),
        test=tuple(item("test", i, int(i >= normal)) for i in range(normal + anomalous)),
    )


@pytest.fixture(scope="session")
def small_categories():
    """Three categories of 14 normal and 8 anomalous drawn images, 32 pixels wide."""
    return [draw_category(name) for name in ("bottle", "metal_nut", "cat")]
