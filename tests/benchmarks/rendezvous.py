"""One rendezvous of many simulated nodes on this machine, hpc-launch's handler beside torch's c10d backend.

`python tests/benchmarks/rendezvous.py` prints a table of times, and of messages or store operations per node.
The nodes are threads in a few processes, agents without workers; the time is from the common start until the last of
them has its rank.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROCESSES = 8
OPERATIONS = ("add", "append", "check", "compare_set", "delete_key", "get", "multi_get", "multi_set", "set", "wait")
HOST = "127.0.0.1"

# ---- one process with some of the nodes

_tally = threading.local()


def counting(kind: type) -> type:
    """Make a class of stores that count what is asked of them, for the thread that asks."""

    def counted(name: str) -> Callable[..., Any]:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            _tally.count = getattr(_tally, "count", 0) + 1
            return getattr(super(made, self), name)(*args, **kwargs)

        return call

    names = [name for name in OPERATIONS if hasattr(kind, name)]
    made = type(f"Counting{kind.__name__}", (kind,), {"counts": True, **{name: counted(name) for name in names}})
    return made


def replace_store(module: Any) -> None:
    """Let a module make stores that count."""
    if not hasattr(module.TCPStore, "counts"):
        module.TCPStore = counting(module.TCPStore)


def slurm_node(node: int, nodes: int, run_id: str, folder: str) -> Callable[[], Any]:
    """Prepare one node's rendezvous by hpc-launch's handler."""
    from hpc_launch.node import port_candidates  # noqa: PLC0415
    from hpc_launch.plan.identity import Identity  # noqa: PLC0415
    from hpc_launch.records.directory import JobDirectory  # noqa: PLC0415
    from hpc_launch.rendezvous.handler import SlurmRendezvous  # noqa: PLC0415
    from hpc_launch.rendezvous.rendezvous_config import RendezvousConfig  # noqa: PLC0415 - only the processes with nodes import torch
    from hpc_launch.rendezvous.transport.handshake import KeyMethod  # noqa: PLC0415
    from hpc_launch.rendezvous.transport.keys import Keyring, Secret  # noqa: PLC0415

    hosts = [f"node{number:04}" for number in range(nodes)]
    config = RendezvousConfig(
        run_id=run_id,
        agent=node,
        agents=nodes,
        host=hosts[node],
        hosts=hosts,
        agents_per_host=(1,) * nodes,
        leader=node == 0,
        leaders=[HOST],
        ports=port_candidates.candidates(run_id, range(20_000, 30_000)),
        workers=1,
        join_timeout=600,
        max_restarts=0,
        local_addr=HOST,
        interface="auto",
        master_port=None,
        job=JobDirectory(Path(folder), ""),
        software={"torch": "same", "script": "same"},
        minimum=nodes,
        identity=Identity(run_id, "program", "train.py", explicit=False),
        keyring=Keyring(run_id, (Secret("benchmark", KeyMethod.SECRET, run_id.encode()),)),
        store_ports=range(20_000, 30_000),
    )
    handler = SlurmRendezvous(config)
    send = handler._client.send

    def counted(message: Any) -> None:
        _tally.count = getattr(_tally, "count", 0) + 1
        send(message)

    handler._client.send = counted  # type: ignore[method-assign]  # messages are counted as they are sent

    def join() -> tuple[int, Any]:
        return handler.next_rendezvous().rank, handler

    return join


def c10d_node(node: int, nodes: int, run_id: str, port: str) -> Callable[[], Any]:
    """Prepare one node's rendezvous by torch's c10d backend, as torchrun configures it for a fixed number of nodes."""
    import torch.distributed  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous import (  # noqa: PLC0415
        RendezvousParameters,
        c10d_rendezvous_backend as c10d,
        dynamic_rendezvous as dynamic,
    )

    replace_store(c10d)
    prefixed = counting(torch.distributed.PrefixStore)  # type: ignore[attr-defined]

    def wrap(handler: Any, store: Any) -> Any:
        return prefixed(f"torch.rendezvous.{run_id}.{handler._state_holder.state.round}", store)

    handlers: Any = dynamic.DynamicRendezvousHandler
    handlers._wrap_store = wrap
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=f"{HOST}:{port}",
        run_id=run_id,
        min_nodes=nodes,
        max_nodes=nodes,
        local_addr=HOST,
        is_host=str(int(node == 0)),
        timeout="600",
    )

    def join() -> tuple[int, Any]:
        backend, store = c10d.create_backend(parameters)
        handler = dynamic.create_handler(store, backend, parameters)
        return handler.next_rendezvous().rank, handler

    return join


BACKENDS = {"hpc-launch": slurm_node, "c10d": c10d_node}


def be_nodes(backend: str, numbers: range, nodes: int, run_id: str, where: str) -> None:
    """Be some of the nodes: say when ready, start when told, tell what it took, and end when told."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    threading.stack_size(1 << 20)
    results: dict[int, dict[str, Any]] = {}
    kept = []

    def run(node: int, join: Callable[[], Any]) -> None:
        try:
            rank, handler = join()
            kept.append(handler)
            results[node] = {"rank": rank, "time": time.time(), "operations": getattr(_tally, "count", 0)}
        except Exception as error:  # noqa: BLE001 - told to whoever measures
            results[node] = {"error": f"{type(error).__name__}: {error}"}

    threads = [
        threading.Thread(target=run, args=(node, BACKENDS[backend](node, nodes, run_id, where)), daemon=True)
        for node in numbers
    ]
    tell("ready")
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(json.dumps(results))
    sys.stdin.readline()
    os._exit(0)


