"""The package as a whole: light to import, described the same way everywhere."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}  # where conda-forge's name differs


def requirements(lines: list[str]) -> dict[str, str]:
    """Package -> lower bound, names spelled alike."""
    found = {}
    for line in lines:
        name, bound = re.fullmatch(r"([\w-]+)>=([\w.]+)(?:,.*)?", line).groups()
        found[CONDA_NAMES.get(name, name).lower().replace("_", "-")] = bound
    return found


def test_environment_carries_the_packages_and_bounds_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + extras["course"] + extras["test"]
    ours = requirements([line for line in listed if not line.startswith("inctrl-lite")])
    ours["python"] = project["requires-python"].removeprefix(">=")
    conda = re.findall(r"^ +- ([\w-]+>=[\w.]+)$", (ROOT / "environment.yml").read_text(), flags=re.M)
    assert requirements(conda) == ours


def test_version_is_the_same_in_both_places():
    import inctrl_lite

    assert (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == inctrl_lite.__version__
    )


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, inctrl_lite, inctrl_lite.data, inctrl_lite.tiny, inctrl_lite.cli;"
        "print([m for m in ('torch', 'open_clip', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_exists():
    import inctrl_lite

    for name in inctrl_lite.__all__:
        assert getattr(inctrl_lite, name).__doc__, name


def test_readme_starts_with_the_two_commands():
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert "inctrl-lite demo" in blocks[0]
    assert "pytest" in blocks[1]


def test_nothing_in_git_names_a_machine_path():
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    pattern = re.compile(r"/(root|home/\w+|Users/\w+)/")
    for file in files:
        path = ROOT / file
        if path.suffix in {".py", ".md", ".toml", ".yml", ".ipynb"} and path.exists():
            assert not pattern.search(path.read_text(encoding="utf-8")), file


def test_imports_go_one_way():
    """No module imports, at the top or inside a function, one that imports it; types alone do not count."""
    import ast
    from graphlib import TopologicalSorter

    folder = ROOT / "inctrl_lite"
    names = {}
    for path in folder.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names[name] = path
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        types = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test)]
        tree.body = [node for node in tree.body if node not in types]
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in names]
        wanted = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        graph[name] = {one if one in names else one.rpartition(".")[0] for one in wanted} - {name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_checks_of_lessons_are_quick_to_import():
    """They load torch and pandas; open_clip, timm and scipy.stats wait until they are needed."""
    code = (
        "import sys; from inctrl_lite import checks;"
        "print([m for m in ('open_clip', 'timm', 'scipy.stats', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
