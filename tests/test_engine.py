"""ONNX Runtime gives the features and scores of PyTorch."""

import numpy as np
import pytest
import torch
from conftest import small_cnn

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError, engine
from inctrl_lite.engine import OnnxBackbone, with_engine


def surface(seed: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


@pytest.fixture
def detector():
    torch.manual_seed(0)
    backbone = small_cnn()
    model = InCTRL(backbone.embed_dim, backbone.num_patches, "prior", stage_widths=backbone.stage_widths)
    return AnomalyDetector(model, backbone, "cpu")


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_scores_are_those_of_torch_and_the_graph_is_kept(detector, tmp_path, monkeypatch):
    for name in engine.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'inctrl-lite[export]'")
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path))
    detector.fit([surface(i) for i in range(3)], "plate")
    fast = with_engine(detector, "onnx")
    assert isinstance(fast.backbone, OnnxBackbone) and not isinstance(detector.backbone, OnnxBackbone)
    assert fast.backbone.weights_digest == detector.backbone.weights_digest
    queries = [surface(10 + i) for i in range(5)]
    one, other = detector.predict(queries), fast.predict(queries, batch_size=2)
    np.testing.assert_allclose(other.scores, one.scores, atol=1e-4)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(b.patch_map, a.patch_map, atol=1e-4)
    assert len(list((tmp_path / "onnx").glob("*-64x64.onnx"))) == 1
    monkeypatch.setattr(engine, "_graph", None)  # the next one reads the file
    np.testing.assert_array_equal(with_engine(detector, "onnx").predict(queries[0]).scores, other.scores[:1])


def test_other_engines_and_missing_packages_are_named(detector, monkeypatch):
    assert with_engine(detector, "torch") is detector
    with pytest.raises(InctrlError, match="engine 'tensorrt': choose one of torch, onnx"):
        with_engine(detector, "tensorrt")
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(InctrlError, match=r"needs onnx, onnxscript, onnxruntime: pip install"):
        with_engine(detector, "onnx")
