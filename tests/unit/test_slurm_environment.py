"""Slurm's variables: which step, task or allocation a process is in, from what Slurm really sets."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given, strategies as st

from hpc_launch.errors import ContextError
from hpc_launch.slurm.environment import Allocation, Place, Step, Traced, locate, requeue_id, trace
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
    without,
)

FOUR = ("gpu01", "gpu02", "gpu03", "gpu04")

CGROUP_V1 = """12:cpuset:/slurm/uid_1000/job_4711/{step}/task_0
11:freezer:/slurm/uid_1000/job_4711/{step}
1:name=systemd:/system.slice/slurmd.service
"""
CGROUP_V2 = "0::/system.slice/slurmstepd.scope/job_4711/{step}/user/task_0\n"


def step_of(variables: Mapping[str, str], cgroup: str = "") -> Step:
    place = locate(variables, cgroup)
    assert isinstance(place, Step)
    return place


def allocation_of(variables: Mapping[str, str], cgroup: str = "") -> Allocation:
    place = locate(variables, cgroup)
    assert isinstance(place, Allocation)
    return place


def is_sound(place: Step | Allocation | None) -> bool:
    if not isinstance(place, Step):
        return True
    here = place.hosts[place.node_rank]
    return here == place.node_name and place.task < place.tasks and place.local_task < place.local_tasks <= place.tasks


def refused(variables: Mapping[str, str]) -> str:
    with pytest.raises(ContextError) as caught:
        locate(variables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tasks_of(step: Step) -> tuple[int, int, int, int]:
    return step.tasks, step.task, step.local_tasks, step.local_task


def test_outside_of_slurm_there_is_no_place() -> None:
    """Without a job id this is no Slurm job, whatever else a site's profile sets."""
    assert locate({"PATH": "/usr/bin", "SLURM_CONF": "/etc/slurm/slurm.conf", "SLURM_JOB_ID": ""}) is None


def test_a_step_with_one_task_per_node() -> None:
    """Every field of a plain step comes from the variables that describe the step."""
    expected = Step(
        job_id="4711",
        job_label="4711",
        step_id=0,
        hosts=FOUR,
        node_name="gpu03",
        node_id=2,
        tasks=4,
        task=2,
        local_tasks=1,
        local_task=0,
        cpus_on_node=16,
        gpus_on_node=4,
        job_hosts=4,
        reserved_ports=(),
        submit_directory="/home/ada/project",
        restart_count=0,
    )
    step = step_of(ONE_TASK_PER_NODE)

    assert expected == step
    assert (step.node_rank, step.task_per_rank) == (2, False)


@pytest.mark.parametrize(
    ("variables", "tasks", "node_rank"),
    [(BLOCK, (16, 5, 4, 1), 1), (CYCLIC, (8, 5, 2, 1), 1), (UNEVEN, (7, 6, 1, 0), 3)],
    ids=["block", "cyclic", "uneven"],
)
def test_several_tasks_per_node(variables: Mapping[str, str], tasks: tuple[int, ...], node_rank: int) -> None:
    """With more tasks than nodes each task is a rank, however Slurm has dealt them out."""
    step = step_of(variables)

    assert tasks == tasks_of(step)
    assert (node_rank, True) == (step.node_rank, step.task_per_rank)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [(BLOCK, 4), (CYCLIC, 2), (UNEVEN, 1), ({**UNEVEN, "SLURMD_NODENAME": "gpu02", "SLURM_PROCID": "2"}, 2)],
)
def test_the_tasks_here_are_counted_without_gtids(variables: Mapping[str, str], expected: int) -> None:
    """Where SLURM_GTIDS is lost, the run lengths of SLURM_STEP_TASKS_PER_NODE give the tasks of this node."""
    assert expected == step_of(without(variables, "SLURM_GTIDS")).local_tasks


def test_a_step_on_some_of_the_nodes_of_a_job() -> None:
    """In a step on two of four nodes only the step's list counts; the job's still names all four."""
    step = step_of(SUBSET)

    assert step.hosts == ("gpu03", "gpu04")
    assert (step.step_id, step.node_rank, step.job_hosts) == (1, 1, 4)


def test_a_heterogeneous_step() -> None:
    """The node rank is the index in the list, also where SLURM_NODEID counts by components and the list is sorted."""
    step = step_of(HETEROGENEOUS)

    assert step.hosts == ("a1", "a2", "z1")
    assert (step.node_rank, step.node_id) == (2, 0)


