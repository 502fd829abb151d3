"""What several of the unit tests need."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from hpc_launch.console import CONSOLE
from tests.unit import sysfs_trees


@pytest.fixture(autouse=True)
def no_console_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said can be read at once, whatever a test before did."""
    monkeypatch.setattr(CONSOLE, "serve", lambda: None)


@pytest.fixture(scope="session")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of each machine, in a directory of its name; nobody changes them.

    They are some 8000 files. Where several processes share the tests, these have one directory in common.
    """
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "machines"
    if not shared.exists():
        made = tmp_path_factory.mktemp("machines")
        for name in sysfs_trees.NAMES:
            sysfs_trees.unpack(name, made / name)
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(shared)
    return shared
