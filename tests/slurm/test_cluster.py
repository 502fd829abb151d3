"""The tests' own cluster: that it is a real one, and that it goes without a trace."""

import dataclasses
import os
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from tests.cluster import Cluster, ClusterConfig, ClusterError, config as rendering, host, releases
from tests.support import wait_for

CHECKOUT = Path(__file__).parents[2]


def traces(name: str) -> list[str]:
    """List what there is of a cluster on this machine."""
    found = [str(path) for path in [*host.NETNS.glob(host.netns(name, "*")), host.run_dir(name)] if path.exists()]
    found += [str(path) for path in host.CGROUPS.rglob("hl-*") if path.name == f"hl-{name}"]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            mounts = (process / "mountinfo").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if f"/hl-{name}-" in mounts:
            found.append(f"process {process.name} holds on to a namespace")
        # Daemons, clients and jobs have the run directory in their environment, the guard has the name.
        if str(host.run_dir(name)).encode() in said or f"guard\0{name}\0".encode() in said:
            found.append(f"process {process.name}: {said[:200]!r}")
    return found


def connects(cluster: Cluster, node: str, address: str, port: int, python: str) -> bool:
    """Say whether a host of the cluster can connect to another."""
    script = f"import socket; socket.create_connection(({address!r}, {port}), 1).close()"
    return cluster.on(node, [python, "-c", script], check=False).returncode == 0


