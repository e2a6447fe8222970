"""Two policies on the same parcels: how many decisions change, what they are worth, and whether the capacity is enough.

A period that is over is decided again, with the risks as the served bundle gives them from what was known at each
parcel's decision. Both policies see the same risks and the same parcels, in the order in which they were packed.

Money is expected and not weighted: what failures would cost less, less what the actions cost, of those parcels that
get their action (a randomized share does not). Prices differ between policies, so the old decisions are valued at
the new prices too: only figures at the same prices can be compared.

**Capacity** is used up first come, first served, as the service does: who comes too late gets its next best action.
`least_benefit` can do better than that, by leaving the room to those it helps most. Two are told: the least that keeps
every day within its limit, found by raising it until no day has too many (what is turned away goes to its next best
action, which may have to be raised in turn); and the one that earns most while the limit takes care of busy days.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array, absent, local
from features.dataset import Dataset
from features.matrix import CHUNK, values
from features.rows import Rows
from features.snapshot import Facts, moment
from features.vocabulary import TARGETS, amount_digits
from serving.actions import Options, weigh
from serving.advice import withheld
from serving.bundle import Bundle
from serving.diagnosis import shop_day
from serving.policy import Policy
from training.evaluate.report import columns

__all__ = ["PERIOD", "Replay", "replay", "table"]

PERIOD = 91 * DAY
"""How much is replayed unless it is said: a quarter, so that every weekday is there as often."""


STEPS = np.linspace(0, 0.95, 20)
"""Shares of those who want an action that may be left out, tried for the least benefit that earns most."""


@dataclass(frozen=True)
class Replay:
    """What two policies decide.

    Attributes:
        document: plain data, as `doorstep policy diff --json` prints it.
        changed: a row per parcel about which they decide differently: parcel_id, decided_at, old and new action (None:
            nothing), whether the lot withholds it from the parcel, what each would save and cost at its own prices, and
            both nets at the new ones.
    """

    document: dict[str, Any]
    changed: pd.DataFrame


def replay(
    dataset: Dataset,
    old: Policy,
    new: Policy,
    bundle: Bundle,
    *,
    since: np.datetime64 | pd.Timestamp | None = None,
    until: np.datetime64 | pd.Timestamp | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Replay:
    """Decide again about the parcels packed in [since, until).

    Args:
        dataset: the shop's tables.
        old, new: the policies, in one currency.
        bundle: gives the risks.
        since: default `PERIOD` before `until`.
        until: default the last moment whose parcels have had their `lost_after_days`.
        progress: is told what is being done.

    Raises:
        ValueError: other currencies, or no parcel in the period.
    """
    if old.currency != new.currency:
        raise ValueError(f"one policy is in {old.currency}, the other in {new.currency}: give both in one currency")
    progress("joining tables and counting history")
    facts = Facts.of(dataset)
    rows, as_of = facts.rows, facts.snapshot.as_of
    end = as_of - dataset.settings.lost_after_days * DAY if until is None else moment(until)
    start = end - PERIOD if since is None else moment(since)
    decided = rows.parcels.decided_at
    at = np.flatnonzero(~absent(rows.parcel_id) & (decided >= start) & (decided < end))
    if not len(at):
        raise ValueError(
            f"no parcel was decided from {start}Z to {end}Z: give another period (the extract is as of {as_of}Z)"
        )
    at = at[np.lexsort((rows.parcel_id[at].astype(str), decided[at]))]
    parts: list[tuple[_Weighed, _Weighed, Array]] = []
    for first in range(0, len(at), CHUNK):
        some, _ = rows.as_if(at[first : first + CHUNK], {})
        probability = _probabilities(bundle, some)
        o, n = (weigh(bundle, p, some, probability) for p in (old, new))
        parts.append((_Weighed.of(o), _Weighed.of(n), _by_other(o, n)))
        some.forget()
        progress(f"weighed {min(first + CHUNK, len(at)):,} of {len(at):,} parcels")
    ids, day = rows.parcel_id[at], local(decided[at], rows.zone).astype("datetime64[D]").astype(np.int64)
    progress("deciding")
    theirs = _Decided.of(_Weighed.joined([o for o, _, _ in parts]), old, ids, day)
    ours = _Decided.of(_Weighed.joined([n for _, n, _ in parts]), new, ids, day)
    cross = np.concatenate([part[2] for part in parts])
    return _compared(dataset, (old, theirs), (new, ours), cross, ids, decided[at], day, bundle, as_of)


def _probabilities(bundle: Bundle, rows: Rows) -> dict[str, Array]:
    matrix = {u: values(rows, bundle.columns(u)) for u in {TARGETS[t].unit for t in bundle.targets}}
    return {t: m.probability(bundle.cut(t, matrix[TARGETS[t].unit])) for t, m in bundle.targets.items()}


@dataclass(frozen=True)
class _Weighed:
    """What of `Options` is kept of every part: (n, K) each, but for the keys and the least benefits (K,)."""

    keys: tuple[str, ...]
    least: Array
    benefit: Array  # -inf where it may not be recommended
    saving: Array
    cost: Array
    demanded: Array

    @staticmethod
    def of(o: Options) -> _Weighed:
        return _Weighed(o.keys, o.least, np.where(o.open, o.benefit, -np.inf), o.saving, o.cost, o.demanded)

    @staticmethod
    def joined(parts: list[_Weighed]) -> _Weighed:
        whole = (np.concatenate([getattr(p, f) for p in parts]) for f in ("benefit", "saving", "cost", "demanded"))
        return _Weighed(parts[0].keys, parts[0].least, *whole)


def _by_other(old: Options, new: Options) -> Array:
    """What each action of the old policy would bring at the new prices, (n, K old); NaN where the new has none."""
    net = np.where(new.offered, new.saving - new.cost, np.nan)
    at = np.array([new.keys.index(k) if k in new.keys else -1 for k in old.keys], dtype=np.int64)
    return np.concatenate([net, np.full((len(net), 1), np.nan)], axis=1)[:, at]


@dataclass(frozen=True)
class _Decided:
    """What a policy decides about n parcels in their order.

    Attributes:
        weighed: what it was decided by.
        limits: by section of the policy, its actions' positions and its limit a day.
        wanted, chosen: (n,) position of the best action without and within the capacity; -1 for nothing.
        acted: (n, K) bool, whether the parcel would get the action: not withheld by lot.
        enough: by section with a limit, the least benefit that keeps every day within it.
        spared: (n,) what is chosen with those.
        best: by section with a limit, the least benefit that earns most.
        thrifty: (n,) what is chosen with those, within the capacity.
    """

    weighed: _Weighed
    limits: Mapping[str, tuple[Array, int]]
    wanted: Array
    chosen: Array
    acted: Array
    enough: Mapping[str, float]
    spared: Array
    best: Mapping[str, float]
    thrifty: Array

    @staticmethod
    def of(w: _Weighed, policy: Policy, ids: Array, day: Array) -> _Decided:
        sections: dict[str, tuple[list[int], int]] = {}
        for k, key in enumerate(w.keys):
            action = policy.action(key)
            if action is not None and action.capacity_per_day is not None:
                sections.setdefault(action.name, ([], action.capacity_per_day))[0].append(k)
        limits = {name: (np.array(at), limit) for name, (at, limit) in sections.items()}
        worth = np.where(w.benefit > w.least, w.benefit, -np.inf)
        acted = np.ones(worth.shape, dtype=bool)
        for k, key in enumerate(w.keys):
            action = policy.action(key)
            if action is not None and action.randomize:
                able = np.flatnonzero(np.isfinite(worth[:, k]) & ~w.demanded[:, k])
                acted[able, k] = [not withheld(policy, key, parcel) for parcel in ids[able].tolist()]
        enough, spared = _enough(worth, w.least, acted, limits, day)
        best, thrifty = _most(worth, w, acted, limits, day)
        chosen = _first_come(worth, acted, limits, day)
        return _Decided(w, limits, _best(worth), chosen, acted, enough, spared, best, thrifty)

    def money(self, chosen: Array) -> dict[str, float]:
        """Expected money of the parcels that get their action."""
        at = np.flatnonzero(self.does(chosen))
        saving, cost = (float(x[at, chosen[at]].sum()) for x in (self.weighed.saving, self.weighed.cost))
        return {"saving": saving, "cost": cost, "net": saving - cost}

    def does(self, chosen: Array) -> Array:
        """Which parcels get their action, (n,) bool."""
        n = np.arange(len(chosen))
        return (chosen >= 0) & (self.acted[n, chosen] if self.acted.shape[1] else np.zeros(len(n), dtype=bool))


def _best(worth: Array) -> Array:
    """The best action of each parcel, (n,); -1 where nothing is worth doing."""
    if not worth.shape[1]:
        return np.full(len(worth), -1)
    best = worth.argmax(axis=1)
    return np.where(np.isfinite(worth[np.arange(len(worth)), best]), best, -1)


def _over(chosen: Array, acted: Array, at: Array, day: Array) -> tuple[Array, Array]:
    """The parcels that use a section's capacity, in their order, and which of its day each is, from 0."""
    using = np.isin(chosen, at)
    using[using] = acted[using, chosen[using]]
    who = np.flatnonzero(using)
    order = who[np.argsort(day[who], kind="stable")]
    begins = np.searchsorted(day[order], day[order])
    return order, np.arange(len(order)) - begins


