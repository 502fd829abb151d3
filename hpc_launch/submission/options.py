"""What can be asked of a submission: every option once, with its flag, its place in files and its meaning.

Slurm's options have Slurm's names and meanings (sbatch(1)). Some of Slurm's are spelled differently here, because
hpc-launch has an option of the same name: `-t`, `--requeue`, `--profile`, `--verbose` are hpc-launch's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

VARIABLE = "HPC_LAUNCH_SUBMIT_"


class Kind(Enum):
    """How often an option can be said, and what it has."""

    VALUE = "one value"
    SWITCH = "no value"
    LIST = "values that are joined by commas, for Slurm"
    WORDS = "values, separated by commas in a variable"
    LINES = "values, separated by line breaks in a variable"


@dataclass(frozen=True)
class SubmitOption:
    """One option.

    Attributes:
        name: its long name, without dashes: also its key in files.
        metavar: what its value is called.
        short: its short form; empty where it has none.
        slurm: whether it is sbatch's.
    """

    name: str
    metavar: str
    help: str
    group: str
    kind: Kind = Kind.VALUE
    short: str = ""
    slurm: bool = True

    @property
    def flag(self) -> str:
        """The long spelling."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The variable that says the same."""
        return VARIABLE + self.name.upper().replace("-", "_")


RESOURCES, WHERE, WHEN, OUTPUT, SOFTWARE = ("Resources", "Where", "When", "Name and output", "Software and script")

