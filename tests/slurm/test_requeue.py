"""Jobs that run in turns: nothing is lost between these, each has one reason, and one is the last."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_launch.inspection import job_report
from hpc_launch.records import history
from tests.cluster import Cluster, ClusterConfig, Job
from tests.cluster.jobs import JobResult
from tests.cluster.releases import DEFAULT, NEWEST, Release
from tests.slurm.jobs_support import DEADLINE, JobTree, clean_environment
from tests.slurm.steps_support import TIME_IS_UP, tree
from tests.support import lines_mention, mentions, wait_for

CHECKOUT = Path(__file__).parents[2]
TEMPLATE = CHECKOUT / "sbatch_templates/requeue.sbatch"
EXAMPLE = CHECKOUT / "examples/digits/train.py"

# How often the long story is told; all but the first are the soak.
REPETITIONS = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(10)]

# Runs the example, with steps as long as the file `pace` says, and notes each in `steps.<rank>`: the attempt's number.
COUNTED = f"""
import os, runpy, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook

file = open(f"steps.{{os.environ['RANK']}}", "a", buffering=1)
register_optimizer_step_post_hook(lambda *_: file.write(os.environ["HPC_LAUNCH_ATTEMPT"] + "\\n"))
sys.argv += ["--step-seconds", Path("pace").read_text()]
runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
"""

# A training without any. Each turn is a step of ten. Its arguments:
#   --last N   turn N ends well by itself; those before wait to be told to leave
#   --fail     fails at once
#   --idle N   makes no progress from turn N on
#   --late     does not leave before it is killed, in turns that are told to
TURNS = """
import os, sys, time
from pathlib import Path
from hpc_launch import runtime

def given(name):
    return int(sys.argv[sys.argv.index(name) + 1]) if name in sys.argv else 1000

runtime.should_stop()
turn = runtime.requeue_count()
if turn < given("--idle"):
    runtime.mark_progress(turn + 1, 10)
Path(f"up.{os.environ.get('SLURM_ARRAY_TASK_ID', '')}.{turn}.{runtime.rank()}").touch()
if "--fail" in sys.argv:
    sys.exit(3)
while turn < given("--last") and not runtime.should_stop(all_ranks=True):
    time.sleep(0.02)
if "--late" in sys.argv and turn < given("--last"):
    time.sleep(3600)
"""


@dataclass(frozen=True)
class Turns:
    """A job that runs again and again.

    Attributes:
        cluster: where.
        job: the job.
        folder: where it runs; its log directory is in there.
    """

    cluster: Cluster
    job: Job
    folder: Path

    @property
    def tree(self) -> JobTree:
        """Its job directory, as there is one for all turns."""
        return JobTree(self.folder / f"logs/{self.job.id}.0")

    def ledger(self) -> list[dict[str, Any]]:
        """What it says of the requeues, moments aside."""
        file = self.tree.path / "requeues.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]

    def why(self) -> list[tuple[str, int, int, bool]]:
        """The reason of each requeue, the run and the attempt that it ended, and whether it counts."""
        return [
            (entry["reason"], entry["restart_count"], entry["attempt"], entry["counted"]) for entry in self.ledger()
        ]

    def ours(self, word: str) -> list[str]:
        """What hpc-launch itself said about something."""
        return [line for line in re.findall(r"hpc-launch: (.*)", self.job.output()) if mentions(line, word)]

    def attempts(self) -> list[int]:
        """The attempts in the job directory."""
        return sorted(int(path.name.removeprefix("attempt_")) for path in self.tree.path.glob("attempt_*"))

    def requeues(self) -> tuple[int, int]:
        """How often it was requeued, by the controller's record and log, and how often that was refused."""
        log = (self.cluster.run_dir / "log/slurmctld.log").read_text()
        words = "Requeuing JobId={}\\b", "Requeue of JobId={}\\b.* returned an error"
        done, refused = (len(re.findall(word.format(self.job.id), log)) for word in words)
        assert done == int(self.job.record()["Restarts"]), log
        return done, refused

    def wait(self) -> JobResult:
        """Wait for the end of its last turn."""
        return self.job.wait(DEADLINE)

    def describe(self) -> str:
        """Tell everything."""
        return f"{self.job.describe()}\n{self.ledger()}\n{tree(self.folder / 'logs')}"


