"""The worker factory: it starts workers, tells how they end, outlives nobody, and nothing outlives it."""

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpc_launch.node import processes
from tests.local.launching import FOREVER, alive, write
from tests.support import DAEMON, mentions, wait_for

DRIVER = Path(__file__).with_name("factory_driver.py")

# Longer than anything here takes, on however slow a machine.
PATIENCE = 60.0

# How the factory is made, and whether the worker is forked from it.
WAYS = [("spawn", False), ("build", False), ("build", True)]


@dataclass
class Agent:
    """A process that has a factory, and what it is asked to do with it."""

    process: subprocess.Popen[bytes]
    calls: int
    answers: int
    folder: Path
    forked: bool
    _names: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, what: str, *words: Any) -> Any:
        answer = self.outcome(what, *words)
        assert "value" in answer, answer
        return answer["value"]

    def outcome(self, what: str, *words: Any) -> dict[str, Any]:
        """Ask; returns the value, or the error that was raised."""
        os.write(self.calls, json.dumps([what, *words]).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self.answers, 1 << 16)
            assert part, "the agent is gone"
            line += part
        found: dict[str, Any] = json.loads(line)
        return found

    def script(self, body: str) -> dict[str, Any]:
        """Order a worker that runs a script; its output is at `out` and `err` with the script's name."""
        name = f"script{next(self._names)}.py"
        write(self.folder / name, body)
        return self.program(sys.executable, "-u", name, name=name, forked=self.forked)

    def program(self, program: str, *arguments: str, name: str = "program", forked: bool = False) -> dict[str, Any]:
        """Order a worker that is a program."""
        outputs = [str(self.folder / f"{name}.{stream}") for stream in ("out", "err")]
        environ = {**os.environ, "FOLDER": str(self.folder)}
        return {
            "program": program,
            "arguments": arguments,
            "environ": environ,
            "outputs": outputs,
            "forked": forked,
        }

    def begin(self, *bodies: str) -> list[int]:
        """Start scripts, and wait until each has written a line."""
        orders = [self.script(body) for body in bodies]
        pids: list[int] = self("start", *orders)
        for order in orders:
            said(order)
        return pids

    def kill(self) -> None:
        """End it as Slurm may do."""
        self.process.kill()
        self.process.wait()


def said(order: dict[str, Any], lines: int = 1) -> list[str]:
    """Wait until a worker has written so many lines, and return them."""
    out, err = map(Path, order["outputs"])

    def words() -> list[str] | None:
        text = out.read_text() if out.exists() else ""
        return text.splitlines() if text.count("\n") >= lines else None

    found = wait_for(words, PATIENCE, lambda: f"it says nothing: {err.read_text() if err.exists() else ''}")
    assert found is not None
    return found


@contextlib.contextmanager
def agent(folder: Path, way: str, *, forked: bool = False, failing_fork: int | None = None) -> Iterator[Agent]:
    """Start a process with a factory of its own; it is closed in the end, unless it has been killed."""
    call_read, call_write = os.pipe()
    answer_read, answer_write = os.pipe()
    words = [str(call_read), str(answer_write), way, *([str(failing_fork)] if failing_fork is not None else [])]
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), *words], cwd=folder, pass_fds=[call_read, answer_write], start_new_session=True
    )
    os.close(call_read)
    os.close(answer_write)
    try:
        yield Agent(process, call_write, answer_read, folder, forked)
    finally:
        os.close(call_write)
        left = processes.descendants(process.pid)
        for pid in [process.pid, *left]:
            processes.send(pid, signal.SIGKILL)
        process.wait()
        os.close(answer_read)


