"""`inctrl-lite export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    detector: Annotated[Path, typer.Option(help="A file that `inctrl-lite fit` wrote.")],
    out: Annotated[
        Path | None, typer.Option(help="Write an ONNX file: image in; score, map and verdict out.")
    ] = None,
    web: Annotated[
        Path | None,
        typer.Option(help="Write a folder with a web page that scores in the browser, for any web server."),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="Which category; may be left out when the file has one.")
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(
            help="With --web: a folder with the files of onnxruntime-web. Default: fetched with npm."
        ),
    ] = None,
) -> None:
    """Make a fitted detector run elsewhere: as an ONNX file (--out) or as a web page (--web).

    Needs the packages of the extra `export`: pip install onnx onnxscript.
    """
    if out is None and web is None:
        raise typer.BadParameter("give --out or --web")
    from inctrl_lite.detector import AnomalyDetector

    loaded = AnomalyDetector.load(detector, device="cpu")
    if out is not None:
        from inctrl_lite.export import export_onnx

        print(f"ONNX file: {export_onnx(loaded, out, category)}")
    if web is not None:
        from inctrl_lite.web import export_web

        folder = export_web(loaded, web, category, runtime)
        print(f"page: {folder}. Try it: python -m http.server --directory {folder}")
