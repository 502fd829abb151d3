"""What was found out about the nodes: values, without a judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True)
class ClockReading:
    """A node's clock.

    Attributes:
        offset: seconds by which it is ahead of the clock of whoever asked.
        error: how far that can be wrong, in seconds: half the time of the question and the answer.
    """

    offset: float
    error: float


@dataclass(frozen=True)
class CheckedDirectory:
    """A directory, as seen on one node.

    Attributes:
        name: what it is for: `log_dir`, `TMPDIR` or `/dev/shm`.
        path: where it is.
        free: free bytes for this user; None where they cannot be told.
        error: why it cannot be written; empty if it can.
    """

    name: str
    path: str
    free: int | None = None
    error: str = ""


@dataclass(frozen=True)
class NodeFacts:
    """What one node is, as far as it can be said without torch.

    Attributes:
        software: versions by name, of what has to be the same on all nodes.
        address: under which the other nodes reach it; empty where there is none.
        address_error: why there is none.
        interface: the interface that has the address.
        link: what the kernel says of that interface: `up`, `down`, `lowerlayerdown`, `unknown`.
        port: where the probe listens, a port that a run would take; None where none is free.
        leaders: the names under which the other nodes look for this node if it is the first.
        cpus: how many it may use.
        ranks: how many a run would start on it.
        devices: how many are visible by the masks or the driver.
        source: where that is known from.
        directory: in which Slurm has started the probe.
        places: other directories.
        problem: why a run could not start there: the message of its error; empty if it could.
    """

    software: Mapping[str, str]
    address: str = ""
    address_error: str = ""
    interface: str = ""
    link: str = ""
    port: int | None = None
    leaders: tuple[str, ...] = ()
    cpus: int = 0
    ranks: int = 1
    devices: int = 0
    source: str = ""
    directory: str = ""
    places: tuple[CheckedDirectory, ...] = ()
    problem: str = ""


class ConnectionResult(str, Enum):
    """What becomes of a connection."""

    OPEN = "open"
    REFUSED = "refused"
    SILENT = "no answer"
    NO_ROUTE = "no route"
    UNRESOLVED = "unresolved"
    LOOPBACK = "loopback"
    STRANGER = "stranger"
    FAILED = "failed"


@dataclass(frozen=True)
class ConnectionAttempt:
    """One attempt of a node to reach another.

    Attributes:
        name: the name that was looked up; empty where the address itself was given.
        address: what was called; empty where the name has none.
        way: what became of it.
        detail: more about it, in the system's words.
    """

    name: str
    address: str
    way: ConnectionResult
    detail: str = ""


@dataclass(frozen=True)
class Attempts:
    """The attempts of a node to reach another, as its probe tells them."""

    attempts: tuple[ConnectionAttempt, ...]


@dataclass(frozen=True)
class Reachability:
    """How the nodes reach one of them.

    Attributes:
        leader: which.
        address, port: under which it says it can be reached.
        attempts: theirs, by node.
    """

    leader: str
    address: str
    port: int
    attempts: Mapping[str, tuple[ConnectionAttempt, ...]]


@dataclass(frozen=True)
class Device:
    """One device that was used, or the CPU where there is none.

    Attributes:
        name: what the driver calls it.
        error: why it cannot be used; empty if it can.
        free, total: its memory in bytes, as it was before anything was done; None where unknown.
    """

    name: str = ""
    error: str = ""
    free: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class TorchFacts:
    """What torch says on one node.

    Attributes:
        version: of torch.
        built_for: `CUDA 12.4`, `ROCm 6.1`, `CPUs`.
        error: why it cannot be imported; empty if it can.
        kind: `cuda`, `xpu` or `cpu`: where the ranks of this node would compute.
        count: how many devices torch sees, in all processes together where each is shown its own only.
        devices: one per rank.
    """

    version: str = ""
    built_for: str = ""
    error: str = ""
    kind: str = "cpu"
    count: int = 0
    devices: tuple[Device, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether ranks can run here."""
        return not self.error and not any(device.error for device in self.devices)


@dataclass(frozen=True)
class Reduction:
    """An all-reduce.

    Attributes:
        backend: `gloo`, `nccl`, `xccl`.
        nodes: who took part.
        ranks: how many ranks they had.
        seconds: from the word to begin until the last node was done.
        errors: by node, for those that did not get the right sum; empty if all did.
    """

    backend: str
    nodes: tuple[str, ...]
    ranks: int
    seconds: float
    errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all ranks got the right sum."""
        return not self.errors


@dataclass(frozen=True)
class Evidence:
    """All that was found out.

    Attributes:
        job_id: the job.
        nodes: those that were to be looked at, in their order.
        asker: the node on which the command ran; empty on a login node.
        own_software: versions of what the command itself runs with.
        lost: nodes without a probe, or whose probe ended, and what is known of the reason.
        silent: nodes whose probe did not answer in time, and what it was doing.
        clocks, facts, torch: by node.
        reaches: how the nodes reach the first of them, and if that was not enough another one.
        reductions: the all-reduce over all ranks, and over gloo where it failed on devices.
        pairs: the all-reduces between two nodes; each with its error, empty if it went well.
        seconds: how long all of it took.
    """

    job_id: str
    nodes: tuple[str, ...]
    asker: str = ""
    own_software: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    clocks: Mapping[str, ClockReading] = field(default_factory=dict)
    facts: Mapping[str, NodeFacts] = field(default_factory=dict)
    torch: Mapping[str, TorchFacts] = field(default_factory=dict)
    reaches: tuple[Reachability, ...] = ()
    reductions: tuple[Reduction, ...] = ()
    pairs: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seconds: float = 0.0
