"""The learned prior: which patches it learns from, its scale, the normal level, a model on disk."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from conftest import draw_category
from safetensors.torch import save_file

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError, load_backbone
from inctrl_lite.data.category import Item
from inctrl_lite.data.images import load_image
from inctrl_lite.encoder import Encoder
from inctrl_lite.evidence import compare
from inctrl_lite.heads.prior import PriorHead
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.prior import (
    NEIGHBOURS,
    PATCHES,
    choose_patches,
    fit_direction,
    learn_prior,
    mask_on_grid,
    train_prior,
)
from inctrl_lite.residual import resample_map
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet


@pytest.fixture(scope="module")
def categories():
    """With two normal images more than are compared with each other."""
    return [draw_category(name, train=NEIGHBOURS + 2) for name in ("bottle", "cat")]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A small convolutional network whose random weights lie in a file, so that they can be read again."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return load_backbone("timm:test_efficientnet", str(path))


@pytest.fixture(scope="module")
def store(backbone, tmp_path_factory):
    return FeatureStore(backbone, tmp_path_factory.mktemp("features"), torch.float32)


@pytest.fixture
def new(backbone):
    def new(head: str = "prior") -> InCTRL:
        sizes = backbone.embed_dim, backbone.num_patches
        return InCTRL(*sizes, head, stage_widths=backbone.stage_widths)

    return new


# --- patches -----------------------------------------------------------------------------------------


def chosen(covered: list[float], anomalous: bool, seed: int = 0) -> tuple[list[int], list[int]]:
    damaged, sound = choose_patches(torch.tensor(covered), anomalous, np.random.default_rng(seed))
    return sorted(damaged.tolist()), sorted(sound.tolist())


def test_a_patch_is_damaged_from_a_quarter_on_and_sound_without_any_defect():
    assert chosen([0.0, 0.1, 0.26, 0.0, 1.0, 0.25], True) == ([2, 4], [0, 3])


def test_a_small_defect_is_the_patch_that_it_covers_most():
    assert chosen([0.0, 0.02, 0.2, 0.1, 0.0], True) == ([2], [0, 4])


def test_a_normal_image_has_sound_patches_only():
    assert chosen([0.0, 0.0, 0.0], False) == ([], [0, 1, 2])


def test_of_many_patches_as_many_of_both_kinds_are_drawn():
    covered = [1.0] * 20 + [0.0] * 30
    damaged, sound = chosen(covered, True)
    assert len(set(damaged)) == len(set(sound)) == PATCHES
    assert max(damaged) < 20 <= min(sound)
    assert chosen(covered, True) == (damaged, sound) != chosen(covered, True, seed=1)


@pytest.mark.parametrize(
    ("mode", "grid", "covered"),
    [("squeeze", (2, 4), [0, 0, 1, 0, 0, 0, 0.5, 0]), ("crop", (2, 2), [0, 1, 0, 0.5])],
)
def test_a_mask_lies_on_the_grid_where_the_network_sees_it(mode, grid, covered):
    mask = np.zeros((40, 80), bool)
    mask[:30, 40:60] = True  # right of the middle; the crop sees columns 20 to 60
    item = Item(np.zeros((40, 80, 3), np.uint8), 1, "x", "square", mask)
    found = mask_on_grid(item, Preprocessor((40, 40), mode), grid)
    np.testing.assert_allclose(found, covered, atol=1e-6)
    assert mask_on_grid(replace(item, mask=None), Preprocessor((40, 40)), grid).tolist() == [0.0] * len(found)


# --- the direction -----------------------------------------------------------------------------------


def test_the_prior_has_mean_0_and_deviation_1_and_points_to_damage():
    generator = torch.Generator().manual_seed(0)
    tokens = 3 + torch.randn(400, 6, generator=generator)
    damaged = torch.arange(400) < 100
    tokens[damaged, 2] += 1.0
    direction, offset = fit_direction(tokens, damaged)
    values = tokens @ direction + offset
    assert direction.dtype == torch.float32 and direction.abs().argmax() == 2
    assert values.mean().item() == pytest.approx(0, abs=1e-4)
    assert values.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert values[damaged].mean() > values[~damaged].mean()


def test_the_regression_is_so_regularised_that_it_follows_the_means():
    """A feature that is noisy and helpful counts as much as one that is quiet and helpful."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 2, generator=generator) * torch.tensor([0.05, 0.4])
    damaged = torch.arange(200) < 100
    tokens -= torch.where(damaged[:, None], tokens[:100].mean(0), tokens[100:].mean(0))
    tokens[damaged] += 0.3
    direction, _ = fit_direction(tokens, damaged)
    assert direction[1] / direction[0] == pytest.approx(1, abs=0.05)


