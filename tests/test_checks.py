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


def query_by_query(query, tokens, support, support_tokens, real, prototypes, *parts):
    given = query, tokens, support, support_tokens, real, prototypes
    alone = [[one[i : i + 1] for one in given] for i in range(len(query))]
    return torch.cat([exercises()["score_mixed_batch"].solution(*one, *parts) for one in alone])


def test_a_right_answer_that_loops_over_the_queries_is_refused():
    with pytest.raises(CheckFailed, match="The result is right, but you loop over the queries"):
        checks.check_score_mixed_batch(query_by_query)


def test_an_operation_that_torch_does_not_have_is_an_error_and_no_missing_answer():
    exercise = checks.check_contrastive_loss  # torch raises NotImplementedError here
    with pytest.raises(CheckFailed, match="raised NotImplementedError: .* not implemented for 'Bool'"):
        exercise(lambda image, text, scale, same: torch.nn.functional.cross_entropy(same, same.double()))


def test_a_result_of_a_form_that_its_own_message_does_not_expect_gets_the_general_one():
    exercise = Exercise(
        solution=double,
        cases=lambda seed: (torch.arange(3.0) + seed,),
        explain=lambda case, result, right: f"returns {int(result)}",
    )
    with pytest.raises(CheckFailed, match=r"returns 0 at \[1\], expected 2"):
        exercise(lambda x: 0 * x)


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
    accepted = pair(lambda seed: form([seed + 0.5, 2.0]))
    assert "right on" in capsys.readouterr().out
    assert accepted(1) == (1.5, 2.0)  # the notebook goes on with the answer key's form
    with pytest.raises(CheckFailed):
        pair(lambda seed: form([seed + 0.5, 3.0]))


FORMS = {
    "a list": lambda x: (2 * x).tolist(),
    "an array": lambda x: (2 * x).numpy(),
    "float64": lambda x: 2 * x.double(),
    "a list of tensors": lambda x: list(2 * x),
    "a tuple": lambda x: tuple((2 * x).tolist()),
}


@pytest.mark.parametrize("answer", FORMS.values(), ids=FORMS)
def test_right_numbers_in_any_form_pass_and_are_converted(answer):
    accepted = DOUBLE(answer)(torch.arange(3.0))
    assert isinstance(accepted, torch.Tensor) and accepted.dtype == torch.float32
    assert accepted.tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("answer", FORMS.values(), ids=FORMS)
def test_wrong_numbers_in_any_form_fail_with_the_first_value_that_differs(answer):
    with pytest.raises(CheckFailed, match=r"returns 4 at \[1\], expected 2 \(2 of 3 values differ\)"):
        DOUBLE(lambda x: answer(x + torch.tensor([0.0, 1.0, 1.0])))


@pytest.mark.parametrize("form", [lambda x: x.tolist(), lambda x: x.numpy(), torch.Tensor.double])
def test_exercises_take_lists_arrays_and_float64(form):
    solution = checks.check_score_by_text.solution
    accepted = checks.check_score_by_text(lambda query, prototypes: form(solution(query, prototypes)))
    assert accepted(torch.eye(2), torch.eye(2)).dtype == torch.float32
    mean = checks.check_effect_of_shots(lambda a: [form(a.mean(1)), form(a.std(1))])(torch.eye(2))[0]
    assert isinstance(mean, torch.Tensor)


@pytest.mark.parametrize("form", [lambda a: dict(enumerate("abc", 1)), lambda a: a[:2], lambda a: a[0]])
def test_parts_in_another_form_are_described(form):
    """A dictionary of the right length was once looked up by 0."""
    split = Exercise(
        solution=lambda x: (x, x.sum(), x.mean(0)),
        cases=lambda seed: (torch.ones(4, 2),),
        parts=("a", "b", "c"),
    )
    with pytest.raises(CheckFailed, match="<lambda>: returns"):
        split(lambda x: form(split.solution(x)))


