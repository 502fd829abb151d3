"""Who is heard: of everything that is said of an option, the strongest voice. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hpc_launch.errors import UsageError
from hpc_launch.settings.layer import Layer, shown, value_of
from hpc_launch.settings.policy import NO_POLICY, Policy
from hpc_launch.settings.readers import Unreadable
from hpc_launch.settings.table import PREFIX, TORCHRUN_PREFIX, OptionSpec, Settings, specs
from hpc_launch.settings.values import Origin


def resolve(
    flags: Mapping[str, str | bool],
    environ: Mapping[str, str],
    layers: Sequence[Layer] = (),
    *,
    use_env: bool = True,
) -> Settings:
    """Read the settings.

    Args:
        flags: what the command line says, by field name; only what was really given.
        environ: the environment, for `HPC_LAUNCH_*` and torchrun's `PET_*` (torch/distributed/argparse_util.py).
        layers: what files say (`files.load`), the strongest first.
        use_env: the default of --use-env, which differs in `python -m hpc_launch.launch`.

    Raises:
        UsageError: for a value that cannot be read, or that the site's policy forbids; the message names the place it
            came from.
    """
    values: dict[str, Any] = {"use_env": use_env}
    origins: dict[str, Origin] = {}
    places: dict[str, str] = {}
    for name, spec in specs().items():
        voice = next(_voices(name, spec, flags, environ, layers), None)
        if voice is None:
            continue
        origins[name], places[name], given = voice
        try:
            values[name] = value_of(name, given)
        except Unreadable as error:
            raise UsageError(f"{places[name]}: {shown(given)} is not {error}", option=spec.flag) from None
    settings = Settings(**values, origins=origins, places=places)
    _refuse_contradictions(settings)
    return _obeying(settings, next((layer.policy for layer in layers if layer.policy.rules), NO_POLICY))


def _voices(
    name: str, spec: OptionSpec, flags: Mapping[str, str | bool], environ: Mapping[str, str], layers: Sequence[Layer]
) -> Iterator[tuple[Origin, str, Any]]:
    """Who speaks of this option, the strongest voice first."""
    if name in flags:
        yield Origin.FLAG, spec.flag, flags[name]
    variable = PREFIX + name.upper()
    if environ.get(variable):
        yield Origin.ENVIRONMENT, variable, environ[variable]
    variable = TORCHRUN_PREFIX + name.upper()
    if spec.torchrun_variable and environ.get(variable):
        yield Origin.TORCHRUN_ENVIRONMENT, variable, environ[variable]
    for layer in layers:
        if name in layer.said:
            yield layer.origin, layer.place(name), layer.said[name].value


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


def _obeying(settings: Settings, policy: Policy) -> Settings:
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


def _forbidden(settings: Settings, policy: Policy, name: str, why: str, *, option: str = "") -> UsageError:
    option = option or name
    return UsageError(f"{settings.places[option]}: {why} ({policy.place(name)})", option=specs()[option].flag)
