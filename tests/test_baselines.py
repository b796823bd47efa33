"""The competing methods: numbers a person can check, and WinCLIP against the public code's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from inctrl_lite.augment import SUPPORT_AUGMENTATIONS
from inctrl_lite.backbones import ImageFeatures, Stage
from inctrl_lite.backbones.clip import ClipBackbone
from inctrl_lite.baselines import METHODS, MISSING, Auxiliary, Images
from inctrl_lite.baselines.base import joined_tokens
from inctrl_lite.baselines.coop import CoOp, prototypes
from inctrl_lite.baselines.gaussian import SPADE, PaDiM
from inctrl_lite.baselines.inctrl import BATCH_SIZE, InCTRLMethod, load_table, train_on_table
from inctrl_lite.baselines.nearest import AnomalyDINO, GlobalNearest, PatchMax
from inctrl_lite.baselines.patchcore import PatchCore
from inctrl_lite.baselines.subspace import SubspaceAD
from inctrl_lite.baselines.winclip import residual_map
from inctrl_lite.baselines.windows import (
    SIDES,
    encode_windows,
    window_embeddings,
    window_indices,
    window_residuals,
    window_store,
)
from inctrl_lite.data.category import Item
from inctrl_lite.encoder import Encoder
from inctrl_lite.errors import InctrlError
from inctrl_lite.losses import focal_loss
from inctrl_lite.model import InCTRL
from inctrl_lite.preprocess import Preprocessor
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import stage_residual_maps, text_cosines, text_score
from inctrl_lite.store import FeatureStore

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden" / "winclip_seed11.npz"


class Given(Images):
    """Images whose features are given: global embeddings [B, D], tokens [B, L, N, C]."""

    def __init__(self, backbone, embeddings, tokens):
        nothing = np.zeros((8, 8, 3), np.uint8)
        super().__init__([Item(nothing, 0, str(i)) for i in range(len(embeddings))], backbone)
        grid = (4, tokens.shape[2] // 4)
        stages = tuple(Stage(tokens[:, i], grid) for i in range(tokens.shape[1]))
        features = ImageFeatures(embeddings, stages, grid)
        copies = len(SUPPORT_AUGMENTATIONS)
        self.__dict__["features"] = features
        self.__dict__["augmented"] = features.map(lambda t: t[:, None].expand(-1, copies, *t.shape[1:]))


@pytest.fixture
def given(small_backbone):
    return lambda embeddings, tokens: Given(small_backbone, embeddings, tokens)


@pytest.fixture
def real(small_backbone, small_categories):
    category = small_categories[0]
    return Images(category.train[:4], small_backbone), Images(category.test, small_backbone), category


@pytest.fixture(scope="module")
def auxiliary(small_backbone, small_categories, tmp_path_factory):
    store = FeatureStore(small_backbone, tmp_path_factory.mktemp("features"))
    return Auxiliary(small_categories, small_backbone, store, steps=3, batches=2)


WITH_TEXT = [name for name, entry in METHODS.items() if entry.ablation_of != "prior"]


@pytest.fixture(params=WITH_TEXT)
def ready(request, auxiliary):
    """A method that is trained where it needs it."""
    return METHODS[request.param].make().train(auxiliary)


TRAINING_FREE = [name for name, entry in METHODS.items() if not entry.kind.is_trained]


def test_what_is_left_untrained_does_not_learn_and_each_head_names_its_source():
    made = {name: entry.make() for name, entry in METHODS.items()}
    assert made["InCTRL-lite"].learns and not made["InCTRL-lite, untrained"].learns
    assert not any(made[name].learns for name in TRAINING_FREE)
    assert "CVPR 2024" in made["InCTRL (paper's head)"].source and "2026" in made["InCTRLv2"].source
    assert made["InCTRL-lite"].source == "this package"


def test_every_method_scores_one_number_an_image_whatever_else_is_in_the_batch(ready, real):
    normals, queries, category = real
    fitted = ready.fit(normals, category.name)
    scores, maps = fitted.score(queries)
    assert scores.shape == (len(queries),) and scores.isfinite().all()
    assert maps is None or maps.shape == (len(queries), 16)
    alone = torch.cat([fitted.score(queries.take([i])).scores for i in range(3)])
    torch.testing.assert_close(alone, scores[:3], atol=1e-5, rtol=1e-4)
    assert ready.source and type(ready).__doc__


def test_no_method_makes_a_tensor_without_a_device(ready, real):
    """With another default device, a tensor that names none lies elsewhere and cannot be used."""
    normals, queries, category = real
    images = Images(normals.items, normals.backbone), Images(queries.items[:3], normals.backbone)
    for one in images:  # reading images belongs to no method
        _ = (one.features, one.augmented, one.prepared, one.windows)
    with torch.device("meta"):
        scores = ready.fit(images[0], category.name).score(images[1]).scores
    assert scores.device.type == "cpu" and scores.isfinite().all()


def test_coop_trains_on_the_backbones_device(auxiliary):
    table = load_table(auxiliary)  # stored before: reading images belongs to no method
    with torch.device("meta"):
        CoOp(steps=1).train(auxiliary)
        InCTRLMethod().train(auxiliary)
    assert table.labels.device.type == "cpu"


@pytest.mark.parametrize("name", METHODS)
def test_scoring_before_fitting_and_fitting_before_training_say_what_to_do(name, real):
    normals, queries, category = real
    method = METHODS[name].make()
    if method.is_trained:
        with pytest.raises(InctrlError, match=r"is not trained: call train\(auxiliary\) before fit"):
            method.fit(normals, category.name)
    with pytest.raises(InctrlError, match=r"is not fitted: call fit\(normals, category\) before score"):
        method.score(queries)


def test_what_a_method_needs_is_said_before_it_runs(real, small_categories):
    from inctrl_lite import load_backbone

    images = Images(small_categories[0].train[:2], load_backbone("timm:test_vit"))
    for name, needed in (("text only", "text"), ("WinCLIP", "text and windows")):
        with pytest.raises(InctrlError, match=f"needs a backbone with {needed} encoder"):
            METHODS[name].make().fit(images, "nut")


def test_methods_take_parameters():
    assert PatchCore(bank_size=10).bank_size == 10 and PaDiM(dimensions=5).dimensions == 5


@pytest.mark.parametrize("name", [m for m in TRAINING_FREE if m not in ("text only", "WinCLIP")])
def test_a_normal_image_itself_scores_lowest(name, real):
    normals, _, category = real
    fitted = METHODS[name].make().fit(normals, category.name)
    anomalous = Images([i for i in category.test if i.label], normals.backbone)
    mine = fitted.score(normals.take([0])).scores.item()
    assert mine <= fitted.score(anomalous).scores.min().item() + 1e-6


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_draw_from_a_pool_scores_as_those_images_alone(name, real):
    pool, queries, category = real
    for rows in ([0, 2], [3]):
        drawn = METHODS[name].make().fit(pool.take(rows), category.name).score(queries)
        alone = Images([pool.items[i] for i in rows], pool.backbone)
        fresh = Images(queries.items, pool.backbone)
        expected = METHODS[name].make().fit(alone, category.name).score(fresh)
        torch.testing.assert_close(drawn.scores, expected.scores, atol=1e-5, rtol=1e-4)


def test_what_is_remembered_of_one_comparison_is_not_taken_for_another(small_backbone, small_categories):
    """With and without augmented copies, of few and of many images, of one pool and of another."""
    category = small_categories[0]
    pool, other = Images(category.train, small_backbone), Images(category.test[:6], small_backbone)
    queries = Images(category.test[6:9], small_backbone)
    draws = [(pool, 4, False), (pool, 4, True), (pool, 8, True), (other, 4, True), (pool, 4, False)]
    for origin, count, augment in draws:
        normals = Images(origin.items[:count], small_backbone)
        support = normals.augmented_support if augment else normals.support
        expected = stage_residual_maps(queries.features.stages, support.stages, small_backbone.map_grid)
        found = queries.stage_maps(origin.take(range(count)), augment)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_draw_from_a_pool_has_its_own_augmented_copies(real):
    pool, _, _ = real
    drawn, alone = pool.take([3, 1]), Images([pool.items[3], pool.items[1]], pool.backbone)
    for one, other in zip(drawn.augmented_support.tensors(), alone.augmented_support.tensors(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_windows_on_disk_are_those_computed(real, tmp_path):
    pool, _, _ = real
    store = FeatureStore(pool.backbone, tmp_path)
    for _ in range(2):  # computed, then read
        stored = window_store(store).load(pool.items)
        for side in SIDES:
            torch.testing.assert_close(stored.of(side), pool.windows.of(side), atol=2e-3, rtol=2e-3)
    assert len(list(tmp_path.rglob("windows-*/*"))) == len(pool) and not store.features.folder.exists()


def test_global_nearest_is_half_of_one_minus_the_best_cosine(given):
    patches = torch.zeros(1, 1, 16, 2)
    normals = given(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), patches.expand(2, -1, -1, -1))
    query = given(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]), patches.expand(2, -1, -1, -1))
    assert GlobalNearest().fit(normals, "x").score(query).scores.tolist() == [0.0, 0.5]


def test_patch_max_and_the_mean_of_the_largest(given):
    normal = torch.tensor([1.0, 0.0]).expand(1, 1, 16, 2)
    query = normal.clone()
    query[0, 0, 5] = torch.tensor([0.0, 1.0])  # residual 1/2, cosine distance 1
    cls = torch.ones(1, 2)
    assert PatchMax().fit(given(cls, normal), "x").score(given(cls, query)).scores.tolist() == [0.5]
    assert AnomalyDINO().fit(given(cls, normal), "x").score(given(cls, query)).scores.tolist() == [1.0]


def test_spade_is_the_mean_distance_to_the_normals(given):
    patches = torch.zeros(2, 1, 16, 2)
    fitted = SPADE().fit(given(torch.tensor([[0.0, 0.0], [6.0, 0.0]]), patches), "x")
    answer = fitted.score(given(torch.tensor([[0.0, 8.0]]), patches[:1]))
    assert answer.scores.tolist() == [9.0]  # (8 + 10) / 2


def test_joined_tokens_average_what_is_there_and_come_to_one_grid():
    fine = torch.arange(4.0).reshape(1, 4, 1)  # 2 x 2: every neighbourhood is all of it
    features = ImageFeatures(torch.ones(1, 2), (Stage(fine, (2, 2)), Stage(fine[:, :1], (1, 1))), (2, 2))
    assert joined_tokens(features, average=3)[..., 0].flatten().tolist() == [1.5] * 4
    assert joined_tokens(features).shape == (1, 4, 2) and joined_tokens(features, stages=1).shape == (1, 4, 1)


def test_patchcore_gives_less_weight_to_an_entry_with_near_neighbours(given):
    cls = torch.ones(1, 2)
    normal = torch.zeros(1, 2, 16, 2)
    query = torch.full((1, 2, 16, 2), 3.0)  # every token at distance 6 = |(3, 3, 3, 3)| of all memories
    answer = PatchCore().fit(given(cls, normal), "x").score(given(cls, query))
    torch.testing.assert_close(answer.maps, torch.full((1, 16), 6.0))
    torch.testing.assert_close(answer.scores, torch.tensor([6.0 * (1 - 1 / 9)]))  # nine equal neighbours


@pytest.mark.parametrize("shrink", [False, True])
def test_padim_measures_in_deviations_of_the_position(given, shrink):
    torch.manual_seed(0)
    embeddings, normal = torch.ones(6, 2), torch.randn(6, 2, 16, 40)
    fitted = PaDiM(shrink=shrink).fit(given(embeddings, normal), "x")
    far = normal[:1].clone()
    far[0, :, 3] = -far[0, :, 3]
    maps = fitted.score(given(embeddings[:2], torch.cat([normal[:1], far]))).maps
    assert maps[1, 3] > maps[0, 3]
    others = [i for i in range(16) if i != 3]
    torch.testing.assert_close(maps[0, others], maps[1, others])


def test_padim_as_published_by_hand(given):
    """Two normal images, one channel: mean 2, variance 2 (unbiased) + 0.01; a query at 5 is 3 away."""
    tokens = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 16, 1)
    fitted = PaDiM(dimensions=1).fit(given(torch.ones(2, 2), tokens), "x")
    answer = fitted.score(given(torch.ones(1, 2), torch.full((1, 1, 16, 1), 5.0)))
    torch.testing.assert_close(answer.scores, torch.tensor([3 / 2.01**0.5]))


def test_subspace_sees_what_lies_outside_the_normal_plane(given):
    torch.manual_seed(0)
    angles = torch.rand(4, 1, 16) * 6.28
    plane = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], -1)
    query = plane[:1].clone()
    query[0, 0, 7] = torch.tensor([0.0, 0.0, 1.0])
    answer = SubspaceAD().fit(given(torch.ones(4, 2), plane), "x").score(given(torch.ones(1, 2), query))
    torch.testing.assert_close(answer.scores, torch.tensor([1.0]))
    assert answer.maps[0].argmax() == 7 and answer.maps[0].topk(2).values[1] < 1e-6


def test_coop_learns_a_context_and_reads_the_name(small_backbone, auxiliary):
    method, again, shorter = (CoOp(steps=steps).train(auxiliary) for steps in (3, 3, 1))
    assert torch.equal(method.context, again.context)
    assert not torch.equal(method.context, shorter.context)
    nut, bolt = (prototypes(small_backbone, name, method.context) for name in ("nut", "bolt"))
    assert not torch.equal(nut, bolt)


def test_an_untrained_head_keeps_its_initial_weights_and_a_trained_one_does_not(auxiliary):
    trained, untrained = (InCTRLMethod(learn=learn).train(auxiliary) for learn in (True, False))
    torch.manual_seed(0)
    initial = InCTRL(24, 16, "lite").state_dict()
    for name, value in untrained.model.state_dict().items():
        assert torch.equal(value, initial[name])
        assert value.numel() < 2 or not torch.equal(value, trained.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("head", "terms", "logits", "losses"),
    [("paper", None, True, 2), ("own", None, False, 2), ("own", ("patch",), False, 1)],
)
def test_heads_learn_from_batches_that_are_half_normal_with_their_own_loss(
    head, terms, logits, losses, auxiliary, monkeypatch
):
    seen = []

    def noted(scores, labels, **settings):
        seen.append((labels, settings))
        return focal_loss(scores, labels, **settings)

    monkeypatch.setattr("inctrl_lite.baselines.inctrl.focal_loss", noted)
    method = InCTRLMethod(head, terms).train(auxiliary)
    assert not method.model.training and len(seen) == losses * auxiliary.steps
    for labels, settings in seen:
        assert len(labels) == BATCH_SIZE and labels.mean() == 0.5 and settings == {"double_sigmoid": logits}


def test_a_seed_draws_initial_weights_and_batches(auxiliary):
    def weights(model: InCTRL) -> torch.Tensor:
        return model.head.image.layer1.weight

    one, other = (weights(InCTRLMethod(learn=False).train(auxiliary, seed).model) for seed in (0, 1))
    assert not torch.equal(one, other)
    models = [InCTRLMethod(learn=False).train(auxiliary).model for _ in range(3)]  # begin alike
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train_on_table(model, load_table(auxiliary), steps=2, seed=seed)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_fewer_batches_are_another_table_of_episodes(small_backbone, small_categories, tmp_path):
    auxiliary = Auxiliary(small_categories, small_backbone, FeatureStore(small_backbone, tmp_path))
    tables = [load_table(replace(auxiliary, batches=batches)) for batches in (2, 1)]
    assert [len(table.labels) for table in tables] == [2 * BATCH_SIZE, BATCH_SIZE]


def test_a_damaged_table_of_episodes_is_made_again(auxiliary, tmp_path):
    own = replace(auxiliary, store=FeatureStore(auxiliary.backbone, tmp_path), remembered={})
    expected = load_table(own)
    (path,) = (tmp_path / "episodes").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.warns(UserWarning, match=path.name):
        again = load_table(own)
    assert torch.equal(again.evidence.patch_map, expected.evidence.patch_map)


def test_other_labels_are_another_table_of_episodes(auxiliary, small_categories):
    load_table(auxiliary)
    before = {path.name for path in (auxiliary.store.root / "episodes").iterdir()}
    first, *rest = small_categories
    flipped = replace(first, test=tuple(replace(item, label=1 - item.label) for item in first.test))
    load_table(replace(auxiliary, categories=[flipped, *rest]))
    assert len(list((auxiliary.store.root / "episodes").iterdir())) == len(before) + 1


def test_what_is_missing_says_why():
    assert set(MISSING) == {"RegAD"} and "registration" in MISSING["RegAD"]


def test_windows_of_two_by_two():
    index = window_indices(2, (15, 15))
    assert index.shape == (196, 4) and index[0].tolist() == [0, 1, 15, 16]


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs shared/golden, which is not part of the repository")
def test_winclip_equals_the_public_one():
    from open_clip.model import CLIP

    golden = np.load(GOLDEN)
    meta = json.loads(bytes(golden["meta"]))
    clip = CLIP(**meta["cfg"])
    state = {
        key[4:]: torch.from_numpy(
            golden[key].astype(np.float32) * 2.0 ** -golden["sdk/" + key[4:]].astype(float)
        )
        for key in golden.files
        if key.startswith("sd8/")
    }
    clip.load_state_dict({k: v.float() for k, v in state.items()} | {"logit_scale": clip.logit_scale})
    size = tuple(clip.visual.image_size)
    backbone = ClipBackbone(clip, Preprocessor(size), lambda texts: texts, name="golden", taps=(1,))
    mean, std = (torch.tensor(meta[key]).view(3, 1, 1) for key in ("mean", "std"))
    query, normals = (
        (torch.from_numpy(golden[f"images/{which}"]) / 255 - mean) / std for which in ("query", "prompt")
    )
    encoder = Encoder(backbone)
    windows, normal = window_embeddings(encoder, query), window_embeddings(encoder, normals)
    for side, name in ((2, "win2"), (3, "win3"), (1, "patch")):
        np.testing.assert_allclose(windows.of(side)[0, :8], golden[f"f32/{name}_q0_first8"], atol=1e-5)

    unit = torch.nn.functional.normalize
    words = []
    for i, name in enumerate(meta["names"]):
        tokens = (
            torch.from_numpy(golden[f"tokens/{name}/{kind}"].astype(np.int64))
            for kind in ("normal", "anomaly")
        )
        with torch.no_grad():
            text = torch.stack([unit(unit(clip.encode_text(t), dim=-1).mean(0), dim=-1) for t in tokens])
        words.append(
            text_score(text_cosines(backbone.encode_images(query[i : i + 1]).global_embedding, text))
        )
    words = torch.cat(words)
    np.testing.assert_allclose(words, golden["f32/text_prob"], atol=1e-5)
    for k in (1, 2, 4, 8):
        residuals = {s: torch.stack(window_residuals(windows.of(s), normal.of(s)[:k])).amin(0) for s in SIDES}
        maps = residual_map(residuals, (15, 15))
        np.testing.assert_allclose(maps, golden[f"f32/K{k}/map"].reshape(4, -1), atol=1e-5)
        np.testing.assert_allclose((maps.amax(1) + words) / 2, golden[f"f32/K{k}/final"], atol=1e-5)


@pytest.mark.parametrize(("head", "shots"), [("paper", 4), ("lite", 4), ("lite", 8)])
def test_inctrl_among_the_methods_is_the_model_itself(head, shots, real):
    _, queries, category = real
    backbone = queries.backbone
    normals = Images(category.train[:shots], backbone)
    assert len(normals) == shots
    torch.manual_seed(0)
    model = InCTRL(backbone.embed_dim, backbone.num_patches, head).eval()
    answer = InCTRLMethod(model=model).fit(normals, category.name).score(queries)
    with torch.no_grad():
        text = text_prototypes(backbone, category.name)
        support = model.support(normals.features, normals.augmented if head == "lite" else None)
        scores = model(queries.features, support, text)
    torch.testing.assert_close(answer.scores, scores.final)
    torch.testing.assert_close(answer.maps, scores.patch_map)


def test_window_embeddings_are_those_of_all_images(real):
    pool, _, _ = real
    one = encode_windows(Encoder(pool.backbone), pool.items[:1])
    torch.testing.assert_close(one.pairs, pool.windows.pairs[:1], atol=1e-5, rtol=1e-4)
