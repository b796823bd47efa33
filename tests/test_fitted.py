"""What `fit` can be told about the pictures: region, tiles, rotation, aspect ratio; and what it keeps."""

import numpy as np
import pytest
import torch
from conftest import small_cnn
from PIL import Image

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.augment import rotated_copies
from inctrl_lite.backbones import Stage
from inctrl_lite.encoder import Encoder
from inctrl_lite.fitted import fit_category
from inctrl_lite.support import SupportSet


def noise(seed: int, size: tuple[int, int] = (40, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)


def surface(seed: int, size: tuple[int, int] = (160, 160)) -> np.ndarray:
    """A grey surface with a little noise."""
    grey = np.random.default_rng(seed).normal(120, 4, (*size[::-1], 1))
    return np.repeat(grey, 3, 2).clip(0, 255).astype(np.uint8)


@pytest.fixture
def photo_like():
    """A small random convolutional network with the head of the photo detector: any input size fits."""
    torch.manual_seed(0)
    backbone = small_cnn()
    model = InCTRL(backbone.embed_dim, backbone.num_patches, "prior", stage_widths=backbone.stage_widths)
    return AnomalyDetector(model, backbone, "cpu")


@pytest.fixture
def clip_like(small_backbone):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, head="lite")
    return AnomalyDetector(model, small_backbone, device="cpu")


@pytest.mark.parametrize("which", ["photo_like", "clip_like"])
def test_one_tile_is_the_same_as_none(which, request):
    detector = request.getfixturevalue(which)
    normals, query = [noise(i) for i in range(3)], noise(9)
    one = detector.fit(normals, "plate").predict(query)[0]
    other = detector.fit(normals, "plate", tiles=40).predict(query)[0]
    assert one.score == other.score and one.terms == other.terms
    assert other.view.count == 1


@pytest.mark.parametrize("which", ["photo_like", "clip_like"])
def test_tiles_find_what_the_whole_picture_loses(which, request):
    detector = request.getfixturevalue(which)
    detector.fit([surface(i) for i in range(3)], "plate", tiles=64)
    damaged = surface(9)
    damaged[120:128, 40:48] = 250
    sound, found = detector.predict([surface(8), damaged])
    assert detector.categories["plate"].view.tiles == (3, 3)
    assert found.score > sound.score
    row, column = np.unravel_index(found.upsampled_map().argmax(), (160, 160))
    assert abs(row - 124) < 25 and abs(column - 44) < 25


def test_scores_of_tiles_do_not_depend_on_the_batch(photo_like):
    photo_like.fit([surface(i) for i in range(3)], "plate", tiles=64)
    queries = [surface(20 + i) for i in range(3)]
    one, many = (photo_like.predict(queries, batch_size=size) for size in (1, 32))
    np.testing.assert_allclose(one.scores, many.scores, atol=1e-6)
    np.testing.assert_allclose(one[1].patch_map, many[1].patch_map, atol=1e-6)


@pytest.mark.parametrize("tiles", [None, 64])
@pytest.mark.parametrize("which", ["photo_like", "clip_like"])
def test_the_threshold_is_the_largest_score_of_a_normal_image_against_the_others(which, tiles, request):
    detector = request.getfixturevalue(which)
    pictures = [surface(i) for i in range(4)]
    fitted = detector.fit(pictures, "plate", tiles=tiles).categories["plate"]
    expected = []
    for k in range(4):
        detector.fit(pictures[:k] + pictures[k + 1 :], "plate", tiles=tiles)
        expected.append(detector.predict(pictures[k])[0].score)
    assert fitted.normal_scores == pytest.approx(expected, abs=1e-5)
    assert fitted.threshold == max(fitted.normal_scores) and fitted.expected_rate == 1 / 5
    assert "about 1 false alarm in 5 normal images" in fitted.threshold_source


