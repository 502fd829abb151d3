"""Times, sizes, numbers and text of others, as they stand in what people read. Pure.

There is one function for each: a length of time is written the same way on the console, in a notebook and in a report.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, tzinfo

# What a terminal obeys: colours, cursor movements, titles, the clipboard.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")

# What would be invisible, or turn the text around it: control characters, and those of writing direction.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

# Years 1970 to 9998: what lies outside is no time of a job, and datetime cannot have all of it.
_LAST_MOMENT = 253_370_764_800.0

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def visible(text: str) -> str:
    """Text in which nothing is invisible: colours of a terminal are left out, other control characters are shown.

    The ends of lines and tabs stay.
    """
    return _INVISIBLE.sub(lambda match: f"\\x{ord(match[0]):02x}", _ESCAPES.sub("", text.replace("\r\n", "\n")))


def one_line(text: str, limit: int = 300) -> str:
    """Text as one line that is not too long."""
    whole = " ".join(visible(text).split())
    return whole if len(whole) <= limit else f"{whole[: limit - 1]}…"


# --- times


def duration(seconds: float) -> str:
    """A length of time: `0.8 s`, `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:  # noqa: PLR2004 - so that ten seconds are `10 s`
        return f"{f'{seconds:.1f}'.removesuffix('.0')} s"
    # Rounded before it is cut into parts: 59.7 s are a minute.
    if round(seconds) < _MINUTE:
        return f"{round(seconds)} s"
    if round(seconds) < _HOUR:
        return _two_parts(round(seconds), _MINUTE, "min", 1, "s")
    if round(seconds / _MINUTE) * _MINUTE < _DAY:
        return _two_parts(round(seconds / _MINUTE) * _MINUTE, _HOUR, "h", _MINUTE, "min")
    return _two_parts(round(seconds / _HOUR) * _HOUR, _DAY, "d", _HOUR, "h")


def _two_parts(seconds: int, unit: int, name: str, smaller: int, smaller_name: str) -> str:
    major, rest = divmod(seconds, unit)
    return f"{major} {name} {rest // smaller} {smaller_name}" if rest else f"{major} {name}"


def ago(seconds: float) -> str:
    """How long ago, in few steps, so that what is about the same reads the same: `now`, `20 s ago`, `5 min ago`."""
    if seconds < 5:  # noqa: PLR2004 - as good as now
        return "now"
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * length:
            return f"{round(seconds / length)} {unit} ago"
    return f"{10 * max(round(seconds / 10), 1)} s ago"


def sane(time: float | None) -> float | None:
    """A time as a job can have one; None for what is none: a record may hold any number."""
    return time if time is not None and 0 < time < _LAST_MOMENT else None


def _local(time: float | None, zone: tzinfo | None) -> datetime | None:
    known = sane(time)
    return datetime.fromtimestamp(known, zone).astimezone(zone) if known is not None else None


def date_and_time(time: float | None, zone: tzinfo | None = None) -> str:
    """Day and time, by this machine's clock or in a zone: `2026-11-25 22:36:07`; empty for none."""
    at = _local(time, zone)
    return at.strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def time_of_day(time: float | None, zone: tzinfo | None = None) -> str:
    """The time of a day: `22:36:07`; empty for none."""
    at = _local(time, zone)
    return at.strftime("%H:%M:%S") if at is not None else ""


def to_the_minute(time: float | None, now: float) -> str:
    """A time to the minute, with its day if that is not within half a day: `22:36`, `2026-11-25 22:36`."""
    at = _local(time, None)
    near = time is not None and abs(time - now) < _DAY / 2
    return at.strftime("%H:%M" if near else "%Y-%m-%d %H:%M") if at is not None else ""


def stamp(time: float) -> str:
    """A time as it can be in the name of a file: `20261125-223607`."""
    return datetime.fromtimestamp(time).astimezone().strftime("%Y%m%d-%H%M%S")


def zone_name(time: float | None, zone: tzinfo | None) -> str:
    """What local time is: `CET (UTC+01:00)`."""
    at = _local(time, zone)
    if at is None:
        return ""
    offset = at.strftime("%z")
    name = at.tzname() or ""
    utc = f"UTC{offset[:3]}:{offset[3:5]}"
    return "UTC" if name == "UTC" else f"{name} ({utc})" if name and not name.startswith(("+", "-", "UTC")) else utc


# --- numbers


def size(count: float) -> str:
    """A number of bytes: `512 B`, `1.4 GiB`, `3 GiB`."""
    at = 0
    while count >= 1024 and at < len(_UNITS) - 1:  # noqa: PLR2004 - as the units say
        count, at = count / 1024, at + 1
    digits = 0 if at == 0 or count >= 100 else 1  # noqa: PLR2004 - three digits are enough
    return f"{f'{count:.{digits}f}'.removesuffix('.0')} {_UNITS[at]}"


def count(number: int, thing: str, things: str = "") -> str:
    """How many: `1 rank`, `1,024 ranks`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def number(value: float | str) -> str:
    """A value with the digits that matter: `1,200`, `0.1235`, `yes`; a word as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    whole = math.isfinite(value) and (value == int(value) or abs(value) >= 1000)  # noqa: PLR2004 - four digits do
    return f"{value:,.0f}" if whole else f"{value:.4g}"
