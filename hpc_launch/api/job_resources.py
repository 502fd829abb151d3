"""What a job is to have: resources by name, as `submit` and `Executor` take them. Pure."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.records.requeue_ledger import REASONS
from hpc_launch.settings import NodeRange
from hpc_launch.slurm.slurm_times import read_time_limit

CLUSTERS = ("auto", "slurm", "allocation", "local", "debug")

# submitit's names for what has another name here.
_SUBMITIT = {"timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ranks_per_node", "signal_delay_s": "notice"}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job is to have; None is what nobody has said.

    Attributes:
        nodes: how many nodes. `"MIN:MAX"`, or a pair, is any number between: Slurm gives as many as there are, and the
            run goes on without nodes that are lost as long as `MIN` are left.
        spares: nodes besides, which take the place of nodes that are lost.
        gpus_per_node: GPUs of each node.
        ranks_per_node: workers of each node; one per GPU where that is not said, else one.
        cpus_per_task: CPUs of each node: there is one task on each, the agent, whose workers share them.
        mem: memory of each node: `64G` as Slurm writes it, or a number of GB.
        time: the time limit: minutes, or as Slurm writes it (`1-12:00:00`).
        partition: and `account`, `qos`, `constraint`: as sbatch has them.
        name: of the job.
        setup: lines of the job script before the start, such as `module load cuda`.
        notice: seconds before the time limit at which workers are told (SIGUSR2).
        requeue: when the job is to run again: words of `--requeue`; chosen by the callable where not said.
        max_requeues: how often, those after preemptions apart.
        max_restarts: how often the workers are started again in one run, when one has failed.
        array_parallelism: how many jobs of an array run at the same time, at most.
        max_pickle_mb: the largest size of a call (function and arguments), and of a result, in MB.
        launch: further options of `hpc-launch run` by their long names, such as `{"tee": 3}`.
        slurm: further options of sbatch by their long names, such as `{"reservation": "maintenance"}`.
    """

    nodes: int | str | tuple[int, int] = 1
    spares: int = 0
    gpus_per_node: int | None = None
    ranks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | float | None = None
    time: int | str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    name: str | None = None
    setup: Sequence[str] = ()
    notice: int = 90
    requeue: str | Sequence[str] | None = None
    max_requeues: int | None = None
    max_restarts: int = 0
    array_parallelism: int | None = None
    max_pickle_mb: int = 256
    launch: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"{name}={value!r}: a whole number from {least} on is expected", option=name)
        if _node_range(self.nodes) is None:
            raise UsageError(
                f"nodes={self.nodes!r}: a whole number from 1 on, or a range such as '2:4' or (2, 4), is expected",
                option="nodes",
            )
        if self.time is not None and not self.minutes:
            raise UsageError(
                f"time={self.time!r}: minutes, or a limit such as '1-12:00:00', is expected", option="time"
            )
        unknown = [
            word for word in self.requeue_words or () if word not in (*(f"on-{one}" for one in REASONS), "never")
        ]
        if unknown:
            words = ", ".join(f"on-{one}" for one in REASONS)
            raise UsageError(f"requeue={unknown[0]!r}: {words} or never is expected", option="requeue")

    @property
    def node_range(self) -> NodeRange:
        """How many nodes, without the spares."""
        found = _node_range(self.nodes)
        assert found is not None  # noqa: S101 - it was looked at
        return found

    @property
    def all_nodes(self) -> NodeRange:
        """How many nodes, the spares among them: what Slurm is asked for."""
        return NodeRange(self.node_range.minimum + self.spares, self.node_range.maximum + self.spares)

    @property
    def may_lose_nodes(self) -> bool:
        """Whether the run goes on without nodes that are lost."""
        spares = self.spares or self.launch.get("spares")
        ranges = filter(None, (self.node_range, _node_range(self.launch.get("nnodes", 1))))
        return bool(spares) or any(one.minimum < one.maximum for one in ranges)

    @property
    def minutes(self) -> int | None:
        """The time limit in whole minutes, no less than was asked for; None where nobody said."""
        seconds = None if self.time is None else read_time_limit(str(self.time))
        if seconds is None or seconds == float("inf"):
            return None
        return -(-int(seconds) // 60)

    @property
    def ranks(self) -> int | None:
        """The workers of a node, as far as is known here."""
        return self.ranks_per_node or self.gpus_per_node or None

    @property
    def requeue_words(self) -> tuple[str, ...] | None:
        """The words of `--requeue`; None where nobody said."""
        if isinstance(self.requeue, str):
            return tuple(word.strip() for word in self.requeue.split(",") if word.strip())
        return None if self.requeue is None else tuple(self.requeue)


def _node_range(value: Any) -> NodeRange | None:
    """Read a number of nodes, or a range; None where it is neither."""
    if isinstance(value, (tuple, list)):
        value = ":".join(map(str, value)) if len(value) == 2 else ""  # noqa: PLR2004 - a pair
    if type(value) not in (int, str):
        return None
    match = re.fullmatch(r"(\d+)(?::(\d+))?", str(value).strip())
    found = NodeRange(int(match[1]), int(match[2] or match[1])) if match else None
    return found if found is not None and 1 <= found.minimum <= found.maximum else None


_COUNTS = {
    "spares": 0,
    "gpus_per_node": 0,
    "ranks_per_node": 1,
    "cpus_per_task": 1,
    "notice": 1,
    "max_requeues": 0,
    "max_restarts": 0,
    "array_parallelism": 1,
    "max_pickle_mb": 1,
}

NAMES = frozenset(item.name for item in dataclasses.fields(Resources))


def is_resource(name: str) -> bool:
    """Whether a keyword says something about the job, and is no argument of the function."""
    return name in NAMES or name in _SUBMITIT or name.startswith("slurm_")


def divide_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keywords into what is said about the job, and arguments of the function."""
    given = {name: value for name, value in keywords.items() if is_resource(name)}
    return given, {name: value for name, value in keywords.items() if name not in given}


def read_resources(given: Mapping[str, Any], base: Resources | None = None) -> Resources:
    """Make resources of keywords: our names, submitit's, and `slurm_<option>` for any of sbatch's.

    Args:
        given: the keywords; None is as if it were not there.
        base: what holds where nothing is given.

    Raises:
        UsageError: naming a keyword that is unknown, or a value that cannot be.
    """
    base = base or Resources()
    values: dict[str, Any] = {}
    slurm = dict(base.slurm)
    for key, value in given.items():
        name = _SUBMITIT.get(key, key)
        if name.startswith("slurm_"):
            option = name.removeprefix("slurm_")
            name = _SUBMITIT.get(option, option)
            if name == "additional_parameters":
                slurm |= value or {}
                continue
            if name not in NAMES:
                slurm[option.replace("_", "-")] = value
                continue
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"there is no resource '{key}'{hint}", option=key)
        if name == "slurm":
            slurm |= value or {}
        elif value is not None:
            values[name] = value
    return dataclasses.replace(base, **values, slurm=slurm)
