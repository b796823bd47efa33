"""What the site's own pages name exists: tests, files, commands and their options."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "book").glob("*.md"))
SOURCE = "https://github.com/inctrl-lite/inctrl_lite/blob/main/"
MADE_BY_READERS = {"scores.csv", "scores.json", "report.html", "manifest.csv"}
pytestmark = pytest.mark.skipif(not PAGES, reason="needs the repository's book/ folder")


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request) -> str:
    return request.param.read_text(encoding="utf-8")


def test_linked_sources_and_tests_exist(page):
    for file, title in re.findall(re.escape(SOURCE) + r'([^\s)]+)(?: "([^"]+)")?', page):
        assert (ROOT / file).is_file(), file
        assert not title or f"def {title}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}: {title}"


def test_named_files_exist(page):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = {str(part) for file in tracked.stdout.split() for part in (Path(file), *Path(file).parents)}
    for name in re.findall(r"`((?:[\w.]+/)*\w+\.(?:py|md|json|csv|bib|toml))`", page):
        if names and name not in MADE_BY_READERS:
            assert any(known == name or known.endswith("/" + name) for known in names), name


def test_commands_and_options_exist(page):
    from inctrl_lite.cli import app

    for line in re.findall(r"inctrl-lite ([a-z][^\n`|]*)", page):
        command, words = typer.main.get_command(app), line.split()
        while getattr(command, "commands", None) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", None), f"inctrl-lite {line}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"inctrl-lite {line}"
