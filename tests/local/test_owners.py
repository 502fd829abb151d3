"""Runs among files of other users: what is planted changes nothing, and a colleague's job can be looked at."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, TIMEOUT, launch, probe, running
from tests.support import mentions
from tests.users import ALICE, give, needs_root

SPEAK = """
    print("a line", flush=True)
"""


def ask(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that reads, to its end."""
    return subprocess.run(
        [*HPC_LAUNCH, *words], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def of_somebody_else(folder: Path) -> None:
    """Let a tree belong to another user."""
    for path in (folder, *folder.rglob("*")):
        give(path, ALICE)


@needs_root
def test_a_job_directory_of_somebody_else(tmp_path: Path) -> None:
    """The run has another one, and a line says which; nothing is written into the first."""
    (tmp_path / "logs/mine").mkdir(parents=True)
    give(tmp_path / "logs/mine", ALICE)
    done = launch(tmp_path, "--standalone", "--log-name", "mine", probe(tmp_path, SPEAK))

    assert (done.status, len(done.records)) == (0, 1)
    assert f"logs in {tmp_path}/logs/mine-2" in done.err
    assert list((tmp_path / "logs/mine").iterdir()) == []


def test_a_log_directory_that_everybody_may_write_in(tmp_path: Path) -> None:
    """The run ends before it begins, with a line and the status of the log directory."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(0o777)
    done = launch(tmp_path, "--standalone", probe(tmp_path, SPEAK))

    assert (done.status, len(done.records)) == (73, 0)
    assert mentions(done.err, f"{tmp_path}/logs 0777")


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_planted_output_files(tmp_path: Path, start: str) -> None:
    """A link and a pipe in place of a worker's files: it trains, what it writes goes nowhere else, a line says so."""
    (tmp_path / "victim").write_text("")
    script = f"""
        if os.environ["HPC_LAUNCH_ATTEMPT"] == "0":
            folder = Path({str(tmp_path / "logs/mine/attempt_1")!r}, os.uname().nodename)
            folder.mkdir(parents=True)
            (folder / "rank_0.out").symlink_to({str(tmp_path / "victim")!r})
            os.mkfifo(folder / "rank_0.err")
            sys.exit(1)
        print("a line", flush=True)
    """
    words = ("--standalone", "--log-name", "mine", "--max-restarts", "1", "--start", start)
    done = launch(tmp_path, *words, probe(tmp_path, script))

    assert (done.status, len(done.records)) == (0, 2)
    assert (tmp_path / "victim").read_text() == ""
    told = [line for line in done.err.splitlines() if line.startswith("hpc-launch: ")]
    for name in ("rank_0.out", "rank_0.err"):
        assert any(mentions(line, name, "lost") for line in told), done.err


@needs_root
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["status"], "done"), (["logs"], "a line"), (["report", "--output", "mine.html"], "mine.html")],
)
def test_a_colleagues_job_can_be_looked_at(tmp_path: Path, words: list[str], expected: str) -> None:
    """Commands that only read do so, whoever ran the job."""
    assert launch(tmp_path, "--standalone", probe(tmp_path, SPEAK)).status == 0
    of_somebody_else(tmp_path / "logs")
    done = ask(tmp_path, *words)

    assert (done.returncode, expected in done.stdout + done.stderr) == (0, True), done.stderr


@needs_root
def test_a_colleagues_report_is_written_elsewhere(tmp_path: Path) -> None:
    """A job directory belongs to who ran the job; root, as here, may write anywhere."""
    assert launch(tmp_path, "--standalone", probe(tmp_path, SPEAK)).status == 0
    of_somebody_else(tmp_path / "logs")
    (tmp_path / "victim").write_text("precious")
    (job,) = [path for path in (tmp_path / "logs").iterdir() if not path.is_symlink()]
    (job / "report.html").symlink_to(tmp_path / "victim")
    ask(tmp_path, "report")

    assert (tmp_path / "victim").read_text() == "precious"


def test_a_private_job_directory(tmp_path: Path) -> None:
    """One setting closes it to everybody else."""
    done = launch(tmp_path, "--standalone", "--private-logs", "--log-name", "mine", probe(tmp_path, SPEAK))

    assert (done.status, stat.S_IMODE((tmp_path / "logs/mine").stat().st_mode)) == (0, 0o700)


def test_secrets_are_in_no_record(tmp_path: Path) -> None:
    """Neither in the records nor in the report; the worker has them."""
    secret = "s3cr3t" * 8
    words = ("--standalone", "--log-name", "mine", "--default-env", f"HF_TOKEN={secret}")
    script = probe(tmp_path, SPEAK)
    env = {
        "WANDB_BASE_URL": f"https://me:{secret}@wandb.example",
        "HPC_LAUNCH_SECRET": secret,
        "PET_ROLE": "trainer",
        "TORCH_URL": f"https://h/?token={secret}",
    }
    done = launch(tmp_path, *words, script, "--api-key", secret, f"--password={secret}", "--lr", "0.1", env=env)
    ask(tmp_path, "report", "--output", "page.html")
    ask(tmp_path, "report", "--output", "page.md")
    files = [*(tmp_path / "logs/mine").rglob("*.json*"), *(tmp_path / "logs/mine").rglob("*.jsonl")]
    files += [tmp_path / "page.html", tmp_path / "page.md"]

    assert (done.status, done.records[0].argv[1:3], done.records[0]["HF_TOKEN"]) == (0, ["--api-key", secret], secret)
    assert [str(path) for path in files if secret in path.read_text()] == []
    assert "--lr" in json.loads((tmp_path / "logs/mine/job.json").read_text())["script"]


def test_secrets_are_in_no_process_title(tmp_path: Path) -> None:
    """What `ps` shows of a forked worker has the names, and not the values."""
    body = """
        import time
        while not Path("go").exists():
            time.sleep(0.02)
    """
    words = ("--standalone", "--start", "warm", "--secret-names", "db-*", probe(tmp_path, body))
    with running(tmp_path, *words, "--token", "s3cr3t", "--db-url", "s3cr3t", "--lr", "0.1") as launcher:
        (record,) = launcher.await_records(1)
        title = Path(f"/proc/{record.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        (tmp_path / "go").touch()
        launcher.finish()

    assert ("--lr 0.1" in title, "--token [hidden] --db-url [hidden]" in title, "s3cr3t" in title) == (
        True,
        True,
        False,
    )
