"""Where the output of the workers goes: files, console, and who is shown."""

import dataclasses
import json
import socket
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec

from tests.local.launching import Finished, launch, one_task_step, probe
from tests.support import mentions

HOSTNAME = socket.gethostname()

SPEAK = """
    rank = os.environ["RANK"]
    print("out", rank, flush=True)
    print("err", rank, file=sys.stderr, flush=True)
    os._exit(0)
"""


def files(folder: Path) -> dict[str, str]:
    """The workers' files of the one attempt, by name, empty ones left out."""
    found = [*folder.glob("logs/*/attempt_0/*/rank_*.out"), *folder.glob("logs/*/attempt_0/*/rank_*.err")]
    return {path.name: path.read_text() for path in found if path.stat().st_size}


def shown(done: Finished) -> list[str]:
    """The workers' lines on the console, without their prefix."""
    lines = [*done.out.splitlines(), *done.err.splitlines()]
    return sorted(line.rpartition("] ")[2] for line in lines if "out " in line or "err " in line)


OUT, ERR = ["out 0", "out 1"], ["err 0", "err 1"]
ALL_FILES = {"rank_0.out", "rank_1.out", "rank_0.err", "rank_1.err"}


@pytest.mark.parametrize(
    ("words", "filed", "console"),
    [
        ([], ALL_FILES, ERR + OUT),
        (["-r", "3"], ALL_FILES, []),
        (["--redirects", "0:1,1:2"], {"rank_0.out", "rank_1.err"}, ["err 0", "out 1"]),
        (["-t", "1"], {"rank_0.out", "rank_1.out"}, ERR + OUT),
        (["-t", "2"], {"rank_0.err", "rank_1.err"}, ERR + OUT),
        (["--tee", "3"], ALL_FILES, ERR + OUT),
        (["-t", "0:1,1:2"], {"rank_0.out", "rank_1.err"}, ERR + OUT),
    ],
)
def test_redirects_and_tee(tmp_path: Path, words: list[str], filed: set[str], console: list[str]) -> None:
    """Redirected streams go to files only, teed ones to both, the others to the console; without either, to both."""
    done = launch(tmp_path, *words, "--nproc-per-node", "2", probe(tmp_path, SPEAK))
    assert done.status == 0, done.err
    expected = {name: f"{name[-3:]} {name[5]}\n" for name in filed}
    assert (expected, console) == (files(tmp_path), shown(done))


def test_local_ranks_of_two_digits(tmp_path: Path) -> None:
    """'10:3' is about local rank 10 of twelve, and about no other."""
    words = ["-t", "10:3", "--local-ranks-filter", "1,10,11", "--nproc-per-node", "12"]
    done = launch(tmp_path, *words, probe(tmp_path, SPEAK))
    assert (done.status, len(done.records)) == (0, 12), done.err
    assert files(tmp_path) == {"rank_10.out": "out 10\n", "rank_10.err": "err 10\n"}
    assert shown(done) == ["err 1", "err 10", "err 11", "out 1", "out 10", "out 11"]


def test_local_ranks_filter_leaves_files_alone(tmp_path: Path) -> None:
    """--local-ranks-filter decides about the console only."""
    done = launch(tmp_path, "--local-ranks-filter", "1", "--nproc-per-node", "2", probe(tmp_path, SPEAK))
    assert (done.status, shown(done), set(files(tmp_path))) == (0, ["err 1", "out 1"], ALL_FILES)


def test_duplicated_lines(tmp_path: Path) -> None:
    """Lines with one of the texts are copied to a file of their own; a double comma stands for one."""
    body = """
        for word in ("apple", "a,b", "pear"):
            print(word, flush=True)
            print(word, file=sys.stderr, flush=True)
    """
    words = ["--duplicate-stdout-filters", "apple,a,,b", "--duplicate-stderr-filters", "pear", "-t", "3"]
    done = launch(tmp_path, *words, probe(tmp_path, body))
    assert done.status == 0, done.err
    copies = {path.name: path.read_text() for path in tmp_path.glob("logs/**/filtered_*")}
    found = {name: [line.rpartition(" ")[2] for line in text.splitlines()] for name, text in copies.items()}
    assert found == {"filtered_stdout.log": ["apple", "a,b"], "filtered_stderr.log": ["pear"]}


