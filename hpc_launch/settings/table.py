"""What can be asked of a run: every option once, with its flags, its variables, its meaning and its reader.

`Settings` is the table. The command line, `HPC_LAUNCH_*` and `PET_*` variables, the generated reference and the
error messages all come from it, so an option cannot mean two things in two places.

The options of torchrun keep torchrun's names and meanings (torch/distributed/run.py); `None` means "not said", and
then the launcher derives the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from hpc_launch.settings import readers
from hpc_launch.settings.option import OptionSpec
from hpc_launch.settings.option_values import (
    CONSOLE_AUTO_RANKS,
    ConsoleChoice,
    CpuBind,
    NodeRange,
    Origin,
    StreamChoice,
)
from hpc_launch.settings.readers import Reader
from hpc_launch.settings.site_policy import NO_POLICY, SitePolicy


def _option(
    *flags: str,
    read: Reader[Any] = readers.text,
    default: Any = None,
    help: str,  # noqa: A002 - the word argparse and click use
    metavar: str = "TEXT",
    group: str,
    torchrun_variable: bool = True,
    choices: tuple[str, ...] = (),
    not_in_files: str = "",
) -> Any:
    if choices:
        read, metavar = readers.choice(*choices), "|".join(choices)
    spec = OptionSpec(
        flags,
        read,
        help,
        metavar,
        group,
        torchrun_variable=torchrun_variable,
        choices=choices,
        not_in_files=not_in_files,
    )
    return field(default=default, metadata={"spec": spec})


def _flag(
    *flags: str,
    default: bool = False,
    help: str,  # noqa: A002 - the word argparse and click use
    group: str,
    torchrun_variable: bool = True,
    not_in_files: str = "",
) -> Any:
    return _option(
        *flags,
        read=readers.switch,
        default=default,
        help=help,
        metavar="",
        group=group,
        torchrun_variable=torchrun_variable,
        not_in_files=not_in_files,
    )


WORLD, RENDEZVOUS, WORKERS, RESTARTS, LOGS, OTHER = (
    "Nodes and ranks",
    "Rendezvous",
    "Workers",
    "Restarts and signals",
    "Output",
    "Other",
)


# Why files, which speak for all runs and all nodes, cannot set some options.
_ONE_RUN = "it belongs to one run"
_ONE_NODE = "it differs from node to node"
_ONE_COMMAND = "it says how the words of one command are meant"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that was asked for, and where each value came from.

    The fields are the options; their comments are the help texts. `origins` names the origin of every field that
    does not have its default, and `places` the flag, the variable, or the file and the key in it; `policy` is the
    site's, which all values obey. `notes` has a line for each file that does not count.
    """

    nnodes: NodeRange | None = _option(
        "--nnodes",
        read=readers.node_range,
        metavar="N|MIN:MAX",
        group=WORLD,
        not_in_files=_ONE_RUN,
        help="Number of nodes, or its range. Derived: the nodes of the Slurm step, or of the host list, else 1.",
    )
    spares: int = _option(
        "--spares",
        read=readers.integer(0),
        default=0,
        metavar="K",
        group=WORLD,
        torchrun_variable=False,
        help="Nodes without workers, which take the place of nodes that are lost. They are among those of --nnodes.",
    )
    nproc_per_node: int | str | None = _option(
        "--nproc-per-node",
        read=readers.process_count,
        metavar="N|auto|cpu|gpu|xpu",
        group=WORLD,
        help="Workers per node. Derived: one per visible device, else 1. 'auto': one per device, else one per CPU.",
    )
    hosts: str | None = _option(
        "--hosts",
        metavar="HOSTLIST",
        group=WORLD,
        not_in_files=_ONE_RUN,
        torchrun_variable=False,
        help="The nodes, in rank order, as a Slurm host list ('gpu[01-04]'): those to run on without Slurm, or some of "
        "those of the allocation.",
    )
    nodes: int | str | None = _option(
        "--nodes",
        read=readers.nodes,
        metavar="N|HOSTLIST",
        group=WORLD,
        not_in_files=_ONE_RUN,
        torchrun_variable=False,
        help="How many nodes of the allocation to run on, or which, where hpc-launch starts the step itself (salloc, "
        "srun --pty, batch scripts without srun, --jobid). Derived: all of them.",
    )
    jobid: str | None = _option(
        "--jobid",
        read=readers.job_id,
        metavar="JOB",
        group=WORLD,
        not_in_files=_ONE_RUN,
        torchrun_variable=False,
        help="Start the step in this job, which runs, from wherever this is. Derived: the job that this is in.",
    )
    overlap: bool = _flag(
        "--overlap",
        group=WORLD,
        not_in_files=_ONE_RUN,
        torchrun_variable=False,
        help="Share nodes and GPUs with other steps that run there, where hpc-launch starts the step itself.",
    )
    hostfile: str | None = _option(
        "--hostfile",
        metavar="FILE",
        group=WORLD,
        not_in_files=_ONE_RUN,
        torchrun_variable=False,
        help="A file with the nodes, one a line; repeated names or slots=N give the workers per node "
        "($PBS_NODEFILE, $LSB_DJOB_HOSTFILE, MPI host files).",
    )
    node_rank: int | None = _option(
        "--node-rank",
        read=readers.integer(0),
        metavar="N",
        group=WORLD,
        not_in_files=_ONE_NODE,
        help="Number of this node. Derived: where this host stands in the list of nodes.",
    )
    master_addr: str | None = _option(
        "--master-addr",
        metavar="ADDRESS",
        group=WORLD,
        not_in_files=_ONE_RUN,
        help="Name or address of node 0 (IPv6 in brackets). Derived: the first node of the list.",
    )
    master_port: int | None = _option(
        "--master-port",
        read=readers.integer(1, 65535),
        metavar="PORT",
        group=WORLD,
        not_in_files=_ONE_RUN,
        help="The MASTER_PORT of the workers. Derived: a free port of the port range.",
    )
    local_addr: str | None = _option(
        "--local-addr",
        metavar="ADDRESS",
        group=WORLD,
        not_in_files=_ONE_NODE,
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
        not_in_files=_ONE_RUN,
        help="Where the rendezvous backend is found. Derived: node 0 and a port of the port range.",
    )
    rdzv_id: str | None = _option(
        "--rdzv-id",
        metavar="ID",
        group=RENDEZVOUS,
        not_in_files=_ONE_RUN,
        help="Name of this run. Derived: job, step and restart count.",
    )
    rdzv_conf: tuple[tuple[str, str], ...] = _option(
        "--rdzv-conf",
        read=readers.pairs,
        default=(),
        metavar="KEY=VALUE,...",
        group=RENDEZVOUS,
        help="More options for the rendezvous backend.",
    )
    standalone: bool = _flag(
        "--standalone",
        group=RENDEZVOUS,
        not_in_files=_ONE_RUN,
        help="One node, apart from everything else: Slurm, host lists and endpoints are not looked at.",
    )
    join_timeout: float = _option(
        "--join-timeout",
        read=readers.seconds,
        default=600.0,
        metavar="SECONDS",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="How long to wait for nodes that are missing, before they are named and the job ends.",
    )
    node_timeout: float = _option(
        "--node-timeout",
        read=readers.seconds,
        default=10.0,
        metavar="SECONDS",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="After so many seconds without an answer a node is lost, where a run can go on without it (--nnodes "
        "MIN:MAX, --spares).",
    )
    port_range: range = _option(
        "--port-range",
        read=readers.port_range,
        default=range(20000, 32000),
        metavar="LOW-HIGH",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="The ports to choose from (default 20000-31999, below the range that Linux hands out by itself).",
    )
    insecure_rendezvous: bool = _flag(
        "--insecure-rendezvous",
        group=RENDEZVOUS,
        torchrun_variable=False,
        help="Let nodes meet that have no secret in common. Other users who reach a node can then end the job, or send "
        "its workers elsewhere. A secret is better: export HPC_LAUNCH_SECRET=$(openssl rand -hex 32) before srun. A "
        "site can forbid this option.",
    )
    module: bool = _flag(
        "-m",
        "--module",
        group=WORKERS,
        not_in_files=_ONE_COMMAND,
        help="The script is a module name, as in 'python -m'.",
    )
    no_python: bool = _flag(
        "--no-python",
        group=WORKERS,
        not_in_files=_ONE_COMMAND,
        help="The script is a program of its own: start it without Python.",
    )
    run_path: bool = _flag(
        "--run-path",
        group=WORKERS,
        help="Run the script with runpy.run_path, under the name __main__.",
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
        help="torchrun's word for --start: spawn starts new processes; fork and forkserver fork workers if possible.",
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
        read=readers.modules,
        default=(),
        metavar="MODULES",
        group=WORKERS,
        torchrun_variable=False,
        help="Modules to import beside torch before workers are forked, separated by commas.",
    )
    exec_for: tuple[str, ...] = _option(
        "--exec-for",
        read=readers.modules,
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
    cpu_bind: CpuBind = _option(
        "--cpu-bind",
        read=readers.cpu_bind,
        default=CpuBind(),
        metavar="auto|none|map:CPUS/CPUS/...",
        group=WORKERS,
        torchrun_variable=False,
        help="Which of the CPUs that Slurm gave each local rank runs on. auto: a share of its own, near its device; "
        "none: all of them; map: the listed ones, local rank by local rank (map:0-7/8-15).",
    )
    gpu_bind: str = _option(
        "--gpu-bind",
        default="visible",
        group=WORKERS,
        torchrun_variable=False,
        choices=("visible", "isolate", "none"),
        help="Which devices a worker sees. visible: all of the node's share, LOCAL_RANK choosing one; isolate: its own "
        "only, as device 0 (--virtual-local-rank); none: the masks are left as they are.",
    )
    numa_binding: str | None = _option(
        "--numa-binding",
        metavar="MODE",
        group=WORKERS,
        torchrun_variable=False,
        help="Have torch say which CPUs workers get, instead of --cpu-bind: its modes node, socket, exclusive, "
        "core-complex. Needs torch 2.9.",
    )
    omp_num_threads: int | None = _option(
        "--omp-num-threads",
        read=readers.integer(1),
        metavar="N",
        group=WORKERS,
        torchrun_variable=False,
        help="OMP_NUM_THREADS of the workers. Derived, where that variable is unset: the CPUs of each (--cpu-bind), or "
        "allowed CPUs / local ranks.",
    )
    default_env: tuple[tuple[str, str], ...] = _option(
        "--default-env",
        read=readers.variables,
        default=(),
        metavar="NAME=VALUE,...",
        group=WORKERS,
        torchrun_variable=False,
        help="Environment variables of the workers, where they are not set already (a double comma stands for one in a "
        "value). Meant for settings files and profiles.",
    )
    open_files: int | str = _option(
        "--open-files",
        read=readers.open_files,
        default="auto",
        metavar="auto|keep|N",
        group=WORKERS,
        torchrun_variable=False,
        help="How many files a worker may have open (its soft limit, ulimit -Sn). auto: 65,536, or the hard limit if "
        "that is lower; keep: the launcher's own limit. NCCL needs more than the usual 1,024 from four nodes on.",
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
        read=readers.integer(0),
        default=0,
        metavar="N",
        group=RESTARTS,
        help="How often all workers are started again after a failure.",
    )
    monitor_interval: float = _option(
        "--monitor-interval",
        read=readers.seconds,
        default=0.1,
        metavar="SECONDS",
        group=RESTARTS,
        help="How often the agent looks at its workers and at the other nodes.",
    )
    hang_timeout: float = _option(
        "--hang-timeout",
        read=readers.seconds_or_none,
        default=0.0,
        metavar="SECONDS|none",
        group=RESTARTS,
        torchrun_variable=False,
        help="End an attempt in which no rank has made progress for so long (--hang-activity), after the stacks of all "
        "ranks were written into the job directory. Default: none.",
    )
    hang_activity: str = _option(
        "--hang-activity",
        choices=("auto", "progress", "output"),
        default="auto",
        group=RESTARTS,
        torchrun_variable=False,
        help="What --hang-timeout waits for: that a rank marks progress (runtime.mark_progress), or that a rank writes "
        "something. auto: progress from the first mark of an attempt on, and output before.",
    )
    signals_to_handle: tuple[str, ...] = _option(
        "--signals-to-handle",
        read=readers.signal_names,
        default=("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"),
        metavar="NAMES",
        group=RESTARTS,
        help="Signals that stop the workers in order.",
    )
    notice_signals: tuple[str, ...] = _option(
        "--notice-signals",
        read=readers.notice_names,
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
        read=readers.integer(0),
        metavar="SECONDS",
        group=RESTARTS,
        help="Time for the workers to end after a signal before they are killed. Default: "
        "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT, else what Slurm gives (KillWait), else 30.",
    )
    requeue: tuple[str, ...] = _option(
        "--requeue",
        read=readers.requeue_reasons,
        default=(),
        metavar="on-notice|on-timeout|on-preempt|on-failure|never",
        group=RESTARTS,
        torchrun_variable=False,
        help="When Slurm is asked to run the job again: after a notice signal, at the time limit, after a preemption "
        "that would end it, after a failure; several separated by commas. Default: never.",
    )
    max_requeues: int = _option(
        "--max-requeues",
        read=readers.integer(0),
        default=10,
        metavar="N",
        group=RESTARTS,
        torchrun_variable=False,
        help="How often at most; preemptions are not counted.",
    )
    requeue_patience: int = _option(
        "--requeue-patience",
        read=readers.integer(1),
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
    log_name: str | None = _option(
        "--log-name",
        read=readers.file_name,
        metavar="NAME",
        group=LOGS,
        torchrun_variable=False,
        not_in_files=_ONE_RUN,
        help="Name of the job directory. Derived: the Slurm job and step, else local-<time>-<pid>.",
    )
    private_logs: bool = _flag(
        "--private-logs",
        group=LOGS,
        torchrun_variable=False,
        help="Make the job directory private (mode 0700). Without this option the umask decides who can read it.",
    )
    secret_names: tuple[str, ...] = _option(
        "--secret-names",
        read=readers.words,
        default=(),
        metavar="PATTERN,...",
        group=LOGS,
        torchrun_variable=False,
        help="More arguments and variables whose values are left out of records, reports and process titles, by their "
        "names ('DB_*'). Those of keys, tokens, passwords and the like are left out in any case.",
    )
    redirects: StreamChoice | None = _option(
        "-r",
        "--redirects",
        read=readers.streams,
        metavar="STREAMS",
        group=LOGS,
        help="Streams that go to files only: 0 none, 1 stdout, 2 stderr, 3 both, or by local rank (0:1,1:2). "
        "Without -r and -t all go to files, and to the console as --console says.",
    )
    tee: StreamChoice | None = _option(
        "-t",
        "--tee",
        read=readers.streams,
        metavar="STREAMS",
        group=LOGS,
        help="Streams that go to files and to the console; same form as -r.",
    )
    console: ConsoleChoice = _option(
        "--console",
        read=readers.console,
        default=ConsoleChoice(),
        metavar="all|auto|RANKS",
        group=LOGS,
        torchrun_variable=False,
        help=f"Ranks shown on the console. auto: all of them up to {CONSOLE_AUTO_RANKS}, then rank 0.",
    )
    local_ranks_filter: tuple[int, ...] = _option(
        "--local-ranks-filter",
        read=readers.ranks,
        default=(),
        metavar="RANKS",
        group=LOGS,
        help="Only these local ranks are shown on the console.",
    )
    duplicate_stdout_filters: tuple[str, ...] = _option(
        "--duplicate-stdout-filters",
        read=readers.words,
        default=(),
        metavar="TEXT,...",
        group=LOGS,
        help="Copy lines of stdout with one of these texts to filtered_stdout.log (a double comma stands for one).",
    )
    duplicate_stderr_filters: tuple[str, ...] = _option(
        "--duplicate-stderr-filters",
        read=readers.words,
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
    profile: str | None = _option(
        "--profile",
        metavar="NAME|FILE",
        group=OTHER,
        torchrun_variable=False,
        not_in_files=_ONE_RUN,
        help="More settings, which count before those of the settings files: a profile that one of these has, one that "
        "comes with hpc-launch, or a TOML file.",
    )
    plain: bool = _flag(
        "--plain",
        group=OTHER,
        torchrun_variable=False,
        not_in_files=_ONE_RUN,
        help="Have torchrun start the workers, with the derived values and nothing else of hpc-launch, when hpc-launch "
        "itself may be what is in the way. Where Slurm starts a task for each rank, the task becomes the script.",
    )
    verbose: bool = _flag(
        "-v",
        "--verbose",
        group=OTHER,
        torchrun_variable=False,
        help="Say more, and show tracebacks of the launcher's own errors.",
    )

    @property
    def may_lose_nodes(self) -> bool:
        """Whether a run is asked for that goes on without nodes that are lost."""
        return self.spares > 0 or (self.nnodes is not None and self.nnodes.minimum < self.nnodes.maximum)

    origins: Mapping[str, Origin] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    policy: SitePolicy = NO_POLICY
    notes: tuple[str, ...] = ()

    def origin(self, name: str) -> Origin:
        """Where the value of field `name` came from."""
        return self.origins.get(name, Origin.DEFAULT)

    def given(self, name: str) -> bool:
        """Whether anybody asked for field `name`."""
        return name in self.origins


def specs() -> dict[str, OptionSpec]:
    """The options of a run by field name, in the order in which they are explained."""
    return {f.name: cast("OptionSpec", f.metadata["spec"]) for f in dataclasses.fields(Settings) if f.metadata}
