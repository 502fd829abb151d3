"""The settings: every reader, who speaks of an option with which authority, and that torchrun's are all there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import click
import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from hpc_launch.cli.run import run
from hpc_launch.errors import UsageError
from hpc_launch.settings import (
    ConsoleChoice,
    CpuBind,
    NodeRange,
    Origin,
    Settings,
    StreamChoice,
    Streams,
    resolve,
    specs,
)
from tests.support import mentions

# What torchrun and torch.distributed.launch offer, as their own parser says it.
ASK_TORCHRUN = """
import json
import torch.distributed.launch as launch
from torch.distributed.run import get_args_parser

parser = get_args_parser()
launch.get_args_parser = lambda: parser
launch.parse_args(["train.py"])
options = [action for action in parser._actions if action.option_strings and action.dest != "help"]
print(json.dumps({
    action.dest: {
        "flags": action.option_strings,
        "flag": action.nargs == 0,
        "variable": "env" in type(action).__name__,
        "default": action.default,
        "choices": action.choices,
    }
    for action in options
}))
"""

# Defaults that torchrun leaves to its own derivation, or ours to Slurm; each has a test in test_plan.py.
DERIVED = {
    "nnodes",
    "nproc_per_node",
    "rdzv_backend",
    "rdzv_endpoint",
    "rdzv_id",
    "node_rank",
    "master_addr",
    "redirects",
    "tee",
    "use_env",
}

GOOD: dict[str, list[tuple[str, Any]]] = {
    "nnodes": [("1", NodeRange(1, 1)), ("16", NodeRange(16, 16)), ("2:4", NodeRange(2, 4)), ("3:3", NodeRange(3, 3))],
    "nproc_per_node": [("8", 8), ("auto", "auto"), ("cpu", "cpu"), ("gpu", "gpu"), ("xpu", "xpu"), ("hpu", "hpu")],
    "hosts": [("gpu[01-04]", "gpu[01-04]")],
    "nodes": [("2", 2), ("gpu[01-04]", "gpu[01-04]"), ("12a", "12a")],
    "jobid": [("12", "12"), ("12_3", "12_3")],
    "overlap": [("1", True), ("no", False)],
    "hostfile": [("hosts.txt", "hosts.txt")],
    "node_rank": [("0", 0), ("12", 12)],
    "master_addr": [("10.0.0.1", "10.0.0.1"), ("[fe80::1]", "[fe80::1]")],
    "master_port": [("1", 1), ("65535", 65535)],
    "local_addr": [("10.0.0.2", "10.0.0.2")],
    "interface": [("ib0", "ib0")],
    "rdzv_backend": [("c10d", "c10d")],
    "rdzv_endpoint": [("gpu01:29400", "gpu01:29400")],
    "rdzv_id": [("job-7", "job-7")],
    "rdzv_conf": [
        ("a=1", (("a", "1"),)),
        (" a = 1 , b=x=y ,", (("a", "1"), ("b", "x=y"))),
    ],
    "insecure_rendezvous": [("1", True), ("no", False)],
    "standalone": [("1", True), ("true", True), ("Yes", True), ("on", True), ("0", False), ("no", False)],
    "hang_timeout": [("600", 600.0), ("none", 0.0), ("0", 0.0)],
    "hang_activity": [("auto", "auto"), ("progress", "progress"), ("output", "output")],
    "join_timeout": [("0.5", 0.5), ("600", 600.0)],
    "node_timeout": [("0.5", 0.5), ("30", 30.0)],
    "spares": [("0", 0), ("2", 2)],
    "port_range": [("20000-20003", range(20000, 20004)), ("29500", range(29500, 29501))],
    "module": [("1", True)],
    "no_python": [("1", True)],
    "run_path": [("1", True)],
    "use_env": [("0", False)],
    "start_method": [("spawn", "spawn"), ("fork", "fork"), ("forkserver", "forkserver")],
    "start": [("auto", "auto"), ("warm", "warm"), ("exec", "exec")],
    "preload": [("numpy", ("numpy",)), ("numpy, torch.nn", ("numpy", "torch.nn"))],
    "exec_for": [("jax,tensorflow", ("jax", "tensorflow"))],
    "role": [("trainer", "trainer")],
    "virtual_local_rank": [("1", True)],
    "cpu_bind": [
        ("auto", CpuBind()),
        ("none", CpuBind("none")),
        ("map:0-2,8/4", CpuBind("map:0-2,8/4", ((0, 1, 2, 8), (4,)))),
    ],
    "gpu_bind": [("visible", "visible"), ("isolate", "isolate"), ("none", "none")],
    "numa_binding": [("node", "node")],
    "omp_num_threads": [("4", 4)],
    "default_env": [
        ("A=1", (("A", "1"),)),
        ("A=,_B2=x=y", (("A", ""), ("_B2", "x=y"))),
        ("NCCL_SOCKET_IFNAME=hsn0,,hsn1,C=d e", (("NCCL_SOCKET_IFNAME", "hsn0,hsn1"), ("C", "d e"))),
        ("", ()),
    ],
    "open_files": [("auto", "auto"), ("keep", "keep"), ("256", 256), ("65536", 65536)],
    "slurm_env": [("rank", "rank"), ("keep", "keep"), ("hide", "hide")],
    "max_restarts": [("0", 0), ("3", 3)],
    "monitor_interval": [("0.1", 0.1), ("5", 5.0)],
    "signals_to_handle": [("SIGTERM", ("SIGTERM",)), ("SIGTERM, SIGUSR1", ("SIGTERM", "SIGUSR1"))],
    "notice_signals": [
        ("USR1", ("SIGUSR1",)),
        ("SIGUSR2", ("SIGUSR2",)),
        ("usr1, SIGCONT,sigrtmin", ("SIGUSR1", "SIGCONT", "SIGRTMIN")),
        ("none", ()),
    ],
    "shutdown_timeout": [("0", 0), ("60", 60)],
    "requeue": [
        ("on-notice", ("on-notice",)),
        ("on-timeout, on-preempt,on-failure", ("on-timeout", "on-preempt", "on-failure")),
        ("never", ()),
    ],
    "max_requeues": [("0", 0), ("100", 100)],
    "requeue_patience": [("1", 1), ("5", 5)],
    "log_dir": [("logs", "logs")],
    "log_name": [("run-7", "run-7"), ("a b", "a b")],
    "redirects": [
        ("0", StreamChoice()),
        ("3", StreamChoice(Streams.ALL)),
        ("0:1,1:2", StreamChoice(per_rank=((0, Streams.OUT), (1, Streams.ERR)))),
        ("11:3,2:0", StreamChoice(per_rank=((2, Streams.NONE), (11, Streams.ALL)))),
    ],
    "tee": [("1", StreamChoice(Streams.OUT)), ("10:2", StreamChoice(per_rank=((10, Streams.ERR),)))],
    "console": [
        ("all", ConsoleChoice("all")),
        ("auto", ConsoleChoice("auto")),
        ("0,8-10", ConsoleChoice("ranks", (0, 8, 9, 10))),
    ],
    "local_ranks_filter": [("0", (0,)), ("0, 2", (0, 2)), ("0-3,17", (0, 1, 2, 3, 17))],
    "private_logs": [("1", True), ("no", False)],
    "secret_names": [("DB_*", ("DB_*",)), ("db_*,*url", ("db_*", "*url"))],
    "duplicate_stdout_filters": [("loss", ("loss",)), ("loss,step", ("loss", "step")), ("a,,b,c", ("a,b", "c"))],
    "duplicate_stderr_filters": [("Error", ("Error",))],
    "log_line_prefix_template": [("[${rank}]", "[${rank}]")],
    "logs_specs": [("mine", "mine")],
    "event_log_handler": [("console", "console")],
    "profile": [("debug", "debug"), ("./mine.toml", "./mine.toml")],
    "plain": [("1", True), ("0", False)],
    "verbose": [("1", True)],
}

# What the line about a bad value names of what would be right.
NODES = "1 MIN:MAX"
PROCESSES = "1 auto cpu gpu xpu"
STREAMS = "0 1 stdout 2 stderr 3 LOCAL_RANK:STREAMS 0:1,11:3"
RANKS = "0,3 0-3,17"
PORTS = "LOW-HIGH 1 65535"
PAIRS = "KEY=VALUE"
VARIABLES = "NAME=VALUE"
SIGNALS = "SIGTERM,SIGUSR1"
NOTICES = "USR1,USR2 none"
REASONS = "never on-notice on-timeout on-preempt on-failure"
BAD = [
    *[("nnodes", text, NODES) for text in ("0", "3:2", "abc", "-1", "1:2:3", "1:", ":", "0:2", "1.5", "\u0661")],
    *[("nproc_per_node", text, PROCESSES) for text in ("0", "-1", "1.5", "two words", "\u00b2")],
    *[("node_rank", text, "0") for text in ("-1", "x", "1.0")],
    ("nodes", "0", "1"),
    *[("jobid", text, "12 12_3") for text in ("x", "12_x", "12.0", "-1")],
    *[("master_port", text, "1 65535") for text in ("0", "65536", "-1", "http")],
    *[("rdzv_conf", text, PAIRS) for text in ("a", "a=", "=1", "a=1,b")],
    *[
        ("default_env", text, VARIABLES)
        for text in ("A", "=1", "A=1,", "1A=2", "A B=1", "A-B=1", "A=1, B=2", "\u00c9=1")
    ],
    *[("standalone", text, "1 or 0") for text in ("2", "maybe")],
    *[("join_timeout", text, "seconds") for text in ("x", "1m")],
    *[("hang_timeout", text, "seconds none") for text in ("x", "off")],
    ("hang_timeout", "-1", "seconds none"),
    *[("join_timeout", text, "seconds") for text in ("0", "-1", "nan", "inf")],
    *[("node_timeout", text, "seconds") for text in ("0", "-1", "nan", "inf")],
    *[("spares", text, "0") for text in ("-1", "x", "1.5")],
    *[("port_range", text, PORTS) for text in ("0-10", "10-9", "1-65536", "-", "5-", "a-b", "1-2-3")],
    *[("start_method", text, "spawn fork forkserver fork?") for text in ("forked",)],
    ("start_method", "thread", "spawn fork forkserver"),
    *[("open_files", text, "auto keep 256") for text in ("255", "-1", "all", "1e5")],
    ("slurm_env", "ranks", "rank keep hide rank?"),
    *[("omp_num_threads", text, "1") for text in ("0", "all")],
    *[("max_restarts", text, "0") for text in ("-1", "many")],
    *[("monitor_interval", text, "seconds") for text in ("0", "-0.1")],
    *[("signals_to_handle", text, SIGNALS) for text in ("TERM", "SIGTERM,", "15", "SIGTERM SIGINT")],
    *[
        ("notice_signals", text, NOTICES)
        for text in ("10", "USR3", "USR1,", "USR1 USR2", "none,USR1", "NONE", "KILL", "USR1,SIGSTOP", "chld")
    ],
    *[("shutdown_timeout", text, "0") for text in ("-1", "0.5")],
    *[("requeue", text, REASONS) for text in ("on-notice,", "never,on-notice", "On-Notice", "always", "notice")],
    *[("max_requeues", text, "0") for text in ("-1", "many")],
    *[("requeue_patience", text, "1") for text in ("0", "1.5")],
    *[("redirects", text, STREAMS) for text in ("4", "x", "0:4", "0:1,1", "a:1", "0:1,", ":1", "-1:1")],
    *[("local_ranks_filter", text, RANKS) for text in ("a", "0,", "3-1", "0,3-1", "-1", "1-", "0-99999999999")],
    *[("console", text, f"all auto {RANKS}") for text in ("none", "1-", "2-1")],
]


def read(name: str, text: str) -> Any:
    return getattr(resolve({}, {f"HPC_LAUNCH_{name.upper()}": text}), name)


def refused(flags: Mapping[str, str | bool], environ: Mapping[str, str] | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        resolve(flags, environ or {})
    return caught.value


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Ask torch about its options, in another interpreter: this one stays free of torch."""
    import sys  # noqa: PLC0415 - the fixture `python` lives for one test

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK_TORCHRUN],
        cwd=tmp_path_factory.mktemp("torchrun"),
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [(name, text, expected) for name, cases in GOOD.items() for text, expected in cases],
)
def test_reads(name: str, text: str, expected: Any) -> None:
    """Each option's text becomes its value."""
    assert expected == read(name, text)


