"""How workers are started: scripts, modules, programs, and what they get as arguments."""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

from tests.local.launching import HPC_LAUNCH, LAUNCH_MODULE, TORCH_LAUNCH, TORCHRUN, launch, probe, write
from tests.support import mentions

# What hpc-launch decides in its own way, as the documentation says: where the workers meet, what the run is called, how
# many threads they use, and where files are.
OWN_WAY = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE"}
if torch.__version__ < "2.5":  # whose agents serve no store for workers
    OWN_WAY |= {"TORCHELASTIC_USE_AGENT_STORE"}
# What torchrun sets from the release on that has an option for it.
KNOWN = {action.dest for action in get_args_parser()._actions}
LATER = {"TORCHELASTIC_SIGNALS_TO_HANDLE"} - {f"TORCHELASTIC_{name.upper()}" for name in KNOWN}
# Each run of a test has its own.
OF_THE_TEST = {"PROBE_RECORDS"}


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["-m", "job"], "job.py"),
        (["--module", "package"], "package/__main__.py"),
        (["folder"], "folder/__main__.py"),
    ],
)
def test_modules_and_packages(tmp_path: Path, words: list[str], file: str) -> None:
    """-m runs a module or a package as 'python -m' does, and a directory with __main__.py is a script."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    done = launch(tmp_path, "--nproc-per-node", "2", *words, "--lr", "1", probe(tmp_path, name=file) and "last")
    assert (done.status, done.seen("RANK")) == (0, [("0",), ("1",)]), done.err
    first = "folder" if words == ["folder"] else str(tmp_path / file)
    assert [[first, "--lr", "1", "last"]] * 2 == [list(record.argv) for record in done.records]


def test_a_program_without_python(tmp_path: Path) -> None:
    """--no-python starts the program itself, with its arguments as they are, in the agent's directory."""
    program = tmp_path / probe(tmp_path, name="program")
    program.write_text(f"#!{sys.executable}\n{program.read_text()}")
    program.chmod(0o755)
    done = launch(tmp_path, "--no-python", "./program", "a b", "--nproc-per-node=9")
    assert (done.status, done.seen("RANK", "WORLD_SIZE")) == (0, [("0", "1")]), done.err
    assert done.records[0].argv == ["./program", "a b", "--nproc-per-node=9"]
    assert "-u" not in done.records[0].command
    assert str(tmp_path) == done.records[0].cwd


# What a script that is run by runpy sees of itself, in a file beside it.
OF_ITSELF = """
import json, sys

import __main__

found = {
    "name": __name__, "file": __file__, "argv": sys.argv, "spec": __spec__, "main": __main__.__dict__ is globals(),
}
with open(__file__ + ".json", "w") as stream:
    json.dump(found, stream)
"""


def test_a_script_by_runpy_is_the_one_that_torchrun_runs(tmp_path: Path) -> None:
    """--run-path: the script sees of itself what it sees under torchrun, forked and in a new process."""
    script = write(tmp_path / "train.py", OF_ITSELF)
    seen = []
    for program, words in ((HPC_LAUNCH, ["--start", "warm"]), (HPC_LAUNCH, ["--start", "exec"]), (TORCHRUN, [])):
        done = launch(tmp_path, *words, "--run-path", str(script), "--lr", "1", program=program)
        assert done.status == 0, done.err
        seen.append(json.loads((tmp_path / "train.py.json").read_text()))
        (tmp_path / "train.py.json").unlink()

    assert seen[0] == seen[1] == seen[2]
    assert (seen[0]["name"], seen[0]["argv"], seen[0]["main"]) == ("__main__", [str(script), "--lr", "1"], True)


