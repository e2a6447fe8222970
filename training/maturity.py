"""What young units already tell: how labels come to be known, and the rate of a cohort that is too young to count.

Returns so far over deliveries so far is wrong for everything recent: most of what will come back is still on the sofa.
Units that are mature have shown how long such news takes. At so many days before their label could be judged, this
share of those that came back in the end had been reported, and of those that were delivered in the end this share had
been scanned at the door. Held against that, every young unit is an observation of its own label, however faint:

    if_true   P(what is known of it by now | its label will be true)
    if_false  P(what is known of it by now | its label will be false)

and the rate p of a cohort is the one that makes all of it likeliest, the sum of log(p if_true + (1 - p) if_false).
For returns, where nothing but the return itself tells anything, that is the mixture of Chapelle (2014, "Modeling
delayed feedback") with the delays of mature units instead of exponential ones; where every delivery is equally old it
is returns so far over (deliveries so far x the share of returns that is known by that age). A mature unit has
(1, 0) or (0, 1) and counts in full.

One assumption carries it: how long news takes has not changed since the mature units, given the label. How *often* it
comes may have changed as it likes; nothing is assumed about that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array
from features.outcomes import Outcome
from features.snapshot import Facts
from training.labels import Labels

FOUR_WEEKS = 28 * DAY

LEAST = 30
"""Mature units of either label from which delays are learned at least."""

SILENT = 0.9
"""An interval wider than this is no estimate, and no number is given."""


@dataclass(frozen=True)
class News:
    """What is known of units before a moment, those that are at risk: decided, and for `returned` delivered.

    Attributes:
        where: (n,) positions in the labels, in their order.
        mature: (n,) bool, the label can be judged.
        happened: (n,) bool, it is known to have happened: what counting so far would count.
        if_true, if_false: (n,) float64, chance that just this is known by now if the label is, or will be, true or
            false. (1, 0) or (0, 1) for mature units; (1, 1) where nothing can be told.
        recent: (n,) bool, decided in the last four weeks.
    """

    where: Array
    mature: Array
    happened: Array
    if_true: Array
    if_false: Array
    recent: Array

    @staticmethod
    def of(where: Array, label: Array) -> News:
        """That of mature units alone, none of them recent."""
        true, no = label.astype(np.float64), np.zeros(len(where), dtype=bool)
        return News(where, ~no, label == 1, true, 1 - true, no)

    def only(self, which: Array) -> News:
        """The news of some of the units."""
        return News(*(getattr(self, f.name)[which] for f in fields(self)))

    @property
    def young(self) -> int:
        """How many units cannot be judged yet."""
        return int(np.count_nonzero(~self.mature))

    def chance(self, p: Array | float) -> Array:
        """Chance that the label is true, given what is known and that it was p (n,) before that; (n,) float64."""
        true, false = p * self.if_true, (1 - p) * self.if_false
        return np.asarray(true / (true + false))

    def slopes(self, raw: Array) -> tuple[Array, Array]:
        """Gradient and curvature, each (n,), of -log(p if_true + (1 - p) if_false) by raw scores, p their logistic.

        The gradient is p less `chance(p)`: of a mature unit that of the log loss, of one that tells nothing 0. The
        curvature is kept above 0, which a faint hint against the score may lack.
        """
        p = 1 / (1 + np.exp(-np.clip(raw, -30, 30)))
        believed, curve = self.if_true.copy(), p * (1 - p)
        young = ~self.mature
        own = p[young]
        true, false = own * self.if_true[young], (1 - own) * self.if_false[young]
        chance = true / (true + false)
        believed[young] = chance
        curve[young] = np.maximum(curve[young] - chance * (1 - chance), 0.01 * curve[young])
        return p - believed, curve

    def worth(self, raw: Array) -> float:
        """What a young unit tells on average, as a share of what it will tell when it is mature: 0 to 1."""
        young = ~self.mature
        if not young.any():
            return 0.0
        p = 1 / (1 + np.exp(-np.clip(raw[young], -30, 30)))
        return float(self.slopes(raw)[1][young].sum() / (p * (1 - p)).sum())


@dataclass(frozen=True)
class MaturedRate:
    """The rate of a cohort, mature or not.

    Attributes:
        since, until: decisions of [since, until), by what was known before `until`.
        units: units at risk, see `News`.
        mature: how many of them can be judged.
        naive: known to have happened over units: too low for whatever takes time.
        rate: the estimate.
        low, high: its interval.
    """

    since: np.datetime64
    until: np.datetime64
    units: int
    mature: int
    naive: float
    rate: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in `metrics.json`."""
        return {
            "from": f"{self.since}Z",
            "to": f"{self.until}Z",
            "units": self.units,
            "mature": self.mature,
            "naive": self.naive,
            "corrected": self.rate,
            "low": self.low,
            "high": self.high,
        }


class TooYoung(ValueError):
    """A rate that nothing can be said of yet; the message says why."""


def news(facts: Facts, units: Labels, as_of: np.datetime64) -> News:
    """What is known before a moment of every unit that is at risk.

    With fewer than `LEAST` mature units of either label nobody knows how long news takes: then it is those alone.
    """
    return _Delays(facts, units, as_of).news()


