"""What an answer says to do about a parcel, in words a packer needs nobody for, and the decision that is recorded.

`serving.actions` weighs; here one action is chosen (or none: "nothing worth doing" is an answer), a randomized share is
held back, and the shop's packing rules, handoff data and protocols are looked at, which need no model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import Array, absent, local
from features.rows import Rows
from features.treated import COLUMNS
from features.vocabulary import TARGETS, amount_digits
from serving.actions import ASSUMED, ESTIMATED, MEASURED, TRUST, Options, facts, goods_value, incomplete, mends
from serving.policy import ANY, Condition, Policy, Rule

WORDS: dict[str, str] = {
    "late": "late",
    "failed_attempt": "failed attempt",
    "damaged": "damage",
    "undelivered": "never arrives",
    "returned": "return",
}
"""Targets as they stand before a percentage."""

CHANGES: dict[str, str] = {**COLUMNS, "package": "package_type"}
"""Kinds of action that change a column of `parcels`, and which. A decision records how they were before: a training is
to know the parcel without what was done about it."""

COUNTED = 200_000
"""Recommendations that are remembered to keep to the capacities of their days; the oldest go first."""

NO_ADVICE: dict[str, Any] = {
    "policy": None,
    "tier": None,
    "advice": None,
    "actions": [],
    "packages": [],
    "violations": [],
    "handoff": None,
    "exceptions": [],
}
"""What an answer says where no policy is loaded."""


logger = logging.getLogger("doorstep.advice")


class Capacity:
    """How often each action was recommended in a day, by all processes that name the same file.

    The day is that of the decision, on the shop's clock. A parcel that is asked about again counts once, and has the
    place it had. The file holds digests of parcels' ids; what a power loss takes of it is counted anew.

    Args:
        file: an SQLite file on a local disk, made if it is not there; None: this process alone counts, in memory.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for last in (False, True):
            try:
                self._open(":memory:" if file is None else str(file))
                break
            except sqlite3.OperationalError as error:
                self._uncounted(error)
                break
            except sqlite3.DatabaseError as error:  # it is no database (any more): what was counted is lost
                self._uncounted(error)
                if file is not None and not last:
                    file.unlink(missing_ok=True)

    def _open(self, name: str) -> None:
        connection = sqlite3.connect(name, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            # Survives a killed process; nothing waits for the disk.
            connection.execute("PRAGMA journal_mode = PERSIST").fetchall()
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS taken (action TEXT, day TEXT, parcel BLOB, UNIQUE (action, day, parcel))"
            )
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def close(self) -> None:
        """Close the file; nothing is counted from then on."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def take(self, policy: Policy, action: str, day: str, parcel: str, *, do: bool) -> bool:
        """Whether there is room for the parcel; takes it if `do`, in one step. There is where nobody can count."""
        named = policy.action(action)
        if named is None or named.capacity_per_day is None:
            return True
        one = named.name, day, hashlib.blake2b(parcel.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        room = "(SELECT count(*) FROM taken WHERE action = ? AND day = ?) < ?"
        limit = named.name, day, named.capacity_per_day
        with self._lock:
            if self._connection is None:
                return True
            query = self._connection.execute
            try:
                there = "SELECT 1 FROM taken WHERE action = ? AND day = ? AND parcel = ?"
                if query(there, one).fetchone() is not None:
                    return True
                if not do:
                    return bool(query(f"SELECT {room}", limit).fetchone()[0])
                done = query(f"INSERT INTO taken SELECT ?, ?, ? WHERE {room} ON CONFLICT DO NOTHING", (*one, *limit))
                if done.rowcount and done.lastrowid and done.lastrowid % 1000 == 0:
                    query("DELETE FROM taken WHERE rowid <= ?", (done.lastrowid - COUNTED,))
                return done.rowcount > 0 or query(there, one).fetchone() is not None
            except sqlite3.Error as error:
                self._uncounted(error)
                return True

    @staticmethod
    def _uncounted(error: sqlite3.Error) -> None:
        logger.error("the day's capacity is not kept: what is recommended cannot be counted: %s", error)


def new_id() -> str:
    """The id of a new decision."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Asking:
    """How a decision is asked for, besides the parcel.

    Attributes:
        new_id: makes the decision's id.
        shown: False in shadow mode: what would be advised is recorded, and withheld with a propensity of 0, as nothing
            is left to chance; so nothing is measured by it, and the parcel counts as untreated.
        least_benefit: nothing is recommended for less, whatever the policy says of the action.
        rules_first: where one thing is shown, a broken packing rule goes before all else: what mends it is recommended
            whatever it is worth, or nothing is.
    """

    new_id: Callable[[], str] = new_id
    shown: bool = True
    least_benefit: float = 0.0
    rules_first: bool = False


