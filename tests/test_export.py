"""Detectors as ONNX files: what they answer is what the detector answers."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from inctrl_lite import AnomalyDetector, InctrlError
from inctrl_lite.backbones import load_backbone
from inctrl_lite.cli import app
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.data.images import load_image
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.export import KEY, export_encoder, export_onnx, region_box
from inctrl_lite.view import View

BOOK = Path(__file__).parents[1] / "book"

ort = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'inctrl-lite[export]'")
pytest.importorskip("onnx", reason="needs onnx: pip install 'inctrl-lite[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'inctrl-lite[export]'")


@pytest.fixture(scope="module")
def badge():
    return load_photographs("auxiliary", normal=4, anomalous=2, only=("badge",))[0]


@pytest.fixture(scope="module")
def detector(badge):
    detector = AnomalyDetector.from_pretrained("photo", device="cpu")
    return detector.fit([item.image for item in draw_support(badge, 3)], "badge")


def as_input(picture, preprocessor) -> np.ndarray:
    """What an exported file takes: the recipe of the page "Run it elsewhere"."""
    resized = load_image(picture).resize(preprocessor.size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(resized)


def run(path, image: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(path)
    return dict(
        zip([o.name for o in session.get_outputs()], session.run(None, {"image": image}), strict=True)
    )


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    return export_onnx(detector, tmp_path_factory.mktemp("exported") / "badge.onnx")


def test_an_exported_detector_agrees_with_the_detector(detector, badge, exported):
    verdicts = set()
    for item in badge.test:
        wanted = detector.predict(item.image)[0]
        found = run(exported, as_input(item.image, wanted.view.preprocessor))
        assert found["score"] == pytest.approx(wanted.score, abs=1e-4)
        np.testing.assert_allclose(found["map"], wanted.patch_map, atol=1e-4)
        assert bool(found["anomalous"]) is wanted.is_anomalous
        verdicts.add(wanted.is_anomalous)
    assert verdicts == {True, False}


def test_the_file_says_what_it_is(detector, exported):
    about = json.loads(ort.InferenceSession(exported).get_modelmeta().custom_metadata_map[KEY])
    fitted = detector.categories["badge"]
    assert about["category"] == "badge" and about["threshold"] == fitted.threshold
    assert about["normal_scores"] == list(fitted.normal_scores)
    assert about["preprocessor"]["size"] == [224, 224] and about["region"] is None


def test_words_are_exported_too_and_one_normal_image_gives_no_verdict(badge, tmp_path):
    tiny = AnomalyDetector.from_pretrained("tiny", device="cpu")
    tiny.fit(badge.train[0].image, "badge")
    path = export_onnx(tiny, tmp_path / "tiny.onnx")
    picture = load_image(next(item.image for item in badge.test if item.label))
    preprocessor = tiny.backbone.preprocessor
    (rows, columns), (top, left) = preprocessor.place(picture.size)
    part = picture.resize((columns, rows), Image.Resampling.BICUBIC)
    part = part.crop((left, top, left + preprocessor.size[1], top + preprocessor.size[0]))
    wanted, found = tiny.predict(picture)[0], run(path, np.asarray(part))
    assert list(found) == ["score", "map"]
    assert found["score"] == pytest.approx(wanted.score, abs=1e-4)
    np.testing.assert_allclose(found["map"], wanted.patch_map, atol=1e-4)


def test_a_box_is_written_down(detector, badge):
    width, height = badge.train[0].image.shape[1::-1]
    view = View.of(detector.backbone.preprocessor, (width, height), region=(0, 0, width // 2, height))
    assert region_box(view) == [0, 0, width // 2 / width, 1]
    assert region_box(detector.categories["badge"].view) is None


def test_what_cannot_be_exported_is_said(detector, badge, tmp_path):
    pictures = [load_image(item.image) for item in draw_support(badge, 2)]
    mask = np.ones(pictures[0].size[::-1], bool)
    mask[0, 0] = False
    detector.fit(pictures, "tiles", tiles=min(pictures[0].size) // 2)
    detector.fit(pictures, "round", region=mask)
    try:
        for name, message in (("tiles", "without tiles"), ("round", "no rectangle"), ("other", "Fitted")):
            with pytest.raises(InctrlError, match=message):
                export_onnx(detector, tmp_path / "no.onnx", name)
        with pytest.raises(InctrlError, match="say which category"):
            export_onnx(detector, tmp_path / "no.onnx")
        with pytest.raises(InctrlError, match="choose one of float32, float16, int8"):
            export_encoder(detector.backbone, tmp_path / "no.onnx", "int4")
    finally:
        for name in ("tiles", "round"):
            del detector.categories[name]
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(("weights", "size", "error"), [("float16", 2.1, 0.01), ("int8", 1.2, 0.2)])
def test_a_smaller_encoder_gives_the_backbones_features(badge, tmp_path, weights, size, error):
    backbone = load_backbone("photo")
    path = export_encoder(backbone, tmp_path / "encoder.onnx", weights)
    numbers = sum(tensor.numel() for tensor in backbone.visual.parameters())
    assert path.stat().st_size < size * numbers  # bytes
    picture = load_image(badge.test[0].image)
    with torch.no_grad():
        wanted = backbone.encode_images(backbone.preprocessor(picture)[None])
    found = run(path, as_input(picture, backbone.preprocessor))
    for i, stage in enumerate(wanted.stages):
        scale = stage.tokens.norm(dim=-1).mean()
        assert (torch.from_numpy(found[f"stage_{i}"]) - stage.tokens[0]).norm(dim=-1).max() < error * scale
    embedding = torch.from_numpy(found["global_embedding"])
    assert torch.cosine_similarity(embedding, wanted.global_embedding[0], dim=0) > 1 - error


def test_a_missing_package_is_named(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["inctrl_lite.export"], "find_spec", lambda name: None)
    with pytest.raises(InctrlError, match="needs onnx and onnxscript: pip install onnx onnxscript"):
        export_onnx(detector, tmp_path / "badge.onnx")


@pytest.mark.skipif(not BOOK.exists(), reason="needs the repository's book/ folder")
def test_the_command_line_writes_the_file_and_the_page_of_the_book_runs_it(
    detector, badge, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    detector.save("bottle.inctrl")
    result = CliRunner().invoke(app, ["export", "--detector", "bottle.inctrl", "--out", "bottle.onnx"])
    assert result.exit_code == 0 and result.output == "ONNX file: bottle.onnx\n"
    assert CliRunner().invoke(app, ["export", "--detector", "bottle.inctrl"]).exit_code == 2
    picture = load_image(badge.test[-1].image).resize((300, 200))
    picture.save("new.png")
    page = (BOOK / "deploy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(compile(code, "deploy.md", "exec"), {})
    wanted = detector.predict("new.png")[0]
    word = "different" if wanted.is_anomalous else "normal"
    assert capsys.readouterr().out == f"{wanted.score:.3f} (threshold {wanted.threshold:.3f}): {word}\n"
