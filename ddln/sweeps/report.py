"""One run as one page: its figures, what was checked and how it came out, and how to do it again.

The page is a single file. Nothing in it asks another machine for anything: a content policy forbids
it, figures are inside as SVG, and every word from the run is escaped.
"""

import base64
import io
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from ddln._internal.files import read_limited, write_whole
from ddln._internal.html import Markup, count, element, join, number, table
from ddln.solvers.status import FINISHED, Status
from ddln.sweeps.dataset_schema import accuracy_in_words, solved_again
from ddln.sweeps.run_folder import RunFolder, StoreError

LARGEST = 2**26
"""Bytes of a figure or config that goes into the page."""
LISTED = 50
"""So many unfinished networks are listed by name; the rest are counted."""


MEANINGS = {
    "completed": "It came to the last of the points that it was asked for.",
    "consistency": "What it recorded at each point belongs together: layers, θ, speed, loss, gap.",
    "conservation": "What the start fixes stays fixed: the differences of the squared layers.",
    "sign": "Only a coordinate's smallest layer can reach zero; the others keep their distance.",
    "monotone loss": "Training never makes the loss worse, as long as its steps are small.",
    "dissipation": "The loss falls exactly as fast as the layers move.",
    "mirror identity": "θ moves just as a mirror flow with the entropy Q moves it.",
    "entropy Hessian": "Where the entropy is steep the network moves slowly, and the other way.",
    "dual path": "Seen through the mirror map, the path is the sum of the gradients met so far.",
    "clock": "Time runs as the gradients say, from each saved time to the next.",
    "divergence bound": "The gap falls at least like one over time.",
    "exponential bound": "The gap falls exponentially, at a rate the initialisation guarantees.",
    "a-posteriori bound": "The same, with the rate the run had rather than the one guaranteed.",
    "asymptotic rate": "In the end the gap falls at just the rate that theory predicts.",
    "recursion": "Each record leads to the next by the steps of the training rule.",
    "exact identity": "How far apart the two layers are follows from the gradients met, exactly.",
    "KKT of the limit": "Of all θ that fit as well, it ends nearest to the start, as the entropy "
    "of the last imbalance measures it.",
    "descent lemma": "A step that is not too large lowers the loss by as much as it must.",
}
"""What each certificate says, in plain words."""


def write(run_folder: str | Path) -> Path:
    """Writes report.html into a run's folder.

    Args:
        run_folder: with a manifest, config, dataset, claims and figures, as `ddln run` leaves it.

    Returns:
        The page's path.

    Raises:
        StoreError: the dataset or the claims are missing or damaged, or not as `ddln run` writes
            them.
    """
    folder = RunFolder(run_folder)
    target, text = folder.path / "report.html", page(folder)
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))
    return target


def page(folder: RunFolder) -> str:
    """The page as a string, from what the folder holds.

    Raises:
        StoreError: as `write`.
    """
    try:
        return _page(folder)
    except (AttributeError, LookupError, TypeError, Image.DecompressionBombError) as error:
        raise StoreError(
            f"{folder.path}: no run that `ddln run` leaves: {type(error).__name__}: {error}"
        ) from error


def _page(folder: RunFolder) -> str:
    manifest, tables, dataset = folder.manifest(), folder.read_claims(), folder.read_dataset()
    config = read_limited(folder.path / "config.toml", LARGEST).decode()
    study = manifest["study"]
    again = solved_again(dataset)
    checks = [*tables["claims"], *tables["certificates"]]
    sections = [
        ("Figures", [_figure(path) for path in sorted((folder.path / "figures").glob("*.png"))]),
        ("What this study claims", [_checks(tables["claims"])]),
        ("Theorems, checked on every network", [_checks(tables["certificates"])]),
        ("Networks that did not finish", _unfinished(dataset)),
        ("Solved again", [element("p", accuracy_in_words(*again))] if again[0] else []),
        ("Configuration", [element("pre", config.strip())]),
        ("Made with", [_provenance(manifest)]),
        ("Again", _again(folder.path.name)),
    ]
    body = "".join(
        element("section", join(element("h2", title), *parts), {"id": _slug(title)})
        for title, parts in sections
        if any(parts)
    )
    title = str(dataset.attrs.get("title") or study)
    lanes = math.prod(dataset["status"].shape)
    return _PAGE.substitute(
        title=escape(title),
        study=escape(f"study {study}, run {manifest['digest']}, {count(lanes, 'network')}"),
        verdict=_verdict(checks),
        body=body,
    )


