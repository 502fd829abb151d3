"""A report as Markdown: for an issue, a chat or a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from hpc_launch.inspection.plan_comparison import PlanValue, PlanView
from hpc_launch.inspection.report_content import Report, ReportedCause
from hpc_launch.inspection.worker_exits import WorkerExits
from hpc_launch.text import visible

# What would mean something: always, at the edge of a word, in a link, twice; and what would, at the beginning.
_SPECIAL = re.compile(r"([\\`*<|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|~(?=~)|&(?=[#\w]+;))")
_BEGINNING = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[#>=+-]))")
_BACKTICKS = re.compile(r"`+")


def render_report_markdown(report: Report) -> str:
    """Write a report; what the job has said is shown as it is, and never as markup."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# Job {markdown_text(report.name)}: {report.verdict.word}"
    yield ""
    yield markdown_text(report.verdict.sentence)
    yield ""
    yield from (f"- {fact.name}: {markdown_text(fact.value)}" for fact in report.facts)
    if report.advice:
        yield ""
        yield f"**{markdown_text(report.advice)}**"
    if report.root is not None:
        yield from _root(report.root)
    if report.attempts:
        yield from _heading("Attempts")
        yield from _table(
            ("attempt", "began", "took", "ranks", "nodes", "how it ended", "requeued"),
            (
                (
                    "…" if line.number is None else str(line.number),
                    line.began,
                    line.took,
                    line.ranks,
                    markdown_code(line.hosts),
                    markdown_text(line.ending),
                    markdown_text(line.requeued),
                )
                for line in report.attempts
            ),
        )
    if report.story:
        yield from _heading(f"Story ({report.zone})" if report.zone else "Story")
        yield from (f"- {moment.time} {moment.after}: {markdown_text(moment.text)}" for moment in report.story)
    yield from _exits(report)
    yield from _beside(report)
    if report.plan is not None:
        yield from _plan(report.plan)
    if report.unreadable:
        yield from _heading("What could not be read")
        yield from (f"- {markdown_text(what)}" for what in report.unreadable)
    yield ""
    yield f"Made by hpc-launch {report.version} at {report.written} from {markdown_code(str(report.path))}"


def _root(root: ReportedCause) -> Iterator[str]:
    yield from _heading(root.title)
    yield f"**{markdown_text(root.blame.headline)}**"
    yield ""
    yield from (f"- {name}: {markdown_text(value)}" for name, value in root.blame.facts)
    if root.files is not None:
        yield from (f"- {file.name}: {markdown_code(str(file.path))}" for file in root.files.files)
    if root.blame.lines:
        yield ""
        yield from markdown_block("\n".join(root.blame.lines))
    if root.blame.also:
        yield ""
        yield from (f"- also: {markdown_text(other)}" for other in root.blame.also)
    for sentence in filter(None, (root.blame.followed, root.before)):
        yield ""
        yield markdown_text(sentence)


def _exits(report: Report) -> Iterator[str]:
    """The last attempt, and the one that the root cause is of."""
    guilty = ("cause", "lost")
    failed = next((exits for exits in report.exits if any(line.style in guilty for line in exits.lines)), None)
    shown: list[WorkerExits] = list(report.exits[:1])
    if failed is not None and failed not in shown:
        shown.append(failed)
    for exits in shown:
        yield from _heading(f"Exits of attempt {exits.attempt}")
        yield from _table(
            ("ranks", "how many", "nodes", "end", "how", "ran", "CPU time", "peak memory", "device"),
            (
                (
                    markdown_code(line.ranks),
                    f"{line.count:,}",
                    markdown_code(line.hosts),
                    line.kind,
                    markdown_text(line.how),
                    line.ran,
                    line.cpu,
                    line.memory,
                    markdown_text(line.device),
                )
                for line in exits.lines
            ),
        )


def _beside(report: Report) -> Iterator[str]:
    """Stacks, progress, requeues and nodes."""
    if report.stacks:
        yield from _heading("Stacks")
        yield from (f"- {markdown_code(str(folder))}" for folder in report.stacks)
    if report.progress:
        yield from _heading("Progress")
        for mark in report.progress:
            yield f"- {markdown_text(mark.text)}" + "".join(
                f"; {markdown_text(fact.name)} {markdown_text(fact.value)}" for fact in mark.values
            )
    if report.requeues:
        yield from _heading("Requeues")
        yield from (f"- {moment.time} {moment.after}: {markdown_text(moment.text)}" for moment in report.requeues)
    if report.nodes:
        yield from _heading("Nodes")
        yield from (f"- {markdown_code(node.host)}: {markdown_text(node.text)}" for node in report.nodes)


def _plan(plan: PlanView) -> Iterator[str]:
    if plan.software:
        yield from _heading("Software")
        yield from _values("software", plan.software)
    if plan.environment:
        yield from _heading("Environment of the first node")
        yield from _values("variable", plan.environment)
    yield from _heading("Plan")
    if plan.command:
        yield from markdown_block(plan.command)
    yield from (f"- {markdown_text(warning)}" for warning in plan.warnings)
    if plan.derived:
        yield ""
        yield from _values("derived", plan.derived, "from")
    if plan.settings:
        yield ""
        yield from _values("setting", plan.settings, "from")


def _values(name: str, values: Iterable[PlanValue], origin: str = "") -> Iterator[str]:
    heads = (name, "value", *([origin] if origin else []))
    yield from _table(
        heads,
        (
            (markdown_code(value.name), _value(value), *([markdown_text(value.origin)] if origin else []))
            for value in values
        ),
    )


def _value(value: PlanValue) -> str:
    before = f" (in another run: {', '.join(map(markdown_code, value.before))})" if value.before else ""
    return markdown_code(value.value) + before


def _heading(words: str) -> Iterator[str]:
    yield ""
    yield f"## {markdown_text(words)}"
    yield ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def markdown_text(words: str) -> str:
    """Words that mean nothing to Markdown, in one line."""
    return _BEGINNING.sub(r"\1\\", _SPECIAL.sub(r"\\\1", " ".join(visible(words).split())))


def markdown_code(words: str) -> str:
    """Words as they are, in one line; also within a table."""
    line = " ".join(visible(words).split()).replace("|", "\\|")
    if not line:
        return ""
    fence = "`" * (_longest(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def markdown_block(words: str) -> Iterator[str]:
    """Lines as they are."""
    shown = visible(words)
    fence = "`" * max(3, _longest(shown) + 1)
    yield fence
    yield shown
    yield fence


def _longest(words: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(words)), default=0)
