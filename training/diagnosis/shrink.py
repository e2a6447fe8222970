"""Ratios of observed to expected events for many groups at once, shrunk towards what such groups usually are.

    observed_g ~ Poisson(ratio_g x expected_g),   ratio_g = mean of its family x Gamma around 1 with one spread for most
                                                  mean of a family = mean of all x Gamma around 1, likewise

Clayton and Kaldor (1987, "Empirical Bayes estimates of age-standardized relative risks") fit the Gamma and take it as
given. Where groups hardly differ, or are few, the likeliest spread is often none at all, and intervals come out far too
narrow; so the spreads, and the means of the families, are drawn from what is believable of them (Gelman 2006, "Prior
distributions for variance parameters", half-Cauchy). A few groups, and a few families, are apart from all others, and
one spread for all would either not see them or see nothing else: each may be one of them (a mixture of two Gammas). A
group with little to show is taken to be like its family, one with much speaks for itself.

Failures are events of single parcels with small chances, whose spread a Poisson distribution overstates slightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import gammaln

from features.arrays import Array

DRAWS = 4_000
"""Draws of each ratio: an interval's end is then known to a hundredth of its width or so."""

MANY, FEWER = 5_000, 1_000
"""From so many groups on, so many draws are enough: no single one of them is read to a hundredth."""

PART = 400
"""Groups drawn at a time: fifty thousand products at once would not fit into memory."""

SPREADS = np.geomspace(0.05, 2.0, 40)
"""Coefficients of variation of ratios within a family that are thought of: groups are never taken to be all alike."""

USUAL_SPREAD = 0.3
"""Scale of the half-Cauchy distribution that they have before anything is seen."""

APART, APART_SPREAD = {0.01: 0.6, 0.05: 0.3, 0.2: 0.1}, 1.0
"""Shares of groups that are apart from their family, with how likely each is thought before anything is seen, and the
spread of those groups."""

WORSE = 1.25
"""A group is worse from a quarter more events on than expected; less is not worth a meeting."""

VERDICTS = ("worse", "cannot tell", "as expected")
"""What is said of a group, in the order in which it is read."""


@dataclass(frozen=True)
class Doubt:
    """How far expected events may be off, together for groups that share what they are expected from.

    Attributes:
        factor: (draws, k) around 1.
        of: (g,) int64, which of them each group has.
    """

    factor: Array
    of: Array


@dataclass(frozen=True)
class Estimates:
    """What is believed of g ratios.

    Attributes:
        table: (g) rows with ratio, low, high, chance_worse (that it is above what counts as worse), chance_worst (that
            it is the largest of all), excess (events beyond the expected, shrunk).
        sums: (draws, k) true events of each of k sums of groups: ratio times expected.
        beyond: (draws,) events beyond the expected of all groups that have some.
    """

    table: pd.DataFrame
    sums: Array
    beyond: Array


def estimate(
    observed: Array,
    expected: Array,
    rng: np.random.Generator,
    *,
    family: Array | None = None,
    doubt: Doubt | None = None,
    sums: Array | None = None,
    confidence: float = 0.9,
    worse: float = WORSE,
) -> Estimates:
    """Every group's ratio, with an interval.

    Args:
        observed: (g,) events counted.
        expected: (g,) events expected, not below 0.
        rng: random numbers.
        family: (g,) int64, groups that are more alike than others, such as the corridors of one carrier; default one.
        doubt: of the expected events, with `draws_for(g)` draws; default: they are exact.
        sums: (g,) int64, the sum that each group belongs to; default one.
        confidence: of the intervals.
        worse: the ratio from which a group is worse.

    Raises:
        ValueError: nothing was expected anywhere.
    """
    e = np.asarray(expected, dtype=np.float64)
    g, n = len(e), draws_for(len(e))
    parts: list[pd.DataFrame] = []
    best, at = np.full(n, -np.inf), np.zeros(n, dtype=np.int64)
    into = np.zeros(g, dtype=np.int64) if sums is None else sums
    beyond = np.zeros(n)
    total = np.zeros((n, int(into.max(initial=0)) + 1))
    for part, draws in _draws(observed, e, rng, family, doubt):
        parts.append(summary(draws, e[part], confidence, worse))
        first, most = draws.argmax(axis=1), draws.max(axis=1)
        at = np.where(most > best, first + part.start, at)
        best = np.maximum(most, best)
        member = (into[part, None] == np.arange(total.shape[1])).astype(np.float64)
        beyond += np.maximum(draws - 1, 0) @ e[part]
        total += draws @ (member * e[part, None])
    table = pd.concat(parts, ignore_index=True)
    table["chance_worst"] = np.bincount(at, minlength=g) / n
    return Estimates(table, total, beyond)


def ratios(
    observed: Array,
    expected: Array,
    rng: np.random.Generator,
    family: Array | None = None,
    doubt: Doubt | None = None,
) -> Array:
    """Draws of every group's ratio given what was observed everywhere, (`draws_for(g)`, g), see `estimate`."""
    return np.concatenate([d for _, d in _draws(observed, expected, rng, family, doubt)], axis=1)


