"""A simulated shop in numbers: what its tables show, beside what is true. All that `training.world.picture` draws.

Every figure is an aggregate. `seen` is counted in the tables, as any shop could, over units old enough to be judged;
`true` is the mean of the true probabilities of the same units; "had" asks the oracle what would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from features import Dataset
from features.snapshot import Facts
from features.vocabulary import TARGETS, TEAMS
from training.labels import labels
from training.world.faults import meeting
from training.world.oracle import PARCEL_TARGETS, Oracle
from training.world.scenario import PACKAGE_TYPES, RETURN_REASONS, Fault
from training.world.shop import Floats

RANGES: dict[str, tuple[float, float]] = {
    "late": (0.05, 0.12),
    "failed_attempt": (0.04, 0.08),
    "damaged": (0.01, 0.03),
    "undelivered": (0.01, 0.02),
    "returned": (0.05, 0.35),
}
"""Where the rates of a shop should lie, those of returns by category. Targets of the design, no citations."""

SHARED_OUT = 600
"""Units whose probability is shared out among the teams: enough for a mean to a tenth of a point."""

_DIGITS = 6
_WEEK, _DAY = pd.Timedelta(days=7), pd.Timedelta(days=1)

Numbers = dict[str, Any]
"""Plain data, as JSON has it."""


@dataclass(frozen=True)
class _View:
    """A world as the figures need it.

    Attributes:
        units: per target a row per unit, by its id: `true`, `seen` (0 or 1), `mature`, `decided` (shop's clock).
        parcels: the parcels with their order and `handed_over`, `delivered` (UTC) and `fragility` (NaN where the
            listings do not say), by id.
    """

    dataset: Dataset
    oracle: Oracle
    units: Mapping[str, pd.DataFrame]
    parcels: pd.DataFrame
    lines: pd.DataFrame
    progress: Callable[[str], None]


def measure(dataset: Dataset, oracle: Oracle, progress: Callable[[str], None] = lambda _: None) -> Numbers:
    """All figures of a world.

    Args:
        dataset: its tables.
        oracle: its truth.
        progress: told what is being done.
    """
    progress("joining tables and truth")
    view = _view(dataset, oracle, progress)
    s = oracle.shop.scenario
    parts = (rates, returns, year, packaging, carriers, reasons, delays, faults, teams)
    made = {"parcels": oracle.size, "seed": oracle.shop.seed, "scenario": s.name, "words": s.words}
    return {"made": made, "first": first(oracle)} | {part.__name__: _plain(part(view)) for part in parts}


def first(oracle: Oracle) -> Numbers:
    """The mean true probabilities of the first parcels, which tell one world from another in a second."""
    small = Oracle(min(oracle.size, 1_000), oracle.shop.seed, oracle.shop.scenario)
    found: Numbers = _plain({t: small.parcels()[t].mean() for t in PARCEL_TARGETS})
    return found | _plain({"returned": small.lines()["returned"].mean()})


def rates(view: _View) -> Numbers:
    """The base rate of every target, and how well who knows the truth could rank."""
    reachable = view.oracle.reachable()
    return {t: _rate(own) | {"range": RANGES[t], "reachable_auc": reachable.auc[t]} for t, own in view.units.items()}


def returns(view: _View) -> Numbers:
    """Returns by category, in all and by true reason; the most returned first."""
    lines, units = view.lines, view.units["returned"]
    by_reason = view.oracle.lines().set_index("line_id")[list(RETURN_REASONS)]
    out = {}
    for category, own in lines.groupby("category"):
        rows = units.loc[own.index]
        judged = rows.index[rows.mature]
        out[str(category)] = _rate(rows) | {"reasons": by_reason.loc[judged].mean().to_dict()}
    return dict(sorted(out.items(), key=lambda item: -item[1]["true"]))


def year(view: _View) -> Numbers:
    """Week by week: parcels, queues at the warehouses, missed pickups, lateness; and what the calendar says."""
    shop, parcels, late = view.oracle.shop, view.parcels, view.units["late"]
    calendar, clock = shop.scenario.calendar, shop.clock
    packed = parcels.packed_at.dt.tz_convert(calendar.timezone).dt.tz_localize(None)
    week = packed.dt.normalize() - pd.to_timedelta(packed.dt.day_of_week, unit="D")
    opening, closing = pd.Timestamp(calendar.first_day), pd.Timestamp(calendar.extracted_on)
    whole = [w for w in sorted(set(week)) if w >= opening and w + _WEEK <= closing]
    working = clock.day_of_working[clock.day_of_working < clock.days]
    days = opening + pd.to_timedelta(working, unit="D")
    monday = days - pd.to_timedelta(days.day_of_week, unit="D")
    queue = pd.DataFrame(
        shop.nodes.backlog[:, : len(working)].T, columns=[n.name for n in shop.scenario.nodes.nodes]
    ).groupby(monday)
    handed = parcels.handed_over.notna()
    missed = (parcels.handed_over > parcels.pickup_cutoff_at)[handed].groupby(week[handed]).mean()
    judged = late[late.mature]
    lateness = judged.groupby(week[judged.index])[["true", "seen"]].mean()
    return {
        "weeks": [str(w.date()) for w in whole],
        "parcels": week.value_counts().reindex(whole, fill_value=0),
        "queue_days": {name: column.reindex(whole) for name, column in queue.mean().items()},
        "missed_pickup": missed.reindex(whole),
        "late_true": lateness.true.reindex(whole),
        "late_seen": lateness.seen.reindex(whole),
        "peaks": [{"from": str(a), "to": str(b), "times": x} for a, b, x in calendar.peaks],
        "holidays": [str(day) for day in calendar.holidays],
        "faults": {f.name: str(f.since) for f in shop.scenario.faults},
    }


def packaging(view: _View) -> Numbers:
    """Damage by package: of the parcels that were packed in it, and of all parcels had each been packed in it."""
    damaged, packages = view.units["damaged"], view.oracle.packages().set_index("parcel_id")
    judged = damaged.index[damaged.mature]
    had = packages.loc[judged, list(PACKAGE_TYPES)].mean()
    level = packages[list(PACKAGE_TYPES)].to_numpy(dtype=np.float64)
    used = packages.package.map({name: k for k, name in enumerate(PACKAGE_TYPES)}).to_numpy()
    stronger = level[np.arange(len(level)), np.minimum(used + 1, len(PACKAGE_TYPES) - 1)]
    by_fragility = {}
    for fragility, own in view.parcels.fragility.dropna().groupby(view.parcels.fragility):
        share = packages.package[own.index].value_counts(normalize=True).reindex(PACKAGE_TYPES, fill_value=0.0)
        by_fragility[f"{fragility:.0f}"] = {
            "parcels": len(own),
            "share": share.to_dict(),
            "had": packages.loc[own.index, list(PACKAGE_TYPES)].mean().to_dict(),
        }
    return {
        "packages": {
            name: _rate(damaged.loc[packages.index[packages.package == name]]) | {"had": had[name]}
            for name in PACKAGE_TYPES
        },
        "by_fragility": by_fragility,
        "one_stronger": stronger[damaged.mature].mean(),
    }


def carriers(view: _View) -> Numbers:
    """Three outcomes by carrier, of the parcels each took; and over the parcels that any of them could have taken: of
    those each took of them (`took`), and of all of them had each taken them (`had`)."""
    out: Numbers = {}
    for target in ("late", "failed_attempt", "damaged"):
        units, had = view.units[target], view.oracle.carriers(target).set_index("parcel_id")
        names = [c.name for c in view.oracle.shop.scenario.carriers.carriers]
        anybody = had.index[had[names].notna().all(axis=1)]
        anybody = anybody[units.mature[anybody]]
        means = had.loc[anybody, names].mean()
        by_carrier = {}
        for name in names:
            his = had.index[had.carrier == name]
            took = units.true[his.intersection(anybody)].mean()
            by_carrier[name] = _rate(units.loc[his]) | {"took": took, "had": means[name]}
        out[target] = {"anybody": len(anybody), "carriers": by_carrier}
    return out


def reasons(view: _View) -> Numbers:
    """What customers state, by the true reason: shares of each row; `nothing` where they state none."""
    known = view.dataset.tables["returns"]
    true = view.oracle.returns().set_index("line_id").true_reason
    stated = known.reason.fillna("nothing")
    table = pd.crosstab(known.line_id.map(true), stated).reindex(
        index=list(RETURN_REASONS), columns=[*RETURN_REASONS, "nothing"], fill_value=0
    )
    told = known.dropna(subset=["inspected_reason"])
    return {
        "returns": {reason: int(row.sum()) for reason, row in table.iterrows()},
        "stated": {reason: (row / max(row.sum(), 1)).to_dict() for reason, row in table.iterrows()},
        "stated_truly": (stated == known.line_id.map(true)).mean(),
        "inspected": len(told) / max(len(known), 1),
        "inspected_truly": (told.inspected_reason == told.line_id.map(true)).mean(),
    }


def delays(view: _View) -> Numbers:
    """Days from the delivery to the request, by true reason; of deliveries whose returns have had the time to come."""
    known, calendar = view.dataset.tables["returns"], view.oracle.shop.scenario.calendar
    window = view.oracle.shop.scenario.return_window_days
    longest = window + view.oracle.shop.scenario.outcomes.tail_days
    parcel = view.lines.parcel_id.reindex(known.line_id).to_numpy()
    delivered = view.parcels.delivered.reindex(parcel).reset_index(drop=True)
    days = (known.requested_at.reset_index(drop=True) - delivered).dt.total_seconds() / 86_400
    true = known.line_id.map(view.oracle.returns().set_index("line_id").true_reason).reset_index(drop=True)
    # Among younger deliveries only the quick returns are known.
    end = pd.Timestamp(calendar.extracted_on) - (longest + 5) * _DAY
    old = delivered.dt.tz_convert(calendar.timezone).dt.tz_localize(None) < end
    days, true = days[old], true[old]
    by_reason = {}
    for reason in RETURN_REASONS:
        own = days[true == reason]
        if len(own):
            quantiles = own.quantile([0.1, 0.25, 0.5, 0.75, 0.9])
            by_reason[reason] = {"returns": len(own), "quantiles": list(quantiles), "after": (own > window).mean()}
    counts, _ = np.histogram(days, bins=np.arange(0, int(np.ceil(longest)) + 1))
    return {"window": window, "by_reason": by_reason, "by_day": counts.tolist(), "after": (days > window).mean()}


def faults(view: _View) -> Numbers:
    """Each planted fault: where it holds and elsewhere, before and after it began, and after had it never begun."""
    return {fault.name: _fault(view, fault) for fault in view.oracle.shop.scenario.faults}


def _fault(view: _View, fault: Fault) -> Numbers:
    view.progress(f"what would have been without {fault.name}")
    oracle, target = view.oracle, fault.targets[0]
    calendar = oracle.shop.scenario.calendar
    # Told that it began with the shop, `meeting` finds the place over the whole year.
    place = meeting(replace(fault, since=calendar.first_day), view.dataset.tables, calendar.timezone)
    units = view.units[target].copy()
    others = replace(oracle.shop.scenario, faults=tuple(f for f in oracle.shop.scenario.faults if f.name != fault.name))
    sound = Oracle(oracle.size, oracle.shop.seed, others)
    units["had"] = _truth(sound, target)
    units["here"] = units.index.isin(place)
    # What is sold is met when it is ordered, what is packed when it is packed.
    ordered = view.parcels.ordered_at.dt.tz_convert(calendar.timezone)
    by_order = ordered[view.lines.parcel_id].to_numpy() if TARGETS[target].unit == "line" else ordered.to_numpy()
    met = pd.DatetimeIndex(by_order).tz_convert(calendar.timezone) if fault.team == "listing" else None
    when = units.decided.dt.tz_localize(None) if met is None else pd.Series(met.tz_localize(None), index=units.index)
    units["after"] = when >= pd.Timestamp(fault.since)
    units["month"] = when.dt.strftime("%Y-%m")
    judged = units[units.mature]
    months = sorted(set(judged.month))
    by_month = (
        judged.groupby(["here", "month"])[["true", "had"]]
        .mean()
        .reindex(pd.MultiIndex.from_product([[False, True], months]))
    )
    return {
        "words": fault.words,
        "team": fault.team,
        "kind": fault.kind,
        "where": dict(fault.where),
        "since": str(fault.since),
        "target": target,
        "unit": TARGETS[target].unit,
        "here": {side: _rate(own) | {"had": own.had.mean()} for side, own in _sides(judged[judged.here])},
        "elsewhere": {side: _rate(own) for side, own in _sides(judged[~judged.here])},
        "months": months,
        "by_month": {
            "here": by_month.loc[True].true,
            "had": by_month.loc[True].had,
            "elsewhere": by_month.loc[False].true,
        },
    }


def teams(view: _View) -> Numbers:
    """How many points of the true risk are whose: means of the Shapley values' sizes over some units per target."""
    out = {}
    for target in TARGETS:
        ids = view.units[target].index
        some = np.random.default_rng(0).choice(len(ids), min(SHARED_OUT, len(ids)), replace=False)
        view.progress(f"sharing out {target} among the teams")
        out[target] = view.oracle.teams(target, list(ids[np.sort(some)]), references=8)[list(TEAMS)].abs().mean()
    return {team: {target: out[target][team] for target in TARGETS} for team in TEAMS}


def interval(positives: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which holds for small counts too; (0, 1) without rows."""
    if not rows:
        return 0.0, 1.0
    z, share = 1.96, positives / rows
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows)) / (1 + z * z / rows)
    return float(max(middle - half, 0.0)), float(min(middle + half, 1.0))


def _sides(units: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [("before", units[~units.after]), ("after", units[units.after])]


def _rate(units: pd.DataFrame) -> Numbers:
    """Of the units that can be judged: how many, what is true of them, and what the tables show."""
    own = units[units.mature]
    low, high = interval(int(own.seen.sum()), len(own))
    return {"rows": len(own), "true": own.true.mean(), "seen": own.seen.mean(), "low": low, "high": high}


def _truth(oracle: Oracle, target: str) -> Floats:
    """The true probability of every unit, in the order of the tables."""
    frame = oracle.lines() if target == "returned" else oracle.parcels()
    return frame[target].to_numpy()


def _view(dataset: Dataset, oracle: Oracle, progress: Callable[[str], None]) -> _View:
    tables, zone = dataset.tables, dataset.settings.timezone
    parcels = tables["parcels"].merge(tables["orders"], on="order_id", validate="m:1").set_index("parcel_id")
    events = tables["events"].groupby(["kind", "parcel_id"]).happened_at.min()
    for kind in ("handed_over", "delivered"):
        parcels[kind] = events[kind].reindex(parcels.index)
    products = tables["listings"].drop_duplicates("sku", keep="last").set_index("sku")
    lines = tables["order_lines"].set_index("line_id").join(products[["category", "brand", "fragility"]], on="sku")
    parcels["fragility"] = lines.fragility.groupby(lines.parcel_id).max().reindex(parcels.index)

    facts = Facts.of(dataset)
    units = {}
    for target, t in TARGETS.items():
        ids = lines.index if t.unit == "line" else parcels.index
        own = labels(facts, target)
        label, mature = own.known(facts.snapshot.as_of)
        found = pd.DataFrame({"seen": label, "mature": mature.astype(bool), "decided": own.decided_at}, own.unit_id)
        found = found.reindex(ids)
        found["decided"] = found.decided.dt.tz_localize("UTC").dt.tz_convert(zone)
        found.insert(0, "true", _truth(oracle, target))
        units[target] = found
    return _View(dataset, oracle, units, parcels, lines, progress)


def _plain(value: Any) -> Any:
    """Data as JSON has them, floats to the digits that matter."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | pd.Series):
        return [_plain(v) for v in value]
    if isinstance(value, int | np.integer | np.bool_) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else round(float(value), _DIGITS)
    return value
