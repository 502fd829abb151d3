"""Values of secrets, which are left out of records, reports and process titles. Pure.

A secret is known by its name: an argument (`--api-key X`, `--api-key=X`), a variable, an assignment in a text
(`wandb.api_key=X`), or the password of a URL. More names can be given as patterns (--secret-names).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

# What stands in the place of a value.
HIDDEN = "[hidden]"

# Ends of words, and whole words, of the names of arguments. `--tokenizer`, `--max-tokens` and `--key-dim` hold none.
_ENDS = ("key", "token", "password", "passwd", "passphrase", "secret")
_WHOLE = frozenset({"auth", "cookie", "credential", "credentials", "jwt", "pat", "pwd", "secrets", "passwords"})
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Variables are left out for less: a name that only looks like a secret costs a line of the record.
_VARIABLE = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|KEY|AUTH|COOKIE|PRIVATE|JWT|(?:^|_)(?:PAT|PWD)(?:_|$)", re.IGNORECASE
)

# user:password@ in a URL.
_URL = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@]*:)[^\s/?#@]+(?P<after>@)")

# NAME=VALUE in a list, a query or a line. A double comma stands for one in a value.
_ASSIGNMENT = re.compile(r"(?P<name>[\w.-]+)=(?P<value>(?:[^\s,&;]|,,)+)")


def names_secret(name: str, patterns: Sequence[str] = ()) -> bool:
    """Whether an argument, a key or a variable of that name has a secret for its value.

    Args:
        name: with or without dashes before it.
        patterns: more names, as shells match them, whatever the case.
    """
    bare = name.lstrip("-+")
    if any(fnmatchcase(_plain(bare), _plain(pattern.lstrip("-"))) for pattern in patterns):
        return True
    *before, last = [word.lower() for word in _WORDS.findall(bare)] or [""]
    return (
        last.endswith(_ENDS)
        or any(word in _WHOLE or word.endswith(_ENDS[1:]) for word in (*before, last))
        or "password" in bare.lower()
    )


def names_secret_variable(name: str, patterns: Sequence[str] = ()) -> bool:
    """Whether a variable is not to be recorded at all."""
    return bool(_VARIABLE.search(name)) or names_secret(name, patterns)


def redacted_text(value: str, patterns: Sequence[str] = ()) -> str:
    """A text without the passwords of its URLs, and without the values of its assignments to secrets."""

    def assignment(match: re.Match[str]) -> str:
        return f"{match['name']}={HIDDEN}" if names_secret(match["name"], patterns) else match[0]

    return _ASSIGNMENT.sub(assignment, _URL.sub(rf"\g<before>{HIDDEN}\g<after>", value))


def redacted_arguments(words: Sequence[str], patterns: Sequence[str] = ()) -> tuple[str, ...]:
    """The words of a command without the values of secrets."""
    shown: list[str] = []
    awaited = False
    for word in words:
        if awaited and not word.startswith("-"):
            shown.append(HIDDEN)
            awaited = False
            continue
        name, equals, _ = word.partition("=")
        secret = names_secret(name, patterns)
        awaited = word.startswith("-") and not equals and secret
        # The value may have spaces and commas, as the word is one for the program.
        shown.append(f"{name}={HIDDEN}" if equals and secret and " " not in name else redacted_text(word, patterns))
    return tuple(shown)


def redacted_pairs(values: Sequence[tuple[str, str]], patterns: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """Names and values without the values of secrets."""
    return tuple(
        (
            name,
            HIDDEN if names_secret(name, patterns) or names_secret_variable(name) else redacted_text(value, patterns),
        )
        for name, value in values
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
