import marimo

app = marimo.App(app_title="The mirror flow by hand")


@app.cell
def _():
    import jax
    import jax.numpy as jnp
    import marimo as mo
    import numpy as np

    import ddln
    from ddln import figures

    jax.config.update("jax_enable_x64", True)
    return ddln, figures, jax, jnp, mo, np


@app.cell
def _(mo):
    mo.md(r"""
    # The mirror flow by hand

    In differentiated form, the mirror flow of Theorem 1 is a flow of $\theta$ alone,

    $$\dot\theta = -\nabla^2 Q(\theta)^{-1}\, \nabla\mathcal{L}(\theta).$$

    We integrate it with nothing but this formula. Automatic differentiation, `jacfwd(grad(Q))`, gives the Hessian
    of $Q$, and four lines of code are the Runge–Kutta method. The result must be the curve of the gradient flow on
    the *layers*, whose equation does not contain $Q$.
    """)
    return


@app.cell
def _(ddln, jax):
    problem = ddln.least_squares([[1.0, 0.5], [0.0, 2.0]], [1.0, -1.0])
    layers = ddln.init.zero_first_layer(jax.random.key(3), depth=3, dim=2)
    entropy = ddln.Entropy(layers)
    entropy
    return entropy, layers, problem


@app.cell
def _(mo):
    mo.md(r"""
    The Hessian is diagonal, and its entries are $1/M_k$ with $M_k = \sum_j \prod_{i \ne j} (u^i_k)^2$. We compute
    the same numbers twice, from $Q$ and from the layers.
    """)
    return


@app.cell
def _(ddln, entropy, jax, jnp, layers):
    hessian = jax.jit(jax.jacfwd(jax.grad(entropy.value)))
    at_start = hessian(ddln.effective_parameter(layers))
    product = at_start @ jnp.diag(ddln.mobility(layers))
    product  # the identity
    return hessian, product


@app.cell
def _(hessian, jax, jnp, problem):
    def velocity(theta):
        return -jnp.linalg.solve(hessian(theta), problem.gradient(theta))

    def runge_kutta(theta, step):
        a = velocity(theta)
        b = velocity(theta + step / 2 * a)
        c = velocity(theta + step / 2 * b)
        d = velocity(theta + step * c)
        return theta + step / 6 * (a + 2 * b + 2 * c + d)

    @jax.jit
    def by_hand(theta, step, every):
        """θ after 0, 1, …, 20 times `every` steps."""

        def segment(theta, _):
            theta = jax.lax.fori_loop(0, every, lambda _, x: runge_kutta(x, step), theta)
            return theta, theta

        _, path = jax.lax.scan(segment, theta, length=20)
        return jnp.concatenate([theta[None], path])

    return (by_hand,)


@app.cell
def _(mo):
    mo.md(r"""
    The reference integrates the layers themselves, `coordinates="layers"`, at a fine tolerance.
    """)
    return


@app.cell
def _(by_hand, ddln, jnp, layers, np, problem):
    times = jnp.linspace(0.0, 1.0, 21)
    on_layers = ddln.gradient_flow(
        problem, layers, times, coordinates="layers", rtol=1e-12, atol=1e-14
    )
    counts = np.array([1, 2, 4, 8, 16, 32])
    steps = float(times[1]) / counts
    paths = [
        by_hand(on_layers.theta[0], step, every) for step, every in zip(steps, counts, strict=True)
    ]
    errors = np.array([float(jnp.max(jnp.abs(path - on_layers.theta))) for path in paths])
    orders = np.log2(errors[:-1] / errors[1:])
    {"errors": errors, "orders": orders}
    return errors, on_layers, orders, paths, steps, times


@app.cell
def _(errors, figures, on_layers, paths, steps, times):
    with figures.style():
        figure, (left, right) = figures.canvas(7.6, 3.0, ncols=2)
        for _k, _look in enumerate(figures.line_styles(2)):
            left.plot(times, on_layers.theta[:, _k], color=_look["color"], label=f"$k$ = {_k + 1}")
            left.plot(times, paths[2][:, _k], linestyle="", **_look)
        left.set(xlabel="flow time $t$", ylabel=r"$\theta_k(t)$", xlim=(0, 1))
        right.loglog(steps, errors, color=figures.COLOURS[1], marker="o")
        right.loglog(
            steps, errors[0] * (steps / steps[0]) ** 4, color="0.3", linestyle=figures.DASHES[0]
        )
        right.set(xlabel="step", ylabel=r"largest error in $\theta$")
        right.minorticks_off()
        right.set_xticks(
            [0.002, 0.005, 0.01, 0.02, 0.05], ["0.002", "0.005", "0.01", "0.02", "0.05"]
        )
        figures.legend(figure, {"order 4": figures.DASHES[0]})
    figure
    return


@app.cell
def _(mo):
    mo.md(r"""
    Lines are the flow of the layers, marks the mirror flow by hand. Halving the step divides the distance between
    them by sixteen, as it must for a Runge–Kutta method of order four: the two flows agree, and the distance is its
    error.

    `ddln.mirror_flow` is a third way. Its state is $\xi = \nabla Q(\theta)$, and it finds $\theta$ by inverting the
    mirror map.
    """)
    return


@app.cell
def _(ddln, jnp, layers, on_layers, problem, times):
    mirrored = ddln.mirror_flow(problem, layers, times)
    apart = float(jnp.max(jnp.abs(mirrored.theta - on_layers.theta)))
    apart
    return (apart,)


if __name__ == "__main__":
    app.run()
