"""How a job stands, by what its record, its handle and Slurm say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_launch.jobs.files import JobFiles, Outcome
from hpc_launch.jobs.handles import InProcess
from hpc_launch.jobs.job import Job
from hpc_launch.jobs.standing import Standing, Subject, standing, subject
from hpc_launch.records import directory
from hpc_launch.slurm.job import JobRecord

SUBMITTED = {"cluster": "slurm", "name": "train", "submitted": 100.0, "resources": {"nodes": 2}}
RUNNING = JobRecord("7", "RUNNING", "None", start=150.0, end=4000.0, nodes="gpu[001-002]")


def test_a_job_that_waits() -> None:
    """Slurm says why, and when it may start."""
    record = JobRecord("7", "PENDING", "Priority", start=900.0, end=4500.0)
    expected = Standing("PENDING", "Priority", nodes_asked=2, start=900.0, end=4500.0)

    assert standing("PENDING", SUBMITTED, record, None, done=False) == expected


def test_a_job_that_runs() -> None:
    expected = Standing("RUNNING", "None", ("gpu001", "gpu002"), 2, start=150.0, end=4000.0)

    assert standing("RUNNING", SUBMITTED, RUNNING, None, done=False) == expected


def test_a_job_that_has_ended_before_slurm_says_so() -> None:
    """Its own word for when that was counts, not the end of its time limit."""
    ended = standing("COMPLETED", SUBMITTED, RUNNING, Outcome(0, Path("x"), 200.0), done=True)

    assert (ended.end, ended.phase, ended.over) == (200.0, "done", True)


def test_a_job_outside_of_slurm() -> None:
    """It began when it was submitted."""
    record = {**SUBMITTED, "cluster": "local"}

    assert standing("RUNNING", record, None, None, done=False) == Standing("RUNNING", nodes_asked=2, start=100.0)


def test_a_job_that_nobody_knows_any_more() -> None:
    """Its state is unknown for ever."""
    lost = standing("UNKNOWN", SUBMITTED, None, None, done=True)

    assert (lost.phase, lost.over) == ("unknown", True)


@pytest.mark.parametrize("submitted", [{}, {"resources": 5, "submitted": "x"}, {"resources": {"nodes": "2"}}])
def test_a_record_that_is_none(submitted: dict[str, Any]) -> None:
    """What cannot be read is not known."""
    record = JobRecord("7", "RUNNING", nodes="gpu[1-")
    found = standing("RUNNING", submitted, record, None, done=False)

    assert (found.nodes, found.nodes_asked, found.start) == (("gpu[1-",), 0, None)
    assert subject("7", submitted) == Subject("job", "7", "Slurm")


@pytest.mark.parametrize(
    ("kind", "where"),
    [("slurm", "Slurm"), ("allocation", "allocation"), ("local", "this machine"), ("debug", "this process")],
)
def test_where_it_runs(kind: str, where: str) -> None:
    assert subject("7", {**SUBMITTED, "cluster": kind}) == Subject("train", "7", where)


def test_a_job_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `print` says, what a front end gets that is no notebook's kernel, and the value are of the same moment."""
    monkeypatch.setattr("time.time", lambda: 165.0)
    files = JobFiles(tmp_path / "submitted", "debug-1")
    directory.write_json(files.record, {**SUBMITTED, "cluster": "debug"})
    job: Job[None] = Job(files, InProcess(0), tmp_path / "debug-1")

    assert job.view().phase == "done"
    assert str(job) == job._repr_mimebundle_()["text/plain"]
    assert str(job) == "train (job debug-1): done, 1:05 in all"


def test_a_job_of_a_batch_that_has_not_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to show yet, and showing it is no error."""
    job: Job[None] = Job(None, None, None)
    job._ipython_display_()

    assert capsys.readouterr().out == f"{job!r}\n" == f"{job}\n"
    assert job._repr_mimebundle_() == {"text/plain": repr(job)}
