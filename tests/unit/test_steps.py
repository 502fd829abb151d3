"""Steps that hpc-launch starts: the line, the environment, and when there is to be one. Nothing here runs Slurm."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpc_launch.errors import ContextError, UsageError
from hpc_launch.node.devices import Devices
from hpc_launch.plan import derivation, step_plan
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import Origin, Settings, resolve
from hpc_launch.slurm import steps
from hpc_launch.slurm.environment import Allocation, Place, locate
from hpc_launch.slurm.steps import RunningStep, StepRequest
from tests.support import mentions
from tests.unit.slurm_variables import BATCH, INTERACTIVE, LOGIN_SHELL, ONE_TASK_PER_NODE, SUBSET

ONE_NODE_BATCH = {**BATCH, "SLURM_JOB_NODELIST": "gpu01", "SLURM_JOB_NUM_NODES": "1"}

FOUR = ("gpu01", "gpu02", "gpu03", "gpu04")


def here(variables: Mapping[str, str], **changes: object) -> LaunchContext:
    """A process with these variables, where srun is."""
    place = LaunchContext(
        environ=variables,
        directory=Path("/home/ada/project"),
        host="box",
        slurm=locate(variables),
        devices=Devices(("0", "1", "2", "3"), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=0,1,2,3"),
        cpus=16,
        position=lambda hosts: list(hosts).index("box") if "box" in hosts else None,
        read=Path.read_text,
        command=("hpc-launch", "train.py"),
        has_srun=True,
    )
    return dataclasses.replace(place, **changes)  # type: ignore[arg-type]  # whatever fields are named


def asked(**options: str | bool) -> Settings:
    return resolve(options, {})


def job_of(place: LaunchContext) -> Allocation:
    assert isinstance(place.slurm, Allocation)
    return place.slurm


def chosen(place: LaunchContext, *others: RunningStep, **options: str) -> StepRequest:
    """The step for these options, where these steps run already."""
    return step_plan.choose_step(asked(**options), place, job_of(place), others, {})


def running(number: int | str, *nodes: str, name: str = "sleep", job: str = "4711") -> RunningStep:
    return RunningStep(f"{job}.{number}", name, nodes, ("gpu01", 77))


# --- whether


@pytest.mark.parametrize("variables", [BATCH, INTERACTIVE, LOGIN_SHELL, ONE_NODE_BATCH])
def test_outside_of_a_step_one_is_started(variables: Mapping[str, str]) -> None:
    """In a batch script, an interactive step or salloc's shell, on one node or many."""
    place = here(variables)

    assert job_of(place) == step_plan.wanted_allocation(asked(), place)


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({}, {}),
        (ONE_TASK_PER_NODE, {}),
        (SUBSET, {}),
        (BATCH, {"standalone": True}),
        (BATCH, {"hostfile": "hosts"}),
        (BATCH, {"hosts": "gpu[01-02]", "node_rank": "1"}),
    ],
    ids=["no job", "step", "part of a job", "standalone", "host file", "by hand"],
)
def test_where_none_is_started(variables: Mapping[str, str], options: Mapping[str, str | bool]) -> None:
    """In a step there is one; and who says how the nodes are to be started starts them himself."""
    assert step_plan.wanted_allocation(asked(**options), here(variables)) is None


def test_a_mask_of_ones_own_on_one_node() -> None:
    """CUDA_VISIBLE_DEVICES=0,1 in the script of a job of one node is for this run, and a step would not keep it."""
    two = Devices(("0", "1"), "CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES=0,1")

    assert step_plan.wanted_allocation(asked(), here(ONE_NODE_BATCH, devices=two)) is None
    assert step_plan.wanted_allocation(asked(), here(BATCH, devices=two)) is not None


