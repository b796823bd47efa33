"""For whoever has a handful of good photos and wants to know which others look wrong.

Three calls::

    detector = AnomalyDetector.from_pretrained("photo")
    detector.fit("photos/good", category="bottle")
    for prediction in detector.predict("photos/new"):
        print(prediction.name, prediction.score)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from inctrl_lite.backbones import Backbone, ImageFeatures, load_backbone
from inctrl_lite.checkpoint import check_fits
from inctrl_lite.data.images import find_images
from inctrl_lite.device import pick_device
from inctrl_lite.encoder import BATCH_SIZE, Encoder, batched
from inctrl_lite.errors import InctrlError
from inctrl_lite.evidence import Scores
from inctrl_lite.fitted import FittedCategory, fit_category, read_all, without_normals
from inctrl_lite.model import InCTRL
from inctrl_lite.prediction import Prediction, Predictions

DEFAULT = "photo"
# Trained detectors that come with the package.
DETECTORS: dict[str, Path] = {
    "photo": Path(__file__).parent / "photo" / "detector",
    "tiny": Path(__file__).parent / "tiny" / "detector",
}


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

    def fit(
        self,
        normals: Any,
        category: str = "object",
        batch_size: int = BATCH_SIZE,
        *,
        region: Any = None,
        tiles: int | str | None = None,
        any_rotation: bool = False,
        keep_aspect: bool = False,
        bits: int | None = None,
        skipped: list[tuple[str, str]] | None = None,
    ) -> AnomalyDetector:
        """Take in what normal looks like: encodes K normal images and the category's name. No training.

        With a head that asks for it, augmented copies of the normal images belong to the support set
        (`augment.SUPPORT_AUGMENTATIONS`), so that a small shift or rotation is no anomaly.

        The first threshold comes from the normal images themselves: each is scored against the other K - 1,
        and the largest score is taken. Expect about one false alarm in K + 1 normal images. There is none
        for K = 1. `calibrate` gives a better one.

        Args:
            normals: a folder, or paths, PIL images, arrays or tensors: one or several.
            category: what the images show, in words ("metal nut"); the text prior uses it. Fitting a category
                again replaces it.
            batch_size: images encoded at a time.
            region: what counts in a picture, the same place in every one: a mask file or array (what is not
                black counts) or a box (left, top, right, bottom) in pixels. None: all of it.
            tiles: for small defects in large pictures: the side in pixels of overlapping tiles, each of
                which is scored by itself; "auto" chooses it; None: the whole picture at once.
            any_rotation: the parts may lie in any direction: rotated copies belong to the support set.
            keep_aspect: pictures keep their aspect ratio; for backbones that take any size ("photo").
            bits: how many bits grey values really have (see `load_image`).
            skipped: a list that receives (name, reason) of unreadable files; None: they raise.

        Raises:
            InctrlError: no image, one that cannot be read (named), a category that is no name, or options
                that do not go together.
        """
        if not isinstance(category, str) or not category.strip():
            raise InctrlError(
                f"category {category!r}: give the name of what the images show, such as 'bottle'"
            )
        sources = list(named_sources(normals))
        if not sources:
            raise InctrlError("no normal images: fit needs one or more")
        multiple = self.backbone.input_multiple if self.model.head.any_grid else None
        if keep_aspect and multiple is None:
            raise InctrlError(
                f"the backbone {self.backbone.name} with this head takes one input size only, so pictures "
                "cannot keep their aspect ratio: use 'photo', or leave keep_aspect out"
            )
        self.categories[category] = fit_category(
            self.model,
            Encoder(self.backbone, _checked_batch_size(batch_size)),
            category,
            sources,
            region=region,
            tiles=tiles,
            any_rotation=any_rotation,
            keep_aspect=multiple if keep_aspect else None,
            bits=bits,
            skipped=skipped,
        )
        return self

    def fit_without_normals(self, category: str = "object") -> AnomalyDetector:
        """Take in a category of which no normal image is known (K = 0).

        The score is then the model's prior alone: the text score of a CLIP, or the learned prior of "photo".
        It is weak (on the recorded sets of photographs it is far behind one normal image), its scores cannot
        be compared with those for K >= 1, and there is no threshold until `calibrate` sets one. Such a
        category cannot be saved or exported.

        Raises:
            InctrlError: a model without a prior.
        """
        found = without_normals(self.model, self.backbone, category)
        blank = torch.zeros(1, 3, *self.backbone.preprocessor.size, device=self.device)
        self.model.without_normals(Encoder(self.backbone).encode(blank), found.text)  # does it have a prior?
        self.categories[category] = found
        return self

    def calibrate(
        self,
        images: Any = None,
        labels: ArrayLike | None = None,
        category: str | None = None,
        *,
        normals: Any = None,
        false_alarm_rate: float = 0.05,
        recall: float | None = None,
        skipped: list[tuple[str, str]] | None = None,
    ) -> float:
        """Set the category's threshold, and return it.

        From more normal images (`normals`): the smallest threshold that promises the false alarm rate, by
        order statistics (`metrics.conformal_threshold`). They must not be those that were fitted; such are
        left out. From labelled images: the threshold with the best F1, or the largest one that finds the
        given share of the anomalous images (`recall`).

        Args:
            images: what `predict` takes.
            labels: 0 normal, 1 anomalous, one an image; both must occur.
            category: which fitted category; may be left out when there is one.
            normals: normal images that were not fitted, in place of `images` and `labels`.
            false_alarm_rate: wanted share of normal images that are called anomalous, between 0 and 1. With
                fewer than 1 / rate - 1 images it cannot be promised: a warning says so, and the best
                reachable threshold is set.
            recall: wanted share of the anomalous images that are found, above 0 and at most 1.
            skipped: a list that receives (name, reason) of unreadable files; None: they raise.

        Raises:
            InctrlError: labels and images do not match, only one class, no normal image that was not fitted,
                or a rate out of range.
        """
        category = self.category(category)
        fitted = self.categories[category]
        if (normals is None) == (images is None):
            raise InctrlError("calibrate needs either images with labels, or normals: give one of the two")
        if normals is not None:
            return self._calibrate_on_normals(normals, category, false_alarm_rate, skipped)
        from inctrl_lite.metrics import calibrate_threshold, threshold_for_recall

        predictions = self.predict(images, category)
        labels = np.atleast_1d(np.asarray(labels))
        if len(predictions) != len(labels):
            raise InctrlError(f"{len(labels)} labels for {len(predictions)} images: give one an image")
        if recall is None:
            threshold, how = calibrate_threshold(labels, predictions.scores), "best F1"
        else:
            threshold, how = threshold_for_recall(labels, predictions.scores, recall), f"recall {recall:g}"
        rate = float(np.mean(predictions.scores[labels == 0] > threshold))
        fitted.threshold, fitted.expected_rate = float(threshold), None
        fitted.threshold_source = (
            f"{how} on {len(labels)} labelled images; {rate:.1%} of the normal ones lie above it"
        )
        return fitted.threshold

    def _calibrate_on_normals(
        self, normals: Any, category: str, rate: float, skipped: list[tuple[str, str]] | None
    ) -> float:
        from inctrl_lite.metrics import conformal_threshold

        fitted = self.categories[category]
        predictions = list(self.stream(normals, category, skipped=skipped))
        new = {p.digest: p for p in predictions if not p.in_support}
        if len(new) < len(predictions):
            warnings.warn(
                f"{category}: {len(predictions) - len(new)} of {len(predictions)} images were fitted or "
                "occur twice, and are left out: a threshold needs images that are new",
                stacklevel=3,
            )
        if not new:
            raise InctrlError(f"{category}: no normal image that was not fitted; give others")
        scores = [prediction.score for prediction in new.values()]
        found = conformal_threshold(scores, rate)
        fitted.threshold, fitted.expected_rate = found.threshold, found.expected_rate
        fitted.threshold_source = (
            f"{found.images} new normal images: expect at most {found.expected_rate:.2%} false alarms"
        )
        fitted.normal_scores = tuple(scores)
        if found.images < found.images_needed:
            short = f"{rate:.2%} needs {found.images_needed} images"
            fitted.threshold_source += f" ({short})"
            warnings.warn(
                f"{category}: {short}, and there are {found.images}: the largest score is taken, for which "
                f"at most {found.expected_rate:.2%} false alarms are expected",
                stacklevel=3,
            )
        return found.threshold

    # --- files ---------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write model and fitted categories to one file, usually called NAME.inctrl; `load` reads it.

        Raises:
            InctrlError: nothing is fitted, or the file cannot be written.
        """
        from inctrl_lite.detector_file import write_detector

        return write_detector(path, self.model, self.backbone, self.categories)

    @classmethod
    def load(
        cls, path: str | Path, *, backbone: Backbone | None = None, device: str | torch.device = "auto"
    ) -> AnomalyDetector:
        """The detector that `save` wrote, ready to predict. It gives the same scores, bit for bit.

        Args:
            backbone: None: the one that the file names. Its weights must be those it was fitted with.
            device: "auto", "cpu", "cuda", "mps", ...

        Raises:
            InctrlError: missing or damaged file, another version's, or a backbone that is missing.
        """
        from inctrl_lite.detector_file import read_detector

        model, backbone, categories = read_detector(path, backbone)
        detector = cls(model, backbone, device)
        for fitted in categories.values():
            fitted.support = None if fitted.support is None else fitted.support.to(detector.device)
            fitted.text = None if fitted.text is None else fitted.text.to(detector.device)
        detector.categories = categories
        return detector

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
        category = self.category(category)
        fitted = self.categories[category]
        encoder = Encoder(self.backbone, _checked_batch_size(batch_size))
        # tiles of one picture fill a batch by themselves
        pictures = max(1, batch_size // fitted.view.count)
        for batch in batched(named_sources(images), pictures):
            read = read_all(batch, fitted.view, skipped)
            if not read:
                continue
            inputs = torch.stack([inputs for *_, inputs in read])  # [B, T, 3, H, W]
            for (name, source, digest, _), found in zip(
                read, self._found(inputs, encoder, fitted), strict=True
            ):
                score, terms, patch_map = found
                yield Prediction(
                    source=source,
                    name=name,
                    category=category,
                    score=score,
                    terms=terms,
                    patch_map=patch_map,
                    view=fitted.view,
                    digest=digest,
                    limits=fitted.limits,
                    normal_scores=fitted.normal_scores,
                    threshold=fitted.threshold,
                    in_support=digest in fitted.fingerprints,
                )

    def _found(
        self, inputs: Float[Tensor, "B T 3 H W"], encoder: Encoder, fitted: FittedCategory
    ) -> Iterator[tuple[float, dict[str, float], np.ndarray]]:
        """(score, terms, map) of each picture: those of the tile with the largest score."""
        if fitted.view.count == 1:
            features = encoder.encode(inputs[:, 0].to(self.device))
            scores = self._score(features, fitted, [0])
            maps = scores.heat_map.unflatten(-1, features.map_grid).numpy()  # [B, h, w]
            for i, patch_map in enumerate(maps):
                yield (
                    scores.final[i].item(),
                    {k: v[i].item() for k, v in scores.terms.items()},
                    patch_map.copy(),
                )
            return
        for tiles in inputs:  # [T, 3, H, W]
            parts = []
            for which in batched(range(len(tiles)), fitted.tiles_at_once):
                features = encoder.encode(tiles[which].to(self.device))
                parts.append(self._score(features, fitted, which))
            scores = Scores.cat(parts)
            worst = int(scores.final.argmax())
            maps = scores.heat_map.unflatten(-1, features.map_grid).numpy()  # [T, h, w]
            terms = {k: v[worst].item() for k, v in scores.terms.items()}
            yield scores.final[worst].item(), terms, fitted.view.stitch(maps)

    def category(self, category: str | None) -> str:
        """The name of a fitted category; None: the only one.

        Raises:
            InctrlError: it is not fitted, or None and there is more than one.
        """
        if category is None and len(self.categories) == 1:
            return next(iter(self.categories))
        if category in self.categories:
            return category
        known = ", ".join(map(repr, self.categories)) or "none yet: call fit(normals, category=...) first"
        asked = "say which category" if category is None else f"category {category!r} is not fitted"
        raise InctrlError(f"{asked}. Fitted: {known}")

    @torch.inference_mode()
    def _score(self, query: ImageFeatures, fitted: FittedCategory, tiles: list[int]) -> Scores:
        if fitted.support is None:
            scores = self.model.without_normals(query, fitted.text)
        else:
            scores = self.model(query, fitted.support_of(tiles), fitted.text)
        scores = scores.map(lambda tensor: tensor.float().cpu())
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