def matured_rate(
    facts: Facts,
    units: Labels,
    as_of: np.datetime64,
    since: np.datetime64 | None = None,
    confidence: float = 0.95,
) -> MaturedRate:
    """Rate of what was decided in [since, as_of), however young.

    The interval is that of the likelihood ratio, widened for units of one order, which go together, and for what is
    uncertain about the delays themselves (a sandwich over orders, mature ones included). It is an interval for the
    expected rate of such a cohort, not for the count that this one will reach in the end.

    Args:
        facts: the dataset, joined.
        units: labels of one target.
        as_of: only what was known before is used.
        since: beginning of the cohort; default four weeks before `as_of`.
        confidence: of the interval.

    Raises:
        TooYoung: nothing was at risk in the cohort, fewer than `LEAST` units of either label are mature, or the
            interval holds nearly every rate there is.
    """
    since = as_of - FOUR_WEEKS if since is None else since
    delays = _Delays(facts, units, as_of)
    if delays.lack:
        raise TooYoung(delays.lack)
    every = delays.news()
    own = np.flatnonzero(units.decided_at[every.where] >= since)
    if not len(own):
        raise TooYoung(
            f"{units.target}: no {units.unit} decided from {_minute(since)} to {_minute(as_of)} was at risk: "
            "take a longer time"
        )
    true, false = every.if_true[own], every.if_false[own]
    rate = _likeliest(true, false)
    score, spread = _scores(true, false, rate), 1.0
    if 0 < rate < 1:
        # Variance of the sum of scores over orders, as a multiple of what independent units would have.
        group = pd.factorize(units.group)[0]
        total = np.bincount(group[every.where[own]], weights=score, minlength=group.max() + 1)
        total += np.bincount(
            group[delays.reference], weights=delays.influence(every.where[own], rate), minlength=group.max() + 1
        )
        spread = max(1.0, float((total**2).sum() / (score**2).sum()))
    low, high = _interval(true, false, rate, spread * NormalDist().inv_cdf((1 + confidence) / 2) ** 2)
    if high - low > SILENT:
        raise TooYoung(
            f"{units.target}: what is known by {_minute(as_of)} of {len(own):,} {units.unit}s decided from "
            f"{_minute(since)} on fits every rate from {low:.0%} to {high:.0%}: wait, or, if times of returns or scans "
            "stand in for others, give the true ones"
        )
    happened, mature = every.happened[own], every.mature[own]
    return MaturedRate(since, as_of, len(own), int(mature.sum()), float(happened.mean()), rate, low, high)


def _minute(moment: np.datetime64) -> str:
    return f"{np.datetime_as_string(moment, 'm')}Z"


