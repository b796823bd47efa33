"""Explorers, whose pictures are all drawn in advance, and two widgets that need a kernel.

An explorer draws one picture for every combination of its choices. Its controls select among these pictures
inside the browser (`jslink`). It therefore works with a kernel and without one: in JupyterLab and on the
static site.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import ipywidgets
from PIL import Image

from inctrl_lite.data.images import FORMATS
from inctrl_lite.errors import InctrlError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.prediction import Prediction

    Picture = Figure | Image.Image

MAX_FRAMES = 96  # a frame takes about 15 kB, so that more would make a page slow


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


def live_training(run: Iterator[Mapping[str, float]], steps: int = 40, redraws: int = 4) -> ipywidgets.VBox:
    """The loss curve of a training, and a button that continues the training.

    The first `steps` are taken at once, so that a page without a kernel shows them.

    Args:
        run: an iterator that takes one training step for each record it yields; a record has a "loss".
        steps: training steps for one press of the button.
        redraws: how often the picture is drawn again during these steps.
    """
    losses: list[float] = []
    picture = ipywidgets.HTML()
    label = f"{steps} more steps (needs a running kernel)"
    button = ipywidgets.Button(description=label, layout={"width": "auto"})
    chunk = -(-steps // redraws)

    def train(_: ipywidgets.Button | None = None) -> None:
        button.disabled, goal, ended = True, len(losses) + steps, False
        try:
            while len(losses) < goal and not ended:
                asked = min(chunk, goal - len(losses))
                new = [float(record["loss"]) for record in islice(run, asked)]
                losses.extend(new)
                picture.value = frame(*_loss_curve(losses)).value
                ended = len(new) < asked
        finally:  # a step that fails must not leave a dead button behind
            button.disabled = ended
            if ended:
                button.description = "finished"

    button.on_click(train)
    train()
    return ipywidgets.VBox([ipywidgets.HBox([button]), picture])


def _loss_curve(losses: Sequence[float], window: int = 10) -> tuple[Figure, str]:
    """Every step's loss and the mean of the last `window`."""
    from matplotlib.figure import Figure

    recent = [sum(losses[max(0, i - window) : i]) / min(i, window) for i in range(1, len(losses) + 1)]
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, color="0.75", lw=1, label="each step")
    axes.plot(range(1, len(losses) + 1), recent, lw=2, label=f"mean of the last {window}")
    axes.set(xlabel="steps", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)
    caption = f"After {len(losses)} steps: mean loss of the last {min(window, len(losses))}"
    return figure, f"{caption} {recent[-1]:.3f}." if recent else "No step yet."


def frame(picture: Picture, caption: str, few_colours: bool = True) -> ipywidgets.HTML:
    """A picture with its caption as a widget."""
    text = html.escape(caption)
    data = base64.b64encode(png(picture, few_colours)).decode()
    return ipywidgets.HTML(
        f'<figure class="explorer-frame" style="margin:0.5em 0">'
        f'<img alt="{text}" src="data:image/png;base64,{data}" style="max-width:100%;height:auto">'
        f'<figcaption style="line-height:1.4">{text}</figcaption></figure>'
    )


def png(picture: Picture, few_colours: bool = True, dpi: int = 76) -> bytes:
    """A Figure or picture as a PNG: of 256 colours, it has a third of the size of a full one."""
    if not isinstance(picture, Image.Image):
        buffer = BytesIO()
        picture.savefig(buffer, format="png", dpi=dpi)
        picture = Image.open(buffer)
    picture, buffer = picture.convert("RGB"), BytesIO()
    if few_colours:
        picture = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def upload(detector: AnomalyDetector, example: Any, category: str | None = None) -> ipywidgets.VBox:
    """A button to upload pictures; below it the score, verdict and anomaly map of each picture.

    Before the first upload, and on pages without a kernel, it shows the verdict of the example. An upload is
    not kept in the widget's state, so that a saved notebook holds no other photographs than those it shows.

    Args:
        detector: after `fit`; its threshold is read again for every upload.
        example: the picture to begin with, as `predict` takes it.
        category: which fitted category; may be left out when there is one.

    Returns:
        A widget: display it as the last expression of a cell.

    Raises:
        InctrlError: category not fitted, or an example that cannot be read.
    """
    button = ipywidgets.FileUpload(
        accept="image/*", multiple=True, description="Choose pictures", layout={"width": "auto"}
    )
    note = "This is an example. Choose pictures of your own to replace it (needs a running kernel)."
    first = next(detector.stream([("the example", example)], category))
    category = first.category  # fixed now: other categories may be fitted before the next upload
    shown = ipywidgets.VBox([ipywidgets.HTML(note), frame(*_verdict(first))])

    def answer(change: dict[str, Any]) -> None:
        if files := change["new"]:
            shown.children = [_answer(detector, category, f["name"], bytes(f["content"])) for f in files]
            button.value = ()

    button.observe(answer, "value")
    return ipywidgets.VBox([ipywidgets.HBox([button]), shown])


def _answer(detector: AnomalyDetector, category: str | None, name: str, content: bytes) -> ipywidgets.HTML:
    """What to show for an uploaded file: its verdict, or why there is none."""
    try:
        picture = Image.open(BytesIO(content), formats=FORMATS)
        verdict = _verdict(next(detector.stream([(name, picture)], category)))
        return frame(*verdict, few_colours=False)  # no page of the site holds it
    except InctrlError as error:
        reason = str(error)
    except Exception:  # Pillow's decoders fail in many ways
        reason = "not an image that can be read: save it as a PNG or JPEG of ordinary size"
    return ipywidgets.HTML(f'<p role="alert"><b>{html.escape(name)}</b>: {html.escape(reason)}</p>')


def _verdict(prediction: Prediction) -> tuple[Figure, str]:
    """The figure of a prediction, and its verdict in words."""
    verdict = f"{prediction.name}: score {prediction.score:.3f}"
    if prediction.in_support:
        verdict += ", which means nothing: the picture is one of the normal images of the support set"
    elif prediction.threshold is None:
        verdict += "; no threshold is set"
    else:
        side = "above the threshold" if prediction.is_anomalous else "not above the threshold"
        verdict += f", {side} {prediction.threshold:.3f}"
    return prediction.figure(), verdict
