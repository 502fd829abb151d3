"""Stacks are read whoever has written them, and what is alike is shown once."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_launch import codec
from hpc_launch.errors import LogDirError
from hpc_launch.inspection.stacks_view import JobStacks, text
from hpc_launch.node.reserved_signals import Owner, first_descriptor
from hpc_launch.records import failure_messages, history, root_cause, stack_files
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.formatting import fold_ranks
from hpc_launch.records.stack_files import AllStacks
from hpc_launch.records.stack_traces import HANG, ProcessStacks, StackFrame, fold_stacks, parse_stacks
from tests.histories import Made, write
from tests.support import lines_mention, mentions

LIBRARY = "/opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"

# What `faulthandler.register(..., all_threads=True)` has, the main thread last, below it what a warm start has.
DUMPED = f"""\
Thread 0x00007f12a0ffb6c0 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f12b0ff9b80 (most recent call first):
  File "{LIBRARY}", line 3252 in all_reduce
  File "/home/me/my train.py", line 11 in main
  File "/home/me/my train.py", line 12 in <module>
  File "/opt/venv/lib/python3.11/site-packages/hpc_launch/workers/script.py", line 119 in _run_file
  File "/opt/venv/lib/python3.11/site-packages/hpc_launch/cli/__init__.py", line 73 in main
  File "/opt/venv/bin/hpc-launch", line 8 in <module>
"""

# What `py-spy dump --full-filenames` has.
SPIED = f"""\
Process 4711: /opt/venv/bin/python -u train.py
Python v3.11.7 (/usr/bin/python3.11)

Thread 4713 (idle): "Thread-1 (_serve)"
    Condition.wait (/usr/lib/python3.11/threading.py:327)
    Thread._bootstrap (/usr/lib/python3.11/threading.py:1002)
Thread 4711 (active+gil): "MainThread"
    all_reduce ({LIBRARY}:3250)
    main (/home/me/my train.py:11)
    <module> (/home/me/my train.py:12)
    _run_file (/opt/venv/lib/python3.11/site-packages/hpc_launch/workers/script.py:119)
"""

MAIN = (
    StackFrame("all_reduce", LIBRARY, 3252),
    StackFrame("main", "/home/me/my train.py", 11),
    StackFrame("<module>", "/home/me/my train.py", 12),
)


def stack(*frames: tuple[str, str, int]) -> str:
    """The text of a process with a main thread alone, which is in these functions, the innermost first."""
    lines = [f'  File "{file}", line {line} in {function}\n' for function, file, line in frames]
    return "".join(["Thread 0x1 [MainThread] (most recent call first):\n", *lines])


def job(count: int) -> list[ProcessStacks]:
    """A job of eight ranks per node, of which the last sits elsewhere."""
    waits = stack(
        ("all_reduce", LIBRARY, 3252), ("main", "/home/me/train.py", 11), ("<module>", "/home/me/train.py", 12)
    )
    loads = stack(
        ("read", "/home/me/data.py", 40), ("main", "/home/me/train.py", 9), ("<module>", "/home/me/train.py", 12)
    )
    texts = [waits] * (count - 1) + [loads]
    return [
        ProcessStacks(rank, f"gpu{rank // 8 + 1:03}", 4000 + rank, by="signal", text=texts[rank])
        for rank in range(count)
    ]


def test_what_faulthandler_has_dumped() -> None:
    """The main thread comes first, wherever it stands, without the frames of the launcher."""
    main, other = parse_stacks(DUMPED)

    assert (main.main, main.frames) == (True, MAIN)
    assert (other.main, [frame.function for frame in other.frames]) == (False, ["wait", "_bootstrap"])


def test_what_py_spy_has_dumped() -> None:
    """It is the same place as that which faulthandler knows, whichever line of a library that is on."""
    main, other = parse_stacks(SPIED)

    assert main.key == parse_stacks(DUMPED)[0].key
    assert main.frames[0].line == 3250
    assert (other.name, other.frames[0].function) == ("Thread-1 (_serve)", "wait")


def test_what_this_python_dumps() -> None:
    """The format is that of the Python that runs this."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=False)
        file.seek(0)
        [main] = parse_stacks(file.read().decode())

    assert main.frames[0] == StackFrame("test_what_this_python_dumps", __file__, main.frames[0].line)
    assert main.frames[0].line


