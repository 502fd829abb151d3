"""The codec between JSON and dataclasses, every field checked. Pure, standard library only.

What is read was written by another process, perhaps of another version of hpc-launch, or by anybody. There are two ways
to read an object, and in both the fields that its kind does not have are passed over, so that a newer version may add
some:

- `decode`, `read` and `build` are strict. What is missing or of another type is a `CodecError`, which names the field.
- `salvage` is tolerant, for records that may be damaged or of an earlier version. A field that is missing or of another
  type gets its default, or else the empty value of its type; of a list or an object the items that fit are kept.

A field is checked by its annotation. Its metadata says what that does not:

    check  a check of its own. Without a default such a field cannot be done without, in `salvage` neither
    write  gives the value that is written, which `check` reads
    name   what the field is called in JSON, where that is not its name
    apart  the field is not in the object (`APART`): a file's name has it, for instance
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, cast

_Kind = TypeVar("_Kind")
Check = Callable[[Any], Any]

# The field that says which kind of object it is, where several may come.
_KIND = "do"

_LONGEST_TEXT = 1 << 20
_LARGEST_NUMBER = 1 << 53  # beyond it JSON readers disagree
_LARGEST_REAL = sys.float_info.max
_MOST_ITEMS = 1 << 17

APART: Mapping[str, Any] = {"apart": True}
"""The metadata of a field that is not in the object itself."""


class CodecError(ValueError):
    """What was read is not what it has to be; the message says why, in words for one line."""


def checked(
    check: Check,
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Any = dataclasses.MISSING,
    write: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a field whose value must pass a check of its own.

    Args:
        check: returns the typed value, or raises ValueError.
        default: the value where the writer left the field out.
        default_factory: makes that value.
        write: gives the value that is written, which `check` reads; None for the value itself.
    """
    metadata = {"check": check, "write": write}
    if default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# ---- writing


# A coordinator writes an answer to each of a thousand agents, and all at once.
_WRITER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_LINE_WRITER = json.JSONEncoder()
_LEAVES = frozenset({str, int, float, bool, type(None)})


def encode(message: Any) -> bytes:
    """Write an object that says of which kind it is: its class name."""
    return _WRITER.encode({_KIND: type(message).__name__, **_facts(message)}).encode()


def write(value: Any) -> str:
    """Write an object, a dataclass or plain values, whose kind the reader knows."""
    return _WRITER.encode(plain(value))


def line(value: Any) -> str:
    """Write an object, a dataclass or plain values, as a line with its end."""
    return _LINE_WRITER.encode(plain(value)) + "\n"


def document(value: Any) -> str:
    """Write an object, a dataclass or plain values, as a file that people can read."""
    return json.dumps(plain(value), indent=2) + "\n"


