"""The output of workers: in order, selected, folded, followed, whatever lies in the job directory."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.inspection import log_reader
from hpc_launch.inspection.line_folding import LineFolding
from hpc_launch.inspection.log_reader import LogLine
from hpc_launch.inspection.output_files import OutputFile, OutputSelection, cut, why_nothing_selected
from hpc_launch.records import events, output_times
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.records.output_lines import LineSplitter
from hpc_launch.records.output_times import OutputTimes
from hpc_launch.settings import Streams
from tests.support import lines_mention, mentions, wait_for

PATIENCE = 30.0
ALL = OutputSelection(attempts=None)


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    return JobDirectory(tmp_path / "logs", "12.0")


def write(job: JobDirectory, rank: int, text: str, *, err: str = "", attempt: int = 0, host: str = "gpu01") -> None:
    """Let a rank write to its files."""
    files = job.rank(attempt, host, rank)
    files.out.parent.mkdir(parents=True, exist_ok=True)
    for path, said in ((files.out, text), (files.err, err)):
        with path.open("a") as stream:
            stream.write(said)


def times_of(job: JobDirectory, *lines: dict[str, float], attempt: int = 0, host: str = "gpu01") -> None:
    """Write down when files grew."""
    job.times(attempt, host).write_text("".join(json.dumps(line) + "\n" for line in lines))


def texts(found: Iterator[LogLine]) -> list[str]:
    return [line.text for line in found]


def test_lines_know_whose_they_are(job: JobDirectory) -> None:
    """Each line comes with its rank, host, attempt and stream."""
    write(job, 3, "one\n", attempt=2, host="gpu02")
    write(job, 4, "", err="two", attempt=2, host="gpu02")
    (one, two) = log_reader.read_lines(job)

    assert (one.text, one.rank, one.host, one.attempt, one.stream) == ("one", 3, "gpu02", 2, Streams.OUT)
    assert (two.text, two.rank, two.stream) == ("two", 4, Streams.ERR)


def test_lines_come_by_time(job: JobDirectory) -> None:
    """Where it is written down when files grew, lines of all ranks and streams are merged by that."""
    write(job, 0, "a1\na2\na3\n", err="e1\n")
    write(job, 1, "b1\nb2\n", host="gpu02")
    times_of(job, {"time": 100, "0.out": 3}, {"time": 103, "0.out": 6, "0.err": 3}, {"time": 105, "0.out": 9})
    times_of(job, {"time": 102, "1.out": 3}, {"time": 104, "1.out": 6}, host="gpu02")

    found = list(log_reader.read_lines(job))
    assert texts(iter(found)) == ["a1", "b1", "a2", "e1", "b2", "a3"]
    assert [line.time for line in found] == [100, 102, 103, 103, 104, 105]


def test_clocks_are_corrected(job: JobDirectory) -> None:
    """A node whose clock is ahead is put right."""
    write(job, 0, "a1\na2\n")
    write(job, 1, "b1\nb2\n", host="gpu02")
    times_of(job, {"time": 100, "0.out": 3}, {"time": 102, "0.out": 6})
    times_of(job, {"time": 191, "1.out": 3}, {"time": 193, "1.out": 6}, host="gpu02")

    log = EventLog(job.events("gpu02"), 1)
    log.record(events.CLOCK, offset=3.0)
    log.record(events.CLOCK, offset=90.0)
    job.events("gpu03").parent.mkdir()
    job.events("gpu03").write_bytes(b'"clock"\n{"event": "clock", "offset": "much"}\0')

    assert texts(log_reader.read_lines(job)) == ["a1", "b1", "a2", "b2"]


def test_what_nobody_has_written_down_counts_as_late_as_the_file(job: JobDirectory) -> None:
    """Without such notes a whole file is as old as its last change; the end of one is not older than what is known."""
    write(job, 0, "a1\na2\n")
    write(job, 1, "b1\n")
    write(job, 2, "c1\n")
    times_of(job, {"time": 100, "0.out": 3})
    for rank, moment in ((0, 150), (1, 120), (2, 99)):
        os.utime(job.rank(0, "gpu01", rank).out, (moment, moment))

    assert texts(log_reader.read_lines(job)) == ["c1", "a1", "b1", "a2"]


def test_a_line_counts_when_it_ends(job: JobDirectory) -> None:
    """A look in the middle of a line does not cut it."""
    write(job, 0, "begin-end\n")
    write(job, 1, "between\n")
    times_of(job, {"time": 100, "0.out": 6}, {"time": 102, "1.out": 8, "0.out": 10})

    assert texts(log_reader.read_lines(job)) == ["begin-end", "between"]


def test_rank_after_rank(job: JobDirectory) -> None:
    """--per-rank has each rank by itself, both streams of it by time."""
    write(job, 0, "a1\na2\n", err="e1\n")
    write(job, 1, "b1\n")
    times_of(job, {"time": 100, "1.out": 3, "0.out": 3}, {"time": 101, "0.err": 3}, {"time": 102, "0.out": 6})

    assert texts(log_reader.read_lines(job, per_rank=True)) == ["a1", "e1", "a2", "b1"]


def test_attempts_come_one_after_the_other(job: JobDirectory) -> None:
    """Whatever the clocks say."""
    write(job, 0, "first\n")
    write(job, 0, "second\n", attempt=1)
    os.utime(job.rank(1, "gpu01", 0).out, (1, 1))

    assert texts(log_reader.read_lines(job, ALL)) == ["first", "second"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (OutputSelection(), ["0 gpu01 2 out", "1 gpu01 2 out", "2 gpu02 2 out", "3 gpu02 2 out"]),
        (OutputSelection(ranks=frozenset({1, 3, 9})), ["1 gpu01 2 out", "3 gpu02 2 out"]),
        (OutputSelection(hosts=frozenset({"gpu02"})), ["2 gpu02 2 out", "3 gpu02 2 out"]),
        (OutputSelection(ranks=frozenset({1}), attempts=frozenset({0, 1})), ["1 gpu01 0 out", "1 gpu01 1 out"]),
        (OutputSelection(ranks=frozenset({1}), attempts=frozenset({-2})), ["1 gpu01 1 out"]),
        (OutputSelection(ranks=frozenset({1}), attempts=None), [f"1 gpu01 {attempt} out" for attempt in range(3)]),
        (OutputSelection(attempts=frozenset({7, -9})), []),
        (OutputSelection(streams=Streams.ERR), ["oh 3"]),
        (OutputSelection(pattern=re.compile("^[03]")), ["0 gpu01 2 out", "3 gpu02 2 out"]),
    ],
)
def test_what_is_selected(job: JobDirectory, selection: OutputSelection, expected: list[str]) -> None:
    """By rank, node, attempt (the last one by default), stream and text."""
    for attempt in range(3):
        for rank in range(4):
            host = f"gpu0{1 + rank // 2}"
            write(job, rank, f"{rank} {host} {attempt} out\n", host=host, attempt=attempt)
    write(job, 3, "", err="oh 3\n", attempt=2, host="gpu02")
    if selection.streams is Streams.ALL:
        job.rank(2, "gpu02", 3).err.unlink()

    assert sorted(expected) == sorted(texts(log_reader.read_lines(job, selection)))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("per_rank", [False, True])
def test_the_last_lines(job: JobDirectory, count: int, end: str, *, per_rank: bool) -> None:
    """--tail is what tail would leave of all that is shown; rank by rank, of each."""
    for rank in range(2):
        write(job, rank, f"{rank} one\n\n{rank} three{end}")
    whole = texts(log_reader.read_lines(job, per_rank=per_rank))
    wanted = [line for rank in range(2) for line in whole[3 * rank :][:3][-count:]] if per_rank else whole[-count:]

    assert (wanted if count else []) == texts(log_reader.read_lines(job, per_rank=per_rank, tail=count))


def test_the_last_lines_that_fit(job: JobDirectory) -> None:
    """Lines are counted after they were selected."""
    write(job, 0, "yes 1\nyes 2\nno\nyes 3\nno\nno\n")

    assert texts(log_reader.read_lines(job, OutputSelection(pattern=re.compile("yes")), tail=2)) == ["yes 2", "yes 3"]


def test_the_last_lines_of_large_files(job: JobDirectory) -> None:
    """They are found from the end, however long lines are."""
    write(job, 0, "x" * 3_000_000 + "\n" + "y" * 1_500_000 + "\nlast\n")

    assert texts(log_reader.read_lines(job, tail=2)) == ["y" * 1_500_000, "last"]


def test_progress_bars_are_short(job: JobDirectory) -> None:
    """Of a line that was written over and over, the last state is shown; other control characters stay."""
    files = job.rank(0, "gpu01", 0)
    files.out.parent.mkdir(parents=True)
    files.out.write_bytes(b" 10%\r 20%\r 30%\nred \x1b[31m\xff\n")

    assert texts(log_reader.read_lines(job)) == [" 30%", "red \x1b[31m\ufffd"]


# ---- what else can lie there


def disturb(job: JobDirectory) -> list[str]:
    """Put things into the directory that are not what they should be; return the words for what cannot be read."""
    folder = job.node(0, "gpu01")
    (folder / "rank_1.out").mkdir()
    (folder / "rank_x.out").write_text("foreign")
    (folder / "notes.txt").write_text("foreign")
    (folder / "rank_2.out").symlink_to("nowhere")
    (job.attempt(0) / "job.json").write_text("{")
    (job.path / "attempt_1").write_text("a file")
    (job.path / "attempt_x").mkdir()
    job.times(0, "gpu01").write_bytes(
        b'\0\0{"time": 1, "0.out": "many"}\n{"time": 1e99, "0.out": 3}\n[]\n{"time": 9, "0.o'
    )
    return [
        "attempt_0/gpu01/rank_1.out",
        "attempt_0/gpu01/rank_2.out",
        "attempt_0/gpu01/times.jsonl 2",
    ]


def test_nothing_in_the_directory_makes_it_fail(job: JobDirectory) -> None:
    """What cannot be read is named once, and everything else is shown."""
    write(job, 0, "one\ntwo")
    expected = disturb(job)
    notes: list[str] = []

    assert texts(log_reader.read_lines(job, ALL, note=notes.append)) == ["one", "two"]
    assert lines_mention(sorted(notes), *expected)


def test_no_directory_no_lines(job: JobDirectory) -> None:
    """Nor is it an error that there is no job."""
    assert list(log_reader.read_lines(job)) == []


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (OutputSelection(), ""),
        (OutputSelection(ranks=frozenset({9})), "1 0-2 gpu01"),
        (OutputSelection(hosts=frozenset({"gpu9"})), "1 0-2 gpu01"),
        (OutputSelection(attempts=frozenset({4})), "0-1"),
        (OutputSelection(attempts=frozenset({0})), "0"),
    ],
)
def test_a_selection_that_nothing_fits(job: JobDirectory, selection: OutputSelection, expected: str) -> None:
    """A slip is told from silence."""
    job.attempt(0).mkdir(parents=True)
    for rank in range(3):
        write(job, rank, "", attempt=1)

    assert mentions(why_nothing_selected(job, selection), expected)
    assert bool(why_nothing_selected(job, selection)) == bool(expected)


# ---- following


class Followed:
    """Lines that are followed in a thread."""

    def __init__(self, job: JobDirectory, selection: OutputSelection | None = None, tail: int | None = None) -> None:
        self.lines: list[str] = []
        self.begun = threading.Event()
        self.over = threading.Event()
        self._found = log_reader.read_batches(job, selection, follow=True, ended=self.over.is_set, tail=tail)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for batch in self._found:
            self.lines += [f"{line.attempt}:{line.rank} {line.text}" for line in batch.lines]
            self.begun.set()

    def wait(self, line: str) -> None:
        wait_for(lambda: line in self.lines, PATIENCE, lambda: f"no {line}: {self.lines}")

    def end(self) -> list[str]:
        self.over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.lines


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Followed]]:
    monkeypatch.setattr(log_reader, "_SHORTEST_PAUSE", 0.01)
    made: list[Followed] = []

    def begin(*words: Sequence[object], **more: object) -> Followed:
        made.append(Followed(*words, **more))  # type: ignore[arg-type]
        return made[-1]

    yield begin
    for followed in made:
        followed.end()


def test_what_is_written_is_followed(job: JobDirectory, follow: Callable[..., Followed]) -> None:
    """First what is there, then what comes, from ranks that were not there yet too; a last half line in the end."""
    write(job, 0, "one\ntw")
    followed = follow(job)
    followed.wait("0:0 one")
    write(job, 0, "o\nthree\n")
    followed.wait("0:0 three")
    write(job, 1, "four\n", host="gpu02")
    followed.wait("0:1 four")
    write(job, 1, "fi")

    assert followed.end() == ["0:0 one", "0:0 two", "0:0 three", "0:1 four", "0:1 fi"]


def test_following_goes_on_with_the_attempts_that_follow(job: JobDirectory, follow: Callable[..., Followed]) -> None:
    """The last attempt is followed into the next; what the old one wrote last comes before that."""
    write(job, 0, "old\n")
    write(job, 0, "one\n", attempt=1)
    followed = follow(job)
    followed.wait("1:0 one")
    write(job, 0, "cut", attempt=1)
    write(job, 0, "two\n", attempt=2)
    followed.wait("2:0 two")
    write(job, 0, "three\n", attempt=3)
    followed.wait("3:0 three")

    assert followed.end() == ["1:0 one", "1:0 cut", "2:0 two", "3:0 three"]


def test_an_attempt_that_is_named_is_followed_alone(job: JobDirectory, follow: Callable[..., Followed]) -> None:
    """Even one that has not begun."""
    write(job, 0, "zero\n")
    followed = follow(job, OutputSelection(attempts=frozenset({1})))
    write(job, 0, "one\n", attempt=1)
    followed.wait("1:0 one")
    write(job, 0, "two\n", attempt=2)

    assert followed.end() == ["1:0 one"]


def test_following_begins_with_the_last_lines(job: JobDirectory, follow: Callable[..., Followed]) -> None:
    """--tail 0 shows only what is new, whole lines of it."""
    write(job, 0, "one\ntw")
    followed = follow(job, tail=0)
    assert followed.begun.wait(PATIENCE)
    write(job, 0, "o\n")
    followed.wait("0:0 two")

    assert followed.end() == ["0:0 two"]


def test_a_file_that_is_emptied_is_followed_from_its_beginning(
    job: JobDirectory, follow: Callable[..., Followed]
) -> None:
    """Somebody makes room on a full disk: what is written afterwards is shown."""
    write(job, 0, "a long line of before\n")
    followed = follow(job)
    followed.wait("0:0 a long line of before")
    os.truncate(job.rank(0, "gpu01", 0).out, 0)
    write(job, 0, "new\n")
    followed.wait("0:0 new")


def test_nothing_is_lost_while_many_write(job: JobDirectory, follow: Callable[..., Followed]) -> None:
    """Eight ranks write at once, in pieces: each one's lines come whole, all of them, in order."""
    followed = follow(job)

    def talk(rank: int) -> None:
        for number in range(100):
            write(job, rank, f"line {number}")
            write(job, rank, "\n")

    talkers = [threading.Thread(target=talk, args=(rank,)) for rank in range(8)]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join()
    found = followed.end()

    for rank in range(8):
        assert [line for line in found if line.startswith(f"0:{rank} ")] == [f"0:{rank} line {n}" for n in range(100)]


