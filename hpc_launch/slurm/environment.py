"""Read Slurm's variables: which step, task or allocation is this process in?

Pure: everything comes in as arguments. Which variable means what, in which release, is in srun(1), sbatch(1) and
salloc(1); the rules that follow from it:

- Only the `SLURM_STEP_*` variables describe a step. `SLURM_JOB_NODELIST`, `SLURM_NNODES`, `SLURM_NODELIST` describe the
  job or the step depending on where one looks, and `SLURM_LAUNCH_NODE_IPADDR` is where srun runs.
- The number of a node is its index in `SLURM_STEP_NODELIST`. `SLURM_NODEID` differs from it in heterogeneous steps.
- In a batch script all step variables may be left over from the place where sbatch was called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hpc_launch import hostlist, ranges
from hpc_launch.errors import ContextError, HostlistError
from hpc_launch.slurm.steps import MARK

# Step ids from here on are not steps of srun: 0xfffffffb is the batch script, 0xfffffffa the interactive step
# (slurm/slurm.h). Slurm 26.05 writes them as negative numbers.
_FIRST_SPECIAL_STEP = 0xFFFFFFF0

_INTERACTIVE_STEP = (str(0xFFFFFFFA), "-6")

# /proc/self/cgroup of a process in a step, under cgroup v1 and v2: .../job_12/step_0/..., .../job_12/step_batch
_STEP_CGROUP = re.compile(r"/job_(?P<job>\d+)/step_(?P<step>\w+)")


class Place(str, Enum):
    """Where in an allocation, outside of any step, a process runs."""

    BATCH = "batch script"
    INTERACTIVE = "interactive step"
    SHELL = "shell of an allocation"
    TERMINAL = "interactive shell of a step"
    """`srun --pty bash`: a step, but not one that is there to train."""
    ELSEWHERE = "another place"
    """The job was named: by `--jobid`."""


@dataclass(frozen=True)
class Allocation:
    """A job's nodes, seen from outside of its steps.

    Attributes:
        place: where this process is.
        hosts: the nodes of the job.
        node_name: Slurm's name of the node this process is on; empty where that is none of the job's.
        step_id: number of the step that a shell belongs to.
        gpus_on_node: GPUs that this process was given; None where unknown.
        components: how many components a heterogeneous job has; 1 for any other.
    """

    job_id: str
    job_label: str
    place: Place
    hosts: tuple[str, ...]
    node_name: str
    submit_directory: str
    restart_count: int
    step_id: int | None = None
    gpus_on_node: int | None = None
    components: int = 1


@dataclass(frozen=True)
class Step:
    """One task of a step, and what it knows of the others.

    Attributes:
        job_id: the job's id (that of the leader in a heterogeneous job).
        job_label: the id that users see: `12`, or `12_3` for a task of an array.
        step_id: number of the step.
        hosts: the nodes of the step, in the order that numbers them.
        node_name: Slurm's name of this node (NodeName, which may differ from the host name).
        node_id: what `SLURM_NODEID` says; None where it is unset.
        tasks: number of tasks of the step.
        task: number of this task (`SLURM_PROCID`).
        local_tasks: number of tasks on this node.
        local_task: number of this task on this node (`SLURM_LOCALID`).
        cpus_on_node: CPUs of the step on this node; None where unknown.
        gpus_on_node: GPUs of the step on this node; None where unknown.
        job_hosts: number of nodes of the whole job; None where unknown.
        reserved_ports: ports that Slurm reserved for the step (srun --resv-ports).
        restart_count: how often the job was requeued.
        ours: hpc-launch itself has started the step.
    """

    job_id: str
    job_label: str
    step_id: int
    hosts: tuple[str, ...]
    node_name: str
    node_id: int | None
    tasks: int
    task: int
    local_tasks: int
    local_task: int
    cpus_on_node: int | None
    gpus_on_node: int | None
    job_hosts: int | None
    reserved_ports: tuple[int, ...]
    submit_directory: str
    restart_count: int
    ours: bool = False

    @property
    def node_rank(self) -> int:
        """Number of this node: its index in the step's list."""
        return self.hosts.index(self.node_name)

    @property
    def task_per_rank(self) -> bool:
        """Whether Slurm started several tasks on a node, so that each is one rank."""
        return self.tasks > len(self.hosts)


@dataclass(frozen=True)
class Traced:
    """What the kernel says of a process whose environment says nothing of Slurm.

    Attributes:
        job_id: the job (in a heterogeneous job that of the component).
        step: `0` for a step of srun, `batch` or `interactive` for those of a script or a shell.
    """

    job_id: str
    step: str

    @property
    def of_srun(self) -> bool:
        """Whether it is a task of a step, of which there may be others."""
        return _is_number(self.step)

    def __str__(self) -> str:
        if self.of_srun:
            return f"step {self.job_id}.{self.step}"
        return f"the {'batch script' if self.step == 'batch' else 'shell'} of job {self.job_id}"


