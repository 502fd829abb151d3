"""What an agent writes down of itself and its workers."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hpc_launch.agent import recorder as recorder_module
from hpc_launch.agent.recorder import Recorder
from hpc_launch.agent.run_context import RunContext
from hpc_launch.node import processes
from hpc_launch.plan.derivation import make_plan
from hpc_launch.records import events, history
from hpc_launch.records.claims import claim_run
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.settings import resolve
from hpc_launch.workers.command_workers import CommandWorkers
from hpc_launch.workers.factory_server import EndedWorker
from tests.unit.test_plan import here

GONE = 1 << 22

PATIENCE = 30.0


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """Return the context of a run that knows its job directory from the beginning."""
    plan = make_plan(resolve({"log_dir": str(tmp_path), "rdzv_id": "run"}, {}), here(), ("train.py",))
    return RunContext(dataclasses.replace(plan, job_name="job"))


@pytest.fixture
def recorder(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Return the recorder of an agent on that context."""
    monkeypatch.setattr(recorder_module, "Backoff", lambda *_: SimpleNamespace(due=lambda _: False))
    return Recorder(context, {"SLURM_RESTART_COUNT": "2"})


def job_of(recorder: Recorder, context: RunContext) -> JobDirectory:
    """Begin to write in a job directory."""
    context.first_label, context.label, context.number = 4, 5, 1
    recorder.open()
    recorder.begin(2)
    return context.job


def workers(folder: Path, pids: dict[int, int], ended: dict[int, EndedWorker], **more: Any) -> CommandWorkers:
    """Workers that have ended as they are told, without any process."""
    found = CommandWorkers.__new__(CommandWorkers)
    for name, suffix in (("stdouts", "out"), ("stderrs", "err"), ("error_files", "error.json")):
        setattr(found, name, {local: str(folder / f"rank_{local}.{suffix}") for local in pids})
    found._pids = pids
    found.endings, found.told, found.hung = ended, more.get("told", {}), more.get("hung", ())
    return found


