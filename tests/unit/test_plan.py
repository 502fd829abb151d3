"""The plan: what will be done, from what was asked for and what is here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from hpc_launch import codec, errors
from hpc_launch.errors import ContextError, HpcLaunchError, ScriptError, UsageError
from hpc_launch.node.devices import Devices
from hpc_launch.node.limits import UNLIMITED
from hpc_launch.plan import derivation, log_paths
from hpc_launch.plan.launch_context import LaunchContext, check_script, gather_context
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import NodeRange, Origin, Settings, resolve
from hpc_launch.settings.layer import Table, layer_of
from hpc_launch.slurm.environment import locate
from tests.support import mentions
from tests.unit.slurm_variables import (
    ARRAY,
    BATCH,
    BLOCK,
    CYCLIC,
    HETEROGENEOUS,
    INTERACTIVE,
    LOGIN_SHELL,
    ONE_TASK_PER_NODE,
    STALE_BATCH,
    SUBSET,
    UNEVEN,
    step,
    task_of,
)

FOUR_GPUS = Devices(("0", "1", "2", "3"), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=0,1,2,3")
ONE_GPU = Devices(("0",), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=0")
FOUR_TILES = Devices(("0", "1", "2", "3"), "ZE_AFFINITY_MASK", "ZE_AFFINITY_MASK=0,1,2,3")
TWO_MIGS = Devices(("MIG-a", "MIG-b"), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=MIG-a,MIG-b")

ONE_NODE_BATCH = {**BATCH, "SLURM_JOB_NODELIST": "gpu01", "SLURM_JOB_NUM_NODES": "1"}
ONE_NODE_STEP = step(nodes="gpu01", node="gpu01", node_id=0, tasks_per_node="1", tasks=1, task=0, gtids="0")


def read(path: Path) -> str:
    """Read one of the files of this test."""
    if path.name not in FILES:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return FILES[path.name]


def here(environ: Mapping[str, str] | None = None, /, **changes: Any) -> LaunchContext:
    """Return a CPU-only node called `box` with 16 CPUs and no Slurm, with these changes."""
    environ = {**(environ or {})}
    place = LaunchContext(
        environ=environ,
        directory=Path("/project"),
        host="box",
        slurm=locate(environ),
        devices=Devices(),
        cpus=16,
        position=lambda hosts: list(hosts).index("box") if "box" in hosts else None,
        read=read,
        command=("hpc-launch", "train.py"),
        interpreter="/usr/bin/python3",
        open_files=(1024, 1 << 20),
    )
    return dataclasses.replace(place, **changes)


FILES = {
    "nodes.txt": "other\nbox\n",
    "slots.txt": "other slots=8\nbox slots=2\n",
    "many_slots.txt": "box slots=64\n",
    "empty.txt": "# nothing\n",
    "bad.txt": "box\ngpu[3-1]\n",
}


def asked(**options: str | bool) -> Settings:
    return resolve(options, {})


def plan(place: LaunchContext | None = None, /, **options: str | bool) -> Plan:
    return derivation.make_plan(asked(**options), place or here(), ("train.py",))


def derived(made: Plan) -> dict[str, tuple[str, str]]:
    return {item.name: (item.value, item.origin) for item in made.derived}


def refused(kind: type[HpcLaunchError], place: LaunchContext, **options: str | bool) -> str:
    with pytest.raises(HpcLaunchError) as caught:
        plan(place, **options)
    assert kind is type(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- who takes part


def test_one_node() -> None:
    """With nothing said and no Slurm, this node runs one worker, apart from all others."""
    made = plan()

    assert (made.world.hosts, made.world.node_rank, made.world.agents, made.world.agent_rank) == (("box",), 0, 1, 0)
    assert (NodeRange(1, 1), "slurm", "", ("127.0.0.1",)) == (made.nnodes, made.backend, made.endpoint, made.leaders)
    assert (made.run_id, made.local_world_size, made.omp_num_threads, made.job_name) == ("none", 1, 16, "")
    assert (Path("/project/logs"), ("train.py",), ()) == (made.log_root, made.script, made.warnings)
    assert (made.own_rendezvous, made.isolated, made.world.leader) == (True, False, True)
    assert {
        "nnodes": "1",
        "hosts": "box",
        "node_rank": "0",
        "nproc_per_node": "1",
        "rdzv_backend": "slurm",
        "rdzv_id": "none",
        "master_addr": "127.0.0.1",
        "master_port": str(made.ports[0]),
        "devices": "none",
        "cpu_bind": "none",
        "omp_num_threads": "16",
        "open_files": "65536",
        "start": "warm",
        "log_dir": "/project/logs",
        "job_directory": "local-<time>-<pid>",
    } == {name: value for name, (value, _) in derived(made).items()}
    defaults = {"nnodes", "hosts", "node_rank", "rdzv_backend", "rdzv_id", "open_files", "start"}
    assert defaults == {name for name, (_, origin) in derived(made).items() if origin == Origin.DEFAULT.value}


def test_a_slurm_step() -> None:
    """In a step everything comes from the step: nodes, rank, first node, run id, log directory and its name."""
    made = plan(here(ONE_TASK_PER_NODE, devices=FOUR_GPUS))

    assert (
        made.world.hosts,
        made.world.node_rank,
        made.world.agents,
        made.world.agent_rank,
    ) == (("gpu01", "gpu02", "gpu03", "gpu04"), 2, 4, 2)
    assert (NodeRange(4, 4), "slurm", "", ("gpu01",)) == (made.nnodes, made.backend, made.endpoint, made.leaders)
    assert (made.run_id, made.local_world_size, made.omp_num_threads, made.job_name) == ("4711.0.0", 4, 4, "4711.0")
    assert (Path("/home/ada/project/logs"), (), False) == (made.log_root, made.warnings, made.world.leader)
    assert {
        "nnodes": "4",
        "hosts": "gpu[01-04]",
        "node_rank": "2",
        "nproc_per_node": "4",
        "rdzv_backend": "slurm",
        "rdzv_id": "4711.0.0",
        "master_addr": "gpu01",
        "master_port": str(made.ports[0]),
        "devices": "0,1,2,3",
        "cpu_bind": "none",
        "omp_num_threads": "4",
        "open_files": "65536",
        "start": "warm",
        "log_dir": "/home/ada/project/logs",
        "job_directory": "4711.0",
    } == {name: value for name, (value, _) in derived(made).items()}
    origins = {name: origin for name, (_, origin) in derived(made).items()}
    assert {origins[name] for name in ("nnodes", "hosts", "node_rank")} == {Origin.STEP.value}
    assert {origins[name] for name in ("nproc_per_node", "devices")} == {"CUDA_VISIBLE_DEVICES=0,1,2,3"}
    assert {origins[name] for name in ("rdzv_backend", "open_files", "start")} == {Origin.DEFAULT.value}
    assert mentions(origins["omp_num_threads"], 16, 4)


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        (BLOCK, {"rank": "5", "local_rank": "1", "world_size": "16", "local_world_size": "4"}),
        (CYCLIC, {"rank": "5", "local_rank": "1", "world_size": "8", "local_world_size": "2"}),
        (UNEVEN, {"rank": "6", "local_rank": "0", "world_size": "7", "local_world_size": "1"}),
    ],
    ids=["block", "cyclic", "uneven"],
)
def test_a_task_per_rank(variables: Mapping[str, str], ranks: Mapping[str, str]) -> None:
    """Where Slurm started several tasks on a node, each is one rank, with the numbers that Slurm gave it."""
    made = plan(here(variables))

    assert ranks == {name: value for name, (value, _) in derived(made).items() if name in ranks}
    assert (True, int(ranks["rank"]), int(ranks["world_size"])) == (
        made.world.task_per_rank,
        made.world.agent_rank,
        made.world.agents,
    )
    assert (made.local_world_size, derived(made)["nproc_per_node"][0]) == (1, "1")
    assert derived(made)["nproc_per_node"][1] != Origin.DEFAULT.value


def test_the_first_agent_of_the_first_node_leads() -> None:
    """With an arbitrary distribution task 0 may be anywhere: the leader is on the node that all others look for."""
    first = {**BLOCK, "SLURMD_NODENAME": "gpu01", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_PROCID": "7"}

    assert plan(here(first)).world.leader
    assert not plan(here({**first, "SLURM_LOCALID": "1"})).world.leader
    assert not plan(here({**BLOCK, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"})).world.leader


@pytest.mark.parametrize(
    ("options", "node_rank", "workers", "origin"),
    [
        ({"hosts": "other,box"}, 1, 1, "default (no device found)"),
        ({"hosts": "box,other,box"}, 0, 1, "default (no device found)"),
        ({"hosts": "gpu[1-3]", "node_rank": "2"}, 2, 1, "default (no device found)"),
        ({"hostfile": "nodes.txt"}, 1, 1, "default (no device found)"),
        ({"hostfile": "slots.txt"}, 1, 2, "host list"),
        ({"hostfile": "slots.txt", "nproc_per_node": "3"}, 1, 3, "flag"),
        ({"hostfile": "slots.txt", "nproc_per_node": "auto"}, 1, 16, "flag, allowed CPUs"),
    ],
)
def test_a_list_of_hosts(options: Mapping[str, str], node_rank: int, workers: int, origin: str) -> None:
    """The node rank is where this host stands in the list, and a host file may say the number of workers."""
    made = plan(**options)

    assert (node_rank, Origin.HOSTS) == (made.world.node_rank, made.world.origin)
    assert (workers, (str(workers), origin)) == (made.local_world_size, derived(made)["nproc_per_node"])
    assert (made.world.hosts[0],) == made.leaders
    assert len(set(made.world.hosts)) == len(made.world.hosts)


def test_a_list_of_hosts_wins_over_the_step() -> None:
    """What the user lists is stronger than what Slurm says; the job directory is still the step's."""
    made = plan(here(ONE_TASK_PER_NODE), hosts="box,gpu09")

    assert (made.world.hosts, made.job_name) == (("box", "gpu09"), "4711.0")
    assert derived(made)["hosts"] == ("box,gpu09", "host list")
    assert made.run_id.startswith("hosts-")


