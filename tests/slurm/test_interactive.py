"""Where nobody types srun: shells of allocations, batch scripts, other places. hpc-launch starts the step itself."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.cluster import Cluster, ClusterConfig
from tests.slurm import signals_support
from tests.slurm.jobs_support import (
    DEADLINE,
    Ended,
    JobTree,
    clean_environment,
    run_commands,
    run_job,
    submit,
    write_probe,
)
from tests.slurm.signals_support import STAYER, Running
from tests.slurm.terminals_support import Terminal
from tests.support import lines_mention, mentions, wait_for

# Two nodes with four GPUs and eight CPUs each, asked for in the way that is furthest from one agent per node.
OPTIONS = ("--nodes=2", "--ntasks-per-node=4", "--cpus-per-task=2", "--gpus-per-task=1")

# What may be in the environment, from an outer step or an earlier submission.
POISON = {
    "SLURM_NTASKS": "7",
    "SLURM_NPROCS": "7",
    "SLURM_NTASKS_PER_NODE": "3",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_TRES_PER_TASK": "cpu=3,gres/gpu=1",
    "SLURM_GPUS_PER_TASK": "1",
    "SLURM_GPUS": "1",
    "SLURM_GPU_BIND": "map_gpu:0",
    "SLURM_TRES_BIND": "gres/gpu:map:0",
    "SLURM_STEP_GRES": "none",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_CPU_BIND_LIST": "0x1",
    "SLURM_CPU_BIND_TYPE": "mask_cpu:",
    "SLURM_MEM_PER_CPU": "1",
    "SLURM_DISTRIBUTION": "plane=2",
    "SLURM_DIST_PLANESIZE": "2",
    "SLURM_EXACT": "1",
    "SLURM_EXPORT_ENV": "NONE",
    "SRUN_EXPORT_ENV": "NONE",
    "SRUN_CPUS_PER_TASK": "1",
    "SLURM_HINT": "nomultithread",
    "SLURM_STDINMODE": "all",
    "SLURM_KILL_BAD_EXIT": "1",
    "SLURM_WAIT": "1",
}

Go = Callable[[Cluster, Path, str], tuple[int, str]]


def in_a_terminal(*command: str) -> Go:
    """Type it into a shell."""

    def go(cluster: Cluster, folder: Path, line: str) -> tuple[int, str]:
        with Terminal(cluster, command, folder) as terminal:
            status = terminal.run(line)
            terminal.type("exit\n")
            terminal.process.wait(DEADLINE)
            return status, terminal.screen

    return go


def at_the_head_of_an_allocation(cluster: Cluster, folder: Path, line: str) -> tuple[int, str]:
    """As in the shell of salloc where slurm.conf has no use_interactive_step: it is on the login node."""
    with clean_environment():
        done = cluster.run(["salloc", *OPTIONS, "bash", "-c", line], cwd=folder, check=False, timeout=DEADLINE)
    return done.returncode, done.stdout + done.stderr


def in_a_batch_script(cluster: Cluster, folder: Path, line: str) -> tuple[int, str]:
    done = run_job(cluster, folder, line, *OPTIONS)
    return done.status, done.output


def for_a_job_from_the_head(cluster: Cluster, folder: Path, line: str) -> tuple[int, str]:
    with clean_environment():
        job = cluster.sbatch("sleep 1000", *OPTIONS, cwd=folder)
        job.wait_for_state("RUNNING")
        words = ["bash", "-c", line.replace("hpc-launch", f"hpc-launch --jobid {job.id}", 1)]
        done = cluster.run(words, cwd=folder, check=False, timeout=DEADLINE)
    job.cancel()
    return done.returncode, done.stdout + done.stderr


def for_a_job_from_another_one(cluster: Cluster, folder: Path, line: str) -> tuple[int, str]:
    job = submit(cluster, folder, "sleep 1000", *OPTIONS)
    job.wait_for_state("RUNNING")
    # As a task of an array: its number is not that of the job which does the work.
    options = ("--nodes=1", "--ntasks=3", "--gpus-per-task=1", "--array=5", "--chdir", str(folder))
    done = run_job(cluster, folder, line.replace("hpc-launch", f"hpc-launch --jobid {job.id}", 1), *options)
    job.cancel()
    return done.status, done.output


PLACES: Mapping[str, Go] = {
    "salloc": in_a_terminal("salloc", *OPTIONS),
    "salloc without interactive step": at_the_head_of_an_allocation,
    "srun --pty": in_a_terminal("srun", *OPTIONS, "--pty", "bash", "--norc"),
    "srun --pty on one of the nodes": in_a_terminal(
        *("salloc", *OPTIONS, "srun", "--nodes=1", "--ntasks=1", "--gpus-per-task=1", "--pty", "bash", "--norc")
    ),
    "batch script": in_a_batch_script,
    "--jobid": for_a_job_from_the_head,
    "--jobid in another job": for_a_job_from_another_one,
}


def tree(folder: Path) -> JobTree:
    """The only job directory there."""
    [path] = [path for path in (folder / "logs").iterdir() if not path.is_symlink()]
    return JobTree(path)


# Where the ranks meet as well; all have the same variables.
MEET = ("salloc", "batch script", "--jobid in another job")


@pytest.mark.parametrize("place", PLACES)
def test_all_nodes_train_with_all_they_have(some_cluster: Cluster, tmp_path: Path, place: str) -> None:
    """One agent on each node, one worker for each GPU, which meet; the step has all CPUs and GPUs of the job."""
    write_probe(tmp_path)
    line = f"hpc-launch probe.py {'--reduce' if place in MEET else '--alone'} 'two words' '$HOME'"
    status, output = PLACES[place](some_cluster, tmp_path, line)

    assert status == 0, output
    reports = tree(tmp_path).reports()
    assert list(reports) == list(range(8)), output
    assert {report.total for report in reports.values()} == {36 if place in MEET else None}
    assert {list(report.argv[1:]) == ["two words", "$HOME"] for report in reports.values()} == {True}
    assert len({report.host for report in reports.values()}) == 2
    for rank, report in reports.items():
        assert report.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3", (rank, output)
        assert report.numbers("RANK", "LOCAL_RANK", "SLURM_CPUS_ON_NODE", "SLURM_GPUS_ON_NODE") == (
            rank,
            rank % 4,
            8,
            4,
        )
        # What is told about the job is what srun would have left there.
        assert report.env.get("SLURM_CPUS_PER_TASK") == (None if "--jobid" in place else "2")
        assert not [name for name in report.env if name.startswith(("HPC_LAUNCH_STEP_", "SLURM_EXIT", "SLURM_ARRAY"))]
    assert output.count("hpc-launch: starting on ") == 1, output
    some_cluster.wait_idle(DEADLINE)


def test_the_environment_does_not_change_the_step(any_cluster: Cluster, tmp_path: Path) -> None:
    """Whatever variables for srun are around, the step has one task on each node, and everything of the job."""
    exports = "\n".join(f"export {name}={value}" for name, value in POISON.items())
    done = run_job(any_cluster, tmp_path, f"{exports}\nhpc-launch probe.py", *OPTIONS)

    reports = done.reports()
    assert len(reports) == 8, done.output
    for report in reports.values():
        assert report.env["CUDA_VISIBLE_DEVICES"] == "0,1,2,3", done.output
        assert report.numbers("SLURM_CPUS_ON_NODE", "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS") == (8, 2, 8)
        assert report.env["PATH"]


GPU_REQUESTS = {
    "--gpus-per-node=2 --cpus-per-task=4": {"gpu001": 2, "gpu002": 2},
    "--gres=gpu:3 --exclusive": {"gpu001": 3, "gpu002": 3},
    "--ntasks=5 --cpus-per-task=2 --gpus-per-task=1": {"gpu001": 4, "gpu002": 1},
    "--ntasks=2 --gpus=3": {"gpu001": 2, "gpu002": 1},
}


# Two in which the nodes are alike and are not; the others are the soak.
COMMON_REQUESTS = ("--gres=gpu:3 --exclusive", "--ntasks=5 --cpus-per-task=2 --gpus-per-task=1")


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, marks=[] if options in COMMON_REQUESTS else pytest.mark.soak) for options in GPU_REQUESTS],
)
def test_gpus_however_they_were_asked_for(some_cluster: Cluster, tmp_path: Path, options: str) -> None:
    """Each node has those that the job has there; so has the first in a step of its own, where the nodes differ."""
    expected = GPU_REQUESTS[options]
    commands = {"all": "hpc-launch probe.py"}
    if len(set(expected.values())) > 1:
        commands["first"] = "hpc-launch --nodes 1 probe.py"
    done = run_commands(some_cluster, tmp_path, commands, "--nodes=2", *options.split())

    found = Counter(report.env["HPC_LAUNCH_HOST"] for report in done["all"].reports().values())
    assert found == expected, done["all"].output
    if "first" in done:
        found = Counter(report.env["HPC_LAUNCH_HOST"] for report in done["first"].reports().values())
        assert found == {"gpu001": expected["gpu001"]}, done["first"].output


def blocking(options: str, command: str) -> str:
    """A command beside a step that has everything on its nodes; its exit status is the command's."""
    wait = "until squeue --steps --jobs=$SLURM_JOB_ID --format=%j | grep -q sleep; do sleep 0.1; done"
    return f"srun {options} sleep 1000 & {wait}; {command}; status=$?; kill $!; wait; (exit $status)"


