"""Bad input: one clear line on stderr and the documented exit status; no traceback, no worker, no hang."""

import shutil
import socket
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from tests.local.launching import Finished, launch, one_task_step, probe, write

USAGE, SCRIPT, RENDEZVOUS, LOG_DIR, CONTEXT = 2, 66, 69, 73, 78


def refuse(done: Finished, status: int, *words: str) -> None:
    """See that a launch was refused as it should be, in one line with all of these words."""
    assert (status, []) == (done.status, list(done.records)), done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert [word for word in words if word not in lines[0]] == [], lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nnodes", "0"], ["--nnodes", "'0'"]),
        (["--nnodes", "3:2"], ["--nnodes", "'3:2'"]),
        (["--nnodes", "abc"], ["--nnodes", "'abc'"]),
        (["--nnodes", "1:2:3"], ["--nnodes", "'1:2:3'"]),
        (["--nnodes", "2"], ["--nnodes", "--hosts", "--node-rank"]),
        (["--nproc-per-node", "0"], ["--nproc-per-node", "'0'"]),
        (["--nproc-per-node", "-1"], ["--nproc-per-node", "'-1'"]),
        (["--nproc-per-node", "gpu"], ["--nproc-per-node", "gpu"]),
        (["--master-port", "0"], ["--master-port", "'0'", "65535"]),
        (["--master-port", "70000"], ["--master-port", "'70000'", "65535"]),
        (["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:70000"], ["localhost:70000", "65535"]),
        (["--max-restarts", "-1"], ["--max-restarts", "'-1'"]),
        (["--monitor-interval", "0"], ["--monitor-interval", "'0'"]),
        (["--start-method", "frok"], ["--start-method", "frok", "fork"]),
        (["--node-rank", "2", "--nnodes", "2"], ["--node-rank", "2"]),
        (["--hosts", "gpu[1-2].invalid"], ["--hosts", "gpu", "--node-rank"]),
        (["--hosts", "gpu[1-"], ["--hosts", "gpu[1-"]),
        (
            ["--hosts", "a,b", "--node-rank", "0", "--local-addr", "192.0.2.7"],
            ["--local-addr: 192.0.2.7", "no address of"],
        ),
        (["--hosts", "a,b", "--node-rank", "1", "--interface", "none0"], ["--interface: no 'none0'"]),
        (["--hostfile", "nowhere.txt"], ["--hostfile", "nowhere.txt"]),
        (["--rdzv-conf", "timeout"], ["--rdzv-conf", "timeout"]),
        (["-t", "4"], ["--tee", "'4'"]),
        (["--signals-to-handle", "SIGNAL"], ["--signals-to-handle", "SIGNAL"]),
        (["--no-python", "--module"], ["--no-python", "--module"]),
        (["--nproc-pre-node", "2"], ["--nproc-pre-node", "--nproc-per-node"]),
        (["--max_requeue", "2"], ["--max-requeues"]),
        (["--stadalone"], ["--standalone"]),
    ],
    ids=" ".join,
)
def test_values_that_cannot_be_meant(tmp_path: Path, options: list[str], words: list[str]) -> None:
    """An option or a value that is wrong is named, and so is what would be right."""
    refuse(launch(tmp_path, *options, probe(tmp_path)), USAGE, *words)


def test_more_local_ranks_than_devices(tmp_path: Path) -> None:
    """More workers than devices are refused before anything starts."""
    done = launch(tmp_path, "--nproc-per-node", "3", probe(tmp_path), env={"CUDA_VISIBLE_DEVICES": "0,1"})
    refuse(done, USAGE, "--nproc-per-node", "3", "2 devices")


def test_a_variable_is_named_like_an_option(tmp_path: Path) -> None:
    """A bad value from the environment is blamed on its variable."""
    refuse(launch(tmp_path, probe(tmp_path), env={"PET_NNODES": "many"}), USAGE, "PET_NNODES", "'many'")


def test_no_script_at_all(tmp_path: Path) -> None:
    """Options without a script are a mistake in the command."""
    done = launch(tmp_path, "--nproc-per-node", "2")
    refuse(done, USAGE, "SCRIPT")


@pytest.mark.parametrize("name", ["trian.py", "folder", "folder/train.py"])
def test_no_such_script(tmp_path: Path, name: str) -> None:
    """A script that is not there is named."""
    (tmp_path / "folder").mkdir()
    refuse(launch(tmp_path, name), SCRIPT, name)


