"""What is done to the machine: namespaces, cgroups and processes, found again by the name of their cluster.

Whatever runs in a network namespace of a cluster belongs to that cluster, and nothing else does. So a cluster can
be taken down by anyone who knows its name, whichever of its processes still live.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import string
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.cluster import releases
from tests.cluster.config import ClusterConfig
from tests.support import wait_for

NETNS = Path("/run/netns")
CGROUPS = Path("/sys/fs/cgroup")
# The cgroup trees that Slurm uses with cgroup v1; memory where there are limits.
HIERARCHIES = ("freezer", "devices", *(["memory"] if (CGROUPS / "memory").is_dir() else []))

# The file in a run directory that says whose cluster it is, and what it is like.
RECORD = "cluster.json"

# Run in a fresh mount and UTS namespace: make this process a host of the cluster, then become the command.
# /sys shows the network of the namespace it is mounted in, so each host needs its own, but with the cgroups there:
# without them slurmd does not start. (That is why nodes are not entered with `ip netns exec`.)
# Of the cgroups (v1) a node sees only its own part, as its root: slurmd names its groups after the node alone.
ENTER = """
set -e
host=$1 run_dir=$2 group=$3 hierarchies=$4; shift 4
hostname "$host"
mount --bind "$run_dir/hosts" /etc/hosts
mount --rbind /sys/fs/cgroup "$run_dir/cgroup"
mount -t sysfs sysfs /sys
mount --move "$run_dir/cgroup" /sys/fs/cgroup
for hierarchy in $hierarchies; do
    echo $$ >"/sys/fs/cgroup/$hierarchy/$group/cgroup.procs"
    mount --bind "/sys/fs/cgroup/$hierarchy/$group" "/sys/fs/cgroup/$hierarchy"
done
if [ -n "$hierarchies" ]; then exec unshare --cgroup "$@"; fi
exec "$@"
"""


def why_unavailable(config: ClusterConfig | None = None) -> str | None:
    """Say why such a cluster cannot run on this machine, and what to do about it; None if it can."""
    config = config or ClusterConfig()
    if os.geteuid() != 0:
        return "the Slurm cluster of the tests needs root (namespaces, cgroups): run them as root, in a container say"
    programs = ["slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare"]
    packages = "slurm-wlm munge iproute2 util-linux"
    if config.accounting:
        programs += ["slurmdbd", "mariadbd", "mariadb-install-db"]
        packages += " slurmdbd mariadb-server"
    path = releases.path(config.release)
    missing = [program for program in programs if not shutil.which(program, path=path)]
    if missing:
        return f"the Slurm cluster of the tests needs {', '.join(missing)}: apt-get install {packages}"
    place = releases.root(config.release)
    if place and not place.is_dir():
        return f"the Slurm {config.release} of the tests is not in {place}: tools/install_slurm.sh puts it there"
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    for capability, bit in {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_MKNOD": 27}.items():
        if not effective >> bit & 1:
            return f"the Slurm cluster of the tests needs {capability}: in a container, run that with --privileged"
    if config.proctrack == "cgroup":
        return _why_no_cgroups()
    return None


def _why_no_cgroups() -> str | None:
    version = cgroup_version()
    if version is None:
        return f"the Slurm cluster of the tests needs cgroups, and {CGROUPS} has none"
    for folder in [CGROUPS / hierarchy for hierarchy in HIERARCHIES] if version == "v1" else [CGROUPS]:
        if not folder.is_dir():
            return f"the Slurm cluster of the tests needs {folder}"
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return f"the Slurm cluster of the tests needs to write to {folder}: run the container with --privileged"
    return None


def cgroup_version() -> str | None:
    """Say which cgroup interface this machine has."""
    if (CGROUPS / "cgroup.controllers").exists():
        return "v2"
    return "v1" if (CGROUPS / "freezer").is_dir() else None


def run_dir(name: str) -> Path:
    """Say where the files of a cluster are."""
    return Path("/run") / f"hpc-launch-test-{name}"


def netns(name: str, host: str) -> str:
    """Name the network namespace of a host."""
    return f"hl-{name}-{host}"


def cgroup(name: str, host: str) -> str:
    """Name the cgroup of a node (v1)."""
    return f"hl-{name}/{host}"


def _scope(node: str) -> Path:
    """Say which cgroup the slurmd of a node makes with cgroup v2.

    There a node cannot have a part of the tree for its root: slurmd also looks at /proc/1/cgroup, and understands
    it only in terms of the host's root.
    """
    return CGROUPS / f"system.slice/{node}_slurmstepd.scope"


def free_prefix(prefix: str) -> str:
    """Return the prefix, made longer if the nodes of another cluster use it and would share cgroups (v2 only)."""
    prefixes = [prefix, *(prefix + letter for letter in string.ascii_lowercase)]
    return next(free for free in prefixes if not _scope(f"{free}001").exists())


def entering(name: str, host: str, argv: Iterable[str], *, own_cgroup: bool) -> list[str]:
    """Turn a command into one that runs it on a host of a cluster.

    Every program on the way becomes the next one, so that the process started is the command itself in the end.

    Args:
        name: The cluster.
        host: One of its nodes, or the head.
        argv: The command.
        own_cgroup: Whether `make_cgroups` has made some for the host.
    """
    into = ["nsenter", f"--net={NETNS / netns(name, host)}"]
    into += ["unshare", "--uts", "--mount", "--", "sh", "-c", ENTER]
    groups = [cgroup(name, host), " ".join(HIERARCHIES)] if own_cgroup else ["", ""]
    return [*into, "enter", host, str(run_dir(name)), *groups, *argv]


def system_environment(release: releases.Release) -> dict[str, str]:
    """Return an environment for the daemons of a release that owes nothing to the caller's."""
    return {"PATH": releases.path(release), "HOME": "/", "LANG": "C.UTF-8"}


