"""The backbone: open_clip's own towers, seen as InCTRL needs them."""

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

from inctrl_lite import Backbone, InctrlError
from inctrl_lite.backbone import VIEWS, ImageFeatures, default_taps, more_views, places_shape, window_means


def random_clip(**vision):
    config = json.loads(json.dumps(SMALL_CONFIG["model_cfg"]))
    config["vision_cfg"] |= vision
    return open_clip.model.CLIP(**config)


def wrap(clip, **kwargs):
    return Backbone(
        clip,
        transform=lambda image: torch.zeros(0),
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
    features = small_backbone.encode_image(images)
    torch.testing.assert_close(features.cls, cls)
    torch.testing.assert_close(features.patches, torch.stack([tokens[:, 1:] for tokens in seen], 1))
    assert features.patches.shape == (3, 3, 16, 32)
    assert not any(len(module._forward_hooks) for module in small_backbone.modules())


@pytest.mark.parametrize("size", [8, 16, 64, (32, 48)])
def test_any_grid(size):
    backbone = wrap(random_clip(image_size=size))
    height, width = (size, size) if isinstance(size, int) else size
    assert backbone.grid == (height // 8, width // 8)
    features = backbone.encode_image(torch.randn(1, 3, height, width))
    assert features.patches.shape[2] == backbone.num_patches
    assert features.places.shape[1] == math.prod(places_shape(backbone.grid))
    for same in (features, features[:1], features.to("cpu"), ImageFeatures.cat([features, features])):
        assert same.grid == backbone.grid


def test_patches_that_are_no_square_need_a_grid():
    parts = torch.randn(2, 3), torch.randn(2, 1, 6, 4), torch.randn(2, 1, 4)
    assert ImageFeatures(*parts, (2, 3)).grid == (2, 3)
    with pytest.raises(InctrlError, match="6 patches are not 2 x 2: say the grid"):
        ImageFeatures(*parts)


def test_a_place_is_the_mean_of_a_window_of_the_last_block(small_backbone):
    images, seen = torch.randn(2, 3, 32, 32), []
    last = small_backbone.clip.visual.transformer.resblocks[-1]
    hook = last.register_forward_hook(lambda *a: seen.append(a[2][:, 1:]))
    features = small_backbone.encode_image(images)
    hook.remove()
    torch.testing.assert_close(features.places, window_means(seen[0], small_backbone.grid))
    assert small_backbone.depth not in small_backbone.taps  # the tapped blocks stay the tapped ones

    numbers = torch.arange(25.0).reshape(1, 25, 1)  # row * 5 + column
    assert places_shape((5, 5)) == (2, 2)
    assert window_means(numbers, (5, 5)).flatten().tolist() == [6, 8, 16, 18]  # the windows' middles


def test_more_views_are_moved_by_half_a_patch_turned_and_scaled():
    height, width = 32, 48  # patches of 8
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    views = more_views(image, (height // 8, width // 8))
    assert views.shape == (2, len(VIEWS), 3, height, width)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(views[:, 0, :, 4:, 4:], image[..., :-4, :-4], **close)
    torch.testing.assert_close(views[:, 3, :, :, 4:], image[..., :-4], **close)  # to the right
    torch.testing.assert_close(views[:, 3, :, :, 0], image[..., 0], **close)  # the border repeated
    torch.testing.assert_close(views[:, 4, :, 4:], image[..., :-4, :], **close)  # down
    assert torch.equal(more_views(image, (height // 8, width // 8), 2), views[:, :2])

    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    disc = ((x - 33.5) ** 2 + (y - 15.5) ** 2 < 9).float().expand(1, 3, -1, -1)  # 10 right of the middle
    middles = [
        ((view * t).sum() / view.sum()).item() for view in more_views(disc, (4, 6))[0, :, 0] for t in (x, y)
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


def test_the_transform_is_the_one_of_the_weights(small_backbone):
    tensor = small_backbone.transform(Image.new("RGB", (50, 40), (255, 255, 255)))
    mean, std = (torch.tensor(SMALL_CONFIG["preprocess_cfg"][k]).view(3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(tensor, ((1 - mean) / std).expand(3, 32, 32))


def test_towers_without_patch_tokens_are_refused():
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None}
    with pytest.raises(InctrlError, match="ModifiedResNet.*choose a ViT"):
        wrap(random_clip(**resnet))


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(InctrlError, match="did you mean ViT-B-16-plus-240"):
        Backbone.load("ViT-B-16-plus240")
    with pytest.raises(InctrlError, match="laion400m_e32"):
        Backbone.load("ViT-B-16-plus-240", "laion400m_e33")


def test_a_folder_that_is_no_backbone_says_what_is_missing(small_folder, tmp_path):
    with pytest.raises(InctrlError, match="open_clip_config.json is missing"):
        Backbone.load(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text("{ not json")
    with pytest.raises(InctrlError, match="not an open_clip model configuration"):
        Backbone.load(f"local-dir:{tmp_path}")
    shutil.copy(small_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(InctrlError, match="no weights in"):
        Backbone.load(f"local-dir:{tmp_path}")


def test_weights_of_another_shape_are_refused(small_folder, tmp_path):
    shutil.copy(small_folder / "open_clip_config.json", tmp_path)
    state = load_file(small_folder / "open_clip_model.safetensors")
    state["visual.proj"] = torch.zeros(5, 5)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InctrlError, match="visual.proj|could not be loaded"):
        Backbone.load(f"local-dir:{tmp_path}")


class Intruder:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(Intruder(tmp_path / "broken-in")))
    with pytest.raises(InctrlError, match="more than tensors are refused"):
        Backbone.load("ViT-S-32-alt", str(tmp_path / "weights.pt"))
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
        Backbone.load("ViT-B-16-plus-240", tag)


def test_the_papers_weights_come_from_their_own_address(monkeypatch, tmp_path):
    asked = []

    def fetch(address, cache_dir=None):
        asked.append(address)
        return str(tmp_path / "absent.pt")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url", fetch)
    with pytest.raises(InctrlError):
        Backbone.load("ViT-B-16-plus-240", "laion400m_e32")
    assert [address.rpartition("-")[2] for address in asked] == ["699c4b84.pt"]


def test_the_papers_architecture_has_the_papers_sizes():
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config("ViT-B-16-plus-240"))
    backbone = wrap(clip)
    assert (backbone.grid, backbone.width, backbone.embed_dim) == ((15, 15), 896, 640)
    assert backbone.taps == (7, 9, 11)