def submit(cluster: Cluster, folder: Path, launcher: str, *options: str) -> Turns:
    """Submit a job of two ranks on each of its nodes.

    Args:
        cluster: Where.
        folder: Where it runs.
        launcher: Options of hpc-launch, and arguments of the script.
        options: Of sbatch.
    """
    folder.mkdir(exist_ok=True)
    (folder / "turns.py").write_text(TURNS)
    script = f"trap : TERM\nsrun hpc-launch --nproc-per-node=2 {launcher}"
    with clean_environment():
        return Turns(cluster, cluster.sbatch(script, "--open-mode=append", *options, cwd=folder), folder)


def await_up(turns: Turns, turn: int, ranks: int) -> None:
    """Wait until all ranks of a turn are there."""
    task = turns.job.id.partition("_")[2]
    names = [f"up.{task}.{turn}.{rank}" for rank in range(ranks)]
    wait_for(lambda: all((turns.folder / name).exists() for name in names), DEADLINE, turns.describe)


# --- a training, with and without interruptions


def train(cluster: Cluster, folder: Path, template: str, nodes: str, pace: float, *, array: bool = False) -> Turns:
    """Submit the example by a template, on two nodes of two ranks, as a job or as a task of an array."""
    folder.mkdir()
    (folder / "counted.py").write_text(COUNTED)
    (folder / "pace").write_text(str(pace))
    (folder / "job.sbatch").write_text(template)
    options = [
        f"--nodelist={nodes}",
        *shlex.split("--nodes=2 --gpus-per-node=2 --cpus-per-task=2 --mem=1000 --time=30"),
        *(["--array=7"] if array else []),
    ]
    with clean_environment():
        said = cluster.run(["sbatch", "--parsable", *options, "job.sbatch", "counted.py"], cwd=folder).stdout
    return Turns(cluster, Job(cluster, said.strip() + "_7" * array), folder)


def steps(turns: Turns, rank: int = 0) -> Counter[int]:
    """How many steps a rank has done, by attempt."""
    file = turns.folder / f"steps.{rank}"
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


def await_steps(turns: Turns, attempt: int, count: int) -> None:
    """Wait until an attempt has done some steps."""
    wait_for(lambda: steps(turns)[attempt] >= count, DEADLINE, turns.describe)


def preempt(turns: Turns, nodes: str) -> None:
    """Have another job take the nodes for a moment."""
    turns.cluster.sbatch("exit 0", "--partition=urgent", f"--nodelist={nodes}", "--exclusive").wait(DEADLINE)


def update(turns: Turns, change: str) -> None:
    """Change the job."""
    turns.cluster.run(["scontrol", "update", f"jobid={turns.job.id}", change])


def score(turns: Turns) -> str:
    """What the example says in the end."""
    [line] = re.findall(r"digits: (accuracy .*)", turns.job.output())
    return str(line)


def checkpoint(turns: Turns) -> dict[str, Any]:
    """The last one."""
    state: dict[str, Any] = torch.load(turns.folder / "checkpoints/digits.pt", weights_only=True)
    return state


def places(turns: Turns, words: str) -> list[int]:
    """The steps of which rank 0 said something, in order."""
    return [int(number) for number in re.findall(rf"digits: {words} after step (\d+)", turns.job.output())]


def check_same(whole: Turns, parts: Turns) -> None:
    """See that two trainings came to the same result, to the last bit, by as many steps."""
    assert score(whole) == score(parts), parts.describe()
    one, other = checkpoint(whole), checkpoint(parts)
    assert (one["step"], one["epoch"]) == (other["step"], other["epoch"]) == (440, 20)
    assert one["model"].keys() == other["model"].keys()
    different = [name for name, values in one["model"].items() if not torch.equal(values, other["model"][name])]
    assert not different, parts.describe()