def _first_come(worth: Array, acted: Array, limits: Mapping[str, tuple[Array, int]], day: Array) -> Array:
    """What each parcel gets if they come one after another and each takes the best there is room for.

    Parcels ask for their best action, each section keeps the first of the day and turns the others away for good, until
    nobody is turned away. All sections prefer who comes first, so that is what asking one by one gives.
    """
    worth = worth.copy()
    while True:
        chosen, refused = _best(worth), False
        for at, limit in limits.values():
            who, place = _over(chosen, acted, at, day)
            out = who[place >= limit]
            if len(out):
                worth[np.ix_(out, at)] = -np.inf
                refused = True
        if not refused:
            return chosen


def _enough(
    worth: Array, least: Array, acted: Array, limits: Mapping[str, tuple[Array, int]], day: Array
) -> tuple[dict[str, float], Array]:
    """The least benefits that keep every day within its limit, by section, and what is chosen with them."""
    worth = worth.copy()
    found = {name: float(least[at].max()) for name, (at, _) in limits.items()}
    while True:
        chosen, raised = _best(worth), False
        for name, (at, limit) in limits.items():
            who, place = _over(chosen, acted, at, day)
            crowded = np.unique(day[who[place >= limit]])
            if not len(crowded):
                continue
            here = who[np.isin(day[who], crowded)]
            gain = worth[here, chosen[here]]
            order = np.lexsort((-gain, day[here]))
            rank = np.arange(len(order)) - np.searchsorted(day[here][order], day[here][order])
            found[name] = max(found[name], float(gain[order][rank == limit].max()))
            part = worth[:, at]
            part[part <= found[name]] = -np.inf
            worth[:, at] = part
            raised = True
        if not raised:
            return found, chosen


