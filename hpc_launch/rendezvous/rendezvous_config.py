"""The configuration of an agent's rendezvous: who it is, whom it is to meet, and by which keys."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from hpc_launch import slow_storage
from hpc_launch.console import say
from hpc_launch.errors import HpcLaunchError, LogDirError, NoSecretError, UsageError
from hpc_launch.node import network
from hpc_launch.plan.identity import UNKNOWN, Identity
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.rendezvous.transport import keys
from hpc_launch.rendezvous.transport.keys import Keyring
from hpc_launch.settings import Settings


@dataclass(frozen=True)
class RendezvousConfig:
    """What an agent brings to the rendezvous.

    Attributes:
        run_id: the name of the run.
        agent: number of this agent.
        agents: how many there are.
        host: this node.
        hosts: all nodes.
        agents_per_host: how many agents each of them has; None where this node does not know.
        leader: whether this agent hosts the store.
        leaders: names under which the leader's node may be found.
        ports: ports to try.
        workers: how many workers this agent starts.
        join_timeout: seconds to wait for agents that are missing.
        max_restarts: the job's budget.
        local_addr: the address to advertise; found where None.
        interface: whose address to advertise, as --interface says.
        master_port: the port of the workers' store; a free one where None.
        job: the job directory, its name empty where the leader chooses it.
        software: what must be the same on every node.
        problem: why this node cannot take part, for all to hear; None if it can.
        elastic: whether the run goes on without nodes that are lost.
        minimum: how many nodes it needs at least to go on.
        spares: how many nodes have no workers as long as they are not needed.
        node_timeout: seconds without an answer after which a node is lost.
        identity: which agents may be of the run, and what it continues.
        keyring: by which secrets they know each other; None where an agent meets no others.
        store_ports: the ports of the workers' stores.
        verbose: say what is refused to strangers.
    """

    run_id: str
    agent: int
    agents: int
    host: str
    hosts: Sequence[str]
    agents_per_host: Sequence[int] | None
    leader: bool
    leaders: Sequence[str]
    ports: Sequence[int]
    workers: int
    join_timeout: float
    max_restarts: int
    local_addr: str | None
    interface: str
    master_port: int | None
    job: JobDirectory
    software: Mapping[str, str] = field(default_factory=dict)
    problem: HpcLaunchError | None = None
    elastic: bool = False
    minimum: int = 1
    spares: int = 0
    node_timeout: float = 10.0
    identity: Identity = UNKNOWN
    keyring: Keyring | None = None
    store_ports: Sequence[int] = ()
    verbose: bool = False

    @property
    def silence(self) -> float:
        """Seconds without an answer of its kernel after which a node is gone."""
        return self.node_timeout if self.elastic else _SILENCE_SECONDS


# A node of a run of fixed size that does not answer for so long is gone.
_SILENCE_SECONDS = 10.0


def config_of(plan: Plan, environ: Mapping[str, str], problem: HpcLaunchError | None = None) -> RendezvousConfig:
    """The config of an agent that follows `plan`.

    Raises:
        NoSecretError: when it has nothing by which the others could know it.
        UsageError: when a secret that the user gave is unusable.
    """
    world, settings = plan.world, plan.settings
    ports: Sequence[int] = plan.ports
    endpoint_port = network.split_endpoint(plan.endpoint)[1] if plan.endpoint else None
    if endpoint_port:
        ports = (endpoint_port,)
    return RendezvousConfig(
        run_id=plan.run_id,
        agent=world.agent_rank,
        agents=world.agents,
        host=world.host,
        hosts=world.hosts,
        agents_per_host=None if world.task_per_rank else (1,) * world.agents,
        leader=world.leader,
        leaders=plan.leaders,
        ports=ports,
        workers=plan.local_world_size,
        join_timeout=_join_timeout(settings),
        max_restarts=settings.max_restarts,
        local_addr=settings.local_addr,
        interface=settings.interface,
        master_port=settings.master_port,
        job=JobDirectory(plan.log_root, plan.job_name),
        software={
            "Python": platform.python_version(),
            "torch": torch.__version__,
            # An id of the user's own may join different programs (srun --multi-prog).
            **({} if plan.identity.explicit else {"script": plan.script[0] if plan.script else ""}),
        },
        problem=problem,
        elastic=plan.elastic,
        minimum=plan.nnodes.minimum if plan.elastic else world.agents,
        spares=settings.spares,
        node_timeout=settings.node_timeout,
        identity=plan.identity,
        keyring=_keyring(plan, environ) if world.agents > 1 else None,
        store_ports=plan.store_ports,
        verbose=settings.verbose,
    )


def _keyring(plan: Plan, environ: Mapping[str, str]) -> Keyring:
    """The secrets of this agent."""
    world, place = plan.world, plan.identity.place
    job = JobDirectory(plan.log_root, plan.job_name)
    file = job.secret(place) if plan.job_name else None

    def collect() -> Keyring:
        if file is not None and world.leader:
            with contextlib.suppress(LogDirError):
                directory.make(job.path)
        insecure = plan.settings.insecure_rendezvous
        return keys.collect_keys(environ, place, job_file=file, leader=world.leader, insecure=insecure)

    found = slow_storage.wait_for(collect, f"the files of secrets in the home directory and in {job.path}")
    if plan.settings.verbose:
        say(f"secrets of this agent: {found.described}")
        for skipped in found.skipped:
            say(f"left out: {skipped}")
    if found.empty and not found.expects_more:
        raise NoSecretError(
            f"{world.host} has no secret by which the agents of this run know each other ({'; '.join(found.skipped)}): "
            "export HPC_LAUNCH_SECRET=$(openssl rand -hex 32) before srun, or use --insecure-rendezvous"
        )
    return found


def _join_timeout(settings: Settings) -> float:
    """--join-timeout, or what torch's own backends call so in --rdzv-conf."""
    configuration = dict(settings.rdzv_conf)
    text = configuration.get("join_timeout", configuration.get("timeout"))
    if text is None or settings.given("join_timeout"):
        return settings.join_timeout
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--rdzv-conf: timeout '{text}' is not a number of seconds", option="--rdzv-conf") from None
