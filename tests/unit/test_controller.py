"""What Slurm's controller says, read; and what becomes of a question that it does not answer.

The texts are what scontrol of Slurm 22.05.8 printed in tasks of jobs that were ended in all ways, at their SIGTERM.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.slurm import controller
from hpc_launch.slurm.controller import ClusterRules, Ending, JobRecord, Partition

RUNNING = (
    "JobId=9 JobName=train UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=4294901751 Nice=0 Account=physics "
    "QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:01:27 TimeLimit=00:01:00 TimeMin=N/A SubmitTime=2026-11-22T20:27:35 EligibleTime=2026-11-22T20:27:35 "
    "AccrueTime=2026-11-22T20:27:35 StartTime=2026-11-22T20:27:38 EndTime=2026-11-22T20:28:38 Deadline=N/A "
    "PreemptEligibleTime=2026-11-22T20:27:38 PreemptTime=None SuspendTime=None SecsPreSuspend=0 "
    "LastSchedEval=2026-11-22T20:27:38 Scheduler=Main Partition=main AllocNode:Sid=head:13212 ReqNodeList=gpu001 "
    "ExcNodeList=(null) NodeList=gpu001 BatchHost=gpu001 NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 "
    "ReqB:S:C:T=0:0:*:* TRES=cpu=1,node=1,billing=1 Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* MinCPUsNode=1 "
    "MinMemoryNode=0 MinTmpDiskNode=0 Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) "
    "Network=(null) Command=(null) WorkDir=/home/ada StdErr=/home/ada/train.out StdIn=/dev/null "
    "StdOut=/home/ada/train.out Power= \n"
)

CONFIG = """\
Configuration data as of 2026-11-22T20:27:35
AccountingStorageBackupHost = (null)
JobRequeue              = 1
KillOnBadExit           = 0
KillWait                = 6 sec
OverTimeLimit           = 0 min
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
PreemptParameters       = (null)
ProctrackType           = proctrack/cgroup
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%
"""

GRACE = (
    "PartitionName=grace AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A "
    "DefaultTime=00:30:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=8 Hidden=NO MaxNodes=UNLIMITED "
    "MaxTime=1-02:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[001-005] PriorityJobFactor=1 "
    "PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=2 PreemptMode=REQUEUE State=UP TotalCPUs=80 "
    "TotalNodes=5 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED "
    "TRES=cpu=80,mem=20000M,node=5,billing=80,gres/gpu=20\n"
)


def local(clock: str) -> float:
    """Return a moment of the day of the records."""
    return time.mktime(time.strptime(f"2026-11-22 {clock}", "%Y-%m-%d %H:%M:%S"))


def printed(**changes: str | None) -> str:
    """Return the record of the job with other values, or without a field."""
    text = RUNNING
    for name, value in changes.items():
        text, found = re.subn(rf" {name}=\S*", "" if value is None else f" {name}={value}", text, count=1)
        assert found, name
    return text


def over(**changes: str | None) -> str:
    """Return the record of a job that is being ended."""
    return printed(**{"JobState": "COMPLETING", "EndTime": "2026-11-22T20:29:05"} | changes)


NOW = "2026-11-22T20:29:05"
# No preemption is mentioned for a job that waits for its next start, which is why its end is open again.
AGAIN: dict[str, str | None] = {
    "Restarts": "1",
    "StartTime": NOW,
    "EndTime": "Unknown",
    "RunTime": "00:00:00",
    "PreemptEligibleTime": None,
    "PreemptTime": None,
}

# What stands there at the first SIGTERM, by what was done to the job.
AT_TERM = {
    "the time limit": (over(Reason="TimeLimit"), Ending.TIME_LIMIT),
    "scancel": (over(), Ending.CANCELLED),
    "scancel --signal=TERM": (printed(), Ending.RUNNING),
    "scancel --signal=TERM of the step": (printed(EndTime="Unknown", TimeLimit="UNLIMITED"), Ending.RUNNING),
    "preemption, REQUEUE": (over(**AGAIN), Ending.REQUEUED),
    "preemption, REQUEUE, of a job with --no-requeue": (over(PreemptTime=NOW, Requeue="0"), Ending.PREEMPTED),
    "preemption, CANCEL": (over(PreemptTime=NOW), Ending.PREEMPTED),
    "preemption with a grace time": (printed(PreemptTime=NOW, EndTime="2026-11-22T20:29:13"), Ending.PREEMPTED),
    "preemption with a grace time, no limit": (printed(PreemptTime=NOW, EndTime="Unknown"), Ending.PREEMPTED),
    "scontrol requeue": (over(**AGAIN), Ending.REQUEUED),
    "a lost node": (over(**AGAIN), Ending.REQUEUED),
    "the time limit, then a requeue": (
        over(**AGAIN | {"Reason": "TimeLimit", "EndTime": "2026-11-22T20:30:05"}),
        Ending.REQUEUED,
    ),
    "a requeue, complete": (printed(**AGAIN | {"JobState": "PENDING", "Reason": "BeginTime"}), Ending.REQUEUED),
}


@pytest.mark.parametrize("what", AT_TERM)
def test_what_a_sigterm_means(what: str) -> None:
    """The record of the job tells the ways of ending apart."""
    text, expected = AT_TERM[what]

    assert expected is controller.ending(controller.read_job(text), 0)


def test_a_second_run_is_not_its_own_requeue() -> None:
    """Restarts of the past are none of the present."""
    second = controller.read_job(over(Restarts="1", Reason="TimeLimit"))

    assert Ending.TIME_LIMIT is controller.ending(second, 1)
    assert Ending.REQUEUED is controller.ending(second, 0)


def test_nothing_known_means_nothing() -> None:
    """A controller that cannot be asked has not said that all is well."""
    assert Ending.UNKNOWN is controller.ending(None, 0)


def test_a_job() -> None:
    """Every field of a record is read."""
    expected = JobRecord(
        job_id="9",
        state="RUNNING",
        reason="",
        start=local("20:27:38"),
        end=local("20:28:38"),
        time_limit=60.0,
        preempt_time=None,
        requeue=True,
        restarts=0,
        batch=True,
        partition="main",
        output="/home/ada/train.out",
        nodes="gpu001",
        label="9",
        directory="/home/ada",
    )

    assert expected == controller.read_job(RUNNING)


@pytest.mark.parametrize(("text", "seconds"), [
    ("00:01:00", 60.0),
    ("1-02:03:04", 93784.0),
    ("365-00:00:00", 31536000.0),
    ("UNLIMITED", math.inf),
    ("INFINITE", math.inf),
    ("Partition_Limit", None),
    ("N/A", None),
])  # fmt: skip
def test_durations(text: str, seconds: float | None) -> None:
    """Time limits are seconds; what has none is infinite, and what is not said is None."""
    record = controller.read_job(printed(TimeLimit=text))

    assert record is not None
    assert seconds == record.time_limit


@pytest.mark.parametrize("text", ["Unknown", "None", "N/A", "(null)", "Tomorr 10:00", ""])
def test_what_is_no_moment(text: str) -> None:
    """A time that Slurm does not know is None."""
    record = controller.read_job(printed(EndTime=text))

    assert record is not None
    assert record.end is None


def test_names_and_paths_are_not_fields() -> None:
    """Neither a job's name nor its command can pretend to be what Slurm says."""
    text = printed(JobName="lr=1 JobState=FAILED Requeue=0", Command="/run.sh Restarts=7 BatchFlag=0")

    assert controller.read_job(RUNNING) == controller.read_job(text)


