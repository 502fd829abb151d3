"""What the evidence of a check means: who is named, and who is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from hpc_launch.check import check_text, node_pairs
from hpc_launch.check.evidence import (
    CheckedDirectory,
    ClockReading,
    ConnectionAttempt,
    ConnectionResult,
    Device,
    Evidence,
    NodeFacts,
    Reachability,
    Reduction,
    TorchFacts,
)
from hpc_launch.check.findings import CheckLimits, Finding, excluded, judge_evidence, odd
from tests.support import lines_mention, mentions

NODES = ("gpu001", "gpu002", "gpu003", "gpu004")
FACTS = NodeFacts(
    software={"Python": "3.11.7", "hpc-launch": "1.0"},
    address="10.0.0.1",
    interface="ib0",
    link="up",
    port=20001,
    cpus=16,
    ranks=4,
    devices=4,
    source="CUDA_VISIBLE_DEVICES=0,1,2,3",
    directory="/home/ada",
    places=(CheckedDirectory("log_dir", "/scratch/logs", 1 << 40), CheckedDirectory("/dev/shm", "/dev/shm", 1 << 36)),
)
DEVICE = Device("H100", "", 79 << 30, 80 << 30)
TORCH = TorchFacts("2.5.1+cu124", "CUDA 12.4", "", "cuda", 4, (DEVICE,) * 4)
OPEN = (
    ConnectionAttempt("", "10.0.0.1", ConnectionResult.OPEN),
    ConnectionAttempt("gpu001", "10.0.0.1", ConnectionResult.OPEN),
)


def well(nodes: tuple[str, ...] = NODES) -> Evidence:
    """Return what is found where all is well."""
    return Evidence(
        job_id="12",
        nodes=nodes,
        clocks=dict.fromkeys(nodes, ClockReading(0.01, 0.001)),
        facts=dict.fromkeys(nodes, FACTS),
        torch=dict.fromkeys(nodes, TORCH),
        reaches=(Reachability("gpu001", "10.0.0.1", 20001, dict.fromkeys(nodes, OPEN)),),
        reductions=(Reduction("nccl", nodes, 4 * len(nodes), 0.5),),
    )


def facts(changes: Mapping[str, NodeFacts], nodes: tuple[str, ...] = NODES) -> Evidence:
    """Return that with the facts of some nodes changed."""
    evidence = well(nodes)
    return dataclasses.replace(evidence, facts={**evidence.facts, **changes})


def torches(changes: Mapping[str, TorchFacts], nodes: tuple[str, ...] = NODES) -> Evidence:
    """Return that with the torch of some nodes changed."""
    evidence = well(nodes)
    return dataclasses.replace(evidence, torch={**evidence.torch, **changes})


def reached(leader: str, bad: Mapping[str, ConnectionResult], nodes: tuple[str, ...] = NODES) -> Reachability:
    """Return how nodes reach one of them when some do not."""
    return Reachability(
        leader,
        "10.0.0.1",
        20001,
        {node: (ConnectionAttempt("", "10.0.0.1", bad[node]),) if node in bad else OPEN for node in nodes},
    )


def findings(evidence: Evidence, limits: CheckLimits | None = None) -> tuple[Finding, ...]:
    return judge_evidence(evidence, limits or CheckLimits())


def test_where_all_is_well_nothing_is_found() -> None:
    """Four nodes that are alike have nothing to be said of."""
    assert findings(well()) == ()


CASES = {
    "lost": (dataclasses.replace(well(), lost={"gpu003": "Slurm cannot"}), "Slurm cannot"),
    "hangs": (dataclasses.replace(well(), silent={"gpu003": "importing torch"}), "importing torch"),
    "Python": (
        facts({"gpu003": dataclasses.replace(FACTS, software={"Python": "3.12.1", "hpc-launch": "1.0"})}),
        "Python 3.12.1 3.11.7",
    ),
    "torch": (
        torches({"gpu003": dataclasses.replace(TORCH, version="2.6.0")}),
        "torch 2.6.0 2.5.1+cu124",
    ),
    "no torch": (torches({"gpu003": TorchFacts(error="ImportError: libfoo")}), "torch ImportError: libfoo"),
    "device": (
        torches({"gpu003": dataclasses.replace(TORCH, devices=(DEVICE, Device(error="ECC"), DEVICE, DEVICE))}),
        "1 ECC",
    ),
    "taken": (
        torches({"gpu003": dataclasses.replace(TORCH, devices=(dataclasses.replace(DEVICE, free=20 << 30),) * 4)}),
        "0 1 2 3 60 GiB 80 GiB",
    ),
    "other devices": (
        torches({"gpu003": dataclasses.replace(TORCH, devices=(dataclasses.replace(DEVICE, name="A100"),) * 4)}),
        "A100 H100",
    ),
    "a device less": (
        facts({"gpu003": dataclasses.replace(FACTS, ranks=3, devices=3, source="CUDA_VISIBLE_DEVICES=0,1,2")}),
        "3 CUDA_VISIBLE_DEVICES=0,1,2 4",
    ),
    "unseen devices": (
        torches({"gpu003": dataclasses.replace(TORCH, kind="cpu", count=0, devices=(Device(),) * 4)}),
        "torch 2.5.1+cu124 CUDA 12.4",
    ),
    "clock": (
        dataclasses.replace(well(), clocks={**well().clocks, "gpu003": ClockReading(-60.0, 0.1)}),
        "clock 60.0",
    ),
    "read-only": (
        facts(
            {"gpu003": dataclasses.replace(FACTS, places=(CheckedDirectory("log_dir", "/logs", 1 << 40, "Read-only"),))}
        ),
        "/logs log_dir Read-only",
    ),
    "full": (
        facts({"gpu003": dataclasses.replace(FACTS, places=(CheckedDirectory("/dev/shm", "/dev/shm", 1 << 20),))}),
        "1 MiB /dev/shm --min-free 100 MiB",
    ),
    "working directory": (
        facts({"gpu003": dataclasses.replace(FACTS, directory="/tmp")}),
        "/tmp /home/ada",
    ),
    "few CPUs": (facts({"gpu003": dataclasses.replace(FACTS, cpus=1)}), "4 1 CPU"),
    "no interface": (
        facts({"gpu003": dataclasses.replace(FACTS, address="", address_error="--interface: no 'ib0'")}),
        "--interface 'ib0'",
    ),
    "no carrier": (facts({"gpu003": dataclasses.replace(FACTS, link="down")}), "ib0 10.0.0.1"),
    "no port": (facts({"gpu003": dataclasses.replace(FACTS, port=None)}), "port"),
    "context": (facts({"gpu003": NodeFacts(software=FACTS.software, problem="no way")}), "no way"),
    "silent": (
        dataclasses.replace(well(), reaches=(reached("gpu001", {"gpu003": ConnectionResult.SILENT}),)),
        "gpu001 10.0.0.1 20001 ib0",
    ),
    "refused": (
        dataclasses.replace(well(), reaches=(reached("gpu001", {"gpu003": ConnectionResult.REFUSED}),)),
        "refused",
    ),
    "no route": (
        dataclasses.replace(well(), reaches=(reached("gpu001", {"gpu003": ConnectionResult.NO_ROUTE}),)),
        "route",
    ),
}

KINDS = {
    "lost": "lost",
    "hangs": "hangs",
    **dict.fromkeys(("Python", "torch"), "software"),
    "no torch": "torch",
    **dict.fromkeys(("device", "taken", "other devices", "unseen devices"), "devices"),
    "a device less": "ranks",
    "clock": "clock",
    **dict.fromkeys(("read-only", "full", "working directory"), "directory"),
    "few CPUs": "cpus",
    **dict.fromkeys(("no interface", "no carrier", "no port", "silent", "refused", "no route"), "network"),
    "context": "context",
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_node_is_named_alone(case: str) -> None:
    """Whatever is wrong with one node of four is one finding, which names it and leaves it out."""
    evidence, words = CASES[case]
    (finding,) = findings(evidence)

    assert (finding.nodes, finding.exclude, finding.note) == (("gpu003",), True, False)
    assert finding.kind == KINDS[case]
    assert mentions(finding.message, words)
    assert finding.remedy
    assert excluded((finding,), NODES) == ("gpu003",)


@pytest.mark.parametrize("case", CASES)
def test_every_case_can_be_told(case: str) -> None:
    """The text names the node in a line and ends with what to paste; the JSON can be read."""
    evidence, words = CASES[case]
    found = findings(evidence)
    lines = check_text.check_as_text(evidence, found, CheckLimits()).splitlines()

    assert any(line.startswith("gpu003: ") and mentions(line, words) for line in lines)
    assert lines_mention(lines[-2:], "1 4 0.0", "--exclude=gpu003")
    told = json.loads(json.dumps(check_text.check_as_dict(evidence, found)))
    assert (told["ok"], told["exclude"]) == (False, "gpu003")


@pytest.mark.parametrize("case", CASES)
def test_every_kind_is_documented(case: str) -> None:
    """docs/check.md tells programs which kinds there are."""
    page = (Path(__file__).parents[2] / "docs/check.md").read_text(encoding="utf-8")
    (finding,) = findings(CASES[case][0])

    assert f"`{finding.kind}`" in page.partition("`kind` is one of")[2].partition("\n\n")[0]


def test_nodes_that_are_alike_share_a_row() -> None:
    """The table has one row for all nodes of which the same is said."""
    lines = check_text.check_as_text(CASES["clock"][0], (), CheckLimits()).splitlines()

    assert [line.split()[0] for line in lines[:3]] == ["nodes", "gpu[001-002,004]", "gpu003"]
    assert "-60.0 s" in lines[2]


def test_the_same_of_several_nodes_is_said_once() -> None:
    """Two nodes with the same trouble are one line."""
    wrong = dataclasses.replace(FACTS, cpus=1)
    (finding,) = findings(facts({"gpu002": wrong, "gpu004": wrong}))

    assert finding.nodes == ("gpu002", "gpu004")


def test_few_cpus_everywhere_are_a_note() -> None:
    """What all nodes lack was perhaps not asked for; it is said, and the run may start."""
    (finding,) = findings(facts(dict.fromkeys(NODES, dataclasses.replace(FACTS, cpus=1))))

    assert (finding.nodes, finding.note, finding.exclude) == (NODES, True, False)


def test_what_is_wrong_everywhere_leaves_nobody_out() -> None:
    """To exclude all nodes would be no help."""
    (finding,) = findings(torches(dict.fromkeys(NODES, TorchFacts(error="ImportError: libfoo"))))

    assert (finding.nodes, finding.exclude, finding.note) == (NODES, False, False)
    assert excluded((finding,), NODES) == ()


@pytest.mark.parametrize(("own", "named"), [("2.6", ("gpu001",)), ("2.5", ("gpu002",)), ("2.4", ("gpu001", "gpu002"))])
def test_of_two_nodes_the_one_like_this_is_right(own: str, named: tuple[str, ...]) -> None:
    """Where there is no majority the versions of the command itself decide, and if they cannot both are named."""
    two = NODES[:2]
    versions = {"gpu001": "2.5", "gpu002": "2.6"}
    evidence = torches({node: dataclasses.replace(TORCH, version=version) for node, version in versions.items()}, two)
    (finding,) = findings(dataclasses.replace(evidence, own_software={"torch": own}))

    assert named == finding.nodes
    assert finding.exclude == (len(named) == 1)


@pytest.mark.parametrize(("asker", "named"), [("", ("gpu002",)), ("gpu001", ("gpu001", "gpu002"))])
def test_of_two_clocks_a_third_one_decides(asker: str, named: tuple[str, ...]) -> None:
    """On a login node the command's own clock has a vote; on one of the two it would be its own judge."""
    evidence = dataclasses.replace(
        well(NODES[:2]), asker=asker, clocks={"gpu001": ClockReading(0.0, 0.001), "gpu002": ClockReading(60.0, 0.001)}
    )
    (finding,) = findings(evidence)

    assert (named, len(named) == 1) == (finding.nodes, finding.exclude)


