"""Secrets of a run stay with its agents: no worker and no record has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_launch import secret_variables
from tests.local.launching import launch, probe

VALUES = {name: f"value-of-{name}" for name in secret_variables.VARIABLES}

STARTS = [
    ["--start", "warm"],
    ["--start", "exec"],
    ["--run-path", "--start", "warm"],
    ["--run-path", "--start", "exec"],
]


@pytest.mark.parametrize("words", STARTS, ids=" ".join)
def test_a_worker_has_no_secret(tmp_path: Path, words: list[str]) -> None:
    """However a worker is started, its environment has none of the variables."""
    done = launch(tmp_path, *words, probe(tmp_path), env={**VALUES})

    assert (done.status, len(done.records)) == (0, 1), done.err
    assert not secret_variables.VARIABLES & done.records[0].env.keys()


def test_no_record_has_a_secret(tmp_path: Path) -> None:
    """Neither the job directory nor what the launcher says on the console has a value of the variables."""
    done = launch(tmp_path, "-v", "--max-restarts", "1", probe(tmp_path, "raise SystemExit(3)"), env={**VALUES})
    written = [path.read_text(errors="replace") for path in (tmp_path / "logs").rglob("*") if path.is_file()]

    assert done.status == 3, done.err
    assert not [value for value in VALUES.values() for text in (*written, done.out, done.err) if value in text]
