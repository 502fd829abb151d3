"""Ask Slurm's controller about the cluster, the job and its steps, and have it act on them. Nothing else talks to it.

What is asked may stay unanswered (no scontrol in a container, a controller that is busy): then there is None, and
nobody waits for long. What the answers mean is read elsewhere: `job`, `cluster_rules`, `steps`, `inventory`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_launch import hostlist
from hpc_launch.errors import ContextError
from hpc_launch.slurm import commands, nodes
from hpc_launch.slurm.cluster_rules import ClusterRules, Partition, read_partition, read_rules
from hpc_launch.slurm.environment import Allocation, Place, Traced
from hpc_launch.slurm.inventory import NodeGroup, read_nodes
from hpc_launch.slurm.job import JobRecord, read_accounting, read_job, read_jobs, read_own_jobs, read_queue
from hpc_launch.slurm.nodes import NodeRecord
from hpc_launch.slurm.steps import JobGrants, RunningStep, read_grants, read_steps, read_tasks

# How long scontrol may take, in seconds. It answers in some ten milliseconds; a controller at its limit takes longer.
PATIENCE = 10.0

# What Slurm says to a second requeue (ESLURM_JOB_PENDING): what was wanted is under way.
_ALREADY_REQUEUED = "Job is pending execution"

# What it says of a job that it does not know (ESLURM_INVALID_JOB_ID).
_NO_SUCH_JOB = "Invalid job id"

# What it says of a job that has ended (ESLURM_ALREADY_DONE).
_OVER_ALREADY = "already completing or completed"

# What its programs say without an answer of the controller (slurm_errno.c): it is away, busy, or a backup that waits.
_UNANSWERED = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Connection refused",
    "Connection timed out",
    "backup controller in standby",
    "Communication connection failure",
    "Communication shutdown failure",
    "Communication initialization failure",
    "Message receive failure",
    "Message send failure",
    # Of one that is about to end (22.05, a second after SIGTERM).
    "Unexpected message received",
)

# What Slurm says of the steps of a job that has none.
_NO_STEPS = " not found"


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
    return _ask_records(commands.show_job(job), read_jobs, patience)


def ask_queue(jobs: Sequence[str], patience: float = PATIENCE) -> tuple[JobRecord, ...] | None:
    """Ask how several jobs stand, by one question; those that the controller does not know are left out.

    Returns:
        None where it cannot be learnt.
    """
    return _ask_records(commands.show_queue(jobs), read_queue, patience)


def ask_own_jobs(patience: float = PATIENCE) -> tuple[JobRecord, ...]:
    """Ask for this user's jobs, also those that ended a moment ago; nothing where it cannot be learnt."""
    text = _ask(commands.show_own_jobs(os.geteuid()), patience)
    return read_own_jobs(text) if text else ()


def ask_accounting(job: str, patience: float = PATIENCE) -> tuple[JobRecord, ...]:
    """Ask accounting for a job, or for all tasks of an array; nothing where there is no accounting."""
    text = _ask(commands.show_accounting(job), patience)
    return read_accounting(text) if text else ()


def ask_nodes(partition: str = "", patience: float = PATIENCE) -> tuple[NodeGroup, ...]:
    """Ask what the nodes of a partition are like, or those of all; nothing where it cannot be learnt."""
    text = _ask(commands.show_nodes(partition), patience)
    return read_nodes(text) if text else ()


def ask_node_records(names: Sequence[str], patience: float = PATIENCE) -> tuple[NodeRecord, ...] | None:
    """Ask how some nodes stand; those that the controller does not know are left out. None where it does not answer."""
    try:
        done = _run(commands.show_node(",".join(names)), patience)
    except (subprocess.TimeoutExpired, OSError):
        return None
    found = nodes.read_nodes(done.stdout)
    return found if found or done.returncode == 0 else None


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
    done = _answer(commands.show_steps(job), patience)
    if done is None or (done.returncode and _NO_STEPS not in done.stdout + done.stderr):
        return None
    return read_steps(done.stdout)


