"""The fields of messages: what numbers, names, addresses and memberships may be. Pure.

Counts are counts, signal names exist, agent numbers are small, and names of job directories have no path in them.
"""

from __future__ import annotations

import functools
import itertools
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from hpc_launch import ranges
from hpc_launch.codec import array, integer, table, text
from hpc_launch.rendezvous.membership import Membership

# More agents than any cluster has nodes and GPUs.
MOST_AGENTS = 1 << 17
MOST_WORKERS = 1 << 12
_MOST_ROUNDS = 1 << 30
_LONGEST_RANGES = 1 << 18
_LONGEST_LINE = 1 << 13
MOST_SHARED = 1 << 21
"""The longest text that agents share."""

_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")


def _is_name(value: str) -> bool:
    """Whether a text can be one component of a path, and is not a hidden file or a way upwards."""
    return value == "" or (_NAME.fullmatch(value) is not None and not value.startswith("."))


def is_signal(value: str) -> bool:
    """Whether a text is empty or the name of a signal."""
    return value == "" or value in signal.Signals.__members__


def _read_agents(value: Any) -> tuple[int, ...]:
    """Check agents that are written as ranges."""
    found = _unfold(text(_LONGEST_RANGES, what="ranges of agents")(value))
    if found and found[-1] >= MOST_AGENTS:
        raise ValueError(f"more than {MOST_AGENTS} agents")
    return found


@functools.lru_cache(maxsize=64)
def _unfold(written: str) -> tuple[int, ...]:
    """Read ranges once: a thousand agents say the same, and there are few memberships."""
    found = ranges.unfold(written, most=MOST_AGENTS)
    if any(before >= after for before, after in itertools.pairwise(found)):
        raise ValueError("the agents are not in ascending order")
    return found


AGENT = integer(0, MOST_AGENTS - 1)
ROUND = integer(-1, _MOST_ROUNDS)
STATUS = integer(0, 255)
COUNT = integer(0, 1 << 31)
PORT = integer(0, 65535)
LINE = text(_LONGEST_LINE, what="a line")
HOST = text(1 << 10, what="a host")
JOB = text(255, _is_name, "a directory's name without a path")
SIGNAL = text(32, is_signal, "a signal's name")
AGENT_NAME = text(8, lambda value: value.isascii() and value.isdigit() and int(value) < MOST_AGENTS, "an agent number")


def _read_place(value: Any) -> tuple[str, int]:
    """Check where an agent listens: an address and a port."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004 - an address and a port
        raise ValueError("expected an address and a port")
    return HOST(value[0]), PORT(value[1])


PLACES = table(AGENT_NAME, _read_place, MOST_AGENTS)


def read_membership(value: Any) -> Membership:
    """Check a membership: number, agents, token and the active ones."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:  # noqa: PLR2004 - these four
        raise ValueError("expected a membership")
    number, agents, token, active = value
    return Membership(ROUND(number), _read_agents(agents), JOB(token), _read_agents(active))


def _read_run(value: Any) -> tuple[int, int]:
    """Check how many workers so many agents have, each of them."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004 - two numbers
        raise ValueError("expected a number of workers and a number of agents")
    return integer(0, MOST_WORKERS)(value[0]), integer(1, MOST_AGENTS)(value[1])


_RUNS = array(_read_run, MOST_AGENTS)


def read_workers(value: Any) -> tuple[int, ...]:
    """Check the workers of each agent, which are mostly the same: the message is as short for a thousand as for two."""
    runs = _RUNS(value)
    if sum(count for _, count in runs) > MOST_AGENTS:
        raise ValueError(f"more than {MOST_AGENTS} agents")
    return tuple(itertools.chain.from_iterable((workers,) * count for workers, count in runs))


def write_workers(workers: Sequence[int]) -> list[tuple[int, int]]:
    """Write the workers of each agent as runs of equal numbers, for `read_workers`."""
    return [(number, len([*some])) for number, some in itertools.groupby(workers)]


def one_line(words: str) -> str:
    """Words for a message: one line of bounded length."""
    found = " ".join(words.split())
    return found if len(found) <= _LONGEST_LINE else found[: _LONGEST_LINE - 1] + "…"


def places(facts: Mapping[str, tuple[str, int]]) -> dict[int, tuple[str, int]]:
    """Where agents listen, by their numbers."""
    return {int(agent): place for agent, place in facts.items()}
