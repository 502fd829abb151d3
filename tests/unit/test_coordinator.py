"""The coordinator's decisions, without sockets, threads, files or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.errors import LogDirError
from hpc_launch.plan.similar_commands import command_of
from hpc_launch.records import events
from hpc_launch.rendezvous.coordinator import Coordinator
from hpc_launch.rendezvous.membership import Half, Membership
from hpc_launch.rendezvous.messages import (
    Accept,
    Ask,
    Begun,
    Bye,
    Done,
    Ended,
    Failed,
    Hello,
    Notice,
    Pong,
    Propose,
    Purpose,
    Question,
    Ready,
    Refused,
    RoundEnd,
    RunState,
    Share,
    Start,
    Stop,
    Told,
    Verdict,
)
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.sessions import AgentSession
from hpc_launch.rendezvous.transport.peer_faults import MessageError
from tests.support import lines_mention, mentions
from tests.unit.agents_support import config, configs, identity


class Recorded:
    """Effects that are only written down; what they ask for is answered by the test."""

    def __init__(self) -> None:
        self.sent: list[tuple[AgentSession, Any]] = []
        self.lines: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.dropped: list[AgentSession] = []
        self.taken: frozenset[Half] = frozenset()
        self.refused_halves: frozenset[Half] = frozenset()

    def send(self, sessions: Iterable[AgentSession], message: Any) -> None:
        """Note a message."""
        self.sent.extend((session, message) for session in sessions)

    def drop(self, session: AgentSession) -> None:
        """Note a connection that is closed."""
        self.dropped.append(session)

    def say(self, line: str) -> None:
        """Note a line."""
        self.lines.append(line)

    def observe(self, event: str, **facts: Any) -> None:
        """Note an event."""
        self.events.append((event, facts))

    def open_job(self) -> None:
        """Note that the job directory is asked for."""
        self.asked.append("job")

    def open_store(self, round_number: int) -> None:
        """Note that a store is asked for."""
        self.asked.append(f"store {round_number}")

    def put_token(self, directory: Path, number: int) -> None:
        """Note that a token is asked for."""
        self.asked.append(f"token {number} in {directory.name}")

    def take_tokens(self, directory: Path, halves: Iterable[Half]) -> None:
        """Nothing is taken here."""

    def remove_tokens(self, directory: Path, before: int) -> None:
        """Nothing is removed here."""

    def time(self) -> float:
        """The same time for all."""
        return 1000.0

    def told(self, kind: type) -> list[Any]:
        """Return the messages of a kind that were sent."""
        return [message for _, message in self.sent if isinstance(message, kind)]


class Meeting:
    """A coordinator and the agents of a run."""

    def __init__(self, root: Path, agents: int, **changes: Any) -> None:
        self.configs = configs(config(root, agents, **changes))
        self.effects = Recorded()
        self.coordinator = Coordinator(self.configs[0], "instance-0", self.effects)
        self.sessions = [AgentSession(self.hello(number)) for number in range(agents)]
        self.coordinator.lead(self.sessions[0])

    def hello(self, agent: int, **changes: Any) -> Hello:
        """Return what an agent says first."""
        one = self.configs[agent]
        usual = Hello(Purpose.JOIN, agent, one.host, f"instance-{agent}", one.identity.program, one.identity.words)
        return replace(usual, **changes)

    def join(self, *agents: int) -> None:
        """Let agents come and be ready."""
        for agent in agents:
            if agent:
                _, stays = self.coordinator.greet(self.hello(agent))
                assert stays
                self.coordinator.opened(self.sessions[agent])
            self.coordinator.receive(self.sessions[agent], ready(self.configs[agent]))

    def turn(self, seconds: float = 0.1) -> None:
        """Let time pass."""
        self.coordinator.now += seconds
        self.coordinator.turn()

    def prepare(self) -> None:
        """Answer what the first round asks for."""
        self.turn()
        self.coordinator.rounds.job_opened("12.0", 0, "12.0.0")
        self.turn()
        self.coordinator.rounds.store_opened(0, "10.0.0.1", 20_000)
        for name in self.effects.asked:
            if name.startswith("token"):
                self.coordinator.rounds.token_put(int(name.split()[1]), "1-token")
        self.turn()

    def begin(self) -> Start:
        """Let all agents come, and the first round begin."""
        self.join(*range(len(self.configs)))
        self.prepare()
        (proposal, *_) = self.effects.told(Propose)
        for session in self.sessions:
            self.coordinator.receive(session, Accept(proposal.membership))
        start: Start = self.effects.told(Start)[-1]
        return start


def ready(one: RendezvousConfig) -> Ready:
    """Return what an agent says when it is ready for the first round."""
    problem = str(one.problem) if one.problem else ""
    agreed = Membership(0, tuple(range(one.agents)))
    return Ready(one.agent, one.host, "10.0.0.1", 1, one.workers, one.software, problem, 0, agreed, (), RunState())


def test_a_round_begins_when_all_have_accepted(tmp_path: Path) -> None:
    """The plan has what was prepared, and all agents get it."""
    meeting = Meeting(tmp_path, 3)
    start = meeting.begin()

    assert (start.plan.master_addr, start.plan.master_port, start.plan.workers) == ("10.0.0.1", 20_000, (2, 3, 2))
    assert (start.plan.job, start.plan.run_id) == ("12.0", "12.0.0")
    assert [bool(told.hosts) for told in meeting.effects.told(Start)] == [True, False, False]
    assert meeting.effects.asked == ["job", "store 0"]


def test_what_must_be_prepared_is_waited_for_with_one_line(tmp_path: Path) -> None:
    """A log directory that hangs delays the round, and the coordinator answers meanwhile."""
    meeting = Meeting(tmp_path, 2)
    meeting.join(0, 1)
    for _ in range(300):
        meeting.turn()
    meeting.coordinator.receive(meeting.sessions[1], Ask(1, Question.CLOCK))

    assert meeting.effects.told(Propose) == []
    assert meeting.effects.told(Told) == [Told(1, 1000.0)]
    assert lines_mention(meeting.effects.lines, "node1")


def test_a_token_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """An elastic run begins without one when the file system does not answer in a second; late ones do not count."""
    meeting = Meeting(tmp_path, 2, elastic=True, minimum=1)
    meeting.join(0, 1)
    meeting.turn()
    meeting.coordinator.rounds.job_opened("12.0", 0, "12.0.0")
    meeting.turn()
    meeting.coordinator.rounds.store_opened(0, "10.0.0.1", 20_000)
    meeting.turn()
    assert meeting.effects.told(Propose) == []
    meeting.turn(2.0)
    meeting.coordinator.rounds.token_put(1, "1-late")
    meeting.turn()

    assert {proposal.membership.token for proposal in meeting.effects.told(Propose)} == {""}


def test_what_cannot_be_prepared_ends_the_run_for_all(tmp_path: Path) -> None:
    """With the status that goes with it; an agent that comes later hears it too."""
    meeting = Meeting(tmp_path, 3)
    meeting.join(0, 1, 2)
    meeting.turn()
    meeting.coordinator.rounds.preparation_failed(LogDirError("cannot write in /logs"))
    meeting.coordinator.lost(meeting.sessions[2])
    meeting.sessions[2] = AgentSession(meeting.hello(2))
    meeting.join(2)

    assert [(refused.why, refused.status) for refused in meeting.effects.told(Refused)] == [
        ("cannot write in /logs", 73)
    ] * 4


def test_the_loss_of_an_agent_ends_a_run_of_fixed_size(tmp_path: Path) -> None:
    """Whatever is left of the budget, all others hear it with the documented status."""
    meeting = Meeting(tmp_path, 3, max_restarts=5)
    meeting.begin()
    meeting.coordinator.lost(meeting.sessions[2])
    ends = [message.end for message in meeting.effects.told(Ended)]

    assert [(end.ending, end.status) for end in ends] == [("failed", 69)] * 2
    assert mentions(ends[0].cause, "node3")
    assert meeting.effects.events[-1] == (events.NODE_LOST, {"hosts": "node3", "attempt": 0})


def test_the_loss_of_an_agent_ends_a_round_of_an_elastic_run(tmp_path: Path) -> None:
    """The others start again, and it costs no restart."""
    meeting = Meeting(tmp_path, 3, elastic=True, minimum=1)
    meeting.begin()
    meeting.coordinator.lost(meeting.sessions[2])
    ended = meeting.effects.told(Ended)

    assert [(message.end.ending, message.end.lost, message.state.spent) for message in ended] == [
        ("restart", "node3", 0)
    ] * 2


def test_an_agent_of_a_fixed_size_is_waited_for_while_it_is_silent(tmp_path: Path) -> None:
    """Nothing is due from it in the coordinator's eyes, however long it says nothing."""
    meeting = Meeting(tmp_path, 2)
    meeting.begin()
    for session in meeting.sessions:
        meeting.coordinator.receive(session, Begun(0))
    meeting.coordinator.receive(meeting.sessions[0], Done(0))
    for _ in range(1000):
        meeting.turn(1.0)

    assert meeting.coordinator.view().awaited == {}
    assert meeting.effects.told(Ended) == []


