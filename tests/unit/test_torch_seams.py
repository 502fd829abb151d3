"""What hpc-launch uses of torch that torch does not promise: each use, and what it relies on.

A release of torch that changes one of them fails here, by name, before a run does. All of them are in `torch_private`:
tests/unit/test_imports.py sees to imports, and this module to the classes that are derived from torch's.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import importlib
import inspect
import os
import re
import signal
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]  # public, but not exported
from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, dynamic_rendezvous, registry
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo
from torch.distributed.elastic.utils.api import macros

from hpc_launch import torch_private
from hpc_launch.agent.agent import Agent
from hpc_launch.agent.output import JobLogs
from hpc_launch.rendezvous.handler import SlurmRendezvous
from hpc_launch.torch_private import ElasticAgent, UnknownBackendError, WorkerContext, replace_local_rank
from hpc_launch.workers.command_workers import CommandWorkers
from tests.unit.test_imports import USERS_OF_TORCH, modules, part_of


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of what a function takes, without `self`, `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [one.name for one in found if one.kind not in kinds and one.name != "self"]


# The methods of torch's agent that ours has in their place, with what torch's own loop calls them with.
OVERRIDDEN = {
    "_assign_worker_ranks": ["store", "group_rank", "group_world_size", "spec"],
    "_construct_event": ["state"],
    "_invoke_run": ["role"],
    "_monitor_workers": ["worker_group"],
    "_rendezvous": ["worker_group"],
    "_restart_workers": ["worker_group"],
    "_shutdown": ["death_sig"],
    "_start_workers": ["worker_group"],
    "_stop_workers": ["worker_group"],
}


def test_every_overridden_method_is_listed() -> None:
    """Of the methods with an underscore that torch's agent has, ours replaces these and no others."""
    ours = {
        name for name, value in vars(ElasticAgent).items() if name[:1] == "_" != name[1:2] and inspect.isfunction(value)
    }

    assert {name for name in ours if hasattr(LocalElasticAgent, name)} == OVERRIDDEN.keys()


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_torchs_loop_calls_them_as_ever(name: str) -> None:
    """torch may add parameters behind these; ours takes and ignores them."""
    method = getattr(LocalElasticAgent, name)

    assert parameters(method)[: len(OVERRIDDEN[name])] == OVERRIDDEN[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_initialize_workers", ["worker_group"]),
        ("_setup_local_watchdog", ["envs"]),
        ("_setup_healthcheck", []),
    ],
)
def test_methods_of_torchs_agent_that_ours_calls(name: str, expected: list[str]) -> None:
    """They are there, with these parameters."""
    assert parameters(getattr(LocalElasticAgent, name)) == expected


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("_worker_group", api),
        ("_remaining_restarts", api),
        ("_pcontext", local_elastic_agent),
        ("_worker_watchdog", local_elastic_agent),
        ("_health_check_server", local_elastic_agent),
    ],
)
def test_attributes_of_torchs_agent_that_ours_uses(name: str, module: Any) -> None:
    """torch's own code sets and reads them under these names."""
    assert re.search(rf"self\.{name}\b", inspect.getsource(module))


class Steps(ElasticAgent):
    """An agent that notes its steps; its one worker fails once, and then ends well."""

    def __init__(self) -> None:
        info = RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 1))
        handler = SimpleNamespace(
            get_run_id=lambda: "run",
            get_backend=lambda: "none",
            num_nodes_waiting=lambda: 0,
            next_rendezvous=lambda: info,
            use_agent_store=False,
        )
        spec = WorkerSpec("default", 1, cast("Any", handler), entrypoint="true", max_restarts=1, monitor_interval=0.001)
        super().__init__(spec, None, events=False)
        self.steps: list[str] = []
        self._states = iter([WorkerState.HEALTHY, WorkerState.FAILED, WorkerState.SUCCEEDED])

    def rendezvous(self, group: WorkerGroup) -> None:
        self.steps.append("rendezvous")
        super().rendezvous(group)

    def assign_worker_ranks(self, store: Any, group_rank: int, group_world_size: int, spec: WorkerSpec) -> list[Worker]:
        self.steps.append(f"ranks of {group_rank} of {group_world_size}")
        return super().assign_worker_ranks(store, group_rank, group_world_size, spec)

    def start_workers(self, group: WorkerGroup) -> WorkerContext:
        ranks = [(worker.global_rank, worker.world_size) for worker in group.workers]
        self.steps.append(f"start {ranks}, {self.remaining_restarts} left")
        return cast("WorkerContext", SimpleNamespace(pids=lambda: {0: 4711}))

    def monitor_workers(self, group: WorkerGroup) -> RunResult:
        assert [worker.id for worker in group.workers] == [4711]
        return RunResult(next(self._states), return_values={0: None})

    def restart_workers(self, group: WorkerGroup) -> None:
        self.steps.append("restart")
        super().restart_workers(group)

    def end_workers(self, signum: signal.Signals) -> None:
        self.steps.append(signum.name)


