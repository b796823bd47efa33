"""Residuals with numbers a person can check."""

import math

import pytest
import torch

from inctrl_lite import residual
from inctrl_lite.backbones import Stage
from inctrl_lite.residual import (
    GLOBAL_PRIOR,
    PRIOR_WEIGHT,
    REGION_PRIOR,
    global_distance,
    leave_one_out_maps,
    leave_two_out_maps,
    normal_residual_statistics,
    patch_residual_map,
    region_distance,
    resample_map,
    stage_residual_map,
    stage_residual_maps,
    text_score,
    unit_tokens,
)

OTHERS = 1 / (1 + PRIOR_WEIGHT)  # weight of two normal images' own distance beside the prior


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, scaled so that their length must not matter."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return 3.0 * torch.stack([angles.cos(), angles.sin()], -1)


def stage(tokens: torch.Tensor) -> Stage:
    """A stage of one row."""
    return Stage(tokens, (1, tokens.shape[-2]))


def test_residual_is_half_of_one_minus_the_best_cosine():
    query = directions(0, 60, 180)[None]
    support = directions(0, 90)[:, None]  # two images of one patch
    expected = [0.0, (1 - 3**0.5 / 2) / 2, 0.5]  # 60 degrees is 30 from the second image
    torch.testing.assert_close(stage_residual_map(query, support)[0].tolist(), expected)


def test_stages_are_compared_with_themselves_and_averaged():
    query = [stage(directions(0)[None]), stage(directions(90)[None])]
    support = [stage(directions(0)[None]), stage(directions(0)[None])]
    assert patch_residual_map(query, support, (1, 1)).item() == pytest.approx(0.25)  # mean of 0 and 1/2


@pytest.mark.parametrize("per_query", [False, True])
@pytest.mark.parametrize("limit", [1, 7, 40, 10**9])
def test_pieces_give_the_same_maps(monkeypatch, per_query, limit):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(5, 9, 4, generator=generator, dtype=torch.float64)
    support = torch.randn(*([5] if per_query else []), 3, 9, 4, generator=generator, dtype=torch.float64)
    whole = stage_residual_map(query, support)
    monkeypatch.setattr(residual, "MAX_COSINES", limit)
    torch.testing.assert_close(stage_residual_map(query, support), whole, atol=1e-14, rtol=0)


def test_a_map_is_averaged_to_a_coarser_grid_and_interpolated_to_a_finer_one():
    rows = torch.arange(4.0).repeat_interleave(4)[None]  # 4 x 4: every row has its number
    assert resample_map(rows, (4, 4), (2, 2)).tolist() == [[0.5, 0.5, 2.5, 2.5]]
    assert resample_map(torch.tensor([[3.0, 0.0, 0.0, 1.0]]), (1, 4), (1, 1)).tolist() == [[1.0]]  # mean
    finer = resample_map(torch.tensor([[0.0, 1.0]]), (2, 1), (4, 1))
    assert finer.tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert resample_map(rows, (4, 4), (4, 4)) is rows


def test_unit_tokens_of_all_stages_lie_side_by_side():
    fine, coarse = directions(0, 90, 180, 270)[None], directions(0, 90)[None]
    found = unit_tokens([Stage(fine, (1, 4)), Stage(coarse, (1, 2))], (1, 4))
    torch.testing.assert_close(found[0, :, :2], fine[0] / 3)
    expected = [0.0, math.degrees(math.atan(1 / 3)), 90 - math.degrees(math.atan(1 / 3)), 90.0]
    torch.testing.assert_close(found[0, :, 2:], directions(*expected) / 3)


def test_leave_one_out_compares_each_image_with_the_others():
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(4, 6, c, dtype=torch.float64, generator=generator) for c in (3, 5)]
    stages = [stage(t) for t in tokens]
    for k in range(4):
        others = [i for i in range(4) if i != k]
        rest = [stage(t[others]) for t in tokens]
        alone = patch_residual_map([stage(t[k : k + 1]) for t in tokens], rest, (1, 6))[0]
        torch.testing.assert_close(leave_one_out_maps(stages, (1, 6))[k].mean(0), alone)


def test_leave_one_out_uses_the_copies_of_the_others_and_not_its_own():
    normals = stage(directions(0, 90).reshape(2, 1, 2))
    copies = stage(directions(0, 60, 90, 90).reshape(2, 2, 1, 2))  # of the first: 0 and 60, of the second: 90
    expected = [[[0.5]], [[(1 - 3**0.5 / 2) / 2]]]  # 90 degrees to the second; 30 to a copy of the first
    torch.testing.assert_close(leave_one_out_maps([normals], (1, 1), [copies]).tolist(), expected)


def test_a_single_normal_image_is_compared_with_its_other_patches():
    normals = stage(directions(0, 60, 180)[None])
    expected = [[[0.25, 0.25, 0.75]]]  # the nearest others are 60, 60 and 120 degrees away
    torch.testing.assert_close(leave_one_out_maps([normals], (1, 3)).tolist(), expected)


