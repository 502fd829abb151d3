"""`hpc-launch status` and `logs` as they are typed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from hpc_launch import cli
from hpc_launch.inspection import job_search, slurm_query
from hpc_launch.inspection.job_state import SlurmAnswer
from hpc_launch.inspection.slurm_query import SlurmQuery
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord
from tests import histories
from tests.histories import Losses
from tests.support import lines_mention, mentions


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a directory with a job, where nobody can ask Slurm."""
    histories.write(tmp_path / "logs/12.0", output=2, ending="failed", fails={1: 6})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm_query, "which", lambda _: None)
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
        (["--attempt=all"], ["1 gpu001", "2 gpu[004-005]"]),
        (["--attempt=all", "--host=gpu[002,005]"], ["2 gpu005"]),
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

    assert lines_mention(capfd.readouterr().err.splitlines(), *lost)


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
        (["--rank", "x"], "--rank 'x' 0,3 0-3,17"),
        (["--attempt", "last"], "--attempt 'last' all 0-2 -1"),
        (["--attempt", "7"], "0-1"),
        (["--rank", "99"], "1 0-7 gpu[001-002]"),
        (["--grep", "("], "--grep '('"),
        (["--host", "gpu[1"], "'gpu[1'"),
        (["--per-rank", "--fold"], "--per-rank --fold"),
        (["-f", "--per-rank"], "--per-rank --follow"),
        (["--json", "--fold"], "--fold --json"),
        (["--nonsense"], "'--nonsense'"),
    ],
)
def test_logs_that_cannot_be_shown(capfd: pytest.CaptureFixture[str], words: list[str], expected: str) -> None:
    """What is wrong is one line."""
    assert typed("logs", *words) == 2
    said = capfd.readouterr()

    assert said.err.startswith("hpc-launch: ")
    assert mentions(said.err, expected)
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("command", ["logs", "status"])
def test_a_job_that_is_not_there(capfd: pytest.CaptureFixture[str], command: str, work: Path) -> None:
    """The line says where it was looked for."""
    assert typed(command, "4711") == 66
    err = capfd.readouterr().err

    assert mentions(err, "4711", work / "logs", work, "--log-dir")
    assert err.count("\n") == 1


def test_other_steps_of_the_job_are_noted(capfd: pytest.CaptureFixture[str], work: Path) -> None:
    """The last step is shown; that there are others is said beside it."""
    histories.write(work / "logs/12.1")
    assert typed("status", "12") == 0
    said = capfd.readouterr()

    assert lines_mention(said.err.splitlines(), "note 12.1 12.0")
    assert said.out.startswith("job       12.1 train.py")


def test_the_runs_of_a_job_are_lines(capfd: pytest.CaptureFixture[str], work: Path) -> None:
    """Below the last one's status, where the job is named as a whole; and in JSON."""
    histories.write(work / "logs/12.1")
    runs = ["12.0 failed 1", "12.1 done"]
    lines = shown(capfd, "status", "12")
    found = json.loads("\n".join(shown(capfd, "status", "12", "--json")))
    single = json.loads("\n".join(shown(capfd, "status", "12.0", "--json")))

    assert lines_mention(lines[-2:], *runs)
    assert [(run["point"], run["state"], run["exit_status"]) for run in found["runs"]] == [
        ("12.0", "failed", 1),
        ("12.1", "done", 0),
    ]
    assert (found["job"], found["state"]) == ("12.1", "done")
    assert (single["job"], single["runs"]) == ("12.0", [])


@pytest.mark.parametrize("said", ["15", ""])
def test_an_array_is_a_table(capfd: pytest.CaptureFixture[str], work: Path, said: str) -> None:
    """By its number, or as the latest; of each task the last run counts, and the command ends where all have."""
    for name, ending in [("15_0.0", "done"), ("15_1.0", "failed"), ("15_1.1", "done"), ("15_2.0", "failed")]:
        histories.write(work / "logs" / name, ending=ending)
    (work / "logs/latest").symlink_to("15_1.1")
    lines = shown(capfd, "status", *filter(None, [said]), "--watch")
    found = json.loads("\n".join(shown(capfd, "status", *filter(None, [said]), "--json")))

    assert lines_mention(lines[-3:], "15_0 done 15_0.0", "15_1 done 15_1.1", "15_2 failed ValueError: 15_2.0")
    assert [(one["point"], one["exit_status"]) for one in found["points"]] == [("15_0", 0), ("15_1", 0), ("15_2", 1)]


def test_of_an_array_of_one_task_the_job_is_shown(capfd: pytest.CaptureFixture[str], work: Path) -> None:
    """There is nothing to compare it with, and more to say."""
    histories.write(work / "logs/15_4.0")

    assert shown(capfd, "status", "15") == shown(capfd, "status", "15_4")


@pytest.mark.parametrize("command", ["logs", "report", "stacks"])
def test_other_commands_take_one_task(capfd: pytest.CaptureFixture[str], work: Path, command: str) -> None:
    """They name some, and the command that shows them all."""
    for number in range(2):
        histories.write(work / f"logs/15_{number}.0")
    assert typed(command, "15") == 66

    assert mentions(capfd.readouterr().err, "15_0 15_1", "'hpc-launch status 15'")


def test_watching_goes_on_between_the_runs_of_a_batch_script(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    """The job is watched until it ends, and always its last run is shown."""
    histories.write(work / "logs/13.0", ending="done")
    looks = iter(range(3))

    def ask(_: object, *, quiet: bool) -> SlurmAnswer:
        assert quiet in (True, False)
        number = next(looks)
        if number == 1:
            histories.write(work / "logs/13.1", ending="failed")
        return SlurmAnswer(JobRecord("13", "RUNNING" if number < 2 else "FAILED", batch=True, label="13"))

    monkeypatch.setattr(slurm_query, "PAUSE", 0.0)
    monkeypatch.setattr(SlurmQuery.__init__, "__defaults__", (ask,))
    texts = shown(capfd, "status", "13", "--watch", "--json", "--interval", "0.1")
    found = [json.loads(text) for text in "\n".join(texts).replace("}\n{", "}\0{").split("\0")]

    assert [(one["job"], one["state"], len(one["runs"])) for one in found] == [
        ("13.0", "done", 0),
        ("13.0", "done", 0),
        ("13.1", "failed", 2),
    ]


def test_a_status(capfd: pytest.CaptureFixture[str]) -> None:
    """It says how the job stands, and that Slurm could not be asked."""
    lines = shown(capfd, "status")

    assert lines[0] == "job       12.0 train.py --lr 1e-3"
    assert lines_mention(lines[:3], "job", "state failed 1", "Slurm scontrol")
    assert not any("\x1b" in line for line in lines)


def test_watching_ends_with_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    """A job that is over is shown once."""
    assert len([line for line in shown(capfd, "status", "--watch") if line.startswith("state")]) == 1


def test_watching_begins_before_the_job_does(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    """A job that waits is shown by Slurm's word, until it has a directory."""
    record = JobRecord("13", "PENDING", reason="Priority", label="13")
    looks = iter([job_search.JobSearch(None, record), job_search.JobSearch(None, record)])
    monkeypatch.setattr(
        job_search,
        "search_job",
        lambda *_, **__: next(looks, job_search.JobSearch(JobDirectory(work / "logs", "12.0"))),
    )
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
