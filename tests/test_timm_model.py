"""Image towers without words: features as timm has them, patch methods run, the rest is refused clearly."""

import pytest
import timm
import torch
from conftest import draw_category
from PIL import Image
from safetensors.torch import save_file

from inctrl_lite import load_backbone
from inctrl_lite.backbones.base import region_tokens
from inctrl_lite.benchmark import Protocol, run_benchmark
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import compare
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.support import SupportSet

PLAIN = "test_vit"
CNNS = ("test_efficientnet", "test_convnext", "test_resnet")


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return load_backbone(f"timm:{PLAIN}")


def pictures(backbone) -> torch.Tensor:
    return torch.stack([backbone.preprocessor(Image.new("RGB", (50, 40), c)) for c in ("red", "blue")])


def test_features_are_timms(backbone):
    images = pictures(backbone)
    features = backbone.encode_images(images)
    n = backbone.num_patches
    assert [stage.tokens.shape for stage in features.stages] == [(2, n, w) for w in backbone.stage_widths]
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)
        block = backbone.model.forward_intermediates(
            images, indices=[backbone.taps[-1] - 1], output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(features.global_embedding, tokens[:, 0])
    torch.testing.assert_close(features.stages[-1].tokens, block[0])
    expected = region_tokens(tokens[:, -n:], backbone.map_grid)
    torch.testing.assert_close(features.regions.tokens, expected.tokens)


def test_text_is_asked_for_and_refused_where_there_is_none(backbone):
    assert not backbone.has_text_encoder and backbone.text_encoder is None and not backbone.provides
    with pytest.raises(InctrlError, match="no text encoder: choose a CLIP"):
        text_prototypes(backbone, "bottle")


@pytest.mark.parametrize("name", CNNS)
def test_convolutional_networks_give_stages_of_different_width(name):
    torch.manual_seed(0)
    backbone = load_backbone(f"timm:{name}")
    images = pictures(backbone)
    features = backbone.encode_images(images)
    with torch.no_grad():
        maps = backbone.model.forward_intermediates(images, intermediates_only=True)[-3:]
        pooled = backbone.model(images)
    torch.testing.assert_close(features.global_embedding, pooled, rtol=1e-4, atol=1e-5)
    assert features.map_grid == backbone.map_grid == tuple(maps[1].shape[-2:])
    assert backbone.stage_widths == tuple(m.shape[1] for m in maps)
    middle, last = maps[1].flatten(2).transpose(1, 2), maps[2].flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.stages[1].tokens, middle)
    torch.testing.assert_close(features.stages[2].tokens, last)
    assert features.stages[2].grid == tuple(maps[2].shape[-2:])
    fine = torch.nn.functional.adaptive_avg_pool2d(maps[0], features.map_grid)
    torch.testing.assert_close(features.stages[0].tokens, fine.flatten(2).transpose(1, 2))
    evidence = compare(features, SupportSet.of(features))
    assert evidence.stage_maps.shape == (2, 3, backbone.num_patches)
    assert evidence.patch_map.max() < 1e-6  # an image compared with itself


def test_another_image_size_fits_a_cnn_and_not_a_vit():
    backbone = load_backbone("timm:test_efficientnet", image_size=96)
    assert backbone.preprocessor.size == (96, 96) and backbone.arguments["image_size"] == 96
    features = backbone.encode_images(torch.zeros(1, 3, 64, 128))  # and not square either
    rows, columns = features.map_grid
    assert columns == 2 * rows
    with pytest.raises(InctrlError, match="one image size"):
        load_backbone(f"timm:{PLAIN}", image_size=96)
    with pytest.raises(InctrlError, match="one image size"):
        load_backbone("tiny", image_size=96)


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(PLAIN)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_backbone(f"timm:{PLAIN}", str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(loaded.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(InctrlError, match="no model 'vit_smal'"):
        load_backbone("timm:vit_smal")
    with pytest.raises(InctrlError, match="no weights file"):
        load_backbone(f"timm:{PLAIN}", str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InctrlError, match="could not be loaded"):
        load_backbone(f"timm:{PLAIN}", str(tmp_path / "bad.safetensors"))
    with pytest.raises(InctrlError, match="brings its own weights"):
        load_backbone("tiny", "laion400m_e32")


def test_the_benchmark_runs_what_needs_no_text(backbone, tmp_path, monkeypatch, small_categories):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    tests = {"one": lambda: [draw_category("nut")]}
    protocol = Protocol("small", lambda: small_categories, tests, steps=2, batches=2)
    run = run_benchmark(protocol, tmp_path, shots=(2,), seeds=1, backbone=backbone, progress=False)
    methods = set(run.cells["method"])
    assert {"patch max", "PatchCore", "AnomalyDINO-style"} <= methods and not run.failed
    assert not methods & {"CoOp", "text only", "WinCLIP"}