@pytest.mark.parametrize("variable", ["PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "COBALT_JOBID", "JOB_ID"])
def test_a_list_of_hosts_takes_the_job_id_of_other_schedulers(variable: str) -> None:
    """Two jobs on the same hosts are two runs."""
    made = plan(here({variable: "123.pbs"}), hosts="box,other")

    assert (made.run_id, derived(made)["rdzv_id"][1]) == ("hosts-123.pbs", "job id")


def test_a_list_of_hosts_names_the_run_alike_on_every_node() -> None:
    """Without any job id the list itself names the run."""
    runs = [plan(hosts="a,b,c", node_rank=str(rank)) for rank in range(3)]

    assert len({(run.run_id, run.ports) for run in runs}) == 1
    assert runs[0].run_id != plan(hosts="a,b,d", node_rank="0").run_id


@pytest.mark.parametrize(
    ("options", "nnodes", "elastic"),
    [
        ({}, NodeRange(4, 4), False),
        ({"nnodes": "4"}, NodeRange(4, 4), False),
        ({"nnodes": "2:8"}, NodeRange(2, 4), True),
        ({"nnodes": "4:8"}, NodeRange(4, 4), False),
        ({"spares": "1"}, NodeRange(3, 4), True),
        ({"nnodes": "2:4", "spares": "1"}, NodeRange(2, 4), True),
        ({"nnodes": "4", "spares": "3"}, NodeRange(1, 4), True),
    ],
)
def test_how_many_nodes_may_be_lost(options: dict[str, str], nnodes: NodeRange, *, elastic: bool) -> None:
    """Down to the least number that was asked for, or to as many as work at first."""
    made = plan(here(ONE_TASK_PER_NODE), **options)

    assert (made.nnodes, made.elastic) == (nnodes, elastic)


def test_where_no_node_may_be_lost() -> None:
    """Spares need somebody to work, our rendezvous, and one task on each node."""
    assert mentions(refused(UsageError, here(ONE_TASK_PER_NODE), spares="4"), "--spares 4")
    assert mentions(refused(UsageError, here(ONE_TASK_PER_NODE), spares="1", rdzv_backend="c10d"), "c10d slurm")
    assert mentions(refused(UsageError, here(BLOCK), nnodes="2:4"), "--nnodes 2:4 --ntasks-per-node=1")


def test_by_hand_as_for_torchrun() -> None:
    """--nnodes, --node-rank and --master-addr mean static rendezvous at torchrun's port, Slurm apart."""
    made = plan(nnodes="2", node_rank="1", master_addr="head", nproc_per_node="8")

    assert (made.world.agents, made.world.agent_rank, made.world.origin) == (2, 1, Origin.FLAG)
    assert ("static", "head:29500", NodeRange(2, 2), 8) == (
        made.backend,
        made.endpoint,
        made.nnodes,
        made.local_world_size,
    )
    assert {name: derived(made)[name] for name in ("node_rank", "nnodes", "nproc_per_node")} == {
        "node_rank": ("1", "flag"),
        "nnodes": ("2", "flag"),
        "nproc_per_node": ("8", "flag"),
    }
    assert (derived(made)["master_port"][0], derived(made)["master_addr"][0]) == ("29500", "head")


@pytest.mark.parametrize(
    ("options", "backend", "endpoint"),
    [
        ({"nnodes": "2", "node_rank": "0", "master_addr": "[fe80::1]"}, "static", "[fe80::1]:29500"),
        ({"nnodes": "2", "node_rank": "0", "master_addr": "h", "master_port": "1234"}, "static", "h:1234"),
        ({"nnodes": "2", "node_rank": "0"}, "static", "127.0.0.1:29500"),
        ({"nnodes": "2", "node_rank": "1", "rdzv_endpoint": "h:99"}, "static", "h:99"),
        ({"nnodes": "1:2", "rdzv_backend": "c10d", "rdzv_endpoint": "h:29400"}, "c10d", "h:29400"),
        ({"nnodes": "2", "rdzv_backend": "etcd-v2", "rdzv_endpoint": "h"}, "etcd-v2", "h"),
        ({"rdzv_backend": "etcd"}, "etcd", ""),
        ({"rdzv_backend": "c10d"}, "c10d", "127.0.0.1:0"),
        ({"nnodes": "2", "node_rank": "1", "rdzv_backend": "slurm", "master_addr": "h"}, "slurm", ""),
    ],
)
def test_backend_and_endpoint_by_hand(options: Mapping[str, str], backend: str, endpoint: str) -> None:
    """A backend that is asked for is used, static otherwise; the endpoint is the one that torchrun would use."""
    made = plan(**options)

    assert (backend, endpoint) == (made.backend, made.endpoint)
    if backend == "static":
        assert endpoint.rpartition(":")[2] == derived(made)["master_port"][0]


@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_backends_of_torch_in_a_step_meet_at_a_port_of_the_run(backend: str) -> None:
    """In a step, where several jobs may share nodes, torch's backends get a port of the run too."""
    made = plan(here(ONE_TASK_PER_NODE), rdzv_backend=backend)

    assert f"gpu01:{made.ports[0]}" == made.endpoint
    assert not made.own_rendezvous


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, {}),
        (ONE_TASK_PER_NODE, {}),
        (BATCH, {}),
        (LOGIN_SHELL, {}),
        ({}, {"rdzv_backend": "static"}),
        ({}, {"rdzv_backend": "c10d", "rdzv_endpoint": "far:29400"}),
        ({}, {"master_addr": "far", "master_port": "1234"}),
        ({}, {"hosts": "far[1-4]"}),
    ],
)
def test_standalone_looks_at_nothing_else(variables: Mapping[str, str], options: Mapping[str, str]) -> None:
    """--standalone is one node that meets itself on loopback, whatever Slurm, lists and endpoints say."""
    made = plan(here(variables), standalone=True, **options)

    assert (
        made.world.hosts,
        made.world.agents,
        made.backend,
        made.endpoint,
        made.leaders,
    ) == (("box",), 1, "slurm", "", ("127.0.0.1",))
    assert (made.run_id, made.job_name) == ("none", "")


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        (ONE_NODE_BATCH, {}),
        (BATCH, {"nnodes": "1"}),
        (INTERACTIVE, {"nnodes": "1"}),
        ({**LOGIN_SHELL, "SLURM_JOB_NODELIST": "box"}, {}),
    ],
)
def test_one_node_of_an_allocation_needs_no_srun(variables: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Without srun, in a container say, a job of one node or --nnodes 1 runs in the batch script itself."""
    made = plan(here(variables), **options)

    assert ((variables.get("SLURMD_NODENAME", "box"),), Origin.JOB) == (made.world.hosts, made.world.origin)
    assert (made.job_name, made.leaders) == ("4711", ("127.0.0.1",))


# ---- errors


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        (
            BATCH,
            {},
            "4711 4 srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=16 train.py --standalone",
        ),
        (
            STALE_BATCH,
            {"nnodes": "2"},
            "4711 4 srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=16 train.py --standalone",
        ),
        (
            INTERACTIVE,
            {},
            "4711 4 srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=16 train.py --standalone",
        ),
        (
            LOGIN_SHELL,
            {"nnodes": "1"},
            "box 4711 gpu[01-04] srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=16 train.py",
        ),
        (
            SUBSET,
            {"nnodes": "4"},
            "--nnodes 4 2 gpu[03-04] srun --nodes",
        ),
        (
            ONE_TASK_PER_NODE,
            {"nnodes": "1:3"},
            "--nnodes 1:3 4 gpu[01-04] srun --nodes",
        ),
        (
            {},
            {"nnodes": "3", "hosts": "box,other"},
            "--nnodes 3 2 box,other --hosts",
        ),
        (
            BLOCK,
            {"nproc_per_node": "4"},
            "--nproc-per-node 4 gpu02 --ntasks-per-node=1",
        ),
    ],
)
def test_contradictions_with_this_place(
    variables: Mapping[str, str], options: Mapping[str, str], expected: str
) -> None:
    """What was asked for and what is here contradict each other: the message has both, and the way out."""
    assert mentions(refused(ContextError, here(variables), **options), expected)


def test_more_nodes_than_the_job_has() -> None:
    """--nnodes 2 in the batch script of a job with one node cannot be meant."""
    assert refused(ContextError, here(ONE_NODE_BATCH), nnodes="2").startswith("--nnodes 2, but")
    with pytest.raises(ContextError) as caught:
        derivation.make_plan(resolve({}, {"PET_NNODES": "3"}), here(task_of(2, 0)), ("train.py",))
    assert mentions(caught.value, "PET_NNODES 3 2 n[0-1]")


@pytest.mark.parametrize(
    ("options", "devices", "expected"),
    [
        ({"hosts": "gpu[1-"}, Devices(), "--hosts 'gpu[1-' '[1-'"),
        ({"hosts": ","}, Devices(), "--hosts"),
        ({"hosts": "gpu[01-02]"}, Devices(), "--hosts box gpu[01-02] --node-rank"),
        ({"hosts": "a,b", "node_rank": "2"}, Devices(), "--node-rank 2 a,b 0"),
        ({"hostfile": "empty.txt"}, Devices(), "--hostfile"),
        ({"hostfile": "bad.txt"}, Devices(), "--hostfile 2 'gpu[3-1]' '3-1'"),
        (
            {"nnodes": "2"},
            Devices(),
            "--nnodes 2 srun --hosts --node-rank --master-addr --rdzv-backend --rdzv-endpoint",
        ),
        ({"nnodes": "2", "rdzv_endpoint": "h:1"}, Devices(), "--rdzv-endpoint h:1 --rdzv-backend c10d"),
        (
            {"nproc_per_node": "5"},
            FOUR_GPUS,
            "--nproc-per-node 5 4 CUDA_VISIBLE_DEVICES=0,1,2,3 CUDA_VISIBLE_DEVICES=",
        ),
        ({"nproc_per_node": "gpu"}, Devices(), "--nproc-per-node gpu"),
        ({"nproc_per_node": "gpu"}, FOUR_TILES, "--nproc-per-node gpu ZE_AFFINITY_MASK=0,1,2,3"),
        ({"nproc_per_node": "xpu"}, FOUR_GPUS, "--nproc-per-node xpu CUDA_VISIBLE_DEVICES=0,1,2,3"),
        ({"nproc_per_node": "gpus"}, FOUR_GPUS, "--nproc-per-node 'gpus' auto, cpu, gpu, xpu"),
        ({"hang_timeout": "60", "rdzv_backend": "c10d"}, Devices(), "--hang-timeout c10d"),
        ({"master_addr": "h:port"}, Devices(), "'h:port' HOST:PORT"),
    ],
)
def test_options_that_cannot_be_meant(options: Mapping[str, str], devices: Devices, expected: str) -> None:
    """The message names the option and its value, and says what would do."""
    assert mentions(refused(UsageError, here(devices=devices), **options), expected)


@pytest.mark.parametrize("variables", [{}, ONE_NODE_BATCH])
def test_a_node_rank_beyond_the_only_node(variables: Mapping[str, str]) -> None:
    """--node-rank 1 of one node is refused, rather than run as node 0."""
    assert mentions(refused(UsageError, here(variables), node_rank="1"), "--node-rank", 1)


def test_more_slots_than_devices() -> None:
    """A host file with a line per core does not make 64 workers share 4 devices."""
    message = refused(UsageError, here(devices=FOUR_GPUS), hostfile="many_slots.txt")

    assert [part for part in ("64", "4 devices", "--nproc-per-node") if part not in message] == []


def test_a_host_file_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is that of a shell, as in a file of settings, or after `--hostfile=`."""
    monkeypatch.setenv("HOME", "/home/ada")
    made = plan(here(read=lambda path: "box\n" if path == Path("/home/ada/hosts") else ""), hostfile="~/hosts")

    assert made.world.hosts == ("box",)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        PermissionError(13, "Permission denied"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ],
)
def test_a_host_file_that_cannot_be_read(error: OSError | UnicodeDecodeError) -> None:
    """The file and the reason are named."""

    def read(_: Path) -> str:
        raise error

    told = refused(UsageError, here(read=read), hostfile="hosts.txt")
    assert mentions(told, "--hostfile hosts.txt", errors.reason(error))


