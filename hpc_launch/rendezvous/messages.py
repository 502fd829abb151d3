"""The messages of the rendezvous: what agents tell each other, as typed values. Pure.

Each message is a frozen dataclass; `codec` writes them and checks every field of what arrives. Counts are counts,
signal names exist, agent numbers are small, and names of job directories have no path in them.

The state of a run that has to survive its coordinator is the `RunState`; every agent holds one, and a new coordinator
merges those of the agents that it has.
"""

from __future__ import annotations

import functools
import itertools
import re
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

from hpc_launch import ranges
from hpc_launch.rendezvous import codec, membership
from hpc_launch.rendezvous.codec import array, checked, integer, nested, table, text
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.transport import wire
from hpc_launch.rendezvous.transport.faults import MessageError

_Word = TypeVar("_Word", bound="Message")

# More agents than any cluster has nodes and GPUs.
MOST_AGENTS = 1 << 17
_MOST_WORKERS = 1 << 12
_MOST_ROUNDS = 1 << 30

_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,255}")


def _is_name(value: str) -> bool:
    """Whether a text can be one component of a path, and is not a hidden file or a way upwards."""
    return value == "" or (_NAME.fullmatch(value) is not None and not value.startswith("."))


def _is_signal(value: str) -> bool:
    return value == "" or value in signal.Signals.__members__


def _numbers(value: Any) -> tuple[int, ...]:
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


_LONGEST_RANGES = 1 << 18
MOST_SHARED = 1 << 21
"""The longest text that agents share."""

AGENT = integer(0, MOST_AGENTS - 1)
_ROUND = integer(-1, _MOST_ROUNDS)
_STATUS = integer(0, 255)
_COUNT = integer(0, 1 << 31)
_PORT = integer(0, 65535)
_LONGEST_LINE = 1 << 13
_LINE = text(_LONGEST_LINE, what="a line")
_HOST = text(1 << 10, what="a host")
_JOB = text(255, _is_name, "a directory's name without a path")
_SIGNAL = text(32, _is_signal, "a signal's name")
_AGENT_NAME = text(8, lambda value: value.isascii() and value.isdigit() and int(value) < MOST_AGENTS, "an agent number")


def _place(value: Any) -> tuple[str, int]:
    """Check where an agent listens: an address and a port."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004 - an address and a port
        raise ValueError("expected an address and a port")
    return _HOST(value[0]), _PORT(value[1])


_PLACES = table(_AGENT_NAME, _place, MOST_AGENTS)


def _membership(value: Any) -> Membership:
    """Check a membership: number, agents, token and the active ones."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:  # noqa: PLR2004 - these four
        raise ValueError("expected a membership")
    number, agents, token, active = value
    return Membership(_ROUND(number), _numbers(agents), _JOB(token), _numbers(active))


