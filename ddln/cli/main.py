"""The command line: verbs only. What is slow to import is imported by the verb that needs it."""

import contextlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddln.cli import output
from ddln.cli.signals import interruptible, refusing, say
from ddln.sweeps.environment import nearby, start_jax

if TYPE_CHECKING:
    from types import ModuleType

    from ddln.config.experiment import Experiment
    from ddln.sweeps.plan import Chunk, Plan
    from ddln.sweeps.run_folder import RunFolder
    from ddln.sweeps.studies import StudyError

app = typer.Typer(
    help="Deep diagonal linear networks: run an experiment, check every theorem on it, draw it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # half the time of --help
)


def _configs(incomplete: str) -> list[str]:
    """Of those there are; where none fits, the shell goes on with files."""
    from ddln.sweeps import studies

    return [path.stem for path, _ in studies.configs() if path.stem.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    return [path.parent.name for path in sorted(Path("runs").glob(f"{incomplete}*/manifest.json"))]


def _subjects(incomplete: str) -> list[str]:
    return [*_configs(incomplete), *_runs(incomplete)]


Config = Annotated[
    str,
    typer.Argument(help="A TOML file, or the name of one (see `list`).", autocompletion=_configs),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Other values: network.depth=8 'sweep.network.scale=[1, 2]'."),
]
Run = Annotated[
    str,
    typer.Argument(help="A run folder, or the beginning of its name.", autocompletion=_runs),
]
Out = Annotated[Path, typer.Option(help="The folder of run folders.")]


def main() -> None:
    """The entry point `ddln`."""
    try:
        app(prog_name="ddln")
    except SystemExit as done:
        if isinstance(done.code, int) and done.code > 128:
            # Python would wait for a program that computes. Whatever is on disk is whole.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(done.code)
        raise


def _show_version(wanted: bool) -> bool:
    if wanted:
        from ddln import __version__

        typer.echo(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which.")
    ] = False,
) -> None: ...


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    out: Out = Path("runs"),
    json_lines: Annotated[
        bool,
        typer.Option("--json-lines", help="Print progress and outcome as JSON, an event a line."),
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Compute on a Dask cluster: local:N (processes), tls://HOST:PORT, tcp://HOST:PORT "
            "or a scheduler file."
        ),
    ] = None,
) -> None:
    """Compute, check, draw and report an experiment, or go on with it.

    The same command again goes on where it stopped, or prints what is finished. The exit status is
    1 when a theorem or claim that applies fails, 2 for bad input or chunks that could not be
    computed or a study that failed, 130 or 143 when stopped by Ctrl-C or a signal.
    """
    from ddln.sweeps import executor, studies
    from ddln.sweeps.dask_executor import way_to_compute
    from ddln.sweeps.run_folder import RunFolder

    with contextlib.ExitStack() as stack, interruptible(json_lines):
        with refusing():
            experiment, plan, path = _prepare(config, overrides)
            source = _study_of(experiment, path)
            fingerprint = studies.fingerprint(source)
            folder = RunFolder.of(experiment, out)
            if folder.is_complete(plan, fingerprint):
                _conclude(folder, json_lines)
            _refuse_too_large(plan, path)
            way = stack.enter_context(way_to_compute(cluster))
            start_jax()
            study = _study_or_fault(experiment.study, path)
            _validate(plan, path)
            stack.enter_context(executor.begun(folder, plan, way))
        with refusing((OSError, executor.LostChunks)):
            executor.compute(folder, plan, way, json_lines=json_lines)
        with refusing():
            try:
                executor.publish(folder, plan, study, fingerprint, say)
            except studies.StudyError:
                if not json_lines:
                    output.print_run(folder, folder.read_claims())
                raise
        _conclude(folder, json_lines)


