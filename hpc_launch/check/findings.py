"""What the evidence means: findings, each with its nodes and what to do. Pure.

What most nodes have is taken to be right, and only those that differ are named. Where there is no majority both sides
are named, and nobody is to be left out for it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hpc_launch.check.evidence import ConnectionAttempt, ConnectionResult, Evidence, NodeFacts, Reachability, TorchFacts
from hpc_launch.check.node_pairs import blame
from hpc_launch.text import size

# What a link may be besides up: drivers that cannot tell say unknown (Documentation/networking/operstates.rst).
_GOOD_LINKS = frozenset({"", "up", "unknown"})

# A device of which more than that share is taken before the training starts is somebody else's.
_TAKEN = 0.2

_WORDS = {
    ConnectionResult.REFUSED: "the connection is refused (a firewall that rejects, or another host of that address)",
    ConnectionResult.SILENT: "no answer (a firewall that drops, or a cut network)",
    ConnectionResult.NO_ROUTE: "no route to it",
    ConnectionResult.UNRESOLVED: "the name does not resolve",
    ConnectionResult.LOOPBACK: "that is loopback, this node itself",
    ConnectionResult.STRANGER: "somebody else answers there",
    ConnectionResult.FAILED: "the connection fails",
}


@dataclass(frozen=True)
class CheckLimits:
    """What is still well.

    Attributes:
        skew: seconds between clocks.
        free: bytes that must be free in each directory.
    """

    skew: float = 5.0
    free: int = 100 << 20


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        kind: one word for programs: `lost`, `hangs`, `software`, `clock`, ...
        nodes: where.
        message: what was found, and what was expected.
        remedy: what to do.
        exclude: whether leaving these nodes out would help.
        note: it is said, and is no reason not to start.
    """

    kind: str
    nodes: tuple[str, ...]
    message: str
    remedy: str
    exclude: bool = True
    note: bool = False


def judge_evidence(evidence: Evidence, limits: CheckLimits) -> tuple[Finding, ...]:
    """Say what is wrong, the nodes of each finding in order, the same finding of several nodes once."""
    place = {node: index for index, node in enumerate(evidence.nodes)}
    findings: list[Finding] = []
    for rule in RULES:
        said: dict[Finding, set[str]] = defaultdict(set)
        for finding in rule(evidence, limits):
            said[dataclasses.replace(finding, nodes=())] |= set(finding.nodes)
        for finding, nodes in sorted(said.items(), key=lambda entry: min(map(place.__getitem__, entry[1]))):
            leave = finding.exclude and not finding.note and len(nodes) < len(evidence.nodes)
            ordered = tuple(sorted(nodes, key=place.__getitem__))
            findings.append(dataclasses.replace(finding, nodes=ordered, exclude=leave))
    return tuple(findings)


def excluded(findings: Sequence[Finding], nodes: Sequence[str]) -> tuple[str, ...]:
    """Which of the nodes to leave out; none where that would be all."""
    leave = {node for finding in findings if finding.exclude for node in finding.nodes}
    return tuple(node for node in nodes if node in leave) if len(leave) < len(nodes) else ()


def odd(values: Mapping[str, str], own: str | None = None) -> tuple[str | None, tuple[str, ...]]:
    """What is right, and who differs.

    Args:
        values: by node.
        own: whose word counts where two values are as frequent.

    Returns:
        The value of most nodes and the nodes with another one; None and all nodes where it is undecided.
    """
    counts = Counter(values.values()).most_common()
    if len(counts) <= 1:
        return (counts[0][0] if counts else None), ()
    best = [value for value, count in counts if count == counts[0][1]]
    right = best[0] if len(best) == 1 else next((value for value in best if value == own), None)
    return right, tuple(node for node, value in values.items() if value != right)


# --- the rules


