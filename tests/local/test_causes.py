"""Why a run failed, on one node: what a worker leaves behind, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpc_launch.records import failure_messages, history, root_cause
from hpc_launch.records.history_model import History
from tests.local.launching import free_port, launch, probe
from tests.support import mentions

RAISE = """
def step(number):
    raise ValueError(f"loss is nan in step {number}")

if os.environ["RANK"] == "1":
    step(3)
import time
time.sleep(600)
"""

# A process that a script forks is not the script; and what the script leaves itself, by `record` say, is better.
OWN = """
child = os.fork()
if child == 0:
    raise OSError("not the script's own")
os.waitpid(child, 0)
error = os.environ["TORCHELASTIC_ERROR_FILE"]
assert not Path(error).exists()
Path(error).write_text(json.dumps({"message": {"message": "KeyError: mine", "extraInfo": {"timestamp": "1"}}}))
raise KeyError("mine")
"""

HEADLINE = "1 ValueError: loss is nan in step 3"


def read(folder: Path) -> History:
    """Read the job directory of a launch."""
    told = history.read_history((folder / "logs/latest").resolve())
    assert told.unreadable == ()
    return told


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["--start", "warm"], "hook"),
        (["--start", "exec"], "stderr"),
        (["--start", "exec", "--rdzv-backend=static", "--rdzv-endpoint=PORT", "--max-restarts", "1"], "stderr"),
    ],
)
def test_an_exception_is_told_without_record(tmp_path: Path, words: list[str], source: str) -> None:
    """The exception is in the records and on the console, once, whoever starts the worker and runs the attempts."""
    words = [word.replace("PORT", f"127.0.0.1:{free_port()}") for word in words]
    done = launch(tmp_path, *words, "--nproc-per-node", "2", probe(tmp_path, RAISE))
    told = read(tmp_path)
    last = told.attempts[-1]
    failure = last.workers[1].failure
    raised = failure.exception if failure is not None else None
    cause = root_cause.root_cause_of(told, last)

    assert done.status == 1, done.err
    assert raised is not None
    assert (raised.type, raised.message, raised.source) == ("ValueError", "loss is nan in step 3", source)
    assert cause is not None
    assert mentions(failure_messages.failure_headline(cause), "1", HEADLINE)
    assert done.err.count(f"attempt {last.number}: {failure_messages.failure_headline(cause)}") == 1, done.err
    assert [attempt.ending for attempt in told.attempts] == ["restart"] * (len(told.attempts) - 1) + ["failed"]


def test_the_file_of_the_exception(tmp_path: Path) -> None:
    """It is the one that torch's `record` would have written, with more in it."""
    launch(tmp_path, "--start", "warm", "--nproc-per-node", "2", probe(tmp_path, RAISE))
    (worker,) = [worker for worker in read(tmp_path).attempts[0].workers if worker.rank == 1]
    said = json.loads(worker.files.error.read_text())["message"]
    extra = said["extraInfo"]

    assert said["message"] == "ValueError: loss is nan in step 3"
    assert extra["py_callstack"].startswith("Traceback (most recent call last):\n  File ")
    assert "hpc_launch" not in extra["py_callstack"]
    assert worker.ended is not None
    assert int(extra["timestamp"]) <= extra["time"] <= worker.ended
    assert extra["type"] == "ValueError"
    assert ":" in extra["where"]


def test_what_a_script_leaves_itself_stays(tmp_path: Path) -> None:
    """Its own file counts, and processes that it forks have none."""
    launch(tmp_path, "--start", "warm", "--nproc-per-node", "1", probe(tmp_path, OWN))
    (worker,) = read(tmp_path).attempts[0].workers

    assert worker.failure is not None
    assert worker.failure.exception is not None
    assert (worker.failure.exception.type, worker.failure.exception.message) == ("KeyError", "mine")


