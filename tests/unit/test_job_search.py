"""From what a person says of a job to its job directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_launch.errors import JobNotFoundError
from hpc_launch.inspection import job_search
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from tests.support import mentions


def make(root: Path, *names: str) -> None:
    """Leave what runs leave; the last is the latest."""
    for name in names:
        (root / name / "attempt_0/gpu01").mkdir(parents=True)
        (root / name / "attempt_0/gpu01/rank_0.out").touch()
        directory.point_latest(root / name / "latest", "attempt_0")
        directory.point_latest(root / "latest", name)


def nobody(job: str) -> JobRecord | None:
    raise AssertionError(f"Slurm is asked for {job}")


def searched(
    job: str, place: Path, ask: job_search.Ask = nobody, log_dir: str | None = None, **environ: str
) -> job_search.JobSearch:
    return job_search.search_job(
        job, directory=place, environ=environ, log_dir=log_dir, ask=ask, own_jobs=tuple[JobRecord, ...]
    )


def found(job: str, place: Path, ask: job_search.Ask = nobody, log_dir: str | None = None, **environ: str) -> str:
    """Return the path of what is found, from the working directory."""
    search = searched(job, place, ask, log_dir, **environ)
    assert search.directory is not None, search.why
    return str(search.directory.path.relative_to(place))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "logs/13.0"),
        ("12", "logs/12.1"),
        ("12.0", "logs/12.0"),
        ("12.1", "logs/12.1"),
        ("14", "logs/14"),
        ("15_3", "logs/15_3.0"),
        ("15_3.0", "logs/15_3.0"),
        ("16", "logs/16_7.0"),
        ("12+0", "logs/12.1"),
        ("12;cluster", "logs/12.1"),
        ("local-20260101-120000-77", "logs/local-20260101-120000-77"),
        ("logs/12.0", "logs/12.0"),
        ("logs/12.0/", "logs/12.0"),
        ("./logs/12.0/latest", "logs/12.0"),
        ("logs/12.0/attempt_0/gpu01/rank_0.out", "logs/12.0"),
        ("logs/latest", "logs/13.0"),
        ("logs/", "logs/13.0"),
        (".", "logs/13.0"),
    ],
)
def test_what_is_meant(tmp_path: Path, said: str, expected: str) -> None:
    """Ids with and without step, tasks of arrays, names and paths of all kinds; of several steps, the last."""
    make(tmp_path / "logs", "12.0", "12.1", "14", "15_3.0", "15_4.0", "16_7.0", "local-20260101-120000-77", "13.0")

    assert expected == found(said, tmp_path)


@pytest.mark.parametrize("said", ["", "12", "12.0", "./12.0", "."])
def test_from_within_the_log_directory(tmp_path: Path, said: str) -> None:
    """Whoever stands in the log directory says the same."""
    make(tmp_path, "12.0")

    assert found(said, tmp_path) == "12.0"


@pytest.mark.parametrize("said", ["", ".", "attempt_0", "12.0"])
def test_from_within_the_job_directory(tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or in the job's own; relative paths begin there."""
    make(tmp_path, "12.0")
    monkeypatch.chdir(tmp_path / "12.0")
    search = job_search.search_job(
        "./attempt_0" if said == "attempt_0" else said, directory=Path(), environ={}, ask=lambda _: None
    )
    if said == "12.0":
        assert search.directory is None
    else:
        assert search.directory is not None
        assert (tmp_path / "12.0").samefile(search.directory.path)


@pytest.mark.parametrize(
    ("said", "expected", "others"),
    [
        ("12", "12.1-10", ("12", "12-2", "12.0", "12.1", "12.1-2")),
        ("12.1", "12.1-10", ("12.1", "12.1-2")),
        ("12.1-2", "12.1-2", ()),
        ("12.1-1", "12.1", ()),
        ("12-1", "12", ()),
        ("12-2", "12-2", ()),
        ("12.0", "12.0", ()),
    ],
)
def test_several_runs_of_a_step(tmp_path: Path, said: str, expected: str, others: tuple[str, ...]) -> None:
    """Of several runs of a step or shell the last is meant, unless a number says which; the others are named."""
    make(tmp_path / "logs", "12", "12-2", "12.0", "12.1", "12.1-2", "12.1-10", "12-20260101-120000-77")

    search = searched(said, tmp_path)
    assert (search.needed.job, search.others) == (expected, others)


def test_other_steps_are_named(tmp_path: Path) -> None:
    """A job that ran several steps has several directories: whoever says the job hears of the others."""
    make(tmp_path / "logs", "12.0", "12.10", "12.9", "120.0")

    assert (found("12", tmp_path)[-3:], searched("12", tmp_path).others) == (".10", ("12.0", "12.9"))


