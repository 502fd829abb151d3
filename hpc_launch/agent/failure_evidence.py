"""What is known of why a worker ended: the exception that it has left, its last words, what the kernel did.

Looking costs a few reads of small files, and is done only for workers that have failed.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_launch import codec
from hpc_launch.node import oom_kills
from hpc_launch.node.kernel_log import KernelLog
from hpc_launch.records import hardware_faults, regular_files, root_cause, tracebacks
from hpc_launch.records.directory import RankFiles
from hpc_launch.records.history_model import Failure, RaisedException
from hpc_launch.records.output_lines import last_lines
from hpc_launch.text import size
from hpc_launch.workers.exception_file import ErrorDetails, ErrorFile, ErrorMessage

# How much of the end of a worker's output is looked at, and how much of that is kept.
_TAIL = 1 << 16
_LINES = 20
_LONGEST_LINE = 400
_LONGEST_MESSAGE = 1000
_GPU_LINES = 5

# Whom the driver's line is about: `pid=1234`, or `pid='<unknown>'` where it is about the device.
_ABOUT = re.compile(r"\bpid='?(\d+)")

# The kernel's word of a process that it has killed (mm/oom_kill.c).
_KILLED = re.compile(r"(?P<group>Memory cgroup o|O)ut of memory.*: Killed process (?P<pid>\d+)")

# What a program says whose child was killed (torch's DataLoader, concurrent.futures).
_CHILD_KILLED = re.compile(r"killed by signal: Killed|terminated abruptly")


@dataclass(frozen=True)
class KernelBaseline:
    """Where the kernel's counters and its log stood when the attempt began."""

    kills: oom_kills.OomKillCounts
    log: KernelLog | None = None

    @classmethod
    def now(cls) -> KernelBaseline:
        """Look."""
        return cls(oom_kills.count_oom_kills(), KernelLog())

    def close(self) -> None:
        """The attempt is over."""
        if self.log is not None:
            self.log.close()


def gather_evidence(files: RankFiles, pid: int, exitcode: int, before: KernelBaseline, *, ended: float) -> Failure:
    """Look at what a worker has left behind.

    Args:
        files: where it wrote; what it did not write is not there.
        pid: its process id.
        exitcode: how it ended, -N for signal N.
        before: where the kernel stood when the attempt began.
        ended: when it ended.

    Returns:
        What is known of why it failed, of which little may be known.
    """
    errors, output = (last_lines(path, _TAIL, _TAIL) for path in (files.err, files.out))
    exception = _left(files.error, ended)
    if exitcode == 1 and (exception is None or exception.type == root_cause.EXIT):
        report = tracebacks.find_traceback(errors)
        if report is not None:
            exception = RaisedException(report.type, report.message, report.where, "stderr")
    if exception is not None:
        exception = replace(exception, message=exception.message[:_LONGEST_MESSAGE])
    shown = errors if any(errors) else output
    kernel = before.log.said() if before.log is not None else ()
    driver = [line for line in kernel if hardware_faults.by_kernel(line) and {*_ABOUT.findall(line)} <= {str(pid)}]
    speaking = [*(line for line in [*errors, *output] if hardware_faults.DEVICE.search(line)), *driver]
    # What shows that a device is broken is not to be among what is left out.
    gpu = sorted(
        dict.fromkeys(line[:_LONGEST_LINE] for line in speaking),
        key=lambda line: not hardware_faults.broken_hardware(line),
    )
    killed = exitcode == -signal.SIGKILL or any(_CHILD_KILLED.search(line) for line in errors)
    return Failure(
        where=tracebacks.fatal_place(errors) if exitcode < 0 else "",
        over=exitcode < 0 and tracebacks.script_was_over(errors),
        exception=exception,
        lines=tuple(line[:_LONGEST_LINE] for line in shown[-_LINES:]),
        oom=_judge_oom_kill(pid, before.kills, oom_kills.count_oom_kills(), kernel) if killed else "",
        gpu=tuple(gpu[:_GPU_LINES]),
        log=str(files.err if any(errors) else files.out) if shown else "",
    )


def _left(path: Path, ended: float) -> RaisedException | None:
    """The exception of an error file, by torch's `record` or by `workers.exception_file`."""
    data = regular_files.content(path)
    facts = codec.parse(data) if isinstance(data, bytes) else None
    found = codec.salvage(ErrorFile, facts or {}).message
    said, details = (found.message, found.details) if isinstance(found, ErrorMessage) else (found, ErrorDetails())
    if not said:
        return None
    short, _, message = said.partition(": ")
    report = tracebacks.find_traceback(details.py_callstack.splitlines())
    moment = details.time
    if moment is None and details.timestamp.isdecimal():
        moment = min(ended, float(details.timestamp) + 1)  # torch writes whole seconds
    return RaisedException(
        type=details.type or (report.type if report else short),
        message=tracebacks.essence(message),
        where=details.where or (report.where if report else ""),
        source="hook",
        time=moment,
    )


def _judge_oom_kill(
    pid: int, before: oom_kills.OomKillCounts, after: oom_kills.OomKillCounts, kernel: Sequence[str]
) -> str:
    """What the kernel did, in words; empty if it did nothing."""
    killed = [found for line in kernel if (found := _KILLED.search(line)) and int(found["pid"]) == pid]
    counted = before.group is not None and after.group is not None and after.group > before.group
    if counted or any(found["group"] != "O" for found in killed):
        limit = oom_kills.limit()
        at = f" ({size(limit)})" if limit is not None else ""
        return f"the kernel killed a process for reaching the job's memory limit{at}: ask for more with --mem"
    if killed or (before.node is not None and after.node is not None and after.node > before.node):
        return "the kernel killed a process of this node because the node was out of memory"
    return ""
