import marimo

app = marimo.App(app_title="Sweeping the scale")


@app.cell
def _():
    import jax
    import marimo as mo
    import numpy as np

    import ddln
    from ddln import figures
    from ddln.sweeps import studies

    jax.config.update("jax_enable_x64", True)
    return ddln, figures, mo, np, studies


@app.cell
def _(mo):
    mo.md(r"""
    # Sweeping the scale

    Theorem 2 guarantees $\mathcal{L}(\theta(t)) - \mathcal{L}^* \le (\mathcal{L}(\theta(0)) - \mathcal{L}^*)\,
    e^{-2\mu c t}$ with $c = \min_k \prod_{j \ne m_k} \lambda_{jk}$, a product of $L - 1$ imbalances. Layers that are $a$
    times as large have imbalances $a^2$ times as large, so the guaranteed rate grows like $a^{2(L-1)}$. How does the rate of
    the flow itself grow?

    An experiment is a config, here that of Figure 4. `sweep` runs it over a grid. All networks of one depth run side by
    side in one compiled program.
    """)
    return


@app.cell
def _(ddln, np, studies):
    experiment = ddln.load(studies.find_config("figure4")).with_(
        {"dynamics.points": 61, "dynamics.until": 20.0}
    )
    scales = np.geomspace(0.7, 1.8, 9)
    dataset = ddln.sweep(experiment, over={"network.depth": [2, 4], "network.scale": scales})
    dataset[["rate_bound", "asymptotic_rate", "status"]]
    return dataset, scales


@app.cell
def _(mo):
    mo.md(r"""
    `rate_bound` is the guaranteed rate $\mu c$, known before the run. `asymptotic_rate` is the rate $r$ at which
    the gap decays in the end, as $e^{-2rt}$: the smallest nonzero eigenvalue of $M_\infty^{1/2}\,
    \nabla^2\mathcal{L}\, M_\infty^{1/2}$ at the limit.
    """)
    return


@app.cell
def _(dataset, figures, scales):
    with figures.style():
        figure, panels = figures.canvas(7.6, 3.2, ncols=2, sharey=True)
        for _panel, _depth in zip(panels, (2, 4), strict=True):
            _lanes = dataset.sel({"network.depth": _depth})
            _bound, _rate = _lanes["rate_bound"], _lanes["asymptotic_rate"]
            _panel.loglog(
                scales, _rate, color=figures.COLOURS[0], marker="o", label="asymptotic rate $r$"
            )
            _panel.loglog(
                scales,
                _bound,
                color=figures.COLOURS[1],
                marker="s",
                label=r"guaranteed rate $\mu c$",
            )
            _slope = float(_bound[0]) * (scales / scales[0]) ** (2 * (_depth - 1))
            _panel.loglog(scales, _slope, color="0.3", linestyle=figures.DASHES[0], linewidth=1)
            _panel.set(xlabel="initialisation scale $a$", title=f"$L$ = {_depth}")
            _panel.set_xticks([0.75, 1, 1.5], ["0.75", "1", "1.5"])
        panels[0].set_ylabel("rate")
        figures.legend(figure, {"$a^{2(L-1)}$": figures.DASHES[0]})
    figure
    return


@app.cell
def _(dataset, np, scales):
    def slopes(name):
        """d log(rate) / d log(a), between neighbouring scales."""
        rates = dataset[name].transpose("network.depth", "network.scale").values
        return np.diff(np.log(rates), axis=1) / np.diff(np.log(scales))

    bound_slopes, rate_slopes = slopes("rate_bound"), slopes("asymptotic_rate")
    {"of the bound": bound_slopes.round(6), "of the rate": rate_slopes.round(3)}
    return bound_slopes, rate_slopes


@app.cell
def _(mo):
    mo.md(r"""
    The bound follows the power exactly. The flow's own rate grows more slowly. In the end, $M$ depends on the
    imbalance *and* on $\theta$, and the minimiser, which is unique here, does not depend on the scale. At large
    scales the imbalance dominates, and the two curves are parallel. At small scales the flow is much faster than
    guaranteed.

    Counted in steps of gradient descent, larger scales gain nothing, since the largest stable step shrinks by the
    same factor. The study `stable_step` shows this.
    """)
    return


@app.cell
def _(ddln, mo, studies):
    _experiment = ddln.load(studies.find_config("figure4"))
    mo.md(f"""
    The same sweep as a command, with a run folder that can be resumed:

    ```console
    ddln run figure4 'sweep={{}}' 'sweep.network.scale={{ logspace = [-0.15, 0.26, 9] }}'
    ```

    The command changes the config of the study, whose initialisation is `{_experiment.network.init.kind}`.
    """)
    return


if __name__ == "__main__":
    app.run()