def test_a_log_directory_that_was_named_is_the_only_one(tmp_path: Path) -> None:
    """--log-dir says where; elsewhere nothing is looked for but with Slurm."""
    make(tmp_path / "logs", "12.0")
    make(tmp_path / "else", "13.0")

    assert found("", tmp_path, log_dir="else") == "else/13.0"
    with pytest.raises(AssertionError, match="12"):
        searched("12", tmp_path, log_dir="else")


def test_log_directories_in_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` as in a shell; that of a user who is not there is a name like any other."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make(tmp_path / "home/logs", "12.0")
    make(tmp_path / "~nobody.there", "13.0")

    assert found("", tmp_path, log_dir="~/logs") == "home/logs/12.0"
    assert found("~/logs/12.0", tmp_path) == "home/logs/12.0"
    assert found("", tmp_path, log_dir="~nobody.there") == "~nobody.there/13.0"
    assert found("~nobody.there/13.0", tmp_path) == "~nobody.there/13.0"


def test_in_a_job_the_directory_of_its_submission_comes_first(tmp_path: Path) -> None:
    """That is where runs of this job leave theirs."""
    make(tmp_path / "work/logs", "12.0")
    make(tmp_path / "logs", "11.0")

    assert found("", tmp_path, SLURM_SUBMIT_DIR=str(tmp_path / "work")) == "work/logs/12.0"
    assert found("11", tmp_path, SLURM_SUBMIT_DIR=str(tmp_path / "work")) == "logs/11.0"


def record(job: str = "12", state: str = "RUNNING", **more: object) -> Callable[[str], JobRecord | None]:
    return lambda _: JobRecord(job, state, **{"label": job, **more})  # type: ignore[arg-type]


def test_slurm_says_where_a_job_works(tmp_path: Path) -> None:
    """A job that was submitted elsewhere is found by its working directory, or by its output file."""
    make(tmp_path / "there/logs", "12.0")

    assert found("12", tmp_path, record(directory=str(tmp_path / "there"))) == "there/logs/12.0"
    assert found("12.0", tmp_path, record(output=str(tmp_path / "there/a.out"))) == "there/logs/12.0"


def test_a_snapshot_lies_in_the_log_directory(tmp_path: Path) -> None:
    """The working directory of such a job is below the log directory."""
    make(tmp_path / "other", "12.0")

    assert found("12", tmp_path, record(directory=str(tmp_path / "other/snapshots/now"))) == "other/12.0"


@pytest.mark.parametrize(
    "line", ["hpc-launch --log-dir={} a", "hpc-launch --log_dir '{}' a", "export HPC_LAUNCH_LOG_DIR={}"]
)
def test_a_job_script_can_say_it(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the job script names a log directory it is looked into."""
    make(tmp_path / "far", "12.0")
    monkeypatch.setattr(controller, "ask_script", lambda _: f"#!/bin/bash\n{line.format('far')}\n")

    assert found("12", tmp_path, record(directory=str(tmp_path), batch=True)) == "far/12.0"


def test_a_number_of_slurms_own_means_the_task(tmp_path: Path) -> None:
    """The task of an array has a number that its directory does not show."""
    make(tmp_path / "logs", "12_3.0")

    assert found("15", tmp_path, record("15", label="12_3")) == "logs/12_3.0"


@pytest.mark.parametrize(
    ("said", "ask", "expected"),
    [
        ("99", lambda _: None, "99 {} --log-dir"),
        ("12", record("12", "PENDING", reason="Priority"), "12 PENDING (Priority) {}"),
        (
            "12",
            record("12", directory="/w"),
            "12 RUNNING {} /w/logs --log-dir",
        ),
        ("train", nobody, "'train' {} --log-dir"),
        ("./x", nobody, "./x"),
        ("20", nobody, "20 6 20_1 20_2 20_3 20_10"),
    ],
)
def test_what_is_not_found(tmp_path: Path, said: str, ask: job_search.Ask, expected: str) -> None:
    """The line says what was looked at, and what would help."""
    make(tmp_path / "logs", *(f"20_{task}.0" for task in (1, 2, 3, 4, 5, 10)))

    with pytest.raises(JobNotFoundError) as error:
        job_search.search_job(said, directory=tmp_path, environ={}, ask=ask).needed  # noqa: B018 - it is the looking that counts
    assert error.value.exit_status == 66
    assert mentions(error.value, expected.format(f"{tmp_path}/logs {tmp_path}"))


def test_nothing_there_at_all(tmp_path: Path) -> None:
    """Without a job and without a log directory, the line says where one would have been."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/12.0").write_text("a file of somebody's")
    with pytest.raises(JobNotFoundError) as nothing:
        job_search.search_job(directory=tmp_path, environ={}).needed  # noqa: B018 - it is the looking that counts
    assert nothing.value.looked == (tmp_path / "logs", tmp_path)
    assert mentions(nothing.value, tmp_path / "logs", tmp_path)
    with pytest.raises(JobNotFoundError, match=r"^\./logs "):
        job_search.search_job("./logs", directory=tmp_path, environ={}).needed  # noqa: B018 - it is the looking that counts


def test_directories_that_are_no_jobs_are_passed_over(tmp_path: Path) -> None:
    """What else lies in a log directory is not taken for a job."""
    make(tmp_path / "logs", "12.0")
    (tmp_path / "logs/12.7").mkdir()
    (tmp_path / "logs/snapshots").mkdir()

    assert found("12", tmp_path) == "logs/12.0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("12.0", "12.0"),
        ("12_3.1", "12_3.1"),
        ("12", "12"),
        ("12.0-2", "12.0"),
        ("local-20260101-120000-77", None),
        ("my-run", None),
    ],
)
def test_what_slurm_calls_a_run(name: str, expected: str | None) -> None:
    """The directory's name has it."""
    step = job_search.slurm_step(JobDirectory(Path("logs"), name))

    assert expected == (None if step is None else str(step))


@pytest.mark.parametrize("mark", ["job.json", "nodes/gpu01/events.jsonl", "attempt_0/gpu01/rank_0.out", "whereabouts"])
def test_a_job_directory_is_known_from_the_start(tmp_path: Path, mark: str) -> None:
    """Also before its nodes have met, when there is nothing but the place where the coordinator can be found."""
    job = JobDirectory(tmp_path / "logs", "12.0")
    path = job.whereabouts("0123456789abcdef") if mark == "whereabouts" else job.path / mark
    path.parent.mkdir(parents=True)
    path.touch()

    assert found("12.0", tmp_path) == "logs/12.0"


def own(*jobs: JobRecord) -> job_search.OwnJobs:
    """Let Slurm know these jobs of the user."""
    return lambda: jobs


def batch(
    number: str, state: str = "PENDING", *, place: Path, shell: bool = False, submitted: float = 9e9
) -> JobRecord:
    """Return a job that was submitted somewhere."""
    return JobRecord(number, state, label=number, batch=not shell, directory=str(place), submitted=submitted)


def latest(place: Path, *jobs: JobRecord) -> job_search.JobSearch:
    """Look for the latest job, where Slurm knows these."""
    records = {job.job_id: job for job in jobs}
    return job_search.search_job(directory=place, environ={}, ask=records.get, own_jobs=own(*jobs))


def test_a_job_that_was_just_submitted_is_the_latest(tmp_path: Path) -> None:
    """It has left nothing yet; of several the last."""
    make(tmp_path / "logs", "12.0")
    search = latest(tmp_path, batch("13", place=tmp_path), batch("14", place=tmp_path))
    assert (search.directory, search.record and search.record.job_id) == (None, "14")
    assert mentions(search.why, "14 PENDING"), search.why


@pytest.mark.parametrize("made", ["12.0", "local-20260101-120000-77"])
def test_jobs_that_are_not_meant(tmp_path: Path, made: str) -> None:
    """Those before the latest, those of another project, and a shell of salloc."""
    make(tmp_path / "logs", made)
    others = (
        batch("11", place=tmp_path, submitted=1.0),
        batch("13", place=tmp_path / "other"),
        batch("14", "RUNNING", place=tmp_path, shell=True),
    )
    assert latest(tmp_path, *others).needed.job == made


@pytest.mark.parametrize(("state", "found"), [("FAILED", None), ("CANCELLED", None), ("COMPLETED", "12.0")])
def test_a_later_job_that_is_over(tmp_path: Path, state: str, found: str | None) -> None:
    """One that failed before it came to hpc-launch is the latest; one that ended well had nothing to do with it."""
    make(tmp_path / "logs", "12.0")
    search = latest(tmp_path, batch("13", state, place=tmp_path))

    assert (search.directory.job if search.directory is not None else None) == found


def test_without_any_directory_the_submitted_job_is_found(tmp_path: Path) -> None:
    """There is no log directory yet."""
    search = latest(tmp_path, batch("13", "RUNNING", place=tmp_path))
    assert search.record is not None
    assert search.record.job_id == "13"


def test_a_job_that_never_came_to_hpc_launch(tmp_path: Path) -> None:
    """Slurm's output file is named, with its end."""
    output = tmp_path / "slurm-12.out"
    ask = record("12", "FAILED", directory=str(tmp_path), output=str(output))
    assert mentions(searched("12", tmp_path, ask).why, "12 FAILED", output)
    output.write_text("".join(f"line {number}\n" for number in range(40)) + "module: not found \x1b[2J\n")
    why = searched("12", tmp_path, ask).why
    assert mentions(why, output, "module: not found")
    assert "\x1b" not in why
    assert len(why.splitlines()) == 21
