import marimo

app = marimo.App(app_title="Reading a data set")


@app.cell
def _():
    import tempfile
    from pathlib import Path

    import jax
    import marimo as mo
    import numpy as np
    import xarray as xr

    import ddln
    from ddln import figures
    from ddln.sweeps import studies

    jax.config.update("jax_enable_x64", True)
    return Path, ddln, figures, mo, np, studies, tempfile, xr


@app.cell
def _(mo):
    mo.md(r"""
    # Reading a data set

    A run writes `dataset.nc`, a netCDF-4 file for xarray, Julia, R or MATLAB. `ddln.run` returns the same data set
    in memory. Here we write it and read it again, as from a run folder.
    """)
    return


@app.cell
def _(Path, ddln, studies, tempfile, xr):
    experiment = ddln.load(studies.find_config("figure4")).with_(
        {
            "network.depth": 3,
            "dynamics.points": 101,
            "dynamics.until": 20.0,
            "sweep.network.scale": [0.6, 1.0, 1.4],
            "sweep.network.init.seed": [1, 2, 3, 4],
        }
    )
    with tempfile.TemporaryDirectory() as _folder:
        _path = Path(_folder) / "dataset.nc"
        ddln.run(experiment).to_netcdf(_path, engine="h5netcdf")
        dataset = xr.load_dataset(_path, engine="h5netcdf")
    dataset
    return (dataset,)


@app.cell
def _(mo):
    mo.md(r"""
    A variable has a dimension for every axis of the sweep, then `time`, then dimensions of its own. A name with
    dots is an ordinary key. Where xarray expects a keyword, pass a dictionary. The attributes of each variable give
    its meaning and its unit.
    """)
    return


@app.cell
def _(dataset):
    {name: f"{x.attrs['long_name']} ({x.attrs['units']})" for name, x in dataset.data_vars.items()}
    return


@app.cell
def _(dataset):
    one = dataset.sel({"network.scale": 1.4, "network.init.seed": 2})
    ends = dataset["gap"].isel(time=-1)
    spread = ends.max("network.init.seed") / ends.min("network.init.seed")
    {"one network": dict(one.sizes), "largest over smallest end, by scale": spread.values.round(1)}
    return (one,)


@app.cell
def _(mo):
    mo.md(r"""
    ## How long until a gap is reached

    To reduce over time, reduce the array along `time`. The median and the band are taken over the seeds.
    """)
    return


@app.cell
def _(dataset, figures):
    relative = dataset["gap"] / dataset["gap"].isel(time=0)
    quantiles = relative.quantile([0.0, 0.5, 1.0], "network.init.seed")
    reached = dataset["time"].where(relative <= 1e-3).min("time")
    with figures.style():
        figure, (left, right) = figures.canvas(7.6, 3.0, ncols=2)
        for _i, _look in enumerate(figures.line_styles(dataset.sizes["network.scale"])):
            _low, _middle, _high = quantiles.isel({"network.scale": _i})
            left.fill_between(
                dataset["time"], _low, _high, color=_look["color"], alpha=0.15, linewidth=0
            )
            left.semilogy(
                dataset["time"],
                _middle,
                markevery=10,
                label=figures.value_label(dataset["network.scale"][_i]),
                **_look,
            )
        left.set(xlabel="flow time $t$", ylabel="gap over the first", xlim=(0, 20), ylim=(1e-8, 2))
        right.plot(dataset["network.scale"], reached, color="0.6", marker="o", linestyle="")
        right.plot(dataset["network.scale"], reached.median("network.init.seed"), color="0.1")
        right.set(
            xlabel=figures.axis_label(dataset["network.scale"]), ylabel="time to a thousandth"
        )
        right.set_yscale("log")
        figures.legend(figure, {})
    figure
    return (reached,)


@app.cell
def _(mo):
    mo.md(r"""
    ## What did not finish, and what does not hold

    The numbers of a network that failed are NaN from there on, and `status` gives the reason. Certificates are
    variables along the dimension `certificate`.
    """)
    return


@app.cell
def _(dataset):
    names = dataset["status"].attrs["flag_meanings"].split()
    applies, holds = dataset["certificate_applies"], dataset["certificate_holds"]
    failing = (applies & ~holds).sum(["network.scale", "network.init.seed"])
    {
        "ended": {name: int((dataset["status"] == code).sum()) for code, name in enumerate(names)},
        "failing": dict(
            zip(failing["certificate"].values.tolist(), failing.values.tolist(), strict=True)
        ),
    }
    return (failing,)


@app.cell
def _(mo):
    mo.md(r"""
    ## Back to the network

    A data set carries its config, so any network can be rebuilt, with its problem. `dataset.ddln.runs()` yields all
    of them; here `one` is a single one.
    """)
    return


@app.cell
def _(ddln, np, one):
    network = one.ddln.first
    again = ddln.gradient_flow(network.problem, network.layers, one["time"].values)
    apart = float(np.max(np.abs(np.asarray(again.theta) - one["theta"].values)))
    again
    return (apart,)


if __name__ == "__main__":
    app.run()
