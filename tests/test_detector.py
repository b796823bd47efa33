"""The detector: any input, any batch size, clear errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.backbone import VIEWS
from inctrl_lite.detector import named_sources


def picture(seed: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


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
    assert first.patch_map.shape == detector.backbone.grid
    assert first.terms["patch"] == pytest.approx(first.patch_map.max())
    assert first.is_anomalous == (first.score > first.threshold)
    frame = predictions.to_frame()
    assert list(frame["name"]) == [f"{i}.png" for i in range(5)]
    assert {"score", "holistic", "patch", "image", "text", "threshold", "anomalous"} <= set(frame.columns)
    assert first.overlay().size == first.image().size == (40, 40)
    assert first.upsampled_map().shape == (40, 40)


@pytest.mark.parametrize("count", [4, 9])  # each prompt in seven more views, in two; eight others in three
def test_the_first_threshold_is_the_largest_leave_one_out_score(detector, small_backbone, count):
    pictures = [picture(i) for i in range(count)]
    detector.fit(pictures, "bottle")
    scores = []
    for k in range(count):
        rest = AnomalyDetector(detector.model, small_backbone, "cpu")
        rest.fit(pictures[:k] + pictures[k + 1 :], "bottle")
        scores.append(rest.predict(pictures[k])[0].score)
    assert detector.categories["bottle"].threshold == pytest.approx(max(scores), abs=1e-6)


def test_the_lite_head_sees_prompts_in_more_views_and_the_papers_does_not(small_backbone):
    for head, pictures in (("lite", 1 + len(VIEWS)), ("paper", 1)):
        model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head)
        found = AnomalyDetector(model, small_backbone, "cpu").fit([picture(0), picture(1)], "bottle")
        assert len(found.categories["bottle"].prompt.patches) == 2 * pictures
        assert found.categories["bottle"].shots == 2


@pytest.mark.parametrize(("shots", "pictures"), [(4, 32), (8, 32), (9, 27), (33, 33)])
def test_many_prompts_are_seen_in_fewer_views(detector, shots, pictures):
    detector.fit([picture(i) for i in range(shots)], "bottle")
    assert len(detector.categories["bottle"].prompt.patches) == pictures


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


def test_a_query_that_is_a_normal_prompt_is_flagged(detector):
    with pytest.warns(UserWarning, match="1 of 2 queries are also normal prompts.*image 0"):
        predictions = detector.predict([picture(0), picture(50)])
    assert [p.is_prompt for p in predictions] == [True, False]


def test_the_same_prompt_twice_is_said(detector):
    with pytest.warns(UserWarning, match="same picture"):
        detector.fit([picture(0), picture(0)], "twins")


def test_unreadable_files_are_named_and_skipped_only_when_asked(detector, folder):
    (folder / "2.png").write_bytes(b"not an image")
    with pytest.raises(InctrlError, match="2.png"):
        detector.predict(folder)
    predictions = detector.predict(folder, skip_unreadable=True)
    assert [p.name for p in predictions] == ["0.png", "1.png", "3.png", "4.png"]
    assert [name for name, _ in predictions.skipped] == ["2.png"]


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
