"""The coordinator of a run: it agrees with all agents on who takes part, and begins and ends rounds. Pure.

It knows no sockets, files, threads or clocks: messages, lost connections, finished preparations and the time come in as
calls, and what follows goes out through `Effects`, none of which waits. What follows for memberships is decided by
`membership` and `join_policy`. A round costs six messages for each agent (ready, propose, accept, start, and that
workers have begun, from it and from all), and nothing is sent while workers run.

One coordinator serves both kinds of run. In an elastic run the loss of an agent ends a round, and the others go on. In
a run of fixed size it ends the run, and a failure counts at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpc_launch import hostlist
from hpc_launch.errors import HpcLaunchError, RendezvousError
from hpc_launch.pace import Pace
from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous import join_policy, membership, messages, node_blame, round_checks
from hpc_launch.rendezvous.admission import Admission
from hpc_launch.rendezvous.effects import Effects, Session, View
from hpc_launch.rendezvous.join_policy import Gathering, Move, Terms
from hpc_launch.rendezvous.membership import Knowledge, Membership
from hpc_launch.rendezvous.messages import (
    Accept,
    AllBegun,
    Answer,
    Ask,
    Begun,
    Bye,
    Done,
    Ended,
    Ending,
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
    Stop,
    Told,
    Verdict,
    Waiting,
)
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.round_checks import Member
from hpc_launch.rendezvous.transport.faults import MessageError

# Why an agent is lost, mostly and otherwise.
GONE = "it was killed, or its node is gone"
SILENT = "it does not answer, though its node does"

# How often the coordinator checks whether a round can begin or a failure is settled. Otherwise it waits for messages.
_SOON_SECONDS = 0.02
_NEVER = 3600.0
# A message leads to a check at once, but not sooner than so long after the last one, for each agent of the run: a check
# goes over all agents.
_CHECK_SECONDS = 20e-6

# A token that is not there by then goes into no proposal.
_TOKEN_SECONDS = 1.0
# So long a preparation may take before a line says what is waited for.
_PREPARATION_SECONDS = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 60.0


@dataclass
class _Running:
    """A round that has begun.

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
    def all_begun(self) -> bool:
        """Whether all workers have started."""
        return len(self.begun) == len(self.active)

    @property
    def all_done(self) -> bool:
        """Whether all workers have ended well."""
        return len(self.done) == len(self.active)


@dataclass
class _Preparation:
    """What has to be there before a membership can be proposed.

    Attributes:
        asked: what was asked for and has not come, with the time of the question.
        job: the job directory is known.
        store: round, address and port of the workers' store.
        token: number and name of the token; an empty name where there is none.
        warned: a line has said what is waited for.
        members: the agents that were found to fit together.
    """

    asked: dict[str, float] = field(default_factory=dict)
    store: tuple[int, str, int] | None = None
    token: tuple[int, str] | None = None
    warned: bool = False
    members: frozenset[int] = frozenset()


