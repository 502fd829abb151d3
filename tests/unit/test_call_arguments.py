"""Arguments that a function does not take are refused before anything is submitted, with the nearest name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from submitit.helpers import DelayedSubmission, FunctionSequence

import hpc_launch
from hpc_launch.api.call_arguments import check_arguments
from hpc_launch.api.job_resources import Resources
from hpc_launch.errors import ScriptError, UsageError
from hpc_launch.submitit import ElasticTask
from tests.support import mentions


def train(data: str, learning_rate: float = 0.1, *, epochs: int = 1) -> tuple[str, float, int]:
    return data, learning_rate, epochs


def by_position(first: int, /, second: int = 0) -> int:
    return first + second


def named(name: str, nodes: int = 0) -> tuple[str, int]:
    return name, nodes


def any_names(**options: Any) -> dict[str, Any]:
    return options


class Trainer:
    """A class, an object that can be called, and one with methods."""

    def __init__(self, model: str = "") -> None:
        self.model = model

    def __call__(self, batch_size: int) -> int:
        return batch_size

    def evaluate(self, *, split: str = "") -> str:
        return split

    @classmethod
    def resume(cls, path: str) -> str:
        return path

    @staticmethod
    def export(target: str) -> str:
        return target


# The type checker knows better than to make a partial of what does not fit.
partial: Any = functools.partial


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that adds an argument of its own."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function("logged", *args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "words"),
    [
        (train, ("x",), {"lerning_rate": 1}, "train() 'lerning_rate' 'learning_rate'?"),
        (train, ("x",), {"epoch": 1}, "'epoch' 'epochs'?"),
        (train, ("x",), {"zzz": 1}, "'zzz' 'data' 'learning_rate' 'epochs'"),
        (train, (), {}, "train() 'data'"),
        (train, ("x", 1, 2), {}, "2 (data, learning_rate) 3"),
        (train, ("x",), {"data": "y"}, "train() 'data'"),
        (by_position, (), {"first": 1}, "by_position() 'first'"),
        (lambda: None, (1,), {}, "<lambda>() 0 1"),
        (Trainer, (), {"modl": 1}, "Trainer() 'modl' 'model'?"),
        (Trainer(), (1, 2), {}, "Trainer() 1 2"),
        (Trainer(), (), {"batchsize": 2}, "Trainer() 'batchsize' 'batch_size'?"),
        (Trainer().evaluate, (), {"spilt": ""}, "evaluate() 'spilt' 'split'?"),
        (Trainer.resume, (), {"pth": ""}, "resume() 'pth' 'path'?"),
        (Trainer.export, (), {}, "export() 'target'"),
        (partial(train, "x", epoch=1), (), {}, "train() 'epoch' 'epochs'?"),
        (functools.partial(functools.partial(train, "x"), 1), (2,), {}, "train() 2 3"),
        (FunctionSequence(), (1,), {}, "FunctionSequence() 0 1"),
        (pow, (2,), {}, "pow() 'exp'"),
    ],
)
def test_wrong_arguments_are_refused(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    """In one line, which names the function, the argument, and the parameter whose name is nearest."""
    with pytest.raises(UsageError) as refused:
        check_arguments(function, args, kwargs)

    assert mentions(refused.value, words)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (train, ("x",), {"epochs": 3}),
        (functools.partial(train, epochs=2), ("x",), {"epochs": 3}),
        (by_position, (1,), {"second": 2}),
        (any_names, (), {"lerning_rate": 1}),
        (logged(train), (), {"epochs": 1}),
        (print, (1, 2), {"sep": ""}),
        (int, ("3",), {}),
        (dict, (), {"x": 1}),
        (Trainer("x"), (3,), {}),
        (type("Made", (dict,), {}), (), {"x": 1}),
    ],
)
def test_what_can_be_called_is_not_refused(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Of a decorated function the decorator is what is called; builtins without a signature are left to themselves."""
    check_arguments(function, args, kwargs)

    function(*args, **kwargs)


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "words"),
    [
        (train, ("x",), {"lerning_rate": 1}, "train() 'lerning_rate' 'learning_rate'?"),
        (train, ("x",), {"nods": 2}, "train() 'nods' 'nodes'?"),
        (train, ("x",), {"foldr": "y"}, "train() 'foldr' 'folder'?"),
        (train, ("x",), {"clustr": "y"}, "train() 'clustr' 'cluster'?"),
        (train, ("x",), {"comment": "y"}, "train() 'comment' slurm_comment"),
        (train, ("x",), {"local_timeout_min": 5}, "train() 'local_timeout_min' time"),
        (train, ("x",), {"slurm_srun_args": []}, "'slurm_srun_args' launch={...}"),
        (named, (), {"name": "x"}, "named() 'name' hpc_launch.Executor(...).submit"),
        (DelayedSubmission(train, "x"), (), {}, "DelayedSubmission"),
        (train("x"), (), {}, "tuple"),
        (None, (), {}, "None"),
        ("train.py", (), {"nods": 2}, "nods= 'nodes'?"),
    ],
)
def test_submit_refuses_at_once(tmp_path: Path, target: Any, args: Any, kwargs: dict[str, Any], words: str) -> None:
    """Its own names count as near ones too; nothing is left of what was refused."""
    with pytest.raises(UsageError) as refused:
        hpc_launch.submit(target, *args, cluster="debug", folder=tmp_path / "logs", **kwargs)

    assert mentions(refused.value, words)
    assert not (tmp_path / "logs").exists()