_TABLE = (
    SubmitOption("nodes", "N|MIN-MAX", "Number of nodes.", RESOURCES, short="-N"),
    SubmitOption("gpus-per-node", "[TYPE:]N", "GPUs of each node.", RESOURCES),
    SubmitOption("gpus", "[TYPE:]N", "GPUs of the whole job.", RESOURCES, short="-G"),
    SubmitOption("gres", "LIST", "Generic resources of each node, such as gpu:a100:4.", RESOURCES, Kind.LIST),
    SubmitOption("ntasks-per-node", "N", "Tasks of each node: 1, or the number of its GPUs.", RESOURCES),
    SubmitOption("ntasks", "N", "Tasks of the whole job.", RESOURCES, short="-n"),
    SubmitOption(
        "cpus-per-task",
        "N",
        "CPUs of each task. Derived, where GPUs are asked for: their share of the node.",
        RESOURCES,
        short="-c",
    ),
    SubmitOption(
        "cpus-per-gpu",
        "N",
        "CPUs for each GPU; becomes --cpus-per-task, since srun of some releases loses the CPUs otherwise.",
        RESOURCES,
    ),
    SubmitOption("mem", "SIZE", "Memory of each node; 0 is all. Derived as the CPUs are.", RESOURCES),
    SubmitOption("mem-per-cpu", "SIZE", "Memory for each CPU.", RESOURCES),
    SubmitOption("mem-per-gpu", "SIZE", "Memory for each GPU.", RESOURCES),
    SubmitOption("exclusive", "", "Share the nodes with no other job.", RESOURCES, Kind.SWITCH),
    SubmitOption("tmp", "SIZE", "Local disk space of each node.", RESOURCES),
    SubmitOption("licenses", "LIST", "Licences.", RESOURCES, Kind.LIST, short="-L"),
    SubmitOption("partition", "NAMES", "Partition, or several.", WHERE, Kind.LIST, short="-p"),
    SubmitOption("account", "NAME", "Account that pays.", WHERE, short="-A"),
    SubmitOption("qos", "NAME", "Quality of service.", WHERE, short="-q"),
    SubmitOption("constraint", "FEATURES", "Features that nodes must have.", WHERE, short="-C"),
    SubmitOption("nodelist", "HOSTLIST", "Nodes that must be among those of the job.", WHERE, Kind.LIST, short="-w"),
    SubmitOption("exclude", "HOSTLIST", "Nodes that must not.", WHERE, Kind.LIST, short="-x"),
    SubmitOption("reservation", "NAME", "Reservation.", WHERE),
    SubmitOption("clusters", "NAMES", "Cluster, where there are several.", WHERE, Kind.LIST, short="-M"),
    SubmitOption("switches", "N[@TIME]", "How many switches at most, and how long to wait for that.", WHERE),
    SubmitOption("gres-flags", "FLAGS", "How GPUs and CPUs go together.", WHERE),
    SubmitOption("hint", "TYPE", "For instance nomultithread: one CPU of each core.", WHERE),
    SubmitOption("time", "TIME", "Time limit: minutes, H:M:S or DAYS-H:M:S. (-t is --tee.)", WHEN),
    SubmitOption("time-min", "TIME", "Accept a shorter time limit, if the job starts earlier then.", WHEN),
    SubmitOption("begin", "TIME", "Not before.", WHEN, short="-b"),
    SubmitOption("deadline", "TIME", "Not at all, if it cannot end by then.", WHEN),
    SubmitOption("dependency", "LIST", "Slurm's own form of --after.", WHEN, Kind.LIST, short="-d"),
    SubmitOption(
        "array", "INDICES", "Job array; with --sweep which points, or %N for so many at a time.", WHEN, short="-a"
    ),
    SubmitOption("signal", "SIGNAL@SECONDS", "Signal so many seconds before the end.", WHEN),
    SubmitOption("nice", "N", "Less priority.", WHEN),
    SubmitOption("hold", "", "Do not start before `scontrol release`.", WHEN, Kind.SWITCH, short="-H"),
    SubmitOption("no-requeue", "", "Never run it again.", WHEN, Kind.SWITCH),
    SubmitOption("job-name", "NAME", "Name. Derived: that of the script.", OUTPUT, short="-J"),
    SubmitOption("comment", "TEXT", "Comment.", OUTPUT),
    SubmitOption("output", "FILE", "File for the output, with Slurm's %j, %x and so on.", OUTPUT, short="-o"),
    SubmitOption("error", "FILE", "File for the errors; those of the output otherwise.", OUTPUT, short="-e"),
    SubmitOption("open-mode", "append|truncate", "What a requeued job does with these files.", OUTPUT),
    SubmitOption("mail-type", "EVENTS", "When to send mail.", OUTPUT, Kind.LIST),
    SubmitOption("mail-user", "ADDRESS", "To whom.", OUTPUT),
    SubmitOption("chdir", "DIR", "Working directory of the job.", OUTPUT, short="-D"),
    SubmitOption(
        "export",
        "ALL|NONE|NIL|NAMES",
        "Variables that the job gets. The tasks get what the script has.",
        OUTPUT,
        Kind.LIST,
    ),
    SubmitOption(
        "template",
        "NAME|FILE",
        "Job script to start from. Derived: cpu, single_node or multi_node.",
        SOFTWARE,
        slurm=False,
    ),
    SubmitOption("modules", "NAMES", "Environment modules to load.", SOFTWARE, Kind.WORDS, slurm=False),
    SubmitOption("venv", "DIR", "Virtual environment to activate.", SOFTWARE, slurm=False),
    SubmitOption(
        "setup", "LINE", "Line of bash for the job script; can be repeated.", SOFTWARE, Kind.LINES, slurm=False
    ),
    SubmitOption("image", "FILE", "Container image, for a template that takes one.", SOFTWARE, slurm=False),
    SubmitOption(
        "keep-environment",
        "NAMES",
        "Variables that go along although they look like another job's, such as SBATCH_ACCOUNT or SBATCH_*.",
        SOFTWARE,
        Kind.WORDS,
        slurm=False,
    ),
    SubmitOption(
        "sbatch-arg",
        "WORD",
        "Any other option of sbatch, as one word: --sbatch-arg=--wckey=x.",
        SOFTWARE,
        Kind.LINES,
        slurm=False,
    ),
)

OPTIONS = {option.name: option for option in _TABLE}
SHORT = {option.short: option.name for option in _TABLE if option.short} | {"-t": "time"}

# What a table of a partition may have besides: limits that are looked at before Slurm is asked.
MAX_NODES, MAX_TIME, MAX_GPUS_PER_NODE = LIMITS = ("max-nodes", "max-time", "max-gpus-per-node")

# Options of which one takes the place of another. GPUs of --gres are a matter of their own (see render).
CONTRADICTIONS = (
    frozenset({"mem", "mem-per-cpu", "mem-per-gpu"}),
    frozenset({"cpus-per-task", "cpus-per-gpu"}),
    frozenset({"gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"}),
    frozenset({"exclusive", "oversubscribe"}),
    frozenset({"requeue", "no-requeue"}),
)
GPU_OPTIONS = CONTRADICTIONS[2]


def replaced_by(name: str) -> frozenset[str]:
    """The options that stand no longer where this one does, itself among them."""
    return frozenset({name}).union(*(group for group in CONTRADICTIONS if name in group))


def asks_for_gpus(gres: str) -> bool:
    """Whether a value of --gres has GPUs in it."""
    return any(word.strip().split(":")[0] in ("gpu", "gres/gpu") for word in gres.split(","))
