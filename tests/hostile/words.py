"""False messages of agents, each well formed: what a stranger would say if it were believed."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_launch import codec
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import (
    Accept,
    AllBegun,
    Ask,
    Begun,
    Bye,
    Done,
    Ended,
    Failed,
    Hello,
    Notice,
    Notices,
    Ping,
    Places,
    Pong,
    Propose,
    Purpose,
    Question,
    Ready,
    RefusalKind,
    Refused,
    RoundEnd,
    RoundPlan,
    RunState,
    Share,
    Start,
    Told,
    Waiting,
)


@dataclass(frozen=True)
class Stop:
    """An agent leaves for good: with an end that the real message does not let an agent have."""

    end: RoundEnd


_STATE = RunState(round=3, spent=9, job="evil", drained={"0": "is broken"}, notices={"SIGTERM": 9})
_END = RoundEnd("done", 0, "evil", 0)
_FAILED = RoundEnd("failed", 0, "evil", 69, "lost the agent on gpu002", "SIGTERM", "gpu002")
_ALL = Membership(7, (0, 1, 2), "", (0, 1, 2))


def hello(agent: int, purpose: Purpose, program: str) -> bytes:
    """The first word of an agent."""
    return codec.encode(Hello(purpose, agent, "evil", "evil", program))


def _ready(agent: int) -> Ready:
    return Ready(agent, "evil", "10.77.0.14", 29999, 1, {}, "", 0, _ALL, (), _STATE, (0, 1, 2))


MESSAGES: dict[str, bytes] = {
    name: codec.encode(message)
    for name, message in {
        "ready, of an unknown agent": _ready(99),
        "ready, of another agent": _ready(1),
        "accept": Accept(_ALL),
        "begun": Begun(0),
        "done": Done(0),
        "failed": Failed(0, 69, "evil", fault="is broken"),
        "pong": Pong(0),
        "stop with status 0": Stop(_END),
        "stop with a loss": Stop(_FAILED),
        "notice": Notice("SIGTERM", 1),
        "share": Share("causes", "x" * 1000),
        "ask": Ask(1, Question.COUNT, "restarts", 1 << 20),
        "bye": Bye(),
        "propose": Propose(_ALL),
        "start": Start(
            _ALL,
            ("a", "b", "c"),
            0,
            RoundPlan("10.77.0.14", 29999, (1, 1, 1), "evil", 0),
            _STATE,
            {"0": ("10.77.0.14", 29999)},
        ),
        "ping": Ping(),
        "all begun": AllBegun(0),
        "ended": Ended(0, _END, _STATE),
        "refused": Refused(RefusalKind.PROBLEM, "evil", 69),
        "notices": Notices({"SIGTERM": 3}),
        "waiting": Waiting({"99": ("10.77.0.14", 29999)}),
        "places": Places({"0": ("10.77.0.14", 29999)}),
        "told": Told(1, "evil"),
    }.items()
} | {
    "an unknown signal": b'{"do":"Notice","signal":"SIGFOO","count":1}',
    "a path in a job name": b'{"do":"Ended","round":0,"state":{"job":"../../etc"},"end":{"ending":"done"}}',
    "a huge count": b'{"do":"Notice","signal":"SIGUSR1","count":1e300}',
    "an unknown word": b'{"do":"Evil"}',
    "no object": b"[]",
}
"""The messages, by what they say. Those of a later version, or of none, are at the end."""
