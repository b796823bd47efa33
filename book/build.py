"""Build the site: python book/build.py (needs `pip install -e ".[book]"`; result in book/_build/html).

The lessons run once, as tests (nbmake), and only those whose text, library or recorded results changed since.
Then Jupyter Book makes pages of them without running anything; a warning is an error. Pages must stay light.
Where nothing at all changed, nothing is made.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import nbformat
import yaml
from instructors import notes_page
from PIL import Image
from site_pages import revision
from vendor import RUNTIME_FILES, vendor, vendored

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
LIBRARY = (ROOT / "inctrl_lite", ROOT / "benchmarks" / "results")  # what lessons depend on
EXECUTED = BOOK / "executed"  # not below _build, which nbmake passes over
HTML = BOOK / "_build" / "html"
PAGE_MB, SITE_MB = 2.5, 70  # photographs weigh more than drawings
CORES = os.cpu_count() or 1
AT_ONCE = min(CORES, 4)  # lessons; each takes about a gigabyte of memory

GLOSSARY_LINK = r"\[([^\]]+)\]\(https://inctrl-lite\.github\.io/inctrl_lite/glossary\.html#term-([^)]+)\)"

Notebook = nbformat.NotebookNode


def main() -> None:
    fetch_assets()
    sources = {path.stem: read(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    execute(sources | {"index": landing()})
    for name in sources:
        write_changed(
            BOOK / "notebooks" / f"{name}.ipynb", dump(with_solutions(with_own_glossary(dress(name))))
        )
    for path in (BOOK / "notebooks").glob("*.ipynb"):
        if path.stem not in sources:
            path.unlink()
    write_changed(BOOK / "index.ipynb", dump(dress("index")))
    write_results()
    write_changed(BOOK / "instructor_notes.md", notes_page(ROOT / "notebooks"))
    made = digest([*contents(BOOK, *LIBRARY, ROOT / "pyproject.toml"), revision().encode()])
    stamp = HTML.parent / "stamp.txt"
    if not (HTML / "index.html").exists() or not stamp.exists() or stamp.read_text(encoding="utf-8") != made:
        stamp.unlink(missing_ok=True)
        make_html()
        live_page()
        write_changed(stamp, made)
    check_sizes()
    print(f"\nThe site is ready: {HTML / 'index.html'}")


def fetch_assets() -> None:
    """Fetch scripts and fonts where that is possible; otherwise say what the pages will do."""
    if vendored():
        return
    try:
        vendor()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"{error}: formulas and explorers of this site will be loaded from CDNs", file=sys.stderr)


def write_results() -> None:
    """The results page and its figures."""
    from results import draw_figures, results_page  # torch takes its time, and tests of this file do without

    recorded = ROOT / "benchmarks" / "results"
    draw_figures(recorded)
    write_changed(BOOK / "results.md", results_page(recorded))


# --- run the lessons, once -----------------------------------------------------------------------------


def read(path: Path) -> Notebook:
    return nbformat.read(path, as_version=4)


def dump(notebook: Notebook) -> str:
    return nbformat.writes(notebook) + "\n"


def landing() -> Notebook:
    """The landing page, which is written as text, as a notebook."""
    from myst_nb.core.read import read_myst_markdown_notebook  # the tests of this file do without

    notebook = read_myst_markdown_notebook((BOOK / "landing.md").read_text(encoding="utf-8"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"landing-{number}"
    return notebook


def execute(notebooks: dict[str, Notebook]) -> None:
    """Run those notebooks whose last good run was of another text, library or set of recorded results."""
    stamps = EXECUTED / "stamps.json"
    done = json.loads(stamps.read_text(encoding="utf-8")) if stamps.exists() else {}
    library = digest(contents(*LIBRARY))
    wanted = {name: digest([dump(nb).encode(), library.encode()]) for name, nb in notebooks.items()}
    due = [n for n in notebooks if done.get(n) != wanted[n] or not (EXECUTED / f"{n}.ipynb").exists()]
    for name in due:
        write_changed(EXECUTED / f"{name}.ipynb", dump(notebooks[name]))
    failed = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, passed in zip(due, pool.map(run, due), strict=True):
            failed += [] if passed else [name]
            done[name] = wanted[name] if passed else None
            write_changed(stamps, json.dumps(done, indent=1) + "\n")
    if failed:
        sys.exit(f"These lessons failed: {', '.join(failed)}")


def run(name: str) -> bool:
    """Execute one notebook in its place, as a test. What it says is shown where it fails."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "--nbmake", "--overwrite", f"{EXECUTED / name}.ipynb"]
    options = ["--nbmake-kernel=python3", "--nbmake-timeout=600", "-p", "no:cacheprovider"]
    result = subprocess.run(
        command + options,
        cwd=ROOT,
        env={"OMP_NUM_THREADS": str(max(1, CORES // AT_ONCE))} | own_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    passed = result.returncode == 0
    text = "" if passed else f"\n{result.stdout}"
    print(f"{name}: {'passed' if passed else 'FAILED'}, {time.monotonic() - start:.0f} s{text}", flush=True)
    return passed


def contents(*paths: Path) -> Iterator[bytes]:
    """Names and bytes of everything below, but for what is made from it."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not {"__pycache__", "_build", "executed"} & set(file.parts):
                yield file.relative_to(ROOT).as_posix().encode()
                yield file.read_bytes()


def digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def own_environment() -> dict[str, str]:
    """Kernels of this Python, not of another that the machine may have."""
    return {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"} | {"JUPYTER_PREFER_ENV_PATH": "1"}


def write_changed(path: Path, text: str) -> None:
    """Write a file only if that changes it."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# --- from a lesson to a page ---------------------------------------------------------------------------


def dress(name: str) -> Notebook:
    """An executed notebook with alternative texts of pictures, and stills of explorers for no JavaScript."""
    notebook = read(EXECUTED / f"{name}.ipynb")
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    heading = ""
    for cell, following in zip(notebook.cells, [*notebook.cells[1:], None], strict=True):
        if cell.cell_type != "code":
            heading = (re.findall(r"^#+ (.+)$", cell.source, flags=re.M) or [heading])[-1]
            continue
        cell.metadata["mystnb"] = {"image": {"alt": caption(following, heading)}}
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = lighter(output.data["image/png"])
        for i, output in reversed(list(enumerate(cell.outputs))):
            view = output.get("data", {}).get("application/vnd.jupyter.widget-view+json")
            if view and (picture := still(widgets["state"], view["model_id"])):
                data = {"text/html": f"<noscript>{picture}</noscript>"}
                cell.outputs.insert(i + 1, nbformat.v4.new_output("display_data", data))
    return notebook


def with_solutions(notebook: Notebook) -> Notebook:
    """Behind each exercise a solution to unfold: its answer key. A lesson with its own stays as it is."""
    from inctrl_lite.checks import exercises
    from inctrl_lite.course import UNANSWERED

    if any("<summary>Solution</summary>" in cell.source for cell in notebook.cells):
        return notebook
    known, cells = exercises(), []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code" and UNANSWERED in cell.source:
            names = re.findall(r"checks\.check_(\w+)\(", cell.source)
            keys = [textwrap.dedent(inspect.getsource(known[name].solution)).rstrip() for name in names]
            code = "\n\n\n".join(keys)
            text = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n</details>"
            cells.append(nbformat.v4.new_markdown_cell(text, id=f"{cell.id}-solution"))
    notebook.cells = cells
    return notebook


def lighter(picture: str) -> str:
    """The same PNG, packed better and without matplotlib's transparency of nothing."""
    image = Image.open(BytesIO(base64.b64decode(picture)))
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    buffer = BytesIO()
    image.save(buffer, format="png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def caption(following: Notebook | None, heading: str) -> str:
    """What the lesson says below a picture: a paragraph in italics; or else what its section is about."""
    text = following.source if following is not None and following.cell_type == "markdown" else ""
    found = re.match(r"\*(?!\*)(.+?)\*(?:\n\n|\s*$)", text, flags=re.S)
    return re.sub(r"[*$`\s]+", " ", found[1]) if found else f"The figure of the section: {heading}"


def still(state: dict, model: str) -> str:
    """The picture that a widget shows at first, as HTML; empty if it shows none."""
    widget = state[model]["state"]
    if "<figure" in str(widget.get("value", "")):
        return widget["value"]
    children = [child.removeprefix("IPY_MODEL_") for child in widget.get("children", ())]
    if widget.get("_model_name") == "StackModel":
        children = [children[widget["selected_index"]]]
    return next(filter(None, (still(state, child) for child in children)), "")


def with_own_glossary(notebook: Notebook) -> Notebook:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = own_glossary(cell.source)
    return notebook


def own_glossary(text: str) -> str:
    """Links of a lesson to the published glossary, as links to the glossary of the site that is built."""
    return re.sub(GLOSSARY_LINK, lambda found: f"{{term}}`{found[1]} <{glossary_terms()[found[2]]}>`", text)


@lru_cache
def glossary_terms() -> dict[str, str]:
    """Anchors of the glossary's terms -> the terms."""
    page = (BOOK / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\S.*)\n(?=:|  )", page, flags=re.M)
    return {re.sub(r"[^a-zA-Z0-9._]+", "-", term): term for term in terms}


# --- the site ------------------------------------------------------------------------------------------


def make_html() -> None:
    """Run Jupyter Book on everything: warnings of pages that have not changed would else be forgotten."""
    config = BOOK / "_config.yml"
    if not vendored():
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        sphinx = settings["sphinx"]["config"]
        del sphinx["mathjax_path"], sphinx["nb_ipywidgets_js"]
        sphinx["html_js_files"] = [file for file in sphinx["html_js_files"] if "vendored" not in file[0]]
        config = BOOK / "_build" / "config-cdn.yml"
        write_changed(config, yaml.safe_dump(settings))
    begin = f"import sys; sys.path.append({str(BOOK)!r}); from jupyter_book.cli.main import main; main()"
    start = [sys.executable, "-c", begin, "build", str(BOOK)]
    options = ["--config", str(config), "--all", "-W", "--keep-going", "-q"]
    subprocess.run(start + options, cwd=ROOT, env=own_environment(), check=True)
    for path in HTML.rglob("*.map"):  # of the theme's scripts, for its developers
        path.unlink()


def live_page() -> None:
    """The page that runs a detector in the reader's browser; without npm, one that says what is missing."""
    shutil.rmtree(HTML / "live", ignore_errors=True)
    if vendored():
        from live import write_live_page  # torch takes its time, and is not always needed

        write_live_page(HTML / "live", RUNTIME_FILES)
        return
    text = "This copy of the site was built without npm, so the live page is missing."
    page = f'<!DOCTYPE html><html lang="en"><title>Live page</title><main><p>{text}</p></main></html>'
    write_changed(HTML / "live" / "index.html", page)


def check_sizes() -> None:
    """No page above 2.5 MB with its own pictures, and the whole site below 70 MB."""
    for page in sorted(HTML.rglob("*.html")):
        weight = page_weight(page)
        if weight > PAGE_MB * 1e6:
            sys.exit(f"{page.relative_to(HTML)} weighs {weight / 1e6:.2f} MB; {PAGE_MB} MB are allowed")
    total = sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file())
    print(f"site: {total / 1e6:.1f} MB")
    if total > SITE_MB * 1e6:
        sys.exit(f"{SITE_MB} MB are allowed")


def page_weight(page: Path) -> int:
    """Bytes of a page and of the pictures that only belong to pages, not to the theme."""
    html = page.read_text(encoding="utf-8")
    pictures = set(re.findall(r'src(?:set)?="([^":?]*(?:_images|_static/results)/[^"?]+)"', html))
    return page.stat().st_size + sum((page.parent / picture).stat().st_size for picture in pictures)


if __name__ == "__main__":
    main()
