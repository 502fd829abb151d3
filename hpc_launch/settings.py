"""What can be asked of hpc-launch: every option once, with its flags, its variables, its meaning and its reader.

`Settings` is the one table. The command line, `HPC_LAUNCH_*` and `PET_*` variables, the generated reference and the
error messages all come from it, so an option cannot mean two things in two places.

The options of torchrun keep torchrun's names and meanings (torch/distributed/run.py); `None` means "not said", and
then the launcher derives the value.
"""

from __future__ import annotations

import dataclasses
import difflib
import signal as signals
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import Any, cast

from hpc_launch.errors import UsageError

PREFIX = "HPC_LAUNCH_"
TORCHRUN_PREFIX = "PET_"


class Origin(str, Enum):
    """Where a value came from, the first in this list that speaks winning."""

    FLAG = "flag"
    ENVIRONMENT = "HPC_LAUNCH variable"
    TORCHRUN_ENVIRONMENT = "PET variable"
    STEP = "Slurm step"
    JOB = "Slurm job"
    HOSTS = "host list"
    NODE = "this node"
    DEFAULT = "default"


class Streams(IntFlag):
    """Which of a worker's output streams; the numbers are torchrun's."""

    NONE = 0
    OUT = 1
    ERR = 2
    ALL = 3


@dataclass(frozen=True)
class NodeRange:
    """How many nodes: exactly `minimum`, or any number from `minimum` to `maximum`."""

    minimum: int
    maximum: int

    def __str__(self) -> str:
        return str(self.maximum) if self.minimum == self.maximum else f"{self.minimum}:{self.maximum}"


@dataclass(frozen=True)
class StreamChoice:
    """Streams for all local ranks (`everyone`), or for those named in `per_rank` (the others: none)."""

    everyone: Streams = Streams.NONE
    per_rank: tuple[tuple[int, Streams], ...] = ()

    def of(self, local_rank: int) -> Streams:
        """The streams of one local rank."""
        return dict(self.per_rank).get(local_rank, self.everyone)


@dataclass(frozen=True)
class Console:
    """Whose output the console shows: `all`, `auto`, or exactly `ranks` (global)."""

    mode: str = "auto"
    ranks: tuple[int, ...] = ()

    def shows(self, rank: int, world_size: int) -> bool:
        """Whether rank's output is shown; `auto` shows all while a person can still read it."""
        if self.mode == "ranks":
            return rank in self.ranks
        return self.mode == "all" or world_size <= CONSOLE_AUTO_RANKS or rank == 0


CONSOLE_AUTO_RANKS = 16


