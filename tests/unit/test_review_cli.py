"""`hpc-launch status` and `logs` as they are typed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from hpc_launch import cli
from hpc_launch.records.directory import JobDirectory
from hpc_launch.review import ask_slurm, find
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from tests import histories
from tests.histories import Losses


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a directory with a job, where nobody can ask Slurm."""
    histories.write(tmp_path / "logs/12.0", output=2, ending="failed", fails={1: 6})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ask_slurm, "which", lambda _: None)
    monkeypatch.setattr(controller, "ask_job", lambda *_: None)
    return tmp_path


def typed(*words: str) -> int:
    """Run a command; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


def shown(capfd: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Run a command that succeeds; returns its lines."""
    assert typed(*words) == 0
    return capfd.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["--attempt=all"], ["attempt 1: lost gpu001", "attempt 2: lost gpu[004-005]"]),
        (["--attempt=all", "--host=gpu[002,005]"], ["attempt 2: lost gpu005"]),
        (["--attempt=0"], []),
    ],
)
def test_lost_nodes_are_named(work: Path, capfd: pytest.CaptureFixture[str], words: list[str], lost: list[str]) -> None:
    """Whoever reads what was written by then knows that it may not be all."""
    job = JobDirectory(work / "logs", "13.0")
    Losses(job.path).write()
    for attempt, (active, _) in enumerate(Losses.ATTEMPTS):
        for rank, node in enumerate(active):
            files = job.rank(attempt, f"gpu{node:03}", rank)
            files.out.parent.mkdir(parents=True, exist_ok=True)
            files.out.write_text("here\n")
    assert typed("logs", "13", *words) == 0

    end = ", so the last that was written there may not be seen"
    assert capfd.readouterr().err.splitlines() == [f"hpc-launch: note: {line}{end}" for line in lost]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rank", "6", "--stdout"], ["[gpu002:6] rank 6 step 0 loss 0.1", "[gpu002:6] rank 6 step 1 loss 0.1"]),
        (
            ["12", "--rank", "0,5-6", "--grep", "[56] step 1"],
            [f"[gpu002:{n}] rank {n} step 1 loss 0.1" for n in (5, 6)],
        ),
        (["--host", "gpu002", "--rank", "0-5", "-n", "1", "12.0", "--stdout"], ["[gpu002:5] rank 5 step 1 loss 0.1"]),
        (["--stderr", "--rank", "6", "--attempt", "1", "--tail", "1"], ["[gpu002:6] ValueError: loss is nan"]),
        (["--stderr", "--rank", "0", "--attempt", "-2"], []),
        (
            ["--per-rank", "-n1", "--stdout", "--rank", "0-1"],
            [f"[gpu001:{n}] rank {n} step 1 loss 0.1" for n in (0, 1)],
        ),
        (["--attempt=all", "--rank=0", "--stdout", "--grep=step 1"], ["[gpu001:0] rank 0 step 1 loss 0.1"] * 2),
    ],
)
def test_logs(capfd: pytest.CaptureFixture[str], words: list[str], expected: list[str]) -> None:
    """Options can stand before and after the job."""
    assert expected == shown(capfd, "logs", *words)


def test_logs_are_folded(capfd: pytest.CaptureFixture[str]) -> None:
    """Equal lines of several ranks are one; of one rank they look as without --fold."""
    folded = shown(capfd, "logs", "--fold", "--stderr", "--grep", "RuntimeError|ValueError")

    assert folded[-1] == "[gpu002:6] ValueError: loss is nan"
    assert folded[0].startswith("[gpu[001-002] ranks 1-2,4-5,7] RuntimeError: [../third_party/gloo")


def test_logs_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    """--json has an object a line."""
    (line,) = shown(capfd, "logs", "--json", "--rank", "3", "--stdout", "-n", "1")
    found = json.loads(line)

    assert isinstance(found.pop("time"), float)
    assert found == {"attempt": 1, "host": "gpu001", "rank": 3, "stream": "stdout", "text": "rank 3 step 1 loss 0.1"}