def lines(recorder: Recorder, job: JobDirectory) -> list[dict[str, Any]]:
    """The events of the only node, when all are written."""
    assert recorder.settle(PATIENCE)
    (path,) = job.path.glob("nodes/*/events.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_said_before_there_was_a_place_for_it(recorder: Recorder, context: RunContext) -> None:
    """It is written after the beginning of the run, with its own time."""
    recorder.say(events.NODE_MISSING, hosts="gpu007")
    first, second, third = lines(recorder, job_of(recorder, context))

    assert [first["event"], second["event"], third["event"]] == [events.RUN, events.NODE_MISSING, events.ATTEMPT]
    assert (first["first_attempt"], first["restart_count"], second["hosts"]) == (4, 2, "gpu007")
    assert first["time"] <= second["time"] <= third["time"]
    assert set(first["versions"]) == {"hpc-launch", "python", "torch", "kernel"}


def test_workers_that_end(recorder: Recorder, context: RunContext, tmp_path: Path) -> None:
    """How each ended, what it used and why it failed is written down, once."""
    job = job_of(recorder, context)
    ended = {0: EndedWorker(11, 0, 100.0, (1.5, 0.25, 1 << 20)), 1: EndedWorker(12, 3, 101.0, (0.0, 0.0, 0))}
    (tmp_path / "rank_1.err").write_text("the last line\n")
    found = workers(tmp_path, {0: 11, 1: 12}, ended)
    for local in (0, 1):
        recorder.started(local, local + 6, found)
    for _ in range(2):
        recorder.look(found)
    recorder.finish(found)
    recorder.left(3, "why")
    (attempt,) = history.read_history(job.path).attempts
    well, failed = attempt.workers

    assert [event["event"] for event in lines(recorder, job)].count(events.WORKER_ENDED) == 2
    assert (well.rank, well.exitcode, well.ended, well.failure) == (6, 0, 100.0, None)
    assert well.usage is not None
    assert (well.usage.user, well.usage.system, well.usage.max_rss) == (1.5, 0.25, 1 << 20)
    assert failed.failure is not None
    assert (failed.failure.lines, failed.failure.log) == (("the last line",), str(tmp_path / "rank_1.err"))
    assert lines(recorder, job)[-1]["event"] == events.RUN_ENDED


def test_a_worker_that_cannot_be_killed(
    recorder: Recorder, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no end, but it is said that it hangs, and in what."""
    job = job_of(recorder, context)
    found = workers(tmp_path, {0: GONE}, {}, hung=(GONE,))
    recorder.started(0, 0, found)
    monkeypatch.setattr(processes, "hung_in", lambda _: "nfs4_wait")
    recorder.finish(found)
    assert recorder.settle(PATIENCE)
    (worker,) = history.read_history(job.path).attempts[0].workers

    assert worker.exitcode is None
    assert worker.failure is not None
    assert worker.failure.hung == "nfs4_wait"


def test_signs_of_life(
    recorder: Recorder, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that waits in the kernel at two of them in a row is named."""
    job = job_of(recorder, context)
    found = workers(tmp_path, {0: os.getpid(), 1: GONE}, {})
    for local in (0, 1):
        recorder.started(local, local, found)
    monkeypatch.setattr(cast("Any", recorder), "_beat", SimpleNamespace(due=lambda _: True))
    for states in ({0, 1}, {1}, set[int]()):
        monkeypatch.setattr(processes, "hung_in", _hanging({GONE if local else os.getpid() for local in states}))
        recorder.look(found)
    beats = [event for event in lines(recorder, job) if event["event"] == events.HEARTBEAT]

    assert [(beat["running"], beat["waiting"]) for beat in beats] == [(2, []), (2, [1]), (2, [])]


def _hanging(pids: set[int]) -> Callable[[int], str]:
    return lambda pid: "nfs4_wait" if pid in pids else ""


def test_agents_that_never_met(recorder: Recorder, tmp_path: Path) -> None:
    """Where the directory is known, a run that never began is there with how it ended."""
    JobDirectory(tmp_path, "job").attempt(6).mkdir(parents=True)
    recorder.say(events.NODE_MISSING, hosts="gpu007", joined=1, expected=2)
    recorder.left(69, "gpu007 did not join")
    told = history.read_history(tmp_path / "job")

    assert [(run.first_attempt, run.status) for run in told.runs] == [(7, 69)]
    assert [(event.kind, event.hosts) for event in told.node_events] == [("missing", "gpu007")]
    assert told.attempts == ()


def test_agents_that_never_met_write_in_no_other_run_s_directory(recorder: Recorder, tmp_path: Path) -> None:
    """Where another program has the directory, how a run ended that never began is not written into it."""
    claim_run(tmp_path, "job", "another", 0)
    recorder.left(69, "gpu007 did not join")

    assert list((tmp_path / "job").glob("nodes/*")) == []


def test_agents_that_never_met_and_have_no_directory(recorder: Recorder, context: RunContext, tmp_path: Path) -> None:
    """Where it is not known, nothing is written, and nothing fails."""
    context.plan = dataclasses.replace(context.plan, job_name="")
    recorder.left(69, "nobody came")

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_hangs_is_waited_for_by_nobody(
    recorder: Recorder, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events are written when the file answers, in order, each with the time at which it was said."""
    job, answers, append = job_of(recorder, context), threading.Event(), EventLog._write

    def hanging(log: EventLog, text: str) -> None:
        answers.wait(PATIENCE)
        append(log, text)

    assert recorder.settle(PATIENCE)
    monkeypatch.setattr(EventLog, "_write", hanging)
    monkeypatch.setattr(recorder_module, "_LAST_SECONDS", 0.0)
    recorder.say(events.NODE_LOST, hosts="gpu007")
    said = time.time()
    recorder.left(69, "gpu007 is lost")
    answers.set()
    lost, left = lines(recorder, job)[-2:]

    assert (lost["event"], left["event"]) == (events.NODE_LOST, events.RUN_ENDED)
    assert lost["time"] <= round(said, 3)