ASKING = Asking()


def withheld(policy: Policy, action: str, parcel_id: str) -> bool:
    """Whether the parcel is in the control arm of the action: the same answer whenever it is asked.

    A number from 0 to 1, made of the SHA-256 of the policy's salt, the action and the parcel, is below the share that
    the policy randomizes.
    """
    named = policy.action(action)
    if named is None or named.randomize == 0.0:
        return False
    words = json.dumps([policy.salt, action, parcel_id], ensure_ascii=False)
    drawn = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2.0**64
    return drawn < named.randomize


def fingerprint(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request as canonical JSON: keys sorted, times in UTC, nothing else but what was given."""
    words = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.sha256(words.encode()).hexdigest()


def _plain(value: Any) -> str:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else str(value)


class _View:
    """What actions would do for one parcel, as plain numbers, by the position of the action.

    Attributes:
        before, after: each risk without and with each action; of `returned`, that any line comes back.
    """

    def __init__(self, options: Options, row: int, lines: Array) -> None:
        self.options, self.row, self.lines = options, row, lines
        self.saving, self.cost, self.benefit, self.co2e_g = (
            x[row].tolist() for x in (options.saving, options.cost, options.benefit, options.co2e_g)
        )
        self.low, self.high = (
            [None if x != x else x for x in end[row].tolist()] for end in (options.low, options.high)
        )
        self.before: dict[str, float] = {}
        self.after: dict[str, list[float]] = {}
        for target, before in options.before.items():
            after = options.after[target]
            if TARGETS[target].unit == "parcel":
                self.before[target], self.after[target] = float(before[row]), after[row].tolist()
            elif len(lines):
                self.before[target], self.after[target] = float(_any(before[lines])), _any(after[lines]).tolist()

    def moved(self, k: int) -> dict[str, list[float]]:
        """The risks that an action moves, before and after."""
        return {t: [b, self.after[t][k]] for t, b in self.before.items() if self.after[t][k] != b}


class Advisor:
    """What a policy says of some rows: packing rules, handoff data and, where risks are known, what to do.

    Args:
        policy: the policy.
        rows: the parcels.
        options: what actions would do for them; None where no model answers.
    """

    def __init__(self, policy: Policy, rows: Rows, options: Options | None) -> None:
        self.policy, self.rows, self.options = policy, rows, options
        p = rows.parcels
        # What weighing has looked at already is not looked at again.
        self.value = goods_value(rows)[0] if options is None else options.parcels.value
        self._lines_of = rows.lines_of()
        self._facts = facts(rows, policy, self.value) if options is None else options.known
        self._missing = {column: self._absent(column) for column in policy.handoff}
        self._incomplete = incomplete(rows, policy)
        self._address = p["parcels", "address_quality"].tolist()
        self._day = local(p.decided_at, rows.zone).astype("datetime64[D]")

    def _absent(self, column: str) -> Array:
        """Where a column of the handoff is not known, (n,) bool; of lines: where it is not of one of them."""
        table, name = column.split(".", 1)
        of_parcel = table in ("parcels", "orders")
        given = (self.rows.parcels if of_parcel else self.rows.lines)[table, name]
        none = (
            absent(given) if given.dtype == object else np.isnat(given) if given.dtype.kind == "M" else np.isnan(given)
        )
        if of_parcel:
            return np.asarray(none, dtype=bool)
        out = np.zeros(self.rows.parcels.n, dtype=bool)
        at = self.rows.line_parcel
        out[at[(at >= 0) & none]] = True
        return out

    def violations(self, row: int) -> list[dict[str, Any]]:
        """The packing rules a parcel breaks."""
        out = []
        for rule, condition in self._unmet(row):
            given = self._facts[condition.field][row]
            said = json.dumps(given) if isinstance(given, bool) else given
            said = f"{given:g}" if isinstance(given, float) else said
            out.append(
                {
                    "rule": rule.rule,
                    "field": condition.field,
                    "given": given,
                    "relation": condition.operator,
                    "required_value": list(value) if isinstance(value := condition.value, tuple) else value,
                    "required": str(condition),
                    "text": f"{rule.rule}: {condition.field} is {said}, required is {condition}",
                }
            )
        return out

    def _unmet(self, row: int) -> list[tuple[Rule, Condition]]:
        known = {field: found[row] for field, found in self._facts.items()}
        return [(rule, condition) for rule in self.policy.specification for condition in rule.unmet(known)]

    def _remedies(self, row: int, ranked: list[int]) -> dict[str, int | None]:
        """The rules a parcel breaks, each with the action that mends it, of several the one worth most, if any does."""
        out: dict[str, int | None] = {}
        o = self.options
        for rule, condition in self._unmet(row):
            if out.get(rule.rule) is None:
                mending = (k for k in ranked if o is not None and self._mends(o, row, k, condition))
                out[rule.rule] = next(mending, None)
        return out

    @staticmethod
    def _mends(o: Options, row: int, k: int, condition: Condition) -> bool:
        to = o.actions[k].to
        short = isinstance(condition.value, (int, float)) and to is not None and condition.met(to) is False
        return mends(o.keys[k], condition.field) and not o.breaks[row, k] and not short

    def handoff(self, row: int) -> dict[str, Any]:
        """What the carrier needs to know of a parcel and does not."""
        missing = [column for column, none in self._missing.items() if none[row]]
        lacks: list[dict[str, Any]] = []
        if self._incomplete["documents_complete"][row]:
            lacks.append({"column": "parcels.documents_complete", "given": False, "text": "documents are missing"})
        if self._incomplete["address_quality"][row]:
            quality, least = self._address[row], self.policy.least_address_quality
            text = f"the address is incomplete: quality {quality:g}, required is at least {least:g}"
            lacks.append({"column": "parcels.address_quality", "given": quality, "text": text})
        return {"complete": not missing and not lacks, "missing": missing, "incomplete": lacks}

    def exceptions(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The protocols that the risks of an answer call for."""
        out = []
        for target, protocol in self.policy.exceptions.items():
            found = [(None, body["risks"][target])] if target in body["risks"] else []
            if target == "returned":
                found = [(line["line_id"], line) for line in body["returns"]]
            out += [
                {
                    "target": target,
                    "line_id": line,
                    "probability": risk["probability"],
                    "at_least": protocol.at_least,
                    "owner": protocol.owner,
                    "steps": list(protocol.steps),
                    "actions": list(protocol.actions or ()),
                }
                for line, risk in found
                if risk["probability"] >= protocol.at_least
            ]
        return out

    def tier(self, row: int) -> dict[str, Any] | None:
        """The parcel's tier."""
        found = self.policy.tier(float(self.value[row]))
        return None if found is None else {"name": found.name, "handling": found.handling}

    def advise(
        self,
        row: int,
        request: Mapping[str, Any],
        body: dict[str, Any],
        capacity: Capacity | None = None,
        asking: Asking = ASKING,
    ) -> dict[str, Any]:
        """Complete the answer about one parcel, in place, and give the decision to record.

        Args:
            row: the parcel.
            request: as it was asked.
            body: what is said of its risks.
            capacity: what has been recommended before; None: nothing is counted.
            asking: how it is asked for.
        """
        policy, decided = self.policy, self.rows.parcels.decided_at[row]
        parcel_id = str(request["parcel"].get("parcel_id"))
        body |= {
            "policy": policy.digest,
            "tier": self.tier(row),
            "violations": self.violations(row),
            "handoff": self.handoff(row),
            "exceptions": self.exceptions(body),
        }
        decision_id = asking.new_id()
        o = self.options
        ranked = [] if o is None else o.ranked(row)
        remedies = self._remedies(row, ranked)
        chosen, held, full = self._choose(ranked, row, parcel_id, capacity, asking, remedies)
        key = None if chosen is None else self._key(chosen)
        view = None if o is None else _View(o, row, self._lines(row))
        listed = (
            []
            if view is None
            else [self._option(k, view, full, asking.least_benefit) for k in ranked if not (held and k == chosen)]
        )
        for option in listed:
            option["recommended"] = option["action"] == key
            if option["recommended"]:
                option["why_not"] = None
            elif option["why_not"] is None:
                rest = (
                    "a broken packing rule comes first" if asking.rules_first and remedies else "one action is enough"
                )
                option["why_not"] = "the parcel is left as it is, to measure" if held else rest
        body["actions"] = listed
        # Of what is withheld the control arm sees nothing anywhere, so the ladder lacks its rung.
        rungs = [] if view is None else self._ladder(view, key)
        body["packages"] = [rung for rung in rungs if not (held and rung["recommended"])]
        named = None if key is None else policy.action(key)
        demanded = chosen is not None and o is not None and bool(o.demanded[row, chosen])
        propensity = 1.0
        if named is not None and not asking.shown:
            propensity = 0.0
        elif named is not None and not demanded:
            propensity = 1.0 - named.randomize
        body["advice"] = {
            "decision_id": decision_id,
            "action": None if held else key,
            "text": self._said(listed, full, held, remedies),
            "arm": "none" if key is None else "control" if held else "act",
            "propensity": propensity,
            "owner": None if held or named is None else named.owner,
        }
        probabilities: dict[str, Any] = {t: risk["probability"] for t, risk in body["risks"].items()}
        if body["returns"]:
            probabilities["returned"] = [line["probability"] for line in body["returns"]]
        return {
            "decision_id": decision_id,
            "decided_at": f"{decided}Z",
            "parcel_id": parcel_id,
            "order_id": request["order"].get("order_id"),
            "customer_id": request["order"].get("customer_id"),
            "lines": [line["line_id"] for line in request.get("lines", ())],
            "inputs": fingerprint(request),
            "bundle": body["bundle"],
            "as_of": body["as_of"],
            "policy": policy.digest,
            "degraded": body["degraded"],
            "probabilities": probabilities,
            "actions": []
            if view is None
            else [
                {
                    "action": view.options.keys[k],
                    "net_benefit": view.benefit[k],
                    "saving": view.saving[k],
                    "cost": view.cost[k],
                }
                for k in ranked
            ],
            "action": key,
            "arm": body["advice"]["arm"],
            "propensity": propensity,
            "demanded": demanded,
            "shown": asking.shown,
            "net_benefit": None if chosen is None or view is None else view.benefit[chosen],
            "before": self._before(row),
        }

    def _before(self, row: int) -> dict[str, str]:
        """What each kind of action changes of the parcel, as it is now, where that is known."""
        columns = {kind: self.rows.parcels["parcels", column][row] for kind, column in CHANGES.items()}
        return {kind: str(now) for kind, now in columns.items() if now is not None and now == now}

    def _key(self, k: int) -> str:
        assert self.options is not None
        return self.options.keys[k]

    def _choose(
        self,
        ranked: list[int],
        row: int,
        parcel_id: str,
        capacity: Capacity | None,
        asking: Asking,
        remedies: Mapping[str, int | None],
    ) -> tuple[int | None, bool, list[int]]:
        """The first action worth doing that there is room for, whether it is withheld, and those without room before.

        What a rule, the handoff or a protocol demands is not drawn: the control arm would be told of it all the same.
        That arm takes no room, but is drawn only where there is some. What is not shown does take it: it tells what
        would have been advised in a day. Where rules come first, what mends one takes its room even if none is left.
        """
        if asking.rules_first and remedies:
            k = next((k for k in remedies.values() if k is not None), None)
            if k is not None and capacity is not None:
                capacity.take(self.policy, self._key(k), str(self._day[row]), parcel_id, do=True)
            return k, k is not None and not asking.shown, []
        full: list[int] = []
        may = [] if self.options is None else self.options.open[row].tolist()
        for k in ranked:
            assert self.options is not None
            if self.options.benefit[row, k] <= max(self.options.least[k], asking.least_benefit) or not may[k]:
                continue
            key, day = self._key(k), str(self._day[row])
            drawn = not self.options.demanded[row, k] and withheld(self.policy, key, parcel_id)
            held = asking.shown and drawn
            if capacity is None or capacity.take(self.policy, key, day, parcel_id, do=not held):
                return k, held or not asking.shown, full
            full.append(k)
        return None, False, full

    def _option(self, k: int, view: _View, full: list[int], at_least: float) -> dict[str, Any]:
        """One action as an answer says it."""
        o, net, co2e, risks = view.options, view.benefit[k], view.co2e_g[k], view.moved(k)
        action, key, least = o.actions[k], o.keys[k], max(o.actions[k].least_benefit, at_least)
        known = [e for t in o.evidence if (e := o.evidence[t][k]) is not None and (t in risks or not risks)]
        evidence = max(known, key=TRUST.index)
        why_not = None
        if net <= least:
            why_not = f"its net benefit is not above {self._money(least)}"
        elif not o.safe[view.row, k]:
            why_not = "it is not sure enough that so little protection does no more harm"
            if key.startswith("carrier:"):
                why_not = "it is not sure enough that this carrier does better here"
        elif o.breaks[view.row, k]:
            why_not = "it breaks a packing rule"
        elif k in full:
            why_not = f"all {action.capacity_per_day} of the day are used up"
        return {
            "action": key,
            "owner": action.owner,
            "recommended": False,
            "saving": view.saving[k],
            "cost": view.cost[k],
            "net_benefit": net,
            "low": view.low[k],
            "high": view.high[k],
            "why_no_interval": self._unsure(k, view),
            "co2e_g": None if co2e != co2e else co2e,
            "evidence": evidence,
            "risks": risks,
            "text": f"{self._what(key)}: {self._moves(risks)}, {self._nets(net)} ({evidence})",
            "why_not": why_not,
        }

    @staticmethod
    def _unsure(k: int, view: _View) -> str | None:
        """Why an action's benefit has no interval; None where it has one."""
        if view.low[k] is not None:
            return None
        found: dict[str | None, list[str]] = {}
        for target, unsure in view.options.unsure.items():
            if unsure[view.row if TARGETS[target].unit == "parcel" else view.lines, k].any():
                found.setdefault(view.options.evidence[target][k], []).append(WORDS[target])
        whys = {
            ASSUMED: "assumed without an interval",
            ESTIMATED: "the parcel scored again, which tells no error",
            MEASURED: "measured, and the risk is sure already",
        }
        parts = [f"{', '.join(named)} ({whys[e]})" for e, named in found.items() if e is not None]
        return f"nobody says how sure its effect is: {'; '.join(parts)}"

    def _lines(self, row: int) -> Array:
        order, first = self._lines_of
        return order[first[row] : first[row + 1]]

    def _ladder(self, view: _View, done: str | None) -> list[dict[str, Any]]:
        """Every package of the policy under the parcel, weakest first."""
        o, row, ladder = view.options, view.row, view.options.ladder
        level = float(o.parcels.level[row])
        own, fits, dimensional, freight, co2e = (
            x[row].tolist() for x in (ladder.own, ladder.fits, ladder.dimensional_kg, ladder.freight, ladder.co2e_g)
        )
        out = []
        for j, name in enumerate(ladder.names):
            key = f"package:{name}"
            k = o.place.get(key, -1)
            said = k >= 0 and o.told[k] and level == level
            risks = view.before if own[j] else {t: p[k] for t, p in view.after.items()} if said else None
            out.append(
                {
                    "package": name,
                    "protection_level": float(ladder.level[j]),
                    "current": own[j],
                    "recommended": done == key,
                    "fits": fits[j],
                    "risks": risks,
                    "material_cost": float(ladder.material[j]),
                    "dimensional_weight_kg": None if dimensional[j] != dimensional[j] else dimensional[j],
                    "freight": None if freight[j] != freight[j] else freight[j],
                    "co2e_g": co2e[j],
                    "net_benefit": 0.0 if own[j] else view.benefit[k] if said else None,
                }
            )
        return out

    # Words.

    def _money(self, amount: float) -> str:
        currency = self.policy.currency
        return f"{amount:,.{0 if abs(amount) >= 1000 else amount_digits(currency)}f} {currency}"

    def _nets(self, net: float) -> str:
        return f"saves {self._money(net)} net" if net >= 0 else f"costs {self._money(-net)} more than it saves"

    def _what(self, key: str) -> str:
        kind, _, name = key.partition(":")
        if kind == "carrier":
            carrier, _, service = name.rpartition("/")
            return f"Send with {carrier}{'' if service == ANY else f' {service}'}"
        action = self.policy.action(key)
        to = action.to if action is not None else None
        return {
            "package": f"Pack in {name}",
            "add_fill": f"Fill {100 * (to or 0):.0f} % of the empty space",
            "fix_label": "Print the label again",
            "complete_documents": "Attach the missing documents",
            "confirm_address": "Have the customer confirm the address",
            "notify_customer": "Tell the customer when it comes",
            "pickup_point": "Offer a pickup point",
            "hold_next_pickup": "Hold it for the next pickup",
        }[kind]

    @staticmethod
    def _moves(risks: Mapping[str, list[float]]) -> str:
        """The two risks that move most, in words."""
        seen = [(t, b, a) for t, (b, a) in risks.items() if f"{100 * b:.1f}" != f"{100 * a:.1f}"]
        seen.sort(key=lambda x: -abs(x[2] - x[1]))
        return ", ".join(f"{WORDS[t]} {100 * b:.1f} % -> {100 * a:.1f} %" for t, b, a in seen[:2]) or "no risk moves"

    def _said(
        self, listed: list[dict[str, Any]], full: list[int], held: bool, remedies: Mapping[str, int | None]
    ) -> str:
        """The advice in words. A broken rule is to be mended whatever that is worth: nothing to do would be a lie."""
        advised = next((option for option in listed if option["recommended"]), None)
        told = None if advised is None else advised["action"]
        named = [(r, None if k is None or self._key(k) == told else self._key(k)) for r, k in remedies.items()]
        rules = "; ".join(rule if key is None else f"{rule}: {self._what(key)}" for rule, key in named)
        first = f"A packing rule is broken, mend that first ({rules}). " if rules else ""
        nothing = "Beyond that nothing" if rules else "Nothing"
        if advised is not None:
            return f"{first}{advised['text']}"
        if held:
            return f"{first}{nothing} to do."
        if self.options is None:
            return f"{first}No advice: no model answers."
        if full:
            used = [option["text"] for option in listed if option["action"] in {self._key(k) for k in full}]
            over = "the day's capacity is used up. It would have been worth it"
            return f"{first}{nothing} to do, {over}: {used[0]}."
        if listed:
            doubt = "" if listed[0]["net_benefit"] <= 0 else f", but {listed[0]['why_not']}"
            return f"{first}{nothing} worth doing. The best would be: {listed[0]['text']}{doubt}."
        return f"{first}{nothing} worth doing."


def _any(p: Array) -> Array:
    """The chance that any of some lines (l, ...) comes back, as if one did not tell of another."""
    kept = 1.0 - p[0]
    for line in range(1, len(p)):
        kept = kept * (1.0 - p[line])
    return np.asarray(1.0 - kept)
