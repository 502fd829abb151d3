"""What is to be seen of a job, at every moment of its life: as a value, as text and as HTML."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch.api import job_html, job_text, svg_plot
from hpc_launch.api.backends import InProcessJob, LocalJob, SlurmJob
from hpc_launch.api.job_handle import Job
from hpc_launch.api.job_view import (
    JobView,
    RankView,
    ViewData,
    ViewEvidence,
    ViewSubject,
    chosen,
    compose,
    main_value,
    remaining,
)
from hpc_launch.api.job_view_reader import read_job_view
from hpc_launch.api.slurm_poller import SlurmPoller
from hpc_launch.api.submission_files import JobFiles, Outcome, SubmissionRecord, write_record
from hpc_launch.inspection import markup
from hpc_launch.inspection.job_state import JobState, SlurmAnswer, State
from hpc_launch.node import processes
from hpc_launch.records import directory
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.history_model import History, ProgressMark, Run
from hpc_launch.records.plan_record import PlanRecord
from hpc_launch.slurm.job import JobRecord, explain
from hpc_launch.text import to_the_minute
from tests import histories
from tests.histories import Losses
from tests.support import lines_mention, mentions

NOW = 1_718_000_100.0
SUBJECT = ViewSubject("train", "4711", "Slurm", 2, NOW - 100)
SUBMITTED = SubmissionRecord("7", "slurm", "train", (), Path("logs/7.0"), NOW - 100, {"nodes": 2})


def slurm(state: str, *, done: bool = False, outcome: Outcome | None = None, **facts: Any) -> ViewEvidence:
    """Return what is known of a job of which Slurm says so much."""
    return ViewEvidence(SlurmAnswer(JobRecord("4711", state, **facts)), outcome, done=done)


RUNNING = slurm("RUNNING", nodes="gpu[001-002]", start=NOW - 90, end=NOW + 3600)
NOTHING = ViewData(History(Path()))


def mark(
    rank: int, step: float | None, time: float = NOW, values: Mapping[str, float | str] | None = None
) -> ProgressMark:
    return ProgressMark(rank, time, 0, step, 100, values or {})


def view(state: State = State.RUNNING, **facts: Any) -> JobView:
    """Return a view of a job that has begun."""
    over = state in (State.DONE, State.FAILED, State.STOPPED)
    return JobView(
        SUBJECT, NOW, JobState(state, state.value, over=over), **{"start": NOW - 90, "end": NOW + 3600, **facts}
    )


def seen(folder: Path, evidence: ViewEvidence = RUNNING, made: histories.Made | None = None) -> JobView:
    """See a job of some history."""
    path = histories.write(folder / "logs" / "4711.0", made)
    return read_job_view(SUBJECT, evidence, path, NOW)


def test_the_end_is_what_slurm_says_and_else_what_the_job_has_heard() -> None:
    """Both may have been asked a while ago, but a job asks Slurm only now and then."""
    history = History(Path("logs/4711.0"), end_time=NOW + 60)
    started_here = ViewEvidence(alive=True)
    runs = dataclasses.replace(history, runs=(Run(0, PlanRecord(), {}, "4711.0.0", 0, NOW - 100, None, None),))

    assert compose(SUBJECT, RUNNING, ViewData(runs), NOW).time_left == 3600
    assert compose(SUBJECT, started_here, ViewData(history), NOW).time_left == 60
    assert compose(SUBJECT, started_here, ViewData(History(Path(), end_time=float("inf"))), NOW).time_left is None


def test_a_job_that_has_lost_nodes(tmp_path: Path) -> None:
    """It shows the nodes that are left, and how far the ranks are that there still are."""
    path = Losses(tmp_path / "logs" / "4711.0", "", NOW - 600).write()
    view = read_job_view(SUBJECT, RUNNING, path, NOW)

    assert (view.hosts, view.lost) == (("gpu002", "gpu003", "gpu006"), ("gpu004", "gpu005"))
    assert [each.rank for each in view.ranks] == [0]
    assert "on gpu[002-003,006], without gpu[004-005], lost, 6 ranks, attempt 3" in job_text.job_headline(view)


# ---- waiting


def test_a_job_that_waits() -> None:
    """Slurm's reason is there with its meaning, and the start that Slurm expects; nothing of times that are not yet."""
    waiting = compose(SUBJECT, slurm("PENDING", reason="Priority", start=NOW + 2400, end=NOW + 6000), NOTHING, NOW)

    assert (waiting.estimate, waiting.elapsed, waiting.time_left) == (NOW + 2400, None, None)
    assert job_text.render_job_text(waiting).startswith(f"train (job 4711): waiting ({explain('Priority')}), ")
    assert lines_mention(job_text.facts(waiting), "2 nodes", to_the_minute(NOW + 2400, NOW))


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "queue nodes"),
        ("ReqNodeNotAvail, Reserved", "node down drained reserved"),
        ("QOSMaxJobsPerUserLimit", "limit group"),
        ("AssocGrpGRESMinutes", "limit group"),
    ],
)
def test_reasons(reason: str, words: str) -> None:
    """A reason is there as Slurm says it, and then what it means."""
    said, colon, meaning = explain(reason).partition(": ")

    assert (said, colon) == (reason, ": ")
    assert mentions(meaning, words)


