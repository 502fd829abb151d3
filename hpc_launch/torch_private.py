"""What hpc-launch uses of torch that torch does not promise, under names of its own.

Nothing else in the package imports an undocumented module or a private name of torch, or touches a private attribute of
its classes. tests/unit/test_torch_seams.py keeps it, and says of each use what it relies on: it fails when a release of
torch changes that.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import inspect
import signal
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.run as torchrun
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but its types do not export it
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing import LogsSpecs, PContext
from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, registry

# torchrun's macro for the local rank (torch/distributed/elastic/utils/api.py).
LOCAL_RANK = "${local_rank}"

# Tells torch's c10d rendezvous to have the workers of each attempt open a store of their own (dynamic_rendezvous.py).
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"

# The severity that torch's C++ parts still speak at (c10/util/Logging.h), and where that is kept.
_CPP_FATAL = 3
_CPP_LEVEL = "FLAGS_caffe2_log_level"

# The time out of torch's exit barrier: a slow node may finish as late as the job lives.
_BARRIER_SECONDS = 365 * 24 * 3600.0


class WorkerContext(PContext):
    """torch's view of the workers of one attempt, which a subclass starts, polls and ends."""

    @abc.abstractmethod
    def start(self) -> None:
        """Start them all; unlike torch's own, without installing signal handlers."""

    @abc.abstractmethod
    def poll(self) -> RunProcsResult | None:
        """How they have ended: all well, or some not; None while they run."""

    @abc.abstractmethod
    def end(self, signum: signal.Signals) -> None:
        """End those that run, with this signal first."""

    def _start(self) -> None:
        self.start()

    def _poll(self) -> RunProcsResult | None:
        return self.poll()

    def _close(self, death_sig: signal.Signals, timeout: int = 30) -> None:  # noqa: ARG002 - others say how long it may take
        self.end(death_sig)


class ElasticAgent(LocalElasticAgent):
    """torch's agent, with the steps that a subclass may replace under the names that torch has for them.

    torch's loop (`invoke_run`) calls the others; a subclass may have another loop.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs | None, *, events: bool) -> None:
        """Prepare it.

        Args:
            spec: what the workers are.
            logs_specs: where torch's own would write; None where `start_workers` decides.
            events: make torch's events in full. They look up the host's full name, which can take long.
        """
        super().__init__(spec, cast("LogsSpecs", logs_specs), exit_barrier_timeout=_BARRIER_SECONDS)
        self._events = events

    @property
    def worker_group(self) -> WorkerGroup:
        """The workers here, as torch has numbered them."""
        return self._worker_group

    @property
    def remaining_restarts(self) -> int:
        """The restarts that torch's loop has left."""
        return int(self._remaining_restarts)

    @remaining_restarts.setter
    def remaining_restarts(self, count: int) -> None:
        self._remaining_restarts = count

    # ---- the steps

    def invoke_run(self) -> RunResult:
        """Go through all attempts: torch's loop."""
        result: RunResult = super()._invoke_run()
        return result

    def initialize_workers(self, group: WorkerGroup) -> None:
        """Begin an attempt: meet the other agents, and start workers."""
        self._initialize_workers(group)

    def rendezvous(self, group: WorkerGroup) -> None:
        """Meet the other agents, and number the workers."""
        super()._rendezvous(group)

    def assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """The ranks of the workers here."""
        workers: list[Worker] = super()._assign_worker_ranks(store, group_rank, group_world_size, spec)
        return workers

    @abc.abstractmethod
    def start_workers(self, group: WorkerGroup) -> WorkerContext:
        """Start the workers of an attempt."""

    def watch(self, environs: Mapping[int, dict[str, str]]) -> None:
        """Start torch's timers and health check for workers, where variables ask for them.

        Args:
            environs: of the workers, by local rank; they are told where the timers are.
        """
        self._setup_local_watchdog(envs=dict(environs))
        self._setup_healthcheck()

    def monitor_workers(self, group: WorkerGroup) -> RunResult:
        """Look at the workers."""
        result: RunResult = super()._monitor_workers(group)
        return result

    def restart_workers(self, group: WorkerGroup) -> None:
        """Begin another attempt in torch's loop."""
        super()._restart_workers(group)

    def shutdown(self, signum: signal.Signals) -> None:
        """End the workers of this attempt, and what watches them.

        Not torch's own: its further arguments differ between releases, and that of torch 2.4 closes the rendezvous.
        """
        for helper in (self._worker_watchdog, getattr(self, "_health_check_server", None)):
            if helper is not None:
                helper.stop()
        self._worker_watchdog = self._health_check_server = None
        self.end_workers(signum)

    @abc.abstractmethod
    def end_workers(self, signum: signal.Signals) -> None:
        """End the workers of this attempt, and nothing else."""

    # ---- what torch calls

    def _invoke_run(self, role: str = "default") -> RunResult:  # noqa: ARG002 - there is one
        return self.invoke_run()

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.rendezvous(worker_group)

    def _assign_worker_ranks(
        self, store: Store, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        return self.assign_worker_ranks(store, group_rank, group_world_size, spec)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._pcontext = self.start_workers(worker_group)
        return self._pcontext.pids()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        return self.monitor_workers(worker_group)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self.restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup, **_: Any) -> None:  # noqa: ARG002 - there is one group
        self.shutdown(signal.SIGTERM)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *_: Any, **__: Any) -> None:
        self.shutdown(death_sig)

    def _construct_event(self, state: str, *args: Any, **kwargs: Any) -> Event:
        return super()._construct_event(state, *args, **kwargs) if self._events else Event(state, EventSource.AGENT)


