"""Whether a function takes the arguments that it is to be called with: looked at before anything is submitted. Pure."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from inspect import Parameter
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.text import count

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def check_arguments(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    others: Collection[str] = (),
    explain: Callable[[str], str] = lambda _name: "",
) -> None:
    """Refuse arguments that a function does not take.

    The signature is that of what is called: of a decorated function it is the decorator's, which may add arguments or
    take all. What has no signature, as some builtins have none, is not looked at.

    Args:
        function: what is to be called.
        args: its arguments.
        kwargs: those with names.
        others: names with another meaning where the call is made, such as resources.
        explain: returns a hint for a name that is no parameter; empty without one.

    Raises:
        UsageError: naming the argument, and the parameter whose name is nearest.
    """
    while isinstance(function, functools.partial):  # its own signature does not say which argument is wrong
        args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
        function = function.func
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        wrong, option = _fault(tuple(signature.parameters.values()), args, kwargs, others, explain) or (str(error), "")
        raise UsageError(f"{_name(function)}() {wrong}", option=option) from None


def nearest(name: str, known: Collection[str]) -> str:
    """The name among those that are known that is most like one; empty where none is."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def _fault(
    parameters: Sequence[Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    others: Collection[str],
    explain: Callable[[str], str],
) -> tuple[str, str] | None:
    """What is wrong with the arguments, in words that follow the function's name; and with which of them."""
    kinds = {one.kind for one in parameters}
    by_position = [one.name for one in parameters if one.kind in _BY_POSITION]
    by_name = [one.name for one in parameters if one.kind in _BY_NAME]
    if Parameter.VAR_KEYWORD not in kinds:
        for name in kwargs:
            if name in by_name:
                continue
            if name in by_position:
                return f"takes '{name}' by position only", name
            return f"has no parameter '{name}'{_hint(name, by_name, others, explain)}", name
    if Parameter.VAR_POSITIONAL not in kinds and len(args) > len(by_position):
        names = f" ({', '.join(by_position)})" if by_position else ""
        are = "is" if len(args) == 1 else "are"
        return f"takes {count(len(by_position), 'argument')} by position{names}, and {len(args)} {are} given", ""
    given = by_position[: len(args)]
    for name in kwargs:
        if name in given and name in by_name:
            return f"is given '{name}' twice, by position and by name", name
    needed = [
        one.name
        for one in parameters
        if one.default is Parameter.empty
        and one.kind in (*_BY_POSITION, Parameter.KEYWORD_ONLY)
        and one.name not in given
        and not (one.name in kwargs and one.kind in _BY_NAME)
    ]
    if not needed:
        return None
    taken = [name for name in needed if name in others]
    hint = f"; '{taken[0]}=' is the job's here: use hpc_launch.Executor(...).submit" if taken else ""
    are = "is" if len(needed) == 1 else "are"
    return f"needs {' and '.join(map(repr, needed))}, which {are} not given{hint}", needed[0]


def _hint(name: str, parameters: Sequence[str], others: Collection[str], explain: Callable[[str], str]) -> str:
    meaning = explain(name)
    if meaning:
        return f"; {meaning}"
    near = nearest(name, [*parameters, *others])
    if near:
        return f"; did you mean '{near}'?"
    return f"; it has {', '.join(map(repr, parameters))}" if parameters else "; it has none"


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
