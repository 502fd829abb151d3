"""What the tests of signals share: a training script that notes what it gets, and ways to hurt it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster import Cluster, Job
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.steps_support import tree
from tests.support import LEAVE, wait_for

# Notes each signal in `got.<rank>`. Its arguments:
#   --until FILE   ends well when that is there
#   --on NAME S    on that signal works for S seconds on `saved.<rank>`, which says "whole" in the end, and leaves
#   --stubborn     ignores SIGTERM
#   --family       has children: one of multiprocessing's, and one that was forked twice, in a session of its own, which
#                  notes a SIGUSR1 of its own in `child.<rank>`
#   --fail R       rank R fails as soon as the file `fail` is there
STAYER = (
    """
import multiprocessing, os, signal, sys, time
from pathlib import Path

def given(name, count=1):
    return sys.argv[sys.argv.index(name) + 1:][:count] if name in sys.argv else None

def pause(*_):
    time.sleep(3600)

def note(signum, _):
    with open(f"got.{rank}", "a") as file:
        file.write(signal.Signals(signum).name + "\\n")
    if saving and signal.Signals(signum).name == saving[0]:
        with open(f"saved.{rank}", "w") as file:
            file.write("begun\\n")
            file.flush()
            end = time.monotonic() + float(saving[1])
            while time.monotonic() < end:
                time.sleep(0.05)
            file.write("whole\\n")
        sys.exit(0)

if __name__ == "__main__":
    rank = os.environ["RANK"]
    saving, until, failing = given("--on", 2), given("--until"), given("--fail")
    if "--family" in sys.argv:
        multiprocessing.get_context("fork").Process(target=pause, daemon=True).start()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.signal(signal.SIGUSR1, lambda *_: Path(f"child.{rank}").write_text("SIGUSR1"))
                Path(f"child.{rank}").touch()
                pause()
            os._exit(0)
        os.wait()
        while not Path(f"child.{rank}").exists():
            time.sleep(0.01)
    for name in ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"):
        signal.signal(signal.Signals[name], note)
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(f"up.{rank}").write_text(str(os.getpid()))
    while not (until and Path(until[0]).exists()):
        if failing and rank == failing[0] and Path("fail").exists():
            sys.exit(3)
        time.sleep(0.02)
"""
    + LEAVE
)

SCRIPT = "stayer.py"

# The ports that hpc-launch takes: the first one, and the one after the last.
PORTS = (20000, 32000)


@dataclass(frozen=True)
class Running:
    """A job whose ranks are up."""

    cluster: Cluster
    job: Job
    folder: Path
    ranks: int

    def got(self) -> dict[int, Counter[str]]:
        """How often each rank got each signal, by name."""
        return {
            rank: Counter(path.read_text().split()) if (path := self.folder / f"got.{rank}").exists() else Counter()
            for rank in range(self.ranks)
        }

    def await_signal(self, name: str) -> None:
        """Wait until every rank has got a signal."""
        wait_for(lambda: all(counts[name] for counts in self.got().values()), DEADLINE, self.describe)

    def saved(self) -> dict[int, str]:
        """What became of the ranks' checkpoints."""
        return {
            rank: path.read_text().split()[-1]
            for rank in range(self.ranks)
            if (path := self.folder / f"saved.{rank}").exists()
        }

    def worker(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        return psutil.Process(int((self.folder / f"up.{rank}").read_text()))

    def agent(self, rank: int) -> psutil.Process:
        """The agent of a rank: the parent of the factory, whose child the worker is."""
        factory = self.worker(rank).parent()
        agent = factory.parent() if factory is not None else None
        assert agent is not None
        return agent

    def notices(self) -> dict[str, Counter[str]]:
        """Which notice signals each node's agent says that it has passed on."""
        return {
            path.parent.name: Counter(
                signal
                for signal, _ in {
                    (event["signal"], event["number"])
                    for event in map(json.loads, path.read_text().splitlines())
                    if event["event"] == "notice"
                }
            )
            for path in self.folder.glob("logs/*.*/nodes/*/events.jsonl")
        }

    @property
    def ours(self) -> list[str]:
        """What hpc-launch itself said."""
        return re.findall(r"hpc-launch: .*", self.job.output())

    def release(self, file: str = "go") -> None:
        """Let the ranks go on."""
        (self.folder / file).touch()

    def left(self) -> Iterator[str]:
        """Name what is still there of any job."""
        for node in self.cluster.nodes:
            for pid in self.cluster.processes(node):
                try:
                    yield f"{node}: {pid} {' '.join(psutil.Process(pid).cmdline())}"
                except psutil.Error:
                    continue

    def check_nothing_is_left(self) -> None:
        """See that no process is left on any node, nobody listens on a port of ours, and no node was drained."""
        wait_for(lambda: not [*self.left()], DEADLINE, lambda: f"{[*self.left()]} are left\n{self.describe()}")
        ours = range(*PORTS)
        for node in self.cluster.nodes:
            listening = self.cluster.on(node, ["ss", "--no-header", "--tcp", "--listening", "--numeric"]).stdout
            assert not [port for port in re.findall(r":(\d+)\s", listening) if int(port) in ours], listening
        self.cluster.wait_idle(DEADLINE)
        assert self.cluster.run(["sinfo", "--noheader", "--list-reasons"]).stdout == ""

    def describe(self) -> str:
        """Tell everything."""
        got = {rank: dict(counts) for rank, counts in self.got().items()}
        return f"{got} {self.saved()}\n{self.job.describe()}\n{tree(self.folder / 'logs')}"


def submit(
    cluster: Cluster, folder: Path, arguments: str, *options: str, launcher: str = "", nodes: int = 2
) -> Running:
    """Submit a job of two ranks a node, without waiting for anything.

    Args:
        cluster: Where.
        folder: Where it runs.
        arguments: Of the training script.
        options: Of sbatch.
        launcher: Options of hpc-launch.
        nodes: How many.
    """
    folder.mkdir(exist_ok=True)
    (folder / SCRIPT).write_text(STAYER)
    # As in the templates: srun outlives the SIGTERM that the shell gets as well.
    script = f"trap : TERM\nsrun hpc-launch --nproc-per-node=2 {launcher} {SCRIPT} {arguments}"
    with clean_environment():
        job = cluster.sbatch(script, f"--nodes={nodes}", *options, cwd=folder)
    return Running(cluster, job, folder, 2 * nodes)


def await_up(*jobs: Running) -> None:
    """Wait until all ranks of jobs are up, and Slurm has told the agents how it ends jobs."""
    for running in jobs:
        names = [f"up.{rank}" for rank in range(running.ranks)]
        wait_for(lambda: all((running.folder / name).exists() for name in names), DEADLINE, running.describe)  # noqa: B023 - called at once
        wait_for(lambda: [*running.folder.glob("logs/*.*/end_time.json")], DEADLINE, running.describe)  # noqa: B023 - as above
