"""Another user of the cluster attacks runs of several nodes, before, during and between their attempts."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.records import events
from tests.cluster import Cluster
from tests.hostile.listeners import BEHAVIOURS
from tests.slurm.hostile_support import (
    PORTS,
    Agent,
    Attack,
    address_of,
    attack,
    event_names,
    listeners_of,
    listens,
    next_job,
    readable,
    records,
    squatter,
    strangers,
    targets_on,
    trains,
)
from tests.slurm.losses_support import WAITS, Run, run

# The run has the first three nodes. The attacker is on the leader's node, and on one outside of the job.
NODES = ("gpu001", "gpu002", "gpu003")
LATE = "gpu003"
FROM = ("gpu001", "gpu004")

KINDS = {
    "fixed": ("--max-restarts=1",),
    "elastic": ("--nnodes=1:3", "--max-restarts=1", "--node-timeout=5"),
}
OPTIONS = (f"--port-range={PORTS.start}-{PORTS.stop - 1}",)


@dataclass
class Siege:
    """A run that was attacked, and what came of it.

    Attributes:
        kind: of the run.
        status: srun's.
        attempts: their numbers.
        hosts: of the ranks of each attempt.
        grown: by how much the leader's agent has grown at most during attacks, in MB, by phase.
        cpu: CPU seconds of the leader's agent while idle connections sat there.
        reports: what attackers got.
        met: how often the false leaders' ports were tried, by behaviour.
        broken_in: what the leader said to replayed words.
        events: of each node.
        records: all that the run has written down.
        console: what it has said.
        trouble: why the siege ended early; empty if it did not.
    """

    kind: str
    status: int = -1
    attempts: list[int] = field(default_factory=list)
    hosts: list[list[str]] = field(default_factory=list)
    grown: dict[str, int] = field(default_factory=dict)
    cpu: float = 0.0
    reports: list[dict[str, Any]] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)
    broken_in: list[str] = field(default_factory=list)
    events: dict[str, list[str]] = field(default_factory=dict)
    records: str = ""
    console: str = ""
    trouble: str = ""

    @contextlib.contextmanager
    def watch(self, phase: str, leader: Agent) -> Iterator[None]:
        """Note by how much an agent grows."""
        before = leader.memory
        leader.forget_peak()
        yield
        self.grown[phase] = leader.peak - before


STORM = ("converse", "flood", "long")


def besiege(cluster: Cluster, folder: Path, kind: str) -> Siege:
    """Attack one run at each of its phases, for as long as it lives."""
    siege = Siege(kind)
    job_id = next_job(cluster)
    place, run_id = f"test/{job_id}/0/0", f"{job_id}.0.0"
    with squatter(cluster, FROM[0], place, run_id) as squats, _started(cluster, folder, kind) as job:
        squats.begun()
        try:
            _attack(cluster, job, siege, squats, place)
            siege.status = job.ends()
        except (AssertionError, TimeoutError) as error:
            siege.trouble = str(error)
        siege.attempts, siege.events = job.so_far.attempts(), event_names(job, NODES)
        siege.records, siege.console = records(job), job.so_far.console
    return siege


def _attack(cluster: Cluster, job: Run, siege: Siege, squats: Attack, place: str) -> None:
    leader = listens(cluster, job, NODES[0])
    leader.limit_descriptors(1024)
    with siege.watch("before", leader):
        siege.reports += attack(cluster, FROM, place, targets_on(cluster, *NODES), "converse", "flood")
    job.comes(LATE)
    siege.hosts.append(trains(job, 0, len(NODES)))
    targets = targets_on(cluster, *NODES)
    with siege.watch("during", leader):
        siege.reports += attack(cluster, FROM, place, targets, *STORM)
    with strangers(cluster, FROM[1], place, targets[:1], "idle") as idle:
        idle.begun()
        before = leader.cpu
        siege.reports += idle.ended()
        siege.cpu = leader.cpu - before
    siege.met, siege.broken_in = _left(squats)
    with siege.watch("between", leader), strangers(cluster, FROM[1], place, targets, *STORM) as storm:
        storm.begun()
        job.fails(0, 0)
        siege.hosts.append(trains(job, 1, len(NODES)))
        siege.reports += storm.ended()


def _started(cluster: Cluster, folder: Path, kind: str) -> contextlib.AbstractContextManager[Run]:
    return run(cluster, folder, *KINDS[kind], *OPTIONS, nodes=len(NODES), late=LATE)


def _left(squatter: Attack) -> tuple[dict[str, int], list[str]]:
    """Have the false leaders leave, who then break whatever went through them."""
    (report,) = squatter.ended()
    return report["met"], report["broken_in"]


_SIEGES: dict[str, Siege] = {}


@pytest.fixture(params=[*KINDS])
def siege(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Siege:
    """Return a run that was attacked at each of its phases: one for all tests, as it takes long."""
    if request.param not in _SIEGES:
        _SIEGES[request.param] = besiege(cluster, tmp_path, request.param)
    return _SIEGES[request.param]


def test_the_run_has_its_own_status(siege: Siege) -> None:
    """It ends as it would alone."""
    assert siege.status == 0, siege.trouble or siege.console


def test_attempts_are_those_of_the_run(siege: Siege) -> None:
    """They are numbered from 0, and there is one for the failure of a rank."""
    assert siege.attempts == [0, 1], siege.console


def test_all_nodes_of_the_run_train(siege: Siege) -> None:
    """No false leader has taken one away, and no stranger has a place."""
    assert siege.hosts == [[*NODES], [*NODES]], siege.console


def test_the_agent_does_not_grow(siege: Siege) -> None:
    """Whatever strangers send, it takes less than 20 MB."""
    assert max(siege.grown.values()) <= 20, siege.grown


def test_idle_strangers_cost_little(siege: Siege) -> None:
    """More connections than the agent has descriptors for cost it a tenth of a CPU at most, for these three seconds."""
    assert siege.cpu < 0.3, siege.cpu


def test_a_stranger_hears_nothing(siege: Siege) -> None:
    """Agents say their opening to it, and not a word more."""
    assert [one for one in siege.reports if one["words"]] == []


def test_attacks_reached_the_agents(siege: Siege) -> None:
    """There were hundreds of conversations and thousands of connections: otherwise the other tests say nothing."""
    assert (len(siege.reports) > 300, sum(one["connections"] for one in siege.reports) > 5000) == (True, True)


def test_false_leaders_were_met(siege: Siege) -> None:
    """Agents have tried the ports of all of them: otherwise the other tests say nothing."""
    assert siege.met.keys() == BEHAVIOURS.keys(), siege.met


def test_recorded_words_are_not_believed_again(siege: Siege) -> None:
    """A leader says nothing to what an agent has said on another connection."""
    assert siege.broken_in == []


def test_records_name_no_stranger(siege: Siege) -> None:
    """Neither the attacker's node nor its names are in them."""
    wrong = [word for word in ("gpu004", "evil", "10.77.0.14") if word in siege.records]

    assert wrong == [], siege.records


