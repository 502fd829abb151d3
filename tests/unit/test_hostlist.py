"""Host lists: the expansions are Slurm's, folding is faithful, and errors name the bad part."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import hostlist as python_hostlist
import pytest
from hypothesis import given, settings, strategies as st

from hpc_launch.errors import HostlistError
from hpc_launch.hostlist import (
    MAX_HOSTS,
    HostSlots,
    count,
    display,
    expand,
    fold,
    parse_counts,
    parse_hostfile,
    select,
)
from tests.support import mentions

if TYPE_CHECKING:
    from collections.abc import Callable

# Where Slurm 23.11 and newer differ from the table: suffixes work, an unclosed bracket is an error.
NEWER_SLURM = {
    "node[1-2].example.com": "node1.example.com node2.example.com",
    "gpu[1-2]a": "gpu1a gpu2a",
    "n[0-1]-[0-1]x": "n0-0x n0-1x n1-0x n1-1x",
    "node[1-3": "ERROR",
}


def read_table() -> list[tuple[str, str]]:
    lines = Path(__file__).with_name("hostlists.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return [(expression.replace(r"\t", "\t"), NEWER_SLURM.get(expression, hosts)) for expression, hosts in rows]


TABLE = read_table()
GOOD_ROWS = [(expression, hosts) for expression, hosts in TABLE if hosts != "ERROR"]
BAD_ROWS = [expression for expression, hosts in TABLE if hosts == "ERROR"]


# Expressions of every release's grammar: a letter first, then groups and the text between them, a group last.
numbers = st.integers(0, 200).map(str) | st.sampled_from(["00", "01", "007", "010", "0099"])
ranges = st.tuples(st.sampled_from(["0", "1", "08", "9", "098"]), st.integers(0, 12)).map(
    lambda low_and_more: f"{low_and_more[0]}-{int(low_and_more[0]) + low_and_more[1]}"
)
groups = st.lists(numbers | ranges, min_size=1, max_size=3).map(lambda members: f"[{','.join(members)}]")
texts = st.sampled_from(["", "-", "n", "i", "7", "-rack2-"])


def expressions(max_groups: int) -> st.SearchStrategy[str]:
    parts = st.lists(st.tuples(texts, groups).map("".join), max_size=max_groups).map("".join)
    items = st.tuples(st.sampled_from(["a", "gpu", "r1-x"]), parts).map("".join)
    return st.lists(items, min_size=1, max_size=4).map(",".join)


# Any name: characters of all kinds, among them digits that are not ASCII, and families of names that differ in numbers.
def is_name(text: str) -> bool:
    return re.fullmatch(r"[^\s,\[\]]+", text) is not None


wide_names = st.text(min_size=1, max_size=20).filter(is_name)
pieces = st.sampled_from(["a", "gpu", "-", ".x", "\u0663", "²", "{", '"'])
digits = st.integers(0, 120).map(str) | st.from_regex(r"0{0,2}[0-9]{1,2}", fullmatch=True)
huge = st.integers(2**64 - 3, 2**64 + 3).map(str) | st.integers(10**17 - 3, 10**18 + 3).map(str)
families = st.lists(pieces | digits | huge, min_size=1, max_size=5).map("".join)
names = st.lists(wide_names | families | st.builds("n{}{}".format, digits, st.sampled_from(["", "-ib"])), max_size=30)
plain_names = st.lists(st.builds("{}{}".format, st.sampled_from(["a", "rack2-n", "x0y"]), digits), max_size=30)


@pytest.fixture(scope="module")
def scontrol(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, ...]]:
    program = shutil.which("scontrol")
    if program is None:
        pytest.skip("scontrol is not installed")
    conf = tmp_path_factory.mktemp("slurm") / "slurm.conf"
    conf.write_text("ClusterName=none\nSlurmctldHost=localhost\n", encoding="utf-8")

    def show_hostnames(expression: str) -> tuple[str, ...]:
        done = subprocess.run(
            [program, "show", "hostnames", expression],
            env={"SLURM_CONF": str(conf)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return tuple(done.stdout.split())

    return show_hostnames


@pytest.mark.parametrize(("expression", "shown"), GOOD_ROWS, ids=[expression for expression, _ in GOOD_ROWS])
def test_expands_as_slurm(expression: str, shown: str) -> None:
    expanded = expand(expression)
    cut = re.fullmatch(r"(?P<head>.*) \.\.\. (?P<last>\S+) \(count=(?P<count>\d+)\)", shown)
    if cut:
        head = tuple(cut["head"].split())
        assert (head, cut["last"], int(cut["count"])) == (expanded[: len(head)], expanded[-1], len(expanded))
    else:
        assert tuple(shown.split()) == expanded
    assert len(expanded) == count(expression)


@pytest.mark.parametrize("expression", BAD_ROWS)
def test_refuses_what_slurm_refuses(expression: str) -> None:
    with pytest.raises(HostlistError) as caught:
        expand(expression)
    assert expression == caught.value.expression
    assert caught.value.part in expression


@pytest.mark.parametrize(
    ("expression", "part", "expected"),
    [
        ("gpu[01-04],node[3-1]", "3-1", ""),
        ("node[1,b-c]", "b-c", "LOW-HIGH"),
        ("node[1a-2]", "1a-2", "LOW-HIGH"),
        ("node[1--3]", "1--3", "LOW-HIGH"),
        ("node[1-2-3]", "1-2-3", "LOW-HIGH"),
        ("node[-3]", "-3", "LOW-HIGH"),
        ("node[000x133]", "000x133", "LOW-HIGH"),
        ("node[\u0661]", "\u0661", "LOW-HIGH"),
        ("n,node[0-65536]", "0-65536", "65536"),
        ("n1,node[1-3", "[1-3", ""),
        ("node[1-2,gpu[3-4]]", "[1-2,gpu[", ""),
        ("node1]", "]", ""),
        ("node1\r", "\r", ""),
        ("{node[1-2]}", "{", ""),
        ("x,a[0-65535]b[0-65535]", "a[0-65535]b[0-65535]", "1000000"),
    ],
)
def test_error_says_what_was_found_and_expected(expression: str, part: str, expected: str) -> None:
    with pytest.raises(HostlistError) as caught:
        expand(expression)
    assert part == caught.value.part
    assert expression == caught.value.expression
    assert mentions(caught.value, repr(expression), repr(part), expected)


def test_error_for_an_empty_member_says_nothing_was_found() -> None:
    with pytest.raises(HostlistError) as caught:
        expand("node[1,,2]")
    assert caught.value.part == ""
    assert mentions(caught.value, "'node[1,,2]' LOW-HIGH")


def test_error_for_a_long_expression_stays_short() -> None:
    with pytest.raises(HostlistError) as caught:
        expand("node1," * 10_000 + "node[x]")
    assert caught.value.part == "x"
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", ()),
        (" ,\n", ()),
        ("node1\nnode[2-3]\n", ("node1", "node2", "node3")),
        ("node[4-]", ("node4",)),
        ("node[1-+2]", ("node1", "node2")),
        ("a[1-2]5", ("a15", "a25")),
        ("n[18446744073709551616]", ("n18446744073709551616",)),
        (
            "a[0-1][0-1][0-1][2-3]",
            (
                "a0002",
                "a0003",
                "a1002",
                "a1003",
                "a0102",
                "a0103",
                "a1102",
                "a1103",
                "a0012",
                "a0013",
                "a1012",
                "a1013",
                "a0112",
                "a0113",
                "a1112",
                "a1113",
            ),
        ),
    ],
)
def test_expands_beyond_the_table(expression: str, expected: tuple[str, ...]) -> None:
    assert expected == expand(expression)


@settings(max_examples=50, deadline=None)
@given(expression=expressions(max_groups=4))
def test_expands_as_the_installed_slurm(scontrol: Callable[[str], tuple[str, ...]], expression: str) -> None:
    assert scontrol(expression) == expand(expression)


@settings(max_examples=50, deadline=None)
@given(hosts=plain_names)
def test_the_installed_slurm_reads_what_is_folded(scontrol: Callable[[str], tuple[str, ...]], hosts: list[str]) -> None:
    """Every release expands folded names that end with their number, as Slurm's own do mostly."""
    assert tuple(hosts) == scontrol(fold(hosts))


