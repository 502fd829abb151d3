"""What a job leaves behind: its directory, and its console."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, Ended, ended, run_commands, run_job, submit
from tests.support import LEAVE, mentions, wait_for

# Writes many lines to both streams, in pieces, so that a line is often only half there.
TALK = """
import os, sys

rank = os.environ["RANK"]
for number in range(60):
    for stream in (sys.stdout, sys.stderr):
        stream.write(f"{stream.name} {rank} {number} ")
        stream.flush()
        stream.write("x" * 300 + "end\\n")
        stream.flush()
sys.stdout.write("no end of line")
"""
LINE = re.compile(r"\[(?P<host>gpu\d{3}):(?P<rank>\d+)\] (?P<text>.*)")
WHOLE = re.compile(r"<std(out|err)> \d+ \d+ x{300}end|no end of line")


@pytest.fixture(scope="module")
def talk(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Workers that talk a lot, at the same time."""
    folder = tmp_path_factory.mktemp("talk")
    (folder / "talk.py").write_text(TALK)
    (folder / "hello.py").write_text("import os, sys\nprint('hello')" + LEAVE)
    commands = {
        "all": "srun hpc-launch --nproc-per-node 4 talk.py",
        "some": "srun hpc-launch --nproc-per-node 2 --console 0,3 hello.py",
        "many": "srun hpc-launch --nproc-per-node 9 hello.py",
    }
    return run_commands(cluster, folder, commands, "--nodes=2")


def shown(output: str) -> Counter[tuple[str, int]]:
    """Count the lines of the console by host and rank."""
    return Counter((match["host"], int(match["rank"])) for match in map(LINE.fullmatch, output.splitlines()) if match)


def test_the_console_shows_whole_lines_and_whose_they_are(talk: dict[str, Ended]) -> None:
    """Lines of eight ranks on two nodes come whole, each after [HOST:RANK], none lost, though written in pieces."""
    step = talk["all"]
    assert step.status == 0, step.output
    assert shown(step.output) == {(f"gpu{1 + rank // 4:03d}", rank): 121 for rank in range(8)}
    texts = [match["text"] for match in map(LINE.fullmatch, step.output.splitlines()) if match]
    assert [text for text in texts if not WHOLE.fullmatch(text)] == []


def test_the_console_shows_nothing_but_workers_and_the_launcher(talk: dict[str, Ended]) -> None:
    """Every line is a rank's or hpc-launch's own; or srun's, which says so when it had to wait for the step before."""
    lines = [line for step in talk.values() for line in step.output.splitlines()]
    assert [
        line for line in lines if not LINE.fullmatch(line) and not line.startswith(("hpc-launch: ", "srun: "))
    ] == []


def test_the_console_shows_the_ranks_that_were_asked_for(talk: dict[str, Ended]) -> None:
    """--console 0,3 shows those, by their number among all ranks."""
    assert shown(talk["some"].output) == {("gpu001", 0): 1, ("gpu002", 3): 1}


def test_the_console_shows_rank_0_alone_of_many(talk: dict[str, Ended]) -> None:
    """More ranks than a person can follow are in the files; the console shows the first."""
    assert shown(talk["many"].output) == {("gpu001", 0): 1}
    assert len(talk["many"].tree.files("rank_*.out")) == 18


def test_files_have_what_each_rank_wrote(talk: dict[str, Ended]) -> None:
    """Each stream of each rank is in its own file, complete and without prefixes."""
    for rank in range(8):
        base = talk["all"].tree.path / f"attempt_0/gpu{1 + rank // 4:03d}/rank_{rank}"
        lines = [f"{rank} {number} {'x' * 300}end\n" for number in range(60)]
        expected = "".join(f"<stdout> {line}" for line in lines) + "no end of line"
        assert base.with_suffix(".out").read_text() == expected
        assert base.with_suffix(".err").read_text() == "".join(f"<stderr> {line}" for line in lines)


def test_latest_leads_to_the_last_step_and_its_last_attempt(talk: dict[str, Ended]) -> None:
    """logs/latest is the job directory, and latest in that is the attempt."""
    for step in talk.values():
        tree = step.tree
        assert (tree.path.parent / "latest").readlink() == Path(tree.path.name)
        assert (tree.path / "latest").readlink() == Path("attempt_0")


def test_the_plan_as_run_is_written_down(talk: dict[str, Ended]) -> None:
    """job.json has what was run and what was derived, with origins."""
    step = talk["all"]
    plan = step.tree.plan()
    assert (plan["script"], plan["hosts"]) == (["talk.py"], "gpu[001-002]")
    assert plan["settings"]["nproc_per_node"] == {"value": "4", "origin": "flag"}
    assert plan["derived"]["nnodes"] == {"value": "2", "origin": "Slurm step"}
    assert plan["run_id"].startswith(f"{step.job.id}.")


@pytest.mark.parametrize("node", [1, 2])
def test_each_node_writes_down_what_happened(talk: dict[str, Ended], node: int) -> None:
    """events.jsonl of a node has the run, the attempt, start and end of each worker there, and how it ended."""
    events = [event for event in talk["all"].tree.events(f"gpu{node:03d}") if event["event"] != "binding"]
    started, ended = (
        [event for event in events if event["event"] == f"worker {what}"] for what in ("started", "ended")
    )
    names = ["run", "attempt", *["worker started"] * 4, "clock", *["worker ended"] * 4, "round ended", "run ended"]
    assert [event["event"] for event in events] == names
    assert [event["rank"] for event in started] == list(range(4 * node - 4, 4 * node))
    assert {event["rank"]: (event["exitcode"], event["told"]) for event in ended} == {
        event["rank"]: (0, "") for event in started
    }
    assert all(event["usage"]["max_rss"] > 1 << 20 for event in ended)
    assert (events[-2]["ending"], events[-1]["status"]) == ("done", 0)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)


