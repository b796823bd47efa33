"""Checkpoints of the public code, made here with its key names."""

import pickle

import pytest
import torch
from test_backbones import Intruder

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError, load_backbone
from inctrl_lite.checkpoint import PUBLIC_KEYS, check_fits, load_public, read_tensors


@pytest.fixture
def model(small_backbone):
    torch.manual_seed(0)
    return InCTRL(small_backbone.embed_dim, small_backbone.num_patches)


@pytest.fixture
def public_state(model, small_backbone):
    """What the public code would have saved for this model and backbone."""
    state = {PUBLIC_KEYS[name]: tensor for name, tensor in model.state_dict().items()}
    state |= {"diff_head.bn1.weight": torch.ones(16), "diff_head_ref.bn1.bias": torch.zeros(24)}
    clip = {k: v for k, v in small_backbone.clip.state_dict().items() if k != "logit_scale"}
    return state | clip | {"mystery": torch.zeros(1)}


def test_every_weight_of_the_paper_head_has_a_public_name(model):
    assert set(PUBLIC_KEYS) == set(model.state_dict())


@pytest.mark.parametrize("wrapped", [False, True])
def test_public_checkpoint_loads_with_a_report(model, public_state, tmp_path, wrapped):
    torch.save({"model_state": public_state} if wrapped else public_state, tmp_path / "checkpoint.pyth")
    loaded, clip, report = load_public(tmp_path / "checkpoint.pyth")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)
    assert report.missing == () and report.unused == ("mystery",)
    assert report.dead == ("diff_head.bn1.weight", "diff_head_ref.bn1.bias")
    assert set(report.backbone) == set(clip) and "visual.proj" in clip


def test_a_detector_takes_the_clip_weights_of_the_file(public_state, tmp_path, small_folder):
    public_state["visual.proj"] = public_state["visual.proj"] + 1
    torch.save(public_state, tmp_path / "checkpoint.pyth")
    backbone = load_backbone(f"local-dir:{small_folder}")
    detector = AnomalyDetector.from_pretrained(tmp_path / "checkpoint.pyth", backbone=backbone, device="cpu")
    torch.testing.assert_close(detector.backbone.clip.visual.proj.data, public_state["visual.proj"])


def test_missing_keys_are_named(public_state, tmp_path):
    del public_state["adapter.fc.2.weight"]
    torch.save(public_state, tmp_path / "checkpoint.pyth")
    with pytest.raises(InctrlError, match="1 of .* missing, first adapter.fc.2.weight"):
        load_public(tmp_path / "checkpoint.pyth")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "evil.pyth").write_bytes(pickle.dumps(Intruder(tmp_path / "broken-in")))
    with pytest.raises(InctrlError, match="refused"):
        read_tensors(tmp_path / "evil.pyth")
    assert not (tmp_path / "broken-in").exists()


def test_other_files_are_named(tmp_path):
    with pytest.raises(InctrlError, match="no checkpoint"):
        read_tensors(tmp_path / "nowhere.pyth")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InctrlError, match="no state dict"):
        read_tensors(tmp_path / "list.pt")


def test_a_model_for_another_backbone_names_both_sizes(small_backbone, model):
    check_fits(model, small_backbone)
    with pytest.raises(InctrlError, match="width 640 and 225 patches.*24 and 16"):
        check_fits(InCTRL(640, 225), small_backbone)