# --- training ----------------------------------------------------------------------------------------


def test_damaged_patches_have_a_larger_prior_than_sound_ones(new, categories, store):
    model = train_prior(new().train(), categories, store)
    head = model.head
    assert not model.training
    found: dict[bool, list] = {True: [], False: []}
    for item in (item for category in categories for item in category.test):
        stages = store.load([item]).stages
        grid = stages[head.middle_stage].grid
        prior = head.prior_map(stages, grid)[0]
        covered = mask_on_grid(item, store.backbone.preprocessor, grid)
        found[True].append(prior[covered > 0.25])
        found[False].append(prior[covered == 0])
    damaged, sound = torch.cat(found[True]), torch.cat(found[False])
    assert damaged.mean() > sound.mean() + 1
    assert (damaged > sound.median()).float().mean() > 0.9


def test_the_regression_sees_unit_tokens_of_the_middle_stage(new, categories, store, monkeypatch):
    seen = []

    def noted(tokens, damaged):
        seen.append((tokens, damaged))
        return fit_direction(tokens, damaged)

    monkeypatch.setattr("inctrl_lite.prior.fit_direction", noted)
    model = train_prior(new(), categories, store)
    ((tokens, damaged),) = seen
    assert tokens.shape == (len(damaged), store.backbone.stage_widths[model.head.middle_stage])
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(len(tokens)))
    images = [item for category in categories for item in category.test]
    assert (~damaged).sum() == PATCHES * len(images)  # every image has sound patches enough
    assert 0 < damaged.sum() <= PATCHES * sum(item.label for item in images)


def test_the_normal_level_is_that_of_one_image_beside_the_next(new, categories, store):
    model = train_prior(new(), categories, store)
    plain = PriorHead(store.backbone.stage_widths, ("patch", "whole"))
    raws = []
    for category in categories:
        for one, other in zip(category.train[: NEIGHBOURS - 1], category.train[1:NEIGHBOURS], strict=True):
            query = store.load([one])
            evidence = compare(query, SupportSet.of(store.load([other])))
            prior = model.head.prior_map(query.stages, query.map_grid)
            raws.append(
                [h.raw_score(evidence.stage_maps, prior, query.map_grid) for h in (model.head, plain)]
            )
    expected = [torch.cat(kind).mean() for kind in zip(*raws, strict=True)]
    torch.testing.assert_close(model.head.level, torch.stack(expected), atol=1e-4, rtol=0)
    assert expected[0] != expected[1]