def test_every_option_is_read_in_these_tests() -> None:
    """No option is without an example."""
    assert set(specs()) == set(GOOD)


@pytest.mark.parametrize(("name", "text", "expected"), BAD)
def test_a_bad_value_is_refused_from_every_source(name: str, text: str, expected: str) -> None:
    """The message says where the value came from, what it was, and what is expected instead."""
    spec = specs()[name]
    sources: list[tuple[str, Mapping[str, str | bool], Mapping[str, str]]] = [
        (spec.flag, {name: text}, {}),
        (f"HPC_LAUNCH_{name.upper()}", {}, {f"HPC_LAUNCH_{name.upper()}": text}),
    ]
    if spec.torchrun_variable:
        sources.append((f"PET_{name.upper()}", {}, {f"PET_{name.upper()}": text}))
    for source, flags, environ in sources:
        error = refused(flags, environ)
        told = str(error).removeprefix(f"{source}: '{text}'")
        assert (told != str(error), mentions(told, expected)) == (True, True), str(error)
        assert (spec.flag, 2) == (error.option, error.exit_status)


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        (
            {"max_restarts": "1"},
            {"HPC_LAUNCH_MAX_RESTARTS": "2", "PET_MAX_RESTARTS": "3"},
            (1, Origin.FLAG),
        ),
        ({}, {"HPC_LAUNCH_MAX_RESTARTS": "2", "PET_MAX_RESTARTS": "3"}, (2, Origin.ENVIRONMENT)),
        ({}, {"HPC_LAUNCH_MAX_RESTARTS": "", "PET_MAX_RESTARTS": "3"}, (3, Origin.TORCHRUN_ENVIRONMENT)),
        ({}, {"PET_MAX_RESTARTS": ""}, (0, Origin.DEFAULT)),
        ({"max_restarts": "0"}, {}, (0, Origin.FLAG)),
    ],
    ids=["flag", "HPC_LAUNCH", "PET", "default", "a default that was asked for"],
)
def test_the_strongest_voice_wins(
    flags: Mapping[str, str], environ: Mapping[str, str], expected: tuple[int, Origin]
) -> None:
    """Flag > HPC_LAUNCH_* > PET_* > default; an empty variable says nothing."""
    settings = resolve(flags, environ)

    assert expected == (settings.max_restarts, settings.origin("max_restarts"))
    assert (expected[1] is not Origin.DEFAULT) == settings.given("max_restarts")