@pytest.fixture(params=WAYS, ids=["spawn", "build, exec", "build, fork"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
    """Return an agent with each kind of factory and worker."""
    way, forked = request.param
    with agent(tmp_path, way, forked=forked) as started:
        yield started


@pytest.fixture(params=["spawn", "build"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Agent]:
    """Return an agent with each kind of factory, where it does not matter what workers are."""
    with agent(tmp_path, request.param) as started:
        yield started


def all_gone(pids: Sequence[int]) -> None:
    wait_for(
        lambda: not any(map(alive, pids)), PATIENCE, lambda: f"of {pids} there are {[p for p in pids if alive(p)]}"
    )


def words(path: Path) -> list[str]:
    """Read the words of a line in a file, once it is there."""
    text = path.read_text() if path.exists() else ""
    return text.split() if text.endswith("\n") else []


# ---- starting and ending


def test_workers_and_how_they_end(made: Agent) -> None:
    """Each is started with its arguments, and each end is told once: exit statuses as they are, -N for signal N."""
    bodies = [
        "import sys; print(sys.argv[1:]); sys.exit(3)",
        "print('well')",
        "import os; print('badly', flush=True); os.kill(os.getpid(), 9)",
    ]
    orders = [made.script(body) for body in bodies]
    orders[0]["arguments"] = (*orders[0]["arguments"], "--lr", "a b", "ä")
    pids = made("start", *orders)
    ends = dict(made("await", 3))

    assert ends == dict(zip(pids, [3, 0, -9], strict=True))
    assert [said(order) for order in orders] == [["['--lr', 'a b', 'ä']"], ["well"], ["badly"]]
    assert made("ended") == []
    assert made("start", made.script("print('again')")) not in pids


def test_each_worker_has_its_own_environment(made: Agent) -> None:
    """It has what it is given and nothing else, leads a session, and has no descriptor but its streams."""
    order = made.script(
        """
        import json, os
        there = [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]
        print(json.dumps([dict(os.environ), sorted(there), os.getsid(0) == os.getpid(), os.getppid()]))
        """
    )
    order["environ"] = {"PATH": os.environ["PATH"], "ONLY": "this\n\udcff"}
    made("start", order)
    made("await", 1)
    environ, descriptors, leads, parent = json.loads(said(order)[0])

    assert {name: value for name, value in environ.items() if name != "LC_CTYPE"} == order["environ"]
    assert (descriptors, leads, parent) == (["0", "1", "2"], True, made("pid"))


def test_the_factory_keeps_nothing_of_its_workers(made: Agent) -> None:
    """Descriptors of outputs are closed when the worker has them, and those that ended are no zombies."""
    places = Path(f"/proc/{made('pid')}/fd")
    made.begin("print('first')")
    before = len([*places.iterdir()])
    made("await", 1)
    for _ in range(5):
        made("start", *[made.script("") for _ in range(3)])
        made("await", 3)

    assert len([*places.iterdir()]) == before
    assert psutil.Process(made("pid")).children() == []


@pytest.mark.parametrize(
    ("make", "status", "reason"),
    [
        (None, 127, "No such file or directory"),
        ("plain file", 126, "Permission denied"),
        ("folder", 126, "Permission denied"),
        ("no program", 126, "Exec format error"),
    ],
)
def test_a_program_that_cannot_be_run(either: Agent, make: str | None, status: int, reason: str) -> None:
    """The worker ends as in a shell, and says why in a line; the others run."""
    program = either.folder / "run-me"
    if make == "folder":
        program.mkdir()
    elif make is not None:
        program.write_text("\x7fELF, or not")
        program.chmod(0o755 if make == "no program" else 0o644)
    bad, good = either.program(str(program), "x"), either.program("echo", "well", name="good")
    pids = either("start", bad, good)

    assert dict(either("await", 2)) == {pids[0]: status, pids[1]: 0}
    assert Path(bad["outputs"][1]).read_text() == f"hpc-launch: cannot start {program}: {reason}\n"
    assert Path(bad["outputs"][0]).read_text() == ""
    assert said(good) == ["well"]


def test_programs_are_looked_for_as_the_worker_would(either: Agent) -> None:
    """The PATH is the worker's; one that is nowhere on it ends with 127."""
    mine = write(either.folder / "bin/run-me", "#!/bin/sh\necho mine\n")
    mine.chmod(0o755)
    order, missing = either.program("run-me"), either.program("run-me", name="missing")
    order["environ"] = {"PATH": str(mine.parent)}
    pids = either("start", order, missing)

    assert dict(either("await", 2)) == {pids[0]: 0, pids[1]: 127}
    assert said(order) == ["mine"]
    assert mentions(Path(missing["outputs"][1]).read_text(), "hpc-launch: run-me", os.strerror(errno.ENOENT))


@pytest.mark.parametrize("forked", [True, False])
def test_all_workers_or_none(tmp_path: Path, forked: bool) -> None:
    """Where the last of three cannot be forked, the first two are gone, nothing is told of them, and one can retry."""
    # The first fork makes the factory.
    with agent(tmp_path, "build", forked=forked, failing_fork=4) as started:
        orders = [started.script(f"print('there')\n{FOREVER}") for _ in range(3)]
        factory = psutil.Process(started("pid"))
        started("heard", signal.SIGUSR1)  # it is ready
        before = len([*Path(f"/proc/{factory.pid}/fd").iterdir()])
        failed = started.outcome("start", *orders)

        assert failed["lost"] is False
        assert mentions(failed["error"], os.strerror(errno.EAGAIN))
        wait_for(lambda: factory.children() == [], PATIENCE, "workers are left")  # reaped, too
        assert len([*Path(f"/proc/{factory.pid}/fd").iterdir()]) == before
        assert started("ended") == []
        again = [started.script(f"print('there')\n{FOREVER}") for _ in range(3)]
        assert len(started("start", *again)) == 3
        assert [len(said(order)) for order in again] == [1, 1, 1]
        assert len(factory.children()) == 3


# ---- signals

# Lines are written whole: two processes share a file.
CARES = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"told\\n"))
child = subprocess.Popen([sys.executable, "-c", '''
import os, signal, time
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"child told\\\\n"))
os.write(1, b"child\\\\n")
while True: time.sleep(0.1)
'''])
while True: time.sleep(0.1)
"""


@pytest.mark.parametrize("group", [False, True])
def test_a_signal_reaches_a_worker_or_its_group(made: Agent, group: bool) -> None:
    """It goes to those that are named, and to what they have started only where that is asked for."""
    orders = [made.script(CARES), made.script(CARES)]
    first, second = made("start", *orders)
    assert [said(order) for order in orders] == [["child"]] * 2
    made("signal", [first], signal.SIGUSR1, group)
    expected = ["child", "child told", "told"] if group else ["child", "told"]

    assert sorted(said(orders[0], len(expected))) == expected
    made("signal", [first, second], signal.SIGKILL, group)
    assert dict(made("await", 2)) == {first: -9, second: -9}
    assert said(orders[1]) == ["child"]


def test_only_workers_are_signalled(either: Agent) -> None:
    """Who has ended, or never was a worker, gets nothing, whoever has that number now."""
    with subprocess.Popen(["sleep", "3600"]) as stranger:
        [done] = either("start", either.program("true"))
        either("await", 1)
        for group in (False, True):
            either("signal", [stranger.pid, done, either("pid"), os.getpid()], signal.SIGKILL, group)
        either("ended")
        assert (alive(stranger.pid), alive(either("pid"))) == (True, True)
        stranger.kill()


def test_what_the_factory_has_heard(made: Agent) -> None:
    """A signal that came to the factory is told once, and ends nobody; one that did not is not."""
    [worker] = made.begin(f"print('there')\n{FOREVER}")
    for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        assert made("heard", signum) is False
        os.kill(made("pid"), signum)
        assert [made("heard", signal.SIGUSR2), made("heard", signum), made("heard", signum)] == [False, True, False]
    assert alive(worker)


def test_workers_do_not_inherit_what_the_factory_has_heard(made: Agent) -> None:
    """The factory blocks all signals: neither that nor what waits for it is a worker's."""
    assert made("heard", signal.SIGUSR1) is False  # it is ready
    os.kill(made("pid"), signal.SIGUSR1)
    body = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.sigpending())"
    order = made.script(body)
    made("start", order)
    made("await", 1)

    assert said(order) == ["set() set()"]
    assert made("heard", signal.SIGUSR1) is True


