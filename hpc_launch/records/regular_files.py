"""Files of others, read without trust: what is no regular file, or is too large, is refused in words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# What is larger is not ours: a run of a month writes less.
_LARGEST = 1 << 28


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
