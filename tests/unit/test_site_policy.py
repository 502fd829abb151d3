"""The site's policy: who can set it, what it forbids, and where that is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpc_launch.cli import cli
from hpc_launch.errors import UsageError
from hpc_launch.settings import Origin, Settings, resolve, settings_files
from hpc_launch.settings.layer import Table, layer_of
from tests.support import mentions

SITE = "/etc/hpc-launch/config.toml"


def settings(policy: Mapping[str, Any], flags: Mapping[str, str | bool] | None = None, **more: Any) -> Settings:
    """The settings of a run at a site with this policy; `more` is what the site's file sets besides."""
    return resolve(flags or {}, {}, [layer_of(Origin.SITE, Table(SITE, "", {**more, "policy": policy}))])


def refused(policy: Mapping[str, Any], flags: Mapping[str, str | bool] | None = None, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        settings(policy, flags, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("policy", "flags", "words"),
    [
        (
            {"insecure_rendezvous": False},
            {"insecure_rendezvous": True},
            f"--insecure-rendezvous {SITE} policy.insecure_rendezvous",
        ),
        (
            {"max-restarts": 3},
            {"max_restarts": "4"},
            f"--max-restarts 4 3 {SITE} policy.max-restarts",
        ),
        (
            {"max_requeues": 0},
            {"max_requeues": "1"},
            f"--max-requeues 1 0 {SITE} policy.max_requeues",
        ),
        (
            {"port_range": "20000-20999"},
            {"port_range": "20500-21000"},
            f"--port-range 20500-21000 20000-20999 {SITE} policy.port_range",
        ),
        (
            {"port_range": "20000-20999"},
            {"master_port": "29500"},
            f"--master-port 29500 20000-20999 {SITE} policy.port_range",
        ),
    ],
)
def test_what_a_policy_forbids_is_refused(
    policy: Mapping[str, Any], flags: Mapping[str, str | bool], words: str
) -> None:
    """The line names what was asked for, the file and the key."""
    assert mentions(refused(policy, flags), words)


@pytest.mark.parametrize(
    ("policy", "flags"),
    [
        ({"insecure_rendezvous": True}, {"insecure_rendezvous": True}),
        ({"insecure_rendezvous": False}, {}),
        ({"max_restarts": 3}, {"max_restarts": "3"}),
        ({"port_range": "20000-20999"}, {"port_range": "20100-20199"}),
        ({"port_range": "20000-20999"}, {"master_port": "20999"}),
        ({}, {"insecure_rendezvous": True, "max_restarts": "1000", "port_range": "1024-65535"}),
    ],
)
def test_what_a_policy_allows(policy: Mapping[str, Any], flags: Mapping[str, str | bool]) -> None:
    """Whatever stays within the limits is as it was asked for."""
    made, free = settings(policy, flags), resolve(flags, {})

    assert {name: getattr(made, name) for name in flags} == {name: getattr(free, name) for name in flags}


def test_defaults_give_way_to_a_policy() -> None:
    """A run that asks for nothing is within the limits, and the origin of its values is the policy."""
    made = settings({"max_requeues": 2, "port_range": "20000-20999"})

    assert (made.max_requeues, made.port_range) == (2, range(20000, 21000))
    assert made.origin("max_requeues") is Origin.SITE
    assert made.places["port_range"] == f"{SITE}: policy.port_range"


def test_a_policy_holds_for_the_sites_own_settings() -> None:
    """The same file cannot set what it forbids."""
    assert mentions(refused({"max_restarts": 1}, max_restarts=2), f"{SITE} max_restarts 2 1 policy.max_restarts")


@pytest.mark.parametrize("origin", [Origin.PROJECT, Origin.USER, Origin.PROFILE])
def test_a_policy_in_another_file_is_refused(origin: Origin) -> None:
    """A policy that would not count is an error, wherever it stands."""
    with pytest.raises(UsageError, match=r"^mine\.toml: \[policy\] counts in /etc/hpc-launch/config\.toml only"):
        layer_of(origin, Table("mine.toml", "", {"policy": {"max_restarts": 1}}))


def test_a_policy_of_a_profile_is_refused(tmp_path: Path) -> None:
    """A profile of the site's file is chosen by the user, and has no policy."""
    (tmp_path / "config.toml").write_text("[profiles.fast.policy]\nmax_restarts = 1\n")
    with pytest.raises(UsageError, match=r"\[profiles\.fast\.policy\] counts in"):
        settings_files.load_settings_files({}, tmp_path, site=tmp_path)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("no", "[policy]"),
        ({"insecure": False}, "'policy.insecure' 'insecure_rendezvous'?"),
        ({"colour": 1}, "'policy.colour' insecure_rendezvous port_range"),
        ({"insecure_rendezvous": "no"}, "policy.insecure_rendezvous 'no' true false"),
        ({"max_restarts": True}, "policy.max_restarts True"),
        ({"max_restarts": -1}, "policy.max_restarts -1 0"),
        ({"port_range": "all"}, "policy.port_range 'all' LOW-HIGH"),
        ({"max_restarts": 1, "max-restarts": 2}, "policy.max_restarts max-restarts"),
    ],
)
def test_a_policy_with_a_mistake_is_refused(policy: Any, words: str) -> None:
    """A limit that is misspelt must not be taken for none."""
    assert mentions(refused(policy), SITE, words)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site whose file has a policy, and a directory without settings to work in."""
    path = tmp_path / "config.toml"
    path.write_text("[policy]\ninsecure_rendezvous = false\nmax_restarts = 3\n")
    monkeypatch.setattr(settings_files, "SITE", tmp_path)
    monkeypatch.chdir(tmp_path)
    return path


def test_config_show_has_the_policy(site: Path) -> None:
    """The limits stand below [policy], with the file and the key."""
    shown = CliRunner().invoke(cli, ["config", "show"]).output

    assert f"\n[policy]\ninsecure_rendezvous = false  # {site}: policy.insecure_rendezvous\n" in shown


def test_config_show_has_the_policy_as_json(site: Path) -> None:
    """Programs find the limits under the name of the table."""
    shown = json.loads(CliRunner().invoke(cli, ["config", "show", "--json"]).output)["policy"]

    assert shown["max_restarts"] == {"value": 3, "origin": "site's file", "place": f"{site}: policy.max_restarts"}


def test_explain_has_the_policy(site: Path) -> None:
    """What limits a run here is said with its plan."""
    shown = CliRunner().invoke(cli, ["explain", "--standalone"]).output

    assert f"policy: max_restarts = 3  ({site}: policy.max_restarts)\n" in shown
