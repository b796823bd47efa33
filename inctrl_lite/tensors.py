"""Records of tensors that share their first axis, the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R", bound="TensorRecord")


class TensorRecord:
    """Base of dataclasses whose fields are tensors, other records, tuples of records, or None.

    Fields of any other type (a grid, a name) describe the whole batch and stay as they are.
    """

    def map(self: R, function: Callable[[Tensor], Tensor]) -> R:
        """`function` applied to every tensor: `record.map(Tensor.cpu)`."""
        return type(self)(**{name: _map(value, function) for name, value in _items(self)})

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order in which `map` meets them."""
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(note)
        return found

    def __getitem__(self: R, index: Any) -> R:
        """Part of the batch: `record[2:5]`, `record[mask]`, `record[[0, 3]]`."""
        return self.map(lambda tensor: tensor[index])

    def to(self: R, *args: Any, **kwargs: Any) -> R:
        """The same on another device or in another type, as `Tensor.to`."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        """Size of the first axis."""
        return next(len(value) for _, value in _items(self) if isinstance(value, Tensor | TensorRecord))

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        """Batches joined into one."""
        return cls.join(parts, torch.cat)

    @classmethod
    def stack(cls: type[R], parts: Sequence[R]) -> R:
        """Records of equal shapes, with a new first axis."""
        return cls.join(parts, torch.stack)

    @classmethod
    def join(cls: type[R], parts: Sequence[R], function: Callable[[list[Tensor]], Tensor]) -> R:
        """Records joined field by field; what is no tensor must be equal in all of them."""
        names = [name for name, _ in _items(parts[0])]
        return cls(**{name: _join([getattr(part, name) for part in parts], function) for name in names})


def _items(record: Any) -> list[tuple[str, Any]]:
    return [(field.name, getattr(record, field.name)) for field in fields(record)]


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, TensorRecord):
        return value.map(function)
    if isinstance(value, tuple):
        return tuple(_map(part, function) for part in value)
    return value


def _join(values: list[Any], function: Callable[[list[Tensor]], Tensor]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return function(values)
    if isinstance(first, TensorRecord):
        return type(first).join(values, function)
    if isinstance(first, tuple):
        return tuple(_join(list(parts), function) for parts in zip(*values, strict=True))
    if any(value != first for value in values):
        raise ValueError(f"cannot be joined: {first} is not {next(v for v in values if v != first)}")
    return first
