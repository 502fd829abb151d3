"""The command line: which command is meant, what reaches the script, what is printed, and one-line errors."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import hpc_launch
from hpc_launch.cli import launch_main, main
from hpc_launch.errors import Interrupted, WorkerError
from hpc_launch.settings import NodeRange, Settings, StreamChoice, Streams, specs
from tests.support import lines_mention, mentions
from tests.unit.slurm_variables import BATCH, BLOCK, FIRST_OF_BLOCK, FIRST_OF_FOUR, ONE_TASK_PER_NODE, task_of

# The module, which the command of the same name hides in its package.
RUN = importlib.import_module("hpc_launch.cli.run")


@dataclass(frozen=True)
class Done:
    """What a command has done."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no settings come from outside, not even the start that the whole suite runs with."""
    monkeypatch.delenv("HPC_LAUNCH_START", raising=False)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Return a function that runs `hpc-launch` in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str, environ: Mapping[str, str] | None = None, entry: Callable[..., None] = main) -> Done:
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            entry(args)
        assert isinstance(caught.value.code, int)
        return Done(caught.value.code, *capfd.readouterr())

    return call


Runs = list[tuple[Settings, tuple[str, ...]]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Catch what would have been run."""
    caught: Runs = []

    def run_plan(settings: Settings, script: Sequence[str], *_: object) -> None:
        caught.append((settings, tuple(script)))

    monkeypatch.setattr(RUN, "run_plan", run_plan)
    return caught


# ---- what is meant


@pytest.mark.parametrize(
    ("args", "script"),
    [
        (["train.py"], ["train.py"]),
        (["run", "train.py"], ["train.py"]),
        (["--nnodes", "2", "train.py", "--lr", "1"], ["train.py", "--lr", "1"]),
        (["run", "--nnodes", "2", "train.py", "--lr", "1"], ["train.py", "--lr", "1"]),
        (
            ["train.py", "--nnodes", "3", "-v", "--help", "--version"],
            ["train.py", "--nnodes", "3", "-v", "--help", "--version"],
        ),
        (["train.py", "--lr_max", "1", "--", "-x", ""], ["train.py", "--lr_max", "1", "--", "-x", ""]),
        (["--", "train.py", "--", "x"], ["train.py", "--", "x"]),
        (["run", "--", "-odd.py", "x"], ["-odd.py", "x"]),
        (["./hosts", "x"], ["./hosts", "x"]),
        (["run", "hosts", "x"], ["hosts", "x"]),
        (["run", "run"], ["run"]),
        (["-m", "package.train", "run"], ["package.train", "run"]),
        (["run", "logs"], ["logs"]),
        (["reports"], ["reports"]),
    ],
)
def test_what_follows_the_script_is_its_own(command: Command, runs: Runs, args: list[str], script: list[str]) -> None:
    """`run` is the default command; a command's name wins over a script's, and ./NAME or `run NAME` is the way out."""
    Path("reports").touch()
    assert Done(0, "", "") == command(*args)
    assert [tuple(script)] == [words for _, words in runs]


@given(words=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8), max_size=5))
def test_any_argument_reaches_the_script_as_it_is(words: list[str]) -> None:
    """Nothing that follows the script is read, changed or dropped."""
    caught: list[tuple[str, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RUN, "run_plan", lambda _settings, script, *_: caught.append(tuple(script)))
        with pytest.raises(SystemExit) as ended:
            main(["--nnodes=1", "train.py", *words])
    assert (0, [("train.py", *words)]) == (ended.value.code, caught)


def test_options_are_read_in_every_spelling(command: Command, runs: Runs) -> None:
    """Dashes and underscores, `=` and blank, short and long: each option of torchrun as its users write it."""
    command(
        *("--nnodes=1:2", "--nproc_per_node", "3", "--rdzv-id=run", "--max_restarts=2", "-r3", "-t", "0:1,11:2"),
        *("--rdzv_conf", "timeout=5,is_host=1", "-m", "package.train"),
    )
    settings = runs[0][0]

    assert (NodeRange(1, 2), 3, "run", 2, True) == (
        settings.nnodes,
        settings.nproc_per_node,
        settings.rdzv_id,
        settings.max_restarts,
        settings.module,
    )
    assert (StreamChoice(Streams.ALL), (("timeout", "5"), ("is_host", "1"))) == (settings.redirects, settings.rdzv_conf)
    assert [(settings.tee or StreamChoice()).of(rank) for rank in (0, 1, 11)] == [
        Streams.OUT,
        Streams.NONE,
        Streams.ERR,
    ]


@pytest.mark.parametrize(
    ("entry", "args", "expected"),
    [
        (main, [], True),
        (main, ["--no-use-env"], False),
        (launch_main, [], False),
        (launch_main, ["--use_env"], True),
        (launch_main, ["--use-env"], True),
    ],
)
def test_use_env_is_off_in_the_drop_in_only(
    command: Command, runs: Runs, entry: Callable[..., None], args: list[str], *, expected: bool
) -> None:
    """`python -m hpc_launch.launch` passes --local-rank, as torch.distributed.launch does; `hpc-launch` does not."""
    assert command(*args, "train.py", entry=entry).status == 0
    assert [expected] == [settings.use_env for settings, _ in runs]


def test_the_drop_in_has_no_commands(command: Command, runs: Runs) -> None:
    """There `hosts` is a script."""
    assert command("hosts", "a[1-2]", entry=launch_main).status == 0
    assert [script for _, script in runs] == [("hosts", "a[1-2]")]


# ---- help


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "Usage: hpc-launch "),
        (["-h"], "Usage: hpc-launch "),
        (["--help"], "Usage: hpc-launch "),
        (["run", "--help"], "Usage: hpc-launch run "),
        (["env", "-h"], "Usage: hpc-launch env "),
        (["explain", "-h"], "Usage: hpc-launch explain "),
        (["hosts", "-h"], "Usage: hpc-launch hosts "),
        (["config"], "Usage: hpc-launch config "),
        (["config", "-h"], "Usage: hpc-launch config "),
        (["config", "show", "-h"], "Usage: hpc-launch config show "),
        (["config", "files", "-h"], "Usage: hpc-launch config files "),
        (["template"], "Usage: hpc-launch template "),
        (["template", "check", "-h"], "Usage: hpc-launch template check "),
    ],
)
def test_help(command: Command, args: list[str], expected: str) -> None:
    """Every command has a help that begins with its usage, and asking for it is no error."""
    done = command(*args)

    assert (0, "", expected) == (done.status, done.err, done.out[: len(expected)])


def test_the_examples_of_the_help_are_lines(command: Command) -> None:
    """The first lines a user sees are not run together."""
    lines = [line.split() for line in command("--help").out.splitlines()]

    assert ["hpc-launch", "train.py", "on", "one", "machine"] in lines


def test_the_version(command: Command) -> None:
    """--version says the version of the package."""
    assert Done(0, f"hpc-launch, version {hpc_launch.__version__}\n", "") == command("--version")


# ---- errors


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["missing.py"], 66, ["'missing.py'"]),
        (["8", "train.py"], 66, ["'8'"]),
        (["run"], 2, ["SCRIPT"]),
        (["--nnodes"], 2, ["--nnodes"]),
        (["--nnodes", "0", "train.py"], 2, ["--nnodes: '0'", "MIN:MAX"]),
        (["--nnodes", "3:2", "train.py"], 2, ["--nnodes: '3:2'"]),
        (["--nnodes", "abc", "train.py"], 2, ["--nnodes: 'abc'"]),
        (["--nproc-per-node", "0", "train.py"], 2, ["--nproc-per-node: '0'"]),
        (["--master-port", "70000", "train.py"], 2, ["--master-port: '70000'", "65535"]),
        (["--start-method", "thread", "train.py"], 2, ["start-method", "thread", "spawn", "forkserver"]),
        (["--standalone", "--nnodes", "2", "train.py"], 2, ["--standalone", "--nnodes"]),
        (["--node-timeou", "2", "train.py"], 2, ["'--node-timeou'", "'--node-timeout'"]),
        (["--max_requeue", "2", "train.py"], 2, ["'--max", "'--max-requeues'"]),
        (["explain", "--gpu-bin", "x"], 2, ["'--gpu-bin'", "'--gpu-bind'"]),
        (["--nproc-pre-node", "2", "train.py"], 2, ["'--nproc-pre-node'", "'--nproc-per-node'"]),
        (["--nodes_rank", "2", "train.py"], 2, ["'--nodes", "'--node-rank'"]),
        (["-x", "train.py"], 2, ["-x"]),
        (["explain", "missing.py"], 66, ["'missing.py'"]),
        (["env", "extra"], 2, ["extra"]),
        (["config", "shwo"], 2, ["shwo"]),
        (["config", "show", "--profile", "slingshto"], 2, ["--profile", "'slingshot'?"]),
        (["--profile", "mine.toml", "train.py"], 2, ["--profile", "mine.toml"]),
        (["hosts"], 2, ["gpu[01-04]"]),
        (["hosts", "gpu[3-1]"], 2, ["'gpu[3-1]'", "'3-1'"]),
        (["hosts", "a", "--slice", "x"], 2, ["slice 'x'"]),
        (["hosts", "--hostfile", "missing.txt"], 2, ["--hostfile", "missing.txt", "No such file"]),
        (["hosts", "--hostfile", "binary"], 2, ["--hostfile", "binary"]),
        (["--hosts", "gpu[1-2]", "train.py"], 2, ["--hosts", "gpu[1-2]", "--node-rank"]),
    ],
)
def test_errors_are_one_line(command: Command, args: list[str], status: int, words: list[str]) -> None:
    """What is wrong with a command line is said in one line on stderr, with a documented status."""
    Path("train.py").touch()
    Path("binary").write_bytes(b"\xff\xfe\x00")
    done = command(*args)

    assert (status, "") == (done.status, done.out)
    assert [word for word in words if word not in done.err] == []
    assert (done.err.startswith("hpc-launch: "), len(done.err.splitlines())) == (True, 1)


@pytest.mark.parametrize(
    ("environ", "status", "words"),
    [
        ({"PET_NNODES": "x"}, 2, ["PET_NNODES: 'x' is not"]),
        ({"HPC_LAUNCH_MAX_RESTARTS": "-1"}, 2, ["HPC_LAUNCH_MAX_RESTARTS: '-1' is not"]),
        ({**BATCH, "PATH": "/nowhere"}, 78, ["batch script of job 4711", "'srun --nodes=4 "]),
        ({**ONE_TASK_PER_NODE, "SLURM_PROCID": "9"}, 78, ["SLURM_PROCID=9"]),
        ({"SLURM_JOB_ID": "1"}, 78, ["SLURM_JOB_NODELIST"]),
    ],
)
def test_errors_of_the_place_are_one_line(
    command: Command, environ: Mapping[str, str], status: int, words: list[str]
) -> None:
    """So is what is wrong with the variables."""
    Path("train.py").touch()
    done = command("train.py", environ=environ)

    assert (status, "", 1) == (done.status, done.out, len(done.err.splitlines()))
    assert [word for word in words if word not in done.err] == []


def test_the_line_to_start_a_step_with_keeps_the_options(command: Command) -> None:
    """Where srun is not, the very line to type elsewhere is said, with what was asked for."""
    Path("train.py").touch()
    done = command("--max-restarts", "3", "train.py", "--lr", "1e-3", environ={**BATCH, "PATH": "/nowhere"})

    assert "hpc-launch --max-restarts 3 train.py --lr 1e-3'" in done.err


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        (["missing.py"], {}, False),
        (["missing.py", "-v"], {}, False),
        (["missing.py", "--verbose"], {}, False),
        (["-v", "missing.py"], {}, True),
        (["run", "--verbose", "missing.py"], {}, True),
        (["missing.py"], {"HPC_LAUNCH_VERBOSE": "1"}, True),
    ],
)
def test_tracebacks_are_shown_to_who_asks(
    command: Command, args: list[str], environ: Mapping[str, str], *, expected: bool
) -> None:
    """-v before the script, or its variable, shows the traceback of an error; the script's own -v does not."""
    done = command(*args, environ=environ)

    assert (66, expected) == (done.status, "Traceback" in done.err)


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (WorkerError("rank 3 failed", exit_status=139), 139, ""),
        (Interrupted(15, "SIGTERM"), 143, "hpc-launch: stopped by SIGTERM\n"),
    ],
)
def test_the_status_is_that_of_the_failure(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, expected: str
) -> None:
    """A worker's own status is the launcher's, and what the agent has said already is not said again."""

    def run_plan(*_: object) -> None:
        raise error

    monkeypatch.setattr(RUN, "run_plan", run_plan)
    assert Done(status, "", expected) == command("train.py")


