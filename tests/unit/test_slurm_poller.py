"""Jobs from Python: how they stand, by files first, and by as few questions to Slurm as there can be."""

from __future__ import annotations

import json
import os
import pickle
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hpc_launch import codec
from hpc_launch.api import agent_process, remote_exception, results, submission_files
from hpc_launch.api.backends import JobEnding, LocalJob, SlurmJob
from hpc_launch.api.job_handle import Job
from hpc_launch.api.slurm_poller import SlurmPoller
from hpc_launch.api.submission_files import JobFiles, Outcome, read_outcome, write_once
from hpc_launch.errors import JobFailed, UsageError, WorkerFailed
from hpc_launch.node import processes
from hpc_launch.records import events
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.slurm.job import JobRecord
from tests import histories
from tests.histories import Losses
from tests.support import mentions


@dataclass
class Slurm:
    """A Slurm that knows what it is told, and counts."""

    states: dict[str, str] = field(default_factory=dict)
    remembered: dict[str, str] = field(default_factory=dict)
    answers: bool = True
    now: float = 0.0
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def queue(self, jobs: Sequence[str]) -> tuple[JobRecord, ...] | None:
        self.asked.append(tuple(jobs))
        if not self.answers:
            return None
        known = [name for name in self.states if name.partition("_")[0] in jobs]
        return tuple(JobRecord(name, self.states[name], label=name) for name in known)

    def accounting(self, jobs: str) -> tuple[JobRecord, ...]:
        names = [name for name in self.remembered if name.partition("_")[0] in jobs.split(",")]
        return tuple(JobRecord(name, self.remembered[name], label=name) for name in names)

    def watch(self) -> SlurmPoller:
        return SlurmPoller(self.queue, self.accounting, lambda: self.now)


def test_many_jobs_are_one_question() -> None:
    """Fifty jobs of an array and one more, looked at a hundred times in a minute."""
    slurm = Slurm({**{f"1_{number}": "RUNNING" for number in range(50)}, "2": "PENDING"})
    watch = slurm.watch()
    for _ in range(100):
        states = {name: record.state for name in slurm.states if (record := watch.record(name)) is not None}
        slurm.now += 0.6

    assert states == slurm.states
    assert slurm.asked[0] == ("1",), "the first look does not know of the others"
    assert slurm.asked[-1] == ("1", "2")
    assert watch.questions == len(slurm.asked) <= 12


def test_a_change_is_looked_at_more_closely() -> None:
    """Pauses grow to a quarter of a minute, and begin anew when a job is another than it was."""
    slurm = Slurm({"1": "RUNNING", "2": "RUNNING"})
    watch = slurm.watch()
    for _ in range(1000):
        watch.record("1")
        watch.record("2")
        slurm.now += 0.1
    quiet = len(slurm.asked)
    slurm.states["2"] = "COMPLETED"
    for _ in range(200):
        watch.record("1")
        slurm.now += 0.1

    assert len(slurm.asked) - quiet >= 5
    assert slurm.asked[-1] == ("1",), "nobody asks for what has ended"


def test_what_has_ended_is_not_asked_for() -> None:
    """Its state stays."""
    slurm = Slurm({"1": "FAILED"})
    watch = slurm.watch()
    for _ in range(100):
        record = watch.record("1")
        assert record is not None
        assert record.state == "FAILED"
        slurm.now += 10

    assert slurm.asked == [("1",)]


def test_accounting_knows_what_the_controller_has_forgotten() -> None:
    """Where there is any."""
    slurm = Slurm({"1": "RUNNING"}, {"1": "TIMEOUT", "3": "RUNNING"})
    watch = slurm.watch()
    watch.record("1")
    del slurm.states["1"]
    slurm.now += 100
    record = watch.record("1")

    assert record is not None
    assert record.state == "TIMEOUT"
    assert watch.record("3") is None, "what accounting calls running may be long gone"


def test_a_job_that_nobody_knows_is_lost_after_some_questions() -> None:
    """And is not asked for any more; a Slurm that does not answer says nothing."""
    slurm = Slurm(answers=False)
    watch = slurm.watch()
    for _ in range(50):
        watch.record("1")
        slurm.now += 20
    assert not watch.lost("1")
    slurm.answers = True
    for _ in range(8):
        assert not watch.lost("1")
        watch.record("1")
        slurm.now += 20
    count = len(slurm.asked)
    watch.record("1")

    assert watch.lost("1")
    assert len(slurm.asked) == count


