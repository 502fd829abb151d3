"""What is known of why a worker ended, from the files that it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpc_launch import codec
from hpc_launch.agent import failure_evidence
from hpc_launch.agent.failure_evidence import KernelBaseline
from hpc_launch.node import oom_kills
from hpc_launch.node.kernel_log import KernelLog
from hpc_launch.node.oom_kills import OomKillCounts
from hpc_launch.records.directory import RankFiles
from hpc_launch.records.history_model import Failure, RaisedException
from tests.support import mentions

BEFORE = KernelBaseline(OomKillCounts(2, 5))
REPORT = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\nValueError: loss is nan\n'


@pytest.fixture
def files(tmp_path: Path) -> RankFiles:
    return RankFiles(tmp_path / "rank_3.out", tmp_path / "rank_3.err", tmp_path / "rank_3.error.json")


@pytest.fixture(autouse=True)
def _kills(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is killed for memory, unless a test says so."""
    kill(monkeypatch, 2, 5)


def kill(monkeypatch: pytest.MonkeyPatch, group: int, node: int) -> None:
    """Let the counters have gone up."""
    monkeypatch.setattr(oom_kills, "count_oom_kills", lambda: OomKillCounts(group, node))
    monkeypatch.setattr(oom_kills, "limit", lambda: 3 << 29)


def gathered(files: RankFiles, exitcode: int, before: KernelBaseline = BEFORE) -> dict[str, Any]:
    """Look at what there is, as an event has it; see that a reader of the event understands it."""
    found = failure_evidence.gather_evidence(files, 7, exitcode, before, ended=100.0)
    written: dict[str, Any] = json.loads(json.dumps(codec.sparse(found)))
    assert codec.salvage(Failure, written) == found
    return written


def test_nothing_is_known_where_nothing_was_left(files: RankFiles) -> None:
    """A worker that wrote nothing has no failure to be shown."""
    assert gathered(files, 7) == {}


def test_the_exception_that_was_left(files: RankFiles) -> None:
    """The file of a worker says more than what it wrote, and when it was."""
    extra = {"py_callstack": REPORT, "timestamp": "99", "time": 98.5, "type": "my.Error", "where": "a.py:1"}
    files.error.write_text(json.dumps({"message": {"message": "Error: two\nlines", "extraInfo": extra}}))
    files.err.write_text(REPORT)
    found = gathered(files, 1)

    assert found["exception"] == {
        "type": "my.Error",
        "message": "two",
        "where": "a.py:1",
        "source": "hook",
        "time": 98.5,
    }
    assert (found["lines"][-1], found["log"]) == ("ValueError: loss is nan", str(files.err))


@pytest.mark.parametrize(("ended", "time"), [(99.4, 99.4), (120.0, 100.0)])
def test_the_file_of_torchs_record(files: RankFiles, ended: float, time: float) -> None:
    """torch's own file has whole seconds, and its type only in the report."""
    extra = {"py_callstack": REPORT, "timestamp": "99"}
    files.error.write_text(json.dumps({"message": {"message": "ValueError: loss is nan", "extraInfo": extra}}))
    found = failure_evidence.gather_evidence(files, 7, 1, BEFORE, ended=ended)

    assert found.exception == RaisedException("ValueError", "loss is nan", "train.py:3", "hook", time)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"message": 3}', '{"message": {"message": ""}}', "\0"])
def test_a_file_that_says_nothing(files: RankFiles, text: str) -> None:
    """Then the output is looked at."""
    files.error.write_text(text)
    files.err.write_text(REPORT)

    assert gathered(files, 1)["exception"]["source"] == "stderr"


@pytest.mark.parametrize(("exitcode", "known"), [(1, True), (7, False), (-11, False)])
def test_a_report_in_the_output_counts_for_what_ends_so(files: RankFiles, exitcode: int, known: bool) -> None:
    """Python ends with status 1 after an exception; before another end it may have been caught."""
    files.err.write_text(REPORT)

    assert known == ("exception" in gathered(files, exitcode))


def test_the_last_lines_are_few_and_short(files: RankFiles) -> None:
    """However much a worker has written, its event stays small; stdout stands in for a stderr without words."""
    files.err.write_text("\n\n")
    files.out.write_bytes(b"\xff" * 100_000 + b"\n" + b"\n".join(b"%d" % n + b"x" * 10_000 for n in range(30)))
    found = gathered(files, 7)

    assert len(json.dumps(found)) < 1 << 14
    assert found["lines"][-1].startswith("29x")
    assert found["log"] == str(files.out)


def test_memory(files: RankFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was killed was killed for memory if the counters say so; so was the child of one that says so."""
    kill(monkeypatch, 3, 6)
    assert mentions(gathered(files, -9)["oom"], "1.5 GiB --mem")
    assert "oom" not in gathered(files, 1)
    kill(monkeypatch, 2, 6)
    files.err.write_text("RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. \n")

    of_node = gathered(files, 1)["oom"]
    assert (mentions(of_node, "node memory"), mentions(of_node, "--mem")) == (True, False)


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "gpu01:123:123 [0] NCCL WARN Cuda failure 'unspecified launch failure'",
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
        "RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
        "RuntimeError: HIP error: out of memory",
    ],
)
def test_lines_about_the_device(files: RankFiles, line: str) -> None:
    """They are kept once, also where much was written after them."""
    files.err.write_text("\n".join([line, line, *map(str, range(100))]))

    assert gathered(files, 1)["gpu"] == [line]


def test_of_many_lines_the_one_that_tells_most_is_kept(files: RankFiles) -> None:
    """The driver speaks after the libraries do, and of a device that is broken."""
    files.err.write_text("\n".join(f"CUDA error: number {number}" for number in range(9)))
    log = KernelLog(files.err)
    log._said += [
        "NVRM: Xid (PCI:0000:3b:00): 45, pid=7",
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
    ]
    found = gathered(files, -6, KernelBaseline(BEFORE.kills, log))["gpu"]

    assert (len(found), found[0]) == (5, log._said[-1])


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", "gpu", True),
        ("NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.", "gpu", True),
        ("NVRM: Xid (PCI:0000:3b:00): 13, pid=7, name=python", "gpu", True),
        ("NVRM: Xid (PCI:0000:3b:00): 13, pid='7', name=python", "gpu", True),
        ("NVRM: Xid (PCI:0000:3b:00): 13, pid=78, name=python", "gpu", False),
        ("amdgpu 0000:c3:00.0: amdgpu: GPU reset begin!", "gpu", True),
        ("EDAC MC0: 1 UE memory read error on DIMM 0", "gpu", True),
        ("eth0: link is up", "gpu", False),
        ("Memory cgroup out of memory: Killed process 7 (python) total-vm:1kB", "--mem", True),
        ("Out of memory: Killed process 7 (python) total-vm:1kB", "node", True),
        ("Out of memory: Killed process 7 (python) total-vm:1kB", "--mem", False),
        ("Out of memory: Killed process 71 (python) total-vm:1kB", "memory", False),
    ],
)
def test_what_the_kernel_has_said(files: RankFiles, line: str, field: str, expected: bool) -> None:
    """Its words about the worker, or about a device, are those of the worker's failure."""
    log = KernelLog(files.err)
    log._said.append(line)
    found = gathered(files, -9, KernelBaseline(BEFORE.kills, log))

    assert expected == (field in found or field in found.get("oom", ""))
