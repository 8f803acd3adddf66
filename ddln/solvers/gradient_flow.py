"""Gradient flow on the layers, and the same curve as a mirror flow on θ, integrated with diffrax.

    u̇^j = −∇ℒ(θ) ⊙ ⊙_{i≠j} uⁱ        d/dt ∇Q(θ) = −∇ℒ(θ)       Theorem 1, arXiv 2412.16765

Time is flow time: k steps of gradient descent of size η reach t = kη.
"""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddln._internal.compiled_programs import drop_programs
from ddln._internal.validation import ArrayLike, as_floats, as_layers, is_concrete
from ddln.networks.reparametrisation import Reduction
from ddln.problems.base import Problem
from ddln.solvers.formulations import (
    Layers,
    Mirror,
    Reduced,
    field,
    first_step,
    observe,
    smallest_step,
)
from ddln.solvers.result import Run

Coordinates = Literal["reduced", "layers"]

STATUS = ("ok", "max_steps", "diverged", "stopped")
"""What the codes in `Trajectory.status` mean, in order; only lanes of a sweep are stopped."""

_ADVICE = {
    "max_steps": "the step budget ran out before the last time: raise `max_steps`, loosen `rtol` "
    "and `atol`, shorten `times`, or take an implicit solver such as `diffrax.Kvaerno5()`",
    "diverged": "the solution left the range of floating-point numbers or the step size shrank to "
    "nothing: check the scale of the layers and of the data",
}


class Trajectory(Run):
    """A run: what was saved at `times`. NaN from where a failed run stopped."""

    velocity: Float[Array, "points dim"]
    """dθ/dt, from the right-hand side that was integrated."""
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    coordinates: str = eqx.field(static=True)
    """What was integrated: "layers", "reduced" or "mirror"."""

    endings: ClassVar = STATUS


@eqx.filter_jit
def _integrate(
    problem, picture, layers, times, rtol, atol, solver, max_steps, adjoint
) -> Trajectory:
    elapsed = times - times[0]  # the flow does not know the time
    horizon = elapsed[-1]
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        dtmin=smallest_step(horizon),
        force_dtmin=False,
    )
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        # Between its long steps it has cubics only, of an accuracy that nothing controls.
        controller = diffrax.ClipStepSizeController(controller, step_ts=elapsed)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        elapsed[0],
        horizon,
        first_step(problem, picture, horizon).astype(times.dtype),
        picture.initial(),
        args=(problem, picture),
        saveat=diffrax.SaveAt(ts=elapsed, fn=observe),
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    path, theta, velocity, loss, gap = jax.tree.map(
        lambda saved: jnp.where(jnp.isfinite(saved), saved, jnp.nan), solution.ys
    )
    results = diffrax.RESULTS
    status = jnp.where(
        (solution.result == results.successful)
        & jnp.all(jnp.isfinite(theta) & jnp.isfinite(velocity)),
        STATUS.index("ok"),
        jnp.where(
            solution.result == results.max_steps_reached,
            STATUS.index("max_steps"),
            STATUS.index("diverged"),
        ),
    )
    counts = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    stats = {name: solution.stats[name] for name in counts}
    path = path.at[0].set(layers)  # as they were given, not there and back
    return Trajectory(
        times, path, theta, loss, gap, status, stats, velocity, rtol, atol, picture.name
    )


def as_times(times: Float[Array, "*lanes times"]) -> Float[Array, "*lanes times"]:
    """`times`, which must increase from a first one that is not negative."""
    if times.shape[-1] < 2:
        raise ValueError(f"`times` must hold at least two times, got {times.shape[-1]}.")
    if is_concrete(times):
        seen = np.asarray(times)
        if not ((np.diff(seen) > 0).all() and (seen[..., 0] >= 0).all()):
            raise ValueError("`times` must be ≥ 0 and strictly increasing; the first is the start.")
    return times


def as_tolerances(
    rtol: ArrayLike | None,
    atol: ArrayLike | None,
    finest: float,
    dtype: jnp.dtype,
    lanes: tuple[int, ...] = (),
) -> tuple[Float[Array, "*lanes"], Float[Array, "*lanes"]]:
    """Tolerances of shape `lanes`; `None` is `finest`, a thousandth of it, or what dtype allows."""
    precision = float(jnp.finfo(dtype).eps)
    rtol = max(finest, 100 * precision) if rtol is None else rtol
    atol = max(1e-3 * finest, precision / 10) if atol is None else atol
    checked = []
    for name, value in (("rtol", rtol), ("atol", atol)):
        if np.shape(value) not in ((), lanes):
            raise ValueError(f"`{name}` must have shape {lanes or ()}, got {np.shape(value)}.")
        tolerance = as_floats(name, value, np.ndim(value))
        if is_concrete(tolerance) and not (np.asarray(tolerance) > 0).all():
            raise ValueError(f"`{name}` must be > 0, got {float(np.min(tolerance))}.")
        checked.append(jnp.broadcast_to(tolerance.astype(dtype), lanes))
    if is_concrete(checked[0]) and (finest := float(np.min(checked[0]))) < precision:
        warnings.warn(
            f"`rtol` = {finest:g} is finer than the {precision:.1g} of {dtype}.", stacklevel=4
        )
    return checked[0], checked[1]