# ---- when files grew


def test_it_is_written_down_when_files_grow(tmp_path: Path) -> None:
    """Each look has what has grown since the one before; nothing is written where nothing has."""
    paths = {"0.out": tmp_path / "a", "1.err": tmp_path / "b"}
    looking = OutputTimes(tmp_path / "times.jsonl", paths)
    before = time.time()
    assert looking.look() is None
    assert not (tmp_path / "times.jsonl").exists()
    paths["0.out"].write_text("12345")
    looking.look()
    looking.look()
    paths["1.err"].write_text("123")
    paths["0.out"].write_text("1234567")
    looking.look()

    found, problem = output_times.read_output_times(tmp_path / "times.jsonl")
    assert {name: [size for _, size in steps] for name, steps in found.items()} == {"0.out": [5, 7], "1.err": [3]}
    assert (problem, min(time for steps in found.values() for time, _ in steps) >= before - 1) == ("", True)


def test_notes_that_cannot_be_made_are_no_error(tmp_path: Path) -> None:
    """The reason is returned, for somebody to say it."""
    (tmp_path / "a").write_text("1")
    problem = OutputTimes(tmp_path / "nowhere/times.jsonl", {"0.out": tmp_path / "a"}).look()

    assert isinstance(problem, FileNotFoundError)


