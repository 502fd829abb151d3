"""Steps that hpc-launch starts itself: the srun line, the environment that goes with it, and who runs in a job. Pure.

Inside of an allocation srun takes most of its options from variables too (srun(1), "INPUT ENVIRONMENT VARIABLES"), and
finds there what the job was submitted with, or what an outer step has left: a number of tasks, a share of the CPUs, one
GPU per task, a binding. A step of ours is to have one task on each of its nodes and everything that the job has there,
whatever they say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpc_launch import hostlist, ranges
from hpc_launch.errors import HostlistError

# Has the id of the job in the tasks of a step that hpc-launch has started: these are not to start another one.
MARK = "HPC_LAUNCH_STEP"

# The name of such a step, in squeue and sacct.
NAME = "hpc-launch"

# What srun ends with when it is srun that fails, and no task: a number that trainings have no use for.
SRUN_FAILED = 222

# How long srun tries to get what other steps still have, in seconds. That of a step that has just ended is free within
# one; without a limit srun waits for as long as the job lasts.
PATIENCE = 10

# Input variables of srun that would make the step another one, in some release from 20.11 to 26.05.
_ORDERS = re.compile(
    r"""SLURM_(
        ARBITRARY_NODELIST | CONSTRAINT | CORE_SPEC | CPUS_PER_(GPU|TASK) | CPU_BIND.* | DIST_.* | DISTRIBUTION | EXACT
        | EXCLUSIVE | EXPORT_ENV | GPUS(_PER_.*)? | GPU_BIND | GRES | GRES_FLAGS | HINT | HOSTFILE | IMMEDIATE
        | JOB_NAME | MEM_BIND.* | MEM_PER_.* | N(CORES|SOCKETS)_PER_.* | NNODES | NODELIST | NPROCS | NTASKS(_PER_.*)?
        | OVERCOMMIT | OVERLAP | REMOTE_CWD | SPREAD_JOB | STDINMODE | THREADS(_PER_CORE)? | THREAD_SPEC | TIMELIMIT
        | TRES_(BIND|PER_.*) | USE_MIN_NODES | WORKING_DIR
    )|SRUN_(CPUS_PER_TASK|EXPORT_ENV|INPUT|SEGMENT_SIZE)""",
    re.VERBOSE,
)

# What describes a task, a step or its terminal, and would outlive them.
_OF_A_STEP = re.compile(r"SLURM_(STEP_.*|STEPID|PTY_.*|PROCID|LOCALID|NODEID|GTIDS|TASK_PID|GPUS_ON_NODE|CPUS_ON_NODE)")

# Of all that Slurm sets, what belongs to no job.
_OF_NO_JOB = frozenset({"SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_DEBUG"})

# What scripts read about their job, though srun would take it for orders: kept from srun, and given back in the tasks.
_TOLD = re.compile(r"SLURM_(CPUS_PER_(GPU|TASK)|GPUS(_PER_(NODE|TASK))?|JOB_NAME|MEM_PER_.*)")
_KEPT = f"{MARK}_KEPT_"


@dataclass(frozen=True)
class StepRequest:
    """A step that is to be started: one task on each of its nodes.

    Attributes:
        job_id: the job's number.
        hosts: which of its nodes.
        overlap: share the nodes with steps that are there already; without it they are waited for (`patience`).
            From Slurm 22.05 on that goes for CPUs, memory and GPUs alike, before for CPUs only.
        gpus: how many GPUs the job has on each of these nodes; nothing has srun ask for what the job asked for, which
            is the same unless the job counted them by task or in sum.
        even: each node of the job, these and others, has as many.
        patience: seconds after which srun gives up where other steps hold what is needed.
        name: the step's name.
        no_kill: it goes on when a node of it is lost.
        reader: the number of the task that reads srun's standard input; None for none.
    """

    job_id: str
    hosts: tuple[str, ...]
    overlap: bool = False
    gpus: tuple[int, ...] = ()
    even: bool = False
    patience: int = PATIENCE
    name: str = NAME
    no_kill: bool = False
    reader: int | None = None


@dataclass(frozen=True)
class RunningStep:
    """A step that runs, as the controller shows it.

    Attributes:
        step_id: `12.0`, or `12.batch`, `12.interactive`, `12.extern`.
        name: its name: that of its command, unless it was given another.
        hosts: its nodes; empty where they cannot be read.
        srun: the host and the process id of its srun; empty for a batch script.
    """

    step_id: str
    name: str
    hosts: tuple[str, ...]
    srun: tuple[str, int] | None = None

    @property
    def of_srun(self) -> bool:
        """Whether it holds resources: scripts, interactive shells and the like do not."""
        return self.step_id.rpartition(".")[2].isdigit()


@dataclass(frozen=True)
class NodeGrant:
    """What a job has on one of its nodes.

    Attributes:
        cpus: the number of its CPUs, as Slurm counts them; 0 where it is not known.
        gpus: the number of its GPUs.
    """

    cpus: int
    gpus: int


@dataclass(frozen=True)
class JobGrants:
    """What a job has.

    Attributes:
        nodes: by host; empty where it is not known.
        by_node: GPUs were asked for by node, or not at all: then a step that asks as its job did has them all. By task
            it would get the share of one task, and in sum too many for some of the nodes.
    """

    nodes: Mapping[str, NodeGrant] = field(default_factory=dict)
    by_node: bool = True

    @property
    def gpus_to_ask(self) -> dict[str, int]:
        """How many GPUs the job has on each node, where srun has to be told; else empty."""
        return {} if self.by_node else {host: grant.gpus for host, grant in self.nodes.items()}


def srun_line(request: StepRequest, command: Sequence[str]) -> list[str]:
    """The srun line that runs a command on each node of a request, to be run with `srun_environment`.

    Without `--cpus-per-task`, which implies `--exact` from Slurm 22.05 on, a step has all CPUs of the job on its nodes;
    without `--mem` all of its memory. Ctrl-C goes to the tasks at once (`--disable-status`), not when it is repeated.
    That the tasks end together is the launcher's concern: sites that set KillOnBadExit or WaitTime would cut it short.
    """
    count = len(request.hosts)
    words = [
        "srun",
        f"--jobid={request.job_id}",
        f"--nodelist={hostlist.fold(request.hosts)}",
        f"--nodes={count}",
        f"--ntasks={count}",
        "--ntasks-per-node=1",
    ]
    if any(request.gpus):
        # By node 22.05 grants no more than the poorest node of the job has. In sum an overlapping step on several nodes
        # gets too few on the first (22.05 and 24.11).
        words.append(f"--gpus-per-node={request.gpus[0]}" if request.even else f"--gpus={sum(request.gpus)}")
    if request.overlap:
        words.append("--overlap")
    if request.no_kill:
        words.append("--no-kill")
    return [
        *words,
        f"--job-name={request.name}",
        f"--immediate={request.patience}",
        "--export=ALL",
        "--cpu-bind=none",
        f"--input={'none' if request.reader is None else request.reader}",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--disable-status",
        *command,
    ]


def srun_environment(environ: Mapping[str, str], job_id: str = "") -> dict[str, str]:
    """The environment for that srun, and so for its tasks: without what would change the step.

    Args:
        environ: the environment of whoever starts it.
        job_id: the job that the step is for; where `environ` speaks of another one, all of that is left out.
    """
    own = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID") or ""
    job_id = job_id or own
    clean = {
        name: value
        for name, value in environ.items()
        if not _ORDERS.fullmatch(name) and not _OF_A_STEP.fullmatch(name) and not name.startswith(_KEPT)
    }
    if own == job_id:
        clean |= {_KEPT + name: value for name, value in environ.items() if _TOLD.fullmatch(name)}
    else:
        clean = {name: value for name, value in clean.items() if name in _OF_NO_JOB or not _is_slurm_s(name)}
    if job_id:
        clean |= {"SLURM_JOB_ID": job_id, "SLURM_JOBID": job_id, MARK: job_id}
    return {**clean, "SLURM_EXIT_ERROR": str(SRUN_FAILED)}


def task_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in a task of such a step, as srun alone would have made it; any other one as it is."""
    if MARK not in environ:
        return dict(environ)
    kept = {name.removeprefix(_KEPT): value for name, value in environ.items() if name.startswith(_KEPT)}
    own = {name: value for name, value in environ.items() if not name.startswith(_KEPT) and name != "SLURM_EXIT_ERROR"}
    return {**own, **kept}