def test_a_weaker_voice_is_not_even_read() -> None:
    """A bad value of a variable is no error where a flag overrides it."""
    assert resolve({"max_restarts": "1"}, {"PET_MAX_RESTARTS": "x"}).max_restarts == 1


def test_a_variable_can_be_taken_back_by_a_stronger_one() -> None:
    """A switch that torchrun's variable turns on is turned off by ours."""
    assert not resolve({}, {"PET_STANDALONE": "1", "HPC_LAUNCH_STANDALONE": "0"}).standalone


def test_nothing_said_leaves_the_defaults() -> None:
    """Without flags and variables the settings are the defaults of the table."""
    assert Settings() == resolve({}, {"PATH": "/usr/bin", "RANK": "3"})


@pytest.mark.parametrize("default", [True, False])
def test_the_drop_in_has_its_own_default_of_use_env(*, default: bool) -> None:
    """The default of --use-env is the command's, and what is said overrides it."""
    assert default is resolve({}, {}, use_env=default).use_env
    assert resolve({"use_env": True}, {}, use_env=default).use_env
    assert not resolve({}, {"HPC_LAUNCH_USE_ENV": "0"}, use_env=default).use_env


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"hosts": "a", "hostfile": "b"}, "--hosts --hostfile"),
        ({"no_python": True, "module": True}, "--no-python --module"),
        ({"no_python": True, "use_env": False}, "--no-python --use-env"),
        ({"nnodes": "2", "node_rank": "2"}, "--node-rank 2 --nnodes 2 0 1"),
        ({"nnodes": "1:4", "node_rank": "4"}, "--node-rank 4 --nnodes 1:4 0 3"),
        ({"standalone": True, "nnodes": "2"}, "--standalone --nnodes"),
    ],
)
def test_contradictions_are_refused(flags: Mapping[str, str | bool], words: str) -> None:
    """Options that cannot both be meant are refused, in words that name them."""
    assert mentions(refused(flags), words)


