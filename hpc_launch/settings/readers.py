"""From the text of an option to its value. A reader says what it expected where the text is not that."""

from __future__ import annotations

import contextlib
import difflib
import re
import signal as signals
from collections.abc import Callable

from hpc_launch import ranges
from hpc_launch.settings.values import Console, CpuBind, NodeRange, StreamChoice, Streams


class Unreadable(ValueError):
    """Raised by readers; says what was expected."""


def text(given: str) -> str:
    """Read anything."""
    return given


def file_name(given: str) -> str:
    """Read the name of a file or directory, without any directory."""
    if not given or given.startswith(".") or "/" in given or "\0" in given:
        raise Unreadable("a name without '/', and without a dot at its beginning")
    return given


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the reader of whole numbers within bounds, both included."""
    expected = f"a whole number from {low}" + (f" to {high}" if high is not None else " on")

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise Unreadable(expected) from None
        if value < low or (high is not None and value > high):
            raise Unreadable(expected)
        return value

    return read


def seconds(text: str) -> float:
    """Read a time that is more than none."""
    try:
        value = float(text)
    except ValueError:
        raise Unreadable("a number of seconds") from None
    if not 0 < value < float("inf"):
        raise Unreadable("a positive number of seconds")
    return value


def seconds_or_none(text: str) -> float:
    """Read a time, or none: `none`, or 0."""
    with contextlib.suppress(ValueError):
        if text == "none" or float(text) == 0:
            return 0.0
    try:
        return seconds(text)
    except Unreadable as error:
        raise Unreadable(f"{error}, or none") from None


def switch(text: str) -> bool:
    """Read yes or no, as they are usually written."""
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return value[text.strip().lower()]
    except KeyError:
        raise Unreadable("1 or 0") from None


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


def nodes(text: str) -> int | str:
    """Read a number of nodes, or their names."""
    if text.isascii() and text.isdigit():
        if int(text) < 1:
            raise Unreadable("a number of nodes from 1 on, or a host list")
        return int(text)
    return text


def job_id(text: str) -> str:
    """Read the number of a job, or of a task of an array."""
    number, _, task = text.partition("_")
    if not all(part.isascii() and part.isdigit() for part in (number, task or "0")):
        raise Unreadable("the number of a job (12), or of a task of an array (12_3)")
    return text


# The words torchrun knows; a device backend registered with torch under its own name is asked for by that name.
PROCESS_WORDS = ("auto", "cpu", "gpu", "xpu")


def process_count(text: str) -> int | str:
    """Read a number, or the word for how it is found."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text.isidentifier():
        return text
    raise Unreadable(f"a number of processes from 1 on, or one of {', '.join(PROCESS_WORDS)}")


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


def console(text: str) -> Console:
    """Read whose output the console shows."""
    if text in ("all", "auto"):
        return Console(text)
    try:
        return Console("ranks", ranks(text))
    except Unreadable as error:
        raise Unreadable(f"all, auto, or {error}") from None


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


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read `key=value,key=value` as torch's `_parse_rendezvous_config` does (spaces around both are dropped)."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise Unreadable("KEY=VALUE pairs, separated by commas")
        found.append((key.strip(), value.strip()))
    return tuple(found)


def words(text: str) -> tuple[str, ...]:
    """Split at commas, a double comma standing for one (torchrun's form of the filter options)."""
    return tuple(part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))


def variables(text: str) -> tuple[tuple[str, str], ...]:
    """Read `NAME=value,NAME=value`, a double comma standing for one."""
    return tuple(map(variable, words(text))) if text else ()


def variable(text: str) -> tuple[str, str]:
    """Read `NAME=value`, of which the value may be empty."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Unreadable("NAME=VALUE of environment variables, separated by commas (a double comma stands for one)")
    return name, value


def modules(text: str) -> tuple[str, ...]:
    """Read the names of modules."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise Unreadable("names of modules, separated by commas")
    return names


def signal_names(text: str) -> tuple[str, ...]:
    """Read signal names as torchrun has them."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(name in signals.Signals.__members__ for name in names):
        raise Unreadable("signal names such as SIGTERM,SIGUSR1")
    return names


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


def requeue_reasons(text: str) -> tuple[str, ...]:
    """Read after what a job is to run again."""
    if text == "never":
        return ()
    reasons = tuple(part.strip() for part in text.split(","))
    if not all(reason in REQUEUE_REASONS for reason in reasons):
        raise Unreadable(f"never, or some of {', '.join(REQUEUE_REASONS)}, separated by commas")
    return reasons


def choice(*choices: str) -> Callable[[str], str]:
    """Return the reader of one word out of several."""

    def read(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            raise Unreadable("one of " + ", ".join(choices) + (f" (did you mean {near[0]}?)" if near else ""))
        return text

    return read
