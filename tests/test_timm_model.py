"""Image towers without words: features as timm has them, patch methods run, the rest is refused clearly."""

import numpy as np
import pytest
import timm
import torch
from conftest import draw_category
from PIL import Image
from safetensors.torch import save_file

from inctrl_lite import load_backbone
from inctrl_lite.backbones.base import region_tokens
from inctrl_lite.backbones.timm_model import TimmViT
from inctrl_lite.baselines import Auxiliary, Images
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.benchmark import Protocol, run_benchmark
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import compare
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.store import FeatureStore
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


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])  # class token; means; attention
def test_the_global_embedding_is_what_the_network_gives_its_classifier(name):
    torch.manual_seed(0)
    backbone = load_backbone(f"timm:{name}")
    images = pictures(backbone)
    with torch.no_grad():
        expected = backbone.model(images)
    torch.testing.assert_close(backbone.encode_images(images).global_embedding, expected)


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


def test_register_tokens_are_no_patches():
    torch.manual_seed(0)
    backbone = TimmViT(timm.create_model(PLAIN, reg_tokens=4, num_classes=0), "registers", None, None)
    images = pictures(backbone)
    features = backbone.encode_images(images)
    with torch.no_grad():
        tokens = backbone.model.forward_features(images)
    assert tokens.shape[1] == 1 + 4 + backbone.num_patches
    torch.testing.assert_close(features.global_embedding, tokens[:, 0])
    expected = region_tokens(tokens[:, 5:], backbone.map_grid)
    torch.testing.assert_close(features.regions.tokens, expected.tokens)
    assert features.stages[0].tokens.shape[1] == backbone.num_patches


@pytest.mark.parametrize("name", [PLAIN, *CNNS])
def test_features_do_not_depend_on_the_rest_of_the_batch(name):
    backbone = load_backbone(f"timm:{name}")
    assert not any(module.training for module in backbone.modules())
    images = pictures(backbone)
    together, alone = backbone.encode_images(images), backbone.encode_images(images[:1])
    for one, other in zip(together[:1].tensors(), alone.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [PLAIN, *CNNS])
def test_pictures_are_prepared_as_timm_does_but_not_cut_off(name):
    from timm.data import create_transform, resolve_data_config

    backbone = load_backbone(f"timm:{name}")
    settings = resolve_data_config(model=backbone.model) | {"crop_pct": 1.0}
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert torch.equal(backbone.preprocessor(picture), create_transform(**settings)(picture))


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


def test_inctrl_lite_among_the_methods_is_a_model_with_a_learned_prior(tmp_path, small_categories):
    torch.manual_seed(0)
    backbone = load_backbone("timm:test_efficientnet")
    auxiliary = Auxiliary(small_categories, backbone, FeatureStore(backbone, tmp_path))
    method, other = (InCTRLMethod().train(auxiliary, seed) for seed in (0, 1))
    category = draw_category("nut")
    queries = Images(category.test[:3], backbone)
    for shots in (1, 3):  # a level that was learned, and one of the normal images themselves
        normals = Images(category.train[:shots], backbone)
        answer = method.fit(normals, category.name).score(queries)
        expected = method.model(queries.features, method.model.support(normals.features))
        torch.testing.assert_close(answer.scores, expected.final)
        torch.testing.assert_close(answer.maps, expected.heat_map)
    assert not torch.equal(method.model.head.direction, other.model.head.direction)  # of another seed
    terms = {"learn": {"learn": False}, "patch": {"terms": ("patch",)}, "all": {}}
    found = {name: InCTRLMethod(**more).train(auxiliary).model.head.terms for name, more in terms.items()}
    assert found == {"learn": ("patch", "whole"), "patch": ("patch",), "all": ("patch", "whole", "prior")}


def test_the_benchmark_runs_what_needs_no_text(backbone, tmp_path, monkeypatch, small_categories):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    tests = {"one": lambda: [draw_category("nut")]}
    protocol = Protocol("small", lambda: small_categories, tests, steps=2, batches=2)
    run = run_benchmark(protocol, tmp_path, shots=(2,), seeds=1, backbone=backbone, progress=False)
    methods = set(run.cells["method"])
    assert {"patch max", "PatchCore", "AnomalyDINO-style"} <= methods and not run.failed
    assert not methods & {"CoOp", "text only", "WinCLIP"}