def tell(line: str) -> None:
    """Write a line to whoever measures."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


# ---- who measures


@dataclass(frozen=True)
class Measured:
    """One rendezvous.

    Attributes:
        seconds: from the start until the last node had its rank; None if it did not come so far.
        leader: store operations of the first node.
        others: store operations of each of the others.
        problem: what went wrong.
    """

    seconds: float | None
    leader: int = 0
    others: Sequence[int] = ()
    problem: str = ""


def measure(backend: str, nodes: int, limit: float, folder: str) -> Measured:
    """Let so many nodes meet once."""
    with socket.create_server((HOST, 0)) as free:
        port = str(free.getsockname()[1])
    run_id = uuid.uuid4().hex
    where = folder if backend == "hpc-launch" else port
    # The first node has a process to itself, as it has in a job: what it does for the others is what is measured.
    bounds = [0, *(1 + (nodes - 1) * part // PROCESSES for part in range(PROCESSES + 1))]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(child([backend, str(first), str(last), str(nodes), run_id, where]))
            for first, last in itertools.pairwise(bounds)
            if last > first
        ]

        def give_up() -> None:
            for process in processes:
                process.kill()

        watchdog = threading.Timer(limit, give_up)
        for process in processes:
            listen(process)  # "ready"
        watchdog.start()
        stack.callback(watchdog.cancel)
        began = time.time()
        for process in processes:
            order(process)
        lines = [listen(process) for process in processes]
        for process in processes:
            order(process)
    if not all(lines):
        return Measured(None, problem=f"more than {limit:.0f} s")
    results: dict[int, dict[str, Any]] = {}
    for line in lines:
        results.update({int(node): facts for node, facts in json.loads(line).items()})
    problem = next((facts["error"] for facts in results.values() if "error" in facts), "")
    if problem:
        return Measured(None, problem=problem)
    if sorted(facts["rank"] for facts in results.values()) != list(range(nodes)):
        return Measured(None, problem="wrong ranks")
    seconds = max(facts["time"] for facts in results.values()) - began
    counts = [results[node]["operations"] for node in range(nodes)]
    return Measured(seconds, counts[0], counts[1:])


@contextlib.contextmanager
def child(arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a process with nodes; killed in the end."""
    command = [sys.executable, __file__, "--nodes", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def listen(process: subprocess.Popen[str]) -> str:
    """Read a line; empty when the process was killed."""
    assert process.stdout is not None
    return process.stdout.readline()


def order(process: subprocess.Popen[str]) -> None:
    """Tell it to go on."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        os.write(process.stdin.fileno(), b"\n")  # past the buffer: it may be gone


def spread(values: Sequence[float], form: str) -> str:
    """Write a median with its least and greatest value."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def row(nodes: int, backend: str, found: Sequence[Measured]) -> str:
    """Write a line of the table."""
    good = [one for one in found if one.seconds is not None]
    cells = [str(nodes), backend, f"{len(good)} of {len(found)}"]
    if good:
        others = [count for one in good for count in one.others]
        cells += [
            spread([one.seconds for one in good if one.seconds is not None], ".2f"),
            spread(others, ".0f"),
            spread([one.leader for one in good], ".0f"),
        ]
    else:
        cells += [found[0].problem.partition("\n")[0], "", ""]
    return "| " + " | ".join(cells) + " |"


def isolate() -> None:
    """Go on in a network namespace of one's own, as root: torch's stores ask for the name of every peer's address.

    A name server that does not know it may take seconds to say so; in such a namespace there is none.
    """
    if os.geteuid() != 0 or shutil.which("unshare") is None or "HPC_LAUNCH_BENCHMARK_ISOLATED" in os.environ:
        return
    script = 'ip link set lo up && exec "$@"'
    os.environ["HPC_LAUNCH_BENCHMARK_ISOLATED"] = "1"
    os.execvp("unshare", ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.argv])


def main() -> None:
    """Measure, the two backends in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="16,64,256,1024", help="numbers of nodes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a try is given up (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few nodes, once: see that it works")
    parser.add_argument("--nodes", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nodes:
        backend, first, last, nodes, run_id, where = options.nodes
        be_nodes(backend, range(int(first), int(last)), int(nodes), run_id, where)
    isolate()
    sizes = [2] if options.quick else [int(size) for size in options.sizes.split(",")]
    tell("| nodes | backend | met | seconds, median (min-max) | messages or store operations of a node | first |")
    tell("|---:|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for nodes in sizes:
            compare(nodes, 1 if options.quick else options.repeats, options.limit, folder)


def compare(nodes: int, repeats: int, limit: float, folder: str) -> None:
    """Measure one size and print its lines."""
    found: dict[str, list[Measured]] = {backend: [] for backend in BACKENDS}
    for _ in range(repeats):
        for backend, measured in found.items():
            if measured and measured[-1].seconds is None:
                continue  # once is enough to know that it takes too long
            measured.append(measure(backend, nodes, limit, folder))
    for backend, measured in found.items():
        tell(row(nodes, backend, measured))


if __name__ == "__main__":
    main()