@pytest.mark.parametrize(
    ("variables", "said"), [({**LOGIN_SHELL, "CUDA_VISIBLE_DEVICES": "0"}, True), (LOGIN_SHELL, False), (BATCH, False)]
)
def test_a_mask_that_counts_for_no_step(variables: Mapping[str, str], *, said: bool) -> None:
    """In a shell on the login node nothing else tells that the runs beside each other are to have a GPU each."""
    mask = variables.get("CUDA_VISIBLE_DEVICES", "")
    devices = Devices(tuple(filter(None, mask.split(","))), "CUDA_VISIBLE_DEVICES" if mask else "", mask)

    notes = step_plan.notes(here(variables, devices=devices))

    assert [mentions(note, "CUDA_VISIBLE_DEVICES --nproc-per-node") for note in notes] == [True] * said


@pytest.mark.parametrize(
    ("options", "only"),
    [
        ({}, True),
        ({"nnodes": "1", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:29500"}, True),
        ({"nnodes": "1", "node_rank": "0", "master_addr": "127.0.0.1"}, True),
        ({"nnodes": "2", "node_rank": "0", "master_addr": "box"}, False),
        ({"rdzv_backend": "c10d", "rdzv_endpoint": "box:29500"}, False),
        ({"hosts": "box"}, False),
        ({"standalone": True}, False),
    ],
)
def test_what_says_that_a_run_is_meant_here(options: Mapping[str, str | bool], *, only: bool) -> None:
    """On a login node a list does, or the address of one of several nodes; that of a single one is torchrun's habit."""
    assert step_plan.only_place(asked(**options)) is only


@pytest.mark.parametrize(
    ("variables", "options", "expected"),
    [
        (BATCH, {"node_rank": "0"}, "--node-rank 0 4711"),
        ({**BATCH, "SLURM_HET_SIZE": "2"}, {}, "4711 heterogeneous"),
    ],
)
def test_what_no_step_can_be(variables: Mapping[str, str], options: Mapping[str, str], expected: str) -> None:
    """One line says why, and what can be done."""
    with pytest.raises(ContextError) as caught:
        step_plan.wanted_allocation(asked(**options), here(variables))

    assert mentions(caught.value, expected)


def test_planning_without_the_step_is_refused() -> None:
    """Nobody trains in the batch script of four nodes by mistake."""
    with pytest.raises(ContextError, match=r"\b4711\b.*\b4\b"):
        derivation.make_plan(asked(), here(BATCH), ("train.py",))


# --- which


@pytest.mark.parametrize(
    ("options", "chooses"),
    [
        ({}, False),
        ({"nodes": "1"}, True),
        ({"nnodes": "2"}, True),
        ({"nnodes": "1:2"}, True),
        ({"nodes": "4"}, False),
        ({"nodes": "gpu[01-02]"}, False),
        ({"hosts": "gpu01"}, False),
    ],
)
def test_runs_that_choose_nodes_do_so_in_turn(options: Mapping[str, str], *, chooses: bool) -> None:
    """A step that can be on some nodes of the job or on others is chosen when no other run is choosing."""
    assert step_plan.chooses(asked(**options), job_of(here(BATCH))) == chooses


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, FOUR),
        ({"nodes": "2"}, FOUR[:2]),
        ({"nnodes": "3"}, FOUR[:3]),
        ({"nnodes": "2:8"}, FOUR),
        ({"nodes": "gpu[03-04]"}, FOUR[2:]),
        ({"hosts": "gpu04,gpu02,gpu04"}, ("gpu02", "gpu04")),
    ],
)
def test_which_nodes(options: Mapping[str, str], expected: tuple[str, ...]) -> None:
    """All of them, so many, or these, in the order of the job."""
    assert expected == chosen(here(BATCH), **options).hosts


def test_free_nodes_are_taken_first() -> None:
    """Those where no other step runs; among them the one where this is; scripts and shells do not count as steps."""
    others = [running("batch", "gpu01"), running("extern", *FOUR), running(0, "gpu01", "gpu03")]

    assert chosen(here(BATCH), *others, nodes="2").hosts == ("gpu02", "gpu04")
    assert chosen(here(BATCH), *others, nodes="3").hosts == ("gpu01", "gpu02", "gpu04")
    assert chosen(here({**BATCH, "SLURMD_NODENAME": "gpu04"}), nodes="1").hosts == ("gpu04",)


