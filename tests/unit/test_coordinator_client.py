"""What an agent asks its coordinator, over a connection of two ends in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from hpc_launch import codec
from hpc_launch.rendezvous import messages
from hpc_launch.rendezvous.coordinator_client import CoordinatorClient
from hpc_launch.rendezvous.messages import FROM_AGENTS, Ask, Message, Ping, Question, Told
from hpc_launch.rendezvous.transport.connection import Connection, pair
from tests.support import mentions

Value = float | str | bool


@dataclass(frozen=True)
class Said(Message):
    """Something to share."""

    text: str


class Asked:
    """An agent's client, and a coordinator that answers each question in the same way."""

    def __init__(self, answers: Mapping[Question, Value]) -> None:
        self.client = CoordinatorClient(self.receive, lambda: None)
        self.client.connection, self.served = pair(b"hello")
        self.answers = answers
        self.heard: list[object] = []

    def receive(self) -> None:
        """Let the coordinator answer, and the client read."""
        for frame in self.served.receive():
            asked = messages.decode(frame.payload, FROM_AGENTS)
            self.heard.append(asked)
            if isinstance(asked, Ask) and asked.what in self.answers:
                # A late answer to an earlier question comes first, and does not count.
                for number in (asked.id - 1, asked.id):
                    value = self.answers[asked.what] if number == asked.id else "late"
                    self.served.send(codec.encode(Told(number, value)))
        for message in self.client.messages():
            assert isinstance(message, Told)
            self.client.note_answer(message)


@pytest.fixture
def made() -> Iterator[list[Asked]]:
    """Return those that were made, which are closed in the end."""
    found: list[Asked] = []
    yield found
    for one in found:
        one.client.close()
        one.served.close()


def asked(made: list[Asked], answers: Mapping[Question, Value]) -> Asked:
    """Return a client whose coordinator gives these answers."""
    made.append(Asked(answers))
    return made[-1]


def test_each_question_has_its_answer(made: list[Asked]) -> None:
    text = Said("hello").encode()
    one = asked(made, {Question.COUNT: 7, Question.FIRST: False, Question.SHARED: text, Question.CLOCK: time.time()})

    assert (one.client.count("activity", 2), one.client.first("disk")) == (7, False)
    assert one.client.shared("word", Said) == Said("hello")
    offset = one.client.clock()
    assert offset is not None
    assert abs(offset[0]) < 60
    assert one.heard[0] == Ask(1, Question.COUNT, "activity", 2)


@pytest.mark.parametrize(("text", "shown"), [("", ""), ("{}", "hpc-launch word")])
def test_what_was_not_shared_or_cannot_be_read_is_nothing(
    made: list[Asked], text: str, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another agent may have left it, of another version perhaps: a line says so."""
    one = asked(made, {Question.SHARED: text})

    assert one.client.shared("word", Said) is None
    assert mentions(capfd.readouterr().err, shown)


def answers(client: CoordinatorClient) -> tuple[object, ...]:
    """Return what a client makes of no answers."""
    return client.count("activity", 1), client.first("disk"), client.shared("word", Said), client.clock()


def test_a_coordinator_that_does_not_answer_is_not_waited_for(
    made: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be said once is said by each agent then."""
    monkeypatch.setattr("hpc_launch.rendezvous.coordinator_client._ANSWER_SECONDS", 0.05)

    assert answers(asked(made, {}).client) == (-1, True, None, None)


def test_without_a_connection_nothing_is_asked() -> None:
    client = CoordinatorClient(lambda: None, lambda: None)
    client.send(Ping())
    client.close()

    assert answers(client) == (-1, True, None, None)
    assert (client.descriptors, list(client.messages())) == ((), [])


def test_a_connection_that_is_closed_wakes_nobody(made: list[Asked]) -> None:
    """A closed descriptor may be another's at once."""
    one = asked(made, {})
    connection = one.client.connection
    assert isinstance(connection, Connection)
    before = one.client.descriptors
    connection.close()

    assert (len(before), one.client.descriptors) == (1, ())
