"""Carriers on their corridors: what they did with the parcels they were given, against what others would have done.

A corridor is a carrier's service into a region. For each there are the failures observed, those expected of others
with the same parcels, handed over as they were (`training.diagnosis.expected`), and their ratio, shrunk towards what
corridors usually are (`training.diagnosis.shrink`). Where nobody else goes, carrier and region cannot be told apart,
and nothing is said but how many parcels in other hands would tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array
from serving.diagnosis import ratio_text
from training.diagnosis.expected import Cases, kept, levels, others
from training.diagnosis.parcels import Parcels, week_number
from training.diagnosis.shrink import Doubt, estimate, summary, worst_first
from training.models import cores
from training.pipeline import Matrices, cut

SURE = 0.95
"""Probability of that from which it is called worse, and that it is not from which it is called as expected."""

ALONE = 0.02
"""With less than this share of a region's parcels in other hands, a carrier is alone there."""

DATED = 6.0
"""A date is given if a step there explains the weeks better than none by this much log-likelihood."""

MODEL, PARCEL = {"late": 0.1, "damaged": 0.1}, {"late": 0.7, "damaged": 0.7}
"""Standard deviations of what is expected, besides what chance made of the others', of targets that the way decides as
much as the parcel: of a carrier's parcels in all and again of each of its services, as trees are about a tenth off for
parcels that are somewhat different ones, such as those that one carrier alone collects at noon; and of a single parcel,
so that a corridor of few is off by that over the root of their number, as its lane is not any lane."""

STEADY = 0.05
"""The first of these for all other targets, where the customer decides; the second is nothing there."""

ESTIMATED = ("ratio", "low", "high", "chance_worse", "chance_worst", "excess")


@dataclass(frozen=True)
class Corridors:
    """What was found of a target.

    Attributes:
        table: a row per corridor, worst first: target, carrier, service, region, parcels, observed, expected (events),
            ratio with low and high, chance_worse (that the ratio is above `shrink.WORSE`), chance_worst (that it is the
            largest of all that can be told), excess (observed events beyond the expected, shrunk), verdict (worse, as
            expected, cannot tell), why, others (parcels of other carriers in the same service and region), trial
            (parcels that others would have to take to tell), since (the Monday from which it has been worse, NaT if
            that cannot be said).
        carriers: a row per carrier and service, likewise, of all its corridors; its ratio is of those that can be told.
        expected: (n,) the chance that others would have had with each parcel, NaN where nobody can say.
        share: (draws,) share of all failures that corridors have beyond what others would have had; NaN if nobody says.
    """

    table: pd.DataFrame
    carriers: pd.DataFrame
    expected: Array
    share: Array


def cases(target: str, parcels: Parcels, failed: Array, matrices: Matrices) -> tuple[Cases, dict[str, Array], Array]:
    """The parcels of a target that can be judged and have a carrier.

    Args:
        target: name of the target.
        parcels: the parcels.
        failed: (n,) from `training.diagnosis.parcels.judged`.
        matrices: from `training.pipeline.matrices_of`.

    Returns:
        The cases, the words behind their codes, and (m,) which of the parcels they are.
    """
    at = np.flatnonzero(~np.isnan(failed) & (parcels.places["carrier"] != ""))
    words: dict[str, Array] = {}
    codes: dict[str, Array] = {}
    for name in ("carrier", "service", "region", "node", "payment"):
        codes[name], words[name] = pd.factorize(parcels.places[name][at].astype(str), sort=True)
    features = matrices["parcel"][0]
    chosen = features.only(kept(features))
    coded = ["region", "service", "node", "payment"]
    decided = parcels.decided_at[at]
    matrix = np.column_stack(
        [
            cut(matrices, chosen, parcels.row[at]),
            *(codes[c].astype(np.float32) for c in coded),
            week_number(decided).astype(np.float32),
        ]
    )
    found = Cases(
        target,
        failed[at].astype(np.int8),
        matrix,
        [*chosen.names, *coded, "week"],
        coded,
        codes["carrier"],
        codes["service"],
        codes["region"],
        decided,
        pd.factorize(parcels.order_id[at])[0],
    )
    return found, words, at


