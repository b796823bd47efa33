"""A Sphinx extension: what every page says to search engines, to those who share it and to those who mend it.

It also puts the short version and the launch links below the title of a lesson. They are added to the
finished page, so that the site's search does not index them.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

BOOK = Path(__file__).resolve().parent
ROOT = BOOK.parent
CARD = "_static/results/card.png"
LONGEST = 160  # characters of a description that search engines show
MADE_FROM = {"index": "book/landing.md", "results": "book/results.py"}  # pages that nobody should edit

Context = dict[str, Any]


def setup(app: Any) -> dict[str, bool]:
    app.connect("html-page-context", add_to_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_to_page(app: Any, page: str, _template: str, context: Context, doctree: Any) -> None:
    """Called by Sphinx for every page; `doctree` is None for the search page and the like."""
    short = lessons().get(Path(page).name) if page.startswith("notebooks/") else None
    text = short or (first_paragraph(doctree) if doctree else "") or project()["description"]
    title = context.get("title") or project()["name"]
    context["metatags"] = context.get("metatags", "") + meta_tags(title, page, text)
    if page.startswith("api"):
        context["body"] = with_lines_of_signatures(context["body"])
    if short:
        body = below_title(context["body"], short, f"notebooks/{Path(page).name}.ipynb")
        files = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}
        context["body"] = with_late_pictures(body, files)
    context["get_edit_provider_and_url"] = lambda: ("GitHub", edit_address(page, context))


def meta_tags(title: str, page: str, text: str) -> str:
    """Description and social card."""
    title, text = re.sub(r"<[^>]+>", "", title), shortened(text)
    site = project()["urls"]["Documentation"]
    tags = [("name", "description", text), ("property", "og:type", "article")]
    tags += [("property", "og:site_name", project()["name"]), ("property", "og:title", html.unescape(title))]
    tags += [("property", "og:description", text), ("property", "og:url", f"{site}/{page}.html")]
    tags += [("property", "og:image", f"{site}/{CARD}"), ("name", "twitter:card", "summary_large_image")]
    return "".join(f'\n<meta {kind}="{name}" content="{html.escape(said)}" />' for kind, name, said in tags)


def first_paragraph(doctree: Any) -> str:
    """The first paragraph of a page, as plain text."""
    from docutils import nodes  # the tests of this file do without

    found = (node.astext() for node in doctree.findall(nodes.paragraph))
    return next((" ".join(text.split()) for text in found if len(text) > 20), "")


def shortened(text: str) -> str:
    """Whole sentences as far as they fit; else whole words."""
    if len(text) <= LONGEST:
        return text
    start = text[: LONGEST - 1]
    end = start.rfind(". ")
    return start[: end + 1] if end > LONGEST // 3 else start.rsplit(" ", 1)[0] + "…"


def below_title(body: str, short: str, path: str) -> str:
    """A page with a lesson's short version and launch links below its title."""
    links = " · ".join(f'<a href="{html.escape(v)}">{k}</a>' for k, v in launch_links(path).items())
    said = f"<strong>In short:</strong> {html.escape(short, quote=False)}"
    line = f"<code>{html.escape(install_line(), quote=False)}</code>"
    colab = f"<details><summary>On Colab, run this first</summary>{line}</details>"
    lines = f'<p class="short-version">{said}</p>\n<div class="launch">Open in {links}{colab}</div>'
    return body.replace("</h1>", f"</h1>\n{lines}", 1)


def with_late_pictures(body: str, files: dict[str, Path]) -> str:
    """Pictures that are loaded when they come into view. Their sizes keep the text below in its place."""

    def late(tag: re.Match[str]) -> str:
        with Image.open(files[tag[1]]) as picture:
            width, height = picture.size
        return f'{tag[0]} loading="lazy" width="{width}" height="{height}"'

    return re.sub(r'<img [^>]*src="[^"]*_images/([^"/]+\.(?:png|jpg))"', late, body)


def with_lines_of_signatures(body: str) -> str:
    """Signatures that have a line for each parameter, without lists of definitions that define nothing."""
    tags = {"<dl>": '<span class="sig-lines">', "<dd>": "<span>", "</dl>": "</span>", "</dd>": "</span>"}

    def replaced(signature: re.Match[str]) -> str:
        return re.sub(r"</?d[ld]>", lambda tag: tags[tag[0]], signature[0])

    return re.sub(r'<dt class="sig .*?</dt>', replaced, body, flags=re.S)


@lru_cache(maxsize=1)
def lessons() -> dict[str, str]:
    """The short version of each lesson."""
    return yaml.safe_load((BOOK / "lessons.yml").read_text(encoding="utf-8"))


def edit_address(page: str, context: Context) -> str:
    """Where the source of a page can be edited."""
    file = page + (context.get("page_source_suffix") or ".md")
    path = file if page.startswith("notebooks/") else MADE_FROM.get(page, f"book/{file}")
    return f"{repository()}/edit/main/{path}"


# --- the repository ------------------------------------------------------------------------------------


def project() -> dict:
    """What pyproject.toml says of the package."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def repository() -> str:
    """The address of the sources."""
    return project()["urls"]["Homepage"]


@lru_cache(maxsize=1)
def revision() -> str:
    """What the site is built from: the tag of a release, else the commit; without git, the version's tag."""
    for question in (["describe", "--exact-match", "--tags"], ["rev-parse", "HEAD"]):
        if not shutil.which("git"):
            break
        answer = subprocess.run(["git", *question], cwd=ROOT, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return f"v{project()['version']}"


def launch_links(path: str) -> dict[str, str]:
    """Where a file of the repository can be run or read, as this site shows it: label -> address."""
    name, at = repository().removeprefix("https://github.com/"), revision()
    return {
        "Colab": f"https://colab.research.google.com/github/{name}/blob/{at}/{path}",
        "Binder": f"https://mybinder.org/v2/gh/{name}/{at}?urlpath=lab/tree/{path}",
        "GitHub": f"{repository()}/blob/{at}/{path}",
    }


def install_line() -> str:
    """How Colab installs the package as of this site."""
    return f'%pip install "inctrl-lite[course] @ git+{repository()}@{revision()}"'
