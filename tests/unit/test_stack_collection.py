"""Stacks of a whole job: the nodes that can be asked are, and of the others it is said why not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpc_launch.errors import ContextError
from hpc_launch.inspection import stack_collection
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord, read_job
from tests.histories import Made, write
from tests.support import lines_mention, mentions

# Plays srun: it cannot start anything on gpu002, and the probes on the others see their workers in the same place.
SRUN = """#!{python}
import json, sys
from hpc_launch.hostlist import expand
from hpc_launch.probes import probe_protocol

[nodes] = [word.partition("=")[2] for word in sys.argv if word.startswith("--nodelist=")]
if "gpu002" in expand(nodes):
    sys.exit("srun: error: Task launch for StepId=7.1 failed on node gpu002: Communication connection failure")

def say(number, **record):
    for line in probe_protocol.encode_record(record).splitlines():
        print(f"{{number}}: {{line}}", flush=True)

for number, node in enumerate(expand(nodes)):
    say(number, hello=node)
order = json.loads(sys.stdin.readline())
text = 'Thread 0x1 [MainThread] (most recent call first):\\n  File "train.py", line 3 in main\\n'
for number, node in enumerate(expand(nodes)):
    seen = [dict(rank=rank, host=node, pid=pid, by="signal", text=text) for rank, pid in order["workers"][node]]
    say(number, order=order["order"], answer=seen)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    """A job of three nodes with two ranks each, which runs as far as its agents have written."""
    write(tmp_path / "7.0", Made(nodes=3, per_node=2, attempts=1, ending=""))
    return JobDirectory(tmp_path, "7.0")


def slurm(
    monkeypatch: pytest.MonkeyPatch, folder: Path, *, nodes: str = "gpu[001-003]", state: str = "RUNNING"
) -> None:
    """Have srun, and a controller that says this of the job."""
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN.format(python=sys.executable))
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))

    def ask(_job: str, _patience: float = 0.0) -> JobRecord | None:
        return read_job(f"JobId=7 JobName=x UserId=me(1) JobState={state} NodeList={nodes} ")

    monkeypatch.setattr(controller, "ask_job", ask)


def test_a_node_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, job: JobDirectory) -> None:
    """The others are asked without it, and its ranks have the reason; all is written down."""
    slurm(monkeypatch, job.root)
    found = stack_collection.collect_stacks(job)
    [group] = found.folded.groups
    [unseen] = found.folded.unseen

    assert (group.ranks, group.hosts) == ((0, 1, 4, 5), ("gpu001", "gpu003"))
    assert (unseen.ranks, unseen.hosts) == ((2, 3), ("gpu002",))
    assert unseen.why.endswith(": Communication connection failure")
    assert not found.complete
    assert found.path is not None
    assert len([*found.path.glob("*/rank_*.txt")]) == 6
    assert json.loads(json.dumps(found.as_dict()))["summary"].startswith(
        "ranks 0-1,4-5: main (train.py:3); ranks 2-3: "
    )


def test_a_node_that_is_not_the_job_s_any_more(monkeypatch: pytest.MonkeyPatch, job: JobDirectory) -> None:
    """It is not asked."""
    slurm(monkeypatch, job.root, nodes="gpu[001,003]")
    [unseen] = stack_collection.collect_stacks(job, write=False).folded.unseen

    assert (unseen.ranks, mentions(unseen.why, "Slurm")) == ((2, 3), True)
    assert not (job.path / "stacks").exists()


def test_a_job_that_slurm_has_ended(monkeypatch: pytest.MonkeyPatch, job: JobDirectory) -> None:
    """Its agents may have had no time to write that down."""
    slurm(monkeypatch, job.root, state="TIMEOUT")
    with pytest.raises(ContextError, match="job 7 is TIMEOUT"):
        stack_collection.collect_stacks(job)


def test_without_slurm_only_this_machine_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of ranks elsewhere it is said where to go; of those that should be here and are not, that they are not."""
    monkeypatch.setattr("socket.gethostname", lambda: "gpu002.example.org")
    path = write(tmp_path / "local-1", Made(nodes=2, per_node=1, attempts=1, ending=""))
    found = stack_collection.collect_stacks(path)

    assert [one.host for one in found.seen] == ["gpu001", "gpu002"]
    assert lines_mention([one.why for one in found.seen], "hpc-launch stacks", "process")


@pytest.mark.parametrize("made", [Made(attempts=1, ending="done"), Made(attempts=2, ending="failed")])
def test_a_job_that_has_ended(tmp_path: Path, made: Made) -> None:
    """There is nobody to be asked."""
    with pytest.raises(ContextError, match=r"attempt \d has ended"):
        stack_collection.collect_stacks(write(tmp_path / "7.0", made))


def test_a_directory_without_workers(tmp_path: Path) -> None:
    """What could not be read is said."""
    (tmp_path / "7.0" / "nodes" / "a").mkdir(parents=True)
    with pytest.raises(ContextError, match=r"nodes/a/events\.jsonl"):
        stack_collection.collect_stacks(tmp_path / "7.0")
