"""Figure 4 as a user of diffrax writes it by hand: three networks, one figure, no certificates.

`benchmarks.latency` runs it as a whole process beside `ddln run`.
"""

import diffrax
import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)
key_features, key_targets = jax.random.split(jax.random.key(0))
features = jax.random.normal(key_features, (10, 8))
targets = jax.random.normal(key_targets, (10,))
layers = jax.random.uniform(jax.random.key(1), (6, 8), minval=0.5, maxval=1.2).at[0].set(0)
times = jnp.linspace(0, 3, 301)


def loss(layers):
    return jnp.sum((features @ layers.prod(0) - targets) ** 2)


@jax.jit
@jax.vmap
def losses(scale):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, layers, _: -jax.grad(loss)(layers)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=3.0,
        dt0=1e-4,
        y0=scale * layers,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-12),
        max_steps=100_000,
    )
    return jax.vmap(loss)(solution.ys)


best = jnp.linalg.lstsq(features, targets)[0]
gaps = losses(jnp.array([1.0, 1.4, 1.8])) - jnp.sum((features @ best - targets) ** 2)
for gap in gaps:
    plt.semilogy(times, gap)
for kind in ("png", "pdf", "svg"):
    plt.savefig(f"plain.{kind}")
