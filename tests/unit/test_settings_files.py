"""Settings files: where they are found, whose word counts, what they may say, and that what is written is read back."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch.errors import UsageError
from hpc_launch.settings import (
    PROCESS_WORDS,
    REQUEUE_REASONS,
    ConsoleChoice,
    CpuBind,
    NodeRange,
    OptionSpec,
    Origin,
    Settings,
    StreamChoice,
    Streams,
    resolve,
    settings_files,
    specs,
    toml_writer,
)
from hpc_launch.settings.layer import Table, layer_of
from tests.support import mentions

ROOT = Path(__file__).parents[2]
IN_FILES = {name: spec for name, spec in specs().items() if not spec.not_in_files}


@dataclass(frozen=True)
class Place:
    """A made-up machine: somebody's home with a project in it, and the site's directory."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def project(self) -> Path:
        return self.home / "work/project"

    @property
    def inside(self) -> Path:
        return self.project / "src/deep"

    def write(self, where: str, text: str) -> Path:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def load(self, environ: Mapping[str, str] | None = None, profile: str = "", directory: Path | None = None) -> Any:
        home = {"HOME": str(self.home)}
        return settings_files.load_settings_files(
            {**home, **(environ or {})}, directory or self.inside, profile, self.root / "etc"
        )

    def settings(
        self, flags: Mapping[str, str | bool] | None = None, environ: Mapping[str, str] | None = None
    ) -> Settings:
        found = self.load(environ, str((flags or {}).get("profile", "")))
        return resolve(flags or {}, environ or {}, found.layers)

    def refused(self, environ: Mapping[str, str] | None = None) -> str:
        with pytest.raises(UsageError) as caught:
            self.settings({}, environ)
        assert caught.value.exit_status == 2
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.inside.mkdir(parents=True)
    return made


PROJECT = "home/work/project/hpc-launch.toml"
SHARED = "home/work/project/pyproject.toml"
USER = "home/.config/hpc-launch/config.toml"
SITE = "etc/config.toml"


# ---- whose word counts


VOICES: list[tuple[str, Origin, str]] = [
    ("flag", Origin.FLAG, "--max-restarts"),
    ("variable", Origin.ENVIRONMENT, "HPC_LAUNCH_MAX_RESTARTS"),
    ("torchrun", Origin.TORCHRUN_ENVIRONMENT, "PET_MAX_RESTARTS"),
    ("project's profile", Origin.PROFILE, f"{PROJECT}: profiles.fast.max-restarts"),
    ("user's profile", Origin.PROFILE, f"{USER}: profiles.fast.max-restarts"),
    ("site's profile", Origin.PROFILE, f"{SITE}: profiles.fast.max-restarts"),
    ("project", Origin.PROJECT, f"{PROJECT}: max-restarts"),
    ("user", Origin.USER, f"{USER}: max-restarts"),
    ("site", Origin.SITE, f"{SITE}: max-restarts"),
]


def speak(place: Place, voices: Sequence[str]) -> Settings:
    """Let each of these voices ask for another number of restarts, their place in VOICES."""
    number = {voice: index for index, (voice, _, _) in enumerate(VOICES)}
    for path, owner in ((PROJECT, "project"), (USER, "user"), (SITE, "site")):
        own = [f"max-restarts = {number[owner]}"] if owner in voices else []
        named = f"{owner}'s profile"
        profile = ["[profiles.fast]", f"max-restarts = {number[named]}"] if named in voices else []
        place.write(path, "\n".join([*own, *profile, ""]))
    flags = {"max_restarts": "0"} if "flag" in voices else {}
    environ = {"HPC_LAUNCH_PROFILE": "fast"} if any("profile" in voice for voice in voices) else {}
    environ |= {"HPC_LAUNCH_MAX_RESTARTS": "1"} if "variable" in voices else {}
    environ |= {"PET_MAX_RESTARTS": "2"} if "torchrun" in voices else {}
    return place.settings(flags, environ)


@pytest.mark.parametrize("strongest", range(len(VOICES)), ids=[voice for voice, _, _ in VOICES])
def test_the_strongest_voice_wins(place: Place, strongest: int) -> None:
    """Flag > HPC_LAUNCH_* > PET_* > profile > project > user > site, and it is known where the value is from."""
    settings = speak(place, [voice for voice, _, _ in VOICES[strongest:]])
    _, origin, where = VOICES[strongest]

    assert (strongest, origin) == (settings.max_restarts, settings.origin("max_restarts"))
    assert settings.places["max_restarts"].removeprefix(f"{place.root}/") == where


