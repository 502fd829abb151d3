"""`hpc-launch logs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from hpc_launch import hostlist
from hpc_launch.cli.click_options import CONTEXT, GroupedCommand, settings_of
from hpc_launch.cli.job_options import job_options, note, output, search_for_job
from hpc_launch.errors import UsageError
from hpc_launch.inspection import log_reader as reading, logs_text, terminal_colours
from hpc_launch.inspection.end_condition import EndCondition, wait_for_directory
from hpc_launch.inspection.line_folding import LineFolding
from hpc_launch.inspection.output_files import OutputSelection, lost_nodes, why_nothing_selected
from hpc_launch.settings import Streams
from hpc_launch.settings.readers import Unreadable, ranks

# Seconds in which ranks are expected to write the same, in files and while they are followed.
_WINDOW, _WINDOW_NOW = 10.0, 2.0


@click.command(cls=GroupedCommand, context_settings={**CONTEXT, "allow_interspersed_args": True})
@job_options
@click.option("--rank", "rank", metavar="RANKS", help="Of these ranks: 0-3,17.")
@click.option("--host", "host", metavar="HOSTLIST", help="Of the ranks on these nodes: gpu[001-004].")
@click.option(
    "--attempt",
    metavar="N,...|all",
    default="-1",
    help="Of these attempts; -1 is the last one, -2 the one before. Default: -1.",
)
@click.option("--stdout", "only_out", is_flag=True, help="Only what was written to stdout.")
@click.option("--stderr", "only_err", is_flag=True, help="Only what was written to stderr.")
@click.option("--grep", "grep", metavar="REGEX", help="Only lines in which this is found (Python's re).")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, through restarts and requeues.")
@click.option("--per-rank", is_flag=True, help="Rank after rank, instead of by time.")
@click.option("--fold", "as_fold", is_flag=True, help="Lines that several ranks have written alike, as one.")
@click.option(
    "-n",
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only the last N lines; with --per-rank, of each rank.",
)
@click.option("--times", is_flag=True, help="Say when each line was written, to about a second.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line.")
@click.pass_context
def logs(context: click.Context, /, *, job: str, **given: Any) -> None:
    """Print what the workers of a job have written.

    JOB is a job's id, 1234, 1234.0 or 12_3 for a task of an array, or its directory; without it, the latest job in
    logs/. Lines come by time, as well as that is known: those of one rank are always in order.
    """
    _refuse_contradictions(given)
    own = {name: given.pop(name) for name in tuple(given) if name not in ("log_dir", "profile", "verbose")}
    selection = _selection(own)
    log_dir = settings_of(context, given).log_dir
    if own["follow"]:
        directory = wait_for_directory(job, lambda one: search_for_job(one, log_dir), note)
    else:
        directory = search_for_job(job, log_dir).needed
    if not own["follow"] and (problem := why_nothing_selected(directory, selection)):
        raise UsageError(problem)
    for line in lost_nodes(directory, selection):
        note(line)
    batches = reading.read_batches(
        directory,
        selection,
        per_rank=own["per_rank"],
        tail=own["tail"],
        follow=own["follow"],
        ended=EndCondition(directory, selection, note),
        note=note,
    )
    with output():
        for text in _texts(batches, own):
            sys.stdout.buffer.write(text.encode(errors="replace"))
            sys.stdout.buffer.flush()


def _texts(batches: Iterable[reading.LineBatch], own: Mapping[str, Any]) -> Iterable[str]:
    colours = terminal_colours.for_stream(sys.stdout)
    if own["as_fold"]:
        fold = LineFolding(_WINDOW_NOW if own["follow"] else _WINDOW)
        for batch in batches:
            fold.add(batch.lines)
            yield logs_text.folded_as_text(fold.due(batch.now), colours, times=own["times"])
        yield logs_text.folded_as_text(fold.rest(), colours, times=own["times"])
        return
    for batch in batches:
        if batch.lines:
            yield (
                logs_text.logs_as_json(batch.lines)
                if own["as_json"]
                else logs_text.logs_as_text(batch.lines, colours, times=own["times"])
            )


def _refuse_contradictions(own: Mapping[str, Any]) -> None:
    for one, other in (("per_rank", "as_fold"), ("per_rank", "follow"), ("as_fold", "as_json")):
        if own[one] and own[other]:
            names = [f"--{name.removeprefix('as_').replace('_', '-')}" for name in (one, other)]
            raise UsageError(f"{' and '.join(names)} exclude each other: leave one out", option=names[0])


def _selection(own: Mapping[str, Any]) -> OutputSelection:
    streams = (Streams.OUT if own["only_out"] else Streams.NONE) | (Streams.ERR if own["only_err"] else Streams.NONE)
    hosts = hostlist.expand(own["host"]) if own["host"] else None
    return OutputSelection(
        ranks=None if own["rank"] is None else frozenset(_read("--rank", ranks, own["rank"])),
        hosts=None if hosts is None else frozenset(hosts),
        attempts=None if own["attempt"] == "all" else frozenset(_read("--attempt", _attempts, own["attempt"])),
        streams=streams or Streams.ALL,
        pattern=None if own["grep"] is None else _pattern(own["grep"]),
    )


def _read(option: str, read: Callable[[str], Iterable[int]], text: str) -> Iterable[int]:
    try:
        return read(text)
    except Unreadable as error:
        raise UsageError(f"{option}: '{text}' is not {error}", option=option) from None


def _attempts(text: str) -> Iterable[int]:
    found: list[int] = []
    for part in text.split(","):
        if re.fullmatch(r"-[1-9]\d{0,8}", part.strip()):
            found.append(int(part))
        else:
            try:
                found += ranks(part)
            except Unreadable:
                raise Unreadable("all, or attempts such as 0, 0-2 or -1 for the last") from None
    return found


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--grep: '{text}' is no regular expression: {error}", option="--grep") from None
