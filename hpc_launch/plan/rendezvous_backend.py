"""By which rendezvous the agents meet, and where its first node is found. Pure."""

from __future__ import annotations

from hpc_launch.errors import UsageError
from hpc_launch.node import network
from hpc_launch.plan.launch_plan import DerivedValue, origin_of
from hpc_launch.settings import Origin, Settings
from hpc_launch.world import World

# torchrun's default of --master-port with static rendezvous (torch/distributed/run.py).
_STATIC_PORT = 29500


def choose_rendezvous_backend(settings: Settings, found: World) -> str:
    """The backend: our own wherever the nodes are known; torchrun's rule where they are described by hand.

    Raises:
        UsageError: for an endpoint without a backend, and for options that the backend has no place for.
    """
    backend = _backend(settings, found)
    if settings.hang_timeout and backend != "slurm":
        raise UsageError(
            f"--hang-timeout: the agents tell each other that somebody makes progress, which the {backend} rendezvous "
            "has no place for: leave it out, or use --rdzv-backend slurm",
            option="--hang-timeout",
        )
    return backend


def _backend(settings: Settings, found: World) -> str:
    if settings.rdzv_backend is not None:
        if settings.standalone and settings.rdzv_backend != "slurm":
            return "slurm"  # torchrun's --standalone overrides the backend too
        return settings.rdzv_backend
    by_hand = settings.node_rank is not None or settings.master_addr is not None
    known = found.origin in (Origin.STEP, Origin.JOB, Origin.HOSTS) or settings.standalone
    if not known and len(found.hosts) > 1:
        if settings.rdzv_endpoint is not None and not by_hand:
            raise UsageError(
                f"--rdzv-endpoint {settings.rdzv_endpoint} needs --rdzv-backend (c10d, etcd, ...)",
                option="--rdzv-endpoint",
            )
        return "static"
    return "slurm"


def leaders(settings: Settings, found: World) -> tuple[tuple[str, ...], str]:
    """Under which names the first node may be found, the most trusted first."""
    if settings.standalone:
        return ("127.0.0.1",), settings.origin("standalone").value
    if settings.rdzv_endpoint:
        return (network.split_endpoint(settings.rdzv_endpoint)[0],), settings.origin("rdzv_endpoint").value
    if settings.master_addr:
        return (network.split_endpoint(settings.master_addr)[0],), settings.origin("master_addr").value
    if len(found.hosts) == 1:
        return ("127.0.0.1",), "one node"
    if found.origin in (Origin.STEP, Origin.HOSTS):
        return (found.hosts[0],), f"first of the {found.origin.value}'s nodes"
    return ("127.0.0.1",), Origin.DEFAULT.value


def endpoint(settings: Settings, found: World, backend: str, leader: str, port: int) -> str:
    """Where the backend is found: as given, else as torchrun would make it; our own needs no word about it."""
    if settings.rdzv_endpoint and not settings.standalone:
        return settings.rdzv_endpoint
    if backend == "static":
        usual = port if found.origin is Origin.STEP else _STATIC_PORT
        return network.join_endpoint(leader, settings.master_port or usual)
    if backend == "c10d":
        # An agent that meets nobody needs no port that others know, and must not meet another run's: they share "none".
        return network.join_endpoint(leader, port if found.agents > 1 else 0)
    return ""


def master_port(settings: Settings, backend: str, endpoint: str, candidate: int) -> DerivedValue:
    """The port of the first node, as far as it is known before the nodes talk."""
    if settings.master_port is None and backend == "static":
        port = network.split_endpoint(endpoint)[1]
        return DerivedValue("master_port", str(port or "missing"), "rendezvous endpoint")
    origin = origin_of(settings, "master_port", "first of the port range that is free, by a hash of rdzv_id")
    return DerivedValue("master_port", str(settings.master_port or candidate), origin)
