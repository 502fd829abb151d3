"""What the tests of lost nodes share: a job that trains, what it shows, and the moments at which it is harmed."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_launch.records import events
from tests.cluster import Cluster
from tests.slurm.steps_support import DEADLINE, PREAMBLE, Ended
from tests.support import LEAVE, mentions, wait_for

# Sums up over all ranks again and again, until a file says that it is enough, or another that a rank fails in an
# attempt. Deaf to SIGTERM, as in a collective.
TRAINS = (
    PREAMBLE
    + """
import torch
import torch.distributed as dist

signal.signal(signal.SIGTERM, lambda *_: None)
dist.init_process_group("gloo")
told = False
while True:
    enough = torch.tensor([float(rank == 0 and pathlib.Path("enough").exists()), 1.0])
    dist.all_reduce(enough)
    if not told:
        say(total=enough[1].item(), size=os.environ["GROUP_WORLD_SIZE"])
        told = True
    if enough[0]:
        break
    if pathlib.Path(f"fails-{attempt}-{rank}").exists():
        sys.exit(3)
    time.sleep(0.05)
dist.destroy_process_group()
"""
    + LEAVE
)

# Ranks that say who they are without talking to each other, and wait to fail or to end.
WAITS = (
    PREAMBLE
    + """
say(total=float(os.environ["WORLD_SIZE"]), size=os.environ["GROUP_WORLD_SIZE"])
while not pathlib.Path("enough").exists():
    if pathlib.Path(f"fails-{attempt}-{rank}").exists():
        sys.exit(3)
    time.sleep(0.05)
"""
    + LEAVE
)


@dataclass
class Run:
    """A step that runs.

    Attributes:
        cluster: Where.
        folder: Where it was started.
        process: srun, which runs on none of its nodes.
    """

    cluster: Cluster
    folder: Path
    process: subprocess.Popen[str]

    @property
    def so_far(self) -> Ended:
        """What can be seen of it."""
        return Ended(0, (self.folder / "console").read_text(), self.folder / "logs")

    def describe(self) -> str:
        """Tell everything, for the message of a failure."""
        return f"{self.so_far.describe()}\n{self.cluster.diagnose()}"

    def trains_on(self, attempt: int, *nodes: str) -> None:
        """Wait until an attempt has the ranks of these nodes, in this order, and all have heard of each other."""
        wait_for(lambda: len(self._hosts(attempt)) == len(nodes), DEADLINE, self.describe)
        assert self._hosts(attempt) == [*nodes], self.describe()

    def trains(self, attempt: int) -> list[str]:
        """Wait until an attempt has ranks that have all heard of each other; returns their nodes."""
        return wait_for(lambda: self._hosts(attempt), DEADLINE, self.describe)

    def goes_on(self, *nodes: str) -> int:
        """Wait until some attempt has the ranks of these nodes, whichever it is; returns its number."""
        return self.goes_on_in(nodes)[0]

    def goes_on_in(self, *worlds: Sequence[str]) -> tuple[int, list[str]]:
        """Wait until some attempt has the ranks of one of these lists of nodes; returns its number and the nodes."""

        def found() -> list[tuple[int, list[str]]]:
            seen = [(number, self._hosts(number)) for number in self.so_far.attempts()]
            return [one for one in seen if one[1] in map(list, worlds)]

        return wait_for(found, DEADLINE, self.describe)[0]

    def _hosts(self, attempt: int) -> list[str]:
        """The nodes of an attempt by rank, as soon as all ranks have heard of each other; none before that."""
        with contextlib.suppress(ValueError):  # a line that is being written
            said = [facts for _, facts in sorted(self.so_far.said(attempt).items())]
            size = len(said)
            if all((one["total"], one["WORLD_SIZE"], one["size"]) == (size, str(size), str(size)) for one in said):
                return [one["host"] for one in said]
        return []

    def sees(self, words: str, *, after: str = "") -> None:
        """Wait until a line of the console has some words, after something else."""

        def said() -> bool:
            console = self.so_far.console
            text = console.partition(after)[2] if after else console
            return any(mentions(line, words) for line in text.splitlines())

        wait_for(said, DEADLINE, lambda: f"no '{words}'\n{self.describe()}", pause=0.01)

    def notes(self, node: str, event: str, attempt: int) -> None:
        """Wait until the agent of a node has written down that something happened in an attempt."""

        def noted() -> bool:
            return any((one["event"], one.get("attempt")) == (event, attempt) for one in self.events(node))

        wait_for(noted, DEADLINE, lambda: f"no '{event}' on {node}\n{self.describe()}", pause=0.01)

    def hears_again(self, node: str) -> None:
        """Wait until some agent has written down that a node is there again."""

        def back() -> bool:
            found = self.folder.glob("logs/*.*/nodes/*/events.jsonl")
            told = [one for path in found for one in self.events(path.parent.name)]
            return any((one["event"], one.get("hosts")) == (events.NODE_BACK, node) for one in told)

        wait_for(back, DEADLINE, lambda: f"no '{events.NODE_BACK}' of {node}\n{self.describe()}", pause=0.01)

    def events(self, node: str) -> list[dict[str, Any]]:
        """What the agent of a node has written down so far."""
        found = self.folder.glob(f"logs/*.*/nodes/{node}/events.jsonl")
        lines = [line for path in found for line in path.read_text().splitlines(keepends=True)]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def agent(self, node: str) -> int:
        """The process id of the agent of a node."""
        return int(next(one["pid"] for one in self.events(node) if one["event"] == "run"))

    def fails(self, attempt: int, rank: int) -> None:
        """Let a rank of an attempt fail."""
        (self.folder / f"fails-{attempt}-{rank}").touch()

    def comes(self, node: str) -> None:
        """Let a node begin that is late."""
        (self.folder / f"comes-{node}").touch()

    def stops(self, *nodes: str, status: str = "69") -> None:
        """Wait until the launchers of nodes have stopped: with the status of those that cannot go on, for the most."""
        wait_for(lambda: all((self.folder / f"status-{node}").exists() for node in nodes), DEADLINE, self.describe)
        assert {(self.folder / f"status-{node}").read_text().strip() for node in nodes} == {status}, self.describe()

    def ends_well(self, *nodes: str) -> None:
        """Let it end; these launchers end well. (srun waits until Slurm knows of lost nodes.)"""
        (self.folder / "enough").touch()
        self.stops(*nodes, status="0")

    def ends(self) -> int:
        """Let it end; returns srun's status."""
        (self.folder / "enough").touch()
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; returns srun's status."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.describe()) from None