@settings(deadline=None)
@given(expression=expressions(max_groups=2))
def test_expands_as_python_hostlist_where_both_agree_on_the_order(expression: str) -> None:
    expected = python_hostlist.expand_hostlist(expression, allow_duplicates=True)
    assert tuple(expected) == expand(expression)


@settings(deadline=None)
@given(expression=expressions(max_groups=4))
def test_counts_what_it_expands(expression: str) -> None:
    assert len(expand(expression)) == count(expression)


@settings(deadline=None)
@given(text=st.text(alphabet="an01,-+[]{} \t\n(x)", max_size=30))
def test_expands_or_refuses_any_text(text: str) -> None:
    """No text makes it fail in another way, or makes a name that is none."""
    try:
        hosts = expand(text)
    except HostlistError:
        return
    assert all(map(is_name, hosts))


@settings(deadline=None)
@given(hosts=names)
def test_folding_keeps_every_name_in_its_place(hosts: list[str]) -> None:
    assert tuple(hosts) == expand(fold(hosts))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("", ""),
        ("login", "login"),
        ("gpu007 gpu012", "gpu[007,012]"),
        ("n1 n2 n3 n5 n1", "n[1-3,5,1]"),
        ("n3 n2 n1", "n[3,2,1]"),
        ("n8 n9 n10 n11", "n[8-11]"),
        ("n08 n09 n10 n011", "n[08-10,011]"),
        ("r0n0 r0n1 r1n0 r1n1", "r0n[0-1],r1n[0-1]"),
        ("r1i0n0 r2i0n0 r3i0n0", "r[1-3]i0n0"),
        ("ip-10-0-0-1.eu-west-1.internal ip-10-0-0-2.eu-west-1.internal", "ip-10-0-0-[1-2].eu-west-1.internal"),
        ("a a b b", "a,a,b,b"),
        ("n1 n1 n2", "n[1,1-2]"),
        ("n\u0661 n\u0662", "n\u0661,n\u0662"),
        ("n18446744073709551615 n18446744073709551616", "n18446744073709551615,n18446744073709551616"),
        ('"n1" "n2"', '"n1","n2"'),
    ],
)
def test_folds(hosts: str, expected: str) -> None:
    assert expected == fold(hosts.split())


