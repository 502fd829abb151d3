"""From what is written of an option to its value. A reader says what it expected where that is not what it has."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal as signals
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hpc_launch import ranges
from hpc_launch.settings.option_values import ConsoleChoice, CpuBind, NodeRange, StreamChoice, Streams

_Value = TypeVar("_Value")

# What a value of a TOML type is called in messages.
TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", list: "a list", str: "a string"}


class Unreadable(ValueError):
    """Raised by readers; says what was expected."""


@dataclass(frozen=True)
class Reader(Generic[_Value]):
    """Reads the values of an option.

    Attributes:
        of_text: reads a text, as flags and variables have it.
        natural: the types that TOML has for such a value, besides a string.
        of_list: reads several texts, as a TOML list or a repeated flag has them; None where there is one value only.
        expected: what a TOML value should have been; empty where its types say that.
    """

    of_text: Callable[[str], _Value]
    natural: frozenset[type] = frozenset()
    of_list: Callable[[Sequence[str]], _Value] | None = None
    expected: str = ""

    def __call__(self, text: str) -> _Value:
        """Read a text.

        Raises:
            Unreadable: for one that is no such value.
        """
        if "\0" in text:
            raise Unreadable("text that a process can be given")
        return self.of_text(text)

    def read(self, given: Any) -> _Value:
        """Read a text, several, or another TOML value.

        Raises:
            Unreadable: for what is no such value.
        """
        if isinstance(given, str):
            return self(given)
        try:
            return self._of_toml(given)
        except Unreadable as error:
            raise Unreadable(self.expected or str(error)) from None
        except ValueError:  # of str(), for a number with thousands of digits
            raise Unreadable("a number of that size") from None

    def _of_toml(self, given: Any) -> _Value:
        if self.of_list is not None and isinstance(given, (list, tuple)):
            texts = [str(item) for item in given if type(item) in self.natural | {str}]
            if len(texts) < len(given) or any("\0" in text for text in texts):
                raise Unreadable("a list of whole numbers or strings" if int in self.natural else "a list of strings")
            return self.of_list(texts)
        if type(given) not in self.natural:
            kinds = self.natural | {str} | ({list} if self.of_list is not None else set())
            raise Unreadable(" or ".join(word for kind, word in TYPE_NAMES.items() if kind in kinds))
        return self(str(given))


def reader(*natural: type) -> Callable[[Callable[[str], _Value]], Reader[_Value]]:
    """Make a function of texts a reader; `natural` are the types that TOML has for such a value besides a string."""
    return lambda of_text: Reader(of_text, frozenset(natural))


def comma_reader(*natural: type, empty: Any = None) -> Callable[[Callable[[str], _Value]], Reader[_Value]]:
    """Make a function of texts a reader that reads lists too: of what stands between the commas of a text.

    An empty list is read as `empty`, if that is given.
    """

    def make(of_text: Callable[[str], _Value]) -> Reader[_Value]:
        def of_list(texts: Sequence[str]) -> _Value:
            return of_text(",".join(texts)) if texts or empty is None else empty

        return Reader(of_text, frozenset(natural), of_list)

    return make


@reader()
def text(given: str) -> str:
    """Read anything."""
    return given


@reader()
def file_name(given: str) -> str:
    """Read the name of a file or directory, without any directory."""
    if not given or given.startswith(".") or "/" in given:
        raise Unreadable("a name without '/', and without a dot at its beginning")
    return given


def integer(low: int, high: int | None = None) -> Reader[int]:
    """Return the reader of whole numbers within bounds, both included."""
    expected = f"a whole number from {low}" + (f" to {high}" if high is not None else " on")

    @reader(int)
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise Unreadable(expected) from None
        if value < low or (high is not None and value > high):
            raise Unreadable(expected)
        return value

    return read


@reader(int, float)
def seconds(text: str) -> float:
    """Read a time that is more than none."""
    try:
        value = float(text)
    except ValueError:
        raise Unreadable("a number of seconds") from None
    if not 0 < value < float("inf"):
        raise Unreadable("a positive number of seconds")
    return value


@reader(int, float)
def seconds_or_none(text: str) -> float:
    """Read a time, or none: `none`, or 0."""
    with contextlib.suppress(ValueError):
        if text == "none" or float(text) == 0:
            return 0.0
    try:
        return seconds(text)
    except Unreadable as error:
        raise Unreadable(f"{error}, or none") from None


@reader(bool)
def switch(text: str) -> bool:
    """Read yes or no, as they are usually written."""
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return value[text.strip().lower()]
    except KeyError:
        raise Unreadable("1 or 0") from None


@reader(int)
def node_range(text: str) -> NodeRange:
    """Read `N` or `MIN:MAX`."""
    expected = "a number of nodes from 1 on, or MIN:MAX with MIN <= MAX"
    parts = text.split(":")
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):  # noqa: PLR2004
        raise Unreadable(expected)
    low, high = int(parts[0]), int(parts[-1])
    if not 1 <= low <= high:
        raise Unreadable(expected)
    return NodeRange(low, high)


@reader(int)
def nodes(text: str) -> int | str:
    """Read a number of nodes, or their names."""
    if text.isascii() and text.isdigit():
        if int(text) < 1:
            raise Unreadable("a number of nodes from 1 on, or a host list")
        return int(text)
    return text


@reader()
def job_id(text: str) -> str:
    """Read the number of a job, or of a task of an array."""
    number, _, task = text.partition("_")
    if not all(part.isascii() and part.isdigit() for part in (number, task or "0")):
        raise Unreadable("the number of a job (12), or of a task of an array (12_3)")
    return text


# The words torchrun knows; a device backend registered with torch under its own name is asked for by that name.
PROCESS_WORDS = ("auto", "cpu", "gpu", "xpu")


# Python and torch have some hundred files open before a script begins.
LEAST_OPEN_FILES = 256


@reader(int)
def process_count(text: str) -> int | str:
    """Read a number, or the word for how it is found."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text.isidentifier():
        return text
    raise Unreadable(f"a number of processes from 1 on, or one of {', '.join(PROCESS_WORDS)}")


