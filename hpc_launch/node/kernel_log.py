"""What the kernel and its drivers have said since some moment, where it may be read: /dev/kmsg.

The format is that of Documentation/ABI/testing/dev-kmsg in the kernel's source: a record a read, its text after a
semicolon, further lines with facts. Where `dmesg` is for administrators only (`kernel.dmesg_restrict`), and in most
containers, it cannot be opened, and nothing is known.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# What the kernel writes at most in a record, and how many of them are kept.
_RECORD = 8192
_MOST = 1000


class KernelLog:
    """The kernel's log from now on."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        self._said: list[str] = []
        self._handle: int | None = None
        with contextlib.suppress(OSError):
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._handle, 0, os.SEEK_END)  # what was said before is nobody's business

    def said(self) -> tuple[str, ...]:
        """What was said since, without levels and times."""
        while self._handle is not None and len(self._said) < _MOST:
            try:
                record = os.read(self._handle, _RECORD)
            except BrokenPipeError:
                continue  # it was overwritten before it was read; the next one is there
            except OSError:
                break  # that was all, so far
            if not record:
                break
            text = record.decode(errors="replace").partition(";")[2]
            self._said.extend(text.splitlines()[:1])
        return tuple(self._said)

    def close(self) -> None:
        """Forget about it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
