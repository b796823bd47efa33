"""A fitted detector as an ONNX file, which other programs run without PyTorch: `export_onnx`.

`export_encoder` writes the backbone alone, for a program that fits by itself (the page in `live/`).
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from inctrl_lite import __version__
from inctrl_lite.backbones import Backbone, ImageFeatures
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import write_whole
from inctrl_lite.view import Box, View

if TYPE_CHECKING:
    from onnx import ModelProto

    from inctrl_lite.detector import AnomalyDetector

WEIGHTS = ("float32", "float16", "int8")
KEY = "inctrl_lite"  # of the JSON text in the file's metadata
FEW = 1024  # smaller tensors stay float32: they are biases and constants


def export_onnx(detector: AnomalyDetector, path: str | Path, category: str | None = None) -> Path:
    """Write one fitted category as an ONNX file: image in; score, map and verdict out.

    Input `image` is uint8 [H, W, 3], RGB, already resized to the input's size: bytes are what cameras and
    image libraries give, and the normalisation is part of the file. Resizing is not, because
    libraries resize differently; use bicubic with antialiasing (Pillow's), as the detector does. Outputs are
    `score` [] in [0, 1], `map` [h, w] in [0, 1] and, where there is a threshold, `anomalous` [] (bool). The
    metadata "inctrl_lite" is a JSON text with the threshold, how it came about, and the preprocessing.

    Args:
        category: may be left out when there is one.

    Raises:
        InctrlError: category not fitted, tiles or a region that is no box, or a package is missing.
    """
    category = detector.category(category)
    fitted = detector.categories[category]
    if fitted.view.count > 1:
        raise InctrlError(
            f"category {category!r} is looked at in {fitted.view.count} tiles, and an exported file takes "
            "one input: fit it without tiles"
        )
    scorer = _Scorer(detector, category)
    program = _traced(scorer, fitted.view, ["image"], ["score", "map", "anomalous"][: scorer.outputs])
    about = {
        "version": __version__,
        "category": category,
        "threshold": fitted.threshold,
        "threshold_source": fitted.threshold_source,
        "expected_rate": fitted.expected_rate,
        "normal_scores": list(fitted.normal_scores),
        "limits": list(fitted.limits),
        "region": region_box(fitted.view),
        "preprocessor": asdict(fitted.view.preprocessor),
    }
    return _write(program, path, about)


def export_encoder(backbone: Backbone, path: str | Path, weights: str = "float32") -> Path:
    """Write a backbone alone: image in; patch tokens and global embedding out.

    Input `image` is as in `export_onnx`. Outputs are `stage_0`, `stage_1`, ... [N, C] and
    `global_embedding` [D].

    Args:
        weights: how they are stored: "float32", "float16" (half the size) or "int8" (a quarter, one scale for
            each output channel). All calculations are in float32.

    Raises:
        InctrlError: another kind of weights, or a package is missing.
    """
    if weights not in WEIGHTS:
        raise InctrlError(f"weights {weights!r}: choose one of {', '.join(WEIGHTS)}")
    stages = [f"stage_{i}" for i in range(len(backbone.stage_widths))]
    view = View(backbone.preprocessor)
    program = _traced(_Tower(backbone, view), view, ["image"], [*stages, "global_embedding"])
    if weights != "float32":
        _store_smaller(program, weights)
    return _write(program, path, {"version": __version__, "weights": weights})


def region_box(view: View) -> list[float] | None:
    """A rectangular region as shares of the picture (left, top, right, bottom); None: the whole picture.

    Raises:
        InctrlError: it is no rectangle.
    """
    if view.region is None:
        return None
    rows, columns = view.region.mask.shape
    left, top, right, bottom = box = view.region.box((columns, rows))
    if not view.region.mask[_slices(box)].all():
        raise InctrlError("the region is no rectangle, which cannot be exported: fit with a box")
    return [left / columns, top / rows, right / columns, bottom / rows]


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box[1], box[3]), slice(box[0], box[2])


class _Tower(nn.Module):
    """Bytes of an image in, features out."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, view: View):
        super().__init__()
        # the detector goes on where it is
        self.backbone = backbone if backbone.device.type == "cpu" else copy.deepcopy(backbone).cpu()
        # "mean" alone would meet a node of that name in the graph
        for name in ("mean", "std"):
            values = torch.tensor(getattr(view.preprocessor, name))
            self.register_buffer(f"pixel_{name}", values.view(3, 1, 1))

    def features(self, image: UInt8[Tensor, "H W 3"]) -> ImageFeatures:
        """Features of one image."""
        pixels = image.permute(2, 0, 1).float() / 255  # [H, W, 3] -> [3, H, W]
        return self.backbone.encode_images(((pixels - self.pixel_mean) / self.pixel_std)[None])

    def forward(self, image: UInt8[Tensor, "H W 3"]) -> tuple[Tensor, ...]:
        """Tokens of each stage [N, C], and the global embedding [D]."""
        features = self.features(image)
        return (*(stage.tokens[0] for stage in features.stages), features.global_embedding[0])


class _Scorer(_Tower):
    """Bytes of an image in; score, map and verdict out."""

    def __init__(self, detector: AnomalyDetector, category: str):
        fitted = detector.categories[category]
        super().__init__(detector.backbone, fitted.view)
        self.model = copy.deepcopy(detector.model).cpu()
        self.support = fitted.support_of([0]).map(Tensor.cpu)
        self.text = None if fitted.text is None else fitted.text.cpu()
        self.threshold = fitted.threshold
        self.outputs = 2 if fitted.threshold is None else 3

    def forward(
        self, image: UInt8[Tensor, "H W 3"]
    ) -> (
        tuple[Float[Tensor, ""], Float[Tensor, "h w"]]
        | tuple[Float[Tensor, ""], Float[Tensor, "h w"], Bool[Tensor, ""]]
    ):
        """Score, map and, where there is a threshold, verdict."""
        scores = self.model(self.features(image), self.support, self.text)
        score, patch_map = scores.final[0], scores.heat_map[0].unflatten(-1, self.support.map_grid)
        if self.threshold is None:
            return score, patch_map
        return score, patch_map, score > self.threshold


def _traced(module: nn.Module, view: View, inputs: list[str], outputs: list[str]) -> ModelProto:
    """The module as an ONNX graph."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InctrlError(f"exporting needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    example = torch.zeros((*view.preprocessor.size, 3), dtype=torch.uint8)
    with torch.no_grad():
        program: Any = torch.onnx.export(
            module.eval(), (example,), input_names=inputs, output_names=outputs, dynamo=True, verbose=False
        )
    model: ModelProto = program.model_proto
    return model


def _write(model: ModelProto, path: str | Path, about: dict[str, Any]) -> Path:
    """Write the file, whole, with a description."""
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about, allow_nan=False)
    return write_whole(path, lambda temporary: temporary.write_bytes(model.SerializeToString()))


def _store_smaller(model: ModelProto, weights: str) -> None:
    """Store large weights in fewer bits. The graph makes float32 of them, once, when it is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = []
    for tensor in list(model.graph.initializer):  # scales are added meanwhile
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < FEW:
            continue
        name, small = tensor.name, f"{tensor.name}.small"
        made = name
        if weights == "float16":
            stored = values.astype(np.float16)
        else:
            axes = tuple(range(1, values.ndim))
            scale = np.abs(values).max(axis=axes, keepdims=True) / 127 + np.float32(1e-12)
            stored, made = np.round(values / scale).astype(np.int8), f"{name}.whole"
            model.graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
            nodes.append(helper.make_node("Mul", [made, f"{name}.scale"], [name]))
        nodes.append(helper.make_node("Cast", [small], [made], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(stored, small))
    for node in nodes:
        model.graph.node.insert(0, node)
