"""Another user has left files and links where a run is about to write: it passes by, reads none and follows none."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.hostile_support import ATTACKER, next_job
from tests.slurm.losses_support import run
from tests.slurm.steps_support import PREAMBLE

NODES = ("gpu001", "gpu002")
KINDS = {"fixed": ("--max-restarts=1",), "elastic": ("--nnodes=1:2", "--max-restarts=1")}

# Ranks that fail once, and end well in the second attempt.
FAILS_ONCE = PREAMBLE + 'say(total=2.0, size=os.environ["GROUP_WORLD_SIZE"])\nsys.exit(3 if attempt == 0 else 0)\n'


def given_away(*paths: Path) -> None:
    """Let files, directories and links be the attacker's."""
    for path in paths:
        os.chown(path, ATTACKER, ATTACKER, follow_symlinks=False)


def plant_directory(path: Path, _: Path) -> None:
    """A directory with the name of the job's, in which everybody may write, with records that lead astray."""
    path.mkdir()
    places = path / "rendezvous.json", path / "rendezvous-000000000000.json", path / "requeues.jsonl"
    for place in places:
        place.write_text(json.dumps({"run": f"{path.name}.0", "addresses": ["10.77.0.14"], "port": 29999}) + "\n")
    (path / "memberships").mkdir()
    (path / "memberships" / "0").write_text("taken")
    path.chmod(0o777)
    given_away(path, *places, path / "memberships", path / "memberships" / "0")


def plant_link(path: Path, precious: Path) -> None:
    """A link to a directory of the run's own user."""
    path.symlink_to(precious)
    given_away(path)


def plant_dead_link(path: Path, precious: Path) -> None:
    """A link to a directory of the run's own user that is not there yet."""
    path.symlink_to(precious / "new")
    given_away(path)


def plant_file(path: Path, _: Path) -> None:
    """A file."""
    path.write_text("evil")
    given_away(path)


def plant_pipe(path: Path, _: Path) -> None:
    """A pipe: whoever opens it waits."""
    os.mkfifo(path)
    given_away(path)


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "directory": plant_directory,
    "link": plant_link,
    "dead link": plant_dead_link,
    "file": plant_file,
    "pipe": plant_pipe,
}


@dataclass(frozen=True)
class Place:
    """Where runs write, and what is beside it.

    Attributes:
        logs: the log directory, in which everybody may write, as in /tmp.
        precious: a directory of the user's that no run has to do with.
    """

    logs: Path
    precious: Path

    def plant(self, names: Sequence[str], plants: Sequence[str]) -> None:
        """Leave things under these names, and a requeue mark for each."""
        for name, plant in zip(names, plants, strict=True):
            PLANTS[plant](self.logs / name, self.precious)
            mark = self.logs / f".requeued-{name.partition('.')[0]}-0"
            mark.touch()
            given_away(mark)

    @property
    def seen(self) -> list[tuple[str, int, int]]:
        """What is in directories that are not the run's: names, modes, and when files were changed."""
        theirs = [path for path in self.logs.iterdir() if path.lstat().st_uid == ATTACKER and not path.is_symlink()]
        found = []
        for folder in sorted([self.precious, *theirs]):
            for path in sorted([folder, *(folder.rglob("*") if folder.is_dir() else [])]):
                status = path.lstat()
                # Who looks whose its own files are in a directory makes one there, for a moment.
                changed = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
                found.append((str(path), status.st_mode, changed))
        return found

    def attempts(self) -> dict[str, list[str]]:
        """The attempts in each directory of the run's user."""
        mine = [path for path in self.logs.iterdir() if path.is_dir() and not path.is_symlink()]
        return {
            path.name: sorted(attempt.name for attempt in path.glob("attempt_*"))
            for path in mine
            if path.lstat().st_uid == os.geteuid()
        }


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        made = Place(folder / "logs", folder / "precious")
        made.logs.mkdir()
        made.logs.chmod(0o1777)
        (made.precious / "attempt_0").mkdir(parents=True)
        yield made


def run_beside(cluster: Cluster, folder: Path, place: Place, kind: str, *plants: str) -> tuple[int, str, str]:
    """Run where things were planted; returns the status, the name that the directory should have, and the console."""
    job_id = next_job(cluster)
    names = [f"{job_id}.0", *(f"{job_id}.0-{number}" for number in range(2, len(plants) + 2))]
    place.plant(names[:-1], plants)
    with run(cluster, folder, *KINDS[kind], f"--log-dir={place.logs}", nodes=2, worker=FAILS_ONCE) as job:
        return job.ended(), names[-1], job.so_far.console


@pytest.mark.parametrize(
    ("kind", "plants"),
    [
        *(pytest.param(kind, [*PLANTS], id=f"{kind}, all") for kind in KINDS),
        *(pytest.param(kind, [one], id=f"{kind}, {one}", marks=pytest.mark.soak) for kind in KINDS for one in PLANTS),
    ],
)
def test_a_run_passes_by_what_was_planted(
    cluster: Cluster, tmp_path: Path, place: Place, kind: str, plants: list[str]
) -> None:
    """It has the next name that is free, with its own two attempts."""
    status, name, console = run_beside(cluster, tmp_path, place, kind, *plants)

    assert (status, place.attempts()) == (0, {name: ["attempt_0", "attempt_1"]}), console


def test_nothing_planted_is_touched(cluster: Cluster, tmp_path: Path, place: Place) -> None:
    """Nothing is written into directories of others, nor where links lead."""
    job_id = next_job(cluster)
    place.plant([f"{job_id}.0", f"{job_id}.0-2", f"{job_id}.0-3"], ["directory", "link", "dead link"])
    before = place.seen
    with run(cluster, tmp_path, *KINDS["fixed"], f"--log-dir={place.logs}", nodes=2, worker=FAILS_ONCE) as job:
        job.ended()

    assert place.seen == before, job.describe()
