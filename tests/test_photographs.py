"""Development categories cut from photographs: disjoint halves, exact masks, nothing left to chance."""

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the photographs come with scikit-image, an optional package")

from inctrl_lite.data import photographs
from inctrl_lite.data.photographs import HALVES, SCENES, SETS, Region, load_photographs, source, specimen
from inctrl_lite.data.worlds import stream
from inctrl_lite.errors import InctrlError


def few(monkeypatch, name, count=2, **numbers):
    """The first categories of a set: each picture takes some hundredths of a second to make."""
    make = photographs._makers
    monkeypatch.setattr(photographs, "_makers", lambda name: dict(list(make(name).items())[:count]))
    try:
        return load_photographs(name, **{"train": 2, "normal": 1, "anomalous": 2, **numbers})
    finally:
        monkeypatch.undo()


def test_the_two_halves_share_no_source_picture():
    auxiliary, development = (
        {region.source for region in HALVES[half].values()} | set(SCENES[half])
        for half in ("auxiliary", "development")
    )
    assert not auxiliary & development


@pytest.mark.parametrize("half", HALVES)
def test_every_region_lies_in_its_picture(half):
    for name, region in HALVES[half].items():
        height, width = source(region.source).shape[:2]
        for x, y in region.centres or ():
            assert 0 < x < width and 0 < y < height, name
        assert region.side <= max(height, width), name


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_labels_names_and_pictures(monkeypatch, name):
    categories = few(monkeypatch, name)
    names = [item.name for category in categories for item in (*category.train, *category.test)]
    assert len(set(names)) == len(names)
    for category in categories:
        assert [item.label for item in category.train] == [0, 0]
        assert [item.label for item in category.test] == [0, 1, 1]
        for item in (*category.train, *category.test):
            assert item.image.dtype == np.uint8 and item.image.ndim == 3 and item.image.shape[2] == 3


def test_masks_cover_what_differs_and_only_that(monkeypatch):
    """A defect is visible inside its mask, and outside it the picture is the undamaged specimen."""
    for category in few(monkeypatch, "development", 3, anomalous=6):
        for number, item in enumerate(category.test[1:]):
            key = f"development/{category.name}"
            parts = ("photographs", key, "test", number, 0, 1)
            sound = specimen(stream(*parts), HALVES["development"][category.name], "test")
            undamaged = photographs.camera(stream(*parts, "camera"), sound).astype(int)
            difference = np.abs(item.image - undamaged).max(-1)
            assert item.mask.shape == item.image.shape[:2] and 0 < item.mask.mean() < 0.6
            # JPEG spreads a difference over its blocks of 8 pixels (16 in colour)
            assert difference[item.mask].mean() > 3 * difference[~item.mask].mean()


def test_pictures_depend_on_nothing_but_their_names(monkeypatch):
    """Asking for more leaves the first ones as they were; another seed gives others."""
    first = few(monkeypatch, "auxiliary", 1)[0]
    more = few(monkeypatch, "auxiliary", 1, train=3, normal=2, anomalous=3)[0]
    other = few(monkeypatch, "auxiliary", 1, seed=1)[0]
    np.testing.assert_array_equal(first.train[1].image, more.train[1].image)
    np.testing.assert_array_equal(first.test[-1].image, more.test[-2].image)
    assert (first.train[1].image != other.train[1].image).any()


def test_a_surface_is_cut_from_another_part_for_testing(monkeypatch):
    """Left of the middle for training, right of it for testing: the centres never meet."""
    region = Region("brick", None, 130, turn=0)
    ramp = np.broadcast_to(np.linspace(0, 1, 512)[None, :, None], (512, 512, 3))
    monkeypatch.setattr(photographs, "source", lambda name: ramp)
    monkeypatch.setattr(photographs, "_smooth", lambda name, sigma: ramp)
    levels = {
        split: [specimen(stream("side", split, i), region, split)[120:136, 120:136].mean() for i in range(20)]
        for split in ("train", "test")
    }
    assert max(levels["train"]) < 0.55 and min(levels["test"]) > 0.45
    assert np.mean(levels["train"]) < 0.4 and np.mean(levels["test"]) > 0.6


def test_unknown_set_and_missing_package_are_readable_errors(monkeypatch):
    with pytest.raises(InctrlError, match="no set 'cats'.*characters"):
        load_photographs("cats")
    source.cache_clear()

    def missing(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(photographs.resources, "files", missing)
    with pytest.raises(InctrlError, match="scikit-image, which is missing: pip install"):
        source("brick")
    monkeypatch.undo()
    source.cache_clear()
