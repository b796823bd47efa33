"""The course as a student meets it: a real JupyterLab (and Notebook 7) in a headless browser.

Takes minutes, so only on request: INCTRL_LITE_BROWSER=1 for the notebooks that have every kind of widget,
INCTRL_LITE_BROWSER=all for all notebooks. Screenshots lie in pytest's temporary folders.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, ImageOps

FOLDER = Path(__file__).parent.parent / "notebooks"
WISH = os.environ.get("INCTRL_LITE_BROWSER", "")
if not WISH:
    pytest.skip("minutes in a browser: set INCTRL_LITE_BROWSER=1 (or =all)", allow_module_level=True)
for package in ("playwright", "jupyterlab"):
    if not find_spec(package):
        pytest.skip(f'needs {package}: pip install -e ".[browser]"', allow_module_level=True)

from playwright.sync_api import Locator, Page, expect, sync_playwright  # noqa: E402

ALL = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
CHOSEN = [name for name in ALL if WISH == "all" or name[:2] in ("04", "07", "12", "P0")]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "msedge")
PATIENCE = 60_000  # milliseconds, for a machine that is busy
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --no-first-run".split()
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def chromium():
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if not path:
            pytest.skip("needs Chromium: `playwright install chromium`, or one on the PATH")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address and token of a Jupyter server with a copy of the notebooks and none of the user's settings."""
    root = tmp_path_factory.mktemp("server")
    shutil.copytree(FOLDER, root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    page = root / "config" / "labconfig" / "page_config.json"
    page.parent.mkdir(parents=True)
    page.write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"IPYTHONDIR": "ipython"}
    environment = {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"}
    environment |= {k: str(root / v) for k, v in places.items()} | {"JUPYTER_PREFER_ENV_PATH": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    options = [
        f"--port={port}",
        "--ip=127.0.0.1",
        "--ServerApp.port_retries=0",
        "--allow-root",
        "--no-browser",
    ]
    options += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={root / 'notebooks'}"]
    options += ["--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True"]
    command = [sys.executable, "-m", "jupyterlab", *options, "--LabApp.extension_manager=readonly"]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"{url}/api/status?token={token}", process, root / "log")
        yield url, token
    finally:
        process.terminate()
        process.wait(20)


def wait_for(address: str, process: subprocess.Popen, log: Path, seconds: int = 180) -> None:
    """Until the server answers; its log if it does not."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.25)


@pytest.fixture
def page(chromium, server):
    """A page that can reach the server and nothing else; it must not even try."""
    url, _ = server
    allowed = (url, url.replace("http", "ws"), "data:", "blob:")
    outside = []

    def guard(route):
        if route.request.url.startswith(allowed):
            return route.continue_()
        outside.append(route.request.url)
        route.abort()

    with chromium.new_context(viewport={"width": 1300, "height": 1100}) as context:
        context.route("**/*", guard)
        page = context.new_page()
        page.on("websocket", lambda s: None if s.url.startswith(allowed) else outside.append(s.url))
        yield page
        page.evaluate("globalThis.jupyterapp?.shell.currentWidget?.sessionContext.shutdown()")
    assert not outside


# --- what a student does -----------------------------------------------------------------------------

READY = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CELLS = "jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"
SCROLL = "i => jupyterapp.shell.currentWidget.content.scrollToItem(i, 'start')"
WIDGET = "application/vnd.jupyter.widget-view+json"


def run_all(page: Page, address: str) -> list[int]:
    """Open a notebook and run all its cells, without an error; which cells show widgets."""
    page.goto(address)
    page.wait_for_function(READY, timeout=PATIENCE)
    assert page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    outputs = [cell.get("outputs", []) for cell in page.evaluate(CELLS)]
    for output in (one for of_cell in outputs for one in of_cell):
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
    assert sum(map(bool, outputs)) > 10  # it did run
    return [i for i, of_cell in enumerate(outputs) if any(WIDGET in one.get("data", {}) for one in of_cell)]


def outputs_of(page: Page, index: int) -> Locator:
    """The output area of a cell, scrolled into view (others may not even be in the page)."""
    page.evaluate(SCROLL, index)
    area = page.locator(f'[data-windowed-list-index="{index}"] .jp-Cell-outputArea')
    expect(area.locator("img:visible")).to_have_count(1)
    area.scroll_into_view_if_needed()
    return area


def shown(area: Locator) -> str:
    """Hash of the one picture that can be seen."""
    picture = area.locator("img:visible")
    expect(picture).to_have_count(1)
    return hashlib.sha256(picture.get_attribute("src").encode()).hexdigest()


def changes(area: Locator, action) -> None:
    """Do something; the picture must become another one."""
    before, end = shown(area), time.monotonic() + PATIENCE / 1000
    action()
    while shown(area) == before:
        assert time.monotonic() < end, "the picture stays the same"
        time.sleep(0.05)


def drag(handle: Locator, pixels: int) -> None:
    box = handle.bounding_box()
    x, y, mouse = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, handle.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + pixels, y, steps=5)
    mouse.up()


def press(control: Locator, key: str) -> None:
    control.focus()
    control.press(key)


def move_every_control(area: Locator, key: str) -> int:
    """Every slider by mouse (to an end) and back by keys, every menu; how many pictures were seen change."""
    moved = 0
    for slider in area.locator(".widget-slider").all():
        handle = slider.locator(".noUi-handle")
        changes(area, lambda h=handle: drag(h, -400))
        changes(area, lambda h=handle: drag(h, 400))
        changes(area, lambda h=handle: press(h, key))
        moved += 1
    for menu in area.locator("select").all():
        last = menu.locator("option").count() - 1
        changes(area, lambda m=menu, i=last: m.select_option(index=i))
        changes(area, lambda m=menu: press(m, "Home"))  # up and down go from cell to cell
        moved += 1
    for play in area.locator(".jupyter-widgets.widget-play").all():
        changes(area, lambda p=play: p.locator("button").first.click())
        play.locator("button").first.click()
        moved += 1
    return moved


def train_on(area: Locator) -> None:
    button = area.locator("button.widget-button")
    before = int(re.search(r"After (\d+) steps", area.inner_text())[1])
    steps = int(re.search(r"(\d+) more steps", button.inner_text())[1])
    changes(area, button.click)
    expect(area).to_contain_text(f"After {before + steps} steps", timeout=PATIENCE)
    expect(button).to_be_enabled()


def upload(area: Locator, folder: Path) -> None:
    """A picture of one's own and a file that is none: a verdict, and a message."""
    picture, text = folder / "mine.png", folder / "notes.png"
    drawn = Image.radial_gradient("L").resize((480, 360))
    ImageOps.colorize(drawn, "khaki", "midnightblue").save(picture)
    text.write_text("no picture")

    def choose():
        with area.page.expect_file_chooser() as chooser:
            area.locator("button.widget-upload").click()
        chooser.value.set_files([picture, text])

    changes(area, choose)
    expect(area).to_contain_text(re.compile(r"mine\.png: score \d\.\d{3}, (not )?above the threshold"))
    expect(area).to_contain_text("notes.png: not an image that can be read")


def answer_the_quiz(page: Page, picture: Path) -> None:
    """Open an option by keyboard: it says why; formulas are typeset, and nothing raw is left.

    A lesson's quiz is the output of a cell; the self-test of the on-ramp is a part of its text.
    """
    sources = ["".join(cell["source"]) for cell in page.evaluate(CELLS)]
    mark = "quiz.show(" if any("quiz.show(" in source for source in sources) else "<blockquote>\n<details>"
    index = next(i for i, source in enumerate(sources) if mark in source)
    page.evaluate(SCROLL, index)
    cell = page.locator(f'[data-windowed-list-index="{index}"]')
    quiz = cell.locator(".inctrl-quiz" if "quiz" in mark else ".jp-MarkdownOutput")
    option = quiz.locator("details").first
    assert not option.evaluate("one => one.open")
    press(option.locator("summary"), "Enter")
    assert option.evaluate("one => one.open")
    expect(option).to_contain_text(re.compile(r"Right\.|Not quite\.|No\."))
    if "quiz" in mark:
        expect(quiz.locator("mjx-container")).to_have_count(quiz.locator(".math").count())
    expect(quiz).not_to_contain_text("\\(")
    page.screenshot(path=picture)


def use_every_widget(page: Page, cells: list[int], folder: Path, key: str) -> None:
    """Without an error in the page (those of the applications' own start are not ours)."""
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for index in cells:
        area = outputs_of(page, index)
        page.screenshot(path=folder / f"cell-{index}-before.png")
        if area.locator("button.widget-upload").count():
            upload(area, folder)
        elif area.locator("button.widget-button").count():
            train_on(area)
        else:
            assert move_every_control(area, key)
        page.screenshot(path=folder / f"cell-{index}-after.png")
    assert not errors


@pytest.mark.parametrize("name", CHOSEN)
def test_in_jupyterlab(page, server, name, tmp_path):
    url, token = server
    cells = run_all(page, f"{url}/lab/tree/{name}.ipynb?token={token}&reset")
    assert cells
    use_every_widget(page, cells, tmp_path, key="ArrowLeft")
    answer_the_quiz(page, tmp_path / "quiz.png")


@pytest.mark.skipif(not find_spec("notebook"), reason='needs notebook: pip install -e ".[browser]"')
@pytest.mark.parametrize("name", CHOSEN)
def test_in_notebook_7(page, server, name, tmp_path):
    url, token = server
    cells = run_all(page, f"{url}/notebooks/{name}.ipynb?token={token}")
    use_every_widget(page, cells, tmp_path, key="Home")  # arrows go from cell to cell there
    answer_the_quiz(page, tmp_path / "quiz.png")
