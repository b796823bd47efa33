"""How exercises are checked: random cases against the answer key, and known mistakes recognised.

An answer that equals what a known mistake produces gets the hint for that mistake; any other wrong answer is
told where it differs. An exercise that nobody has attempted yet stops nothing: the notebook goes on with the
library's function.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

STRICT = "INCTRL_LITE_STRICT"  # set to 1, an exercise that was not attempted is a failure too


class CheckFailed(AssertionError):
    """An answer is wrong. Notebooks show the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"✗ {self}"]


@dataclass(frozen=True, eq=False)
class Exercise:
    """An exercise with its answer key. Calling it checks a student's function.

    Attributes:
        solution: the answer key; has the name of the stub in the notebook, whose place it takes in a solved
            notebook.
        cases: seed -> arguments of a random case. Sizes should differ from each other, so that a mixed-up
            axis shows.
        mistakes: hint -> what somebody who makes this mistake would write.
        library: what the notebook goes on with if nothing was attempted; None: the solution.
        run: how to use an answer that is no plain function (a class), given the answer and the arguments.
        inputs: a case in words, where a student's function gets something else than the case itself.
        explain: case, result, right result -> in words what is wrong with an answer that no known mistake
            gives; None: nothing better to say than where the numbers differ.
        tolerance: largest absolute difference that counts as equal.
    """

    solution: Callable
    cases: Callable[[int], tuple]
    mistakes: Mapping[str, Callable] = field(default_factory=dict)
    library: Callable | None = None
    run: Callable = lambda answer, *arguments: answer(*arguments)
    inputs: Callable[..., str] | None = None
    explain: Callable[[tuple, Any, Any], str | None] = lambda case, result, right: None
    tolerance: float = 1e-5
    number: int = 4

    @property
    def name(self) -> str:
        return self.solution.__name__

    def __call__(self, answer: Callable) -> Callable:
        """Check an answer; returns what the notebook should go on with.

        Raises:
            CheckFailed: the answer is wrong (the message names the likely mistake), or, with
                INCTRL_LITE_STRICT=1, was not attempted.
        """
        cases = [self.cases(seed) for seed in range(self.number)]
        expected = [self.run(self.solution, *deepcopy(case)) for case in cases]
        results = []
        for case in cases:
            given = deepcopy(case)
            try:
                results.append(self.run(answer, *given))
            except NotImplementedError:
                return self._not_attempted()
            except Exception as error:
                raise CheckFailed(self._raised(cases, results, error)) from error
            if not same(list(given), list(case), 0.0):
                raise CheckFailed(f"{self.name} changes its arguments in place: work on copies")
        if same(results, expected, self.tolerance):
            print(f"✓ {self.name}: right on {self.number} random cases")
            return answer
        raise CheckFailed(self._diagnose(cases, results, expected))

    def _not_attempted(self) -> Callable:
        if os.environ.get(STRICT) == "1":
            raise CheckFailed(f"{self.name} was not attempted")
        print(f"○ {self.name}: not attempted yet; the notebook goes on with the library's")
        return self.library or self.solution

    def _raised(self, cases: list[tuple], results: list, error: Exception) -> str:
        """What an answer raised, behind the hint of a known mistake that raises the same."""
        case, hint = cases[len(results)], ""
        for known, wrong in self.mistakes.items():
            produced = []
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
        said = None if result is None else self.explain(case, result, right)
        return f"{self.name}: {said or difference(result, right)}\n  with {self._describe(case)}"


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two results are equal: numbers and arrays up to `tolerance`, containers part by part.

    An array or tensor `a` will do where `b` is a tuple or list of as many parts.
    """
    if isinstance(b, list | tuple) and isinstance(a, np.ndarray | Tensor) and a.ndim:
        a = list(a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    one, other = _array(a), _array(b)
    if one is None or other is None:
        equal = a is b or a == b  # an array of words answers with an array
        return one is None and other is None and isinstance(equal, bool | np.bool_) and bool(equal)
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True)


def _array(value: Any) -> np.ndarray | None:
    """A number, tensor, array or table as an array of floats; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, bool | int | float | np.ndarray | np.generic | pd.DataFrame):
        try:
            return np.asarray(value, np.float64)
        except (TypeError, ValueError):
            return None
    return None


def difference(result: Any, right: Any) -> str:
    """In words, how a result differs from the right one."""
    one, other = _array(result), _array(right)
    if result is None:
        return "returns None: is a `return` missing?"
    if one is None or other is None:
        return f"returns {result!r:.200}, expected {right!r:.200}"
    if one.shape != other.shape:
        return f"returns shape {list(one.shape)}, expected {list(other.shape)}"
    worst = np.unravel_index(int(np.abs(np.nan_to_num(one - other, nan=np.inf)).argmax()), one.shape)
    at = f" at {[int(i) for i in worst]}" if one.shape else ""
    return f"returns {one[worst]:.6g}{at}, expected {other[worst]:.6g}"


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


def generator(seed: int) -> torch.Generator:
    """A seeded source of random numbers for the cases."""
    return torch.Generator().manual_seed(seed)
