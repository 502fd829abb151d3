"""What tests share: waiting for something to become true, never for a fixed time; and what leaves its family."""

import re
import time
from collections.abc import Callable, Sequence
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

# The last lines of scripts whose end is not what is tested: they leave without Python's teardown, which costs a quarter
# of a CPU second in a process that has torch. They need `os` and `sys`.
LEAVE = """
sys.stdout.flush()
os._exit(0)
"""


def wait_for(predicate: Callable[[], T], timeout: float, describe: Callable[[], str] | str, pause: float = 0.05) -> T:
    """Return the first true value of ``predicate``; after ``timeout`` seconds without one, fail with ``describe``."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout:g} s: {describe if isinstance(describe, str) else describe()}")
        time.sleep(pause)
    return value


def mentions(text: object, *words: object) -> bool:
    """Whether a text has all of these words, whole: names, numbers and options, which stay when a sentence is reworded.

    Args:
        text: what was said; an error's message is taken.
        words: what has to be in it; a string of several words is each of them.
    """
    found = str(text)
    each = [word for word in words for word in (word.split() if isinstance(word, str) else [str(word)])]
    return all(re.search(rf"(?<!\w)(?<!\d\.){re.escape(word)}(?!\w|\.\w)", found) for word in each)


def lines_mention(lines: Sequence[str], *words: object) -> bool:
    """Whether there are as many lines as words, and each mentions those of its place."""
    return len(lines) == len(words) and all(map(mentions, lines, words))