def test_notes_become_few_where_they_are_many(tmp_path: Path) -> None:
    """The longer they are, the seldom they come."""
    looking = OutputTimes(tmp_path / "times.jsonl", {})
    pauses = []
    for size in (0, 2 << 20, 9 << 20):
        looking._written = size
        pauses.append(looking.pause)

    assert pauses == [1.0, 5.0, 30.0]


FILE = OutputFile(Path("x"), 0, "gpu01", 0, Streams.OUT)


@given(
    steps=st.lists(st.tuples(st.floats(0, 1e6), st.integers(-5, 200))),
    size=st.integers(0, 150),
    changed=st.floats(0, 1e6),
)
def test_pieces_cover_a_file_in_order(steps: list[tuple[float, int]], size: int, changed: float) -> None:
    """Whatever is written down, every byte is in one piece, and times do not go back."""
    steps = sorted(steps)
    pieces = cut(FILE, steps, size, changed)

    assert [byte for piece in pieces for byte in range(piece.begin, piece.end)] == list(range(size))
    assert [piece.time for piece in pieces] == sorted(piece.time for piece in pieces)
    assert all(piece.end > piece.begin for piece in pieces)


@given(pieces=st.lists(st.binary(max_size=8).map(lambda data: data.replace(b"\r", b"\n")), max_size=12))
def test_lines_do_not_depend_on_how_they_are_read(pieces: list[bytes]) -> None:
    """However a file is cut, its lines are the same."""
    cutter = LineSplitter()
    found = [line for piece in pieces for line in cutter.feed(piece)] + cutter.feed(b"", final=True)
    whole = b"".join(pieces)

    assert found == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


