"""Where the processes of a job are: what was seen of each, how stacks are read, and which of them are alike. Pure.

Two formats are read: that of faulthandler (which workers answer in, too) and that of `py-spy dump`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from hpc_launch import codec
from hpc_launch.codec import checked
from hpc_launch.records.formatting import fold_ranks

# How the cause of an attempt begins that has ended because nobody did anything; where they were follows.
HANG = "hang: "

# faulthandler (Python/traceback.c): `Current thread 0x00007f12 [name] (most recent call first):`.
_THREAD = re.compile(r"^(?:Current thread|Thread|Stack)(?: 0x[0-9a-f]+)?(?: \[(.*)\])? \(most recent call first\):$")
_FRAME = re.compile(r'^  File "(.*)", line (\d+|\?\?\?) in (.*)$')

# py-spy: `Thread 4711 (idle): "MainThread"`, then `    Thread.run (threading.py:982)`.
_SPIED_THREAD = re.compile(r'^Thread \S+ \([^()]*\)(?:: "(.*)")?$')
_SPIED_FRAME = re.compile(r"^    (\S.*) \((.*?)(?::(\d+))?\)$")

# The launcher's own frames below those of a script, which a warm start has.
_LAUNCHER = (
    "/hpc_launch/workers/script.py",
    "/hpc_launch/workers/command_workers.py",
    # As they were called before.
    "/hpc_launch/warm/script.py",
    "/hpc_launch/elastic/workers.py",
)
_RUNPY = re.compile(r"<frozen runpy>|.*/runpy\.py")

# Code of libraries, of which a line number says little: an all-reduce polls on several lines.
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages)/|.*/lib(?:64)?/python3\.\d+t?/|<frozen ")

_MAIN = "MainThread"

# Where a process of multiprocessing begins, a data loader's for instance.
_CHILD = ("_bootstrap", "multiprocessing/process.py")

# A collective of torch.distributed is among so many of the innermost calls.
_INNERMOST = 3

# Functions that wrap others, and say nothing about what is being done.
_WRAPPERS = re.compile(r"_.*|wrapper|wrapped|inner|decorate_.*|fn")


@dataclass(frozen=True)
class StackFrame:
    """One call: of which function, in which file, at which line it is (0 where unknown)."""

    function: str
    file: str
    line: int

    @property
    def library(self) -> bool:
        """Whether it is Python's or an installed package's, as far as its path says so."""
        return _LIBRARY.match(self.file) is not None

    @property
    def short(self) -> str:
        """Its file as people know it: a library's from the package on, any other as it is."""
        return _LIBRARY.sub("", self.file, count=1) if self.library and not self.file.startswith("<") else self.file

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it the same place in another process."""
        return self.function, self.short, 0 if self.library else self.line


@dataclass(frozen=True)
class ThreadStack:
    """A thread.

    Attributes:
        name: its name; empty where it is not known.
        frames: its calls, the innermost first.
        main: it is the main thread.
    """

    name: str
    frames: tuple[StackFrame, ...]
    main: bool = False

    @property
    def key(self) -> tuple[tuple[str, str, int], ...]:
        """What makes it the same in another process."""
        return tuple(frame.key for frame in self.frames)


# A process with hundreds of threads has long stacks.
_STACKS = codec.text(1 << 28)


@dataclass(frozen=True)
class ProcessStacks:
    """What was seen of one process: a worker, or one that it has started.

    Attributes:
        rank: the worker's.
        host: its node.
        pid: the process.
        parent: the process that it is a child of, for those below a worker; 0 for a worker.
        name: what `top` calls it.
        state: what it does, as the kernel says, in words.
        by: how its stacks were taken: `py-spy` or `signal`; empty where they were not.
        text: its stacks.
        why: why there are none.
    """

    rank: int
    host: str
    pid: int = 0
    parent: int = 0
    name: str = ""
    state: str = ""
    by: str = ""
    text: str = checked(_STACKS, "")
    why: str = ""

    @property
    def threads(self) -> tuple[ThreadStack, ...]:
        """Its threads, the main thread first."""
        return parse_stacks(self.text)


def parse_stacks(text: str) -> tuple[ThreadStack, ...]:
    """Read stacks, the main thread's first. Lines that are none of either format are passed over."""
    found: list[tuple[str, list[StackFrame]]] = []
    for line in text.splitlines():
        if match := _THREAD.match(line) or _SPIED_THREAD.match(line):
            found.append((match[1] or "", []))
        elif not found:
            continue
        elif match := _FRAME.match(line):
            found[-1][1].append(StackFrame(match[3], match[1], int(match[2]) if match[2].isdigit() else 0))
        elif match := _SPIED_FRAME.match(line):
            # It names methods with their class (`ThreadStack.run`), faulthandler does not.
            found[-1][1].append(StackFrame(match[1].rpartition(".")[2], match[2], int(match[3] or 0)))
    main = _main(found)
    threads = [
        ThreadStack("" if number == main else name, _own(frames), main=number == main)
        for number, (name, frames) in enumerate(found)
        if frames or number == main
    ]
    return tuple(sorted(threads, key=lambda thread: not thread.main))


def _main(threads: Sequence[tuple[str, Sequence[StackFrame]]]) -> int:
    """Which one is the main thread: by its name, by where it began, or as the oldest, which faulthandler has last."""
    for number, (name, _) in enumerate(threads):
        if name == _MAIN:
            return number
    for number, (_, frames) in enumerate(threads):
        if frames and frames[-1].function == "<module>":
            return number
    return len(threads) - 1


