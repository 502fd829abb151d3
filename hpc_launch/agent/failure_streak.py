"""Attempts in a row that end by the same failure, soon after they began: more restarts will not help. Pure."""

from __future__ import annotations

from hpc_launch.plan.requeue import AT_ONCE_SECONDS
from hpc_launch.records.failure_messages import failure_kind


class FailureStreak:
    """How often the same failure has ended attempts so far, without a pause."""

    def __init__(self) -> None:
        self._kind = ""
        self._count = 0

    def add(self, cause: str, seconds: float) -> int:
        """Note the failure of an attempt that lasted so long; returns how many in a row it makes: 1 for a new one."""
        kind = failure_kind(cause)
        same = kind == self._kind and seconds < AT_ONCE_SECONDS
        self._kind, self._count = kind, self._count + 1 if same else 1
        return self._count
