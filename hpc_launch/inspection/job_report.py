"""The report of a job, from its directory to a page."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path

from hpc_launch.file_ownership import temporary_name
from hpc_launch.inspection import report_content, report_html, report_markdown, root_cause_view, worker_exits
from hpc_launch.inspection.report_content import Report
from hpc_launch.records import history
from hpc_launch.records.regular_files import entries


def report_on_job(path: Path, *, now: float | None = None, zone: tzinfo | None = None) -> JobReport:
    """Report on a job.

    Args:
        path: the job directory.
        now: seconds since the epoch; None for now.
        zone: what local time is; None for this machine's.
    """
    told = history.read_history(path)
    sizes = sizes_of(worker_exits.paths(told))
    moment = time.time() if now is None else now
    return JobReport(
        report_content.make_report(
            told, root_cause_view.find_root_causes(told), sizes, now=moment, zone=zone, stacks=stacks_of(path)
        )
    )


@dataclass(frozen=True)
class JobReport:
    """A report that can be looked at. In a notebook it shows as the page, printed as Markdown.

    Attributes:
        report: what it says.
    """

    report: Report

    def html(self, beside: Path | None = None) -> str:
        """The page, for a file in the directory `beside`; without one it has no links."""
        return report_html.render_report_html(self.report, beside)

    def write(self, path: Path | None = None) -> Path:
        """Write the page, whole or not at all.

        Args:
            path: where; None for `report.html` in the job directory.

        Returns:
            Where it is.
        """
        path = path if path is not None else self.report.path / "report.html"
        return _write(path, self.html(path.parent))

    def markdown(self) -> str:
        """The report as Markdown."""
        return report_markdown.render_report_markdown(self.report)

    def write_markdown(self, path: Path) -> Path:
        """Write it as Markdown, whole or not at all."""
        return _write(path, self.markdown())

    def __str__(self) -> str:
        return self.markdown()

    def _repr_html_(self) -> str:
        return report_html.frame(self.html())


def _write(path: Path, text: str) -> Path:
    """Write a file by a rename; what is no plain file, such as /dev/stdout, is written to."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", errors="replace")
        return path
    temporary = path.with_name(temporary_name(path.name))
    try:
        with temporary.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def stacks_of(path: Path) -> list[Path]:
    """The directories in which `hpc-launch stacks` or the hang watcher has left where workers were."""
    found = entries(path / "stacks")
    return [folder for name in found if (folder := path / "stacks" / name).is_dir()] if isinstance(found, list) else []


def sizes_of(paths: Iterable[Path]) -> dict[Path, int]:
    """Bytes of those files that are there, and zero for directories."""
    found: dict[Path, int] = {}
    for path in dict.fromkeys(paths):
        with contextlib.suppress(OSError):
            status = path.stat()
            found[path] = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return found
