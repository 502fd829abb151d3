"""Snapshots of the code: what git tracks is copied as it is, and nothing is hidden."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from hpc_launch.errors import HpcLaunchError, LogDirError, ScriptError, UsageError
from hpc_launch.submission.code_snapshot import Changes, CodeSnapshot, take_snapshot
from tests.support import mentions

IDENTITY = ("-c", "user.name=Me", "-c", "user.email=me@example.org", "-c", "protocol.file.allow=always")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(autouse=True)
def no_git_of_this_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the configuration of whoever runs the tests, and a hook's variables, out of them."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "no-gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def git(directory: Path, *arguments: str) -> str:
    """Run git."""
    done = subprocess.run(
        ["git", "-C", directory, *IDENTITY, *arguments], capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout.strip()


def make(directory: Path, files: dict[str, str]) -> Path:
    """Make a repository of these files, all committed."""
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet")
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--allow-empty", "--message", "all")
    return directory


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository with names of all kinds, and a file that is not tracked."""
    files = {
        "train.py": "print('as committed')\n",
        "my package/a 'b' \"c\" $HOME\n.py": "1\n",
        "my package/ünï.py": "2\n",
        "run.sh": "#!/bin/sh\n",
        ".gitignore": "*.log\n",
    }
    top = make(tmp_path / "my repo", files)
    (top / "run.sh").chmod(0o755)
    git(top, "commit", "--quiet", "--all", "--message", "executable")
    (top / "out.log").write_text("ignored\n")
    return top


def files(top: Path) -> dict[str, str]:
    """Return the regular files below a directory, and what is in them."""
    return {
        str(path.relative_to(top)): path.read_text()
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink() and ".git" not in path.relative_to(top).parts
    }


def refused(error: type[HpcLaunchError], directory: Path, destination: Path, **options: object) -> str:
    """Return the line with which a snapshot is refused, after seeing that nothing was made."""
    with pytest.raises(error) as caught:
        take_snapshot(directory, destination, **{"changes": "refuse", **options})  # type: ignore[arg-type] # as written above
    assert not list(destination.parent.glob(f"*{destination.name}*"))
    message = str(caught.value)
    assert message.startswith("--snapshot: ")
    assert "\n" not in message.replace(str(directory), "")
    return message


@pytest.mark.parametrize("changes", ["refuse", "record"])
def test_what_is_tracked_is_copied(repository: Path, tmp_path: Path, changes: Changes) -> None:
    """The copy has every tracked file and no other, and says which commit it is."""
    (repository / "notes.txt").write_text("not tracked\n")
    commit = git(repository, "rev-parse", "HEAD")
    snapshot = take_snapshot(repository / "my package", tmp_path / "job/snapshot", changes=changes)
    expected = files(repository)
    for name in ("notes.txt", "out.log"):
        del expected[name]

    assert expected == files(tmp_path / "job/snapshot/code")
    root = tmp_path / "job/snapshot"
    directory = root / "code/my package"
    assert CodeSnapshot(root, directory, repository, commit, False, {}, ("notes.txt",)) == snapshot
    assert sorted(path.name for path in root.iterdir()) == ["code", "snapshot.json"]
    facts = json.loads((root / "snapshot.json").read_text())
    assert facts["commit"] == commit
    assert (facts["dirty"], facts["repository"], facts["directory"]) == (False, str(repository), str(directory))


def test_it_may_be_executed_where_it_might_be(repository: Path, tmp_path: Path) -> None:
    """Executable bits and times are kept."""
    code = take_snapshot(repository, tmp_path / "snapshot", changes="refuse").code

    assert stat.S_IMODE((code / "run.sh").stat().st_mode) == 0o755
    assert not os.access(code / "train.py", os.X_OK) or os.geteuid() == 0
    assert (code / "train.py").stat().st_mtime == (repository / "train.py").stat().st_mtime


