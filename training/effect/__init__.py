"""What an action does, measured: intention-to-treat effects of what was withheld by lot, valid under daily peeking.

For each action that the policy randomizes, the parcels that were to get it are compared with those it was withheld
from, whatever was then done with them. Who follows advice differs from who does not; who was drawn for it does not.

**A parcel counts once per action, by the first time its lot was drawn.** What is decided about it later may follow from
the advice: a parcel packed anew and asked about again has nothing left to recommend, and to go by that would take the
treated parcels out of their arm.

**It is judged at a moment that its arm cannot move**: when its promise has passed, `lost_after_days` after packing, for
returns a return window after that. The rule for training, "delivered, and the window closed", would let in parcels of
the faster arm first, and those that never arrive not at all. Here a parcel that never arrives has no return.

**One answer per action.** Each action has one primary target, and only that can make it "work". All other targets are
guardrails, and with a policy so is what a parcel cost: its failures as they happened, its package, its freight, and the
action where it was done. The level is for all actions together, however many there will be: the k-th to be randomized
gets 1 / (k (k + 1)) of it, which adds up to at most 1, and its guardrails together as much again. So no answer changes
because another trial begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from features.arrays import DAY, Array, Tables, columns, match, take
from features.dataset import Dataset
from features.outcomes import NAT, outcomes
from features.rows import Rows
from features.snapshot import Snapshot, known_before, moment, moment_of
from features.vocabulary import TARGETS
from serving.actions import spent
from serving.policy import Policy
from training.effect.sequences import Path, difference, mismatch, needed, odds_ratio

__all__ = ["ANSWERS", "MISMATCH", "PRIMARY", "Effects", "effect"]

PRIMARY: dict[str, str] = {
    "package": "damaged",
    "carrier": "late",
    "add_fill": "damaged",
    "fix_label": "late",
    "complete_documents": "late",
    "confirm_address": "failed_attempt",
    "notify_customer": "failed_attempt",
    "pickup_point": "failed_attempt",
    "hold_next_pickup": "late",
}
"""What an action is judged by where the policy does not say, by its kind."""

ANSWERS = ("works", "does harm", "cannot tell yet", "not randomized")

MISMATCH = 1_000.0
"""Evidence from which on the arms are taken not to be what was logged, see `training.effect.sequences.mismatch`."""

MOST = 1e12
"""More evidence is not told apart."""

PLANNED = 0.75
"""Events with the action, by those without, that a trial is planned for where the policy states no odds."""


@dataclass(frozen=True)
class Effects:
    """What is known of every action.

    Attributes:
        document: plain data, as in `effect.json`; docs/experiments.md says what it holds.
        paths: by action and target, the risk difference at each day on which parcels came to be judged (looks are days
            since 1970).
    """

    document: dict[str, Any]
    paths: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)


def effect(
    dataset: Dataset,
    *,
    policy: Policy | None = None,
    as_of: np.datetime64 | pd.Timestamp | None = None,
    level: float = 0.05,
) -> Effects:
    """Measure what every randomized action of a dataset does.

    Args:
        dataset: with the table `decisions`.
        policy: says by which target each action is judged and what is expected of it; without, what is usual.
        as_of: only facts known before; default when the extract was taken.
        level: chance that any primary target is told wrongly, ever, and as much for all guardrails together.

    Raises:
        ValueError: there is no table `decisions`.
    """
    if "decisions" not in dataset.tables:
        raise ValueError(
            f"{dataset.settings.name} has no table decisions: nothing is known of what was advised; "
            "`doorstep ledger export URL --out DIR` writes it from the ledger"
        )
    tables = columns(dataset.tables)
    end = moment_of(dataset.settings, tables) if as_of is None else moment(as_of)
    shop = _Shop.of(dataset, known_before(tables, end), end, policy)
    trials = [_Trial.of(str(name), rows, shop) for name, rows in shop.decisions.groupby("action", sort=True)]
    randomized = sorted((t for t in trials if len(t.drawn)), key=lambda t: (t.drawn["decided_at"].iloc[0], t.action))
    share = {t.action: level / (k * (k + 1)) for k, t in enumerate(randomized, 1)}
    told = {t.action: t.told(shop, share.get(t.action, level)) for t in trials}
    document = {
        "dataset": dataset.settings.name,
        "simulated": dataset.settings.simulated,
        "as_of": f"{end}Z",
        "level": level,
        "randomized": list(share),
        "decisions": shop.counts(),
        "actions": {action: found for action, (found, _) in told.items()},
    }
    return Effects(document, {action: paths for action, (_, paths) in told.items() if paths})


COST = "cost"
"""The guardrail that is money and no target."""


@dataclass(frozen=True)
class _Judged:
    """One outcome of every parcel of the dataset.

    Attributes:
        outcome: (n,) float64: 0 or 1, or money.
        when: (n,) datetime64[us], when it can be judged whatever its arm; NaT for never.
        ready: (n,) bool, it can be.
    """

    outcome: Array
    when: Array
    ready: Array


@dataclass(frozen=True)
class _Shop:
    """The dataset as known before a moment, and its decisions, oldest first."""

    end: np.datetime64
    rows: Rows
    judged: Mapping[str, _Judged]
    withdrawn: Array
    decisions: pd.DataFrame
    policy: Policy | None

    @staticmethod
    def of(dataset: Dataset, tables: Tables, end: np.datetime64, policy: Policy | None) -> _Shop:
        settings = dataset.settings
        rows = Rows({n: t for n, t in tables.items() if n != "listings"}, Snapshot.empty(settings, end))
        happened = outcomes(tables, rows, settings)
        withdrawn = happened["damaged"].withdrawn_at < end
        decisions = _decisions(tables, rows, end)
        judged, labels = {}, {}
        for target, t in TARGETS.items():
            if t.unit == "parcel" and "events" in tables:
                labels[target], _ = happened[target].label(end)
                label, when = labels[target], happened[target].matures_at
            elif t.unit == "line" and {"events", "returns", "order_lines"} <= tables.keys():
                labels[target], _ = happened[target].label(end)
                mine = rows.line_parcel >= 0
                label = np.bincount(rows.line_parcel[mine], labels[target][mine], minlength=rows.parcels.n) > 0
                held = np.bincount(rows.line_parcel[mine], minlength=rows.parcels.n) > 0
                days = settings.lost_after_days + settings.return_window_days
                when = np.where(held, rows.parcels.decided_at + days * DAY, NAT)
            else:
                continue  # without the table nobody knows, and no event is not what was seen
            if not np.isnat(when).all():
                judged[target] = _Judged(label.astype(np.float64), when, (when < end) & ~withdrawn)
        if policy is not None and judged:
            when = np.fmax.reduce([j.when for j in judged.values()])
            spent = _spent(policy, rows, {t: labels[t] for t in judged}, decisions)
            judged[COST] = _Judged(spent, when, (when < end) & ~withdrawn)
        return _Shop(end, rows, judged, withdrawn, decisions, policy)

    def counts(self) -> dict[str, Any]:
        """What the decisions are, on the whole."""
        d = self.decisions
        return {
            "all": len(d),
            "nothing_worth_doing": int((d["arm"] == "none").sum()),
            "drawn_by_lot": int(d["lot"].sum()),
            "of_unknown_parcels": int((d["row"] < 0).sum()),
            "from": f"{d['decided_at'].min().to_datetime64()}Z" if len(d) else None,
            "to": f"{d['decided_at'].max().to_datetime64()}Z" if len(d) else None,
        }


def _decisions(tables: Tables, rows: Rows, end: np.datetime64) -> pd.DataFrame:
    """The table of decisions with what is needed of the rest, oldest first.

    Beside its own columns: `row` of the parcel (-1: not in the dataset), `late` (made when the parcel had left), `lot`
    (by chance), `heard` (somebody said what was done, by the moment), `later` (only after it).
    """
    table = tables["decisions"]
    n = len(table["decision_id"])
    nothing: dict[str, Array] = {
        **dict.fromkeys(("action", "done", "override_reason", "demanded"), np.full(n, None, dtype=object)),
        "propensity": np.full(n, np.nan),
        "known_at": np.full(n, NAT),
    }
    wanted = ("decision_id", "parcel_id", "decided_at", "arm", *nothing)
    d = pd.DataFrame({c: table.get(c, nothing.get(c)) for c in wanted})
    d = d.sort_values(["decided_at", "decision_id"], kind="stable", ignore_index=True)
    unknown = (d["known_at"] >= end).to_numpy()
    d.loc[unknown, ["done", "override_reason"]] = None
    said = d["done"].notna() | d["override_reason"].notna() | d["known_at"].notna()
    d["heard"] = said.to_numpy() & ~unknown
    d["later"] = unknown
    row = match(d["parcel_id"].to_numpy(dtype=object), rows.parcel_id)
    d["row"] = row
    d["late"] = d["decided_at"].to_numpy() >= take(_left(tables, rows), row, NAT)
    between = (d["propensity"] > 0) & (d["propensity"] < 1)
    d["lot"] = d["arm"].isin(["act", "control"]) & d["action"].notna() & between
    return d


def _spent(policy: Policy, rows: Rows, labels: Mapping[str, Array], decisions: pd.DataFrame) -> Array:
    """What each parcel cost, (n,): its failures, its package and its freight as recorded, and the actions done to it.

    What has no price in the policy counts as nothing.
    """
    out = spent(policy, rows, labels)
    done = decisions[decisions["done"].notna() & (decisions["row"] >= 0)].drop_duplicates(["parcel_id", "done"])
    price = [a.cost if (a := policy.action(action)) else 0.0 for action in done["done"]]
    out += np.bincount(done["row"], price, minlength=len(out))
    return out


def _left(tables: Tables, rows: Rows) -> Array:
    """When each parcel was handed over, (n,) datetime64[us]; NaT where that is not known."""
    events = tables.get("events", {})
    out = np.full(rows.parcels.n, NAT)
    if "kind" in events:
        at = np.flatnonzero(events["kind"] == "handed_over")
        row, when = match(events["parcel_id"][at], rows.parcel_id), events["happened_at"][at]
        order = np.argsort(when, kind="stable")[::-1]  # the earliest is written last, and stays
        order = order[row[order] >= 0]
        out[row[order]] = when[order]
    return out


@dataclass(frozen=True)
class _Trial:
    """One action: its decisions, and the first draw of each parcel; `expected` are the odds the policy states."""

    action: str
    primary: str | None
    expected: float | None
    every: pd.DataFrame
    drawn: pd.DataFrame
    counts: Mapping[str, int]

    @staticmethod
    def of(action: str, every: pd.DataFrame, shop: _Shop) -> _Trial:
        kind = action.partition(":")[0]
        stated = {} if shop.policy is None else shop.policy.actions
        own = stated.get(action) or stated.get(kind)
        primary = (own and own.primary) or PRIMARY.get(kind)
        # What a kind states of its effect is not this action's: of packages it is that of a level of protection.
        expected = stated[action].effects.get(primary or "") if action in stated else None
        lots = every[every["lot"]]
        in_time = lots[~lots["late"]]
        first = in_time.drop_duplicates("parcel_id")
        both = in_time.groupby("parcel_id")["arm"].nunique()
        there = first[first["row"] >= 0]
        orders = pd.Series(shop.rows.order_id[there["row"]], dtype=object)
        mixed = there["arm"].to_numpy() == "act"
        split = pd.Series(mixed).groupby(orders.to_numpy()).nunique() if len(there) else pd.Series(dtype=int)
        counts = {
            "not_drawn": int((~every["lot"]).sum()),
            "demanded": int((every["demanded"] == 1).sum()),
            "after_handover": len(lots) - len(in_time),
            "asked_again": len(in_time) - len(first),
            "in_both_arms": int((both > 1).sum()),
            "not_in_dataset": len(first) - len(there),
            "orders_in_both_arms": int((split > 1).sum()),
        }
        primary = primary if primary in shop.judged else None
        return _Trial(action, primary, expected.odds_ratio if expected else None, every, first, counts)

    def told(self, shop: _Shop, level: float) -> tuple[dict[str, Any], dict[str, Path]]:
        """What is known of the action, as plain data, and the paths of its targets; `level` is for its primary one."""
        out: dict[str, Any] = {"answer": "", "why": "", "more_parcels": None, "primary": self.primary}
        out["decisions"] = dict(self.counts)
        out |= _adherence(self.every, shop)
        if not len(self.drawn):
            return out | self._nothing(), {}
        d = self.drawn
        treated, chance = (d["arm"] == "act").to_numpy(), d["propensity"].to_numpy()
        out["parcels"] = {"act": int(treated.sum()), "control": int((~treated).sum())}
        out["propensity"] = {"low": float(chance.min()), "high": float(chance.max())}
        found: dict[str, dict[str, Any]] = {}
        paths: dict[str, Path] = {}
        for target in sorted(shop.judged, key=lambda t: t != self.primary):
            role = "primary" if target == self.primary else "guardrail"
            own = level if role == "primary" else level / len(set(shop.judged) - {self.primary})
            told, paths[target] = _compared(d, shop, target, own)
            found[target] = {"role": role, **told}
        out["arms"] = _arms(d, shop, self.primary)
        out["targets"] = found
        out |= self._answer(out, level)
        return out, paths

    def _nothing(self) -> dict[str, Any]:
        """The answer where no lot counts."""
        if self.counts["after_handover"]:
            n = self.counts["after_handover"]
            why = f"nothing is estimated: all {n:,} lots were drawn after the parcel was handed over, by its scans"
            return {"answer": "cannot tell yet", "why": why}
        logged = self.every["propensity"].notna().any()
        why = "it was never withheld by lot (its propensity is 1)" if logged else "no propensity is on record"
        if self.counts["demanded"] == len(self.every):
            why = "a packing rule, the handoff or a protocol asked for it every time, so it was never left to chance"
            return {"answer": "not randomized", "why": f"nothing is estimated: {why}"}
        return {
            "answer": "not randomized",
            "why": f"nothing is estimated: {why}; set `randomize` for it in the policy",
        }

    def _answer(self, out: Mapping[str, Any], level: float) -> dict[str, Any]:
        """The one answer, and why."""
        arms, targets = out["arms"], out["targets"]
        worst = max(arms["evidence"], arms["evidence_judged"])
        if worst >= MISMATCH:
            which = "the lots drawn" if arms["evidence"] >= MISMATCH else "the parcels that can be judged"
            why = (
                f"the arms of {which} are not what the logged propensities say ({arms['act']:,} got it where "
                f"{arms['expected']:,.0f} were meant to; evidence {worst:,.0f} to 1): decisions are missing or were "
                "logged wrongly; mend that first, no figure here can be relied on"
            )
            return {"answer": "cannot tell yet", "why": why}
        harmed = [t for t, f in targets.items() if f["verdict"] == "more"]
        if harmed:
            good = [t for t in (self.primary,) if t and targets[t]["verdict"] == "fewer"]
            return {"answer": "does harm", "why": "; ".join(_said(t, targets[t]) for t in (*harmed, *good))}
        if self.primary is None:
            return {"answer": "cannot tell yet", "why": "it has no primary target that the dataset can judge"}
        own = targets[self.primary]
        if own["verdict"] == "fewer":
            return {"answer": "works", "why": _said(self.primary, own)}
        return _more(self.primary, own, out, level, self.expected)


def _compared(d: pd.DataFrame, shop: _Shop, target: str, level: float) -> tuple[dict[str, Any], Path]:
    """The arms of a trial by one outcome."""
    judged, event = shop.judged[target], target != COST
    row = d["row"].to_numpy()
    ready = take(judged.ready, row, False)
    treated, chance = (d["arm"] == "act").to_numpy()[ready], d["propensity"].to_numpy()[ready]
    outcome, look = judged.outcome[row[ready]], _day(judged.when[row[ready]])
    path = difference(outcome, treated, chance, look, level)
    withdrawn = take(shop.withdrawn, row, False)
    never = (row >= 0) & np.isnat(take(judged.when, row, NAT)) & ~withdrawn
    told = {
        "judged": {"act": int(treated.sum()), "control": int((~treated).sum())},
        "young": int(((row >= 0) & ~ready & ~withdrawn & ~never).sum()),
        "never_judged": int(never.sum()),
        "withdrawn": int(withdrawn.sum()),
        "events": {"act": int(outcome[treated].sum()), "control": int(outcome[~treated].sum())} if event else None,
        "rate": {
            "act": _weighted(outcome[treated], 1 / chance[treated]),
            "control": _weighted(outcome[~treated], 1 / (1 - chance[~treated])),
        },
        "level": level,
        "difference": _last(path),
        "odds_ratio": _last(odds_ratio(outcome, treated, chance, look, level)) if event else None,
        "verdict": "cannot tell",
        "since": None,
    }
    sides = path.excludes()
    if len(sides) and sides[-1]:
        told["verdict"] = "more" if sides[-1] > 0 else "fewer"
        held = np.flatnonzero(sides != sides[-1])
        told["since"] = str(np.datetime64(int(path.look[held[-1] + 1 if len(held) else 0]), "D"))
    return told, path


def _day(when: Array) -> Array:
    return np.asarray(when.astype("datetime64[D]").astype(np.int64))


def _weighted(values: Array, weights: Array) -> float | None:
    return float(np.average(values, weights=weights)) if len(values) else None


def _last(path: Path) -> dict[str, float | None]:
    """Where a path stands; None for what is not known."""
    ends = {k: float(getattr(path, k)[-1]) if len(path.units) else np.nan for k in ("value", "low", "high")}
    told = np.isfinite(ends["high"])
    return {k: v if told and np.isfinite(v) else None for k, v in ends.items()}


def _arms(d: pd.DataFrame, shop: _Shop, primary: str | None) -> dict[str, Any]:
    """Whether the arms are what the logged chances say: of all lots drawn, and of the parcels that could be judged."""
    treated, chance = (d["arm"] == "act").to_numpy(), d["propensity"].to_numpy()
    ready = take(shop.judged[primary].ready, d["row"].to_numpy(), False) if primary else np.zeros(len(d), dtype=bool)
    return {
        "act": int(treated.sum()),
        "expected": float(chance.sum()),
        "evidence": min(float(mismatch(treated, chance).max(initial=1.0)), MOST),
        "evidence_judged": min(float(mismatch(treated[ready], chance[ready]).max(initial=1.0)), MOST),
    }


def _more(
    primary: str, own: Mapping[str, Any], out: Mapping[str, Any], level: float, expected: float | None
) -> dict[str, Any]:
    """How many more parcels it takes to see the effect that is expected, or half of it where that is due by now."""
    judged, young = sum(own["judged"].values()), own["young"]
    waiting = f"; {young:,} are waiting to be judged" if young else ""
    if not judged:
        return {"answer": "cannot tell yet", "why": f"no parcel is old enough to judge {primary}{waiting}"}
    events = sum(own["events"].values())
    rate = (events + 0.5) / (judged + 1)
    odds = rate / (1 - rate) * (expected or 1)
    less = rate - odds / (1 + odds) if expected is not None and expected < 1 else (1 - PLANNED) * rate
    share = float(np.clip(out["arms"]["expected"] / sum(out["parcels"].values()), 0.01, 0.99))
    planned = less
    while (n := needed(rate, less, share, level)) <= judged:
        less /= 2
    more = _round(n - judged)
    so_far = "" if own["difference"]["value"] is None else f"so far {_said(primary, own)}; "
    few = f"{events:,} events so far are too few; " if not so_far else ""
    why = (
        f"{so_far}{few}about {more:,} more parcels to see {primary} fall by {100 * less / rate:.2g} % of what it is"
        f"{' (twice that would show by now)' if less < planned else ''}{waiting}"
    )
    return {"answer": "cannot tell yet", "why": why, "more_parcels": more}


def _round(n: float) -> int:
    """To two digits: it is a forecast."""
    digits = max(len(str(int(n))) - 2, 0)
    return int(np.ceil(n / 10**digits) * 10**digits)


def _said(target: str, found: Mapping[str, Any]) -> str:
    """A difference in words."""
    d = found["difference"]
    if target == COST:
        ends = ", ".join(f"{d[k]:+.2f}" for k in ("low", "high"))
        return (
            f"a parcel costs {found['rate']['act']:.2f} with it, {found['rate']['control']:.2f} without: "
            f"{d['value']:+.2f} [{ends}]"
        )
    points = ", ".join(f"{100 * d[k]:+.2f}" for k in ("low", "high"))
    rate = found["rate"]
    return (
        f"{target} {100 * rate['act']:.1f} % with it, {100 * rate['control']:.1f} % without: "
        f"{100 * d['value']:+.2f} points [{points}]"
    )


def _adherence(every: pd.DataFrame, shop: _Shop) -> dict[str, Any]:
    """What was done with what was advised, on the whole and by node, and the reasons why not.

    A parcel that was asked about again counts once, by what was last reported of it.
    """
    last = every.sort_values("heard", kind="stable").drop_duplicates("parcel_id", keep="last")
    advised, withheld = last[last["arm"] == "act"], last[last["arm"] == "control"]
    nodes = take(shop.rows.parcels["parcels", "node"], advised["row"].to_numpy(), None)
    by_node = {str(node): _followed(rows) for node, rows in advised.groupby(nodes, sort=True)}
    reasons = advised["override_reason"].value_counts()
    return {
        "adherence": _followed(advised),
        "adherence_by_node": by_node,
        "override_reasons": {str(k): int(v) for k, v in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))},
        "withheld": len(withheld),
        "withheld_and_done": int((withheld["done"] == withheld["action"]).sum()),
    }


def _followed(advised: pd.DataFrame) -> dict[str, int]:
    done, heard = advised["done"], advised["heard"]
    as_advised = done == advised["action"]
    return {
        "advised": len(advised),
        "done": int(as_advised.sum()),
        "something_else": int((done.notna() & ~as_advised).sum()),
        "nothing": int((heard & done.isna()).sum()),
        "not_reported": int((~heard).sum()),
        "reported_later": int((~heard & advised["later"]).sum()),
    }