def test_the_shell_of_a_step_shares_with_it() -> None:
    """Its own step is not in the way, and the new one overlaps it."""
    place = here(SUBSET, slurm=locate(SUBSET, shell=True))
    own = running(1, "gpu03", "gpu04", name="bash")
    request = chosen(place, own, nodes="2")

    assert (request.hosts, request.overlap) == (("gpu01", "gpu04"), True)
    assert step_plan.in_the_way(request, job_of(place), [own]) == ()


def test_gpus_are_counted_where_srun_has_to_be_told() -> None:
    """Those of each of the chosen nodes."""
    gpus, place = {"gpu01": 4, "gpu02": 1, "gpu03": 4, "gpu04": 4}, here(BATCH)

    found = step_plan.choose_step(asked(nodes="gpu[01-02]"), place, job_of(place), (), gpus)
    assert (found.gpus, found.even) == ((4, 1), False)
    found = step_plan.choose_step(asked(nodes="gpu[03-04]"), place, job_of(place), (), gpus)
    assert (found.gpus, found.even) == ((4, 4), False)
    found = step_plan.choose_step(asked(nodes="gpu01"), place, job_of(place), (), dict.fromkeys(gpus, 2))
    assert (found.gpus, found.even) == ((2,), True)
    assert chosen(place, nodes="gpu[01-02]").gpus == ()


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({"nodes": "5"}, ContextError, "--nodes 5 4711 4 gpu[01-04]"),
        ({"nnodes": "5:8"}, ContextError, "--nnodes 5 4711 4 gpu[01-04]"),
        ({"hosts": "gpu[04-05]"}, ContextError, "--hosts gpu05 4711"),
        ({"nodes": "gpu[04"}, UsageError, "--nodes 'gpu[04'"),
    ],
)
def test_nodes_that_are_not_there(options: Mapping[str, str], kind: type[Exception], expected: str) -> None:
    """The message has what was asked for, and what there is."""
    with pytest.raises(kind) as caught:
        chosen(here(BATCH), **options)

    assert mentions(caught.value, expected)


@pytest.mark.parametrize(
    ("other", "expected"), [("hosts", "--hosts"), ("nnodes", "--nnodes"), ("hostfile", "--hostfile")]
)
def test_nodes_are_said_once(other: str, expected: str) -> None:
    """--nodes and another option for the same contradict each other."""
    with pytest.raises(UsageError, match=f"--nodes .*{expected}"):
        asked(nodes="2", **{other: "2"})


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "--nodes 2"), (SUBSET, "--nodes 2 srun")],
)
def test_nodes_where_no_step_is_started(variables: Mapping[str, str], expected: str) -> None:
    """There is nothing to pick from."""
    with pytest.raises(UsageError) as caught:
        derivation.make_plan(asked(nodes="2"), here(variables), ("train.py",))

    assert mentions(caught.value, expected)


def test_in_a_step_of_ours_the_choice_has_been_made() -> None:
    """The same options are read again there; --hosts says the order."""
    ours = {**SUBSET, steps.MARK: "4711"}
    by_number = derivation.make_plan(asked(nodes="2", jobid="4711", overlap=True), here(ours), ("train.py",))
    by_name = derivation.make_plan(asked(hosts="gpu04,gpu03"), here(ours), ("train.py",))

    assert (by_number.world.hosts, by_number.world.node_rank, by_number.world.origin) == (FOUR[2:], 1, Origin.STEP)
    assert (by_name.world.hosts, by_name.world.node_rank, by_name.leaders) == (("gpu04", "gpu03"), 0, ("gpu04",))


