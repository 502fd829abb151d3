"""What a training script does before it trains, as far as its text shows. Pure: files are read by a function."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Variables that torch, numpy and the libraries below them read when they are loaded: set later, they do nothing.
# Those of NCCL, CUDA and torch's process groups are read when these are first used.
_READ_AT_IMPORT = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|GOTO|BLIS|NPY|NUMPY|KINETO|PYTORCH)_\w+"
    r"|TORCH_(?!NCCL_|HOME$|EXTENSIONS_DIR$|CUDA_ARCH_LIST$)\w+|TORCHELASTIC_LOG\w*|LOGLEVEL"
)

# A script's own modules are looked at too; more than this many are not its own any more.
_MOST_FILES = 300


@dataclass
class ScriptScan:
    """What was found.

    Attributes:
        sets: variables that are set before torch is imported and that this import reads; with the place.
        imports: the top-level names of all modules that are imported, by the script or by modules beside it.
    """

    sets: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)


def scan(scripts: Sequence[Path], directory: Path, read: Callable[[Path], str]) -> ScriptScan:
    """Look at a script, and at the modules beside it that it imports, in the order in which they would run.

    What cannot be read or parsed is passed over: Python will say what is wrong with it.

    Args:
        scripts: the files that the script may be, or be made of; those that are not there are passed over.
        directory: where its own modules are.
        read: gives a file's text.
    """
    walk = _Walk(directory, read)
    for script in scripts:
        walk.file(script)
    return walk.found


class _Walk:
    def __init__(self, directory: Path, read: Callable[[Path], str]) -> None:
        self.found = ScriptScan()
        self._directory = directory
        self._read = read
        self._seen: set[Path] = set()
        self._torch_is_loaded = False

    def file(self, path: Path) -> None:
        if path in self._seen or len(self._seen) >= _MOST_FILES:
            return
        self._seen.add(path)
        try:
            tree = ast.parse(self._read(path))
        except (OSError, SyntaxError, ValueError):
            return
        self._statements(tree.body, path, at_once=True)

    def _statements(self, body: Sequence[ast.AST], path: Path, *, at_once: bool) -> None:
        """Go through statements; `at_once`: they run when the file does, rather than when a function is called."""
        for statement in body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self._import(statement, path, at_once=at_once)
                continue
            nested = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if not self._torch_is_loaded:
                for name in _changed_variables(statement):
                    if _READ_AT_IMPORT.fullmatch(name):
                        line = getattr(statement, "lineno", 0)
                        self.found.sets.setdefault(name, f"{path.name}:{line}")
            self._statements(list(ast.iter_child_nodes(statement)), path, at_once=at_once and not nested)

    def _import(self, statement: ast.Import | ast.ImportFrom, path: Path, *, at_once: bool) -> None:
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
            base = self._directory
        else:
            module = statement.module or ""
            names = [module] if module else [alias.name for alias in statement.names]
            base = self._directory if not statement.level else path.parents[statement.level - 1]
            names += [f"{module}.{alias.name}" for alias in statement.names if module]
        for name in names:
            top = name.partition(".")[0]
            own = list(self._files(base, name))
            if not own and not (isinstance(statement, ast.ImportFrom) and statement.level):
                self.found.imports.add(top)
            for found in own:
                self.file(found)
            if top == "torch" and not own and at_once:
                self._torch_is_loaded = True

    def _files(self, base: Path, name: str) -> Iterator[Path]:
        """The files of a module that lies beside the script, its packages' first."""
        place = base
        for part in name.split("."):
            for path in (place / part / "__init__.py", place / f"{part}.py"):
                if path in self._seen:
                    yield path
                    break
                try:
                    self._read(path)
                except (OSError, ValueError):
                    continue
                yield path
                break
            else:
                return
            place = place / part


def _changed_variables(statement: ast.AST) -> Iterator[str]:
    """Names of the environment variables that a statement itself sets or takes away, if they are written out."""
    if isinstance(statement, ast.Subscript) and _is_environ(statement.value):
        if not isinstance(statement.ctx, ast.Load):
            yield from _texts(statement.slice)
    elif isinstance(statement, ast.Call) and isinstance(statement.func, ast.Attribute):
        method, owner = statement.func.attr, statement.func.value
        if method in ("putenv", "unsetenv") or (method in ("setdefault", "pop") and _is_environ(owner)):
            yield from (name for argument in statement.args[:1] for name in _texts(argument))
        elif method == "update" and _is_environ(owner):
            yield from (keyword.arg for keyword in statement.keywords if keyword.arg)
            yield from (name for argument in statement.args for name in _keys(argument))
    elif isinstance(statement, ast.AugAssign) and _is_environ(statement.target):
        yield from _keys(statement.value)


def _is_environ(node: ast.AST) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == "environ") or (
        isinstance(node, ast.Name) and node.id == "environ"
    )


def _keys(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Dict):
        for key in node.keys:
            if key is not None:
                yield from _texts(key)
    elif isinstance(node, ast.Call):
        yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
