"""For whoever has a handful of good photos and wants to know which others look wrong.

Three calls::

    detector = AnomalyDetector.from_pretrained("photo")
    detector.fit("photos/good", category="bottle")
    for prediction in detector.predict("photos/new"):
        print(prediction.name, prediction.score)
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite.augment import augmentation_count
from inctrl_lite.backbones import Backbone, ImageFeatures, load_backbone
from inctrl_lite.checkpoint import check_fits
from inctrl_lite.data.images import find_images, load_image
from inctrl_lite.device import pick_device
from inctrl_lite.encoder import BATCH_SIZE, Encoder, batched, in_threads
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Scores
from inctrl_lite.model import InCTRL
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.support import SupportSet
from inctrl_lite.viz import colour_range, overlay, score_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

DEFAULT = "photo"
# Trained detectors that come with the package.
DETECTORS: dict[str, Path] = {
    "photo": Path(__file__).parent / "photo" / "detector",
    "tiny": Path(__file__).parent / "tiny" / "detector",
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the detector says of one image.

    Attributes:
        source: the image as it was given: a path, picture, array or tensor.
        name: path relative to the folder it was found in, or its position in the input ("image 3").
        category: what normal meant.
        score: anomaly score in [0, 1], larger is more anomalous. Not a probability: compare it with a
            threshold of the same category.
        terms: what the score was made of, by name, each in [0, 1]: "patch", and what else the model has.
        patch_map: patch residuals in [0, 1] on the map grid [h, w]: 0 looks like a patch of a normal image.
            The model is not trained to outline defects; read it as a hint.
        preprocessor: how the map lies in the picture.
        limits: residuals that are drawn darkest and brightest (see `viz.colour_range`).
        threshold: of the category, or None.
        in_support: the same pixels are in the support set, so its score means nothing.
    """

    source: Any
    name: str
    category: str
    score: float
    terms: dict[str, float]
    patch_map: Float[np.ndarray, "h w"]
    preprocessor: Preprocessor
    limits: tuple[float, float]
    threshold: float | None = None
    in_support: bool = False

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one."""
        return None if self.threshold is None else self.score > self.threshold

    def image(self) -> Image:
        """The picture (read again from its file)."""
        return load_image(self.source)

    def upsampled_map(self) -> Float[np.ndarray, "H W"]:
        """The patch map at the size of the picture; NaN in the part that the backbone does not see."""
        return self.preprocessor.to_picture(self.patch_map, self.image().size)

    def overlay(self) -> Image:
        """The picture with the residual map over it, at most `viz.MAX_DRAWN` pixels wide or high."""
        return overlay(self.image(), self.patch_map, self.limits, self.preprocessor)

    def figure(self) -> Figure:
        """Picture, residual map and overlay side by side."""
        return score_figure(
            self.image(),
            self.patch_map,
            self.score,
            title=self.name,
            limits=self.limits,
            preprocessor=self.preprocessor,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but picture and map, ready for a table row or JSON."""
        return {
            "name": self.name,
            "category": self.category,
            "score": self.score,
            **self.terms,
            "threshold": self.threshold,
            "anomalous": self.is_anomalous,
            "in_support": self.in_support,
        }


class Predictions(list[Prediction]):
    """A list of predictions; `skipped` names the files that could not be read, with the reason."""

    def __init__(self, predictions: Iterable[Prediction] = (), skipped: Sequence[tuple[str, str]] = ()):
        super().__init__(predictions)
        self.skipped = list(skipped)

    def to_frame(self) -> pd.DataFrame:
        """One row an image: name, category, score, its terms, threshold, verdict."""
        import pandas as pd

        return pd.DataFrame([prediction.to_dict() for prediction in self])

    @property
    def scores(self) -> Float[np.ndarray, " B"]:
        """The scores, in order."""
        return np.array([prediction.score for prediction in self])