def _lost(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    for node, why in evidence.lost.items():
        yield Finding("lost", (node,), why, "leave the node out, and tell the administrators")


def _silent(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    for node, doing in evidence.silent.items():
        yield Finding("hangs", (node,), f"no answer while {doing}", "leave the node out, and tell the administrators")


def _cannot_run(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    for node, facts in evidence.facts.items():
        if facts.problem:
            yield Finding(
                "context", (node,), facts.problem, "a run would end with this; see 'hpc-launch explain' there"
            )


def _software(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    versions: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for node, facts in evidence.facts.items():
        for name, version in facts.software.items():
            versions[name][node] = version
    for node, torch in evidence.torch.items():
        if not torch.error:
            versions["torch"][node] = torch.version
    for name, values in versions.items():
        own = evidence.own_software.get(name)
        yield from _differing("software", name, values, own, "load the same modules and environment on all nodes")


def _differing(kind: str, name: str, values: Mapping[str, str], own: str | None, remedy: str) -> Iterator[Finding]:
    right, others = odd(values, own)
    if right is None and others:
        said = ", ".join(f"{value} on {_some(values, value)}" for value in dict.fromkeys(values.values()))
        yield Finding(kind, tuple(others), f"{name} differs: {said}", remedy, exclude=False)
        return
    for node in others:
        yield Finding(kind, (node,), f"{name} {values[node]}, the others have {right}", remedy)


def _some(values: Mapping[str, str], value: str) -> str:
    names = [node for node, other in values.items() if other == value]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _directory(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    """Where Slurm cannot go to the working directory it takes another one, and the script is not found there."""
    values = {node: facts.directory for node, facts in evidence.facts.items() if facts.directory}
    remedy = "the working directory is not there: a file system that is not mounted?"
    yield from _differing("directory", "works in", values, None, remedy)


def _clocks(evidence: Evidence, limits: CheckLimits) -> Iterator[Finding]:
    remedy = "the clock is not kept right there (chronyc tracking, ntpq -p): tell the administrators"
    offsets = {node: clock.offset for node, clock in evidence.clocks.items()}
    right = _right_time(offsets, independent=evidence.asker not in evidence.nodes, skew=limits.skew)
    if right is None:
        if offsets:
            apart = max(offsets.values()) - min(offsets.values())
            message = f"their clocks are {apart:.1f} s apart (--max-skew {limits.skew:g})"
            yield Finding("clock", tuple(offsets), message, remedy, exclude=False)
        return
    for node, offset in offsets.items():
        off = offset - right
        if abs(off) > limits.skew + evidence.clocks[node].error:
            way = "ahead of" if off > 0 else "behind"
            yield Finding("clock", (node,), f"its clock is {abs(off):.1f} s {way} the others'", remedy)


def _right_time(offsets: Mapping[str, float], *, independent: bool, skew: float) -> float | None:
    """The median of the largest group of clocks that agree; None where two groups are as large.

    Args:
        offsets: against the clock of whoever asked.
        independent: that is none of these nodes' clocks, so that its own vote counts.
        skew: how far clocks that agree may be apart.
    """
    votes = sorted([*offsets.values(), *([0.0] if independent and offsets else [])])
    groups = [[vote for vote in votes if begin <= vote <= begin + skew] for begin in votes]
    largest = [group for group in groups if len(group) == max(map(len, groups))]
    if not largest or largest[-1][0] - largest[0][0] > skew:
        return None
    return statistics.median(largest[0])


def _places(evidence: Evidence, limits: CheckLimits) -> Iterator[Finding]:
    for node, facts in evidence.facts.items():
        for place in facts.places:
            name = place.path if place.path == place.name else f"{place.path} ({place.name})"
            elsewhere = {"log_dir": "name another place with --log-dir", "TMPDIR": "set TMPDIR to another place"}
            remedy = elsewhere.get(place.name, "tell the administrators")
            if place.error:
                yield Finding("directory", (node,), f"cannot write in {name}: {place.error}", remedy)
            elif place.free is not None and place.free < limits.free:
                left = f"only {size(place.free)} are free in {name} (--min-free {size(limits.free)})"
                yield Finding("directory", (node,), left, f"free some, or {remedy}")


def _cpus(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    """Fewer CPUs than ranks make a run slow; where all nodes have so few it may be meant."""
    few = [node for node, facts in evidence.facts.items() if 0 < facts.cpus < facts.ranks]
    for node in few:
        facts = evidence.facts[node]
        message = f"{facts.ranks} local ranks share {facts.cpus} CPU{'s' * (facts.cpus != 1)}"
        remedy = "ask for more with --cpus-per-task or --cpus-per-gpu"
        yield Finding("cpus", (node,), message, remedy, note=len(few) == len(evidence.facts) > 1)


def _numbers(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    """The ranks of the nodes, which follow from their devices."""
    ranks = {
        node: f"{facts.ranks} rank{'s' * (facts.ranks != 1)} ({facts.source})"
        for node, facts in evidence.facts.items()
        if not facts.problem
    }
    plain = {node: str(facts.ranks) for node, facts in evidence.facts.items() if not facts.problem}
    right, others = odd(plain)
    if right is None and others:
        yield Finding(
            "ranks", others, "the nodes differ in their numbers of ranks", "say --nproc-per-node", exclude=False
        )
        return
    for node in others:
        message = f"{ranks[node]}, the others have {right}"
        yield Finding("ranks", (node,), message, "a device is missing there, or say --nproc-per-node")


def _torch(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    for node, torch in evidence.torch.items():
        if torch.error:
            yield Finding("torch", (node,), f"cannot import torch: {torch.error}", "repair the environment there")
            continue
        facts = evidence.facts[node]
        if torch.count < facts.devices:
            message = (
                f"{facts.devices} devices by {facts.source}, but torch {torch.version} (for {torch.built_for}) sees "
                f"{torch.count or 'none'}"
            )
            remedy = "look at the driver (nvidia-smi, rocm-smi)"
            if torch.built_for == "CPUs":
                remedy = "install a torch that is built for the devices, or set CUDA_VISIBLE_DEVICES= to run on CPUs"
            yield Finding("devices", (node,), message, remedy)
        yield from _devices(node, torch)
    names = {node: _device_names(torch) for node, torch in evidence.torch.items() if torch.usable and torch.count}
    yield from _differing("devices", "devices:", names, None, "ask for one kind with --constraint or --gpus")


def _device_names(torch: TorchFacts) -> str:
    return ", ".join(sorted({device.name for device in torch.devices}))


def _devices(node: str, torch: TorchFacts) -> Iterator[Finding]:
    said: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for rank, device in enumerate(torch.devices):
        if device.error:
            said[f"cannot compute: {device.error}", "tell the administrators (dmesg, nvidia-smi -q)"].append(str(rank))
        elif device.free is not None and device.total and device.free < (1 - _TAKEN) * device.total:
            taken = f"{size(device.total - device.free)} of {size(device.total)} are taken already"
            said[taken, "a process is left over there, or the device is shared: nvidia-smi"].append(str(rank))
    for (what, remedy), ranks in said.items():
        name = "device" if torch.kind != "cpu" else "CPU, rank"
        yield Finding("devices", (node,), f"{name} {', '.join(ranks)}: {what}", remedy)


def _addresses(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    for node, facts in evidence.facts.items():
        if facts.problem:
            continue
        if facts.address_error:
            yield Finding("network", (node,), facts.address_error, "leave the node out, or choose another --interface")
        elif facts.link not in _GOOD_LINKS:
            message = f"{facts.interface} ({facts.address}) is {facts.link}: no carrier"
            yield Finding("network", (node,), message, "its cable, its adapter or its port at the switch")
        elif facts.port is None:
            yield Finding("network", (node,), "no port of the port range is free", "another range: --port-range")


def healthy_network(facts: NodeFacts) -> bool:
    """Whether a node can be called, as far as it knows itself."""
    return not facts.problem and not facts.address_error and facts.link in _GOOD_LINKS and facts.port is not None


def is_open(attempts: Sequence[ConnectionAttempt]) -> bool:
    """Whether a node reaches another by the address that counts."""
    return any(attempt.way is ConnectionResult.OPEN for attempt in attempts if not attempt.name)


def cut_off(reach: Reachability, evidence: Evidence) -> tuple[str, ...]:
    """Who does not reach the first node, though nothing is known to be wrong with it by itself."""
    return tuple(
        node
        for node, attempts in reach.attempts.items()
        if node != reach.leader and not is_open(attempts) and healthy_network(evidence.facts[node])
    )


def suspicious(reach: Reachability, evidence: Evidence) -> bool:
    """Whether it may be the first node that is cut off, rather than those which do not reach it."""
    others = [node for node in reach.attempts if node != reach.leader and healthy_network(evidence.facts[node])]
    return bool(others) and 2 * len(cut_off(reach, evidence)) >= len(others)


def _reaches(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    if not evidence.reaches:
        return
    first, last = evidence.reaches[0], evidence.reaches[-1]
    remedy = "leave the node out; or another network or port: --interface, --port-range"
    if first is not last:
        others = [node for node in first.attempts if node != first.leader]
        if len(others) == 1 and cut_off(last, evidence):
            message = f"they do not reach each other at {_where(first, evidence)}: {_why(first, others[0])}"
            yield Finding("network", (first.leader, *others), message, remedy, exclude=False)
            return
        heard = [node for node in others if node in cut_off(first, evidence)]
        if suspicious(first, evidence) and not suspicious(last, evidence):
            message = f"the others do not reach it at {_where(first, evidence)}: {_why(first, heard[0])}"
            yield Finding("network", (first.leader,), message, remedy)
    for node in cut_off(last, evidence):
        if first is not last and node == first.leader:
            continue
        message = f"does not reach {last.leader} at {_where(last, evidence)}: {_why(last, node)}"
        yield Finding("network", (node,), message, remedy)


def _where(reach: Reachability, evidence: Evidence) -> str:
    interface = evidence.facts[reach.leader].interface
    return f"{reach.address} port {reach.port}" + (f" ({interface})" if interface else "")


def _why(reach: Reachability, node: str) -> str:
    attempt = next(attempt for attempt in reach.attempts[node] if not attempt.name)
    return _WORDS[attempt.way] + (f" ({attempt.detail})" if attempt.way is ConnectionResult.FAILED else "")


def _names(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    """The name of the first node; that nobody resolves it is no obstacle: its addresses are in the job directory."""
    for reach in evidence.reaches[:1]:
        wrong = {}
        named = [node for node, attempts in reach.attempts.items() if any(attempt.name for attempt in attempts)]
        for node in named:
            attempts = [attempt for attempt in reach.attempts[node] if attempt.name]
            if is_open(reach.attempts[node]) and not any(attempt.way is ConnectionResult.OPEN for attempt in attempts):
                wrong[node] = attempts[0]
        everywhere = len(wrong) == len(named) > 1
        for node, attempt in wrong.items():
            what = f"resolves {attempt.name} to {attempt.address}" if attempt.address else f"{attempt.name}"
            message = f"{what}: {_WORDS[attempt.way]}"
            remedy = (
                f"the entry of {attempt.name} in /etc/hosts or DNS there; --master-addr {reach.address} does without it"
            )
            yield Finding("name", (node,), message, remedy, note=everywhere)


def _reductions(evidence: Evidence, _: CheckLimits) -> Iterator[Finding]:
    failed = [reduction for reduction in evidence.reductions if not reduction.ok]
    if not failed:
        return
    first = failed[0]
    hint = "run with NCCL_DEBUG=INFO" if first.backend != "gloo" else "look at the network between them"
    if any(reduction.ok for reduction in evidence.reductions):
        hint = f"over gloo it works: look at the devices, their links and the fabric; {hint}"
    what = f"all-reduce over {first.backend}"
    example = next(iter(first.errors.values()))
    failing = [pair for pair, error in evidence.pairs.items() if error]
    nodes, pairs = blame(evidence.pairs)
    if len(failing) == len(evidence.pairs) > 1 or (len(first.nodes) == 1):
        yield Finding("all-reduce", first.nodes, f"{what} fails: {example}", hint)
        return
    for node in nodes:
        error = next(evidence.pairs[pair] for pair in failing if node in pair)
        yield Finding("all-reduce", (node,), f"{what} fails with each of the others: {error}", hint)
    for pair in pairs:
        yield Finding(
            "all-reduce", pair, f"{what} fails between these two: {evidence.pairs[pair]}", hint, exclude=False
        )
    if not failing:
        message = f"{what} of all {first.ranks} ranks fails, though it works between any two nodes: {example}"
        yield Finding("all-reduce", first.nodes, message, hint, exclude=False)


RULES: tuple[Callable[[Evidence, CheckLimits], Iterator[Finding]], ...] = (
    _lost,
    _silent,
    _cannot_run,
    _software,
    _addresses,
    _reaches,
    _names,
    _clocks,
    _directory,
    _places,
    _cpus,
    _numbers,
    _torch,
    _reductions,
)
