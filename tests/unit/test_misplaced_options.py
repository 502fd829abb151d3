"""Options of `submit` after the training script: whose they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.settings import Settings
from hpc_launch.submission import misplaced_options, submitter
from tests.support import mentions

OPTIONS = frozenset({"--nodes", "--output", "--mail-type", "--sweep", "--dry-run", "--test-only"})

# Has --output and --mail-type, and speaks of --nodes without having it.
TEXT = '''#!/usr/bin/env python
"""Usage: hpc-launch submit --nodes 2 train.py"""
parser.add_argument("-o", "--output", help="beside --nodes")
parser.add_argument('--mail_type')
parser.add_argument("--dry-run")
'''

# A program of a shell's.
SHELL = """while [ $# -gt 0 ]; do
    case "$1" in
    -o|--output) shift ;;
    --nodes=*) ;;
    esac
done
"""


@pytest.mark.parametrize(
    ("words", "text", "arguments"),
    [
        (["--lr", "1e-3", "", "--name", "x", "-N", "2"], TEXT, ("--lr", "1e-3", "", "--name", "x", "-N", "2")),
        (["--output=x", "--mail-type", "y"], TEXT, ("--output=x", "--mail-type", "y")),
        (["--output", "x", "--nodes=1"], SHELL, ("--output", "x", "--nodes=1")),
        # Neither a beginning of an option nor a longer word is one.
        (["--node", "2", "--nodes-first", "--dry"], TEXT, ("--node", "2", "--nodes-first", "--dry")),
        (["--", "--dry-run", "--nodes", "2"], "", ("--dry-run", "--nodes", "2")),
        (["--", "--", "-h"], "", ("--", "-h")),
        (["a", "--", "--help"], "", ("a", "--", "--help")),
        ([], "", ()),
    ],
)
def test_what_is_the_scripts_arrives(words: list[str], text: str, arguments: tuple[str, ...]) -> None:
    """An option that the script has, one that submit has not, and everything after `--`."""
    assert misplaced_options.script_arguments("train.py", words, OPTIONS, text) == arguments


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--dry-run"], "--dry-run"),
        (["--lr", "1", "--dry_run"], "--dry-run"),
        (["--test-only"], "--test-only"),
        (["-h"], "-h"),
        (["--help"], "--help"),
        (["--nodes", "2"], "--nodes"),
        (["--nodes=2"], "--nodes"),
        (["--sweep=lr=1,2"], "--sweep"),
        (["x", "--nodes=2", "--", "y"], "--nodes"),
    ],
)
def test_what_was_meant_for_submit_is_refused(words: list[str], option: str) -> None:
    """The line names the option, and both ways out; nobody wants a job of what submits nothing, whoever has it."""
    with pytest.raises(UsageError) as caught:
        misplaced_options.script_arguments("train.py", words, OPTIONS, TEXT)

    assert caught.value.option == option
    assert mentions(caught.value, "submit train.py --")


def test_the_text_of_a_script(tmp_path: Path) -> None:
    """That of a file, a package or a module; of a large program only the first part, and nothing of what is no file."""
    (tmp_path / "pkg/sub").mkdir(parents=True)
    (tmp_path / "train.py").write_text("one")
    (tmp_path / "pkg/__main__.py").write_text("two")
    (tmp_path / "pkg/sub/train.py").write_bytes(b"three \xff")
    (tmp_path / "program").write_bytes(bytes(5_000_000))
    os.mkfifo(tmp_path / "pipe")

    def text(script: str, *, module: bool = False) -> str:
        return submitter.script_text(Settings(module=module), script, tmp_path)

    assert (text("train.py"), text("pkg"), text("pkg", module=True)) == ("one", "two", "two")
    assert text("pkg.sub.train", module=True) == "three \N{REPLACEMENT CHARACTER}"
    assert {text(name) for name in ("pipe", "missing.py", "pkg/sub", "x" * 300, "a\0b")} == {""}
    assert len(text("program")) < 2_000_000


@pytest.mark.parametrize("shell", ["#!/bin/bash", "#!/usr/bin/env sh", "#! /bin/bash -l", "#!/usr/bin/zsh"])
def test_a_job_script_is_no_training_script(shell: str) -> None:
    with pytest.raises(UsageError) as caught:
        misplaced_options.refuse_job_script("job.sh", f"{shell}\n#\n#SBATCH --nodes=2\nsrun hpc-launch train.py\n")

    assert mentions(caught.value, "'sbatch job.sh'", "--template")


@pytest.mark.parametrize("text", ["#!/usr/bin/env python3\n#SBATCH -N2\n", "import torch\n", "#!/bin/bash\ntrue\n", ""])
def test_other_scripts_are(text: str) -> None:
    """Python with lines for sbatch can be run by sbatch and by hpc-launch."""
    misplaced_options.refuse_job_script("train.py", text)
