"""An interval for a mean difference that holds for few rows and for skewed ones.

Losses differ a lot from row to row, and their differences are skewed: Student's interval then misses the
truth too often on one side, and a bootstrap of few rows misses it more often still. Taken is the union of
Student's t and of Hall's transformation, which corrects it for skewness (Hall 1992,
https://doi.org/10.2307/2345897), at a nominal level that is raised for few rows.
`benchmarks/verdict_coverage.py` measures what comes of it; docs/evaluate.md has the table.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

#: Fewer different rows than this tell nothing.
FEWEST = 5
#: (rows, two-sided nominal level up to that many): about 93% cover even for skewed rows of unequal length.
_LEVELS = ((14, 0.998), (29, 0.995), (49, 0.99), (399, 0.98), (math.inf, 0.95))


def interval_of_mean(values: npt.ArrayLike) -> tuple[float, float] | None:
    """An interval that covers the mean in about 95% of cases; None for fewer than `FEWEST` values."""
    x = np.asarray(values, dtype=np.float64)
    count = len(x)
    if count < FEWEST:
        return None
    mean, deviation = float(x.mean()), float(x.std(ddof=1))
    if deviation == 0 or not math.isfinite(deviation):
        return mean, mean
    level = next(level for most, level in _LEVELS if count <= most)
    t = t_quantile((1 + level) / 2, count - 1)
    skewness = (float(((x - mean) ** 3).mean()) / float(x.std()) ** 3
                * math.sqrt(count * (count - 1)) / (count - 2))
    scaled = t / math.sqrt(count)
    ends = [scaled, -scaled, _hall(scaled, skewness, count), _hall(-scaled, skewness, count)]
    return mean - deviation * max(ends), mean - deviation * min(ends)


def interval_of_ratio(numerators: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[float, float] | None:
    """The same for sum(numerators) / sum(weights): by its linearisation (Cochran 1977, section 6.3)."""
    d, w = np.asarray(numerators, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    ratio = d.sum() / w.sum()
    return interval_of_mean(ratio + (d - ratio * w) / w.mean())


def _hall(w: float, skewness: float, count: int) -> float:
    """The inverse of Hall's transformation at w, in units of the spread."""
    a = skewness / 3
    if abs(a) < 1e-9:
        return w
    return (float(np.cbrt(1 + 3 * a * (w - skewness / (6 * count)))) - 1) / a


@functools.cache
def t_quantile(p: float, degrees_of_freedom: int) -> float:
    """Student's t at probability p > 0.5."""
    import mpmath

    def upper_tail(t: float) -> float:
        x = degrees_of_freedom / (degrees_of_freedom + t * t)
        return float(mpmath.betainc(degrees_of_freedom / 2, 0.5, 0, x, regularized=True)) / 2

    low, high = 0.0, 1.0
    while upper_tail(high) > 1 - p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle) > 1 - p else (low, middle)
    return (low + high) / 2


def half_width(count: int) -> float | None:
    """How far the interval of so many values reaches to each side where they are not skewed, in their
    standard deviations; None for fewer than `FEWEST`.
    """
    if count < FEWEST:
        return None
    level = next(level for most, level in _LEVELS if count <= most)
    return t_quantile((1 + level) / 2, count - 1) / math.sqrt(count)
