"""The page of a run: complete, well formed, escaped, and self-contained."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from ddln.config import experiment as config
from ddln.plotting import figures
from ddln.solvers.status import Status
from ddln.sweeps import plan, report
from ddln.sweeps.dataset_schema import accuracy_in_words
from ddln.sweeps.run_folder import RunFolder, StoreError

HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"img", "meta"}
CONFIG = """
study = "hostile"
[problem]
data = { kind = "gaussian", samples = 4, features = 3, seed = 0 }
[network]
depth = 2
init = { kind = "normal", seed = 1 }
[dynamics]
until = 1.0
[sweep]
"network.scale" = [1.0, 2.0, 3.0]
"""


def row(name, **changes):
    """A row of claims.json."""
    base = {"source": "Theorem 2", "statement": HOSTILE, "relation": "<=", "reason": "rounding"}
    numbers = {"measured": 0.5, "predicted": 1.0, "tolerance": 1e-6, "applies": True, "holds": True}
    return {"name": name, **base, **numbers, **changes}


def counted(name, **changes):
    """A row of a certificate."""
    return row(name, lanes=3, lanes_applicable=3, lanes_holding=2, **changes)


def write_run(run, experiment, status):
    """Write the files of a run of three networks with these status codes."""
    planned = plan.make_plan(experiment)
    flags = {"flag_values": [0, 1, 2, 3], "flag_meanings": "ok max_steps diverged stopped"}
    lanes = xr.Dataset(
        {"status": ("lane", status, flags), "flow_time": (("lane", "time"), np.zeros((3, 1)))}
        | dict.fromkeys(("steps", "rounds"), ("lane", [1, 1, 1])),
        {"lane": [0, 1, 2], "certificate": ["sign"], "hypothesis": ["convex"]},
        {"title": f"Title {HOSTILE}"},
    )
    figure, axes = figures.canvas(2.0, 1.0)
    axes.set(xlabel="time", ylabel=HOSTILE)
    with run.locked():
        run.open(planned, versions={"jax": HOSTILE}, device="cpu", dtype="float64")
        run.write_chunk(planned.chunks[0], lanes)
        run.write_dataset(planned)
        never = counted("never", applies=False, measured=np.nan)
        checks = [counted("sign"), never, counted("late", holds=False)]
        run.write_claims({"certificates": checks, "claims": [row("first")]})
        run.write_figures({"drawn": figure, "plain": Figure(figsize=(1, 1))})


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "hostile.toml").write_text(CONFIG, encoding="utf-8")
    return config.load(tmp_path / "hostile.toml")


@pytest.fixture
def folder(experiment, tmp_path):
    """A run of three networks, the last of which diverged."""
    run = RunFolder.of(experiment, tmp_path / "runs")
    write_run(run, experiment, [0, 0, 2])
    return run


class Page(HTMLParser):
    """A strict reader: checks that elements close in order; collects attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(folder):
    return Page(report.write(folder.path).read_text(encoding="utf-8"))


def test_page_is_well_formed(page):
    assert page.open == []


def test_every_string_is_escaped(page):
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(HOSTILE) >= 6


def test_page_requests_nothing(page):
    addresses = [a[k] for _, a in page.elements for k in ("src", "href", "action") if k in a]
    inside = ("data:image/svg+xml;base64,", "#")
    assert any(address.startswith(inside[0]) for address in addresses)
    assert all(address.startswith(inside) for address in addresses)
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "script", "iframe", "object"})
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_figures_are_embedded_as_svg_with_descriptions(folder, page):
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert [image["alt"] for image in images] == [f"{HOSTILE} against time.", "plain"]
    for image, name in zip(images, ("drawn", "plain"), strict=True):
        content = base64.b64decode(image["src"].partition(",")[2])
        assert content == (folder.path / "figures" / f"{name}.svg").read_bytes()
        width, height = map(float, re.findall(rb' (?:width|height)="([\d.]+)pt"', content)[:2])
        shape = int(image["width"]) / int(image["height"])
        assert shape == pytest.approx(width / height, rel=0.01)  # whole pixels


def test_links_within_the_page_have_targets(page):
    places = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 4  # for each of two figures, one to enlarge it and one back
    assert {link.removeprefix("#") for link in links} <= places


def test_run_without_svg_embeds_png(folder):
    for path in (folder.path / "figures").glob("*.svg"):
        path.unlink()
    assert report.page(folder).count("data:image/png;base64,") == 2


def test_verdict_names_failed_checks(page):
    assert "✗ 1 of 3 checks failed: late" in page.text


def test_inapplicable_checks_are_not_counted_as_passed(page):
    assert "– not applicable" in page.text
    assert "nan" not in page.text


def test_verdict_of_a_run_without_failures(folder):
    with folder.locked():
        folder.write_claims({"certificates": [], "claims": [row("only")]})
    page = Page(report.write(folder.path).read_text(encoding="utf-8"))
    assert "✓ 1 check passed" in page.text
    assert "Theorems" not in page.text.replace("Theorems, checked on every network", "", 1)


def test_errors_of_the_study_are_shown_beside_the_verdict(folder):
    page = Page(report.page(folder, ["mine.py:3: <b>KeyError</b>"]))
    assert "✗ The study failed: mine.py:3: <b>KeyError</b>" in page.text


def test_unfinished_networks_are_located_and_explained(page):
    assert "network.scale = 3" in page.text
    assert Status.DIVERGED.advice in page.text


def test_network_stopped_at_its_target_counts_as_finished(folder, experiment):
    write_run(folder, experiment, [0, 3, 3])
    assert "did not finish" not in report.page(folder)


def test_recomputed_networks_are_reported_on_the_page(folder):
    assert "Solved again" not in report.page(folder)
    planned = plan.make_plan(config.load(folder.path / "config.toml"))
    lanes = xr.load_dataset(folder.path / "chunks" / "00000.nc", engine="h5netcdf")
    with folder.locked():
        again = lanes.assign(discrepancy=("lane", [0.1, np.nan, 7.0]))
        folder.write_chunk(planned.chunks[0], again)
        folder.write_dataset(planned)
    expected = accuracy_in_words(2, 1)
    assert expected.startswith("2 networks recomputed at tolerances 30 times finer, 1 less exact")
    assert expected in report.page(folder)


def test_many_unfinished_networks_are_counted(folder, experiment, monkeypatch):
    monkeypatch.setattr(report, "LISTED", 2)
    write_run(folder, experiment, [1, 1, 1])
    text = Page(report.write(folder.path).read_text(encoding="utf-8")).text
    assert "3 networks in all; the first 2 are listed." in text
    assert "network.scale = 3" not in text


def test_page_shows_config_versions_and_commands(folder, page):
    assert (folder.path / "config.toml").read_text(encoding="utf-8").strip() in page.text
    assert f"ddln run runs/{folder.path.name}/config.toml" in page.text
    assert folder.manifest()["digest"] in page.text


def test_page_is_reproducible(folder):
    first = report.write(folder.path).read_bytes()
    assert report.write(folder.path).read_bytes() == first


def test_page_of_a_damaged_run_is_refused(folder):
    (folder.path / "dataset.nc").write_bytes(b"cut short")
    with pytest.raises(StoreError, match=r"dataset\.nc is missing or damaged"):
        report.write(folder.path)
    assert not (folder.path / "report.html").exists()
