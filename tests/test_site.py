"""The site: quick checks of its sources and, where it is built, of its pages in a browser.

`python book/build.py` builds it. The browser is the machine's own Chromium, driven by Playwright
(`pip install -e ".[browser]"`); it can reach nothing but the site, and asking for anything else is an error.
"""

import base64
import fnmatch
import gzip
import hashlib
import html
import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import AXE
from PIL import Image

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
HTML = BOOK / "_build" / "html"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = sorted(
    path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts
)
LESSONS = [page for page in PAGES if page.startswith("notebooks/")]
WITH_EXPLORERS = [page for page in PAGES if 'class="explorer-frame"' in (HTML / page).read_text("utf-8")]
PHONE = {"width": 390, "height": 844}
STILL = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}  # how pages are visited

pytestmark = pytest.mark.skipif(not BOOK.exists(), reason="needs the repository's book/ folder")
built = pytest.mark.skipif(not PAGES, reason="the site is not built: python book/build.py")


@pytest.fixture
def build(monkeypatch):
    """book/build.py as a module."""
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("build")


@pytest.fixture
def pages(monkeypatch):
    """book/site_pages.py as a module."""
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("site_pages")


def test_behind_each_exercise_is_its_answer_key(build):
    from inctrl_lite.checks import exercises

    for path in NOTEBOOKS:
        notebook = build.with_solutions(nbformat.read(path, as_version=4))
        nbformat.validate(notebook)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        shown = re.findall(
            r"<summary>Solution</summary>\n\n```python\n(.+?)\n```\n</details>", text, flags=re.S
        )
        names = [name for code in shown for name in re.findall(r"^(?:def|class) (\w+)", code, flags=re.M)]
        stubs = re.findall(r"checks\.check_(\w+)\(", "\n".join(c.source for c in notebook.cells))
        assert sorted(names) == sorted(set(stubs)), path.name
        assert set(names) <= set(exercises())


def test_instructor_notes_have_every_lesson_and_its_mistakes(monkeypatch):
    monkeypatch.syspath_prepend(BOOK)
    notes = importlib.import_module("instructors")
    from inctrl_lite.checks import exercises

    page = notes.notes_page(ROOT / "notebooks")
    for path in NOTEBOOKS:
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"## {title}\n" in page and f"(notebooks/{path.name})" in page
    shown = page.count("<details><summary>Exercise ")
    assert shown == page.count("</details>") == len(exercises())
    assert page.count("\n- ") == sum(len(exercise.mistakes) for exercise in exercises().values())
    assert notes.escaped("`a * b` is a*b, $5 < x") == "`a * b` is a\\*b, \\$5 \\< x"


@built
def test_solutions_can_be_unfolded_on_the_site():
    for path in NOTEBOOKS:
        page = (HTML / "notebooks" / f"{path.stem}.html").read_text("utf-8")
        exercises = json.loads(path.read_text("utf-8"))["cells"]
        count = sum("**Difficulty** " in "".join(cell["source"]) for cell in exercises)
        assert page.count("<summary>Solution</summary>") >= min(count, 1), path.name


# --- the sources ---------------------------------------------------------------------------------------


def test_every_notebook_is_on_one_line_of_the_contents():
    parts = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    lines = [chapter for part in parts for chapter in part["chapters"]]
    for path in NOTEBOOKS:
        name = f"notebooks/{path.stem}"
        hits = [line for line in lines if fnmatch.fnmatch(name, line.get("glob", line.get("file")))]
        assert len(hits) == 1, name


def test_every_written_page_is_in_the_contents():
    toc = (BOOK / "_toc.yml").read_text(encoding="utf-8")
    for page in [*BOOK.glob("*.md"), *BOOK.glob("api/*.md")]:
        name = page.relative_to(BOOK).with_suffix("").as_posix().replace("landing", "index")
        assert re.search(rf"(?:file|root): {name}$", toc, flags=re.M), name


def test_no_block_of_the_landing_page_is_cut_in_two(build):
    pytest.importorskip("myst_nb", reason="the packages of the extra `book` are missing")
    for cell in build.landing().cells:
        fences = re.findall(r"^(:{3,})(\{[\w-]+\})?", cell.source, flags=re.M)
        assert sum(bool(name) for _, name in fences) * 2 == len(fences), cell.source


