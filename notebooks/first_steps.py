import marimo

app = marimo.App(app_title="First steps")


@app.cell
def _():
    import jax
    import jax.numpy as jnp
    import marimo as mo

    import ddln
    from ddln import figures

    jax.config.update("jax_enable_x64", True)
    return ddln, figures, jax, jnp, mo


@app.cell
def _(mo):
    mo.md(r"""
    # First steps

    A deep diagonal linear network has layers $u^1, \dots, u^L \in \mathbb{R}^d$. Its output depends on them only
    through their elementwise product, the **effective parameter** $\theta = u^1 \odot \dots \odot u^L$. Training
    follows the gradient of a loss $\mathcal{L}(\theta)$ with respect to the layers. The network can represent the
    same linear models as $\theta$ alone. Depth and initialisation change how $\theta$ moves, and therefore where it
    ends.

    We begin with a problem: least squares, in the convention of the paper, $\mathcal{L}(\theta) = \|X\theta -
    y\|^2$. There are two samples and three features, so the minimisers form a line.
    """)
    return


@app.cell
def _(ddln):
    problem = ddln.least_squares([[1.0, 0.5, 2.0], [0.3, 1.0, -1.0]], [1.0, -1.0])
    problem
    return (problem,)


@app.cell
def _(mo):
    mo.md(r"""
    The display shows the constants that the theorems need: $\mu$ of the Polyak–Łojasiewicz inequality and the
    smoothness $\beta$.

    Next, a network of three layers. The first is zero, so $\theta(0) = 0$ whatever the others are, as in Figure 4
    of the paper.
    """)
    return


@app.cell
def _(ddln, jax):
    layers = ddln.init.zero_first_layer(jax.random.key(0), depth=3, dim=3)
    layers
    return (layers,)


@app.cell
def _(mo):
    mo.md(r"""
    ## The flow

    Gradient flow moves the layers by $\dot u^j = -\nabla\mathcal{L}(\theta) \odot \bigodot_{i \ne j} u^i$. Time is flow
    time: $k$ steps of gradient descent with step size $\eta$ reach $t = k\eta$.
    """)
    return


@app.cell
def _(ddln, jnp, layers, problem):
    run = ddln.gradient_flow(problem, layers, jnp.linspace(0.0, 6.0, 301))
    run
    return (run,)


@app.cell
def _(mo):
    mo.md(r"""
    ## The entropy

    By Theorem 1, $\theta$ alone follows a **mirror flow**, $\frac{d}{dt}\nabla Q(\theta) =
    -\nabla\mathcal{L}(\theta)$. The initial layers determine its entropy $Q$. Since $\dot\theta = -(\nabla^2
    Q)^{-1} \nabla\mathcal{L}$, a coordinate moves fast where $Q$ has little curvature.
    """)
    return


@app.cell
def _(ddln, layers):
    entropy = ddln.Entropy(layers)
    entropy
    return (entropy,)


@app.cell
def _(mo):
    mo.md(r"""
    ## Every theorem, on this run

    `certify` compares the run with each statement. The table shows what was measured, what was expected, and the
    tolerance. Point at the name of a claim to read its statement.
    """)
    return


@app.cell
def _(ddln, problem, run):
    certificates = ddln.certify(problem, run)
    certificates
    return (certificates,)


@app.cell
def _(mo):
    mo.md(r"""
    ## Where it ends

    Of all minimisers, the flow ends at the one with the smallest Bregman divergence $D_Q(\theta, \theta(0))$.
    `limit_point` solves this convex problem without integrating the flow.
    """)
    return


@app.cell
def _(ddln, entropy, layers, problem, run):
    predicted = ddln.limit_point(problem, layers)
    least_norm = problem.minimiser
    start = run.theta[0]
    {
        "predicted": predicted,
        "where the flow ended": run.theta[-1],
        "the minimiser of least norm": least_norm,
        "D_Q of the one": entropy.divergence(predicted, start),
        "D_Q of the other": entropy.divergence(least_norm, start),
    }
    return least_norm, predicted


@app.cell
def _(figures, least_norm, predicted, run):
    with figures.style():
        figure, (left, right) = figures.canvas(7.6, 3.0, ncols=2)
        left.semilogy(run.times, run.gap, color=figures.COLOURS[0])
        left.set(xlabel="flow time $t$", ylabel=figures.SYMBOLS["gap"], xlim=(0, 6))
        for _k, _look in enumerate(figures.line_styles(3)):
            right.plot(run.times, run.theta[:, _k], markevery=60, label=f"$k$ = {_k + 1}", **_look)
            right.axhline(
                predicted[_k], color=_look["color"], linestyle=figures.DASHES[0], linewidth=1
            )
            right.axhline(least_norm[_k], color=_look["color"], linestyle=figures.DOTS, linewidth=1)
        right.set(xlabel="flow time $t$", ylabel=r"$\theta_k(t)$", xlim=(0, 6))
        figures.legend(figure, {"predicted limit": figures.DASHES[0], "least norm": figures.DOTS})
    figure
    return


@app.cell
def _(mo):
    mo.md(r"""
    The flow ends at the dashed lines, not at the dotted ones. Continue with `ddln explore`, which has sliders for
    these numbers, or with `ddln run figure4`, which reads them from a file.
    """)
    return


if __name__ == "__main__":
    app.run()
