"""What the tests of interactive use share: a terminal in which a shell runs, and somebody who types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.support import wait_for


class Terminal:
    """A pseudo terminal with a command in it, for instance an interactive shell.

    Args:
        cluster: Where.
        command: What runs in it, on the head.
        folder: Its working directory.
    """

    def __init__(self, cluster: Cluster, command: Sequence[str], folder: Path) -> None:
        self._master, slave = pty.openpty()
        self._said = bytearray()
        self._typed = 0
        with clean_environment():
            self.process = cluster.popen(
                command,
                cwd=folder,
                # salloc starts $SHELL, which a service that runs tests need not have.
                env={"SHELL": "/bin/bash", "PS1": "$ ", "TERM": "dumb", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        """Close the window: whoever runs in the terminal gets SIGHUP."""
        if self._master >= 0:
            master, self._master = self._master, -1
            self._reader.join()
            os.close(master)

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to the foreground process group."""
        os.write(self._master, b"\x03")

    @property
    def screen(self) -> str:
        """All that was shown."""
        return self._said.decode(errors="replace").replace("\r", "")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until something is shown."""
        wait_for(lambda: re.search(pattern, self.screen), DEADLINE, lambda: f"no {pattern!r} in:\n{self.screen}")
        found = re.search(pattern, self.screen)
        assert found
        return found

    def run(self, line: str) -> int:
        """Type a line, wait for the end of the command, and return its exit status."""
        self.start(line)
        return self.status()

    def start(self, line: str) -> None:
        """Type a line, the end of which `status` waits for."""
        self._typed += 1
        self.type(f"{line}; echo ended-{self._typed}''=$?\n")

    def status(self) -> int:
        """Wait for the end of the last command, and return its exit status."""
        return int(self.wait_for(rf"(?m)ended-{self._typed}=(\d+)$")[1])

    def _read(self) -> None:
        while (master := self._master) >= 0:
            ready, _, _ = select.select([master], [], [], 0.1)
            if not ready:
                continue
            try:
                self._said += os.read(master, 1 << 16)
            except OSError:
                return  # nobody has the other end any more
