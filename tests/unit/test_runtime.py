"""What training scripts ask and tell: numbers, time, signals, progress, and one answer on all ranks."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from hpc_launch import runtime
from hpc_launch.records.directory import JobDirectory
from hpc_launch.runtime.end_time import EndTime
from hpc_launch.runtime.notices import NoticeHandler
from hpc_launch.runtime.progress_writer import ProgressWriter
from hpc_launch.runtime.stop_agreement import Agreement
from hpc_launch.runtime.worker_process import WorkerProcess
from tests.support import mentions

# No script here takes longer, on however slow a machine.
TIMEOUT = 60


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with a process that knows nothing."""
    fresh = WorkerProcess()
    fresh._arranged = True  # the process of the tests is not to call it at its end
    monkeypatch.setattr(runtime, "_process", fresh)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobDirectory:
    """Return the directory of a job, which there is."""
    found = JobDirectory(tmp_path, "4711.0")
    found.path.mkdir()
    monkeypatch.setenv("HPC_LAUNCH_JOB_DIRECTORY", str(found.path))
    return found


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


# ---- numbers


@pytest.mark.parametrize(
    ("function", "variable", "default"),
    [
        (runtime.rank, "RANK", 0),
        (runtime.local_rank, "LOCAL_RANK", 0),
        (runtime.world_size, "WORLD_SIZE", 1),
        (runtime.local_world_size, "LOCAL_WORLD_SIZE", 1),
        (runtime.node_rank, "GROUP_RANK", 0),
        (runtime.attempt, "HPC_LAUNCH_ATTEMPT", 0),
        (runtime.attempt, "TORCHELASTIC_RESTART_COUNT", 0),
        (runtime.requeue_count, "SLURM_RESTART_COUNT", 0),
    ],
)
def test_numbers_are_read_at_the_call(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[], int], variable: str, default: int
) -> None:
    """Each number is what its variable says now; without it, a process is the only one, at its first attempt."""
    without = function()
    monkeypatch.setenv(variable, "7")

    assert (default, 7) == (without, function())


