"""What is foretold of the end of a job: only what is known, and that in one line each."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hpc_launch.plan import foretell
from hpc_launch.plan.foretell import Notice, notice_of
from hpc_launch.plan.requeue import Policy, policy
from hpc_launch.slurm.job import JobRecord
from hpc_launch.slurm.rules import ClusterRules, Partition

RULES = ClusterRules(kill_wait=30.0, preempt_type="preempt/partition_prio", preempt_mode="REQUEUE")
JOB = JobRecord("12", "RUNNING", time_limit=3600.0, requeue=True, batch=True, partition="gpu")
GPU = Partition("gpu", preempt_mode="REQUEUE")
NEVER = policy((), 10, 3)
EACH = policy(("on-notice", "on-timeout", "on-preempt", "on-failure"), 10, 3)

WINDOW = "KillWait 30 s: after SIGTERM (time limit, scancel, preemption) workers have 29 s"
NO_GRACE = "GraceTime 0 s: a preemption leaves no more than KillWait"


def told(
    rules: ClusterRules | None = None,
    job: JobRecord | None = None,
    partition: Partition | None = None,
    *,
    asked: Policy = NEVER,
    script: str | None = None,
    grace: float | None = None,
    environ: dict[str, str] | None = None,
) -> list[str]:
    return list(foretell.lines(rules, job, partition, asked, environ or {}, script=script, grace=grace))


def partition(mode: str, grace: float = 0.0) -> Partition:
    return dataclasses.replace(GPU, preempt_mode=mode, grace_time=grace)


def test_nothing_known_is_nothing_said() -> None:
    """A controller that is silent leaves nothing to tell, whatever was asked for."""
    assert told(asked=EACH) == []


def test_the_time_to_end() -> None:
    """The window is that of this cluster, less what the launcher needs to end the workers itself."""
    short = dataclasses.replace(RULES, kill_wait=5.0, preempt_type="")

    assert told(short) == ["KillWait 5 s: after SIGTERM (time limit, scancel, preemption) workers have 4 s"]
    assert told(short, grace=60) == told(short)
    assert told(short, grace=0) == [
        "KillWait 5 s: after SIGTERM (time limit, scancel, preemption) workers have 0 s, as --grace says"
    ]


@pytest.mark.parametrize(("mode", "asked", "job", "expected"), [
    ("REQUEUE", NEVER, JOB,
     "PreemptMode=REQUEUE: Slurm itself requeues the job when it is preempted, whatever --requeue says"),
    ("GANG,REQUEUE", NEVER, JOB,
     "PreemptMode=GANG,REQUEUE: Slurm itself requeues the job when it is preempted, whatever --requeue says"),
    ("CANCEL", NEVER, JOB,
     "PreemptMode=CANCEL: a preempted job is over: --requeue on-preempt has it run again"),
    ("CANCEL", EACH, JOB,
     "PreemptMode=CANCEL: Slurm does not requeue a preempted job, --requeue on-preempt does it after SIGTERM"),
    ("REQUEUE", NEVER, dataclasses.replace(JOB, requeue=False),
     "PreemptMode=REQUEUE: a preempted job is over: this one cannot be requeued"),
    ("CANCEL", NEVER, dataclasses.replace(JOB, batch=False),
     "PreemptMode=CANCEL: a preempted job is over: this one cannot be requeued"),
])  # fmt: skip
def test_preemption(mode: str, asked: Policy, job: JobRecord, expected: str) -> None:
    """What becomes of a preempted job depends on the partition, on the job and on `--requeue`."""
    assert [WINDOW, expected, NO_GRACE] == told(RULES, job, partition(mode), asked=asked)


@pytest.mark.parametrize(("rules", "where", "expected"), [
    (RULES, partition("OFF"), "PreemptMode=OFF: jobs of partition gpu are not preempted"),
    (RULES, partition("GANG,SUSPEND"),
     "PreemptMode=GANG,SUSPEND: a preempted job is stopped and goes on later, without a signal before"),
    (dataclasses.replace(RULES, preempt_type="preempt/none"), GPU,
     "PreemptType=preempt/none: no job is preempted on this cluster, --requeue on-preempt will do nothing"),
    (dataclasses.replace(RULES, preempt_type="preempt/qos"), GPU,
     "PreemptType=preempt/qos: what a preemption does to this job is not the partition's to say"),
])  # fmt: skip
def test_preemption_that_is_none(rules: ClusterRules, where: Partition, expected: str) -> None:
    """Not every cluster preempts, nor does every partition say how."""
    assert [WINDOW, expected] == told(rules, JOB, where, asked=EACH)


def test_no_preemption_is_no_news() -> None:
    """Where nobody asked for it, a cluster without preemption is not spoken of; nor is a partition not learnt."""
    assert told(dataclasses.replace(RULES, preempt_type="preempt/none"), JOB, GPU) == [WINDOW]
    assert told(dataclasses.replace(RULES, preempt_type=""), JOB, GPU) == [WINDOW]
    assert told(RULES, JOB, None) == [WINDOW]


@pytest.mark.parametrize(("user_signal", "how"), [
    (False, "SIGTERM"),
    (True, "the signal of --signal, or SIGTERM without one,"),
])  # fmt: skip
def test_a_grace_time(how: str, *, user_signal: bool) -> None:
    """With a grace time there is a first signal long before the end."""
    rules = dataclasses.replace(RULES, preempt_user_signal=user_signal)

    expected = f"GraceTime 120 s: a preemption begins with {how} and leaves at least so long; then comes SIGTERM and "
    assert f"{expected}KillWait" == told(rules, JOB, partition("CANCEL", 120.0))[-1]


@pytest.mark.parametrize(("rules", "job", "expected"), [
    (None, dataclasses.replace(JOB, batch=False),
     "not a batch job: Slurm cannot requeue it, --requeue will do nothing"),
    (None, dataclasses.replace(JOB, requeue=False),
     "--requeue: Slurm will refuse it, the job has Requeue=0: submit with sbatch --requeue"),
    (RULES, dataclasses.replace(JOB, requeue=False),
     "--requeue: Slurm will refuse it, the job was submitted with --no-requeue: submit with sbatch --requeue"),
    (dataclasses.replace(RULES, job_requeue=False), dataclasses.replace(JOB, requeue=False),
     "--requeue: Slurm will refuse it, JobRequeue=0 on this cluster: submit with sbatch --requeue"),
])  # fmt: skip
def test_jobs_that_cannot_be_requeued(rules: ClusterRules | None, job: JobRecord, expected: str) -> None:
    """A job that Slurm will not requeue is known before it matters, and said where a requeue was asked for."""
    assert expected == told(rules, job, asked=EACH)[-1]
    assert expected not in told(rules, job)


@pytest.mark.parametrize("rules", [None, RULES, dataclasses.replace(RULES, job_requeue=False)])
def test_a_job_that_can_be_requeued(rules: ClusterRules | None) -> None:
    """A job with --requeue is none of those, whatever the cluster's default."""
    assert not any("refuse" in line or "batch job" in line for line in told(rules, JOB, asked=EACH))