def test_each_option_is_decided_by_itself(place: Place) -> None:
    """Files add up; an option that a stronger one leaves out is that of the weaker."""
    place.write(PROJECT, "max-restarts = 1\n")
    place.write(USER, "max-restarts = 2\nverbose = true\n")
    place.write(SITE, 'verbose = false\ninterface = "ib0"\nport_range = "20000-20999"\n')
    settings = place.settings({"port_range": "30000"})

    assert (settings.max_restarts, settings.verbose, settings.interface) == (1, True, "ib0")
    assert settings.port_range == range(30000, 30001)
    assert [*settings.origins.values()] == [Origin.SITE, Origin.FLAG, Origin.PROJECT, Origin.USER]


def test_without_files_nothing_is_said(place: Place) -> None:
    """No file is no error, and leaves the defaults."""
    assert Settings() == place.settings()


def test_a_switch_that_a_file_turns_on_is_turned_off(place: Place) -> None:
    """A stronger voice takes back what a file says, and a weaker one is not even read."""
    place.write(SITE, "use-env = false\nmax-restarts = 'x'\n")
    settings = place.settings({}, {"HPC_LAUNCH_USE_ENV": "1", "HPC_LAUNCH_MAX_RESTARTS": "1"})

    assert (settings.use_env, settings.max_restarts) == (True, 1)


def test_the_default_of_the_drop_in_gives_way_to_a_file(place: Place) -> None:
    """What a file says of --use-env holds for `python -m hpc_launch.launch` too."""
    place.write(PROJECT, "use-env = true\n")

    assert resolve({}, {}, place.load().layers, use_env=False).use_env


# ---- where files are found


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ({PROJECT: ""}, PROJECT),
        ({SHARED: "[tool.hpc-launch]\n"}, SHARED),
        ({SHARED: "[tool.hpc-launch]\n", PROJECT.replace("project/", ""): ""}, SHARED),
        ({SHARED: "[tool.other]\nname = 'hpc-launch'\n", PROJECT.replace("project/", ""): ""}, "home/work/"),
        ({SHARED: "broken, but not ours", PROJECT.replace("project/", ""): ""}, "home/work/"),
        ({SHARED: "tool = 'hpc-launch'", "home/hpc-launch.toml": ""}, "home/hpc-launch.toml"),
        ({PROJECT: "", PROJECT.replace("hpc-launch", "src/hpc-launch"): ""}, "home/work/project/src/"),
        ({PROJECT: "", SHARED: "[project]\nname = 'x'\ndependencies = ['hpc-launch']\n"}, PROJECT),
        ({"hpc-launch.toml": ""}, ""),
        ({}, ""),
    ],
)
def test_the_nearest_project_file(place: Place, texts: Mapping[str, str], found: str) -> None:
    """The first directory with settings, from the working directory up to the user's home, is the project's."""
    for path, text in texts.items():
        place.write(path, text)
    looked = [entry for entry in place.load().looked if entry.origin is Origin.PROJECT]
    there = [str(entry.path.relative_to(place.root)) for entry in looked if entry.found == "found"]

    assert ([found] if found else []) == [path[: len(found)] for path in there]
    assert len(looked) <= 2 * 5


def test_the_search_stays_out_of_directories_that_everybody_may_write_to(place: Place) -> None:
    """Settings in /tmp do not count, from a directory below it and from there itself."""
    place.write(PROJECT, "max-restarts = 1\n")
    place.project.chmod(0o1777)

    assert (place.settings().max_restarts, place.load(directory=place.project).layers) == (0, ())


def test_without_a_home_the_search_goes_on_upwards(place: Place) -> None:
    """Somewhere outside of the home, it ends at the root of the file system."""
    place.write("hpc-launch.toml", "max-restarts = 1\n")
    found = settings_files.load_settings_files({}, place.inside, "", place.root / "etc")

    assert resolve({}, {}, found.layers).max_restarts == 1
    assert Origin.USER not in {entry.origin for entry in found.looked}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("{root}/xdg", "xdg/hpc-launch/config.toml"),
        ("", USER),
        ("relative", USER),
    ],
)
def test_the_users_file(place: Place, value: str, path: str) -> None:
    """XDG_CONFIG_HOME says where it is, if it is absolute; else ~/.config."""
    place.write(path, "max-restarts = 1\n")
    found = place.load({"XDG_CONFIG_HOME": value.format(root=place.root)})

    assert [layer.table.file for layer in found.layers] == [str(place.root / path)]


