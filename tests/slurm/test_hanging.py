"""A console takes nothing, or a log directory does not answer, for longer than a node may be silent: all stay."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slow_files import slow_files
from tests.slurm.losses_support import WAITS, Run, run
from tests.slurm.steps_support import DEADLINE
from tests.support import wait_for

NODES = ("gpu001", "gpu002", "gpu003")
NODE_TIMEOUT = 4
# An agent that is silent at first is asked again and again before it is given up.
HANGS = 3 * NODE_TIMEOUT + 2
KINDS = {
    "fixed": ("--max-restarts=1",),
    "elastic": ("--nnodes=1:3", "--max-restarts=1", f"--node-timeout={NODE_TIMEOUT}"),
}


class Console:
    """A console of one node that takes all that is written, until it is stopped: then it is a pipe that is full.

    Attributes:
        text: what was written to it and taken.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "console-of-a-node"
        os.mkfifo(path)
        self.text = ""
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._end, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        self._stopping = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Take nothing more."""
        self._stopping.set()
        self._reader.join()
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._end, b"." * 256)

    def release(self) -> None:
        """Take all that is written from now on."""
        self._stopping.clear()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Take what is there for as long as somebody may write, and then no more."""
        self._stopping.set()
        self._reader.join()
        self._take()
        os.close(self._end)

    def _read(self) -> None:
        while not self._stopping.is_set():
            if select.select([self._end], [], [], 0.05)[0]:
                self._take()

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._end, select.PIPE_BUF):
                self.text += data.decode(errors="replace").strip(".")


@contextlib.contextmanager
def console_of(folder: Path, node: str) -> Iterator[tuple[Console, str]]:
    """A console for one node, and what its shell does to have it."""
    console = Console(folder)
    try:
        yield console, f"[ $SLURMD_NODENAME != {node} ] || exec >console-of-a-node 2>&1; "
    finally:
        console.close()


def pass_time(seconds: float) -> None:
    """Let time pass: that is the story."""
    time.sleep(seconds)


def assert_undisturbed(job: Run, said: str = "") -> None:
    """All nodes were there all the time, and one attempt followed on the failure of a rank."""
    console = job.so_far.console + said
    wrong = [line for line in console.splitlines() if "lost the agent" in line or "takes over" in line]
    assert (job.so_far.attempts(), wrong) == ([0, 1], []), f"{said}\n{job.describe()}"


CONSOLES = [
    pytest.param(kind, node, marks=[] if (kind, node) == ("elastic", "gpu001") else pytest.mark.soak)
    for kind in KINDS
    for node in NODES[:2]
]


@pytest.mark.parametrize(("kind", "node"), CONSOLES)
def test_a_console_takes_nothing(cluster: Cluster, tmp_path: Path, kind: str, node: str) -> None:
    """While one node is late, through a failure and the next attempt, and until the other nodes have ended."""
    late = NODES[-1]
    others = [one for one in NODES if one != node]
    with (
        console_of(tmp_path, node) as (console, before),
        run(cluster, tmp_path, *KINDS[kind], nodes=len(NODES), worker=WAITS, before=before, late=late) as job,
    ):
        wait_for(lambda: "ranks" in console.text or node != NODES[0], DEADLINE, job.describe)
        console.stop()
        pass_time(HANGS)  # it says after ten seconds that a node is late
        job.comes(late)
        job.trains_on(0, *NODES)
        job.fails(0, 1)
        job.trains_on(1, *NODES)
        job.ends_well(*others)
        console.release()
        status = job.ended()

    assert status == 0, f"{console.text}\n{job.describe()}"
    assert_undisturbed(job, console.text)


@pytest.mark.parametrize("node", ["gpu001", pytest.param("gpu002", marks=pytest.mark.soak)])
def test_a_console_takes_nothing_when_a_node_is_lost(cluster: Cluster, tmp_path: Path, node: str) -> None:
    """The others go on without that node, and the leader leads them, though there is much to say of it."""
    left, lost = NODES[:2], NODES[2]
    with (
        console_of(tmp_path, node) as (console, before),
        run(cluster, tmp_path, *KINDS["elastic"], nodes=len(NODES), worker=WAITS, before=before) as job,
    ):
        job.trains_on(0, *NODES)
        console.stop()
        cluster.kill(lost)
        job.trains_on(1, *left)
        pass_time(HANGS)
        job.fails(1, 1)
        job.trains_on(2, *left)
        job.ends_well(next(one for one in left if one != node))
        console.release()
        job.stops(node, status="0")

    assert "takes over" not in job.so_far.console + console.text, f"{console.text}\n{job.describe()}"


BEGIN, RUN, RESTART, END = PHASES = (
    "before the first attempt",
    "while workers run",
    "at a restart",
    "at the end",
)


@dataclass(frozen=True)
class Hang:
    """When and where the log directory does not answer.

    Attributes:
        kind: of the run.
        node: which one has the trouble; all where it is empty.
        phase: when.
        seconds: for how long.
    """

    kind: str
    node: str
    phase: str
    seconds: float

    def __str__(self) -> str:
        """A name for the test."""
        return f"{self.kind}, {self.node or 'all'}, {self.phase}"


ESSENTIAL = Hang("elastic", "gpu001", RESTART, HANGS)
ALL = [Hang(kind, node, phase, 30) for kind in KINDS for node in ("gpu001", "gpu002", "") for phase in PHASES]


def hangs() -> Sequence[object]:
    """The cases: one always, all for half a minute in the soak."""
    return [
        pytest.param(ESSENTIAL, id=str(ESSENTIAL)),
        *(pytest.param(one, id=f"{one}, long", marks=pytest.mark.soak) for one in ALL),
    ]


@pytest.mark.parametrize("hang", hangs())
def test_the_log_directory_does_not_answer(cluster: Cluster, tmp_path: Path, hang: Hang) -> None:
    """What must wait for it waits; no node is lost, and all goes on as soon as it answers."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with slow_files(tmp_path, logs) as files, contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def hanging(phase: str) -> Iterator[None]:
            """In this phase the directory hangs while something else begins, and for a while after it."""
            if phase == hang.phase:
                files.hang(hang.node)
            yield
            if phase == hang.phase:
                pass_time(hang.seconds)
                files.answer(hang.node)

        with hanging(BEGIN):
            job = stack.enter_context(
                run(cluster, tmp_path, *KINDS[hang.kind], nodes=len(NODES), worker=WAITS, env=files.environ)
            )
        job.trains_on(0, *NODES)
        with hanging(RUN):
            pass
        with hanging(RESTART):
            job.fails(0, 1)
        job.trains_on(1, *NODES)
        with hanging(END):
            (tmp_path / "enough").touch()
        status = job.ends()

    assert status == 0, job.describe()
    assert_undisturbed(job)
