"""How runs end: exit statuses, restarts, signals, and that nothing stays behind."""

import os
import signal
import sys
import uuid
from pathlib import Path

import pytest

from hpc_launch.records import history
from tests.local.launching import FOREVER, HPC_LAUNCH, alive, free_port, launch, launch_nodes, probe, running, write
from tests.support import mentions, wait_for


def all_gone(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("deed", "status"),
    [
        ("sys.exit(42)", 42),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 139),
        ("sys.exit(0)", 0),
    ],
)
def test_status_is_the_first_failure(tmp_path: Path, deed: str, status: int) -> None:
    """The launcher's status is that of the worker which failed, 128+N for signal N; the others are ended."""
    body = f"""
        import signal, time
        while len(list(_folder.glob("[0-9]*.json"))) < 2:
            time.sleep(0.02)
        if os.environ["RANK"] == "1":
            {deed}
        time.sleep(3600 if {status} else 0)
    """
    done = launch(tmp_path, "--nproc-per-node", "2", probe(tmp_path, body))
    assert (status, 2) == (done.status, len(done.records)), done.err
    assert all_gone([record.pid for record in done.records])
    assert "Traceback" not in done.err


def test_workers_are_torn_down_and_the_agent_is_not(tmp_path: Path) -> None:
    """Functions for the end of a process run in each worker, and not in the agent, which has closed everything."""
    site = """
        import atexit, os, pathlib, sys
        atexit.register(lambda: pathlib.Path("ended", f"{os.getpid()} {os.environ.get('RANK')}").touch())
    """
    write(tmp_path / "site/sitecustomize.py", site)
    (tmp_path / "ended").mkdir()
    script = probe(tmp_path, "sys.exit()")
    done = launch(tmp_path, "--start", "warm", "--nproc-per-node", "2", script, env={"PYTHONPATH": "site"})
    assert done.status == 0, done.err
    ended = {path.name for path in (tmp_path / "ended").iterdir()}
    assert ended == {f"{record.pid} {record['RANK']}" for record in done.records}