def test_the_attempt_counts_on_through_requeues(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of the job directory goes before the one that begins anew with each run."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("HPC_LAUNCH_ATTEMPT", "5")

    assert runtime.attempt() == 5


def test_a_number_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable."""
    monkeypatch.setenv("WORLD_SIZE", "many")

    with pytest.raises(ValueError, match="WORLD_SIZE=many"):
        runtime.world_size()


def test_the_job_directory(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one where the launcher says so."""
    found = runtime.job_directory()
    monkeypatch.setenv("HPC_LAUNCH_JOB_DIRECTORY", "")

    assert (job.path, None) == (found, runtime.job_directory())


class Backend:
    """Some GPUs, as torch sees them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count


@pytest.mark.parametrize(
    ("cuda", "xpu", "expected"),
    [(4, 0, "cuda:2"), (1, 0, "cuda:0"), (2, 4, "cuda:0"), (0, 4, "xpu:2"), (0, 1, "xpu:0"), (0, 0, "cpu")],
)
def test_the_device_is_that_of_the_local_rank(
    monkeypatch: pytest.MonkeyPatch, cuda: int, xpu: int, expected: str
) -> None:
    """It is one of the visible GPUs, whichever part of them each rank sees; or the CPU."""
    import torch  # noqa: PLC0415 - the other tests need none

    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch, "cuda", Backend(cuda))
    monkeypatch.setattr(torch, "xpu", Backend(xpu))

    assert torch.device(expected) == runtime.device()


# ---- the job directory


def test_the_names_in_the_job_directory() -> None:
    """The launcher and the script know them from one place."""
    job = JobDirectory(Path("logs"), "4711.0")

    assert [Path("logs/4711.0/end_time.json"), Path("logs/4711.0/progress/rank_12.json")] == [
        job.end_time,
        job.progress(12),
    ]


# ---- time_left


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stop the clock of this node."""
    moment = 1_700_000_000.0
    monkeypatch.setattr("time.time", lambda: moment)
    return moment


@pytest.fixture
def clock() -> Clock:
    """Let the time between two looks pass only as a test says."""
    clock = Clock()
    runtime._process.end_time = EndTime(clock.monotonic)
    runtime._process.progress = ProgressWriter(clock.monotonic)
    return clock


def put(path: Path, text: str) -> None:
    """Replace a file, as the launcher does."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def test_nobody_knows_the_end() -> None:
    """Without a launcher and without Slurm there is no end."""
    assert runtime.time_left() is None


@pytest.mark.parametrize(
    ("text", "expected"), [("1700000090", 90.0), ("1699999999", 0.0), ("soon", None), ("", None), ("inf", None)]
)
def test_the_end_that_slurm_said(
    monkeypatch: pytest.MonkeyPatch, now: float, text: str, expected: float | None
) -> None:
    """Without hpc-launch, the end is the one at which the job began; never is less than nothing left."""
    assert now
    monkeypatch.setenv("SLURM_JOB_END_TIME", text)

    assert expected == runtime.time_left()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"end": 1700000500.5, "asked": 1700000000}', 500.5),
        ('{"end": 1699990000, "asked": 1700000000}', 0.0),
        ('{"end": null, "asked": 1700000000}', None),
        ('{"end": true}', 90.0),
        ('{"end": "soon"}', 90.0),
        ('{"end": 1e999}', 90.0),
        ('{"asked": 1700000000}', 90.0),
        ("[]", 90.0),
        ("{", 90.0),
        ("", 90.0),
        ("\0\udcff", 90.0),
    ],
)
def test_the_end_that_the_launcher_keeps(
    job: JobDirectory, monkeypatch: pytest.MonkeyPatch, now: float, text: str, expected: float | None
) -> None:
    """The launcher's file goes before the variable; one that makes no sense is as good as none."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 90))
    job.end_time.write_bytes(text.encode(errors="surrogateescape"))

    assert expected == runtime.time_left()


def test_the_end_may_change(job: JobDirectory, clock: Clock, now: float) -> None:
    """A new end is seen within a second, and within a second nobody looks again."""
    seen = []
    for end, pause in ((10, 0.0), (20, 0.5), (20, 0.6), (30, 0.9), (30, 0.2)):
        clock.now += pause
        put(job.end_time, json.dumps({"end": now + end}))
        seen.append(runtime.time_left())

    assert seen == [10, 10, 20, 20, 30]


def test_the_end_is_read_only_when_it_has_changed(
    job: JobDirectory, clock: Clock, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking again costs no reading."""
    put(job.end_time, json.dumps({"end": now + 10}))
    seen = [runtime.time_left()]
    clock.now += 2
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: pytest.fail("it was read again"))
        seen.append(runtime.time_left())

    assert seen == [10, 10]


def test_the_file_may_go_and_come(job: JobDirectory, clock: Clock, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is not there, Slurm's variable counts."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 90))
    seen = [runtime.time_left()]
    changes: list[Callable[[], object]] = [
        lambda: put(job.end_time, json.dumps({"end": now + 10})),
        job.end_time.unlink,
        job.end_time.mkdir,
    ]
    for change in changes:
        clock.now += 2
        change()
        seen.append(runtime.time_left())

    assert seen == [90, 10, 90, 90]


# ---- mark_progress


def word(job: JobDirectory, rank: int = 0) -> dict[str, Any]:
    """Read what a rank said last."""
    found: dict[str, Any] = json.loads(job.progress(rank).read_text())
    return found


def test_progress_is_written(job: JobDirectory, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says who has come how far, when, and what else there is to say; it is whole or not there."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("HPC_LAUNCH_ATTEMPT", "2")
    runtime.mark_progress(100, 1000, loss=0.5, phase="warm-up", best=True)

    values = {"loss": 0.5, "phase": "warm-up", "best": True}
    assert {"time": now, "attempt": 2, "step": 100, "total": 1000, "values": values} == word(job, 3)
    assert [job.progress(3), job.curve(3)] == sorted(job.progress(3).parent.iterdir())


def test_progress_is_written_once_a_second(job: JobDirectory, clock: Clock) -> None:
    """The first word is written at once, what follows within a second is held back; the last step is not."""
    seen = []
    for step, pause in ((1, 0.0), (2, 0.2), (3, 0.9), (4, 0.5), (5, 0.1), (6, 0.1), (6, 0.0)):
        clock.now += pause
        runtime.mark_progress(step, 6)
        seen.append(word(job)["step"])

    assert seen == [1, 1, 3, 3, 3, 6, 6]


def test_progress_that_was_held_back(job: JobDirectory, clock: Clock) -> None:
    """It is written by a later call, which need not be progress itself; its time is that of the progress."""
    runtime.mark_progress(1)
    runtime.mark_progress(2)
    between = word(job)["step"]
    clock.now += 2
    runtime.mark_progress(2)

    assert (between, word(job)["step"]) == (1, 2)


def test_the_same_step_is_no_progress(job: JobDirectory, clock: Clock) -> None:
    """A loop that says the same again and again has come no further; without a step, each call counts."""
    times = []
    for step in (5, 5, None, None):
        clock.now += 2
        job.progress(0).unlink(missing_ok=True)
        runtime.mark_progress(step)
        times.append(job.progress(0).exists())

    assert times == [True, False, True, True]


def test_progress_is_written_when_python_exits(job: JobDirectory, python: str) -> None:
    """What was held back is there in the end, and a child that was forked writes nothing of its parent's."""
    script = """
        import json, os, sys
        from hpc_launch import runtime
        from hpc_launch.runtime import progress_writer

        progress_writer._WRITE_S = 1e9
        for step in range(1, 51):
            runtime.mark_progress(step, 100)
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        print(json.load(open(sys.argv[1]))["step"])
    """
    command = [python, "-c", textwrap.dedent(script), str(job.progress(0))]
    done = subprocess.run(command, check=True, timeout=TIMEOUT, capture_output=True, text=True)

    assert (done.stdout, done.stderr, word(job)["step"]) == ("1\n", "", 50)


@pytest.mark.parametrize("trouble", ["none", "no job", "a file", "no directory"])
def test_progress_never_fails(tmp_path: Path, job: JobDirectory, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Whatever is wrong with the job directory, training goes on; and no directory is made where none was."""
    if trouble == "none":
        monkeypatch.setenv("HPC_LAUNCH_JOB_DIRECTORY", str(tmp_path / "gone/deep"))
    elif trouble == "no job":
        monkeypatch.delenv("HPC_LAUNCH_JOB_DIRECTORY")
    elif trouble == "a file":
        (job.path / "progress").touch()
    else:
        job.progress(0).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    runtime.mark_progress(1, 2)

    assert before == sorted(tmp_path.rglob("*"))


@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"loss": [0.5]}, "loss list mark_progress"),
        ({"loss": None}, "loss NoneType mark_progress"),
        ({"step": "5"}, "step str mark_progress"),
        ({"total": {}}, "total dict mark_progress"),
    ],
)
def test_progress_takes_numbers_and_strings(
    job: JobDirectory, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], expected: str, directory: bool
) -> None:
    """Anything else is an error that names it, with hpc-launch and without."""
    if not directory:
        monkeypatch.delenv("HPC_LAUNCH_JOB_DIRECTORY")
    with pytest.raises(TypeError) as caught:
        runtime.mark_progress(**words)
    assert mentions(caught.value, expected)
    assert not job.progress(0).exists()


def test_numbers_of_other_libraries(job: JobDirectory) -> None:
    """numpy's numbers are numbers; what JSON cannot say is a string."""
    numpy = pytest.importorskip("numpy")
    runtime.mark_progress(
        numpy.int64(7), numpy.int32(9), loss=numpy.float32(0.5), worst=float("inf"), lost=float("nan")
    )

    assert tuple(word(job)[name] for name in ("step", "total", "values")) == (
        7,
        9,
        {"loss": 0.5, "worst": "inf", "lost": "nan"},
    )


# ---- signals: in processes of their own, which say what they have seen


@dataclass
class Script:
    """A script that runs, and writes lines."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        """Read the next line; none when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, *signals: int) -> None:
        for signum in signals:
            self.process.send_signal(signum)

    def end(self) -> tuple[list[str], int]:
        """Wait for its end; returns the lines that are left and the status."""
        out, _ = self.process.communicate(timeout=TIMEOUT)
        return out.splitlines(), self.process.returncode


PROLOGUE = """
import os, signal, sys, threading, time
from hpc_launch import runtime

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # signal handlers say things too, which print may not

def until(true):
    deadline = time.monotonic() + 50
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
"""


@pytest.fixture
def start(python: str) -> Iterator[Callable[..., Script]]:
    """Return a function that starts a script; those that are left are killed."""
    started: list[Script] = []

    def run(body: str, **environ: str) -> Script:
        program = PROLOGUE + textwrap.dedent(body)
        process = subprocess.Popen(
            [python, "-c", program], env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
        )
        started.append(Script(process))
        return started[-1]

    yield run
    for script in started:
        script.process.kill()
        script.process.communicate()


LOOP = """
say(runtime.should_stop())
until(runtime.should_stop)
say("told", runtime.should_stop(), runtime.should_stop(all_ranks=True))
"""


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_tells_to_stop(start: Callable[..., Script], signum: int) -> None:
    """The process survives it, and learns of it at its next call."""
    script = start(LOOP)
    first = script.line()
    script.send(signum)

    assert (first, script.end()) == ("False", (["told True True"], 0))


def test_the_launcher_names_the_notice_signals(start: Callable[..., Script]) -> None:
    """Those of HPC_LAUNCH_NOTICE_SIGNALS count instead of the usual ones, which keep what they did."""
    script = start(LOOP, HPC_LAUNCH_NOTICE_SIGNALS=" SIGHUP, SIGTERM,,SIGURG ")
    script.line()
    script.send(signal.SIGHUP)
    told = script.end()
    other = start(LOOP, HPC_LAUNCH_NOTICE_SIGNALS="SIGHUP")
    other.line()
    other.send(signal.SIGUSR1)

    assert (told, other.end()) == ((["told True True"], 0), ([], -signal.SIGUSR1))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("SIGUSR1,SIGNAL", "HPC_LAUNCH_NOTICE_SIGNALS SIGNAL SIGUSR1"),
        ("SIGKILL", "HPC_LAUNCH_NOTICE_SIGNALS SIGKILL SIGSTOP"),
    ],
)
def test_notice_signals_that_are_none(monkeypatch: pytest.MonkeyPatch, names: str, expected: str) -> None:
    """The error names the variable, and nothing is installed."""
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv("HPC_LAUNCH_NOTICE_SIGNALS", names)

    with pytest.raises(ValueError, match="HPC_LAUNCH_NOTICE_SIGNALS") as caught:
        runtime.should_stop()
    assert mentions(caught.value, expected)
    assert before == signal.getsignal(signal.SIGUSR1)


