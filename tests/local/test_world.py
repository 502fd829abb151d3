"""Nodes and ranks: what the options say of them is what the workers get."""

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, free_port, launch, launch_nodes, one_task_step, probe
from tests.support import mentions

PLACE = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as candidate:
            candidate.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def two_cpus() -> Iterator[int]:
    """Allow this process, and so those that it starts, two CPUs; gives how many there really are."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    yield len(os.sched_getaffinity(0))
    os.sched_setaffinity(0, before)


def test_options_reach_the_workers(tmp_path: Path) -> None:
    """Every worker has what was asked for in its environment, however the options are spelled."""
    port = str(free_port())
    options = {
        "nnodes": "1",
        "nproc-per-node": "2",
        "node-rank": "0",
        "master-addr": "127.0.0.1",
        "master-port": port,
        "rdzv-backend": "slurm",
        "rdzv-id": "run-7",
        "max-restarts": "3",
        "role": "trainer",
        "omp-num-threads": "5",
        "monitor-interval": "0.05",
    }
    words = [
        word
        for number, (name, value) in enumerate(options.items())
        for word in ("--" + name.replace("-", "-_"[number % 2]), value)
    ]
    done = launch(tmp_path, *words, probe(tmp_path), "--lr", "1e-3", "a b")
    assert (done.status, done.err) == (0, "")
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "ROLE_NAME": "trainer",
        "ROLE_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "5",
        "TORCHELASTIC_RUN_ID": "run-7",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    expected = [{**common, "RANK": rank, "LOCAL_RANK": rank, "ROLE_RANK": rank} for rank in ("0", "1")]
    assert expected == [{name: record[name] for name in expected[0]} for record in done.records]
    assert [list(record.argv) for record in done.records] == [["train.py", "--lr", "1e-3", "a b"]] * 2


@pytest.mark.parametrize("nnodes", ["2", "1:2"])
def test_two_listed_nodes_share_one_world(tmp_path: Path, nnodes: str) -> None:
    """The agents of a host list make one world, ranks in the order of the list, met at the first one's address."""
    common = ["--hosts", "127.0.0.1,localhost", "--local-addr", "127.0.0.1", "--rdzv-id", uuid.uuid4().hex]
    common += ["--nnodes", nnodes, "--nproc-per-node", "2", probe(tmp_path)]
    first, second = launch_nodes(tmp_path, ["--node-rank", "0"], ["--node-rank", "1"], common=common)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert first.seen(*PLACE) == [("0", "0", "0", "4", "2", "2"), ("1", "1", "0", "4", "2", "2")]
    assert second.seen(*PLACE) == [("2", "0", "1", "4", "2", "2"), ("3", "1", "1", "4", "2", "2")]
    meeting = set(first.seen("MASTER_ADDR", "MASTER_PORT") + second.seen("MASTER_ADDR", "MASTER_PORT"))
    assert [(address, int(port or 0) > 0) for address, port in meeting] == [("127.0.0.1", True)]


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("[::1]", "::1", marks=pytest.mark.skipif(not has_ipv6_loopback(), reason="no IPv6 here")),
    ],
)
def test_two_nodes_by_hand_as_for_torchrun(tmp_path: Path, written: str, address: str) -> None:
    """--node-rank, --master-addr and --master-port alone bring two nodes together, and the workers get the latter."""
    port = str(free_port())
    common = ["--nnodes", "2", "--master-addr", written, "--master-port", port, probe(tmp_path)]
    first, second = launch_nodes(tmp_path, ["--node-rank", "0"], ["--node-rank", "1"], common=common)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    names = (*PLACE, "MASTER_ADDR", "MASTER_PORT")
    assert [("0", "0", "0", "2", "1", "2", address, port)] == first.seen(*names)
    assert [("1", "0", "1", "2", "1", "2", address, port)] == second.seen(*names)


def test_c10d_brings_two_nodes_together(tmp_path: Path) -> None:
    """With torch's c10d backend two agents meet at the endpoint, and each gets a node rank of its own."""
    common = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    common += ["--rdzv-id", "meeting", "--local-addr", "127.0.0.1", "--nproc-per-node", "1", probe(tmp_path)]
    done = launch_nodes(tmp_path, [], [], common=common)
    assert [node.status for node in done] == [0, 0], "".join(node.err for node in done)
    names = (*PLACE, "TORCHELASTIC_RUN_ID")
    expected = [("0", "0", "0", "2", "1", "2", "meeting"), ("1", "0", "1", "2", "1", "2", "meeting")]
    assert expected == sorted(place for node in done for place in node.seen(*names))
    assert len({place for node in done for place in node.seen("MASTER_ADDR", "MASTER_PORT")}) == 1