def make_namespace(namespace: str) -> None:
    """Make a network namespace."""
    _ip("netns", "add", namespace)


def configure(namespace: str, commands: Iterable[str]) -> None:
    """Run `ip` commands in a network namespace."""
    _ip("-netns", namespace, "-batch", "-", text="\n".join(commands) + "\n")


def _ip(*arguments: str, text: str = "") -> None:
    done = subprocess.run(["ip", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}\n{text}")


def members(*namespaces: str) -> list[int]:
    """List the processes in network namespaces, apart from those that have ended."""
    inodes = set()
    for namespace in namespaces:
        with contextlib.suppress(FileNotFoundError):
            inodes.add(_file_identity(NETNS / namespace))
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _file_identity(process / "ns/net") in inodes:
                found.append(int(process.name))
    return found


def _file_identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def command_name(pid: int) -> str:
    """Return the short name of a process; empty if there is none such."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def kill_members(*namespaces: str, spare: Iterable[str] = (), timeout: float = 20) -> None:
    """Kill the processes in network namespaces until there are none, apart from those called as in ``spare``."""

    def all_gone() -> bool:
        pids = [pid for pid in members(*namespaces) if command_name(pid) not in spare]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_for(all_gone, timeout, lambda: f"still alive in {namespaces}: {members(*namespaces)}", pause=0.01)


def make_cgroups(name: str, host: str) -> None:
    """Make the cgroups of a node (v1)."""
    for hierarchy in HIERARCHIES:
        (CGROUPS / hierarchy / cgroup(name, host)).mkdir(parents=True, exist_ok=True)


def _cgroup_trees(name: str) -> list[Path]:
    """List the cgroups of a cluster."""
    trees = [CGROUPS / hierarchy / f"hl-{name}" for hierarchy in HIERARCHIES]
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((run_dir(name) / RECORD).read_text())["config"]
        trees += map(_scope, ClusterConfig(**config).names)
    return [tree for tree in trees if tree.is_dir()]


def _groups(tree: Path) -> Iterator[Path]:
    """Walk a tree of cgroups from the leaves up."""
    for folder, _, _ in os.walk(tree, topdown=False):
        yield Path(folder)


def thaw(name: str, host: str = "") -> None:
    """Let frozen processes of a cluster or of one node run: a frozen process cannot even be killed."""
    for tree in _cgroup_trees(name):
        for group in _groups(tree):
            if host not in str(group):  # which has the node's name in it
                continue
            for control, running in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    if (group / control).exists():
                        (group / control).write_text(running)


def _remove_cgroups(name: str) -> None:
    def removed() -> bool:
        for tree in _cgroup_trees(name):
            for group in _groups(tree):
                with contextlib.suppress(OSError):  # busy for as long as the kernel still buries its processes
                    group.rmdir()
        return not _cgroup_trees(name)

    wait_for(removed, 20, lambda: f"cgroups stay: {_cgroup_trees(name)}", pause=0.01)


def destroy(name: str) -> None:
    """Remove everything of a cluster, however little is left of it, and however many do so at a time.

    With its processes and namespaces go the interfaces, bridges and mounts in them. The run directory goes last:
    as long as anything is left, it can be found.
    """
    namespaces = [path.name for path in NETNS.glob(netns(name, "*"))]
    thaw(name)
    kill_members(*namespaces)
    for namespace in namespaces:
        with contextlib.suppress(OSError):
            _ip("netns", "delete", namespace)
    _remove_cgroups(name)
    shutil.rmtree(run_dir(name), ignore_errors=True)


def identity(pid: int) -> str | None:
    """Tell a process from every other, even a later one of the same number; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{pid} {fields[19]}"


def remove_leftovers() -> None:
    """Remove clusters whose owner ended without doing so (it and its guard were killed, for instance)."""
    for record in Path("/run").glob(f"{run_dir('*').name}/{RECORD}"):
        with contextlib.suppress(OSError, ValueError):  # being removed, or only just made
            owner = json.loads(record.read_text())["owner"]
            if owner is not None and identity(int(owner.split()[0])) != owner:
                destroy(record.parent.name.removeprefix(run_dir("").name))


def guard(name: str, owner: int) -> None:
    """Wait for the end of the process that started this one, then remove its cluster.

    A pipe would do as well, but for children of the owner that inherit its end and outlive it.
    """
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(owner)
        if os.getppid() == owner:  # else it ended before, and another process may bear its number now
            select.select([watched], [], [])
    destroy(name)
