"""A step of probes: started, asked and ended, with a limit to every wait.

Orders go to all probes at once through srun's standard input, and answers come back through its standard output; so it
works wherever srun does. What srun says itself tells which node could not be started, and why.
"""

from __future__ import annotations

import contextlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from hpc_launch import codec, hostlist
from hpc_launch.errors import ContextError, HostlistError
from hpc_launch.probes import probe_protocol

# What all nodes but a few have done in some time, these get three times as long for, and at least so many seconds more.
_GRACE = 10.0
_FACTOR = 4.0

# srun gives up a node after MessageTimeout (10 s by default) and a bit, and says why: that is worth waiting for.
_LAUNCH = 15.0

_LABEL = re.compile(r"^\s*(\d+): ?(.*)$", re.DOTALL)
_NOT_LAUNCHED = re.compile(r"[Tt]ask launch for \S+ failed on node (\S+): (.*)")
_ENDED = re.compile(r"srun: error: (\S+): tasks? \S+: (.*)")
_ABORTED = re.compile(r"Application launch failed|[Tt]ask launch for \S+ failed")

# What slurmstepd says on one of the nodes when a step, or its job, is ended from outside.
_CANCELLED = " CANCELLED AT "

# Lines of a C++ stack, which are no reason.
_STACK = "frame #"

# How slurmstepd begins its lines.
_OF_SLURM = re.compile(r"^(slurmstepd\S*: )?(error: )?")


@dataclass
class _Node:
    """A probe, as it is seen from here.

    Attributes:
        doing: what it has said it is about to do.
        ended: why there is no probe any more; empty while there is one.
        said: the last line on its standard error.
    """

    doing: str = ""
    ended: str = ""
    said: str = ""
    decoder: probe_protocol.RecordDecoder = field(default_factory=probe_protocol.RecordDecoder)


@dataclass(frozen=True)
class _ProbeRecord:
    """A record of a probe: that it has begun, what it is about to do, or an answer.

    Attributes:
        hello: its node.
        doing: what it is about to do.
        order: the number of the order that it has done, or could not do.
        error: why it could not.
        answer: what has come of it.
    """

    hello: str | None
    doing: str | None
    order: int | None
    error: str | None
    answer: Any = None


@dataclass(frozen=True)
class ProbeAnswers:
    """What came back from one order.

    Attributes:
        given: the answers, by node.
        failed: the errors of nodes on which it could not be done.
        times: when each answer came (time.time).
        asked: when they were asked (time.time).
    """

    given: dict[str, Any]
    failed: dict[str, str]
    times: dict[str, float]
    asked: float


