"""The codec of messages: frozen dataclasses to JSON and back, every field checked. Pure, standard library only.

A message arrives from another process, perhaps from another version of hpc-launch. `decode` is the only way in: it
knows the kinds of message it may get, checks each field, and gives a typed value or raises `MessageError`. Fields that
it does not know are passed over, so that a newer version may add some.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import Enum
from types import UnionType
from typing import Any, TypeVar, cast

from hpc_launch.rendezvous.transport.faults import MessageError

_Message = TypeVar("_Message")
Check = Callable[[Any], Any]

# The field that says which kind of message follows.
_KIND = "do"

_LONGEST_TEXT = 1 << 20
_LARGEST_NUMBER = 1 << 53  # beyond it JSON readers disagree
_MOST_ITEMS = 1 << 17


def checked(check: Check, default: Any = dataclasses.MISSING, write: Callable[[Any], Any] | None = None) -> Any:
    """Declare a field of a message whose value must pass `check`; without one, its annotation is what is checked.

    Args:
        check: returns the typed value, or raises ValueError.
        default: the value where the sender left the field out.
        write: gives the value that is written, which `check` reads; None for the value itself.
    """
    return dataclasses.field(default=default, metadata={"check": check, "write": write})


def encode(message: Any) -> bytes:
    """Write a message; its class name is its kind."""
    return _text({_KIND: type(message).__name__, **_facts(message)}).encode()


def decode(data: bytes, kinds: Mapping[str, type]) -> Any:
    """Read a message of one of these kinds, by name.

    Raises:
        MessageError: for anything else.
    """
    facts = _object(data)
    name = facts.get(_KIND)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise MessageError(f"unknown message {_short(name)}")
    return build(kind, facts)


def write(message: Any) -> str:
    """Write a message whose kind the reader knows."""
    return _text(_facts(message))


def read(kind: type[_Message], data: str | bytes) -> _Message:
    """Read a message of a known kind.

    Raises:
        MessageError: when it is not one.
    """
    return build(kind, _object(data))


def build(kind: type[_Message], facts: Any) -> _Message:
    """Make a message of plain values, checking each field.

    Raises:
        MessageError: naming the field.
    """
    if not isinstance(facts, dict):
        raise MessageError(f"{kind.__name__}: {_short(facts)} is not an object")
    values = {}
    for name, (check, required) in _fields(cast("Hashable", kind)).items():
        if name not in facts:
            if required:
                raise MessageError(f"{kind.__name__}.{name} is missing")
            continue
        try:
            values[name] = check(facts[name])
        except MessageError as error:
            raise MessageError(f"{kind.__name__}.{name}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise MessageError(f"{kind.__name__}.{name}: {_short(facts[name])} is not valid: {error}") from None
    return kind(**values)


def known(*kinds: type) -> Mapping[str, type]:
    """Name the kinds of message that one may get, for `decode`."""
    return {kind.__name__: kind for kind in kinds}


# ---- checks


def integer(low: int, high: int) -> Check:
    """Check a number from `low` to `high`."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"expected a number from {low} to {high}")
        return value

    return check


def text(longest: int, allowed: Callable[[str], bool] = lambda _: True, what: str = "text") -> Check:
    """Check a text of at most `longest` characters that `allowed` accepts."""

    def check(value: Any) -> str:
        if type(value) is not str or len(value) > longest or not allowed(value):
            raise ValueError(f"expected {what} of at most {longest} characters")
        return value

    return check


def array(item: Check, most: int = _MOST_ITEMS) -> Check:
    """Check a list of at most `most` items; gives a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > most:
            raise ValueError(f"expected a list of at most {most} items")
        return tuple(map(item, value))

    return check


def table(key: Check, item: Check, most: int = _MOST_ITEMS) -> Check:
    """Check an object with at most `most` entries."""

    def check(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise ValueError(f"expected an object of at most {most} entries")
        return {key(name): item(entry) for name, entry in value.items()}

    return check


def one_of(kind: type[Enum]) -> Check:
    """Check the value of an enum."""

    def check(value: Any) -> Enum:
        return kind(value)

    return check


def nested(kind: type) -> Check:
    """Check a message inside of another."""
    return functools.partial(build, kind)


def any_of(*checks: Check) -> Check:
    """Check a value by the first of these that accepts it."""
    return _any_of(checks, optional=False)


def real(value: Any) -> float:
    """Check a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("expected a finite number")
    return float(value)


def boolean(value: Any) -> bool:
    """Check true or false."""
    if type(value) is not bool:
        raise ValueError("expected true or false")
    return value


# ---- what annotations stand for


@functools.cache
def _fields(kind: type) -> Mapping[str, tuple[Check, bool]]:
    """The check of each field, and whether the field is required."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        found[field.name] = field.metadata.get("check") or _check_of(hints[field.name]), required
    return found


_SIMPLE: Mapping[Any, Check] = {
    str: text(_LONGEST_TEXT),
    int: integer(-_LARGEST_NUMBER, _LARGEST_NUMBER),
    float: real,
    bool: boolean,
}


def _check_of(hint: Any) -> Check:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return one_of(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return nested(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        checks = [_check_of(argument) for argument in arguments if argument is not type(None)]
        return _any_of(checks, optional=type(None) in arguments)
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return array(_check_of(arguments[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return table(_check_of(arguments[0]), _check_of(arguments[1]))
    raise TypeError(f"{hint} needs a check of its own")


def _any_of(checks: Sequence[Check], *, optional: bool) -> Check:
    def check(value: Any) -> Any:
        if value is None and optional:
            return None
        for one in checks:
            try:
                return one(value)
            except ValueError:
                continue
        raise ValueError("expected another type")

    return check


# ---- JSON


# A coordinator writes an answer to each of a thousand agents, and all at once.
_WRITER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_LEAVES = frozenset({str, int, float, bool, type(None)})


@functools.cache
def _writers(kind: type) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    return tuple((field.name, field.metadata.get("write") or _plain) for field in dataclasses.fields(kind))


def _facts(message: Any) -> dict[str, Any]:
    return {name: write(getattr(message, name)) for name, write in _writers(cast("Hashable", type(message)))}


def _plain(value: Any) -> Any:
    if type(value) in _LEAVES:
        return value
    if dataclasses.is_dataclass(value):
        return value.plain() if hasattr(value, "plain") else _facts(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, frozenset, set)):
        return [_plain(entry) for entry in value]
    return value


def _text(facts: Mapping[str, Any]) -> str:
    return _WRITER.encode(facts)


def _object(data: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise MessageError("not JSON") from None
    if not isinstance(found, dict):
        raise MessageError("not a JSON object")
    return found


def _short(value: Any) -> str:
    """A value that a peer has sent, for a message: short, and without control characters."""
    return ascii(value)[:80]
