"""A call in a thread of its own: the agent's main loop must not wait, and asks whether the call is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class BackgroundCall(Generic[_Result]):
    """A question to others, or another piece of work, that is under way.

    Args:
        work: what to do; it may block.
        discard: releases a result that is not wanted any more.
        name: of the thread.
    """

    def __init__(
        self, work: Callable[[], _Result], *, name: str, discard: Callable[[_Result], object] = lambda _: None
    ) -> None:
        self._work, self._discard = work, discard
        self._lock = threading.Lock()
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        self._dropped = False
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until the work has ended, so long at most; whether it has."""
        return self._ended.wait(seconds)

    def result(self) -> _Result:
        """The result of work that has ended; raises what the work has raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def drop(self) -> None:
        """Give the result up, now or when it comes."""
        with self._lock:
            self._dropped = True
            for result in self._results:
                self._discard(result)

    def _run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self._error = error
        else:
            with self._lock:
                self._results.append(result)
                if self._dropped:
                    self._discard(result)
        self._ended.set()