@pytest.mark.parametrize(
    "message",
    [
        Begun(0),
        Done(0),
        Failed(0, 1, "it broke"),
        Notice("SIGUSR1", 1),
        Share("a", "b"),
        Ask(1, Question.FIRST, "a"),
        Accept(Membership(1, (0, 1))),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_agent_that_is_not_ready_is_not_heard(tmp_path: Path, message: Any) -> None:
    """Nothing of the run changes by it."""
    meeting = Meeting(tmp_path, 2)
    meeting.coordinator.greet(meeting.hello(1))
    meeting.coordinator.opened(meeting.sessions[1])

    with pytest.raises(MessageError, match="before Ready"):
        meeting.coordinator.receive(meeting.sessions[1], message)


def test_an_agent_that_is_not_ready_may_leave(tmp_path: Path) -> None:
    """It was only looking, or was told to end: no line and no loss come of it."""
    meeting = Meeting(tmp_path, 2)
    meeting.coordinator.greet(meeting.hello(1))
    meeting.coordinator.opened(meeting.sessions[1])
    meeting.coordinator.receive(meeting.sessions[1], Bye())

    assert meeting.effects.dropped == [meeting.sessions[1]]
    assert (meeting.effects.lines, meeting.effects.events) == ([], [])


def test_an_agent_that_is_told_to_end_before_it_is_ready_ends_the_run(tmp_path: Path) -> None:
    """The first agent too, whose word is delayed while it looks for an equal run."""
    meeting = Meeting(tmp_path, 2)
    end = RoundEnd("failed", 0, "node1", 143, "stopped by SIGTERM", "SIGTERM")
    meeting.coordinator.receive(meeting.sessions[0], Stop(end))
    meeting.join(1)

    assert [message.end for message in meeting.effects.told(Ended)] == [end]


def test_an_agent_that_was_refused_ends_no_run(tmp_path: Path) -> None:
    """It does not fit, and the others go on without it, whatever it says when it leaves."""
    meeting = Meeting(tmp_path, 3, elastic=True, minimum=1, software={"torch": "2.4"})
    meeting.begin()
    meeting.coordinator.lost(meeting.sessions[2])
    late = AgentSession(meeting.hello(2))
    meeting.coordinator.opened(late)
    meeting.coordinator.receive(late, replace(ready(meeting.configs[2]), software={"torch": "2.5"}))
    before = len(meeting.effects.told(Ended))
    meeting.coordinator.receive(late, Stop(RoundEnd("failed", 2, "node3", 69, "it does not fit")))

    assert len(meeting.effects.told(Ended)) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"agreed": Membership(1, (0, 1, 77))},
        {"agreed": Membership(1, (0, 1), "", (5,))},
        {"accepted": (Membership(1, (0, 9)),)},
        {"gone": (7,)},
        {"state": RunState(waiting={"8": ("10.0.0.8", 1)})},
        {"state": RunState(drained={"8": "is broken"})},
        {"agreed": Membership((1 << 30) - 1, (0, 1))},
        {"state": RunState(round=(1 << 30) - 1)},
    ],
    ids=str,
)
def test_an_agent_that_speaks_of_what_the_run_does_not_have_is_refused(tmp_path: Path, changes: Any) -> None:
    """It costs its connection, and no later step stumbles over it."""
    meeting = Meeting(tmp_path, 2)
    meeting.coordinator.greet(meeting.hello(1))
    meeting.coordinator.opened(meeting.sessions[1])

    with pytest.raises(MessageError, match="it speaks of"):
        meeting.coordinator.receive(meeting.sessions[1], replace(ready(meeting.configs[1]), **changes))