@dataclass(eq=False)
class FittedCategory:
    """What `fit` keeps of a category: everything frozen, computed once.

    Attributes:
        support: the K encoded normal images.
        text: text prototypes [2, D], or None for a model without text.
        threshold: score above which an image is called anomalous, or None.
        threshold_source: how the threshold came about, in words.
        names: the normal images' names.
        fingerprints: digests of their pixels.
    """

    support: SupportSet
    text: Tensor | None
    threshold: float | None
    threshold_source: str
    names: list[str]
    fingerprints: frozenset[bytes] = field(repr=False)

    @property
    def shots(self) -> int:
        return self.support.shots


class AnomalyDetector:
    """Finds anomalies in any category from K normal images, without training.

    Args:
        model: the trained part.
        backbone: the frozen backbone that it was trained on.
        device: "auto" (CUDA, then MPS, then CPU) or a torch device.

    Raises:
        InctrlError: the model does not fit the backbone.
    """

    def __init__(self, model: InCTRL, backbone: Backbone, device: str | torch.device = "auto"):
        check_fits(model, backbone)
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.backbone = backbone.to(self.device)
        self.categories: dict[str, FittedCategory] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT,
        *,
        backbone: Backbone | None = None,
        image_size: int | None = None,
        device: str | torch.device = "auto",
    ) -> AnomalyDetector:
        """A trained detector.

        Args:
            name: "photo" or "tiny" (they come with the package), a folder written by
                `InCTRL.save_pretrained` or by training, a `.pyth` file of the public code, or a Hugging
                Face Hub id.
            backbone: None: the backbone that the model was trained on.
            image_size: side of the backbone's input, where it takes any ("photo"); larger finds smaller
                defects and takes longer. None: the usual one.
            device: "auto", "cpu", "cuda", "mps", ...

        Raises:
            InctrlError: nothing there, or it does not fit (the message says what to do).
        """
        if str(name).endswith(".pyth"):
            return cls._from_public(Path(name), backbone, device)
        model = InCTRL.from_pretrained(str(DETECTORS.get(str(name), name)))
        return cls(model, backbone or _backbone_of(model, str(name), image_size), device)

    @classmethod
    def _from_public(
        cls, path: Path, backbone: Backbone | None, device: str | torch.device
    ) -> AnomalyDetector:
        """A checkpoint of the public code: it holds the paper's whole CLIP, so nothing is fetched."""
        from inctrl_lite.checkpoint import load_public

        model, clip, _ = load_public(path)
        if backbone is None:
            backbone = load_backbone("ViT-B-16-plus-240") if clip else load_backbone("paper")
        if clip:
            try:
                module = backbone.get_submodule("clip")
                module.load_state_dict({"logit_scale": module.get_parameter("logit_scale").data} | clip)
            except (RuntimeError, AttributeError) as error:
                raise InctrlError(
                    f"the CLIP weights in {path} do not fit {backbone.name}: {error}"
                ) from error
        return cls(model, backbone, device)

    # --- the support set -----------------------------------------------------------------------------

    def fit(self, normals: Any, category: str = "object", batch_size: int = BATCH_SIZE) -> AnomalyDetector:
        """Take in what normal looks like: encodes K normal images and the category's name. No training.

        With the InCTRL-lite head, augmented copies of the normal images belong to the support set
        (`augment.SUPPORT_AUGMENTATIONS`), so that a small shift or rotation is no anomaly.

        The first threshold comes from the normal images themselves: each is scored against the other K - 1,
        and the largest score is taken. That is a weak guess for K < 4, and there is none for K = 1;
        `calibrate` with labelled images gives a better one.

        Args:
            normals: a folder, or paths, PIL images, arrays or tensors: one or several.
            category: what the images show, in words ("metal nut"); the text prior uses it. Fitting a category
                again replaces it.
            batch_size: images encoded at a time.

        Raises:
            InctrlError: no image, one that cannot be read (named), or a category that is no name.
        """
        if not isinstance(category, str) or not category.strip():
            raise InctrlError(
                f"category {category!r}: give the name of what the images show, such as 'bottle'"
            )
        sources = list(named_sources(normals))
        if not sources:
            raise InctrlError("no normal images: fit needs one or more")
        encoder = Encoder(self.backbone, _checked_batch_size(batch_size))
        # as many copies as the others have when one normal image is compared with them
        count = augmentation_count(max(1, len(sources) - 1)) if self.model.head.augments_support else 0
        parts, copies, fingerprints = [], [], []
        for batch in batched(sources, batch_size):
            pictures = in_threads(load_image, [source for _, source in batch])
            fingerprints += [fingerprint(picture) for picture in pictures]
            images = encoder.prepare(pictures)
            parts.append(encoder.encode(images))
            if count:
                copies.append(encoder.encode_augmented(images, count))
        if len(set(fingerprints)) < len(fingerprints):
            warnings.warn(
                f"{category}: some normal images are the same picture, which adds nothing", stacklevel=2
            )
        features, augmented = ImageFeatures.cat(parts), ImageFeatures.cat(copies) if copies else None
        support = self.model.support(features, augmented)
        if support.normal_statistics is None:  # for the colours of maps
            support = SupportSet.of(features, augmented)
        fitted = FittedCategory(
            support=support,
            text=text_prototypes(self.backbone, category) if self.model.head.needs_text else None,
            threshold=None,
            threshold_source="none: thresholds compare normal images with each other, and there is only one",
            names=[name for name, _ in sources],
            fingerprints=frozenset(fingerprints),
        )
        if fitted.shots > 1:
            fitted.threshold = max(self._leave_one_out_scores(features, augmented, fitted.text))
            fitted.threshold_source = f"largest leave-one-out score of the {fitted.shots} normal images"
        self.categories[category] = fitted
        return self

    @torch.inference_mode()
    def _leave_one_out_scores(
        self, features: ImageFeatures, augmented: ImageFeatures | None, text: Tensor | None
    ) -> list[float]:
        """Final score of each normal image against the others."""
        scores = []
        for k in range(len(features)):
            others = torch.arange(len(features)) != k
            support = self.model.support(features[others], None if augmented is None else augmented[others])
            scores.append(self.model(features[k : k + 1], support, text).final.item())
        return scores

    def calibrate(self, images: Any, labels: ArrayLike, category: str | None = None) -> float:
        """Set the category's threshold from labelled images: the one with the best F1. Returns it.

        Args:
            images: what `predict` takes.
            labels: 0 normal, 1 anomalous, one an image; both must occur.
            category: which fitted category; may be left out when there is one.

        Raises:
            InctrlError: labels and images do not match, or only one class.
        """
        from inctrl_lite.metrics import calibrate_threshold

        category = self._category(category)
        predictions, labels = self.predict(images, category), np.atleast_1d(np.asarray(labels))
        if len(predictions) != len(labels):
            raise InctrlError(f"{len(labels)} labels for {len(predictions)} images: give one an image")
        fitted = self.categories[category]
        fitted.threshold = float(calibrate_threshold(labels, predictions.scores))
        fitted.threshold_source = f"best F1 on {len(labels)} labelled images"
        return fitted.threshold

    # --- queries -------------------------------------------------------------------------------------

    def predict(
        self,
        images: Any,
        category: str | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Predictions:
        """Score images against the support set.

        Args:
            images: a folder, or paths, PIL images, arrays or tensors: one or thousands.
            category: which fitted category; may be left out when there is one.
            batch_size: images at a time. Scores do not depend on it.
            skip_unreadable: go on past files that cannot be read; `.skipped` then names them.
            progress: show a progress bar.

        Raises:
            InctrlError: category not fitted, or an image that cannot be read.
        """
        skipped: list[tuple[str, str]] | None = [] if skip_unreadable else None
        sources = list(named_sources(images))
        stream = self.stream(sources, category, batch_size=batch_size, skipped=skipped)
        found = list(tqdm(stream, total=len(sources), unit="image", desc="scoring", disable=not progress))
        known = [prediction.name for prediction in found if prediction.in_support]
        if known:
            warnings.warn(
                f"{len(known)} of {len(found)} queries are also in the support set; their scores mean "
                f"nothing: {', '.join(known[:3])}{', ...' if len(known) > 3 else ''}",
                stacklevel=2,
            )
        return Predictions(found, skipped or [])

    def stream(
        self,
        images: Any,
        category: str | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        skipped: list[tuple[str, str]] | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, one by one and in constant memory, for any number of images.

        Args:
            skipped: a list that receives (name, reason) of unreadable files; None: they raise.
        """
        category = self._category(category)
        fitted = self.categories[category]
        encoder = Encoder(self.backbone, _checked_batch_size(batch_size))
        limits = (0.0, 1.0)
        if fitted.support.normal_statistics is not None:
            limits = colour_range(fitted.support.normal_statistics)
        for batch in batched(named_sources(images), batch_size):
            readable = []
            for (name, source), picture in zip(batch, in_threads(_load, batch), strict=True):
                if not isinstance(picture, InctrlError):
                    readable.append((name, source, picture))
                elif skipped is None:
                    raise picture
                else:
                    skipped.append((name, str(picture)))
            if not readable:
                continue
            scores = self._score(encoder.encode(encoder.prepare([r[2] for r in readable])), fitted)
            maps = scores.patch_map.reshape(-1, *fitted.support.map_grid).numpy()  # [B, h, w]
            for i, (name, source, picture) in enumerate(readable):
                yield Prediction(
                    source=source,
                    name=name,
                    category=category,
                    score=scores.final[i].item(),
                    terms={term: values[i].item() for term, values in scores.terms.items()},
                    patch_map=maps[i].copy(),
                    preprocessor=self.backbone.preprocessor,
                    limits=limits,
                    threshold=fitted.threshold,
                    in_support=fingerprint(picture) in fitted.fingerprints,
                )

    def _category(self, category: str | None) -> str:
        if category is None and len(self.categories) == 1:
            return next(iter(self.categories))
        if category in self.categories:
            return category
        known = ", ".join(map(repr, self.categories)) or "none yet: call fit(normals, category=...) first"
        asked = "say which category" if category is None else f"category {category!r} is not fitted"
        raise InctrlError(f"{asked}. Fitted: {known}")

    @torch.inference_mode()
    def _score(self, query: ImageFeatures, fitted: FittedCategory) -> Scores:
        scores = self.model(query, fitted.support, fitted.text).map(lambda tensor: tensor.float().cpu())
        if not scores.final.isfinite().all():
            raise InctrlError("the model gives scores that are no numbers: its weights are damaged")
        return scores


def _backbone_of(model: InCTRL, name: str, image_size: int | None) -> Backbone:
    """The backbone that a model says it was trained on.

    Raises:
        InctrlError: its configuration does not name one that can be loaded.
    """
    try:
        size = {} if image_size is None else {"image_size": image_size}
        return load_backbone(**((model.backbone or {}) | size))
    except TypeError as error:  # missing or unknown arguments, or no mapping at all
        raise InctrlError(
            f"config.json of {name!r} does not say which backbone the model was trained on ({error}): give "
            "it (AnomalyDetector.from_pretrained(..., backbone=...))"
        ) from error


def _load(named: tuple[str, Any]) -> Image | InctrlError:
    """The picture, or why it cannot be read."""
    try:
        return load_image(named[1])
    except InctrlError as error:
        return error


def _checked_batch_size(batch_size: int) -> int:
    if batch_size < 1:
        raise InctrlError(f"batch size {batch_size}: choose a positive number")
    return batch_size


def named_sources(images: Any) -> Iterator[tuple[str, Any]]:
    """(name, source) of every image in anything a user may hand over.

    Raises:
        InctrlError: not an image and not a collection of images.
    """
    if isinstance(images, (str, Path)):
        path = Path(images)
        if path.is_dir():
            yield from ((found.relative_to(path).as_posix(), found) for found in find_images(path))
        else:
            yield path.name, path
        return
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim <= 3 or hasattr(images, "getbands"):
        images = [images]
    if not isinstance(images, Iterable):
        raise InctrlError(
            f"cannot take a {type(images).__name__} as images: give a folder, or paths, PIL images, arrays "
            "or tensors"
        )
    for i, image in enumerate(images):
        if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], str):
            yield image
        elif isinstance(image, (str, Path)):
            yield str(image), Path(image)
        else:
            yield f"image {i}", image


def fingerprint(picture: Image) -> bytes:
    """Digest of a picture's size and pixels."""
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()
