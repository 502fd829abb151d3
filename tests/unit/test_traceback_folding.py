"""Tracebacks of many ranks on the console: one of those that are alike is shown."""

from __future__ import annotations

import pytest

from hpc_launch.agent.traceback_folding import Folding, TracebackFilter
from tests.support import mentions

LOST = "[pair.cc:537] Connection closed by peer [127.0.0.1]:{}"


def report(rank: int, message: str, line: int = 6, prefix: str = "[rank{}]: ") -> list[bytes]:
    """Return what Python writes of an exception, by torch's hook."""
    lines = [
        "Traceback (most recent call last):",
        f'  File "/home/me/train.py", line {line}, in <module>',
        "    dist.all_reduce(t)",
        f"RuntimeError: {message}",
    ]
    return [f"{prefix.format(rank)}{text}".encode() for text in lines]


def shown(folding: Folding, rank: int, lines: list[bytes]) -> list[bytes]:
    """Return what the console shows of lines that come one by one."""
    one = TracebackFilter(folding, rank)
    found = [text for line in lines for text in one.feed([line], quiet=False)]
    return found + one.feed([], quiet=True)


def test_one_of_those_that_are_alike_is_shown() -> None:
    """Ports, addresses and ranks make no difference, nor in which way a connection was lost."""
    folding = Folding()
    first = report(2, LOST.format(1))
    assert shown(folding, 2, first) == first
    assert shown(folding, 0, report(0, LOST.format(4711))) == []
    assert shown(folding, 3, report(3, "Read error [127.0.0.1]:7: Connection reset by peer")) == []
    [line] = folding.summary()
    assert mentions(line, "2 0,3 2 RuntimeError"), line


@pytest.mark.parametrize(
    "other",
    [report(1, "loss is nan"), report(1, LOST.format(1), line=7), report(1, "timed out waiting for 1")],
    ids=["message", "place", "reason"],
)
def test_another_one_is_shown(other: list[bytes]) -> None:
    """What may be the cause is never left out."""
    folding = Folding()
    shown(folding, 0, report(0, LOST.format(1)))
    assert shown(folding, 1, other) == other
    assert folding.summary() == []


CHAIN = [b"", b"The above exception was the direct cause of the following exception:", b""]


@pytest.mark.parametrize("link", [CHAIN, [b"retrying"]], ids=["chained", "apart"])
def test_every_exception_counts(link: list[bytes]) -> None:
    """The first of several that stand together is the cause: the last one alone does not make them alike."""
    folding = Folding()

    def chained(rank: int, message: str) -> list[bytes]:
        return [*report(rank, message), *link, *report(rank, "no batch could be read", line=9)]

    shown(folding, 0, chained(0, LOST.format(1)))
    other = chained(1, "[Errno 5] Input/output error")
    assert shown(folding, 1, other) == other
    assert shown(folding, 2, chained(2, LOST.format(2))) == []
    [line] = folding.summary()
    assert mentions(line, "1 2 0"), line


def test_a_rank_that_reports_the_same_again_is_shown() -> None:
    """What goes on and logs each failure hides nothing of its own; other ranks are counted, not their reports."""
    folding = Folding()
    one = [*report(0, LOST.format(1)), b"gave up on batch 1"]
    for _ in range(3):
        assert shown(folding, 0, one) == one
    assert folding.summary() == []
    for _ in range(2):
        assert shown(folding, 1, report(1, LOST.format(2))) == []
    [line] = folding.summary()
    assert mentions(line, "1 1 0"), line


@pytest.mark.parametrize("begun", [True, False])
def test_what_comes_last_is_shown(begun: bool) -> None:
    """Also where nothing follows it but a line that has not ended."""
    one, lines = TracebackFilter(Folding(), 0), report(0, LOST.format(1))
    block = lines if begun else [b"step 1"]
    found = one.feed(block, quiet=False) + one.feed([b"step 2: "], quiet=True)
    assert (found, one.holds) == ([*block, b"step 2: "], False)


def test_what_stands_around_it_is_shown() -> None:
    """Lines before it at once; what torch logs after it is no part of it."""
    folding = Folding()
    shown(folding, 0, report(0, LOST.format(1)))
    one = TracebackFilter(folding, 1)
    assert one.feed([b"step 1"], quiet=False) == [b"step 1"]
    assert (one.feed(report(1, LOST.format(2)), quiet=False), one.holds) == ([], True)
    warning = b"[W1201 12:00:00.1 TCPStore.cpp:106] recvValue failed"
    assert (one.feed([warning], quiet=False), one.holds) == ([warning], False)
    assert one.feed([b"going on"], quiet=False) == [b"going on"]


def test_what_only_another_rank_says_after_it_is_shown() -> None:
    """The lines of a message are folded with it; what a rank that goes on writes is not."""
    folding = Folding()
    more = [b"[rank0]: and a second line", b"[rank0]:   with a third"]
    first = [*report(0, LOST.format(1)), *more]
    assert shown(folding, 0, first) == first
    assert shown(folding, 1, [*report(1, LOST.format(2)), *(line.replace(b"0", b"1") for line in more)]) == []
    assert shown(folding, 2, [*report(2, LOST.format(3)), *more[:1], b"retrying", b"step 7"]) == [
        b"retrying",
        b"step 7",
    ]
    assert shown(folding, 3, report(3, LOST.format(3))) == []


def test_a_long_one_is_shown_as_it_comes() -> None:
    """It may be no traceback at all; and what a word begins that nothing follows is shown too."""
    lines = [b"Traceback (most recent call last):", *[b"  more"] * 1000]
    assert shown(Folding(), 0, lines) == lines
    assert shown(Folding(), 0, lines[:1]) == lines[:1]
