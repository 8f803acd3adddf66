"""Rules of training by name, their numbers traced: another step size compiles nothing.

sgd          u ← u − γ g
heavy_ball   u ← u − γ g + β (u − u_before)
nesterov     u ← u − γ (g + β m),  m ← g + β m
adam         u ← u − γ m̂ / (√v̂ + ε)
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


def _momentum(learning_rate, momentum, *, nesterov):
    return optax.sgd(learning_rate, momentum, nesterov)


def _sgd(learning_rate):
    return optax.sgd(learning_rate)


_RULES: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "heavy_ball": partial(_momentum, nesterov=False),
    "nesterov": partial(_momentum, nesterov=True),
    "adam": optax.adam,
    "sign": optax.sign_sgd,
}

NAMES = tuple(_RULES)
"""What `optimiser` knows by name."""

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
}


class Drops(eqx.Module):
    """γ at a step, as a rate that is multiplied by a factor from each of some steps on."""

    rate: Array
    steps: Int[Array, " drops"]
    factors: Float[Array, " drops"]

    def __call__(self, step: Int[Array, ""]) -> Float[Array, ""]:
        return self.rate * jnp.prod(jnp.where(step >= self.steps, self.factors, 1.0))


class Optimiser(eqx.Module):
    """An optax transformation as a pytree whose leaves are its numbers. From `optimiser`."""

    rule: Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    numbers: dict[str, Any]
    weight_decay: Array | None = None

    @property
    def _transformation(self) -> optax.GradientTransformationExtraArgs:
        rule = self.rule(**self.numbers)
        if self.weight_decay is not None:
            rule = optax.chain(optax.add_decayed_weights(self.weight_decay), rule)
        return optax.with_extra_args_support(rule)

    # Optax's rules and schedules mix types (Adam its count of steps with the layers), which strict
    # promotion refuses: hence the three contexts.

    def init(self, params: Any) -> Any:
        """As optax's."""
        with jax.numpy_dtype_promotion("standard"):
            return self._transformation.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        """As optax's."""
        with jax.numpy_dtype_promotion("standard"):
            return self._transformation.update(updates, state, params, **extra)

    @property
    def is_gradient_descent(self) -> bool:
        """Whether a step is u − γ g and nothing else."""
        return self.rule is _sgd and self.weight_decay is None

    def learning_rate(self, step: Int[Array, ""]) -> Any:
        """γ at a step; 1 where the rule has none by that name."""
        rate = self.numbers.get("learning_rate", 1.0)
        with jax.numpy_dtype_promotion("standard"):
            return rate(step) if callable(rate) else rate

    def elapsed(self, step: Int[Array, ""], more: Int[Array, ""], time: Array) -> Float[Array, ""]:
        """The flow time Σ γ / (1 − β) at `more` steps after a step that was reached at `time`."""
        momentum = self.numbers.get("momentum")
        slowness = 1.0 if momentum is None else 1 - momentum

        def rate(step):
            return jnp.asarray(self.learning_rate(step), time.dtype)

        if not callable(self.numbers.get("learning_rate")):
            return jnp.asarray(step + more, time.dtype) * rate(step) / slowness
        return jax.lax.fori_loop(step, step + more, lambda k, time: time + rate(k) / slowness, time)


class _Given(NamedTuple):
    transformation: optax.GradientTransformation

    def __call__(self) -> optax.GradientTransformation:
        return self.transformation


def as_optimiser(rule: object) -> Optimiser:
    """An optax transformation that was made elsewhere, its numbers part of the program."""
    if isinstance(rule, Optimiser):
        return rule
    if isinstance(rule, optax.GradientTransformation):
        return Optimiser(_Given(rule), {})
    raise ValueError(
        f"`optimiser` must be an optax transformation, or come from `ddln.optimiser`, got {rule!r}."
    )