# ---- single values


@pytest.mark.parametrize(
    ("word", "devices", "expected"),
    [
        (None, Devices(), (1, "default (no device found)")),
        (None, FOUR_GPUS, (4, "CUDA_VISIBLE_DEVICES=0,1,2,3")),
        ("auto", FOUR_GPUS, (4, "CUDA_VISIBLE_DEVICES=0,1,2,3")),
        ("auto", FOUR_TILES, (4, "ZE_AFFINITY_MASK=0,1,2,3")),
        ("auto", Devices(), (16, "flag, allowed CPUs")),
        ("cpu", FOUR_GPUS, (16, "flag, allowed CPUs")),
        ("gpu", FOUR_GPUS, (4, "CUDA_VISIBLE_DEVICES=0,1,2,3")),
        ("xpu", FOUR_TILES, (4, "ZE_AFFINITY_MASK=0,1,2,3")),
        ("3", FOUR_GPUS, (3, "flag")),
        ("3", Devices(), (3, "flag")),
    ],
)
def test_workers_per_node(word: str | None, devices: Devices, expected: tuple[int, str]) -> None:
    """One worker per visible device, else one; the words of torchrun mean what they mean there."""
    options = {} if word is None else {"nproc_per_node": word}
    made = plan(here(devices=devices), **options)

    assert expected == (made.local_world_size, derived(made)["nproc_per_node"][1])


