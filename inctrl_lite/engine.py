"""ONNX Runtime in the place of PyTorch for the backbone: about twice as fast on a CPU, the same features.

Only the backbone is replaced, which takes nearly all the time; residuals and head stay PyTorch's.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inctrl_lite.backbones import Backbone, ImageFeatures, Stage
from inctrl_lite.detector import AnomalyDetector
from inctrl_lite.errors import InctrlError
from inctrl_lite.files import read_checked, write_checked
from inctrl_lite.store import cache_folder

ENGINES = ("torch", "onnx")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def with_engine(detector: AnomalyDetector, engine: str) -> AnomalyDetector:
    """The detector with another engine for its backbone; what is fitted is shared.

    Args:
        engine: "torch", or "onnx": ONNX Runtime on the CPU. Features differ by rounding, scores by less than
            1e-4.

    Raises:
        InctrlError: an unknown engine, a device that is no CPU, or a package is missing.
    """
    if engine not in ENGINES:
        raise InctrlError(f"engine {engine!r}: choose one of {', '.join(ENGINES)}")
    if engine == "torch":
        return detector
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InctrlError(f"the engine onnx needs {', '.join(missing)}: pip install 'inctrl-lite[export]'")
    if detector.device.type != "cpu":
        raise InctrlError(f"the engine onnx runs on the CPU, not on {detector.device}: give --device cpu")
    found = copy.copy(detector)
    found.backbone = OnnxBackbone(detector.backbone)
    return found


class OnnxBackbone(Backbone):
    """A backbone whose images are encoded by ONNX Runtime.

    The graph of each input size is made once and kept in the cache folder.

    Args:
        backbone: on the CPU.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.original = backbone
        self.name, self.pretrained = backbone.name, backbone.pretrained
        self.preprocessor, self.map_grid = backbone.preprocessor, backbone.map_grid
        self.embed_dim, self.stage_widths = backbone.embed_dim, backbone.stage_widths
        self.text_encoder, self.input_multiple = backbone.text_encoder, backbone.input_multiple
        self.sessions: dict[tuple[int, int], tuple[Any, ImageFeatures]] = {}

    @property
    def visual(self) -> nn.Module:
        return self.original.visual

    @property
    def arguments(self) -> dict[str, Any]:
        return self.original.arguments

    def encode_images(self, images: Float[Tensor, "B 3 H W"]) -> ImageFeatures:
        size = images.shape[-2], images.shape[-1]
        if size not in self.sessions:
            self.sessions[size] = self._session(size)
        session, like = self.sessions[size]
        outputs = [torch.from_numpy(values) for values in session.run(None, {"images": images.numpy()})]
        embedding, tokens = outputs[0], outputs[1:]
        stages = tuple(Stage(one, stage.grid) for one, stage in zip(tokens, like.stages, strict=False))
        regions = None if like.regions is None else Stage(tokens[-1], like.regions.grid)
        return ImageFeatures(embedding, stages, like.map_grid, regions)

    def _session(self, size: tuple[int, int]) -> tuple[Any, ImageFeatures]:
        """A session for one input size, and features of that size, for their grids."""
        import onnxruntime

        path = cache_folder() / "onnx" / f"{self.original.fingerprint}-{size[0]}x{size[1]}.onnx"
        graph = read_checked(path)
        if graph is None:
            graph = _graph(self.original, size)
            write_checked(path, graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return session, self.original.encode_images(torch.zeros(1, 3, *size))


class _Features(nn.Module):
    """Inputs in, the tensors of their features out."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        """Global embedding, tokens of each stage, and of the regions where there are any."""
        features = self.backbone.encode_images(images)
        regions = () if features.regions is None else (features.regions.tokens,)
        return (features.global_embedding, *(stage.tokens for stage in features.stages), *regions)


def _graph(backbone: Backbone, size: tuple[int, int]) -> bytes:
    """The backbone as an ONNX graph for any number of inputs of one size."""
    example = torch.zeros(2, 3, *size)
    shapes = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program: Any = torch.onnx.export(
            _Features(backbone).eval(),
            (example,),
            input_names=["images"],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    graph: bytes = program.model_proto.SerializeToString()
    return graph
