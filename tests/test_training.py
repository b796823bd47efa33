"""Training and evaluation: learns, resumes exactly, fails clearly, shares work among processes."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import draw_category

from inctrl_lite import training
from inctrl_lite.data.episodes import draw_support
from inctrl_lite.errors import InctrlError
from inctrl_lite.evaluation import evaluate, score_items
from inctrl_lite.model import InCTRL
from inctrl_lite.runs import CHECKPOINT, HISTORY, deferred_interrupt, save_checkpoint
from inctrl_lite.store import FeatureStore
from inctrl_lite.training import (
    TrainConfig,
    new_model,
    train,
)

CONFIG = TrainConfig(head="lite", shots=2, epochs=5, steps_per_epoch=2, batch_size=8)
PAPER = TrainConfig(head="paper", shots=2, epochs=5, steps_per_epoch=2, batch_size=8)


@pytest.fixture(scope="module")
def store(small_backbone, small_categories, tmp_path_factory):
    store = FeatureStore(small_backbone, tmp_path_factory.mktemp("features"))
    store.encode([i for c in small_categories for i in (*c.train, *c.test)], progress=False)
    return store


@pytest.fixture
def run(small_backbone, small_categories, store):
    def run(config=CONFIG, categories=small_categories, **kwargs):
        return train(categories, small_backbone, config, device="cpu", store=store, progress=False, **kwargs)

    return run


def assert_same_model(one: InCTRL, other: InCTRL) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


class Killed(Exception):
    """Stands for a kill: nothing in the code handles it."""


def at_step(monkeypatch, number: int, action) -> None:
    """Does `action` when training asks for the episodes of that step."""
    sample = training.sample_batch

    def sample_or_act(categories, step, **kwargs):
        if step == number:
            action()
        return sample(categories, step, **kwargs)

    monkeypatch.setattr(training, "sample_batch", sample_or_act)


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("config", [CONFIG, PAPER], ids=["lite", "paper"])
def test_killed_and_resumed_equals_uninterrupted(run, config, tmp_path, monkeypatch):
    expected, straight = run(config, out=tmp_path / "straight")
    with monkeypatch.context() as patch:
        at_step(patch, 5, kill)  # between the checkpoints after 4 and 6 steps
        with pytest.raises(Killed):
            run(config, out=tmp_path / "killed")
    assert len((tmp_path / "killed" / HISTORY).read_text().splitlines()) == 4
    model, history = run(config, out=tmp_path / "killed")
    assert_same_model(model, expected)
    assert [r["loss"] for r in history] == [r["loss"] for r in straight]
    assert [r["step"] for r in history] == list(range(10))


def test_ctrl_c_finishes_the_step_and_can_be_resumed(run, tmp_path, monkeypatch, capsys):
    expected, _ = run()
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run(out=tmp_path)
    assert "interrupted after 5 of 10 steps. Saved in" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    model, history = run(out=tmp_path)
    assert len(history) == 10
    assert_same_model(model, expected)


def test_more_epochs_go_on_from_a_finished_run(run, tmp_path):
    expected, _ = run()
    run(TrainConfig(**{**CONFIG.__dict__, "epochs": 2}), out=tmp_path)
    model, _ = run(out=tmp_path)
    assert_same_model(model, expected)
    with pytest.raises(InctrlError, match="run of 10 steps already, more than the 4"):
        run(TrainConfig(**{**CONFIG.__dict__, "epochs": 2}), out=tmp_path)


def test_a_changed_run_is_refused_not_mixed(run, small_categories, tmp_path):
    run(out=tmp_path)
    changed = TrainConfig(**{**CONFIG.__dict__, "learning_rate": 0.5, "epochs": 9})
    with pytest.raises(InctrlError, match=r"other settings \(learning_rate 0.001, now 0.5\)"):
        run(changed, out=tmp_path)
    with pytest.raises(InctrlError, match=r"other settings \(images"):
        run(categories=small_categories[:2], out=tmp_path)
    first, *rest = small_categories
    flipped = [replace(item, label=1 - item.label) for item in first.test]
    with pytest.raises(InctrlError, match=r"other settings \(images"):  # the same images, other labels
        run(categories=[replace(first, test=tuple(flipped)), *rest], out=tmp_path)
    run(changed, out=tmp_path, resume=False)
    assert len((tmp_path / HISTORY).read_text().splitlines()) == 18


def test_other_features_are_another_run(run, small_backbone, small_categories, tmp_path):
    run(out=tmp_path)
    exact = FeatureStore(small_backbone, tmp_path / "features", torch.float32)
    with pytest.raises(InctrlError, match=r"other settings \(features"):
        train(small_categories, small_backbone, CONFIG, out=tmp_path, store=exact, progress=False)


def test_a_run_that_was_stopped_before_its_first_checkpoint_may_change(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 1, kill)
        with pytest.raises(Killed):
            run(out=tmp_path)
    _, history = run(replace(CONFIG, learning_rate=0.01), out=tmp_path)
    assert len(history) == 10 and history[0]["lr"] == 0.01


def test_a_damaged_checkpoint_is_named(run, tmp_path):
    run(out=tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InctrlError, match=f"{CHECKPOINT} cannot be read.*resume=False"):
        run(out=tmp_path)


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_with_code_is_refused_and_not_run(run, tmp_path):
    torch.save({"run": {}, "history": [Intruder(tmp_path / "broken-in")]}, tmp_path / CHECKPOINT)
    with pytest.raises(InctrlError, match=f"{CHECKPOINT} cannot be read"):
        run(out=tmp_path)
    assert not (tmp_path / "broken-in").exists()


def test_a_checkpoint_of_another_shape_is_named(run, tmp_path):
    run(out=tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    state["model"].pop("head.whole")
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(InctrlError, match=f"{CHECKPOINT} does not fit this model.*resume=False"):
        run(out=tmp_path)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 10**30}, {"shots": 0}, {"batch_size": 0}])
def test_settings_without_sense_are_refused_before_any_work(wrong):
    with pytest.raises(InctrlError, match=f"{next(iter(wrong))} .*choose"):
        TrainConfig(**wrong)


def test_a_head_that_needs_text_says_so_before_any_work(small_categories):
    from inctrl_lite import load_backbone

    with pytest.raises(InctrlError, match="needs text prototypes.*no text encoder"):
        train(small_categories, load_backbone("timm:test_vit"), CONFIG, device="cpu", progress=False)


def test_an_unwritable_folder_is_named_before_any_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    at_step(monkeypatch, 0, kill)
    with pytest.raises(InctrlError, match="cannot write"):
        run(out=tmp_path / "file" / "run")


def test_a_full_disk_leaves_the_last_checkpoint(run, tmp_path, monkeypatch):
    def full(self, data):
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: patch.setattr("pathlib.Path.write_bytes", full))
        with pytest.raises(InctrlError, match="No space left on device"):
            run(out=tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["history"][-1]["step"] == 1


def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_checkpoint(run, tmp_path, monkeypatch):
    focal, calls = training.focal_loss, []

    def blow_up(scores, labels, **kwargs):
        calls.append(None)
        return focal(scores, labels, **kwargs) * (float("nan") if len(calls) > 10 else 1)  # two a step

    monkeypatch.setattr(training, "focal_loss", blow_up)
    with pytest.raises(InctrlError, match="failed at step 5: the loss is nan.*last good checkpoint"):
        run(out=tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert len(state["history"]) == 4
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, {}, model, optimiser, [])
    before = (tmp_path / CHECKPOINT).read_bytes()
    model.weight.data[0, 0] = float("inf")
    with pytest.raises(InctrlError, match="failed after 1 steps: weights are no numbers"):
        save_checkpoint(tmp_path, {}, model, optimiser, [{"step": 0}])
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_gradient_that_is_no_number_stops_the_training(run, monkeypatch):
    monkeypatch.setattr(training, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(InctrlError, match="failed at step 0: the loss is [0-9.]+ and .* norm inf"):
        run()


def test_a_second_ctrl_c_acts_at_once():
    with deferred_interrupt() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_only_the_learned_part_learns(run, small_backbone):
    before = {name: value.clone() for name, value in small_backbone.state_dict().items()}
    start = new_model(small_backbone, CONFIG)
    model, _ = run()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in small_backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in small_backbone.state_dict().items())
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, dict(start.named_parameters())[name]), name


@pytest.mark.parametrize(("head", "floor", "reached"), [("lite", 0.0, 0.08), ("paper", 0.196, 0.23)])
def test_one_batch_is_learned_by_heart(run, monkeypatch, head, floor, reached):
    """The double sigmoid keeps each of the two terms above (0.173 + 0.023) / 2."""
    sample = training.sample_batch
    monkeypatch.setattr(training, "sample_batch", lambda categories, step, **kw: sample(categories, 0, **kw))
    _, history = run(
        TrainConfig(head=head, shots=2, epochs=1, steps_per_epoch=40, batch_size=8, learning_rate=5e-3)
    )
    assert floor < history[-1]["loss"] < reached < history[0]["loss"]


def test_the_folder_of_a_run_holds_the_model(run, tmp_path):
    model, _ = run(out=tmp_path)
    assert_same_model(InCTRL.from_pretrained(tmp_path), model)


def test_history_can_be_read(run, tmp_path):
    _, history = run(out=tmp_path)
    assert [json.loads(line) for line in (tmp_path / HISTORY).read_text().splitlines()] == history
    assert all(r["loss"] == pytest.approx(r["final"] + r["image"]) and r["lr"] == 1e-3 for r in history)


def test_initial_weights_follow_the_seed_and_leave_the_generator_alone(small_backbone):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = new_model(small_backbone, CONFIG)
    assert torch.equal(torch.rand(3), expected)
    assert_same_model(one, new_model(small_backbone, CONFIG))
    other = new_model(small_backbone, replace(CONFIG, seed=1))
    assert not torch.equal(one.head.adapter.down.weight, other.head.adapter.down.weight)


@pytest.mark.parametrize(
    "setting",
    [{"gamma": 0.0}, {"weight_decay": 0.9}, {"double_sigmoid": True}, {"learning_rate": 0.1}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_changes_what_is_learned(run, setting):
    one, _ = run(replace(CONFIG, epochs=1))
    other, _ = run(replace(CONFIG, epochs=1, **setting))
    assert not torch.equal(one.head.adapter.down.weight, other.head.adapter.down.weight)


def test_episodes_are_drawn_as_the_settings_say(run, monkeypatch):
    asked, sample = [], training.sample_batch

    def noted(categories, step, **kwargs):
        asked.append((step, kwargs))
        return sample(categories, step, **kwargs)

    monkeypatch.setattr(training, "sample_batch", noted)
    run(TrainConfig(head="lite", shots=3, epochs=2, steps_per_epoch=1, batch_size=6, seed=5))
    assert asked == [(step, {"batch_size": 6, "shots": 3, "seed": 5}) for step in (0, 1)]


def test_a_batch_holds_the_features_text_and_label_of_each_episode(small_backbone, small_categories, store):
    episodes = training.sample_batch(small_categories, 0, batch_size=8, shots=2, seed=0)
    assert len({e.category.name for e in episodes}) > 1
    texts = training.prototypes_of(small_categories, small_backbone)
    query, support, text, labels = training.load_episodes(episodes, store, texts)
    assert labels.tolist() == [e.query.label for e in episodes]
    for i, episode in enumerate(episodes):
        assert torch.equal(text[i], texts[episode.category.name])
        assert torch.equal(query.global_embedding[i], store.load([episode.query]).global_embedding[0])
        normals = store.load(episode.support)
        assert torch.equal(support.global_embedding[i], normals.global_embedding)
        assert torch.equal(support.stages[0].tokens[i], normals.stages[0].tokens)


def test_a_batch_that_is_not_half_normal_is_refused(run):
    with pytest.raises(InctrlError, match="batch size 7 cannot be shared.*multiple of 2"):
        run(replace(CONFIG, batch_size=7))


def test_training_generalises_to_an_unseen_category(run, small_backbone):
    model, _ = run(TrainConfig(head="lite", shots=2, epochs=1, steps_per_epoch=30, batch_size=8))
    unseen = draw_category("pcb", train=6, normal=10, anomalous=10)
    table = evaluate(model, small_backbone, [unseen], shots=4, progress=False)
    assert table.loc[0, ["dataset", "category", "domain"]].tolist() == ["drawn", "pcb", "industrial"]
    assert table.loc[0, ["shots", "seed", "n_normal", "n_anomalous"]].tolist() == [4, 0, 10, 10]
    assert table.loc[0, "auroc"] > 0.9
    measured = ["auroc", "ap", "pixel_auroc", "aupro"]
    assert table.columns.tolist()[-6:] == [*measured, "n_normal", "n_anomalous"]


def test_scores_do_not_depend_on_batch_size_or_store(small_backbone, small_categories, tmp_path):
    category = small_categories[0]
    model = new_model(small_backbone, CONFIG)
    normals = draw_support(category, 2)

    def scores(**kwargs) -> torch.Tensor:
        return score_items(model, small_backbone, category.name, category.test, normals, **kwargs).final

    expected = scores()
    assert len(expected) == len(category.test)
    torch.testing.assert_close(scores(batch_size=3), expected, rtol=0, atol=1e-5)
    exact = FeatureStore(small_backbone, tmp_path, torch.float32)
    torch.testing.assert_close(scores(store=exact), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        scores(store=FeatureStore(small_backbone, tmp_path)), expected, rtol=0, atol=1e-2
    )


# --- several processes -------------------------------------------------------------------------------


def train_and_score(backbone, categories, features, out) -> None:
    """What each process runs."""
    torch.set_num_threads(1)
    store = FeatureStore(backbone, features)
    model, _ = train(categories, backbone, CONFIG, out=out, device="cpu", store=store, progress=False)
    category = categories[0]
    normals = draw_support(category, 2)
    scores = score_items(model, backbone, category.name, category.test, normals, batch_size=3)
    table = evaluate(model, backbone, categories, shots=2, progress=False)
    rank = training.process_group("cpu").rank
    torch.save({"model": model.state_dict(), "final": scores.final}, out / f"{rank}.pt")
    table.to_csv(out / f"{rank}.csv", index=False)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on, with threads around
def test_two_processes_train_and_evaluate_like_one(small_backbone, small_categories, tmp_path, monkeypatch):
    from accelerate import debug_launcher

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # unset, accelerate sets it and warns
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    debug_launcher(
        train_and_score, (small_backbone, small_categories, tmp_path / "features", tmp_path / "two")
    )
    ranks = [torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    tables = [(tmp_path / "two" / f"{rank}.csv").read_text() for rank in (0, 1)]
    assert tables[0] == tables[1]
    assert torch.equal(ranks[0]["final"], ranks[1]["final"])
    for name, value in ranks[0]["model"].items():
        assert torch.equal(value, ranks[1]["model"][name]), name

    alone = new_model(small_backbone, CONFIG)
    alone.load_state_dict(ranks[0]["model"])
    category = small_categories[0]
    scores = score_items(
        alone, small_backbone, category.name, category.test, draw_support(category, 2), batch_size=3
    )
    assert torch.equal(scores.final, ranks[0]["final"])
    table = evaluate(alone, small_backbone, small_categories, shots=2, progress=False)
    assert table.to_csv(index=False) == tables[0]

    train_and_score(small_backbone, small_categories, tmp_path / "features", tmp_path / "one")
    one = torch.load(tmp_path / "one" / "0.pt", weights_only=True)["model"]
    for name, value in one.items():
        np.testing.assert_allclose(value, ranks[0]["model"][name], atol=1e-5, err_msg=name)