@pytest.mark.parametrize("by_variable", [False, True], ids=["flag", "variable"])
def test_prefix_of_console_lines(tmp_path: Path, *, by_variable: bool) -> None:
    """Console lines begin with the template filled in, from the option or from torch's variable."""
    template = "${role_name}/${rank}/${local_rank}/${hostname}: "
    words = [] if by_variable else ["--log-line-prefix-template", template]
    environ = {"TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE": template if by_variable else None}
    done = launch(tmp_path, *words, "--role", "trainer", "--nproc-per-node", "2", probe(tmp_path, SPEAK), env=environ)
    assert done.status == 0, done.err
    assert sorted(done.out.splitlines()) == [f"trainer/{rank}/{rank}/{HOSTNAME}: out {rank}" for rank in range(2)]
    assert sorted(done.err.splitlines()) == [f"trainer/{rank}/{rank}/{HOSTNAME}: err {rank}" for rank in range(2)]


@pytest.mark.parametrize(
    ("choice", "workers", "ranks"),
    [("auto", 17, {0}), ("all", 17, set(range(17))), ("1,3-4", 6, {1, 3, 4})],
)
def test_console(tmp_path: Path, choice: str, workers: int, ranks: set[int]) -> None:
    """--console says whose output is shown; files are written for all."""
    done = launch(tmp_path, "--console", choice, "--nproc-per-node", str(workers), probe(tmp_path, SPEAK))
    assert done.status == 0, done.err
    assert ranks == {int(line.split()[-1]) for line in shown(done)}
    assert 2 * workers == len(files(tmp_path))


def test_console_lines_are_whole(tmp_path: Path) -> None:
    """Lines of several workers that write in pieces are never mixed, and each says whose it is."""
    body = """
        for number in range(40):
            for piece in (f"<{os.environ['RANK']}", f" {number}", " end>", chr(10)):
                sys.stdout.write(piece)
                sys.stdout.flush()
        print("last words", end="")
    """
    step = one_task_step("node7")
    done = launch(tmp_path, "--console", "all", "--nproc-per-node", "4", probe(tmp_path, body), env=step)
    lines = [f"[node7:{rank}] <{rank} {number} end>" for rank in range(4) for number in range(40)]
    expected = lines + [f"[node7:{rank}] last words" for rank in range(4)]
    assert (0, sorted(expected)) == (done.status, sorted(done.out.splitlines()))


def test_job_directory(tmp_path: Path) -> None:
    """--log-dir holds one directory for the job: its plan, its events, and a pair of files for each rank."""
    done = launch(tmp_path, "--log-dir", "here/there", "--nproc-per-node", "2", probe(tmp_path, SPEAK), "--lr", "1")
    assert done.status == 0, done.err
    job = tmp_path / "here" / "there" / "latest"
    assert {"rank_0.out", "rank_0.err", "rank_1.out", "rank_1.err"} == {
        path.name for path in job.glob("latest/*/rank_*")
    }
    assert json.loads((job / "job.json").read_text())["script"] == ["train.py", "--lr", "1"]
    events = [json.loads(line) for path in job.glob("nodes/*/events.jsonl") for line in path.read_text().splitlines()]
    started = {event["rank"]: event["pid"] for event in events if event["event"] == "worker started"}
    assert dict(enumerate(record.pid for record in done.records)) == started
    assert [(str(job.resolve()),)] * 2 == done.seen("HPC_LAUNCH_JOB_DIRECTORY")
    assert not (tmp_path / "logs").exists()


HAS_HANDLERS = "event_log_handler" in {field.name for field in dataclasses.fields(WorkerSpec)}


@pytest.mark.skipif(not HAS_HANDLERS, reason="newer releases of torch")
def test_event_log_handler(tmp_path: Path) -> None:
    """--event-log-handler console prints torch's events as JSON."""
    done = launch(tmp_path, "--event-log-handler", "console", "--role", "trainer", probe(tmp_path))
    assert done.status == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert ("trainer", "SUCCEEDED") in {(event["metadata"]["role"], event["metadata"]["state"]) for event in events}


@pytest.mark.skipif(HAS_HANDLERS, reason="older releases of torch")
def test_event_log_handler_before_torch_has_it(tmp_path: Path) -> None:
    """One line names the option and torch's release."""
    done = launch(tmp_path, "--event-log-handler", "console", probe(tmp_path))
    [line] = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ")]

    assert (done.status, done.records) == (2, []), done.err
    assert mentions(line, "--event-log-handler", torch.__version__)


def test_completion_script(tmp_path: Path) -> None:
    """--print-completion bash prints a script for the shell and starts nothing."""
    done = launch(tmp_path, "--print-completion", "bash")
    assert (done.status, done.err, done.records) == (0, "", [])
    assert "_HPC_LAUNCH_COMPLETE=bash_complete" in done.out
    assert "hpc-launch" in done.out