def _run(value: Any) -> tuple[int, int]:
    """Check how many workers so many agents have, each of them."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:  # noqa: PLR2004 - two numbers
        raise ValueError("expected a number of workers and a number of agents")
    return integer(0, _MOST_WORKERS)(value[0]), integer(1, MOST_AGENTS)(value[1])


_RUNS = array(_run, MOST_AGENTS)


def _workers(value: Any) -> tuple[int, ...]:
    """Check the workers of each agent, which are mostly the same: the message is as short for a thousand as for two."""
    runs = _RUNS(value)
    if sum(count for _, count in runs) > MOST_AGENTS:
        raise ValueError(f"more than {MOST_AGENTS} agents")
    return tuple(itertools.chain.from_iterable((workers,) * count for workers, count in runs))


def _write_workers(workers: Sequence[int]) -> list[tuple[int, int]]:
    return [(number, len([*some])) for number, some in itertools.groupby(workers)]


def line(words: str) -> str:
    """Words for a message: one line of bounded length."""
    found = " ".join(words.split())
    return found if len(found) <= _LONGEST_LINE else found[: _LONGEST_LINE - 1] + "…"


def places(facts: Mapping[str, tuple[str, int]]) -> dict[int, tuple[str, int]]:
    """Where agents listen, by their numbers."""
    return {int(agent): place for agent, place in facts.items()}


@dataclass(frozen=True)
class Message:
    """Something that agents share as a text, and read as a kind that both know."""

    def encode(self) -> str:
        """The text."""
        return codec.write(self)

    @classmethod
    def decode(cls: type[_Word], data: str | bytes) -> _Word:  # noqa: PYI019 - Self is in typing from 3.11 on
        """The value of a text; fields of a newer version are passed over.

        Raises:
            MessageError: when it is not one.
        """
        return codec.read(cls, data)


# ---- the handshake


class Purpose(str, Enum):
    """What an agent wants of the one that it connects to."""

    JOIN = "join"
    """Take part, if that one coordinates; the connection stays."""
    ASK = "ask"
    """Hear who coordinates; the connection stays if that one does."""
    CALL = "call"
    """See that it answers, because its word has been due for long."""


@dataclass(frozen=True)
class Hello:
    """What the connecting agent says of itself in the handshake.

    Attributes:
        purpose: what it wants.
        agent: its number.
        host: its node.
        instance: tells this process from another one with the same number.
        program: the key of its program (`plan.identity`): only equal ones meet.
        words: the command as people read it.
        digests: of the command's words (`plan.commands`).
        texts: those of the words that hold a value of the agent's task.
        task: these values.
    """

    purpose: Purpose
    agent: int = checked(AGENT)
    host: str = checked(_HOST)
    instance: str = checked(text(64))
    program: str = checked(text(128))
    words: str = checked(text(400), "")
    digests: Sequence[str] = checked(array(text(16), 256), ())
    texts: Mapping[str, str] = field(default_factory=dict, metadata={"check": table(text(4), text(200), 64)})
    task: Sequence[str] = checked(array(text(256), 8), ())


def fitting(hello: Hello) -> Hello:
    """A hello that fits into the handshake: where the command is too long for it, its digest alone is sent."""
    if len(codec.encode(hello)) <= wire.MAX_HELLO:
        return hello
    return replace(hello, words="", digests=(), texts={}, task=())


class Verdict(str, Enum):
    """How an agent answers another one's hello."""

    WELCOME = "welcome"
    """It coordinates this run: the connection stays."""
    FOLLOWS = "follows"
    """It is of this run, and does not coordinate it."""
    SIMILAR = "similar"
    """Its command differs by the task's own numbers only: it is welcome if no other run shows up in a moment."""
    OTHER_PROGRAM = "other program"
    """It is of another run: the program or its arguments differ."""
    TAKEN = "taken"
    """An agent with this number is there already: there are two runs of the same program."""


@dataclass(frozen=True)
class Answer:
    """What the listening agent says in the handshake.

    Attributes:
        verdict: how it takes the hello.
        agent: its number.
        host: its node.
        instance: tells this process from another one with the same number.
        coordinator: the agent that it follows, itself if it coordinates; -1 while it looks for one.
        number: of the membership whose round it coordinates; -1 where none has begun.
        port: where it listens.
        words: its command, where that is another one.
    """

    verdict: Verdict
    agent: int = checked(AGENT)
    host: str = checked(_HOST)
    instance: str = checked(text(64))
    coordinator: int = checked(integer(-1, MOST_AGENTS - 1), -1)
    number: int = checked(_ROUND, -1)
    port: int = checked(_PORT, 0)
    words: str = checked(text(400), "")


# ---- the state of a run


