"""A clock that stands still while this process is stopped, or its job suspended.

Whoever runs again after such a time has to see what the others have done meanwhile, and not that it has waited for them
in vain for so long.
"""

from __future__ import annotations

import time
from collections.abc import Callable

# Who looks at the time so much later than was meant was stopped in between, or as good as.
_GAP_SECONDS = 1.0


class SuspendAwareClock:
    """A clock that has to be looked at again and again, several times in a second, or when `rest` is over.

    Args:
        clock: gives the time, in seconds.

    Attributes:
        rest: seconds from the last look on for which nobody means to look again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rest = 0.0
        self._clock = clock
        self._last = clock()
        self._passed = 0.0

    def now(self) -> float:
        """The time in seconds; where it was not looked at for long, it has stood still in between."""
        now = self._clock()
        if now - self._last < self.rest + _GAP_SECONDS:
            self._passed += now - self._last
        self._last, self.rest = now, 0.0
        return self._passed
