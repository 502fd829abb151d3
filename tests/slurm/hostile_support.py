"""What the tests of hostile neighbours share: a run under attack at each of its phases, and what came of it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.cluster import Cluster
from tests.slurm.losses_support import Run
from tests.slurm.steps_support import DEADLINE
from tests.support import wait_for

CHECKOUT = Path(__file__).parents[2]

# Some ordinary user, neither root nor whoever runs the tests.
ATTACKER = 12345

PORTS = range(20000, 20032)
"""The ports of the run under attack: so few that an attacker can try them all."""

# A run under attack may take so long to do what it does in a few seconds otherwise.
_SECONDS = 60.0

T = TypeVar("T")

# The kernel counts CPU time in these.
_TICKS = os.sysconf("SC_CLK_TCK")
_LISTENS = "0A"


@dataclass(frozen=True)
class Agent:
    """The agent of a node, as the machine shows it."""

    pid: int

    @property
    def memory(self) -> int:
        """What it has in memory, in MB."""
        return self._size("VmRSS")

    @property
    def peak(self) -> int:
        """The most that it had in memory since `forget_peak`, in MB."""
        return self._size("VmHWM")

    def forget_peak(self) -> None:
        """Begin to look for the most that it has in memory."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def cpu(self) -> float:
        """The CPU time of its process so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def limit_descriptors(self, number: int) -> None:
        """Let it have fewer descriptors."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (number, number))

    def _size(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found, name
        return int(found[1]) >> 10


@dataclass(frozen=True)
class Listener:
    """A socket that listens on a node.

    Attributes:
        address: where, as the kernel writes it down (of IPv4 and IPv6).
        port: on which port.
        inode: of the socket.
    """

    address: str
    port: int
    inode: str


def listeners_of(pid: int) -> list[Listener]:
    """The sockets of a process that listen."""
    mine = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            mine.add(str(descriptor.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTENS and f"socket:[{fields[9]}]" in mine:
                found.append(Listener(address, int(port, 16), fields[9]))
    return found


def readable(address: str) -> str:
    """An address as people write it: the kernel shows words of four bytes in the order of the machine."""
    words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
    found = ipaddress.ip_address(b"".join(words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def agent_on(cluster: Cluster, node: str) -> Agent | None:
    """The agent of a node; None as long as none listens there."""
    for pid in sorted(cluster.processes(node)):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            ours = f"Uid:\t{ATTACKER}\t" not in status
            if ours and any(one.port in PORTS for one in listeners_of(pid)):
                return Agent(pid)
    return None


# ---- the attacker


@dataclass
class Attack:
    """An attack by another user, while it goes on.

    Attributes:
        node: from where.
        process: the attacker.
        reports: what it got so far.
    """

    node: str
    process: subprocess.Popen[str]
    reports: list[dict[str, Any]]

    def begun(self) -> dict[str, Any]:
        """Wait until it has found its targets; returns what it says of them."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the attacker on {self.node} did not begin"
        found: dict[str, Any] = json.loads(line)
        assert found["uid"] == ATTACKER, found
        return found

    def ended(self) -> list[dict[str, Any]]:
        """Wait for its end; returns what it got."""
        said, _ = self.process.communicate(timeout=DEADLINE)
        self.reports += [json.loads(line) for line in said.splitlines()]
        assert self.process.returncode == 0, f"the attacker on {self.node} failed"
        return self.reports


@contextlib.contextmanager
def attacker(cluster: Cluster, node: str, place: str, *arguments: str) -> Iterator[Attack]:
    """Start an attacker on a node.

    Args:
        cluster: Where.
        node: The attacker's.
        place: Of the run.
        arguments: What it does.
    """
    command = [sys.executable, "-m", "tests.hostile", f"--uid={ATTACKER}", f"--place={place}", *arguments]
    with cluster.popen(command, node=node, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Attack(node, process, [])
        finally:
            process.kill()


def squatter(cluster: Cluster, node: str, place: str, run_id: str) -> contextlib.AbstractContextManager[Attack]:
    """Start somebody who listens on the ports that a run tries first, on the node of its leader."""
    where = [f"--address={address_of(cluster, node)}", f"--ports={PORTS.start}-{PORTS.stop - 1}"]
    return attacker(cluster, node, place, "listeners", *where, f"--run={run_id}")


def strangers(
    cluster: Cluster, node: str, place: str, targets: Sequence[str], *attacks: str
) -> contextlib.AbstractContextManager[Attack]:
    """Start somebody who attacks the listeners of agents."""
    return attacker(cluster, node, place, "strangers", f"--targets={','.join(targets)}", *attacks)


def attack(cluster: Cluster, nodes: Sequence[str], place: str, targets: Sequence[str], *attacks: str) -> list[Any]:
    """Attack from several nodes at once; returns what the attackers got, when all have ended."""
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(strangers(cluster, node, place, targets, *attacks)) for node in nodes]
        for one in running:
            one.begun()
        return [report for one in running for report in one.ended()]


def address_of(cluster: Cluster, node: str) -> str:
    """The address of a node."""
    return f"{cluster.config.networks[0]}.{cluster.nodes.index(node) + 11}"


def targets_on(cluster: Cluster, *nodes: str) -> list[str]:
    """Where agents listen, as address and port."""
    agents = [(node, agent_on(cluster, node)) for node in nodes]
    return [
        f"{address_of(cluster, node)}:{port}"
        for node, agent in agents
        if agent is not None
        for port in sorted({one.port for one in listeners_of(agent.pid)} & {*PORTS})
    ]


# ---- a run


def next_job(cluster: Cluster) -> int:
    """The id that the next job will have."""
    found = re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", cluster.run(["scontrol", "show", "config"]).stdout)
    assert found
    return int(found[1])


def event_names(job: Run, nodes: Sequence[str]) -> dict[str, list[str]]:
    """The events of each node's records, in order."""
    return {node: [one["event"] for one in job.events(node)] for node in nodes}


def records(job: Run) -> str:
    """All that a run has written down of itself, but not the output of its workers."""
    paths = [path for path in sorted((job.folder / "logs").rglob("*.json*")) if path.is_file()]
    return "\n".join(path.read_text(errors="replace") for path in paths)


def until(job: Run, look: Callable[[], T]) -> T:
    """Wait for something that a run does; it fails as soon as the run has ended without it."""

    def found() -> T:
        ended = job.process.poll()
        value = look()
        assert value or ended is None, f"it has ended with {ended}: {job.describe()}"
        return value

    return wait_for(found, _SECONDS, job.describe)


def listens(cluster: Cluster, job: Run, node: str) -> Agent:
    """Wait until the agent of a node listens."""
    found = until(job, lambda: agent_on(cluster, node))
    assert found is not None
    return found


def trains(job: Run, attempt: int, size: int) -> list[str]:
    """Wait until so many ranks of an attempt have heard of each other; returns their nodes, by rank."""

    def hosts() -> list[str]:
        with contextlib.suppress(ValueError):  # a line that is being written
            said = [facts for _, facts in sorted(job.so_far.said(attempt).items())]
            return [one["host"] for one in said] if len(said) == size else []
        return []

    return until(job, hosts)
