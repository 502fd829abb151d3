"""The environment of a worker: what torch scripts read, its device, and what Slurm's variables say of it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch import secret_variables, world
from hpc_launch.hostlist import parse_counts
from hpc_launch.node.devices import Devices
from hpc_launch.settings import Origin
from hpc_launch.workers.worker_environment import AttemptEnvironment, WorkerNumbers, run_lengths, worker_environment
from hpc_launch.world import World
from tests.unit.slurm_variables import BLOCK, ONE_TASK_PER_NODE

CUDA = "CUDA_VISIBLE_DEVICES"
NODES = world.of_nodes(("gpu01", "gpu02", "gpu03", "gpu04"), 2, Origin.STEP)
TASKS = World(("gpu01", "gpu02"), 1, agents=8, agent_rank=5, local_agents=4, local_agent=1, task_per_rank=True)
PLACE = WorkerNumbers(rank=9, world_size=16, local_rank=1, local_world_size=4, role_rank=9, role_world_size=16)
ATTEMPT = AttemptEnvironment(
    number=2,
    label=5,
    master_addr="10.0.0.1",
    master_port=23456,
    max_restarts=3,
    run_id="4711.0.0",
    role="default",
    use_agent_store=True,
    agent_workers=(4, 4, 4, 4),
    signals=("SIGTERM", "SIGINT"),
    notices=("SIGUSR1", "SIGCONT"),
)
TORCH = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "2",
    "GROUP_WORLD_SIZE": "4",
    "ROLE_RANK": "9",
    "ROLE_WORLD_SIZE": "16",
    "ROLE_NAME": "default",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "23456",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "4711.0.0",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}
OWN = {
    "HPC_LAUNCH_ATTEMPT": "5",
    "HPC_LAUNCH_HOST": "gpu03",
    "HPC_LAUNCH_JOB_DIRECTORY": "/logs/4711.0",
    "HPC_LAUNCH_NOTICE_SIGNALS": "SIGUSR1,SIGCONT",
    "PYTHONFAULTHANDLER": "1",
}
# What says which task of the step a process is.
IDENTITY = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS")
COUNTS = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_STEP_NUM_TASKS", "SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE")


def environment(base: Mapping[str, str], **changes: Any) -> dict[str, str]:
    words: dict[str, Any] = {
        "place": PLACE,
        "attempt": ATTEMPT,
        "world": NODES,
        "devices": Devices(),
        "isolated": False,
        "omp_num_threads": None,
        "slurm_env": "rank",
        "job_directory": "/logs/4711.0",
    }
    return worker_environment(base, **{**words, **changes})


def test_the_variables_of_torch() -> None:
    """A worker gets what torchrun sets, over what was there, and beside it what is the user's own."""
    base = {"PATH": "/usr/bin", "RANK": "0", "MASTER_ADDR": "localhost"}

    assert environment(base) == {"PATH": "/usr/bin", **TORCH, **OWN}
    assert base == {"PATH": "/usr/bin", "RANK": "0", "MASTER_ADDR": "localhost"}


def test_secrets_of_the_run_stay_with_the_agent() -> None:
    """A worker, whose code prints and uploads environments, has no variable with a secret of the run."""
    base = {"PATH": "/usr/bin", **dict.fromkeys(secret_variables.VARIABLES, "c0ffee")}

    assert environment(base) == {"PATH": "/usr/bin", **TORCH, **OWN}


