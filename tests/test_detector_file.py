"""A detector file gives back the same detector, or says in one line why it cannot."""

import json
import struct

import numpy as np
import pytest
import timm
import torch
from conftest import small_cnn
from PIL import Image
from safetensors.torch import load_file, save_file

import inctrl_lite
from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.backbones.timm_model import TimmCNN
from inctrl_lite.preprocess import Preprocessor


def surface(seed: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    grey = np.random.default_rng(seed).normal(120, 4, (*size[::-1], 1))
    return np.repeat(grey, 3, 2).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture
def photo_like(cnn):
    torch.manual_seed(0)
    model = InCTRL(cnn.embed_dim, cnn.num_patches, "prior", stage_widths=cnn.stage_widths)
    model.head.direction.normal_()
    return AnomalyDetector(model, cnn, "cpu")


@pytest.fixture
def saved(photo_like, tmp_path):
    return photo_like.fit([surface(i) for i in range(3)], "plate").save(tmp_path / "plate.inctrl")


@pytest.mark.parametrize("head", ["lite", "paper"])
def test_a_clip_detector_comes_back_bit_for_bit(small_backbone, tmp_path, head):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head)
    detector = AnomalyDetector(model, small_backbone, "cpu")
    detector.fit([surface(i) for i in range(3)], "metal nut").fit(surface(7), "a/../b")
    path = detector.save(tmp_path / "two.inctrl")
    loaded = AnomalyDetector.load(path, device="cpu")  # its backbone is a folder that is still there
    assert list(loaded.categories) == ["metal nut", "a/../b"]
    for name in detector.categories:
        same_predictions(detector, loaded, name, surface(9))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiles": 48},
        {"region": (8, 8, 90, 80)},
        {"any_rotation": True},
        {"keep_aspect": True, "bits": 12},
    ],
    ids=str,
)
def test_every_view_comes_back_bit_for_bit(photo_like, cnn, tmp_path, options):
    photo_like.fit([surface(i) for i in range(3)], "plate", **options)
    loaded = AnomalyDetector.load(photo_like.save(tmp_path / "x.inctrl"), backbone=cnn, device="cpu")
    same_predictions(photo_like, loaded, "plate", surface(9))


def same_predictions(one: AnomalyDetector, other: AnomalyDetector, category: str, query: np.ndarray) -> None:
    a, b = one.predict(query, category)[0], other.predict(query, category)[0]
    assert a.to_dict() == b.to_dict() and a.limits == b.limits and a.normal_scores == b.normal_scores
    np.testing.assert_array_equal(a.patch_map, b.patch_map)
    np.testing.assert_array_equal(a.upsampled_map(), b.upsampled_map())
    x, y = one.categories[category], other.categories[category]
    for field in ("threshold_source", "expected_rate", "names", "fingerprints", "shots"):
        assert getattr(x, field) == getattr(y, field)


def test_a_loaded_detector_knows_its_normal_images_and_can_be_calibrated(photo_like, cnn, saved):
    loaded = AnomalyDetector.load(saved, backbone=cnn, device="cpu")
    with pytest.warns(UserWarning, match="also in the support set"):
        assert loaded.predict(surface(1))[0].in_support
    loaded.calibrate(normals=[surface(50 + i) for i in range(9)], false_alarm_rate=0.1)
    again = AnomalyDetector.load(loaded.save(saved), backbone=cnn, device="cpu")
    assert again.categories["plate"].threshold == loaded.categories["plate"].threshold
    assert again.categories["plate"].expected_rate == pytest.approx(0.1)


def test_nothing_fitted_is_nothing_to_save(photo_like, tmp_path):
    with pytest.raises(InctrlError, match="nothing to save"):
        photo_like.save(tmp_path / "x.inctrl")
    assert not list(tmp_path.iterdir())


# --- files that are not right ------------------------------------------------------------------------


