"""What the tests of restarts and of the rendezvous share: start a step, and read what its ranks said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, ClusterError
from tests.support import LEAVE

# Two cores may have to import torch some twenty times, while others do the same.
DEADLINE = 240.0

# What has Slurm end a job as at its time limit (`scontrol update`). It refuses a time that is past, and `now` is when a
# second has begun since scontrol read the clock.
TIME_IS_UP = "endtime=now+3"

# A good run's attempt is told by every rank in one line of JSON on stdout; `facts` adds to what all scripts say.
PREAMBLE = """
import json, os, pathlib, random, signal, sys, time

rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
names = ("LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")

def say(**facts):
    told = {name: os.environ.get(name) for name in names}
    print(json.dumps({"rank": rank, "attempt": attempt, **told, **facts}), flush=True)
"""

# Ranks that say who they are, and leave.
SAYS = PREAMBLE + "say()" + LEAVE


@dataclass(frozen=True)
class Ended:
    """A step that has ended.

    Attributes:
        status: srun's exit status.
        console: what srun wrote, stdout before stderr.
        logs: the log directory.
    """

    status: int
    console: str
    logs: Path

    def said(self, attempt: int, job: str = "*.*") -> dict[int, dict[str, Any]]:
        """Return the last line of each rank in an attempt, by rank; ranks that said nothing are left out."""
        found = {}
        for path in self.logs.glob(f"{job}/attempt_{attempt}/*/rank_*.out"):
            lines = path.read_text().splitlines()
            if lines:
                rank = int(path.stem.removeprefix("rank_"))
                found[rank] = {**json.loads(lines[-1]), "host": path.parent.name}
        return found

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts, in order."""
        return sorted(int(path.name.removeprefix("attempt_")) for path in self.logs.glob("*.*/attempt_*"))

    def describe(self) -> str:
        """Tell everything, for the message of a failure."""
        return f"status {self.status}\n--- console\n{self.console}\n{tree(self.logs)}"


def tree(logs: Path) -> str:
    """Tell every file of a log directory, the ends of long ones only."""
    parts = []
    for path in sorted(logs.rglob("*")):
        if path.is_file() and not any(parent.is_symlink() for parent in path.parents):
            lines = path.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"--- {path.relative_to(logs)}", *lines[-30:]]))
    return "\n".join(parts)


def step(
    cluster: Cluster,
    command: Sequence[str],
    *options: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command in a step of its own, on two nodes with one task each unless options say otherwise.

    Args:
        cluster: Where.
        command: What every task runs.
        options: Further options of srun.
        cwd: Where it runs; logs go into `logs` there.
        env: What it has in its environment besides.
    """
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", *options, *command]
    try:
        done = cluster.run(srun, cwd=cwd, env=env, check=False, timeout=DEADLINE)
    except ClusterError as error:
        raise AssertionError(f"{error}\n{tree(cwd / 'logs')}") from None
    return Ended(done.returncode, done.stdout + done.stderr, cwd / "logs")
