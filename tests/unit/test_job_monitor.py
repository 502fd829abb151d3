"""What Slurm says about the end of the job: asked again where a question is lost or refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_launch.agent.job_monitor import JobMonitor
from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import ClusterRules, Partition
from hpc_launch.slurm.job import JobRecord
from tests.support import wait_for

RUNNING = JobRecord("7", "RUNNING", partition="long")
PREEMPTED = JobRecord("7", "RUNNING", partition="long", preempt_time=1_000_000.0)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], JobRecord | None]]:
    """What Slurm answers to one question about the job after the other."""
    answers: list[Callable[[], JobRecord | None]] = []
    monkeypatch.setattr(controller, "ask_rules", lambda: ClusterRules(kill_wait=5))
    monkeypatch.setattr(controller, "ask_partition", lambda name: Partition(name, grace_time=60))
    monkeypatch.setattr(controller, "ask_job", lambda _: answers.pop(0)())
    return answers


@pytest.fixture
def outlook(tmp_path: Path) -> Iterator[JobMonitor]:
    """One that asks about a job."""
    outlook = JobMonitor("7", lambda: tmp_path / "end.json", None)
    yield outlook
    outlook.close()


def test_the_grace_time_of_a_preemption_is_learnt(
    answers: list[Callable[[], JobRecord | None]], outlook: JobMonitor
) -> None:
    """A job without a time limit has no end, so it is the partition's GraceTime that counts."""
    answers += [lambda: RUNNING, lambda: PREEMPTED]
    outlook.begin()
    outlook.answer(60)
    assert outlook.facts.grace_end == 0

    assert outlook.asked_now() == PREEMPTED
    assert (outlook.facts.kill_wait, outlook.facts.grace_end) == (5, 1_000_060)


def test_a_question_that_is_lost_or_refused_is_asked_again(
    answers: list[Callable[[], JobRecord | None]], outlook: JobMonitor
) -> None:
    """There may be only seconds between a signal and the end."""
    lost = threading.Event()

    def never() -> None:
        lost.wait(60)

    answers += [lambda: RUNNING, never, lambda: None, lambda: PREEMPTED]
    outlook.begin()
    outlook.answer(60)
    try:
        assert outlook.asked_now() == PREEMPTED
    finally:
        lost.set()
    assert not answers


def test_where_nobody_answers_one_question_is_enough(
    monkeypatch: pytest.MonkeyPatch, answers: list[Callable[[], JobRecord | None]], outlook: JobMonitor
) -> None:
    """In a container without scontrol nobody waits."""
    monkeypatch.setattr(controller, "ask_rules", lambda: None)
    answers += [lambda: None, lambda: None]
    outlook.begin()
    outlook.answer(60)

    assert outlook.asked_now() is None
    assert not answers


def test_an_answer_before_the_run_has_a_directory(
    answers: list[Callable[[], JobRecord | None]], tmp_path: Path
) -> None:
    """What Slurm says before the first round is written down when the run has claimed its directory."""
    place: list[Path] = []
    answers += [lambda: RUNNING]
    outlook = JobMonitor("7", lambda: place[0] if place else None, None)
    outlook.begin()
    outlook.answer(60)
    place.append(tmp_path / "end.json")
    wait_for((tmp_path / "end.json").exists, 60, "the end is not written down")
    outlook.close()

    assert json.loads((tmp_path / "end.json").read_text())["end"] is None
