"""Lost nodes of a large simulated run on this machine: how soon the others know, and have agreed on going on.

`python tests/benchmarks/losses.py` prints a table. The first two nodes are agents as hpc-launch has them, each in a
process of its own; all others are connections in a third process, which say what agents say and keep time. There are no
workers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import selectors
import shutil
import socket
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hpc_launch import ranges

HOST = "127.0.0.1"
PATIENCE = 600.0


def party(run_id: str, nodes: int, agent: int, folder: str) -> Any:
    """Return what an agent brings along."""
    from hpc_launch.elastic.party import Party  # noqa: PLC0415 - only the processes with agents import torch
    from hpc_launch.node import ports  # noqa: PLC0415
    from hpc_launch.records.directory import JobDirectory  # noqa: PLC0415

    hosts = [f"node{number:04}" for number in range(nodes)]
    return Party(
        run_id=run_id,
        agent=agent,
        agents=nodes,
        host=hosts[agent],
        hosts=hosts,
        agents_per_host=(1,) * nodes,
        leader=agent == 0,
        leaders=[HOST],
        ports=ports.candidates(run_id, range(20_000, 30_000)),
        workers=1,
        join_timeout=PATIENCE,
        max_restarts=0,
        local_addr=HOST,
        interface="auto",
        master_port=None,
        job=JobDirectory(Path(folder), ""),
        elastic=True,
    )


def agent(one: Any, told: Connection) -> None:
    """Be an agent: join, hear of losses, join again; says where it listens, and how often its leader has begun."""
    from hpc_launch.elastic.moving import MovingRendezvous  # noqa: PLC0415

    handler = MovingRendezvous(one)
    while True:
        handler.next_rendezvous()
        handler.report_begun()
        told.send(handler._post.port if handler._post else 0)
        while handler.end() is None:
            time.sleep(0.1)


@dataclass
class Crowd:
    """All other nodes.

    Attributes:
        run_id: Of the run.
        nodes: How many there are with the first two.
        connections: By agent.
    """

    run_id: str
    nodes: int
    connections: dict[int, Any]
    said: int = 0

    def call(self, port: int, agreed: list[Any], told: dict[str, Any], gone: list[int]) -> None:
        """All connect to a leader and are ready."""
        from hpc_launch.elastic.lines import Lines  # noqa: PLC0415

        for number in [*self.connections]:
            connection = socket.create_connection((HOST, port), timeout=PATIENCE)
            question = {"run": self.run_id, "agent": number, "key": str(number), "again": True}
            connection.sendall(json.dumps(question).encode() + b"\n")
            while not connection.recv(4096).endswith(b"\n"):
                pass
            self.connections[number] = Lines(connection)
        for number in self.connections:
            self.ready(number, agreed, told, gone)

    def ready(self, number: int, agreed: list[Any], told: dict[str, Any], gone: list[int]) -> None:
        """Say that an agent is ready for the next round."""
        caller = {
            "agent": number,
            "host": f"node{number:04}",
            "address": HOST,
            "port": 1,
            "workers": 1,
            "software": {},
            "problem": "",
            "status": 0,
            "agreed": agreed,
            "accepted": [],
            "story": told,
            "gone": gone,
        }
        self.say(number, "ready", caller=caller)

    def begin(self) -> dict[str, Any]:
        """Wait until all have heard that a round begins, and say that the workers have started."""
        start: dict[str, Any] = self.hear("go")["start"]
        for number in self.connections:
            self.say(number, "begun", round=start["story"]["round"])
        return start

    def say(self, number: int, word: str, **facts: Any) -> None:
        """Say something as an agent."""
        self.said += 1
        self.connections[number].send(word, **facts)

    def hear(self, word: str, *, broken: bool = False) -> dict[str, Any]:
        """Wait until all have heard a word, or lost their leader; accepts what is proposed meanwhile."""
        # All hear the same line, which each node would read by itself, at the same time as the others: here once.
        waiting = {*self.connections}
        last: dict[str, Any] = {}
        proposed: list[Any] = []
        with selectors.DefaultSelector() as selector:
            for number, lines in self.connections.items():
                selector.register(lines.connection, selectors.EVENT_READ, number)
            deadline = time.monotonic() + PATIENCE
            while waiting:
                if time.monotonic() > deadline:
                    sys.exit(f"{len(waiting)} agents of {self.nodes} wait for '{word}'")
                for key, _ in selector.select(timeout=1):
                    lines = self.connections[key.data]
                    for line in lines.hear_lines():
                        if line.startswith(b'{"do":"propose"'):
                            proposed = proposed or json.loads(line)["membership"]
                            self.say(key.data, "accept", membership=proposed)
                        elif line.startswith(b'{"do":"%s"' % word.encode()):
                            waiting.discard(key.data)
                            last = last or json.loads(line)
                    if lines.broken:
                        selector.unregister(key.fileobj)
                        if broken:
                            waiting.discard(key.data)
        return last


def measure(nodes: int, folder: str) -> list[str]:
    """Lose a node, and then the leader; returns a row of the table."""
    run_id = uuid.uuid4().hex
    whole = [0, ranges.fold(range(nodes)), "", ""]
    crowd = Crowd(run_id, nodes, dict.fromkeys(range(2, nodes)))
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(2)]
    agents = [
        context.Process(target=agent, args=(party(run_id, nodes, number, folder), ends[number][1]), daemon=True)
        for number in range(2)
    ]
    for process in agents:
        process.start()
    leader = _leader_port(run_id)
    begin = time.monotonic()
    crowd.call(leader, whole, {}, [])
    start = crowd.begin()
    joined = time.monotonic() - begin
    ports = [ends[number][0].recv() for number in range(2)]

    begin, before = time.monotonic(), crowd.said
    crowd.connections.pop(nodes - 1).close()
    crowd.hear("ended")
    noticed = time.monotonic() - begin
    for number in crowd.connections:
        crowd.ready(number, _membership(start), start["story"], [])
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
    crowd.call(ports[1], _membership(start), start["story"], [0])
    crowd.begin()
    moved = time.monotonic() - begin
    agents[1].kill()
    for process in agents:
        process.join()
    return [
        f"{nodes:,}",
        *(f"{seconds:.2f}" for seconds in (joined, noticed, agreed, missed, moved)),
        f"{lines / len(crowd.connections):.1f}",
    ]


def _membership(start: dict[str, Any]) -> list[Any]:
    """What agents know to be agreed when a round has begun."""
    return [start["number"], ranges.fold(start["agents"]), start["token"], ranges.fold(start["active"])]


def _leader_port(run_id: str) -> int:
    from hpc_launch.elastic import locator  # noqa: PLC0415
    from hpc_launch.node import ports  # noqa: PLC0415

    candidates = ports.candidates(run_id, range(20_000, 30_000))
    found = locator.find(run_id, 2, lambda: [(HOST, candidates)], time.monotonic() + PATIENCE, "2")
    if isinstance(found, str):
        sys.exit(found)
    found.lifeline.close()
    return found.port


def _leads(port: int, run_id: str) -> bool:
    """Ask an agent whether it leads."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
        connection.sendall(json.dumps({"run": run_id, "agent": 2, "key": "2", "again": True}).encode() + b"\n")
        with connection.makefile("rb") as stream:
            return bool(json.loads(stream.readline())["leads"])


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
    columns = ["nodes", "met", "loss noticed", "agreed", "leader's loss noticed", "agreed", "lines of a node"]
    write([*columns], ["---:"] * len(columns))
    for nodes in [8] if options.quick else options.nodes:
        folder = tempfile.mkdtemp()
        try:
            write(measure(nodes, folder))
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
