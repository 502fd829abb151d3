"""The agents of a coordinator: who is there, who is ready, and who need not be waited for."""

from __future__ import annotations

from dataclasses import replace

from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import Hello, Purpose, Ready, RunState
from hpc_launch.rendezvous.sessions import AgentSession, AgentSessions


def session(agent: int) -> AgentSession:
    """Return a connection of an agent."""
    return AgentSession(Hello(Purpose.JOIN, agent, f"node{agent + 1}", "instance", "program"))


def ready(agent: int, agreed: int = 0, gone: tuple[int, ...] = ()) -> Ready:
    """Return what an agent says that is ready."""
    membership = Membership(agreed, (0, 1, 2))
    return Ready(agent, f"node{agent + 1}", "10.0.0.1", agent, 1, {}, "", 0, membership, (), RunState(), gone)


def test_an_agent_is_there_once_it_was_ready() -> None:
    """And is busy while it takes part in a round; where it listens is remembered."""
    sessions, one = AgentSessions({}), session(1)
    sessions.open(one)
    assert one in sessions
    assert not sessions.callers
    sessions.note_ready(one, ready(1))
    assert ([*sessions.ready], [*sessions.busy], sessions.hosts) == ([1], [], {1: "node2"})
    one.rest()

    assert ([*sessions.ready], [*sessions.busy], [*sessions.callers]) == ([], [1], [1])
    assert one.place == ("10.0.0.1", 1)


def test_a_session_that_is_over_takes_no_other_of_its_agent_along() -> None:
    sessions, before, now = AgentSessions({}), session(1), session(1)
    for one in (before, now):
        sessions.open(one)
        sessions.note_ready(one, ready(1))
    sessions.forget(before)
    assert (before in sessions, sessions.of([1])) == (False, [now])
    sessions.forget(now)

    assert ([*sessions.callers], [*sessions]) == ([], [])


def test_who_is_gone_need_not_be_waited_for_until_it_is_there() -> None:
    """Agents tell of others; of itself one says that it lives by being there."""
    sessions, one = AgentSessions({}), session(0)
    sessions.open(one)
    sessions.note_ready(one, ready(0, gone=(1, 2)))
    sessions.note_gone({0, 3})
    other = session(2)
    sessions.open(other)
    sessions.note_ready(other, replace(ready(2), gone=(2,)))

    assert sessions.gone == {1, 3}


def test_the_newest_membership_of_all_is_known() -> None:
    sessions = AgentSessions({})
    for agent, agreed in ((0, 3), (1, 5), (2, 4)):
        one = session(agent)
        sessions.open(one)
        sessions.note_ready(one, ready(agent, agreed))

    assert sessions.newest.number == 5
    assert sessions.names([2, 0, 1]) == "node[1-3]"
