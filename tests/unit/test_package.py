"""What is shipped: the wheel has everything that an installation needs."""

import json
import os
import subprocess
import sys
import tarfile
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


# Builds one of the distributions in the working directory, into the directory that is named.
BUILD = "import sys, hatchling.build as build; print(getattr(build, sys.argv[1])(sys.argv[2]))"

# Says which templates are found, by an installation in the directory that is named: before any other.
FIND = """
import json, os, site, sys
from pathlib import Path
known = [*sys.path]
site.addsitedir(sys.argv[1])
sys.path[:] = [path for path in sys.path if path not in known] + known
from hpc_launch.submission import templates
found = templates.find_templates({}, Path("/")).values()
print(json.dumps([templates.__file__, *(str(entry.path) for entry in found)]))
"""


def build(what: str, source: Path, folder: Path) -> Path:
    """Build an sdist, a wheel or an editable one, as pip has it built."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(folder)]
    done = subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    return folder / done.stdout.splitlines()[-1]


def found_by(archive: zipfile.ZipFile, folder: Path) -> list[Path]:
    """Install a wheel into a directory; return the module that looks for templates, and those that it finds."""
    archive.extractall(folder)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", FIND, str(folder)]
    done = subprocess.run(command, cwd="/", env=environ, check=True, capture_output=True, text=True)
    return [Path(path) for path in json.loads(done.stdout)]


def test_an_installation_finds_its_templates(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Of an installed wheel, they are those in the package."""
    module, *paths = found_by(wheel, tmp_path)

    assert module.is_relative_to(tmp_path)
    assert {path.parent for path in paths} == {tmp_path / "hpc_launch/sbatch_templates"}
    assert [path.name for path in paths] == sorted(path.name for path in ROOT.glob("sbatch_templates/*.sbatch"))


def test_an_editable_installation_finds_those_of_the_checkout(tmp_path: Path) -> None:
    """There a change of a template counts at once."""
    with zipfile.ZipFile(build("editable", ROOT, tmp_path)) as archive:
        module, *paths = found_by(archive, tmp_path / "site")

    assert module == ROOT / "hpc_launch/submission/templates.py"
    assert paths == sorted(ROOT.glob("sbatch_templates/*.sbatch"))


def test_the_sdist_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """The sources that are published have the templates too, and a wheel made of them has the same files."""
    with tarfile.open(build("sdist", ROOT, tmp_path)) as archive:
        if hasattr(tarfile, "data_filter"):  # missing in the first releases of Python 3.10 and 3.11, wanted by 3.12
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(tmp_path)
    (source,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    with zipfile.ZipFile(build("wheel", source, tmp_path)) as remade:
        assert sorted(remade.namelist()) == sorted(wheel.namelist())


def test_the_wheel_has_the_profiles(wheel: zipfile.ZipFile) -> None:
    """The profiles that come with hpc-launch are in the wheel, in the package."""
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("hpc_launch/profiles/*.toml")}

    assert expected
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_has_the_pages(wheel: zipfile.ZipFile) -> None:
    """The templates and the style of reports are in the wheel, in the package."""
    expected = {str(path.relative_to(ROOT)) for path in ROOT.glob("hpc_launch/inspection/templates/*")}

    assert {Path(name).suffix for name in expected} == {".css", ".jinja"}
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_has_the_entry_points(wheel: zipfile.ZipFile) -> None:
    """The command, and the rendezvous backend for torchrun, are declared and can be loaded."""
    declared = ConfigParser()
    declared.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())

    assert dict(declared["console_scripts"]) == {"hpc-launch": "hpc_launch.entry:main"}
    assert dict(declared["torchrun.handlers"]) == {"slurm": "hpc_launch.rendezvous.torchrun_plugin:entry_point"}


def test_the_dependencies_are_those_of_the_design(wheel: zipfile.ZipFile) -> None:
    """An installation pulls in what the design names, and nothing else."""
    metadata = wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))).decode()
    lines = [line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")]
    names = [line.partition(">")[0] for line in lines if "extra ==" not in line]
    expected = [
        "click",
        "cloudpickle",
        "jinja2",
        "psutil",
        "python-hostlist",
        "setproctitle",
        "submitit",
        "threadpoolctl",
        "tomli",
        "torch",
    ]

    assert expected == sorted(names)
    assert [line for line in lines if line.startswith("tomli")] == ["tomli>=2; python_version < '3.11'"]