def test_a_skew_within_the_limit_is_none() -> None:
    """--max-skew says what is too much, and so does the error of the measurement."""
    slow = dataclasses.replace(well(), clocks={**well().clocks, "gpu003": ClockReading(6.0, 2.0)})

    assert findings(slow) == ()
    assert len(findings(slow, CheckLimits(skew=1.0))) == 1


def test_the_first_node_is_blamed_where_the_others_reach_each_other() -> None:
    """When nobody reaches the first node, and all reach the second, the first is the bad one."""
    first = reached("gpu001", dict.fromkeys(NODES[1:], ConnectionResult.SILENT))
    second = reached("gpu002", {"gpu001": ConnectionResult.SILENT})
    (finding,) = findings(dataclasses.replace(well(), reaches=(first, second)))

    assert (finding.nodes, finding.exclude) == (("gpu001",), True)
    assert finding.kind == "network"


def test_of_two_nodes_that_do_not_reach_each_other_none_is_blamed() -> None:
    """With two nodes it cannot be known which of them is cut off."""
    two = NODES[:2]
    reaches = (
        reached("gpu001", {"gpu002": ConnectionResult.SILENT}, two),
        reached("gpu002", {"gpu001": ConnectionResult.SILENT}, two),
    )
    (finding,) = findings(dataclasses.replace(well(two), reaches=reaches))

    assert (two, False) == (finding.nodes, finding.exclude)