def _most(
    worth: Array, w: _Weighed, acted: Array, limits: Mapping[str, tuple[Array, int]], day: Array
) -> tuple[dict[str, float], Array]:
    """The least benefits that bring the most, by section, leaving out one of `STEPS`; and what is chosen with them.

    One section after another, each with what was found for those before it.
    """
    found = {name: float(w.least[at].max()) for name, (at, _) in limits.items()}

    def brings(worth: Array) -> tuple[float, Array]:
        chosen = _first_come(worth, acted, limits, day)
        n = np.flatnonzero(chosen >= 0)
        n = n[acted[n, chosen[n]]]
        return float(np.where(np.isfinite(w.benefit), w.benefit, 0.0)[n, chosen[n]].sum()), chosen

    most, chosen = brings(worth)
    for name, (at, limit) in limits.items():
        wanted = _best(worth)
        gains = worth[np.isin(wanted, at), wanted[np.isin(wanted, at)]]
        _, place = _over(wanted, acted, at, day)
        if not (place >= limit).any():
            continue
        kept = worth
        for least in np.unique(np.quantile(gains, STEPS)):
            raised = worth.copy()
            part = raised[:, at]
            part[part <= least] = -np.inf
            raised[:, at] = part
            got, how = brings(raised)
            if got > most:
                most, chosen, kept, found[name] = got, how, raised, float(least)
        worth = kept
    return found, chosen


