"""The reports of a coordinator about nodes: lines for the console, and events for the job's records.

Which nodes are missing, take part, are lost, come back or prove bad.
"""

from __future__ import annotations

from collections.abc import Iterable, Set as AbstractSet

from hpc_launch import hostlist
from hpc_launch.records import events
from hpc_launch.rendezvous import round_checks
from hpc_launch.rendezvous.coordinator_interface import Effects
from hpc_launch.rendezvous.join_policy import JoiningAgents
from hpc_launch.rendezvous.messages import Hello, RunState, Start, shown_words
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.sessions import AgentSessions


class NodeReports:
    """What is said, and written down, about the nodes of a run.

    Args:
        config: what this agent brings along.
        sessions: those of the coordinator, which know the nodes of agents.
        effects: say and record it.
    """

    def __init__(self, config: RendezvousConfig, sessions: AgentSessions, effects: Effects) -> None:
        self._config, self._sessions, self._effects = config, sessions, effects

    def missing(self, here: JoiningAgents, others: str) -> None:
        """Name the nodes that are waited for.

        Args:
            here: who has come.
            others: words about agents of other commands.
        """
        names = self._record_missing(here)[1]
        if names:
            joined = f"{len(here.ready)}/{self._config.agents} joined"
            self._effects.say(f"waiting for {names} ({joined}, {here.waited:.0f} s){others}")

    def too_late(self, here: JoiningAgents) -> tuple[tuple[str, ...], str]:
        """Record the nodes that are waited for no more; gives them, and why a run of fixed size ends by that."""
        config = self._config
        missing, names = self._record_missing(here)
        return missing, (
            f"{names} did not join in {config.join_timeout:.0f} s ({len(here.ready)}/{config.agents} joined): look "
            "at the node's own output, exclude it, or wait longer with --join-timeout"
        )

    def round_begun(self, start: Start, before: Iterable[int]) -> None:
        """Record the nodes of a round that begins.

        Args:
            start: what is said to its agents.
            before: the agents of the membership before.
        """
        names, members = self._sessions.names, {*start.agents}
        self._effects.observe(
            events.NODES,
            hosts=names(start.active),
            spares=names(members - {*start.active}),
            lost=names({*before} - members) if start.state.round else "",
            leader=self._config.host,
            **start.state.where,
        )

    def other_commands(self, hellos: Iterable[Hello]) -> None:
        """Say that an id of the user's own has joined different commands, which may not be meant."""
        identity = self._config.identity
        others = [one for one in hellos if one.words not in ("", shown_words(identity.words))]
        if identity.explicit and others:
            one = others[0]
            self._effects.say(f"note: {one.host} runs another command ({one.words}), by the same --rdzv-id")

    def late(self, host: str, state: RunState) -> None:
        """Say and record that a node has come while a round goes on, perhaps once more."""
        self._effects.observe(events.NODE_BACK, hosts=host, **state.where)
        self._effects.say(f"{host} is there, and takes part from the next attempt on")

    def lost(self, agent: int, state: RunState, *, spare: bool) -> None:
        """Record that a node was lost; say it where it is a spare's, whose loss ends no attempt."""
        host = self._sessions.hosts[agent]
        self._effects.observe(events.NODE_LOST, hosts=host, **state.where)
        if spare:
            self._effects.say(f"lost {host}, which has no workers: its agent was killed, or the node is gone")

    def drained(self, agents: AbstractSet[str], state: RunState, active: Iterable[int], *, again: bool) -> None:
        """Name nodes that have proved bad: once, as all agents hear of them with the end of the round.

        Args:
            agents: their agents, as the state has them.
            state: of the run; it says why.
            active: the agents that would have workers in the next round.
            again: whether there is one.
        """
        active = {*active}
        for agent in agents:
            host, why = self._sessions.hosts[int(agent)], state.drained[agent]
            stays = int(agent) in active
            self._effects.observe(events.NODE_DRAINED, hosts=host, why=why, stays=stays, **state.where)
            if again:
                what = "stays, as there is no spare" if stays else "goes behind the spares"
                self._effects.say(f"{host} {why}: it {what}; leave it out of the next job with --exclude={host}")

    def _record_missing(self, here: JoiningAgents) -> tuple[tuple[str, ...], str]:
        """Record the nodes whose agents are missing; gives them, and words for them."""
        missing, names = self._missing(here)
        about = {"joined": len(here.ready), "expected": self._config.agents, "waited": round(here.waited, 1)}
        if names:
            self._effects.observe(events.NODE_MISSING, hosts=hostlist.display(missing), **about)
        return missing, names

    def _missing(self, here: JoiningAgents) -> tuple[tuple[str, ...], str]:
        config, hosts = self._config, self._sessions.hosts
        if config.agents_per_host is not None:
            missing = tuple(hosts[agent] for agent in sorted(here.missing))
            return missing, hostlist.display(missing)
        joined = [hosts[agent] for agent in here.ready]
        missing = round_checks.missing_hosts(config.hosts, (1,) * len(config.hosts), joined)
        return missing, hostlist.display(missing) or f"{config.agents - len(here.ready)} tasks"
