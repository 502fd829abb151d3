"""What slurm.conf(5) and a partition say about the end of jobs, as scontrol prints it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, strategies as st

from hpc_launch.slurm.cluster_rules import ClusterRules, Partition, read_partition, read_rules
from tests.unit.slurm_answers import CONFIG, GRACE


def test_the_rules() -> None:
    """The configuration is read as scontrol writes it."""
    expected = ClusterRules(
        kill_wait=6.0,
        preempt_type="preempt/partition_prio",
        preempt_mode="REQUEUE",
        preempt_user_signal=False,
        job_requeue=True,
        max_batch_requeue=5,
        over_time_limit=0.0,
        proctrack="cgroup",
        release=(22, 5),
    )

    assert expected == read_rules(CONFIG)


@pytest.mark.parametrize(("old", "new", "changed"), [
    ("= 6 sec", "= 2 sec", {"kill_wait": 5.0}),
    ("= 6 sec", "= 120 sec", {"kill_wait": 120.0}),
    ("= 0 min", "= 2 min", {"over_time_limit": 120.0}),
    ("= 0 min", "= UNLIMITED", {"over_time_limit": math.inf}),
    ("JobRequeue              = 1", "JobRequeue = 0", {"job_requeue": False}),
    ("KillOnBadExit", "MaxBatchRequeue = 9\nKillOnBadExit", {"max_batch_requeue": 9}),
    ("KillOnBadExit           = 0", "KillOnBadExit = 1", {"kill_on_bad_exit": True}),
    ("KillOnBadExit", "SlurmdTimeout = 20 sec\nKillOnBadExit", {"slurmd_timeout": 20.0}),
    ("KillOnBadExit", "SlurmdTimeout = 0 sec\nKillOnBadExit", {"slurmd_timeout": math.inf}),
    ("= 22.05.8", "= 24.11.5", {"release": (24, 11)}),
    ("= 22.05.8", "= unknown", {"release": None}),
    ("PreemptParameters       = (null)", "PreemptParameters = send_user_signal", {"preempt_user_signal": True}),
    ("SlurmctldParameters     = (null)", "SlurmctldParameters = preempt_send_user_signal",
     {"preempt_user_signal": True}),
    ("PreemptMode             = REQUEUE", "PreemptMode = GANG,SUSPEND", {"preempt_mode": "GANG,SUSPEND"}),
    ("PreemptType             = preempt/partition_prio", "PreemptType = (null)", {"preempt_type": ""}),
])  # fmt: skip
def test_other_rules(old: str, new: str, changed: dict[str, object]) -> None:
    """Other clusters have other rules, and slurmd never waits less than 5 s."""
    assert old in CONFIG

    assert dataclasses.replace(
        read_rules(CONFIG),
        **changed,  # type: ignore[arg-type]
    ) == read_rules(CONFIG.replace(old, new))


def test_rules_that_are_not_said_are_slurms_defaults() -> None:
    """slurm.conf(5) says what holds where nothing is written."""
    assert ClusterRules(kill_wait=30.0, job_requeue=True, max_batch_requeue=5) == read_rules("")


def test_a_partition() -> None:
    """A partition says how its jobs are preempted."""
    expected = Partition("grace", grace_time=8.0, preempt_mode="REQUEUE", max_time=93600.0)

    assert expected == read_partition(GRACE)


@pytest.mark.parametrize("text", ["", "Partition nope not found\n"])
def test_no_answer_is_no_partition(text: str) -> None:
    """What is not a partition is None."""
    assert read_partition(text) is None


@given(st.text())
def test_anything_can_be_read(text: str) -> None:
    """No output of scontrol is an exception."""
    read_rules(text)
    read_partition(text)
    read_partition(f"PartitionName=main GraceTime={text} MaxTime={text}")
