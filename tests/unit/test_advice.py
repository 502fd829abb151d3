"""What `explain` says besides: each trap that can be seen from a shell, a job script or a task, with what to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hpc_launch import world
from hpc_launch.node.devices import Devices
from hpc_launch.plan import advice
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Origin, resolve
from hpc_launch.slurm.cluster_rules import ClusterRules
from hpc_launch.slurm.environment import locate
from hpc_launch.slurm.job import JobRecord
from hpc_launch.world import World
from tests.support import lines_mention, mentions
from tests.unit.slurm_variables import BATCH, HETEROGENEOUS, INTERACTIVE, LOGIN_SHELL, ONE_TASK_PER_NODE, SUBSET

RULES = ClusterRules(release=(24, 11))
JOB = JobRecord("4711", "RUNNING")
FOUR = world.of_nodes(["gpu01", "gpu02", "gpu03", "gpu04"], 2, Origin.STEP)

EIGHT_TASKS = {**BATCH, "SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "2(x4)"}
ISOLATED = "--gpus-per-task NCCL --gpus-per-node --ntasks-per-node=1 srun --gpu-bind=none"
PLAIN_SRUN = "8 4 srun --ntasks=4 --ntasks-per-node=1"
SHARING = "--gres-flags=allow-task-sharing"


def told(
    environ: Mapping[str, str],
    *,
    who: World = FOUR,
    rules: ClusterRules | None = RULES,
    job: JobRecord | None = JOB,
    addresses: Sequence[str] = ("10.0.0.1",),
    **asked: str,
) -> list[str]:
    here = LaunchContext(
        environ=environ,
        directory=Path("/project"),
        host="gpu03",
        slurm=locate(environ),
        devices=Devices(),
        cpus=16,
        position=lambda _: None,
        read=Path.read_text,
    )
    settings = resolve(asked, {})
    return list(advice.advice_lines(advice.AdviceContext(settings, here, who, rules, job, addresses)))


@pytest.mark.parametrize("environ", [{}, BATCH, LOGIN_SHELL, ONE_TASK_PER_NODE, HETEROGENEOUS])
def test_nothing_is_said_where_all_is_well(environ: Mapping[str, str]) -> None:
    assert told(environ) == []


@pytest.mark.parametrize("environ", [BATCH, ONE_TASK_PER_NODE])
def test_what_is_not_known_is_not_said(environ: Mapping[str, str]) -> None:
    """Without an answer from the controller nothing is said about it."""
    assert told(environ, rules=None, job=None) == []


def test_no_such_job() -> None:
    """Variables outlive their job in a terminal multiplexer."""
    assert lines_mention(told(BATCH, job=None), "4711 SLURM_*")


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "TIMEOUT"])
def test_a_job_that_is_over(state: str) -> None:
    """As before, but the controller still knows it."""
    assert lines_mention(told(BATCH, job=JobRecord("4711", state)), f"4711 {state} SLURM_*")


def test_a_step_on_a_part_of_the_nodes() -> None:
    """`srun -N2` in a job of four is often a leftover of a test."""
    assert lines_mention(told(SUBSET), "2 4 srun --nodes=4")


@pytest.mark.parametrize(
    ("said", "few"),
    [("NONE", "PATH"), ("NIL", "PATH"), ("HOME,PATH", "HOME,PATH")],
)
def test_export(said: str, few: str) -> None:
    """sbatch's --export counts twice."""
    environ = {**BATCH, "SLURM_EXPORT_ENV": said}

    assert lines_mention(told(environ), f"--export={said} {few} srun --export=ALL")
    assert told({**environ, "SRUN_EXPORT_ENV": "ALL"}) == []


@pytest.mark.parametrize("environ", [INTERACTIVE, LOGIN_SHELL])
def test_in_a_shell_hpc_launch_writes_the_line(environ: Mapping[str, str]) -> None:
    """What srun would take amiss there is no matter."""
    traps = {"SLURM_EXPORT_ENV": "NONE", "SLURM_NTASKS": "8", "SLURM_GPUS_PER_TASK": "1", "SLURM_CPUS_PER_TASK": "4"}

    assert told({**environ, **traps}, rules=ClusterRules(release=(22, 5))) == []


@pytest.mark.parametrize("said", ["ALL", "ALL,X=1"])
def test_export_of_everything(said: str) -> None:
    assert told({**BATCH, "SLURM_EXPORT_ENV": said}) == []


