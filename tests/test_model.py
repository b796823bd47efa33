"""The model: equal to the slow reference, the same for every batch, learning only what it should."""

from dataclasses import fields

import pytest
import torch
from reference import paper_scores

from inctrl_lite import InCTRL, InctrlError, residual
from inctrl_lite.backbone import MAX_PICTURES, ImageFeatures
from inctrl_lite.losses import focal_loss
from inctrl_lite.model import HEADS, NormalPrompt, Scores

B, K, L, N, P, C, D = 3, 2, 2, 5, 4, 6, 8


def features(count: int, seed: int) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(
        torch.randn(count, D, generator=generator, dtype=torch.float64),
        torch.randn(count, L, N, C, generator=generator, dtype=torch.float64),
        torch.randn(count, P, C, generator=generator, dtype=torch.float64),
        (1, N),
    )


def trained(head: str) -> InCTRL:
    """A model with weights and running statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = InCTRL(D, N, head).double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    prompt, text = NormalPrompt.of(features(K, 1)), torch.randn(2, D, dtype=torch.float64)
    for step in range(5):
        scores = model(features(8, 10 + step), prompt, text)
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
        torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_paper_head_equals_the_slow_reference(shots, text):
    model, query, prompt = trained("paper"), features(B, 2), features(shots, 3)
    with torch.no_grad():
        scores = model(query, NormalPrompt.of(prompt), text)
        for i in range(B):
            slow = paper_scores(model, query.cls[i], query.patches[i], prompt.cls, prompt.patches, text)
            for name, value in slow.items():
                expected = torch.tensor(value, dtype=torch.float64)
                torch.testing.assert_close(getattr(scores, name)[i], expected, atol=1e-10, rtol=0)


@torch.no_grad()
def test_a_score_does_not_depend_on_batch_mates(model, text):
    query, prompt = features(B, 2), NormalPrompt.of(features(K, 3))
    together = model(query, prompt, text)
    assert_same(together, Scores.cat([model(query[i : i + 1], prompt, text) for i in range(B)]))
    order = torch.tensor([2, 0, 1])
    assert_same(together.map(lambda t: t[order]), model(query[order], prompt, text))


@torch.no_grad()
def test_a_prompt_of_ones_own_gives_what_a_shared_prompt_gives(model, text):
    query = features(B, 2)
    prompts = [NormalPrompt.of(features(K, 20 + i)) for i in range(B)]
    alone = Scores.cat([model(query[i : i + 1], prompts[i], text) for i in range(B)])
    texts = text.expand(B, 2, D)
    assert_same(alone, model(query, NormalPrompt.stack(prompts), texts))


def test_the_public_codes_reshape_is_right_for_one_image_only():
    """Its stacked tokens are [L, B, N, C]; a reshape to [B, L, N, C] mixes layers and images (bug A)."""
    for count in (1, B):
        query, prompt = features(count, 2), features(K, 3)
        stacked = query.patches.permute(1, 0, 2, 3)
        mixed = stacked.reshape(count, L, N, C)
        right = residual.patch_residual_map(query.patches, prompt.patches)
        wrong = residual.patch_residual_map(mixed, prompt.patches)
        assert torch.allclose(right, wrong) == (count == 1)


def test_what_looks_like_a_view_of_a_prompt_has_no_residual():
    query, prompt = features(B, 2), features(K, 3)
    views = query[[0, 1, 2, 0]]  # two of each prompt
    plain, seen = NormalPrompt.of(prompt), NormalPrompt.of(prompt, views)
    assert residual.patch_residual_map(query.patches, plain.patches).amin() > 0
    torch.testing.assert_close(
        residual.patch_residual_map(query.patches, seen.patches), torch.zeros(B, N, dtype=torch.float64)
    )
    assert torch.equal(seen.cls, plain.cls) and (seen.spread[:, 0] < plain.spread[:, 0]).all()


@pytest.mark.parametrize(("shots", "kept"), [(1, 7), (8, 3), (11, 1), (32, 0), (40, 0)])
def test_many_prompts_are_seen_in_fewer_views_and_in_the_first(shots, kept):
    prompt, views = features(shots, 3), features(7 * shots, 5)
    seen = NormalPrompt.of(prompt, views)
    first = views.patches.unflatten(0, (shots, 7))[:, :kept].flatten(0, 1)
    assert torch.equal(seen.patches, torch.cat([prompt.patches, first]))
    assert len(seen.patches) == len(seen.places) <= max(shots, MAX_PICTURES)


@torch.no_grad()
def test_the_lite_head_minds_a_residual_less_where_normal_images_differ():
    torch.manual_seed(1)
    head = InCTRL(D, N, "lite").double().eval().head
    spread = torch.tensor([[0.1, 0.02]], dtype=torch.float64).repeat(N, 1)
    spread[0] = torch.tensor([0.3, 0.1])
    patch_map = torch.full((2, N), 0.1, dtype=torch.float64)
    patch_map[0, 0] = patch_map[1, 1] = 0.4  # 1 deviation above what is usual there, and 15
    residual, cosines, whole = (torch.zeros(2, *shape, dtype=torch.float64) for shape in ((D,), (2,), (2, 2)))
    here, there = head(patch_map, residual, cosines, spread, whole).final
    assert here < there - 0.1


def test_only_adapter_and_head_learn(model, text):
    query, prompt = features(B, 2), NormalPrompt.of(features(K, 3))
    inputs = [query.cls, query.patches, query.places, text]
    for tensor in inputs:
        tensor.requires_grad_()
    scores = model.train()(query, prompt, text)
    labels = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    (focal_loss(scores.final, labels) + focal_loss(scores.image, labels)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)
    if isinstance(model.head, HEADS["paper"]):
        assert text.grad is None  # the text score is a constant there


def test_parameter_count_at_the_papers_size():
    assert sum(p.numel() for p in InCTRL(640, 225).parameters()) == 333_186


def test_scores_are_what_their_names_say(model, text):
    scores = model(features(B, 2), NormalPrompt.of(features(K, 3)), text)
    torch.testing.assert_close(scores.patch, scores.patch_map.amax(-1))
    for term in (scores.final, scores.holistic, scores.image, scores.text, scores.patch):
        assert ((term >= 0) & (term <= 1)).all()


def test_unknown_head_names_the_known_ones():
    with pytest.raises(InctrlError, match="paper, lite"):
        InCTRL(D, N, head="papper")


# --- saving ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_it_scores_the_same(model, text, tmp_path):
    model.float().save_pretrained(tmp_path / "model")
    again = InCTRL.from_pretrained(tmp_path / "model")
    assert not again.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    InCTRL(D, N).save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(self, data):
        self.touch()
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
    InCTRL(D, N).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InctrlError, match=str(tmp_path)):
        InCTRL.from_pretrained(tmp_path)


def test_no_network_for_a_hub_id_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InctrlError, match="Without a network"):
        InCTRL.from_pretrained("nobody/no-such-model-of-inctrl-lite")
