"""`hpc-launch status` and `logs`, asked from a login node about a job on several nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, ended, submit
from tests.support import mentions, wait_for

# Says where it is, and waits until it may go on. In the first run both attempts fail, in the second one all is well.
TALK = """
import os, pathlib, sys, time
from hpc_launch import runtime

rank, attempt = os.environ["RANK"], os.environ["HPC_LAUNCH_ATTEMPT"]
print(f"begin {attempt}", flush=True)
runtime.mark_progress(10 * int(attempt), 100)
while not pathlib.Path(f"go{attempt}").exists():
    time.sleep(0.02)
print(f"fail {attempt} of rank {rank}", file=sys.stderr, flush=True)
sys.exit(int(rank == "1" and attempt != "2") * 5)
"""

HPC_LAUNCH = (sys.executable, "-m", "hpc_launch")


def test_a_job_is_followed_from_its_submission_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    """Through a restart and a requeue, from another directory: all lines come, once, and it ends with the job.

    Meanwhile `status` says what Slurm and the records know: time left, attempt, ranks, progress, requeues.
    """
    folder, elsewhere = tmp_path / "work", tmp_path / "else"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "talk.py").write_text(TALK)
    line = "srun hpc-launch --requeue on-failure --max-requeues 1 --max-restarts 1 --nproc-per-node 2 talk.py"
    job = submit(cluster, folder, line, "--nodes=2", "--requeue", "--hold", "--time=30")

    def status() -> dict[str, object]:
        told = cluster.run([*HPC_LAUNCH, "status", job.id, "--json"], cwd=elsewhere).stdout
        found: dict[str, object] = json.loads(told)
        return found

    assert (status()["state"], status()["directory"]) == ("waiting", None)
    with cluster.popen([*HPC_LAUNCH, "logs", "-f", job.id], cwd=elsewhere, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        cluster.run(["scontrol", "release", job.id])
        followed = []
        for attempt in range(3):
            begun = [follower.stdout.readline() for _ in range(4)]
            while any("begin" not in shown for shown in begun):
                begun.append(follower.stdout.readline())
                assert begun[-1], job.describe()
                if sum("begin" in shown for shown in begun) == 4:
                    break
            followed += begun
            found = status()
            assert (found["state"], found["attempt"]) == ("running", attempt), found
            assert 0 < float(str(found["time_left"])) <= 1800
            assert len(found["requeues"]) == (attempt == 2), found  # type: ignore[arg-type]
            (folder / f"go{attempt}").touch()
        followed += follower.stdout
    last = ended(job, folder)

    assert (last.state, follower.returncode) == ("COMPLETED", 0), job.describe()
    texts = [f"[gpu00{1 + rank // 2}:{rank}] begin {attempt}\n" for attempt in range(3) for rank in range(4)]
    assert sorted(shown for shown in followed if "begin" in shown) == sorted(texts)
    for attempt in range(2):
        assert followed.count(f"[gpu001:1] fail {attempt} of rank 1\n") == 1, followed
    found = status()
    assert (found["state"], found["exit_status"], found["restarts"]) == ("done", 0, 0)
    ranks = {rank["rank"]: rank for rank in found["ranks"]}  # type: ignore[attr-defined]
    assert {rank: (facts["host"], facts["state"], facts["progress"]["step"]) for rank, facts in ranks.items()} == {
        rank: (f"gpu00{1 + rank // 2}", "done", 20) for rank in range(4)
    }
    command = [*HPC_LAUNCH, "logs", job.id, "--attempt", "all", "--stdout", "--fold"]
    folded = cluster.run(command, cwd=elsewhere).stdout.splitlines()
    assert folded == [f"[gpu[001-002] ranks 0-3] begin {attempt}" for attempt in range(3)]
    command = [*HPC_LAUNCH, "logs", job.id, "--rank", "1-2", "--host", "gpu002", "--stderr", "-n", "1"]
    assert cluster.run(command, cwd=elsewhere).stdout == "[gpu002:2] fail 2 of rank 2\n"


def test_a_node_that_is_gone_is_seen_by_slurm(cluster: Cluster, tmp_path: Path) -> None:
    """Of a job whose agents were all killed Slurm has the last word; where nobody can ask Slurm, nobody has."""
    (tmp_path / "talk.py").write_text(TALK)
    job = submit(cluster, tmp_path, "srun hpc-launch --nproc-per-node 1 talk.py", "--nodes=1")
    out = tmp_path / f"logs/{job.id}.0/attempt_0/gpu001"
    wait_for(
        lambda: any("begin" in path.read_text() for path in out.parent.glob("*/rank_0.out")), DEADLINE, job.describe
    )
    cluster.run(["scancel", "--signal=KILL", f"{job.id}.0"])
    ended(job, tmp_path)
    found = json.loads(cluster.run([*HPC_LAUNCH, "status", "--json"], cwd=tmp_path).stdout)
    assert (found["state"], found["over"]) == ("failed", True), found
    assert found["words"]
    line = f"PATH=/nowhere exec {sys.executable} -m hpc_launch status --json"
    blind = json.loads(cluster.run(["bash", "-c", line], cwd=tmp_path).stdout)
    assert (blind["state"], blind["over"]) == ("running", False), blind
    assert mentions(blind["slurm"]["cannot_see"], "scontrol"), blind


def test_a_job_that_has_left_nothing(any_cluster: Cluster, tmp_path: Path) -> None:
    """One that was just submitted is found without its id; of one that never came to hpc-launch the output is shown."""
    script = "echo module: not found >&2; exit 5"
    job = submit(any_cluster, tmp_path, script, "--hold")
    told = any_cluster.run([*HPC_LAUNCH, "status"], cwd=tmp_path).stdout
    assert mentions(told, job.id, "waiting"), told
    with any_cluster.popen([*HPC_LAUNCH, "logs", "-f"], cwd=tmp_path, stderr=subprocess.PIPE) as follower:
        assert follower.stderr is not None
        assert mentions(follower.stderr.readline(), job.id)
        any_cluster.run(["scontrol", "release", job.id])
        said = follower.stderr.read()
    assert follower.returncode == 66
    assert mentions(said, job.id, f"slurm-{job.id}.out", "module: not found"), said
    assert job.wait(DEADLINE).state == "FAILED"
    for command in ("status", "logs"):
        done = any_cluster.run([*HPC_LAUNCH, command, job.id], cwd=tmp_path, check=False)
        assert mentions(done.stdout + done.stderr, "FAILED", f"slurm-{job.id}.out", "module: not found"), done
        assert done.returncode == (66 if command == "logs" else 0)