# ---- handles


def queued(folder: Path, slurm: Slurm) -> SlurmJob:
    return SlurmJob(JobFiles(folder, "1"), slurm.watch(), lambda: slurm.now)


def write_outcome(job: JobFiles, status: int, time: float = 0.0) -> None:
    job.outcome.write_text(codec.document(Outcome(status, Path("/logs/1.0"), time)))


def test_a_job_that_says_how_it_ended_needs_no_question(tmp_path: Path) -> None:
    """The file is enough."""
    slurm = Slurm({"1": "RUNNING"})
    handle = queued(tmp_path, slurm)
    write_outcome(handle.files, 0)

    assert handle.ending() == JobEnding(0, "COMPLETED", Path("/logs/1.0"))
    assert (handle.state(), slurm.asked) == ("COMPLETED", [])
    write_outcome(handle.files, 3)
    assert handle.ending() == JobEnding(3, "FAILED", Path("/logs/1.0"))
    assert slurm.asked == []


def test_a_job_that_was_stopped_has_slurms_word(tmp_path: Path) -> None:
    """143 is a time limit, a preemption or scancel: Slurm knows."""
    slurm = Slurm({"1": "COMPLETING"})
    handle = queued(tmp_path, slurm)
    write_outcome(handle.files, 143, 4e9)
    assert handle.ending() is None
    slurm.states["1"] = "TIMEOUT"
    slurm.now += 60

    assert handle.ending() == JobEnding(143, "TIMEOUT", Path("/logs/1.0"))


def test_a_job_that_ended_without_a_word_is_waited_for(tmp_path: Path) -> None:
    """What its node has written may be seen later; after that it is what Slurm says, and no success."""
    slurm = Slurm({"1": "COMPLETED"})
    handle = queued(tmp_path, slurm)
    assert handle.ending() is None
    slurm.now += 10
    assert handle.ending() is None
    slurm.now += 10

    assert handle.ending() == JobEnding(1, "COMPLETED")


def test_a_job_that_is_requeued_after_a_preemption_has_not_ended(tmp_path: Path) -> None:
    """Slurm calls it preempted for a moment, before the agent has had it requeued."""
    slurm = Slurm({"1": "PREEMPTED"})
    handle = queued(tmp_path, slurm)
    assert handle.ending() is None
    slurm.states["1"] = "PENDING"
    for _ in range(20):
        slurm.now += 2
        assert handle.ending() is None

    assert handle.state() == "PENDING"


def test_a_job_that_is_forgotten_is_unknown(tmp_path: Path) -> None:
    """Never a success."""
    slurm = Slurm()
    handle = queued(tmp_path, slurm)
    for _ in range(20):
        ending = handle.ending()
        slurm.now += 20

    assert ending == JobEnding(1, "UNKNOWN")
    assert handle.state() == "UNKNOWN"


def test_a_process_that_is_gone_has_failed(tmp_path: Path) -> None:
    """One that is there runs; a number that another process has got is none; nobody knows of other machines."""
    handle = LocalJob(JobFiles(tmp_path, "local-1"))
    here = {"pid": os.getpid(), "started": processes.start_time(os.getpid()), "host": socket.gethostname()}
    states = []
    for facts in (here, {**here, "started": "1"}, {**here, "started": "1", "host": "elsewhere"}):
        handle.files.process.write_text(json.dumps(facts))
        states.append(handle.state())

    assert states == ["RUNNING", "FAILED", "RUNNING"]


def test_the_calls_file_is_written_once(tmp_path: Path) -> None:
    """Several tasks do so at the same time."""
    write_once(tmp_path / "call", b"one")
    write_once(tmp_path / "call", b"other")

    assert (tmp_path / "call").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["call"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "0"}'])
def test_half_an_outcome_is_none(tmp_path: Path, text: str) -> None:
    """It is written whole, but somebody else may have been there."""
    (tmp_path / "x").write_text(text)

    assert read_outcome(tmp_path / "x") is None
    assert submission_files.read_json(tmp_path / "none") == {}


# ---- results


def write_result(job: JobDirectory, attempt: int, rank: int, size: int, value: object) -> None:
    path = job.rank(attempt, f"n{rank // 2}", rank).result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"world_size": size}) + pickle.dumps(value))