def test_who_is_in_the_way() -> None:
    """Steps on the same nodes; one line names them, and what is left."""
    request = chosen(here(BATCH), nodes="gpu[01-02]")
    others = [running("batch", "gpu01"), running(3, "gpu02", "gpu03"), running(4, "gpu04", name="hpc-launch")]
    found = step_plan.in_the_way(request, job_of(here(BATCH)), others)

    assert found == (others[1],)
    assert step_plan.already_training(request, job_of(here(BATCH)), others) == ()
    told = step_plan.blocked(request, job_of(here(BATCH)), found)
    assert mentions(told, "4711 gpu[01-02] 4711.3 sleep gpu[02-03] scancel --nodes 'gpu[01,04]' --overlap")


# --- the line


def test_the_line() -> None:
    """One task on each node, with all that the job has there."""
    line = steps.srun_line(StepRequest("12", ("a1", "a2"), overlap=True, gpus=(4, 1)), ["hpc-launch", "a b.py"])

    assert line[:7] == [
        "srun",
        "--jobid=12",
        "--nodelist=a[1-2]",
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--gpus=5",
    ]
    assert "--gpus-per-node=4" in steps.srun_line(StepRequest("12", ("a1", "a2"), gpus=(4, 4), even=True), ["x"])
    assert "--gpus=4" in steps.srun_line(StepRequest("12", ("a1",), gpus=(4,)), ["x"])
    assert "--no-kill" not in line
    assert "--no-kill" in steps.srun_line(StepRequest("12", ("a1", "a2"), no_kill=True), ["x"])
    assert {"--overlap", "--immediate=10", "--export=ALL", "--cpu-bind=none", "--input=none"} < set(line)
    assert line[-2:] == ["hpc-launch", "a b.py"]
    assert not [
        word for word in steps.srun_line(StepRequest("12", ("a1",)), ["x"]) if word.startswith(("--overlap", "--gpus"))
    ]


# --- the environment

ORDERS = {
    "SLURM_NTASKS": "7",
    "SLURM_CPU_BIND_TYPE": "mask_cpu:",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_STEP_GRES": "none",
    "SLURM_PTY_PORT": "40000",
    "SLURM_PTY_WIN_COL": "80",
    "SLURM_TRES_PER_TASK": "cpu=2",
    "SRUN_CPUS_PER_TASK": "2",
}
KEPT = {"SLURM_CPUS_PER_TASK": "16", "SLURM_GPUS_PER_NODE": "a100:4", "SLURM_JOB_NAME": "a 'b'\n"}
FREE = {"SLURM_MPI_TYPE": "pmix", "SLURM_CONF": "/etc/slurm/slurm.conf", "PATH": "/bin", "SLURM_SUBMIT_DIR": "/home"}