def test_workers_know_their_attempt(tmp_path: Path) -> None:
    """After a failure all workers start again, with the number of their attempt, until one attempt succeeds.

    All of it is in one job directory, although each attempt ends in a later second than it began.
    """
    body = """
        import time
        begun = int(time.time())
        while int(time.time()) == begun:
            time.sleep(0.01)
        sys.exit(int(os.environ['TORCHELASTIC_RESTART_COUNT'] != '2' and os.environ['RANK'] == '0'))
    """
    done = launch(tmp_path, "--max-restarts", "3", "--nproc-per-node", "2", probe(tmp_path, body))
    assert done.status == 0, done.err
    names = ("HPC_LAUNCH_ATTEMPT", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS")
    attempts = dict.fromkeys(done.seen(*names))
    assert list(attempts) == [("0", "0", "3"), ("1", "1", "3"), ("2", "2", "3")]
    assert {"0", "1"} == {rank for attempt, rank in done.seen("HPC_LAUNCH_ATTEMPT", "RANK") if attempt == "2"}
    (job,) = (path for path in (tmp_path / "logs").iterdir() if not path.is_symlink())
    assert {"attempt_0", "attempt_1", "attempt_2"} <= {path.name for path in job.iterdir()}


def test_restarts_come_to_an_end(tmp_path: Path) -> None:
    """When the restarts are used up, the status is that of the last failure."""
    body = "sys.exit(40 + int(os.environ['TORCHELASTIC_RESTART_COUNT']))"
    done = launch(tmp_path, "--max-restarts", "1", probe(tmp_path, body))
    assert (done.status, done.seen("TORCHELASTIC_RESTART_COUNT")) == (41, [("0",), ("1",)]), done.err


def test_a_failure_ends_all_nodes_alike(tmp_path: Path) -> None:
    """When a worker fails, the workers of other nodes are stopped and every agent has that worker's status."""
    body = f"""
        import signal, time
        from pathlib import Path
        if os.environ["RANK"] == "0":
            while not Path("ready").exists():
                time.sleep(0.02)
            sys.exit(42)
        def told(*_):
            Path("stopped").touch()
            sys.exit(7)
        signal.signal(signal.SIGTERM, told)
        Path("ready").touch()
        {"; ".join(FOREVER.splitlines())}
    """
    common = ["--hosts", "127.0.0.1,localhost", "--local-addr", "127.0.0.1", "--rdzv-id", uuid.uuid4().hex]
    common += ["--monitor-interval", "0.05", "--nproc-per-node", "1", probe(tmp_path, body)]
    done = launch_nodes(tmp_path, ["--node-rank", "0"], ["--node-rank", "1"], common=common)
    assert [node.status for node in done] == [42, 42], "".join(node.err for node in done)
    assert (tmp_path / "stopped").exists()


def test_a_long_monitor_interval_delays_no_end(tmp_path: Path) -> None:
    """The end of a worker is seen at once, however seldom the agent is told to look."""
    done = launch(tmp_path, "--monitor-interval", "3600", "--nproc-per-node", "2", probe(tmp_path))
    assert (done.status, len(done.records)) == (0, 2), done.err


@pytest.mark.parametrize(
    ("words", "signum"),
    [
        ([], signal.SIGTERM),
        ([], signal.SIGINT),
        ([], signal.SIGHUP),
        (["--signals-to-handle", "SIGUSR1"], signal.SIGUSR1),
        (["--run-path", "--start", "warm"], signal.SIGTERM),
        (["--run-path", "--start", "exec"], signal.SIGTERM),
    ],
)
def test_a_signal_ends_launcher_and_workers(tmp_path: Path, words: list[str], signum: signal.Signals) -> None:
    """A stop signal to the launcher ends all workers, and the status is 128+N."""
    with running(tmp_path, *words, "--nproc-per-node", "2", probe(tmp_path, FOREVER)) as launcher:
        pids = [record.pid for record in launcher.await_records(2)]
        launcher.process.send_signal(signum)
        done = launcher.finish()
    assert 128 + signum == done.status, done.err
    assert all_gone(pids)
    # A Python worker may well say where it was interrupted; the launcher does not.
    assert not done.err.startswith("Traceback")
    assert "\nTraceback" not in done.err


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_hangup_that_is_ignored_ends_nobody(tmp_path: Path, start: str) -> None:
    """nohup has it ignored: the run goes on when the shell has ended, and its workers know nothing of it either."""
    body = """
        import signal, time
        os.kill(os.getppid(), signal.SIGHUP)
        Path("up").touch()
        while not Path("leave").exists():
            time.sleep(0.02)
        sys.exit(3 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 4)
    """
    words = ["--start", start, "--monitor-interval", "0.05", "--nproc-per-node", "1", probe(tmp_path, body)]
    with running(tmp_path, *words, program=("nohup", *HPC_LAUNCH)) as run:
        [worker] = run.await_records(1)
        wait_for((tmp_path / "up").exists, 60, run.said)
        for pid in (run.process.pid, worker.pid):
            os.kill(pid, signal.SIGHUP)
        (tmp_path / "leave").touch()
        done = run.finish()
    assert done.status == 3, done.err
    assert not mentions(done.err, "SIGHUP"), done.err


@pytest.mark.parametrize("flag", ["--grace", "--shutdown-timeout"])
def test_a_worker_that_will_not_end_is_killed(tmp_path: Path, flag: str) -> None:
    """A worker that ignores SIGTERM is killed after --grace, and that is said."""
    body = f"""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open("ready", "w").close()
        {"; ".join(FOREVER.splitlines())}
    """
    with running(tmp_path, flag, "1", probe(tmp_path, body)) as launcher:
        wait_for((tmp_path / "ready").exists, 60, "the worker does not begin")
        pids = [record.pid for record in launcher.records()]
        launcher.process.send_signal(signal.SIGTERM)
        done = launcher.finish()
    assert (done.status, all_gone(pids)) == (143, True), done.err
    assert [line for line in done.err.splitlines() if mentions(line, "SIGTERM 1 --grace")] != []


def test_a_second_sigint_ends_it_at_once(tmp_path: Path) -> None:
    """A person who does not want to wait interrupts again: workers that ignore SIGINT are killed, and that is said."""
    body = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nopen('ready', 'w').close()\n{FOREVER}"
    with running(tmp_path, "--grace", "3600", probe(tmp_path, body)) as launcher:
        wait_for((tmp_path / "ready").exists, 60, "the worker does not begin")
        [worker] = launcher.records()
        launcher.process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopped by SIGINT" in launcher.said(), 60, "nobody hears of it")
        assert alive(worker.pid)
        launcher.process.send_signal(signal.SIGINT)
        done = launcher.finish()
    assert (done.status, alive(worker.pid)) == (130, False), done.err
    assert mentions(done.err, "1 h")
    assert [line for line in done.err.splitlines() if line.count("SIGINT") == 2] != []


@pytest.mark.parametrize("status", [0, 42])
def test_what_a_worker_leaves_behind_is_ended(tmp_path: Path, status: int) -> None:
    """A process that a worker started, and which stays in its group, is gone when the launcher has ended."""
    body = f"""
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", {FOREVER!r}], stdout=subprocess.DEVNULL)
        open("child", "w").write(str(child.pid))
        os._exit({status})
    """
    done = launch(tmp_path, probe(tmp_path, body))
    assert status == done.status, done.err
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not alive(child), 10, f"process {child} still runs")