def test_an_array_element_is_named_as_users_know_it() -> None:
    """A job of an array has an id of its own, and the label ARRAY_TASK that squeue shows."""
    step = step_of(ARRAY)

    assert (step.job_id, step.job_label) == ("4711", "4700_17")


def test_a_requeued_job_counts_its_restarts() -> None:
    """The restart count comes along, so that the same job and step ids do not make the same run."""
    assert step_of({**ONE_TASK_PER_NODE, "SLURM_RESTART_COUNT": "3"}).restart_count == 3


def test_arbitrary_distribution_may_put_task_0_on_the_last_node() -> None:
    """The task number and the node rank are independent."""
    step = step_of(
        {**ONE_TASK_PER_NODE, "SLURM_PROCID": "3", "SLURM_GTIDS": "3", "SLURMD_NODENAME": "gpu01", "SLURM_NODEID": "0"}
    )

    assert (step.node_rank, step.task) == (0, 3)


def test_old_names_of_job_and_step_id_will_do() -> None:
    """SLURM_JOBID and SLURM_STEPID stand in where the newer names are missing."""
    step = step_of(without(ONE_TASK_PER_NODE, "SLURM_JOB_ID", "SLURM_STEP_ID"))

    assert (step.job_id, step.step_id) == ("4711", 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4),
        ("a100:4", 4),
        ("h100:2,l40:1", 3),
        ("gpu:a100:4", 4),
        ("", None),
        ("a100", None),
        ("a100:x", None),
        ("a100:\u00b2", None),
    ],
)
def test_gpu_counts_with_types(text: str, expected: int | None) -> None:
    """GPU counts are summed over their types; what is no count is unknown, and not an error."""
    assert expected == step_of({**ONE_TASK_PER_NODE, "SLURM_GPUS_ON_NODE": text}).gpus_on_node


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12000-12003", (12000, 12001, 12002, 12003)), ("12000,12005-12006", (12000, 12005, 12006)), ("", ())],
)
def test_reserved_ports(text: str, expected: tuple[int, ...]) -> None:
    """SLURM_STEP_RESV_PORTS is a list of ports and ranges."""
    assert expected == step_of({**ONE_TASK_PER_NODE, "SLURM_STEP_RESV_PORTS": text}).reserved_ports


@pytest.mark.parametrize(
    ("variables", "place", "node"),
    [
        (BATCH, Place.BATCH, "gpu01"),
        ({**BATCH, "SLURM_STEP_ID": "-5"}, Place.BATCH, "gpu01"),
        ({**BATCH, "SLURM_STEP_ID": "4294967291"}, Place.BATCH, "gpu01"),
        (STALE_BATCH, Place.BATCH, "gpu01"),
        (INTERACTIVE, Place.INTERACTIVE, "gpu01"),
        ({**INTERACTIVE, "SLURM_STEP_ID": "-6"}, Place.INTERACTIVE, "gpu01"),
        (LOGIN_SHELL, Place.SHELL, ""),
    ],
    ids=["batch", "batch 26.05", "batch id", "stale batch", "interactive", "interactive 26.05", "login shell"],
)
def test_outside_of_the_steps_of_a_job(variables: Mapping[str, str], place: Place, node: str) -> None:
    """A batch script, an interactive step and a login shell see the job's nodes, and are no task."""
    expected = Allocation(
        job_id="4711",
        job_label="4711",
        place=place,
        hosts=FOUR,
        node_name=node,
        submit_directory="/home/ada/project",
        restart_count=0,
        gpus_on_node=4 if node else None,
    )
    assert expected == locate(variables)


def test_the_shell_of_a_step_is_no_task() -> None:
    """What is typed into the shell of `srun --pty bash` sees the job.

    The step that hpc-launch starts from there does not; nor do others that inherit the variables of the shell's step.
    """
    shell = {**SUBSET, "SLURM_PTY_PORT": "40000"}
    found = locate(shell, shell=True)

    assert isinstance(found, Allocation)
    assert (found.place, found.hosts, found.node_name, found.step_id) == (Place.TERMINAL, FOUR, "gpu04", 1)
    assert isinstance(locate(shell), Step)
    assert isinstance(locate({**shell, "HPC_LAUNCH_STEP": "4710"}, shell=True), Allocation)
    ours = locate({**shell, "HPC_LAUNCH_STEP": "4711"}, shell=True)
    assert isinstance(ours, Step)
    assert ours.ours


