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


def test_the_faq_says_what_was_recorded():
    import false_alarms
    import tiles
    from quality import fill

    for path, marks in [*tiles.blocks().items(), *false_alarms.blocks().items()]:
        text = path.read_text(encoding="utf-8")
        assert fill(text, marks) == text, f"{path.name}: run the benchmark of {', '.join(marks)}"
        for mark in marks:
            assert f"<!-- end of {mark} -->" in text


def test_pages_of_the_studies_are_those_of_the_recorded_tables():
    import capstone
    import choose_map
    import image_prior
    import inctrl_v2
    import what_training_adds
    import why_training_falls
    import words_for_photo

    studies = (why_training_falls, what_training_adds, words_for_photo, image_prior, choose_map)
    studies += (inctrl_v2, capstone)
    for path, marks in (pair for study in studies for pair in study.blocks().items()):
        text = path.read_text(encoding="utf-8")
        assert why_training_falls.filled(path, marks) == text, f"{path.name}: run the study with --only"
        for mark in marks:
            assert f"<!-- {mark} -->" in text and f"<!-- end of {mark} -->" in text, f"{path.name}: {mark}"


PAGES = ["why_training_falls", "what_training_adds", "inctrl_v2", "capstone"]


@pytest.mark.parametrize(
    "page",
    ["README.md", "book/faq.md", "book/landing.md", "book/differences.md"]
    + [f"book/{name}.md" for name in PAGES],
)
def test_no_auroc_is_typed_outside_the_generated_blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", text, flags=re.S)
    assert not re.findall(r"(?<![\w.])0\.[4-9]\d\d?(?!\d)", text)
