"""The lessons as an nbgrader course: `inctrl-lite course nbgrader`.

Each lesson becomes a source assignment. nbgrader makes the students' version of it (it takes out the answer
keys between its marks), collects what they hand in, and runs the graded cells. A graded cell calls the check
of the exercise, so that every right answer gets its points, and a wrong one the usual hint.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inctrl_lite.course import UNANSWERED, notebook_files
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_text

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
CONFIG = f"""c = get_config()
c.CourseDirectory.course_id = "inctrl_lite"
c.ExecutePreprocessor.timeout = 600
c.ClearSolutions.code_stub = {{"python": "{UNANSWERED}"}}
"""


def nbgrader_course(notebooks: str | Path, out: str | Path) -> list[Path]:
    """Write a folder that nbgrader takes as a course: `nbgrader_config.py` and `source/LESSON/LESSON.ipynb`.

    An exercise is worth as many points as it has dots of difficulty.

    Raises:
        InctrlError: no notebooks there, an exercise without an answer key (named), or a folder that holds a
            course already: what a teacher has changed in it is never overwritten.
    """
    if (Path(out) / "nbgrader_config.py").exists() or (Path(out) / "source").exists():
        raise InctrlError(f"{out} holds a course already, which is not overwritten: name a new folder")
    from inctrl_lite.checks import exercises

    known, written = exercises(), []
    for path in notebook_files(notebooks):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells: list[dict[str, Any]] = []
        points = 1
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and (found := re.search(r"\*\*Difficulty\*\* (●+)", source)):
                points = len(found[1])
            if cell["cell_type"] == "code" and UNANSWERED in source:
                cells += _graded(cell, source, known, points, path)
            else:
                cells.append(cell)
        notebook["cells"] = cells
        target = Path(out) / "source" / path.stem / path.name
        written.append(write_text(target, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"))
    write_text(Path(out) / "nbgrader_config.py", CONFIG)
    return written


def _graded(
    cell: Mapping[str, Any], source: str, known: Mapping[str, Any], points: int, path: Path
) -> Iterator[dict[str, Any]]:
    """An exercise as three cells: the answer, what is graded, and how the notebook goes on."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or UNANSWERED not in _text(node, lines):
            continue
        if node.name not in known:
            raise InctrlError(f"{path}: no answer key for {node.name!r}")
        key = textwrap.dedent(inspect.getsource(known[node.name].solution)).rstrip().splitlines()
        (whole,) = ast.parse("\n".join(key)).body
        keys = {one.name: one for one in ast.walk(whole) if isinstance(one, ast.FunctionDef)}
        stubs = [one for one in ast.walk(node) if isinstance(one, ast.FunctionDef)]
        for stub in sorted(stubs, key=lambda one: -one.lineno):  # of a class: its methods, the last one first
            if UNANSWERED in _text(stub, lines):
                lines[stub.lineno - 1 : stub.end_lineno] = _marked(keys[stub.name], key, stub, lines)
    calls = [line for line in lines if re.match(r"\w+ = checks\.check_\w+\(", line)]
    answer = "\n".join(line for line in lines if line not in calls).rstrip()
    number = cell["id"]
    yield _cell(cell, answer, f"{number}-answer", f"answer-{number}", solution=True)
    tests = "\n".join(re.sub(r"^\w+ = (checks\.check_\w+)\(", r"\1.grade(", call) for call in calls)
    yield _cell(cell, tests, f"{number}-grade", f"grade-{number}", grade=True, points=points)
    yield dict(cell) | {"source": "\n".join(calls).splitlines(keepends=True)}


def _text(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _marked(function: ast.FunctionDef, key: list[str], stub: ast.FunctionDef, lines: list[str]) -> list[str]:
    """A function of the answer key: the stub's own first lines, then the key's body between marks."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    inside = key[body[0].lineno - 1 : function.end_lineno]
    same = [a.arg for a in function.args.args] == [a.arg for a in stub.args.args]
    # the key's own head where it names its arguments differently
    head = lines[stub.lineno - 1 : stub.body[-1].lineno - 1]
    if not same:
        head = key[function.lineno - 1 : body[0].lineno - 1]
    indent = " " * body[0].col_offset
    return [*head, indent + BEGIN, *inside, indent + END]


def _cell(
    cell: Mapping[str, Any],
    source: str,
    identity: str,
    grade_id: str,
    *,
    grade: bool = False,
    solution: bool = False,
    points: int | None = None,
) -> dict[str, Any]:
    about: dict[str, Any] = {"schema_version": 3, "grade_id": grade_id, "cell_type": "code", "task": False}
    about |= {"grade": grade, "solution": solution, "locked": not solution}
    about |= {} if points is None else {"points": points}
    return {
        "cell_type": "code",
        "id": identity,
        "metadata": {"nbgrader": about},
        "execution_count": None,
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