def test_the_repository_is_left_alone(repository: Path, tmp_path: Path) -> None:
    """Nothing is written there, not even git's own index, whose times are out of date."""
    os.utime(repository / "train.py", (1, 1))
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    take_snapshot(repository, tmp_path / "snapshot", changes="refuse")

    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def change(repository: Path) -> None:
    """Change, remove and add tracked files, in the working tree and in the index."""
    (repository / "train.py").write_text("print('changed')\n")
    (repository / "my package/ünï.py").unlink()
    (repository / "new.bin").write_bytes(bytes(range(256)))
    git(repository, "add", "new.bin")
    (repository / "run.sh").chmod(0o644)


def test_changes_are_refused(repository: Path, tmp_path: Path) -> None:
    """A change of a tracked file is named, and how to keep it; no more than three are."""
    (repository / "train.py").write_text("print('changed')\n")
    assert mentions(refused(UsageError, repository, tmp_path / "snapshot"), "train.py --snapshot-changes=record")
    change(repository)
    told = refused(UsageError, repository, tmp_path / "snapshot")
    assert mentions(told, "my package/ünï.py new.bin run.sh 1")
    assert not mentions(told, "train.py")


def test_changes_are_recorded(repository: Path, tmp_path: Path) -> None:
    """The files are copied as they are; the commit with the patch is the same."""
    change(repository)
    snapshot = take_snapshot(repository, tmp_path / "snapshot", changes="record")
    assert snapshot.dirty
    assert (snapshot.code / "train.py").read_text() == "print('changed')\n"

    git(tmp_path, "clone", "--quiet", str(repository), "clone")
    git(tmp_path / "clone", "checkout", "--quiet", snapshot.commit)
    git(tmp_path / "clone", "apply", str(tmp_path / "snapshot/changes.patch"))
    shutil.rmtree(tmp_path / "clone/.git")

    def seen(top: Path) -> dict[str, tuple[int, bytes]]:
        found = {path: path.stat().st_mode & stat.S_IXUSR for path in top.rglob("*") if path.is_file()}
        return {str(path.relative_to(top)): (mode, path.read_bytes()) for path, mode in found.items()}

    assert seen(snapshot.code) == seen(tmp_path / "clone")


def test_a_change_in_the_index_alone_is_a_change(repository: Path, tmp_path: Path) -> None:
    """What is added and taken back in the working tree is not committed either."""
    (repository / "new.py").touch()
    git(repository, "add", "new.py")

    assert "in new.py: " in refused(UsageError, repository, tmp_path / "snapshot")


