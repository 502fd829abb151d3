"""What a run leaves can be read while it runs and afterwards, and writing it disturbs nobody."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, TIMEOUT, launch, probe, running, write
from tests.support import mentions, wait_for

ROOM = "full"

# A log directory of one megabyte, in a namespace of its own.
SMALL_DISK = (
    "unshare",
    "--mount",
    "bash",
    "-c",
    f'mount -t tmpfs -o size=1m none {ROOM} && exec "$@"',
    "-",
    *HPC_LAUNCH,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def ask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that reads, to its end."""
    return subprocess.run(
        [*HPC_LAUNCH, *words], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def test_a_run_is_followed_through_a_restart(tmp_path: Path) -> None:
    """`logs -f` shows all lines of all attempts, each once, and ends with the run; `status` knows how it goes."""
    body = """
        import time
        attempt = os.environ["HPC_LAUNCH_ATTEMPT"]
        for number in range(5):
            print("line", attempt, number, flush=True)
        while not Path(f"go{attempt}").exists():
            time.sleep(0.02)
        print("end", attempt, end="", flush=True)
        sys.exit(int(attempt == "0" and os.environ["RANK"] == "1"))
    """
    words = ("--max-restarts", "1", "--nproc-per-node", "2", probe(tmp_path, body))
    with running(tmp_path, *words) as launcher:
        launcher.await_records(2)
        with subprocess.Popen([*HPC_LAUNCH, "logs", "-f"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            first = follower.stdout.readline()
            status = json.loads(ask(tmp_path, "status", "--json").stdout)
            write(tmp_path / "go0", "")
            launcher.await_records(4)
            write(tmp_path / "go1", "")
            done = launcher.finish()
            followed = [first, *follower.stdout]
    host = status["hosts"][0]
    lines = [
        f"[{host}:{rank}] line {attempt} {number}\n" for attempt in (0, 1) for rank in (0, 1) for number in range(5)
    ]
    expected = sorted(lines + [f"[{host}:{rank}] end {attempt}\n" for attempt in (0, 1) for rank in (0, 1)])

    assert (done.status, follower.returncode) == (0, 0), done.err
    # A worker that is ended because the other failed may not come to its last words.
    missing = {f"[{host}:0] end 0\n"} - set(followed)
    assert [line for line in expected if line not in missing] == sorted(followed)
    assert (status["state"], [rank["state"] for rank in status["ranks"]]) == ("running", ["up", "up"])
    after = json.loads(ask(tmp_path, "status", "--json").stdout)
    assert (after["state"], after["attempt"], after["exit_status"]) == ("done", 1, 0)
    assert {rank["state"] for rank in after["ranks"]} == {"done"}
    folded = ask(tmp_path, "logs", "--attempt", "1", "--stdout", "--fold").stdout.splitlines()
    assert folded == [f"[{host} ranks 0-1] {text}" for text in [*(f"line 1 {n}" for n in range(5)), "end 1"]]


def test_who_reads_no_more_is_no_error(tmp_path: Path) -> None:
    """`| head` ends the command without a word."""
    done = launch(tmp_path, probe(tmp_path, "for number in range(100_000): print(number)"))
    assert done.status == 0, done.err
    line = f"{sys.executable} -m hpc_launch logs | head -n 1; echo ${{PIPESTATUS[0]}}"
    shown = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )

    assert shown.stdout.splitlines()[0].endswith("] 0")
    assert (shown.stdout.splitlines()[1:], shown.stderr) == (["0"], "")


def test_a_run_that_was_killed_is_not_said_to_run(tmp_path: Path) -> None:
    """On one machine it can be seen that its processes are gone."""
    with running(tmp_path, probe(tmp_path, "import time\ntime.sleep(3600)")) as launcher:
        launcher.await_records(1)
        assert json.loads(ask(tmp_path, "status", "--json").stdout)["state"] == "running"
    (worker,) = launcher.records()
    wait_for(lambda: not Path(f"/proc/{worker.pid}").exists(), TIMEOUT, "the worker lives")
    found = json.loads(ask(tmp_path, "status", "--json").stdout)

    assert (found["state"], found["over"]) == ("failed", True)
    assert found["words"]


def test_a_hundred_megabytes_wait_for_nobody(tmp_path: Path) -> None:
    """While nobody reads the console, a rank writes 100 MB and the others go on; in the end every byte is there."""
    body = """
        rank = os.environ["RANK"]
        line = "x" * 999 + chr(10)
        for _ in range(1000 if rank == "0" else 1):
            sys.stdout.write(line * 100)
        Path(f"written{rank}").touch()
    """
    words = [*HPC_LAUNCH, "--nproc-per-node", "2", probe(tmp_path, body)]
    environ = {**os.environ, "PROBE_RECORDS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(words, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        wait_for(lambda: all((tmp_path / f"written{rank}").exists() for rank in (0, 1)), TIMEOUT, "a rank waits")
        counts = {b"0": 0, b"1": 0}
        for line in launcher.stdout:
            label, _, text = line.partition(b"] ")
            counts[label[-1:]] += len(text)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("logs/latest/attempt_0/*/rank_*.out")}

    assert launcher.returncode == 0
    assert sizes == {"rank_0.out": 100_000_000, "rank_1.out": 100_000}
    assert counts == {b"0": 100_000_000, b"1": 100_000}


FILL = """
    attempt = os.environ["HPC_LAUNCH_ATTEMPT"]
    for _ in range(300):
        print("x" * 9999)
    print("I go on", attempt, file=sys.stderr)
    Path(f"done{attempt}-{os.environ['RANK']}").touch()
"""


@needs_root
def test_a_working_directory_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    """Another attempt would not find the script: one line says why, and no traceback of the launcher's is the cause."""
    body = """
        import shutil
        shutil.rmtree(os.getcwd())
        sys.exit(3)
    """
    probe(tmp_path, body, name="gone/train.py")
    words = ("sh", "-c", 'cd gone; exec "$@"', "sh", *HPC_LAUNCH)

    done = launch(tmp_path, "--max-restarts=2", "--log-dir", str(tmp_path / "logs"), "train.py", program=words)

    assert (done.status, len(done.records)) == (78, 1), done.err
    assert mentions(done.err.splitlines()[-1], "working directory cd")
    assert "Traceback" not in done.err


def test_a_log_directory_that_is_removed_ends_nothing(tmp_path: Path) -> None:
    """One line says so, once; the console shows the rest, and the next attempt has a directory again."""
    body = """
        import shutil, time
        first = os.environ["HPC_LAUNCH_ATTEMPT"] == "0"
        if first:
            time.sleep(0.5)
            shutil.rmtree(os.environ["HPC_LAUNCH_JOB_DIRECTORY"])
            while "hpc-launch" not in open("said").read():
                time.sleep(0.05)
        print("after all", flush=True)
        sys.exit(3 if first else 0)
    """
    words = ("sh", "-c", 'exec "$@" 2>said', "sh", *HPC_LAUNCH)

    done = launch(tmp_path, "--max-restarts=1", probe(tmp_path, body), program=words)

    said = (tmp_path / "said").read_text().splitlines()
    assert done.status == 0, said
    assert [line.partition("] ")[2] for line in done.out.splitlines()] == ["after all"] * 2
    assert ["/logs/local-" in line for line in said if " was removed" in line] == [True], said
    (out,) = tmp_path.glob("logs/local-*/attempt_1/*/rank_0.out")
    assert out.read_text() == "after all\n"


def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    """It is told once, with the directory; what workers print is lost, and they go on."""
    (tmp_path / ROOM).mkdir()
    words = ("--start", "warm", "--console", "1", "--log-dir", ROOM, "--nproc-per-node", "2", probe(tmp_path, FILL))
    done = launch(tmp_path, *words, program=SMALL_DISK)

    assert done.status == 0, done.err
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0-0", "done0-1"]
    (line,) = [line for line in done.err.splitlines() if f"{tmp_path / ROOM}/local-" in line]
    assert mentions(line, os.strerror(errno.ENOSPC)), done.err


@needs_root
def test_a_full_disk_ends_no_more_than_an_attempt_of_other_programs(tmp_path: Path) -> None:
    """Workers that are started by exec fail when they print; the next attempt writes to the console alone."""
    (tmp_path / ROOM).mkdir()
    words = ("--start", "exec", "--max-restarts", "1", "--log-dir", ROOM, probe(tmp_path, FILL))
    done = launch(tmp_path, *words, program=SMALL_DISK)

    assert done.status == 0, done.err
    assert [path.name for path in tmp_path.glob("done*")] == ["done1-0"]
    assert done.err.count("cannot write in ") == 1, done.err
    assert "I go on 1" in done.err