@pytest.mark.parametrize(("method", "warm"), [("spawn", False), ("fork", True), ("forkserver", True)])
def test_a_script_by_runpy_and_each_method(tmp_path: Path, method: str, warm: bool) -> None:
    """--start-method spawn makes new processes, the others fork; a worker has its environment and arguments."""
    name = probe(tmp_path, "print('torch' in sys.modules, flush=True)")
    done = launch(tmp_path, "--run-path", "--start-method", method, str(tmp_path / name), "--lr", "1")

    assert (done.status, done.seen("RANK", "LOCAL_RANK", "WORLD_SIZE")) == (0, [("0", "0", "1")]), done.err
    worker = done.records[0]
    assert [str(tmp_path / "train.py"), "--lr", "1"] == worker.argv
    line = " ".join(worker.command).strip()
    assert line == f"{sys.executable} -u -m hpc_launch.workers.run_path {tmp_path / name} --lr 1"
    assert done.out.split()[-1] == str(warm)


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_script_by_runpy_passes_its_status_on(tmp_path: Path, start: str) -> None:
    """The exit status of a --run-path script is the launcher's."""
    done = launch(tmp_path, "--run-path", "--start", start, probe(tmp_path, "raise SystemExit(42)"))
    assert (done.status, len(done.records)) == (42, 1), done.err


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_script_by_runpy_that_fails(tmp_path: Path, start: str) -> None:
    """An exception leaves torch's error file, which has the script's own frames, and is the cause of the failure."""
    (tmp_path / "train.py").write_text("def train():\n    raise ValueError('a bad batch')\n\ntrain()\n")
    done = launch(tmp_path, "--run-path", "--start", start, "train.py")
    (left,) = tmp_path.glob("logs/local-*/attempt_0/*/rank_0.error.json")
    message = json.loads(left.read_text())["message"]

    assert done.status == 1
    assert "ValueError: a bad batch" in done.err
    assert message["message"] == "ValueError: a bad batch"
    assert message["extraInfo"]["where"].endswith("train.py:2")
    assert message["extraInfo"]["py_callstack"].splitlines()[1].endswith('train.py", line 4, in <module>')


def test_local_rank_is_an_argument_of_the_launch_module(tmp_path: Path) -> None:
    """The launch module passes --local-rank=N to the script just as 'python -m torch.distributed.launch' does."""
    words = ["--nproc_per_node", "2", probe(tmp_path), "--lr", "1"]
    ours, theirs = (launch(tmp_path, *words, program=program) for program in (LAUNCH_MODULE, TORCH_LAUNCH))
    expected = [["train.py", f"--local-rank={rank}", "--lr", "1"] for rank in range(2)]
    assert (0, expected) == (ours.status, [list(record.argv) for record in ours.records]), ours.err
    assert sorted(expected) == sorted(list(record.argv) for record in theirs.records)


@pytest.mark.parametrize(
    ("program", "words"),
    [(LAUNCH_MODULE, ["--use_env"]), (HPC_LAUNCH, ["run"])],
    ids=["use_env", "run"],
)
def test_local_rank_is_a_variable_with_use_env(tmp_path: Path, program: tuple[str, ...], words: list[str]) -> None:
    """With --use-env, which is the default of hpc-launch, the script gets its own arguments only."""
    done = launch(tmp_path, *words, probe(tmp_path), "--lr", "1", program=program)
    assert (done.status, done.seen("LOCAL_RANK")) == (0, [("0",)]), done.err
    assert [list(record.argv) for record in done.records] == [["train.py", "--lr", "1"]]


