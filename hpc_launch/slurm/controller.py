"""Ask Slurm's controller about the cluster, the job and its steps, and have it act on them. Nothing else talks to it.

What is asked may stay unanswered (no scontrol in a container, a controller that is busy): then there is None, and
nobody waits for long. Times are seconds since the epoch, durations are seconds, and `math.inf` is what Slurm calls
UNLIMITED. The forms are those of scontrol(1) from Slurm 20.11 on.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from hpc_launch import hostlist
from hpc_launch.errors import ContextError
from hpc_launch.slurm import commands
from hpc_launch.slurm.environment import Allocation, Place
from hpc_launch.slurm.inventory import NodeGroup, read_nodes
from hpc_launch.slurm.steps import RunningStep, read_gpus, read_steps

# How long scontrol may take, in seconds. It answers in some ten milliseconds; a controller at its limit takes longer.
PATIENCE = 10.0

# slurmd waits at least so long between SIGTERM and SIGKILL, whatever KillWait is (slurmd/req.c).
_SHORTEST_KILL_WAIT = 5.0
_DEFAULT_KILL_WAIT = 30.0

# Before 23.02, where it is no parameter, and its default since then (slurm.conf(5)).
_DEFAULT_MAX_BATCH_REQUEUE = 5

# What Slurm says to a second requeue (ESLURM_JOB_PENDING): what was wanted is under way.
_ALREADY_REQUEUED = "Job is pending execution"

# What it says of a job that it does not know (ESLURM_INVALID_JOB_ID).
_NO_SUCH_JOB = "Invalid job id"

# What it says of a job that has ended (ESLURM_ALREADY_DONE).
_OVER_ALREADY = "already completing or completed"

# What Slurm says of the steps of a job that has none.
_NO_STEPS = " not found"

_FIELD = re.compile(r"(?:^|\s)([\w/:]+)=(\S*)")
# A job's name can have spaces, line breaks and what looks like fields.
_NAME = re.compile(r" JobName=.*? UserId=", re.DOTALL)
_JOB_LINE = re.compile(r"^JobId=.*$", re.MULTILINE)
_OUTPUT = re.compile(r" StdOut=(.*?)(?= [A-Z]\w*=|\s*$)")
_WORK_DIRECTORY = re.compile(r" WorkDir=(.*?)(?= [A-Z]\w*=|\s*$)")
_SETTING = re.compile(r"^(\w+)\s*=[ \t]*(.*?)\s*$", re.MULTILINE)
_DURATION = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")
_RUNNING = frozenset({"RUNNING", "SUSPENDED", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})


WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
"""States of a job that has not begun, or not begun again."""

OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
    | {"REVOKED"}
)
"""States of a job that does not change any more, by itself."""


@dataclass(frozen=True)
class ClusterRules:
    """What slurm.conf(5) says about the end of jobs.

    Attributes:
        kill_wait: seconds from SIGTERM to SIGKILL; never less than 5, since slurmd does not wait less.
        preempt_type: for instance `preempt/partition_prio`; empty where unknown.
        preempt_mode: for instance `REQUEUE`; a partition may have another.
        preempt_user_signal: a preemption with a grace time sends the signal of `--signal`, where a job has one.
        job_requeue: batch jobs may be requeued unless they say `--no-requeue`; otherwise only those with `--requeue`.
        max_batch_requeue: how often Slurm itself starts a job again, before it holds it.
        over_time_limit: seconds for which a job may exceed its time limit.
        proctrack: for instance `cgroup`: who gets the signals.
        kill_on_bad_exit: a step ends when one of its tasks ends with an error, unless srun is told otherwise.
        release: of Slurm, as (22, 5); None where unknown.
    """

    kill_wait: float = _DEFAULT_KILL_WAIT
    preempt_type: str = ""
    preempt_mode: str = ""
    preempt_user_signal: bool = False
    job_requeue: bool = True
    max_batch_requeue: int = _DEFAULT_MAX_BATCH_REQUEUE
    over_time_limit: float = 0.0
    proctrack: str = ""
    kill_on_bad_exit: bool = False
    release: tuple[int, int] | None = None


@dataclass(frozen=True)
class JobRecord:
    """What the controller knows of a job.

    Attributes:
        state: RUNNING and so on. A job that is being ended is COMPLETING, whatever it is going to be.
        reason: why it is in that state; `None` in Slurm's words where there is nothing to say.
        start: when it began; the present where it has been requeued and not begun again.
        end: when it will end, or did; None while that is open. It moves when the time limit is changed, and to the end
            of the grace time in a preemption.
        time_limit: seconds; None where unknown.
        preempt_time: when it was preempted; None where it was not.
        requeue: whether it may be requeued.
        restarts: how often it was; one more than SLURM_RESTART_COUNT as soon as Slurm has accepted a requeue.
        batch: whether it has a batch script.
        exit_code: the status that it ended with, and `signal` the signal that ended it; 0 until then.
        output: the file that it writes to; empty where it has none.
        task: its numbers in the array that it is of, such as `3` or `4-7%2`; empty where it is of none.
        nodes: its nodes, as a host list; empty where it has none.
        label: its id as users see it, `12_3` for a task of an array.
        heterogeneous: whether it is a component of a heterogeneous job.
        directory: its working directory; where it was submitted, unless --chdir says otherwise.
    """

    job_id: str
    state: str
    reason: str = ""
    start: float | None = None
    end: float | None = None
    time_limit: float | None = None
    preempt_time: float | None = None
    requeue: bool = False
    restarts: int = 0
    batch: bool = False
    partition: str = ""
    exit_code: int = 0
    signal: int = 0
    output: str = ""
    task: str = ""
    nodes: str = ""
    label: str = ""
    heterogeneous: bool = False
    directory: str = ""


@dataclass(frozen=True)
class Partition:
    """What the controller knows of a partition.

    Attributes:
        grace_time: seconds that a preempted job has before Slurm begins to end it.
        preempt_mode: what a preemption does to its jobs.
        max_time: the longest time limit; None where unknown.
    """

    name: str
    grace_time: float = 0.0
    preempt_mode: str = ""
    max_time: float | None = None


class Ending(Enum):
    """What a SIGTERM means, by the controller's word."""

    TIME_LIMIT = "time limit"
    PREEMPTED = "preemption"
    CANCELLED = "cancelled"
    """By scancel; or over otherwise: its script has ended, a node is lost."""
    REQUEUED = "requeued by Slurm"
    """Somebody has had it requeued: a preemption with PreemptMode=REQUEUE, `scontrol requeue`, a lost node."""
    RUNNING = "signalled"
    """The job goes on: only a signal was sent, or only the step was cancelled."""
    UNKNOWN = "unknown"


