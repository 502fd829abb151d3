"""Reading a job directory: all that happened, and nothing that lies there makes it fail."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from hpc_launch.records import events, history, root_cause
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.records.history_model import RecordedNotice
from tests import histories
from tests.histories import Made
from tests.support import lines_mention, mentions

# Anything that JSON has, where a number, a text or an object may be expected.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KINDS = [
    events.RUN,
    events.ATTEMPT,
    events.CLOCK,
    events.WORKER_STARTED,
    events.WORKER_ENDED,
    events.NOTICE,
    events.HEARTBEAT,
    events.NODE_LOST,
    events.ROUND_ENDED,
    events.RUN_ENDED,
]
FIELDS = [
    "time",
    "agent",
    "attempt",
    "rank",
    "host",
    "first_attempt",
    "offset",
    "failure",
    "usage",
    "exitcode",
    "waiting",
    "ending",
    "versions",
    "told",
    "hosts",
]


def pipe(file: Path) -> None:
    """Put a pipe there, for which a reader would wait."""
    file.unlink()
    os.mkfifo(file)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs/4711.0"


def test_what_happened_is_read(path: Path) -> None:
    """Runs, attempts, workers, requeues and progress are those that there were."""
    made = Made(nodes=3, per_node=2, attempts=3, requeues=(1,), fails={0: 4})
    told = history.read_history(histories.write(path, made))
    first, second, third = told.attempts

    assert told.unreadable == ()
    assert [(run.first_attempt, run.run_id, run.restart_count) for run in told.runs] == [
        (0, "4711.0.0", 0),
        (2, "4711.0.1", 1),
    ]
    assert [attempt.ending for attempt in told.attempts] == ["restart", "failed", "done"]
    assert [attempt.run for attempt in told.attempts] == [0, 0, 2]
    assert {attempt.world_size for attempt in told.attempts} == {6}
    assert first.hosts == ("gpu001", "gpu002", "gpu003")
    assert [(worker.rank, worker.host, worker.local_rank, worker.device) for worker in third.workers[3:5]] == [
        (3, "gpu002", 1, "GPU 1"),
        (4, "gpu003", 0, "GPU 0"),
    ]
    assert first.by == "gpu003"
    assert mentions(first.cause, "4 gpu003 0 1")
    assert first.workers[4].failure is not None
    assert first.workers[4].files == JobDirectory(path.parent, path.name).rank(0, "gpu003", 4)
    assert second.end is not None
    assert [(requeue.attempt, requeue.reason) for requeue in told.requeues] == [(1, "timeout")]
    assert [(mark.rank, mark.step, mark.values) for mark in told.progress] == [(0, 300, {"loss": 0.125})]


def test_a_requeue_that_slurm_has_not_confirmed(tmp_path: Path) -> None:
    """The ledger's word for it is read."""
    job = JobDirectory(tmp_path, "1.0")
    histories.write(job.path, attempts=2, requeues=[0])
    entry = json.loads(job.ledger.read_text())
    job.ledger.write_text("".join(f"{json.dumps(entry | more)}\n" for more in ({}, {"unknown": True})))

    assert [requeue.unknown for requeue in history.read_history(job.path).requeues] == [False, True]


def test_times_are_the_leaders(path: Path) -> None:
    """Clocks that are off by minutes make no difference to any time."""
    plain = history.read_history(histories.write(path, Made()))
    off = history.read_history(histories.write(path, Made(offsets={1: 90.0, 0: -3600.0})))

    assert [(node.host, node.offset) for node in off.nodes] == [("gpu001", -3600.0), ("gpu002", 90.0)]
    assert plain.attempts == off.attempts
    assert plain.runs == off.runs


@pytest.mark.parametrize(("ending", "known"), [("", False), ("done", True), ("failed", True), ("stopped", True)])
def test_a_run_that_goes_on_has_no_end(path: Path, ending: str, known: bool) -> None:
    """An attempt, its workers and its run have an end when, and only when, somebody has recorded one."""
    told = history.read_history(histories.write(path, ending=ending))
    last = told.attempts[-1]
    ends = [last.end, last.decided, told.runs[-1].end, *(worker.ended for worker in last.workers)]

    assert {known} == {end is not None for end in ends}


