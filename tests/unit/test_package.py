"""What is shipped: the wheel has everything that an installation needs."""

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True, capture_output=True, text=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_all_modules_and_its_types(wheel: zipfile.ZipFile) -> None:
    """Every module of the checkout is in the wheel, and the mark that says that they are typed."""
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("hpc_launch/**/*.py")} | {"hpc_launch/py.typed"}

    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_has_the_templates(wheel: zipfile.ZipFile) -> None:
    """The job templates are in the wheel, under the package."""
    expected = {f"hpc_launch/sbatch_templates/{path.name}" for path in ROOT.glob("sbatch_templates/*.sbatch")}

    assert expected
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_has_the_profiles(wheel: zipfile.ZipFile) -> None:
    """The profiles that come with hpc-launch are in the wheel, in the package."""
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("hpc_launch/profiles/*.toml")}

    assert expected
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_has_the_entry_points(wheel: zipfile.ZipFile) -> None:
    """The command, and the rendezvous backend for torchrun, are declared and can be loaded."""
    declared = ConfigParser()
    declared.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())

    assert dict(declared["console_scripts"]) == {"hpc-launch": "hpc_launch.cli:main"}
    assert dict(declared["torchrun.handlers"]) == {"slurm": "hpc_launch.elastic.plugin:entry_point"}


def test_the_dependencies_are_those_of_the_design(wheel: zipfile.ZipFile) -> None:
    """An installation pulls in what the design names, and nothing else."""
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    lines = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    names = [line.partition(">")[0] for line in lines if "extra ==" not in line]
    expected = ["click", "psutil", "python-hostlist", "setproctitle", "submitit", "threadpoolctl", "tomli", "torch"]

    assert expected == sorted(names)
    assert [line for line in lines if line.startswith("tomli")] == ["tomli>=2; python_version < '3.11'"]