def corridors(
    found: Cases,
    words: dict[str, Array],
    *,
    seed: int = 0,
    confidence: float = 0.9,
    say: Callable[[str], Any] = lambda _: None,
) -> Corridors:
    """The corridors and carriers of one target.

    Args:
        found, words: from `cases`, one at least.
        seed: of the draws.
        confidence: of the intervals.
        say: told what is being done.
    """
    services, n = len(words["service"]), len(found)
    place = found.region * services + found.service
    places = len(words["region"]) * services
    rng, model = np.random.default_rng(seed), MODEL.get(found.target, STEADY)
    rows: list[dict[str, Any]] = []
    doubts: list[Array] = []
    mine: list[Array] = []
    total = np.bincount(place, minlength=places)
    expected = np.full(n, np.nan)
    for k, carrier in enumerate(words["carrier"]):
        own, rest = np.flatnonzero(found.carrier == k), np.flatnonzero(found.carrier != k)
        say(f"{found.target}: what others would have done with {len(own):,} parcels of {carrier}")
        chance, held = others(found, k, seed, cores())
        known = len(rest) > 0 and not np.isnan(held).any()
        level, draws = np.ones(places), np.ones((1, places))
        if known:
            level, draws = levels(found.label[rest], held, place[rest], places, rng)
            off = np.sqrt(model**2 + 1 / found.label[rest].sum())
            of_service = model * rng.normal(size=(len(draws), services))[:, np.arange(places) % services]
            draws = draws * np.exp(off * rng.normal(size=(len(draws), 1)) + of_service)
        order = own[np.argsort(place[own], kind="stable")]
        there, first = np.unique(place[order], return_index=True)
        for p, at in zip(there.tolist(), np.split(order, first[1:]), strict=True):
            theirs = int(total[p] - len(at))
            alone = not known or theirs < max(1.0, ALONE * total[p])
            if not alone:
                expected[at] = chance[np.searchsorted(own, at)] * level[p]
            rows.append(
                {
                    "target": found.target,
                    "carrier": carrier,
                    "service": words["service"][p % services],
                    "region": words["region"][p // services],
                    "parcels": len(at),
                    "observed": int(found.label[at].sum()),
                    "expected": float(expected[at].sum()),
                    "others": theirs,
                }
            )
            doubts.append(draws[:, p] / level[p])
            mine.append(at)
    out = pd.DataFrame(rows)
    told = np.flatnonzero(out["expected"].to_numpy(float) > 0)
    by = out.groupby(["carrier", "service"], sort=True)
    carriers = by[["parcels", "observed", "others"]].sum().reset_index()
    carriers.insert(0, "target", found.target)
    into = by.ngroup().to_numpy()
    carriers["expected"] = np.bincount(into[told], out["expected"].to_numpy(float)[told], len(carriers))
    share = np.full(1, np.nan)
    for name in ESTIMATED:
        out[name] = carriers[name] = np.nan
    if len(told):
        o, e = out["observed"].to_numpy(float)[told], out["expected"].to_numpy(float)[told]
        alone_off = PARCEL.get(found.target, 0.0) / np.sqrt(out["parcels"].to_numpy(float)[told])
        doubt = Doubt(np.column_stack([doubts[t] for t in told]), np.arange(len(told)), alone_off)
        family = pd.factorize(out["carrier"].to_numpy()[told])[0]
        said = estimate(
            o,
            e,
            rng,
            family=family,
            kind=np.arange(family.max() + 1),
            doubt=doubt,
            sums=into[told],
            confidence=confidence,
        )
        out.loc[told, list(ESTIMATED)] = said.table[list(ESTIMATED)].to_numpy()
        share = said.beyond / max(found.label.sum(), 1)
        due = carriers["expected"].to_numpy(float)
        some = np.flatnonzero(due > 0)
        whole = summary(said.sums[:, some] / due[some], due[some], confidence)
        carriers.loc[some, list(ESTIMATED)] = whole[list(ESTIMATED)].to_numpy()
    for table in (out, carriers):
        said_of = [_verdict(row) for _, row in table.iterrows()]
        table["verdict"], table["why"] = [v for v, _ in said_of], [w for _, w in said_of]
        needed = [trial(o, n) for o, n in zip(table["observed"], table["parcels"], strict=True)]
        table["trial"] = np.where(table["verdict"] == "cannot tell", needed, 0)
    for table, groups in (
        (out, mine),
        (carriers, [np.concatenate([mine[i] for i in np.flatnonzero(into == k)]) for k in range(len(carriers))]),
    ):
        table["since"] = pd.NaT
        table["since"] = table["since"].astype("datetime64[us]")
        for i in np.flatnonzero(table["verdict"] == "worse").tolist():
            at = groups[i]
            table.loc[i, "since"] = since(found.decided_at[at], found.label[at], expected[at])
    return Corridors(worst_first(out), worst_first(carriers), expected, share)


def _verdict(row: pd.Series[Any]) -> tuple[str, str]:
    if np.isnan(row["ratio"]):
        if row["others"] == 0:
            return (
                "cannot tell",
                f"one carrier only: {row['carrier']} alone goes there, carrier or region cannot be told",
            )
        return "cannot tell", f"{row['others']} parcels of others there: too few to tell the carrier from the region"
    if row["chance_worse"] >= SURE:
        ratio = ratio_text(row["ratio"])
        return "worse", f"{ratio} times what others would have had with the same parcels"
    if row["chance_worse"] <= 1 - SURE:
        return "as expected", "not a quarter more than others would have had"
    return "cannot tell", "too few failures yet to tell chance from the carrier"


def trial(observed: int, parcels: int, ratio: float = 1.5, sure: float = 0.9, power: float = 0.8) -> int:
    """How many parcels others would have to take to tell whether they do better, 0 where the rate is not known.

    The smallest number for which a true ratio is told from 1 by two Poisson counts, the carrier going on as it was with
    as many: on the log scale the variance of their ratio is the sum of 1 / failures of each.

    Args:
        observed, parcels: failures and parcels of the carrier so far.
        ratio: the difference worth telling.
        sure, power: confidence of the two-sided test, and its chance to find the difference.
    """
    rate = (observed + 0.5) / (parcels + 1)
    needed = ((NormalDist().inv_cdf((1 + sure) / 2) + NormalDist().inv_cdf(power)) / np.log(ratio)) ** 2
    return int(np.ceil(needed * (1 + ratio) / rate)) if parcels else 0


def since(decided: Array, label: Array, chance: Array) -> pd.Timestamp | None:
    """The Monday from which failures were a multiple of what was expected, if one step explains them.

    Args:
        decided: (n,) datetime64[us].
        label: (n,) of the corridor's parcels.
        chance: (n,) what others would have had, NaN where nobody can say.

    Returns:
        The most likely step of a Poisson rate, None where no step is `DATED` better than none.
    """
    known = ~np.isnan(chance)
    decided, label, chance = decided[known], label[known], chance[known]
    week = week_number(decided - 4 * DAY)  # weeks of the epoch begin on Thursdays
    number, place = np.unique(week, return_inverse=True)
    o, e = np.bincount(place, weights=label), np.bincount(place, weights=chance)

    def best(o: Array, e: Array) -> Array:
        return np.asarray(o * np.log(np.maximum(o, 1e-300) / np.maximum(e, 1e-300)) - o)

    left = best(np.cumsum(o)[:-1], np.cumsum(e)[:-1])
    right = best(np.cumsum(o[::-1])[::-1][1:], np.cumsum(e[::-1])[::-1][1:])
    if not len(left):
        return None
    gain = left + right - best(o.sum()[None], e.sum()[None])[0]
    step = int(np.argmax(gain))
    rises = np.cumsum(o[::-1])[::-1][step + 1] / e[step + 1 :].sum() > np.cumsum(o)[step] / np.cumsum(e)[step]
    if gain[step] < DATED or not rises:
        return None
    return pd.Timestamp(np.datetime64("1970-01-05", "D") + int(number[step + 1]) * 7)
