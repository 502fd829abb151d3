"""`hpc-launch status` of a sweep: of a job array, and of several runs of one batch script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import DEADLINE, submit
from tests.slurm.submit_support import call
from tests.support import LEAVE, lines_mention, mentions, wait_for

# Trains a model that is a number, in the place that it is given: every point has a checkpoint of its own.
TRAIN = f"""
import os, pathlib, sys, time
from hpc_launch import runtime

lr, folder = sys.argv[sys.argv.index("--lr") + 1], pathlib.Path(sys.argv[1].removeprefix("in="))
runtime.mark_progress(int(lr), 10, loss=0.5)
folder.mkdir(parents=True, exist_ok=True)
(folder / f"last-{{lr}}.pt").write_text(lr)
while lr == "2" and not pathlib.Path("go").exists():
    time.sleep(0.05)
if lr == "1":
    raise ValueError("loss is nan")
sys.stderr.flush()
{LEAVE}
"""

EXAMPLE = Path(__file__).parents[2] / "examples/digits/train.py"

HPC_LAUNCH = (sys.executable, "-m", "hpc_launch")


def status(cluster: Cluster, folder: Path, *words: str) -> dict[str, Any]:
    """Return what `status --json` says, asked on the head."""
    found: dict[str, Any] = json.loads(cluster.run([*HPC_LAUNCH, "status", "--json", *words], cwd=folder).stdout)
    return found


def states(found: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Return name, state and Slurm's state of each point."""
    return [(one["point"].partition("_")[2], one["state"], one["slurm"]["state"]) for one in found["points"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with a script, and a space in its name."""
    place = tmp_path / "my work"
    place.mkdir()
    (place / "train.py").write_text(TRAIN)
    return place


def test_the_points_of_a_sweep_from_submission_to_end(any_cluster: Cluster, folder: Path) -> None:
    """Waiting, running, done and failed points, with arguments, results, progress and files, in text and JSON."""
    cluster = any_cluster
    small = ["--template=single_node", "--gpus-per-node=1", "--cpus-per-task=2", "--mem=300M", "--time=30"]
    done = call(
        cluster, folder, *small, "--hold", "--parsable", "--sweep=lr=0,1,2,3", "--array=%3", "train.py", "in=points"
    )
    assert done.returncode == 0, done.stderr
    array = done.stdout.strip()

    held = status(cluster, folder, array)
    assert states(held) == [(str(number), "waiting", "PENDING") for number in range(4)]
    assert [one["arguments"] for one in held["points"]] == [["--lr", str(number)] for number in range(4)]
    cluster.run(["scontrol", "release", *(f"{array}_{number}" for number in range(3))])
    expected = [
        ("0", "done", "COMPLETED"),
        ("1", "failed", "FAILED"),
        ("2", "running", "RUNNING"),
        ("3", "waiting", "PENDING"),
    ]
    found = wait_for(
        lambda: seen if states(seen := status(cluster, folder, array)) == expected else None,
        DEADLINE,
        lambda: json.dumps(status(cluster, folder, array)),
    )
    assert found is not None
    _, failed, running, _ = found["points"]
    assert (found["over"], failed["exit_status"], failed["task"]) == (False, 1, 1)
    assert mentions(failed["failure"]["cause"], "ValueError")
    assert (running["progress"]["step"], running["progress"]["values"]) == (2, {"loss": 0.5})
    assert running["directory"] == str(folder / f"logs/{array}_2.0")
    assert running["output"] == str(folder / f"train-{array}_2.out")
    text = cluster.run([*HPC_LAUNCH, "status"], cwd=folder).stdout.splitlines()
    assert lines_mention(
        text[-4:],
        f"{array}_0 --lr 0 COMPLETED done {array}_0.0 train-{array}_0.out",
        f"{array}_1 --lr 1 FAILED failed ValueError: {array}_1.0 train-{array}_1.out",
        f"{array}_2 --lr 2 RUNNING running 2 10 loss 0.5 {array}_2.0 train-{array}_2.out",
        f"{array}_3 --lr 3 PENDING waiting JobHeldUser",
    )

    (folder / "go").touch()
    cluster.run(["scontrol", "release", f"{array}_3"])
    watched = cluster.run(
        [*HPC_LAUNCH, "status", array, "--watch", "--json", "--interval=0.5"], cwd=folder, timeout=DEADLINE
    ).stdout
    last = json.loads("{" + watched.rpartition("\n{")[2] if "\n{" in watched else watched)

    assert [state for _, state, _ in states(last)] == ["done", "failed", "done", "done"]
    assert (last["over"], last["exit_status"]) == (True, 1)
    assert sorted(path.name for path in (folder / "points").iterdir()) == [f"last-{lr}.pt" for lr in range(4)]


def test_points_of_the_example_keep_their_checkpoints_apart(some_cluster: Cluster, tmp_path: Path) -> None:
    """They run in one working directory; one that is run again by another job goes on from its own."""
    small = ["--template=single_node", "--gpus-per-node=1", "--cpus-per-task=2", "--mem=1G", "--time=30"]
    sweep = ["--parsable", "--sweep=lr=0.02,0.1", "--sweep=seed=1,2"]
    script = [str(EXAMPLE), "--min-accuracy=0", "--epochs"]
    arrays = []
    for options, epochs in ([], "1"), (["--array=2"], "2"):
        done = call(some_cluster, tmp_path, *small, *sweep, *options, "--wait", *script, epochs)
        assert done.returncode == 0, done.stderr
        arrays.append(done.stdout.strip())
    said = {path.name: path.read_text() for path in tmp_path.glob("*.out")}
    points = [f"lr={lr},seed={seed}" for lr in ("0.02", "0.1") for seed in (1, 2)]

    assert sorted(str(path.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("*.pt")) == [
        f"{point}/digits.pt" for point in points
    ]
    # Point 2 of the second array alone finds a checkpoint: the one of point 2 of the first.
    resumed = {name: "digits: going on" in text for name, text in said.items()}
    assert resumed == {f"train-{arrays[0]}_{n}.out": False for n in range(4)} | {f"train-{arrays[1]}_2.out": True}
    assert f"checkpoints/{points[2]}/digits.pt" in said[f"train-{arrays[1]}_2.out"]


def test_a_task_that_has_several_runs_is_over_when_its_script_is(some_cluster: Cluster, folder: Path) -> None:
    """Between two runs nothing is over; then the point is its next run."""
    script = """
        srun hpc-launch --nproc-per-node 1 train.py in=points --lr 0
        until test -e go; do sleep 0.1; done
        srun hpc-launch --nproc-per-node 1 train.py in=points --lr 3
    """
    array = submit(some_cluster, folder, script, "--array=0-1", "--nodes=1", "--ntasks=1", "--mem=300M")
    between = wait_for(
        lambda: (
            seen
            if states(seen := status(some_cluster, folder, array.id))
            == [(number, "done", "RUNNING") for number in ("0", "1")]
            else None
        ),
        DEADLINE,
        array.describe,
    )
    assert between is not None
    (folder / "go").touch()
    watched = some_cluster.run(
        [*HPC_LAUNCH, "status", array.id, "--watch", "--json", "--interval=0.5"], cwd=folder, timeout=DEADLINE
    ).stdout
    last = json.loads("{" + watched.rpartition("\n{")[2] if "\n{" in watched else watched)

    assert (between["over"], between["exit_status"]) == (False, None)
    assert (last["over"], last["exit_status"]) == (True, 0)
    assert [Path(point["directory"]).name for point in last["points"]] == [f"{array.id}_0.1", f"{array.id}_1.1"]


FORGETFUL = """#!/bin/sh
echo 'slurm_load_jobs error: Invalid job id specified' >&2
exit 1
"""


def test_accounting_knows_the_points_that_the_controller_has_forgotten(
    any_accounting_cluster: Cluster, folder: Path
) -> None:
    """Also one that never came to hpc-launch, and so has left no directory."""
    cluster = any_accounting_cluster
    script = """
        test $SLURM_ARRAY_TASK_ID = 3 && exit 9
        srun hpc-launch --nproc-per-node 1 train.py in=points --lr $SLURM_ARRAY_TASK_ID
    """
    array = submit(cluster, folder, script, "--array=0-1,3", "--mem=300M")
    (folder / "bin").mkdir()
    expected = [("0", "done", "COMPLETED"), ("1", "failed", "FAILED"), ("3", "failed", "FAILED")]
    wait_for(lambda: states(status(cluster, folder, array.id)) == expected, DEADLINE, array.describe)
    (folder / "bin/scontrol").write_text(FORGETFUL)
    (folder / "bin/scontrol").chmod(0o755)
    path = f"{folder}/bin:{cluster.env['PATH']}"

    def forgotten() -> dict[str, Any]:
        done = cluster.run([*HPC_LAUNCH, "status", "--json", array.id], cwd=folder, env={"PATH": path})
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = wait_for(lambda: seen if states(seen := forgotten()) == expected else None, 60, lambda: str(forgotten()))
    assert found is not None
    assert [point["exit_status"] for point in found["points"]] == [0, 1, 9]
    assert [point["arguments"] for point in found["points"]] == [["--lr", "0"], ["--lr", "1"], []]


def test_a_long_list_of_tasks_is_whole(any_cluster: Cluster, folder: Path) -> None:
    """Slurm cuts such a list unless it is asked not to; cancelled points say so."""
    numbers = [*range(100, 400, 3)]
    script = "srun hpc-launch --nproc-per-node 1 train.py x --lr 0"
    written = ",".join(str(number + number // 9 % 2) for number in numbers)
    array = submit(any_cluster, folder, script, f"--array={written}", "--hold", "--mem=100M")
    found = status(any_cluster, folder, array.id)
    assert [point["task"] for point in found["points"]] == [int(number) for number in written.split(",")]
    text = any_cluster.run([*HPC_LAUNCH, "status", array.id], cwd=folder).stdout.splitlines()
    any_cluster.run(["scancel", array.id])
    ended = wait_for(
        lambda: seen if (seen := status(any_cluster, folder, array.id))["over"] else None, 60, array.describe
    )

    assert mentions(text[-1], "100 points PENDING waiting JobHeldUser")
    assert ended is not None
    assert {point["slurm"]["state"] for point in ended["points"]} == {"CANCELLED"}


def test_the_runs_of_one_batch_script(some_cluster: Cluster, folder: Path) -> None:
    """A loop in a batch script: each run is a line, the one that runs too, and watching ends with the job."""
    script = """
        for lr in 0 1 2; do hpc-launch --nproc-per-node 1 train.py in=points/$lr --lr $lr; done
        hpc-launch --nproc-per-node 1 train.py in=points/3 --lr 3
    """
    job: Job = submit(some_cluster, folder, script, "--nodes=1", "--ntasks=1", "--mem=300M")
    found = wait_for(
        lambda: (
            seen
            if len((seen := status(some_cluster, folder, job.id)).get("runs", ())) == 3 and seen["state"] == "running"
            else None
        ),
        DEADLINE,
        job.describe,
    )
    assert found is not None
    assert [(run["point"], run["state"], run["exit_status"]) for run in found["runs"]] == [
        (f"{job.id}.0", "done", 0),
        (f"{job.id}.1", "failed", 1),
        (f"{job.id}.2", "running", None),
    ]
    assert [run["arguments"] for run in found["runs"]] == [[f"in=points/{lr}", "--lr", str(lr)] for lr in range(3)]
    (folder / "go").touch()
    watched = some_cluster.run(
        [*HPC_LAUNCH, "status", job.id, "--watch", "--json", "--interval=0.5"], cwd=folder, timeout=DEADLINE
    ).stdout
    last = json.loads("{" + watched.rpartition("\n{")[2] if "\n{" in watched else watched)

    assert (last["job"], [run["state"] for run in last["runs"]]) == (f"{job.id}.3", ["done", "failed", "done", "done"])
    assert job.wait(60).state == "COMPLETED"
    assert sorted(str(path.relative_to(folder / "points")) for path in (folder / "points").rglob("*.pt")) == [
        f"{lr}/last-{lr}.pt" for lr in range(4)
    ]
