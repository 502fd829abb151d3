"""The output of the workers: which file or console each stream goes to, attempt after attempt."""

from __future__ import annotations

import errno
import os
import socket
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from hpc_launch import slow_storage
from hpc_launch.agent.disk_monitor import DiskMonitor
from hpc_launch.agent.output_console import FollowedFile, OutputFollower
from hpc_launch.agent.traceback_folding import Folding, TracebackFilter
from hpc_launch.errors import LogDirError
from hpc_launch.node import terminal
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.output_times import OutputTimes
from hpc_launch.settings import ConsoleChoice, Settings, Streams

_PREFIX = "[${host}:${rank}] "

# The next attempt waits so long for a console that has not taken all of the last one's lines yet, and the end of the
# run for one that takes nothing at all.
_REST_SECONDS = 2.0
_STOPPED_SECONDS = 10.0


@dataclass(frozen=True)
class Outputs:
    """What becomes of the two streams of one worker.

    Attributes:
        filed: streams that go to files.
        shown: streams that the console shows.
    """

    filed: Streams
    shown: Streams


def outputs(settings: Settings, local_rank: int, rank: int, world_size: int) -> Outputs:
    """Decide about one worker's streams. Pure.

    With -r or -t the rules are torchrun's: streams that are redirected go to files only, teed ones to both, all others
    to the console only. Without them every stream goes to a file, and --console says whose the console shows.
    """
    if settings.redirects is None and settings.tee is None:
        filed = Streams.ALL
        shown = Streams.ALL
    else:
        teed = settings.tee.of(local_rank) if settings.tee else Streams.NONE
        filed = teed | (settings.redirects.of(local_rank) if settings.redirects else Streams.NONE)
        shown = teed | (Streams.ALL & ~filed)
    if settings.local_ranks_filter and local_rank not in settings.local_ranks_filter:
        shown = Streams.NONE
    if not _console(settings).shows(rank, world_size):
        shown = Streams.NONE
    return Outputs(filed, shown)


def _console(settings: Settings) -> ConsoleChoice:
    """--console; with -r or -t those say what is shown, unless --console was given as well."""
    asked = settings.redirects is not None or settings.tee is not None
    return ConsoleChoice("all") if asked and not settings.given("console") else settings.console


