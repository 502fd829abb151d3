"""A view of a job as HTML that can stand in any notebook: one element, styles in place, no script. Pure."""

from __future__ import annotations

from hpc_launch.api import job_text
from hpc_launch.api.job_view import JobView
from hpc_launch.api.svg_plot import PlottedCurve, plot_svg
from hpc_launch.inspection import markup
from hpc_launch.inspection.job_state import State

_TONES: dict[State, str] = {
    State.WAITING: "warn",
    State.RUNNING: "busy",
    State.REQUEUED: "warn",
    State.DONE: "good",
    State.FAILED: "bad",
    State.STOPPED: "plain",
    State.UNKNOWN: "plain",
}


def render_job_html(view: JobView) -> str:
    """The whole view, in one element."""
    colours = [markup.SERIES[place % len(markup.SERIES)] for place in range(len(view.ranks))]
    lines = [
        PlottedCurve(f"rank {each.rank}", colour, each.curve) for each, colour in zip(view.ranks, colours, strict=True)
    ]
    # The badge has the word for the state.
    words = "" if view.standing.words == view.state.value else view.standing.words
    return markup.render(
        "job.html.jinja",
        view=view,
        tone=_TONES[view.state],
        text=job_text,
        facts=[fact for fact in (words, *job_text.facts(view)) if fact],
        colours=colours,
        plot=plot_svg(view.value, lines),
    )
