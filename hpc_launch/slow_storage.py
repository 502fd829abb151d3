"""Files may be on a server that does not answer for a while: wait for it and say so, or let a thread wait.

A read or write that hangs cannot be given up. So it is done in a thread: signal handlers run meanwhile, and the caller
waits only where it needs the result.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from hpc_launch.console import say

T = TypeVar("T")

# After so many seconds it is said what is waited for.
_SOON = 5.0

# Threads wait in pieces of so many seconds, between which Python runs signal handlers on every release.
_PIECE = 60.0

# So many items wait for a thread that hangs; the rest is lost.
_MOST_WAITING = 10_000


class Act(Generic[T]):
    """Something that is done in a thread from now on.

    Args:
        what: does it.
    """

    def __init__(self, what: Callable[[], T]) -> None:
        self._what = what
        self._over = threading.Event()
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="patience", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value.append(self._what())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
        finally:
            self._over.set()

    def over(self, seconds: float) -> bool:
        """Whether it is over, or is within so many seconds."""
        return self._over.wait(seconds)

    def result(self) -> T:
        """What came of it, once it is over. The thread is gone then, for the kernel too: a fork may follow."""
        while not self._over.wait(_PIECE):
            pass
        self._thread.join()
        while os.path.exists(f"/proc/self/task/{self._thread.native_id}"):  # noqa: PTH110 - a path that is never used
            time.sleep(0.0001)
        if self._error is not None:
            raise self._error
        return self._value[0]


def wait_for(act: Callable[[], T], whom: object, *, soon: float = _SOON) -> T:
    """Do something that may hang, to its end. One line says so where it takes long.

    Args:
        act: does it.
        whom: the file or directory that is waited for, as the line names it.
        soon: seconds after which that is said.

    Returns:
        What `act` returns; its exceptions are raised here.
    """
    begin = time.monotonic()
    acting = Act(act)
    if not acting.over(soon):
        say(f"waiting for {whom}, which does not answer ({time.monotonic() - begin:.0f} s)")
    return acting.result()


class Background(Generic[T]):
    """A thread that deals with items in order, as many at once as have come. Whoever hands one over does not wait.

    Args:
        name: of the thread.
        deal: deals with some items. An exception of it is raised to whoever hands over the next one.
    """

    def __init__(self, name: str, deal: Callable[[Sequence[T]], object]) -> None:
        self._name = name
        self._deal = deal
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._dealing = False
        self._held = 0
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, item: T) -> None:
        """Hand over an item; one is lost where too many wait."""
        with self._changed:
            if self._error is not None:
                raise self._error
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Deal with the items of a while at once, at its end."""
        with self._changed:
            self._held += 1
        try:
            yield
        finally:
            with self._changed:
                self._held -= 1
                if self._waiting:
                    self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until all is dealt with, so long at most; returns whether it is."""
        with self._changed:
            done = self._changed.wait_for(lambda: not (self._waiting or self._dealing), seconds)
            if self._error is not None:
                raise self._error
            return done

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Deal with what has come; False where that has failed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) and not self._held)
            items = [*self._waiting]
            self._waiting.clear()
            self._dealing = True
        try:
            self._deal(items)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that hands over
            self._error = error
        with self._changed:
            self._dealing = False
            self._changed.notify_all()
        return self._error is None
