"""The model: equal to the slow reference, the same for every batch, learning only what it should."""

from dataclasses import fields, replace
from itertools import combinations

import pytest
import torch
from reference import lite_scores, paper_scores, prior_scores
from safetensors.torch import save_file

from inctrl_lite import InCTRL, InctrlError, residual
from inctrl_lite.augment import MAX_SUPPORT_PICTURES
from inctrl_lite.backbones import ImageFeatures, Stage
from inctrl_lite.evidence import Scores, compare
from inctrl_lite.heads import HEADS
from inctrl_lite.losses import focal_loss
from inctrl_lite.support import SupportSet

B, K, D = 3, 2, 8
GRID = (1, 5)
N, Q = 5, 4
WIDTHS = (6, 6)


def features(count: int, seed: int, grids=(GRID, GRID), widths=WIDTHS) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    stages = tuple(Stage(random(g[0] * g[1], c), g) for g, c in zip(grids, widths, strict=True))
    return ImageFeatures(random(D), stages, grids[0], Stage(random(Q, 6), (1, Q)))


def copies(count: int, augmented: int, seed: int) -> ImageFeatures:
    """Features of augmented copies, tensors [count, augmented, ...]."""
    return features(count * augmented, seed).map(lambda t: t.unflatten(0, (count, augmented)))


def new(head: str) -> InCTRL:
    return InCTRL(D, N, head, stage_widths=WIDTHS).double()