def ending(record: JobRecord | None, restart_count: int) -> Ending:
    """Say what the controller means by a SIGTERM that has just come. Pure.

    All that Slurm changes stands in the record before the first SIGTERM is sent, so that asking once is enough (tried
    with 22.05 and 24.11). A preempted job with a grace time is still RUNNING.

    Args:
        record: the job, asked after the signal.
        restart_count: the SLURM_RESTART_COUNT of this run.
    """
    if record is None:
        return Ending.UNKNOWN
    going_on = record.state in _RUNNING
    if record.state in WAITING or (record.restarts > restart_count and not going_on):
        return Ending.REQUEUED
    if record.preempt_time is not None or record.state == "PREEMPTED":
        return Ending.PREEMPTED
    if going_on:
        return Ending.RUNNING
    return Ending.TIME_LIMIT if "TimeLimit" in record.reason or record.state == "TIMEOUT" else Ending.CANCELLED


def requeue_id(environ: Mapping[str, str]) -> str:
    """The id by which to ask for this job and to requeue it; empty outside of Slurm. Pure.

    For a task of an array it is `12_3`: the number of the last task is also that of the whole array, and a requeue by
    that number hits all tasks. For a heterogeneous job it is the leader's, which stands for all components.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    names = ("SLURM_JOB_ID_HET_GROUP_0", "SLURM_JOB_ID", "SLURM_JOBID")
    return next((value for name in names if (value := environ.get(name))), "")


# --- what scontrol prints


def read_rules(text: str) -> ClusterRules:
    """Read `scontrol show config`; what is not there has Slurm's default. Pure."""
    found = dict(_SETTING.findall(text))
    wait = _number(found.get("KillWait", ""), _DEFAULT_KILL_WAIT)
    over = found.get("OverTimeLimit", "")
    # Where it is written depends on the release: SlurmctldParameters until 22.05, PreemptParameters since.
    options = f"{found.get('PreemptParameters')},{found.get('SlurmctldParameters')}"
    release = re.match(r"(\d+)\.(\d+)", found.get("SLURM_VERSION", ""))
    return ClusterRules(
        kill_wait=max(wait, _SHORTEST_KILL_WAIT),
        preempt_type=_word(found.get("PreemptType", "")),
        preempt_mode=_word(found.get("PreemptMode", "")),
        preempt_user_signal="send_user_signal" in options,
        job_requeue=_number(found.get("JobRequeue", ""), 1) != 0,
        max_batch_requeue=int(_number(found.get("MaxBatchRequeue", ""), _DEFAULT_MAX_BATCH_REQUEUE)),
        over_time_limit=math.inf if over == "UNLIMITED" else 60 * _number(over, 0),
        proctrack=found.get("ProctrackType", "").removeprefix("proctrack/"),
        kill_on_bad_exit=_number(found.get("KillOnBadExit", ""), 0) != 0,
        release=(int(release[1]), int(release[2])) if release else None,
    )


