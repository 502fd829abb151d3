"""The console: lines are whole, progress bars are short, and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from hpc_launch import console
from hpc_launch.agent import output_console as output
from hpc_launch.agent.output_console import FollowedFile, OutputFollower
from hpc_launch.console import say
from hpc_launch.node.file_changes import FileChanges
from hpc_launch.records.output_lines import last_lines
from tests.support import lines_mention, wait_for

PATIENCE = 30.0


class Console:
    """A console that tests read: a pipe, and a thread that empties it, as a terminal does."""

    def __init__(self) -> None:
        self._read, self.descriptor = os.pipe()
        self._data = bytearray()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        while data := os.read(self._read, 1 << 16):
            self._data.extend(data)

    @property
    def lines(self) -> list[str]:
        """What has been shown so far."""
        return bytes(self._data).decode().split("\n")[:-1]

    def close(self) -> list[str]:
        """Return all that was shown."""
        os.close(self.descriptor)
        self._thread.join()
        os.close(self._read)
        assert self._data.endswith(b"\n") or not self._data
        return self.lines


@pytest.fixture
def shown() -> Iterator[Console]:
    made = Console()
    yield made
    if made._thread.is_alive():
        made.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rank_0.out"


def source(path: Path, shown: Console | Stopped, prefix: str = "[a:0] ") -> FollowedFile:
    return FollowedFile(path, prefix, shown.descriptor)


def show(path: Path, shown: Console, *pieces: bytes) -> list[str]:
    """Follow a file that grows by these pieces, looking after each; return what was shown in the end."""
    followed = source(path, shown, "> ")
    for piece in pieces:
        with path.open("ab") as stream:
            stream.write(piece)
        while followed.advance(final=False):
            pass
    while followed.advance(final=True):
        pass
    followed.close()
    return shown.close()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([], []),
        ([b"one\ntwo\n"], ["> one", "> two"]),
        ([b"o", b"ne", b"\ntw", b"o\n"], ["> one", "> two"]),
        ([b"\n\n"], ["> ", "> "]),
        ([b"one\r\ntwo\r\n"], ["> one", "> two"]),
        ([b"one\nrest"], ["> one", "> rest"]),
        ([b" 10%\r 20%\r", b" 30%\n"], [">  30%"]),
        ([b" 10%\r 20%\r"], [">  20%"]),
        ([b"caf\xc3", b"\xa9\n"], ["> caf\u00e9"]),
    ],
    ids=[
        "nothing",
        "lines",
        "in pieces",
        "empty lines",
        "CRLF",
        "no last end",
        "progress bar",
        "unfinished bar",
        "cut character",
    ],
)
def test_lines_are_whole(out: Path, shown: Console, pieces: list[bytes], expected: list[str]) -> None:
    """A line is shown when it ends, as a terminal would show it; a last line without an end, in the end."""
    assert expected == show(out, shown, *pieces)


def test_a_line_is_held_back_until_it_ends(out: Path, shown: Console) -> None:
    """Half a line is not shown."""
    followed = source(out, shown)
    out.write_bytes(b"one\ntw")
    assert followed.advance(final=False)
    wait_for(lambda: shown.lines, PATIENCE, "the first line")

    assert shown.lines == ["[a:0] one"]


@pytest.mark.parametrize("size", [1 << 16, (1 << 20) + 7, 3 << 20])
def test_a_huge_line_is_shown_in_pieces(out: Path, shown: Console, size: int) -> None:
    """No line is held in memory without end, no character of it is lost, and its end is not a line of its own."""
    first, *rest = show(out, shown, b"#" * size, b"\nnext\n")

    assert [size - first.count("#"), "> next"] == [sum(line.count("#") for line in rest), rest[-1]]
    assert set() == {line for line in rest[:-1] if "#" not in line}


def test_much_output_is_shown_in_order(out: Path, shown: Console) -> None:
    """More than is read at once comes through, every line once."""
    count = 200_000
    out.write_bytes(b"".join(b"line %d\n" % number for number in range(count)))

    assert [f"> line {number}" for number in range(count)] == show(out, shown)


@given(pieces=st.lists(st.text(alphabet="ab \n", max_size=6), max_size=12))
def test_what_is_shown_does_not_depend_on_when_one_looks(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str]
) -> None:
    """However a worker's writes are cut, its lines are shown as they are."""
    out = tmp_path_factory.mktemp("console") / "out"
    text = "".join(pieces)
    lines = text.split("\n")
    expected = lines if lines[-1] else lines[:-1]

    assert [f"> {line}" for line in expected] == show(out, Console(), *(piece.encode() for piece in pieces))


