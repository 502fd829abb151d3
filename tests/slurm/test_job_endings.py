"""Console, status and report say in Slurm's words what ended a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest

from hpc_launch.inspection import job_report
from tests.cluster import Cluster
from tests.slurm.jobs_support import DEADLINE, clean_environment
from tests.slurm.signals_support import Running, await_up, submit
from tests.slurm.steps_support import TIME_IS_UP
from tests.support import mentions, wait_for


@dataclass(frozen=True)
class End:
    """A way to end a job, and what is to be said of it.

    Attributes:
        bring: ends it.
        state: what Slurm calls that.
        words: what the console, status and the report are to mention.
        not_words: what they are not to mention.
        nodes: of the job.
        console: whether the console outlives the end: srun is gone with the script.
    """

    bring: Callable[[Running], None]
    state: str
    words: str
    not_words: str = "scancel"
    nodes: int = 1
    console: bool = True


def scontrol(*words: str) -> Callable[[Running], None]:
    """Return what updates something; `{job}` stands for the job."""

    def bring(running: Running) -> None:
        running.cluster.run(["scontrol", "update", *(word.format(job=running.job.id) for word in words)])

    return bring


ENDS: Mapping[str, End] = {
    "limit": End(scontrol("jobid={job}", TIME_IS_UP), "TIMEOUT", "time limit"),
    "cancelled": End(lambda running: running.job.cancel(), "CANCELLED", "cancelled by root scancel", "limit"),
    "signalled": End(lambda running: running.job.signal("TERM"), "FAILED", "stopped by SIGTERM"),
    "script": End(lambda running: running.job.signal("KILL", "--batch"), "FAILED", "script ended", console=False),
    "node": End(scontrol("nodename=gpu002", "state=down", "reason=test"), "NODE_FAIL", "node failure", nodes=2),
}


@pytest.fixture(scope="module")
def ended(any_accounting_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Running]:
    """Return a job that was ended in each way; those of one node run together."""
    top = tmp_path_factory.mktemp("ends")
    found = {}
    for some in (["limit", "cancelled"], ["signalled", "script"], ["node"]):
        for name in some:
            options = ("--no-requeue", "--time=30")
            found[name] = submit(any_accounting_cluster, top / name, "--on SIGTERM 1", *options, nodes=ENDS[name].nodes)
        await_up(*(found[name] for name in some))
        for name in some:
            ENDS[name].bring(found[name])
        for name in some:
            assert found[name].job.wait(DEADLINE).state == ENDS[name].state, found[name].describe()
    any_accounting_cluster.run(["scontrol", "update", "nodename=gpu002", "state=resume"], check=False)
    return found


@pytest.mark.parametrize("name", ENDS)
def test_it_is_said_in_slurm_s_words(ended: Mapping[str, Running], name: str) -> None:
    """On the console when it comes, and afterwards to whoever asks, as long as there are records."""
    running, end = ended[name], ENDS[name]
    console = "\n".join(running.ours)
    [job] = [path for path in (running.folder / "logs").iterdir() if not path.is_symlink()]
    with clean_environment():

        def status() -> str:
            asked = ["hpc-launch", "status", "--log-dir", str(running.folder / "logs"), running.job.id]
            return running.cluster.run(asked, check=False).stdout

        wait_for(lambda: mentions(status(), *end.words.split()), DEADLINE, status)
    told = job_report.report_on_job(job).report
    heard = [console] if end.console else []
    for text in (*heard, status(), told.verdict.sentence, " ".join(one.text for one in told.story)):
        assert mentions(text, *end.words.split()), (text, running.describe())
        assert end.not_words not in text, text