@pytest.mark.parametrize("setting", ["diff.external=false", "diff.noprefix=true", "diff.mnemonicPrefix=true"])
def test_the_users_taste_does_not_change_the_patch(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """A patch is one that git applies, whatever `git diff` shows this user."""
    name, _, value = setting.partition("=")
    for variable, text in (("COUNT", "1"), ("KEY_0", name), ("VALUE_0", value)):
        monkeypatch.setenv(f"GIT_CONFIG_{variable}", text)
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    change(repository)
    snapshot = take_snapshot(repository, tmp_path / "snapshot", changes="record")

    assert "--- a/train.py\n+++ b/train.py\n" in (snapshot.root / "changes.patch").read_text(errors="replace")


def test_a_hooks_variables_do_not_name_the_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What git sets for hooks and aliases says nothing about this directory."""
    other = make(tmp_path / "other", {"other.py": ""})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))

    assert take_snapshot(repository, tmp_path / "snapshot", changes="refuse").repository == repository


def test_links_lead_to_the_copy_or_to_what_they_led_to(repository: Path, tmp_path: Path) -> None:
    """A link to what is copied leads to the copy; one to data elsewhere, or that git does not track, to the data."""
    (repository / "data").mkdir()
    (repository / ".gitignore").write_text("data\n*.log\n")
    links = {
        "to-file": "train.py",
        "to-file-absolutely": str(repository / "train.py"),
        "my package/to-folder": "../my package",
        "to-data": "data",
        "to-outside": "../elsewhere",
        "to-usr": "/usr",
        "broken": "nowhere",
    }
    for name, target in links.items():
        (repository / name).symlink_to(target)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "links")
    code = take_snapshot(repository, tmp_path / "deep/down/snapshot", changes="refuse").code

    assert {name: os.path.realpath(code / name) for name in links} == {
        "to-file": str(code / "train.py"),
        "to-file-absolutely": str(code / "train.py"),
        "my package/to-folder": str(code / "my package"),
        "to-data": str(repository / "data"),
        "to-outside": str(tmp_path / "elsewhere"),
        "to-usr": "/usr",
        "broken": str(repository / "nowhere"),
    }
    assert (code / "to-file").readlink() == Path("train.py")


@pytest.fixture
def nested(repository: Path, tmp_path: Path) -> Path:
    """Return the repository with a submodule, which has another one, and one that is not checked out."""
    make(tmp_path / "inner", {"inner.py": "inner\n"})
    outer = make(tmp_path / "outer", {"outer.py": "outer\n"})
    git(outer, "submodule", "--quiet", "add", str(tmp_path / "inner"), "sub/inner")
    git(outer, "commit", "--quiet", "--message", "submodule")
    for name in ("lib/outer", "absent"):
        git(repository, "submodule", "--quiet", "add", str(outer), name)
    git(repository, "commit", "--quiet", "--message", "submodules")
    git(repository, "submodule", "--quiet", "update", "--init", "--recursive", "lib/outer")
    git(repository, "submodule", "--quiet", "deinit", "--force", "absent")
    return repository


def test_submodules_are_copied(nested: Path, tmp_path: Path) -> None:
    """Submodules that are checked out are copied, those in submodules too; their commits are said."""
    snapshot = take_snapshot(nested, tmp_path / "snapshot", changes="refuse")

    assert (snapshot.code / "lib/outer/outer.py").read_text() == "outer\n"
    assert (snapshot.code / "lib/outer/sub/inner/inner.py").read_text() == "inner\n"
    assert not list((snapshot.code / "absent").iterdir())
    assert not list(snapshot.code.rglob(".git"))
    assert snapshot.submodules == {
        name: git(nested / name, "rev-parse", "HEAD") for name in ("lib/outer", "lib/outer/sub/inner")
    }


def test_changes_in_submodules_are_changes(nested: Path, tmp_path: Path) -> None:
    """They are refused, or written to the patch under their own paths."""
    (nested / "lib/outer/sub/inner/inner.py").write_text("changed\n")
    (nested / "lib/outer/untracked").touch()
    assert "in lib/outer/sub/inner/inner.py: " in refused(UsageError, nested, tmp_path / "snapshot")

    snapshot = take_snapshot(nested, tmp_path / "snapshot", changes="record")
    assert (snapshot.code / "lib/outer/sub/inner/inner.py").read_text() == "changed\n"
    patch = (snapshot.root / "changes.patch").read_text()
    assert "+++ b/lib/outer/sub/inner/inner.py\n" in patch
    assert "Subproject" not in patch


def test_a_submodule_at_another_commit_is_a_change(nested: Path, tmp_path: Path) -> None:
    """What is checked out is not what was committed."""
    git(nested / "lib/outer", "commit", "--quiet", "--allow-empty", "--message", "more")

    assert "in lib/outer: " in refused(UsageError, nested, tmp_path / "snapshot")
    take_snapshot(nested, tmp_path / "snapshot", changes="record")
    assert "+Subproject commit" in (tmp_path / "snapshot/changes.patch").read_text()


def test_a_repository_that_was_added_as_it_was_is_copied(repository: Path, tmp_path: Path) -> None:
    """`git add` of another clone makes a submodule of it that .gitmodules does not name."""
    make(repository / "clone", {"cloned.py": "cloned\n"})
    git(repository, "add", "clone")
    git(repository, "commit", "--quiet", "--message", "clone")

    assert (take_snapshot(repository, tmp_path / "snapshot", changes="refuse").code / "clone/cloned.py").exists()


def test_a_large_files_pointer_is_copied_as_it_is(repository: Path, tmp_path: Path) -> None:
    """What the working tree has of a file of git-lfs is what the job gets: no filter runs."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
    (repository / "weights.bin").write_text(pointer)
    git(repository, "add", "weights.bin")
    (repository / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "--quiet", "--message", "pointer")

    assert (
        take_snapshot(repository, tmp_path / "snapshot", changes="refuse").code / "weights.bin"
    ).read_text() == pointer


def test_a_worktree_is_a_repository(repository: Path, tmp_path: Path) -> None:
    """`git worktree` makes a .git file instead of a directory."""
    git(repository, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))

    assert take_snapshot(tmp_path / "tree", tmp_path / "snapshot", changes="refuse").repository == tmp_path / "tree"