def test_the_first_of_several_jobs_counts() -> None:
    """A heterogeneous job is listed with all its components, the leader first."""
    assert controller.read_job(RUNNING) == controller.read_job(RUNNING + printed(JobState="FAILED"))


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

    assert expected == controller.read_rules(CONFIG)


@pytest.mark.parametrize(("old", "new", "changed"), [
    ("= 6 sec", "= 2 sec", {"kill_wait": 5.0}),
    ("= 6 sec", "= 120 sec", {"kill_wait": 120.0}),
    ("= 0 min", "= 2 min", {"over_time_limit": 120.0}),
    ("= 0 min", "= UNLIMITED", {"over_time_limit": math.inf}),
    ("JobRequeue              = 1", "JobRequeue = 0", {"job_requeue": False}),
    ("KillOnBadExit", "MaxBatchRequeue = 9\nKillOnBadExit", {"max_batch_requeue": 9}),
    ("KillOnBadExit           = 0", "KillOnBadExit = 1", {"kill_on_bad_exit": True}),
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
        controller.read_rules(CONFIG),
        **changed,  # type: ignore[arg-type]
    ) == controller.read_rules(CONFIG.replace(old, new))


def test_rules_that_are_not_said_are_slurms_defaults() -> None:
    """slurm.conf(5) says what holds where nothing is written."""
    assert ClusterRules(kill_wait=30.0, job_requeue=True, max_batch_requeue=5) == controller.read_rules("")


def test_a_partition() -> None:
    """A partition says how its jobs are preempted."""
    expected = Partition("grace", grace_time=8.0, preempt_mode="REQUEUE", max_time=93600.0)

    assert expected == controller.read_partition(GRACE)


@pytest.mark.parametrize("text", ["", "Partition nope not found\n", "slurm_load_jobs error: Invalid job id specified"])
def test_no_answer_is_no_record(text: str) -> None:
    """What is not a record is None."""
    assert controller.read_job(text) is None
    assert controller.read_partition(text) is None


@given(st.text())
def test_anything_can_be_read(text: str) -> None:
    """No output of scontrol is an exception."""
    controller.read_rules(text)
    controller.read_job(text)
    controller.read_job(f"JobId=1 JobState=RUNNING Restarts={text} TimeLimit={text} EndTime={text} BatchFlag={text}")
    controller.read_partition(f"PartitionName=main GraceTime={text} MaxTime={text}")


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
    assert expected == controller.requeue_id(environ)


FakeScontrol = Callable[[str], Path]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScontrol:
    """Return a function that puts a shell script in the place of scontrol, and returns where."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(body: str) -> Path:
        path = tmp_path / "scontrol"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return put


def test_questions_are_put_in_a_language_that_can_be_read(scontrol: FakeScontrol, tmp_path: Path) -> None:
    """Users' locales and time formats do not change what is read; the rest of their environment is passed on."""
    scontrol(f'echo "$@ $LC_ALL $SLURM_TIME_FORMAT $HOME" >{tmp_path}/asked; echo "{RUNNING.strip()}"')

    assert controller.read_job(RUNNING) == controller.ask_job("12_3")
    assert f"--oneliner show job 12_3 C standard {os.environ['HOME']}\n" == (tmp_path / "asked").read_text()


def test_all_questions_reach_scontrol(scontrol: FakeScontrol) -> None:
    """Each question is one call with its own words."""
    scontrol(f"""case "$*" in
        "show config") echo "{CONFIG}" ;;
        "--oneliner show partition grace") echo "{GRACE.strip()}" ;;
        "write batch_script 12 -") echo "#!/bin/bash" ;;
        *) exit 1 ;;
    esac""")

    assert controller.read_rules(CONFIG) == controller.ask_rules()
    assert controller.read_partition(GRACE) == controller.ask_partition("grace")
    assert controller.ask_script("12") == "#!/bin/bash\n"
    assert controller.ask_script("13") is None


@pytest.mark.parametrize("body", ["echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
                                  "exec sleep 60", "true", "kill -9 $$"])  # fmt: skip
def test_silence_is_none(scontrol: FakeScontrol, body: str) -> None:
    """A controller that fails, hangs or says nothing is neither an exception nor a default."""
    scontrol(body)

    assert controller.ask_rules(0.5) is None
    assert controller.ask_job("12", 0.5) is None
    assert controller.ask_partition("main", 0.5) is None


def test_without_slurm_there_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no scontrol is installed nothing is known, and a requeue says why not."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert controller.ask_rules() is None
    assert controller.requeue("12") == "cannot run scontrol: No such file or directory"


@pytest.mark.parametrize(("body", "expected"), [
    ("test \"$*\" = 'requeue 12'", ""),
    ("echo 'Job is pending execution for job 12' >&2; exit 1", ""),
    ("echo '19_3: Job is pending execution' >&2; exit 1", ""),
    ("echo 'Requested operation is presently disabled for job 12' >&2; exit 1",
     "Requested operation is presently disabled for job 12"),
    ("echo 'Only batch jobs are accepted or processed for job 12' >&2; exit 1",
     "Only batch jobs are accepted or processed for job 12"),
    ("echo 'Job not heterogeneous job leader for job 12' >&2; exit 1",
     "Job not heterogeneous job leader for job 12"),
    ("exit 3", "scontrol requeue 12 ended with status 3"),
    ("exec sleep 60", "scontrol requeue 12 took longer than 0.5 s"),
])  # fmt: skip
def test_requeues(scontrol: FakeScontrol, body: str, expected: str) -> None:
    """A requeue that is under way already is as good as one; what Slurm refuses is said in its words."""
    scontrol(body)

    assert expected == controller.requeue("12", 0.5)


def test_a_call_that_a_signal_has_hit_is_repeated(scontrol: FakeScontrol, tmp_path: Path) -> None:
    """Where Slurm signals all processes, scontrol may be one of them."""
    scontrol(f"test -e {tmp_path}/hit || {{ touch {tmp_path}/hit; kill -TERM $$; }}")

    assert controller.requeue("12") == ""
    assert (tmp_path / "hit").exists()
