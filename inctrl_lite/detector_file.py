"""A fitted detector as one file: `AnomalyDetector.save` and `AnomalyDetector.load`.

The file is a safetensors file (an index in JSON, then plain numbers; no code is run when it is read). It
holds the trained model, what was fitted of each category, and how the backbone is loaded again, but not the
backbone itself. Format 1:

- metadata "inctrl_lite": a JSON text with `format`, `version` of the package, `model` (arguments of
  `InCTRL`), `backbone` (`arguments` of `load_backbone`, `digest` of the weights) and `categories`, a list.
  See `_category_record` for what is said of a category.
- metadata "sha256" (may be missing): of that text, followed by the data of all tensors in the order of their
  names.
- tensors "model.NAME" and "categories.I.FIELD": T support sets, one for each tile (T = 1 without tiles), as
  `SupportSet` has them: "stages.0.tokens" [T, M, N, C], "global_embedding" [T, K, D],
  "normal_statistics" [T, N, 2], "normal_level" [T, 1], "regions.tokens" [T, M, Q, C]; and "text" [2, D] and
  "region" [h, w] (1 where the picture counts).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inctrl_lite import __version__
from inctrl_lite.backbones import Backbone, Stage, load_backbone
from inctrl_lite.checkpoint import check_fits
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_whole
from inctrl_lite.fitted import FittedCategory
from inctrl_lite.model import InCTRL
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.support import SupportSet
from inctrl_lite.view import Region, View

FORMAT = 1
KEY, CHECKSUM = "inctrl_lite", "sha256"
MOST = 4096  # rows, columns, tiles: more is a damaged file
OPTIONAL = ("normal_statistics", "normal_level")


def write_detector(
    path: str | Path, model: InCTRL, backbone: Backbone, categories: Mapping[str, FittedCategory]
) -> Path:
    """Write the file, whole.

    Raises:
        InctrlError: nothing is fitted, or the file cannot be written.
    """
    from safetensors.torch import save

    if not categories:
        raise InctrlError("nothing to save: call fit(normals, category=...) first")
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    records = []
    for i, (name, fitted) in enumerate(categories.items()):
        records.append(_category_record(name, fitted))
        tensors |= {f"categories.{i}.{field}": tensor for field, tensor in _tensors(fitted).items()}
    about = {
        "format": FORMAT,
        "version": __version__,
        **trained_part(model, backbone),
        "categories": records,
    }
    text = json.dumps(about, indent=1, allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(tensors, {KEY: text, CHECKSUM: _checksum(text, tensors)})
    return write_whole(path, lambda temporary: temporary.write_bytes(data))


def trained_part(model: InCTRL, backbone: Backbone) -> dict[str, Any]:
    """What a file says of model and backbone, whatever is fitted."""
    return {
        "model": {
            "embed_dim": model.embed_dim,
            "num_patches": model.num_patches,
            "head": model.head_name,
            "backbone": model.backbone,
            "terms": list(model.head.terms),
            "stage_widths": list(model.stage_widths),
        },
        "backbone": {"arguments": backbone.arguments, "digest": backbone.weights_digest},
    }


def read_detector(
    path: str | Path, backbone: Backbone | None = None
) -> tuple[InCTRL, Backbone, dict[str, FittedCategory]]:
    """What `write_detector` wrote: (model, backbone, categories), on the CPU.

    Args:
        backbone: in place of the one that the file names; its weights must be the same.

    Raises:
        InctrlError: missing, damaged, written by another version, or with another backbone.
    """
    path = Path(path)
    about, tensors = _read(path)
    if about.get("format") != FORMAT:
        raise InctrlError(
            f"{path} has format {about.get('format')} (inctrl_lite {about.get('version')}), and this is "
            f"inctrl_lite {__version__}, which reads format {FORMAT}: fit it again"
        )
    if about.get("version") != __version__:
        warnings.warn(
            f"{path} was fitted with inctrl_lite {about.get('version')}, and this is {__version__}: scores "
            "may differ a little from those its threshold was made for. To be sure, fit it again",
            stacklevel=3,
        )
    try:
        found = about["backbone"]
        arguments, digest = dict(found["arguments"]), str(found["digest"])
        if not isinstance(arguments["name"], str):
            raise ValueError("the backbone has no name")
        if not isinstance(about["model"]["backbone"], dict | None):
            raise ValueError("the model's backbone is no object")
        model = InCTRL(**about["model"])
        model.load_state_dict(_below("model", tensors))
        categories = {
            str(record["name"]): _category(record, _below(f"categories.{i}", tensors))
            for i, record in enumerate(about["categories"])
        }
    except (InctrlError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InctrlError(f"{path} is damaged ({cause}): fit it again") from error
    if not categories:
        raise InctrlError(f"{path} is damaged (it holds no category): fit it again")
    if backbone is None:
        try:
            backbone = load_backbone(**arguments)
        except (InctrlError, TypeError) as error:
            raise InctrlError(f"{path} needs the backbone {arguments.get('name')!r}. {error}") from error
    if backbone.weights_digest != digest:
        raise InctrlError(
            f"{path} was fitted with other weights of the backbone {arguments.get('name')!r} than those that "
            "are loaded: give it the same backbone (AnomalyDetector.load(path, backbone=...)) or fit it again"
        )
    check_fits(model, backbone)
    for name, fitted in categories.items():
        blank = torch.zeros(1, 3, *fitted.view.preprocessor.size, device=backbone.device)
        seen, support = backbone.encode_images(blank), fitted.known_support
        grids = support.map_grid == seen.map_grid and [stage.grid for stage in support.stages] == [
            stage.grid for stage in seen.stages
        ]
        widths = tuple(stage.tokens.shape[-1] for stage in support.stages)
        sizes = len(support) == fitted.view.count, len(fitted.names) == fitted.shots
        if (
            widths != backbone.stage_widths
            or not grids
            or not all(sizes)
            or fitted.limits[0] >= fitted.limits[1]
        ):
            raise InctrlError(
                f"{path} is damaged (category {name!r} does not fit the backbone): fit it again"
            )
    return model.eval(), backbone, categories


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON text and the tensors, after a look at the checksum."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        kind = "a folder, not a detector file" if path.is_dir() else "not there"
        raise InctrlError(f"{path} is {kind}: inctrl-lite fit writes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:120]
        raise InctrlError(f"{path} is damaged or no detector file ({cause}): fit it again") from error
    if KEY not in metadata:
        raise InctrlError(
            f"{path} is no fitted detector, though it is a safetensors file: use inctrl-lite fit"
        )
    if metadata.get(CHECKSUM) not in (None, _checksum(metadata[KEY], tensors)):
        raise InctrlError(f"{path} is damaged (its checksum is wrong): fit it again, or copy it again")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InctrlError(f"{path} is damaged: {name} holds NaN or infinite values")
    try:
        about = json.loads(metadata[KEY], parse_constant=_refuse)
    except ValueError as error:
        raise InctrlError(f"{path} is damaged (its description is no JSON): fit it again") from error
    if not isinstance(about, dict):
        raise InctrlError(f"{path} is damaged (its description is no object): fit it again")
    return about, tensors


def _refuse(constant: str) -> None:
    """JSON has no NaN and no infinity; Python's reader would take them."""
    raise ValueError(constant)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with "prefix.", without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _category_record(name: str, fitted: FittedCategory) -> dict[str, Any]:
    """What the JSON text says of a category."""
    view, support = fitted.view, fitted.known_support
    return {
        "name": name,
        "shots": fitted.shots,
        "threshold": fitted.threshold,
        "threshold_source": fitted.threshold_source,
        "expected_rate": fitted.expected_rate,
        "normal_scores": list(fitted.normal_scores),
        "normal_images": [
            {"name": image, "digest": digest.hex()}
            for image, digest in zip(fitted.names, fitted.fingerprints, strict=True)
        ],
        "limits": list(fitted.limits),
        "map_grid": list(support.map_grid),
        "stage_grids": [list(stage.grid) for stage in support.stages],
        "region_grid": None if support.regions is None else list(support.regions.grid),
        "view": {"preprocessor": asdict(view.preprocessor), "tiles": list(view.tiles), "bits": view.bits},
    }


