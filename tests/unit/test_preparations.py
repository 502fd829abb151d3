"""What is prepared for a round, in threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_launch.errors import HpcLaunchError, RoundRefused
from hpc_launch.rendezvous import job_claim, worker_store
from hpc_launch.rendezvous.job_claim import ClaimedDirectory
from hpc_launch.rendezvous.preparations import OpenStore, Preparations
from tests.support import wait_for
from tests.unit.agents_support import config


class Store:
    """A store of workers that serves nobody."""

    port = 20_000


def test_the_store_of_a_round_is_open_as_long_as_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the round before is let go before another one is opened."""
    alive: list[str] = []

    class Counted(Store):
        def __init__(self) -> None:
            alive.append("open")

        def __del__(self) -> None:
            alive.append("closed")

    monkeypatch.setattr(worker_store, "worker_store", lambda *_: Counted())
    preparations = Preparations(config(tmp_path, 1), lambda: "10.0.0.1")
    opened: list[tuple[str, int]] = []

    def then(store: OpenStore) -> None:
        preparations.keep(store)
        opened.append((store.address, store.port))

    for number in (1, 2):
        preparations.open_store(then, lambda _: None)
        wait_for(lambda number=number: len(opened) == number, 20, "it is not opened")  # type: ignore[misc]
    preparations.keep(None)
    wait_for(lambda: len(alive) == 4, 20, lambda: f"{alive}")

    assert opened == [("10.0.0.1", 20_000)] * 2
    assert alive == ["open", "closed", "open", "closed"]


def test_what_cannot_be_prepared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that a user can mend is one answer; a fault of our own is kept for the main thread."""
    failures: list[HpcLaunchError] = []
    errors = [RoundRefused("taken"), KeyError("a fault")]

    def broken(*_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(worker_store, "worker_store", broken)
    preparations = Preparations(config(tmp_path, 1), lambda: "10.0.0.1")
    preparations.open_store(lambda _: None, failures.append)
    wait_for(lambda: failures, 20, "it is not told")
    preparations.open_store(lambda _: None, failures.append)
    wait_for(lambda: preparations.fault, 20, "it is not kept")

    assert [str(failure) for failure in failures] == ["taken"]
    assert isinstance(preparations.fault, KeyError)


@pytest.mark.parametrize(
    ("names_job", "expected"),
    [(True, ClaimedDirectory("12.0-2", 3, "id")), (False, ClaimedDirectory("1.0", 0, "the run"))],
)
def test_torchrun_s_jobs_are_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, names_job: bool, expected: ClaimedDirectory
) -> None:
    """It writes its logs elsewhere, and makes its own id for the workers."""
    monkeypatch.setattr(job_claim, "claim_job_directory", lambda *_: ClaimedDirectory("12.0-2", 3, "id"))
    found: list[ClaimedDirectory] = []
    one = config(tmp_path, 1, run_id="the run")
    Preparations(one, lambda: "", names_job=names_job).claim_job(found.append, lambda _: None)
    wait_for(lambda: found, 20, "it is not claimed")

    assert found == [expected]