def test_variables_and_flags_in_order_of_authority(tmp_path: Path) -> None:
    """A flag is stronger than a HPC_LAUNCH_ variable, and that than torchrun's PET_ variable."""
    variables = {
        "PET_NPROC_PER_NODE": "2",
        "PET_STANDALONE": "1",
        "PET_MAX_RESTARTS": "1",
        "PET_ROLE": "pet",
        "HPC_LAUNCH_ROLE": "ours",
        "PET_RDZV_ID": "pet",
        "HPC_LAUNCH_RDZV_ID": "ours",
        "HPC_LAUNCH_OMP_NUM_THREADS": "7",
    }
    done = launch(tmp_path, "--rdzv-id", "flag", probe(tmp_path), env=variables)
    names = ("WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS", "ROLE_NAME", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS")
    assert (done.status, done.seen(*names)) == (0, [("2", "1", "ours", "flag", "7")] * 2), done.err


def test_workers_have_every_variable_that_torchrun_sets(tmp_path: Path) -> None:
    """A worker's environment is the one that torchrun gives, but for what is documented and HPC_LAUNCH_ variables."""
    words = ["--standalone", "--nproc-per-node", "2", probe(tmp_path)]
    ours, theirs = (launch(tmp_path, *words, program=program) for program in (HPC_LAUNCH, TORCHRUN))
    assert (ours.status, theirs.status) == (0, 0), ours.err + theirs.err
    assert (len(ours.records), len(theirs.records)) == (2, 2)
    for mine, other in zip(ours.records, sorted(theirs.records, key=lambda record: record["RANK"] or ""), strict=True):
        names = set(other.env) - OF_THE_TEST
        assert set() == names - set(mine.env)
        assert {name: other[name] for name in names - OWN_WAY} == {name: mine[name] for name in names - OWN_WAY}
        more = set(mine.env) - set(other.env)
        assert {name for name in more if not name.startswith("HPC_LAUNCH_")} - LATER == {"PYTHONFAULTHANDLER"}


NUMA = pytest.mark.skipif(find_spec("torch.numa") is None, reason="torch 2.9 and newer")


@NUMA
def test_an_unknown_numa_binding_is_refused(tmp_path: Path) -> None:
    """--numa-binding says which modes there are; where this machine cannot bind, it says so instead of a traceback."""
    unknown = launch(tmp_path, "--numa-binding", "nearest", probe(tmp_path))
    assert (unknown.status, unknown.records) == (2, [])
    assert "node, socket, exclusive, core-complex" in unknown.err


@NUMA
def test_numa_binding_where_it_cannot_be_had(tmp_path: Path) -> None:
    """Where torch knows no device to be near to, one line says so."""
    done = launch(tmp_path, "--numa-binding", "node", probe(tmp_path))
    lines = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ") and "note: " not in line]
    assert (done.status, done.records, len(lines)) == (78, [], 1), done.err
    assert lines[0].startswith("hpc-launch: --numa-binding node: ")
    assert "Traceback" not in done.err


@pytest.mark.skipif(find_spec("torch.numa") is not None, reason="torch older than 2.9")
def test_numa_binding_before_torch_has_it(tmp_path: Path) -> None:
    """An older torch is named in one line."""
    done = launch(tmp_path, "--numa-binding", "node", probe(tmp_path))
    [line] = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ")]

    assert (done.status, done.records, mentions(line, "--numa-binding torch")) == (2, [], True), done.err


# A launcher whose torch is made to believe in two devices, once the factory is there: local rank 0 is near to the
# second CPU that there is, 1 near to the first.
NEAR = """
import os
from hpc_launch.cli import main
from hpc_launch.launch import launcher

def knowing(make):
    def made(*arguments):
        factory = make(*arguments)
        from torch.numa import binding
        cpus = sorted(os.sched_getaffinity(0))
        binding._get_logical_cpus_to_bind_to = lambda *, gpu_index, numa_options: {cpus[1 - gpu_index]}
        return factory
    return made

launcher.build_factory, launcher.spawn_factory = knowing(launcher.build_factory), knowing(launcher.spawn_factory)
main()
"""


@NUMA
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
@pytest.mark.parametrize("words", [["--start", "warm"], ["--start", "exec"], ["--run-path"]], ids=" ".join)
def test_numa_binding(tmp_path: Path, words: list[str]) -> None:
    """--numa-binding: each worker has the CPUs that torch says, however it is started, and no numactl is needed."""
    near = write(tmp_path / "near.py", NEAR)
    name = probe(tmp_path, "print('has', *os.sched_getaffinity(0), flush=True)")
    words = [*words, "--numa-binding", "node", "--nproc-per-node", "2", name]
    done = launch(tmp_path, *words, program=(sys.executable, str(near)))

    cpus = sorted(os.sched_getaffinity(0))
    assert done.status == 0, done.err
    assert [f"{rank}] has {cpus[1 - rank]}" for rank in (0, 1)] == sorted(
        line.rpartition(":")[2] for line in done.out.splitlines()
    )


@pytest.mark.parametrize("start", ["warm", "exec"])
@pytest.mark.parametrize(("asked", "limit"), [("auto", 3000), ("keep", 1100), ("2000", 2000), ("9999", 3000)])
def test_open_files(tmp_path: Path, start: str, asked: str, limit: int) -> None:
    """The soft limit of each worker, in each attempt; the hard limit stays."""
    body = "import resource\nprint(*resource.getrlimit(resource.RLIMIT_NOFILE))\nraise SystemExit(3)"
    words = ("sh", "-c", 'ulimit -Sn 1100; ulimit -Hn 3000; exec "$@"', "sh", *HPC_LAUNCH)
    options = [f"--start={start}", f"--open-files={asked}", "--max-restarts=1", "--console=all"]

    done = launch(tmp_path, *options, probe(tmp_path, body), program=words)

    assert done.status == 3, done.err
    assert [line.partition("] ")[2] for line in done.out.splitlines()] == [f"{limit} 3000"] * 2
