"""The verbs of the `ddln` command.

Each verb imports what it needs itself, so that `--help` and `check` answer at once.
"""

import contextlib
import gc
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddln.cli import _arguments as arguments
from ddln.cli import printing
from ddln.cli.signals import exit_on_error, interruptible, log
from ddln.sweeps.environment import relative_path, start_jax

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
    rich_markup_mode=None,  # rich takes half the time of --help
)


def main() -> None:
    """Run the `ddln` command; its entry point."""
    # Imports and traces make millions of objects that stay. Python would search them for cycles
    # again and again, for a seventh of the time of a short run.
    gc.set_threshold(100_000, 20, 20)
    status = 0
    try:
        app(prog_name="ddln")
    except SystemExit as done:
        status = done.code if isinstance(done.code, int) else status
    # The files on disk are complete. Python would wait for a program that still runs, and take a
    # second to free what the system frees at once.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _show_version(wanted: bool) -> bool:
    if wanted:
        from ddln import __version__

        typer.echo(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


@app.command()
def run(
    config: arguments.Config,
    overrides: arguments.Overrides = None,
    out: arguments.Out = Path("runs"),
    json_lines: arguments.JsonLines = False,
    cluster: arguments.Cluster = None,
) -> None:
    """Compute, verify, draw and report an experiment.

    The same command continues a run that was stopped, and prints the results of a finished one. The
    exit status is 1 if a theorem or claim that applies fails; 2 after bad input, after chunks that
    could not be computed and after a study that failed; 130 after Ctrl-C and 143 after SIGTERM.
    """
    began = time.monotonic()
    from ddln.sweeps import executor, progress, run_times, studies
    from ddln.sweeps.dask_executor import open_executor
    from ddln.sweeps.run_folder import RunFolder

    with contextlib.ExitStack() as stack, interruptible(json_lines):
        with exit_on_error():
            experiment, plan, path = _prepare(config, overrides)
            source = _study_of(experiment, path)
            fingerprint = studies.fingerprint(source)
            folder = RunFolder.of(experiment, out)
            if folder.is_complete(plan, fingerprint):
                _conclude(folder, json_lines)
            _check_memory(plan, path)
            chunk_executor = stack.enter_context(open_executor(cluster))
            start_jax(log)
            study = _study_or_error(experiment.study, path)
            _validate(plan, path)
            stack.enter_context(executor.open_run(folder, plan, chunk_executor))
        with exit_on_error((OSError, executor.LostChunks)):
            is_new = len(folder.missing(plan)) == len(plan.chunks)
            done = executor.compute(folder, plan, chunk_executor, json_lines=json_lines)
        with exit_on_error():
            try:
                executor.publish(folder, plan, study, fingerprint, log)
            except studies.StudyError as error:
                if json_lines:
                    progress.event("failed", run=str(folder.path), error=str(error))
                else:
                    printing.print_run(folder, folder.read_claims())
                raise
        if is_new and cluster is None:
            run_times.record(plan, time.monotonic() - began, done.seconds_per_lane)
        _conclude(folder, json_lines)


@app.command()
def check(config: arguments.Config, overrides: arguments.Overrides = None) -> None:
    """Validate a config and print its plan and its cost.

    The exit status is 2 for a config that `run` would reject.
    """
    with exit_on_error():
        experiment, plan, path = _prepare(config, overrides)
        _study_of(experiment, path)
        if not all(_is_tame(chunk) for chunk in plan.programs):
            start_jax()
            _validate(plan, path)
    with exit_on_error():
        printing.print_plan(plan)
        _check_memory(plan, path)


@app.command()
def verify(
    config: arguments.Config, overrides: arguments.Overrides = None, as_json: arguments.Json = False
) -> None:
    """Verify every theorem on an experiment; writes no files.

    The hypotheses of the theorems come first. Every flow is solved twice, the second time at finer
    tolerances, and differences are reported. The exit status is 1 if a theorem whose hypotheses
    hold fails.
    """
    with exit_on_error():
        experiment, plan, path = _prepare(config, overrides)
        _check_memory(plan, path)
        start_jax(log)
        _validate(plan, path)
        from ddln.sweeps import assemble, build, compute, progress
        from ddln.theory import assumptions
        from ddln.verification import certificates

        build.make_mesh(experiment.devices)
    from ddln.sweeps._manifest import finite
    from ddln.sweeps.dataset_schema import count_recomputed, status_counts

    done, computed = progress.Progress(plan, {}, 0), {}
    with interruptible(), progress.progress_display(done) as advance:
        compute_chunk = partial(compute.compute, report=done.update_share, recompute=True)
        for chunk, part in progress.prefetch(compute_chunk, plan.chunks):
            computed[chunk.index] = part
            advance(chunk, status_counts(part))
    dataset = assemble.assemble(plan, lambda chunk: computed[chunk.index])
    assumed, rows = assumptions.summary(dataset), certificates.summary(dataset)
    if as_json:
        both = {"hypotheses": assumed, "certificates": rows}
        typer.echo(json.dumps(finite(both), indent=1, ensure_ascii=False))
    else:
        typer.echo(assumptions.render(assumed) + "\n")
        printing.print_table(rows, "Certificates")
        printing.print_accuracy(*count_recomputed(dataset))
    raise typer.Exit(printing.failed(rows))


@app.command()
def show(run: arguments.Run, out: arguments.Out = Path("runs")) -> None:
    """Print the tables of a run."""
    with exit_on_error():
        folder = _existing(run, out)
        printing.print_run(folder, folder.read_claims())


@app.command()
def draw(run: arguments.Run, out: arguments.Out = Path("runs")) -> None:
    """Draw the figures of a run again."""
    from ddln.sweeps import executor, studies

    with contextlib.ExitStack() as stack:
        with exit_on_error():
            folder = _open(run, out, stack)
            dataset = folder.read_dataset()
            start_jax()
            study = studies.find(folder.manifest()["study"])
        with exit_on_error():
            for path in executor.draw(folder, study, dataset):
                typer.echo(path)


@app.command()
def report(run: arguments.Run, out: arguments.Out = Path("runs")) -> None:
    """Write the report of a run again."""
    from ddln.sweeps import report

    with exit_on_error(), contextlib.ExitStack() as stack:
        folder = _open(run, out, stack)
        unfinished = ["`ddln run` with the same config says why"]
        path = report.write(folder.path, [] if folder.manifest()["complete"] else unfinished)
        folder.record(path)
        typer.echo(path)


@app.command()
def export(run: arguments.Run, out: arguments.Out = Path("runs")) -> None:
    """Write the data set of a run as one netCDF file with every variable, dataset.nc.

    Small runs have this file already.
    """
    with exit_on_error(), contextlib.ExitStack() as stack:
        typer.echo(_open(run, out, stack).export())


@app.command()
def rm(run: arguments.Run, out: arguments.Out = Path("runs"), yes: arguments.Yes = False) -> None:
    """Delete a run folder.

    RUN must be the name of one run. The exit status is 1 if you do not confirm.
    """
    from ddln.sweeps import saved_runs

    with exit_on_error():
        folder = saved_runs.only(run, out)
        if not yes:
            typer.confirm(f"delete {relative_path(folder.path)}?", abort=True)
        saved_runs.remove(folder)


@app.command()
def explore(
    subject: arguments.ConfigOrRun = "explore",
    overrides: arguments.Overrides = None,
    out: arguments.Out = Path("runs"),
    port: arguments.Port = 2718,
    browser: arguments.Browser = True,
) -> None:
    """Explore a network, or browse a run, on a local web page.

    A config opens with controls for its numbers, a run folder with its sweep. Ctrl-C stops the
    server with exit status 0. The exit status is 2 after bad input, if the port is taken, and if
    marimo (the extra `explore`) is not installed.
    """
    from ddln.plotting.explorer import server

    with exit_on_error():
        page, words = server.open_subject(subject, overrides or [], out)
        if page == "run":
            log(f"browsing {words[0]}")
        start_jax()
        server.serve(page, words, port=port, window=browser)


@app.command("list")
def list_(runs: arguments.Runs = False, out: arguments.Out = Path("runs")) -> None:
    """List the configs and the subjects of their studies, or the runs."""
    from ddln.sweeps import studies

    if runs:
        from ddln.sweeps import saved_runs

        printing.print_runs(saved_runs.summaries(out), out)
        return
    configs = list(studies.configs())
    width = 2 + max((len(path.stem) for path, _ in configs), default=0)
    for path, about in configs:
        typer.echo(f"{path.stem:{width}}{about}\n{'':{width}}{relative_path(path)}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a config, with the range of every key."""
    from ddln.config.experiment import Experiment

    typer.echo(json.dumps(Experiment.model_json_schema(), indent=2, ensure_ascii=False))


@app.command()
def new(name: arguments.NewName) -> None:
    """Create a study: configs/NAME.toml and experiments/NAME.py."""
    from ddln.sweeps import studies

    with exit_on_error():
        for path in studies.create(name, Path()):
            typer.echo(path)
    typer.echo(f"now: ddln run configs/{name}.toml")


@app.command()
def data(name: arguments.StudyName) -> None:
    """Write the arrays of a study's data() to configs/data/NAME.npz."""
    from ddln.sweeps import studies

    with exit_on_error():
        start_jax()
        typer.echo(studies.write_data(name, Path()))


def _prepare(config: str, overrides: list[str] | None) -> "tuple[Experiment, Plan, Path]":
    from ddln.config.experiment import add_source, load
    from ddln.sweeps.plan import make_plan
    from ddln.sweeps.studies import find_config

    path = find_config(config)
    experiment = load(path, overrides or ())
    with add_source(path):
        return experiment, make_plan(experiment), path


def _check_memory(plan: "Plan", path: Path) -> None:
    from ddln.config.experiment import add_source

    with add_source(path):
        plan.check_memory()


def _study_of(experiment: "Experiment", path: Path) -> Path:
    from ddln.config.experiment import add_source
    from ddln.sweeps.studies import locate

    with add_source(path):
        return locate(experiment.study, path.parent)


def _study_or_error(name: str, path: Path) -> "ModuleType | StudyError":
    """The study, or the error of importing it, logged: the run needs a study only at its end."""
    from ddln.sweeps import studies

    try:
        return studies.find(name, path.parent)
    except studies.StudyError as error:
        log(f"ddln: {error}\nthe run continues with its certificates, without claims and figures")
        return error


def _existing(run: str, out: Path) -> "RunFolder":
    """The newest run folder that matches; its name is logged if there are several."""
    from ddln.sweeps import saved_runs

    folders = saved_runs.matching(run, out)
    if len(folders) > 1:
        log(f"{folders[0].path.name}, the newest of {len(folders):,} runs")
    return folders[0]


def _open(run: str, out: Path, stack: contextlib.ExitStack) -> "RunFolder":
    folder = _existing(run, out)
    stack.enter_context(folder.locked())
    return folder


def _is_tame(chunk: "Chunk") -> bool:
    """Whether validation without JAX covers everything that `run` could reject in the data."""
    from ddln.config.datasets import is_tame
    from ddln.config.experiment import substitute

    first = {name: values[0] for name, values in chunk.values.items()}
    problem = substitute(chunk.experiment, first).problem
    return is_tame(problem.data, problem.loss.kind)


def _validate(plan: "Plan", path: Path) -> None:
    from ddln.config.experiment import add_source
    from ddln.sweeps import compute

    with add_source(path):
        for chunk in plan.programs:
            compute.validate(chunk)


def _conclude(folder: "RunFolder", json_lines: bool) -> None:
    """Print the results, or the event `finished`, and exit with status 0 or 1."""
    tables = folder.read_claims()
    failed = [row for rows in tables.values() for row in rows if printing.failed([row])]
    if json_lines:
        from ddln.sweeps import progress

        names = [row["name"] for row in failed]
        progress.event("finished", run=str(folder.path), ok=not failed, failed=names)
    else:
        printing.print_run(folder, tables)
    raise typer.Exit(int(bool(failed)))
