"""How a round begins, over the agents' store: all join, and the leader says how it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hpc_launch import hostlist
from hpc_launch.elastic import rounds
from hpc_launch.elastic.console import Pace, say
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.rounds import Member, RoundPlan
from hpc_launch.elastic.stores import AgentsStore
from hpc_launch.errors import RendezvousTimeout
from hpc_launch.records import events

# The leader gives up after the join timeout, so that the others need only a little longer to hear of it.
_GRACE_SECONDS = 15.0


@dataclass
class Joining:
    """One agent's part in the beginning of a round.

    Attributes:
        party: what it brings along.
        store: the agents' store.
        number: the number of the round.
        mind: raises where somebody has left while the others wait for the round to begin.
        observer: is told of nodes that are missing, as events (`records.events`).
    """

    party: Party
    store: AgentsStore
    number: int
    mind: Callable[[], None]
    observer: Callable[..., None]

    def join(self) -> None:
        """Say that this agent is there."""
        party = self.party
        member = Member(
            agent=party.agent,
            host=party.host,
            workers=party.workers,
            software=party.software if self.number == 0 else {},
            problem=str(party.problem) if party.problem else "",
            status=party.problem.exit_status if party.problem else 0,
        )
        self.store.set(self._member(party.agent), member.encode())
        self.store.add(self._key("joined"), 1)

    def await_members(self) -> list[Member]:
        """The leader's part: wait until all have joined.

        Raises:
            RendezvousTimeout: naming the nodes that did not come.
        """
        party = self.party
        begin, pace = time.monotonic(), Pace(10, 60)
        while (joined := self.store.add(self._key("joined"), 0)) < party.agents:
            self.mind()
            waited = time.monotonic() - begin
            if waited > party.join_timeout or pace.due():
                self._tell_missing(joined, waited)
            time.sleep(0.01)
        return [Member.decode(text) for text in self.store.get_all([*map(self._member, range(party.agents))])]

    def publish(self, plan: RoundPlan) -> None:
        """The leader's part: say how it goes on."""
        self.store.set(self._key("plan"), plan.encode())

    def await_plan(self) -> RoundPlan:
        """The others' part: hear how it goes on.

        Raises:
            RendezvousTimeout: when the leader does not say so.
        """
        deadline = time.monotonic() + self.party.join_timeout + _GRACE_SECONDS
        while time.monotonic() < deadline:
            text = self.store.await_key(self._key("plan"))
            if text is not None:
                plan: RoundPlan = RoundPlan.decode(text)
                return plan
            self.mind()
        raise RendezvousTimeout(f"{self.party.hosts[0]} did not begin round {self.number}; see --join-timeout")

    def _tell_missing(self, joined: int, waited: float) -> None:
        """Say which nodes are waited for, or that they are waited for no longer."""
        party, missing = self.party, self._missing()
        names = hostlist.display(missing) if missing else f"{party.agents - joined} tasks"
        about = {"joined": joined, "expected": party.agents, "waited": round(waited, 1)}
        self.observer(events.NODE_MISSING, hosts=hostlist.display(missing), **about)
        if waited > party.join_timeout:
            raise RendezvousTimeout(
                f"{names} did not join in {party.join_timeout:.0f} s ({joined}/{party.agents} joined): look at "
                "the node's own output, exclude it, or wait longer with --join-timeout",
                missing=missing,
            )
        say(f"waiting for {names} ({joined}/{party.agents} joined, {waited:.0f} s)")

    def _missing(self) -> tuple[str, ...]:
        party = self.party
        texts = [self.store.get(self._member(agent)) for agent in range(party.agents)]
        joined = [Member.decode(text).host for text in texts if text is not None]
        return rounds.missing_hosts(party.hosts, party.agents_per_host or (1,) * len(party.hosts), joined)

    def _member(self, agent: int) -> str:
        return self._key(f"member/{agent}")

    def _key(self, name: str) -> str:
        return f"round/{self.number}/{name}"