@dataclass(frozen=True)
class OptionSpec:
    """One option: how it is written, read and explained."""

    flags: tuple[str, ...]
    read: Callable[[str], Any]
    help: str
    metavar: str
    group: str
    is_flag: bool = False
    torchrun_variable: bool = True
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The long spelling, for messages."""
        return next(flag for flag in self.flags if flag.startswith("--"))


class _Unreadable(ValueError):
    """Raised by readers; says what was expected."""


def _text(text: str) -> str:
    return text


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    expected = f"a whole number from {low}" + (f" to {high}" if high is not None else " on")

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _Unreadable(expected) from None
        if value < low or (high is not None and value > high):
            raise _Unreadable(expected)
        return value

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _Unreadable("a number of seconds") from None
    if not 0 < value < float("inf"):
        raise _Unreadable("a positive number of seconds")
    return value


def _switch(text: str) -> bool:
    value = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return value[text.strip().lower()]
    except KeyError:
        raise _Unreadable("1 or 0") from None


def _node_range(text: str) -> NodeRange:
    expected = "a number of nodes from 1 on, or MIN:MAX with MIN <= MAX"
    parts = text.split(":")
    if len(parts) > 2 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):  # noqa: PLR2004
        raise _Unreadable(expected)
    low, high = int(parts[0]), int(parts[-1])
    if not 1 <= low <= high:
        raise _Unreadable(expected)
    return NodeRange(low, high)


# The words torchrun knows; a device backend registered with torch under its own name is asked for by that name.
PROCESS_WORDS = ("auto", "cpu", "gpu", "xpu")


def _process_count(text: str) -> int | str:
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    if text.isidentifier():
        return text
    raise _Unreadable(f"a number of processes from 1 on, or one of {', '.join(PROCESS_WORDS)}")


def _streams(text: str) -> StreamChoice:
    expected = "0, 1 (stdout), 2 (stderr) or 3 (both), or LOCAL_RANK:STREAMS pairs such as 0:1,11:3"

    def one(number: str) -> Streams:
        if number not in ("0", "1", "2", "3"):
            raise _Unreadable(expected)
        return Streams(int(number))

    if ":" not in text:
        return StreamChoice(everyone=one(text))
    pairs: dict[int, Streams] = {}
    for part in text.split(","):
        rank, _, number = part.partition(":")
        if not (rank.isascii() and rank.isdigit()):
            raise _Unreadable(expected)
        pairs[int(rank)] = one(number)
    return StreamChoice(per_rank=tuple(sorted(pairs.items())))


# More than any job has: a slip of the finger is not to fill the memory.
_MOST_RANKS = 1 << 20


def _ranks(text: str) -> tuple[int, ...]:
    expected = "ranks such as 0,3 or 0-3,17"
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not (low.isascii() and low.isdigit()) or (dash and not (high.isascii() and high.isdigit())):
            raise _Unreadable(expected)
        ranks = range(int(low), int(high or low) + 1)
        if not 0 < len(ranks) <= _MOST_RANKS:
            raise _Unreadable(expected)
        found.extend(ranks)
    return tuple(found)


def _console(text: str) -> Console:
    if text in ("all", "auto"):
        return Console(text)
    try:
        return Console("ranks", _ranks(text))
    except _Unreadable as error:
        raise _Unreadable(f"all, auto, or {error}") from None


def _port_range(text: str) -> range:
    low, dash, high = text.partition("-")
    port = _integer(1, 65535)
    try:
        found = range(port(low), port(high if dash else low) + 1)
    except _Unreadable:
        found = range(0)
    if not found:
        raise _Unreadable("LOW-HIGH with ports from 1 to 65535")
    return found


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read `key=value,key=value` as torch's `_parse_rendezvous_config` does (spaces around both are dropped)."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise _Unreadable("KEY=VALUE pairs, separated by commas")
        found.append((key.strip(), value.strip()))
    return tuple(found)


def _words(text: str) -> tuple[str, ...]:
    """Split at commas, a double comma standing for one (torchrun's form of the filter options)."""
    return tuple(part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))


def _modules(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(part.isidentifier() for name in names for part in name.split(".")):
        raise _Unreadable("names of modules, separated by commas")
    return names


def _signal_names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(name in signals.Signals.__members__ for name in names):
        raise _Unreadable("signal names such as SIGTERM,SIGUSR1")
    return names


def _notice_names(text: str) -> tuple[str, ...]:
    """Read signal names as sbatch --signal has them, with or without SIG."""
    if text == "none":
        return ()
    given = (part.strip().upper() for part in text.split(","))
    names = tuple(name if name.startswith("SIG") else f"SIG{name}" for name in given)
    if not all(name in signals.Signals.__members__ for name in names) or {"SIGKILL", "SIGSTOP", "SIGCHLD"} & {*names}:
        raise _Unreadable("signal names such as USR1,USR2 that a process can handle, or none")
    return names


REQUEUE_REASONS = ("on-notice", "on-timeout", "on-preempt", "on-failure")


def _requeue_reasons(text: str) -> tuple[str, ...]:
    if text == "never":
        return ()
    reasons = tuple(part.strip() for part in text.split(","))
    if not all(reason in REQUEUE_REASONS for reason in reasons):
        raise _Unreadable(f"never, or some of {', '.join(REQUEUE_REASONS)}, separated by commas")
    return reasons


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1)
            raise _Unreadable("one of " + ", ".join(choices) + (f" (did you mean {near[0]}?)" if near else ""))
        return text

    return read


