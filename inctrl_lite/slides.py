"""The lessons as slides for a lecture: `inctrl-lite course slides`.

A lesson becomes one page of reveal.js that needs no network. nbclient runs it and nbconvert writes the page.
What a slide shows is decided by the kind of text, so that a changed lesson needs no further work: headings,
lists, formulas, tables, code and figures as they are; of a paragraph the first sentence where there is
something else to see. The whole paragraph is in the speaker's notes (key S). Hints, explorers and the
lesson's first lines of code are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from subprocess import SubprocessError
from typing import Any

from inctrl_lite.course import UNANSWERED, notebook_files
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import check_writable, write_text
from inctrl_lite.npm import MATHJAX, REVEAL, npm_pack

ASSETS = "assets"
# nbconvert's page for reveal.js, with files beside it in place of those of other hosts.
PAGE = """{%- extends 'index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script>
  window.MathJax = {tex: {inlineMath: [["$", "$"]], processEscapes: true}, options: {enableMenu: false}};
</script>
<script src="assets/mathjax/tex-mml-chtml.js" async></script>
{%- endblock -%}
{%- block html_head_css -%}
<style>
  .reveal .slides > section, .reveal .slides > section > section { max-height: 100%; overflow: hidden auto; }
  .reveal .slides img { max-height: 400px; max-width: 100%; object-fit: contain; margin: 0; }
  .reveal .slides .jp-OutputArea-output { overflow: auto; }
  .reveal .slides .jp-OutputArea-output img { min-width: 65%; }
  .reveal .jp-RenderedHTMLCommon p { margin: 0.5em 0; }
  .reveal pre { font-size: 16px; line-height: 1.35; white-space: pre-wrap; }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="assets/reveal/dist/reveal.js"></script>
<script src="assets/reveal/plugin/notes/notes.js"></script>
<script>
  Reveal.initialize({
    hash: true, slideNumber: "c/t", width: 1100, height: 700, center: false, transition: "none",
    plugins: [RevealNotes],
  });
</script>
{%- endblock -%}
"""


def course_slides(notebooks: str | Path, out: str | Path, lessons: Sequence[str] = ()) -> Iterator[Path]:
    """Run lessons and write a page of slides for each: `04_patch_residuals.html`, and `assets/` once.

    Args:
        lessons: numbers as in the file names (`04` or `4`, `08b`, `A1`); none: all.

    Raises:
        InctrlError: no notebooks there, no lesson of that number, a page that is there already (it may hold
            a teacher's changes), a lesson that does not run, or reveal.js could not be fetched.
    """
    paths = notebook_files(notebooks)
    known = {path.stem.partition("_")[0]: path for path in paths}
    lessons = [number.zfill(2) if number.isdecimal() else number for number in lessons]  # 4 -> 04
    if unknown := [number for number in lessons if number not in known]:
        raise InctrlError(f"no lesson {unknown[0]!r}: choose from {', '.join(known)}")
    pages = {known[n]: Path(out) / f"{known[n].stem}.html" for n in lessons or known}
    if there := [page for page in pages.values() if page.exists()]:
        raise InctrlError(f"{there[0]} is there and is not overwritten: delete it or name a new folder")
    check_writable(out)
    fetch_assets(Path(out) / ASSETS)
    for path, page in pages.items():
        yield write_text(page, slides_of(path))


def fetch_assets(folder: Path) -> None:
    """reveal.js and MathJax, fetched once with npm.

    Raises:
        InctrlError: npm is missing or could not fetch them.
    """
    page = ("LICENSE", "dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js")
    fonts = tuple(f"dist/theme/fonts/source-sans-pro/{name}" for name in ("LICENSE", "*.css", "*.woff"))
    formulas = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2/*.woff")
    parts = (  # package, where to, the folder of the package that is its root, files below that
        (REVEAL, folder / "reveal", "", (*page, *fonts)),
        (MATHJAX, folder / "mathjax", "es5", formulas),
    )
    for (package, digest), target, root, wanted in parts:
        files = {str(PurePosixPath(root, one)): target / PurePosixPath(one).parent for one in wanted}
        done = folder / f"{package}.txt"  # written last
        if done.exists():
            continue
        try:
            npm_pack(package, digest, files)
        except (OSError, ValueError, SubprocessError) as error:
            raise InctrlError(
                f"slides need {package}, which npm fetches once: install Node.js, or try again with a "
                f"network ({error})"
            ) from error
        write_text(done, digest + "\n")


def slides_of(path: str | Path) -> str:
    """Run one lesson and return its page of slides.

    Raises:
        InctrlError: the lesson does not run, or a package for it is missing.
    """
    try:
        import nbformat
        from jinja2 import DictLoader
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from nbconvert import SlidesExporter
    except ImportError as error:
        raise InctrlError(
            f"slides need the course's packages ({error}): pip install inctrl-lite[course]"
        ) from error
    notebook = nbformat.read(path, as_version=4)
    try:
        NotebookClient(
            notebook,
            timeout=600,
            resources={"metadata": {"path": str(Path(path).parent)}},
            extra_arguments=["--log-level=ERROR"],
        ).execute()
    except CellExecutionError as error:
        raise InctrlError(f"{path} does not run: {error.ename}: {error.evalue}") from error
    notebook.metadata = {"title": Path(path).stem, "language_info": {"name": "python"}}
    notebook.cells = [nbformat.from_dict(cell) for cell in arranged(notebook.cells)]
    exporter = SlidesExporter(
        extra_loaders=[DictLoader({"lesson.html.j2": PAGE})],
        template_file="lesson.html.j2",
        reveal_url_prefix=f"{ASSETS}/reveal",
        reveal_theme="white",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    return exporter.from_notebook_node(notebook)[0]


def arranged(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cells of the slides, each with its place: a new slide, a continuation, or notes."""
    started = False  # the slide has a heading and no code yet
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            whole_task = False
            parts = re.split(r"(?m)^(?=#{1,3} )", re.sub(r"(?s)<details>.*?</details>", "", source))
            for i, part in enumerate(parts):
                if not part.strip():
                    continue
                heading = re.match(r"(#{1,3}) (.*)", part)
                if heading:
                    whole_task = heading[2].startswith(("Exercise", "Predict"))
                place = "-" if not heading else "subslide" if heading[1] == "###" else "slide"
                started = started or bool(heading)
                following = cells[number + 1]["cell_type"] if number + 1 < len(cells) else ""
                with_code = following == "code" and i + 1 == len(parts)
                alone = not with_code and all(re.match(r"#|\w|\*\*", b) for b in _blocks(part))
                shown = part if whole_task or alone else first_sentences(part)
                yield _cell(f"{cell['id']}-{i}", shown, place)
                if shown != part:
                    yield _cell(f"{cell['id']}-{i}-notes", part, "notes")
        elif not _left_out(cells, number):
            outputs = [] if UNANSWERED in source else cell["outputs"]
            metadata = {"slideshow": {"slide_type": "-" if started else "subslide"}}
            yield {**cell, "outputs": outputs, "metadata": metadata}
            started = False


def first_sentences(text: str) -> str:
    """A text with only the first sentence of each paragraph; lists, formulas, tables, headings stay whole.

    >>> first_sentences("## Why\\n\\nOne thing. Another thing.\\n\\n- a list. Whole.")
    '## Why\\n\\nOne thing.\\n\\n- a list. Whole.'
    """
    shown = []
    for block in _blocks(text):
        whole = re.match(r"#|- |\d+\. |\$\$|\||>|```|\*[^*].*\*$", block)
        shown.append(block if whole else _first(block))
    return "\n\n".join(shown)


def _blocks(text: str) -> Iterator[str]:
    """A text cut at its empty lines, but not inside fenced code."""
    lines: list[str] = []
    fenced = False
    for line in [*text.strip().splitlines(), ""]:
        fenced ^= line.startswith("```")
        if line.strip() or fenced:
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []


def _first(paragraph: str) -> str:
    """Its first sentence: up to a stop that is followed by a capital letter, mathematics or code."""
    return re.split(r"(?:(?<=[.?!])|(?<=[.?!]\*\*))\s+(?=[*`$\[(]*[A-Z$`\d])", paragraph, maxsplit=1)[0]


def _left_out(cells: Sequence[dict[str, Any]], number: int) -> bool:
    """Explorers need a kernel, and the lesson's first lines only import."""
    source = "".join(cells[number]["source"])
    return "widgets.explorer(" in source or "course.begin(" in source


def _cell(identity: str, source: str, place: str) -> dict[str, Any]:
    metadata = {"slideshow": {"slide_type": place}}
    return {"cell_type": "markdown", "id": identity, "metadata": metadata, "source": source}