@pytest.mark.parametrize(
    ("release", "forgets"),
    [((21, 8), False), ((22, 5), True), ((23, 2), True), ((23, 11), False), ((24, 11), False), (None, False)],
)
def test_cpus_that_srun_forgets(release: tuple[int, int] | None, *, forgets: bool) -> None:
    """From 22.05 to 23.02, and not where the variable that these releases read says the same."""
    rules = dataclasses.replace(RULES, release=release)
    found = told(BATCH, rules=rules)

    assert bool(found) is forgets
    assert all("--cpus-per-task=16" in line for line in found)
    assert told({**BATCH, "SRUN_CPUS_PER_TASK": "16"}, rules=rules) == []


def test_the_release_is_named() -> None:
    assert lines_mention(told(BATCH, rules=ClusterRules(release=(22, 5))), "22.05 srun --cpus-per-task=16")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SLURM_NTASKS": "1"}, "1 4 srun --ntasks-per-node=1"),
        ({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "2(x4)"}, PLAIN_SRUN),
        ({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "3,2(x2),1"}, f"{PLAIN_SRUN} 3,2(x2),1"),
        ({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "nonsense"}, PLAIN_SRUN),
    ],
)
def test_tasks_of_the_job(changes: Mapping[str, str], expected: str) -> None:
    """They count for every srun that is not told otherwise."""
    assert lines_mention(told({**BATCH, **changes}), expected)


@pytest.mark.parametrize(
    "asked",
    [
        {"SLURM_GPUS_PER_TASK": "1"},
        {"SLURM_TRES_PER_TASK": "cpu:8,gres/gpu:1"},
        {"SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=a100:1"},
    ],
)
def test_isolation(asked: Mapping[str, str]) -> None:
    """Each release has its own variable for --gpus-per-task, and newer ones another way out."""
    older = told({**EIGHT_TASKS, **asked}, rules=None)
    newer = told({**EIGHT_TASKS, **asked})

    assert lines_mention(older, PLAIN_SRUN, ISOLATED)
    assert lines_mention(newer, PLAIN_SRUN, f"{ISOLATED} {SHARING}")
    assert not mentions(older[1], SHARING)


def test_one_task_has_all_its_gpus() -> None:
    """With one task on a node --gpus-per-task hides nothing."""
    assert told({**BATCH, "SLURM_GPUS_PER_TASK": "4"}) == []


@pytest.mark.parametrize(
    ("environ", "everywhere", "where"),
    [
        ({}, True, "KillOnBadExit=1 on this cluster"),
        ({"SLURM_KILL_BAD_EXIT": "1"}, False, "SLURM_KILL_BAD_EXIT=1"),
        ({"SLURM_KILL_BAD_EXIT": "0"}, True, ""),
        ({}, False, ""),
    ],
)
def test_bad_exit(environ: Mapping[str, str], where: str, *, everywhere: bool) -> None:
    """It matters where fewer nodes are allowed, and nowhere else."""
    rules = dataclasses.replace(RULES, kill_on_bad_exit=everywhere)
    found = told({**ONE_TASK_PER_NODE, **environ}, rules=rules, nnodes="2:4")

    about = [line for line in found if "-K0" in line]
    assert lines_mention(about, f"{where} --nnodes 2:4 srun -K0") if where else about == []
    assert told({**ONE_TASK_PER_NODE, **environ}, rules=rules, nnodes="4") == []


def test_what_a_run_survives() -> None:
    """Who asks for it is told the rule, and in a job script what Slurm has to be told."""
    (rule,) = told(ONE_TASK_PER_NODE, spares="1", node_timeout="20", nnodes="3:4")

    assert mentions(rule, "20 spares")
    assert not mentions(told(ONE_TASK_PER_NODE, node_timeout="20", nnodes="3:4")[0], "spares")
    assert "--no-kill" in told(BATCH, nnodes="1:2")[-1]


def test_a_name_that_means_this_node() -> None:
    """Debian's installer puts a machine's own name to 127.0.1.1; a copied image has that of another."""
    assert lines_mention(told(ONE_TASK_PER_NODE, addresses=["127.0.1.1"]), "gpu01 127.0.1.1 /etc/hosts --master-addr")


def test_a_name_that_does_not_resolve() -> None:
    assert lines_mention(told(ONE_TASK_PER_NODE, addresses=[]), "gpu01")


@pytest.mark.parametrize(
    "who",
    [
        world.of_nodes(["gpu01", "gpu02"], 0, Origin.STEP),
        world.one_node("gpu01"),
        world.of_nodes(["10.0.0.1", "10.0.0.2"], 1, Origin.HOSTS),
    ],
)
def test_whose_name_does_not_matter(who: World) -> None:
    """The first node need not find itself, and an address needs no resolver."""
    assert told({}, who=who, addresses=[]) == []
