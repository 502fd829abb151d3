"""Look at a job: read what its directory says now, and put it together with what else is known."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from hpc_launch.api.job_view import (
    JobView,
    ViewData,
    ViewEvidence,
    ViewSubject,
    chosen,
    compose,
    failures,
    last_root_cause,
)
from hpc_launch.records import history, progress_curve
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import History, Worker
from hpc_launch.records.output_lines import last_lines

# So many lines of output are shown.
_LINES = 6

# What terminals are told by: colours, cursor movements, titles.
_CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)|[\x00-\x08\x0b-\x1f\x7f]")


def read_job_view(subject: ViewSubject, evidence: ViewEvidence, directory: Path | None, now: float) -> JobView:
    """See how a job is doing. Nothing in its directory makes this fail.

    Args:
        subject: the job.
        evidence: what is known of it beside its directory.
        directory: its job directory, which need not be there; None where it is not known.
        now: seconds since the epoch.
    """
    return compose(subject, evidence, _read(directory), now)


def _read(directory: Path | None) -> ViewData:
    if directory is None or not directory.is_dir():
        return ViewData(History(Path()))
    found = history.read_history(directory)
    cause = last_root_cause(found)
    job = JobDirectory(directory.parent, directory.name)
    curves = {rank: progress_curve.read_curve(job, rank) for rank in chosen(found.marks, failures(cause))}
    workers = found.last_attempt.workers if found.last_attempt is not None else ()
    if not workers:
        return ViewData(found, curves)
    # The worker that matters: the one that failed first, else rank 0.
    source = (cause.first if cause is not None else None) or workers[0]
    return ViewData(found, curves, source.rank, _last_lines(source))


def _last_lines(worker: Worker) -> tuple[str, ...]:
    files = [worker.files.err, worker.files.out]
    if not worker.failed:
        files.sort(key=_changed, reverse=True)
    found = next((lines for path in files if (lines := last_lines(path, _LINES))), [])
    return tuple(_CONTROL.sub("", line).rstrip() for line in found)


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
