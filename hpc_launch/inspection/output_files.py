"""Which files of a job directory have the workers' output, and what was written to them when."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import codec, ranges
from hpc_launch.records import formatting, history, node_states, output_times
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import CLOCK, NODE_LOST
from hpc_launch.records.regular_files import content, entries
from hpc_launch.settings import Streams

_ATTEMPT = re.compile(r"attempt_(\d{1,9})")
_FILE = re.compile(r"rank_(\d{1,9})\.(out|err)")
_STREAMS = {"out": Streams.OUT, "err": Streams.ERR}

Note = Callable[[str], None]
"""Told what could not be read, a line each."""


@dataclass(frozen=True)
class OutputSelection:
    """Which lines are wanted.

    Attributes:
        ranks: of these; None for all.
        hosts: of the workers on these nodes; None for all.
        attempts: of these; negative numbers count from the last one, -1. None for all.
        streams: stdout, stderr, or both.
        pattern: lines in which this is found; None for all.
    """

    ranks: frozenset[int] | None = None
    hosts: frozenset[str] | None = None
    attempts: frozenset[int] | None = frozenset({-1})
    streams: Streams = Streams.ALL
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class OutputFile:
    """A file with the output of one worker in one attempt."""

    path: Path
    attempt: int
    host: str
    rank: int
    stream: Streams

    @property
    def place(self) -> tuple[int, int, Streams]:
        """Where it stands among the others."""
        return self.attempt, self.rank, self.stream

    @property
    def key(self) -> str:
        """What it is called where the times are written down."""
        return f"{self.rank}.{'out' if self.stream is Streams.OUT else 'err'}"


@dataclass(frozen=True)
class OutputPiece:
    """A part of a file that was written at about the same time.

    Attributes:
        time: when it was there, in seconds since the epoch.
        file: of which file.
        begin: its first byte.
        end: the one after its last.
    """

    time: float
    file: OutputFile
    begin: int
    end: int


@dataclass
class OutputFolders:
    """Looks for output files, again and again, without listing directories that have not changed.

    Args:
        directory: the job directory.
        selection: which files are wanted.
        note: told what could not be read, once each.
    """

    directory: JobDirectory
    selection: OutputSelection
    note: Note
    _noted: set[str] = field(default_factory=set)

    def attempts(self) -> list[int]:
        """The attempts that there are."""
        found = self._names(self.directory.path)
        return sorted(int(match[1]) for name in found if (match := _ATTEMPT.fullmatch(name)))

    def wanted_attempts(self, there: Sequence[int]) -> list[int]:
        """Those of them that are asked for."""
        asked = self.selection.attempts
        if asked is None:
            return list(there)
        counted = {there[number] for number in asked if number < 0 and -number <= len(there)}
        return [number for number in there if number in asked or number in counted]

    def files(self, attempts: Iterable[int]) -> Iterator[OutputFile]:
        """The output files of some attempts that are asked for."""
        for attempt in attempts:
            folder = self.directory.attempt(attempt)
            for host in self._names(folder):
                if self.selection.hosts is None or host in self.selection.hosts:
                    yield from self._of(folder / host, attempt, host)

    def _of(self, folder: Path, attempt: int, host: str) -> Iterator[OutputFile]:
        for name in self._names(folder):
            match = _FILE.fullmatch(name)
            if match is None:
                continue
            rank, stream = int(match[1]), _STREAMS[match[2]]
            ranks = self.selection.ranks
            if stream & self.selection.streams and (ranks is None or rank in ranks):
                yield OutputFile(folder / name, attempt, host, rank, stream)

    def pieces(self, files: Iterable[OutputFile], offset: Callable[[str], float]) -> list[list[OutputPiece]]:
        """The pieces of files, file by file, as they are now.

        Args:
            files: which.
            offset: how many seconds a node's clock was ahead.
        """
        known: dict[Path, dict[str, list[tuple[float, int]]]] = {}
        found = []
        for file in files:
            path = self.directory.times(file.attempt, file.host)
            if path not in known:
                known[path], problem = output_times.read_output_times(path)
                if problem:
                    self.say(f"{self._below(path)}: {problem}")
            try:
                status = file.path.stat()
            except OSError as error:
                self.say(f"{self._below(file.path)}: {error.strerror or error}")
                continue
            steps = [(time - offset(file.host), size) for time, size in known[path].get(file.key, ())]
            found.append(cut(file, steps, status.st_size, status.st_mtime))
        return found

    def say(self, line: str) -> None:
        """Note something, once."""
        if line not in self._noted:
            self._noted.add(line)
            self.note(line)

    def _names(self, path: Path) -> list[str]:
        found = entries(path)
        if isinstance(found, str) and not path.is_file():
            self.say(f"{self._below(path)}: {found}")
        return found if isinstance(found, list) else []

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self.directory.path)) if path != self.directory.path else str(path)


def clock_offsets(directory: JobDirectory) -> dict[str, float]:
    """By how many seconds the clocks of nodes were ahead when they were measured last; of others nothing is known.

    Of the records only this is read, since jobs with many ranks have many.
    """
    found = {}
    hosts = entries(directory.events("_").parents[1])
    for host in hosts if isinstance(hosts, list) else []:
        data = content(directory.events(host))
        lines = [line for line in data.splitlines() if b'"clock"' in line] if isinstance(data, bytes) else []
        for facts in codec.parse_lines(b"\n".join(lines))[0]:
            numbers = codec.fitting(facts, codec.number)
            if facts.get("event") == CLOCK and "offset" in numbers:
                found[host] = numbers["offset"]
    return found


def why_nothing_selected(directory: JobDirectory, selection: OutputSelection) -> str:
    """Why there is nothing of what is selected, in a line; empty if there is something."""
    folders = OutputFolders(directory, selection, lambda _: None)
    there = folders.attempts()
    attempts = folders.wanted_attempts(there)
    if next(folders.files(attempts), None) is not None:
        return ""
    if not attempts:
        return f"no such attempt: there are {ranges.fold(there)}" if there else "there is no attempt yet"
    all_of_them = OutputSelection(attempts=selection.attempts)
    files = list(OutputFolders(directory, all_of_them, lambda _: None).files(attempts))
    if not files:
        return f"no worker of attempt {ranges.fold(attempts)} has a file with its output in {directory.path}"
    ranks, hosts = ranges.fold(file.rank for file in files), formatting.fold_hosts(file.host for file in files)
    return f"nothing fits: attempt {ranges.fold(attempts)} has files of ranks {ranks} on {hosts}"


def lost_nodes(directory: JobDirectory, selection: OutputSelection) -> list[str]:
    """Of nodes that were lost in what is selected: a line for each attempt."""
    hosts = entries(directory.events("_").parents[1])
    said = (content(directory.events(host)) for host in hosts) if isinstance(hosts, list) else ()
    if not any(isinstance(data, bytes) and f'"{NODE_LOST}"'.encode() in data for data in said):
        return []  # there is no need to understand all of it
    found = history.read_history(directory.path)
    folders = OutputFolders(directory, selection, lambda _: None)
    lost = [(number, node_states.lost_in(found, number)) for number in folders.wanted_attempts(folders.attempts())]
    wanted = [(number, nodes if selection.hosts is None else nodes & selection.hosts) for number, nodes in lost]
    return [
        f"attempt {number}: lost {formatting.fold_hosts(nodes)}, so the last that was written there may not be seen"
        for number, nodes in wanted
        if nodes
    ]


def cut(file: OutputFile, steps: Sequence[tuple[float, int]], size: int, changed: float) -> list[OutputPiece]:
    """Cut a file at the places where it is known when it had grown that far. Pure.

    Args:
        file: the file.
        steps: times and what it had grown to, in order.
        size: its size now.
        changed: when it was changed last, which is the time of what no step covers.
    """
    found: list[OutputPiece] = []
    begin = 0
    for time, end in steps:
        if end > size:
            break  # it was emptied since
        if end > begin:
            found.append(OutputPiece(time, file, begin, end))
            begin = end
    if begin < size:
        last = found[-1].time if found else changed
        found.append(OutputPiece(max(last, changed), file, begin, size))
    return found
