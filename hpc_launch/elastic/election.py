"""Whom an agent of a run that may lose nodes follows, when nobody led or its leader is lost: another one, or itself.

There is no vote. Who looks for a leader asks the others in host-list order, and the first that finds none before itself
leads. Two may lead at the same time, for a while: what makes that harmless is the rule of `membership`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable

from hpc_launch.elastic.console import say
from hpc_launch.elastic.leading import Leader
from hpc_launch.elastic.lines import Lines, notice_silence
from hpc_launch.elastic.membership import Membership
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.search import Inquiry, Search

# How often those that wait for more agents look whether these have another leader.
_SEARCH_SECONDS = 1.0


class Election:
    """It is asked again and again, and gives this agent's connection to its leader, perhaps itself.

    Args:
        party: what this agent brings along.
        search: knows where the others are.
        post: leads, if it is told to.

    Attributes:
        leader: whom this agent is with, or was with last; -1 before.
    """

    def __init__(self, party: Party, search: Search, post: Leader) -> None:
        self.leader = -1
        self._party, self._search, self._post = party, search, post
        self._inquiry: Inquiry | None = None
        self._next_inquiry = 0.0

    def lead(self) -> Lines:
        """Lead; gives this agent's own connection to itself."""
        self.leader = self._post.leader = self._party.agent
        return self._post.lead()

    def follow(self, leader: int, connection: socket.socket) -> Lines:
        """Be with another agent that leads."""
        notice_silence(connection, self._party.node_timeout)
        self.leader = self._post.leader = leader
        return Lines(connection)

    def begin(self) -> None:
        """Wait for a round: who leads need not look for others at once."""
        self._next_inquiry = time.monotonic() + _SEARCH_SECONDS

    def end(self, leader: int) -> None:
        """A round has begun, and this agent leads it."""
        self.leader = leader
        self.close()

    def close(self) -> None:
        """Look for nobody any more."""
        if self._inquiry is not None:
            self._inquiry.drop()
            self._inquiry = None

    def look(self, agreed: Membership, newcomers: Iterable[int]) -> Lines | None:
        """Find who leads those that this agent may go on with, or lead them; None where that is not known yet.

        Args:
            agreed: the newest membership that this agent knows to be agreed.
            newcomers: who has come since.
        """
        own = self._party.agent
        answer = self._search.first(agent for agent in self._others(agreed, newcomers) if agent < own)
        if answer is None:
            before = f" from {self._party.hosts[self.leader]}" if self.leader not in (-1, own) else ""
            say(f"{self._party.host} takes over{before}")
            return self.lead()
        # Who does not lead is looking for a leader as well, or about to, and comes before this agent.
        return self.follow(answer.leader, answer.connection) if answer.connection else None

    def join(self, others: Iterable[int]) -> Lines | None:
        """Find who leads a run that this agent has no part in yet, so that it leads it in no case; None as `look`."""
        answer = self._search.first(sorted(others))
        return self.follow(answer.leader, answer.connection) if answer is not None and answer.connection else None

    def resign(self, agreed: Membership, newcomers: Iterable[int]) -> Lines | None:
        """Lead no more where another agent does whose round has begun without this one, or who comes before it.

        Args:
            agreed: the newest membership that this agent knows to be agreed.
            newcomers: who has come since.

        Returns:
            The connection to that one; None as long as there is none.
        """
        now = time.monotonic()
        if self._inquiry is None and now >= self._next_inquiry:
            self._next_inquiry = now + _SEARCH_SECONDS
            missing = [agent for agent in self._others(agreed, newcomers) if agent not in self._post.callers]
            self._inquiry = Inquiry(self._search, missing)
        found = self._inquiry.found if self._inquiry is not None else None
        if found is None:
            return None
        self._inquiry = None
        self._post.miss(self._search.gone)
        better = [one for one in found if one.number > agreed.number or one.leader < self._party.agent]
        chosen = better[0] if better and not self._post.formed else None
        for one in found:
            if one is not chosen:
                one.close()
        if chosen is None or chosen.connection is None:
            return None
        self._post.resign()
        return self.follow(chosen.leader, chosen.connection)

    def _others(self, agreed: Membership, newcomers: Iterable[int]) -> list[int]:
        """The agents with which this one may go on, in host-list order."""
        return sorted({*agreed.agents, *newcomers} - {self._party.agent})