@pytest.mark.parametrize("words", [["train.py"], ["explain"], ["status"], ["submit", "job.sh"]])
def test_a_working_directory_that_is_gone(command: Command, words: list[str]) -> None:
    """It is one line: the shell may still be where somebody has removed a project."""
    Path.cwd().rmdir()
    done = command(*words)

    assert (done.status, done.out) == (78, "")
    assert lines_mention(done.err.splitlines(), "hpc-launch: working directory cd")


# ---- env and explain


def test_env_prints_values_and_origins(command: Command) -> None:
    """Each line is NAME=VALUE, for people and for sh, and says where the value came from."""
    lines = command("env", "--max-restarts=1", environ=ONE_TASK_PER_NODE).out.splitlines()

    assert "nnodes=4  # Slurm step" in lines
    assert "hosts='gpu[01-04]'  # Slurm step" in lines
    assert [mentions(line, "# Slurm") for line in lines if line.startswith("master_addr=gpu01  #")] == [True]


def test_env_prints_json(command: Command) -> None:
    """--json gives the same as an object."""
    found = json.loads(command("env", "--json", environ=ONE_TASK_PER_NODE).out)

    assert found["node_rank"] == {"value": "2", "origin": "Slurm step"}
    assert found["hosts"] == {"value": "gpu[01-04]", "origin": "Slurm step"}


