"""HTML and SVG, for the page of a report and for notebooks: templates of `inspection/templates`, filled in with values.

A template writes down what is decided elsewhere. It escapes all that it is given, and shows what would be invisible.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_launch.inspection.time_axis import short
from hpc_launch.text import count, number, one_line, size, visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"

# Colours for where nobody knows what is behind them, as in a notebook: neither bright nor dark, so that they can be
# read on white and on black. The page of a report knows, and has its own in report.css.
TONES = {"good": "#1f9d63", "bad": "#dc4c4c", "warn": "#b7860b", "busy": "#3b82f6", "plain": "#8a8f98"}

# And those of things beside each other, which are told apart by those who see few colours.
SERIES = ("#3b82f6", "#ea7b30", "#1fa37a", "#d1568f", "#8b6fe8", "#a8902a", "#2b9fb3", "#d65a5a")


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: its file.
        values: what it is given, by name.
    """
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - for those who want a page

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
        tones=TONES,
    )
    return environment


def _finalize(value: Any) -> Any:
    """What is written of a value: no text of the job's own is invisible, or turns the page around it."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
