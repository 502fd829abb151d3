"""Owners: files and directories of others are neither written nor read, and what is one's own works everywhere."""

from __future__ import annotations

import dataclasses
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_launch import file_ownership
from hpc_launch.agent.output_console import FollowedFile
from hpc_launch.api import function_worker, remote_exception, results
from hpc_launch.api.submission_files import write_once
from hpc_launch.errors import CallError, LogDirError
from hpc_launch.file_ownership import FileStatus, NotOwnError, folders, open_folder, parents, read_own, read_shared
from hpc_launch.records import claims, directory, regular_files
from hpc_launch.records.directory import JobDirectory
from hpc_launch.records.events import EventLog
from hpc_launch.records.output_lines import last_lines
from tests.support import mentions
from tests.users import ALICE, BOB, PROJECT_GROUP, common_directory, give, needs_root, run_as

ME = os.geteuid()


def run(logs: Path, *, private: bool = False) -> str:
    """Write what a run writes: a file whole, a line, and a worker's output; then read a file back."""
    job = JobDirectory(logs, "12.0")
    directory.check_writable(job.root)
    directory.make(job.attempt(0), job.path, private=private)
    directory.make(job.node(0, "n1"), job.path)
    directory.write_json(job.plan(0), {"a": 1}, job.path)
    directory.append(job.ledger, "line\n", job.path)
    directory.open_output(job.rank(0, "n1", 0).out, job.path).close()
    return read_own(job.ledger).decode()


@pytest.fixture
def common() -> Iterator[Path]:
    with common_directory() as path:
        yield path


@pytest.fixture
def job(tmp_path: Path) -> JobDirectory:
    made = JobDirectory(tmp_path / "logs", "12.0")
    directory.make(made.path)
    return made


def entry(mode: int, uid: int = ME, gid: int = ME, links: int = 1) -> FileStatus:
    return FileStatus(Path("/x/y"), uid, gid, mode, links)


# ---- the rules


@pytest.mark.parametrize(
    ("mode", "good"),
    [(0o755, True), (0o2770, True), (0o777, False), (0o1777, True), (0o2777, False), (0o775, True), (0o711, True)],
)
def test_parents(mode: int, good: bool) -> None:
    """Directories above may be anybody's, unless everybody can rename what is in them."""
    assert good == (file_ownership.fault_of_parent(entry(stat.S_IFDIR | mode, uid=ALICE)) == "")


@pytest.mark.parametrize(
    ("folder", "link", "good"),
    [
        (entry(0o1777, 0), ALICE, False),
        (entry(0o1777, 0), 0, True),
        (entry(0o1777, 0), ME, True),
        (entry(0o1777, ALICE), ALICE, True),
        (entry(0o755, 0), ALICE, True),
    ],
)
def test_links_on_the_way(folder: FileStatus, link: int, good: bool) -> None:
    """In a sticky directory only links of oneself, of root and of the directory's owner are followed."""
    assert good == (file_ownership.fault_of_link(entry(stat.S_IFLNK | 0o777, link), folder, ME) == "")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (entry(stat.S_IFDIR | 0o755), ""),
        (entry(stat.S_IFDIR | 0o2770, gid=PROJECT_GROUP), ""),
        (entry(stat.S_IFDIR | 0o755, uid=ALICE), "belongs to"),
        (entry(stat.S_IFDIR | 0o777), "chmod o-w"),
        (entry(stat.S_IFLNK | 0o777), "symbolic link"),
    ],
)
def test_directories_of_ones_own(what: FileStatus, words: str) -> None:
    """A line says what was found, and what was expected."""
    fault = file_ownership.fault_of_directory(what, ME)
    assert (mentions(fault, words), bool(fault)) == (True, bool(words))


@pytest.mark.parametrize(
    ("what", "writing", "words"),
    [
        (entry(stat.S_IFREG | 0o644), True, ""),
        (entry(stat.S_IFREG | 0o644, links=2), False, ""),
        (entry(stat.S_IFREG | 0o644, links=2), True, "2"),
        (entry(stat.S_IFREG | 0o644, uid=ALICE), False, str(ALICE)),
        (entry(stat.S_IFIFO | 0o644), False, "regular file"),
        (entry(stat.S_IFLNK | 0o777), False, "symbolic link"),
    ],
)
def test_files_of_ones_own(what: FileStatus, writing: bool, words: str) -> None:
    """A line says what was found, and what was expected."""
    fault = file_ownership.fault_of_file(what, ME, writing=writing)
    assert (mentions(fault, words), bool(fault)) == (True, bool(words))


