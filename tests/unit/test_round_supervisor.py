"""What an agent tells the others about its workers, and when."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch.distributed.elastic.agent.server.api import RunResult, WorkerState

from hpc_launch.agent import round_supervisor
from hpc_launch.agent.hang_detector import HangVerdict, HangWatch
from hpc_launch.agent.recorder import Recorder
from hpc_launch.agent.round_supervisor import LocalFailure, RoundSupervisor
from hpc_launch.agent.run_context import RunContext
from hpc_launch.plan.derivation import make_plan
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import RoundEnd, RoundEnding
from hpc_launch.settings import resolve
from hpc_launch.workers.signals import AgentSignals
from tests.support import lines_mention
from tests.unit.test_plan import here

HEALTHY, WELL = RunResult(WorkerState.HEALTHY), RunResult(WorkerState.SUCCEEDED)
FAILED = RunResult(WorkerState.FAILED)


@dataclass
class Rendezvous:
    """The others, as far as this agent hears them: it notes what it is told, and may say how the round ended.

    Attributes:
        ends: what it says in each turn; nothing after the last.
        told: what it was told.
    """

    ends: Sequence[RoundEnd | None] = ()
    told: list[str] = field(default_factory=list)
    _turns: Iterator[RoundEnd | None] = field(init=False)

    def __post_init__(self) -> None:
        self._turns = iter(self.ends)

    def end(self) -> RoundEnd | None:
        return next(self._turns, None)

    def report_done(self) -> None:
        self.told.append("done")

    def report_failure(
        self, status: int, cause: str, *, own: bool, fault: str = "", hang: bool = False, stopped: Callable[[], bool]
    ) -> RoundEnd:
        assert not stopped()
        self.told.append(f"{'own ' if own else ''}{'hang' if hang else 'failure'} {status}: {cause}{fault}")
        return RoundEnd(RoundEnding.FAILED.value, 0, "gpu001", status, cause, hang=hang)

    def report_end(self, status: int, cause: str, name: str) -> RoundEnd:
        self.told.append(f"end {status}: {cause}")
        return RoundEnd(RoundEnding.FAILED.value, 0, "gpu001", status, cause, name)


@dataclass
class Watched:
    """A watch, and what surrounds it."""

    watch: RoundSupervisor
    others: Rendezvous
    pauses: list[float]


class Clock:
    """The time, which passes while the agent waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def watched(
    tmp_path: Path, clock: Clock, results: Sequence[RunResult], others: Rendezvous, stop: signal.Signals | None = None
) -> Watched:
    """Watch workers that stand as `results` says, the last of them for good."""
    turns, pauses = iter(results), list[float]()

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += min(seconds, 0.3)

    watch = RoundSupervisor(
        context=RunContext(make_plan(resolve({"log_dir": str(tmp_path)}, {}), here(), ("train.py",))),
        handler=cast("SlurmRendezvous", others),
        signals=cast("AgentSignals", SimpleNamespace(stop=stop, relayed=False)),
        recorder=cast("Recorder", SimpleNamespace(say=lambda *_, **__: None, workers=())),
        hang=None,
        monitor=lambda: next(turns, results[-1]),
        wait=wait,
    )
    return Watched(watch, others, pauses)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time as it passes in the watch."""
    made = Clock()
    monkeypatch.setattr(round_supervisor, "time", made)
    return made


def failing(monkeypatch: pytest.MonkeyPatch, *, follows: bool) -> None:
    """Have workers here fail, by themselves or after others."""
    monkeypatch.setattr(round_supervisor, "judge_local_failure", lambda *_: LocalFailure(3, "rank 0 failed", follows))


def test_an_agent_says_once_that_all_is_done(tmp_path: Path, clock: Clock) -> None:
    """It waits for the others then, who may still train."""
    done = RoundEnd(RoundEnding.DONE.value, 1, "gpu002")
    found = watched(tmp_path, clock, [HEALTHY, WELL], Rendezvous([None, None, None, done]))

    assert (done, WELL) == found.watch.follow()
    assert found.others.told == ["done"]


def test_a_failure_is_told_at_once(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, follows=False)
    found = watched(tmp_path, clock, [HEALTHY, FAILED], Rendezvous())
    end, _ = found.watch.follow()

    assert lines_mention(found.others.told, "own failure 3 rank 0 failed")
    assert (end.status, len(found.pauses)) == (3, 1)


def test_what_followed_another_failure_waits_for_that_one(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round ends with the status of the first failure, whoever was quicker to notice its own."""
    failing(monkeypatch, follows=True)
    first = RoundEnd(RoundEnding.FAILED.value, 1, "gpu002", 7, "rank 1 failed")
    found = watched(tmp_path, clock, [FAILED], Rendezvous([None, first]))

    assert (first, FAILED) == found.watch.follow()
    assert found.others.told == []


def test_what_followed_nothing_is_told_in_the_end(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has reported what it looked as if it followed; and until then the agent looks often."""
    failing(monkeypatch, follows=True)
    found = watched(tmp_path, clock, [FAILED], Rendezvous())
    end, _ = found.watch.follow()

    assert found.others.told == ["failure 3: rank 0 failed"]
    assert (end.status, round(clock.now, 1)) == (3, 101.0)
    assert {round_supervisor._LOOK_SECONDS} == {*found.pauses}


def test_a_signal_comes_before_a_failure(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that Slurm has signalled as well end in some way or other: that is none."""
    failing(monkeypatch, follows=False)
    found = watched(tmp_path, clock, [FAILED], Rendezvous(), signal.SIGTERM)
    end, _ = found.watch.follow()

    assert (end.signal, end.status) == ("SIGTERM", 143)
    assert lines_mention(found.others.told, f"end 143 SIGTERM {found.watch.context.host}")


def test_workers_that_were_done_before_the_signal_are_done(tmp_path: Path, clock: Clock) -> None:
    """The last agent to say so ends the round well, although it is told to stop."""
    found = watched(tmp_path, clock, [WELL], Rendezvous(), signal.SIGTERM)
    found.watch.follow()

    assert found.others.told[0] == "done"


def test_a_job_that_hangs_has_failed(tmp_path: Path, clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    """With the status of timeout(1), and a line that says where the stacks are."""
    found = watched(tmp_path, clock, [HEALTHY], Rendezvous())
    verdict = HangVerdict("it hangs", tmp_path / "stacks" / "1")
    found.watch.hang = cast("HangWatch", SimpleNamespace(turn=lambda _: verdict, pause=1.0))
    found.watch.follow()

    assert found.others.told == ["hang 124: it hangs"]
    assert f"stacks in {verdict.path}" in capfd.readouterr().err
