"""The points of a sweep: what differs between them, where each stands, and how many are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.inspection import point_table, slurm_query
from hpc_launch.inspection.job_state import State
from hpc_launch.inspection.point_reader import ArrayReader, RunsReader
from hpc_launch.inspection.point_status import ArrayStatus, point_arguments, split_commands
from hpc_launch.inspection.slurm_query import ArrayAnswer, ask_array
from hpc_launch.records.directory import JobDirectory
from hpc_launch.slurm import controller
from hpc_launch.slurm.job import JobRecord, task_numbers
from tests import histories
from tests.support import lines_mention, mentions
from tests.unit.test_job_status import seen

NOW = 1_718_000_500.0

# As `submit --sweep` writes them.
SCRIPT = "".join(f'    {number}) set -- "$@" --lr {number}e-3 ;;\n' for number in range(2000))


# ---- what differs


@pytest.mark.parametrize(
    ("commands", "common", "rest"),
    [
        (["t.py --lr 1", "t.py --lr 2"], "t.py", ["--lr 1", "--lr 2"]),
        (["t.py --x 5 lr=1", "t.py --x 5 lr=2 b=3"], "t.py --x 5", ["lr=1", "lr=2 b=3"]),
        (["t.py", "t.py --fast"], "t.py", ["", "--fast"]),
        (["t.py --fast", "t.py --fast 3"], "t.py", ["--fast", "--fast 3"]),
        (["a.py 1", "b.py 1"], "", ["a.py 1", "b.py 1"]),
        (["t.py --lr 1"], "t.py", ["--lr 1"]),
        (["t.py --lr 1", "t.py --lr 1"], "t.py", ["--lr 1", "--lr 1"]),
        ([], "", []),
    ],
)
def test_what_differs_between_commands(commands: list[str], common: str, rest: list[str]) -> None:
    """An option stays with its value; of commands that are all alike everything is shown."""
    found, differs = split_commands({at: words.split() for at, words in enumerate(commands)})

    assert (found, [*differs.values()]) == (tuple(common.split()), [tuple(words.split()) for words in rest])


def test_the_job_script_says_what_differs_where_it_can() -> None:
    """Then tasks that wait have arguments too, and those that all have in common so far are none of them."""
    points = {at: ("--lr", "1", "--seed", str(at)) for at in range(3)}
    commands = {1: ("t.py", "-x", *points[1])}

    assert point_arguments(commands, points) == (("t.py", "-x"), points)
    assert point_arguments({}, points) == ((), points)
    assert point_arguments(commands, {}) == (("t.py",), {1: ("-x", *points[1])})


# ---- asking Slurm


@pytest.mark.parametrize(
    ("task", "numbers"),
    [
        ("3", (3,)),
        ("4-7,9%2", (4, 5, 6, 7, 9)),
        ("0-10:5", (0, 5, 10)),
        ("[1-3,5]", (1, 2, 3, 5)),
        ("1,3,...", (1, 3)),
        ("5-3", ()),
        ("1-9:0", tuple(range(1, 10))),
        ("", ()),
        ("x", ()),
    ],
)
def test_tasks_of_a_record(task: str, numbers: tuple[int, ...]) -> None:
    assert task_numbers(task) == numbers


def test_no_list_of_tasks_fills_the_memory() -> None:
    assert len(task_numbers("0-99999999999,5-99999999999")) == 4_000_001


def asked(
    monkeypatch: pytest.MonkeyPatch,
    records: Sequence[JobRecord] | None,
    accounting: Sequence[JobRecord] = (),
    known: Sequence[int] = (),
) -> tuple[dict[int, str], bool, bool]:
    """Ask; returns the states, whether nobody could be asked, and whether accounting was."""
    questions: list[str] = []

    def ask_accounting(job: str, _: float) -> tuple[JobRecord, ...]:
        questions.append(job)
        return tuple(accounting)

    monkeypatch.setattr(slurm_query, "which", lambda _: "/bin/scontrol")
    monkeypatch.setattr(controller, "ask_jobs", lambda *_: None if records is None else tuple(records))
    monkeypatch.setattr(controller, "ask_accounting", ask_accounting)
    answer = ask_array("12", known)
    assert all(record.label == f"12_{number}" for number, record in answer.records.items())
    return {number: record.state for number, record in answer.records.items()}, bool(answer.blind), bool(questions)


def test_an_array_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One record stands for all tasks that wait; of these no output file is known."""
    records = [
        JobRecord("12", "PENDING", task="2-4%1", output="/w/x-12_4294967294.out"),
        JobRecord("14", "RUNNING", task="1", output="/w/x-12_1.out"),
    ]
    monkeypatch.setattr(slurm_query, "which", lambda _: "/bin/scontrol")
    monkeypatch.setattr(controller, "ask_jobs", lambda *_: tuple(records))
    monkeypatch.setattr(controller, "ask_accounting", lambda *_: pytest.fail("accounting is asked"))
    found = ask_array("12", {1, 2}).records

    assert {number: (one.state, one.output) for number, one in found.items()} == {
        1: ("RUNNING", "/w/x-12_1.out"),
        **dict.fromkeys((2, 3, 4), ("PENDING", "")),
    }


