"""What tests share: waiting for something to become true, never for a fixed time; and what leaves its family."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A part of scripts: `forever()` in a process that was forked twice and has a session of its own, as daemons do.
DAEMON = """
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        forever()
    os._exit(0)
os.waitpid(middle, 0)
"""


def wait_for(predicate: Callable[[], T], timeout: float, describe: Callable[[], str] | str, pause: float = 0.05) -> T:
    """Return the first true value of ``predicate``; after ``timeout`` seconds without one, fail with ``describe``."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s: {describe if isinstance(describe, str) else describe()}")
        time.sleep(pause)
    return value
