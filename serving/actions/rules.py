"""Packing rules, the handoff and protocols: what would break a rule, and what they ask for whatever it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from features.arrays import Array
from features.contracts import TABLES
from features.rows import Rows
from features.treated import COLUMNS
from features.vocabulary import TARGETS
from serving.actions.book import Book
from serving.actions.parcels import SIDES
from serving.policy import ANY, Policy

MENDS: dict[str, tuple[str, ...]] = {
    **{kind: (column,) for kind, column in COLUMNS.items()},
    "package": ("package_type", "protection_level", *SIDES),
    "carrier": ("carrier", "service"),
}
"""Kinds of action, and the fields of a parcel that they change."""


def mends(action: str, field: str) -> bool:
    """Whether an action, by its key, mends a rule that requires a field to be otherwise; nobody knows that of sides."""
    return field not in SIDES and field in MENDS.get(action.partition(":")[0], ())


Facts = Mapping[str, list[Any]]
"""What is known of each field that a packing rule reads: a value per parcel, None where it is not known."""


def facts(rows: Rows, policy: Policy, value: Array) -> Facts:
    """What the packing rules of a policy read of parcels whose goods are worth `value`, (n,)."""
    read = {c.field for rule in policy.specification for c in (*rule.when, *rule.require)}
    return {field: _fact(rows, policy, value, field) for field in read}


def _fact(rows: Rows, policy: Policy, value: Array, field: str) -> list[Any]:
    p = rows.parcels
    if field == "fragility":
        found: list[Any] = rows.per_parcel(rows.lines["listings", "fragility"], "max").tolist()
    elif field == "value":
        found = value.tolist()
    elif field == "abroad":
        home = policy.home_countries
        countries = p["orders", "destination_country"].tolist()
        return [None if c is None else bool(home) and c not in home for c in countries]
    else:
        table = next(t for t in ("parcels", "orders") if field in TABLES[t].names)
        found = p[table, field].tolist()
        if TABLES[table][field].kind == "flag":
            return [None if v != v else bool(v) for v in found]
    return [None if v != v else v for v in found]


def breaks(book: Book, known: Facts, n: int) -> Array:
    """Whether a parcel would break a packing rule that reads what an action changes, (n, K) bool.

    Of another package that is its name and its protection, of another service the carrier and the service.
    """
    out = np.zeros((n, len(book.keys)), dtype=bool)
    packages = [{"package_type": p.name, "protection_level": p.protection_level} for p in book.packages]
    services = [{"carrier": t.carrier, "service": None if t.service == ANY else t.service} for t in book.tariffs]
    for at, changed in ((book.boxes, packages), (book.services, services)):
        if at.stop == at.start:
            continue
        fields = changed[0].keys()
        for rule in book.policy.specification:
            if fields.isdisjoint(c.field for c in (*rule.when, *rule.require)):
                continue
            for row in range(n):
                given = {field: found[row] for field, found in known.items()}
                if all(c.met(given[c.field]) for c in rule.when if c.field not in fields):
                    out[row, at] |= [rule.broken(given | change) for change in changed]
    return out


def incomplete(rows: Rows, policy: Policy) -> dict[str, Array]:
    """Where a column is known and not good enough for the handoff, (n,) bool each."""
    p = rows.parcels
    return {
        "documents_complete": p["parcels", "documents_complete"] == 0.0,
        "address_quality": p["parcels", "address_quality"] < policy.least_address_quality,
    }


def demanded(book: Book, rows: Rows, known: Facts, risks: Mapping[str, Array]) -> Array:
    """Whether each action changes what a broken packing rule requires, or the handoff lacks, or is what the steps of a
    protocol ask for that the risks call for, (n, K) bool.

    The answer tells of those, advice or not. Whether the action would meet the rule does not matter: who is told to
    mend the label mends it.

    Args:
        book: the policy.
        rows: the parcels.
        known: what packing rules read of them.
        risks: per target, (n,) or (l,), as served.
    """
    n = rows.parcels.n
    kinds = [key.partition(":")[0] for key in book.keys]
    able = {field for kind in kinds for field in MENDS.get(kind, ())}
    wrong = incomplete(rows, book.policy)
    rules = [r for r in book.policy.specification if not able.isdisjoint(c.field for c in r.require)]
    for row in range(n if rules else 0):
        given = {field: found[row] for field, found in known.items()}
        for rule in rules:
            for condition in rule.unmet(given):
                wrong.setdefault(condition.field, np.zeros(n, dtype=bool))[row] = True
    out = np.zeros((n, len(book.keys)), dtype=bool)
    for k, kind in enumerate(kinds):
        for field in MENDS.get(kind, ()):
            if field in wrong:
                out[:, k] |= wrong[field]
    for target, protocol in book.policy.exceptions.items():
        asked = [k for k, key in enumerate(book.keys) if protocol.asks_for(key)]
        if asked and target in risks:
            called = risks[target] >= protocol.at_least
            if TARGETS[target].unit == "line":
                called = np.isin(np.arange(n), rows.line_parcel[called])
            out[:, asked] |= called[:, None]
    return out