def test_accounting_knows_what_the_controller_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked only where something is missing, or where somebody has cancelled a task."""
    running = JobRecord("14", "RUNNING", task="1")
    told = [JobRecord("12_0", "FAILED", task="0"), JobRecord("12_1", "PENDING", task="1")]

    assert asked(monkeypatch, [running], told, known=[1]) == ({1: "RUNNING"}, False, False)
    assert asked(monkeypatch, [running], told, known=[0, 1]) == ({0: "FAILED", 1: "RUNNING"}, False, True)
    assert asked(monkeypatch, [], told) == ({0: "FAILED", 1: "PENDING"}, False, True)
    assert asked(monkeypatch, [replace(running, state="CANCELLED")], told, known=[1])[2]
    assert asked(monkeypatch, None, told, known=[1]) == ({}, True, False)


# ---- an array


class Slurm:
    """Says of an array what it was told to, and counts the questions."""

    def __init__(self, *records: JobRecord, blind: str = "") -> None:
        self.answer = ArrayAnswer({int(record.task): record for record in records}, blind)
        self.asked = 0

    def __call__(self, array: str, _known: object) -> ArrayAnswer:
        assert array == "12"
        self.asked += 1
        return self.answer


def task(number: int, state: str, **more: Any) -> JobRecord:
    label = f"12_{number}"
    return JobRecord(str(100 + number), state, **{"task": str(number), "label": label, **more})


def look(root: Path, slurm: Slurm, script: str | None = SCRIPT) -> ArrayStatus:
    return ArrayReader("12", [root], ask=slurm, ask_script=lambda _: script).look(NOW)


def made(root: Path, number: int, ending: str, **facts: Any) -> Path:
    facts = {"nodes": 1, "per_node": 2, "attempts": 1, "begin": NOW - 100, "ending": ending, **facts}
    return histories.write(root / f"12_{number}.0", **facts)


@pytest.fixture
def array(tmp_path: Path) -> ArrayStatus:
    """Return an array of each kind of point: done, failed, running, waiting, and one that never came to hpc-launch."""
    made(tmp_path, 0, "done")
    made(tmp_path, 1, "failed")
    made(tmp_path, 2, "")
    records = [
        task(0, "COMPLETED", output="/w/train-12_0.out"),
        task(1, "FAILED", exit_code=1, output="/w/train-12_1.out"),
        task(2, "RUNNING", output="/w/train-12_2.out"),
        task(3, "PENDING", reason="Priority"),
        task(4, "FAILED", exit_code=127, output="/w/train-12_4.out"),
    ]
    return look(tmp_path, Slurm(*records))


def test_each_kind_of_point_has_its_state_and_result(array: ArrayStatus) -> None:
    """By the words of a single job's status."""
    found = [(point.name, point.status.standing.state, point.status.standing.status) for point in array.points]

    assert found == [
        ("12_0", State.DONE, 0),
        ("12_1", State.FAILED, 1),
        ("12_2", State.RUNNING, None),
        ("12_3", State.WAITING, None),
        ("12_4", State.FAILED, 127),
    ]
    assert [point.arguments for point in array.points] == [("--lr", f"{number}e-3") for number in range(5)]
    assert (array.over, array.exit_status) == (False, None)


