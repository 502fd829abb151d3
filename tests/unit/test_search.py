"""Agents that ask others: whether they lead, and, where these are waited for, whether they live."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from hpc_launch.elastic.search import Doubts, Search
from hpc_launch.node import network

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


def answering(stack: contextlib.ExitStack, leader: int, *, leads: bool) -> Place:
    """Return where an agent answers once."""
    listener = network.listen(0)
    stack.callback(listener.close)

    def answer() -> None:
        connection, _ = listener.accept()
        stack.callback(connection.close)
        with connection.makefile("rb") as stream:
            asked = json.loads(stream.readline())
        said = {"run": asked["run"], "port": 1, "leads": leads, "leader": leader, "number": 7}
        connection.sendall(json.dumps(said).encode() + b"\n")

    threading.Thread(target=answer, daemon=True).start()
    return "127.0.0.1", int(listener.getsockname()[1])


def test_a_leader_is_found_behind_many_that_are_silent(stack: contextlib.ExitStack) -> None:
    """A rack of nodes is off: these are asked together. Who is gone is remembered, and not asked again."""
    places = {agent: silent(stack) for agent in range(4)}
    places |= {4: gone(), 5: answering(stack, 5, leads=True), 6: answering(stack, 6, leads=True)}
    search = Search("run", 9, "key", places)
    found = search.first(range(7))

    assert found is not None
    assert found.connection is not None
    assert (found.leader, found.number) == (5, 7)
    assert search.gone == {4}
    found.close()
    assert search.first([4]) is None


def test_who_does_not_lead_names_the_one_that_does(stack: contextlib.ExitStack) -> None:
    """That one is asked as well; and who is with nobody says so."""
    places = {0: answering(stack, 2, leads=False), 1: answering(stack, -1, leads=False)}
    search = Search("run", 3, "key", {**places, 2: answering(stack, 2, leads=True)})
    answers = search.ask([0, 1])

    found = [(answer.leader, bool(answer.connection)) for answer in answers.values() if answer is not None]
    for answer in answers.values():
        if answer is not None:
            answer.close()

    assert found == [(2, True), (-1, False)]


def test_who_is_silent(stack: contextlib.ExitStack) -> None:
    """One that takes no calls is; who answers is not, and where nobody listens the kernel says so elsewhere."""
    search = Search("run", 3, "key")

    assert search.silent(silent(stack))
    assert not search.silent(answering(stack, 0, leads=False))
    assert not search.silent(gone())


def test_doubts() -> None:
    """Who is late is asked, again and again, and given up after some silence: time alone does not count."""
    asked: list[Place] = []

    def ask(place: Place) -> bool:
        asked.append(place)
        return place == ("b", 2)

    doubts = Doubts(ask, 10)
    both: dict[int, Place] = {1: ("a", 1), 2: ("b", 2)}
    assert [doubts.turn(both, now) for now in (0.0, 9.9)] == [None, None]
    assert asked == []
    assert [doubts.turn(both, now) for now in (10.0, 10.1, 12.4)] == [None, None, None]
    assert asked == [("a", 1), ("b", 2)]
    assert [doubts.turn(both, now) for now in (3600.0, 3600.1, 3603.0)] == [None, None, None]
    assert asked[2:] == [("b", 2), ("a", 1), ("b", 2)]
    assert doubts.turn(both, 3606.0) == 2
    assert doubts.turn({}, 3607.0) is None
    assert doubts.turn(both, 3609.0) is None  # it is waited for anew
