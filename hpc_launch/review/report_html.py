"""A report as one HTML file: no script, nothing from the network, links to the log files beside it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hpc_launch.review.picture import short
from hpc_launch.review.report import Report
from hpc_launch.text import count, number, one_line, size, visible

TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report, beside: Path | None) -> str:
    """Write a report.

    Args:
        report: what to write.
        beside: the directory that the file will be in, so that its links lead to the log files; None for a page that is
            shown from nowhere, as in a notebook: it has no links.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.loopcontrols"],
        finalize=_finalize,
    )
    environment.globals.update(
        n=short,
        size=size,
        count=count,
        number=number,
        line=one_line,
        href=_links(beside),
        below=_below(report.path),
    )
    return environment.get_template("report.html.jinja").render(r=report, linked=beside is not None)


def _finalize(value: Any) -> Any:
    """What is written of a value: no text of the job's own is invisible, or turns the page around it."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


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
