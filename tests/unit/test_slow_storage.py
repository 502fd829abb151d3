"""Files that hang: what must wait does so with one line, and what need not wait does not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpc_launch import slow_storage
from hpc_launch.slow_storage import Background, wait_for
from tests.support import lines_mention, wait_for as see

PATIENCE = 30.0


class Hanging:
    """A file operation that hangs for as long as a test wants."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.answers = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.answers.wait(PATIENCE)
        return "made"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.answers.set()


def test_what_is_quick_is_done_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    """The result comes back, and nothing is said."""
    assert wait_for(lambda: 3, "a directory") == 3
    assert capfd.readouterr().err == ""


def test_an_error_is_raised_to_who_waits() -> None:
    """An exception of the thread is one of the caller."""
    with pytest.raises(FileNotFoundError):
        wait_for(lambda: Path("/no/such/file").stat(), "a directory")


def test_one_line_says_what_is_waited_for(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for long says for what, once, and goes on when it answers."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        hanging.answers.set()

    monkeypatch.setattr(slow_storage, "say", say)

    assert wait_for(hanging, "the log directory /logs", soon=0.01) == "made"
    assert lines_mention(lines, "the log directory /logs 0")


def test_a_signal_is_heard_meanwhile(hanging: Hanging) -> None:
    """A signal handler of the main thread runs while that waits, and its exception ends the wait."""

    class Stop(Exception):
        pass

    def handler(*_: object) -> None:
        raise Stop

    def interrupt() -> None:
        hanging.begun.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(Stop):
            wait_for(hanging, "a directory", soon=PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_no_thread_is_left_for_a_fork() -> None:
    """The worker factory is forked after the log directory was looked at: the kernel knows a single thread then."""

    def threads() -> set[str]:
        return {path.name for path in Path("/proc/self/task").iterdir()}

    before = threads()  # of tests that came before; they may end

    assert [(wait_for(lambda: 0, ""), threads() - before) for _ in range(100)] == [(0, set())] * 100


def test_items_are_dealt_with_in_order() -> None:
    """One thread deals with all, whoever hands them over."""
    dealt: list[int] = []
    background: Background[int] = Background("test", dealt.extend)
    for number in range(1000):
        background.put(number)

    assert background.settle(PATIENCE)
    assert dealt == [*range(1000)]


def test_nobody_waits_for_a_thread_that_hangs(hanging: Hanging) -> None:
    """Items are handed over at once; the end waits for a bounded time."""
    dealt: list[Sequence[int]] = []

    def deal(items: Sequence[int]) -> None:
        hanging()
        dealt.append(items)

    background: Background[int] = Background("test", deal)
    background.put(0)
    hanging.begun.wait(PATIENCE)
    background.put(1)
    background.put(2)
    assert not background.settle(0.0)
    hanging.answers.set()

    assert background.settle(PATIENCE)
    assert dealt == [[0], [1, 2]]


def test_items_of_a_while_are_dealt_with_at_once() -> None:
    """What belongs together costs a file server one round trip."""
    dealt: list[Sequence[int]] = []
    background: Background[int] = Background("test", dealt.append)
    with background.together():
        for number in range(3):
            background.put(number)

    assert background.settle(PATIENCE)
    assert dealt == [[0, 1, 2]]


def test_an_error_of_the_thread_is_loud() -> None:
    """Whoever hands over the next item gets the exception: it is a fault of our own."""

    def deal(_: Sequence[int]) -> None:
        raise KeyError("rank")

    background: Background[int] = Background("test", deal)
    background.put(0)

    def raised() -> bool:
        try:
            background.put(1)
        except KeyError:
            return True
        return False

    assert see(raised, PATIENCE, "the exception")


def test_memory_is_bounded(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed over to a thread that hangs for ever is lost from some number on."""
    monkeypatch.setattr(slow_storage, "_MOST_WAITING", 3)
    dealt: list[int] = []

    def deal(items: Sequence[int]) -> None:
        hanging()
        dealt.extend(items)

    background: Background[int] = Background("test", deal)
    background.put(0)
    hanging.begun.wait(PATIENCE)
    for number in range(1, 10):
        background.put(number)
    hanging.answers.set()

    assert background.settle(PATIENCE)
    assert dealt == [0, 1, 2, 3]
