"""Numbers in texts are those of benchmarks/results/: generated, never typed."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="needs the repository's benchmarks/ folder")
sys.path.insert(0, str(ROOT / "benchmarks"))


def test_tables_of_texts_are_those_of_the_recorded_runs():
    import quality

    assert (RESULTS / "quality.md").read_text(encoding="utf-8") == quality.tables()
    for path, marks in quality.blocks().items():
        text = path.read_text(encoding="utf-8")
        assert quality.fill(text, marks) == text, f"{path.name}: run python benchmarks/quality.py --only"


@pytest.mark.parametrize("page", ["README.md", "book/faq.md", "book/landing.md", "book/differences.md"])
def test_no_auroc_is_typed_outside_the_generated_blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", text, flags=re.S)
    assert not re.findall(r"(?<![\w.])0\.[4-9]\d\d?(?!\d)", text)
