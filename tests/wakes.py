"""Count how often processes wake up: each time a thread of theirs that had nothing to do ran again (proc(5))."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil


def agent_and_factory(agent: int) -> list[int]:
    """An agent's process and that of its worker factory, which is its only child; the workers are the factory's."""
    return [agent, *(child.pid for child in psutil.Process(agent).children())]


def wakes_per_second(pids: Sequence[int], seconds: float) -> dict[int, float]:
    """Watch processes for a while; gives how often the threads of each woke up, all together."""
    before = [_waits(pid) for pid in pids]
    begin = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begin
    return {pid: (_waits(pid) - earlier) / passed for pid, earlier in zip(pids, before, strict=True)}


def _waits(pid: int) -> int:
    """How often the threads of a process have gone to sleep so far."""
    found = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for line in (thread / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            found += int(value) if name == "voluntary_ctxt_switches" else 0
    return found
