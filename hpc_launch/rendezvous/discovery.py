"""How the coordinator of a run is found: by its names and ports, or by a file in the job directory.

The coordinator listens on the first free port of the run's candidates. The others try the same candidates, on every
name under which the first node may be known, and believe only an agent that proves itself and is of the same program.
So a foreign program on one of the ports, or another run of the same user, costs one conversation.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import codec, file_ownership
from hpc_launch.backoff import Backoff
from hpc_launch.codec import CodecError
from hpc_launch.console import say
from hpc_launch.errors import LogDirError, NoSecretError, RendezvousError, RendezvousTimeout
from hpc_launch.node import network
from hpc_launch.records import directory
from hpc_launch.rendezvous import round_checks
from hpc_launch.rendezvous.known_agents import read_answer
from hpc_launch.rendezvous.messages import Answer, Hello, Verdict
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.client import ConnectionFailure, FailureKind, connect_to_agent
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.slow_storage import Act

# How long to wait for an answer: at first, and, in later turns, as a busy node may need.
_FIRST_ANSWER_SECONDS = 1.0
_ANSWER_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
# An equal run on this node answers at once; a foreign program that waits for words is not to cost much.
_EQUAL_SECONDS = 1.0
# A line about other programs comes when they may well be all that there is.
_OTHERS_SECONDS = 5.0

# Failures that hold for every port of an address.
_OF_THE_ADDRESS = (FailureKind.TIMEOUT, FailureKind.UNREACHABLE)


@dataclass(frozen=True)
class CoordinatorAddress:
    """Where a coordinator listens, as a file has it.

    Attributes:
        run: the id of its run.
        addresses: of its node.
        port: where it listens.
    """

    run: str
    addresses: Sequence[str]
    port: int


class CoordinatorFile:
    """A file with the coordinator's place: its name may not resolve, or another than the first node coordinates."""

    def __init__(self, config: RendezvousConfig) -> None:
        """There is one where others can read it, and the coordinator does not choose the directory."""
        self._run_id = config.run_id
        self._written: CoordinatorAddress | None = None
        self._path: Path | None = None
        self._writing: Act[None] | None = None
        if config.job.job and len(config.hosts) > 1:
            self._path = config.job.whereabouts(config.identity.program)

    def write(self, port: int) -> None:
        """Note that this node coordinates, and listens on a port; no round waits for the file system."""
        self._writing = Act(lambda: self._write(port))

    def _write(self, port: int) -> None:
        if self._path is not None:
            addresses = [address for interface in network.interfaces() for address in interface.addresses]
            self._written = CoordinatorAddress(self._run_id, tuple(addresses), port)
            with contextlib.suppress(LogDirError):
                directory.write_json(self._path, self._written)

    def remove(self) -> None:
        """This node coordinates no more; what another one has written stays. It waits for the file system."""
        if self._writing is not None:
            self._writing.result()
        if self._path is not None:
            with contextlib.suppress(OSError, CodecError):
                if codec.read(CoordinatorAddress, file_ownership.read_own(self._path)) == self._written:
                    self._path.unlink()

    def places(self) -> Sequence[tuple[str, Sequence[int]]]:
        """Addresses with the ports to try there, if they are of this run."""
        if self._path is None:
            return []
        try:
            note = codec.read(CoordinatorAddress, file_ownership.read_own(self._path))
        except (OSError, CodecError):
            return []
        if note.run != self._run_id:
            return []
        return [(address, [note.port]) for address in note.addresses if network.is_address(address)]


def own_address_of_first(config: RendezvousConfig) -> str:
    """The first node's own address: the one that the user chose, else what its name or the way to the others gives.

    Raises:
        RendezvousError: when no other node could reach it.
    """
    # A node that is alone talks to no other by an interface.
    interface = config.interface if len(config.hosts) > 1 else "auto"
    found = network.asked_address(config.local_addr, interface)
    found = found or network.derive_own_address(config.host, config.hosts, config.leaders)
    if found is None:
        raise RendezvousError(
            f"{config.host} has no address by which other nodes could reach it: name one with --local-addr"
        )
    return found


@dataclass(frozen=True)
class ReachedCoordinator:
    """The coordinator, and the way to it.

    Attributes:
        connection: to it.
        answer: what it said of itself.
        address: of its node.
        own_address: of this node, on the way there.
    """

    connection: Connection
    answer: Answer
    address: str
    own_address: str

    def close(self) -> None:
        """Hang up."""
        self.connection.close()


