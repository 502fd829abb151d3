"""What is foretold of the end of a job: only what is known, and that in one line each."""

from __future__ import annotations

import dataclasses
import math

import pytest

from hpc_launch.plan import termination_forecast
from hpc_launch.plan.requeue import Policy, policy
from hpc_launch.plan.termination_forecast import Preemption, WarningSignal, notice_of
from hpc_launch.slurm.cluster_rules import ClusterRules, Partition
from hpc_launch.slurm.job import JobRecord
from tests.support import lines_mention, mentions

RULES = ClusterRules(kill_wait=30.0, preempt_type="preempt/partition_prio", preempt_mode="REQUEUE")
JOB = JobRecord("12", "RUNNING", time_limit=3600.0, requeue=True, batch=True, partition="gpu")
GPU = Partition("gpu", preempt_mode="REQUEUE")
NEVER = policy((), 10, 3)
EACH = policy(("on-notice", "on-timeout", "on-preempt", "on-failure"), 10, 3)

# What the lines have.
WINDOW = "KillWait 30 SIGTERM 29"
NO_GRACE = "GraceTime 0 KillWait"


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
    return list(
        termination_forecast.forecast_lines(rules, job, partition, asked, environ or {}, script=script, grace=grace)
    )


def partition(mode: str, grace: float = 0.0) -> Partition:
    return dataclasses.replace(GPU, preempt_mode=mode, grace_time=grace)


def test_nothing_known_is_nothing_said() -> None:
    """A controller that is silent leaves nothing to tell, whatever was asked for."""
    assert told(asked=EACH) == []


def test_the_time_to_end() -> None:
    """The window is that of this cluster, less what the launcher needs to end the workers itself."""
    short = dataclasses.replace(RULES, kill_wait=5.0, preempt_type="")

    assert lines_mention(told(short), "KillWait 5 SIGTERM 4")
    assert told(short, grace=60) == told(short)
    assert lines_mention(told(short, grace=0), "KillWait 5 SIGTERM 0 --grace")


@pytest.mark.parametrize(("mode", "asked", "job", "expected"), [
    ("REQUEUE", NEVER, JOB, Preemption.SLURM_REQUEUES),
    ("GANG,REQUEUE", NEVER, JOB, Preemption.SLURM_REQUEUES),
    ("CANCEL", NEVER, JOB, Preemption.NOT_REQUEUED),
    ("CANCEL", EACH, JOB, Preemption.WE_REQUEUE),
    ("REQUEUE", NEVER, dataclasses.replace(JOB, requeue=False), Preemption.CANNOT_REQUEUE),
    ("CANCEL", NEVER, dataclasses.replace(JOB, batch=False), Preemption.CANNOT_REQUEUE),
])  # fmt: skip
def test_preemption(mode: str, asked: Policy, job: JobRecord, expected: Preemption) -> None:
    """What becomes of a preempted job depends on the partition, on the job and on `--requeue`."""
    assert termination_forecast.preemption(RULES, job, partition(mode), asked) is expected
    assert lines_mention(told(RULES, job, partition(mode), asked=asked), WINDOW, f"PreemptMode={mode}", NO_GRACE)


def test_a_preemption_of_a_job_that_is_not_known() -> None:
    """It ends the job, and nothing is said of what comes after."""
    assert termination_forecast.preemption(RULES, None, GPU, EACH) is Preemption.ENDED
    assert lines_mention(told(RULES, None, GPU, asked=EACH), WINDOW, NO_GRACE)


@pytest.mark.parametrize(("rules", "where", "kind", "expected"), [
    (RULES, partition("OFF"), Preemption.OFF, "PreemptMode=OFF gpu"),
    (RULES, partition("GANG,SUSPEND"), Preemption.SUSPENDED, "PreemptMode=GANG,SUSPEND"),
    (dataclasses.replace(RULES, preempt_type="preempt/none"), GPU, Preemption.NOT_HERE,
     "PreemptType=preempt/none --requeue on-preempt"),
    (dataclasses.replace(RULES, preempt_type="preempt/qos"), GPU, Preemption.UNKNOWN, "PreemptType=preempt/qos"),
])  # fmt: skip
def test_preemption_that_is_none(rules: ClusterRules, where: Partition, kind: Preemption, expected: str) -> None:
    """Not every cluster preempts, nor does every partition say how."""
    assert termination_forecast.preemption(rules, JOB, where, EACH) is kind
    assert lines_mention(told(rules, JOB, where, asked=EACH), WINDOW, expected)


def test_no_preemption_is_no_news() -> None:
    """Where nobody asked for it, a cluster without preemption is not spoken of; nor is a partition not learnt."""
    assert lines_mention(told(dataclasses.replace(RULES, preempt_type="preempt/none"), JOB, GPU), WINDOW)
    assert lines_mention(told(dataclasses.replace(RULES, preempt_type=""), JOB, GPU), WINDOW)
    assert lines_mention(told(RULES, JOB, None), WINDOW)


