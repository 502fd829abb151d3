"""Which run has which job directory.

The first run of a place has the directory that its job and step name (`12.0`), the second one `12.0-2`, and so on. A
run claims its directory before its first attempt, by a file that only one process can make:

    <log_dir>/<job>/claims/<place>-<incarnation>     the run of that place and incarnation, as JSON

The incarnation is the number of times that Slurm has started the job again. Each incarnation claims the directories of
the ones before, so that every run goes on in its own; what matters is the order of the runs, and their programs only
where one is the same as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpc_launch import codec, file_ownership
from hpc_launch.codec import APART
from hpc_launch.errors import LogDirError
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory

# The version of the claim files. Fields that are added keep it, so that earlier programs can read on.
_SCHEMA = 1

_FILE = re.compile(r"(?P<place>[0-9a-f]{12})-(?P<incarnation>\d{1,9})")

# More than any place has runs; it only bounds the search.
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
class Holder:
    """The process that holds something, a claim for instance, as it is known for good.

    Attributes:
        host: its node.
        pid: its number there.
        started: when it began, as the kernel counts: with its number, it names it for good.
    """

    host: str
    pid: int
    started: str = ""


@dataclass(frozen=True)
class Claim:
    """One start of a run, as its claim file has it: with the fields of its holder, and a name that has the first two.

    Attributes:
        place: a digest of where it was.
        incarnation: how often its run had been started before.
        program: the digest of what it started; empty where that cannot be read.
        when: the time of the claim, in seconds since the epoch.
        holder: the process that has made it.
    """

    place: str = field(metadata=APART)
    incarnation: int = field(metadata=APART)
    program: str
    when: float = field(metadata={"name": "time"})
    holder: Holder = field(metadata=APART)


@dataclass(frozen=True)
class Claimant:
    """A run that looks for its directory.

    Attributes:
        place: a digest of where it is.
        program: the digest of what it starts.
        incarnation: how often Slurm has started its job again; None outside of Slurm, where a person starts it again by
            the name of its directory.
    """

    place: str
    program: str
    incarnation: int | None


Lives = Callable[[Holder], bool]


def claim_run(  # noqa: D417 - the last two are explained together
    root: Path,
    base: str,
    program: str,
    incarnation: int,
    *,
    place: str = "",
    holder: Holder | None = None,
    lives: Lives = lambda _: False,
) -> ClaimedRun:
    """Claim a job directory for a run: that of its earlier incarnation, or one that no run has had.

    Args:
        root: the log directory.
        base: the name of the directory in the ordinary case of one run.
        program: the digest of what the run starts.
        incarnation: how often Slurm has started the job again.
        place: where in Slurm the run is, the same for all incarnations. Empty outside of Slurm: there a run of the same
            name is the same run, unless the earlier one is still going on.
        holder: this process; with `lives`, which says whether such a process is still there, it tells that.

    Raises:
        LogDirError: when nothing can be written there.
    """
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    mine = Claimant(digest, program, incarnation if place else None)
    who = holder or Holder(os.uname().nodename, os.getpid())
    for name, number in _candidates(root, base, mine, lives):
        job = JobDirectory(root, name)
        if _claim(job, Claim(digest, number, program, round(time.time(), 3), who)):
            return ClaimedRun(name, job.next_attempt())
    raise LogDirError(f"no free directory for another run of {base} in {root}: remove old ones, or use --log-name")


def find_run(root: Path, base: str, program: str, incarnation: int, *, place: str = "") -> str:
    """The directory of a run, for an agent that has not heard the first node's word about it.

    Returns:
        The last that a run of the program has claimed, now or in an earlier incarnation; else `base`, unless another
        run has that now: then an empty text.
    """
    digest = hashlib.sha256(place.encode()).hexdigest()[:12]
    now: list[tuple[float, str]] = []
    earlier: list[tuple[float, str]] = []
    taken = set()
    for name, claims in _directories(root, base):
        own = [claim for claim in claims if claim.place == digest]
        if own and own[-1].incarnation == incarnation:
            taken.add(name)
        if own and own[-1].program == program:
            (now if name in taken else earlier).append((own[-1].when, name))
    if now or earlier:
        return max(now or earlier)[1]
    return "" if base in taken else base


def run_directory_name(base: str, ordinal: int) -> str:
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


def next_incarnation(mine: Claimant, claims: Sequence[Claim], lives: Lives, *, attempted: bool) -> int | None:
    """The incarnation in which a run can claim a directory; None where it cannot. Pure but for `lives`.

    Args:
        mine: the run.
        claims: the earlier starts of the directory's run.
        lives: says whether a process is still there.
        attempted: whether the directory has attempts.
    """
    earlier = [claim for claim in claims if claim.place == mine.place]
    if claims and not earlier:
        return None
    last = max((claim.incarnation for claim in earlier), default=-1)
    if mine.incarnation is None:
        return None if any(lives(claim.holder) for claim in earlier) else last + 1
    # Attempts without any claim are those of an earlier version: of this run if its job has been started again.
    if last >= mine.incarnation or (not claims and attempted and mine.incarnation == 0):
        return None
    return mine.incarnation


def _directories(root: Path, base: str) -> Iterator[tuple[str, tuple[Claim, ...]]]:
    """The directories that runs of a place have had, in their order, with their claims."""
    for ordinal in itertools.count(1):
        name = run_directory_name(base, ordinal)
        if not os.path.lexists(root / name):
            return
        if file_ownership.is_own_directory(root / name):
            yield name, claims_of(JobDirectory(root, name))


def _candidates(root: Path, base: str, mine: Claimant, lives: Lives) -> Iterator[tuple[str, int]]:
    """The directories to try, with the incarnation: the one of the same program, then by their order, then new ones."""
    usable = []
    for name, claims in _directories(root, base):
        number = next_incarnation(
            mine, claims, lives, attempted=not claims and bool(JobDirectory(root, name).attempts())
        )
        if number is not None:
            usable.append((not claims or claims[-1].program != mine.program, name, number))
    for _, name, number in sorted(usable, key=lambda item: item[0]):  # which keeps their order otherwise
        yield name, number
    for ordinal in range(1, _MOST_RUNS):
        if not os.path.lexists(root / run_directory_name(base, ordinal)):
            yield run_directory_name(base, ordinal), mine.incarnation or 0


def _claim(job: JobDirectory, claim: Claim) -> bool:
    """Whether this run is the one that has the directory from now on.

    Raises:
        LogDirError: where no file can be made.
    """
    facts = {"schema": _SCHEMA, **codec.plain(claim), **codec.plain(claim.holder)}
    data, existed = codec.line(facts).encode(), os.path.lexists(job.path)
    try:
        with file_ownership.open_folder(job.claims, job.path, make=True) as folder:
            return _make_once(folder, f"{claim.place}-{claim.incarnation}", data)
    except file_ownership.NotOwnError as error:
        if existed:
            return False  # made by another user since it was looked at
        raise directory.unusable(job.path, error) from error
    except OSError as error:
        raise directory.unusable(job.path, error) from error


def _is_own(path: Path) -> bool:
    """Whether there is a directory of this user."""
    try:
        with file_ownership.open_folder(path):
            return True
    except OSError:
        return False


def _make_once(folder: file_ownership.Folder, name: str, data: bytes) -> bool:
    """Whether this process is the one that made a file, which is there as a whole or not at all.

    Raises:
        OSError: where no file can be made.
    """
    here, temporary = folder.descriptor, file_ownership.temporary_name(name)
    try:
        _make(folder, temporary, data)
        try:
            os.link(temporary, name, src_dir_fd=here, dst_dir_fd=here)
        except FileExistsError:
            # An NFS server may have made the link and lost its answer: the number of links tells.
            return os.stat(temporary, dir_fd=here).st_nlink == 2  # noqa: PLR2004 - the temporary name and the other one
        except OSError:  # a file system without hard links
            return _make_alone(folder, name, data)
    finally:
        with contextlib.suppress(OSError):
            folder.unlink(temporary)
    return True


def _make_alone(folder: file_ownership.Folder, name: str, data: bytes) -> bool:
    try:
        _make(folder, name, data)
    except FileExistsError:
        return False
    return True


def _make(folder: file_ownership.Folder, name: str, data: bytes) -> None:
    handle = folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _read(path: Path, place: str, incarnation: int) -> Claim:
    """Read a claim file; what it does not say, or another version says otherwise, is left empty."""
    try:
        facts = codec.parse(file_ownership.read_own(path)) or {}
    except OSError:
        facts = {}
    holder = codec.salvage(Holder, facts)
    return codec.salvage(Claim, facts, place=place, incarnation=incarnation, holder=holder)
