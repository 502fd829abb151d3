"""Whose word counts for a submission, and what files may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpc_launch.errors import UsageError
from hpc_launch.settings import settings_files, specs, toml_writer
from hpc_launch.slurm.directives import LETTERS
from hpc_launch.submission import submit_resolution
from hpc_launch.submission.submit_options import OF_A_PARTITION, OPTIONS
from tests.support import mentions

PROJECT, USER, SITE = "project/hpc-launch.toml", "home/.config/hpc-launch/config.toml", "etc/config.toml"


def heard(
    place: Path,
    flags: dict[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    partition: str = "",
    profile: str = "",
) -> submit_resolution.SubmitSettings:
    layers = settings_files.load_settings_files(
        {"HOME": str(place / "home")}, place / "project", profile, place / "etc"
    ).layers
    return submit_resolution.resolve_submit(flags or {}, environ or {}, layers, partition)


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
    assert heard(tmp_path).resolved["account"].place == f"{tmp_path}/{USER}: submit.account"


def test_a_partition_counts_before_what_is_said_for_all_in_one_file(tmp_path: Path) -> None:
    """But not before a stronger file; and only where the job is in it."""
    write(tmp_path, SITE, "[submit]\ntime = 60\n[submit.partitions.gpu]\ntime = 30\ngpus_per_node = 4\nmax-nodes = 2\n")
    assert (heard(tmp_path).slurm(), heard(tmp_path).limits()) == ({"time": "60"}, {})
    found = heard(tmp_path, partition="gpu")
    assert (found.slurm(), found.limits()["max-nodes"].value) == ({"gpus-per-node": "4", "time": "30"}, 2)

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
        ('exclude = [1, "b"]', "1,b"),
        ('exclude = "a,b"', "a,b"),
        ("exclude = []", None),
        ("exclusive = 1", ""),
        ("exclusive = 'no'", None),
    ],
)
def test_values_are_toml(tmp_path: Path, line: str, value: str | None) -> None:
    """Numbers, switches and lists are what they are in TOML, or the text that a flag would have."""
    write(tmp_path, PROJECT, f"[submit]\n{line}\n")

    assert heard(tmp_path).slurm() == {line.partition(" ")[0]: value}


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ('modules = ["a", "b c"]', ("a", "b c")),
        ('modules = "a, b"', ("a", "b")),
        ("modules = []", ()),
        ('setup = ["x, y"]', ("x, y",)),
        ('setup = "one\\ntwo"', ("one", "two")),
    ],
)
def test_several_values_are_a_list_or_a_text(tmp_path: Path, line: str, values: tuple[str, ...]) -> None:
    """Words of a text are separated by commas, lines by line breaks."""
    write(tmp_path, PROJECT, f"[submit]\n{line}\n")

    assert heard(tmp_path).many(line.partition(" ")[0]) == values


def test_repeated_flags_are_one_value() -> None:
    """Slurm's lists are joined by commas, words may be separated by them, and lines stay as they are."""
    flags = {"partition": ("a", "b,c"), "modules": ("m, n", "o"), "setup": ("x, y", " z")}
    found = submit_resolution.resolve_submit(flags, {}, ())

    assert found.slurm() == {"partition": "a,b,c"}
    assert (found.many("modules"), found.many("setup")) == (("m", "n", "o"), ("x, y", " z"))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_flag_and_a_variable(name: str) -> None:
    """Both are read by the same reader, and the place of each is known."""
    option, text = OPTIONS[name], "1"
    variable = f"HPC_LAUNCH_SUBMIT_{name.upper().replace('-', '_')}"
    by_flag, by_variable = (
        submit_resolution.resolve_submit({name: text}, {}, ()),
        submit_resolution.resolve_submit({}, {variable: text}, ()),
    )

    assert [*option.variables] == [variable]
    assert by_flag.resolved[name].value == by_variable.resolved[name].value
    assert (by_flag.resolved[name].place, by_variable.resolved[name].place) == (f"--{name}", variable)


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
        ("[submit]\nmem-per-gpu = 1\nmem_per_gpu = 2", "submit.mem-per-gpu mem_per_gpu"),
        ('[submit]\ncomment = "a\\u0000"', "submit.comment"),
        (f"[submit]\nnodes = 0x{'f' * 5000}", "submit.nodes"),
        ("[submit]\nexclusive = 'x'", "submit.exclusive 'x' 1 0"),
        ("[submit]\ngres = [1.5]", "submit.gres [1.5] list"),
        ("[submit.partitions.gpu]\npartition = 'x'", "'submit.partitions.gpu.partition'"),
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
    for mistake in ("[submit]\nnonsense = 1\n", "submit = 1\n"):
        write(tmp_path, PROJECT, f"max-restarts = 1\n{mistake}")

        assert (
            settings_files.load_settings_files({}, tmp_path / "project", "", tmp_path / "etc")
            .layers[0]
            .entries["max_restarts"]
            .value
            == 1
        )


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
    layers = settings_files.load_settings_files({}, tmp_path / "project", "", tmp_path / "etc").layers
    found = submit_resolution.submit_overview({"HPC_LAUNCH_SUBMIT_NODES": "4"}, layers)

    assert {name: toml_writer.toml_value(item.value) for name, item in found.items()} == {
        "nodes": "4",
        "exclusive": True,
        "partitions.gpu.max-nodes": 3,
    }


def test_nothing_has_two_meanings() -> None:
    """A key leads to one option, and a variable to one option of a run or of a submission."""
    keys = [key for option in OF_A_PARTITION.values() for key in option.keys]
    variables = [variable for table in (OPTIONS, specs()) for option in table.values() for variable in option.variables]

    assert len(keys) == len({*keys})
    assert len(variables) == len({*variables})


def test_short_forms_are_slurm_s() -> None:
    """Every short form means what it does to sbatch; -t is Slurm's in templates only."""
    short = {flag: name for name, option in OPTIONS.items() for flag in option.flags if flag != option.flag}

    assert short == {flag: LETTERS[flag[1:]] for flag in short}
    assert "-t" not in short
