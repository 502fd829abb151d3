"""How a check is told: to people, as a table with the findings below it, and to programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc_launch import codec, hostlist
from hpc_launch.check.evidence import Evidence, NodeFacts, TorchFacts
from hpc_launch.check.findings import CheckLimits, Finding, excluded, is_open
from hpc_launch.text import size

_COLUMNS = ("nodes", "Python", "torch", "ranks on", "CPUs", "network", "clock", "directories")


def check_as_text(evidence: Evidence, findings: Sequence[Finding], limits: CheckLimits) -> str:
    """The whole for people: nodes that are alike in one row, then what is wrong, and what to do."""
    lines = [*_table(evidence, limits), ""]
    lines += [f"all-reduce: {line}" for line in _reductions(evidence)]
    problems = [finding for finding in findings if not finding.note]
    for finding in findings:
        where = hostlist.fold(finding.nodes) if finding.nodes else "all"
        lines += [f"{'note: ' if finding.note else ''}{where}: {finding.message}", f"    -> {finding.remedy}"]
    count = len(evidence.nodes)
    if not problems:
        lines.append(f"all is well on {_nodes(count)}, seen in {evidence.seconds:.1f} s")
    else:
        bad = dict.fromkeys(node for finding in problems for node in finding.nodes)
        lines.append(f"something is wrong on {len(bad)} of {_nodes(count)}, seen in {evidence.seconds:.1f} s")
    if leave := excluded(findings, evidence.nodes):
        lines.append(f"to leave them out: --exclude={hostlist.fold(leave)}")
    return "\n".join(lines)


def _nodes(count: int) -> str:
    return f"{count} node{'s' * (count != 1)}"


def check_as_dict(evidence: Evidence, findings: Sequence[Finding]) -> dict[str, Any]:
    """The whole for programs."""
    leave = excluded(findings, evidence.nodes)
    return {
        "ok": all(finding.note for finding in findings),
        "job_id": evidence.job_id,
        "seconds": round(evidence.seconds, 3),
        "exclude": hostlist.fold(leave) if leave else "",
        "findings": codec.plain(findings),
        "nodes": {node: _node(evidence, node) for node in evidence.nodes},
        "reductions": codec.plain(evidence.reductions),
        "pairs": [{"nodes": pair, "error": error} for pair, error in evidence.pairs.items()],
    }


def _node(evidence: Evidence, node: str) -> dict[str, Any]:
    facts, torch, clock = evidence.facts.get(node), evidence.torch.get(node), evidence.clocks.get(node)
    return {
        "lost": evidence.lost.get(node, ""),
        "silent": evidence.silent.get(node, ""),
        "clock": codec.plain(clock),
        "facts": codec.plain(facts),
        "torch": codec.plain(torch),
        "reach": {
            reach.leader: codec.plain(reach.attempts[node]) for reach in evidence.reaches if node in reach.attempts
        },
    }


def _table(evidence: Evidence, limits: CheckLimits) -> list[str]:
    rows: dict[tuple[str, ...], list[str]] = {}
    for node in evidence.nodes:
        rows.setdefault(_cells(evidence, node, limits), []).append(node)
    table = [_COLUMNS, *((hostlist.fold(nodes), *cells) for cells, nodes in rows.items())]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _cells(evidence: Evidence, node: str, limits: CheckLimits) -> tuple[str, ...]:
    """What is said of a node besides its name; what is not known is a dash."""
    facts, torch = evidence.facts.get(node), evidence.torch.get(node)
    return (
        facts.software.get("Python", "-") if facts else "-",
        _version(torch),
        _ranks(facts, torch),
        str(facts.cpus) if facts else "-",
        _network(evidence, node),
        _clock(evidence, node, limits),
        _places(facts, limits),
    )


def _version(torch: TorchFacts | None) -> str:
    if torch is None:
        return "-"
    return "no" if torch.error else torch.version


def _ranks(facts: NodeFacts | None, torch: TorchFacts | None) -> str:
    if facts is None or facts.problem:
        return "-"
    kind = "CPU"
    if torch is not None and torch.kind != "cpu":
        kind = ", ".join(sorted({device.name for device in torch.devices if device.name})) or torch.kind
    return f"{facts.ranks} x {kind}"


def _network(evidence: Evidence, node: str) -> str:
    facts = evidence.facts.get(node)
    if facts is None or facts.problem:
        return "-"
    if not facts.interface:
        return "-" if facts.address_error else facts.address
    good = [is_open(reach.attempts[node]) for reach in evidence.reaches if node in reach.attempts]
    return facts.interface + ("" if not good or any(good) else " cut")


def _clock(evidence: Evidence, node: str, limits: CheckLimits) -> str:
    clock = evidence.clocks.get(node)
    if clock is None:
        return "-"
    return "ok" if abs(clock.offset) <= limits.skew else f"{clock.offset:+.1f} s"


def _places(facts: NodeFacts | None, limits: CheckLimits) -> str:
    if facts is None or not facts.places:
        return "-"
    bad = [place.name for place in facts.places if place.error or (place.free or 0) < limits.free]
    return f"not {', '.join(bad)}" if bad else f"{size(min(place.free or 0 for place in facts.places))} free"


def _reductions(evidence: Evidence) -> list[str]:
    lines = []
    for reduction in evidence.reductions:
        what = f"{reduction.ranks} ranks on {_nodes(len(reduction.nodes))} over {reduction.backend}"
        lines.append(f"{what}: {f'{reduction.seconds:.1f} s' if reduction.ok else 'fails'}")
    return lines
