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


@pytest.mark.parametrize("right", [[0.5], {"a": 1}, {1, 2}, None, "word", True])
@pytest.mark.parametrize("answer", [np.array(["a", "b"]), np.array([["a"], ["b"]]), {1, 3}, "other", print])
def test_any_answer_can_be_compared(answer, right):
    with pytest.raises(CheckFailed, match="double"):
        Exercise(
            solution=double, cases=lambda seed: (seed,), run=lambda f, x: f(x) if f != double else right
        )(lambda x: answer)


def halve(x: torch.Tensor) -> torch.Tensor:
    return x[:2] / 2


HALVE = Exercise(
    solution=halve,
    cases=lambda seed: (torch.arange(5.0) + seed,),
    mistakes={"take two first": lambda x: x / torch.tensor([2.0, 2.0])},
    inputs=lambda x: f"a row of {len(x)} numbers",
    explain=lambda case, result, right: "are all kept?" if len(result) == 5 else None,
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: x / (torch.ones(2) + 1),
            "take two first\n  It raised RuntimeError.*\n  with a row of 5 numbers",
        ),
        (lambda x: x / torch.ones(3), "halve raised RuntimeError.*\n  with a row of 5 numbers"),
        (lambda x: x / 2, "are all kept"),
        (lambda x: x[:2], "returns 1 at"),
    ],
)
def test_what_is_said_of_an_answer_can_be_an_exercises_own(answer, message):
    with pytest.raises(CheckFailed, match=message):
        HALVE(answer)


@pytest.mark.parametrize(
    ("exercise", "answer", "message"),
    [
        (
            checks.check_sample_normals,
            lambda names, query, shots, seed: [name for name in names if name != query][-shots:],
            "all different, none the query",
        ),
        (
            checks.check_find_leaks,
            lambda train, test: [name for name in test if name == "test/2"],
            r"test/2 .* is not in training",
        ),
        (
            checks.check_images_first,
            lambda t: t[:, 1:].permute(3, 0, 1, 2),
            r"\[C, L, N, B\] is what you return",
        ),
        (checks.check_audit, lambda module: {"trained": 0, "dead": 0, "frozen": 0}, "counts 0 numbers as"),
        (
            checks.check_is_batch_invariant,
            lambda score, x: all(
                bool((score(x[i : i + 1]) - score(x)[i]).abs() < 1e-4) for i in range(len(x) - 1)
            ),
            "True .* of a model that is wrong for one image",
        ),
        (
            checks.check_is_batch_invariant,
            lambda score, x: bool((score(x) - score(x.roll(1, 0)).roll(-1, 0)).abs().max() < 1e-4),
            "in a batch of ONE",
        ),
        (checks.check_final_score, lambda *a: a[2].amax(1) @ a[3], r"patch_map \[B, N\] = \[3, 10\]"),
    ],
)
def test_the_unknown_mistake_is_described_in_words(exercise, answer, message):
    with pytest.raises(CheckFailed, match=message):
        exercise(answer)


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