def test_an_agent_that_is_busy_when_another_fails_is_waited_for(tmp_path: Path) -> None:
    """In an elastic run its own answer is awaited, however long that takes: whether it lives is asked elsewhere."""
    meeting = Meeting(tmp_path, 3, elastic=True, minimum=1, node_timeout=5.0, max_restarts=1)
    meeting.begin()
    meeting.coordinator.receive(meeting.sessions[1], Failed(0, 1, "it broke"))
    for agent in (0, 1):
        meeting.coordinator.receive(meeting.sessions[agent], Pong(0))
    for _ in range(100):
        meeting.turn(1.0)
    assert meeting.effects.told(Ended) == []
    assert list(meeting.coordinator.view().awaited) == [2]
    meeting.coordinator.receive(meeting.sessions[2], Pong(0))
    meeting.turn(1.0)

    assert {(message.end.ending, message.end.cause) for message in meeting.effects.told(Ended)} == {
        ("restart", "it broke")
    }


def test_what_was_prepared_before_a_resignation_does_not_count(tmp_path: Path) -> None:
    """The number of the preparations tells."""
    meeting = Meeting(tmp_path, 2, elastic=True, minimum=1)
    before = meeting.coordinator.generation
    meeting.coordinator.resign()

    assert meeting.coordinator.generation == before + 1


