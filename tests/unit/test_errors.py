"""The errors: their tree and statuses are what the documentation says."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_launch import errors
from hpc_launch.errors import (
    HostlistError,
    HpcLaunchError,
    Interrupted,
    JobFailed,
    RendezvousTimeout,
    UsageError,
    WorkerError,
    WorkerFailed,
    exit_status_of,
)

ROOT = Path(__file__).parents[2]

# The classes whose instances have a status of their own, and how the documentation writes it.
OWN_STATUS = {
    WorkerError: {"*", "any other"},
    JobFailed: {"*", "any other"},
    WorkerFailed: {"*", "any other"},
    Interrupted: {"128+N"},
}


def tree(kind: type[HpcLaunchError] = HpcLaunchError, depth: int = 0) -> Iterator[tuple[int, type[HpcLaunchError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        yield from tree(child, depth + 1)


def statuses(kind: type[HpcLaunchError]) -> set[str]:
    return OWN_STATUS.get(kind, {str(kind.exit_status)})


def test_the_docstring_draws_the_tree() -> None:
    """Each class stands in the tree of the module's docstring, below its base, with its status."""
    drawn = re.findall(r"^    ((?:[|+ -]*-- )?)(\w+)\s+(\S+)  ", errors.__doc__ or "", re.MULTILINE)

    assert [(depth, kind.__name__) for depth, kind in tree()] == [(len(lead) // 4, name) for lead, name, _ in drawn]
    assert [name for _, name, status in drawn if status not in statuses(getattr(errors, name))] == []


def test_the_documentation_has_every_status() -> None:
    """docs/exit-status.md has a row for each status, naming all errors that have it."""
    text = (ROOT / "docs/exit-status.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    documented = {(name, row[0]) for row in rows for name in re.findall(r"`(\w+)`", row[1])}

    assert {kind.__name__ for _, kind in tree()} == {name for name, _ in documented}
    assert [(name, status) for name, status in documented if status not in statuses(getattr(errors, name))] == []
    assert len(documented) == len({name for name, _ in documented})
    assert [row for row in rows if not row[2]] == []


@pytest.mark.parametrize("kind", [kind for _, kind in tree() if kind not in OWN_STATUS], ids=lambda kind: kind.__name__)
def test_an_error_is_its_message(kind: type[HpcLaunchError]) -> None:
    """The message is what is shown, and the status is one that no shell gives to a signal."""
    error = kind("--nnodes: '0'")

    assert (str(error), error.silent) == ("--nnodes: '0'", False)
    assert 0 < error.exit_status < 128


def test_errors_carry_what_programs_want_to_know() -> None:
    """The option, the bad part of a host list and the missing nodes are attributes, not only words."""
    assert UsageError("x", option="--nnodes").option == "--nnodes"
    assert HostlistError("x", expression="a[", part="[").part == "["
    assert RendezvousTimeout("x", missing=("gpu07",)).missing == ("gpu07",)


@pytest.mark.parametrize(
    ("error", "status", "message", "silent"),
    [
        (WorkerError("rank 3 on gpu01 failed with exit status 7", exit_status=7), 7, "rank 3 on gpu01", True),
        (Interrupted(15, "SIGTERM"), 143, "stopped by SIGTERM", False),
        (Interrupted(2, "SIGINT"), 130, "stopped by SIGINT", False),
    ],
)
def test_statuses_of_their_own(error: HpcLaunchError, status: int, message: str, *, silent: bool) -> None:
    """A worker's failure has the worker's status, a signal 128+N."""
    assert (status, silent) == (error.exit_status, error.silent)
    assert str(error).startswith(message)


def test_a_return_code_is_a_status_as_in_a_shell() -> None:
    """What subprocess gives as -N for signal N is 128+N there."""
    found = [subprocess.run(["sh", "-c", line], check=False).returncode for line in ("exit 3", "kill -9 $$")]

    assert found == [3, -9]
    assert [exit_status_of(code) for code in (0, *found)] == [0, 3, 137]
