"""By what rules a cluster and its partitions end jobs, as scontrol(1) tells them. Pure.

Durations are seconds, and `math.inf` is what Slurm calls UNLIMITED. The forms are those from Slurm 20.11 on.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hpc_launch.slurm.output_fields import fields, leading_number, word
from hpc_launch.slurm.slurm_times import read_time_limit

# slurmd waits at least so long between SIGTERM and SIGKILL, whatever KillWait is (slurmd/req.c).
_SHORTEST_KILL_WAIT = 5.0
_DEFAULT_KILL_WAIT = 30.0
_DEFAULT_SLURMD_TIMEOUT = 300.0

# Before 23.02, where it is no parameter, and its default since then (slurm.conf(5)).
_DEFAULT_MAX_BATCH_REQUEUE = 5

_SETTING = re.compile(r"^(\w+)\s*=[ \t]*(.*?)\s*$", re.MULTILINE)


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
        slurmd_timeout: seconds after which a node that does not answer is down; infinite where it never is.
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
    slurmd_timeout: float = _DEFAULT_SLURMD_TIMEOUT
    kill_on_bad_exit: bool = False
    release: tuple[int, int] | None = None


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


def read_rules(text: str) -> ClusterRules:
    """Read `scontrol show config`; what is not there has Slurm's default."""
    found = dict(_SETTING.findall(text))
    wait = leading_number(found.get("KillWait", ""), _DEFAULT_KILL_WAIT)
    over = found.get("OverTimeLimit", "")
    # Where it is written depends on the release: SlurmctldParameters until 22.05, PreemptParameters since.
    options = f"{found.get('PreemptParameters')},{found.get('SlurmctldParameters')}"
    release = re.match(r"(\d+)\.(\d+)", found.get("SLURM_VERSION", ""))
    return ClusterRules(
        kill_wait=max(wait, _SHORTEST_KILL_WAIT),
        preempt_type=word(found.get("PreemptType", "")),
        preempt_mode=word(found.get("PreemptMode", "")),
        preempt_user_signal="send_user_signal" in options,
        job_requeue=leading_number(found.get("JobRequeue", ""), 1) != 0,
        max_batch_requeue=int(leading_number(found.get("MaxBatchRequeue", ""), _DEFAULT_MAX_BATCH_REQUEUE)),
        over_time_limit=math.inf if over == "UNLIMITED" else 60 * leading_number(over, 0),
        proctrack=found.get("ProctrackType", "").removeprefix("proctrack/"),
        slurmd_timeout=leading_number(found.get("SlurmdTimeout", ""), _DEFAULT_SLURMD_TIMEOUT) or math.inf,
        kill_on_bad_exit=leading_number(found.get("KillOnBadExit", ""), 0) != 0,
        release=(int(release[1]), int(release[2])) if release else None,
    )


def read_partition(text: str) -> Partition | None:
    """Read `scontrol --oneliner show partition`; None where there is none."""
    found = fields(text.lstrip().partition("\n")[0])
    if "PartitionName" not in found:
        return None
    return Partition(
        name=found["PartitionName"],
        grace_time=leading_number(found.get("GraceTime", ""), 0),
        preempt_mode=word(found.get("PreemptMode", "")),
        max_time=read_time_limit(found.get("MaxTime", "")),
    )