def read_steps(text: str) -> tuple[RunningStep, ...]:
    """Read `scontrol --oneliner show step`, which shows steps that have not ended."""
    found = []
    for entry in re.findall(r"^StepId=.*$", text, re.MULTILINE):
        step_id, nodes, name, srun = (
            match[1] if (match := re.search(pattern, entry)) else ""
            for pattern in (r"^StepId=(\S+)", r" NodeList=(\S+)", r" Name=(.*?) Network=", r" SrunHost:Pid=(\S+)")
        )
        host, _, pid = srun.rpartition(":")
        started_by = (host, int(pid)) if pid.isdigit() and int(pid) else None
        found.append(RunningStep(step_id, name, _hosts(nodes), started_by))
    return tuple(found)


def read_tasks(text: str) -> int | None:
    """Read from `scontrol --oneliner show step` for one step how many tasks it has; None where that is not said."""
    found = re.search(r"^StepId=.*? Tasks=(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def read_grants(text: str) -> JobGrants:
    """Read `scontrol --oneliner --details show job`, which shows what a job has on each of its nodes."""
    found: dict[str, NodeGrant] = {}
    for nodes, cpus, given in re.findall(r" Nodes=(\S+) CPU_IDs=(\S*) Mem=\S* GRES=(\S*)", text):
        gpus = sum(int(number) for number in re.findall(r"gpu(?::[^:(),]+)?:(\d+)\(", given))
        found |= {host: NodeGrant(_count(cpus), gpus) for host in _hosts(nodes)}
    return JobGrants(found, by_node=not re.search(r" TresPer(Job|Socket|Task)=\S*gpu", text))


def _count(numbers: str) -> int:
    """How many CPUs `0-3,8` are; 0 where it is written otherwise."""
    try:
        return len(ranges.unfold(numbers))
    except ValueError:
        return 0


def _hosts(text: str) -> tuple[str, ...]:
    try:
        return hostlist.expand(text) if text != "(null)" else ()
    except HostlistError:
        return ()


def _is_slurm_s(name: str) -> bool:
    return name.startswith(("SLURM_", "SLURMD_"))