@pytest.mark.parametrize(("reason", "said"), [("None", ""), ("", ""), ("SomethingNew", "SomethingNew")])
def test_reasons_that_are_not_known(reason: str, said: str) -> None:
    """What is not known is said as Slurm says it."""
    assert explain(reason) == said


def test_an_expected_start_that_has_passed() -> None:
    """It is no estimate any more."""
    waiting = compose(SUBJECT, slurm("PENDING", start=NOW - 1), NOTHING, NOW)

    assert (waiting.estimate, waiting.elapsed) == (None, None)


@pytest.mark.parametrize(
    ("evidence", "stands", "words"),
    [
        (slurm("PENDING"), (State.WAITING, False, None), "waiting"),
        (slurm("RUNNING", start=NOW - 1), (State.RUNNING, False, None), "running (Slurm) hpc-launch"),
        (slurm("TIMEOUT", done=True), (State.FAILED, True, 143), "timeout (Slurm)"),
        (slurm("CANCELLED", done=True), (State.STOPPED, True, 143), "cancelled (Slurm)"),
        # What a job has left behind may come after Slurm's word.
        (slurm("COMPLETED"), (State.RUNNING, False, None), "ending"),
        (slurm("COMPLETED", outcome=Outcome(0, Path("x")), done=True), (State.DONE, True, 0), "done"),
        (slurm("RUNNING", outcome=Outcome(3, Path("x")), done=True), (State.FAILED, True, 3), "failed 3"),
        (ViewEvidence(SlurmAnswer(), done=True), (State.UNKNOWN, True, None), "over Slurm"),
        (ViewEvidence(alive=True), (State.RUNNING, False, None), "running"),
        (ViewEvidence(alive=False, done=True), (State.FAILED, True, None), "processes"),
        (ViewEvidence(outcome=Outcome(0, Path()), done=True), (State.DONE, True, 0), "done"),
        (ViewEvidence(outcome=Outcome(143, Path()), done=True), (State.FAILED, True, 143), "failed 143"),
        (
            ViewEvidence(outcome=Outcome(143, Path(), cancelled=True), done=True),
            (State.STOPPED, True, 143),
            "cancelled 143",
        ),
    ],
)
def test_how_it_stands(evidence: ViewEvidence, stands: tuple[State, bool, int | None], words: str) -> None:
    """By what its handle, its directory and Slurm say, in the words of `hpc-launch status`."""
    found = compose(SUBJECT, evidence, NOTHING, NOW).standing

    assert (found.state, found.over, found.status) == stands
    assert mentions(found.words, words), found.words


def test_a_job_that_has_ended_before_slurm_says_so() -> None:
    """Its own word for when that was counts, not the end of its time limit."""
    ended = compose(
        SUBJECT, dataclasses.replace(RUNNING, outcome=Outcome(0, Path("x"), NOW - 30), done=True), NOTHING, NOW
    )

    assert (ended.end, ended.elapsed, ended.state) == (NOW - 30, 60, State.DONE)