@pytest.mark.parametrize(
    ("args", "environ", "expected"),
    [
        (
            ["--rdzv-id", "it's $HOME; `x`"],
            ONE_TASK_PER_NODE,
            {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "gpu01", "RDZV_ID": "it's $HOME; `x`", "RANK": ""},
        ),
        ([], BLOCK, {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "4", "NNODES": "4"}),
        (["--omp-num-threads=3"], {}, {"NNODES": "1", "NODE_RANK": "0", "OMP_NUM_THREADS": "3", "WORLD_SIZE": ""}),
    ],
)
def test_env_is_evaluated_by_sh(
    command: Command, args: list[str], environ: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    """`eval "$(hpc-launch env --export)"` sets what was derived, whatever characters the values have."""
    lines = command("env", "--export", *args, environ=environ).out
    shown = "".join(f'printf "%s\\n" "${name}";' for name in expected)
    done = subprocess.run(
        ["sh", "-euc", f'eval "$LINES"; set +u; {shown}'],
        env={"LINES": lines, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [*expected.values()] == done.stdout.split("\n")[:-1]


def test_explain_says_all_without_a_script(command: Command) -> None:
    """The plan of this place: its size, every value with its origin, and what looks wrong."""
    out = command("explain", environ={**FIRST_OF_BLOCK, "RANK": "0"}).out
    lines = [" ".join(line.split()) for line in out.splitlines()]

    assert mentions(lines[0], "16 4 gpu[01-04]")
    assert [line for line in lines if line.startswith("master_addr gpu01 (")] != []
    assert [line for line in lines if line.startswith("note: ") and mentions(line, "RANK")] != []


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--nnodes", "9"), 78)])
def test_explain_speaks_once_for_all_tasks(command: Command, options: tuple[str, ...], status: int) -> None:
    """The first task says it all, also why it cannot be; the others end as it does."""
    first = command("explain", *options, environ=FIRST_OF_BLOCK)
    other = command("explain", *options, environ=BLOCK)

    assert first.status == other.status == status
    assert bool(first.out) is (status == 0)
    assert bool(first.err) is (status != 0)
    assert (other.out, other.err) == ("", "")


def test_another_task_says_what_it_alone_sees(command: Command) -> None:
    """A file may be missing on one node, and a number may be wrong for one."""
    Path("train.py").touch()
    number = command("explain", "--node-rank=0", "train.py", environ=task_of(3, 1))
    missing = command("explain", "other.py", environ=BLOCK)

    assert mentions(number.out, "note: n1: --node-rank 0")
    assert missing.status == 66
    assert mentions(missing.err, "other.py")


@pytest.mark.parametrize(
    ("environ", "options", "named"),
    [
        (FIRST_OF_BLOCK, ("--nnodes=4", "--nproc-per-node=1"), "--nnodes 4, --nproc-per-node 1"),
        (
            task_of(3, 0),
            ("--nnodes=3", "--node-rank=0", "--master-addr=n0"),
            "--nnodes 3, --node-rank 0, --master-addr n0",
        ),
        (task_of(3, 0), ("--rdzv-backend=slurm",), "--rdzv-backend slurm"),
        (task_of(3, 0), ("--nnodes=1:3", "--nproc-per-node=2", "--master-addr=n1"), ""),
        (task_of(3, 0), (), ""),
        ({}, ("--nnodes=1", "--nproc-per-node=1"), ""),
    ],
)
def test_explain_names_what_slurm_says_anyway(
    command: Command, environ: Mapping[str, str], options: tuple[str, ...], named: str
) -> None:
    """Scripts that were written for torchrun repeat what Slurm says."""
    lines = command("explain", *options, environ=environ).out.splitlines()
    notes = [line.partition(": ")[2] for line in lines if line.startswith("note: Slurm")]

    assert [named in note for note in notes] == [True] * bool(named)


def test_explain_starts_nothing(command: Command) -> None:
    """With a script its command line is shown; no file or directory is made."""
    Path("train.py").touch()
    done = command("explain", "--nproc-per-node=2", "train.py", "--name", "two words")

    assert "  train.py --name 'two words'\n" in done.out
    assert [path.name for path in Path.cwd().iterdir()] == ["train.py"]


# ---- settings files


SETTINGS = """\
max-restarts = 3
preload = ["numpy", "mine"]
nproc-per-node = 2
log-dir = "outputs"
start = "exec"
[profiles.debug]
max-restarts = 0
"""


def test_run_reads_settings_files(command: Command, runs: Runs) -> None:
    """What the project's file says is as if it had been given, and a flag overrides it."""
    Path("hpc-launch.toml").write_text(SETTINGS)
    command("--nproc-per-node", "1", "train.py")
    settings = runs[0][0]

    assert (settings.max_restarts, settings.nproc_per_node, settings.preload) == (3, 1, ("numpy", "mine"))


def test_config_show_prints_who_has_set_what(command: Command) -> None:
    """Each line is one of a settings file, with the flag, the variable or the file and the key that set it."""
    path = Path("hpc-launch.toml").absolute()
    path.write_text(SETTINGS)
    environ = {"HPC_LAUNCH_CONSOLE": "0,8-9", "PET_TEE": "0:3", "HPC_LAUNCH_PROFILE": "debug"}
    done = command("config", "show", "--nproc_per_node=1", "--role", 'it\'s "x"', environ=environ)

    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "nproc-per-node = 1  # --nproc-per-node",
        f'start = "exec"  # {path}: start',
        f'preload = ["numpy", "mine"]  # {path}: preload',
        'role = "it\'s \\"x\\""  # --role',
        f"max-restarts = 0  # {path}: profiles.debug.max-restarts",
        f'log-dir = "outputs"  # {path}: log-dir',
        'tee = "0:3"  # PET_TEE',
        "console = [0, 8, 9]  # HPC_LAUNCH_CONSOLE",
        'profile = "debug"  # HPC_LAUNCH_PROFILE',
    ]


def test_config_show_where_nothing_is_set(command: Command) -> None:
    """It says so; --all prints the defaults, and --json an empty object."""
    assert {line[:2] for line in command("config", "show").out.splitlines()} == {"# "}
    assert command("config", "show", "--json").out == "{}\n"
    lines = command("config", "show", "--all").out.splitlines()

    assert len(lines) == len(specs())
    assert {'interface = "auto"  # default', "preload = []  # default"} <= set(lines)
    assert len([line for line in lines if line.startswith("# ") and mentions(line, "nnodes")]) == 1


def test_config_show_prints_json(command: Command) -> None:
    """--json gives the same as an object, by the names that `env --json` and job.json have."""
    path = Path("pyproject.toml").absolute()
    path.write_text("[tool.hpc-launch]\nport_range = '20000-20999'\n")
    found = json.loads(command("config", "show", "--json", "--nnodes", "1:4").out)

    place = f"{path}: tool.hpc-launch.port_range"
    assert found == {
        "nnodes": {"value": "1:4", "origin": "flag", "place": "--nnodes"},
        "port_range": {"value": "20000-20999", "origin": "project file", "place": place},
    }
    everything = json.loads(command("config", "show", "--json", "--all").out)
    assert [*specs()] == [*everything]
    assert everything["tee"] == {"value": None, "origin": "default", "place": ""}


def test_config_show_can_be_kept_as_a_file(command: Command) -> None:
    """What it prints is a settings file that sets the same."""
    Path("hpc-launch.toml").write_text(SETTINGS)
    out = command("config", "show", "--console=all").out
    Path("hpc-launch.toml").write_text(out)

    assert [line.partition("#")[0] for line in command("config", "show").out.splitlines()] == [
        line.partition("#")[0] for line in out.splitlines()
    ]


def test_config_files_prints_where_settings_may_be(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place where a file is looked for, and whether there is one, the strongest first."""
    here = Path.cwd()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "xdg"))
    monkeypatch.setenv("HOME", str(here))
    Path("pyproject.toml").write_text("[project]\nname = 'hpc-launch-user'\n")
    Path("xdg/hpc-launch").mkdir(parents=True)
    Path("xdg/hpc-launch/config.toml").write_text("[profiles.slingshot]\n")
    lines = [line.split(maxsplit=2) for line in command("config", "files", "--profile", "slingshot").out.splitlines()]

    assert [(line[0], line[-1].split("/")[-1]) for line in lines] == [
        ("profile", "slingshot.toml"),
        ("project", "hpc-launch.toml"),
        ("project", "pyproject.toml"),
        ("user's", "config.toml"),
        ("site's", "config.toml"),
    ]
    assert ["no [tool.hpc-launch] in it" in " ".join(line) for line in lines] == [False, False, True, False, False]
    assert " ".join(" ".join(lines[3]).split()) == f"user's file found {here}/xdg/hpc-launch/config.toml"


def test_env_and_explain_show_that_files_said_it(command: Command) -> None:
    """Values from files have their origin, as those from Slurm have."""
    Path("hpc-launch.toml").write_text(SETTINGS)
    found = json.loads(command("env", "--json", environ=ONE_TASK_PER_NODE).out)
    lines = [" ".join(line.split()) for line in command("explain", environ=FIRST_OF_FOUR).out.splitlines()]

    assert found["nproc_per_node"] == {"value": "2", "origin": "project file"}
    assert {"nproc_per_node 2 (project file)", "start exec (project file)"} <= set(lines)
    assert f"log_dir {Path.cwd() / 'outputs'} (project file)" in lines


def test_a_wrong_file_is_one_line(command: Command) -> None:
    """What is wrong with a settings file ends every command that has settings, in one line that names it."""
    Path("train.py").touch()
    path = Path("hpc-launch.toml").absolute()
    path.write_text("max-restart = 3\n")

    for words in (["train.py"], ["env"], ["explain"], ["config", "show"], ["config", "files"]):
        done = command(*words)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
        assert mentions(done.err, path, "'max-restart' 'max-restarts'?")


# ---- hosts


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["gpu[01-03]"], "gpu01\ngpu02\ngpu03\n"),
        (["b", "a[1-2]"], "b\na1\na2\n"),
        (["a[1-4]", "--slice", "1:3"], "a2\na3\n"),
        (["a[1-4]", "--slice", "-1:"], "a4\n"),
        (["a[1-4]", "--slice", "9:"], ""),
        (["--count", "a[1-4],b"], "5\n"),
        (["--fold", "a2", "a3", "a1"], "a[2-3,1]\n"),
        (["--fold", "--unique", "a1,a1,a2,a1"], "a[1-2]\n"),
        (["--count", "--unique", "a1,a1"], "1\n"),
        (["--hostfile", "nodes.txt"], "n1\nn2\n"),
        (["--hostfile", "nodes.txt", "extra"], "n1\nn2\nextra\n"),
        (["-", "c"], "x1\nx2\ny\nc\n"),
        (["--fold"], "gpu[01-04]\n"),
        ([], "gpu01\ngpu02\ngpu03\ngpu04\n"),
    ],
)
def test_hosts(command: Command, monkeypatch: pytest.MonkeyPatch, args: list[str], expected: str) -> None:
    """Lists from arguments, host files, standard input or Slurm; expanded, folded, counted, sliced."""
    Path("nodes.txt").write_text("n1\nn1\nn2 slots=2\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x[1-2]\ny\n"))

    assert Done(0, expected, "") == command("hosts", *args, environ=ONE_TASK_PER_NODE)


@pytest.mark.parametrize("environ", [BATCH, ONE_TASK_PER_NODE])
def test_the_hosts_of_this_place(command: Command, environ: Mapping[str, str]) -> None:
    """Without arguments the nodes are those of the step, or of the job."""
    assert command("hosts", "--fold", environ=environ).out == "gpu[01-04]\n"


def test_a_reader_that_leaves_early_is_no_error(python: str) -> None:
    """`hpc-launch hosts ... | head -1` ends without a traceback."""
    shell = f'"{python}" -m hpc_launch hosts "n[0-65535]" | head -1'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("n0\n", "")


# ---- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(command: Command, shell: str) -> None:
    """--print-completion gives a script for each shell, which that shell can read."""
    done = command("--print-completion", shell)

    assert (done.status, done.err, "_HPC_LAUNCH_COMPLETE" in done.out) == (0, "", True)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hpc-launch exp", {"explain"}),
        ("hpc-launch --nno", {"--nnodes"}),
        ("hpc-launch --nnodes 2 --max-re", {"--max-restarts", "--max-requeues"}),
        ("hpc-launch run --start-method fork", {"fork", "forkserver"}),
        ("hpc-launch env --exp", {"--export"}),
        ("hpc-launch config sh", {"show"}),
    ],
)
def test_completion(python: str, words: str, expected: set[str]) -> None:
    """Commands, options and choices are completed, with and without `run`."""
    environ = {
        **os.environ,
        "_HPC_LAUNCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "from hpc_launch.cli import main; main()"
    done = subprocess.run([python, "-c", program], env=environ, capture_output=True, text=True, check=True)

    assert expected == {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_a_fault_of_our_own_is_loud(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a status that no script has by accident, and says where it was."""

    def fails(*_: object) -> None:
        raise KeyError("rank")

    monkeypatch.setattr(importlib.import_module("hpc_launch.cli.env"), "gather_context", fails)
    done = command("env")

    first, *_, error, last = done.err.splitlines()
    assert (done.status, first.startswith("Traceback "), error) == (70, True, "KeyError: 'rank'")
    assert last.startswith("hpc-launch: ")
