"""Where templates are, which one a name means, how one is copied, and what is found wrong with one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_launch.cli import main
from hpc_launch.errors import HpcLaunchError, LogDirError, UsageError
from hpc_launch.submission import template_check, templates
from hpc_launch.submission.template_check import contract
from tests.support import mentions

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.stem for path in ROOT.glob("sbatch_templates/*.sbatch"))

GOOD = """\
#!/bin/bash
#
# Train here.

#SBATCH --nodes=2
# A comment.
#SBATCH --cpus-per-task=4 # another
#SBATCH --requeue

set -euo pipefail

# export RANK=0
trap : TERM
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
    hpc-launch --max-restarts 1 "${@:-train.py}"
"""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a home with a project in it, in which the test runs, below the project's top."""
    (tmp_path / "home/project/deep/down").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.chdir(tmp_path / "home/project/deep/down")
    return tmp_path / "home"


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `hpc-launch template` in this process, without asking Slurm."""

    def call(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["template", *args])
        assert isinstance(caught.value.code, int)
        return (caught.value.code, *capfd.readouterr())

    return call


def put(folder: Path, name: str, text: str = GOOD) -> Path:
    """Put a template into a directory."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.sbatch"
    path.write_text(text)
    return path


# --- where they are


def test_the_nearest_owner_wins(home: Path, tmp_path: Path) -> None:
    """Of templates with one name the project's counts, then the user's, the site's, and that of hpc-launch."""
    places = {
        "project": home / "project/.hpc-launch/templates",
        "user": home / ".config/hpc-launch/templates",
        "site": tmp_path / "etc/templates",
    }
    for position, folder in enumerate(places.values()):
        for name in ("cpu", "b", "c", "d")[: 4 - position]:
            put(folder, name)
    put(home / ".hpc-launch/templates", "e")  # of a project farther up
    (places["user"] / "README").touch()
    (places["user"] / "folder.sbatch").mkdir()

    def owners() -> dict[str, str]:
        return {
            name: found.origin
            for name, found in templates.find_templates(os.environ, Path.cwd(), site=tmp_path / "etc").items()
        }

    shipped = dict.fromkeys(SHIPPED, "hpc-launch")
    assert owners() == shipped | {"cpu": "project", "b": "project", "c": "project", "d": "project"}
    shutil.rmtree(places["project"].parent)
    assert owners() == shipped | {"cpu": "user", "b": "user", "c": "user", "e": "project"}
    shutil.rmtree(places["user"])
    assert owners() == shipped | {"cpu": "site", "b": "site", "e": "project"}
    shutil.rmtree(home / ".hpc-launch")
    assert owners() == shipped | {"cpu": "site", "b": "site"}