@pytest.fixture(scope="module")
def subsets(modern_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Return what became of runs on some of four nodes."""
    commands = {
        "number": "hpc-launch --nodes 2 --nproc-per-node 1 probe.py",
        "torchrun": "hpc-launch --nnodes 1:3 --nproc-per-node 1 probe.py",
        "names": "hpc-launch --nodes 'gpu[003-004]' --nproc-per-node 1 probe.py",
        "order": "hpc-launch --hosts gpu004,gpu002 --nproc-per-node 1 probe.py",
        "free": blocking("--nodes=1 --ntasks=1 --nodelist=gpu001", "hpc-launch --nodes 2 --nproc-per-node 1 probe.py"),
        "many": "hpc-launch --nodes 5 probe.py",
        "foreign": "hpc-launch --hosts gpu[004-005] probe.py",
        "rank": "hpc-launch --nnodes 4 --node-rank $SLURM_NODEID probe.py",
        "status": "hpc-launch --nodes 2 --nproc-per-node 1 probe.py --exit 1 7",
        "signal": "hpc-launch --nodes 2 --nproc-per-node 1 probe.py --exit 1 -9",
        "missing": "hpc-launch --nodes 2 prob.py",
        "explain": "hpc-launch explain --nodes 2 probe.py 'two words'; hpc-launch env --nodes 2",
    }
    return run_commands(modern_cluster, tmp_path_factory.mktemp("subsets"), commands, "--nodes=4", "--gpus-per-node=4")


def hosts(ended: Ended) -> list[str]:
    """The node of each rank."""
    return [report.env["HPC_LAUNCH_HOST"] for report in ended.reports().values()]


def test_some_nodes_of_the_allocation(subsets: dict[str, Ended]) -> None:
    """By number, as torchrun has it, by name, and in the order of --hosts; by number where no other step is."""
    assert hosts(subsets["number"]) == ["gpu001", "gpu002"]
    assert hosts(subsets["torchrun"]) == ["gpu001", "gpu002", "gpu003"]
    assert hosts(subsets["names"]) == ["gpu003", "gpu004"]
    assert hosts(subsets["order"]) == ["gpu004", "gpu002"]
    assert hosts(subsets["free"]) == ["gpu002", "gpu003"]


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("many", 78, "--nodes 5 {job} 4 gpu[001-004]"),
        (
            "foreign",
            78,
            "--hosts gpu005 {job} gpu[001-004]",
        ),
        ("missing", 66, "'prob.py' {folder}"),
    ],
)
def test_nodes_that_cannot_be_had(subsets: dict[str, Ended], name: str, status: int, message: str) -> None:
    """One line, and nothing is started."""
    ended = subsets[name]
    expected = message.format(job=ended.job.id, folder=ended.logs.parent)

    assert ended.status == status
    assert lines_mention(ended.output.splitlines(), f"hpc-launch {expected}"), ended.output


def test_a_node_rank_is_for_steps(subsets: dict[str, Ended]) -> None:
    """In a batch script $SLURM_NODEID is 0 whatever the node."""
    assert subsets["rank"].status == 78
    assert mentions(subsets["rank"].output, "--node-rank 0")


def test_the_exit_status_is_that_of_the_worker(subsets: dict[str, Ended]) -> None:
    """As under srun: its own, or 128+N."""
    assert subsets["status"].status == 7, subsets["status"].output
    assert subsets["signal"].status == 137, subsets["signal"].output


def test_explain_shows_the_step(subsets: dict[str, Ended]) -> None:
    """explain and env say what would be started, with a line that can be typed."""
    ended = subsets["explain"]
    assert ended.status == 0, ended.output
    first, *_ = ended.output.splitlines()
    assert mentions(first, "gpu[001-002]", ended.job.id)
    assert f"srun --jobid={ended.job.id} '--nodelist=gpu[001-002]' --nodes=2 --ntasks=2" in ended.output
    assert "hpc-launch --nodes 2 probe.py 'two words'  (" in ended.output
    assert "nnodes=2  # " in ended.output


def test_explain_shows_the_values_of_the_run(subsets: dict[str, Ended]) -> None:
    """What the job has on the nodes of the step counts, and not what this shell has."""
    lines = [" ".join(line.split()) for line in subsets["explain"].output.splitlines()]

    assert [line for line in lines if mentions(line, "8 ranks 2 nodes gpu[001-002]")]
    assert {line.partition(" (")[0] for line in lines} >= {"nproc_per_node 4", "devices 0,1,2,3", "master_addr gpu001"}
    assert [line for line in lines if mentions(line, "nproc_per_node=4 GPUs gpu001")]


# --- what runs already


def test_a_step_that_has_everything(some_cluster: Cluster, tmp_path: Path) -> None:
    """No endless wait: one line says which step holds the nodes, and what can be done; --overlap shares with it."""
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    commands = {"alone": blocking("--nodes=2", "hpc-launch probe.py")}
    done = run_commands(some_cluster, tmp_path / "alone", commands, "--nodes=2", "--gpus-per-node=4")
    commands = {"shared": blocking("--nodes=2", "hpc-launch --overlap probe.py")}
    done |= run_commands(some_cluster, tmp_path / "shared", commands, "--nodes=2", "--gpus-per-node=4")

    job = done["alone"].job.id
    assert done["alone"].status == 75, done["alone"].output
    words = f"hpc-launch {job} gpu[001-002] {job}.0 sleep scancel --overlap"
    assert [line for line in done["alone"].output.splitlines() if mentions(line, words)], done["alone"].output
    assert len(done["shared"].reports()) == 8


def test_a_second_run_in_the_shell_of_a_step(some_cluster: Cluster, tmp_path: Path) -> None:
    """There steps overlap that of the shell, but not each other."""
    write_probe(tmp_path)
    with Terminal(
        some_cluster, ["srun", "--nodes=2", "--gpus-per-node=4", "--pty", "bash", "--norc"], tmp_path
    ) as terminal:
        terminal.run("{ hpc-launch probe.py --meet first go 9 & }")
        wait_for(lambda: len(list((tmp_path / "first").glob("*"))) == 8, DEADLINE, lambda: terminal.screen)
        assert terminal.run("hpc-launch probe.py") == 75
        refusal = terminal.wait_for(r"hpc-launch: job (\d+) .*gpu\[001-002\]: (.*)")
        assert mentions(refusal[2], f"{refusal[1]}.1 hpc-launch gpu[001-002]")
        assert terminal.run("touch first/now && mv first go && wait %1") == 0, terminal.screen
        # A run directly after another one is none beside it.
        assert terminal.run("hpc-launch --nodes 1 probe.py && hpc-launch --nodes 1 probe.py") == 0, terminal.screen
        terminal.type("exit\n")
        terminal.process.wait(DEADLINE)


# --- one node


def test_one_node(some_cluster: Cluster, tmp_path: Path) -> None:
    """A step is started there as well; but a mask of one's own, or no srun, leave the run where it is."""
    commands = {
        "step": "hpc-launch probe.py",
        "masked": "CUDA_VISIBLE_DEVICES=1,2 hpc-launch probe.py",
        "sides": "CUDA_VISIBLE_DEVICES=0 hpc-launch --log-dir $PWD/one probe.py --meet a b 1 & "
        "CUDA_VISIBLE_DEVICES=1 hpc-launch probe.py --meet b a 1; one=$?; wait $! && (exit $one)",
        "bare": "bin=$(dirname $(command -v hpc-launch)); PATH=$bin:/nowhere $bin/hpc-launch probe.py",
        "standalone": "hpc-launch --standalone probe.py",
    }
    done = run_commands(some_cluster, tmp_path, commands, "--nodes=1", "--gpus-per-node=4")

    masks = {
        name: [report.env["CUDA_VISIBLE_DEVICES"] for report in ended.reports().values()]
        for name, ended in done.items()
    }
    assert masks == {
        "step": ["0,1,2,3"] * 4,
        "masked": ["1,2"] * 2,
        "sides": ["1"],
        "bare": ["0,1,2,3"] * 4,
        "standalone": ["0,1,2,3"] * 4,
    }
    assert [name for name, ended in done.items() if "hpc-launch: starting on gpu" in ended.output] == ["step"]


# --- signals


class Outer:
    """hpc-launch in a batch script, its step, and its ranks."""

    def __init__(self, running: Running) -> None:
        self.running = running

    @property
    def process(self) -> psutil.Process:
        """The process that has started the step."""
        return psutil.Process(int((self.running.folder / "outer").read_text()))

    def status(self) -> int:
        """Wait for its end."""
        file = self.running.folder / "status"
        wait_for(lambda: file.exists() and file.read_text().strip(), DEADLINE, self.running.describe)
        return int(file.read_text())


def start_outer(cluster: Cluster, folder: Path, arguments: str, launcher: str = "") -> Outer:
    """Start stayers on two nodes, without srun, and wait until they are up."""
    (folder / signals_support.SCRIPT).write_text(STAYER)
    script = f"""
    hpc-launch --nproc-per-node=2 {launcher} {signals_support.SCRIPT} {arguments} &
    echo $! >outer
    wait $!
    echo $? >status
    while [ ! -e over ]; do sleep 0.1; done
    """
    with clean_environment():
        job = cluster.sbatch(script, "--nodes=2", cwd=folder)
    running = Running(cluster, job, folder, 4)
    signals_support.await_up(running)
    return Outer(running)


def finish(outer: Outer) -> None:
    """See that nothing of the step is left while the job still runs, and end the job."""
    cluster, folder = outer.running.cluster, outer.running.folder

    def steps() -> str:
        shown = cluster.run(["squeue", "--noheader", "--steps", f"--jobs={outer.running.job.id}", "--format=%i"]).stdout
        return "".join(line for line in shown.split() if line.rpartition(".")[2].isdigit())

    wait_for(lambda: not steps(), DEADLINE, outer.running.describe)
    (folder / "over").touch()
    outer.running.job.wait(DEADLINE)
    outer.running.check_nothing_is_left()


STOPS = {"SIGTERM": 143, "SIGHUP": 129}


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_signal_is_passed_on(some_cluster: Cluster, tmp_path: Path, name: str) -> None:
    """The workers of all nodes get it once, and have their time (srun would kill them); the exit status tells it."""
    handled = {"SIGTERM": "--on SIGTERM 1"}.get(name, "")
    outer = start_outer(some_cluster, tmp_path, handled, "--grace 4")
    outer.process.send_signal(signal.Signals[name])

    assert outer.status() == STOPS[name], outer.running.describe()
    if handled:
        assert outer.running.got() == {rank: Counter({name: 1}) for rank in range(4)}, outer.running.describe()
        assert outer.running.saved() == dict.fromkeys(range(4), "whole"), outer.running.describe()
    finish(outer)


@pytest.mark.parametrize("repetition", [0, *(pytest.param(number, marks=pytest.mark.soak) for number in range(1, 20))])
def test_notices_are_passed_on(some_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """SIGUSR1 and SIGUSR2 reach every worker once, and the run goes on to its end."""
    outer = start_outer(some_cluster, tmp_path, "--until go")
    time.sleep(0.01 * repetition)
    outer.process.send_signal(signal.SIGUSR1)
    outer.process.send_signal(signal.SIGUSR2)
    outer.running.await_signal("SIGUSR1")
    outer.running.await_signal("SIGUSR2")
    outer.running.release()

    assert outer.status() == 0, outer.running.describe()
    assert outer.running.got() == {rank: Counter(SIGUSR1=1, SIGUSR2=1) for rank in range(4)}, outer.running.describe()
    finish(outer)


def test_killed(some_cluster: Cluster, tmp_path: Path) -> None:
    """After a kill -9 of the process that has started it, the step ends in order, and nothing is left of it."""
    outer = start_outer(some_cluster, tmp_path, "--on SIGINT 1")
    outer.process.kill()

    assert outer.status() == 137
    wait_for(lambda: outer.running.saved() == dict.fromkeys(range(4), "whole"), DEADLINE, outer.running.describe)
    finish(outer)


def test_the_job_is_cancelled(some_cluster: Cluster, tmp_path: Path) -> None:
    """scancel reaches the agents as it does under srun: the workers have the time that Slurm gives."""
    (tmp_path / signals_support.SCRIPT).write_text(STAYER)
    script = f"trap : TERM\nhpc-launch --nproc-per-node=2 {signals_support.SCRIPT} --on SIGTERM 6"
    with clean_environment():
        job = some_cluster.sbatch(script, "--nodes=2", cwd=tmp_path)
    running = Running(some_cluster, job, tmp_path, 4)
    signals_support.await_up(running)
    job.cancel()

    assert job.wait(DEADLINE).state == "CANCELLED"
    wait_for(lambda: running.saved() == dict.fromkeys(range(4), "whole"), DEADLINE, running.describe)
    assert running.got() == {rank: Counter(SIGTERM=1) for rank in range(4)}, running.describe()
    running.check_nothing_is_left()


@pytest.fixture
def shell(some_cluster: Cluster, tmp_path: Path) -> Iterator[Terminal]:
    """Return the shell of salloc on two nodes, with stayers in its directory."""
    (tmp_path / signals_support.SCRIPT).write_text(STAYER)
    with Terminal(some_cluster, ["salloc", "--nodes=2"], tmp_path) as terminal:
        yield terminal
        terminal.type("exit\n")
        terminal.process.wait(DEADLINE)


ASKER = """
import os
x = 41
if os.environ["RANK"] == "0":
    breakpoint()
print("x is", x, flush=True)
"""


def test_a_worker_is_debugged(some_cluster: Cluster, tmp_path: Path) -> None:
    """What is typed goes to rank 0 of the step, on whichever node that is, and its questions are shown."""
    (tmp_path / "ask.py").write_text(ASKER)
    with Terminal(some_cluster, ["salloc", "--nodes=2"], tmp_path) as terminal:
        terminal.start("hpc-launch --nproc-per-node 1 --hosts gpu002,gpu001 ask.py")
        terminal.wait_for(r"\[gpu002:0\] \(Pdb\)")
        terminal.type("x = 43\nc\n")
        assert terminal.status() == 0, terminal.screen
        terminal.start("hpc-launch --nodes 1 --nproc-per-node 1 ask.py")
        terminal.wait_for(r"\[gpu001:0\] \(Pdb\)")
        terminal.type("\x04")  # Ctrl-D
        assert terminal.status() == 1, terminal.screen
    said = {line for line in terminal.screen.splitlines() if "x is 4" in line}
    assert said == {"[gpu001:1] x is 41", "[gpu002:0] (Pdb) x is 43"}, terminal.screen


@pytest.mark.parametrize("how", ["&", "Ctrl-Z"])
def test_a_run_in_the_background_leaves_the_terminal_alone(some_cluster: Cluster, tmp_path: Path, how: str) -> None:
    """What is typed then is for the shell."""
    begun, end = tmp_path / "begun", tmp_path / "end"
    script = (
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\nwhile not pathlib.Path({str(end)!r}).exists():\n"
    )
    (tmp_path / "stay.py").write_text(f"{script}    time.sleep(0.1)\n")
    with Terminal(some_cluster, ["salloc", "--nodes=1"], tmp_path) as terminal:
        line = "hpc-launch --nproc-per-node 1 stay.py > log 2>&1"
        if how == "&":
            assert terminal.run(f"{{ {line} & }}") == 0
        else:
            terminal.start(line)
        wait_for(begun.exists, DEADLINE, lambda: terminal.screen)
        if how != "&":
            terminal.type("\x1a")
            assert terminal.status() == 148, terminal.screen
            assert terminal.run("bg") == 0
        for word in ("one", "two", "three"):
            terminal.start(f"echo type-''{word}; read word")
            terminal.wait_for(f"(?m)^type-{word}$")
            terminal.type(f"{word}\n")
            assert terminal.status() == 0
            assert terminal.run(f'test "$word" = {word}') == 0, terminal.screen
        end.touch()
        assert terminal.run("wait %1") == 0, terminal.screen


def test_a_pipe_is_not_read(some_cluster: Cluster, tmp_path: Path) -> None:
    """The lines of a loop are the loop's, and a note says how a worker gets them."""
    (tmp_path / "read.py").write_text("import sys\nprint('line', repr(sys.stdin.readline()), flush=True)\n")
    loop = "printf '1\\n2\\n' | while read lr; do hpc-launch --nproc-per-node 1 read.py; echo ended $lr; done"
    straight = "srun --ntasks=1 hpc-launch --nproc-per-node 1 read.py"
    with clean_environment():
        words = ["salloc", "--nodes=1", "bash", "-c", f"{loop}; echo hello | {straight}"]
        done = some_cluster.run(words, cwd=tmp_path, timeout=DEADLINE)
    assert [line for line in done.stdout.splitlines() if line.startswith("ended")] == ["ended 1", "ended 2"]
    assert [line.partition(" line ")[2] for line in done.stdout.splitlines() if " line " in line] == [
        "''",
        "''",
        "'hello\\n'",
    ]
    assert [mentions(line, "srun") for line in done.stderr.splitlines() if "note: " in line].count(True) == 1


def start_stayers(terminal: Terminal, folder: Path, arguments: str = "") -> None:
    """Start two ranks on each of two nodes, and wait until they are up."""
    for path in [*folder.glob("up.*"), *folder.glob("got.*")]:
        path.unlink()
    terminal.start(f"hpc-launch --nproc-per-node 2 {signals_support.SCRIPT} {arguments}")
    wait_for(lambda: len(list(folder.glob("up.*"))) == 4, DEADLINE, lambda: terminal.screen)


@pytest.mark.parametrize("repetition", [0, *(pytest.param(number, marks=pytest.mark.soak) for number in range(1, 20))])
def test_ctrl_c(shell: Terminal, tmp_path: Path, repetition: int) -> None:
    """Once: SIGINT to every worker, and time to end. Twice: an end at once. The terminal is the shell's again."""
    before = shell.run("stty -g >before")
    start_stayers(shell, tmp_path, "--on SIGINT 3")
    time.sleep(0.02 * repetition)
    shell.press_ctrl_c()
    assert (before, shell.status()) == (0, 130), shell.screen
    assert {path.name: path.read_text() for path in tmp_path.glob("got.*")} == {
        f"got.{rank}": "SIGINT\n" for rank in range(4)
    }
    assert {path.read_text().split()[-1] for path in tmp_path.glob("saved.*")} == {"whole"}, shell.screen

    start_stayers(shell, tmp_path, "--on SIGINT 1000")
    shell.press_ctrl_c()
    wait_for(lambda: len(list(tmp_path.glob("got.*"))) == 4, DEADLINE, lambda: shell.screen)
    time.sleep(0.05 * repetition)
    shell.press_ctrl_c()
    assert shell.status() == 130, shell.screen
    shell.wait_for("SIGINT came again")
    assert shell.run("stty -g | cmp - before") == 0, shell.screen
    left = "squeue --noheader --steps --jobs=$SLURM_JOB_ID --format=%j | grep -q hpc-launch"
    assert shell.run(f"while {left}; do sleep 0.1; done") == 0, shell.screen


def test_ctrl_c_before_the_step_has_begun(shell: Terminal, tmp_path: Path) -> None:
    """While another step has the nodes, Ctrl-C ends the wait."""
    shell.run("srun --nodes=2 sleep 1000 & until squeue -s -j $SLURM_JOB_ID -o %j | grep -q sleep; do sleep 0.1; done")
    shell.start(f"hpc-launch {signals_support.SCRIPT}")

    def waiting() -> bool:
        found = [one for one in psutil.process_iter(["cmdline", "cwd"]) if one.info["cwd"] == str(tmp_path)]
        return any("--job-name=hpc-launch" in (one.info["cmdline"] or ()) for one in found)

    wait_for(waiting, DEADLINE, lambda: shell.screen)
    shell.press_ctrl_c()
    assert shell.status() == 130, shell.screen
    shell.wait_for("hpc-launch: stopped by SIGINT")
    assert shell.run("kill %1; wait") == 0, shell.screen


def test_the_window_is_closed(some_cluster: Cluster, tmp_path: Path) -> None:
    """SIGHUP from the terminal stops the step, ranks have their time, and the allocation goes with the shell."""
    (tmp_path / signals_support.SCRIPT).write_text(STAYER)
    terminal = Terminal(some_cluster, ["srun", "--nodes=2", "--pty", "bash", "--norc"], tmp_path)
    start_stayers(terminal, tmp_path, "--on SIGTERM 1")
    terminal.close()
    terminal.process.wait(DEADLINE)
    some_cluster.wait_idle(DEADLINE)
    assert [path.read_text().split()[-1] for path in tmp_path.glob("saved.*")] == ["whole"] * 4, terminal.screen
    wait_for(lambda: not any(map(some_cluster.processes, some_cluster.nodes)), DEADLINE, "processes are left")


# --- where there is no job


def test_a_login_node(some_cluster: Cluster, tmp_path: Path) -> None:
    """Nothing is trained on the head, unless it is said; on a node, or where Slurm says nothing, it is."""
    write_probe(tmp_path)
    with clean_environment():
        refused = some_cluster.run(["hpc-launch", "probe.py"], cwd=tmp_path, check=False)
        explained = some_cluster.run(["hpc-launch", "explain", "probe.py"], cwd=tmp_path, check=False)
        meant = some_cluster.run(["hpc-launch", "--standalone", "probe.py"], cwd=tmp_path, timeout=DEADLINE)
        node = some_cluster.on("gpu003", ["hpc-launch", "probe.py"], cwd=tmp_path, timeout=DEADLINE)
    assert refused.returncode == 78
    assert lines_mention(refused.stderr.splitlines(), "hpc-launch: head salloc submit --standalone")
    assert (explained.returncode, explained.stdout, explained.stderr) == (78, "", refused.stderr)
    assert meant.stdout
    assert json.loads(node.stdout.partition("] ")[2])["host"] == "gpu003"


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("999999", "--jobid 999999 squeue"),
        ("{pending}", "--jobid {pending} PENDING"),
    ],
)
def test_a_job_in_which_nothing_can_be_started(cluster: Cluster, tmp_path: Path, job: str, message: str) -> None:
    """One line says why."""
    write_probe(tmp_path)
    with clean_environment():
        pending = cluster.sbatch("sleep 1000", "--begin=now+1hour", cwd=tmp_path)
        words = ["hpc-launch", "--jobid", job.format(pending=pending.id), "probe.py"]
        done = cluster.run(words, cwd=tmp_path, check=False)
    pending.cancel()

    assert done.returncode == 78
    assert lines_mention(done.stderr.splitlines(), f"hpc-launch: {message.format(pending=pending.id)}")