@app.command()
def check(config: Config, overrides: Overrides = None) -> None:
    """Validate a config and print what it would compute: lanes, chunks, memory, files, time.

    The exit status is 2 for what `run` would refuse.
    """
    with refusing():
        experiment, plan, path = _prepare(config, overrides)
        from ddln.config.datasets import shape_of
        from ddln.sweeps.plan import estimate

        _study_of(experiment, path)
        samples, features = shape_of(experiment.problem.data)
        if not all(_is_tame(chunk) for chunk in plan.programs):
            start_jax()
            _validate(plan, path)
    network, dynamics = experiment.network, experiment.dynamics
    programs = [chunk.experiment for chunk in plan.programs]
    depths = ", ".join(str(depth) for depth in dict.fromkeys(e.network.depth for e in programs))
    widths = ", ".join(str(width) for width in dict.fromkeys(e.width for e in programs))
    widest = max(chunk.width for chunk in plan.chunks)
    axes: dict[str, list[str]] = {name: [] for name in plan.sizes}
    for axis in sorted(plan.axes, key=lambda axis: axis.name != axis.dimension):
        axes[axis.dimension].append(f"{axis.name} ({axis.span})")
    for name, value in {
        "study": experiment.study,
        "digest": experiment.digest(),
        "problem": f"{experiment.problem.data.kind}, {samples} samples × {features} features",
        "network": f"depth {depths}; {widths} coordinates{', signed' * network.signed}; "
        f"{network.init.kind} layers",
        "dynamics": f"{dynamics.summary}, {dynamics.saved:,} points",
        "axes": " × ".join(" with ".join(names) for names in axes.values()) or "none",
        "lanes": f"{plan.lanes:,}",
        "chunks": f"{len(plan.chunks):,} of up to {widest:,} lanes, "
        f"{len(programs):,} compiled program(s)",
        **_devices(experiment),
        "memory": f"{plan.peak_bytes / 1e9:,.2g} GB a chunk, of {experiment.memory:g} GB",
        "files": f"{2 * plan.nbytes / 1e6:,.1f} MB: {dynamics.save} of every lane, twice",
        "time": f"about {_duration(estimate(plan))}, and compiling",
    }.items():
        typer.echo(f"{name:>9}  {value}")
    with refusing():
        _refuse_too_large(plan, path)


@app.command()
def verify(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Check every theorem on an experiment, its hypotheses first; nothing is written.

    All flows are solved twice, the second time at finer tolerances, and what differs is told of.
    The exit status is 1 when a theorem whose hypotheses hold fails.
    """
    with refusing():
        experiment, plan, path = _prepare(config, overrides)
        _refuse_too_large(plan, path)
        start_jax()
        _validate(plan, path)
        from ddln.sweeps import assemble, build, progress
        from ddln.sweeps import compute as lanes
        from ddln.theory import assumptions
        from ddln.verification import claims

        build.mesh_of(experiment.devices)
    from ddln.sweeps._manifest import finite
    from ddln.sweeps.dataset_schema import solved_again, status_counts

    done, computed = progress.Progress(plan, {}, 0), {}
    with interruptible(), progress.shown(done) as advance:
        compute = partial(lanes.compute, report=done.reach, again=True)
        for chunk, part in progress.computed(compute, plan.chunks):
            computed[chunk.index] = part
            advance(chunk, status_counts(part))
    dataset = assemble.assemble(plan, lambda chunk: computed[chunk.index])
    assumed, rows = assumptions.summary(dataset), claims.summary(dataset)
    if as_json:
        both = {"hypotheses": assumed, "certificates": rows}
        typer.echo(json.dumps(finite(both), indent=1, ensure_ascii=False))
    else:
        typer.echo(assumptions.render(assumed) + "\n")
        output.print_table(rows, "Certificates")
        output.print_accuracy(*solved_again(dataset))
    raise typer.Exit(output.failed(rows))


@app.command()
def show(run: Run, out: Out = Path("runs")) -> None:
    """Print the tables of a run."""
    with refusing():
        folder = _existing(run, out)
        output.print_run(folder, folder.read_claims())


@app.command()
def draw(run: Run, out: Out = Path("runs")) -> None:
    """Draw a run's figures again."""
    from ddln.sweeps import executor, studies

    with contextlib.ExitStack() as stack:
        with refusing():
            folder = _open(run, out, stack)
            dataset = folder.read_dataset()
            start_jax()
            study = studies.find(folder.manifest()["study"])
        with refusing():
            for path in executor.draw(folder, study, dataset):
                typer.echo(path)


@app.command()
def report(run: Run, out: Out = Path("runs")) -> None:
    """Write a run's page again."""
    from ddln.sweeps import report

    with refusing(), contextlib.ExitStack() as stack:
        folder = _open(run, out, stack)
        path = report.write(folder.path)
        folder.record(path)
        typer.echo(path)


@app.command()
def explore(
    subject: Annotated[
        str,
        typer.Argument(help="A config or a run.", autocompletion=_subjects, metavar="CONFIG|RUN"),
    ] = "explore",
    overrides: Overrides = None,
    out: Out = Path("runs"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")
    ] = 2718,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
) -> None:
    """Look at a network while its numbers change, or browse a run, on a page of this machine.

    A config opens with controls for its numbers, a run folder with its sweep. Ctrl-C ends it, with
    exit status 0; 2 is bad input, a port that is taken, or marimo missing (the extra `explore`).
    """
    from ddln.plotting.explorer import server

    with refusing():
        page, words = server.opened(subject, overrides or [], out)
        if page == "run":
            say(f"browsing {words[0]}")
        start_jax()
        server.serve(page, words, port=port, window=browser)


@app.command("list")
def list_() -> None:
    """List the configs and what their studies are about."""
    from ddln.sweeps import studies

    for path, about in studies.configs():
        typer.echo(f"{path.stem:16}{about}\n{'':16}{nearby(path)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a config: every key and its range."""
    from ddln.config.experiment import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2, ensure_ascii=False))


