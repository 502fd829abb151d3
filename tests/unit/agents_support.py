"""Agents of the `slurm` rendezvous in the threads of one process, with real stores on loopback."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hpc_launch.node import port_candidates
from hpc_launch.plan.identity import Identity
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous.coordinator_server import CoordinatorServer
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.rendezvous.messages import RoundEnd
from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.handshake import KeyMethod
from hpc_launch.rendezvous.transport.keys import Keyring, Secret
from tests.support import wait_for

T = TypeVar("T")

DEADLINE = 120.0
# Tests run beside each other: an agent of another process, on one of this one's ports, is to be of another run, unless
# a test has started it.
PLACE_VARIABLE = "HPC_LAUNCH_TEST_PLACE"
PLACE = os.environ.get(PLACE_VARIABLE, f"place-{uuid.uuid4().hex}")
PORT_RANGE = range(20_000, 30_000)


def keyring(place: str = PLACE, key: bytes = b"k" * 32) -> Keyring:
    """Return what an agent has to prove who it is: one secret."""
    return Keyring(place, (Secret("a secret of the tests", KeyMethod.SECRET, key),))


def identity(program: str = "program") -> Identity:
    """Return which run an agent is of."""
    return Identity(PLACE, program, f"{program}.py", explicit=False)


def config(root: Path, agents: int, **changes: Any) -> RendezvousConfig:
    """Return the config of agent 0 of a run of its own; `replace` makes those of the others.

    Args:
        root: The log directory.
        agents: How many there are, one per node.
        changes: Fields that differ from the usual.
    """
    run_id = uuid.uuid4().hex
    usual = RendezvousConfig(
        run_id=run_id,
        agent=0,
        agents=agents,
        host="node1",
        hosts=[f"node{number + 1}" for number in range(agents)],
        agents_per_host=(1,) * agents,
        leader=True,
        leaders=["127.0.0.1"],
        ports=port_candidates.candidates(run_id, PORT_RANGE),
        workers=2,
        join_timeout=DEADLINE,
        max_restarts=0,
        local_addr="127.0.0.1",
        interface="auto",
        master_port=None,
        job=JobDirectory(root, "1.0"),
        minimum=agents,
        identity=identity(),
        keyring=keyring(),
        store_ports=range(30_000, 32_000),
    )
    return replace(usual, **changes)


def configs(first: RendezvousConfig) -> list[RendezvousConfig]:
    """Return the configs of all agents of a run, given that of agent 0."""
    return [
        replace(first, agent=number, host=host, leader=number == 0, workers=first.workers + number % 2)
        for number, host in enumerate(first.hosts)
    ]


@dataclass
class Task:
    """Something that runs in a thread: what it returned or raised, once it has ended."""

    name: str
    ended: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None


def begin(action: Callable[[], Any], name: str = "task") -> Task:
    """Run something in a thread of its own, which does not keep the process alive."""
    task = Task(name)

    def run() -> None:
        try:
            task.value = action()
        except BaseException as error:  # noqa: BLE001 - whoever waits for it looks at it
            task.error = error
        finally:
            task.ended.set()

    threading.Thread(target=run, name=name, daemon=True).start()
    return task


def finish(tasks: Sequence[Task]) -> None:
    """Wait until all have ended, well or not; tell where all threads are if some do not."""

    def story() -> str:
        with tempfile.TemporaryFile("w+") as stream:
            faulthandler.dump_traceback(stream)
            stream.seek(0)
            states = "\n".join(f"{task.name}: {task.ended.is_set()} {task.value} {task.error!r}" for task in tasks)
            return f"{states}\n{stream.read()}"

    wait_for(lambda: all(task.ended.is_set() for task in tasks), DEADLINE, story, pause=0.005)


def together(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Run actions at the same time; raises the first error, by their order."""
    tasks = [begin(action, f"agent {number}") for number, action in enumerate(actions)]
    finish(tasks)
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.value for task in tasks]


def errors(actions: Sequence[Callable[[], Any]]) -> list[BaseException | None]:
    """Run actions at the same time; returns what each of them raised."""
    tasks = [begin(action, f"agent {number}") for number, action in enumerate(actions)]
    finish(tasks)
    return [task.error for task in tasks]


def server_of(handler: SlurmRendezvous) -> CoordinatorServer | None:
    """Return the server of an agent, while it has one."""
    return handler._follower.server


def connection_of(handler: SlurmRendezvous) -> Connection | None:
    """Return an agent's connection to its coordinator."""
    return handler._follower.client.connection


def callers(handler: SlurmRendezvous) -> frozenset[int]:
    """Return the agents that are connected to one that coordinates."""
    server = server_of(handler)
    return server.callers if server is not None else frozenset()


def is_connected(handler: SlurmRendezvous) -> bool:
    """Whether an agent is with a coordinator, as far as it knows."""
    connection = connection_of(handler)
    return connection is not None and not connection.broken


def end_of(handler: SlurmRendezvous) -> RoundEnd:
    """Wait for the end of the round as an agent does."""
    found: list[RoundEnd] = []

    def ended() -> bool:
        end = handler.end()
        if end is not None:
            found.append(end)
        return end is not None

    wait_for(ended, DEADLINE, f"{handler.get_run_id()}: round {handler.round_number} does not end", pause=0.002)
    return found[0]
