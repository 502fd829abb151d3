"""A report as one HTML file: no script, nothing from the network, links to the log files beside it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_from_bytes

from hpc_launch.inspection import markup
from hpc_launch.inspection.report_content import Report


def render_report_html(report: Report, beside: Path | None) -> str:
    """Write a report.

    Args:
        report: what to write.
        beside: the directory that the file will be in, so that its links lead to the log files; None for a page that is
            shown from nowhere, as in a notebook: it has no links.
    """
    return markup.render(
        "report.html.jinja", r=report, linked=beside is not None, href=_links(beside), below=_below(report.path)
    )


def frame(page: str) -> str:
    """A page within another, as in a notebook: neither's style changes the other's."""
    return markup.render("frame.html.jinja", page=page)


def _below(directory: Path) -> Callable[[Path], str]:
    """Names of files as they are in the job directory."""
    return lambda path: str(path.relative_to(directory)) if path.is_relative_to(directory) else str(path)


def _links(beside: Path | None) -> Callable[[Path], str]:
    base = os.path.realpath(beside) if beside is not None else ""

    @functools.cache
    def folder(path: Path) -> str:
        return quote_from_bytes(os.fsencode(os.path.relpath(os.path.realpath(path), base)))

    def href(path: Path) -> str:
        """A relative link: `./` before it, so that no name is taken for a scheme."""
        return f"./{folder(path.parent)}/{quote_from_bytes(os.fsencode(path.name))}"

    return href
