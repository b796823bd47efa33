"""The nbgrader course: sound cells, answers between marks, and what nbgrader itself makes of it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from inctrl_lite.checks import CheckFailed, exercises
from inctrl_lite.errors import InctrlError
from inctrl_lite.grading import BEGIN, END, nbgrader_course

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
pytestmark = pytest.mark.skipif(not NOTEBOOKS.exists(), reason="needs the repository's notebooks/ folder")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    out = tmp_path_factory.mktemp("course")
    nbgrader_course(NOTEBOOKS, out)
    return out


def parts(path: Path) -> dict[str, list[str]]:
    """Sources of answer cells and of graded cells."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    found: dict[str, list[str]] = {"solution": [], "grade": []}
    for cell in notebook.cells:
        about = cell.metadata.get("nbgrader", {})
        for kind in found:
            if about.get(kind):
                found[kind].append(cell.source)
    return found


@pytest.mark.parametrize("lesson", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_every_exercise_is_an_answer_and_a_graded_cell(course, lesson):
    path = course / "source" / lesson / f"{lesson}.ipynb"
    found = parts(path)
    stubs = json.dumps(json.loads((NOTEBOOKS / f"{lesson}.ipynb").read_text(encoding="utf-8")))
    assert len(found["grade"]) == len(found["solution"]) == stubs.count("## Exercise")
    text = path.read_text(encoding="utf-8")
    assert "raise NotImplementedError" not in text  # nbgrader puts it in
    for answer, graded in zip(found["solution"], found["grade"], strict=True):
        assert answer.count(BEGIN) == answer.count(END) >= 1
        namespace: dict = {}
        exec("from __future__ import annotations\n" + answer, vars(_module()) | namespace, namespace)
        (name,) = [n for n in namespace if n in exercises()]
        assert graded == f"checks.check_{name}.grade({name})"


def _module():
    """What answers may use."""
    import numpy as np
    import pandas as pd
    import torch
    from torch import nn
    from torch.nn import functional as F

    module = type(sys)("lesson")
    vars(module).update(np=np, torch=torch, F=F, nn=nn, pd=pd)
    return module


def test_grading_is_strict(capsys):
    exercise = exercises()["dice_loss"]
    exercise.grade(exercise.solution)
    with pytest.raises(CheckFailed, match="not attempted"):
        exercise.grade(lambda maps, masks: (_ for _ in ()).throw(NotImplementedError))
    with pytest.raises(CheckFailed, match="1 minus"):
        exercise.grade(lambda maps, masks: 1 - exercise.solution(maps, masks))


def test_a_course_that_is_there_is_not_overwritten(course):
    before = (course / "nbgrader_config.py").read_text(encoding="utf-8")
    (course / "nbgrader_config.py").write_text(before + "# mine\n", encoding="utf-8")
    with pytest.raises(InctrlError, match="holds a course already"):
        nbgrader_course(NOTEBOOKS, course)
    assert (course / "nbgrader_config.py").read_text(encoding="utf-8").endswith("# mine\n")


def test_a_folder_without_notebooks_says_so(tmp_path):
    with pytest.raises(InctrlError, match="no notebooks"):
        nbgrader_course(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("nbgrader") is None, reason="nbgrader is not installed: an optional test")
def test_nbgrader_gives_a_solved_lesson_all_points_and_an_open_one_none(course):
    lesson = "13_from_where_to_what"

    def nbgrader(*words: str) -> None:
        command = [sys.executable, "-m", "nbgrader", *words]
        own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # it calls alembic
        run = subprocess.run(
            command, cwd=course, capture_output=True, text=True, timeout=900, env=os.environ | own
        )
        assert run.returncode == 0, run.stderr[-2000:]

    nbgrader("generate_assignment", lesson)
    released = course / "release" / lesson / f"{lesson}.ipynb"
    assert "BEGIN SOLUTION" not in released.read_text(encoding="utf-8")
    for student, source in (("open", released), ("solved", course / "source" / lesson / f"{lesson}.ipynb")):
        target = course / "submitted" / student / lesson / f"{lesson}.ipynb"
        target.parent.mkdir(parents=True)
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    nbgrader("autograde", lesson)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        scores = {s: book.find_submission(lesson, s) for s in ("open", "solved")}
        assert scores["solved"].score == scores["solved"].max_score > 0
        assert scores["open"].score == 0
