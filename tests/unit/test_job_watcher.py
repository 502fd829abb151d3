"""Waiting for a job: what its states mean, how often it is asked, and that what is not seen is no success."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from hpc_launch.errors import SlurmError
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord, explain
from hpc_launch.submission import job_watcher
from tests.support import lines_mention, mentions


def job(state: str, **more: object) -> JobRecord:
    return JobRecord("12", state, **more)  # type: ignore[arg-type]  # the tests write what the fields have


@pytest.mark.parametrize(
    ("records", "status"),
    [
        ([job("COMPLETED")], 0),
        ([job("FAILED", exit_code=3)], 3),
        ([job("FAILED", signal=9)], 137),
        ([job("CANCELLED")], 143),
        ([job("CANCELLED", signal=15)], 143),
        ([job("CANCELLED", exit_code=7)], 7),
        ([job("TIMEOUT")], 143),
        ([job("PREEMPTED")], 143),
        ([job("NODE_FAIL")], 1),
        ([job("BOOT_FAIL")], 1),
        ([job("OUT_OF_MEMORY", signal=125)], 253),
        ([job("FAILED")], 1),
        ([job("COMPLETED"), job("FAILED", exit_code=4), job("FAILED", exit_code=2)], 4),
        ([], 1),
    ],
)
def test_only_what_slurm_calls_completed_is_success(records: list[JobRecord], status: int) -> None:
    assert job_watcher.exit_status(records) == status


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "SPECIAL_EXIT", "NEW"])
def test_a_job_that_can_still_change_is_not_over(state: str) -> None:
    assert not job_watcher.has_ended([job("COMPLETED"), job(state)])
    assert not job_watcher.has_ended([])


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([job("PENDING", reason="Resources")], f"waiting ({explain('Resources')})"),
        ([job("PENDING", reason="Priority", start=50.0)], f"waiting ({explain('Priority')})"),
        ([job("RUNNING", start=50.0)], "running"),
        ([job("COMPLETING")], "ending"),
        ([job("FAILED", exit_code=3)], "failed, exit status 3"),
        ([job("NODE_FAIL")], "node fail, exit status 1"),
        (
            [job("PENDING", task="2-5%2", reason="JobArrayTaskLimit")],
            f"4 waiting ({explain('JobArrayTaskLimit')})",
        ),
        ([job("RUNNING", task="1"), job("COMPLETED", task="0"), job("COMPLETED", task="2")], "1 running, 2 done"),
    ],
)
def test_a_state_is_told_in_words(records: list[JobRecord], line: str) -> None:
    assert job_watcher.describe_job(records, now=100.0) == line


def test_an_estimate_is_told() -> None:
    told = job_watcher.describe_job([job("PENDING", reason="Resources", start=1e9)], 0.0)
    assert mentions(told, "Resources", time.strftime("%Y-%m-%d", time.localtime(1e9)))


@pytest.mark.parametrize(
    ("task", "count"), [("3", 1), ("", 1), ("4-7", 4), ("4-7,9%2", 5), ("0-10:5", 3), ("[1-3,5]", 4), ("x", 1)]
)
def test_tasks_are_counted(task: str, count: int) -> None:
    assert job_watcher.count_tasks(task) == count


class World:
    """A Slurm that answers what it was told to, and a clock that moves when somebody waits."""

    def __init__(self, answers: Iterable[job_watcher.Records | None]) -> None:
        self.answers = list(answers)
        self.lines: list[str] = []
        self.pauses: list[float] = []
        self.watcher = job_watcher.JobWatcher(self.look, self.lines.append, self.pauses.append, lambda: 0.0)

    def look(self) -> job_watcher.Records | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_each_state_is_told_once() -> None:
    """A job that is requeued goes through its states again; one that cannot be asked for is waited for."""
    waiting, running, ended = (job("PENDING", reason="Resources"),), (job("RUNNING"),), (job("COMPLETED"),)
    world = World([waiting, waiting, running, running, waiting, None, None, running, ended])

    assert world.watcher.until_ended() == ended
    states = ("waiting Resources", "running", "waiting Resources", "Slurm", "running", "done")
    assert lines_mention(world.lines, *states)


def test_pauses_grow_to_a_bound_and_begin_again_when_something_changes() -> None:
    """A controller is not asked more than it must be, and a change is not missed for long."""
    world = World([*[(job("PENDING"),)] * 30, (job("RUNNING"),), (job("RUNNING"),), (job("COMPLETED"),)])
    world.watcher.until_ended()

    assert sorted(world.pauses[:30]) == world.pauses[:30]
    assert (world.pauses[0], world.pauses[29], world.pauses[30]) == (0.25, 15.0, 0.25)


def test_what_nobody_knows_is_unknown() -> None:
    """After some questions that none answers, it is an error; silence is not."""
    world = World([(job("RUNNING"),), ()])
    with pytest.raises(SlurmError, match="unknown"):
        world.watcher.until_ended()

    assert len(world.pauses) < 12


def test_accounting_is_asked_where_the_controller_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accounting says of a job that has ended counts when the controller is silent; what it says of others not."""
    told: list[tuple[JobRecord, ...]] = [(job("COMPLETED"),)]
    monkeypatch.setattr(controller, "ask_accounting", lambda _: told[0])
    monkeypatch.setattr(controller, "ask_jobs", lambda _: ())
    assert job_watcher.ask_job_state("12") == told[0]

    monkeypatch.setattr(controller, "ask_jobs", lambda _: None)
    assert job_watcher.ask_job_state("12") == told[0]
    told[0] = (job("RUNNING"),)
    assert job_watcher.ask_job_state("12") is None

    monkeypatch.setattr(controller, "ask_jobs", lambda _: (job("RUNNING"),))
    assert job_watcher.ask_job_state("12") == (job("RUNNING"),)


def test_a_file_is_followed(tmp_path: Path) -> None:
    """What it gains is passed on once, as bytes; one that was emptied begins again; a missing one is waited for."""
    stream, path = io.BytesIO(), tmp_path / "out"
    tail, records = job_watcher.FileTail(stream), (job("RUNNING", output=str(path)),)
    tail(())
    tail(records)
    path.write_bytes(b"one\xff\n")
    tail(records)
    tail(records)
    path.write_bytes(b"one\xff\ntwo\n")
    tail(records)
    path.write_bytes(b"new\n")
    tail(records)

    assert stream.getvalue() == b"one\xff\ntwo\nnew\n"


def test_the_end_of_a_file_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("".join(f"line {number}\n" for number in range(10_000)))

    assert job_watcher.last_lines_of(str(path), 2) == "line 9998\nline 9999"
    assert job_watcher.last_lines_of(str(tmp_path / "nothing"), 2) == ""
