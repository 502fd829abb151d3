"""The rounds of a run, which its coordinator forms, begins and ends one after another. Pure.

A round that is being formed is a `RoundFormation`, one that has begun a `RunningRound`. What follows for memberships
is decided by `membership` and `join_policy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set as AbstractSet
from dataclasses import replace
from typing import Any

from hpc_launch.errors import HpcLaunchError, RendezvousError
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous import join_policy, membership, messages, node_blame, round_checks
from hpc_launch.rendezvous.admission import Admission
from hpc_launch.rendezvous.coordinator_interface import Effects
from hpc_launch.rendezvous.join_policy import JoinDecision, JoiningAgents, JoinTerms
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import (
    AllBegun,
    Begun,
    Done,
    Ended,
    Failed,
    Notices,
    Ping,
    Places,
    Pong,
    Propose,
    Ready,
    RefusalKind,
    Refused,
    RoundEnd,
    RoundEnding,
    RoundPlan,
    RunState,
    Start,
    Waiting,
)
from hpc_launch.rendezvous.node_reports import NodeReports
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.round_checks import Member
from hpc_launch.rendezvous.round_formation import RoundFormation
from hpc_launch.rendezvous.running_round import RunningRound
from hpc_launch.rendezvous.sessions import AgentSession, AgentSessions

# Why an agent is lost, mostly and otherwise.
GONE = "it was killed, or its node is gone"
SILENT = "it does not answer, though its node does"

# How often the coordinator checks whether a round can begin or a failure is settled. Otherwise it waits for messages.
_SOON_SECONDS = 0.02
NEVER = 3600.0
# A message leads to a check at once, but not sooner than so long after the last one, for each agent of the run: a check
# goes over all agents.
_CHECK_SECONDS = 20e-6


class Rounds:
    """The rounds of a run, and how it ends.

    Args:
        config: what this agent brings along.
        sessions: of the agents that are connected.
        admission: knows which agents were turned away.
        effects: has done what follows.

    Attributes:
        now: the time of this call, in seconds; the coordinator sets it.
        news: an agent has said something since the last check whether a round can begin.
        state: of the run.
    """

    def __init__(
        self, config: RendezvousConfig, sessions: AgentSessions, admission: Admission, effects: Effects
    ) -> None:
        self.now = 0.0
        self.news = False
        self.state = RunState()
        self._config, self._sessions, self._admission, self._effects = config, sessions, admission, effects
        self._terms = JoinTerms(config.minimum, config.join_timeout, config.node_timeout, fixed=not config.elastic)
        self._reports = NodeReports(config, sessions, effects)
        self._formation = RoundFormation(self.now)
        self._running: RunningRound | None = None
        self._final: RoundEnd | None = None
        self._refusal: Refused | None = None
        self._next_check = 0.0

    # ---- what the coordinator asks

    @property
    def running(self) -> RunningRound | None:
        """The round that has begun, until its agents have stopped their workers; None while one is formed."""
        return self._running

    @property
    def ended(self) -> bool:
        """Whether the run has ended, after a round has begun."""
        return self._running is not None and self._final is not None

    @property
    def due(self) -> AbstractSet[int]:
        """The agents that all wait for, as their word is due."""
        if self._formation.proposal is not None:
            return self._formation.undecided
        return self._sessions.busy if self._running is None else self._running.due

    @property
    def _over(self) -> bool:
        """Whether the run has ended, or no round could begin."""
        return self._final is not None or self._refusal is not None

    @property
    def directory(self) -> JobDirectory:
        """The job directory."""
        return JobDirectory(self._config.job.root, self.state.job)

    def restart(self) -> None:
        """Form a round anew: this agent begins to coordinate, or coordinates no more."""
        self._running, self._formation = None, RoundFormation(self.now)

    def turn(self) -> float:
        """Do what is due; gives the seconds until something may be due again."""
        running, proposed = self._running, self._formation.proposal is not None
        if running is not None:
            self._check_round(running)
        elif not proposed and self.now >= self._next_check:
            self._next_check = self.now + min(_SOON_SECONDS, _CHECK_SECONDS * self._config.agents)
            self.news = False
            self._form()
        elif not proposed and self.news:
            return self._next_check - self.now
        calm = running is not None and running.calm
        return NEVER if calm or self._final is not None else _SOON_SECONDS

    def note_notices(self, counts: Mapping[str, int]) -> None:
        """Notice signals have come to an agent so often."""
        merged = membership.merged([self.state.notices, counts])
        self.state = replace(self.state, notices=merged)
        self._broadcast(Notices(merged))

    # ---- agents come

    def on_ready(self, session: AgentSession, ready: Ready) -> None:
        """An agent is there, or ready for another round."""
        session.outside = self._over
        if self._final is not None:
            self._effects.send([session], Ended(self.state.round, self._final, self.state))
            return
        if self._refusal is not None:
            self._effects.send([session], self._refusal)
            return
        unfit = self._unfit(ready) if self._config.elastic and self.state.round >= 0 else None
        if unfit is not None:
            session.outside = True
            self._effects.send([session], Refused(RefusalKind.ALONE, *unfit))
            return
        if session.agent is None:
            for other in self._sessions.of([ready.agent]):
                self.lose(other)  # it has come back before its loss was noticed
            self._announce(session, ready)
        self._sessions.note_ready(session, ready)
        before = self.state.notices
        self.state = messages.merge([self.state, ready.state])
        if self.state.notices != before:
            self._broadcast(Notices(self.state.notices))

    def _announce(self, session: AgentSession, ready: Ready) -> None:
        """Note an agent that has come during a round, and takes part in the next one."""
        if self._running is None or ready.agent in self._running.start.agents:
            return
        self._reports.late(ready.host, self.state)
        self._expect({**self.state.waiting, str(ready.agent): (ready.address, ready.port)})
        # Should this coordinator be lost before the next round, there is nothing else by which it would find them.
        self._effects.send([session], Places(self._running.start.places))

    def _unfit(self, ready: Ready) -> tuple[str, int] | None:
        """Why an agent cannot join a run that has begun, which goes on without it; None if it can."""
        config = self._config
        own = Member(config.agent, config.host, config.workers, config.software)
        return round_checks.refusal([own, _member(ready)])

    def _expect(self, waiting: Mapping[str, tuple[str, int]]) -> None:
        """Let all know which agents wait for the next round, should another one coordinate it."""
        self.state = replace(self.state, waiting=waiting)
        self._broadcast(Waiting(waiting))

    # ---- finished preparations

    def job_opened(self, job: str, first_attempt: int, run_id: str) -> None:
        """The job directory is chosen."""
        self._next_check = self.now
        self._formation.preparation.job_opened()
        if not self.state.job:
            self.state = replace(self.state, job=job, first_attempt=first_attempt, run_id=run_id)

    def store_opened(self, round_number: int, address: str, port: int) -> None:
        """The workers' store of a round is open."""
        self._next_check = self.now
        self._formation.preparation.store_opened(round_number, address, port)

    def token_put(self, number: int, name: str) -> None:
        """The token of a membership is there; without a name there is none."""
        self._next_check = self.now
        self._formation.preparation.token_put(number, name)

    def preparation_failed(self, error: HpcLaunchError) -> None:
        """What every round needs is not to be had: the run ends for all."""
        self._refuse(RefusalKind.PROBLEM, str(error), error.exit_status)

    # ---- a round is formed

    def _form(self) -> None:
        """Propose a membership if the agents that are there may form one, and no other need be waited for."""
        if self._over:
            return
        here = self._gathering()
        move = join_policy.decide_join(here, self._terms)
        if move is JoinDecision.PROPOSE:
            self._propose(here)
        elif move is JoinDecision.TAKE:
            self._effects.take_tokens(self.directory.memberships, membership.halves(here.ready))
        elif move is JoinDecision.GIVE_UP:
            self._give_up_waiting(here)
        elif here.ready and self._formation.pace.due(self.now):
            self._reports.missing(here, self._admission.others)

    def _gathering(self) -> JoiningAgents:
        """Who has come, for the join policy."""
        busy, sessions = self._sessions.busy, self._sessions
        return JoiningAgents(
            {agent: sessions.members[agent].known for agent in sessions.ready},
            busy,
            sessions.newest,
            newcomers={*map(int, self.state.waiting)},
            gone=sessions.gone if self._config.elastic else frozenset(),
            taken=self._effects.taken,
            refused=self._effects.refused_halves,
            waited=self.now - self._formation.since,
            idle=self._formation.idle(self.now, busy=bool(busy)),
            first=self.state.round < 0,
        )

    def _give_up_waiting(self, here: JoiningAgents) -> None:
        """Refuse all that are there: the others did not come, and no round can begin without them."""
        if not self._config.elastic:
            missing, why = self._reports.too_late(here)
            self._refuse(RefusalKind.MISSING, why + self._admission.others, missing=missing)
            return
        why = join_policy.why_not_begun(here, self._terms, self._sessions.names, self.directory.memberships)
        # An agent that cannot know whether others train must not have the job run again.
        again = not here.first and membership.may_form(here.ready, here.taken)
        more = self._admission.others if here.first else ""
        self._refuse(RefusalKind.LOST if again else RefusalKind.PROBLEM, why + more)

    def refuse_equal_run(self) -> None:
        """End a run that has not begun where there is an equal one: their agents would be paired at random."""
        if self.state.round < 0 and self._refusal is None:
            self._refuse(RefusalKind.PROBLEM, round_checks.equal_runs(self._config.identity.words))

    def _refuse(
        self,
        kind: RefusalKind,
        why: str,
        status: int = RendezvousError.exit_status,
        missing: Sequence[str] = (),
    ) -> None:
        """The run ends for all, here and for those that come later."""
        self._formation.cancel()
        self._refusal = Refused(kind, messages.one_line(why), status, tuple(missing))
        self._broadcast(self._refusal)

    def _propose(self, here: JoiningAgents) -> None:
        """Ask the agents that are there to accept a membership, once all is prepared that its round needs."""
        proposal = membership.propose(here.ready)
        if not self._is_prepared(proposal.number):
            return
        token = self._formation.preparation.take_token()
        proposal = replace(proposal, token=token, active=self._active(proposal.agents))
        self._formation.propose(proposal)
        self._tell(proposal.agents, Propose(proposal))

    def _is_prepared(self, number: int) -> bool:
        """Whether all is there that the next round needs; asks for what is not.

        Args:
            number: of the membership that is to be proposed.
        """
        preparation, round_number, ready = self._formation.preparation, self.state.round + 1, self._sessions.ready
        if round_number == 0 and preparation.checked != ready.keys():
            if self._refuse_differences(ready):
                return False
            preparation.checked = frozenset(ready)
        if not self.state.job and preparation.needs_job(self.now):
            self._effects.open_job()
        if preparation.needs_store(round_number, self.now):
            self._effects.open_store(round_number)
        if self._config.elastic and self.state.job and preparation.needs_token(number, self.now):
            self._effects.put_token(self.directory.memberships, number)
        overdue = preparation.overdue(self.now)
        if overdue:
            self._effects.say(f"waiting for {overdue} on {self._config.host}: the round begins when it answers")
        return not preparation.asked

    def _refuse_differences(self, ready: Mapping[int, Ready]) -> bool:
        """Refuse all where one has a problem, or they do not fit together; whether that was so."""
        refused = round_checks.refusal([_member(ready[agent]) for agent in sorted(ready)])
        if refused is not None:
            self._refuse(RefusalKind.PROBLEM, *refused)
        return refused is not None

    def _active(self, agents: Sequence[int]) -> tuple[int, ...]:
        """The agents of these that have workers."""
        most = self._config.agents - self._config.spares
        return membership.active(agents, most, [*map(int, self.state.drained)])

    def on_accept(self, agent: int, accepted: Membership) -> None:
        """An agent has accepted a membership; with the last one the round begins."""
        agreed = self._formation.accept(agent, accepted)
        if agreed is not None:
            self._begin(agreed)

    def _begin(self, agreed: Membership) -> None:
        """All have accepted: the round begins."""
        sessions, store = self._sessions.of(agreed.agents), self._formation.preparation.store
        ready = {one.ready.agent: one.ready for one in sessions if one.ready is not None}
        if store is None or len(ready) < len(agreed.agents):
            return  # an agent has left since: those that are there agree once more
        if self._config.elastic:
            # An agent that does not hear of this agreement may need the tokens before it.
            needed = membership.oldest_in_question(one.known for one in ready.values())
            self._effects.remove_tokens(self.directory.memberships, before=needed)
        self.state = replace(self.state, round=self.state.round + 1, waiting={})
        start = Start(
            membership=agreed,
            hosts=tuple(self._sessions.hosts[agent] for agent in agreed.active),
            coordinator=self._config.agent,
            plan=RoundPlan(
                master_addr=store[1],
                master_port=store[2],
                workers=tuple(ready[agent].workers for agent in agreed.active),
                job=self.state.job,
                first_attempt=self.state.first_attempt,
                run_id=self.state.run_id,
            ),
            state=self.state,
            places={str(agent): self._sessions.members[agent].place for agent in agreed.agents},
        )
        self._running, self._formation = RunningRound(start, self.now), RoundFormation(self.now)
        if self._config.elastic:
            self._reports.round_begun(start, self._sessions.newest.agents)
        if self.state.round == 0:
            self._reports.other_commands(one.hello for one in sessions)
        for session in sessions:
            session.rest()
        self._tell_start(start)
        for session in self._sessions:
            if session.ready is not None:
                self._announce(session, session.ready)  # it has come after the proposal

    def _tell_start(self, start: Start) -> None:
        """Tell all agents of a round that it begins, its own agent first."""
        # What other agents of a fixed size do not need is not sent: it would grow with the number of nodes.
        short = start if self._config.elastic else replace(start, hosts=(), places={})
        own = self._config.agent
        self._tell([own], start)
        self._tell([agent for agent in start.agents if agent != own], short)

    # ---- a round goes on, and ends

    def on_round_message(self, agent: int, message: Begun | Done | Failed | Pong) -> None:
        """A message has come about the round that runs; one about another round comes too late."""
        running = self._running
        if running is None or running.end is not None or message.round != self.state.round:
            return
        if isinstance(message, Pong):
            running.answered.add(agent)
        if agent not in running.active:
            return
        if running.note_begun(agent):
            self._broadcast(AllBegun(self.state.round))
        if isinstance(message, Done):
            if running.note_done(agent):
                self._end(running, RoundEnd(RoundEnding.DONE.value, agent, self._sessions.hosts[agent]))
        elif isinstance(message, Failed):
            self._on_failure(running, agent, message)

    def _on_failure(self, running: RunningRound, agent: int, failed: Failed) -> None:
        """Workers of an agent have failed: at once the end, or once it is known that no node was lost."""
        if not running.failures and self._config.elastic:
            self._broadcast(Ping())
        running.note_failure(agent, failed, self.now)
        if not self._config.elastic:
            self._fail(running)

    def _check_round(self, running: RunningRound) -> None:
        """Decide about a failure, and go on when all agents with workers have stopped them."""
        if running.failure_counts(self.now):
            self._fail(running)
        elif running.over:
            self._running, self._formation = None, RoundFormation(self.now)

    def _fail(self, running: RunningRound) -> None:
        """End a round by its failures; another one follows while restarts are left."""
        again = self.state.spent < self._config.max_restarts
        if self._config.elastic:
            self._blame_nodes(running, running.failures, again=again)
        self.state = replace(self.state, spent=self.state.spent + again)
        self._end(running, running.end_by_first_failure(self._sessions.hosts, again=again))

    def _blame_nodes(self, running: RunningRound, failures: Mapping[int, Failed], *, again: bool) -> None:
        """Note what failures say of nodes."""
        before = self.state.drained
        self.state = node_blame.noted(self.state, failures)
        bad = self.state.drained.keys() - before.keys()
        self._reports.drained(bad, self.state, self._active(running.start.agents), again=again)

    def stop(self, end: RoundEnd) -> None:
        """An agent leaves for good, and takes the run with it."""
        if self._final is not None:
            return
        if self._running is not None and self._running.end is None:
            self._running.end = end
        self._final = end
        self._broadcast(Ended(self.state.round, end, self.state))

    def _end(self, running: RunningRound, end: RoundEnd) -> None:
        running.end = end
        if end.ending != RoundEnding.RESTART.value:
            self._final = end
        self._broadcast(Ended(self.state.round, end, self.state))

    # ---- agents leave, or are lost

    def leave(self, session: AgentSession) -> None:
        """An agent takes leave; while the round goes on that is a loss like any other."""
        if self._running is not None and self._running.end is None:
            self.lose(session)
        else:
            self.forget(session)

    def forget(self, session: AgentSession) -> None:
        """Close a session."""
        self._sessions.forget(session)
        self._effects.drop(session)

    def lose(self, session: AgentSession, why: str = GONE) -> None:
        """An agent is gone."""
        agent = session.agent
        self.forget(session)
        if agent is None:
            return
        if session.closed:
            self._sessions.note_gone({agent})
        running = self._running
        goes_on = running is not None and running.end is None
        if not self._over:
            spare = running is not None and goes_on and agent not in running.active
            self._reports.lost(agent, self.state, spare=spare)
        self._formation.withdraw(agent)
        cause = f"lost the agent on {self._sessions.hosts[agent]}: {why}"
        if not self._config.elastic:
            self._lose_of_fixed(cause)
        elif running is not None and str(agent) in self.state.waiting:
            self._expect({one: place for one, place in self.state.waiting.items() if one != str(agent)})
        elif running is not None and goes_on and agent in running.active:
            # Workers fail because a node is lost, but no device breaks for it.
            broken = {one: said for one, said in running.failures.items() if said.fault}
            self._blame_nodes(running, broken, again=True)
            lost, status = self._sessions.hosts[agent], RendezvousError.exit_status
            self._end(running, RoundEnd(RoundEnding.RESTART.value, -1, self._config.host, status, cause, lost=lost))

    def _lose_of_fixed(self, cause: str) -> None:
        """The loss of an agent ends a run of fixed size: another attempt would wait for that agent in vain."""
        config, running = self._config, self._running
        if self._over:
            return
        if running is not None and running.end is None:
            status = RendezvousError.exit_status
            self._end(running, RoundEnd(RoundEnding.FAILED.value, config.agent, config.host, status, cause))
        else:
            self._refuse(RefusalKind.LOST, cause)

    # ---- messages

    def _broadcast(self, message: Any) -> None:
        """Send a message to all agents."""
        self._effects.send([*self._sessions.members.values()], message)

    def _tell(self, agents: Iterable[int], message: Any) -> None:
        self._effects.send(self._sessions.of(agents), message)


def _member(ready: Ready) -> Member:
    return Member(ready.agent, ready.host, ready.workers, ready.software, ready.problem, ready.status)
