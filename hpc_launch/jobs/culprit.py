"""Find what in a call cannot be sent: the argument, the attribute, the variable of a closure."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# How deep to look, and at how many items of a container: a message can have only so much.
_DEPTH = 12
_ITEMS = 200


def find(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> str:
    """Name the innermost thing in a call that cannot be pickled, and its type."""
    for label, value in _of_a_call(parts):
        if not _can_be_sent(value):
            where, what = _inside(label, value, set())
            return f"{where} (of type {_type(what)})"
    return _name(parts[0])


def largest(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], limit: int) -> str:
    """Name the part of a call that has most bytes."""
    sizes = {label: _size(value, limit) for label, value in _of_a_call(parts)}
    return max(sizes, key=lambda label: sizes[label])


def _of_a_call(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    function, args, kwargs = parts
    yield _name(function), function
    for number, value in enumerate(args):
        yield f"argument {number}", value
    for name, value in kwargs.items():
        yield f"argument {name}", value


def _inside(label: str, value: Any, seen: set[int]) -> tuple[str, Any]:
    if len(seen) < _DEPTH and id(value) not in seen:
        seen.add(id(value))
        for part, inner in _parts(label, value):
            if not _can_be_sent(inner):
                return _inside(part, inner, seen)
    return label, value


def _parts(label: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, with the name of each part."""
    if isinstance(value, functools.partial):
        yield from _of_a_call((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield f"the object of {label}", value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_a_function(label, value)
    elif isinstance(value, Mapping):
        for key, item in list(value.items())[:_ITEMS]:
            yield f"{label}[{key!r}]", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, item in enumerate(list(value)[:_ITEMS]):
            yield f"{label}[{number}]", item
    elif isinstance(value, type):
        for name, item in vars(value).items():
            yield f"{label}.{name}", item
    else:
        for name, item in getattr(value, "__dict__", {}).items():
            yield f"{label}.{name}", item


def _of_a_function(label: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    try:
        outside = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    for name, item in outside.nonlocals.items():
        yield f"the variable '{name}' that {label} has from around it", item
    for name, item in outside.globals.items():
        yield f"the global variable '{name}' that {label} uses", item
    for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield f"a default of {label}", item


class _Count(io.RawIOBase):
    """Counts, and keeps nothing."""

    def __init__(self, limit: float = float("inf")) -> None:
        super().__init__()
        self.size = 0
        self._limit = limit

    def write(self, data: Any) -> int:
        self.size += memoryview(data).nbytes
        if self.size > self._limit:
            raise OverflowError
        return memoryview(data).nbytes


def _can_be_sent(value: Any) -> bool:
    try:
        importlib.import_module("cloudpickle").dump(value, _Count(), protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - anything may come from a value's own methods
        return False
    return True


def _size(value: Any, limit: int) -> int:
    count = _Count(limit)
    try:
        importlib.import_module("cloudpickle").dump(value, count, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - as above; what is over the limit is large enough
        return max(count.size, limit)
    return count.size


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", "") or type(function).__qualname__
    return f"'{name}'"


def _type(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