@pytest.mark.parametrize(
    "text",
    ["", "nonsense\n", "Thread 0x1 (most recent call first):\n", '  File "a.py", line 1 in f\n', DUMPED[:40], "\x00"],
)
def test_what_is_cut_off_or_foreign(text: str) -> None:
    """It is passed over."""
    assert [thread.frames for thread in parse_stacks(text)] in ([], [()])


def test_a_dump_that_is_cut_off_anywhere() -> None:
    """What is whole is read."""
    for end in range(len(DUMPED)):
        assert all(frame.file for thread in parse_stacks(DUMPED[:end]) for frame in thread.frames)


def test_a_process_of_multiprocessing_begins_where_it_was_forked() -> None:
    """What its parent did then is not what it does."""
    process = "/usr/lib/python3.11/multiprocessing/process.py"
    text = stack(
        ("get", "queues.py", 1), ("_bootstrap", process, 314), ("__iter__", "loader.py", 2), ("main", "t.py", 3)
    )

    assert [frame.function for frame in parse_stacks(text)[0].frames] == ["get", "_bootstrap"]


def test_alike_with_alike() -> None:
    """The outlier comes first; ranks and hosts are folded."""
    folded = fold_stacks(job(512))

    assert [(fold_ranks(group.ranks), len(group.hosts)) for group in folded.groups] == [
        ("rank 511", 1),
        ("ranks 0-510", 64),
    ]
    assert lines_mention(folded.summary.split(";"), "511 read data.py:40", "0-510 main train.py:11 all_reduce")


def test_of_two_who_waits_is_not_the_outlier() -> None:
    """Of groups of the same size the one in a collective comes last, for it waits for the other."""
    assert [group.waits for group in fold_stacks(job(2)).groups] == [False, True]


def test_another_line_of_the_script_is_another_place() -> None:
    """It is not in a library: between two lines of a script lies a training step."""
    first, second = (stack(("main", "/home/me/train.py", line)) for line in (11, 12))

    assert len(fold_stacks([ProcessStacks(0, "a", text=first), ProcessStacks(1, "a", text=second)]).groups) == 2


def test_threads_and_children_are_counted_by_kind() -> None:
    """Numbers in their names do not tell them apart."""
    loader = stack(("get", "/usr/lib/python3.11/queue.py", 1))
    children = [
        ProcessStacks(rank, "a", 10 + rank, parent=rank + 1, name="pt_data_worker", text=loader) for rank in (0, 0, 1)
    ]
    folded = fold_stacks([*(ProcessStacks(rank, "a", rank + 1, text=DUMPED) for rank in (0, 1)), *children])

    assert [(group.what, group.count, group.ranks) for group in folded.others] == [
        ("child pt_data_worker", 3, (0, 1)),
        ("thread", 2, (0, 1)),
    ]


def test_ranks_without_stacks_are_folded_by_reason() -> None:
    """Why, and what the kernel says of them."""
    folded = fold_stacks(
        [ProcessStacks(rank, "a", rank + 1, state="running", why="no py-spy") for rank in (0, 1, 2, 7)]
    )

    assert [(fold_ranks(those.ranks), those.why) for those in folded.unseen] == [("ranks 0-2,7", "no py-spy")]
    assert folded.summary == "ranks 0-2,7: running"


