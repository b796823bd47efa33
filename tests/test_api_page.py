"""The site's API pages list every public module, every command, and show every public name."""

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

import inctrl_lite

PAGE = Path(__file__).parents[1] / "book" / "api.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="needs the repository's book/ folder")


def public_modules() -> set[str]:
    """All modules, but for answer keys (which would spoil the exercises)."""
    found = {m.name for m in pkgutil.walk_packages(inctrl_lite.__path__, "inctrl_lite.")}
    keys = {name for name in found if name.startswith("inctrl_lite.checks.")} - {"inctrl_lite.checks.engine"}
    return {name for name in found - keys if not any(part.startswith("_") for part in name.split("."))}


def test_every_public_module_is_listed_once():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (PAGE, *PAGE.parent.glob("api/*.md")))
    listed = re.findall(r"^\.\. automodule:: (\S+)$", text, flags=re.M)
    assert sorted(listed) == sorted({"inctrl_lite"} | public_modules())


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_public_names_are_described(name):
    """Autodoc leaves out what has no docstring."""
    module = import_module(name)
    for key, value in vars(module).items():
        ours = getattr(value, "__module__", None) == name and not key.startswith("_")
        if ours and (inspect.isfunction(value) or inspect.isclass(value)):
            assert value.__doc__, f"{name}.{key}"


def test_every_command_is_listed():
    from inctrl_lite.cli import app

    def commands(group, path: str):
        for name, command in getattr(group, "commands", {}).items():
            yield from commands(command, f"{path} {name}")
            if not getattr(command, "commands", None):
                yield f"{path} {name}"

    page = PAGE.read_text(encoding="utf-8")
    for command in commands(typer.main.get_command(app), "inctrl-lite"):
        assert f"| `{command}` |" in page, command


def test_the_overview_names_the_page_of_every_module():
    overview = PAGE.read_text(encoding="utf-8")
    for page in PAGE.parent.glob("api/*.md"):
        (row,) = re.findall(rf"^\| \[.+\]\(api/{page.name}\) \| (.+) \|$", overview, flags=re.M)
        modules = re.findall(r"^## inctrl_lite\.(\S+)$", page.read_text(encoding="utf-8"), flags=re.M)
        assert re.findall(r"`([^`]+)`", row) == modules, page.name
