"""Strict settings for every test and doctest.

Float64, no implicit broadcasting, no implicit promotion of types, checked shapes.
"""

import gc
import os

# Compiling is most of a test's time, so the compiler need not try hard; `XLA_FLAGS= make test` has
# the code as users run it. Code in one piece took 5 % off flows, 30 % off compiling an entropy.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import jaxtyping
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jaxtyping.install_import_hook("ddln", "beartype.beartype")
# Tracing makes many small objects and little rubbish. Looking for it at every 700th, as Python
# does, took a tenth of the time of `tests/test_certify.py` (38 to 41 s, then 34.5).
gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace):
    import jax.numpy as jnp

    import ddln

    doctest_namespace.update(jax=jax, jnp=jnp, ddln=ddln)


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go():
    """Drop the compiled programs before they need more memory maps than a process may have.

    The files of tests share many small programs, so these stay as long as they may.
    """
    yield
    from ddln._internal.compiled_programs import memory_maps

    maps = memory_maps()
    if maps is None or maps[0] > maps[1] // 4:
        jax.clear_caches()
