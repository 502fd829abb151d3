"""The questions to Slurm's controller, and what becomes of one that it does not answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_launch.slurm import controller
from hpc_launch.slurm.cluster_rules import read_partition, read_rules
from hpc_launch.slurm.controller import FailedRequest
from hpc_launch.slurm.job import read_job
from tests.support import mentions
from tests.unit.slurm_answers import CONFIG, GRACE, RUNNING

FakeScontrol = Callable[[str], Path]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeScontrol:
    """Return a function that puts a shell script in the place of scontrol, and returns where."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(body: str) -> Path:
        path = tmp_path / "scontrol"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return put


def test_questions_are_put_in_a_language_that_can_be_read(scontrol: FakeScontrol, tmp_path: Path) -> None:
    """Users' locales and time formats do not change what is read; the rest of their environment is passed on."""
    scontrol(f'echo "$@ $LC_ALL $SLURM_TIME_FORMAT $HOME" >{tmp_path}/asked; echo "{RUNNING.strip()}"')

    assert read_job(RUNNING) == controller.ask_job("12_3")
    assert f"--oneliner show job 12_3 C standard {os.environ['HOME']}\n" == (tmp_path / "asked").read_text()


def test_all_questions_reach_scontrol(scontrol: FakeScontrol) -> None:
    """Each question is one call with its own words."""
    scontrol(f"""case "$*" in
        "show config") echo "{CONFIG}" ;;
        "--oneliner show partition grace") echo "{GRACE.strip()}" ;;
        "write batch_script 12 -") echo "#!/bin/bash" ;;
        *) exit 1 ;;
    esac""")

    assert read_rules(CONFIG) == controller.ask_rules()
    assert read_partition(GRACE) == controller.ask_partition("grace")
    assert controller.ask_script("12") == "#!/bin/bash\n"
    assert controller.ask_script("13") is None


@pytest.mark.parametrize("body", ["echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
                                  "exec sleep 60", "true", "kill -9 $$"])  # fmt: skip
def test_silence_is_none(scontrol: FakeScontrol, body: str) -> None:
    """A controller that fails, hangs or says nothing is neither an exception nor a default."""
    scontrol(body)

    assert controller.ask_rules(0.5) is None
    assert controller.ask_job("12", 0.5) is None
    assert controller.ask_partition("main", 0.5) is None


def test_without_slurm_there_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no scontrol is installed nothing is known, and a requeue says why not."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert controller.ask_rules() is None
    assert mentions(controller.requeue("12"), "scontrol", os.strerror(errno.ENOENT))


@pytest.mark.parametrize(("body", "expected"), [
    ("test \"$*\" = 'requeue 12'", ""),
    ("echo 'Job is pending execution for job 12' >&2; exit 1", ""),
    ("echo '19_3: Job is pending execution' >&2; exit 1", ""),
    ("echo 'Requested operation is presently disabled for job 12' >&2; exit 1",
     "Requested operation is presently disabled for job 12"),
    ("echo 'Only batch jobs are accepted or processed for job 12' >&2; exit 1",
     "Only batch jobs are accepted or processed for job 12"),
    ("echo 'Job not heterogeneous job leader for job 12' >&2; exit 1",
     "Job not heterogeneous job leader for job 12"),
    ("exit 3", "scontrol requeue 12 3"),
    ("exec sleep 60", "scontrol requeue 12 0.5"),
])  # fmt: skip
def test_requeues(scontrol: FakeScontrol, body: str, expected: str) -> None:
    """A requeue that is under way already is as good as one; what Slurm refuses is said in its words."""
    scontrol(body)

    found = controller.requeue("12", 0.5)
    words = found.words if found is not None else ""
    assert (bool(words), mentions(words, expected)) == (bool(expected), True)
    assert found is None or found.answered != ("0.5" in expected)


@pytest.mark.parametrize("words", controller._UNANSWERED)
def test_a_controller_that_is_away_refuses_nothing(scontrol: FakeScontrol, words: str) -> None:
    """It may have done what it was asked for, or do it later."""
    said = f"slurm_requeue error: {words} for job 12"
    scontrol(f"echo '{said}' >&2; exit 1")

    assert controller.requeue("12") == FailedRequest(said, answered=False)


def test_a_call_that_a_signal_has_hit_is_repeated(scontrol: FakeScontrol, tmp_path: Path) -> None:
    """Where Slurm signals all processes, scontrol may be one of them."""
    scontrol(f"test -e {tmp_path}/hit || {{ touch {tmp_path}/hit; kill -TERM $$; }}")

    assert controller.requeue("12") is None
    assert (tmp_path / "hit").exists()


@pytest.mark.parametrize(("body", "expected"), [
    ('test "$*" = 12_3', ""),
    ("echo 'scancel: error: Kill job error on job id 12_3: Job/step already completing or completed' >&2; exit 1", ""),
    ("echo 'scancel: error: Kill job error on job id 12_3: Invalid job id specified' >&2; exit 1", ""),
    ("echo 'scancel: error: Kill job error on job id 12_3: Access/permission denied' >&2; exit 1",
     "scancel: error: Kill job error on job id 12_3: Access/permission denied"),
    ("exit 3", "scancel 12_3 3"),
])  # fmt: skip
def test_cancelling(scontrol: FakeScontrol, body: str, expected: str) -> None:
    """A job that has ended need not be cancelled; where Slurm refuses, that is said."""
    put = scontrol(body)
    put.rename(put.with_name("scancel"))

    found = controller.cancel("12_3")
    assert (bool(found), mentions(found, expected)) == (bool(expected), True)
