"""The architecture: who imports whom, what stays unimported, and that the environment is never changed."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hpc_launch

PACKAGE = Path(hpc_launch.__file__).parent

# What each part of the package may import of the others. The first of two parts stands above the second.
FOUNDATIONS = {
    "codec",
    "hostlist",
    "redaction",
    "file_ownership",
    "ranges",
    "settings",
    "errors",
    "text",
    "world",
    "secret_variables",
    "console",
    "backoff",
    "imports",
    "slow_storage",
    "held_signals",
    "torch_release",
    "working_directory",
    "home",
    "version",
}
MAY_IMPORT = {
    "entry": {"cli", "held_signals"},
    "cli": {"launch", "submission", "check", "inspection", "records", "plan", "slurm", "workers", *FOUNDATIONS},
    "submitit": {"api"},
    "api": {"inspection", "submission", "plan", "slurm", "node", "records", *FOUNDATIONS},
    "launch": {"plan", "slurm", "node", "records", "workers", *FOUNDATIONS},
    "submission": {"plan", "slurm", "node", "records", *FOUNDATIONS},
    "check": {"probes", "plan", "slurm", "node", *FOUNDATIONS},
    "inspection": {"probes", "plan", "slurm", "node", "records", *FOUNDATIONS},
    "probes": {"codec", "hostlist", "errors"},
    "agent": {"rendezvous", "workers", "torch_private", "plan", "slurm", "node", "records", *FOUNDATIONS},
    "rendezvous": {"plan", "slurm", "node", "records", *FOUNDATIONS},
    "workers": {"rendezvous", "torch_private", "plan", "node", "records", *FOUNDATIONS},
    "plan": {"slurm", "node", "records", *FOUNDATIONS},
    "slurm": {"hostlist", "ranges", "errors"},
    "node": {"codec", "records", "ranges", "errors"},
    "records": {"codec", "hostlist", "file_ownership", "ranges", "errors", "text"},
    "runtime": {"codec", "records", "errors"},
    "world": {"settings"},
    "settings": {"file_ownership", "home", "ranges", "errors"},
    "hostlist": {"errors"},
    "codec": set[str](),
    "errors": set[str](),
    "redaction": set[str](),
    "file_ownership": set[str](),
    "text": set[str](),
    "ranges": set[str](),
    "torch_private": set[str](),
    "secret_variables": set[str](),
    "console": {"text"},
    "backoff": set[str](),
    "imports": set[str](),
    "held_signals": set[str](),
    "torch_release": {"errors"},
    "working_directory": {"errors"},
    "home": set[str](),
    "slow_storage": {"console"},
    "version": set[str](),
}

# What the rule does not allow, with the reason why it is right there: (module, imported part).
EXCEPTIONS = {
    (
        "launch.launcher",
        "agent",
    ): "running is what launch is for; inside of functions, so that errors and explanations come without torch",
    ("__init__", "api"): "for type checkers; what a notebook uses is imported when it is used",
    ("__init__", "submitit"): "as above",
    ("__init__", "runtime"): "as above",
    ("__init__", "errors"): "as above",
    ("launch.__main__", "cli"): "an entry point, as `python -m hpc_launch` is: it only calls cli",
}

# What takes long to import, or starts threads, and must wait until something is run.
HEAVY = {"torch", "numpy", "submitit", "cloudpickle", "psutil"}

# Where os.environ is changed nevertheless: (module, function, method), with the reason.
ENVIRONMENT_CHANGES = {
    ("agent.foreign_backends", "make_handler", "setdefault"): "torch's rendezvous reads it, in this process only",
    ("workers.factory", "_changed", "update"): "while modules are imported, and put back then",
    ("workers.factory", "_changed", "[]"): "as above",
    (
        "api.debug_backend",
        "_alone",
        "[]",
    ): "a function that is called in process finds what a worker has, and no longer",
    ("api.debug_backend", "_alone", "pop"): "as above",
    ("api.function_worker", "main", "update"): "in the process of a worker, for submitit's JobEnvironment",
    ("check.torch_checks", "_dress", "setdefault"): "in a process that has just been forked to be one rank",
    ("check.torch_checks", "_dress", "[]"): "as above",
    ("workers.forked_child", "_replace_environment", "[]"): "a worker gets the environment that it was given",
}

# Who reads /proc, and what of it.
PROC = {
    "node.processes": "processes, whichever",
    "node.mounts": "what is mounted",
    "node.device_locations": "which device a device file is",
    "check.node_facts": "the version of a driver",
    "file_ownership.parents": "a descriptor of its own",
    "file_ownership.settings_trust": "its own user namespace",
    "slow_storage": "whether a thread of its own is gone",
    "plan.launch_context": "its own cgroup, which `slurm.environment` reads",
}

# Who calls the C library, or another, by ctypes, and for what.
CTYPES = {
    "node.processes": "prctl(2), tgkill(2) and signalfd(2)",
    "node.file_changes": "inotify(7)",
    "node.cuda_driver": "what the driver of CUDA says of itself",
    "torch_private": "torch's own log level",
}

LOOK = """
import json, sys
from hpc_launch.cli import main
try:
    main({arguments!r})