def test_half_of_the_normal_statistics_is_local():
    maps = torch.zeros(2, 4, 6, dtype=torch.float64)
    maps[:, :, 0] = torch.tensor([0.2, 0.6])[:, None]  # the left edge differs, from image to image
    found = normal_residual_statistics(maps.flatten(1), (4, 6)).view(4, 6, 2)
    assert torch.allclose(found, found[:1])  # every row is the same: smoothing goes along rows and columns
    mean, std = maps.mean(), maps.std(correction=0)
    torch.testing.assert_close(found[0, 5], torch.stack([mean, std]) / 2)  # nothing near it
    local = 0.4 * (1 / 2 * 1 / 2 + 1 / 2 * 1 / 3)  # of the edge in one smoothing 1/2, of the next column 1/3
    assert found[0, 0, 0].item() == pytest.approx(local / 2 + mean.item() / 2)
    assert (found[0, :-1] >= found[0, 1:]).all() and (found[0, 0] > found[0, 3]).all()
    whole = normal_residual_statistics(maps.flatten(1), (4, 6), local_weight=0.0)
    torch.testing.assert_close(whole, torch.stack([mean, std]).expand(24, 2))


def test_text_score_is_a_softmax_at_scale_100():
    cosines = torch.tensor([[0.20, 0.21]], dtype=torch.float64)
    assert text_score(cosines).item() == pytest.approx(1 / (1 + math.exp(-1)))


def test_the_reference_follows_the_normal_images_more_when_there_are_more():
    query = torch.tensor([[1.0, 0.0]])
    support = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(4, 0)  # all have a twin
    reference = [global_distance(query, support[:k])[1].item() for k in (1, 2, 8)]
    assert reference[0] == pytest.approx(GLOBAL_PRIOR)  # one image says nothing about others
    assert GLOBAL_PRIOR > reference[1] > reference[2] > 1e-3
    assert global_distance(query, support)[0] == 0


@pytest.mark.parametrize(("distance", "shape"), [(global_distance, (5,)), (region_distance, (6, 5))])
def test_whole_images_are_compared_query_by_query(distance, shape):
    torch.manual_seed(0)
    query, support = torch.randn(3, *shape), torch.randn(3, 4, *shape)
    together = torch.stack(distance(query, support))
    alone = torch.cat([torch.stack(distance(query[i : i + 1], support[i])) for i in range(3)], dim=1)
    torch.testing.assert_close(together, alone)


def test_the_three_worst_regions_count_each_compared_at_its_own_position():
    support = directions(0, 60, 90, 90)[None]  # one image, four regions
    same, moved, odd = directions(0, 60, 90, 90), directions(60, 0, 90, 90), directions(0, 240, 270, 270)
    distance, _ = region_distance(torch.stack([same, moved, odd]), support)
    torch.testing.assert_close(distance.tolist(), [0.0, (0.25 + 0.25 + 0) / 3, 1.0])  # 60 and 180 degrees


def test_a_query_must_resemble_one_image_not_a_patchwork_of_all():
    support = torch.stack([directions(0, 0), directions(60, 60)])
    patchwork = directions(0, 60)
    assert region_distance(patchwork[None], support)[0].item() == pytest.approx(0.25 / 2)


def test_a_normal_image_is_not_compared_with_its_own_copies():
    query, one, other = (directions(*3 * [angle]) for angle in (0, 0, 60))
    images = torch.stack([one, other])
    copies = torch.stack([one, one, other, directions(40, 40, 40)])  # two of each
    plain, _ = region_distance(query[None], images)
    seen, reference = region_distance(query[None], torch.cat([images, copies]), shots=2)
    assert plain == seen == 0
    own = ((1 - math.cos(math.radians(40))) / 2 + 0.25) / 2  # the first has the other at 40 degrees
    assert reference.item() == pytest.approx(own**OTHERS * REGION_PRIOR ** (1 - OTHERS))


def test_the_reference_of_regions_is_the_normal_images_own_distance():
    query = directions(0, 0, 0)[None]
    support = torch.stack([directions(0, 0, 0), directions(60, 60, 60)])
    assert region_distance(query, support[:1])[1].item() == pytest.approx(REGION_PRIOR)
    expected = 0.25**OTHERS * REGION_PRIOR ** (1 - OTHERS)  # 0.25 for 60 degrees
    assert region_distance(query, support)[1].item() == pytest.approx(expected)


@pytest.mark.parametrize("copies", [0, 2])
def test_maps_with_one_more_left_out_are_those_of_the_smaller_support_set(copies):
    torch.manual_seed(0)
    grids, shots = ((4, 4), (2, 3)), 5
    stages = [Stage(torch.randn(shots, rows * columns, 6), (rows, columns)) for rows, columns in grids]
    more = [Stage(torch.randn(shots, copies, math.prod(grid), 6), grid) for grid in grids] if copies else None

    maps = leave_two_out_maps(stages, (4, 4), more)
    for k in range(shots):
        others = [i for i in range(shots) if i != k]
        rest = [s[others] for s in stages]
        rest_copies = None if more is None else [s[others] for s in more]
        expected = leave_one_out_maps(rest, (4, 4), rest_copies)
        torch.testing.assert_close(maps[k][others], expected)
        bank = (
            rest
            if more is None
            else [
                Stage(torch.cat([a.tokens, b.tokens.flatten(0, 1)]), a.grid)
                for a, b in zip(rest, rest_copies, strict=True)
            ]
        )
        own = stage_residual_maps([s[k : k + 1] for s in stages], bank, (4, 4))[0]
        torch.testing.assert_close(maps[k][k], own)
