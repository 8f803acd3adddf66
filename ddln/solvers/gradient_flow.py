"""Gradient flow on the layers, and the same curve as a mirror flow on θ, integrated with diffrax.

    u̇^j = −∇ℒ(θ) ⊙ ⊙_{i≠j} uⁱ        d/dt ∇Q(θ) = −∇ℒ(θ)       Theorem 1, arXiv 2412.16765

Time is flow time: k steps of gradient descent of size η reach t = kη.
"""

from collections.abc import Callable
from typing import Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_floats, as_layers
from ddln.networks.entropy import Entropy
from ddln.networks.parametrisation import Parametrisation
from ddln.networks.reparametrisation import Reduction
from ddln.networks.separable_entropy import SeparableEntropy
from ddln.problems.base import Problem, refuse_kinks
from ddln.solvers.formulations import (
    Formulation,
    Layers,
    Mirror,
    Reduced,
    first_step,
    observe,
    smallest_step,
    vector_field,
)
from ddln.solvers.result import raise_on_failure
from ddln.solvers.status import Status
from ddln.solvers.trajectory import (
    Trajectory,
    applied,
    as_times,
    as_tolerances,
    as_weight_decay,
)
from ddln.solvers.weight_decay import WeightDecay

Coordinates = Literal["reduced", "layers"]


@eqx.filter_jit
def _integrate(
    problem: Problem,
    formulation: Formulation,
    layers: Float[Array, "depth dim"],
    entropy: SeparableEntropy | None,
    times: Float[Array, " times"],
    rtol: Float[Array, ""],
    atol: Float[Array, ""],
    solver: diffrax.AbstractSolver,
    max_steps: int,
    adjoint: diffrax.AbstractAdjoint,
) -> Trajectory:
    elapsed = times - times[0]
    horizon = elapsed[-1]
    controller = diffrax.PIDController(
        rtol=rtol, atol=atol, dtmin=smallest_step(horizon), force_dtmin=False
    )
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        # Its dense output is cubic, with no error control, and its steps are long.
        controller = diffrax.ClipStepSizeController(controller, step_ts=elapsed)
    elif formulation.decay is not None and formulation.decay.first.size > 1:
        jumps = formulation.decay.edges[1:-1]
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jumps)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field),
        solver,
        elapsed[0],
        horizon,
        # The solution does not depend on it, but under decay the times of the stages do.
        jax.lax.stop_gradient(first_step(problem, formulation, horizon)).astype(times.dtype),
        formulation.initial(),
        args=(problem, formulation),
        saveat=diffrax.SaveAt(ts=elapsed, fn=observe),
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    path, theta, velocity, loss, gap = jax.tree.map(
        lambda saved: jnp.where(jnp.isfinite(saved), saved, jnp.nan), solution.ys
    )
    is_finite = jnp.all(jnp.isfinite(theta) & jnp.isfinite(velocity))
    is_finite &= jnp.all(jnp.isfinite(loss) & jnp.isfinite(gap))
    failure = jnp.where(
        solution.result == diffrax.RESULTS.max_steps_reached,
        Trajectory.code_of(Status.MAX_STEPS),
        Trajectory.code_of(Status.DIVERGED),
    )
    is_solved = (solution.result == diffrax.RESULTS.successful) & is_finite
    counts = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    return Trajectory(
        times=times,
        layers=path.at[0].set(layers),  # as given, without the rounding of a change of variables
        theta=theta,
        loss=loss,
        gap=gap,
        status=jnp.where(is_solved, Trajectory.code_of(Status.OK), failure),
        stats={name: solution.stats[name] for name in counts},
        velocity=velocity,
        rtol=rtol,
        atol=atol,
        coordinates=formulation.name,
        decay=applied(formulation.decay, elapsed),
        entropy=None if isinstance(entropy, Entropy) else entropy,
    )


def _solve(
    problem: Problem,
    layers: ArrayLike | SeparableEntropy,
    times: ArrayLike,
    *,
    formulate: Callable[[Float[Array, "depth dim"], WeightDecay | None], Formulation],
    weight_decay: WeightDecay | ArrayLike | None,
    is_reduced: bool,
    rtol: ArrayLike | None,
    atol: ArrayLike | None,
    default_rtol: float,
    solver: diffrax.AbstractSolver | None,
    max_steps: int,
    adjoint: diffrax.AbstractAdjoint | None,
    throw: bool,
) -> Trajectory:
    """Check the arguments, integrate the formulation of the flow, and raise if that fails."""
    drop_programs()
    refuse_kinks(problem)
    entropy = layers if isinstance(layers, SeparableEntropy) else None
    layers = (
        _parameters(layers, weight_decay)
        if isinstance(layers, SeparableEntropy)
        else as_layers(layers)
    )
    if layers.shape[1] != problem.dim:
        raise ValueError(
            f"`layers` must have shape (depth, {problem.dim}) to fit the problem, "
            f"got {layers.shape}."
        )
    dtype = jnp.promote_types(layers.dtype, problem.minimum.dtype)
    if entropy is not None and entropy.dtype != dtype:
        raise ValueError(
            f"`layers` must be of the type {dtype} of `problem`, got an entropy of {entropy.dtype}."
        )
    layers = layers.astype(dtype)
    times = as_times(as_floats("times", times, 1).astype(dtype))
    rtol, atol = as_tolerances(rtol, atol, default_rtol, dtype)
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be ≥ 1, got {max_steps}.")
    if weight_decay is not None:
        weight_decay = as_weight_decay(weight_decay, times, is_reduced=is_reduced)
    run = _integrate(
        problem,
        formulate(layers, weight_decay),
        layers,
        entropy,
        times,
        rtol,
        atol,
        diffrax.Tsit5() if solver is None else solver,
        max_steps,
        diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )
    return raise_on_failure(run) if throw else run