@pytest.mark.parametrize(
    "flags",
    [
        {"no_python": True},
        {"no_python": True, "run_path": True, "use_env": False},
        {"nnodes": "2", "node_rank": "1"},
        {"standalone": True, "nnodes": "1"},
    ],
)
def test_what_goes_together_is_accepted(flags: Mapping[str, str | bool]) -> None:
    """The neighbours of the contradictions are none."""
    assert set(flags) == set(resolve(flags, {}).origins)


@pytest.mark.parametrize(
    ("console", "world_size", "expected"),
    [
        (ConsoleChoice("auto"), 16, [0, 1, 15]),
        (ConsoleChoice("auto"), 17, [0]),
        (ConsoleChoice("all"), 10_000, [0, 1, 15]),
        (ConsoleChoice("ranks", (1, 99)), 16, [1]),
    ],
)
def test_the_console_shows(console: ConsoleChoice, world_size: int, expected: list[int]) -> None:
    """`auto` shows all ranks while a person can read them, then rank 0."""
    assert expected == [rank for rank in (0, 1, 15) if console.shows(rank, world_size)]


def test_streams_that_are_named_for_some_ranks_only() -> None:
    """Ranks that the pairs do not name have none of their streams chosen."""
    choice = read("tee", "0:1,11:3")

    assert [choice.of(rank) for rank in (0, 1, 11)] == [Streams.OUT, Streams.NONE, Streams.ALL]


