"""Nodes find each other: whatever else listens, whatever they are called, and by whichever network is asked for."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hpc_launch.node import port_candidates
from hpc_launch.settings import resolve
from tests.cluster import Cluster, ClusterConfig
from tests.slurm.steps_support import DEADLINE, PREAMBLE, SAYS, Ended, step, tree
from tests.slurm.test_restarts import WORKER as FAILING_WORKER, failing
from tests.support import LEAVE, mentions, wait_for

REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(20)]

REDUCE = (
    PREAMBLE
    + """
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
total = torch.ones(1) * (rank + 1)
dist.all_reduce(total)
say(total=total.item(), gloo=os.environ.get("GLOO_SOCKET_IFNAME"), nccl=os.environ.get("NCCL_SOCKET_IFNAME"))
dist.destroy_process_group()
"""
    + LEAVE
)

# Says what it was given, and ends when as many others have done so as it is told: they all run at the same time.
MEETING = (
    PREAMBLE
    + """
folder, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
say()
(folder / f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}-{rank}").touch()
deadline = time.monotonic() + 200
while len(list(folder.iterdir())) < count:
    if time.monotonic() > deadline:
        sys.exit("the others did not come")
    time.sleep(0.1)
"""
    + LEAVE
)

# Listens on ports as programs do that have nothing to do with us; says so when it does.
STRANGER = """
import socket, sys, threading
from torch.distributed import TCPStore

def listen(port, words):
    server = socket.create_server(("", port))
    def serve():
        kept = []
        while True:
            connection, _ = server.accept()
            kept.append(connection)
            if words:
                connection.sendall(words)
                connection.close()
    threading.Thread(target=serve, daemon=True).start()

