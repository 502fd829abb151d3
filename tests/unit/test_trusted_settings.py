"""Settings, profiles and templates of others: they do not count, one line says so, and a directory can be trusted."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpc_launch import file_ownership
from hpc_launch.cli import cli
from hpc_launch.errors import UsageError
from hpc_launch.file_ownership import settings_trust
from hpc_launch.settings import resolve, settings_files
from hpc_launch.submission import templates
from tests.support import mentions
from tests.users import ALICE, BOB, PROJECT_GROUP, common_directory, give, needs_root, run_as

TEMPLATE = "#!/bin/bash\n# Of somebody.\nsrun hpc-launch train.py\n"


@dataclass(frozen=True)
class Machine:
    """A home, a project's directory, and the site's."""

    root: Path

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def config(self) -> Path:
        return self.root / "home/.config/hpc-launch"

    @property
    def environ(self) -> dict[str, str]:
        return {"HOME": str(self.root / "home")}

    def load(self, profile: str = "") -> settings_files.SettingsFiles:
        return settings_files.load_settings_files(self.environ, self.project, profile, self.root / "etc")

    def restarts(self) -> int:
        return resolve({}, {}, self.load().layers).max_restarts


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    for folder in (made.project, made.config, tmp_path / "etc"):
        folder.mkdir(parents=True)
    return made


@pytest.fixture
def project_file(machine: Machine) -> Path:
    path = machine.project / "hpc-launch.toml"
    path.write_text("max-restarts = 3\n[profiles.fast]\nmax-restarts = 4\n")
    return path


def test_ones_own_count(machine: Machine, project_file: Path) -> None:
    """An ordinary project's settings are as before."""
    assert (project_file.exists(), machine.restarts(), machine.load().notes) == (True, 3, ())


@needs_root
def test_a_file_of_somebody_else(machine: Machine, project_file: Path) -> None:
    """It does not count, and the line names it, its owner, and the setting that makes it count."""
    give(project_file, ALICE)
    (note,) = machine.load().notes

    assert machine.restarts() == 0
    assert mentions(note, project_file, ALICE, f'trusted = ["{machine.project}"]')


@needs_root
def test_a_directory_of_somebody_else(machine: Machine, project_file: Path) -> None:
    """Its owner can put another file there, so that one's own does not count either."""
    give(machine.project, ALICE)

    assert (project_file.exists(), machine.restarts()) == (True, 0)


@needs_root
@pytest.mark.parametrize("what", ["project", "project/hpc-launch.toml"])
def test_a_group_that_may_write(machine: Machine, project_file: Path, what: str) -> None:
    """The group of a project is not one's own."""
    give(machine.root / what, 0, PROJECT_GROUP)
    (machine.root / what).chmod(0o775 if what == "project" else 0o664)

    assert (project_file.exists(), machine.restarts()) == (True, 0)
    assert mentions(machine.load().notes[0], project_file, PROJECT_GROUP)


@needs_root
@pytest.mark.parametrize("file", ["home/.config/hpc-launch/config.toml", "etc/config.toml"])
def test_a_trusted_directory(machine: Machine, project_file: Path, file: str) -> None:
    """The user or the site lists it: then its owner and its group are trusted, below it too."""
    give(machine.project, ALICE, PROJECT_GROUP, 0o2775)
    give(project_file, BOB, PROJECT_GROUP, 0o664)
    (machine.root / file).write_text(f'trusted = ["{machine.root}"]\n')

    assert (machine.restarts(), machine.load().notes) == (3, ())


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_everybody_may_write(machine: Machine, project_file: Path, mode: int) -> None:
    """Neither the sticky bit nor the list of trusted directories changes that."""
    machine.project.chmod(mode)
    (machine.config / "config.toml").write_text(f'trusted = ["{machine.project}"]\n')

    assert (project_file.exists(), machine.restarts()) == (True, 0)
    assert mentions(machine.load().notes[0], project_file, machine.project, f"{mode:04o}")


def test_a_file_that_everybody_may_write(machine: Machine, project_file: Path) -> None:
    """It does not count, wherever it is."""
    project_file.chmod(0o666)

    assert machine.restarts() == 0