except SystemExit as ended:
    status = ended.code
sys.stdout.flush()
print(json.dumps([status, sorted(name for name in sys.modules if "." not in name)]))
"""


@dataclass(frozen=True)
class Import:
    """An import statement of the package."""

    module: str
    target: str
    lazy: bool


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def part_of(module: str) -> str:
    """Name the part that a module belongs to."""
    return {"__init__": "version", "__main__": "entry"}.get(module, module.split(".", maxsplit=1)[0])


@functools.cache
def imports() -> tuple[Import, ...]:
    """Find all import statements; those inside of functions, and for type checkers only, are lazy."""
    return tuple(_imports())


def _imports() -> Iterator[Import]:
    for module, tree in modules().items():
        late: list[ast.AST] = [
            node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        late += [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        inside = {id(node) for outer in late for node in ast.walk(outer)}
        for node in ast.walk(tree):
            lazy = id(node) in inside
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, alias.name, lazy)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: imports are absolute"
                if node.module == "hpc_launch":
                    for alias in node.names:
                        yield Import(module, f"hpc_launch.{alias.name}", lazy)
                else:
                    for alias in node.names:
                        whole = f"{node.module}.{alias.name}"
                        is_module = whole.removeprefix("hpc_launch.") in modules()
                        yield Import(module, whole if is_module else node.module or "", lazy)


def part_imported(target: str) -> str | None:
    """Name the part of the package that is imported; None for what is not of the package."""
    top, _, rest = target.partition(".")
    if top != "hpc_launch":
        return None
    name = rest.split(".")[0]
    return "version" if name in ("", "__version__") else name


def test_every_part_has_its_place() -> None:
    """No part of the package is outside of the rule."""
    assert set(MAY_IMPORT) == {part_of(module) for module in modules()}


def test_every_name_is_there_once() -> None:
    """A search for a file or a class finds one."""
    files = [module.rpartition(".")[2] for module in modules() if not module.endswith("__")]
    classes = [node.name for tree in modules().values() for node in tree.body if isinstance(node, ast.ClassDef)]
    public = [name for name in classes if not name.startswith("_")]

    assert {name for name in files if files.count(name) > 1} == set()
    assert {name for name in public if public.count(name) > 1} == set()


def test_the_rule_has_no_circle() -> None:
    """The parts can be put in an order in which each imports only those after it."""
    left = {part: set(below) for part, below in MAY_IMPORT.items()}
    while left:
        lowest = {part for part, below in left.items() if not below & set(left)}
        assert lowest, f"these import each other: {sorted(left)}"
        left = {part: below for part, below in left.items() if part not in lowest}


def test_imports_go_one_way() -> None:
    """Every import is allowed by the rule, or is one of the exceptions; and each exception is needed."""
    crossing = {
        (found.module, part)
        for found in imports()
        if (part := part_imported(found.target)) is not None
        and part != part_of(found.module)
        and part not in MAY_IMPORT[part_of(found.module)]
    }
    assert set(EXCEPTIONS) == crossing


def strings(tree: ast.Module) -> Iterator[str]:
    """Find the strings of a module, those in f-strings among them, without its docstrings."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            yield node.value


