"""Waiting for files to be written to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_launch.node import file_changes
from hpc_launch.node.file_changes import FileChanges

# So long nothing here takes, on however slow a machine.
DEADLINE = 60.0


@pytest.fixture
def changes() -> Iterator[FileChanges]:
    """One that is closed in the end."""
    made = FileChanges()
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files that are there."""
    made = [tmp_path / "0.out", tmp_path / "0.err"]
    for path in made:
        path.touch()
    return made


def append(path: Path, text: str = "line\n") -> None:
    """Write as a worker does."""
    with path.open("a") as stream:
        stream.write(text)


def test_a_write_ends_the_wait(changes: FileChanges, files: list[Path]) -> None:
    """Whichever file it goes to, and also where it came before the wait began; it ends no other wait."""
    changes.watch(files)
    for path in files:
        append(path)
        assert changes.wait(DEADLINE)
        assert not changes.wait(0)
    writer = threading.Timer(0.05, append, [files[1]])
    writer.start()

    assert changes.wait(DEADLINE)
    writer.join()


def test_what_is_not_written_to_ends_no_wait(changes: FileChanges, files: list[Path]) -> None:
    """Reading, other files of the directory, and the time of a file's change are of no interest."""
    changes.watch(files[:1])
    append(files[1])
    files[0].read_text()
    files[0].touch()

    assert not changes.wait(0.1)


def test_another_thread_ends_the_wait(changes: FileChanges, files: list[Path]) -> None:
    """Before the wait or during it; not before `watch`, when there is no wait to end."""
    changes.wake()
    changes.watch(files)
    assert not changes.wait(0)
    changes.wake()
    begin = time.monotonic()
    assert not changes.wait(DEADLINE)
    threading.Timer(0.05, changes.wake).start()
    assert not changes.wait(DEADLINE)

    assert time.monotonic() - begin < DEADLINE


def test_a_file_that_is_not_there_is_looked_for(changes: FileChanges, files: list[Path], tmp_path: Path) -> None:
    """The kernel would not report its first write: so each wait ends soon, as if something had been written."""
    changes.watch([*files, tmp_path / "nothing"])

    assert not changes.reported
    assert changes.wait(DEADLINE)


def test_without_inotify_files_are_looked_at(
    changes: FileChanges, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on instances is small (128 for a user), and each agent has two."""
    monkeypatch.setattr(file_changes, "_IN_FLAGS", -1)
    changes.watch(files)

    assert not changes.reported
    assert changes.wait(DEADLINE)
    changes.wake()
    assert changes.wait(0)


def test_waking_one_that_is_closed_does_nothing(changes: FileChanges, files: list[Path]) -> None:
    """Its descriptors may be others' by then."""
    changes.watch(files)
    changes.close()
    changes.wake()
    changes.close()
