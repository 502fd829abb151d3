"""The way of the output from eight ranks to the console, hpc-launch beside torchrun.

`python tests/benchmarks/output.py` prints two tables: how many lines and bytes a second come through when the ranks
write as fast as they can, and what the agent's process costs when each rank writes a thousand lines a second. Both
launchers write files as well (`--tee 3`). The console is a pipe that is read at once. Medians; they take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

RANKS = 8
LIMIT = 300

# Ranks begin together, write, and stay until somebody has looked at the launcher. Arguments: their directory, lines in
# all, lines of each write, seconds between two writes.
WORKER = """
import os, pathlib, sys, time

folder, total, block, pause = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
(folder / f"up{os.environ['RANK']}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
data = (b"y" * 99 + b"\\n") * block
begin = time.monotonic()
for number in range(total // block):
    while data:
        data = data[os.write(1, data):]
    data = (b"y" * 99 + b"\\n") * block
    if pause:
        time.sleep(max(0, begin + (number + 1) * pause - time.monotonic()))
while not (folder / "end").exists():
    time.sleep(0.05)
"""


@dataclass(frozen=True)
class Passage:
    """How the output came through.

    Attributes:
        seconds: from the common start until the last line was on the console.
        size: bytes on the console.
        cpu: seconds of CPU time of the launcher's process in between.
    """

    seconds: float
    size: int
    cpu: float


class Console:
    """Reads what a launcher shows, as fast as it comes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.lines = self.size = 0
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := os.read(self._stream.fileno(), 1 << 20):
            # torchrun's and our own prefix differ; the lines are the same.
            self.lines += data.count(b"y\n")
            self.size += len(data)


def command(launcher: str) -> list[str]:
    """Write the command line of a launcher, up to the script."""
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "--tee=3"]
    return [sys.executable, "-m", "hpc_launch", "--standalone", f"--nproc-per-node={RANKS}", "--tee=3"]


def await_or_fail(launcher: subprocess.Popen[bytes], what: str, done: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + LIMIT
    while not done():
        if launcher.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{what}: the launcher ended with {launcher.poll()}")
        time.sleep(0.002)


def measure(launcher: str, root: Path, lines: int, block: int, pause: float) -> Passage:
    """Let all ranks write, once."""
    folder = Path(tempfile.mkdtemp(dir=root))
    logs = [f"--log-dir={folder / 'logs'}"]
    words = [*command(launcher), *logs, str(root / "worker.py"), str(folder), str(lines), str(block), str(pause)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(words, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        console = Console(process.stdout)
        await_or_fail(process, "start", lambda: len(list(folder.glob("up*"))) == RANKS)
        agent = psutil.Process(process.pid)
        before = agent.cpu_times()
        (folder / "go").touch()
        begin = time.monotonic()
        await_or_fail(process, "output", lambda: console.lines >= RANKS * lines)
        seconds, after = time.monotonic() - begin, agent.cpu_times()
        (folder / "end").touch()
        process.wait(LIMIT)
    return Passage(seconds, console.size, after.user + after.system - before.user - before.system)


def write(*columns: str) -> None:
    """One line of a table."""
    sys.stdout.write(f"| {' | '.join(columns)} |\n")
    sys.stdout.flush()


def median(passages: Sequence[Passage]) -> Passage:
    """The middle of several, each figure by itself."""
    return Passage(
        statistics.median(one.seconds for one in passages),
        round(statistics.median(one.size for one in passages)),
        statistics.median(one.cpu for one in passages),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=100_000, help="lines of each rank, at full speed")
    parser.add_argument("--seconds", type=int, default=10, help="how long to write a thousand lines a second")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each launcher")
    parser.add_argument("--quick", action="store_true", help="once, with few lines")
    arguments = parser.parse_args()
    repeat, lines, length = arguments.repeat, arguments.lines, arguments.seconds
    if arguments.quick:
        repeat, lines, length = 1, 1000, 1
    launchers = ("torchrun", "hpc-launch")
    with tempfile.TemporaryDirectory(prefix="output-") as name:
        root = Path(name)
        (root / "worker.py").write_text(WORKER)
        fast: dict[str, list[Passage]] = {launcher: [] for launcher in launchers}
        steady: dict[str, list[Passage]] = {launcher: [] for launcher in launchers}
        for _ in range(repeat):
            for launcher in launchers:
                fast[launcher].append(measure(launcher, root, lines, 100, 0.0))
                steady[launcher].append(measure(launcher, root, 1000 * length, 10, 0.01))
    write("at full speed", "lines a second", "MB a second", "times torchrun's", "CPU of the agent, s for 100,000 lines")
    write("---", "---:", "---:", "---:", "---:")
    base = median(fast["torchrun"]).seconds
    for launcher in launchers:
        middle = median(fast[launcher])
        write(
            launcher,
            f"{RANKS * lines / middle.seconds:,.0f}",
            f"{middle.size / middle.seconds / 1e6:.1f}",
            f"{base / middle.seconds:.1f}",
            f"{middle.cpu / (RANKS * lines) * 100_000:.2f}",
        )
    sys.stdout.write("\n")
    write("1,000 lines a second from each rank", "CPU of the agent", "times torchrun's", "behind at the end")
    write("---", "---:", "---:", "---:")
    base = median(steady["torchrun"]).cpu
    for launcher in launchers:
        middle = median(steady[launcher])
        behind = middle.seconds - length
        write(launcher, f"{100 * middle.cpu / middle.seconds:.1f} %", f"{middle.cpu / base:.2f}", f"{behind:.2f} s")


if __name__ == "__main__":
    main()
