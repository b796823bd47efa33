"""K = 0: no normal image is known, and the score is the prior alone."""

import json

import numpy as np
import pytest
import torch
from conftest import small_cnn
from PIL import Image
from typer.testing import CliRunner

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.cli import app
from inctrl_lite.encoder import Encoder
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score
from inctrl_lite.scoring import score_folder


def pictures(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "new"
    place.mkdir()
    for i, picture in enumerate(pictures(3)):
        Image.fromarray(picture).save(place / f"{i}.png")
    return place


@pytest.fixture
def photo_like():
    torch.manual_seed(0)
    backbone = small_cnn()
    model = InCTRL(backbone.embed_dim, backbone.num_patches, "prior", stage_widths=backbone.stage_widths)
    model.head.direction.normal_()
    return AnomalyDetector(model, backbone, "cpu")


@pytest.mark.parametrize("head", ["paper", "lite", "v2"])
def test_a_clip_answers_with_its_text_score(small_backbone, head):
    torch.manual_seed(0)
    sizes = small_backbone.embed_dim, small_backbone.num_patches
    model = InCTRL(*sizes, head, stage_widths=small_backbone.stage_widths).eval()
    detector = AnomalyDetector(model, small_backbone, "cpu").fit_without_normals("nut")
    found = detector.predict(pictures(3))
    encoder = Encoder(small_backbone)
    features = encoder.encode(encoder.prepare([Image.fromarray(p) for p in pictures(3)]))
    cosines = text_cosines(features.global_embedding, text_prototypes(small_backbone, "nut"))
    scale = 10.0 if head == "lite" else 100.0
    assert found.scores.tolist() == pytest.approx(text_score(cosines, scale).tolist(), abs=1e-5)
    assert all(prediction.is_anomalous is None for prediction in found)
    assert (np.stack([p.patch_map for p in found]).max() > 0) == (head == "v2")  # its semantic maps


def test_the_prior_answers_alone(photo_like):
    photo_like.fit_without_normals("plate")
    found = photo_like.predict(pictures(3))
    encoder = Encoder(photo_like.backbone)
    features = encoder.encode(encoder.prepare([Image.fromarray(p) for p in pictures(3)]))
    prior = photo_like.model.head.prior_map(features.stages, features.map_grid)
    assert found.scores.tolist() == pytest.approx(prior.mean(-1).sigmoid().tolist(), abs=1e-6)
    maps = torch.tensor(np.stack([p.patch_map.ravel() for p in found]))
    torch.testing.assert_close(maps, prior.sigmoid())
    threshold = photo_like.calibrate(pictures(3), [0, 1, 1])
    assert photo_like.predict(pictures(1))[0].is_anomalous == (found.scores[0] > threshold)


def test_a_head_without_a_prior_and_files_say_so(photo_like, small_backbone, tmp_path):
    with pytest.raises(InctrlError, match="fit one or more"):
        photo_like.fit_without_normals("plate").save(tmp_path / "plate.inctrl")
    assert not list(tmp_path.iterdir())
    sizes = photo_like.backbone.embed_dim, photo_like.backbone.num_patches
    widths = photo_like.backbone.stage_widths
    plain = InCTRL(*sizes, "prior", terms=("patch", "whole"), stage_widths=widths)
    with pytest.raises(InctrlError, match="give one or more"):
        AnomalyDetector(plain, photo_like.backbone, "cpu").fit_without_normals()
    terms = ("image", "patch")
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, terms=terms)
    with pytest.raises(InctrlError, match="give one or more"):
        AnomalyDetector(model, small_backbone, "cpu").fit_without_normals()
    with pytest.raises(InctrlError, match="no normal images"):  # an empty list is a mistake, not K = 0
        photo_like.fit([])


def test_a_folder_is_scored_without_normal_images(photo_like, folder, tmp_path):
    result = score_folder(None, folder, tmp_path / "out", shots=0, model=photo_like)
    assert "without normal images: the score is the model's prior alone" in result.summary()
    assert result.normals == [] and result.settings["shots"] == 0 and result.settings["threshold"] is None
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "prior alone" in report and "unlike every normal image" not in report
    with pytest.raises(InctrlError, match="0 shots, and no region"):
        score_folder(None, folder, tmp_path / "other", shots=4, model=photo_like)


def test_the_command_takes_zero_shots(folder, tmp_path):
    run = CliRunner().invoke(
        app,
        ["score", "--queries", str(folder), "-k", "0", "--out", str(tmp_path / "out"), "--json", "--quiet"],
    )
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["settings"]["shots"] == 0 and len(found["scores"]) == 3
    both = ["score", "--queries", str(folder), "--normals", str(folder), "-k", "0"]
    for wrong in (both, ["score", "--queries", str(folder)]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
