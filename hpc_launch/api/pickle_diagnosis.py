"""Find what in a call cannot be sent: the argument, the attribute, the variable of a closure."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pickle
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# How deep to look, and at how many items of a container: a message can have only so much.
_DEPTH = 12
_ITEMS = 200


def find_unpicklable(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> str:
    """Name the innermost thing in a call that cannot be pickled, and its type."""
    for part, value in _of_a_call(parts):
        if not _can_be_sent(value):
            found, what = _inside(part, value, set())
            where = f"{found.where}, " if found.where else ""
            return f"{found.path} ({where}of type {_type(what)})"
    return _name(parts[0])


def find_largest(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], limit: int) -> str:
    """Name the part of a call that has most bytes."""
    sizes = {part.path: _size(value, limit) for part, value in _of_a_call(parts)}
    return max(sizes, key=lambda path: sizes[path])


@dataclass(frozen=True)
class _Part:
    """A part of a call: what leads to it, and where that begins if it is no argument."""

    path: str
    where: str = ""

    def then(self, step: str) -> _Part:
        return _Part(self.path + step, self.where)


_Found = Iterator[tuple[_Part, Any]]


def _of_a_call(parts: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]) -> _Found:
    function, args, kwargs = parts
    yield _Part(_name(function)), function
    for number, value in enumerate(args):
        yield _Part(f"argument {number}"), value
    for name, value in kwargs.items():
        yield _Part(f"argument {name}"), value


def _inside(part: _Part, value: Any, seen: set[int]) -> tuple[_Part, Any]:
    if len(seen) < _DEPTH and id(value) not in seen:
        seen.add(id(value))
        for inner, what in _parts(part, value):
            if not _can_be_sent(what):
                return _inside(inner, what, seen)
    return part, value


def _parts(part: _Part, value: Any) -> _Found:
    """What a value consists of."""
    if isinstance(value, functools.partial):
        yield from _of_a_call((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        yield part.then(".__self__"), value.__self__
    elif isinstance(value, types.FunctionType):
        yield from _of_a_function(value)
    elif isinstance(value, Mapping):
        for key, item in list(value.items())[:_ITEMS]:
            yield part.then(f"[{key!r}]"), item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, item in enumerate(list(value)[:_ITEMS]):
            yield part.then(f"[{number}]"), item
    else:
        for name, item in getattr(value, "__dict__", {}).items():
            yield part.then(f".{name}"), item


def _of_a_function(function: types.FunctionType) -> _Found:
    try:
        outside = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    name = _name(function)
    for variable, item in outside.nonlocals.items():
        yield _Part(f"'{variable}'", f"a variable around {name}"), item
    for variable, item in outside.globals.items():
        yield _Part(f"'{variable}'", f"a global variable of {name}"), item
    for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
        yield _Part(f"a default of {name}"), item


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
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