def test_an_agent_cannot_speak_for_another(tmp_path: Path) -> None:
    """The number of the handshake is the one that counts."""
    meeting = Meeting(tmp_path, 3)
    meeting.coordinator.greet(meeting.hello(1))
    meeting.coordinator.opened(meeting.sessions[1])

    with pytest.raises(MessageError, match=r"\b1\b.*\b2\b"):
        meeting.coordinator.receive(meeting.sessions[1], ready(meeting.configs[2]))


@pytest.mark.parametrize("agent", [3, 99, 1 << 16])
def test_an_agent_that_the_run_does_not_have_is_refused(tmp_path: Path, agent: int) -> None:
    meeting = Meeting(tmp_path, 3)

    with pytest.raises(MessageError, match=rf"\b{agent}\b.*node2.*\b0\b.*\b2\b"):
        meeting.coordinator.greet(replace(meeting.hello(1), agent=agent))


def test_messages_of_another_round_change_nothing(tmp_path: Path) -> None:
    """A failure that is late, or made up, ends no round."""
    meeting = Meeting(tmp_path, 2)
    meeting.begin()
    for number in (-1, 1, 7):
        meeting.coordinator.receive(meeting.sessions[1], Failed(number, 1, "it broke"))

    assert meeting.effects.told(Ended) == []


def test_agents_of_another_program_are_turned_away_and_named(tmp_path: Path) -> None:
    """The line about missing nodes says which command they run, and what joins them."""
    meeting = Meeting(tmp_path, 2)
    meeting.join(0)
    other = identity("other")
    answer, stays = meeting.coordinator.greet(meeting.hello(1, program=other.program, words=other.words))
    meeting.turn(20.0)

    assert (answer.verdict, stays) == (Verdict.OTHER_PROGRAM, False)
    assert "node2 runs another command (other.py)" in meeting.effects.lines[-1]
    assert "--rdzv-id" in meeting.effects.lines[-1]


def command(rank: int, *words: str) -> dict[str, Any]:
    """Return what a hello says of a command, in a task of this rank."""
    found = command_of(("/home/me", *words), {"SLURM_PROCID": str(rank)}, f"node{rank + 1}")
    return {"program": " ".join(words), "digests": found.digests, "texts": found.texts or {}, "task": found.task}


def with_commands(tmp_path: Path) -> Meeting:
    """Return a meeting whose agents have typed their ranks."""
    mine = replace(
        identity("train.py 0"), command=command_of(("/home/me", "train.py", "0"), {"SLURM_PROCID": "0"}, "node1")
    )
    return Meeting(tmp_path, 2, identity=mine)


def test_a_command_that_differs_by_the_rank_is_welcome_after_a_moment(tmp_path: Path) -> None:
    """In which a run with the same command may show up."""
    meeting = with_commands(tmp_path)
    hello = meeting.hello(1, **command(1, "train.py", "1"))
    first, _ = meeting.coordinator.greet(hello)
    meeting.turn(1.0)
    second, stays = meeting.coordinator.greet(hello)

    assert (first.verdict, second.verdict, stays) == (Verdict.SIMILAR, Verdict.WELCOME, True)


