"""Foretell how Slurm is going to end this job, and what will be left of it then: a line for each thing known. Pure."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from hpc_launch.plan.requeue import Policy
from hpc_launch.slurm import directives
from hpc_launch.slurm.cluster_rules import ClusterRules, Partition
from hpc_launch.slurm.job import JobRecord

# Seconds before Slurm's SIGKILL in which the launcher ends what is left itself, and can still say so.
MARGIN = 1.0

# Slurm looks at time limits now and then, so that the signal may come so much earlier (sbatch(1), --signal).
_SIGNAL_SPREAD = 60

_SIGNAL = re.compile(r"(?P<flags>(?:[RB]+:)*)(?:SIG)?(?P<name>\w+)(?:@(?P<lead>\d+))?")
_DEFAULT_LEAD = 60


@dataclass(frozen=True)
class WarningSignal:
    """The signal that a job has asked for before its time limit (`sbatch --signal`).

    Attributes:
        text: as it was written.
        signal: its name without SIG, or its number.
        lead: how many seconds before the limit.
        batch_only: whether only the batch script gets it.
    """

    text: str
    signal: str
    lead: int
    batch_only: bool


class Preemption(Enum):
    """What a preemption does to the job; the value is the line that says so, empty where nothing is to be said."""

    NOT_HERE = "PreemptType={type}: no job is preempted on this cluster, --requeue on-preempt will do nothing"
    UNKNOWN = "PreemptType={type}: what a preemption does to this job is not the partition's to say"
    OFF = "PreemptMode=OFF: jobs of partition {partition} are not preempted"
    SUSPENDED = "PreemptMode={mode}: a preempted job is stopped and goes on later, without a signal before"
    ENDED = ""  # and whether it is requeued is not known, as the job is not
    CANNOT_REQUEUE = "PreemptMode={mode}: a preempted job is over: this one cannot be requeued"
    SLURM_REQUEUES = "PreemptMode={mode}: Slurm itself requeues the job when it is preempted, whatever --requeue says"
    WE_REQUEUE = (
        "PreemptMode={mode}: Slurm does not requeue a preempted job, --requeue on-preempt does it after SIGTERM"
    )
    NOT_REQUEUED = "PreemptMode={mode}: a preempted job is over: --requeue on-preempt has it run again"


# Those that begin with the end of the workers.
_ENDED = frozenset(
    {
        Preemption.ENDED,
        Preemption.CANNOT_REQUEUE,
        Preemption.SLURM_REQUEUES,
        Preemption.WE_REQUEUE,
        Preemption.NOT_REQUEUED,
    }
)


def notice_of(environ: Mapping[str, str], script: str) -> WarningSignal | None:
    """Find what is known of `--signal`; None where nothing is, which is not that there is none.

    Slurm 22.05 shows it nowhere (not in `scontrol show job --details`, in no variable), so it is looked for where it
    may have been said: in the SBATCH_SIGNAL that sbatch passed on with its environment, which wins, and in the
    `#SBATCH` lines of the script. One on sbatch's command line stays unknown.
    """
    return read_signal(environ.get("SBATCH_SIGNAL") or _options(script).get("signal", ""))


def read_signal(text: str) -> WarningSignal | None:
    """Read the value of `--signal` (sbatch(1)): `[{R|B}:]SIGNAL[@SECONDS]`; None where it is none."""
    match = _SIGNAL.fullmatch(text)
    if match is None:
        return None
    return WarningSignal(match[0], match["name"].upper(), int(match["lead"] or _DEFAULT_LEAD), "B" in match["flags"])


def _options(script: str) -> dict[str, str]:
    """The options of a script, without those of lines that cannot be read."""
    lines = script.splitlines()
    found: dict[str, str] = {}
    for line in lines[: directives.end_of_head(lines)]:
        with contextlib.suppress(ValueError):
            found |= directives.read(line)
    return found


def forecast_lines(
    rules: ClusterRules | None,
    job: JobRecord | None,
    partition: Partition | None,
    policy: Policy,
    environ: Mapping[str, str],
    *,
    script: str | None = None,
    grace: float | None = None,
) -> tuple[str, ...]:
    """Say what is known of the ways in which Slurm may end this job; what was not learnt is None, and not said.

    Args:
        rules: those of the cluster.
        job: this job.
        partition: that of the job.
        policy: when the job is to run again.
        environ: the environment.
        script: the job's batch script.
        grace: seconds that the workers are to have at most (`--grace`).
    """
    return (
        *_window(rules, grace),
        *_preemption(rules, job, partition, policy),
        *_requeue(rules, job, policy),
        *_notice(job, policy, notice_of(environ, script or ""), script),
    )


def _window(rules: ClusterRules | None, grace: float | None) -> Iterator[str]:
    if rules is None:
        return
    left = rules.kill_wait - MARGIN
    shorter = grace is not None and grace < left
    have = f"{grace:g} s, as --grace says" if shorter else f"{left:g} s"
    yield f"KillWait {rules.kill_wait:g} s: after SIGTERM (time limit, scancel, preemption) workers have {have}"


def preemption(
    rules: ClusterRules | None, job: JobRecord | None, partition: Partition | None, policy: Policy
) -> Preemption | None:
    """Decide what a preemption does to the job, as observed with Slurm 22.05; None where that is not known."""
    if rules is None or not rules.preempt_type:
        return None
    if rules.preempt_type != "preempt/partition_prio":
        return Preemption.NOT_HERE if rules.preempt_type == "preempt/none" else Preemption.UNKNOWN
    if partition is None:
        return None
    mode = partition.preempt_mode
    if mode == "OFF":
        return Preemption.OFF
    return Preemption.SUSPENDED if "SUSPEND" in mode or mode == "GANG" else _ended(mode, job, policy)


def _ended(mode: str, job: JobRecord | None, policy: Policy) -> Preemption:
    """What comes after the end of a job that loses its nodes."""
    if job is None:
        return Preemption.ENDED
    if not (job.batch and job.requeue):
        return Preemption.CANNOT_REQUEUE
    if "REQUEUE" in mode:
        return Preemption.SLURM_REQUEUES
    return Preemption.WE_REQUEUE if "preempt" in policy.on else Preemption.NOT_REQUEUED


def _preemption(
    rules: ClusterRules | None, job: JobRecord | None, partition: Partition | None, policy: Policy
) -> Iterator[str]:
    found = preemption(rules, job, partition, policy)
    if found is None or rules is None or (found is Preemption.NOT_HERE and "preempt" not in policy.on):
        return
    name, mode = (partition.name, partition.preempt_mode) if partition is not None else ("", "")
    if found.value:
        yield found.value.format(type=rules.preempt_type, mode=mode, partition=name)
    if partition is not None and found in _ENDED:
        yield _grace(rules, partition)


def _grace(rules: ClusterRules, partition: Partition) -> str:
    if partition.grace_time <= 0:
        return "GraceTime 0 s: a preemption leaves no more than KillWait"
    how = "the signal of --signal, or SIGTERM without one," if rules.preempt_user_signal else "SIGTERM"
    return (
        f"GraceTime {partition.grace_time:g} s: a preemption begins with {how} and leaves at least so long; then "
        f"comes SIGTERM and KillWait"
    )


def _requeue(rules: ClusterRules | None, job: JobRecord | None, policy: Policy) -> Iterator[str]:
    if job is None or not policy.on or (job.batch and job.requeue):
        return
    if not job.batch:
        yield "not a batch job: Slurm cannot requeue it, --requeue will do nothing"
        return
    if rules is None:
        why = "the job has Requeue=0"
    else:
        why = "the job was submitted with --no-requeue" if rules.job_requeue else "JobRequeue=0 on this cluster"
    yield f"--requeue: Slurm will refuse it, {why}: submit with sbatch --requeue"


def _notice(job: JobRecord | None, policy: Policy, notice: WarningSignal | None, script: str | None) -> Iterator[str]:
    if notice is None:
        if script and "notice" in policy.on:
            yield (
                "no #SBATCH --signal in the batch script: unless sbatch was given one, nothing announces the time limit"
            )
        return
    said = f"`--signal={notice.text}`"
    if notice.batch_only:
        yield f"{said} reaches only the shell: leave out B:"
    elif job is None or job.time_limit is None:
        yield f"{said}: workers get {notice.signal} {_lead(notice)} before the time limit"
    elif math.isinf(job.time_limit):
        yield f"{said} is never sent: the job has no time limit"
    elif notice.lead >= job.time_limit:
        yield f"{said} is sent as soon as the job begins: its time limit is {job.time_limit:g} s"
    else:
        yield f"{said}: workers get {notice.signal} {_lead(notice)} before the time limit of {job.time_limit:g} s"


def _lead(notice: WarningSignal) -> str:
    return f"{notice.lead} to {notice.lead + _SIGNAL_SPREAD} s"