# ---- what workers leave behind

# Starts a child, as data loaders are, and one that was forked twice and has a session of its own; says their numbers.
# All of them ignore SIGTERM, or note it in a file.
LEAVES = (
    """
import os, signal, sys, time
from pathlib import Path

def told(*_):
    Path(os.environ["FOLDER"], f"told{os.getpid()}").touch()
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if STUBBORN else told)
read, write = os.pipe()

def forever():
    os.write(write, b"%d\\n" % os.getpid())
    while True:
        time.sleep(3600)

if os.fork() == 0:
    forever()
"""
    + DAEMON
    + """
lines = os.fdopen(read)
print(*(int(lines.readline()) for _ in range(2)), flush=True)
if ENDS:
    os._exit(5)
while True:
    time.sleep(3600)
"""
)


def family(agent: Agent, *, stubborn: bool, ends: bool = False) -> list[int]:
    """Start such a worker; returns its number and those of the others."""
    order = agent.script(LEAVES.replace("STUBBORN", str(stubborn)).replace("ENDS", str(ends)))
    [worker] = agent("start", order)
    others = [*map(int, said(order)[0].split())]
    assert len({worker, *others}) == 3
    return [worker, *others]


def test_sweep_ends_what_ignores_it(made: Agent) -> None:
    """Workers, what they have started and what has left their session: all are gone when it returns."""
    pids = [*family(made, stubborn=True), *family(made, stubborn=True)]
    assert all(map(alive, pids))

    assert made("sweep", 0.1) == []
    assert [pid for pid in pids if alive(pid)] == []
    assert dict(made("await", 2)) == {pids[0]: -9, pids[3]: -9}
    assert processes.descendants(made("pid")) == []


