"""A forked worker is the script: what `python -u script.py` does, a warm start does, to the letter."""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.both_ways import Starter, pythons, starter
from tests.conformance.probes import FACTS, SCRIPTS


@pytest.fixture(scope="module", params=sorted(pythons()))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Scripts in one folder, under each Python of this machine."""
    with starter(tmp_path_factory.mktemp("scripts"), pythons()[request.param]) as made:
        yield made


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return name


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("stdin", "pdb")])
def test_a_script_behaves_the_same(both: Starter, name: str) -> None:
    """Output, error text and exit status are those of a new process."""
    run = both.compare(write(both.folder, "script.py", SCRIPTS[name]))
    # A probe that says nothing and ends well compares nothing.
    assert run.out or run.err or run.status or name in QUIET, run


# Those that are to do nothing.
QUIET = {"returns", "exit 256", "exit None", "exit in a thread", "daemons that go on", "closed stdout"}


@pytest.mark.parametrize(
    "name", ["exception", "exit 3", "syntax error", "multiprocessing by spawn", "pickle", "SIGINT"]
)
def test_a_module_behaves_the_same(both: Starter, name: str) -> None:
    """The same for `-m`, whose tracebacks begin in runpy."""
    write(both.folder, "job.py", SCRIPTS[name])
    run = both.compare("-m", "job", "argument")
    assert run.out or run.err or run.status, run


@pytest.mark.parametrize("arguments", [[], ["--lr", "1 2", "", "-u", "ä", "\udcff"]], ids=["none", "some"])
def test_a_process_sees_the_same_of_itself(both: Starter, arguments: list[str]) -> None:
    """Arguments, paths, streams, environment, signals, descriptors, limits, threads: all that can be asked for."""
    write(both.folder, "probe.py", FACTS)
    run = both.compare("probe.py", "report.json", *arguments)
    assert (run.status, run.err) == (0, "")
    name = both.folder / "report.json"
    both.alone("probe.py", "report.json", *arguments)
    alone = json.loads(name.read_text())
    both.forked("probe.py", "report.json", *arguments)
    forked = json.loads(name.read_text())
    assert normal(alone) == normal(forked)


def normal(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out where the output goes: a file for each run."""
    descriptors = found["descriptors"]
    for number in "012":
        if number in descriptors:
            descriptors[number][0] = "somewhere"
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["./probe.py"],
        ["../scripts/probe.py"],
        ["/"],
        ["folder/probe.py"],
        ["link.py"],
        ["-m", "probe"],
        ["-m", "package.probe"],
        ["-m", "package"],
        ["folder"],
        ["archive.zip"],
        ["probe.pyc"],
        ["-m", "nothing"],
        ["nothing.py"],
        ["empty"],
    ],
    ids=" ".join,
)
def test_whatever_names_a_script(both: Starter, words: list[str]) -> None:
    """Relative and absolute paths, links, directories, archives, bytecode, modules, packages; and what is not there."""
    folder = both.folder.parent / both.folder.name
    for name in ("probe.py", "folder/probe.py", "folder/__main__.py", "package/probe.py", "package/__main__.py"):
        write(folder, name, FACTS)
    write(folder, "package/__init__.py", "x = 1")
    (folder / "empty").mkdir(exist_ok=True)
    if not (folder / "link.py").exists():
        (folder / "link.py").symlink_to("folder/probe.py")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", FACTS)
    if words == ["probe.pyc"]:
        code = "import py_compile; py_compile.compile('probe.py', cfile='probe.pyc')"
        assert both.alone("-c", code).status == 0
    words = [word.replace("../scripts", f"../{folder.name}") for word in words]
    if words == ["/"]:
        words = [str(folder / "probe.py")]
    report = folder / "report.json"
    found: list[object] = []
    for start in (both.alone, both.forked):
        report.unlink(missing_ok=True)
        run = start(*words, "report.json")
        found.append((run, normal(json.loads(report.read_text())) if report.exists() else None))
    assert found[0] == found[1]


def test_modules_beside_the_script(both: Starter) -> None:
    """The script's own directory is searched first, also for names that the launcher uses itself."""
    write(both.folder, "sub/click.py", "name = 'own click'")
    write(both.folder, "sub/psutil.py", "name = 'own psutil'")
    write(both.folder, "sub/helper.py", "name = 'helper'")
    text = "import click, psutil, helper\nprint(click.name, psutil.name, helper.name, helper.__file__)"
    run = both.compare(write(both.folder, "sub/script.py", text))
    assert run.out.startswith("own click own psutil helper")


@pytest.mark.parametrize(
    "text",
    [
        "import random\nprint(random.random())",
        "import os\nprint(os.urandom(4))",
        "import uuid\nprint(uuid.uuid4())",
        "import tempfile\nprint(tempfile.mktemp())",
        "import secrets\nprint(secrets.token_hex(4))",
    ],
)
def test_no_two_workers_draw_the_same(both: Starter, text: str) -> None:
    """Random numbers are each worker's own."""
    name = write(both.folder, "chance.py", text)
    assert len({both.forked(name).out for _ in range(5)}) == 5


