"""Which run has which job directory.

The first run of a place has the directory that everybody expects (`12.0`), the second one `12.0-2`, and so on. A run
claims its directory before its first attempt, by a file that only one process can make:

    <log_dir>/<job>/claims/<place>-<incarnation>     the run of that place and incarnation, as JSON

The incarnation is the number of times that Slurm has started the job again. Each incarnation claims the directories of
the ones before, so that every run goes on in its own; what matters is the order of the runs, and their programs only
where one is the same as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_launch import owners
from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory

# The version of the claim files. Fields that are added keep it, so that earlier programs can read on.
_SCHEMA = 1

_FILE = re.compile(r"(?P<place>[0-9a-f]{12})-(?P<incarnation>\d{1,9})")

# No one starts so many runs in one place; it only bounds the search.
_MOST_RUNS = 100_000


@dataclass(frozen=True)
class ClaimedRun:
    """A directory that a run has for itself.

    Attributes:
        job: the name of the directory.
        first_attempt: the number of the run's first attempt in it.
    """

    job: str
    first_attempt: int


@dataclass(frozen=True)
class Claim:
    """One start of a run, as its claim file has it.

    Attributes:
        place: a digest of where it was.
        incarnation: how often its job had been started again.
        program: the digest of what it started; empty where that cannot be read.
        when: the time of the claim, in seconds since the epoch.
    """

    place: str
    incarnation: int
    program: str
    when: float


@dataclass(frozen=True)
class Claimant:
    """A run that looks for its directory.

    Attributes:
        place: a digest of where it is, without the incarnation.
        incarnation: how often its job has been started again.
        program: the digest of what it starts.
        named: the user gave the name of the directory, which is the run's in other jobs as well.
    """

    place: str
    incarnation: int
    program: str
    named: bool

    @property
    def file(self) -> str:
        """The name of the claim file."""
        return f"{self.place}-{self.incarnation}"


def claim_run(
    root: Path,
    base: str,
    program: str,
    incarnation: int,
    *,
    place: str = "",
    named: bool = False,
    private: bool = False,
) -> ClaimedRun:
    """Claim a job directory for a run: that of its earlier incarnation, or one that no run has had.

    Args:
        root: the log directory.
        base: the name of the directory in the ordinary case of one run.
        program: the digest of what the run starts.
        incarnation: how often Slurm has started the job again.
        place: where the run is, without the incarnation; runs of other places have other directories. Empty where
            nothing is started again (outside of Slurm): then each process is a place of its own.
        named: the user gave the name: then runs of other places (the next job of a chain) go on in that directory.
        private: let nobody else into the directory.

    Raises:
        LogDirError: when nothing can be written there.
    """
    where = place or f"{os.uname().nodename}/{os.getpid()}/{time.time_ns()}"
    mine = Claimant(hashlib.sha256(where.encode()).hexdigest()[:12], incarnation, program, named)
    directory.check_parents(root)
    for name in _candidates(root, base, mine):
        job = JobDirectory(root, name)
        if _claim(job, mine, private=private):
            return ClaimedRun(name, job.next_attempt())
    raise LogDirError(f"no free directory for another run of {base} in {root}: remove old ones, or use --log-name")


def name_of(base: str, ordinal: int) -> str:
    """The name of the directory of a place's n-th run, from 1."""
    return base if ordinal == 1 else f"{base}-{ordinal}"


def claims_of(job: JobDirectory) -> tuple[Claim, ...]:
    """The starts of a run, in their order."""
    try:
        names = [path.name for path in job.claims.iterdir()]
    except OSError:
        return ()
    matches = [match for name in names if (match := _FILE.fullmatch(name))]
    found = [_read(job.claims / match[0], match["place"], int(match["incarnation"])) for match in matches]
    return tuple(sorted(found, key=lambda claim: (claim.when, claim.incarnation)))


def may_claim(mine: Claimant, claims: Sequence[Claim], *, attempted: bool) -> bool:
    """Whether a directory can be this run's. Pure.

    Args:
        mine: the run.
        claims: the earlier starts of the directory's run.
        attempted: whether the directory has attempts.
    """
    of_this_place = [claim for claim in claims if claim.place == mine.place]
    if any(claim.incarnation >= mine.incarnation for claim in of_this_place):
        return False
    if mine.named or of_this_place:
        return True
    # Attempts without any claim are those of an earlier version: of this run if its job has been started again.
    return not claims and (mine.incarnation > 0 or not attempted)


def _candidates(root: Path, base: str, mine: Claimant) -> Iterator[str]:
    """The directories to try, the likeliest first: the one whose program is the same, then by their order."""
    existing = 1
    usable = []
    for ordinal in range(1, _MOST_RUNS):
        name = name_of(base, ordinal)
        existing = ordinal
        if not os.path.lexists(root / name):
            break
        if not owners.is_own_directory(root / name):
            continue
        job = JobDirectory(root, name)
        claims = claims_of(job)
        if may_claim(mine, claims, attempted=not claims and bool(job.attempts())):
            usable.append((bool(claims) and claims[-1].program == mine.program, name))
    yield from (name for same, name in usable if same)
    yield from (name for same, name in usable if not same)
    yield from (name_of(base, ordinal) for ordinal in range(existing, _MOST_RUNS))


def _claim(job: JobDirectory, mine: Claimant, *, private: bool) -> bool:
    """Whether this run is the one that has the directory from now on."""
    try:
        directory.make(job.claims, job.path, private=private)
    except LogDirError:
        if os.path.lexists(job.path) and not owners.is_own_directory(job.path):
            return False  # made by another user in the meantime
        raise
    facts = {"schema": _SCHEMA, "program": mine.program, "host": os.uname().nodename, "pid": os.getpid()}
    return _make_once(job.claims / mine.file, json.dumps({**facts, "time": round(time.time(), 3)}) + "\n")


def _make_once(path: Path, text: str) -> bool:
    """Whether this process is the one that made a file, which is there as a whole or not at all.

    Raises:
        LogDirError: where no file can be made.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            # An NFS server may have made the link and lost its answer: the number of links tells.
            return temporary.stat().st_nlink == 2  # noqa: PLR2004 - the name that was there, and the new one
        except OSError:  # a file system without hard links
            return _make_alone(path, text)
    except OSError as error:
        raise directory.unusable(path.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def _make_alone(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _read(path: Path, place: str, incarnation: int) -> Claim:
    try:
        found = json.loads(path.read_text())
        program, when = str(found.get("program", "")), float(found.get("time", 0.0))
    except (OSError, ValueError, AttributeError, TypeError):
        program, when = "", 0.0
    return Claim(place, incarnation, program, when)
