"""What a cluster is like, and the files that tell Slurm so. Nothing here has an effect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.cluster import releases

HEAD = "head"
HEAD_ADDRESS = "10.77.0.1"
BRIDGE = "fabric"


@dataclass(frozen=True)
class ClusterConfig:
    """What a cluster is like.

    Attributes:
        nodes: How many nodes it has.
        gpus: GPUs per node, as far as Slurm knows: device files that no driver backs.
        cpus: CPUs per node, as far as Slurm knows.
        memory: Memory per node in MB, as far as Slurm knows.
        memory_limits: Whether Slurm gives memory out, and, with proctrack cgroup, the kernel enforces that.
        kill_wait: Seconds between SIGTERM and SIGKILL at a time limit, a cancellation or a preemption: by default as
            many as Slurm's own default, which leaves the workers of a test on a slow machine enough.
        release: Which Slurm it runs.
        accounting: Whether slurmdbd runs, so that sacct works.
        proctrack: ``cgroup`` is what production uses: a signal reaches only the first process of a task, and
            devices are constrained. ``linuxproc`` does without cgroups altogether, as some sites do.
        signal_children: Whether a signal reaches all processes of a step with ``cgroup`` too (from Slurm 23.11 on).
        prefix: Nodes are called ``<prefix>001`` and so on (see `host.free_prefix` for the exception).
        second_network: Whether nodes have a second interface eth1, as with InfiniBand, named ``<node>i`` in hosts.
        extra: Further lines of slurm.conf; one that sets a parameter again replaces it.
    """

    nodes: int = 4
    gpus: int = 4
    cpus: int = 16
    memory: int = 4000
    memory_limits: bool = False
    kill_wait: int = 30
    release: releases.Release = releases.DEFAULT
    accounting: bool = False
    proctrack: Literal["cgroup", "linuxproc"] = "cgroup"
    signal_children: bool = False
    prefix: str = "gpu"
    second_network: bool = False
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(f"{self.prefix}{number:03d}" for number in range(1, self.nodes + 1))

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks, each as the first three numbers of its addresses."""
        return ("10.77.0", "10.78.0") if self.second_network else ("10.77.0",)


def link(node: str, network: int) -> str:
    """Name the end of a node's cable that is at the head: also the node's host name in that network."""
    return node + ("i" * network)


def cabling(config: ClusterConfig, netns: dict[str, str]) -> dict[str, list[str]]:
    """Say which `ip` commands make the networks, by the host in whose namespace they run (the head first).

    Args:
        config: The cluster.
        netns: The network namespaces' names, by host.
    """
    commands: dict[str, list[str]] = {host: ["link set lo up"] for host in (HEAD, *config.names)}
    for number, network in enumerate(config.networks):
        bridge = f"{BRIDGE}{number}"
        commands[HEAD] += [
            f"link add {bridge} type bridge",
            f"address add {network}.1/24 dev {bridge}",
            f"link set {bridge} up",
        ]
        for position, node in enumerate(config.names, start=11):
            cable = link(node, number)
            commands[HEAD] += [
                f"link add {cable} type veth peer name eth{number} netns {netns[node]}",
                f"link set {cable} master {bridge} up",
            ]
            commands[node] += [
                f"address add {network}.{position}/24 dev eth{number}",
                f"link set eth{number} up",
            ]
    return commands


def files(config: ClusterConfig, run_dir: Path, cgroup: str) -> dict[str, str]:
    """Write the files of a cluster, by their names below its run directory."""
    texts = {
        "slurm.conf": slurm_conf(config, run_dir),
        "gres.conf": "".join(f"Name=gpu File={run_dir}/dev/gpu{gpu}\n" for gpu in range(config.gpus)),
        "cgroup.conf": cgroup_conf(config, cgroup),
        "hosts": hosts(config),
    }
    return texts | ({"slurmdbd.conf": slurmdbd_conf(config, run_dir)} if config.accounting else {})


def hosts(config: ClusterConfig) -> str:
    """Write the /etc/hosts that head and nodes see. A host that cannot resolve its own name is no healthy host."""
    lines = ["127.0.0.1 localhost", "::1 localhost"]
    for number, network in enumerate(config.networks):
        lines.append(f"{network}.1 {link(HEAD, number)}")
        lines += [f"{network}.{position} {link(node, number)}" for position, node in enumerate(config.names, start=11)]
    return "\n".join(lines) + "\n"