@reader(int)
def open_files(text: str) -> int | str:
    """Read a limit of open files, or the word for how it is found."""
    if text in ("auto", "keep"):
        return text
    if text.isascii() and text.isdigit() and int(text) >= LEAST_OPEN_FILES:
        return int(text)
    raise Unreadable(f"auto, keep, or a number from {LEAST_OPEN_FILES} on")


@reader(int)
def streams(text: str) -> StreamChoice:
    """Read streams, for all local ranks or by local rank."""
    expected = "0, 1 (stdout), 2 (stderr) or 3 (both), or LOCAL_RANK:STREAMS pairs such as 0:1,11:3"

    def one(number: str) -> Streams:
        if number not in ("0", "1", "2", "3"):
            raise Unreadable(expected)
        return Streams(int(number))

    if ":" not in text:
        return StreamChoice(everyone=one(text))
    pairs: dict[int, Streams] = {}
    for part in text.split(","):
        rank, _, number = part.partition(":")
        if not (rank.isascii() and rank.isdigit()):
            raise Unreadable(expected)
        pairs[int(rank)] = one(number)
    return StreamChoice(per_rank=tuple(sorted(pairs.items())))


@comma_reader(int, empty=())
def ranks(text: str) -> tuple[int, ...]:
    """Read ranks and ranges of them."""
    expected = "ranks such as 0,3 or 0-3,17"
    try:
        found = ranges.unfold(text)
    except ValueError:
        raise Unreadable(expected) from None
    if not found:
        raise Unreadable(expected)
    return found


@comma_reader(int)
def console(text: str) -> ConsoleChoice:
    """Read whose output the console shows."""
    if text in ("all", "auto"):
        return ConsoleChoice(text)
    try:
        return ConsoleChoice("ranks", ranks(text))
    except Unreadable as error:
        raise Unreadable(f"all, auto, or {error}") from None


