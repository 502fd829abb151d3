"""How the leader of a run is found: by its names and ports, or by what it says in the job directory."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_launch.elastic import locator
from hpc_launch.elastic.console import Pace, say
from hpc_launch.elastic.party import Party
from hpc_launch.errors import LogDirError, RendezvousError, RendezvousTimeout
from hpc_launch.node import network
from hpc_launch.records import directory


class Whereabouts:
    """A file in which the leader says where it is: its name may not resolve, or another than the first node leads."""

    def __init__(self, party: Party) -> None:
        """There is one where there are others to read it, and the leader does not choose the directory."""
        self._run_id = party.run_id
        self._note: dict[str, Any] | None = None
        self._path: Path | None = None
        if party.job.job and len(party.hosts) > 1:
            self._path = party.job.path / "rendezvous.json"

    def write(self, port: int) -> None:
        """Say that this node leads, and listens on a port."""
        if self._path is not None:
            addresses = [address for interface in network.interfaces() for address in interface.addresses]
            self._note = {"run": self._run_id, "addresses": addresses, "port": port}
            with contextlib.suppress(LogDirError):
                directory.write_json(self._path, self._note)

    def remove(self) -> None:
        """This node leads no more; what another one has said stays."""
        if self._path is not None:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(self._path.read_text()) == self._note:
                    self._path.unlink()

    def places(self) -> Sequence[tuple[str, Sequence[int]]]:
        """Addresses with the ports to try there, if it is of this run."""
        if self._path is None:
            return []
        try:
            note = json.loads(self._path.read_text())
            return [(str(address), [int(note["port"])]) for address in note["addresses"] if note["run"] == self._run_id]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def leader_address(party: Party) -> str:
    """The leader's own address: the one that the user chose, else what its name or the way to the others gives.

    Raises:
        RendezvousError: when no other node could reach it.
    """
    # A node that is alone talks to nobody by an interface.
    interface = party.interface if len(party.hosts) > 1 else "auto"
    found = network.asked_address(party.local_addr, interface)
    found = found or network.own_address(party.host, party.hosts, party.leaders)
    if found is None:
        raise RendezvousError(
            f"{party.host} has no address by which other nodes could reach it: name one with --local-addr"
        )
    return found


def find_leader(party: Party, key: str = "") -> locator.Found:
    """Find the leader, saying from time to time that it is not there yet.

    Args:
        party: this agent's.
        key: as `locator.find` has it.

    Raises:
        RendezvousTimeout: when it is not there in time.
    """
    noted = Whereabouts(party)
    begin, pace = time.monotonic(), Pace(30, 120)

    def places() -> Sequence[tuple[str, Sequence[int]]]:
        if pace.due():
            say(f"{party.host}: waiting for {party.hosts[0]} ({time.monotonic() - begin:.0f} s)")
        return [*((name, party.ports) for name in party.leaders), *noted.places()]

    found = locator.find(party.run_id, party.agent, places, begin + party.join_timeout, key)
    if isinstance(found, str):
        raise RendezvousTimeout(
            f"{party.host} did not find {party.hosts[0]} in {party.join_timeout:.0f} s ({found}); "
            "see --master-addr, --port-range and --join-timeout",
            missing=(party.hosts[0],),
        )
    return found
