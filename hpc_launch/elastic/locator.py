"""How agents find the leader's store: a small server that answers only those of its own run.

The leader listens on the first free port of the run's candidates; the others try the same candidates, on every name
under which the leader may be known, and believe nobody who does not answer with the run's name. So a foreign program on
one of the ports, be it another job's store, is never joined, and costs one refused conversation.

The conversation is one line of JSON each way: `{"run", "agent", "key"}` and `{"run", "port"}`. The key tells apart two
runs with the same name (two launches with the same host list): each run takes every agent number once.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_launch.node import network

# Long enough for a busy node to answer, short enough that a silent stranger costs little.
_ANSWER_SECONDS = 3.0
_CONNECT_SECONDS = 3.0
_LONGEST_LINE = 4096

# What a line that is not ours can do to json and to those who look into it.
_NONSENSE = (ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class Found:
    """Where the store is, and by which addresses the two nodes reach each other."""

    leader_address: str
    own_address: str
    port: int


def listen(port: int) -> socket.socket:
    """A listening socket on all addresses, IPv4 and IPv6 where there is both.

    Raises:
        OSError: when the port is taken.
    """
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


class Locator:
    """The leader's server. It runs in threads of its own until `close`."""

    def __init__(self, run_id: str, listener: socket.socket, store_port: int) -> None:
        self.port: int = listener.getsockname()[1]
        taken: dict[int, str] = {}
        lock = threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            timeout = _ANSWER_SECONDS

            def handle(self) -> None:
                with contextlib.suppress(OSError, *_NONSENSE):
                    asked = json.loads(self.rfile.readline(_LONGEST_LINE))
                    with lock:
                        mine = asked["run"] == run_id and taken.setdefault(asked["agent"], asked["key"]) == asked["key"]
                    answer = {"run": run_id, "port": store_port} if mine else {"run": ""}
                    self.wfile.write(json.dumps(answer).encode() + b"\n")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A stranger who hangs up is no error."""

        self._server = Server(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="locator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def find(
    run_id: str,
    agent: int,
    places: Callable[[], Sequence[tuple[str, Sequence[int]]]],
    deadline: float,
    key: str = "",
) -> Found | str:
    """Look for the leader until it answers.

    Args:
        run_id: the name of the run.
        agent: the number of this agent.
        places: gives the names or addresses to try, each with its ports; asked again in each turn.
        deadline: when to give up (time.monotonic).
        key: tells this agent from one with the same number in a run with the same name.

    Returns:
        What was found, or, after the deadline, what was seen instead.
    """
    key = key or uuid.uuid4().hex
    pause = 0.05
    while True:
        seen = []
        for name, ports in places():
            addresses = (name,) if network.is_address(name) else network.resolve(name)
            if not addresses:
                seen.append(f"{name} does not resolve")
            for address in addresses:
                answer = _try_ports(run_id, agent, key, address, ports)
                if isinstance(answer, Found):
                    return answer
                seen.append(f"{name} ({address}): {answer}" if name != address else f"{address}: {answer}")
        if time.monotonic() > deadline:
            return "; ".join(seen)
        # Jitter keeps a thousand nodes from knocking in step.
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        pause = min(pause * 1.5, 1.0)


def _try_ports(run_id: str, agent: int, key: str, address: str, ports: Sequence[int]) -> Found | str:
    strangers = 0
    for port in ports:
        try:
            answer = _ask(run_id, agent, key, address, port)
        except ConnectionRefusedError:
            continue
        except TimeoutError:
            return f"no answer on port {port} (filtered, or the node is down)"
        except OSError as error:
            return str(error.strerror or error)
        if answer is not None:
            return answer
        strangers += 1
    return "nobody listens" + (f", but {strangers} ports belong to others" if strangers else "")


def _ask(run_id: str, agent: int, key: str, address: str, port: int) -> Found | None:
    """Ask one port; None when whoever is there is not of this run."""
    with socket.create_connection((address, port), timeout=_CONNECT_SECONDS) as connection:
        # A connection from a port to itself happens on the leader's node when nobody listens (simultaneous open).
        if connection.getsockname()[:2] == connection.getpeername()[:2]:
            return None
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.sendall(json.dumps({"run": run_id, "agent": agent, "key": key}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                answer = json.loads(stream.readline(_LONGEST_LINE))
            if answer["run"] != run_id:
                return None
            return Found(address, connection.getsockname()[0], int(answer["port"]))
        except (OSError, *_NONSENSE):
            return None  # connected, but not to one of ours: it said something else, nothing, or hung up
