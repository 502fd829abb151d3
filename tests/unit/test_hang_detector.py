"""A job hangs when nobody does anything any more, and then only."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpc_launch.agent.hang_detector import Activity, HangVerdict, HangWatch, Signs, SilenceTimer, pause_for
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous.handler import SlurmRendezvous
from tests.support import mentions
from tests.unit.agents_support import config, configs, together

TIMEOUT = 100.0
PAUSE = pause_for(TIMEOUT, 2)


@dataclass
class Clock:
    """A clock that stands still until it is set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[list[SlurmRendezvous]]:
    """Two agents that have met in a round."""
    handlers = [SlurmRendezvous(one) for one in configs(config(tmp_path, 2, max_restarts=1))]
    together([handler.next_rendezvous for handler in handlers])
    yield handlers
    for handler in handlers:
        handler.report_end(1, "the test is over")
    together([handler.shutdown for handler in handlers])


def watches(folder: Path, clock: Clock, pids: dict[int, int] | None = None, counts: str = "auto") -> list[HangWatch]:
    """Return what watches over two agents, each with a worker whose output is in a file of its rank's number.

    The progress that it marks is in another one, `marks` and the number.
    """
    return [
        HangWatch(
            timeout=TIMEOUT,
            job=JobDirectory(folder, "1.0"),
            attempt=0,
            host=f"node{number + 1}",
            agents=2,
            agent=number,
            leader=number == 0,
            workers=lambda number=number: {number: (pids or {})[number]} if number in (pids or {}) else {},  # type: ignore[misc]
            activity=Activity([folder / str(number)], [folder / f"marks{number}"]),
            counts=counts,
            clock=clock,
        )
        for number in range(2)
    ]


def turn(handlers: list[SlurmRendezvous], pair: list[HangWatch]) -> HangVerdict | None:
    """Let all agents look; returns the verdict, if there is one."""
    said = [watch.turn(handler) for watch, handler in zip(pair, handlers, strict=True)]
    assert said[1] is None
    return said[0]


def test_silence_lasts_from_what_was_heard_last() -> None:
    """A counter that has moved begins it anew, one that has not lets it go on; so does another one."""
    quiet = SilenceTimer(0.0, 0.0)
    for now, count, silent in ((5, 1, 0), (10, 1, 5), (15, 1, 10), (20, 2, 0), (25, 2, 5)):
        quiet = quiet.after(now, count=("output", count), pause=5.0)
        assert quiet.looked - quiet.since == silent
    assert quiet.lasts(5.0)
    assert not quiet.lasts(5.1)
    assert not quiet.after(30, count=("progress", 2), pause=5.0).lasts(0.1)


def test_time_for_which_an_agent_was_stopped_does_not_count() -> None:
    """A job that is suspended for an hour has not hung for an hour."""
    quiet = SilenceTimer(0.0, 0.0, ("output", 0))
    for now in (5.0, 3605.0):
        quiet = quiet.after(now, count=("output", 0), pause=5.0)

    assert quiet.looked - quiet.since == 10.0