@pytest.mark.parametrize(("text", "expected"), [
    ("USR1@120", Notice("USR1@120", "USR1", 120, batch_only=False)),
    ("SIGUSR1@120", Notice("SIGUSR1@120", "USR1", 120, batch_only=False)),
    ("B:usr2", Notice("B:usr2", "USR2", 60, batch_only=True)),
    ("R:10@5", Notice("R:10@5", "10", 5, batch_only=False)),
    ("RB:USR1@5", Notice("RB:USR1@5", "USR1", 5, batch_only=True)),
    ("USR1@soon", None),
    ("", None),
])  # fmt: skip
def test_the_forms_of_signal(text: str, expected: Notice | None) -> None:
    """All forms of sbatch(1) are read."""
    assert expected == notice_of({"SBATCH_SIGNAL": text}, "")
    assert expected == notice_of({}, f"#!/bin/bash\n#SBATCH --nodes=2 --signal={text}\n")


@pytest.mark.parametrize("line", ["#SBATCH --signal USR1@120", "#SBATCH --signal='USR1@120'",
                                  "#SBATCH -N 2 --signal=USR1@120  # in time"])  # fmt: skip
def test_ways_to_write_it(line: str) -> None:
    """The option is found as sbatch finds it."""
    found = notice_of({}, f"#!/bin/bash\n\n# train\n{line}\nsrun hpc-launch train.py\n")

    assert found == Notice("USR1@120", "USR1", 120, batch_only=False)


@pytest.mark.parametrize("script", ["#!/bin/bash\nsrun true\n#SBATCH --signal=USR1@120\n",
                                    "#!/bin/bash\n##SBATCH --signal=USR1@120\n"])  # fmt: skip
def test_what_sbatch_does_not_read(script: str) -> None:
    """A line after the first command, or one commented out, is no option."""
    assert notice_of({}, script) is None


def test_the_variable_wins() -> None:
    """SBATCH_SIGNAL overrides the script, as sbatch(1) has it."""
    found = notice_of({"SBATCH_SIGNAL": "USR2@5"}, "#SBATCH --signal=USR1@120\n")

    assert found == Notice("USR2@5", "USR2", 5, batch_only=False)


@pytest.mark.parametrize(("text", "limit", "expected"), [
    ("B:USR1@120", 3600.0, "`--signal=B:USR1@120` reaches only the shell: leave out B:"),
    ("USR1@120", 3600.0,
     "`--signal=USR1@120`: workers get USR1 120 to 180 s before the time limit of 3600 s"),
    ("USR1@120", None, "`--signal=USR1@120`: workers get USR1 120 to 180 s before the time limit"),
    ("USR1@120", math.inf, "`--signal=USR1@120` is never sent: the job has no time limit"),
    ("USR1@120", 60.0, "`--signal=USR1@120` is sent as soon as the job begins: its time limit is 60 s"),
])  # fmt: skip
def test_the_notice(text: str, limit: float | None, expected: str) -> None:
    """`--signal` is compared with the time limit that the job has."""
    job = dataclasses.replace(JOB, time_limit=limit)

    assert [expected] == told(None, job, script=f"#!/bin/bash\n#SBATCH --signal={text}\n")


def test_a_notice_that_nobody_sends() -> None:
    """`--requeue on-notice` needs a notice; where the script was not learnt, nothing is said of it."""
    missing = "no #SBATCH --signal in the batch script: unless sbatch was given one, nothing announces the time limit"

    assert [missing] == told(job=JOB, asked=EACH, script="#!/bin/bash\nsrun true\n")
    assert told(job=JOB, asked=EACH) == []
    assert told(job=JOB, script="#!/bin/bash\nsrun true\n") == []
