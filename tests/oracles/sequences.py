"""Confidence sequences and the arms' evidence the long way: from their definitions, not from closed forms."""

from __future__ import annotations

import math

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar


def boundary(n: float, variance: float, level: float, mixture: float) -> float:
    """By how much a mean of n values may be off before a normal mixture of likelihood ratios reaches 1 / level.

    The mixture over shifts b with density N(0, mixture), for values of variance 1:
    the integral of exp(b S - n b^2 / 2) over b, S being the sum.
    """

    def log_wealth(total: float) -> float:
        top = (
            mixture * total**2 / (2 * (n * mixture + 1))
        )  # the exponent's maximum, taken out so that nothing overflows
        mode, wide = mixture * total / (n * mixture + 1), math.sqrt(mixture / (n * mixture + 1))

        def density(b: float) -> float:
            prior = -(b**2) / (2 * mixture) - 0.5 * math.log(2 * math.pi * mixture)
            return math.exp(b * total - n * b**2 / 2 + prior - top)

        area, _ = quad(density, mode - 12 * wide, mode + 12 * wide, points=[mode])
        return math.log(area) + top

    total = brentq(lambda s: log_wealth(s) - math.log(1 / level), 0.0, 100 * math.sqrt(n))
    return math.sqrt(variance) * total / n


def best_mixture(n: float, level: float) -> float:
    """The mixture whose boundary is narrowest at n, looked for."""
    ends = (math.log(0.1 / n), math.log(1000 / n))
    found = minimize_scalar(lambda x: boundary(n, 1.0, level, math.exp(x)), bounds=ends, options={"xatol": 1e-6})
    return math.exp(found.x)


def contrast(outcome, treated, propensity, look, at: int) -> dict[str, float]:
    """Weighted rates of the units judged by look `at`, unit by unit, and the variances of what is made of them."""
    seen = [i for i in range(len(look)) if look[i] <= at]
    n = len(seen)
    sums = {arm: [0.0, 0.0] for arm in (True, False)}
    for i in seen:
        chance = propensity[i] if treated[i] else 1 - propensity[i]
        sums[bool(treated[i])][0] += 1 / chance
        sums[bool(treated[i])][1] += outcome[i] / chance
    rate = {arm: total / weight if weight else math.nan for arm, (weight, total) in sums.items()}
    own = {True: 0.0, False: 0.0}
    for i in seen:
        arm = bool(treated[i])
        chance = propensity[i] if arm else 1 - propensity[i]
        own[arm] += ((outcome[i] - rate[arm]) / chance) ** 2 / n
    mean = sum(outcome[i] for i in seen) / n
    spread = sum((outcome[i] - mean) ** 2 for i in seen) / n
    lots = sum(1 / (propensity[i] * (1 - propensity[i])) for i in seen) / n
    out = {"units": n, "act": rate[True], "control": rate[False], "difference": rate[True] - rate[False]}
    out["variance"] = max(own[True] + own[False], spread * lots)
    if all(0 < rate[arm] < 1 for arm in rate):
        odds = {arm: rate[arm] / (1 - rate[arm]) for arm in rate}
        out["log_odds"] = math.log(odds[True] / odds[False])
        parts = sum(own[arm] / (rate[arm] * (1 - rate[arm])) ** 2 for arm in rate)
        out["log_odds_variance"] = max(parts, lots / spread)
    return out


def wealth(treated, propensity, tilts) -> float:
    """The mixture of likelihood ratios of the arms against arms with shifted log-odds."""
    ratios = []
    for tilt in tilts:
        ratio = 1.0
        for d, p in zip(treated, propensity, strict=True):
            odds = p / (1 - p) * math.exp(tilt)
            q = odds / (1 + odds)
            ratio *= (q / p) if d else (1 - q) / (1 - p)
        ratios.append(ratio)
    return float(np.mean(ratios))
