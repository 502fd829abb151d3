"""The time from the loss of a node to all others up again, hpc-launch beside torchrun, on the tests' virtual Slurm.

`python tests/benchmarks/lost_node.py` (as root, see tests/cluster) prints a table. Four nodes of one rank train with
gloo; one of them is killed, as by a power cut that its peers notice, or cut off in silence. srun runs elsewhere. The
launchers take turns: what else the machine does hits them alike.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster import Cluster, ClusterConfig

WORKER = """
import os, pathlib, sys, time

where = pathlib.Path(sys.argv[1])
start = "again" if (where / "lost").exists() else "first"
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
(where / f"{start}-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}").write_text(str(time.time()))
while True:
    dist.all_reduce(total)
    time.sleep(0.02)
"""

LAUNCHERS = {
    "hpc-launch": ["hpc-launch"],
    "torchrun c10d": ["torchrun", "--rdzv-backend=c10d", "--rdzv-endpoint=gpu001:29400", "--max-restarts=3"],
}
NODES = 4


@dataclass(frozen=True)
class Loss:
    """What happens to a node.

    Attributes:
        node: Which one.
        silent: Whether it is cut off; otherwise everything on it is killed.
    """

    node: str
    silent: bool

    def __str__(self) -> str:
        return (
            f"{'the first node' if self.node == 'gpu001' else 'another node'} {'cut off' if self.silent else 'killed'}"
        )


LOSSES = [Loss(node, silent) for silent, node in product((False, True), ("gpu003", "gpu001"))]


def run(cluster: Cluster, launcher: str, loss: Loss, limit: float, folder: Path) -> float | str:
    """Let one job lose a node; gives the seconds until all others had done an all-reduce, or what became of it."""
    stamps = folder / "stamps"
    stamps.mkdir(parents=True)
    (folder / "worker.py").write_text(WORKER)
    srun = ["srun", "--no-kill", f"--nodes={NODES}", "--ntasks-per-node=1", "--mem=500", *LAUNCHERS[launcher]]
    identity = [f"--rdzv-id={folder.name}"] if launcher != "hpc-launch" else []
    words = [*srun, *identity, f"--nnodes=2:{NODES}", "--nproc-per-node=1", "worker.py", str(stamps)]
    console = (folder / "console").open("w")
    with console, cluster.popen(words, cwd=folder, stdout=console, stderr=console) as process:
        try:
            if await_stamps(stamps, f"first-*-of-{NODES}", NODES, process, limit) is None:
                return "failed before the loss"
            (stamps / "lost").touch()
            moment = time.time()
            (cluster.cut if loss.silent else cluster.kill)(loss.node)
            up = await_stamps(stamps, f"again-*-of-{NODES - 1}", NODES - 1, process, limit)
            return "did not go on" if up is None else up - moment
        finally:
            process.kill()
            cluster.reset()


def await_stamps(stamps: Path, pattern: str, count: int, process: subprocess.Popen[str], limit: float) -> float | None:
    """Wait until so many workers have left their stamps; gives the time of the last, None where they do not."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        found = [path.read_text() for path in stamps.glob(pattern)]
        if len(found) == count and all(found):
            return max(map(float, found))
        time.sleep(0.05)
    return None


def row(launcher: str, loss: Loss, results: Sequence[float | str], limit: float) -> str:
    """Write a line of the table."""
    good = [one for one in results if isinstance(one, float)]
    rest = [one for one in results if isinstance(one, str)]
    seconds = f"{statistics.median(good):.1f} ({min(good):.1f}-{max(good):.1f})" if good else ""
    words = {"did not go on": f"did not go on in {limit:.0f} s"}
    others = ", ".join(f"{rest.count(word)} {words.get(word, word)}" for word in dict.fromkeys(rest))
    return f"| {loss} | {launcher} | {len(good)} of {len(results)} | {others} | {seconds} |"


def main() -> None:
    """Measure, the launchers in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each launcher and loss (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which it is given up (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="hpc-launch and one loss, once: see that it works")
    options = parser.parse_args()
    launchers, losses = ([*LAUNCHERS][:1], LOSSES[:1]) if options.quick else ([*LAUNCHERS], LOSSES)
    results: dict[tuple[Loss, str], list[float | str]] = {pair: [] for pair in product(losses, launchers)}
    with tempfile.TemporaryDirectory() as folder, Cluster(ClusterConfig(nodes=NODES)) as cluster:
        for number in range(1 if options.quick else options.runs):
            for position, ((loss, launcher), found) in enumerate(results.items()):
                where = Path(folder) / f"run-{number}-{position}"
                found.append(run(cluster, launcher, loss, options.limit, where))
                sys.stderr.write(f"run {number}, {loss}, {launcher}: {found[-1]}\n")
    lines = [
        "| lost | launcher | went on | others | s from the loss to the first all-reduce |",
        "|---|---|---|---|---:|",
    ]
    lines += [row(launcher, loss, found, options.limit) for (loss, launcher), found in results.items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