@pytest.mark.parametrize(
    ("words", "mask", "count"),
    [
        (["--nproc-per-node", "auto"], "4,6,7", 3),
        pytest.param(["--nproc-per-node", "gpu"], "3,5", 2, marks=pytest.mark.soak),
        (["--nproc-per-node", "2"], "0,1,2", 2),
        ([], "GPU-aa,GPU-bb", 2),
    ],
)
def test_workers_per_node(tmp_path: Path, words: list[str], mask: str, count: int) -> None:
    """The number of workers is the one given, or that of the devices in the mask, which the workers keep."""
    done = launch(tmp_path, *words, probe(tmp_path), env={"CUDA_VISIBLE_DEVICES": mask})
    expected = [(str(rank), str(count), mask) for rank in range(count)]
    assert (0, expected) == (done.status, done.seen("LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"))


@pytest.mark.parametrize(("word", "mask"), [("cpu", "0"), ("auto", "")])
def test_one_worker_per_cpu(tmp_path: Path, two_cpus: int, word: str, mask: str) -> None:
    """'cpu', and 'auto' where there is no device, mean one worker for each CPU that this process may use."""
    done = launch(tmp_path, "--nproc-per-node", word, probe(tmp_path), env={"CUDA_VISIBLE_DEVICES": mask})
    expected = [(str(rank), str(two_cpus), "1") for rank in range(two_cpus)]
    assert (0, expected) == (done.status, done.seen("LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS"))


def test_standalone_looks_at_nothing_else(tmp_path: Path) -> None:
    """--standalone is a world of its own inside a step of two nodes, whatever endpoint and host list say."""
    two = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    step = {**one_task_step(), **two, "SLURM_STEP_NODELIST": "node[7-8]", "SLURM_JOB_NODELIST": "node[7-8]"}
    words = ["--standalone", "--rdzv-backend", "c10d", "--rdzv-endpoint", "nowhere.invalid:1", "--hosts", "a,b"]
    done = launch(tmp_path, *words, "--nproc-per-node", "2", probe(tmp_path), env=step)
    assert (done.status, [rank for (rank,) in done.seen("RANK")]) == (0, ["0", "1"]), done.err
    assert (
        done.seen("GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR")
        == [("0", "2", "2", "1", "127.0.0.1")] * 2
    )


def test_virtual_local_rank(tmp_path: Path) -> None:
    """With --virtual-local-rank each worker is local rank 0 and sees one device, taken from the mask that was given."""
    done = launch(tmp_path, "--virtual-local-rank", probe(tmp_path), env={"CUDA_VISIBLE_DEVICES": "4,6"})
    expected = [("0", "0", "4"), ("1", "0", "6")]
    assert (0, expected) == (done.status, done.seen("RANK", "LOCAL_RANK", "CUDA_VISIBLE_DEVICES"))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("rank", [("0", "0", "2", "0,1", "2"), ("1", "1", "2", "0,1", "2")]),
        ("keep", [("0", "0", "1", "0", "1")] * 2),
        ("hide", [(None, None, None, None, None)] * 2),
    ],
)
def test_slurm_variables_of_the_workers(tmp_path: Path, choice: str, expected: list[tuple[str | None, ...]]) -> None:
    """In a step with one task, Slurm's variables speak of the worker, of the task, or not at all."""
    done = launch(tmp_path, "--slurm-env", choice, "--nproc-per-node", "2", probe(tmp_path), env=one_task_step())
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_GTIDS", "SLURM_STEP_TASKS_PER_NODE")
    assert (0, expected) == (done.status, done.seen(*names)), done.err
    assert done.seen("SLURM_JOB_ID", "GROUP_RANK", "HPC_LAUNCH_HOST") == [("4711", "0", "node7")] * 2
    assert [path.name for path in (tmp_path / "logs" / "4711.2").glob("attempt_*")] == ["attempt_0"]


@pytest.mark.parametrize(("options", "limits"), [((), (200, 200)), (("--open-files=keep",), (150, 200))])
def test_too_few_open_files_are_said(tmp_path: Path, options: tuple[str, ...], limits: tuple[int, int]) -> None:
    """Who serves all others raises its own soft limit, says where the hard one is too low; workers have their own."""
    program = ("prlimit", "--nofile=150:200", *HPC_LAUNCH)
    body = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)"
    done = launch(tmp_path, *options, "--nproc-per-node", "1", probe(tmp_path, body), program=program)

    assert (done.status, done.out.strip().endswith(str(limits))) == (0, True), done.out + done.err
    assert [line for line in done.err.splitlines() if mentions(line, "note 1 259 200")] != []