@pytest.mark.parametrize(
    "left",
    ["", '{"message": {"mess', '{"message": {"message": "KeyError: mine", "extraInfo": {}}}'],
    ids=["empty", "cut", "no-time"],
)
def test_an_error_file_that_torch_cannot_read(tmp_path: Path, left: str) -> None:
    """It is a worker's, where the disk was full, say: it ends no run, and the restarts and the status are the same."""
    body = f"""
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text({left!r})
        sys.exit(40 + int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    """
    done = launch(tmp_path, "--start", "warm", "--max-restarts", "1", probe(tmp_path, body))

    assert (done.status, len(done.records)) == (41, 2), done.err
    assert [attempt.ending for attempt in read(tmp_path).attempts] == ["restart", "failed"]
    assert "Traceback" not in done.err


@pytest.mark.parametrize(("code", "said"), [("1", "1"), ("7", "7"), ("'nobody came'", "nobody came")])
def test_where_a_script_ends_by_sys_exit(tmp_path: Path, code: str, said: str) -> None:
    """The root cause names file and line; an empty file is not spoken of."""
    body = f"""
        import time
        if os.environ["RANK"] == "1":
            sys.exit({code})
        time.sleep(600)
    """
    done = launch(tmp_path, "--start", "warm", "--nproc-per-node", "2", probe(tmp_path, body))

    assert done.status == (int(code) if code.isdigit() else 1)
    line = (tmp_path / "train.py").read_text().splitlines().index(f"    sys.exit({code})") + 1
    assert mentions(done.err, f"sys.exit({said})", f"train.py:{line}"), done.err
    assert ("rank_1.err" in done.err) == (not code.isdigit()), done.err


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_where_a_fatal_signal_met_a_script(tmp_path: Path, start: str) -> None:
    """faulthandler writes the stack, unless the user has said otherwise."""
    body = """
        import ctypes, time
        if os.environ["RANK"] == "1":
            ctypes.string_at(0)
        time.sleep(600)
    """
    words = ["--start", start, "--nproc-per-node", "2", probe(tmp_path, body)]
    line = (tmp_path / "train.py").read_text().splitlines().index("    ctypes.string_at(0)") + 1
    done = launch(tmp_path, *words)
    assert done.status == 139
    assert mentions(done.err, "SIGSEGV", f"train.py:{line}"), done.err
    done = launch(tmp_path, *words, env={"PYTHONFAULTHANDLER": ""})
    assert done.status == 139
    assert not mentions(done.err, f"train.py:{line}"), done.err


def test_a_rank_that_leaves_early(tmp_path: Path) -> None:
    """It is named, and the others' tracebacks are on the console once; their files have them all."""
    body = """
        import time
        def reduce():
            raise RuntimeError(f"Connection closed by peer [127.0.0.1]:{os.getpid()}")
        def there(pid):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
            return True
        if os.environ["RANK"] == "2":
            Path("leaving").write_text(str(os.getpid()))
            Path("leaving").rename("left")
            sys.exit(0)
        while not Path("left").exists() or there(int(Path("left").read_text())):
            time.sleep(0.02)
        reduce()
    """
    done = launch(tmp_path, "--start", "warm", "--nproc-per-node", "4", probe(tmp_path, body))
    [worker] = [record for record in done.records if record["RANK"] == "2"]

    assert done.status == 1
    last = done.err[done.err.index("hpc-launch: attempt 0: ") :]
    assert mentions(last, "rank 2", root_cause.LEFT), done.err
    said = sum(
        (tmp_path / f"logs/latest/attempt_0/{worker['HPC_LAUNCH_HOST']}/rank_{rank}.err")
        .read_text()
        .count("Traceback (most recent")
        for rank in range(4)
    )
    shown = done.err.count("Traceback (most recent")
    assert shown == 1
    # The last may have been ended before it could say anything.
    assert said in (2, 3)
    assert mentions(done.err, f"{said - 1} more"), done.err