def test_what_lies_outside_the_region_changes_nothing(photo_like):
    box = (10, 20, 130, 150)
    photo_like.fit([surface(i) for i in range(3)], "plate", region=box)
    plain, marked = surface(9), surface(9)
    marked[:20], marked[:, :10], marked[150:], marked[:, 130:] = 255, 255, 0, 0
    one, other = photo_like.predict([plain, marked])
    assert one.score == other.score
    seen = np.isfinite(other.upsampled_map())
    assert seen[20:150, 10:130].all() and not seen[:20].any() and not seen[:, 130:].any()


def test_a_picture_of_another_shape_than_the_region_is_named(photo_like):
    photo_like.fit([surface(i) for i in range(2)], "plate", region=(10, 10, 100, 100))
    with pytest.raises(InctrlError, match="region has 160 x 160 pixels and a picture has 80 x 160"):
        photo_like.predict(surface(9, (80, 160)))
    skipped: list[tuple[str, str]] = []
    assert not list(photo_like.stream([surface(9, (80, 160))], skipped=skipped))
    assert skipped[0][0] == "image 0"


def test_rotated_copies_make_a_rotated_part_normal(photo_like):
    def part(angle: float, seed: int) -> Image.Image:
        picture = Image.fromarray(surface(seed, (96, 96)))
        picture.paste((230, 230, 230), (44, 8, 52, 60))
        return picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=(120, 120, 120))

    normals = [part(0, i) for i in range(3)]
    photo_like.fit(normals, "plain").fit(normals, "any", any_rotation=True)
    turned = part(90, 9)
    plain, tolerant = (photo_like.predict(turned, name)[0].terms["patch"] for name in ("plain", "any"))
    assert tolerant < 0.8 * plain
    assert photo_like.categories["any"].support.stages[0].tokens.shape[1] == 3 * 12
    with pytest.raises(InctrlError, match="tiles and any rotation exclude each other"):
        photo_like.fit(normals, "both", any_rotation=True, tiles=32)


def test_the_aspect_ratio_is_kept_where_the_backbone_allows_it(photo_like, clip_like):
    normals = [surface(i, (240, 80)) for i in range(3)]
    photo_like.fit(normals, "strip", keep_aspect=True)
    found = photo_like.predict(surface(9, (240, 80)))[0]
    assert found.view.preprocessor.size == (32, 96) and found.patch_map.shape == (2, 6)
    assert found.upsampled_map().shape == (80, 240)
    with pytest.raises(InctrlError, match="takes one input size only"):
        clip_like.fit(normals, "strip", keep_aspect=True)


def test_unreadable_normal_images_are_named_and_left_out_only_when_asked(photo_like, tmp_path):
    for i in range(3):
        Image.fromarray(surface(i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(InctrlError, match="1.png"):
        photo_like.fit(tmp_path, "plate")
    skipped: list[tuple[str, str]] = []
    photo_like.fit(tmp_path, "plate", skipped=skipped)
    assert photo_like.categories["plate"].names == ("0.png", "2.png")
    assert [name for name, _ in skipped] == ["1.png"]
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "2.png").unlink()
    with pytest.raises(InctrlError, match="none of the 2 normal images can be read"):
        photo_like.fit(tmp_path, "plate", skipped=[])


def test_grey_values_are_read_with_the_bits_they_have(photo_like, tmp_path):
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 1000, (64, 64)).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    photo_like.fit(tmp_path, "scan", bits=12)
    values[:] = 900
    Image.fromarray(values).save(tmp_path / "query.png")
    bright = np.asarray(photo_like.predict(tmp_path / "query.png")[0].image())
    assert bright.max() <= 1000 * 255 // 4095


# --- calibration -------------------------------------------------------------------------------------


def test_normal_images_set_a_threshold_with_a_promise(photo_like):
    photo_like.fit([surface(i) for i in range(3)], "plate")
    new = [surface(100 + i) for i in range(19)]
    threshold = photo_like.calibrate(normals=new, false_alarm_rate=0.1)
    fitted, scores = photo_like.categories["plate"], np.sort(photo_like.predict(new).scores)
    assert threshold == fitted.threshold == scores[-2]  # 2 of 20 ranks
    assert fitted.expected_rate == pytest.approx(0.1) and sorted(fitted.normal_scores) == list(scores)
    assert "19 new normal images: expect at most 10.00% false alarms" in fitted.threshold_source