def test_processes_are_looked_at_in_one_place() -> None:
    """What is to be known of a process is asked of `node.processes`; so is what only the C library can do to one."""
    proc = {name for name, tree in modules().items() if any(re.search(r"/proc\b", text) for text in strings(tree))}

    assert proc == set(PROC)
    assert {found.module for found in imports() if found.target == "ctypes"} == set(CTYPES)


def test_pages_are_made_in_one_place() -> None:
    """Only templates have tags in them, and one module fills them in and escapes."""
    makers = {found.module for found in imports() if found.target.split(".")[0] in {"html", "jinja2", "markupsafe"}}
    tags = {name for name, tree in modules().items() if any(re.search(r"</\w+>|/>", text) for text in strings(tree))}

    assert (makers, tags) == ({"inspection.markup"}, set())


# The rooms whose modules may import torch when they are imported themselves.
USERS_OF_TORCH = {"agent", "rendezvous", "workers", "torch_private"}

# The modules of torch that its documentation has, as far as they are used.
DOCUMENTED = {
    "torch",
    "torch.distributed",
    "torch.distributed.elastic.agent.server.api",
    "torch.distributed.elastic.events",
    "torch.distributed.elastic.multiprocessing",
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.elastic.rendezvous",
    "torch.distributed.elastic.rendezvous.api",
    "torch.numa.binding",
}


def imported_modules(found: Import) -> set[str]:
    """Name the modules of the package that an import may load."""
    top, _, rest = found.target.partition(".")
    return {rest} & set(modules()) if top == "hpc_launch" else set()


def test_no_two_modules_import_each_other() -> None:
    """Late imports count as well: two modules that need each other are one module, or one of them knows too much."""
    known = {(found.module, target) for found in imports() for target in imported_modules(found)}

    assert {pair for pair in known if pair[0] < pair[1] and pair[::-1] in known} == set()


def need_torch() -> set[str]:
    """Find the modules that cannot be imported without torch: themselves, or by what they import at once."""
    at_once = [found for found in imports() if not found.lazy]
    needing = {found.module for found in at_once if found.target.split(".")[0] == "torch"}
    while more := {found.module for found in at_once if imported_modules(found) & needing} - needing:
        needing |= more
    return needing


def test_what_needs_torch_is_imported_late() -> None:
    """Outside of the rooms that use torch, nothing needs it to be imported."""
    assert {module for module in need_torch() if part_of(module) not in USERS_OF_TORCH} == set()


def test_who_imports_torch() -> None:
    """torch is used in some rooms of the launcher, and in what its workers import."""
    parts = {part_of(found.module) for found in imports() if found.target.split(".")[0] == "torch"}
    assert USERS_OF_TORCH | {"runtime", "check"} == parts