def test_torchs_loop_goes_through_the_steps() -> None:
    """Those that a subclass has of its own take the place of torch's, under their public names."""
    agent = Steps()
    result = agent.run()

    assert result.state is WorkerState.SUCCEEDED
    meet = ["rendezvous", "ranks of 0 of 1"]
    first, second = ([*meet, f"start [(0, 1)], {left} left"] for left in (1, 0))
    assert [*first, "restart", "SIGTERM", *second, "SIGTERM"] == agent.steps


def test_torchs_timers_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a variable asks for them they run while the workers do, and the workers are told where they are."""
    monkeypatch.setenv("TORCHELASTIC_ENABLE_FILE_TIMER", "1")
    monkeypatch.setenv("TORCHELASTIC_TIMER_FILE", str(tmp_path / "timers"))
    agent, environs = Steps(), {0: {"TORCHELASTIC_RUN_ID": "run"}}
    agent.watch(environs)
    watchdog: Any = vars(agent)["_worker_watchdog"]
    assert (tmp_path / "timers").is_fifo()
    agent.shutdown(signal.SIGINT)

    assert environs[0]["TORCHELASTIC_TIMER_FILE"] == str(tmp_path / "timers")
    assert (vars(agent)["_worker_watchdog"], watchdog._stop_signaled, agent.steps) == (None, True, ["SIGINT"])


def test_workers_are_a_context_of_torchs() -> None:
    """torch starts, polls and closes ours by these methods, and asks for these values."""
    ours = {name for name in vars(WorkerContext) if hasattr(PContext, name) and not name.startswith("__")}

    assert {name for name in ours if name[:1] == "_" and name != "_abc_impl"} == {"_start", "_poll", "_close"}
    assert parameters(PContext._close)[:2] == ["death_sig", "timeout"]
    assert {one.name for one in dataclasses.fields(RunProcsResult)} >= {
        "return_values",
        "failures",
        "stdouts",
        "stderrs",
    }
    assert parameters(ProcessFailure)[:4] == ["local_rank", "pid", "exitcode", "error_file"]


def derived_from_torch() -> Iterator[type]:
    """Find the classes of the launcher that are derived from classes of torch, but for those in `torch_private`."""
    for name in modules():
        if part_of(name) in USERS_OF_TORCH - {"torch_private"}:
            module = importlib.import_module(f"hpc_launch.{name}".removesuffix(".__init__"))
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == module.__name__ and any(torchs(kind)):
                    yield kind


def torchs(kind: type) -> Iterator[type]:
    """Name the classes of torch among the bases of a class."""
    return (base for base in kind.__mro__ if base.__module__.split(".")[0] == "torch")


def private_names_of_torch(kind: type) -> set[str]:
    """Name the private methods and attributes that a class has from classes of torch."""
    names = set()
    for base in torchs(kind):
        names |= set(vars(base)) | set(re.findall(r"\bself\.(\w+)", inspect.getsource(base)))
    return {name for name in names if re.match(r"_(?!_|abc_)", name)}


def own_private_names(kind: type) -> set[str]:
    """Name the private methods that a class defines, and the private attributes of itself that it touches."""
    names = {name for name, value in vars(kind).items() if callable(value)}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls", "super()"):
            names.add(node.attr)
    return names


def test_no_other_class_knows_what_is_private_to_torchs() -> None:
    """Our classes neither use, replace nor overwrite by chance what torch's have for themselves."""
    kinds = set(derived_from_torch())

    assert kinds >= {Agent, CommandWorkers, JobLogs, SlurmRendezvous}
    assert {kind: found for kind in kinds if (found := own_private_names(kind) & private_names_of_torch(kind))} == {}


