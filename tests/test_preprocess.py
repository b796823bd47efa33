"""Where things are: from the picture to the model's input and back, for every mode, size and orientation."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import INTERPOLATIONS, MODES, Preprocessor

SIZES = [(48, 48), (40, 60), (60, 40)]  # rows, columns of the input
PICTURES = [(96, 96), (102, 96), (150, 100), (100, 150), (300, 90), (31, 30)]  # width, height
OPEN_CLIP = {"crop": "shortest", "squeeze": "squash", "letterbox": "longest"}
TIMM = {"crop": "center", "squeeze": "squash", "letterbox": "border"}


def noise(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize(("mode", "size"), list(itertools.product(MODES, SIZES)))
@pytest.mark.parametrize("picture", PICTURES)
def test_inputs_are_those_of_open_clip_and_timm(mode, size, picture):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from timm.data.transforms_factory import transforms_imagenet_eval

    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    ours = Preprocessor(size, mode, mean, std)(noise(picture))
    settings = PreprocessCfg(size=size, mean=mean, std=std, resize_mode=OPEN_CLIP[mode])
    assert torch.equal(ours, image_transform_v2(settings, is_train=False)(noise(picture)))
    if mode != "letterbox":  # timm's border has the colour of the mean
        timm = transforms_imagenet_eval(size, 1.0, TIMM[mode], interpolation="bicubic", mean=mean, std=std)
        assert torch.equal(ours, timm(noise(picture)))


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_pictures_are_resized_with_the_chosen_interpolation(name):
    from timm.data.transforms_factory import transforms_imagenet_eval

    ours = Preprocessor((40, 40), interpolation=name)(noise((150, 100)))
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    timm = transforms_imagenet_eval((40, 40), 1.0, "center", interpolation=name, **half)
    assert torch.equal(ours, timm(noise((150, 100))))


@pytest.mark.parametrize(("mode", "size"), list(itertools.product(MODES, SIZES)))
@pytest.mark.parametrize("picture", PICTURES)
def test_a_square_in_the_picture_is_found_again_where_it_was(mode, size, picture):
    preprocessor, (width, height) = Preprocessor(size, mode), picture
    left, top, right, bottom = preprocessor.seen_box(picture)
    side = (right - left) * 2 // 5, (bottom - top) * 2 // 5
    for column, row in ((left, top), (right - side[0], bottom - side[1]), (left, bottom - side[1])):
        truth = np.zeros((height, width), bool)
        truth[row : row + side[1], column : column + side[0]] = True
        drawn = Image.fromarray((truth * 255).astype(np.uint8))
        seen = preprocessor(drawn.convert("RGB"))[0].numpy() > 0  # where the input is bright
        back = preprocessor.to_picture(seen.astype(np.float32), picture)
        found = np.nan_to_num(back) > 0.5
        overlap = (found & truth).sum() / (found | truth).sum()
        assert overlap > 0.85, (mode, size, picture)


@pytest.mark.parametrize(("mode", "size"), list(itertools.product(MODES, SIZES)))
@pytest.mark.parametrize("picture", PICTURES)
def test_a_mask_lies_in_the_input_where_the_bright_pixels_are(mode, size, picture):
    preprocessor, mask = Preprocessor(size, mode), np.zeros(picture[::-1], bool)
    mask[picture[1] // 3 : picture[1] * 2 // 3, picture[0] // 4 : picture[0] * 2 // 3] = True
    bright = preprocessor(Image.fromarray((mask * 255).astype(np.uint8)))[0] > 0
    covered = preprocessor.to_model(mask)
    assert covered.shape == size and 0 <= covered.min() and covered.max() <= 1 + 1e-6
    assert ((covered > 0.5) == bright).float().mean() > 0.97
    coarse = preprocessor.to_model(mask, (4, 4))
    assert coarse.mean() == pytest.approx(covered.mean().item(), abs=0.01)


def test_a_cell_says_which_share_of_it_a_mask_covers():
    """A line of one pixel is not lost when the picture is reduced."""
    mask = np.zeros((100, 100), bool)
    mask[:50, 33] = True
    for mode in MODES:
        covered = Preprocessor((20, 20), mode).to_model(mask, (10, 10))
        expected = np.zeros((10, 10))
        expected[:5, 3] = 0.1
        np.testing.assert_allclose(covered, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "seen"),
    [("crop", (25, 0, 125, 100)), ("squeeze", (0, 0, 150, 100)), ("letterbox", (0, 0, 150, 100))],
)
def test_what_the_model_does_not_see_is_nan(mode, seen):
    preprocessor = Preprocessor((40, 40), mode)
    assert preprocessor.seen_box((150, 100)) == seen
    back = preprocessor.to_picture(np.ones((3, 3), np.float32), (150, 100))
    assert back.shape == (100, 150)
    expected = np.full((100, 150), np.nan)
    expected[seen[1] : seen[3], seen[0] : seen[2]] = 1
    np.testing.assert_allclose(back, expected, atol=1e-6)


def test_a_map_is_interpolated_between_the_centres_of_its_cells():
    large = Preprocessor((8, 8), "squeeze").to_picture(np.array([[0.0, 1.0], [0.0, 1.0]], np.float32), (4, 4))
    np.testing.assert_allclose(large, np.tile([0, 0.25, 0.75, 1], (4, 1)))


def test_rows_are_rows():
    values = np.zeros((3, 3), np.float32)
    values[0, 2] = 1  # top right
    back = Preprocessor((9, 9)).to_picture(values, (13, 9))
    assert (back[0, 10], back[0, 2], back[8, 10]) == (1, 0, 0)


def test_a_letterbox_keeps_the_ratio_and_has_a_border():
    preprocessor = Preprocessor((40, 40), "letterbox", border=255)
    found = preprocessor(Image.new("RGB", (80, 40), "black"))[0]
    assert (found[:10] == 1).all() and (found[30:] == 1).all() and (found[10:30] == -1).all()


def test_unknown_settings_name_the_known_ones():
    with pytest.raises(InctrlError, match="'stretch'.*crop, squeeze, letterbox"):
        Preprocessor((8, 8), "stretch")
    with pytest.raises(InctrlError, match="'lanczos'.*bicubic, bilinear"):
        Preprocessor((8, 8), interpolation="lanczos")
