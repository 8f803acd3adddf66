import marimo

app = marimo.App(app_title="Your own parts")


@app.cell
def _():
    import jax
    import jax.numpy as jnp
    import marimo as mo
    import numpy as np
    import optax

    import ddln
    from ddln import figures
    from ddln.sweeps import studies

    jax.config.update("jax_enable_x64", True)
    return ddln, figures, jax, jnp, mo, np, optax, studies


@app.cell
def _(mo):
    mo.md(r"""
    # Your own loss, entropy, optimiser and study

    ## A loss

    Any differentiable function of $\theta$ is a problem. This one is the log-cosh loss, which is quadratic near its
    minimum and linear far from it. We write it as $\log(1 + 2\sinh^2(r/2))$ to avoid cancellation where it is
    small. Constants that you know are arguments; certificates that need others say that they do not apply.
    """)
    return


@app.cell
def _(ddln, jnp):
    X = jnp.array([[1.0, 0.5], [-0.4, 1.0], [0.3, 0.8]])
    y = X @ jnp.array([1.2, -0.7])

    def log_cosh(theta):
        residual = X @ theta - y
        return jnp.sum(jnp.log1p(2 * jnp.sinh(residual / 2) ** 2))

    robust = ddln.from_function(
        log_cosh,
        dim=2,
        minimiser=jnp.array([1.2, -0.7]),
        smoothness=float(jnp.linalg.norm(X, 2) ** 2),
        convex=True,
    )
    robust
    return X, robust, y


@app.cell
def _(ddln, jax, jnp, robust):
    layers = ddln.init.zero_first_layer(jax.random.key(1), depth=3, dim=2)
    flow = ddln.gradient_flow(robust, layers, jnp.linspace(0.0, 8.0, 161))
    certificates = ddln.certify(robust, flow)
    certificates
    return certificates, flow, layers


@app.cell
def _(mo):
    mo.md(r"""
    The bounds that need a Polyak–Łojasiewicz constant do not apply, since we gave none. The other claims hold:
    Theorem 1 is valid for any differentiable loss.

    ## An entropy

    `mirror_descent` accepts any object with the methods `mirror_map` and `inverse`. Here we write the hyperbolic
    entropy. It is the entropy of two layers $(0, \alpha)$, so the network's own entropy must give the same steps.
    """)
    return


@app.cell
def _(ddln, jax, jnp, optax, robust):
    class Hyperbolic:
        """∇Q(θ) = ½ asinh(2θ/α²)."""

        def __init__(self, alpha):
            self.alpha = alpha

        def mirror_map(self, theta):
            return jnp.arcsinh(2 * theta / self.alpha**2) / 2

        def inverse(self, xi):
            return self.alpha**2 * jnp.sinh(2 * xi) / 2

    def mirrored(entropy, steps=200, rate=0.05):
        rule = ddln.mirror_descent(entropy, rate)

        def step(carry, _):
            theta, state = carry
            updates, state = rule.update(robust.gradient(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        start = jnp.zeros(2)
        path = jax.lax.scan(step, (start, rule.init(start)), length=steps)[1]
        return jnp.vstack([start, path])

    alpha = 0.8
    mine = mirrored(Hyperbolic(alpha))
    theirs = mirrored(ddln.Entropy(jnp.array([[0.0, 0.0], [alpha, alpha]])))
    apart = float(jnp.max(jnp.abs(mine - theirs)))
    apart
    return apart, mine


@app.cell
def _(mo):
    mo.md(r"""
    ## An optimiser

    `descend` trains the layers by any optax transformation. We write one ourselves: a step along the gradient
    divided by its norm, so that the network does not slow down near a saddle.
    """)
    return


@app.cell
def _(ddln, jax, jnp, layers, optax, robust):
    def normalised(rate):
        def update(gradient, state, params=None):
            norm = jnp.sqrt(jnp.sum(gradient**2))
            return -rate * gradient / jnp.maximum(norm, 1e-12), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    rule = optax.chain(normalised(1.0), optax.scale_by_schedule(lambda k: 0.05 * 0.98**k))
    small = 0.3 * layers.at[0].set(0.1 * jax.random.normal(jax.random.key(2), (2,)))
    trained = ddln.descend(robust, small, rule, steps=400, record_every=2)
    plain = ddln.descend(
        robust, small, ddln.optimiser("sgd", learning_rate=0.05), steps=400, record_every=2
    )
    trained
    return plain, trained


@app.cell
def _(figures, flow, mine, np, plain, robust, trained):
    with figures.style():
        figure, (left, right) = figures.canvas(7.6, 3.0, ncols=2)
        for _run, _name, _look in zip(
            (trained, plain), ("normalised", "plain"), figures.line_styles(2), strict=True
        ):
            left.semilogy(
                _run.steps, np.maximum(_run.gap, 1e-18), markevery=25, label=_name, **_look
            )
        left.set(
            xlabel="step $k$", ylabel=figures.SYMBOLS["gap"], xlim=(0, 400), ylim=(1e-10, None)
        )
        right.plot(*flow.theta.T, color=figures.COLOURS[2], label="flow, three layers")
        right.plot(
            *mine.T, color=figures.COLOURS[3], linestyle=figures.DASHES[0], label="mirror descent"
        )
        right.plot(*robust.minimiser, marker="*", color="0.3", markersize=9)
        right.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$")
        figures.legend(figure, {})
    figure
    return


@app.cell
def _(mo):
    mo.md(r"""
    Left: where the layers are small, plain gradient descent is slow and normalised steps are not; near the minimum
    it is the opposite. Right: mirror descent with two entropies takes two ways to the same minimiser.

    ## A study

    A study consists of two functions of a data set: its claims and its figure. `ddln new NAME` writes one to a
    file, and `ddln run NAME` computes and checks it. The functions also work on a data set in memory.
    """)
    return


@app.cell
def _(ddln, figures, studies):
    def claims(dataset):
        """A larger scale never ends with a larger gap."""
        gap = dataset.ddln.end["gap"].values
        ratio, figure4 = (gap[1:] / gap[:-1]).max(), "arXiv 2412.16765, Figure 4"
        return [ddln.claim.at_most("gap over that of the scale before", ratio, 1.0, source=figure4)]

    def draw(dataset):
        return figures.gap_against_time(dataset, over="network.scale")

    experiment = ddln.load(studies.find_config("figure4")).with_(
        {"network.depth": 3, "dynamics.points": 61, "dynamics.until": 2.0}
    )
    dataset = ddln.run(experiment)
    claim = claims(dataset)[0]
    print(claim.statement, claim.measured, "holds" if claim.holds else "fails")
    draw(dataset)
    return (claim,)


if __name__ == "__main__":
    app.run()