def test_handlers_come_with_the_first_call(start: Callable[..., Script]) -> None:
    """Importing and asking for numbers changes no signal."""
    script = start("""
        import signal
        signals = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
        runtime.rank(), runtime.time_left(), runtime.mark_progress(1)
        say(*(signal.getsignal(each) is signal.SIG_DFL for each in signals))
        runtime.on_notice(print)
        say(*(callable(signal.getsignal(each)) for each in signals))
    """)

    assert script.end() == (["True True True", "True True True"], 0)


def test_what_was_there_before(start: Callable[..., Script]) -> None:
    """A handler of the script is called after the callbacks; a signal that it ignored is noted."""
    script = start("""
        signal.signal(signal.SIGUSR1, lambda number, frame: say("script", number == signal.SIGUSR1, frame is not None))
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        @runtime.on_notice
        def first(name):
            say("first", name, runtime.should_stop())

        assert runtime.on_notice(lambda name: say("second", name)) is not first
        for each in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(each)
        first("by hand")
    """)
    usr1 = ["first SIGUSR1 True", "second SIGUSR1", "script True True"]
    others = ["first SIGUSR2 True", "second SIGUSR2", "first SIGTERM True", "second SIGTERM"]

    assert ([*usr1, *others, *usr1, "first by hand True"], 0) == script.end()


