"""Problems sharded over four devices, of one process and of two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from typer.testing import CliRunner

import ddln
from ddln.cli.main import app
from ddln.config.experiment import ConfigError, load
from ddln.problems import sharding
from ddln.sweeps import executor
from ddln.sweeps.plan import make_plan
from ddln.sweeps.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
# Another order of summation, amplified by a run; all numbers are of order 1.
AGREES = 1e-12

SOLVE = """
import os, sys
import jax
jax.config.update("jax_enable_x64", True)
process, processes, port, out = *map(int, sys.argv[1:4]), sys.argv[4]
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
import numpy as np
from jax.experimental import multihost_utils
import ddln
from ddln.problems import sharding

rng = np.random.default_rng(0)
X, y = rng.standard_normal((6, 32)), rng.standard_normal(6)
layers = np.concatenate([np.zeros((1, 32)), rng.uniform(0.5, 1.0, (2, 32))])
times = np.linspace(0.0, 1.0, 11)
rule = ddln.optimiser("sgd", learning_rate=1e-3)
whole = ddln.least_squares(X, y)
mesh = sharding.make_mesh()
assert mesh.size == 4, mesh
columns = sharding.column_sharding(mesh)
features = jax.make_array_from_callback(X.shape, columns, lambda part: X[part])
assert features.addressable_shards[0].data.shape == (6, 8)
cut = sharding.sharded_least_squares(features, y)
_, cut_layers = sharding.shard(whole, layers, mesh) if processes == 1 else (
    None, jax.make_array_from_callback(layers.shape, columns, lambda part: layers[part]))

def numbers(problem, layers):
    flow = ddln.gradient_flow(problem, layers, times)
    descent = ddln.descend(problem, layers, rule, steps=200)
    assert flow.layers.shape == (11, 3, 32)
    found = {"minimum": problem.minimum, "minimiser": problem.minimiser, "mu": problem.pl_constant,
             "beta": problem.smoothness, "flow": flow.layers, "flow gap": flow.gap,
             "steps": flow.stats["num_steps"], "descent": descent.layers, "loss": descent.loss}
    return flow, {name: multihost_utils.process_allgather(array, tiled=True)
                  for name, array in found.items()}

flow, sharded = numbers(cut, cut_layers)
held = max(part.data.size for part in flow.layers.addressable_shards)
assert held == flow.layers.size // 4, held  # no device has all
placed = {}
if processes == 1:
    _, placed = numbers(*sharding.shard(whole, layers, mesh))
if process == 0:
    np.savez(out, **sharded, **{f"placed {name}": x for name, x in placed.items()})
