"""A leader of a run that may lose nodes: it has all agents' connections, agrees with them, begins and ends rounds.

It has the connections of all agents, that of its own agent among them; what follows for memberships is decided by
`membership` and `forming`. A round costs six lines for each agent (ready, propose, accept, go, and that workers have
begun, from it and from all), and nothing is said while workers run. A failure ends a round when all agents have
answered since: a worker often fails because another's node is gone.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from hpc_launch import hostlist
from hpc_launch.elastic import draining, forming, membership, rounds, story
from hpc_launch.elastic.awake import Awake
from hpc_launch.elastic.console import Pace, say
from hpc_launch.elastic.forming import Gathering, Move, Terms
from hpc_launch.elastic.lines import Lines
from hpc_launch.elastic.membership import Knowledge, Membership
from hpc_launch.elastic.party import Party
from hpc_launch.elastic.post import GONE, SILENT, Post, Session
from hpc_launch.elastic.rounds import Ending, Member, RoundEnd, RoundPlan
from hpc_launch.elastic.story import Caller, Failed, Start, Story
from hpc_launch.elastic.tokens import Tokens
from hpc_launch.errors import HpcLaunchError, RoundRefused
from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory

# How often it is looked whether a round can begin.
_LOOK_SECONDS = 0.02


@dataclass
class _Running:
    """A round that has begun. Times are those of the leader's clock.

    Attributes:
        start: what was said.
        since: when it began.
        end: how it ended; None while it goes on.
        done: agents whose workers have all ended well.
        failures: what agents say of failed workers, the first one first.
        failed: when that came; it is the end until it is known to be none of a lost node.
        answered: who has answered since.
        begun: whose workers have started.
    """

    start: Start
    since: float
    end: RoundEnd | None = None
    done: set[int] = field(default_factory=set)
    failures: dict[int, Failed] = field(default_factory=dict)
    failed: float = 0.0
    answered: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)

    @property
    def all_begun(self) -> bool:
        """Whether all workers have started."""
        return self.begun >= {*self.start.active}


class Leader(Post):
    """What leads other agents if it is told to.

    Args:
        party: what this agent brings along.
        listener: where it listens.
        open_store: makes the store for the workers of the round with this number; gives the address and the port.
        open_job: gives the name of the job directory and the number of the run's first attempt.
        observe: is told of nodes that are missing, as events.
    """

    def __init__(
        self,
        party: Party,
        listener: socket.socket,
        open_store: Callable[[int], tuple[str, int]],
        open_job: Callable[[], tuple[str, int]],
        observe: Callable[..., None],
    ) -> None:
        super().__init__(party, listener)
        self._open_store, self._open_job, self._observe = open_store, open_job, observe
        self._terms = Terms(party.minimum, party.join_timeout, party.node_timeout)
        self._awake = Awake()
        self._now = self._since = self._last_busy = self._next_look = 0.0
        self._story = Story()
        self._shared: dict[str, str] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._firsts: Counter[str] = Counter()
        self._newest = Membership(-1, ())
        self._proposal: Membership | None = None
        self._accepted: set[int] = set()
        self._tokens = Tokens()
        # Whose connections were closed, not silent: these need not be waited for.
        self._gone: set[int] = set()
        self._running: _Running | None = None
        self._known_hosts: dict[int, str] = dict(enumerate(party.hosts))
        self._pace = Pace(10, 60)
        self.open()

    # ---- for its own agent

    @property
    def formed(self) -> bool:
        """Whether it leads, and a round has begun."""
        return self._leads and self._running is not None

    @property
    def _number(self) -> int:
        return self._running.start.number if self._leads and self._running is not None else -1

    def lead(self) -> Lines:
        """Begin to lead; gives this agent's own end of its connection."""
        own, served = socket.socketpair()
        with self._lock:
            self._leads, self._since, self._pace = True, self._now, Pace(10, 60)
            self._adopt(served)
        return Lines(own)

    def resign(self) -> None:
        """Lead no more: all agents look for somebody else."""
        with self._lock:
            self._leads, self._running, self._proposal = False, None, None
            for connection in [*self._sessions]:
                self._forget(connection)

    @property
    def awaited(self) -> Mapping[int, tuple[str, int]]:
        """Other agents that all wait for, as they are to say something soon; and where they listen."""
        with self._lock:
            members = {one.agent: one for one in self._sessions.values() if one.agent is not None}
            awaited = self._awaited(members) - {self._party.agent} if self._leads else set()
            return {agent: members[agent].place for agent in awaited & members.keys()}

    def _awaited(self, members: Mapping[int, Session]) -> AbstractSet[int]:
        running = self._running
        if self._proposal is not None:
            return {*self._proposal.agents} - self._accepted
        if running is None:
            return {agent for agent, one in members.items() if one.ready is None}
        if running.end is not None:
            return set()
        # Their workers are to start; and when those of one node have ended, those of the others are about to.
        return {*running.start.active} - (running.done or running.begun)

    def miss(self, agents: AbstractSet[int]) -> None:
        """Wait no more for agents that do not listen any more."""
        with self._lock:
            self._gone |= agents - self.callers

    def give_up(self, agent: int) -> None:
        """Lose an agent that is awaited and does not answer, though its node does."""
        with self._lock:
            if self._running is None:
                say(f"lost the agent on {self._known_hosts[agent]}: {SILENT}")
            for connection, session in [*self._sessions.items()]:
                if session.agent == agent:
                    self._lose(connection, SILENT)

    def clear(self) -> None:
        """Remove what nobody needs when the run has ended."""
        end = self._running.end if self._leads and self._running is not None else None
        if end is not None and end.ending != Ending.RESTART.value:
            self._tokens.clear(self._directory.memberships)

    def _go_on(self, _: float) -> None:
        now = self._now = self._awake.look()
        if self._leads and self._running is not None:
            self._judge(self._running, now)
        elif self._leads and self._proposal is None and now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._consider(now)

    # ---- what agents say

    def _obey(self, connection: socket.socket, session: Session, said: Mapping[str, Any]) -> None:
        word = said["do"]
        if word == "ready":
            self._welcome(connection, session, story.read(Caller, said["caller"]))
        elif session.agent is None:
            self._forget(connection)
        elif word == "bye":
            self._leave(connection)
        elif word == "accept":
            self._note_accepted(session.agent, said["membership"])
        elif word in ("share", "ask", "notice"):
            self._inform(session, word, said)
        elif word == "stop":
            self._stop(story.read(RoundEnd, said["end"]))
        elif self._running is not None and said.get("round") == self._story.round:
            self._note(self._running, session.agent, word, said)

    def _inform(self, session: Session, word: str, said: Mapping[str, Any]) -> None:
        """What has nothing to do with rounds."""
        if word == "share":
            self._shared[said["name"]] = said["text"]
        elif word == "ask":
            session.lines.send("told", id=said["id"], value=self._told(said["what"], said["name"], said["amount"]))
        else:
            counts = membership.merged([self._story.notices, {said["name"]: said["count"]}])
            self._story = replace(self._story, notices=counts)
            self._broadcast("notices", counts=counts)

    def _told(self, what: str, name: str, amount: int) -> float | int | bool | str:
        """The answer to a question."""
        if what == "clock":
            return time.time()
        if what == "count":
            self._counts[self._story.round, name] += amount
            return self._counts[self._story.round, name]
        if what == "first":
            self._firsts[name] += 1
            return self._firsts[name] == 1
        return self._shared.get(name, "")

    def _welcome(self, connection: socket.socket, session: Session, caller: Caller) -> None:
        """An agent is there, or ready for another round."""
        unfit = self._unfit(caller) if self._story.round >= 0 else None
        if unfit is not None:
            session.lines.send("refuse", why=unfit[0], status=unfit[1], alone=True)
            return
        if session.agent is None:
            for other, one in [*self._sessions.items()]:
                if one.agent == caller.agent and other is not connection:
                    self._lose(other)  # it has come back before its loss was noticed
            if self._running is not None and caller.agent not in self._running.start.agents:
                self._observe(events.NODE_BACK, hosts=caller.host, **self._story.where)
                say(f"{caller.host} is there, and takes part from the next attempt on")
                self._expect({**self._story.waiting, str(caller.agent): (caller.address, caller.port)})
                # Should this leader be lost before the next round, there is nothing else by which it would find them.
                session.lines.send("places", who=self._running.start.places)
        session.agent, session.ready = caller.agent, caller
        self._gone = {*self._gone, *caller.gone} - {caller.agent}
        session.place, session.known = (caller.address, caller.port), caller.known
        if session.known.agreed.number > self._newest.number:
            self._newest = session.known.agreed
        before = self._story.notices
        self._story = story.together([self._story, story.read(Story, caller.story)])
        if self._story.notices != before:
            self._broadcast("notices", counts=self._story.notices)

    def _unfit(self, caller: Caller) -> tuple[str, int] | None:
        """Why an agent cannot join a run that has begun, which goes on without it; None if it can."""
        party = self._party
        own = Member(party.agent, party.host, party.workers, party.software)
        return rounds.refusal([own, _member(caller)])

    def _expect(self, waiting: Mapping[str, Sequence[Any]]) -> None:
        """Let all know who waits for the next round, should another lead it."""
        self._story = replace(self._story, waiting=waiting)
        self._broadcast("waiting", who=waiting)

    def _note(self, running: _Running, agent: int, word: str, said: Mapping[str, Any]) -> None:
        """Something about the round that runs."""
        if running.end is not None:
            return
        before = running.all_begun
        running.begun.add(agent)
        if running.all_begun and not before:
            self._broadcast("begun", round=self._story.round)
        if word == "done":
            running.done.add(agent)
            if running.done >= {*running.start.active}:
                self._end(running, RoundEnd(Ending.DONE.value, agent, self._known_hosts[agent]))
        elif word == "failed" and agent in running.start.active:
            if not running.failures:
                running.failed = self._now
                self._broadcast("ping")
            running.failures.setdefault(agent, story.read(Failed, said["failed"]))
        elif word == "pong":
            running.answered.add(agent)

    def _stop(self, end: RoundEnd) -> None:
        """An agent leaves for good, and takes the run with it."""
        if self._running is None or self._running.end is None:
            self._broadcast("ended", round=self._story.round, end=story.plain(end), story=story.plain(self._story))
        if self._running is not None and self._running.end is None:
            self._running.end = end

    # ---- rounds

    def _judge(self, running: _Running, now: float) -> None:
        """Decide about a failure, and go on when all whose workers run have stopped them."""
        if running.end is None and running.failures:
            active = {*running.start.active}
            silent = active - running.answered
            settled = now - running.failed >= draining.settle_seconds(running.failed - running.since)
            if silent and now - running.failed > self._party.node_timeout:
                for connection, session in [*self._sessions.items()]:
                    if session.agent in silent:
                        self._lose(connection, SILENT)
            elif not silent and (settled or running.failures.keys() == active):
                self._fail(running)
        elif running.end is not None and running.end.ending == Ending.RESTART.value:
            self._running, self._since, self._pace = None, now, Pace(10, 60)

    def _fail(self, running: _Running) -> None:
        agent, failed = min(running.failures.items(), key=lambda item: not item[1].own)
        again = self._story.spent < self._party.max_restarts
        self._hold_against(running, running.failures, again=again)
        self._story = replace(self._story, spent=self._story.spent + again)
        ending = Ending.RESTART if again else Ending.FAILED
        position = list(running.start.active).index(agent)
        self._end(running, RoundEnd(ending.value, position, self._known_hosts[agent], failed.status, failed.cause))

    def _hold_against(self, running: _Running, failures: Mapping[int, Failed], *, again: bool) -> None:
        """Note what failures say of nodes."""
        before = self._story.drained
        self._story = draining.noted(self._story, failures)
        for bad in self._story.drained.keys() - before.keys():
            self._tell_drained(int(bad), running, again=again)

    def _tell_drained(self, agent: int, running: _Running, *, again: bool) -> None:
        """Name a node that has shown to be bad: once, as all hear of it with the end of the round."""
        host, why = self._known_hosts[agent], self._story.drained[str(agent)]
        stays = agent in self._active(running.start.agents)
        self._observe(events.NODE_DRAINED, hosts=host, why=why, stays=stays, **self._story.where)
        if again:
            what = "stays, as there is no spare" if stays else "goes behind the spares"
            say(f"{host} {why}: it {what}; leave it out of the next job with --exclude={host}")

    def _end(self, running: _Running, end: RoundEnd) -> None:
        running.end = end
        self._broadcast("ended", round=self._story.round, end=story.plain(end), story=story.plain(self._story))

    def _lose(self, connection: socket.socket, why: str = GONE) -> None:
        """An agent is gone."""
        agent, closed = self._sessions[connection].agent, self._sessions[connection].lines.closed
        self._forget(connection)
        if agent is not None and closed:
            self._gone.add(agent)
        if agent is None or not self._leads:
            return
        self._tell_lost(agent)
        if self._proposal is not None and agent in self._proposal.agents:
            self._proposal = None
        running = self._running
        if running is not None and str(agent) in self._story.waiting:
            self._expect({one: place for one, place in self._story.waiting.items() if one != str(agent)})
        elif running is not None and running.end is None and agent in running.start.active:
            host = self._known_hosts[agent]
            cause = f"lost the agent on {host}: {why}"
            # Workers fail because a node is lost, but no device breaks for it.
            self._hold_against(running, {one: said for one, said in running.failures.items() if said.fault}, again=True)
            self._end(running, RoundEnd(Ending.RESTART.value, -1, self._party.host, 69, cause, lost=host))

    def _tell_lost(self, agent: int) -> None:
        """Write down that a node was lost, unless the run is over; say it of one whose loss ends no attempt."""
        running, host = self._running, self._known_hosts[agent]
        if running is not None and running.end is not None and running.end.ending != Ending.RESTART.value:
            return
        self._observe(events.NODE_LOST, hosts=host, **self._story.where)
        if running is not None and running.end is None and agent not in running.start.active:
            say(f"lost {host}, which has no workers: its agent was killed, or the node is gone")

    def _leave(self, connection: socket.socket) -> None:
        """An agent takes leave; while the round goes on that is a loss like any other."""
        if self._running is not None and self._running.end is None:
            self._lose(connection)
        else:
            self._forget(connection)

    # ---- memberships

    def _consider(self, now: float) -> None:
        """Propose a membership if those that are there may form one, and nobody need be waited for."""
        members = {one.agent: one for one in self._sessions.values() if one.agent is not None}
        ready = {agent: one.known for agent, one in members.items() if one.ready is not None}
        busy = members.keys() - ready.keys()
        if busy:
            self._last_busy = now
        here = Gathering(
            ready,
            busy,
            self._newest,
            newcomers={*map(int, self._story.waiting)},
            gone=self._gone,
            taken=self._tokens.taken,
            refused=self._tokens.refused,
            waited=now - self._since,
            idle=now - max(self._since, self._last_busy),
            first=self._story.round < 0,
        )
        move = forming.decide(here, self._terms)
        if move is Move.PROPOSE:
            self._propose(ready)
        elif move is Move.TAKE:
            self._tokens.take(self._directory.memberships, membership.halves(ready))
        elif move is Move.GIVE_UP:
            self._give_up(here)
        elif ready and self._pace.due():
            self._tell_missing(here)

    def _tell_missing(self, here: Gathering) -> None:
        joined, names = len(here.ready), self._hosts_of(here.missing)
        about = {"joined": joined, "expected": self._party.agents, "waited": round(here.waited, 1)}
        if names:
            self._observe(events.NODE_MISSING, hosts=names, **about)
            say(f"waiting for {names} ({joined}/{self._party.agents} joined, {here.waited:.0f} s)")

    def _give_up(self, here: Gathering) -> None:
        why = forming.why_not(here, self._terms, self._hosts_of, self._directory.memberships)
        # Who cannot know whether others train must not have the job run again.
        again = not here.first and membership.may_form(here.ready, here.taken)
        self._broadcast("refuse", why=why, status=69, again=again)
        self._since = self._now  # all leave now

    def _propose(self, ready: Mapping[int, Knowledge]) -> None:
        proposal = membership.propose(ready)
        try:
            if self._story.round < 0:
                self._prepare([one.ready for one in self._sessions.values() if one.ready and one.agent in ready])
        except HpcLaunchError as error:
            self._broadcast("refuse", why=str(error), status=error.exit_status)
            return
        token = self._tokens.put(self._directory.memberships, proposal.number)
        proposal = self._proposal = replace(proposal, token=token, active=self._active(proposal.agents))
        self._accepted = set()
        self._tell(proposal.agents, "propose", membership=story.plain_membership(proposal))

    def _prepare(self, callers: Sequence[Caller]) -> None:
        """Before the first round: see that these fit together, and choose the job directory."""
        self._refuse_differences(sorted(callers, key=lambda caller: caller.agent))
        if not self._story.job:
            job, first_attempt = self._open_job()
            self._story = replace(self._story, job=job, first_attempt=first_attempt)

    @property
    def _directory(self) -> JobDirectory:
        return JobDirectory(self._party.job.root, self._story.job)

    def _note_accepted(self, agent: int, accepted: Sequence[Any]) -> None:
        proposal = self._proposal
        if proposal is None or story.read_membership(accepted) != proposal:
            return
        self._accepted.add(agent)
        if self._accepted >= {*proposal.agents}:
            self._proposal = None
            try:
                self._begin(proposal)
            except HpcLaunchError as error:
                self._broadcast("refuse", why=str(error), status=error.exit_status)

    def _begin(self, agreed: Membership) -> None:
        """All have accepted: the round begins."""
        members = {*agreed.agents}
        sessions = {one.agent: one for one in self._sessions.values() if one.agent in members}
        callers = {agent: one.ready for agent, one in sessions.items() if one.ready is not None}
        active = agreed.active
        # Who does not hear that this one is agreed may need those before it.
        needed = membership.oldest_in_question(caller.known for caller in callers.values())
        self._tokens.remove(self._directory.memberships, before=needed)
        address, port = self._open_store(self._story.round + 1)
        workers = [callers[agent].workers for agent in active]
        self._story = replace(self._story, round=self._story.round + 1, waiting={})
        plan = RoundPlan(address, port, workers, self._story.job, self._story.first_attempt)
        start = Start(
            number=agreed.number,
            agents=agreed.agents,
            token=agreed.token,
            active=active,
            hosts=[self._known_hosts[agent] for agent in active],
            leader=self._party.agent,
            plan=story.plain(plan),
            story=story.plain(self._story),
            places={str(agent): sessions[agent].place for agent in agreed.agents},
        )
        self._running = _Running(start, self._now)
        self._observe(
            events.NODES,
            hosts=self._hosts_of(active),
            spares=self._hosts_of(members - {*active}),
            lost=self._hosts_of({*self._newest.agents} - members) if self._story.round else "",
            leader=self._party.host,
            **self._story.where,
        )
        for session in sessions.values():
            session.ready = None
        self._tell(agreed.agents, "go", start=story.plain(start))

    def _hosts_of(self, agents: Iterable[int]) -> str:
        return hostlist.display([self._known_hosts[agent] for agent in sorted(agents)])

    def _active(self, agents: Sequence[int]) -> tuple[int, ...]:
        """Which of these agents have workers."""
        most = self._party.agents - self._party.spares
        return membership.active(agents, most, [*map(int, self._story.drained)])

    def _refuse_differences(self, callers: Sequence[Caller]) -> None:
        refused = rounds.refusal([_member(one) for one in callers])
        if refused is not None:
            raise RoundRefused(refused[0], exit_status=refused[1])


def _member(caller: Caller) -> Member:
    return Member(caller.agent, caller.host, caller.workers, caller.software, caller.problem, caller.status)
