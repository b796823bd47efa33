"""Reports: one HTML file without scripts or external files, for light and dark screens.

A report consists of sections with text, tables, figures and cards. A card shows a picture beside its residual
map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from inctrl_lite.files import write_text
from inctrl_lite.viz import ANOMALY_LABEL, MAP_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inctrl_lite.prediction import Prediction

THUMBNAIL = 160  # pixels of the longer side
MAP_NOTE = (
    "The coloured picture shows, patch by patch, how strange the query looks beside the normal images. It does "
    "not outline defects exactly: read the map as a hint."
)


@dataclass(frozen=True)
class Card:
    """A picture with its overlay and lines of text. `mark` chooses the frame: "good", "bad" or "" (none)."""

    title: str
    picture: Image.Image
    overlay: Image.Image | None = None
    lines: Sequence[str] = ()
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table. Numbers are aligned to the right. If no column has a name, the table has no header."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Section:
    """A heading, followed by text, a table, cards and a figure, in this order; each may be missing."""

    title: str
    text: str = ""
    table: Table | None = None
    cards: Sequence[Card] = field(default_factory=tuple)
    figure: Figure | None = None


def prediction_card(
    prediction: Prediction, lines: Iterable[str] = (), mark: str = "", title: str | None = None
) -> Card:
    """The card of a prediction, with the colour scale of its category."""
    image = prediction.image()
    return Card(
        title=title or prediction.name,
        picture=image,
        overlay=prediction.overlay(),
        lines=[f"score {prediction.score:.3f}", *lines],
        mark=mark,
    )


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the report and return its path. The file is written completely or not at all.

    Raises:
        InctrlError: the file cannot be written, or the disk is full.
    """
    body = "\n".join(_section(section) for section in sections)
    legend = _legend() if any(section.cards for section in sections) else ""
    return write_text(path, _PAGE.format(title=escape(title), lead=escape(lead), body=body, legend=legend))


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table is not None:
        parts.append(_table(section.table))
    if section.cards:
        parts.append('<div class="cards">' + "".join(map(_card, section.cards)) + "</div>")
    if section.figure is not None:
        parts.append(_plot(section.figure, section.title))
    return "".join(parts) + "</section>"


def _table(table: Table) -> str:
    names = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in table.columns)
    head = f"<thead><tr>{names}</tr></thead>" if any(table.columns) else ""
    rows = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in table.rows)
    kind = "" if head else ' class="facts"'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table{kind}>{head}<tbody>{rows}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.3f}</td>' if np.isfinite(value) else "<td>-</td>"
    number = ' class="number"' if isinstance(value, int) and not isinstance(value, bool) else ""
    return f"<td{number}>{escape(str(value))}</td>"


def _card(card: Card) -> str:
    pictures = _picture(card.picture, f"picture of {card.title}")
    if card.overlay is not None:
        pictures += _picture(card.overlay, f"anomaly map over {card.title}")
    lines = "".join(f"<br>{escape(line)}" for line in card.lines)
    return (
        f'<figure class="{escape(card.mark)}"><div class="pair">{pictures}</div>'
        f"<figcaption><b>{escape(card.title)}</b>{lines}</figcaption></figure>"
    )


def _picture(image: Image.Image, alternative: str) -> str:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(alternative)}" width="{small.width}" height="{small.height}">'


def _plot(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img class="plot" src="data:image/png;base64,{data}" alt="{escape(alternative)}">'


def _legend() -> str:
    """The colour scale, as an image and its label."""
    import matplotlib

    ramp = matplotlib.colormaps[MAP_COLOURS](np.linspace(0, 1, 128))[None, :, :3]
    bar = Image.fromarray(np.round(255 * np.repeat(ramp, 12, 0)).astype(np.uint8))
    label = f"{ANOMALY_LABEL}: dark as between normal images, bright 8 standard deviations above"
    return f'<p class="legend">{_picture(bar, "colour scale from dark to bright")} {escape(label)}</p>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ink: #1d2430; --soft: #5b6472; --paper: #ffffff; --card: #f4f6f9; --line: #d9dee6; --good: #1b7f8c; --bad: #b4540a; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e7eaf0; --soft: #a3acba; --paper: #14181f; --card: #1f252f; --line: #343c49; --good: #4fc3d0; --bad: #f0a057; }}
}}
body {{ font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 2rem 1.25rem 4rem; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.4rem 0 .5rem; }}
p {{ max-width: 46rem; margin: .4rem 0; }}
.lead, .legend {{ color: var(--soft); }}
.legend img {{ vertical-align: middle; border-radius: 3px; margin-right: .4rem; }}
.scroll {{ overflow-x: auto; }}
.plot {{ max-width: 100%; background: #ffffff; border-radius: 8px; }}
table {{ border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }}
.facts td {{ white-space: normal; }}
@media print {{ th, td {{ white-space: normal; }} figure {{ break-inside: avoid; }} }}
th {{ color: var(--soft); font-weight: 600; }}
td.number {{ text-align: right; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem; margin-top: .8rem; }}
figure {{ margin: 0; padding: .6rem; background: var(--card); border: 2px solid transparent; border-radius: 8px; }}
figure.good {{ border-color: var(--good); }}
figure.bad {{ border-color: var(--bad); }}
.pair {{ display: flex; gap: .4rem; }}
.pair img {{ flex: 1 1 0; min-width: 0; width: 100%; max-width: calc(50% - .2rem); height: auto; object-fit: contain; border-radius: 4px; }}
figcaption {{ font-size: .85rem; color: var(--soft); margin-top: .4rem; overflow-wrap: anywhere; }}
figcaption b {{ color: var(--ink); font-weight: 600; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{legend}
{body}
</main>
</body>
</html>
"""