def test_the_table_has_a_line_for_each_point(array: ArrayStatus, tmp_path: Path) -> None:
    """Where the files are is said once, and their names in the lines; so is why points wait."""
    lines = point_table.array_text(array).splitlines()
    head, rows = lines[: lines.index("")], lines[lines.index("") + 2 :]

    assert lines_mention(
        head, "job 12", "points 5 done 1 failed 2 running 1 waiting 1", "waiting Priority", f"files {tmp_path}", "/w"
    )
    assert lines_mention(
        rows,
        "12_0 --lr 0e-3 COMPLETED done 100 12_0.0 train-12_0.out",
        "12_1 --lr 1e-3 FAILED failed ValueError: 1 12_1.0 train-12_1.out",
        "12_2 --lr 2e-3 RUNNING running 12_2.0 train-12_2.out",
        "12_3 --lr 3e-3 PENDING waiting Priority",
        "12_4 --lr 4e-3 FAILED failed train-12_4.out",
    )


def test_what_an_earlier_attempt_failed_of_is_no_cause_of_the_end(tmp_path: Path) -> None:
    """It was started again, and then it was something else that ended it."""
    endings = {0: ("stopped", "CANCELLED"), 1: ("", "TIMEOUT"), 2: ("failed", "FAILED")}
    for number, (ending, _) in endings.items():
        made(tmp_path, number, ending, attempts=2)
    found = look(tmp_path, Slurm(*(task(number, state) for number, (_, state) in endings.items())))
    *others, failed = point_table.array_text(found).splitlines()[-3:]

    assert [point.status.failure is not None for point in found.points] == [True, True, True]
    assert mentions(failed, "12_2", "ValueError")
    assert [line.split()[0] for line in others] == ["12_0", "12_1"]
    assert "Error" not in " ".join(others)


def test_an_array_for_programs(array: ArrayStatus, tmp_path: Path) -> None:
    """Every point with all that is known of it."""
    found = json.loads(json.dumps(point_table.array_as_dict(array)))
    failed, waits = found["points"][1], found["points"][3]

    assert (found["job"], found["over"], found["exit_status"], len(found["points"])) == ("12", False, None, 5)
    assert (failed["point"], failed["task"], failed["arguments"]) == ("12_1", 1, ["--lr", "1e-3"])
    assert (failed["state"], failed["exit_status"], failed["slurm"]["state"]) == ("failed", 1, "FAILED")
    assert mentions(failed["failure"]["cause"], "ValueError")
    assert (failed["directory"], failed["output"]) == (str(tmp_path / "12_1.0"), "/w/train-12_1.out")
    assert failed["progress"]["step"] is not None
    assert (waits["state"], waits["directory"], waits["output"], waits["progress"]) == ("waiting", None, None, None)


def test_a_point_that_slurm_runs_does_not_wait(tmp_path: Path) -> None:
    """Also before hpc-launch has written anything, or where the script never calls it."""
    found = look(tmp_path, Slurm(task(0, "RUNNING"), task(1, "PENDING", reason="Priority")))
    runs = next(line for line in point_table.array_text(found).splitlines() if line.startswith("12_0"))

    assert found.counts == {State.RUNNING: 1, State.WAITING: 1}
    assert mentions(runs, "RUNNING", "running (Slurm)", "hpc-launch")


def test_points_without_a_job_script_have_what_their_commands_differ_in(tmp_path: Path) -> None:
    """Whoever wrote the batch script; nobody knows what those get that wait."""
    for number in range(2):
        path = made(tmp_path, number, "done") / "attempt_0/job.json"
        plan = json.loads(path.read_text())
        path.write_text(json.dumps({**plan, "script": ["train.py", "-x", "--seed", str(number)]}))
    found = look(tmp_path, Slurm(task(5, "PENDING")), script=None)

    assert found.command == ("train.py", "-x")
    assert [point.arguments for point in found.points] == [("--seed", "0"), ("--seed", "1"), ()]


def test_secrets_of_a_job_script_are_hidden(tmp_path: Path) -> None:
    script = '    0) set -- "$@" --api-key abc --mine def ;;\n'
    reader = ArrayReader("12", [tmp_path], ["mine"], ask=Slurm(task(0, "PENDING")), ask_script=lambda _: script)

    assert not {"abc", "def"} & {*reader.look(NOW).points[0].arguments}