@pytest.mark.parametrize(
    ("what", "options", "words"),
    [
        (entry(stat.S_IFREG | 0o644), {}, ""),
        (entry(stat.S_IFREG | 0o644, uid=0), {}, ""),
        (entry(stat.S_IFREG | 0o644, uid=ALICE), {}, str(ALICE)),
        (entry(stat.S_IFREG | 0o644, uid=ALICE), {"trusted": True}, ""),
        (entry(stat.S_IFREG | 0o664, gid=PROJECT_GROUP), {}, str(PROJECT_GROUP)),
        (entry(stat.S_IFREG | 0o664, gid=PROJECT_GROUP), {"trusted": True}, ""),
        (entry(stat.S_IFREG | 0o664, gid=PROJECT_GROUP), {"private_group": True}, ""),
        (entry(stat.S_IFREG | 0o666), {"trusted": True}, "0666"),
        (entry(stat.S_IFDIR | 0o1777, uid=0), {"trusted": True}, "1777"),
        (entry(stat.S_IFREG | 0o644, uid=65534), {"system": True}, ""),
        (entry(stat.S_IFREG | 0o644, uid=65534), {}, "65534"),
    ],
)
def test_settings(what: FileStatus, options: dict[str, bool], words: str) -> None:
    """They count where nobody else can change them; a trusted directory speaks for its owner and its group."""
    given = {"trusted": False, "private_group": False, **options}
    fault = file_ownership.fault_of_settings(what, ME, **given)
    assert (mentions(fault, words), bool(fault)) == (True, bool(words))


# ---- what is planted


def test_a_link_in_place_of_a_file_is_not_followed(job: JobDirectory, tmp_path: Path) -> None:
    """A line that is appended does not go where the link leads."""
    (tmp_path / "victim").write_text("")
    job.ledger.symlink_to(tmp_path / "victim")
    with pytest.raises(NotOwnError, match="symbolic link"):
        directory.append(job.ledger, "line\n")

    assert (tmp_path / "victim").read_text() == ""


def test_a_link_in_place_of_a_directory_is_not_followed(job: JobDirectory, tmp_path: Path) -> None:
    """Nothing is made where the link leads."""
    (tmp_path / "victim").mkdir()
    (job.path / "nodes").symlink_to(tmp_path / "victim")
    with pytest.raises(LogDirError, match="symbolic link"):
        EventLog(job.events("n1"), 0, job.path)

    assert list((tmp_path / "victim").iterdir()) == []


def test_a_link_in_place_of_the_job_directory_is_not_followed(tmp_path: Path) -> None:
    """The line names the link, and the way out."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "12.0").symlink_to(tmp_path / "victim")
    with pytest.raises(LogDirError, match=r"12\.0 is a symbolic link.*--log-dir") as caught:
        directory.make(tmp_path / "12.0")

    assert "\n" not in str(caught.value)


def test_a_hard_link_is_not_written_to(job: JobDirectory, tmp_path: Path) -> None:
    """What has another name may be another file of one's own."""
    (tmp_path / "victim").write_text("")
    job.ledger.hardlink_to(tmp_path / "victim")
    with pytest.raises(NotOwnError, match="hard links"):
        directory.append(job.ledger, "line\n")

    assert (tmp_path / "victim").read_text() == ""


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY | os.O_APPEND | os.O_CREAT, os.O_RDWR])
def test_a_pipe_does_not_block(job: JobDirectory, flags: int) -> None:
    """A pipe in place of a file is refused at once."""
    os.mkfifo(job.ledger)
    with open_folder(job.path) as folder, pytest.raises(NotOwnError, match="regular file"):
        folder.open(job.ledger.name, flags)


def test_a_whole_file_replaces_a_link(job: JobDirectory, tmp_path: Path) -> None:
    """A file that is written by a rename takes the place of what was planted."""
    (tmp_path / "victim").write_text("")
    job.end_time.symlink_to(tmp_path / "victim")
    directory.write_text(job.end_time, "mine")

    assert (job.end_time.is_symlink(), (tmp_path / "victim").read_text()) == (False, "")