def read_job(text: str) -> JobRecord | None:
    """Read the first job of `scontrol --oneliner show job`; None where there is none. Pure.

    That of a heterogeneous job begins with its leader.
    """
    return next(iter(read_jobs(text)), None)


def read_jobs(text: str) -> tuple[JobRecord, ...]:
    """Read all jobs of `scontrol --oneliner show job`: several for an array, or a heterogeneous job. Pure."""
    records = (_job(line) for line in _JOB_LINE.findall(_NAME.sub(" UserId=", text)))
    return tuple(record for record in records if record is not None)


def _job(line: str) -> JobRecord | None:
    found = _fields(line)
    if "JobState" not in found:
        return None
    code, _, signal = found.get("ExitCode", "").partition(":")
    output, directory = _OUTPUT.search(line), _WORK_DIRECTORY.search(line)
    array, task = found.get("ArrayJobId", ""), found.get("ArrayTaskId", "")
    return JobRecord(
        job_id=found.get("JobId", ""),
        state=found["JobState"],
        reason=_word(found.get("Reason", "")),
        start=_moment(found.get("StartTime", "")),
        end=_moment(found.get("EndTime", "")),
        time_limit=_duration(found.get("TimeLimit", "")),
        preempt_time=_moment(found.get("PreemptTime", "")),
        requeue=found.get("Requeue") == "1",
        restarts=int(_number(found.get("Restarts", ""), 0)),
        batch=found.get("BatchFlag", "0") != "0",
        partition=_word(found.get("Partition", "")),
        exit_code=int(_number(code, 0)),
        signal=int(_number(signal, 0)),
        output=_word(output[1]) if output else "",
        task=found.get("ArrayTaskId", ""),
        nodes=_word(found.get("NodeList", "")),
        label=f"{array}_{task}" if array and task.isdigit() else found.get("JobId", ""),
        heterogeneous="HetJobId" in found,
        directory=_word(directory[1]) if directory else "",
    )


def read_queue(text: str) -> tuple[JobRecord, ...]:
    """Read what `squeue` prints of several jobs; `label` is the id of each, `12_3` for a task of an array. Pure."""
    found = []
    for line in text.splitlines():
        job, state, start, end, nodes, reason = (*line.strip().split("|", 5), "", "", "", "", "")[:6]
        if state:
            found.append(
                JobRecord(
                    job.partition("_")[0],
                    state,
                    reason=_word(reason),
                    start=_moment(start),
                    end=_moment(end),
                    nodes=_word(nodes),
                    task=job.partition("_")[2],
                    label=job,
                )
            )
    return tuple(found)


def read_accounting(text: str) -> tuple[JobRecord, ...]:
    """Read what `sacct` prints of a job: its state, without the reason. Pure.

    A job that was cancelled is `CANCELLED by 1000` there, and accounting takes 128 off a status from 128 on.
    """
    found = []
    for line in text.splitlines():
        job, state, code = (*line.strip().split("|"), "", "")[:3]
        if state:
            status, _, signal = code.partition(":")
            task = job.partition("_")[2].strip("[]")
            numbers = int(_number(status, 0)), int(_number(signal, 0))
            found.append(
                JobRecord(job, state.split()[0], exit_code=numbers[0], signal=numbers[1], task=task, label=job)
            )
    return tuple(found)