def test_sweep_asks_first(made: Agent) -> None:
    """Who ends by itself after SIGTERM is let to, and it does not take longer than that."""
    pids = family(made, stubborn=False)

    assert made("sweep", 3600) == []
    assert {path.name for path in made.folder.glob("told*")} == {f"told{pid}" for pid in pids}
    assert [pid for pid in pids if alive(pid)] == []
    assert dict(made("await", 1)) == {pids[0]: 0}


def test_sweep_without_patience_asks_nobody(made: Agent) -> None:
    """Without patience it kills."""
    pids = family(made, stubborn=False)

    assert made("sweep", 0) == []
    assert [*made.folder.glob("told*")] == []
    assert [pid for pid in pids if alive(pid)] == []


def test_what_a_worker_has_left_is_found(made: Agent) -> None:
    """A worker ends by itself: what it has started lives on, until it is swept."""
    worker, *others = family(made, stubborn=True, ends=True)
    assert [tuple(end) for end in made("await", 1)] == [(worker, 5)]
    assert sorted(processes.descendants(made("pid"))) == sorted(others)

    assert made("sweep", 0) == []
    assert [pid for pid in others if alive(pid)] == []
    [again] = made.begin("print('again')")
    assert [tuple(end) for end in made("await", 1)] == [(again, 0)]


def test_nothing_is_left_of_a_closed_factory(made: Agent) -> None:
    """When it is closed, everything is gone already."""
    pids = [made("pid"), *family(made, stubborn=True), *family(made, stubborn=True, ends=True)]
    made("close")

    assert [pid for pid in pids if alive(pid)] == []
    assert made.outcome("close") == {"value": None}


def test_nothing_is_left_when_the_agent_is_killed(made: Agent) -> None:
    """The factory sees to it: workers that ignore SIGTERM, their children, and who has left their session."""
    pids = [made("pid"), *family(made, stubborn=True), *family(made, stubborn=True, ends=True)]
    made.kill()

    all_gone(pids)


# ---- a factory that is killed


