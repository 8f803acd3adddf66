"""Write the page of a run: its figures, what was checked, the outcome, and how to repeat it.

`templates/report.html.j2` has the page's words and layout; this module computes its values. The
page is a single file that requests nothing from other machines: a content policy forbids it, the
figures are inside as SVG, and the template escapes every value.
"""

import base64
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import xarray as xr
from PIL import Image

from ddln._internal.files import read_limited, write_whole
from ddln._internal.text import count, number
from ddln.solvers.status import FINISHED, Status
from ddln.sweeps._manifest import LARGEST_FILE
from ddln.sweeps.dataset_schema import accuracy_in_words, count_recomputed
from ddln.sweeps.run_folder import RunFolder, StoreError
from ddln.verification.tables import explanation

LISTED = 50
"""How many unfinished networks are listed by name; the others are counted."""

MEANINGS = {
    "completed": "The run reached the last of its points.",
    "consistency": "At each point, the recorded layers, θ, velocity, loss and gap agree.",
    "conservation": "The differences of the squared layers are as the start, and decay, say.",
    "sign": "Only a coordinate's smallest layer can reach zero; the others keep their distance.",
    "monotone loss": "The loss never rises, as long as the steps are small.",
    "monotone objective": "The loss plus the penalty of weight decay never rises.",
    "dissipation": "The loss falls exactly as fast as the layers move.",
    "mirror identity": "θ follows the mirror flow with the entropy Q.",
    "entropy Hessian": "The more curved the entropy, the slower the network moves.",
    "dual path": "The mirror map of θ moves by minus the integral of the gradients.",
    "clock": "The recorded times agree with the gradients between them.",
    "divergence bound": "The gap falls at least like one over time.",
    "exponential bound": "The gap falls exponentially, at a rate the initialisation guarantees.",
    "a-posteriori bound": "The same, with the rate the run had rather than the one guaranteed.",
    "asymptotic rate": "In the end the gap falls at the predicted rate.",
    "recursion": "Repeating the steps of the rule leads from each record to the next.",
    "exact identity": "The gradients along the run determine how far apart both layers are.",
    "KKT of the limit": "Of all θ that fit as well, the run ends nearest to its start, as the "
    "entropy of the last imbalance measures it.",
    "descent lemma": "A step that is not too large lowers the loss by as much as it must.",
}
"""Plain statements of the certificates."""


def write(
    run_folder: str | Path, faults: Sequence[str] = (), dataset: xr.Dataset | None = None
) -> Path:
    """Write report.html into a run's folder.

    Args:
        run_folder: with the manifest, config, dataset, claims and figures that `ddln run` writes.
        faults: errors of the study, shown beside the verdict.
        dataset: that of the folder, if it was read already.

    Returns:
        The page's path.

    Raises:
        StoreError: the dataset or the claims are missing or damaged, or `ddln run` did not write
            them.
    """
    folder = RunFolder(run_folder)
    target, text = folder.path / "report.html", page(folder, faults, dataset)
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    return target


def page(folder: RunFolder, faults: Sequence[str] = (), dataset: xr.Dataset | None = None) -> str:
    """The page as a string, from the files of a run folder.

    Raises:
        StoreError: as `write`.
    """
    template = _environment().get_template("report.html.j2")
    try:
        return template.render(_values(folder, dataset), faults=faults)
    except (
        *(AttributeError, LookupError, TypeError),
        *(Image.DecompressionBombError, jinja2.TemplateError),
    ) as error:
        raise StoreError(
            f"{folder.path}: not a ddln run: {type(error).__name__}: {error}"
        ) from error


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def _values(folder: RunFolder, dataset: xr.Dataset | None) -> dict[str, Any]:
    """The values of the template, by name."""
    manifest, tables = folder.manifest(), folder.read_claims()
    dataset = folder.read_dataset() if dataset is None else dataset
    config = read_limited(folder.path / "config.toml", LARGEST_FILE).decode()
    recomputed, inexact = count_recomputed(dataset)
    figures = sorted((folder.path / "figures").glob("*.png"))
    versions = {**manifest["versions"], "device": manifest["device"], "numbers": manifest["dtype"]}
    return {
        "title": str(dataset.attrs.get("title") or manifest["study"]),
        "study": manifest["study"],
        "digest": manifest["digest"],
        "networks": count(math.prod(dataset["status"].shape), "network"),
        "verdict": _verdict([*tables["claims"], *tables["certificates"]]),
        "figures": [_figure(path) for path in figures],
        "claims": [_check(row) for row in tables["claims"]],
        "certificates": [_check(row) for row in tables["certificates"]],
        "unfinished": _unfinished(dataset),
        "accuracy": accuracy_in_words(recomputed, inexact) if recomputed else "",
        "config": config.strip(),
        "versions": versions,
        "commands": _commands(folder.path.name),
    }