def test_a_job_outside_of_slurm_began_when_it_was_submitted() -> None:
    assert compose(SUBJECT, ViewEvidence(alive=True), NOTHING, NOW).elapsed == 100


# ---- what handles know


class Answers(SlurmPoller):
    """What Slurm has said of all jobs."""

    def __init__(self, record: JobRecord | None, *, lost: bool = False) -> None:
        super().__init__()
        self._answer, self._lost = record, lost

    def record(self, job: str) -> JobRecord | None:  # noqa: ARG002 - as asked
        return self._answer

    def lost(self, job: str) -> bool:  # noqa: ARG002 - as asked
        return self._lost


def test_what_is_known_of_a_job_of_slurm_s(tmp_path: Path) -> None:
    """Until Slurm has answered it is as it was when Slurm took it; what Slurm has forgotten is not known to wait."""
    files, record = JobFiles(tmp_path, "7"), JobRecord("7", "RUNNING")
    fresh = SlurmJob(files, Answers(None)).evidence()

    assert SlurmJob(files, Answers(record)).evidence() == ViewEvidence(SlurmAnswer(record))
    assert SlurmJob(files, Answers(None, lost=True)).evidence() == ViewEvidence(SlurmAnswer())
    assert (compose(SUBJECT, fresh, NOTHING, NOW).state, fresh.record) == (State.WAITING, None)


@pytest.mark.parametrize(
    ("host", "started", "alive"), [("", True, True), ("", False, False), ("elsewhere", True, None)]
)
def test_what_is_known_of_a_job_that_was_started_here(
    tmp_path: Path, host: str, *, started: bool, alive: bool | None
) -> None:
    """Its process is there or not; on another machine nobody can tell, so that it has not ended."""
    files = JobFiles(tmp_path, "local-1")
    when = processes.start_time(os.getpid()) if started else -1
    directory.write_json(files.process, {"pid": os.getpid(), "started": when, "host": host or socket.gethostname()})
    handle = LocalJob(files)

    assert handle.evidence() == ViewEvidence(alive=alive)
    assert (handle.ending() is None) == (alive is not False)


@pytest.mark.parametrize("record", [None, dataclasses.replace(SUBMITTED, name="", submitted=None, resources={})])
def test_a_record_that_says_little(record: SubmissionRecord | None) -> None:
    """What cannot be read is not known."""
    assert ViewSubject.of("7", record) == ViewSubject("job", "7", "Slurm")
    assert ViewSubject.of("7", dataclasses.replace(SUBMITTED, resources={"nodes": "2:4"})).nodes == 0
    assert compose(SUBJECT, slurm("RUNNING", nodes="gpu[1-"), NOTHING, NOW).hosts == ("gpu[1-",)


@pytest.mark.parametrize(
    ("kind", "where"),
    [("slurm", "Slurm"), ("allocation", "allocation"), ("local", "this machine"), ("debug", "this process")],
)
def test_where_it_runs(kind: str, where: str) -> None:
    assert ViewSubject.of("7", dataclasses.replace(SUBMITTED, cluster=kind)) == ViewSubject(
        "train", "7", where, 2, NOW - 100
    )


def test_a_job_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `print` says, what a front end gets that is no notebook's kernel, and the value are of the same moment."""
    monkeypatch.setattr("time.time", lambda: NOW - 35)
    files = JobFiles(tmp_path / "submitted", "debug-1")
    files.base.mkdir()
    write_record(files.record, dataclasses.replace(SUBMITTED, cluster="debug"))
    job: Job[None] = Job(files, InProcessJob(0), tmp_path / "debug-1")

    assert job.view().state is State.DONE
    assert str(job) == job._repr_mimebundle_()["text/plain"]
    assert str(job) == "train (job debug-1): done, 1 min 5 s in all"


