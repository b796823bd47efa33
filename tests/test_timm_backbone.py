"""Image towers without words: features as timm has them, patch methods run, the rest is refused in words."""

import pytest
import timm
import torch
from conftest import draw_category
from PIL import Image
from safetensors.torch import save_file

from inctrl_lite.backbone import Backbone, window_means
from inctrl_lite.benchmark import Protocol, run_benchmark
from inctrl_lite.errors import InctrlError

PLAIN = "test_vit"


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone.load(f"timm:{PLAIN}")


def test_features_are_timms(backbone):
    images = torch.stack([backbone.transform(Image.new("RGB", (50, 40), c)) for c in ("red", "blue")])
    features = backbone.encode_image(images)
    n = backbone.grid[0] * backbone.grid[1]
    assert features.patches.shape == (2, len(backbone.taps), n, backbone.width)
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)
        block = backbone.model.forward_intermediates(
            images, indices=[backbone.taps[-1] - 1], output_fmt="NLC", intermediates_only=True
        )
    torch.testing.assert_close(features.cls, tokens[:, 0])
    torch.testing.assert_close(features.patches[:, -1], block[0])
    torch.testing.assert_close(features.places, window_means(tokens[:, -n:], backbone.grid))
    assert not backbone.has_words
    with pytest.raises(InctrlError, match="knows no words"):
        backbone.encode_text(["a bottle"])


def test_weights_from_a_file(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(PLAIN)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = Backbone.load(f"timm:{PLAIN}", str(tmp_path / "w.safetensors"))
    torch.testing.assert_close(loaded.model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)


def test_what_cannot_be_loaded_is_said(tmp_path):
    with pytest.raises(InctrlError, match="no model 'vit_smal'"):
        Backbone.load("timm:vit_smal")
    with pytest.raises(InctrlError, match="no weights file"):
        Backbone.load(f"timm:{PLAIN}", str(tmp_path / "none.safetensors"))
    with pytest.raises(InctrlError, match="plain Vision Transformer"):
        Backbone.load("timm:resnet10t")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InctrlError, match="could not be loaded"):
        Backbone.load(f"timm:{PLAIN}", str(tmp_path / "bad.safetensors"))


def test_the_benchmark_runs_what_needs_no_words(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    protocol = Protocol("small", list, {"one": lambda: [draw_category("nut")]})
    run = run_benchmark(protocol, tmp_path, shots=(2,), seeds=1, backbone=backbone, progress=False)
    methods = set(run.cells["method"])
    assert {"patch max", "PatchCore", "AnomalyDINO-style"} <= methods and not run.failed
    assert not methods & {"InCTRL", "CoOp", "text only", "WinCLIP"}
