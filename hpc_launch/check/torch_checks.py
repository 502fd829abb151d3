"""What needs torch: does every device compute, and do all ranks reduce?

torch is imported once on a node, and each rank is forked from there, before anything has touched a device. A rank that
hangs in a driver hangs alone: it is given up after a time, and killed if it can be.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from hpc_launch import codec, imports, torch_release
from hpc_launch.check.evidence import Device, TorchFacts
from hpc_launch.codec import CodecError
from hpc_launch.node.devices import Devices

# The side of the matrices that are multiplied, and how many numbers are summed up.
_SIDE = 256
_LENGTH = 1024

_ACCELERATORS = ("cuda", "xpu")


@dataclass(frozen=True)
class Ranks:
    """The ranks of this node.

    Attributes:
        count: how many.
        devices: what they may use.
        isolated: each is shown its own device only.
        interface: the network to use; empty leaves it to the libraries.
    """

    count: int = 1
    devices: Devices = field(default_factory=Devices)
    isolated: bool = False
    interface: str = ""


@dataclass(frozen=True)
class ReductionGroup:
    """The ranks that reduce together, as one of their nodes sees it.

    Attributes:
        backend: torch.distributed's.
        address, port: of the store.
        first: the first rank of this node.
        size: how many ranks there are.
        listener: a listening socket for the store, on the first node.
    """

    backend: str
    address: str
    port: int
    first: int
    size: int
    listener: socket.socket | None = None


@dataclass(frozen=True)
class _RankAnswer:
    """What a rank says of its turn.

    Attributes:
        error: what went wrong; empty if all is well.
        kind, count: where its process can compute, and on how many devices.
        device: what it has used.
    """

    error: str = ""
    kind: str = "cpu"
    count: int = 0
    device: Device | None = None


def check_devices(ranks: Ranks, patience: float, doing: Callable[[str], None]) -> TorchFacts:
    """Import torch, and let each rank use its device.

    Args:
        ranks: of this node.
        patience: seconds for the devices; the import takes as long as it takes.
        doing: is told when the devices' turn has come.
    """
    try:
        with imports.without_garbage_collection():
            import torch  # noqa: PLC0415 - this is where it is seen whether it can be imported
    except BaseException as error:  # noqa: BLE001 - a broken library may raise anything, SystemExit too
        return TorchFacts(error=f"{type(error).__name__}: {error}".strip().partition("\n")[0])
    version = torch.version
    built_for = "CPUs"
    if version.cuda:
        built_for = f"CUDA {version.cuda}"
    elif getattr(version, "hip", None):
        built_for = f"ROCm {version.hip}"
    elif getattr(version, "xpu", None):
        built_for = f"XPU {version.xpu}"
    doing("using its devices")
    said = _in_ranks(ranks, lambda rank: _use_device(ranks, rank), patience)
    known = [answer for answer in said if answer.device is not None]
    return TorchFacts(
        version=str(torch.__version__),
        built_for=built_for,
        kind=known[0].kind if known else "cpu",
        count=(sum if ranks.isolated else max)([0, *(answer.count for answer in known)]),
        devices=tuple(answer.device or Device(error=answer.error) for answer in said),
    )


def check_reduction(ranks: Ranks, group: ReductionGroup, patience: float) -> str:
    """Sum up over all ranks of a group; returns what went wrong, nothing if this node's ranks have the right sum."""
    said = _in_ranks(ranks, lambda rank: _reduce(ranks, group, rank, patience), patience)
    errors = [f"rank {group.first + rank}: {answer.error}" for rank, answer in enumerate(said) if answer.error]
    return errors[0] if errors else ""


# --- in the ranks


def _kind() -> tuple[str, int]:
    """Where this process can compute, and on how many devices."""
    import torch  # noqa: PLC0415 - as above

    for kind in _ACCELERATORS:
        module = getattr(torch, kind, None)
        if module is not None and module.is_available():
            return kind, module.device_count()
    return "cpu", 0


def _device(ranks: Ranks, rank: int, kind: str) -> str:
    return "cpu" if kind == "cpu" else f"{kind}:{0 if ranks.isolated else rank}"


