"""Signals that come before anybody listens wait, and a run leaves the process as it found it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from hpc_launch.errors import HpcLaunchError, ScriptError
from hpc_launch.launch import launcher as launch
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import gather_context
from hpc_launch.settings import resolve


def blocked() -> set[int]:
    """Return the numbers of the signals that are blocked in this thread."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def run_missing_script() -> None:
    settings = resolve({}, {})
    with pytest.raises(ScriptError):
        launch.run_launcher(settings, ("there_is_none.py",), gather_context({}, settings))


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """Leave no trace of a failure in the tests that follow."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("before", [(), (signal.SIGUSR1,), (signal.SIGUSR2, signal.SIGTERM)])
def test_the_mask_is_as_before(before: tuple[signal.Signals, ...]) -> None:
    """Both what was blocked and what was not; a notice signal was blocked for hpc-launch, and for nobody else."""
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    run_missing_script()

    assert blocked() == set(before) - {signal.SIGUSR1, signal.SIGUSR2}


def test_a_notice_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that came before the run failed would kill this process as soon as it was let through."""

    def notified(*_: object) -> NoReturn:
        assert {signal.SIGUSR1, signal.SIGUSR2} <= blocked()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # pytest has other threads, which block nothing
        raise HpcLaunchError("a reason")

    (tmp_path / "train.py").touch()
    monkeypatch.setattr(derivation, "make_plan", notified)
    settings = resolve({}, {})
    with pytest.raises(HpcLaunchError, match="a reason"):
        launch.run_launcher(settings, (str(tmp_path / "train.py"),), gather_context({}, settings))

    assert signal.SIGUSR1 not in signal.sigpending()
