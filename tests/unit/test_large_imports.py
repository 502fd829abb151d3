"""Large packages are imported without garbage collection, and nothing else is."""

import gc
from collections.abc import Iterator

import pytest

from hpc_launch import imports


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """Return the collections that are seen from now on; in the end all is as it was."""
    seen: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.unfreeze()
    gc.enable()


def make_objects() -> list[list[int]]:
    """Make more objects than any threshold of the collector allows."""
    return [[] for _ in range(10 * gc.get_threshold()[0])]


def test_nothing_is_collected_meanwhile(collections: list[str]) -> None:
    """What is made there is not looked at, there or later; what is made afterwards is."""
    with imports.without_garbage_collection():
        kept = make_objects()
    assert (collections, gc.isenabled(), gc.get_freeze_count() >= len(kept)) == ([], True, True)
    make_objects()
    assert collections


def test_an_import_that_fails_leaves_collection_on(collections: list[str]) -> None:
    """An exception ends it as well."""
    with pytest.raises(ImportError), imports.without_garbage_collection():
        raise ImportError
    make_objects()
    assert collections


def test_collection_that_is_off_stays_off(collections: list[str]) -> None:
    """Who has switched it off has a reason."""
    gc.disable()
    with imports.without_garbage_collection():
        make_objects()
    make_objects()
    assert (gc.isenabled(), collections) == (False, [])