def test_what_is_private_to_torchs_would_be_found() -> None:
    """The search above sees it in the classes that have it: methods, attributes and calls."""
    found = own_private_names(ElasticAgent) & private_names_of_torch(ElasticAgent)

    assert found > {*OVERRIDDEN, "_worker_group", "_remaining_restarts", "_pcontext", "_setup_healthcheck"}


def test_the_macro_of_the_local_rank() -> None:
    """We fill it in as torch does."""
    assert replace_local_rank([f"--local-rank={macros.local_rank}"], 3) == ("--local-rank=3",)
    assert macros.local_rank == torch_private.LOCAL_RANK


def test_the_store_takes_a_listening_socket() -> None:
    """We bind it to one address, on a port that we choose."""
    assert "master_listen_fd" in str(TCPStore.__init__.__doc__)


def test_processes_are_counted_by_a_word() -> None:
    """`--nproc-per-node` takes torch's words for devices."""
    assert torch_private.count_processes("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        torch_private.count_processes("nonsense")


def test_an_event_can_be_made_without_torchs_questions() -> None:
    """It has a name and a source."""
    assert Event("RUNNING", EventSource.AGENT).name == "RUNNING"


def test_the_level_at_which_torchs_library_speaks() -> None:
    """An exported variable of libc10 says it."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))

    assert ctypes.c_int.in_dll(library, torch_private._CPP_LEVEL).value in range(-4, 5)


def test_a_backend_that_is_not_registered() -> None:
    """torch's registry says so by a KeyError behind its ValueError."""
    wanted = RendezvousParameters(backend="c01d", endpoint="", run_id="1", min_nodes=1, max_nodes=1)
    with pytest.raises(UnknownBackendError, match="c01d") as caught:
        torch_private.rendezvous_handler(wanted)

    assert isinstance(caught.value.__cause__.__cause__ if caught.value.__cause__ else None, KeyError)


THEIRS = {"group": "torchrun.handlers", "name": "their"}


def test_a_backend_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch registers those that entry points name; where it does not, as in 2.4, they are found all the same."""
    made: object = SimpleNamespace()
    point = SimpleNamespace(load=lambda: lambda: lambda _: made)
    monkeypatch.setattr(metadata, "entry_points", lambda **asked: [point] * (asked == THEIRS))
    parameters = RendezvousParameters(backend="their", endpoint="", run_id="1", min_nodes=1, max_nodes=1)
    monkeypatch.setattr(registry, "_register_out_of_tree_handlers", None, raising=False)
    with pytest.raises(UnknownBackendError):
        torch_private.rendezvous_handler(parameters)
    monkeypatch.delattr(registry, "_register_out_of_tree_handlers")

    assert torch_private.rendezvous_handler(parameters) is made


def test_torch_registers_backends_of_installed_packages() -> None:
    """By a function of this name, from torch 2.5 on."""
    assert hasattr(registry, "_register_out_of_tree_handlers") or torch.__version__ < "2.5"


def test_a_store_for_the_workers_of_each_attempt() -> None:
    """c10d's handler reads this variable; in torch 2.4 workers never share the agents' store."""
    source = inspect.getsource(dynamic_rendezvous)
    if "use_agent_store" not in source:
        pytest.skip("torch 2.5 and newer")

    assert source.count(f'os.getenv("{torch_private.OWN_STORE}", "0")') == 2


def test_the_cpus_near_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows them by the device's NUMA node, among those that this process may use; it needs no numactl for it."""
    binding = pytest.importorskip("torch.numa.binding", reason="torch 2.9 and newer")
    index = "device_index" if hasattr(binding, "_get_numa_node_index_for_device_index") else "gpu_index"
    monkeypatch.setattr(binding, f"_get_numa_node_index_for_{index}", lambda **asked: asked[index])
    monkeypatch.setenv("PATH", "")
    of_node = binding._get_set_of_int_from_ranges_str(Path("/sys/devices/system/node/node0/cpulist").read_text())

    assert set(torch_private.numa_cpus("node", 0)) == of_node & os.sched_getaffinity(0)