def test_where_nobody_can_be_asked_the_directories_say_it(tmp_path: Path) -> None:
    """And the line says that others may be missing."""
    made(tmp_path, 0, "done")
    made(tmp_path, 7, "failed")
    found = look(tmp_path, Slurm(blind="nobody there"))

    assert [(point.name, point.status.standing.state) for point in found.points] == [
        ("12_0", State.DONE),
        ("12_7", State.FAILED),
    ]
    assert mentions(point_table.array_text(found), "nobody there")
    assert (found.over, found.exit_status) == (True, 1)


def test_output_files_that_slurm_does_not_tell_any_more(tmp_path: Path) -> None:
    """They are called as those of other tasks, and are named if they are there."""
    made(tmp_path, 0, "done")
    made(tmp_path, 1, "done")
    (tmp_path / "train-12_0.out").touch()
    found = look(tmp_path, Slurm(task(3, "RUNNING", output=str(tmp_path / "train-12_3.out"))))

    assert [Path(point.output).name for point in found.points] == ["train-12_0.out", "", "train-12_3.out"]


def test_a_point_that_is_over_is_read_once(tmp_path: Path) -> None:
    """Until Slurm says something else of it; Slurm is not asked at each look."""
    made(tmp_path, 0, "done")
    made(tmp_path, 1, "")
    slurm = Slurm(task(0, "COMPLETED"), task(1, "RUNNING"))
    reader = ArrayReader("12", [tmp_path], ask=slurm, ask_script=lambda _: None)
    first = reader.look(NOW)
    made(tmp_path, 0, "failed")
    made(tmp_path, 1, "failed")
    second = reader.look(NOW)
    slurm.answer = ArrayAnswer({0: task(0, "RUNNING", restarts=1), 1: task(1, "FAILED")})
    reader._next = 0.0
    third = reader.look(NOW)

    states = [[point.status.standing.state for point in one.points] for one in (first, second, third)]
    assert states == [[State.DONE, State.RUNNING], [State.DONE, State.FAILED], [State.RUNNING, State.FAILED]]
    assert slurm.asked == 2


def test_a_batch_script_may_start_another_run(tmp_path: Path) -> None:
    """As long as Slurm runs it a point is not over, and is read again: also where it has another directory then."""
    made(tmp_path, 0, "done")
    slurm = Slurm(task(0, "RUNNING", batch=True))
    reader = ArrayReader("12", [tmp_path], ask=slurm, ask_script=lambda _: None)
    between = reader.look(NOW)
    histories.write(tmp_path / "12_0.1", nodes=1, per_node=2, attempts=1, begin=NOW - 10, ending="failed")
    second = reader.look(NOW)
    slurm.answer = ArrayAnswer({0: task(0, "FAILED", batch=True)})
    reader._next = 0.0

    assert [one.points[0].status.standing.state for one in (between, second)] == [State.DONE, State.FAILED]
    assert [one.over for one in (between, second, reader.look(NOW))] == [False, False, True]


def test_what_is_written_last_may_come_after_slurms_word(tmp_path: Path) -> None:
    """A point that has just ended is read again, as the files of its nodes may be seen here later."""
    made(tmp_path, 0, "")
    reader = ArrayReader("12", [tmp_path], ask=Slurm(task(0, "COMPLETED", end=NOW - 5)), ask_script=lambda _: None)
    states = [reader.look(NOW).points[0].status.standing.state]
    made(tmp_path, 0, "done")
    states.append(reader.look(NOW + 1).points[0].status.standing.state)

    assert states == [State.UNKNOWN, State.DONE]


def test_points_that_only_the_job_script_tells_of(tmp_path: Path) -> None:
    """The controller has forgotten them, and they have no directory: accounting is asked at the first look."""
    known: list[set[int]] = []

    def ask(_array: str, numbers: set[int]) -> ArrayAnswer:
        known.append(set(numbers))
        forgotten = {0: task(0, "FAILED")} if 0 in numbers else {}
        return ArrayAnswer({**forgotten, 1: task(1, "RUNNING")})

    script = "".join(SCRIPT.splitlines(keepends=True)[:2])
    found = ArrayReader("12", [tmp_path], ask=ask, ask_script=lambda _: script).look(NOW)

    assert [point.name for point in found.points] == ["12_0", "12_1"]
    assert known == [set(), {0, 1}]


