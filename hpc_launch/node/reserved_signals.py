"""What is reserved for asking a worker where it is: two signals, and the name of the file that it answers in.

The signals are real-time ones, which neither Slurm nor torch use, and far from the first few, which libraries take:

- `ASK` is handled by Python, in the main thread, between two of its instructions: the answer names all threads, and
  nothing can go wrong. A worker whose main thread is in C for long does not answer it.
- `DUMP` is faulthandler's, and dumps the one thread that it is sent to, wherever that is.

A file of that name is open in a worker that answers, and in its forked children: its mark. It is no file of any disk
(memfd_create(2)), so asking works when file systems hang.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

ASK = signal.SIGRTMIN + 10
DUMP = signal.SIGRTMIN + 11

# What `top` calls a worker factory, the parent of workers.
FACTORY = "hpc-launch"

# The last line of an answer to ASK.
END = "End of the stacks.\n"

# memfd_create(2) takes names of up to 249 bytes.
_LONGEST = 200

# The file has a high number, so that a script's own files have those that they would have without it. A number above
# this one would make the kernel's table of the process large.
_HIGHEST = 1024
_BELOW = 24
LOWEST = 64

_LINK = re.compile(r"/memfd:hpc-launch (\d+) (\d+) (.*) \(deleted\)", re.DOTALL)


@dataclass(frozen=True)
class Owner:
    """Whose answers a file holds: a worker's.

    Attributes:
        job: the name of the job directory.
        attempt: of that.
        rank: the worker.
    """

    job: str
    attempt: int
    rank: int

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"hpc-launch {self.attempt} {self.rank} {self.job.encode()[:_LONGEST].decode(errors='ignore')}"

    @classmethod
    def of_link(cls, link: str) -> Owner | None:
        """Read it from a link in `/proc/PID/fd`; None for any other file."""
        match = _LINK.fullmatch(link)
        return cls(match[3], int(match[1]), int(match[2])) if match else None

    def same(self, other: Owner) -> bool:
        """Whether it is the same worker, one of the names perhaps cut off."""
        return self.file == other.file


def first_descriptor(limit: int) -> int:
    """The number from which on that file gets its descriptor, where a process may have `limit` files."""
    return max(LOWEST, min(limit, _HIGHEST) - _BELOW)