class ProbeSession:
    """Probes on some nodes, from `begin` to `end`.

    Attributes:
        alive: nodes whose probes have begun and answered everything so far, in order.
        lost: nodes whose probes could not be started or have ended, with the reason.
        silent: nodes whose probes did not answer in time, with what they were doing.
        cancelled: what Slurm said when the step was ended from outside; empty if it was not.

    Args:
        line: the srun line.
        environ: its environment.
        nodes: the nodes, in the step's order.
        patience: seconds for anything that is asked for.
    """

    def __init__(self, line: Sequence[str], environ: Mapping[str, str], nodes: Sequence[str], patience: float) -> None:
        self._line, self._environ, self._patience = list(line), environ, patience
        self._order = list(nodes)
        self._nodes = {node: _Node() for node in nodes}
        self._begun: set[str] = set()
        self._heard: queue.Queue[tuple[str, str]] = queue.Queue()
        self._srun: subprocess.Popen[str] | None = None
        self._number = 0
        self._answers: ProbeAnswers | None = None
        self._pumps: list[threading.Thread] = []
        self._open_streams = 0
        self._ending = False
        self._complaints: list[str] = []
        self.silent: dict[str, str] = {}
        self.cancelled = ""

    @property
    def lost(self) -> dict[str, str]:
        """The reasons, with the last word of each node."""
        return {name: _reason(self._nodes[name]) for name in self._order if self._nodes[name].ended}

    @property
    def complaint(self) -> str:
        """What srun has said last."""
        return self._complaints[-1] if self._complaints else ""

    @property
    def begun(self) -> tuple[str, ...]:
        """The nodes whose probes have begun."""
        return tuple(node for node in self._order if node in self._begun)

    @property
    def alive(self) -> tuple[str, ...]:
        """The nodes that can be asked."""
        return tuple(node for node in self.begun if not self._nodes[node].ended and node not in self.silent)

    def begin(self) -> bool:
        """Start the probes, and wait until they have begun.

        Returns:
            Whether they can be asked. Where one node cannot be reached srun ends the probes of all; `lost` and
            `silent` have what is known then, and the others are to be started again.

        Raises:
            ContextError: where there is no srun.
        """
        try:
            self._srun = subprocess.Popen(
                self._line,
                env=dict(self._environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the command, which then ends the step
            )
        except OSError as error:
            raise ContextError(
                f"cannot run srun ({error.strerror or error}), which starts a probe on each node: call hpc-launch "
                "where Slurm's commands are, outside of the container for instance"
            ) from error
        self._open_streams = 2
        for name, stream in (("out", self._srun.stdout), ("err", self._srun.stderr)):
            pump = threading.Thread(target=self._pump, args=(name, stream), name=f"srun {name}", daemon=True)
            pump.start()
            self._pumps.append(pump)
        missing = self._wait(lambda: set(self._order) - self._begun - set(self.lost), _LAUNCH)
        for node in missing:
            self.silent[node] = "being started"
        return not missing and not self.aborted

    @property
    def aborted(self) -> bool:
        """Whether srun has given up, and ends all probes."""
        return not self._open_streams or any(map(_ABORTED.search, self._complaints))

    def ask(self, do: str, *, least: float = 0.0, **more: Any) -> ProbeAnswers:
        """Ask all probes that are alive to do something, and wait until they have.

        Those that do not answer in time are not asked again.

        Args:
            do: what.
            least: seconds for which even the last one is waited for, where they give up something by themselves.
            more: what belongs to it.
        """
        self._number += 1
        asked = set(self.alive)
        answers = self._answers = ProbeAnswers({}, {}, {}, time.time())
        for node in asked:
            self._nodes[node].doing = ""
        self._write({"order": self._number, "do": do, **more})
        missing = self._wait(lambda: asked - set(answers.given) - set(answers.failed) - set(self.lost), least)
        for node in () if self.aborted else missing:
            self.silent[node] = self._nodes[node].doing or f"being asked for {do}"
        return answers

    def end(self) -> None:
        """End the probes; those that hang are left to Slurm."""
        if self._srun is None or self._srun.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._srun.stdin.close()
        clean = not self.silent and not self.aborted
        for stop, seconds in ((None, 3.0 if clean else 0.3), (self._srun.terminate, 1.0), (self._srun.kill, 5.0)):
            if stop is not None:
                self._ending = True  # from here on probes end because of this
                stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._srun.wait(seconds)
                break
        for pump in self._pumps:
            pump.join(1.0)
        while not self._heard.empty():
            self._hear(*self._heard.get())

    def _write(self, order: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):  # srun is gone: nobody answers, which is seen
            if self._srun is not None and self._srun.stdin is not None:
                self._srun.stdin.write(probe_protocol.encode_order(order))
                self._srun.stdin.flush()

    def _pump(self, name: str, stream: IO[str] | None) -> None:
        if stream is not None:
            with stream:
                for line in stream:
                    self._heard.put((name, line))
        self._heard.put(("end", ""))

    def _wait(self, missing: Callable[[], set[str]], least: float = 0.0) -> Collection[str]:
        """Hear what is said until nothing is missing, or the time is over; returns what still is."""
        count = len(missing())
        begin = time.monotonic()
        deadline = begin + max(self._patience, least)
        relaxed = True
        while left := missing():
            if relaxed and 2 * len(left) <= count:
                relaxed = False
                deadline = min(deadline, begin + max(_FACTOR * (time.monotonic() - begin), _GRACE, least))
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self.aborted:
                return left
            with contextlib.suppress(queue.Empty):
                self._hear(*self._heard.get(timeout=remaining))
        return ()

    def _hear(self, stream: str, line: str) -> None:
        if stream == "end":
            self._open_streams -= 1
            return
        label = _LABEL.match(line)
        node = self._order[int(label[1])] if label and int(label[1]) < len(self._order) else ""
        text = label[2] if label else line
        if stream == "out" and node:
            record = self._nodes[node].decoder.feed(text)
            if record is not None:
                self._on_record(node, record)
        elif stream == "err":
            self._complaint(node, text.strip())

    def _on_record(self, node: str, record: Mapping[str, Any]) -> None:
        now, said = time.time(), codec.salvage(_ProbeRecord, record)
        if said.hello is not None:
            self._begun.add(node)
        elif said.doing is not None:
            self._nodes[node].doing = said.doing
        elif said.order == self._number and self._answers is not None:
            self._answers.times[node] = now
            if said.error is not None:
                self._answers.failed[node] = said.error
            else:
                self._answers.given[node] = said.answer

    def _complaint(self, node: str, text: str) -> None:
        if not text:
            return
        if _CANCELLED in text and not self._ending:
            self.cancelled = _OF_SLURM.sub("", text).strip("* ")
        if node:
            if not text.startswith(_STACK):
                self._nodes[node].said = text
            return
        self._complaints.append(text)
        if match := _NOT_LAUNCHED.search(text):
            self._lose(match[1], f"Slurm cannot start a process there: {match[2]}")
        elif match := _ENDED.search(text):
            with contextlib.suppress(HostlistError):
                for name in hostlist.expand(match[1]):
                    if not self.aborted and not self._ending:
                        self._lose(name, f"its probe ended ({match[2]})")

    def _lose(self, node: str, why: str) -> None:
        if node in self._nodes and not self._nodes[node].ended:
            self._nodes[node].ended = why


def _reason(node: _Node) -> str:
    said = _OF_SLURM.sub("", node.said)
    return f"{node.ended}: {said}" if said else node.ended


def python_line(tasks: str) -> list[str]:
    """What a probe is started with: the Python that runs this, and MODULE:CLASS of its tasks."""
    return [sys.executable, "-m", "hpc_launch.probes.probe", tasks]