@pytest.mark.parametrize(("bad", "note"), [(("gpu003",), False), (NODES[1:], True)])
def test_a_name_that_nobody_resolves_is_no_obstacle(bad: tuple[str, ...], note: bool) -> None:
    """On one node it is an error there; on all nodes the launcher gets along without names."""
    wrong = (
        ConnectionAttempt("", "10.0.0.1", ConnectionResult.OPEN),
        ConnectionAttempt("gpu001", "", ConnectionResult.UNRESOLVED),
    )
    attempts = {**dict.fromkeys(NODES, OPEN), **dict.fromkeys(bad, wrong), "gpu001": OPEN[:1]}
    (finding,) = findings(dataclasses.replace(well(), reaches=(Reachability("gpu001", "10.0.0.1", 20001, attempts),)))

    assert (bad, note, not note) == (finding.nodes, finding.note, finding.exclude)


def reduced(errors: Mapping[tuple[str, str], str], nodes: tuple[str, ...] = NODES) -> Evidence:
    """Return what is found when these pairs fail."""
    tried = {pair: errors.get(pair, "") for meetings in node_pairs.rounds(nodes) for pair in map(tuple_of, meetings)}
    whole = Reduction("nccl", nodes, 16, 9.0, {"gpu001": "rank 0: timed out"})
    return dataclasses.replace(well(nodes), reductions=(whole, Reduction("gloo", nodes, 16, 0.1)), pairs=tried)


