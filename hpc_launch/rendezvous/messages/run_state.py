"""The state of a run, which has to survive its coordinator. Pure.

Every agent holds one, and a new coordinator merges those of the agents that it has.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hpc_launch.codec import checked, table
from hpc_launch.rendezvous import membership
from hpc_launch.rendezvous.messages.field_checks import AGENT_NAME, COUNT, JOB, LINE, MOST_AGENTS, PLACES, ROUND, SIGNAL


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

    round: int = checked(ROUND, -1)
    spent: int = checked(COUNT, 0)
    trouble: Mapping[str, int] = field(default_factory=dict, metadata={"check": table(AGENT_NAME, COUNT, MOST_AGENTS)})
    drained: Mapping[str, str] = field(default_factory=dict, metadata={"check": table(AGENT_NAME, LINE, MOST_AGENTS)})
    notices: Mapping[str, int] = field(
        default_factory=dict, metadata={"check": table(SIGNAL, COUNT, len(signal.Signals))}
    )
    job: str = checked(JOB, "")
    first_attempt: int = checked(COUNT, 0)
    run_id: str = checked(LINE, "")
    waiting: Mapping[str, tuple[str, int]] = field(default_factory=dict, metadata={"check": PLACES})

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
