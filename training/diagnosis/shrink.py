"""Ratios of observed to expected events for many groups at once, shrunk towards what such groups usually are.

    observed_g ~ Poisson(ratio_g x expected_g),   ratio_g ~ Gamma with the mean of its family and one spread for most

Clayton and Kaldor (1987, "Empirical Bayes estimates of age-standardized relative risks") fit the Gamma and take it as
given. Where groups hardly differ, or are few, the likeliest spread is often none at all, and intervals come out far too
narrow; so the spread, and the means of the families, are drawn from what is believable of them (Gelman 2006, "Prior
distributions for variance parameters", half-Cauchy). A few groups are apart from all others, and one spread for all
would either not see them or see nothing else: each may be one of them (a mixture of two Gammas). A group with little to
show is taken to be like its family, one with much speaks for itself.

Failures are events of single parcels with small chances, whose spread a Poisson distribution overstates slightly.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import gammaln

from features.arrays import Array

DRAWS = 4_000
"""Draws of each ratio: an interval's end is then known to a hundredth of its width or so."""

SPREADS = np.geomspace(0.05, 2.0, 40)
"""Coefficients of variation of ratios within a family that are thought of: groups are never taken to be all alike."""

USUAL_SPREAD = 0.3
"""Scale of the half-Cauchy distribution that they have before anything is seen."""

APART, APART_SPREAD = 0.01, 1.0
"""Share of groups that are apart from their family before anything is seen, and the spread of those."""

WORSE = 1.25
"""A group is worse from a quarter more events on than expected; less is not worth a meeting."""

VERDICTS = ("worse", "cannot tell", "as expected")
"""What is said of a group, in the order in which it is read."""

FAMILY = 20.0
"""Expected events at which a family's own mean counts as much as that of all."""


def ratios(
    observed: Array,
    expected: Array,
    rng: np.random.Generator,
    family: Array | None = None,
    doubt: Array | None = None,
) -> Array:
    """Draws of every group's ratio given what was observed everywhere, (DRAWS, g).

    Args:
        observed: (g,) events counted.
        expected: (g,) events expected, not below 0.
        rng: random numbers.
        family: (g,) int64, groups that are more alike than others, such as the corridors of one carrier; default one.
        doubt: (DRAWS, g) factors around 1 by which the expected events may be off; default: they are exact.

    Raises:
        ValueError: nothing was expected anywhere.
    """
    o, e = np.asarray(observed, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not e.sum() > 0:
        raise ValueError("no group has any expected events: there is nothing to hold the observed ones against")
    family = np.zeros(len(o), dtype=np.int64) if family is None else family
    member = (family[:, None] == np.arange(family.max() + 1)).astype(np.float64)
    exact = e[None, :] if doubt is None else e[None, :] * doubt
    whole = max(o.sum(), 0.5) / e.sum()
    seen, due = o @ member + FAMILY * whole, exact @ member + FAMILY
    spread = rng.choice(SPREADS, DRAWS, p=_believable(o, e * (seen / due.mean(axis=0))[family]))
    # A family's mean is uncertain by its events, and by how few groups it is a mean of.
    groups = (e @ member) ** 2 / np.maximum(e**2 @ member, 1e-12)
    variance = 1.0 / seen[None, :] + spread[:, None] ** 2 / np.maximum(groups, 1.0)[None, :]
    means = seen[None, :] / due * rng.gamma(1.0 / variance) * variance
    usual, apart = (spread**-2.0)[:, None], np.float64(APART_SPREAD**-2.0)
    own = means[:, family]
    seen_if = [_log_chance(o[None, :], exact * own, shape) for shape in (usual, apart)]
    chance = 1.0 / (1.0 + (1 - APART) / APART * np.exp(np.clip(seen_if[0] - seen_if[1], -50, 50)))
    shape = np.where(rng.random(chance.shape) < chance, apart, usual)
    return rng.gamma(shape + o[None, :], 1.0 / (shape / own + exact))


def summary(draws: Array, expected: Array, confidence: float) -> pd.DataFrame:
    """What draws of ratios (DRAWS, g) say of each group: ratio, low, high, chance_worse (that it is above `WORSE`), and
    excess (events beyond the expected (g,), shrunk)."""
    tail = (1 - confidence) / 2
    ratio = draws.mean(axis=0)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    worse = (draws > WORSE).mean(axis=0)
    return pd.DataFrame(
        {"ratio": ratio, "low": low, "high": high, "chance_worse": worse, "excess": (ratio - 1) * expected}
    )


def worst_first(groups: pd.DataFrame) -> pd.DataFrame:
    """Groups in the order in which they are read: by verdict, then by excess."""
    rank = groups["verdict"].map(VERDICTS.index).to_numpy(int)
    order = np.lexsort((-groups["excess"].fillna(0.0).to_numpy(float), rank))
    return groups.iloc[order].reset_index(drop=True)


def _log_chance(observed: Array, expected: Array, shape: Array | np.float64) -> Array:
    """Log of the chance of a count whose mean is Gamma with this shape around `expected`, but for what is the same."""
    e = np.maximum(expected, 1e-12)
    return np.asarray(
        gammaln(shape + observed)
        - gammaln(shape)
        + shape * np.log(shape / (shape + e))
        + observed * np.log(e / (shape + e))
    )


def _believable(observed: Array, expected: Array) -> Array:
    """How believable each of `SPREADS` is, (s,), where ratios have the mean 1."""
    o, e = observed[None, :], expected[None, :]
    usual = _log_chance(o, e, (SPREADS**-2.0)[:, None])
    apart = _log_chance(o, e, np.float64(APART_SPREAD**-2.0))
    chance = np.logaddexp(np.log(1 - APART) + usual, np.log(APART) + apart)
    # Spreads are evenly spaced on the log scale: their own size makes a density of it.
    log = chance.sum(axis=1) - np.log1p((SPREADS / USUAL_SPREAD) ** 2) + np.log(SPREADS)
    weight = np.exp(log - log.max())
    return np.asarray(weight / weight.sum())
