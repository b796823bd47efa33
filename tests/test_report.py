"""The report: one file that needs nothing else, says what it was told, and trusts no file name."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from inctrl_lite.errors import InctrlError
from inctrl_lite.prediction import Prediction
from inctrl_lite.report import THUMBNAIL, Card, Section, Table, prediction_card, write_report
from inctrl_lite.view import WHOLE, View
from inctrl_lite.viz import overlay

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The page's elements and text; complains of tags that do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(element: dict) -> Image.Image:
    kind, data = element["src"].split(",", 1)
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@pytest.fixture
def written(tmp_path):
    """Write a report and read it back: (page, its text)."""

    def write(sections, title="Scores", lead="Three images."):
        path = write_report(tmp_path / "report.html", title, lead, sections)
        text = path.read_text(encoding="utf-8")
        return Page(text), text

    return write


SECTIONS = [
    Section("Numbers", "What was measured.", Table(("world", "AUROC", "n"), [("solar", 0.66049, 12)])),
    Section("Pictures", cards=[Card("a.png", picture(), picture(), ["score 0.5", "crack"], "bad")]),
    Section("Prompts", cards=[Card("b.png", picture())]),
]


def test_everything_that_was_said_is_there_in_order(written):
    page, _ = written(SECTIONS)
    said = ["Scores", "Three images.", "Numbers", "What was measured.", "world", "AUROC", "n"]
    said += ["solar", "0.660", "12", "Pictures", "a.png", "score 0.5", "crack", "Prompts", "b.png"]
    places = [page.words.index(word) for word in said[1:]]
    assert places == sorted(places)
    assert page.words[0] == "Scores"  # the tab's title; the heading comes again


def test_nothing_is_fetched_and_nothing_runs(written):
    page, text = written(SECTIONS)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    addresses = [v for _, attributes in page.elements for k, v in attributes.items() if k in ("src", "href")]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"https?:|url\(|@import", text)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_it_reads_well_for_eyes_phones_and_screen_readers(written):
    page, text = written(SECTIONS)
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text
    alternatives = [image["alt"] for image in page.all("img")]
    assert alternatives == [
        "colour scale from dark to bright",
        "picture of a.png",
        "anomaly map over a.png",
        "picture of b.png",
    ]
    assert {cell["scope"] for cell in page.all("th")} == {"col"}
    assert len(page.all("h1")) == 1 and len(page.all("h2")) == 3


def test_pictures_are_small_and_the_right_ones(written):
    red = Image.new("RGBA", (3000, 1500), (255, 0, 0, 255))
    page, text = written([Section("s", cards=[Card("wide", red, Image.new("RGB", (9, 5000), "blue"))])])
    _, first, second = map(decoded, page.all("img"))
    assert first.size == (THUMBNAIL, THUMBNAIL // 2) and max(second.size) == THUMBNAIL
    assert np.abs(np.subtract(first.getpixel((80, 40)), (255, 0, 0))).max() < 5
    assert np.abs(np.subtract(second.getpixel((0, 80)), (0, 0, 255))).max() < 5
    assert page.all("img")[1]["width"] == "160" and page.all("img")[1]["height"] == "80"
    assert red.size == (3000, 1500)  # the caller's picture is left as it was
    assert len(text) < 20_000


def test_a_card_costs_a_few_kilobytes_so_that_200_can_be_mailed(written):
    _, one = written([Section("s", cards=[Card("a", picture(640, 480), picture(640, 480))])])
    _, two = written([Section("s", cards=[Card("a", picture(640, 480), picture(640, 480))] * 2)])
    assert len(two) - len(one) < 50_000  # noise, which JPEG packs worst


EVIL = '<script>alert("1")</script>&.png'


def test_names_are_text_wherever_they_stand(written):
    everywhere = Section(EVIL, EVIL, Table((EVIL,), [(EVIL,)]), [Card(EVIL, picture(), None, [EVIL], EVIL)])
    page, _ = written([everywhere], title=EVIL, lead=EVIL)
    assert not page.all("script")
    assert page.words.count(EVIL) == 9  # title, heading, lead; section, text, column, cell; card, line
    assert page.all("img")[1]["alt"] == f"picture of {EVIL}"
    assert page.all("figure") == [{"class": EVIL}]


def test_braces_in_names_are_no_placeholders(written):
    page, _ = written([Section("{title}")], title="{body} {0}", lead="{lead}")
    assert {"{body} {0}", "{lead}", "{title}"} <= set(page.words)


def test_a_name_that_is_not_utf8_does_not_lose_the_report(written):
    page, _ = written([Section("s", table=Table(("file",), [(os.fsdecode(b"a\xff.png"),)]))])
    assert r"a\udcff.png" in page.words


def test_cells(written):
    row = (0.12345, float("nan"), float("inf"), 7, True, None, "x")
    page, text = written([Section("s", table=Table("abcdefg", [row]))])
    assert page.words[-7:] == ["0.123", "-", "-", "7", "True", "None", "x"]
    assert text.count('<td class="number">') == 2  # the two numbers stand right


def test_a_table_without_column_names_has_no_empty_head(written):
    page, _ = written([Section("s", table=Table(("", ""), [("seed", "0")]))])
    assert not page.all("th") and len(page.all("td")) == 2


def test_a_predictions_card_is_on_its_categorys_scale():
    image, patch_map = picture(), np.array([[0.1, 0.2], [0.3, 0.1]])
    prediction = Prediction(
        image, "sub/a.png", "bottle", 0.51239, {}, patch_map, View(WHOLE), b"", (0.1, 0.3)
    )
    card = prediction_card(prediction, ["crack"], "bad")
    assert (card.title, list(card.lines), card.mark) == ("sub/a.png", ["score 0.512", "crack"], "bad")
    np.testing.assert_array_equal(np.asarray(card.picture), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(card.overlay), np.asarray(overlay(image, patch_map, (0.1, 0.3))))
    assert prediction_card(prediction, title="another").title == "another"


def test_the_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "new" / "report.html"
    write_report(target, "first", "", [])
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InctrlError, match=r"cannot write .*report\.html: No space left"):
        write_report(target, "second", "", [])
    assert [p.name for p in target.parent.iterdir()] == ["report.html"]
    assert "first" in target.read_text()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InctrlError, match=r"cannot write .*file.report\.html"):
        write_report(tmp_path / "file" / "report.html", "t", "", [])