def _compared(
    dataset: Dataset,
    old: tuple[Policy, _Decided],
    new: tuple[Policy, _Decided],
    cross: Array,
    ids: Array,
    decided: Array,
    day: Array,
    bundle: Bundle,
    as_of: np.datetime64,
) -> Replay:
    """The two beside each other."""
    (_, theirs), (policy, ours) = old, new
    n = np.arange(len(ids))
    names = [np.array([*d.weighed.keys, None], dtype=object)[d.chosen] for _, d in (old, new)]
    differs = names[0] != names[1]
    at_new = np.where(theirs.does(theirs.chosen), cross[n, theirs.chosen] if cross.shape[1] else np.nan, 0.0)
    net = [_net(d, d.chosen) for d in (theirs, ours)]
    frame = pd.DataFrame(
        {
            "parcel_id": ids,
            "decided_at": pd.DatetimeIndex(decided).tz_localize("UTC"),
            "old": names[0],
            "new": names[1],
            "old_withheld": (theirs.chosen >= 0) & ~theirs.does(theirs.chosen),
            "new_withheld": (ours.chosen >= 0) & ~ours.does(ours.chosen),
            "old_net": net[0],
            "old_net_at_new_prices": at_new,
            "new_net": net[1],
        }
    )
    changed = frame[differs].reset_index(drop=True)
    pairs = changed.fillna({"old": "nothing", "new": "nothing"}).groupby(["old", "new"], sort=True)
    told = [
        {
            "old": a,
            "new": b,
            "parcels": len(part),
            "net_at_new_prices": {
                "old": float(part["old_net_at_new_prices"].sum()),
                "new": float(part["new_net"].sum()),
            },
        }
        for (a, b), part in pairs
    ]
    document = {
        "dataset": dataset.settings.name,
        "simulated": dataset.settings.simulated,
        "as_of": f"{as_of}Z",
        "bundle": bundle.name,
        "timezone": dataset.settings.timezone,
        "from": f"{decided.min()}Z",
        "to": f"{decided.max()}Z",
        "days": len(np.unique(day)),
        "parcels": len(ids),
        "currency": policy.currency,
        "old": _policy(*old),
        "new": _policy(*new),
        "changed": {
            "parcels": int(differs.sum()),
            "share": float(differs.mean()),
            "pairs": sorted(told, key=lambda p: -p["parcels"]),
        },
        "net_at_new_prices": {
            "old": float(np.nansum(at_new)),
            "new": float(net[1].sum()),
            "old_without_price": int(np.isnan(at_new).sum()),
        },
        "capacity": {"old": _capacity(theirs, day), "new": _capacity(ours, day)},
    }
    return Replay(document, changed)


def _net(d: _Decided, chosen: Array) -> Array:
    """What each parcel is expected to bring, (n,)."""
    out, at = np.zeros(len(chosen)), np.flatnonzero(d.does(chosen))
    out[at] = (d.weighed.saving - d.weighed.cost)[at, chosen[at]]
    return out


def _policy(policy: Policy, d: _Decided) -> dict[str, Any]:
    """What one policy decides."""
    count = np.bincount(d.chosen[d.chosen >= 0], minlength=len(d.weighed.keys))
    does = d.does(d.chosen)
    done = np.bincount(d.chosen[does], minlength=len(d.weighed.keys))
    net = np.bincount(d.chosen[does], weights=_net(d, d.chosen)[does], minlength=len(d.weighed.keys))
    return {
        "name": policy.name,
        "digest": policy.digest,
        "nothing_worth_doing": int((d.chosen < 0).sum()),
        "actions": {
            key: {"recommended": int(count[k]), "withheld": int(count[k] - done[k]), "net": float(net[k])}
            for k, key in enumerate(d.weighed.keys)
            if count[k]
        },
        "money": {
            "as_served": d.money(d.chosen),
            "without_limits": d.money(d.wanted),
            "least_benefit_enough": d.money(d.spared),
            "least_benefit_best": d.money(d.thrifty),
        },
    }


