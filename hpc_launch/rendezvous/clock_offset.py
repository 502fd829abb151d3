"""The offset of this node's clock from the coordinator's, measured by questions and answers."""

from __future__ import annotations

import time
from collections.abc import Callable

# The quickest of so many answers tells the time best.
_QUESTIONS = 3


def measure(ask: Callable[[], float | None], clock: Callable[[], float] = time.time) -> tuple[float, float] | None:
    """How many seconds this node's clock is ahead, and how wrong that can be; None if nobody answers.

    The other has read its clock at some moment between question and answer (F. Cristian, Probabilistic clock
    synchronization, Distributed Computing 3, 1989): half of that time is the error.

    Args:
        ask: gives the other's time, in seconds since the epoch; None where it does not answer.
        clock: gives this node's.
    """
    found = []
    for _ in range(_QUESTIONS):
        asked, answer, now = clock(), ask(), clock()
        if answer is not None:
            found.append(((asked + now) / 2 - answer, max(0.0, now - asked) / 2))
    return min(found, key=lambda measured: measured[1], default=None)
