"""Credentials of munge (https://github.com/dun/munge), by its two commands.

They block for some milliseconds, and longer where munged hangs: no caller may be a thread that serves others.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 5.0
# So long a start of a run may take for it.
_FIND_SECONDS = 2.0
_KEY_BYTES = 32


@dataclass(frozen=True)
class Munge:
    """The commands of munge on this node.

    Attributes:
        munge: makes credentials.
        unmunge: checks them.
        socket: where munged listens, if not in the usual place.
    """

    munge: str
    unmunge: str
    socket: Path | None = None

    def seal(self, timeout: float = _SECONDS) -> tuple[bytes, bytes] | None:
        """A fresh key, and a credential with it for this user alone; None where munged does not answer."""
        key = secrets.token_bytes(_KEY_BYTES)
        done = _run([self.munge, f"--restrict-uid={os.geteuid()}", *self._where()], key.hex().encode(), timeout)
        return None if done is None else (key, done.strip())

    def open(self, credential: bytes) -> bytes | None:
        """The key in a credential, if this user has made it; None for any other credential, and for a used one."""
        done = _run([self.unmunge, "--numeric", "--keys=UID", *self._where()], credential + b"\n", _SECONDS)
        if done is None:
            return None
        facts, separator, payload = done.partition(b"\n\n")
        if not separator or facts.split() != [b"UID:", str(os.geteuid()).encode()]:
            return None
        try:
            key = bytes.fromhex(payload.decode("ascii"))
        except ValueError:
            return None
        return key if len(key) == _KEY_BYTES else None

    def _where(self) -> list[str]:
        return [] if self.socket is None else [f"--socket={self.socket}"]


def find_munge(path: str | None, socket: Path | None = None, *, ask: bool = True) -> Munge | str:
    """The commands, if they are there and munged answers; otherwise what is missing.

    Args:
        path: where to look for commands, as in PATH.
        socket: where munged listens, if not in the usual place.
        ask: see whether munged answers, which takes a command; without it the commands are believed.
    """
    munge, unmunge = shutil.which("munge", path=path), shutil.which("unmunge", path=path)
    if munge is None or unmunge is None:
        return "there is no munge command"
    found = Munge(munge, unmunge, socket)
    return found if not ask or found.seal(_FIND_SECONDS) is not None else "munged does not answer"


def _run(command: list[str], data: bytes, timeout: float) -> bytes | None:
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