def test_the_environment_of_a_step_has_no_orders() -> None:
    """What would change the step is gone for srun; what scripts read of it is there again in the tasks."""
    environ = {**ORDERS, **KEPT, **FREE, "SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    for_srun = steps.srun_environment(environ)

    assert not (ORDERS.keys() | KEPT.keys()) & for_srun.keys()
    assert FREE.items() < for_srun.items()
    assert for_srun[steps.MARK] == "12"
    in_task = steps.task_environment(for_srun)
    assert {name: value for name, value in in_task.items() if name != "SLURM_JOBID"} == {
        **FREE,
        **KEPT,
        "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        steps.MARK: "12",
    }
    assert environ == steps.task_environment(environ)


def test_another_job_has_nothing_of_this_one() -> None:
    """With --jobid from within a job, no array index, directory or name of that goes along."""
    environ = {**KEPT, **FREE, "SLURM_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURMD_NODENAME": "gpu01"}

    assert steps.srun_environment(environ, "13") == {
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "PATH": "/bin",
        "SLURM_JOB_ID": "13",
        "SLURM_JOBID": "13",
        steps.MARK: "13",
        "SLURM_EXIT_ERROR": str(steps.SRUN_FAILED),
    }


# --- what scontrol shows

STEPS = """\
StepId=12.interactive UserId=0 StartTime=2026-11-23T00:08:03 TimeLimit=UNLIMITED State=RUNNING Partition=main \
NodeList=gpu001 Nodes=1 CPUs=0 Tasks=1 Name=interactive Network=(null) TRES=(null) SrunHost:Pid=(null):0
StepId=12.0 UserId=0 StartTime=2026-11-23T00:08:04 TimeLimit=UNLIMITED State=RUNNING Partition=main \
NodeList=gpu[001-002] Nodes=2 CPUs=8 Tasks=2 Name=my step Network=(null) TRES=cpu=8 SrunHost:Pid=gpu001:29229
StepId=12.1 UserId=0 State=PENDING NodeList=(null) Name=x Network=(null) SrunHost:Pid=gpu001:3
"""


def test_steps_are_read() -> None:
    """Their names, nodes and where their srun is."""
    assert steps.read_steps(STEPS) == (
        RunningStep("12.interactive", "interactive", ("gpu001",)),
        RunningStep("12.0", "my step", ("gpu001", "gpu002"), ("gpu001", 29229)),
        RunningStep("12.1", "x", (), ("gpu001", 3)),
    )
    assert [found.of_srun for found in steps.read_steps(STEPS)] == [False, True, True]
    assert steps.read_steps("Job step 12. not found\n") == ()


@pytest.mark.parametrize(("step", "tasks"), [(0, 1), (1, 2), (2, None)])
def test_the_tasks_of_a_step_are_read(step: int, tasks: int | None) -> None:
    """The number of tasks is read where it is said."""
    assert steps.read_tasks(STEPS.splitlines()[step]) == tasks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            (
                "JobId=1 JOB_GRES=gpu:5   Nodes=a1 CPU_IDs=8-15 Mem=0 GRES=gpu:4(IDX:0-3)   Nodes=a2 CPU_IDs=8 Mem=0 "
                "GRES=gpu:1(IDX:0) MinCPUsNode=2 TresPerTask=gres:gpu:1"
            ),
            {"a1": 4, "a2": 1},
        ),
        (
            (
                "JobId=1 Nodes=a[1-2] CPU_IDs=0 Mem=4000 GRES=gpu:a100:2(IDX:0,3),gpu:h100:1(IDX:2),nic:1(CNT:1) "
                "TresPerTask=cpu=2,gres/gpu=1"
            ),
            {"a1": 3, "a2": 3},
        ),
        ("JobId=1 Nodes=a1 CPU_IDs=0 Mem=0 GRES=gpu:2(IDX:0-1) TresPerNode=gres:gpu:2", {}),
        ("JobId=1 Nodes=a1 CPU_IDs=0 Mem=0 GRES= TresPerTask=cpu=2", {}),
    ],
    ids=["22.05", "24.11, types", "by node", "no GPUs"],
)
def test_gpus_are_read_where_srun_has_to_be_told(text: str, expected: Mapping[str, int]) -> None:
    """By node, if the job asked for them by task or in sum."""
    assert expected == steps.read_grants(text).gpus_to_ask


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nodes=a[1-2] CPU_IDs=0-3,8 Mem=0 GRES=gpu:2(IDX:0-1) ", {"a1": (5, 2), "a2": (5, 2)}),
        (
            "Nodes=a1 CPU_IDs=0 Mem=0 GRES=   Nodes=a2 CPU_IDs=0-1 Mem=0 GRES=nic:1(CNT:1) ",
            {"a1": (1, 0), "a2": (2, 0)},
        ),
        ("Nodes=a1 CPU_IDs=? Mem=0 GRES= ", {"a1": (0, 0)}),
        ("JobState=PENDING NumNodes=2", {}),
    ],
)
def test_what_a_job_has_on_its_nodes(text: str, expected: Mapping[str, tuple[int, int]]) -> None:
    """The number of its CPUs, where that is a number, and of its GPUs."""
    found = steps.read_grants(f"JobId=1 {text}")

    assert {host: (grant.cpus, grant.gpus) for host, grant in found.nodes.items()} == expected


def test_the_places_have_names_for_messages() -> None:
    """They stand in `this is the ... of job 12`."""
    assert all(place.value.islower() for place in Place)
