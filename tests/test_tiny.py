"""The tiny CLIP: its corpus, its pretraining, its weights."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from inctrl_lite import InctrlError, load_backbone
from inctrl_lite.backbones.registry import TINY_FOLDER
from inctrl_lite.prompts import ANOMALOUS_STATES
from inctrl_lite.tiny import corpus, pretrain
from inctrl_lite.tiny.pretrain import QUICK, CompactVocabulary, Pretraining, Recipe

SMALL = Recipe(
    triplets=24,
    held_out=4,
    crop_steps=2,
    crop_batch=3,
    whole_steps=2,
    whole_batch=2,
    hard_negative_steps=2,
    large_batch=3,
)


# --- corpus ------------------------------------------------------------------------------------------


def test_a_sample_depends_on_seed_and_number_alone():
    first = corpus.draw_sample(3, 7)
    corpus.draw_sample(3, 8)
    again = corpus.draw_sample(3, 7)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.captions == again.captions
    assert not np.array_equal(first.images, corpus.draw_sample(4, 7).images)


@pytest.fixture(scope="module")
def samples():
    return [corpus.draw_sample(0, i) for i in range(60)]


def test_samples_are_triplets_of_pictures_with_captions(samples):
    for sample in samples:
        assert sample.images.shape == (3, 120, 120, 3) and sample.images.dtype == np.uint8
        assert len(sample.captions) == 3 and all(sample.captions)
        assert sample.coverage.shape == (15, 15)
        assert sample.other_thing == (sample.coverage.sum() == 0)


def test_damaged_pictures_say_so(samples):
    words = {
        "defect",
        "flaw",
        "damage",
        "damaged",
        "defective",
        "broken",
        "abnormal",
        *corpus.FAMILIES["defects"],
    }
    assert any("damaged" in state for state in ANOMALOUS_STATES)
    for sample in samples:
        if not sample.other_thing:
            assert any(word in sample.captions[2] for word in words), sample.captions[2]


def test_another_thing_is_of_another_class():
    rng = np.random.default_rng(0)
    a, b = corpus.sign(rng, "character 3"), corpus.sign(rng, "character 3")
    other = corpus.sign(rng, "character 4")
    ink = [thing.draw(np.random.default_rng(1)).thing for thing in (a, b, other)]
    np.testing.assert_array_equal(ink[0], ink[1])  # one identity and one pose: the same shape
    assert np.abs(ink[0] - ink[2]).max() > 0.5


def test_two_pictures_of_a_photograph_are_two_cuts_of_one_place():
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    things = [corpus.photographed(np.random.default_rng(seed), ["coffee.png"]) for seed in range(20)]
    one, other = (np.stack([t.draw(np.random.default_rng(s)).image.mean(-1) for t in things]) for s in (1, 2))
    assert one.shape == (20, 120, 120) and not np.array_equal(one, other)
    coarse = [p.reshape(20, 8, 15, 8, 15).mean((2, 4)).reshape(20, 64) for p in (one, other)]
    alike = np.corrcoef(*coarse)[:20, 20:]
    assert np.median(np.diag(alike)) > 0.7 > 0.3 > np.median(np.abs(alike - np.diag(np.diag(alike))))


def test_of_a_surface_two_pictures_may_be_two_places():
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    things = [corpus.photographed(np.random.default_rng(seed), ["grass.png"]) for seed in range(20)]
    wandering = [thing for thing in things if thing.identity == "grass.png"]
    assert 5 < len(wandering) < 18
    one, other = (wandering[0].draw(np.random.default_rng(s)).image for s in (1, 2))
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.3


def test_the_photographs_are_all_there_and_without_the_package_the_error_says_what_to_install(monkeypatch):
    corpus.photograph_file.cache_clear()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InctrlError, match="pip install scikit-image"):
        corpus.photograph_file("moon.png")
    monkeypatch.undo()
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    assert all(min(corpus.photograph_file(name).size) >= 400 for name in corpus.PHOTOGRAPHS)


def test_no_digits_among_the_signs():
    assert not any(character.isdigit() for character in corpus.LETTERS + corpus.SIGNS)


def test_families_are_apart_from_the_worlds():
    from inctrl_lite.data import worlds

    for name in (worlds.AUXILIARY, *worlds.EVALUATION):
        theirs = worlds.families(name)
        for kind in ("objects", "textures"):
            assert not corpus.FAMILIES[kind] & theirs[kind], (name, kind)
    shared = [
        bool(corpus.FAMILIES["defects"] & worlds.families(name)["defects"]) for name in worlds.EVALUATION
    ]
    assert sum(shared) <= len(shared) / 2


# --- words -------------------------------------------------------------------------------------------


def test_compact_vocabulary_keeps_the_end_of_text_highest():
    vocabulary = CompactVocabulary(["a red disc", "a blue ring"])
    tokens = vocabulary(["a red zebra", "a disc"])
    assert tokens.argmax(1).tolist() == [4, 3]  # start, a, red, zebra, end; start, a, disc, end
    assert tokens[0, 3] == 1 and (tokens[0, 5:] == 0).all()  # unknown word; padding


def test_expanded_table_gives_unseen_tokens_the_shared_row():
    vocabulary = CompactVocabulary(["a red disc"])
    rows = torch.arange(len(vocabulary) * 2.0).view(-1, 2)
    table = vocabulary.expand(rows)
    known = vocabulary.tokenize(["red"])[0, 1]
    unseen = vocabulary.tokenize(["zebra"])[0, 1]
    torch.testing.assert_close(table[known], rows[vocabulary.compact[known]])
    torch.testing.assert_close(table[unseen], rows[1])


# --- pretraining -------------------------------------------------------------------------------------


def test_fully_whitened_patches_have_equal_variance():
    torch.manual_seed(0)
    clip = pretrain.build(48, 10)
    smooth = torch.nn.functional.interpolate(torch.randn(40, 3, 12, 12), (48, 48), mode="bilinear")
    images = smooth + 0.5 * torch.randn(40, 3, 48, 48)
    pretrain.whiten_patch_embedding(clip, images, power=0.5)
    with torch.no_grad():
        embedded = clip.visual.conv1(images).flatten(2).transpose(1, 2).reshape(-1, pretrain.WIDTH)
    variance = torch.linalg.eigvalsh(torch.cov(embedded.T))
    assert variance.max() / variance.min() < 1.5  # raw patches: far over 100
    raw = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    raw_variance = torch.linalg.eigvalsh(torch.cov(raw.T))
    assert raw_variance.max() / raw_variance.min() > 100


def test_losses_prefer_the_right_pairs():
    right, wrong = torch.eye(4), torch.eye(4).roll(1, 0)
    no = torch.zeros(4, 4, dtype=torch.bool)
    scale = torch.tensor(10.0)
    assert pretrain.contrastive_loss(right, right, scale, no) < 0.01
    assert pretrain.contrastive_loss(right, wrong, scale, no) > 5
    others = torch.cat([~torch.eye(4, dtype=torch.bool), no], 1)
    assert pretrain.identity_loss(right, right, wrong, others) < 0.01
    assert pretrain.identity_loss(right, wrong, right, others) > 5
    assert pretrain.identity_loss(right, wrong, right, torch.zeros_like(others)) == 0  # nothing to confuse
    everything_same = torch.ones(4, 4, dtype=torch.bool)
    assert pretrain.contrastive_loss(right, wrong, scale, everything_same) == 0  # nothing left to confuse


def test_residual_loss_wants_large_residuals_under_the_defect_only():
    coverage = torch.tensor([[0.0, 1.0]])
    affine = torch.tensor([20.0, -3.0])
    good = pretrain.residual_loss(torch.zeros(1, 2), torch.tensor([[0.0, 0.5]]), coverage, affine)
    bad = pretrain.residual_loss(torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]), coverage, affine)
    assert good < 0.1 < 2 < bad


def test_cut_without_zoom_gives_the_picture_back():
    images = torch.rand(2, 3, 120, 120)
    whole = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    mean = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(pretrain.cut(images, whole, 60), mean, atol=1e-5, rtol=0)


def test_an_interrupted_run_continues_to_the_same_weights(tmp_path):
    straight = Pretraining(tmp_path / "a", SMALL)
    while straight.step_number < straight.total_steps:
        terms = straight.step()
    assert np.isfinite(terms["loss"])

    for stop in (1, 3, 5, 6):  # in each phase and at the end
        run = Pretraining(tmp_path / "b", SMALL)
        while run.step_number < stop:
            run.step()
        run.save()
    assert run.step_number == run.total_steps
    for name, tensor in straight.clip.state_dict().items():
        torch.testing.assert_close(run.clip.state_dict()[name], tensor, rtol=0, atol=0)
    with pytest.raises(InctrlError, match="another recipe"):
        Pretraining(tmp_path / "b", replace(SMALL, seed=1))


def test_a_batch_of_the_hard_negative_phase_has_two_families(tmp_path):
    run = Pretraining(tmp_path, SMALL)
    *_, hard_negatives = SMALL.phases
    for seed in range(5):
        index = run.sample_triplets(hard_negatives._replace(batch=7), torch.Generator().manual_seed(seed))
        assert index.max() < SMALL.triplets - SMALL.held_out
        first, second = run.families[index[:4]], run.families[index[4:]]
        assert len(index) == 7 and len(first.unique()) == 1 and len(second.unique()) == 1


def test_a_large_batch_has_two_pictures_each_of_objects_of_one_family(tmp_path):
    run = Pretraining(tmp_path, replace(SMALL, triplets=60, large_batch=9))
    for seed in range(5):
        images, identity = run.sample_large_batch(torch.Generator().manual_seed(seed))
        assert images.shape == (9, 2, 3, 120, 120)
        families = {run.families[(run.identities[:, 0] == kind).nonzero()[0, 0]].item() for kind in identity}
        assert {np.unique(run.corpus.families)[i] for i in families} in ({"sign"}, {"silhouette"})
        assert not torch.equal(images[:, 0], images[:, 1])


def test_the_large_batch_loss_drops_patches_only_for_itself_and_trains_the_image_tower(tmp_path):
    run = Pretraining(tmp_path, replace(SMALL, crop_steps=0, whole_steps=0))
    one, other = torch.randn(2, 1, 3, 120, 120)
    twice = torch.cat([one, other]).unsqueeze(1).expand(2, 2, 3, 120, 120)
    seen = []
    run.clip.visual.ln_pre.register_forward_hook(lambda module, given, result: seen.append(result.shape[1]))
    loss = run.objective.large_batch_identity_loss(run.clip, twice, torch.tensor([0, 1]))
    assert seen == [1 + int(225 * pretrain.LARGE_BATCH_PATCHES)]
    loss.backward()
    assert run.clip.visual.conv1.weight.grad.abs().sum() > 0
    # one object twice: there is no wrong answer
    assert run.objective.large_batch_identity_loss(run.clip, twice, torch.tensor([0, 0])) == 0
    run.clip.encode_image(one)
    assert seen[-1] == 226


def test_the_export_is_an_open_clip_folder_that_says_the_same(tmp_path):
    run = Pretraining(tmp_path, replace(SMALL, crop_steps=1, whole_steps=1, hard_negative_steps=0))
    run.step(), run.step()
    run.clip.eval()
    sentences = ["a photo of a damaged red disc.", "a flawless object"]
    images = torch.randn(2, 3, 120, 120)
    with torch.no_grad():
        text, cls = run.clip.encode_text(run.vocabulary(sentences)), run.clip.encode_image(images)
    run.export(tmp_path / "weights")
    backbone = load_backbone(f"local-dir:{tmp_path / 'weights'}")
    torch.testing.assert_close(backbone.text_encoder.encode(sentences), text, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(backbone.encode_images(images).global_embedding, cls, atol=5e-3, rtol=5e-3)


def test_a_run_leaves_its_log_and_snapshots(tmp_path):
    recipe = replace(SMALL, crop_steps=0, whole_steps=0, hard_negative_steps=3)
    weights = pretrain.pretrain(tmp_path, recipe, log_every=2, save_every=2)
    assert sorted(folder.name for folder in (tmp_path / "snapshots").iterdir()) == ["2", "3"]
    last, end = (f / "open_clip_model.safetensors" for f in (tmp_path / "snapshots" / "3", weights))
    assert last.read_bytes() == end.read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    assert "held-out identity" in rows[-1]  # the last step is evaluated, whatever its number


def test_an_export_can_be_the_weighted_mean_of_start_and_end(tmp_path):
    recipe = replace(SMALL, crop_steps=0, whole_steps=0, hard_negative_steps=1, large_batch=0)
    start = pretrain.pretrain(tmp_path / "a", recipe)
    ended, averaged = (
        pretrain.pretrain(tmp_path / name, replace(recipe, seed=1, soup_weight=share), start=start)
        for name, share in (("b", 0.0), ("c", 0.3))
    )
    before, after, mean = (load_file(f / "open_clip_model.safetensors") for f in (start, ended, averaged))
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert not torch.equal(before[name], after[name])
    expected = 0.3 * before[name].float() + 0.7 * after[name].float()
    torch.testing.assert_close(mean[name].float(), expected, atol=1e-3, rtol=1e-3)
    last = load_file(tmp_path / "c" / "snapshots" / "1" / "open_clip_model.safetensors")
    assert torch.equal(last[name], after[name])  # the snapshot is the run's own end


# --- the quick run -----------------------------------------------------------------------------------


def test_the_quick_run_stays_within_its_five_minutes():
    """A triplet of 48-pixel crops took 14 ms of one busy core, 600 steps of 24 therefore 200 s."""
    assert sum(phase.steps * phase.batch for phase in QUICK.phases) <= 600 * 24
    assert all(phase.size == 48 for phase in QUICK.phases if phase.steps)
    assert QUICK.triplets <= 1500 and QUICK.held_out >= 200


def test_a_cut_quick_run_learns_what_carries_over(tmp_path):
    """The same code on smaller crops, half a minute: captions of things that it never saw are told apart."""
    cut = replace(QUICK, triplets=800, held_out=160, crop_steps=150, crop_size=32)
    run = Pretraining(tmp_path, cut)
    before = run.evaluate()["held-out contrastive"]
    while run.step_number < run.total_steps:
        run.step()
    after = run.evaluate()["held-out contrastive"]
    chance = math.log(40)  # 20 triplets at a time, two captions each
    assert after < before - 0.2  # measured: 0.37
    assert after < chance - 0.08  # measured: 0.15; with captions of other triplets it stays above chance


def test_quick_on_the_command_line_is_one_run_of_that_recipe(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(pretrain, "pretrain", lambda out, recipe, *rest: runs.append((out, recipe)) or out)
    monkeypatch.setattr(pretrain, "photograph_file", lambda name: None)  # the package need not be there
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["pretrain", "--quick", "--out", str(tmp_path), "--threads", threads])
    pretrain.main()
    assert runs == [(Path(tmp_path) / "quick", QUICK)]
    monkeypatch.setattr(
        sys, "argv", ["pretrain", "--out", str(tmp_path), "--seed", "3", "--threads", threads]
    )
    pretrain.main()
    assert [recipe.seed for _, recipe in runs[1:]] == [3] * len(pretrain.RECIPES)
    monkeypatch.setattr(sys, "argv", ["pretrain", "--runs", "third", "--threads", threads])
    pretrain.main()
    assert runs[-1] == (Path("runs/tiny/third"), pretrain.RECIPES["third"]) and len(runs) == 5


def test_photographs_that_are_missing_are_missed_before_the_first_run(monkeypatch, tmp_path):
    runs = []
    monkeypatch.setattr(pretrain, "pretrain", lambda *args: runs.append(args))
    monkeypatch.setitem(sys.modules, "skimage", None)
    corpus.photograph_file.cache_clear()
    threads = str(torch.get_num_threads())
    monkeypatch.setattr(sys, "argv", ["pretrain", "--out", str(tmp_path), "--threads", threads])
    with pytest.raises(InctrlError, match="pip install scikit-image"):
        pretrain.main()
    assert not runs


# --- the shipped weights -----------------------------------------------------------------------------


def test_the_embedded_weights_are_small_and_plain_open_clip():
    sizes = [path.stat().st_size for path in TINY_FOLDER.iterdir()]
    assert sum(sizes) < 12e6
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{TINY_FOLDER}")
    assert model.visual.grid_size == (15, 15)
    backbone = load_backbone("tiny")
    assert (backbone.num_patches, backbone.embed_dim, backbone.width) == (225, 128, 128)
    assert backbone.taps == pretrain.TAPS