@pytest.mark.parametrize(
    ("variables", "cpus", "options", "expected"),
    [
        ({}, 16, {"nproc_per_node": "4"}, (4, "16 allowed CPUs / 4 local ranks")),
        ({}, 7, {"nproc_per_node": "4"}, (1, "7 allowed CPUs / 4 local ranks")),
        ({}, 2, {"nproc_per_node": "4"}, (1, "2 allowed CPUs / 4 local ranks")),
        ({"OMP_NUM_THREADS": "3"}, 16, {}, (None, "environment")),
        ({"OMP_NUM_THREADS": ""}, 16, {}, (16, "16 allowed CPUs / 1 local ranks")),
        ({"OMP_NUM_THREADS": "3"}, 16, {"omp_num_threads": "5"}, (5, "flag")),
        (BLOCK, 16, {}, (4, "4 allowed CPUs / 1 local ranks")),
        (BLOCK, 2, {}, (2, "2 allowed CPUs / 1 local ranks")),
        ({**BLOCK, "SLURM_CPUS_ON_NODE": "2"}, 16, {}, (1, "1 allowed CPUs / 1 local ranks")),
        ({**BLOCK, "SLURM_CPUS_ON_NODE": ""}, 16, {}, (4, "4 allowed CPUs / 1 local ranks")),
    ],
)
def test_threads(
    variables: Mapping[str, str], cpus: int, options: Mapping[str, str], expected: tuple[int | None, str]
) -> None:
    """OMP_NUM_THREADS is a worker's share of the CPUs that it may really use, unless the user has set it."""
    made = plan(here(variables, cpus=cpus), **options)

    assert expected == (made.omp_num_threads, derived(made)["omp_num_threads"][1])