def changed(path, change):
    """The file with another description, as a careful attacker would write it: no checksum."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    about = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["inctrl_lite"])
    tensors = load_file(path)
    change(about, tensors)
    save_file(tensors, path, {"inctrl_lite": json.dumps(about)})
    return path


def test_another_format_and_another_version_are_said(saved, cnn):
    changed(saved, lambda about, _: about.update(version="9.0"))
    with pytest.warns(
        UserWarning, match=f"fitted with inctrl_lite 9.0, and this is {inctrl_lite.__version__}"
    ):
        AnomalyDetector.load(saved, backbone=cnn)
    changed(saved, lambda about, _: about.update(format=2))
    with pytest.raises(InctrlError, match="has format 2.*reads format 1: fit it again"):
        AnomalyDetector.load(saved, backbone=cnn)


def test_a_missing_or_another_backbone_is_said(saved, cnn):
    with pytest.raises(InctrlError, match="needs the backbone 'small'"):
        AnomalyDetector.load(saved)
    other = TimmCNN(
        timm.create_model("test_efficientnet", num_classes=0),
        "small",
        preprocessor=Preprocessor((64, 64), "squeeze"),
    )
    with pytest.raises(InctrlError, match="fitted with other weights of the backbone 'small'"):
        AnomalyDetector.load(saved, backbone=other)


@pytest.mark.parametrize("at", [0.0, 0.02, 0.3, 0.6, 0.99])
def test_a_changed_byte_is_noticed_wherever_it_is(saved, cnn, at):
    data = bytearray(saved.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    saved.write_bytes(data)
    with pytest.raises(InctrlError, match="damaged|no fitted detector"):
        AnomalyDetector.load(saved, backbone=cnn)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000])
def test_a_file_cut_short_is_named(saved, cnn, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InctrlError, match="plate.inctrl is damaged or no detector file"):
        AnomalyDetector.load(saved, backbone=cnn)


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.pop("categories"),
        lambda about, tensors: about.update(categories=[]),
        lambda about, tensors: about.update(categories={"name": 1}),
        lambda about, tensors: about["categories"][0].pop("limits"),
        lambda about, tensors: about["categories"][0].update(limits=[1]),
        lambda about, tensors: about["categories"][0].update(stage_grids=[[3, 3]]),
        lambda about, tensors: about["categories"][0]["view"].update(tiles=[2, 2]),
        lambda about, tensors: about["categories"][0]["view"].update(tiles=True),
        lambda about, tensors: about["categories"][0]["view"].update(bits="x"),
        lambda about, tensors: about["categories"][0].update(map_grid=[4, 1]),
        lambda about, tensors: about["categories"][0].update(map_grid=None),
        lambda about, tensors: about["categories"][0]["view"]["preprocessor"].update(size=[64, 1e300]),
        lambda about, tensors: about["categories"][0]["view"]["preprocessor"].update(size=[96, 96]),
        lambda about, tensors: about["categories"][0]["view"]["preprocessor"].update(mean=[0.5]),
        lambda about, tensors: about["categories"][0]["view"]["preprocessor"].update(std=[0, "x", {}]),
        lambda about, tensors: about["model"].update(backbone="../../etc"),
        lambda about, tensors: about["backbone"]["arguments"].update(name=1e300),
        lambda about, tensors: about["categories"][0]["view"]["preprocessor"].update(mode="fold"),
        lambda about, tensors: about["categories"][0].update(threshold="high"),
        lambda about, tensors: about["model"].update(head="none"),
        lambda about, tensors: about["categories"][0].update(threshold=float("nan")),
        lambda about, tensors: about["categories"][0].update(limits=[0.5, 0.5]),
        lambda about, tensors: about["categories"][0]["normal_images"].pop(),
        lambda about, tensors: about["model"].update(embed_dim=3),
        lambda about, tensors: about.update(backbone=None),
        lambda about, tensors: tensors.pop("model.head.direction"),
        lambda about, tensors: tensors.pop("categories.0.global_embedding"),
        lambda about, tensors: tensors["categories.0.stages.0.tokens"].fill_(float("nan")),
        lambda about, tensors: tensors["model.head.level"].fill_(float("inf")),
    ],
)
def test_a_file_that_does_not_fit_itself_is_refused(saved, cnn, change):
    changed(saved, change)
    with pytest.raises(InctrlError, match="damaged|unknown|was trained on"):
        AnomalyDetector.load(saved, backbone=cnn)


def test_other_files_are_no_detectors(tmp_path, cnn):
    Image.fromarray(surface(0)).save(tmp_path / "a.png")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    for name, message in (
        ("a.png", "damaged or no detector"),
        ("b.safetensors", "no fitted detector"),
        ("none.inctrl", "not there: inctrl-lite fit writes one"),
        (".", "is a folder, not a detector file"),
    ):
        with pytest.raises(InctrlError, match=message):
            AnomalyDetector.load(tmp_path / name, backbone=cnn)
