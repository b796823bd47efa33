"""The procedural worlds: the same pictures for the same seed, correct labels and masks, and evaluation on
objects that occur neither in training nor in pretraining."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from inctrl_lite.data import drawing, worlds
from inctrl_lite.data.worlds import AUXILIARY, EVALUATION, WORLDS, families, load_world
from inctrl_lite.errors import InctrlError

# Worlds whose anomalies are other objects, not defects.
SEMANTIC = {name for name in EVALUATION if WORLDS[name].domain == "semantic"}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    """Every category of a world: two training images, one normal and three anomalous test images."""
    return request.param, load_world(request.param, train=2, normal=1, anomalous=3)


def items(categories):
    return [item for category in categories for item in (*category.train, *category.test)]


def test_pictures_labels_and_masks_agree(world):
    name, categories = world
    for category in categories:
        assert (category.dataset, category.domain) == (name, WORLDS[name].domain)
        assert [item.label for item in category.train] == [0, 0]
        assert [item.label for item in category.test] == [0, 1, 1, 1]
    for item in items(categories):
        assert item.image.shape == (120, 120, 3) and item.image.dtype == np.uint8
        assert item.image.std() > 5, f"{item.name} is empty"
        assert (item.label == 0) == (item.defect == "good")
        if item.label == 0 or name in SEMANTIC:
            assert item.mask is None
        else:
            assert item.mask.shape == (120, 120) and item.mask.dtype == bool
            assert 25 <= item.mask.sum() < item.mask.size / 2, item.name


def test_names_are_unique_and_say_what_is_seen(world):
    name, categories = world
    names = [item.name for item in items(categories)]
    assert len(set(names)) == len(names)
    assert len({c.name for c in categories}) == len(categories)
    for category in categories:
        last = category.test[-1]
        assert last.name == f"{name}/{category.name}/test/{last.defect.replace(' ', '-')}/0002"
        assert category.train[1].name == f"{name}/{category.name}/train/good/0001"
        # Text prompts are made of these names.
        assert category.name == category.name.lower() and "_" not in category.name


def test_no_two_pictures_are_the_same(world):
    name, categories = world
    for category in categories:
        pictures = [item.image.tobytes() for item in (*category.train, *category.test)]
        assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("name", ["unseen-industrial", "fabric", "ct-like", "digits-multiclass", "drawn"])
def test_asking_for_more_leaves_the_first_as_they_were(name):
    few, many = (
        load_world(name, train=1, normal=1, anomalous=2),
        load_world(name, train=2, normal=3, anomalous=3),
    )
    for a, b in zip(few, many, strict=True):
        kept = [b.train[0], b.test[0], b.test[3], b.test[4]]
        for old, new in zip((*a.train, *a.test), kept, strict=True):
            assert old.name == new.name and (old.image == new.image).all()
            assert old.mask is None or (old.mask == new.mask).all()


def test_another_seed_gives_other_pictures_of_the_same_categories():
    one, other = (load_world("mri-like", train=1, normal=1, anomalous=1, seed=s)[0] for s in (0, 1))
    assert one.name == other.name
    for a, b in zip((*one.train, *one.test), (*other.train, *other.test), strict=True):
        assert (a.image != b.image).any()


def test_another_process_draws_the_same_pictures():
    """Python's own string hashes differ between processes, so no seed may depend on them."""
    script = (
        "import zlib; from inctrl_lite.data.worlds import load_world\n"
        "for w in ('solar', 'drawn-multiclass'):\n"
        "    c = load_world(w, train=1, normal=1, anomalous=1)[0]\n"
        "    print(*(zlib.crc32(i.image.tobytes()) for i in (*c.train, *c.test)))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", script]) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", worlds._PAINTED)
def test_the_mask_holds_what_the_fault_changed(name, monkeypatch):
    """Without the simulated photograph, faulty and normal specimen differ only inside the mask."""
    monkeypatch.setattr(drawing, "photograph", lambda rng, image: drawing.to_uint8(image))
    for category, (render, faults) in list(worlds._PAINTED[name]().items())[::5]:
        make, key = worlds._painted_maker(render, faults), f"{name}/{category}"
        for number in range(len(faults)):
            item = make(key, "test", number, 0, True)
            normal = render(worlds.stream(key, "test", number, 0, 1), None, worlds.stream("unused")).image
            change = np.abs(item.image.astype(int) - drawing.to_uint8(normal)).max(-1)
            assert item.defect == faults[number]
            assert change[~item.mask].max() <= 11  # 0.04 of 255: nothing that an eye would find
            assert change[item.mask].sum() > 0.5 * change.sum()


def test_every_kind_of_fault_has_its_turn():
    category = load_world("unseen-industrial", train=0, normal=0, anomalous=6)[0]
    assert [item.defect for item in category.test] == [
        "missing component",
        "rotated component",
        "solder bridge",
    ] * 2


def test_digits_are_what_their_labels_say():
    one = load_world("digits", train=2, normal=2, anomalous=12)
    assert [c.name for c in one] == [f"digit {d}" for d in range(10)]
    for category in one:
        assert category.name not in {item.defect for item in category.test}
    even = load_world("digits-multiclass", train=0, normal=0, anomalous=12)[0]
    assert {int(item.defect[-1]) % 2 for item in even.test} == {1}


def test_training_and_test_digits_are_different_scans():
    category = load_world("digits", train=80, normal=80, anomalous=0)[3]
    train = {item.image.tobytes() for item in category.train}
    assert not train & {item.image.tobytes() for item in category.test}


def test_drawn_things_are_normal_or_anomalous_but_never_both():
    from inctrl_lite.data.worlds.semantic import THINGS, VEHICLES

    assert [c.name for c in load_world("drawn", train=0, normal=0, anomalous=0)] == list(THINGS)
    many = load_world("drawn-multiclass", train=0, normal=0, anomalous=12)[0]
    assert {item.defect for item in many.test} == set(VEHICLES)


def test_evaluation_shows_nothing_that_the_auxiliary_world_has_shown():
    seen = families(AUXILIARY)
    for name in EVALUATION:
        unseen = families(name)
        assert not seen["objects"] & unseen["objects"] and not seen["textures"] & unseen["textures"]
        assert not seen["textures"] & unseen["objects"] and not seen["objects"] & unseen["textures"]
    without = [name for name in EVALUATION if not seen["defects"] & families(name)["defects"]]
    assert len(without) >= len(EVALUATION) / 2


def test_pretraining_has_seen_none_of_it():
    corpus = pytest.importorskip("inctrl_lite.tiny.corpus").FAMILIES
    known = corpus["objects"] | corpus["textures"]
    for name in WORLDS:
        assert not known & (families(name)["objects"] | families(name)["textures"])
    without = [name for name in EVALUATION if not corpus["defects"] & families(name)["defects"]]
    assert len(without) >= len(EVALUATION) / 2


def test_every_world_draws_what_it_says():
    for a, b in combinations(EVALUATION, 2):
        if a.split("-")[0] != b.split("-")[0]:
            assert not families(a)["objects"] & families(b)["objects"]
    for name in WORLDS:
        assert families(name)["objects"] | families(name)["textures"]
        assert WORLDS[name].about


def test_an_unknown_world_is_named_with_those_there_are():
    for ask in (load_world, families):
        with pytest.raises(InctrlError, match="no world 'mvtec'.*industrial, unseen-industrial, solar"):
            ask("mvtec")
