"""A console that is full, closed or gone changes neither the exit status nor the number of attempts."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.local.launching import HPC_LAUNCH, TIMEOUT, probe
from tests.support import wait_for

# Each attempt says something on both streams, and fails.
FAILING = """
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    raise SystemExit(3)
"""


def full() -> int:
    """A file on a full disk."""
    return os.open("/dev/full", os.O_WRONLY)


def hung_up() -> int:
    """A terminal that was closed."""
    master, slave = pty.openpty()
    os.close(master)
    return slave


def unread() -> int:
    """A pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    return write


@contextlib.contextmanager
def streams(make: Callable[[], int] | None, which: tuple[int, ...]) -> Iterator[dict[int, int]]:
    """Descriptors for the standard streams: those that the test is about, and /dev/null for the others."""
    made = {number: os.open(os.devnull, os.O_RDWR) for number in (1, 2)}
    for number in which:
        os.close(made.pop(number))
    if make is not None:
        made |= {number: make() for number in which}
    yield made
    for descriptor in made.values():
        os.close(descriptor)


def run(folder: Path, made: dict[int, int], *words: str) -> tuple[int, int]:
    """Run the launcher with these streams, and the others closed; returns its status and the number of workers."""
    records = folder / "records"
    records.mkdir()

    def take() -> None:
        for number in (1, 2):
            if number in made:
                os.dup2(made[number], number)
            else:
                os.close(number)

    process = subprocess.Popen(
        [*HPC_LAUNCH, *words],
        cwd=folder,
        env={**os.environ, "PROBE_RECORDS": str(records)},
        stdin=subprocess.DEVNULL,
        preexec_fn=take,  # noqa: PLW1509 - there are no threads here, and only so a stream can be closed
        pass_fds=list(made.values()),
    )
    status = process.wait(TIMEOUT)
    return status, len([*records.glob("[0-9]*.json")])


CONSOLES = [
    pytest.param(full, id="full"),
    pytest.param(hung_up, id="closed terminal"),
    pytest.param(unread, id="closed pipe"),
    pytest.param(None, id="closed"),
]


@pytest.mark.parametrize("which", [(1,), (2,), (1, 2)], ids=["stdout", "stderr", "both"])
@pytest.mark.parametrize("make", CONSOLES)
def test_the_status_and_the_restarts_stay(
    tmp_path: Path, make: Callable[[], int] | None, which: tuple[int, ...]
) -> None:
    """A run that fails with 3 after one restart does so whatever its console is like."""
    name = probe(tmp_path, FAILING)
    with streams(make, which) as made:
        found = run(tmp_path, made, "--start", "exec", "--max-restarts", "1", name)

    assert found == (3, 2)


@pytest.mark.parametrize("make", CONSOLES)
def test_the_status_of_an_error(tmp_path: Path, make: Callable[[], int] | None) -> None:
    """An error line that cannot be written leaves the status of the error."""
    with streams(make, (1, 2)) as made:
        assert run(tmp_path, made, "--no-such-option", "train.py") == (2, 0)


@pytest.mark.parametrize("make", CONSOLES)
def test_a_run_that_ends_well(tmp_path: Path, make: Callable[[], int] | None) -> None:
    """A forked worker that succeeds is a run that succeeds."""
    name = probe(tmp_path, "print('out', flush=True)")
    with streams(make, (1, 2)) as made:
        found = run(tmp_path, made, "-v", "--start", "warm", name)

    assert found == (0, 1)


def test_a_closed_stream_is_no_file_of_the_run(tmp_path: Path) -> None:
    """Lines that have no console do not go into a file that was opened under its descriptor."""
    name = probe(tmp_path, FAILING)
    with streams(None, (1, 2)) as made:
        run(tmp_path, made, "--max-restarts", "1", name)
    written = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}

    assert written
    assert not [path for path, data in written.items() if b"hpc-launch: " in data]


def test_a_stopped_console_does_not_delay_the_restart(tmp_path: Path) -> None:
    """While the console takes nothing the attempts go on, and their end is known at once."""
    name = probe(tmp_path, FAILING)
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(write, b"x" * 4096):
            pass
    os.set_blocking(write, True)
    records = tmp_path / "records"
    records.mkdir()
    process = subprocess.Popen(
        [*HPC_LAUNCH, "-v", "--start", "exec", "--max-restarts", "3", name],
        cwd=tmp_path,
        env={**os.environ, "PROBE_RECORDS": str(records)},
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
    )
    os.close(write)
    wait_for(lambda: len([*records.glob("[0-9]*.json")]) == 4, TIMEOUT, "the last attempt")
    shown = b""
    while data := os.read(read, 1 << 16):
        shown += data
    os.close(read)

    assert process.wait(TIMEOUT) == 3
    assert shown.count(b"starting again") == 3
