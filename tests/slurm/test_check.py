"""`hpc-launch check` names the bad node, and only that one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hpc_launch import hostlist
from tests.cluster import Cluster, ClusterConfig, host
from tests.cluster.config import HEAD
from tests.slurm.check_support import DEADLINE, Checked, check, mounted, pretending, unreachable
from tests.slurm.jobs_support import clean_environment
from tests.support import mentions, wait_for

BAD = "gpu003"

# Enough where the bad one is known by itself, and where it is known by being unlike the others.
TWO = ("gpu001", BAD)
THREE = ("gpu001", "gpu002", BAD)


def named(checked: Checked, expected: Mapping[str, Sequence[str]], kind: str = "") -> None:
    """See that these nodes are named, each with one finding that has its words, and are the ones to leave out.

    Where a kind is given, it is that of all findings.
    """
    assert (checked.status, set(checked.findings)) == (1, set(expected)), checked.output
    for node, words in expected.items():
        assert len(checked.findings[node]) == 1, checked.output
        assert mentions(checked.findings[node][0], *words), checked.output
    assert not kind or {one["kind"] for one in checked.report["findings"]} == {kind}, checked.output
    assert set(hostlist.expand(checked.report["exclude"])) == set(expected), checked.output


def only(checked: Checked, *words: str, node: str = BAD, kind: str = "") -> None:
    """See that one node is named, with one finding that has these words, and is the one to leave out."""
    named(checked, {node: words}, kind)


def test_a_good_allocation(some_cluster: Cluster, tmp_path: Path) -> None:
    """Where all is well nothing is found, all ranks have reduced, and nothing is left behind."""
    checked = check(some_cluster, tmp_path, "--nproc-per-node=2")
    report = checked.report

    assert (checked.status, report["ok"], report["findings"], report["exclude"]) == (0, True, [], ""), checked.output
    assert [(entry["ranks"], entry["errors"]) for entry in report["reductions"]] == [(8, {})]
    assert list(report["nodes"]) == list(some_cluster.nodes)
    assert {path.name for path in tmp_path.iterdir()} == {"pretend", "ready", "harmed"}
    assert not any(map(some_cluster.processes, some_cluster.nodes))


def test_nodes_that_slurm_does_not_reach(some_cluster: Cluster, tmp_path: Path) -> None:
    """Nodes on which Slurm cannot start anything are named; the others are looked at all the same.

    The slurmd of one is gone, and the cables of another are cut.
    """

    def harm() -> None:
        some_cluster.kill("gpu002")
        some_cluster.cut(BAD)

    checked = check(some_cluster, tmp_path, harm=harm)

    named(checked, dict.fromkeys(("gpu002", BAD), ()), kind="lost")
    assert checked.report["reductions"][0]["ranks"] == 2


def test_a_torch_a_clock_and_a_log_directory(some_cluster: Cluster, tmp_path: Path) -> None:
    """Three bad nodes are named, each for what is wrong there, when three others of the four are right.

    One has another torch (a fake sets torch.__version__), of one the clock is ahead (a fake shifts time.time), and on
    one the log directory is mounted read-only.
    """
    logs = tmp_path / "logs of mine"
    logs.mkdir()
    with (
        mounted(some_cluster, "gpu004", logs, "--bind", str(logs)),
        mounted(some_cluster, "gpu004", logs, "-o", "bind,remount,ro", undo=False),
    ):
        pretend: dict[str, dict[str, Any]] = {"gpu002": {"version": "2.1.0"}, BAD: {"clock": 60}}
        checked = check(some_cluster, tmp_path, f"--log-dir={logs}", pretend=pretend)

    named(
        checked,
        {
            "gpu002": ["torch 2.1.0"],
            BAD: ["clock 60.0"],
            "gpu004": [f"{logs} log_dir Read-only file system"],
        },
    )
    assert not list(logs.iterdir())


def test_a_clock_a_disk_and_a_name(some_cluster: Cluster, tmp_path: Path) -> None:
    """So are a node whose clock is behind, one without space, and one that takes the first one's name for its own."""
    scratch, hosts = tmp_path / "scratch", tmp_path / "hosts"
    scratch.mkdir()
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 gpu001\n10.77.0.14 gpu004\n")
    with (
        mounted(some_cluster, BAD, scratch, "-t", "tmpfs", "-o", "size=2M", "tmpfs"),
        mounted(some_cluster, "gpu004", Path("/etc/hosts"), "--bind", str(hosts)),
    ):
        options = (f"--log-dir={scratch}", "--min-free=50M")
        checked = check(some_cluster, tmp_path, *options, pretend={"gpu002": {"clock": -60}})

    named(
        checked,
        {
            "gpu002": ["clock 60.0"],
            BAD: ["2 MiB --min-free 50"],
            "gpu004": ["gpu001 127.0.1.1 loopback"],
        },
    )


