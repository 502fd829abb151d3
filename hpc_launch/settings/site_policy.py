"""The policy of a site: what its settings file forbids, whoever asks for it. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings import readers
from hpc_launch.settings.readers import Reader, Unreadable

# The table of the site's file that has it.
POLICY = "policy"


@dataclass(frozen=True)
class SitePolicy:
    """What a site allows. None means that the site sets no limit.

    Attributes:
        insecure_rendezvous: whether agents may meet without authentication.
        port_range: the ports to which listeners are confined.
        max_restarts: the most restarts of one run.
        max_requeues: the most requeues of one job.
        file: the site's file.
        keys: the keys as they are written there, by name.
    """

    insecure_rendezvous: bool | None = None
    port_range: range | None = None
    max_restarts: int | None = None
    max_requeues: int | None = None
    file: str = ""
    keys: Mapping[str, str] | None = None

    @property
    def rules(self) -> dict[str, Any]:
        """The limits that are set, by name."""
        found = {name: getattr(self, name) for name in _READERS}
        return {name: value for name, value in found.items() if value is not None}

    def place(self, name: str) -> str:
        """Where a limit is set, for messages."""
        return f"{self.file}: {POLICY}.{(self.keys or {}).get(name, name)}"


NO_POLICY = SitePolicy()

# Each limit has one type only: one that is written in another way may be a mistake.
_READERS: Mapping[str, tuple[type, Reader[Any]]] = {
    "insecure_rendezvous": (bool, readers.switch),
    "port_range": (str, readers.port_range),
    "max_restarts": (int, readers.integer(0)),
    "max_requeues": (int, readers.integer(0)),
}
assert set(_READERS) <= {field.name for field in fields(SitePolicy)}  # noqa: S101 - the two lists are kept together


def policy_of(file: str, content: Any) -> SitePolicy:
    """Read the table.

    Args:
        file: the site's file.
        content: the value of its key `policy`.

    Raises:
        UsageError: for what is not a table, an unknown key, and a value that a key cannot have. A policy with a mistake
            in it would otherwise allow what it is meant to forbid.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{file}: {POLICY} is not a table: write [{POLICY}]")
    limits: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in _READERS:
            near = difflib.get_close_matches(name, _READERS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(_READERS)}"
            raise UsageError(f"{file}: there is no limit '{POLICY}.{key}'; {hint}")
        if name in limits:
            raise UsageError(f"{file}: {POLICY}.{keys[name]} and {key} are the same limit: keep one of them")
        limits[name], keys[name] = _read(f"{file}: {POLICY}.{key}", name, value), key
    return SitePolicy(**limits, file=file, keys=keys)


def _read(place: str, name: str, value: Any) -> Any:
    kind, reader = _READERS[name]
    if type(value) is not kind:
        raise UsageError(f"{place}: {value!r} is not {readers.TYPE_NAMES[kind]}")
    try:
        return reader.read(value)
    except Unreadable as error:
        raise UsageError(f"{place}: {value!r} is not {error}") from None