def test_logs_say_when(capfd: pytest.CaptureFixture[str]) -> None:
    """--times puts the time before each line."""
    (line,) = shown(capfd, "logs", "--times", "--rank", "3", "--stdout", "-n", "1")

    assert line.endswith(" [gpu001:3] rank 3 step 1 loss 0.1")
    assert len(line.partition(" [")[0]) == len("2026-01-01 12:00:00")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rank", "x"], "--rank: 'x' is not ranks such as 0,3 or 0-3,17"),
        (["--attempt", "last"], "--attempt: 'last' is not all, or attempts such as 0, 0-2 or -1 for the last"),
        (["--attempt", "7"], "no such attempt: there are 0-1"),
        (["--rank", "99"], "nothing fits: attempt 1 has files of ranks 0-7 on gpu[001-002]"),
        (["--grep", "("], "--grep: '(' is no regular expression: "),
        (["--host", "gpu[1"], "host list 'gpu[1': found "),
        (["--per-rank", "--fold"], "--per-rank and --fold exclude each other: leave one out"),
        (["-f", "--per-rank"], "--per-rank and --follow exclude each other: leave one out"),
        (["--json", "--fold"], "--fold and --json exclude each other: leave one out"),
        (["--nonsense"], "no such option '--nonsense'"),
    ],
)
def test_logs_that_cannot_be_shown(capfd: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    """What is wrong is one line."""
    assert typed("logs", *words) == 2
    said = capfd.readouterr()

    assert said.err.startswith(f"hpc-launch: {expected}")
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", ["logs", "status"])
def test_a_job_that_is_not_there(capfd: pytest.CaptureFixture[str], command: str, work: Path) -> None:
    """The line says where it was looked for."""
    assert typed(command, "4711") == 66
    looked = f"{work}/logs, {work}"

    assert capfd.readouterr().err == (
        f"hpc-launch: job 4711 has no directory in {looked}, and Slurm tells nothing of it: name its --log-dir\n"
    )


def test_other_steps_of_the_job_are_noted(capfd: pytest.CaptureFixture[str], work: Path) -> None:
    """The last step is shown; that there are others is said beside it."""
    histories.write(work / "logs/12.1")
    assert typed("status", "12") == 0
    said = capfd.readouterr()

    assert said.err == "hpc-launch: note: this is 12.1; the job has other runs: 12.0\n"
    assert said.out.startswith("job       12.1 train.py")


def test_a_status(capfd: pytest.CaptureFixture[str]) -> None:
    """It says how the job stands, and that Slurm could not be asked."""
    lines = shown(capfd, "status")

    assert lines[:3] == [
        "job       12.0 train.py --lr 1e-3",
        "state     failed, exit status 1",
        "Slurm     cannot be seen: there is no scontrol here",
    ]
    assert not any("\x1b" in line for line in lines)


def test_watching_ends_with_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    """A job that is over is shown once."""
    assert len([line for line in shown(capfd, "status", "--watch") if line.startswith("state")]) == 1


def test_watching_begins_before_the_job_does(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    """A job that waits is shown by Slurm's word, until it has a directory."""
    record = JobRecord("13", "PENDING", reason="Priority", label="13")
    looks = iter([find.Search(None, record), find.Search(None, record)])
    monkeypatch.setattr(find, "search", lambda *_, **__: next(looks, find.Search(JobDirectory(work / "logs", "12.0"))))
    states = [json.loads(text)["state"] for text in "".join(
        shown(capfd, "status", "13", "--watch", "--json", "--interval", "0.1")
    ).replace("}{", "}\n{").splitlines()]  # fmt: skip

    assert states == ["waiting", "waiting", "failed"]


def test_colours_are_for_terminals(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks have colours there, and stderr is red; elsewhere nothing has."""
    assert "\x1b" not in "".join(shown(capfd, "logs"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    lines = shown(capfd, "logs", "--rank", "6")

    assert re.match(r"\x1b\[3\dm\[gpu002:6\]\x1b\[0m rank 6", lines[0])
    assert lines[-1].startswith("\x1b[31m[gpu002:6]\x1b[0m ")
