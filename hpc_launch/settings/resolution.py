"""Whose word counts: of everything that is said of an option, that of the strongest source. Pure.

`resolve_options` decides for the options of any command; `resolve` makes the settings of a run of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings.layer import SettingsLayer, command_layers
from hpc_launch.settings.option import OptionSpec
from hpc_launch.settings.option_values import Origin
from hpc_launch.settings.readers import Unreadable
from hpc_launch.settings.site_policy import NO_POLICY, SitePolicy
from hpc_launch.settings.table import Settings, specs


@dataclass(frozen=True)
class Resolved:
    """The value of an option, from the strongest source that says anything of it.

    Attributes:
        value: the value.
        origin: whose word it is.
        place: the flag, the variable, or the file and the key in it.
        rank: 0 for the strongest source, and more for weaker ones.
    """

    value: Any
    origin: Origin
    place: str
    rank: int


def resolve_options(options: Mapping[str, OptionSpec], layers: Iterable[SettingsLayer]) -> dict[str, Resolved]:
    """Read the options that anybody speaks of, by name. What a weaker source says is not even read.

    Args:
        options: the options, by name.
        layers: what the sources say, the strongest first.

    Raises:
        UsageError: for a value that an option cannot have; the message says where it is.
    """
    found: dict[str, Resolved] = {}
    for rank, layer in enumerate(layers):
        for name, entry in layer.entries.items():
            if name in found:
                continue
            try:
                value = options[name].reader.read(entry.value)
            except Unreadable as error:
                raise UsageError(
                    f"{entry.place}: {_shown(entry.value)} is not {error}", option=options[name].flag
                ) from None
            found[name] = Resolved(value, layer.origin, entry.place, rank)
    return found


def resolve(
    flags: Mapping[str, str | bool],
    environ: Mapping[str, str],
    layers: Sequence[SettingsLayer] = (),
    *,
    use_env: bool = True,
) -> Settings:
    """Resolve the settings of a run.

    Args:
        flags: what the command line says, by field name; only what was really given.
        environ: the environment, for `HPC_LAUNCH_*` and torchrun's `PET_*` (torch/distributed/argparse_util.py).
        layers: what files say (`settings_files.load_settings_files`), the strongest first.
        use_env: the default of --use-env, which differs in `python -m hpc_launch.launch`.

    Raises:
        UsageError: for a value that cannot be read, or that the site's policy forbids; the message names the place it
            came from.
    """
    options = specs()
    found = resolve_options(options, (*command_layers(options, flags, environ), *layers))
    names = [name for name in options if name in found]
    settings = Settings(
        **{"use_env": use_env, **{name: found[name].value for name in names}},
        origins={name: found[name].origin for name in names},
        places={name: found[name].place for name in names},
    )
    _refuse_contradictions(settings)
    return _obeying(settings, next((layer.policy for layer in layers if layer.policy.rules), NO_POLICY))


def _shown(given: Any) -> str:
    """A value as it was given, more or less, for messages."""
    if isinstance(given, str):
        return f"'{given}'"
    try:
        return json.dumps(given, default=str, ensure_ascii=False)
    except ValueError:
        return "a very large number"


def _refuse_contradictions(settings: Settings) -> None:
    if settings.hosts is not None and settings.hostfile is not None:
        raise UsageError("--hosts and --hostfile both name the nodes: give one of them", option="--hosts")
    if settings.nodes is not None and (settings.hosts is not None or settings.hostfile is not None or settings.nnodes):
        other = "--nnodes" if settings.nnodes else "--hosts" if settings.hosts is not None else "--hostfile"
        raise UsageError(f"--nodes and {other} both say which nodes: give one of them", option="--nodes")
    if settings.no_python and settings.module:
        raise UsageError("--no-python and --module exclude each other: a module needs Python", option="--no-python")
    if settings.no_python and not settings.use_env and not settings.run_path:
        raise UsageError("--no-python needs --use-env as well (the program would get --local-rank=N)")
    if settings.nnodes and settings.node_rank is not None and settings.node_rank >= settings.nnodes.maximum:
        last = settings.nnodes.maximum - 1
        raise UsageError(
            f"--node-rank: {settings.node_rank} is not a node of --nnodes {settings.nnodes}: they are numbered 0 to "
            f"{last}",
            option="--node-rank",
        )
    if settings.standalone and settings.nnodes and settings.nnodes.maximum > 1:
        raise UsageError("--standalone is for one node: leave out it or --nnodes", option="--standalone")


def _obeying(settings: Settings, policy: SitePolicy) -> Settings:
    """The settings under a site's policy: defaults give way to it, and what was asked for against it is refused.

    Raises:
        UsageError: naming what was asked for, and the file and key of the policy.
    """
    if policy.insecure_rendezvous is False and settings.insecure_rendezvous:
        raise _forbidden(settings, policy, "insecure_rendezvous", "this site does not allow it")
    lowered: dict[str, Any] = {}
    for name, most in (("max_restarts", policy.max_restarts), ("max_requeues", policy.max_requeues)):
        asked = getattr(settings, name)
        if most is None or asked <= most:
            continue
        if settings.given(name):
            raise _forbidden(settings, policy, name, f"{asked} is more than this site allows, {most}")
        lowered[name] = most
    ports = policy.port_range
    if ports is not None:
        allowed = f"{ports.start}-{ports.stop - 1}, the ports that this site allows"
        asked_range = settings.port_range
        if not settings.given("port_range"):
            lowered["port_range"] = ports
        elif asked_range.start not in ports or asked_range[-1] not in ports:
            asked = f"{asked_range.start}-{asked_range.stop - 1}"
            raise _forbidden(settings, policy, "port_range", f"{asked} is not within {allowed}")
        if settings.master_port is not None and settings.master_port not in ports:
            raise _forbidden(
                settings, policy, "port_range", f"{settings.master_port} is not one of {allowed}", option="master_port"
            )
    return dataclasses.replace(
        settings,
        **lowered,
        policy=policy,
        origins={**settings.origins, **dict.fromkeys(lowered, Origin.SITE)},
        places={**settings.places, **{name: policy.place(name) for name in lowered}},
    )


def _forbidden(settings: Settings, policy: SitePolicy, name: str, why: str, *, option: str = "") -> UsageError:
    option = option or name
    return UsageError(f"{settings.places[option]}: {why} ({policy.place(name)})", option=specs()[option].flag)
