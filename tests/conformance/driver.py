"""A launcher with nothing but the warm start: forks scripts as it is told, a line of JSON each.

Runs under every Python that is installed, without torch or anything else that is not Python's own.
"""

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from hpc_launch.workers.factory import Factory, Imports, build_factory
from hpc_launch.workers.factory_server import Order
from hpc_launch.workers.script import Become, Script, run_script


def main() -> Script | None:
    """Fork what is asked for; returns the script in a worker.

    The arguments are the descriptors to read requests from and to write answers to, and the modules to import.
    """
    requests, answers = map(int, sys.argv[1:3])
    try:
        factory = build_factory(
            Imports(sys.argv[3:], home=str(Path.cwd())), signal.pthread_sigmask(signal.SIG_BLOCK, ())
        )
    except Become as worker:
        return worker.script
    with os.fdopen(requests) as lines:
        for line in lines:
            os.write(answers, json.dumps(fork(factory, json.loads(line))).encode() + b"\n")
    factory.close()
    return None


def fork(factory: Factory, request: dict[str, Any]) -> dict[str, int]:
    """Fork one script, and wait for its end."""
    out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in ("out", "err"))
    order = Order(sys.executable, tuple(request["arguments"]), request["environ"], (out, err), forked=True)
    [pid] = factory.start([order])
    os.close(out)
    os.close(err)
    while True:
        select.select([factory], [], [])
        for ended in factory.ended():
            factory.sweep(0)
            return {"pid": pid, "status": ended.status}


if __name__ == "__main__":
    script = main()
    if script is not None:
        run_script(script)
