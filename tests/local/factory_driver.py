"""An agent with nothing but its worker factory, which does as it is told: a line of JSON for each call and answer."""

import contextlib
import errno
import functools
import itertools
import json
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hpc_launch.workers.factory import Factory, FactoryLostError, Imports, build_factory, spawn_factory
from hpc_launch.workers.factory_server import Order
from hpc_launch.workers.script import Become, Script, run_script


def main() -> Script | None:
    """Make a factory and serve; returns the script in a worker.

    The arguments are the descriptors to read calls from and to write answers to, how to make the factory, and perhaps
    which fork of this process and the factory fails (the first makes the factory).
    """
    calls, answers, way, *failing = sys.argv[1:]
    if failing:
        fail_fork(int(failing[0]))
    try:
        factory = build_factory(Imports(home=str(Path.cwd())), ()) if way == "build" else spawn_factory(())
    except Become as worker:
        return worker.script
    with os.fdopen(int(calls)) as lines:
        for line in lines:
            os.write(int(answers), json.dumps(answer(factory, *json.loads(line))).encode() + b"\n")
    return None


def fail_fork(number: int) -> None:
    """Have the fork of this number fail, as if there were too many processes."""
    forks, fork = itertools.count(1), os.fork

    def counted() -> int:
        if next(forks) == number:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    os.fork = counted


def answer(factory: Factory, what: str, *words: Any) -> dict[str, Any]:
    """Call a method of the factory, or something else that an agent does."""
    others: dict[str, Callable[..., Any]] = {
        "start": start,
        "await": wait,
        "ended": lambda factory: [(ended.pid, ended.status) for ended in factory.ended()],
        "signal": lambda factory, pids, signum, group=False: factory.signal(pids, signum, group=group),
        "pid": lambda factory: factory._pid,
    }
    call = functools.partial(others[what], factory) if what in others else getattr(factory, what)
    try:
        return {"value": call(*words)}
    except FactoryLostError as error:
        return {"error": str(error), "lost": factory.lost}
    except OSError as error:
        return {"error": str(error), "lost": factory.lost}


def start(factory: Factory, *orders: dict[str, Any]) -> list[int]:
    """Start workers; their output goes to the ends of files."""
    with contextlib.ExitStack() as stack:
        return factory.start([made for order in orders for made in make(stack, **order)])


def make(stack: contextlib.ExitStack, *, outputs: Sequence[str | None], **rest: Any) -> Iterator[Order]:
    """Make an order."""
    descriptors: list[int | None] = []
    for name in outputs:
        descriptor = None if name is None else os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if descriptor is not None:
            stack.callback(os.close, descriptor)
        descriptors.append(descriptor)
    out, err = descriptors
    yield Order(outputs=(out, err), **rest)


def wait(factory: Factory, count: int) -> list[tuple[int, int]]:
    """Wait for the ends of so many workers."""
    ends: list[tuple[int, int]] = []
    while True:
        # Some may have been told already, with the answer to something else.
        ends.extend((ended.pid, ended.status) for ended in factory.ended())
        if len(ends) >= count:
            return ends
        select.select([factory], [], [])


if __name__ == "__main__":
    script = main()
    if script is not None:
        run_script(script)
