"""A directory that hangs on demand, as one on a file server in trouble: real processes wait in real calls."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class SlowFiles:
    """A directory whose files answer, or do not.

    Attributes:
        library: what processes that are to notice it load (`environ`).
        directory: it.
        flag: a file that is there while it does not answer.
    """

    library: Path
    directory: Path
    flag: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """What the processes need in their environment."""
        return {
            "LD_PRELOAD": str(self.library),
            "SLOW_FILES_DIRECTORY": str(self.directory),
            "SLOW_FILES_FLAG": str(self.flag),
        }

    def hang(self, host: str = "") -> None:
        """Let it answer no more, to the processes of one host or to all."""
        self._flag(host).touch()

    def answer(self, host: str = "") -> None:
        """Let it answer again."""
        self._flag(host).unlink(missing_ok=True)

    @property
    def calls(self) -> list[str]:
        """The calls that have waited, or do: host, process, call and path."""
        log = self._flag("log")
        return log.read_text().splitlines() if log.exists() else []

    def _flag(self, ending: str) -> Path:
        return self.flag.with_name(f"{self.flag.name}.{ending}") if ending else self.flag


@contextmanager
def slow_files(folder: Path, directory: Path) -> Iterator[SlowFiles]:
    """A directory that can hang; in the end it answers, so that nothing is left waiting.

    Args:
        folder: where the library and the flag are made; not below the directory.
        directory: the directory.
    """
    library = folder / "slow_files.so"
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    if not library.exists():
        words = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(words, check=True)
    made = SlowFiles(library, directory, folder / "hangs")
    try:
        yield made
    finally:
        for flag in folder.glob("hangs*"):
            if not flag.name.endswith(".log"):
                flag.unlink()