def test_how_often_it_is_looked() -> None:
    """Often enough for the timeout, seldom enough for the store: ten thousand agents ask it some thousand times."""
    assert [pause_for(timeout, 1) // 0.01 / 100 for timeout in (1.0, 20.0, 3600.0)] == [0.25, 1.0, 5.0]
    assert 10_000 / pause_for(1.0, 10_000) < 5000


def test_output_and_progress_are_seen(tmp_path: Path) -> None:
    """A file that comes, grows or is replaced is a sign of life; one that is only looked at is none."""
    output, marks = tmp_path / "rank_0.out", tmp_path / "rank_0.json"
    activity = Activity([output, tmp_path / "rank_1.out"], [marks])
    assert activity.look() == Signs()
    for path, signs in ((output, Signs(output=True)), (marks, Signs(marks=True))):
        for text in ("", "a", "ab"):
            path.write_text(text)
            assert activity.look() == signs
            path.read_text()
            assert activity.look() == Signs()
        (tmp_path / "new").write_text("xy")
        (tmp_path / "new").replace(path)
        assert activity.look() == signs


def test_as_long_as_one_goes_on_nobody_hangs(agents: list[SlurmRendezvous], tmp_path: Path) -> None:
    """The others may wait for it for as long as it takes, whichever node it is on."""
    clock = Clock()
    pair = watches(tmp_path, clock)
    for number in range(100):
        clock.now += TIMEOUT / 10
        if number % 9 == 0:
            with (tmp_path / str(number % 2)).open("a") as stream:
                stream.write("a step\n")
        assert turn(agents, pair) is None
    assert not (tmp_path / "1.0" / "stacks").exists()


def lasted(agents: list[SlurmRendezvous], pair: list[HangWatch], clock: Clock, folder: Path, marks: int) -> int:
    """Let the first rank write at each look, and the second mark progress at the first few; returns when it hangs."""
    for number in range(1, 4 * int(TIMEOUT / PAUSE)):
        clock.now += PAUSE
        with (folder / "0").open("a") as stream:
            stream.write("GPU utilisation 0 %\n")
        if number <= marks:
            (folder / "marks1").write_text(str(number))
        verdict = turn(agents, pair)
        if verdict is not None:
            assert mentions(verdict.cause, "runtime.mark_progress"), verdict.cause
            return number
    return -1


@pytest.mark.parametrize(
    ("counts", "marks", "hangs"),
    [("auto", 5, True), ("auto", 0, False), ("output", 5, False), ("progress", 5, True), ("progress", 0, True)],
)
def test_what_counts(agents: list[SlurmRendezvous], tmp_path: Path, counts: str, marks: int, hangs: bool) -> None:
    """Where any rank marks progress, output of another is no sign that training goes on; one can say what counts."""
    clock = Clock()
    after = lasted(agents, watches(tmp_path, clock, counts=counts), clock, tmp_path, marks)
    looks = int(TIMEOUT / PAUSE)

    assert (marks + looks <= after <= marks + looks + 4) if hangs else after == -1


def test_when_nobody_goes_on_all_stacks_are_taken(agents: list[SlurmRendezvous], tmp_path: Path) -> None:
    """The leader's verdict comes when all have left what they saw, and it names who is where."""
    clock = Clock()
    sleeps = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(2)]
    try:
        pair = watches(tmp_path, clock, {number: sleep.pid for number, sleep in enumerate(sleeps)})
        for _ in range(int(TIMEOUT / PAUSE)):
            clock.now += PAUSE
            assert turn(agents, pair) is None
        clock.now += 2 * PAUSE
        assert turn(agents, pair) is None, "the second agent has not left its stacks yet"
        verdict = turn(agents, pair)
    finally:
        for sleep in sleeps:
            sleep.kill()
            sleep.wait()

    assert verdict is not None
    assert mentions(verdict.cause, "100 --hang-timeout")
    assert verdict.path is not None
    assert sorted(path.name for path in verdict.path.glob("*/*")) == ["rank_0.txt", "rank_1.txt"]
    found = json.loads((verdict.path / "stacks.json").read_text())["processes"]
    assert [(one["rank"], one["host"]) for one in found] == [(0, "node1"), (1, "node2")]


def test_an_agent_that_does_not_answer_is_not_waited_for_forever(agents: list[SlurmRendezvous], tmp_path: Path) -> None:
    """Its node may be what hangs. And where nothing can be written the end is the same."""
    (tmp_path / "1.0" / "stacks").write_text("in the way")
    clock = Clock()
    leader = watches(tmp_path, clock)[0]
    for _ in range(int(TIMEOUT / PAUSE) + 2):
        clock.now += PAUSE
        assert leader.turn(agents[0]) is None
    clock.now += 60.0
    verdict = leader.turn(agents[0])

    assert verdict is not None
    assert mentions(verdict.cause.rpartition(";")[2], "1 2")
    assert verdict.path is None


def test_files_that_cannot_be_seen_are_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a file server does not answer it is unknown whether a worker writes, and the job does not hang."""
    path, answers = tmp_path / "rank_0.out", threading.Event()
    activity = Activity([path])
    stat = Activity._stat

    def hanging(one: Activity) -> list[tuple[int, int]]:
        answers.wait(30)
        return stat(one)

    monkeypatch.setattr("hpc_launch.agent.hang_detector._LOOK", 0.01)
    monkeypatch.setattr(Activity, "_stat", hanging)
    unseen = [activity.look(), activity.look()]
    answers.set()
    monkeypatch.setattr("hpc_launch.agent.hang_detector._LOOK", 30.0)

    assert (unseen, activity.look()) == ([Signs(unseen=True)] * 2, Signs())


def test_what_cannot_be_seen_is_no_mark(
    agents: list[SlurmRendezvous], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that never marks progress is judged by its output after a file server has come back."""
    clock = Clock()
    pair = watches(tmp_path, clock)
    with monkeypatch.context() as patch:
        patch.setattr(Activity, "look", lambda _: Signs(unseen=True))
        for _ in range(3):
            clock.now += PAUSE
            assert turn(agents, pair) is None

    assert lasted(agents, pair, clock, tmp_path, 0) == -1