def test_too_few_normal_images_are_said_and_the_best_threshold_is_set(photo_like):
    photo_like.fit([surface(i) for i in range(3)], "plate")
    with pytest.warns(UserWarning, match="1.00% needs 99 images, and there are 4.*at most 20.00%"):
        threshold = photo_like.calibrate(normals=[surface(50 + i) for i in range(4)], false_alarm_rate=0.01)
    assert threshold == max(photo_like.categories["plate"].normal_scores)


def test_fitted_and_repeated_images_do_not_calibrate(photo_like):
    photo_like.fit([surface(i) for i in range(3)], "plate")
    new = [surface(1), surface(50), surface(50), surface(51), surface(52)]
    with pytest.warns(UserWarning, match="2 of 5 images were fitted or occur twice"):
        photo_like.calibrate(normals=new, false_alarm_rate=0.5)
    assert len(photo_like.categories["plate"].normal_scores) == 3
    with pytest.warns(UserWarning), pytest.raises(InctrlError, match="no normal image that was not fitted"):
        photo_like.calibrate(normals=[surface(0)])
    with pytest.raises(InctrlError, match="false alarm rate lies between 0 and 1"):
        photo_like.calibrate(normals=[surface(60)], false_alarm_rate=1.0)
    with pytest.raises(InctrlError, match="give one of the two"):
        photo_like.calibrate()


def test_a_wanted_recall_is_reached_with_the_largest_threshold(photo_like):
    photo_like.fit([surface(i) for i in range(3)], "plate")
    images = [surface(100 + i) if i < 5 else noise(i, (160, 160)) for i in range(10)]
    labels = [0] * 5 + [1] * 5
    photo_like.calibrate(images, labels, recall=0.8)
    verdicts = [p.is_anomalous for p in photo_like.predict(images)]
    assert sum(verdicts[5:]) == 4
    assert "recall 0.8 on 10 labelled images" in photo_like.categories["plate"].threshold_source
    with pytest.raises(InctrlError, match="a recall lies above 0"):
        photo_like.calibrate(images, labels, recall=0.0)


def test_fitting_by_the_function_is_fitting_by_the_method(photo_like):
    pictures = [surface(i) for i in range(3)]
    encoder = Encoder(photo_like.backbone)
    alone = fit_category(photo_like.model, encoder, "plate", [(str(i), p) for i, p in enumerate(pictures)])
    assert alone.normal_scores == photo_like.fit(pictures, "plate").categories["plate"].normal_scores


def test_pictures_of_neighbouring_tiles_follow_image_by_image():
    """So that the regions of an image and of its neighbours are told apart (`residual.region_distance`)."""
    shots, tiles = 2, 4
    # the number of tile and image in every token: 10 t + k
    tokens = (10 * torch.arange(tiles)[:, None] + torch.arange(shots)).float()[
        ..., None, None
    ]  # [T, K, 1, 1]
    support = SupportSet(
        torch.zeros(tiles, shots, 3), (Stage(tokens, (1, 1)),), (1, 1), Stage(tokens, (1, 1))
    )
    joined = support.with_neighbours([1, 3], [[0, 1], [1, 0, 2], [2, 3], [3, 2, 1]])
    expected = [[10, 11, 0, 20, 1, 21], [30, 31, 20, 10, 21, 11]]
    for stage in (*joined.stages, joined.regions):
        assert stage.tokens[..., 0, 0].tolist() == expected


def test_copies_are_rotated_by_equal_steps_and_many_normal_images_have_fewer():
    picture = Image.fromarray(noise(0))
    copies = rotated_copies(picture, 4)
    assert len(copies) == 11
    for number, turn in ((2, Image.Transpose.ROTATE_90), (5, Image.Transpose.ROTATE_180)):
        np.testing.assert_array_equal(np.asarray(copies[number]), np.asarray(picture.transpose(turn)))
    assert [len(rotated_copies(picture, shots)) for shots in (1, 23, 24, 1000)] == [11, 11, 10, 3]