def _own(frames: Sequence[StackFrame]) -> tuple[StackFrame, ...]:
    """Without the frames of whatever has started the script."""
    for number, frame in enumerate(frames):
        if frame.file.endswith(_LAUNCHER):
            frames = frames[:number]
            break
    while frames and _RUNPY.fullmatch(frames[-1].file):
        frames = frames[:-1]
    for number, frame in enumerate(frames):
        if (frame.function, frame.short) == _CHILD:  # what is below was its parent's when it forked
            frames = frames[: number + 1]
            break
    return tuple(frames)


@dataclass(frozen=True)
class StackGroup:
    """Ranks whose processes are at the same place.

    Attributes:
        ranks: them.
        hosts: their nodes, in the order of the ranks.
        frames: their calls, the innermost first; of library code, with the lines of the first of them.
        what: empty for the main threads of workers; else which threads or children these are.
        count: how many processes or threads these are in all.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    frames: tuple[StackFrame, ...]
    what: str = ""
    count: int = 0

    @property
    def waits(self) -> bool:
        """Whether it looks as if they waited for other ranks."""
        return any(frame.short.startswith("torch/distributed/") for frame in self.frames[:_INNERMOST])

    @property
    def place(self) -> str:
        """Where that is, in a few words: the innermost function that is no library's, its line, and what it called."""
        if not self.frames:
            return "outside of Python"
        own = next((number for number, frame in enumerate(self.frames) if not frame.library), 0)
        frame = self.frames[own]
        names = [inner.function for inner in reversed(self.frames[:own])]
        called = next((name for name in names if not _WRAPPERS.fullmatch(name)), names[-1] if names else "")
        called = f", in {called}" if called else ""
        return f"{frame.function} ({PurePath(frame.short).name}:{frame.line}){called}"


@dataclass(frozen=True)
class UnseenRanks:
    """Ranks of which no stacks were seen, for the same reason and in the same state."""

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    why: str
    state: str = ""


@dataclass(frozen=True)
class FoldedStacks:
    """What was seen, alike with alike; what the fewest do comes first, and waiting for others last.

    Attributes:
        groups: the main threads of the workers.
        others: further threads and child processes.
        unseen: ranks without stacks.
    """

    groups: tuple[StackGroup, ...]
    others: tuple[StackGroup, ...]
    unseen: tuple[UnseenRanks, ...]

    @property
    def summary(self) -> str:
        """All of it in a line: `rank 3: load (train.py:7), in sleep; ranks 0-2: main (train.py:9), in all_reduce`."""
        words = [f"{fold_ranks(group.ranks)}: {group.place}" for group in self.groups[:_IN_A_LINE]]
        if len(self.groups) > _IN_A_LINE:
            rest = [rank for group in self.groups[_IN_A_LINE:] for rank in group.ranks]
            words.append(f"{fold_ranks(rest)}: elsewhere")
        words += [f"{fold_ranks(gone.ranks)}: {gone.state or gone.why}" for gone in self.unseen[:_IN_A_LINE]]
        return "; ".join(words) or "nothing was seen"


_IN_A_LINE = 3


def fold_stacks(seen: Iterable[ProcessStacks]) -> FoldedStacks:
    """Put alike with alike."""
    found = sorted(seen, key=lambda one: (one.rank, one.parent, one.pid))
    mains: dict[object, list[tuple[ProcessStacks, ThreadStack]]] = {}
    others: dict[object, list[tuple[ProcessStacks, ThreadStack]]] = {}
    unseen: dict[tuple[str, str], list[ProcessStacks]] = {}
    for one in found:
        threads = one.threads
        if not threads and not one.parent:
            unseen.setdefault((one.why, one.state), []).append(one)
        for thread in threads:
            if thread.main and not one.parent:
                mains.setdefault(thread.key, []).append((one, thread))
            else:
                others.setdefault((_what(one, thread), thread.key), []).append((one, thread))
    groups = [_group("", members) for members in mains.values()]
    more = [_group(_what(*members[0]), members) for members in others.values()]
    gone = [
        UnseenRanks(tuple(one.rank for one in those), _hosts(those), why, state)
        for (why, state), those in unseen.items()
    ]
    return FoldedStacks(
        tuple(sorted(groups, key=lambda group: (len(group.ranks), group.waits, group.ranks))),
        tuple(sorted(more, key=lambda group: (group.what, len(group.ranks), group.ranks))),
        tuple(sorted(gone, key=lambda those: (len(those.ranks), those.ranks))),
    )


def _what(one: ProcessStacks, thread: ThreadStack) -> str:
    """Which thread or child it is; numbers in names count them."""
    name = re.sub(r"\d+", "N", thread.name)
    words = f"thread {name}" if name else "thread"
    if not one.parent:
        return words
    child = f"child {re.sub(r'[0-9]+', 'N', one.name)}"
    return child if thread.main else f"{child}, {words}"


def _group(what: str, members: Sequence[tuple[ProcessStacks, ThreadStack]]) -> StackGroup:
    ranks: dict[int, ProcessStacks] = {}
    for one, _ in members:
        ranks.setdefault(one.rank, one)
    return StackGroup(tuple(ranks), _hosts(ranks.values()), members[0][1].frames, what, len(members))


def _hosts(seen: Iterable[ProcessStacks]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.host for one in seen))