def test_launch_links_lead_to_files_of_the_repository(pages):
    for path in NOTEBOOKS:
        links = pages.launch_links(f"notebooks/{path.name}")
        assert set(links) == {"Colab", "Binder", "GitHub"}
        for link in links.values():
            assert link.startswith("https://") and "inctrl-lite/inctrl_lite" in link
            target = re.search(rf"(?:blob/{pages.revision()}|lab/tree)/(.+)$", link)[1]
            assert (ROOT / target).is_file(), link
    assert (ROOT / "environment.yml").is_file()  # what Binder installs


def test_links_and_install_line_name_the_version_that_the_site_shows(pages, tmp_path, monkeypatch):
    def at(folder: Path, *commands: list[str]) -> str:
        for command in commands:
            subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
        pages.revision.cache_clear()
        return pages.revision()

    for name in ("NAME", "EMAIL"):
        for who in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{who}_{name}", "a@b")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert at(tmp_path) == f"v{pages.project()['version']}"  # an archive without git's folder
    commit = at(tmp_path, ["init"], ["commit", "--allow-empty", "-m", "first"])
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    assert pages.install_line().endswith(f'@{commit}"')
    assert at(tmp_path, ["tag", "v9"]) == "v9"
    assert all("/v9" in link for link in pages.launch_links("a.ipynb").values())
    pages.revision.cache_clear()


def test_the_site_names_one_repository(pages):
    config = (BOOK / "_config.yml").read_text(encoding="utf-8")
    assert f"repository_url: {pages.repository()}\n" in config


def test_short_version_and_launch_links_stand_below_the_title_of_a_lesson(pages):
    path = "notebooks/00_tour.ipynb"
    page = pages.below_title("<h1>0. A tour</h1>\n<p>One model.</p>", pages.lessons()["00_tour"], path)
    title, short, launch, text = page.split("\n")
    assert title == "<h1>0. A tour</h1>" and text == "<p>One model.</p>"
    assert pages.lessons()["00_tour"] in short
    assert all(f'href="{html.escape(link)}"' in launch for link in pages.launch_links(path).values())


