"""The secrets of an agent: where they come from, which of them count, and that they are shown nowhere."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.node import mounts
from hpc_launch.rendezvous.transport import keys, munge, secret_files
from hpc_launch.rendezvous.transport.keys import Keyring, collect_keys
from hpc_launch.rendezvous.transport.secret_files import UnusableSecretFile
from tests.support import lines_mention, mentions

ROOT = Path(__file__).parents[2]
PLACE = "cluster/1/0/0"
VALUE = "0123456789abcdef0123456789abcdef"
OTHER_UID = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs files of other users")


@pytest.fixture(autouse=True)
def without_munge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what this machine may have."""
    monkeypatch.setattr(munge, "find_munge", lambda *_, **__: "left out")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home without anything."""
    path = tmp_path / "home"
    path.mkdir()
    return path


def gather(home: Path, job_file: Path | None = None, *, leader: bool = False, **variables: str) -> Keyring:
    return collect_keys({"HOME": str(home), **variables}, PLACE, job_file=job_file, leader=leader)


def sources(keyring: Keyring) -> list[str]:
    return [secret.source for secret in keyring.secrets]


def write(path: Path, text: str = VALUE, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


# ---- what the environment gives


def test_secrets_are_in_the_order_of_their_strength(home: Path, tmp_path: Path) -> None:
    """The user's word, the step's, the key file, the job's."""
    job_file = tmp_path / "key"
    keyring = gather(home, job_file, leader=True, HPC_LAUNCH_SECRET=VALUE, HPC_LAUNCH_STEP_SECRET=VALUE[::-1])

    assert lines_mention(
        keyring.described.split(", "),
        "HPC_LAUNCH_SECRET",
        "HPC_LAUNCH_STEP_SECRET",
        home / ".config/hpc-launch/key",
        tmp_path / "key",
    )


def test_a_secret_of_a_file_is_that_of_the_variable(home: Path, tmp_path: Path) -> None:
    """Blanks around it do not count."""
    file = write(tmp_path / "secret", VALUE + "\n")
    by_file, by_variable = gather(home, HPC_LAUNCH_SECRET_FILE=str(file)), gather(home, HPC_LAUNCH_SECRET=f" {VALUE} ")

    assert by_file.secrets[0].key == by_variable.secrets[0].key


def test_of_the_users_two_variables_the_secret_itself_counts(home: Path) -> None:
    """The file is not looked at."""
    assert sources(gather(home, HPC_LAUNCH_SECRET=VALUE, HPC_LAUNCH_SECRET_FILE="/nowhere"))[0] == "HPC_LAUNCH_SECRET"


@pytest.mark.parametrize("variable", ["HPC_LAUNCH_SECRET", "HPC_LAUNCH_STEP_SECRET"])
@pytest.mark.parametrize("value", ["", "short", " " * 40])
def test_a_short_secret_is_refused(home: Path, variable: str, value: str) -> None:
    """An empty one is a mistake too, such as that of a command that failed."""
    with pytest.raises(UsageError, match=rf"{variable}.*\b[05]\b.*\b16\b.*openssl"):
        collect_keys({"HOME": str(home), variable: value}, PLACE, job_file=None, leader=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_a_secret_file_that_others_may_use_is_refused(home: Path, tmp_path: Path, mode: int) -> None:
    """The message says what to do."""
    file = write(tmp_path / "secret", mode=mode)

    with pytest.raises(UsageError, match=f"HPC_LAUNCH_SECRET_FILE.*{mode:04o}.*chmod 600 {file}"):
        gather(home, HPC_LAUNCH_SECRET_FILE=str(file))


def make_link(path: Path) -> None:
    path.symlink_to(write(path.parent / "target"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "there"),
        (make_link, "symbolic link"),
        (Path.mkdir, "regular file"),
        (os.mkfifo, "regular file"),
        (lambda path: write(path, "short"), r"\b5\b"),
        (lambda path: write(path, "x" * 5000), "4096"),
    ],
    ids=["absent", "link", "directory", "pipe", "short", "long"],
)
def test_a_secret_file_that_is_none_is_refused(home: Path, tmp_path: Path, make: object, words: str) -> None:
    """It is never waited for."""
    assert callable(make)
    make(tmp_path / "secret")

    with pytest.raises(UsageError, match=words):
        gather(home, HPC_LAUNCH_SECRET_FILE=str(tmp_path / "secret"))