def test_a_failure_is_shown_with_the_end_of_what_the_worker_wrote(cluster: Cluster, tmp_path: Path) -> None:
    """The traceback of the worker that failed stands in the job's output, with its file, and so does the cause."""
    (tmp_path / "fails.py").write_text(
        "import os\nif os.environ['RANK'] == '3':\n    raise ValueError('this is why')\n"
    )
    job = run_job(cluster, tmp_path, "srun hpc-launch --nproc-per-node 2 --console 0 fails.py", "--nodes=2")
    assert (job.state, job.status) == ("FAILED", 1), job.job.describe()
    assert [line for line in job.output.splitlines() if mentions(line, "hpc-launch 3 gpu002 1 ValueError")] != []
    path = job.tree.path / "attempt_0/gpu002/rank_3.err"
    assert str(path) in job.output
    assert "ValueError: this is why" in job.output
    failed = [event for event in job.tree.events("gpu002") if event["event"] == "worker ended" and not event["told"]]
    assert [(event["rank"], event["exitcode"]) for event in failed if event["exitcode"]] == [(3, 1)]


def test_a_requeue_goes_on_in_the_same_directory(cluster: Cluster, tmp_path: Path) -> None:
    """After a requeue attempts are numbered on, `latest` follows, and nothing of the first run is overwritten."""
    script = """
        echo "run ${SLURM_RESTART_COUNT:-0}"
        if [ -z "$SLURM_RESTART_COUNT" ]; then set -- --meet met met 2 --sleep 99; fi
        srun hpc-launch --nproc-per-node 1 probe.py "$@"
    """
    job = submit(cluster, tmp_path, script, "--nodes=2", "--open-mode=append")
    attempt = tmp_path / f"logs/{job.id}.0/attempt_0"
    wait_for(lambda: len(list((tmp_path / "met").glob("*"))) == 2, DEADLINE, job.describe)
    first = {path: path.read_text() for path in sorted(attempt.glob("*/rank_*"))}
    cluster.run(["scontrol", "requeue", job.id])
    last = ended(job, tmp_path)
    assert (last.state, job.record()["Restarts"]) == ("COMPLETED", "1"), job.describe()
    # Not at the start of a line: a requeue can end srun in the middle of one.
    assert re.findall(r"run \d$", last.output, re.MULTILINE) == ["run 0", "run 1"]
    tree = last.tree
    assert tree.files("rank_*") == [
        f"attempt_{attempt}/gpu00{1 + rank}/rank_{rank}.{stream}"
        for attempt in range(2)
        for rank in range(2)
        for stream in ("err", "out")
    ]
    assert {path: path.read_text() for path in first} == first
    assert (tree.path / "latest").readlink() == Path("attempt_1")
    for rank, report in tree.reports(attempt=1).items():
        assert report.numbers("RANK", "HPC_LAUNCH_ATTEMPT", "SLURM_RESTART_COUNT") == (rank, 1, 1)
        # torch's word for it counts the starts of this run alone.
        assert report.env["TORCHELASTIC_RESTART_COUNT"] == "0"
    for node in ("gpu001", "gpu002"):
        attempts = [event["attempt"] for event in tree.events(node) if event["event"] == "attempt"]
        assert attempts == [0, 1]


@pytest.fixture(scope="module")
def unwritable(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Steps on two nodes, where the log directory cannot be written on one of them."""
    folder = tmp_path_factory.mktemp("unwritable")
    (folder / "kept").mkdir()
    agent = """
        test $SLURMD_NODENAME != "$1" || mount -t tmpfs -o ro none kept
        hpc-launch --log-dir kept --join-timeout 90 --nproc-per-node 1 probe.py
        status=$?
        echo $status >$1.agent.$SLURM_NODEID
        exit $status
    """
    (folder / "agent.sh").write_text(agent)
    commands = {node: f"srun unshare --mount sh agent.sh {node}" for node in ("gpu001", "gpu002")}
    return run_commands(cluster, folder, commands, "--nodes=2")


@pytest.mark.parametrize("node", ["gpu001", "gpu002"])
def test_a_log_directory_that_one_node_cannot_write_ends_all(unwritable: dict[str, Ended], node: str) -> None:
    """Whichever node it is, all end with status 73 instead of waiting, and one line names it and the directory."""
    step = unwritable[node]
    assert step.status == 73, step.output
    agents = {path.name: int(path.read_text()) for path in step.logs.parent.glob(f"{node}.agent.*")}
    assert agents == {f"{node}.agent.0": 73, f"{node}.agent.1": 73}, step.output
    lines = [line for line in step.ours if "cannot write in" in line]
    assert len(lines) == 1, step.output
    assert node in lines[0]
    assert str(step.logs.parent / "kept") in lines[0]


def test_a_log_directory_that_no_node_can_write_is_said_at_once(cluster: Cluster, tmp_path: Path) -> None:
    """A log directory that is a file ends the job with status 73 and one line."""
    (tmp_path / "file").touch()
    job = run_job(cluster, tmp_path, "srun hpc-launch --log-dir file --nproc-per-node 1 probe.py", "--nodes=2")
    assert (job.state, job.status) == ("FAILED", 73), job.job.describe()
    assert len([line for line in job.ours if "cannot write in" in line]) == 1, job.output
    assert json.dumps(str(tmp_path / "file"))[1:-1] in job.output
