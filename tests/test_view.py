"""Regions and tiles: what is looked at, and how the map finds its way back."""

import numpy as np
import pytest
from PIL import Image

from inctrl_lite.errors import InctrlError
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.view import HIDDEN, MAX_TILES, Region, View, automatic_tile

WHOLE_INPUT = Preprocessor((64, 64), "squeeze")


def square(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Black, with a white square."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), box)
    return picture


def brightness(view: View, picture: Image.Image) -> np.ndarray:
    """The map that a perfect detector of brightness would make: cell means of each tile's input."""
    tiles = [view.preprocessor(part).mean(0).numpy() for part in view.cut(picture)]
    rows, columns = tiles[0].shape
    return np.stack([t.reshape(rows // 4, 4, columns // 4, 4).mean((1, 3)) for t in tiles])


@pytest.mark.parametrize("size", [(300, 300), (400, 200), (210, 420), (64, 64)])
@pytest.mark.parametrize("tiles", [None, 100, "auto"])
@pytest.mark.parametrize("region", [None, (20, 30, 190, 180)])
@pytest.mark.parametrize("keep_aspect", [None, 32])
def test_a_bright_square_is_found_where_it_was_drawn(size, tiles, region, keep_aspect):
    if region and size == (64, 64):
        region = (8, 16, 64, 48)
    left, top, right, bottom = region or (0, 0, *size)
    side = max(12, min(right - left, bottom - top) // 3)
    x, y = right - side - 8, top + 8
    box = (x, y, x + side, y + side)
    view = View.of(WHOLE_INPUT, size, region=region, tiles=tiles, keep_aspect=keep_aspect)
    found = view.to_picture(view.stitch(brightness(view, square(size, box))), size)
    assert found.shape == size[::-1]
    inside = np.zeros(size[::-1], bool)
    inside[top:bottom, left:right] = True
    assert np.isnan(found[~inside]).all() and np.isfinite(found[inside]).all()
    truth = np.zeros(size[::-1], bool)
    truth[y : y + side, x : x + side] = True
    middle = (np.nanmin(found) + np.nanmax(found)) / 2
    bright = np.nan_to_num(found, nan=-np.inf) > middle
    overlap = (bright & truth).sum() / (bright | truth).sum()
    assert overlap > 0.5, overlap


def test_tiles_cover_everything_and_overlap():
    view = View.of(WHOLE_INPUT, (500, 300), tiles=128)
    boxes = view.boxes((500, 300))
    covered = np.zeros((300, 500), int)
    for left, top, right, bottom in boxes:
        assert right - left <= 129 and bottom - top <= 129
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1 and covered.max() >= 2
    assert len(boxes) == view.count == view.tiles[0] * view.tiles[1]


def test_tiles_of_one_value_are_stitched_to_that_value():
    view = View(WHOLE_INPUT, tiles=(3, 4))
    np.testing.assert_allclose(view.stitch(np.full((12, 5, 7), 0.3, np.float32)), 0.3, rtol=1e-6)


def test_neighbours_are_the_tile_itself_and_the_eight_around_it():
    near = View(WHOLE_INPUT, tiles=(3, 4)).neighbours()
    assert near[5][0] == 5 and sorted(near[5]) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert near[0][0] == 0 and set(near[0]) == {0, 1, 4, 5} and len(near[0]) == 9


def test_what_does_not_count_is_hidden_and_cut_away():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 50:150] = True
    mask[20:30, 50:60] = False
    part = View.of(WHOLE_INPUT, (200, 100), region=mask).cut(square((200, 100), (0, 0, 200, 100)))[0]
    assert part.size == (100, 40)
    assert part.getpixel((2, 2)) == HIDDEN and part.getpixel((50, 20)) == (255, 255, 255)


def test_a_map_is_empty_where_a_region_of_any_shape_does_not_count():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 50:150] = True
    mask[20:30, 50:60] = False
    found = View.of(WHOLE_INPUT, (200, 100), region=mask).to_picture(np.ones((4, 4), np.float32), (200, 100))
    np.testing.assert_array_equal(np.isfinite(found), mask)


def test_a_region_is_the_same_place_in_a_picture_of_another_size(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    mask[50:, 100:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    region = Region.of(tmp_path / "mask.png", (400, 200))
    assert region.box((400, 200)) == (200, 100, 400, 200)
    assert region.box((200, 100)) == (100, 50, 200, 100)
    large = np.zeros((3000, 3000), bool)
    large[1500] = True
    assert Region.of(large, (3000, 3000)).mask.shape == (1024, 1024)
    assert Region.of(large, (3000, 3000)).mask.any(), "a thin region is still there"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, 0, 300, 50), "does not lie inside a picture of 200 x 100"),
        ((50, 50, 50, 60), "does not lie inside"),
        ((1, 2, 3), "give a mask, or a box of four numbers"),
        ("1,2,x,4".split(","), "box of four numbers"),
        (np.zeros((100, 200), bool), "region is empty"),
        (np.ones((100, 100), bool), "100 x 100 pixels and a picture has 200 x 100"),
    ],
)
def test_a_region_that_does_not_fit_is_refused(given, message):
    with pytest.raises(InctrlError, match=message):
        Region.of(given, (200, 100))


def test_tiles_that_are_too_small_are_refused():
    with pytest.raises(InctrlError, match="tiles of 8 pixels: choose 16 or more, or auto"):
        View.of(WHOLE_INPUT, (200, 100), tiles=8)


def test_automatic_tiles_are_never_more_than_the_limit():
    for size in ((4000, 3000), (12000, 9000), (20000, 200)):
        assert View.of(WHOLE_INPUT, size, tiles="auto").count <= MAX_TILES
        assert automatic_tile(size, (64, 64)) > 64
