"""The start of a job on one node, hpc-launch beside torchrun.

`python tests/benchmarks/startup.py` prints a table for 1, 2, 4 and 8 local ranks: seconds until all ranks have done
their first all-reduce (medians; the launchers take turns, so that what else the machine does hits them alike),
file-system calls of all processes of the node (counted by strace, so free of noise), and the memory of all workers
(proportional set size: a page that several share counts once). The floor is one Python process that imports torch and
makes a process group of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# All ranks stay until everybody has looked at the memory, so that they are looked at in the same state.
WORKER = """
import json, os, pathlib, re, sys, time
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
up = time.time()
text = pathlib.Path("/proc/self/smaps_rollup").read_text()
pss = int(re.search(r"^Pss:\\s+(\\d+)", text, re.MULTILINE)[1])
dist.all_reduce(torch.ones(1))
facts = {"up": up, "pss": pss}
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps(facts))
dist.destroy_process_group()
"""

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

# What a file server gets to do, or would if its client had not cached it: names, openings, sizes, reads.
CALLS = "%file,read,pread64,lseek,fstat,getdents64,close"

LIMIT = 600


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        seconds: until the last rank had done its first all-reduce.
        memory: proportional set size of all workers, in MiB.
    """

    seconds: float
    memory: float


def command(launcher: str, ranks: int, folder: Path) -> list[str]:
    """Write the command line of a launcher, the script's directory following."""
    script = [str(folder / "worker.py")]
    if launcher == "floor":
        return [sys.executable, *script]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *script]
    start = launcher.rpartition(" ")[2]
    return [
        sys.executable,
        "-m",
        "hpc_launch",
        "--standalone",
        f"--start={start}",
        f"--nproc-per-node={ranks}",
        *script,
    ]


def environment(launcher: str) -> dict[str, str]:
    """Give every launcher the same threads, and the floor what a launcher would have set."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a package that is installed is compiled
    return {**environ, **ALONE} if launcher == "floor" else environ


def measure(launcher: str, ranks: int, folder: Path) -> Start:
    """Start a job once."""
    reports = Path(tempfile.mkdtemp(dir=folder))
    words = [*command(launcher, ranks, folder), str(reports)]
    begun = time.time()
    done = subprocess.run(
        words, cwd=folder, env=environment(launcher), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    facts = [json.loads(path.read_text()) for path in reports.iterdir()]
    if done.returncode != 0 or len(facts) != ranks:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Start(max(fact["up"] for fact in facts) - begun, sum(fact["pss"] for fact in facts) / 1024)


def count_calls(launcher: str, ranks: int, folder: Path) -> int:
    """Count the file-system calls of a start."""
    reports, report = Path(tempfile.mkdtemp(dir=folder)), folder / "strace.txt"
    strace = ["strace", "--follow-forks", "--summary-only", f"--trace={CALLS}", f"--output={report}"]
    words = [*strace, *command(launcher, ranks, folder), str(reports)]
    subprocess.run(words, cwd=folder, env=environment(launcher), capture_output=True, timeout=LIMIT, check=True)
    total = re.search(r"^100\.00\s+\S+\s+(?:\S+\s+)?(\d+)\s+(?:\d+\s+)?total", report.read_text(), re.MULTILINE)
    if total is None:
        raise RuntimeError(f"no total in what strace says:\n{report.read_text()}")
    return int(total[1])


def median(starts: Sequence[Start]) -> Start:
    """The middle of several starts, each figure by itself."""
    return Start(
        statistics.median(start.seconds for start in starts), statistics.median(start.memory for start in starts)
    )


def write(*columns: str) -> None:
    """One line of the table."""
    sys.stdout.write(f"| {' | '.join(columns)} |\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2,4,8", help="numbers of local ranks")
    parser.add_argument("--repeat", type=int, default=5, help="starts of each launcher and number of ranks")
    parser.add_argument("--quick", action="store_true", help="once, with two ranks")
    arguments = parser.parse_args()
    sizes = [2] if arguments.quick else [int(text) for text in arguments.ranks.split(",")]
    repeat = 1 if arguments.quick else arguments.repeat
    launchers = ("torchrun", "hpc-launch exec", "hpc-launch warm")
    write("ranks", "launcher", "first all-reduce", "times faster", "times the floor", "file-system calls", "memory")
    write("---:", "---", "---:", "---:", "---:", "---:", "---:")
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        (folder / "worker.py").write_text(WORKER)
        measure("floor", 1, folder)  # whatever comes from the disk the first time
        for ranks in sizes:
            starts: dict[str, list[Start]] = {launcher: [] for launcher in ("floor", *launchers)}
            for _ in range(repeat):
                for launcher, found in starts.items():
                    found.append(measure(launcher, 1 if launcher == "floor" else ranks, folder))
            traced = shutil.which("strace") is not None and not arguments.quick
            medians = {launcher: median(found) for launcher, found in starts.items()}
            for launcher, middle in medians.items():
                write(
                    str(ranks),
                    launcher,
                    f"{middle.seconds:.2f} s",
                    f"{medians['torchrun'].seconds / middle.seconds:.1f}",
                    f"{middle.seconds / medians['floor'].seconds:.2f}",
                    f"{count_calls(launcher, ranks, folder):,}" if traced else "-",
                    f"{middle.memory:,.0f} MiB",
                )


if __name__ == "__main__":
    main()