def _option(
    *flags: str,
    read: Callable[[str], Any] = _text,
    default: Any = None,
    help: str,  # noqa: A002 - the word argparse and click use
    metavar: str = "TEXT",
    group: str,
    torchrun_variable: bool = True,
    choices: tuple[str, ...] = (),
) -> Any:
    if choices:
        read, metavar = _choice(*choices), "|".join(choices)
    spec = OptionSpec(flags, read, help, metavar, group, torchrun_variable=torchrun_variable, choices=choices)
    return field(default=default, metadata={"spec": spec})


def _flag(
    *flags: str,
    default: bool = False,
    help: str,  # noqa: A002 - the word argparse and click use
    group: str,
    torchrun_variable: bool = True,
) -> Any:
    spec = OptionSpec(flags, _switch, help, "", group, is_flag=True, torchrun_variable=torchrun_variable)
    return field(default=default, metadata={"spec": spec})


WORLD, RENDEZVOUS, WORKERS, RESTARTS, LOGS, OTHER = (
    "Nodes and ranks",
    "Rendezvous",
    "Workers",
    "Restarts and signals",
    "Output",
    "Other",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that was asked for, and where each value came from.

    The fields are the options; their comments are the help texts. `origins` names the origin of every field that
    does not have its default.
    """

    nnodes: NodeRange | None = _option(
        "--nnodes",
        read=_node_range,
        metavar="N|MIN:MAX",
        group=WORLD,
        help="Number of nodes, or its range. Derived: the nodes of the Slurm step, or of the host list, else 1.",
    )
    nproc_per_node: int | str | None = _option(
        "--nproc-per-node",
        read=_process_count,
        metavar="N|auto|cpu|gpu|xpu",
        group=WORLD,
        help="Workers per node. Derived: one per visible device, else 1. 'auto': one per device, else one per CPU.",
    )
    hosts: str | None = _option(
        "--hosts",
        metavar="HOSTLIST",
        group=WORLD,
        torchrun_variable=False,
        help="The nodes, in rank order, as a Slurm host list ('gpu[01-04]'): for use without Slurm.",
    )
    hostfile: str | None = _option(
        "--hostfile",
        metavar="FILE",
        group=WORLD,
        torchrun_variable=False,
        help="A file with the nodes, one a line; repeated names or slots=N give the workers per node "
        "($PBS_NODEFILE, $LSB_DJOB_HOSTFILE, MPI host files).",
    )
    node_rank: int | None = _option(
        "--node-rank",
        read=_integer(0),
        metavar="N",
        group=WORLD,
        help="Number of this node. Derived: where this host stands in the list of nodes.",
    )
    master_addr: str | None = _option(
        "--master-addr",
        metavar="ADDRESS",
        group=WORLD,
        help="Name or address of node 0 (IPv6 in brackets). Derived: the first node of the list.",
    )
    master_port: int | None = _option(
        "--master-port",
        read=_integer(1, 65535),
        metavar="PORT",
        group=WORLD,
        help="The MASTER_PORT of the workers. Derived: a free port of the port range.",
    )
    local_addr: str | None = _option(
        "--local-addr",
        metavar="ADDRESS",
        group=WORLD,
        help="The address under which the other nodes reach this one. Derived: that of the interface (--interface).",
    )
    interface: str = _option(
        "--interface",
        default="auto",
        metavar="auto|NAME|SUBNET",
        group=WORLD,
        torchrun_variable=False,
        help="The network to train over, as an interface (ib0) or a subnet (10.1.0.0/16). auto: the one that leads to "
        "the other nodes. Sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME of the workers where they are unset.",
    )
    rdzv_backend: str | None = _option(
        "--rdzv-backend",
        metavar="NAME",
        group=RENDEZVOUS,
        help="Rendezvous backend: slurm (hpc-launch's own), static, c10d, etcd, or any that is registered with torch. "
        "Derived: slurm; static where --node-rank or --master-addr are given by hand outside Slurm.",
    )
    rdzv_endpoint: str | None = _option(
        "--rdzv-endpoint",
        metavar="HOST[:PORT]",
        group=RENDEZVOUS,
        help="Where the rendezvous backend is found. Derived: node 0 and a port of the port range.",
    )
    rdzv_id: str | None = _option(
        "--rdzv-id",
        metavar="ID",
        group=RENDEZVOUS,
        help="Name of this run. Derived: job, step and restart count.",
    )
    rdzv_conf: tuple[tuple[str, str], ...] = _option(
        "--rdzv-conf",
        read=_pairs,
        default=(),
        metavar="KEY=VALUE,...",
        group=RENDEZVOUS,
        help="More options for the rendezvous backend.",
    )
    standalone: bool = _flag(
        "--standalone",
        group=RENDEZVOUS,
        help="One node, apart from everything else: Slurm, host lists and endpoints are not looked at.",
    )
    join_timeout: float = _option(
        "--join-timeout",
        read=_seconds,
        default=600.0,
        metavar="SECONDS",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="How long to wait for nodes that are missing, before they are named and the job ends.",
    )
    port_range: range = _option(
        "--port-range",
        read=_port_range,
        default=range(20000, 32000),
        metavar="LOW-HIGH",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="The ports to choose from (default 20000-31999, below the range that Linux hands out by itself).",
    )
    module: bool = _flag(
        "-m",
        "--module",
        group=WORKERS,
        help="The script is a module name, as in 'python -m'.",
    )
    no_python: bool = _flag(
        "--no-python",
        group=WORKERS,
        help="The script is a program of its own: start it without Python.",
    )
    run_path: bool = _flag(
        "--run-path",
        group=WORKERS,
        help="Run the script with runpy.run_path in a process made by --start-method.",
    )
    use_env: bool = _flag(
        "--use-env",
        default=True,
        group=WORKERS,
        torchrun_variable=False,
        help="Pass the local rank as LOCAL_RANK only; otherwise the script also gets --local-rank=N. "
        "On, except in 'python -m hpc_launch.launch'.",
    )
    start_method: str = _option(
        "--start-method",
        default="spawn",
        group=WORKERS,
        choices=("spawn", "fork", "forkserver"),
        help="How multiprocessing makes workers that are functions (--run-path).",
    )
    start: str = _option(
        "--start",
        default="auto",
        group=WORKERS,
        torchrun_variable=False,
        choices=("auto", "warm", "exec"),
        help="How workers start. warm: torch is imported once per node and the workers are forked from there; exec: "
        "each is a new process. auto: warm, unless something speaks against it, which is then said.",
    )
    preload: tuple[str, ...] = _option(
        "--preload",
        read=_modules,
        default=(),
        metavar="MODULES",
        group=WORKERS,
        torchrun_variable=False,
        help="Modules to import beside torch before workers are forked, separated by commas.",
    )
    exec_for: tuple[str, ...] = _option(
        "--exec-for",
        read=_modules,
        default=(),
        metavar="MODULES",
        group=WORKERS,
        torchrun_variable=False,
        help="Scripts that import one of these modules are started by exec.",
    )
    role: str = _option(
        "--role",
        default="default",
        metavar="NAME",
        group=WORKERS,
        help="Name of the role of the workers (ROLE_NAME).",
    )
    virtual_local_rank: bool = _flag(
        "--virtual-local-rank",
        group=WORKERS,
        help="Give each worker LOCAL_RANK=0 and a device mask with its own device only.",
    )
    numa_binding: str | None = _option(
        "--numa-binding",
        metavar="MODE",
        group=WORKERS,
        torchrun_variable=False,
        help="Bind workers to the CPUs near their device: torch's modes (node, socket, exclusive, core-complex).",
    )
    omp_num_threads: int | None = _option(
        "--omp-num-threads",
        read=_integer(1),
        metavar="N",
        group=WORKERS,
        torchrun_variable=False,
        help="OMP_NUM_THREADS of the workers. Derived, where that variable is unset: allowed CPUs / local ranks.",
    )
    slurm_env: str = _option(
        "--slurm-env",
        default="rank",
        group=WORKERS,
        torchrun_variable=False,
        choices=("rank", "keep", "hide"),
        help="SLURM_PROCID, SLURM_LOCALID and their like in the workers: made to say the worker's rank, left as the "
        "task has them, or taken away.",
    )
    max_restarts: int = _option(
        "--max-restarts",
        read=_integer(0),
        default=0,
        metavar="N",
        group=RESTARTS,
        help="How often all workers are started again after a failure.",
    )
    monitor_interval: float = _option(
        "--monitor-interval",
        read=_seconds,
        default=0.1,
        metavar="SECONDS",
        group=RESTARTS,
        help="How often the agent looks at its workers and at the other nodes.",
    )
    signals_to_handle: tuple[str, ...] = _option(
        "--signals-to-handle",
        read=_signal_names,
        default=("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"),
        metavar="NAMES",
        group=RESTARTS,
        help="Signals that stop the workers in order.",
    )
    notice_signals: tuple[str, ...] = _option(
        "--notice-signals",
        read=_notice_names,
        default=("SIGUSR1", "SIGUSR2"),
        metavar="NAMES|none",
        group=RESTARTS,
        torchrun_variable=False,
        help="Signals that are passed on to every worker of every node, once, while the run goes on: what sbatch "
        "--signal sends before the end.",
    )
    shutdown_timeout: int | None = _option(
        "--shutdown-timeout",
        "--grace",
        read=_integer(0),
        metavar="SECONDS",
        group=RESTARTS,
        help="Time for the workers to end after a signal before they are killed. Default: "
        "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT, else what Slurm gives (KillWait), else 30.",
    )
    requeue: tuple[str, ...] = _option(
        "--requeue",
        read=_requeue_reasons,
        default=(),
        metavar="on-notice|on-timeout|on-preempt|on-failure|never",
        group=RESTARTS,
        torchrun_variable=False,
        help="When Slurm is asked to run the job again: after a notice signal, at the time limit, after a preemption "
        "that would end it, after a failure; several separated by commas. Default: never.",
    )
    max_requeues: int = _option(
        "--max-requeues",
        read=_integer(0),
        default=10,
        metavar="N",
        group=RESTARTS,
        torchrun_variable=False,
        help="How often at most; preemptions are not counted.",
    )
    requeue_patience: int = _option(
        "--requeue-patience",
        read=_integer(1),
        default=2,
        metavar="N",
        group=RESTARTS,
        torchrun_variable=False,
        help="After so many runs in a row without progress (runtime.mark_progress) the job is not requeued again.",
    )
    log_dir: str | None = _option(
        "--log-dir",
        metavar="DIR",
        group=LOGS,
        help="Where job directories are made. Derived: logs/ in the directory of submission, else in this one.",
    )
    redirects: StreamChoice | None = _option(
        "-r",
        "--redirects",
        read=_streams,
        metavar="STREAMS",
        group=LOGS,
        help="Streams that go to files only: 0 none, 1 stdout, 2 stderr, 3 both, or by local rank (0:1,1:2). "
        "Without -r and -t all go to files, and to the console as --console says.",
    )
    tee: StreamChoice | None = _option(
        "-t",
        "--tee",
        read=_streams,
        metavar="STREAMS",
        group=LOGS,
        help="Streams that go to files and to the console; same form as -r.",
    )
    console: Console = _option(
        "--console",
        read=_console,
        default=Console(),
        metavar="all|auto|RANKS",
        group=LOGS,
        torchrun_variable=False,
        help=f"Ranks shown on the console. auto: all of them up to {CONSOLE_AUTO_RANKS}, then rank 0.",
    )
    local_ranks_filter: tuple[int, ...] = _option(
        "--local-ranks-filter",
        read=_ranks,
        default=(),
        metavar="RANKS",
        group=LOGS,
        help="Only these local ranks are shown on the console.",
    )
    duplicate_stdout_filters: tuple[str, ...] = _option(
        "--duplicate-stdout-filters",
        read=_words,
        default=(),
        metavar="TEXT,...",
        group=LOGS,
        help="Copy lines of stdout with one of these texts to filtered_stdout.log (a double comma stands for one).",
    )
    duplicate_stderr_filters: tuple[str, ...] = _option(
        "--duplicate-stderr-filters",
        read=_words,
        default=(),
        metavar="TEXT,...",
        group=LOGS,
        help="The same for stderr, to filtered_stderr.log.",
    )
    log_line_prefix_template: str | None = _option(
        "--log-line-prefix-template",
        metavar="TEMPLATE",
        group=LOGS,
        help="Prefix of console lines, with ${host}, ${rank}, ${local_rank}, ${role_name}. Default: "
        "$TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE, else '[${host}:${rank}] '.",
    )
    logs_specs: str | None = _option(
        "--logs-specs",
        metavar="NAME",
        group=LOGS,
        torchrun_variable=False,
        help="A torchrun.logs_specs entry point that decides about log files instead.",
    )
    event_log_handler: str = _option(
        "--event-log-handler",
        default="null",
        metavar="NAME",
        group=LOGS,
        help="Name of a registered handler of torch elastic's events.",
    )
    verbose: bool = _flag(
        "-v",
        "--verbose",
        group=OTHER,
        torchrun_variable=False,
        help="Say more, and show tracebacks of the launcher's own errors.",
    )
    origins: Mapping[str, Origin] = field(default_factory=dict)

    def origin(self, name: str) -> Origin:
        """Where the value of field `name` came from."""
        return self.origins.get(name, Origin.DEFAULT)

    def given(self, name: str) -> bool:
        """Whether anybody asked for field `name`."""
        return name in self.origins


def specs() -> dict[str, OptionSpec]:
    """All options by field name, in the order in which they are explained."""
    return {f.name: cast("OptionSpec", f.metadata["spec"]) for f in dataclasses.fields(Settings) if f.metadata}


def resolve(flags: Mapping[str, str | bool], environ: Mapping[str, str], *, use_env: bool = True) -> Settings:
    """Read the settings.

    Args:
        flags: what the command line says, by field name; only what was really given.
        environ: the environment, for `HPC_LAUNCH_*` and torchrun's `PET_*` (torch/distributed/argparse_util.py).
        use_env: the default of --use-env, which differs in `python -m hpc_launch.launch`.

    Raises:
        UsageError: for a value that cannot be read; the message names the place it came from.
    """
    values: dict[str, Any] = {"use_env": use_env}
    origins: dict[str, Origin] = {}
    for name, spec in specs().items():
        for origin, place, raw in _sources(name, spec, flags, environ):
            try:
                values[name] = raw if isinstance(raw, bool) else spec.read(raw)
            except _Unreadable as error:
                raise UsageError(f"{place}: '{raw}' is not {error}", option=spec.flag) from None
            origins[name] = origin
            break
    settings = Settings(**values, origins=origins)
    _refuse_contradictions(settings)
    return settings


def _sources(
    name: str, spec: OptionSpec, flags: Mapping[str, str | bool], environ: Mapping[str, str]
) -> list[tuple[Origin, str, str | bool]]:
    """Who speaks of this option, the strongest voice first."""
    found: list[tuple[Origin, str, str | bool]] = []
    if name in flags:
        found.append((Origin.FLAG, spec.flag, flags[name]))
    variable = PREFIX + name.upper()
    if environ.get(variable):
        found.append((Origin.ENVIRONMENT, variable, environ[variable]))
    variable = TORCHRUN_PREFIX + name.upper()
    if spec.torchrun_variable and environ.get(variable):
        found.append((Origin.TORCHRUN_ENVIRONMENT, variable, environ[variable]))
    return found


def _refuse_contradictions(settings: Settings) -> None:
    if settings.hosts is not None and settings.hostfile is not None:
        raise UsageError("--hosts and --hostfile both name the nodes: give one of them", option="--hosts")
    if settings.no_python and settings.module:
        raise UsageError("--no-python and --module exclude each other: a module needs Python", option="--no-python")
    if settings.no_python and not settings.use_env and not settings.run_path:
        raise UsageError("--no-python needs --use-env as well (the program would get --local-rank=N)")
    if settings.nnodes and settings.node_rank is not None and settings.node_rank >= settings.nnodes.maximum:
        last = settings.nnodes.maximum - 1
        raise UsageError(
            f"--node-rank: {settings.node_rank} is not a node of --nnodes {settings.nnodes}: they are numbered 0 to "
            f"{last}",
            option="--node-rank",
        )
    if settings.standalone and settings.nnodes and settings.nnodes.maximum > 1:
        raise UsageError("--standalone is for one node: leave out it or --nnodes", option="--standalone")
