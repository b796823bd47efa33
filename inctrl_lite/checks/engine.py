"""How exercises are checked: random cases against the answer key, and known mistakes recognised.

An answer that equals the result of a known mistake gets the hint for that mistake. Any other wrong answer is
told the first value that differs. An exercise that was not attempted stops nothing: the notebook continues
with the library's function.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import wraps
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from inctrl_lite.tensors import TensorRecord

STRICT = "INCTRL_LITE_STRICT"  # set to 1, an exercise that was not attempted is a failure too


class CheckFailed(AssertionError):
    """An answer is wrong. Notebooks show the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


def _call(answer: Callable, *arguments: Any) -> Any:
    return answer(*arguments)


@dataclass(frozen=True, eq=False)
class Exercise:
    """An exercise with its answer key. Calling it checks a student's function.

    Attributes:
        solution: the answer key. It has the name of the stub in the notebook, which it replaces in a solved
            notebook.
        cases: seed -> arguments of a random case. Sizes should differ from each other, so that mixed-up axes
            give a wrong shape.
        mistakes: hint -> what somebody who makes this mistake would write.
        library: what the notebook continues with if nothing was attempted; None: the solution.
        run: how to use an answer that is no plain function (a class), given the answer and the arguments.
        inputs: describes a case in words, where a student's function gets something else than the case.
        explain: (case, result, right result) -> what is wrong with an answer that no known mistake gives;
            None: only the first value that differs is shown.
        parts: names of the parts of a tuple that the function returns.
        forbidden: functions (or modules) that the task forbids; a call of one of them is not accepted.
        larger: case -> what the task forbids to loop over -> the case with more of it. A right answer must
            not ask PyTorch for more operations then.
        remark: (answer, case) -> what a right answer should still be told; None: nothing.
        tolerance: largest absolute difference that counts as equal.
        number: random cases.
    """

    solution: Callable
    cases: Callable[[int], tuple]
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    library: Callable | None = None
    run: Callable = _call
    inputs: Callable[..., str] | None = None
    explain: Callable[[tuple, Any, Any], str | None] = lambda case, result, right: None
    parts: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    larger: Callable[..., Mapping[str, tuple]] = lambda *case: {}
    remark: Callable[[Callable, tuple], str | None] = lambda answer, case: None
    tolerance: float = 1e-5
    number: int = 4

    @property
    def name(self) -> str:
        return self.solution.__name__

    def __call__(self, answer: Callable) -> Callable:
        """Check an answer; returns what the notebook should continue with.

        A right answer in another form (a list or an array where the answer key gives a tensor) is accepted.
        What is returned then converts its results, so that the rest of the notebook can use them.

        Raises:
            CheckFailed: the answer is wrong (the message names the likely mistake), or, with
                INCTRL_LITE_STRICT=1, was not attempted.
        """
        return self._check(answer, os.environ.get(STRICT) == "1")

    def grade(self, answer: Callable) -> None:
        """Check an answer that counts: one that was not attempted is wrong.

        Raises:
            CheckFailed: it is wrong, or was not attempted.
        """
        self._check(answer, strict=True)

    def _check(self, answer: Callable, strict: bool) -> Callable:
        cases = [self.cases(seed) for seed in range(self.number)]
        expected = [self.run(self.solution, *deepcopy(case)) for case in cases]
        results: list[Any] = []
        for case in cases:
            given = deepcopy(case)
            try:
                results.append(self.run(answer, *given))
            except Exception as error:
                if isinstance(error, NotImplementedError) and not error.args:  # torch's own have a message
                    return self._not_attempted(strict)
                raise CheckFailed(self._raised(cases, results, error)) from error
            if not same(list(given), list(case), 0.0):
                raise CheckFailed(f"{self.name} changes its arguments in place: work on copies")
        if not same(results, expected, self.tolerance):
            raise CheckFailed(self._diagnose(cases, results, expected))
        used = _names(answer)
        if found := [name for name in self.forbidden if name in used]:
            raise CheckFailed(f"{self.name} calls {found[0]}: write the computation yourself")
        for looped in self._loops(answer, cases):
            raise CheckFailed(
                f"{self.name}: The result is right, but you loop over the {looped}. Treat all of them at "
                "once."
            )
        print(f"✓ {self.name}: right on {self.number} random cases")
        if remark := self.remark(answer, deepcopy(cases[0])):
            print(f"  {remark}")
        if self.run is not _call or all(map(_has_form, results, expected)):
            return answer
        return _converted(answer, expected[0])

    def _loops(self, answer: Callable, cases: list[tuple]) -> Iterator[str]:
        """What an answer loops over, although the task forbids it."""
        for case in cases:
            for what, more in self.larger(*deepcopy(case)).items():
                counts = []
                for given in (case, more):
                    with Operations() as asked:
                        self.run(answer, *deepcopy(given))
                    counts.append(asked.number)
                if counts[1] > counts[0]:
                    yield what

    def _not_attempted(self, strict: bool) -> Callable:
        if strict:
            raise CheckFailed(f"{self.name} was not attempted")
        print(f"○ {self.name}: not attempted yet; the notebook continues with the library's function")
        return self.library or self.solution

    def _raised(self, cases: list[tuple], results: list, error: Exception) -> str:
        """What an answer raised, behind the hint of a known mistake that raises the same."""
        case, hint = cases[len(results)], ""
        for known, wrong in self.mistakes.items():
            produced: list[Any] = []
            try:
                for one in cases:
                    produced.append(self.run(wrong, *deepcopy(one)))
            except Exception as other:
                alike = (type(other), str(other)) == (type(error), str(error))
                if alike and same(results, produced, self.tolerance):
                    hint = f"{known}\n  It "
                    break
        start = f"{self.name}: {hint}" if hint else f"{self.name} "
        return f"{start}raised {type(error).__name__}: {error}\n  with {self._describe(case)}"

    def _describe(self, case: tuple) -> str:
        """What a student's function was given, in short."""
        if self.inputs is not None:
            return self.inputs(*case)
        names = list(inspect.signature(self.solution).parameters)
        return describe(case, names if len(names) == len(case) else None)

    def _diagnose(self, cases: list[tuple], results: list, expected: list) -> str:
        """The hint for a known mistake, or where the answer differs."""
        for hint, wrong in self.mistakes.items():
            try:
                produced = [self.run(wrong, *deepcopy(case)) for case in cases]
            except Exception:  # this mistake fails on some sizes
                continue
            if same(results, produced, self.tolerance):
                return f"{self.name}: {hint}"
        case, result, right = next(
            row
            for row in zip(cases, results, expected, strict=True)
            if not same(row[1], row[2], self.tolerance)
        )
        try:
            said = None if result is None else self.explain(case, result, right)
        except Exception:  # a result of a form that it does not expect
            said = None
        said = said or difference(result, right, self.tolerance, self.parts)
        return f"{self.name}: {said}\n  with {self._describe(case)}"


