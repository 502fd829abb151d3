"""torchrun's options by the beginnings of their names, as argparse takes them; and what is said of other words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from torch.distributed.run import get_args_parser

from hpc_launch.cli import _refuse_mistyped, main
from hpc_launch.cli.click_options import option_name, torchrun_names
from hpc_launch.settings import specs
from tests.support import mentions

PARSER = get_args_parser()

# Options of torchrun 2.14 that were ours before: they are never left short, so that no line becomes another one.
OURS_TOO = {"log-line-prefix-template", "print-completion"}

# torchrun's long options, each in one spelling. `--help` is every program's own.
ALL = {option.replace("_", "-")[2:] for option in PARSER._option_string_actions if option.startswith("--")} - {"help"}
OURS = ALL - OURS_TOO


def beginnings() -> Iterator[tuple[str, str]]:
    """Every beginning of two letters or more, in both spellings, and what it stands for; empty for several options."""
    for name in sorted(OURS):
        for size in range(2, len(name) + 1):
            begun = name[:size]
            meant = [begun] if begun in OURS else [other for other in OURS if other.startswith(begun)]
            yield begun, meant[0] if len(meant) == 1 else ""
            yield begun.replace("-", "_"), meant[0] if len(meant) == 1 else ""


# What torchrun has had for some releases, and not in the oldest that hpc-launch takes.
LATER = {
    *("duplicate-stderr-filters", "duplicate-stdout-filters", "event-log-handler", "numa-binding", "shutdown-timeout"),
    *("signals-to-handle", "virtual-local-rank"),
}
OLDER = torch.__version__ < "2.13"

FORMS = [*dict.fromkeys(beginnings())]


def test_torchrun_s_names_are_known() -> None:
    """All of them, and no other: where torch adds one, it can be left short from then on."""
    assert {*torchrun_names()} >= OURS
    assert {*torchrun_names()} - OURS <= {"no-use-env", "use-env"} | (LATER if OLDER else set())


def test_every_beginning_stands_for_what_argparse_takes_it_for() -> None:
    """Where several options begin so, none is meant; a name of ours is never left short, and an exact one wins."""
    exact = {flag.lstrip("-") for spec in specs().values() for flag in spec.flags}
    found = {begun: option_name(begun) for begun, _ in FORMS}
    expected = {
        begun: begun.replace("_", "-") if begun.replace("_", "-") in exact or not meant else meant
        for begun, meant in FORMS
    }
    assert found == expected
    assert sum(begun != found[begun] for begun in found) > (200 if OLDER else 300)


@pytest.mark.parametrize(
    ("words", "given"),
    [(["--nnode", "1"], "nnodes=1"), (["--redirect=3"], "redirects=3"), (["--max_r", "2"], "max_restarts=2")],
)
def test_argparse_agrees(words: list[str], given: str) -> None:
    """What torch's own parser makes of some."""
    name, _, value = given.partition("=")
    with contextlib.redirect_stderr(io.StringIO()):
        parsed = PARSER.parse_args([*words, "train.py"])
    assert str(getattr(parsed, name)) == value


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what the program says of its words, which are wrong."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "named", "not_named"),
    [
        (["--hang", "3", "x.py"], "--hang-activity --hang-timeout", ""),
        (["--rdzv", "3", "x.py"], "--rdzv-backend --rdzv-conf --rdzv-id", ""),
        (["--nprok", "3", "x.py"], "--nproc-per-node", "--profile"),
        (["--profil", "3", "x.py"], "--profile", ""),
        (["--xyzzy", "3", "x.py"], "--xyzzy", "did"),
        (["stauts"], "hpc-launch status", "login"),
        (["help"], "hpc-launch --help", "login"),
        (["list"], "hpc-launch status", "login"),
    ],
)
def test_what_is_meant_is_named(
    capfd: pytest.CaptureFixture[str], words: list[str], named: str, not_named: str
) -> None:
    """What is near, and nothing where nothing is near."""
    text = said(capfd, *words)
    assert mentions(text, named), text
    assert not not_named or not_named not in text, text


def test_a_script_that_is_named_like_a_mistyped_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there is a script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stats").write_text("")
    with pytest.raises(click.UsageError):
        _refuse_mistyped("stat")
    _refuse_mistyped("stats")
    _refuse_mistyped("train")
    _refuse_mistyped("./stauts")


def test_completion_for_tcsh(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names every option; click knows the other shells."""
    with pytest.raises(SystemExit):
        main(["run", "--print-completion", "tcsh"])
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert mentions(text, "complete hpc-launch", "nproc-per-node", "hang-timeout"), text