def tuple_of(pair: tuple[str, str]) -> tuple[str, str]:
    one, other = sorted(pair)
    return one, other


def test_a_node_that_fails_with_all_is_named() -> None:
    """When an all-reduce fails, the pairs say whose fault it is; gloo says that it is not the network of the host."""
    bad = dict.fromkeys((("gpu001", "gpu003"), ("gpu002", "gpu003"), ("gpu003", "gpu004")), "timed out")
    (finding,) = findings(reduced(bad))

    assert (finding.nodes, finding.exclude) == (("gpu003",), True)
    assert mentions(finding.message, "nccl timed out")
    assert mentions(finding.remedy, "gloo")


def test_a_pair_that_fails_is_named_as_one() -> None:
    """One bad pair is no bad node."""
    (finding,) = findings(reduced({("gpu002", "gpu004"): "timed out"}))

    assert (finding.nodes, finding.exclude) == (("gpu002", "gpu004"), False)


@pytest.mark.parametrize("errors", [{}, dict.fromkeys((("gpu001", "gpu002"),), "x")], ids=["none", "all of two"])
def test_a_failure_of_all_is_nobody_s(errors: dict[tuple[str, str], str]) -> None:
    """Where each pair works, or none does, no node is to be left out."""
    nodes = NODES[:2] if errors else NODES
    (finding,) = findings(reduced(errors, nodes))

    assert (nodes, False) == (finding.nodes, finding.exclude)


@given(st.integers(2, 17))
def test_rounds_try_every_pair_once(count: int) -> None:
    """A tournament: everyone meets everyone, and nobody is at two places at a time."""
    nodes = [f"n{number:02d}" for number in range(count)]
    found = node_pairs.rounds(nodes)

    assert sorted(tuple_of(pair) for meetings in found for pair in meetings) == [
        (one, other) for index, one in enumerate(nodes) for other in nodes[index + 1 :]
    ]
    for meetings in found:
        there = [node for pair in meetings for node in pair]
        assert len(set(there)) == len(there)


@given(st.integers(4, 12), st.data())
def test_one_bad_node_is_always_found(count: int, data: st.DataObject) -> None:
    """However many nodes there are, a node that fails with everyone explains all failures, and early."""
    nodes = [f"n{number:02d}" for number in range(count)]
    bad = data.draw(st.sampled_from(nodes))
    tried: dict[tuple[str, str], str] = {}
    needed = 0
    for meetings in node_pairs.rounds(nodes):
        tried |= {pair: "bad" if bad in pair else "" for pair in meetings}
        needed += 1
        if node_pairs.settled(tried):
            break

    assert ((bad,), ()) == node_pairs.blame(tried)
    assert needed <= 3


@pytest.mark.parametrize(
    ("values", "right", "others"),
    [
        ({}, None, ()),
        ({"a": "1", "b": "1"}, "1", ()),
        ({"a": "1", "b": "2", "c": "1"}, "1", ("b",)),
        ({"a": "1", "b": "2"}, None, ("a", "b")),
    ],
)
def test_the_majority_is_right(values: dict[str, str], right: str | None, others: tuple[str, ...]) -> None:
    """What most have is right, and who differs is odd."""
    assert (right, others) == odd(values)
