"""Explorers: every choice shows its own picture, joined in the browser."""

import base64
import re
from datetime import UTC, datetime
from io import BytesIO
from itertools import count

import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from inctrl_lite.detector import AnomalyDetector
from inctrl_lite.widgets import MAX_FRAMES, explorer, frame, live_training, png, upload


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


# --- uploads -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> AnomalyDetector:
    rng = np.random.default_rng(0)
    normals = [rng.integers(100, 156, (64, 64, 3), np.uint8) for _ in range(3)]
    return AnomalyDetector.from_pretrained("tiny", device="cpu").fit(normals, category="noise")


@pytest.fixture
def box(detector) -> ipywidgets.VBox:
    return upload(detector, Image.new("RGB", (64, 64), "red"))


def as_png(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def send(box: ipywidgets.VBox, **files: bytes) -> list[str]:
    """What the box shows after an upload, as the browser would make it."""
    box.children[0].children[0].value = tuple(
        {"name": f"{name}.png", "type": "image/png", "size": len(content), "content": memoryview(content)}
        | {"last_modified": datetime.now(UTC)}
        for name, content in files.items()
    )
    return [html.value for html in box.children[1].children]


def test_an_example_stands_there_before_the_first_upload(box, detector):
    note, example = (html.value for html in box.children[1].children)
    score = detector.predict(Image.new("RGB", (64, 64), "red"))[0].score
    assert "running kernel" in note
    assert f"the example: score {score:.3f}" in example and "data:image/png;base64," in example


def test_uploaded_pictures_get_a_verdict_each(box, detector):
    black, grey = np.zeros((48, 80, 3), np.uint8), np.full((64, 64), 128, np.uint8)
    answers = send(box, first=as_png(black), second=as_png(grey))
    for name, array, answer in zip(("first", "second"), (black, grey), answers, strict=True):
        prediction = detector.predict(array)[0]
        side = "above" if prediction.is_anomalous else "not above"
        assert f"{name}.png: score {prediction.score:.3f}, {side} the threshold" in answer
    assert box.children[0].children[0].value == ()  # nothing of it is saved with the notebook
    assert len(send(box, third=as_png(black))) == 1


def test_the_verdict_follows_the_threshold(box, detector, monkeypatch):
    for threshold, words in ((0.0, ", above the threshold 0.000"), (1.0, ", not above the"), (None, "; no ")):
        monkeypatch.setattr(detector.categories["noise"], "threshold", threshold)
        assert words in send(box, x=as_png(np.zeros((32, 32, 3), np.uint8)))[0]


def test_the_category_stays_when_another_is_fitted(box, detector, monkeypatch):
    monkeypatch.setitem(detector.categories, "other", detector.categories["noise"])
    assert "x.png: score" in send(box, x=as_png(np.zeros((32, 32, 3), np.uint8)))[0]


def test_an_image_of_the_support_set_is_recognised(detector):
    picture = np.random.default_rng(0).integers(100, 156, (64, 64, 3), np.uint8)
    assert "means nothing" in send(upload(detector, picture), x=as_png(picture))[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an image that can be read"),
        (b"<b>hello</b>", "not an image that can be read"),
        (as_png(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))[:3000], "cut short"),
    ],
)
def test_a_broken_file_gives_a_message_and_the_next_one_works(box, content, words):
    broken, fine = send(box, **{"<i>": content}, fine=as_png(np.zeros((32, 32, 3), np.uint8)))
    assert words in broken and "<b>&lt;i&gt;.png</b>" in broken and "hello" not in broken
    assert "fine.png: score" in fine


def parts(box: ipywidgets.VBox):
    controls, shown = box.children
    return controls.children, shown


def test_a_press_trains_on():
    taken = []

    def run():
        for step in count():
            taken.append(step)
            yield {"loss": 1 / (1 + step)}

    (button,), shown = parts(live_training(run(), steps=5, redraws=2))
    assert taken == [0, 1, 2, 3, 4]  # a still for pages without a kernel, and no step more
    first = shown.value
    assert "After 5 steps" in first and picture(shown).size[0] > 300
    button.click()
    assert len(taken) == 10 and "After 10 steps" in shown.value and shown.value != first
    assert f"{sum(1 / n for n in range(1, 11)) / 10:.3f}" in shown.value
    assert not button.disabled


def test_a_training_that_ends_or_fails():
    (button,), shown = parts(live_training(iter([{"loss": 0.5}] * 7), steps=5))
    button.click()
    assert "After 7 steps" in shown.value
    assert button.disabled and button.description == "finished"
    (button,), shown = parts(live_training(iter([]), steps=5))
    assert "No step yet" in shown.value and button.disabled

    losses = iter([{"loss": 0.5}] * 5 + [{}])
    (button,), shown = parts(live_training(losses, steps=5))
    button.click()  # ipywidgets logs what a callback raises
    assert "After 5 steps" in shown.value and not button.disabled