def test_a_callback_that_raises(start: Callable[..., Script]) -> None:
    """The exception comes up in the main thread; the signal is noted, and who would be next is not called."""
    script = start("""
        signal.signal(signal.SIGUSR1, lambda *_: say("before"))

        @runtime.on_notice
        def leave(name):
            raise InterruptedError(name)

        runtime.on_notice(lambda name: say("later"))
        try:
            signal.raise_signal(signal.SIGUSR1)
        except InterruptedError as error:
            say("raised", error, runtime.should_stop())
    """)

    assert script.end() == (["raised SIGUSR1 True"], 0)


def test_other_threads(start: Callable[..., Script]) -> None:
    """The first call belongs to the main thread; after it, every thread may ask."""
    script = start("""
        def ask():
            for function in (runtime.should_stop, lambda: runtime.on_notice(print)):
                try:
                    say(function() in (False, print))
                except RuntimeError as error:
                    say("hpc_launch.runtime.should_stop()" in str(error), "main thread" in str(error))

        for _ in range(2):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            runtime.should_stop()
    """)

    assert script.end() == (["True True", "True True", "True", "True"], 0)


def test_a_handler_that_is_installed_later(start: Callable[..., Script]) -> None:
    """It takes the place of ours, and the signal is not noted: as the documentation says."""
    script = start("""
        runtime.should_stop()
        signal.signal(signal.SIGUSR1, lambda *_: say("script"))
        signal.raise_signal(signal.SIGUSR1)
        say(runtime.should_stop())
    """)

    assert script.end() == (["script", "False"], 0)