@dataclass(frozen=True)
class RunState:
    """What has become of a run so far.

    Attributes:
        round: the last round that has begun; -1 before the first.
        spent: restarts after failures so far. Lost nodes cost none.
        trouble: how many attempts each agent's node has ended alone, by the agent's number as text.
        drained: the bad nodes in the order in which they proved bad: why, in words that follow the node's name, by the
            agent's number as text.
        notices: how often each notice signal came.
        job: name of the job directory; empty before the first round.
        first_attempt: number of the run's first attempt in it.
        run_id: the run's id for its workers (TORCHELASTIC_RUN_ID).
        waiting: agents that have come during the round and take part in the next: where they listen, by number.
    """

    round: int = checked(_ROUND, -1)
    spent: int = checked(_COUNT, 0)
    trouble: Mapping[str, int] = field(
        default_factory=dict, metadata={"check": table(_AGENT_NAME, _COUNT, MOST_AGENTS)}
    )
    drained: Mapping[str, str] = field(default_factory=dict, metadata={"check": table(_AGENT_NAME, _LINE, MOST_AGENTS)})
    notices: Mapping[str, int] = field(
        default_factory=dict, metadata={"check": table(_SIGNAL, _COUNT, len(signal.Signals))}
    )
    job: str = checked(_JOB, "")
    first_attempt: int = checked(_COUNT, 0)
    run_id: str = checked(_LINE, "")
    waiting: Mapping[str, tuple[str, int]] = field(default_factory=dict, metadata={"check": _PLACES})

    @property
    def where(self) -> dict[str, int]:
        """The attempt in which something happened, as a fact of an event: a spare writes down none by itself."""
        return {"attempt": self.first_attempt + self.round} if self.round >= 0 else {}


def merge(states: Iterable[RunState]) -> RunState:
    """What agents know together: of everything the latest."""
    states = tuple(states)
    latest = max(states, key=lambda state: state.round)
    return RunState(
        round=latest.round,
        spent=max(state.spent for state in states),
        trouble=membership.merged(state.trouble for state in states),
        drained=max((state.drained for state in states), key=len),
        notices=membership.merged(state.notices for state in states),
        job=latest.job,
        first_attempt=latest.first_attempt,
        run_id=latest.run_id,
        waiting={agent: place for one in states if one.round == latest.round for agent, place in one.waiting.items()},
    )


class Ending(str, Enum):
    """How a round ends."""

    DONE = "done"
    """Every worker of every agent ended well."""
    RESTART = "restart"
    """Something failed, and there is another attempt."""
    FAILED = "failed"
    """Something failed, and that was the last attempt."""


@dataclass(frozen=True)
class RoundPlan(Message):
    """What the coordinator decides for a round.

    Attributes:
        master_addr: where the store of the workers is.
        master_port: its port.
        workers: workers of each agent, by agent.
        job: name of the job directory.
        first_attempt: number of the job directory's first attempt of this run.
        run_id: the run's id for its workers (TORCHELASTIC_RUN_ID).
    """

    master_addr: str = checked(_HOST)
    master_port: int = checked(_PORT)
    workers: Sequence[int] = checked(_workers, write=_write_workers)
    job: str = checked(_JOB)
    first_attempt: int = checked(_COUNT)
    run_id: str = checked(_LINE, "")


@dataclass(frozen=True)
class RoundEnd(Message):
    """The end of a round, the same for all agents.

    Attributes:
        ending: how it ended (a value of `Ending`).
        agent: the agent that reported it; -1 where none did.
        host: on which node.
        status: the exit status of the job, if this is its end.
        cause: what happened, one line; empty after success.
        signal: the name of the signal that stopped the run, if one did: the workers are to get it.
        lost: the node that was lost, if one was: then workers that wait for those of that node do so for ever.
        hang: whether it ended because the job hung.
    """

    ending: str = checked(text(16, lambda value: value in {one.value for one in Ending}, "an ending"))
    agent: int = checked(integer(-1, MOST_AGENTS - 1))
    host: str = checked(_HOST)
    status: int = checked(_STATUS, 0)
    cause: str = checked(_LINE, "")
    signal: str = checked(_SIGNAL, "")
    lost: str = checked(_HOST, "")
    hang: bool = False


# ---- to the coordinator


