"""Read JSON that may be anything: fields of the right kind, and nothing that raises."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# What is larger is not ours: a run of a month writes less.
_LARGEST = 1 << 28

# What a text that is not ours can do to json.
_NONSENSE = (ValueError, RecursionError)

# Numbers that are larger are no times, ranks or process ids.
_MOST = 1 << 53


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are asked for by kind; what is missing or of another kind is the default."""

    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A string; empty without one."""
        found = self.values.get(name)
        return found if isinstance(found, str) else ""

    def number(self, name: str) -> float | None:
        """A finite number."""
        return number(self.values.get(name))

    def whole(self, name: str, default: int = 0) -> int:
        """A whole number."""
        found = self.number(name)
        return default if found is None else int(found)

    def place(self, name: str) -> int | None:
        """A whole number that is not negative: a rank, an attempt."""
        found = self.number(name)
        return None if found is None or found < 0 else int(found)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list's strings."""
        return tuple(item for item in self._list(name) if isinstance(item, str))

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list's whole numbers."""
        return tuple(int(found) for item in self._list(name) if (found := number(item)) is not None)

    def inner(self, name: str) -> Fields:
        """An object; empty without one."""
        found = self.values.get(name)
        return Fields(found if isinstance(found, dict) else {})

    def _list(self, name: str) -> Sequence[Any]:
        found = self.values.get(name)
        return found if isinstance(found, list) else []


def number(value: Any) -> float | None:
    """A finite number of a sensible size; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -_MOST < value < _MOST and math.isfinite(value) else None


def parse(data: bytes) -> Fields | None:
    """Read a JSON object; None if it is none."""
    try:
        found = json.loads(data)
    except _NONSENSE:
        return None
    return Fields(found) if isinstance(found, dict) else None


def parse_lines(data: bytes) -> tuple[list[Fields], int, bool]:
    """Read lines of JSON objects.

    Returns:
        The objects, the number of lines that are none, and whether the last line has no end and is no object: it is
        cut off, or being written.
    """
    found, bad = [], 0
    lines = data.split(b"\n")
    for line in lines[:-1]:
        fields = parse(line) if line.strip(b"\0 \r") else None
        if fields is not None:
            found.append(fields)
        else:
            bad += 1
    last = parse(lines[-1]) if lines[-1] else None
    if last is not None:
        found.append(last)
    return found, bad, bool(lines[-1]) and last is None


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it, whoever owns it. A pipe in its place does not block, and is an error.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a file")
    return os.fdopen(handle, "rb")


def content(path: Path) -> bytes | str | None:
    """The content of a file; None where there is none, and words where it cannot be read."""
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > _LARGEST:
                return "it is too large to be a record"
            return stream.read(_LARGEST)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


def entries(path: Path) -> list[str] | str | None:
    """The names in a directory, sorted; None where there is none, and words where it cannot be listed."""
    try:
        return sorted(os.listdir(path))  # noqa: PTH208 - the names are all that is wanted
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error.strerror or error)