def _slug(title: str) -> str:
    return title.partition(",")[0].lower().replace(" ", "-")


def _verdict(checks: Sequence[Mapping[str, Any]]) -> Markup:
    tested = [row for row in checks if row["applies"]]
    failed = [str(row["name"]) for row in tested if not row["holds"]]
    if failed:
        text = f"✗ {len(failed)} of {count(len(tested), 'check')} failed: {', '.join(failed)}"
    else:
        text = f"✓ {count(len(tested), 'check')} passed"
    return element("p", text, {"class": "verdict fails" if failed else "verdict holds"})


def _figure(path: Path) -> Markup:
    """A figure, of any size where it is touched: `:target` does without a script."""
    content = read_limited(path, LARGEST)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        text = str(image.info.get("Description") or path.stem)
        width, height = image.size
    drawn, kind = path.with_suffix(".svg"), "png"
    if drawn.is_file():  # not in a run of an earlier version
        content, kind = read_limited(drawn, LARGEST), "svg+xml"
    source = f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
    attributes = {"src": source, "alt": text, "width": width, "height": height}
    if width > 2 * height:
        attributes["class"] = "wide"
    name = f"figure-{path.stem}"
    zoom = {"href": f"#{name}", "aria-label": f"enlarge {path.stem}"}
    frame = element("div", element("a", element("img", None, attributes), zoom))
    back = element("a", "× back", {"href": "#figures", "class": "back"})
    caption = element("figcaption", f"{path.stem}: {text}")
    return element("figure", join(back, frame, caption), {"id": name})


