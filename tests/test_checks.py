"""The exercises' checks: answer keys pass, known mistakes get their own hint."""

import numpy as np
import pytest
import torch

from inctrl_lite import checks
from inctrl_lite.checks import CheckFailed, Exercise, exercises

EXERCISES = sorted(exercises().values(), key=lambda exercise: exercise.name)
MISTAKES = [(exercise, hint) for exercise in EXERCISES for hint in exercise.mistakes]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_answer_key_passes(exercise, capsys):
    assert exercise(exercise.solution) is exercise.solution
    assert "right on" in capsys.readouterr().out


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_librarys_function_passes(exercise):
    if exercise.library is not None:
        exercise(exercise.library)


@pytest.mark.parametrize(("exercise", "hint"), MISTAKES, ids=lambda x: getattr(x, "name", str(x)[:30]))
def test_a_known_mistake_gets_its_hint(exercise, hint):
    with pytest.raises(CheckFailed) as failure:
        exercise(exercise.mistakes[hint])
    assert hint in str(failure.value)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_every_exercise_knows_at_least_three_mistakes(exercise):
    assert len(exercise.mistakes) >= 3


def unfinished(*arguments):
    raise NotImplementedError


def test_not_attempted_goes_on_with_the_library(monkeypatch, capsys):
    exercise = checks.check_patch_residual_map
    assert exercise(unfinished) is exercise.library
    assert "not attempted" in capsys.readouterr().out
    monkeypatch.setenv("INCTRL_LITE_STRICT", "1")
    with pytest.raises(CheckFailed, match="was not attempted"):
        exercise(unfinished)


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


DOUBLE = Exercise(solution=double, cases=lambda seed: (torch.arange(3.0) + seed,))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: None, "is a `return` missing"),
        (lambda x: 2 * x[:2], r"returns shape \[2\], expected \[3\]"),
        (lambda x: 2 * x + torch.tensor([0.0, 0.0, 1.0]), r"returns 5 at \[2\], expected 4"),
        (lambda x: x.mul_(2), "changes its arguments in place"),
        (lambda x: x @ torch.ones(5), r"raised RuntimeError.*\n.*Tensor \[3\]"),
    ],
)
def test_other_mistakes_are_described(answer, message):
    with pytest.raises(CheckFailed, match=message) as failure:
        DOUBLE(answer)
    assert failure.value._render_traceback_()[0].startswith("✗ double")


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_a_list_an_array_or_a_tensor_will_do_for_a_tuple(form, capsys):
    pair = Exercise(solution=lambda seed: (seed + 0.5, 2.0), cases=lambda seed: (seed,))
    pair(lambda seed: form([seed + 0.5, 2.0]))
    assert "right on" in capsys.readouterr().out
    with pytest.raises(CheckFailed):
        pair(lambda seed: form([seed + 0.5, 3.0]))


def shuffled_by_lot(score, query, prompt):
    order = torch.randperm(len(query))
    return (score(query, prompt)[order] - score(query[order], prompt[order])).abs().max().item()


def doubled(score, query, prompt):
    alone = [
        score(q.expand(2, -1, -1, -1), p.expand(2, -1, -1, -1, -1))
        for q, p in zip(query, prompt, strict=True)
    ]
    return (score(query, prompt) - torch.stack(alone)[:, 0]).abs().max().item()


@pytest.mark.parametrize("answer", [shuffled_by_lot, doubled])
def test_a_test_without_a_batch_of_one_is_told_so(answer):
    with pytest.raises(CheckFailed, match="in a batch of ONE"):
        checks.check_largest_change(answer)
