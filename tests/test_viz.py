"""Pictures of residual maps: in the right place, on the right scale, and pyplot left alone."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from inctrl_lite.viz import (
    MAP_COLOURS,
    MAP_LABEL,
    colour_range,
    overlay,
    score_figure,
    upsample_to_image,
    visible_box,
)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((8, 8), (0, 0, 8, 8)),
        ((10, 4), (3, 0, 7, 4)),
        ((4, 9), (0, 2, 4, 6)),
        ((1, 5000), (0, 2499, 1, 2500)),
    ],
)
def test_the_backbone_sees_the_central_square(size, box):
    assert visible_box(size) == box


def test_upsampling_is_bilinear_between_the_centres_of_patches():
    large = upsample_to_image(np.array([[0.0, 1.0], [0.0, 1.0]]), (4, 4))
    np.testing.assert_allclose(large, np.tile([0, 0.25, 0.75, 1], (4, 1)))


def test_rows_are_rows_and_what_is_not_seen_is_nan():
    patch_map = np.zeros((3, 3))
    patch_map[0, 2] = 1  # top right
    wide = upsample_to_image(patch_map, (13, 9))
    assert wide.shape == (9, 13)
    assert (wide[0, 10], wide[0, 2], wide[8, 10]) == (1, 0, 0)
    assert np.isnan(wide[:, :2]).all() and np.isnan(wide[:, 11:]).all() and np.isfinite(wide[:, 2:11]).all()


def test_the_scale_begins_at_what_is_usual_and_never_vanishes():
    assert colour_range((0.1, 0.02)) == pytest.approx((0.1, 0.26))
    assert colour_range((0.1, 0.0)) == pytest.approx((0.1, 0.14))


def test_overlay_is_the_grey_picture_where_nothing_is_seen():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8))
    laid = np.asarray(overlay(picture, np.ones((2, 2))))
    grey = np.asarray(picture.convert("L"))
    for columns in (slice(0, 2), slice(8, 10)):
        np.testing.assert_array_equal(laid[:, columns], np.repeat(grey[:, columns, None], 3, axis=2))
    assert np.abs(laid[:, 2:8].astype(int) - grey[:, 2:8, None]).max() > 50


def test_strong_residuals_hide_the_picture_and_weak_ones_leave_it_readable():
    checks = Image.fromarray(np.where(np.indices((8, 8)).sum(0) % 2, 255, 0).astype(np.uint8)).convert("RGB")
    contrast = {value: np.asarray(overlay(checks, np.full((2, 2), value))).std() for value in (0, 0.5, 1)}
    assert contrast[0] > 0.8 * np.asarray(checks).std() > contrast[0.5] > contrast[1] > 10


def test_limits_say_what_is_brightest():
    white, colours = Image.new("RGB", (4, 4), "white"), matplotlib.colormaps[MAP_COLOURS]
    for limits, value in {(0.0, 1.0): 0.5, (0.0, 0.5): 1.0, (0.5, 1.0): 0.0, (0.1, 0.2): 1.0}.items():
        alpha = 0.15 + 0.65 * value
        expected = 255 * (1 - alpha + alpha * np.array(colours(value)[:3]))
        pixel = overlay(white, np.full((2, 2), 0.5), limits).getpixel((1, 1))
        np.testing.assert_allclose(pixel, expected, atol=1)


def test_the_figure_shows_picture_map_and_overlay_on_one_scale():
    open_before = plt.get_fignums()
    picture = Image.new("RGB", (30, 20), "red")
    figure = score_figure(picture, np.eye(4), 0.4321, title="a.png", limits=(0.1, 0.3))
    left, middle, right, bar = figure.axes
    assert left.get_title() == "a.png"
    assert "4 x 4" in middle.get_title()
    assert right.get_title() == "score 0.432"
    np.testing.assert_array_equal(np.asarray(left.images[0].get_array()), np.asarray(picture))
    np.testing.assert_array_equal(middle.images[0].get_array(), np.eye(4))
    assert middle.images[0].get_clim() == (0.1, 0.3) == pytest.approx(bar.get_ylim())
    laid = np.asarray(overlay(picture, np.eye(4), (0.1, 0.3)))
    np.testing.assert_array_equal(np.asarray(right.images[0].get_array()), laid)
    assert bar.get_ylabel() == MAP_LABEL
    assert plt.get_fignums() == open_before


def test_a_known_defect_is_outlined_on_picture_and_overlay():
    mask = np.zeros((20, 30), bool)
    picture = Image.new("RGB", (30, 20))
    for drawn, inside in ((0, False), (1, True)):
        mask[5:10, 8:20] = inside
        left, middle, right, _ = score_figure(picture, np.eye(4), 0.5, mask=mask).axes
        assert [len(axes.collections) for axes in (left, middle, right)] == [drawn, 0, drawn]
    outline = left.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose(outline.extents, [7.5, 4.5, 19.5, 9.5])


def test_names_with_dollars_are_no_formulas():
    figure = score_figure(Image.new("RGB", (8, 8)), np.eye(2), 0.5, title=r"cost $\frac$ 5.png")
    figure.savefig(io.BytesIO(), format="png", dpi=30)
