"""Keep a finished benchmark run: python benchmarks/record.py RUN_FOLDER

Copies its tables, settings, environment and figures to benchmarks/results/PROTOCOL/.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from PIL import Image

RESULTS = Path(__file__).parent / "results"
KEPT = ("run.json", "cells.csv", "summary.csv", "summary.md", "cost.csv")


def keep(run: Path, out: Path) -> None:
    """Copy what is worth keeping of a run."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(run / name, out / name)
    (out / "figures").mkdir()
    for path in sorted((run / "figures").glob("*.png")):
        with Image.open(path) as figure:  # 256 colours: half the bytes, so that the results page stays light
            figure.convert("RGB").quantize(256).save(out / "figures" / path.name, optimize=True)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    out = RESULTS / json.loads((run / "run.json").read_text())["settings"]["protocol"]
    keep(run, out)
    print(f"kept in {out}")


if __name__ == "__main__":
    main()
