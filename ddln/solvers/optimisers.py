"""Optimisers by name, with traced numbers, so that a new step size needs no compilation.

sgd          u ← u − γ g
heavy_ball   u ← u − γ g + β (u − u_before)
nesterov     u ← u − γ (g + β m),  m ← g + β m
adam         u ← u − γ m̂ / (√v̂ + ε)
adamw        u ← u − γ [m̂ / (√v̂ + ε) + ω u]
sign         u ← u − γ sign g
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ddln._internal.validation import Number, as_floats, refuse
from ddln.solvers.weight_decay import WeightDecay


def _momentum(learning_rate: Any, momentum: Any, *, nesterov: bool) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum, nesterov)


def _sgd(learning_rate: Any) -> optax.GradientTransformation:
    return optax.sgd(learning_rate)


_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "heavy_ball": partial(_momentum, nesterov=False),
    "nesterov": partial(_momentum, nesterov=True),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sign": optax.sign_sgd,
}

NAMES = tuple(_RULES)
"""Names of the rules that `optimiser` knows."""

_POSITIVE = "> 0", lambda value: value <= 0
_FRACTION = "≥ 0 and < 1", lambda value: (value < 0) | (value >= 1)
_RANGES = {
    "learning_rate": _POSITIVE,
    "intrinsic_step": _POSITIVE,
    "eps": _POSITIVE,
    "momentum": _FRACTION,
    "b1": _FRACTION,
    "b2": _FRACTION,
    "weight_decay": ("≥ 0", lambda value: value < 0),
    "clip": _POSITIVE,
}


class StepSchedule(eqx.Module):
    """A piecewise constant learning rate, multiplied by a factor from each of some steps on."""

    rate: Array
    """γ at first."""
    steps: Int[Array, " drops"]
    factors: Float[Array, " drops"]

    def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """γ at a step."""
        return self.rate * jnp.prod(jnp.where(step >= self.steps, self.factors, 1.0))


class _Clock(NamedTuple):
    """What decay by a schedule knows of the run."""

    step: Int[Array, ""]
    time: Float[Array, ""]
    """Flow time."""


class DecayingSteps(eqx.Module):
    """A learning rate that rises from 0 over a warm-up, then stays or falls to a last value, by
    optax's schedules. Its rates can be traced."""

    rate: Array
    """γ after the warm-up."""
    final: Array
    """The last γ as a fraction of `rate`."""
    kind: str = eqx.field(static=True)
    """"constant", "linear" or "cosine"."""
    warm_up: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)

    def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """γ at a step."""
        after = self.steps - self.warm_up
        rise = optax.linear_schedule(0.0, 1.0, self.warm_up) if self.warm_up else None
        fall = {
            "constant": optax.constant_schedule(1.0),
            "linear": optax.linear_schedule(1.0, 0.0, after),
            "cosine": optax.cosine_decay_schedule(1.0, after),
        }[self.kind]
        share = fall if rise is None else optax.join_schedules([rise, fall], [self.warm_up])
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies π by the step
            factor = share(step)
        last = jnp.where(step < self.warm_up, 0.0, self.final)
        return self.rate * (factor + last * (1 - factor))


