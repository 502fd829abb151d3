"""Whose word counts for a submission, and what files may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.settings import files
from hpc_launch.submission import asked
from hpc_launch.submission.options import OPTIONS, SHORT
from tests.support import mentions

PROJECT, USER, SITE = "project/hpc-launch.toml", "home/.config/hpc-launch/config.toml", "etc/config.toml"


def heard(
    place: Path,
    flags: dict[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    partition: str = "",
    profile: str = "",
) -> asked.Asked:
    layers = files.load({"HOME": str(place / "home")}, place / "project", profile, place / "etc").layers
    return asked.resolve(flags or {}, environ or {}, layers, partition)


def write(place: Path, where: str, text: str) -> None:
    (place / where).parent.mkdir(parents=True, exist_ok=True)
    (place / where).write_text(text)


def test_the_strongest_voice_wins(tmp_path: Path) -> None:
    """Flag > variable > profile > project > user > site; and it is known where each value is from."""
    write(tmp_path, PROJECT, '[submit]\nqos = "project"\n[profiles.p.submit]\nqos = "profile"\n')
    write(tmp_path, USER, '[submit]\nqos = "user"\naccount = "user"\n')
    write(tmp_path, SITE, '[submit]\nqos = "site"\naccount = "site"\ncomment = "site"\n')
    variable = {"HPC_LAUNCH_SUBMIT_QOS": "variable"}

    assert heard(tmp_path, {"qos": "flag"}, variable, profile="p").text("qos") == "flag"
    assert heard(tmp_path, {}, variable, profile="p").text("qos") == "variable"
    assert heard(tmp_path, profile="p").text("qos") == "profile"
    assert heard(tmp_path).slurm() == {"account": "user", "qos": "project", "comment": "site"}
    assert heard(tmp_path).said["account"].place == f"{tmp_path}/{USER}: submit.account"


def test_a_partition_counts_before_what_is_said_for_all_in_one_file(tmp_path: Path) -> None:
    """But not before a stronger file; and only where the job is in it."""
    write(tmp_path, SITE, "[submit]\ntime = 60\n[submit.partitions.gpu]\ntime = 30\ngpus_per_node = 4\nmax-nodes = 2\n")
    assert (heard(tmp_path).slurm(), heard(tmp_path).limits()) == ({"time": "60"}, {})
    found = heard(tmp_path, partition="gpu")
    assert (found.slurm(), found.limits()["max-nodes"].value) == ({"gpus-per-node": "4", "time": "30"}, "2")

    write(tmp_path, USER, "[submit]\ntime = 90\n")
    assert heard(tmp_path, partition="gpu").text("time") == "90"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("nodes = 2", "2"),
        ('mem = ""', None),
        ("exclusive = true", ""),
        ("exclusive = false", None),
        ('exclude = ["a", "b[1-2]"]', "a,b[1-2]"),
        ('exclude = "a,b"', "a,b"),
        ('modules = ["a", "b c"]', ("a", "b c")),
        ('modules = "a, b"', ("a", "b")),
        ('setup = ["x, y"]', ("x, y")),
        ('setup = "one\\ntwo"', ("one", "two")),
    ],
)
def test_values_are_toml(tmp_path: Path, line: str, value: asked.Value) -> None:
    """Numbers, switches and lists are what they are in TOML, or the text that a flag would have."""
    write(tmp_path, PROJECT, f"[submit]\n{line}\n")
    found = heard(tmp_path).said[line.partition(" ")[0]].value

    assert found == ((value,) if line.startswith('setup = ["') else value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[submit]\npartion = 1", "'submit.partion' 'partition'?"),
        ("[submit]\nmax-nodes = 1", "'submit.max-nodes' 'nodes'?"),
        ("[submit.partitions.gpu]\nmax_node = 1", "'submit.partitions.gpu.max_node' 'max-nodes'?"),
        ("[submit.partitions.gpu]\nmax-nodes = 0", "submit.partitions.gpu.max-nodes 0 1"),
        ('[submit.partitions.gpu]\nmax-time = "x"', "submit.partitions.gpu.max-time 'x'"),
        ("[submit]\npartitions = 1", "submit.partitions [submit.partitions.NAME]"),
        ("[submit.partitions]\ngpu = 1", "submit.partitions.gpu"),
        ("submit = 1", "[submit]"),
        ("[submit]\nnodes = 1.5", "submit.nodes 1.5"),
        ("[submit]\nnodes = [1]", "submit.nodes [1]"),
        ("[submit]\nexclusive = 7", "submit.exclusive 7 true false"),
        ("[submit]\nmodules = [1]", "submit.modules [1] list"),
        ("[submit]\nmem-per-gpu = 1\nmem_per_gpu = 2", "submit.mem_per_gpu"),
        ('[submit]\ncomment = "a\\u0000"', "submit.comment"),
    ],
)
def test_what_a_file_cannot_say_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    """The message has the file, the key, and what is expected or nearest."""
    write(tmp_path, PROJECT, f"{text}\n")
    with pytest.raises(UsageError) as caught:
        heard(tmp_path, partition="gpu")
    assert str(caught.value).startswith(f"{tmp_path}/{PROJECT}: ")
    assert mentions(caught.value, message)


def test_a_mistake_does_not_hurt_a_run(tmp_path: Path) -> None:
    """A job that is running reads the same files, and does not look at this table."""
    write(tmp_path, PROJECT, "max-restarts = 1\n[submit]\nnonsense = 1\n")

    assert files.load({}, tmp_path / "project", "", tmp_path / "etc").layers[0].said["max_restarts"].value == 1


@pytest.mark.parametrize(
    ("weak", "strong", "left"),
    [
        ('gres = "gpu:4"', {"gpus-per-node": "2"}, {"gpus-per-node": "2"}),
        ("gpus-per-node = 4", {"gres": "gpu:2"}, {"gres": "gpu:2"}),
        ("gpus-per-node = 4", {"gres": "nvme:2"}, {"gpus-per-node": "4", "gres": "nvme:2"}),
        ('mem = "4G"', {"mem-per-cpu": "1G"}, {"mem-per-cpu": "1G"}),
        ("cpus-per-task = 4", {"cpus-per-gpu": "2"}, {"cpus-per-gpu": "2"}),
        ("", {"mem": "1", "mem-per-cpu": "1G"}, {"mem": "1", "mem-per-cpu": "1G"}),
    ],
)
def test_a_stronger_voice_replaces_what_means_the_same(
    tmp_path: Path, weak: str, strong: dict[str, str], left: dict[str, str]
) -> None:
    """What one voice says by two names is left to Slurm."""
    write(tmp_path, PROJECT, f"[submit]\n{weak}\n")

    assert heard(tmp_path, dict(strong)).slurm() == left


def test_relative_files_are_where_their_file_is(tmp_path: Path) -> None:
    write(tmp_path, PROJECT, '[submit]\nvenv = ".venv"\ntemplate = "./t.sbatch"\n')
    found = heard(tmp_path)

    assert found.text("venv") == str(tmp_path / "project/.venv")
    assert found.text("template") == str(tmp_path / "project/t.sbatch")
    assert heard(tmp_path, {"template": "cpu"}).text("template") == "cpu"


def test_an_overview_has_all_that_is_said(tmp_path: Path) -> None:
    """Variables, tables of partitions, the strongest of each."""
    write(tmp_path, PROJECT, "[submit]\nnodes = 2\nexclusive = true\n[submit.partitions.gpu]\nmax-nodes = 3\n")
    layers = files.load({}, tmp_path / "project", "", tmp_path / "etc").layers
    found = asked.overview({"HPC_LAUNCH_SUBMIT_NODES": "4"}, layers)

    assert {name: asked.plain(name.rpartition(".")[2], said.value) for name, said in found.items()} == {
        "nodes": "4",
        "exclusive": True,
        "partitions.gpu.max-nodes": 3,
    }


def test_short_forms_are_known() -> None:
    """Every short form leads to an option; -t is Slurm's in templates only."""
    assert set(SHORT.values()) <= {*OPTIONS}
    assert "-t" not in {option.short for option in OPTIONS.values()}
