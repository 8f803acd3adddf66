"""Find, run and create studies: `experiments/NAME.py` makes claims about a data set and draws it.

A study whose data are drawn by NumPy also has a function `data()`, which makes the file that its
config names. Studies are looked up in `experiments/` of the working folder, then among those that
come with the package; configs named without a path likewise. No other folder is searched: a study
is code, and code that came with a config or a run folder must not run.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddln.config._table import NAME
from ddln.config.data_files import write_arrays


class StudyError(ValueError):
    """A study that is missing or cannot be used."""


def shipped() -> Path:
    """The folder with the `configs/` and `experiments/` that come with the package."""
    package = Path(__file__).parent.parent
    return package / "shipped" if (package / "shipped").is_dir() else package.parent


def locate(name: str, beside: Path | None = None) -> Path:
    """The file of the study called `name`.

    Args:
        name: lower-case letters, digits and underscores.
        beside: the config file; a study next to it is not run, but the error message names it.

    Raises:
        StudyError: there is no such study.
    """
    if not re.fullmatch(NAME, name):
        raise StudyError(f"study: must match {NAME}, got {name!r}")
    folders = _folders("experiments")
    for folder in folders:
        if (path := folder / f"{name}.py").is_file():
            return path
    if beside and (path := beside.absolute().parent / "experiments" / f"{name}.py").is_file():
        raise StudyError(
            f"study: {path} is code, which runs only from its own folder: cd {path.parent.parent}"
        )
    known = sorted({path.stem for folder in folders for path in folder.glob("[a-z]*.py")})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known) or 'none'}"
    raise StudyError(f"study: no experiments/{name}.py, {hint} (`ddln new {name}` makes one)")


def find(name: str, beside: Path | None = None) -> ModuleType:
    """Import the study called `name`.

    Args:
        name: lower-case letters, digits and underscores.
        beside: as for `locate`.

    Returns:
        The module, with `claims(dataset) -> list[Claim]` and `draw(dataset)`, which returns a
        matplotlib Figure or a dictionary of them by name. It may have `SOURCE`, the paper that its
        claims are from unless they name another, and `data() -> dict` of arrays.

    Raises:
        StudyError: it is missing, cannot be imported, or lacks `claims` or `draw`.
    """
    from ddln.sweeps import accessor as accessor  # studies use `dataset.ddln`

    path = locate(name, beside)
    spec = importlib.util.spec_from_file_location(f"experiments.{name}", path)
    if spec is None or spec.loader is None:
        raise StudyError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a module up by its name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        place = _place(path, error)
        raise StudyError(f"{place}: {type(error).__name__}: {_message(error)}") from error
    for function in ("claims", "draw"):
        if not callable(getattr(module, function, None)):
            raise StudyError(f"{path}: must define {function}(dataset)")
    return module


def fingerprint(path: Path) -> str:
    """SHA-256 of a study's file. If it changes, the claims may change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def claims(study: ModuleType, dataset: Any) -> list[dict[str, Any]]:
    """The study's claims as rows; the source of those without one is the study's `SOURCE`.

    Raises:
        StudyError: the study cannot use this data set.
    """
    with attributed(study):
        rows = [claim.row() for claim in study.claims(dataset)]
    default = getattr(study, "SOURCE", "")
    return [row | {"source": row.get("source") or default} for row in rows]


def figures(study: ModuleType, dataset: Any) -> dict[str, Any]:
    """The study's figures by name; a single one has the study's name.

    Raises:
        StudyError: the study cannot draw this data set, or returns something other than figures.
    """
    from matplotlib.figure import Figure

    with attributed(study):
        drawn = study.draw(dataset)
    named = drawn if isinstance(drawn, dict) else {study.__name__.rpartition(".")[2]: drawn}
    for figure in named.values():
        if not isinstance(figure, Figure):
            of_axes = "; the figure of axes is `axes.figure`" * hasattr(figure, "figure")
            raise StudyError(
                f"{_file_of(study)}: draw(dataset) must give a Figure, or a dictionary of them by "
                f"name, got {type(figure).__name__}{of_axes}"
            )
    return named


def write_data(name: str, folder: Path) -> Path:
    """Write configs/data/NAME.npz with the study's `data()`, completely or not at all.

    Args:
        name: as for `find`.
        folder: holds `configs/`, which is created if needed.

    Returns:
        The path written.

    Raises:
        StudyError: there is no such study, or its `data` is missing or fails.
        DataError: the arrays are not features and targets that fit each other.
    """
    study = find(name)
    if not callable(getattr(study, "data", None)):
        raise StudyError(f"{study.__name__}: must define data(), a dictionary of arrays")
    with attributed(study, "make its data"):
        arrays = {key: np.asarray(array) for key, array in study.data().items()}
    path = folder / "configs" / "data" / f"{name}.npz"
    write_arrays(path, arrays)
    return path


