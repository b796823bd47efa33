"""Equal to the public code, term by term, where its outputs are at hand."""

import sys
from pathlib import Path

import numpy as np
import pytest

from inctrl_lite import residual

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden" / "inctrl_seed101.npz"
pytestmark = pytest.mark.skipif(
    not GOLDEN.exists(), reason="the public code's outputs (../shared/golden) are not here"
)
sys.path.insert(0, str(ROOT / "benchmarks"))


@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_every_array_is_matched(precision):
    from parity import compare

    with np.load(GOLDEN) as golden:
        checks = list(compare(golden, precision))
    assert len(checks) > 100
    assert [check for check in checks if not check.passed] == []


def failing_terms() -> set[str]:
    from parity import compare

    with np.load(GOLDEN) as golden:
        return {check.name for check in compare(golden, "f32") if not check.passed}


def test_other_blocks_are_noticed(monkeypatch):
    import parity

    monkeypatch.setattr(parity, "OUT_LAYERS", (6, 8, 10))
    assert "f32/eval_K4/patch_map" in failing_terms()


def test_a_missing_half_is_noticed(monkeypatch):
    import inctrl_lite.evidence as evidence

    doubled = lambda *arguments: 2 * residual.stage_residual_maps(*arguments)  # noqa: E731
    monkeypatch.setattr(evidence, "stage_residual_maps", doubled)
    failed = failing_terms()
    assert "f32/eval_K1/patch_map" in failed and "f32/trainF/loss" in failed
    assert "f32/eval_K1/text_score" not in failed