def _parameters(
    entropy: SeparableEntropy, weight_decay: WeightDecay | ArrayLike | None
) -> Float[Array, "parameters dim"]:
    """The parameters at the start."""
    if weight_decay is not None:
        raise ValueError("`weight_decay` must be None unless `layers` are those of a network.")
    if isinstance(entropy, Parametrisation):
        return entropy.start
    return entropy.parameters(jnp.zeros(entropy.dim, entropy.dtype))


def gradient_flow(
    problem: Problem,
    layers: ArrayLike | Parametrisation,
    times: ArrayLike,
    *,
    weight_decay: WeightDecay | ArrayLike | None = None,
    coordinates: Coordinates | str = "reduced",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Trajectory:
    """Gradient flow u̇^j = −∂ℒ(u¹ ⊙ … ⊙ u^L)/∂u^j − ω(t) u^j from the given layers.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim); or a `ddln.Parametrisation`, for the gradient
            flow of its parameters w, which are then the run's `layers`.
        times: flow times to save at, strictly increasing; the first is the start.
        weight_decay: ω ≥ 0 per unit of flow time, or a schedule ω(t) of `ddln.weight_decay`;
            `None` for none. For constant ω it is the gradient flow of ℒ + (ω/2) Σ_j ‖u^j‖².
        coordinates: "reduced" integrates one number per coordinate, from which the layers follow
            exactly; "layers" integrates the layers themselves, as for a parametrisation always.
        rtol, atol: tolerances on the integrated state; `None` is 1e-9 and 1e-12, but at least 100
            and a tenth of the machine epsilon. An rtol below the machine epsilon gives a warning.
        solver: a diffrax solver; `None` is `diffrax.Tsit5()`.
        max_steps: budget of steps.
        adjoint: how to differentiate; for `jax.jvp` and `jax.jacfwd` pass `diffrax.ForwardMode()`.
            Reduced coordinates are not differentiable in tied layers (the derivative is NaN):
            use `coordinates="layers"` for derivatives with respect to these.
        throw: raise an error if the run fails; otherwise `status` tells.

    Returns:
        A `Trajectory`.

    Raises:
        ValueError: invalid shapes, times or tolerances; ω < 0 or not finite; a schedule that ends
            before the last time, or a dose ∫ω that reduced coordinates cannot represent; weight
            decay of a parametrisation.
        RuntimeError: the run failed, and `throw` is true.

    Source: the flow of Proposition 1, arXiv 2412.16765; reduced form and weight decay as derived in
    docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [1.0]], [0.0, 1.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """
    if coordinates not in get_args(Coordinates):
        names = " or ".join(map(repr, get_args(Coordinates)))
        raise ValueError(f"`coordinates` must be {names}, got {coordinates!r}.")

    def formulate(start: Float[Array, "depth dim"], decay: WeightDecay | None) -> Formulation:
        if isinstance(layers, Parametrisation):
            return Layers(start, layers.function)
        if coordinates == "layers":
            return Layers(start, decay=decay)
        return Reduced(Reduction(start), decay=decay)

    return _solve(
        problem,
        layers,
        times,
        formulate=formulate,
        is_reduced=coordinates == "reduced",
        weight_decay=weight_decay,
        rtol=rtol,
        atol=atol,
        default_rtol=1e-9,
        solver=solver,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=throw,
    )


def mirror_flow(
    problem: Problem,
    layers: ArrayLike | SeparableEntropy,
    times: ArrayLike,
    *,
    weight_decay: WeightDecay | ArrayLike | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Trajectory:
    """Mirror flow d/dt ∇Q(θ) = −∇ℒ(θ) with the entropy Q of the given layers.

    By Theorem 1 this is the curve of `gradient_flow`. The integrated state is ξ = ∇Q(θ), and θ
    follows from ξ by inverting the mirror map. Tolerances apply to ξ; `None` is 1e-10 and 1e-13.
    Near an end of its range ξ no longer resolves θ (docs/theory.md): use `gradient_flow` there.
    Under weight decay, Q is at each time that of the layers e^{−Ω} u(0), Ω = ∫ω, and the equation
    d/dt ∇Q(θ) = −∇ℒ(θ) + (L − 2) ω ∇Q(θ); from depth 3 on it loses e^{(L−2)Ω} in accuracy.
    In place of layers it takes any entropy, such as a `ddln.Parametrisation`. Arguments, results
    and errors are otherwise the same.

    Source: Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.mirror_flow(problem, [[0.0], [1.0]], [0.0, 1.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """

    def formulate(start: Float[Array, "depth dim"], decay: WeightDecay | None) -> Formulation:
        given = layers if isinstance(layers, SeparableEntropy) else Entropy(start)
        return Mirror(given, decay=decay)

    return _solve(
        problem,
        layers,
        times,
        formulate=formulate,
        is_reduced=True,
        weight_decay=weight_decay,
        rtol=rtol,
        atol=atol,
        default_rtol=1e-10,
        solver=solver,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=throw,
    )