def test_no_loss_is_recorded(siege: Siege) -> None:
    """Strangers that come and go are no nodes that are lost."""
    lost = {node: [one for one in names if one == events.NODE_LOST] for node, names in siege.events.items()}

    assert lost == {node: [] for node in NODES}, siege.console


def test_the_console_stays_short(siege: Siege) -> None:
    """Of thousands of refused connections a run says next to nothing."""
    ours = [line for line in siege.console.splitlines() if line.startswith("hpc-launch:")]

    assert len(ours) <= 12, siege.console


def test_the_records_are_well_formed(siege: Siege) -> None:
    """Each line of the events is an object."""
    lines = [line for line in siege.records.splitlines() if line.startswith('{"time"')]

    assert [line for line in lines if not isinstance(json.loads(line), dict)] == []


@pytest.mark.soak
@pytest.mark.parametrize("repetition", range(20))
@pytest.mark.parametrize("kind", [*KINDS])
def test_an_attack_at_any_moment(some_cluster: Cluster, tmp_path: Path, kind: str, repetition: int) -> None:
    """It begins before the run has formed, while its workers run, or between attempts: the run goes on as if alone."""
    chance = random.Random(repetition)
    place = f"test/{next_job(some_cluster)}/0/0"
    with run(some_cluster, tmp_path, *KINDS[kind], *OPTIONS, nodes=len(NODES)) as job:
        listens(some_cluster, job, NODES[0])
        time.sleep(chance.random() * 6)  # at any moment: a run of three nodes begins to train in about as long
        targets = targets_on(some_cluster, *NODES)
        with strangers(some_cluster, chance.choice(FROM), place, targets, *chance.sample(STORM, 2)) as storm:
            storm.begun()
            hosts = [trains(job, 0, len(NODES))]
            job.fails(0, chance.randrange(len(NODES)))
            hosts.append(trains(job, 1, len(NODES)))
            storm.ended()
        status = job.ends()

    assert (status, job.so_far.attempts(), hosts) == (0, [0, 1], [[*NODES]] * 2), job.describe()


@pytest.mark.parametrize("kind", [*KINDS])
def test_workers_find_each_other_at_one_address(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    """The store of the workers listens at the address that the plan names, and at no other of its node."""
    with run(cluster, tmp_path, *KINDS[kind], nodes=2, worker=WAITS) as job:
        job.trains_on(0, *NODES[:2])
        (port,) = {int(one["MASTER_PORT"]) for one in job.so_far.said(0).values()}
        found = [one.address for one in listeners_of(job.agent(NODES[0])) if one.port == port]
        job.ends()

    assert [readable(address) for address in found] == [address_of(cluster, NODES[0])], job.describe()


def test_a_run_of_one_node_has_no_listener(cluster: Cluster, tmp_path: Path) -> None:
    """No other node can connect to it: its workers' store listens on loopback."""
    with run(cluster, tmp_path, nodes=1, worker=WAITS) as job:
        job.trains_on(0, NODES[0])
        found = {readable(one.address) for one in listeners_of(job.agent(NODES[0]))}
        job.ends()

    assert found == {"127.0.0.1"}, job.describe()
