"""Times as Slurm writes them, and as people write them for Slurm. Pure."""

from __future__ import annotations

import math
import re
import time

_FORMS = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
_IN_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def read_time_limit(text: str) -> float | None:
    """Read a duration as `--time` of sbatch(1) takes it and scontrol prints it.

    That is `90`, `90:00`, `1:30:00`, `1-12`, `1-12:30:00`, or the words for no limit.

    Returns:
        Seconds, `math.inf` where there is no limit; None for anything else.
    """
    if text.strip().lower() in ("unlimited", "infinite"):
        return math.inf
    for form in _FORMS:
        match = form.fullmatch(text.strip())
        if match:
            return float(sum(_IN_SECONDS[unit] * int(value or 0) for unit, value in match.groupdict().items()))
    return None


def read_moment(text: str) -> float | None:
    """Read `2026-11-22T20:27:38`, in local time; None for Unknown, None, N/A and the like.

    Returns:
        Seconds since the epoch.
    """
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        return None
