"""What a job is to have: resources by name, as `submit` and `Executor` take them. Pure."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_launch.api import submitit_names
from hpc_launch.api.call_arguments import nearest
from hpc_launch.errors import UsageError
from hpc_launch.records.requeue_ledger import REASONS
from hpc_launch.settings import NodeRange, specs
from hpc_launch.slurm.slurm_times import read_time_limit

CLUSTERS = ("auto", "slurm", "allocation", "local", "debug")


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
        setup: lines of bash before the start, such as `module load cuda`.
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
    setup: str | Sequence[str] = ()
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
        self._check_texts_and_options()
        unknown = [
            word for word in self.requeue_words or () if word not in (*(f"on-{one}" for one in REASONS), "never")
        ]
        if unknown:
            words = ", ".join(f"on-{one}" for one in REASONS)
            raise UsageError(f"requeue={unknown[0]!r}: {words} or never is expected", option="requeue")

    def _check_texts_and_options(self) -> None:
        for name in ("requeue", "setup"):
            value = getattr(self, name)
            if value is not None and not _are_texts(value):
                raise UsageError(f"{name}={value!r}: a text, or a list of texts, is expected", option=name)
        for name in ("launch", "slurm"):
            if not isinstance(getattr(self, name), Mapping):
                raise UsageError(f"{name}={getattr(self, name)!r}: options by their names are expected", option=name)
        options = _launch_options()
        for option in map(str, self.launch):
            if option.replace("_", "-") not in options:
                near = nearest(option, options)
                hint = f"; did you mean '{near.replace('-', '_')}'?" if near else "; see 'hpc-launch run --help'"
                raise UsageError(f"launch: there is no option '{option}' of hpc-launch run{hint}", option=option)

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
    def launch_options(self) -> dict[str, Any]:
        """The options of `launch`, by their long names."""
        return {name.replace("_", "-"): value for name, value in self.launch.items()}

    @property
    def minutes(self) -> int | None:
        """The time limit in whole minutes, no less than was asked for; None where nobody said."""
        seconds = None if self.time is None else read_time_limit(str(self.time))
        if seconds is None or seconds == float("inf"):
            return None
        return -(-int(seconds) // 60)

    @property
    def setup_lines(self) -> tuple[str, ...]:
        """The lines of bash before the start."""
        return tuple(self.setup.splitlines()) if isinstance(self.setup, str) else tuple(self.setup)

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


def _are_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(one, str) for one in value))


@functools.cache
def _launch_options() -> frozenset[str]:
    """The long names of the options of `hpc-launch run`, without their dashes."""
    # `--use-env` is the only switch with an opposite (`cli.click_options`).
    return frozenset(key for spec in specs().values() for key in spec.keys) | {"no-use-env"}


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

# The keywords that `submit` takes for the job, besides those that begin with `slurm_`.
KEYWORDS = NAMES | submitit_names.SHARED.keys() | {"signal_delay_s"}


def is_resource(name: str) -> bool:
    """Whether a keyword says something about the job, and is no argument of the function."""
    return name in KEYWORDS or submitit_names.is_for_slurm(name)


def divide_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keywords into what is said about the job, and arguments of the function."""
    given = {name: value for name, value in keywords.items() if is_resource(name)}
    return given, {name: value for name, value in keywords.items() if name not in given}


def read_resources(given: Mapping[str, Any], base: Resources | None = None) -> Resources:
    """Make resources of keywords: our names, submitit's, and `slurm_<option>` for any of sbatch's.

    A parameter for Slurm (`slurm_time`) overrides one for any cluster (`timeout_min`), as in submitit.

    Args:
        given: the keywords; None is as if it were not there.
        base: what holds where nothing is given.

    Raises:
        UsageError: naming a keyword that is unknown, or given twice, or a value that cannot be.
    """
    base = base or Resources()
    values: dict[str, Any] = {}
    said: dict[str, str] = {}
    slurm = dict(base.slurm)
    for key in sorted((key for key, value in given.items() if value is not None), key=submitit_names.is_for_slurm):
        name, value = _resource(key, given[key])
        if not name:
            slurm[submitit_names.sbatch_option(key)] = value
        elif name == "slurm" and isinstance(value, Mapping):
            slurm |= {str(option).replace("_", "-"): setting for option, setting in value.items()}
        elif name in said and submitit_names.is_for_slurm(said[name]) == submitit_names.is_for_slurm(key):
            raise UsageError(f"{said[name]} and {key} are the same resource: keep one of them", option=key)
        else:
            values[name], said[name] = value, key
    _refuse_cpus_of_a_rank(given, said)
    return dataclasses.replace(base, **{"slurm": slurm, **values})


def _resource(key: str, value: Any) -> tuple[str, Any]:
    """The resource that a keyword sets, and its value; no name for an option of sbatch.

    Raises:
        UsageError: there is none.
    """
    if key in NAMES:
        return key, value
    found = submitit_names.counterpart(key)
    if found is None:
        near = nearest(key, [*KEYWORDS, *submitit_names.PARAMETERS])
        hint = f"; did you mean '{near}'?" if near else ""
        raise UsageError(f"there is no resource '{key}'{hint}", option=key)
    if found.refused:
        raise UsageError(submitit_names.refusal(key), option=key)
    try:
        return found.resource, found.convert(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{key}={value!r}: a number is expected", option=key) from None


def _refuse_cpus_of_a_rank(given: Mapping[str, Any], said: Mapping[str, str]) -> None:
    """Refuse submitit's CPUs of a task beside its tasks of a node: here all ranks of a node share those of one task.

    Raises:
        UsageError: both are given; the message has the resources to use.
    """
    ranks, cpus = said.get("ranks_per_node", "ranks_per_node"), said.get("cpus_per_task")
    if cpus is None or ranks == "ranks_per_node":
        return
    each, number = given[cpus], given[ranks]
    if type(each) is int and type(number) is int and number > 1:
        raise UsageError(
            f"{cpus}={each} with {ranks}={number}: here the ranks of a node share the CPUs of its only task: use "
            f"cpus_per_task={each * number} and ranks_per_node={number}",
            option=cpus,
        )
