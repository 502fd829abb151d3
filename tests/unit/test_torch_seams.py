"""What hpc-launch uses of torch that torch does not promise: each use, and what it relies on.

A release of torch that changes one of them fails here, by name, before a run does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.run as torchrun
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but its types do not export it
from torch.distributed.elastic.agent.server import api, local_elastic_agent
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.events.api import Event, EventSource
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.api import RunProcsResult
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters, dynamic_rendezvous
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.utils.api import macros

from hpc_launch.agent import foreign_backends, torch_adapter
from hpc_launch.agent.agent import Agent
from hpc_launch.workers.command_workers import CommandWorkers, replace_local_rank


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
    ours = {name for name, value in vars(Agent).items() if name[:1] == "_" != name[1:2] and inspect.isfunction(value)}

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


def test_workers_are_a_context_of_torchs() -> None:
    """torch starts, polls and closes ours by these methods, and asks for these values."""
    ours = {name for name in vars(CommandWorkers) if hasattr(PContext, name) and not name.startswith("__")}

    assert ours >= {"_start", "_poll", "_close", "pids", "start"}
    assert parameters(PContext._close)[:2] == ["death_sig", "timeout"]
    assert {one.name for one in dataclasses.fields(RunProcsResult)} >= {
        "return_values",
        "failures",
        "stdouts",
        "stderrs",
    }
    assert parameters(ProcessFailure)[:4] == ["local_rank", "pid", "exitcode", "error_file"]


def test_the_macro_of_the_local_rank() -> None:
    """We fill it in as torch does."""
    assert replace_local_rank([f"--local-rank={macros.local_rank}"], 3) == ("--local-rank=3",)
    assert macros.local_rank == torch_adapter._LOCAL_RANK


def test_the_store_takes_a_listening_socket() -> None:
    """We bind it to one address, on a port that we choose."""
    assert "master_listen_fd" in str(TCPStore.__init__.__doc__)


def test_processes_are_counted_by_a_word() -> None:
    """`--nproc-per-node` takes torch's words for devices."""
    assert torchrun.determine_local_world_size("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        torchrun.determine_local_world_size("nonsense")


def test_an_event_can_be_made_without_torchs_questions() -> None:
    """It has a name and a source."""
    assert Event("RUNNING", EventSource.AGENT).name == "RUNNING"


def test_the_level_at_which_torchs_library_speaks() -> None:
    """An exported variable of libc10 says it."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))

    assert ctypes.c_int.in_dll(library, torch_adapter._CPP_LEVEL).value in range(-4, 5)


def test_a_backend_that_is_not_registered() -> None:
    """torch's registry says so by a KeyError behind its ValueError."""
    wanted = RendezvousParameters(backend="c01d", endpoint="", run_id="1", min_nodes=1, max_nodes=1)
    with pytest.raises(ValueError, match="c01d") as caught:
        get_rendezvous_handler(wanted)

    assert isinstance(caught.value.__cause__, KeyError)


def test_a_store_for_the_workers_of_each_attempt() -> None:
    """c10d's handler reads this variable."""
    source = inspect.getsource(dynamic_rendezvous)

    assert source.count(f'os.getenv("{foreign_backends._OWN_STORE}", "0")') == 2
