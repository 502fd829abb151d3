"""A log directory that hangs: what must wait for it waits, with one line, and nothing else of the run changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.launching import TIMEOUT, probe, running
from tests.slow_files import SlowFiles, slow_files
from tests.support import lines_mention, wait_for

# Ends with 3 in the first attempt and with 0 in the second, when the test says so.
WAITING = """
    import time
    while not os.path.exists(os.environ["GO"] + os.environ["TORCHELASTIC_RESTART_COUNT"]):
        time.sleep(0.02)
    raise SystemExit(0 if os.environ["TORCHELASTIC_RESTART_COUNT"] == "1" else 3)
"""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SlowFiles]:
    with slow_files(tmp_path, tmp_path / "logs") as made:
        yield made


def waiting(err: str) -> list[str]:
    """The lines that say what is waited for."""
    return [line for line in err.splitlines() if "waiting for" in line]


def test_before_the_start(tmp_path: Path, files: SlowFiles) -> None:
    """A log directory that hangs when the launcher looks at it delays the start, and one line says so."""
    (tmp_path / "logs").mkdir()
    files.hang()
    go = tmp_path / "go"
    for attempt in (0, 1):
        Path(f"{go}{attempt}").touch()
    environ = {**files.environ, "GO": str(go)}
    with running(tmp_path, "--max-restarts", "1", probe(tmp_path, WAITING), env=environ) as launcher:
        wait_for(lambda: waiting(launcher.said()), TIMEOUT, "the line")
        files.answer()
        done = launcher.finish()

    assert (done.status, len(done.records)) == (0, 2), done.err
    assert lines_mention(waiting(done.err), f"hpc-launch: {tmp_path}/logs 5")


def test_at_the_end_of_an_attempt(tmp_path: Path, files: SlowFiles) -> None:
    """A worker fails while the directory hangs: the failure is judged when it answers, and the run goes on."""
    go = tmp_path / "go"
    environ = {**files.environ, "GO": str(go)}
    with running(tmp_path, "--max-restarts", "1", probe(tmp_path, WAITING), env=environ) as launcher:
        wait_for(launcher.records, TIMEOUT, "the first attempt")
        files.hang()
        Path(f"{go}0").touch()
        wait_for(lambda: waiting(launcher.said()), TIMEOUT, "the line")
        files.answer()
        Path(f"{go}1").touch()
        done = launcher.finish()

    assert (done.status, len(done.records)) == (0, 2), done.err
    assert len(waiting(done.err)) == 1


def test_events_that_hang_delay_no_end(tmp_path: Path, files: SlowFiles) -> None:
    """A run that ends well while the directory hangs ends when it answers, with all of its events."""
    go = tmp_path / "go"
    environ = {**files.environ, "GO": str(go)}
    body = WAITING.replace('os.environ["TORCHELASTIC_RESTART_COUNT"]', '"1"')
    with running(tmp_path, probe(tmp_path, body), env=environ) as launcher:
        wait_for(launcher.records, TIMEOUT, "the worker")
        files.hang()
        Path(f"{go}1").touch()
        wait_for(lambda: [call for call in files.calls if " open" in call], TIMEOUT, "an event that hangs")
        files.answer()
        done = launcher.finish()
    (events,) = (tmp_path / "logs").glob("latest/nodes/*/events.jsonl")

    assert (done.status, waiting(done.err)) == (0, []), done.err
    assert '"run ended"' in events.read_text().splitlines()[-1]
