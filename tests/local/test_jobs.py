"""Functions and scripts from Python where there is no Slurm: by the agent on this machine, and in process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hpc_launch
from hpc_launch.api.remote_exception import RemoteTraceback
from hpc_launch.errors import CallError, JobFailed, UsageError, WorkerFailed
from tests.support import mentions, wait_for

DEADLINE = 240.0

SCRIPT = """
import os, sys
print("script", *sys.argv[1:], os.environ["RANK"], os.environ["WORLD_SIZE"])
"""


class Jobs:
    """Jobs that run at the same time, for one test each."""

    def __init__(self, folder: Path) -> None:
        (folder / "train.py").write_text(SCRIPT)
        (folder / "only_here.py").write_text("def f():\n    return 1\n")
        sys.path.insert(0, str(folder))
        try:
            import only_here  # type: ignore[import-not-found]  # noqa: PLC0415 - it has just been made

            self.there = hpc_launch.Executor(folder / "logs", cluster="local", ranks_per_node=2, max_pickle_mb=1)
            alone = hpc_launch.Executor(folder / "logs", cluster="local", max_pickle_mb=1)
            self.fine = self.there.submit(lambda x: (x, os.environ["RANK"]), "x")
            self.script = self.there.submit(str(folder / "train.py"), "--lr", "a b")
            self.missing = alone.submit(only_here.f)
            self.ended: Any = self.there.submit(lambda: sys.exit(7 * int(os.environ["RANK"])))
            (folder / "only_here.py").unlink()
        finally:
            sys.path.remove(str(folder))
            sys.modules.pop("only_here", None)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "HPC_LAUNCH_LOG")):
                patch.delenv(name)
        return Jobs(tmp_path_factory.mktemp("jobs"))


def test_each_rank_has_its_result(jobs: Jobs) -> None:
    """In the order of the ranks; `await` gives the same, while other tasks go on."""

    async def both() -> tuple[list[Any], str]:
        async def other() -> str:
            return "other"

        first, second = await asyncio.gather(awaited(), other())
        return first, second

    async def awaited() -> list[Any]:
        return await jobs.fine

    assert jobs.fine.results(DEADLINE) == [("x", "0"), ("x", "1")]
    assert asyncio.run(both()) == ([("x", "0"), ("x", "1")], "other")
    assert (jobs.fine.state, jobs.fine.done(), jobs.fine.result()) == ("COMPLETED", True, ("x", "0"))


def test_a_script_has_words_and_no_results(jobs: Jobs) -> None:
    """There is one None for each of its ranks, and its output by rank."""
    assert jobs.script.results(DEADLINE) == [None, None]
    assert jobs.script.logs(1) == "script --lr a b 1 2"
    assert list(jobs.script.logs(0, follow=True)) == ["script --lr a b 0 2"]


def test_a_module_that_the_node_does_not_have(jobs: Jobs) -> None:
    """Is named here as it was there."""
    error = jobs.missing.exception(DEADLINE)

    assert isinstance(error, CallError)
    assert mentions(error, "'only_here'")
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_worker_that_leaves_no_exception(jobs: Jobs) -> None:
    """It has ended itself: rank, status and log are what there is to say."""
    ended = jobs.ended.exception(DEADLINE)

    assert isinstance(ended, WorkerFailed)
    assert (ended.rank, ended.signal, ended.status) == (1, "", 7)
    assert ended.log.endswith("/rank_1.err")
    assert jobs.ended.state == "FAILED"


def test_status_and_report_say_what_happened(jobs: Jobs) -> None:
    """They are what the commands show and write: of the rank that failed, and in the job directory."""
    jobs.ended.wait(DEADLINE)
    report = jobs.ended.report()

    assert "rank 1 on " in str(report)
    assert "exit status 7" in str(report)
    assert "exit status 7" in str(jobs.ended.status())
    assert jobs.ended.status().standing.status == 7
    assert report.write() == jobs.ended.directory / "report.html"


def test_a_job_is_looked_at_and_cancelled(tmp_path: Path) -> None:
    """It runs without whoever has started it, shows where it is, and ends when it is told."""

    def wait_in_vain() -> None:
        (tmp_path / "up").touch()
        time.sleep(1000)

    job = hpc_launch.submit(wait_in_vain, cluster="local", folder=tmp_path / "logs")
    assert not job.wait(0)
    with pytest.raises(TimeoutError, match=r"\b0 s\b.*RUNNING"):
        job.results(0)
    wait_for((tmp_path / "up").exists, DEADLINE, lambda: str(job.directory))
    stacks = job.stacks()
    assert stacks.complete, stacks
    assert "wait_in_vain" in str(stacks)
    again = hpc_launch.Job.load(job.job_id, tmp_path / "logs")
    again.cancel()
    error = job.exception(DEADLINE)

    assert isinstance(error, JobFailed)
    assert not isinstance(error, WorkerFailed)
    assert error.exit_status == 143


# ---- in process


def test_debugging_runs_rank_0_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the variables of a worker, and only while it runs; a script has its words."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug", nodes=2, ranks_per_node=4)
    job = executor.submit(lambda: (os.getpid(), os.environ["RANK"], os.environ["WORLD_SIZE"]))
    (tmp_path / "train.py").write_text(SCRIPT)
    script = executor.submit(tmp_path / "train.py", "x")

    assert job.results() == [(os.getpid(), "0", "1")]
    assert script.results() == [None]
    assert capsys.readouterr().out == "script x 0 1\n"
    assert "RANK" not in os.environ


def test_debugging_keeps_the_traceback(tmp_path: Path) -> None:
    """For a debugger after the fact."""

    def wrong() -> None:
        raise KeyError("x")

    job = hpc_launch.submit(wrong, cluster="debug", folder=tmp_path)
    error = job.exception()

    assert isinstance(error, KeyError)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "wrong"
    assert (job.state, job.done()) == ("FAILED", True)


def test_a_batch_that_fails_submits_nothing(tmp_path: Path) -> None:
    """And one within another is refused."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug")

    def nested() -> None:
        with executor.batch():
            executor.submit(print, "never")
            with executor.batch():
                pass

    with pytest.raises(UsageError, match="batch"):
        nested()
    assert not (tmp_path / "logs").exists()

    with executor.batch():
        jobs = [executor.submit(int, text) for text in "12"]
    assert [job.result() for job in jobs] == [1, 2]
    assert [job.result() for job in executor.map_array(int, "34")] == [3, 4]
    assert executor.map_array(int, []) == []


def test_an_array_is_not_too_large_either(tmp_path: Path) -> None:
    """Each of its calls may be small enough, and all together gigabytes."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug", max_pickle_mb=1)
    with pytest.raises(CallError, match=r"\b6\b.*\b5 MB\b.*\b4 MB\b.*max_pickle_mb"):
        executor.map_array(len, [bytes(900_000)] * 6)

    assert executor.map_array(len, [bytes(900_000)] * 4)[3].result() == 900_000


def test_a_job_from_python_has_its_result_with_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HPC_LAUNCH_PLAIN in a notebook's environment is for lines that are typed: results need an agent."""
    monkeypatch.setenv("HPC_LAUNCH_PLAIN", "1")
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="local", ranks_per_node=1)

    assert executor.submit(lambda: os.environ["RANK"]).results(timeout=DEADLINE) == ["0"]


def test_a_script_has_no_arguments_with_names(tmp_path: Path) -> None:
    """It would not get them."""
    with pytest.raises(UsageError, match="lr="):
        hpc_launch.submit("train.py", lr=1, folder=tmp_path)
