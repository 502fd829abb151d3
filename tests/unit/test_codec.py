"""The codec: what is written is read again; what is missing, damaged or of another version is refused or replaced."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, strategies as st

from hpc_launch import codec
from hpc_launch.codec import APART, CodecError, checked


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    number: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    rank: int = field(metadata=APART)
    name: str
    count: int
    share: float
    on: bool
    colour: Colour
    place: Path
    way: Literal["up", "down"]
    pair: tuple[str, int]
    inner: Inner
    many: Sequence[Inner]
    table: Mapping[str, int]
    either: float | str
    when: float = field(metadata={"name": "time"})
    maybe: Inner | None = None
    doubled: int = checked(lambda value: value // 2, 1, write=lambda value: value * 2)
    anything: Any = None


VALUE = Outer(
    3,
    "é\n",
    1,
    0.5,
    True,
    Colour.BLUE,
    Path("/a/b"),
    "down",
    ("a", 1),
    Inner(1, ("x", "y")),
    (Inner(2), Inner(3, ("z",))),
    {"a": 1},
    "text",
    7.5,
    Inner(4),
    5,
    [1, {"a": None}],
)


@dataclass(frozen=True)
class Record:
    """A record: each field has an empty value, or a default."""

    time: float
    text: str
    count: int
    flag: bool
    end: float | None
    words: tuple[str, ...]
    numbers: Mapping[str, float]
    inner: Inner
    many: tuple[Inner, ...]
    rank: int | None = checked(codec.natural, None)
    counted: bool = True
    left: Inner | None = None


EMPTY = Record(0.0, "", 0, False, None, (), {}, Inner(0), ())


@dataclass(frozen=True)
class Needed:
    """A record that is none without its reason and its time."""

    reason: Literal["timeout", "failure"]
    time: float = checked(codec.number)
    cause: str = ""


def test_what_is_written_is_read() -> None:
    """All kinds of fields; what is apart comes from elsewhere."""
    assert codec.read(Outer, codec.write(VALUE), rank=3) == VALUE
    assert codec.read(Outer, codec.document(VALUE), rank=3) == VALUE
    assert codec.salvage(Outer, json.loads(codec.line(VALUE)), rank=3) == VALUE


def test_the_names_in_json() -> None:
    """A field may have another name there, or be left to where the object is, or be written otherwise."""
    written = json.loads(codec.write(VALUE))

    assert (written["time"], written["doubled"], written["colour"], written["place"]) == (7.5, 10, "blue", "/a/b")
    assert {"when", "rank"}.isdisjoint(written)


def test_plain_values_pass() -> None:
    """What holds dataclasses is written as well; what JSON does not have is refused."""
    assert codec.line({"a": [Inner(1), Colour.RED], "b": None}) == (
        '{"a": [{"number": 1, "words": []}, "red"], "b": null}\n'
    )
    with pytest.raises(TypeError):
        codec.line({"a": {1, 2}})


def test_a_sparse_value_has_what_is_no_default() -> None:
    @dataclass(frozen=True)
    class Failure:
        inner: Inner | None = None
        lines: tuple[str, ...] = ()
        log: str = ""

    assert codec.sparse(Failure()) == {}
    assert codec.sparse(Failure(Inner(1), ("a",))) == {"inner": {"number": 1}, "lines": ["a"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 1),
        ("count", 1.0),
        ("count", True),
        ("count", 1 << 60),
        ("share", "1"),
        ("share", 10**400),
        ("share", float("nan")),
        ("on", 1),
        ("colour", "green"),
        ("place", 1),
        ("way", "left"),
        ("pair", ["a"]),
        ("pair", [1, 1]),
        ("pair", ["a", 1, 2]),
        ("inner", None),
        ("inner", {"words": []}),
        ("many", [{"number": "1"}]),
        ("table", {"a": "1"}),
        ("either", None),
        ("time", None),
        ("maybe", 1),
    ],
)
def test_strict_reading_names_the_field(key: str, value: Any) -> None:
    facts = {**json.loads(codec.write(VALUE)), key: value}
    with pytest.raises(CodecError, match=rf"^Outer\.{key}"):
        codec.build(Outer, facts, rank=0)


@pytest.mark.parametrize("key", list(json.loads(codec.write(VALUE))))
def test_what_may_be_missing(key: str) -> None:
    """Fields with a default."""
    facts = json.loads(codec.write(VALUE))
    del facts[key]
    if key in ("maybe", "doubled", "anything"):
        assert codec.build(Outer, facts, rank=3) != VALUE
    else:
        with pytest.raises(CodecError, match=rf"^Outer\.{key} is missing$"):
            codec.build(Outer, facts, rank=3)


@pytest.mark.parametrize("data", ["", "{", "[]", "null", "1", b"\xff", "[" * 100_000, '{"number": 1e', "{} {}"])
def test_what_is_no_object(data: str | bytes) -> None:
    assert codec.parse(data) is None
    with pytest.raises(CodecError):
        codec.read(Inner, data)


def test_an_empty_record_is_salvaged() -> None:
    """Each field is its default, or the empty value of its type."""
    assert codec.salvage(Record, {}) == EMPTY
    with pytest.raises(CodecError):
        codec.salvage(Record, [])


def test_a_damaged_record_is_salvaged_field_by_field() -> None:
    """What fits is kept, also of lists and objects; numbers are taken as they come."""
    facts = {
        "time": 5,
        "text": 1,
        "count": 2.9,
        "flag": "yes",
        "end": "soon",
        "words": ["a", 1, None, "b"],
        "numbers": {"a": 1, "b": "2", "c": float("inf"), "d": True},
        "inner": {"number": None, "words": "x"},
        "many": [{"number": 1}, 2, {"words": ["w"]}],
        "rank": -1,
        "counted": None,
        "left": [],
        "later": "field",
    }

    assert codec.salvage(Record, facts) == Record(
        5, "", 2, False, None, ("a", "b"), {"a": 1}, Inner(0), (Inner(1), Inner(0, ("w",))), None, True, None
    )


@pytest.mark.parametrize(
    "facts",
    [{}, {"reason": "timeout"}, {"time": 1}, {"reason": "none", "time": 1}, {"reason": "timeout", "time": "1"}],
)
def test_some_fields_cannot_be_done_without(facts: Mapping[str, Any]) -> None:
    """Those with a check of their own and no default, and those whose type has no empty value."""
    assert codec.salvage(Needed, {"reason": "timeout", "time": 1, "cause": 2}) == Needed("timeout", 1)
    with pytest.raises(CodecError, match=r"^Needed"):
        codec.salvage(Needed, facts)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(data=st.data())
def test_whatever_stands_in_a_record_it_can_be_read(data: st.DataObject) -> None:
    names = [one.name for one in dataclasses.fields(Record)]
    facts = data.draw(st.dictionaries(st.sampled_from(names), values))
    found = codec.salvage(Record, facts)

    assert codec.salvage(Record, json.loads(codec.line(found))) == found


def test_lines_that_are_none_are_counted() -> None:
    """A last line without an end is an object, or is cut off."""
    assert codec.parse_lines(b'{"a": 1}\n\n{\n\0\0{"b": 2}\n{"c": 3}') == ([{"a": 1}, {"c": 3}], 3, False)
    assert codec.parse_lines(b'{"a": 1}\n{"b"') == ([{"a": 1}], 0, True)


def test_an_annotation_without_a_check() -> None:
    """It is a mistake of ours, and found when the kind is used first."""

    @dataclass(frozen=True)
    class Odd:
        numbers: set[int]

    with pytest.raises(TypeError, match=r"set\[int\]"):
        codec.build(Odd, {})
