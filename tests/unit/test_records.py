"""What a run leaves behind: the job directory and its events."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from tests.support import mentions

APPEND = """
import sys
from pathlib import Path
from hpc_launch.records.events import EventLog

log = EventLog(Path(sys.argv[1]), int(sys.argv[2]))
for number in range(200):
    log.record("step", number=number, text="x" * 2000)
"""


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    return JobDirectory(tmp_path / "logs", "4711.0")


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """Return a path below a file, which nobody can make, root included."""
    (tmp_path / "file").touch()
    return tmp_path / "file/logs"


def test_the_layout(job: JobDirectory) -> None:
    """Every name in the job directory is stable, and says host and global rank."""
    files = job.rank(3, "gpu01", 12)
    expected = {
        "path": "4711.0",
        "plan": "4711.0/job.json",
        "attempt": "4711.0/attempt_3",
        "node": "4711.0/attempt_3/gpu01",
        "out": "4711.0/attempt_3/gpu01/rank_12.out",
        "err": "4711.0/attempt_3/gpu01/rank_12.err",
        "error": "4711.0/attempt_3/gpu01/rank_12.error.json",
        "events": "4711.0/nodes/gpu01/events.jsonl",
    }
    found = {
        "path": job.path,
        "plan": job.last_plan,
        "attempt": job.attempt(3),
        "node": job.node(3, "gpu01"),
        "out": files.out,
        "err": files.err,
        "error": files.error,
        "events": job.events("gpu01"),
    }
    assert expected == {name: str(path.relative_to(job.root)) for name, path in found.items()}
    assert not job.root.exists()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("gpu01.cluster", "gpu01.cluster"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("rack/gpu01", "rack_gpu01"),
        ("../../etc", "_.._etc"),
        ("..", "_"),
        (".hidden", "hidden"),
        ("", "_"),
    ],
)
def test_a_host_is_one_component(job: JobDirectory, host: str, expected: str) -> None:
    """Whatever a host file calls a host, its files stay in the job directory."""
    assert job.attempt(0) / expected == job.node(0, host)


@given(host=st.text(max_size=20))
def test_no_host_name_leads_out(host: str) -> None:
    """The name of a node's directory is never another's parent, nor hidden, nor empty."""
    name = JobDirectory(Path("/logs"), "job").node(0, host).relative_to("/logs/job/attempt_0")

    assert len(name.parts) == 1
    assert not str(name).startswith(".")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], 0),
        (["attempt_0"], 1),
        (["attempt_0", "attempt_1", "attempt_7"], 8),
        (["attempt_9", "attempt_10"], 11),
        (["attempt_2.bak", "attempt_", "attempt_x", "xattempt_3", "latest", "nodes", "job.json"], 0),
    ],
)
def test_the_next_attempt(job: JobDirectory, names: list[str], expected: int) -> None:
    """It follows the last one that any start of the job has used, whatever else lies there."""
    for name in names:
        (job.path / name).mkdir(parents=True)

    assert expected == job.next_attempt()


def test_the_next_attempt_of_a_job_that_is_a_file(job: JobDirectory) -> None:
    """What cannot be listed is an error, and not the first attempt."""
    job.root.mkdir()
    job.path.touch()

    with pytest.raises(LogDirError, match=r"4711\.0.* Not a directory.* --log-dir"):
        job.next_attempt()


def test_a_log_directory_is_made_and_left_empty(job: JobDirectory) -> None:
    """Seeing whether a directory can be written makes it, and leaves nothing in it."""
    directory.check_writable(job.root)
    directory.check_writable(job.root)

    assert list(job.root.iterdir()) == []


@pytest.mark.parametrize("make", [directory.check_writable, directory.make])
def test_a_log_directory_that_cannot_be_made(blocked: Path, make: object) -> None:
    """The error names the directory, the reason and the option."""
    assert callable(make)
    with pytest.raises(LogDirError) as caught:
        make(blocked)
    assert mentions(caught.value, blocked, os.strerror(errno.ENOTDIR), "--log-dir")
    assert caught.value.exit_status == 73


def test_a_log_directory_that_cannot_be_written() -> None:
    """Being there is not enough: /proc takes no files, not even root's."""
    with pytest.raises(LogDirError, match="cannot write in /proc: "):
        directory.check_writable(Path("/proc"))


def test_json_is_written_whole_and_replaced_whole(job: JobDirectory) -> None:
    """The file has the last value, and nothing else is left beside it."""
    directory.write_json(job.last_plan, {"run_id": "first", "hosts": "gpu[01-99]"})
    directory.write_json(job.last_plan, {"run_id": "second"})

    assert json.loads(job.last_plan.read_text()) == {"run_id": "second"}
    assert [job.last_plan] == list(job.path.iterdir())