@dataclass(frozen=True)
class Ready:
    """An agent is there, or ready for another round.

    Attributes:
        agent: its number.
        host: its node.
        address: where it listens itself; empty if it does not.
        port: its port there.
        workers: how many it starts.
        software: what must be the same on every node.
        problem: why it cannot take part; empty if it can.
        status: the exit status that goes with the problem.
        agreed: the newest membership that it knows to be agreed.
        accepted: those that it has accepted since.
        state: what it knows of the run.
        gone: agents whose connections to it were closed, not lost: these need not be waited for.
    """

    agent: int = checked(AGENT)
    host: str = checked(_HOST)
    address: str = checked(_HOST)
    port: int = checked(_PORT)
    workers: int = checked(integer(0, _MOST_WORKERS))
    software: Mapping[str, str] = checked(table(text(64), text(1 << 12), 32))
    problem: str = checked(_LINE)
    status: int = checked(_STATUS)
    agreed: Membership = checked(_membership)
    accepted: Sequence[Membership] = checked(array(_membership, 256))
    state: RunState = checked(nested(RunState))
    gone: Sequence[int] = checked(array(AGENT, MOST_AGENTS), ())

    @property
    def known(self) -> Knowledge:
        """What it knows of memberships."""
        return Knowledge(self.agreed, tuple(self.accepted))


@dataclass(frozen=True)
class Accept:
    """An agent accepts a proposed membership."""

    membership: Membership = checked(_membership)


@dataclass(frozen=True)
class Begun:
    """The workers of an agent have started."""

    round: int = checked(_ROUND)


@dataclass(frozen=True)
class Done:
    """All workers of an agent ended well."""

    round: int = checked(_ROUND)


@dataclass(frozen=True)
class Failed:
    """Workers of an agent have failed.

    Attributes:
        round: in which round.
        status: the exit status that goes with it.
        cause: what happened, one line.
        own: whether they failed by themselves, and did not follow others.
        fault: what shows that the node, or a device of it, is broken (`records.faults`); empty if nothing does.
        hang: whether no worker failed, but the job hangs.
    """

    round: int = checked(_ROUND)
    status: int = checked(_STATUS)
    cause: str = checked(_LINE)
    own: bool = True
    fault: str = checked(_LINE, "")
    hang: bool = False


@dataclass(frozen=True)
class Pong:
    """The answer to a ping."""

    round: int = checked(_ROUND)


@dataclass(frozen=True)
class Stop:
    """An agent leaves for good, and takes the run with it."""

    end: RoundEnd = checked(nested(RoundEnd))

    def __post_init__(self) -> None:
        """See that it is an end that an agent alone can bring about.

        Raises:
            MessageError: when it is not.
        """
        if self.end.ending != Ending.FAILED.value or not self.end.status:
            raise MessageError(f"Stop: an agent cannot end a run as {self.end.ending} with status {self.end.status}")


@dataclass(frozen=True)
class Notice:
    """A notice signal came to an agent for the `count`-th time."""

    signal: str = checked(text(32, lambda value: bool(value) and _is_signal(value), "a signal's name"))
    count: int = checked(_COUNT)


@dataclass(frozen=True)
class Share:
    """Something that all agents may read under a name."""

    name: str = checked(text(256))
    text: str = checked(text(MOST_SHARED))


class Question(str, Enum):
    """What an agent can ask the coordinator."""

    CLOCK = "clock"
    """The coordinator's time, in seconds since the epoch."""
    COUNT = "count"
    """A counter of this round, after adding to it."""
    FIRST = "first"
    """Whether no other agent has asked this before."""
    SHARED = "shared"
    """What was shared under a name."""


@dataclass(frozen=True)
class Ask:
    """A question to the coordinator."""

    id: int = checked(_COUNT)
    what: Question = checked(codec.one_of(Question))
    name: str = checked(text(256), "")
    amount: int = checked(integer(-(1 << 31), 1 << 31), 0)