def test_what_is_emptied_is_known_before(job: JobDirectory, tmp_path: Path) -> None:
    """O_TRUNC does not empty a file that is then refused."""
    (tmp_path / "victim").write_text("precious")
    job.ledger.hardlink_to(tmp_path / "victim")
    with open_folder(job.path) as folder, pytest.raises(NotOwnError):
        folder.open(job.ledger.name, os.O_WRONLY | os.O_TRUNC)

    assert (tmp_path / "victim").read_text() == "precious"


def test_everybody_may_write_in_a_parent(tmp_path: Path) -> None:
    """Without the sticky bit everybody could put another job directory there: one line refuses it."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(0o777)
    with pytest.raises(LogDirError, match=r"/logs .*\b0777\b.*--log-dir"):
        directory.check_writable(tmp_path / "logs")


def test_a_sticky_parent_is_good(tmp_path: Path) -> None:
    """As /tmp is."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs").chmod(0o1777)
    directory.make(tmp_path / "logs/12.0")

    assert (tmp_path / "logs/12.0").is_dir()


def test_a_link_of_ones_own_on_the_way_is_followed(tmp_path: Path) -> None:
    """`logs` is often a link to a larger file system."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "logs").symlink_to("scratch")
    directory.make(tmp_path / "logs/12.0")

    assert (tmp_path / "scratch/12.0").is_dir()


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    """The search ends."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(LogDirError, match="symbolic links"):
        directory.check_writable(tmp_path / "a")


def test_new_directories_are_never_world_writable(tmp_path: Path) -> None:
    """Whatever the umask is: they would be refused the next time."""
    before = os.umask(0)
    try:
        directory.make(tmp_path / "a/b/12.0/attempt_0", tmp_path / "a/b/12.0")
    finally:
        os.umask(before)

    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "a/b/12.0", "a/b/12.0/attempt_0")}
    assert modes == {0o775}


def test_a_private_job_directory(tmp_path: Path) -> None:
    """It is closed to others when it is made, and one that was there already is closed."""
    directory.make(tmp_path / "1/nodes/n", tmp_path / "1", private=True)
    directory.make(tmp_path / "2/nodes/n", tmp_path / "2")
    directory.make(tmp_path / "2", private=True)

    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("1", "2")] == [0o700, 0o700]


# ---- what is written


def test_temporary_names_are_unique() -> None:
    """No thread, process or node renames what another one is writing."""
    names = {file_ownership.temporary_name("job.json") for _ in range(100)}

    assert len(names) == 100