def test_a_directory_that_is_not_there(path: Path) -> None:
    """It is an empty history that says so."""
    told = history.read_history(path)

    assert told.attempts == ()
    assert lines_mention(told.unreadable, path)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "last"),
        (lambda file: file.write_bytes(b"\0\1\2\n" + file.read_bytes()), "1"),
        (lambda file: file.write_text("[1]\nnull\n7\n"), "3"),
        (lambda file: (file.unlink(), file.mkdir()), "directory|file"),
        (pipe, "file"),
        (lambda file: (file.unlink(), file.symlink_to(file)), "Too many levels"),
        (lambda file: file.unlink(), "there"),
    ],
)
def test_a_file_that_is_spoilt(path: Path, spoil: Any, word: str) -> None:
    """What cannot be read of a node is said, and all that other nodes have written is there."""
    histories.write(path, nodes=2, attempts=1)
    spoil(path / "nodes/gpu002/events.jsonl")
    told = history.read_history(path)

    assert len(told.unreadable) == 1
    assert told.unreadable[0].startswith("nodes/gpu002/events.jsonl: ")
    why = told.unreadable[0].removeprefix("nodes/gpu002/events.jsonl: ")
    assert any(mentions(why, one) for one in word.split("|"))
    assert [worker.rank for worker in told.attempts[0].workers][:4] == [0, 1, 2, 3]