def test_workers_die_with_the_factory(made: Agent) -> None:
    """When somebody kills it, its workers do not live on, and whatever the agent asks then says that it is gone."""
    pids = made.begin(*[f"import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('there')\n{FOREVER}"] * 2)
    factory = made("pid")
    os.kill(factory, signal.SIGKILL)
    all_gone(pids)
    # The agent has been handed what was left; it is no child of its own making.
    calls: list[tuple[Any, ...]] = [
        ("ended",),
        ("signal", pids, signal.SIGTERM),
        ("heard", signal.SIGUSR1),
        ("sweep", 0),
        ("start", made.script("print('no')")),
    ]
    for call in calls:
        outcome = made.outcome(*call)
        assert outcome["lost"] is True, call
        assert mentions(outcome["error"], factory), call

    made("close")


@pytest.mark.parametrize("first", ["ended", "heard", "sweep", "start", "signal"])
def test_whoever_asks_first_hears_that_it_is_gone(either: Agent, first: str) -> None:
    """It does not matter what is asked: nothing hangs, and nothing is taken for an answer."""
    words: dict[str, list[Any]] = {"heard": [10], "sweep": [1], "signal": [[1], 0], "start": [either.program("true")]}
    os.kill(either("pid"), signal.SIGKILL)
    wait_for(lambda: not alive(either("pid")), PATIENCE, "it does not end")

    assert either.outcome(first, *words.get(first, []))["lost"] is True


def test_what_ended_before_the_factory_is_still_told(either: Agent) -> None:
    """What it said last is read before its end is."""
    [pid] = either("start", either.program("false"))
    factory = psutil.Process(either("pid"))
    wait_for(lambda: not factory.children(), PATIENCE, "it does not end")
    either("heard", signal.SIGUSR1)
    factory.kill()
    wait_for(lambda: not alive(factory.pid), PATIENCE, "it does not end")

    assert either.outcome("ended").get("lost") is True
    assert pid not in processes.descendants(os.getpid())


# An agent with many connections begins a factory: its descriptors, and those of the factory, are above what select(2)
# takes. Its arguments: how to make the factory, and a file for the worker's output.
MANY_DESCRIPTORS = """
import os, resource, sys
from hpc_launch.workers.factory import Imports, build_factory, spawn_factory
from hpc_launch.workers.factory_server import Order

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 0 else min(hard, 4096), hard))
taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
factory = build_factory(Imports(home=os.getcwd()), ()) if sys.argv[1] == "build_factory" else spawn_factory(())
assert factory.fileno() > 1023
from hpc_launch.workers.command_workers import Wakeup  # torch starts threads
out = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
wakeup = Wakeup()
order = Order(sys.executable, ("-c", "print('well')"), dict(os.environ), (out, out), forked=False)
pids = factory.start([order])
ended = []
while not ended:
    wakeup.wait(30, factory)
    ended = [(one.pid, one.status) for one in factory.ended()]
assert ended == [(pids[0], 0)], ended
assert factory.sweep(1) == []
factory.close()
"""


@pytest.mark.parametrize("way", ["spawn", "build"])
def test_more_descriptors_than_select_takes(tmp_path: Path, way: str) -> None:
    """With more than 1,100 open files a factory is made, starts a worker and tells of its end."""
    out = tmp_path / "out"
    words = [sys.executable, "-c", MANY_DESCRIPTORS, way, str(out)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE * 4)

    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_text() == "well\n"


@pytest.mark.parametrize("way", ["spawn", "build"])
def test_a_fault_of_the_factory_is_loud(tmp_path: Path, capfd: pytest.CaptureFixture[str], way: str) -> None:
    """An error of its own is not taken for the agent's end: it says where it was, and ends what it has started."""
    with agent(tmp_path, way) as started:
        pids = started.begin(f"print('begun', flush=True)\n{FOREVER}")
        started("signal", pids, 1 << 20)
        all_gone(pids)

    assert "is not a valid Signals" in capfd.readouterr().err
