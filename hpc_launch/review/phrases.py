"""Times, sizes, exit codes and text of any kind as a report has them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo

from hpc_launch.text import visible

Say = Callable[[float], str]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400

# Years 1970 to 9998: what lies outside is no time of a job, and datetime cannot have all of it.
_LAST_MOMENT = 253_370_764_800.0

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def span(seconds: float) -> str:
    """A length of time: `0.8 s`, `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:  # noqa: PLR2004 - so that ten seconds are `10 s`
        return f"{seconds:.1f} s"
    for unit, name, size, less in (
        (_MINUTE, "min", 1, "s"),
        (_HOUR, "h", _MINUTE, "min"),
        (_DAY, "d", _HOUR, "h"),
    ):
        # Rounded first: 59.7 s are a minute.
        whole = round(seconds / size)
        if whole * size < unit:
            return f"{whole} {less}"
        following = {"min": _HOUR, "h": _DAY}.get(name)
        if following is None or whole * size < following:
            major, minor = divmod(whole * size, unit)
            return f"{major} {name} {minor // size} {less}" if minor else f"{major} {name}"
    raise AssertionError  # days have no end


def size(count: float) -> str:
    """A number of bytes: `512 B`, `1.4 GiB`."""
    at = 0
    while count >= 1024 and at < len(_UNITS) - 1:  # noqa: PLR2004 - as the units say
        count, at = count / 1024, at + 1
    return f"{count:.0f} {_UNITS[at]}" if at == 0 or count >= 100 else f"{count:.1f} {_UNITS[at]}"  # noqa: PLR2004 - three digits are enough


def sane(time: float | None) -> float | None:
    """A time as a job can have one; None for what is none: a record may hold any number."""
    return time if time is not None and 0 < time < _LAST_MOMENT else None


def moment(time: float | None, zone: tzinfo | None) -> datetime | None:
    """A moment of local time; None for what is no time."""
    known = sane(time)
    return datetime.fromtimestamp(known, zone).astimezone(zone) if known is not None else None


def full(time: float | None, zone: tzinfo | None) -> str:
    """Day and time: `2026-11-25 22:36:07`; empty for none."""
    at = moment(time, zone)
    return at.strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def clock(time: float | None, zone: tzinfo | None) -> str:
    """The time of a day: `22:36:07`; empty for none."""
    at = moment(time, zone)
    return at.strftime("%H:%M:%S") if at is not None else ""


def zone_name(time: float | None, zone: tzinfo | None) -> str:
    """What local time is: `CET (UTC+01:00)`."""
    at = moment(time, zone)
    if at is None:
        return ""
    offset = at.strftime("%z")
    name = at.tzname() or ""
    utc = f"UTC{offset[:3]}:{offset[3:5]}"
    return "UTC" if name == "UTC" else f"{name} ({utc})" if name and not name.startswith(("+", "-", "UTC")) else utc


def count(number: int, thing: str, things: str = "") -> str:
    """How many: `1 rank`, `1,024 ranks`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def number(value: float) -> str:
    """A number without needless digits: `1,200`, `0.25`."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"


def line(text: str, limit: int = 300) -> str:
    """Text as one line that is not too long."""
    whole = " ".join(visible(text).split())
    return whole if len(whole) <= limit else f"{whole[: limit - 1]}…"
