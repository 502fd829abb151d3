"""Values as Slurm's commands print them. Pure."""

from __future__ import annotations

import re

_FIELD = re.compile(r"(?:^|\s)([\w/:]+)=(\S*)")


def fields(line: str) -> dict[str, str]:
    """The `Name=value` words of a line; the first of a name counts.

    What Slurm has to say comes early, and a user's paths and arguments, which may look like fields, come late.
    """
    return dict(reversed(_FIELD.findall(line)))


def word(text: str) -> str:
    """A value, empty where Slurm says that there is none."""
    return "" if text in ("(null)", "N/A", "None") else text


def leading_number(text: str, otherwise: float) -> float:
    """The number that a value such as `30 sec` begins with."""
    digits = re.match(r"\d+", text)
    return float(digits[0]) if digits else otherwise
