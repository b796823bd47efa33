"""Learn and use generalist anomaly detection: InCTRL, from a handful of normal images.

Three calls::

    from inctrl_lite import AnomalyDetector

    detector = AnomalyDetector.from_pretrained("photo")
    detector.fit(normals, category="bottle")
    predictions = detector.predict(images)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inctrl_lite.backbones import Backbone, ImageFeatures, load_backbone
    from inctrl_lite.detector import AnomalyDetector
    from inctrl_lite.errors import InctrlError
    from inctrl_lite.evidence import Evidence, Scores
    from inctrl_lite.model import InCTRL
    from inctrl_lite.prediction import Prediction, Predictions
    from inctrl_lite.support import SupportSet

# Names are imported when they are first used: torch and open_clip take seconds, `import inctrl_lite` none.
_HOME = {
    "AnomalyDetector": "detector",
    "Backbone": "backbones",
    "Evidence": "evidence",
    "ImageFeatures": "backbones",
    "InCTRL": "model",
    "InctrlError": "errors",
    "Prediction": "prediction",
    "Predictions": "prediction",
    "Scores": "evidence",
    "SupportSet": "support",
    "load_backbone": "backbones",
}
__all__ = [
    "AnomalyDetector",
    "Backbone",
    "Evidence",
    "ImageFeatures",
    "InCTRL",
    "InctrlError",
    "Prediction",
    "Predictions",
    "Scores",
    "SupportSet",
    "load_backbone",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