class UnknownBackendError(ValueError):
    """No rendezvous backend of this name is registered with torch."""


def rendezvous_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Make torch's handler of a rendezvous backend.

    Raises:
        UnknownBackendError: when there is none of this name.
        ValueError: when torch can make nothing of the parameters.
    """
    try:
        return registry.get_rendezvous_handler(parameters)
    except ValueError as error:
        if not isinstance(error.__cause__, KeyError):  # it is in torch's registry
            raise
        unknown = error
    if not hasattr(registry, "_register_out_of_tree_handlers"):  # torch 2.4 does not look for those of other packages
        for found in metadata.entry_points(group="torchrun.handlers", name=parameters.backend):
            handler: RendezvousHandler = found.load()()(parameters)
            return handler
    raise UnknownBackendError(str(unknown)) from unknown


def count_processes(word: str) -> int:
    """How many processes a word of `--nproc-per-node` stands for, such as the name of a device backend.

    Raises:
        ValueError: when torch does not know it.
    """
    return int(torchrun.determine_local_world_size(word))


def replace_local_rank(arguments: Sequence[str], local_rank: int) -> tuple[str, ...]:
    """Fill in the local rank where torch's macro stands for it."""
    return tuple(argument.replace(LOCAL_RANK, str(local_rank)) for argument in arguments)


def silence_cpp() -> None:
    """Have torch's C++ parts say nothing from now on: they warn of host names, and print stack traces of errors.

    They read TORCH_CPP_LOG_LEVEL when torch is loaded, but so would the workers that are forked from there, and theirs
    is the script's to choose. The flag behind it is an exported variable, so it can be set later.
    """
    with contextlib.suppress(OSError, ValueError):  # a build of torch that has no such flag speaks
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        ctypes.c_int.in_dll(library, _CPP_LEVEL).value = _CPP_FATAL


def numa_cpus(mode: str, gpu_index: int) -> tuple[int, ...]:
    """The CPUs that torch would bind a worker to, by the NUMA node of its device.

    Raises:
        RuntimeError, AssertionError, ValueError, OSError: when torch finds no such device, or not where it is.
    """
    from torch.numa import binding  # noqa: PLC0415 - not in older torch

    options = binding.NumaOptions(affinity_mode=binding.AffinityMode(mode))
    cpus_of = binding._get_logical_cpus_to_bind_to  # noqa: SLF001 - the private name that this module is for
    # Its parameter has another name from torch 2.14 on.
    index = "device_index" if "device_index" in inspect.signature(cpus_of).parameters else "gpu_index"
    return tuple(sorted(cpus_of(**{index: gpu_index}, numa_options=options)))
