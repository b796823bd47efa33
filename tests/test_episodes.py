"""Episodes: balanced, never with the query among its prompts, the same for the same seed and step."""

from collections import Counter
from dataclasses import replace

import pytest
from conftest import draw_category

from inctrl_lite.data.episodes import draw_support, normals, sample_batch
from inctrl_lite.errors import InctrlError


def names(episodes) -> list:
    return [(e.category.name, e.query.name, *(item.name for item in e.support)) for e in episodes]


def test_half_normal_half_anomalous(small_categories):
    for step in range(20):
        labels = [e.query.label for e in sample_batch(small_categories, step, batch_size=10)]
        assert labels == [0] * 5 + [1] * 5


def test_normal_images_are_others_of_the_same_category(small_categories):
    for step in range(50):
        for episode in sample_batch(small_categories, step, batch_size=8, shots=13):
            assert len({item.name for item in episode.support}) == 13
            assert episode.query.name not in {item.name for item in episode.support}
            assert {item.label for item in episode.support} == {0}
            assert {item.name.split("/")[0] for item in (episode.query, *episode.support)} == {
                episode.category.name
            }


def test_both_splits_normals_serve_as_support_and_queries(small_categories):
    episodes = [e for step in range(30) for e in sample_batch(small_categories, step, batch_size=8)]
    for pool in ([e.query for e in episodes if e.query.label == 0], [i for e in episodes for i in e.support]):
        assert {item.name.split("/")[1] for item in pool} == {"train", "test"}


def test_every_image_has_its_turn_before_any_comes_again(small_categories):
    queries = sum(len(normals(c)) for c in small_categories)  # 42 normal, 24 anomalous
    episodes = [e for step in range(21) for e in sample_batch(small_categories, step, batch_size=4)]
    count = Counter(e.query.name for e in episodes if e.query.label == 0)
    assert len(count) == queries == 42
    assert set(count.values()) == {1}


def test_a_step_is_a_function_of_seed_and_step(small_categories):
    straight = [names(sample_batch(small_categories, step, seed=3)) for step in range(6)]
    assert names(sample_batch(small_categories, 4, seed=3)) == straight[4]
    assert names(sample_batch(small_categories, 4, seed=4)) != straight[4]
    assert len({str(step) for step in straight}) == 6


def test_support_sets_are_drawn_afresh_at_every_step(small_categories):
    first = [sample_batch(small_categories[:1], step, batch_size=2, shots=2)[0] for step in range(30)]
    assert len({frozenset(item.name for item in episode.support) for episode in first}) > 10


def test_what_cannot_be_sampled_is_named(small_categories):
    few = draw_category("few", train=2, normal=2)
    with pytest.raises(InctrlError, match="'few' has 4 normal images; 4 shots need at least 5"):
        sample_batch([*small_categories, few], 0, shots=4)
    assert sample_batch([few], 0, shots=3)
    with pytest.raises(InctrlError, match="even"):
        sample_batch(small_categories, 0, batch_size=5)
    with pytest.raises(InctrlError, match="no anomalous image"):
        sample_batch([replace(few, test=few.train)], 0, shots=1)


def test_prompts_for_testing_do_not_depend_on_order_and_are_nested(small_categories):
    category = small_categories[0]
    four = draw_support(category, 4, seed=1)
    assert draw_support(replace(category, train=category.train[::-1]), 4, seed=1) == four
    assert draw_support(category, 2, seed=1) == four[:2]
    assert len({draw_support(category, 4, seed=seed) for seed in range(10)}) > 5
    assert set(four) <= set(category.train)


def test_the_draw_of_a_seed_never_changes(small_categories):
    """Published results name a seed: a new version must draw the same images."""
    assert [item.name[-3:] for item in draw_support(small_categories[0], 4, seed=0)] == [
        "005",
        "006",
        "002",
        "001",
    ]


def test_too_few_normals_to_draw_from_are_named(small_categories):
    with pytest.raises(InctrlError, match="'bottle' has 8 normal images"):
        draw_support(small_categories[0], 9)
    with pytest.raises(InctrlError, match="shots = 0"):
        draw_support(small_categories[0], 0)
