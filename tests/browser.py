"""A machine's own Chromium and a server on the loopback interface, for tests of pages."""

import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AXE = Path(__file__).parents[1] / "book" / "vendor" / "axe.min.js"  # fetched with the pages' own scripts


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a folder that is served while the context is open."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def chromium(*more: str) -> Iterator:
    """The machine's browser, or Playwright's own; it reaches nothing but the loopback interface.

    Args:
        more: further options of its command line.
    """
    if not AXE.exists():
        pytest.skip("without npm the site's pages load scripts from other hosts: python book/vendor.py")
    api = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install -e ".[browser]"')
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    machines = next(filter(None, map(shutil.which, names)), None)
    flags = "--no-sandbox --disable-gpu --disable-background-networking --no-first-run"
    flags += " --disable-component-update --disable-sync"
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with api.sync_playwright() as playwright:
        if not machines and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=machines, args=[*flags.split(), nowhere, *more])
        yield browser
        browser.close()
