"""Keep a finished benchmark run: python benchmarks/record.py RUN_FOLDER

Copies its tables, settings and environment to benchmarks/results/PROTOCOL/. Figures are made again from the
tables, by book/results.py.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
KEPT = ("run.json", "cells.csv", "summary.csv", "summary.md", "cost.csv")


def keep(run: Path, out: Path) -> None:
    """Copy what is worth keeping of a run."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, out / name)


def save_picture(figure: Image.Image, path: Path) -> None:
    """A PNG of 256 colours: half the bytes, so that pages stay light."""
    figure.convert("RGB").quantize(256).save(path, optimize=True)


def save_figure(figure: Figure, path: Path) -> None:
    """A figure of matplotlib as such a PNG, on white."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=110, facecolor="white")
    save_picture(Image.open(buffer), path)


def narrow(table: str) -> str:
    """A Markdown table with its intervals in small print below the values: wide ones are cut on a phone."""
    return re.sub(r" (\([+-]?[\d.]+ to [+-]?[\d.]+\))", r"<br><small>\1</small>", table)


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A value with its interval; nothing where it was not measured."""
    return "" if math.isnan(value) else f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def gains(intervals: Sequence[Sequence[float]], shots: Sequence[int]) -> str:
    """Differences (value, low, high) for each K, in points and in words."""
    values = ", ".join(f"{100 * value:+.1f}" for value, _, _ in intervals)
    above = [str(k) for k, (_, low, _) in zip(shots, intervals, strict=True) if low > 0]
    below = [str(k) for k, (_, _, high) in zip(shots, intervals, strict=True) if high < 0]
    sides = [f"{side} 0 at K = {', '.join(at)}" for side, at in (("above", above), ("below", below)) if at]
    where = f"interval {' and '.join(sides)}" if sides else "every interval contains 0"
    return f"{values} points at K = {', '.join(map(str, shots))} ({where})"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    out = RESULTS / json.loads((run / "run.json").read_text())["settings"]["protocol"]
    keep(run, out)
    print(f"kept in {out}")


if __name__ == "__main__":
    main()