# ---- many points


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> ArrayStatus:
    """Return an array of 1,000 points, of which 60 have failed in three ways."""
    root = tmp_path_factory.mktemp("logs")
    kinds = {7: "out of luck", 8: "loss is nan at step {}", 9: "no file {}"}
    records = []
    for number in range(700):
        failed = kinds.get(number % 100) if number < 600 or number % 100 == 9 else None
        more: dict[str, Any] = {"exception": ("ValueError", failed.format(number))} if failed else {}
        made(root, number, "failed" if failed else "done", per_node=1, **more)
        records.append(task(number, "FAILED" if failed else "COMPLETED", output=f"/w/train-12_{number}.out"))
    for number in range(700, 710):
        made(root, number, "", per_node=1)
        records.append(task(number, "RUNNING", output=f"/w/train-12_{number}.out"))
    records += [task(number, "PENDING", reason="JobArrayTaskLimit") for number in range(710, 1000)]
    return look(root, Slurm(*records))


def test_a_thousand_points_are_a_few_lines(thousand: ArrayStatus) -> None:
    """Those that are alike share one, numbers in causes make no difference, and no line is long."""
    lines = point_table.array_text(thousand).splitlines()
    rows = lines[lines.index("") + 2 :]

    assert lines_mention(
        rows,
        "COMPLETED done 681 points",
        "12_[7,107,207,307,407,507] FAILED ValueError: luck",
        "12_[8,108,208,308,408,508] FAILED ValueError: nan",
        "FAILED ValueError: file 7 points",
        "12_[700-709] RUNNING running",
        "12_[710-999] PENDING waiting JobArrayTaskLimit",
    )
    assert max(map(len, lines)) < 240
    assert len(point_table.array_as_dict(thousand)["points"]) == 1000


def test_of_many_kinds_of_points_the_rare_ones_are_shown(thousand: ArrayStatus) -> None:
    """The rest is one line, so that there are never more than forty."""
    points = list(thousand.points)
    for number in range(100):
        status = points[number].status
        cause = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        standing = replace(status.standing, state=State.FAILED)
        points[number] = replace(points[number], status=replace(status, standing=standing, cause=cause))
    lines = point_table.array_text(replace(thousand, points=tuple(points))).splitlines()
    rows = lines[lines.index("") + 2 :]

    assert len(rows) == 40
    assert mentions(rows[-1], "various")


def test_what_points_of_a_line_have_in_common_is_shown(thousand: ArrayStatus) -> None:
    points = tuple(replace(point, arguments=("--lr", "1", "--seed", str(point.number))) for point in thousand.points)
    text = point_table.array_text(replace(thousand, points=points))

    assert "--lr 1 --seed …" in text
    assert "--lr 1 --seed 7" not in text


def test_control_characters_are_shown(array: ArrayStatus) -> None:
    """Whatever a script is given or says, no terminal obeys it."""
    first, *rest = array.points
    status = replace(first.status, standing=replace(first.status.standing, state=State.FAILED), cause="\x1b[2J\nx")
    nasty = replace(first, arguments=("\x1b]0;x\x07", "a\nb"), output="/w/\x1bx", status=status)
    text = point_table.array_text(replace(array, points=(nasty, *rest), command=("a\x1b[31m.py",)))

    assert "\x1b" not in text
    assert len(text.splitlines()) == len(point_table.array_text(array).splitlines())


# ---- the runs of one job


def test_the_runs_of_a_job(tmp_path: Path) -> None:
    """Each is a point, with what its command differs in; Slurm's word on the job is none on a run."""
    for number, ending in enumerate(["done", "failed", "done"]):
        path = histories.write(tmp_path / f"12.{number}", nodes=1, per_node=1, attempts=1, ending=ending)
        plan = json.loads((path / "attempt_0/job.json").read_text())
        (path / "attempt_0/job.json").write_text(json.dumps({**plan, "script": ["ck.py", f"lr={number}"]}))
    last = seen(JobDirectory(tmp_path, "12.2"))
    runs = RunsReader([JobDirectory(tmp_path, f"12.{number}") for number in range(2)]).look(last)
    rows = point_table.runs_text(runs).splitlines()[1:]

    assert lines_mention(rows, "12.0 lr=0 done", "12.1 lr=1 failed 1", "12.2 lr=2 done")
    assert [(point.number, point.output) for point in runs] == [(None, "")] * 3
    assert runs[-1].status is last
