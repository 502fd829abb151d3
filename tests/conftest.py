"""The fixtures that every test may use."""

import os
import re
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from hpc_launch.settings import settings_files
from tests import browser
from tests.cluster import Cluster, ClusterConfig, why_unavailable
from tests.cluster.releases import DEFAULT, NEWEST, Release

# How workers start in all tests that do not say it themselves: the suite is to pass with either start.
START = os.environ.get("HPC_LAUNCH_TEST_START")

# A busy machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

# The fixtures that return a cluster.
CLUSTERS = (
    "cluster",
    "modern_cluster",
    "any_cluster",
    "newest_cluster",
    "some_cluster",
    "accounting_cluster",
    "modern_accounting_cluster",
    "any_accounting_cluster",
)

# Whether tests that need a cluster fail where none can run, instead of being skipped.
REQUIRED = bool(os.environ.get("CI") or os.environ.get("HPC_LAUNCH_REQUIRE_CLUSTER"))

# What a launcher, Slurm or a user's shell may have set: tests set what they need themselves.
FOREIGN = re.compile(
    r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SINFO|SQUEUE|SACCT|PET|HPC_LAUNCH|MASTER|TORCHELASTIC|NCCL|GLOO|TORCH_NCCL)_.*"
    r"|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|OMP_NUM_THREADS|CUDA_VISIBLE_DEVICES",
)


# What takes longest goes first where several processes share the tests, so that none is left with it in the end.
ORDER = ("slurm", "local", "conformance", "unit")
LONGEST_UNIT = "test_elastic_rendezvous"  # whose tests mostly wait


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need a cluster, and have the long ones first if this process does a share of the tests."""
    for item in items:
        if {"slurm_host", "any_release", *CLUSTERS} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slurm")
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, bool]:
    """When a test comes, from its folder and file."""
    folder = item.path.parent.name
    return (*ORDER, folder).index(folder), item.path.stem != LONGEST_UNIT


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Say how many processes share the tests: two more than there are CPUs, as many tests wait rather than compute."""
    return min(len(os.sched_getaffinity(0)) + 2, 6)


@pytest.fixture(autouse=True, scope="session")
def interrupts() -> None:
    """Let children see signals as in a terminal: a shell's background has SIGINT ignored, and nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tests independent of the environment that they were started in."""
    for name in list(os.environ):
        if FOREIGN.fullmatch(name):
            monkeypatch.delenv(name)
    # Whoever looks up an address without a name here, as torch does of all that connect, is not to wait for long where
    # the name server is not to be reached (resolv.conf(5)).
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    if START is not None:
        monkeypatch.setenv("HPC_LAUNCH_START", START)


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Refuse to test where files outside of the tests have settings that could not be kept out of child processes."""
    folder = tmp_path_factory.mktemp("nothing")
    for place in (folder, Path(__file__).parent):
        environ = {"HOME": os.environ.get("HOME", ""), "XDG_CONFIG_HOME": str(folder)}
        there = [
            entry.path for entry in settings_files.load_settings_files(environ, place).looked if entry.found == "found"
        ]
        if there:
            pytest.exit(f"these settings would change what is tested: {', '.join(map(str, there))}", returncode=1)


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the settings and the key of this user out of the tests, and the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "no-settings"))
        yield


@pytest.fixture
def python() -> str:
    """Return the Python that runs the tests: the one in which hpc-launch is installed."""
    return sys.executable


@pytest.fixture(scope="session")
def slurm_host() -> None:
    """Need a machine that can run clusters: a test that starts its own cluster asks for this."""
    _need(ClusterConfig())


def _need(config: ClusterConfig) -> None:
    reason = why_unavailable(config)
    if reason and REQUIRED:
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def require_browser() -> None:
    """Need a browser: tools/install_browser.sh installs one."""
    if browser.program() is None:
        (pytest.fail if REQUIRED else pytest.skip)(f"none of {', '.join(browser.PROGRAMS)} is installed")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Return the cluster: four nodes of four GPUs, started when the first test asks for it."""
    yield from _up(ClusterConfig())


@pytest.fixture(scope="session")
def modern_cluster() -> Iterator[Cluster]:
    """Return a cluster like `cluster` of the newest release of Slurm that there is."""
    yield from _up(ClusterConfig(release=NEWEST))


@pytest.fixture(scope="module", params=sorted({DEFAULT, NEWEST}))
def any_release(request: pytest.FixtureRequest) -> Release:
    """Return a release of Slurm and then another: for tests that start a cluster of their own."""
    release: Release = request.param
    _need(ClusterConfig(release=release))
    return release


@pytest.fixture(scope="module")
def any_cluster(any_release: Release, request: pytest.FixtureRequest) -> Cluster:
    """Return `cluster` and then `modern_cluster`: a test that asks for this runs on both."""
    cluster: Cluster = request.getfixturevalue("cluster" if any_release == DEFAULT else "modern_cluster")
    return cluster


@pytest.fixture(scope="module", params=[NEWEST, pytest.param(DEFAULT, marks=pytest.mark.soak)])
def newest_cluster(request: pytest.FixtureRequest) -> Cluster:
    """Return `modern_cluster`, and in the soak `cluster` as well: for runs that tests of a module share."""
    cluster: Cluster = request.getfixturevalue("cluster" if request.param == DEFAULT else "modern_cluster")
    return cluster


@pytest.fixture(params=[pytest.param(0, id="one"), pytest.param(1, id="other", marks=pytest.mark.soak)])
def some_cluster(request: pytest.FixtureRequest) -> Cluster:
    """Return `cluster` or `modern_cluster`, by the test's name: half of such tests run on either, for half the time.

    For what does not depend on the release. The soak runs each test on the other release as well.
    """
    modern = (zlib.crc32(request.node.name.replace("other", "one").encode()) + request.param) % 2
    cluster: Cluster = request.getfixturevalue("modern_cluster" if modern else "cluster")
    return cluster


@pytest.fixture(scope="session")
def accounting_cluster() -> Iterator[Cluster]:
    """Return a cluster with accounting: sacct works there."""
    yield from _up(ClusterConfig(nodes=2, accounting=True))


@pytest.fixture(scope="session")
def modern_accounting_cluster() -> Iterator[Cluster]:
    """Return a cluster like `accounting_cluster` of the newest release of Slurm that there is."""
    yield from _up(ClusterConfig(nodes=2, accounting=True, release=NEWEST))


@pytest.fixture(scope="module")
def any_accounting_cluster(any_release: Release, request: pytest.FixtureRequest) -> Cluster:
    """Return `accounting_cluster` and then `modern_accounting_cluster`."""
    name = "accounting_cluster" if any_release == DEFAULT else "modern_accounting_cluster"
    cluster: Cluster = request.getfixturevalue(name)
    return cluster


def _up(config: ClusterConfig) -> Iterator[Cluster]:
    _need(config)
    with Cluster(config) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _tidy_clusters(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave clusters as they were found: whatever a test does to one, the next finds it idle."""
    used: list[Cluster] = [request.getfixturevalue(name) for name in CLUSTERS if name in request.fixturenames]
    yield
    for cluster in used:
        cluster.reset()
