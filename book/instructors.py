"""Notes for teachers, made of the lessons and their checks: times, a plan for the board, misconceptions."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRAME = ("Predict first", "Common mistakes", "Back to your guesses", "Recap", "Check yourself", "Exercise")
TASK = r"^## Exercise ([\w.]+): (.+)\n\n\*\*Difficulty\*\* (●+○*) · \*\*(.+?)\*\*"
LEAD = """# Instructor notes

For each lesson: its times, a plan for the board, and misconceptions. These are the mistakes that the checks
of the exercises recognise, in the words in which a student reads them. This page is made of the lessons
themselves, so it is never older than they are. The times are estimates by the authors. How long your students
take, [we would like to know](contributing.md).

Discuss "Predict first" before anybody runs a cell, by show of hands, and come back to it at the end. The
answers are in the section "Back to your guesses" of each lesson.
"""


def notes_page(notebooks: Path) -> str:
    """The page, as Markdown."""
    from inctrl_lite.checks import exercises

    known, parts = exercises(), [LEAD]
    for path in sorted(notebooks.glob("*.ipynb"), key=_order):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        title = text[0].splitlines()[0].removeprefix("# ")
        (needs,) = re.findall(r"\*\*Time and needs:\*\* (.+)", text[0])
        parts.append(f"## {title}\n\n[Open the lesson](notebooks/{path.name}). {sentence(plain(needs))}")
        sections = re.findall(r"^## (.+)$", "\n".join(text), flags=re.M)
        plan = [section for section in sections if not section.startswith(FRAME)]
        parts.append("**Plan for the board**\n\n" + "\n".join(f"1. {section}" for section in plan))
        tasks = re.findall(TASK, "\n".join(text), re.M)
        names = [name for name in re.findall(r"checks\.check_(\w+)\(", code) if name in known]
        for (number, what, dots, time), name in zip(tasks, dict.fromkeys(names), strict=True):
            hints = [f"- {escaped(hint)}" for hint in known[name].mistakes]
            head = f"<details><summary>Exercise {number}, {what} ({dots}, {time})</summary>"
            parts.append("\n\n".join([head, "\n".join(hints), "</details>"]))
    return "\n\n".join(parts) + "\n"


def _order(path: Path) -> tuple[int, str]:
    """The on-ramp first, appendices last."""
    return ("P0".find(path.stem[:1]) != 0) + path.stem.startswith("A"), path.stem


def plain(text: str) -> str:
    """Text without its links, which lead from the lesson's own folder."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def escaped(text: str) -> str:
    """A hint as Markdown: outside of `code`, a sign must not be read as Markdown or as a formula."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_<>\[\]$|])", r"\\\1", part) for part in parts
    )
