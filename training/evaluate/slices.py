"""Named parts of the units in which a model may be worse than it is on the whole: new products, peaks, regions ...

One definition, for everything that judges by slice (metrics, the gate of a promotion, windows, backtests). A slice is
read off the shop's own columns: one that needs a column the shop does not bring is not there. What "little known" and
"high" mean is settled by what was decided before the model went live, never by the rows it is judged on.

| slice | units |
|---|---|
| `new product` | with a product first listed, or first ordered, less than 30 days before the decision |
| `new lane` | on a carrier, service and region with fewer than 50 parcels before the model went live |
| `peak` | decided in a week with clearly more parcels than is usual around it |
| `value: low`, `middle`, `high` | thirds of the order's value |
| `region: X`, `other regions` | the regions with most parcels by name, and the rest together |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array, absent, local, take
from features.history import ENTITIES, key
from features.snapshot import Facts
from training.evaluate.intervals import auc, log_losses, mean

__all__ = ["LEAST_OF_A_KIND", "by_slice", "meaning", "slices"]

NEW_DAYS = 30
FEW = 50
"""Parcels on a lane below which it counts as new: with so many, its own history weighs as much as its parent's."""

PEAK = 1.3
"""A week is a peak from so many times the usual number of parcels on."""

AROUND = 91
"""Days before and after a week whose middle week is what is usual: half a year, so that growth is no peak."""

LEAST_DAYS = 56
"""A shop whose parcels span fewer days has no usual week yet."""

REGIONS = 8
"""Regions with a name of their own."""

TIERS = ("low", "middle", "high")

LEAST_OF_A_KIND = 20
"""Positives, and negatives, below which a slice's figures would be noise."""

_NEVER = np.datetime64("NaT", "us")


def slices(facts: Facts, unit: str, at: np.datetime64, row: Array | None = None) -> pd.DataFrame:
    """Which slices each unit is in.

    Args:
        facts: the joined dataset.
        unit: `parcel` or `line`.
        at: when the model went live (the start of its holdout), UTC.
        row: (n,) int64, rows of `facts.rows.parcels` or `.lines`; all of them by default.

    Returns:
        (n, slices) bool, a column per slice in the order of the table above. A unit may be in several slices, or, where
        what decides about it is missing, in none. A slice is there if the shop's columns can tell it, with however
        many units.
    """
    rows = facts.rows
    of_parcel = {**_lane(facts, at), **_peak(facts), **_value(facts, at), **_region(facts, at)}
    new = _new_product(facts)
    found: dict[str, Array] = {}
    if unit == "line":
        found.update(new)
        found.update((name, take(hit, rows.line_parcel, False)) for name, hit in of_parcel.items())
        n = rows.lines.n
    else:
        for name, hit in new.items():
            found[name] = np.zeros(rows.parcels.n, dtype=bool)
            found[name][rows.line_parcel[hit & (rows.line_parcel >= 0)]] = True
        found.update(of_parcel)
        n = rows.parcels.n
    frame = pd.DataFrame(found, index=pd.RangeIndex(n))
    return frame if row is None else frame.iloc[row].reset_index(drop=True)


def meaning(name: str) -> str:
    """A slice in a person's words.

    Raises:
        KeyError: no slice is called so.
    """
    kind, _, which = name.partition(": ")
    if kind == "region" and which:
        return f"destination region {which}"
    if kind == "value" and which in TIERS:
        return f"order value in the {which if which == 'middle' else which + 'est'} third"
    return {
        "other regions": "the other destination regions together",
        "new product": f"a product first listed or ordered less than {NEW_DAYS} days before the decision",
        "new lane": f"a carrier, service and region with fewer than {FEW} parcels before the model went live",
        "peak": f"a week with at least {PEAK:g} times the usual number of parcels",
    }[name]


def by_slice(
    inside: pd.DataFrame, label: Array, probability: Array, rivals: Mapping[str, Array], groups: Array
) -> dict[str, dict[str, Any]]:
    """Figures of a model in each slice, its rivals' log loss beside.

    Args:
        inside: (n, slices) bool, as `slices` gives it.
        label: (n,) 0 or 1.
        probability: (n,), the model's.
        rivals: (n,) probabilities by name.
        groups: (n,), rows that go together (the order of a line).

    Returns:
        Per slice `rows`, `positives`, and either `why` there are no figures, or `auc`, `log_loss`, `calibration_gap`
        (mean probability less share of positives) and `baselines`: `{name: {"log_loss"}}`. Every figure is
        `{"value", "low", "high"}` with its 95 % interval, in closed form (`training.evaluate.intervals`).
    """
    cluster = pd.factorize(groups)[0]
    losses = {name: log_losses(label, p) for name, p in rivals.items()}
    own = log_losses(label, probability)
    out: dict[str, dict[str, Any]] = {}
    for name in inside:
        hit = np.flatnonzero(inside[name].to_numpy())
        positives = int(label[hit].sum())
        found: dict[str, Any] = {"rows": len(hit), "positives": positives}
        out[str(name)] = found
        fewest = min(positives, len(hit) - positives)
        if fewest < LEAST_OF_A_KIND:
            kind = "positives" if fewest == positives else "negatives"
            found["why"] = f"{fewest} {kind} among {len(hit)} rows; at least {LEAST_OF_A_KIND} are needed for figures"
            continue
        found["auc"] = auc(label[hit], probability[hit], cluster[hit]).to_dict(0, 1)
        found["log_loss"] = mean(own[hit], cluster[hit]).to_dict(0)
        found["calibration_gap"] = mean((probability - label)[hit], cluster[hit]).to_dict()
        found["baselines"] = {n: {"log_loss": mean(loss[hit], cluster[hit]).to_dict(0)} for n, loss in losses.items()}
    return out