@pytest.mark.usefixtures("slurm_host")
def test_memory_and_a_terminal_without_interactive_step(tmp_path: Path) -> None:
    """Where memory is given out too, the step has all of the job's; and salloc's shell may be on the login node."""
    settings = ("SelectTypeParameters=CR_Core_Memory", "LaunchParameters=send_gids")
    write_probe(tmp_path)
    with Cluster(ClusterConfig(nodes=2, extra=settings)) as cluster:
        show = "scontrol --oneliner show step $SLURM_JOB_ID >steps; exec python probe.py"
        (tmp_path / "show.sh").write_text(f"#!/bin/bash\n{show}\n")
        (tmp_path / "show.sh").chmod(0o755)
        with Terminal(cluster, ["salloc", "--nodes=2", "--cpus-per-task=3", "--mem-per-cpu=100"], tmp_path) as terminal:
            assert terminal.run("hostname") == 0
            assert terminal.run("hpc-launch --nproc-per-node 1 --no-python ./show.sh") == 0, terminal.screen
            terminal.wait_for(r"(?m)^head$")
            terminal.type("exit\n")
            terminal.process.wait(DEADLINE)
    [step] = [line for line in (tmp_path / "steps").read_text().splitlines() if "Name=hpc-launch" in line]
    assert "TRES=cpu=6,mem=600M,node=2" in step