@needs_root
def test_the_users_and_the_sites_files_too(machine: Machine) -> None:
    """Each is looked at, and each has a line."""
    for path in (machine.config / "config.toml", machine.root / "etc/config.toml"):
        path.write_text("max-restarts = 5\n")
        give(path, ALICE)

    assert (machine.restarts(), len(machine.load().notes)) == (0, 2)


def test_a_link_to_a_file_of_ones_own(machine: Machine, project_file: Path) -> None:
    """Settings are often links to a repository of such files."""
    (machine.config / "config.toml").symlink_to(project_file)
    project_file.write_text("max-restarts = 6\n")

    assert machine.restarts() == 6


@needs_root
def test_a_link_to_a_file_in_a_directory_of_others(machine: Machine, project_file: Path) -> None:
    """The directory of the file counts as well as that of the link."""
    (machine.config / "config.toml").symlink_to(project_file)
    give(machine.project, ALICE)

    assert [entry.found for entry in machine.load().looked if entry.origin.value == "user's file"] == ["ignored"]


@needs_root
@pytest.mark.parametrize(
    ("text", "notes"),
    [("[tool.hpc-launch]\nmax-restarts=2\n", 1), ("dependencies = ['hpc-launch']\n", 0), ("hpc-launch [", 0)],
)
def test_pyproject_of_somebody_else(machine: Machine, text: str, notes: int) -> None:
    """A line is due where it has settings only, and what is wrong in it is no error."""
    path = machine.project / "pyproject.toml"
    path.write_text(text)
    give(path, ALICE)

    assert (machine.restarts(), len(machine.load().notes)) == (0, notes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trusted = '/x'", "list"),
        ("trusted = ['x']", "'x'.*/.*~"),
        ("trusted = [1]", "list"),
    ],
)
def test_trusted_is_a_list_of_whole_paths(machine: Machine, text: str, words: str) -> None:
    """What it cannot be is refused."""
    (machine.config / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        machine.load()


def test_a_project_cannot_trust_itself(machine: Machine, project_file: Path) -> None:
    """The key counts in the files of the user and of the site."""
    project_file.write_text(f'trusted = ["{machine.project}"]\n')
    with pytest.raises(UsageError, match="trusted"):
        machine.load()


@needs_root
def test_a_profile_of_somebody_else_that_is_named(machine: Machine, tmp_path: Path) -> None:
    """Whoever names a file trusts its owner."""
    (tmp_path / "fast.toml").write_text("max-restarts = 7\n")
    give(tmp_path / "fast.toml", ALICE)

    assert machine.load(str(tmp_path / "fast.toml")).layers[0].entries["max_restarts"].value == 7


def test_a_profile_that_everybody_may_write(machine: Machine, tmp_path: Path) -> None:
    """Nobody can vouch for it."""
    (tmp_path / "fast.toml").write_text("max-restarts = 7\n")
    (tmp_path / "fast.toml").chmod(0o666)
    with pytest.raises(UsageError, match="everybody may write"):
        machine.load(str(tmp_path / "fast.toml"))


@pytest.mark.parametrize(
    ("names", "members", "private"),
    [("bob", [], True), ("bob", ["bob"], True), ("bob", ["eve"], False), ("users", [], False)],
)
def test_the_users_private_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, members: list[str], private: bool
) -> None:
    """It is the primary one, has the user's name, and no other members."""
    me, its = (
        type("Entry", (), values) for values in ({"pw_gid": 7, "pw_name": "bob"}, {"gr_name": names, "gr_mem": members})
    )
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(grp, "getgrgid", lambda _: its)
    entry = file_ownership.FileStatus(tmp_path, os.geteuid(), 7, stat.S_IFDIR | 0o775)

    assert private == settings_trust._is_private_group(entry)