def test_a_thousand_ranks_fit_on_a_screen() -> None:
    """What a person sees of 1,024 ranks in four places, one node gone, is short; `whole` leaves nothing out."""
    seen = job(1024)
    deep = stack(*[(f"call{number}", "/home/me/model.py", number) for number in range(90)])
    seen[5] = replace(seen[5], text=deep)
    seen[100:108] = [ProcessStacks(rank, "gpu013", why="no answer") for rank in range(100, 108)]
    stacks = JobStacks("1234.0", 2, 0.0, tuple(seen), Path("/logs/1234.0/stacks/1"))
    lines = text(stacks).splitlines()

    assert len(lines) < 50
    assert lines[0].startswith("1234.0, attempt 2, 1,024 ranks at ")
    assert "rank 5 on gpu001 (1 of 1024)" in lines
    assert "    ... 74 more calls (--whole)" in lines
    assert "ranks 0-4,6-99,108-1022 on gpu[001-128] (1014 of 1024)" in lines
    assert [line for line in lines if mentions(line, "100-107 gpu013 8 1024")] != []
    assert "    call40 (/home/me/model.py:40)" in text(stacks, whole=True).splitlines()
    assert str(stacks) == text(stacks)
    assert not stacks.complete


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    """For programs; and for people there is a file for each rank, its children in it."""
    directory = JobDirectory(tmp_path, "1.0")
    seen = [
        *job(2),
        ProcessStacks(1, "gpu001", 9, parent=4001, name="nvidia-smi", state="running", why="it is no Python"),
    ]
    names = [stack_files.reserve_directory(directory, 1e9) for _ in range(3)]
    stack_files.write_ranks(directory, names[0], seen)
    stack_files.write_all(directory, names[0], 0, 1e9, seen)

    assert len(set(names)) == 3
    assert codec.read(AllStacks, (directory.stacks(names[0]) / "stacks.json").read_bytes()).processes == tuple(seen)
    assert mentions(directory.rank_stacks(names[0], "gpu001", 1).read_text(), "4001 running", "it is no Python")


def test_the_root_cause_of_a_hang_is_the_hang(tmp_path: Path) -> None:
    """No rank is blamed for having been ended because of it."""
    path = write(tmp_path / "1.0", Made(nodes=1, per_node=2, attempts=1, ending="failed"))
    [attempt] = history.read_history(path).attempts
    assert root_cause.find_root_cause(attempt) is not None
    cause = root_cause.find_root_cause(replace(attempt, hang=True, cause=f"{HANG}rank 1"))

    assert cause is not None
    assert (cause.groups, cause.said) == ((), f"{HANG}rank 1")
    assert failure_messages.failure_headline(cause) == cause.said


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """The error names the place."""
    (tmp_path / "1.0").write_text("in the way")
    with pytest.raises(LogDirError, match=r"1\.0"):
        stack_files.reserve_directory(JobDirectory(tmp_path, "1.0"), 0.0)


def test_the_mark_of_a_worker() -> None:
    """It says whose a process is, whatever the job is called."""
    for name in ("1234.0", "a b (deleted)", "x" * 400, "\u00e4\n"):
        owner = Owner(name, 3, 17)
        link = Owner.of_link(f"/memfd:{owner.file} (deleted)")

        assert link is not None
        assert link.same(owner)
        assert not link.same(Owner(name, 4, 17))
        assert len(owner.file.encode()) < 249
    assert Owner.of_link("/memfd:other (deleted)") is None


def test_where_the_file_for_answers_is() -> None:
    """Its number is high, and within what a process may have."""
    assert [first_descriptor(limit) for limit in (128, 1024, 1 << 20)] == [104, 1000, 1000]


def test_names_do_not_change_what_is_read(tmp_path: Path) -> None:
    """A worker's answer has the names of its threads, however odd; the rest is as faulthandler has it."""
    program = """
import os, signal, sys, threading, time
from pathlib import Path
from hpc_launch.node import reserved_signals
from hpc_launch.workers import stack_answers
stack_answers.install_stack_handlers({"HPC_LAUNCH_JOB_DIRECTORY": "/logs/1.0", "HPC_LAUNCH_ATTEMPT": "0", "RANK": "3"})
ready = threading.Event()
def helper():
    ready.set()
    time.sleep(60)
threading.Thread(target=helper, name="] (most\\nrecent: \\u00e4", daemon=True).start()
ready.wait()
for name in os.listdir("/proc/self/fd"):
    if os.path.islink(f"/proc/self/fd/{name}") and reserved_signals.Owner.of_link(os.readlink(f"/proc/self/fd/{name}")):
        file = int(name)
signal.raise_signal(reserved_signals.ASK)
sys.stdout.write(os.pread(file, 1 << 20, 0).decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    main, helper = parse_stacks(done.stdout)

    assert [frame.function for frame in main.frames] == ["<module>"]
    assert (helper.frames[-1].function, helper.name) == ("_bootstrap", "] (most recent: \\xe4")
    assert done.stdout.endswith("End of the stacks.\n")
