"""Users of this machine, by their numbers."""

from __future__ import annotations

import pwd


def user_name(number: str) -> str:
    """The name of a user, by its number in text; the number itself where nobody here has it."""
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError, OverflowError):
        return number
