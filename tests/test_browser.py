"""The pages in a real browser: they open without errors or requests to others and can be used.

Screenshots are left in build/screenshots/.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import ddln
from ddln.config.dynamics_schema import FlowConfig
from ddln.config.experiment import load, parse
from ddln.plotting import figures
from ddln.plotting.explorer import network_controls
from ddln.sweeps import build, plan, report
from ddln.sweeps.run_folder import RunFolder
from tests.reading import PIXEL, curve_of, flow

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TIMEOUT = 120_000  # ms; the first network has to be compiled on a busy machine
POLL = 100  # ms
DIGITS = 1e-6  # numbers are written with nine digits
OWN = ("http://127.0.0.1:", "ws://127.0.0.1:", "file://", "data:", "blob:")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium):
    """A tab that fails on errors and on requests to other hosts."""
    page = chromium.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(TIMEOUT)
    faults, asked = [], []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    yield page
    page.close()
    assert faults == []
    assert [url for url in asked if not url.startswith(OWN)] == []


def keep(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@contextlib.contextmanager
def served(folder, *words):
    """The address of the page that `ddln explore` opens."""
    command = [sys.executable, "-m", "ddln.cli", "explore", *words, "--port", "0", "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[0]
        process.send_signal(2)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def svg(page, name):
    return page.locator(f"#{name} > svg").evaluate("chart => chart.outerHTML")


def eventually(page, check):
    """Repeat the check until it holds: a page may redraw a chart after its text."""
    end = time.monotonic() + TIMEOUT / 1000
    while time.monotonic() < end:
        with contextlib.suppress(AssertionError):
            return check()
        page.wait_for_timeout(POLL)
    return check()


def move(page, index, selector, texts):
    """Move a slider step by step with the keyboard; the page must leave it the focus."""
    page.get_by_role("slider").nth(index).focus()
    for text in texts:
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f'{selector}:has-text("{text}")')


def test_report_opens_without_errors(tab, tmp_path):
    experiment = load(ROOT / "configs" / "figure4.toml", ["dynamics.points=5"])
    folder = RunFolder.of(experiment, tmp_path)
    figure, axes = figures.canvas(3.0, 2.0)
    axes.plot([0, 1])
    lanes = xr.Dataset(
        {"status": ("lane", [0, 0, 2], {"flag_values": [0, 2], "flag_meanings": "ok diverged"})}
        | {"flow_time": (("lane", "time"), np.zeros((3, 1)))}
        | dict.fromkeys(("steps", "rounds"), ("lane", [1, 1, 1])),
        {"lane": [0, 1, 2], "certificate": ["sign"], "hypothesis": ["convex"]},
    )
    planned = plan.make_plan(experiment)
    row = {"name": "<b>", "source": "x", "statement": "x", "relation": "<=", "reason": "x"}
    numbers = {"measured": 0.5, "predicted": 1.0, "tolerance": 0.0, "applies": True, "holds": True}
    with folder.locked():
        folder.open(planned, versions={"jax": "1"}, device="cpu", dtype="float64")
        folder.write_chunk(planned.chunks[0], lanes)
        folder.write_dataset(planned)
        folder.write_claims({"certificates": [], "claims": [{**row, **numbers}]})
        folder.write_figures({"drawn": figure, "plain": Figure(figsize=(1, 1))})
    tab.goto(report.write(folder.path).as_uri())
    assert tab.locator("h1").inner_text() == "figure4"
    assert tab.locator("img").count() == 2
    loaded = "all => all.every(image => image.complete && image.naturalWidth > 0)"
    assert tab.locator("img").evaluate_all(loaded)
    keep(tab, "report")
    for width, theme in ((390, "light"), (1200, "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=theme)
        overflow = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert tab.evaluate(overflow)
        keep(tab, f"report_{theme}")


@pytest.mark.slow
def test_sliders_update_the_curves_and_the_address(tab, tmp_path):
    with served(tmp_path, "explore", "dynamics.points=41") as address:
        base = network_controls.initial_state(
            load(ROOT / "configs" / "explore.toml", ["dynamics.points=41"])
        )
        tab.goto(address)
        tab.wait_for_selector("#gap svg")
        keep(tab, "explore")
        names = [control.name for control in network_controls.controls(base)]
        scales = [f"network.scale={a}" for a in (1.12, 1.26, 1.41)]
        move(tab, names.index("network.scale"), "#link", scales)
        query = dict(urllib.parse.parse_qsl(tab.locator("#link").inner_text().lstrip("?")))
        state = network_controls.from_query(base, query)
        assert state.network.scale == 1.41
        assert dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(tab.url).query)) == query
        problem, layers = build.build_problem(state), build.build_layers(state)
        assert isinstance(problem, ddln.LeastSquares)
        assert isinstance(state.dynamics, FlowConfig)
        times = np.asarray(build.saved_times(state.dynamics))
        theta, gap = flow(problem.features, problem.targets, layers, times)

        def curves_are_those_of_the_network():
            _, logs, pixel = curve_of(svg(tab, "gap"), "loss gap")
            np.testing.assert_allclose(
                logs, np.log10(gap[: logs.size]), atol=PIXEL * pixel + DIGITS
            )
            first, second, pixel = curve_of(svg(tab, "plane"), "θ(t)")
            np.testing.assert_allclose(np.stack([first, second], 1), theta, atol=PIXEL * pixel)

        eventually(tab, curves_are_those_of_the_network)
        with tab.expect_download() as download:
            tab.get_by_text("Config as TOML").click()
        saved = parse(Path(download.value.path()).read_text(encoding="utf-8"))
        assert saved == state
        before = svg(tab, "gap")
        tab.goto(f"{address}?{urllib.parse.urlencode(query)}")
        tab.wait_for_selector("#gap svg")
        assert svg(tab, "gap") == before

        tab.get_by_text("Keep", exact=True).click()
        tab.wait_for_function("document.querySelectorAll('#gap [data-name*=scale]').length > 0")
        tab.locator("select").nth(2).select_option("heavy_ball")
        tab.wait_for_selector("#facts >> text=largest stable step")
        keep(tab, "explore_heavy_ball")
        tab.goto(f"{address}?network.depth=1000&network.init=%3Cimg%20src=x%3E")
        tab.wait_for_selector("text=must be one of")
        assert tab.locator("img[src=x]").count() == 0
        tab.goto("about:blank")  # before the server stops


@pytest.mark.slow
def test_run_is_browsed_and_its_networks_are_compared(tab, tmp_path):
    words = ["study=explore", "network.depth=2", "dynamics.points=41"]
    words.append("sweep.network.init.seed=[1, 2]")
    command = [sys.executable, "-m", "ddln.cli", "run", "figure4", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    (run,) = (tmp_path / "runs").iterdir()
    dataset = RunFolder(run).read_dataset()
    with served(tmp_path, run.name[:11]) as address:
        tab.goto(address)
        tab.wait_for_selector("#across svg")
        ends = dataset["gap"].isel(time=-1)
        for seed in (1, 2):
            _, logs, pixel = curve_of(svg(tab, "across"), f"seed = {seed}")
            expected = np.log10(ends.sel({"network.init.seed": seed}))
            np.testing.assert_allclose(logs, expected, atol=PIXEL * pixel)
        tab.get_by_text("Keep", exact=True).click()
        tab.wait_for_selector("#kept")
        move(tab, 0, "#network", ["scale = 1.4", "scale = 1.8"])
        lane = dataset.sel({"network.scale": 1.8, "network.init.seed": 1})
        gap = figures.resolved(lane).dropna("time")

        def the_gap_is_that_of_the_lane():
            _, logs, pixel = curve_of(svg(tab, "gap"), "loss gap")
            np.testing.assert_allclose(logs, np.log10(gap), atol=PIXEL * pixel)

        eventually(tab, the_gap_is_that_of_the_lane)
        assert "scale = 1," in tab.locator("#kept").inner_text()
        keep(tab, "run")
        tab.goto("about:blank")
    dataset.close()


@pytest.mark.slow
def test_page_rejects_other_host_names(tmp_path):
    with served(tmp_path, "explore") as address:
        assert urllib.request.urlopen(address).status == 200
        asked = urllib.request.Request(address, headers={"Host": "example.org"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(asked)
