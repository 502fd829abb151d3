"""The coordinator of a run: it agrees with all agents on who takes part, and begins and ends rounds. Pure.

It knows no sockets, files, threads or clocks: messages, lost connections, finished preparations and the time come in as
calls, and what follows goes out through `Effects`, none of which waits. Here is who is let in, and what each message is
for; what follows for rounds is decided by `Rounds`. A round costs six messages for each agent (ready, propose, accept,
start, and that workers have begun, from it and from all), and nothing is sent while workers run.

One coordinator serves both kinds of run. In an elastic run the loss of an agent ends a round, and the others go on. In
a run of fixed size it ends the run, and a failure counts at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Set as AbstractSet
from pathlib import Path
from typing import Any

from hpc_launch.rendezvous import admission
from hpc_launch.rendezvous.admission import Admission
from hpc_launch.rendezvous.coordinator_interface import CoordinatorView, Effects
from hpc_launch.rendezvous.messages import (
    Accept,
    Answer,
    Ask,
    Bye,
    Hello,
    Notice,
    Purpose,
    Question,
    Ready,
    Share,
    Stop,
    Told,
    Verdict,
    shown_words,
)
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.rounds import NEVER, SILENT, Rounds
from hpc_launch.rendezvous.sessions import AgentSession, AgentSessions
from hpc_launch.rendezvous.shared_values import SharedValues
from hpc_launch.rendezvous.transport.peer_faults import MessageError


class Coordinator:
    """Agrees with agents, if it is asked to; every agent of an elastic run has one.

    Args:
        config: what this agent brings along.
        instance: tells this process from another one with the same number.
        effects: has done what follows.

    Attributes:
        rounds: of the run; finished preparations are told to it.
        port: where this agent listens.
        following: the agent that this one is with; -1 while it looks for one.
        changed: something happened since the last copy for other threads.
        generation: of preparations; what was asked for in an earlier one does not count.
    """

    def __init__(self, config: RendezvousConfig, instance: str, effects: Effects) -> None:
        self.port = 0
        self.following = -1
        self.changed = True
        self.generation = 0
        self._config, self._instance, self._effects = config, instance, effects
        self._leads = self._sought = self._has_equal = False
        self._admission = Admission(config, instance)
        # With several tasks on a node only the agents say where they are.
        self._sessions = AgentSessions(dict(enumerate(config.hosts)) if config.agents_per_host is not None else {})
        self._shared = SharedValues()
        self.rounds = Rounds(config, self._sessions, self._admission, effects)

    @property
    def now(self) -> float:
        """The time of this call, in seconds; it stands still while the process is stopped."""
        return self.rounds.now

    @now.setter
    def now(self, now: float) -> None:
        self.rounds.now = now

    # ---- its own agent

    def lead(self, own: AgentSession) -> None:
        """Begin to coordinate.

        Args:
            own: the session of this process's own agent.
        """
        self._leads = True
        self.rounds.restart()
        self._sessions.open(own)
        if self._has_equal:
            self.rounds.refuse_equal_run()

    def resign(self) -> None:
        """Coordinate no more: all agents look for another one."""
        self.generation += 1
        self._leads = False
        self.rounds.restart()
        for session in self._sessions:
            self.rounds.forget(session)

    def miss(self, agents: AbstractSet[int]) -> None:
        """Wait no more for agents that do not listen any more."""
        self._sessions.note_gone(agents)

    def give_up(self, agent: int) -> None:
        """Lose an agent that is awaited and does not answer, though its node does."""
        if self.rounds.running is None and agent in self._sessions.hosts:
            self._effects.say(f"lost the agent on {self._sessions.hosts[agent]}: {SILENT}")
        for session in self._sessions.of([agent]):
            self.rounds.lose(session, SILENT)

    @property
    def formed(self) -> bool:
        """Whether it coordinates, and a round has begun."""
        return self._leads and self.rounds.running is not None

    def view(self) -> CoordinatorView:
        """A copy of what other threads may know."""
        return CoordinatorView(self._sessions.callers, self._awaited(), self._sought)

    def tokens_to_clear(self) -> Path | None:
        """The directory of tokens to remove when the run has ended; None where it goes on, or another one minds it."""
        over = self._leads and self._config.elastic and self.rounds.ended
        return self.rounds.directory.memberships if over else None

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
            self._admission.admit(hello)
            verdict, running = Verdict.WELCOME, self.rounds.running
            number = running.start.membership.number if running is not None else -1
        elif verdict is None:
            verdict, self._sought = Verdict.FOLLOWS, True
        elif verdict is Verdict.TAKEN and self._admission.is_first_of_another(hello):
            self._has_equal = True  # the other run ends by this answer, so this one has to as well, once it coordinates
            if self._leads:
                self.rounds.refuse_equal_run()
        answer = Answer(
            verdict=verdict,
            agent=config.agent,
            host=config.host,
            instance=self._instance,
            coordinator=self.following,
            number=number,
            port=self.port,
            words=shown_words(config.identity.words) if verdict in (Verdict.OTHER_PROGRAM, Verdict.TAKEN) else "",
        )
        return answer, verdict is Verdict.WELCOME and hello.purpose is not Purpose.CALL

    def opened(self, session: AgentSession) -> None:
        """An authenticated agent is connected."""
        if self._leads:
            self._sessions.open(session)
        else:
            self._effects.drop(session)  # this agent has resigned meanwhile

    def receive(self, session: AgentSession, message: Any) -> None:
        """An agent has sent a message.

        Raises:
            MessageError: when the message cannot be meant.
        """
        self.changed = self.rounds.news = True
        if session not in self._sessions:
            return
        if isinstance(message, Ready):
            self._on_ready(session, message)
        elif session.agent is None:
            self._on_outsider(session, message)
        elif isinstance(message, Bye):
            self.rounds.leave(session)
        elif isinstance(message, Accept):
            self.rounds.on_accept(session.agent, message.membership)
        elif isinstance(message, Stop):
            self.rounds.stop(message.end)
        elif isinstance(message, (Share, Ask, Notice)):
            self._on_run_message(session, message)
        else:
            self.rounds.on_round_message(session.agent, message)

    def lost(self, session: AgentSession) -> None:
        """A connection is gone."""
        self.changed = self.rounds.news = True
        if session in self._sessions:
            self.rounds.lose(session)

    def turn(self) -> float:
        """Do what is due; gives the seconds until something may be due again."""
        return self.rounds.turn() if self._leads else NEVER

    # ---- messages

    def _on_outsider(self, session: AgentSession, message: Any) -> None:
        """An agent that has no part in the run, before it is ready or because it was refused, takes leave.

        Raises:
            MessageError: when it says anything else.
        """
        if isinstance(message, Stop) and not session.outside:
            self.rounds.stop(message.end)
        elif isinstance(message, (Bye, Stop)):
            self.rounds.forget(session)
        else:
            raise MessageError(f"{type(message).__name__} before Ready")

    def _on_run_message(self, session: AgentSession, message: Share | Ask | Notice) -> None:
        """A message has come that has nothing to do with rounds."""
        if isinstance(message, Share):
            self._shared.put(message.name, message.text)
        elif isinstance(message, Ask):
            clock = message.what is Question.CLOCK
            value = self._effects.time() if clock else self._shared.answer(message, self.rounds.state.round)
            self._effects.send([session], Told(message.id, value))
        else:
            self.rounds.note_notices({message.signal: message.count})

    def _on_ready(self, session: AgentSession, ready: Ready) -> None:
        """An agent is there, or ready for another round.

        Raises:
            MessageError: when it speaks of what it cannot mean.
        """
        if ready.agent != session.hello.agent:
            raise MessageError(f"agent {session.hello.agent} says that it is agent {ready.agent}")
        admission.check_numbers(ready, self._config.agents)
        self.rounds.on_ready(session, ready)

    def _awaited(self) -> Mapping[int, tuple[str, int]]:
        """Other agents that all wait for, as their word is due, and where they listen."""
        if not self._leads or not self._config.elastic:
            return {}
        members = self._sessions.members
        due = self.rounds.due & members.keys() - {self._config.agent}
        return {agent: members[agent].place for agent in due}