@pytest.mark.parametrize(
    ("text", "bar"),
    [
        (b"\r 1%\r 2%", b" 2%"),
        (b"\r 1%\r", b" 1%"),
        (b" 1%\r", b""),
        (b"line", b""),
        (b"\r 1%\ndone", b""),
        (b" 1%\r 2%\r", b" 2%"),
    ],
)
def test_the_state_of_a_progress_bar(text: bytes, bar: bytes) -> None:
    """As a terminal shows it, as long as its line has not ended."""
    cutter = LineSplitter()
    cutter.feed(text)
    assert cutter.bar == bar


# ---- folding


def line(text: str, rank: int, moment: float = 0.0, **more: object) -> LogLine:
    facts = {"host": f"gpu0{1 + rank // 2}", "attempt": 0, "stream": Streams.OUT, **more}
    return LogLine(text, rank, time=moment, **facts)  # type: ignore[arg-type]


def folded(*lines: LogLine, window: float = 10.0) -> list[tuple[str, list[int]]]:
    fold = LineFolding(window)
    found = []
    for one in lines:
        fold.add([one])
        found += fold.due(one.time)
    return [(one.text, sorted(one.ranks)) for one in [*found, *fold.rest()]]


def test_equal_lines_are_folded() -> None:
    """A line that several ranks write is one, with all of them; what came first stays first."""
    assert folded(line("a", 0), line("a", 1), line("b", 1), line("b", 0), line("c", 1)) == [
        ("a", [0, 1]),
        ("b", [0, 1]),
        ("c", [1]),
    ]