def check_no_step_is_lost(parts: Turns) -> None:
    """See that all ranks left after the same steps, went on there, and did each step once."""
    left = places(parts, "told to leave")
    assert left == places(parts, "going on"), parts.describe()
    done = [end - begin for begin, end in zip([0, *left], [*left, 440], strict=True)]
    assert [steps(parts, rank) for rank in range(4)] == [Counter(dict(enumerate(done)))] * 4, parts.describe()
    assert [entry["step"] for entry in parts.ledger()] == left, parts.describe()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_interruptions_change_nothing(some_cluster: Cluster, tmp_path: Path, repetition: int) -> None:
    """Preempted twice, and at its time limit once: the same network after as many steps, none of them done twice.

    That holds for a job, and for a task of an array.
    """
    one, two, *others = some_cluster.nodes
    nodes, noticed = f"{one},{two}", repetition % 2 == 1
    template = TEMPLATE.read_text()
    if not noticed:
        template = re.sub(r"(?m)^#SBATCH --signal=.*\n", "", template)
    whole = train(some_cluster, tmp_path / "whole", template, ",".join(others), 0)
    array = repetition % 4 < 2
    parts = train(some_cluster, tmp_path / "parts", template, nodes, 0.2, array=array)
    for attempt in (0, 1):
        await_steps(parts, attempt, 5 + 3 * repetition)
        preempt(parts, nodes)
    await_steps(parts, 2, 5)
    (parts.folder / "pace").write_text("0")
    # The controller looks at time limits every half a minute; the notice of the template comes a minute or two before
    # the limit, from which the turn is not to be nearer, however long it has taken to begin.
    minutes, seconds = map(int, parts.job.record()["RunTime"].split(":")[-2:])
    update(parts, f"timelimit={minutes + 1 + (seconds > 0)}" if noticed else TIME_IS_UP)
    wait_for(lambda: len(parts.ledger()) == 3, DEADLINE, parts.describe)
    update(parts, "timelimit=30")
    result = parts.wait()

    assert (result.state, result.exit_code) == ("COMPLETED", 0), parts.describe()
    assert whole.wait().state == "COMPLETED", whole.describe()
    check_same(whole, parts)
    check_no_step_is_lost(parts)
    reason = "notice" if noticed else "timeout"
    expected = [("preempt", 0, 0, False), ("preempt", 1, 1, False), (reason, 2, 2, True)]
    assert parts.why() == expected, parts.describe()
    assert len(parts.ours("requeued 1 10")) == 1, parts.describe()
    assert len(parts.ours("3 requeues 2 nodes 4 ranks")) == 1, parts.describe()
    assert parts.requeues() == (3, 0)
    logs = [f"attempt_{n}/{(one, two)[rank // 2]}/rank_{rank}.out" for n in range(4) for rank in range(4)]
    assert parts.tree.files("rank_*.out") == sorted(logs), parts.describe()


# --- who runs again, and who does not


def test_the_tasks_of_an_array_come_back_one_by_one(some_cluster: Cluster, tmp_path: Path) -> None:
    """After a notice to one task that task is requeued, the other works on, until it is its turn."""
    launcher = "--requeue on-notice turns.py --last 1"
    array = submit(some_cluster, tmp_path, launcher, "--array=3-4", "--nodes=1", "--time=30")
    first, second = (Turns(some_cluster, Job(some_cluster, f"{array.job.id}_{task}"), tmp_path) for task in (3, 4))
    for turns in (first, second):
        await_up(turns, 0, 2)
    first.job.signal("USR1")
    assert first.wait().state == "COMPLETED", first.describe()
    assert (first.requeues(), second.requeues(), second.job.state()) == ((1, 0), (0, 0), "RUNNING"), second.describe()
    second.job.signal("USR1")
    assert second.wait().state == "COMPLETED", second.describe()

    for turns in (first, second):
        assert turns.requeues() == (1, 0), turns.describe()
        assert turns.why() == [("notice", 0, 0, True)], turns.describe()
        assert turns.attempts() == [0, 1], turns.describe()
        assert len(turns.ours("requeued 1 10 notice")) == 1, turns.describe()


def test_a_job_that_must_not_run_again(cluster: Cluster, tmp_path: Path) -> None:
    """With --no-requeue the job says that Slurm forbids it, and ends as it would have."""
    turns = submit(cluster, tmp_path, "--requeue on-notice turns.py", "--nodes=1", "--no-requeue")
    await_up(turns, 0, 2)
    turns.job.signal("USR1")
    result = turns.wait()

    assert (result.state, result.exit_code) == ("COMPLETED", 0), turns.describe()
    [line] = turns.ours("requeued")
    assert re.match("not requeued: .*Requested operation is presently disabled", line), line
    assert (turns.requeues(), turns.ledger(), turns.attempts()) == ((0, 1), [], [0]), turns.describe()


def test_failures_are_counted(cluster: Cluster, tmp_path: Path) -> None:
    """With --max-requeues 1 the second failure is the last, with the worker's status."""
    turns = submit(cluster, tmp_path, "--requeue on-failure --max-requeues 1 turns.py --fail", "--nodes=2")
    result = turns.wait()

    assert (result.state, result.exit_code) == ("FAILED", 3), turns.describe()
    one, other = turns.ours("requeued")
    assert (mentions(one, "requeued 1"), mentions(other, "--max-requeues 1")) == (True, True), turns.describe()
    assert (turns.requeues(), turns.attempts()) == ((1, 0), [0, 1]), turns.describe()
    assert turns.why() == [("failure", 0, 0, True)], turns.describe()
    told = job_report.report_on_job(turns.tree.path).report
    assert (told.verdict.word, [line.requeued for line in told.attempts]) == ("Failed", ["failure", ""])
    assert told.overview is not None
    assert [flag.label for flag in told.overview.flags] == ["requeued"]
    assert ["cause" in {box.style for box in row.boxes} for row in told.overview.rows].count(True) >= 1