def test_the_xdg_directory_is_the_users(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CONFIG_HOME stands for ~/.config."""
    path = put(tmp_path / "xdg/hpc-launch/templates", "mine")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))

    assert templates.find_templates(os.environ, home)["mine"].path == path


def test_ours_are_in_the_package_or_beside_it(tmp_path: Path) -> None:
    """An installation has them in the package, a checkout beside it; where they are lost, one line says so."""
    package = tmp_path / "site-packages/hpc_launch"
    package.mkdir(parents=True)
    with pytest.raises(HpcLaunchError, match="install hpc-launch again"):
        templates.shipped(package)
    (tmp_path / "site-packages/sbatch_templates").mkdir()
    assert templates.shipped(package) == tmp_path / "site-packages/sbatch_templates"
    (package / "sbatch_templates").mkdir()
    assert templates.shipped(package) == package / "sbatch_templates"


# --- which one a name means


@pytest.mark.parametrize("word", ["multi_node", "multi-node", "multi_node.sbatch", "multi-node.sbatch"])
def test_a_name_is_known_in_every_spelling(home: Path, word: str) -> None:
    """With dashes, as options have them, and as the file is called."""
    assert templates.get_template(word, os.environ, home).path == ROOT / "sbatch_templates/multi_node.sbatch"


def test_a_path_has_a_slash(home: Path) -> None:
    """It is seen from the working directory, and may begin in the home."""
    path = put(home / "project", "mine")

    found = [templates.get_template(word, os.environ, home / "project") for word in ("./mine.sbatch", str(path))]
    found.append(templates.get_template("~/project/mine.sbatch", os.environ, home))
    assert {(entry.name, entry.path.resolve(), entry.origin) for entry in found} == {("mine", path.resolve(), "file")}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("multi_nod", "'multi_nod' 'multi_node'?"),
        ("task-pergpu", "'task-pergpu' 'task_per_gpu'?"),
        ("zzzz", f"'zzzz' {' '.join(SHIPPED)}"),
        ("here.sbatch", "./here.sbatch"),
        ("./zzzz", "zzzz"),
        ("", "''"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(home: Path, word: str, said: str) -> None:
    """One line, with what was probably meant."""
    put(home, "here")
    with pytest.raises(UsageError) as caught:
        templates.get_template(word, os.environ, home)

    assert mentions(caught.value, said)


# --- copying


def test_a_copy_is_the_same_and_can_be_written(home: Path) -> None:
    """It has the text and the permissions, and its owner may edit it, even where the original is read-only."""
    path = put(home, "mine")
    path.chmod(0o550)
    target = templates.copy_template(templates.get_template(str(path), os.environ, home), home / "copy", force=False)

    assert (target, target.read_text(), stat.S_IMODE(target.stat().st_mode)) == (home / "copy", GOOD, 0o750)


def test_nothing_is_overwritten_unless_asked(home: Path) -> None:
    """A file that is there stays, but with --force; a directory gets the template by its own name."""
    cpu = templates.get_template("cpu", os.environ, home)
    assert templates.copy_template(cpu, home, force=False) == home / "cpu.sbatch"
    (home / "cpu.sbatch").write_text("edited")
    with pytest.raises(UsageError, match=r"cpu\.sbatch is there already: .*--force"):
        templates.copy_template(cpu, home, force=False)
    assert (home / "cpu.sbatch").read_text() == "edited"
    templates.copy_template(cpu, home, force=True)
    assert (home / "cpu.sbatch").read_text() == cpu.text()
    with pytest.raises(LogDirError, match="cannot write"):
        templates.copy_template(cpu, home / "absent/cpu.sbatch", force=False)


# --- the contract


def test_a_good_template_has_nothing_wrong() -> None:
    """The example above is good, and so it stays in the forms that mean the same."""
    assert contract(GOOD) == ()
    for old, new in (
        ("#SBATCH --nodes=2", "#SBATCH -N 2"),
        ("#SBATCH --nodes=2", "#SBATCH -N2 --time 10"),
        ("#!/bin/bash", "#!/usr/bin/env bash"),
        ("trap : TERM", "trap '' SIGTERM"),
        ('"$SLURM_CPUS_PER_TASK" \\\n', "4 \\\n    bash -c 'exec \"$@\" $SLURM_PROCID | cat' _ \\\n"),
        ("trap", "echo 'RANK=0 # '\\''$SLURM_PROCID' \"it's\" # MASTER_ADDR=x\ntrap"),
        ("--requeue", '--job-name="it\'s \\"$HOME\\""'),
        ("trap", "export OMPI_RANK=1 my_RANK=2 NCCL_RANK=3\ntrap"),
    ):
        assert contract(GOOD.replace(old, new)) == (), new


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("#!/bin/bash", "#!/bin/sh", 1, "'#!/bin/bash'"),
        ("# Train here.\n", "#\n", 2, ""),
        ("set -euo pipefail", "set -e", None, "'set -euo pipefail'"),
        ("set -euo pipefail", "# set -euo pipefail", None, "'set -euo pipefail'"),
        ("trap : TERM", "trap : USR1", None, "'trap : TERM'"),
        ("trap : TERM", "trap : TERM\n#SBATCH --time=1", 14, "#SBATCH 10"),
        ("#SBATCH --requeue", "#SBATCH requeue", 8, "'#SBATCH requeue' --name=value"),
        ("#SBATCH --requeue", "#SBATCH --comment='x", 8, "--name=value"),
        ("#SBATCH --requeue", "#SBATCH --nodes=3", 8, "--nodes 5"),
        ("#SBATCH --requeue", "#SBATCH --output=$HOME/x", 8, "--output"),
        ("#SBATCH --requeue", "#SBATCH --gpus-per-task=1", 8, "--gpus-per-node"),
        ("#SBATCH --requeue", "#SBATCH --signal=B:USR1@60", 8, "--signal=B:USR1@60 B"),
        ("trap", "export MASTER_ADDR=x RANK=$SLURM_PROCID\ntrap", 13, "MASTER_ADDR"),
        ("trap", "export MASTER_ADDR=x RANK=$SLURM_PROCID\ntrap", 13, "RANK"),
        ("trap", "export MASTER_ADDR=x RANK=$SLURM_PROCID\ntrap", 13, "SLURM_PROCID 0"),
        ("trap", 'echo "it\'s ${SLURM_NODEID}"\ntrap', 13, "SLURM_NODEID 0"),
        ("srun --cpus", "NODE_RANK=0 srun --cpus", 14, "NODE_RANK"),
        ("srun --cpus", "exec srun --cpus", 14, "'exec srun'"),
        ("srun --cpus", "mpirun --cpus", 14, "srun"),
        ('train.py}"', 'train.py}"\nexit 0', 16, "srun 14"),
        ('train.py}"', 'train.py}" | tee log', 14, "srun '|' '&'"),
        ('train.py}"', 'train.py}" &', 14, "srun '|' '&'"),
        ("hpc-launch", "torchrun", 14, "srun hpc-launch"),
        ('"${@:-train.py}"', "train.py", 14, '"${@:-train.py}"'),
        ('"${@:-train.py}"', "${@:-train.py}", 14, '"${@:-train.py}"'),
        ('"${@:-train.py}"', '"$@"', 14, '"${@:-train.py}"'),
        ('--cpus-per-task="$SLURM_CPUS_PER_TASK" ', "", 14, "srun --cpus-per-task"),
    ],
)
def test_what_is_missing_is_named(old: str, new: str, line: int | None, said: str) -> None:
    """Each place of the contract that is broken is found where it is."""
    assert old in GOOD
    found = contract(GOOD.replace(old, new))

    assert [finding.line for finding in found if mentions(finding.text, said)] == [line], found


def test_an_empty_file_breaks_it_all() -> None:
    """Whatever the file has, there is an answer."""
    assert len(contract("")) == 6
    assert contract("\\")
    assert contract("'")


# --- what others say


def verdict(path: Path, **environ: str) -> template_check.TemplateVerdict:
    return template_check.check_template(
        templates.JobTemplate(path.stem, path, "file"), {"PATH": os.environ["PATH"], **environ}, ask_slurm=False
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory for the programs that are to be found, in which bash is."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/bash").symlink_to(shutil.which("bash") or "/bin/bash")
    return tmp_path / "bin"


def test_bash_is_asked(tmp_path: Path, programs: Path) -> None:
    """What bash cannot read is a finding in its line; without shellcheck, that is said."""
    path = put(tmp_path, "broken", GOOD.replace("trap", "if true; then\ntrap"))

    assert 17 in [found.line for found in verdict(path).findings if found.text.startswith("bash: ")]
    *others, last = verdict(put(tmp_path, "good"), PATH=str(programs)).said
    assert (others[0], len(others), "shellcheck" in others, mentions(last, "shellcheck")) == ("bash", 2, False, True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_is_asked(tmp_path: Path) -> None:
    """What it says comes with the line and its own number; that it cannot follow a virtual environment is nothing."""
    path = put(tmp_path, "unquoted", GOOD.replace("trap", "source /no/such/venv/bin/activate\ncd $PWD\ntrap"))
    (finding,) = [finding for finding in verdict(path).findings if "SC2164" not in finding.text]

    assert (finding.line, finding.text[:12]) == (14, "shellcheck: ")
    assert "[SC2086]" in finding.text


# Programs that stand for sbatch, with what becomes of it.
SBATCH = {
    "good": (
        "sbatch: Job 7 to start at 2026-01-02T03:04:05 using 8 processors on nodes gpu[1-2] in partition main\nexit 0",
        0,
        "Slurm 2026-01-02T03:04:05 gpu[1-2] main 8",
    ),
    "refused": (
        "allocation failure: Requested node configuration is not available\nexit 1",
        1,
        "Slurm Requested node configuration is not available",
    ),
    "silent": (
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\nexit 1",
        0,
        "Slurm",
    ),
}


@pytest.mark.parametrize("answer", SBATCH)
def test_slurms_word_counts(tmp_path: Path, programs: Path, answer: str) -> None:
    """Its refusal is a finding, its silence is not; it is asked without what another job has left."""
    said, findings, expected = SBATCH[answer]
    text, _, end = said.partition("\n")
    program = programs / "sbatch"
    program.write_text(
        f"#!{programs}/bash\n[[ -v SBATCH_NODES || -v SLURM_NTASKS ]] && exit 3\necho '{text}' >&2\n{end}\n"
    )
    program.chmod(0o755)
    path = put(tmp_path, "good")
    environ = {"PATH": str(programs), "SBATCH_NODES": "3", "SLURM_NTASKS": "4"}
    found = template_check.check_template(templates.JobTemplate("good", path, "file"), environ)

    assert [finding.text for finding in found.findings] == [found.said[-1]] * findings
    assert mentions(found.said[-1], expected)


def test_without_sbatch_there_is_no_slurm(tmp_path: Path, programs: Path) -> None:
    """That is no finding."""
    path = put(tmp_path, "good")
    found = template_check.check_template(templates.JobTemplate("good", path, "file"), {"PATH": str(programs)})

    assert (found.findings, mentions(found.said[-1], "Slurm")) == ((), True)


# --- the command


def test_list_says_what_each_is_for(home: Path, command: Command) -> None:
    """A line each: the name, whose it is, and the first sentence."""
    put(home / ".config/hpc-launch/templates", "cpu")
    status, out, err = command("list")
    lines = {line.split()[0]: line for line in out.splitlines()}

    assert (status, err, sorted(lines)) == (0, "", SHIPPED)
    assert lines["cpu"].split(maxsplit=2)[1:] == ["user", "Train here."]
    multi_node = (ROOT / "sbatch_templates/multi_node.sbatch").read_text()
    assert lines["multi_node"].split(maxsplit=2)[1:] == ["hpc-launch", templates.summary(multi_node)]


def test_show_prints_it_as_it_is(home: Path, command: Command) -> None:
    """The text, or the path."""
    path = put(home / "project/.hpc-launch/templates", "mine")

    assert command("show", "mine") == (0, GOOD, "")
    assert command("show", "mine", "--path") == (0, f"{path}\n", "")
    status, out, err = command("show", "min")
    assert (status, out, err.count("\n"), mentions(err, "'min' 'mine'?")) == (2, "", 1, True)


def test_copy_says_where_it_is(home: Path, command: Command) -> None:
    """By default into the working directory; options may follow the names."""
    assert command("copy", "multi-node") == (0, "multi_node.sbatch\n", "")
    assert command("copy", "multi-node")[0] == 2
    assert command("copy", "multi-node", str(home), "--force") == (0, f"{home}/multi_node.sbatch\n", "")
    assert command("copy", "multi-node", "--force")[0] == 0


def test_check_ends_with_one_where_something_is_wrong(home: Path, command: Command) -> None:
    """A finding is a line with file and number, and the status is 1; all good is a line for each and 0."""
    path = put(home, "wrong", GOOD.replace("srun", "exec srun"))
    status, out, err = command("check", "cpu", str(path), "--no-slurm")
    first, second = out.splitlines()

    assert (status, err) == (1, "")
    assert mentions(first, f"{ROOT}/sbatch_templates/cpu.sbatch", "good bash")
    assert mentions(second, f"{path}:14", "'exec srun'")
    status, out, err = command("check", "--no-slurm")
    assert (status, err, len(out.splitlines())) == (0, "", len(SHIPPED)), out


def test_a_template_that_is_no_text_is_an_error(home: Path, command: Command) -> None:
    """One line, as for any file that cannot be read."""
    path = home / "binary.sbatch"
    path.write_bytes(b"\xff\xfe")

    status, out, err = command("check", str(path))
    assert (status, out, err.count("\n"), mentions(err, path)) == (2, "", 1, True)
