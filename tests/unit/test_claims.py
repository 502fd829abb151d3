"""Claims: which run has which job directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch.errors import LogDirError
from hpc_launch.records import claims
from hpc_launch.records.claims import Claim, Claimant, ClaimedRun, Holder, claim_run, find_run, next_incarnation
from hpc_launch.records.directory import JobDirectory

BASE = "12.0"

Start = Callable[..., ClaimedRun]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Claim a directory, and make the run's first attempt in it."""

    def start(program: str = "a", incarnation: int = 0, place: str = "c/12/0", base: str = BASE) -> ClaimedRun:
        run = claim_run(tmp_path, base, program, incarnation, place=place)
        JobDirectory(tmp_path, run.job).attempt(run.first_attempt).mkdir()
        return run

    return start


def test_one_run_has_the_usual_name(start: Start) -> None:
    """The only run of a step has the directory that its step names."""
    assert start() == ClaimedRun("12.0", 0)


def test_runs_of_a_step_have_directories_of_their_own(start: Start) -> None:
    """Every run of a step begins with attempt 0, whether its program is another or the same."""
    assert [start("a"), start("b"), start("a")] == [ClaimedRun(name, 0) for name in ("12.0", "12.0-2", "12.0-3")]


def test_runs_that_start_together_share_nothing(tmp_path: Path) -> None:
    """Runs that claim at the same moment get different directories, without a gap in their numbers."""
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: claim_run(tmp_path, BASE, str(number), 0, place="c/12/0"), range(32))
    expected = {claims.run_directory_name(BASE, ordinal) for ordinal in range(1, 33)}
    assert {run.job for run in found} == expected


def test_a_requeued_run_goes_on(start: Start) -> None:
    """After a requeue the run has the same directory, and the next attempt."""
    start()
    assert [start(incarnation=1), start(incarnation=2)] == [ClaimedRun("12.0", 1), ClaimedRun("12.0", 2)]


def test_arguments_that_change_are_no_matter(start: Start) -> None:
    """A run whose arguments have changed (`--run-name $(date)`) goes on in its directory."""
    start("monday")
    assert start("tuesday", 1) == ClaimedRun("12.0", 1)


def test_each_of_several_runs_goes_on_in_its_own(start: Start) -> None:
    """After a requeue every run finds its own directory, in whatever order they start."""
    start("a")
    start("b")
    assert [start("b", 1), start("a", 1)] == [ClaimedRun("12.0-2", 1), ClaimedRun("12.0", 1)]


def test_several_runs_of_one_program_go_on_in_their_order(start: Start) -> None:
    """Runs that nothing but their order tells from each other go on in that."""
    start()
    start()
    assert [start("x", 1).job, start("y", 1).job, start("z", 1).job] == ["12.0", "12.0-2", "12.0-3"]


def test_a_run_that_is_started_by_hand_again_is_a_new_one(start: Start) -> None:
    """What is started in a job that has not been requeued since begins with attempt 0."""
    start(incarnation=1)
    assert start(incarnation=1) == ClaimedRun("12.0-2", 0)


def test_a_job_of_an_earlier_version_goes_on(tmp_path: Path, start: Start) -> None:
    """Attempts without a claim are continued when their job has been requeued."""
    (tmp_path / BASE / "attempt_0").mkdir(parents=True)
    assert start(incarnation=1) == ClaimedRun("12.0", 1)


def test_a_run_of_an_earlier_version_is_another_one(tmp_path: Path, start: Start) -> None:
    """Attempts without a claim are not continued in a job that has not been requeued."""
    (tmp_path / BASE / "attempt_0").mkdir(parents=True)
    assert start() == ClaimedRun("12.0-2", 0)


def test_the_same_number_in_another_cluster_is_another_job(start: Start) -> None:
    """Jobs of two clusters that write to one place do not go on with each other's attempts."""
    start(place="here/12/0")
    assert start(place="there/12/0", incarnation=1) == ClaimedRun("12.0-2", 0)


def test_a_job_that_uses_a_name_again_has_a_new_directory(start: Start) -> None:
    """In Slurm, a name that the user gave is the run's in one job only."""
    start(place="c/12/0", base="mine")
    assert start(place="c/13/0", base="mine") == ClaimedRun("mine-2", 0)


def test_outside_of_slurm_a_name_is_a_run(start: Start) -> None:
    """Outside of Slurm, who gives the same name again goes on with the attempts."""
    start(place="", base="mine")
    assert start(place="", base="mine") == ClaimedRun("mine", 1)


