"""How workers start, and what the text of a script says about it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.node.devices import Devices
from hpc_launch.plan.launch_context import LaunchContext, interpreter_options
from hpc_launch.plan.script_scan import ScriptScan, scan
from hpc_launch.plan.start_method import StartMethod, choose_start_method
from hpc_launch.settings import resolve
from tests.support import mentions


def reader(files: dict[str, str]) -> Callable[[Path], str]:
    """Read files by their paths in /job."""

    def read(path: Path) -> str:
        name = str(path.relative_to("/job"))
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory", name)
        return files[name]

    return read


def looked_at(text: str, **others: str) -> ScriptScan:
    files = {"train.py": text, **{name.replace("_slash_", "/") + ".py": other for name, other in others.items()}}
    return scan([Path("/job/train.py")], Path("/job"), reader(files))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import os\nos.environ['OMP_NUM_THREADS'] = '4'\nimport torch", "OMP_NUM_THREADS"),
        ("from os import environ\nenviron['MKL_NUM_THREADS'] = '4'\nimport torch", "MKL_NUM_THREADS"),
        ("import os\nos.environ.setdefault('TORCH_LOGS', 'all')", "TORCH_LOGS"),
        ("import os\nos.environ.update({'KMP_AFFINITY': 'x'})", "KMP_AFFINITY"),
        ("import os\nos.environ.update(OPENBLAS_NUM_THREADS='1')", "OPENBLAS_NUM_THREADS"),
        ("import os\nos.environ |= {'PYTORCH_CUDA_ALLOC_CONF': 'x'}", "PYTORCH_CUDA_ALLOC_CONF"),
        ("import os\nos.putenv('TORCH_SHOW_CPP_STACKTRACES', '1')", "TORCH_SHOW_CPP_STACKTRACES"),
        ("import os\ndel os.environ['OMP_NUM_THREADS']", "OMP_NUM_THREADS"),
        ("import os\nos.environ.pop('OMP_NUM_THREADS', None)", "OMP_NUM_THREADS"),
        ("import os\nif True:\n    os.environ['OMP_NUM_THREADS'] = '4'\nimport torch", "OMP_NUM_THREADS"),
        ("import os\ndef early():\n    os.environ['OMP_NUM_THREADS'] = '4'\nearly()\nimport torch", "OMP_NUM_THREADS"),
        ("def late():\n    import torch\nimport os\nos.environ['OMP_NUM_THREADS'] = '4'", "OMP_NUM_THREADS"),
    ],
)
def test_variables_that_are_set_before_torch_is_imported(text: str, name: str) -> None:
    """Whatever is written to the environment, in any of Python's ways, and read when torch is imported, is found."""
    assert [name] == list(looked_at(text).sets)


@pytest.mark.parametrize(
    "text",
    [
        "import os\nimport torch\nos.environ['OMP_NUM_THREADS'] = '4'",
        "from torch import nn\nimport os\nos.environ['OMP_NUM_THREADS'] = '4'",
        "import torch.nn as nn\ndef f():\n    import os\n    os.environ['OMP_NUM_THREADS'] = '4'",
        "import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ.get('TORCH_LOGS'))\nimport torch",
        "import os\nos.environ['NCCL_DEBUG'] = os.environ['CUDA_VISIBLE_DEVICES'] = '0'\nimport torch",
        "import os\nos.environ['TORCH_NCCL_BLOCKING_WAIT'] = '1'\nos.environ['TORCH_HOME'] = '/x'\nimport torch",
        "settings = {}\nsettings['OMP_NUM_THREADS'] = 4\nsettings.update(OMP_NUM_THREADS=4)\nimport torch",
        "import os\nos.environ[name] = '4'",
        "this is no Python",
        "x = '\0'",
    ],
)
def test_what_does_not_matter_to_a_warm_start(text: str) -> None:
    """Set after torch was imported, only read, or read by nobody at import: nothing speaks against a warm start."""
    assert not looked_at(text).sets


def test_modules_beside_the_script_are_looked_at() -> None:
    """What a script's own modules set and import counts as if the script did it, up to the import of torch."""
    setting = "import os\nos.environ['OMP_NUM_THREADS'] = '4'"
    assert looked_at("import config\nimport torch", config=setting).sets == {"OMP_NUM_THREADS": "config.py:2"}
    assert not looked_at("import torch\nimport config", config=setting).sets
    assert not looked_at("import model\nimport config", model="import torch", config=setting).sets
    deep = looked_at(
        "from package.config import x", package_slash___init__="from . import other", package_slash_config=setting
    )
    assert deep.sets == {"OMP_NUM_THREADS": "config.py:2"}
    relative = looked_at(
        "import package.a", package_slash___init__="", package_slash_a="from . import b", package_slash_b=setting
    )
    assert relative.sets == {"OMP_NUM_THREADS": "b.py:2"}
    assert looked_at("import a", a="import b", b="import a, jax").imports == {"jax"}


