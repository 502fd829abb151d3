"""The tie-breaker: of two halves that do not hear each other, the one that takes a token, a file, goes on.

A token is an empty file. The leader puts it there before it proposes the membership that has its name; half of these
agents take it by giving it a name of their own, which a file system lets one do only, over a network too (rename(2)).
Where the log directory is not the same one on all nodes, only the half that sees the token can take it: also then one
at most goes on. A file system can be silent for as long as it likes, so all of this is done in threads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from hpc_launch import file_ownership
from hpc_launch.rendezvous.membership import Half

# So long the leader waits for the file system at the end of a run.
_PATIENCE_SECONDS = 1.0

# How often a file system that reports an error is tried again.
_TRIES = 40
_PAUSE_SECONDS = 0.5


class TieBreaker:
    """The tokens of one run, as one of its agents deals with them.

    Attributes:
        taken: the halves with this agent that have taken their tokens.
        refused: those whose token was not to be had: the other half has it, or it is not seen from here.
    """

    def __init__(self) -> None:
        self.taken: frozenset[Half] = frozenset()
        self.refused: frozenset[Half] = frozenset()
        self._asked: set[Half] = set()

    def put(self, directory: Path, number: int, then: Callable[[str], object]) -> None:
        """Begin to make the token of a membership with this number.

        Args:
            directory: where tokens are.
            number: the membership's.
            then: gets the token's name, empty where none could be made; called in a thread.
        """

        def put() -> None:
            name = f"{number}-{uuid.uuid4().hex}"
            try:
                with file_ownership.open_folder(directory, directory.parent, make=True) as folder:
                    os.close(folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            except OSError:
                name = ""
            then(name)

        _begin(put)

    def take(self, directory: Path, halves: Iterable[Half]) -> None:
        """Begin to take the tokens of these halves, each once; `taken` and `refused` say later what came of it."""
        for half in {*halves} - self._asked:
            self._asked.add(half)
            _begin(functools.partial(self._take, directory, half))

    def remove(self, directory: Path, before: int) -> None:
        """Begin to remove those of memberships before this number: nobody can need them any more."""
        _begin(functools.partial(_remove, directory, before))

    def clear(self, directory: Path) -> None:
        """Remove all, as the run has ended."""
        _begin(functools.partial(_remove, directory, None)).join(_PATIENCE_SECONDS)

    def _take(self, directory: Path, half: Half) -> None:
        if _taken(directory, half):
            self.taken |= {half}
        else:
            self.refused |= {half}


def _taken(directory: Path, half: Half) -> bool:
    """Take a token; whether this half has it then."""
    owner = hashlib.sha256(repr(half.agents).encode()).hexdigest()[:16]
    taken = directory / f"{half.token}.{owner}"
    for _ in range(_TRIES):
        try:
            with file_ownership.open_folder(directory, directory.parent) as folder:
                folder.rename(half.token, taken.name)
        except FileNotFoundError:
            # It may be ours already: by an earlier leader, or by a request that a file server has heard twice.
            with contextlib.suppress(OSError), file_ownership.open_folder(directory, directory.parent) as folder:
                return folder.owns(taken.name)
        except OSError:
            pass
        else:
            return True
        time.sleep(_PAUSE_SECONDS)
    return False


def _remove(directory: Path, before: int | None) -> None:
    with contextlib.suppress(OSError):
        for token in directory.iterdir():
            number = token.name.partition("-")[0]
            if before is None or (number.isdecimal() and int(number) < before):
                token.unlink(missing_ok=True)
        if before is None:
            directory.rmdir()


def _begin(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, name="tokens", daemon=True)
    thread.start()
    return thread