def test_results_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    """By rank, also from ten on, whatever an earlier attempt has left."""
    job = JobDirectory(tmp_path, "1.0")
    for rank in range(12):
        write_result(job, 0, rank, 12, "old")
        write_result(job, 1, rank, 12, rank)

    assert results.read_results(job, "1", functions=True) == list(range(12))


def test_a_result_that_is_missing_is_named(tmp_path: Path) -> None:
    """Rather than a list that is too short."""
    job = JobDirectory(tmp_path, "1.0")
    for rank in (0, 2):
        write_result(job, 0, rank, 4, rank)
    with pytest.raises(JobFailed, match=rf"\b1\b.*\b1, 3\b.*{tmp_path}"):
        results.read_results(job, "1", functions=True, patience=0)


def test_a_job_of_no_batch_yet_says_so() -> None:
    """Nothing is known of it before."""
    job: Job[None] = Job(None, None, None)

    assert repr(job) == "<Job, not submitted yet>"
    with pytest.raises(UsageError, match="with executor"):
        job.done()


@pytest.mark.parametrize("how", ["id", "directory", "record", "folder"])
def test_a_job_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """By its id in the usual folder, or in another, and by the paths that it has."""
    base = tmp_path / "logs" / submission_files.SUBMITTED
    base.mkdir(parents=True)
    where = tmp_path / "logs" / "12_3.0"
    where.mkdir()
    (base / "12_3.json").write_text(json.dumps({"job_id": "12_3", "cluster": "slurm", "directory": str(where)}))
    monkeypatch.chdir(tmp_path)
    job = {
        "id": lambda: Job.load("12_3"),
        "directory": lambda: Job.load(where),
        "record": lambda: Job.load(base / "12_3.json"),
        "folder": lambda: Job.load("12_3", tmp_path / "logs"),
    }[how]()

    assert (job.job_id, job.directory) == ("12_3", where)


SUBMITTED = submission_files.SubmissionRecord("12", "local", "train", ("train.py", "--lr", "1"), Path("logs/12.0"))


def test_what_was_submitted_is_written_and_read(tmp_path: Path) -> None:
    """Only what is known is written, and a command, which may have secrets in it, for nobody else."""
    path = tmp_path / "12.json"
    submission_files.write_record(path, SUBMITTED)
    assert json.loads(path.read_bytes()) == {
        "job_id": "12",
        "cluster": "local",
        "name": "train",
        "script": ["train.py", "--lr", "1"],
        "directory": "logs/12.0",
    }
    assert submission_files.read_record(path) == SUBMITTED

    asked = replace(SUBMITTED, submitted=1.5, resources={"nodes": 2, "time": "1:00"}, command=("hpc-launch", "a"))
    submission_files.write_record(path, asked)
    assert submission_files.read_record(path) == asked
    assert path.stat().st_mode & 0o777 == submission_files.PICKLE_MODE


@pytest.mark.parametrize("lacks", ["cluster", "directory", "all"])
def test_a_record_of_a_submission_that_is_none(tmp_path: Path, lacks: str) -> None:
    """A name that is taken has an empty file; without where it runs and its directory a record says nothing."""
    path = tmp_path / "12.json"
    path.write_text("" if lacks == "all" else json.dumps({**codec.plain(SUBMITTED), lacks: 5}))

    assert submission_files.read_record(path) is None


@pytest.mark.parametrize(("damage", "left"), [({"submitted": "x"}, None), ({"resources": 5, "submitted": 2.5}, 2.5)])
def test_a_record_is_read_as_far_as_it_makes_sense(tmp_path: Path, damage: dict[str, Any], left: float | None) -> None:
    path = tmp_path / "12.json"
    path.write_text(json.dumps({**codec.plain(SUBMITTED), **damage}))

    assert submission_files.read_record(path) == replace(SUBMITTED, submitted=left)


def test_a_job_that_is_not_there_is_said(tmp_path: Path) -> None:
    """With where it was looked for."""
    with pytest.raises(UsageError, match=f"'99' .*{tmp_path}"):
        Job.load("99", tmp_path)


# ---- what ended it


