"""The decisions of the `slurm` rendezvous: what the store's words mean, and what follows from them. Pure.

A *round* is one start of all workers. It begins when every agent has joined and the leader has published its
`RoundPlan`; it ends with one `RoundEnd`, written by whoever sees first how it ended. The first word counts: all agents
read the same end and do the same. The number of the round is the attempt number, everywhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from hpc_launch import hostlist

_Message = TypeVar("_Message", bound="Message")


@dataclass(frozen=True)
class Message:
    """Something that agents tell each other through the store, as JSON."""

    def encode(self) -> str:
        """The text for the store."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def decode(cls: type[_Message], text: str | bytes) -> _Message:  # noqa: PYI019 - Self is in typing from 3.11 on
        """Read it back; fields of a newer version are passed over."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in json.loads(text).items() if name in names})


@dataclass(frozen=True)
class Member(Message):
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


@dataclass(frozen=True)
class RoundPlan(Message):
    """What the leader says when all have joined.

    Attributes:
        master_addr: where the store of the workers is.
        master_port: its port.
        workers: workers of each agent, by agent.
        job: name of the job directory.
        first_attempt: number of the job directory's first attempt of this run.
        run_id: what workers read as TORCHELASTIC_RUN_ID.
        problem: why the round cannot begin; empty if it can.
        status: the exit status that goes with the problem.
    """

    master_addr: str
    master_port: int
    workers: Sequence[int]
    job: str
    first_attempt: int
    problem: str = ""
    status: int = 0
    run_id: str = ""


class Ending(str, Enum):
    """How a round ends."""

    DONE = "done"
    """Every worker of every agent ended well."""
    RESTART = "restart"
    """Something failed, and there is another attempt."""
    FAILED = "failed"
    """Something failed, and that was the last attempt."""


@dataclass(frozen=True)
class RoundEnd(Message):
    """The end of a round, the same for all agents.

    Attributes:
        ending: how it ended (a value of `Ending`).
        agent: who said so.
        host: on which node.
        status: the exit status of the job, if this is its end.
        cause: what happened, one line; empty after success.
        signal: the name of the signal that stopped the run, if one did: the workers are to get it.
        lost: the node that was lost, if one was: then workers that wait for those of that node do so for ever.
    """

    ending: str
    agent: int
    host: str
    status: int = 0
    cause: str = ""
    signal: str = ""
    lost: str = ""


def end_after_failure(  # noqa: D417 - the others are RoundEnd's
    *, round_number: int, max_restarts: int, agent: int, host: str, status: int, cause: str
) -> RoundEnd:
    """The end that an agent proposes when something failed on its node.

    There is one budget for the job: every round but the first has cost one restart.

    Args:
        round_number: the round in which it failed, from 0.
        max_restarts: the budget.
    """
    ending = Ending.RESTART if round_number < max_restarts else Ending.FAILED
    return RoundEnd(ending=ending.value, agent=agent, host=host, status=status, cause=cause)


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
            return f"the nodes do not run the same {name}: {listing}", 69
    return None


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
