"""When to say something again that goes on: soon at first, then ever less often. Pure."""

from __future__ import annotations


class Backoff:
    """Says when it is due.

    Args:
        first: seconds until the first time; each pause is twice the one before.
        longest: the longest pause, in seconds.
        now: the time, in seconds.
    """

    def __init__(self, first: float, longest: float, now: float) -> None:
        self._pause, self._longest, self._next = first, longest, now + first

    def due(self, now: float) -> bool:
        """Whether it is due now; then the next pause has begun."""
        if now < self._next:
            return False
        self._pause = min(self._pause * 2, self._longest)
        self._next = now + self._pause
        return True
