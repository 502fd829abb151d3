"""One answer of all ranks at the same call of `should_stop`, over torch's store."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from hpc_launch.runtime import worker_variables

# How long a lease is meant to last, in seconds, and at most, in calls.
_LEASE_S = 1.0
_LEASE_CALLS = 100

# Seconds: until the store must answer; that a rank waits for rank 0, which may write a checkpoint; and that a rank 0
# which serves the store stays for the others to read its last word.
_CONNECT_S = 300.0
_PATIENCE_S = 1800.0
_LINGER_S = 10.0


class Store(Protocol):
    """What an agreement needs of torch's stores."""

    def set(self, key: str, value: str, /) -> object:
        """Write."""

    def get(self, key: str, /) -> bytes:
        """Read, waiting until there is something."""

    def check(self, keys: list[str], /) -> bool:
        """Say whether all of them are there."""


class _Clock(Protocol):
    """What an agreement needs of the module `time`."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class Agreement:
    """One answer at the same call, on all ranks.

    Rank 0 keeps one record in the store, which grows from call to call: "n" says that the answer is False up to call n,
    "n stop" that it is False up to there and True from n + 1 on. What it has published binds rank 0 as well: it decides
    only at calls that the record does not cover yet, and publishes before it answers. So an answer of any rank follows
    from the record alone, whichever version of it the rank has read: a later one says the same of all earlier calls.

    Others look at the record when their call is not covered, until it is. They look again and again, with pauses: a
    wait inside of the store would hold up signal handlers, and torch logs each that times out.

    Args:
        store: shared by all ranks, and used by this agreement only.
        confirm: have readers say what they have read, for a rank 0 that serves the store and must not leave before.
        patience: seconds that a rank waits for rank 0.
    """

    def __init__(
        self, store: Store, rank: int, clock: _Clock = time, *, confirm: bool = False, patience: float = _PATIENCE_S
    ) -> None:
        self._store = store
        self._rank = rank
        self._clock = clock
        self._confirm = confirm
        self._patience = patience
        self._calls = 0
        self._granted = 0
        self._stop = False
        self._record = ""
        self._said = False
        self._lease = 0
        self._called: float | None = None
        self._slowest = 0.0

    def answer(self, wanted: Callable[[], bool]) -> bool:
        """Make the next call.

        Args:
            wanted: whether this rank wants to stop.
        """
        self._calls += 1
        if self._rank == 0:
            self._lead(wanted)
        else:
            self._follow(wanted)
        return self._stop and self._calls > self._granted

    def _lead(self, wanted: Callable[[], bool]) -> None:
        now = self._clock.monotonic()
        if self._called is not None:
            self._slowest = max(self._slowest, now - self._called)
        self._called = now
        if self._stop or self._calls <= self._granted:
            return
        if wanted() or self._ask(self._store.check, ["wanted"]):
            self._publish(self._calls - 1, stop=True)
            return
        # By the slowest of the last calls, and growing slowly: a promise cannot be taken back.
        fitting = int(_LEASE_S / max(self._slowest, _LEASE_S / _LEASE_CALLS))
        self._lease = max(1, min(fitting, 2 * self._lease))
        self._slowest = 0.0
        self._publish(self._calls + self._lease - 1, stop=False)

    def _publish(self, granted: int, *, stop: bool) -> None:
        record = f"{granted} stop" if stop else str(granted)
        self._ask(self._store.set, "record", record)
        self._record, self._granted, self._stop = record, granted, stop

    def _follow(self, wanted: Callable[[], bool]) -> None:
        self._say(wanted)
        if self._stop or self._calls <= self._granted:
            return
        began = self._clock.monotonic()
        while not self._read():
            waited = self._clock.monotonic() - began
            if waited > self._patience:
                raise RuntimeError(
                    f"rank 0 has not made call {self._calls} of should_stop(all_ranks=True) in {self._patience:.0f} s: "
                    "every rank must call it equally often"
                )
            self._clock.sleep(min(max(0.001, waited / 4), 1.0))
            self._say(wanted)

    def _say(self, wanted: Callable[[], bool]) -> None:
        """Tell rank 0, once, that this rank wants to stop."""
        if not (self._said or self._stop) and wanted():
            self._ask(self._store.set, "wanted", str(self._rank))
            self._said = True

    def _read(self) -> bool:
        """Read the record; whether it covers this call."""
        if not (self._granted or self._ask(self._store.check, ["record"])):
            return False
        self._record = self._ask(self._store.get, "record").decode()
        granted, _, word = self._record.partition(" ")
        self._granted, self._stop = int(granted), bool(word)
        covered = self._stop or self._calls <= self._granted
        if covered and self._confirm:
            self._ask(self._store.set, f"read {self._rank}", self._record)
        return covered

    def linger(self, others: int) -> None:
        """Stay, for a short time, until ranks 1 to `others` have read the last record: the store ends with rank 0."""
        deadline = self._clock.monotonic() + _LINGER_S
        with contextlib.suppress(RuntimeError):
            for other in range(1, others + 1):
                while self._record and not self._has_read(other):
                    if self._clock.monotonic() > deadline:
                        return
                    self._clock.sleep(0.01)

    def _has_read(self, other: int) -> bool:
        key = f"read {other}"
        return bool(self._ask(self._store.check, [key])) and self._ask(self._store.get, key).decode() == self._record

    @staticmethod
    def _ask(operation: Callable[..., Any], *arguments: Any) -> Any:
        """Use the store: the single place where its failures come from."""
        try:
            return operation(*arguments)
        except RuntimeError as error:  # all of torch.distributed's are
            raise RuntimeError(
                f"should_stop(all_ranks=True) lost the store of the ranks: {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def open_store(*, serve: bool) -> Store:
    """Reach the store at MASTER_ADDR:MASTER_PORT.

    Args:
        serve: serve it from this process, together with the `init_process_group()` of this process.

    Raises:
        RuntimeError: in one line.
    """
    # Scripts without torch use the rest.
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # noqa: PLC0415

    host, port = os.environ.get("MASTER_ADDR"), worker_variables.number_variable("MASTER_PORT", 0)
    if not host or not port:
        raise RuntimeError(
            "should_stop(all_ranks=True) needs MASTER_ADDR and MASTER_PORT, as init_process_group() does"
        )
    timeout = timedelta(seconds=_CONNECT_S)
    store: TCPStore | None = None
    if serve:
        # A port that is taken is served already, by a store that this process or another has made in its own way.
        with contextlib.suppress(RuntimeError):
            store = TCPStore(host, port, None, True, timeout, wait_for_workers=False, multi_tenant=True)
    try:
        if store is None:
            store = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    except RuntimeError as error:
        raise RuntimeError(
            f"should_stop(all_ranks=True) cannot reach the store of the ranks at {host}:{port}: {_first_line(error)}"
        ) from error
    return PrefixStore(f"hpc_launch/runtime/{worker_variables.number_variable('TORCHELASTIC_RESTART_COUNT', 0)}", store)
