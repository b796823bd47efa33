"""Self-check questions at the end of each lesson: `quiz.show("05")`.

The questions are data, `quizzes/05.toml`. They are shown as plain HTML without any script: an option is a
<details> element, and opening it says whether it is right, and why. So a quiz works in JupyterLab, in
Notebook 7 and on the course's site, by mouse and by keyboard, without a kernel and without a network.
"""

from __future__ import annotations

import re
import textwrap
import tomllib
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from inctrl_lite.errors import InctrlError

_VERDICTS = {True: "Right.", False: "Not quite."}
_CODE_OR_FORMULA = re.compile(r"(`[^`]+`|\$[^$]+\$)")

# Borders and marks take the colour of the text around them, so they can be read in every theme.
_STYLE = """<style>
.inctrl-quiz { max-width: 46rem; line-height: 1.5 }
.inctrl-quiz > ol { margin: 0; padding-left: 1.6rem }
.inctrl-quiz > ol > li { margin: 0 0 1.4rem }
.inctrl-quiz p { margin: 0 0 .5rem }
.inctrl-quiz details { margin: .35rem 0; border: 1px solid; border-radius: 4px !important; background: none }
.inctrl-quiz summary { padding: .4rem .7rem; cursor: pointer; overflow-wrap: anywhere }
.inctrl-quiz summary:focus-visible { outline: 3px solid; outline-offset: -3px }
.inctrl-quiz details > div { margin: 0 .7rem .6rem; padding-left: .7rem; border-left: 3px solid }
.inctrl-quiz code { background: none; color: inherit; border: 0; padding: 0; overflow-wrap: anywhere }
</style>"""


@dataclass(frozen=True)
class Option:
    """One possible answer.

    Attributes:
        text: the answer.
        right: whether it is the right one.
        why: the reason why it is right or wrong.
    """

    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    """A question with three or four options, of which one is right.

    Attributes:
        text: the question.
        options: its options, in the order in which they are shown.
    """

    text: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Quiz:
    """The questions of a lesson, which show themselves at the end of a notebook's cell.

    In all texts, `code` stands between backticks and a formula between dollar signs.

    Attributes:
        lesson: the lesson's number, as in the name of its notebook.
        questions: three to five questions.
    """

    lesson: str
    questions: tuple[Question, ...]

    def _repr_html_(self) -> str:
        questions = "\n".join(f"<li>{_question(question)}</li>" for question in self.questions)
        return f'{_STYLE}\n<div class="inctrl-quiz">\n<ol>\n{questions}\n</ol>\n</div>'

    def __repr__(self) -> str:
        asked, answers = [], []
        for number, question in enumerate(self.questions, start=1):
            asked.append(_wrapped(f"{number}. {question.text}"))
            for letter, option in zip("abcd", question.options, strict=False):
                asked.append(_wrapped(f"   {letter}) {option.text}"))
                answers.append(_wrapped(f"{number}{letter}: {_VERDICTS[option.right]} {option.why}"))
        return "\n".join([*asked, "", "Answers", *answers])


def lessons() -> list[str]:
    """The numbers of the lessons that have a quiz, in sorted order: "00", "01", ..., "A2"."""
    found = (file.name for file in files(__package__).joinpath("quizzes").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def show(lesson: str) -> Quiz:
    """The quiz of a lesson; at the end of a notebook's cell it shows itself.

    Args:
        lesson: the lesson's number, as in the name of its notebook: "05", "08b", "A1".

    Raises:
        InctrlError: there is no quiz for this lesson.
    """
    if lesson not in lessons():
        raise InctrlError(f"no quiz for lesson {lesson!r}: there are {', '.join(lessons())}")
    text = files(__package__).joinpath("quizzes", f"{lesson}.toml").read_text(encoding="utf-8")
    return Quiz(lesson, tuple(_read(question) for question in tomllib.loads(text)["question"]))


def _read(question: dict) -> Question:
    return Question(question["text"], tuple(Option(**option) for option in question["option"]))


def _question(question: Question) -> str:
    options = "\n".join(
        f"<details><summary>{_html(option.text)}</summary>"
        f"<div><strong>{_VERDICTS[option.right]}</strong> {_html(option.why)}</div></details>"
        for option in question.options
    )
    return f"<p>{_html(question.text)}</p>\n{options}"


def _html(text: str) -> str:
    """Code in <code>, formulas in the delimiters that MathJax knows everywhere, all else escaped."""
    return "".join(map(_piece, _CODE_OR_FORMULA.split(text)))


def _piece(text: str) -> str:
    """One piece of a text: `code`, $formula$, or words."""
    inside = escape(text[1:-1], quote=False)
    if text.startswith("`"):
        return f"<code>{inside}</code>"
    if text.startswith("$"):
        return rf'<span class="math">\({inside}\)</span>'
    return escape(text, quote=False)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="      ")