"""


def solve(processes, devices, out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    environment["JAX_PLATFORMS"] = "cpu"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SOLVE, str(k), str(processes), port, str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(processes)
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return dict(np.load(out))


@pytest.fixture(scope="module")
def alone():
    rng = np.random.default_rng(0)
    features, targets = rng.standard_normal((6, 32)), rng.standard_normal(6)
    layers = np.concatenate([np.zeros((1, 32)), rng.uniform(0.5, 1.0, (2, 32))])
    problem = ddln.least_squares(features, targets)
    flow = ddln.gradient_flow(problem, layers, np.linspace(0.0, 1.0, 11))
    rule = ddln.optimiser("sgd", learning_rate=1e-3)
    descent = ddln.descend(problem, layers, rule, steps=200)
    return {
        "minimum": problem.minimum,
        "minimiser": problem.minimiser,
        "mu": problem.pl_constant,
        "beta": problem.smoothness,
        "flow": flow.layers,
        "flow gap": flow.gap,
        "steps": flow.stats["num_steps"],
        "descent": descent.layers,
        "loss": descent.loss,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2)])
def test_four_devices_match_one_device(alone, tmp_path, processes, devices):
    found = solve(processes, devices, tmp_path / "numbers.npz")
    for name, array in found.items():
        expected = np.asarray(alone[name.removeprefix("placed ")])
        np.testing.assert_allclose(array, expected, rtol=AGREES, atol=AGREES, err_msg=name)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_sharded_least_squares_matches_numpy(shape):
    rng = np.random.default_rng(1)
    features, targets = rng.standard_normal(shape), rng.standard_normal(shape[0])
    features[-1] = features[0]  # of lower rank
    columns = sharding.column_sharding(sharding.make_mesh(jax.devices()[:1]))
    problem = sharding.sharded_least_squares(jax.device_put(features, columns), targets)
    inverse = np.linalg.pinv(features)
    np.testing.assert_allclose(problem.minimiser, inverse @ targets, atol=AGREES)
    residual = targets - features @ inverse @ targets
    np.testing.assert_allclose(problem.minimum, residual @ residual, atol=AGREES)
    singular = np.linalg.svd(features, compute_uv=False)
    least = singular[singular > 1e-12 * singular[0]].min()
    assert problem.pl_constant is not None
    assert problem.smoothness is not None
    np.testing.assert_allclose(problem.pl_constant, 2 * least**2, rtol=AGREES)
    np.testing.assert_allclose(problem.smoothness, 2 * singular[0] ** 2, rtol=AGREES)


def spec_of(signed, name):
    return getattr(signed.unsigned, name).sharding.spec


@pytest.mark.parametrize("make", [ddln.least_squares, ddln.huber])
def test_problems_shard_their_coordinates_and_replicate_the_rest(make):
    rng = np.random.default_rng(2)
    problem = ddln.signed(make(rng.standard_normal((3, 4)), rng.standard_normal(3)))
    mesh = sharding.make_mesh(jax.devices()[:1])
    placed = sharding.shard_problem(problem, mesh)
    columns, coordinates = PartitionSpec(None, "coordinates"), PartitionSpec("coordinates")
    assert spec_of(placed, "features") == columns
    assert spec_of(placed, "minimiser") == coordinates
    for name in ("targets", "minimum", "smoothness"):
        assert spec_of(placed, name) == PartitionSpec()
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), problem, problem)
    placed = sharding.shard_problem(batch, mesh, batched=True)
    assert spec_of(placed, "features") == PartitionSpec("batch", *columns)


def test_unshardable_input_is_refused():
    with pytest.raises(ValueError, match="on a mesh, sharded along coordinates, got Single"):
        sharding.sharded_least_squares(jax.numpy.eye(2), [1.0, 2.0])
    with pytest.raises(ValueError, match="number of devices that divides 3, the number of columns"):
        sharding._refuse_uneven(3, 2)
    with pytest.raises(ValueError, match=f"must divide {len(jax.devices())}, the number of dev"):
        sharding.make_mesh(batch=1000)


SWEPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import ddln
from ddln.problems import sharding

placed = []
for name in ("shard_problem", "shard_columns"):
    def record(*given, shard=getattr(sharding, name), **how):
        placed.append(shard(*given, **how))
        return placed[-1]
    setattr(sharding, name, record)

small = ["sweep={}", "network.depth=3", "dynamics.points=7", "dynamics.until=0.2"]
descent = 'dynamics={kind="descent", steps=40, points=7, optimiser={kind="sgd", learning_rate=1e-3}'
signed = [*small, "network.signed=true"]
runs = {
    "flow": (signed, {"problem.data.seed": [0, 1, 2], "network.scale": [0.4, 0.5, 0.6, 0.7]}),
    "descent": ([*small[:2], descent + ", sampling={batch=2}}"], {"problem.data.seed": [0, 1]}),
}
for name, (overrides, over) in runs.items():
    plain = ddln.load("configs/figure4.toml", overrides)
    cut = plain.with_({"devices": {"lanes": 2, "features": 2}})
    assert cut.digest() != plain.digest()
    placed.clear()
    one, four = (ddln.sweep(experiment, over) for experiment in (plain, cut))
    parts = [x for x in jax.tree.leaves(placed) if x.ndim > 1]
    halved = [x for x in parts if 2 * x.addressable_shards[0].data.shape[-1] == x.shape[-1]]
    assert {device.id for x in halved for device in x.devices()} == {0, 1, 2, 3}
    for variable in ("layers", "theta", "loss", "gap", "steps", "status"):
        np.testing.assert_allclose(
            four[variable], one[variable], rtol=1e-12, atol=1e-12, err_msg=f"{name}: {variable}"
        )
    assert np.isfinite(one["loss"]).all()
try:
    ddln.run(plain.with_({"devices": {"lanes": 5}}))
except ValueError as error:
    assert "lanes × features must be at most the 4 there are, got 5" in str(error)
"""


def on_virtual_devices(count, program, *arguments):
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.mark.slow
def test_sweep_on_four_devices_matches_one_device():
    done = on_virtual_devices(4, ["-c", SWEPT])
    assert done.returncode == 0, done.stderr


CONFIG = str(ROOT / "configs" / "figure4.toml")


def test_invalid_device_tables_are_refused():
    with pytest.raises(ConfigError, match=r"devices\.features: must divide 8, the number"):
        load(CONFIG, ["devices={features=3}"])
    with pytest.raises(ConfigError, match=r"sweep\.devices\.lanes: not a numeric key"):
        load(CONFIG, ["devices={lanes=2}", "sweep={devices.lanes=[1, 2]}"])
    uneven = load(CONFIG, ["devices={features=4}", "sweep={problem.data.features=[8, 10, 12]}"])
    with pytest.raises(ConfigError, match=r"devices\.features: must divide 10"):
        make_plan(uneven)


def test_device_groups_get_equal_batches():
    widths = [
        make_plan(load(CONFIG, [f"devices={{lanes={groups}}}"])).chunks[0].width
        for groups in (1, 2, 4)
    ]
    assert widths == [3, 4, 4]


def test_check_prints_the_devices():
    result = CliRunner().invoke(app, ["check", CONFIG, "devices={lanes=2, features=4}"])
    line = "  devices  2 group(s) with networks of their own, of 4 with columns of their own\n"
    assert line in result.output


def test_run_with_too_few_devices_does_not_start(tmp_path):
    experiment = load(CONFIG, ["devices={lanes=2, features=4}"])
    folder = RunFolder.of(experiment, tmp_path)
    message = "lanes × features must be at most the 1 there are, got 8"
    with (
        pytest.raises(ValueError, match=message),
        executor.open_run(folder, make_plan(experiment), executor.LocalExecutor()),
    ):
        pass
    assert not list(tmp_path.rglob("*.toml"))