@pytest.mark.parametrize("name", ["", "a b", "a,b", "a[1]", "a]", "a\n", "\u00a0", "x" * 256])
@pytest.mark.parametrize("function", [fold, display])
def test_what_is_no_host_name_is_not_folded(function: Callable[[list[str]], str], name: str) -> None:
    with pytest.raises(HostlistError) as caught:
        function(["n1", name])
    assert name == caught.value.part


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("", ""),
        ("gpu012 gpu007 gpu012", "gpu[007,012]"),
        ("r1n1 r1n0 r0n1 r0n0 login", "login,r[0-1]n[0-1]"),
        ("node2.example.com node1.example.com", "node[1-2].example.com"),
    ],
)
def test_displays_a_set_of_hosts(hosts: str, expected: str) -> None:
    assert expected == display(hosts.split())


@settings(deadline=None)
@given(hosts=names)
def test_displays_any_hosts_on_one_line(hosts: list[str]) -> None:
    assert len(display(hosts).split()) <= 1


@settings(deadline=None)
@given(hosts=plain_names)
def test_displays_every_host(hosts: list[str]) -> None:
    assert set(hosts) == set(expand(display(hosts)))


def test_a_hundred_thousand_hosts_expand_and_fold() -> None:
    expression = "n[0-65535],m[0-40000]"
    hosts = expand(expression)
    assert (len(hosts), hosts[0], hosts[-1]) == (105_537, "n0", "m40000")
    assert expression == fold(hosts)


def test_folding_more_than_one_range_can_hold_makes_two() -> None:
    assert fold(f"n{number}" for number in range(70_000)) == "n[0-65535,65536-69999]"


@pytest.mark.parametrize(
    "expression",
    [
        "a[0-999]b[0-999],c",
        "[0-65535]" * 20,
        "n[" + "0-65535," * 10_000 + "0]",
        "n[" + "0" * 10_000 + "-60000]",
        "n" * 10_000 + "[0-65535]",
        "n" * 10_000,
    ],
    ids=["product", "many groups", "many ranges", "wide numbers", "long prefix", "long name"],
)
def test_a_short_text_cannot_fill_the_memory(expression: str) -> None:
    with pytest.raises(HostlistError, match="expected"):
        expand(expression)


