"""Tests assert facts: no test has a sentence of hpc-launch's but those of `test_wording.py`.

A message may be reworded at any time. A test that means a kind, a status, a name, a number or an option asserts that,
and `tests.support.mentions` where it is in a message.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# So many words in a row that the product has too are a sentence of it.
RUN = 4
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")

# Where sentences are to be read and judged.
GOLDEN = "test_wording.py"

# What others say, which hpc-launch has to know as well: the kernel, Slurm, Python and torch.
OTHERS = re.compile(
    r"most recent call (?:first|last)|hardware errors|hardware memory corruption|slurm controller|pending execution"
    r"|completing or completed|submission failed|End of the stacks|operations have failed|core-complex"
)


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file, docstrings left out, with their lines; what f-strings fill in is no word."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    parts |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(one.value) if isinstance(one, ast.Constant) else " \0 " for one in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def runs(text: str) -> set[tuple[str, ...]]:
    """All runs of words in a text."""
    words = [word.strip(".,:;()\"'`?!|^$") for word in text.replace("\\", "").split()]
    found = (tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1))
    return {run for run in found if all(map(_WORD.fullmatch, run))}


@functools.cache
def product() -> set[tuple[str, ...]]:
    """All runs of words in the texts of hpc-launch."""
    files = (ROOT / "hpc_launch").rglob("*.py")
    return {run for path in files for _, text in literals(path) for run in runs(text)}


def test_sentences_are_pinned_in_one_place() -> None:
    """Whoever rewords a message changes one file of tests."""
    known = product()
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in ("unit", "local", "slurm")
        for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))
        if path.name != GOLDEN
        for line, text in literals(path)
        if runs(text) & known and not OTHERS.search(text)
    ]

    assert found == []


def test_a_sentence_would_be_found() -> None:
    """The check sees what it is for: the golden texts."""
    known = product()

    assert sum(bool(runs(text) & known) for _, text in literals(ROOT / "tests/unit" / GOLDEN)) > 30
