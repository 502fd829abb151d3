"""The time from a failure to all ranks up again, hpc-launch beside torchrun, on the tests' virtual Slurm cluster.

`python tests/benchmarks/restart.py` (as root, see tests/cluster) prints a table. Two nodes of two ranks train with
gloo; once all are up, one rank raises. The launchers take turns: what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster import Cluster, ClusterConfig, ClusterError

# Which start of the workers this is, is told by the files and not by TORCHELASTIC_RESTART_COUNT: that is under test.
WORKER = """
import json, os, pathlib, sys, time

rank, where = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
again = (where / "failed").exists()

def stamp(name):
    facts = {"time": time.time(), "attempt": os.environ["TORCHELASTIC_RESTART_COUNT"], "rank": rank}
    temporary = where / f".{name}-{os.getpid()}"
    temporary.write_text(json.dumps(facts))
    temporary.replace(where / name)

stamp(f"started-{int(again)}-{os.environ['GROUP_RANK']}-{os.environ['LOCAL_RANK']}")
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
for step in range(10 if again else 10**9):
    dist.all_reduce(total)
    if step == 0:
        stamp(f"up-{int(again)}-{os.environ['GROUP_RANK']}-{os.environ['LOCAL_RANK']}")
    if step == 10 and rank == 3:
        stamp("failed")
        raise RuntimeError("once")
dist.destroy_process_group()
"""

COMMON = ["--nproc-per-node=2", "--max-restarts=1"]
C10D = ["torchrun", "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=gpu001:29400"]
LAUNCHERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "hpc-launch": (["hpc-launch"], {}),
    "torchrun c10d": (C10D, {}),
    "torchrun c10d, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1": (C10D, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}),
}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        outcome: recovered, failed or hung.
        started: seconds from the failure until all processes of the next attempt had started.
        up: seconds from the failure until all of them had done their first all-reduce.
        agreed: whether all ranks were told the same, right attempt number.
    """

    outcome: str
    started: float | None = None
    up: float | None = None
    agreed: bool = False


def run(cluster: Cluster, launcher: str, limit: float, folder: Path) -> Run:
    """Let one job fail once and see what becomes of it."""
    command, env = LAUNCHERS[launcher]
    stamps = folder / "stamps"
    stamps.mkdir(parents=True)
    (folder / "worker.py").write_text(WORKER)
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", *command, *COMMON]
    identity = [f"--rdzv-id={folder.name}"] if command is C10D else []
    outcome = "hung"
    with contextlib.suppress(ClusterError):  # it took too long
        bounded = ["timeout", "--kill-after=20", str(limit), *srun, *identity, "worker.py", str(stamps)]
        status = cluster.run(bounded, cwd=folder, env=env, check=False, timeout=limit + 60).returncode
        outcome = {0: "recovered", 124: "hung", 137: "hung"}.get(status, "failed")
    cluster.reset()
    failed = read(stamps, "failed")
    if not failed:
        return Run("failed before the failure")
    started, up = read(stamps, "started-1-*"), read(stamps, "up-1-*")
    if outcome != "recovered" or len(up) < 4:
        return Run("hung" if outcome == "hung" else "failed")
    moment = failed[0]["time"]
    return Run(
        outcome,
        max(stamp["time"] for stamp in started) - moment,
        max(stamp["time"] for stamp in up) - moment,
        agreed={stamp["attempt"] for stamp in up} == {"1"},
    )


def read(stamps: Path, pattern: str) -> list[dict[str, Any]]:
    """Read what workers left."""
    return [json.loads(path.read_text()) for path in stamps.glob(pattern)]


def spread(values: Sequence[float]) -> str:
    """Write a median with its least and greatest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})" if values else ""


def row(launcher: str, runs: Sequence[Run]) -> str:
    """Write a line of the table."""
    good = [one for one in runs if one.outcome == "recovered"]
    rest = [one.outcome for one in runs if one.outcome != "recovered"]
    cells = [
        launcher,
        f"{len(good)} of {len(runs)}",
        ", ".join(f"{rest.count(outcome)} {outcome}" for outcome in dict.fromkeys(rest)),
        f"{sum(one.agreed for one in good)} of {len(good)}",
        spread([one.started for one in good if one.started is not None]),
        spread([one.up for one in good if one.up is not None]),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, the launchers in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each launcher (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which a run has hung (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="hpc-launch alone, once: see that it works")
    options = parser.parse_args()
    launchers = ["hpc-launch"] if options.quick else list(LAUNCHERS)
    results: dict[str, list[Run]] = {launcher: [] for launcher in launchers}
    with tempfile.TemporaryDirectory() as folder, Cluster(ClusterConfig(nodes=2)) as cluster:
        for number in range(1 if options.quick else options.runs):
            for position, (launcher, runs) in enumerate(results.items()):
                runs.append(run(cluster, launcher, options.limit, Path(folder) / f"run-{number}-{position}"))
                sys.stderr.write(f"run {number}, {launcher}: {runs[-1]}\n")
    head = ["launcher", "recovered", "others", "attempt number right on all ranks"]
    head += ["s from failure to all processes started", "s from failure to first all-reduce"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|---|---:|---:|"]
    lines += [row(launcher, runs) for launcher, runs in results.items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
