"""What tests share: waiting for something to become true, never for a fixed time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(predicate: Callable[[], T], timeout: float, describe: Callable[[], str] | str, pause: float = 0.05) -> T:
    """Return the first true value of ``predicate``; after ``timeout`` seconds without one, fail with ``describe``."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s: {describe if isinstance(describe, str) else describe()}")
        time.sleep(pause)
    return value