def test_a_job_that_gets_nowhere_is_not_run_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    """After two runs without progress it stops, with the worker's status."""
    turns = submit(cluster, tmp_path, "--requeue on-failure turns.py --fail --idle 1", "--nodes=1")
    result = turns.wait()

    assert (result.state, result.exit_code) == ("FAILED", 3), turns.describe()
    told = ("requeued 1 10", "requeued 2 10", "requeued 2 runtime.mark_progress")
    assert lines_mention(turns.ours("requeued"), *told), turns.describe()
    assert [entry["progressed"] for entry in turns.ledger()] == [True, False], turns.describe()
    assert (turns.requeues(), turns.attempts()) == ((2, 0), [0, 1, 2]), turns.describe()


# As TURNS, without a word about progress: waits for the file `fail` in the first turn, and fails.
SILENT = """
import os, sys, time
from pathlib import Path

turn = int(os.environ.get("SLURM_RESTART_COUNT", 0))
Path(f"up..{turn}.{os.environ['RANK']}").touch()
while turn == 0 and not Path("fail").exists():
    time.sleep(0.02)
sys.exit(3)
"""


def test_the_same_failure_is_not_tried_for_ever(any_cluster: Cluster, tmp_path: Path) -> None:
    """A script that marks no progress and fails at once in the same way runs twice."""
    (tmp_path / "silent.py").write_text(SILENT)
    (tmp_path / "fail").touch()
    turns = submit(any_cluster, tmp_path, "--requeue on-failure silent.py", "--nodes=1")
    result = turns.wait()

    assert (result.state, result.exit_code) == ("FAILED", 3), turns.describe()
    one, other = turns.ours("requeued")
    assert mentions(one, "requeued 1 10"), turns.describe()
    assert mentions(other, "requeued 2 --requeue-patience"), turns.describe()
    assert (turns.requeues(), turns.attempts()) == ((1, 0), [0, 1]), turns.describe()


# Its first attempt has no handler for a notice, and fails when the file `fail` is there; the second leaves when told.
DEAF_AT_FIRST = """
import os, sys, time
from pathlib import Path
from hpc_launch import runtime

if runtime.requeue_count():
    sys.exit()
if os.environ["HPC_LAUNCH_ATTEMPT"] == "0":
    Path("up").touch()
    while not Path("fail").exists():
        time.sleep(0.02)
    sys.exit(3)
while not runtime.should_stop(all_ranks=True):
    time.sleep(0.02)
"""


def test_a_notice_that_only_the_next_attempt_hears(any_cluster: Cluster, tmp_path: Path) -> None:
    """Nobody has a handler for it when it comes; workers that have one later leave, and the job runs again."""
    (tmp_path / "deaf.py").write_text(DEAF_AT_FIRST)
    turns = submit(any_cluster, tmp_path, "--max-restarts=1 --requeue on-notice deaf.py", "--nodes=1")
    wait_for((tmp_path / "up").exists, DEADLINE, turns.describe)
    turns.job.signal("USR1")
    wait_for(lambda: turns.ours("SIGUSR1"), DEADLINE, turns.describe)
    (tmp_path / "fail").touch()
    result = turns.wait()

    assert (result.state, result.exit_code) == ("COMPLETED", 0), turns.describe()
    assert turns.why() == [("notice", 0, 1, True)], turns.describe()
    assert lines_mention(turns.ours("SIGUSR1")[:2], "handler runtime.should_stop", "handler now"), turns.describe()
    notices = history.read_history(turns.tree.path).notices
    assert [(told.attempt, bool(told.hosts), bool(told.unheard)) for told in notices] == [
        (0, False, True),
        (1, True, False),
    ], notices


AWAY = [pytest.param(number, marks=[pytest.mark.soak] if number else []) for number in range(10)]


