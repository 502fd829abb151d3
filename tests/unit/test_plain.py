"""`--plain`: what takes the place of hpc-launch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from hpc_launch.launch.plain import Program, ignored, program_of
from hpc_launch.plan import derivation
from hpc_launch.plan.launch_context import LaunchContext
from hpc_launch.settings import resolve, specs
from tests.unit.slurm_variables import task_of
from tests.unit.test_plan import FOUR_GPUS, TWO_MIGS, here
from tests.unit.test_settings import GOOD

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


# What the torchrun here has; releases older than the newest have not all of it.
KNOWN = {action.dest for action in get_args_parser()._actions}


def program(place: LaunchContext | None = None, *words: str, **options: str | bool) -> Program:
    """Return what runs a script here."""
    settings = resolve({"plain": True, **options}, {})
    found = place or here()
    found = LaunchContext(**{**vars(found), "interpreter": sys.executable})
    return program_of(derivation.make_plan(settings, found, ("train.py", *words)), found)


def parsed(made: Program) -> argparse.Namespace:
    """Return what torchrun understands."""
    assert made.words[:3] == TORCHRUN
    return get_args_parser().parse_args(made.words[3:])


def test_one_node() -> None:
    """torchrun finds a port by itself."""
    found = parsed(program(here(devices=FOUR_GPUS), "--lr", "1"))

    assert (found.standalone, found.nnodes, found.nproc_per_node) == (True, "1", "4")
    assert (found.training_script, found.training_script_args) == ("train.py", ["--lr", "1"])


def test_several_nodes() -> None:
    """Numbers, address and port are those of the step, the same for all nodes."""
    found = [parsed(program(here(task_of(2, node), devices=FOUR_GPUS))) for node in (0, 1)]

    assert [(one.nnodes, one.nproc_per_node, one.node_rank) for one in found] == [("2", "4", 0), ("2", "4", 1)]
    assert {(one.rdzv_backend, one.master_addr) for one in found} == {("static", "n0")}
    assert len({one.master_port for one in found}) == 1
    assert parsed(program(here(task_of(2, 0)), master_port="1234", master_addr="n0-ib")).master_port == 1234


def test_another_rendezvous() -> None:
    """One that was asked for is torchrun's business."""
    found = parsed(program(here(task_of(2, 1)), rdzv_backend="c10d", rdzv_endpoint="n0:29400", rdzv_id="seven"))

    assert (found.rdzv_backend, found.rdzv_endpoint, found.rdzv_id) == ("c10d", "n0:29400", "seven")


def test_a_task_for_each_rank() -> None:
    """The task becomes the script, with the environment of its rank."""
    made = program(here({**task_of(2, 1, 1, 2), "HPC_LAUNCH_SECRET": "x" * 32}), "--lr", "1")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")

    assert made.words == (sys.executable, "-u", "train.py", "--lr", "1")
    assert [made.environ[name] for name in names] == ["3", "4", "1", "2", "1", "n0"]
    assert made.environ["TORCHELASTIC_USE_AGENT_STORE"] == "False"
    assert made.environ["MASTER_PORT"] == program(here(task_of(2, 0, 0, 2))).environ["MASTER_PORT"]
    assert "HPC_LAUNCH_SECRET" not in made.environ


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"module": True}, (sys.executable, "-u", "-m", "train.py")),
        ({"no_python": True}, ("train.py",)),
        ({"use_env": False}, (sys.executable, "-u", "train.py", "--local-rank=1")),
    ],
)
def test_what_a_task_becomes(options: Mapping[str, Any], words: tuple[str, ...]) -> None:
    """As with an agent."""
    settings = resolve({k: v for k, v in options.items() if k != "use_env"}, {}, use_env=options.get("use_env", True))
    place = LaunchContext(**{**vars(here(task_of(2, 1, 1, 2))), "interpreter": sys.executable})

    assert program_of(derivation.make_plan(settings, place, ("train.py",)), place).words == words


# What depends on the place, or on another option.
PLACES = {"nnodes", "node_rank", "standalone", "nproc_per_node", "rdzv_backend", "rdzv_endpoint"}
VARIABLES = {"log_line_prefix_template": "TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE"}


@pytest.mark.parametrize(
    "name", [name for name, spec in specs().items() if spec.torchrun_variable and name not in PLACES]
)
def test_torchrun_understands_its_options(name: str) -> None:
    """Each one that is asked for is passed on as torchrun writes it."""
    if name not in KNOWN | VARIABLES.keys():
        pytest.skip("newer releases of torch")
    for text, _ in GOOD[name]:
        made = program(None, **{name: True if specs()[name].is_flag else text})

        assert hasattr(parsed(made), name) or made.environ[VARIABLES[name]] == text


@pytest.mark.skipif("virtual_local_rank" not in KNOWN, reason="newer releases of torch")
def test_devices_that_processes_see_alone() -> None:
    """torchrun has an option for them."""
    assert parsed(program(here(devices=TWO_MIGS))).virtual_local_rank


def test_secrets_of_the_run_are_not_passed_on() -> None:
    """Nor is there anybody who would ask for them."""
    made = program(here({"HPC_LAUNCH_SECRET": "x" * 32, "A": "b"}))

    assert made.environ["A"] == "b"
    assert "HPC_LAUNCH_SECRET" not in made.environ


def test_what_has_no_effect_is_named() -> None:
    """As far as somebody asked for it now; settings files say much that is for other runs."""
    asked = {"spares": "1", "requeue": "on-failure", "hang_timeout": "60", "max_restarts": "3", "hosts": "a,b"}
    variables = {"HPC_LAUNCH_CPU_BIND": "none", "PET_ROLE": "trainer"}

    assert set(ignored(resolve({"plain": True, **asked}, variables))) == {
        "--spares",
        "--requeue",
        "--hang-timeout",
        "--cpu-bind",
    }