@as_root
def test_a_secret_file_of_another_user_is_refused(home: Path, tmp_path: Path) -> None:
    """Its owner may read it."""
    file = write(tmp_path / "secret")
    os.chown(file, OTHER_UID, -1)

    with pytest.raises(UsageError, match=rf"{file} belongs to .*\(uid {OTHER_UID}\)"):
        gather(home, HPC_LAUNCH_SECRET_FILE=str(file))


@as_root
def test_a_secret_file_may_be_in_a_directory_of_another_user(home: Path, tmp_path: Path) -> None:
    """Sites hand out secrets in directories of their own."""
    file = write(tmp_path / "site" / "secret")
    os.chown(file.parent, OTHER_UID, -1)

    assert sources(gather(home, HPC_LAUNCH_SECRET_FILE=str(file)))[0] == f"HPC_LAUNCH_SECRET_FILE ({file})"


# ---- the user's key file


def test_the_key_file_is_made_once(home: Path) -> None:
    """With random content, for this user alone."""
    first, second = gather(home), gather(home)
    path = home / ".config" / "hpc-launch" / "key"
    modes = [entry.stat().st_mode & 0o777 for entry in (path, path.parent)]

    assert (first.secrets, modes, len(path.read_text())) == (second.secrets, [0o600, 0o700], 65)


def test_nothing_is_left_beside_the_key_file(home: Path) -> None:
    """Its temporary name is gone."""
    gather(home)

    assert [path.name for path in (home / ".config" / "hpc-launch").iterdir()] == ["key"]


def test_users_have_keys_of_their_own(home: Path, tmp_path: Path) -> None:
    """No two homes get the same."""
    (tmp_path / "other").mkdir()

    assert gather(home).secrets[0].key != gather(tmp_path / "other").secrets[0].key


def test_a_umask_does_not_open_the_key_file(home: Path) -> None:
    """Nor its directory."""
    before = os.umask(0)
    try:
        gather(home)
    finally:
        os.umask(before)
    path = home / ".config" / "hpc-launch" / "key"

    assert [entry.stat().st_mode & 0o777 for entry in (path, path.parent)] == [0o600, 0o700]


def test_xdg_config_home_comes_first(home: Path, tmp_path: Path) -> None:
    """The key file is made there; one in the usual place counts as well."""
    (tmp_path / "xdg").mkdir()
    gather(home)
    write(tmp_path / "xdg" / "hpc-launch" / "key")
    found = gather(home, XDG_CONFIG_HOME=str(tmp_path / "xdg"))

    assert sources(found) == [f"key file {folder}/hpc-launch/key" for folder in (tmp_path / "xdg", home / ".config")]


def test_a_key_file_is_made_in_one_place_only(home: Path, tmp_path: Path) -> None:
    """A node without XDG_CONFIG_HOME finds the other, if there is one."""
    gather(home)
    gather(home, XDG_CONFIG_HOME=str(tmp_path / "xdg"))

    assert not (tmp_path / "xdg").exists()


def test_without_a_home_in_the_environment_it_is_the_users(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """As in a step with --export=NONE."""
    monkeypatch.setattr(keys, "_home_of_user", lambda: str(home))

    assert sources(collect_keys({}, PLACE, job_file=None, leader=False)) == [f"key file {home}/.config/hpc-launch/key"]


@pytest.mark.parametrize("missing", ["nowhere", ""])
def test_without_a_home_there_is_no_key_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str) -> None:
    """It is not made either; -v says so."""
    monkeypatch.setattr(keys, "_home_of_user", lambda: "")
    home = tmp_path / missing if missing else Path("relative")
    found = gather(home)

    assert (found.secrets, (tmp_path / "nowhere").exists(), Path("relative").exists()) == ((), False, False)