def test_late_pictures_have_their_sizes(pages, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    picture, other = '<img alt="a" src="../_images/1.png" />', '<img src="data:image/png;base64,AA" />'
    late = '<img alt="a" src="../_images/1.png" loading="lazy" width="30" height="20" />'
    assert pages.with_late_pictures(picture + other, {"1.png": tmp_path / "a.png"}) == late + other


def test_lines_of_a_signature_are_no_list_of_definitions(pages):
    signature = (
        '<dt class="sig sig-object py">f(<dl>\n<dd>a,</dd>\n</dl>)</dt><dd><dl><dd>text</dd></dl></dd>'
    )
    expected = '<dt class="sig sig-object py">f(<span class="sig-lines">\n<span>a,</span>\n</span>)</dt>'
    assert pages.with_lines_of_signatures(signature) == f"{expected}<dd><dl><dd>text</dd></dl></dd>"


def test_every_lesson_has_a_short_version_of_one_sentence(pages):
    assert set(pages.lessons()) == {path.stem for path in NOTEBOOKS}
    for name, said in pages.lessons().items():
        assert re.fullmatch(r"[A-Z][^.]{30,150}\.", said), name


def test_a_description_is_whole_sentences_or_words(pages):
    assert pages.shortened("One. Two.") == "One. Two."
    sentence = "This is a sentence of a page that has sixty letters or so. "
    assert pages.shortened(4 * sentence) == (2 * sentence).strip()
    cut = pages.shortened("words " * 50)
    assert len(cut) <= pages.LONGEST and cut.endswith("words…")


def test_the_edit_link_leads_to_what_a_page_is_made_from(pages):
    for page in ("index", "results", "faq", "api/using", "notebooks/00_tour"):
        suffix = ".ipynb" if page.startswith("notebooks") else ".md"
        address = pages.edit_address(page, {"page_source_suffix": suffix})
        assert (ROOT / address.removeprefix(f"{pages.repository()}/edit/main/")).is_file(), page


def test_a_still_is_what_the_widget_shows_first(build):
    def box(*names: str, **more) -> dict:
        return {"state": {"children": [f"IPY_MODEL_{name}" for name in names], **more}}

    state = {
        "all": box("controls", "stack"),
        "controls": box("slider"),
        "slider": {"state": {"value": 3}},
        "stack": box("first", "second", _model_name="StackModel", selected_index=1),
        "first": {"state": {"value": "<figure>1</figure>"}},
        "second": {"state": {"value": "<figure>2</figure>"}},
    }
    assert build.still(state, "all") == "<figure>2</figure>"
    assert build.still(state, "slider") == ""


def test_pictures_get_lighter_and_stay_the_same(build):
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    noise[:8] = 255
    for alpha in (255, 9):  # opaque, and not
        noise[..., 3] = alpha
        buffer = BytesIO()
        Image.fromarray(noise).save(buffer, "PNG")
        packed = base64.b64decode(build.lighter(base64.b64encode(buffer.getvalue()).decode()))
        assert np.array_equal(np.asarray(Image.open(BytesIO(packed)).convert("RGBA")), noise)
        assert alpha == 9 or len(packed) < len(buffer.getvalue())


def test_a_caption_is_the_alternative_text(build):
    cell = nbformat.v4.new_markdown_cell
    said = cell("*Left: the **query**,\n$K = 2$.*\n\nMore.")
    assert build.caption(said, "Two maps") == "Left: the query , K = 2 ."
    bare = build.caption(cell("**Bold** is no caption."), "Two maps")
    assert bare == build.caption(None, "Two maps") == "The figure of the section: Two maps"


def test_weights_count_a_page_with_its_pictures(build, monkeypatch, tmp_path):
    (tmp_path / "_images").mkdir()
    (tmp_path / "_images" / "a.png").write_bytes(b"x" * 1000)
    page = tmp_path / "page.html"
    page.write_text('<img src="_images/a.png"><img src="_images/a.png"><img src="data:image/png;base64,AA">')
    assert build.page_weight(page) == page.stat().st_size + 1000
    monkeypatch.setattr(build, "HTML", tmp_path)
    build.check_sizes()
    monkeypatch.setattr(build, "PAGE_MB", 1e-3)
    with pytest.raises(SystemExit, match="page.html weighs"):
        build.check_sizes()
    monkeypatch.setattr(build, "PAGE_MB", 2)
    monkeypatch.setattr(build, "SITE_MB", 1e-3)
    with pytest.raises(SystemExit, match="are allowed"):
        build.check_sizes()


def test_only_what_changed_runs_again(build, monkeypatch, tmp_path):
    ran = []
    notebooks = {name: nbformat.v4.new_notebook() for name in "ab"}
    library = tmp_path / "library.py"
    library.write_text("one")
    monkeypatch.setattr(build, "EXECUTED", tmp_path / "executed")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "LIBRARY", (library,))
    monkeypatch.setattr(build, "run", lambda name: ran.append(name) is None)

    def again() -> list[str]:
        ran.clear()
        build.execute(notebooks)
        return sorted(ran)

    assert again() == ["a", "b"] and again() == []
    notebooks["b"].cells.append(nbformat.v4.new_code_cell("1"))
    assert again() == ["b"]
    library.write_text("two")
    assert again() == ["a", "b"]
    notebooks["a"].cells.append(nbformat.v4.new_code_cell("1 / 0"))
    monkeypatch.setattr(build, "run", lambda name: False)
    with pytest.raises(SystemExit, match="failed: a$"):
        build.execute(notebooks)
    monkeypatch.setattr(build, "run", lambda name: ran.append(name) is None)
    assert again() == ["a"]  # a failure is not remembered as done


def test_without_npm_pages_use_cdns_and_the_build_says_so(build, monkeypatch, tmp_path, capsys):
    def no_npm():
        raise OSError("npm is not installed")

    monkeypatch.setattr(build, "vendored", lambda: False)
    monkeypatch.setattr(build, "vendor", no_npm)
    build.fetch_assets()
    assert "loaded from CDNs" in capsys.readouterr().err
    shutil.copy(BOOK / "_config.yml", tmp_path)
    commands = []
    monkeypatch.setattr(build, "BOOK", tmp_path)
    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: commands.append(command))
    build.make_html()
    used = Path(commands[0][commands[0].index("--config") + 1])
    settings = yaml.safe_load(used.read_text(encoding="utf-8"))["sphinx"]["config"]
    assert "vendor" not in json.dumps({k: v for k, v in settings.items() if k != "extensions"})
    assert "-W" in commands[0]


def test_vendored_packages_are_pinned(build):
    vendor = importlib.import_module("vendor")
    assert {re.sub(r"@[\d.]+$", "", package) for package in vendor.PACKAGES} == {
        "@jupyter-widgets/html-manager",
        "requirejs",
        "mathjax",
        "axe-core",
        "onnxruntime-web",
    }
    for package, (digest, files) in vendor.PACKAGES.items():
        assert re.fullmatch(r".+@\d+\.\d+\.\d+", package) and re.fullmatch(r"[0-9a-f]{64}", digest) and files


