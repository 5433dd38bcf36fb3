"""How often the verdict's interval covers the true change, or shows an effect where none is, simulated.

    python benchmarks/verdict_coverage.py [--repeats 5] [--trials 1000] [--out FILE]

Row differences are drawn from known distributions, so the truth is known. The interval is the product's own
(`tunesmith.judge.interval`); for comparison, other methods at 95% on the same kinds of rows of equal length.
Turning a distribution round exchanges its two kinds of miss, so each stands for skewness either way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.judge.interval import interval_of_mean, interval_of_ratio, t_quantile

Draw = Callable[[np.random.Generator, int], np.ndarray]
Interval = tuple[float, float]

ROWS = (5, 8, 12, 25, 125, 1000)
#: Differences a token of a row, each with mean 0.
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Student's t, 3 degrees": lambda rng, n: rng.standard_t(3, size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
    "gamma, shape 0.5": lambda rng, n: rng.gamma(0.5, size=n) - 0.5,
    "log-normal, sigma 0.5": lambda rng, n: rng.lognormal(0, 0.5, size=n) - math.exp(0.125),
    "log-normal, sigma 1": lambda rng, n: rng.lognormal(0, 1, size=n) - math.exp(0.5),
}
MEAN_TOKENS = 20
LENGTHS = ("equal", "unequal", "related")


def rows_of(lengths: str, shape: Draw, rng: np.random.Generator,
            n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Differences [nats a row], tokens [a row], and the true ratio [nats a token].

    lengths: equal | unequal (geometric, independent of the difference) | related (short rows change more a
    token).
    """
    tokens = np.full(n, MEAN_TOKENS) if lengths == "equal" else rng.geometric(1 / MEAN_TOKENS, size=n)
    offset = MEAN_TOKENS / 4 if lengths == "related" else 0.0
    return tokens * shape(rng, n) + offset, tokens, offset / MEAN_TOKENS


def student(x: np.ndarray, rng: np.random.Generator) -> Interval:
    """Student's interval."""
    half = t_quantile(0.975, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return x.mean() - half, x.mean() + half


def percentile_bootstrap(x: np.ndarray, rng: np.random.Generator) -> Interval:
    """Quantiles of the means of rows drawn with replacement."""
    means = x[rng.integers(0, len(x), (500, len(x)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high


def studentised_bootstrap(x: np.ndarray, rng: np.random.Generator) -> Interval:
    """The same of each draw's t (Efron 1982)."""
    drawn = x[rng.integers(0, len(x), (500, len(x)))]
    spread = drawn.std(1, ddof=1)
    t = (drawn.mean(1) - x.mean())[spread > 0] / spread[spread > 0]
    low, high = np.quantile(t, [0.025, 0.975])
    return x.mean() - high * x.std(ddof=1), x.mean() - low * x.std(ddof=1)


OTHERS = {"Student's t": student, "percentile bootstrap": percentile_bootstrap,
          "studentised bootstrap": studentised_bootstrap}


def shares(one: Callable[[np.random.Generator], tuple[Interval, float]], repeats: int,
           trials: int) -> dict[str, Any]:
    """Percent of trials covered, below the truth (a false "the loss fell") and above; range over repeats."""
    found: dict[str, list[float]] = {"covered": [], "below": [], "above": []}
    for repeat in range(repeats):
        rng = np.random.default_rng([2026, repeat])
        low, high, truth = np.array([(*interval, truth)
                                     for interval, truth in (one(rng) for _ in range(trials))]).T
        below, above = 100 * float((high < truth).mean()), 100 * float((low > truth).mean())
        for name, value in (("covered", 100 - below - above), ("below", below), ("above", above)):
            found[name].append(value)
    return {name: {"percent": round(statistics.mean(values), 2),
                   "range": [round(min(values), 2), round(max(values), 2)]}
            for name, values in found.items()}


def by_product(shape: Draw, lengths: str,
               rows: int) -> Callable[[np.random.Generator], tuple[Interval, float]]:
    """A trial of the product's interval."""
    def one(rng: np.random.Generator) -> tuple[Interval, float]:
        nats, tokens, truth = rows_of(lengths, shape, rng, rows)
        return interval_of_ratio(nats, tokens) or (math.nan, math.nan), truth
    return one


def by_other(shape: Draw, method: str, rows: int) -> Callable[[np.random.Generator], tuple[Interval, float]]:
    """A trial of another method."""
    return lambda rng: (OTHERS[method](shape(rng, rows), rng), 0.0)


def measure(repeats: int, trials: int) -> list[dict[str, Any]]:
    """Every method on every kind of rows. Other methods take a fifth of the trials, at most 125 rows."""
    cells = []
    for n in ROWS:
        for name, shape in SHAPES.items():
            for lengths in LENGTHS:
                cells.append({"method": "tunesmith", "rows": n, "shape": name, "lengths": lengths,
                              **shares(by_product(shape, lengths, n), repeats, trials)})
            for method in OTHERS if n <= 125 else ():
                cells.append({"method": method, "rows": n, "shape": name, "lengths": "equal",
                              **shares(by_other(shape, method, n), repeats, max(1, trials // 5))})
    return cells


def width(rows: int) -> float:
    """How much wider than Student's at 95% the interval of normal rows is; median of 400."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(400, rows))
    return statistics.median(np.ptp(interval_of_mean(x) or (0, 0)) / np.ptp(student(x, rng)) for x in draws)


def main() -> None:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    started = time.perf_counter()
    cells = measure(chosen.repeats, chosen.trials)
    result = {"date": datetime.date.today().isoformat(), "repeats": chosen.repeats,
              "trials_a_repeat": chosen.trials, "spread": "lowest and highest of the repeats",
              "numpy": np.__version__, "seconds": round(time.perf_counter() - started, 1),
              "width_of_student": {n: round(width(n), 2) for n in ROWS}, "cells": cells}
    print("rows method                 lengths   covered, worst       below, worst  above, worst")
    for n in ROWS:
        for method, lengths in [("tunesmith", each) for each in LENGTHS] + [(m, "equal") for m in OTHERS]:
            of = [c for c in cells if (c["rows"], c["method"], c["lengths"]) == (n, method, lengths)]
            if of:
                worst = min(of, key=lambda c: c["covered"]["percent"])
                print(f"{n:4} {method:22} {lengths:8} {worst['covered']['percent']:6.1f} ({worst['shape']})  "
                      f"{max(c['below']['percent'] for c in of):.1f}  "
                      f"{max(c['above']['percent'] for c in of):.1f}")
    if chosen.out:
        lines = ",\n  ".join(json.dumps(cell) for cell in result.pop("cells"))
        chosen.out.write_text(json.dumps(result, indent=1)[:-2] + f',\n "cells": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