@pytest.mark.parametrize("cgroup", [CGROUP_V1, CGROUP_V2], ids=["v1", "v2"])
@pytest.mark.parametrize("step", ["step_interactive", "step_0"])
def test_an_allocation_that_was_got_in_a_shell_of_another_job(cgroup: str, step: str) -> None:
    """salloc within salloc: the node and the step that the variables name are the outer job's, as the kernel says."""
    inner = {**ONE_TASK_PER_NODE, "SLURM_JOB_ID": "4712", "SLURM_JOB_NODELIST": "gpu[05-06]"}
    found = allocation_of(inner, cgroup.format(step=step))

    assert (found.place, found.hosts, found.node_name) == (Place.SHELL, ("gpu05", "gpu06"), "")


def test_a_component_of_a_heterogeneous_job_has_a_number_of_its_own() -> None:
    """The kernel names the component, the variables the leader: that is one job."""
    both = {**ONE_TASK_PER_NODE, "SLURM_JOB_ID": "4710", "SLURM_JOB_ID_HET_GROUP_1": "4711", "SLURM_HET_SIZE": "2"}

    assert isinstance(locate(both, CGROUP_V1.format(step="step_0")), Step)


@pytest.mark.parametrize("cgroup", [CGROUP_V1, CGROUP_V2], ids=["v1", "v2"])
@pytest.mark.parametrize(("step", "place"), [("step_batch", Place.BATCH), ("step_extern", Place.BATCH)])
def test_the_cgroup_is_believed_more_than_stale_variables(cgroup: str, step: str, place: Place) -> None:
    """Variables of a step on this job's own nodes can be stale; the kernel says that this is no task of it."""
    stale = {**ONE_TASK_PER_NODE, "SLURMD_NODENAME": "gpu01"}
    assert isinstance(locate({**stale, "SLURM_NODEID": "0"}), Step)

    assert place is allocation_of(stale, cgroup.format(step=step)).place


@pytest.mark.parametrize("cgroup", [CGROUP_V1, CGROUP_V2, "0::/user.slice/session-3.scope\n"], ids=["v1", "v2", "none"])
def test_the_cgroup_of_a_step_confirms_the_variables(cgroup: str) -> None:
    """In a step, or where nothing tracks processes by cgroups, the variables decide."""
    assert step_of(ONE_TASK_PER_NODE) == step_of(ONE_TASK_PER_NODE, cgroup.format(step="step_0"))


@pytest.mark.parametrize("cgroup", [CGROUP_V1, CGROUP_V2], ids=["v1", "v2"])
@pytest.mark.parametrize("step", ["0", "batch", "interactive"])
def test_the_cgroup_of_a_process_whose_environment_is_gone(cgroup: str, step: str) -> None:
    """Where no variable speaks of Slurm, the kernel still says which step this is."""
    assert trace({"PATH": "/bin"}, cgroup.format(step=f"step_{step}")) == Traced("4711", step)


@pytest.mark.parametrize(
    ("environ", "cgroup"),
    [
        ({"SLURM_JOB_ID": "4711"}, CGROUP_V2.format(step="step_0")),
        ({}, CGROUP_V2.format(step="step_extern")),
        ({}, "0::/user.slice/session-3.scope\n"),
        ({}, ""),
    ],
    ids=["told", "login", "elsewhere", "unknown"],
)
def test_nothing_is_gone_where_there_was_nothing(environ: Mapping[str, str], cgroup: str) -> None:
    """Neither a task that has its variables, nor a login, nor a process outside of Slurm lacks any."""
    assert trace(environ, cgroup) is None


def test_a_nested_batch_script_does_not_take_the_outer_step_for_its_own() -> None:
    """The nodes of a stale step that this job's node is not among say nothing about this job."""
    assert allocation_of(STALE_BATCH).hosts == FOUR


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        (without(ONE_TASK_PER_NODE, "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST"),
        (without(BATCH, "SLURM_JOB_NODELIST"), "SLURM_JOB_NODELIST"),
        ({"SLURM_JOB_ID": "4711"}, "SLURM_JOB_NODELIST"),
    ],
)
def test_a_container_that_lost_variables_is_told_which(variables: Mapping[str, str], name: str) -> None:
    """A missing list of nodes is named, with both ways out."""
    assert mentions(refused(variables), f"SLURM_JOB_ID {name} SLURM_* --standalone")


def test_a_lost_node_name_is_replaced_by_the_node_id() -> None:
    """Where only SLURMD_NODENAME is lost, SLURM_NODEID still says which node this is."""
    assert step_of(without(ONE_TASK_PER_NODE, "SLURMD_NODENAME")).node_name == "gpu03"


