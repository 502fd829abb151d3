"""The launcher's lines on the console about attempts; mostly the first agent says them for all."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from hpc_launch.agent.hang_detector import HangVerdict
from hpc_launch.agent.run_context import RunContext
from hpc_launch.console import say
from hpc_launch.records import failure_messages, nodes_to_exclude
from hpc_launch.records.nodes_to_exclude import BadNode
from hpc_launch.records.root_cause import RootCause
from hpc_launch.rendezvous.messages import RoundEnd
from hpc_launch.slurm.job import Ending
from hpc_launch.text import duration
from hpc_launch.workers.notice_signals import Delivery


def notice(delivery: Delivery, left: float | None) -> None:
    """A notice signal has come; the job has so many seconds left, where that is known."""
    if delivery.late and delivery.waiting:
        return  # one line when the last worker has it
    end = f"; the job ends in {duration(round(left))}" if left is not None else ""
    say(f"{delivery.signum.name}: {_heard_by(delivery)}{end}")


def _heard_by(delivery: Delivery) -> str:
    name, told, waiting = delivery.signum.name, delivery.told, delivery.waiting
    if delivery.late:
        return "the workers have a handler now, and are told"
    if not waiting:
        return "the workers are told"
    if told:
        return f"{told} of {told + waiting} workers of this node are told; the others have no handler for {name}"
    return (
        f"no worker of this node has a handler for it, so none is told. To save before the end, call "
        f"hpc_launch.runtime.should_stop() in the training loop, or handle {name} (docs/runtime.md)"
    )


def full_disk(context: RunContext, problem: OSError) -> None:
    """Nothing can be written any more."""
    where, why = context.job.path, problem.strerror or problem
    if problem.errno == errno.ENOENT:
        say(
            f"{context.host}: {where} was removed during the run: training continues, and the output of the workers "
            "is on the console only"
        )
        return
    say(
        f"{context.host}: cannot write in {where}: {why}: training goes on, and what the workers print is lost until "
        "there is room again"
    )


def hang(context: RunContext, verdict: HangVerdict) -> None:
    """The job hangs."""
    stacks = f"; stacks in {verdict.path}" if verdict.path is not None else ""
    _say_of_attempt(context, f"{verdict.cause}{stacks}")


def stop(context: RunContext, end: RoundEnd, ending: Ending, left: float) -> None:
    """The run is stopped, as Slurm has said for a reason perhaps, and the workers have so many seconds."""
    words = failure_messages.stop_words(end.signal, ending.value)
    cause = end.cause if end.signal in words else f"{words}: {end.signal} on {end.host}"
    _say_of_attempt(context, f"{cause}; the workers have {duration(round(left))} to end")


def cancelled(user: str) -> None:
    """The job was cancelled, as accounting says."""
    say(f"the job was cancelled by {user} (scancel)")


def restart(context: RunContext, end: RoundEnd, in_a_row: int, left: int) -> None:
    """The attempt has failed, and there will be another.

    Args:
        context: the run.
        end: of the attempt.
        in_a_row: how many attempts the same failure has ended, each soon after its begin; 1 for a new one.
        left: restarts that are left after this one.
    """
    # Where a job hangs was said when it was seen.
    again = f" (the same failure {in_a_row} times in a row; --max-restarts leaves {left} more)" if in_a_row > 1 else ""
    _say_of_attempt(context, f"{'it hangs' if end.hang else end.cause}; starting again{again}")


def failure(context: RunContext, found: RootCause | None, otherwise: str) -> None:
    """The last attempt has failed: at length if its cause was found."""
    _say_of_attempt(context, "\n    ".join(failure_messages.failure_block(found) if found is not None else [otherwise]))


def advice(bad: Sequence[BadNode]) -> None:
    """What to do about bad nodes, where there are any."""
    if bad:
        say(nodes_to_exclude.bad_nodes_advice(bad))


def _say_of_attempt(context: RunContext, text: str) -> None:
    say(f"attempt {context.label}: {text}")
