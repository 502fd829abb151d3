"""The admission of agents: which of those that connect and prove themselves belong to this run. Pure.

All agents of a user's place share a secret, and a place can have several runs: two programs in one step, or one after
another. An agent of another program is turned away, and finds its own run on another port.
"""

from __future__ import annotations

from hpc_launch.plan.similar_commands import Command, similar
from hpc_launch.rendezvous.messages import Hello, Purpose, Ready, Verdict
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.peer_faults import MessageError

# Of so many nodes it is remembered which other command they run.
_MOST_TURNED_AWAY = 64
# So long an agent waits whose command differs by its task's numbers: another run may begin, whose command is equal.
_SIMILAR_SECONDS = 0.5
# More rounds than a run can have; messages may speak of some more, so that there is room to count on.
_MOST_ROUNDS = 1 << 29


def check_numbers(ready: Ready, agents: int) -> None:
    """See that an agent speaks of agents that the run has, and of rounds that it can have had.

    Args:
        ready: what it says.
        agents: how many agents the run has.

    Raises:
        MessageError: when it does not.
    """
    state, known = ready.state, (ready.agreed, *ready.accepted)
    # The agents of a membership are in ascending order.
    named = [some[-1] for one in known for some in (one.agents, one.active) if some]
    named += [*ready.gone, *map(int, (*state.waiting, *state.trouble, *state.drained))]
    if max(named, default=0) >= agents:
        raise MessageError(f"it speaks of agent {max(named)}: this run has agents 0 to {agents - 1}")
    if max(state.round, *(one.number for one in known)) > _MOST_ROUNDS:
        raise MessageError(f"it speaks of more than {_MOST_ROUNDS} rounds")


class Admission:
    """Which agents are of this run; each number belongs to one process.

    Args:
        config: what this agent brings along.
        instance: tells this process from another one with the same number.
    """

    def __init__(self, config: RendezvousConfig, instance: str) -> None:
        self._config = config
        self._instances: dict[int, str] = {config.agent: instance}
        self._turned_away: dict[str, str] = {}
        # Another run begins in the same place; and since when agents knock whose commands differ by their numbers.
        self._rivals = False
        self._similar: dict[int, float] = {}

    def refusal(self, hello: Hello, now: float) -> Verdict | None:
        """Why an agent does not belong to this run, or not yet; None if it does.

        Args:
            hello: what it says of itself.
            now: the time, in seconds.

        Raises:
            MessageError: when the run has no such agent.
        """
        other = self._other_program(hello, now)
        if other is not None:
            return other
        if hello.agent >= self._config.agents:
            raise MessageError(
                f"agent {hello.agent} of {hello.host}: this run has agents 0 to {self._config.agents - 1}"
            )
        mine = self._instances.get(hello.agent, hello.instance) == hello.instance
        return None if mine else Verdict.TAKEN

    def admit(self, hello: Hello) -> None:
        """An agent takes part in this run: its number belongs to its process from now on.

        One that has only asked keeps no number: before this agent coordinates, it can be of an equal run.
        """
        self._instances.setdefault(hello.agent, hello.instance)

    def is_first_of_another(self, hello: Hello) -> bool:
        """Whether this is the first agent of another run in the same place, which asks who has taken its port."""
        return hello.purpose is Purpose.CALL and hello.agent == self._config.agent

    @property
    def others(self) -> str:
        """Words about agents of other commands, which may be meant to take part; empty where there are none."""
        if not self._turned_away:
            return ""
        host, words = next(iter(self._turned_away.items()))
        return f"; {host} runs another command ({words}): if both belong to one run, give both the same --rdzv-id"

    def _other_program(self, hello: Hello, now: float) -> Verdict | None:
        identity = self._config.identity
        if hello.program == identity.program:
            return None
        if self.is_first_of_another(hello):
            self._rivals = True  # a first agent with another command: from now on only equal commands are of this run
        other = Command(tuple(hello.digests), hello.texts, tuple(hello.task))
        if not similar(identity.command, other) or self._rivals:
            if hello.purpose is Purpose.JOIN and len(self._turned_away) < _MOST_TURNED_AWAY:
                self._turned_away[hello.host] = hello.words
            return Verdict.OTHER_PROGRAM
        since = self._similar.setdefault(hello.agent, now) if hello.agent < self._config.agents else now
        known = self._instances.get(hello.agent) == hello.instance
        return None if known or now - since >= _SIMILAR_SECONDS else Verdict.SIMILAR