def submit_in_batch(executor: hpc_launch.Executor) -> None:
    with executor.batch():
        executor.submit(train, "x")
        executor.submit(train, "x", epoch=1)


def test_each_job_of_an_array_is_looked_at(tmp_path: Path) -> None:
    """The refusal says which one, and no job is submitted, in `map_array`, `submit_array` and in a batch."""
    executor = hpc_launch.Executor(tmp_path / "logs", cluster="debug")
    with pytest.raises(UsageError) as mapped:
        executor.map_array(train, ["x", "y"], [1, 2], [3, 4])
    with pytest.raises(UsageError) as listed:
        executor.submit_array([functools.partial(train, "x"), lambda data: data])  # type: ignore[arg-type]
    with pytest.raises(UsageError) as batched:
        submit_in_batch(executor)
    with pytest.raises(UsageError) as resource:
        executor.submit(train, "x", nodes=2)

    assert mentions(mapped.value, "0 train() 2 3")
    assert mentions(listed.value, "1 <lambda>() 'data'")
    assert mentions(batched.value, "train() 'epoch' 'epochs'?")
    assert mentions(resource.value, "train() 'nodes' Executor(...)")
    assert not (tmp_path / "logs").exists()
    assert [job.result() for job in executor.submit_array([functools.partial(train, "x")])] == [("x", 0.1, 1)]


@pytest.mark.parametrize(
    ("target", "kwargs", "words"),
    [
        (train, {"lerning_rate": 1}, "train() 'lerning_rate' 'learning_rate'?"),
        (train, {"ranks_per_nod": 1}, "'ranks_per_nod' 'ranks_per_node'?"),
        (train, {"tasks_per_node": 1}, "'tasks_per_node' ranks_per_node"),
        (train, {"timeout_min": 1}, "'timeout_min' update_parameters"),
        (train, {"setup": ["true"]}, "'setup' update_parameters"),
        ("train.py", {"slurm_partition": "x"}, "slurm_partition= update_parameters"),
    ],
)
def test_a_task_of_another_executor_refuses_at_once(target: Any, kwargs: dict[str, Any], words: str) -> None:
    """Its keywords are the function's, but for the resources that matter within a job."""
    with pytest.raises(UsageError) as refused:
        ElasticTask(target, "x", **kwargs)

    assert mentions(refused.value, words)
    assert ElasticTask(named, name="x", ranks_per_node=2).resources == Resources(ranks_per_node=2)


def test_a_function_has_resources_as_arguments_by_an_executor(tmp_path: Path) -> None:
    """There all keywords are the function's."""
    executor = hpc_launch.Executor(tmp_path, cluster="debug")

    assert executor.submit(named, name="x", nodes=2).result() == ("x", 2)


@pytest.mark.parametrize(("script", "launch"), [("trian.py", {}), ("trian", {"no_python": True}), ("folder", {})])
def test_a_script_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, launch: dict[str, Any]
) -> None:
    """It is named before anything is submitted, as a program that is not on PATH is."""
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScriptError) as refused:
        hpc_launch.submit(script, cluster="debug", launch=launch)

    assert mentions(refused.value, f"'{script}'")
    assert not (tmp_path / "logs").exists()