@pytest.mark.parametrize("right", [[0.5, 2.5], {"a": 1}, {1, 2}, None, "word", True])
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
            "different names without the query, but not those",
        ),
        (
            checks.check_find_leaks,
            lambda train, test: [name for name in test if name == "test/2"],
            r"test/2 .* is not among the training images",
        ),
        (
            checks.check_is_batch_invariant,
            lambda score, x, tolerance=1e-4: checks.check_is_batch_invariant.solution(
                score, x[:2], tolerance
            ),
            "of a model that is wrong for one image, the third",
        ),
        (
            checks.check_is_batch_invariant,
            lambda score, x, tolerance=1e-4: bool(
                (score(x) - torch.cat([score(one[None]) for one in x])).norm() <= tolerance
            ),
            "No SINGLE score may change",
        ),
        (
            checks.check_audit,
            lambda m: {k: v for k, v in checks.check_audit.solution(m).items() if v},
            "returns the keys trained, frozen; expected trained, dead, frozen, with 0 where there are none",
        ),
        (
            checks.check_images_first,
            lambda t: t[:, 1:].permute(3, 0, 1, 2),
            r"you return \[C, L, N, B\]",
        ),
        (checks.check_audit, lambda module: {"trained": 0, "dead": 0, "frozen": 0}, "counts 0 numbers as"),
        (
            checks.check_is_batch_invariant,
            lambda score, x, tolerance=1e-4: all(
                bool((score(x[i : i + 1]) - score(x)[i]).abs() < tolerance) for i in range(len(x) - 1)
            ),
            "True .* of a model that is wrong for one image",
        ),
        (
            checks.check_attention,
            lambda q, k, v: (q @ v.new_ones(q.shape[-1], 1), q),
            "several things. Return only what the queries read",
        ),
        (
            checks.check_batch_norm_step,
            lambda x, m, v, training: {"x": x, "mean": m, "variance": v},
            "return three things, separated by commas",
        ),
        (
            checks.check_is_batch_invariant,
            lambda score, x, tolerance=1e-4: bool(
                (score(x) - score(x.roll(1, 0)).roll(-1, 0)).abs().max() < tolerance
            ),
            "in a batch of ONE",
        ),
        (
            checks.check_probabilities,
            lambda s, t: (s / t).softmax(-1) * torch.linspace(1, 2, len(s))[:, None],
            "row 1 of your result sums to 2. Each row should sum to 1",
        ),
        (
            checks.check_probabilities,
            lambda s, t: (s.double() / t).exp() / (s.double() / t).exp().sum(-1, keepdim=True),
            "nan for scores in the hundreds",
        ),
        (checks.check_final_score, lambda *a: a[2].amax(1) @ a[3], r"patch_map \[B, N\] = \[3, 10\]"),
    ],
)
def test_the_unknown_mistake_is_described_in_words(exercise, answer, message):
    with pytest.raises(CheckFailed, match=message):
        exercise(answer)


def shuffled(score, query, support):
    order = torch.arange(len(query)).roll(1)
    return (score(query, support)[order] - score(query[order], support[order])).abs().max().item()


def doubled(score, query, support):
    alone = [
        score(q.expand(2, -1, -1, -1), s.expand(2, -1, -1, -1, -1))
        for q, s in zip(query, support, strict=True)
    ]
    return (score(query, support) - torch.stack(alone)[:, 0]).abs().max().item()


@pytest.mark.parametrize("answer", [shuffled, doubled])
def test_a_test_without_a_batch_of_one_is_told_so(answer):
    with pytest.raises(CheckFailed, match="in a batch of ONE"):
        checks.check_largest_change(answer)