def _verdict(checks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    tested = [row for row in checks if row["applies"]]
    failed = [str(row["name"]) for row in tested if not row["holds"]]
    if failed:
        text = f"✗ {len(failed)} of {count(len(tested), 'check')} failed: {', '.join(failed)}"
        return {"kind": "fails", "text": text}
    return {"kind": "holds", "text": f"✓ {count(len(tested), 'check')} passed"}


def _figure(path: Path) -> dict[str, Any]:
    content = read_limited(path, LARGEST_FILE)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        text = str(image.info.get("Description") or path.stem)
        width, height = image.size
    drawing, kind = path.with_suffix(".svg"), "png"
    if drawing.is_file():  # runs of earlier versions have none
        content, kind = read_limited(drawing, LARGEST_FILE), "svg+xml"
    return {
        "name": path.stem,
        "text": text,
        "source": f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii"),
        "width": width,
        "height": height,
        "is_wide": width > 2 * height,
    }


def _check(row: Mapping[str, Any]) -> dict[str, str]:
    """One certificate or claim: its statement, its outcome, and the numbers behind it."""
    if not row["applies"]:
        state, kind, counted = "– not applicable", "quiet", ""
    else:
        state, kind = ("✓ holds", "holds") if row["holds"] else ("✗ fails", "fails")
        counted = f"{row['lanes_holding']} of {row['lanes_applicable']}" if "lanes" in row else ""
    return {
        "state": state,
        "kind": kind,
        "counted": counted,
        "name": str(row["name"]),
        "source": str(row["source"]),
        "meaning": MEANINGS.get(row["name"], ""),
        "statement": str(explanation(row)),
        "measured": number(row["measured"]),
        "relation": "≤" if row["relation"] == "<=" else str(row["relation"]),
        "predicted": number(row["predicted"]),
        "tolerance": number(row["tolerance"]),
        "reason": str(row["reason"]),
    }


def _unfinished(dataset: xr.Dataset) -> dict[str, Any]:
    """The networks whose run broke off: their places in the sweep, their status and its remedy."""
    status = dataset["status"]
    codes = np.atleast_1d(status.attrs["flag_values"]).tolist()
    names = dict(zip(codes, status.attrs["flag_meanings"].split(), strict=True))
    finished = [code for code, name in names.items() if name in FINISHED]
    indices = np.argwhere(~np.isin(status, finished))
    rows = []
    for index in indices[:LISTED]:
        place = dict(zip(status.dims, index.tolist(), strict=True))
        name = names.get(int(status[place]), "unknown")
        values = [f"{axis} = {dataset[axis][i].item():g}" for axis, i in place.items()]
        network = ", ".join(values) or "the only one"
        rows.append({"network": network, "status": name, "remedy": _explanation(name)})
    more = f"{count(len(indices), 'network')} in all; the first {LISTED} are listed."
    return {"rows": rows, "more": more if len(indices) > LISTED else ""}


def _explanation(name: str) -> str:
    """The meaning of a status, and the advice about it."""
    if name not in {status.value for status in Status}:
        return ""
    return f"{Status(name).meaning}: {Status(name).advice}"


def _commands(name: str) -> dict[str, str]:
    """Commands that repeat, change, print and draw the run, and what each does."""
    config, run = shlex.quote(f"runs/{name}/config.toml"), shlex.quote(name)
    data = f'xarray.open_dataset({json.dumps(f"runs/{name}/dataset.nc")}, engine="h5netcdf")'
    return {
        f"ddln run {config}": "resumes where it stopped, or shows the result",
        f"ddln run {config} network.depth=8": "the same with another value",
        f"ddln show {run}": "prints these tables",
        f"ddln draw {run}": "draws the figures again, after a change to the study",
        data: "opens the numbers in Python",
    }