class Operations(torch.overrides.TorchFunctionMode):
    """Counts the operations that PyTorch is asked for."""

    number = 0

    def __torch_function__(self, function, types, arguments=(), named=None):
        self.number += 1
        return function(*arguments, **(named or {}))


def _names(answer: Callable) -> set[str]:
    """Names that a student's function uses, also under other names, and in functions inside it or beside it;
    none for the library's functions."""
    if getattr(answer, "__module__", "").startswith("inctrl_lite."):
        return set()
    used, codes = {getattr(answer, "__name__", "")}, [getattr(answer, "__code__", None)]
    around, seen = getattr(answer, "__globals__", {}), set()
    while codes:
        code = codes.pop()
        if code is None or code in seen:
            continue
        seen.add(code)
        used |= {*code.co_names, *code.co_freevars}
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]  # functions inside
        for value in (around.get(name) for name in code.co_names):
            if isinstance(value, FunctionType):
                used |= {value.__name__, value.__module__}
                codes += [value.__code__] if value.__globals__ is around else []  # the student's own
    return used


# --- results of any form -----------------------------------------------------------------------------


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two results are equal: numbers and arrays up to `tolerance`, containers part by part.

    Lists, tuples, arrays and tensors with the same numbers are equal.
    """
    if isinstance(b, list | tuple) and isinstance(a, np.ndarray | Tensor) and a.ndim:
        a = list(a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, TensorRecord) and isinstance(b, TensorRecord):
        a, b = vars(a), vars(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    one, other = _array(a), _array(b)
    if one is None or other is None:
        equal = a is b or a == b  # an array of words answers with an array
        return one is None and other is None and isinstance(equal, bool | np.bool_) and bool(equal)
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def _array(value: Any) -> np.ndarray | None:
    """Numbers in any form as an array of floats; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, list | tuple):
        parts = [_array(part) for part in value]
        arrays = [part for part in parts if part is not None]
        fits = arrays and len(arrays) == len(parts) and len({part.shape for part in arrays}) == 1
        return np.stack(arrays) if fits else None
    if isinstance(value, bool | int | float | np.ndarray | np.generic | pd.Series | pd.DataFrame):
        try:
            return np.asarray(value, np.float64)
        except (TypeError, ValueError):
            return None
    return None


def _has_form(result: Any, right: Any) -> bool:
    """Whether a result has the types of the answer key's."""
    if isinstance(right, tuple):
        parts = isinstance(result, tuple) and len(result) == len(right)
        return parts and all(map(_has_form, result, right))
    if isinstance(right, Tensor):
        return isinstance(result, Tensor) and result.dtype == right.dtype
    return isinstance(result, type(right)) or not isinstance(right, np.ndarray | bool | int | float)