@app.command()
def new(name: Annotated[str, typer.Argument(help="Lower-case letters, digits, _.")]) -> None:
    """Start a study: configs/NAME.toml and experiments/NAME.py."""
    from ddln.sweeps import studies

    with refusing():
        for path in studies.create(name, Path()):
            typer.echo(path)
    typer.echo(f"now: ddln run configs/{name}.toml")


@app.command()
def data(name: Annotated[str, typer.Argument(help="Of a study.")]) -> None:
    """Make configs/data/NAME.npz by the recipe `data()` of experiments/NAME.py."""
    from ddln.sweeps import studies

    with refusing():
        start_jax()
        typer.echo(studies.write_data(name, Path()))


def _devices(experiment: "Experiment") -> dict[str, str]:
    """A line of `check`, where devices are asked for."""
    if (asked := experiment.devices) is None:
        return {}
    groups = f"{asked.lanes} group(s) with lanes of their own"
    return {"devices": f"{groups}, of {asked.features} with columns of their own"}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def _prepare(config: str, overrides: list[str] | None) -> "tuple[Experiment, Plan, Path]":
    from ddln.config.experiment import load, told_of
    from ddln.sweeps.plan import make_plan
    from ddln.sweeps.studies import find_config

    path = find_config(config)
    experiment = load(path, overrides or ())
    with told_of(path):
        return experiment, make_plan(experiment), path


def _refuse_too_large(plan: "Plan", path: Path) -> None:
    from ddln.config.experiment import told_of

    with told_of(path):
        plan.check_memory()


def _study_of(experiment: "Experiment", path: Path) -> Path:
    from ddln.config.experiment import told_of
    from ddln.sweeps.studies import locate

    with told_of(path):
        return locate(experiment.study, path.parent)


def _study_or_fault(name: str, path: Path) -> "ModuleType | StudyError":
    """A study that cannot be imported is told of at once, and what needs none is done."""
    from ddln.sweeps import studies

    try:
        return studies.find(name, path.parent)
    except studies.StudyError as error:
        say(f"ddln: {error}\nwithout it there are certificates, and no claims or figures")
        return error


def _existing(run: str, out: Path) -> "RunFolder":
    """The folder of that name; of several the newest, and which that is."""
    from ddln.sweeps.run_folder import RunFolder

    found = RunFolder.matching(run, out)
    if len(found) > 1:
        say(f"{found[0].path.name}, the newest of {len(found):,} runs")
    return found[0]


def _open(run: str, out: Path, stack: contextlib.ExitStack) -> "RunFolder":
    folder = _existing(run, out)
    stack.enter_context(folder.locked())
    return folder


def _is_tame(chunk: "Chunk") -> bool:
    """Whether what was validated without jax is all that `run` could refuse of the data."""
    from ddln.config.datasets import is_tame
    from ddln.config.experiment import substitute

    first = {name: values[0] for name, values in chunk.values.items()}
    problem = substitute(chunk.experiment, first).problem
    return is_tame(problem.data, problem.loss.kind)


def _validate(plan: "Plan", path: Path) -> None:
    from ddln.config.experiment import told_of
    from ddln.sweeps import compute as lanes

    with told_of(path):
        for chunk in plan.programs:
            lanes.validate(chunk)


def _conclude(folder: "RunFolder", json_lines: bool) -> None:
    tables = folder.read_claims()
    failed = [row for rows in tables.values() for row in rows if output.failed([row])]
    if json_lines:
        from ddln.sweeps import progress

        names = [row["name"] for row in failed]
        progress.event("finished", run=str(folder.path), ok=not failed, failed=names)
    else:
        output.print_run(folder, tables)
    raise typer.Exit(int(bool(failed)))
