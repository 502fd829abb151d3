"""Lost nodes of a large simulated run on this machine: how soon the others know, and have agreed on going on.

`python tests/benchmarks/losses.py` prints a table. The first two nodes are agents as hpc-launch has them, each in a
process of its own; all others are connections in a third process, which say what agents say and keep time. There are no
workers.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import selectors
import shutil
import socket
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from hpc_launch import codec
from hpc_launch.plan.identity import Identity
from hpc_launch.rendezvous.membership import Membership
from hpc_launch.rendezvous.messages import (
    FROM_COORDINATOR,
    Accept,
    Answer,
    Begun,
    Hello,
    Propose,
    Purpose,
    Ready,
    RunState,
    Start,
    Verdict,
)
from hpc_launch.rendezvous.transport.client import connect_to_agent
from hpc_launch.rendezvous.transport.connection import Connection
from hpc_launch.rendezvous.transport.handshake import KeyMethod
from hpc_launch.rendezvous.transport.keys import Keyring, Secret

HOST = "127.0.0.1"
# As many as keep the leader busy: this process's threads cost each other more than nodes of their own would.
_AT_ONCE = 2
PATIENCE = 600.0


@functools.cache
def keyring(run_id: str) -> Keyring:
    """Return the secret that all agents have."""
    return Keyring(run_id, (Secret("benchmark", KeyMethod.SECRET, run_id.encode()),))


def config(run_id: str, nodes: int, agent: int, folder: str) -> Any:
    """Return what an agent brings along."""
    from hpc_launch.node import port_candidates  # noqa: PLC0415
    from hpc_launch.records.directory import JobDirectory  # noqa: PLC0415
    from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig  # noqa: PLC0415 - only the processes with agents import torch

    hosts = [f"node{number:04}" for number in range(nodes)]
    return RendezvousConfig(
        run_id=run_id,
        agent=agent,
        agents=nodes,
        host=hosts[agent],
        hosts=hosts,
        agents_per_host=(1,) * nodes,
        leader=agent == 0,
        leaders=[HOST],
        ports=port_candidates.candidates(run_id, range(20_000, 30_000)),
        workers=1,
        join_timeout=PATIENCE,
        max_restarts=0,
        local_addr=HOST,
        interface="auto",
        master_port=None,
        job=JobDirectory(Path(folder), ""),
        elastic=True,
        identity=Identity(run_id, "program", "train.py", explicit=False),
        keyring=keyring(run_id),
        store_ports=range(20_000, 30_000),
    )


def agent(one: Any, told: Pipe) -> None:
    """Be an agent: join, hear of losses, join again; says where it listens, and how often its leader has begun."""
    from hpc_launch.rendezvous.handler import SlurmRendezvous  # noqa: PLC0415

    handler = SlurmRendezvous(one)
    while True:
        handler.next_rendezvous()
        handler.report_begun()
        told.send(handler._follower.server.port if handler._follower.server else 0)
        while handler.end() is None:
            time.sleep(0.1)


@dataclass
class Crowd:
    """All other nodes.

    Attributes:
        run_id: Of the run.
        nodes: How many there are with the first two.
        connections: By agent.
        port: Where all of them listen, and never answer; who asks there sees that they are not gone.
    """

    run_id: str
    nodes: int
    connections: dict[int, Any]
    port: int
    said: int = 0

    def call(self, port: int, agreed: Membership, told: RunState, gone: tuple[int, ...]) -> None:
        """All connect to a coordinator and are ready."""
        # Nodes connect at the same time.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(lambda number: (number, reach(self.run_id, number, port)), [*self.connections])
            self.connections.update(found)
        for number in self.connections:
            self.ready(number, agreed, told, gone)

    def ready(self, number: int, agreed: Membership, told: RunState, gone: tuple[int, ...]) -> None:
        """Say that an agent is ready for the next round."""
        host = f"node{number:04}"
        self.say(number, Ready(number, host, HOST, self.port, 1, {}, "", 0, agreed, (), told, gone))

    def begin(self) -> Start:
        """Wait until all have heard that a round begins, and say that the workers have started."""
        start: Start = self.hear("Start")
        for number in self.connections:
            self.say(number, Begun(start.state.round))
        return start

    def say(self, number: int, message: Any) -> None:
        """Say something as an agent."""
        self.said += 1
        self.connections[number].send(codec.encode(message))

    def hear(self, kind: str, *, broken: bool = False) -> Any:
        """Wait until all have heard a message, or lost their coordinator; accepts what is proposed meanwhile."""
        # All hear the same, which each node would read by itself, at the same time as the others: here once.
        waiting = {*self.connections}
        last: Any = None
        accept: Any = None
        wanted, proposed = b'{"do":"%s"' % kind.encode(), b'{"do":"Propose"'
        with selectors.DefaultSelector() as selector:
            for number, connection in self.connections.items():
                selector.register(connection.socket, selectors.EVENT_READ, number)
            deadline = time.monotonic() + PATIENCE
            while waiting:
                if time.monotonic() > deadline:
                    sys.exit(f"{len(waiting)} agents of {self.nodes} wait for '{kind}'")
                for key, _ in selector.select(timeout=1):
                    connection = self.connections[key.data]
                    for frame in connection.receive():
                        if frame.payload.startswith(proposed):
                            found: Propose = codec.decode(frame.payload, FROM_COORDINATOR)
                            accept = accept or Accept(found.membership)
                            self.say(key.data, accept)
                        elif frame.payload.startswith(wanted):
                            waiting.discard(key.data)
                            last = last or codec.decode(frame.payload, FROM_COORDINATOR)
                    if connection.broken:
                        selector.unregister(key.fileobj)
                        if broken:
                            waiting.discard(key.data)
        return last


def hello(number: int, purpose: Purpose) -> bytes:
    """Return what an agent says of itself."""
    return codec.encode(Hello(purpose, number, f"node{number:04}", str(number), "program"))


def reach(run_id: str, number: int, port: int) -> Connection:
    """Connect to a coordinator as an agent."""
    greeting = hello(number, Purpose.JOIN)
    found = connect_to_agent(HOST, port, keyring(run_id), greeting, connect_timeout=PATIENCE, patience=PATIENCE)
    if not isinstance(found, Connection):
        sys.exit(found.words)
    return found


def measure(nodes: int, folder: str) -> list[str]:
    """Lose a node, and then the leader; returns a row of the table."""
    run_id = uuid.uuid4().hex
    whole = Membership(0, tuple(range(nodes)))
    listener = socket.create_server((HOST, 0))
    crowd = Crowd(run_id, nodes, dict.fromkeys(range(2, nodes)), listener.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    agents = [
        context.Process(target=agent, args=(config(run_id, nodes, number, folder), ends[number][1]), daemon=True)
        for number in range(2)
    ]
    for process in agents:
        process.start()
    leader = _leader_port(run_id)
    begin = time.monotonic()
    crowd.call(leader, whole, RunState(), ())
    start = crowd.begin()
    joined = time.monotonic() - begin
    ports = [ends[number][0].recv() for number in range(2)]

    begin, before = time.monotonic(), crowd.said
    crowd.connections.pop(nodes - 1).close()
    crowd.hear("Ended")
    noticed = time.monotonic() - begin
    for number in crowd.connections:
        crowd.ready(number, start.membership, start.state, ())
    start = crowd.begin()
    agreed, lines = time.monotonic() - begin, crowd.said - before
    for number in range(2):
        ends[number][0].recv()

    begin = time.monotonic()
    agents[0].kill()
    crowd.hear("nothing", broken=True)
    missed = time.monotonic() - begin
    while not _leads(ports[1], run_id):
        time.sleep(0.01)
    crowd.call(ports[1], start.membership, start.state, (0,))
    crowd.begin()
    moved = time.monotonic() - begin
    agents[1].kill()
    for process in agents:
        process.join()
    listener.close()
    return [
        f"{nodes:,}",
        *(f"{seconds:.2f}" for seconds in (joined, noticed, agreed, missed, moved)),
        f"{lines / len(crowd.connections):.1f}",
    ]


def _leader_port(run_id: str) -> int:
    from hpc_launch.node import port_candidates  # noqa: PLC0415

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for port in port_candidates.candidates(run_id, range(20_000, 30_000)):
            if _leads(port, run_id):
                return port
        time.sleep(0.05)
    sys.exit("the first agent does not listen")


def _leads(port: int, run_id: str) -> bool:
    """Ask an agent whether it coordinates."""
    found = connect_to_agent(HOST, port, keyring(run_id), hello(2, Purpose.CALL), connect_timeout=1, patience=PATIENCE)
    if isinstance(found, Connection):
        found.close()
    if not found.answer:
        return False
    answer: Answer = codec.decode(found.answer, codec.known(Answer))
    return answer.verdict is Verdict.WELCOME


def write(*rows: list[str]) -> None:
    """Print rows of a table."""
    for row in rows:
        sys.stdout.write(f"| {' | '.join(row)} |\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 256, 1024])
    parser.add_argument("--quick", action="store_true", help="only show that it works")
    options = parser.parse_args()
    columns = ["nodes", "met", "loss noticed", "agreed", "leader's loss noticed", "agreed", "messages of a node"]
    write([*columns], ["---:"] * len(columns))
    for nodes in [8] if options.quick else options.nodes:
        folder = tempfile.mkdtemp()
        try:
            write(measure(nodes, folder))
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
