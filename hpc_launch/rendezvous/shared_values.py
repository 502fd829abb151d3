"""The values that agents share through their coordinator: texts under names, and counters. Pure."""

from __future__ import annotations

from collections import Counter

from hpc_launch.rendezvous.messages import Ask, Question
from hpc_launch.rendezvous.transport.peer_faults import MessageError

# Names that agents share, and their texts: stacks of each agent in an attempt that hangs are the most.
_MOST_SHARED, _MOST_SHARED_TEXT = 1 << 18, 1 << 28


class SharedValues:
    """What one agent leaves, all can ask for; what they count, they count together."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._size = 0
        self._counts: Counter[tuple[int, str]] = Counter()
        self._firsts: Counter[str] = Counter()

    def put(self, name: str, text: str) -> None:
        """Keep a text under a name.

        Raises:
            MessageError: when there is too much.
        """
        self._size += len(text) - len(self._texts.get(name, ""))
        self._texts[name] = text
        if len(self._texts) > _MOST_SHARED or self._size > _MOST_SHARED_TEXT:
            raise MessageError(f"more is shared than {_MOST_SHARED} names and {_MOST_SHARED_TEXT} characters")

    def answer(self, asked: Ask, round_number: int) -> float | bool | str:
        """The answer to a question about shared values; counters begin anew in each round.

        Args:
            asked: the question.
            round_number: of the current round.

        Raises:
            MessageError: when there are too many counters.
        """
        if len(self._counts) + len(self._firsts) > _MOST_SHARED:
            raise MessageError(f"more than {_MOST_SHARED} counters")
        if asked.what is Question.COUNT:
            self._counts[round_number, asked.name] += asked.amount
            return self._counts[round_number, asked.name]
        if asked.what is Question.FIRST:
            self._firsts[asked.name] += 1
            return self._firsts[asked.name] == 1
        return self._texts.get(asked.name, "")
