"""What happened, a JSON object a line, in each node's `events.jsonl`.

Every event has `time` (seconds since the epoch by this node's clock), `event` (its name), `agent` (the number of the
agent that wrote it) and, once there is one, `attempt` (as in the job directory). Beyond that:

    run             an agent's run has begun: host, node_rank, agents, pid, run_id, first_attempt,
                    restart_count (Slurm's), versions
    attempt         all agents have met: host, world_size, agents
    clock           offset: seconds that this node's clock is ahead of the leader's; error: how wrong that can be
    binding         which CPUs the workers got: why, omp_num_threads, shares
    worker started  rank, local_rank, pid, device ("GPU 3"; empty without one)
    worker ended    rank, local_rank, exitcode (-N for signal N), told (the signal that the agent had sent it; empty
                    if it ended by itself), usage, and failure unless it ended well
    notice          a notice signal was passed on, or more workers got it: signal, number, told (how many workers got it
                    now), waiting (how many have no handler for it)
    heartbeat       seldom: running (workers), waiting (ranks that hang in the kernel)
    node missing    the leader waits for nodes: hosts (folded), joined, expected, waited (seconds)
    nodes           of a run that may lose nodes, by its leader: who takes part in an attempt: hosts (those with
                    workers), spares, leader (its host), lost (who took part before and does not any more)
    node lost       an agent was lost: hosts (folded); of a parted network each side says so of the other
    node back       a node that was lost is there again, and waits for the next attempt: hosts
    node state      what Slurm says of a node that was lost: host, state, gone (no job is started there now), reason,
                    since (when there was that reason), booted, waited (seconds since the loss), last (it was not asked
                    again)
    node drained    a node has shown to be bad, and is behind the spares from now on: hosts, why (words that go on with
                    its name), stays (there is no spare in its place)
    hang            nobody does anything: seconds (of silence), cause (with where they are), stacks (their directory)
    job ending      what Slurm said of the job when a stop signal had come: ending (time limit, preemption, cancelled,
                    node failure, out of memory, requeued by Slurm, signalled), user (who cancelled it, where known)
    round ended     ending (done, restart, failed), by (host), status, cause, signal (of a stop)
    run ended       the agent leaves: status, cause

`usage` is {user, system (seconds), max_rss (bytes)}. `failure` is what is known of why, each part only if there is one:

    exception  {type, message, where (file:line), time, source: hook, or stderr where it was read off the output}
    lines      the last lines of stderr, or of stdout where there is nothing else
    log        the file that ends with these lines: its name, or its path where it is not in the job directory
    oom        the memory limit that the kernel enforced, in words
    where      file:line where a fatal signal met it, as faulthandler has written
    over       the signal came when no frame of Python was left: the script had ended
    gpu        lines about the device, or about hardware that is broken: CUDA, NCCL, Xid
    hung       the process could not be killed: it hangs in the kernel, in this function

What is longer than a reader needs is cut, so that an event is some kilobytes at most. Readers pass over events and
fields that they do not know.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_launch import codec
from hpc_launch.records import directory

RUN = "run"
ATTEMPT = "attempt"
CLOCK = "clock"
BINDING = "binding"
WORKER_STARTED = "worker started"
WORKER_ENDED = "worker ended"
NOTICE = "notice"
HEARTBEAT = "heartbeat"
NODE_MISSING = "node missing"
NODES = "nodes"
NODE_LOST = "node lost"
NODE_BACK = "node back"
NODE_STATE = "node state"
NODE_DRAINED = "node drained"
HANG = "hang"
JOB_ENDING = "job ending"
ROUND_ENDED = "round ended"
RUN_ENDED = "run ended"

# An event that is longer than this loses its failure: no reader is to meet lines without end.
_LONGEST = 1 << 15


class EventLog:
    """Appends events to one file.

    Events are whole lines, one or several in a write, to a file opened for appending, so that the agents of a node can
    share it. An event that cannot be written (a full disk) is dropped: training goes on. Threads may share this.

    Args:
        path: the file.
        agent: the number of the agent.
        job: the job directory, from which on all directories have to be one's own.
    """

    def __init__(self, path: Path, agent: int, job: Path | None = None) -> None:
        self._path = path
        self._job = job
        self._agent = agent
        self._held: list[str] | None = None
        self._lock = threading.Lock()
        directory.make(path.parent, job)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write the events of a while in one go, at its end: on a network file system each time costs round trips."""
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
        finally:
            with self._lock:
                text, self._held = "".join(self._held), None
                self._write(text)

    def record(self, event: str, *, when: float | None = None, **facts: Any) -> None:
        """Append one event.

        Args:
            event: its name.
            when: when it happened, if that was not just now (seconds since the epoch).
            facts: what else there is to say.
        """
        moment = round(time.time() if when is None else when, 3)
        common = {"time": moment, "event": event, "agent": self._agent}
        line = codec.line({**common, **facts})
        if len(line) > _LONGEST:
            line = codec.line({**common, **{name: fact for name, fact in facts.items() if name != "failure"}})
        with self._lock:
            if self._held is not None:
                self._held.append(line)
            else:
                self._write(line)

    def _write(self, text: str) -> None:
        if text:
            with contextlib.suppress(OSError):
                directory.append(self._path, text, self._job)