def test_the_sites_file_is_in_etc(place: Place) -> None:
    """Unless told otherwise, the site's file is looked for in /etc/hpc-launch."""
    looked = settings_files.load_settings_files({}, place.inside).looked

    assert [str(entry.path) for entry in looked if entry.origin is Origin.SITE] == ["/etc/hpc-launch/config.toml"]


def test_what_is_no_directory_has_no_file(place: Place) -> None:
    """A file where the directory of a settings file would be is no error."""
    place.write("home/.config", "")

    assert Settings() == place.settings()


# ---- profiles


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_profile_is_named_by_flag_or_variable(place: Place, how: str) -> None:
    """Of all profiles the named one counts, and what it leaves out is as without it."""
    place.write(PROJECT, "max-restarts = 1\nverbose = true\n[profiles.a]\nmax-restarts = 2\n[profiles.b]\nrole='b'\n")
    settings = place.settings({"profile": "a"}) if how == "flag" else place.settings({}, {"HPC_LAUNCH_PROFILE": "a"})

    assert (settings.max_restarts, settings.verbose, settings.role) == (2, True, "default")
    assert settings.profile == "a"


def test_profiles_in_pyproject(place: Place) -> None:
    """They stand below the table of hpc-launch, and messages say so."""
    path = place.write(SHARED, "[tool.hpc-launch.profiles.'my own']\nmax-restarts = -1\n")

    told = place.refused({"HPC_LAUNCH_PROFILE": "my own"})
    assert told.startswith(f"{path}: tool.hpc-launch.profiles.my own.max-restarts: -1 ")


def test_a_profile_that_is_a_file(place: Place) -> None:
    """A name with a slash, or that ends with .toml, is a file, seen from the working directory."""
    path = place.write("home/work/project/src/deep/mine.toml", "max-restarts = 4\n")
    for name in ("mine.toml", "./mine.toml", "../deep/mine.toml", str(path)):
        settings = place.settings({"profile": name})

        assert (settings.max_restarts, settings.origin("max_restarts")) == (4, Origin.PROFILE)


