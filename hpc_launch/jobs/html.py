"""A view of a job as HTML that can stand in any notebook: one element, styles in place, no script. Pure.

Text has the colour of what is around it, and everything else colours that can be read on light and on dark: no theme
has to be known.
"""

from __future__ import annotations

from html import escape

from hpc_launch.jobs.drawing import COLOURS, Line, plot
from hpc_launch.jobs.text import facts, others, steps, values
from hpc_launch.jobs.view import JobView, RankView
from hpc_launch.review.job_state import State

_STATES = {
    State.WAITING: "#b7860b",
    State.RUNNING: "#3b82f6",
    State.REQUEUED: "#b7860b",
    State.DONE: "#1f9d63",
    State.FAILED: "#dc4c4c",
    State.STOPPED: "#8a8f98",
    State.UNKNOWN: "#8a8f98",
}

_FONT = "var(--jp-ui-font-family,system-ui,-apple-system,'Segoe UI',sans-serif)"
_CODE = "var(--jp-code-font-family,ui-monospace,Menlo,Consolas,monospace)"
_FAINT = "opacity:.72"
_EDGE = "1px solid rgba(128,128,128,.35)"


def render(view: JobView) -> str:
    """The whole view, in one element."""
    body = "".join((_head(view), _facts(view), _cause(view), _progress(view), _lines(view), _foot(view)))
    style = (
        f"font:13px/1.5 {_FONT};border:{_EDGE};border-left:4px solid {_STATES[view.state]};border-radius:6px;"
        "padding:10px 14px;margin:4px 0;max-width:860px;box-sizing:border-box;color:inherit;background:transparent"
    )
    return f'<div style="{style}">{body}</div>'


def _head(view: JobView) -> str:
    colour = _STATES[view.state]
    badge = (
        f"color:{colour};border:1px solid {colour};border-radius:10px;padding:0 9px;font-size:12px;font-weight:600;"
        "white-space:nowrap"
    )
    return _row(
        f'<span style="{badge}">{view.state.value}</span>'
        f'<strong style="font-size:14px">{escape(view.subject.name)}</strong>'
        f'<span style="{_FAINT}">job {escape(view.subject.job_id)}</span>'
        f'<span style="{_FAINT};margin-left:auto">{escape(view.subject.where)}</span>',
        "align-items:center;gap:10px",
    )


def _facts(view: JobView) -> str:
    # The badge has said the word for its state.
    words = "" if view.standing.words == view.state.value else view.standing.words
    told = " · ".join(escape(fact) for fact in (words, *facts(view)) if fact)
    return f'<div style="margin-top:4px">{told}</div>' if told else ""


def _cause(view: JobView) -> str:
    colour = _STATES[State.FAILED]
    style = f"margin-top:6px;color:{colour};font-weight:600;overflow-wrap:anywhere"
    return f'<div style="{style}">{escape(view.cause)}</div>' if view.cause else ""


def _progress(view: JobView) -> str:
    if not view.ranks:
        return ""
    colours = {each.rank: COLOURS[place % len(COLOURS)] for place, each in enumerate(view.ranks)}
    rows = "".join(_rank(each, colours[each.rank]) for each in view.ranks)
    if others(view):
        rows += f'<span style="grid-column:1/-1;{_FAINT};font-size:12px">{escape(others(view))}</span>'
    grid = "display:grid;grid-template-columns:auto auto minmax(40px,1fr) auto auto auto;gap:1px 8px;align-items:center"
    curves = plot(view.value, [Line(f"rank {each.rank}", colours[each.rank], each.curve) for each in view.ranks])
    drawn = f'<div style="flex:0 1 340px">{curves}</div>' if curves else ""
    return _row(
        f'<div style="flex:1 1 400px;min-width:0;{grid}">{rows}</div>{drawn}',
        "align-items:center;gap:8px 22px;margin-top:8px",
    )


def _rank(each: RankView, colour: str) -> str:
    """One row of the grid: six cells."""
    name = f"rank {each.rank}"
    dot = f"width:9px;height:9px;border-radius:50%;background:{colour}"
    words = "  ".join(word for word in (steps(each), values(each)) if word)
    failed = f'<strong style="color:{_STATES[State.FAILED]}">failed</strong>' if each.failed else "<span></span>"
    return (
        f'<span style="{dot}"></span><span title="{escape(each.host)}">{name}</span>{_bar(each, name, colour)}'
        f'<span style="{_FAINT};font-size:12px;white-space:pre-wrap">{escape(words)}</span>{failed}'
    )


def _bar(each: RankView, name: str, colour: str) -> str:
    if each.share is None:
        return "<span></span><span></span>"
    return (
        f'<span role="progressbar" aria-label="{name}" aria-valuenow="{each.share * 100:.0f}" aria-valuemin="0" '
        'aria-valuemax="100" style="height:8px;border-radius:4px;background:rgba(128,128,128,.22);overflow:hidden">'
        f'<span style="display:block;height:100%;width:{each.share:.1%};background:{colour}"></span></span>'
        f'<span style="text-align:right">{each.share:.0%}</span>'
    )


def _lines(view: JobView) -> str:
    if not view.lines:
        return ""
    text = escape("\n".join(view.lines))
    style = (
        f"font:12px/1.45 {_CODE};white-space:pre-wrap;overflow-wrap:anywhere;padding-left:10px;margin-top:2px;"
        "border-left:2px solid rgba(128,128,128,.35);max-height:9.5em;overflow:auto"
    )
    return (
        f'<div style="margin-top:8px;font-size:12px;{_FAINT}">last lines of {escape(view.source)}</div>'
        f'<div style="{style}">{text}</div>'
    )


def _foot(view: JobView) -> str:
    if view.directory is None:
        return ""
    style = f"margin-top:8px;font-size:12px;{_FAINT};overflow-wrap:anywhere"
    return f'<div style="{style}">files in {escape(str(view.directory))}</div>'


def _row(content: str, style: str) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;{style}">{content}</div>'
