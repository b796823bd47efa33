"""Explorers: controls over finitely many choices, drawn in advance.

Everything an explorer can show is rendered once, and its controls are joined to the pictures inside the
browser (`jslink`). It therefore works with a kernel and without one: in JupyterLab and on the static site.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

import ipywidgets
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Picture = Figure | Image.Image

MAX_FRAMES = 96  # beyond this a page gets heavy: about 15 kB a frame


def explorer(render: Callable[..., tuple[Picture, str]], **choices: Sequence[Any]) -> ipywidgets.VBox:
    """One picture with a caption, and a control for everything it depends on.

    Args:
        render: called as `render(K=4, seed=0)` with every combination of the choices; returns a matplotlib
            Figure or a PIL image, and a caption, which is also its alternative text.
        choices: name and values of each control. Numbers get a slider, words a menu. Underscores in a name
            are shown as spaces.

    Returns:
        A widget: display it as the last expression of a cell.

    Raises:
        ValueError: no choices, or more combinations than a page should carry.
    """
    names, values = list(choices), [list(options) for options in choices.values()]
    count = len(list(product(*values))) if values else 0
    if not 1 <= count <= MAX_FRAMES:
        raise ValueError(f"{count} combinations of choices: an explorer takes 1 to {MAX_FRAMES}")
    controls = [_control(name, options) for name, options in zip(names, values, strict=True)]

    def build(chosen: tuple[Any, ...]) -> ipywidgets.Widget:
        """The pictures for what is chosen so far: a stack of stacks, one level a control."""
        level = len(chosen)
        if level == len(controls):
            return frame(*render(**dict(zip(names, chosen, strict=True))))
        stack = ipywidgets.Stack(
            [build((*chosen, option)) for option in values[level]],
            selected_index=controls[level].index,
            layout=ipywidgets.Layout(overflow="hidden"),
        )
        ipywidgets.jslink((controls[level], "index"), (stack, "selected_index"))
        return stack

    pictures = build(())
    return ipywidgets.VBox([ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}), pictures])


def _control(name: str, options: list[Any]) -> ipywidgets.Widget:
    """A slider for numbers, in its middle at first; a menu for words."""
    numbers = all(isinstance(option, int | float) and not isinstance(option, bool) for option in options)
    kind = ipywidgets.SelectionSlider if numbers else ipywidgets.Dropdown
    return kind(
        options=[(str(option), i) for i, option in enumerate(options)],
        index=len(options) // 2 if numbers else 0,
        description=name.replace("_", " "),
        style={"description_width": "initial"},
        layout=ipywidgets.Layout(min_width="16em", margin="0 1.5em 0 0"),
    )


def frame(picture: Picture, caption: str) -> ipywidgets.HTML:
    """A picture with its caption as a widget."""
    text = html.escape(caption)
    data = base64.b64encode(png(picture)).decode()
    return ipywidgets.HTML(
        f'<figure class="explorer-frame" style="margin:0.5em 0">'
        f'<img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%;height:auto">'
        f'<figcaption style="line-height:1.4">{text}</figcaption></figure>'
    )


def png(picture: Picture, dpi: int = 84) -> bytes:
    """A Figure or picture as a PNG of 256 colours, a third of the size of a full one."""
    if not isinstance(picture, Image.Image):
        buffer = BytesIO()
        picture.savefig(buffer, format="png", dpi=dpi)
        picture = Image.open(buffer)
    buffer = BytesIO()
    few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