def test_forked_processes_can_be_terminated(start: Callable[..., Script]) -> None:
    """Children, such as data loaders, survive notices without being told, and end by SIGTERM as ever."""
    script = start("""
        import multiprocessing
        context = multiprocessing.get_context("fork")

        def child(ready, go):
            signal.raise_signal(signal.SIGUSR1)
            ready.put(runtime._process.notices.told)
            go.get()

        runtime.on_notice(lambda name: say(name))
        signal.raise_signal(signal.SIGUSR2)
        ready, go = context.SimpleQueue(), context.SimpleQueue()
        process = context.Process(target=child, args=(ready, go))
        process.start()
        say(ready.get())
        process.terminate()
        process.join(50)
        say(process.exitcode)
    """)

    assert script.end() == (["SIGUSR2", "False", "-15"], 0)


def test_a_forked_process_may_ask_for_itself(start: Callable[..., Script]) -> None:
    """It installs its own handlers, is told by its own signals, and a handler of the script is called once."""
    script = start("""
        signal.signal(signal.SIGUSR1, lambda *_: say("script"))
        runtime.on_notice(lambda name: say("parent"))
        if os.fork() == 0:
            say(runtime.should_stop())
            signal.raise_signal(signal.SIGUSR1)
            say(runtime.should_stop())
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        _, status = os.wait()
        say(status, runtime.should_stop())
    """)

    assert script.end() == (["False", "script", "True", "0 False"], 0)


def test_signals_are_handled_while_other_ranks_are_waited_for(start: Callable[..., Script]) -> None:
    """A rank that waits for rank 0 sees signals at once, and tells rank 0."""
    script = start(
        """
        class Store(dict):
            def set(self, key, value):
                say(key, value)
            def check(self, keys):
                return False

        runtime.should_stop()
        runtime.on_notice(lambda name: say(name))
        runtime._process._agreement = runtime.worker_process.Agreement(Store(), 1)
        say("waiting")
        runtime.should_stop(all_ranks=True)
    """,
        RANK="1",
        WORLD_SIZE="2",
    )
    lines = [script.line()]
    script.send(signal.SIGUSR1)
    lines += [script.line(), script.line()]

    assert lines == ["waiting", "SIGUSR1", "wanted 1"]


# ---- before the end


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("all_ranks", [False, True])
@pytest.mark.parametrize(("before_end", "expected"), [(None, False), (89.0, False), (90.0, False), (91, True)])
def test_before_the_end(
    monkeypatch: pytest.MonkeyPatch, now: float, before_end: float | None, expected: bool, all_ranks: bool
) -> None:
    """The end of the job tells to stop as well, from so many seconds before it on."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 90))

    assert expected == runtime.should_stop(before_end=before_end, all_ranks=all_ranks)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the signals of the process of the tests alone."""
    monkeypatch.setattr(NoticeHandler, "install", lambda _: None)


@pytest.mark.usefixtures("quiet")
def test_an_end_that_nobody_knows() -> None:
    """It never comes."""
    assert not runtime.should_stop(before_end=1e9)


@pytest.mark.usefixtures("quiet")
def test_an_end_that_is_put_off(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """More time changes the answer, but never one that all ranks have been given."""
    answers = []
    for left in (200, 20, 200):
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + left))
        answers.append([runtime.should_stop(before_end=60, all_ranks=all_ranks) for all_ranks in (False, True)])

    assert answers == [[False, False], [True, True], [False, True]]