def test_a_job_of_a_batch_that_has_not_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to show yet, and showing it is no error."""
    job: Job[None] = Job(None, None, None)
    job._ipython_display_()

    assert capsys.readouterr().out == f"{job!r}\n" == f"{job}\n"
    assert job._repr_mimebundle_() == {"text/plain": repr(job)}


# ---- running


def test_a_job_that_runs(tmp_path: Path) -> None:
    """Nodes, ranks, times, progress, last lines and files: what its directory says, put together."""
    made = histories.Made(attempts=1, ending="", begin=NOW - 90)
    path = histories.write(tmp_path / "logs/4711.0", made)
    job = JobDirectory(path.parent, path.name)
    for rank, step in enumerate([50, 40]):
        directory.make(job.curve(rank).parent)
        words = [
            {"time": NOW - 50 + each, "attempt": 0, "step": each, "total": 100, "values": {"lr": 0.1, "loss": 1 / each}}
            for each in range(1, step + 1)
        ]
        directory.append(job.curve(rank), "".join(f"{json.dumps(word)}\n" for word in words))
        directory.write_json(job.progress(rank), words[-1])
    out = job.rank(0, "gpu001", 0).out
    directory.make(out.parent)
    out.write_text("first\n" * 9 + "10%\r20%\r\x1b[32mgreen\x1b[0m\ttab\n")
    found = read_job_view(SUBJECT, RUNNING, path, NOW)
    lines = job_text.render_job_text(found).splitlines()

    assert lines[0].startswith("train (job 4711): running, on gpu[001-002], 8 ranks, 1 min 30 s so far, ")
    assert "finishes in about " in lines[0]
    assert lines[1].startswith("  rank 0 on gpu001  |██████████          |  50%  step 50 of 100  lr 0.1  loss 0.02   █")
    assert lines[2].startswith("  rank 1 on gpu001  |████████            |  40%  step 40 of 100  lr 0.1  loss 0.025  █")
    assert lines[3:] == ["  last lines of rank 0:", *["  | first"] * 5, "  | green\ttab", f"  files in {path}"]
    assert (found.value, found.share) == ("loss", 0.4)


def test_many_ranks(tmp_path: Path) -> None:
    """Of many ranks a few are shown one by one, and of the others how far they are."""
    path = histories.write(tmp_path / "logs/1.0", histories.Made(nodes=4, per_node=8, attempts=1, ending=""))
    job = JobDirectory(path.parent, path.name)
    for rank in range(32):
        directory.write_json(job.progress(rank), {"time": NOW, "attempt": 0, "step": 1000 - rank, "values": {}})
    found = read_job_view(SUBJECT, RUNNING, path, NOW)

    assert [each.rank for each in found.ranks] == [0, *range(25, 32)]
    assert job_text.others(found) == "and 24 more ranks: step 976 to 999"


def test_who_is_shown() -> None:
    """Rank 0, those that failed, and those furthest behind."""
    marks = [mark(rank, 100 + rank) for rank in range(100)]

    assert chosen(marks[:8]) == tuple(range(8))
    assert chosen(marks, failed=[99, 50]) == (0, 1, 2, 3, 4, 5, 50, 99)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["lr", "train_loss", "loss"], "train_loss"), (["accuracy"], "accuracy"), (["phase"], ""), ([], "")],
)
def test_the_value_that_is_drawn(names: list[str], expected: str) -> None:
    """A loss, else the first number."""
    values: dict[str, float | str] = {name: "warm" if name == "phase" else 0.5 for name in names}

    assert main_value([mark(0, 1, values=values)]) == expected


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([(0, 0), (10, 10), (20, 20)], 80),
        ([(0, 0), (20, 10), (40, 50)], 25),  # the pace of the second half
        ([(0, 0), (0.5, 10), (1, 50), (2, 100)], None),
        ([(0, 50)], None),
        ([(0, 50), (10, 50)], None),
        ([(10, 40), (0, 50)], None),
        ([], None),
    ],
)
def test_what_is_left_of_the_training(steps: list[tuple[float, float]], left: float | None) -> None:
    """The pace of the second half goes on; what makes no sense gives no number."""
    assert remaining([mark(0, step, time=time) for time, step in steps], max([0, *(time for time, _ in steps)])) == left


def test_a_rank_that_is_late() -> None:
    """One that should have been done says nothing of when it will be."""
    assert remaining([mark(0, 0, time=0), mark(0, 50, time=10)], 15) == 5
    assert remaining([mark(0, 0, time=0), mark(0, 50, time=10)], 25) is None


def test_silence() -> None:
    """Where ranks have marked progress, that they have stopped to do so is said."""
    quiet = view(ranks=(RankView(0, "gpu001", mark(0, 5, time=NOW - 200)),))

    assert "no progress for 3 min 20 s" in job_text.job_headline(quiet)
    assert "no progress" not in job_text.job_headline(view())


# ---- ended


def test_a_job_that_failed(tmp_path: Path) -> None:
    """The rank that failed first, why, and what it said last."""
    made = histories.Made(attempts=1, ending="failed", begin=NOW - 90, fails={0: 5})
    failed = slurm("FAILED", nodes="gpu[001-002]", start=NOW - 90, end=NOW - 30, done=True)
    found = seen(tmp_path, failed, made)

    assert found.cause == "rank 5 on gpu002 (local rank 1) failed with exit status 1: ValueError: loss is nan"
    assert f"  {found.cause}" in job_text.render_job_text(found).splitlines()
    assert found.source == "rank 5"
    assert "1 min in all" in job_text.job_headline(found)
    assert " left" not in job_text.job_headline(found)


def test_a_job_without_a_directory(tmp_path: Path) -> None:
    """Before its first line a job can be shown as well."""
    gone = read_job_view(
        dataclasses.replace(SUBJECT, submitted=NOW - 1), ViewEvidence(alive=True), tmp_path / "logs/4711.0", NOW
    )

    assert job_text.render_job_text(gone) == "train (job 4711): running, starting, 1 s so far"


def test_a_job_that_was_cancelled_before_it_began() -> None:
    """It took no time, and nothing is said of it."""
    cancelled = compose(SUBJECT, slurm("CANCELLED", start=NOW, end=NOW, done=True), NOTHING, NOW)

    assert job_text.render_job_text(cancelled) == "train (job 4711): cancelled (Slurm)"


# ---- drawings of text


@given(st.floats(min_value=0, max_value=1), st.integers(min_value=1, max_value=50))
def test_bars_of_text(share: float, width: int) -> None:
    assert len(job_text.bar(share, width)) == width


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)), max_size=50), st.integers(1, 40))
def test_curves_of_text(points: list[tuple[float, float]], width: int) -> None:
    """A curve is as wide as it was asked for, or not there."""
    assert len(job_text.curve(sorted(points), width)) == (width if len({step for step, _ in points}) > 1 else 0)


# ---- HTML


def test_html_is_well_formed_and_nothing_in_it_is_the_job_s_own() -> None:
    """Whatever a job says is text: no tag, script or attribute of it reaches the page."""
    evil = "\"><script>alert(1)</script><img src=x onerror='x'>&amp;"
    ranks = tuple(
        RankView(rank, evil, mark(rank, step, values={evil: 0.5, "phase": evil}), ((1, 2.0), (2, 1.0)), failed=True)
        for rank, step in enumerate([5, None])
    )
    shown = job_html.render_job_html(
        dataclasses.replace(
            view(State.FAILED),
            note=evil,
            subject=ViewSubject(evil, evil, evil),
            ranks=ranks,
            value=evil,
            lines=(evil,),
            source=evil,
            cause=evil,
            others=(mark(7, 3),),
            directory=Path(evil),
        )
    )
    tree = ET.fromstring(shown)

    assert {element.tag for element in tree.iter()} <= {
        "div",
        "span",
        "strong",
        "svg",
        *["line", "text", "polyline", "title", "circle"],
    }
    assert not any(name.startswith("on") or name == "src" for element in tree.iter() for name in element.attrib)
    assert "".join(tree.itertext()).count("<script>alert(1)</script>") >= 5


@pytest.mark.parametrize("state", State)
def test_html_of_every_state(state: State) -> None:
    """Each is shown by its word, in the colours of what is around it; more words follow, where there are any."""
    shown = job_html.render_job_html(view(state))
    more = job_html.render_job_html(dataclasses.replace(view(state), standing=JobState(state, "in other words")))

    assert f">{state.value}</span>" in shown
    assert "color:inherit" in shown
    assert "background:transparent" in shown
    assert (">in other words · " in more, f">{state.value} · " in shown) == (True, False)


def test_html_shows_what_would_be_invisible() -> None:
    """A job's last lines may hold what a terminal obeys, or what no page can have."""
    shown = job_html.render_job_html(view(lines=("\x1b[31mred\x1b[0m \0", "  two\tthree \ud800"), source="rank 0"))

    assert "red \\x00\n  two\tthree \\xd800</div>" in shown