@pytest.mark.parametrize(("bounds", "expected"), [(NodeRange(2, 2), "2"), (NodeRange(1, 4), "1:4")])
def test_a_node_range_is_written_as_it_is_read(bounds: NodeRange, expected: str) -> None:
    """The text of a range is what --nnodes takes."""
    assert expected == str(bounds)
    assert bounds == read("nnodes", expected)


@pytest.mark.parametrize("name", sorted(GOOD))
@hypothesis_settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=12) | st.text(alphabet="0123456789:-,= \u0663\u00b2x", max_size=8))
def test_any_text_is_read_or_refused_in_one_way(name: str, text: str) -> None:
    """No text makes a reader fail in another way than a UsageError that names the option."""
    try:
        resolve({name: text}, {})
    except UsageError as error:
        refusal = error
    else:
        return
    assert str(refusal).startswith(f"{specs()[name].flag}: '")


def flags_of_run() -> dict[str, click.Option]:
    return {
        flag: parameter
        for parameter in run.params
        if isinstance(parameter, click.Option)
        for flag in [*parameter.opts, *parameter.secondary_opts]
    }


def test_every_option_of_torchrun_is_an_option_of_run(torchrun: Mapping[str, Mapping[str, Any]]) -> None:
    """Each spelling of each option of torchrun and torch.distributed.launch is accepted, under the same name."""
    normal: Callable[[str], str] = run.context_settings["token_normalize_func"]
    ours = flags_of_run()
    expected = {(name, flag) for name, option in torchrun.items() for flag in option["flags"]}
    accepted = {(name, flag) for name, flag in expected if normal(flag) in ours and ours[normal(flag)].name == name}

    assert expected == accepted


def common(torchrun: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the settings that this release of torch has too (click alone knows --print-completion)."""
    return set(torchrun) & set(specs())


def test_flags_are_flags_and_values_are_values(torchrun: Mapping[str, Mapping[str, Any]]) -> None:
    """What torchrun reads without a value takes none here either."""
    assert {name: torchrun[name]["flag"] for name in common(torchrun)} == {
        name: specs()[name].is_flag for name in common(torchrun)
    }


def test_the_variables_of_torchrun_are_honoured_where_torchrun_has_them(
    torchrun: Mapping[str, Mapping[str, Any]],
) -> None:
    """PET_* variables are read for those options for which torchrun reads them."""
    assert {name: torchrun[name]["variable"] for name in common(torchrun)} == {
        name: specs()[name].torchrun_variable for name in common(torchrun)
    }


def test_choices_and_defaults_are_those_of_torchrun(torchrun: Mapping[str, Mapping[str, Any]]) -> None:
    """Options that are not derived have torchrun's defaults, and its choices."""
    expected = {name: torchrun[name]["default"] or None for name in common(torchrun) - DERIVED}
    if expected["master_port"] == 29500:  # of older releases, where other rendezvous than static ignored it
        expected["master_port"] = None

    assert expected == {name: as_torchrun_has_it(getattr(Settings(), name)) for name in expected}
    assert {name: list(specs()[name].choices) for name in common(torchrun) if specs()[name].choices} == {
        "start_method": ["spawn", "fork", "forkserver"]
    }


def as_torchrun_has_it(value: Any) -> Any:
    return (",".join(value) if isinstance(value, tuple) else value) or None
