"""How workers are started: scripts, modules, programs, functions, and what they get as arguments."""

import sys
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, LAUNCH_MODULE, TORCH_LAUNCH, TORCHRUN, launch, probe

# What hpc-launch decides in its own way, as the documentation says: where the workers meet, what the run is called, how
# many threads they use, and where files are.
OWN_WAY = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS", "TORCHELASTIC_ERROR_FILE"}
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


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_functions_started_by_each_method(tmp_path: Path, method: str) -> None:
    """--run-path runs the script in a process made by --start-method, with a worker's environment and arguments."""
    words = ["--run-path", "--start-method", method, str(tmp_path / probe(tmp_path)), "--lr", "1"]
    done = launch(tmp_path, *words)
    assert (done.status, done.seen("RANK", "LOCAL_RANK", "WORLD_SIZE")) == (0, [("0", "0", "1")]), done.err
    worker = done.records[0]
    assert [str(tmp_path / "train.py"), "--lr", "1"] == worker.argv
    line = " ".join(worker.command)
    made_by = {"spawn": "spawn_main" in line, "forkserver": "forkserver" in line, "fork": "hpc_launch" in line}
    assert [method] == [name for name, true in made_by.items() if true]


def test_a_function_passes_its_status_on(tmp_path: Path) -> None:
    """The exit status of a --run-path script is the launcher's."""
    done = launch(tmp_path, "--run-path", "--start-method", "fork", probe(tmp_path, "raise SystemExit(42)"))
    assert (done.status, len(done.records)) == (42, 1), done.err


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
        assert set() == {name for name in more if not name.startswith("HPC_LAUNCH_")}


def test_an_unknown_numa_binding_is_refused(tmp_path: Path) -> None:
    """--numa-binding says which modes there are; where this machine cannot bind, it says so instead of a traceback."""
    unknown = launch(tmp_path, "--numa-binding", "nearest", probe(tmp_path))
    assert (unknown.status, unknown.records) == (2, [])
    assert "node, socket, exclusive, core-complex" in unknown.err


def test_numa_binding_where_it_cannot_be_had(tmp_path: Path) -> None:
    """Where workers cannot be bound (no numactl, no CUDA device), one line says so."""
    done = launch(tmp_path, "--numa-binding", "node", probe(tmp_path), env={"PATH": ""})
    lines = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ") and "note: " not in line]
    assert (done.status in (2, 78), done.records, len(lines)) == (True, [], 1), done.err
    assert "--numa-binding" in lines[0]
    assert "Traceback" not in done.err