@pytest.mark.parametrize(
    ("limits", "options", "expected"),
    [
        ((1024, 4096), {}, (4096, "4096", "hard limit")),
        ((1024, 1 << 20), {}, (65536, "65536", "default")),
        ((1024, UNLIMITED), {}, (65536, "65536", "default")),
        ((100000, 1 << 20), {}, (100000, "100000", "soft limit")),
        ((UNLIMITED, UNLIMITED), {}, (UNLIMITED, "unlimited", "soft limit")),
        ((4096, 4096), {}, (4096, "4096", "hard limit")),
        ((1024, 4096), {"open_files": "keep"}, (1024, "1024", "soft limit")),
        ((1024, 4096), {"open_files": "2000"}, (2000, "2000", "flag")),
        ((8192, 8192), {"open_files": "1024"}, (1024, "1024", "flag")),
        ((1024, 4096), {"open_files": "5000"}, (4096, "4096", "hard limit, below 5000 (flag)")),
    ],
)
def test_open_files(limits: tuple[int, int], options: Mapping[str, str], expected: tuple[int, str, str]) -> None:
    """As many as NCCL needs where the hard limit allows, never fewer than there were unless that was asked for."""
    made = plan(here(open_files=limits), **options)

    assert expected == (made.open_files, *derived(made)["open_files"])


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {}, ("/project/logs", "working directory")),
        ({}, {"log_dir": "runs"}, ("/project/runs", "flag")),
        ({}, {"log_dir": "/scratch/runs"}, ("/scratch/runs", "flag")),
        ({}, {"log_dir": "~/runs"}, ("/home/ada/runs", "flag")),
        ({}, {"log_dir": "~nobody.there/runs"}, ("/project/~nobody.there/runs", "flag")),
        (ONE_TASK_PER_NODE, {}, ("/home/ada/project/logs", "directory of submission")),
        (ONE_NODE_BATCH, {}, ("/home/ada/project/logs", "directory of submission")),
        (ONE_TASK_PER_NODE, {"log_dir": "runs"}, ("/project/runs", "flag")),
        ({**ONE_TASK_PER_NODE, "SLURM_SUBMIT_DIR": ""}, {}, ("/project/logs", "working directory")),
    ],
)
def test_the_log_directory(
    monkeypatch: pytest.MonkeyPatch,
    variables: Mapping[str, str],
    options: Mapping[str, str],
    expected: tuple[str, str],
) -> None:
    """Logs go where the user says, else beside the job script, else here."""
    monkeypatch.setenv("HOME", "/home/ada")
    made = plan(here(variables), **options)

    assert expected == derived(made)["log_dir"]
    assert Path(expected[0]) == made.log_root


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({}, {}, ""),
        (ONE_TASK_PER_NODE, {}, "4711.0"),
        (SUBSET, {}, "4711.1"),
        (ARRAY, {}, "4700_17.0"),
        (ONE_NODE_BATCH, {}, "4711"),
        (ONE_TASK_PER_NODE, {"rdzv_id": "mine"}, "4711.0"),
        ({}, {"rdzv_id": "mine"}, ""),
        ({}, {"rdzv_id": "my/run", "hosts": "box,b"}, "my_run"),
        ({}, {"rdzv_id": "../..", "hosts": "box,b"}, "_.."),
        ({}, {"rdzv_id": "..", "hosts": "box,b"}, "none"),
        ({}, {"hosts": "box,b"}, ""),
    ],
)
def test_the_name_of_the_job(variables: Mapping[str, str], options: Mapping[str, str], expected: str) -> None:
    """A job directory is named after job and step, or the run; never so that it leaves the log directory."""
    assert expected == plan(here(variables), **options).job_name


