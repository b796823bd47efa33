"""Residuals with numbers a person can check."""

import math

import pytest
import torch

from inctrl_lite import residual
from inctrl_lite.residual import (
    PLACE_USUAL,
    USUAL,
    USUAL_VOTES,
    class_residual,
    layer_residual_maps,
    leave_one_out_maps,
    patch_residual_map,
    place_residual,
    text_score,
    usual_residuals,
)


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, scaled so that their length must not matter."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return 3.0 * torch.stack([angles.cos(), angles.sin()], -1)


def test_residual_is_half_of_one_minus_the_best_cosine():
    query = directions(0, 60, 180).reshape(1, 1, 3, 2)
    prompts = directions(0, 90).reshape(2, 1, 1, 2)  # two images of one patch
    expected = [0.0, (1 - 3**0.5 / 2) / 2, 0.5]  # 60 degrees is 30 from the second prompt
    torch.testing.assert_close(layer_residual_maps(query, prompts)[0, 0].tolist(), expected)


def test_blocks_are_compared_with_themselves_and_averaged():
    query = directions(0, 90).reshape(1, 2, 1, 2)  # block 1 at 0 degrees, block 2 at 90
    prompt = directions(0, 0).reshape(1, 2, 1, 2)
    assert patch_residual_map(query, prompt).item() == pytest.approx(0.25)  # mean of 0 and 1/2


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 40, 10**9])
def test_pieces_give_the_same_maps(monkeypatch, per_query, limit):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 2, 9, 4, generator=generator, dtype=torch.float64)
    prompt = torch.randn(*([5] if per_query else []), 3, 2, 9, 4, generator=generator, dtype=torch.float64)
    whole = layer_residual_maps(query, prompt)
    monkeypatch.setattr(residual, "MAX_COSINES", limit)
    torch.testing.assert_close(layer_residual_maps(query, prompt), whole, atol=1e-14, rtol=0)


def test_leave_one_out_compares_each_prompt_with_the_others():
    prompt = torch.randn(4, 2, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in range(4):
        others = prompt[[i for i in range(4) if i != k]]
        torch.testing.assert_close(
            leave_one_out_maps(prompt)[k], patch_residual_map(prompt[k : k + 1], others)[0]
        )


def test_leave_one_out_sees_the_others_in_all_their_views_and_not_its_own():
    prompt = directions(0, 90).reshape(2, 1, 1, 2)
    views = directions(0, 60, 90, 90).reshape(2, 2, 1, 1, 2)  # of the first: 0 and 60, of the second: 90
    expected = [[0.5], [(1 - 3**0.5 / 2) / 2]]  # 90 degrees to the second; 30 to a view of the first
    torch.testing.assert_close(leave_one_out_maps(prompt, views).tolist(), expected)


def test_a_lone_prompt_is_compared_with_its_other_patches():
    prompt = directions(0, 60, 180).reshape(1, 1, 3, 2)
    expected = [[0.25, 0.25, 0.75]]  # nearest others are 60, 60 and 120 degrees away
    torch.testing.assert_close(leave_one_out_maps(prompt).tolist(), expected)


def test_half_of_what_is_usual_is_the_patchs_own():
    maps = torch.zeros(2, 4, 6, dtype=torch.float64)
    maps[:, :, 0] = torch.tensor([0.2, 0.6])[:, None]  # the left edge differs, from image to image
    found = usual_residuals(maps.flatten(1), (4, 6)).view(4, 6, 2)
    assert torch.allclose(found, found[:1])  # every row is the same: smoothing goes along rows and columns
    mean, deviation = maps.mean(), maps.std(correction=0)
    torch.testing.assert_close(found[0, 5], torch.stack([mean, deviation]) / 2)  # nothing near it
    around = 0.4 * (1 / 2 * 1 / 2 + 1 / 2 * 1 / 3)  # of the edge in one smoothing 1/2, of the next column 1/3
    assert found[0, 0, 0].item() == pytest.approx(around / 2 + mean.item() / 2)
    assert (found[0, :-1] >= found[0, 1:]).all() and (found[0, 0] > found[0, 3]).all()
    whole = usual_residuals(maps.flatten(1), (4, 6), own=0.0)
    torch.testing.assert_close(whole, torch.stack([mean, deviation]).expand(24, 2))


def test_text_score_is_a_softmax_at_scale_100():
    cosines = torch.tensor([[0.20, 0.21]], dtype=torch.float64)
    assert text_score(cosines).item() == pytest.approx(1 / (1 + 2.718281828459045**-1))


def test_what_is_usual_is_told_by_the_prompts_the_more_there_are():
    query = torch.tensor([[1.0, 0.0]])
    prompt = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(4, 0)  # all have a twin
    usual = [class_residual(query, prompt[:k])[0, 1].item() for k in (1, 2, 8)]
    assert usual[0] == pytest.approx(USUAL)  # one prompt knows nothing of others
    assert USUAL > usual[1] > usual[2] > 1e-3
    assert class_residual(query, prompt)[0, 0] == 0


@pytest.mark.parametrize(("residual", "shape"), [(class_residual, (5,)), (place_residual, (6, 5))])
def test_the_whole_is_compared_query_by_query(residual, shape):
    torch.manual_seed(0)
    query, prompts = torch.randn(3, *shape), torch.randn(3, 4, *shape)
    together = residual(query, prompts)
    alone = torch.cat([residual(query[i : i + 1], prompts[i]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_the_three_strangest_places_count_and_only_the_same_place_answers_for_each():
    prompt = directions(0, 60, 90, 90)[None]  # one prompt, four places
    same, moved, odd = directions(0, 60, 90, 90), directions(60, 0, 90, 90), directions(0, 240, 270, 270)
    far = place_residual(torch.stack([same, moved, odd]), prompt)[:, 0]
    torch.testing.assert_close(far.tolist(), [0.0, (0.25 + 0.25 + 0) / 3, 1.0])  # 60 and 180 degrees


def test_an_image_must_be_like_one_prompt_not_like_a_patchwork_of_all():
    prompts = torch.stack([directions(0, 0), directions(60, 60)])
    patchwork = directions(0, 60)
    assert place_residual(patchwork[None], prompts)[0, 0].item() == pytest.approx(0.25 / 2)


def test_a_prompt_is_no_judge_of_its_own_views():
    query, one, other = (directions(*3 * [angle]) for angle in (0, 0, 60))
    query, images = query[None], torch.stack([one, other])
    views = torch.stack([one, one, other, directions(40, 40, 40)])  # two of each
    plain, seen = place_residual(query, images), place_residual(query, torch.cat([images, views]), shots=2)
    assert plain[0, 0] == seen[0, 0] == 0
    told = ((1 - math.cos(math.radians(40))) / 2 + 0.25) / 2  # the first sees the other at 40 degrees
    votes = 1 / (1 + USUAL_VOTES)
    assert seen[0, 1].item() == pytest.approx(told**votes * PLACE_USUAL ** (1 - votes))


def test_what_is_usual_of_places_is_how_strange_the_prompts_find_each_other():
    query = directions(0, 0, 0)[None]
    prompt = torch.stack([directions(0, 0, 0), directions(60, 60, 60)])
    assert place_residual(query, prompt[:1])[0, 1].item() == pytest.approx(PLACE_USUAL)
    votes = 1 / (1 + USUAL_VOTES)  # the other prompt's word, 0.25 for 60 degrees
    expected = 0.25**votes * PLACE_USUAL ** (1 - votes)
    assert place_residual(query, prompt)[0, 1].item() == pytest.approx(expected)