@pytest.mark.parametrize("repetition", AWAY)
@pytest.mark.parametrize("how", ["ended", "frozen"])
@pytest.mark.usefixtures("slurm_host")
def test_while_the_controller_is_away(tmp_path: Path, how: str, repetition: int) -> None:
    """A job that fails while slurmctld does not answer is requeued once when it does, whether it was asked or not."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "silent.py").write_text(SILENT)
    with Cluster(ClusterConfig(nodes=1, release=NEWEST if repetition % 2 else DEFAULT)) as cluster:
        turns = submit(cluster, folder, "--requeue on-failure silent.py", "--nodes=1")
        wait_for((folder / "up..0.0").exists, DEADLINE, turns.describe)
        wait_for(lambda: [*folder.glob("logs/*.*/end_time.json")], DEADLINE, turns.describe)
        waits = "does not answer"
        if how == "ended":
            cluster.end_controller()
            (folder / "fail").touch()
            wait_for(lambda: waits in (folder / f"slurm-{turns.job.id}.out").read_text(), DEADLINE, "nothing is said")
            cluster.start_controller()
        else:
            with cluster.frozen_controller():
                (folder / "fail").touch()
                wait_for(
                    lambda: waits in (folder / f"slurm-{turns.job.id}.out").read_text(), DEADLINE, "nothing is said"
                )
        result = turns.wait()
        assert (result.state, result.exit_code) == ("FAILED", 3), turns.describe()
        assert turns.requeues()[0] == 1, turns.describe()
        assert turns.why() == [("failure", 0, 0, True)], turns.describe()
        assert turns.attempts() == [0, 1], turns.describe()


HETEROGENEOUS = """\
#SBATCH --nodes=1
#SBATCH hetjob
#SBATCH --nodes=1
trap : TERM
srun --het-group=0,1 hpc-launch --nproc-per-node=2 --requeue on-notice turns.py --last 1
"""


def test_a_heterogeneous_job_comes_back_as_a_whole(some_cluster: Cluster, tmp_path: Path) -> None:
    """One request, for the leader, has all components run again."""
    (tmp_path / "turns.py").write_text(TURNS)
    with clean_environment():
        turns = Turns(some_cluster, some_cluster.sbatch(HETEROGENEOUS, "--open-mode=append", cwd=tmp_path), tmp_path)
    await_up(turns, 0, 4)
    turns.job.signal("USR1")
    result = turns.wait()

    assert (result.state, result.exit_code) == ("COMPLETED", 0), turns.describe()
    assert turns.why() == [("notice", 0, 0, True)], turns.describe()
    assert turns.attempts() == [0, 1], turns.describe()
    assert len(turns.tree.files("attempt_1/*/rank_*.out")) == 4, turns.describe()


def test_where_a_preemption_cancels(any_release: Release, tmp_path: Path) -> None:
    """With PreemptMode=CANCEL Slurm would not run the job again, and hpc-launch has it do so."""
    with Cluster(ClusterConfig(nodes=2, release=any_release, extra=("PreemptMode=CANCEL",))) as cluster:
        turns = submit(cluster, tmp_path / "again", "--requeue on-preempt turns.py --last 1", "--nodes=1")
        await_up(turns, 0, 2)
        preempt(turns, ",".join(cluster.nodes))
        result = turns.wait()
        assert (result.state, result.exit_code) == ("COMPLETED", 0), turns.describe()
        assert turns.why() == [("preempt", 0, 0, False)], turns.describe()
        assert turns.requeues() == (1, 0), turns.describe()

        turns = submit(cluster, tmp_path / "once", "turns.py", "--nodes=1")
        await_up(turns, 0, 2)
        preempt(turns, ",".join(cluster.nodes))
        assert turns.wait().state == "PREEMPTED", turns.describe()
        assert (turns.ledger(), turns.requeues()) == ([], (0, 0)), turns.describe()


@pytest.mark.usefixtures("slurm_host")
def test_where_slurm_signals_all_processes(tmp_path: Path) -> None:
    """With proctrack/linuxproc the scontrol that asks for the requeue is signalled as well.

    Nor does it matter that workers need all the time that there is at the limit.
    """
    with Cluster(ClusterConfig(nodes=2, proctrack="linuxproc", kill_wait=10)) as cluster:
        turns = submit(cluster, tmp_path / "notice", "--requeue on-notice turns.py --last 1", "--nodes=2", "--time=30")
        await_up(turns, 0, 4)
        turns.job.signal("USR1")
        assert turns.wait().state == "COMPLETED", turns.describe()
        assert (turns.why(), turns.requeues()) == ([("notice", 0, 0, True)], (1, 0)), turns.describe()

        launcher = "--requeue on-timeout turns.py --last 1 --late"
        turns = submit(cluster, tmp_path / "limit", launcher, "--nodes=1", "--time=30")
        await_up(turns, 0, 2)
        update(turns, TIME_IS_UP)
        wait_for(turns.ledger, DEADLINE, turns.describe)
        update(turns, "timelimit=30")
        assert turns.wait().state == "COMPLETED", turns.describe()
        assert (turns.why(), turns.requeues()) == ([("timeout", 0, 0, True)], (1, 0)), turns.describe()
