"""A report as a page and as Markdown: complete, safe whatever the job has called things, and of a size for people."""

import json
import re
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection import job_report
from hpc_launch.inspection.job_report import JobReport
from hpc_launch.records.directory import JobDirectory
from tests import histories, pages
from tests.pages import Page
from tests.support import mentions

# Names and messages that mean something to HTML, to addresses, to shells, to terminals or to Markdown.
HOSTILE = (
    "<script>alert(1)</script>",
    "</pre></style></title><img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "%j %2e%2e/ #? &lt;",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %} {# #}",
    "| `code` **bold** [x](http://example.org)",
    "gr\u00fc\u00dfe \u6f22\u5b57 \U0001f600 \u202etxt",
    "\x1b[31mred\x1b[0m \0 \x07",
    "two\nlines\r\n and a third",
    "\ud800 alone",
)


def report_of(path: Path, **facts: Any) -> JobReport:
    histories.write(path, **facts)
    return job_report.report_on_job(path, now=1_718_001_000.0, zone=timezone.utc)


def page_of(made: JobReport, path: Path | None = None) -> Page:
    written = made.write(path)
    return pages.read(written.read_text())


def hostile_job(path: Path) -> Path:
    """A job in which everything that somebody else has named is named to do harm."""
    histories.write(path, nodes=2, per_node=2, attempts=2, requeues=[0], output=1, ending="failed")
    job = JobDirectory(path.parent, path.name)
    for number, file in enumerate(sorted(path.glob("nodes/*/events.jsonl"))):
        host = f"{HOSTILE[number].replace('/', '_')}"
        events = [json.loads(line) for line in file.read_text().splitlines()]
        for event in events:
            event.update({"host": host} if "host" in event else {}, **{"by": HOSTILE[1]} if "by" in event else {})
            if "device" in event:
                event["device"] = HOSTILE[event["rank"]]
            if event.get("failure"):
                event["failure"] = {
                    "exception": {
                        "type": HOSTILE[0],
                        "message": "".join(HOSTILE),
                        "where": HOSTILE[2],
                        "source": "hook",
                    },
                    "lines": list(HOSTILE),
                }
            if "versions" in event:
                event["versions"] = {text: text for text in HOSTILE}
        file.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    for number in (0, 1):
        values = {text: {"value": text, "origin": text} for text in HOSTILE}
        plan = {"script": list(HOSTILE), "derived": values, "settings": values, "warnings": list(HOSTILE)}
        job.plan(number).write_text(json.dumps({**plan, "environment": {text: text for text in HOSTILE}}))
        for node in (0, 1):
            for local in (0, 1):
                files = job.rank(number, HOSTILE[node].replace("/", "_"), 2 * node + local)
                files.out.parent.mkdir(parents=True, exist_ok=True)
                files.out.write_text("line\n")
    for rank, text in enumerate(HOSTILE):
        mark = {"time": 1_718_000_060.0, "attempt": 1, "step": rank, "total": 20, "values": {text: text}}
        job.progress(rank).write_text(json.dumps(mark))
    job.ledger.write_text(
        "".join(f"{json.dumps({'time': 1_718_000_070.0, 'reason': text, 'cause': text})}\n" for text in HOSTILE)
    )
    return path


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    return hostile_job(tmp_path / "100%j <i>'\"\n#?&amp; 12")


def test_a_page_is_complete(tmp_path: Path) -> None:
    """It asks for nothing that is not in it, its links lead to what is there, and it is well formed."""
    job = tmp_path / "logs/4711.0"
    stacks = job / "stacks/12:00 by <hand>/gpu001"
    stacks.mkdir(parents=True)
    page = page_of(report_of(job, nodes=2, per_node=4, attempts=3, requeues=[0], output=3, ending="failed"))

    assert page.from_elsewhere == []
    assert page.dead(job) == []
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert len([address for address in page.addresses if address.endswith(".out")]) >= 24
    assert "./stacks/12%3A00%20by%20%3Chand%3E/" in page.addresses


def test_a_page_can_be_anywhere(tmp_path: Path) -> None:
    """Written to another directory, its links lead to the same files."""
    elsewhere = tmp_path / "some where/else"
    elsewhere.mkdir(parents=True)
    page = page_of(report_of(tmp_path / "logs/4711.0", output=1), elsewhere / "page.html")

    assert page.dead(elsewhere) == []
    assert "./../../logs/4711.0/attempt_1/gpu001/rank_0.out" in page.addresses