def _checks(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """A table of certificates or claims: what, how it came out, how near."""
    heads = ("", "Check", "Measured", "Predicted", "Tolerance")
    return table(heads, [_check(row) for row in rows])


def _check(row: Mapping[str, Any]) -> list[str]:
    if not row["applies"]:
        state, kind, counted = "– not applicable", "quiet", ""
    else:
        state, kind = ("✓ holds", "holds") if row["holds"] else ("✗ fails", "fails")
        counted = f"{row['lanes_holding']} of {row['lanes_applicable']}" if "lanes" in row else ""
    meaning = MEANINGS.get(row["name"], "")
    relation = "≤" if row["relation"] == "<=" else str(row["relation"])
    return [
        join(element("span", state, {"class": kind}), _quiet(counted)),
        join(
            element("b", str(row["name"])),
            element("span", f" {row['source']}", {"class": "quiet"}),
            element("div", meaning),
            _quiet(str(row["statement"])) if meaning else element("div", str(row["statement"])),
        ),
        number(row["measured"]),
        f"{relation} {number(row['predicted'])}",
        join(element("span", number(row["tolerance"])), _quiet(str(row["reason"]))),
    ]


def _explanation(name: str) -> str:
    """Meaning of a status, and the advice about it."""
    if name not in {status.value for status in Status}:
        return ""
    return f"{Status(name).meaning}: {Status(name).advice}"


def _unfinished(dataset: xr.Dataset) -> list[str]:
    """What became of the networks whose run broke off, and where they are in the sweep."""
    status = dataset["status"]
    codes = np.atleast_1d(status.attrs["flag_values"]).tolist()
    names = dict(zip(codes, status.attrs["flag_meanings"].split(), strict=True))
    finished = [code for code, name in names.items() if name in FINISHED]
    where = np.argwhere(~np.isin(status, finished))
    rows = []
    for index in where[:LISTED]:
        place = dict(zip(status.dims, index.tolist(), strict=True))
        name = names.get(int(status[place]), "unknown")
        values = [f"{axis} = {dataset[axis][i].item():g}" for axis, i in place.items()]
        rows.append([", ".join(values) or "the only one", name, _explanation(name)])
    more = f"{count(len(where), 'network')} in all; the first {LISTED} are listed."
    return [
        *([table(("Network", "Ended", "Meaning"), rows)] if rows else []),
        *([element("p", more)] if len(where) > LISTED else []),
    ]


def _provenance(manifest: Mapping[str, Any]) -> Markup:
    facts = {**manifest["versions"], "device": manifest["device"], "numbers": manifest["dtype"]}
    return table(("Part", "Version"), [[name, str(value)] for name, value in facts.items()])


def _again(name: str) -> list[str]:
    config, run = shlex.quote(f"runs/{name}/config.toml"), shlex.quote(name)
    told = {
        f"ddln run {config}": "goes on where it stopped, or shows the result",
        f"ddln run {config} network.depth=8": "the same with another value",
        f"ddln show {run}": "prints these tables",
        f"ddln draw {run}": "draws the figures again, after a change to the study",
    }
    rows = [[element("code", command), meaning] for command, meaning in told.items()]
    data = f'xarray.open_dataset({json.dumps(f"runs/{name}/dataset.nc")}, engine="h5netcdf")'
    rows.append([element("code", data), "opens the numbers in Python"])
    return [table(("Command", "What it does"), rows)]


def _quiet(text: str) -> Markup:
    return element("div", text, {"class": "quiet"})


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --ink: #1c2126; --quiet: #5b6570; --paper: #fff; --panel: #f4f6f8; --line: #d8dde2;
        --holds: #0b6b3a; --fails: #a8201a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --quiet: #9aa5b0; --paper: #14181c; --panel: #1e242a; --line: #38414a;
          --holds: #6fd39b; --fails: #ff8f87; }
}
@media (prefers-color-scheme: dark) { img { filter: brightness(.88); } }
@media print {
  :root { --ink: #000; --quiet: #444; --paper: #fff; --panel: #fff; --line: #bbb;
          --holds: #0b6b3a; --fails: #a8201a; }
  img { filter: none; max-height: 16cm; }
  figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  pre { white-space: pre-wrap; border: 1px solid var(--line); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; color: var(--ink);
       background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
.quiet, figcaption, header p { color: var(--quiet); }
.holds { color: var(--holds); }
.fails { color: var(--fails); font-weight: 600; }
.verdict { margin: 1rem 0 0; padding: .6rem .9rem; background: var(--panel);
           border-left: .25rem solid; font-weight: 600; }
figure { margin: 0 0 1.5rem; }
img { display: block; width: auto; max-width: 100%; height: auto; max-height: 34rem; margin: auto;
      padding: .5rem; background: #fff; border-radius: .3rem; }
figure .back { display: none; }
figure:target { position: fixed; inset: 0; z-index: 1; margin: 0; padding: 1rem; overflow: auto;
                background: var(--paper); }
figure:target .back { display: inline-block; margin-bottom: .5rem; padding: .3rem .8rem;
                      color: inherit; background: var(--panel); border-radius: .3rem; }
figure:target img { width: 100%; max-height: none; }
figcaption { margin-top: .4rem; font-size: .875rem; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .5rem .75rem .5rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 600; overflow-wrap: normal; }
td:first-child, td:nth-child(n + 3) { overflow-wrap: break-word; }
td:first-child > span { white-space: nowrap; }
pre { margin: 0; padding: .9rem; overflow-x: auto; background: var(--panel); border-radius: .3rem; }
pre, code { font: .85rem/1.5 ui-monospace, monospace; }
@media (max-width: 40rem) {
  figure div { overflow-x: auto; }
  img.wide { width: 42rem; max-width: none; }
  thead { position: absolute; clip-path: inset(50%); }
  tr, td { display: block; }
  tr { padding: .6rem 0; border-bottom: 1px solid var(--line); }
  td { padding: .1rem 0; border: 0; }
  td:not([data-of=""], [data-of="Check"])::before { content: attr(data-of) " ";
                                                    color: var(--quiet); }
}
</style>
</head>
<body>
<header><h1>$title</h1><p>$study</p>$verdict</header>
<main>$body</main>
</body>
</html>
""")
