"""Time limits as people write them for Slurm (sbatch(1), --time). Pure."""

from __future__ import annotations

import math
import re

_FORMS = (
    re.compile(r"(?P<minutes>\d+)(:(?P<seconds>\d+))?"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?"),
)
_IN_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def read_time_limit(text: str) -> float | None:
    """Read `90`, `90:00`, `1:30:00`, `1-12`, `1-12:30:00`, or the words for no limit; None for anything else.

    Returns:
        Seconds.
    """
    if text.strip().lower() in ("unlimited", "infinite"):
        return math.inf
    for form in _FORMS:
        match = form.fullmatch(text.strip())
        if match:
            return float(sum(_IN_SECONDS[unit] * int(value or 0) for unit, value in match.groupdict().items()))
    return None