@pytest.mark.usefixtures("quiet")
def test_the_end_counts_on_rank_0_only(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """Others do not look at the clock: thousands would ask the file system."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now + 20))
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        store = DictStore()
        store.set("record", "5")
        runtime._process._agreement = Agreement(store, rank)
        runtime.should_stop(all_ranks=True, before_end=60)
        told.append(store.values)

    assert told == [{"record": b"0 stop"}, {"record": b"5"}]


# ---- all ranks


class DictStore:
    """A store of this process; counts what is asked of it."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked = 0

    def set(self, key: str, value: str, /) -> None:
        self.asked += 1
        self.values[key] = value.encode()

    def get(self, key: str, /) -> bytes:
        self.asked += 1
        return self.values[key]

    def check(self, keys: list[str], /) -> bool:
        self.asked += 1
        return all(key in self.values for key in keys)


def never() -> bool:
    return False


def always() -> bool:
    return True


@dataclass
class Ranks:
    """Ranks as threads, of which one runs at a time: which, and when it changes, is drawn by chance.

    A rank can be interrupted before and after each use of the store, and where it sleeps.

    Attributes:
        told: for each rank that is told to stop, the number of the turn from which on it is.
        speeds: how likely each is to be given a turn.
        pace: how many seconds a turn takes, at most.
    """

    calls: int
    told: dict[int, int]
    speeds: list[float]
    pace: float
    chance: random.Random
    clock: Clock = field(default_factory=Clock)
    turn: int = 0
    answers: list[list[bool]] = field(default_factory=list)
    latest: int = 0

    def __post_init__(self) -> None:
        size = len(self.speeds)
        self._store = DictStore()
        self._turns = [threading.Semaphore(0) for _ in range(size)]
        self._parked = threading.Semaphore(0)
        self._done = [False] * size
        self._errors: list[BaseException] = []
        self.answers = [[] for _ in range(size)]

    def run(self) -> None:
        """Let all of them make their calls."""
        threads = [threading.Thread(target=self._live, args=(rank,), daemon=True) for rank in range(len(self.speeds))]
        for thread in threads:
            thread.start()
        while not all(self._done):
            assert self.turn < 1_000_000, "they wait for each other"
            self.turn += 1
            self.clock.now += self.chance.uniform(0, self.pace)
            left = [rank for rank, done in enumerate(self._done) if not done]
            [rank] = self.chance.choices(left, [self.speeds[rank] for rank in left])
            self._turns[rank].release()
            assert self._parked.acquire(timeout=TIMEOUT)
        for thread in threads:
            thread.join()
        assert self._errors == []

    def _live(self, rank: int) -> None:
        self._turns[rank].acquire()
        try:
            agreement = Agreement(_Interrupted(self, rank), rank, _Sleeper(self, rank), patience=math.inf)
            for _ in range(self.calls):
                self.answers[rank].append(agreement.answer(lambda: self._wants(rank)))
                self.park(rank)
        except BaseException as error:  # noqa: BLE001 - for the main thread to see
            self._errors.append(error)
        self._done[rank] = True
        self._parked.release()

    def _wants(self, rank: int) -> bool:
        return self.turn >= self.told.get(rank, self.turn + 1)

    def park(self, rank: int) -> None:
        """Let others run."""
        self._parked.release()
        self._turns[rank].acquire()

    def use(self, rank: int, operation: Callable[..., Any], *arguments: Any) -> Any:
        """Use the store, at an uncertain time."""
        self.park(rank)
        found = operation(*arguments)
        self.park(rank)
        return found


class _Interrupted:
    """The store as one rank sees it."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks = ranks
        self._rank = rank

    def set(self, key: str, value: str, /) -> object:
        return self._ranks.use(self._rank, self._ranks._store.set, key, value)

    def get(self, key: str, /) -> bytes:
        found: bytes = self._ranks.use(self._rank, self._ranks._store.get, key)
        return found

    def check(self, keys: list[str], /) -> bool:
        return bool(self._ranks.use(self._rank, self._ranks._store.check, keys))


class _Sleeper:
    """The clock as one rank sees it: asleep, others run."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks = ranks
        self._rank = rank

    def monotonic(self) -> float:
        return self._ranks.clock.now

    def sleep(self, seconds: float, /) -> None:
        assert seconds > 0
        self._ranks.park(self._rank)


@given(
    size=st.integers(2, 5),
    calls=st.integers(1, 40),
    told=st.dictionaries(st.integers(0, 4), st.integers(0, 400), max_size=3),
    pace=st.sampled_from([0.0, 0.0001, 0.01, 0.3, 5.0]),
    seed=st.integers(0, 2**32),
)
@example(size=2, calls=40, told={1: 0}, pace=0.001, seed=1)
@example(size=2, calls=40, told={0: 0}, pace=0.001, seed=1)
def test_all_ranks_get_the_same_answers(size: int, calls: int, told: dict[int, int], pace: float, seed: int) -> None:
    """Whoever is told and when, however fast each rank is: call for call they hear the same, and True stays True."""
    chance = random.Random(seed)
    speeds = [chance.choice([0.2, 1, 1, 5]) for _ in range(size)]
    ranks = Ranks(calls, told, speeds, pace, chance)
    ranks.run()

    assert [ranks.answers[0]] * size == ranks.answers
    assert sorted(ranks.answers[0]) == ranks.answers[0]
    if not any(rank < size for rank in told):
        assert not any(ranks.answers[0])
    if told.get(0) == 0:
        assert all(ranks.answers[0])


def test_rank_0_waits_for_nobody() -> None:
    """It makes all its calls while no other rank has made one; these then hear the same, late."""
    clock, store = Clock(), DictStore()
    first = Agreement(store, 0, clock)
    answers = []
    for number in range(50):
        clock.now += 0.3
        answers.append(first.answer(lambda number=number: number > 30))  # type: ignore[misc]
    second = Agreement(store, 1, clock)

    assert answers == [second.answer(never) for _ in range(50)]
    assert answers[-1]


def test_a_promise_binds_rank_0() -> None:
    """Told within a lease, it answers False up to its end, as the others do who do not ask."""
    clock, store = Clock(), DictStore()
    ranks = [Agreement(store, rank, clock) for rank in (0, 1)]
    answers = [[rank.answer(never) for rank in ranks] for _ in range(200)]
    lease = int(store.values["record"])
    late = [[rank.answer(always) for rank in ranks] for _ in range(lease - 200 + 3)]

    assert answers == [[False, False]] * 200
    assert lease > 201
    assert [[False, False]] * (lease - 200) + [[True, True]] * 3 == late


@pytest.mark.parametrize(
    ("step", "shortest", "longest"), [(60.0, 1, 1), (1.0, 1, 1), (0.25, 4, 4), (0.05, 19, 20), (0.0, 100, 100)]
)
def test_a_promise_is_for_about_a_second(step: float, shortest: int, longest: int) -> None:
    """Its length follows the time between calls, grows slowly, and has a limit."""
    clock, store = Clock(), DictStore()
    agreement = Agreement(store, 0, clock)
    lengths, before = [], 0
    for _ in range(2000):
        agreement.answer(never)
        clock.now += step
        record = int(store.values["record"])
        if record != before:
            lengths.append(record - before)
            before = record

    assert lengths[0] == 1
    assert all(later <= 2 * earlier for earlier, later in itertools.pairwise(lengths))
    assert shortest <= lengths[-1] <= longest
    assert max(lengths) <= longest


def test_a_slow_call_makes_promises_short() -> None:
    """What was slow once may be slow again."""
    clock, store = Clock(), DictStore()
    agreement = Agreement(store, 0, clock)
    for _ in range(1000):
        agreement.answer(never)
    granted = int(store.values["record"])
    clock.now += 30
    while int(store.values["record"]) == granted:
        agreement.answer(never)

    assert granted + 1 == int(store.values["record"])


def test_most_calls_ask_nothing() -> None:
    """Within a promise, and after the end, the store is left alone."""
    clock, stores = Clock(), [DictStore(), DictStore()]
    stores[1].values = stores[0].values
    ranks = [Agreement(store, rank, clock) for rank, store in enumerate(stores)]
    for _ in range(5000):
        for rank in ranks:
            rank.answer(never)
    asked = [store.asked for store in stores]
    while not [rank.answer(always) for rank in ranks][1]:
        pass
    before = [store.asked for store in stores]
    after = [[rank.answer(always) for _ in range(1000)] for rank in ranks]

    assert max(asked) < 150
    assert after == [[True] * 1000] * 2
    assert before == [store.asked for store in stores]


def test_patience_has_an_end() -> None:
    """A rank whose call rank 0 never makes is told so, after a long time."""
    clock, store = Clock(), DictStore()
    agreement = Agreement(store, 1, clock)
    store.set("record", "1")

    assert not agreement.answer(never)
    with pytest.raises(RuntimeError, match=r"rank 0.* 2 .*should_stop\(all_ranks=True\).* 1800 s"):
        agreement.answer(never)
    assert store.asked < 2500


def test_a_store_that_is_lost() -> None:
    """The error is one line that says so."""

    class Lost(DictStore):
        def check(self, _: list[str], /) -> bool:
            raise RuntimeError("Broken pipe\nframe #0: c10::Error\nframe #1: main")

    for rank in (0, 1):
        with pytest.raises(RuntimeError, match=r"^should_stop\(all_ranks=True\) .*: Broken pipe$"):
            Agreement(Lost(), rank, Clock()).answer(never)


def test_the_one_who_serves_the_store_lingers() -> None:
    """Rank 0 stays until others have read its last word, but not for ever; a promise does not keep it, once read."""
    clock, store = Clock(), DictStore()
    ranks = [Agreement(store, rank, clock, confirm=True) for rank in (0, 1, 2)]
    answers = [ranks[0].answer(always), ranks[1].answer(never)]
    began = clock.now
    ranks[0].linger(2)
    alone = clock.now - began
    answers.append(ranks[2].answer(never))
    began = clock.now
    ranks[0].linger(2)

    assert answers == [True] * 3
    assert 10 <= alone <= 11
    assert began == clock.now


def test_who_has_said_nothing_does_not_linger() -> None:
    """A rank 0 that never made a call leaves at once."""
    clock = Clock()
    Agreement(DictStore(), 0, clock, confirm=True).linger(3)

    assert clock.now == Clock().now


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("rank", "agent_store", "serves", "awaited"),
    [("0", "True", False, 0), ("1", "True", False, 0), ("0", "False", True, 2), ("1", "", False, 0)],
)
def test_who_serves_the_store(
    monkeypatch: pytest.MonkeyPatch, rank: str, agent_store: str, serves: bool, awaited: int
) -> None:
    """Rank 0 does, where the launcher does not; and then it stays at its end until all others have read."""
    store = DictStore()
    asked: list[bool] = []
    lingered: list[int] = []

    def opened(*, serve: bool) -> DictStore:
        asked.append(serve)
        return store

    store.set("record", "9")
    for name, value in {"RANK": rank, "WORLD_SIZE": "3", "TORCHELASTIC_USE_AGENT_STORE": agent_store}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("hpc_launch.runtime.stop_agreement.open_store", opened)
    monkeypatch.setattr(Agreement, "linger", lambda _, others: lingered.append(others))
    runtime.should_stop(all_ranks=True)
    runtime.should_stop(all_ranks=True)
    runtime._process._end()

    assert ([serves], [awaited]) == (asked, lingered)
    assert (agent_store != "True" and rank == "1") == ("read 1" in store.values)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("missing", ["MASTER_ADDR", "MASTER_PORT"])