def plain(value: Any) -> Any:
    """The plain values that JSON has for a value: of a dataclass, an enum, a path, and of what holds them."""
    if type(value) in _LEAVES:
        return value
    if dataclasses.is_dataclass(value):
        return value.plain() if hasattr(value, "plain") else _facts(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def sparse(value: Any) -> dict[str, Any]:
    """The plain values of a dataclass, and of those in it, without the fields that have their default."""
    usual = {item.name: item.default() for item in _items(cast("Hashable", type(value))) if item.default is not None}
    return {
        key: sparse(found) if dataclasses.is_dataclass(found) else write(found)
        for key, name, write in _writers(cast("Hashable", type(value)))
        if (found := getattr(value, name)) != usual.get(name, dataclasses.MISSING)
    }


@functools.cache
def _writers(kind: type) -> tuple[tuple[str, str, Callable[[Any], Any]], ...]:
    return tuple(
        (field.metadata.get("name", field.name), field.name, field.metadata.get("write") or plain)
        for field in dataclasses.fields(kind)
        if not field.metadata.get("apart")
    )


def _facts(value: Any) -> dict[str, Any]:
    return {key: write(getattr(value, name)) for key, name, write in _writers(cast("Hashable", type(value)))}


# ---- reading


def known(*kinds: type) -> Mapping[str, type]:
    """Name the kinds of object that one may get, for `decode`."""
    return {kind.__name__: kind for kind in kinds}


def decode(data: str | bytes, kinds: Mapping[str, type]) -> Any:
    """Read an object of one of these kinds, by name.

    Raises:
        CodecError: for anything else.
    """
    facts = _object(data)
    name = facts.get(_KIND)
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CodecError(f"unknown message {_short(name)}")
    return build(kind, facts)


def read(kind: type[_Kind], data: str | bytes, **apart: Any) -> _Kind:
    """Read an object of a known kind.

    Args:
        kind: the dataclass.
        data: the text.
        apart: the fields that the text does not have.

    Raises:
        CodecError: when it is not one.
    """
    return build(kind, _object(data), **apart)


def build(kind: type[_Kind], facts: Any, **apart: Any) -> _Kind:
    """Make an object of plain values, checking each field.

    Raises:
        CodecError: naming the field.
    """
    if not isinstance(facts, dict):
        raise CodecError(f"{kind.__name__}: {_short(facts)} is not an object")
    values = apart
    for item in _items(cast("Hashable", kind)):
        if item.key not in facts:
            if item.default is None:
                raise CodecError(f"{kind.__name__}.{item.key} is missing")
            continue
        try:
            values[item.name] = item.strict(facts[item.key])
        except CodecError as error:
            raise CodecError(f"{kind.__name__}.{item.key}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise CodecError(f"{kind.__name__}.{item.key}: {_short(facts[item.key])} is not valid: {error}") from None
    return kind(**values)


def salvage(kind: type[_Kind], facts: Any, **apart: Any) -> _Kind:
    """Make an object of plain values, field by field of what can be understood.

    Raises:
        CodecError: there is no object, or a field that cannot be done without is missing or of another type.
    """
    if not isinstance(facts, Mapping):
        raise CodecError(f"{kind.__name__}: {_short(facts)} is not an object")
    values = apart
    for item in _items(cast("Hashable", kind)):
        if item.key in facts:
            try:
                values[item.name] = item.tolerant(facts[item.key])
                continue
            except (ValueError, RecursionError):
                pass
        if item.default is None:
            if item.empty is None:
                raise CodecError(f"{kind.__name__}.{item.key} is missing, or is not valid")
            values[item.name] = item.empty()
    return kind(**values)


def parse(data: str | bytes) -> dict[str, Any] | None:
    """Read an object as plain values; None if the text is none."""
    try:
        return _object(data)
    except CodecError:
        return None


def parse_lines(data: bytes) -> tuple[list[dict[str, Any]], int, bool]:
    """Read lines with an object each.

    Returns:
        The objects, the number of lines that are none, and whether the last line has no end and is no object: it is
        cut off, or being written.
    """
    found, bad = [], 0
    lines = data.split(b"\n")
    for one in lines[:-1]:
        facts = parse(one) if one.strip(b"\0 \r") else None
        if facts is not None:
            found.append(facts)
        else:
            bad += 1
    last = parse(lines[-1]) if lines[-1] else None
    if last is not None:
        found.append(last)
    return found, bad, bool(lines[-1]) and last is None


def fitting(facts: Mapping[str, Any], check: Check) -> dict[str, Any]:
    """The entries of an object whose values pass a check."""
    found = {name: _kept(check, value) for name, value in facts.items()}
    return {name: value[0] for name, value in found.items() if value}


def _object(data: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise CodecError("not JSON") from None
    if not isinstance(found, dict):
        raise CodecError("not a JSON object")
    return found


def _short(value: Any) -> str:
    """A value that was read, for a message: short, and without control characters."""
    return ascii(value)[:80]


# ---- checks


def integer(low: int, high: int) -> Check:
    """Check a whole number from `low` to `high`."""

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
    """Check an object inside of another."""
    return functools.partial(build, kind)


def any_of(*checks: Check) -> Check:
    """Check a value by the first of these that accepts it."""

    def check(value: Any) -> Any:
        for one in checks:
            try:
                return one(value)
            except ValueError:
                continue
        raise ValueError("expected another type")

    return check


def real(value: Any) -> float:
    """Check a finite number; gives a float."""
    if type(value) not in (int, float) or not -_LARGEST_REAL <= value <= _LARGEST_REAL:
        raise ValueError("expected a finite number")
    return float(value)


def number(value: Any) -> float:
    """Check a finite number of a sensible size; gives it as it is."""
    if type(value) not in (int, float) or not -_LARGEST_NUMBER < value < _LARGEST_NUMBER:
        raise ValueError("expected a number")
    return cast("float", value)


def whole(value: Any) -> int:
    """Check a number of a sensible size; gives its whole part."""
    return int(number(value))


def natural(value: Any) -> int:
    """Check a number that is not negative, such as a rank; gives its whole part."""
    if number(value) < 0:
        raise ValueError("expected a number that is not negative")
    return int(value)


def boolean(value: Any) -> bool:
    """Check true or false."""
    if type(value) is not bool:
        raise ValueError("expected true or false")
    return value


def path(value: Any) -> Path:
    """Check the text of a path."""
    return Path(text(_LONGEST_TEXT)(value))


def nothing(value: Any) -> None:
    """Check null."""
    if value is not None:
        raise ValueError("expected null")


# ---- what annotations stand for


class _FieldCodec(NamedTuple):
    """What is known of a field.

    Attributes:
        name: its name in the dataclass.
        key: its name in JSON.
        strict: its check for `build`.
        tolerant: its check for `salvage`.
        default: makes its default; None where it has none.
        empty: makes what it is without one, in `salvage`; None where it cannot be done without.
    """

    name: str
    key: str
    strict: Check
    tolerant: Check
    default: Callable[[], Any] | None
    empty: Callable[[], Any] | None


@functools.cache
def _items(kind: type) -> tuple[_FieldCodec, ...]:
    hints = typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        if field.metadata.get("apart"):
            continue
        own, hint = field.metadata.get("check"), hints[field.name]
        default: Callable[[], Any] | None = None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory
        elif field.default is not dataclasses.MISSING:
            default = functools.partial(_same, field.default)
        key = field.metadata.get("name", field.name)
        if own is not None:
            found.append(_FieldCodec(field.name, key, own, own, default, None))
        else:
            strict, tolerant = _StrictChecks().check(hint), _TolerantChecks().check(hint)
            found.append(_FieldCodec(field.name, key, strict, tolerant, default, _empty_of(hint)))
    return tuple(found)


def _same(value: Any) -> Any:
    return value


class _StrictChecks:
    """Makes the check of an annotation that has to hold."""

    simple: Mapping[Any, Check] = {
        str: text(_LONGEST_TEXT),
        int: integer(-_LARGEST_NUMBER, _LARGEST_NUMBER),
        float: real,
        bool: boolean,
        type(None): nothing,
        Path: path,
        Any: lambda value: value,
    }

    def check(self, hint: Any) -> Check:
        """The check of an annotation.

        Raises:
            TypeError: there is none: the field needs a check of its own.
        """
        if hint in self.simple:
            return self.simple[hint]
        if isinstance(hint, type) and issubclass(hint, Enum):
            return one_of(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.nested(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is Literal:
            return _among(arguments)
        if origin in _UNIONS:
            # Null first: it is quickly told, and no other check takes it.
            return any_of(*map(self.check, sorted(arguments, key=lambda one: one is not type(None))))
        return self._of_many(hint, origin, arguments)

    def _of_many(self, hint: Any, origin: Any, arguments: Sequence[Any]) -> Check:
        if origin is tuple and Ellipsis not in arguments:
            return _fixed([self.check(argument) for argument in arguments])
        if isinstance(origin, type) and issubclass(origin, Sequence):
            return self.array(self.check(arguments[0]))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self.table(self.check(arguments[0]), self.check(arguments[1]))
        raise TypeError(f"{hint} needs a check of its own")

    def nested(self, kind: type) -> Check:
        return nested(kind)

    def array(self, item: Check) -> Check:
        return array(item)

    def table(self, key: Check, item: Check) -> Check:
        return table(key, item)


class _TolerantChecks(_StrictChecks):
    """Makes the check of an annotation for what may be damaged: it keeps what fits, and is not picky about numbers."""

    simple: Mapping[Any, Check] = {**_StrictChecks.simple, str: text(_LARGEST_NUMBER), int: whole, float: number}

    def nested(self, kind: type) -> Check:
        return functools.partial(salvage, kind)

    def array(self, item: Check) -> Check:
        whole_list = array(functools.partial(_kept, item), _LARGEST_NUMBER)
        return lambda value: tuple(found[0] for found in whole_list(value) if found)

    def table(self, key: Check, item: Check) -> Check:
        whole_table = table(functools.partial(_kept, key), functools.partial(_kept, item), _LARGEST_NUMBER)
        return lambda value: {name[0]: entry[0] for name, entry in whole_table(value).items() if name and entry}


_UNIONS = (typing.Union, UnionType)


def _kept(check: Check, value: Any) -> tuple[Any, ...]:
    """A value that passes a check, alone; nothing for another one."""
    try:
        return (check(value),)
    except (ValueError, RecursionError):
        return ()


def _among(values: Sequence[Any]) -> Check:
    def check(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            raise ValueError(f"expected one of {', '.join(map(str, values))}")
        return value

    return check


def _fixed(checks: Sequence[Check]) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or len(value) != len(checks):
            raise ValueError(f"expected a list of {len(checks)} items")
        return tuple(one(entry) for one, entry in zip(checks, value, strict=True))

    return check


def _empty_of(hint: Any) -> Callable[[], Any] | None:
    """Makes the empty value of an annotation; None where there is none."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (str, int, float, bool, Path):
        return cast("Callable[[], Any]", hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return functools.partial(salvage, hint, {})
    if origin in _UNIONS and type(None) in arguments:
        return functools.partial(_same, None)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict
    many = isinstance(origin, type) and issubclass(origin, Sequence) and (origin is not tuple or Ellipsis in arguments)
    return tuple if many else None