class _Delays:
    """How news of a target's label came in for the units that are mature by now, day by day before they were.

    The clock is the time that is left until the label can be judged. It is known of every unit at risk, and where a
    label takes a fixed time it is the unit's age turned round.
    """

    def __init__(self, facts: Facts, units: Labels, as_of: np.datetime64) -> None:
        self.facts, self.units, self.as_of = facts, units, as_of
        label, mature = units.known(as_of)
        before = (units.decided_at < as_of) & ~(units.outcome.gone_at[units.row] < as_of)
        self.label, self.state = label, self._states(np.full(len(units), as_of))
        self.risk = before & (mature | (self.state >= 0)) & ~np.isnat(units.matures_at)
        self.mature = mature
        self.reference = np.flatnonzero(self.risk & mature)
        self.positive = label[self.reference] == 1
        few = min(self.positive.sum(), (~self.positive).sum())
        self.lack = ""
        if few < LEAST:
            self.lack = (
                f"{units.target}: {few} of {len(self.reference)} mature {units.unit}s have the rarer label; "
                f"{LEAST} are needed to learn how long it takes to know: wait, or give a longer history"
            )
            self.risk &= mature
        young = self.risk & ~mature
        left = (units.matures_at[young] - as_of) / DAY
        self.days = int(left.max(initial=0)) + 2
        every = [self._before(k) for k in range(self.days)]
        self.past = np.stack(every)
        """(days, r) state of each mature unit so many days before its label could be judged, -1 not at risk."""
        self.shares = np.stack([self._share(self.positive), self._share(~self.positive)])
        """(2, days, states): among units whose label came out true, and false, the share in each state."""
        risk = np.stack([(self.past[:, which] >= 0).sum(axis=1) for which in (self.positive, ~self.positive)])
        self.last = max(0, int((risk >= LEAST).all(axis=0).cumprod().sum()) - 1)
        """The most days before that enough units of both labels were at risk: who is younger is taken to be as old."""

    def _states(self, moment: Array) -> Array:
        """What is known of each unit before its moment, (n,): a code, or -1 where it was not at risk."""
        units, facts = self.units, self.facts
        own = _told(units.outcome, units.row, moment)
        gone = facts.outcomes["undelivered"]
        decided = units.decided_at < moment
        if units.unit == "line":
            arrived = _told(gone, facts.rows.line_parcel[units.row], moment) == 0
            return np.where(decided & arrived, own + 1, -1).astype(np.int8)
        there = _told(gone, units.row, moment) if units.target != "undelivered" else np.full(len(own), -1)
        return np.where(decided, own + 1 + 3 * (there + 1), -1).astype(np.int8)

    def _before(self, days: int) -> Array:
        moment = np.full(len(self.units), np.datetime64("NaT", "us"))
        moment[self.reference] = self.units.matures_at[self.reference] - days * DAY
        return self._states(moment)[self.reference]

    def _share(self, which: Array) -> Array:
        counts = np.stack([np.bincount(s[which & (s >= 0)], minlength=STATES) for s in self.past]).astype(np.float64)
        return counts / np.maximum(1.0, counts.sum(axis=1, keepdims=True))

    def _days(self, at: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """The two days between which young units are, each with its share of them."""
        left = np.minimum((self.units.matures_at[at] - self.as_of) / DAY, self.last)
        day = left.astype(np.int64)
        return (day, 1 - (left - day)), (np.minimum(day + 1, self.last), left - day)

    def _likelihoods(self, at: Array) -> Array:
        """Of what is known of young units, if their label is true and if it is false: (2, n)."""
        return np.asarray(sum(part * self.shares[:, day, self.state[at]] for day, part in self._days(at)))

    def news(self) -> News:
        at = np.flatnonzero(self.risk)
        mature = self.mature[at]
        true, false = (self.label[at] == 1).astype(np.float64), (self.label[at] == 0).astype(np.float64)
        young = np.flatnonzero(~mature)
        true[young], false[young] = self._likelihoods(at[young])
        unheard = young[(true[young] == 0) & (false[young] == 0)]  # no mature unit was ever like this: it tells nothing
        true[unheard] = false[unheard] = 1.0
        told = _told(self.units.outcome, self.units.row[at], np.full(len(at), self.as_of)) == 1
        happened, recent = (
            np.where(mature, self.label[at] == 1, told),
            self.units.decided_at[at] >= self.as_of - FOUR_WEEKS,
        )
        return News(at, mature, happened, true, false, recent)

    def influence(self, at: Array, rate: float) -> Array:
        """What each mature unit adds to the score of a cohort's rate by way of the delays, (r,) float64.

        The score moves with the shares as its derivatives say; a share moves with a unit as a mean does.
        """
        at = at[~self.mature[at]]
        true, false = self._likelihoods(at)
        heard = (true > 0) | (false > 0)
        at, true, false = at[heard], true[heard], false[heard]
        usual = rate * true + (1 - rate) * false
        weights = np.zeros((2, self.days, STATES))
        for day, part in self._days(at):
            np.add.at(weights[0], (day, self.state[at]), part * false / usual**2)
            np.add.at(weights[1], (day, self.state[at]), -part * true / usual**2)
        out = np.zeros(len(self.reference))
        for side, which in enumerate((self.positive, ~self.positive)):
            for k, states in enumerate(self.past):
                own = which & (states >= 0)
                count = np.count_nonzero(own)
                if count and weights[side, k].any():
                    out[own] += (weights[side, k][states[own]] - weights[side, k] @ self.shares[side, k]) / count
        return out


STATES = 9
"""Codes of `_Delays`: what the outcome's own facts say (nothing, false, true), and for parcels whether they arrived."""


def _told(outcome: Outcome, row: Array, moment: Array) -> Array:
    """What facts known before its moment (n,) say of a row of the outcome: (n,) 0 or 1, -1 where there is none."""
    until = np.full(len(outcome.matures_at) + 1, np.datetime64("NaT", "us"))
    until[row] = moment  # -1, a line whose parcel is not made yet, is the last place, of nobody
    heard = outcome.fact_at < until[outcome.fact_unit]
    told = np.full(len(until), -1, dtype=np.int8)
    told[outcome.fact_unit[heard]] = outcome.fact_value[heard]  # sorted by time: the last assignment stays
    return told[row]


def _scores(true: Array, false: Array, rate: float) -> Array:
    """Derivative of each unit's log-likelihood by the rate."""
    return np.asarray((true - false) / (rate * true + (1 - rate) * false))


def _log_likelihood(true: Array, false: Array, rate: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(rate * true + (1 - rate) * false).sum())


def _likeliest(true: Array, false: Array) -> float:
    """The rate of the highest likelihood, which is concave: bisection on its slope."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        up = _scores(true, false, middle).sum() > 0
        low, high = (middle, high) if up else (low, middle)
    rate = (low + high) / 2
    return 0.0 if rate < 1e-12 else 1.0 if rate > 1 - 1e-12 else rate


def _interval(true: Array, false: Array, rate: float, most: float) -> tuple[float, float]:
    """Rates whose log-likelihood is at most half of `most` below the highest."""
    best = _log_likelihood(true, false, rate)
    ends = []
    for end in (0.0, 1.0):
        inside, outside = rate, end
        for _ in range(60):
            middle = (inside + outside) / 2
            near = 2 * (best - _log_likelihood(true, false, middle)) <= most
            inside, outside = (middle, outside) if near else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]