def of_torch(tree: ast.Module) -> Iterator[tuple[str, list[ast.alias]]]:
    """Find what a module imports of torch: the module, and the names that are taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, [alias]) for alias in node.names if alias.name.split(".")[0] == "torch")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            yield node.module or "", node.names


def private_uses_of_torch(tree: ast.Module) -> Iterator[str]:
    """Find undocumented modules of torch that are imported, and private names of what is imported of it."""
    names = set()
    for module, aliases in of_torch(tree):
        if module not in DOCUMENTED:
            yield module
        for alias in aliases:
            names.add(alias.asname or alias.name.split(".")[0])
            if any(part.startswith("_") for part in alias.name.split(".")):
                yield alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found = node.value
            while isinstance(found, ast.Attribute):
                found = found.value
            if isinstance(found, ast.Name) and found.id in names:
                yield ast.unparse(node)


def test_one_module_has_all_private_uses_of_torch() -> None:
    """What torch does not promise is used in `torch_private`, and nowhere else."""
    found = {(module, use) for module, tree in modules().items() for use in private_uses_of_torch(tree)}

    assert {module for module, _ in found} == {"torch_private"}, sorted(found)


@pytest.mark.parametrize(
    ("code", "use"),
    [
        ("import torch\ntorch._C.abort()", "torch._C"),
        ("from torch.numa import binding as b\nb._get_cpus()", "b._get_cpus"),
        ("from torch.distributed import _functional", "_functional"),
        ("import torch._dynamo", "torch._dynamo"),
        ("def later():\n    from torch.distributed.elastic.utils import api", "torch.distributed.elastic.utils"),
    ],
)
def test_private_uses_of_torch_would_be_found(code: str, use: str) -> None:
    """The search above sees what it looks for."""
    assert use in set(private_uses_of_torch(ast.parse(code)))


def test_only_cli_knows_click() -> None:
    """click never leaves the command line."""
    assert {"cli"} == {part_of(found.module) for found in imports() if found.target.split(".")[0] == "click"}


def is_environ(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("environ", "environb") and ast.unparse(node.value) == "os"


def is_change(method: ast.Attribute) -> bool:
    changing = {"update", "setdefault", "pop", "popitem", "clear", "__setitem__", "__delitem__"}
    return method.attr in {"putenv", "unsetenv"} or (method.attr in changing and is_environ(method.value))


def environment_changes(module: str, tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Find what changes os.environ: assignments, deletions and calls of its methods that do."""
    for function in [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Module))]:
        name = getattr(function, "name", "")
        for node in ast.walk(function):
            if isinstance(node, ast.Subscript) and is_environ(node.value) and not isinstance(node.ctx, ast.Load):
                yield module, name, "[]"
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_change(node.func):
                yield module, name, node.func.attr


def test_the_environment_is_read_and_never_changed() -> None:
    """Children get copies: what one part of a program writes there, another reads without knowing."""
    found = {change for module, tree in modules().items() for change in environment_changes(module, tree)}

    assert set(ENVIRONMENT_CHANGES) == {change for change in found if change[1]}
    assert {(module, method) for module, _, method in found} == {
        (module, method) for module, _, method in ENVIRONMENT_CHANGES
    }


@pytest.mark.parametrize(
    "code",
    ["os.environ['A'] = '1'", "del os.environ['A']", "os.environ.update(A='1')", "os.putenv('A', '1')"],
)
def test_changes_of_the_environment_would_be_found(code: str) -> None:
    """The search above sees what it looks for."""
    assert len(list(environment_changes("module", ast.parse(f"import os\n{code}")))) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["env"],
        ["env", "--help"],
        ["env", "--json"],
        ["explain"],
        ["submit", "--help"],
        ["submit", "--dry-run", "-m", "some.module"],
        ["explain", "--nproc-per-node=2", "--max-restarts=1"],
        ["hosts", "a[1-2]"],
        ["template", "list"],
        ["template", "check", "--no-slurm", "cpu"],
        ["check", "--help"],
        ["status", "--help"],
        ["logs", "--help"],
        ["stacks", "--help"],
        ["report", "--help"],
        ["--print-completion", "bash"],
    ],
    ids=" ".join,
)
def test_what_only_answers_imports_nothing_heavy(python: str, arguments: list[str]) -> None:
    """Help, derivation and host lists answer at once, without torch."""
    done = subprocess.run([python, "-c", LOOK.format(arguments=arguments)], capture_output=True, text=True, check=True)
    status, names = json.loads(done.stdout.splitlines()[-1])

    assert (0, set()) == (status, HEAVY & set(names))