def adapter(down_as: str, up_as: str, order: bool = True, factor: float = 1.0):
    """An adapter of plain parameters, each stored like nn.Linear ("linear") or transposed ("matrix")."""

    class Adapter(torch.nn.Module):
        def __init__(self, width: int, reduction: int = 4):
            super().__init__()
            shapes = {"linear": lambda i, o: (o, i), "matrix": lambda i, o: (i, o)}
            middle = width // reduction
            sizes = {"first": shapes[down_as](width, middle), "second": shapes[up_as](middle, width)}
            for name in sorted(sizes, reverse=not order):
                self.register_parameter(name, torch.nn.Parameter(torch.zeros(sizes[name])))

        def forward(self, x):
            down = self.first.T if down_as == "linear" else self.first
            up = self.second.T if up_as == "linear" else self.second
            return factor * ((x @ down).relu() @ up).relu()

    return Adapter


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("up_as", ["linear", "matrix"])
@pytest.mark.parametrize("down_as", ["linear", "matrix"])
def test_an_adapter_may_have_plain_or_transposed_parameters(down_as, up_as, order):
    checks.check_Adapter(adapter(down_as, up_as, order))
    with pytest.raises(CheckFailed, match="the right sizes, but forward returns"):
        checks.check_Adapter(adapter(down_as, up_as, order, factor=2.0))


def test_an_adapter_has_no_dropout():
    class Dropped(checks.check_Adapter.solution):
        def forward(self, x):
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    with pytest.raises(CheckFailed, match="other numbers in training mode"):
        checks.check_Adapter(Dropped)


@pytest.mark.parametrize("name", ["focal_loss", "pair_loss", "contrastive_loss"])
@pytest.mark.parametrize(
    "forget", [lambda loss: torch.tensor(loss.item(), requires_grad=True), lambda loss: loss.detach()]
)
def test_a_loss_without_a_gradient_is_told_so(name, forget):
    solution = exercises()[name].solution
    with pytest.raises(CheckFailed, match="nothing can be learned from it"):
        exercises()[name](lambda *case: forget(solution(*case)))


def test_a_gradient_that_is_missing_is_named():
    loss = checks.check_contrastive_loss.solution
    with pytest.raises(CheckFailed, match="no gradient reaches the scale"):
        checks.check_contrastive_loss(lambda i, t, scale, same: loss(i, t, scale.detach(), same))
    pairs = checks.check_pair_loss.solution
    with pytest.raises(CheckFailed, match="no gradient reaches the normal scores"):
        checks.check_pair_loss(lambda n, a: pairs(n.detach(), a))


def test_pictures_are_bytes():
    checks.check_find_leaks(
        lambda train, test: sorted(n for n, p in test.items() if bytes(p) in {*map(bytes, train.values())})
    )


def test_a_sorted_pool_is_another_draw():
    solution = checks.check_sample_normals.solution
    with pytest.raises(CheckFailed, match="sort the pool"):
        checks.check_sample_normals(lambda names, *others: solution(sorted(names), *others))


@pytest.mark.parametrize("fixed", [1e-4, 1e-8])
def test_a_test_must_use_its_tolerance(fixed):
    solution = checks.check_is_batch_invariant.solution
    with pytest.raises(CheckFailed, match="tolerance"):
        checks.check_is_batch_invariant(lambda score, x, tolerance=1e-4: solution(score, x, fixed))


def test_a_forbidden_function_is_not_accepted():
    from sklearn.metrics import roc_auc_score

    with pytest.raises(CheckFailed, match="calls roc_auc_score: write the computation yourself"):
        checks.check_auroc(lambda labels, scores: roc_auc_score(labels, scores))
    with pytest.raises(CheckFailed, match="calls roc_auc_score"):
        checks.check_auroc(roc_auc_score)


def test_a_forbidden_function_is_found_inside_a_function():
    from sklearn import metrics

    with pytest.raises(CheckFailed, match="calls roc_auc_score"):
        checks.check_auroc(lambda *a: (lambda: metrics.roc_auc_score(*a))())


def test_stages_in_other_forms_are_described():
    solution = checks.check_collect_stages.solution
    with pytest.raises(CheckFailed, match="entry 0 of the list is a dict"):
        checks.check_collect_stages(lambda *a: [{"tokens": one.tokens} for one in solution(*a)])
    with pytest.raises(CheckFailed, match="the tokens of stage 1: returns"):
        checks.check_collect_stages(
            lambda *a: [type(s)(s.tokens + i, s.grid) for i, s in enumerate(solution(*a))]
        )
    checks.check_collect_stages(lambda *a: tuple(solution(*a)))


