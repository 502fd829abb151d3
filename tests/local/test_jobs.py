"""Functions and scripts from Python where there is no Slurm: by the agent on this machine, and in process."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import submitit
import torch.distributed

import hpc_launch
from hpc_launch.api import agent_process
from hpc_launch.api.remote_exception import RemoteTraceback
from hpc_launch.errors import CallError, JobFailed, ResultError, UsageError, WorkerFailed
from hpc_launch.submitit import ElasticTask
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
    assert (error.exit_status, error.state) == (143, "CANCELLED")
    assert (job.state, again.state) == ("CANCELLED", "CANCELLED")


def test_a_worker_that_ends_itself_by_sigterm_is_not_cancelled(tmp_path: Path) -> None:
    """The status is the same, and nobody has asked for it."""
    job = hpc_launch.submit(lambda: os.kill(os.getpid(), signal.SIGTERM), cluster="local", folder=tmp_path / "logs")
    error = job.exception(DEADLINE)

    assert isinstance(error, WorkerFailed)
    assert (error.status, job.state) == (143, "FAILED")


def test_a_job_is_cancelled_as_soon_as_it_is_there(tmp_path: Path) -> None:
    """Before its agent listens."""
    job = hpc_launch.submit(time.sleep, 1000, cluster="local", folder=tmp_path / "logs")
    job.cancel()

    assert job.wait(DEADLINE)
    assert job.state == "CANCELLED"


def test_a_stop_that_comes_too_late_changes_nothing() -> None:
    """Whoever runs an agent and holds signals back holds them back again, while it writes down how the job ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, agent_process.STOPS)
    try:
        ending = agent_process.run_agent_process([sys.executable, "-c", ""])
        held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert ending == agent_process.AgentEnding(0)
    assert held >= agent_process.STOPS


# ---- what submitit's users bring


def test_lines_of_setup_come_first(tmp_path: Path) -> None:
    """As in a job script: a line that fails does not end it, `exit` does, and all are of one shell."""
    executor = hpc_launch.Executor(
        tmp_path / "logs", cluster="local", ranks_per_node=2, setup=["false", "x='a b'", 'export SETUP="$x $0"']
    )
    job = executor.submit(lambda: (os.environ["SETUP"], os.environ["RANK"]))
    executor.update_parameters(setup="exit 3")
    ended = executor.submit(os.getpid)
    executor.update_parameters(setup=f"touch '{tmp_path}/up'; sleep 1000")
    waits = executor.submit(os.getpid)
    wait_for((tmp_path / "up").exists, DEADLINE, lambda: str([*tmp_path.rglob("*")]))
    waits.cancel()

    assert job.results(DEADLINE) == [("a b setup", "0"), ("a b setup", "1")]
    error = ended.exception(DEADLINE)
    assert isinstance(error, JobFailed)
    assert (error.exit_status, ended.state) == (3, "FAILED")
    assert waits.wait(DEADLINE)
    assert waits.state == "CANCELLED"


def test_a_range_of_nodes_is_all_of_them_here(tmp_path: Path) -> None:
    """There is nothing to lose on one machine: no less than the ranks of the most nodes, and no spare."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="local", nodes=2, ranks_per_node=1)
    executor.update_parameters(launch={"nnodes": "1:2", "spares": 1})

    assert executor.submit(lambda: os.environ["WORLD_SIZE"]).results(timeout=DEADLINE) == ["2", "2"]


def test_in_process_lines_of_setup_are_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They could change nothing here; a note tells the user."""
    job = hpc_launch.submit(int, cluster="debug", folder=tmp_path, setup=[f"touch {tmp_path}/up"])

    assert (job.result(), (tmp_path / "up").exists()) == (0, False)
    assert mentions(capsys.readouterr().err, "setup=")


def test_each_job_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `%j` in the executor's folder; it is loaded by its id, and by its directory."""
    monkeypatch.chdir(tmp_path)
    executor = hpc_launch.Executor("logs/run %j/x", cluster="local")
    job = executor.submit(submitits_word)
    job.wait(DEADLINE)
    found = [hpc_launch.Job.load(*words) for words in ((job.job_id,), (job.job_id, "logs/run %j/x"), (job.directory,))]

    assert job.directory == tmp_path / f"logs/run {job.job_id}/x/{job.job_id}"
    assert job.result()["job_id"] == job.job_id
    assert [(one.job_id, one.directory, one.results()) for one in found] == [
        (job.job_id, job.directory, job.results())
    ] * 3


def submitits_word() -> dict[str, Any]:
    """What submitit says of the process that asks."""
    import submitit  # noqa: PLC0415 - where the function runs

    here = submitit.JobEnvironment()
    names = ("job_id", "global_rank", "local_rank", "node", "num_tasks", "num_nodes")
    return {name: getattr(here, name) for name in names} | {"folder": str(here.paths.folder)}