def test_masks_can_be_left_alone() -> None:
    """With --gpu-bind none neither a mask nor the order of devices is touched."""
    devices = Devices(("0", "1"), CUDA, "CUDA_VISIBLE_DEVICES=0,1")

    environ = environment({CUDA: "0,1"}, devices=devices, gpu_bind="none")

    assert (environ[CUDA], "CUDA_DEVICE_ORDER" in environ) == ("0,1", False)
    assert environment({CUDA: "0,1"}, devices=devices)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({}, {"omp_num_threads": 4}, {"OMP_NUM_THREADS": "4"}),
        ({"OMP_NUM_THREADS": "2"}, {"omp_num_threads": None}, {"OMP_NUM_THREADS": "2"}),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, {}, {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}),
        ({"PYTHONFAULTHANDLER": ""}, {}, {"PYTHONFAULTHANDLER": ""}),
        ({}, {"interface": "ib0"}, {"GLOO_SOCKET_IFNAME": "ib0", "NCCL_SOCKET_IFNAME": "=ib0"}),
        (
            {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth"},
            {"interface": "ib0"},
            {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth"},
        ),
        ({}, {"attempt": dataclasses.replace(ATTEMPT, role="eval")}, {"ROLE_NAME": "eval"}),
        ({}, {"attempt": dataclasses.replace(ATTEMPT, notices=())}, {"HPC_LAUNCH_NOTICE_SIGNALS": "none"}),
    ],
)
def test_what_the_user_set_and_what_was_derived(
    base: Mapping[str, str], changes: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    """Threads and interface are set where they are derived, and left where the user has set them."""
    made = environment(base, **changes)

    assert expected == {name: made.get(name) for name in expected}


def test_without_slurm_nothing_of_slurm_appears() -> None:
    """Outside of Slurm no variable of its is invented."""
    assert [name for name in environment({}) if name.startswith("SLURM")] == []


def test_slurms_variables_speak_of_the_rank() -> None:
    """All workers of a task would be task 0: by default each is told its own numbers."""
    made = environment(ONE_TASK_PER_NODE)

    assert {name: made[name] for name in (*IDENTITY, *COUNTS, "SLURM_NTASKS_PER_NODE")} == {
        "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
        "SLURM_GTIDS": "8,9,10,11",
        "SLURM_NTASKS": "16",
        "SLURM_NPROCS": "16",
        "SLURM_STEP_NUM_TASKS": "16",
        "SLURM_TASKS_PER_NODE": "4(x4)",
        "SLURM_STEP_TASKS_PER_NODE": "4(x4)",
        "SLURM_NTASKS_PER_NODE": "4",
    }
    changed = {*IDENTITY, *COUNTS, "SLURM_NTASKS_PER_NODE", *TORCH, *OWN}
    assert {name: value for name, value in ONE_TASK_PER_NODE.items() if name not in changed} == {
        name: value for name, value in made.items() if name not in changed
    }


def test_slurms_variables_can_be_kept() -> None:
    """--slurm-env keep leaves them as the task has them."""
    assert environment(ONE_TASK_PER_NODE, slurm_env="keep") == {**ONE_TASK_PER_NODE, **TORCH, **OWN}


def test_slurms_variables_can_be_hidden() -> None:
    """--slurm-env hide takes away what makes a worker look like a task, and leaves what describes the job."""
    made = environment({**ONE_TASK_PER_NODE, "PMI_RANK": "2", "PMIX_SERVER": "x"}, slurm_env="hide")
    hidden = {"SLURM_NTASKS_PER_NODE", "SLURM_STEP_ID", "SLURMD_NODENAME", "PMI_RANK", "PMIX_SERVER"}

    assert set() == {*IDENTITY, *COUNTS, *hidden} & set(made)
    assert {name: made[name] for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_CPUS_ON_NODE")} == {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "gpu[01-04]",
        "SLURM_CPUS_ON_NODE": "16",
    }


def test_a_task_that_is_one_rank_keeps_its_neighbours() -> None:
    """With a task per rank Slurm's own counts are right already, also where ranks of a node are not neighbours."""
    place = dataclasses.replace(PLACE, rank=5, world_size=16)
    made = environment(BLOCK, place=place, world=TASKS)
    kept = ("SLURM_GTIDS", "SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS")

    assert {name: BLOCK[name] for name in kept} == {name: made[name] for name in kept}
    assert (made["SLURM_PROCID"], made["SLURM_LOCALID"], made["SLURM_NODEID"]) == ("5", "1", "1")


def test_unknown_workers_of_the_others_leave_the_counts_per_node() -> None:
    """Where the workers of other agents are not known, no counts are invented."""
    made = environment(ONE_TASK_PER_NODE, attempt=dataclasses.replace(ATTEMPT, agent_workers=()))

    assert ONE_TASK_PER_NODE["SLURM_TASKS_PER_NODE"] == made["SLURM_TASKS_PER_NODE"]


@pytest.mark.parametrize(
    ("base", "tokens", "expected"),
    [
        ({CUDA: "4,5"}, ("4", "5"), {CUDA: "4,5", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LOCAL_RANK": "1"}),
        ({}, ("0", "1"), {CUDA: None, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LOCAL_RANK": "1"}),
        ({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, ("0", "1"), {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}),
        ({}, ("GPU-a", "GPU-b"), {"CUDA_DEVICE_ORDER": None}),
        ({}, (), {"CUDA_DEVICE_ORDER": None}),
    ],
)
def test_the_mask_is_never_replaced_by_another(
    base: Mapping[str, str], tokens: tuple[str, ...], expected: Mapping[str, str | None]
) -> None:
    """A worker indexes into the mask that Slurm gave; numbers are in the order of the bus, as Slurm's are."""
    made = environment(base, devices=Devices(tokens, CUDA))

    assert expected == {name: made.get(name) for name in expected}


@pytest.mark.parametrize(
    ("variable", "tokens", "local_rank", "expected"),
    [
        (CUDA, ("4", "5"), 1, "5"),
        (CUDA, ("MIG-a", "MIG-b"), 1, "MIG-b"),
        (CUDA, ("MIG-b",), 3, "MIG-b"),
        ("ROCR_VISIBLE_DEVICES", ("6", "2"), 0, "6"),
        ("", (), 2, "2"),
    ],
)
def test_an_isolated_worker_sees_its_own_device_only(
    variable: str, tokens: tuple[str, ...], local_rank: int, expected: str
) -> None:
    """The mask has one token, of the place in the mask that is the worker's, and LOCAL_RANK is 0."""
    made = environment(
        {},
        place=dataclasses.replace(PLACE, local_rank=local_rank),
        devices=Devices(tokens, variable),
        isolated=True,
    )

    assert (expected, "0") == (made[variable or CUDA], made["LOCAL_RANK"])


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_counts_are_written_as_slurm_writes_them(counts: list[int]) -> None:
    """What is written is read back to the same counts, without a run of equal ones left apart."""
    written = run_lengths(counts)

    assert tuple(counts) == parse_counts(written)
    parts = [part.partition("(")[0] for part in written.split(",")]
    assert all(one != other for one, other in itertools.pairwise(parts))