@pytest.mark.parametrize(
    "environ",
    [
        {"PYTHONDEVMODE": "1"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONUTF8": "0", "LC_ALL": "C"},
        {"PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"},
        {"PYTHONIOENCODING": "latin-1:replace"},
        {"PYTHONHASHSEED": "0"},
        {"PYTHONFAULTHANDLER": "1"},
        {"PYTHONTRACEMALLOC": "3"},
        {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/tmp/nowhere"},
        {"PYTHONSAFEPATH": "1"},
        {"PYTHONNOUSERSITE": "1", "PYTHONOPTIMIZE": "1"},
        {"PYTHONUNBUFFERED": "1", "PYTHONVERBOSE": "", "PYTHONBREAKPOINT": "0"},
        {"PYTHONMALLOC": "malloc", "PYTHONINTMAXSTRDIGITS": "1000"},
    ],
    ids=" ".join,
)
def test_variables_that_python_reads(tmp_path: Path, environ: dict[str, str]) -> None:
    """What Python is told by PYTHON* variables and by the locale holds in a forked worker too."""
    with starter(tmp_path, environ=environ) as both:
        write(tmp_path, "probe.py", FACTS)
        reports = []
        for start in (both.alone, both.forked):
            assert start("probe.py", "report.json").status == 0
            reports.append(normal(json.loads((tmp_path / "report.json").read_text())))
        assert reports[0] == reports[1]
        both.compare(write(tmp_path, "script.py", "print('\u00e4', hash('a') == hash('a'))\n1 / 0"))


@pytest.mark.parametrize("name", ["stdin", "pdb"])
def test_scripts_that_read(tmp_path: Path, name: str) -> None:
    """Standard input is the launcher's, as it is for a new process; a debugger can be talked to."""
    given = b"p 1 + 1\r\nc\n" if name == "pdb" else "a\r\nb\rä\n".encode()
    with starter(tmp_path, stdin=given) as both:
        run = both.compare(write(tmp_path, "script.py", SCRIPTS[name]), stdin=given)
    assert ("2\n" in run.out and "after" in run.out) if name == "pdb" else run.out


def test_a_stream_that_is_closed(tmp_path: Path) -> None:
    """Standard input that is closed is None, as for a new process, and no descriptor takes its place."""
    write(tmp_path, "probe.py", FACTS)
    reports = []
    with starter(tmp_path, stdin=None) as both:
        for start in (both.alone, both.forked):
            assert start("probe.py", "report.json").status == 0
            reports.append(normal(json.loads((tmp_path / "report.json").read_text())))
    assert reports[0] == reports[1]
    assert reports[0]["streams"][0] is None


def test_variables_that_differ_from_the_launcher(tmp_path: Path) -> None:
    """A worker has exactly the environment it was given; so have its children, and C code."""
    code = "import ctypes, os\nget = ctypes.CDLL(None).getenv\nget.restype = ctypes.c_char_p\n"
    text = code + "print(ascii([sorted(os.environ.items()), get(b'NEW'), get(b'OLD')]))\nos.system('env | sort')"
    name = write(tmp_path, "script.py", text)
    with starter(tmp_path, environ={"OLD": "1"}) as both:
        given = {"NEW": "ä \udcff=", "OLD": "2"}
        run = both.compare(name, environ=given)
    assert "b'2'" in run.out


def test_many_workers_of_many_attempts(tmp_path: Path) -> None:
    """The factory is as it was, however often it has forked."""
    text = "import os, sys\nprint([name for name in os.listdir('/proc/self/fd') if int(name) < 64])"
    text += "\nprint(len(os.listdir('/proc/self/task')))"
    name = write(tmp_path, "script.py", text + "\nsys.exit(3)")
    with starter(tmp_path) as both:
        assert {both.forked(name) for _ in range(50)} == {both.alone(name)}


def test_workers_belong_to_the_launcher(tmp_path: Path) -> None:
    """A worker's parent is the launcher's process, from its first line on."""
    name = write(tmp_path, "script.py", "import os; print(os.getppid())")
    with starter(tmp_path) as both:
        parents = {int(both.forked(name).out) for _ in range(20)}
    assert len(parents) == 1
    assert os.getpid() not in parents


def test_with_torch_imported_beforehand(tmp_path: Path) -> None:
    """The same holds when torch is what was imported: facts, endings, data loaders, thread counts, random numbers."""
    loader = """
import os, threadpoolctl
import numpy, torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return torch.tensor(index)
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        batches = DataLoader(Numbers(), batch_size=4, num_workers=2, multiprocessing_context=method)
        print(method, [batch.tolist() for batch in batches])
    print(torch.get_num_threads(), torch.get_num_interop_threads())
    pools = threadpoolctl.threadpool_info()
    print(sorted((pool["user_api"], pool["internal_api"], pool["num_threads"]) for pool in pools))
    print(os.environ.get("OPENBLAS_NUM_THREADS"), (numpy.ones((200, 200)) @ numpy.ones((200, 200))).sum())
    print(len(os.listdir("/proc/self/task")))
    print(torch.ones(2000, 2000).sum())
"""
    chances = ("import numpy\nprint(numpy.random.rand())", "import torch\nprint(torch.rand(1))")
    write(tmp_path, "probe.py", "import torch\n" + FACTS)
    with starter(tmp_path, modules=["torch"]) as both:
        run = both.compare(write(tmp_path, "loader.py", loader))
        assert run.status == 0, run.err
        both.compare(write(tmp_path, "script.py", "import torch\ntorch.ones(2) @ torch.ones(3)"))
        for chance in chances:
            name = write(tmp_path, "chance.py", chance)
            assert len({both.forked(name).out for _ in range(3)}) == 3
        reports = []
        for start in (both.alone, both.forked):
            assert start("probe.py", "report.json").status == 0
            reports.append(normal(json.loads((tmp_path / "report.json").read_text())))
        assert reports[0] == reports[1]
