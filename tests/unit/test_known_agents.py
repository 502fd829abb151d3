"""Agents that ask others whether they coordinate, or who does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hpc_launch import codec
from hpc_launch.node import network
from hpc_launch.rendezvous.known_agents import KnownAgents
from hpc_launch.rendezvous.messages import Answer, Hello, Purpose, Verdict
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.server import Server
from hpc_launch.rendezvous.transport.service import Greeting
from tests.unit.agents_support import keyring

Place = tuple[str, int]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """Return what closes all sockets in the end."""
    with contextlib.ExitStack() as found:
        yield found


def silent(stack: contextlib.ExitStack) -> Place:
    """Return where an agent listens that is stopped: its kernel takes calls."""
    listener = network.listen(0)
    stack.callback(listener.close)
    return "127.0.0.1", int(listener.getsockname()[1])


def gone() -> Place:
    """Return where nobody listens any more."""
    with contextlib.ExitStack() as stack:
        return silent(stack)


class Agent:
    """An agent that answers who coordinates, and says nothing else."""

    def __init__(self, number: int, coordinator: int) -> None:
        self._number, self._coordinator = number, coordinator

    def greet(self, _: bytes) -> Greeting:
        """Answer a hello."""
        leads = self._coordinator == self._number
        verdict = Verdict.WELCOME if leads else Verdict.FOLLOWS
        answer = Answer(verdict, self._number, "node", "instance", self._coordinator, 7, 1)
        return Greeting(codec.encode(answer), stay=leads)

    def opened(self, connection: Connection) -> None:
        """Nothing follows."""

    def received(self, connection: Connection, payload: bytes) -> None:
        """Nothing is asked."""

    received_bulk = received

    def lost(self, connection: Connection) -> None:
        """Nothing follows."""

    def refused(self, connection: Connection | None, why: str) -> None:
        """Nothing is refused."""

    def turn(self, now: float) -> float:
        """Nothing is due."""
        return now + 60


def answering(stack: contextlib.ExitStack, number: int, coordinator: int) -> Place:
    """Return where an agent answers that is with this coordinator, perhaps itself."""
    server = Server(network.listen(0), keyring(), Agent(number, coordinator), name="agent", silence=10)
    server.start()
    stack.callback(server.close)
    return "127.0.0.1", server.port


def search(agent: int, places: dict[int, Place]) -> KnownAgents:
    """Return the search of an agent."""
    return KnownAgents(Hello(Purpose.JOIN, agent, "here", "it", "program"), keyring(), places)


def test_a_coordinator_is_found_behind_many_that_are_silent(stack: contextlib.ExitStack) -> None:
    """A rack of nodes is off: these are asked together. An agent that is gone is remembered, and not asked again."""
    places = {agent: silent(stack) for agent in range(4)}
    places |= {4: gone(), 5: answering(stack, 5, 5), 6: answering(stack, 6, 6)}
    seeker = search(9, places)
    found = seeker.first(range(7))

    assert found is not None
    assert found.connection is not None
    assert (found.coordinator, found.number) == (5, 7)
    assert seeker.gone == {4}
    found.close()
    assert seeker.first([4]) is None


def test_an_agent_that_follows_names_its_coordinator(stack: contextlib.ExitStack) -> None:
    """That one is asked as well; an agent without one says so."""
    places = {0: answering(stack, 0, 2), 1: answering(stack, 1, -1), 2: answering(stack, 2, 2)}
    answers = search(3, places).ask([0, 1])

    found = [(answer.coordinator, bool(answer.connection)) for answer in answers.values() if answer is not None]
    for answer in answers.values():
        if answer is not None:
            answer.close()

    assert found == [(2, True), (-1, False)]


def test_an_agent_without_the_secret_is_not_believed(stack: contextlib.ExitStack) -> None:
    """Another user's program in the place of an agent answers nothing that counts."""
    places = {0: answering(stack, 0, 0)}
    seeker = KnownAgents(Hello(Purpose.JOIN, 1, "here", "it", "program"), keyring(key=b"o" * 32), places)

    assert seeker.first([0]) is None


def test_who_is_silent(stack: contextlib.ExitStack) -> None:
    """One that takes no calls is; who answers is not, and where nobody listens the kernel says so elsewhere."""
    seeker = search(3, {})

    assert seeker.silent(silent(stack))
    assert not seeker.silent(answering(stack, 0, 0))
    assert not seeker.silent(gone())
