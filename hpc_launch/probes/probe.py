"""The program on each node: it does what it is told, one line of its standard input after another.

It says so before it does what might never end (a file system, an import, a driver), so that whoever waits for it knows
where it hangs. When its input ends, it ends: nothing is left of a command that is gone.

    python -m hpc_launch.probes.probe MODULE:CLASS

The class is a `ProbeTasks`: what can be asked for.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hpc_launch.probes import probe_protocol

# After so many seconds a probe ends, whatever it does and whether or not anybody is left to tell it.
_LONGEST_LIFE = 600


class ProbeTasks(Protocol):
    """What a probe can be asked to do."""

    def do(self, order: Mapping[str, Any]) -> Any:
        """Do what `order["do"]` names; the answer is to be what the codec writes."""


def main() -> None:
    """Serve until the input ends."""
    signal.alarm(_LONGEST_LIFE)
    send_record(hello=os.environ.get("SLURMD_NODENAME", ""), nodes=os.environ.get("SLURM_STEP_NODELIST", ""))
    # That it has begun is to be known before this is read.
    make_tasks = pkgutil.resolve_name(sys.argv[1])
    tasks: ProbeTasks = make_tasks(os.environ, Path.cwd(), lambda what: send_record(doing=what))
    for order in probe_protocol.orders(sys.stdin):
        try:
            answer = tasks.do(order)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a node is what is asked for
            send_record(order=order["order"], error=f"{type(error).__name__}: {error}")
        else:
            send_record(order=order["order"], answer=answer)
    # Without whatever libraries do at the end, which can hang as well.
    os._exit(0)


def send_record(**record: Any) -> None:
    """Say something to whoever has started this."""
    sys.stdout.write(probe_protocol.encode_record(record))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
