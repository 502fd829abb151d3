"""Other rendezvous backends than `slurm`: c10d, static, etcd, or any that is registered with torch.

torch's own loop runs the agents then. They count restarts and judge failures each for itself; only the name of an
attempt in the job directory is agreed on here, so that its files lie together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, Store  # type: ignore[attr-defined]  # public, but its types do not export it
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError as TorchRendezvousError

from hpc_launch import torch_private
from hpc_launch.agent.torch_adapter import first_line
from hpc_launch.errors import RendezvousError, UsageError
from hpc_launch.node import network
from hpc_launch.plan.launch_plan import Plan
from hpc_launch.settings import Origin

# Where the number of an attempt is found in the agents' store, and how long it may take until it is there.
_KEY = "hpc-launch/attempt"
_NUMBER_SECONDS = timedelta(seconds=30)
_LONGEST_NUMBER = 9


def make_handler(plan: Plan) -> RendezvousHandler:
    """Make torch's handler of the backend that was asked for.

    Raises:
        UsageError: when torch does not know it.
        RendezvousError: when it cannot be made.
    """
    settings = plan.settings
    configuration: dict[str, Any] = dict(settings.rdzv_conf)
    configuration.setdefault("timeout", int(settings.join_timeout))
    numbered = plan.world.origin in (Origin.STEP, Origin.HOSTS) or settings.node_rank is not None
    if plan.backend == "static":
        configuration["rank"] = plan.world.agent_rank
    elif plan.backend == "c10d" and numbered and not plan.world.task_per_rank and len(plan.world.hosts) > 1:
        # torch guesses the host by comparing names, and is wrong on nodes with several (pytorch/pytorch#73656).
        named = network.short_name(network.split_endpoint(plan.endpoint)[0])
        if named in (network.short_name(name) for name in (plan.world.hosts[0], *plan.leaders)):
            configuration.setdefault("is_host", "1" if plan.world.node_rank == 0 else "0")
    # Workers that share the agents' store read there what the attempt before has left, and cannot start again.
    os.environ.setdefault(torch_private.OWN_STORE, "1")
    parameters = RendezvousParameters(
        backend=plan.backend,
        endpoint=plan.endpoint,
        run_id=plan.run_id,
        min_nodes=plan.nnodes.minimum,
        max_nodes=plan.nnodes.maximum,
        local_addr=settings.local_addr,
        **configuration,
    )
    try:
        return torch_private.rendezvous_handler(parameters)
    except torch_private.UnknownBackendError:
        raise UsageError(
            f"--rdzv-backend: '{plan.backend}' is not a rendezvous backend that torch knows: slurm, static, c10d, "
            "etcd, etcd-v2, or one from an installed package",
            option="--rdzv-backend",
        ) from None
    except (ValueError, TorchRendezvousError) as error:
        raise lost_rendezvous(plan, error) from error


def lost_rendezvous(plan: Plan, error: Exception) -> RendezvousError:
    """What a failure of torch's rendezvous is here."""
    return RendezvousError(f"{plan.backend} rendezvous at '{plan.endpoint}': {first_line(error)}")


@contextlib.contextmanager
def lost_if_torch_fails(plan: Plan) -> Iterator[None]:
    """Take errors of torch's rendezvous for what they are.

    Its stores raise a DistError, of torch 2.4 any RuntimeError.

    Raises:
        RendezvousError: with the backend, and what torch says.
    """
    try:
        yield
    except (TorchRendezvousError, RuntimeError) as error:
        raise lost_rendezvous(plan, error) from error


def agreed_label(store: Store, group_rank: int, *, free: int) -> int:
    """What the attempt that begins is called in the job directory, on all its nodes.

    The agent with group rank 0 writes it into the agents' store. With static rendezvous the store still has the number
    of the attempt before, which is not free any more.

    Args:
        store: of the agents, as torch gives it to them. Anybody who reaches it can write there.
        group_rank: this agent's number.
        free: the first number that this agent knows to be free.
    """
    try:
        if group_rank == 0:
            store.set(_KEY, str(free))
            return free
        store.wait([_KEY], _NUMBER_SECONDS)
        said = store.get(_KEY)
    except (DistError, RuntimeError, LookupError):  # it is gone, or has no such key: torch's next question will say so
        return free
    return max(free, int(said)) if said.isdigit() and len(said) <= _LONGEST_NUMBER else free