def trace(environ: Mapping[str, str], cgroup: str) -> Traced | None:
    """Say in which step this process is although its environment does not tell (env -i, sudo, containers).

    Returns:
        None where the environment tells, where it is no step, and for logins that the job has adopted (`step_extern`).
    """
    seen = _STEP_CGROUP.search(cgroup)
    if environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or seen is None or seen["step"] == "extern":
        return None
    return Traced(seen["job"], seen["step"])


def locate(environ: Mapping[str, str], cgroup: str = "", *, shell: bool = False) -> Step | Allocation | None:
    """Say where this process is.

    Args:
        environ: the environment.
        cgroup: the text of /proc/self/cgroup. Where it names a step it is believed more than the variables, which a
            batch script may have inherited from another job.
        shell: a shell that somebody types into has started this process (`plan.launch_context.has_job_control`).

    Returns:
        A Step in a task of srun, an Allocation elsewhere in a job, None outside of Slurm. What is typed into the shell
        of `srun --pty` is no task of it: that step has other things to do. Its variables are no sign of it, because
        tasks that are started from there inherit them.

    Raises:
        ContextError: when the variables contradict each other.
    """
    job_id = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    if not job_id:
        return None
    step_id = _step_id(environ)
    ours = environ.get(MARK) == job_id
    seen = _STEP_CGROUP.search(cgroup)
    if seen is not None and seen["job"] not in _job_ids(environ, job_id):
        return _allocation(environ, job_id, Place.SHELL)  # of an salloc that was typed into a shell of another job
    outside = not _is_number(seen["step"]) if seen is not None else _left_over(environ)
    if step_id is None or outside:
        return _allocation(environ, job_id)
    if shell and not ours:
        return _allocation(environ, job_id, Place.TERMINAL, step_id)
    return _step(environ, job_id, step_id, ours=ours)


def requeue_id(environ: Mapping[str, str]) -> str:
    """The id by which to ask for this job and to requeue it; empty outside of Slurm.

    For a task of an array it is `12_3`: the number of the last task is also that of the whole array, and a requeue by
    that number hits all tasks. For a heterogeneous job it is the leader's, which stands for all components.
    """
    names = ("SLURM_JOB_ID_HET_GROUP_0", "SLURM_JOB_ID", "SLURM_JOBID")
    return _job_label(environ, next((value for name in names if (value := environ.get(name))), ""))


def restart_count(environ: Mapping[str, str]) -> int:
    """How often Slurm has started this job again; 0 outside of Slurm."""
    return _number(environ, "SLURM_RESTART_COUNT") or 0


def _job_ids(environ: Mapping[str, str], job_id: str) -> set[str]:
    """The numbers of this job: the components of a heterogeneous one have a number each."""
    return {job_id} | {value for name, value in environ.items() if name.startswith("SLURM_JOB_ID_")}


def _step_id(environ: Mapping[str, str]) -> int | None:
    text = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID") or ""
    if not _is_number(text) or int(text) >= _FIRST_SPECIAL_STEP:
        return None
    return int(text)


def _left_over(environ: Mapping[str, str]) -> bool:
    """Whether the step variables are those of another job: their nodes are not this job's, or not this one."""
    try:
        step = set(hostlist.expand(environ.get("SLURM_STEP_NODELIST", "")))
        job = set(hostlist.expand(environ.get("SLURM_JOB_NODELIST", "")))
    except HostlistError:
        return False  # _step says what is wrong with them
    here = environ.get("SLURMD_NODENAME")
    return bool(step and job and here) and here not in step and here in job


def _allocation(
    environ: Mapping[str, str], job_id: str, place: Place | None = None, step_id: int | None = None
) -> Allocation:
    hosts = _hosts(environ, "SLURM_JOB_NODELIST")
    here = "" if place is Place.SHELL else environ.get("SLURMD_NODENAME", "")
    if place is None and environ.get("SLURM_STEP_ID", "") in _INTERACTIVE_STEP:
        place = Place.INTERACTIVE
    elif place is None:
        place = Place.BATCH if here else Place.SHELL
    return Allocation(
        job_id=job_id,
        job_label=_job_label(environ, job_id),
        place=place,
        hosts=hosts,
        node_name=here,
        submit_directory=environ.get("SLURM_SUBMIT_DIR", ""),
        restart_count=restart_count(environ),
        step_id=step_id,
        gpus_on_node=_gpus_of_shell(environ, place) if here else None,
        components=_number(environ, "SLURM_HET_SIZE") or 1,
    )


def _gpus_of_shell(environ: Mapping[str, str], place: Place) -> int | None:
    """How many GPUs a shell was given: in a step each task may have its own share of those that are on the node."""
    if place is Place.TERMINAL:
        return len([number for number in environ.get("SLURM_STEP_GPUS", "").split(",") if number])
    return _device_count(environ.get("SLURM_GPUS_ON_NODE", ""))