UNKNOWN = {
    "build_prototypes": (lambda n, a: torch.stack([n[0], a[0]]), r"at \[0, \d\], expected .*values differ"),
    "cosine_megabytes": (lambda B, L, N, K: 7.0, "returns 7, expected"),
    "focal_loss": (
        lambda s, y, gamma: 3 * checks.check_focal_loss.solution(s, y, gamma),
        "for the loss, returns .* expected",
    ),
    "seed_interval": (lambda v, level: (0.0, 1.0), "for the lower end, returns 0, expected"),
    "paired_interval": (lambda y, a, b, p: (0.0, 1.0), "for the lower end, returns 0, expected"),
    "margins": (
        lambda t, o: checks.check_margins.solution(t, o) | {"ahead": 0.123},
        "for the key 'ahead', returns 0.123, expected",
    ),
    "cosines": (lambda a, b: torch.zeros(len(a), len(b)), r"returns 0 at \[0, 0\], expected"),
    "probabilities": (lambda s, t: s * 0 + 0.25, "row 0 of your result sums to 1.75"),
    "attention": (lambda q, k, v: q[:, :1] + 0 * v[0], r"at \[0, 0\], expected"),
    "normalise_tokens": (lambda x, g, s, e: x * 0, r"returns 0 at \[0, 0\], expected"),
    "batch_norm_step": (lambda x, m, v, t: (x * 0, m, v), "for the normalised batch, returns 0 at"),
    "clip_loss": (lambda p, t: 0.123, "returns 0.123, expected"),
    "threshold_at_rate": (lambda s, rate: 0.5, "returns 0.5, expected"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_mistake_names_the_first_value_that_differs(name):
    answer, message = UNKNOWN[name]
    with pytest.raises(CheckFailed, match=message):
        exercises()[name](answer)


OTHER_STYLES = {
    "cosines": [
        lambda a, b: a @ b.T / torch.outer(a.norm(dim=1), b.norm(dim=1)),
        lambda a, b: a.numpy() @ b.numpy().T / np.outer(*(np.linalg.norm(one, axis=1) for one in (a, b))),
    ],
    "probabilities": [
        lambda s, t: (s / t - (s / t).logsumexp(-1, keepdim=True)).exp(),
        lambda s, t: [[(x - row.logsumexp(0)).exp().item() for x in row] for row in s.double() / t],
    ],
    "attention": [lambda q, k, v: [(k @ one / len(one) ** 0.5).softmax(0) @ v for one in q]],
    "normalise_tokens": [
        lambda x, g, s, eps=1e-5: (
            torch.stack([(r - r.mean()) / (r.var(correction=0) + eps) ** 0.5 for r in x]) * g + s
        )
    ],
    "batch_norm_step": [
        lambda *a: list(checks.check_batch_norm_step.solution(*a)),
        lambda *a: tuple(part.double().numpy() for part in checks.check_batch_norm_step.solution(*a)),
    ],
    "clip_loss": [
        lambda p, t: checks.check_clip_loss.solution(p, t).item(),
        lambda p, t: -((p / t).log_softmax(0) + (p / t).log_softmax(1)).diagonal().mean() / 2,
        lambda p, t: sum(torch.nn.functional.cross_entropy(x / t, torch.eye(len(p))) for x in (p, p.T)) / 2,
    ],
}


@pytest.mark.parametrize("name", OTHER_STYLES)
def test_the_on_ramp_accepts_other_styles(name):
    for answer in OTHER_STYLES[name]:
        exercises()[name](answer)


def test_the_threshold_keeps_the_wanted_rate():
    """Of many thresholds from 40 normal scores, new normal scores exceed them at r / (n + 1) on average."""
    rng = np.random.default_rng(0)
    threshold = checks.check_threshold_at_rate.solution
    rates = [1 - threshold(rng.random(40), 0.1) for _ in range(4000)]  # uniform: the rate is 1 - threshold
    assert np.mean(rates) == pytest.approx(4 / 41, abs=0.003)