def test_another_content_of_a_package_is_refused(build, monkeypatch, tmp_path):
    vendor = importlib.import_module("vendor")
    npm = importlib.import_module("inctrl_lite.npm")
    (tmp_path / "vendor").mkdir()
    monkeypatch.setattr(vendor, "ASSETS", tmp_path / "vendor" / "assets")
    monkeypatch.setattr(vendor, "AXE", tmp_path / "vendor" / "axe" / "axe.min.js")
    monkeypatch.setattr(vendor, "DONE", tmp_path / "vendor" / "packages.txt")
    monkeypatch.setattr(vendor, "RUNTIME_FILES", tmp_path / "vendor" / "runtime")
    monkeypatch.setattr(npm.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        npm.subprocess, "run", lambda _, cwd, **__: (Path(cwd) / "some.tgz").write_bytes(b"other")
    )
    with pytest.raises(ValueError, match="is not what it was"):
        vendor.vendor()
    assert not vendor.vendored()


def test_results_come_from_the_recorded_files(build, tmp_path):
    results = importlib.import_module("results")
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "results")
    recorded = tmp_path / "results" / "speed.json"
    measured = json.loads(recorded.read_text(encoding="utf-8"))
    measured["ms per image by K"]["1"]["augmented"] = 123456.7
    recorded.write_text(json.dumps(measured), encoding="utf-8")
    page = results.results_page(tmp_path / "results")
    assert "| 1 | 123456.7 |" in page and page != results.results_page(ROOT / "benchmarks" / "results")
    assert "speed" not in results.results_page(tmp_path)  # no file, no section


@pytest.fixture
def results(build):
    return importlib.import_module("results")


def test_the_results_page_begins_with_a_verdict_a_plot_and_examples(results):
    page = results.results_page(ROOT / "benchmarks" / "results")
    start = page.split(":::::{dropdown}")[0]
    assert len(re.findall(r"^\d\. ", start, flags=re.M)) == 3  # sentences of the verdict
    assert "_static/results/dots.png" in start and start.count("```{image}") >= 6
    outside = re.sub(r"^:::::\{dropdown\}.*?^:::::$", "", page, flags=re.M | re.S)
    assert not re.findall(r"^\|", outside, flags=re.M)  # all tables are folded


def test_claims_on_the_results_page_name_rival_interval_and_learning(results):
    columns = ["dataset", "shots", "method", "auroc", "low", "high", "rival", "gain", "gain_low", "gain_high"]
    row = ["mean", 4, "InCTRL-lite", 0.8, 0.7, 0.9, "PatchCore", 0.05, 0.01, 0.09]
    said = results.sentence(pd.DataFrame([row], columns=columns))
    assert "better than the best training-free method, PatchCore: +0.050 (+0.010 to +0.090)" in said
    assert "How much of that is learned was not measured" in said
    columns += ["trained", "trained_low", "trained_high"]
    said = results.sentence(pd.DataFrame([[*row, -0.02, -0.03, -0.01]], columns=columns))
    assert "Training changes the AUROC of this head by -0.020 (-0.030 to -0.010): worse." in said


def test_figures_of_the_results_are_drawn_wide_and_for_a_phone_and_only_when_due(
    results, monkeypatch, tmp_path
):
    recorded = tmp_path / "results"
    for name in ("photo", "embedded"):
        shutil.copytree(ROOT / "benchmarks" / "results" / name, recorded / name)
    drawn = []
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(results, "save_figure", lambda _, path: drawn.append(path.name))
    monkeypatch.setattr(results.benchmark_report, "figures", lambda *_: {"gains": ("", None)})
    results.draw_figures(recorded)
    wide = ["dots", "photo-gains", "embedded-gains"]
    assert sorted(drawn) == sorted(f"{name}{end}.png" for name in wide for end in ("", "-phone"))
    results.draw_figures(recorded)
    assert len(drawn) == 6
    (recorded / "photo" / "cost.csv").write_text("method,milliseconds\n")
    results.draw_figures(recorded)
    assert len(drawn) == 12


# --- the built files -----------------------------------------------------------------------------------