def _capacity(d: _Decided, day: Array) -> dict[str, Any]:
    """What each limited action needs and has, a day."""
    days = np.unique(day)
    out = {}
    for name, (at, limit) in d.limits.items():
        per_day = {}
        for what, chosen in (("wanted", d.wanted), ("used", d.chosen)):
            who, _ = _over(chosen, d.acted, at, day)
            count = np.bincount(np.searchsorted(days, day[who]), minlength=len(days))
            per_day[what] = {"mean": float(count.mean()), "most": int(count.max())}
            if what == "wanted":
                short = int((count > limit).sum())
        out[name] = {
            "limit": limit,
            **per_day,
            "days_short": short,
            "least_benefit": float(d.weighed.least[at].max()),
            "least_benefit_enough": d.enough[name],
            "least_benefit_best": d.best[name],
        }
    return out


def table(document: Mapping[str, Any], most: int = 15) -> str:
    """A replay in a terminal: what changes, what it is worth, and whether the capacity is enough."""
    said = "SIMULATED data" if document["simulated"] else "data"
    c, changed, net = document["currency"], document["changed"], document["net_at_new_prices"]
    digits = amount_digits(c)
    out = [
        f"{document['dataset']}: {said}, {document['parcels']:,} parcels decided from {shop_day(document, 'from')} to "
        f"{shop_day(document, 'to')} ({document['days']} days), risks by bundle {document['bundle']}",
        f"{changed['parcels']:,} decisions change ({100 * changed['share']:.1f} %). Expected net at the new prices: "
        f"{net['old']:,.{digits}f} {c} before, {net['new']:,.{digits}f} {c} after "
        f"({net['new'] - net['old']:+,.{digits}f})",
    ]
    if net["old_without_price"]:
        out.append(f"{net['old_without_price']:,} old decisions have no price in the new policy and count as nothing")
    rows = [["was", "becomes", "parcels", f"net {c} before", "after"]]
    for p in changed["pairs"][:most]:
        both = (f"{p['net_at_new_prices'][k]:,.{digits}f}" for k in ("old", "new"))
        rows.append([p["old"], p["new"], f"{p['parcels']:,}", *both])
    if len(rows) > 1:
        out += ["", columns(rows, (2, 3, 4))]
    if len(changed["pairs"]) > most:
        more = len(changed["pairs"]) - most
        out.append(f"and {more} other change{'s' if more > 1 else ''}")
    rows = [["policy", "nothing worth doing", f"saves {c}", "costs", "net", "net without limits"]]
    for which in ("old", "new"):
        d = document[which]
        money = d["money"]["as_served"]
        figures = (f"{x:,.{digits}f}" for x in (*money.values(), d["money"]["without_limits"]["net"]))
        rows.append([f"{which} {d['digest']}", f"{d['nothing_worth_doing']:,}", *figures])
    out += ["", columns(rows, (1, 2, 3, 4, 5)), "(each at its own prices)"]
    for which in ("old", "new"):
        actions = document[which]["actions"].values()
        if withheld := sum(a["withheld"] for a in actions):
            recommended = sum(a["recommended"] for a in actions)
            out.append(
                f"{which}: of {recommended:,} recommended {withheld:,} are withheld by lot, to measure, and bring "
                "nothing"
            )
    capacity = document["capacity"]["new"]
    if capacity:
        rows = [["limited in the new policy", "a day", "wanted, mean and most", "days short", "used, mean"]]
        rows[0] += ["least_benefit", "keeps every day", "earns most"]
        for name, f in capacity.items():
            wanted = f"{f['wanted']['mean']:.1f}, {f['wanted']['most']:,}"
            least = (_up(f[k], digits) for k in ("least_benefit", "least_benefit_enough", "least_benefit_best"))
            used = f"{f['used']['mean']:.1f}"
            rows.append([name, f"{f['limit']:,}", wanted, f"{f['days_short']} of {document['days']}", used, *least])
        money = document["new"]["money"]
        out += [
            "",
            columns(rows, range(1, 8)),
            f"net with the least_benefit that keeps every day {money['least_benefit_enough']['net']:,.{digits}f} {c}, "
            f"with the one that earns most {money['least_benefit_best']['net']:,.{digits}f} {c}",
        ]
    return "\n".join(out)


def _up(least: float, digits: int) -> str:
    """A least benefit to the next cent: what is rounded down would let in one too many."""
    return f"{np.ceil(round(10**digits * least, 6)) / 10**digits:.{digits}f}"