def test_curves_in_html() -> None:
    """Each rank has its colour, in its row and in the picture; what its points reach is behind its mean."""
    curves = (((1, 3.0), (2, 1.0)), tuple((step, 1.0 + step % 7) for step in range(500)), ())
    ranks = tuple(RankView(rank, "gpu001", mark(rank, 50), curve) for rank, curve in enumerate(curves))
    tree = ET.fromstring(job_html.render_job_html(view(ranks=ranks, value="loss")))
    lines = [(line.get("stroke"), line.get("stroke-width")) for line in tree.iter("polyline")]
    first, second, third = markup.SERIES[:3]

    assert lines == [(second, "1"), (second, "1.6"), (first, "1.6")]
    assert [dot.get("fill") for dot in tree.iter("circle")] == [second, first]
    assert f"background:{third}" in ET.tostring(tree, encoding="unicode")
    assert [word.text for word in tree.iter("text")] == ["loss", "1", "7", "0", "step 499"]


def test_html_stays_small() -> None:
    """A page does not grow with the training: curves are thinned out."""
    points = tuple((step, 1 / step + step % 7) for step in range(1, 5000))
    ranks = tuple(RankView(rank, "gpu001", mark(rank, 50, values={"loss": 0.5}), points) for rank in range(8))

    assert len(job_html.render_job_html(view(ranks=ranks, value="loss"))) < 40_000


