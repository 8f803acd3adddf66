"""Options of XLA's CPU compiler for programs that take longer to compile than to run."""

Options = dict[str, bool | int]

FEW_NETWORKS = 32
"""Networks of a chunk up to which compiling longer would cost more than running faster saves."""
SMALL_BATCH = 128
"""Numbers in the state of a batch up to which it compiles with `FASTEST`: in 0.7 s instead of 1.7,
for steps that take 1.7 times as long."""

FASTER: Options = {"xla_cpu_use_fusion_emitters": False}
"""A large program compiles in half the time and runs a tenth slower."""
FASTEST: Options = {**FASTER, "xla_backend_optimization_level": 0}
"""For few networks, it compiles in a fifth of the time and runs at less than half the speed."""


def options_of_chunk(networks: int) -> Options:
    """Options for the programs that build and certify the networks of a chunk."""
    return FASTEST if networks <= FEW_NETWORKS else FASTER