def test_a_command_does_not_import_the_others(python: str) -> None:
    """A start of workers, above all, does not wait for what looks at jobs and nodes."""
    words = "from hpc_launch.cli import main\ntry:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
    show = "import sys\nprint(*sorted(name for name in sys.modules if name.startswith('hpc_launch.')))"
    done = subprocess.run([python, "-c", words + show], capture_output=True, text=True, check=True)
    found = {name.split(".")[1] for name in done.stdout.splitlines()[-1].split()}

    assert "cli" in found
    assert not found & {"check", "inspection", "submission", "api"}


@pytest.mark.parametrize(
    ("arguments", "files", "expected"),
    [
        (["--help"], ["hpc-launch.toml", "pyproject.toml"], False),
        (["hosts", "a[1-2]"], ["hpc-launch.toml", "pyproject.toml"], False),
        (["env"], [], False),
        (["env"], ["pyproject.toml"], False),
        (["env"], ["hpc-launch.toml"], True),
    ],
)
def test_toml_is_read_by_those_who_need_it(
    python: str, tmp_path: Path, arguments: list[str], files: list[str], *, expected: bool
) -> None:
    """The parser of settings files is imported where there is one, for the commands that have settings."""
    for name in files:
        (tmp_path / name).write_text("# nothing of ours\n")
    done = subprocess.run(
        [python, "-c", LOOK.format(arguments=arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    status, names = json.loads(done.stdout.splitlines()[-1])

    assert (0, expected) == (status, bool({"tomllib", "tomli"} & set(names)))


@pytest.mark.parametrize(
    "module",
    [
        "hpc_launch",
        "hpc_launch.check.torch_checks",
        "hpc_launch.probes.probe",
        "hpc_launch.check.preflight",
        "hpc_launch.agent",
        "hpc_launch.console",
        "hpc_launch.slow_storage",
        "hpc_launch.agent.output_console",
        "hpc_launch.workers.worker_environment",
        "hpc_launch.agent.peers",
        "hpc_launch.rendezvous.round_checks",
        "hpc_launch.api.notebook_display",
        "hpc_launch.api.executor",
        "hpc_launch.api.job_view_reader",
        "hpc_launch.api.function_worker",
        "hpc_launch.launch.launcher",
        "hpc_launch.records.events",
        "hpc_launch.rendezvous.messages",
        "hpc_launch.rendezvous.transport.client",
        "hpc_launch.rendezvous.transport.server",
        "hpc_launch.records.history",
        "hpc_launch.records.failure_messages",
        "hpc_launch.inspection.job_search",
        "hpc_launch.inspection.stack_collection",
        "hpc_launch.inspection.log_reader",
        "hpc_launch.inspection.job_status",
        "hpc_launch.inspection.job_report",
        "hpc_launch.runtime",
        "hpc_launch.submission.submission_plan",
        "hpc_launch.submission.submitter",
        "hpc_launch.submission.code_snapshot",
        "hpc_launch.submission.job_watcher",
        "hpc_launch.workers.factory",
    ],
)
def test_what_is_pure_imports_nothing_heavy(python: str, module: str) -> None:
    """Importing the package, or a part that does not need torch, costs nothing that is not used."""
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)

    assert HEAVY & set(json.loads(done.stdout)) == set()


def test_the_transport_needs_the_standard_library_only(python: str) -> None:
    """It works before torch and click are imported, and where they cannot be."""
    module = "hpc_launch.rendezvous.transport"
    program = f"""
import sys
before = {{*sys.modules}}
import {module}.server, {module}.client
print(*{{name.split(".")[0] for name in {{*sys.modules}} - before}})
"""
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)

    assert {*done.stdout.split()} - {*sys.stdlib_module_names} == {"hpc_launch"}