class JobLogs(LogsSpecs):
    """torch's question "where does this worker write?", answered with the job directory.

    torch asks by `reify` at each attempt, giving the environments of the workers; their error files are written into
    these (torch/distributed/elastic/multiprocessing/api.py, DefaultLogsSpecs).

    Attributes:
        follower: shows the output of the attempt.
    """

    def __init__(self, settings: Settings, job: JobDirectory, host: str, before: JobLogs | None = None) -> None:
        """Prepare for an attempt.

        Args:
            settings: what is filed and what is shown.
            job: the job directory.
            host: this node.
            before: those of the attempt before; None for the first.
        """
        super().__init__(str(job.path))
        self._settings = settings
        self._job = job
        self._host = host
        self._earlier = before.follower if before is not None else None
        # A directory that was removed is made again for this attempt.
        problem = before.problem if before is not None else None
        self._full = problem is not None and problem.errno != errno.ENOENT
        self.follower: OutputFollower = OutputFollower([], self._earlier)
        self._disk_monitor: DiskMonitor | None = None

    @property
    def root_log_dir(self) -> str:
        """The job directory."""
        return str(self._job.path)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the directory of this attempt and name the files."""
        destination = LogsDest()
        sources: list[FollowedFile] = []
        filed: dict[str, Path] = {}
        attempt = int(next(iter(envs.values()))["HPC_LAUNCH_ATTEMPT"])
        folder = self._job.node(attempt, self._host)
        self._make(folder)
        # With -r or -t the console is torchrun's.
        folding, folds = Folding(), self._settings.redirects is None and self._settings.tee is None
        for local, environ in envs.items():
            rank = int(environ["RANK"])
            files = self._job.rank(attempt, self._host, rank)
            chosen = outputs(self._settings, int(environ["LOCAL_RANK"]), rank, int(environ["WORLD_SIZE"]))
            if self._full:  # the console is all that is left; a worker that cannot write may fail for it
                chosen = Outputs(Streams.NONE, chosen.shown)
            destination.stdouts[local] = _path(chosen, Streams.OUT, files.out)
            destination.stderrs[local] = _path(chosen, Streams.ERR, files.err)
            destination.error_files[local] = environ["TORCHELASTIC_ERROR_FILE"] = str(files.error)
            prefix = self._prefix(environ)
            filters = self._settings.duplicate_stdout_filters, self._settings.duplicate_stderr_filters
            for stream, path, needles, name in (
                (Streams.OUT, files.out, filters[0], "filtered_stdout.log"),
                (Streams.ERR, files.err, filters[1], "filtered_stderr.log"),
            ):
                shown = bool(chosen.shown & stream)
                if chosen.filed & stream and (shown or needles):
                    copy = folder / name if needles else None
                    folded = TracebackFilter(folding, rank) if shown and folds and stream is Streams.ERR else None
                    asked = terminal.has_input if shown and rank == 0 and terminal.has_input() else None
                    descriptor = stream.value if shown else None
                    sources.append(FollowedFile(path, prefix, descriptor, copy, needles, folded, asked))
                if chosen.filed & stream:
                    filed[f"{rank}.{path.suffix[1:]}"] = path
        if filed:
            self._disk_monitor = DiskMonitor(
                OutputTimes(self._job.times(attempt, self._host), filed, self._job.path), folder
            )
        self.follower = OutputFollower(sources, self._earlier, folding)
        return destination

    def _make(self, folder: Path) -> None:
        """Make a directory; one that cannot be made any more ends no run that has begun."""
        try:
            slow_storage.wait_for(lambda: directory.make(folder, self._job.path), f"the log directory {self._job.root}")
        except LogDirError:
            if self._earlier is None:
                raise

    def _prefix(self, environ: Mapping[str, str]) -> str:
        template = self._settings.log_line_prefix_template or os.environ.get("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE")
        return string.Template(template or _PREFIX).safe_substitute(
            host=self._host,
            hostname=socket.gethostname(),  # torch 2.14 has it
            rank=environ["RANK"],
            local_rank=environ["LOCAL_RANK"],
            role_name=environ["ROLE_NAME"],
        )

    @property
    def problem(self) -> OSError | None:
        """Why nothing can be written; None as long as it can."""
        return self._disk_monitor.problem if self._disk_monitor is not None else None

    def start(self) -> None:
        """The workers of the attempt that `reify` was asked about have been started: begin to look at their files."""
        if self._disk_monitor is not None:
            self._disk_monitor.start()
        self.follower.start()

    def finish(self) -> None:
        """They have ended: show the rest of what they have written, but do not wait for a slow console."""
        if self._disk_monitor is not None:
            self._disk_monitor.stop()
        self.follower.finish(_REST_SECONDS)

    def close(self, hurry: Callable[[], bool]) -> None:
        """Show all that is left, unless the console takes nothing.

        Args:
            hurry: says that there is no more time for it.
        """
        self.follower.stop(_STOPPED_SECONDS, hurry)


class Output:
    """The output of all attempts of a run."""

    def __init__(self, settings: Settings, host: str, foreign: LogsSpecs | None) -> None:
        """Prepare for a run.

        Args:
            settings: what is filed and what is shown.
            host: this node.
            foreign: where output goes, if somebody else decides (--logs-specs).
        """
        self._settings = settings
        self._host = host
        self._foreign = foreign
        self._logs: JobLogs | None = None

    def of_next_attempt(self, job: JobDirectory) -> LogsSpecs:
        """What torch is to ask where the workers of the next attempt write."""
        if self._foreign is not None:
            return self._foreign
        self._logs = JobLogs(self._settings, job, self._host, self._logs)
        return self._logs

    @property
    def problem(self) -> OSError | None:
        """Why nothing can be written any more; None as long as it can, or somebody else decides where."""
        return self._logs.problem if self._logs is not None else None

    def start(self) -> None:
        """The workers of the attempt have been started."""
        if self._logs is not None:
            self._logs.start()

    def finish(self) -> None:
        """They have ended."""
        if self._logs is not None:
            self._logs.finish()

    def close(self, hurry: Callable[[], bool]) -> None:
        """The run has ended: show the rest, unless the console takes nothing, or `hurry` says that there is no time."""
        if self._logs is not None:
            self._logs.close(hurry)


def _path(chosen: Outputs, stream: Streams, path: Path) -> str:
    """A stream's file; an empty path is the agent's own stream, as torch has it."""
    if chosen.filed & stream:
        return str(path)
    return "" if chosen.shown & stream else os.devnull
