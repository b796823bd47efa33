"""Lecture slides: what a slide shows, and pages that load nothing from other hosts."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest

from inctrl_lite import slides
from inctrl_lite.errors import InctrlError
from inctrl_lite.slides import arranged, course_slides, first_sentences, slides_of

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "id": "a", "metadata": {}, "source": text}


def code(text: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "id": "b", "metadata": {}, "source": text, "outputs": list(outputs)}


def placed(*cells: dict) -> list[tuple[str, str]]:
    return [(c["metadata"]["slideshow"]["slide_type"], c["source"]) for c in arranged(cells)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("One. Two.", "One."),
        ("**One.** Two.", "**One.**"),
        ("It is 0.5 of x. $y$ follows.", "It is 0.5 of x."),
        ("Why? Because.", "Why?"),
        ("No stop here", "No stop here"),
        ("- a. B.\n- c", "- a. B.\n- c"),
        ("1. a. B.", "1. a. B."),
        ("$$\nx. Y\n$$", "$$\nx. Y\n$$"),
        ("```python\na = 1\n\nb = 2. C\n```", "```python\na = 1\n\nb = 2. C\n```"),
        ("| a | b |\n|---|---|\n| x. Y | z |", "| a | b |\n|---|---|\n| x. Y | z |"),
        ("*A caption. Whole.*", "*A caption. Whole.*"),
        ("## Head. Line", "## Head. Line"),
    ],
)
def test_first_sentences(text, shown):
    assert first_sentences(text) == shown


def test_headings_start_slides_and_paragraphs_are_in_the_notes():
    cells = placed(markdown("# T\n\nA. B.\n\n## S\n\nC. D.\n\n- one"), markdown("### U\n\nE. F."), code("x"))
    assert cells == [
        ("slide", "# T\n\nA. B.\n\n"),  # nothing else to see
        ("slide", "## S\n\nC.\n\n- one"),
        ("notes", "## S\n\nC. D.\n\n- one"),
        ("subslide", "### U\n\nE."),
        ("notes", "### U\n\nE. F."),
        ("-", "x"),
    ]


def test_code_stays_with_its_heading_and_further_code_has_a_slide_of_its_own():
    cells = placed(markdown("## S\n\nA."), code("x"), markdown("Then."), code("y"))
    assert [place for place, _ in cells] == ["slide", "-", "-", "subslide"]


def test_tasks_are_whole_without_hints():
    task = (
        "## Exercise 4.1: all\n\nDo it. Then more.\n\n<details><summary>Hint</summary>\n\n## code\n</details>"
    )
    assert placed(markdown(task)) == [("slide", "## Exercise 4.1: all\n\nDo it. Then more.\n\n")]


def test_an_open_exercise_shows_no_output_and_explorers_are_left_out():
    said = {"output_type": "stream", "name": "stdout", "text": "not attempted"}
    kept = list(
        arranged(
            [code("raise NotImplementedError", said), code("widgets.explorer(f)"), code("show(1)", said)]
        )
    )
    assert [(c["source"], len(c["outputs"])) for c in kept] == [
        ("raise NotImplementedError", 0),
        ("show(1)", 1),
    ]


@pytest.mark.skipif(not NOTEBOOKS.exists(), reason="needs the repository's notebooks/ folder")
def test_every_lesson_has_slides_in_which_nothing_but_the_rules_leaves_out_text():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        shown = list(arranged(cells))
        assert len({cell["id"] for cell in shown}) == len(shown), path
        text = "".join(c["source"] for c in shown)
        for cell in cells:
            whole = re.sub(r"(?s)<details>.*?</details>", "", cell.source)
            if cell.cell_type == "markdown":
                for line in filter(None, whole.splitlines()):
                    assert line in text, (path, line)


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder with one small lesson."""
    nb = nbformat.v4.new_notebook()
    nb.cells = [
        nbformat.v4.new_markdown_cell("# 1. Small\n\nA formula $x^2$. More."),
        nbformat.v4.new_code_cell("print(6 * 7)"),
    ]
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(nb, folder / "01_small.ipynb")
    return folder


def test_a_page_holds_results_and_loads_only_files_beside_it(small):
    page = slides_of(small / "01_small.ipynb")
    assert "42" in page and 'class="notes"' in page and "<title>01_small slides</title>" in page
    loaded = re.findall(r'(?:<script[^>]*\bsrc|<link[^>]*\bhref)="([^"]+)"', page)
    assert loaded and all(one.startswith("assets/") for one in loaded)
    assert "unpkg" not in page and "cdnjs" not in page


def test_a_lesson_that_fails_is_named_and_nothing_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "fetch_assets", lambda folder: None)
    nb = nbformat.read(small / "01_small.ipynb", as_version=4)
    nb.cells[1].source = "1 / 0"
    nbformat.write(nb, small / "01_small.ipynb")
    with pytest.raises(InctrlError, match="01_small.ipynb does not run: ZeroDivisionError"):
        list(course_slides(small, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.html"))


def test_unknown_lessons_and_pages_that_are_there_are_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "fetch_assets", lambda folder: None)
    with pytest.raises(InctrlError, match="no lesson '07': choose from 01"):
        list(course_slides(small, tmp_path, ["7"]))
    (tmp_path / "01_small.html").write_text("mine")
    with pytest.raises(InctrlError, match="is there and is not overwritten"):
        list(course_slides(small, tmp_path))
    assert (tmp_path / "01_small.html").read_text() == "mine"
    with pytest.raises(InctrlError, match="cannot write"):
        list(course_slides(small, tmp_path / "01_small.html", ["1"]))


def test_without_npm_the_message_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InctrlError, match="install Node.js"):
        list(course_slides(small, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.html"))
