"""Text of others in lines of the launcher's own: what a terminal would obey, or hide, is shown. Pure."""

from __future__ import annotations

import re

# What a terminal obeys: colours, cursor movements, titles, the clipboard.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")

# What would be invisible, or turn the text around it: control characters, and those of writing direction.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text in which nothing is invisible: colours of a terminal are left out, other control characters are shown.

    The ends of lines and tabs stay.
    """
    return _INVISIBLE.sub(lambda match: f"\\x{ord(match[0]):02x}", _ESCAPES.sub("", text.replace("\r\n", "\n")))
