"""A hand-written loop for the sweep of `benchmarks.sweep`, compiled by Numba.

Dormand–Prince with its dense output, in reduced coordinates (the smallest layer w of each
coordinate), with the matrix XᵀX and sizes known to the compiler; threads share the networks.
"""

import numba
import numpy as np

STAGES = np.zeros((7, 7))
for row, weights in enumerate(
    (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    start=1,
):
    STAGES[row, : len(weights)] = weights
ERROR = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
DENSE = np.array(
    [
        *(-12715105075 / 11282082432, 0, 87487479700 / 32700410799, -10690763975 / 1880347072),
        *(701980252875 / 199316789632, -1453857185 / 822651844, 69997945 / 29380423),
    ]
)


def make(depth: int, dim: int):
    """The compiled sweep; it writes the losses into its last argument."""
    others = depth - 1

    @numba.njit(fastmath=True, inline="always")
    def residual(w, imbalance, minimiser, power, away):
        for k in range(dim):
            square, product = w[k] * w[k], 1.0
            for j in range(others):
                product *= square + imbalance[j, k]
            power[k] = np.sqrt(product)
            away[k] = w[k] * power[k] - minimiser[k]

    @numba.njit(fastmath=True, inline="always")
    def rate(w, imbalance, gram, minimiser, out, away):
        residual(w, imbalance, minimiser, out, away)
        for k in range(dim):
            gradient = 0.0
            for i in range(dim):
                gradient += gram[k, i] * away[i]
            out[k] *= -gradient

    @numba.njit(fastmath=True, inline="always")
    def loss(w, imbalance, gram, minimiser, minimum, power, away):
        residual(w, imbalance, minimiser, power, away)
        total = 0.0
        for k in range(dim):
            gradient = 0.0
            for i in range(dim):
                gradient += gram[k, i] * away[i]
            total += gradient * away[k]
        return minimum + 0.5 * total

    @numba.njit(fastmath=True, parallel=True)
    def sweep(scales, layers, gram, minimiser, minimum, times, rtol, atol, out):
        for lane in numba.prange(scales.size):
            imbalance = (scales[lane] * layers[1:]) ** 2
            w, new, trial = np.zeros(dim), np.zeros(dim), np.zeros(dim)
            slopes, away, power = np.zeros((7, dim)), np.zeros(dim), np.zeros(dim)
            rate(w, imbalance, gram, minimiser, slopes[0], away)
            time, end, saved = 0.0, times[-1], 1
            step = 1e-3 / np.max(np.abs(slopes[0]))
            out[lane, 0] = loss(w, imbalance, gram, minimiser, minimum, power, away)
            while time < end:
                step = min(step, end - time)
                for stage in range(1, 7):
                    for i in range(dim):
                        slope = 0.0
                        for j in range(stage):
                            slope += STAGES[stage, j] * slopes[j, i]
                        trial[i] = w[i] + step * slope
                    rate(trial, imbalance, gram, minimiser, slopes[stage], away)
                error = 0.0
                for i in range(dim):
                    new[i] = trial[i]
                    miss = 0.0
                    for j in range(7):
                        miss += ERROR[j] * slopes[j, i]
                    scale = atol + rtol * max(abs(w[i]), abs(new[i]))
                    error += (step * miss / scale) ** 2
                error = np.sqrt(error / dim)
                if error <= 1.0:
                    while saved < times.size and times[saved] <= time + step * (1 + 1e-12):
                        s = (times[saved] - time) / step
                        for i in range(dim):
                            change = new[i] - w[i]
                            first = step * slopes[0, i] - change
                            second = change - step * slopes[6, i] - first
                            third = 0.0
                            for j in range(7):
                                third += DENSE[j] * slopes[j, i]
                            inner = second + (1 - s) * step * third
                            trial[i] = w[i] + s * (change + (1 - s) * (first + s * inner))
                        out[lane, saved] = loss(
                            trial, imbalance, gram, minimiser, minimum, power, away
                        )
                        saved += 1
                    time += step
                    for i in range(dim):
                        w[i], slopes[0, i] = new[i], slopes[6, i]
                step *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))

    return sweep