@dataclass
class Discovery:
    """A search for the coordinator. It blocks, and can be dropped from another thread.

    Attributes:
        hello: what this agent says of itself.
        keyring: its secrets.
        seen: what was seen in the last turn instead of the coordinator, in words.
        others: verdicts of agents of other runs, with their answers.
        dropped: the search is not wanted any more.
    """

    hello: Hello
    keyring: Keyring
    seen: list[str] = field(default_factory=list)
    others: dict[Verdict, Answer] = field(default_factory=dict)
    unknown: int = 0
    dropped: threading.Event = field(default_factory=threading.Event)

    def turn(self, places: Sequence[tuple[str, Sequence[int]]], patience: float) -> ReachedCoordinator | None:
        """Try all places once.

        Args:
            places: names or addresses, each with its ports.
            patience: seconds for an agent to answer.
        """
        self.seen.clear()
        self.unknown = 0
        for name, ports in places:
            addresses = (name,) if network.is_address(name) else network.resolve_name(name)
            if not addresses:
                self.seen.append(f"{name} does not resolve")
            for address in addresses:
                found = self._try(address, ports, patience)
                if isinstance(found, ReachedCoordinator):
                    return found
                self.seen.append(f"{name} ({address}): {found}" if name != address else f"{address}: {found}")
        return None

    def _try(self, address: str, ports: Sequence[int], patience: float) -> ReachedCoordinator | str:
        hello, strangers = codec.encode(self.hello), 0
        for port in ports:
            if self.dropped.is_set():
                return "the search was given up"
            found = connect_to_agent(
                address, port, self.keyring, hello, connect_timeout=_CONNECT_SECONDS, patience=patience
            )
            if isinstance(found, Connection):
                answer = read_answer(found.answer)
                if answer is not None and answer.verdict is Verdict.WELCOME:
                    return ReachedCoordinator(found, answer, address, str(found.socket.getsockname()[0]))
                found.close()
            elif found.kind in _OF_THE_ADDRESS:
                return found.words
            elif found.kind is FailureKind.REFUSED:
                continue
            else:
                self._on_failure(found)
            strangers += 1
        ports_taken = "1 port" if strangers == 1 else f"{strangers} ports"
        return "nobody listens" + (f"; another program uses {ports_taken}" if strangers else "")

    def _on_failure(self, failure: ConnectionFailure) -> None:
        if failure.kind is FailureKind.NO_COMMON_SECRET:
            self.unknown += 1
        answer = read_answer(failure.answer) if failure.kind is FailureKind.TURNED_AWAY else None
        if answer is not None:
            self.others[answer.verdict] = answer

    @property
    def hints(self) -> str:
        """Words about what was found instead, with what mends it; empty where there is nothing to say."""
        found = []
        if Verdict.OTHER_PROGRAM in self.others:
            other = self.others[Verdict.OTHER_PROGRAM]
            found.append(
                f"{other.host} runs another command ({other.words}): if both belong to one run, give both the same "
                "--rdzv-id"
            )
        if Verdict.TAKEN in self.others:
            other = self.others[Verdict.TAKEN]
            found.append(f"a run of the same command has begun on {other.host}: give each run its own --rdzv-id")
        if self.unknown:
            found.append(f"an agent there has no secret in common with this one, which has {self.keyring.described}")
        return "; ".join(found)


def find_coordinator(config: RendezvousConfig, discovery: Discovery) -> ReachedCoordinator:
    """Find the coordinator, saying from time to time that it is not there yet. It blocks.

    Args:
        config: this agent's.
        discovery: the search, which may be dropped from another thread.

    Raises:
        RendezvousTimeout: when it is not there in time.
        NoSecretError: when there is an agent in its place that shares no secret with this one.
    """
    noted, first = CoordinatorFile(config), config.hosts[0]
    begin, pace, spoken = time.monotonic(), Backoff(30, 120, time.monotonic()), False
    # The first turns are short: a silent stranger on one port is not to keep this agent from the right one on another.
    pause, patience = 0.05, _FIRST_ANSWER_SECONDS
    while not discovery.dropped.is_set():
        waited = time.monotonic() - begin
        if pace.due(time.monotonic()):
            say(f"{config.host}: waiting for {first} ({waited:.0f} s)")
        if waited > _OTHERS_SECONDS and discovery.hints and not spoken:
            spoken = True
            say(f"{config.host}: waiting for {first}; {discovery.hints}")
        found = discovery.turn([*((name, config.ports) for name in config.leaders), *noted.places()], patience)
        if found is not None:
            return found
        if time.monotonic() - begin > config.join_timeout:
            break
        discovery.keyring.refresh()
        # Jitter keeps a thousand nodes from knocking in step.
        discovery.dropped.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        pause, patience = min(pause * 1.5, 1.0), min(patience * 2, _ANSWER_SECONDS)
    if discovery.unknown and not discovery.others:
        here = discovery.keyring.described
        raise NoSecretError(
            f"{config.host} has no secret in common with an agent on {first} (here: {here}): give all nodes one ("
            "export HPC_LAUNCH_SECRET=$(openssl rand -hex 32) before srun), or --insecure-rendezvous"
        )
    raise RendezvousTimeout(
        f"{config.host} did not find {first} in {config.join_timeout:.0f} s ({'; '.join(discovery.seen)}); "
        f"{discovery.hints or 'see --master-addr, --port-range and --join-timeout'}",
        missing=(first,),
    )


def equal_run(config: RendezvousConfig, hello: Hello, taken: Sequence[int], address: str) -> str:
    """Words about another run of the same command in the same place; empty where there is none. It blocks.

    Args:
        config: this agent's, which is to coordinate.
        hello: what it says of itself.
        taken: the ports before its own that were taken.
        address: of this node.
    """
    if config.keyring is None:
        return ""
    discovery = Discovery(hello, config.keyring)
    discovery.turn([(address, taken)], _EQUAL_SECONDS)
    if Verdict.TAKEN not in discovery.others:
        return ""
    return round_checks.equal_runs(config.identity.words)
