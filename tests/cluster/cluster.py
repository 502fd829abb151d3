"""A cluster: started, used, hurt, healed and removed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster import host, releases
from tests.cluster.config import BRIDGE, HEAD, ClusterConfig, cabling, files, link
from tests.cluster.jobs import Job
from tests.support import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

# What is always there; everything else in a namespace is of a job or a client.
DAEMONS = frozenset({"slurmd", "slurmstepd", "slurmctld", "munged", "slurmdbd", "mariadbd"})

# Where `-m tests.cluster` can be found.
CHECKOUT = Path(__file__).resolve().parents[2]

# NVIDIA's device number. Devices that shared one could not be told apart by the devices cgroup.
GPU_MAJOR = 195


class ClusterError(Exception):
    """A command on the cluster failed, or the cluster did."""


class Cluster:
    """A private Slurm cluster, which ends with this process at the latest.

    Args:
        config: What it is like.
        name: What it is called, in lower-case letters and digits; something unique by default.
        keep: Whether it outlives this process, until someone calls ``down``.
    """

    def __init__(self, config: ClusterConfig | None = None, *, name: str | None = None, keep: bool = False) -> None:
        self.config = config or ClusterConfig()
        self.name = name or secrets.token_hex(3)
        if not re.fullmatch("[a-z0-9]{1,12}", self.name):
            raise ValueError(f"a cluster's name has 1 to 12 lower-case letters and digits, unlike {self.name!r}")
        self.run_dir = host.run_dir(self.name)
        self._cgroups = host.cgroup_version() if self.config.proctrack == "cgroup" else None
        self._keep = keep
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # Nodes that were cut off, moved or killed since the last `reset`.
        self._out_of_reach: set[str] = set()

    @classmethod
    def attach(cls, name: str) -> Cluster:
        """Return a cluster that another process has started."""
        try:
            record = json.loads((host.run_dir(name) / host.RECORD).read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster {name} is up") from None
        record["config"]["extra"] = tuple(record["config"]["extra"])
        return cls(ClusterConfig(**record["config"]), name=name, keep=True)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return self.config.names

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        release = self.config.release
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        return {
            "SLURM_CONF": str(self.run_dir / "slurm.conf"),
            "PATH": f"{releases.programs(release)}{path}:{releases.SYSTEM_PATH}",
        }

    # --- up and down

    def up(self) -> None:
        """Start the cluster and wait until all its nodes are idle."""
        if reason := host.why_unavailable(self.config):
            raise ClusterError(reason)
        host.remove_leftovers()
        self._claim()
        try:
            self._prepare()
            self._start_head()
            for node in self.nodes:
                self.start(node)
            self.wait_idle(60)
        except BaseException as error:
            story = self.diagnose()
            self.down()
            if isinstance(error, Exception):
                raise ClusterError(f"the cluster did not come up: {error}\n{story}") from error
            raise

    def down(self) -> None:
        """Remove everything of the cluster. It may be down already."""
        atexit.unregister(self._down_with)
        guard = self._daemons.pop("guard", None)
        if guard:
            guard.kill()
            guard.wait()
        host.destroy(self.name)
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()

    def _down_with(self, owner: int) -> None:
        if os.getpid() == owner:  # and not a fork of it
            self.down()

    def _claim(self) -> None:
        """Make the run directory, and see to it that the cluster ends with this process however that ends."""
        try:
            self.run_dir.mkdir(mode=0o755)
        except FileExistsError:
            raise ClusterError(f"a cluster {self.name} is up already") from None
        for folder in ("cgroup", "dev", "log", "munge", "mysql", "spool", "state"):
            (self.run_dir / folder).mkdir(mode=0o755)
        if self._cgroups == "v2":
            self.config = replace(self.config, prefix=host.free_prefix(self.config.prefix))
        record = {"owner": None if self._keep else host.identity(os.getpid()), "config": asdict(self.config)}
        (self.run_dir / host.RECORD).write_text(json.dumps(record))
        if not self._keep:
            atexit.register(self._down_with, os.getpid())
            arguments = ["-m", "tests.cluster", "guard", self.name, str(os.getpid())]
            self._spawn("guard", [sys.executable, *arguments], cwd=CHECKOUT)

    def _prepare(self) -> None:
        for name, text in files(self.config, self.run_dir, self._cgroups or "v1").items():
            (self.run_dir / name).write_text(text)
        for gpu in range(self.config.gpus):
            os.mknod(self.run_dir / f"dev/gpu{gpu}", 0o666 | stat.S_IFCHR, os.makedev(GPU_MAJOR, gpu))
        namespaces = {name: host.netns(self.name, name) for name in (HEAD, *self.nodes)}
        for namespace in namespaces.values():
            host.make_namespace(namespace)
        for name, commands in cabling(self.config, namespaces).items():
            host.configure(namespaces[name], commands)
        if self._cgroups == "v1":
            for node in self.nodes:
                host.make_cgroups(self.name, node)

    def _start_head(self) -> None:
        munge = self.run_dir / "munge"
        munge.chmod(0o711)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        (munge / "key").chmod(0o400)
        paths = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={munge / name}" for option, name in paths.items()]
        self._spawn("munged", self._entering(HEAD, ["munged", "--foreground", *options]))
        self._wait_for_daemon("munged", (munge / "socket").is_socket)
        if self.config.accounting:
            self._start_accounting()
        self.start_controller()

    def start_controller(self) -> None:
        """Start slurmctld, which goes on where it was ended."""
        self._spawn("slurmctld", self._entering(HEAD, ["slurmctld", "-D", "-f", str(self.run_dir / "slurm.conf")]))
        self._wait_for_daemon("slurmctld", lambda: self._succeeds(["scontrol", "ping"]))

    def end_controller(self) -> None:
        """End slurmctld in order, as for an upgrade: nobody listens on its port then."""
        daemon = self._daemons["slurmctld"]
        daemon.terminate()
        daemon.wait(60)

    @contextlib.contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """Have slurmctld do nothing for a while; what it is sent meanwhile it does afterwards."""
        daemon = self._daemons["slurmctld"]
        daemon.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            daemon.send_signal(signal.SIGCONT)

    def _start_accounting(self) -> None:
        data = self.run_dir / "mysql"
        shutil.chown(data, "mysql")
        common = ["--no-defaults", "--user=mysql", f"--datadir={data}"]
        self.run(["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"])
        socket = data / "socket"
        small = ["--innodb-buffer-pool-size=64M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]
        where = ["--bind-address=127.0.0.1", f"--socket={socket}", f"--pid-file={data}/pid", "--skip-name-resolve"]
        self._spawn("mariadbd", self._entering(HEAD, ["mariadbd", *common, *where, *small]))
        self._wait_for_daemon("mariadbd", socket.is_socket)
        (self.run_dir / "slurmdbd.conf").chmod(0o600)
        self._spawn("slurmdbd", self._entering(HEAD, ["slurmdbd", "-D"]))
        self._wait_for_daemon("slurmdbd", lambda: self._succeeds(["sacctmgr", "--noheader", "list", "cluster"]))

    def _spawn(self, name: str, argv: Sequence[str], cwd: Path | None = None) -> None:
        """Start a daemon, in a session of its own so that no signal meant for the tests reaches it."""
        with (self.run_dir / f"log/{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd or self.run_dir,
                env=host.system_environment(self.config.release) | {"SLURM_CONF": str(self.run_dir / "slurm.conf")},
            )

    def _wait_for_daemon(self, name: str, ready: Callable[[], bool]) -> None:
        daemon = self._daemons[name]

        def ready_or_dead() -> bool:
            if daemon.poll() is not None:
                raise ClusterError(f"{name} ended at once, with exit code {daemon.returncode}")
            return ready()

        wait_for(ready_or_dead, 30, f"{name} is not ready", pause=0.02)

    def _succeeds(self, argv: Sequence[str]) -> bool:
        return self.run(argv, check=False).returncode == 0

    # --- commands

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60,
        text: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a client on the head.

        Args:
            argv: The command.
            cwd: Where it runs; by default where the tests do.
            env: What it has in its environment besides this process's and `Cluster.env`.
            check: Whether it must succeed.
            timeout: After how many seconds it must have ended.
            text: What it reads.
        """
        return self.on(HEAD, argv, cwd=cwd, env=env, check=check, timeout=timeout, text=text)

    def on(
        self,
        node: str,
        argv: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 60,
        text: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, outside any job: see `run`."""
        with self.popen(
            argv,
            node=node,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(text, timeout=timeout)
            except subprocess.TimeoutExpired as error:
                process.kill()
                said = "".join(_text(part) for part in (error.stdout, error.stderr))
                story = f"{shlex.join(argv)} on {node} still runs after {timeout:g} s, having said:\n{said}"
                raise ClusterError(f"{story}\n{self.diagnose()}") from None
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise ClusterError(f"{shlex.join(argv)} on {node}: exit code {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def ask(self, argv: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Ask Slurm something on the head, in the namespaces of a daemon there.

        It costs a fraction of what `run` does, which makes namespaces of its own: for what is asked again and again.
        """
        daemon = self._daemons.get("munged")
        if daemon is None or daemon.poll() is not None:
            return self.run(argv, check=check)
        command = ["nsenter", f"--target={daemon.pid}", "--net", "--uts", "--mount", "--", *argv]
        environment = {**os.environ, **self.env}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=60
        )
        if check and done.returncode:
            raise ClusterError(f"{shlex.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        node: str = HEAD,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command on the head or a node, to be signalled for example: the process is the command's own."""
        environment = {**os.environ, **self.env, **(env or {})}
        command = self._entering(node, argv)
        return subprocess.Popen(command, cwd=cwd, env=environment, text=True, errors="replace", **options)

    def _entering(self, where: str, argv: Sequence[str]) -> list[str]:
        if where not in (HEAD, *self.nodes):
            raise ValueError(f"{where} is not one of {', '.join((HEAD, *self.nodes))}")
        return host.entering(self.name, where, argv, own_cgroup=self._cgroups == "v1" and where != HEAD)

    def sbatch(
        self,
        script: str,
        *options: str,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Job:
        """Submit a script, given as text; without ``#!`` it is one for bash. It runs in `cwd`, else in `run_dir`."""
        text = script if script.startswith("#!") else f"#!/usr/bin/env bash\n{script}"
        said = self.run(["sbatch", "--parsable", *options], cwd=cwd or self.run_dir, env=env, text=text).stdout
        return Job(self, said.strip().partition(";")[0])

    # --- harm and healing

    def cut(self, node: str) -> None:
        """Unplug a node's cables."""
        self._set_links(node, "down")
        self._out_of_reach.add(node)

    def heal(self, node: str) -> None:
        """Plug a node's cables in again."""
        self._set_links(node, "up")

    def part(self, *nodes: str) -> None:
        """Move nodes to a network of their own, in which they reach each other and nobody else, until ``unite``."""
        commands = ["link add apart type bridge", "link set apart up"]
        commands += [f"link set {link(node, 0)} master apart" for node in nodes]
        host.configure(host.netns(self.name, HEAD), commands)
        self._out_of_reach.update(nodes)

    def unite(self) -> None:
        """Have one network again."""
        bridge = f"{BRIDGE}0"
        commands = [f"link set {link(node, 0)} master {bridge}" for node in self.nodes]
        host.configure(host.netns(self.name, HEAD), [*commands, "link delete apart"])

    def _set_links(self, node: str, state: str) -> None:
        if node not in self.nodes:
            raise ValueError(f"{node} is not one of {', '.join(self.nodes)}")
        cables = [link(node, number) for number in range(len(self.config.networks))]
        host.configure(host.netns(self.name, HEAD), [f"link set {cable} {state}" for cable in cables])

    def kill(self, node: str) -> None:
        """Kill everything on a node, slurmd too. Its peers see closed connections; ``cut`` it first to spare them."""
        if node not in self.nodes:
            raise ValueError(f"{node} is not one of {', '.join(self.nodes)}")
        host.thaw(self.name, node)
        host.kill_members(host.netns(self.name, node))
        self._out_of_reach.add(node)
        if daemon := self._daemons.pop(f"slurmd-{node}", None):
            daemon.wait()

    def start(self, node: str) -> None:
        """Start the slurmd of a node, as after ``kill``, and wait until it runs, which is not yet that it is idle."""
        if self._runs_slurmd(node):
            raise ClusterError(f"{node} is running")
        (self.run_dir / "spool" / node).mkdir(exist_ok=True)
        argv = ["slurmd", "-D", "-N", node, "-f", str(self.run_dir / "slurm.conf")]
        argv += releases.slurmd_options(self.config.release)
        self._spawn(f"slurmd-{node}", self._entering(node, argv))
        self._wait_for_daemon(f"slurmd-{node}", lambda: self._runs_slurmd(node))

    def _runs_slurmd(self, node: str) -> bool:
        return any(host.command_name(pid) == "slurmd" for pid in host.members(host.netns(self.name, node)))

    def reset(self) -> None:
        """Bring the cluster back to all idle, whatever a test has left: jobs, clients, cut cables, dead nodes."""
        if self._is_idle() and not any(map(self.processes, (HEAD, *self.nodes))):
            self._out_of_reach.clear()
            return
        for node in self.nodes:
            self.heal(node)
            if not self._runs_slurmd(node):
                self.start(node)
        jobs = self.run(["squeue", "--noheader", "--format=%A"]).stdout.split()
        if jobs:
            self.run(["scancel", *jobs], check=False)
        host.kill_members(*(host.netns(self.name, name) for name in (HEAD, *self.nodes)), spare=DAEMONS)

        def idle_again() -> bool:
            states = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%n %T"]
            for node, state in map(str.split, self.ask(states, check=False).stdout.splitlines()):
                # A node that was cut off can be taken for down after it has been healed.
                if state.startswith(("down", "drain", "fail")):
                    self.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
                # Or the order to end a job was lost on the way: Slurm repeats it after a minute or more.
                elif state.startswith("completing") and node in self._out_of_reach and not self.processes(node):
                    self.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=reset"], check=False)
            return self._is_idle()

        self._wait(idle_again, 90)
        self._out_of_reach.clear()

    # --- looking

    def wait_idle(self, timeout: float = 30) -> None:
        """Wait until all nodes are idle and there are no jobs, not even pending ones."""
        self._wait(self._is_idle, timeout)

    def _wait(self, idle: Callable[[], bool], timeout: float) -> None:
        wait_for(idle, timeout, lambda: f"not all idle\n{self.diagnose()}", pause=0.05)

    def _is_idle(self) -> bool:
        states = self.ask(["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"], check=False).stdout
        if states.split() != ["idle"] * self.config.nodes:
            return False
        queue = self.ask(["squeue", "--noheader"], check=False)
        return queue.returncode == 0 and not queue.stdout

    def processes(self, node: str) -> list[int]:
        """List the processes on a node that are of jobs or commands, not Slurm's own."""
        pids = host.members(host.netns(self.name, node))
        return [pid for pid in pids if host.command_name(pid) not in DAEMONS | {""}]

    def diagnose(self) -> str:
        """Tell the state of everything, for the message of a failure."""
        parts = []
        for command in (["sinfo", "--Node", "--long"], ["squeue"]):
            with contextlib.suppress(Exception):  # the story of a failure must not be another failure
                done = _output(self._entering(HEAD, command), self.env)
                parts.append(f"--- {shlex.join(command)}\n{done}")
        for log in sorted((self.run_dir / "log").glob("*")):
            if log.suffix == ".out" and log.with_suffix(".log").exists():
                continue  # says the same
            with contextlib.suppress(OSError):
                tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
                if tail:
                    parts.append(f"--- {log.name}\n{tail}")
        return "\n".join(parts)


def _text(said: str | bytes | None) -> str:
    """Return what a process has said before it took too long: bytes, whatever else one asked for."""
    return said.decode(errors="replace") if isinstance(said, bytes) else said or ""


def _output(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """Run a command that may well fail, and return what it says."""
    done = subprocess.run(
        argv, env={**os.environ, **env}, capture_output=True, text=True, errors="replace", timeout=10, check=False
    )
    return done.stdout + done.stderr