@pytest.mark.parametrize("name", settings_files.shipped_profiles())
def test_the_profiles_that_come_with_hpc_launch(place: Place, name: str) -> None:
    """Each can be read, says something, and gives way to a profile of the same name that files have."""
    shipped = place.settings({"profile": name})
    assert Origin.PROFILE in shipped.origins.values()

    place.write(USER, f"[profiles.{name}]\ninterface = 'mine'\n")
    assert place.settings({"profile": name}).interface == "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fats", "'fats' 'fast'?"),
        ("slingshto", "'slingshto' 'slingshot'?"),
        ("x", "'x' efa fast infiniband mi250x slingshot"),
        ("..", "'..' efa fast infiniband mi250x slingshot"),
        ("./fast", "{inside}/fast"),
        ("fast.toml", "{inside}/fast.toml"),
    ],
)
def test_a_profile_that_is_not_there(place: Place, name: str, words: str) -> None:
    """It is an error, which says who named it and what there is."""
    place.write(SITE, "[profiles.fast]\n")

    assert mentions(
        place.refused({"HPC_LAUNCH_PROFILE": name}), "HPC_LAUNCH_PROFILE", words.format(inside=place.inside)
    )


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-restart = 1", "'max-restart' 'max-restarts'?"),
        ("modules = ['cuda']", "'modules'"),
        ("zzz = 1", "'zzz'"),
        ("--role = 'x'", "'--role' 'role'?"),
        ("[profiles.a]\nrole_ = 'x'", "'profiles.a.role_' 'role'?"),
        ("[profiles.a.profiles]", "'profiles.a.profiles'"),
        ("profiles = 1", "profiles [profiles]"),
        ("[profiles]\na = 1", "profiles.a [profiles.a]"),
        ("max-restarts = 1\nmax_restarts = 1", "max-restarts max_restarts"),
        ("grace = 1\nshutdown-timeout = 1", "grace shutdown-timeout"),
        (
            "node-rank = 1",
            "node-rank --node-rank HPC_LAUNCH_NODE_RANK",
        ),
        (
            "[profiles.a]\nnnodes = 2",
            "profiles.a.nnodes --nnodes HPC_LAUNCH_NNODES",
        ),
        ("module = true", "module --module HPC_LAUNCH_MODULE"),
        ("profile = 'x'", "profile --profile HPC_LAUNCH_PROFILE"),
        ("max-restarts = -1", "max-restarts -1 0"),
        ("max_restarts = 'x'", "max_restarts 'x' 0"),
        ("max-restarts = true", "max-restarts true"),
        ("max-restarts = 1.5", "max-restarts 1.5"),
        ("max-restarts = [1]", "max-restarts [1]"),
        (f"max-restarts = 0x{'f' * 5000}", "max-restarts"),
        (f"console = [0x{'f' * 5000}]", "console"),
        ("join-timeout = nan", "join-timeout NaN seconds"),
        ("join-timeout = 10:00:00", 'join-timeout "10:00:00"'),
        ("verbose = 1", "verbose 1 true false"),
        ("role = 1", "role 1"),
        ("role = {}", "role {}"),
        ("role = 'a\\u0000'".replace("'", '"'), "role 'a\0'"),
        ("start = 'cold'", "start 'cold' auto warm exec"),
        ("preload = [1]", "preload [1] list"),
        ("default-env = ['A']", 'default-env ["A"] NAME=VALUE'),
        ("default-env = {A = 'b'}", "default-env {"),
        ("preload = ['a b']", 'preload ["a b"]'),
        ("local-ranks-filter = [true]", "local-ranks-filter [true] list"),
        ("notice-signals = []", "notice-signals [] USR1,USR2"),
        ("port-range = '9-1'", "port-range '9-1' LOW-HIGH 1 65535"),
    ],
)
def test_what_a_file_cannot_say(place: Place, text: str, words: str) -> None:
    """The message names the file, the key, what is wrong and what would be right."""
    path = place.write(PROJECT, text + "\n")

    assert mentions(place.refused(), path, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\na = \n", "{path} 2 5"),
        (b"a = 1\na = 2\n", "{path} 2 6"),
        (b"\n\nrole = '\xff'\n", "{path} 3 UTF-8"),
        (b"a = " + b"[" * 100_000, "{path}"),
        (b"max-restarts = " + b"9" * 5000, "{path}"),
    ],
)
def test_what_is_not_toml(place: Place, content: bytes, words: str) -> None:
    """A file that cannot be parsed is named, with the line where it can be known."""
    for where in (PROJECT, USER, SITE):
        path = place.write(where, "")
        path.write_bytes(content)

        assert mentions(place.refused(), "TOML", words.format(path=path))
        path.unlink()


def test_a_file_that_cannot_be_read(place: Place) -> None:
    """A file that is there and cannot be read is an error: it may say what matters."""
    (place.root / PROJECT).mkdir()

    assert mentions(place.refused(), place.root / PROJECT, os.strerror(errno.EISDIR))


def test_a_file_that_is_closed_to_this_user() -> None:
    """One without permission is an error; in a directory without permission there is none for this user."""
    # Root may read everything; what is not imported before may not be readable afterwards.
    imports = "import os; from hpc_launch.cli import config, main"
    program = f"{imports}; os.getuid() or os.setuid(65534); main(['config', 'files'])"
    # Not in tmp_path, which is closed to everybody but root where root runs the tests.
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        path = Place(Path(home)).write("hpc-launch/config.toml", "")
        environ = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "PYTHONPATH": str(ROOT)}
        done = []
        for closed in (path, path.parent):
            closed.chmod(0)
            command = [sys.executable, "-c", program]
            done.append(
                subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False, timeout=60)
            )
            closed.chmod(0o755)

    assert (done[0].returncode, done[0].stderr.count("\n")) == (2, 1)
    assert mentions(done[0].stderr, path, os.strerror(errno.EACCES))
    assert (done[1].returncode, done[1].stderr, "found" in done[1].stdout) == (0, "", False)


def test_two_files_of_one_project(place: Place) -> None:
    """Settings in both files of a directory are refused, and both are named."""
    own, shared = place.write(PROJECT, ""), place.write(SHARED, "[tool.hpc-launch]\n")

    assert mentions(place.refused(), own, shared, "[tool.hpc-launch]")


