"""Ratios of observed to expected events for many groups at once, shrunk towards what such groups usually are.

    observed_g ~ Poisson(ratio_g x expected_g),   ratio_g = mean of its family x Gamma around 1 with one spread for most
                                                  mean of a family = mean of all x Gamma around 1, likewise

Clayton and Kaldor (1987, "Empirical Bayes estimates of age-standardized relative risks") fit the Gamma and take it as
given. Where groups hardly differ, or are few, the likeliest spread is often none at all, and intervals come out far too
narrow; so the spreads, and the means of the families, are drawn together from what is believable of them (Gelman 2006,
"Prior distributions for variance parameters", half-Cauchy). Families of one kind, such as the brands of a category,
have one spread, and kinds have spreads around a typical one. A few groups, and a few families, are apart from all
others, and one spread for all would either not see them or see nothing else: each may be one of them (a mixture of two
Gammas). A group with little to show is taken to be like its family, one with much speaks for itself.

Failures are events of single parcels with small chances, whose spread a Poisson distribution overstates slightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import csr_array
from scipy.special import gammaln

from features.arrays import Array

DRAWS = 2_000
"""Draws of each ratio: an interval's end is then known to a fiftieth of its width or so."""

MANY, FEWER = 5_000, 1_000
"""From so many groups on, so many draws are enough: no single one of them is read to a hundredth."""

PART = 400
"""Groups drawn at a time: fifty thousand products at once would not fit into memory."""

SPREADS = np.geomspace(0.05, 2.0, 17)
"""Coefficients of variation of ratios within a family that are thought of: groups are never taken to be all alike."""

ALIKE = 0.4
"""Standard deviation of the logarithm of the spreads of different kinds of families."""

USUAL_SPREAD = 0.3
"""Scale of the half-Cauchy distribution that they have before anything is seen."""

APART, APART_SPREAD = {0.01: 0.6, 0.05: 0.3, 0.2: 0.1}, 1.0
"""Shares of groups that are apart from their family, with how likely each is thought before anything is seen, and the
spread of those groups."""

LEVELS = np.geomspace(0.1, 10.0, 41)
"""Means of families that are thought of."""

