"""Host lists as Slurm writes them: ``gpu[01-04,07]`` to names and back.

The grammar is that of ``scontrol show hostnames`` in Slurm 23.11 and newer: order and duplicates are kept, numbers
are as wide as the first of their range is written, an unclosed bracket is an error (older releases made a host of it).

python-hostlist folds for people (`display`): it sorts, drops duplicates and finds several groups in a name. It cannot
do the rest as Slurm does: its `expand_hostlist` orders three or more groups differently, refuses products of more than
100,000 hosts and the ``1-`` and ``[1, 2]`` that Slurm reads, and says "bad range" without saying which; its
`collect_hostlist` gives up order and duplicates, which decide who is rank 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import TYPE_CHECKING

import hostlist

from hpc_launch.errors import HostlistError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_RANGE = 65_536
"""The most hosts of one range, as in Slurm."""

MAX_HOSTS = 1_000_000
"""The most hosts of one expression: ``a[0-65535]b[0-65535]`` is a slip, and must not fill the memory."""

MAX_NAME = 255
"""The most characters of one name, as in the DNS."""

_NAME = re.compile(rf"[^\s,\[\]]{{1,{MAX_NAME}}}")
# Either separators or one item. Nothing follows the repeated alternatives, so they never backtrack.
_TOKEN = re.compile(r"[,\t\n ]+|(?P<item>(?:[^\s,\[\]]+|\[[^\[\]]*\])+)")
_GROUP = re.compile(r"\[([^\[\]]*)\]")
# Slurm reads numbers with strtoul, so blanks and a plus sign may precede them, and count in the width.
_RANGE = re.compile(r"\s*\+?[0-9]+(?:\s*-(?:\s*\+?[0-9]+)?)?", re.ASCII)
# Quotes come from a shell that did not strip them, braces are calls of functions that only slurmctld can answer.
_NOT_BESIDE_BRACKETS = re.compile(r"[\"'{}]")
# Slurm's numbers have 64 bits: a longer run of digits is folded as text. `\d` would match more than ASCII digits.
_NUMBER = re.compile(r"(?<![0-9])([0-9]{1,18})(?![0-9])")
_COUNT = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")
# Open MPI's max_slots bounds oversubscription, which a launcher of one process per slot has no use for.
_HOSTFILE_LINE = re.compile(
    r"""
    (?P<hosts> [0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*(?!\S) | [^\s:]+ )  # an IPv6 address has colons of its own
    (?: (?: : | \s+slots\s*=\s* ) 0*(?P<slots>[1-9][0-9]{0,8}) (?: \s+max[_-]slots\s*=\s*[0-9]+ )? (?!\S) )?
    \s* (?P<rest> .* )
    """,
    re.VERBOSE,
)

_Group = list[tuple[range, int]]
"""The ranges between two brackets, each with the width to which its numbers are padded."""


@dataclass(frozen=True)
class _Item:
    """One item of a host list: the texts around and between its groups, so one text more than groups."""

    texts: list[str]
    groups: list[_Group]

    @property
    def size(self) -> int:
        return prod(sum(len(numbers) for numbers, _ in group) for group in self.groups)

    def names(self) -> Iterator[str]:
        if not self.groups:
            return iter(self.texts)
        *outer, last = [
            [f"{number:0{width}d}" for numbers, width in group for number in numbers] for group in self.groups
        ]
        tails = [value + self.texts[-1] for value in last]
        # The last group varies fastest, then the first, the second and so on: Slurm expands the groups before the last
        # by a recursion that starts at the left.
        heads = (
            "".join(chain.from_iterable(zip(self.texts, reversed(values), strict=False))) + self.texts[-2]
            for values in product(*reversed(outer))
        )
        return (head + tail for head in heads for tail in tails)


@dataclass(frozen=True)
class HostSlots:
    """A host of a host file and how many processes it takes, None where the file does not say."""

    host: str
    slots: int | None


def expand(expression: str) -> tuple[str, ...]:
    """Expand ``gpu[01-03],login1`` to its host names, in Slurm's order and with its duplicates."""
    return tuple(chain.from_iterable(item.names() for item in _parse(expression)))


def count(expression: str) -> int:
    """Count the hosts of an expression without expanding it."""
    return sum(item.size for item in _parse(expression))


def fold(hosts: Iterable[str]) -> str:
    """Fold host names to a short expression that expands to exactly these, in this order and with these duplicates.

    Neighbours that differ in one number share a bracket: ``gpu[01-03,07],r1i[0-1]n0``. Slurm before 23.11 reads the
    result only where no text follows a bracket.
    """
    items: list[str] = []
    run: list[list[str]] = []  # neighbours, cut into texts (even places) and numbers (odd places)
    place: int | None = None  # where those of the run differ, None while nothing says so
    for host in hosts:
        _check_name(host)
        cells = [host] if _NOT_BESIDE_BRACKETS.search(host) else _NUMBER.split(host)
        joined = _place_of_difference(run[-1], cells) if run else None
        if joined is not None and place in (None, joined):
            place = joined
            run.append(cells)
        else:
            items.append(_fold_run(run, place))
            run, place = [cells], None
    items.append(_fold_run(run, place))
    return ",".join(filter(None, items))


def display(hosts: Iterable[str]) -> str:
    """Show a set of hosts to people, sorted and without duplicates: ``gpu[007,012]``."""
    names = list(hosts)
    for name in names:
        _check_name(name)
    return str(hostlist.collect_hostlist(names))


def select(hosts: Sequence[str], spec: str) -> tuple[str, ...]:
    """Select hosts by a slice as Python writes it: ``0:2``, ``-1:``, ``::2``."""
    try:
        start, stop, *step = (int(field) if field else None for field in spec.split(":"))
        return tuple(hosts[slice(start, stop, *step)])
    except (TypeError, ValueError):
        raise _error("slice", spec, spec, "START:STOP or START:STOP:STEP in whole numbers") from None


def parse_counts(text: str) -> tuple[int, ...]:
    """Parse the run-length list of SLURM_TASKS_PER_NODE or SLURM_JOB_CPUS_PER_NODE: ``2(x3),1`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        match = _COUNT.fullmatch(part)
        repeat = int(match[2] or 1) if match else 0
        if not match or not repeat:
            raise _error("list of counts", text, part, "a number or NUMBER(xREPEAT)")
        if len(counts) + repeat > MAX_HOSTS:
            raise _error("list of counts", text, part, f"at most {MAX_HOSTS} counts in all")
        counts += [int(match[1])] * repeat
    return tuple(counts)


def parse_hostfile(text: str) -> tuple[HostSlots, ...]:
    """Parse a host file: hosts in order of first appearance, each with its slots.

    A line is a host or a host list, alone (``gpu[01-04]``), as Open MPI writes it (``gpu01 slots=4``) or as MPICH does
    (``gpu01:4``). The slots of a host named again add up, and a line that gives none then stands for one: PBS and LSF
    write one line per process. A host named once without slots leaves their number open.
    """
    found: dict[str, int | None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        try:
            hosts, slots = _parse_hostfile_line(content)
        except HostlistError as error:
            message = f"host file, line {number}: {error}"
            raise HostlistError(message, expression=content, part=error.part) from None
        for host in hosts:
            found[host] = (found[host] or 1) + (slots or 1) if host in found else slots
    return tuple(HostSlots(host, slots) for host, slots in found.items())


def _parse(expression: str) -> Iterator[_Item]:
    """Yield the items of an expression, each within all limits, so that its names may be made."""
    total = at = 0
    while at < len(expression):
        token = _TOKEN.match(expression, at)
        if not token:
            raise _misplaced(expression, at)
        at = token.end()
        if not token["item"]:
            continue
        item = _parse_item(expression, token["item"])
        total += item.size
        if total > MAX_HOSTS:
            raise _error("host list", expression, token["item"], f"at most {MAX_HOSTS} hosts in all")
        yield item


def _parse_item(expression: str, text: str) -> _Item:
    parts = _GROUP.split(text)
    texts, bodies = parts[::2], parts[1::2]
    groups = [[_parse_range(expression, part) for part in body.split(",")] for body in bodies]
    if groups and (stray := _NOT_BESIDE_BRACKETS.search("".join(texts))):
        raise _error("host list", expression, stray[0], "no quotes and braces beside brackets")
    if sum(map(len, texts)) + sum(max(width for _, width in group) for group in groups) > MAX_NAME:
        raise _error("host list", expression, text, f"a name of at most {MAX_NAME} characters")
    return _Item(texts, groups)


def _parse_range(expression: str, text: str) -> tuple[range, int]:
    if len(text) > MAX_NAME or not _RANGE.fullmatch(text):
        raise _error("host list", expression, text, "a number or a range LOW-HIGH")
    low, _, high = text.partition("-")
    first, last = int(low), int(high or low)  # Slurm reads "1-" as "1"
    if first > last:
        raise _error("host list", expression, text, "a range that does not count down")
    if last - first >= MAX_RANGE:
        raise _error("host list", expression, text, f"a range of at most {MAX_RANGE} hosts")
    return range(first, last + 1), len(low)


def _misplaced(expression: str, at: int) -> HostlistError:
    """Return the error for the character that neither begins an item nor separates two."""
    if expression[at] != "[":
        return _error("host list", expression, expression[at], "a host name or a bracketed list of numbers")
    part, bracket, _ = expression[at + 1 :].partition("[")
    expected = "a closing bracket" + (" before another opens" if bracket else "")
    return _error("host list", expression, f"[{part}{bracket}", expected)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        expected = f"1 to {MAX_NAME} characters without blanks, commas and brackets"
        raise _error("host name", name, name, expected)


def _place_of_difference(one: list[str], other: list[str]) -> int | None:
    """Return the one place at which two names may share a bracket, the last number of a name given twice."""
    if len(one) != len(other):
        return None
    places = [place for place, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]
    if not places and len(one) > 1:
        return len(one) - 2
    return places[0] if len(places) == 1 and places[0] % 2 else None


def _fold_run(run: list[list[str]], place: int | None) -> str:
    """Fold names that differ at this place only."""
    if place is None:
        return "".join(chain.from_iterable(run))  # one name, or none yet
    ranges: list[tuple[str, str]] = []
    for number in (cells[place] for cells in run):
        low, high = ranges[-1] if ranges else ("", "")
        # `expand` pads all numbers of a range to the width of the first: only what it would make of the next one joins.
        if ranges and number == f"{int(high) + 1:0{len(low)}d}" and int(number) - int(low) < MAX_RANGE:
            ranges[-1] = (low, number)
        else:
            ranges.append((number, number))
    body = ",".join(low if low == high else f"{low}-{high}" for low, high in ranges)
    return "".join([*run[0][:place], f"[{body}]", *run[0][place + 1 :]])


def _parse_hostfile_line(content: str) -> tuple[tuple[str, ...], int | None]:
    match = _HOSTFILE_LINE.match(content)
    rest = match["rest"] if match else content
    if not match or rest:
        raise _error("entry", content, rest, "HOST, HOST:NUMBER or HOST slots=NUMBER")
    return expand(match["hosts"]), int(match["slots"]) if match["slots"] else None


def _error(kind: str, text: str, part: str, expected: str) -> HostlistError:
    found = f"found {_shorten(part) if part else 'nothing'}, " if part != text else ""
    message = f"{kind} {_shorten(text)}: {found}expected {expected}"
    return HostlistError(message, expression=text, part=part)


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit - 3]}...")
