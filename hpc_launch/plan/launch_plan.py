"""The plan: everything that one agent is going to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch import hostlist, redaction
from hpc_launch.node.devices import Devices
from hpc_launch.plan.cpu_binding import Binding, CpuShare
from hpc_launch.plan.identity import Identity
from hpc_launch.plan.start_method import StartMethod
from hpc_launch.records.plan_record import PlanRecord, RecordedValue
from hpc_launch.settings import NodeRange, Origin, Settings
from hpc_launch.world import World

# Settings that are names with values.
_PAIRS = frozenset({"default_env", "rdzv_conf"})


@dataclass(frozen=True)
class DerivedValue:
    """A value that the launcher found, and where."""

    name: str
    value: str
    origin: str


def origin_of(settings: Settings, name: str, otherwise: Origin | str) -> str:
    """Who said the value of an option, in words.

    Args:
        settings: what was asked for.
        name: the option.
        otherwise: who said it where nobody asked.
    """
    origin = settings.origins.get(name, otherwise)
    return origin.value if isinstance(origin, Origin) else origin


@dataclass(frozen=True)
class Plan:
    """What one agent is going to do.

    Attributes:
        settings: what was asked for.
        world: who takes part.
        nnodes: how many nodes are wanted.
        backend: the rendezvous backend.
        endpoint: where that is found; empty where our own backend finds it by itself.
        leaders: names or addresses under which the first node may be found.
        run_id: the name of the run, the same on every node.
        identity: which agents may be of the run, and where it is.
        ports: the ports to try, in order.
        store_ports: the ports among which those of the workers' stores are chosen.
        local_world_size: workers of this agent.
        devices: what they may use.
        isolated: each worker is shown its own device only, as device 0.
        omp_num_threads: for the workers; None leaves the variable as it is.
        open_files: the soft limit of open files of the workers (`node.limits`).
        start: how workers start.
        log_root: where the job directory goes.
        job_name: its name; empty where the first node chooses it.
        script: the training script, its arguments following.
        derived: every derived value with its origin, for `env` and `explain`.
        warnings: what is probably not meant, one line each; the first agent says it for all.
        seen_here: the same, as far as only this agent can see it, and says it.
        binding: which CPUs the local ranks of this node run on.
    """

    settings: Settings
    world: World
    nnodes: NodeRange
    backend: str
    endpoint: str
    leaders: tuple[str, ...]
    run_id: str
    identity: Identity
    ports: tuple[int, ...]
    store_ports: Sequence[int]
    local_world_size: int
    devices: Devices
    isolated: bool
    omp_num_threads: int | None
    open_files: int
    start: StartMethod
    log_root: Path
    job_name: str
    script: tuple[str, ...]
    derived: tuple[DerivedValue, ...]
    warnings: tuple[str, ...]
    seen_here: tuple[str, ...]
    binding: Binding

    @property
    def shares(self) -> tuple[CpuShare, ...]:
        """What the workers of this agent get, one after another; none where they are not bound."""
        if not self.world.task_per_rank:
            return self.binding.shares
        return self.binding.shares[self.world.local_agent : self.world.local_agent + 1]

    @property
    def elastic(self) -> bool:
        """Whether the run goes on when nodes are lost."""
        return self.own_rendezvous and self.nnodes.minimum < self.nnodes.maximum

    @property
    def own_rendezvous(self) -> bool:
        """Whether the nodes meet by hpc-launch's own backend."""
        return self.backend == "slurm"

    def record(self) -> PlanRecord:
        """The plan for job.json: values with their origins, and none of secrets."""
        names = self.settings.secret_names
        return PlanRecord(
            run_id=self.run_id,
            script=tuple(redaction.redacted_arguments(self.script, names)),
            hosts=hostlist.fold(self.world.hosts),
            derived={
                item.name: RecordedValue(redaction.redacted_text(item.value, names), item.origin)
                for item in self.derived
            },
            settings={
                name: RecordedValue(self._shown(name), origin.value) for name, origin in self.settings.origins.items()
            },
            warnings=tuple(redaction.redacted_text(warning, names) for warning in self.warnings),
        )

    def _shown(self, name: str) -> str:
        """The value of a setting, as the record has it."""
        value, names = getattr(self.settings, name), self.settings.secret_names
        return (
            str(redaction.redacted_pairs(value, names))
            if name in _PAIRS
            else redaction.redacted_text(str(value), names)
        )
