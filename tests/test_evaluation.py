"""Evaluation: the scores are the detector's, the table says what was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw_category
from sklearn.metrics import average_precision_score, roc_auc_score

from inctrl_lite import AnomalyDetector, InCTRL
from inctrl_lite.data.category import Category
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.evaluation import evaluate, map_metrics, score_items
from inctrl_lite.heads import HEADS


def mixed_up(name: str) -> Category:
    """Four "normal" and seven "anomalous" images that all look alike, so that no metric is near 1."""
    category = draw_category(name, train=6, normal=11, anomalous=0)
    items = [replace(item, label=int(i % 3 > 0)) for i, item in enumerate(category.test)]
    return replace(category, test=tuple(items))


@pytest.fixture(scope="module")
def categories():
    return [mixed_up(name) for name in ("nut", "cat")]


@pytest.fixture(params=[name for name in HEADS if name != "prior"])
def model(request, small_backbone):
    torch.manual_seed(0)
    sizes = small_backbone.embed_dim, small_backbone.num_patches
    return InCTRL(*sizes, request.param, stage_widths=small_backbone.stage_widths)


def test_scores_are_those_of_the_detector_in_the_order_of_the_images(model, small_backbone, categories):
    category = categories[0]
    normals = draw_support(category, 3)
    items = category.test[::-1]
    scores = score_items(model, small_backbone, category.name, items, normals, batch_size=4)
    detector = AnomalyDetector(model, small_backbone, "cpu").fit([i.image for i in normals], category.name)
    expected = detector.predict([item.image for item in items])
    np.testing.assert_allclose(scores.final, expected.scores, atol=1e-5)
    for item, row in zip(expected, scores.heat_map, strict=True):
        np.testing.assert_allclose(row.view(small_backbone.map_grid), item.patch_map, atol=1e-5)


def test_scoring_happens_in_eval_mode(small_backbone, categories):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, "paper").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score_items(model, small_backbone, "nut", categories[0].test, categories[0].train[:2])
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # BatchNorm has learned nothing


@pytest.mark.parametrize(("shots", "seed"), [(2, 0), (2, 1), (3, 0)])
def test_a_row_holds_the_metrics_of_its_category_with_the_normal_images_of_the_seed(
    small_backbone, categories, shots, seed
):
    torch.manual_seed(0)
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, "paper")
    table = evaluate(model, small_backbone, categories, shots=shots, seed=seed, progress=False)
    assert len(table) == len(categories) and table["auroc"].max() < 1
    for row, category in zip(table.itertuples(), categories, strict=True):
        normals = draw_support(category, shots, seed)
        scores = score_items(model, small_backbone, category.name, category.test, normals)
        final = scores.final
        maps = scores.patch_map.unflatten(-1, small_backbone.map_grid).numpy()
        pixels = map_metrics(maps, category.test, small_backbone.preprocessor)
        assert not pixels and np.isnan([row.pixel_auroc, row.aupro]).all()  # there are no masks
        assert (row.dataset, row.category, row.domain) == ("drawn", category.name, "industrial")
        assert (row.shots, row.seed, row.n_normal, row.n_anomalous) == (shots, seed, 4, 7)
        assert row.auroc == pytest.approx(roc_auc_score(category.labels, final))
        assert row.ap == pytest.approx(average_precision_score(category.labels, final))


def test_where_there_are_masks_the_map_is_measured_too(small_backbone, small_categories):
    model = InCTRL(small_backbone.embed_dim, small_backbone.num_patches, "lite")
    row = evaluate(model, small_backbone, small_categories[:1], shots=2, progress=False).iloc[0]
    normals = draw_support(small_categories[0], 2, 0)
    scores = score_items(model, small_backbone, "bottle", small_categories[0].test, normals)
    maps = scores.patch_map.unflatten(-1, small_backbone.map_grid).numpy()
    pixels = map_metrics(maps, small_categories[0].test, small_backbone.preprocessor)
    assert (row.pixel_auroc, row.aupro) == (pixels["pixel_auroc"], pixels["aupro"])
