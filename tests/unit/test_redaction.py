"""Values of secrets are left out, and what only looks like one stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, strategies as st

from hpc_launch import redaction
from hpc_launch.cli import cli
from hpc_launch.redaction import HIDDEN


@pytest.mark.parametrize(
    "name",
    [
        "--api-key",
        "--api_key",
        "--apikey",
        "--wandb.api_key",
        "--hfToken",
        "--token",
        "--github-pat",
        "--db-password",
        "--passwordFile",
        "--client-secret",
        "--secret-id",
        "--gpg-passphrase",
        "--auth",
        "--aws-credentials",
        "-token",
        "GITHUB_PAT",
        "SIGNING_PASSPHRASE",
    ],
)
def test_names_of_secrets(name: str) -> None:
    """They are known however they are written."""
    assert redaction.names_secret(name)


@pytest.mark.parametrize(
    "name",
    ["--tokenizer", "--max-tokens", "--key-dim", "--keys", "--author", "--path", "--patch-size", "--lr", "--patience"],
)
def test_names_that_only_look_like_secrets(name: str) -> None:
    """What training scripts are asked every day is recorded."""
    assert not redaction.names_secret(name)


@pytest.mark.parametrize("pattern", ["db_*", "DB-*", "--db-url", "*url"])
def test_names_of_ones_own(pattern: str) -> None:
    """More names can be given, as patterns."""
    assert redaction.names_secret("--db-url", [pattern])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--api-key", "abc", "--lr", "1"], ["--api-key", HIDDEN, "--lr", "1"]),
        (["--api-key=a=b c,d"], [f"--api-key={HIDDEN}"]),
        (["wandb.api_key=abc"], [f"wandb.api_key={HIDDEN}"]),
        (["--use-auth", "--lr", "1"], ["--use-auth", "--lr", "1"]),
        (["--password"], ["--password"]),
        (["--env", "HF_TOKEN=abc"], ["--env", f"HF_TOKEN={HIDDEN}"]),
        (["--db=pg://me:word@host/x"], [f"--db=pg://me:{HIDDEN}@host/x"]),
        (["https://h/?a=1&token=abc&b=2"], [f"https://h/?a=1&token={HIDDEN}&b=2"]),
        (["--tokenizer", "gpt2", "--max-tokens=512"], ["--tokenizer", "gpt2", "--max-tokens=512"]),
    ],
)
def test_arguments(words: Sequence[str], expected: Sequence[str]) -> None:
    """Values are hidden in the word of the name, in the one after it, in assignments and in URLs."""
    assert redaction.redacted_arguments(words) == tuple(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("LANG=C,WANDB_API_KEY=a,,b,X=1", f"LANG=C,WANDB_API_KEY={HIDDEN},X=1"),
        ("http://me:word@proxy:80", f"http://me:{HIDDEN}@proxy:80"),
        ("http://me@proxy:80 12:30@noon", "http://me@proxy:80 12:30@noon"),
    ],
)
def test_text(value: str, expected: str) -> None:
    """Lists of variables and URLs keep all but the secrets."""
    assert redaction.redacted_text(value) == expected


def test_pairs() -> None:
    """Of names and values the names stay."""
    assert redaction.redacted_pairs([("HF_TOKEN", "abc"), ("LANG", "C")]) == (("HF_TOKEN", HIDDEN), ("LANG", "C"))


@pytest.mark.parametrize("name", ["HPC_LAUNCH_SECRET", "HPC_LAUNCH_SECRET_FILE", "HPC_LAUNCH_STEP_SECRET"])
def test_secrets_of_the_launcher(name: str) -> None:
    """Its own are never recorded."""
    assert redaction.names_secret_variable(name)


@given(st.lists(st.text()))
def test_any_words(words: list[str]) -> None:
    """Whatever the words are, there are as many as before."""
    assert len(redaction.redacted_arguments(words)) == len(words)


@pytest.mark.parametrize("words", [["env", "--json"], ["explain", "train.py"], ["config", "show"]])
def test_commands_do_not_print_the_launchers_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Neither what the user has set nor what a step was given."""
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("HPC_LAUNCH_SECRET", "HPC_LAUNCH_STEP_SECRET"):
        monkeypatch.setenv(name, "0123456789abcdef" * 4)
    done = CliRunner().invoke(cli, words)

    assert (done.exit_code, "0123456789abcdef" in done.output) == (0, False)