def test_the_table_of_pyproject_is_a_table(place: Place) -> None:
    """`tool.hpc-launch` that is something else is refused."""
    path = place.write(SHARED, "[tool]\nhpc-launch = 1\n")

    assert mentions(place.refused(), path, "tool.hpc-launch [tool.hpc-launch]")


def test_options_that_files_cannot_set() -> None:
    """They are those of one run, one node or one command."""
    assert {name for name, spec in specs().items() if spec.not_in_files} == {
        *(
            "nnodes",
            "log_name",
            "plain",
            "hosts",
            "nodes",
            "jobid",
            "overlap",
            "hostfile",
            "node_rank",
            "master_addr",
            "master_port",
            "local_addr",
        ),
        *("rdzv_endpoint", "rdzv_id", "standalone", "module", "no_python", "profile"),
    }


# ---- what files can say


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("nproc-per-node = 4", "nproc_per_node", 4),
        ("nproc_per_node = 'auto'", "nproc_per_node", "auto"),
        ("join-timeout = 60", "join_timeout", 60.0),
        ("join-timeout = 0.5", "join_timeout", 0.5),
        ("join-timeout = '60'", "join_timeout", 60.0),
        ("port-range = '20000-20999'", "port_range", range(20000, 21000)),
        ("port-range = 29500", "port_range", range(29500, 29501)),
        ("verbose = true", "verbose", True),
        ("verbose = 'no'", "verbose", False),
        ("preload = ['numpy', 'mine.own']", "preload", ("numpy", "mine.own")),
        ("preload = 'numpy, mine'", "preload", ("numpy", "mine")),
        ("preload = []", "preload", ()),
        ("requeue = ['on-notice', 'on-timeout']", "requeue", ("on-notice", "on-timeout")),
        ("requeue = []", "requeue", ()),
        ("notice-signals = 'none'", "notice_signals", ()),
        ("rdzv-conf = ['timeout=5', 'a=b=c']", "rdzv_conf", (("timeout", "5"), ("a", "b=c"))),
        ("default-env = ['A=b,c', '_D=', 'E=f=g']", "default_env", (("A", "b,c"), ("_D", ""), ("E", "f=g"))),
        ("default-env = 'A=b,,c,_D='", "default_env", (("A", "b,c"), ("_D", ""))),
        ("default-env = []", "default_env", ()),
        ("tee = 3", "tee", StreamChoice(Streams.ALL)),
        ("tee = '0:1'", "tee", StreamChoice(per_rank=((0, Streams.OUT),))),
        ("console = 'all'", "console", ConsoleChoice("all")),
        ("console = 0", "console", ConsoleChoice("ranks", (0,))),
        ("console = [0, '8-9']", "console", ConsoleChoice("ranks", (0, 8, 9))),
        ("local-ranks-filter = [0, 2]", "local_ranks_filter", (0, 2)),
        ("duplicate-stdout-filters = ['a,b', ',c', '']", "duplicate_stdout_filters", ("a,b", ",c", "")),
        ("grace = 30", "shutdown_timeout", 30),
        ("max-restarts = 0x10", "max_restarts", 16),
    ],
)
def test_what_a_file_can_say(place: Place, line: str, name: str, expected: Any) -> None:
    """TOML's own types are taken where they are natural, and the text of the command line everywhere."""
    place.write(PROJECT, line + "\n")

    assert expected == getattr(place.settings(), name)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
