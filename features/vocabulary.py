"""The words Doorstep shares with a shop: event kinds, owner teams, targets, return reasons and codes. Data only.

Everything here is plain data so that the same words are used by the tables, the models, the answers and the
documentation. Codes of a shop are mapped to these words in `dataset.toml`, section `[codes]`.
"""

from __future__ import annotations

from dataclasses import dataclass

TEAMS: tuple[str, ...] = ("packing", "fulfilment", "carrier", "listing", "customer", "order")
"""Owner teams. Every feature has exactly one, so explanations by team never count a point twice."""

EVENT_KINDS: dict[str, str] = {
    "handed_over": "the carrier took the parcel over from the warehouse",
    "handover_failed": "the shop never handed the parcel over; it did not enter the carrier's network",
    "in_transit": "the carrier scanned the parcel on its way",
    "out_for_delivery": "the parcel left for the door",
    "attempt_failed": "a delivery attempt at the door failed",
    "delivered": "the parcel reached the customer",
    "damaged": "the parcel or its content was reported damaged",
    "lost": "the carrier declared the parcel lost",
    "refused": "the customer refused the parcel at the door",
    "returned_to_sender": "the parcel came back undelivered",
    "customer_notified": "the customer was told about the delivery",
}

ARMS: tuple[str, ...] = ("act", "control", "none")
"""What became of a recommended action: advised, withheld by lot as an experiment's control, or there was none."""

LABEL_GRADES: tuple[str, ...] = ("A", "B", "C", "D", "F")
"""Barcode print quality after ISO/IEC 15416 letter grades: A scans first time, F does not scan."""


@dataclass(frozen=True)
class Target:
    """One thing Doorstep predicts.

    Attributes:
        name: public name, as in answers and `metrics.json`.
        unit: `parcel` or `line`; every figure of the target is per this unit.
        words: what it is, as a packer would say it.
        positive: what makes the label true.
        matures: when the label is old enough to be believed.
    """

    name: str
    unit: str
    words: str
    positive: str
    matures: str


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        Target(
            "late",
            "parcel",
            "arrives late",
            "not delivered by promised_to",
            "when promised_to has passed",
        ),
        Target(
            "failed_attempt",
            "parcel",
            "fails at the door",
            "an event attempt_failed",
            "lost_after_days after the decision",
        ),
        Target(
            "damaged",
            "parcel",
            "arrives damaged",
            "an event damaged",
            "lost_after_days after the decision",
        ),
        Target(
            "undelivered",
            "parcel",
            "never arrives",
            "lost, refused, returned to sender, or no delivery known when lost_after_days have passed",
            "lost_after_days after the decision",
        ),
        Target(
            "returned",
            "line",
            "is sent back",
            "a return was requested for the order line",
            "when the line is delivered and return_window_days have passed since",
        ),
    )
}


@dataclass(frozen=True)
class Reason:
    """Why an order line came back.

    Attributes:
        name: public name, as in answers.
        team: the owner team that could have prevented it.
        words: the reason as it stands after "comes back because".
    """

    name: str
    team: str
    words: str


RETURN_REASONS: dict[str, Reason] = {
    r.name: r
    for r in (
        Reason("wrong_size", "listing", "it does not fit"),
        Reason("not_as_described", "listing", "it is not what the listing shows"),
        Reason("defect", "listing", "the product does not work, or is not made well"),
        Reason("damaged", "packing", "it arrived broken"),
        Reason("late", "carrier", "it came too late"),
        Reason("changed_mind", "customer", "the customer does not want it any more"),
        Reason("wrong_item", "fulfilment", "something else was in the parcel"),
        Reason("missing_parts", "fulfilment", "something was missing"),
    )
}
"""Return reasons and whose each is. A shop may add its own, or give one to another team, see `features.reasons`."""

GENERIC_BASE_RATES: dict[str, float] = {
    "late": 0.08,
    "failed_attempt": 0.06,
    "damaged": 0.02,
    "undelivered": 0.015,
    "returned": 0.15,
}
"""Middles of published ranges. Served only, and said so, when neither a model nor a snapshot of the shop is loaded."""

_WHOLE = "BIF CLP DJF GNF HUF IDR IRR ISK JPY KMF KRW LAK MMK PYG RWF TZS UGX UZS VND VUV XAF XOF XPF"
WHOLE_AMOUNTS = frozenset(_WHOLE.split())
"""Currencies that are written without decimals: they have no smaller unit (ISO 4217), or it buys nothing any more."""


def amount_digits(currency: str) -> int:
    """Digits behind the point with which amounts of a currency are written."""
    return 0 if currency in WHOLE_AMOUNTS else 2