class Anchors(HTMLParser):
    """Where a page's links lead, and what can be linked to in it."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.ids = [], {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links += [found[key] for key in ("href", "src") if found.get(key)]


@built
def test_no_internal_link_is_broken():
    parsed = {page: Anchors(HTML / page) for page in PAGES}
    broken = []
    for page, anchors in parsed.items():
        for link in set(anchors.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (HTML / page).parent / unquote(parts.path) if parts.path else HTML / page
            target = (target / "index.html" if target.is_dir() else target).resolve()
            name = target.relative_to(HTML.resolve()).as_posix()
            if not target.exists() or (name in parsed and unquote(parts.fragment) not in parsed[name].ids):
                broken.append(f"{page}: {link}")
    assert not broken


@built
def test_pages_and_site_are_light(build):
    build.check_sizes()


META = r'<meta (?:name|property)="{}" content="([^"]*)"'


@built
@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("live/")])
def test_a_page_says_what_it_is_to_search_engines_and_friends(page, pages):
    text = (HTML / page).read_text(encoding="utf-8")
    found = {name: re.findall(META.format(name), text) for name in ("description", "og:title", "og:image")}
    assert all(len(values) == 1 and values[0] for values in found.values()), found
    assert len(found["description"][0]) <= 1.2 * pages.LONGEST  # as HTML
    card = found["og:image"][0].removeprefix(pages.project()["urls"]["Documentation"])
    with Image.open(HTML / card.lstrip("/")) as picture:
        assert picture.size == (1200, 630)


@built
def test_descriptions_differ():
    said = [re.search(META.format("description"), (HTML / page).read_text("utf-8"))[1] for page in LESSONS]
    assert len(set(said)) == len(said)


@built
@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("live/")])
def test_a_page_is_light_on_its_way(page):
    """Compressed, with scripts and the pictures that are loaded at once: a text 1 MB, an explorer 3 MB."""
    text = (HTML / page).read_text(encoding="utf-8")
    now = [tag for tag in re.findall(r"<img [^>]+>", text) if 'loading="lazy"' not in tag]
    names = {name for tag in now for name in re.findall(r' src="([^"]+)"', tag)}
    pictures = [HTML / Path(page).parent / name for name in names if ":" not in name]
    scripts = [s for s in re.findall(r'(?:src|href)="([^":]+\.(?:js|css))[?"]', text)]
    files = {HTML / page, *pictures, *((HTML / page).parent / script for script in scripts)}
    weight = sum(len(gzip.compress(file.read_bytes())) for file in files if file.exists())
    assert weight < (3e6 if page in {*LESSONS, *WITH_EXPLORERS} else 1e6)


@built
def test_menus_and_launch_lines_are_not_indexed():
    index = (HTML / "searchindex.js").read_text(encoding="utf-8")
    terms = json.loads(index[index.index("{") : index.rindex("}") + 1])["terms"]
    assert "binder" not in terms or len(np.atleast_1d(terms["binder"])) < len(LESSONS) / 2


@built
def test_every_lesson_has_its_page():
    assert {Path(page).stem for page in LESSONS} == {path.stem for path in NOTEBOOKS}


@built
def test_explorers_on_at_least_eight_pages():
    assert len(WITH_EXPLORERS) >= 8 and "index.html" in WITH_EXPLORERS


# --- in a browser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The built site on the loopback interface."""
    with browser.served(HTML) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    """The machine's browser, or Playwright's own."""
    with browser.chromium() as found:
        yield found


