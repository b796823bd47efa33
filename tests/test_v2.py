"""InCTRLv2: equal to the slow reference, gradients only where they belong, masks, files, the pixel map."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import small_cnn
from reference import dice, focal, stretched, v2_losses, v2_scores
from test_model import WIDTHS, B, D, K, N, features

from inctrl_lite import AnomalyDetector, InCTRL, InctrlError
from inctrl_lite.baselines import METHODS, Auxiliary, Images
from inctrl_lite.evaluation import evaluate
from inctrl_lite.evidence import compare
from inctrl_lite.heads.v2 import V2Config, V2Head, blend, upsample
from inctrl_lite.losses import Targets, dice_loss, focal_loss, two_channel_focal_loss
from inctrl_lite.store import FeatureStore
from inctrl_lite.support import SupportSet
from inctrl_lite.training import MaskReader, TrainConfig, new_model, train

LOSS = partial(focal_loss, double_sigmoid=False)
LABELS = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
SIZE = (1, 20)  # of the input, for a map of one row


@pytest.fixture
def text():
    return torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def new(terms=("text", "image", "patch"), widths=WIDTHS, scale=V2Config.scale) -> InCTRL:
    torch.manual_seed(3)
    model = InCTRL(D, N, "v2", terms=terms, stage_widths=widths).double().eval()
    model.head.config = V2Config(scale=scale)
    return model


def targets(known=(True, True, False)) -> Targets:
    masks = torch.zeros(B, *SIZE, dtype=torch.bool)
    masks[1, :, 4:9] = masks[2, :, :2] = True
    return Targets(LABELS, masks, torch.tensor(known))


# --- equal to the slow reference ----------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("words", [True, False], ids=["text", "learned prototypes"])
@torch.no_grad()
def test_scores_and_losses_equal_the_slow_reference(shots, words, text):
    model = new() if words else new(("image", "patch"))
    text = text if words else None
    query, normals = features(B, 2), features(shots, 3)
    evidence = model.compare(query, model.support(normals), text)
    scores = model.head(evidence)
    slow = [v2_scores(model, query[i], normals, text) for i in range(B)]
    for i in range(B):
        for name, value in slow[i].items():
            expected = torch.tensor(value, dtype=torch.float64)
            torch.testing.assert_close(getattr(scores, name)[i], expected, atol=1e-10, rtol=0)
    truth = targets()
    rows = [row[0].tolist() for row in truth.masks]
    expected = v2_losses(slow, LABELS.tolist(), rows, truth.masked.tolist())
    found = model.head.losses(evidence, scores, truth, LOSS)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, abs=1e-10), name


@torch.no_grad()
def test_stages_of_different_width_have_adapters_of_their_own():
    model = new(("image", "patch"), widths=(5, 7))
    query, normals = (features(n, seed, widths=(5, 7)) for n, seed in ((B, 2), (K, 3)))
    scores = model(query, model.support(normals))
    for i in range(B):
        slow = v2_scores(model, query[i], normals, None)
        assert scores.pixel_map[i].tolist() == pytest.approx(slow["pixel_map"], abs=1e-10)
    assert len(model.head.discriminative.layers) == 2 and len(new().head.discriminative.layers) == 1


def test_losses_of_maps_by_hand():
    p = torch.tensor([[[0.9, 0.2], [0.1, 0.4]]])
    mask = torch.tensor([[[True, False], [False, True]]])
    # 1 - (2 (0.9 + 0.4) + 1) / (1.6 + 2 + 1)
    assert dice_loss(p, mask).item() == pytest.approx(1 - 3.6 / 4.6)
    both = dice_loss(torch.cat([p, 0 * p]), torch.cat([mask, mask]))  # of each image, then the mean
    assert both.item() == pytest.approx((1 - 3.6 / 4.6 + 1 - 1 / 3) / 2)
    channels = torch.stack([1 - p, p], dim=1)
    expected = focal([0.9, 0.2, 0.1, 0.4], [1, 0, 0, 1])
    assert two_channel_focal_loss(channels, mask).item() == pytest.approx(expected)
    assert two_channel_focal_loss(channels, mask, gamma=0.0).item() > expected
    certain = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert two_channel_focal_loss(certain, torch.tensor([[[False]]])).isfinite()


def test_maps_are_stretched_over_the_input():
    row = [0.1, 0.9, 0.3]
    assert upsample(torch.tensor([row]), (1, 3), (1, 7))[0, 0].tolist() == pytest.approx(stretched(row, 7))
    square = upsample(torch.arange(4.0)[None], (2, 2), (4, 4))[0]
    assert square[0].tolist() == [0, 0.25, 0.75, 1] and square[:, 0].tolist() == [0, 0.5, 1.5, 2]
    assert dice(row, [0, 1, 0]) > 0


@torch.no_grad()
def test_alpha_and_beta_weigh_what_they_say(text):
    model = new()
    evidence = model.compare(features(B, 2), model.support(features(K, 3)), text)
    base = model.head(evidence)

    def head(**changes) -> V2Head:
        model.head.config = V2Config(**changes)
        return model.head

    assert torch.equal(head(alpha=1.0)(evidence).final, base.patch)
    torch.testing.assert_close(head(alpha=0.0)(evidence).final, (base.image + base.text) / 2)
    for beta, branch in ((0.0, base.discriminative_map), (1.0, base.one_class_map)):
        torch.testing.assert_close(head(beta=beta)(evidence).pixel_map, (base.patch_map + branch) / 2)
    assert blend(torch.tensor([[1.0]]), torch.tensor([[0.0]]), 0.75).item() == 0.25


@pytest.mark.parametrize("terms", [("patch",), ("image",), ("text",), ("image", "text"), ("text", "patch")])
@torch.no_grad()
def test_a_score_is_made_of_the_chosen_terms(terms, text):
    model = new(terms)
    evidence = model.compare(features(B, 2), model.support(features(K, 3)), text)
    before = model.head(evidence).final
    changes = {
        "patch": replace(evidence, patch_map=evidence.patch_map.square()),
        "image": replace(evidence, query_embedding=-evidence.query_embedding),
        "text": replace(evidence, text_cosines=evidence.text_cosines.flip(-1)),
    }
    for term, changed in changes.items():
        same = torch.isclose(model.head(changed).final, before, atol=1e-12, rtol=0)
        assert not same.any() if term in terms else same.all(), term


# --- gradients ----------------------------------------------------------------------------------------


def gradients(model, evidence, name: str) -> set[str]:
    """Which parts of the head one loss moves."""
    model.zero_grad()
    model.head.losses(evidence, model.head(evidence), targets(), LOSS)[name].backward()
    moved = (n for n, p in model.head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0)
    return {n.split(".")[0] for n in moved}


@pytest.mark.parametrize("words", [True, False], ids=["text", "learned prototypes"])
def test_each_loss_moves_its_own_branch_alone(words, text):
    """In so few dimensions cosines are large, and the usual scale gives probabilities of 0 and 1."""
    model = new(scale=1.0) if words else new(("image", "patch"), scale=1.0)
    text = text.requires_grad_() if words else None
    evidence = model.compare(features(B, 2), model.support(features(K, 3)), text)
    assert gradients(model, evidence, "final") == {"adapter", "image"}
    learned = {"discriminative"} if words else {"discriminative", "prototypes"}
    for part in ("focal", "dice", "map dice"):
        assert gradients(model, evidence, f"dasl {part}") == learned
        assert gradients(model, evidence, f"oasl {part}") == {"one_class"}
    assert text is None or text.grad is None


def test_the_one_class_branch_sees_normal_images_alone(text):
    """Whatever the anomalous images and their masks are, its losses and gradients stay the same."""
    model = new(scale=1.0)
    query, support = features(B, 2), model.support(features(K, 3))

    def losses(query, truth) -> tuple[list[float], torch.Tensor]:
        model.zero_grad()
        evidence = model.compare(query, support, text)
        found = model.head.losses(evidence, model.head(evidence), truth, LOSS)
        parts = [value for name, value in found.items() if name.startswith("oasl")]
        torch.stack(parts).sum().backward()
        return [p.item() for p in parts], model.head.one_class.layers[0][0].weight.grad.clone()

    other = query.map(lambda t: torch.cat([t[:1], 3 - t[1:]]))  # query 0 is the normal one
    truth = targets()
    one = losses(query, truth)
    two = losses(other, replace(truth, masks=truth.masks.roll(1, -1)))
    assert one[0] == pytest.approx(two[0]) and torch.allclose(one[1], two[1])


def test_images_without_a_mask_teach_the_score_and_no_map(text):
    model = new()
    evidence = model.compare(features(B, 2), model.support(features(K, 3)), text)
    scores = model.head(evidence)
    found = model.head.losses(evidence, scores, targets((True, True, False)), LOSS)
    changed = targets((True, True, False))
    changed.masks[2] = True
    again = model.head.losses(evidence, scores, changed, LOSS)
    assert {k: v.item() for k, v in found.items()} == {k: v.item() for k, v in again.items()}
    anomalous = model.head.losses(
        evidence[1:], scores[1:], targets()[1:], LOSS
    )  # no normal image: no loss of the one-class branch
    assert set(anomalous) == {"final", "dasl focal", "dasl dice", "dasl map dice"}
    with pytest.raises(InctrlError, match="masks"):
        model.head.losses(evidence, scores, Targets(LABELS), LOSS)


# --- training, files, detector ------------------------------------------------------------------------


CONFIG = TrainConfig(head="v2", shots=2, epochs=2, steps_per_epoch=3, batch_size=8)


@pytest.fixture(scope="module")
def store(small_backbone, small_categories, tmp_path_factory):
    store = FeatureStore(small_backbone, tmp_path_factory.mktemp("features"))
    store.encode([i for c in small_categories for i in (*c.train, *c.test)], progress=False)
    return store


@pytest.fixture
def run(small_backbone, small_categories, store):
    return partial(train, small_categories, small_backbone, device="cpu", store=store, progress=False)


def test_training_learns_from_masks_and_resumes(run, tmp_path):
    straight, history = run(CONFIG)
    run(replace(CONFIG, epochs=1), out=tmp_path)
    resumed, again = run(CONFIG, out=tmp_path)
    assert [r["loss"] for r in again] == [r["loss"] for r in history]
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    saved = InCTRL.from_pretrained(tmp_path)
    assert isinstance(saved.head, V2Head) and saved.head.terms == ("text", "image", "patch")
    parts = ["final", *(f"{b} {p}" for b in ("dasl", "oasl") for p in ("focal", "dice", "map dice"))]
    for record in history:
        assert record["loss"] == pytest.approx(sum(record[part] for part in parts))
    _, longer = run(replace(CONFIG, epochs=10))
    assert longer[-1]["dasl dice"] < history[0]["dasl dice"]
    assert longer[-1]["oasl dice"] < history[0]["oasl dice"]


def test_a_data_set_without_masks_is_refused(run, small_backbone, small_categories, store):
    bare = [replace(c, test=tuple(replace(i, mask=None) for i in c.test)) for c in small_categories]
    with pytest.raises(InctrlError, match="learns from masks, and no anomalous image"):
        train(bare, small_backbone, CONFIG, device="cpu", store=store, progress=False)


def test_masks_come_at_the_size_of_the_input(small_backbone, small_categories):
    category = small_categories[0]
    reader = MaskReader([category], small_backbone)
    anomalous = next(item for item in category.test if item.label)
    normal, unknown = category.train[0], replace(anomalous, mask=None)
    masks, masked = reader([normal, anomalous, unknown])
    assert masks.shape == (3, *small_backbone.preprocessor.size) and masked.tolist() == [True, True, False]
    assert not masks[0].any() and not masks[2].any()
    share = small_backbone.preprocessor.to_model(np.asarray(anomalous.mask, bool)).mean().item()
    assert masks[1].float().mean().item() == pytest.approx(share, abs=0.02)
    coarse = MaskReader([category], small_backbone, (6, 6))([anomalous])[0]
    covered = small_backbone.preprocessor.to_model(np.asarray(anomalous.mask, bool), (6, 6))
    assert ((covered > 0) & (covered < 1)).any()  # some cells are covered in part
    assert torch.equal(coarse[0], covered >= 0.5)


def test_without_a_text_encoder_the_prototypes_are_learned():
    cnn = small_cnn()
    head = new_model(cnn, CONFIG).head
    assert head.terms == ("image", "patch") and head.prototypes.shape == (2, cnn.embed_dim)
    assert len(head.discriminative.layers) == len(cnn.stage_widths)
    with pytest.raises(InctrlError, match="give stage_widths"):
        InCTRL(D, N, "v2")


def test_a_detectors_map_is_the_pixel_map_also_from_a_file(run, small_backbone, small_categories, tmp_path):
    model, _ = run(CONFIG)
    category = small_categories[0]
    detector = AnomalyDetector(model, small_backbone, "cpu")
    normals = [item.image for item in category.train[:3]]
    detector.fit(normals, category.name)
    images = [item.image for item in category.test[:4]]
    found = detector.predict(images)
    with torch.no_grad():
        query = Images(category.test[:4], small_backbone).features
        support = model.support(Images(category.train[:3], small_backbone).features)
        scores = model(query, support, detector.categories[category.name].text)
    for prediction, expected in zip(found, scores.pixel_map, strict=True):
        assert prediction.patch_map.ravel().tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    low, high = detector.categories[category.name].limits
    statistics = (scores.pixel_map.mean(), detector.categories[category.name].support.normal_statistics)
    assert low < high and abs(low - statistics[0]) < abs(statistics[1][..., 0].mean() - statistics[0])
    detector.save(tmp_path / "v2.inctrl")
    again = AnomalyDetector.load(tmp_path / "v2.inctrl", backbone=small_backbone, device="cpu").predict(
        images
    )
    for one, other in zip(found, again, strict=True):
        assert one.score == other.score and np.array_equal(one.patch_map, other.patch_map)


def test_evaluate_measures_the_pixel_map(run, small_backbone, small_categories, store):
    model, _ = run(CONFIG)
    table = evaluate(model, small_backbone, small_categories[:1], store=store, progress=False, shots=2)
    model.head.config = V2Config(beta=0.0)
    other = evaluate(model, small_backbone, small_categories[:1], store=store, progress=False, shots=2)
    assert table.loc[0, "auroc"] == other.loc[0, "auroc"]
    assert table.loc[0, "aupro"] != other.loc[0, "aupro"]


def test_the_benchmarks_method_trains_like_the_library(small_backbone, small_categories, store):
    auxiliary = Auxiliary(small_categories, small_backbone, store, steps=20, batches=4)
    method = METHODS["InCTRLv2"].make().train(auxiliary)
    category = small_categories[0]
    normals, queries = (
        Images(category.train[:2], small_backbone, store),
        Images(category.test, small_backbone),
    )
    answer = method.fit(normals, category.name).score(queries)
    scores = method.model.head(compare(queries.features, SupportSet.of(normals.features), method.text))
    assert torch.allclose(answer.maps, scores.pixel_map, atol=1e-6)
    assert torch.allclose(answer.scores, scores.final, atol=1e-6)
    start = new_model(small_backbone, CONFIG).head.discriminative.layers[0][0].weight
    assert not torch.equal(method.model.head.discriminative.layers[0][0].weight, start)
