"""Carriers on their corridors: what they did with the parcels they were given, against what others would have done.

A corridor is a carrier's service into a region. For each there are the failures observed, those expected of others
with the same parcels, handed over as they were (`training.diagnosis.expected`), and their ratio, shrunk towards what
corridors usually are (`training.diagnosis.shrink`). Where nobody else goes, carrier and region cannot be told apart,
and nothing is said but how many parcels in other hands would tell.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array
from training.diagnosis.expected import Cases, kept, levels, others
from training.diagnosis.parcels import Parcels, week_number
from training.diagnosis.shrink import DRAWS, ratios, summary, worst_first
from training.models import cores
from training.pipeline import Matrices, cut

SURE = 0.95
"""Probability of that from which it is called worse, and that it is not from which it is called as expected."""

ALONE = 0.02
"""With less than this share of a region's parcels in other hands, a carrier is alone there."""

DATED = 6.0
"""A date is given if a step there explains the weeks better than none by this much log-likelihood."""

COLUMNS = (
    "target",
    "carrier",
    "service",
    "region",
    "parcels",
    "observed",
    "expected",
    "ratio",
    "low",
    "high",
    "chance_worse",
    "chance_worst",
    "excess",
    "verdict",
    "why",
    "others",
    "trial",
    "since",
)


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
) -> tuple[pd.DataFrame, Array]:
    """The corridors of one target.

    Args:
        found, words: from `cases`.
        seed: of the draws.
        confidence: of the intervals.
        say: told what is being done.

    Returns:
        A row per corridor, worst first, with `COLUMNS`: parcels, observed, expected (events), ratio with low and high,
        chance_worse (that the ratio is above `shrink.WORSE`), chance_worst (that it is the worst of all that can be
        told), excess (observed events beyond the expected, shrunk), verdict (worse, as expected, cannot tell), why,
        others (parcels of other carriers in the same service and region), trial (parcels that others would have to take
        to tell), since (the Monday from which it has been worse, NaT if that cannot be said). And (n,) the chance that
        others would have had with each parcel, NaN where nobody can say.
    """
    services, n = len(words["service"]), len(found)
    place = found.region * services + found.service
    places = len(words["region"]) * services
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    doubts: list[Array] = []
    weekly: list[tuple[Array, Array, Array]] = []
    expected = np.full(n, np.nan)
    total = np.bincount(place, minlength=places)
    for k, carrier in enumerate(words["carrier"]):
        own, rest = np.flatnonzero(found.carrier == k), np.flatnonzero(found.carrier != k)
        say(f"{found.target}: what others would have done with {len(own):,} parcels of {carrier}")
        chance, held = others(found, k, seed, cores())
        if np.isnan(held).any() or not len(rest):
            level, draws = np.ones(places), np.ones((DRAWS, places))
            known = False
        else:
            level, draws = levels(found.label[rest], held, place[rest], places, rng)
            known = True
        for p in np.unique(place[own]).tolist():
            mine = own[place[own] == p]
            theirs = int(total[p] - len(mine))
            e = chance[place[own] == p] * level[p]
            alone = not known or theirs < max(1.0, ALONE * total[p])
            if not alone:
                expected[mine] = e
            rows.append(
                {
                    "target": found.target,
                    "carrier": carrier,
                    "service": words["service"][p % services],
                    "region": words["region"][p // services],
                    "parcels": len(mine),
                    "observed": int(found.label[mine].sum()),
                    "expected": float(e.sum()) if known else np.nan,
                    "others": theirs,
                    "alone": alone,
                }
            )
            doubts.append(draws[:, p] / level[p])
            weekly.append((found.decided_at[mine], found.label[mine], e))
    out = pd.DataFrame(rows)
    if not len(out):
        return pd.DataFrame(columns=list(COLUMNS)), expected
    told = ~out["alone"].to_numpy(bool) & (out["expected"].to_numpy(float) > 0)
    for name in ("ratio", "low", "high", "chance_worse", "chance_worst", "excess"):
        out[name] = np.nan
    if told.any():
        o, e = out.loc[told, "observed"].to_numpy(float), out.loc[told, "expected"].to_numpy(float)
        family = pd.factorize(out.loc[told, "carrier"])[0]
        doubt = np.column_stack([d for d, t in zip(doubts, told, strict=True) if t])
        draws = ratios(o, e, rng, family, doubt)
        said = summary(draws, e, confidence)
        out.loc[told, list(said.columns)] = said.to_numpy()
        out.loc[told, "chance_worst"] = np.bincount(draws.argmax(axis=1), minlength=draws.shape[1]) / len(draws)
    out["verdict"], out["why"], out["trial"] = "cannot tell", "", 0
    out["since"] = pd.NaT
    for i, row in out.iterrows():
        at = int(str(i))
        verdict, why = _verdict(row, bool(told[at]))
        out.loc[at, ["verdict", "why"]] = [verdict, why]
        if verdict == "cannot tell":
            out.loc[at, "trial"] = trial(int(row["observed"]), int(row["parcels"]))
        if verdict == "worse":
            out.loc[at, "since"] = since(*weekly[at])
    out["since"] = pd.to_datetime(out["since"])
    assert out["parcels"].sum() == n
    return worst_first(out)[list(COLUMNS)], expected


def _verdict(row: pd.Series[Any], told: bool) -> tuple[str, str]:
    if not told:
        if row["others"] == 0:
            return (
                "cannot tell",
                f"one carrier only: {row['carrier']} alone goes there, carrier or region cannot be told",
            )
        return "cannot tell", f"{row['others']} parcels of others there: too few to tell the carrier from the region"
    if row["chance_worse"] >= SURE:
        return "worse", f"{row['ratio']:.2f} times what others would have had with the same parcels"
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
        chance: (n,) what others would have had.

    Returns:
        The most likely step of a Poisson rate, None where no step is `DATED` better than none.
    """
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
