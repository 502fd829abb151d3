"""Become a script: do what `python -u SCRIPT ARGS` does, in a process that already runs Python.

What Python does is written in its own source, Python/initconfig.c, Modules/main.c and Python/pylifecycle.c; the tests
in tests/conformance run the same probes both ways and compare.

Known differences, because there is no way to them: the frames of the launcher's main program lie below the script's
(`inspect.stack()`), modules that were imported beforehand are in `sys.modules`, objects made by then are frozen for the
garbage collector (`gc.get_freeze_count()`), all workers of a node share one hash seed, two reports are worded
differently: of a `sys.excepthook` that is missing or fails itself, and of a source file that cannot be decoded; and an
exception that ends the script is asked for its words (`str`) once more, for the file that tells the launcher of it. On
purpose, `print` raises nothing where its file is full (`child.py`), and what it does raise has a frame from there.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import os
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from hpc_launch.workers import exception_file

# Packages that the launcher itself needs. A script that imports one of them gets it as its own search path gives it.
_LAUNCHER = ("hpc_launch", "click", "psutil", "hostlist", "setproctitle", "threadpoolctl")


@dataclass(frozen=True)
class Script:
    """A script and its arguments.

    Attributes:
        command: how Python would be started for it.
        words: path or module name, the arguments following.
        module: the first word is a module name (`python -m`).
        path: the module search path, without the entry that Python puts first for a script.
        keep: packages of the launcher that were asked for, and so stay imported.
    """

    command: tuple[str, ...]
    words: tuple[str, ...]
    module: bool
    path: tuple[str, ...]
    keep: tuple[str, ...]

    @classmethod
    def of(cls, arguments: Sequence[str], path: Sequence[str], keep: Sequence[str] = ()) -> Script:
        """Read the arguments of Python: -u, perhaps -m, the script and its arguments."""
        words = tuple(arguments)[1:]
        module = words[0] == "-m"
        command = (sys.executable, *arguments)
        return cls(command, words[1:] if module else words, module, tuple(path), tuple(keep))


class Become(BaseException):
    """Raised in a forked worker: it unwinds the launcher's frames, up to where the script is run instead of them."""

    def __init__(self, script: Script) -> None:
        super().__init__(script.words)
        self.script = script


def run_script(script: Script) -> None:
    """Run the script as the main program. An exception leaves this function as it leaves a script.

    The caller must let it pass to the interpreter, which ends the process as it does for a script: with the exit status
    of a SystemExit, by SIGINT after a KeyboardInterrupt, waiting for threads, calling `atexit` functions.
    """
    main = _prepare(script)
    left, pid = os.environ.get(exception_file.VARIABLE), os.getpid()
    try:
        if script.module:
            runpy._run_module_as_main(script.words[0])  # type: ignore[attr-defined]  # noqa: SLF001 - what `-m` calls
        else:
            _run_file(script.words[0], main)
    except SystemExit as error:
        if left and os.getpid() == pid and error.code not in (None, 0):
            exception_file.write_exception_file(left, error, _inner(error))
        raise
    except BaseException as error:
        _hide_launcher(error)
        if left and os.getpid() == pid:  # and not a process that the script has forked
            exception_file.write_exception_file(left, error, _inner(error))
        raise


def _prepare(script: Script) -> ModuleType:
    """Leave nothing of the launcher for the script to see."""
    for name in list(sys.modules):
        top = name.partition(".")[0]
        if top in _LAUNCHER and top not in script.keep:
            del sys.modules[name]
    word, *arguments = script.words
    sys.orig_argv = list(script.command)
    sys.argv = ["-m" if script.module else word, *arguments]
    sys.path[:] = script.path
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, home(word, module=script.module))
    launcher, main = sys.modules["__main__"], ModuleType("__main__")
    for name in [name for name, module in sys.modules.items() if module is launcher]:
        sys.modules[name] = main  # multiprocessing has a second name for it
    main.__dict__.update(
        {"__annotations__": {}, "__builtins__": builtins, "__loader__": importlib.machinery.BuiltinImporter}
    )
    return main


def home(name: str, *, module: bool) -> str:
    """The entry that Python puts first in the search path: where the script is, or the working directory for `-m`."""
    return str(Path.cwd() if module else Path(os.path.realpath(name)).parent)


def _run_file(name: str, main: ModuleType) -> None:
    path = _absolute(name)
    if pkgutil.get_importer(path) is not None:  # a directory or an archive
        if not getattr(sys.flags, "safe_path", False):
            sys.path[0] = path
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]  # noqa: SLF001
        return
    code, loader = _load(path)
    main.__dict__.update({"__file__": path, "__cached__": None, "__loader__": loader})
    exec(code, main.__dict__)  # noqa: S102 - this is what it is for


def _absolute(name: str) -> str:
    """Make the path of a script absolute, as Python does (`_Py_abspath`): nothing is tidied up."""
    return name if name.startswith("/") else f"{Path.cwd()}/{name}"


def _load(path: str) -> tuple[CodeType, object]:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        print(  # noqa: T201 - as Python does
            f"{sys.executable}: can't open file {path!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr
        )
        raise SystemExit(2) from None
    loader: importlib.machinery.SourceFileLoader | importlib.machinery.SourcelessFileLoader
    if path.endswith(".pyc") or data.startswith(importlib.util.MAGIC_NUMBER):
        loader = importlib.machinery.SourcelessFileLoader("__main__", path)
        compiled = loader.get_code("__main__")
        assert compiled is not None  # noqa: S101 - only packages without a file have none
        return compiled, loader
    return compile(data, path, "exec", dont_inherit=True), importlib.machinery.SourceFileLoader("__main__", path)


def _inner(error: BaseException) -> TracebackType | None:
    """The part of a traceback that begins in the script."""
    inner = error.__traceback__
    while inner is not None and inner.tb_frame.f_code.co_filename == __file__:
        inner = inner.tb_next
    return inner


def _hide_launcher(error: BaseException) -> None:
    """See that the report of an uncaught exception begins in the script."""
    inner = _inner(error)
    hook: Callable[[type[BaseException], BaseException, TracebackType | None], object] | None
    hook = getattr(sys, "excepthook", None)
    if hook is None:
        return

    def report(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> object:
        if raised is error:
            trace = raised.__traceback__ = inner
        return hook(kind, raised, trace)

    sys.excepthook = report


def hidden_modules(directory: str) -> list[str]:
    """Which modules in a directory a script would not get, because others of the same name are imported already.

    Args:
        directory: the first entry of the script's search path.
    """
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return []  # nor will Python find anything there
    found = []
    for entry in entries:
        name = entry.name.removesuffix(".py")
        module = sys.modules.get(name)
        if module is None or name in (*_LAUNCHER, "__main__"):
            continue
        if name == entry.name and not Path(entry.path, "__init__.py").exists():
            continue
        if not (getattr(module, "__file__", None) or "").startswith(directory + os.sep):
            found.append(name)
    return found
