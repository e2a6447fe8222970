"""What each team does first: the findings of a diagnosis that are worth most, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any
from unicodedata import bidirectional

from features.definitions import FEATURES
from serving.diagnosis import Diagnosis, Where
from serving.pages.reading import advice, rate_of
from serving.pages.texts import Texts

TEAMS = ("packing", "listing", "carrier", "fulfilment")
"""Teams that get a list."""

TURNING = frozenset({"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI", "PDF", "PDI"})
"""Classes of characters (UAX 9) that turn the direction of the text around them."""

OWNERS: dict[str, str] = {
    measure: FEATURES[feature].team
    for measure, feature in (
        ("missed_cutoff", "handover_rate_node_28d"),
        ("backlog_hours", "pack_hours"),
        ("label_poor", "label_grade"),
        ("documents_missing", "documents_complete"),
    )
}
"""Measure of readiness -> the team that owns it: that of the feature that says the same of a parcel, so that a fault
has one owner in the diagnosis, in the explanations and in the policy."""


@dataclass(frozen=True)
class Action:
    """One thing to do.

    Attributes:
        team: who does it.
        subject: what it is about, the same in another diagnosis of the shop.
        what: what is found, in words.
        do: what to do about it.
        worth: money a year; None where it is not known in money.
        size: failures beyond the expected; what actions without a price are ordered by.
        verdict: of the finding.
        interval: ratio to the expected, and its ends, where there are such.
        path, query: the page that shows it.
    """

    team: str
    subject: tuple[str, ...]
    what: str
    do: str
    worth: float | None
    size: float
    verdict: str
    interval: tuple[float | None, float | None, float | None]
    path: str
    query: Mapping[str, Any]

    @property
    def ratio(self) -> float | None:
        """The ratio to the expected."""
        return self.interval[0]


def todo(diagnosis: Diagnosis, team: str, texts: Texts, limit: int = 5) -> list[Action]:
    """The actions of a team that are worth most. None where nothing is shown to be wrong.

    Kinds of findings take turns: a poor label has no price that would say whether a weak box comes before it.
    """
    kinds: list[list[Action]] = {
        "packing": lambda: [_packaging(diagnosis, texts, limit), _readiness(diagnosis, team, texts)],
        "listing": lambda: [_listing(diagnosis, texts, limit)],
        "carrier": lambda: [_carrier(diagnosis, texts, limit)],
        "fulfilment": lambda: [_readiness(diagnosis, team, texts)],
    }[team]()
    for actions in kinds:
        actions.sort(key=lambda a: (-(a.worth or 0.0), -a.size))
    return [a for a in chain.from_iterable(zip_longest(*kinds)) if a is not None][:limit]


def named(value: Any, most: int = 80) -> str:
    """A name within a sentence: not longer than a line, and its direction kept to itself."""
    text = "–" if value is None or value == "" else str(value)
    text = text if len(text) <= most else text[: most - 1] + "…"
    # Isolates are invisible, and what is copied with them is not found: only names that need them have them.
    return f"\u2068{text}\u2069" if any(bidirectional(c) in TURNING for c in text) else text


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _listing(diagnosis: Diagnosis, texts: Texts, limit: int) -> list[Action]:
    out = []
    for row in diagnosis.rows("products", Where({"named": 1}), sort="-worth", limit=limit):
        what = texts(
            "todo.listing",
            sku=named(row["sku"]),
            observed=texts.number(_number(row["observed"])),
            lines=texts.number(_number(row["lines"])),
            expected=texts.number(_number(row["expected"]), 1),
        )
        out.append(
            Action(
                "listing", (str(row["sku"]),), what, advice(row, texts) or texts("todo.listing_look"),
                _number(row["worth"]), _number(row["excess"]) or 0.0, str(row["verdict"]),
                (_number(row["ratio"]), _number(row["low"]), _number(row["high"])),
                "/listings/product", {"sku": row["sku"]},
            )
        )  # fmt: skip
    return out


def _carrier(diagnosis: Diagnosis, texts: Texts, limit: int) -> list[Action]:
    out = []
    for row in diagnosis.rows("corridors", Where({"verdict": "worse"}), sort="-excess", limit=limit):
        corridor = " → ".join(named(row[n], 40) for n in ("carrier", "service", "region") if row[n])
        what = texts(
            "todo.carrier",
            corridor=corridor,
            target=texts.word("failed", row["target"]),
            observed=texts.number(_number(row["observed"])),
            parcels=texts.number(_number(row["parcels"])),
            expected=texts.number(_number(row["expected"]), 1),
        )
        do = (
            texts("todo.carrier_meet_since", day=texts.day(str(row["since"])))
            if row["since"]
            else texts("todo.carrier_meet")
        )
        query = {n: row[n] for n in ("carrier", "target", "service", "region")}
        out.append(
            Action(
                "carrier", tuple(str(row[n]) for n in ("target", "carrier", "service", "region")), what, do,
                None, _number(row["excess"]) or 0.0, str(row["verdict"]),
                (_number(row["ratio"]), _number(row["low"]), _number(row["high"])), "/carriers/carrier", query,
            )
        )  # fmt: skip
    return out


def _readiness(diagnosis: Diagnosis, team: str, texts: Texts) -> list[Action]:
    out = []
    for row in diagnosis.rows("readiness", Where({"verdict": "worse"}), limit=500):
        if OWNERS.get(str(row["measure"])) != team:
            continue
        rate, elsewhere = _number(row["rate"]), _number(row["elsewhere"])
        if rate is None or elsewhere is None:
            continue
        hours = row["measure"] == "backlog_hours"
        shown = (lambda v: texts.number(v, 1)) if hours else (lambda v: rate_of(v, texts))
        what = texts(
            "todo.readiness",
            node=named(row["node"]),
            shift=texts.word("shift", row["shift"]),
            measure=texts.word("measure", row["measure"]),
            rate=shown(rate),
            elsewhere=shown(elsewhere),
        )
        parts = [None if not elsewhere or row[n] is None else row[n] / elsewhere for n in ("rate", "low", "high")]
        out.append(
            Action(
                team, tuple(str(row[n]) for n in ("node", "shift", "measure")), what,
                texts.word("todo_measure", row["measure"]), None,
                (rate - elsewhere) * float(row["parcels"] or 0) * (0.05 if hours else 1.0), str(row["verdict"]),
                (parts[0], parts[1], parts[2]), "/warehouse", {"measure": row["measure"]},
            )
        )  # fmt: skip
    return out


def _packaging(diagnosis: Diagnosis, texts: Texts, limit: int) -> list[Action]:
    out = []
    for verdict in ("under", "over"):
        for row in diagnosis.rows("packaging", Where({"verdict": verdict}), sort="-worth", limit=limit):
            what = texts(
                "todo.packing",
                goods=named(row["sku"] or row["category"]),
                package=named(row["package_type"]),
                damaged=texts.number(_number(row["damaged"])),
                parcels=texts.number(_number(row["parcels"])),
                expected=texts.number(_number(row["expected"]), 1),
            )
            expected, damaged = _number(row["expected"]), _number(row["damaged"])
            # The table's interval is of parcels; an action's is of times the expected.
            ratio, low, high = (
                None if not expected or n is None else n / expected
                for n in (damaged, _number(row["low"]), _number(row["high"]))
            )
            out.append(
                Action(
                    "packing", tuple(str(row[n]) for n in ("sku", "category", "package_type")), what,
                    texts.word("todo_packing", verdict), _number(row["worth"]), (damaged or 0.0) - (expected or 0.0),
                    verdict, (ratio, low, high), "/warehouse", {},
                )
            )  # fmt: skip
    return out
