"""Imports of large packages, torch above all, as fast as they can be."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import without garbage collection, and leave what was imported out of later collections.

    Modules, classes and functions stay until the process ends. Looking for garbage among them takes a seventh of the
    CPU time of `import torch`, and in a forked process it copies their memory (Python's documentation of `gc.freeze`).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
