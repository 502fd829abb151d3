"""The code as it is now: a copy of what git tracks, for a job that starts later.

What lies in the working tree is copied, not what was committed, so that a file that git has changed on its way out (a
large file's pointer, another line ending) is what would have run here.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpc_launch import codec
from hpc_launch.errors import LogDirError, ScriptError, UsageError, reason

Changes = Literal["refuse", "record"]

# The options of `hpc-launch submit` that the messages name.
OPTION = "--snapshot"
RECORD = "--snapshot-changes=record"

CODE, PATCH, RECORD_FILE = "code", "changes.patch", "snapshot.json"

# The mode of a submodule in the index.
_GITLINK = "160000"

# So many names a message has room for.
_NAMED = 3

# What would make git speak of another repository than that of the directory: git sets these for hooks and aliases.
_FOREIGN = re.compile(r"GIT_(DIR|WORK_TREE|INDEX_FILE|INDEX_VERSION|OBJECT_DIRECTORY|COMMON_DIR|NAMESPACE|PREFIX)")

# Which tracked files differ from the commit, with two letters before each; a renamed one is two.
_STATUS = ["status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames"]

# What a changed file is: its content, whatever the user's settings make of `git diff`.
_DIFF = ["diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"]


@dataclass(frozen=True)
class CodeSnapshot:
    """A copy of the files that git tracks.

    Attributes:
        root: what was made: `code/` with the files, `snapshot.json` with what is said here, and `changes.patch`, which
            makes of the commit what was copied.
        directory: where the directory that was asked for now lies.
        repository: the top of the repository that was copied.
        commit: the commit that is checked out there.
        dirty: whether tracked files differed from it.
        submodules: the commits of the submodules, by their paths in the repository.
        untracked: what lies in the repository, is neither tracked nor ignored, and so was not copied; a directory of
            such files ends with a slash.
    """

    root: Path
    directory: Path
    repository: Path
    commit: str
    dirty: bool
    submodules: Mapping[str, str]
    untracked: tuple[str, ...] = ()

    @property
    def code(self) -> Path:
        """Where the top of the repository now lies."""
        return self.root / CODE


def take_snapshot(directory: Path, destination: Path, *, changes: Changes, needed: Sequence[Path] = ()) -> CodeSnapshot:
    """Copy the tracked files of the repository that a directory lies in, as they are now.

    Submodules that are checked out are copied too. A symbolic link to something that is copied leads to the copy;
    another one to what it led to. The copy appears as a whole or not at all.

    Args:
        directory: a directory of the repository; of the innermost one, where it lies in several.
        destination: what to make; it is not there yet.
        changes: what to do where tracked files differ from the commit: refuse, or copy them as they are and write down
            how they differ.
        needed: files that have to be in the copy, such as the training script, seen from `directory`.

    Raises:
        UsageError: there is no git, no repository or no commit, or there are changes which are to be refused.
        ScriptError: a needed file is not there, or not tracked.
        LogDirError: the copy cannot be written, or something changed meanwhile.
    """
    directory = directory.resolve()
    top = _top(directory)
    commit = _commit(top)
    tracked, submodules = _tracked(top)
    _check_needed(top, directory, needed, tracked)
    changed = _changed(top, submodules)
    if changed and changes == "refuse":
        raise UsageError(
            f"{OPTION}: uncommitted changes in {_few(changed)}: commit them, or give {RECORD} to run them and keep a "
            "patch",
            option=OPTION,
        )
    others = _entries(_git(top, ["ls-files", "-z", "--others", "--exclude-standard", "--directory"]))
    snapshot = CodeSnapshot(
        root=destination,
        directory=destination / CODE / directory.relative_to(top),
        repository=top,
        commit=commit,
        dirty=bool(changed),
        submodules=submodules,
        untracked=tuple(others),
    )
    # Written before anything is copied, so that a change that comes meanwhile is in the copy rather than in the patch.
    patch = _patch(top, submodules) if changed else b""
    if destination.exists():
        raise LogDirError(f"{OPTION}: {destination} is there already")
    try:
        _write(snapshot, directory, tracked, patch)
    except OSError as error:
        where = error.filename or destination
        raise LogDirError(f"{OPTION}: cannot copy {top} to {destination}: {where}: {reason(error)}") from error
    return snapshot


# --- what git says


def _top(directory: Path) -> Path:
    return Path(os.fsdecode(_git(directory, ["rev-parse", "--show-toplevel"]).removesuffix(b"\n")))


def _commit(top: Path) -> str:
    try:
        return _git(top, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).decode().strip()
    except UsageError:
        raise UsageError(f"{OPTION}: {top} has no commit yet: make one with 'git commit'", option=OPTION) from None


def _check_needed(top: Path, directory: Path, needed: Sequence[Path], tracked: Sequence[str]) -> None:
    for path in needed:
        # The file's own name may be a link, which is tracked as such.
        whole = directory / path
        place = whole.parent.resolve() / whole.name
        if not whole.is_file():
            raise ScriptError(f"{OPTION}: there is no file {whole}")
        if not place.is_relative_to(top):
            raise ScriptError(f"{OPTION}: {place} is not in the repository {top}, and would not be copied")
        name = str(place.relative_to(top))
        if name not in tracked:
            raise ScriptError(f"{OPTION}: git does not track {name}: add it with 'git add', and commit it")


def _tracked(top: Path) -> tuple[list[str], dict[str, str]]:
    """The tracked files, also those of submodules that are checked out; and the commits of these submodules.

    `ls-files --recurse-submodules` would pass over a repository that was added without being named in .gitmodules.
    """
    names: dict[str, None] = {}  # in order, and each once: a file in conflict is listed three times
    submodules: dict[str, str] = {}
    for entry in _entries(_git(top, ["ls-files", "-z", "--stage"])):
        mode, _, rest = entry.partition(" ")
        name = rest.partition("\t")[2]
        if mode == _GITLINK and (top / name / ".git").exists():
            inner, commits = _tracked(top / name)
            names |= {f"{name}/{path}": None for path in inner}
            submodules |= {name: _commit(top / name)} | {f"{name}/{path}": commit for path, commit in commits.items()}
        else:
            names[name] = None
    return list(names), submodules


def _changed(top: Path, submodules: Mapping[str, str]) -> list[str]:
    """The tracked files that differ from the commit, in the working tree or in the index."""
    found = []
    for folder in ("", *submodules):
        # Of a submodule that is there, its own files are looked at, and here only whether it is at another commit.
        entries = _entries(_git(top / folder, [*_STATUS, "--ignore-submodules=dirty"]))
        found += [str(Path(folder, entry[len("XY ") :])) for entry in entries]
    return sorted(found)


def _patch(top: Path, submodules: Mapping[str, str]) -> bytes:
    parts = []
    for folder in ("", *submodules):
        prefix = f"{folder}/" if folder else ""
        names = [f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}"]
        parts.append(_git(top / folder, [*_DIFF, "--ignore-submodules=dirty", *names, "HEAD"]))
    return b"".join(parts)


def _entries(output: bytes) -> list[str]:
    """What `-z` has ended with NULs."""
    return [os.fsdecode(entry) for entry in output.split(b"\0") if entry]


def _few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _git(directory: Path, arguments: Sequence[str]) -> bytes:
    """Run git in a directory, and return what it prints.

    GIT_OPTIONAL_LOCKS=0 keeps `git status` from writing what it has learnt to the index, and without a monitor of files
    git starts nothing that would stay.
    """
    environ = {name: value for name, value in os.environ.items() if not _FOREIGN.fullmatch(name)}
    environ |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        if not directory.is_dir():
            raise UsageError(f"{OPTION}: there is no directory {directory}", option=OPTION) from None
        raise UsageError(
            f"{OPTION}: there is no git program on PATH: load a module that has it, or leave {OPTION} out",
            option=OPTION,
        ) from None
    except OSError as error:
        raise UsageError(f"{OPTION}: cannot run git in {directory}: {reason(error)}", option=OPTION) from error
    if done.returncode == 0:
        return done.stdout
    said = [line.removeprefix("fatal: ") for line in done.stderr.decode(errors="replace").splitlines() if line]
    if "not a git repository" in "".join(said):
        raise UsageError(
            f"{OPTION}: {directory} is in no git repository: 'git init' and commit the code, or leave {OPTION} out",
            option=OPTION,
        )
    story = "; ".join(said) or f"status {done.returncode}"
    raise UsageError(f"{OPTION}: git {arguments[0]} failed in {directory}: {story}", option=OPTION)


# --- the copy


def _write(snapshot: CodeSnapshot, directory: Path, tracked: Sequence[str], patch: bytes) -> None:
    """Make the copy beside where it shall be, and put it there."""
    destination = snapshot.root
    destination.parent.mkdir(parents=True, exist_ok=True)
    draft = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}")
    try:
        code = draft / CODE
        # The directory is there even where git tracks nothing in it.
        (code / directory.relative_to(snapshot.repository)).mkdir(parents=True)
        _copy(snapshot.repository, code, tracked)
        if snapshot.dirty:
            (draft / PATCH).write_bytes(patch)
        (draft / RECORD_FILE).write_text(codec.document(snapshot))
        draft.rename(destination)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _copy(top: Path, code: Path, tracked: Sequence[str]) -> None:
    there = set(tracked)
    folders = {str(parent) for name in tracked for parent in Path(name).parents}
    for name in tracked:
        source, target = top / name, code / name
        try:
            mode = source.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted, or left out by a sparse checkout
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(mode):
            target.symlink_to(_led(top, source, there | folders))
        elif stat.S_ISREG(mode):
            shutil.copy2(source, target)
        elif stat.S_ISDIR(mode):
            target.mkdir(exist_ok=True)  # a submodule that is not checked out


def _led(top: Path, link: Path, copied: set[str]) -> str:
    """What the copy of a symbolic link says."""
    said = link.readlink()
    meant = Path(os.path.normpath(link.parent.resolve() / said))
    inside = meant.is_relative_to(top) and str(meant.relative_to(top)) in copied
    return os.path.relpath(meant, link.parent) if inside else str(meant)