@pytest.mark.parametrize("locked", ["script", "folder"])
def test_a_script_that_is_not_readable(locked: str) -> None:
    """A script that this user may not read is named; so is one in a directory that the user may not enter."""
    # Not in tmp_path, which other users cannot enter.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "inner").mkdir()
        script = write(folder / "inner" / "train.py", "print('hello')")
        (script if locked == "script" else script.parent).chmod(0)
        # Root may read everything; what is not imported before may not be readable afterwards.
        imports = "import os, sys; from hpc_launch.cli import main, run"
        become = f"{imports}; os.getuid() or os.setuid(65534); main(sys.argv[1:])"
        done = launch(folder, "inner/train.py", program=(sys.executable, "-c", become))
        refuse(done, SCRIPT, "inner/train.py")
    finally:
        for path in folder.iterdir():
            path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


def test_an_unknown_backend(tmp_path: Path) -> None:
    """A rendezvous backend that torch does not know is refused with the names of those it knows."""
    refuse(launch(tmp_path, "--rdzv-backend", "c01d", probe(tmp_path)), USAGE, "--rdzv-backend", "c01d", "c10d")


@pytest.mark.parametrize("backend", ["slurm", "static"])
def test_a_port_that_is_taken(tmp_path: Path, backend: str) -> None:
    """A --master-port on which somebody listens is named."""
    with socket.create_server(("", 0)) as stranger:
        port = str(stranger.getsockname()[1])
        words = ["--rdzv-backend", backend, "--master-port", port, "--join-timeout", "5", probe(tmp_path)]
        done = launch(tmp_path, *words)
    assert (done.status, list(done.records)) == (RENDEZVOUS, []), done.err
    assert [port in line for line in done.err.splitlines() if line.startswith("hpc-launch: ")] == [True], done.err
    assert "Traceback" not in done.err


def test_a_node_that_never_comes(tmp_path: Path) -> None:
    """A node of the list that does not join in time is named."""
    words = [
        "--hosts",
        "127.0.0.1,gpu-7.invalid",
        "--node-rank",
        "0",
        "--local-addr",
        "127.0.0.1",
        "--join-timeout",
        "1",
    ]
    done = launch(tmp_path, *words, probe(tmp_path))
    assert (done.status, list(done.records)) == (RENDEZVOUS, []), done.err
    assert "gpu-7.invalid did not join" in done.err
    assert "Traceback" not in done.err


def test_a_peer_that_never_comes_to_a_static_meeting(tmp_path: Path) -> None:
    """--rdzv-conf timeout=1 ends the wait for a node that does not come to torch's static backend."""
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = str(placeholder.getsockname()[1])
    words = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    done = launch(tmp_path, *words, "--rdzv-conf", "timeout=1", probe(tmp_path))
    assert (done.status, list(done.records)) == (RENDEZVOUS, []), done.err
    assert "Traceback" not in done.err


def test_an_unknown_event_log_handler(tmp_path: Path) -> None:
    """An event handler that torch does not know is named."""
    done = launch(tmp_path, "--event-log-handler", "cosnole", probe(tmp_path))
    refuse(done, USAGE, "--event-log-handler", "cosnole")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_STEP_NODELIST": "node8", "SLURM_JOB_NODELIST": "node8"}, ["node7", "node8"]),
        ({"SLURM_STEP_NUM_NODES": "3"}, ["SLURM_STEP_NUM_NODES=3"]),
        ({"SLURM_PROCID": "5"}, ["SLURM_PROCID=5"]),
        ({"SLURM_STEP_NODELIST": None}, ["SLURM_STEP_NODELIST"]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, ["SLURM_STEP_TASKS_PER_NODE"]),
    ],
)
def test_slurm_variables_that_contradict_each_other(
    tmp_path: Path, changes: dict[str, str | None], words: list[str]
) -> None:
    """Variables that cannot be those of one step are named."""
    refuse(launch(tmp_path, probe(tmp_path), env={**one_task_step(), "SLURM_GTIDS": None, **changes}), CONTEXT, *words)


@pytest.mark.parametrize("place", ["file", "file/inner"])
def test_a_log_dir_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    """A log directory that cannot be made is named, with the option that changes it."""
    (tmp_path / "file").touch()
    refuse(launch(tmp_path, "--log-dir", place, probe(tmp_path)), LOG_DIR, place, "--log-dir")


def test_no_program_of_that_name(tmp_path: Path) -> None:
    """With --no-python, a program that is not there is named, like a script."""
    done = launch(tmp_path, "--no-python", "./no-such-program")
    assert done.status in (SCRIPT, 127), done.err
    assert "Traceback" not in done.err
    assert "no-such-program" in done.err
