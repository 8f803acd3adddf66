"""Draw the same random numbers from a seed whatever JAX's settings are.

Environment variables can select another generator (`JAX_DEFAULT_PRNG_IMPL`), another partition of
its stream (`JAX_THREEFRY_PARTITIONABLE`) and an offset to every seed (`JAX_RANDOM_SEED_OFFSET`).
None of these may change the numbers of a config.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

_GENERATOR = "threefry2x32"


def key_from_seed(seed: Any) -> Any:
    """The key that `jax.random.key(seed)` returns under JAX's default settings.

    Args:
        seed: an integer, 0 ≤ seed < 2³²; may be traced.

    >>> import jax
    >>> bool(key_from_seed(2**32 - 1) == jax.random.key(2**32 - 1))
    True
    """
    import jax
    import jax.numpy as jnp

    low = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(low), low]), impl=_GENERATOR)


def fix_generator() -> None:
    """Select JAX's default generator for the whole process, whatever the environment selects."""
    import jax

    jax.config.update("jax_default_prng_impl", _GENERATOR)
    jax.config.update("jax_threefry_partitionable", True)
    jax.config.update("jax_random_seed_offset", 0)


@contextlib.contextmanager
def fixed_generator() -> Iterator[None]:
    """Draw with JAX's default generator while the context lasts; also a decorator.

    A key carries its generator, but compilation fixes the partition of its stream: the context must
    last until the program has run.
    """
    import jax

    with jax.default_prng_impl(_GENERATOR), jax.threefry_partitionable(True):
        yield