def test_a_hostile_job_is_only_text(hostile: Path) -> None:
    """Whatever a job calls things, the page shows it, and nothing of it is markup, script, address or style."""
    page = page_of(job_report.report_on_job(hostile, zone=timezone.utc))
    said = page.text

    assert page.from_elsewhere == []
    assert page.problems == []
    assert page.dead(hostile) == []
    assert not set(page.tags) & {"script", "i", "img", "iframe"}
    for text in (
        "<script>alert(1)</script>",
        "onerror=alert(1)",
        "{{ 7 * 7 }}",
        "gr\u00fc\u00dfe \u6f22\u5b57 \U0001f600",
    ):
        assert text in said, text
    assert not re.search(r"[\0-\x08\x0b-\x1f\x7f\u202e]", said)


def test_a_hostile_job_is_only_text_in_markdown(hostile: Path) -> None:
    """Outside of code, nothing of it means anything to Markdown; and every table has as many cells as columns."""
    text = job_report.report_on_job(hostile, zone=timezone.utc).markdown()
    outside = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", text)
    lines = [re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "code", line) for line in outside.splitlines()]
    tables = [line for line in lines if line.startswith("|")]

    assert "`" not in re.sub(r"\\`", "", "".join(lines))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {8, 10, 3, 4}
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(|(?<!\\)\*\*bold", "".join(lines))


def test_what_is_shown_nowhere_has_no_links(tmp_path: Path) -> None:
    """In a notebook the page is a frame of its own, in which no script can run; its links would lead nowhere."""
    shown = report_of(tmp_path / "logs/4711.0", output=1)._repr_html_()
    frame = pages.read(shown)
    inner = re.search(r'srcdoc="([^"]*)"', shown)

    assert frame.tags == ["iframe"]
    assert " sandbox " in shown
    assert inner is not None
    assert "href=&quot;./" not in inner[1]


def test_every_part_is_there(tmp_path: Path) -> None:
    """What somebody asks about a job that failed, was requeued, and failed again."""
    offsets = {1: 90.0}
    made = report_of(tmp_path / "4711.0", attempts=3, requeues=[0], ending="failed", output=1, offsets=offsets)
    (tmp_path / "4711.0/nodes/gpu003").mkdir()
    made = job_report.report_on_job(tmp_path / "4711.0", now=1_718_001_000.0, zone=timezone.utc)
    said = page_of(made).text

    for text in (
        "Failed",
        "Root cause",
        "ValueError: loss is nan",
        "attempt 2",
        "requeued",
        "time limit",
        "SIGTERM",
        "3 GiB",
        "2.13.0",
        "train.py --lr 1e-3",
        "SLURM_STEP_NODELIST",
        "Step 300 of 1,000 (30%)",
        "1 min 30 s",
        "nodes/gpu003/events.jsonl",
        "06:13:20",
    ):
        assert text in said, text


def test_a_thousand_ranks_can_be_read(tmp_path: Path) -> None:
    """1,024 ranks in 10 attempts are a few lanes, a table of a few lines per attempt, and less than 1.5 MB."""
    made = report_of(tmp_path / "4711.0", nodes=128, per_node=8, attempts=10, requeues=[4])
    text = made.html(tmp_path)
    overview = made.report.overview

    assert overview is not None
    assert len(overview.rows) <= 4
    assert all(len(exits.lines) <= 4 for exits in made.report.exits)
    assert len(text) < 1_500_000
    assert len(made.markdown()) < 20_000


@pytest.mark.parametrize("what", ["", "empty", "garbage"])
def test_nothing_much_is_a_page_too(tmp_path: Path, what: str) -> None:
    """A directory in which nothing can be read makes a page that says so."""
    job = tmp_path / "4711.0"
    (job / "nodes/gpu001").mkdir(parents=True)
    (job / "attempt_0").mkdir()
    if what:
        for file in (job / "nodes/gpu001/events.jsonl", job / "attempt_0/job.json", job / "requeues.jsonl"):
            file.write_bytes(b"" if what == "empty" else b"\xff\0[1]{\n\n{}\n")
    made = job_report.report_on_job(job)

    assert made.report.verdict.word == "Unknown"
    assert mentions(made.report.verdict.sentence, "no events")
    assert made.report.verdict.sentence in page_of(made).text
    assert made.markdown().startswith("# Job 4711.0: Unknown\n")


def test_times_and_numbers_may_be_anything(tmp_path: Path) -> None:
    """Clocks that jump, numbers without sense: the page is made of what there is."""
    job = histories.write(tmp_path / "4711.0", attempts=3)
    for file in job.glob("nodes/*/events.jsonl"):
        events = [json.loads(line) for line in file.read_text().splitlines()]
        for at, event in enumerate(events):
            event["time"] = [0, -1e15, 8e15, 1_718_000_000.0, 1_717_000_000][at % 5]
            event.update({"exitcode": -8e15} if "exitcode" in event else {}, world_size=-5, status=1 << 52)
        file.write_text("".join(f"{json.dumps(event)}\n" for event in events))

    assert page_of(job_report.report_on_job(job)).problems == []