def test_without_an_address(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Ranks that cannot find each other are told what they need."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)

    with pytest.raises(RuntimeError, match="needs MASTER_ADDR and MASTER_PORT, as init_process_group"):
        runtime.should_stop(all_ranks=True)


# ---- the module itself


def test_the_public_names() -> None:
    """Everything public is listed, and documented."""
    public = {
        name
        for name, value in vars(runtime).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == runtime.__name__
    }

    assert sorted(runtime.__all__) == list(runtime.__all__) == sorted(public)
    assert all(vars(runtime)[name].__doc__ for name in public)


def test_importing_does_nothing(python: str) -> None:
    """No signal, no exit function and nothing that is not in the standard library."""
    program = """
import atexit, json, signal, sys
before = [signal.getsignal(each) for each in signal.valid_signals()], atexit._ncallbacks()
from hpc_launch import runtime
after = [signal.getsignal(each) for each in signal.valid_signals()], atexit._ncallbacks()
tops = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([before == after, sorted(tops - sys.stdlib_module_names - set(json.loads(sys.argv[1])))]))
"""
    plain = subprocess.run(
        [python, "-c", "import json, sys; print(json.dumps([name.partition('.')[0] for name in sys.modules]))"],
        capture_output=True,
        text=True,
        check=True,
    )
    done = subprocess.run([python, "-c", program, plain.stdout], capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [True, ["hpc_launch"]]
