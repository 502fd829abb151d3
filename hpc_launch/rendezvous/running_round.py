"""A running round: what its agents have said since it began, and how it ends by that. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from dataclasses import dataclass, field

from hpc_launch.rendezvous import node_blame
from hpc_launch.rendezvous.messages import Failed, RoundEnd, RoundEnding, Start


@dataclass
class RunningRound:
    """A round that has begun, as its coordinator sees it.

    Attributes:
        start: what was said.
        since: when it began.
        active: the agents that have workers.
        end: how it ended; None while it goes on.
        done: those of them whose workers have all ended well.
        failures: what agents say of failed workers, the first one first.
        failed: when the first came; in an elastic run it is the end once it is known to be none of a lost node.
        answered: the agents that have answered since.
        begun: those of them whose workers have started.
    """

    start: Start
    since: float
    end: RoundEnd | None = None
    done: set[int] = field(default_factory=set)
    failures: dict[int, Failed] = field(default_factory=dict)
    failed: float = 0.0
    answered: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    active: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.active = frozenset(self.start.active)

    @property
    def calm(self) -> bool:
        """Whether it goes on, and nothing has failed."""
        return self.end is None and not self.failures

    @property
    def over(self) -> bool:
        """Whether it has ended, and there is to be another."""
        return self.end is not None and self.end.ending == RoundEnding.RESTART.value

    def note_begun(self, agent: int) -> bool:
        """Note that the workers of an agent have started; whether they are the last ones."""
        before = len(self.begun)
        self.begun.add(agent)
        return before < len(self.begun) == len(self.active)

    def note_done(self, agent: int) -> bool:
        """Note that the workers of an agent have ended well; whether all have."""
        self.done.add(agent)
        return len(self.done) == len(self.active)

    def note_failure(self, agent: int, failed: Failed, now: float) -> None:
        """Note that workers of an agent have failed; its first word counts."""
        if not self.failures:
            self.failed = now
        self.failures.setdefault(agent, failed)

    def failure_counts(self, now: float) -> bool:
        """Whether it is known that what has failed has nothing to do with a lost node.

        An agent that does not answer is waited for (`due`): it may be busy with files.
        """
        if self.end is not None or not self.failures or self.active - self.answered:
            return False
        settled = now - self.failed >= node_blame.settle_seconds(self.failed - self.since)
        return settled or self.failures.keys() == self.active

    def end_by_first_failure(self, hosts: Mapping[int, str], *, again: bool) -> RoundEnd:
        """How the round ends by its failures: the first of a node's own is the one that counts.

        Args:
            hosts: the node of each agent.
            again: whether there is another attempt.
        """
        agent, failed = min(self.failures.items(), key=lambda item: not item[1].own)
        ending = RoundEnding.RESTART if again else RoundEnding.FAILED
        position = list(self.start.active).index(agent)
        return RoundEnd(ending.value, position, hosts[agent], failed.status, failed.cause, hang=failed.hang)

    @property
    def due(self) -> AbstractSet[int]:
        """The agents that all wait for, as their word is due."""
        if self.end is not None:
            return frozenset()
        if self.failures:
            return self.active - self.answered
        # Their workers are to start; and when those of one node have ended, those of the others are about to.
        return self.active - (self.done or self.begun)
