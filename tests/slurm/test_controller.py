"""The questions to Slurm's controller, and the requeue, on a real one.

They are put from within a job, where hpc-launch puts them; the job's script stands still as long as they need.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Job
from tests.support import lines_mention, wait_for

# Writes down what it was told, a JSON object a line: into a file, because srun may be gone before it. Its arguments are
# what it does then: have the job requeued, or wait for a file (in the first run).
ASK = """
import dataclasses, json, os, pathlib, sys, time
from hpc_launch.slurm import controller
from hpc_launch.slurm.environment import requeue_id, restart_count
from hpc_launch.slurm.job import ending_of

job, count = requeue_id(os.environ), restart_count(os.environ)

def look(said=None):
    record = controller.ask_job(job)
    facts = {"job": dataclasses.asdict(record), "ending": ending_of(record, count).name, "said": said}
    line = json.dumps({"id": job, "count": count, "now": time.time()} | facts)
    with pathlib.Path("told").open("a") as told:
        print(line, file=told)

look()
for word in sys.argv[1:]:
    if word == "requeue":
        refused = controller.requeue(job)
        look(refused.words if refused is not None else "")
    elif count == 0:
        while not pathlib.Path(word).exists():
            time.sleep(0.02)
        look()
"""

RULES = """
import dataclasses, json, os
from hpc_launch.slurm import controller

rules, partition = controller.ask_rules(), controller.ask_partition("urgent")
facts = [dataclasses.asdict(rules), dataclasses.asdict(partition), controller.ask_partition("nowhere")]
print(json.dumps([*facts, controller.ask_job("999999"), controller.ask_script(os.environ["SLURM_JOB_ID"])]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with the scripts."""
    (tmp_path / "ask.py").write_text(textwrap.dedent(ASK))
    (tmp_path / "rules.py").write_text(textwrap.dedent(RULES))
    return tmp_path


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what the script was told so far."""
    file = folder / "told"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def again(cluster: Cluster, job: Job) -> None:
    """Let a job that is requeued begin now, and not when its old credential has expired."""
    wait_for(lambda: job.state() == "PENDING", 30, job.describe)
    # Refused if it has begun by itself meanwhile.
    cluster.run(["scontrol", "update", f"jobid={job.id}", "starttime=now"], check=False)


def test_rules_and_partitions(any_cluster: Cluster, folder: Path, python: str) -> None:
    """The cluster says of itself what its configuration says; what there is not is None."""
    script = f"exec {python} rules.py"
    rules, urgent, nowhere, nobody, text = json.loads(any_cluster.sbatch(script, cwd=folder).wait().output)

    assert rules == {
        "kill_wait": float(any_cluster.config.kill_wait),
        "preempt_type": "preempt/partition_prio",
        "preempt_mode": "REQUEUE",
        "preempt_user_signal": False,
        "job_requeue": True,
        "max_batch_requeue": 5,
        "over_time_limit": 0.0,
        "proctrack": any_cluster.config.proctrack,
        "kill_on_bad_exit": False,
        "slurmd_timeout": 20.0,
        "release": [int(number) for number in any_cluster.config.release.split(".")],
    }
    assert urgent == {"name": "urgent", "grace_time": 0.0, "preempt_mode": "OFF", "max_time": float("inf")}
    assert (nowhere, nobody) == (None, None)
    assert text.splitlines()[-1] == script


def test_a_job_knows_its_end(any_cluster: Cluster, folder: Path, python: str) -> None:
    """Times are epoch seconds, limits are seconds, and both follow `scontrol update`."""
    job = any_cluster.sbatch(f"exec {python} ask.py $PWD/changed", "--time=10", "--no-requeue", cwd=folder)
    wait_for(lambda: told(folder), 30, job.describe)
    any_cluster.run(["scontrol", "update", f"jobid={job.id}", "timelimit=5"])
    (folder / "changed").touch()
    job.wait()
    before, after = told(folder)

    assert before["id"] == before["job"]["job_id"] == job.id
    assert [before["job"][name] for name in ("state", "requeue", "batch", "partition", "time_limit")] == [
        "RUNNING",
        False,
        True,
        "main",
        600.0,
    ]
    assert before["job"]["end"] == before["job"]["start"] + 600
    assert after["job"]["end"] == before["job"]["start"] + 300
    assert before["job"]["start"] <= before["now"] <= before["job"]["start"] + 300
    assert before["ending"] == after["ending"] == "RUNNING"


def test_a_job_that_was_cancelled_knows_it(any_cluster: Cluster, folder: Path, python: str) -> None:
    """A step that outlives the cancellation for a moment is told so."""
    ignoring = f"srun env --ignore-signal=TERM {python} ask.py $PWD/cancelled"
    job = any_cluster.sbatch(ignoring, cwd=folder)
    wait_for(lambda: told(folder), 30, job.describe)
    job.cancel()
    (folder / "cancelled").touch()
    job.wait()

    assert [answer["ending"] for answer in told(folder)] == ["RUNNING", "CANCELLED_OR_OVER"]


def test_a_requeue_by_the_job_itself(any_cluster: Cluster, folder: Path, python: str) -> None:
    """It is accepted once, a second one is no error, and the next run does not take it for its own."""
    script = f"srun env --ignore-signal=TERM {python} ask.py $([ $SLURM_RESTART_COUNT ] || echo requeue requeue)"
    array = any_cluster.sbatch(script, "--array=7", "--open-mode=append", cwd=folder)
    again(any_cluster, array)
    wait_for(lambda: len(told(folder)) == 4, 30, array.describe)

    found = [(answer["count"], answer["said"], answer["ending"], answer["job"]["restarts"]) for answer in told(folder)]
    assert found == [(0, None, "RUNNING", 0), (0, "", "REQUEUED", 1), (0, "", "REQUEUED", 1), (1, None, "RUNNING", 1)]
    assert {answer["id"] for answer in told(folder)} == {f"{array.id}_7"}


def test_a_requeue_that_slurm_refuses(any_cluster: Cluster, folder: Path, python: str) -> None:
    """Slurm's own words say why, and the job goes on."""
    any_cluster.sbatch(f"exec {python} ask.py requeue", "--no-requeue", cwd=folder).wait()
    any_cluster.run(["srun", python, "ask.py", "requeue"], cwd=folder)
    _, forbidden, _, no_batch_job = told(folder)

    assert "Requested operation is presently disabled" in forbidden["said"]
    assert "Only batch jobs are accepted or processed" in no_batch_job["said"]
    assert (forbidden["ending"], no_batch_job["ending"]) == ("RUNNING", "RUNNING")


def test_explain_foretells_the_end(any_cluster: Cluster, folder: Path) -> None:
    """In a job, `explain` says what this cluster will do with it."""
    script = textwrap.dedent("""\
        #!/bin/bash
        #SBATCH --signal=B:USR1@60 --no-requeue
        srun hpc-launch explain --requeue on-preempt
    """)
    result = any_cluster.sbatch(script, cwd=folder).wait()

    wait = any_cluster.config.kill_wait
    assert lines_mention(
        [line for line in result.output.splitlines() if line.startswith("Slurm: ")],
        f"KillWait {wait} SIGTERM {wait - 1}",
        "PreemptMode=REQUEUE",
        "GraceTime 0 KillWait",
        "--requeue --no-requeue sbatch",
        "--signal=B:USR1@60 B:",
    ), result.output