@pytest.mark.parametrize(("user_signal", "how"), [
    (False, "SIGTERM"),
    (True, "--signal SIGTERM"),
])  # fmt: skip
def test_a_grace_time(how: str, *, user_signal: bool) -> None:
    """With a grace time there is a first signal long before the end."""
    rules = dataclasses.replace(RULES, preempt_user_signal=user_signal)

    line = told(rules, JOB, partition("CANCEL", 120.0))[-1]
    assert mentions(line, "GraceTime 120 KillWait", how)
    assert ("--signal" in line) == user_signal


@pytest.mark.parametrize(("rules", "job", "expected"), [
    (None, dataclasses.replace(JOB, batch=False), "batch --requeue"),
    (None, dataclasses.replace(JOB, requeue=False), "--requeue Requeue=0"),
    (RULES, dataclasses.replace(JOB, requeue=False), "--requeue --no-requeue"),
    (dataclasses.replace(RULES, job_requeue=False), dataclasses.replace(JOB, requeue=False),
     "--requeue JobRequeue=0"),
])  # fmt: skip
def test_jobs_that_cannot_be_requeued(rules: ClusterRules | None, job: JobRecord, expected: str) -> None:
    """A job that Slurm will not requeue is known before it matters, and said where a requeue was asked for."""
    *others, last = told(rules, job, asked=EACH)

    assert mentions(last, expected)
    assert others == told(rules, job)


@pytest.mark.parametrize("rules", [None, RULES, dataclasses.replace(RULES, job_requeue=False)])
def test_a_job_that_can_be_requeued(rules: ClusterRules | None) -> None:
    """A job with --requeue is none of those, whatever the cluster's default."""
    assert told(rules, JOB, asked=EACH) == told(rules, JOB)


@pytest.mark.parametrize(("text", "expected"), [
    ("USR1@120", WarningSignal("USR1@120", "USR1", 120, batch_only=False)),
    ("SIGUSR1@120", WarningSignal("SIGUSR1@120", "USR1", 120, batch_only=False)),
    ("B:usr2", WarningSignal("B:usr2", "USR2", 60, batch_only=True)),
    ("R:10@5", WarningSignal("R:10@5", "10", 5, batch_only=False)),
    ("RB:USR1@5", WarningSignal("RB:USR1@5", "USR1", 5, batch_only=True)),
    ("USR1@soon", None),
    ("", None),
])  # fmt: skip
def test_the_forms_of_signal(text: str, expected: WarningSignal | None) -> None:
    """All forms of sbatch(1) are read."""
    assert expected == notice_of({"SBATCH_SIGNAL": text}, "")
    assert expected == notice_of({}, f"#!/bin/bash\n#SBATCH --nodes=2 --signal={text}\n")


@pytest.mark.parametrize("line", ["#SBATCH --signal USR1@120", "#SBATCH --signal='USR1@120'",
                                  "#SBATCH -N 2 --signal=USR1@120  # in time"])  # fmt: skip
def test_ways_to_write_it(line: str) -> None:
    """The option is found as sbatch finds it."""
    found = notice_of({}, f"#!/bin/bash\n\n# train\n{line}\nsrun hpc-launch train.py\n")

    assert found == WarningSignal("USR1@120", "USR1", 120, batch_only=False)


@pytest.mark.parametrize("script", ["#!/bin/bash\nsrun true\n#SBATCH --signal=USR1@120\n",
                                    "#!/bin/bash\n##SBATCH --signal=USR1@120\n"])  # fmt: skip
def test_what_sbatch_does_not_read(script: str) -> None:
    """A line after the first command, or one commented out, is no option."""
    assert notice_of({}, script) is None


def test_the_variable_wins() -> None:
    """SBATCH_SIGNAL overrides the script, as sbatch(1) has it."""
    found = notice_of({"SBATCH_SIGNAL": "USR2@5"}, "#SBATCH --signal=USR1@120\n")

    assert found == WarningSignal("USR2@5", "USR2", 5, batch_only=False)


@pytest.mark.parametrize(("text", "limit", "expected"), [
    ("B:USR1@120", 3600.0, "--signal=B:USR1@120 B:"),
    ("USR1@120", 3600.0, "--signal=USR1@120 USR1 120 180 3600"),
    ("USR1@120", None, "--signal=USR1@120 USR1 120 180"),
    ("USR1@120", math.inf, "--signal=USR1@120"),
    ("USR1@120", 60.0, "--signal=USR1@120 60"),
])  # fmt: skip
def test_the_notice(text: str, limit: float | None, expected: str) -> None:
    """`--signal` is compared with the time limit that the job has."""
    job = dataclasses.replace(JOB, time_limit=limit)
    (line,) = told(None, job, script=f"#!/bin/bash\n#SBATCH --signal={text}\n")

    assert mentions(line, expected)
    assert [
        number for number in ("180", "3600", "60", "inf") if mentions(line, number) != mentions(expected, number)
    ] == []


def test_a_notice_that_nobody_sends() -> None:
    """`--requeue on-notice` needs a notice; where the script was not learnt, nothing is said of it."""
    assert lines_mention(told(job=JOB, asked=EACH, script="#!/bin/bash\nsrun true\n"), "#SBATCH --signal")
    assert told(job=JOB, asked=EACH) == []
    assert told(job=JOB, script="#!/bin/bash\nsrun true\n") == []