def _new_product(facts: Facts) -> dict[str, Array]:
    """Lines whose product was first seen, in the listings or in an order, less than `NEW_DAYS` before the decision."""
    lines, listings = facts.rows.lines, facts.tables.get("listings", {})
    sku, ordered = lines["order_lines", "sku"], lines["orders", "ordered_at"]
    listed = listings.get("known_at", np.full(len(listings.get("sku", ())), _NEVER))
    listed = np.where(np.isnat(listed), np.datetime64(0, "us"), listed)  # without a date, it has been there all along
    if absent(sku).all() or np.isnat(ordered).all():
        return {}
    code, products = pd.factorize(np.concatenate([sku, listings.get("sku", np.empty(0, dtype=object))]))
    mine, theirs = code[: len(sku)], code[len(sku) :]
    first_ordered = _earliest(mine, ordered, len(products))
    first_listed = _earliest(theirs, listed, len(products))
    first = np.fmin(first_ordered, first_listed)
    # What was sold before the extract begins is not in it: in its first days every product looks new.
    old_stock = (first == first_ordered) & (first < np.nanmin(ordered) + NEW_DAYS * DAY)
    first = np.where(old_stock, _NEVER, first)
    return {"new product": lines.decided_at - take(first, mine, _NEVER) < NEW_DAYS * DAY}


def _earliest(code: Array, time: Array, n: int) -> Array:
    """The earliest time of each code below n, (n,) datetime64[us]; NaT without one. A code of -1 is nobody's."""
    out = np.full(n, _NEVER)
    ok = (code >= 0) & ~np.isnat(time)
    np.fmin.at(out, code[ok], time[ok])
    return out


def _lane(facts: Facts, at: np.datetime64) -> dict[str, Array]:
    """Parcels on a lane, or where the shop names no regions a carrier's service, with little behind it at `at`."""
    parcels = facts.rows.parcels
    for entity in ("lane", "carrier_service"):
        code = key(ENTITIES[entity], parcels)
        if (code != 0).any():
            place = pd.factorize(code)[0]
            before = np.bincount(place[parcels.decided_at < at], minlength=len(place))
            return {"new lane": (code != 0) & (before[place] < FEW)}
    return {}


def _peak(facts: Facts) -> dict[str, Array]:
    """Parcels decided on a day whose seven days around hold clearly more parcels than is usual in that season."""
    parcels = facts.rows.parcels
    day = local(parcels.decided_at, facts.rows.zone).astype("datetime64[D]").astype(np.int64)
    known = ~np.isnat(parcels.decided_at)
    if not known.any():
        return {}
    start = day[known].min()
    per_day = np.bincount(day[known] - start)
    if len(per_day) < LEAST_DAYS:
        return {}
    weeks = np.convolve(per_day, np.ones(7, dtype=np.int64), mode="valid")
    # The week around a day; at either end of the extract, its first and last whole week.
    week = weeks[np.clip(np.arange(len(per_day)) - 3, 0, len(weeks) - 1)]
    usual = np.array([np.median(weeks[max(i - AROUND, 0) : i + AROUND + 1]) for i in range(len(per_day))])
    # In a shop of a few parcels a week, three standard deviations of chance are more than the share asked for.
    peak = (week >= PEAK * usual) & (week > usual + 3 * np.sqrt(usual))
    return {"peak": known & peak[np.where(known, day - start, 0)]}


def _value(facts: Facts, at: np.datetime64) -> dict[str, Array]:
    """Parcels by thirds of their orders' value among the orders decided before `at`."""
    parcels = facts.rows.parcels
    value = parcels["orders", "order_value"]
    before = value[(parcels.decided_at < at) & ~np.isnan(value) & facts.rows.first_of_order]
    if not len(before):
        return {}
    low, high = np.quantile(before, (1 / 3, 2 / 3))
    with np.errstate(invalid="ignore"):
        hits = (value <= low, (value > low) & (value <= high), value > high)
    return {f"value: {tier}": hit for tier, hit in zip(TIERS, hits, strict=True)}


def _region(facts: Facts, at: np.datetime64) -> dict[str, Array]:
    """Parcels by destination region: those with most parcels before `at` by name, the rest together."""
    parcels = facts.rows.parcels
    code, regions = pd.factorize(parcels["orders", "destination_region"], sort=True)
    counted = np.bincount(code[(parcels.decided_at < at) & (code >= 0)], minlength=len(regions))
    if not counted.any() or len(regions) < 2:
        return {}
    # One more than have a name would be "the others" alone: it gets its name instead.
    named = np.argsort(-counted, kind="stable")[: len(regions) if len(regions) <= REGIONS + 1 else REGIONS]
    named = named[counted[named] > 0]
    out = {f"region: {regions[i]}": code == i for i in named}
    if len(named) < len(regions):
        out["other regions"] = (code >= 0) & ~np.isin(code, named)
    return out