def test_a_home_that_cannot_be_written_is_passed_by(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises nothing; -v says so."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    found = gather(home)

    assert lines_mention(found.skipped, f"{home}/.config/hpc-launch/key: Read-only", "munge")


def plant(home: Path, mode: int = 0o600, folder_mode: int = 0o700) -> Path:
    path = write(home / ".config" / "hpc-launch" / "key", mode=mode)
    path.parent.chmod(folder_mode)
    return path


def test_a_key_file_that_others_may_use_does_not_count(home: Path) -> None:
    """Who has it is not known any more."""
    path = plant(home, mode=0o644)
    found = gather(home)

    assert found.secrets == ()
    assert mentions(found.skipped[0], "0644 chmod 600", path)


def test_a_key_file_in_a_directory_for_all_does_not_count(home: Path) -> None:
    """Others may put another in its place."""
    path = plant(home, folder_mode=0o777)
    found = gather(home)

    assert found.secrets == ()
    assert mentions(found.skipped[0], "0777 chmod o-w", path.parent)


@as_root
@pytest.mark.parametrize("whose", ["file", "directory"])
def test_a_key_file_of_another_user_does_not_count(home: Path, whose: str) -> None:
    """Nor one in a directory of another user."""
    path = plant(home)
    os.chown(path if whose == "file" else path.parent, OTHER_UID, -1)

    assert gather(home).secrets == ()


def test_a_link_is_no_key_file(home: Path) -> None:
    """Wherever it leads; nothing is made there."""
    path = plant(home)
    path.unlink()
    path.symlink_to(home / "elsewhere")
    found = gather(home)

    assert (found.secrets, (home / "elsewhere").exists()) == ((), False)


def test_many_processes_make_one_key_file(home: Path) -> None:
    """Whichever is first; all others have the same."""
    program = """
    import os, sys, time
    from pathlib import Path
    from hpc_launch.rendezvous.transport import munge
    from hpc_launch.rendezvous.transport.keys import collect_keys
    munge.find_munge = lambda *_, **__: "left out"
    home = Path(sys.argv[1])
    gate, ends = os.pipe(), []
    for number in range(40):
        there, here = os.pipe()
        if os.fork() == 0:
            os.close(gate[1])
            os.read(gate[0], 1)  # until the other end is closed
            key = collect_keys({"HOME": str(home)}, "place", job_file=home / "job", leader=True).secrets
            os.write(here, b"".join(secret.key for secret in key))
            os._exit(0)
        os.close(here)
        ends.append(there)
    os.close(gate[1])
    print(len({os.read(end, 1000) for end in ends}), sorted(path.name for path in home.rglob("*")))
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code, str(home)], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "1 ['.config', 'hpc-launch', 'job', 'key']\n"


# ---- the key in the job directory


def test_the_leader_makes_the_job_file(home: Path, tmp_path: Path) -> None:
    """For this user alone."""
    path = tmp_path / "job" / "key"
    path.parent.mkdir()
    found = gather(home, path, leader=True)

    assert (sources(found)[-1], path.stat().st_mode & 0o777) == (f"key file {path}", 0o600)


def test_the_others_read_the_job_file_once_it_is_there(home: Path, tmp_path: Path) -> None:
    """They do not make it."""
    path = tmp_path / "key"
    follower = gather(home, path)
    before = follower.refresh(), path.exists()
    leader = gather(home, path, leader=True)
    after = follower.refresh(), follower.refresh()

    assert (before, after, follower.known) == ((False, False), (True, False), leader.known)


def test_the_job_file_of_an_attempt_before_is_used(home: Path, tmp_path: Path) -> None:
    """Agents that were late have it already."""
    path = tmp_path / "key"

    assert gather(home, path, leader=True).known == gather(home, path, leader=True).known


@pytest.mark.parametrize("leader", [True, False])
def test_a_planted_job_file_does_not_count(home: Path, tmp_path: Path, leader: bool) -> None:
    """Its place is looked at, and it is said why it does not."""
    path = write(tmp_path / "job" / "key")
    path.parent.chmod(0o777)
    found = gather(home, path, leader=leader)

    told = [line for line in found.skipped if mentions(line, "0777 chmod o-w", path.parent)]

    assert (len(found.secrets), len(told)) == (1, 1)


def test_a_job_file_that_does_not_count_is_said_once(home: Path, tmp_path: Path) -> None:
    """However often it is looked for."""
    path = write(tmp_path / "key", mode=0o666)
    found = gather(home, path)
    before = found.skipped
    found.refresh()

    assert found.skipped == before


# ---- keys of a place


def test_each_place_has_keys_of_its_own(home: Path) -> None:
    """A step, a job and a restart cannot speak for another."""
    environ = {"HOME": str(home), "HPC_LAUNCH_SECRET": VALUE}
    found = {
        secret.key
        for place in ("cluster/1/0/0", "cluster/1/0/1", "cluster/1/1/0", "other/1/0/0")
        for secret in collect_keys(environ, place, job_file=None, leader=False).secrets
    }

    assert len(found) == 8


def test_secrets_are_shown_nowhere(home: Path, tmp_path: Path) -> None:
    """Not what was given, and no key that is made of it."""
    found = gather(home, tmp_path / "key", leader=True, HPC_LAUNCH_SECRET=VALUE)
    shown = repr(found) + repr(found.secrets) + repr(found.known) + found.described + str(found.skipped)
    hidden = [VALUE, (tmp_path / "key").read_text().strip()]
    hidden += [text for secret in found.secrets for text in (secret.key.hex(), repr(secret.key)[2:-1])]

    assert not [text for text in hidden if text in shown]


def test_a_refused_secret_is_not_shown(home: Path) -> None:
    """Short as it is, it may be used elsewhere."""
    with pytest.raises(UsageError) as raised:
        gather(home, HPC_LAUNCH_SECRET="hunter2")

    assert "hunter2" not in str(raised.value)


def test_nothing_at_all_is_none() -> None:
    """The words are those of messages."""
    found = Keyring(PLACE)

    assert (found.empty, found.described, found.known) == (True, "none", ())


def test_insecure_is_something_that_was_asked_for() -> None:
    """It is named as the option is."""
    found = Keyring(PLACE, insecure=True)

    assert (found.empty, found.described) == (False, "--insecure-rendezvous")


# ---- file systems


def mount(kind: str, options: str = "rw") -> str:
    return f"36 35 98:0 / /mnt rw,noatime master:1 - {kind} server:/export {options}\n"


@pytest.mark.parametrize(
    "line",
    [
        mount("ext4"),
        mount("nfs4", "rw,vers=4.2,sec=sys"),
        mount("lustre"),
        mount("gpfs"),
        mount("beegfs"),
        mount("ceph"),
        mount("tmpfs"),
        mount("overlay", "rw,lowerdir=/a"),
        mount("fuse.glusterfs", "rw,user_id=0,group_id=0,default_permissions,allow_other"),
        mount("fuse.sshfs", "rw,user_id=1000,group_id=1000"),
        "36 35 98:0 / /mnt rw - ext4 /dev/a rw\n",
    ],
)
def test_permissions_of_most_file_systems_count(line: str) -> None:
    """Those of clusters among them."""
    assert secret_files.unjudged(next(mounts.read([line]))) == ""


@pytest.mark.parametrize(
    "line",
    [
        mount("cifs", "rw,uid=1000,file_mode=0600"),
        mount("smb3"),
        mount("afs"),
        mount("9p"),
        mount("vfat", "rw,fmask=0077"),
        mount("fuse.rclone", "rw,user_id=0,group_id=0,allow_other"),
        mount("fuseblk", "rw,user_id=0,group_id=0,allow_other"),
        "",
        "nonsense",
    ],
)
def test_permissions_of_some_file_systems_say_nothing(line: str) -> None:
    """Their server, or an option of the mount, decides who may read."""
    assert secret_files.unjudged(next(mounts.read([line]), None))


def test_a_file_system_is_found_by_an_open_file() -> None:
    """By the number of its mount."""
    with Path("/proc/self/status").open() as file:
        found = mounts.of_file(file.fileno())

    assert found is not None
    assert (found.kind, found.point) == ("proc", "/proc")
    assert mounts.of_file(1 << 20) is None


def test_a_secret_on_such_a_file_system_is_passed_by(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-v says so."""
    monkeypatch.setattr(mounts, "of_file", lambda _: next(mounts.read([mount("cifs")])))
    found = gather(home)

    assert (found.secrets, mentions(found.skipped[0], "cifs")) == ((), True)


def test_a_file_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    """Such as one of a name that is too long."""
    with pytest.raises(UnusableSecretFile, match=os.strerror(errno.ENAMETOOLONG)):
        secret_files.make_secret_file(tmp_path / ("x" * 256), b"content")