def read_partition(text: str) -> Partition | None:
    """Read `scontrol --oneliner show partition`; None where there is none. Pure."""
    found = _fields(text)
    if "PartitionName" not in found:
        return None
    return Partition(
        name=found["PartitionName"],
        grace_time=_number(found.get("GraceTime", ""), 0),
        preempt_mode=_word(found.get("PreemptMode", "")),
        max_time=_duration(found.get("MaxTime", "")),
    )


def _fields(text: str) -> dict[str, str]:
    """The `Name=value` words of the first line; the first of a name counts.

    A job's name comes early and a user's paths and arguments come late, and all of them may look like fields.
    """
    line = _NAME.sub(" UserId=", text, count=1).lstrip().partition("\n")[0]
    return dict(reversed(_FIELD.findall(line)))


def _word(text: str) -> str:
    """A value, empty where Slurm says that there is none."""
    return "" if text in ("(null)", "N/A", "None") else text


def _number(text: str, otherwise: float) -> float:
    """The number that a value such as `30 sec` begins with."""
    digits = re.match(r"\d+", text)
    return float(digits[0]) if digits else otherwise


def _duration(text: str) -> float | None:
    """Read `1-02:03:04`, `02:03:04`, UNLIMITED or INFINITE; None for anything else."""
    if text in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds


def _moment(text: str) -> float | None:
    """Read `2026-11-22T20:27:38`, in local time; None for Unknown, None, N/A and the like."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None


# --- effects


def ask_rules(patience: float = PATIENCE) -> ClusterRules | None:
    """Ask how this cluster ends jobs; None where it cannot be learnt in `patience` seconds."""
    text = _ask(commands.show_config(), patience)
    return read_rules(text) if text and "KillWait" in text else None


def ask_job(job: str, patience: float = PATIENCE) -> JobRecord | None:
    """Ask for a job, by its `requeue_id`; None where it cannot be learnt."""
    text = _ask(commands.show_job(job), patience)
    return read_job(text) if text else None


def ask_jobs(job: str, patience: float = PATIENCE) -> tuple[JobRecord, ...] | None:
    """Ask for a job, or for all tasks of an array.

    Returns:
        Nothing where the controller says that it knows no such job, as it does some minutes after a job's end
        (MinJobAge); None where it cannot be learnt.
    """
    try:
        done = _run(commands.show_job(job), patience)
    except (subprocess.TimeoutExpired, OSError):
        return None
    if done.returncode == 0:
        return read_jobs(done.stdout)
    return () if _NO_SUCH_JOB in done.stderr else None


def ask_queue(jobs: Sequence[str], patience: float = PATIENCE) -> tuple[JobRecord, ...] | None:
    """Ask how several jobs stand, by one question; those that the controller does not know are left out.

    Returns:
        None where it cannot be learnt.
    """
    try:
        done = _run(commands.show_queue(jobs), patience)
    except (subprocess.TimeoutExpired, OSError):
        return None
    if done.returncode == 0:
        return read_queue(done.stdout)
    return () if _NO_SUCH_JOB in done.stderr else None


def cancel(job: str, patience: float = PATIENCE) -> str:
    """Have a job ended.

    Returns:
        Why that did not succeed, in Slurm's words; empty if it did, and of a job that has ended already.
    """
    try:
        done = _run(commands.cancel(job), patience)
    except subprocess.TimeoutExpired:
        return f"scancel {job} took longer than {patience:g} s"
    except OSError as error:
        return f"cannot run scancel: {error.strerror or error}"
    if done.returncode == 0 or _NO_SUCH_JOB in done.stderr or _OVER_ALREADY in done.stderr:
        return ""
    return "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())


def ask_accounting(job: str, patience: float = PATIENCE) -> tuple[JobRecord, ...]:
    """Ask accounting for a job, or for all tasks of an array; nothing where there is no accounting."""
    text = _ask(commands.show_accounting(job), patience)
    return read_accounting(text) if text else ()


def ask_nodes(partition: str = "", patience: float = PATIENCE) -> tuple[NodeGroup, ...]:
    """Ask what the nodes of a partition are like, or those of all; nothing where it cannot be learnt."""
    text = _ask(commands.show_nodes(partition), patience)
    return read_nodes(text) if text else ()


def ask_partition(name: str, patience: float = PATIENCE) -> Partition | None:
    """Ask for a partition; None where it cannot be learnt."""
    text = _ask(commands.show_partition(name), patience)
    return read_partition(text) if text else None


def ask_allocation(job: str, patience: float = PATIENCE) -> Allocation:
    """Ask for a job in which something is to be started.

    Raises:
        ContextError: where there is none, or it does not run.
    """
    record = ask_job(job, patience)
    if record is None:
        raise ContextError(f"--jobid {job}: Slurm knows no such job, or does not answer: see 'squeue --me'")
    if record.state != "RUNNING" or not record.nodes:
        because = f" ({record.reason})" if record.reason else ""
        raise ContextError(
            f"--jobid {job}: the job is {record.state}{because}, and only in a running one can a step start"
        )
    return Allocation(
        job_id=record.job_id,
        job_label=record.label,
        place=Place.ELSEWHERE,
        hosts=hostlist.expand(record.nodes),
        node_name="",
        submit_directory="",
        restart_count=record.restarts,
        components=2 if record.heterogeneous else 1,
    )


def ask_steps(job: str, patience: float = PATIENCE) -> tuple[RunningStep, ...] | None:
    """Ask for the steps of a job that have not ended; None where they cannot be learnt."""
    try:
        done = _run(commands.show_steps(job), patience)
    except (subprocess.TimeoutExpired, OSError):
        return None
    if done.returncode and _NO_STEPS not in done.stdout + done.stderr:
        return None
    return read_steps(done.stdout)


def ask_gpus(job: str, patience: float = PATIENCE) -> dict[str, int]:
    """Ask how many GPUs a job has on each of its nodes, where a step has to say it (`steps.read_gpus`)."""
    return read_gpus(_ask(commands.show_job_details(job), patience) or "")


def ask_whether_node(host: str, patience: float = PATIENCE) -> bool:
    """Ask whether this host is a node of the cluster; so it is where there is no cluster, or nobody knows.

    slurm.conf tells at once, and without the controller. Nodes that it does not name are asked for by name.
    """
    names = _ask(commands.show_node_names(), patience)
    return names is None or bool(names.strip()) or _ask(commands.show_node(host), patience) is not None


def has_cluster(patience: float = PATIENCE) -> bool:
    """Whether Slurm is set up here: its programs are, and find a configuration. The controller need not answer."""
    return _ask(commands.show_node_names(), patience) is not None


def ask_script(job: str, patience: float = PATIENCE) -> str | None:
    """Ask for a job's batch script; None where it cannot be learnt: there is none, or it is another user's."""
    return _ask(commands.write_batch_script(job), patience)


def requeue(job: str, patience: float = PATIENCE) -> str:
    """Have a job run again, by its `requeue_id`.

    Slurm then ends it: SIGCONT and SIGTERM to everything, and after KillWait SIGKILL. A job that was cancelled a moment
    ago is requeued too, so this is to be asked for only where nobody has cancelled it.

    Returns:
        An empty text where the job is going to run again, by this call or by an earlier one; else why not, in Slurm's
        words.
    """
    try:
        done = _run(commands.requeue(job), patience)
    except subprocess.TimeoutExpired:
        return f"scontrol requeue {job} took longer than {patience:g} s"
    except OSError as error:
        return f"cannot run scontrol: {error.strerror or error}"
    if done.returncode == 0 or _ALREADY_REQUEUED in done.stderr:
        return ""
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return said[-1] if said else f"scontrol requeue {job} ended with status {done.returncode}"


def signal_step(step: str, name: str, patience: float = PATIENCE) -> bool:
    """Send a signal to the tasks of a step, `12.0` for instance; False where that did not succeed in time."""
    return _ask(commands.signal_step(step, name), patience) is not None


def _ask(command: Sequence[str], patience: float) -> str | None:
    try:
        done = _run(command, patience)
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout if done.returncode == 0 else None


def _run(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[str]:
    """Run scontrol or another that asks, so that what it prints can be read: the one place that starts them.

    Where Slurm signals whole process trees (proctrack/linuxproc) it may be hit by the signal that it is asked about;
    then it is asked again.
    """
    done = _once(command, patience)
    return _once(command, patience) if done.returncode < 0 else done


def _once(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[str]:
    # These take options from there, which somebody else has set for other questions.
    others = ("SINFO_", "SACCT_", "SQUEUE_", "SCANCEL_")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return subprocess.run(
        command,
        env={**environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=patience,
        check=False,
    )