def _use_device(ranks: Ranks, rank: int) -> _RankAnswer:
    """Multiply two matrices on the device of a rank."""
    import torch  # noqa: PLC0415 - as above

    kind, count = _kind()
    where = _device(ranks, rank, kind)
    name, free, total = "", None, None
    if kind != "cpu":
        module = getattr(torch, kind)
        name = str(module.get_device_name(where))
        if kind == "cuda":
            free, total = module.mem_get_info(where)
    ones = torch.ones(_SIDE, _SIDE, device=where)
    found = float((ones @ ones).sum())
    wrong = "" if found == float(_SIDE**3) else f"a matrix product is wrong: its sum is {found:g}, not {_SIDE**3}"
    return _RankAnswer(kind=kind, count=count, device=Device(name, wrong, free, total))


def _reduce(ranks: Ranks, group: ReductionGroup, rank: int, patience: float) -> _RankAnswer:
    """Sum up as one rank."""
    import torch  # noqa: PLC0415 - as above
    import torch.distributed as dist  # noqa: PLC0415 - as above

    here = group.first + rank
    limit = timedelta(seconds=patience)
    listening = group.listener if rank == 0 else None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        group.address,
        group.port,
        group.size,
        listening is not None,
        limit,
        wait_for_workers=False,
        master_listen_fd=None if listening is None else listening.detach(),
        use_libuv=torch_release.libuv_takes_sockets(torch.__version__),
    )
    where = _device(ranks, rank, _kind()[0]) if group.backend != "gloo" else "cpu"
    if where.startswith("cuda"):
        torch.cuda.set_device(where)
    dist.init_process_group(group.backend, store=store, rank=here, world_size=group.size, timeout=limit)
    numbers = torch.full((_LENGTH,), float(here + 1), device=where)
    dist.all_reduce(numbers)
    expected, found = group.size * (group.size + 1) / 2, float(numbers.max())
    # The store is in the first rank, and whoever ends while others still ask it lets them fail.
    store.set(f"done/{here}", "1")
    if listening is not None:
        store.wait([f"done/{other}" for other in range(group.size)], limit)
    return _RankAnswer("" if found == expected else f"the sum is {found:g}, not {expected:g}")


# --- forking them


def _in_ranks(ranks: Ranks, what: Callable[[int], _RankAnswer], patience: float) -> list[_RankAnswer]:
    """Do something in a process for each rank of this node; the answers, or errors, in their order."""
    answers = [_RankAnswer() for _ in range(ranks.count)]
    with selectors.DefaultSelector() as selector:
        pids = {}
        for rank in range(ranks.count):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(ours)
                _be(ranks, rank, what, theirs)
            os.close(theirs)
            pids[rank] = pid
            selector.register(ours, selectors.EVENT_READ, (rank, bytearray()))
        _gather(selector, answers, time.monotonic() + patience + 1)
        for key in [*selector.get_map().values()]:
            rank, _ = key.data
            answers[rank] = _RankAnswer(f"no answer in {patience:g} s")
            os.kill(pids[rank], signal.SIGKILL)
            os.close(key.fd)
    for pid in pids.values():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return answers


def _gather(selector: selectors.BaseSelector, answers: list[_RankAnswer], deadline: float) -> None:
    while selector.get_map() and (left := deadline - time.monotonic()) > 0:
        for key, _ in selector.select(left):
            rank, heard = key.data
            piece = os.read(key.fd, 1 << 16)
            heard += piece
            if not piece:
                selector.unregister(key.fd)
                os.close(key.fd)
                answers[rank] = _heard(bytes(heard))


def _heard(data: bytes) -> _RankAnswer:
    try:
        return codec.read(_RankAnswer, data)
    except CodecError:
        return _RankAnswer("it died without a word" if not data else "it died in the middle of a word")


def _be(ranks: Ranks, rank: int, what: Callable[[int], _RankAnswer], answer: int) -> None:
    """Be a rank: do it, say what came of it, and end at once, without whatever libraries do at the end."""
    try:
        try:
            _dress(ranks, rank)
            said = what(rank)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            said = _RankAnswer(_first_line(error))
        text = codec.write(said).encode()
        while text:
            text = text[os.write(answer, text) :]
    finally:
        os._exit(0)


def _first_line(error: BaseException) -> str:
    """What an error says first, without the C++ stack that torch adds."""
    text = str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def _dress(ranks: Ranks, rank: int) -> None:
    """Set the variables that the launcher sets for its workers, as far as these processes look at them."""
    if ranks.interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", ranks.interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={ranks.interface}")
    if ranks.isolated and ranks.devices.variable:
        os.environ[ranks.devices.variable] = ranks.devices.tokens[rank]