def test_a_container_that_lost_all_but_the_lists_and_the_node() -> None:
    """The step's list, the node's name and the task's number are enough."""
    kept = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURMD_NODENAME", "SLURM_PROCID")
    step = step_of({name: ONE_TASK_PER_NODE[name] for name in kept})

    assert (step.hosts, step.node_rank, tasks_of(step)) == (FOUR, 2, (4, 2, 1, 0))
    assert (step.cpus_on_node, step.gpus_on_node, step.job_hosts) == (None, None, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SLURMD_NODENAME": "gpu09"}, ("gpu09", "SLURMD_NODENAME", "gpu[01-04]", "SLURM_STEP_NODELIST")),
        ({"SLURMD_NODENAME": "", "SLURM_NODEID": "4"}, ("SLURMD_NODENAME", "SLURM_STEP_NODELIST")),
        ({"SLURM_STEP_NUM_NODES": "2"}, ("SLURM_STEP_NUM_NODES=2", "SLURM_STEP_NODELIST=gpu[01-04]", "4 nodes")),
        ({"SLURM_STEP_NODELIST": "gpu[01-"}, ("SLURM_STEP_NODELIST", "[01-")),
        ({"SLURM_PROCID": "4"}, ("SLURM_PROCID=4", "4 tasks")),
        ({"SLURM_LOCALID": "1"}, ("SLURM_LOCALID=1", "1 on this one")),
        ({"SLURM_STEP_NUM_TASKS": "3"}, ("3 tasks", "4 nodes")),
        ({"SLURM_PROCID": "two"}, ("SLURM_PROCID=two", "not a number")),
        ({"SLURM_PROCID": "\u00b2"}, ("SLURM_PROCID=\u00b2", "not a number")),
        ({"SLURM_NODEID": "-1"}, ("SLURM_NODEID=-1", "not a number")),
        ({"SLURM_RESTART_COUNT": "once"}, ("SLURM_RESTART_COUNT=once", "not a number")),
        ({"SLURM_GTIDS": "", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, ("SLURM_STEP_TASKS_PER_NODE=1(x3)", "3 nodes")),
        ({"SLURM_GTIDS": "", "SLURM_STEP_TASKS_PER_NODE": "1(x"}, ("SLURM_STEP_TASKS_PER_NODE", "1(x")),
    ],
)
def test_contradictions_are_refused_by_name(changes: Mapping[str, str], named: tuple[str, ...]) -> None:
    """What cannot be true of one step is refused, naming the variables and their values."""
    message = refused({**ONE_TASK_PER_NODE, **changes})

    assert [part for part in named if part not in message] == []


def test_a_bad_list_of_the_job_is_refused_by_name() -> None:
    """In a batch script the list that counts is the job's, and so is the one that is named."""
    assert refused({**BATCH, "SLURM_JOB_NODELIST": "gpu[1"}).startswith("SLURM_JOB_NODELIST: host list 'gpu[1'")


@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(ONE_TASK_PER_NODE)),
        st.none()
        | st.sampled_from(["", "0", "1", "7", "-1", "4294967290", "x", "gpu[01-02]", "2(x2)", "\u00b2", "1-0"]),
        max_size=4,
    )
)
def test_whatever_the_variables_say_the_answer_is_a_place_or_one_line(changes: Mapping[str, str | None]) -> None:
    """No combination of damaged variables makes a traceback, or a place that contradicts itself."""
    damaged = {**ONE_TASK_PER_NODE, **changes}
    with contextlib.suppress(ContextError):
        assert is_sound(locate({name: value for name, value in damaged.items() if value is not None}))


@pytest.mark.parametrize(("environ", "expected"), [
    ({}, ""),
    ({"SLURM_JOB_ID": "12"}, "12"),
    ({"SLURM_JOBID": "12"}, "12"),
    ({"SLURM_JOB_ID": "19", "SLURM_ARRAY_JOB_ID": "19", "SLURM_ARRAY_TASK_ID": "3"}, "19_3"),
    ({"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "19", "SLURM_ARRAY_TASK_ID": "0"}, "19_0"),
    ({"SLURM_JOB_ID": "34", "SLURM_JOB_ID_HET_GROUP_0": "33", "SLURM_JOB_ID_HET_GROUP_1": "34"}, "33"),
])  # fmt: skip
def test_the_id_to_requeue(environ: dict[str, str], expected: str) -> None:
    """A task of an array is asked for by its place there, a heterogeneous job by its leader."""
    assert expected == requeue_id(environ)