def test_the_seed_draws_the_patches(new, categories, store):
    one, same, other = (train_prior(new(), categories, store, seed=s).head.direction for s in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_anomalous_images_without_a_mask_are_left_out(new, categories, store):
    first, second = categories
    unknown = replace(first, test=tuple(replace(item, mask=None) for item in first.test))
    without = replace(first, test=tuple(item for item in first.test if not item.label))
    found, expected = (train_prior(new(), [c, second], store).head for c in (unknown, without))
    assert torch.equal(found.direction, expected.direction) and torch.equal(found.offset, expected.offset)


def test_another_head_and_a_set_without_masks_are_refused(new, categories, store):
    with pytest.raises(InctrlError, match="create the model with head='prior'"):
        train_prior(new("lite"), categories, store)
    bare = [replace(c, test=tuple(replace(i, mask=None) for i in c.test)) for c in categories]
    with pytest.raises(InctrlError, match="learns from masks, and no anomalous image"):
        train_prior(new(), bare, store)


def test_a_learned_prior_is_written_and_a_detector_reads_it(backbone, categories, tmp_path, monkeypatch):
    monkeypatch.setenv("INCTRL_LITE_CACHE", str(tmp_path / "cache"))
    model = learn_prior(categories, backbone, tmp_path / "model", device="cpu", progress=False)
    detector = AnomalyDetector.from_pretrained(tmp_path / "model", device="cpu")
    assert type(detector.model.head) is PriorHead
    for name, value in model.state_dict().items():
        assert torch.equal(detector.model.state_dict()[name], value), name
    assert detector.backbone.fingerprint == backbone.fingerprint
    unseen = draw_category("pcb", train=4)
    detector.fit([item.image for item in unseen.train], unseen.name)
    predictions = detector.predict([item.image for item in unseen.test])
    assert set(predictions[0].terms) == {"patch", "whole", "prior"}
    normal, anomalous = (predictions.scores[np.equal(unseen.labels, label)] for label in (0, 1))
    assert normal.max() < anomalous.min()
    larger = AnomalyDetector.from_pretrained(tmp_path / "model", image_size=224, device="cpu")
    assert larger.backbone.preprocessor.size == (224, 224) != detector.backbone.preprocessor.size


def encoded(images, backbone):
    encoder = Encoder(backbone)
    return encoder.encode(encoder.prepare([load_image(image) for image in images]))


@pytest.fixture
def trained(new, categories, store):
    return train_prior(new(), categories, store)


def test_the_map_is_the_residual_map_raised_where_the_prior_sees_damage(trained, backbone):
    unseen = draw_category("pcb", train=4)
    detector = AnomalyDetector(trained, backbone, "cpu").fit([i.image for i in unseen.train], unseen.name)
    (found,) = detector.predict(unseen.test[-1].image)
    query = encoded([unseen.test[-1].image], backbone)
    evidence = compare(query, detector.categories[unseen.name].support_of([0]))
    stage = query.stages[trained.head.middle_stage]
    tokens = torch.nn.functional.normalize(stage.tokens, dim=-1)
    prior = resample_map(tokens @ trained.head.direction + trained.head.offset, stage.grid, query.map_grid)
    expected = [min(1, r * math.exp(0.15 * p)) for r, p in zip(evidence.patch_map[0], prior[0], strict=True)]
    np.testing.assert_allclose(found.patch_map.ravel(), expected, atol=1e-5)
    assert not np.allclose(found.patch_map.ravel(), evidence.patch_map[0], atol=1e-3)
    assert found.terms["patch"] == pytest.approx(evidence.patch_map.max().item(), abs=1e-5)  # no map's


def test_an_untrained_head_shows_the_residual_map(trained, backbone, store, categories):
    plain = PriorHead(backbone.stage_widths, ("patch", "whole"))
    plain.load_state_dict(trained.head.state_dict())
    evidence = compare(
        store.load([categories[0].test[0]]), SupportSet.of(store.load(categories[0].train[:2]))
    )
    evidence = replace(evidence, normal_level=torch.zeros(1, 1))
    assert plain(evidence).heat_map is evidence.patch_map
    assert trained.head(evidence).heat_map is not evidence.patch_map


@pytest.mark.parametrize("shots", [1, 3])
def test_colours_begin_at_the_mean_of_the_maps_that_normal_images_get(trained, backbone, categories, shots):
    items = categories[0].train[:shots]
    detector = AnomalyDetector(trained, backbone, "cpu").fit([item.image for item in items], "bottle")
    features = encoded([item.image for item in items], backbone)
    maps = torch.stack([one.mean(0) for one in SupportSet.of(features).normal_maps])
    weighted = trained.head.weighted_map(maps, trained.head.prior_map(features.stages, features.map_grid))
    low, high = detector.categories["bottle"].limits
    assert low == pytest.approx(weighted.mean().item(), rel=0.05) and low < high
    assert abs(low - maps.mean()) > 3 * abs(low - weighted.mean())


def test_a_folder_that_cannot_be_written_is_named_before_any_work(backbone, categories, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InctrlError, match="is a file"):
        learn_prior(categories, backbone, tmp_path / "file" / "model", device="cpu", progress=False)