def test_the_rest_of_a_short_write_is_tried(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that takes a part only gets the rest."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:3])))
    directory.append(job.ledger, "a whole line\n")

    assert job.ledger.read_text() == "a whole line\n"


def test_a_torn_line_ends_before_the_next(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a disk was full in the middle of a line, the next one can be read."""
    write, room = os.write, [4]

    def full(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, os.strerror(28))
        room[0] -= (taken := min(len(data), room[0]))
        return write(handle, bytes(data[:taken]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="space"):
            directory.append(job.ledger, "a torn line\n")
    directory.append(job.ledger, "whole\n")

    assert job.ledger.read_text() == "a to\nwhole\n"


def test_a_file_that_cannot_be_written_leaves_nothing(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file is removed."""

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(LogDirError, match="space"):
            directory.write_text(job.end_time, "text")

    assert list(job.path.iterdir()) == []


def test_parents_are_looked_at_once(job: JobDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write after the first costs a look at the directory and at the file, and none at those above."""
    directory.append(job.ledger, "line\n")
    calls: list[str] = []
    opened, walk = os.open, parents._walk

    def counted(*given: Any, **named: Any) -> int:
        calls.append("open")
        return opened(*given, **named)

    def walked(path: str) -> None:
        calls.append("walk")
        walk(path)

    monkeypatch.setattr(os, "open", counted)
    monkeypatch.setattr(parents, "_walk", walked)
    directory.append(job.ledger, "line\n")

    assert calls == ["open"] * 3


# ---- other users


@needs_root
def test_a_job_directory_of_somebody_else(tmp_path: Path) -> None:
    """One line names the directory, its owner and the way out."""
    (tmp_path / "12.0").mkdir()
    give(tmp_path / "12.0", ALICE)
    with pytest.raises(LogDirError, match=rf"12\.0 .*\b{ALICE}\b.*\broot\b.*--log-dir"):
        directory.make(tmp_path / "12.0/attempt_0", tmp_path / "12.0")

    assert list((tmp_path / "12.0").iterdir()) == []


@needs_root
def test_a_directory_of_somebody_else_within(job: JobDirectory) -> None:
    """All below a job directory has to be one's own, not only the last directory."""
    (job.path / "attempt_0/n1").mkdir(parents=True)
    give(job.path / "attempt_0", ALICE)
    with pytest.raises(LogDirError, match="attempt_0 belongs to"):
        directory.make(job.node(0, "n1"), job.path)


@needs_root
@pytest.mark.parametrize("read", [read_own, read_shared])
def test_a_file_of_somebody_else_is_not_read(job: JobDirectory, read: object) -> None:
    """Whatever is in it."""
    job.ledger.write_text("line\n")
    give(job.ledger, ALICE)
    assert callable(read)
    with pytest.raises(NotOwnError, match="belongs to"):
        read(job.ledger)


@needs_root
def test_a_requeue_mark_of_somebody_else_is_none(job: JobDirectory) -> None:
    """Another user cannot keep a job from being requeued."""
    mark = job.requeue_claim("12", 0)
    mark.touch()
    give(mark, ALICE)

    assert [directory.claim(mark), directory.claim(job.requeue_claim("12", 1))] == [True, True]
    assert not directory.claim(job.requeue_claim("12", 1))


class Planted:
    """What runs when it is unpickled."""

    ran: list[str] = []  # noqa: RUF012 - of the class, as the object is made while it is read

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Planted.ran.append, ("here",)


@needs_root
def test_a_foreign_exception_is_not_unpickled(job: JobDirectory) -> None:
    """Nothing in it runs."""
    path = job.rank(0, "n1", 0).raised
    directory.make(path.parent, job.path)
    path.write_bytes(pickle.dumps(Planted()))
    give(path, ALICE)

    assert (remote_exception.read_exception(path, job.path), Planted.ran) == (None, [])


@needs_root
def test_a_foreign_result_is_not_unpickled(job: JobDirectory) -> None:
    """A line names the file, and nothing in it runs."""
    path = job.rank(0, "n1", 0).result
    directory.make(path.parent, job.path)
    path.write_bytes(pickle.dumps(Planted()))
    give(path, ALICE)
    with pytest.raises(CallError, match=r"rank_0\.result\.pkl belongs to"):
        results.read_results(job, "12", functions=True, patience=0)

    assert Planted.ran == []


@needs_root
def test_a_foreign_checkpoint_is_not_unpickled(job: JobDirectory) -> None:
    """A worker that begins says which file it does not load, and nothing in it runs."""
    path = job.checkpoint(0)
    directory.make(path.parent, job.path)
    path.write_bytes(pickle.dumps(Planted()))
    give(path, ALICE)
    here = function_worker.WorkerIdentity(job, attempt=1, host="n1", rank=0, world_size=1)
    with pytest.raises(CallError, match=r"checkpoint\.pkl belongs to"):
        function_worker._read(job.path / "call.pkl", here)

    assert Planted.ran == []


@needs_root
def test_a_planted_call_is_replaced(tmp_path: Path) -> None:
    """What another user has put in the place of a call does not stay there."""
    path = tmp_path / "12_call.pkl"
    path.write_bytes(b"planted")
    give(path, ALICE)
    write_once(path, b"mine")

    assert (read_shared(path), stat.S_IMODE(path.stat().st_mode)) == (b"mine", 0o600)


@needs_root
def test_a_foreign_link_in_a_sticky_directory(common: Path) -> None:
    """A link that another user has left in /tmp is not followed, whether or not the kernel would."""
    common.chmod(0o1777)
    (common / "mine").mkdir()
    give(common / "mine", BOB)
    (common / "logs").symlink_to("mine")
    give(common / "logs", ALICE)
    words = run_as(BOB, lambda: run(common / "logs"))

    assert (mentions(words, common / "logs", ALICE), list((common / "mine").iterdir())) == (True, [])


@needs_root
def test_the_log_directory_of_a_project(common: Path) -> None:
    """It belongs to somebody else, its group may write there, and the job directory is one's own."""
    (common / "logs").mkdir()
    give(common / "logs", ALICE, PROJECT_GROUP, 0o2770)
    words = run_as(BOB, lambda: run(common / "logs"), groups=(PROJECT_GROUP,), umask=0o007)
    made = (common / "logs/12.0").stat()

    assert (words, made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == ("line\n", BOB, PROJECT_GROUP, 0o2770)


@needs_root
def test_a_claim_in_the_log_directory_of_a_project(common: Path) -> None:
    """It belongs to somebody else, and the job directory is one's own."""
    (common / "logs").mkdir()
    give(common / "logs", ALICE, PROJECT_GROUP, 0o2770)

    def claim() -> str:
        return claims.claim_run(common / "logs", "12.0", "program", 0, place="cluster/12/0").job

    assert run_as(BOB, claim, groups=(PROJECT_GROUP,)) == "12.0"


@needs_root
def test_a_directory_that_only_others_can_read(common: Path) -> None:
    """Directories on the way need not be readable, only to be entered."""
    (common / "closed/logs").mkdir(parents=True)
    give(common / "closed/logs", BOB)
    (common / "closed").chmod(0o711)

    assert run_as(BOB, lambda: run(common / "closed/logs")) == "line\n"


@needs_root
def test_private_among_other_users(common: Path) -> None:
    """A private job directory in a project's log directory lets nobody of the group in."""
    (common / "logs").mkdir()
    give(common / "logs", ALICE, PROJECT_GROUP, 0o2770)
    run_as(BOB, lambda: run(common / "logs", private=True), groups=(PROJECT_GROUP,), umask=0o007)

    assert stat.S_IMODE((common / "logs/12.0").stat().st_mode) & 0o777 == 0o700


@needs_root
def test_a_file_system_that_maps_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under root squash all that root makes shows another owner, and is its own all the same."""
    fstat, stat_ = os.fstat, os.stat

    def squashed(status: os.stat_result) -> os.stat_result:
        values = list(status)
        values[4] = 65534 if values[4] == 0 and status.st_dev == tmp_path_device else values[4]
        return os.stat_result(values)

    tmp_path_device = tmp_path.stat().st_dev
    monkeypatch.setattr(folders, "_SHOWN_OWNERS", {})
    monkeypatch.setattr(os, "fstat", lambda handle: squashed(fstat(handle)))
    monkeypatch.setattr(os, "stat", lambda *given, **named: squashed(stat_(*given, **named)))
    directory.make(tmp_path / "12.0/nodes/n1", tmp_path / "12.0")
    directory.append(tmp_path / "12.0/requeues.jsonl", "line\n")

    assert read_own(tmp_path / "12.0/requeues.jsonl") == b"line\n"


def test_an_entry_says_what_the_system_says(tmp_path: Path) -> None:
    """Owner, group, mode and names."""
    status = tmp_path.stat()
    found = FileStatus.of(tmp_path, status)

    assert dataclasses.astuple(found) == (tmp_path, status.st_uid, status.st_gid, status.st_mode, status.st_nlink)


@needs_root
@pytest.mark.parametrize("planted", ["directory", "link"])
def test_a_run_passes_by_what_is_planted(tmp_path: Path, planted: str) -> None:
    """A directory of somebody else, or a link, with the name of a job directory: the run has the next one."""
    (tmp_path / "victim").mkdir()
    if planted == "link":
        (tmp_path / "12.0").symlink_to("victim")
    else:
        (tmp_path / "12.0").mkdir()
        give(tmp_path / "12.0", ALICE)
    claimed = claims.claim_run(tmp_path, "12.0", "program", 0, place="cluster/12/0")

    assert (claimed.job, claimed.first_attempt) == ("12.0-2", 0)
    assert list((tmp_path / "victim").iterdir()) == []


def test_a_run_claims_nothing_where_everybody_may_write(tmp_path: Path) -> None:
    """The search for a name ends at once."""
    tmp_path.chmod(0o777)
    with pytest.raises(LogDirError, match="everybody may write"):
        claims.claim_run(tmp_path, "12.0", "program", 0, place="cluster/12/0")


# ---- what is only shown


def test_a_pipe_that_is_read_does_not_block(job: JobDirectory) -> None:
    """Neither records, nor the last lines of a worker, nor the console wait for somebody who writes into it."""
    os.mkfifo(job.ledger)
    source = FollowedFile(job.ledger, "", None)

    assert isinstance(regular_files.content(job.ledger), str)  # why it cannot be read
    assert (last_lines(job.ledger, 3), source.advance(final=True)) == ([], 0)


@needs_root
def test_records_of_somebody_else_are_shown(job: JobDirectory) -> None:
    """What only shows something asks for no owner."""
    EventLog(job.events("n1"), 0, job.path).record("run", host="n1")
    for path in (job.path, *job.path.rglob("*")):
        give(path, ALICE)

    assert isinstance(regular_files.content(job.events("n1")), bytes)
