"""A Kalman filter of soft-bounds cells: what each shown value was expected to be, and how well that was known.

A pulse is an affine map of the state with additive noise, g → (1 − α/|b|)·g ± α + α·σ·ξ, and a read adds an offset that
is redrawn every time: a linear Gaussian model, whose likelihood tells noise that stays (σ) from noise that does not
(Kalman 1960; Durbin & Koopman 2012, chapter 4). Only the cut at the bounds is not linear. After each pulse the state's
distribution is replaced by the normal one with the mean and variance of the cut distribution (assumed density
filtering: Maybeck 1982, section 12.7), so that mean and variance of what is shown next stay right.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

FAR = 6.0
"""Standard deviations from a bound beyond which cutting changes nothing (2 parts in 10⁹ lie beyond)."""


def innovations(
    shown: Array,
    rising: NDArray[np.bool_],
    cells: tuple[Array, ...],
    cycle_noise: Array,
    read_variance: Array,
    proportional: bool = False,
) -> tuple[Array, Array]:
    """What was not expected of each shown value, and the variance that was: both (K, …, N).

    A read variance beyond all measure teaches the filter nothing: the errors are then those of the expected curve.

    Args:
        shown: (K, N); 0 where nothing was shown any more.
        rising: whether the pulse before was up, (K, N); the first row is not used.
        cells: steps up and down, bounds, and states at the first row, each (…, N).
        cycle_noise: σ, broadcast to (…, N).
        read_variance: of the offset, broadcast to (…, N).
        proportional: whether noise is σ times the step that the pulse takes, so that it vanishes at the bounds and
            nothing is cut; else σ times the step at state 0.

    >>> cell = tuple(np.array([x]) for x in (0.1, 0.1, 1.0, -1.0, 0.0))
    >>> rising, noise = np.ones((2, 1), dtype=bool), np.array([1.0])
    >>> error, variance = innovations(np.array([[0.0], [0.5]]), rising, cell, noise, np.array([0.01]))
    >>> error.flatten().tolist(), variance.flatten().round(4).tolist()
    ([0.0, 0.4], [0.01, 0.02])
    """
    up, down, upper, lower, first = cells
    shape = np.broadcast_shapes(up.shape, cycle_noise.shape, read_variance.shape)
    ways = {
        True: (1 - up / upper, up, (up * cycle_noise) ** 2, upper),
        False: (1 + down / lower, -down, (down * cycle_noise) ** 2, lower),
    }
    rises = rising.mean(1).tolist()
    mean, variance = np.broadcast_to(first, shape).copy(), np.zeros(shape)
    errors, variances = np.empty((len(shown), *shape)), np.empty((len(shown), *shape))
    for row, value in enumerate(shown):
        if row:
            if rises[row] in (0.0, 1.0):
                kept, shift, noise, bound = ways[rises[row] == 1.0]
            else:
                kept, shift, noise, bound = (
                    np.where(rising[row], *both) for both in zip(ways[True], ways[False], strict=True)
                )
            if proportional:
                noise = noise * ((1 - mean / bound) ** 2 + variance / bound**2)
            mean = kept * mean + shift
            variance = kept * kept * variance + noise
            if not proportional:
                mean, variance = cut(mean, variance, lower, upper)
        total = variance + read_variance
        error = value - mean
        gain = variance / total
        mean = mean + gain * error
        variance = variance * (1 - gain)
        errors[row], variances[row] = error, total
    return errors, variances


def cut(mean: Array, variance: Array, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Mean and variance of a normal number that is cut to its bounds; shape of mean.

    With a, b the bounds in standard deviations from the mean, Φ and φ the normal distribution and density, the first
    two moments of x = min(max(ξ, a), b) are (Greene 2012, theorem 19.2, for both sides)

        E[x]  = a·Φ(a) + b·(1 − Φ(b)) + φ(a) − φ(b)
        E[x²] = a²·Φ(a) + b²·(1 − Φ(b)) + Φ(b) − Φ(a) + a·φ(a) − b·φ(b)

    >>> mean, variance = cut(np.array([0.0]), np.array([1.0]), np.array([-9.0]), np.array([0.0]))
    >>> mean.round(4).tolist(), variance.round(4).tolist()  # half of a normal number: −1/√(2π) and ½ − 1/(2π)
    ([-0.3989], [0.3408])
    """
    reach = FAR * np.sqrt(variance)
    if (mean + reach < upper).all() and (mean - reach > lower).all():
        return mean, variance
    deviation = np.sqrt(np.maximum(variance, 1e-18))
    a, b = ((bound - mean) / deviation for bound in (lower, upper))
    below, under = ndtr(a), ndtr(b)
    density_a, density_b = (np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) for x in (a, b))
    above = 1 - under
    first = a * below + b * above + density_a - density_b
    second = a * a * below + b * b * above + under - below + a * density_a - b * density_b
    return mean + deviation * first, variance * np.maximum(second - first * first, 1e-6)
