"""Which failure is the root cause: decided over what was written down, without a process in sight."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from hpc_launch.records import failure_messages, history, root_cause
from hpc_launch.records.directory import RankFiles
from hpc_launch.records.history_model import Attempt, Failure, NodeEvent, RaisedException, Worker
from hpc_launch.records.root_cause import ENDED, LOST, WAITED
from tests import histories
from tests.histories import Made
from tests.support import lines_mention, mentions

FILES = RankFiles(Path("rank.out"), Path("rank.err"), Path("rank.error.json"))
DECIDED = 100.0

# What libraries say when a peer is gone, or does not come.
SYMPTOMS = [
    ("RuntimeError: [../gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.1.0.3]:1234", LOST),
    ("RuntimeError: [../gloo/transport/tcp/pair.cc:545] Read error [10.1.0.3]:1: Connection reset by peer", LOST),
    ("torch.distributed.DistNetworkError: failed to recv, got 0 bytes", LOST),
    (
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        LOST,
    ),
    ("BrokenPipeError: [Errno 32] Broken pipe", LOST),
    (
        "RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation",
        WAITED,
    ),
    (
        "torch.distributed.DistBackendError: [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)",
        WAITED,
    ),
    ("torch.distributed.DistStoreError: wait timeout after 300000ms, keys: /default_pg/0//cpu//0", WAITED),
    (
        "RuntimeError: Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels",
        WAITED,
    ),
    ("ValueError: loss is nan", ""),
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", ""),
    ("KeyError: 'peer'", ""),
    ("OSError: [Errno 28] No space left on device", ""),
    ("RuntimeError: DataLoader worker (pid 123) is killed by signal: Killed. ", ""),
]


def worker(rank: int, code: int | None, ended: float | None = 100.0, **more: Any) -> Worker:
    """A worker that has ended; two of them to a node."""
    raised = more.pop("raised", "")
    failure = more.pop("failure", None)
    if raised:
        kind, _, message = raised.partition(": ")
        failure = Failure(RaisedException(kind, message, "train.py:1", "hook", more.pop("at", ended)))
    facts: dict[str, Any] = {"pid": 1, "device": "", "started": 1.0, "told": "", "usage": None, "files": FILES}
    place = {"host": f"gpu{rank // 2 + 1:03d}", "agent": rank // 2, "local_rank": rank % 2}
    return Worker(rank=rank, exitcode=code, ended=ended, failure=failure, **{**place, **facts, **more})


def attempt(*workers: Worker, **more: Any) -> Attempt:
    """An attempt that has failed."""
    facts: dict[str, Any] = {
        "number": 0,
        "run": 0,
        "world_size": len(workers),
        "hosts": (),
        "begin": 1.0,
        "end": 101.0,
        "ending": "failed",
        "status": 1,
        "cause": "rank 0 on gpu001 (local rank 0) failed with exit status 1",
        "signal": "",
        "by": "gpu001",
        "decided": DECIDED,
    }
    return Attempt(workers=workers, **{**facts, **more})


def ended(rank: int, **more: Any) -> Worker:
    """A worker that its agent has ended."""
    return worker(rank, -15, DECIDED + 0.1, told="SIGTERM", **more)


@pytest.mark.parametrize(("text", "reason"), SYMPTOMS)
def test_what_follows_a_failure_is_known_by_what_it_says(text: str, reason: str) -> None:
    """Lost connections and vain waits are symptoms; what a script or a device says is not."""
    assert reason == root_cause.symptom(text)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (worker(3, 1, raised="ValueError: loss is nan"), "1 ValueError: loss is nan"),
        (worker(3, 7), "7"),
        (worker(3, -11), "SIGSEGV memory"),
        (worker(3, -9, failure=Failure(oom="out of memory")), "SIGKILL out of memory"),
        (worker(3, -40), "40"),
        (worker(3, 1, failure=Failure(lines=("no such file",))), "1"),
    ],
)
def test_the_first_cause_and_not_the_first_symptom(first: Worker, words: str) -> None:
    """The rank with a reason of its own is found, though others were gone before it; these are counted."""
    lost = worker(0, 1, 99.0, raised=SYMPTOMS[0][0])
    waited = worker(1, -6, 99.5, failure=Failure(lines=(SYMPTOMS[6][0],)))
    cause = root_cause.find_root_cause(attempt(lost, waited, ended(2), first))

    assert cause is not None
    assert (cause.first, len(cause.groups)) == (first, 1)
    assert mentions(failure_messages.failure_headline(cause), "3 gpu002 1", words)
    assert cause.followers == {LOST: 1, WAITED: 1, ENDED: 1}


def test_when_an_exception_was_raised_counts() -> None:
    """A worker that takes long to be gone failed when it raised, not when it was gone; so does one that was ended."""
    slow = worker(2, 1, 99.0, raised="ValueError: first", at=90.0)
    quick = worker(0, 1, 91.0, raised="KeyError: second", at=91.0)
    stuck = ended(1, raised="OSError: even earlier", at=80.0)
    cause = root_cause.find_root_cause(attempt(quick, stuck, slow))

    assert cause is not None
    assert [group.first.rank for group in cause.groups] == [1, 2, 0]


def test_what_is_raised_when_told_to_stop_is_no_cause() -> None:
    """A handler of SIGTERM may raise what it likes."""
    told = worker(0, 1, DECIDED + 1, told="SIGTERM", raised="SystemError: asked to stop", at=DECIDED + 0.5)
    cause = root_cause.find_root_cause(attempt(told, worker(2, 7, DECIDED)))

    assert cause is not None
    assert (cause.first and cause.first.rank, cause.followers) == (2, {ENDED: 1})


def test_at_the_same_time_the_one_that_says_why_comes_first() -> None:
    """Within what clocks can tell apart, an exception explains more than an exit status."""
    silent, telling_one = worker(0, 3, 99.0), worker(2, 1, 99.4, raised="ValueError: why")
    near, exact = (
        root_cause.find_root_cause(attempt(silent, telling_one), slack=0.5),
        root_cause.find_root_cause(attempt(silent, telling_one)),
    )

    assert near is not None
    assert exact is not None
    assert (near.groups[0].first.rank, exact.groups[0].first.rank) == (2, 0)


def test_the_same_failure_on_many_ranks_is_one() -> None:
    """Ranks, addresses and numbers in a message do not make it another one; hosts are folded."""
    workers = [
        worker(rank, 1, 99 + rank / 100, raised=f"OSError: [rank {rank}] 0x{rank}ff is bad") for rank in range(6)
    ]
    cause = root_cause.find_root_cause(attempt(*workers, worker(6, 9), ended(7)))

    assert cause is not None
    assert [[one.rank for one in group.workers] for group in cause.groups] == [[*range(6)], [6]]
    assert (cause.groups[0].what, cause.followers) == ("OSError: [rank 0] 0x0ff is bad", {ENDED: 1})
    assert lines_mention(
        failure_messages.failure_block(cause),
        "0-5 gpu[001-003] 1 OSError: [rank 0] 0x0ff is bad",
        "0 gpu001 0",
        "train.py:1",
        "6 gpu004 0 9",
        f"1 {ENDED}",
    )


def test_a_node_that_is_lost() -> None:
    """The node is the cause where no rank has a reason of its own, and is said besides where one has."""
    lost = NodeEvent(95.0, 0, "lost", "gpu002", "gpu001")
    elsewhere = NodeEvent(5.0, 3, "lost", "gpu009", "gpu001")
    symptoms = (worker(0, 1, raised=SYMPTOMS[1][0]), ended(1))
    alone = root_cause.find_root_cause(attempt(*symptoms), [elsewhere, lost])
    besides = root_cause.find_root_cause(attempt(*symptoms, worker(4, 7)), [lost])

    assert alone is not None
    assert besides is not None
    assert (alone.lost, alone.first, besides.lost, besides.first and besides.first.rank) == (
        "gpu002",
        None,
        "gpu002",
        4,
    )
    assert mentions(failure_messages.failure_headline(alone), "lost gpu002")
    assert [line for line in failure_messages.failure_block(besides)[1:] if mentions(line, "lost gpu002")] != []


def test_those_for_whom_others_wait_in_vain_hang() -> None:
    """Where most time out, the few that did not are named."""
    waited = [worker(rank, 1, raised=SYMPTOMS[5][0]) for rank in range(3)]
    cause = root_cause.find_root_cause(attempt(*waited, ended(3)))

    assert cause is not None
    assert cause.first is not None
    assert (cause.first.rank, root_cause.follows(cause.first, DECIDED), cause.followers) == (3, ENDED, {WAITED: 3})
    assert mentions(failure_messages.failure_headline(cause), "3 gpu002 1 hang")


def test_a_rank_that_left_before_the_others_is_the_reason() -> None:
    """It has failed in nothing, but those that still needed it have lost it; one that ended later is another matter."""
    lost = [worker(rank, 1, 99.0 + rank / 10, raised=SYMPTOMS[0][0]) for rank in (0, 2)]
    left, late = worker(1, 0, 99.9), worker(3, 0, 100.1)
    cause = root_cause.find_root_cause(attempt(*lost, left, late))
    assert cause is not None
    assert cause.first == left
    assert cause.followers == {LOST: 2}
    assert mentions(failure_messages.failure_headline(cause), "rank 1 gpu001 0", root_cause.LEFT)
    # Where somebody has failed by himself nobody has to be looked for.
    cause = root_cause.find_root_cause(attempt(*lost, left, worker(4, 7, 99.0)))
    assert cause is not None
    assert cause.first == worker(4, 7, 99.0)


def test_a_script_that_ends_by_sys_exit() -> None:
    """It says where, and is a cause of its own; but not where its output says that it has lost another."""
    here = worker(0, 1, 99.0, failure=Failure(RaisedException("SystemExit", "1", "train.py:12", "hook", 98.9)))
    cause = root_cause.find_root_cause(attempt(here, ended(1)))
    assert cause is not None
    assert mentions(" ".join(failure_messages.failure_block(cause)), "sys.exit(1)", "train.py:12")
    raised = RaisedException("SystemExit", "1", "train.py:12", "hook", 98.9)
    lost = worker(2, 1, 98.0, failure=Failure(raised, lines=(SYMPTOMS[0][0],)))
    assert root_cause.follows(lost, DECIDED) == LOST
    assert root_cause.follows(here, DECIDED) == ""


def test_where_all_are_symptoms_the_first_of_them_is_shown() -> None:
    """It is better than nothing, and is not counted as a follower of itself."""
    cause = root_cause.find_root_cause(
        attempt(*(worker(rank, 1, 99 - rank, raised=SYMPTOMS[0][0]) for rank in range(3)))
    )

    assert cause is not None
    assert (cause.first and cause.first.rank, cause.followers) == (2, {LOST: 2})


def test_a_node_whose_records_cannot_be_seen() -> None:
    """What its agent told the others stands for them."""
    said = "rank 5 on gpu003 (local rank 1) failed with exit status 1: ValueError: unseen"
    cause = root_cause.find_root_cause(attempt(worker(0, 1, raised=SYMPTOMS[0][0]), ended(1), cause=said, by="gpu003"))

    assert cause is not None
    assert lines_mention(failure_messages.failure_block(cause), said, f"2 1 {ENDED} {LOST}")


@pytest.mark.parametrize("more", [{"ending": "done"}, {"ending": ""}, {"signal": "SIGTERM"}])
def test_no_cause_without_a_failure(more: dict[str, str]) -> None:
    """A run that goes on, ended well or was stopped has none."""
    assert root_cause.find_root_cause(attempt(ended(0), **more)) is None


def test_a_rank_that_hangs_in_the_kernel() -> None:
    """It cannot be killed and has no end; where the others have only waited for it, it is the cause."""
    hangs = worker(3, None, None, told="SIGKILL", failure=Failure(hung="nfs4_wait"))
    cause = root_cause.find_root_cause(attempt(worker(0, 1, raised=SYMPTOMS[5][0]), ended(1), hangs))

    assert cause is not None
    assert cause.first == hangs
    assert mentions(failure_messages.failure_headline(cause), "3 gpu002 1 kernel nfs4_wait")
    assert cause.followers == {WAITED: 1, ENDED: 1}


def test_lines_of_the_device_are_shown() -> None:
    """What a library says of a GPU is shown, once."""
    failure = Failure(lines=("last", "CUDA error: x"), gpu=("NCCL WARN y", "CUDA error: x"), log="rank.out")
    cause = root_cause.find_root_cause(attempt(worker(2, 1, failure=failure, device="GPU 3")))

    assert cause is not None
    assert lines_mention(
        failure_messages.failure_block(cause)[1:],
        "GPU 3",
        "NCCL WARN y",
        "rank.out",
        "last",
        "CUDA error: x",
    )


@given(seed=st.integers(0, 10_000), offset=st.floats(-1e6, 1e6))
def test_whatever_the_order_of_records(seed: int, offset: float) -> None:
    """The cause does not depend on the order of the workers, nor on when it all was."""
    workers = [
        worker(0, 1, 99.0, raised=SYMPTOMS[0][0]),
        ended(1),
        worker(2, 1, 99.9, raised="ValueError: x"),
        worker(3, 7),
    ]
    random.Random(seed).shuffle(workers)
    moved = attempt(*workers, begin=offset)
    cause = root_cause.find_root_cause(moved)

    assert cause is not None
    assert [group.first.rank for group in cause.groups] == [2, 3]


def test_causes_of_a_job(tmp_path: Path) -> None:
    """Every attempt of a history that failed has the cause that it had, whatever the clocks say."""
    made = Made(nodes=4, attempts=4, requeues=(1,), fails={0: 3, 1: 12, 2: 6}, offsets={1: 90.0, 3: -7200.0})
    told = history.read_history(histories.write(tmp_path / "job", made))
    found = [root_cause.root_cause_of(told, one) for one in told.attempts]

    assert [cause.first.rank if cause and cause.first else None for cause in found] == [3, 12, 6, None]
    assert all(sum(cause.followers.values()) == 15 for cause in found if cause)