def test_submitits_job_environment_speaks_of_the_rank(tmp_path: Path) -> None:
    """As where submitit starts a task for each rank."""
    job = hpc_launch.submit(submitits_word, cluster="local", ranks_per_node=2, folder=tmp_path / "logs")
    found = job.results(DEADLINE)
    alone = hpc_launch.submit(submitits_word, cluster="debug", folder=tmp_path / "logs")

    assert (alone.result()["job_id"], alone.result()["num_tasks"]) == (alone.job_id, 1)
    assert [name for name in os.environ if name.startswith("SUBMITIT")] == []
    assert [(one["global_rank"], one["local_rank"], one["num_tasks"]) for one in found] == [(0, 0, 2), (1, 1, 2)]
    assert {(one["job_id"], one["node"], one["num_nodes"], one["folder"]) for one in found} == {
        (job.job_id, 0, 1, str(tmp_path / "logs/submitted"))
    }


def test_an_executor_of_submitits_on_one_machine(tmp_path: Path) -> None:
    """Its job is loaded again by its directory, and by its number: while it runs, and when it has ended."""
    executor = submitit.AutoExecutor(folder=tmp_path / "logs", cluster="local")
    executor.update_parameters(nodes=1, tasks_per_node=1, timeout_min=10)

    def wait_in_vain() -> None:
        (tmp_path / "up").touch()
        time.sleep(1000)

    fine = executor.submit(ElasticTask(submitits_word, ranks_per_node=2))
    vain = executor.submit(ElasticTask(wait_in_vain))
    wait_for((tmp_path / "up").exists, DEADLINE, lambda: str([*tmp_path.rglob("*")]))
    running = hpc_launch.Job.load(vain.job_id, tmp_path / "logs")
    state = running.state
    running.cancel()
    vain.wait()
    found: Any = fine.result()
    job = hpc_launch.Job.load(found["job_directory"])

    assert (state, running.wait(DEADLINE), running.state) == ("RUNNING", True, "CANCELLED")
    assert (job.job_id, job.state) == (fine.job_id, "COMPLETED")
    assert [one["global_rank"] for one in job.results()] == [0, 1]
    assert hpc_launch.Job.load(running.directory).state == "CANCELLED"


SELDOM = """
import os

class Thing(int):
    pass

def make():
    rank = int(os.environ["RANK"])
    return Thing(7) if rank == 1 else rank
"""


def test_a_class_that_is_not_here_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results of other ranks can be had, and all of them where the class is there again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "seldom.py").write_text(SELDOM)
    make = importlib.import_module("seldom").make
    job = hpc_launch.submit(make, cluster="local", ranks_per_node=3, folder=tmp_path / "logs")
    job.wait(DEADLINE)
    monkeypatch.setitem(sys.modules, "seldom", None)  # it cannot be imported
    with pytest.raises(ResultError) as refused:
        job.results()
    assert mentions(refused.value, job.job_id, "rank 1", "seldom", refused.value.files[1])
    assert (refused.value.results, job.result(), job.result(rank=2)) == ({0: 0, 2: 2}, 0, 2)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path))

    assert job.results() == [0, 7, 2]


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


def test_debugging_is_as_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A world of one can be made, modules beside a script are found, modules are run, and `sys.exit` is a failure."""
    (tmp_path / "beside_the_script.py").write_text("NAME = 'beside'")
    (tmp_path / "main.py").write_text(
        "import beside_the_script, sys\nprint(beside_the_script.NAME, sys.argv)\nsys.exit(3)"
    )
    before = [*sys.path]

    def alone() -> int:
        torch.distributed.init_process_group("gloo")
        try:
            return torch.distributed.get_world_size()
        finally:
            torch.distributed.destroy_process_group()

    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug")
    script = executor.submit(tmp_path / "main.py", "x")
    error = script.exception()
    modules = hpc_launch.Executor(tmp_path / "logs", cluster="debug", launch={"module": True})
    module = modules.submit("json.tool", "--help")

    assert executor.submit(alone).result() == 1
    assert capsys.readouterr().out.startswith(f"beside ['{tmp_path}/main.py', 'x']\nusage: ")
    assert (module.state, sys.path) == ("COMPLETED", before)
    assert isinstance(error, WorkerFailed)
    assert (error.rank, error.status, error.job_id, script.state) == (0, 3, script.job_id, "FAILED")
    assert mentions(error, "sys.exit(3)")
    assert isinstance(error.__cause__, SystemExit)
    with pytest.raises(UsageError, match="no_python"):
        hpc_launch.submit("true", cluster="debug", folder=tmp_path / "none", launch={"no_python": True})
    assert not [path for path in (tmp_path / "none").rglob("*") if path.is_file()]


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


def test_arrays_within_a_batch_belong_to_it(tmp_path: Path) -> None:
    """They are submitted at its end, with all else, or not at all."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug")
    ran: list[str] = []

    def fail() -> None:
        with executor.batch():
            executor.map_array(ran.append, "12")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert ran == []
    with executor.batch():
        jobs = [*executor.map_array(int, "12"), executor.submit(int, "3"), *executor.submit_array([lambda: 4])]
        assert not (tmp_path / "logs").exists()
    assert [job.result() for job in jobs] == [1, 2, 3, 4]


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