def test_json_that_cannot_be_encoded_leaves_the_old_file(job: JobDirectory) -> None:
    """A reader never sees half of a file."""
    directory.write_json(job.last_plan, {"run_id": "first"})
    with pytest.raises(TypeError):
        directory.write_json(job.last_plan, {"run_id": "second", "hosts": {1, 2}})

    assert json.loads(job.last_plan.read_text()) == {"run_id": "first"}
    assert [job.last_plan] == list(job.path.iterdir())


def test_json_that_cannot_be_put_in_its_place(job: JobDirectory) -> None:
    """The error names the directory, and no temporary file is left."""
    job.last_plan.mkdir(parents=True)

    with pytest.raises(LogDirError, match="cannot write in "):
        directory.write_json(job.last_plan, {})
    assert [job.last_plan] == list(job.path.iterdir())


def test_latest_points_to_the_last_one(job: JobDirectory) -> None:
    """The link is replaced, is relative so that the tree can be moved, and nothing is left beside it."""
    link = job.path / "latest"
    for number in (0, 1):
        directory.make(job.attempt(number))
        directory.point_latest(link, f"attempt_{number}")

    assert ("attempt_1", job.attempt(1).resolve()) == (str(link.readlink()), link.resolve())
    assert sorted(path.name for path in job.path.iterdir()) == ["attempt_0", "attempt_1", "latest"]


def test_latest_that_is_somebodys_directory_stays(job: JobDirectory) -> None:
    """What is no link of ours is left alone, without an error, and nothing is left beside it."""
    kept = job.path / "latest/kept"
    kept.mkdir(parents=True)
    directory.point_latest(job.path / "latest", "attempt_0")

    assert kept.is_dir()
    assert [path.name for path in job.path.iterdir()] == ["latest"]


def test_latest_is_a_convenience(blocked: Path) -> None:
    """Where it cannot be made it is not."""
    directory.point_latest(blocked / "latest", "attempt_0")


def test_events_are_lines(job: JobDirectory) -> None:
    """Each event is a JSON object on a line, with its time, name, agent and facts."""
    log = EventLog(job.events("gpu01"), 3)
    log.record("attempt", attempt=0)
    log.record("worker failed", cause="first line\nsecond line \u2713")
    events = [json.loads(line) for line in job.events("gpu01").read_text().splitlines()]

    assert [{name: value for name, value in event.items() if name != "time"} for event in events] == [
        {"event": "attempt", "agent": 3, "attempt": 0},
        {"event": "worker failed", "agent": 3, "cause": "first line\nsecond line \u2713"},
    ]
    assert events[0]["time"] <= events[1]["time"]


def test_events_of_several_processes_are_whole_lines(job: JobDirectory, python: str) -> None:
    """The agents of a node share a file: no event is lost or broken, and each agent's are in order."""
    path = job.events("gpu01")
    agents = [subprocess.Popen([python, "-c", APPEND, str(path), str(agent)]) for agent in range(4)]

    assert [agent.wait() for agent in agents] == [0] * 4
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert {agent: list(range(200)) for agent in range(4)} == {
        agent: [event["number"] for event in events if event["agent"] == agent] for agent in range(4)
    }


def test_an_event_that_cannot_be_written_is_dropped(job: JobDirectory) -> None:
    """Training goes on when the disk is full or the directory is gone."""
    log = EventLog(job.events("gpu01"), 0)
    job.events("gpu01").mkdir()

    log.record("attempt", attempt=0)
    assert job.events("gpu01").is_dir()


def test_events_go_on_where_an_earlier_start_ended(job: JobDirectory) -> None:
    """A requeued job appends."""
    for attempt in (0, 1):
        EventLog(job.events("gpu01"), 0).record("attempt", attempt=attempt)

    assert [json.loads(line)["attempt"] for line in job.events("gpu01").read_text().splitlines()] == [0, 1]


def test_events_that_belong_together_are_written_together(job: JobDirectory) -> None:
    """Nothing is written before the end of a while; then all of it is, in order, also if it ends in an error."""
    path = job.events("gpu01")
    log = EventLog(path, 0)
    with contextlib.suppress(ZeroDivisionError), log.together():
        log.record("first")
        with log.together():
            log.record("second")
        assert not path.exists()
        raise ZeroDivisionError
    log.record("third")

    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["first", "second", "third"]