class Coordinator:
    """Agrees with agents, if it is asked to; every agent of an elastic run has one.

    Args:
        config: what this agent brings along.
        instance: tells this process from another one with the same number.
        effects: has done what follows.

    Attributes:
        now: the time of this call, in seconds; it stands still while the process is stopped.
        port: where this agent listens.
        following: the agent that this one is with; -1 while it looks for one.
        changed: something happened since the last copy for other threads.
        generation: of preparations; what was asked for in an earlier one does not count.
    """

    def __init__(self, config: RendezvousConfig, instance: str, effects: Effects) -> None:
        self.now = 0.0
        self.port = 0
        self.following = -1
        self.changed = True
        self.generation = 0
        self._config, self._instance, self._effects = config, instance, effects
        self._terms = Terms(config.minimum, config.join_timeout, config.node_timeout, fixed=not config.elastic)
        self._leads = self._sought = self._news = False
        self._sessions: dict[Session, None] = {}
        self._present: dict[int, Session] = {}
        self._admission = Admission(config, instance)
        self._since = self._last_busy = self._next_look = 0.0
        self._state = RunState()
        self._shared: dict[str, str] = {}
        self._shared_size = 0
        self._counts: Counter[tuple[int, str]] = Counter()
        self._firsts: Counter[str] = Counter()
        self._newest = Membership(-1, ())
        self._preparation = _Preparation()
        self._proposal: Membership | None = None
        # The agents that have not accepted the proposal yet.
        self._undecided: set[int] = set()
        # The agents whose connections were closed, not silent: these need not be waited for.
        self._gone: set[int] = set()
        self._running: _Running | None = None
        self._final: RoundEnd | None = None
        self._refusal: Refused | None = None
        # With several tasks on a node only the agents say where they are.
        self._hosts = dict(enumerate(config.hosts)) if config.agents_per_host is not None else {}
        self._pace = Pace(_FIRST_PAUSE, _LONGEST_PAUSE, 0.0)

    # ---- its own agent

    def lead(self, own: Session) -> None:
        """Begin to coordinate.

        Args:
            own: the session of this process's own agent.
        """
        self._leads, self._since, self._pace = True, self.now, Pace(_FIRST_PAUSE, _LONGEST_PAUSE, self.now)
        self._sessions[own] = None

    def resign(self) -> None:
        """Coordinate no more: all agents look for another one."""
        self.generation += 1
        self._leads, self._running, self._proposal, self._preparation = False, None, None, _Preparation()
        for session in [*self._sessions]:
            self._forget(session)

    def miss(self, agents: AbstractSet[int]) -> None:
        """Wait no more for agents that do not listen any more."""
        self._gone |= agents - self._callers()

    def give_up(self, agent: int) -> None:
        """Lose an agent that is awaited and does not answer, though its node does."""
        if self._running is None and agent in self._hosts:
            self._effects.say(f"lost the agent on {self._hosts[agent]}: {SILENT}")
        for session in [*self._sessions]:
            if session.agent == agent:
                self._lose(session, SILENT)

    @property
    def formed(self) -> bool:
        """Whether it coordinates, and a round has begun."""
        return self._leads and self._running is not None

    def view(self) -> View:
        """A copy of what other threads may know."""
        return View(self._callers(), self._awaited(), self._sought)

    def tokens_to_clear(self) -> Path | None:
        """The directory of tokens to remove when the run has ended; None where it goes on, or another one minds it."""
        over = self._leads and self._running is not None and self._final is not None
        return self._directory.memberships if over and self._config.elastic else None

    def forget_seekers(self) -> None:
        """A round begins for this agent: those that looked for a coordinator before have found one."""
        self._sought, self.changed = False, True

    # ---- connections

    def greet(self, hello: Hello) -> tuple[Answer, bool]:
        """Answer an authenticated agent's hello; the second value says whether its connection stays.

        Raises:
            MessageError: when the run has no such agent.
        """
        config, self.changed = self._config, True
        verdict, number = self._admission.refusal(hello, self.now), -1
        if verdict is None and self._leads:
            verdict = Verdict.WELCOME
            number = self._running.start.membership.number if self._running is not None else -1
        elif verdict is None:
            verdict, self._sought = Verdict.FOLLOWS, True
        elif verdict is Verdict.TAKEN and self._admission.is_first_of_another(hello):
            self._mind_equal_run()
        answer = Answer(
            verdict=verdict,
            agent=config.agent,
            host=config.host,
            instance=self._instance,
            coordinator=self.following,
            number=number,
            port=self.port,
            words=config.identity.words[:_LONGEST_WORDS] if verdict in (Verdict.OTHER_PROGRAM, Verdict.TAKEN) else "",
        )
        return answer, verdict is Verdict.WELCOME and hello.purpose is not Purpose.CALL

    def _mind_equal_run(self) -> None:
        """End a run that has not begun where there is an equal one: their agents would be paired at random."""
        if self._leads and self._state.round < 0 and self._refusal is None:
            self._refuse(RefusalKind.PROBLEM, round_checks.equal_runs(self._config.identity.words))

    def opened(self, session: Session) -> None:
        """An authenticated agent is connected."""
        if self._leads:
            self._sessions[session] = None
        else:
            self._effects.drop(session)  # this agent has resigned meanwhile

    def receive(self, session: Session, message: Any) -> None:
        """An agent has sent a message.

        Raises:
            MessageError: when the message cannot be meant.
        """
        self.changed = self._news = True
        if session not in self._sessions:
            return
        if isinstance(message, Ready):
            self._welcome(session, message)
        elif session.agent is None:
            self._hear_outsider(session, message)
        elif isinstance(message, Bye):
            self._leave(session)
        elif isinstance(message, Accept):
            self._note_accepted(session.agent, message.membership)
        elif isinstance(message, Stop):
            self._stop(message.end)
        elif isinstance(message, (Share, Ask, Notice)):
            self._inform(session, message)
        elif self._running is not None and message.round == self._state.round:
            self._note(self._running, session.agent, message)

    def lost(self, session: Session) -> None:
        """A connection is gone."""
        self.changed = self._news = True
        if session in self._sessions:
            self._lose(session)

    def turn(self) -> float:
        """Do what is due; gives the seconds until something may be due again."""
        if not self._leads:
            return _NEVER
        running = self._running
        if running is not None:
            self._judge(running)
        elif self._proposal is None and self.now >= self._next_look:
            self._next_look = self.now + min(_SOON_SECONDS, _CHECK_SECONDS * self._config.agents)
            self._news = False
            self._consider()
        elif self._proposal is None and self._news:
            return self._next_look - self.now
        calm = running is not None and running.end is None and not running.failures
        return _NEVER if calm or self._final is not None else _SOON_SECONDS

    # ---- finished preparations

    def job_opened(self, job: str, first_attempt: int, run_id: str) -> None:
        """The job directory is chosen."""
        self._preparation.asked.pop("job", None)
        self._next_look = self.now
        if not self._state.job:
            self._state = replace(self._state, job=job, first_attempt=first_attempt, run_id=run_id)

    def store_opened(self, round_number: int, address: str, port: int) -> None:
        """The workers' store of a round is open."""
        self._preparation.asked.pop("store", None)
        self._next_look = self.now
        self._preparation.store = round_number, address, port

    def token_put(self, number: int, name: str) -> None:
        """The token of a membership is there; without a name there is none."""
        self._next_look = self.now
        if self._preparation.asked.pop("token", None) is not None:
            self._preparation.token = number, name

    def preparation_failed(self, error: HpcLaunchError) -> None:
        """What every round needs is not to be had: the run ends for all."""
        self._refuse(RefusalKind.PROBLEM, str(error), error.exit_status)

    # ---- what agents say

    def _hear_outsider(self, session: Session, message: Any) -> None:
        """An agent that has no part in the run, before it is ready or because it was refused, takes leave.

        Raises:
            MessageError: when it says anything else.
        """
        if isinstance(message, Stop) and not session.outside:
            self._stop(message.end)
        elif isinstance(message, (Bye, Stop)):
            self._forget(session)
        else:
            raise MessageError(f"{type(message).__name__} before Ready")

    def _inform(self, session: Session, message: Share | Ask | Notice) -> None:
        """What has nothing to do with rounds."""
        if isinstance(message, Share):
            self._shared_size += len(message.text) - len(self._shared.get(message.name, ""))
            self._shared[message.name] = message.text
            if len(self._shared) > _MOST_SHARED or self._shared_size > _MOST_SHARED_TEXT:
                raise MessageError(f"more is shared than {_MOST_SHARED} names and {_MOST_SHARED_TEXT} characters")
        elif isinstance(message, Ask):
            self._effects.send([session], Told(message.id, self._told(message)))
        else:
            counts = membership.merged([self._state.notices, {message.signal: message.count}])
            self._state = replace(self._state, notices=counts)
            self._broadcast(Notices(counts))

    def _told(self, asked: Ask) -> float | bool | str:
        """The answer to a question."""
        if asked.what is Question.CLOCK:
            return self._effects.time()
        if len(self._counts) + len(self._firsts) > _MOST_SHARED:
            raise MessageError(f"more than {_MOST_SHARED} counters")
        if asked.what is Question.COUNT:
            self._counts[self._state.round, asked.name] += asked.amount
            return self._counts[self._state.round, asked.name]
        if asked.what is Question.FIRST:
            self._firsts[asked.name] += 1
            return self._firsts[asked.name] == 1
        return self._shared.get(asked.name, "")

    def _welcome(self, session: Session, ready: Ready) -> None:
        """An agent is there, or ready for another round."""
        if ready.agent != session.hello.agent:
            raise MessageError(f"agent {session.hello.agent} says that it is agent {ready.agent}")
        self._check_numbers(ready)
        session.outside = self._final is not None or self._refusal is not None
        if self._final is not None:
            self._effects.send([session], Ended(self._state.round, self._final, self._state))
            return
        if self._refusal is not None:
            self._effects.send([session], self._refusal)
            return
        unfit = self._unfit(ready) if self._config.elastic and self._state.round >= 0 else None
        if unfit is not None:
            session.outside = True
            self._effects.send([session], Refused(RefusalKind.ALONE, *unfit))
            return
        if session.agent is None:
            self._admit(session, ready)
        session.agent, session.ready = ready.agent, ready
        self._hosts.setdefault(ready.agent, ready.host)
        self._gone = {*self._gone, *ready.gone} - {ready.agent}
        session.known = ready.known
        if session.known.agreed.number > self._newest.number:
            self._newest = session.known.agreed
        before = self._state.notices
        self._state = messages.merge([self._state, ready.state])
        if self._state.notices != before:
            self._broadcast(Notices(self._state.notices))

    def _admit(self, session: Session, ready: Ready) -> None:
        """An agent has come, perhaps once more."""
        other = self._present.get(ready.agent)
        if other is not None:
            self._lose(other)  # it has come back before its loss was noticed
        self._present[ready.agent] = session
        self._announce(session, ready)

    def _announce(self, session: Session, ready: Ready) -> None:
        """Note an agent that has come during a round, and takes part in the next one."""
        if self._running is None or ready.agent in self._running.start.agents:
            return
        self._effects.observe(events.NODE_BACK, hosts=ready.host, **self._state.where)
        self._effects.say(f"{ready.host} is there, and takes part from the next attempt on")
        self._expect({**self._state.waiting, str(ready.agent): (ready.address, ready.port)})
        # Should this coordinator be lost before the next round, there is nothing else by which it would find them.
        self._effects.send([session], Places(self._running.start.places))

    def _check_numbers(self, ready: Ready) -> None:
        """See that an agent speaks of agents that the run has, and of rounds that it can have had.

        Raises:
            MessageError: when it does not.
        """
        state, known = ready.state, (ready.agreed, *ready.accepted)
        # The agents of a membership are in ascending order.
        named = [agents[-1] for one in known for agents in (one.agents, one.active) if agents]
        named += [*ready.gone, *map(int, (*state.waiting, *state.trouble, *state.drained))]
        if max(named, default=0) >= self._config.agents:
            raise MessageError(f"it speaks of agent {max(named)}: this run has agents 0 to {self._config.agents - 1}")
        if max(state.round, *(one.number for one in known)) > _MOST_ROUNDS:
            raise MessageError(f"it speaks of more than {_MOST_ROUNDS} rounds")

    def _unfit(self, ready: Ready) -> tuple[str, int] | None:
        """Why an agent cannot join a run that has begun, which goes on without it; None if it can."""
        config = self._config
        own = Member(config.agent, config.host, config.workers, config.software)
        return round_checks.refusal([own, _member(ready)])

    def _expect(self, waiting: Mapping[str, tuple[str, int]]) -> None:
        """Let all know which agents wait for the next round, should another one coordinate it."""
        self._state = replace(self._state, waiting=waiting)
        self._broadcast(Waiting(waiting))

    def _note(self, running: _Running, agent: int, message: Begun | Done | Failed | Pong) -> None:
        """Something about the round that runs."""
        if running.end is not None:
            return
        if isinstance(message, Pong):
            running.answered.add(agent)
        if agent not in running.active:
            return
        before = running.all_begun
        running.begun.add(agent)
        if running.all_begun and not before:
            self._broadcast(AllBegun(self._state.round))
        if isinstance(message, Done):
            running.done.add(agent)
            if running.all_done:
                self._end(running, RoundEnd(Ending.DONE.value, agent, self._hosts[agent]))
        elif isinstance(message, Failed):
            self._note_failure(running, agent, message)

    def _note_failure(self, running: _Running, agent: int, message: Failed) -> None:
        """Workers of an agent have failed: at once the end, or once it is known that no node was lost."""
        if not running.failures and self._config.elastic:
            self._broadcast(Ping())
        if not running.failures:
            running.failed = self.now
        running.failures.setdefault(agent, message)
        if not self._config.elastic:
            self._fail(running)

    def _stop(self, end: RoundEnd) -> None:
        """An agent leaves for good, and takes the run with it."""
        if self._final is not None:
            return
        if self._running is not None and self._running.end is None:
            self._running.end = end
        self._final = end
        self._broadcast(Ended(self._state.round, end, self._state))

    # ---- rounds

    def _judge(self, running: _Running) -> None:
        """Decide about a failure, and go on when all agents with workers have stopped them."""
        if running.end is None and running.failures:
            active = running.active
            silent = active - running.answered
            settled = self.now - running.failed >= node_blame.settle_seconds(running.failed - running.since)
            # An agent that does not answer is waited for (`_awaited`): it may be busy with files.
            if not silent and (settled or running.failures.keys() == active):
                self._fail(running)
        elif running.end is not None and running.end.ending == Ending.RESTART.value:
            self._running, self._since, self._pace = None, self.now, Pace(_FIRST_PAUSE, _LONGEST_PAUSE, self.now)

    def _fail(self, running: _Running) -> None:
        agent, failed = min(running.failures.items(), key=lambda item: not item[1].own)
        again = self._state.spent < self._config.max_restarts
        if self._config.elastic:
            self._hold_against(running, running.failures, again=again)
        self._state = replace(self._state, spent=self._state.spent + again)
        ending = Ending.RESTART if again else Ending.FAILED
        position = list(running.start.active).index(agent)
        self._end(
            running, RoundEnd(ending.value, position, self._hosts[agent], failed.status, failed.cause, hang=failed.hang)
        )

    def _hold_against(self, running: _Running, failures: Mapping[int, Failed], *, again: bool) -> None:
        """Note what failures say of nodes."""
        before = self._state.drained
        self._state = node_blame.noted(self._state, failures)
        for bad in self._state.drained.keys() - before.keys():
            self._tell_drained(int(bad), running, again=again)

    def _tell_drained(self, agent: int, running: _Running, *, again: bool) -> None:
        """Name a node that has proved bad: once, as all hear of it with the end of the round."""
        host, why = self._hosts[agent], self._state.drained[str(agent)]
        stays = agent in self._active(running.start.agents)
        self._effects.observe(events.NODE_DRAINED, hosts=host, why=why, stays=stays, **self._state.where)
        if again:
            what = "stays, as there is no spare" if stays else "goes behind the spares"
            self._effects.say(f"{host} {why}: it {what}; leave it out of the next job with --exclude={host}")

    def _end(self, running: _Running, end: RoundEnd) -> None:
        running.end = end
        if end.ending != Ending.RESTART.value:
            self._final = end
        self._broadcast(Ended(self._state.round, end, self._state))

    def _lose(self, session: Session, why: str = GONE) -> None:
        """An agent is gone."""
        agent = session.agent
        self._forget(session)
        if agent is not None and session.closed:
            self._gone.add(agent)
        if agent is None or not self._leads:
            return
        self._tell_lost(agent)
        if self._proposal is not None and agent in self._proposal.agents:
            self._proposal = None
        running = self._running
        if not self._config.elastic:
            self._lose_of_fixed(agent, why)
        elif running is not None and str(agent) in self._state.waiting:
            self._expect({one: place for one, place in self._state.waiting.items() if one != str(agent)})
        elif running is not None and running.end is None and agent in running.active:
            host = self._hosts[agent]
            cause = f"lost the agent on {host}: {why}"
            # Workers fail because a node is lost, but no device breaks for it.
            self._hold_against(running, {one: said for one, said in running.failures.items() if said.fault}, again=True)
            self._end(
                running,
                RoundEnd(Ending.RESTART.value, -1, self._config.host, RendezvousError.exit_status, cause, lost=host),
            )

    def _lose_of_fixed(self, agent: int, why: str) -> None:
        """The loss of an agent ends a run of fixed size: another attempt would wait for that agent in vain."""
        running, host = self._running, self._hosts[agent]
        cause = f"lost the agent on {host}: {why}"
        if self._final is not None or self._refusal is not None:
            return
        if running is not None and running.end is None:
            self._end(
                running,
                RoundEnd(
                    Ending.FAILED.value, self._config.agent, self._config.host, RendezvousError.exit_status, cause
                ),
            )
        else:
            self._refuse(RefusalKind.LOST, cause)

    def _tell_lost(self, agent: int) -> None:
        """Record that a node was lost, unless the run is over; say it where the loss ends no attempt."""
        running, host = self._running, self._hosts[agent]
        if self._final is not None or self._refusal is not None:
            return
        self._effects.observe(events.NODE_LOST, hosts=host, **self._state.where)
        if running is not None and running.end is None and agent not in running.active:
            self._effects.say(f"lost {host}, which has no workers: its agent was killed, or the node is gone")

    def _leave(self, session: Session) -> None:
        """An agent takes leave; while the round goes on that is a loss like any other."""
        if self._running is not None and self._running.end is None:
            self._lose(session)
        else:
            self._forget(session)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session, None)
        if session.agent is not None and self._present.get(session.agent) is session:
            del self._present[session.agent]
        self._effects.drop(session)

    # ---- memberships

    def _consider(self) -> None:
        """Propose a membership if the agents that are there may form one, and no other need be waited for."""
        if self._final is not None or self._refusal is not None:
            return
        members = {one.agent: one for one in self._sessions if one.agent is not None}
        ready = {agent: one.known for agent, one in members.items() if one.ready is not None}
        busy = members.keys() - ready.keys()
        if busy:
            self._last_busy = self.now
        here = Gathering(
            ready,
            busy,
            self._newest,
            newcomers={*map(int, self._state.waiting)},
            gone=self._gone if self._config.elastic else frozenset(),
            taken=self._effects.taken,
            refused=self._effects.refused_halves,
            waited=self.now - self._since,
            idle=self.now - max(self._since, self._last_busy),
            first=self._state.round < 0,
        )
        move = join_policy.decide(here, self._terms)
        if move is Move.PROPOSE:
            self._propose(ready)
        elif move is Move.TAKE:
            self._effects.take_tokens(self._directory.memberships, membership.halves(ready))
        elif move is Move.GIVE_UP:
            self._give_up(here)
        elif ready and self._pace.due(self.now):
            self._tell_missing(here)

    def _tell_missing(self, here: Gathering) -> None:
        joined, (missing, names) = len(here.ready), self._missing(here)
        about = {"joined": joined, "expected": self._config.agents, "waited": round(here.waited, 1)}
        if names:
            self._effects.observe(events.NODE_MISSING, hosts=hostlist.display(missing), **about)
            other = self._admission.others
            self._effects.say(
                f"waiting for {names} ({joined}/{self._config.agents} joined, {here.waited:.0f} s){other}"
            )

    def _missing(self, here: Gathering) -> tuple[tuple[str, ...], str]:
        """The nodes with agents that are missing, and words for them."""
        config = self._config
        if config.agents_per_host is not None:
            missing = tuple(self._hosts[agent] for agent in sorted(here.missing))
            return missing, hostlist.display(missing)
        joined = [self._hosts[agent] for agent in here.ready]
        missing = round_checks.missing_hosts(config.hosts, (1,) * len(config.hosts), joined)
        return missing, hostlist.display(missing) or f"{config.agents - len(here.ready)} tasks"

    def _give_up(self, here: Gathering) -> None:
        config = self._config
        if not config.elastic:
            missing, names = self._missing(here)
            about = {"joined": len(here.ready), "expected": config.agents, "waited": round(here.waited, 1)}
            self._effects.observe(events.NODE_MISSING, hosts=hostlist.display(missing), **about)
            why = (
                f"{names} did not join in {config.join_timeout:.0f} s ({len(here.ready)}/{config.agents} joined): look "
                "at the node's own output, exclude it, or wait longer with --join-timeout"
            )
            self._refuse(RefusalKind.MISSING, why + self._admission.others, missing=missing)
            return
        why = join_policy.why_not(here, self._terms, self._hosts_of, self._directory.memberships)
        # An agent that cannot know whether others train must not have the job run again.
        again = not here.first and membership.may_form(here.ready, here.taken)
        more = self._admission.others if here.first else ""
        self._refuse(RefusalKind.LOST if again else RefusalKind.PROBLEM, why + more)

    def _refuse(
        self,
        kind: RefusalKind,
        why: str,
        status: int = RendezvousError.exit_status,
        missing: Sequence[str] = (),
    ) -> None:
        """The run ends for all, here and for those that come later."""
        self._refusal = Refused(kind, messages.line(why), status, tuple(missing))
        self._broadcast(self._refusal)

    def _propose(self, ready: Mapping[int, Knowledge]) -> None:
        proposal = membership.propose(ready)
        if not self._prepared(ready, proposal.number):
            return
        token = self._preparation.token[1] if self._preparation.token is not None else ""
        proposal = self._proposal = replace(proposal, token=token, active=self._active(proposal.agents))
        self._preparation.token = None
        self._undecided = {*proposal.agents}
        self._tell(proposal.agents, Propose(proposal))

    def _prepared(self, ready: Mapping[int, Knowledge], number: int) -> bool:
        """Whether all is there that the next round needs; asks for what is not."""
        preparation, round_number = self._preparation, self._state.round + 1
        if round_number == 0 and preparation.members != ready.keys():
            if self._refuse_differences(ready):
                return False
            preparation.members = frozenset(ready)
        if not self._state.job and self._ask_for("job"):
            self._effects.open_job()
        if preparation.store is None or preparation.store[0] != round_number:
            preparation.store = None
            if self._ask_for("store"):
                self._effects.open_store(round_number)
        if self._config.elastic and self._state.job and not self._has_token(number) and self._ask_for("token"):
            self._effects.put_token(self._directory.memberships, number)
        waits = [since for what, since in preparation.asked.items() if self.now - since > _PREPARATION_SECONDS]
        if waits and not preparation.warned:
            preparation.warned = True
            what = "the log directory" if {"job", "token"} & preparation.asked.keys() else "the workers' store"
            self._effects.say(f"waiting for {what} on {self._config.host}: the round begins when it answers")
        return not preparation.asked

    def _ask_for(self, what: str) -> bool:
        """Whether something is to be asked for now."""
        if what in self._preparation.asked:
            return False
        self._preparation.asked[what] = self.now
        return True

    def _has_token(self, number: int) -> bool:
        """Whether there is a token for this proposal, or none is waited for any more."""
        preparation = self._preparation
        since = preparation.asked.get("token")
        if since is not None and self.now - since > _TOKEN_SECONDS:
            del preparation.asked["token"]
            preparation.token = number, ""
        return preparation.token is not None and preparation.token[0] == number

    @property
    def _directory(self) -> JobDirectory:
        return JobDirectory(self._config.job.root, self._state.job)

    def _note_accepted(self, agent: int, accepted: Membership) -> None:
        proposal = self._proposal
        if proposal is None or agent not in self._undecided or accepted != proposal:
            return
        self._undecided.discard(agent)
        if not self._undecided:
            self._proposal = None
            self._begin(proposal)

    def _begin(self, agreed: Membership) -> None:
        """All have accepted: the round begins."""
        members = {*agreed.agents}
        sessions = {one.agent: one for one in self._sessions if one.agent in members}
        ready = {agent: one.ready for agent, one in sessions.items() if one.ready is not None}
        active, store = agreed.active, self._preparation.store
        if store is None or ready.keys() < members:
            return  # an agent has left since: those that are there agree once more
        # An agent that does not hear of this agreement may need the tokens before it.
        needed = membership.oldest_in_question(one.known for one in ready.values())
        if self._config.elastic:
            self._effects.remove_tokens(self._directory.memberships, before=needed)
        workers = tuple(ready[agent].workers for agent in active)
        self._state = replace(self._state, round=self._state.round + 1, waiting={})
        self._preparation = _Preparation()
        start = Start(
            membership=agreed,
            hosts=tuple(self._hosts[agent] for agent in active),
            coordinator=self._config.agent,
            plan=RoundPlan(
                master_addr=store[1],
                master_port=store[2],
                workers=workers,
                job=self._state.job,
                first_attempt=self._state.first_attempt,
                run_id=self._state.run_id,
            ),
            state=self._state,
            places={str(agent): sessions[agent].place for agent in agreed.agents},
        )
        self._running = _Running(start, self.now)
        if self._config.elastic:
            self._effects.observe(
                events.NODES,
                hosts=self._hosts_of(active),
                spares=self._hosts_of(members - {*active}),
                lost=self._hosts_of({*self._newest.agents} - members) if self._state.round else "",
                leader=self._config.host,
                **self._state.where,
            )
        if self._state.round == 0:
            self._note_mix(sessions.values())
        for session in sessions.values():
            session.rest()
        # What other agents of a fixed size do not need is not sent: it would grow with the number of nodes.
        short = start if self._config.elastic else replace(start, hosts=(), places={})
        own = self._config.agent
        self._tell([own], start)
        self._tell([agent for agent in agreed.agents if agent != own], short)
        for session in [*self._sessions]:
            if session.ready is not None:
                self._announce(session, session.ready)  # it has come after the proposal

    def _note_mix(self, sessions: Iterable[Session]) -> None:
        """Say that an id of the user's own has joined different commands, which may not be meant."""
        identity = self._config.identity
        others = [one.hello for one in sessions if one.hello.words not in ("", identity.words[:_LONGEST_WORDS])]
        if identity.explicit and others:
            one = others[0]
            self._effects.say(f"note: {one.host} runs another command ({one.words}), by the same --rdzv-id")

    def _hosts_of(self, agents: Iterable[int]) -> str:
        return hostlist.display([self._hosts[agent] for agent in sorted(agents)])

    def _active(self, agents: Sequence[int]) -> tuple[int, ...]:
        """The agents of these that have workers."""
        most = self._config.agents - self._config.spares
        return membership.active(agents, most, [*map(int, self._state.drained)])

    def _members(self, agents: Iterable[int]) -> list[Ready]:
        wanted = {*agents}
        found = [one.ready for one in self._sessions if one.ready is not None and one.agent in wanted]
        return sorted(found, key=lambda ready: ready.agent)

    def _refuse_differences(self, ready: Mapping[int, Knowledge]) -> bool:
        """Refuse all where one has a problem, or they do not fit together; whether that was so."""
        refused = round_checks.refusal([_member(one) for one in self._members(ready)])
        if refused is not None:
            self._refuse(RefusalKind.PROBLEM, *refused)
        return refused is not None

    # ---- others

    def _callers(self) -> frozenset[int]:
        return frozenset(one.agent for one in self._sessions if one.agent is not None)

    def _awaited(self) -> Mapping[int, tuple[str, int]]:
        """Other agents that all wait for, as their word is due, and where they listen."""
        if not self._leads or not self._config.elastic:
            return {}
        members = {one.agent: one for one in self._sessions if one.agent is not None}
        running = self._running
        due: AbstractSet[int]
        if self._proposal is not None:
            due = self._undecided
        elif running is None:
            due = {agent for agent, one in members.items() if one.ready is None}
        elif running.end is not None:
            due = set()
        elif running.failures:
            due = running.active - running.answered
        else:
            # Their workers are to start; and when those of one node have ended, those of the others are about to.
            due = running.active - (running.done or running.begun)
        return {agent: members[agent].place for agent in due & members.keys() if agent != self._config.agent}

    def _broadcast(self, message: Any) -> None:
        self._effects.send([one for one in self._sessions if one.agent is not None], message)

    def _tell(self, agents: Iterable[int], message: Any) -> None:
        wanted = {*agents}
        self._effects.send([one for one in self._sessions if one.agent in wanted], message)


_LONGEST_WORDS = 200
# Names that agents share, and their texts: stacks of each agent in an attempt that hangs are the most.
_MOST_SHARED, _MOST_SHARED_TEXT = 1 << 18, 1 << 28
# More rounds than a run can have; messages may speak of some more, so that there is room to count on.
_MOST_ROUNDS = 1 << 29


def _member(ready: Ready) -> Member:
    return Member(ready.agent, ready.host, ready.workers, ready.software, ready.problem, ready.status)