@torch.enable_grad()
def trained(head: str) -> InCTRL:
    """A model with weights and running statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = new(head)
    if head == "prior":
        model.head.direction.copy_(torch.randn(WIDTHS[1]))
        model.head.offset.fill_(0.3)
        model.head.level.fill_(-1.5)
        return model.eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    support, text = model.support(features(K, 1)), torch.randn(2, D, dtype=torch.float64)
    for step in range(5):
        scores = model(features(8, 10 + step), support, text)
        optimiser.zero_grad()
        (scores.final.sum() + scores.image.sum()).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(params=HEADS)
def model(request):
    return trained(request.param)


@pytest.fixture
def text():
    return torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def assert_same(a: Scores, b: Scores):
    for field in fields(Scores):
        one, other = getattr(a, field.name), getattr(b, field.name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shots", [1, 2, 4])
@pytest.mark.parametrize("slow", [paper_scores, lite_scores], ids=["paper", "lite"])
def test_heads_equal_the_slow_reference(slow, shots, text):
    model = trained("paper" if slow is paper_scores else "lite")
    query, normals = features(B, 2), features(shots, 3)
    with torch.no_grad():
        scores = model(query, model.support(normals), text)
        for i in range(B):
            for name, value in slow(model, query[i], normals, text).items():
                expected = torch.tensor(value, dtype=torch.float64)
                torch.testing.assert_close(getattr(scores, name)[i], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shots", [1, 2, 3])
@torch.no_grad()
def test_the_prior_head_equals_the_slow_reference(shots):
    """Three stages, of which the middle one has a width of its own, and a map with an inside."""
    shapes = {"grids": ((3, 5),) * 3, "widths": (5, 3, 7)}
    model = InCTRL(D, 15, "prior", stage_widths=shapes["widths"]).double().eval()
    model.head.direction.copy_(torch.tensor([2.0, -1.0, 4.0]))
    model.head.offset.fill_(0.3)
    model.head.level.copy_(torch.tensor([-1.5, -9.0]))
    query, normals = features(B, 2, **shapes), features(shots, 3, **shapes)
    scores = model(query, model.support(normals))
    for i in range(B):
        for name, value in prior_scores(model, query[i], normals).items():
            assert getattr(scores, name)[i].item() == pytest.approx(value, abs=1e-6), name


@torch.no_grad()
def test_a_score_does_not_depend_on_the_rest_of_the_batch(model, text):
    query, support = features(B, 2), model.support(features(K, 3))
    together = model(query, support, text)
    assert_same(together, Scores.cat([model(query[i : i + 1], support, text) for i in range(B)]))
    order = torch.tensor([2, 0, 1])
    assert_same(together.map(lambda t: t[order]), model(query[order], support, text))


@torch.no_grad()
def test_one_support_set_for_each_query_gives_what_a_shared_one_gives(model, text):
    query = features(B, 2)
    supports = [model.support(features(K, 20 + i)) for i in range(B)]
    alone = Scores.cat([model(query[i : i + 1], supports[i], text) for i in range(B)])
    assert_same(alone, model(query, SupportSet.stack(supports), text.expand(B, 2, D)))


def test_support_sets_per_query_are_those_of_each_query():
    normals = features(6, 3)
    chosen = torch.tensor([[4, 1], [0, 5], [1, 2]])
    found = SupportSet.per_query(normals[chosen])
    for i, rows in enumerate(chosen.tolist()):
        expected = SupportSet.of(normals[rows])
        for name in ("global_embedding", "normal_maps", "normal_statistics"):
            torch.testing.assert_close(getattr(found, name)[i], getattr(expected, name))
        for one, other in zip(found.stages, expected.stages, strict=True):
            torch.testing.assert_close(one.tokens[i], other.tokens)
    assert SupportSet.per_query(normals[chosen], statistics=False).normal_statistics is None


def test_the_public_codes_reshape_is_right_for_one_image_only():
    """Its stacked tokens are [L, B, N, C]; a reshape to [B, L, N, C] mixes stages and images (bug A)."""
    for count in (1, B):
        query, normals = features(count, 2), features(K, 3)
        stacked = torch.stack([stage.tokens for stage in query.stages])  # [L, B, N, C]
        mixed = stacked.reshape(count, len(WIDTHS), N, WIDTHS[0])
        wrong_stages = tuple(Stage(mixed[:, i], GRID) for i in range(len(WIDTHS)))
        right = residual.patch_residual_map(query.stages, normals.stages, GRID)
        wrong = residual.patch_residual_map(wrong_stages, normals.stages, GRID)
        assert torch.allclose(right, wrong) == (count == 1)


@torch.no_grad()
def test_stages_may_differ_in_grid_and_width():
    shapes = {"grids": ((2, 4), (4, 8), (1, 2)), "widths": (5, 3, 7)}
    query, normals = features(B, 2, **shapes), features(K, 3, **shapes)
    maps = compare(query, SupportSet.of(normals)).stage_maps
    assert maps.shape == (B, 3, 8)
    torch.testing.assert_close(
        maps[:, 0], residual.stage_residual_map(query.stages[0].tokens, normals.stages[0].tokens)
    )
    fine = residual.stage_residual_map(query.stages[1].tokens, normals.stages[1].tokens)
    blocks = fine.unflatten(1, (2, 2, 4, 2)).mean((2, 4))  # [B, 2, 2, 4, 2] -> mean over 2 x 2 cells
    torch.testing.assert_close(maps[:, 1], blocks.flatten(1))
    coarse = residual.stage_residual_map(query.stages[2].tokens, normals.stages[2].tokens)
    torch.testing.assert_close(maps[:, 2].unflatten(1, (2, 4))[:, 0, [0, 3]], coarse)


def test_a_copy_of_a_normal_image_has_no_residual():
    query, normals = features(B, 2), features(K, 3)
    augmented = query[[0, 1, 2, 0]].map(lambda t: t.unflatten(0, (K, 2)))
    plain, seen = SupportSet.of(normals), SupportSet.of(normals, augmented)
    assert compare(query, plain).patch_map.amin() > 0
    torch.testing.assert_close(compare(query, seen).patch_map, torch.zeros(B, N, dtype=torch.float64))
    assert torch.equal(seen.global_embedding, plain.global_embedding)
    regions = residual.region_distance(query.regions.tokens, seen.regions.tokens, K)  # K images, with copies
    torch.testing.assert_close(compare(query, seen).region_reference, regions[1])
    assert (seen.normal_statistics[:, 0] < plain.normal_statistics[:, 0]).all()


@pytest.mark.parametrize(("shots", "kept"), [(1, 7), (8, 3), (11, 1), (32, 0), (40, 0)])
def test_many_normal_images_have_fewer_augmented_copies_the_first_ones(shots, kept):
    normals, augmented = features(shots, 3), copies(shots, 7, 5)
    seen = SupportSet.of(normals, augmented)
    first = augmented.stages[0].tokens[:, :kept].flatten(0, 1)
    assert torch.equal(seen.stages[0].tokens, torch.cat([normals.stages[0].tokens, first]))
    assert len(seen.stages[0].tokens) == len(seen.regions.tokens) <= max(shots, MAX_SUPPORT_PICTURES)
    assert seen.shots == shots


def like_a_normal_image(evidence):
    """The whole images are as far from the support set as normal images are."""
    return replace(
        evidence,
        global_distance=evidence.global_reference,
        region_distance=evidence.region_reference,
    )


@torch.no_grad()
def test_the_lite_head_gives_a_residual_less_weight_where_normal_images_differ(text):
    torch.manual_seed(1)
    model = new("lite").eval()
    statistics = torch.tensor([[0.1, 0.02]], dtype=torch.float64).repeat(N, 1)
    statistics[0] = torch.tensor([0.3, 0.1])
    patch_map = torch.full((2, N), 0.1, dtype=torch.float64)
    patch_map[0, 0] = patch_map[1, 1] = 0.4  # 1 standard deviation above the mean there, and 15
    evidence = model.compare(features(1, 2)[[0, 0]], model.support(features(K, 3)), text)
    evidence = replace(evidence, patch_map=patch_map, normal_statistics=statistics.expand(2, N, 2))
    evidence = like_a_normal_image(evidence)
    here, there = model.head(evidence).final
    assert here < there - 0.1


@torch.no_grad()
def test_the_lite_heads_constants_are_those_of_its_configuration(text):
    """Each constant moves the score in the direction that its description says."""
    from inctrl_lite.heads import LiteConfig, LiteHead

    evidence = like_a_normal_image(compare(features(B, 2), SupportSet.of(features(K, 3)), text))

    def with_z_scores(z: float):
        """The same, where every patch residual is z standard deviations above the mean."""
        std = torch.full_like(evidence.patch_map, 0.01)
        mean = evidence.patch_map - z * (std + 1e-3)
        return replace(evidence, normal_statistics=torch.stack([mean, std], dim=-1))

    extreme, evidence = with_z_scores(12.0), with_z_scores(6.0)

    def final(evidence, **changes) -> torch.Tensor:
        torch.manual_seed(0)
        return LiteHead(D, N, config=LiteConfig(**changes)).double().eval()(evidence).final

    base = final(evidence)
    assert not torch.allclose(final(extreme), final(extreme, z_limits=(-5.0, 5.0)))
    assert final(evidence, normal_peak=8.0).sum() < base.sum()
    assert final(evidence, global_ratio=3.0).sum() < base.sum()
    assert not torch.allclose(final(evidence, z_scale=5.0), base)


CHANGES = {  # what changes one term of the evidence and leaves the others as they are
    "patch": lambda e: replace(e, patch_map=e.patch_map.square()),
    "image": lambda e: replace(e, query_embedding=-e.query_embedding, global_distance=e.global_distance / 2),
    "text": lambda e: replace(e, text_cosines=e.text_cosines.flip(-1)),
}
SOME_TERMS = [terms for n in (1, 2, 3) for terms in combinations(CHANGES, n)]


@pytest.mark.parametrize("terms", SOME_TERMS, ids="+".join)
@pytest.mark.parametrize("head", ["paper", "lite"])
@torch.no_grad()
def test_a_score_is_made_of_the_chosen_terms_and_no_others(head, terms, text):
    torch.manual_seed(0)
    chosen = InCTRL(D, N, head, terms=terms).double().eval().head
    evidence = compare(features(B, 2), SupportSet.of(features(K, 3)), text)
    before = chosen(evidence).final
    if terms == ("text",):  # no patch and no image beside which the holistic score would be averaged
        assert torch.equal(before, chosen(evidence).holistic)
    for term, change in CHANGES.items():
        same = torch.isclose(chosen(change(evidence)).final, before, atol=1e-12, rtol=0)
        assert not same.any() if term in terms else same.all(), term


def test_what_the_lite_head_learns_of_whole_images_and_words_begins_at_its_configuration():
    head = new("lite").head
    slope, log_ratio = head.whole.tolist()
    assert (slope, log_ratio) == pytest.approx((4, 0.405465))  # 1/2 at 1.5 times the normal distance
    assert head.log_text_scale.exp().item() == pytest.approx(10)


@torch.no_grad()
def test_the_prior_head_by_hand():
    """One stage, two patches: sigmoid(s (max(log r + b (p - mean p) - e) + a log mean r - level - m))."""
    import math

    from inctrl_lite.heads import PriorConfig, PriorHead

    config = PriorConfig(0.5, 0.25, 0.125, 0.2, 3.0, 0.1)
    head = PriorHead((2,), config=config).double()
    head.direction.copy_(torch.tensor([0.0, 2.0]))
    head.offset.fill_(-1.0)
    head.level.copy_(torch.tensor([-0.7, -0.9]))
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])

    def image(*tokens: torch.Tensor) -> ImageFeatures:
        stage = Stage(3 * torch.stack(tokens)[None].double(), (1, len(tokens)))
        return ImageFeatures(torch.ones(1, 2, dtype=torch.float64), (stage,), stage.grid)

    model = InCTRL(2, 2, "prior", stage_widths=(2,)).double()
    model.head = head
    support = model.support(image(a, a))
    assert support.normal_level.item() == pytest.approx(-0.7)  # one image: the constant alone
    scores = model(image(a, b), support)
    # patch a: prior -1; patch b: residual 1/2, prior 1; their mean 0; both lie on the border; mean r 1/4
    raw = math.log(0.5) + 0.5 * 1 - 0.125 + 0.25 * math.log(0.25)
    assert scores.final.item() == pytest.approx(1 / (1 + math.exp(-3 * (raw + 0.7 - 0.1))))
    assert scores.prior.item() == pytest.approx(0.5)  # mean prior 0
    two = model.support(ImageFeatures.cat([image(a, a), image(a, b)]))
    zero = math.log(5e-7)  # residual of a patch that occurs in the other image
    raws = [zero - 0.125 + 0.25 * zero, raw]  # each against the other
    assert two.normal_level.item() == pytest.approx(sum(raws) / 2 - 0.2)  # one doubling from K - 1 = 1
    untrained = PriorHead((2,), ("patch", "whole"), config).double()
    untrained.level.copy_(head.level)
    assert untrained.normal_level(support).item() == pytest.approx(-0.9)
    maps, prior = torch.tensor([[[0.0, 0.5]]]).double(), torch.tensor([[-1.0, 1.0]]).double()
    plain = untrained.raw_score(maps, prior, (1, 2))
    assert plain.item() == pytest.approx(raw - 0.5)


def test_only_the_head_learns(model, text):
    query, support = features(B, 2), model.support(features(K, 3))
    for tensor in (query.global_embedding, *(stage.tokens for stage in query.stages), text):
        tensor.requires_grad_()
    if isinstance(model.head, HEADS["v2"]):  # cosines are large in few dimensions, and saturate
        model.head.config = replace(model.head.config, scale=1.0)
    scores = model.train()(query, support, text)
    if not list(model.parameters()):
        return  # the prior is not learned by gradients
    labels = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    loss = focal_loss(scores.final, labels) + focal_loss(scores.image, labels)
    if scores.pixel_map is not None:
        loss = loss + scores.pixel_map.sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    if isinstance(model.head, HEADS["paper"] | HEADS["v2"]):
        assert text.grad is None  # the text score is a constant there


def test_parameter_count_at_the_papers_size():
    assert sum(p.numel() for p in InCTRL(640, 225).parameters()) == 333_186


def test_scores_are_what_their_names_say(model, text):
    scores = model(features(B, 2), model.support(features(K, 3)), text)
    torch.testing.assert_close(scores.patch, scores.patch_map.amax(-1))
    assert "patch" in scores.terms and "final" not in scores.terms
    for term in (scores.final, *scores.terms.values()):
        assert ((term >= 0) & (term <= 1)).all()


def test_unknown_heads_and_terms_name_the_known_ones():
    with pytest.raises(InctrlError, match="paper, lite, prior"):
        InCTRL(D, N, head="papper")
    with pytest.raises(InctrlError, match="no term txt: choose from text, image, patch"):
        InCTRL(D, N, terms=("txt",))


# --- saving ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_it_scores_the_same(model, text, tmp_path):
    model.float().save_pretrained(tmp_path / "model")
    again = InCTRL.from_pretrained(tmp_path / "model")
    assert not again.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    """The disk gets full when half of the file is written."""
    InCTRL(D, N).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InctrlError, match="model.safetensors: No space left"):
        InCTRL(D, N).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".model")]


def test_the_backbone_is_saved_along(tmp_path):
    backbone = {"name": "tiny", "pretrained": None, "taps": [3, 4, 5]}
    InCTRL(D, N, "lite", backbone).save_pretrained(tmp_path)
    again = InCTRL.from_pretrained(tmp_path)
    assert (again.backbone, again.embed_dim, again.num_patches) == (backbone, D, N)
    assert type(again.head) is HEADS["lite"]


def test_a_folder_without_a_model_says_what_is_missing(tmp_path):
    with pytest.raises(InctrlError, match="config.json and model.safetensors missing"):
        InCTRL.from_pretrained(tmp_path)
    with pytest.raises(InctrlError, match="neither a folder nor a Hub id"):
        InCTRL.from_pretrained(tmp_path / "nowhere")


def test_a_damaged_model_is_named(tmp_path):
    model = InCTRL(D, N)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InctrlError, match=str(tmp_path)):
        InCTRL.from_pretrained(tmp_path)
    tensors = dict(list(model.state_dict().items())[1:])
    save_file(tensors, tmp_path / "model.safetensors")  # one is missing
    with pytest.raises(InctrlError, match="cannot be loaded.*state_dict"):
        InCTRL.from_pretrained(tmp_path)
    for wrong in ("nan", "inf"):
        model.head.holistic.layer1.weight.data[0, 0] = float(wrong)
        model.save_pretrained(tmp_path)
        with pytest.raises(InctrlError, match="damaged: head.holistic.layer1.weight holds NaN"):
            InCTRL.from_pretrained(tmp_path)


def test_no_network_for_a_hub_id_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InctrlError, match="Without a network"):
        InCTRL.from_pretrained("nobody/no-such-model-of-inctrl-lite")
