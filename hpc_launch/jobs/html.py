"""A view of a job as HTML that can stand in any notebook: one element, styles in place, no script. Pure."""

from __future__ import annotations

from hpc_launch.jobs import text
from hpc_launch.jobs.drawing import Line, plot
from hpc_launch.jobs.standing import Phase
from hpc_launch.jobs.view import JobView
from hpc_launch.review import markup

_TONES: dict[Phase, str] = {
    "waiting": "warn",
    "running": "busy",
    "ending": "busy",
    "done": "good",
    "failed": "bad",
    "stopped": "plain",
    "unknown": "plain",
}


def render(view: JobView) -> str:
    """The whole view, in one element."""
    colours = [markup.SERIES[place % len(markup.SERIES)] for place in range(len(view.ranks))]
    lines = [Line(f"rank {each.rank}", colour, each.curve) for each, colour in zip(view.ranks, colours, strict=True)]
    drawn = plot(view.value, lines)
    return markup.render("job.html.jinja", view=view, tone=_TONES[view.phase], text=text, colours=colours, plot=drawn)