def test_the_limit_itself_is_allowed() -> None:
    assert count("a[0-999]b[0-999]") == MAX_HOSTS


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("0:2", ("a", "b")), ("-1:", ("d",)), (":", ("a", "b", "c", "d")), ("::2", ("a", "c")), ("3:9", ("d",))],
)
def test_selects_by_a_slice(spec: str, expected: tuple[str, ...]) -> None:
    assert expected == select(("a", "b", "c", "d"), spec)


@pytest.mark.parametrize("spec", ["", "1", "a:b", "::0", "1:2:3:4", "0-2"])
def test_refuses_what_is_no_slice(spec: str) -> None:
    with pytest.raises(HostlistError) as caught:
        select(("a", "b"), spec)
    assert mentions(caught.value, repr(spec), "START:STOP START:STOP:STEP")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2(x3),1", (2, 2, 2, 1)), ("8", (8,)), ("72(x2),36", (72, 72, 36)), ("1,1(x2),0", (1, 1, 1, 0))],
)
def test_parses_counts(text: str, expected: tuple[int, ...]) -> None:
    assert expected == parse_counts(text)


@settings(deadline=None)
@given(counts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), min_size=1))
def test_parses_any_run_lengths(counts: list[tuple[int, int]]) -> None:
    text = ",".join(f"{number}(x{repeat})" if repeat > 1 else str(number) for number, repeat in counts)
    assert tuple(number for number, repeat in counts for _ in range(repeat)) == parse_counts(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", ""),
        ("4,", ""),
        ("2(x3),x", "x"),
        ("2(x0),1", "2(x0)"),
        ("2(x3", "2(x3"),
        ("2x3", "2x3"),
        ("-1", "-1"),
        ("2, 1", " 1"),
        ("\u0662", "\u0662"),
        ("1,1(x1000000)", "1(x1000000)"),
        ("1(x99999999999)", "1(x99999999999)"),
    ],
)
def test_bad_counts_are_named(text: str, part: str) -> None:
    with pytest.raises(HostlistError) as caught:
        parse_counts(text)
    assert (text, part) == (caught.value.expression, caught.value.part)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("b\na\n", [("b", None), ("a", None)]),
        ("b\nb\na\nb\na\nc\n", [("b", 3), ("a", 2), ("c", None)]),
        ("gpu01 slots=4\ngpu02 slots = 2 max_slots=8\n", [("gpu01", 4), ("gpu02", 2)]),
        ("gpu01:4\ngpu02:04\ngpu03\n", [("gpu01", 4), ("gpu02", 4), ("gpu03", None)]),
        ("gpu[01-03]\n", [("gpu01", None), ("gpu02", None), ("gpu03", None)]),
        ("gpu[01-02]:8\nlogin,gpu02 slots=2", [("gpu01", 8), ("gpu02", 10), ("login", 2)]),
        ("a\na:4\n", [("a", 5)]),
        ("# made by hand\r\n\r\n  a  # the first\r\nb\r\n", [("a", None), ("b", None)]),
        ("fe80::1\n::1 slots=2\n10.0.0.1:3", [("fe80::1", None), ("::1", 2), ("10.0.0.1", 3)]),
    ],
    ids=[
        "empty",
        "plain",
        "PBS and LSF",
        "Open MPI",
        "MPICH",
        "host list",
        "host list with slots",
        "sum",
        "comments, blank lines, CRLF",
        "addresses",
    ],
)
def test_parses_host_files(text: str, expected: list[tuple[str, int | None]]) -> None:
    assert tuple(HostSlots(host, slots) for host, slots in expected) == parse_hostfile(text)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("gpu01 4", "4"),
        ("gpu01 slots=0", "slots=0"),
        ("gpu01 slots=4x", "slots=4x"),
        ("gpu01 slots=4 slots=5", "slots=5"),
        ("gpu01:gpu02", ":gpu02"),
        ("gpu01:2,gpu02:2", ":2,gpu02:2"),
        (":4", ":4"),
        ("gpu[01-", "[01-"),
        ("gpu[3-1] slots=4", "3-1"),
    ],
)
def test_a_bad_line_of_a_host_file_is_named(line: str, part: str) -> None:
    with pytest.raises(HostlistError, match=r"^host file, line 3: .*expected ") as caught:
        parse_hostfile(f"a\n\n{line}\nb\n")
    assert (line, part) == (caught.value.expression, caught.value.part)