def ask_size(place: Traced, patience: float = PATIENCE) -> int | None:
    """Ask how many tasks a step has, or on how many nodes the job of a script is; None where it cannot be learnt."""
    if place.of_srun:
        return read_tasks(_ask(commands.show_steps(f"{place.job_id}.{place.step}"), patience) or "")
    record = ask_job(place.job_id, patience)
    return len(hostlist.expand(record.nodes)) if record is not None and record.nodes else None


def ask_grants(job: str, patience: float = PATIENCE) -> JobGrants:
    """Ask what a job has on each of its nodes."""
    return read_grants(_ask(commands.show_job_details(job), patience) or "")


def ask_configured_gpus(node: str, patience: float = PATIENCE) -> int:
    """Ask how many GPUs of a node Slurm has to give; 0 where it has none, or it cannot be learnt."""
    return next((record.gpus for record in ask_node_records([node], patience) or ()), 0)


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


@dataclass(frozen=True)
class FailedRequest:
    """Why Slurm has not done what it was asked to do.

    Attributes:
        words: Slurm's own, or what happened to the question.
        answered: Slurm has refused it; without an answer it may have been done, or not.
    """

    words: str
    answered: bool = True


def cancel(job: str, patience: float = PATIENCE) -> str:
    """Have a job ended.

    Returns:
        Why that did not succeed, in Slurm's words; empty if it did, and of a job that has ended already.
    """
    refusal = _order(commands.cancel(job), patience, done_already=(_NO_SUCH_JOB, _OVER_ALREADY))
    return refusal.words if refusal is not None else ""


def requeue(job: str, patience: float = PATIENCE) -> FailedRequest | None:
    """Have a job run again, by its `requeue_id`.

    Slurm then ends it: SIGCONT and SIGTERM to everything, and after KillWait SIGKILL. A job that was cancelled a moment
    ago is requeued too, so this is to be asked for only where nobody has cancelled it.

    Returns:
        None where the job is going to run again, by this call or by an earlier one; else why not.
    """
    return _order(commands.requeue(job), patience, done_already=(_ALREADY_REQUEUED,))


def signal_step(step: str, name: str, patience: float = PATIENCE) -> bool:
    """Send a signal to the tasks of a step, `12.0` for instance; False where that did not succeed in time."""
    return _ask(commands.signal_step(step, name), patience) is not None


def _ask_records(
    command: Sequence[str], read: Callable[[str], tuple[JobRecord, ...]], patience: float
) -> tuple[JobRecord, ...] | None:
    done = _answer(command, patience)
    if done is None:
        return None
    if done.returncode == 0:
        return read(done.stdout)
    return () if _NO_SUCH_JOB in done.stderr else None


def _ask(command: Sequence[str], patience: float) -> str | None:
    done = _answer(command, patience)
    return done.stdout if done is not None and done.returncode == 0 else None


def _answer(command: Sequence[str], patience: float) -> subprocess.CompletedProcess[str] | None:
    """Ask, and take whatever comes for the answer; None where nothing does."""
    try:
        return _run(command, patience)
    except (subprocess.TimeoutExpired, OSError):
        return None


def _order(command: Sequence[str], patience: float, *, done_already: Sequence[str]) -> FailedRequest | None:
    """Have Slurm do something; returns why it does not, where its words are not those of what is done already."""
    try:
        done = _run(command, patience)
    except subprocess.TimeoutExpired:
        return FailedRequest(f"{commands.quote(command)} took longer than {patience:g} s", answered=False)
    except OSError as error:
        return FailedRequest(f"cannot run {command[0]}: {error.strerror or error}")
    if done.returncode == 0 or any(words in done.stderr for words in done_already):
        return None
    said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
    answered = not any(words in said for words in _UNANSWERED)
    return FailedRequest(said or f"{commands.quote(command)} ended with status {done.returncode}", answered)


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
        # Slurm cuts the numbers of an array's tasks after 64 characters, unless it is told otherwise (scontrol(1)).
        env={**environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=patience,
        check=False,
    )