class Visit:
    """One page, opened, with everything that went wrong meanwhile."""

    def __init__(self, chromium, site: str, page: str, **context):
        self.name = page
        self.context = chromium.new_context(**STILL | context)
        self.context.set_default_timeout(120_000)  # on a busy machine a page takes its time
        self.page, self.wrong = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("response", lambda r: r.status >= 400 and self.wrong.append(f"{r.status}: {r.url}"))
        self.page.on("request", lambda r: self.outside(site, r.url) and self.wrong.append(f"asks {r.url}"))
        self.page.goto(site + page)
        if context.get("java_script_enabled", True):
            self.settle()

    @staticmethod
    def outside(site: str, url: str) -> bool:
        return not url.startswith((site, "data:", "blob:"))

    def settle(self) -> None:
        """Wait until widgets stand there and formulas are set."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_function("""() =>
            document.querySelectorAll(".widget-subarea").length ==
            document.querySelectorAll(".widget-subarea > .jupyter-widgets").length""")
        self.page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise }")


@pytest.fixture(scope="module", params=PAGES)
def visit(request, chromium, site) -> Iterator[Visit]:
    """Every page in turn; tests of one page share one load of it."""
    visit = Visit(chromium, site, request.param)
    yield visit
    visit.context.close()


@built
def test_a_page_loads_without_errors_and_asks_no_other_host(visit):
    assert not visit.wrong


@built
def test_formulas_are_set(visit):
    sources = visit.page.locator("span.math, div.math").count()
    assert visit.page.locator("mjx-container").count() >= sources
    assert visit.page.locator("mjx-merror").count() == 0


@built
def test_pictures_have_alternative_texts(visit):
    assert visit.page.locator("img:not([alt]), img[alt='']").count() == 0


@built
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_violation(visit, theme):
    visit.page.set_viewport_size({"width": 1280, "height": 800})
    visit.page.add_style_tag(content="* { transition: none !important }")  # else colours are half way
    root = "document.documentElement.dataset"
    visit.page.evaluate(f"{root}.theme = {root}.mode = '{theme}'")
    visit.page.evaluate(AXE.read_text(encoding="utf-8"))
    rules = "preload: false" + (", runOnly: ['color-contrast']" if theme == "dark" else "")
    alike = ["dl.py ~ dl.py"] + ([] if "tour" in visit.name else [".highlight"])  # one of a kind will do
    found = visit.page.evaluate(f"axe.run({{ exclude: {[[a] for a in alike]} }}, {{ {rules} }})")[
        "violations"
    ]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not [f"{v['id']}: {n['target']} {n['html'][:200]}" for v in serious for n in v["nodes"][:3]]


@built
@pytest.mark.parametrize("width", [390, 1920])
def test_nothing_is_wider_than_the_screen(visit, width):
    visit.page.set_viewport_size({"width": width, "height": 900})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


# --- explorers -----------------------------------------------------------------------------------------

SHOWN = "figure.explorer-frame:visible img"
STANDS = "Number(document.querySelector('.noUi-handle').getAttribute('aria-valuenow'))"


def explorers(page) -> list:
    """Widgets that have a picture and something to change it with."""
    boxes = page.locator(".widget-subarea").all()
    return [box for box in boxes if box.locator(".widget-slider, .widget-dropdown").count()]


def shown(box) -> str:
    """A hash of the picture that an explorer shows."""
    return hashlib.sha256(box.locator(SHOWN).get_attribute("src").encode()).hexdigest()


def sweep(box, control, put) -> None:
    """All choices of a control by keys, some by hand: `put(control, i, last)` makes the i-th."""
    menu, handle = control.locator("select"), control.locator(".noUi-handle")
    options = menu.locator("option").count()
    last = options - 1 if options else round(float(handle.get_attribute("aria-valuemax")))
    pictures = []
    for i in range(last + 1) if put is with_keys else sorted({0, last // 2, last}):
        put(control, i, last)
        state = (
            menu.evaluate("menu => menu.selectedIndex") if options else handle.get_attribute("aria-valuenow")
        )
        assert round(float(state)) == i, control.inner_text()
        pictures.append(shown(box))
    assert len(set(pictures)) > 1, f"{control.inner_text()}: always the same picture"


def with_mouse(control, i: int, last: int, tap: bool = False) -> None:
    """A click on a slider's track, or a tap a little above or below it, at a hand's pace.

    A menu opens a list of the system.
    """
    if control.locator("select").count():
        control.locator("select").select_option(index=i)
        return
    track = control.locator(".noUi-base")
    size = track.bounding_box()
    place = {"x": min(max(1, i / last * size["width"]), size["width"] - 1), "y": size["height"] / 2}
    if tap:
        place["y"] += 8 if i % 2 else -8  # a finger is not exact
    (track.tap if tap else track.click)(position=place, force=True)
    control.page.wait_for_timeout(400)  # two quick taps would be one double tap


def with_finger(control, i: int, last: int) -> None:
    with_mouse(control, i, last, tap=True)


def with_keys(control, i: int, last: int) -> None:
    control.locator("select, .noUi-handle").focus()
    down = "ArrowDown" if control.locator("select").count() else "ArrowRight"
    control.page.keyboard.press("Home" if i == 0 else down)


def try_all(visit: "Visit", put) -> None:
    boxes = explorers(visit.page)
    assert bool(boxes) == (visit.name in WITH_EXPLORERS)
    for box in boxes:
        for control in box.locator(".widget-slider, .widget-dropdown").all():
            sweep(box, control, put)
    assert not visit.wrong


@built
@pytest.mark.parametrize("put", [with_mouse, with_keys])
def test_every_control_changes_the_picture(visit, put):
    visit.page.set_viewport_size({"width": 1280, "height": 800})
    try_all(visit, put)


@built
@pytest.mark.parametrize("page", WITH_EXPLORERS)
def test_controls_work_by_touch_on_a_phone(chromium, site, page):
    visit = Visit(chromium, site, page, has_touch=True, is_mobile=True, viewport=PHONE)
    try_all(visit, with_finger)
    visit.context.close()


@built
def test_quick_taps_on_a_slider_all_count(chromium, site):
    visit = Visit(chromium, site, "index.html", has_touch=True, is_mobile=True, viewport=PHONE)
    track = visit.page.locator(".noUi-target").first
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    stood = []
    for share in (0.98, 0.02, 0.98, 0.02):
        visit.page.touchscreen.tap(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        stood.append(visit.page.evaluate(STANDS))
    last = round(float(visit.page.locator(".noUi-handle").first.get_attribute("aria-valuemax")))
    assert stood == [last, 0, last, 0]
    visit.context.close()


@pytest.fixture
def home(chromium, site) -> Iterator[Visit]:
    visit = Visit(chromium, site, "index.html")
    yield visit
    assert not visit.wrong
    visit.context.close()


@built
def test_the_first_page_says_and_shows_above_the_fold_what_it_is(home):
    pair = home.page.locator(".bd-article img").first.bounding_box()
    assert pair["y"] + pair["height"] <= 800
    live = home.page.locator(".bd-article a[href='live/index.html']")
    assert live.is_visible() and (HTML / "live" / "index.html").exists()


@built
def test_the_explorer_of_the_first_page_moves_by_itself(chromium, site):
    visit = Visit(chromium, site, "index.html", reduced_motion="no-preference")
    (box,) = explorers(visit.page)
    last = round(float(box.locator(".noUi-handle").get_attribute("aria-valuemax")))
    visit.page.wait_for_function(f"{STANDS} == {last}")
    assert not visit.wrong
    visit.context.close()


@built
def test_nothing_moves_for_readers_who_want_no_motion(home):
    (box,) = explorers(home.page)
    seen = shown(box)
    home.page.wait_for_timeout(2000)
    assert home.page.evaluate(STANDS) == 0 and shown(box) == seen
    box.locator(".widget-play button").first.click()
    home.page.wait_for_function(f"{STANDS} > 0")
    assert shown(box) != seen


@built
def test_keyboard_alone_reaches_every_control(home):
    """Tab from the top of the page to the menu, the slider and the player; each changes the picture."""
    (box,) = explorers(home.page)
    keyboard, seen, reached = home.page.keyboard, shown(box), []
    for _ in range(80):
        keyboard.press("Tab")
        inside = "document.activeElement.closest('.widget-dropdown, .widget-slider, .widget-play')"
        kind = home.page.evaluate(f"{inside} && document.activeElement.tagName")
        if kind and kind not in reached:
            reached.append(kind)
            outline = home.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"no visible focus on {kind}"
            keyboard.press({"SELECT": "ArrowDown", "DIV": "ArrowRight", "BUTTON": "Enter"}[kind])
            if kind == "BUTTON":
                home.page.wait_for_function(f"{STANDS} > 1")
            assert shown(box) != seen, kind
            seen = shown(box)
    assert reached == ["SELECT", "DIV", "BUTTON"]


@built
@pytest.mark.parametrize("page", WITH_EXPLORERS)
def test_a_still_where_there_is_no_javascript(chromium, site, page):
    visit = Visit(chromium, site, page, java_script_enabled=False)
    widgets = (HTML / page).read_text(encoding="utf-8").count("application/vnd.jupyter.widget-view+json")
    stills = visit.page.locator(SHOWN)
    assert stills.count() == widgets >= 1
    assert all(still.get_attribute("alt") for still in stills.all())
    visit.context.close()


# --- looks and search ----------------------------------------------------------------------------------


def brightness(page, selector: str, what: str) -> float:
    """Of a computed colour: 0 is black, 255 white."""
    colour = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{what}")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


@built
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_follows_the_system_and_a_button(chromium, site, theme):
    visit = Visit(chromium, site, "index.html", color_scheme=theme)

    def is_dark() -> bool:
        return brightness(visit.page, "body", "backgroundColor") < 60

    assert is_dark() == (theme == "dark")
    for part in (".bd-article .widget-label", ".bd-article .widget-readout", ".bd-article figcaption", "h1"):
        assert (brightness(visit.page, part, "color") > 128) == (theme == "dark"), part
    looks = set()
    for _ in range(3):
        visit.page.locator(".theme-switch-button:visible").first.click()
        visit.page.wait_for_timeout(300)
        looks.add(is_dark())
    assert looks == {True, False} and not visit.wrong
    visit.context.close()


@built
def test_search_finds_a_word(home):
    home.page.keyboard.press("Control+k")
    home.page.locator("input[type=search]:visible").fill("residual")
    home.page.keyboard.press("Enter")
    home.page.wait_for_url("**/search.html?q=residual*")
    found = home.page.locator("ul.search li a")
    found.first.wait_for()
    assert any("04_patch_residuals" in a.get_attribute("href") for a in found.all())
    found.first.click()
    home.page.wait_for_load_state()
    assert "residual" in home.page.locator("article").inner_text().lower()


@built
@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ("install", "index.html"),
        ("how many normal images", "faq.html"),
        ("threshold", "faq.html"),
        ("own photos", "faq.html"),
        ("license", "faq.html"),
    ],
)
def test_search_finds_what_people_ask_for_among_its_first_three(chromium, site, asked, page):
    visit = Visit(chromium, site, f"search.html?q={asked.replace(' ', '+')}")
    visit.page.locator("ul.search li a").first.wait_for()
    first = [a.get_attribute("href") for a in visit.page.locator("ul.search li a").all()[:3]]
    assert any(link.split("#")[0] == page and "#" in link for link in first), first
    said = " ".join(visit.page.locator("ul.search p.context").all_inner_texts())
    assert said and "On Colab" not in said and "Ctrl" not in said
    visit.context.close()


@built
@pytest.mark.parametrize("width", [390, 1280])
def test_code_is_not_cut(visit, width):
    visit.page.set_viewport_size({"width": width, "height": 800})
    cut = "boxes => boxes.filter(box => box.scrollWidth > box.clientWidth + 1).map(box => box.innerText)"
    assert visit.page.locator(".bd-article .highlight pre").evaluate_all(cut) == []


@built
def test_formulas_fit_a_phone(visit):
    visit.page.set_viewport_size(PHONE)
    wide = """boxes => boxes.filter(box => {
        const formula = box.querySelector('mjx-math').getBoundingClientRect();
        return formula.width > box.clientWidth + 1;
    }).map(box => box.textContent)"""
    assert visit.page.locator(".bd-article div.math").evaluate_all(wide) == []


@built
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_results_page_on_a_phone(chromium, site, theme):
    visit = Visit(chromium, site, "results.html", viewport=PHONE, color_scheme=theme)
    page = visit.page
    assert page.locator("details:not([open]) table").count() == page.locator("article table").count() > 0
    page.evaluate("document.querySelectorAll('details').forEach(box => box.open = true)")
    for picture in page.locator("picture img:visible").all():
        picture.scroll_into_view_if_needed()
        picture.evaluate("image => image.decode()")
        assert picture.evaluate("image => image.currentSrc").endswith("-phone.png")
    reachable = """tables => tables.every(table => {
        const box = table.closest('.pst-scrollable-table-container'), style = getComputedStyle(box);
        return box.scrollWidth <= box.clientWidth + 1 || style.overflowX === 'auto';
    })"""
    assert page.locator("article table:visible").evaluate_all(reachable)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert not visit.wrong
    visit.context.close()


@built
def test_a_lesson_has_its_short_version_and_an_edit_link(chromium, site, pages):
    visit = Visit(chromium, site, "notebooks/04_patch_residuals.html")
    said = visit.page.locator("h1 ~ .short-version").first.inner_text()
    assert pages.lessons()["04_patch_residuals"] in said
    links = [a.get_attribute("href") for a in visit.page.locator("a[href*='/edit/main/']").all()]
    assert set(links) == {f"{pages.repository()}/edit/main/notebooks/04_patch_residuals.ipynb"}
    visit.context.close()


@built
def test_a_phone_has_the_contents_in_a_drawer(chromium, site):
    visit = Visit(chromium, site, "index.html", viewport=PHONE, has_touch=True)
    entry = visit.page.locator(".bd-sidebar-primary a", has_text="Tour").or_(
        visit.page.locator(".bd-sidebar-primary a[href='notebooks/00_tour.html']")
    )
    assert not entry.first.is_visible()
    visit.page.locator(".primary-toggle:visible").tap()
    entry.first.tap()
    visit.page.wait_for_url("**/notebooks/00_tour.html")
    assert not visit.wrong
    visit.context.close()