MODULES = st.lists(st.sampled_from(["numpy", "torch.nn", "\u00e9t\u00e9"]), max_size=3).map(tuple)
RANKS = st.lists(st.integers(0, 1 << 40), max_size=4).map(tuple)
STREAMS = st.sampled_from([Streams.NONE, Streams.OUT, Streams.ERR, Streams.ALL])
BY_RANK = st.dictionaries(st.integers(0, 99), STREAMS, min_size=1, max_size=3).map(lambda d: tuple(sorted(d.items())))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "nproc_per_node": st.integers(1) | st.sampled_from(PROCESS_WORDS),
    "rdzv_conf": st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "x=y"])), max_size=3).map(tuple),
    "default_env": st.lists(st.tuples(st.sampled_from(["A", "_b1"]), NAMES), max_size=3).map(tuple),
    "port_range": st.tuples(st.integers(1, 65535), st.integers(1, 65535)).map(lambda p: range(min(p), max(p) + 1)),
    "preload": MODULES,
    "exec_for": MODULES,
    "signals_to_handle": st.just(("SIGTERM",)) | st.just(("SIGINT", "SIGUSR1")),
    "notice_signals": st.just(("SIGUSR1",)) | st.just(("SIGUSR2", "SIGCONT")),
    "requeue": st.lists(st.sampled_from(REQUEUE_REASONS), max_size=4).map(tuple),
    "redirects": STREAMS.map(StreamChoice) | BY_RANK.map(lambda pairs: StreamChoice(per_rank=pairs)),
    "tee": STREAMS.map(StreamChoice) | BY_RANK.map(lambda pairs: StreamChoice(per_rank=pairs)),
    "console": st.sampled_from([ConsoleChoice("all"), ConsoleChoice("auto")])
    | RANKS.filter(bool).map(lambda ranks: ConsoleChoice("ranks", ranks)),
    "cpu_bind": st.sampled_from([CpuBind(), CpuBind("none"), CpuBind("map:0-1/7", ((0, 1), (7,)))]),
    "open_files": st.sampled_from(["auto", "keep"]) | st.integers(256),
    "local_ranks_filter": RANKS,
    "secret_names": st.lists(NAMES, max_size=3).map(tuple),
    "duplicate_stdout_filters": st.lists(NAMES, max_size=3).map(tuple),
    "duplicate_stderr_filters": st.lists(NAMES, max_size=3).map(tuple),
}


def values(name: str, spec: OptionSpec) -> st.SearchStrategy[Any]:
    """The values that an option can have."""
    if name in VALUES:
        return VALUES[name]
    if spec.choices:
        return st.sampled_from(spec.choices)
    if spec.is_flag:
        return st.booleans()
    if spec.metavar in ("K", "N") or name == "shutdown_timeout":
        return st.integers(1)
    if spec.metavar in ("SECONDS", "SECONDS|none"):
        return st.floats(min_value=0, exclude_min=True, allow_infinity=False)
    return NAMES


ALL_VALUES = st.fixed_dictionaries({}, optional={name: values(name, spec) for name, spec in IN_FILES.items()})


@given(asked=ALL_VALUES)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, asked: Mapping[str, Any]) -> None:
    """Whatever settings files can have, `toml_writer` puts into a file so that it is read as it was."""
    folder = tmp_path_factory.mktemp("written")
    lines = [toml_writer.settings_line(spec.key, asked[name]) for name, spec in IN_FILES.items() if name in asked]
    (folder / "hpc-launch.toml").write_text("\n".join(lines), encoding="utf-8", newline="")
    read = resolve({}, {}, settings_files.load_settings_files({"HOME": str(folder)}, folder, "", folder).layers)

    assert dict(asked) == {name: getattr(read, name) for name in read.origins}
    assert set(read.origins.values()) <= {Origin.PROJECT}


@given(
    name=st.sampled_from(sorted(IN_FILES)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=2),
        max_leaves=4,
    ),
)
def test_any_value_is_read_or_refused_in_one_way(name: str, value: Any) -> None:
    """No TOML value makes a reader fail in another way than a UsageError that names the file and the key."""
    layer = layer_of(Origin.PROJECT, Table("f.toml", "", {IN_FILES[name].key: value}))
    try:
        resolve({}, {}, [layer])
    except UsageError as error:
        refusal = str(error)
    else:
        return
    assert refusal.startswith((f"f.toml: {IN_FILES[name].key}: ", "--no-python"))


@pytest.mark.parametrize("name", specs())
def test_defaults_can_be_written(name: str) -> None:
    """`config show --all` has a line, and JSON, for every option."""
    value = getattr(Settings(), name)

    assert toml_writer.settings_line(name, value).startswith((f"{name} = ", f"# {name} is not set"))
    assert json.loads(json.dumps(toml_writer.toml_value(value))) == toml_writer.toml_value(value)


def test_node_ranges_can_be_written() -> None:
    """So are values that are given by flags only."""
    assert [toml_writer.toml_value(NodeRange(2, 2)), toml_writer.toml_value(NodeRange(1, 4))] == [2, "1:4"]
    assert math.isclose(toml_writer.toml_value(0.5), 0.5)