@reader()
def cpu_bind(text: str) -> CpuBind:
    """Read which CPUs local ranks run on; the lists are written as the kernel and taskset write them."""
    if text in ("auto", "none"):
        return CpuBind(text)
    word, _, lists = text.partition(":")
    near = difflib.get_close_matches(text, ("auto", "none"), n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    expected = Unreadable(f"auto, none, or map: and CPUs for each local rank such as map:0-7,16/8-15,17{hint}")
    if word != "map":
        raise expected
    try:
        return CpuBind(text, tuple(ranks(part) for part in lists.split("/")))
    except Unreadable:
        raise expected from None


@reader(int)
def port_range(text: str) -> range:
    """Read `LOW-HIGH`, or one port."""
    low, dash, high = text.partition("-")
    port = integer(1, 65535)
    try:
        found = range(port(low), port(high if dash else low) + 1)
    except Unreadable:
        found = range(0)
    if not found:
        raise Unreadable("LOW-HIGH with ports from 1 to 65535")
    return found


@comma_reader()
def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read `key=value,key=value` as torch's `_parse_rendezvous_config` does (spaces around both are dropped)."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise Unreadable("KEY=VALUE pairs, separated by commas")
        found.append((key.strip(), value.strip()))
    return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    """Split at commas, a double comma standing for one (torchrun's form of the filter options)."""
    return tuple(part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))


# What stands in a list may have commas of its own.
words: Reader[tuple[str, ...]] = Reader(_words, of_list=tuple)


def _variable(text: str) -> tuple[str, str]:
    """Read `NAME=value`, of which the value may be empty."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Unreadable("NAME=VALUE of environment variables, separated by commas (a double comma stands for one)")
    return name, value


def _variables(text: str) -> tuple[tuple[str, str], ...]:
    """Read `NAME=value,NAME=value`, a double comma standing for one."""
    return tuple(map(_variable, words(text))) if text else ()


variables = Reader(_variables, of_list=lambda items: tuple(map(_variable, items)))


@comma_reader(empty=())
def modules(text: str) -> tuple[str, ...]:
    """Read the names of modules."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise Unreadable("names of modules, separated by commas")
    return names


@comma_reader()
def signal_names(text: str) -> tuple[str, ...]:
    """Read signal names as torchrun has them."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(name in signals.Signals.__members__ for name in names):
        raise Unreadable("signal names such as SIGTERM,SIGUSR1")
    return names


@comma_reader()
def notice_names(text: str) -> tuple[str, ...]:
    """Read signal names as sbatch --signal has them, with or without SIG."""
    if text == "none":
        return ()
    given = (part.strip().upper() for part in text.split(","))
    names = tuple(name if name.startswith("SIG") else f"SIG{name}" for name in given)
    if not all(name in signals.Signals.__members__ for name in names) or {"SIGKILL", "SIGSTOP", "SIGCHLD"} & {*names}:
        raise Unreadable("signal names such as USR1,USR2 that a process can handle, or none")
    return names


REQUEUE_REASONS = ("on-notice", "on-timeout", "on-preempt", "on-failure")


@comma_reader(empty=())
def requeue_reasons(text: str) -> tuple[str, ...]:
    """Read after what a job is to run again."""
    if text == "never":
        return ()
    reasons = tuple(part.strip() for part in text.split(","))
    if not all(reason in REQUEUE_REASONS for reason in reasons):
        raise Unreadable(f"never, or some of {', '.join(REQUEUE_REASONS)}, separated by commas")
    return reasons


def choice(*choices: str) -> Reader[str]:
    """Return the reader of one word out of several."""

    @reader()
    def read(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            raise Unreadable("one of " + ", ".join(choices) + (f" (did you mean {near[0]}?)" if near else ""))
        return text

    return read
