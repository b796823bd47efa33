"""Explorers: every choice shows its own picture, joined in the browser."""

import base64
import re
from io import BytesIO

import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from inctrl_lite.widgets import MAX_FRAMES, explorer, frame, png


def square(K: int, kind: str):
    return Image.new("RGB", (K, K), (10 * K, 0, 0)), f"{kind} of {K} <pixels>"


def leaves(widget: ipywidgets.Widget, chosen: list[int]) -> ipywidgets.HTML:
    """What is shown when the controls stand at these indices."""
    for index in chosen:
        widget = widget.children[index]
    return widget


def picture(html: ipywidgets.HTML) -> Image.Image:
    data = re.search(r"base64,([^\"]+)", html.value)[1]
    return Image.open(BytesIO(base64.b64decode(data)))


def test_every_choice_has_its_picture_and_caption():
    box = explorer(square, K=(2, 4, 8), kind=("square", "box"))
    (slider, menu), stack = box.children[0].children, box.children[1]
    assert isinstance(slider, ipywidgets.SelectionSlider) and isinstance(menu, ipywidgets.Dropdown)
    for i, K in enumerate((2, 4, 8)):
        for j, kind in enumerate(("square", "box")):
            shown = leaves(stack, [i, j])
            assert picture(shown).size == (K, K)
            assert shown.value.count(f"{kind} of {K} &lt;pixels&gt;") == 2  # alternative text and caption


def test_controls_are_joined_in_the_browser(monkeypatch):
    made = []
    original = ipywidgets.jslink
    monkeypatch.setattr(ipywidgets, "jslink", lambda *pair: made.append(original(*pair)))
    box = explorer(square, K=(2, 4), kind=("square", "box"))
    slider, menu = box.children[0].children
    outer = box.children[1]
    joined = {(*link.source, *link.target) for link in made}
    assert (slider, "index", outer, "selected_index") in joined
    assert all((menu, "index", inner, "selected_index") in joined for inner in outer.children)


def test_only_the_chosen_one_is_shown_at_first():
    controls, stack = explorer(square, K=(2, 4, 8), kind=("square", "box")).children
    assert [control.index for control in controls.children] == [1, 0]  # numbers start in the middle
    assert stack.selected_index == 1 and stack.children[1].selected_index == 0


@pytest.mark.parametrize("choices", [{}, {"K": ()}, {"K": range(MAX_FRAMES + 1), "kind": ("x",)}])
def test_too_much_or_nothing(choices):
    with pytest.raises(ValueError, match="combinations"):
        explorer(square, **choices)


def test_pictures_are_small_and_keep_their_looks():
    figure = Figure(figsize=(4, 3), layout="constrained")
    figure.subplots().imshow(np.random.default_rng(0).random((15, 15)), cmap="inferno")
    data = png(figure)
    assert len(data) < 20_000
    assert Image.open(BytesIO(data)).mode == "P"
    grey = np.full((8, 8, 3), 77, np.uint8)
    assert (
        np.asarray(Image.open(BytesIO(png(Image.fromarray(grey)))).convert("RGB")).tolist() == grey.tolist()
    )
    assert 'alt="a caption"' in frame(figure, "a caption").value
