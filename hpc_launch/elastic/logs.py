"""Where the output of the workers goes: files in the job directory, and the console."""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from hpc_launch.elastic.console import Follower, Source
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.settings import Console, Settings, Streams

_PREFIX = "[${host}:${rank}] "


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


def _console(settings: Settings) -> Console:
    """--console; with -r or -t those say what is shown, unless --console was given as well."""
    asked = settings.redirects is not None or settings.tee is not None
    return Console("all") if asked and not settings.given("console") else settings.console


class JobLogs(LogsSpecs):
    """torch's question "where does this worker write?", answered with the job directory.

    torch asks by `reify` at each attempt, giving the environments of the workers; their error files are written into
    these (torch/distributed/elastic/multiprocessing/api.py, DefaultLogsSpecs).
    """

    def __init__(self, settings: Settings, job: JobDirectory, host: str) -> None:
        super().__init__(str(job.path))
        self._settings = settings
        self._job = job
        self._host = host
        self._follower: Follower | None = None

    @property
    def root_log_dir(self) -> str:
        """The job directory."""
        return str(self._job.path)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the directory of this attempt and name the files."""
        destination = LogsDest()
        sources: list[Source] = []
        for local, environ in envs.items():
            attempt, rank = int(environ["HPC_LAUNCH_ATTEMPT"]), int(environ["RANK"])
            folder = self._job.node(attempt, self._host)
            directory.make(folder)
            files = self._job.rank(attempt, self._host, rank)
            chosen = outputs(self._settings, int(environ["LOCAL_RANK"]), rank, int(environ["WORLD_SIZE"]))
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
                    sources.append(Source(path, prefix, stream.value if shown else None, copy, needles))
        self._follower = Follower(sources)
        return destination

    def _prefix(self, environ: Mapping[str, str]) -> str:
        template = self._settings.log_line_prefix_template or os.environ.get("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE")
        return string.Template(template or _PREFIX).safe_substitute(
            host=self._host,
            rank=environ["RANK"],
            local_rank=environ["LOCAL_RANK"],
            role_name=environ["ROLE_NAME"],
        )

    def start_console(self) -> None:
        """Begin to show the output of the attempt that `reify` was asked about."""
        if self._follower is not None:
            self._follower.start()

    def stop_console(self) -> None:
        """Show the rest of it; the workers must have ended."""
        if self._follower is not None:
            self._follower.stop()
            self._follower = None


def _path(chosen: Outputs, stream: Streams, path: Path) -> str:
    """A stream's file; an empty path is the agent's own stream, as torch has it."""
    if chosen.filed & stream:
        return str(path)
    return "" if chosen.shown & stream else os.devnull