@contextlib.contextmanager
def attributed(
    study: ModuleType, act: str = "use this data set", *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Names the study, and the line of it, in errors that it makes.

    A study may want another axis, or a variable that `dynamics.save` leaves out.

    Args:
        study: whose functions are called.
        act: what it is to do.
        but: errors that are not its own.

    Raises:
        StudyError: any other error.
    """
    try:
        yield
    except but:
        raise
    except Exception as error:
        name, kind = study.__name__, type(error).__name__
        place = _place(_file_of(study), error)
        raise StudyError(f"{place}: {name} cannot {act}: {kind}: {_message(error)}") from error


def _file_of(study: ModuleType) -> Path:
    return Path(getattr(study, "__file__", None) or study.__name__)


def _place(path: Path, error: Exception) -> str:
    """The file, and the last of its lines that led to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _message(error: Exception) -> str:
    """The error's text; a syntax error without its place, which the caller names."""
    return error.msg if isinstance(error, SyntaxError) else str(error)


def find_config(name: str) -> Path:
    """The config file with this path or bare name.

    Raises:
        StudyError: there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    folders = _folders("configs")
    for folder in folders:
        if re.fullmatch(NAME, name) and (file := folder / f"{name}.toml").is_file():
            return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f'did you mean "{near[0]}"?' if near else "`ddln list` lists them"
    raise StudyError(f"{name}: no such file, {hint}")


def configs() -> Iterator[tuple[Path, str]]:
    """Yield every config file, the user's own first, with the first line of its study."""
    seen = set()
    for folder in _folders("configs"):
        for path in sorted(folder.glob("*.toml")):
            if path.stem not in seen:
                seen.add(path.stem)
                yield path, _first_line(path.stem)


def _first_line(name: str) -> str:
    for folder in _folders("experiments"):
        try:
            tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            continue
        return (ast.get_docstring(tree) or "").partition("\n")[0]
    return ""


def _folders(kind: str) -> list[Path]:
    return list(dict.fromkeys([Path.cwd() / kind, shipped() / kind]))


_CONFIG = """\
# {name}: change a number and run again. `ddln schema` lists every key.
study = "{name}"

[problem]
data = {{ kind = "gaussian", samples = 10, features = 8, seed = 0 }}
loss = {{ kind = "least_squares" }}

[network]
depth = 3
init = {{ kind = "zero_first_layer", law = {{ kind = "normal", std = 1.0 }}, seed = 1 }}

[dynamics]
kind = "gradient_flow"  # or "mirror_flow", or step by step: "descent"
until = 3.0

[sweep]
"network.scale" = [1.0, 1.4, 1.8]
"""

_STUDY = '''\
"""{name}: what is claimed of the data set, and how it is drawn."""

import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln import figures

SOURCE = "Proposition 1"
"""Paper and statement of the claims that name no other."""


def claims(dataset: xr.Dataset) -> list[ddln.Claim]:
    """The loss never ends above where it started."""
    ratio = (dataset.ddln.end["loss"] / dataset["loss"].isel(time=0)).max(skipna=False)
    return [ddln.claim.at_most("largest loss at the end over that at the start", ratio, 1.0)]


def draw(dataset: xr.Dataset) -> Figure:
    """The gap to the least loss against time, one curve per network."""
    return figures.gap_against_time(dataset)
'''


def create(name: str, folder: Path) -> list[Path]:
    """Write configs/NAME.toml and experiments/NAME.py, which run as they are.

    Args:
        name: lower-case letters, digits and underscores.
        folder: holds `configs/` and `experiments/`, which are created if needed.

    Returns:
        The paths written: the study, and its config unless that existed.

    Raises:
        StudyError: an invalid name, or a study that exists already; nothing is written.
    """
    if not re.fullmatch(NAME, name):
        raise StudyError(f"a name must match {NAME}, got {name!r}")
    files = {
        folder / "configs" / f"{name}.toml": _CONFIG,
        folder / "experiments" / f"{name}.py": _STUDY,
    }
    config, study = files
    if study.exists():
        raise StudyError(f"{study}: exists already")
    if config.exists():  # only a study for it is wanted
        del files[config]
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(name=name), encoding="utf-8")
    return list(files)
