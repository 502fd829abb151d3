"""Results that cannot be read here: they are named, and hide those of no other rank."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hpc_launch import file_ownership
from hpc_launch.api import remote_exception, results
from hpc_launch.errors import CallError, JobFailed, ResultError, UsageError
from hpc_launch.records.directory import JobDirectory
from tests.support import mentions


def missing_class() -> bytes:
    """A pickle of an object whose module is not here any more."""
    module = ModuleType("only_there")
    module.Thing = type("Thing", (), {"__module__": "only_there"})  # type: ignore[attr-defined]
    sys.modules["only_there"] = module
    try:
        return pickle.dumps(module.Thing())
    finally:
        del sys.modules["only_there"]


class Thrower:
    """An object that cannot be made again."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return eval, ("1 / 0",)


HEADER = pickle.dumps({"world_size": 4})
BROKEN = {
    "another class": HEADER + missing_class(),
    "truncated": HEADER + pickle.dumps(list(range(1000)))[:100],
    "header only": HEADER,
    "half a header": HEADER[:5],
    "empty": b"",
    "no pickle": b"\x00\xff not a pickle",
    "other pickle": pickle.dumps([1, 2]),
    "raises": HEADER + pickle.dumps(Thrower()),
}


def write(job: JobDirectory, rank: int, data: bytes) -> Path:
    path = job.rank(0, f"n{rank // 2}", rank).result
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("rank", [0, 3])
def test_an_unreadable_result_hides_no_other(tmp_path: Path, how: str, rank: int) -> None:
    """The error names rank and file, and has the results of the others; each can be had alone."""
    job = JobDirectory(tmp_path, "1.0")
    paths = [write(job, number, HEADER + pickle.dumps(number * 10)) for number in range(4)]
    write(job, rank, BROKEN[how])
    others = {number: number * 10 for number in range(4) if number != rank}
    with pytest.raises(ResultError) as refused:
        results.read_results(job, "1", functions=True, patience=0)
    with pytest.raises(ResultError) as alone:
        results.read_result(job, "1", rank, functions=True, patience=0)

    error = refused.value
    assert isinstance(error, CallError)
    assert mentions(error, "1:", f"rank {rank}", f"({paths[rank]})", "'results' 3")
    assert len(str(error).splitlines()) == 1
    assert (error.results, error.files, list(error.errors)) == (others, {rank: paths[rank]}, [rank])
    assert alone.value.files == {rank: paths[rank]}
    assert {number: results.read_result(job, "1", number, functions=True, patience=0) for number in others} == others


def test_all_results_may_be_unreadable(tmp_path: Path) -> None:
    """Without one that says how many there are, and without a plan."""
    job = JobDirectory(tmp_path, "1.0")
    write(job, 0, b"")
    write(job, 1, b"")
    with pytest.raises(ResultError) as refused:
        results.read_results(job, "1", functions=True, patience=0)

    assert (refused.value.results, sorted(refused.value.files)) == ({}, [0, 1])


def test_a_result_that_is_missing_hides_no_other(tmp_path: Path) -> None:
    """It is missing only for whoever asks for it, or for all."""
    job = JobDirectory(tmp_path, "1.0")
    write(job, 1, HEADER + pickle.dumps("one"))

    assert results.read_result(job, "1", 1, functions=True, patience=0) == "one"
    with pytest.raises(JobFailed) as refused:
        results.read_result(job, "1", 2, functions=True, patience=0)
    assert mentions(refused.value, "rank 2")
    for rank in (4, -1, "1"):
        with pytest.raises(UsageError, match=rf"{rank!r}.*\b0 to 3\b"):
            results.read_result(job, "1", rank, functions=True, patience=0)  # type: ignore[arg-type]


def test_of_other_results_no_more_than_the_header_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To know how many ranks there are: each of them may be as large as `max_pickle_mb`."""
    job = JobDirectory(tmp_path, "1.0")
    large = [write(job, rank, HEADER + pickle.dumps(bytes([rank]) * 100_000)) for rank in range(4)]
    read: list[tuple[Path, int]] = []

    def read_own(path: Path, top: Path | None = None, most: int = -1) -> bytes:
        data = file_ownership.read_own(path, top, most)
        read.append((path, len(data)))
        return data

    monkeypatch.setattr(results, "read_own", read_own)

    assert results.read_result(job, "1", 3, functions=True, patience=0) == b"\x03" * 100_000
    assert [path for path, size in read if size > 10_000] == [large[3]]


@pytest.mark.parametrize("data", [b"", b"\x80", b"cno.such\nmodule\n.", pickle.dumps(3), pickle.dumps({"rank": 1})])
def test_an_unreadable_exception_is_none(tmp_path: Path, data: bytes) -> None:
    """The cause of the failure does not depend on it."""
    (tmp_path / "raised.pkl").write_bytes(data)

    assert remote_exception.read_exception(tmp_path / "raised.pkl", tmp_path) is None
