"""The `slurm` rendezvous: fixed ranks, one attempt number for everybody, and a fresh store for every attempt.

Registered with torch under the name `slurm` (entry-point group `torchrun.handlers`), so plain
`torchrun --rdzv-backend=slurm` uses it too. What differs from torch's c10d backend, and why:

- Ranks are those of the host list in every round. (c10d sorts by address as text.)
- The leader is known from the list, not guessed by comparing names (pytorch/pytorch#73656).
- The agents have a store that lives as long as the run, or none; the workers get another one, on another port, in each
  round. (With c10d they share the agents' store and meet the addresses of the attempt before: restarts fail.)
- A round ends by one word, the first that is said, and all agents follow it (`rounds`).

There are two: `fixed`, where all nodes stay, and `moving`, for a run that may lose nodes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch.distributed.elastic.rendezvous import RendezvousHandler

from hpc_launch.elastic.party import Party
from hpc_launch.elastic.rounds import Ending, Message, RoundEnd, RoundPlan
from hpc_launch.errors import RendezvousError
from hpc_launch.node import network

NAME = "slurm"

_Shared = TypeVar("_Shared", bound=Message)


class SlurmRendezvous(RendezvousHandler):
    """One agent's end of the rendezvous.

    The agent of hpc-launch uses `report_failure`, `report_done` and `end` as well; torch's own agent makes do with the
    methods of torch's interface, restarts included.

    Attributes:
        observer: is told of nodes that are missing or lost, as events (`records.events`).
    """

    def __init__(self, party: Party) -> None:
        self._party = party
        self._own_address = "127.0.0.1"
        self._round = -1
        self._plan: RoundPlan | None = None
        self._end: RoundEnd | None = None
        self.observer: Callable[..., None] = lambda _, **__: None

    # ---- what the agent asks

    @property
    def round_number(self) -> int:
        """Number of the current round, from 0."""
        return self._round

    @property
    def plan(self) -> RoundPlan:
        """What the leader said of the current round."""
        if self._plan is None:
            raise RendezvousError("there was no rendezvous yet")
        return self._plan

    @property
    def interface(self) -> str:
        """The interface by which this node talks to the others; empty on a single node."""
        if len(self._party.hosts) == 1:
            return ""
        return network.interface_of(self._own_address, network.interfaces())

    @property
    @abstractmethod
    def leads(self) -> bool:
        """Whether this agent leads the run."""

    @property
    @abstractmethod
    def hosts(self) -> Sequence[str]:
        """Where the agents of the current round are, those that have workers; perhaps only the leader knows of all."""

    @abstractmethod
    def report_failure(self, status: int, cause: str, *, own: bool = True, fault: str = "") -> RoundEnd:
        """Say that something failed here; returns how the round really ended (somebody may have been first).

        Args:
            status: the exit status that goes with it.
            cause: what happened, one line.
            own: whether workers failed by themselves, and did not follow others.
            fault: what shows that this node, or a device of it, is broken; empty if nothing does.
        """

    @abstractmethod
    def report_end(self, status: int, cause: str, signal: str = "") -> RoundEnd | None:
        """Say that this agent leaves for good, so that the others do not wait for its workers.

        Args:
            status: the exit status that all are to end with.
            cause: why, one line.
            signal: the name of the signal that made it leave, if one did.

        Returns:
            How the round really ended (somebody may have been first); None when there is none.
        """

    def report_begun(self) -> None:
        """Say that the workers here have started."""

    @abstractmethod
    def report_done(self) -> None:
        """Say that all workers here ended well; the last agent to do so ends the round."""

    @abstractmethod
    def end(self) -> RoundEnd | None:
        """How the current round ended; None while it goes on. It costs the others little, however often it is called.

        Raises:
            RendezvousError: when the others are lost.
        """

    # ---- what concerns all rounds

    @abstractmethod
    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the leader's, and how wrong that can be; None if unknown."""

    @abstractmethod
    def tell_notice(self, name: str, count: int) -> None:
        """Tell the other agents that a signal came for the `count`-th time."""

    @abstractmethod
    def notices(self) -> Mapping[str, int]:
        """How often each signal came to some agent, by name."""

    @abstractmethod
    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share, which begins at 0; returns what it is then.

        Where nobody says what it is, that is -1.
        """

    @abstractmethod
    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""

    @abstractmethod
    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the others are lost."""

    @abstractmethod
    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before: it is the one to say something for all."""

    # ---- torch's interface

    def get_backend(self) -> str:
        """The name it is registered under."""
        return NAME

    @property
    def use_agent_store(self) -> bool:
        """Workers use the store that the leader serves for their round; none of them has to open one."""
        return True

    def get_run_id(self) -> str:
        """The name of the run."""
        return self._party.run_id

    def is_closed(self) -> bool:
        """Whether there will be no further round."""
        return self._end is not None and self._end.ending != Ending.RESTART.value

    def set_closed(self) -> None:
        """End the run for everybody, unless the round has ended already."""
        self.report_end(1, "the rendezvous was closed")
