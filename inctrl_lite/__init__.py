"""Learn and use generalist anomaly detection: InCTRL, from a handful of normal images.

Three calls::

    from inctrl_lite import AnomalyDetector

    detector = AnomalyDetector.from_pretrained("tiny")
    detector.fit(normals, category="bottle")
    predictions = detector.predict(images)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inctrl_lite.backbone import Backbone, ImageFeatures
    from inctrl_lite.detector import AnomalyDetector, Prediction, Predictions
    from inctrl_lite.errors import InctrlError
    from inctrl_lite.model import InCTRL, NormalPrompt, Scores

__all__ = [
    "AnomalyDetector",
    "Backbone",
    "ImageFeatures",
    "InCTRL",
    "InctrlError",
    "NormalPrompt",
    "Prediction",
    "Predictions",
    "Scores",
]
__version__ = "0.1.0"

# Names are imported when they are first used: torch and open_clip take seconds, `import inctrl_lite` none.
_HOME = {
    "AnomalyDetector": "detector",
    "Backbone": "backbone",
    "ImageFeatures": "backbone",
    "InCTRL": "model",
    "InctrlError": "errors",
    "NormalPrompt": "model",
    "Prediction": "detector",
    "Predictions": "detector",
    "Scores": "model",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