def test_a_follower_shows_files_that_appear_and_grow(tmp_path: Path, shown: Console) -> None:
    """Workers' files are followed from before they exist until after their last write."""
    files = [tmp_path / f"rank_{rank}.out" for rank in range(3)]
    follower = OutputFollower([source(path, shown, f"[a:{rank}] ") for rank, path in enumerate(files)])
    follower.start()
    files[1].write_text("early\n")
    wait_for(lambda: "[a:1] early" in shown.lines, PATIENCE, "a line of a file that appeared")
    files[0].write_text("first\n")
    with files[1].open("a") as stream:
        stream.write("late")
    follower.stop()

    assert sorted(shown.close()) == ["[a:0] first", "[a:1] early", "[a:1] late"]


def test_lines_of_many_files_do_not_mix(tmp_path: Path, shown: Console) -> None:
    """While eight workers write at once, every line on the console is one line of one of them."""
    follower = OutputFollower(
        [source(tmp_path / str(rank), shown, f"[a:{rank}] ") for rank in range(8)],
    )
    follower.start()

    def write(rank: int) -> None:
        with (tmp_path / str(rank)).open("wb", buffering=0) as stream:
            for number in range(200):
                stream.write(b"%d:" % rank)
                stream.write(b"%d\n" % number)

    writers = [threading.Thread(target=write, args=(rank,)) for rank in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    follower.stop()
    lines = shown.close()

    for rank in range(8):
        assert [f"[a:{rank}] {rank}:{number}" for number in range(200)] == [
            line for line in lines if line.startswith(f"[a:{rank}]")
        ]
    assert len(lines) == 8 * 200


def test_a_follower_is_woken_by_what_is_written(
    tmp_path: Path, shown: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at files when they grow, and not every now and then; so a quiet worker costs nothing."""
    monkeypatch.setattr(output, "_QUIET_SECONDS", 3600.0)
    out = tmp_path / "out"
    out.touch()
    follower = OutputFollower([source(out, shown)])
    follower.start()
    for count in (1, 2, 3):
        with out.open("a") as stream:
            stream.write("line\n")
        wait_for(lambda count=count: len(shown.lines) == count, PATIENCE, f"line {count}")  # type: ignore[misc]
    follower.stop()


def test_a_follower_does_without_the_kernels_word(
    tmp_path: Path, shown: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel reports nothing, a look now and then finds that out, and from then on looks are frequent."""
    looks: list[float] = []

    class Deaf(FileChanges):
        def wait(self, seconds: float = 0.0) -> bool:
            looks.append(seconds)
            if self.reported:
                time.sleep(min(seconds, 0.01))
                return False
            return super().wait(seconds)

    monkeypatch.setattr(output, "FileChanges", Deaf)
    out = tmp_path / "out"
    out.touch()
    follower = OutputFollower([source(out, shown)])
    follower.start()
    wait_for(lambda: looks, PATIENCE, "a look")
    out.write_text("line\n")
    wait_for(lambda: "[a:0] line" in shown.lines, PATIENCE, "the line")
    wait_for(lambda: not follower._changes.reported, PATIENCE, "distrust")
    follower.stop()


@pytest.mark.parametrize("sources", [0, 1])
def test_a_follower_that_never_started_can_be_stopped(tmp_path: Path, sources: int) -> None:
    """Stopping is safe at any time, with or without something to follow."""
    follower = OutputFollower([FollowedFile(tmp_path / "out", "", None)] * sources)
    follower.stop()
    follower = OutputFollower([])
    follower.start()
    follower.stop()


def test_a_question_is_shown(out: Path, shown: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not end is shown when nothing follows, if somebody can answer, and each part of it once."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    followed = FollowedFile(out, "> ", shown.descriptor, answered=lambda: True)

    def add(data: bytes) -> None:
        with out.open("ab") as stream:
            stream.write(data)
        followed.advance(final=False)
        assert followed.holds is (not data.endswith(b"\n"))
        now[0] += 1
        followed.advance(final=False)
        assert not followed.holds

    for data in (b"line\n(Pdb) ", b"(Pdb) ", b"x is 43\nname? ", b"\n", b"\nlast\n"):
        add(data)
    followed.close()

    assert shown.close() == ["> line", "> (Pdb) ", "> (Pdb) ", "> x is 43", "> name? ", "> ", "> last"]


def test_a_question_that_nobody_can_answer(out: Path, shown: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a line that has not ended yet, as any other."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    followed = FollowedFile(out, "> ", shown.descriptor, answered=lambda: False)
    out.write_bytes(b"step 1")
    for _ in range(3):
        followed.advance(final=False)
        now[0] += 1
    assert not followed.holds
    out.write_bytes(b"step 1 of 2\n")
    followed.advance(final=False)
    followed.close()

    assert shown.close() == ["> step 1 of 2"]


def test_filters_copy_lines(out: Path, tmp_path: Path, shown: Console) -> None:
    """Lines with one of the texts go to a second file as well, after those that are there."""
    copy = tmp_path / "filtered_stdout.log"
    copy.write_text("of before\n")
    out.write_text("loss 1\nnoise\nstep 2\nloss and step\n")
    followed = FollowedFile(out, "[a:0] ", shown.descriptor, copy, ("loss", "step"))
    followed.advance(final=True)
    followed.close()

    assert copy.read_text() == "of before\n[a:0] loss 1\n[a:0] step 2\n[a:0] loss and step\n"
    assert len(shown.close()) == 4


def test_filters_copy_lines_that_are_not_shown(out: Path, tmp_path: Path) -> None:
    """A rank whose output the console does not show still has its lines copied."""
    copy = tmp_path / "filtered_stdout.log"
    out.write_text("loss 1\nnoise\n")
    FollowedFile(out, "", None, copy, ("loss",)).advance(final=True)

    assert copy.read_text() == "loss 1\n"


def test_a_console_that_is_gone_is_no_error(out: Path) -> None:
    """A closed pipe (`srun ... | head`) stops nobody."""
    read, write = os.pipe()
    os.close(read)
    out.write_text("one\n")

    assert FollowedFile(out, "", write).advance(final=True)
    os.close(write)


def test_a_slow_console_that_does_not_block_is_waited_for(shown: Console) -> None:
    """A non-blocking descriptor that is full loses nothing."""
    os.set_blocking(shown.descriptor, False)
    data = b"x" * 999 + b"\n"
    console.CONSOLE.write(shown.descriptor, data * 1000)

    assert shown.close() == ["x" * 999] * 1000


def test_the_launchers_own_lines(capfd: pytest.CaptureFixture[str]) -> None:
    """They begin with the launcher's name, on stderr, whatever characters they have."""
    say("waiting for gpu[007,012] \u2026 \udcff")

    assert capfd.readouterr() == ("", "hpc-launch: waiting for gpu[007,012] \u2026 \\xdcff\n")


@pytest.mark.parametrize("speak", [say, console.tell])
def test_a_terminal_obeys_nothing_that_is_repeated(
    capfd: pytest.CaptureFixture[str], speak: Callable[[str], None]
) -> None:
    """Escapes, and characters that turn the text around, are left out or shown."""
    speak("host \x1b]0;title\x07\x1b[2J\u202egnp.\r said no")

    assert capfd.readouterr().err.removeprefix("hpc-launch: ") == "host \\x202egnp.\\x0d said no\n"


class Stopped:
    """A console that takes nothing: a pipe that is full."""

    def __init__(self) -> None:
        self.read, self.descriptor = os.pipe()
        os.set_blocking(self.descriptor, False)
        with contextlib.suppress(BlockingIOError):
            while os.write(self.descriptor, b"x" * 4096):
                pass
        os.set_blocking(self.descriptor, True)

    def go_on(self) -> bytes:
        """Take what is there."""
        return os.read(self.read, 1 << 20)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopped]:
    monkeypatch.setattr(console, "_PATIENCE", 0.05)
    made = Stopped()
    yield made
    os.close(made.read)
    os.close(made.descriptor)


def test_a_stopped_console_does_not_stop_the_launcher(stopped: Stopped) -> None:
    """Its own lines are left out then, and come again when the console goes on."""
    own = console.Console()
    for _ in range(20):
        own.say(stopped.descriptor, b"unheard\n" * 1000)
    stopped.go_on()
    own.say(stopped.descriptor, b"heard\n")
    own.say(stopped.descriptor, b"heard\n")

    assert stopped.go_on().endswith(b"heard\n")


def test_the_launcher_does_not_wait_for_a_follower_that_waits(stopped: Stopped, out: Path) -> None:
    """While a worker's lines cannot be shown, the launcher goes on, and so does the end of the run after a while."""
    out.write_text("one\n")
    follower = OutputFollower([source(out, stopped)])
    follower.start()
    assert not follower.finish(0.05)
    assert not follower.stop(patience=0.05)
    assert not follower.stop(hurry=lambda: True)
    stopped.go_on()

    assert follower.stop()


def served(monkeypatch: pytest.MonkeyPatch) -> console.Console:
    """A console with its thread, and nothing to do at the end of this process."""
    monkeypatch.setattr("hpc_launch.console.atexit.register", lambda _: None)
    made = console.Console()
    made.serve()
    return made


def test_nobody_waits_for_a_stopped_console(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said while the console takes nothing is shown when it goes on, in order."""
    own = served(monkeypatch)
    for number in range(100):
        own.say(stopped.descriptor, b"%d\n" % number)
    assert not own.settle(0.0)
    stopped.go_on()

    assert own.settle(PATIENCE)
    assert stopped.go_on() == b"".join(b"%d\n" % number for number in range(100))


def test_lines_without_end_are_counted(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A console that takes nothing for ever costs bounded memory, and one line says how many lines it has missed."""
    monkeypatch.setattr(console, "_MOST_WAITING", 10)
    own = served(monkeypatch)
    for number in range(25):
        own.say(stopped.descriptor, b"%d\n" % number)
    stopped.go_on()

    assert own.settle(PATIENCE)
    assert stopped.go_on() == b"".join(b"%d\n" % number for number in range(10))
    wait_for(lambda: own.settle(0.0), PATIENCE, "the note")
    assert lines_mention(capfd.readouterr().err.splitlines(), "hpc-launch 15")


def test_what_is_said_comes_before_what_is_written_then(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the launcher's own lines and the workers' is kept, whichever thread writes them."""
    own = served(monkeypatch)
    own.say(stopped.descriptor, b"said\n")
    writer = threading.Thread(target=own.write, args=(stopped.descriptor, b"written\n"))
    writer.start()
    stopped.go_on()
    writer.join()

    assert stopped.go_on() == b"said\nwritten\n"


def test_the_end_does_not_wait_for_a_console_that_has_taken_nothing_for_long(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time that the console has wasted already counts."""
    own = served(monkeypatch)
    own.say(stopped.descriptor, b"unheard\n")
    monkeypatch.setattr(own, "_moved", own._moved - PATIENCE)

    assert not own.settle(PATIENCE)
    # Its thread is not to write into what has the same descriptor next.
    stopped.go_on()
    assert stopped.go_on() == b"unheard\n"


def closed_terminal() -> int:
    """A terminal whose other end is gone: writing fails with EIO."""
    master, slave = os.openpty()
    os.close(master)
    return slave


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def no_descriptor() -> int:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.close(descriptor)
    return descriptor


FAILING = [closed_terminal, full_disk, closed_pipe, no_descriptor]


@pytest.mark.parametrize("make", FAILING)
def test_a_console_that_fails_is_no_error(make: Callable[[], int], shown: Console) -> None:
    """What it does not take is lost; what goes elsewhere is not."""
    own, descriptor = console.Console(), make()
    own.say(descriptor, b"lost\n")
    own.write(descriptor, b"lost\n")
    own.say(shown.descriptor, b"shown\n")

    assert own.settle(0.0)
    assert shown.close() == ["shown"]


@pytest.mark.parametrize("make", FAILING)
def test_a_follower_outlives_a_console_that_fails(make: Callable[[], int], out: Path, tmp_path: Path) -> None:
    """Lines that the console does not take are still copied where --duplicate-stdout-filters has them copied."""
    copy = tmp_path / "copy"
    follower = OutputFollower([FollowedFile(out, "", make(), copy, ("line",))])
    follower.start()
    out.write_text("line 1\n")
    wait_for(lambda: copy.exists() and copy.read_text(), PATIENCE, "the first line")
    with out.open("a") as stream:
        stream.write("line 2\n")

    assert follower.stop()
    assert copy.read_text() == "line 1\nline 2\n"


def test_a_line_that_was_cut_off_does_not_swallow_the_next(shown: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write that has failed half-way a new line begins."""
    own, write, sizes = console.Console(), os.write, iter([3])

    def failing(descriptor: int, data: bytes) -> int:
        size = next(sizes, None)
        if size is None:
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, data[:size])

    with monkeypatch.context() as patch:
        patch.setattr("hpc_launch.console.os.write", failing)
        own.write(shown.descriptor, b"one line\n")
    own.write(shown.descriptor, b"another\n")

    assert shown.close() == ["one", "another"]


def test_no_thread_is_there_before_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """The worker factory is forked from a process with a single thread: a line before that is written by its caller."""
    before = threading.active_count()
    console.Console().say(2, b"early\n")

    assert (threading.active_count(), capfd.readouterr().err) == (before, "early\n")


def test_attempts_are_shown_one_after_the_other(tmp_path: Path, stopped: Stopped) -> None:
    """An attempt's lines that the console has not taken yet come before those of the next."""
    paths = [tmp_path / "0", tmp_path / "1"]
    for path in paths:
        path.write_text(f"{path.name}\n")
    old = OutputFollower([source(paths[0], stopped)])
    old.start()
    assert not old.finish(0.0)
    new = OutputFollower([source(paths[1], stopped)], old)
    new.start()
    stopped.go_on()

    assert new.stop()
    assert stopped.go_on() == b"[a:0] 0\n[a:0] 1\n"


@pytest.mark.parametrize(
    ("data", "count", "expected"),
    [
        (b"one\ntwo\nthree\n", 2, ["two", "three"]),
        (b"one\ntwo", 5, ["one", "two"]),
        (b" 10%\r 20%\n", 1, [" 20%"]),
        (b"\xff\n", 1, ["\ufffd"]),
        (b"", 3, []),
    ],
)
def test_the_last_lines_of_a_file(out: Path, data: bytes, count: int, expected: list[str]) -> None:
    """The end of a file, for a person."""
    out.write_bytes(data)

    assert expected == last_lines(out, count)


def test_the_last_lines_of_a_large_file(out: Path) -> None:
    """Only the end of it is read."""
    out.write_bytes(b"x" * 1_000_000 + b"\nlast\n")

    assert last_lines(out, 2, limit=101) == ["x" * 95, "last"]


def test_the_last_lines_of_a_file_that_is_not_there(out: Path) -> None:
    """No file, no lines."""
    assert last_lines(out, 3) == []


def test_a_console_above_what_select_takes(shown: Console) -> None:
    """A descriptor above 1023 is waited for and written to like any other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    high = fcntl.fcntl(shown.descriptor, fcntl.F_DUPFD_CLOEXEC, 1500)
    own = console.Console()
    own.say(high, b"said\n")
    own.write(high, b"written\n")
    os.close(high)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert shown.close() == ["said", "written"]


def test_a_progress_bar_is_shown_now_and_then(out: Path, shown: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon at first, then less often; a bar that stands still is not repeated, and its end is shown as it comes."""
    now = [0.0]
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now[0]))
    followed = source(out, shown, "> ")
    for second in range(120):
        now[0] = float(second)
        with out.open("a") as stream:
            stream.write(f"\r{min(second, 50)}%")
        followed.advance(final=False)
    with out.open("a") as stream:
        stream.write("\r100%\n")
    followed.advance(final=True)
    followed.close()
    assert shown.close() == ["> 5%", "> 15%", "> 35%", "> 50%", "> 100%"]
