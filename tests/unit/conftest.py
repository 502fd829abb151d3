"""What several of the unit tests need."""

from __future__ import annotations

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
    """A directory with the files of each machine, in a directory of its name; nobody changes them."""
    folder = tmp_path_factory.mktemp("machines")
    for name in sysfs_trees.NAMES:
        sysfs_trees.unpack(name, folder / name)
    return folder