def slurm_conf(config: ClusterConfig, run_dir: Path) -> str:
    """Write slurm.conf."""
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{HEAD}({HEAD_ADDRESS})",
        **releases.plugins(config.release),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A job that is requeued waits until its old credential has expired: seconds instead of two minutes.
        "AuthInfo": f"socket={run_dir}/munge/socket,cred_expire=5",
        "StateSaveLocation": f"{run_dir}/state",
        "SlurmdSpoolDir": f"{run_dir}/spool/%n",
        "SlurmctldPidFile": f"{run_dir}/slurmctld.pid",
        "SlurmdPidFile": f"{run_dir}/slurmd-%n.pid",
        "SlurmctldLogFile": f"{run_dir}/log/slurmctld.log",
        "SlurmdLogFile": f"{run_dir}/log/slurmd-%n.log",
        "LogTimeFormat": "iso8601_ms",
        "ProctrackType": f"proctrack/{config.proctrack}",
        # Without task/affinity: it cannot lay out tasks on more CPUs than the machine really has.
        "TaskPlugin": "task/cgroup" if config.proctrack == "cgroup" else "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "ReturnToService": "2",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core_Memory" if config.memory_limits else "CR_Core",
        "GresTypes": "gpu",
        "SlurmdTimeout": "20",
        "SlurmctldTimeout": "30",
        "InactiveLimit": "0",
        "KillWait": str(config.kill_wait),
        # `scontrol show job` is how tests learn what became of a job, so jobs stay known.
        "MinJobAge": "3600",
        # Heterogeneous jobs are begun by the backfill scheduler only, which looks every half a minute otherwise.
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
        "JobCompType": "jobcomp/filetxt",
        "JobCompLoc": f"{run_dir}/log/jobcomp",
        "PrologFlags": "Alloc",
        "JobRequeue": "1",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # Nodes may claim more CPUs than the machine has.
        "SlurmdParameters": "config_overrides",
        "LaunchParameters": "use_interactive_step",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
    }
    if config.accounting:
        settings |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": HEAD,
            # Not a password: where clients of slurmdbd find munged, for which they do not ask AuthInfo.
            "AccountingStoragePass": f"{run_dir}/munge/socket",
            "AccountingStorageTRES": "gres/gpu",
            "JobAcctGatherType": "jobacct_gather/linux",
        }
    network = config.networks[0]
    who = f"NodeName={config.prefix}[001-{config.nodes:03d}] NodeAddr={network}.[11-{10 + config.nodes}]"
    lines = [
        f"{who} CPUs={config.cpus} RealMemory={config.memory} Gres=gpu:{config.gpus} State=UNKNOWN",
        "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1",
        "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
    ]
    for line in config.extra:
        key, _, value = line.partition("=")
        if key in {"NodeName", "PartitionName"}:
            lines.append(line)
        else:
            settings[key] = value
    return "\n".join([f"{key}={value}" for key, value in settings.items()] + lines) + "\n"


def cgroup_conf(config: ClusterConfig, cgroup: str) -> str:
    """Write cgroup.conf. A test has no business with the host's systemd: with v2 slurmd makes its groups itself."""
    lines = [f"CgroupPlugin=cgroup/{cgroup}", "ConstrainDevices=yes", "ConstrainCores=no"]
    lines += ["ConstrainRAMSpace=yes", "ConstrainSwapSpace=yes"] if config.memory_limits else []
    lines += ["IgnoreSystemd=yes"] if cgroup == "v2" else []
    lines += ["SignalChildrenProcesses=yes"] if config.signal_children else []
    return "\n".join(lines) + "\n"


def slurmdbd_conf(config: ClusterConfig, run_dir: Path) -> str:
    """Write slurmdbd.conf. The head's loopback is its own, so the database has the usual port there."""
    settings = {
        **releases.plugins(config.release),
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={run_dir}/munge/socket",
        "DbdHost": HEAD,
        "SlurmUser": "root",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StorageUser": "root",
        "StorageLoc": "slurm_acct",
        "PidFile": f"{run_dir}/slurmdbd.pid",
        "LogFile": f"{run_dir}/log/slurmdbd.log",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())