def _converted(answer: Callable, right: Any) -> Callable:
    """The answer, whose results have the form of `right`."""

    @wraps(answer)
    def convert(*arguments: Any, **named: Any) -> Any:
        return as_form(answer(*arguments, **named), right)

    return convert


def as_form(result: Any, right: Any) -> Any:
    """A right result in the form of the answer key's: tensor, array, number, or a tuple of them."""
    if isinstance(right, tuple):
        return tuple(as_form(part, one) for part, one in zip(result, right, strict=True))
    values = None if type(result) is type(right) else _array(result)
    if values is None:
        return result.to(right.dtype) if isinstance(result, Tensor) and isinstance(right, Tensor) else result
    if isinstance(right, Tensor):
        return torch.as_tensor(values).to(right.dtype)
    if isinstance(right, np.ndarray):
        return values
    return type(right)(values) if isinstance(right, bool | int | float) else result


def difference(result: Any, right: Any, tolerance: float = 1e-5, parts: Sequence[str] = ()) -> str:
    """In words, the first value in which a result differs from the right one."""
    if result is None:
        return "returns None: is a `return` missing?"
    if isinstance(result, dict) and isinstance(right, dict):
        if result.keys() != right.keys():
            return f"returns the keys {', '.join(map(str, result))}; expected {', '.join(map(str, right))}"
        key = next(key for key in right if not same(result[key], right[key], tolerance))
        return f"for the key {key!r}, {difference(result[key], right[key], tolerance)}"
    listed = result.ndim > 0 if isinstance(result, np.ndarray | Tensor) else isinstance(result, list | tuple)
    if isinstance(right, list | tuple) and parts and listed and len(result) == len(right):
        i = next(i for i in range(len(right)) if not same(result[i], right[i], tolerance))
        return f"for the {parts[i]}, {difference(result[i], right[i], tolerance)}"
    one, other = _array(result), _array(right)
    if one is None or other is None:
        return f"returns {result!r:.200}, expected {right!r:.200}"
    if one.shape != other.shape:
        return f"returns shape {list(one.shape)}, expected {list(other.shape)}"
    wrong = ~np.isclose(one, other, rtol=0, atol=tolerance, equal_nan=True)
    first = np.unravel_index(int(wrong.argmax()), one.shape)
    at = f" at {[int(i) for i in first]}" if one.shape else ""
    count = f" ({wrong.sum()} of {wrong.size} values differ)" if one.shape else ""
    return f"returns {one[first]:.6g}{at}, expected {other[first]:.6g}{count}"


def remark_on_gradient(answer: Callable, case: tuple) -> str | None:
    """The remark on a loss through which no gradient passes to its first argument."""
    given = [part.requires_grad_() if i == 0 else part for i, part in enumerate(case)]
    try:
        loss = answer(*given)
    except Exception:  # for instance: numpy does not take a tensor that requires a gradient
        loss = None
    if isinstance(loss, Tensor) and loss.requires_grad:
        return None
    return (
        "The number is right, but no gradient passes through it. For training, use operations of torch, and "
        "neither numpy nor .item() nor .detach()."
    )


def no_gradient(*of: str) -> Callable[[tuple, Any, Any], str | None]:
    """For a loss and its gradients `of` some arguments: that the loss is right, and a gradient is missing."""

    def said(case: tuple, result: Any, right: Any) -> str | None:
        loss, *gradients = result
        missing = [name for name, one in zip(of, gradients, strict=True) if one is None]
        if not missing or not same(loss, right[0], 1e-5):
            return None
        names = " and ".join(missing)
        return (
            f"the loss is right, but nothing can be learned from it: no gradient reaches {names}. Use "
            "operations of tensors all the way: no .item(), .detach() or numpy, and no new "
            "torch.tensor(...), which forgets how its numbers were computed"
        )

    return said


def describe(arguments: Sequence[Any], names: Sequence[str] | None = None) -> str:
    """Arguments in short, by name: shapes for arrays, values for the rest."""

    def short(value: Any) -> str:
        if hasattr(value, "shape") and value.shape:
            return f"{type(value).__name__} {list(value.shape)}"
        text = repr(value)
        return text if len(text) <= 70 else f"{text[:68]} …"

    if names is None:
        return ", ".join(map(short, arguments))
    return "; ".join(f"{name} = {short(value)}" for name, value in zip(names, arguments, strict=True))


def stats() -> ModuleType:
    """scipy.stats, which takes long to import: not before it is needed."""
    from scipy import stats

    return stats


def generator(seed: int) -> torch.Generator:
    """A seeded source of random numbers for the cases."""
    return torch.Generator().manual_seed(seed)
