"""The client of a coordinator: an agent's connection to it, and the questions that it answers.

Everything waits for a moment only: an agent does not hang because its coordinator does.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from hpc_launch import codec
from hpc_launch.console import say
from hpc_launch.errors import RendezvousError
from hpc_launch.rendezvous import clock_offset, messages
from hpc_launch.rendezvous.messages import FROM_COORDINATOR, Ask, Message, Question, Share, Told
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.peer_faults import MessageError

_Shared = TypeVar("_Shared", bound=Message)

# An answer that takes longer is none.
_ANSWER_SECONDS = 1.0
# How often an agent looks around where no message can wake it.
_LOOK_SECONDS = 0.02


class CoordinatorClient:
    """An agent's side of what it says to its coordinator, and asks it.

    Args:
        receive: deals with the messages that have come, answers among them (`messages`, `note_answer`).
        pause: waits for more.

    Attributes:
        connection: to the coordinator; None while there is none.
    """

    def __init__(self, receive: Callable[[], None], pause: Callable[[], None]) -> None:
        self.connection: Connection | None = None
        self._receive, self._pause = receive, pause
        self._asked = 0
        self._answers: dict[int, float | str | bool] = {}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """On which messages come."""
        connection = self.connection
        return () if connection is None or connection.broken else (connection.fileno(),)

    def send(self, message: Any) -> None:
        """Send a message; without a connection it is lost."""
        if self.connection is not None and not self.connection.broken:
            self.connection.send(codec.encode(message))

    def messages(self) -> Iterator[Any]:
        """The messages that have come.

        Raises:
            MessageError: when one cannot be meant.
        """
        if self.connection is not None:
            self.connection.flush()
            for frame in self.connection.receive():
                yield messages.decode(frame.payload, FROM_COORDINATOR)

    def wait(self, seconds: float, others: Iterable[int] = ()) -> None:
        """Wait until a message comes, or something at other descriptors; so long at most."""
        descriptors = self.descriptors
        if not descriptors:
            time.sleep(_LOOK_SECONDS)
            return
        poll = select.poll()
        for descriptor in (*descriptors, *others):
            poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    # ---- questions

    def clock(self) -> tuple[float, float] | None:
        """How many seconds this node's clock is ahead of the coordinator's, and how wrong that can be."""

        def ask() -> float | None:
            answer = self._ask(Question.CLOCK)
            return None if answer is None else float(answer)

        return clock_offset.measure(ask)

    def share(self, name: str, message: Message) -> None:
        """Leave something for the other agents to read when they need it."""
        self.send(Share(name, message.encode()))

    def shared(self, name: str, kind: type[_Shared]) -> _Shared | None:
        """What was left; None as long as nothing was, or the coordinator is lost."""
        answer = self._ask(Question.SHARED, name)
        try:
            return kind.decode(answer) if isinstance(answer, str) and answer else None
        except MessageError as error:
            say(f"ignored what an agent has shared as {name}: {error}")
            return None

    def count(self, name: str, amount: int) -> int:
        """Add to a counter of this round that all agents share; returns what it is then, -1 where it is unknown."""
        answer = self._ask(Question.COUNT, name, amount)
        return -1 if answer is None else int(answer)

    def first(self, what: str) -> bool:
        """Whether no other agent has asked this before; where the coordinator is lost, each is the first."""
        answer = self._ask(Question.FIRST, what)
        return answer is None or bool(answer)

    def note_answer(self, told: Told) -> None:
        """The coordinator has answered a question."""
        self._answers[told.id] = told.value

    def _ask(self, what: Question, name: str = "", amount: int = 0) -> float | str | bool | None:
        """Ask the coordinator; None where it does not answer soon."""
        self._asked, deadline = self._asked + 1, time.monotonic() + _ANSWER_SECONDS
        self._answers.clear()  # late ones, to other questions
        self.send(Ask(self._asked, what, name, amount))
        with contextlib.suppress(RendezvousError):  # a loss is for `end` to say
            while self._asked not in self._answers and self.connection is not None and time.monotonic() < deadline:
                self._receive()
                if self._asked not in self._answers:
                    self._pause()
        return self._answers.get(self._asked)
