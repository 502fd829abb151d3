"""A notice signal that comes before hpc-launch listens waits for it: it neither ends a process nor gets lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_launch import held_signals
from hpc_launch.held_signals import NOTICE_SIGNALS, holding, without_held
from hpc_launch.settings import resolve

PRINT_MASK = "import signal; print(*sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
MASK = [sys.executable, "-c", PRINT_MASK]


@pytest.fixture(autouse=True)
def mask() -> Iterator[None]:
    """Leave no trace of a failure in the tests that follow."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def blocked_in(command: tuple[str, ...]) -> list[int]:
    """Tell which signals a command finds blocked."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [*map(int, done.stdout.split())]


def test_the_usual_ones_are_those_of_the_settings() -> None:
    """The entry holds back, without the settings, what they say where nobody says otherwise."""
    assert {signal.Signals[name] for name in resolve({}, {}).notice_signals} == NOTICE_SIGNALS


@pytest.mark.parametrize("on_this_host", [True, False])
def test_a_command_begins_with_them_blocked(on_this_host: bool) -> None:
    """By env where it runs on this host, by Python where that is not known; other signals are as they are."""
    assert blocked_in(holding(MASK, on_this_host=on_this_host)) == [10, 12]
    assert blocked_in(holding(MASK, {signal.SIGURG}, on_this_host=on_this_host)) == [int(signal.SIGURG)]


def test_env_is_taken_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there soonest; older coreutils, and those of another host, may not know the option."""
    monkeypatch.setattr(held_signals, "env_can_block", lambda: True)
    assert holding(["x"], on_this_host=True) == ("env", "--block-signal=10,12", "x")
    assert holding(["x"], on_this_host=False)[0] == sys.executable
    monkeypatch.setattr(held_signals, "env_can_block", lambda: False)
    assert holding(["x"], on_this_host=True)[0] == sys.executable


@pytest.mark.parametrize(("program", "known"), [("exit 0", True), ("exit 125", False), (None, False)])
def test_env_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str | None, known: bool) -> None:
    """Whether it knows the option is what its status says; one that is not there knows nothing."""
    if program is not None:
        file = tmp_path / "env"
        file.write_text(f"#!/bin/sh\n{program}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert held_signals.env_can_block.__wrapped__() is known


def test_without_notice_signals_nothing_is_held() -> None:
    """`--notice-signals none`: then a signal does what it does."""
    assert holding(["x"], (), on_this_host=True) == ("x",)


def test_workers_do_not_get_what_was_held() -> None:
    """Only that: what else was blocked stays."""
    mask = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGURG, signal.SIGHUP}

    assert without_held(mask, [signal.SIGURG]) == {signal.SIGHUP}


SEES = """
import signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "hpc_launch.cli":
            print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))), "click" in sys.modules)

sys.meta_path.insert(0, Finder())
sys.argv = ["hpc-launch", "--version"]
"""


@pytest.mark.parametrize("start", ["from hpc_launch.entry import main", "import hpc_launch.launch.__main__"])
def test_the_entry_holds_them_before_it_imports(start: str) -> None:
    """What takes time comes afterwards: 130 ms passed until they were blocked, 20 pass now, nearly all of it Python."""
    done = subprocess.run([sys.executable, "-c", SEES + start], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[0] == "[10, 12] False"


@pytest.mark.parametrize("words", [["--version"], ["hosts", "a[1-2]"], ["run", "--help"]])
def test_other_commands_end_by_them(words: list[str]) -> None:
    """Nobody there listens for a notice."""
    code = (
        "import signal, sys; from hpc_launch import entry, cli; sys.argv = ['hpc-launch', *sys.argv[1:]]\n"
        "try: entry.main()\n"
        "except SystemExit: pass\n"
        "print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == ("[10, 12]" if words[0] == "run" else "[]")