def test_foreign_files_are_passed_over(path: Path) -> None:
    """Whatever else lies in the directory does not matter, unless it is where a record should be."""
    histories.write(path)
    for name in ("notes.txt", "nodes/.hidden", "progress/rank_x.json", "attempt_x/file", "attempt_0/extra"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("foreign")
    (path / "progress/rank_3.json").write_text("")
    (path / "nodes/stray").write_text("")

    told = history.read_history(path)
    assert told.unreadable == (
        "nodes/stray/events.jsonl: Not a directory",
        "progress/rank_3.json: it is empty",
    )


@settings(deadline=None, max_examples=60)
@given(
    lines=st.lists(
        st.fixed_dictionaries(
            {"event": st.sampled_from(KINDS) | ANYTHING, "time": st.floats() | ANYTHING},
            optional={name: st.integers(-2, 3) | ANYTHING for name in FIELDS if name != "time"},
        ),
        max_size=8,
    )
)
def test_whatever_the_fields_are(lines: list[dict[str, Any]]) -> None:
    """Events with fields of any kind are read, and causes are found in them, without an error."""
    with tempfile.TemporaryDirectory() as folder:
        job = JobDirectory(Path(folder), "job")
        job.events("a").parent.mkdir(parents=True)
        job.events("a").write_text("".join(json.dumps(line) + "\n" for line in lines))
        told = history.read_history(job.path)
        found = [root_cause.root_cause_of(told, attempt) for attempt in told.attempts]

    assert len(found) == len(told.attempts)


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=200), name=st.sampled_from(["nodes/gpu001/events.jsonl", "requeues.jsonl", "job.json"]))
def test_whatever_the_bytes_are(data: bytes, name: str) -> None:
    """Files with any content are read without an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = histories.write(Path(folder) / "job", nodes=1, attempts=1)
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(data)

        assert history.read_history(path).path == path


def test_any_beginning_of_a_file(path: Path) -> None:
    """However far a file is written, all of its whole lines count, and the rest is said once."""
    histories.write(path, nodes=1, attempts=1)
    file = path / "nodes/gpu001/events.jsonl"
    data = file.read_bytes()
    chance = random.Random(7)
    for length in [0, 1, len(data) - 1, *(chance.randrange(len(data)) for _ in range(50))]:
        file.write_bytes(data[:length])
        whole = data[:length].count(b"\n") + (length == len(data) - 1)
        told = history.read_history(path)
        assert sum(len(attempt.workers) for attempt in told.attempts) <= 4
        assert len(told.unreadable) == (not (length == 0 or data[:length].endswith(b"\n") or length == len(data) - 1))
        assert (told.attempts != ()) == (whole > 1)


def test_several_agents_of_a_node(path: Path) -> None:
    """With one task a rank the agents of a node share its file; each has a clock and a run of its own."""
    job = JobDirectory(path.parent, path.name)
    for agent, offset in ((0, 0.0), (1, 50.0)):
        log = EventLog(job.events("gpu001"), agent)
        log.record(events.RUN, when=99.0 + offset, host="gpu001", first_attempt=0)
        log.record(events.ATTEMPT, when=100.0 + offset, attempt=0, host="gpu001", world_size=2)
        log.record(events.CLOCK, when=100.5 + offset, attempt=0, offset=offset, error=0.001)
        log.record(events.WORKER_STARTED, when=101.0 + offset, attempt=0, rank=agent, local_rank=agent, pid=5)
    (attempt,) = history.read_history(path).attempts

    assert [(worker.rank, worker.agent, worker.started) for worker in attempt.workers] == [(0, 0, 101.0), (1, 1, 101.0)]


def test_an_exception_has_the_leaders_time(path: Path) -> None:
    """As the event has that it belongs to; where it is not known when it was raised there is none."""
    log = EventLog(JobDirectory(path.parent, path.name).events("gpu001"), 0)
    log.record(events.CLOCK, when=100.0, attempt=0, offset=50.0, error=0.001)
    for rank, time in ((0, 149.0), (1, None)):
        raised = {"type": "ValueError", "message": "", "where": "", "source": "hook", "time": time}
        log.record(events.WORKER_ENDED, when=150.0, attempt=0, rank=rank, exitcode=1, failure={"exception": raised})
    log.record(events.WORKER_ENDED, when=150.0, attempt=0, rank=2, exitcode=1, failure={"exception": {"type": ""}})
    (attempt,) = history.read_history(path).attempts
    raised_by = [worker.failure.exception if worker.failure else None for worker in attempt.workers]

    assert [one.time if one else "none" for one in raised_by] == [99.0, None, "none"]


def test_records_of_a_later_version(path: Path) -> None:
    """Events and fields that are not known are passed over."""
    histories.write(path, nodes=1, attempts=1)
    before = history.read_history(path)
    file = path / "nodes/gpu001/events.jsonl"
    lines = [json.dumps({**json.loads(line), "new": [1]}) for line in file.read_text().splitlines()]
    new = json.dumps({"time": before.attempts[0].begin, "event": "new", "agent": 0, "attempt": 0})
    file.write_text("".join(f"{line}\n" for line in [*lines, new]))

    assert dataclasses.replace(history.read_history(path), path=path) == before


def test_a_notice_that_some_nodes_hear(path: Path) -> None:
    """What nodes say of one is put together: who got it then or later, and where nobody has a handler for it."""
    histories.write(path, nodes=3, attempts=1, ending="")
    begin = history.read_history(path).attempts[0].begin
    assert begin is not None

    def say(node: int, after: float, number: int, **facts: int) -> None:
        about = {"agent": node, "attempt": 0, "signal": "SIGUSR1", "number": number, **facts}
        with (path / f"nodes/{histories.host_of(node)}/events.jsonl").open("a") as file:
            file.write(json.dumps({"time": begin + after, "event": events.NOTICE, **about}) + "\n")

    say(0, 5, 1, told=2, waiting=0)
    say(1, 6, 1, told=0, waiting=2)
    say(2, 4, 1, told=0, waiting=2)
    say(2, 9, 1, told=1, waiting=1)
    say(1, 20, 2, told=0, waiting=1)
    say(0, 21, 3)  # as versions wrote that knew nothing of handlers

    assert history.read_history(path).notices == (
        RecordedNotice(begin + 4, 0, "SIGUSR1", 1, ("gpu001", "gpu003"), ("gpu002",)),
        RecordedNotice(begin + 20, 0, "SIGUSR1", 2, (), ("gpu002",)),
        RecordedNotice(begin + 21, 0, "SIGUSR1", 3, ("gpu001",), ()),
    )


def test_an_event_stays_small(path: Path) -> None:
    """An event with more than a reader wants to meet is written without its failure."""
    log = EventLog(path / "events.jsonl", 0)
    log.record(events.WORKER_ENDED, rank=3, failure={"lines": ["x" * 100_000]})
    (line,) = (path / "events.jsonl").read_text().splitlines()

    assert {"time": json.loads(line)["time"], "event": "worker ended", "agent": 0, "rank": 3} == json.loads(line)


def test_a_leader_that_is_lost(path: Path) -> None:
    """Where the agents have no common end, what they said when they left is the end of the attempt."""
    job = JobDirectory(path.parent, path.name)
    for agent in range(3):
        log = EventLog(job.events(f"gpu00{agent}"), agent)
        log.record(events.ATTEMPT, when=100.0, attempt=0, host=f"gpu00{agent}", world_size=3)
        log.record(events.WORKER_STARTED, when=101.0, attempt=0, rank=agent, local_rank=0, pid=5)
        if agent:
            log.record(events.NODE_LOST, when=110.0 + agent, attempt=0, hosts="gpu000")
            log.record(events.RUN_ENDED, when=111.0 + agent, attempt=0, status=69, cause="gpu000 is lost")
    told = history.read_history(path)
    (attempt,) = told.attempts
    cause = root_cause.root_cause_of(told, attempt)

    assert (attempt.ending, attempt.status, attempt.by, attempt.decided) == ("failed", 69, "gpu001", 112.0)
    assert cause is not None
    assert cause.lost == "gpu000"


def test_a_run_ends_as_those_say_who_were_in_it(path: Path) -> None:
    """A node that was cut off ends by itself, with a status of its own; one that was killed says nothing."""
    job = JobDirectory(path.parent, path.name)
    logs = {host: EventLog(job.events(host), agent) for agent, host in enumerate(("gpu000", "gpu001", "gpu002"))}
    for host, log in logs.items():
        log.record(events.RUN, when=90.0, host=host, first_attempt=0, pid=5)
        log.record(events.ATTEMPT, when=100.0, attempt=0, host=host, world_size=3)
    logs["gpu000"].record(events.NODES, when=100.0, attempt=0, hosts="gpu[000-002]", leader="gpu000")
    logs["gpu000"].record(events.NODES, when=120.0, attempt=1, hosts="gpu000", leader="gpu000", lost="gpu[001-002]")
    logs["gpu001"].record(events.NODE_MISSING, when=125.0, attempt=0, hosts="gpu[000,002]", joined=1, expected=3)
    logs["gpu001"].record(events.RUN_ENDED, when=150.0, attempt=0, status=69, cause="cannot go on")
    told = history.read_history(path)
    assert (told.runs[0].end, told.runs[0].status) == (None, None)

    logs["gpu000"].record(events.RUN_ENDED, when=140.0, attempt=1, status=0)
    told = history.read_history(path)
    assert (told.runs[0].end, told.runs[0].status) == (140.0, 0)
    assert "missing" not in [event.kind for event in told.node_events]


@pytest.mark.parametrize(
    ("fields", "hang"),
    [
        ({"cause": "hang: nothing for 60 s (--hang-timeout): rank 0 waits"}, True),
        ({"cause": "it hung", "hang": True}, True),
        ({"cause": "it hung", "hang": "yes"}, False),
        ({"cause": "rank 0 on gpu001 (local rank 0) failed with exit status 124"}, False),
    ],
)
def test_an_attempt_that_hung(tmp_path: Path, fields: dict[str, Any], hang: bool) -> None:
    """A field says so; events of earlier versions have the first words only. No worker is to blame then."""
    job = JobDirectory(tmp_path, "job")
    log = EventLog(job.events("gpu001"), 0, job.path)
    log.record(events.RUN, host="gpu001", first_attempt=0)
    log.record(events.ATTEMPT, attempt=0, host="gpu001", world_size=1, agents=1)
    log.record(events.WORKER_STARTED, attempt=0, rank=0, local_rank=0, pid=1)
    log.record(events.ROUND_ENDED, attempt=0, ending="failed", by="gpu001", status=124, **fields)
    log.record(events.WORKER_ENDED, attempt=0, rank=0, local_rank=0, exitcode=1, told="")
    (attempt,) = history.read_history(job.path).attempts
    found = root_cause.find_root_cause(attempt)

    assert attempt.hang is hang
    assert found is not None
    assert (found.first is None) is hang