class Optimiser(eqx.Module):
    """An optax transformation as a pytree with its numbers as leaves, made by `optimiser`."""

    rule: str | Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    """One of `NAMES`, so that it means the same in every process, or a function of its numbers."""
    numbers: dict[str, Any]
    weight_decay: Array | WeightDecay | None = None
    clip: Array | None = None
    decoupled: bool = eqx.field(static=True, default=False)

    @property
    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        rule, decay = _function_of(self.rule)(**self.numbers), self.weight_decay
        if decay is not None and self.decoupled:
            rule = optax.chain(rule, self._decayed(decay, in_gradient=False))
        elif isinstance(decay, WeightDecay):
            rule = optax.chain(self._decayed(decay, in_gradient=True), rule)
        elif decay is not None:
            rule = optax.chain(optax.add_decayed_weights(decay), rule)
        if self.clip is not None:
            rule = optax.chain(optax.clip_by_global_norm(self.clip), rule)
        return optax.with_extra_args_support(rule)

    def _decayed(
        self, decay: Float[Array, ""] | WeightDecay, *, in_gradient: bool
    ) -> optax.GradientTransformation:
        """Adds ω(t) u to the gradient, or −ω(t) u to the step, times its length in flow time."""

        def init(params: Any) -> _Clock:
            return _Clock(jnp.zeros((), jnp.int32), jnp.zeros((), params.dtype))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _Clock]:
            length = self._step_length(state.step)
            omega = decay.rate(state.time) if isinstance(decay, WeightDecay) else decay
            factor = omega if in_gradient else -omega * length
            time = jnp.asarray(state.time + length, state.time.dtype)
            return updates + factor * params, _Clock(state.step + 1, time)

        return optax.GradientTransformation(init, update)

    def with_weight_decay(self, weight_decay: WeightDecay | Number, decoupled: bool) -> "Optimiser":
        """The same rule with weight decay, as `optimiser` makes it.

        Raises:
            ValueError: it has weight decay already, or ω is negative or not finite.
        """
        if self.weight_decay is not None:
            raise ValueError("`weight_decay` must be None if the optimiser has its own.")
        decay = _checked_decay(weight_decay)
        return Optimiser(self.rule, self.numbers, decay, self.clip, decoupled)

    # Optax mixes types in its rules and schedules (Adam: the step count with the layers), which
    # strict promotion rejects. Hence the contexts of standard promotion below.

    def init(self, params: Any) -> Any:
        """State of the transformation, as in optax."""
        with jax.numpy_dtype_promotion("standard"):
            return self._transformation.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """Updates of the parameters and the next state, as in optax."""
        with jax.numpy_dtype_promotion("standard"):
            return self._transformation.update(updates, state, params, **extra)

    @property
    def is_gradient_descent(self) -> bool:
        """Whether a step is u − γ g, without momentum, weight decay or clipping."""
        return self.rule == "sgd" and self.weight_decay is None and self.clip is None

    def learning_rate(self, step: Int[Array, ""]) -> Any:
        """γ at a step; 1 if the rule has no `learning_rate`."""
        rate = self.numbers.get("learning_rate", 1.0)
        with jax.numpy_dtype_promotion("standard"):
            return rate(step) if callable(rate) else rate

    def elapsed(
        self, step: Int[Array, ""], more: Int[Array, ""], time: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Flow time Σ γ / (1 − β) after `more` steps, from a step with the given flow time."""

        def rate(step: Any) -> Float[Array, ""]:
            return jnp.asarray(self.learning_rate(step), time.dtype)

        if not callable(self.numbers.get("learning_rate")):
            return jnp.asarray(step + more, time.dtype) * rate(step) / self._momentum_complement

        def add_step(k: Any, time: Float[Array, ""]) -> Float[Array, ""]:
            return time + rate(k) / self._momentum_complement

        return jax.lax.fori_loop(step, step + more, add_step, time)

    @property
    def _momentum_complement(self) -> Any:
        """1 − β."""
        momentum = self.numbers.get("momentum")
        return 1.0 if momentum is None else 1 - momentum

    def _step_length(self, step: Int[Array, ""]) -> Any:
        """Flow time of a step, γ / (1 − β)."""
        return self.learning_rate(step) / self._momentum_complement


class _Constant(NamedTuple):
    """A rule without numbers that always returns the same transformation."""

    transformation: optax.GradientTransformation

    def __call__(self) -> optax.GradientTransformation:
        return self.transformation


def as_optimiser(rule: object) -> Optimiser:
    """Wrap an optax transformation, with its numbers compiled into the program."""
    if isinstance(rule, Optimiser):
        return rule
    if isinstance(rule, optax.GradientTransformation):
        return Optimiser(_Constant(rule), {})
    raise ValueError(
        f"`optimiser` must be an optax transformation, or come from `ddln.optimiser`, got {rule!r}."
    )


def optimiser(
    rule: str | Callable[..., optax.GradientTransformation],
    *,
    intrinsic_step: Number | None = None,
    weight_decay: WeightDecay | Number | None = None,
    decoupled: bool = False,
    drops: Sequence[tuple[int, Number]] = (),
    clip: Number | None = None,
    **numbers: Any,
) -> Optimiser:
    """An optimiser for `descend`. Its numbers can be traced, so new values need no compilation.

    Args:
        rule: "sgd", "heavy_ball", "nesterov", "adam", "adamw" or "sign"; or a function from
            numbers to an optax transformation, such as `optax.lion`.
        intrinsic_step: λ > 0 instead of a learning rate, for a rule with momentum β:
            γ = λ (1 − β)².
        weight_decay: ω ≥ 0, or a schedule ω(t) in flow time of `ddln.weight_decay`; ω u is added to
            the gradient in the layers u, as by a loss ½ω‖u‖² (coupled).
        decoupled: leave the gradient alone and let every step shrink u by ωγu/(1 − β), beside what
            the rule does: for "adam" the decay of AdamW (Loshchilov & Hutter 2019). The two differ
            for all rules but "sgd".
        drops: step schedule, as pairs of a step, counted from 0, and a factor > 0 by which γ is
            multiplied from that step on.
        clip: the largest norm of the gradient in all layers together; a larger gradient is scaled
            down to it, before the weight decay is added.
        numbers: arguments of the rule: `learning_rate` (γ > 0, or an optax schedule); `momentum`
            (0 ≤ β < 1) for heavy_ball and nesterov; `b1`, `b2` and `eps` for adam.

    A rule with an argument called `intrinsic_step`, `weight_decay`, `drops` or `clip` receives it:
    the `weight_decay` of "adamw" is AdamW's, apart from the gradient.

    Raises:
        ValueError: an unknown rule; numbers that are not arguments of the rule, or out of range
            (traced: NaN); both a learning rate and `intrinsic_step`; or `intrinsic_step`,
            `weight_decay`, `drops` or `clip` with a rule that has `**options`, which could be meant
            too.

    Source: heavy ball as in Papazov et al. 2024: the intrinsic step λ = γ/(1 − β)² determines the
    path, so that runs with equal λ end close to each other.

    >>> problem = ddln.least_squares([[1.0, 0.5]], [1.0])
    >>> layers = jnp.array([[0.3, 0.3], [0.0, 0.0]])
    >>> def end(beta):
    ...     rule = ddln.optimiser("heavy_ball", intrinsic_step=0.02, momentum=beta)
    ...     return ddln.descend(problem, layers, rule, steps=4000, throw=False).theta[-1, 0]
    >>> ends = jax.jit(jax.vmap(end))(jnp.array([0.0, 0.5, 0.8]))
    >>> bool(jnp.ptp(ends) < 0.01)
    True
    """
    name = rule if isinstance(rule, str) else getattr(rule, "__name__", repr(rule))
    if isinstance(rule, str) and rule not in _RULES:
        near = difflib.get_close_matches(rule, NAMES, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(NAMES) + "."
        raise ValueError(f'`rule` "{rule}" is unknown, {hint}')
    options: dict[str, Any] = {
        "intrinsic_step": intrinsic_step,
        "weight_decay": weight_decay,
        "drops": drops if len(drops) else None,
        "clip": clip,
    }
    options = {key: value for key, value in options.items() if value is not None}
    for key in _arguments_of(rule, options, name):
        numbers[key] = options.pop(key)
    if decoupled and "weight_decay" not in options:
        raise ValueError("`decoupled` must come with a `weight_decay` that is not the rule's own.")
    return _build(rule, name, numbers, decoupled=decoupled, **options)


def _function_of(
    rule: str | Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation]:
    """The function from numbers to an optax transformation."""
    return _RULES[rule] if isinstance(rule, str) else rule


def _arguments_of(rule: str | Callable[..., Any], options: Iterable[str], name: str) -> list[str]:
    """Which of our options are arguments of the rule.

    Raises:
        ValueError: the rule accepts any name, so that the option is ambiguous.
    """
    parameters = inspect.signature(_function_of(rule)).parameters
    kinds = {key: parameter.kind for key, parameter in parameters.items()}
    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    arguments = [key for key in options if kinds.get(key) in by_name]
    ambiguous = [key for key in options if key not in arguments]
    if ambiguous and inspect.Parameter.VAR_KEYWORD in kinds.values():
        raise ValueError(
            f"`{ambiguous[0]}` must be for either `ddln.optimiser` or {name}, got a rule that "
            "accepts any name: bind it to the rule (`functools.partial`), or give the rule "
            "explicit arguments."
        )
    return arguments


def _build(
    rule: str | Callable[..., optax.GradientTransformation],
    name: str,
    numbers: dict[str, Any],
    *,
    intrinsic_step: Number | None = None,
    weight_decay: WeightDecay | Number | None = None,
    decoupled: bool = False,
    drops: Sequence[tuple[int, Number]] = (),
    clip: Number | None = None,
) -> Optimiser:
    """The optimiser of a rule with its numbers and our options."""
    if intrinsic_step is not None:
        numbers["learning_rate"] = _learning_rate_from(intrinsic_step, numbers)
    try:
        inspect.signature(_function_of(rule)).bind(**numbers)
    except TypeError as fault:
        raise ValueError(f"`numbers` must be arguments of {name}: {fault}.") from None
    decay = None if weight_decay is None else _checked_decay(weight_decay)
    numbers = {key: _checked(key, value) for key, value in numbers.items()}
    if len(drops):
        numbers["learning_rate"] = _step_schedule(numbers.get("learning_rate"), drops)
    largest = None if clip is None else _checked("clip", clip)
    return Optimiser(rule, numbers, decay, largest, decoupled)


def _checked_decay(decay: WeightDecay | Number) -> Array | WeightDecay:
    """A schedule itself, or ω ≥ 0 as an array."""
    return decay if isinstance(decay, WeightDecay) else _checked("weight_decay", decay)


def _step_schedule(rate: Any, drops: Sequence[tuple[int, Number]]) -> StepSchedule:
    """The schedule of a constant rate with drops."""
    if rate is None or callable(rate):
        given = "none" if rate is None else "a schedule"
        raise ValueError(f"`drops` must come with a `learning_rate` that is a number, got {given}.")
    steps, factors = zip(*drops, strict=True)
    factors = as_floats("drops", jnp.stack([jnp.asarray(factor) for factor in factors]), 1)
    wrong = ~(factors > 0).all()
    factors = refuse(wrong, f"`drops` must have factors > 0, got {factors}.", factors)
    return StepSchedule(rate, jnp.asarray(steps, jnp.int32), factors)


def _learning_rate_from(intrinsic_step: Number, numbers: dict[str, Any]) -> Array:
    """γ = λ (1 − β)²."""
    if "momentum" not in numbers or "learning_rate" in numbers:
        raise ValueError(
            "`intrinsic_step` must come with a `momentum` and without a `learning_rate`, got "
            f"{', '.join(numbers) or 'no other number'}."
        )
    momentum_complement = 1 - _checked("momentum", numbers["momentum"])
    return _checked("intrinsic_step", intrinsic_step) * momentum_complement**2


def _checked(name: str, value: Any) -> Any:
    """Check that a number is in the range of its name, if that has one; convert it to an array."""
    if value is None or callable(value):
        return value
    if name not in _RANGES:
        return jnp.asarray(value) if isinstance(value, float) else value
    words, is_outside = _RANGES[name]
    value = as_floats(name, value, 0)
    return refuse(is_outside(value), f"`{name}` must be {words}, got {value}.", value)
