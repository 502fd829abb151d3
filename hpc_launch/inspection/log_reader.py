"""The output of workers, read from their files: of all ranks by time, rank by rank, or as it is written.

The files have no times of their own. The agents write down every second or so how far each has grown
(`records.output_times`), and by that lines are merged: those of one rank and stream are always in order, those of
different ranks as well as a second tells. What nobody has written down counts as written when its file was changed
last. What is followed comes in the order in which it is seen.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby

from hpc_launch.inspection.output_files import (
    Note,
    OutputFile,
    OutputFolders,
    OutputPiece,
    OutputSelection,
    clock_offsets,
)
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.output_lines import LineSplitter
from hpc_launch.records.regular_files import open_regular
from hpc_launch.settings import Streams

_CHUNK = 1 << 20
_LONGEST_LINE = 1 << 23

# Seconds between two looks at files that are followed; more where looking takes longer.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _PAUSE_PER_LOOK = 0.2, 5.0, 4.0

# So long after an attempt was seen first, the files of all its workers are there; then directories are listed seldom.
_SETTLED, _SELDOM = 60.0, 20.0


@dataclass(frozen=True)
class LogLine:
    """A line of a worker.

    Attributes:
        text: as a terminal would show it.
        rank: whose it is.
        host: on which node.
        attempt: in which attempt.
        stream: stdout or stderr.
        time: when it was there at the latest, as well as that is known.
    """

    text: str
    rank: int
    host: str
    attempt: int
    stream: Streams
    time: float


@dataclass(frozen=True)
class LineBatch:
    """Lines that come together.

    Attributes:
        lines: in order; none if nothing has happened since.
        now: no later line has an earlier time.
    """

    lines: Sequence[LogLine]
    now: float


def read_lines(
    directory: JobDirectory,
    selection: OutputSelection | None = None,
    *,
    per_rank: bool = False,
    tail: int | None = None,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: False,
    note: Note = lambda _: None,
) -> Iterator[LogLine]:
    """Read the output of a job.

    Args:
        directory: its directory.
        selection: what is wanted; without one, all of the last attempt.
        per_rank: rank after rank, not by time.
        tail: only the last so many lines; of each rank, if `per_rank`.
        follow: go on with what is written from now on, with the attempts that follow, and through requeues. Those come
            in the order in which they are seen.
        ended: says that nothing more comes, to end the following.
        note: told what could not be read.
    """
    found = read_batches(
        directory,
        selection,
        per_rank=per_rank,
        tail=tail,
        follow=follow,
        ended=ended,
        note=note,
    )
    return chain.from_iterable(batch.lines for batch in found)


def read_batches(
    directory: JobDirectory,
    selection: OutputSelection | None = None,
    *,
    per_rank: bool = False,
    tail: int | None = None,
    follow: bool = False,
    ended: Callable[[], bool] = lambda: False,
    note: Note = lambda _: None,
) -> Iterator[LineBatch]:
    """Read as `read_lines` does, what comes together together; while nothing comes, an empty batch now and then."""
    selection = selection or OutputSelection()
    folders = OutputFolders(directory, selection, note)
    reader = _OutputReader(folders, selection)
    there = folders.attempts()
    attempts = folders.wanted_attempts(there)
    files = sorted(folders.files(attempts), key=_place)
    offsets = clock_offsets(directory)
    pieces = folders.pieces(files, lambda host: offsets.get(host, 0.0))
    yield from _past(reader, pieces, per_rank=per_rank, tail=tail, final=not follow)
    if follow:
        yield from _Following(folders, reader, set(files), attempts).batches(ended)


def _past(
    reader: _OutputReader, pieces: Sequence[Sequence[OutputPiece]], *, per_rank: bool, tail: int | None, final: bool
) -> Iterator[LineBatch]:
    """What is there already."""
    if tail is not None and reader.selection.pattern is None:
        pieces = [reader.skip(of_file, tail) for of_file in pieces]
    full = [of_file for of_file in pieces if of_file]
    groups: Iterable[Iterable[Sequence[OutputPiece]]] = [full]
    if per_rank:
        groups = [list(group) for _, group in groupby(full, key=lambda of_file: of_file[0].file.place[:2])]
    for group in groups:
        ends = {of_file[0].file: of_file[-1].end for of_file in group} if final else {}
        found = reader.read(heapq.merge(*group, key=_order), ends)
        if tail is None:
            yield from found
        else:
            last = deque(chain.from_iterable(batch.lines for batch in found), tail)
            if last:
                yield LineBatch(last, last[-1].time)


def _order(piece: OutputPiece) -> tuple[int, float, int, int]:
    return piece.file.attempt, piece.time, piece.file.rank, piece.file.stream


@dataclass
class _OutputReader:
    """Reads files piece by piece, each from where it was left."""

    folders: OutputFolders
    selection: OutputSelection
    places: dict[OutputFile, int] = field(default_factory=dict)
    _lines: dict[OutputFile, LineSplitter] = field(default_factory=dict)

    def read(self, pieces: Iterable[OutputPiece], ends: Mapping[OutputFile, int]) -> Iterator[LineBatch]:
        """Read pieces.

        Args:
            pieces: in order.
            ends: where files end; a last line there counts even if it has no end.
        """
        for piece in pieces:
            begin = piece.begin
            while begin < piece.end:
                data = self._data(piece.file, begin, min(_CHUNK, piece.end - begin))
                if not data:
                    break
                begin += len(data)
                final = begin == ends.get(piece.file)
                yield LineBatch(self._cut(piece.file, data, piece.time, final=final), piece.time)
            self.places[piece.file] = begin

    def grown(self, file: OutputFile, now: float) -> Iterator[list[LogLine]]:
        """What a file has gained."""
        while True:
            begin = self.places.get(file, 0)
            data = self._data(file, begin, _CHUNK)
            if not data:
                if begin and self._size(file, begin) < begin:
                    self.places[file] = 0  # it was emptied, and begins anew
                return
            self.places[file] = begin + len(data)
            yield self._cut(file, data, now)

    def rest(self, file: OutputFile, now: float) -> list[LogLine]:
        """A last line of a file that has no end."""
        return self._cut(file, b"", now, final=True)

    def skip(self, pieces: Sequence[OutputPiece], count: int) -> list[OutputPiece]:
        """Leave out all but the last lines of a file."""
        if not pieces:
            return []
        size = pieces[-1].end
        begin = self._last_lines(pieces[0].file, size, count)
        self.places[pieces[0].file] = size
        return [
            OutputPiece(piece.time, piece.file, max(piece.begin, begin), piece.end)
            for piece in pieces
            if piece.end > begin
        ]

    def _last_lines(self, file: OutputFile, size: int, count: int) -> int:
        """Where the last lines of a file begin; one that has no end yet is one, too, and is never cut."""
        end, left = size, -1
        while end > 0:
            begin = max(0, end - _CHUNK)
            data = self._data(file, begin, end - begin)
            if left < 0:
                left = max(1, count + data.endswith(b"\n"))
            at = len(data)
            while left and (at := data.rfind(b"\n", 0, at)) >= 0:
                left -= 1
            if not left:
                return begin + at + 1
            end = begin
        return 0

    def _cut(self, file: OutputFile, data: bytes, now: float, *, final: bool = False) -> list[LogLine]:
        pattern = self.selection.pattern
        cutter = self._lines.setdefault(file, LineSplitter(_LONGEST_LINE))
        texts = [line.decode("utf-8", "replace") for line in cutter.feed(data, final=final)]
        if pattern is not None:
            texts = [text for text in texts if pattern.search(text)]
        return [LogLine(text, file.rank, file.host, file.attempt, file.stream, now) for text in texts]

    def _size(self, file: OutputFile, otherwise: int) -> int:
        try:
            return file.path.stat().st_size
        except OSError:
            return otherwise

    def _data(self, file: OutputFile, begin: int, count: int) -> bytes:
        try:
            with open_regular(file.path) as stream:
                stream.seek(begin)
                return stream.read(count) or b""
        except OSError as error:
            self.folders.say(f"{file.path.relative_to(self.folders.directory.path)}: {error.strerror or error}")
            return b""


class _Following:
    """What is written from now on."""

    def __init__(
        self, folders: OutputFolders, reader: _OutputReader, files: set[OutputFile], attempts: Sequence[int]
    ) -> None:
        self._folders = folders
        self._reader = reader
        self._files = files
        self._attempts = list(attempts)
        self._first = attempts[-1] if attempts else 0
        self._settled = time.monotonic() + _SETTLED
        self._listed = 0.0

    def batches(self, ended: Callable[[], bool]) -> Iterator[LineBatch]:
        """Batches, until the end."""
        while True:
            begin = time.monotonic()
            yield from self._look()
            if ended():
                # What was written before the end, and seen by nobody yet.
                yield from self._look(last=True)
                yield self._rest(self._files)
                return
            took = time.monotonic() - begin
            time.sleep(min(max(_SHORTEST_PAUSE, _PAUSE_PER_LOOK * took), _LONGEST_PAUSE))

    def _look(self, *, last: bool = False) -> Iterator[LineBatch]:
        """One look at all files."""
        old = self._list(last=last)
        if old:
            # It ends before the next one begins.
            yield from self._grown(old)
            yield self._rest(old)
            self._files -= old
        nothing = True
        for batch in self._grown(self._files):
            nothing = False
            yield batch
        if nothing:
            yield LineBatch((), time.time())

    def _grown(self, files: Iterable[OutputFile]) -> Iterator[LineBatch]:
        for file in sorted(files, key=_place):
            now = time.time()
            for found in self._reader.grown(file, now):
                yield LineBatch(found, now)

    def _rest(self, files: Iterable[OutputFile]) -> LineBatch:
        now = time.time()
        return LineBatch([line for file in sorted(files, key=_place) for line in self._reader.rest(file, now)], now)

    def _list(self, *, last: bool) -> set[OutputFile]:
        """Find new files; returns those of attempts that are over because another one has begun."""
        now = time.monotonic()
        asked = self._folders.selection.attempts
        there = self._folders.attempts()
        # The last one is followed into those that come after it.
        later = [number for number in there if number >= self._first] if asked is None or -1 in asked else []
        wanted = sorted({*self._folders.wanted_attempts(there), *later} - set(self._attempts))
        if wanted:
            self._attempts += wanted
            self._settled = now + _SETTLED
        if last or wanted or now < self._settled or now > self._listed + _SELDOM:
            self._listed = now
            self._files |= set(self._folders.files(self._attempts[-max(1, len(wanted)) :]))
        if not wanted:
            return set()
        return {file for file in self._files if file.attempt < self._attempts[-1]}


def _place(file: OutputFile) -> tuple[int, int, Streams]:
    return file.place