def test_the_name_of_a_job_outside_of_slurm() -> None:
    """It says when it started and which process it was."""
    assert re.fullmatch(r"local-\d{8}-\d{6}-42", log_paths.local_job_name(0.0, 42))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"master_addr": "head"}, ("head", "flag")),
        ({"master_addr": "[fe80::1]"}, ("fe80::1", "flag")),
        ({"rdzv_endpoint": "store:99", "master_addr": "head"}, ("store", "flag")),
        ({}, ("gpu01", "first of the Slurm step's nodes")),
    ],
)
def test_where_the_first_node_is_looked_for(options: Mapping[str, str], expected: tuple[str, str]) -> None:
    """What the user says is trusted more than the list."""
    made = plan(here(ONE_TASK_PER_NODE), **options)

    assert expected == (made.leaders[0], derived(made)["master_addr"][1])


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        ({**ONE_TASK_PER_NODE, "SLURM_RESTART_COUNT": "2"}, {}, "4711.0.2"),
        (SUBSET, {}, "4711.1.0"),
        (SUBSET, {"rdzv_id": "mine"}, "mine"),
        ({}, {"rdzv_id": "mine"}, "mine"),
    ],
)
def test_the_name_of_the_run(variables: Mapping[str, str], options: Mapping[str, str], expected: str) -> None:
    """Steps and restarts of one job are different runs."""
    assert expected == plan(here(variables), **options).run_id


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {12000, 12001, 12002, 12003}),
        ({"port_range": "30000-30001"}, {30000, 30001}),
    ],
)
def test_ports_that_slurm_reserved_are_used(options: Mapping[str, str], expected: set[int]) -> None:
    """With srun --resv-ports the candidates are those ports, unless a range is asked for."""
    place = here({**ONE_TASK_PER_NODE, "SLURM_STEP_RESV_PORTS": "12000-12003"})

    assert set(plan(place, **options).ports) <= expected


def test_a_master_port_that_was_asked_for() -> None:
    """--master-port is shown as what it is."""
    assert derived(plan(here(ONE_TASK_PER_NODE), master_port="29501"))["master_port"] == ("29501", "flag")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NodeRange(4, 4)),
        ({"nnodes": "4"}, NodeRange(4, 4)),
        ({"nnodes": "2:4"}, NodeRange(2, 4)),
        ({"nnodes": "2:8"}, NodeRange(2, 4)),
        ({"nnodes": "2:8", "rdzv_backend": "c10d"}, NodeRange(2, 8)),
    ],
)
def test_the_range_of_nodes(options: Mapping[str, str], expected: NodeRange) -> None:
    """Our backend starts with all nodes that there are; torch's are told what was asked for."""
    assert expected == plan(here(ONE_TASK_PER_NODE), **options).nnodes


@pytest.mark.parametrize(
    ("devices", "options", "expected"),
    [
        (FOUR_GPUS, {}, False),
        (FOUR_GPUS, {"virtual_local_rank": True}, True),
        (TWO_MIGS, {}, True),
    ],
)
def test_workers_that_see_one_device_each(devices: Devices, options: Mapping[str, bool], *, expected: bool) -> None:
    """MIG devices are used one per process, and --virtual-local-rank asks for it."""
    assert expected is plan(here(devices=devices), **options).isolated


# ---- warnings


