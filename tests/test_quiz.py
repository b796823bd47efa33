"""Self-check quizzes: what a question must have, how it is shown, and that each lesson shows its own."""

import ast
import json
import re
from pathlib import Path

import pytest

from inctrl_lite import quiz
from inctrl_lite.errors import InctrlError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
WITHOUT = {"P0"}  # begins with a self-test


def number(path: Path) -> str:
    return path.stem.split("_")[0]


@pytest.fixture(params=quiz.lessons())
def questions(request) -> tuple[quiz.Question, ...]:
    return quiz.show(request.param).questions


def test_three_to_five_questions_with_one_right_option_and_reasons(questions):
    assert 3 <= len(questions) <= 5
    for question in questions:
        assert question.text and 3 <= len(question.options) <= 4, question.text
        assert [option.right for option in question.options].count(True) == 1, question.text
        for option in question.options:
            assert type(option.right) is bool and option.text and len(option.why.split()) >= 5, option.text


def test_nothing_is_said_twice(questions):
    texts = [question.text for question in questions]
    texts += [option.why for question in questions for option in question.options]
    assert len(set(texts)) == len(texts)
    for question in questions:
        assert len({option.text for option in question.options}) == len(question.options), question.text


def right_is_longest(question: quiz.Question) -> bool:
    lengths = {
        option.right: len(option.text) for option in sorted(question.options, key=lambda o: len(o.text))
    }
    return lengths[True] > lengths[False]  # of the wrong ones, the longest


def test_the_form_does_not_give_the_answer_away(questions):
    """Neither the place nor the length of the right option."""
    places = [[option.right for option in question.options].index(True) for question in questions]
    assert len(set(places)) >= 2
    assert sum(map(right_is_longest, questions)) <= len(questions) / 2
    for question in questions:
        lengths = [len(option.text) for option in question.options]
        assert max(lengths) <= 2.5 * min(lengths) or max(lengths) <= 30, question.text


def test_texts_are_clean(questions):
    for question in questions:
        for text in (question.text, *(t for option in question.options for t in (option.text, option.why))):
            assert text == text.strip() and "  " not in text and "\n" not in text, text
            assert text.count("`") % 2 == 0 and text.count("$") % 2 == 0, text
            assert "*" not in text, text  # there is no emphasis
            assert not re.search(r"[\x00-\x1f]", text), text  # "\t" and "\b" of a formula in a basic string


def test_an_option_is_more_than_a_formula(questions):
    """A screen reader announces an option by its words; MathJax hides its glyphs from it."""
    for question in questions:
        for option in question.options:
            assert re.sub(r"\$[^$]+\$", "", option.text).strip(), option.text


def test_what_is_shown():
    """One <details> for each option; code and formulas survive, all else is escaped; no script."""
    option = quiz.Option("a < b & `x < y`", True, r"since $\frac{a}{b} < 1$ and <b>")
    html = quiz.Quiz("99", (quiz.Question("<script>?", (option,)),))._repr_html_()
    assert "<summary>a &lt; b &amp; <code>x &lt; y</code></summary>" in html
    assert (
        r'<strong>Right.</strong> since <span class="math">\(\frac{a}{b} &lt; 1\)</span> and &lt;b&gt;'
        in html
    )
    assert "<p>&lt;script&gt;?</p>" in html and "<script" not in html and html.count("<details>") == 1


def test_wrong_options_say_so():
    options = (quiz.Option("yes", True, "it is"), quiz.Option("no", False, "it is not"))
    shown = quiz.Quiz("99", (quiz.Question("Is it?", options),))
    assert "<summary>no</summary><div><strong>Not quite.</strong> it is not</div>" in shown._repr_html_()
    asked, answers = repr(shown).split("\nAnswers\n")
    assert asked == "1. Is it?\n   a) yes\n   b) no\n"
    assert answers == "1a: Right. it is\n1b: Not quite. it is not"


def test_an_unknown_lesson_is_named():
    with pytest.raises(InctrlError, match="no quiz for lesson '77': there are 00"):
        quiz.show("77")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=number)
def test_each_lesson_shows_its_quiz_before_its_recap(path):
    if number(path) in WITHOUT:
        pytest.skip("has a self-test of its own")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    shows = [i for i, s in enumerate(sources) if cells[i]["cell_type"] == "code" and "quiz.show(" in s]
    assert len(shows) == 1
    assert ast.unparse(ast.parse(sources[shows[0]]).body[-1]) == f"quiz.show('{number(path)}')"
    formulas = "$" in "".join(o.why + o.text for q in quiz.show(number(path)).questions for o in q.options)
    lesson = "".join(s for s, cell in zip(sources, cells, strict=True) if cell["cell_type"] == "markdown")
    assert not formulas or "$" in lesson  # the site loads MathJax only where a lesson has formulas
    assert "## Check yourself\n" in sources[shows[0] - 1]
    assert sources[shows[0] + 1].startswith("## Common mistakes\n")


@pytest.mark.skipif(not NOTEBOOKS, reason="needs the repository's notebooks/ folder")
def test_each_quiz_belongs_to_a_lesson():
    assert set(quiz.lessons()) == set(map(number, NOTEBOOKS)) - WITHOUT