def test_a_directory_without_tracked_files_is_there(repository: Path, tmp_path: Path) -> None:
    """The job can start in the directory that it was submitted from, although git knows no empty ones."""
    (repository / "runs/today").mkdir(parents=True)

    assert take_snapshot(repository / "runs/today", tmp_path / "snapshot", changes="refuse").directory.is_dir()


def test_the_copy_may_lie_in_the_repository(repository: Path) -> None:
    """A job directory in `logs/` is not copied into itself."""
    first = take_snapshot(repository, repository / "logs/1/snapshot", changes="refuse")
    second = take_snapshot(repository, repository / "logs/2/snapshot", changes="refuse")

    assert files(second.code) == files(first.code)
    assert second.untracked == ("logs/",)


def test_a_needed_file_is_tracked(repository: Path, tmp_path: Path) -> None:
    """The training script is in the copy, or it is said why not."""
    folder = repository / "my package"
    (repository / "new.py").touch()
    (tmp_path / "outside.py").touch()

    def wrong(needed: Path) -> str:
        return refused(ScriptError, folder, tmp_path / "snapshot", needed=(needed,))

    assert mentions(wrong(Path("../new.py")), "new.py git add")
    assert mentions(wrong(Path("absent.py")), folder / "absent.py")
    assert mentions(wrong(tmp_path / "outside.py"), tmp_path / "outside.py", repository)
    take_snapshot(folder, tmp_path / "snapshot", changes="refuse", needed=(Path("../train.py"), repository / "run.sh"))


def test_without_a_repository_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repository, no commit, no directory, no git: one line each, with what to do."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    target = tmp_path / "out/snapshot"
    (tmp_path / "out").mkdir()
    (tmp_path / "plain").mkdir()
    assert mentions(refused(UsageError, tmp_path / "plain", target), tmp_path / "plain", "git init")
    git(tmp_path / "plain", "init", "--quiet")
    without_commit = refused(UsageError, tmp_path / "plain", target)
    assert mentions(without_commit, tmp_path / "plain", "commit")
    assert not mentions(without_commit, "init")
    assert mentions(refused(UsageError, tmp_path / "absent", target), tmp_path / "absent")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert mentions(refused(UsageError, tmp_path / "plain", target), "git PATH")


def test_nothing_is_left_of_a_copy_that_fails(repository: Path, tmp_path: Path) -> None:
    """A copy that cannot be made whole is not there at all."""
    (tmp_path / "file").touch()
    with pytest.raises(LogDirError, match=r"file/snapshot.*: (Not a directory|File exists)"):
        take_snapshot(repository, tmp_path / "file/snapshot", changes="refuse")
    (tmp_path / "there").mkdir()
    with pytest.raises(LogDirError, match="/there "):
        take_snapshot(repository, tmp_path / "there", changes="refuse")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "my repo", "there"]


def test_a_copy_that_is_broken_off_leaves_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a Ctrl-C, in the middle."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "there")

    monkeypatch.setattr(shutil, "copy2", fail)
    with pytest.raises(LogDirError, match=r": there: No space left on device"):
        take_snapshot(repository, tmp_path / "snapshot", changes="refuse")

    assert [path.name for path in tmp_path.iterdir()] == ["my repo"]
