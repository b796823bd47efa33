"""The workflows of .github/, which only GitHub can run: their form, and that what they call exists."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github" / "workflows"
PATHS = sorted(FOLDER.glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
pytestmark = pytest.mark.skipif(not PATHS, reason="needs the repository's .github/ folder")


def load(name: str) -> dict:
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))


def commands(job: dict) -> list[str]:
    """The lines that a job runs."""
    return [line for step in job["steps"] for line in step.get("run", "").splitlines()]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return load(request.param.stem)


def test_may_do_little_and_never_runs_on_without_end(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"].startswith("${{ github.workflow }}")
    for job in workflow["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 90


def test_who_may_write():
    written = {
        (path.stem, name, *sorted(job["permissions"]))
        for path in PATHS
        for name, job in load(path.stem)["jobs"].items()
        if "permissions" in job
    }
    assert written == {("book", "publish", "id-token", "pages"), ("weekly", "report", "issues")}
    assert load("book")["jobs"]["publish"]["if"] == "github.event_name == 'push'"  # to main, see `on`
    assert load("book")[True]["push"] == {"branches": ["main"]}  # YAML reads `on` as true


def test_only_official_actions_of_a_stated_version(workflow):
    for job in workflow["jobs"].values():
        for action in (step["uses"] for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", action)
            if action.startswith("actions/checkout"):
                assert {"persist-credentials": False} in [step.get("with") for step in job["steps"]]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_secrets_and_no_machine_of_ours(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"secrets\.|/(root|home|Users|work|opt|tmp)/|file:|localhost", text)
    hosts = {"download.pytorch.org"}
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= hosts


def test_three_systems_and_every_python_that_we_name():
    matrix = load("tests")["jobs"]["quick"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    classifiers = " ".join(PROJECT["classifiers"])
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", classifiers)


def test_readme_commands_run_on_every_system():
    """They are the README's, without the virtual environment, whose paths differ on Windows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", readme, flags=re.S)[:2]
    wanted = [line.removeprefix(".venv/bin/") for block in blocks for line in block.splitlines()]
    wanted = {line for line in wanted if line != "python3 -m venv .venv"} - {'pip install -e ".[course]"'}
    assert wanted <= set(commands(load("tests")["jobs"]["quick"]))
    assert ".ci/run" in commands(load("tests")["jobs"]["whole"])  # and it runs them as they stand


def test_lowest_versions_are_those_of_pyproject():
    lowest = load("tests")["jobs"]["lowest"]
    (install,) = (line for line in commands(lowest) if "lowest-direct" in line)
    bound = next(one for one in PROJECT["dependencies"] if one.startswith("torch>="))
    torch = re.search(r'"torch==([\d.]+)"', install)[1]
    assert torch in (bound.removeprefix("torch>="), bound.removeprefix("torch>=") + ".0")
    python = next(step["with"]["python-version"] for step in lowest["steps"] if "python-version" in str(step))
    assert python == PROJECT["requires-python"].removeprefix(">=")


def test_what_is_called_exists(workflow):
    for job in workflow["jobs"].values():
        made = {"solved/"}  # by `course solve`
        for line in commands(job):
            if "gh " in line or re.match(r"\s*(if|else|fi)\b", line):
                continue  # the report's few lines of shell
            program, *words = shlex.split(re.sub(r"\$\{\{.*?\}\}", "", line))
            assert program in ("pip", "uv", "python", "pytest", "inctrl-lite") or is_executable(program)
            for extras in re.findall(r"^\.\[([\w,-]+)\]$", "\n".join(words), flags=re.M):
                assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
            for word in words:
                if re.fullmatch(r"[\w/]+(\.py|/)", word):
                    assert (ROOT / word).exists() or word in made, word
            if program == "inctrl-lite":
                assert is_command(words)


def is_executable(path: str) -> bool:
    listed = subprocess.run(["git", "ls-files", "-s", path], cwd=ROOT, capture_output=True, text=True)
    return (ROOT / path).is_file() and (not listed.stdout or listed.stdout.startswith("100755"))


def is_command(words: list[str]) -> bool:
    """Whether the command line of the package has this command and these options."""
    import typer

    from inctrl_lite.cli import app

    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, *words = command.commands[words[0]], *words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    return {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("linter", ["actionlint", "check-jsonschema"])
def test_linters_find_nothing(linter):
    if not (path := shutil.which(linter)):
        pytest.skip(f"{linter} is not installed")
    options = ["--builtin-schema", "vendor.github-workflows"] if linter == "check-jsonschema" else []
    found = subprocess.run([path, *options, *PATHS], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_issue_forms_ask_for_something():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"] and form["body"]
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