def test_outside_of_slurm_runs_beside_each_other_share_nothing(tmp_path: Path) -> None:
    """A name that a run has which is still going on is no other run's."""
    claim_run(tmp_path, "mine", "a", 0)
    assert claim_run(tmp_path, "mine", "a", 0, lives=lambda _: True) == ClaimedRun("mine-2", 0)


def test_what_is_no_directory_is_left_alone(tmp_path: Path, start: Start) -> None:
    """A file or a link that has the name is no job directory of ours."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / BASE).symlink_to("elsewhere")
    assert (start().job, list((tmp_path / "elsewhere").iterdir())) == ("12.0-2", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_of_another_user_is_left_alone(tmp_path: Path, start: Start) -> None:
    """A directory that another user has made is not used."""
    (tmp_path / BASE).mkdir()
    os.chown(tmp_path / BASE, 4711, 4711)
    assert (start(incarnation=1).job, list((tmp_path / BASE).iterdir())) == ("12.0-2", [])


def test_a_crash_before_the_claim_loses_no_directory(tmp_path: Path, start: Start) -> None:
    """A directory that was made, but not claimed, is used by the next run; a half-written claim is none."""
    (tmp_path / BASE / "claims").mkdir(parents=True)
    (tmp_path / BASE / "claims" / ".x-0.1234").write_text("{")
    assert start() == ClaimedRun("12.0", 0)


def test_a_claim_that_cannot_be_read_is_a_claim(tmp_path: Path, start: Start) -> None:
    """A claim of a later version, or one that a full disk has cut, keeps other runs away."""
    start()
    (found,) = (tmp_path / BASE / "claims").iterdir()
    found.write_text("")
    assert (start().job, start("b", 1)) == ("12.0-2", ClaimedRun("12.0", 1))


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """Where the file system has no hard links, a run claims its directory all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    names = [start("a").job, start("b").job]
    (found,) = (tmp_path / "12.0-2" / "claims").iterdir()
    assert (names, json.loads(found.read_text())["program"]) == (["12.0", "12.0-2"], "b")


def test_an_answer_that_was_lost(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """A link whose answer an NFS server lost, so that the second try finds it there, is a claim."""
    link = os.link

    def twice(source: str, target: str, **where: Any) -> None:
        link(source, target, **where)
        link(source, target, **where)

    monkeypatch.setattr(os, "link", twice)
    assert start() == ClaimedRun("12.0", 0)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    """A log directory that cannot be made is an error of one line."""
    (tmp_path / "file").touch()
    with pytest.raises(LogDirError, match=r"cannot write in .*--log-dir"):
        claim_run(tmp_path / "file", BASE, "a", 0)


def test_others_find_the_run_by_its_program(tmp_path: Path, start: Start) -> None:
    """An agent that has not heard the first node's word finds the run's directory by its program."""
    start("a")
    start("b")
    found = [find_run(tmp_path, BASE, program, 0, place="c/12/0") for program in ("a", "b", "c")]
    assert found == ["12.0", "12.0-2", ""]


def test_others_find_the_run_that_has_not_claimed_again(tmp_path: Path, start: Start) -> None:
    """After a requeue an agent that meets no other finds the directory of the run's earlier incarnation."""
    start("a")
    start("b")
    start("a", 1)
    found = [find_run(tmp_path, BASE, program, 1, place="c/12/0") for program in ("a", "b", "c")]
    assert found == ["12.0", "12.0-2", ""]


def test_a_run_that_has_claimed_nothing_has_the_usual_name(tmp_path: Path) -> None:
    """As long as no run has claimed a directory, an agent takes the one that its step names."""
    assert find_run(tmp_path, BASE, "a", 0, place="c/12/0") == BASE


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=5),
    st.integers(0, 4),
    st.booleans(),
)
def test_no_start_has_the_directory_of_another_of_its_time(
    earlier: list[tuple[str, int]], incarnation: int, attempted: bool
) -> None:
    """A directory that a run of the same or a later incarnation has is no other run's."""
    held = [Claim(place, number, "", 0.0, Holder("", 0)) for place, number in earlier]
    number = next_incarnation(Claimant("a", "", incarnation), held, lambda _: False, attempted=attempted)
    taken = [claim.incarnation for claim in held if claim.place == "a"]
    assert number is None or (number == incarnation and all(one < number for one in taken))
