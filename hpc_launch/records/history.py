"""Read a job directory: what happened, as far as it can still be read.

Nothing that lies in the directory makes this fail: what is empty, cut off, foreign, or being written at this moment is
left out, and `History.unreadable` says so. `history_model` has the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_launch import codec
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.event_merge import MergedEvents
from hpc_launch.records.history_model import History, JobEnd, ProgressMark, Requeue
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.records.regular_files import content, entries
from hpc_launch.records.requeue_ledger import BY_SLURM

_MARK = re.compile(r"rank_(\d{1,9})\.json")
_ATTEMPT = re.compile(r"attempt_(\d{1,9})")


def read_history(path: Path) -> History:
    """Read a job directory; one that is not there is an empty history, with a line that says so."""
    reader = _DirectoryReader(JobDirectory(path.parent, path.name))
    return reader.history()


class _DirectoryReader:
    def __init__(self, job: JobDirectory) -> None:
        self._job = job
        self._unreadable: list[str] = []

    def history(self) -> History:
        names = self._entries(self._job.path, needed=True)
        gathered = MergedEvents(self._job)
        for host in self._entries(self._job.events("_").parents[1]):
            if not host.startswith("."):
                gathered.add(host, self._lines(self._job.events(host), needed=True))
        starts = [int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name))]
        found = {number: self._object(self._job.plan(number)) for number in starts}
        plans = {number: codec.salvage(PlanRecord, facts) for number, facts in found.items() if facts is not None}
        return History(
            path=self._job.path,
            runs=gathered.runs(plans),
            attempts=gathered.attempts(),
            nodes=gathered.nodes(),
            node_events=gathered.node_events(),
            rolls=gathered.rolls(),
            node_states=gathered.node_states(),
            notices=gathered.notices(),
            clocks=gathered.clocks(),
            requeues=tuple(_requeue(facts) for facts in self._lines(self._job.ledger)),
            progress=self._progress(),
            end_time=codec.salvage(JobEnd, self._object(self._job.end_time) or {}).end,
            unreadable=tuple(self._unreadable),
        )

    def _progress(self) -> tuple[ProgressMark, ...]:
        folder = self._job.progress(0).parent
        found = []
        for name in self._entries(folder):
            match = _MARK.fullmatch(name)
            facts = self._object(folder / name) if match else None
            if match and facts is not None:
                found.append(codec.salvage(ProgressMark, facts, rank=int(match[1])))
        return tuple(sorted(found, key=lambda mark: mark.rank))

    def _object(self, path: Path) -> Mapping[str, Any] | None:
        data = self._content(path)
        if data is None:
            return None
        facts = codec.parse(data)
        if facts is None:
            self._say(path, "it is empty" if not data.strip() else "it is not what hpc-launch writes there")
        return facts

    def _lines(self, path: Path, *, needed: bool = False) -> Sequence[Mapping[str, Any]]:
        data = self._content(path, needed=needed)
        if data is None:
            return []
        found, bad, cut = codec.parse_lines(data)
        if bad:
            self._say(path, f"{bad} line{'s are' if bad > 1 else ' is'} not what hpc-launch writes there")
        if cut:
            self._say(path, "its last line is cut off, or being written")
        return found

    def _content(self, path: Path, *, needed: bool = False) -> bytes | None:
        found = content(path)
        if isinstance(found, bytes):
            return found
        if found or needed:
            self._say(path, found or "it is not there")
        return None

    def _entries(self, path: Path, *, needed: bool = False) -> list[str]:
        found = entries(path)
        if isinstance(found, str) or (found is None and needed):
            self._say(path, found or "it is not there")
        return found if isinstance(found, list) else []

    def _say(self, path: Path, what: str) -> None:
        try:
            name = str(path.relative_to(self._job.path))
        except ValueError:
            name = str(path)
        self._unreadable.append(f"{path if name == '.' else name}: {what}")


def _requeue(facts: Mapping[str, Any]) -> Requeue:
    found = codec.salvage(Requeue, facts)
    # Versions before `by_slurm` have these words only.
    return replace(found, by_slurm=found.by_slurm or found.cause == BY_SLURM)