def test_workers_really_talk(tmp_path: Path) -> None:
    """Workers on two nodes find each other with torch's defaults, and an all-reduce gives the right sum."""
    script = write(
        tmp_path / "reduce.py",
        """
        import torch
        import torch.distributed as dist
        dist.init_process_group("gloo")
        value = torch.tensor([dist.get_rank() + 1.0])
        dist.all_reduce(value)
        print("sum", value.item())
        dist.destroy_process_group()
        """,
    )
    common = ["--hosts", "127.0.0.1,localhost", "--local-addr", "127.0.0.1", "--rdzv-id", uuid.uuid4().hex]
    common += ["--master-port", str(free_port()), "--nproc-per-node", "1", str(script)]
    done = launch_nodes(tmp_path, ["--node-rank", "0"], ["--node-rank", "1"], common=common)
    assert [node.status for node in done] == [0, 0], "".join(node.err for node in done)
    expected = ["[127.0.0.1:0] sum 3.0", "[localhost:1] sum 3.0"]
    assert expected == sorted(line for node in done for line in node.out.splitlines())


def test_the_console_script_is_the_same_program(tmp_path: Path) -> None:
    """'hpc-launch' is 'python -m hpc_launch'."""
    program = (str(Path(sys.executable).with_name("hpc-launch")),)
    done = launch(tmp_path, probe(tmp_path, "sys.exit(3)"), program=program)
    assert (done.status, done.seen("RANK", "WORLD_SIZE")) == (3, [("0", "1")]), done.err


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_notice_that_comes_while_the_launcher_starts(tmp_path: Path, start: str) -> None:
    """Importing torch takes long: the signal waits, and reaches the workers when there are some; it ends nobody."""
    body = """
        import signal, time
        got = []
        signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
        while not got:
            time.sleep(0.01)
        print("told", len(got), signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)
    """
    with running(tmp_path, "--start", start, probe(tmp_path, body)) as launcher:
        blocked = f"/proc/{launcher.process.pid}/status"
        wait_for(lambda: signal.SIGUSR1 in blocked_signals(blocked), 60, "the launcher does not begin", pause=0.001)
        launcher.process.send_signal(signal.SIGUSR1)
        done = launcher.finish()
    assert done.status == 0, done.err
    assert done.out.partition("] ")[2] == "told 1 set()\n"
    assert mentions(done.err, "SIGUSR1")


def blocked_signals(status: str) -> set[int]:
    """The signals that a process blocks, by its file in /proc."""
    [line] = [line for line in Path(status).read_text().splitlines() if line.startswith("SigBlk:")]
    mask = int(line.split()[1], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_nobody_has_a_handler_for_a_notice(tmp_path: Path, start: str) -> None:
    """It is said that no worker is told, and what to do; one that gets a handler later is told then."""
    body = """
        import signal, time
        def wait_for_file(name):
            while not Path(name).exists():
                time.sleep(0.02)
        wait_for_file("handle")
        signal.signal(signal.SIGUSR1, lambda *_: Path("told").touch())
        wait_for_file("told")
    """
    script = probe(tmp_path, body)
    words = ["--start", start, "--nproc-per-node", "1", script]
    with running(tmp_path, *words) as run:
        [worker] = run.await_records(1)
        run.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: mentions(run.said(), "SIGUSR1", "hpc_launch.runtime.should_stop"), 60, run.said)
        assert alive(worker.pid)
        wait_for(lambda: heard(tmp_path) == [False], 60, run.said)
        (tmp_path / "handle").touch()
        done = run.finish()
    assert done.status == 0, done.err
    lines = [line for line in done.err.splitlines() if "SIGUSR1" in line]
    assert len(lines) == 2, done.err
    assert heard(tmp_path) == [True]


def heard(folder: Path) -> list[bool]:
    """Whether workers have got each notice signal, by the records of the run."""
    notices = history.read_history((folder / "logs/latest").resolve()).notices
    assert all(bool(notice.hosts) is not bool(notice.unheard) for notice in notices)
    return [bool(notice.hosts) for notice in notices]


@pytest.mark.parametrize("start", ["warm", "exec"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda signum: signum.name)
def test_a_worker_stops_its_parent(tmp_path: Path, start: str, signum: signal.Signals) -> None:
    """A worker's parent is the agent with torchrun; here as there, a signal to it ends all workers in order."""
    body = f"""
        import signal, time
        def leave(*_):
            Path("left" + os.environ["RANK"]).touch()
            sys.exit()
        signal.signal({int(signum)}, leave)
        Path("up" + os.environ["RANK"]).touch()
        while len(list(Path().glob("up*"))) < 2:
            time.sleep(0.02)
        if os.environ["RANK"] == "1":
            os.kill(os.getppid(), {int(signum)})
        time.sleep(3600)
    """
    done = launch(tmp_path, "--start", start, "--nproc-per-node", "2", probe(tmp_path, body))
    assert done.status == 128 + signum, done.err
    assert mentions(done.err, signum.name), done.err
    assert all((tmp_path / f"left{rank}").exists() for rank in range(2)), done.err
    assert all_gone([record.pid for record in done.records])
