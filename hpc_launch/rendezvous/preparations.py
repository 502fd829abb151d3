"""The preparations for a round that may block, each in a thread: the job directory is claimed, a store is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from hpc_launch.errors import HpcLaunchError
from hpc_launch.rendezvous import job_claim, worker_store
from hpc_launch.rendezvous.job_claim import ClaimedDirectory
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig

_Prepared = TypeVar("_Prepared")


@dataclass(frozen=True)
class OpenStore:
    """The workers' store of a round.

    Attributes:
        address: where workers connect.
        port: its port there.
        server: what serves it, as long as it is kept.
    """

    address: str
    port: int
    server: object


class Preparations:
    """What the coordinator's agent prepares for all agents.

    Args:
        config: what this agent brings along.
        address: gives the address of this node where workers of others connect.
        names_job: whether the job directory is chosen here: torchrun writes its logs elsewhere, and makes its own id
            for the workers.

    Attributes:
        fault: a fault of our own, in one of the threads.
    """

    def __init__(self, config: RendezvousConfig, address: Callable[[], str], *, names_job: bool = True) -> None:
        self.fault: BaseException | None = None
        self._config, self._address, self._names_job = config, address, names_job
        self._store: OpenStore | None = None

    def claim_job(self, then: Callable[[ClaimedDirectory], object], failed: Callable[[HpcLaunchError], object]) -> None:
        """Claim the job directory.

        Args:
            then: gets it, in a thread.
            failed: gets the error instead, in a thread.
        """
        _begin("job", self._claim, then, failed, self._note_fault)

    def open_store(self, then: Callable[[OpenStore], object], failed: Callable[[HpcLaunchError], object]) -> None:
        """Open the workers' store of a round; that of the round before is closed.

        Args:
            then: gets it, in a thread.
            failed: gets the error instead, in a thread.
        """
        former, self._store = [self._store], None

        def work() -> OpenStore:
            former.clear()  # no worker uses that of the round before any more
            address = self._address()
            server = worker_store.worker_store(self._config, address)
            return OpenStore(address, server.port, server)

        _begin("store", work, then, failed, self._note_fault)

    def keep(self, store: OpenStore | None) -> None:
        """Keep a store open until there is another, or none is needed any more."""
        self._store = store

    def _claim(self) -> ClaimedDirectory:
        config = self._config
        if not self._names_job:
            return ClaimedDirectory(config.job.job or "torchrun", 0, config.run_id)
        return job_claim.claim_job_directory(config.job, config.identity, config.run_id)

    def _note_fault(self, fault: BaseException) -> None:
        self.fault = fault


def _begin(
    name: str,
    work: Callable[[], _Prepared],
    then: Callable[[_Prepared], object],
    failed: Callable[[HpcLaunchError], object],
    broken: Callable[[BaseException], object],
) -> None:
    """Do something in a thread of its own."""

    def run() -> None:
        try:
            found = work()
        except HpcLaunchError as error:
            failed(error)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            broken(error)
        else:
            then(found)

    threading.Thread(target=run, name=f"prepare-{name}", daemon=True).start()