@contextlib.contextmanager
def run(
    cluster: Cluster,
    folder: Path,
    *options: str,
    nodes: int = 4,
    script: Sequence[str] = (),
    worker: str = TRAINS,
    late: str = "",
    before: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[Run]:
    """Start a job that may lose nodes.

    Args:
        cluster: Where.
        folder: Where it is started.
        options: Of hpc-launch.
        nodes: On how many nodes.
        script: What it runs, with arguments; `worker` by default.
        worker: The text of a script.
        late: A node on which it begins only when `Run.comes` says so.
        before: What the shell on each node does first.
        env: What all have in their environment besides.
    """
    (folder / "worker.py").write_text(worker)
    script = script or ("worker.py",)
    srun = ["srun", "--no-kill", f"--nodes={nodes}", "--ntasks-per-node=1", "--mem=500"]
    launch = shlex.join(["hpc-launch", "--nproc-per-node=1", *options, *script])
    waits = f"while [ $SLURMD_NODENAME = {late} ] && ! [ -e comes-{late} ]; do sleep 0.05; done; " if late else ""
    # A launcher's own status, also of one that srun cannot hear of.
    shell = f"trap : TERM; {before}{waits}{launch}; status=$?; echo $status >status-$SLURMD_NODENAME; exit $status"
    command = [*srun, "sh", "-c", shell]
    with (
        (folder / "console").open("w") as stream,
        cluster.popen(command, cwd=folder, env=env, stdout=stream, stderr=stream) as process,
    ):
        try:
            yield Run(cluster, folder, process)
        finally:
            process.kill()