def summary(draws: Array, expected: Array, confidence: float, worse: float = WORSE) -> pd.DataFrame:
    """What draws of ratios (draws, g) say of each group: ratio, low, high, chance_worse (that it is above `worse`),
    chance_worst (that it is the largest of these), and excess (events beyond the expected (g,), shrunk)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    ratio = draws.mean(axis=0)
    return pd.DataFrame(
        {
            "ratio": ratio,
            "low": low,
            "high": high,
            "chance_worse": (draws > worse).mean(axis=0),
            "chance_worst": np.bincount(draws.argmax(axis=1), minlength=draws.shape[1]) / len(draws),
            "excess": (ratio - 1) * expected,
        }
    )


def draws_for(groups: int) -> int:
    """How many draws so many groups get."""
    return DRAWS if groups < MANY else FEWER


def _draws(
    observed: Array, expected: Array, rng: np.random.Generator, family: Array | None, doubt: Doubt | None
) -> Iterator[tuple[slice, Array]]:
    """Draws of all ratios, some groups at a time."""
    o, e = np.asarray(observed, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not e.sum() > 0:
        raise ValueError("no group has any expected events: there is nothing to hold the observed ones against")
    n = draws_for(len(e))
    family = np.zeros(len(o), dtype=np.int64) if family is None else family
    families = int(family.max()) + 1
    seen, due = np.bincount(family, o, families), np.bincount(family, e, families)
    groups = due**2 / np.maximum(np.bincount(family, e**2, families), 1e-12)
    known = 1 / (1 + seen * USUAL_SPREAD**2 / np.maximum(groups, 1e-12))
    whole = max(o.sum(), 0.5) / e.sum()
    guess = (seen * known + whole) / (due * known + 1)
    spread, share = _believable(o, e * guess[family], n, rng)
    exact = np.broadcast_to(due, (n, families)) if doubt is None else _due(e, family, families, doubt)
    means = _means(seen, exact, groups, spread, rng)
    for first in range(0, len(o), PART):
        part = slice(first, min(first + PART, len(o)))
        here = e[part] if doubt is None else e[part] * doubt.factor[:, doubt.of[part]]
        yield (
            part,
            _around(o[part], np.broadcast_to(here, (n, len(o[part]))), means[:, family[part]], spread, share, rng),
        )


def _due(expected: Array, family: Array, families: int, doubt: Doubt) -> Array:
    """Expected events of each family under doubt, (draws, f)."""
    of_family = csr_array((expected, (family, doubt.of)), shape=(families, doubt.factor.shape[1]))
    return np.asarray((of_family @ doubt.factor.T).T)


def _means(seen: Array, due: Array, groups: Array, spread: Array, rng: np.random.Generator) -> Array:
    """Draws of the families' means, (draws, f).

    A family's mean is uncertain by its events, and by how few groups it is a mean of: events count as so many fewer.

    Args:
        seen: (f,) events of each family.
        due: (draws, f) expected ones.
        groups: (f,) number of groups, as if all were of one size.
        spread: (draws,) of groups within a family.
    """
    counts = 1 / (1 + seen * spread[:, None] ** 2 / np.maximum(groups, 1e-12))
    o, e = seen * counts, due * counts
    whole = (rng.gamma(o.sum(axis=1) + 0.5) / np.maximum(e.sum(axis=1), 1e-12))[:, None]
    if len(seen) == 1:
        return np.asarray(whole)
    typical = counts.mean(axis=0)
    scale = seen.sum() / max(due.mean(axis=0).sum(), 1e-12)
    between, share = _believable(seen * typical, due.mean(axis=0) * typical * scale, len(spread), rng)
    return _around(o, e, whole, between, share, rng)


def _around(
    observed: Array, expected: Array, mean: Array, spread: Array, share: Array, rng: np.random.Generator
) -> Array:
    """Draws of ratios around a mean, (draws, g), of the usual spread (draws,) or, a share (draws,), apart."""
    due, odds = expected * mean, (share / (1 - share))[:, None]
    usual, far = (spread**-2.0)[:, None], np.float64(APART_SPREAD**-2.0)
    seen_if = [_log_chance(observed, due, shape) for shape in (usual, far)]
    chance = 1.0 / (1.0 + np.exp(np.clip(seen_if[0] - seen_if[1], -50, 50)) / odds)
    shape = np.where(rng.random(chance.shape) < chance, far, usual)
    return np.asarray(rng.gamma(shape + observed, 1.0 / (shape / mean + expected)))


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


def _believable(observed: Array, expected: Array, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """What is believable where ratios have the mean 1: draws of a spread and of a share that is apart, (n,) each."""
    o, e = observed[None, :], expected[None, :]
    usual = _log_chance(o, e, (SPREADS**-2.0)[:, None])
    far = _log_chance(o, e, np.float64(APART_SPREAD**-2.0))
    # Spreads are evenly spaced on the log scale: their own size makes a density of it.
    before = -np.log1p((SPREADS / USUAL_SPREAD) ** 2) + np.log(SPREADS)
    log = np.stack(
        [
            np.log(prior) + before + np.logaddexp(np.log(1 - share) + usual, np.log(share) + far).sum(axis=1)
            for share, prior in APART.items()
        ]
    ).ravel()
    weight = np.exp(log - log.max())
    share, spread = np.divmod(rng.choice(len(log), n, p=weight / weight.sum()), len(SPREADS))
    return SPREADS[spread], np.array(list(APART))[share]
