"""For whoever has a handful of good photos and wants to know which others look wrong.

Three calls::

    detector = AnomalyDetector.from_pretrained("tiny")
    detector.fit("photos/good", category="bottle")
    for prediction in detector.predict("photos/new"):
        print(prediction.name, prediction.score)
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from inctrl_lite.backbone import TINY, Backbone, ImageFeatures, view_count
from inctrl_lite.checkpoint import check_fits
from inctrl_lite.data.images import find_images, load_image
from inctrl_lite.device import pick_device
from inctrl_lite.errors import InctrlError
from inctrl_lite.model import InCTRL, NormalPrompt, Scores
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.viz import colour_range, overlay, score_figure, upsample_to_image

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

TINY_DETECTOR = Path(__file__).parent / "tiny" / "detector"


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the detector says of one image.

    Attributes:
        source: the image as it was given: a path, picture, array or tensor.
        name: path relative to the folder it was found in, or its place in the input ("image 3").
        category: what normal meant.
        score: anomaly score in [0, 1], larger is more anomalous. Not a probability: compare it with a
            threshold of the same category.
        terms: what the score was made of: "holistic", "patch", "image", "text", each in [0, 1].
        patch_map: patch residuals in [0, 1] on the patch grid [h, w]: 0 looks like a normal patch. The
            model is not trained to outline defects; read it as a hint.
        limits: residuals that are drawn darkest and brightest (see `viz.colour_range`).
        threshold: of the category, or None.
        is_prompt: the same pixels are among the normal prompts, so its score means nothing.
    """

    source: Any
    name: str
    category: str
    score: float
    terms: dict[str, float]
    patch_map: np.ndarray
    limits: tuple[float, float]
    threshold: float | None = None
    is_prompt: bool = False

    @property
    def is_anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one."""
        return None if self.threshold is None else self.score > self.threshold

    def image(self) -> Image:
        """The picture (read again from its file)."""
        return load_image(self.source)

    def upsampled_map(self) -> np.ndarray:
        """The patch map at the size of the picture [H, W].

        The part that the backbone does not see (it looks at the central square) is NaN.
        """
        return upsample_to_image(self.patch_map, self.image().size)

    def overlay(self) -> Image:
        """The picture with the residual map laid over it."""
        return overlay(self.image(), self.patch_map, self.limits)

    def figure(self) -> Figure:
        """Picture, residual map and overlay side by side."""
        return score_figure(self.image(), self.patch_map, self.score, title=self.name, limits=self.limits)

    def to_dict(self) -> dict[str, Any]:
        """Everything but picture and map, ready for a table row or JSON."""
        row: dict[str, Any] = {
            "name": self.name,
            "category": self.category,
            "score": self.score,
            **self.terms,
        }
        return row | {
            "threshold": self.threshold,
            "anomalous": self.is_anomalous,
            "is_prompt": self.is_prompt,
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
    def scores(self) -> np.ndarray:
        """The scores, in order."""
        return np.array([prediction.score for prediction in self])


@dataclass(eq=False)
class FittedCategory:
    """What `fit` keeps of a category: everything frozen, computed once.

    Attributes:
        prompt: the K encoded normal images.
        text: text prototypes [2, D].
        threshold: score above which an image is called anomalous, or None.
        threshold_source: how the threshold came about, in words.
        names: the normal prompts' names.
        fingerprints: digests of their pixels.
    """

    prompt: NormalPrompt
    text: Tensor
    threshold: float | None
    threshold_source: str
    names: list[str]
    fingerprints: frozenset[bytes] = field(repr=False)

    @property
    def shots(self) -> int:
        return len(self.prompt.cls)


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
        cls, name: str | Path = TINY, *, backbone: Backbone | None = None, device: str | torch.device = "auto"
    ) -> AnomalyDetector:
        """A trained detector.

        Args:
            name: "tiny" (embedded), a folder written by `InCTRL.save_pretrained` or by training, a
                `.pyth` file of the public code, or a Hugging Face Hub id.
            backbone: what to look with; None: the backbone that the model was trained on.
            device: "auto", "cpu", "cuda", "mps", ...

        Raises:
            InctrlError: nothing there, or it does not fit (the message says what to do).
        """
        if str(name).endswith(".pyth"):
            return cls._from_public(Path(name), backbone, device)
        model = InCTRL.from_pretrained(str(TINY_DETECTOR) if str(name) == TINY else str(name))
        return cls(model, backbone or Backbone.load(**model.backbone), device)

    @classmethod
    def _from_public(cls, path: Path, backbone: Backbone | None, device) -> AnomalyDetector:
        """A checkpoint of the public code: it holds the paper's whole CLIP, so nothing is fetched."""
        from inctrl_lite.backbone import PAPER
        from inctrl_lite.checkpoint import load_public

        model, clip, _ = load_public(path)
        if backbone is None:
            backbone = Backbone.load(PAPER[0], None if clip else PAPER[1])
        if clip:
            try:
                backbone.clip.load_state_dict({"logit_scale": backbone.clip.logit_scale.data} | clip)
            except RuntimeError as error:
                raise InctrlError(
                    f"the CLIP weights in {path} do not fit {backbone.name}: {error}"
                ) from error
        return cls(model, backbone, device)

    # --- normal prompts ------------------------------------------------------------------------------

    def fit(self, normals: Any, category: str = "object", batch_size: int = 32) -> AnomalyDetector:
        """Learn what normal looks like: encodes K normal images and the category's name. No training.

        With the lite head, each normal image is also looked at moved by half a patch, turned and scaled a
        little (`backbone.VIEWS`), so that such a difference is no anomaly; in fewer views where there are
        many, so that a query takes no longer than with four.

        The first threshold comes from the prompts themselves: each is scored against the other K - 1 and
        the largest score is taken. That is a weak guess for K < 4, and none is set for K = 1; `calibrate`
        with labelled images gives a better one.

        Args:
            normals: a folder, or paths, PIL images, arrays or tensors: one or several.
            category: what the images show, in words ("metal nut"): it steers the text prior. Fitting a
                category again replaces it.
            batch_size: images encoded at a time.

        Raises:
            InctrlError: no image, or one that cannot be read (named).
        """
        sources = list(named_sources(normals))
        features, views, fingerprints = [], [], []
        # as many as the others have when one is compared with them
        count = view_count(max(1, len(sources) - 1)) if self.model.head.uses_views else 0
        for batch in batched(sources, batch_size):
            pictures = [load_image(source) for _, source in batch]
            fingerprints += [fingerprint(picture) for picture in pictures]
            features.append(self._encode(pictures))
            if count:
                views.append(self.backbone.encode_views(self._prepare(pictures), count))
        encoded, seen = ImageFeatures.cat(features), ImageFeatures.cat(views) if views else None
        if len(set(fingerprints)) < len(fingerprints):
            warnings.warn(
                f"{category}: some normal prompts are the same picture, which adds nothing", stacklevel=2
            )
        fitted = FittedCategory(
            prompt=NormalPrompt.of(encoded, seen),
            text=text_prototypes(self.backbone, category),
            threshold=None,
            threshold_source="none: one normal prompt cannot be compared with others",
            names=[name for name, _ in sources],
            fingerprints=frozenset(fingerprints),
        )
        if fitted.shots > 1:
            fitted.threshold = max(self._leave_one_out_scores(encoded, seen, fitted.text))
            fitted.threshold_source = f"largest leave-one-out score of the {fitted.shots} normal prompts"
        self.categories[category] = fitted
        return self

    @torch.inference_mode()
    def _leave_one_out_scores(
        self, encoded: ImageFeatures, views: ImageFeatures | None, text: Tensor
    ) -> list[float]:
        """Final score of each prompt against the others."""
        scores, count = [], 0 if views is None else len(views) // len(encoded)
        for k in range(len(encoded)):
            others = torch.arange(len(encoded)) != k
            of_others = others.repeat_interleave(count)
            prompt = NormalPrompt.of(encoded[others], None if views is None else views[of_others])
            scores.append(self.model(encoded[k : k + 1], prompt, text).final.item())
        return scores

    def calibrate(self, images: Any, labels: ArrayLike, category: str | None = None) -> float:
        """Set the category's threshold from labelled images: the one with the best F1. Returns it.

        Args:
            images: what `predict` takes.
            labels: 0 normal, 1 anomalous, one an image; both must occur.

        Raises:
            InctrlError: labels and images do not match, or only one class.
        """
        from inctrl_lite.metrics import calibrate_threshold

        category = self._category(category)
        predictions, labels = self.predict(images, category), np.asarray(labels)
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
        batch_size: int = 32,
        skip_unreadable: bool = False,
        progress: bool = False,
    ) -> Predictions:
        """Score images against the normal prompts.

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
        if progress:
            from tqdm.auto import tqdm

            stream = tqdm(stream, total=len(sources), unit="image", desc="scoring")
        found = list(stream)
        known = [prediction.name for prediction in found if prediction.is_prompt]
        if known:
            warnings.warn(
                f"{len(known)} of {len(found)} queries are also normal prompts; their scores mean nothing: "
                f"{', '.join(known[:3])}{', ...' if len(known) > 3 else ''}",
                stacklevel=2,
            )
        return Predictions(found, skipped or [])

    def stream(
        self,
        images: Any,
        category: str | None = None,
        *,
        batch_size: int = 32,
        skipped: list[tuple[str, str]] | None = None,
    ) -> Iterator[Prediction]:
        """Like `predict`, one by one and in constant memory, for any number of images.

        Args:
            skipped: a list that receives (name, reason) of unreadable files; None: they raise.
        """
        category = self._category(category)
        fitted = self.categories[category]
        limits = colour_range(tuple(fitted.prompt.spread.mean(0).tolist()))
        for batch in batched(named_sources(images), batch_size):
            names, sources, pictures = [], [], []
            for name, source in batch:
                try:
                    pictures.append(load_image(source))
                except InctrlError as error:
                    if skipped is None:
                        raise
                    skipped.append((name, str(error)))
                    continue
                names.append(name)
                sources.append(source)
            if not pictures:
                continue
            scores = self._score(self._encode(pictures), fitted)
            maps = scores.patch_map.reshape(-1, *self.backbone.grid).numpy()
            for i, (name, source, picture) in enumerate(zip(names, sources, pictures, strict=True)):
                yield Prediction(
                    source=source,
                    name=name,
                    category=category,
                    score=scores.final[i].item(),
                    terms={term: getattr(scores, term)[i].item() for term in TERMS},
                    patch_map=maps[i].copy(),
                    limits=limits,
                    threshold=fitted.threshold,
                    is_prompt=fingerprint(picture) in fitted.fingerprints,
                )

    def _category(self, category: str | None) -> str:
        if category is None and len(self.categories) == 1:
            return next(iter(self.categories))
        if category in self.categories:
            return category
        known = ", ".join(map(repr, self.categories)) or "none yet: call fit(normals, category=...) first"
        asked = "say which category" if category is None else f"category {category!r} is not fitted"
        raise InctrlError(f"{asked}. Fitted: {known}")

    def _encode(self, pictures: Sequence[Image]) -> ImageFeatures:
        return self.backbone.encode_image(self._prepare(pictures))

    def _prepare(self, pictures: Sequence[Image]) -> Tensor:
        return torch.stack([self.backbone.transform(picture) for picture in pictures]).to(self.device)

    @torch.inference_mode()
    def _score(self, query: ImageFeatures, fitted: FittedCategory) -> Scores:
        return self.model(query, fitted.prompt, fitted.text).map(lambda t: t.float().cpu())


TERMS = ("holistic", "patch", "image", "text")


def named_sources(images: Any) -> Iterator[tuple[str, Any]]:
    """(name, source) of every image in anything a user may hand over."""
    if isinstance(images, (str, Path)):
        path = Path(images)
        if path.is_dir():
            yield from ((found.relative_to(path).as_posix(), found) for found in find_images(path))
        else:
            yield path.name, path
        return
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim <= 3 or hasattr(images, "getbands"):
        images = [images]
    for i, image in enumerate(images):
        if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], str):
            yield image
        elif isinstance(image, (str, Path)):
            yield str(image), Path(image)
        else:
            yield f"image {i}", image


def batched(iterable: Iterable, size: int) -> Iterator[list]:
    """Lists of up to `size` successive elements."""
    iterator = iter(iterable)
    while batch := list(islice(iterator, size)):
        yield batch


def fingerprint(picture: Image) -> bytes:
    """Digest of a picture's size and pixels."""
    digest = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()