def _tensors(fitted: FittedCategory) -> dict[str, Tensor]:
    """The tensors of a category, by field."""
    support = fitted.known_support
    found: dict[str, Tensor | None] = {"global_embedding": support.global_embedding, "text": fitted.text}
    found |= {f"stages.{i}.tokens": stage.tokens for i, stage in enumerate(support.stages)}
    found |= {field: getattr(support, field) for field in OPTIONAL}
    if support.regions is not None:
        found["regions.tokens"] = support.regions.tokens
    if fitted.view.region is not None:
        found["region"] = torch.from_numpy(fitted.view.region.mask.astype(np.uint8))
    return {field: tensor for field, tensor in found.items() if tensor is not None}


def _category(record: dict[str, Any], tensors: dict[str, Tensor]) -> FittedCategory:
    """What `_category_record` and `_tensors` were made from."""
    settings = record["view"]
    preprocessor = Preprocessor(**{key: _tuple(value) for key, value in settings["preprocessor"].items()})
    region = Region(tensors["region"].numpy().astype(bool)) if "region" in tensors else None
    regions = record["region_grid"]
    support = SupportSet(
        global_embedding=tensors["global_embedding"],
        stages=tuple(
            Stage(tensors[f"stages.{i}.tokens"], _pair(grid)) for i, grid in enumerate(record["stage_grids"])
        ),
        map_grid=_pair(record["map_grid"]),
        regions=None if regions is None else Stage(tensors["regions.tokens"], _pair(regions)),
        **{field: tensors.get(field) for field in OPTIONAL},
    )
    threshold, rate = record["threshold"], record["expected_rate"]
    bits = None if settings["bits"] is None else _whole(settings["bits"])
    low, high = record["limits"]
    return FittedCategory(
        support=support,
        text=tensors.get("text"),
        view=View(preprocessor, region, _pair(settings["tiles"]), bits),
        limits=(float(low), float(high)),
        normal_scores=tuple(float(score) for score in record["normal_scores"]),
        threshold=None if threshold is None else float(threshold),
        threshold_source=str(record["threshold_source"]),
        expected_rate=None if rate is None else float(rate),
        names=tuple(str(image["name"]) for image in record["normal_images"]),
        fingerprints=tuple(bytes.fromhex(image["digest"]) for image in record["normal_images"]),
    )


def _whole(value: Any) -> int:
    """A positive whole number; JSON's reader would let anything pass."""
    if type(value) is not int or not 1 <= value <= MOST:
        raise ValueError(f"{value!r} is no whole number from 1 to {MOST}")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = (_whole(part) for part in value)
    return first, second


def _tuple(value: Any) -> Any:
    """JSON has lists where we have tuples."""
    return tuple(value) if isinstance(value, list) else value
