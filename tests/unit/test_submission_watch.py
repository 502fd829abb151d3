"""Waiting for a job: what its states mean, how often it is asked, and that what is not seen is no success."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest

from hpc_launch.errors import SlurmError
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from hpc_launch.submission import watch


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
    assert watch.exit_status(records) == status


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "SPECIAL_EXIT", "NEW"])
def test_a_job_that_can_still_change_is_not_over(state: str) -> None:
    assert not watch.over([job("COMPLETED"), job(state)])
    assert not watch.over([])


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([job("PENDING", reason="Resources")], "waiting (Resources: first in the queue, until enough nodes are free)"),
        ([job("PENDING", reason="Priority", start=50.0)], "waiting (Priority: others are first)"),
        ([job("RUNNING", start=50.0)], "running"),
        ([job("COMPLETING")], "ending"),
        ([job("FAILED", exit_code=3)], "failed, exit status 3"),
        ([job("NODE_FAIL")], "node fail, exit status 1"),
        (
            [job("PENDING", task="2-5%2", reason="JobArrayTaskLimit")],
            "4 waiting (JobArrayTaskLimit: a limit of yours, or of your group, is reached)",
        ),
        ([job("RUNNING", task="1"), job("COMPLETED", task="0"), job("COMPLETED", task="2")], "1 running, 2 done"),
    ],
)
def test_a_state_is_told_in_words(records: list[JobRecord], line: str) -> None:
    assert watch.describe(records, now=100.0) == line


def test_an_estimate_is_told() -> None:
    assert "until enough nodes are free), expected to start at 20" in watch.describe(
        [job("PENDING", reason="Resources", start=1e9)], 0.0
    )


@pytest.mark.parametrize(
    ("task", "count"), [("3", 1), ("", 1), ("4-7", 4), ("4-7,9%2", 5), ("0-10:5", 3), ("[1-3,5]", 4), ("x", 1)]
)
def test_tasks_are_counted(task: str, count: int) -> None:
    assert watch.count_tasks(task) == count


class World:
    """A Slurm that answers what it was told to, and a clock that moves when somebody waits."""

    def __init__(self, answers: Iterable[watch.Records | None]) -> None:
        self.answers = list(answers)
        self.lines: list[str] = []
        self.pauses: list[float] = []
        self.watcher = watch.Watcher(self.look, self.lines.append, self.pauses.append, lambda: 0.0)

    def look(self) -> watch.Records | None:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def test_each_state_is_told_once() -> None:
    """A job that is requeued goes through its states again; one that cannot be asked for is waited for."""
    waiting, running, ended = (job("PENDING", reason="Resources"),), (job("RUNNING"),), (job("COMPLETED"),)
    world = World([waiting, waiting, running, running, waiting, None, None, running, ended])

    assert world.watcher.until_ended() == ended
    assert world.lines == [
        *(
            "waiting (Resources: first in the queue, until enough nodes are free)",
            "running",
            "waiting (Resources: first in the queue, until enough nodes are free)",
        ),
        *("Slurm does not answer; the question is put again", "running", "done"),
    ]


def test_pauses_grow_to_a_bound_and_begin_again_when_something_changes() -> None:
    """A controller is not asked more than it must be, and a change is not missed for long."""
    world = World([*[(job("PENDING"),)] * 30, (job("RUNNING"),), (job("RUNNING"),), (job("COMPLETED"),)])
    world.watcher.until_ended()

    assert sorted(world.pauses[:30]) == world.pauses[:30]
    assert (world.pauses[0], world.pauses[29], world.pauses[30]) == (0.25, 15.0, 0.25)


def test_what_nobody_knows_is_unknown() -> None:
    """After some questions that none answers, it is an error; silence is not."""
    world = World([(job("RUNNING"),), ()])
    with pytest.raises(SlurmError, match="how the job ended is unknown"):
        world.watcher.until_ended()

    assert len(world.pauses) < 12


def test_accounting_is_asked_where_the_controller_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """What accounting says of a job that has ended counts when the controller is silent; what it says of others not."""
    told: list[tuple[JobRecord, ...]] = [(job("COMPLETED"),)]
    monkeypatch.setattr(controller, "ask_accounting", lambda _: told[0])
    monkeypatch.setattr(controller, "ask_jobs", lambda _: ())
    assert watch.look("12") == told[0]

    monkeypatch.setattr(controller, "ask_jobs", lambda _: None)
    assert watch.look("12") == told[0]
    told[0] = (job("RUNNING"),)
    assert watch.look("12") is None

    monkeypatch.setattr(controller, "ask_jobs", lambda _: (job("RUNNING"),))
    assert watch.look("12") == (job("RUNNING"),)


def test_a_file_is_followed(tmp_path: Path) -> None:
    """What it gains is passed on once, as bytes; one that was emptied begins again; a missing one is waited for."""
    stream, path = io.BytesIO(), tmp_path / "out"
    tail, records = watch.Tail(stream), (job("RUNNING", output=str(path)),)
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

    assert watch.end_of(str(path), 2) == "line 9998\nline 9999"
    assert watch.end_of(str(tmp_path / "nothing"), 2) == ""