def ended(folder: Path, **facts: Any) -> JobDirectory:
    """A job of eight ranks that failed in its second attempt, in which all ranks have raised something."""
    path = histories.write(folder / "logs" / "12.0", ending="failed", **facts)
    job = JobDirectory(path.parent, path.name)
    for rank in range(8):
        files = job.rank(1, histories.host_of(rank // 4), rank)
        files.raised.parent.mkdir(parents=True, exist_ok=True)
        error = ValueError("mine") if rank == 5 else ConnectionError("a peer is gone")
        remote_exception.write_exception(files.raised, error, None, rank, histories.host_of(rank // 4))
    return job


def failure(job: JobDirectory) -> BaseException:
    return results.failure_of_job(job, "12", 1, "FAILED", lambda: "the last words")


def test_the_exception_is_that_of_the_root_cause(tmp_path: Path) -> None:
    """Not of those who lost their connection to it, whoever has noted it first."""
    error = failure(ended(tmp_path, fails={1: 5}))

    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, remote_exception.RemoteTraceback)
    assert (error.__cause__.rank, error.__cause__.host) == (5, histories.host_of(1))


def test_a_worker_that_was_killed_has_raised_nothing(tmp_path: Path) -> None:
    """Then what the others have raised is no cause either."""
    job = ended(tmp_path, fails={1: 5}, exception=None)
    job.rank(1, histories.host_of(1), 5).raised.unlink()
    error = failure(job)

    assert isinstance(error, WorkerFailed)
    assert (error.rank, error.host, error.signal, error.status) == (5, histories.host_of(1), "SIGKILL", 137)
    assert re.search(r"\b5\b.*gpu002.*SIGKILL \(", str(error)), "with what the kernel did"


def test_what_is_raised_in_a_stop_is_no_cause(tmp_path: Path) -> None:
    """A job that was cancelled was cancelled, whatever its workers say of that."""
    job = ended(tmp_path)
    histories.write(job.path, ending="stopped")
    error = results.failure_of_job(job, "12", 143, "CANCELLED", lambda: "the last words")

    assert type(error) is JobFailed
    assert (error.state, error.exit_status) == ("CANCELLED", 143)
    assert mentions(error, "12 143 CANCELLED", "the last words")


def test_what_is_raised_for_a_lost_node_is_no_cause(tmp_path: Path) -> None:
    """Too few are left: that is said, and not what a rank has raised that lost its connection."""
    job = ended(tmp_path)
    Losses(job.path, "").write()
    log = EventLog(job.events("gpu002"), 1)
    log.record(events.NODE_LOST, when=1_718_000_300.0, attempt=3, hosts="gpu006")
    end = {"ending": "restart", "by": "gpu002", "status": 69, "cause": "gpu006 is lost", "signal": ""}
    log.record(events.ROUND_ENDED, when=1_718_000_300.0, attempt=3, **end)
    remote_exception.write_exception(
        job.rank(3, "gpu002", 0).raised, ConnectionError("a peer is gone"), None, 0, "gpu002"
    )
    error = results.failure_of_job(job, "12", 69, "FAILED", lambda: "the others")

    assert type(error) is JobFailed
    assert mentions(error, "12 69 FAILED lost gpu006")
    assert str(error).endswith("; the others")


@pytest.mark.parametrize(("ending", "restarts", "status"), [("done", 0, 0), ("", 0, None), ("done", 1, None)])
def test_the_end_of_a_run_that_loses_nodes(tmp_path: Path, ending: str, restarts: int, status: int | None) -> None:
    """It is the last attempt's, of this run and no other: as long as that goes on, whoever ends was lost."""
    job = JobDirectory(tmp_path, "12.0")
    assert agent_process.final_status(job, {}) is None
    Losses(job.path, ending).write()

    assert agent_process.final_status(job, {"SLURM_RESTART_COUNT": str(restarts)}) == status


def test_ranks_of_a_script_are_those_of_the_last_attempt(tmp_path: Path) -> None:
    """The world may have shrunk."""
    job = JobDirectory(tmp_path, "12.0")
    Losses(job.path).write()
    (job.attempt(3)).mkdir()

    assert results.read_results(job, "12", functions=False) == [None] * 6


def test_an_exception_that_stays_there_is_told_in_words(tmp_path: Path) -> None:
    """With the traceback as its cause all the same."""
    job = ended(tmp_path, fails={1: 5})
    path = job.rank(1, histories.host_of(1), 5).raised
    note = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**note, "pickled": b"not to be read"}))
    error = failure(job)

    assert isinstance(error, WorkerFailed)
    assert mentions(error, "12 5 gpu002 ValueError: mine")
    assert (error.rank, error.host, bool(error.log)) == (5, "gpu002", True)
    assert isinstance(error.__cause__, remote_exception.RemoteTraceback)
