"""What every notebook of the course starts with, and what a teacher hands out.

`lab = course.begin()` is the first line of each notebook. By default everything runs on the "tiny" backbone
and the procedural worlds, on a CPU and without a network. With INCTRL_LITE_FULL=1 the same cells use the
paper's backbone, the GPU and the real data sets.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_text, write_whole

if TYPE_CHECKING:
    import torch

    from inctrl_lite.backbones import Backbone
    from inctrl_lite.data.category import Category
    from inctrl_lite.detector import AnomalyDetector

# No unfinished code of the package: the line that an exercise in a notebook holds until the student replaces
# it. `solve` puts the answer key in its place.
UNANSWERED = "raise NotImplementedError"
FIRST = "00_tour.ipynb"  # where it is, the other lessons are
FULL, DATA, MODEL = "INCTRL_LITE_FULL", "INCTRL_LITE_DATA", "INCTRL_LITE_MODEL"

# Procedural world -> the real data set that replaces it in full mode.
COUNTERPARTS = {
    "industrial": "mvtec",
    "unseen-industrial": "visa",
    "solar": "elpv",
    "fabric": "aitex",
    "mri-like": "brainmri",
    "ct-like": "headct",
    "digits": "mnist",
    "drawn": "cifar10",
}


@dataclass(frozen=True)
class Lab:
    """What a notebook works with.

    Attributes:
        full: whether the paper's backbone and the real data sets are used.
        device: where the model runs.
    """

    full: bool
    device: torch.device

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen CLIP: "tiny", or in full mode "paper"."""
        from inctrl_lite.backbones import load_backbone

        return load_backbone("paper" if self.full else "tiny", device=self.device)

    @cached_property
    def detector(self) -> AnomalyDetector:
        """A trained detector: the one in the package (InCTRL-lite on the "tiny" backbone), or in full mode
        the one that INCTRL_LITE_MODEL names."""
        from inctrl_lite.detector import AnomalyDetector

        name = os.environ.get(MODEL, "") if self.full else "tiny"
        if not name:
            raise InctrlError(
                f"full mode needs a trained model: set {MODEL} to a folder of `inctrl-lite train` or to a "
                "checkpoint of the public code"
            )
        return AnomalyDetector.from_pretrained(name, device=self.device)

    def load(self, world: str, **sizes: int) -> list[Category]:
        """The categories of a procedural world; in full mode, of the real data set that replaces it.

        Args:
            world: a name of `inctrl_lite.data.worlds.WORLDS`.
            sizes: `train`, `normal`, `anomalous`: images a category (procedural worlds only).
        """
        if not self.full:
            from inctrl_lite.data.worlds import load_world

            return load_world(world, **sizes)
        from inctrl_lite.data.manifest import load_dataset

        if DATA not in os.environ or world not in COUNTERPARTS:
            raise InctrlError(
                f"full mode uses {COUNTERPARTS.get(world, 'no real data set')!r} for {world!r}: set {DATA} "
                "to the folder that holds the data sets"
            )
        return load_dataset(Path(os.environ[DATA]) / COUNTERPARTS[world])


def begin(seed: int = 0) -> Lab:
    """Set up a notebook: seeds, the look of figures, and what it runs on (which is printed)."""
    import matplotlib
    import pandas
    import seaborn
    import torch
    from IPython import get_ipython

    from inctrl_lite import __version__
    from inctrl_lite.device import pick_device

    torch.manual_seed(seed)
    torch.set_grad_enabled(True)
    if shell := get_ipython():
        shell.enable_matplotlib("inline")  # so that every Figure shows, with or without pyplot
    seaborn.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    pandas.set_option("display.max_colwidth", None)
    matplotlib.rcParams |= {"figure.dpi": 84, "image.interpolation": "nearest", "axes.grid": False}
    full = os.environ.get(FULL) == "1"
    lab = Lab(full, pick_device("auto") if full else torch.device("cpu"))
    what = "paper's backbone, real data" if full else f"tiny backbone; {FULL}=1 uses the paper's"
    print(
        f"inctrl_lite {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}, torch "
        f"{torch.__version__.partition('+')[0]}, {lab.device.type} ({what})"
    )
    return lab


# --- the lessons themselves ---------------------------------------------------------------------------


def lessons() -> Path:
    """The folder with the lessons: the repository's `notebooks`, or what an installed wheel brought along.

    Raises:
        InctrlError: this installation has no lessons.
    """
    beside = Path(__file__).parents[1]
    folders = [beside / "notebooks", beside / "share" / "inctrl_lite" / "notebooks"]  # pip install --target
    try:
        listed = files("inctrl-lite") or []
    except PackageNotFoundError:
        listed = []
    folders += [Path(file.locate()).parent for file in listed if file.match(f"notebooks/{FIRST}")]
    for folder in folders:
        if (folder / FIRST).exists():
            return folder.resolve()
    raise InctrlError(
        "this installation has no lessons: install the wheel, or work in a clone of the repository"
    )


def lay_out(out: str | Path) -> tuple[list[Path], list[Path]]:
    """Copy the lessons into a folder. A file that is there already is never overwritten.

    Returns:
        The files that were written, and those that were kept.

    Raises:
        InctrlError: this installation has no lessons.
    """
    written: list[Path] = []
    kept: list[Path] = []
    for path in notebook_files(lessons()):
        target = Path(out) / path.name
        if target.exists():
            kept.append(target)
        else:
            written.append(write_text(target, path.read_text(encoding="utf-8")))
    return written, kept


# --- for teachers ------------------------------------------------------------------------------------


def student_zip(notebooks: str | Path, out: str | Path) -> Path:
    """Pack the notebooks as students get them: without outputs, exercises open.

    Raises:
        InctrlError: no notebooks there.
    """
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in notebook_files(notebooks):
            info = zipfile.ZipInfo(f"inctrl_lite_course/{path.name}", (2026, 1, 1, 0, 0, 0))  # reproducible
            archive.writestr(info, path.read_text(encoding="utf-8"), zipfile.ZIP_DEFLATED)
    return write_whole(out, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def solve(notebooks: str | Path, out: str | Path) -> list[Path]:
    """Write solved versions of the notebooks: every stub is replaced by its answer key.

    Raises:
        InctrlError: no notebooks there, or a stub without an answer key (named).
    """
    from inctrl_lite.checks import exercises

    known, written = exercises(), []
    for path in notebook_files(notebooks):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and UNANSWERED in source:
                cell["source"] = _solved(source, known, path).splitlines(keepends=True)
        written.append(write_text(Path(out) / path.name, json.dumps(notebook, indent=1) + "\n"))
    return written


def _solved(source: str, known: dict[str, Any], path: Path) -> str:
    """A cell with its unanswered exercises replaced by answer keys; imports and other lines stay."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if UNANSWERED not in "\n".join(lines[node.lineno - 1 : node.end_lineno]):
            continue
        if node.name not in known:
            raise InctrlError(f"{path}: no answer key for {node.name!r}")
        key = textwrap.dedent(inspect.getsource(known[node.name].solution))
        lines[node.lineno - 1 : node.end_lineno] = key.rstrip().splitlines()
    return "\n".join(lines)


def notebook_files(folder: str | Path) -> list[Path]:
    """The notebooks of a folder, in order.

    Raises:
        InctrlError: there is none.
    """
    found = sorted(Path(folder).glob("*.ipynb"))
    if not found:
        raise InctrlError(f"no notebooks in {folder}: give the folder notebooks/ of the repository")
    return found
