"""What can be asked of a submission: every option once, with its flag, its place in files and its meaning.

Slurm's options have Slurm's names and meanings (sbatch(1)). Some of Slurm's are spelled differently here, because
hpc-launch has an option of the same name: `-t`, `--requeue`, `--profile`, `--verbose` are hpc-launch's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hpc_launch.settings import OptionSpec, readers
from hpc_launch.settings.layer import SUBMIT
from hpc_launch.settings.option import PREFIX
from hpc_launch.settings.readers import Reader, Unreadable, reader
from hpc_launch.slurm.slurm_times import read_time_limit


def _words(given: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.split(",") if word.strip())


def _lines(given: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in given.split("\n") if line.strip())


@reader(int)
def _time_limit(given: str) -> str:
    if read_time_limit(given) is None:
        raise Unreadable("a time limit")
    return given


# What the options have. Slurm reads its own options itself: for hpc-launch they are texts and switches.
_VALUE: Reader[str] = replace(readers.text, natural=frozenset({int}), expected="a string or a whole number")
_SWITCH: Reader[bool] = replace(readers.switch, natural=frozenset({bool, int}), expected="true or false")
_LIST: Reader[str] = replace(_VALUE, of_list=",".join, expected="a string or a list of strings")
_WORDS = Reader(_words, of_list=lambda given: _words(",".join(given)), expected="a list of strings")
_LINES = Reader(_lines, of_list=tuple, expected="a list of strings")


def _option(
    name: str,
    metavar: str,
    help: str,  # noqa: A002 - the word click uses
    group: str,
    read: Reader[Any] = _VALUE,
    *,
    short: str = "",
) -> OptionSpec:
    return OptionSpec(
        (*([short] if short else []), f"--{name}"),
        read,
        help,
        metavar,
        group,
        multiple=read.of_list is not None,
        prefix=f"{PREFIX}{SUBMIT.upper()}_",
    )


RESOURCES, WHERE, WHEN, OUTPUT, SOFTWARE = ("Resources", "Where", "When", "Name and output", "Software and script")

_TABLE = (
    _option("nodes", "N|MIN-MAX", "Number of nodes.", RESOURCES, short="-N"),
    _option("gpus-per-node", "[TYPE:]N", "GPUs of each node.", RESOURCES),
    _option("gpus", "[TYPE:]N", "GPUs of the whole job.", RESOURCES, short="-G"),
    _option("gres", "LIST", "Generic resources of each node, such as gpu:a100:4.", RESOURCES, _LIST),
    _option("ntasks-per-node", "N", "Tasks of each node: 1, or the number of its GPUs.", RESOURCES),
    _option("ntasks", "N", "Tasks of the whole job.", RESOURCES, short="-n"),
    _option(
        "cpus-per-task",
        "N",
        "CPUs of each task. Derived, where GPUs are asked for: their share of the node.",
        RESOURCES,
        short="-c",
    ),
    _option(
        "cpus-per-gpu",
        "N",
        "CPUs for each GPU; becomes --cpus-per-task, since srun of some releases loses the CPUs otherwise.",
        RESOURCES,
    ),
    _option("mem", "SIZE", "Memory of each node; 0 is all. Derived as the CPUs are.", RESOURCES),
    _option("mem-per-cpu", "SIZE", "Memory for each CPU.", RESOURCES),
    _option("mem-per-gpu", "SIZE", "Memory for each GPU.", RESOURCES),
    _option("exclusive", "", "Share the nodes with no other job.", RESOURCES, _SWITCH),
    _option("tmp", "SIZE", "Local disk space of each node.", RESOURCES),
    _option("licenses", "LIST", "Licences.", RESOURCES, _LIST, short="-L"),
    _option("partition", "NAMES", "Partition, or several.", WHERE, _LIST, short="-p"),
    _option("account", "NAME", "Account that pays.", WHERE, short="-A"),
    _option("qos", "NAME", "Quality of service.", WHERE, short="-q"),
    _option("constraint", "FEATURES", "Features that nodes must have.", WHERE, short="-C"),
    _option("nodelist", "HOSTLIST", "Nodes that must be among those of the job.", WHERE, _LIST, short="-w"),
    _option("exclude", "HOSTLIST", "Nodes that must not.", WHERE, _LIST, short="-x"),
    _option("reservation", "NAME", "Reservation.", WHERE),
    _option("clusters", "NAMES", "Cluster, where there are several.", WHERE, _LIST, short="-M"),
    _option("switches", "N[@TIME]", "How many switches at most, and how long to wait for that.", WHERE),
    _option("gres-flags", "FLAGS", "How GPUs and CPUs go together.", WHERE),
    _option("hint", "TYPE", "For instance nomultithread: one CPU of each core.", WHERE),
    _option("time", "TIME", "Time limit: minutes, H:M:S or DAYS-H:M:S. (-t is --tee.)", WHEN),
    _option("time-min", "TIME", "Accept a shorter time limit, if the job starts earlier then.", WHEN),
    _option("begin", "TIME", "Not before.", WHEN, short="-b"),
    _option("deadline", "TIME", "Not at all, if it cannot end by then.", WHEN),
    _option("dependency", "LIST", "Slurm's own form of --after.", WHEN, _LIST, short="-d"),
    _option("array", "INDICES", "Job array; with --sweep which points, or %N for so many at a time.", WHEN, short="-a"),
    _option("signal", "SIGNAL@SECONDS", "Signal so many seconds before the end.", WHEN),
    _option("nice", "N", "Less priority.", WHEN),
    _option("hold", "", "Do not start before `scontrol release`.", WHEN, _SWITCH, short="-H"),
    _option("no-requeue", "", "Never run it again.", WHEN, _SWITCH),
    _option("job-name", "NAME", "Name. Derived: that of the script.", OUTPUT, short="-J"),
    _option("comment", "TEXT", "Comment.", OUTPUT),
    _option("output", "FILE", "File for the output, with Slurm's %j, %x and so on.", OUTPUT, short="-o"),
    _option("error", "FILE", "File for the errors; those of the output otherwise.", OUTPUT, short="-e"),
    _option("open-mode", "append|truncate", "What a requeued job does with these files.", OUTPUT),
    _option("mail-type", "EVENTS", "When to send mail.", OUTPUT, _LIST),
    _option("mail-user", "ADDRESS", "To whom.", OUTPUT),
    _option("chdir", "DIR", "Working directory of the job.", OUTPUT, short="-D"),
    _option(
        "export",
        "ALL|NONE|NIL|NAMES",
        "Variables that the job gets. The tasks get what the script has.",
        OUTPUT,
        _LIST,
    ),
    _option(
        "template",
        "NAME|FILE",
        "Job script to start from. Derived: cpu, single_node or multi_node.",
        SOFTWARE,
    ),
    _option("modules", "NAMES", "Environment modules to load.", SOFTWARE, _WORDS),
    _option("venv", "DIR", "Virtual environment to activate.", SOFTWARE),
    _option("setup", "LINE", "Line of bash for the job script; can be repeated.", SOFTWARE, _LINES),
    _option("image", "FILE", "Container image, for a template that takes one.", SOFTWARE),
    _option(
        "keep-environment",
        "NAMES",
        "Variables that go along although they look like another job's, such as SBATCH_ACCOUNT or SBATCH_*.",
        SOFTWARE,
        _WORDS,
    ),
    _option(
        "sbatch-arg",
        "WORD",
        "Any other option of sbatch, as one word: --sbatch-arg=--wckey=x.",
        SOFTWARE,
        _LINES,
    ),
)

OPTIONS = {option.key: option for option in _TABLE}

# Those of sbatch. The others are for hpc-launch, which puts what they say into the job script.
OF_SBATCH = frozenset(name for name, option in OPTIONS.items() if option.group != SOFTWARE)

# What a table of a partition may have besides: limits that are looked at before Slurm is asked.
MAX_NODES, MAX_TIME, MAX_GPUS_PER_NODE = LIMITS = ("max-nodes", "max-time", "max-gpus-per-node")

# What a table of a partition cannot say: it is chosen by the first, and the others are no matter of a partition.
_NOT_OF_A_PARTITION = frozenset({"partition", "keep-environment", "job-name", "chdir"})

# The keys of such a table.
OF_A_PARTITION = {name: option for name, option in OPTIONS.items() if name not in _NOT_OF_A_PARTITION} | {
    name: _option(name, "", "", "", _time_limit if name == MAX_TIME else readers.integer(1)) for name in LIMITS
}

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