def _solve(
    picture: Callable[[Float[Array, "depth dim"]], Any],
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    rtol: ArrayLike | None,
    atol: ArrayLike | None,
    finest: float,
    solver: diffrax.AbstractSolver | None,
    max_steps: int,
    adjoint: diffrax.AbstractAdjoint | None,
    throw: bool,
) -> Trajectory:
    drop_programs()
    layers = as_layers(layers)
    if layers.shape[1] != problem.dim:
        raise ValueError(
            f"`layers` must have shape (depth, {problem.dim}) to fit the problem, "
            f"got {layers.shape}."
        )
    dtype = jnp.promote_types(layers.dtype, problem.minimum.dtype)
    times = as_times(as_floats("times", times, 1).astype(dtype))
    rtol, atol = as_tolerances(rtol, atol, finest, dtype)
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be ≥ 1, got {max_steps}.")
    run = _integrate(
        problem,
        picture(layers.astype(dtype)),
        layers.astype(dtype),
        times,
        rtol,
        atol,
        diffrax.Tsit5() if solver is None else solver,
        max_steps,
        diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
    )
    if not throw:
        return run
    if is_concrete(run.status):
        name = STATUS[int(run.status)]
        if name != "ok":
            raise RuntimeError(f"The flow stopped early ({name}): {_ADVICE[name]}.")
        return run
    return eqx.error_if(run, ~run.ok, "The flow stopped early: pass `throw=False` for its status.")


def gradient_flow(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    coordinates: Coordinates | str = "reduced",
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Trajectory:
    """Gradient flow u̇^j = −∂ℒ(u¹ ⊙ … ⊙ u^L)/∂u^j from the given layers.

    Args:
        problem: the loss.
        layers: initial layers, shape (depth, dim).
        times: flow times to save at, strictly increasing; the first is the start.
        coordinates: "reduced" integrates one position per coordinate, from which the layers follow
            exactly; "layers" integrates the layers as they stand.
        rtol, atol: tolerances on the state that is integrated; `None` is 1e-9 and 1e-12, or 100
            roundings and a tenth of one where that is more. A warning where rtol is finer than the
            numbers.
        solver: a diffrax solver; `None` is `diffrax.Tsit5()`.
        max_steps: budget of steps.
        adjoint: how to differentiate; for `jax.jvp` and `jax.jacfwd` pass `diffrax.ForwardMode()`.
            Positions are not smooth in tied layers (the derivative is NaN): there, with respect to
            the layers, take `coordinates="layers"`.
        throw: raise when the run fails; else see `status`.

    Returns:
        A `Trajectory`.

    Raises:
        ValueError: shapes, times or tolerances that make no sense.
        RuntimeError: the run failed and `throw`.

    Source: the flow of Proposition 1, arXiv 2412.16765; reduced form as derived in docs/theory.md.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.gradient_flow(problem, [[0.0], [1.0]], [0.0, 1.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """
    if coordinates not in get_args(Coordinates):
        names = " or ".join(map(repr, get_args(Coordinates)))
        raise ValueError(f"`coordinates` must be {names}, got {coordinates!r}.")
    picture = Layers if coordinates == "layers" else lambda layers: Reduced(Reduction(layers))
    return _solve(
        picture, problem, layers, times, rtol, atol, 1e-9, solver, max_steps, adjoint, throw
    )


def mirror_flow(
    problem: Problem,
    layers: ArrayLike,
    times: ArrayLike,
    *,
    rtol: ArrayLike | None = None,
    atol: ArrayLike | None = None,
    solver: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    adjoint: diffrax.AbstractAdjoint | None = None,
    throw: bool = True,
) -> Trajectory:
    """Mirror flow d/dt ∇Q(θ) = −∇ℒ(θ) with the entropy Q of the given layers.

    By Theorem 1 the curve of `gradient_flow`, computed another way: the state is ξ = ∇Q(θ), and θ
    is found from it by inverting the mirror map. Tolerances are on ξ, `None` being 1e-10 and 1e-13.
    Where ξ nears an end of its range it no longer tells one θ from another (docs/theory.md), and
    `gradient_flow` is the one to use. Arguments, results and errors are otherwise the same.

    Source: Theorem 1, arXiv 2412.16765.

    >>> problem = ddln.least_squares([[1.0]], [2.0])
    >>> run = ddln.mirror_flow(problem, [[0.0], [1.0]], [0.0, 1.0, 20.0])
    >>> round(float(run.theta[-1, 0]), 8)
    2.0
    """
    return _solve(
        lambda layers: Mirror(Reduction(layers)),
        problem,
        layers,
        times,
        rtol,
        atol,
        1e-10,
        solver,
        max_steps,
        adjoint,
        throw,
    )
