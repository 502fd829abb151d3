"""The state of an agent in a run: what it knows of memberships, of the run and of the round that it is in. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hpc_launch.errors import RendezvousError
from hpc_launch.rendezvous import membership, messages
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.messages import Ended, RoundEnd, RoundEnding, RoundPlan, RunState, Start
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.world import World


class AgentState:
    """What an agent knows of the run that it takes part in.

    Args:
        config: what it brings along.

    Attributes:
        known: what it knows of memberships.
        run: what has become of the run so far.
        round: number of the current round; -1 before the first.
        rank: of this agent among those that have workers.
        nodes: how many of these there are.
        start: what the coordinator said of the current round; None while this agent waits for one.
        plan: of the current round; None while this agent has no workers.
        begun: the workers of all agents have started.
        done: the workers of this agent have all ended well.
        end: how the current round ended; None while it goes on.
    """

    def __init__(self, config: RendezvousConfig) -> None:
        self.known = Knowledge(Membership(0, tuple(range(config.agents))))
        self.run = RunState()
        self.round = -1
        self.rank, self.nodes = config.agent, config.agents
        self.start: Start | None = None
        self.plan: RoundPlan | None = None
        self.begun = self.done = False
        self.end: RoundEnd | None = None
        self._config = config
        # The run ended for all between two rounds: for the agent that is about to join the next one.
        self._late_end: RoundEnd | None = None

    @property
    def started(self) -> Start:
        """What the coordinator said of the current round.

        Raises:
            RendezvousError: when there was none.
        """
        if self.start is None:
            raise RendezvousError("there was no rendezvous yet")
        return self.start

    @property
    def is_spare(self) -> bool:
        """Whether there is a round in which this agent has no workers."""
        return self.start is not None and self.plan is None

    @property
    def is_closed(self) -> bool:
        """Whether there will be no further round."""
        return is_final(self.end)

    def world(self, whole: World) -> World:
        """The nodes that have workers in this round, and the place of this one among them.

        Args:
            whole: all nodes.
        """
        if not self._config.elastic:
            return whole
        start = self.started
        rank = start.active.index(self._config.agent)
        return replace(whole, hosts=tuple(start.hosts), node_rank=rank, agents=len(start.active), agent_rank=rank)

    # ---- what it hears

    def begin(self, start: Start) -> None:
        """A round begins, in which this agent may be a spare."""
        self.known = self.known.agree(start.membership)
        # An earlier word of the coordinator may come after this agent's own count.
        notices = membership.merged([self.run.notices, start.state.notices])
        self.start, self.run, self.round = start, replace(start.state, notices=notices), start.state.round
        self.end = self.plan = None
        self.begun = self.done = False
        if self._config.agent in start.active:
            self.rank, self.nodes = start.active.index(self._config.agent), len(start.active)
            self.plan = start.plan

    def note_begun(self, round_number: int) -> None:
        """The workers of all agents of a round have started."""
        self.begun = self.begun or round_number == self.round

    def note_end(self, ended: Ended) -> None:
        """The round has ended, or the run between two rounds."""
        self.run = messages.merge([self.run, ended.state])
        if self.end is None:
            self.end = ended.end
        elif not self.is_closed and is_final(ended.end):
            self._late_end = ended.end

    def note_notices(self, counts: Mapping[str, int]) -> None:
        """Notice signals have come to some agent so often."""
        self.run = replace(self.run, notices=membership.merged([self.run.notices, counts]))

    def note_waiting(self, waiting: Mapping[str, tuple[str, int]]) -> None:
        """Agents have come that take part in the next round."""
        self.run = replace(self.run, waiting=waiting)

    # ---- what it does

    def accept(self, proposal: Membership) -> None:
        """Accept a proposed membership."""
        self.known = self.known.accept(proposal)

    def wait_for_round(self) -> None:
        """Wait for another round; it may have been said meanwhile that there is none."""
        self.start = self.plan = None
        self.end, self._late_end = self._late_end, None

    def leave(self) -> None:
        """End the run for all: how a round ended counts no more, unless the run has ended with it, or since."""
        if self._late_end is not None:
            self.end, self._late_end = self._late_end, None
        if not self.is_closed:
            self.end = None


def is_final(end: RoundEnd | None) -> bool:
    """Whether a round has ended, and the run with it."""
    return end is not None and end.ending != RoundEnding.RESTART.value
