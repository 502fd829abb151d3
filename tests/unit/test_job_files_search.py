"""Jobs that are found again: those of arrays, and those whose folder has an id in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_launch.api import job_files_search
from hpc_launch.api.job_handle import Job
from hpc_launch.api.submission_files import SUBMITTED, JobFiles
from hpc_launch.errors import UsageError
from hpc_launch.slurm.job import JobRecord
from tests.support import mentions


def write_record(base: Path, job_id: str, directory: Path, cluster: str = "slurm") -> None:
    base.mkdir(parents=True, exist_ok=True)
    record = {"job_id": job_id, "cluster": cluster, "directory": str(directory), "name": "x", "script": []}
    (base / f"{job_id}.json").write_text(json.dumps(record))


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An array of twelve jobs below `logs`, with what else there may be; Slurm knows nothing."""
    base = tmp_path / "logs" / SUBMITTED
    for number in range(12):
        write_record(base, f"12_{number}", tmp_path / f"logs/12_{number}.0")
    write_record(base, "123_0", tmp_path / "logs/123_0.0")
    write_record(base, "1", tmp_path / "logs/1.0")
    for name in ("12_0_outcome.json", "1_outcome.json", "1_0_result.pkl", "12_3_call.pkl"):
        (base / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpc_launch.slurm.controller.ask_jobs", lambda _job: ())
    return base


@pytest.mark.parametrize("name", ["12", "12_[0-11%4]"])
@pytest.mark.parametrize("folder", [None, "logs", "logs/%A"])
def test_an_array_is_its_jobs(array: Path, name: str, folder: str | None) -> None:
    """In the order of their numbers, by the id of the array, or as squeue writes it."""
    assert array.is_dir()
    jobs = Job.load(name, folder)

    assert [job.job_id for job in jobs] == [f"12_{number}" for number in range(12)]


def test_one_of_an_array(array: Path) -> None:
    """By its own id; an array of one is a list too, and a job that is in none is no list."""
    assert Job.load("12_3", array.parent).job_id == "12_3"
    assert [job.job_id for job in Job.load("123")] == ["123_0"]
    assert Job.load("1").job_id == "1"


def test_a_number_that_the_array_does_not_have(array: Path) -> None:
    """Those that it has are named."""
    assert array.is_dir()
    with pytest.raises(UsageError) as refused:
        Job.load("12_12")

    assert mentions(refused.value, "'12_12' 12_0 12_11")


def test_jobs_of_an_array_that_have_not_begun(tmp_path: Path) -> None:
    """Those of an executor of submitit's leave records as they start; submitit's files are there before."""
    write_record(tmp_path, "7_1", tmp_path / "7_1.0")
    for number in range(3):
        (tmp_path / f"7_{number}_submitted.pkl").touch()

    assert [job.job_id for job in Job.load("7", tmp_path)] == ["7_0", "7_1", "7_2"]


def slurm_record(job_id: str, label: str, base: Path) -> JobRecord:
    return JobRecord(job_id, "RUNNING", label=label, output=str(base / f"{label}_0_log.out"))


@pytest.mark.parametrize(
    ("asked", "records", "found"),
    [
        ("40", [("40", "40_2"), ("41", "40_0"), ("42", "40_1")], ["40_0", "40_1", "40_2"]),
        ("41", [("41", "40_0")], "40_0"),
        ("40_1", [("42", "40_1")], "40_1"),
        ("50", [("50", "50")], "50"),
    ],
)
def test_slurm_says_where_a_job_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    records: list[tuple[str, str]],
    found: str | list[str],
) -> None:
    """Also by the number that Slurm gives each job of an array besides; the last of an array has that of the array."""
    base = tmp_path / "elsewhere" / SUBMITTED
    for number in range(3):
        write_record(base, f"40_{number}", tmp_path / f"elsewhere/40_{number}.0")
    monkeypatch.chdir(tmp_path)
    answers = tuple(slurm_record(*one, base) for one in records)
    monkeypatch.setattr("hpc_launch.slurm.controller.ask_jobs", lambda _job: answers)
    jobs = job_files_search.find_job_files(asked, None)

    assert ([one.job_id for one in jobs] if isinstance(jobs, list) else jobs.job_id) == found


def test_a_directory_below_the_folder_with_the_records(tmp_path: Path) -> None:
    """As with `%j` in the executor's folder: it is the record's own directory, and no other of that name."""
    directory, other = tmp_path / "logs/12/12.0", tmp_path / "logs/else/12.0"
    write_record(tmp_path / "logs" / SUBMITTED, "12", directory)
    directory.mkdir(parents=True)
    other.mkdir(parents=True)

    assert Job.load(directory).job_id == "12"
    with pytest.raises(UsageError):
        Job.load(other)


def test_a_directory_named_from_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a path with `..`, as a notebook in a directory of its own has it."""
    directory = tmp_path / "my logs/12/12.0"
    write_record(tmp_path / "my logs" / SUBMITTED, "12", directory)
    directory.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")

    assert Job.load("../my logs/12/12.0").job_id == "12"


def test_what_is_called_as_a_job_is(array: Path) -> None:
    """A file or a directory of another kind does not stand in the way of the id; it is no job by itself."""
    Path("1").mkdir()
    Path("12_3").touch()
    Path("notes.txt").touch()
    Path("notes.json").write_text("[1]")

    assert array.is_dir()
    assert (Job.load("1").job_id, Job.load("12_3").directory.name) == ("1", "12_3.0")
    for other in ("notes.txt", "notes.json", "./1", "./12_3"):
        with pytest.raises(UsageError) as refused:
            Job.load(other)
        assert mentions(refused.value, Path(other).name)


@pytest.mark.parametrize("name", ["", "-h", "x" * 300, "~no-such-user/12.0", "a\0b", "a b", "../x", "12_[", "."])
def test_what_cannot_be_a_job_is_refused(array: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In one line, and Slurm is not asked."""
    monkeypatch.setattr("hpc_launch.slurm.controller.ask_jobs", lambda _job: pytest.fail("Slurm is asked"))
    assert array.is_dir()
    with pytest.raises(UsageError):
        Job.load(name)


def test_a_job_of_submitits_local_executor(tmp_path: Path) -> None:
    """It is called by a number, and its directory otherwise."""
    directory = tmp_path / "local-4711"
    directory.mkdir()
    write_record(tmp_path, "4711", directory, "local")

    assert (Job.load(directory).job_id, Job.load(directory).directory) == ("4711", directory)


def test_a_job_that_has_run_in_its_process(tmp_path: Path) -> None:
    """Nothing of it can be had in another one."""
    (tmp_path / SUBMITTED).mkdir()
    (tmp_path / SUBMITTED / "debug-1.json").touch()
    with pytest.raises(UsageError) as refused:
        Job.load("debug-1", tmp_path)

    assert mentions(refused.value, "debug-1")


@pytest.mark.parametrize("folder", ["own/%j", "own/12", "own/%A"])
def test_a_folder_of_submitits_own_executor(tmp_path: Path, folder: str) -> None:
    """Its files are in the folder of the job, which may be given as it was to the executor."""
    base = tmp_path / "own/12"
    base.mkdir(parents=True)
    write_record(base, "12", base / "12.0")

    assert job_files_search.find_job_files("12", tmp_path / folder) == JobFiles(base, "12")
