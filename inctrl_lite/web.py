"""The live page: a folder that fits and scores in a reader's browser, on any server of plain files.

`live/` holds the page itself; `write_page` adds the backbone (ONNX), the runtime (onnxruntime-web) and
`page.json`, which describes them and the trained model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from inctrl_lite import __version__
from inctrl_lite.detector import AnomalyDetector
from inctrl_lite.detector_file import FORMAT, trained_part, write_detector
from inctrl_lite.errors import InctrlError
from inctrl_lite.export import export_encoder, region_box
from inctrl_lite.files import fill_folder
from inctrl_lite.heads.prior import PriorHead
from inctrl_lite.npm import RUNTIME, npm_pack

# Half the bytes of float32, AUROC within 0.5 points; int8 loses more (benchmarks/web_weights.py).
WEIGHTS = "float16"
FITTED = "detector.inctrl"


class Example(NamedTuple):
    """Pictures that the page offers: (name, picture) of normal ones and of others."""

    name: str
    normal: Sequence[tuple[str, Image.Image]]
    check: Sequence[tuple[str, Image.Image]]


def export_web(
    detector: AnomalyDetector,
    folder: str | Path,
    category: str | None = None,
    runtime: str | Path | None = None,
) -> Path:
    """Write a folder that opens the live page with a fitted detector.

    Args:
        folder: where to; it must not exist yet, or be empty.
        category: may be left out when there is one.
        runtime: a folder with the files of onnxruntime-web; None: they are fetched once with npm.

    Raises:
        InctrlError: category not fitted, a detector that the page cannot use, no npm, or the folder is taken.
    """
    category = detector.category(category)
    fitted = detector.categories[category]
    usual = detector.backbone.preprocessor
    if fitted.view.count > 1 or fitted.view.preprocessor != usual:
        raise InctrlError(
            f"category {category!r} has tiles or keeps the aspect ratio, and the page does not: fit without"
        )
    region_box(fitted.view)  # raises if it is no rectangle
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InctrlError(f"{folder} is not empty: name a new folder")

    def fill(made: Path) -> None:
        write_page(detector, made, runtime, fitted=category)
        write_detector(made / FITTED, detector.model, detector.backbone, {category: fitted})

    return fill_folder(folder, fill)


def write_page(
    detector: AnomalyDetector,
    folder: Path,
    runtime: str | Path | None = None,
    *,
    fitted: str | None = None,
    examples: Sequence[Example] = (),
) -> None:
    """Write the page's files into a folder.

    Args:
        runtime: see `export_web`.
        fitted: the category that the page opens with (the file is written by the caller), or None.
        examples: pictures that the page offers.

    Raises:
        InctrlError: a detector that the page cannot use, or no npm.
    """
    model, backbone = detector.model, detector.backbone
    head = model.head
    if not isinstance(head, PriorHead) or head.terms != head.all_terms:
        raise InctrlError(
            "the live page can only use a detector like 'photo' (the head 'prior'): fit with that"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file in resources.files(__package__).joinpath("live").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    _copy_runtime(folder / "runtime", runtime)
    export_encoder(backbone, folder / "encoder.onnx", WEIGHTS)
    script, module, wasm = (f"runtime/{Path(name).name}" for name in RUNTIME[2])
    files = {"encoder": "encoder.onnx", "script": script, "module": module, "wasm": wasm}
    tensors = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        **trained_part(model, backbone),
        "preprocessor": asdict(backbone.preprocessor),
        "size": backbone.preprocessor.size[0],
        "map_grid": list(backbone.map_grid),
        "stage_grids": _stage_grids(backbone),
        "config": asdict(head.config),
        "tensors": {
            name: {"shape": list(t.shape), "values": t.flatten().tolist()} for name, t in tensors.items()
        },
        "files": {k: {"url": name, "bytes": (folder / name).stat().st_size} for k, name in files.items()},
        "fitted": FITTED if fitted is not None else None,
        "examples": [_write_example(folder, example) for example in examples],
    }
    (folder / "page.json").write_text(json.dumps(about, allow_nan=False) + "\n", encoding="utf-8")


def _stage_grids(backbone: Any) -> list[list[int]]:
    """Rows and columns of each stage."""
    import torch

    zeros = torch.zeros(1, 3, *backbone.preprocessor.size, device=backbone.device)
    return [list(stage.grid) for stage in backbone.encode_images(zeros).stages]


def _copy_runtime(target: Path, given: str | Path | None) -> None:
    """The runtime's files, from a folder or from npm."""
    target.mkdir(parents=True, exist_ok=True)
    package, digest, files = RUNTIME
    if given is None:
        try:
            npm_pack(package, digest, dict.fromkeys(files, target))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise InctrlError(
                f"the page needs {package}, which could not be fetched ({error}). Install npm, or give a "
                "folder that holds its files (--runtime)"
            ) from error
        return
    for name in (Path(file).name for file in files):
        if not (Path(given) / name).is_file():
            raise InctrlError(
                f"{given} does not hold {name} of {package}: give the folder dist of that package"
            )
        shutil.copyfile(Path(given) / name, target / name)


def _write_example(folder: Path, example: Example) -> dict[str, Any]:
    """Write pictures, and say where they are."""
    stem = example.name.replace(" ", "-")
    (folder / "examples").mkdir(exist_ok=True)

    def written(kind: str, pictures: Sequence[tuple[str, Image.Image]]) -> list[dict[str, str]]:
        found = []
        for i, (name, picture) in enumerate(pictures):
            file = f"examples/{stem}-{kind}-{i}.png"
            picture.save(folder / file, optimize=True)
            found.append({"name": name, "file": file})
        return found

    return {
        "name": example.name,
        "category": example.name,
        "normal": written("normal", example.normal),
        "check": written("check", example.check),
    }
