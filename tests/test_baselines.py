"""The competing methods: numbers a person can check, and WinCLIP against the public code's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inctrl_lite.backbone import VIEWS, Backbone, ImageFeatures
from inctrl_lite.baselines import MISSING, TRAINING_FREE, Images
from inctrl_lite.baselines.coop import CoOp, prototypes
from inctrl_lite.baselines.gaussian import SPADE, PaDiM
from inctrl_lite.baselines.inctrl import InCTRLMethod
from inctrl_lite.baselines.nearest import AnomalyDINO, ClassNearest, PatchMax
from inctrl_lite.baselines.patchcore import PatchCore, local_tokens
from inctrl_lite.baselines.subspace import SubspaceAD
from inctrl_lite.baselines.winclip import residual_map
from inctrl_lite.baselines.windows import WindowStore, window_embeddings, window_indices, window_residuals
from inctrl_lite.data.category import Item
from inctrl_lite.features import FeatureStore
from inctrl_lite.model import InCTRL, NormalPrompt
from inctrl_lite.prompts import text_prototypes
from inctrl_lite.residual import text_cosines, text_score

GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden" / "winclip_seed11.npz"


class Given(Images):
    """Images whose features are given."""

    def __init__(self, backbone, cls, patches):
        nothing = np.zeros((8, 8, 3), np.uint8)
        super().__init__([Item(nothing, 0, str(i)) for i in range(len(cls))], backbone)
        self.__dict__["features"] = ImageFeatures(cls, patches, patches[:, -1])
        self.__dict__["views"] = self.features[[i for i in range(len(cls)) for _ in VIEWS]]


@pytest.fixture
def given(small_backbone):
    return lambda cls, patches: Given(small_backbone, cls, patches)


@pytest.fixture
def real(small_backbone, small_categories):
    category = small_categories[0]
    return Images(category.train[:4], small_backbone), Images(category.test, small_backbone), category


@pytest.mark.parametrize("method", TRAINING_FREE, ids=lambda m: m.name)
def test_every_method_scores_one_number_an_image_whatever_its_batch_mates(method, real):
    normals, queries, category = real
    fitted = method().fit(normals, category.name)
    scores, maps = fitted.score(queries)
    assert scores.shape == (len(queries),) and scores.isfinite().all()
    assert maps is None or maps.shape == (len(queries), 16)
    alone = torch.cat([fitted.score(queries.take([i])).scores for i in range(3)])
    torch.testing.assert_close(alone, scores[:3], atol=1e-5, rtol=1e-4)
    assert method.source and method.name and method.training_free


@pytest.mark.parametrize(
    "method", [m for m in TRAINING_FREE if m.name not in ("text only", "WinCLIP")], ids=lambda m: m.name
)
def test_a_normal_image_itself_scores_lowest(method, real):
    normals, _, category = real
    fitted = method().fit(normals, category.name)
    anomalous = Images([i for i in category.test if i.label], normals.backbone)
    mine = fitted.score(normals.take([0])).scores.item()
    assert mine <= fitted.score(anomalous).scores.min().item() + 1e-6


@pytest.mark.parametrize("method", TRAINING_FREE, ids=lambda m: m.name)
def test_a_draw_from_a_pool_scores_as_those_images_alone(method, real):
    pool, queries, category = real
    for rows in ([0, 2], [3]):
        drawn = method().fit(pool.take(rows), category.name).score(queries)
        alone = Images([pool.items[i] for i in rows], pool.backbone)
        fresh = Images(queries.items, pool.backbone)
        expected = method().fit(alone, category.name).score(fresh)
        torch.testing.assert_close(drawn.scores, expected.scores, atol=1e-5, rtol=1e-4)


def test_windows_on_disk_are_those_computed(real, tmp_path):
    pool, _, _ = real
    store = FeatureStore(pool.backbone, tmp_path)
    for _ in range(2):  # computed, then read
        stored = WindowStore(store).load(pool.items)
        assert stored.keys() == pool.windows.keys()
        for side, values in stored.items():
            torch.testing.assert_close(values, pool.windows[side], atol=2e-3, rtol=2e-3)
    assert len(list(tmp_path.rglob("*-windows/*"))) == len(pool) and not store.folder.exists()


def test_class_nearest_is_half_of_one_minus_the_best_cosine(given):
    patches = torch.zeros(1, 1, 16, 2)
    normals = given(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), patches.expand(2, -1, -1, -1))
    query = given(torch.tensor([[3.0, 0.0], [-1.0, 0.0]]), patches.expand(2, -1, -1, -1))
    assert ClassNearest().fit(normals, "x").score(query).scores.tolist() == [0.0, 0.5]


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


def test_local_tokens_average_what_is_there():
    patches = torch.arange(4.0).reshape(1, 1, 4, 1)  # a 2 x 2 grid: every neighbourhood is all of it
    assert local_tokens(patches, (2, 2)).flatten().tolist() == [1.5] * 4


def test_patchcore_weighs_down_a_memory_with_company(given):
    cls = torch.ones(1, 2)
    normal = torch.zeros(1, 2, 16, 2)
    query = torch.full((1, 2, 16, 2), 3.0)  # every token at distance 6 = |(3, 3, 3, 3)| of all memories
    answer = PatchCore().fit(given(cls, normal), "x").score(given(cls, query))
    torch.testing.assert_close(answer.maps, torch.full((1, 16), 6.0))
    torch.testing.assert_close(answer.scores, torch.tensor([6.0 * (1 - 1 / 9)]))  # nine equal neighbours


def test_padim_measures_in_deviations_of_the_place(given):
    torch.manual_seed(0)
    cls, normal = torch.ones(6, 2), torch.randn(6, 2, 16, 40)
    fitted = PaDiM().fit(given(cls, normal), "x")
    far = normal[:1].clone()
    far[0, :, 3] = -far[0, :, 3]
    maps = fitted.score(given(cls[:2], torch.cat([normal[:1], far]))).maps
    assert maps[1, 3] > maps[0, 3]
    torch.testing.assert_close(maps[0, 8:], maps[1, 8:])  # out of reach of the 3 x 3 average


def test_subspace_sees_what_lies_outside_the_normal_plane(given):
    torch.manual_seed(0)
    angles = torch.rand(4, 1, 16) * 6.28
    plane = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], -1)
    query = plane[:1].clone()
    query[0, 0, 7] = torch.tensor([0.0, 0.0, 1.0])
    answer = SubspaceAD().fit(given(torch.ones(4, 2), plane), "x").score(given(torch.ones(1, 2), query))
    torch.testing.assert_close(answer.scores, torch.tensor([1.0]))
    assert answer.maps[0].argmax() == 7 and answer.maps[0].topk(2).values[1] < 1e-6


def test_coop_learns_a_context_and_reads_the_name(small_backbone, small_categories, tmp_path):
    store = FeatureStore(small_backbone, tmp_path)
    method = CoOp.train(small_categories, small_backbone, store, steps=3)
    again = CoOp.train(small_categories, small_backbone, store, steps=3)
    assert torch.equal(method.context, again.context)
    assert not torch.equal(
        method.context, CoOp.train(small_categories, small_backbone, store, steps=1).context
    )
    assert not torch.equal(
        prototypes(small_backbone, "nut", method.context), prototypes(small_backbone, "bolt", method.context)
    )


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
    backbone = Backbone(clip, lambda image: image, lambda texts: texts, name="golden", taps=(1,))
    mean, std = (torch.tensor(meta[key]).view(3, 1, 1) for key in ("mean", "std"))
    query, prompt = (
        (torch.from_numpy(golden[f"images/{which}"]) / 255 - mean) / std for which in ("query", "prompt")
    )
    windows, normal = window_embeddings(backbone, query), window_embeddings(backbone, prompt)
    for side, name in ((2, "win2"), (3, "win3"), (1, "patch")):
        np.testing.assert_allclose(windows[side][0, :8], golden[f"f32/{name}_q0_first8"], atol=1e-5)

    unit = torch.nn.functional.normalize
    words = []
    for i, name in enumerate(meta["names"]):
        tokens = (
            torch.from_numpy(golden[f"tokens/{name}/{kind}"].astype(np.int64))
            for kind in ("normal", "anomaly")
        )
        with torch.no_grad():
            text = torch.stack([unit(unit(clip.encode_text(t), dim=-1).mean(0), dim=-1) for t in tokens])
        words.append(text_score(text_cosines(backbone.encode_image(query[i : i + 1]).cls, text)))
    words = torch.cat(words)
    np.testing.assert_allclose(words, golden["f32/text_prob"], atol=1e-5)
    for k in (1, 2, 4, 8):
        residuals = {s: torch.stack(window_residuals(windows[s], normal[s][:k])).amin(0) for s in windows}
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
    answer = InCTRLMethod(model).fit(normals, category.name).score(queries)
    with torch.no_grad():
        text = text_prototypes(backbone, category.name)
        views = normals.views if head == "lite" else None
        scores = model(queries.features, NormalPrompt.of(normals.features, views), text)
    torch.testing.assert_close(answer.scores, scores.final)
    torch.testing.assert_close(answer.maps, scores.patch_map)
