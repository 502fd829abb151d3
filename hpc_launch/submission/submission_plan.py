"""Plan a submission: a request, a template and what is known of the cluster become a script and a line. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpc_launch.errors import UsageError
from hpc_launch.plan import termination_forecast
from hpc_launch.slurm import leaks
from hpc_launch.slurm.inventory import NodeGroup
from hpc_launch.submission import derived_resources, needs, parameter_sweep, quoting
from hpc_launch.submission.job_request import JobRequest, Software, Submission, SubmitContext
from hpc_launch.submission.job_script import ScriptChanges, ScriptDraft, render_job_script
from hpc_launch.submission.submit_options import GPU_OPTIONS, MAX_GPUS_PER_NODE, MAX_NODES, MAX_TIME, asks_for_gpus
from hpc_launch.text import duration

# Seconds before the end at which workers are told, where nobody says: as in requeue.sbatch.
_NOTICE = "USR1@120"

_AFTER = re.compile(r"(?P<job>\d+(?:[_+]\d+)?)(?::(?:after)?(?P<how>ok|any|notok|corr|start))?")
_HOW = {"ok": "afterok", "any": "afterany", "notok": "afternotok", "corr": "aftercorr", "start": "after"}

# Which of sbatch's variables says the same as an option, where it is not its name.
_VARIABLES = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "array": "ARRAY_INX"}

# What `%x` must not put into a file name: other directories, further patterns, and a backslash, which would turn all of
# them off (sbatch(1), filename pattern).
_NO_FILE_NAME = re.compile(r"[^\w .+=@,:-]")
_LONGEST_NAME = 100


def choose_template(request: JobRequest, nodes: Sequence[NodeGroup]) -> tuple[str, str]:
    """The template for a request that names none, and why that one."""
    options = {name: value for name, value in request.slurm.items() if value is not None}
    asked = GPU_OPTIONS & options.keys() or asks_for_gpus(options.get("gres", ""))
    none = any(re.fullmatch(r"(.*:)?0", options.get(name, "")) for name in GPU_OPTIONS)
    if none or (nodes and not asked and not any(group.gpus_of() for group in nodes)):
        return "cpu", "no GPUs"
    counts = derived_resources.node_counts(options.get("nodes", "1"))
    if counts is None or counts[1] > 1:
        return "multi_node", "several nodes"
    return "single_node", "one node"


def make_submission(
    request: JobRequest, draft: ScriptDraft, here: SubmitContext, nodes: Sequence[NodeGroup], *, chosen: str = ""
) -> Submission:
    """Decide what is submitted.

    Args:
        request: what is wanted.
        draft: the template.
        here: where it is submitted from.
        nodes: what the nodes of the partition are like; nothing where that is not known.
        chosen: why this template was chosen; empty where the user has named it.

    Raises:
        UsageError: for options that cannot be meant together, what a limit forbids, and a template that lacks a place.
    """
    there = draft.options()
    points = parameter_sweep.grid_points(request.sweep)
    if points and "SLURM_ARRAY_TASK_ID" in draft.text:
        raise UsageError(f"--sweep: the template {draft.name} has points of its own: take another", option="--sweep")
    if request.software.image and "CONTAINER_IMAGE" not in draft.text:
        raise UsageError(f"--image: the template {draft.name} takes none: apptainer and pyxis do", option="--image")
    asked = {**_standing(request, there), **_dependency(request), **_turns(request, there)}
    if points:
        asked["array"] = parameter_sweep.array_indices(request.slurm.get("array"), len(points))
    if chosen and "nodes" not in asked:
        asked["nodes"] = "1"
    spared = _spared(request, {**there, **asked})
    asked |= spared
    if draft.shipped:
        asked.setdefault("job-name", _name(request))
    longest = request.limits.get(MAX_TIME)
    derived = derived_resources.derive_options(asked, draft, nodes, str(longest.value) if longest else "")
    if any(item.name == "cpus-per-task" for item in derived):
        asked.pop("cpus-per-gpu", None)
    options = {**asked, **{item.name: item.value for item in derived}}
    whole = derived_resources.merged_options(there, options)
    options |= _output(whole, there, request)
    _check_limits(request, whole)
    environ, dropped = leaks.for_submission(here.environ, request.keep)
    environ, overruled = _without_overruled(environ, options)
    export, exports = _exports(whole, request, here)
    script, rest = render_job_script(
        draft,
        ScriptChanges(
            options=options,
            reasons={item.name: f"Derived: {item.reason}." for item in derived},
            origin=[f"Made by hpc-launch submit {here.version} from the template {draft.name}.".replace("  ", " ")],
            software=_software(request),
            exports=exports,
            arguments=(*request.options, request.script, *request.arguments),
            points=points,
            preflight="hpc-launch check || exit" if request.check else "",
        ),
    )
    notes = [
        *([f"template {draft.name}, for {chosen}: --template names another"] if chosen else []),
        *_about_gpus(whole, there, request, draft),
        *_about_the_signal(whole),
        *filter(None, [derived_resources.shortage(whole, nodes)]),
        *(f"--{item.name}={item.value} is derived: {item.reason}" for item in derived),
        *(f"{quoting.word(word)} is given to sbatch itself: no #SBATCH line can have it" for word in rest),
        *([f"--nodes={spared['nodes']}, {request.spares} of them to spare"] if request.spares else []),
        *export,
        *_about_dropped((*dropped, *overruled), here.environ),
    ]
    return Submission(
        script=script,
        words=(*rest, *request.sbatch_args),
        environ=environ,
        dropped=tuple(sorted({*dropped, *overruled})),
        notes=tuple(notes),
        folders=_folders(derived_resources.merged_options(there, options)),
        name=whole.get("job-name", ""),
        points=len(points),
        array="array" in whole,
    )


# --- options


def _standing(request: JobRequest, there: Mapping[str, str]) -> dict[str, str | None]:
    """What was asked for; what is to be left out only where the template has it."""
    return {name: value for name, value in request.slurm.items() if value is not None or name in there}


def _dependency(request: JobRequest) -> dict[str, str | None]:
    if not request.after:
        return {}
    conditions = [request.slurm.get("dependency") or ""]
    for text in request.after:
        match = _AFTER.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--after: '{text}' is not JOB or JOB:STATE with a state of {', '.join(_HOW)}", option="--after"
            )
        conditions.append(f"{_HOW[match['how'] or 'ok']}:{match['job']}")
    found: dict[str, str | None] = {"dependency": ",".join(filter(None, conditions))}
    if any(condition.startswith(("afterok", "aftercorr", "afternotok")) for condition in conditions):
        # Otherwise a job that can never start waits for ever.
        found["kill-on-invalid-dep"] = "yes"
    return found


def _turns(request: JobRequest, there: Mapping[str, str]) -> dict[str, str | None]:
    """What Slurm has to know, where hpc-launch is to ask for requeues: that it may, and when to tell the workers."""
    found: dict[str, str | None] = {**needs.requeue(request.requeue, {*request.slurm, *({"requeue"} & there.keys())})}
    never = "no-requeue" in request.slurm
    if "on-notice" in request.requeue and not never and not {"signal"} & {*request.slurm, *there}:
        found["signal"] = _NOTICE
    return found


def _spared(request: JobRequest, whole: Mapping[str, str | None]) -> dict[str, str | None]:
    """What a job needs that is to go on without nodes that are lost: that Slurm lets it, and nodes to spare."""
    found: dict[str, str | None] = {**needs.MAY_LOSE_NODES} if request.no_kill else {}
    if request.spares:
        nodes = derived_resources.spared(whole.get("nodes") or "1", request.spares)
        if nodes is None:
            raise UsageError(
                f"--spares {request.spares}: {whole['nodes']} is no number of nodes that some could be added to",
                option="--spares",
            )
        found["nodes"] = nodes
    return found


def _name(request: JobRequest) -> str:
    return re.sub(r"\.py$", "", request.script.rstrip("/").rpartition("/")[2]) or "train"


def _output(whole: Mapping[str, str], there: Mapping[str, str], request: JobRequest) -> dict[str, str | None]:
    """The template's file for the output, as this job needs it: a file for each task, and a name that can be one."""
    found: dict[str, str | None] = {}
    name = whole.get("job-name", "")
    for option in ("output", "error"):
        if option not in whole:
            continue
        if option in request.slurm:
            found[option] = _placed(whole[option], request.output_directory)
            continue
        pattern = there[option]
        if "array" in whole and not re.search(r"%\d*a", pattern):
            pattern = re.sub(r"%(\d*)j", r"%\1A_%a", pattern)
        if _NO_FILE_NAME.search(name) or len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
            pattern = pattern.replace("%x", _NO_FILE_NAME.sub("_", name)[: _LONGEST_NAME // 4])
        found[option] = _placed(pattern, request.output_directory)
    return found


def _folders(whole: Mapping[str, str]) -> tuple[str, ...]:
    """The directories of the output files, as far as their names are known before the job is."""
    patterns = (whole[option].rpartition("/")[0] for option in ("output", "error") if option in whole)
    known = (folder.replace("%%", "\0") for folder in patterns if folder)
    names = (folder.replace("\0", "%") for folder in known if "%" not in folder and "\\" not in folder)
    return tuple(dict.fromkeys(str(Path(whole.get("chdir", ""), folder)) for folder in names))


def _placed(pattern: str, directory: str) -> str:
    """A file name pattern that does not begin at the job's working directory."""
    if not directory or pattern.startswith("/"):
        return pattern
    return f"{directory.replace('%', '%%')}/{pattern}"


def _check_limits(request: JobRequest, whole: Mapping[str, str]) -> None:
    """Refuse what the partition would not run, before it waits for ever."""
    counts, gpus = derived_resources.node_counts(whole.get("nodes", "1")), derived_resources.gpus_of_a_node(whole)
    for name, said in request.limits.items():
        most = str(said.value)
        if name == MAX_NODES and counts is not None and counts[0] > int(most):
            found = f"--nodes: {whole['nodes']}"
        elif name == MAX_GPUS_PER_NODE and gpus is not None and gpus.count > int(most):
            found = f"--gpus-per-node: {gpus.count}"
        elif name == MAX_TIME and not derived_resources.fits(derived_resources.largest_time(whole), most):
            found = f"--time: {whole['time']}"
        else:
            continue
        raise UsageError(
            f"{found} is more than this partition has, {most} ({said.place})", option=found.partition(":")[0]
        )


# --- environment


def _without_overruled(environ: dict[str, str], options: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Leave out sbatch's variables for options that the script has: sbatch hears them before its #SBATCH lines."""
    names = {f"SBATCH_{_VARIABLES.get(name, name.upper().replace('-', '_'))}" for name in options}
    overruled = sorted(names & environ.keys())
    return {name: value for name, value in environ.items() if name not in names}, overruled


def _exports(whole: Mapping[str, str], request: JobRequest, here: SubmitContext) -> tuple[list[str], list[str]]:
    """What a script needs that does not get the environment, or whose environment does not lead to us: notes and lines.

    srun takes the job's --export for its own (SLURM_EXPORT_ENV), and SRUN_EXPORT_ENV before that (srun(1)).
    """
    everything = "ALL" in whole.get("export", "ALL").split(",")
    alone = request.software == Software()
    launcher = here.launcher if alone and not (everything and here.on_path) else ""
    folders = [folder for folder in (launcher, "" if everything else here.slurm) if folder]
    lines = [*needs.STEPS_MAY_LOSE_NODES] if request.no_kill else []
    if not everything:
        lines += [
            "# The tasks get all that this script has. Otherwise srun would leave out what --export has left out."
        ]
        lines += ["export SRUN_EXPORT_ENV=ALL"]
    if folders:
        # Where no PATH comes along, bash has one of its own, which it does not export.
        lines += ["# Where the programs are, at submission.", f'export PATH={quoting.word(":".join(folders))}:"$PATH"']
    note = "the job does not get this environment (--export): its script adds only the PATH to hpc-launch"
    return ([f"{note}; modules, venv and setup are for more"] if alone and not everything else []), lines


def _about_gpus(
    whole: Mapping[str, str], there: Mapping[str, str], request: JobRequest, draft: ScriptDraft
) -> list[str]:
    """GPUs are not asked for by saying nothing, but by a template of ours, which somebody should know."""
    count = whole.get("gpus-per-node", "")
    if not draft.shipped or GPU_OPTIONS & request.slurm.keys() or count != there.get("gpus-per-node"):
        return []
    return [f"{count} GPUs of each node, as the template has it: --gpus-per-node for another number"]


def _about_the_signal(whole: Mapping[str, str]) -> list[str]:
    """Slurm sends a signal whose lead is longer than the job at the job's start, and refuses nothing."""
    notice, limit = termination_forecast.read_signal(whole.get("signal", "")), derived_resources.largest_time(whole)
    if notice is None or limit is None or notice.lead < limit:
        return []
    begin = f"--signal={notice.text} is sent as soon as the job begins: its time limit is {duration(limit)}"
    return [f"{begin}; ask for more time, or for a shorter lead"]


def _about_dropped(dropped: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Slurm never sets sbatch's variables: whoever did wants to know."""
    names = [name for name in dropped if name.startswith("SBATCH_")]
    if not names:
        return []
    said = ", ".join(f"{name}={quoting.word(environ[name])}" for name in names)
    return [f"{said} not passed on: give the option, set it in [submit], or keep the variable (--keep-environment)"]


def _software(request: JobRequest) -> list[str]:
    software = request.software
    lines = [f"module load {quoting.words(software.modules)}"] if software.modules else []
    if software.venv:
        lines.append(f"source {quoting.word(str(Path(software.venv) / 'bin/activate'))}")
    lines += [f"export CONTAINER_IMAGE={quoting.word(software.image)}"] if software.image else []
    return [*lines, *software.setup]