def without_gpus(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a step that has asked for no GPUs."""
    return {name: value for name, value in environ.items() if name != "SLURM_GPUS_ON_NODE"}


@pytest.mark.parametrize(
    ("place", "options", "expected"),
    [
        (
            here(ONE_TASK_PER_NODE, devices=FOUR_GPUS, cpus=1),
            {},
            "4 1 CPU srun --cpus-per-task 22.05 23.02",
        ),
        (here(cpus=2), {"nproc_per_node": "3"}, "3 2 CPUs"),
        (
            here({**ONE_TASK_PER_NODE, "SLURM_CPUS_ON_NODE": "1"}, devices=FOUR_GPUS),
            {},
            "4 1 CPU srun --cpus-per-task 22.05 23.02",
        ),
        (
            here({**ONE_TASK_PER_NODE, "HPC_LAUNCH_STEP": "4711"}, devices=FOUR_GPUS, cpus=1),
            {},
            "4 1 CPU --cpus-per-task sbatch salloc",
        ),
        (
            here(CYCLIC, devices=FOUR_GPUS),
            {},
            "2 gpu02 4 GPUs CUDA_VISIBLE_DEVICES=0,1,2,3 srun --ntasks-per-node=4, --ntasks-per-node=1",
        ),
        (
            here(BLOCK, devices=Devices(("0", "1"), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=0,1")),
            {},
            "4 gpu02 2 GPUs LOCAL_RANK 2 srun --ntasks-per-node=2, --ntasks-per-node=1",
        ),
        (here({**ONE_TASK_PER_NODE, "SLURM_GPUS_ON_NODE": "4"}), {}, "4 GPUs gpu03 CUDA_VISIBLE_DEVICES"),
        (here({"GLOO_SOCKET_IFNAME": "^lo,docker0"}), {}, "GLOO_SOCKET_IFNAME=^lo,docker0 NCCL Gloo --interface"),
        (here(without_gpus(HETEROGENEOUS)), {}, "SLURM_NODEID=0 z1 2 a[1-2],z1"),
        (
            here(without_gpus(ONE_NODE_STEP), configured_gpus={"gpu01": 8}.get),
            {},
            "gpu01 8 GPUs --gpus-per-node=8 sbatch srun",
        ),
        (here(ONE_TASK_PER_NODE, devices=ONE_GPU), {}, "4 GPUs gpu03 1 CUDA_VISIBLE_DEVICES=0"),
        (here(devices=TWO_MIGS), {}, "MIG LOCAL_RANK=0"),
        (here(), {"hang_timeout": "60", "redirects": "1"}, "--hang-timeout -r -t runtime.mark_progress"),
        (here({"RANK": "0"}), {}, "RANK"),
        (here(without_gpus(ONE_TASK_PER_NODE)), {"spares": "3"}, "--spares 3 4 --nnodes 1:4"),
        (here({"MASTER_PORT": "1", "WORLD_SIZE": "4"}), {}, "WORLD_SIZE MASTER_PORT"),
        (
            here(without_gpus(ONE_TASK_PER_NODE)),
            {"rdzv_backend": "c10d", "rdzv_endpoint": "gpu01:29400"},
            "--rdzv-backend c10d --rdzv-endpoint",
        ),
        (
            here(without_gpus(ONE_TASK_PER_NODE)),
            {"node_rank": "0"},
            "--node-rank 0 gpu03 2 gpu[01-04] $SLURM_NODEID $SLURM_PROCID",
        ),
    ],
)
def test_warnings(place: LaunchContext, options: Mapping[str, str], expected: str) -> None:
    """What is probably not meant is said in one line, with what to do."""
    (line,) = plan(place, **options).warnings

    assert mentions(line, expected)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("place", "options"),
    [
        (here(ONE_TASK_PER_NODE, devices=FOUR_GPUS), {}),
        (here(without_gpus(ONE_TASK_PER_NODE)), {}),
        (here(without_gpus(ONE_TASK_PER_NODE)), {"spares": "2"}),
        (here(without_gpus(ONE_TASK_PER_NODE), configured_gpus={"gpu01": 8}.get), {}),
        (here(ONE_NODE_STEP, devices=FOUR_GPUS, configured_gpus={"gpu01": 8}.get), {}),
        (here(configured_gpus={"box": 8}.get), {}),
        (here(without_gpus(BLOCK)), {}),
        (here({**BLOCK, "SLURM_GPUS_ON_NODE": "1"}, devices=ONE_GPU), {}),
        (here(BLOCK, devices=FOUR_GPUS), {}),
        (here({"GLOO_SOCKET_IFNAME": "eth0"}), {}),
        (here(devices=TWO_MIGS), {"virtual_local_rank": True}),
        (here(without_gpus(HETEROGENEOUS)), {"standalone": True}),
        (here(without_gpus(ONE_TASK_PER_NODE)), {"node_rank": "2", "rdzv_backend": "slurm"}),
        (here(without_gpus(ONE_NODE_STEP)), {"rdzv_backend": "c10d"}),
        (here(), {"nnodes": "2", "rdzv_backend": "c10d", "rdzv_endpoint": "head:29400"}),
    ],
)
def test_no_warning_where_all_is_well(place: LaunchContext, options: Mapping[str, Any]) -> None:
    """Ordinary runs are silent."""
    assert plan(place, **options).warnings == ()


@pytest.mark.parametrize(
    ("local", "token", "warned"),
    [(1, "0", True), (1, "1", False), (0, "0", False), (2, "0", False)],
    ids=["isolated", "task sharing", "the first", "one says it"],
)
def test_tasks_with_a_device_cgroup_each(local: int, token: str, *, warned: bool) -> None:
    """The second task knows: devices are numbered within its cgroup, which has one device, or all of the step's."""
    place = here(
        {**task_of(1, 0, local, 4), "SLURM_GPUS_ON_NODE": "4"},
        devices=Devices((token,), "CUDA_VISIBLE_DEVICES", f"CUDA_VISIBLE_DEVICES={token}"),
    )

    made = plan(place)

    assert made.warnings == ()
    assert [mentions(line, "4 NCCL srun --ntasks-per-node=1 --gpu-bind=none") for line in made.seen_here] == [
        True
    ] * warned


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize(("asked_for", "teller"), [("0", "n1"), ("1", "n0"), ("2", "n0"), ("7", "n0")])
def test_one_agent_says_that_a_node_rank_is_ignored(asked_for: str, teller: str, tasks: int) -> None:
    """The first one that sees it: where all are called 0, the first node is right about itself."""
    told = []
    for node, local in itertools.product(range(3), range(tasks)):
        made = plan(here(task_of(3, node, local, tasks)), node_rank=asked_for)
        lines = made.warnings if made.world.leader else made.seen_here
        told += [made.world.host for line in lines if line.startswith("--node-rank")]

    assert [teller] == told


@pytest.mark.parametrize("node", range(3))
def test_the_step_numbers_nodes(node: int) -> None:
    """Whatever --node-rank says, with one's own rendezvous and with others."""
    place = here(task_of(3, node))

    for backend in ("slurm", "c10d"):
        for number in ("0", "5"):
            assert plan(place, node_rank=number, rdzv_backend=backend).world.node_rank == node


# ---- the script


@pytest.mark.parametrize(
    ("options", "script"),
    [
        ({}, "train.py"),
        ({}, "package"),
        ({"module": True}, "no.such.module"),
        ({"no_python": True}, "sh"),
        ({"no_python": True}, "./program"),
    ],
)
def test_scripts_that_can_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, bool], script: str
) -> None:
    """A file and a directory with __main__.py will do, and a program on PATH; modules are not looked for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program").touch(mode=0o755)
    (tmp_path / "train.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__main__.py").touch()

    check_script(asked(**options), script, tmp_path)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("trian.py", "'trian.py' {here}"),
        ("8", "'8' {here}"),
        ("folder", "'folder' __main__.py -m"),
        ("secret_variables.py", "'secret_variables.py' chmod a+r"),
    ],
)
def test_scripts_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    """A typo is one line, not a traceback per rank."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "secret_variables.py").touch()
    # The tests may run as root, who may read everything.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "secret_variables.py")

    with pytest.raises(ScriptError) as caught:
        check_script(asked(), script, tmp_path)
    assert mentions(caught.value, expected.format(here=tmp_path))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """With --no-python the program is looked for on PATH, before any rank is started."""
    with pytest.raises(ScriptError, match=r"'no-such-program'.*PATH"):
        check_script(asked(no_python=True), "no-such-program", tmp_path)


