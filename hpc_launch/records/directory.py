"""The job directory: where every file of a run is.

    <log_dir>/latest -> <job>
    <log_dir>/<job>/latest -> attempt_<n>
    <log_dir>/<job>/job.json -> attempt_<n>/job.json        the plan of the last run, which began with attempt n
    <log_dir>/<job>/rendezvous-<program>.json               where the coordinator of a run is, while it runs
    <log_dir>/<job>/.secret-<place>                         a key for agents that share no other (0600)
    <log_dir>/<job>/claims/<place>-<n>                      the run that has the directory (`records.claims`)
    <log_dir>/<job>/requeues.jsonl                          when and why the job was requeued, a line each
    <log_dir>/<job>/end_time.json                           when the job really ends, as Slurm said last
    <log_dir>/<job>/progress/rank_<r>.json                  how far training is, as a worker says
    <log_dir>/<job>/progress/rank_<r>.jsonl                 what it said on the way, a line each
    <log_dir>/<job>/stacks/<when>/<host>/rank_<r>.txt       where a worker was when somebody asked, or it hung
    <log_dir>/<job>/nodes/<host>/events.jsonl               what the agents of that node saw, a line each
    <log_dir>/<job>/memberships/<number>-<id>               what half of the nodes take to go on
    <log_dir>/<job>/attempt_<n>/<host>/rank_<r>.out, .err   a worker's output
    <log_dir>/<job>/attempt_<n>/<host>/rank_<r>.error.json  a worker's exception, where it left one
    <log_dir>/<job>/attempt_<n>/<host>/rank_<r>.result.pkl  what a function returned, where one was called from Python
    <log_dir>/<job>/attempt_<n>/<host>/rank_<r>.raised.pkl  what it raised
    <log_dir>/<job>/attempt_<n>/checkpoint.pkl              the call as a checkpoint in that attempt has left it
    <log_dir>/<job>/attempt_<n>/<host>/times.jsonl          when the files with the output grew

Names are stable and say host and global rank. A job that Slurm starts again goes on with the next attempt number, so
that nothing is overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hpc_launch import codec, file_ownership
from hpc_launch.errors import LogDirError

_ATTEMPT = re.compile(r"attempt_(\d+)")

# Where agents that come late find the coordinator of a program's run, by the beginning of its digest.
WHEREABOUTS = "rendezvous-*.json"

# Files in which the last line of this process is torn.
_TORN: set[Path] = set()


@dataclass(frozen=True)
class RankFiles:
    """The files of one worker in one attempt."""

    out: Path
    err: Path
    error: Path

    @property
    def result(self) -> Path:
        """What a function returned, where one was called from Python."""
        return self._beside("result.pkl")

    @property
    def raised(self) -> Path:
        """What it raised."""
        return self._beside("raised.pkl")

    def _beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.name.removesuffix('.out')}.{ending}")


@dataclass(frozen=True)
class JobDirectory:
    """A job directory; every name in it comes from here. Making one touches nothing.

    Attributes:
        root: the directory with the directories of all jobs (`--log-dir`).
        job: the name of this job's.
    """

    root: Path
    job: str

    @property
    def path(self) -> Path:
        """This job's directory."""
        return self.root / self.job

    def attempt(self, number: int) -> Path:
        """The directory of one attempt."""
        return self.path / f"attempt_{number}"

    def node(self, attempt: int, host: str) -> Path:
        """Where the workers of one node write in one attempt."""
        return self.attempt(attempt) / _file_name(host)

    def rank(self, attempt: int, host: str, rank: int) -> RankFiles:
        """The files of one worker."""
        base = self.node(attempt, host)
        return RankFiles(base / f"rank_{rank}.out", base / f"rank_{rank}.err", base / f"rank_{rank}.error.json")

    def checkpoint(self, attempt: int) -> Path:
        """The call of a function, as it is to go on after an attempt."""
        return self.attempt(attempt) / "checkpoint.pkl"

    def times(self, attempt: int, host: str) -> Path:
        """When the files of one node's workers grew in one attempt."""
        return self.node(attempt, host) / "times.jsonl"

    def events(self, host: str) -> Path:
        """The events of one node."""
        return self.path / "nodes" / _file_name(host) / "events.jsonl"

    @property
    def claims(self) -> Path:
        """Which starts of which run have had this directory (`records.claims`)."""
        return self.path / "claims"

    def whereabouts(self, program: str) -> Path:
        """Where the coordinator of a program's run can be found; gone when the run has ended."""
        return self.path / WHEREABOUTS.replace("*", program[:12])

    def secret(self, place: str) -> Path:
        """The key that the first agent of a place leaves for the others, and for later runs of the place."""
        return self.path / f".secret-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

    @property
    def memberships(self) -> Path:
        """The tokens of memberships, in a run that may lose nodes; gone when it has ended."""
        return self.path / "memberships"

    def plan(self, attempt: int) -> Path:
        """The plan of the run that began with an attempt."""
        return self.attempt(attempt) / "job.json"

    @property
    def last_plan(self) -> Path:
        """The plan of the last run."""
        return self.path / "job.json"

    @property
    def end_time(self) -> Path:
        """When the job really ends; the launcher keeps it up to date."""
        return self.path / "end_time.json"

    def progress(self, rank: int) -> Path:
        """How far training is, as one worker says."""
        return self.path / "progress" / f"rank_{rank}.json"

    def curve(self, rank: int) -> Path:
        """What one worker has said on the way of how far training is (`records.progress_curve`)."""
        return self.path / "progress" / f"rank_{rank}.jsonl"

    def stacks(self, name: str) -> Path:
        """Where all processes were at one moment."""
        return self.path / "stacks" / name

    def rank_stacks(self, name: str, host: str, rank: int) -> Path:
        """Where one worker, and the processes below it, were then."""
        return self.stacks(name) / _file_name(host) / f"rank_{rank}.txt"

    @property
    def ledger(self) -> Path:
        """The job's requeues, one after another."""
        return self.path / "requeues.jsonl"

    def requeue_claim(self, job_id: str, restart_count: int) -> Path:
        """A file of the one, of all steps of the job, that has it requeued."""
        return self.root / f".requeued-{job_id}-{restart_count}"

    def attempts(self) -> list[int]:
        """The numbers of the attempts that there are, in order."""
        try:
            names = [entry.name for entry in self.path.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unusable(self.path, error) from error
        return sorted(int(match[1]) for name in names if (match := _ATTEMPT.fullmatch(name)))

    def next_attempt(self) -> int:
        """The first attempt number that no earlier start of this job has used."""
        return 1 + max(self.attempts(), default=-1)


def check_writable(root: Path) -> None:
    """Make the log directory and see that files can be made in it, before anything starts.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    check_log_directory(root)
    try:
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise unusable(root, error) from error


def check_log_directory(root: Path) -> None:
    """Make the log directory, and see that nobody can put another job directory in the place of the one in it.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    try:
        file_ownership.make_parents(root)
        file_ownership.check_parents(root)
    except OSError as error:
        raise unusable(root, error) from error


def make(path: Path, top: Path | None = None, *, private: bool = False) -> None:
    """Make a directory of the tree; another node may be making it at the same moment.

    Args:
        path: the directory.
        top: the job directory, where `path` is more than one level below it: all from there on has to be one's own.
        private: let nobody else into `top`.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    try:
        with file_ownership.open_folder(path, top, make=True, private=private):
            pass
    except OSError as error:
        raise unusable(path, error) from error


def claim(path: Path) -> bool:
    """Whether this process is the first of its user to make a file; so too where none can be made.

    What another user has put there is no claim.
    """
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return not file_ownership.is_own(path)
    except OSError:
        return True
    return True


def write_json(path: Path, value: Any, top: Path | None = None) -> None:
    """Write an object, a dataclass or plain values, whole or not at all: a reader never sees half of it."""
    write_text(path, codec.document(value), top)


def write_text(path: Path, text: str, top: Path | None = None) -> None:
    """Write a file whole or not at all: a reader never sees half of it."""
    write_whole(path, text.encode(), top)


def write_whole(path: Path, data: bytes, top: Path | None = None, *, mode: int = 0o666) -> None:
    """Write a file whole or not at all, in a directory of one's own.

    Args:
        path: the file.
        data: what is to be in it.
        top: as `make` has it.
        mode: its permissions, less those of the umask.

    Raises:
        LogDirError: naming the directory and the reason.
    """
    try:
        with file_ownership.open_folder(path.parent, top, make=True) as folder:
            put(folder, path.name, data, mode)
    except OSError as error:
        raise unusable(path.parent, error) from error


def put(folder: file_ownership.Folder, name: str, data: bytes, mode: int = 0o666) -> None:
    """Write a file of a directory whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    # Several threads and nodes may write the same at the same time.
    temporary = file_ownership.temporary_name(name)
    handle = folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        try:
            _write(handle, data)
        finally:
            os.close(handle)
        folder.rename(temporary, name)
    except OSError:
        with contextlib.suppress(OSError):
            folder.unlink(temporary)
        raise


def append(path: Path, lines: str, top: Path | None = None) -> int:
    """Append whole lines in one write, so that what others append to the same file does not come in between.

    Where there is room for a part only (a disk that fills up), the rest is tried; if there is none, the next line that
    this process appends begins a new one, so that it is not taken for the end of the torn one.

    Args:
        path: the file, of one's own.
        lines: the lines.
        top: as `make` has it.

    Returns:
        How many bytes were written.

    Raises:
        OSError: as open(2) and write(2) have it, and for a file of others.
    """
    data = lines.encode()
    with file_ownership.open_folder(path.parent, top) as folder:
        handle = folder.open(path.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        if path in _TORN:
            data = b"\n" + data
        _write(handle, data)
        _TORN.discard(path)
    except _TornError as error:
        _TORN.add(path)
        raise error.cause from None
    finally:
        os.close(handle)
    return len(data)


def open_output(path: Path, top: Path) -> BinaryIO:
    """Open a worker's file, to append to it.

    Args:
        path: the file, of one's own.
        top: as `make` has it.

    Raises:
        OSError: as open(2) has it, and for a file of others.
    """
    with file_ownership.open_folder(path.parent, top) as folder:
        handle = folder.open(path.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return os.fdopen(handle, "ab")


def point_latest(link: Path, target: str) -> None:
    """Let `link` point to `target`, whatever it pointed to before; a convenience, so that failing is no error."""
    temporary = link.with_name(file_ownership.temporary_name(link.name))
    with contextlib.suppress(OSError):
        temporary.symlink_to(target)
        temporary.replace(link)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)  # where a directory of that name was in the way


class _TornError(OSError):
    """A part was written, and then nothing more could be."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.cause = cause


def _write(handle: int, data: bytes) -> None:
    """Write all of it, in one write where there is room for it."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(handle, left) :]
        except OSError as error:
            raise _TornError(error) if len(left) < len(data) else error from None


def _file_name(host: str) -> str:
    """A host as one path component: an IPv6 address or a name from a host file may hold anything."""
    return host.replace("/", "_").lstrip(".") or "_"


def unusable(path: Path, error: OSError) -> LogDirError:
    """The error of a log directory in which something cannot be written."""
    return LogDirError(f"cannot write in {path}: {error.strerror or error}; name another place with --log-dir")