stores = []
for number, port in enumerate(map(int, sys.argv[1:])):
    if number % 3 == 0:
        stores.append(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
    else:
        listen(port, b"" if number % 3 == 1 else b"HTTP/1.1 400 Bad Request\\r\\nConnection: close\\r\\n\\r\\n")
print("listening", flush=True)
sys.stdin.read()
print([store.num_keys() for store in stores], flush=True)
"""


@pytest.fixture(scope="module")
def two_networks(slurm_host: None) -> Iterator[Cluster]:  # noqa: ARG001 - it says whether there can be a cluster
    """Return a cluster whose nodes have a second interface."""
    with Cluster(ClusterConfig(nodes=2, second_network=True)) as cluster:
        yield cluster


def script(folder: Path, text: str, name: str = "worker.py") -> str:
    """Write a script."""
    (folder / name).write_text(text)
    return name


def shell(text: str) -> list[str]:
    """Make a command of a few lines for sh, which every task runs: `$node` is its node."""
    return ["sh", "-c", f"node=$SLURMD_NODENAME\n{text}"]


def check_reduced(ended: Ended, ranks: int = 2) -> None:
    """See that all ranks summed up."""
    assert ended.status == 0, ended.describe()
    totals = {rank: facts["total"] for rank, facts in ended.said(0).items()}
    assert totals == dict.fromkeys(range(ranks), ranks * (ranks + 1) / 2), ended.describe()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_ten_launches_at_the_same_moment_do_not_meet(
    cluster: Cluster, tmp_path: Path, python: str, repetition: int
) -> None:
    """Five jobs of two steps share two nodes, strangers listen on their first ports: each finds its own store."""
    worker = script(tmp_path, MEETING)
    for name in ("ready", "met"):
        (tmp_path / name).mkdir()
    launch = f"""
        touch ready/$SLURM_JOB_ID.$SLURM_STEP_ID.$SLURMD_NODENAME
        until [ -e gate ]; do sleep 0.05; done
        exec hpc-launch --nproc-per-node=1 {worker} met 20"""
    srun = f"srun --overlap --ntasks-per-node=1 sh -c {shlex.quote(launch)}"
    batch = f"{srun} & first=$!\n{srun} & second=$!\nwait $first && wait $second"
    jobs = [
        cluster.sbatch(batch, "--nodelist=gpu[001-002]", "--mem=10", f"--output=job-{number}.out", cwd=tmp_path)
        for number in range(5)
    ]
    port_range = resolve({}, {}).port_range
    runs = [f"{job.id}.{number}.0" for job in jobs for number in range(2)]
    # The strangers of every repetition say something else to each run.
    firsts = [port_candidates.candidates(run, port_range)[0] for run in runs]
    firsts = [*dict.fromkeys(firsts[repetition % 3 :] + firsts[: repetition % 3])]

    def describe() -> str:
        outputs = "\n".join(path.read_text(errors="replace") for path in sorted(tmp_path.glob("job-*.out")))
        return f"{outputs}\n{tree(tmp_path / 'logs')}\n{cluster.diagnose()}"

    stranger = [python, "-c", STRANGER, *map(str, firsts)]
    with cluster.popen(stranger, node="gpu001", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as strangers:
        assert strangers.stdout is not None
        assert strangers.stdout.readline() == "listening\n"
        wait_for(lambda: len(list((tmp_path / "ready").iterdir())) == 20, DEADLINE, describe)
        (tmp_path / "gate").touch()
        results = [job.wait(DEADLINE) for job in jobs]
        kept = strangers.communicate("")[0]

    assert [(result.state, result.exit_code) for result in results] == [("COMPLETED", 0)] * 5, describe()
    endpoints = set()
    for job in jobs:
        for number in range(2):
            said = Ended(0, "", tmp_path / "logs").said(0, f"{job.id}.{number}")
            assert sorted(said) == [0, 1], describe()
            told = {
                (facts["TORCHELASTIC_RUN_ID"], facts["MASTER_ADDR"], facts["MASTER_PORT"]) for facts in said.values()
            }
            assert len(told) == 1, describe()
            ((run, address, port),) = told
            assert run == f"{job.id}.{number}.0"
            assert int(port) not in firsts
            endpoints.add((address, port))
    assert len(endpoints) == 10, describe()
    # A store of torch has one key of its own; it must have no other.
    assert set(json.loads(kept)) <= {0, 1}


@pytest.mark.parametrize("option", ["--interface=eth1", "--interface=10.78.0.0/24", "--master-addr=gpu001i"])
def test_the_second_network_is_used_where_it_is_asked_for(two_networks: Cluster, tmp_path: Path, option: str) -> None:
    """By name, by subnet or by the leader's name there: endpoint and libraries agree on one network."""
    worker = script(tmp_path, REDUCE)
    ended = step(two_networks, ["hpc-launch", option, "--nproc-per-node=1", worker], cwd=tmp_path)
    check_reduced(ended)
    for facts in ended.said(0).values():
        assert facts["MASTER_ADDR"] in {"10.78.0.11", "gpu001i"}, ended.describe()
        assert (facts["gloo"], facts["nccl"]) == ("eth1", "=eth1"), ended.describe()


def test_variables_that_are_set_stay_as_they_are(two_networks: Cluster, tmp_path: Path) -> None:
    """Who names the libraries' interfaces knows better."""
    worker = script(tmp_path, REDUCE)
    env = {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth"}
    ended = step(two_networks, ["hpc-launch", "--interface=eth1", "--nproc-per-node=1", worker], cwd=tmp_path, env=env)
    check_reduced(ended)
    for facts in ended.said(0).values():
        assert facts["MASTER_ADDR"] == "10.78.0.11", ended.describe()
        assert (facts["gloo"], facts["nccl"]) == ("eth0", "eth"), ended.describe()


def test_host_names_need_not_be_node_names_nor_resolve(cluster: Cluster, tmp_path: Path) -> None:
    """Nodes call themselves something else than Slurm calls them, and the resolver knows nothing of it."""
    worker = script(tmp_path, REDUCE)
    command = (
        f"exec unshare --uts sh -c 'hostname other-$SLURMD_NODENAME && exec hpc-launch --nproc-per-node=1 {worker}'"
    )
    ended = step(cluster, shell(command), cwd=tmp_path)
    check_reduced(ended)
    assert {facts["host"] for facts in ended.said(0).values()} == {"gpu001", "gpu002"}


def with_hosts(folder: Path, hosts: dict[str, str], command: str) -> list[str]:
    """Make a command that sees another /etc/hosts on each node.

    Args:
        folder: Where those files go.
        hosts: Their text, by node.
        command: What runs.
    """
    for node, text in hosts.items():
        (folder / f"hosts-{node}").write_text(f"127.0.0.1 localhost\n{text}")
    inner = f"mount --bind {shlex.quote(str(folder))}/hosts-$SLURMD_NODENAME /etc/hosts && exec {command}"
    return shell(f"exec unshare --mount sh -c {shlex.quote(inner)}")


def test_a_name_that_means_loopback_at_home_is_no_obstacle(cluster: Cluster, tmp_path: Path) -> None:
    """On Debian a host's own name often resolves to 127.0.1.1: the others get an address that they can reach."""
    worker = script(tmp_path, REDUCE)
    hosts = {
        "gpu001": "127.0.1.1 gpu001\n10.77.0.12 gpu002\n",
        "gpu002": "10.77.0.11 gpu001\n127.0.1.1 gpu002\n",
    }
    ended = step(cluster, with_hosts(tmp_path, hosts, f"hpc-launch --nproc-per-node=1 {worker}"), cwd=tmp_path)
    check_reduced(ended)
    assert {facts["MASTER_ADDR"] for facts in ended.said(0).values()} == {"10.77.0.11"}, ended.describe()


def test_a_leader_whose_name_does_not_resolve_is_found_by_its_notice(cluster: Cluster, tmp_path: Path) -> None:
    """No node knows the others' names: the job directory says where the leader is, and that is gone in the end."""
    worker = script(tmp_path, REDUCE)
    hosts = {"gpu001": "10.77.0.11 gpu001\n", "gpu002": "10.77.0.12 gpu002\n"}
    ended = step(cluster, with_hosts(tmp_path, hosts, f"hpc-launch --nproc-per-node=1 {worker}"), cwd=tmp_path)
    check_reduced(ended)
    assert list(ended.logs.glob("*.*/rendezvous-*.json")) == []


def test_a_node_that_starts_late_is_waited_for_by_name(cluster: Cluster, tmp_path: Path) -> None:
    """The console says whom all wait for; when it comes, the run goes on."""
    worker = script(tmp_path, SAYS)
    command = shell(f"""
        [ $node != gpu002 ] || until [ -e go ]; do sleep 0.1; done
        exec hpc-launch --nproc-per-node=1 {worker}""")
    console = tmp_path / "console"
    with console.open("w") as stream:
        srun = ["srun", "--nodes=2", "--ntasks-per-node=1", *command]
        with cluster.popen(srun, cwd=tmp_path, stdout=stream, stderr=stream) as process:
            try:
                wait_for(
                    lambda: re.search(r"waiting for gpu002 \(1/2 joined, \d+ s\)", console.read_text()),
                    DEADLINE,
                    lambda: f"{console.read_text()}\n{cluster.diagnose()}",
                )
                (tmp_path / "go").touch()
                status = process.wait(DEADLINE)
            finally:
                process.kill()
    ended = Ended(status, console.read_text(), tmp_path / "logs")
    assert status == 0, ended.describe()
    assert sorted(ended.said(0)) == [0, 1], ended.describe()


def statuses(folder: Path, nodes: Sequence[str]) -> dict[str, str]:
    """Read what the tasks' launchers ended with."""
    return {node: path.read_text().strip() for node in nodes if (path := folder / f"status-{node}").is_file()}


def test_a_node_that_never_starts_is_named(cluster: Cluster, tmp_path: Path) -> None:
    """After the join timeout the others end with the documented status, and the console says who is missing."""
    worker = script(tmp_path, SAYS)
    command = shell(f"""
        if [ $node = gpu003 ]; then until [ -e status-gpu001 ] && [ -e status-gpu002 ]; do sleep 0.1; done; exit 0; fi
        hpc-launch --join-timeout=5 --nproc-per-node=1 {worker}
        echo $? >tmp-$node && mv tmp-$node status-$node""")
    ended = step(cluster, command, "--nodes=3", cwd=tmp_path)
    assert statuses(tmp_path, ["gpu001", "gpu002"]) == {"gpu001": "69", "gpu002": "69"}, ended.describe()
    assert [line for line in ended.console.splitlines() if mentions(line, "gpu003 5 2/3")], ended.describe()


SITES = {
    "Python": "import platform; platform.python_version = lambda: '3.1.4'",
    "torch": "import torch; torch.__version__ = '1.2.3'",
}


@pytest.mark.parametrize("what", ["Python", "torch"])
def test_different_software_is_named_and_refused(cluster: Cluster, tmp_path: Path, what: str) -> None:
    """One node has something else: every node ends with the documented status, and the console says who differs."""
    script(tmp_path, SAYS)
    (tmp_path / "site").mkdir()
    script(tmp_path / "site", SITES[what], "sitecustomize.py")
    command = shell("""
        [ $node != gpu002 ] || export PYTHONPATH=$PWD/site:$PYTHONPATH
        hpc-launch --nproc-per-node=1 worker.py
        echo $? >status-$node""")
    ended = step(cluster, command, "--nodes=3", cwd=tmp_path)
    found = {"Python": "3.1.4", "torch": "1.2.3"}[what]

    assert statuses(tmp_path, cluster.nodes) == dict.fromkeys(cluster.nodes[:3], "69"), ended.describe()
    words = f"{what} gpu[001,003] {found} gpu002"
    assert [line for line in ended.console.splitlines() if mentions(line, words)], ended.describe()


def test_another_command_is_named_and_not_joined(cluster: Cluster, tmp_path: Path) -> None:
    """One node runs another script: it is of no world with the others, and both sides say what joins them."""
    for name in ("worker.py", "another.py"):
        script(tmp_path, SAYS, name)
    command = shell("""
        script=worker.py
        [ $node != gpu002 ] || script=another.py
        hpc-launch --nproc-per-node=1 --join-timeout=10 $script
        echo $? >status-$node""")
    ended = step(cluster, command, "--nodes=3", cwd=tmp_path)

    assert statuses(tmp_path, cluster.nodes) == dict.fromkeys(cluster.nodes[:3], "69"), ended.describe()
    assert re.search(r"gpu002 .*\b10 s .*gpu002 .*\(another.py\)", ended.console)
    assert re.search(r"gpu002 .*gpu001 .*gpu001 .*\(worker.py\)", ended.console)


def test_torchrun_uses_the_backend_and_restarts(cluster: Cluster, tmp_path: Path) -> None:
    """Plain torchrun gets ranks by the host list, and comes back after a failure, with hpc-launch merely installed."""
    worker = script(tmp_path, FAILING_WORKER)
    # torch's agents count for themselves, so the attempt is told by a file.
    text = (tmp_path / worker).read_text().replace("attempt < len(failures)", 'not pathlib.Path("failed").exists()')
    script(
        tmp_path, text.replace("            fail()", '            pathlib.Path("failed").touch()\n            fail()')
    )
    options = ["--nnodes=2", "--nproc-per-node=2", "--max-restarts=1", "--rdzv-backend=slurm"]
    ended = step(cluster, ["torchrun", *options, worker, json.dumps([failing(0, "raise", [3])])], cwd=tmp_path)
    assert ended.status == 0, ended.describe()
    # Ranks share torchrun's output, and a line's end is written apart from it: two can stand in one line.
    said = [json.loads(text) for text in re.findall(r'\{"rank[^{}]*\}', ended.console)]
    places = sorted((facts["rank"], facts["GROUP_RANK"], facts["LOCAL_RANK"], facts["total"]) for facts in said)
    assert places == [(0, "0", "0", 1e4), (1, "0", "1", 1e4), (2, "1", "0", 1e4), (3, "1", "1", 1e4)], ended.describe()
    assert (tmp_path / "failed").exists()