def _step(environ: Mapping[str, str], job_id: str, step_id: int, *, ours: bool) -> Step:
    hosts = _hosts(environ, "SLURM_STEP_NODELIST")
    node_id = _number(environ, "SLURM_NODEID")
    here = environ.get("SLURMD_NODENAME", "")
    if not here and node_id is not None and node_id < len(hosts):
        here = hosts[node_id]
    if here not in hosts:
        raise ContextError(
            f"this node is '{here}' (SLURMD_NODENAME) but the step runs on {hostlist.fold(hosts)} "
            "(SLURM_STEP_NODELIST): pass SLURM_* and SLURMD_NODENAME unchanged into the task, or say --hosts"
        )
    nodes = _number(environ, "SLURM_STEP_NUM_NODES")
    if nodes is not None and nodes != len(hosts):
        raise ContextError(
            f"SLURM_STEP_NUM_NODES={nodes} but SLURM_STEP_NODELIST={environ['SLURM_STEP_NODELIST']} names "
            f"{len(hosts)} nodes: one of them is left over from another step; unset it"
        )
    tasks = _first_number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") or len(hosts)
    task = _number(environ, "SLURM_PROCID") or 0
    local_tasks = (
        len(environ["SLURM_GTIDS"].split(",")) if environ.get("SLURM_GTIDS") else _tasks_here(environ, hosts, here)
    )
    local_task = _number(environ, "SLURM_LOCALID") or 0
    if not (task < tasks and local_task < local_tasks and len(hosts) <= tasks):
        raise ContextError(
            f"SLURM_PROCID={task}, SLURM_LOCALID={local_task} cannot be in a step of {tasks} tasks on {len(hosts)} "
            f"nodes with {local_tasks} on this one: some of these variables are left over; unset them"
        )
    return Step(
        job_id=job_id,
        job_label=_job_label(environ, job_id),
        step_id=step_id,
        hosts=hosts,
        node_name=here,
        node_id=node_id,
        tasks=tasks,
        task=task,
        local_tasks=local_tasks,
        local_task=local_task,
        cpus_on_node=_number(environ, "SLURM_CPUS_ON_NODE"),
        gpus_on_node=_device_count(environ.get("SLURM_GPUS_ON_NODE", "")),
        job_hosts=_number(environ, "SLURM_JOB_NUM_NODES"),
        reserved_ports=_port_list(environ.get("SLURM_STEP_RESV_PORTS", "")),
        submit_directory=environ.get("SLURM_SUBMIT_DIR", ""),
        restart_count=restart_count(environ),
        ours=ours,
    )


def _hosts(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = environ.get(name, "")
    if not text:
        raise ContextError(
            f"SLURM_JOB_ID is set but {name} is not: pass the SLURM_* variables on (containers and sudo drop them), or "
            "say --standalone to run on this node alone"
        )
    try:
        return hostlist.expand(text)
    except HostlistError as error:
        raise ContextError(f"{name}: {error}") from error


def _tasks_here(environ: Mapping[str, str], hosts: tuple[str, ...], here: str) -> int:
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or ""
    try:
        counts = hostlist.parse_counts(text) if text else (1,) * len(hosts)
    except HostlistError as error:
        raise ContextError(f"SLURM_STEP_TASKS_PER_NODE: {error}") from error
    if len(counts) != len(hosts):
        raise ContextError(
            f"SLURM_STEP_TASKS_PER_NODE={text} speaks of {len(counts)} nodes but SLURM_STEP_NODELIST of {len(hosts)}: "
            "one of them is left over from another step; unset it"
        )
    return counts[hosts.index(here)]


def _job_label(environ: Mapping[str, str], job_id: str) -> str:
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else job_id


def _is_number(text: str) -> bool:
    """Whether Slurm could have written this for a number: str.isdigit alone takes other scripts' digits too."""
    return text.isascii() and text.isdigit()


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not _is_number(text):
        raise ContextError(f"{name}={text} is not a number: it was not written by Slurm; unset it")
    return int(text)


def _first_number(environ: Mapping[str, str], *names: str) -> int | None:
    return next((number for number in (_number(environ, name) for name in names) if number is not None), None)


def _device_count(text: str) -> int | None:
    """Sum Slurm's forms of a GPU count: `4`, `a100:4`, `h100:2,l40:1`; None where there is none."""
    numbers = [part.rpartition(":")[2] for part in text.split(",")] if text else []
    return sum(map(int, numbers)) if numbers and all(map(_is_number, numbers)) else None


def _port_list(text: str) -> tuple[int, ...]:
    """Read `12000-12003` or `12000,12005` as SLURM_STEP_RESV_PORTS writes them."""
    try:
        return ranges.unfold(text)
    except ValueError:
        return ()  # whoever wrote that has reserved none
