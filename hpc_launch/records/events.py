"""What happened, a JSON object a line, in each node's `events.jsonl`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from hpc_launch.records import directory


class EventLog:
    """Appends events to one file.

    Each event is one write of one line to a file opened for appending, so that the agents of a node can share it. An
    event that cannot be written (a full disk) is dropped: training goes on.

    Every event has `time` (seconds since the epoch, this node's clock), `event` (its name) and `agent`.
    """

    def __init__(self, path: Path, agent: int) -> None:
        self._path = path
        self._agent = agent
        directory.make(path.parent)

    def record(self, event: str, **facts: Any) -> None:
        """Append one event."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, "agent": self._agent, **facts}) + "\n"
        with contextlib.suppress(OSError):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