@dataclass(frozen=True)
class Bye:
    """An agent takes leave in order."""


FROM_AGENTS = codec.known(Ready, Accept, Begun, Done, Failed, Pong, Stop, Notice, Share, Ask, Bye)

# ---- from the coordinator


@dataclass(frozen=True)
class Propose:
    """A membership to agree on."""

    membership: Membership = checked(_membership)


@dataclass(frozen=True)
class Start:
    """All have accepted: the round begins.

    Attributes:
        membership: what was agreed.
        hosts: the nodes of the active agents; left out where only the coordinator needs them.
        coordinator: the agent that says it.
        plan: the plan of the round, in which workers are those of the active agents.
        state: of the run.
        places: where each agent listens, by its number as text; left out where no agent but the coordinator does.
    """

    membership: Membership = checked(_membership)
    hosts: Sequence[str] = checked(array(_HOST, MOST_AGENTS))
    coordinator: int = checked(AGENT)
    plan: RoundPlan = checked(nested(RoundPlan))
    state: RunState = checked(nested(RunState))
    places: Mapping[str, tuple[str, int]] = checked(_PLACES)

    def __post_init__(self) -> None:
        """Check what fields say together.

        Raises:
            MessageError: when they contradict each other.
        """
        active = len(self.membership.active)
        fits = active == len(self.plan.workers) and len(self.hosts) in (0, active)
        if not fits or self.coordinator not in self.agents:
            raise MessageError("Start: hosts, workers and active agents contradict each other")

    @property
    def agents(self) -> tuple[int, ...]:
        """The agents of the membership."""
        return self.membership.agents

    @property
    def active(self) -> tuple[int, ...]:
        """Those of them that have workers; the others are spares."""
        return self.membership.active


@dataclass(frozen=True)
class Ping:
    """The coordinator wants to hear that an agent is there."""


@dataclass(frozen=True)
class AllBegun:
    """The workers of all agents have started."""

    round: int = checked(_ROUND)


@dataclass(frozen=True)
class Ended:
    """The round has ended, or the run before its first round."""

    round: int = checked(_ROUND)
    end: RoundEnd = checked(nested(RoundEnd))
    state: RunState = checked(nested(RunState))


class RefusalKind(str, Enum):
    """Why agents cannot start a round."""

    PROBLEM = "problem"
    """One of them has a problem, or they do not fit together."""
    ALONE = "alone"
    """The agent that hears it does not fit, and the others go on without it."""
    MISSING = "missing"
    """Agents did not come in time."""
    LOST = "lost"
    """Agents are gone, and too few are left: the job may run again."""


@dataclass(frozen=True)
class Refused:
    """The round does not begin.

    Attributes:
        kind: why.
        why: in one line.
        status: the exit status that goes with it.
        missing: the nodes that did not come, in host-list order.
    """

    kind: RefusalKind = checked(codec.one_of(RefusalKind))
    why: str = checked(_LINE)
    status: int = checked(_STATUS)
    missing: Sequence[str] = checked(array(_HOST, MOST_AGENTS), ())


@dataclass(frozen=True)
class Notices:
    """How often each notice signal came."""

    counts: Mapping[str, int] = checked(table(_SIGNAL, _COUNT, len(signal.Signals)))


@dataclass(frozen=True)
class Waiting:
    """The agents that have come during the round, and where they listen."""

    agents: Mapping[str, tuple[str, int]] = checked(_PLACES)


@dataclass(frozen=True)
class Places:
    """Where the agents of the round listen, for one that has come late."""

    agents: Mapping[str, tuple[str, int]] = checked(_PLACES)


@dataclass(frozen=True)
class Told:
    """The answer to a question."""

    id: int = checked(_COUNT)
    value: float | str | bool = checked(codec.any_of(codec.boolean, codec.real, text(MOST_SHARED)), "")


FROM_COORDINATOR = codec.known(Propose, Start, Ping, AllBegun, Ended, Refused, Notices, Waiting, Places, Told)
