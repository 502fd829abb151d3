"""Jobs from Python: calls that are sent, what cannot be, and exceptions that come back."""

from __future__ import annotations

import functools
import io
import linecache
import pickle
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.api import pickled_call, remote_exception
from hpc_launch.errors import CallError
from tests.support import lines_mention, mentions


def through(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Callable[..., Any], Any, Any]:
    """Send a call to this very process."""
    parts, _ = pickled_call.unpack_call(io.BytesIO(pickled_call.pack_call(function, args, kwargs, 10)), "n1")
    return parts


def test_closures_and_lambdas_arrive() -> None:
    """With their variables, and with classes that no module has."""
    factor = 3

    class Local:
        number = 4

    function, args, kwargs = through(lambda value, plus: factor * value.number + plus, Local(), plus=1)

    assert function(*args, **kwargs) == 13


def test_code_keeps_its_file() -> None:
    """cloudpickle leaves it out; tracebacks would not say where."""

    def outer() -> Callable[[], int]:
        return lambda: 1

    function, _, _ = through(outer)

    assert (function.__code__.co_filename, function().__code__.co_filename) == (__file__, __file__)


def test_the_text_of_cells_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a notebook's cell says is in no file that the nodes have."""
    name = "<cell 7>"
    text = "def cell():\n    return 1\n"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), namespace)  # as IPython does
    monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
    data = pickled_call.pack_call(namespace["cell"], (), {}, 10)
    linecache.cache.pop(name)
    pickled_call.unpack_call(io.BytesIO(data), "n1")

    assert linecache.getlines(name) == text.splitlines(keepends=True)


class Holder:
    """Something with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def method(self) -> None:
        """Be bound."""


LOCK = threading.Lock()


def uses_a_global() -> object:
    return LOCK


def has_a_closure() -> Callable[[], object]:
    secret = threading.Lock()
    return lambda: secret


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "what"),
    [
        (print, (1, LOCK), {}, "1 _thread.lock"),
        (print, (), {"end": {"a": [0, LOCK]}}, "end['a'][1] _thread.lock"),
        (print, (Holder(inner=Holder(lock=LOCK)),), {}, "0.inner.lock _thread.lock"),
        (Holder(lock=LOCK).method, (), {}, "'Holder.method'.__self__.lock _thread.lock"),
        (
            has_a_closure(),
            (),
            {},
            "'secret' 'has_a_closure.<locals>.<lambda>' _thread.lock",
        ),
        (functools.partial(print, LOCK), (), {}, "0 _thread.lock"),
    ],
)
def test_what_cannot_be_sent_is_named(function: Callable[..., Any], args: Any, kwargs: Any, what: str) -> None:
    """The innermost thing that cannot be pickled, by the way that leads to it."""
    with pytest.raises(CallError) as refused:
        pickled_call.pack_call(function, args, kwargs, 10)

    assert mentions(refused.value, "pickle '_thread.lock'", what)


def test_a_global_that_cannot_be_sent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a function that is sent as a whole, as those of notebooks are."""
    monkeypatch.setattr(uses_a_global, "__module__", "__main__")
    with pytest.raises(CallError) as refused:
        pickled_call.pack_call(uses_a_global, (), {}, 10)

    assert mentions(refused.value, "'LOCK' 'uses_a_global' _thread.lock")


def test_what_is_too_large_is_named() -> None:
    """And the way around it; the bytes are not even made."""
    with pytest.raises(CallError) as refused:
        pickled_call.pack_call(print, (1, bytes(2 << 20)), {"end": "x"}, 1)

    assert mentions(refused.value, "1 MB max_pickle_mb")