def test_imports_are_found_wherever_they_are() -> None:
    """Also those of functions, of parts of packages, and after torch."""
    text = "import torch, numpy.linalg\ndef f():\n    from jax import numpy\n    import os.path as p"
    assert looked_at(text).imports == {"torch", "numpy", "jax", "os"}


def place(**changes: object) -> LaunchContext:
    files = {
        "train.py": "import torch",
        "sets.py": "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nimport torch",
        "jaxed.py": "import jax",
        "package/__main__.py": "import jax",
        "folder/__main__.py": "import jax",
    }
    made = LaunchContext(
        environ={},
        directory=Path("/job"),
        host="box",
        slurm=None,
        devices=Devices(),
        cpus=4,
        position=lambda _: None,
        read=reader(files),
        interpreter="/usr/bin/python3",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def start(script: str = "train.py", /, **options: str | bool) -> StartMethod:
    return choose_start_method(resolve(options, {}), place(), (script,))


def start_at(here: LaunchContext) -> StartMethod:
    return choose_start_method(resolve({}, {}), here, ("train.py",))


def test_workers_start_warm_by_default() -> None:
    """Nothing said and nothing against it: torch is imported once, and what was asked for beside it."""
    assert start() == StartMethod("warm", "default", ("torch",))
    assert start(preload="numpy,mine.models") == StartMethod("warm", "default", ("torch",), ("numpy", "mine.models"))
    assert start(start="warm") == StartMethod("warm", "flag", ("torch",))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"no_python": True}, "--no-python"),
        ({"start_method": "spawn"}, "--start-method spawn"),
        ({"nproc_per_node": "hpu"}, "--nproc-per-node hpu"),
    ],
)
def test_options_that_need_new_processes(options: dict[str, str | bool], reason: str) -> None:
    """They start workers by exec, for that reason; asking for a warm start as well is an error."""
    chosen = start(**options)
    assert (chosen.how, mentions(chosen.reason, reason)) == ("exec", True)
    with pytest.raises(UsageError) as refused:
        start(start="warm", **options)
    assert refused.value.option == "--start"
    assert mentions(refused.value, "--start warm", reason)


@pytest.mark.parametrize(
    "options",
    [{"run_path": True}, {"start_method": "fork"}, {"start_method": "forkserver"}, {"numa_binding": "node"}],
)
def test_torchruns_options_that_do_not(options: dict[str, str | bool]) -> None:
    """--run-path and --numa-binding are for forked workers as well, and forking is what two methods ask for."""
    assert start(**options).warm


def test_places_of_openmp_need_new_processes() -> None:
    """OpenMP reads which CPUs there are when torch is imported: workers with CPUs of their own come too late."""
    here = place(environ={"OMP_PLACES": "cores"})
    reason = choose_start_method(resolve({"numa_binding": "node"}, {}), here, ("train.py",)).reason
    assert mentions(reason, "OMP_PLACES")
    assert reason.endswith("(--numa-binding)")
    assert choose_start_method(resolve({}, {}), here, ("train.py",), bound=True).reason.endswith("(--cpu-bind)")
    assert start_at(here).warm


def test_another_python_needs_new_processes() -> None:
    """A worker's Python is to be the one that would be started: another program, or one without our options."""
    other = place(environ={"PYTHON_EXEC": "/opt/python"})
    assert start_at(other).how == "exec"
    assert mentions(start_at(other).reason, "PYTHON_EXEC /opt/python")
    assert start_at(place(environ={"PYTHON_EXEC": "/usr/bin/python3"})).warm
    options = place(interpreter_options=("-X", "dev"))
    assert mentions(start_at(options).reason, "-X dev")


def test_scripts_that_had_better_not_be_forked() -> None:
    """What a script does before it imports torch, and the modules that the user has listed, speak against it."""
    assert mentions(start("sets.py").reason, "sets.py:2 OMP_NUM_THREADS")
    assert start("sets.py", start="warm").warm
    assert start("jaxed.py").warm
    listed: dict[str, str | bool] = {"exec_for": "tensorflow,jax"}
    found = start("jaxed.py", **listed)
    assert (found.how, mentions(found.reason, "jax --exec-for")) == ("exec", True)
    assert start("folder", **listed) == found
    assert choose_start_method(resolve({**listed, "module": True}, {}), place(), ("package",)) == found


def test_exec_when_asked_for() -> None:
    """--start exec needs no reason."""
    assert start(start="exec") == StartMethod("exec", "flag")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["python", "/bin/hpc-launch", "-v", "train.py"], ()),
        (["python", "-m", "hpc_launch", "train.py"], ()),
        (["python", "-u", "-m", "hpc_launch"], ()),
        (["python", "-I", "/bin/hpc-launch"], ("-I",)),
        (["python", "-Xdev", "-W", "error", "-m", "hpc_launch"], ("-Xdev", "-W")),
        (["python"], ()),
    ],
)
def test_options_of_python_itself(words: list[str], options: tuple[str, ...]) -> None:
    """What stands between Python and the program is Python's; -u is what workers have anyway."""
    assert options == interpreter_options(words)
