"""Intervals of a randomized trial that may be looked at every day: asymptotic confidence sequences, and a test of arms.

An interval of 95 % is meant to be looked at once. Looked at daily until it excludes zero, it does so by chance alone in
a third to three quarters of all trials in which nothing happens. A confidence sequence holds at all looks together:
the chance that it *ever* misses the truth is at most its level, so one may look, stop and go on at will.

The boundary is Robbins' normal mixture with an estimated variance, shown to hold for means of any distribution with a
finite variance as trials grow by Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", Annals of Statistics 52 (2024), arXiv 2103.06476, theorem 2.2. Each arm's mean is
weighted by the inverse of its logged chances, so that the share withheld may change while the trial runs. Only the lot
needs to be random: parcels of one customer may go together as they like, and rates may drift, as long as each parcel
has a lot of its own. What a parcel must not have is a moment of being judged that its arm can move, or the arms would
differ in who is judged yet (Lindon and Kallus, arXiv 2603.25971).

"As trials grow" is not for nothing: with three events in an arm every normal approximation is off. Hence two guards,
chosen by simulation (`benchmarks/effect.py`): nothing is said before the smaller arm can expect `LEAST_EVENTS` events
and as many parcels without one, and the variance is never taken to be less than that of arms that are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from features.arrays import Array

__all__ = ["LEAST_EVENTS", "Path", "difference", "half_width", "mismatch", "needed", "odds_ratio"]

BEST_AT = 10_000
"""Parcels at which a sequence is narrowest. A constant: chosen after a look at the data, it would hold no more. With a
tenth of them the interval is a quarter wider than the best for that number, with ten times as many 7 %."""

LEAST_EVENTS = 20
"""Events, and parcels without one, that the smaller arm has to expect before anything is said."""

LEAST_PARCELS = 100
"""Parcels that the smaller arm has to expect before anything is said of an outcome that is no event, such as a cost."""

TILTS = np.concatenate([-(2.0 ** np.arange(1, -7, -1)), 2.0 ** np.arange(-6, 2)])
"""Shifts of the log-odds of the arms that `mismatch` looks for, from a few per thousand parcels to nearly all."""


@dataclass(frozen=True)
class Path:
    """A figure and its interval at each look.

    Attributes:
        look: (k,) int64, the looks at which units came in, as they were given.
        units: (k,) int64, units judged by then.
        value: (k,) float64, NaN where there is no figure yet.
        low, high: (k,) float64, all there can be (of odds: 0 to infinity) before there is enough to say anything.
    """

    look: Array
    units: Array
    value: Array
    low: Array
    high: Array

    def excludes(self, nothing: float = 0.0) -> Array:
        """(k,) int8: 1 where the whole interval is above what is given, -1 below, else 0."""
        return (self.low > nothing).astype(np.int8) - (self.high < nothing).astype(np.int8)


def half_width(units: Array, variance: Array, level: float) -> Array:
    """Half the width of the confidence sequence of a mean.

    Args:
        units: (k,) number of values so far.
        variance: (k,) their variance so far.
        level: chance that the sequence ever misses, both sides together.

    Returns:
        (k,) float64, in the unit of the values.
    """
    n = np.asarray(units, dtype=np.float64)
    grown = 1 + n * _intrinsic(level)
    return np.asarray(np.sqrt(variance / n * grown / (grown - 1) * (2 * np.log(1 / level) + np.log(grown))))


def _intrinsic(level: float) -> float:
    """The mixture's variance, rho squared, that is best at `BEST_AT`: the paper's equation after theorem 2.2."""
    from scipy.special import lambertw

    return float(-lambertw(-(level**2) / np.e, -1).real - 1) / BEST_AT


def difference(outcome: Array, treated: Array, propensity: Array, look: Array, level: float) -> Path:
    """Mean outcome with the action less that without, among all who could have had it, at every look.

    Args:
        outcome: (n,) float64; 0 and 1 for what happened or not, or any amount.
        treated: (n,) bool, drawn for the action, whatever was done then.
        propensity: (n,) float64 in (0, 1), the chance of that.
        look: (n,) int64, the look at which each is judged for the first time; nothing done to it may have moved that.
        level: chance that the sequence ever misses.
    """
    a = _Looks.of(outcome, treated, propensity, look)
    if not len(a.at):
        return a.path(np.empty(0), np.empty(0), level)
    (act, own_act), (control, own_control) = a.arms()
    alike = a.spread() * a.lots()
    return a.path(act - control, np.maximum(own_act + own_control, alike), level)


def odds_ratio(outcome: Array, treated: Array, propensity: Array, look: Array, level: float) -> Path:
    """The odds of an event with the action over those without, at every look.

    As `difference`, for outcomes of 0 and 1 only. The logarithm is, up to what vanishes, a mean (the delta method), so
    its sequence holds as theirs; the interval is its exponential.
    """
    a = _Looks.of(outcome, treated, propensity, look)
    if not len(a.at):
        return a.path(np.empty(0), np.empty(0), level)
    with np.errstate(divide="ignore", invalid="ignore"):
        (act, own_act), (control, own_control) = a.arms()
        logit = np.log(act / (1 - act)) - np.log(control / (1 - control))
        own = own_act / (act * (1 - act)) ** 2 + own_control / (control * (1 - control)) ** 2
        path = a.path(logit, np.maximum(own, a.lots() / a.spread()), level)
        return Path(path.look, path.units, np.exp(path.value), np.exp(path.low), np.exp(path.high))


@dataclass(frozen=True)
class _Looks:
    """Units in the order in which they were judged, and the sums at the end of each look."""

    outcome: Array
    treated: Array
    propensity: Array
    at: Array  # (k,) the looks
    ends: Array  # (k,) the last unit of each
    units: Array  # (k,) how many by then

    @staticmethod
    def of(outcome: Array, treated: Array, propensity: Array, look: Array) -> _Looks:
        y, p = np.asarray(outcome, dtype=np.float64), np.asarray(propensity, dtype=np.float64)
        d, when = np.asarray(treated, dtype=bool), np.asarray(look, dtype=np.int64)
        if not len(y) == len(d) == len(p) == len(when):
            raise ValueError(
                f"{len(y)} outcomes, {len(d)} arms, {len(p)} propensities, {len(when)} looks: give as many"
            )
        if not ((p > 0) & (p < 1)).all():
            odd = p[~((p > 0) & (p < 1))][0]
            raise ValueError(
                f"a propensity of {odd}: only what was drawn by lot has one between 0 and 1, both excluded"
            )
        if not np.isfinite(y).all():
            raise ValueError("an outcome is missing: leave out who cannot be judged yet")
        order = np.argsort(when, kind="stable")
        at, first = np.unique(when[order], return_index=True)
        ends = np.append(first[1:], len(y)) - 1 if len(y) else np.empty(0, dtype=np.int64)
        return _Looks(y[order], d[order], p[order], at, ends, ends + 1)

    def so_far(self, values: Array) -> Array:
        """Sums of (n,) values up to the end of each look, (k,)."""
        return np.asarray(np.cumsum(values)[self.ends])

    def arms(self) -> Iterator[tuple[Array, Array]]:
        """Of the action, then of the control: the weighted mean so far, (k,), and what it adds to the variance, (k,).

        The weights are those of inverse probability, divided by their sum (Hájek's estimate).
        """
        for arm, chance in ((self.treated, self.propensity), (~self.treated, 1 - self.propensity)):
            weight = np.where(arm, 1 / chance, 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                mean = self.so_far(weight * self.outcome) / self.so_far(weight)
            squares = [self.so_far(weight**2 * self.outcome**power) for power in range(3)]
            yield mean, (squares[2] - 2 * mean * squares[1] + mean**2 * squares[0]) / self.units

    def lots(self) -> Array:
        """What lots alone make of a variance of 1, (k,)."""
        return np.asarray(self.so_far(1 / (self.propensity * (1 - self.propensity))) / self.units)

    def spread(self) -> Array:
        """Variance of the outcome without regard to arms, at each look, (k,)."""
        mean = self.so_far(self.outcome) / self.units
        return np.asarray(np.maximum(self.so_far(self.outcome**2) / self.units - mean**2, 0.0))

    def enough(self) -> Array:
        """Whether a look may be spoken of, (k,) bool."""
        smaller = self.so_far(np.minimum(self.propensity, 1 - self.propensity)) / self.units
        if np.isin(self.outcome, (0.0, 1.0)).all():
            events = self.so_far(self.outcome)
            return np.asarray(np.minimum(events, self.units - events) * smaller >= LEAST_EVENTS)
        return np.asarray(self.units * smaller >= LEAST_PARCELS)

    def path(self, value: Array, variance: Array, level: float) -> Path:
        enough = self.enough() & np.isfinite(value) & np.isfinite(variance)
        half = np.full(len(self.at), np.inf)
        half[enough] = half_width(self.units[enough], variance[enough], level)
        low = np.where(enough, value - half, -np.inf)
        return Path(self.at, self.units, value, low, np.where(enough, value + half, np.inf))


def mismatch(treated: Array, propensity: Array) -> Array:
    """Evidence, after each unit, that the arms are not what the logged chances say: a sample ratio mismatch.

    A mixture of likelihood ratios against arms whose log-odds are shifted: if the chances are right it is a martingale
    that starts at 1, so that it ever reaches 1 / level has a chance of at most the level (Ville 1939; the idea for
    arms: Lindon and Malek 2022, arXiv 2011.03567). Exact for any number of units, and chances may differ between them.

    Args:
        treated: (n,) bool, in the order in which they were drawn.
        propensity: (n,) float64 in (0, 1).

    Returns:
        (n,) float64, the evidence so far: 1 is none, 1,000 would come about by chance once in 1,000 trials.
    """
    d, p = np.asarray(treated, dtype=np.float64)[:, None], np.asarray(propensity, dtype=np.float64)[:, None]
    logs = np.cumsum(d * TILTS - np.log1p(p * np.expm1(TILTS)), axis=0)
    top = logs.max(axis=1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(top[:, 0]) * np.exp(logs - top).mean(axis=1))


def needed(rate: float, less: float, propensity: float, level: float, power: float = 0.8) -> int:
    """Parcels until a sequence has excluded zero with a chance of at least `power`.

    Args:
        rate: how often the event comes about without the action, in (0, 1).
        less: by how much less with it, in (0, rate].
        propensity: chance of the action.
        level: of the sequence.
        power: chance wanted. That of being there at this very number; to have stopped before has more.
    """
    from statistics import NormalDist

    with_it = rate - less
    variance = with_it * (1 - with_it) / propensity + rate * (1 - rate) / (1 - propensity)
    beyond = NormalDist().inv_cdf(power)

    def seen(n: float) -> bool:
        half = float(half_width(np.array([n]), np.array([variance]), level)[0])
        return half + beyond * float(np.sqrt(variance / n)) <= less

    return int(np.ceil(_first(seen)))


def _first(seen: Callable[[float], bool]) -> float:
    """The least number from which on something is seen, to a hundredth of it."""
    high = 1.0
    while not seen(high):
        high *= 2
    low = high / 2
    while high / low > 1.01:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high
