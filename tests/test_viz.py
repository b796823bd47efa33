"""Pictures of residual maps: in the right place, on the right scale, and pyplot left alone."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.viz import (
    ANOMALY_LABEL,
    MAP_COLOURS,
    MAX_DRAWN,
    colour_range,
    overlay,
    score_figure,
)


def test_the_scale_begins_at_what_is_usual_and_never_vanishes():
    statistics = torch.tensor([[0.0, 0.01], [0.2, 0.03]])  # mean 0.1, standard deviation 0.02 on average
    assert colour_range(statistics) == pytest.approx((0.1, 0.26))
    assert colour_range(torch.tensor([[0.1, 0.0]])) == pytest.approx((0.1, 0.14))


def test_overlay_is_the_grey_picture_where_nothing_is_seen():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8))
    laid = np.asarray(overlay(picture, np.ones((2, 2)), view=Preprocessor((60, 60))))
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
    assert bar.get_ylabel() == ANOMALY_LABEL
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


def test_a_large_picture_is_drawn_at_a_bounded_size():
    import tracemalloc

    picture = Image.new("RGB", (4000, 3000), "red")
    tracemalloc.start()
    drawn = overlay(picture, np.eye(15))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.size == (MAX_DRAWN, MAX_DRAWN * 3 // 4)
    assert peak < 80 * MAX_DRAWN * MAX_DRAWN  # bytes; at full size it took 118 a pixel
