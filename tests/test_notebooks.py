"""The notebooks' form. That they run is tested by `pytest --nbmake notebooks/`."""

import inspect
import json
import re
import statistics
import textwrap
from pathlib import Path

import pytest

from inctrl_lite.checks import exercises

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not PATHS, reason="needs the repository's notebooks/ folder")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8")) | {"name": request.param.stem}


def sources(notebook: dict, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_committed_without_outputs(notebook):
    assert "widgets" not in notebook["metadata"]
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))


def test_lesson_has_its_parts(notebook):
    text = "\n".join(sources(notebook, "markdown"))
    for part in ("**After this notebook you can**", "**Time and needs:**", "## Predict first"):
        assert part in text, part
    for part in ("## Common mistakes", "## Recap", "**Next:**"):
        assert part in text, part
    number = notebook["name"].split("_")[0].removeprefix("0") or "0"  # 08b -> 8b, A1 -> A1
    assert sources(notebook, "markdown")[0].startswith(f"# {number}. ")


def test_goals_come_back_in_the_recap(notebook):
    def verbs(part: str) -> set[str]:
        return set(re.findall(r"^- \*\*(\w+)\*\*", part, flags=re.M))

    text = "\n".join(sources(notebook, "markdown"))
    goals = verbs(text.split("After this notebook you can")[1].split("**Time and needs:**")[0])
    assert 3 <= len(goals) <= 5
    assert verbs(text.split("## Recap")[1]) == goals


def test_cells_are_small(notebook):
    lines = [source.count("\n") + 1 for source in sources(notebook, "code")]
    assert 35 <= len(notebook["cells"]) - 2 <= 64  # without the two of the quiz
    assert statistics.median(lines) <= 8
    assert max(line for source in sources(notebook, "code") for line in map(len, source.split("\n"))) <= 100


def test_exercises_have_hints_checks_and_answer_keys(notebook):
    code, known = sources(notebook, "code"), exercises()
    stubs = [name for source in code for name in re.findall(
        r"^(?:def|class) (\w+)(?:(?!^\S).|\n)*?raise NotImplementedError", source, flags=re.M)]  # fmt: skip
    text = "\n".join(sources(notebook, "markdown"))
    assert len(stubs) >= 1
    assert text.count("## Exercise") == len(stubs)
    assert text.count("**Difficulty** ") == len(stubs) and text.count("<details>") >= len(stubs)
    for name in stubs:
        assert name in known and any(f"checks.check_{name}({name})" in source for source in code), name


def test_solutions_to_unfold_are_the_answer_keys(notebook):
    text, known = "\n".join(sources(notebook, "markdown")), exercises()
    for shown in re.findall(
        r"<summary>Solution</summary>\n\n```python\n(.+?)\n```\n</details>", text, flags=re.S
    ):
        key = known[re.search(r"(?:def|class) (\w+)", shown)[1]].solution
        assert shown == textwrap.dedent(inspect.getsource(key)).rstrip()


def test_a_widget_after_a_still(notebook):
    assert any("widgets." in source for source in sources(notebook, "code"))


def test_nothing_of_this_machine(notebook):
    text = json.dumps(notebook)
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", text)


def test_links_lead_somewhere(notebook):
    text = "\n".join(sources(notebook, "markdown"))
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (FOLDER / target).exists(), target


SITE = "https://inctrl-lite.github.io/inctrl_lite/"


def test_glossary_links_name_terms_that_exist(notebook):
    glossary = (FOLDER.parent / "book" / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^([^\s`:|#(].*)$", glossary.split("```{glossary}")[1].split("```")[0], flags=re.M)
    anchors = {re.sub(r"[^a-zA-Z0-9._]+", "-", term) for term in terms}
    text = "\n".join(sources(notebook, "markdown"))
    linked = re.findall(re.escape(SITE) + r"glossary\.html#term-([^)]+)\)", text)
    assert linked and set(linked) <= anchors
    assert len(linked) == len(set(linked))  # only the first use of a term is a link


def test_a_prompt_is_always_a_text_prompt(notebook):
    text = "\n".join(sources(notebook, "markdown"))
    assert not re.search(
        r"(?<!text )(?<!Text )\bprompts?\b", re.sub(r"\]\([^)]*\)|`[^`]*`", "", text), flags=re.I
    )


def test_reading_and_working_times_are_stated(notebook):
    text = sources(notebook, "markdown")[0]
    assert re.search(r"\*\*Time and needs:\*\* .*?(\d+) minutes, .*?exercises? about (\d+)", text)