# ---- the whole


def test_gathering_looks_at_this_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment is copied, the host name is short, and the CPUs are those that are allowed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "Node7.cluster.example")
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    place = gather_context(environ, asked())
    environ.clear()

    assert ("node7", tmp_path, {"CUDA_VISIBLE_DEVICES": "4,5"}) == (place.host, place.directory, place.environ)
    assert (("4", "5"), len(os.sched_getaffinity(0))) == (place.devices.tokens, place.cpus)


@pytest.mark.parametrize("name", ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER", "CH_RUNNING"])
def test_a_container_of_a_cluster_is_known(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its runtime sets; where somebody types into it, nothing is missing."""
    monkeypatch.setattr(os, "isatty", lambda _: False)

    assert gather_context({name: "x"}, asked()).contained
    assert not gather_context({name: ""}, asked()).contained
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert not gather_context({name: "x"}, asked()).contained


def test_gathering_adds_what_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--default-env does not win over the environment, and does not put this process into a job."""
    monkeypatch.chdir(tmp_path)
    settings = asked(default_env="A=1,B=2,SLURM_JOB_ID=7,OMP_NUM_THREADS=3")
    place = gather_context({"A": "mine", "C": ""}, settings)

    assert {"A": "mine", "B": "2", "C": ""}.items() <= place.environ.items()
    assert place.slurm is None
    assert derivation.make_plan(settings, place, ()).omp_num_threads is None


def test_a_plan_becomes_json() -> None:
    """job.json has the values, their origins and the warnings, in plain types."""
    made = plan(here(HETEROGENEOUS), max_restarts="2", tee="3")
    written = json.loads(codec.document(made.record()))

    assert (written["run_id"], written["script"], written["hosts"]) == ("4711.0.0", ["train.py"], "a[1-2],z1")
    assert written["derived"]["node_rank"] == {"value": "2", "origin": "Slurm step"}
    assert written["settings"]["max_restarts"] == {"value": "2", "origin": "flag"}
    assert list(made.warnings) == written["warnings"]


def test_a_plan_says_that_files_said_it() -> None:
    """A value from a settings file has its origin in job.json, and stands above what Slurm says."""
    said = layer_of(Origin.SITE, Table("config.toml", "", {"port-range": "30000-30000", "omp-num-threads": 3}))
    place = here({**ONE_TASK_PER_NODE, "SLURM_STEP_RESV_PORTS": "25000-25003", "OMP_NUM_THREADS": "7"})
    made = derivation.make_plan(resolve({}, {}, [said]), place, ("train.py",))
    written = json.loads(codec.document(made.record()))

    assert (made.ports, made.omp_num_threads) == ((30000,), 3)
    assert written["derived"]["omp_num_threads"] == {"value": "3", "origin": "site's file"}
    assert written["settings"]["omp_num_threads"] == {"value": "3", "origin": "site's file"}


PLACES: Sequence[Mapping[str, str]] = (
    {},
    ONE_TASK_PER_NODE,
    BLOCK,
    CYCLIC,
    UNEVEN,
    SUBSET,
    HETEROGENEOUS,
    ARRAY,
    BATCH,
    ONE_NODE_BATCH,
    STALE_BATCH,
    INTERACTIVE,
    LOGIN_SHELL,
)
OPTIONS: dict[str, st.SearchStrategy[str | bool]] = {
    "nnodes": st.sampled_from(["1", "2", "4", "1:2", "2:4"]),
    "nproc_per_node": st.sampled_from(["1", "2", "8", "auto", "cpu", "gpu", "xpu"]),
    "hosts": st.sampled_from(["box", "other,box", "gpu[01-04]"]),
    "hostfile": st.sampled_from(sorted(FILES)),
    "node_rank": st.sampled_from(["0", "1", "3"]),
    "master_addr": st.sampled_from(["head", "::1", "[fe80::1]:9"]),
    "master_port": st.just("29500"),
    "rdzv_backend": st.sampled_from(["slurm", "static", "c10d", "etcd"]),
    "rdzv_endpoint": st.sampled_from(["head:1", "head", "[::1]:1"]),
    "rdzv_id": st.sampled_from(["run", "../run"]),
    "standalone": st.booleans(),
    "virtual_local_rank": st.booleans(),
}


@hypothesis_settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    variables=st.sampled_from(PLACES),
    devices=st.sampled_from([Devices(), ONE_GPU, FOUR_GPUS, FOUR_TILES, TWO_MIGS]),
    options=st.fixed_dictionaries({}, optional=OPTIONS),
)
def test_a_plan_is_sound_or_refused(
    variables: Mapping[str, str], devices: Devices, options: Mapping[str, str | bool]
) -> None:
    """Whatever is asked for wherever: a plan that contradicts itself in nothing, or one of our own errors."""
    try:
        made = plan(here(variables, devices=devices), **options)
    except (UsageError, ContextError):
        return
    world = made.world
    assert 0 <= world.node_rank < len(world.hosts)
    assert 0 <= world.agent_rank < world.agents
    assert 1 <= made.nnodes.minimum <= made.nnodes.maximum
    assert made.local_world_size >= 1
    assert made.leaders[0]
    assert len(set(made.ports)) == len(made.ports) > 0
    assert made.own_rendezvous == (made.backend == "slurm")
    assert "/" not in made.job_name
    numbered = made.settings.standalone or world.origin is Origin.STEP  # there --node-rank says nothing
    assert numbered or made.settings.node_rank in (None, world.node_rank)
    if devices and made.settings.nproc_per_node != "cpu":
        assert made.local_world_size <= len(devices)
    codec.document(made.record())
