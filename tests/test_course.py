"""What notebooks start with, and what teachers hand out."""

import ast
import builtins
import inspect
import json
import textwrap
import zipfile
from importlib.metadata import PackagePath, PathDistribution
from pathlib import Path

import pytest

from inctrl_lite import course
from inctrl_lite.checks import exercises
from inctrl_lite.errors import InctrlError

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
needs_notebooks = pytest.mark.skipif(
    not list(NOTEBOOKS.glob("*.ipynb")), reason="needs the repository's notebooks/ folder"
)


def write_notebook(folder: Path, *cells: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"cells": [{"cell_type": "code", "source": [c], "metadata": {}, "outputs": []} for c in cells]}
    path = folder / "00_one.ipynb"
    path.write_text(json.dumps(content))
    return path


def test_begin_says_what_it_runs_on(capsys, monkeypatch):
    monkeypatch.delenv(course.FULL, raising=False)
    lab = course.begin()
    assert not lab.full and lab.device.type == "cpu"
    assert "tiny backbone" in capsys.readouterr().out
    assert [c.name for c in lab.load("solar", train=1, normal=1, anomalous=1)] == ["solar cell"]
    assert lab.backbone is lab.backbone and lab.backbone.name == "tiny"


def test_full_mode_says_what_is_missing(monkeypatch, tmp_path):
    import torch

    for name in (course.DATA, course.MODEL):
        monkeypatch.delenv(name, raising=False)
    lab = course.Lab(True, torch.device("cpu"))
    with pytest.raises(InctrlError, match=f"uses 'elpv' for 'solar': set {course.DATA}"):
        lab.load("solar")
    with pytest.raises(InctrlError, match=f"set {course.MODEL}"):
        _ = lab.detector
    monkeypatch.setenv(course.DATA, str(tmp_path))
    with pytest.raises(InctrlError, match="elpv"):
        lab.load("solar")


@needs_notebooks
def test_students_get_every_notebook_with_open_exercises(tmp_path):
    packed = course.student_zip(NOTEBOOKS, tmp_path / "course.zip")
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        texts = [archive.read(name).decode() for name in names]
    assert len(names) == len(list(NOTEBOOKS.glob("*.ipynb")))
    assert all("raise NotImplementedError" in text for text in texts)
    assert packed.read_bytes() == course.student_zip(NOTEBOOKS, tmp_path / "again.zip").read_bytes()


@needs_notebooks
def test_solved_notebooks_have_no_stub_left(tmp_path):
    for path in course.solve(NOTEBOOKS, tmp_path / "solved"):
        text = path.read_text()
        assert "NotImplementedError" not in text
        cells = json.loads(text)["cells"]
        compile(
            "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"), path.name, "exec"
        )


def names(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Names that code reads, and names that it binds."""
    nodes = list(ast.walk(tree))
    found = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in found if isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    aliases = [one for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for one in node.names]
    bound |= {(one.asname or one.name).split(".")[0] for one in aliases}
    return {node.id for node in found if isinstance(node.ctx, ast.Load)}, bound


@needs_notebooks
@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_solved_notebook_has_every_name_that_its_answer_keys_use(path):
    """The key of lesson 08 once used a helper of its module, which no notebook has."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    known = exercises()
    bound = set(dir(builtins)).union(*(names(ast.parse(source))[1] for source in code))
    stubs = [name for source in code if course.UNANSWERED in source for name in names(ast.parse(source))[1]]
    for name in set(stubs) & set(known):
        key = textwrap.dedent(inspect.getsource(known[name].solution))
        reads, binds = names(ast.parse(key))
        assert reads <= bound | binds, name


def test_a_stub_is_replaced_and_its_neighbours_stay(tmp_path):
    source = (
        "x = 1\n\n\ndef cosine_megabytes(B, L, N, K):\n    '''?'''\n    raise NotImplementedError\n\n\ny = 2"
    )
    write_notebook(tmp_path / "in", source)
    solved = json.loads(course.solve(tmp_path / "in", tmp_path / "out")[0].read_text())
    text = "".join(solved["cells"][0]["source"])
    scope: dict = {}
    exec(text, scope)
    assert (scope["x"], scope["y"]) == (1, 2) and scope["cosine_megabytes"](1, 1, 1, 250_000) == 1.0


def test_what_cannot_be_solved_is_named(tmp_path):
    write_notebook(tmp_path / "in", "def unheard_of():\n    raise NotImplementedError")
    with pytest.raises(InctrlError, match="no answer key for 'unheard_of'"):
        course.solve(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InctrlError, match="no notebooks in"):
        course.student_zip(tmp_path, tmp_path / "x.zip")


@needs_notebooks
def test_get_copies_the_lessons_and_keeps_a_students_work(tmp_path):
    mine = tmp_path / "00_tour.ipynb"
    mine.write_text("my answers")
    written, kept = course.lay_out(tmp_path)
    assert kept == [mine] and mine.read_text() == "my answers"
    assert {path.name for path in (*written, mine)} == {path.name for path in NOTEBOOKS.glob("*.ipynb")}
    for path in written:
        assert path.read_bytes() == (NOTEBOOKS / path.name).read_bytes()
    assert course.lay_out(tmp_path)[0] == []


def test_an_installed_wheel_knows_where_its_lessons_are(tmp_path, monkeypatch):
    """Outside the repository they are found through the list of installed files."""
    write_notebook(tmp_path / "share" / "notebooks", "1 + 1").rename(
        tmp_path / "share/notebooks/00_tour.ipynb"
    )
    file = PackagePath("share/notebooks/00_tour.ipynb")
    file.dist = PathDistribution(tmp_path / "inctrl_lite-1.dist-info")
    monkeypatch.setattr(course, "__file__", str(tmp_path / "site" / "inctrl_lite" / "course.py"))
    monkeypatch.setattr(course, "files", lambda name: [PackagePath("inctrl_lite/course.py"), file])
    assert course.lessons() == tmp_path / "share" / "notebooks"
    monkeypatch.setattr(course, "files", lambda name: None)
    with pytest.raises(InctrlError, match="this installation has no lessons"):
        course.lessons()