def optimiser(
    rule: str | Callable[..., optax.GradientTransformation],
    *,
    intrinsic_step: Number | None = None,
    weight_decay: Number | None = None,
    drops: Sequence[tuple[int, Number]] = (),
    **numbers: Any,
) -> Optimiser:
    """A rule of training for `descend`; its numbers can be traced: another value compiles nothing.

    Args:
        rule: "sgd", "heavy_ball", "nesterov", "adam" or "sign"; or what makes an optax
            transformation of numbers, such as `optax.adamw`.
        intrinsic_step: λ > 0 in place of a learning rate, where there is a momentum β: then
            γ = λ (1 − β)².
        weight_decay: ω ≥ 0; ω u is added to the gradient in the layers u, as by a loss ½ω‖u‖².
        drops: pairs of a step and a factor > 0: from the step on, counted from 0, γ is multiplied.
        numbers: what the rule takes: `learning_rate` (γ > 0, or an optax schedule), and `momentum`
            (0 ≤ β < 1) for heavy_ball and nesterov, or `b1`, `b2`, `eps` for adam.

    A rule that itself takes one of `intrinsic_step`, `weight_decay` and `drops` gets it: the
    `weight_decay` of `optax.adamw` is AdamW's.

    Raises:
        ValueError: an unknown rule, numbers that it does not take or that are out of range
            (traced: NaN), a learning rate beside `intrinsic_step`; a rule with `**options` beside
            `intrinsic_step`, `weight_decay` or `drops`, which it could take as well.

    Source: heavy ball as in Papazov et al. 2024, where the intrinsic quantity λ = γ/(1 − β)²
    decides the path, so that runs of equal λ end nearly at the same point.

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
    if isinstance(rule, str):
        if rule not in _RULES:
            near = difflib.get_close_matches(rule, NAMES, n=1)
            hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(NAMES) + "."
            raise ValueError(f'`rule` "{rule}" is unknown, {hint}')
        rule = _RULES[rule]
    ours: dict[str, Any] = {"intrinsic_step": intrinsic_step, "weight_decay": weight_decay}
    ours |= {"drops": drops if len(drops) else None}
    given = {key: value for key, value in ours.items() if value is not None}
    for key in _taken(rule, given, name):
        numbers[key] = given.pop(key)
    return _made(rule, name, numbers, **given)


def _taken(rule: Callable[..., Any], given: Iterable[str], name: str) -> list[str]:
    """Which of our names the rule takes.

    Raises:
        ValueError: it takes any name.
    """
    parameters = inspect.signature(rule).parameters
    kinds = {key: parameter.kind for key, parameter in parameters.items()}
    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    taken = [key for key in given if kinds.get(key) in by_name]
    either = [key for key in given if key not in taken]
    if either and inspect.Parameter.VAR_KEYWORD in kinds.values():
        raise ValueError(
            f"`{either[0]}` must have one taker, got `ddln.optimiser` and {name}, which takes any "
            "name: bind it to the rule (`functools.partial`), or list in the rule what it takes."
        )
    return taken


def _made(
    rule: Callable[..., optax.GradientTransformation],
    name: str,
    numbers: dict[str, Any],
    *,
    intrinsic_step: Number | None = None,
    weight_decay: Number | None = None,
    drops: Sequence[tuple[int, Number]] = (),
) -> Optimiser:
    """The rule with its numbers, and with what is not its own."""
    if intrinsic_step is not None:
        numbers["learning_rate"] = _rate_of(intrinsic_step, numbers)
    try:
        inspect.signature(rule).bind(**numbers)
    except TypeError as fault:
        raise ValueError(f"`numbers` must be what {name} takes: {fault}.") from None
    decay = None if weight_decay is None else _checked("weight_decay", weight_decay)
    numbers = {key: _checked(key, value) for key, value in numbers.items()}
    if len(drops):
        numbers["learning_rate"] = _dropping(numbers.get("learning_rate"), drops)
    return Optimiser(rule, numbers, decay)


def _dropping(rate: Any, drops: Sequence[tuple[int, Number]]) -> Drops:
    """The rate with its drops."""
    if rate is None or callable(rate):
        given = "none" if rate is None else "a schedule"
        raise ValueError(f"`drops` must come with a `learning_rate` that is a number, got {given}.")
    steps, factors = zip(*drops, strict=True)
    factors = as_floats("drops", jnp.stack([jnp.asarray(factor) for factor in factors]), 1)
    wrong = ~(factors > 0).all()
    factors = refuse(wrong, f"`drops` must have factors > 0, got {factors}.", factors)
    return Drops(rate, jnp.asarray(steps, jnp.int32), factors)


def _rate_of(intrinsic_step: Number, numbers: dict[str, Any]) -> Array:
    """γ = λ (1 − β)²."""
    if "momentum" not in numbers or "learning_rate" in numbers:
        raise ValueError(
            "`intrinsic_step` must come with a `momentum` and without a `learning_rate`, got "
            f"{', '.join(numbers) or 'no other number'}."
        )
    patience = 1 - _checked("momentum", numbers["momentum"])
    return _checked("intrinsic_step", intrinsic_step) * patience**2


def _checked(name: str, value: Any) -> Any:
    """A number that is known to have a range as an array within it; anything else as it is."""
    if value is None or callable(value):
        return value
    if name not in _RANGES:
        return jnp.asarray(value) if isinstance(value, float) else value
    words, is_outside = _RANGES[name]
    value = as_floats(name, value, 0)
    return refuse(is_outside(value), f"`{name}` must be {words}, got {value}.", value)