def test_a_curve_of_many_points() -> None:
    """Its parts hold every point once and in order; of each the lowest and the highest are drawn, and the mean."""
    points = [(step, 1.0) for step in range(1000)]
    points[500], points[501] = (500, 9.0), (501, -9.0)
    divided = svg_plot.divide_curve(points)
    reach = [point for part in divided for point in svg_plot.extremes(part)]

    assert len(divided) == 90
    assert [point for part in divided for point in part] == points
    assert {points[500], points[501]} <= set(reach)
    assert (len(reach) < 200, reach) == (True, sorted(reach))
    assert svg_plot.mean([(1, 2.0), (3, 6.0)]) == (2, 4.0)


def test_a_curve_of_few_points() -> None:
    """It goes through each of them."""
    points = [(step * step, float(step)) for step in range(10)]

    assert [svg_plot.mean(part) for part in svg_plot.divide_curve(points[:2])] == points[:2]
    shown = svg_plot.plot_svg("loss", [svg_plot.PlottedCurve("rank 0", "#000", points[:2])])
    assert shown is not None
    assert [(curve.path, curve.reach) for curve in shown.curves] == [("58,112 332,18", "")]


@pytest.mark.parametrize(
    ("values", "named"),
    [((1.0, 0.001), "loss, logarithmic"), ((1.0, 0.5), "loss"), ((1.0, -5.0), "loss"), ((1.0, 1.0), "loss")],
)
def test_values_of_many_sizes_are_drawn_by_their_logarithms(values: tuple[float, float], named: str) -> None:
    shown = svg_plot.plot_svg("loss", [svg_plot.PlottedCurve("rank 0", "#000", list(enumerate(values)))])

    assert shown is not None
    assert (shown.title, len(shown.rules)) == (named, len({*values}))


def test_a_point_is_no_curve() -> None:
    assert (
        svg_plot.plot_svg(
            "loss", [svg_plot.PlottedCurve("rank 0", "#000", [(1, 2.0)]), svg_plot.PlottedCurve("rank 1", "#000", [])]
        )
        is None
    )