def test_it_has_four_idle_nodes(any_cluster: Cluster) -> None:
    lines = any_cluster.run(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T %c %G"]).stdout
    assert lines.splitlines() == [f"gpu{number:03d} idle 16 gpu:4" for number in range(1, 5)]


def test_it_runs_the_release_it_is_asked_for(any_cluster: Cluster, request: pytest.FixtureRequest) -> None:
    release = any_cluster.config.release
    assert f"[{release}" in request.node.name
    programs = [["scontrol", "--version"], ["slurmctld", "-V"], ["srun", "srun", "--version"], ["srun", "slurmd", "-V"]]
    said = [any_cluster.run(program).stdout for program in programs]
    assert [line.split()[1].rpartition(".")[0] for line in said] == [release] * 4, said
    daemons = [path.read_text() for path in (any_cluster.run_dir / "log").glob("slurm*.log")]
    assert all(f" version {release}." in log for log in daemons), any_cluster.diagnose()


def test_jobs_do_not_see_the_release_that_was_unpacked(modern_cluster: Cluster, python: str) -> None:
    # A job's libraries are the machine's, though those of its slurmstepd are not.
    script = "import os; print(open('/proc/self/maps').read(), open(f'/proc/{os.getppid()}/maps').read(), sep='---')"
    jobs, _, stepds = modern_cluster.run(["srun", python, "-c", script]).stdout.partition("---")
    place = str(releases.root("24.11"))
    assert place not in jobs
    assert f"{place}/usr/lib" in stepds


def test_hosts_know_and_reach_one_another(any_cluster: Cluster, python: str, tmp_path: Path) -> None:
    script = tmp_path / "meet.py"
    script.write_text(
        textwrap.dedent("""
            import socket, sys, time

            def call(name):
                deadline = time.monotonic() + 20
                while True:
                    try:
                        return socket.create_connection((name, 5000))
                    except ConnectionRefusedError:
                        if time.monotonic() > deadline:
                            raise

            server = socket.create_server((socket.gethostname(), 5000))
            calls = [call(name) for name in sys.argv[1:]]
            peers = {server.accept()[1][0] for _ in sys.argv[1:]}
            print(socket.gethostname(), len(peers))
        """)
    )
    said = any_cluster.run(["srun", "-N4", python, str(script), *any_cluster.nodes]).stdout
    assert sorted(said.splitlines()) == [f"{node} 4" for node in any_cluster.nodes]


def test_nodes_show_their_own_interfaces(cluster: Cluster) -> None:
    assert cluster.on("gpu001", ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]


def test_a_step_gets_the_gpus_it_asked_for_and_no_others(any_cluster: Cluster, python: str) -> None:
    # Of a device that the cgroup denies the kernel says EPERM; of one without a driver, ENXIO.
    script = textwrap.dedent(f"""
        import errno, os
        for gpu in range(4):
            try:
                os.open(f"{any_cluster.run_dir}/dev/gpu{{gpu}}", os.O_RDWR)
            except OSError as error:
                print(errno.errorcode[error.errno])
        print(os.environ["CUDA_VISIBLE_DEVICES"])
    """)
    said = any_cluster.run(["srun", "--gres=gpu:2", python, "-c", script]).stdout.split()
    assert said == ["ENXIO", "ENXIO", "EPERM", "EPERM", "0,1"]


def test_a_signal_reaches_only_the_first_process_of_a_task(any_cluster: Cluster, python: str, tmp_path: Path) -> None:
    script = tmp_path / "family.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal

            family = os.fork()
            caught = []
            signal.signal(signal.SIGUSR1, lambda *_: caught.append("USR1"))
            signal.signal(signal.SIGTERM, lambda *_: caught.append("TERM"))
            if family:
                print("ready", flush=True)
                while not caught:
                    signal.sigtimedwait([], 0.05)
                print("parent", *caught, flush=True)
                os.kill(family, signal.SIGTERM)
                os.waitpid(family, 0)
            else:
                while "TERM" not in caught:
                    signal.sigtimedwait([], 0.05)
                print("child", *caught, flush=True)
        """)
    )
    job = any_cluster.sbatch(f"exec srun {python} {script}", cwd=tmp_path)
    wait_for(lambda: "ready" in job.output(), 30, job.describe)
    job.signal("USR1")
    assert job.wait().output.split("\n")[:3] == ["ready", "parent USR1", "child TERM"]


@pytest.mark.parametrize(("script", "ending"), [
    ("true", ("COMPLETED", 0, 0, 0)),
    ("exit 42", ("FAILED", 42, 0, 0)),
    ("kill -KILL $$", ("FAILED", 0, 9, 0)),
    ("srun sh -c 'exit 43'; exit 0", ("COMPLETED", 0, 0, 43)),
])  # fmt: skip
def test_a_job_tells_how_it_ended(
    any_cluster: Cluster, tmp_path: Path, script: str, ending: tuple[str, int, int, int]
) -> None:
    result = any_cluster.sbatch(script, cwd=tmp_path).wait()
    assert (result.state, result.exit_code, result.signal, result.derived) == ending


def test_a_job_can_be_cancelled(any_cluster: Cluster, tmp_path: Path) -> None:
    job = any_cluster.sbatch("sleep 1000", cwd=tmp_path)
    job.wait_for_state("RUNNING")
    job.cancel()
    assert job.wait().state == "CANCELLED"


def test_an_urgent_job_preempts_and_the_other_is_requeued(any_cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo "run $SLURM_RESTART_COUNT"; [ "$SLURM_RESTART_COUNT" ] || sleep 1000'
    job = any_cluster.sbatch(script, "--nodes=4", "--exclusive", cwd=tmp_path)
    job.wait_for_state("RUNNING")
    assert any_cluster.sbatch("true", "--partition=urgent", "--nodes=4", cwd=tmp_path).wait().state == "COMPLETED"
    result = job.wait()
    assert (result.state, result.output.split()[-1]) == ("COMPLETED", "1"), job.describe()


def test_waiting_in_vain_shows_why(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.sbatch("echo said; sleep 1000", cwd=tmp_path)
    wait_for(lambda: "said" in job.output(), 30, job.describe)
    with pytest.raises(TimeoutError, match=r"(?s)JobState=RUNNING.*its output\nsaid.*squeue.*slurmctld\.log"):
        job.wait(0)


def test_a_command_that_fails_shows_what_it_said(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"exit code 3\n(?s:.*)told"):
        cluster.run(["sh", "-c", "echo told >&2; exit 3"])
    with pytest.raises(ClusterError, match=r"after 0\.5 s, having said:\ntold"):
        cluster.run(["sh", "-c", "echo told; exec sleep 1000"], timeout=0.5)


def test_a_node_can_be_cut_off_and_healed(cluster: Cluster, python: str) -> None:
    def reaches() -> bool:
        return connects(cluster, "gpu001", "head", 6817, python)

    assert reaches()
    cluster.cut("gpu001")
    assert not reaches()
    assert connects(cluster, "gpu002", "head", 6817, python)
    cluster.heal("gpu001")
    wait_for(reaches, 20, "gpu001 does not come back")


def test_a_node_can_be_killed_and_started(any_cluster: Cluster, tmp_path: Path) -> None:
    job = any_cluster.sbatch("sleep 1000", "--nodelist=gpu002", "--no-requeue", cwd=tmp_path)
    wait_for(lambda: any_cluster.processes("gpu002"), 30, job.describe)
    any_cluster.kill("gpu002")
    assert host.members(host.netns(any_cluster.name, "gpu002")) == []
    any_cluster.start("gpu002")
    with pytest.raises(ClusterError, match="gpu002 is running"):
        any_cluster.start("gpu002")
    job.cancel()
    any_cluster.wait_idle(60)


def test_reset_repairs_what_a_test_left(any_cluster: Cluster, tmp_path: Path) -> None:
    job = any_cluster.sbatch("sleep 1000", "-N4", cwd=tmp_path)
    job.wait_for_state("RUNNING")
    with any_cluster.popen(["sleep", "1000"]) as stray:
        wait_for(lambda: any_cluster.processes("head"), 20, "there is no client")
        any_cluster.run(["scontrol", "update", "nodename=gpu003", "state=drain", "reason=test"])
        any_cluster.cut("gpu001")
        any_cluster.kill("gpu002")
        any_cluster.reset()
        assert stray.wait(10) == -signal.SIGKILL
    assert job.state() == "CANCELLED"
    assert [any_cluster.processes(node) for node in any_cluster.nodes] == [[]] * 4


def test_reset_waits_for_no_order_that_was_lost(cluster: Cluster, tmp_path: Path) -> None:
    """A node that was cut off when its job was to end is soon idle: Slurm would repeat the order after a minute."""
    job = cluster.sbatch("sleep 1000", "--nodelist=gpu[001-002]", "--nodes=2", cwd=tmp_path)
    job.wait_for_state("RUNNING")
    cluster.cut("gpu002")
    job.cancel()
    # The asterisk: it does not respond.
    state = ["sinfo", "--noheader", "--nodes=gpu002", "--partition=main", "--format=%T"]
    wait_for(lambda: cluster.run(state).stdout == "completing*\n", 60, cluster.diagnose)
    cluster.reset()

    assert cluster.run(state).stdout == "idle\n"
    assert "gpu002 reason set to: reset" in (cluster.run_dir / "log/slurmctld.log").read_text()


def test_sacct_knows_jobs_where_there_is_accounting(any_accounting_cluster: Cluster, tmp_path: Path) -> None:
    job = any_accounting_cluster.sbatch("exit 7", "--gres=gpu:1", cwd=tmp_path)
    assert job.wait().exit_code == 7
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=State,ExitCode", f"--jobs={job.id}"]
    wait_for(
        lambda: any_accounting_cluster.run(command).stdout == "FAILED|7:0\n",
        30,
        lambda: any_accounting_cluster.run(command).stdout + any_accounting_cluster.diagnose(),
    )


def test_two_clusters_do_not_meet(cluster: Cluster) -> None:
    began = time.monotonic()
    with Cluster(ClusterConfig(nodes=2)) as other:
        assert time.monotonic() - began < 30
        assert other.nodes == cluster.nodes[:2]
        with (
            cluster.popen(["srun", "-N4", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first,
            other.popen(["srun", "-N2", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second,
        ):
            for one in (cluster, other):
                wait_for(lambda one=one: one.processes("gpu001"), 30, one.diagnose)  # type: ignore[misc]
            assert second.communicate("second\n")[0] == "second\n" * 2
            assert first.communicate("first\n")[0] == "first\n" * 4
        assert traces(other.name)
    assert traces(other.name) == []
    other.down()
    cluster.wait_idle()


@pytest.mark.usefixtures("slurm_host")
def test_a_cluster_goes_without_a_trace_while_a_later_one_stays() -> None:
    earlier = Cluster(ClusterConfig(nodes=1))
    with earlier, Cluster(ClusterConfig(nodes=1)):
        earlier.down()
        assert traces(earlier.name) == []


@pytest.mark.usefixtures("slurm_host")
def test_the_end_of_a_fork_is_not_the_end_of_the_cluster(python: str) -> None:
    script = textwrap.dedent("""
        import os, sys
        from tests.cluster import Cluster, ClusterConfig

        cluster = Cluster(ClusterConfig(nodes=1))
        cluster.up()
        if child := os.fork():
            os.waitpid(child, 0)
            print(cluster.run(["srun", "echo", "alive"]).stdout, flush=True)
    """)
    done = subprocess.run([python, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "alive", done.stderr


@pytest.mark.usefixtures("slurm_host")
def test_without_cgroups_and_with_a_second_network(python: str) -> None:
    with Cluster(ClusterConfig(nodes=2, proctrack="linuxproc", second_network=True)) as cluster:
        script = "import socket; print(socket.gethostbyname('gpu002i'), open('/proc/self/cgroup').read())"
        said = cluster.run(["srun", "-N1", python, "-c", script]).stdout
        assert said.startswith("10.78.0.12 ")
        assert "slurm_gpu001" not in said
        assert cluster.on("gpu001", ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "eth1", "lo"]
        with cluster.popen(["python3", "-m", "http.server", "--bind", "gpu002i", "5000"], node="gpu002") as server:
            wait_for(lambda: connects(cluster, "gpu001", "gpu002i", 5000, python), 20, "no connection over eth1")
            cluster.cut("gpu002")
            assert not connects(cluster, "gpu001", "gpu002i", 5000, python)
            server.kill()


HOLDER = """
import sys
from tests.cluster import Cluster, ClusterConfig

cluster = Cluster(ClusterConfig(nodes=1))
cluster.up()
cluster.sbatch("sleep 1000", "--output=/dev/null").wait_for_state("RUNNING")
print(cluster.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("slurm_host")
@pytest.mark.parametrize("end", [None, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_the_tests_end(python: str, end: signal.Signals | None) -> None:
    with holder(python) as process:
        name = name_of(process)
        if end:
            process.send_signal(end)
        process.communicate()
    wait_for(lambda: not traces(name), 120, lambda: "\n".join(traces(name)))


@pytest.mark.usefixtures("slurm_host")
def test_the_next_cluster_removes_what_stays_of_a_dead_one(python: str) -> None:
    with holder(python) as process:
        name = name_of(process)
        guard = next(line for line in traces(name) if "guard" in line)
        os.kill(int(re.findall(r"\d+", guard)[0]), signal.SIGKILL)
        assert traces(name)
        host.remove_leftovers()
        assert traces(name), "a cluster was removed whose owner lives"
        process.kill()
    assert traces(name)
    host.remove_leftovers()
    assert traces(name) == []


def holder(python: str) -> subprocess.Popen[str]:
    """Start a process that has a cluster with a job."""
    return subprocess.Popen(
        [python, "-c", HOLDER],
        cwd=CHECKOUT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def name_of(process: subprocess.Popen[str]) -> str:
    """Wait until such a process has its cluster, and return its name."""
    assert process.stdout
    name = process.stdout.readline().strip()
    assert traces(name)
    return name


def test_a_name_is_taken_only_once(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match="is up already"):
        Cluster(name=cluster.name).up()
    assert Cluster.attach(cluster.name).config == cluster.config
    with pytest.raises(ClusterError, match="no cluster nowhere is up"):
        Cluster.attach("nowhere")
    with pytest.raises(ValueError, match="name"):
        Cluster(name="not-a-name")


def test_extra_lines_replace_settings() -> None:
    text = rendering.slurm_conf(ClusterConfig(extra=("KillWait=3", "PartitionName=more Nodes=ALL")), Path("/somewhere"))
    assert "KillWait=3\n" in text
    assert text.count("KillWait") == 1
    assert text.count("PartitionName") == 3


def test_a_machine_without_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (host.why_unavailable() or "")


def test_a_machine_without_slurm_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(releases, "SYSTEM_PATH", "/nowhere")
    reason = host.why_unavailable(dataclasses.replace(ClusterConfig(), accounting=True)) or ""
    assert "slurmctld" in reason
    assert "apt-get install slurm-wlm munge iproute2 util-linux slurmdbd mariadb-server" in reason


def test_a_machine_without_the_other_release_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(releases, "CACHE", tmp_path)
    reason = host.why_unavailable(ClusterConfig(release="24.11")) or ""
    assert f"not in {tmp_path}/slurm-24.11" in reason
    assert "tools/install_slurm.sh" in reason