WHOLES, WHOLE = np.geomspace(0.5, 2.0, 9), 0.3
"""Means of all families that are thought of, and the standard deviation of their logarithm before anything is seen."""

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
        alone: (g,) standard deviation of the logarithm of what each ratio differs besides, as its units are not any
            units; default not at all.
    """

    factor: Array
    of: Array
    alone: Array | None = None


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
    kind: Array | None = None,
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
        kind: (f,) int64, families whose groups are as different from each other, such as the brands of one category;
            default one.
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
    for part, draws in _draws(observed, e, rng, family, kind, doubt):
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
    return np.concatenate([d for _, d in _draws(observed, expected, rng, family, None, doubt)], axis=1)


def means(
    observed: Array, expected: Array, rng: np.random.Generator, family: Array, kind: Array, n: int = FEWER
) -> Array:
    """Draws of every family's mean, (n, f), see `estimate`: what its groups have in common, not what the largest of
    them has."""
    return _families(observed, expected, family, kind, n, None, rng)[0]


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
    observed: Array,
    expected: Array,
    rng: np.random.Generator,
    family: Array | None,
    kind: Array | None,
    doubt: Doubt | None,
) -> Iterator[tuple[slice, Array]]:
    """Draws of all ratios, some groups at a time."""
    o, e = np.asarray(observed, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if not e.sum() > 0:
        raise ValueError("no group has any expected events: there is nothing to hold the observed ones against")
    n = draws_for(len(e))
    family = np.zeros(len(o), dtype=np.int64) if family is None else family
    kind = np.zeros(int(family.max()) + 1, dtype=np.int64) if kind is None else kind
    means, spread, share = _families(o, e, family, kind, n, doubt, rng)
    for first in range(0, len(o), PART):
        part = slice(first, min(first + PART, len(o)))
        f = family[part]
        here = e[part] if doubt is None else e[part] * doubt.factor[:, doubt.of[part]]
        drawn = _around(o[part], np.broadcast_to(here, (n, len(o[part]))), means[:, f], spread[:, f], share, rng)
        if doubt is not None and doubt.alone is not None:
            drawn *= np.exp(rng.normal(size=drawn.shape) * doubt.alone[part])
        yield part, drawn


def _families(
    observed: Array,
    expected: Array,
    family: Array,
    kind: Array,
    n: int,
    doubt: Doubt | None,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:
    """Draws of the families' means (n, f), of the spread of groups within each family (n, f), and of the share of
    groups that are apart (n,).

    All are drawn together from a grid: a family's mean that is fitted first takes what its largest group is apart for
    its own, and leaves too small a spread for all others.

    Args:
        observed, expected: (g,)
        family: (g,) int64.
        kind: (f,) int64, families of one kind have one spread.
        n: how many draws.
        doubt: of the expected events.
        rng: random numbers.
    """
    families, kinds = len(kind), int(kind.max()) + 1
    log = _by_family(observed, expected, family, families)
    chance = np.exp(log - log.max(axis=(1, 2, 3), keepdims=True))  # (f, levels, spreads, shares)
    before = _prior_of_means()
    seen = np.zeros((kinds, len(SPREADS), len(APART), before.shape[1]))
    for first in range(0, families, PART // 8):
        part = slice(first, first + PART // 8)
        each = np.tensordot(chance[part], before, axes=(1, 0))
        np.add.at(seen, kind[part], np.log(each + 1e-300))
    most = seen.max(axis=1, keepdims=True)
    # Spreads of kinds are around a typical one: (typical, spread).
    around = np.exp(-0.5 * ((np.log(SPREADS)[:, None] - np.log(SPREADS)) / ALIKE) ** 2)
    around /= around.sum(axis=1, keepdims=True)
    weight = np.log(np.einsum("ts,ksab->ktab", around, np.exp(seen - most)) + 1e-300).sum(axis=0) + most.sum(axis=0)
    shares = np.log(list(APART.values()))
    unseen = (_log_prior(SPREADS)[:, None] + shares)[:, :, None]  # of spreads and shares, within families and between
    weight += unseen + (unseen - 0.5 * (np.log(WHOLES) / WHOLE) ** 2).ravel()
    weight = np.exp(weight - weight.max())
    drawn = rng.choice(weight.size, n, p=weight.ravel() / weight.sum())
    typical, apart, of_between = np.unravel_index(drawn, weight.shape)
    of_kind = np.exp(seen[:, :, apart, of_between] - most[:, :, apart, of_between]) * around[typical].T  # (k, s, n)
    spread = _pick(np.moveaxis(of_kind, 1, 2), rng).T[:, kind]
    step = np.log(LEVELS[1] / LEVELS[0])
    shift = np.zeros((n, families), dtype=np.int64)
    if doubt is not None:
        whole = np.bincount(family, expected, families)
        of_family = csr_array((expected, (family, doubt.of)), shape=(families, doubt.factor.shape[1]))
        off = np.asarray((of_family @ doubt.factor.T).T) / np.maximum(whole, 1e-300)
        shift = np.rint(np.log(np.where(whole > 0, off, 1.0)) / step).astype(np.int64)
    # Were more expected than thought, what was seen would speak for so much smaller a mean: a window moves along.
    shift = np.clip(shift, -len(LEVELS), len(LEVELS))
    most_off = int(np.abs(shift).max(initial=0))
    rows = np.moveaxis(chance, 1, -1).reshape(-1, len(LEVELS))
    windows = sliding_window_view(np.pad(rows, ((0, 0), (most_off, most_off)), mode="edge"), len(LEVELS), axis=1)
    row = (np.arange(families) * len(SPREADS) + spread) * len(APART) + apart[:, None]
    means = np.empty((n, families))
    for first in range(0, n, 50):
        part = slice(first, first + 50)
        likely = windows[row[part], most_off + shift[part]] * before.T[of_between[part], None, :]
        means[part] = LEVELS[_pick(likely, rng)]
    means *= np.exp((rng.random(means.shape) - 0.5) * step)
    return means, SPREADS[spread], np.array(list(APART))[apart]


def _pick(weight: Array, rng: np.random.Generator) -> Array:
    """A place along the last axis with a chance in proportion to its weight."""
    sums = np.cumsum(weight, axis=-1)
    return np.asarray((sums < rng.random((*sums.shape[:-1], 1)) * sums[..., -1:]).sum(axis=-1))


def _by_family(observed: Array, expected: Array, family: Array, families: int) -> Array:
    """Log of the chance of what was seen in each family, had it each mean, spread and share apart, (f, levels, spreads,
    shares)."""
    out = np.zeros((families, len(LEVELS) * len(SPREADS) * len(APART)))
    shapes = np.append(SPREADS, APART_SPREAD) ** -2.0
    for first in range(0, len(observed), PART):
        part = slice(first, first + PART)
        o, e = observed[part, None, None], np.maximum(expected[part, None, None], 1e-12) * LEVELS[:, None]
        each = log_chance(o, e, shapes)
        usual, far = each[..., :-1], each[..., -1:]
        more = np.exp(np.clip(far - usual, -50, 50))
        mixed = usual[..., None] + np.log1p(np.array(list(APART)) * (more[..., None] - 1))
        into = csr_array((np.ones(len(o)), (family[part], np.arange(len(o)))), shape=(families, len(o)))
        out += into @ mixed.reshape(len(o), -1)
    return out.reshape(families, len(LEVELS), len(SPREADS), len(APART))


def _prior_of_means() -> Array:
    """How likely each mean of a family is for each spread of the means, share apart, and mean of all, (levels, b)."""
    spread, whole = SPREADS[None, :, None, None], WHOLES[None, None, None, :]
    share, x = np.array(list(APART))[None, None, :, None], LEVELS[:, None, None, None] / whole

    def gamma(of: Array | np.float64) -> Array:
        shape = np.asarray(of) ** -2.0
        density = np.exp(shape * np.log(shape * x) - shape * x - gammaln(shape))
        return np.asarray(density / density.sum(axis=0))

    return np.asarray((1 - share) * gamma(spread) + share * gamma(np.float64(APART_SPREAD))).reshape(len(LEVELS), -1)


def _around(
    observed: Array, expected: Array, mean: Array, spread: Array, share: Array, rng: np.random.Generator
) -> Array:
    """Draws of ratios around a mean, (draws, g), of the usual spread (draws, g) or, a share (draws,), apart."""
    due, odds = expected * mean, (share / (1 - share))[:, None]
    usual, far = spread**-2.0, np.float64(APART_SPREAD**-2.0)
    seen_if = [log_chance(observed, due, shape) for shape in (usual, far)]
    chance = 1.0 / (1.0 + np.exp(np.clip(seen_if[0] - seen_if[1], -50, 50)) / odds)
    shape = np.where(rng.random(chance.shape) < chance, far, usual)
    return np.asarray(rng.gamma(shape + observed, 1.0 / (shape / mean + expected)))


def worst_first(groups: pd.DataFrame) -> pd.DataFrame:
    """Groups in the order in which they are read: by verdict, then by excess."""
    rank = groups["verdict"].map(VERDICTS.index).to_numpy(int)
    order = np.lexsort((-groups["excess"].fillna(0.0).to_numpy(float), rank))
    return groups.iloc[order].reset_index(drop=True)


def log_chance(observed: Array, expected: Array, shape: Array | np.float64) -> Array:
    """Log of the chance of a count whose mean is Gamma with this shape around `expected`, but for what is the same."""
    e = np.maximum(expected, 1e-12)
    return np.asarray(
        gammaln(shape + observed)
        - gammaln(shape)
        + shape * np.log(shape / (shape + e))
        + observed * np.log(e / (shape + e))
    )


def _log_prior(spread: Array) -> Array:
    """Log of how likely each spread is before anything is seen."""
    # Spreads are evenly spaced on the log scale: their own size makes a density of it.
    return np.asarray(-np.log1p((spread / USUAL_SPREAD) ** 2) + np.log(spread))