def test_a_private_group_with_an_access_control_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode shows its mask only: others may be named in it."""
    me = type("Entry", (), {"pw_gid": 7, "pw_name": "bob"})
    its = type("Entry", (), {"gr_name": "bob", "gr_mem": []})
    monkeypatch.setattr(pwd, "getpwuid", lambda _: me)
    monkeypatch.setattr(grp, "getgrgid", lambda _: its)
    monkeypatch.setattr(os, "getxattr", lambda *_: b"a list")
    entry = file_ownership.FileStatus(tmp_path, os.geteuid(), 7, stat.S_IFDIR | 0o775)

    assert not settings_trust._is_private_group(entry)


@needs_root
def test_sites_files_in_a_container(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace root's files have no owner, and the site's are root's by their place."""
    path = machine.root / "etc/config.toml"
    path.write_text("max-restarts = 8\n")
    give(path, 65534)
    before = machine.restarts()
    monkeypatch.setattr(settings_trust, "_in_user_namespace", lambda: True)

    assert (before, machine.restarts()) == (0, 8)


# ---- templates


@pytest.fixture
def template(machine: Machine) -> Path:
    path = machine.project / ".hpc-launch/templates/cpu.sbatch"
    path.parent.mkdir(parents=True)
    path.write_text(TEMPLATE)
    return path


def get(machine: Machine, word: str) -> templates.JobTemplate:
    return templates.get_template(word, machine.environ, machine.project, machine.root / "etc")


@needs_root
def test_a_template_of_somebody_else(machine: Machine, template: Path) -> None:
    """The one that comes next counts, and a line names the other."""
    give(template, ALICE)
    found = get(machine, "cpu")

    assert found.shipped
    assert [line.startswith(f"{template} is not used: ") for line in found.ignored] == [True]


@needs_root
def test_a_template_in_a_trusted_directory(machine: Machine, template: Path) -> None:
    """The list of the settings is that of the templates."""
    give(template, ALICE)
    (machine.config / "config.toml").write_text(f'trusted = ["{machine.project}"]\n')

    assert get(machine, "cpu").path == template


@needs_root
def test_the_only_template_of_a_name(machine: Machine, template: Path) -> None:
    """The error says why it does not count, rather than that there is none."""
    only = template.rename(template.with_name("ours.sbatch"))
    give(only, ALICE)
    with pytest.raises(UsageError, match=rf"ours\.sbatch.* {ALICE}\b"):
        get(machine, "ours")


def test_a_named_template_that_everybody_may_write(machine: Machine, template: Path) -> None:
    """Nobody can vouch for it."""
    template.chmod(0o666)
    with pytest.raises(UsageError, match="everybody may write"):
        get(machine, str(template))


# ---- what is shown


@needs_root
def test_config_files_shows_what_is_ignored(
    machine: Machine, project_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason."""
    give(project_file, ALICE)
    monkeypatch.chdir(machine.project)
    lines = CliRunner().invoke(cli, ["config", "files"]).stdout.splitlines()

    assert [line for line in lines if "ignored" in line and f"({project_file} belongs to" in line] != []


@needs_root
def test_explain_says_what_is_ignored(machine: Machine, project_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line among the notes."""
    give(project_file, ALICE)
    (machine.project / "train.py").touch()
    monkeypatch.chdir(machine.project)
    shown = CliRunner().invoke(cli, ["explain", "train.py"]).stdout

    assert sum(mentions(line, "note", project_file, ALICE) for line in shown.splitlines()) == 1


@pytest.fixture
def common() -> Iterator[Path]:
    with common_directory() as path:
        yield path


@needs_root
@pytest.mark.parametrize(("owner", "restarts"), [(0, "2"), (BOB, "2"), (ALICE, "0")])
def test_another_user_reads_them(common: Path, owner: int, restarts: str) -> None:
    """Settings of oneself and of root count, and those of a third do not."""
    common.chmod(0o755)
    give(common, owner)
    path = common / "hpc-launch.toml"
    path.write_text("max-restarts = 2\n")
    give(path, owner)

    def read() -> str:
        return str(
            resolve({}, {}, settings_files.load_settings_files({}, common, "", common / "etc").layers).max_restarts
        )

    read()  # the parser of TOML is imported
    assert run_as(BOB, read) == restarts