def test_skew_may_be_allowed_on_some_nodes(cluster: Cluster, tmp_path: Path) -> None:
    """How far a clock may be off is an option, and so is which nodes are to be looked at."""
    pretend = {BAD: {"clock": 60}, "gpu004": {"clock": 600}}
    checked = check(cluster, tmp_path, "--nodes=gpu[001,003]", "--max-skew=90", pretend=pretend)

    assert (checked.status, checked.findings, list(checked.report["nodes"])) == (0, {}, ["gpu001", BAD])


def test_a_name_that_does_not_resolve(cluster: Cluster, tmp_path: Path) -> None:
    """A node that does not know the first one's name is named."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.0.13 gpu003\n10.77.0.12 gpu002\n")
    with mounted(cluster, BAD, Path("/etc/hosts"), "--bind", str(hosts)):
        checked = check(cluster, tmp_path, nodes=TWO)

    only(checked, "gpu001", kind="name")


def test_a_device_that_cannot_be_used(cluster: Cluster, tmp_path: Path) -> None:
    """A node with a device that is there and does not compute is named with the device. (torch.cuda is a fake.)"""
    pretend: dict[str, dict[str, Any]] = {node: {"devices": 2} for node in cluster.nodes}
    pretend[BAD]["broken"] = 1
    checked = check(cluster, tmp_path, job=["--gpus-per-node=2"], nodes=THREE, pretend=pretend)

    only(checked, "1 CUDA error: uncorrectable ECC error encountered")
    assert [(entry["ranks"], entry["errors"]) for entry in checked.report["reductions"]] == [(4, {})]


def test_a_torch_that_does_not_know_the_devices(cluster: Cluster, tmp_path: Path) -> None:
    """Where Slurm gives GPUs and torch is built for CPUs that is said of all nodes, none of which is to be left out."""
    checked = check(cluster, tmp_path, job=["--gpus-per-node=2"], nodes=TWO)

    assert (checked.status, set(checked.findings)) == (1, set(TWO))
    assert mentions(checked.findings[BAD][0], "2 CUDA_VISIBLE_DEVICES=0,1 torch")
    assert checked.report["exclude"] == ""


def test_a_torch_that_cannot_be_imported(cluster: Cluster, tmp_path: Path) -> None:
    """A node where torch hangs, and one where it cannot be imported, are named; the others go on without them."""
    pretend: dict[str, dict[str, Any]] = {
        "gpu002": {"hang": True},
        BAD: {"no torch": "libcudart.so.12: cannot open shared object file"},
    }
    checked = check(cluster, tmp_path, pretend=pretend)

    expected = {
        "gpu002": ["importing torch"],
        BAD: ["torch ImportError: libcudart.so.12"],
    }
    named(checked, expected)
    assert checked.report["reductions"][0]["ranks"] == 2


def test_a_python_that_is_not_there(some_cluster: Cluster, tmp_path: Path) -> None:
    """A node without the file system that Python is on is named, with the reason."""
    with mounted(some_cluster, BAD, Path(sys.prefix), "-t", "tmpfs", "tmpfs"):
        checked = check(some_cluster, tmp_path, nodes=TWO)

    only(checked, "probe", sys.executable, "No such file or directory")


def test_a_working_directory_that_is_not_there(cluster: Cluster, tmp_path: Path) -> None:
    """A node on which Slurm does not find the working directory, and takes another one, is named."""
    folder = tmp_path / "mounted" / "folder"
    folder.mkdir(parents=True)
    with mounted(cluster, BAD, folder.parent, "-t", "tmpfs", "tmpfs"):
        checked = check(cluster, folder, "--log-dir=/tmp", nodes=THREE)

    only(checked, "/tmp", str(folder))


def test_a_job_of_one_node(cluster: Cluster, tmp_path: Path) -> None:
    """One node is looked at as well, and its ranks reduce among themselves."""
    checked = check(cluster, tmp_path, "--nodes=1", "--nproc-per-node=2")

    assert (checked.status, checked.findings) == (0, {})
    assert [(entry["ranks"], entry["errors"]) for entry in checked.report["reductions"]] == [(2, {})]


def test_two_nodes_that_do_not_reach_each_other(cluster: Cluster, tmp_path: Path) -> None:
    """Where only the way between two nodes is broken, both are named as a pair and neither is to be left out."""
    with unreachable(cluster, "gpu002", "10.77.0.14"):
        checked = check(cluster, tmp_path)

    (finding,) = checked.report["findings"]
    assert (checked.status, finding["kind"], finding["nodes"]) == (1, "all-reduce", ["gpu002", "gpu004"])
    assert "between these two" in finding["message"]
    assert checked.report["exclude"] == ""


def test_a_node_that_reaches_none_but_the_first(cluster: Cluster, tmp_path: Path) -> None:
    """A node with which most others cannot reduce is named alone."""
    with unreachable(cluster, BAD, "10.77.0.12", "10.77.0.14"):
        checked = check(cluster, tmp_path)

    only(checked, "gloo", kind="all-reduce")


def test_a_check_that_is_stopped(cluster: Cluster, tmp_path: Path) -> None:
    """SIGTERM ends it with 143, and its probes as well, even one that hangs."""
    command = ["salloc", "--quiet", "--nodes=4", "sh", "-c", "echo $$; exec hpc-launch check --timeout=500"]
    environ = pretending(tmp_path, {node: {"hang": True} for node in cluster.nodes})
    with cluster.popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as salloc:
        assert salloc.stdout is not None
        pid = int(salloc.stdout.readline())
        wait_for(lambda: all(map(cluster.processes, cluster.nodes)), DEADLINE, "no probe has begun")
        os.kill(pid, signal.SIGTERM)
        _, err = salloc.communicate(timeout=DEADLINE)

    assert (salloc.returncode, err) == (143, "hpc-launch: stopped by SIGTERM\n")
    wait_for(lambda: not any(map(cluster.processes, cluster.nodes)), DEADLINE, "probes are left")


def test_in_a_batch_script(some_cluster: Cluster, tmp_path: Path) -> None:
    """`hpc-launch check || exit` ends the job with 1 before it trains, and says in its output what is wrong."""
    with clean_environment():
        job = some_cluster.sbatch(
            "hpc-launch check || exit\necho trains",
            f"--nodelist={','.join(THREE)}",
            cwd=tmp_path,
            env=pretending(tmp_path, {BAD: {"clock": 60}}),
        )
    result = job.wait(DEADLINE)

    assert (result.state, result.exit_code) == ("FAILED", 1), job.describe()
    assert "trains" not in result.output
    lines = result.output.splitlines()
    assert [line for line in lines if mentions(line, BAD, "clock 60.0")] != []
    assert mentions(lines[-1], f"--exclude={BAD}")


def test_in_a_step(some_cluster: Cluster, tmp_path: Path) -> None:
    """`srun hpc-launch check` checks once, though every node calls it."""
    with clean_environment():
        command = ["srun", f"--nodelist={','.join(TWO)}", "--ntasks-per-node=2", "hpc-launch", "check", "--json"]
        done = some_cluster.run(command, cwd=tmp_path, env=pretending(tmp_path, {}), check=False, timeout=DEADLINE)

    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], list(report["nodes"])) == (0, True, list(TWO)), done.stderr


def test_nowhere(cluster: Cluster, tmp_path: Path) -> None:
    """Outside of a job it says where to go, in one line."""
    done = cluster.run(["hpc-launch", "check"], cwd=tmp_path, env=pretending(tmp_path, {}), check=False)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1)
    assert "salloc" in done.stderr


@pytest.fixture(scope="module")
def two_networks(slurm_host: None) -> Iterator[Cluster]:
    """A cluster that trains over a network of its own, eth1."""
    del slurm_host
    with clean_environment(), Cluster(ClusterConfig(nodes=4, second_network=True)) as cluster:
        yield cluster


CABLE = ("link set {0}i down", "link set {0}i up", "down: no carrier")
SWITCH = ("link set {0}i nomaster", "link set {0}i master fabric1", "reach")


@pytest.mark.parametrize(
    ("bad", "harm"),
    [
        pytest.param("gpu001", CABLE, id="cable of the first"),
        pytest.param("gpu003", SWITCH, id="switch of another"),
        pytest.param("gpu003", CABLE, id="cable of another", marks=pytest.mark.soak),
        pytest.param("gpu001", SWITCH, id="switch of the first", marks=pytest.mark.soak),
    ],
)
def test_a_training_network_that_is_cut(
    two_networks: Cluster, tmp_path: Path, bad: str, harm: tuple[str, str, str]
) -> None:
    """A node that only the training's network does not reach is named, be it the first one or not."""
    cut, heal, words = harm
    head = host.netns(two_networks.name, HEAD)
    host.configure(head, [cut.format(bad)])
    try:
        checked = check(two_networks, tmp_path, "--interface=eth1")
    finally:
        host.configure(head, [heal.format(bad)])

    only(checked, words, "eth1", node=bad)
    assert checked.report["reductions"][0]["ranks"] == 3