def test_a_rank_that_repeats_itself_is_not_folded_with_itself() -> None:
    """The second line of one goes with the second of the others."""
    assert folded(line("a", 0), line("a", 0), line("a", 1)) == [("a", [0, 1]), ("a", [0])]


def test_lines_far_apart_are_not_folded() -> None:
    """Epoch 1 of one rank is not epoch 1 of another an hour later; nor are streams and attempts mixed."""
    assert folded(line("a", 0, 0.0), line("b", 1, 20.0), line("a", 1, 21.0)) == [("a", [0]), ("b", [1]), ("a", [1])]
    assert len(folded(line("a", 0), line("a", 1, stream=Streams.ERR), line("a", 2, attempt=1))) == 3


def test_the_rank_that_torch_writes_before_a_traceback_is_left_out() -> None:
    """Otherwise the same traceback of many ranks would never be the same; others' numbers stay."""
    assert folded(line("[rank0]: ValueError", 0), line("[rank1]: ValueError", 1), line("[rank1]: x", 0)) == [
        ("ValueError", [0, 1]),
        ("[rank1]: x", [0]),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.floats(0, 30)), max_size=40),
    st.floats(0.1, 20),
)
def test_folding_loses_nothing(said: list[tuple[int, str, float]], window: float) -> None:
    """Every line of every rank is in one folded line, in the order in which the rank wrote them."""
    said = sorted(said, key=lambda item: item[2])
    found = folded(*(line(text, rank, moment) for rank, text, moment in said), window=window)

    for rank in range(4):
        own = sorted(text for text, ranks in found if rank in ranks)
        assert own == sorted(text for who, text, _ in said if who == rank)