def test_where_two_runs_begin_only_equal_commands_meet(tmp_path: Path) -> None:
    """Another run's first agent has asked: then an agent whose command is similar may be of that one."""
    meeting = with_commands(tmp_path)
    meeting.coordinator.greet(meeting.hello(0, purpose=Purpose.CALL, **command(0, "train.py", "1")))
    meeting.turn(1.0)
    similar, _ = meeting.coordinator.greet(meeting.hello(1, **command(1, "train.py", "1")))
    equal, stays = meeting.coordinator.greet(meeting.hello(1))

    assert (similar.verdict, equal.verdict, stays) == (Verdict.OTHER_PROGRAM, Verdict.WELCOME, True)


def test_an_equal_run_ends_one_that_has_not_begun(tmp_path: Path) -> None:
    """Nothing tells their agents apart."""
    meeting = Meeting(tmp_path, 2)
    meeting.join(0, 1)
    answer, _ = meeting.coordinator.greet(meeting.hello(0, purpose=Purpose.CALL, instance="another"))

    assert answer.verdict is Verdict.TAKEN
    assert {"--rdzv-id" in refused.why for refused in meeting.effects.told(Refused)} == {True}


def test_an_equal_run_ends_one_that_does_not_coordinate_yet(tmp_path: Path) -> None:
    """It ends itself by this answer, so that the other one would wait for agents that are gone."""
    meeting = Meeting(tmp_path, 2)
    late = Coordinator(meeting.configs[0], "instance-0", meeting.effects)
    answer, _ = late.greet(meeting.hello(0, purpose=Purpose.CALL, instance="another"))
    late.lead(meeting.sessions[0])
    late.receive(meeting.sessions[0], ready(meeting.configs[0]))

    assert answer.verdict is Verdict.TAKEN
    assert {"--rdzv-id" in refused.why for refused in meeting.effects.told(Refused)} == {True}


def test_an_agent_that_has_only_asked_keeps_no_number(tmp_path: Path) -> None:
    """An agent of an equal run asks before this one coordinates, and goes elsewhere; the run's own is welcome then."""
    meeting = Meeting(tmp_path, 2)
    late = Coordinator(meeting.configs[0], "instance-0", meeting.effects)
    other, _ = late.greet(meeting.hello(1, instance="another"))
    late.lead(meeting.sessions[0])
    own, _ = late.greet(meeting.hello(1))
    again, _ = late.greet(meeting.hello(1, instance="another"))

    assert [one.verdict for one in (other, own, again)] == [Verdict.FOLLOWS, Verdict.WELCOME, Verdict.TAKEN]


def test_a_refused_run_does_not_begin(tmp_path: Path) -> None:
    """Agents that accept what was proposed before the refusal start no workers: they would train alone."""
    meeting = Meeting(tmp_path, 2)
    meeting.join(0, 1)
    meeting.prepare()
    (proposal, *_) = meeting.effects.told(Propose)
    meeting.coordinator.greet(meeting.hello(0, purpose=Purpose.CALL, instance="another"))
    for session in meeting.sessions:
        meeting.coordinator.receive(session, Accept(proposal.membership))

    assert len(meeting.effects.told(Refused)) == 2
    assert meeting.effects.told(Start) == []


def test_an_equal_run_leaves_one_alone_that_has_begun(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, 2)
    meeting.begin()
    meeting.coordinator.greet(meeting.hello(0, purpose=Purpose.CALL, instance="another"))
    meeting.coordinator.greet(meeting.hello(1, instance="another"))

    assert meeting.effects.told(Refused) == []


def test_an_agent_that_comes_after_the_end_hears_of_it(tmp_path: Path) -> None:
    """So that it does not wait for a round that never begins."""
    meeting = Meeting(tmp_path, 2)
    end = RoundEnd("failed", 0, "node1", 143, "stopped by SIGTERM", "SIGTERM")
    meeting.join(0)
    meeting.coordinator.receive(meeting.sessions[0], Stop(end))
    meeting.join(1)

    assert [message.end for message in meeting.effects.told(Ended)] == [end, end]


def test_the_calm_coordinator_wakes_seldom(tmp_path: Path) -> None:
    """While workers run nothing is due, nor is it for an agent that follows."""
    meeting = Meeting(tmp_path, 2)
    meeting.begin()
    follower = Coordinator(meeting.configs[1], "instance-1", Recorded())

    assert meeting.coordinator.turn() > 60
    assert follower.turn() > 60
