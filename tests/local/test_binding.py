"""The CPUs that workers really have: their own, whatever starts them, and so all that they start."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.local.launching import Environ, Finished, launch, one_task_step, probe
from tests.support import mentions

CPUS = sorted(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")

# What a worker says of itself, of a process and a thread that it starts, and of the threads that it has already.
LOOK = """
import subprocess, threading

found = {}
def look(name, pid=0):
    found[name] = sorted(os.sched_getaffinity(pid))
look("self")
for number, task in enumerate(os.listdir("/proc/self/task")):
    look(f"thread {number}", int(task))
thread = threading.Thread(target=look, args=["started thread"])
thread.start()
thread.join()
code = "import os; print(*sorted(os.sched_getaffinity(0)))"
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
found["child"] = [int(cpu) for cpu in child.stdout.split()]
where = _folder.parent / f"seen-{os.environ['HPC_LAUNCH_ATTEMPT']}-{os.environ['RANK']}.json"
where.write_text(json.dumps(found))
"""

# The threads of OpenMP stay within the CPUs of their process.
OPENMP = """
import torch
torch.ones(1 << 20).sum()
for number, task in enumerate(os.listdir("/proc/self/task")):
    look(f"OpenMP {number}", int(task))
assert set(sum(found.values(), [])) <= set(found["self"]), found
"""


# Rank 1 fails in the first attempt, when rank 0 has said what it has: it is ended then.
FAILS_ONCE = """
if where.name == "seen-0-1.json":
    other = where.with_name("seen-0-0.json")
    while not (other.exists() and other.read_text()):
        threading.Event().wait(0.01)
    sys.exit(1)
"""


def seen(folder: Path, attempt: int = 0) -> list[list[int]]:
    """Return the CPUs that each rank of an attempt has, after seeing that all that is in it has the same."""
    found = []
    for path in sorted(folder.glob(f"seen-{attempt}-*.json")):
        places = json.loads(path.read_text())
        assert list(places.values()) == [places["self"]] * len(places), places
        found.append(places["self"])
    return found


def run(folder: Path, *words: str, body: str = "", env: Environ | None = None) -> Finished:
    done = launch(folder, *words, probe(folder, LOOK + body), env=env)
    assert done.status == 0, done.err
    return done


def events(folder: Path, name: str) -> list[dict[str, object]]:
    """Return what was written down under a name."""
    lines = [
        line for path in folder.glob("logs/local-*/nodes/*/events.jsonl") for line in path.read_text().splitlines()
    ]
    return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_two_ranks_get_cpus_of_their_own(tmp_path: Path, start: str) -> None:
    """Each rank has CPUs of its own, and so has what it starts; it is said, and written down."""
    done = run(tmp_path, "-v", "--nproc-per-node", "2", "--start", start)

    one, other = seen(tmp_path)
    assert sorted([*one, *other]) == CPUS
    assert abs(len(one) - len(other)) <= 2
    assert done.seen("OMP_NUM_THREADS") == [(str(min(len(one), len(other))),)] * 2
    assert mentions(done.err, "hpc-launch --cpu-bind")
    (event,) = events(tmp_path, "binding")
    shares = event["shares"]
    assert isinstance(shares, Sequence)
    assert [share["local_rank"] for share in shares] == [0, 1]


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_a_restart_keeps_them(tmp_path: Path, start: str) -> None:
    """Workers that are started again have the CPUs that those before had."""
    run(tmp_path, "--nproc-per-node", "2", "--start", start, "--max-restarts", "1", body=FAILS_ONCE)

    assert len(seen(tmp_path, 1)) == 2
    assert seen(tmp_path, 1)[1] == seen(tmp_path, 0)[1]
    assert len(events(tmp_path, "binding")) == 1


def test_more_ranks_than_cpus_are_left_alone(tmp_path: Path) -> None:
    """Where there are fewer CPUs than ranks, all ranks have all of them, and it is said."""
    ranks = len(CPUS) + 1

    done = run(tmp_path, "--nproc-per-node", str(ranks))

    assert seen(tmp_path) == [CPUS] * ranks
    assert [line for line in done.err.splitlines() if mentions(line, "note", ranks, len(CPUS))] != []
    assert "--cpu-bind" not in done.err
    assert events(tmp_path, "binding") == []


@pytest.mark.parametrize("start", ["warm", "exec"])
def test_none_leaves_all_cpus(tmp_path: Path, start: str) -> None:
    """--cpu-bind none: as if there were no binding."""
    run(tmp_path, "--nproc-per-node", "2", "--cpu-bind", "none", "--start", start)

    assert seen(tmp_path) == [CPUS] * 2


@pytest.mark.parametrize("words", [["--start", "warm"], ["--start", "exec"], ["--run-path", "--start", "exec"]])
def test_a_map_is_what_ranks_get(tmp_path: Path, words: Sequence[str]) -> None:
    """--cpu-bind map: each rank has what is listed for it, threads that libraries have started included."""
    run(tmp_path, "--nproc-per-node", "2", "--cpu-bind", f"map:{CPUS[1]}/{CPUS[0]},{CPUS[1]}", *words)

    assert seen(tmp_path) == [[CPUS[1]], CPUS[:2]]


def test_programs_are_bound_too(tmp_path: Path) -> None:
    """A program that is no Python script gets its CPUs as well."""
    program = tmp_path / "look.sh"
    program.write_text("#!/bin/sh\ntaskset -cp $$ > seen-$RANK\n")
    program.chmod(0o755)

    done = launch(
        tmp_path, "--nproc-per-node", "2", "--cpu-bind", f"map:{CPUS[1]}/{CPUS[0]}", "--no-python", "./look.sh"
    )

    assert done.status == 0, done.err
    said = [(tmp_path / f"seen-{rank}").read_text().split()[-1] for rank in (0, 1)]
    assert said == [str(CPUS[1]), str(CPUS[0])]


def test_an_impossible_map_starts_nothing(tmp_path: Path) -> None:
    """A CPU that is not ours is one line, before anything starts."""
    done = launch(tmp_path, "--nproc-per-node", "2", "--cpu-bind", "map:0/4711", probe(tmp_path))

    assert done.records == []
    assert mentions(done.err, "hpc-launch: --cpu-bind map 4711 1")
    assert done.err.count("\n") == 1


def test_openmp_keeps_to_them(tmp_path: Path) -> None:
    """OpenMP that binds its threads does it within the CPUs of the rank: workers are not forked then."""
    environ = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "OMP_NUM_THREADS": "2"}

    done = launch(tmp_path, "--nproc-per-node", "2", probe(tmp_path, LOOK + OPENMP), env=environ)

    assert done.status == 0, done.err
    assert [line for line in done.err.splitlines() if mentions(line, "note exec OMP_PROC_BIND")] != []


def test_in_a_step_of_one_task_too(tmp_path: Path) -> None:
    """One task on a node divides its CPUs among its ranks."""
    run(tmp_path, "--nproc-per-node", "2", env=one_task_step())

    one, other = seen(tmp_path)
    assert sorted([*one, *other]) == CPUS
