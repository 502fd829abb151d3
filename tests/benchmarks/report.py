"""How long a report takes, and how large it is: from the records of many ranks and attempts to the page.

Times are seconds of CPU time, as all of it is one thread: what else the machine does makes less of a difference.

Run it with `python tests/benchmarks/report.py`; tests/benchmarks/README.md has the results of this machine.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from hpc_launch.inspection import job_report
from hpc_launch.records import history
from tests import histories

SIZES = ((1, 8, 1), (8, 8, 10), (32, 8, 10), (128, 8, 10))
QUICK = ((2, 2, 2),)


@dataclass(frozen=True)
class Took:
    """Seconds of CPU time: to read the records, to make page and Markdown in this process, and for the command."""

    read: float
    make: float
    command: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=3, help="how often each size is measured; default 3")
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    arguments = parser.parse_args()
    say("| ranks | attempts | records | read | page and Markdown | `hpc-launch report` | page | Markdown | lanes |")
    say("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for nodes, per_node, attempts in QUICK if arguments.quick else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), nodes, per_node, attempts, 1 if arguments.quick else arguments.repeat)


def measure(folder: Path, nodes: int, per_node: int, attempts: int, repeat: int) -> None:
    """Measure one size, and print its line."""
    job = histories.write(
        folder / "4711.0", nodes=nodes, per_node=per_node, attempts=attempts, requeues=[attempts // 2], ending="failed"
    )
    for attempt in (attempts - 1, attempts - 2):
        for node in range(nodes if attempt >= 0 else 0):
            for rank in range(node * per_node, (node + 1) * per_node):
                file = job / f"attempt_{attempt}" / histories.host_of(node) / f"rank_{rank}.out"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("step 1\n")
    took = [run(job) for _ in range(repeat)]
    page = (job / "report.html").stat().st_size
    made = job_report.report_on_job(job)
    lanes = len(made.report.overview.rows) if made.report.overview else 0
    records = sum(path.stat().st_size for path in job.glob("nodes/*/events.jsonl"))
    columns = [
        f"{nodes * per_node:,}",
        str(attempts),
        f"{records / 1e6:.1f} MB",
        f"{median(one.read for one in took):.2f} s",
        f"{median(one.make for one in took):.2f} s",
        f"{median(one.command for one in took):.2f} s",
        f"{page / 1e3:,.0f} kB",
        f"{len(made.markdown()) / 1e3:,.0f} kB",
        str(lanes),
    ]
    say(f"| {' | '.join(columns)} |")


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(job: Path) -> Took:
    """Make a report once in this process, and once by the command."""
    begin = time.process_time()
    history.read_history(job)
    read = time.process_time()
    made = job_report.report_on_job(job)
    made.html(job)
    made.markdown()
    done = time.process_time()
    before = children()
    subprocess.run([sys.executable, "-m", "hpc_launch", "report", str(job)], check=True, capture_output=True)
    return Took(read - begin, done - read - (read - begin), children() - before)


def children() -> float:
    """Seconds of CPU time of the processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
