"""Checks before a round: which agents fit together, and which nodes are missing. Pure.

A *round* is one start of all workers. It begins when all agents have agreed on a membership and the coordinator sends
the `RoundPlan`; it ends with one `RoundEnd`, which all agents get. The number of the round is the attempt number,
everywhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_launch import hostlist
from hpc_launch.errors import RendezvousError, RendezvousTimeout, RoundRefused
from hpc_launch.rendezvous.messages import RefusalKind, Refused


@dataclass(frozen=True)
class Member:
    """What an agent says of itself when it joins a round.

    Attributes:
        agent: its number.
        host: its node's name.
        workers: how many it will start.
        software: what must be the same on every node, by name.
        problem: why it cannot take part; empty if it can.
        status: the exit status that goes with the problem.
    """

    agent: int
    host: str
    workers: int
    software: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""
    status: int = 0


def refusal(members: Sequence[Member]) -> tuple[str, int] | None:
    """Why these members cannot start a round together, with the exit status; None if they can."""
    for member in members:
        if member.problem:
            return f"{member.host}: {member.problem}", member.status
    for name in members[0].software:
        found: dict[str, list[str]] = {}
        for member in members:
            hosts = found.setdefault(member.software.get(name, "unknown"), [])
            if member.host not in hosts:
                hosts.append(member.host)
        if len(found) > 1:
            listing = "; ".join(f"{value} on {hostlist.fold(hosts)}" for value, hosts in found.items())
            return f"the nodes do not run the same {name}: {listing}", RendezvousError.exit_status
    return None


def error_of(refused: Refused, *, coordinates: bool) -> RendezvousError:
    """The error by which an agent ends where a round does not begin.

    Args:
        refused: what the coordinator says.
        coordinates: whether this agent is the coordinator's, which shows the line for all.
    """
    quiet = not coordinates
    if refused.kind is RefusalKind.MISSING:
        error: RendezvousError = RendezvousTimeout(refused.why, missing=tuple(refused.missing))
    elif refused.kind is RefusalKind.LOST:
        error = RendezvousError(refused.why)
    else:
        quiet = quiet and refused.kind is not RefusalKind.ALONE
        error = RoundRefused(refused.why, exit_status=refused.status)
    error.silent = quiet
    return error


def equal_runs(words: str) -> str:
    """Why a run cannot start beside another one of the same command in the same place, with what mends it."""
    return (
        f"two runs of the same command ({words}) are under way in one step, and nothing tells their agents apart: give "
        "each run an --rdzv-id of its own"
    )


def missing_hosts(hosts: Sequence[str], expected: Sequence[int], joined: Sequence[str]) -> tuple[str, ...]:
    """Hosts from which fewer agents have joined than are expected there.

    Args:
        hosts: all hosts.
        expected: how many agents each of them has.
        joined: the host of every agent that has joined.
    """
    present = Counter(joined)
    return tuple(host for host, count in zip(hosts, expected, strict=True) if present[host] < count)


def shape(value: Any) -> str:
    """A number of workers per agent as people read it: `4` where all are equal, else `4,4,2`."""
    sizes = list(value)
    return str(sizes[0]) if len(set(sizes)) == 1 else ",".join(map(str, sizes))