def test_a_module_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the node, its Python, and what can be done."""
    (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("only_here")
    data = pickled_call.pack_call(module.f, (), {}, 10)
    monkeypatch.delitem(sys.modules, "only_here")
    (tmp_path / "only_here.py").unlink()
    with pytest.raises(CallError) as refused:
        pickled_call.unpack_call(io.BytesIO(data), "n7")

    assert mentions(refused.value, "'only_here' n7", sys.executable, "cloudpickle.register_pickle_by_value(only_here)")


def test_the_search_path_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module beside the program is found on the nodes too, where the working directory is another."""
    (tmp_path / "beside.py").write_text("def f():\n    return 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = pickled_call.pack_call(__import__("beside").f, (), {}, 10)
    monkeypatch.delitem(sys.modules, "beside")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    (function, _, _), _ = pickled_call.unpack_call(io.BytesIO(data), "n1")

    assert function() == 5


def test_another_python_is_refused() -> None:
    """Code of one release cannot be read by another: that is said, and not a crash."""
    header = pickle.loads(pickled_call.pack_call(print, (), {}, 1))
    header["python"] = [2, 7]
    with pytest.raises(CallError, match=r"\b2\.7\b"):
        pickled_call.unpack_call(io.BytesIO(pickle.dumps(header)), "n1")


# ---- exceptions


class Odd(Exception):
    """One that can be written and not be read: its arguments are others than those of its construction."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def noted(folder: Path, error: BaseException) -> remote_exception.RemoteException:
    try:
        raise error  # noqa: TRY301 - it is to have a traceback
    except BaseException as raised:  # noqa: BLE001 - that is what is tested
        remote_exception.write_exception(folder / "raised.pkl", raised, raised.__traceback__, 3, "n1")
    found = remote_exception.read_exception(folder / "raised.pkl")
    assert found is not None
    return found


def test_an_exception_comes_back_as_it_was(tmp_path: Path) -> None:
    """Its class, its arguments, and as its cause the traceback and whose it is."""
    found = noted(tmp_path, KeyError("x", {"y": 1}))
    error = remote_exception.again(found, "12", "/logs/rank_3.err")
    assert error is not None
    cause = error.__cause__

    assert (type(error), error.args) == (KeyError, ("x", {"y": 1}))
    assert isinstance(cause, remote_exception.RemoteTraceback)
    assert (cause.rank, cause.host, cause.log) == (3, "n1", "/logs/rank_3.err")
    assert f'File "{__file__}", line' in str(cause)
    assert "KeyError: ('x', {'y': 1})" in str(cause)
    if sys.version_info >= (3, 11):
        assert lines_mention(error.__notes__, "3 n1 12 /logs/rank_3.err")


@pytest.mark.parametrize(
    "error", [Odd(1, 2), ValueError(threading.Lock()), ValueError(bytes(17 << 20))], ids=["odd", "lock", "large"]
)
def test_an_exception_that_cannot_be_sent_is_told_in_words(tmp_path: Path, error: BaseException) -> None:
    """Nothing is made up; type, text and traceback are there."""
    found = noted(tmp_path, error)

    assert remote_exception.again(found, "12", "") is None
    assert found.kind.endswith(type(error).__qualname__)
    assert found.text.startswith("Traceback (most recent call last):")


def test_what_is_no_note_is_passed_over(tmp_path: Path) -> None:
    """Half a file, another's file, no file."""
    path = tmp_path / "raised.pkl"
    for data in (b"", pickle.dumps({"kind": 1})[:-1], pickle.dumps({"other": 1}), pickle.dumps(3)):
        path.write_bytes(data)
        assert remote_exception.read_exception(path) is None, data

    assert remote_exception.read_exception(tmp_path / "none") is None


def test_a_class_of_this_process_is_itself_again(tmp_path: Path) -> None:
    """So that a notebook's `except MyError` works, though no module has the class."""
    own = types.new_class("Own", (Exception,), {}, lambda names: names.update({"__module__": "__main__"}))
    error = remote_exception.again(noted(tmp_path, own("x")), "12", "")

    assert type(error) is own


@pytest.mark.parametrize("data", [b"", b"\x80\x04", pickle.dumps(3), pickle.dumps({"path": []})])
def test_a_damaged_call_is_said_in_a_line(data: bytes) -> None:
    """A worker's log has what was wrong with it, and no traceback of a pickle."""
    with pytest.raises(CallError) as refused:
        pickled_call.unpack_call(io.BytesIO(data), "n7")

    assert mentions(refused.value, "n7")
    assert len(str(refused.value).splitlines()) == 1


def test_an_argument_that_cannot_be_made_again() -> None:
    """The error names the node, its Python and the cause."""
    data = pickled_call.pack_call(len, (Unmakeable(),), {}, 10)
    with pytest.raises(CallError) as refused:
        pickled_call.unpack_call(io.BytesIO(data), "n7")

    assert mentions(refused.value, "n7", sys.executable, "ZeroDivisionError")


class Unmakeable:
    """It can be pickled, and nothing more."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return divmod, (1, 0)
